//! What backends answer and how: every form of a body, both ways at once, and connections that end.

use std::{
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use sampan::net::routes::{BackendProtocol, IngressRule};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{LOCAL, PATIENCE, World, ask, read_head, world};

async fn listen() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    (listener, address)
}

/// A world whose `/` leads there.
async fn leading_to(address: SocketAddrV4, protocol: BackendProtocol) -> World {
    let world = world().await;
    let mut rule = IngressRule {
        host: "made.test".into(),
        path: "/".into(),
        endpoints: vec![address],
        ..IngressRule::default()
    };
    rule.options.protocol = protocol;
    world.add(rule);
    world
}

/// A backend that says these bytes to every request, and then ends the connection.
async fn saying(answer: &'static [u8]) -> World {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if read_head(&mut stream).await.is_some() {
                let _ = stream.write_all(answer).await;
            }
        }
    });
    leading_to(address, BackendProtocol::Http).await
}

fn request(method: &str) -> String {
    format!("{method} /x HTTP/1.1\r\nHost: made.test\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn answers_of_every_form_are_passed_on() {
    let cases: [(&str, &[u8], &str, &str); 9] = [
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", "content-length: 3\r\n", "\r\n\r\nabc"),
        (
            "GET",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 7\r\n\r\n",
            "transfer-encoding: chunked\r\n",
            "de\r\n0\r\n\r\n",
        ),
        // Two lengths: the chunks count.
        (
            "GET",
            b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "transfer-encoding: chunked\r\n",
            "abc\r\n0\r\n\r\n",
        ),
        ("GET", b"HTTP/1.0 200 OK\r\nx: y\r\n\r\nall of it", "x: y\r\n", "all of it\r\n0\r\n\r\n"),
        (
            "GET",
            b"HTTP/1.1 103 Early Hints\r\nlink: z\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno",
            "404 Not Found\r\n",
            "\r\n\r\nno",
        ),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", "content-length: 7\r\n", "\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n", "204 No Content\r\n", "\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\netag: e\r\n\r\n", "etag: e\r\n", "\r\n\r\n"),
        (
            "GET",
            b"HTTP/1.1 200 OK\r\nkeep-alive: 5\r\nconnection: x-secret\r\nx-secret: 1\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n",
            "set-cookie: a\r\nset-cookie: b\r\n",
            "\r\n\r\n",
        ),
    ];
    for (method, said, part, end) in cases {
        let world = saying(said).await;
        let answer = ask(world.plain().await, &request(method)).await;
        let said = String::from_utf8_lossy(said);
        assert!(answer.contains(part) && answer.ends_with(end), "{said}: {answer}");
        assert!(!answer.contains("x-secret") && !answer.contains("keep-alive"), "{answer}");
    }
}

#[tokio::test]
async fn answers_that_are_none_are_not_passed_on() {
    let wrong: [&[u8]; 8] = [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: cut",
    ];
    for said in wrong {
        let world = saying(said).await;
        let answer = ask(world.plain().await, &request("POST")).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{}: {answer}", String::from_utf8_lossy(said));
    }
    // What ends too early is seen to.
    let short: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc!\r\n0\r\n\r\n",
    ];
    for said in short {
        let world = saying(said).await;
        let answer = ask(world.plain().await, &request("GET")).await;
        assert!(!answer.ends_with("0\r\n\r\n") && !answer.ends_with("abc!"), "{answer}");
        assert!(answer.len() < "HTTP/1.1 200 OK\r\n".len() + 200, "{answer}");
    }
}

/// Reads a head and its body, of a length or in chunks; the body.
async fn take(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let head = read_head(stream).await?;
    let mut body = Vec::new();
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.ok()?;
        return Some(body);
    }
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await.ok()?);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await.ok()?;
        assert!(chunk.ends_with(b"\r\n"));
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// Answers with the body that came, by its length and then in chunks.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut in_chunks = false;
    while let Some(body) = take(&mut stream).await {
        if in_chunks {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            for chunk in body.chunks(100_000) {
                let line = format!("{:X}\r\n", chunk.len());
                stream.write_all(&[line.as_bytes(), chunk, b"\r\n"].concat()).await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        } else {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        }
        // TLS holds back what is written.
        stream.flush().await.unwrap();
        in_chunks = !in_chunks;
    }
}

