//! Serves the streams that the master opens: logs, exec, attach, forwarded ports.
//!
//! In: a [`Request`] on a [`Stream`]. Out: its bytes, and an outcome. Everything asked for is checked
//! against the ledger: a stream reaches pods of this node only.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use k8s_openapi::api::core::v1::PodStatus;
use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
};

use super::{
    expose, launch, logs,
    record::{Wanted, container_id},
    shared::Shared,
    status,
};
use crate::{
    mqtt::{
        messages::{ItemKey, ItemKind},
        stream::{
            Incoming, LogOptions, Outcome, Place, Request, STDERR, STDIN, STDOUT, Stream, StreamSender,
        },
    },
    runtime::{self, ContainerState, ExecSpec, Session},
};

/// How much is read from a process at once (bytes).
const READ_BYTES: usize = 16 * 1024;
/// How long a connection inside of the pod may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pieces of a log that wait for their way out.
const LOG_PIECES_MAX: usize = 2;

/// Serves one stream to its end.
pub async fn serve(shared: Arc<Shared>, mut stream: Stream, request: Request) {
    let sender = stream.sender();
    let outcome = match request {
        Request::Logs { place, options } => read_logs(&shared, &mut stream, &place, options).await,
        Request::Exec { place, command, stdin, tty } => {
            exec(&shared, &mut stream, &place, ExecSpec { args: command, tty, stdin }).await
        }
        Request::Attach { place, stdin } => attach(&shared, &mut stream, &place, stdin).await,
        Request::PortForward { place, port } => forward(&shared, &mut stream, &place, port).await,
        Request::Node { path } => tell(&shared, &sender, &path).await,
    };
    let outcome = outcome.unwrap_or_else(|outcome| outcome);
    // The asker is gone when this fails.
    let _ = sender.end(&outcome).await;
}

async fn tell(shared: &Shared, sender: &StreamSender, path: &str) -> Result<Outcome, Outcome> {
    let text = expose::answer(shared, path).await;
    let text = text.ok_or_else(|| Outcome::refused("404 page not found\n"))?;
    sender.send(STDOUT, Bytes::from(text)).await.map_err(|e| Outcome::failed(e.to_string()))?;
    Ok(Outcome::default())
}

/// Tells the asker that the request is under way and is not refused any more.
async fn under_way(sender: &StreamSender) {
    // The asker is gone when this fails; the work that follows finds out.
    let _ = sender.opened().await;
}

/// A container of this node, with its newest attempt's number plus one.
struct Found {
    wanted: Wanted,
    attempts: u32,
    status: PodStatus,
}

fn pod(shared: &Shared, place: &Place) -> Result<Wanted, Outcome> {
    let missing = || Outcome::refused(format!("pod {:?} is not on this node", place.pod));
    let key = ItemKey::new(ItemKind::Pod, &place.namespace, &place.pod);
    let pod = shared.ledger.item(&key).and_then(|item| item.read().ok()).ok_or_else(missing)?;
    Some(Wanted::new(pod)).filter(|wanted| wanted.uid == place.uid).ok_or_else(missing)
}

fn find(shared: &Shared, place: &Place) -> Result<Found, Outcome> {
    let wanted = pod(shared, place)?;
    if wanted.container(&place.container).is_none() {
        let text = format!("container {} is not valid for pod {}", place.container, place.pod);
        return Err(Outcome::refused(text));
    }
    let record = shared.ledger.record(&wanted.uid).unwrap_or_default();
    Ok(Found { attempts: record.container(&place.container).attempts, wanted, status: record.status })
}

fn failed(error: runtime::Error) -> Outcome {
    match error {
        runtime::Error::NotFound(_) | runtime::Error::NotRunning(_) => {
            Outcome::refused("container not running")
        }
        error => Outcome::failed(error.to_string()),
    }
}

/// The id of the running attempt; `None`: nothing runs.
async fn running(shared: &Shared, place: &Place) -> Result<Option<String>, Outcome> {
    let found = find(shared, place)?;
    let Some(attempt) = found.attempts.checked_sub(1) else { return Ok(None) };
    let id = container_id(&found.wanted.uid, &place.container, attempt);
    let runs = matches!(shared.runtime.state(&id).await, Ok(ContainerState::Running { .. }));
    Ok(Some(id).filter(|_| runs))
}

