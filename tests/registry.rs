//! Pulls: from Debian's `docker-registry` on loopback, and from a scripted registry that breaks its promises. Needs
//! root (layers have owners) and the packages `docker-registry` and `apache2-utils`.

mod images;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use sampan::image::{Credentials, Error, ImageStore, Images, Mirror, Options, Platform, Progress};
use serde_json::json;
use tokio::sync::watch;

use images::{config, file, gzip, layer, sha256, zstd};

/// An image as a registry holds it.
struct Pushed {
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    layers: Vec<String>,
}

fn image(architecture: &str, contents: &[&str]) -> Pushed {
    let plain: Vec<Vec<u8>> =
        contents.iter().map(|text| layer(&[file("file", text), file(&text[..3], "x")])).collect();
    let mut blobs = BTreeMap::new();
    let mut descriptor = |bytes: Vec<u8>, media: &str| {
        let digest = sha256(&bytes);
        let descriptor = json!({"mediaType": media, "digest": digest, "size": bytes.len()});
        blobs.insert(digest, bytes);
        descriptor
    };
    let config = descriptor(config(&plain, architecture), "application/vnd.docker.container.image.v1+json");
    let layers: Vec<_> = plain
        .iter()
        .enumerate()
        .map(|(i, layer)| if i % 2 == 0 { gzip(layer) } else { zstd(layer) })
        .map(|bytes| descriptor(bytes, "application/vnd.docker.image.rootfs.diff.tar.gzip"))
        .collect();
    let manifest = json!({"schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "config": config, "layers": layers});
    let layers = layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
    Pushed { manifest: manifest.to_string().into_bytes(), blobs, layers }
}

/// A store that pulls for arm64.
struct Node {
    folder: tempfile::TempDir,
    store: ImageStore,
}

impl Node {
    fn new(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::new(folder.path());
        options.platform = Platform::linux("arm64", "v8");
        options.stall = Duration::from_secs(5);
        change(&mut options);
        Self { store: ImageStore::open(options).unwrap(), folder }
    }

    async fn message(&self, reference: &str, credentials: &[Credentials]) -> String {
        let error = self.store.pull(reference, credentials, None).await.expect_err(reference);
        error.to_string()
    }

    fn layer_files(&self) -> usize {
        fs::read_dir(self.folder.path().join("images/layers")).unwrap().count()
    }
}

/// Debian's registry over a folder.
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Registry {
    fn new(folder: &Path, tls: bool, auth: bool) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let mut config = json!({"version": "0.1", "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": at("storage")}}, "http": {"addr": address.to_string()}});
        if tls {
            config["http"]["tls"] = json!({"certificate": at("server.crt"), "key": at("server.key")});
        }
        if auth {
            let hash = Command::new("htpasswd").args(["-Bbn", "me", "secret"]).output().unwrap();
            fs::write(folder.join("htpasswd"), hash.stdout).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": at("htpasswd")}});
        }
        let path = folder.join(format!("config-{}.json", address.port()));
        fs::write(&path, config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, address };
        let end = Instant::now() + Duration::from_mins(1);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "docker-registry does not start");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap_or_default();
        (status, location.to_owned())
    }

    fn push(&self, repository: &str, tag: &str, image: &Pushed) {
        for (digest, bytes) in &image.blobs {
            let (status, location) =
                self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "x/y", b"");
            assert_eq!(status, 202);
            let path = location
                .split_once("//")
                .map_or(location.as_str(), |(_, rest)| &rest[rest.find('/').unwrap()..]);
            let separator = if path.contains('?') { '&' } else { '?' };
            let put = format!("{path}{separator}digest={digest}");
            assert_eq!(self.request("PUT", &put, "application/octet-stream", bytes).0, 201);
        }
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let path = format!("/v2/{repository}/manifests/{tag}");
        assert_eq!(self.request("PUT", &path, kind, &image.manifest).0, 201);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn images_come_from_a_plain_registry_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::new(folder.path(), false, false);
    let pushed = image("arm64", &["one", "two", "one"]);
    registry.push("team/app", "1", &pushed);
    let node = Node::new(|_| {});
    let name = format!("localhost:{}/team/app:1", registry.address.port());
    let (sender, receiver) = watch::channel(Progress::default());
    let got = node.store.pull(&name, &[], Some(sender)).await.unwrap();
    let sizes: Vec<_> = pushed.layers.iter().map(|l| (l.clone(), pushed.blobs[l].len() as u64)).collect();
    assert_eq!(receiver.borrow().layers, sizes.iter().map(|(l, s)| (l.clone(), *s, *s)).collect::<Vec<_>>());
    assert_eq!(got.names, std::slice::from_ref(&name));
    assert_eq!(got.layers.len(), 3);
    assert_eq!(got.layers[0], got.layers[2], "a layer that repeats is there once");
    assert_eq!(fs::read_to_string(got.layers[1].join("file")).unwrap(), "two");
    // Again: nothing new. By digest: the same image.
    let again = node.store.pull(&name, &[], None).await.unwrap();
    assert_eq!(again.id, got.id);
    let by_digest = node.store.pull(&got.digests[0], &[], None).await.unwrap();
    assert_eq!(by_digest.id, got.id);
    // The tag moves.
    registry.push("team/app", "1", &image("arm64", &["one", "three"]));
    let moved = node.store.pull(&name, &[], None).await.unwrap();
    assert_ne!(moved.id, got.id);
    assert_eq!(moved.layers[0], got.layers[0], "layers are shared");
    assert!(node.store.find(&got.id).unwrap().names.is_empty());
    registry.push("team/app", "pc", &image("s390x", &["one"]));
    let wrong = node.store.pull(&name.replace(":1", ":pc"), &[], None).await;
    assert!(matches!(&wrong, Err(Error::Platform { found, .. }) if found == "linux/s390x"), "{wrong:?}");
    let missing = name.replace(":1", ":2");
    assert_eq!(
        node.message(&missing, &[]).await,
        format!(
            "failed to pull and unpack image {missing:?}: failed to resolve reference {missing:?}: {missing}: not found"
        )
    );
}

