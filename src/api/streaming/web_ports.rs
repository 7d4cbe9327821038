//! Ports of a pod over the channels of a WebSocket (`v4.channel.k8s.io`; `pkg/kubelet/portforward/websocket.go`):
//! the n-th port of the request has channel 2n for data and 2n+1 for its error, each begun with the port's
//! number in two bytes, the lower first. One connection a port; the last that ends closes the socket.

use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    port_forward::failure,
    websocket::{Framing, Socket},
};
use crate::{
    api::{request::Query, status::Refusal},
    streams::{Connection, NodeStreams, Target},
};

/// Ports of one request.
const PORTS_MAX: usize = 100;
/// Chunks that wait for a slow pod or a slow client.
const QUEUE_MAX: usize = 16;
const CHUNK_BYTES: usize = 16 * 1024;

/// The ports of a request: `ports=80,443` or `ports=80&ports=443`.
pub fn ports(query: &Query) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::new();
    for text in query.all("ports").flat_map(|list| list.split(',')).filter(|text| !text.is_empty()) {
        let port = text.parse::<u16>().ok().filter(|port| *port > 0);
        ports.push(port.ok_or_else(|| {
            Refusal::bad_request(format!("unable to parse {text:?} as a port: must be between 1 and 65535"))
        })?);
    }
    if ports.is_empty() {
        return Err(Refusal::bad_request("query parameter \"ports\" is required"));
    }
    if ports.len() > PORTS_MAX {
        return Err(Refusal::bad_request(format!("at most {PORTS_MAX} ports are forwarded at once")));
    }
    Ok(ports)
}

/// Carries bytes until every connection has ended or the client is gone.
pub async fn forward(
    socket: Socket,
    framing: Framing,
    ports: &[u16],
    nodes: &dyn NodeStreams,
    target: &Target,
) {
    let (mut to_client, mut from_client) = socket.split();
    let mut connections = JoinSet::new();
    let (outgoing, messages) = mpsc::channel(QUEUE_MAX);
    let mut to_pods = Vec::new();
    for (port, channel) in ports.iter().zip((0_u8..).step_by(2)) {
        for begun in [channel, channel + 1] {
            let message = framing.message(begun, &port.to_le_bytes());
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        let (to_pod, from_client) = mpsc::channel(QUEUE_MAX);
        to_pods.push(to_pod);
        match nodes.connect(target, *port).await {
            Ok(connection) => {
                let (outgoing, target, port) = (outgoing.clone(), target.clone(), *port);
                connections.spawn(async move {
                    if let Err(error) = carry(connection, from_client, channel, &outgoing).await {
                        let _ =
                            outgoing.send((channel + 1, failure(&target, port, &error).into_bytes())).await;
                    }
                });
            }
            Err(error) => {
                let message = framing.message(channel + 1, failure(target, *port, &error).as_bytes());
                if to_client.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(outgoing);
    let hearing = async {
        while let Some(Ok(message)) = from_client.next().await {
            let Some(bytes) = framing.read(message) else { continue };
            let Some(channel) = bytes.first().filter(|channel| *channel % 2 == 0) else { continue };
            if let Some(to_pod) = to_pods.get(usize::from(channel / 2)) {
                // A connection that has ended takes nothing more.
                let _ = to_pod.send(bytes.slice(1..)).await;
            }
        }
    };
    tokio::select! {
        () = hearing => {}
        () = speak(&mut to_client, messages, framing) => {}
    }
    let _ = to_client.close().await;
}

/// Sends what the connections say, until the last has ended.
async fn speak(
    to_client: &mut SplitSink<Socket, Message>,
    mut messages: mpsc::Receiver<(u8, Vec<u8>)>,
    framing: Framing,
) {
    while let Some((channel, bytes)) = messages.recv().await {
        if to_client.send(framing.message(channel, &bytes)).await.is_err() {
            return;
        }
    }
}

/// Carries one connection until the pod has nothing more to say.
async fn carry(
    connection: Connection,
    mut from_client: mpsc::Receiver<bytes::Bytes>,
    channel: u8,
    outgoing: &mpsc::Sender<(u8, Vec<u8>)>,
) -> std::io::Result<()> {
    let Connection { mut read, mut write } = connection;
    let to_pod = async {
        while let Some(bytes) = from_client.recv().await {
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let to_client = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = read.read(&mut buffer).await?;
            if count == 0 || outgoing.send((channel, buffer[..count].to_vec())).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        done = to_client => done,
        never = to_pod => never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_query() {
        let read = |query: &str| ports(&Query::parse(query)).map_err(|refusal| refusal.to_string());
        assert_eq!(read("ports=80,443&ports=8080"), Ok(vec![80, 443, 8080]));
        assert_eq!(read(""), Err("query parameter \"ports\" is required".to_owned()));
        assert!(read("ports=0").unwrap_err().contains("must be between 1 and 65535"));
        assert!(read(&format!("ports={}", vec!["1"; 101].join(","))).unwrap_err().contains("at most 100"));
    }
}
