//! The demo's web page: which pod answered, where it runs, how often it was asked.

use std::{
    fmt::Write as _,
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    Failure,
    commands::host_name,
    http::{Message, target},
    net::listen_address,
    number,
};

const PORT: u16 = 8080;
/// Connections served at once; more are closed.
const CONNECTIONS_MAX: usize = 256;
const STACK_BYTES: usize = 128 * 1024;
/// A silent connection is closed.
const IDLE: Duration = Duration::from_secs(75);
/// Longest answer to `/delay` (ms).
const DELAY_MS_MAX: u64 = 600_000;

/// What connections share.
struct Site {
    requests: AtomicU64,
    ready: AtomicBool,
    healthy: AtomicBool,
    connections: AtomicUsize,
}

pub fn web(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "web [PORT]";
    let from_env = std::env::var("PORT").ok().and_then(|port| port.parse().ok());
    let port = number(args, 0, USAGE)?.or(from_env).unwrap_or(PORT);
    let listener = listen(port).map_err(Failure::io(format!("listen on port {port}")))?;
    println!("{} serves http on port {port}", host_name());
    serve(&listener);
    Ok(0)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(listen_address(port))
}

fn serve(listener: &TcpListener) {
    let site = Arc::new(Site {
        requests: AtomicU64::new(0),
        ready: AtomicBool::new(true),
        healthy: AtomicBool::new(true),
        connections: AtomicUsize::new(0),
    });
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("web: accept: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if site.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            site.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let served = site.clone();
        let work = move || {
            // A peer that goes away ends its connection only.
            let _ = connection(&stream, &served);
            served.connections.fetch_sub(1, Ordering::Relaxed);
        };
        if thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_err() {
            site.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn connection(stream: &TcpStream, site: &Site) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = Message::read_request(&mut reader)? {
        site.requests.fetch_add(1, Ordering::Relaxed);
        let answer = answer(&request, site, stream.local_addr()?, stream.peer_addr()?);
        let close = request.start.ends_with("HTTP/1.0")
            || request.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}; charset=utf-8\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            answer.status,
            answer.kind,
            answer.body.len(),
            if close { "close" } else { "keep-alive" }
        );
        let mut bytes = head.into_bytes();
        if !request.start.starts_with("HEAD ") {
            bytes.extend_from_slice(&answer.body);
        }
        writer.write_all(&bytes)?;
        if let Some(code) = answer.exit {
            std::process::exit(code);
        }
        if close {
            break;
        }
    }
    Ok(())
}

struct Answer {
    status: &'static str,
    kind: &'static str,
    body: Vec<u8>,
    exit: Option<i32>,
}

impl Answer {
    fn text(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, kind: "text/plain", body: body.into(), exit: None }
    }
}

fn answer(request: &Message, site: &Site, local: SocketAddr, peer: SocketAddr) -> Answer {
    const OK: &str = "200 OK";
    let mut words = request.start.split(' ');
    let (method, written) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let (path, query) = target(written);
    match path {
        "/" => page(request, site, local),
        "/healthz" => flag(&site.healthy, method, query.get("set")),
        "/ready" | "/readyz" => flag(&site.ready, method, query.get("set")),
        "/hostname" => Answer::text(OK, host_name() + "\n"),
        "/ip" => Answer::text(OK, format!("{}\n", peer.ip().to_canonical())),
        "/env" => {
            let mut lines: Vec<String> = std::env::vars_os()
                .map(|(k, v)| format!("{}={}\n", k.to_string_lossy(), v.to_string_lossy()))
                .collect();
            lines.sort();
            Answer::text(OK, lines.concat())
        }
        "/headers" => {
            let mut text = format!("{}\n", request.start);
            for (name, value) in &request.fields {
                let _ = writeln!(text, "{name}: {value}");
            }
            Answer::text(OK, text)
        }
        "/echo" => Answer::text(
            OK,
            query.get("text").map_or_else(|| request.body.clone(), |t| t.clone().into_bytes()),
        ),
        "/delay" => {
            let ms = query.get("ms").and_then(|ms| ms.parse().ok()).unwrap_or(1000).min(DELAY_MS_MAX);
            thread::sleep(Duration::from_millis(ms));
            Answer::text(OK, format!("waited {ms} ms\n"))
        }
        "/exit" => {
            let code = query.get("code").and_then(|code| code.parse().ok()).unwrap_or(0);
            Answer { exit: Some(code), ..Answer::text(OK, format!("exit {code}\n")) }
        }
        "/metrics" => Answer::text(
            OK,
            format!(
                "# TYPE demo_requests_total counter\ndemo_requests_total {}\n",
                site.requests.load(Ordering::Relaxed)
            ),
        ),
        _ => Answer::text("404 Not Found", "not found\n"),
    }
}

