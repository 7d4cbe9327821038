//! The sockets: queries over UDP and TCP on every address, answers from the zone or from upstream.
//!
//! In: datagrams and connections; tables. Out: answers. Invariants: a query for a cluster name is
//! answered where it is received, without waiting; the number of questions under way and of open
//! connections is bounded; a malformed query never ends a loop.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{DNSClass, Record, RecordType},
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    Answer, DnsTable, Error, ForwardOptions, Zone,
    forward::Forwarder,
    upstream::{Question, Resolved, UDP_PAYLOAD_BYTES},
};
use crate::tasks::CancellationToken;

/// What a client without EDNS takes over UDP (bytes, RFC 1035).
const UDP_PLAIN_BYTES: u16 = 512;
/// The longest query that is looked at over UDP (bytes).
const QUERY_BYTES_MAX: usize = 4096;
/// Questions that wait for an upstream at the same time.
const FORWARDED_MAX: usize = 256;
/// Open TCP connections of one address.
const CONNECTIONS_MAX: usize = 64;
/// An address with a compressed name (bytes).
const RECORD_BYTES_MIN: usize = 16;
/// How long a TCP connection may be silent (seconds).
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// Aliases followed inside the zone.
const ALIASES_MAX: usize = 8;
/// How long to wait after the socket itself has failed (milliseconds).
const SOCKET_PAUSE: Duration = Duration::from_millis(100);

/// The DNS server of a node.
pub struct Server {
    shared: Arc<Shared>,
    udp: Vec<Arc<UdpSocket>>,
    tcp: Vec<Arc<TcpListener>>,
    addresses: Vec<SocketAddr>,
}

struct Shared {
    /// `None` until the first table.
    zone: RwLock<Option<Arc<Zone>>>,
    forwarder: Forwarder,
    rotation: AtomicUsize,
    permits: Semaphore,
}

/// Opens a socket that may have an address which the host gets only later.
fn open(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if address.is_ipv4() {
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::MAXALLOWABLE)?;
    }
    Ok(fd)
}

/// Both sockets of an address, and where they listen. A port that the kernel has chosen for UDP may be
/// taken for TCP: then it chooses again.
fn pair(address: SocketAddr) -> Result<(UdpSocket, TcpListener, SocketAddr), Error> {
    const CHOICES_MAX: usize = 32;
    let failed = |transport| move |source| Error::Listen { address, transport, source };
    for choice in 1.. {
        let socket = open(address, SockType::Datagram)
            .and_then(|fd| UdpSocket::from_std(StdUdpSocket::from(fd)))
            .map_err(failed("UDP"))?;
        let local = socket.local_addr().map_err(failed("UDP"))?;
        match open(local, SockType::Stream).and_then(|fd| TcpListener::from_std(StdTcpListener::from(fd))) {
            Ok(listener) => return Ok((socket, listener, local)),
            Err(error)
                if address.port() == 0
                    && choice < CHOICES_MAX
                    && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed("TCP")(error)),
        }
    }
    unreachable!("the last choice returns")
}