/// Posts bodies of many sizes to a backend and has them back.
async fn have_echoed(world: &World) {
    for (size, in_chunks) in [
        (1, false),
        (100, true),
        (9_000, false),
        (70_000, true),
        (3_000_000, false),
        (3_000_000, true),
        (0, true),
    ] {
        let body: Vec<u8> = (0..size).map(|n: u32| (n % 251) as u8).collect();
        let (mut from, mut to) = world.plain().await.into_split();
        let sent = body.clone();
        let sending = tokio::spawn(async move {
            let length = if in_chunks {
                "transfer-encoding: chunked".to_owned()
            } else {
                format!("content-length: {size}")
            };
            let head = format!("POST /x HTTP/1.1\r\nHost: made.test\r\n{length}\r\n\r\n");
            to.write_all(head.as_bytes()).await.unwrap();
            if in_chunks {
                for chunk in sent.chunks(50_000) {
                    let line = format!("{:x}\r\n", chunk.len());
                    to.write_all(&[line.as_bytes(), chunk, b"\r\n"].concat()).await.unwrap();
                }
                to.write_all(b"0\r\n\r\n").await.unwrap();
            } else {
                to.write_all(&sent).await.unwrap();
            }
            to
        });
        let got = timeout(PATIENCE, take(&mut from)).await.expect("an answer in time").expect("all of it");
        assert!(got == body, "{size} bytes, in chunks: {in_chunks}");
        drop(sending.await.unwrap());
    }
}

#[tokio::test]
async fn bodies_come_back_as_they_went() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            tokio::spawn(echo(listener.accept().await.unwrap().0));
        }
    });
    have_echoed(&leading_to(address, BackendProtocol::Http).await).await;
}

#[tokio::test]
async fn bodies_come_back_from_a_backend_with_tls() {
    let made = rcgen::generate_simple_self_signed(["pod".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move { echo(acceptor.accept(stream).await.unwrap()).await });
        }
    });
    have_echoed(&leading_to(address, BackendProtocol::Https).await).await;
}

/// The answer begins, and arrives, while the request's body is still to come.
#[tokio::test]
async fn an_answer_may_come_before_the_request_has_gone() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n").await.unwrap();
        let mut body = [0; 6];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(&body).await.unwrap();
    });
    let world = leading_to(address, BackendProtocol::Http).await;
    let mut stream = world.plain().await;
    let head = "POST /x HTTP/1.1\r\nHost: made.test\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = timeout(PATIENCE, read_head(&mut stream)).await.expect("an answer in time").unwrap();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    stream.write_all(b"def").await.unwrap();
    let mut body = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut body)).await.expect("its body in time").unwrap();
    assert_eq!(body, "abcdef");
}

/// A backend that ends its connections without a word after two answers, the second time with a
/// request on its way.
#[tokio::test]
async fn a_kept_connection_that_ends_costs_no_request() {
    const REQUESTS: usize = 30;
    let (listener, address) = listen().await;
    let opened = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opened);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            for _ in 0..2 {
                if read_head(&mut stream).await.is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            }
            // It is ended once a third one has begun, or at once.
            if counted.load(Ordering::Relaxed).is_multiple_of(2) {
                let _ = stream.read_u8().await;
            }
        }
    });
    let world = leading_to(address, BackendProtocol::Http).await;
    for number in 0..REQUESTS {
        let answer = ask(world.plain().await, &request("GET")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
    }
    let opened = opened.load(Ordering::Relaxed);
    assert!((REQUESTS / 2..REQUESTS).contains(&opened), "{opened}");
}
