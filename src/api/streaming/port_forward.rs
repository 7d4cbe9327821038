//! `pods/portforward`: SPDY/3.1, plain or inside a WebSocket (`SPDY/3.1+portforward.k8s.io`), or the
//! channels of a WebSocket (`web_ports`).
//!
//! For each connection the client opens two streams with the same request id: one for errors, one
//! for data (`k8s.io/apimachinery/pkg/util/portforward`).

use std::collections::HashMap;

use futures_util::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use hyper::{Request, body::Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    pipe::Pipe,
    pod,
    spdy::{Decoder, Encoder, Frame, REFUSED_STREAM},
    target,
    upgrade::{self, Offered},
    way_to, web_ports,
    websocket::Framing,
};
use crate::{
    api::{reply::Reply, status::Refusal, verbs::Call},
    streams::{NodeStreams, Target},
    tasks::CancellationToken,
};

const SPDY_IN_WEB: &str = "SPDY/3.1+portforward.k8s.io";
const WEB_PROTOCOLS: &[&str] = &[SPDY_IN_WEB, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
const SPDY_PROTOCOLS: &[&str] = &["portforward.k8s.io"];
/// Streams at once of one client.
const STREAMS_MAX: usize = 512;
/// Chunks that wait for a slow pod before the client is slowed down.
const QUEUE_MAX: usize = 16;
/// Frames that wait for a slow client.
const OUTGOING_MAX: usize = 64;
const CHUNK_BYTES: usize = 16 * 1024;

pub async fn serve(call: &Call, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let pod = pod(call)?;
    let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    let mut target = target(call, &pod, first)?.ok_or_else(|| {
        Refusal::bad_request(format!("pod {} does not have a host assigned", call.path.name))
    })?;
    target.container = String::new();
    if pod["status"]["phase"] != "Running" {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let message = format!("unable to forward port because pod is not running. Current status={phase}");
        return Err(Refusal::bad_request(message));
    }
    let nodes = way_to(call, &target.node)?;
    let (answer, pipe): (_, BoxFuture<'static, _>) =
        match upgrade::offered(request, WEB_PROTOCOLS, SPDY_PROTOCOLS)? {
            Offered::Web(offer) if offer.protocol != SPDY_IN_WEB => {
                let ports = web_ports::ports(&call.query)?;
                let framing = Framing::of(offer.protocol);
                let (answer, socket) = offer.accept();
                let stop = call.api.stop.clone();
                call.api.sessions.spawn(async move {
                    match socket.await {
                        Ok(socket) => {
                            let forwarding = web_ports::forward(socket, framing, &ports, &*nodes, &target);
                            stop.run_until_cancelled(forwarding).await;
                        }
                        Err(error) => tracing::debug!(%error, "a port-forward's upgrade"),
                    }
                });
                return Ok(answer);
            }
            Offered::Web(offer) => {
                let (answer, socket) = offer.accept();
                (answer, socket.map_ok(|socket| Pipe::Web(Box::new(socket))).boxed())
            }
            Offered::Spdy(offer) => {
                let (answer, pipe) = offer.accept();
                (answer, pipe.boxed())
            }
        };
    let stop = call.api.stop.clone();
    call.api.sessions.spawn(async move {
        match pipe.await {
            Ok(pipe) => forward(pipe, nodes, target, stop).await,
            Err(error) => tracing::debug!(%error, "a port-forward's upgrade"),
        }
    });
    Ok(answer)
}

/// A stream of the client.
struct Stream {
    /// To the connection behind a data stream; `None` once the client has ended it, and for errors.
    to_pod: Option<mpsc::Sender<Vec<u8>>>,
}

/// What identifies a connection: the request id, or the port where a client sends none.
fn pair_key(headers: &[(String, String)]) -> String {
    let get = |name: &str| headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    get("requestid").or_else(|| get("port")).unwrap_or_default()
}

/// What a client is told of a connection that failed.
pub(super) fn failure(target: &Target, port: u16, error: &dyn std::fmt::Display) -> String {
    format!("error forwarding port {port} to pod {}, uid {}: {error}", target.pod, target.uid)
}

async fn forward(
    mut pipe: Pipe,
    nodes: std::sync::Arc<dyn NodeStreams>,
    target: Target,
    stop: CancellationToken,
) {
    let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
    let (outgoing, mut frames) = mpsc::channel::<Vec<u8>>(OUTGOING_MAX);
    let mut streams: HashMap<u32, Stream> = HashMap::new();
    let mut errors: HashMap<String, u32> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let bytes = tokio::select! {
            () = stop.cancelled() => break,
            Some(frame) = frames.recv() => {
                if !pipe.send(frame).await {
                    break;
                }
                continue;
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            bytes = pipe.receive() => bytes,
        };
        let Some(bytes) = bytes else { break };
        decoder.push(&bytes);
        let mut answers: Vec<Vec<u8>> = Vec::new();
        loop {
            let frame = match decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "port-forward");
                    return;
                }
            };
            match frame {
                Frame::Open { stream, .. } if streams.len() >= STREAMS_MAX => {
                    answers.push(Encoder::reset(stream, REFUSED_STREAM));
                }
                Frame::Open { stream, headers, .. } => {
                    let get = |name: &str| headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
                    let Ok(accepted) = encoder.reply(stream) else { return };
                    let port = get("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
                    match (get("streamtype"), port) {
                        (Some("error"), Some(_)) => {
                            errors.insert(pair_key(&headers), stream);
                            streams.insert(stream, Stream { to_pod: None });
                            answers.push(accepted);
                        }
                        (Some("data"), Some(port)) => {
                            let (to_pod, from_client) = mpsc::channel(QUEUE_MAX);
                            streams.insert(stream, Stream { to_pod: Some(to_pod) });
                            answers.push(accepted);
                            let link = Link {
                                stream,
                                error: errors.remove(&pair_key(&headers)),
                                outgoing: outgoing.clone(),
                            };
                            let (nodes, target) = (nodes.clone(), target.clone());
                            connections.spawn(async move {
                                link.run(nodes.as_ref(), &target, port, from_client).await;
                            });
                        }
                        _ => answers.push(Encoder::reset(stream, REFUSED_STREAM)),
                    }
                }
                Frame::Data { stream, bytes, fin } => {
                    if let Some(open) = streams.get_mut(&stream) {
                        if let Some(to_pod) = open.to_pod.clone().filter(|_| !bytes.is_empty()) {
                            // Waiting here would also stop what goes to the client.
                            let mut sending = std::pin::pin!(to_pod.send(bytes));
                            loop {
                                tokio::select! {
                                    _ = &mut sending => break,
                                    Some(frame) = frames.recv() => {
                                        if !pipe.send(frame).await {
                                            return;
                                        }
                                    }
                                }
                            }
                        }
                        if fin {
                            open.to_pod = None;
                        }
                    }
                }
                Frame::Reset { stream, .. } => {
                    streams.remove(&stream);
                }
                Frame::Ping(id) => answers.push(Encoder::ping(id)),
                Frame::GoAway => return,
                Frame::Other => {}
            }
        }
        for answer in answers {
            if !pipe.send(answer).await {
                return;
            }
        }
    }
}

