//! A session over SPDY/3.1, as clients before WebSockets open it: a stream for errors and one for
//! each of stdin, stdout, stderr and the terminal's size, told apart by the header `streamtype`
//! (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`).

use std::time::Duration;

use bytes::Bytes;

use super::{
    pipe::Pipe,
    session::{Front, Output, Said, status, terminal_size},
    spdy::{Decoder, Encoder, Frame, REFUSED_STREAM},
};
use crate::streams::{Exit, Wanted};

/// The first tells the exit code as a Status, the others as a text.
pub const PROTOCOLS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// How long a client may take to go once it has been told the end.
const GOODBYE: Duration = Duration::from_secs(10);

/// The ids of a session's streams.
#[derive(Debug, Default)]
struct Ids {
    error: Option<u32>,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

pub struct SpdyFront {
    pipe: Pipe,
    wanted: Wanted,
    protocol: &'static str,
    decoder: Decoder,
    encoder: Encoder,
    ids: Ids,
}

impl SpdyFront {
    pub fn new(pipe: Pipe, wanted: Wanted, protocol: &'static str) -> Self {
        let (decoder, encoder) = (Decoder::default(), Encoder::default());
        Self { pipe, wanted, protocol, decoder, encoder, ids: Ids::default() }
    }

    /// Accepts a stream that the session has a place for.
    async fn open(&mut self, stream: u32, headers: &[(String, String)]) -> bool {
        let kind = headers.iter().find(|(k, _)| k == "streamtype").map_or("", |(_, v)| v.as_str());
        let wanted = self.wanted;
        let place = match kind {
            "error" => Some(&mut self.ids.error),
            "stdin" if wanted.stdin => Some(&mut self.ids.stdin),
            "stdout" if wanted.stdout => Some(&mut self.ids.stdout),
            "stderr" if wanted.stderr => Some(&mut self.ids.stderr),
            "resize" if wanted.tty => Some(&mut self.ids.resize),
            _ => None,
        };
        match place {
            Some(place) if place.is_none() => {
                *place = Some(stream);
                let Ok(reply) = self.encoder.reply(stream) else { return false };
                self.pipe.send(reply).await
            }
            _ => self.pipe.send(Encoder::reset(stream, REFUSED_STREAM)).await,
        }
    }
}

impl Front for SpdyFront {
    async fn receive(&mut self) -> Option<Bytes> {
        self.pipe.receive().await
    }

    async fn understand(&mut self, bytes: Bytes) -> Option<Vec<Said>> {
        self.decoder.push(&bytes);
        let mut said = Vec::new();
        loop {
            match self.decoder.next() {
                Ok(Some(Frame::Open { stream, headers, .. })) => {
                    if !self.open(stream, &headers).await {
                        return None;
                    }
                }
                Ok(Some(Frame::Data { stream, bytes, fin })) => {
                    if Some(stream) == self.ids.stdin {
                        if !bytes.is_empty() {
                            said.push(Said::Input(bytes.into()));
                        }
                        if fin {
                            said.push(Said::InputEnded);
                        }
                    } else if Some(stream) == self.ids.resize {
                        let lines = bytes.split(|b| *b == b'\n');
                        said.extend(lines.filter_map(terminal_size).map(Said::Resized));
                    }
                }
                Ok(Some(Frame::Ping(id))) => {
                    if !self.pipe.send(Encoder::ping(id)).await {
                        return None;
                    }
                }
                Ok(Some(Frame::Reset { stream, .. })) if Some(stream) == self.ids.stdin => {
                    said.push(Said::InputEnded);
                }
                Ok(Some(Frame::GoAway)) => return None,
                Ok(Some(Frame::Reset { .. } | Frame::Other)) => {}
                Ok(None) => return Some(said),
                Err(error) => {
                    tracing::debug!(%error, "a session");
                    return None;
                }
            }
        }
    }

    fn is_ready(&self) -> bool {
        let Self { ids, wanted, .. } = self;
        ids.error.is_some()
            && (ids.stdin.is_some() || !wanted.stdin)
            && (ids.stdout.is_some() || !wanted.stdout)
            && (ids.stderr.is_some() || !wanted.stderr)
    }

    async fn say(&mut self, output: Output, bytes: &[u8]) -> bool {
        let stream = if output == Output::Stdout { self.ids.stdout } else { self.ids.stderr };
        match stream {
            Some(stream) => self.pipe.send(Encoder::data(stream, bytes, false)).await,
            None => true,
        }
    }

    async fn finish(mut self, exit: &Exit) {
        for stream in [self.ids.stdout, self.ids.stderr].into_iter().flatten() {
            self.pipe.send(Encoder::data(stream, b"", true)).await;
        }
        let told = status(exit);
        let text = match exit {
            _ if self.protocol == PROTOCOLS[0] => told.to_string(),
            Exit::Code(0) => String::new(),
            _ => told["message"].as_str().unwrap_or_default().to_owned(),
        };
        if let Some(error) = self.ids.error {
            self.pipe.send(Encoder::data(error, text.as_bytes(), true)).await;
        }
        // Closing while the client still sends would take from it what it has not read yet.
        self.pipe.end().await;
        let _ = tokio::time::timeout(GOODBYE, async { while self.pipe.receive().await.is_some() {} }).await;
    }
}
