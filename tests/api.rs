//! The API server as clients see it: a server in a temporary folder, asked by the real `kubectl`
//! where there is one.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    sync::Arc,
};

use sampan::{
    api::{Config, Server, pki::Pki},
    clock::SystemClock,
    objects::{Objects, Settings, token::Signer},
    store::Store,
    streams::{
        Answer, Connection, Exit, LogOptions, NodeStreams, Reader, Session, StreamError, Target, Wanted,
    },
    tasks::CancellationToken,
};

/// The port on which pods speak HTTP instead of echoing.
const WEB: u16 = 80;

/// Answers one HTTP request with its own head, in a page with a link.
async fn web(mut io: tokio::io::DuplexStream) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut head, mut buffer) = (String::new(), [0; 256]);
    while !head.contains("\r\n\r\n") {
        match io.read(&mut buffer).await {
            Ok(count) if count > 0 => head.push_str(&String::from_utf8_lossy(&buffer[..count])),
            _ => return,
        }
    }
    let page = format!("<a href=\"/next\">{}</a>", head.to_ascii_lowercase().replace("\r\n", "|"));
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{page}", page.len());
    let _ = io.write_all(answer.as_bytes()).await;
}

/// A node whose containers echo; the first word of a command is its exit code.
struct Echo;

impl Echo {
    fn session(exit: i32) -> Session {
        let (near, far) = tokio::io::duplex(1024);
        let (out, input) = tokio::io::split(near);
        let (mut echoed, mut back) = tokio::io::split(far);
        let (code, ended) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            if exit == 0 {
                let _ = tokio::io::copy(&mut echoed, &mut back).await;
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut back).await;
            let _ = code.send(Exit::Code(exit));
        });
        let (resize, _) = tokio::sync::mpsc::channel(1);
        Session {
            stdin: Some(Box::new(input)),
            stdout: Some(Box::new(out)),
            stderr: None,
            resize,
            exit: ended,
        }
    }
}

impl NodeStreams for Echo {
    fn is_connected(&self, node: &str) -> bool {
        node == "worker"
    }

    fn logs<'a>(&'a self, target: &'a Target, options: &'a LogOptions) -> Answer<'a, Reader> {
        let text =
            format!("{} of {} on {}: {:?}\n", target.container, target.pod, target.node, options.tail_lines);
        Box::pin(async move { Ok(Box::new(std::io::Cursor::new(text.into_bytes())) as Reader) })
    }

    fn exec<'a>(&'a self, _: &'a Target, command: &'a [String], _: Wanted) -> Answer<'a, Session> {
        let exit = command[0].parse().unwrap_or(0);
        Box::pin(async move { Ok(Self::session(exit)) })
    }

    fn attach<'a>(&'a self, target: &'a Target, _: Wanted) -> Answer<'a, Session> {
        Box::pin(async move { Err(StreamError::NodeAway(target.node.clone())) })
    }

    fn connect<'a>(&'a self, _: &'a Target, port: u16) -> Answer<'a, Connection> {
        let (near, far) = tokio::io::duplex(1024);
        if port == WEB {
            tokio::spawn(web(far));
            let (read, write) = tokio::io::split(near);
            return Box::pin(async move { Ok(Connection { read: Box::new(read), write: Box::new(write) }) });
        }
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await
        });
        let (read, write) = tokio::io::split(near);
        Box::pin(async move { Ok(Connection { read: Box::new(read), write: Box::new(write) }) })
    }

    fn ask_node<'a>(&'a self, node: &'a str, _: &'a str) -> Answer<'a, Vec<u8>> {
        Box::pin(async move { Err(StreamError::NodeAway(node.to_owned())) })
    }
}

