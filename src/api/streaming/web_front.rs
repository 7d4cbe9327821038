//! A session over a WebSocket, `v5.channel.k8s.io` and `v4.channel.k8s.io`: every message begins
//! with the number of its channel
//! (`k8s.io/apimachinery/pkg/util/remotecommand`, `client-go/tools/remotecommand/websocket.go`).

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    session::{Front, Output, Said, status, terminal_size},
    websocket::Socket,
};
use crate::streams::{Exit, Wanted};

pub const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the second byte names a channel that the client has closed.
const CLOSE: u8 = 255;

pub struct WebFront(Socket);

/// Tells the client, on the lowest output channel, that the session stands.
pub async fn begin(socket: Socket, wanted: Wanted) -> Option<WebFront> {
    let mut front = WebFront(socket);
    let first = match wanted {
        Wanted { stdout: true, .. } => STDOUT,
        Wanted { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    front.send(first, &[]).await.then_some(front)
}

impl WebFront {
    async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.0.send(Message::Binary(message.into())).await.is_ok()
    }
}

impl Front for WebFront {
    async fn receive(&mut self) -> Option<Bytes> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(bytes))) => return Some(bytes),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
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
        self.send(ERROR, status(exit).to_string().as_bytes()).await;
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = self.0.close(Some(normal)).await;
        // The client answers the close; what it says before that is of no interest.
        while let Some(Ok(_)) = self.0.next().await {}
    }
}