fn certify(folder: &Path) {
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    fs::create_dir(folder.join("trusted")).unwrap();
    fs::write(folder.join("trusted/ca.crt"), authority_certificate.pem()).unwrap();
    fs::write(folder.join("server.crt"), certificate.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn certificates_and_passwords_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path());
    let pushed = image("arm64", &["one", "two"]);
    Registry::new(folder.path(), false, false).push("app", "1", &pushed);
    let registry = Registry::new(folder.path(), true, true);
    let host = format!("localhost:{}", registry.address.port());
    let name = format!("{host}/app:1");
    let right = Credentials { username: "me".to_owned(), password: "secret".to_owned() };
    let wrong = Credentials { password: "guess".to_owned(), ..right.clone() };
    let trusted = folder.path().join("trusted");

    let node = Node::new(|options| options.certificates = Some(trusted.clone()));
    for credentials in [&[][..], std::slice::from_ref(&wrong)] {
        let message = node.message(&name, credentials).await;
        assert!(message.contains("pull access denied") && message.contains("authorization"), "{message}");
    }
    let got = node.store.pull(&name, &[wrong, right.clone()], None).await.unwrap();
    assert_eq!(fs::read_to_string(got.layers[1].join("file")).unwrap(), "two");

    let stranger = Node::new(|_| {});
    let message = stranger.message(&name, std::slice::from_ref(&right)).await;
    assert!(message.contains("certificate"), "{message}");
    let careless = Node::new(|options| options.insecure_registries = vec![host.clone()]);
    careless.store.pull(&name, std::slice::from_ref(&right), None).await.unwrap();
    let own = Node::new(|options| {
        let by_host = folder.path().join("by-host");
        fs::create_dir_all(by_host.join(&host)).unwrap();
        fs::copy(trusted.join("ca.crt"), by_host.join(&host).join("ca.pem")).unwrap();
        options.certificates = Some(by_host);
    });
    own.store.pull(&name, &[right], None).await.unwrap();
}

/// A request as the scripted registry sees it.
struct Request {
    method: String,
    path: String,
    fields: BTreeMap<String, String>,
}

