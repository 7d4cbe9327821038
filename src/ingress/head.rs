//! Heads of messages: what is read of them and what is changed. Pure.

use std::{borrow::Cow, net::IpAddr};

use bytes::BytesMut;
use hyper::{
    HeaderMap, Method, Request, Uri,
    header::{self, HeaderName, HeaderValue},
};

/// Whether a header means one connection only (RFC 9110 section 7.6.1 and their elders). The length of
/// a body is for its ends, and is seen to where bodies are.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "keep-alive"
    )
}

/// Whether a request's header is for its backend. What a client says of itself and the way that it has
/// come is not believed; it is said anew.
fn goes_on(name: &HeaderName, named: &[HeaderName]) -> bool {
    let is_said_anew = match name.as_str() {
        // The answer to `expect` has been given; CGI programs take `proxy` for the variable HTTP_PROXY.
        "host" | "content-length" | "x-real-ip" | "x-scheme" | "expect" | "proxy" => true,
        name => {
            let forwarded = name.strip_prefix("x-forwarded-");
            forwarded.is_some_and(|what| matches!(what, "for" | "host" | "port" | "proto" | "scheme"))
        }
    };
    !is_said_anew && !is_hop_by_hop(name.as_str()) && !named.contains(name)
}

/// Headers that are said to be for one connection only.
fn named(headers: &HeaderMap) -> Vec<HeaderName> {
    tokens(headers, &header::CONNECTION)
        .filter(|token| !token.eq_ignore_ascii_case("keep-alive"))
        .filter_map(|token| token.parse().ok())
        .collect()
}

/// A request's authority as the client wrote it, in visible ASCII; `None` when it is not one.
pub fn authority<B>(request: &Request<B>) -> Option<HeaderValue> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None if request.version() == hyper::Version::HTTP_10 && first.is_none() => {
            Some(HeaderValue::from_static(""))
        }
        None => first.filter(|host| host.to_str().is_ok()).cloned(),
    }
}

/// The host of an authority: no port, lower case.
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_end_matches('.');
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// A path with its escapes resolved; `None` when it is not sane: wrong escapes, dot segments.
pub fn decoded(path: &str) -> Option<Cow<'_, str>> {
    let sane = |path: &str| {
        let bytes = path.as_bytes();
        let may_have_dots = bytes.starts_with(b".") || bytes.windows(2).any(|pair| pair == b"/.");
        let has_dots = || path.split('/').any(|element| element == "." || element == "..");
        let dots = may_have_dots && has_dots();
        !dots && !bytes.contains(&0)
    };
    if !path.as_bytes().contains(&b'%') {
        return sane(path).then_some(Cow::Borrowed(path));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = tail else { return None };
        let digit = |b: u8| char::from(b).to_digit(16);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    let path = String::from_utf8_lossy(&bytes).into_owned();
    sane(&path).then_some(Cow::Owned(path))
}

/// The protocol that a client wants to go on with.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    asks.then(|| protocol.clone())
}

/// Whether a client takes trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim))
}

/// Removes what is between two neighbours only.
pub fn strip(headers: &mut HeaderMap) {
    let hop_by_hop: Vec<_> = headers.keys().filter(|name| is_hop_by_hop(name.as_str())).cloned().collect();
    for name in named(headers).iter().chain(&hop_by_hop) {
        headers.remove(name);
    }
}

/// What is said of a client to backends: the same for all requests of a connection.
#[derive(Debug, Clone)]
pub struct Forwarded {
    /// As they stand in a head.
    lines: Box<str>,
}

impl Forwarded {
    pub fn new(client: IpAddr, tls: bool, port: u16) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let lines = format!(
            "x-forwarded-for: {client}\r\nx-real-ip: {client}\r\nx-forwarded-port: {port}\r\n\
             x-forwarded-proto: {scheme}\r\nx-forwarded-scheme: {scheme}\r\nx-scheme: {scheme}\r\n"
        );
        Self { lines: lines.into() }
    }

    fn iter(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let lines = self.lines.lines().filter_map(|line| line.split_once(": "));
        lines.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
    }
}

