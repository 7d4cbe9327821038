//! The upgrade of a request to a WebSocket (RFC 6455), and its frames.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
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
        Message,
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

/// How messages carry the number of a channel and its bytes (`apimachinery/pkg/util/httpstream/wsstream`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The number as a byte, then the bytes.
    Binary,
    /// The number as a digit, then the bytes in base64.
    Base64,
}

impl Framing {
    /// That of a protocol (`v4.base64.channel.k8s.io`).
    pub fn of(protocol: &str) -> Self {
        if protocol.contains("base64.") { Self::Base64 } else { Self::Binary }
    }

    pub fn message(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Binary => Message::Binary([&[channel], bytes].concat().into()),
            Self::Base64 => {
                let digit = char::from(b'0' + channel);
                Message::Text(format!("{digit}{}", STANDARD.encode(bytes)).into())
            }
        }
    }

    /// The number of the channel and, behind it, the bytes; clients send texts also where bytes are
    /// meant. `None`: no message of a channel.
    pub fn read(self, message: Message) -> Option<Bytes> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        match self {
            Self::Binary => Some(bytes),
            Self::Base64 => {
                let (digit, rest) = bytes.split_first()?;
                let number = digit.checked_sub(b'0')?;
                Some([vec![number], STANDARD.decode(rest).ok()?].concat().into())
            }
        }
    }
}

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
    /// Picks the first of the protocols offered that is `known`; an empty one is that of clients which
    /// offer none.
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
        let offered = if offered.is_empty() { vec![""] } else { offered };
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
        if !self.protocol.is_empty() {
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(self.protocol));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_framed_as_their_protocol_says() {
        for (protocol, framing, message) in [
            ("v5.channel.k8s.io", Framing::Binary, Message::Binary(Bytes::from_static(b"\x01hi"))),
            ("", Framing::Binary, Message::Binary(Bytes::from_static(b"\x01hi"))),
            ("v4.base64.channel.k8s.io", Framing::Base64, Message::Text("1aGk=".into())),
        ] {
            assert_eq!(Framing::of(protocol), framing);
            assert_eq!(framing.message(1, b"hi"), message);
            assert_eq!(framing.read(message).unwrap(), b"\x01hi"[..]);
        }
        assert_eq!(Framing::Binary.read(Message::Text("\u{0}x".into())).unwrap(), b"\x00x"[..]);
        for no_message in [Message::Text("1!".into()), Message::Text("".into()), Message::Ping(Bytes::new())]
        {
            assert_eq!(Framing::Base64.read(no_message), None);
        }
    }
}
