//! The upgrade of a request: to a WebSocket, or, for clients before that, to SPDY/3.1
//! (`k8s.io/apimachinery/pkg/util/httpstream`).

use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue, UPGRADE},
};
use hyper_util::rt::TokioIo;

use super::{
    pipe::Pipe,
    websocket::{Offer, header},
};
use crate::api::{
    reply::{self, Reply},
    status::Refusal,
};

const SPDY: &str = "SPDY/3.1";
const PROTOCOL: &str = "x-stream-protocol-version";

/// What a client wants to speak.
pub enum Offered {
    Web(Offer),
    Spdy(SpdyOffer),
}

/// A request that can become a SPDY connection.
pub struct SpdyOffer {
    request: Request<Incoming>,
    pub protocol: &'static str,
}

/// Reads the upgrade that a request asks for; `web` and `spdy` are the protocols known within each.
pub fn offered(
    request: Request<Incoming>,
    web: &[&'static str],
    spdy: &[&'static str],
) -> Result<Offered, Refusal> {
    let headers = request.headers();
    let upgrades = header(headers, "connection").to_ascii_lowercase().contains("upgrade");
    if !upgrades || !header(headers, "upgrade").eq_ignore_ascii_case(SPDY) {
        return Offer::of(request, web).map(Offered::Web);
    }
    let offers: Vec<&str> = headers
        .get_all(PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .collect();
    // Who offers nothing is from before there were versions, and speaks the last, oldest one.
    let protocol = match offers.as_slice() {
        [] => spdy.last().copied(),
        _ => spdy.iter().find(|known| offers.contains(known)).copied(),
    };
    let Some(protocol) = protocol else {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {spdy:?}"
        );
        return Err(Refusal::Forbidden { resource: String::new(), name: String::new(), message });
    };
    Ok(Offered::Spdy(SpdyOffer { request, protocol }))
}

impl SpdyOffer {
    /// The answer that switches protocols, and the connection that is there afterwards.
    pub fn accept(self) -> (Reply, impl Future<Output = Result<Pipe, hyper::Error>> + Send + 'static) {
        let mut answer = reply::reply(StatusCode::SWITCHING_PROTOCOLS, "text/plain", reply::full(""));
        let headers = answer.headers_mut();
        headers.clear();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
        headers.insert(PROTOCOL, HeaderValue::from_static(self.protocol));
        let upgraded = hyper::upgrade::on(self.request);
        (answer, async move { Ok(Pipe::Plain(TokioIo::new(upgraded.await?))) })
    }
}
