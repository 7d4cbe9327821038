//! Heads of messages: what is read of them and what is changed. Pure.

use std::net::IpAddr;

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

/// A request's authority as the client wrote it; `None` when it is not one.
pub fn authority<B>(request: &Request<B>) -> Option<String> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str().to_owned()),
        None if request.version() == hyper::Version::HTTP_10 && first.is_none() => Some(String::new()),
        None => first?.to_str().ok().map(str::to_owned),
    }
}

/// The host of an authority: no port, lower case.
pub fn host_of(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// A path with its escapes resolved; `None` when it is not sane: wrong escapes, dot segments.
pub fn decoded(path: &str) -> Option<String> {
    let sane = |path: &str| {
        let dots = path.split('/').any(|element| element == "." || element == "..");
        !dots && !path.contains('\0')
    };
    if !path.contains('%') {
        return sane(path).then(|| path.to_owned());
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
    sane(&path).then_some(path)
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

/// Says who asked for what. What a client says of this itself is not believed.
pub fn set_forwarded(headers: &mut HeaderMap, client: IpAddr, authority: &str, tls: bool, port: u16) {
    let (scheme, client) = (if tls { "https" } else { "http" }, client.to_string());
    let port = port.to_string();
    let values = [
        ("x-forwarded-for", client.as_str()),
        ("x-real-ip", &client),
        ("x-forwarded-host", authority),
        ("x-forwarded-port", &port),
        ("x-forwarded-proto", scheme),
        ("x-forwarded-scheme", scheme),
        ("x-scheme", scheme),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    // CGI programs take this for the variable HTTP_PROXY.
    headers.remove("proxy");
    // The answer to it has been given.
    headers.remove(header::EXPECT);
}

/// Where the same thing is over TLS.
pub fn tls_location(host: &str, port: u16, uri: &Uri) -> String {
    let rest = uri.path_and_query().map_or("/", |rest| rest.as_str());
    if port == 443 { format!("https://{host}{rest}") } else { format!("https://{host}:{port}{rest}") }
}

/// The target of a request to a backend: with scheme and authority for HTTP/2, without otherwise.
pub fn target(uri: &Uri, path: Option<&str>, absolute: Option<(&str, &str)>) -> Option<Uri> {
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
}
