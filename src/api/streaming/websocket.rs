//! The upgrade of a request to a WebSocket (RFC 6455), and its frames.

use hyper::{
    HeaderMap, Request, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::api::{
    reply::{self, Reply},
    status::Refusal,
};

/// Bytes of one message; larger ones end the session.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A WebSocket to a client.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A request that can become a WebSocket.
pub struct Offer {
    request: Request<Incoming>,
    accept: String,
    pub protocol: &'static str,
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

impl Offer {
    /// Picks the first of `known` protocols that the client offers.
    pub fn of(request: Request<Incoming>, known: &[&'static str]) -> Result<Self, Refusal> {
        let headers = request.headers();
        let upgrades = header(headers, "connection").to_ascii_lowercase().contains("upgrade")
            && header(headers, "upgrade").eq_ignore_ascii_case("websocket");
        let key = header(headers, "sec-websocket-key");
        if !upgrades || key.is_empty() || header(headers, "sec-websocket-version") != "13" {
            return Err(Refusal::bad_request(
                "Upgrade request required: a WebSocket (RFC 6455) is needed here",
            ));
        }
        let offered: Vec<&str> = headers
            .get_all("sec-websocket-protocol")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(str::trim)
            .collect();
        let protocol = offered.iter().find_map(|o| known.iter().find(|k| *k == o)).copied();
        let Some(protocol) = protocol else {
            return Err(Refusal::bad_request(format!(
                "unable to upgrade: the client offers the protocols {offered:?}, the server knows {known:?}"
            )));
        };
        let accept = derive_accept_key(key.as_bytes());
        Ok(Self { request, accept, protocol })
    }

    /// The answer that switches protocols, and the socket that is there afterwards.
    pub fn accept(self) -> (Reply, impl Future<Output = Result<Socket, hyper::Error>> + Send + 'static) {
        let mut answer = reply::reply(StatusCode::SWITCHING_PROTOCOLS, "text/plain", reply::full(""));
        let headers = answer.headers_mut();
        headers.clear();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("sec-websocket-protocol", HeaderValue::from_static(self.protocol));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert("sec-websocket-accept", accept);
        }
        let upgraded = hyper::upgrade::on(self.request);
        let socket = async move {
            let config = WebSocketConfig::default()
                .max_message_size(Some(MESSAGE_BYTES_MAX))
                .max_frame_size(Some(MESSAGE_BYTES_MAX));
            let io = TokioIo::new(upgraded.await?);
            Ok(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await)
        };
        (answer, socket)
    }
}
