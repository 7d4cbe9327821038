//! Clients that want to do harm, and those that want more than a page: WebSocket, gRPC.

use std::{
    convert::Infallible,
    net::{SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    client::conn::http2,
    header::HeaderValue,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use sampan::{
    ingress::{Options, Server},
    net::routes::{BackendProtocol, IngressRule, IngressTable},
    tasks::CancellationToken,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame, protocol::frame::coding::CloseCode};

use super::{LOCAL, PATIENCE, World, read_head, world};

type Seen = Arc<Mutex<Vec<String>>>;

/// A backend that notes every head it gets, reads bodies as their head says, and answers.
async fn noting() -> (SocketAddrV4, Seen) {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                while let Some(head) = read_head(&mut stream).await {
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
                    if head.contains("transfer-encoding: chunked") {
                        let mut body = Vec::new();
                        while !body.ends_with(b"0\r\n\r\n") {
                            let Ok(byte) = stream.read_u8().await else { return };
                            body.push(byte);
                        }
                    }
                    let mut body = vec![0; length.unwrap_or(0)];
                    if stream.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    noted.lock().unwrap().push(head);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    (address, seen)
}

/// A server with one rule for every host.
async fn serving(
    endpoint: SocketAddrV4,
    options: Options,
    change: impl FnOnce(&mut IngressRule),
) -> Arc<Server> {
    let mut rule = IngressRule { path: "/".into(), endpoints: vec![endpoint], ..IngressRule::default() };
    change(&mut rule);
    let server = Arc::new(Server::bind(LOCAL, LOCAL, options).await.unwrap());
    server.set_table(Arc::new(IngressTable { rules: vec![rule], certificates: Vec::new() }));
    let run = Arc::clone(&server);
    tokio::spawn(async move { run.run(CancellationToken::new()).await });
    server
}

/// Sends these bytes; all that comes back until the connection ends, or nothing comes any more.
async fn say(server: &Server, bytes: &[u8]) -> String {
    const SILENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect(server.addresses().0).await.unwrap();
    // The server may refuse before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = timeout(SILENCE, stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn no_request_is_smuggled() {
    let (backend, seen) = noting().await;
    let server = serving(backend, Options::default(), |_| {}).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    // Refused: two readers could understand these in two ways.
    let refused = [
        "Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
        "Content-Length: +5\r\n\r\n",
        "Content-Length: 5, 6\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n",
        "Transfer-Encoding: identity, chunked, gzip\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nX: a\r\n b\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5x\r\nabcde\r\n0\r\n\r\n",
        "X\0: y\r\n\r\n",
        "Host: again\r\n\r\n",
    ];
    for head in refused {
        let request = format!("POST / HTTP/1.1\r\nHost: a.test\r\n{head}{smuggled}");
        let answer = say(&server, request.as_bytes()).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(matches!(status, "" | "400" | "413" | "431" | "501" | "502"), "{head:?}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            usize::from(!status.is_empty()),
            "{head:?}: {answer}"
        );
        assert_eq!(seen.lock().unwrap().iter().filter(|h| h.contains("smuggled")).count(), 0, "{head:?}");
    }
    seen.lock().unwrap().clear();
    // Understood in one way only, and passed on in one way only.
    let both = "POST /one HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = say(&server, both.as_bytes()).await;
    let heads = std::mem::take(&mut *seen.lock().unwrap());
    assert!(heads.iter().all(|head| !head.contains("content-length")), "{heads:?}");
    assert!(
        answer.starts_with("HTTP/1.1 200") == (heads.len() == 1) && heads.len() <= 1,
        "{answer} {heads:?}"
    );
    // The host that decides is the host that is passed on.
    let absolute = "GET http://a.test/abs HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n";
    say(&server, absolute.as_bytes()).await;
    let heads = std::mem::take(&mut *seen.lock().unwrap());
    assert!(heads.iter().all(|head| head.contains("host: a.test") && !head.contains("b.test")), "{heads:?}");
    // Pipelined requests come one by one, each with its own head.
    let two =
        "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    assert_eq!(say(&server, two.as_bytes()).await.matches("HTTP/1.1 200").count(), 2);
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn bombs_of_headers_end_the_connection_only() {
    let (backend, seen) = noting().await;
    let server = serving(backend, Options::default(), |_| {}).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "x".repeat(200 << 10));
    let many = (0..5000).map(|n| format!("X-{n}: y\r\n")).collect::<Vec<_>>().concat();
    let many = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{many}\r\n");
    let target = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(100 << 10));
    for bomb in [long, many, target] {
        let answer = say(&server, bomb.as_bytes()).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(matches!(status, "" | "400" | "414" | "431"), "{answer}");
    }
    assert!(seen.lock().unwrap().is_empty());
    let fine = say(&server, b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
}

#[tokio::test]
async fn who_is_slow_is_not_waited_for() {
    let (backend, seen) = noting().await;
    let options = Options { head_timeout: Duration::from_millis(200), ..Options::default() };
    let server = serving(backend, options, |rule| {
        rule.options.read_timeout_seconds = Some(1);
        rule.options.send_timeout_seconds = Some(1);
    })
    .await;
    let open = async || TcpStream::connect(server.addresses().0).await.unwrap();
    // Heads that never end, and bodies that stand still.
    let half_head = b"GET / HTTP/1.1\r\nHost: a.te";
    let half_body = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\nabc";
    let half_chunk = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nab";
    for bytes in [&half_head[..], &half_body[..], &half_chunk[..]] {
        let mut stream = open().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection is ended");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 504"), "{answer}");
    }
    // Many of them keep nobody else out.
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = open().await;
        stream.write_all(half_body).await.unwrap();
        slow.push(stream);
    }
    let fine = say(&server, b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

/// HTTP/2 with TLS to a world's server.
async fn http2_to<B>(world: &World) -> (http2::SendRequest<B>, tokio::task::JoinHandle<hyper::Result<()>>)
where
    B: hyper::body::Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(world.server.addresses().1).await.unwrap();
    let name = ServerName::try_from("secure.test").unwrap();
    let io = TokioIo::new(world.connector("h2").connect(name, stream).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// CVE-2023-44487: requests that are taken back as soon as they are made.
#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_only() {
    const RESETS_MAX: usize = 20_000;
    let world = world().await;
    let (mut sender, connection) = http2_to::<Empty<Bytes>>(&world).await;
    let request = || Request::get("https://secure.test/reset").body(Empty::new()).unwrap();
    let mut resets = 0;
    while sender.ready().await.is_ok() && resets < RESETS_MAX {
        let asked = sender.send_request(request());
        tokio::select! {
            biased;
            _ = asked => {}
            () = tokio::task::yield_now() => resets += 1,
        }
    }
    assert!(resets < RESETS_MAX, "the server has put up with {resets} resets");
    let _ = timeout(PATIENCE, connection).await.expect("the connection ends");
    let (mut sender, _connection) = http2_to::<Empty<Bytes>>(&world).await;
    let answer = timeout(PATIENCE, sender.send_request(request())).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn websockets_pass_whole() {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let SocketAddr::V4(backend) = listener.local_addr().unwrap() else { unreachable!() };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    let server = serving(backend, Options::default(), |_| {}).await;
    let stream = TcpStream::connect(server.addresses().0).await.unwrap();
    let (mut socket, response) =
        tokio_tungstenite::client_async("ws://a.test/chat?x=1", stream).await.unwrap();
    assert_eq!(response.status(), 101);
    let large = Message::binary(vec![7; 1 << 20]);
    for message in [Message::text("hello"), large, Message::text("")] {
        socket.send(message.clone()).await.unwrap();
        assert_eq!(timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap(), message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    let pong = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"there?")));
    let farewell = CloseFrame { code: CloseCode::Away, reason: "bye".into() };
    socket.close(Some(farewell.clone())).await.unwrap();
    let closed = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(closed, Message::Close(Some(farewell)));
}

/// A gRPC server without TLS that echoes every message as it comes, and says at the end how it went.
async fn grpc() -> SocketAddrV4 {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    let echo = |request: Request<Incoming>| async move {
        let headers = request.headers();
        assert_eq!(
            (&headers["te"], &headers["content-type"]),
            (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
        );
        let (sender, frames) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    sender.send(Ok::<_, Infallible>(Frame::data(data))).await.unwrap();
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("5"));
            trailers.insert("grpc-message", HeaderValue::from_static("no such thing"));
            sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
        });
        let frames = futures_util::stream::unfold(frames, |mut frames| async move {
            frames.recv().await.map(|frame| (frame, frames))
        });
        let mut response = Response::new(StreamBody::new(Box::pin(frames)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Ok::<_, Infallible>(response)
    };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(echo)));
        }
    });
    address
}

