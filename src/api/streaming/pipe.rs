//! What SPDY frames travel in: a connection that was upgraded to SPDY/3.1, or the binary messages
//! of a WebSocket.

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::websocket::Socket;

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;

pub enum Pipe {
    Web(Box<Socket>),
    Plain(TokioIo<Upgraded>),
}

impl Pipe {
    /// The next bytes; `None` at the end. Loses nothing when it is dropped.
    pub async fn receive(&mut self) -> Option<Bytes> {
        match self {
            Self::Web(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => return Some(bytes),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                }
            },
            Self::Plain(io) => {
                let mut bytes = BytesMut::with_capacity(CHUNK_BYTES);
                let count = io.read_buf(&mut bytes).await.unwrap_or(0);
                (count > 0).then(|| bytes.freeze())
            }
        }
    }

    /// Sends a frame; whether the other side is still there.
    pub async fn send(&mut self, frame: Vec<u8>) -> bool {
        match self {
            Self::Web(socket) => socket.send(Message::Binary(frame.into())).await.is_ok(),
            Self::Plain(io) => io.write_all(&frame).await.is_ok() && io.flush().await.is_ok(),
        }
    }

    /// Says that nothing more is sent.
    pub async fn end(&mut self) {
        // Who has gone need not be told.
        let _ = match self {
            Self::Web(socket) => SinkExt::close(&mut **socket).await.map_err(drop),
            Self::Plain(io) => io.shutdown().await.map_err(drop),
        };
    }
}
