//! Images of a running board: secrets for registries, collection, and the verbs of `sampan image`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use nix::sched::{CloneFlags, setns};

use super::{board_with_busybox, wait_ready};
use crate::{
    common::{Node, SAMPAN, must, output, wait_for},
    images,
};

/// What the registry has, by path.
type Blobs = Vec<(String, &'static str, Vec<u8>)>;

/// One image that sleeps.
fn blobs(app: &str) -> Blobs {
    let program = fs::read("/bin/busybox").expect("the package busybox-static");
    let file =
        images::File { path: "sleep", kind: tar::EntryType::Regular, body: &program, link: "", mode: 0o755 };
    // Two images must not be the same.
    let name = images::File { path: app, kind: tar::EntryType::Regular, body: b"", link: "", mode: 0o644 };
    let layer = images::layer(&[file, name]);
    let architecture = must(Command::new("dpkg").arg("--print-architecture"));
    let config = images::config(std::slice::from_ref(&layer), architecture.trim());
    let part = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": images::sha256(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let blob = |bytes: &[u8]| format!("/v2/{app}/blobs/{}", images::sha256(bytes));
    vec![
        (
            format!("/v2/{app}/manifests/1"),
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().into_bytes(),
        ),
        (blob(&config), "application/octet-stream", config),
        (blob(&layer), "application/octet-stream", layer),
    ]
}

/// A registry on the board's loopback that lets in `user` with `password` only; lives as long as the test.
fn registry(node: &Node) -> SocketAddr {
    let space = fs::File::open(format!("/run/netns/{}", node.space.name)).unwrap();
    // Its socket stays where it was made.
    let bind = move || {
        setns(space, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap()
    };
    let listener = thread::spawn(bind).join().unwrap();
    let address = listener.local_addr().unwrap();
    let blobs = [blobs("app"), blobs("kept")].concat();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away ends its connection only.
            let _ = answer(&stream, &blobs);
        }
    });
    address
}

