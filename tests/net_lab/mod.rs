//! A laboratory of network namespaces: nodes, pods, switches and outsiders, all without names, so
//! that nothing is left behind when the process ends.
#![allow(dead_code, reason = "each test file uses a part of the laboratory")]

pub mod two;

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
    process::Command,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use nix::sched::{CloneFlags, setns, unshare};
use sampan::net::{Error, HostPort, Network, Options, PodNet, ServicePort};

/// How long a packet may take (a whole machine is busy when tests run).
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace that lives as long as this value.
pub struct Ns(File);

impl Ns {
    /// An empty one, loopback up.
    pub fn new() -> Self {
        let ns = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the test runs as root");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        })
        .join()
        .unwrap();
        ns.ip("link set lo up");
        ns
    }

    /// A path that leads to it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// Runs `f` on a thread inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command inside; its output.
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(|| Command::new(program).args(arguments).output().unwrap());
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Lays a cable: `device` here, `other_device` there, both up.
    pub fn cable(&self, device: &str, other: &Ns, other_device: &str) {
        let path = other.path();
        self.ip(&format!("link add {device} type veth peer name {other_device} netns {}", path.display()));
        self.ip(&format!("link set {device} up"));
        other.ip(&format!("link set {other_device} up"));
    }

    /// Asks over TCP from inside.
    pub fn ask(&self, to: (Ipv4Addr, u16)) -> std::io::Result<Answer> {
        self.ask_from(Ipv4Addr::UNSPECIFIED, to)
    }

    /// Asks over TCP with this source address.
    pub fn ask_from(&self, from: Ipv4Addr, to: (Ipv4Addr, u16)) -> std::io::Result<Answer> {
        self.run(|| {
            let socket = nix_tcp(from)?;
            let mut stream = connect(socket, to)?;
            let mut text = String::new();
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_to_string(&mut text)?;
            Ok(Answer::parse(&text))
        })
    }

    /// Asks over UDP from inside.
    pub fn ask_udp(&self, to: (Ipv4Addr, u16)) -> std::io::Result<Answer> {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        ask_over(&socket, to)
    }

    /// A UDP socket of this namespace.
    pub fn udp(&self) -> UdpSocket {
        self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap()
    }
}

/// Asks over an existing UDP socket.
pub fn ask_over(socket: &UdpSocket, to: (Ipv4Addr, u16)) -> std::io::Result<Answer> {
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    let mut buffer = [0; 256];
    let begin = Instant::now();
    loop {
        socket.send(b"?")?;
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(Answer::parse(std::str::from_utf8(&buffer[..length]).unwrap())),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {}
            Err(error) => return Err(error),
        }
    }
}

fn nix_tcp(from: Ipv4Addr) -> std::io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let [a, b, c, d] = from.octets();
    bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0))?;
    Ok(fd)
}

fn connect(fd: std::os::fd::OwnedFd, to: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
    use nix::sys::{
        socket::{SockaddrIn, connect, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    };
    // A connect that gets no answer ends after the send timeout.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(3))?;
    let [a, b, c, d] = to.0.octets();
    connect(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, to.1))?;
    Ok(TcpStream::from(fd))
}

/// Who answered, and where it saw the question come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub server: String,
    pub source: Ipv4Addr,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (server, source) = text.split_once(' ').expect("a server answers with two words");
        Self { server: server.to_owned(), source: source.parse().unwrap() }
    }
}

fn ipv4(address: SocketAddr) -> Ipv4Addr {
    match address.ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("an IPv4 test"),
    }
}

/// A server of TCP and UDP on one port, which tells its name and the asker's address.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn new(ns: &Ns, name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tcp = ns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        let udp = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (name, stopped) = (name.to_owned(), stop.clone());
        let (name_udp, stopped_udp) = (name.clone(), stop.clone());
        let threads = vec![
            thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((mut stream, from)) => {
                            let _ = write!(stream, "{name} {}", ipv4(from));
                        }
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            }),
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while !stopped_udp.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(format!("{name_udp} {}", ipv4(from)).as_bytes(), from);
                    }
                }
            }),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Waits for a call of the network.
pub fn wait<T>(future: BoxFuture<'_, Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Waits for a state of the world.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE * 12, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A node: a namespace with a pod network in it.
pub struct Node {
    pub net: PodNet,
    pub ns: Ns,
    pub pod_cidr: String,
}

pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);

impl Node {
    /// Starts a node with pods of `10.42.<number>.0/24` in this namespace.
    pub fn start(ns: Ns, number: u8) -> Self {
        let options = Options {
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            dns_address: Some(DNS),
        };
        let net = ns.run(|| PodNet::new(options)).unwrap();
        let pod_cidr = format!("10.42.{number}.0/24");
        wait(net.start(&pod_cidr)).unwrap();
        Self { net, ns, pod_cidr }
    }

    /// Gives the node its services; what its kernel cannot do of them.
    pub fn set_services(&self, services: &[ServicePort], host_ports: &[HostPort]) -> Vec<String> {
        let services: Vec<_> = services.iter().cloned().map(Arc::new).collect();
        wait(self.net.set_services(&services, host_ports)).unwrap()
    }

    /// Makes a pod.
    pub fn pod(&self, uid: &str, address: Ipv4Addr) -> Ns {
        let pod = Ns::new();
        wait(self.net.attach(uid, &pod.path(), address)).unwrap();
        pod
    }
}