/// Shows a flag, or sets it: by `?set=true|false`, or turns it over by POST.
fn flag(flag: &AtomicBool, method: &str, set: Option<&String>) -> Answer {
    match set.map(String::as_str) {
        Some(value) => flag.store(value != "false", Ordering::Relaxed),
        None if method == "POST" => drop(flag.fetch_not(Ordering::Relaxed)),
        None => {}
    }
    if flag.load(Ordering::Relaxed) {
        Answer::text("200 OK", "ok\n")
    } else {
        Answer::text("503 Service Unavailable", "not ok\n")
    }
}

/// What the page says, from the downward API's usual variables where the pod sets them.
fn facts(site: &Site, local: SocketAddr) -> Vec<(&'static str, String)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let namespace_file = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let namespace = || std::fs::read_to_string(namespace_file).ok().map(|text| text.trim().to_owned());
    vec![
        ("pod", variable("POD_NAME").unwrap_or_else(host_name)),
        ("namespace", variable("POD_NAMESPACE").or_else(namespace).unwrap_or_else(|| "unknown".to_owned())),
        ("node", variable("NODE_NAME").unwrap_or_else(|| "unknown (NODE_NAME is not set)".to_owned())),
        ("ip", variable("POD_IP").unwrap_or_else(|| local.ip().to_canonical().to_string())),
        ("requests", site.requests.load(Ordering::Relaxed).to_string()),
    ]
}

fn page(request: &Message, site: &Site, local: SocketAddr) -> Answer {
    let facts = facts(site, local);
    // Browsers ask for HTML by name, curl does not.
    if !request.field("accept").is_some_and(|accept| accept.contains("text/html")) {
        let lines: Vec<String> = facts.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        return Answer::text("200 OK", lines.concat());
    }
    let rows: Vec<String> =
        facts.iter().map(|(name, value)| format!("<tr><th>{name}<td>{}", escape(value))).collect();
    let body = format!(
        "<!doctype html><title>Sampan</title><meta name=viewport content='width=device-width'>\
         <style>body{{font:1.2rem sans-serif;margin:3rem}}th{{text-align:left;padding-right:1rem}}</style>\
         <h1>Hello from a sampan</h1><table>{}</table>",
        rows.concat()
    );
    Answer { kind: "text/html", ..Answer::text("200 OK", body) }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_site_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener));
        for (request, want) in [
            ("GET / HTTP/1.1", "requests: 1\n"),
            ("GET / HTTP/1.1\r\nAccept: text/html", "<th>requests<td>2"),
            ("GET / HTTP/1.1", "ip: 127.0.0.1\n"),
            ("GET /ready HTTP/1.1", "200 OK"),
            ("POST /ready HTTP/1.1", "503 Service"),
            ("GET /ready HTTP/1.1", "503 Service"),
            ("GET /ready?set=true HTTP/1.1", "200 OK"),
            ("GET /healthz HTTP/1.1", "200 OK"),
            ("GET /headers HTTP/1.1\r\nX-A: b", "x-a: b\n"),
            ("POST /echo HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", "hi"),
            ("GET /echo?text=a%20b HTTP/1.1", "a b"),
            ("GET /ip HTTP/1.1", "127.0.0.1\n"),
            ("GET /delay?ms=1 HTTP/1.1", "waited 1 ms"),
            ("GET /nowhere HTTP/1.1", "404 Not Found"),
        ] {
            let text = ask(address, request);
            assert!(text.contains(want), "{request}: {text} has no {want}");
        }
    }
}
