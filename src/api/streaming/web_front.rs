//! A session over a WebSocket: every message begins with the number of its channel. `v5.channel.k8s.io`
//! closes single channels, `v4.…` tells the end as a Status, those before it as a text on failure only
//! (`k8s.io/apimachinery/pkg/util/remotecommand`, `client-go/tools/remotecommand/websocket.go`).

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    session::{Front, Output, Said, status, terminal_size},
    websocket::{Framing, Socket},
};
use crate::streams::{Exit, Wanted};

pub const PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the second byte names a channel that the client has closed.
const CLOSE: u8 = 255;

pub struct WebFront {
    socket: Socket,
    protocol: &'static str,
    framing: Framing,
}

/// Tells the client, on the lowest output channel, that the session stands.
pub async fn begin(socket: Socket, protocol: &'static str, wanted: Wanted) -> Option<WebFront> {
    let mut front = WebFront { socket, protocol, framing: Framing::of(protocol) };
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    front.send(first, &[]).await.then_some(front)
}

impl WebFront {
    async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.socket.send(self.framing.message(channel, bytes)).await.is_ok()
    }
}

impl Front for WebFront {
    async fn receive(&mut self) -> Option<Bytes> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(message)) => {
                    if let Some(bytes) = self.framing.read(message) {
                        return Some(bytes);
                    }
                }
            }
        }
    }

    async fn understand(&mut self, bytes: Bytes) -> Option<Vec<Said>> {
        let Some((channel, rest)) = bytes.split_first() else { return Some(Vec::new()) };
        let said = match *channel {
            STDIN => Some(Said::Input(bytes.slice(1..))),
            RESIZE => terminal_size(rest).map(Said::Resized),
            CLOSE if rest.first() == Some(&STDIN) => Some(Said::InputEnded),
            _ => None,
        };
        Some(said.into_iter().collect())
    }

    fn is_ready(&self) -> bool {
        true
    }

    async fn say(&mut self, output: Output, bytes: &[u8]) -> bool {
        self.send(if output == Output::Stdout { STDOUT } else { STDERR }, bytes).await
    }

    async fn finish(mut self, exit: &Exit) {
        let status = status(exit);
        if self.protocol.starts_with('v') {
            self.send(ERROR, status.to_string().as_bytes()).await;
        } else if let Some(message) = status["message"].as_str() {
            self.send(ERROR, message.as_bytes()).await;
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.socket.close(Some(normal)).await;
        // The client answers the close; what it says before that is of no interest.
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}
