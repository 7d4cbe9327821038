//! One exchange with one upstream server, over UDP and, where the answer did not fit, over TCP.
//!
//! In: a question. Out: the upstream's answer, checked to be one to this question.

use std::{io, net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::Record,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::ids;

/// How long one server may think (milliseconds). Clients give up after 5 seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// What we take over UDP (bytes); larger ones get lost on the way (DNS flag day 2020).
pub const UDP_PAYLOAD_BYTES: u16 = 1232;

/// A question as clients ask it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    pub query: Query,
    /// The client wants DNSSEC records.
    pub dnssec: bool,
    /// The client checks DNSSEC by itself.
    pub checking_disabled: bool,
}

/// What an upstream said.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub authentic: bool,
}

/// Asks one server.
pub async fn exchange(server: SocketAddr, question: &Question) -> io::Result<Resolved> {
    let id = u16::from_ne_bytes(ids::random_bytes());
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled;
    message.add_query(question.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD_BYTES);
    edns.set_dnssec_ok(question.dnssec);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let is_answer = |reply: &Message| {
        reply.metadata.id == id
            && reply.metadata.message_type == MessageType::Response
            && reply.queries.first() == Some(&question.query)
    };
    let mut reply = timeout(ANSWER_TIMEOUT, over_udp(server, &bytes, is_answer)).await??;
    if reply.metadata.truncation {
        reply = timeout(ANSWER_TIMEOUT, over_tcp(server, &bytes)).await??;
        if !is_answer(&reply) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an answer to the question"));
        }
    }
    Ok(Resolved {
        code: reply.metadata.response_code,
        answers: reply.answers,
        authorities: reply.authorities,
        authentic: reply.metadata.authentic_data,
    })
}

async fn over_udp(
    server: SocketAddr,
    bytes: &[u8],
    is_answer: impl Fn(&Message) -> bool,
) -> io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit the question may be forged: the right one may still come.
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && is_answer(&message)
        {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Message::from_vec(&reply).map_err(io::Error::other)
}