/// One forwarded connection.
struct Link {
    stream: u32,
    error: Option<u32>,
    outgoing: mpsc::Sender<Vec<u8>>,
}

impl Link {
    async fn run(
        self,
        nodes: &dyn NodeStreams,
        target: &Target,
        port: u16,
        mut from_client: mpsc::Receiver<Vec<u8>>,
    ) {
        let failed = |error: &dyn std::fmt::Display| failure(target, port, error);
        let connection = match nodes.connect(target, port).await {
            Ok(connection) => connection,
            Err(error) => return self.end(failed(&error).as_bytes()).await,
        };
        let (mut read, mut write) = (connection.read, connection.write);
        let to_pod = async {
            while let Some(bytes) = from_client.recv().await {
                if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
        };
        let to_client = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                let count = match read.read(&mut buffer).await {
                    Ok(count) => count,
                    Err(error) => return failed(&error),
                };
                if count == 0
                    || self.outgoing.send(Encoder::data(self.stream, &buffer[..count], false)).await.is_err()
                {
                    return String::new();
                }
            }
        };
        // When the pod has nothing more to say, the connection is over, as upstream has it.
        let text = tokio::select! {
            text = to_client => text,
            never = async { to_pod.await; std::future::pending::<String>().await } => never,
        };
        self.end(text.as_bytes()).await;
    }

    /// Ends both streams, the error stream with a text if there is one.
    async fn end(&self, text: &[u8]) {
        if let Some(error) = self.error {
            let _ = self.outgoing.send(Encoder::data(error, text, true)).await;
        }
        let _ = self.outgoing.send(Encoder::data(self.stream, b"", true)).await;
    }
}
