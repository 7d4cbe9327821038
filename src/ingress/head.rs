//! Heads of messages: what is read of them and what is changed. Pure.

use std::{borrow::Cow, net::IpAddr};

use hyper::{
    HeaderMap, Request, Uri,
    header::{self, HeaderName, HeaderValue},
};

/// Headers that mean one connection only (RFC 9110 section 7.6.1 and their elders).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

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
        let dots = path.split('/').any(|element| element == "." || element == "..");
        !dots && !path.contains('\0')
    };
    if !path.contains('%') {
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
    let asks = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

/// Whether a client takes trailers.
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim))
}

/// Removes what is between two neighbours only.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Two lengths of one body are how requests are smuggled.
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What is said of a client to backends: the same for all requests of a connection.
#[derive(Debug, Clone)]
pub struct Forwarded {
    client: HeaderValue,
    port: HeaderValue,
    scheme: HeaderValue,
}

impl Forwarded {
    pub fn new(client: IpAddr, tls: bool, port: u16) -> Self {
        let client = HeaderValue::try_from(client.to_string());
        Self {
            client: client.unwrap_or(HeaderValue::from_static("unknown")),
            port: port.into(),
            scheme: HeaderValue::from_static(if tls { "https" } else { "http" }),
        }
    }

    /// Says who asked for what. What a client says of this itself is not believed.
    pub fn set(&self, headers: &mut HeaderMap, authority: &HeaderValue) {
        let values = [
            ("x-forwarded-for", &self.client),
            ("x-real-ip", &self.client),
            ("x-forwarded-host", authority),
            ("x-forwarded-port", &self.port),
            ("x-forwarded-proto", &self.scheme),
            ("x-forwarded-scheme", &self.scheme),
            ("x-scheme", &self.scheme),
        ];
        headers.reserve(values.len());
        for (name, value) in values {
            headers.insert(HeaderName::from_static(name), value.clone());
        }
        // CGI programs take this for the variable HTTP_PROXY.
        headers.remove("proxy");
        // The answer to it has been given.
        headers.remove(header::EXPECT);
    }
}

/// Where the same thing is over TLS.
pub fn tls_location(host: &str, port: u16, uri: &Uri) -> String {
    let rest = uri.path_and_query().map_or("/", |rest| rest.as_str());
    if port == 443 { format!("https://{host}{rest}") } else { format!("https://{host}:{port}{rest}") }
}

/// The target of a request to a backend: with scheme and authority for HTTP/2, without otherwise.
pub fn target(uri: &Uri, path: Option<&str>, absolute: Option<(&str, &str)>) -> Option<Uri> {
    if let (None, None, Some(own)) = (path, absolute, uri.path_and_query()) {
        return Some(Uri::from(own.clone()));
    }
    let own = uri.path_and_query().map_or("/", |rest| rest.as_str());
    let path = match (path, uri.query()) {
        (Some(path), Some(query)) => format!("{}?{query}", escaped(path)),
        (Some(path), None) => escaped(path),
        (None, _) => own.to_owned(),
    };
    match absolute {
        Some((scheme, authority)) => format!("{scheme}://{authority}{path}").parse().ok(),
        None => path.parse().ok(),
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

    #[test]
    fn neighbours_headers_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("accept", "*/*"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn targets_are_what_backends_take() {
        let target = |uri: &str, path, absolute| {
            target(&uri.parse().unwrap(), path, absolute).map(|uri| uri.to_string())
        };
        let cases = [
            ("/a?b", None, None, "/a?b"),
            ("http://web.test/a?b", None, None, "/a?b"),
            ("/a?b", Some("/c d"), None, "/c%20d?b"),
            ("/a?b", None, Some(("https", "web.test")), "https://web.test/a?b"),
            ("http://x.test/a", Some("/c"), Some(("http", "web.test")), "http://web.test/c"),
        ];
        for (uri, path, absolute, want) in cases {
            assert_eq!(target(uri, path, absolute).as_deref(), Some(want), "{uri}");
        }
    }
}
