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
    objects: Objects,
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
        let node_ports = sampan::objects::NODE_PORTS;
        let settings = Settings { service_cidr, node_ports, tokens, toleration_seconds };
        let objects = Objects::of_cluster(store, Arc::new(SystemClock), settings);
        objects.bootstrap("192.0.2.1:6443".parse().unwrap()).await.unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_san: Vec::new(),
            service_cidr,
            cluster_domain: "cluster.local".to_owned(),
        };
        let server = Server::bind(config, objects.clone(), Arc::clone(&pki)).await.unwrap();
        let server = server.with_streams(Arc::new(Echo));
        let address = server.local_addr();
        pki.write_kubeconfig(&folder.path().join("admin.conf"), &format!("https://{address}")).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self { folder, objects, pki, address, stop }
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
        // What TLS holds back when the socket is full goes out by nothing else.
        let _ = io.flush().await;
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

    cluster.ok("create secret generic volume-key -n there --from-literal=a=b", "").await;
    cluster.ok("create --validate=false -f -", MOUNTED).await;
    for (pod, node) in [("mine", "a"), ("yours", "b")] {
        let secret = "volumes: [{name: v, secret: {secretName: key}}]";
        let claim = "volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]";
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: there}}\nspec: {{nodeName: {node}, serviceAccountName: robot, \
             containers: [{{name: c, image: demo}}], {}}}\n",
            if node == "b" { secret } else { claim }
        );
        cluster.ok("create --validate=false -f -", &manifest).await;
    }
    let node = |name: &str| {
        Asker::certificate(cluster.pki.issue_client(&format!("system:node:{name}"), "system:nodes").unwrap())
    };
    let secret = "/api/v1/namespaces/there/secrets/key";
    let (secrets, one) = ("/api/v1/namespaces/there/secrets", "fieldSelector=metadata.name%3Dkey");
    let unrelated = "no relationship found between node 'a' and this object";
    let all_pods = "can only list/watch pods with spec.nodeName field selector";
    for (name, path, code, why) in [
        ("a", secret, 403, unrelated),
        ("b", secret, 200, ""),
        ("a", &format!("{secrets}?{one}"), 403, unrelated),
        ("b", &format!("{secrets}?{one}"), 200, ""),
        ("b", &format!("{secrets}?{one}&watch=1&timeoutSeconds=1"), 200, ""),
        ("b", secrets, 403, "No Object name found"),
        ("b", "/api/v1/namespaces/there/serviceaccounts/robot", 200, ""),
        ("b", "/api/v1/namespaces/there/serviceaccounts", 403, ""),
        ("a", "/api/v1/namespaces/there/pods/mine", 200, ""),
        ("a", "/api/v1/namespaces/there/pods/yours", 403, unrelated),
        ("a", "/api/v1/namespaces/there/persistentvolumeclaims/data", 200, ""),
        ("b", "/api/v1/namespaces/there/persistentvolumeclaims/data", 403, ""),
        ("a", "/api/v1/persistentvolumes/disk", 200, ""),
        ("b", "/api/v1/persistentvolumes/disk", 403, ""),
        ("a", "/api/v1/namespaces/there/secrets/volume-key", 200, ""),
        ("b", "/api/v1/namespaces/there/secrets/volume-key", 403, ""),
        ("a", "/api/v1/namespaces/there/secrets/controller-key", 403, unrelated),
        ("a", "/apis/storage.k8s.io/v1/volumeattachments/att", 200, ""),
        ("b", "/apis/storage.k8s.io/v1/volumeattachments/att", 403, ""),
        ("a", "/api/v1/pods", 403, all_pods),
        ("a", "/api/v1/pods?fieldSelector=spec.nodeName%3Db", 403, all_pods),
        ("a", "/api/v1/pods?fieldSelector=spec.nodeName%3Da", 200, ""),
        ("a", "/api/v1/secrets", 403, "can only read namespaced object of this type"),
        ("a", "/api/v1/nodes", 403, "node 'a' cannot read all nodes, only its own Node object"),
        ("a", "/api/v1/services", 200, ""),
        (
            "a",
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/b",
            403,
            "can only access node lease",
        ),
        (
            "a",
            "/apis/coordination.k8s.io/v1/namespaces/default/leases/a",
            403,
            "can only access leases in the",
        ),
        ("a", "/apis/apps/v1/deployments", 403, ""),
    ] {
        let (got, text) = cluster.raw(&node(name), "GET", path, "", b"").await;
        assert_eq!(got, code, "{name} {path}: {text}");
        assert!(text.contains(why), "{name} {path}: {text}");
    }
    let mine = cluster.ok("get pod mine -n there -o jsonpath={.metadata.uid}", "").await;
    let yours = cluster.ok("get pod yours -n there -o jsonpath={.metadata.uid}", "").await;
    let tokens = "/api/v1/namespaces/there/serviceaccounts/robot/token";
    let bound = |pod: &str, uid: &str| {
        format!(r#""boundObjectRef":{{"apiVersion":"v1","kind":"Pod","name":"{pod}","uid":"{uid}"}},"#)
    };
    for (reference, audiences, code, why) in [
        (bound("mine", &mine), "[]", 201, ""),
        (bound("mine", &mine), "[\"disk\"]", 201, ""),
        (
            bound("mine", &mine),
            "[\"vault\"]",
            403,
            "not found in pod spec volume, system:node:a is not authorized",
        ),
        (bound("mine", &mine), "[\"a\", \"b\"]", 403, "node may only request 0 or 1 audiences"),
        (bound("mine", ""), "[]", 403, "node requested token with a pod binding without a uid"),
        (bound("mine", &yours), "[]", 403, "does not match the UID in record"),
        (
            bound("yours", &yours),
            "[]",
            403,
            "node requested token bound to a pod scheduled on a different node",
        ),
        (String::new(), "[]", 403, "node requested token not bound to a pod"),
    ] {
        let body = format!(
            r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{{{reference}"audiences":{audiences}}}}}"#
        );
        let (got, text) = cluster
            .raw(&node("a"), "POST", tokens, "content-type: application/json\r\n", body.as_bytes())
            .await;
        assert_eq!(got, code, "{body}: {text}");
        assert!(text.contains(why), "{body}: {text}");
    }
    // What holds for one's own pods is also told by a review.
    let review = "auth can-i get secrets/key -n there --as=system:node:a --as-group=system:nodes";
    assert!(cluster.refused(review, "").await.is_empty());
    let patch = br#"{"status":{"phase":"Failed"}}"#;
    let kind = "content-type: application/merge-patch+json\r\n";
    for (path, code) in [
        ("/api/v1/namespaces/there/secrets/key", 403),
        ("/api/v1/namespaces/there/pods/mine", 403),
        ("/api/v1/nodes/b/status", 404),
    ] {
        assert_eq!(cluster.raw(&node("b"), "PATCH", path, kind, patch).await.0, code, "{path}");
    }
    for (pod, code) in [("mine", 200), ("yours", 403)] {
        let path = format!("/api/v1/namespaces/there/pods/{pod}/status");
        assert_eq!(cluster.raw(&node("a"), "PATCH", &path, kind, patch).await.0, code, "{pod}");
    }
}

