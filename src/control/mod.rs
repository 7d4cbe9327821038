//! What a user of this machine asks its daemon: image work, and the pods of this node as its ledger
//! has them, over a socket that only root can open.
//!
//! In: one [`Request`] as a line of JSON on `<run-dir>/control.sock`. Out: [`Line`]s of JSON until
//! the connection ends; after [`Request::Streams`] frames of streams, both ways. Without a daemon the
//! command line does the same image work ([`execute`]) itself.
//! Deliberately absent: changing what is wanted (it comes from the master).

mod client;
mod frames;
mod server;

use std::path::{Path, PathBuf};

pub use client::{ask, ask_node, streams};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
pub use server::Server;
use tokio::sync::{mpsc, watch};

use crate::{
    image::{Credentials, Depth, Error, Image, ImageStore, Images, Progress},
    mqtt::stream,
};

/// The node, as its daemon shows it to users of the board.
pub trait LocalNode: Send + Sync + 'static {
    /// The pods of this node: API objects with the status that the node gives them.
    fn pods(&self) -> Vec<serde_json::Value>;
    /// Starts the running containers of a pod anew, or one of them.
    fn restart<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        container: Option<String>,
    ) -> BoxFuture<'a, Result<(), String>>;
    /// Serves logs, a command or a port.
    fn serve(&self, stream: stream::Stream, request: stream::Request) -> BoxFuture<'static, ()>;
}

/// The longest request (bytes).
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Lines that may wait for a slow reader.
const LINES_MAX: usize = 16;

/// The socket of the daemon that uses this run directory.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    ListImages,
    PullImage {
        reference: String,
        username: String,
        password: String,
    },
    ImportImages {
        archive: PathBuf,
    },
    RemoveImage {
        reference: String,
    },
    PinImage {
        reference: String,
        pinned: bool,
    },
    ExportImage {
        reference: String,
        archive: PathBuf,
    },
    VerifyImages {
        contents: bool,
    },
    /// The node's pods.
    ListPods,
    RestartPod {
        namespace: String,
        pod: String,
        container: Option<String>,
    },
    /// Logs, commands and ports; the line is followed by frames.
    Streams,
}

/// One image, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    pub id: String,
    pub names: Vec<String>,
    pub digests: Vec<String>,
    pub size_bytes: u64,
    pub pinned: bool,
}

impl From<&Image> for ImageInfo {
    fn from(image: &Image) -> Self {
        Self {
            id: image.id.clone(),
            names: image.names.clone(),
            digests: image.digests.clone(),
            size_bytes: image.size_bytes,
            pinned: image.pinned,
        }
    }
}

/// A piece of the answer. The last one is `Images`, `Pods` or `Error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// (layer digest, bytes done, bytes in all).
    Progress(Vec<(String, u64, u64)>),
    Images(Vec<ImageInfo>),
    Pods(Vec<serde_json::Value>),
    Error(String),
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the daemon's answer is not understood: {0}")]
    Answer(serde_json::Error),
    #[error("the daemon ended the conversation early")]
    Ended,
    #[error("no daemon listens at {0} (--run-dir?)")]
    Absent(PathBuf),
}

/// Does what is asked; sends progress on the way and one last line.
pub async fn execute(images: &ImageStore, request: Request, lines: &mpsc::Sender<Line>) {
    let last = match perform(images, request, lines).await {
        Ok(images) => Line::Images(images),
        Err(error) => Line::Error(error.to_string()),
    };
    // Who does not read the answer does not want it.
    let _ = lines.send(last).await;
}

async fn perform(
    images: &ImageStore,
    request: Request,
    lines: &mpsc::Sender<Line>,
) -> Result<Vec<ImageInfo>, Error> {
    Ok(match request {
        Request::ListImages => images.list().iter().map(|image| ImageInfo::from(&**image)).collect(),
        Request::PullImage { reference, username, password } => {
            let login = (!username.is_empty()).then_some(Credentials { username, password });
            let (progress, seen) = watch::channel(Progress::default());
            let credentials: Vec<_> = login.into_iter().collect();
            let pull = images.pull(&reference, &credentials, Some(progress));
            // The pull drops its sender when it ends, which ends the forwarding.
            let (image, ()) = tokio::join!(pull, forward(seen, lines));
            let image = image?;
            vec![ImageInfo::from(&*image)]
        }
        Request::ImportImages { archive } => {
            images.import(&archive).await?.iter().map(|image| ImageInfo::from(&**image)).collect()
        }
        Request::ExportImage { reference, archive } => {
            let (progress, seen) = watch::channel(Progress::default());
            let (store, name) = (images.clone(), reference.clone());
            let export = tokio::task::spawn_blocking(move || {
                store.export(&name, &archive, |now| progress.send_modify(|shown| *shown = now))
            });
            let (done, ()) = tokio::join!(export, forward(seen, lines));
            done.expect("exporting does not panic")?;
            images.find(&reference).iter().map(|image| ImageInfo::from(&**image)).collect()
        }
        Request::VerifyImages { contents } => {
            let (store, depth) = (images.clone(), if contents { Depth::Contents } else { Depth::Sizes });
            let dropped = tokio::task::spawn_blocking(move || store.verify(depth));
            let dropped = dropped.await.expect("verifying does not panic")?;
            let info = |name: String| ImageInfo {
                id: String::new(),
                digests: Vec::new(),
                size_bytes: 0,
                pinned: false,
                names: vec![name],
            };
            dropped.into_iter().map(info).collect()
        }
        Request::RemoveImage { reference } => {
            images.remove(&reference).await?;
            Vec::new()
        }
        Request::PinImage { reference, pinned } => {
            images.pin(&reference, pinned)?;
            images.find(&reference).iter().map(|image| ImageInfo::from(&**image)).collect()
        }
        Request::ListPods | Request::RestartPod { .. } | Request::Streams => Vec::new(),
    })
}