fn put(out: &mut BytesMut, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// A header's line in a head or among trailers.
pub fn encode_header(out: &mut BytesMut, name: &HeaderName, value: &HeaderValue) {
    put(out, &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
}

/// A head for a backend, but for its last lines: those that tell of the body, and the empty one.
pub fn encode(
    (method, target): (&Method, &str),
    authority: &HeaderValue,
    headers: &HeaderMap,
    forwarded: &Forwarded,
    upgrade: Option<&HeaderValue>,
) -> BytesMut {
    const HEADER_BYTES: usize = 40;
    let named = named(headers);
    let known = forwarded.lines.len() + target.len() + 2 * authority.len() + 128;
    let mut out = BytesMut::with_capacity(known + headers.len() * HEADER_BYTES);
    put(&mut out, &[method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1\r\nhost: "]);
    put(&mut out, &[authority.as_bytes(), b"\r\nx-forwarded-host: ", authority.as_bytes(), b"\r\n"]);
    put(&mut out, &[forwarded.lines.as_bytes()]);
    for (name, value) in headers {
        if goes_on(name, &named) {
            encode_header(&mut out, name, value);
        }
    }
    if let Some(protocol) = upgrade {
        put(&mut out, &[b"connection: upgrade\r\nupgrade: ", protocol.as_bytes(), b"\r\n"]);
    }
    out
}

/// The headers for a backend that is spoken to by HTTP/2: the authority stands in the target.
pub fn onward(headers: &HeaderMap, authority: &HeaderValue, forwarded: &Forwarded) -> HeaderMap {
    let named = named(headers);
    let mut onward = HeaderMap::with_capacity(headers.len() + 8);
    for (name, value) in headers {
        if goes_on(name, &named) {
            onward.append(name.clone(), value.clone());
        }
    }
    // Streams have lengths of their own, but a length that is told is passed on.
    if let Some(length) = headers.get(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
    {
        onward.insert(header::CONTENT_LENGTH, length.clone());
    }
    onward.extend(forwarded.iter());
    onward.insert(HeaderName::from_static("x-forwarded-host"), authority.clone());
    if takes_trailers(headers) {
        onward.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    onward
}

/// Where the same thing is over TLS.
pub fn tls_location(host: &str, port: u16, uri: &Uri) -> String {
    let rest = uri.path_and_query().map_or("/", |rest| rest.as_str());
    if port == 443 { format!("https://{host}{rest}") } else { format!("https://{host}:{port}{rest}") }
}

/// The target of a request to a backend.
pub fn target<'a>(uri: &'a Uri, path: Option<&str>) -> Cow<'a, str> {
    match (path, uri.query()) {
        (Some(path), Some(query)) => Cow::Owned(format!("{}?{query}", escaped(path))),
        (Some(path), None) => Cow::Owned(escaped(path)),
        (None, _) => Cow::Borrowed(uri.path_and_query().map_or("/", |own| own.as_str())),
    }
}

/// Escapes what may not stand in a path.
fn escaped(path: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'%'
            | b'?'
            | b'#'
            | b'"'
            | b'<'
            | b'>'
            | b'\\'
            | b'^'
            | b'`'
            | b'{'
            | b'|'
            | b'}'
            | ..=b' '
            | 127.. => {
                let _ = write!(text, "%{byte:02X}");
            }
            _ => text.push(char::from(byte)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_decoded_or_refused() {
        for (path, want) in [
            ("/a/b", Some("/a/b")),
            ("/%61dmin", Some("/admin")),
            ("/a/../b", None),
            ("/a/%2e%2E/b", None),
            ("/%zz", None),
            ("/%4", None),
        ] {
            assert_eq!(decoded(path).as_deref(), want, "{path}");
        }
        assert_eq!(escaped("/a b?%"), "/a%20b%3F%25");
    }

    #[test]
    fn hosts_lose_their_ports() {
        for (authority, want) in
            [("A.example.com:8080", "a.example.com"), ("a.example.com.", "a.example.com"), ("[::1]", "[::1]")]
        {
            assert_eq!(host_of(authority), want);
        }
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let headers = headers.iter();
        headers.map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn neighbours_headers_go() {
        let mut headers = map(&[
            ("connection", "keep-alive, x-secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("accept", "*/*"),
        ]);
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn heads_say_who_has_come_and_what_for() {
        let headers = map(&[
            ("host", "b.test"),
            ("accept", "*/*"),
            ("content-length", "5"),
            ("connection", "keep-alive, x-secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("proxy", "evil"),
            ("x-forwarded-for", "192.0.2.66"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "192.0.2.66"),
            ("x-forwarded-other", "is nobody's"),
        ]);
        let authority = HeaderValue::from_static("a.test:80");
        let forwarded = Forwarded::new([192, 0, 2, 7].into(), false, 80);
        let head = encode((&Method::GET, "/x?y"), &authority, &headers, &forwarded, None);
        let want = "GET /x?y HTTP/1.1\r\nhost: a.test:80\r\nx-forwarded-host: a.test:80\r\n\
                    x-forwarded-for: 192.0.2.7\r\nx-real-ip: 192.0.2.7\r\nx-forwarded-port: 80\r\n\
                    x-forwarded-proto: http\r\nx-forwarded-scheme: http\r\nx-scheme: http\r\n\
                    accept: */*\r\nx-forwarded-other: is nobody's\r\n";
        assert_eq!(head, want);
        let protocol = HeaderValue::from_static("echo");
        let head = encode((&Method::GET, "/"), &authority, &headers, &forwarded, Some(&protocol));
        assert!(head.ends_with(b"connection: upgrade\r\nupgrade: echo\r\n"), "{head:?}");

        let onward = onward(&headers, &authority, &forwarded);
        let mut said: Vec<_> = onward.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        said.sort();
        let want = [
            "accept: */*",
            "content-length: 5",
            "te: trailers",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: a.test:80",
            "x-forwarded-other: is nobody's",
            "x-forwarded-port: 80",
            "x-forwarded-proto: http",
            "x-forwarded-scheme: http",
            "x-real-ip: 192.0.2.7",
            "x-scheme: http",
        ];
        assert_eq!(said, want);
    }

    #[test]
    fn targets_are_what_backends_take() {
        let cases = [
            ("/a?b", None, "/a?b"),
            ("http://web.test/a?b", None, "/a?b"),
            ("http://web.test", None, "/"),
            ("/a?b", Some("/c d"), "/c%20d?b"),
            ("http://x.test/a", Some("/c"), "/c"),
        ];
        for (uri, path, want) in cases {
            assert_eq!(target(&uri.parse().unwrap(), path), want, "{uri}");
        }
    }
}
