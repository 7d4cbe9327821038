//! Joins the API's streaming subresources to the dispatcher's streams over MQTT.
//!
//! The client is answered when the node has refused, or said that what was asked for is under way.
//! Not so for connections to ports: there a refusal is what the client's first read tells.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    dispatch::{StreamError as Unopened, Streams},
    mqtt::stream::{self, Incoming, Outcome, Place, Request, STDERR, STDIN, STDOUT, Stream, StreamSender},
    streams::{
        Answer, Connection, Exit, LogOptions, NodeStreams, Reader, Session, StreamError, Target,
        TerminalSize, Wanted,
    },
};

/// How long a node may take to say so: a slow link, a slow start of a command.
const FIRST_FRAME: Duration = Duration::from_secs(30);
/// Bytes between a stream and the client's connection.
const PIPE_BYTES: usize = 64 << 10;
/// Bytes of one read of what a client sends.
const READ_BYTES: usize = 16 << 10;
/// The longest answer of a node (bytes).
const NODE_ANSWER_BYTES_MAX: usize = 32 << 20;
const RESIZES_MAX: usize = 4;

/// The ways to all nodes.
pub struct NodeLinks(pub Streams);

struct Opened {
    stream: Stream,
    first: Option<Incoming>,
}

impl NodeLinks {
    async fn ask(&self, target: &Target, request: Request) -> Result<Stream, StreamError> {
        self.0.open(&target.node, &request).await.map_err(|error| match error {
            Unopened::Away(node) => StreamError::NodeAway(node),
            link @ Unopened::Link { .. } => StreamError::Refused(link.to_string()),
        })
    }

    async fn open(&self, target: &Target, request: Request) -> Result<Opened, StreamError> {
        let mut stream = self.ask(target, request).await?;
        match timeout(FIRST_FRAME, stream.next()).await {
            Ok(None) => Err(StreamError::NodeAway(target.node.clone())),
            Ok(Some(Incoming::End(Outcome { error: Some(error), refused: true, .. }))) => {
                Err(StreamError::NotFound(error))
            }
            Ok(first) => Ok(Opened { stream, first }),
            Err(_) => Err(StreamError::Timeout(target.node.clone())),
        }
    }
}

fn place(target: &Target) -> Place {
    Place {
        namespace: target.namespace.clone(),
        pod: target.pod.clone(),
        uid: target.uid.clone(),
        container: target.container.clone(),
    }
}

/// The near ends of a stream's outputs, by channel.
struct Outputs(Vec<(u8, DuplexStream)>);

impl Outputs {
    async fn write(&mut self, channel: u8, bytes: &[u8]) -> bool {
        match self.0.iter_mut().find(|(c, _)| *c == channel) {
            Some((_, pipe)) => pipe.write_all(bytes).await.is_ok(),
            None => true,
        }
    }

    fn close(&mut self, channel: u8) {
        self.0.retain(|(c, _)| *c != channel);
    }
}

/// Copies what comes from the node into the pipes; ends with the stream, or when nobody reads.
async fn pump(opened: Opened, mut outputs: Outputs, exit: Option<oneshot::Sender<Exit>>) {
    let Opened { mut stream, mut first } = opened;
    let mut outcome = Outcome::failed("the stream was cut off");
    loop {
        let incoming = match first.take() {
            Some(incoming) => Some(incoming),
            None => stream.next().await,
        };
        match incoming {
            Some(Incoming::Data { channel, bytes }) => {
                if !outputs.write(channel, &bytes).await {
                    break;
                }
            }
            Some(Incoming::Close { channel }) => outputs.close(channel),
            Some(Incoming::Resize { .. } | Incoming::Opened) => {}
            Some(Incoming::End(end)) => {
                outcome = end;
                break;
            }
            None => break,
        }
    }
    drop(outputs);
    if let Some(exit) = exit {
        let end = match outcome {
            Outcome { code: Some(code), .. } => Exit::Code(code),
            Outcome { error: Some(error), .. } => Exit::Failed(error),
            Outcome { .. } => Exit::Code(0),
        };
        // Who has gone does not want to know.
        let _ = exit.send(end);
    }
}

/// Copies what the client sends to a channel of the node.
async fn feed(mut pipe: DuplexStream, sender: StreamSender, channel: u8) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if sender.send(channel, Bytes::copy_from_slice(&buffer[..n])).await.is_err() {
                    return;
                }
            }
        }
    }
    // The stream may be over already.
    let _ = sender.close(channel).await;
}

async fn resizes(mut sizes: mpsc::Receiver<TerminalSize>, sender: StreamSender) {
    while let Some(TerminalSize { width, height }) = sizes.recv().await {
        if sender.resize(width, height).await.is_err() {
            return;
        }
    }
}

/// What comes from a port; its end says why, when it is a failure.
struct Told {
    pipe: DuplexStream,
    exit: Option<oneshot::Receiver<Exit>>,
}

impl AsyncRead for Told {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(exit) = &mut self.exit else { return Poll::Ready(Ok(())) };
        let told = ready!(Pin::new(exit).poll(cx));
        self.exit = None;
        Poll::Ready(match told {
            Ok(Exit::Failed(text)) => Err(io::Error::other(text)),
            Ok(Exit::Code(_)) | Err(_) => Ok(()),
        })
    }
}