impl Server {
    /// Listens on these addresses, each over UDP and TCP. With port 0 the kernel chooses one.
    pub async fn bind(addresses: &[SocketAddr], options: ForwardOptions) -> Result<Self, Error> {
        let (mut udp, mut tcp, mut bound) = (Vec::new(), Vec::new(), Vec::new());
        for address in addresses {
            let (socket, listener, local) = pair(*address)?;
            udp.push(Arc::new(socket));
            tcp.push(Arc::new(listener));
            bound.push(local);
        }
        let shared = Shared {
            zone: RwLock::new(None),
            forwarder: Forwarder::new(options, bound.clone())?,
            rotation: AtomicUsize::new(0),
            permits: Semaphore::new(FORWARDED_MAX),
        };
        Ok(Self { shared: Arc::new(shared), udp, tcp, addresses: bound })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers from this table from now on. A table with impossible names is refused whole.
    pub fn set_table(&self, table: &DnsTable) -> Result<(), Error> {
        let zone = Arc::new(Zone::new(table)?);
        *self.shared.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(zone);
        Ok(())
    }

    /// Serves until told to stop.
    pub async fn run(&self, stop: CancellationToken) -> Result<(), Error> {
        let mut loops = JoinSet::new();
        for socket in &self.udp {
            loops.spawn(serve_udp(self.shared.clone(), socket.clone(), stop.clone()));
        }
        for listener in &self.tcp {
            loops.spawn(serve_tcp(self.shared.clone(), listener.clone(), stop.clone()));
        }
        while loops.join_next().await.is_some() {}
        Ok(())
    }
}

/// A request, as far as its answer needs it.
struct Request {
    metadata: Metadata,
    query: Option<hickory_proto::op::Query>,
    /// Whether the client speaks EDNS, and whether it wants DNSSEC records.
    edns: Option<bool>,
    /// What the client takes (bytes).
    limit: usize,
}

/// What is said to a request.
#[derive(Default)]
struct Reply {
    code: Option<ResponseCode>,
    authoritative: bool,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code: Some(code), ..Self::default() }
    }

    fn upstream(resolved: &Resolved, mut before: Vec<Record>) -> Self {
        before.extend_from_slice(&resolved.answers);
        Self {
            code: Some(resolved.code),
            authentic: resolved.authentic,
            answers: before,
            authorities: resolved.authorities.clone(),
            ..Self::default()
        }
    }
}

/// What to do with a request.
enum Decision {
    Reply(Reply),
    /// Ask upstream; what the zone has said goes before the answer.
    Forward(Box<Question>, Vec<Record>),
}

impl Request {
    /// Reads a datagram or a message of a connection. `None` for what deserves no answer.
    fn read(bytes: &[u8], over_tcp: bool) -> Option<Result<Self, Vec<u8>>> {
        /// Bytes of a header, which an answer needs at least.
        const HEADER_BYTES: usize = 12;
        const RESPONSE_BIT: u8 = 0x80;
        if bytes.len() < HEADER_BYTES || bytes[2] & RESPONSE_BIT != 0 {
            return None;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            return Some(Err(error.to_vec().ok()?));
        };
        let limit = match &message.edns {
            _ if over_tcp => u16::MAX,
            Some(edns) => edns.max_payload().clamp(UDP_PLAIN_BYTES, UDP_PAYLOAD_BYTES),
            None => UDP_PLAIN_BYTES,
        };
        let mut queries = message.queries;
        Some(Ok(Self {
            metadata: message.metadata,
            query: if queries.len() == 1 { queries.pop() } else { None },
            edns: message.edns.map(|edns| edns.flags().dnssec_ok),
            limit: usize::from(limit),
        }))
    }

    /// Writes the answer; one that is too long says so and has as many records as fit.
    fn write(self, reply: Reply) -> Option<Vec<u8>> {
        let mut message = Message::new(self.metadata.id, MessageType::Response, self.metadata.op_code);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.authoritative = reply.authoritative;
        message.metadata.authentic_data = reply.authentic;
        message.metadata.response_code = reply.code.unwrap_or(ResponseCode::NoError);
        message.queries.extend(self.query);
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        if let Some(dnssec) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD_BYTES);
            edns.set_dnssec_ok(dnssec);
            message.set_edns(edns);
        }
        loop {
            let bytes = message.to_vec().ok()?;
            if bytes.len() <= self.limit {
                return Some(bytes);
            }
            if !message.additionals.is_empty() {
                message.additionals.clear();
                continue;
            }
            message.metadata.truncation = true;
            message.authorities.clear();
            // More short records than this cannot fit; beyond, names are no longer compressed, so
            // that the length of the whole says little.
            let most = self.limit / RECORD_BYTES_MIN;
            let fitting = match message.answers.len() {
                count if count > most => most,
                count => (count * self.limit / bytes.len()).min(count.saturating_sub(1)),
            };
            message.answers.truncate(fitting);
        }
    }
}

