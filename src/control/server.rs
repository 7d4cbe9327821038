//! The daemon's side of the socket.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
};

use super::{ControlError, LINES_MAX, Line, LocalNode, REQUEST_BYTES_MAX, Request, execute, frames, socket};
use crate::{image::ImageStore, mqtt::stream::Mux, tasks::CancellationToken};

/// Conversations at a time; more wait in the socket's queue.
const CONVERSATIONS_MAX: usize = 8;

/// The bound socket.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    images: ImageStore,
    node: Option<Arc<dyn LocalNode>>,
}

impl Server {
    /// Binds the socket, replacing one that a killed daemon left.
    pub fn bind(run_dir: &Path, images: ImageStore) -> Result<Self, ControlError> {
        let path = socket(run_dir);
        let failed = |operation| {
            let path = path.clone();
            move |source| ControlError::Io { operation, path, source }
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed("bind"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        Ok(Self { listener, path, images, node: None })
    }

    /// Shows a node as well.
    #[must_use]
    pub fn with_node(self, node: Arc<dyn LocalNode>) -> Self {
        Self { node: Some(node), ..self }
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut conversations = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept(), if conversations.len() < CONVERSATIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        conversations.spawn(converse(stream, self.images.clone(), self.node.clone()));
                    }
                    Err(error) => tracing::warn!(%error, "accepting on the control socket"),
                },
                Some(_) = conversations.join_next() => {}
            }
        }
        let _ = fs::remove_file(&self.path);
        Ok(())
    }
}

async fn converse(stream: UnixStream, images: ImageStore, node: Option<Arc<dyn LocalNode>>) {
    let (read, mut write) = stream.into_split();
    let mut request = String::new();
    let mut limited = BufReader::new(read).take(REQUEST_BYTES_MAX as u64);
    if limited.read_line(&mut request).await.is_err() {
        return;
    }
    let request = serde_json::from_str::<Request>(&request);
    if let (Ok(Request::Streams), Some(node)) = (&request, &node) {
        return serve_streams(limited.into_inner(), write, node).await;
    }
    let (send, mut lines) = mpsc::channel(LINES_MAX);
    let work = async {
        match request {
            Ok(Request::ListPods | Request::RestartPod { .. } | Request::Streams) if node.is_none() => {
                let _ = send.send(Line::Error("this daemon runs no pods".to_owned())).await;
            }
            Ok(Request::ListPods) => {
                let pods = node.iter().flat_map(|node| node.pods()).collect();
                let _ = send.send(Line::Pods(pods)).await;
            }
            Ok(Request::RestartPod { namespace, pod, container }) => {
                let Some(node) = &node else { return };
                let last = match node.restart(&namespace, &pod, container).await {
                    Ok(()) => Line::Pods(Vec::new()),
                    Err(error) => Line::Error(error),
                };
                let _ = send.send(last).await;
            }
            Ok(request) => execute(&images, request, &send).await,
            Err(error) => {
                let _ = send.send(Line::Error(format!("the request is not understood: {error}"))).await;
            }
        }
        drop(send);
    };
    let answer = async {
        while let Some(line) = lines.recv().await {
            let mut text = serde_json::to_vec(&line).expect("lines are plain data");
            text.push(b'\n');
            if write.write_all(&text).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(work, answer);
}

/// Serves streams until the asker hangs up.
async fn serve_streams(read: BufReader<OwnedReadHalf>, write: OwnedWriteHalf, node: &Arc<dyn LocalNode>) {
    let (bus, writing) = frames::bus(write);
    let mux = Mux::new(bus, |_| String::new());
    let mut serving = JoinSet::new();
    let reading = frames::each(read, |frame| {
        while serving.try_join_next().is_some() {}
        if let Some((stream, request)) = mux.heard(frames::PEER, &frame) {
            serving.spawn(node.serve(stream, request));
        }
    });
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    mux.lost(frames::PEER);
}