/// What it answers.
#[derive(Default)]
struct Reply {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
    /// Sends so many bytes of the body and then closes, or says nothing more.
    cut: Option<usize>,
    stall: bool,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A registry that does what a function says.
struct Scripted {
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (shared, answer) = (log.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (shared.clone(), answer.clone());
                thread::spawn(move || drop(serve(stream.unwrap(), &log, &*answer)));
            }
        });
        Self { address, log }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn asked(&self, what: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(what)).count()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<String>>,
    answer: &dyn Fn(&Request) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        // A TLS greeting is no text: the connection ends, as with any plain server.
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Request { method, path, fields: BTreeMap::new() };
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.trim_end().split_once(": ") else { break };
            request.fields.insert(name.to_lowercase(), value.to_owned());
        }
        log.lock().unwrap().push(format!("{} {}", request.method, request.path));
        let reply = answer(&request);
        let mut head = vec![format!("HTTP/1.1 {} Status", reply.status)];
        if !reply.fields.iter().any(|(name, _)| name == "content-length") {
            head.push(format!("content-length: {}", reply.body.len()));
        }
        head.extend(reply.fields.iter().map(|(name, value)| format!("{name}: {value}")));
        let head = head.join("\r\n") + "\r\n";
        writer.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            writer.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
        }
        if reply.stall {
            thread::sleep(Duration::from_mins(1));
        }
        if reply.cut.is_some() {
            return Ok(());
        }
    }
}

/// The honest answers for one image under the tag `1`.
fn honest(image: &Pushed, request: &Request) -> Reply {
    let path = request.path.split('?').next().unwrap();
    let object = path.rsplit('/').next().unwrap();
    if path.contains("/manifests/") && (object == "1" || object == sha256(&image.manifest)) {
        return Reply::new(200, image.manifest.clone())
            .with("docker-content-digest", sha256(&image.manifest));
    }
    image.blobs.get(object).map_or_else(|| Reply::new(404, ""), |bytes| Reply::new(200, bytes.clone()))
}