impl Shared {
    fn decide(&self, request: &Request) -> Decision {
        let fail = |code| Decision::Reply(Reply::code(code));
        if request.metadata.op_code != OpCode::Query {
            return fail(ResponseCode::NotImp);
        }
        let Some(query) = &request.query else { return fail(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return fail(ResponseCode::Refused);
        }
        if matches!(query.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR) {
            return fail(ResponseCode::NotImp);
        }
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(zone) = zone else { return fail(ResponseCode::ServFail) };
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let mut reply = Reply { authoritative: true, ..Reply::default() };
        let mut name = query.name().clone();
        for _ in 0..ALIASES_MAX {
            match zone.answer(&name, query.query_type(), rotation) {
                Answer::Records { answers, additionals } => {
                    reply.answers.extend(answers);
                    reply.additionals = additionals;
                    return Decision::Reply(reply);
                }
                Answer::NoData => {
                    reply.authorities.push(zone.authority());
                    return Decision::Reply(reply);
                }
                Answer::NoName => {
                    reply.code = Some(ResponseCode::NXDomain);
                    reply.authorities.push(zone.authority());
                    return Decision::Reply(reply);
                }
                Answer::Alias { record, target } => {
                    reply.answers.push(*record);
                    name = target;
                }
                Answer::NotOurs if !request.metadata.recursion_desired => {
                    return fail(ResponseCode::Refused);
                }
                Answer::NotOurs => {
                    let mut query = query.clone();
                    query.set_name(name);
                    let question = Question {
                        query,
                        dnssec: request.edns.unwrap_or(false),
                        checking_disabled: request.metadata.checking_disabled,
                    };
                    return Decision::Forward(Box::new(question), reply.answers);
                }
            }
        }
        fail(ResponseCode::ServFail)
    }

    /// Asks upstream; fails at once when too many do.
    async fn forward(&self, question: &Question, before: Vec<Record>) -> Reply {
        let Ok(_permit) = self.permits.try_acquire() else { return Reply::code(ResponseCode::ServFail) };
        match self.forwarder.resolve(question).await {
            Some(resolved) => Reply::upstream(&resolved, before),
            None => Reply::code(ResponseCode::ServFail),
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    // A client that cannot be reached asks again or does not.
    if socket.try_send_to(bytes, to).is_err() {
        let _ = socket.send_to(bytes, to).await;
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, stop: CancellationToken) {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    let mut forwarded = JoinSet::new();
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
            Some(_) = forwarded.join_next() => continue,
        };
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot receive DNS queries");
                tokio::time::sleep(SOCKET_PAUSE).await;
                continue;
            }
        };
        let request = match Request::read(&buffer[..length], false) {
            None => continue,
            Some(Err(bytes)) => {
                send(&socket, &bytes, from).await;
                continue;
            }
            Some(Ok(request)) => request,
        };
        match shared.decide(&request) {
            Decision::Reply(reply) => {
                if let Some(bytes) = request.write(reply) {
                    send(&socket, &bytes, from).await;
                }
            }
            Decision::Forward(question, before) => {
                let (shared, socket) = (shared.clone(), socket.clone());
                forwarded.spawn(async move {
                    let reply = shared.forward(&question, before).await;
                    if let Some(bytes) = request.write(reply) {
                        send(&socket, &bytes, from).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: Arc<TcpListener>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    if let Err(error) = serve_connection(&shared, stream).await {
                        tracing::debug!(%error, "a DNS connection has ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept DNS connections");
                tokio::time::sleep(SOCKET_PAUSE).await;
            }
        }
    }
}

/// Answers the messages of a connection in order (RFC 7766) until it ends or is silent.
async fn serve_connection(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(CONNECTION_IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(CONNECTION_IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match Request::read(&bytes, true) {
            None => return Ok(()),
            Some(Err(bytes)) => Some(bytes),
            Some(Ok(request)) => {
                let reply = match shared.decide(&request) {
                    Decision::Reply(reply) => reply,
                    Decision::Forward(question, before) => shared.forward(&question, before).await,
                };
                request.write(reply)
            }
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(CONNECTION_IDLE, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::Query,
        rr::{Name, RData, rdata::A},
    };

    use super::*;
    use crate::dns::{DnsEndpoint, DnsService, DnsTarget, StubDomain};

    const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn table(endpoints: u32) -> DnsTable {
        let service =
            |name: &str, target| DnsService { namespace: "default".into(), name: name.into(), target };
        let endpoint = |number| DnsEndpoint {
            address: Ipv4Addr::from_bits(0x0a2a_0000 + number),
            hostname: None,
            ports: Vec::new(),
        };
        let address = Ipv4Addr::new(10, 43, 0, 1);
        DnsTable {
            domain: "cluster.local".into(),
            namespaces: vec!["default".into()],
            services: vec![
                service("web", DnsTarget::Cluster { addresses: vec![address], ports: Vec::new() }),
                service("many", DnsTarget::Headless { endpoints: (1..=endpoints).map(endpoint).collect() }),
                service("out", DnsTarget::External { name: "www.example.org".into() }),
            ],
            ..DnsTable::default()
        }
    }

    fn question(name: &str, edns: bool) -> Vec<u8> {
        let mut message = Message::new(77, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD_BYTES);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    async fn ask(server: SocketAddr, bytes: &[u8]) -> Message {
        let socket = UdpSocket::bind(LOCAL).await.unwrap();
        socket.send_to(bytes, server).await.unwrap();
        let mut buffer = [0; 4096];
        let length =
            timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.expect("an answer").unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn ask_tcp(server: SocketAddr, bytes: &[u8]) -> Message {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        Message::from_vec(&reply).unwrap()
    }

    /// A running server, its address, and what stops it.
    async fn start(options: ForwardOptions, table: &DnsTable) -> (SocketAddr, CancellationToken) {
        let server = Server::bind(&[LOCAL], options).await.unwrap();
        server.set_table(table).unwrap();
        let (address, stop) = (server.addresses()[0], CancellationToken::new());
        let told = stop.clone();
        tokio::spawn(async move { server.run(told).await });
        (address, stop)
    }

    /// An upstream that knows every name as 192.0.2.80, counts, and may say that it was cut short.
    async fn upstream(truncates: bool) -> (SocketAddr, Arc<AtomicUsize>) {
        let (socket, listener, address) = pair(LOCAL).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let reply = |bytes: &[u8], full: bool| {
            let query = Message::from_vec(bytes).unwrap();
            let name = query.queries[0].name().clone();
            let mut reply = query.into_response();
            reply.metadata.truncation = !full;
            if full {
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
                reply.add_answer(Record::from_rdata(name, 60, data));
            }
            reply.to_vec().unwrap()
        };
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                tokio::select! {
                    Ok((length, from)) = socket.recv_from(&mut buffer) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        socket.send_to(&reply(&buffer[..length], !truncates), from).await.unwrap();
                    }
                    Ok((mut stream, _)) = listener.accept() => {
                        let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                        stream.read_exact(&mut bytes).await.unwrap();
                        let bytes = reply(&bytes, true);
                        stream.write_u16(bytes.len() as u16).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                }
            }
        });
        (address, count)
    }

    fn to(upstream: SocketAddr) -> ForwardOptions {
        ForwardOptions { upstreams: vec![upstream], ..ForwardOptions::default() }
    }

    #[tokio::test]
    async fn cluster_names_are_answered_over_both_transports() {
        let (server, stop) = start(ForwardOptions::default(), &table(1)).await;
        let query = question("WEB.default.svc.cluster.local.", true);
        for reply in [ask(server, &query).await, ask_tcp(server, &query).await] {
            assert_eq!(reply.metadata.id, 77);
            assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
            assert_eq!(reply.answers[0].data, RData::A(A(Ipv4Addr::new(10, 43, 0, 1))));
            assert_eq!(reply.answers[0].name.to_ascii(), "WEB.default.svc.cluster.local.");
            assert!(reply.edns.is_some());
        }
        let reply = ask(server, &question("nope.default.svc.cluster.local.", false)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
        assert!(reply.edns.is_none());
        stop.cancel();
    }

    #[tokio::test]
    async fn long_answers_are_cut_and_complete_over_tcp() {
        let (server, _stop) = start(ForwardOptions::default(), &table(200)).await;
        let query = question("many.default.svc.cluster.local.", false);
        let reply = ask(server, &query).await;
        assert!(reply.metadata.truncation && reply.answers.len() > 20, "{}", reply.answers.len());
        let reply = ask_tcp(server, &query).await;
        assert!(!reply.metadata.truncation);
        assert_eq!(reply.answers.len(), 200);
    }

    #[tokio::test]
    async fn other_names_are_asked_for_once() {
        let (upstream, count) = upstream(false).await;
        let (server, _stop) = start(to(upstream), &table(1)).await;
        for _ in 0..3 {
            let reply = ask(server, &question("www.example.org.", true)).await;
            assert_eq!(reply.answers[0].data.to_string(), "192.0.2.80");
            assert!(!reply.metadata.authoritative);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        // A Service of type ExternalName: the alias, and what it leads to.
        let reply = ask(server, &question("out.default.svc.cluster.local.", true)).await;
        let kinds: Vec<_> = reply.answers.iter().map(Record::record_type).collect();
        assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn truncated_answers_are_fetched_whole() {
        let (upstream, _) = upstream(true).await;
        let (server, _stop) = start(to(upstream), &table(1)).await;
        let reply = ask(server, &question("www.example.org.", true)).await;
        assert_eq!(reply.answers.len(), 1);
    }

    #[tokio::test]
    async fn stub_domains_have_their_own_servers() {
        let (stub, count) = upstream(false).await;
        let stub = StubDomain { domain: "corp.example".into(), servers: vec![stub] };
        let path = std::path::PathBuf::from("/nonexistent/resolv.conf");
        let options =
            ForwardOptions { stub_domains: vec![stub], resolv_conf: Some(path), ..ForwardOptions::default() };
        let (server, _stop) = start(options, &table(1)).await;
        assert_eq!(ask(server, &question("a.corp.example.", true)).await.answers.len(), 1);
        let reply = ask(server, &question("a.example.", true)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn dead_upstreams_fail_fast() {
        // Bound and closed again: nobody answers there.
        let dead = UdpSocket::bind(LOCAL).await.unwrap().local_addr().unwrap();
        let (server, _stop) = start(to(dead), &table(1)).await;
        for _ in 0..3 {
            let begin = tokio::time::Instant::now();
            let reply = ask(server, &question("www.example.org.", true)).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
            assert!(begin.elapsed() < Duration::from_secs(1));
        }
    }

    #[tokio::test]
    async fn cluster_names_do_not_wait_for_an_upstream_that_is_silent() {
        // It takes every question and never answers.
        let silent = UdpSocket::bind(LOCAL).await.unwrap();
        let (server, _stop) = start(to(silent.local_addr().unwrap()), &table(1)).await;
        let foreign = question("www.example.org.", true);
        let socket = UdpSocket::bind(LOCAL).await.unwrap();
        let mut buffer = [0; 4096];
        socket.send_to(&foreign, server).await.unwrap();
        // It is being asked for; a name of the cluster is answered meanwhile, by the same socket.
        timeout(Duration::from_secs(5), silent.recv(&mut buffer)).await.expect("it is asked").unwrap();
        socket.send_to(&question("web.default.svc.cluster.local.", true), server).await.unwrap();
        let mut codes = Vec::new();
        for _ in 0..2 {
            let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
            codes.push(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code);
        }
        assert_eq!(codes, [ResponseCode::NoError, ResponseCode::ServFail]);
        // From then on it is not even asked, for a while.
        assert_eq!(ask(server, &foreign).await.metadata.response_code, ResponseCode::ServFail);
        assert!(silent.try_recv(&mut buffer).is_err());
    }

    #[tokio::test]
    async fn nonsense_is_answered_or_ignored_and_harms_nobody() {
        let (server, _stop) = start(ForwardOptions::default(), &table(1)).await;
        let socket = UdpSocket::bind(LOCAL).await.unwrap();
        for bytes in [&[][..], &[1, 2, 3], &[0xff; 12], &[0xff; 600]] {
            socket.send_to(bytes, server).await.unwrap();
        }
        let mut garbled = question("web.default.svc.cluster.local.", false);
        garbled.truncate(20);
        assert_eq!(ask(server, &garbled).await.metadata.response_code, ResponseCode::FormErr);
        let mut two = Message::from_vec(&question("a.b.", false)).unwrap();
        two.add_query(two.queries[0].clone());
        let reply = ask(server, &two.to_vec().unwrap()).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        let reply = ask(server, &question("web.default.svc.cluster.local.", false)).await;
        assert_eq!(reply.answers.len(), 1);
    }
}
