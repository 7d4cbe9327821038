//! The Ingress server over real sockets of the loopback, with a backend made here.

#[path = "exchanges/mod.rs"]
mod exchanges;
#[path = "hostile/mod.rs"]
mod hostile;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use sampan::{
    ingress::{Options, Server},
    net::routes::{IngressCertificate, IngressRule, IngressTable},
    tasks::CancellationToken,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_mins(1);
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Answers every request with its own head; echoes after an upgrade.
async fn backend() -> SocketAddrV4 {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    if head.contains("upgrade: echo") {
                        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
                        stream.write_all(switch.as_bytes()).await.unwrap();
                        let (mut from, mut to) = stream.split();
                        let _ = tokio::io::copy(&mut from, &mut to).await;
                        return;
                    }
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                    let mut body = vec![0; length.unwrap_or(0)];
                    stream.read_exact(&mut body).await.unwrap();
                    let reply = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// A head to its empty line, in lower case; `None` at the end of the connection.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap().to_lowercase())
}

/// Sends a request that closes the connection; the whole answer.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
    String::from_utf8(answer).unwrap()
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.66\r\nConnection: close\r\n\r\n")
}

struct World {
    server: Arc<Server>,
    table: IngressTable,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    certificate: CertificateDer<'static>,
}

async fn world() -> World {
    let live = backend().await;
    // A port that nobody listens on: bound, and let go.
    let dead = TcpListener::bind(LOCAL).await.unwrap().local_addr().unwrap();
    let SocketAddr::V4(dead) = dead else { unreachable!() };
    let rule = |host: &str, path: &str, endpoints: &[SocketAddrV4]| IngressRule {
        host: host.into(),
        path: path.into(),
        endpoints: endpoints.to_vec(),
        ..IngressRule::default()
    };
    let mut secure = rule("secure.test", "/", &[live]);
    secure.options.redirect_to_tls = true;
    let mut small = rule("web.test", "/small", &[live]);
    small.options.body_bytes_max = Some(4);
    let mut closed = rule("web.test", "/closed", &[live]);
    closed.options.source_ranges = vec!["192.0.2.0/24".into()];
    let made = rcgen::generate_simple_self_signed(["secure.test".to_owned()]).unwrap();
    let table = IngressTable {
        rules: vec![
            rule("web.test", "/", &[dead, live]),
            rule("web.test", "/none", &[]),
            small,
            closed,
            secure,
        ],
        certificates: vec![IngressCertificate {
            secret: "test/secure".into(),
            hosts: vec!["secure.test".into()],
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }],
    };
    let server = Arc::new(Server::bind(LOCAL, LOCAL, Options::default()).await.unwrap());
    server.set_table(Arc::new(table.clone()));
    let stop = CancellationToken::new();
    let (run, token) = (Arc::clone(&server), stop.clone());
    let running = tokio::spawn(async move { run.run(token).await });
    World { server, table, stop, running, certificate: made.cert.der().clone() }
}

impl World {
    /// Serves a rule before all others.
    fn add(&self, rule: IngressRule) {
        let mut table = self.table.clone();
        table.rules.insert(0, rule);
        self.server.set_table(Arc::new(table));
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.server.addresses().0).await.unwrap()
    }

    async fn get(&self, host: &str, path: &str) -> String {
        ask(self.plain().await, &get(host, path)).await
    }

    fn connector(&self, alpn: &str) -> TlsConnector {
        connector(std::slice::from_ref(&self.certificate), alpn)
    }
}

/// Of a client that believes these certificates.
fn connector(certificates: &[CertificateDer<'static>], alpn: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn requests_reach_their_backends() {
    let world = world().await;
    // Twice: whichever endpoint is first, the dead one is passed over.
    for _ in 0..2 {
        let answer = world.get("web.test", "/a?b=c").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for line in [
            "get /a?b=c http/1.1",
            "host: web.test",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http\r",
        ] {
            assert!(answer.contains(line), "{line} is not in {answer}");
        }
    }
    for (host, path, status) in [
        ("other.test", "/", "404"),
        ("web.test", "/none", "503"),
        ("web.test", "/closed", "403"),
        ("web.test", "/x/../closed", "400"),
    ] {
        let answer = world.get(host, path).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}{path}: {answer}");
    }
    for (head, body, status) in [
        ("Content-Length: 4", "abcd", "200"),
        ("Content-Length: 5", "abcde", "413"),
        ("Transfer-Encoding: chunked", "5\r\nabcde\r\n0\r\n\r\n", "413"),
    ] {
        let request =
            format!("POST /small HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{head}\r\n\r\n{body}");
        let answer = ask(world.plain().await, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
    }
    let answer = world.get("secure.test", "/x?y").await;
    let location = format!("location: https://secure.test:{}/x?y", world.server.addresses().1.port());
    assert!(answer.starts_with("HTTP/1.1 308") && answer.contains(&location), "{answer}");
}

#[tokio::test]
async fn tls_is_by_name_and_http2_works() {
    let world = world().await;
    let name = ServerName::try_from("secure.test").unwrap();
    let open = async |alpn| {
        let stream = TcpStream::connect(world.server.addresses().1).await.unwrap();
        world.connector(alpn).connect(name.clone(), stream).await
    };
    let answer = ask(open("http/1.1").await.unwrap(), &get("secure.test", "/")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-forwarded-proto: https"), "{answer}");

    let io = hyper_util::rt::TokioIo::new(open("h2").await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
        Ok::<_, Infallible>(())
    });
    let request =
        hyper::Request::get("https://secure.test/two").body(http_body_util::Empty::<bytes::Bytes>::new());
    let response = timeout(PATIENCE, sender.send_request(request.unwrap())).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("host: secure.test"));

    // A table without the certificate: new connections see the default one.
    world.server.set_table(Arc::default());
    assert!(open("http/1.1").await.is_err());
}