#[tokio::test]
async fn tokens_redirections_and_indexes() {
    let pushed = image("arm64", &["one"]);
    let index = json!({"schemaVersion": 2, "manifests": [
        {"digest": sha256(b"x"), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": sha256(&pushed.manifest), "size": pushed.manifest.len(),
            "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}]})
    .to_string();
    let index_digest = sha256(index.as_bytes());
    let pushed = Arc::new(pushed);
    let blobs = pushed.clone();
    let cdn = Scripted::new(move |request| {
        // Object stores refuse a second kind of authorization.
        if request.fields.contains_key("authorization") {
            Reply::new(400, "")
        } else {
            honest(&blobs, request)
        }
    });
    let cdn_address = cdn.address;
    let registry = Arc::new(Mutex::new(None::<SocketAddr>));
    let own = registry.clone();
    let scripted = Scripted::new(move |request| {
        let own = own.lock().unwrap().unwrap();
        if request.path.starts_with("/token") {
            assert!(request.path.starts_with("/token?service=r&scope=repository:app:pull"));
            return if request.fields.get("authorization").is_some_and(|a| a == "Basic bWU6c2VjcmV0") {
                Reply::new(200, r#"{"access_token":"t0k3n"}"#)
            } else {
                Reply::new(401, "")
            };
        }
        if request.fields.get("authorization").is_none_or(|a| a != "Bearer t0k3n") {
            let challenge =
                format!("Bearer realm=\"http://{own}/token\",service=\"r\",scope=\"repository:app:pull\"");
            return Reply::new(401, "").with("www-authenticate", challenge);
        }
        if request.path.contains("/blobs/") {
            return Reply::new(307, "").with("location", format!("http://{cdn_address}{}", request.path));
        }
        if request.path.ends_with("/manifests/1") {
            Reply::new(200, index.clone())
        } else {
            honest(&pushed, request)
        }
    });
    *registry.lock().unwrap() = Some(scripted.address);
    let node = Node::new(|_| {});
    let credentials = [Credentials { username: "me".to_owned(), password: "secret".to_owned() }];
    let got = node.store.pull(&scripted.name("app:1"), &credentials, None).await.unwrap();
    assert_eq!(got.digests, [format!("{}@{index_digest}", scripted.name("app"))]);
    assert_eq!((scripted.asked("/token"), cdn.asked("/blobs/")), (1, 2), "one token, all blobs elsewhere");
    let wrong = [Credentials { username: "me".to_owned(), password: "guess".to_owned() }];
    let message = Node::new(|_| {}).message(&scripted.name("app:1"), &wrong).await;
    assert!(message.contains("pull access denied"), "{message}");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    for ranges in [true, false] {
        let pushed = image("arm64", &[&"long ".repeat(20_000)]);
        let layer = pushed.layers[0].clone();
        let size = pushed.blobs[&layer].len();
        let scripted = Scripted::new(move |request| {
            let mut reply = honest(&pushed, request);
            if !request.path.ends_with(&layer) {
                return reply;
            }
            match request.fields.get("range") {
                None => reply.cut = Some(size / 2),
                Some(range) if ranges => {
                    let start: usize =
                        range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
                    assert_eq!(start, size / 2);
                    reply = Reply::new(206, reply.body[start..].to_vec())
                        .with("content-range", format!("bytes {start}-{}/{size}", size - 1));
                }
                Some(_) => {}
            }
            reply
        });
        let node = Node::new(|_| {});
        node.store.pull(&scripted.name("app:1"), &[], None).await.unwrap();
        assert_eq!(scripted.asked("/blobs/"), 3, "configuration, half a layer, the other half");
    }
}

#[tokio::test]
async fn registries_that_lie_or_stall_are_refused() {
    type Lie = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;
    let on_layer = |change: fn(Reply) -> Reply| -> Lie {
        Box::new(move |request, reply| {
            if reply.body.starts_with(b"\x1f\x8b") && request.method == "GET" { change(reply) } else { reply }
        })
    };
    let lies: Vec<(&str, Lie)> = vec![
        (
            "unexpected size",
            on_layer(|reply| {
                let n = reply.body.len() + 1;
                Reply::new(200, [reply.body, vec![0]].concat()).with("content-length", n)
            }),
        ),
        (
            "unexpected digest",
            on_layer(|mut reply| {
                *reply.body.last_mut().unwrap() ^= 1;
                reply
            }),
        ),
        (
            "unexpected range",
            on_layer(|reply| Reply::new(206, reply.body).with("content-range", "bytes 7-9/10")),
        ),
        ("no data for 0.2 s", on_layer(|reply| Reply { cut: Some(10), stall: true, ..reply })),
        ("500 Internal Server Error", on_layer(|_| Reply::new(500, ""))),
        ("not found", on_layer(|_| Reply::new(404, ""))),
        (
            "stopped after 5 redirects",
            on_layer(|_| Reply::new(302, "").with("location", "/v2/app/blobs/loop")),
        ),
        (
            "manifest has unexpected digest",
            Box::new(|request, reply| {
                if request.path.contains("/manifests/") {
                    Reply { body: b"{}".to_vec(), ..reply }
                } else {
                    reply
                }
            }),
        ),
        (
            "toomanyrequests: slow down",
            Box::new(|_, _| {
                Reply::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)
            }),
        ),
        (
            "the answer is longer than",
            Box::new(|request, reply| {
                if request.path.contains("/manifests/") {
                    Reply::new(200, vec![b' '; 5 << 20])
                } else {
                    reply
                }
            }),
        ),
    ];
    let mut tests = Vec::new();
    for (want, lie) in lies {
        tests.push(tokio::spawn(async move {
            let pushed = image("arm64", &["one"]);
            let loops = |request: &Request| request.path.ends_with("/loop");
            let scripted = Scripted::new(move |request| {
                if loops(request) {
                    return Reply::new(302, "").with("location", "/v2/app/blobs/loop");
                }
                lie(request, honest(&pushed, request))
            });
            let node = Node::new(|options| options.stall = Duration::from_millis(200));
            let message = node.message(&scripted.name("app:1"), &[]).await;
            assert!(message.contains(want), "{message:?} has no {want:?}");
            assert!(message.starts_with("failed to pull and unpack image"), "{message}");
            assert_eq!(node.layer_files(), 0, "{want}: nothing stays");
            assert!(node.store.list().is_empty());
        }));
    }
    for test in tests {
        test.await.unwrap();
    }
}

#[tokio::test]
async fn mirrors_are_asked_first_and_whole_layers_are_kept() {
    let pushed = Arc::new(image("arm64", &["one", "two"]));
    let (broken_layer, whole_layer) = (pushed.layers[1].clone(), pushed.layers[0].clone());
    let half = pushed.clone();
    let broken = Scripted::new(move |request| {
        if request.path.contains(&broken_layer) {
            thread::sleep(Duration::from_millis(300));
            return Reply::new(404, "");
        }
        honest(&half, request)
    });
    let good = Scripted::new(move |request| honest(&pushed, request));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirror = |address: SocketAddr, rewrite: &[(&str, &str)]| Mirror {
        url: format!("http://{address}"),
        rewrite: rewrite.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect(),
        credentials: None,
    };
    let node = Node::new(|options| {
        let mirrors = vec![
            mirror(closed, &[]),
            mirror(broken.address, &[]),
            mirror(good.address, &[("team/", "copy/")]),
        ];
        options.mirrors = [("registry.invalid".to_owned(), mirrors)].into();
    });
    let got = node.store.pull("registry.invalid/team/app:1", &[], None).await.unwrap();
    assert_eq!(got.names, ["registry.invalid/team/app:1"]);
    assert_eq!(good.asked("/v2/copy/app/manifests/1?ns=registry.invalid"), 1);
    assert_eq!((broken.asked(&whole_layer), good.asked(&whole_layer)), (1, 0), "loaded once");
}

#[tokio::test]
async fn two_pulls_of_one_image_load_it_once() {
    let pushed = image("arm64", &["one", "two", "three"]);
    let layers: Vec<String> = pushed.layers.clone();
    let scripted = Scripted::new(move |request| honest(&pushed, request));
    let node = Node::new(|_| {});
    let name = scripted.name("app:1");
    let (a, b) = tokio::join!(node.store.pull(&name, &[], None), node.store.pull(&name, &[], None));
    assert_eq!(a.unwrap().id, b.unwrap().id);
    for layer in layers {
        assert_eq!(scripted.asked(&layer), 1);
    }
}

#[tokio::test]
async fn a_node_loads_two_layers_at_once_and_no_third() {
    let names: Vec<String> = (0..5).map(|n| format!("layer {n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Two images whose layers have nothing in common.
    let pushed = Arc::new([image("arm64", &names), image("arm64", &["one", "two", "three", "four"])]);
    let loading = Arc::new((Mutex::new((0_usize, 0_usize)), Condvar::new()));
    let (both, seen) = (pushed.clone(), loading.clone());
    let scripted = Scripted::new(move |request| {
        let of = &both[usize::from(request.path.starts_with("/v2/second/"))];
        if of.layers.iter().any(|layer| request.path.ends_with(layer)) {
            let (counts, changed) = &*seen;
            let mut now = counts.lock().unwrap();
            now.0 += 1;
            now.1 = now.1.max(now.0);
            changed.notify_all();
            // The first ones wait for company; all stay so long that a third would be seen.
            let waited = changed.wait_timeout_while(now, Duration::from_secs(30), |now| now.1 < 2).unwrap();
            drop(waited);
            thread::sleep(Duration::from_millis(30));
            counts.lock().unwrap().0 -= 1;
        }
        honest(of, request)
    });
    let node = Node::new(|options| options.stall = Duration::from_mins(1));
    let (first, second) = (scripted.name("first:1"), scripted.name("second:1"));
    let (a, b) = tokio::join!(node.store.pull(&first, &[], None), node.store.pull(&second, &[], None));
    assert_eq!((a.unwrap().layers.len(), b.unwrap().layers.len()), (5, 4));
    assert_eq!(loading.0.lock().unwrap().1, 2);
}

#[tokio::test]
async fn unreachable_registries_are_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let name = format!("{closed}/app:1");
    let message = Node::new(|_| {}).message(&name, &[]).await;
    let end = format!(
        "failed to do request: Get \"https://{closed}/v2/app/manifests/1\": dial tcp {closed}: connect: connection refused"
    );
    assert!(message.ends_with(&end), "{message}");
}