fn output(outputs: &mut Vec<(u8, DuplexStream)>, channel: u8, wanted: bool) -> Option<Reader> {
    wanted.then(|| {
        let (near, far) = duplex(PIPE_BYTES);
        outputs.push((channel, near));
        Box::new(far) as Reader
    })
}

fn session(opened: Opened, wanted: Wanted) -> Session {
    let mut outputs = Vec::new();
    let stdout = output(&mut outputs, STDOUT, wanted.stdout);
    let stderr = output(&mut outputs, STDERR, wanted.stderr && !wanted.tty);
    let sender = opened.stream.sender();
    let stdin = wanted.stdin.then(|| {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(feed(near, sender.clone(), STDIN));
        Box::new(far) as crate::streams::Writer
    });
    let (resize, sizes) = mpsc::channel(RESIZES_MAX);
    tokio::spawn(resizes(sizes, sender));
    let (exited, exit) = oneshot::channel();
    tokio::spawn(pump(opened, Outputs(outputs), Some(exited)));
    Session { stdin, stdout, stderr, resize, exit }
}

impl NodeStreams for NodeLinks {
    fn is_connected(&self, node: &str) -> bool {
        self.0.is_connected(node)
    }

    fn logs<'a>(&'a self, target: &'a Target, options: &'a LogOptions) -> Answer<'a, Reader> {
        Box::pin(async move {
            let options = stream::LogOptions {
                follow: options.follow,
                previous: options.previous,
                timestamps: options.timestamps,
                tail_lines: options.tail_lines,
                limit_bytes: options.limit_bytes,
                since: options.since,
                stream: options.stream.clone(),
            };
            let opened = self.open(target, Request::Logs { place: place(target), options }).await?;
            let (near, far) = duplex(PIPE_BYTES);
            tokio::spawn(pump(opened, Outputs(vec![(STDOUT, near)]), None));
            Ok(Box::new(far) as Reader)
        })
    }

    fn exec<'a>(&'a self, target: &'a Target, command: &'a [String], wanted: Wanted) -> Answer<'a, Session> {
        Box::pin(async move {
            let command = command.to_vec();
            let request =
                Request::Exec { place: place(target), command, stdin: wanted.stdin, tty: wanted.tty };
            Ok(session(self.open(target, request).await?, wanted))
        })
    }

    fn attach<'a>(&'a self, target: &'a Target, wanted: Wanted) -> Answer<'a, Session> {
        Box::pin(async move {
            let request = Request::Attach { place: place(target), stdin: wanted.stdin };
            Ok(session(self.open(target, request).await?, wanted))
        })
    }

    fn connect<'a>(&'a self, target: &'a Target, port: u16) -> Answer<'a, Connection> {
        Box::pin(async move {
            let stream = self.ask(target, Request::PortForward { place: place(target), port }).await?;
            let (written, far_write) = duplex(PIPE_BYTES);
            tokio::spawn(feed(written, stream.sender(), STDIN));
            let (near, far_read) = duplex(PIPE_BYTES);
            let (exited, exit) = oneshot::channel();
            tokio::spawn(pump(Opened { stream, first: None }, Outputs(vec![(STDIN, near)]), Some(exited)));
            let read = Told { pipe: far_read, exit: Some(exit) };
            Ok(Connection { read: Box::new(read), write: Box::new(far_write) })
        })
    }

    fn ask_node<'a>(&'a self, node: &'a str, path: &'a str) -> Answer<'a, Vec<u8>> {
        Box::pin(async move {
            let target = Target {
                node: node.to_owned(),
                namespace: String::new(),
                pod: String::new(),
                uid: String::new(),
                container: String::new(),
            };
            let Opened { mut stream, mut first } =
                self.open(&target, Request::Node { path: path.to_owned() }).await?;
            let mut body = Vec::new();
            loop {
                let incoming = match first.take() {
                    Some(incoming) => Some(incoming),
                    None => stream.next().await,
                };
                match incoming {
                    Some(Incoming::Data { bytes, .. })
                        if body.len() + bytes.len() <= NODE_ANSWER_BYTES_MAX =>
                    {
                        body.extend_from_slice(&bytes);
                    }
                    Some(Incoming::Data { .. }) => {
                        return Err(StreamError::Refused(format!("node {node:?} says too much")));
                    }
                    Some(Incoming::Close { .. } | Incoming::Resize { .. } | Incoming::Opened) => {}
                    Some(Incoming::End(Outcome { error: None, .. })) => return Ok(body),
                    Some(Incoming::End(Outcome { error: Some(error), refused: true, .. })) => {
                        return Err(StreamError::NotFound(error));
                    }
                    Some(Incoming::End(Outcome { error: Some(error), .. })) => {
                        return Err(StreamError::Refused(error));
                    }
                    None => return Err(StreamError::NodeAway(node.to_owned())),
                }
            }
        })
    }
}

/// For the API server.
pub fn node_streams(streams: Streams) -> Arc<dyn NodeStreams> {
    Arc::new(NodeLinks(streams))
}