/// Passes progress on for as long as the pull lasts; a slow reader sees fewer steps.
async fn forward(mut seen: watch::Receiver<Progress>, lines: &mpsc::Sender<Line>) {
    while seen.changed().await.is_ok() {
        let layers = seen.borrow_and_update().layers.clone();
        let _ = lines.try_send(Line::Progress(layers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct EchoNode;

    impl LocalNode for EchoNode {
        fn pods(&self) -> Vec<serde_json::Value> {
            vec![serde_json::json!({"metadata": {"name": "p"}})]
        }

        fn restart<'a>(
            &'a self,
            _: &'a str,
            pod: &'a str,
            _: Option<String>,
        ) -> BoxFuture<'a, Result<(), String>> {
            let known = if pod == "p" { Ok(()) } else { Err("no such pod".to_owned()) };
            Box::pin(std::future::ready(known))
        }

        fn serve(&self, mut stream: stream::Stream, _: stream::Request) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                let sender = stream.sender();
                while let Some(stream::Incoming::Data { channel, bytes }) = stream.next().await {
                    sender.send(channel, bytes).await.unwrap();
                }
                let outcome = stream::Outcome { code: Some(0), ..stream::Outcome::default() };
                sender.end(&outcome).await.unwrap();
            })
        }
    }

    #[tokio::test]
    async fn questions_are_answered_over_the_socket_until_the_daemon_stops() {
        let dir = tempfile::tempdir().unwrap();
        let images = ImageStore::open(crate::image::Options::new(dir.path())).unwrap();
        let server = Server::bind(dir.path(), images).unwrap().with_node(std::sync::Arc::new(EchoNode));
        let tasks = crate::tasks::Tasks::new();
        tasks.spawn("control", |stop| server.run(stop));

        let listed = ask(dir.path(), &Request::ListImages, |_| {}).await.unwrap().unwrap();
        assert_eq!(listed, Ok(Vec::new()));
        let gone = Request::RemoveImage { reference: "nothing:1".to_owned() };
        let refused = ask(dir.path(), &gone, |_| {}).await.unwrap().unwrap();
        assert!(refused.unwrap_err().contains("not found"));

        let pods = ask_node(dir.path(), &Request::ListPods).await.unwrap();
        assert_eq!(pods, Ok(vec![serde_json::json!({"metadata": {"name": "p"}})]));
        let restart = |pod: &str| Request::RestartPod {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            container: None,
        };
        assert_eq!(ask_node(dir.path(), &restart("p")).await.unwrap(), Ok(Vec::new()));
        assert!(ask_node(dir.path(), &restart("q")).await.unwrap().is_err());

        // A stream over the socket: more than its window goes through.
        let mux = streams(dir.path()).await.unwrap();
        let request = stream::Request::PortForward { place: stream::Place::default(), port: 1 };
        let mut near = mux.open("", &request).await.unwrap();
        let sender = near.sender();
        let text = bytes::Bytes::from(vec![7u8; 400_000]);
        let sending = tokio::spawn(async move {
            sender.send(stream::STDIN, text).await.unwrap();
            sender.close(stream::STDIN).await.unwrap();
        });
        let mut echoed = 0;
        while let Some(event) = near.next().await {
            match event {
                stream::Incoming::Data { bytes, .. } => echoed += bytes.len(),
                stream::Incoming::End(outcome) => assert_eq!(outcome.code, Some(0)),
                _ => {}
            }
        }
        assert_eq!(echoed, 400_000);
        sending.await.unwrap();

        tasks.stop().await;
        assert!(ask(dir.path(), &Request::ListImages, |_| {}).await.unwrap().is_none());
    }
}
