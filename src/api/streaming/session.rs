//! `pods/exec` and `pods/attach`: a command's streams, carried by a [`Front`] that speaks to the
//! client over WebSocket (`web_front`) or SPDY (`spdy_front`).
//!
//! Invariants: what the client sends never keeps what it is sent from flowing, and the other way
//! round; everything between is bounded.

use std::collections::VecDeque;

use bytes::Bytes;
use hyper::{Request, StatusCode, body::Incoming};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    pod, refused,
    spdy_front::{self, SpdyFront},
    target,
    upgrade::{self, Offered},
    way_to, web_front,
};
use crate::{
    api::{
        reply::{self, Reply},
        status::Refusal,
        verbs::Call,
    },
    streams::{Exit, Reader, Session, StreamError, TerminalSize, Wanted, Writer},
    tasks::CancellationToken,
};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks of input that wait for a slow command before the client is slowed down.
const INPUT_MAX: usize = 16;
/// How long a client may take to open its streams, as upstream.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// An output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Input(Bytes),
    InputEnded,
    Resized(TerminalSize),
}

/// The client's side of a session.
pub trait Front: Send {
    /// The next bytes of the client; `None` when it is gone. Loses nothing when it is dropped.
    fn receive(&mut self) -> impl Future<Output = Option<Bytes>> + Send;

    /// What the bytes mean; `None` when the client breaks the protocol or is gone.
    fn understand(&mut self, bytes: Bytes) -> impl Future<Output = Option<Vec<Said>>> + Send;

    /// Whether everything is there that outputs need.
    fn is_ready(&self) -> bool;

    /// Sends output; whether the client is still there.
    fn say(&mut self, output: Output, bytes: &[u8]) -> impl Future<Output = bool> + Send;

    /// Tells how the command ended and ends the session.
    fn finish(self, exit: &Exit) -> impl Future<Output = ()> + Send;
}