#[tokio::test]
async fn grpc_streams_flow_both_ways_with_their_trailers() {
    let world = world().await;
    let mut rule = IngressRule {
        host: "secure.test".into(),
        path: "/".into(),
        endpoints: vec![grpc().await],
        ..IngressRule::default()
    };
    rule.options.protocol = BackendProtocol::Grpc;
    world.add(rule);
    type Frames = mpsc::Receiver<Result<Frame<Bytes>, Infallible>>;
    let (sender, frames): (_, Frames) = mpsc::channel(4);
    let frames = Box::pin(futures_util::stream::unfold(frames, |mut frames| async move {
        frames.recv().await.map(|frame| (frame, frames))
    }));
    let (mut client, _connection) = http2_to(&world).await;
    let request = Request::post("https://secure.test/echo.Echo/Stream")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(StreamBody::new(frames))
        .unwrap();
    let response = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    let mut body = response.into_body();
    // Each answer comes before the next question is put.
    for text in ["one", "two", "three"] {
        let message = [&[0, 0, 0, 0, text.len() as u8], text.as_bytes()].concat();
        sender.send(Ok(Frame::data(message.clone().into()))).await.unwrap();
        let frame = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(sender);
    let trailers = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"5".parse().unwrap(), &"no such thing".parse().unwrap())
    );
}
