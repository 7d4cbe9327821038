//! systemd's readiness protocol (`sd_notify(3)`): datagrams to `$NOTIFY_SOCKET`.

use std::{
    convert::Infallible,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use crate::tasks::CancellationToken;

/// Says that the daemon serves.
pub fn ready() {
    send("READY=1");
}

/// Says that the daemon is on its way out.
pub fn stopping() {
    send("STOPPING=1");
}

/// Says that the daemon is alive, every `interval`: from a task, so that a stuck runtime is noticed.
pub async fn watchdog(interval: Duration, stop: CancellationToken) -> Result<(), Infallible> {
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        send("WATCHDOG=1");
    }
    Ok(())
}

/// How often systemd wants to hear from us, if at all: half of what it allows.
pub fn watchdog_interval() -> Option<Duration> {
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(micros / 2))
}

/// Without a socket, or with one that does not answer, nothing happens: nobody asked.
fn send(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "telling systemd {state}");
    }
}