pub async fn serve(call: &Call, exec: bool, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let query = &call.query;
    let wanted = Wanted {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr") && !query.flag("tty"),
        tty: query.flag("tty"),
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if exec && command.is_empty() {
        return Err(Refusal::bad_request("you must specify a command"));
    }
    let pod = pod(call)?;
    let container = query.get("container").unwrap_or_default();
    let target = target(call, &pod, container)?.ok_or_else(|| {
        Refusal::bad_request(format!("pod {} does not have a host assigned", call.path.name))
    })?;
    let nodes = way_to(call, &target.node)?;
    let offered = upgrade::offered(request, web_front::PROTOCOLS, spdy_front::PROTOCOLS)?;
    let session =
        if exec { nodes.exec(&target, &command, wanted).await } else { nodes.attach(&target, wanted).await };
    let session = match session {
        // Upstream has upgraded the client's connection before it asks the node.
        Err(StreamError::NotFound(why)) => return Ok(turn_away(call, offered, wanted, why)),
        session => session.map_err(refused)?,
    };
    let stop = call.api.stop.clone();
    let sessions = &call.api.sessions;
    Ok(match offered {
        Offered::Web(offer) => {
            let protocol = offer.protocol;
            let (answer, socket) = offer.accept();
            sessions.spawn(async move {
                match socket.await {
                    Ok(socket) => {
                        if let Some(front) = web_front::begin(socket, protocol, wanted).await {
                            carry(front, session, stop).await;
                        }
                    }
                    Err(error) => tracing::debug!(%error, "a session's upgrade"),
                }
            });
            answer
        }
        Offered::Spdy(offer) => {
            let protocol = offer.protocol;
            let (answer, pipe) = offer.accept();
            sessions.spawn(async move {
                match pipe.await {
                    Ok(pipe) => carry(SpdyFront::new(pipe, wanted, protocol), session, stop).await,
                    Err(error) => tracing::debug!(%error, "a session's upgrade"),
                }
            });
            answer
        }
    })
}

/// Tells a client that the node has refused: over a WebSocket as the end of its session, to older clients instead of
/// the upgrade.
fn turn_away(call: &Call, offered: Offered, wanted: Wanted, why: String) -> Reply {
    let Offered::Web(offer) = offered else { return reply::text(StatusCode::INTERNAL_SERVER_ERROR, why) };
    let protocol = offer.protocol;
    let (answer, socket) = offer.accept();
    call.api.sessions.spawn(async move {
        let Ok(socket) = socket.await else { return };
        if let Some(front) = web_front::begin(socket, protocol, wanted).await {
            front.finish(&Exit::Failed(format!("unable to upgrade connection: {why}"))).await;
        }
    });
    answer
}

/// One read of an output, or never when there is none.
async fn read(output: Option<&mut Reader>, buffer: &mut [u8]) -> usize {
    match output {
        Some(output) => output.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Writes what the client says to the command, until it says that its input has ended (`None`).
async fn feed(stdin: Option<Writer>, mut input: mpsc::Receiver<Option<Bytes>>) {
    let Some(mut stdin) = stdin else { return };
    while let Some(Some(bytes)) = input.recv().await {
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    let _ = stdin.shutdown().await;
}

/// Carries bytes until the command has ended and its output is out, or the client is gone.
async fn carry(mut front: impl Front, session: Session, stop: CancellationToken) {
    let Session { stdin, mut stdout, mut stderr, resize, mut exit } = session;
    let (to_stdin, input) = mpsc::channel(INPUT_MAX);
    let mut feeding = std::pin::pin!(feed(stdin, input));
    let mut fed = false;
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut ended: Option<Exit> = None;
    let mut waiting: VecDeque<Option<Bytes>> = VecDeque::new();
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let ready = front.is_ready();
        if ready && ended.is_some() && stdout.is_none() && stderr.is_none() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => {
                ended = Some(Exit::Failed("the server is stopping".to_owned()));
                break;
            }
            () = tokio::time::sleep_until(deadline), if !ready => {
                return tracing::debug!("a session's client has not opened its streams in time");
            }
            count = read(stdout.as_mut(), &mut out), if ready => {
                if count == 0 {
                    stdout = None;
                } else if !front.say(Output::Stdout, &out[..count]).await {
                    return;
                }
            }
            count = read(stderr.as_mut(), &mut err), if ready => {
                if count == 0 {
                    stderr = None;
                } else if !front.say(Output::Stderr, &err[..count]).await {
                    return;
                }
            }
            code = &mut exit, if ended.is_none() => {
                ended = Some(code.unwrap_or_else(|_| Exit::Failed("the connection to the node was lost".to_owned())));
            }
            () = &mut feeding, if !fed => fed = true,
            permit = to_stdin.reserve(), if !waiting.is_empty() => match (permit, waiting.pop_front()) {
                (Ok(permit), Some(input)) => permit.send(input),
                // The command reads no more.
                _ => waiting.clear(),
            },
            bytes = front.receive(), if waiting.is_empty() => {
                let Some(bytes) = bytes else { return };
                let Some(said) = front.understand(bytes).await else { return };
                for word in said {
                    match word {
                        Said::Input(bytes) => waiting.push_back(Some(bytes)),
                        Said::InputEnded => waiting.push_back(None),
                        // A terminal that cannot keep up hears of the next size.
                        Said::Resized(size) => drop(resize.try_send(size)),
                    }
                }
            }
        }
    }
    let exit = ended.unwrap_or_else(|| Exit::Failed("the session ended without a word".to_owned()));
    front.finish(&exit).await;
}

/// A terminal's size as clients write it.
pub fn terminal_size(text: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let number = |field: &str| size[field].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(TerminalSize { width: number("Width")?, height: number("Height")? })
}

/// How the command ended, as the error channel says it.
pub fn status(exit: &Exit) -> Value {
    match exit {
        Exit::Code(0) => json!({"metadata": {}, "status": "Success"}),
        Exit::Code(code) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Exit::Failed(message) => json!({"metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": format!("Internal error occurred: {message}"),
            "details": {"causes": [{"message": message}]}, "code": 500}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that sends a lot before it reads anything.
    struct Flood {
        left: usize,
        heard: usize,
        ended: tokio::sync::oneshot::Sender<(usize, Exit)>,
    }

    impl Front for Flood {
        async fn receive(&mut self) -> Option<Bytes> {
            if self.left == 0 {
                return std::future::pending().await;
            }
            self.left -= 1;
            Some(Bytes::from(vec![b'x'; CHUNK_BYTES]))
        }

        async fn understand(&mut self, bytes: Bytes) -> Option<Vec<Said>> {
            let mut said = vec![Said::Input(bytes)];
            if self.left == 0 {
                said.push(Said::InputEnded);
            }
            Some(said)
        }

        fn is_ready(&self) -> bool {
            true
        }

        async fn say(&mut self, _: Output, bytes: &[u8]) -> bool {
            self.heard += bytes.len();
            true
        }

        async fn finish(self, exit: &Exit) {
            let _ = self.ended.send((self.heard, exit.clone()));
        }
    }

    #[tokio::test]
    async fn input_and_output_flow_at_once() {
        let (near, far) = tokio::io::duplex(1024);
        let (stdout, stdin) = tokio::io::split(near);
        let (resize, _) = mpsc::channel(1);
        let (code, exit) = tokio::sync::oneshot::channel();
        let cat = async move {
            let (mut read, mut write) = tokio::io::split(far);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
            let _ = code.send(Exit::Code(3));
        };
        let session = Session {
            stdin: Some(Box::new(stdin)),
            stdout: Some(Box::new(stdout)),
            stderr: None,
            resize,
            exit,
        };
        let (ended, told) = tokio::sync::oneshot::channel();
        let front = Flood { left: 64, heard: 0, ended };
        tokio::join!(cat, carry(front, session, CancellationToken::new()));
        assert_eq!(told.await.unwrap(), (64 * CHUNK_BYTES, Exit::Code(3)));
    }

    #[test]
    fn the_exit_code_is_told_as_a_cause() {
        assert_eq!(status(&Exit::Code(0))["status"], "Success");
        let three = status(&Exit::Code(3));
        assert_eq!(three["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