/// Why a container has no log yet (`validateContainerLogStatus`).
fn waits(status: &PodStatus, place: &Place) -> Outcome {
    let state =
        status::of_container(status, &place.container).and_then(|c| c.state.as_ref()?.waiting.as_ref());
    let why = match state.and_then(|waiting| waiting.reason.as_deref()) {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "ContainerCreating",
    };
    let Place { container, pod, .. } = place;
    Outcome::refused(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
}

async fn read_logs(
    shared: &Arc<Shared>,
    stream: &mut Stream,
    place: &Place,
    options: LogOptions,
) -> Result<Outcome, Outcome> {
    let found = find(shared, place)?;
    let attempt = if options.previous {
        found.attempts.checked_sub(2).ok_or_else(|| {
            Outcome::refused(format!(
                "previous terminated container {:?} in pod {:?} not found",
                place.container, place.pod
            ))
        })?
    } else {
        found.attempts.checked_sub(1).ok_or_else(|| waits(&found.status, place))?
    };
    let path = launch::log_path(shared, &found.wanted, &place.container, attempt);
    let id = container_id(&found.wanted.uid, &place.container, attempt);
    let runtime = Arc::clone(&shared.runtime);
    let ended: Box<logs::Ended> = Box::new(move || {
        let (runtime, id) = (Arc::clone(&runtime), id.clone());
        Box::pin(async move {
            matches!(
                runtime.state(&id).await,
                Ok(ContainerState::Exited(_)) | Err(runtime::Error::NotFound(_))
            )
        })
    });
    let (pieces, mut incoming) = mpsc::channel(LOG_PIECES_MAX);
    let sender = stream.sender();
    under_way(&sender).await;
    let reading = async {
        let result = logs::send(&path, &options, &pieces, &*ended).await;
        drop(pieces);
        result
    };
    let sending = async {
        while let Some(piece) = incoming.recv().await {
            if sender.send(STDOUT, Bytes::from(piece)).await.is_err() {
                incoming.close();
            }
        }
    };
    let both = async { tokio::join!(reading, sending).0 };
    tokio::select! {
        result = both => match result {
            Ok(()) => Ok(Outcome::default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Outcome::default()),
            Err(error) => Err(Outcome::failed(format!("read {}: {error}", path.display()))),
        },
        () = hung_up(stream) => Ok(Outcome::default()),
    }
}

/// Resolves when the asker has ended the stream.
async fn hung_up(stream: &mut Stream) {
    while !matches!(stream.next().await, None | Some(Incoming::End(_))) {}
}

async fn exec(
    shared: &Arc<Shared>,
    stream: &mut Stream,
    place: &Place,
    spec: ExecSpec,
) -> Result<Outcome, Outcome> {
    let none = || Outcome::refused(format!("container not found ({:?})", place.container));
    let id = running(shared, place).await?.ok_or_else(none)?;
    let session = shared.runtime.exec(&id, &spec).await.map_err(|error| match error {
        runtime::Error::NotFound(_) | runtime::Error::NotRunning(_) => none(),
        error => Outcome::failed(format!(
            "error executing command in container: failed to exec in container: {error}"
        )),
    })?;
    under_way(&stream.sender()).await;
    bridge(stream, session).await
}

async fn attach(
    shared: &Arc<Shared>,
    stream: &mut Stream,
    place: &Place,
    stdin: bool,
) -> Result<Outcome, Outcome> {
    let none = || {
        let Place { container, pod, namespace, .. } = place;
        Outcome::refused(format!("container {container} not found in pod {pod}_{namespace}"))
    };
    let id = running(shared, place).await?.ok_or_else(none)?;
    let mut session = shared.runtime.attach(&id).await.map_err(|error| match error {
        runtime::Error::NotFound(_) | runtime::Error::NotRunning(_) => none(),
        error => Outcome::failed(format!("error attaching to container: {error}")),
    })?;
    if !stdin {
        session.stdin = None;
    }
    under_way(&stream.sender()).await;
    // How the container ended is its status' to tell: upstream gives no code here.
    bridge(stream, session).await.map(|outcome| Outcome { code: None, ..outcome })
}

type Output = Option<Box<dyn AsyncRead + Send + Unpin>>;

/// Reads an output to its end, into a channel of the stream.
async fn pour(output: Output, channel: u8, sender: &StreamSender) {
    let Some(mut output) = output else { return };
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        if sender.send(channel, Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
            return;
        }
    }
    // The asker is gone when this fails.
    let _ = sender.close(channel).await;
}

