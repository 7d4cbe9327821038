//! The daemon's side of the socket.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

use super::{ControlError, LINES_MAX, Line, REQUEST_BYTES_MAX, Request, execute, socket};
use crate::{image::ImageStore, tasks::CancellationToken};

/// Conversations at a time; more wait in the socket's queue.
const CONVERSATIONS_MAX: usize = 8;

/// The bound socket.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    images: ImageStore,
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
        Ok(Self { listener, path, images })
    }

    /// Serves until told to stop.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Infallible> {
        let mut conversations = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept(), if conversations.len() < CONVERSATIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        conversations.spawn(converse(stream, self.images.clone()));
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

async fn converse(stream: UnixStream, images: ImageStore) {
    let (read, mut write) = stream.into_split();
    let mut request = String::new();
    let mut limited = BufReader::new(read).take(REQUEST_BYTES_MAX as u64);
    if limited.read_line(&mut request).await.is_err() {
        return;
    }
    let (send, mut lines) = mpsc::channel(LINES_MAX);
    let work = async {
        match serde_json::from_str::<Request>(&request) {
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