fn answer(stream: &TcpStream, blobs: &Blobs) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut allowed = false;
    let wanted = format!("authorization: basic {}", BASE64_STANDARD.encode("user:password"));
    for line in lines {
        let line = line?;
        allowed |= line.to_lowercase() == wanted.to_lowercase();
        if line.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let found = blobs.iter().find(|(at, _, body)| at == path || path.ends_with(&images::sha256(body)));
    let (status, kind, body) = match found {
        _ if !allowed => {
            ("401 Unauthorized\r\nWww-Authenticate: Basic realm=\"test\"", "text/plain", &[][..])
        }
        Some((_, kind, body)) => ("200 OK", *kind, body.as_slice()),
        None => ("404 Not Found", "text/plain", &[][..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n\r\n",
        body.len(),
        images::sha256(body)
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    if first.starts_with("GET ") {
        stream.write_all(body)?;
    }
    Ok(())
}

fn pod(name: &str, image: &str, secret: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  imagePullSecrets: [{{name: {secret}}}]\n  containers: [{{name: c, image: {image:?}, command: [/sleep, \"3600\"]}}]\n"
    )
}

/// `sampan image …` for the node, through its daemon where one runs.
fn image(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(SAMPAN);
    command.arg("image").args(args);
    command
        .arg("--run-dir")
        .arg(node.dir.path().join("run"))
        .arg("--data-dir")
        .arg(node.dir.path().join("data"));
    command
}

fn names(node: &Node) -> Vec<String> {
    let all: serde_json::Value =
        serde_json::from_str(&must(&mut image(node, &["ls", "-o", "json"]))).unwrap();
    all.as_array()
        .unwrap()
        .iter()
        .flat_map(|image| image["names"].as_array().unwrap())
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn registries_let_pods_in_by_their_secrets_and_unused_images_go() {
    let mut node = board_with_busybox("images");
    let address = registry(&node);
    let app = format!("{address}/app:1");
    for (name, password) in [("right", "password"), ("wrong", "guess")] {
        let server = format!("--docker-server=http://{address}");
        let password = format!("--docker-password={password}");
        node.k(&["create", "secret", "docker-registry", name, &server, "--docker-username=user", &password]);
    }
    node.apply(&pod("refused", &app, "wrong"));
    node.apply(&pod("absent", &app, "nobody"));
    let selector = "involvedObject.name=refused,reason=Failed";
    node.wait_output(&["get", "events", "--field-selector", selector], "the refusal", |text| {
        text.contains("authorization failed: no basic auth credentials")
            && text.contains("Error: ErrImagePull")
    });
    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    node.wait_output(&["get", "pod", "absent", "-o", reason], "a back-off", |text| {
        text == "ImagePullBackOff"
    });
    node.apply(&pod("let-in", &app, "right"));
    wait_ready(&node, &["let-in"]);
    // The account's secrets are its pods'.
    let secrets = r#"{"imagePullSecrets": [{"name": "right"}]}"#;
    node.k(&["patch", "serviceaccount", "default", "--patch", secrets]);
    let own = pod("by-account", &app, "right").replace("  imagePullSecrets: [{name: right}]\n", "");
    node.apply(&own.replace("command:", "imagePullPolicy: Always, command:"));
    wait_ready(&node, &["by-account"]);
    let id = "jsonpath={.status.containerStatuses[0].imageID}";
    let manifest = images::sha256(&blobs("app")[0].2);
    assert_eq!(node.k(&["get", "pod", "let-in", "-o", id]), format!("{address}/app@{manifest}"));

    let kept = format!("{address}/kept:1");
    node.apply(&pod("kept", &kept, "right"));
    wait_ready(&node, &["kept"]);
    must(&mut image(&node, &["pin", &kept]));

    // In use it stays however full the disk; unused it goes, but for what was imported or pinned.
    let thresholds = ["--image-gc-high-threshold", "1", "--image-gc-low-threshold", "0"].map(str::to_owned);
    node.add_args(&thresholds);
    node.stop();
    node.spawn();
    node.wait_ready();
    assert!(names(&node).contains(&app), "{:?}", names(&node));
    node.k(&["delete", "pods", "--all"]);
    node.stop();
    node.spawn();
    node.wait_ready();
    wait_for("the unused image to go", || {
        let names = names(&node);
        if names.contains(&app) { Err(format!("{names:?}")) } else { Ok(()) }
    });
    for name in ["test.local/busybox:1", &kept] {
        assert!(names(&node).contains(&name.to_owned()), "{name}");
    }
}

#[test]
fn the_verbs_of_images_do_what_they_say_with_a_daemon_and_without() {
    let mut node = board_with_busybox("verbs");
    let name = "test.local/busybox:1";
    for daemon in [true, false] {
        if !daemon {
            node.stop();
        }
        let table = must(&mut image(&node, &["ls"]));
        assert!(table.starts_with("IMAGE") && table.contains(name), "{table}");
        let out = node.dir.path().join(format!("out-{daemon}.tar"));
        let out = out.to_str().unwrap();
        assert_eq!(must(&mut image(&node, &["export", name, out])), format!("wrote {out}\n"));
        assert_eq!(must(&mut image(&node, &["verify", "--contents"])), "all images are sound\n");
        must(&mut image(&node, &["pin", name]));
        let refused = output(&mut image(&node, &["rm", "test.local/none:1"]));
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("not found"), "{refused:?}");
        must(&mut image(&node, &["unpin", name]));
        assert_eq!(must(&mut image(&node, &["rm", name])), format!("removed {name}\n"));
        assert!(!names(&node).contains(&name.to_owned()));
        assert_eq!(must(&mut image(&node, &["import", out])), format!("{name}\n"));
        assert!(names(&node).contains(&name.to_owned()));
        let pull = output(&mut image(&node, &["pull", "127.0.0.1:1/x:1"]));
        let said = String::from_utf8_lossy(&pull.stderr).into_owned();
        assert!(!pull.status.success() && said.contains("connection refused"), "{said}");
    }
    // What is put into the folder is imported by a daemon that comes.
    must(&mut image(&node, &["rm", name]));
    fs::copy(node.dir.path().join("out-true.tar"), node.dir.path().join("data/images/busybox.tar")).unwrap();
    node.spawn();
    node.wait_ready();
    wait_for("the archive to be imported", || {
        let names = names(&node);
        if names.contains(&name.to_owned()) { Ok(()) } else { Err(format!("{names:?}")) }
    });
}