/// Asks on a connection that stays: the status line, when the whole answer has come.
async fn ask_again(stream: &mut TcpStream, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.test\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let head = read_head(stream).await?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())?;
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    head.lines().next().map(str::to_owned)
}

/// Connections that stay, new ones over TLS, and many streams of one HTTP/2 connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_rules_and_certificates_change() {
    const STREAMS: usize = 16;
    const CHANGES: usize = 40;
    const ANSWERS_A_CHANGE: usize = 25;
    let world = world().await;
    let other = backend().await;
    let made = rcgen::generate_simple_self_signed(["secure.test".to_owned()]).unwrap();
    let known = [world.certificate.clone(), made.cert.der().clone()];
    let mut changed = world.table.clone();
    changed.certificates[0].certificate = made.cert.pem();
    changed.certificates[0].key = made.signing_key.serialize_pem();
    for rule in &mut changed.rules {
        rule.endpoints = vec![other];
    }
    let tables = [Arc::new(world.table.clone()), Arc::new(changed)];
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let (http, https) = world.server.addresses();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..3 {
        let (answered, stop) = (Arc::clone(&answered), stop.clone());
        clients.spawn(async move {
            let mut stream = TcpStream::connect(http).await.unwrap();
            while !stop.is_cancelled() {
                let said = ask_again(&mut stream, &format!("/kept/{number}")).await;
                assert_eq!(said.as_deref(), Some("http/1.1 200 ok"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let name = ServerName::try_from("secure.test").unwrap();
    for _ in 0..2 {
        let (answered, stop, name) = (Arc::clone(&answered), stop.clone(), name.clone());
        let connector = connector(&known, "http/1.1");
        clients.spawn(async move {
            while !stop.is_cancelled() {
                let stream = TcpStream::connect(https).await.unwrap();
                let stream = connector.connect(name.clone(), stream).await.expect("a certificate it knows");
                let said = ask(stream, &get("secure.test", "/new")).await;
                assert!(said.starts_with("HTTP/1.1 200"), "{said}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let stream = TcpStream::connect(https).await.unwrap();
    let stream = connector(&known, "h2").connect(name, stream).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..STREAMS {
        let (answered, stop, mut sender) = (Arc::clone(&answered), stop.clone(), sender.clone());
        clients.spawn(async move {
            while !stop.is_cancelled() {
                let request = hyper::Request::get("https://secure.test/stream")
                    .body(http_body_util::Empty::<bytes::Bytes>::new());
                let response = sender.send_request(request.unwrap()).await.expect("an answer");
                assert_eq!(response.status(), 200);
                let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("all of it");
                assert!(body.to_bytes().starts_with(b"get /stream"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for change in 0..CHANGES {
        world.server.set_table(Arc::clone(&tables[change % 2]));
        let enough = answered.load(Ordering::Relaxed) + ANSWERS_A_CHANGE;
        let more = async {
            while answered.load(Ordering::Relaxed) < enough {
                // A client that ends now has lost something: its panic is the test's.
                if let Ok(ended) = timeout(Duration::from_millis(1), clients.join_next()).await {
                    ended.expect("clients").unwrap();
                }
            }
        };
        timeout(PATIENCE, more).await.expect("answers go on");
    }
    stop.cancel();
    while let Some(ended) = timeout(PATIENCE, clients.join_next()).await.expect("clients end") {
        ended.unwrap();
    }
}

#[tokio::test]
async fn upgraded_connections_pass_and_end_with_the_server() {
    let world = world().await;
    let mut stream = world.plain().await;
    let request = "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = timeout(PATIENCE, read_head(&mut stream)).await.unwrap().unwrap();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    timeout(PATIENCE, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"ping");
    world.stop.cancel();
    timeout(PATIENCE, world.running).await.expect("the server stops in time").unwrap();
}

#[tokio::test]
async fn a_balancer_in_front_says_who_the_client_is() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let options = Options {
        proxied_from: vec!["127.0.0.0/8".parse().unwrap()],
        access_log: Some(log.path().to_owned()),
        ..Options::default()
    };
    let server = Arc::new(Server::bind(LOCAL, LOCAL, options).await.unwrap());
    let rule = IngressRule { path: "/".into(), endpoints: vec![backend().await], ..IngressRule::default() };
    server.set_table(Arc::new(IngressTable { rules: vec![rule], certificates: Vec::new() }));
    let (run, stop) = (Arc::clone(&server), CancellationToken::new());
    let token = stop.clone();
    let running = tokio::spawn(async move { run.run(token).await });
    let open = async || TcpStream::connect(server.addresses().0).await.unwrap();
    let request = get("web.test", "/told");
    let answer = ask(open().await, &format!("PROXY TCP4 203.0.113.7 192.0.2.1 4711 80\r\n{request}")).await;
    assert!(answer.contains("x-forwarded-for: 203.0.113.7"), "{answer}");
    // Without the header nobody knows who it is.
    let mut stream = open().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the connection ends");
    assert_eq!(rest, b"");
    stop.cancel();
    running.await.unwrap();
    assert!(server.metrics().contains("_count{ingress=\"\",code=\"200\"} 1\n"), "{}", server.metrics());
    let logged = || std::fs::read_to_string(log.path()).unwrap().contains("203.0.113.7 - - [");
    while !logged() {
        tokio::task::yield_now().await;
    }
}