struct Cluster {
    folder: tempfile::TempDir,
    pki: Arc<Pki>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let pki = Arc::new(Pki::open(&folder.path().join("pki")).unwrap());
        let tokens = Arc::new(Signer::new(pki.service_account_key()).unwrap());
        let service_cidr = "10.43.0.0/16".parse().unwrap();
        let toleration_seconds = sampan::objects::TOLERATION_SECONDS;
        let settings = Settings { service_cidr, tokens, toleration_seconds };
        let objects = Objects::of_cluster(store, Arc::new(SystemClock), settings);
        objects.bootstrap("192.0.2.1:6443".parse().unwrap()).await.unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_san: Vec::new(),
            service_cidr,
            cluster_domain: "cluster.local".to_owned(),
        };
        let server = Server::bind(config, objects, Arc::clone(&pki)).await.unwrap();
        let server = server.with_streams(Arc::new(Echo));
        let address = server.local_addr();
        pki.write_kubeconfig(&folder.path().join("admin.conf"), &format!("https://{address}")).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self { folder, pki, address, stop }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("admin.conf")
    }

    /// Runs kubectl with words split at blanks; `input` goes to its standard input.
    async fn kubectl(&self, words: &str, input: &str) -> Output {
        self.kubectl_with(words, input, &[]).await
    }

    async fn kubectl_with(&self, words: &str, input: &str, env: &[(&str, &str)]) -> Output {
        use std::io::Write as _;
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.config())
            .arg("--cache-dir")
            .arg(self.folder.path().join("cache"))
            .args(words.split_whitespace())
            .envs(env.iter().copied())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    /// kubectl's output; it must succeed.
    async fn ok(&self, words: &str, input: &str) -> String {
        let output = self.kubectl(words, input).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "kubectl {words}: {}{text}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// kubectl's error; it must fail.
    async fn refused(&self, words: &str, input: &str) -> String {
        let output = self.kubectl(words, input).await;
        assert!(!output.status.success(), "kubectl {words} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn have_kubectl() -> bool {
    let found =
        Command::new("kubectl").args(["version", "--client"]).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: there is no kubectl here");
    }
    found
}

const CONFIG_MAP: &str =
    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: one}}\ndata: {k: v}\n";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_creates_reads_and_deletes() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    assert!(cluster.ok("version", "").await.contains("Server Version: v1.36"));
    assert!(cluster.ok("api-resources", "").await.contains("deployments"));
    assert!(cluster.ok("create --validate=false -f -", CONFIG_MAP).await.contains("configmap/a created"));
    let again = cluster.refused("create --validate=false -f -", CONFIG_MAP).await;
    assert!(again.contains("AlreadyExists") && again.contains("configmaps \"a\" already exists"), "{again}");
    assert!(cluster.ok("get cm a -o jsonpath={.data.k}", "").await.contains('v'));
    assert!(cluster.ok("get cm -l x=one", "").await.contains("a "));
    assert!(cluster.ok("get cm -l x=z -o name", "").await.is_empty());
    assert!(cluster.ok("get cm --field-selector metadata.name=a -o name", "").await.contains("configmap/a"));
    assert!(cluster.ok("get --raw /readyz?verbose", "").await.contains("readyz check passed"));
    assert!(cluster.ok("delete cm a", "").await.contains("deleted"));
    assert!(cluster.refused("get cm a", "").await.contains("NotFound"));
    assert!(cluster.address.port() > 0);
}

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: demo}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_changes_what_there_is() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.ok("create --validate=false -f -", DEPLOYMENT).await;
    let json = |words: &str| {
        let words = format!("get deploy web -o jsonpath={words}");
        let cluster = &cluster;
        async move { cluster.ok(&words, "").await }
    };
    cluster.ok("scale deploy web --replicas=3", "").await;
    assert_eq!(json("{.spec.replicas}").await, "3");
    cluster.ok("set image deploy/web c=demo:2", "").await;
    assert_eq!(json("{.spec.template.spec.containers[0].image}").await, "demo:2");
    assert_eq!(json("{.metadata.generation}").await, "3");
    cluster.ok("label deploy web tier=front", "").await;
    assert_eq!(json("{.metadata.labels.tier}").await, "front");
    let replace = r#"--type=json -p=[{"op":"replace","path":"/spec/replicas","value":4}]"#;
    cluster.ok(&format!("patch deploy web {replace}"), "").await;
    assert_eq!(json("{.spec.replicas}").await, "4");
    let bad = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad"},"dat":{}}"#;
    let path = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";
    let strict = cluster.refused(&format!("create --raw {path} -f -"), bad).await;
    assert!(strict.contains("unknown field"), "{strict}");
    assert!(cluster.ok("create cm b --from-literal=k=v", "").await.contains("created"), "a protobuf body");
    assert!(cluster.ok("get svc kubernetes -o jsonpath={.spec.clusterIP}", "").await.contains("10.43.0.1"));
    cluster.ok("create service clusterip s --tcp=80:80", "").await;
    assert!(cluster.ok("get svc s -o jsonpath={.spec.clusterIP}", "").await.starts_with("10.43."));
    assert!(cluster.refused("create cm -n nowhere c", "").await.contains("namespaces \"nowhere\" not found"));
    assert!(cluster.refused("delete ns default", "").await.contains("this namespace may not be deleted"));
    cluster.ok("create sa robot", "").await;
    assert_eq!(cluster.ok("create token robot", "").await.trim().split('.').count(), 3);
    assert!(cluster.ok("delete deploy web --cascade=background", "").await.contains("deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_does() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    assert!(cluster.ok("create --validate=false -f -", CONFIG_MAP).await.contains("created"));
    assert!(
        cluster
            .ok("apply --validate=false --server-side --force-conflicts -f -", CONFIG_MAP)
            .await
            .contains("applied")
    );
    let other = CONFIG_MAP.replace("k: v", "k: other");
    let conflict =
        cluster.refused("apply --validate=false --server-side --field-manager=other -f -", &other).await;
    assert!(conflict.contains("conflict"), "{conflict}");
    assert!(cluster.ok("auth can-i create pods", "").await.contains("yes"));
    assert!(cluster.ok("auth whoami", "").await.contains("kubernetes-admin"));
    let robot = "--as=system:serviceaccount:default:robot";
    assert!(cluster.refused(&format!("get cm a {robot}"), "").await.contains("cannot get resource"));
    cluster.ok("create role reader --verb=get,list --resource=configmaps", "").await;
    cluster.ok("create rolebinding reader --role=reader --serviceaccount=default:robot", "").await;
    assert!(cluster.ok(&format!("get cm a -o name {robot}"), "").await.contains("configmap/a"));
    assert!(cluster.refused(&format!("delete cm a {robot}"), "").await.contains("cannot delete resource"));
    cluster.ok("create role grantor --verb=create --resource=roles", "").await;
    cluster.ok("create rolebinding grantor --role=grantor --serviceaccount=default:robot", "").await;
    let granted = cluster.refused(&format!("create role all --verb=* --resource=secrets {robot}"), "").await;
    assert!(granted.contains("is attempting to grant RBAC permissions not currently held"), "{granted}");
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {nodeName: worker, serviceAccountName: sa, containers: [{name: c, image: demo}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_streams() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.ok("create sa sa", "").await;
    cluster.ok("create --validate=false -f -", POD).await;
    let running = r#"--subresource=status --type=merge -p={"status":{"phase":"Running"}}"#;
    cluster.ok(&format!("patch pod p {running}"), "").await;
    assert_eq!(cluster.ok("logs p --tail=3", "").await, "c of p on worker: Some(3)\n");
    assert_eq!(cluster.ok("exec -i p -- 0", "hello").await, "hello");
    let failed = cluster.kubectl("exec p -- 3", "").await;
    assert_eq!(failed.status.code(), Some(3), "{}", String::from_utf8_lossy(&failed.stderr));
    let away = POD.replace("name: p}", "name: away}").replace("worker", "lost");
    cluster.ok("create --validate=false -f -", &away).await;
    cluster.ok(&format!("patch pod away {running}"), "").await;
    let away = cluster.refused("attach away", "").await;
    assert!(away.contains("not connected"), "{away}");
    assert!(cluster.refused("logs p -c nope", "").await.contains("container nope is not valid for pod p"));
    forwards(&cluster, "true").await;
    // The ways of clients before there were WebSockets.
    let old = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")];
    let echoed = cluster.kubectl_with("exec -i p -- 0", "hello", &old).await;
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "hello");
    let failed = cluster.kubectl_with("exec p -- 3", "", &old).await;
    assert_eq!(failed.status.code(), Some(3), "{}", String::from_utf8_lossy(&failed.stderr));
    forwards(&cluster, "false").await;
    let proxy = "/api/v1/namespaces/default/pods/p:80/proxy";
    let page = cluster.ok(&format!("get --raw {proxy}/a%20b?c=d"), "").await;
    assert!(page.starts_with(&format!("<a href=\"{proxy}/next\">get /a%20b?c=d http/1.1|")), "{page}");
    assert!(!page.contains("authorization"), "{page}");
    let lost = "/api/v1/namespaces/default/services/kubernetes:nope/proxy/";
    let lost = cluster.refused(&format!("get --raw {lost}"), "").await;
    assert!(lost.contains("no endpoints available for service"), "{lost}");
}

/// Bytes sent to a forwarded port come back.
async fn forwards(cluster: &Cluster, websockets: &str) {
    let mut child = tokio::process::Command::new("kubectl")
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .arg("--kubeconfig")
        .arg(cluster.config())
        .args(["port-forward", "pod/p", ":8080"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let line = lines.next_line().await.unwrap().unwrap();
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let mut far = tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
    let mut answer = [0; 5];
    tokio::io::AsyncWriteExt::write_all(&mut far, b"hello").await.unwrap();
    tokio::io::AsyncReadExt::read_exact(&mut far, &mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

/// Who asks over a bare connection: a certificate and its key (PEM), a bearer token, or neither.
#[derive(Default)]
struct Asker {
    credential: Option<(String, String)>,
    token: Option<String>,
}

impl Asker {
    fn certificate(credential: sampan::api::pki::Credential) -> Self {
        Self { credential: Some((credential.certificate, credential.key)), token: None }
    }

    fn token(token: &str) -> Self {
        Self { credential: None, token: Some(token.trim().to_owned()) }
    }
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

impl Cluster {
    async fn connect(&self, asker: &Asker) -> Tls {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.pki.ca_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match &asker.credential {
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The status code and body of one request, sent as plain bytes.
    async fn raw(&self, asker: &Asker, method: &str, path: &str, extra: &str, body: &[u8]) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut io = self.connect(asker).await;
        let token =
            asker.token.as_ref().map(|t| format!("authorization: Bearer {t}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}{extra}content-length: {}\r\n\r\n",
            body.len()
        );
        // A server that refuses early reads no further.
        let _ = io.write_all(head.as_bytes()).await;
        let _ = io.write_all(body).await;
        let mut answer = Vec::new();
        let _ = io.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.split(' ').nth(1).and_then(|c| c.parse().ok()).unwrap_or(0), text)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_who_they_say_is_refused() {
    use rcgen::{CertificateParams, DnType, KeyPair};
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let other = tempfile::tempdir().unwrap();
    let other = Pki::open(other.path()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "jane");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let request = sampan::kinds::certificate_request::CertificateRequest::parse(request.as_bytes()).unwrap();
    let long_ago = "2026-10-01T00:00:00Z".parse().unwrap();
    let expired = cluster.pki.sign_request(&request, &["client auth"], Some(600), long_ago).unwrap();
    let expired = Asker { credential: Some((expired, key.serialize_pem())), token: None };
    let masters = |pki: &Pki| Asker::certificate(pki.issue_client("jane", "system:masters").unwrap());
    let nodes = "/api/v1/nodes";
    for (who, asker, code) in [
        ("the right one", masters(&cluster.pki), 200),
        ("nobody", Asker::default(), 403),
        ("another authority's", masters(&other), 401),
        ("an expired one", expired, 401),
        ("a made up token", Asker::token("a.b.c"), 401),
        ("no administrator", Asker::certificate(cluster.pki.issue_client("joe", "staff").unwrap()), 403),
    ] {
        let (got, text) = cluster.raw(&asker, "GET", nodes, "", b"").await;
        assert_eq!(got, code, "{who}: {text}");
        assert!(text.contains("\"kind\":\"Status\"") || code == 200, "{who}: {text}");
    }

    for name in ["here", "there"] {
        cluster.ok(&format!("create ns {name}"), "").await;
        cluster.ok(&format!("create sa robot -n {name}"), "").await;
        cluster.ok(&format!("create secret generic key -n {name} --from-literal=k=v"), "").await;
    }
    cluster.ok("create role reader -n here --verb=get --resource=secrets", "").await;
    cluster.ok("create rolebinding reader -n here --role=reader --serviceaccount=here:robot", "").await;
    let robot = Asker::token(&cluster.ok("create token robot -n here", "").await);
    for (namespace, code) in [("here", 200), ("there", 403)] {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/key");
        assert_eq!(cluster.raw(&robot, "GET", &path, "", b"").await.0, code, "{namespace}");
    }
    cluster.ok("delete sa robot -n here", "").await;
    assert_eq!(cluster.raw(&robot, "GET", "/api/v1/namespaces/here/secrets/key", "", b"").await.0, 401);

    for (pod, node) in [("mine", "a"), ("yours", "b")] {
        let secret = "volumes: [{name: v, secret: {secretName: key}}]";
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: there}}\nspec: {{nodeName: {node}, serviceAccountName: robot, \
             containers: [{{name: c, image: demo}}], {}}}\n",
            if node == "b" { secret } else { "volumes: []" }
        );
        cluster.ok("create --validate=false -f -", &manifest).await;
    }
    let node = |name: &str| {
        Asker::certificate(cluster.pki.issue_client(&format!("system:node:{name}"), "system:nodes").unwrap())
    };
    let secret = "/api/v1/namespaces/there/secrets/key";
    for (name, path, code) in [
        ("a", secret, 403),
        ("b", secret, 200),
        ("a", "/api/v1/namespaces/there/pods/mine", 200),
        ("a", "/api/v1/namespaces/there/pods/yours", 403),
        ("a", "/api/v1/secrets", 403),
    ] {
        assert_eq!(cluster.raw(&node(name), "GET", path, "", b"").await.0, code, "{name} {path}");
    }
    let patch = br#"{"status":{"phase":"Failed"}}"#;
    let kind = "content-type: application/merge-patch+json\r\n";
    for (pod, code) in [("mine", 200), ("yours", 403)] {
        let path = format!("/api/v1/namespaces/there/pods/{pod}/status");
        assert_eq!(cluster.raw(&node("a"), "PATCH", &path, kind, patch).await.0, code, "{pod}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_clients_do_not_keep_others_out() {
    use tokio::io::AsyncWriteExt as _;
    let cluster = Cluster::start().await;
    let admin = Asker::certificate(cluster.pki.issue_client("jane", "system:masters").unwrap());
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(tokio::net::TcpStream::connect(cluster.address).await.unwrap());
    }
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut io = cluster.connect(&Asker::default()).await;
        io.write_all(b"GET /api HTTP/1.1\r\nhost: loc").await.unwrap();
        slow.push(io);
    }
    let served = cluster.raw(&admin, "GET", "/api/v1/namespaces/default", "", b"");
    let (code, text) = tokio::time::timeout(std::time::Duration::from_secs(10), served).await.unwrap();
    assert_eq!(code, 200, "{text}");
    let long = format!("x-long: {}\r\n", "x".repeat(100 * 1024));
    let (code, _) = cluster.raw(&admin, "GET", "/version", &long, b"").await;
    assert!(matches!(code, 0 | 431), "{code}: a head of 100 KB is refused");
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, text) = cluster.raw(&admin, "POST", maps, "", &vec![b' '; 4 << 20]).await;
    assert!(code == 413 || code == 0, "{code} {text}");
    let deep = format!("{{\"metadata\":{}1{}}}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let bomb = format!(
        "a: &a [x, x, x, x, x, x, x, x]\n{}",
        (0..9).fold(String::new(), |text, n| {
            let (from, to) = ((b'a' + n) as char, (b'b' + n) as char);
            let list = vec![format!("*{from}"); 8].join(", ");
            format!("{text}{to}: &{to} [{list}]\n")
        })
    );
    for (what, body, kind) in [
        ("deep nesting", deep.as_str(), "application/json"),
        ("an anchor bomb", bomb.as_str(), "application/yaml"),
        ("a huge number", "{\"metadata\":{\"generation\":1e999}}", "application/json"),
        ("no object", "\u{0}", "application/vnd.kubernetes.protobuf"),
    ] {
        let kind = format!("content-type: {kind}\r\n");
        let (code, text) = cluster.raw(&admin, "POST", maps, &kind, body.as_bytes()).await;
        assert_eq!(code, 400, "{what}: {text}");
        assert!(text.contains("\"reason\":\"BadRequest\""), "{what}: {text}");
    }
    drop((held, slow));
}
