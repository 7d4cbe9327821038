//! `pods/exec` and `pods/attach` over `v5.channel.k8s.io` and `v4.channel.k8s.io`: every message
//! begins with the number of its channel
//! (`k8s.io/apimachinery/pkg/util/remotecommand`, `client-go/tools/remotecommand/websocket.go`).

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{Request, body::Incoming};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    pod, refused, target, way_to,
    websocket::{Offer, Socket},
};
use crate::{
    api::{reply::Reply, status::Refusal, verbs::Call},
    streams::{Exit, Reader, Session, TerminalSize, Wanted},
    tasks::CancellationToken,
};

const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Version 5: the second byte names a channel that the client has closed.
const CLOSE: u8 = 255;
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;

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
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        let message =
            format!("cannot exec or attach to a container in a completed pod; current phase is {phase}");
        return Err(Refusal::bad_request(message));
    }
    let nodes = way_to(call, &target.node)?;
    let offer = Offer::of(request, PROTOCOLS)?;
    let session =
        if exec { nodes.exec(&target, &command, wanted).await } else { nodes.attach(&target, wanted).await };
    let session = session.map_err(refused)?;
    let (answer, socket) = offer.accept();
    let stop = call.api.stop.clone();
    call.api.sessions.spawn(async move {
        match socket.await {
            Ok(socket) => carry(socket, session, stop).await,
            Err(error) => tracing::debug!(%error, "a session's upgrade"),
        }
    });
    Ok(answer)
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// One read of an output, or never when there is none.
async fn read(output: Option<&mut Reader>, buffer: &mut [u8]) -> usize {
    match output {
        Some(output) => output.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// Carries bytes until the command has ended and its output is out, or the client is gone.
async fn carry(mut socket: Socket, session: Session, stop: CancellationToken) {
    let Session { mut stdin, mut stdout, mut stderr, resize, mut exit } = session;
    // The lowest output channel says that the session stands.
    let first = if stdout.is_some() {
        STDOUT
    } else if stderr.is_some() {
        STDERR
    } else {
        ERROR
    };
    if socket.send(framed(first, &[])).await.is_err() {
        return;
    }
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut ended: Option<Exit> = None;
    loop {
        if ended.is_some() && stdout.is_none() && stderr.is_none() {
            break;
        }
        tokio::select! {
            () = stop.cancelled() => {
                ended = Some(Exit::Failed("the server is stopping".to_owned()));
                break;
            }
            count = read(stdout.as_mut(), &mut out) => {
                if count == 0 {
                    stdout = None;
                } else if socket.send(framed(STDOUT, &out[..count])).await.is_err() {
                    return;
                }
            }
            count = read(stderr.as_mut(), &mut err) => {
                if count == 0 {
                    stderr = None;
                } else if socket.send(framed(STDERR, &err[..count])).await.is_err() {
                    return;
                }
            }
            code = &mut exit, if ended.is_none() => {
                ended = Some(code.unwrap_or_else(|_| Exit::Failed("the connection to the node was lost".to_owned())));
            }
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => client_says(&bytes, &mut stdin, &resize).await,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }
    let status = status(ended.as_ref()).to_string();
    let _ = socket.send(framed(ERROR, status.as_bytes())).await;
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = socket.close(Some(normal)).await;
    // The client answers the close; what it says before that is of no interest.
    while let Some(Ok(_)) = socket.next().await {}
}

async fn client_says(
    bytes: &Bytes,
    stdin: &mut Option<crate::streams::Writer>,
    resize: &tokio::sync::mpsc::Sender<TerminalSize>,
) {
    let Some((channel, rest)) = bytes.split_first() else { return };
    match *channel {
        STDIN => {
            let broken = match stdin {
                Some(input) => input.write_all(rest).await.is_err() || input.flush().await.is_err(),
                None => false,
            };
            if broken {
                *stdin = None;
            }
        }
        RESIZE => {
            let size: Value = serde_json::from_slice(rest).unwrap_or_default();
            let number = |field: &str| size[field].as_u64().and_then(|n| u16::try_from(n).ok());
            if let (Some(width), Some(height)) = (number("Width"), number("Height")) {
                let _ = resize.try_send(TerminalSize { width, height });
            }
        }
        CLOSE if rest.first() == Some(&STDIN) => {
            if let Some(mut input) = stdin.take() {
                let _ = input.shutdown().await;
            }
        }
        _ => {}
    }
}

/// How the command ended, as the error channel says it.
fn status(exit: Option<&Exit>) -> Value {
    match exit {
        Some(Exit::Code(0)) => json!({"metadata": {}, "status": "Success"}),
        Some(Exit::Code(code)) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Some(Exit::Failed(message)) => json!({"metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": message, "details": {"causes": [{"message": message}]}, "code": 500}),
        None => json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": "the session ended without a word"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_told_as_a_cause() {
        assert_eq!(status(Some(&Exit::Code(0)))["status"], "Success");
        let three = status(Some(&Exit::Code(3)));
        assert_eq!(three["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
