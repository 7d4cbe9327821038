//! Streams to pods over a node's one connection: what they carry, and that a heavy one stops nobody else.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::Stdio,
};

use crate::{
    common::{Node, Running, board, must},
    images,
};

/// busybox from the machine's package as an image, imported through the running daemon.
fn import_busybox(node: &Node) {
    let file = node.dir.path().join("busybox.tar");
    fs::write(&file, images::busybox(&["sh", "tar", "dd"])).unwrap();
    must(&mut node.import(&file));
}

const BOX: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: test.local/busybox:1
    imagePullPolicy: Never
    stdin: true
    command: [/bin/sh, -c, "while read line; do echo got $line; done; while :; do /bin/busybox sleep 1; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: sampan.dev/demo}]
"#;

#[test]
fn files_ports_and_input_reach_a_pod() {
    let node = board("carry");
    import_busybox(&node);
    node.apply(BOX);
    node.k(&["wait", "--for=condition=Ready", "pod/box", "pod/web", "--timeout=60s"]);

    let local = node.dir.path().join("local");
    fs::create_dir_all(local.join("inner")).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(local.join("large"), &large).unwrap();
    fs::write(local.join("inner/small"), "small\n").unwrap();
    let back = node.dir.path().join("back");
    node.k(&["cp", &local.display().to_string(), "box:/tmp/in"]);
    assert_eq!(node.k(&["exec", "box", "--", "/bin/busybox", "cat", "/tmp/in/inner/small"]), "small\n");
    node.k(&["cp", "box:/tmp/in", &back.display().to_string()]);
    assert!(fs::read(back.join("large")).unwrap() == large, "what came back is something else");

    let mut attach = node.kubectl();
    attach.args(["attach", "-i", "box"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut attached = Running(attach.spawn().unwrap());
    let mut heard = BufReader::new(attached.0.stdout.take().unwrap()).lines();
    // What is written before the streams are joined would be lost on nobody: input waits.
    attached.0.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    assert!(heard.any(|line| line.unwrap() == "got hello"));

    let mut forward = node.kubectl();
    forward.args(["port-forward", "pod/web", ":8080"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut forward = Running(forward.spawn().unwrap());
    let mut said = BufReader::new(forward.0.stdout.take().unwrap()).lines();
    let line = said.next().unwrap().unwrap();
    let port = line.split(':').nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    for _ in 0..3 {
        let url = format!("http://127.0.0.1:{port}/");
        let answer = must(node.space.command("curl").args(["-sf", "-m", "20", &url]));
        assert!(!answer.is_empty());
    }
}

#[test]
fn a_heavy_stream_starves_no_status() {
    let node = board("heavy");
    import_busybox(&node);
    node.apply(BOX);
    node.k(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    let pour = || {
        let mut exec = node.kubectl();
        exec.args(["exec", "box", "--", "/bin/dd", "if=/dev/zero", "bs=1M"]);
        let mut pouring = Running(exec.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut stream = pouring.0.stdout.take().unwrap();
        stream.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let reader = std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        (pouring, reader)
    };
    let mut heavy = [pour(), pour()];
    for n in 0..3 {
        let name = format!("beside{n}");
        node.k(&["run", &name, "--image=sampan.dev/demo"]);
        node.k(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=30s"]);
        node.k(&["delete", "pod", &name, "--grace-period=1", "--timeout=30s"]);
    }
    assert!(node.k(&["get", "nodes"]).contains(" Ready"));
    for (pouring, _) in &mut heavy {
        assert!(pouring.0.try_wait().unwrap().is_none(), "the stream has ended before");
    }
    let readers = heavy.map(|(pouring, reader)| {
        drop(pouring);
        reader
    });
    for reader in readers {
        assert!(reader.join().unwrap().unwrap() > 1 << 20);
    }
}