/// Feeds what comes into an input until that or the stream ends. A closed input stays closed, while
/// terminal sizes still pass.
async fn feed(
    stream: &mut Stream,
    mut input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) {
    while let Some(event) = stream.next().await {
        match event {
            Incoming::Data { channel: STDIN, bytes } => {
                if let Some(open) = &mut input {
                    let written = async {
                        open.write_all(&bytes).await?;
                        open.flush().await
                    };
                    if written.await.is_err() {
                        input = None;
                    }
                }
            }
            Incoming::Close { channel: STDIN } => {
                if let Some(mut open) = input.take() {
                    // The process has closed its end when this fails.
                    let _ = open.shutdown().await;
                }
            }
            Incoming::Resize { columns, rows } => {
                if let Some(resize) = &resize {
                    let _ = resize.send((columns, rows)).await;
                }
            }
            Incoming::Data { .. } | Incoming::Close { .. } | Incoming::Opened => {}
            Incoming::End(_) => return,
        }
    }
}

/// Joins a process's session to a stream.
async fn bridge(stream: &mut Stream, session: Session) -> Result<Outcome, Outcome> {
    let sender = stream.sender();
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let working = async {
        let ((), (), code) = tokio::join!(pour(stdout, STDOUT, &sender), pour(stderr, STDERR, &sender), exit);
        code
    };
    tokio::select! {
        code = working => match code {
            Ok(code) => Ok(Outcome { code: Some(code), ..Outcome::default() }),
            Err(error) => Err(failed(error)),
        },
        () = feed(stream, stdin, resize) => Ok(Outcome::failed("the client went away")),
    }
}

async fn forward(
    shared: &Arc<Shared>,
    stream: &mut Stream,
    place: &Place,
    port: u16,
) -> Result<Outcome, Outcome> {
    let wanted = pod(shared, place)?;
    let none = || Outcome::refused(format!("pod {:?} is not running", place.pod));
    let netns = if wanted.host_network() {
        None
    } else {
        let sandboxes = shared.runtime.sandboxes().await.map_err(failed)?;
        let spec = sandboxes.into_iter().find(|s| s.id == wanted.uid).ok_or_else(none)?;
        Some(shared.runtime.ensure_sandbox(&spec).await.map_err(failed)?)
    };
    let connection = connect_inside(netns, port).await.map_err(|error| {
        Outcome::failed(format!("failed to connect to localhost:{port} inside the pod: {error}"))
    })?;
    let (from, to) = connection.into_split();
    let sender = stream.sender();
    under_way(&sender).await;
    let from: Output = Some(Box::new(from));
    // Over when both directions are: an asker that has said all still listens.
    let pouring = pour(from, STDIN, &sender);
    let feeding = feed(stream, Some(Box::new(to)), None);
    tokio::select! {
        () = pouring => {}
        () = feeding => {}
    }
    Ok(Outcome::default())
}

/// Connects to a port of the loopback inside of a network namespace. The thread that enters the
/// namespace is used for nothing else and ends.
async fn connect_inside(netns: Option<PathBuf>, port: u16) -> std::io::Result<TcpStream> {
    let (reply, answer) = oneshot::channel();
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        // Nobody waits any more when this fails.
        let _ = reply.send(connect_here(netns.as_deref(), port));
    })?;
    let stream = answer.await.map_err(std::io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

fn connect_here(netns: Option<&Path>, port: u16) -> std::io::Result<std::net::TcpStream> {
    if let Some(path) = netns {
        setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&v4, CONNECT_TIMEOUT).or_else(|error| {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        std::net::TcpStream::connect_timeout(&v6, CONNECT_TIMEOUT).map_err(|_| error)
    })
}