/// A volume that needs Secrets, of which a node reads only what it mounts with.
const MOUNTED: &str = "apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  claimRef: {namespace: there, name: data}
  csi:
    driver: d.io
    volumeHandle: h
    nodePublishSecretRef: {namespace: there, name: volume-key}
    controllerPublishSecretRef: {namespace: there, name: controller-key}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: there}
spec:
  accessModes: [ReadWriteOnce]
  volumeName: disk
  storageClassName: ''
  resources: {requests: {storage: 1Gi}}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: att}
spec: {attacher: d.io, nodeName: a, source: {persistentVolumeName: disk}}
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: d.io}
spec: {tokenRequests: [{audience: disk}]}
";

const JOB: &str = "apiVersion: batch/v1
kind: Job
metadata: {generateName: once-}
spec:
  suspend: true
  template: {spec: {restartPolicy: Never, containers: [{name: c, image: demo}]}}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_words_are_upstreams() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let admin = Asker::certificate(cluster.pki.issue_client("jane", "system:masters").unwrap());
    let json = "content-type: application/json\r\n";
    let apply = "content-type: application/apply-patch+yaml\r\n";
    let merge = "content-type: application/merge-patch+json\r\n";
    cluster.ok("create ns n", "").await;
    let maps = "/api/v1/namespaces/n/configmaps";
    for (method, path, kind, body, code, words) in [
        // A path that belongs to nobody is answered by a text, another by a Status.
        ("GET", "/foo", "", "", 404, "\r\n\r\n404 page not found\n"),
        ("GET", "/apis/nope/v1/things", "", "", 404, "\r\n\r\n404 page not found\n"),
        ("GET", "/api/v1/things", "", "", 404, "the server could not find the requested resource"),
        ("POST", "/version", "", "", 405, "the server does not allow this method"),
        ("POST", "/openapi/v3/apis/apps/v1", "", "", 405, "the server does not allow this method"),
        ("POST", "/openapi/v3/apis/nope/v1", "", "", 404, "404 page not found"),
        ("POST", "/healthz", "", "", 405, "the server does not allow this method"),
        ("GET", "/openapi/v3/apis/apps", "", "", 200, "getAppsAPIGroup"),
        ("GET", "/openapi/v3/version", "", "", 200, "getCodeVersion"),
        ("GET", "/healthz/etcd", "", "", 200, "\r\n\r\nok"),
        ("GET", "/readyz/shutdown", "", "", 200, "\r\n\r\nok"),
        ("GET", "/livez/shutdown", "", "", 404, "404 page not found"),
        (
            "GET",
            "/readyz?verbose&exclude=log",
            "",
            "",
            200,
            "[+]log excluded: ok\n[+]etcd ok\n[+]shutdown ok\nreadyz check passed\n",
        ),
        (
            "GET",
            "/api/v1/pods",
            "accept: text/html\r\n",
            "",
            406,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ),
        (
            "POST",
            maps,
            "content-type: text/plain\r\n",
            "{}",
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
        ),
        (
            "PATCH",
            &format!("{maps}/a"),
            "content-type: text/plain\r\n",
            "{}",
            415,
            "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json",
        ),
        (
            "GET",
            "/apis/metrics.k8s.io/v1beta1/pods",
            "accept: application/json;as=Table;v=v1;g=meta.k8s.io\r\n",
            "",
            200,
            r#""kind":"Table""#,
        ),
        ("PUT", maps, json, "{}", 405, "the server does not allow this method"),
        ("OPTIONS", "/api/v1/pods", "", "", 405, "the server does not allow this method"),
        (
            "PATCH",
            &format!("{maps}/a?fieldManager=m"),
            apply,
            "{apiVersion: v1, kind: ConfigMap, foo: 1, data: {a: 1}}",
            500,
            "failed to create typed patch object (/; /v1, Kind=ConfigMap): errors:\\n  .data.a: expected string, got &value.valueUnstructured{Value:1}\\n  .foo: field not declared in schema",
        ),
        (
            "PATCH",
            &format!("{maps}/a?fieldManager=m"),
            apply,
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: a, uid: u}}",
            409,
            "uid mismatch: the provided object specified uid u, and no existing object was found",
        ),
        (
            "PATCH",
            &format!("{maps}/a?force=true"),
            merge,
            "{}",
            422,
            "force: Forbidden: may not be specified for non-apply patch",
        ),
        (
            "DELETE",
            &format!("{maps}/a"),
            json,
            r#"{"dryRun":["Some"]}"#,
            422,
            r#"dryRun: Unsupported value: [\"Some\"]"#,
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json,
            r#"{"spec":{}}"#,
            422,
            "at least one of user or group must be specified",
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            json,
            r#"{"spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}"#,
            201,
            r#""allowed":true"#,
        ),
    ] {
        let (got, text) = cluster.raw(&admin, method, path, kind, body.as_bytes()).await;
        assert_eq!(got, code, "{method} {path}: {text}");
        assert!(text.contains(words), "{method} {path}: {text}");
    }
    // Documents with their hash in their address are for good, everything else is for nobody to keep.
    let (_, text) = cluster.raw(&admin, "GET", maps, "audit-id: mine\r\n", b"").await;
    assert!(
        text.contains("cache-control: no-cache, private\r\n") && text.contains("audit-id: mine\r\n"),
        "{text}"
    );
    let apps = "/openapi/v3/apis/apps/v1?hash=";
    let (code, text) = cluster.raw(&admin, "GET", &format!("{apps}OLD"), "", b"").await;
    let place =
        text.split("location: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap_or_default();
    assert!(code == 301 && place.starts_with(apps), "{text}");
    let (code, text) = cluster.raw(&admin, "GET", place, "", b"").await;
    assert!(code == 200 && text.contains("cache-control: public, immutable\r\n"), "{}", &text[..400]);

    let (code, text) = cluster.raw(&admin, "POST", maps, json, &vec![b' '; 4 << 20]).await;
    assert_eq!(code, 413, "a body that is too large is read, so that its sender hears why: {text}");

    // A generated name stands before what is derived from it.
    assert!(cluster.ok("create --validate=false -f -", JOB).await.contains("job.batch/once-"));

    // Nobody owns what admission and allocation have added.
    cluster.ok("create sa default", "").await;
    cluster.ok("create service clusterip s --tcp=80:80", "").await;
    let owned = cluster.ok("get svc s -o jsonpath={.metadata.managedFields[0].fieldsV1}", "").await;
    assert!(owned.contains("f:ports") && !owned.contains("f:clusterIP"), "{owned}");

    // A Scale is applied as any object, and shown as a Table.
    cluster.ok("create --validate=false -f -", DEPLOYMENT).await;
    let scale = "/apis/apps/v1/namespaces/default/deployments/web/scale?fieldManager=m";
    let body = "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: web}, spec: {replicas: 2}}";
    let (code, text) = cluster.raw(&admin, "PATCH", scale, apply, body.as_bytes()).await;
    assert!(
        code == 409 && text.contains("conflict with \\\"kubectl-create\\\" using apps/v1: .spec.replicas"),
        "{text}"
    );
    let (code, text) =
        cluster.raw(&admin, "PATCH", &format!("{scale}&force=true"), apply, body.as_bytes()).await;
    assert!(code == 200 && text.contains(r#""spec":{"replicas":2}"#), "{text}");
    let shown = cluster.ok("get deploy web --subresource=scale", "").await;
    assert!(shown.contains("DESIRED") && shown.contains("AVAILABLE"), "{shown}");

    // A namespace on its way out says so in a way that clients can read.
    let finalizer = r#"{"metadata":{"finalizers":["example.com/f"]}}"#;
    cluster.ok(&format!("patch ns n --type=merge -p={finalizer}"), "").await;
    cluster.ok("delete ns n --wait=false", "").await;
    let (code, text) = cluster.raw(&admin, "POST", maps, json, br#"{"metadata":{"name":"late"}}"#).await;
    assert!(code == 403 && text.contains(r#""reason":"NamespaceTerminating""#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_cluster_has_comes_back() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let healthy = cluster.ok("get cs --no-headers", "").await;
    let healthy: Vec<_> = healthy.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(
        healthy,
        ["controller-manager", "etcd-0", "scheduler"].map(|name| vec![name, "Healthy", "ok"])
    );
    // What a role or binding has lost comes back with the next start, unless it is to be left alone.
    let without = |field: &str| format!(r#"-p={{"{field}":null}}"#);
    cluster.ok(&format!("patch clusterrole system:discovery {}", without("rules")), "").await;
    cluster.ok(&format!("patch clusterrolebinding system:discovery {}", without("subjects")), "").await;
    cluster.ok("annotate clusterrole system:basic-user rbac.authorization.kubernetes.io/autoupdate=false --overwrite", "").await;
    cluster.ok(&format!("patch clusterrole system:basic-user {}", without("rules")), "").await;
    cluster.objects.bootstrap("192.0.2.1:6443".parse().unwrap()).await.unwrap();
    let told = async |what: &str| cluster.ok(&format!("get {what}"), "").await;
    assert!(
        told("clusterrole system:discovery -o jsonpath={.rules[*].nonResourceURLs}").await.contains("/api")
    );
    let subjects = told("clusterrolebinding system:discovery -o jsonpath={.subjects[*].name}").await;
    assert_eq!(subjects.trim(), "system:authenticated");
    assert_eq!(told("clusterrole system:basic-user -o jsonpath={.rules}").await.trim(), "");
    cluster.ok("delete svc kubernetes", "").await;
    cluster.ok("delete endpoints kubernetes", "").await;
    cluster.ok("delete endpointslices kubernetes", "").await;
    let api = "192.0.2.1:6443".parse().unwrap();
    let dns = Some("10.43.0.10".parse().unwrap());
    cluster.objects.restore(api, dns).await.unwrap();
    let written = cluster.objects.store().revision();
    assert!(cluster.ok("get svc kubernetes -o jsonpath={.spec.clusterIP}", "").await.ends_with("10.43.0.1"));
    assert!(cluster.ok("get endpoints kubernetes", "").await.contains("192.0.2.1:6443"));
    assert!(cluster.ok("get svc -n kube-system kube-dns -o name", "").await.contains("kube-dns"));
    cluster.objects.restore(api, dns).await.unwrap();
    assert_eq!(cluster.objects.store().revision(), written, "what is there is not written again");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_websocket_clients_stream() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let admin = Asker::certificate(cluster.pki.issue_client("jane", "system:masters").unwrap());
    cluster.ok("create sa sa", "").await;
    cluster.ok("create --validate=false -f -", POD).await;
    let running = r#"--subresource=status --type=merge -p={"status":{"phase":"Running"}}"#;
    cluster.ok(&format!("patch pod p {running}"), "").await;
    let open = |path: &str, protocol: &str| {
        let mut request =
            format!("wss://localhost/api/v1/namespaces/default/pods/p/{path}").into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let (cluster, admin) = (&cluster, &admin);
        async move { tokio_tungstenite::client_async(request, cluster.connect(admin).await).await.unwrap().0 }
    };
    // Everything of one channel until `enough` bytes of it are there, or the end.
    async fn heard(
        socket: &mut tokio_tungstenite::WebSocketStream<Tls>,
        channel: u8,
        base64: bool,
        enough: usize,
    ) -> Vec<u8> {
        use base64::Engine as _;
        let mut all = Vec::new();
        while all.len() < enough {
            let bytes = match socket.next().await {
                Some(Ok(Message::Binary(bytes))) if !base64 => bytes.to_vec(),
                Some(Ok(Message::Text(text))) if base64 => {
                    let rest = base64::engine::general_purpose::STANDARD.decode(&text[1..]).unwrap();
                    [vec![text.as_bytes()[0] - b'0'], rest].concat()
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(other)) => panic!("{other:?}"),
            };
            if bytes[0] == channel {
                all.extend_from_slice(&bytes[1..]);
            }
        }
        all
    }
    let exec = "exec?command=0&stdin=true&stdout=true";
    for protocol in ["channel.k8s.io", "v4.channel.k8s.io", ""] {
        let mut socket = open(exec, protocol).await;
        // Clients write texts where bytes are meant.
        socket.send(Message::Text("\u{0}hello".into())).await.unwrap();
        assert_eq!(heard(&mut socket, 1, false, 5).await, b"hello", "{protocol}");
    }
    let mut socket = open(exec, "base64.channel.k8s.io").await;
    socket.send(Message::Text("0aGVsbG8=".into())).await.unwrap();
    assert_eq!(heard(&mut socket, 1, true, 5).await, b"hello");
    let failed = heard(&mut open("exec?command=3&stdout=true", "channel.k8s.io").await, 3, false, 1000).await;
    assert_eq!(
        String::from_utf8(failed).unwrap(),
        "command terminated with non-zero exit code: exit status 3"
    );

    let mut socket = open("portforward?ports=8080,9090", "v4.channel.k8s.io").await;
    socket.send(Message::Binary(b"\x02hello"[..].into())).await.unwrap();
    assert_eq!(heard(&mut socket, 2, false, 7).await, [&9090_u16.to_le_bytes()[..], b"hello"].concat());
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
    let (code, text) = tokio::time::timeout(std::time::Duration::from_mins(1), served).await.unwrap();
    assert_eq!(code, 200, "{text}");
    let long = format!("x-long: {}\r\n", "x".repeat(256 * 1024));
    let (code, _) = cluster.raw(&admin, "GET", "/version", &long, b"").await;
    assert!(matches!(code, 0 | 431), "{code}: a head of 256 KB is refused");
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, text) = cluster.raw(&admin, "POST", maps, "", &vec![b' '; 4 << 20]).await;
    assert_eq!(code, 413, "{text}");
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

#[tokio::test(flavor = "multi_thread")]
async fn lists_watches_and_writes_keep_their_promises() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    let admin = Asker::certificate(cluster.pki.issue_client("jane", "system:masters").unwrap());
    let json = "content-type: application/json\r\n";
    let maps = "/api/v1/namespaces/default/configmaps";
    let get = async |path: &str, extra: &str| cluster.raw(&admin, "GET", path, extra, b"").await;
    let body = |text: &str| text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(&body(text)).unwrap();

    // A dry run says what would be, and leaves nothing.
    let manifest = br#"{"metadata":{"name":"dry"},"data":{"k":"v"}}"#;
    let (code, text) = cluster.raw(&admin, "POST", &format!("{maps}?dryRun=All"), json, manifest).await;
    assert!(code == 201 && text.contains(r#""k":"v""#), "{text}");
    assert_eq!(get(&format!("{maps}/dry"), "").await.0, 404);
    // Unknown fields are refused, warned of or dropped in silence, as the client wants it.
    let unknown = br#"{"metadata":{"name":"dry"},"foo":1}"#;
    for (how, code, words) in [
        ("Strict", 400, r#"strict decoding error: unknown field \"foo\""#),
        ("Warn", 201, "warning: 299 - \"unknown field \\\"foo\\\"\""),
        ("Ignore", 201, "\r\n\r\n{"),
    ] {
        let path = format!("{maps}?dryRun=All&fieldValidation={how}");
        let (got, text) = cluster.raw(&admin, "POST", &path, json, unknown).await;
        assert!(got == code && text.contains(words), "{how}: {text}");
        assert_eq!(text.contains("warning:"), how == "Warn", "{how}: {text}");
    }

    for name in ["a", "b", "c", "d", "e"] {
        cluster.ok(&format!("create configmap {name} --from-literal=k=v"), "").await;
    }
    let first = read(&get(&format!("{maps}?limit=2"), "").await.1);
    assert_eq!(first["metadata"]["remainingItemCount"], 3, "{first}");
    let page = |token: &str| format!("{maps}?limit=10&continue={token}");
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    let second = read(&get(&page(&token), "").await.1);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // More changes than are remembered: the list as it was is gone, what is left of it can be had.
    let row = sampan::kinds::registry::by_resource("configmaps").unwrap();
    let writer = sampan::objects::WriteOptions::system("test");
    for round in 0..1100 {
        let change = |map: &mut serde_json::Value| {
            map["data"]["k"] = round.to_string().into();
            Ok(())
        };
        cluster.objects.modify(row, None, "default", "a", &writer, change).await.unwrap();
    }
    let (code, text) = get(&page(&token), "").await;
    assert!(code == 410 && text.contains("The provided continue parameter is too old"), "{text}");
    let gone = read(&text);
    assert_eq!(gone["reason"], "Expired");
    let rest = read(&get(&page(gone["metadata"]["continue"].as_str().unwrap()), "").await.1);
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(3), "{rest}");
    let (code, text) = get(&format!("{maps}?watch=1&resourceVersion={revision}&timeoutSeconds=1"), "").await;
    assert!(code == 200 && text.contains("too old resource version") || code == 410, "{text}");

    // A watch can begin with what exists, and says when that is all.
    let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let (_, text) = get(&format!("{maps}?{initial}"), "").await;
    assert_eq!(text.matches(r#""type":"ADDED""#).count(), 5, "{text}");
    assert!(text.contains(r#""k8s.io/initial-events-end":"true""#), "{text}");
    let accept = "accept: application/vnd.kubernetes.protobuf;stream=watch\r\n";
    let (_, text) = get(&format!("{maps}?watch=1&timeoutSeconds=1"), accept).await;
    assert!(text.contains("content-type: application/vnd.kubernetes.protobuf;stream=watch\r\n"), "{text}");
    assert!(text.contains("k8s\0") && text.contains("ADDED"), "{text}");

    // Long answers are compressed for who takes that.
    let big = format!(r#"{{"metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#, "x".repeat(200_000));
    assert_eq!(cluster.raw(&admin, "POST", maps, json, big.as_bytes()).await.0, 201);
    let (_, text) = get(maps, "accept-encoding: gzip\r\n").await;
    assert!(text.contains("content-encoding: gzip\r\n") && text.len() < 100_000, "{}", text.len());

    let issuer = read(&get("/.well-known/openid-configuration", "").await.1);
    assert_eq!(issuer["id_token_signing_alg_values_supported"], serde_json::json!(["ES256"]));
    let keys = read(&get("/openid/v1/jwks", "").await.1);
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["crv"]), (&"EC".into(), &"P-256".into()));
    let metrics = body(&get("/metrics", "").await.1);
    for name in [
        "apiserver_request_total{",
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_current_inflight_requests",
        "apiserver_longrunning_requests",
        "apiserver_storage_objects{",
        "process_start_time_seconds",
        "kubernetes_build_info{",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_what_they_do_not_have_and_namespaces_have_limits() {
    if !have_kubectl() {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.ok("create ns box", "").await;
    cluster.ok("create role builder -n box --verb=create,get --resource=roles,rolebindings", "").await;
    cluster.ok("create rolebinding builder -n box --role=builder --user=joe", "").await;
    let joe = "--as=joe -n box";
    let reader = format!("create role reader {joe} --verb=get --resource=secrets");
    let refused = cluster.refused(&reader, "").await;
    assert!(refused.contains("is attempting to grant RBAC permissions not currently held"), "{refused}");
    cluster.ok("create role escalator -n box --verb=escalate --resource=roles", "").await;
    cluster.ok("create rolebinding escalator -n box --role=escalator --user=joe", "").await;
    cluster.ok(&reader, "").await;
    let bind = format!("create rolebinding reader {joe} --role=reader --user=ann");
    let refused = cluster.refused(&bind, "").await;
    assert!(refused.contains("is attempting to grant RBAC permissions not currently held"), "{refused}");
    cluster.ok("create role binder -n box --verb=bind --resource=roles --resource-name=reader", "").await;
    cluster.ok("create rolebinding binder -n box --role=binder --user=joe", "").await;
    cluster.ok(&bind, "").await;

    cluster.ok("create quota q -n box --hard=configmaps=1,services.nodeports=0", "").await;
    cluster.ok("create configmap a -n box", "").await;
    let refused = cluster.refused("create configmap b -n box", "").await;
    assert!(
        refused.contains(
            "exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1"
        ),
        "{refused}"
    );
    let refused = cluster.refused("create service nodeport s -n box --tcp=80", "").await;
    assert!(refused.contains("exceeded quota: q, requested: services.nodeports=1"), "{refused}");
    let limits = "apiVersion: v1\nkind: LimitRange\nmetadata: {name: l, namespace: box}\nspec: {limits: [{type: Container, \
                  default: {cpu: 200m}, defaultRequest: {cpu: 100m}, max: {cpu: 500m}}]}\n";
    cluster.ok("create -f -", limits).await;
    let pod = |name: &str, resources: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: box}}\nspec: {{serviceAccountName: default, \
             containers: [{{name: c, image: demo, resources: {resources}}}]}}\n"
        )
    };
    cluster.ok("create sa default -n box", "").await;
    cluster.ok("create -f -", &pod("small", "{}")).await;
    let got = cluster.ok("get pod small -n box -o jsonpath={.spec.containers[0].resources}", "").await;
    assert_eq!(got, r#"{"limits":{"cpu":"200m"},"requests":{"cpu":"100m"}}"#);
    // A pod that runs is bound by them as well when it grows.
    cluster.ok("create quota cpu -n box --hard=requests.cpu=250m", "").await;
    let grow = |amount: &str| {
        let own = format!(r#"{{"cpu":"{amount}"}}"#);
        format!(
            r#"patch pod small -n box --subresource=resize -p {{"spec":{{"containers":[{{"name":"c","resources":{{"requests":{own},"limits":{own}}}}}]}}}}"#
        )
    };
    let refused = cluster.refused(&grow("300m"), "").await;
    assert!(
        refused.contains(
            "exceeded quota: cpu, requested: requests.cpu=200m, used: requests.cpu=100m, limited: requests.cpu=250m"
        ),
        "{refused}"
    );
    cluster.ok("delete quota cpu -n box", "").await;
    let refused = cluster.refused(&grow("600m"), "").await;
    assert!(refused.contains("maximum cpu usage per Container is 500m, but limit is 600m"), "{refused}");
    cluster.ok(&grow("300m"), "").await;
    // A GET that becomes a WebSocket is no mere reading.
    cluster.ok("create role watcher -n box --verb=get --resource=pods/exec,pods/log", "").await;
    cluster.ok("create rolebinding watcher -n box --role=watcher --user=ann", "").await;
    let exec = "get --raw /api/v1/namespaces/box/pods/small/exec?command=id&stdout=1 --as=ann";
    let refused = cluster.refused(exec, "").await;
    assert!(refused.contains("(Forbidden): pods \"small\" is forbidden"), "{refused}");
    // Who may change and not create is not helped by a PUT or an apply that would create.
    let lease = r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}"#;
    let put = "replace --raw /apis/coordination.k8s.io/v1/namespaces/box/leases/l -f -";
    cluster
        .ok("create role changer -n box --verb=get,update,patch --resource=leases.coordination.k8s.io", "")
        .await;
    cluster.ok("create rolebinding changer -n box --role=changer --user=ann", "").await;
    let refused = cluster.refused(&format!("{put} --as=ann"), lease).await;
    assert!(refused.contains(r#"leases.coordination.k8s.io "l" is forbidden: "#), "{refused}");
    let refused = cluster.refused("apply --server-side -n box --as=ann -f -", lease).await;
    assert!(refused.contains(r#"leases.coordination.k8s.io "l" is forbidden: "#), "{refused}");
    let made = cluster.ok(put, lease).await;
    assert!(made.contains(r#""uid""#) && made.contains(r#""holderIdentity":"a""#), "{made}");
    let refused = cluster.refused(&format!("{put} --as=ann"), lease).await;
    let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
    assert!(refused.contains(why), "{refused}");
    let made = made.replace(r#""holderIdentity":"a""#, r#""holderIdentity":"b""#);
    let changed = cluster.ok(&format!("{put} --as=ann"), &made).await;
    assert!(changed.contains(r#""holderIdentity":"b""#), "{changed}");
    let absent = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "absent"}}"#;
    let refused =
        cluster.refused("replace --raw /api/v1/namespaces/box/configmaps/absent -f -", absent).await;
    assert!(refused.contains(r#"configmaps "absent" not found"#), "{refused}");
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: here, labels: {topology.kubernetes.io/zone: east}}\n";
    cluster.ok("create -f -", node).await;
    let binding = r#"{"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "small"}, "target": {"kind": "Node", "name": "here"}}"#;
    cluster.ok("create --raw /api/v1/namespaces/box/pods/small/binding -f -", binding).await;
    let zoned = cluster.ok("get pods -n box -l topology.kubernetes.io/zone=east -o name", "").await;
    assert_eq!(zoned.trim(), "pod/small");
    let placed = pod("placed", "{}, env: []").replace("spec: {", "spec: {nodeName: here, ");
    cluster.ok("create -f -", &placed).await;
    let zoned = cluster.ok("get pod placed -n box -o jsonpath={.metadata.labels}", "").await;
    assert_eq!(zoned, r#"{"topology.kubernetes.io/zone":"east"}"#);
    let refused = cluster.refused("create -f -", &pod("large", "{limits: {cpu: 1}}")).await;
    assert!(refused.contains("maximum cpu usage per Container is 500m, but limit is 1"), "{refused}");
}
