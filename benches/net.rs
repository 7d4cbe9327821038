//! What the network costs, each beside what it stands for, in turn: services beside a ruleset as
//! kube-proxy makes it, a connection through a service beside the direct one.
//!
//! Needs root and `nft`; prints milliseconds: `cargo test --bench net` (development build) or
//! `cargo bench --bench net` (release). `… -- dns IP:PORT NAME` floods a DNS server instead and prints
//! its answers a second.

#[path = "../tests/net_lab/mod.rs"]
mod lab;

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lab::{Node, Ns, wait};
use sampan::net::{Backend, Network, Protocol, ServicePort};

const SERVICES: u16 = 1000;
const MORE_SERVICES: u16 = 5000;
const ROUNDS: usize = 15;
const CONNECTS: usize = 300;
const PODS: usize = 200;
/// Bytes sent at once, and altogether, for throughput.
const CHUNK: usize = 256 << 10;
const VOLUME: usize = 1 << 30;

fn ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(number)
}

/// A service of two endpoints.
fn service(number: u16) -> ServicePort {
    let number = u32::from(number);
    let backend = |at: u32| Backend::new(ip(at + number), 8080, false);
    let backends = vec![backend(0x0a2a_4000), backend(0x0a2a_8000)];
    let name = format!("default/s{number}:http");
    ServicePort::new(name, Protocol::Tcp, 80, ip(0x0a2b_4000 + number), backends)
}

fn timed(run: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    run();
    begin.elapsed()
}

/// Prints the median, and the value that nine of ten do not exceed.
fn print(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, tenth) = (times[times.len() / 2], times[times.len() * 9 / 10]);
    println!("{what:<58} {:>9.3} ms  (p90 {:.3})", ms(median), ms(tenth));
    median
}

/// The same services as kube-proxy's nftables mode writes them: a chain a service and an endpoint.
fn as_kube_proxy(count: u16) -> String {
    let mut text = String::from(
        "add table ip kp\nflush table ip kp\nadd map ip kp services { type ipv4_addr . inet_proto . inet_service : verdict; }\n\
         add chain ip kp pre { type nat hook prerouting priority -100; }\nadd chain ip kp out { type nat hook output priority -100; }\n\
         add chain ip kp marking\nadd rule ip kp marking meta mark set mark or 0x4000\n\
         add rule ip kp pre ip daddr . meta l4proto . th dport vmap @services\nadd rule ip kp out ip daddr . meta l4proto . th dport vmap @services\n",
    );
    for number in 0..count {
        let service = service(number);
        let vip = service.cluster_ips[0];
        let _ = writeln!(text, "add chain ip kp svc-{number}");
        for (slot, backend) in service.backends.iter().enumerate() {
            let _ = writeln!(
                text,
                "add chain ip kp ep-{number}-{slot}\n\
                 add rule ip kp ep-{number}-{slot} ip saddr {0} jump marking\n\
                 add rule ip kp ep-{number}-{slot} meta l4proto tcp dnat to {0}:{1}",
                backend.address, backend.port
            );
        }
        let _ = writeln!(
            text,
            "add rule ip kp svc-{number} ip daddr {vip} tcp dport 80 ip saddr != 10.42.0.0/16 jump marking\n\
             add rule ip kp svc-{number} numgen random mod 2 vmap {{ 0 : goto ep-{number}-0, 1 : goto ep-{number}-1 }}\n\
             add element ip kp services {{ {vip} . tcp . 80 : goto svc-{number} }}"
        );
    }
    text
}

fn commits() {
    let set = |node: &Node, services: &[Arc<ServicePort>]| {
        drop(wait(node.net.set_services(services, &[])).unwrap());
    };
    let mut services: Vec<_> = (0..SERVICES).map(service).map(Arc::new).collect();
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), as_kube_proxy(SERVICES)).unwrap();
    let path = script.path().display().to_string();
    let (mut all, mut one, mut theirs, mut theirs_one) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let node = Node::start(Ns::new(), 0);
        all.push(timed(|| set(&node, &services)));
        Arc::make_mut(&mut services[500]).backends[0].address = ip(0x0a2a_c000 + round as u32);
        one.push(timed(|| set(&node, &services)));
        let other = Ns::new();
        theirs.push(timed(|| drop(other.command("nft", &["-f", &path]))));
        let change =
            "flush chain ip kp ep-500-0; add rule ip kp ep-500-0 meta l4proto tcp dnat to 10.42.9.9:8080";
        theirs_one.push(timed(|| drop(other.command("nft", &[change]))));
    }
    print("1,000 services x 2 endpoints, whole", all);
    print("  the same as kube-proxy writes it, by nft", theirs);
    print("one endpoint changed (1,000 services)", one);
    print("  the same as kube-proxy writes it, by nft", theirs_one);
}

fn attaches() {
    let node = Node::start(Ns::new(), 0);
    let pods: Vec<_> = (0..PODS).map(|_| Ns::new()).collect();
    let attach = |(number, pod): (usize, &Ns)| {
        let address = ip(0x0a2a_0002 + number as u32);
        timed(|| wait(node.net.attach(&format!("pod-{number}"), &pod.path(), address)).unwrap())
    };
    print("a pod's network, with up to 200 pods", pods.iter().enumerate().map(attach).collect());
}

/// Connects, gets a byte, and ends with a reset, so that no ports wait for their time.
fn connect(to: (Ipv4Addr, u16)) -> Duration {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(to).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    begin.elapsed()
}

fn ways() {
    let node = Node::start(Ns::new(), 0);
    let (pod, client) = (node.pod("server", ip(0x0a2a_0002)), node.pod("client", ip(0x0a2a_0003)));
    let listen = |port| pod.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    let (greeting, sink) = (listen(8080), listen(8081));
    thread::spawn(move || {
        for stream in greeting.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"!"));
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        for stream in sink.incoming() {
            let mut stream = stream.unwrap();
            let mut left = VOLUME;
            while left > 0 {
                left -= stream.read(&mut buffer).unwrap();
            }
            stream.write_all(b"!").unwrap();
        }
    });
    let to_pod = |number, port| {
        let mut service = service(number);
        service.backends = vec![Backend::new(ip(0x0a2a_0002), port, true)];
        service
    };
    for count in [2, MORE_SERVICES] {
        let mut services: Vec<_> = (2..count).map(service).collect();
        services.extend([to_pod(0, 8080), to_pod(1, 8081)]);
        node.set_services(&services, &[]);
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        client.run(|| {
            for _ in 0..CONNECTS {
                direct.push(connect((ip(0x0a2a_0002), 8080)));
                through.push(connect((ip(0x0a2b_4000), 80)));
            }
        });
        let direct = print(&format!("TCP connect and a byte, directly ({count} services)"), direct);
        let through = print("  through a cluster address", through);
        println!("  factor {:.3}", through.as_secs_f64() / direct.as_secs_f64());
    }
    let send = |to: (Ipv4Addr, u16)| {
        client.run(|| {
            let data = vec![7; CHUNK];
            let mut stream = TcpStream::connect(to).unwrap();
            timed(|| {
                for _ in 0..VOLUME / CHUNK {
                    stream.write_all(&data).unwrap();
                }
                stream.read_exact(&mut [0]).unwrap();
            })
        })
    };
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        direct.push(send((ip(0x0a2a_0002), 8081)));
        through.push(send((ip(0x0a2b_4001), 80)));
    }
    let direct = print("1 GiB by TCP, directly", direct);
    let through = print("  through a cluster address (5,000 services)", through);
    println!("  throughput {:.3} of direct", direct.as_secs_f64() / through.as_secs_f64());
}

/// Floods a DNS server from a few sockets, each with questions under way.
fn flood(server: SocketAddr, name: &str) {
    const SOCKETS: u16 = 4;
    const UNDER_WAY: u16 = 32;
    const TIME: Duration = Duration::from_secs(5);
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let asking: Vec<_> = (0..SOCKETS)
        .map(|number| {
            let (mut query, name) = (query.clone(), name.to_owned());
            thread::spawn(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut answer = [0; 512];
                let (mut answers, begin) = (0u64, Instant::now());
                for id in 0..UNDER_WAY {
                    query[..2].copy_from_slice(&(number * UNDER_WAY + id).to_be_bytes());
                    socket.send(&query).unwrap();
                }
                while begin.elapsed() < TIME {
                    match socket.recv(&mut answer) {
                        Ok(length) if length > 12 && answer[3] % 16 == 0 && answer[7] > 0 => answers += 1,
                        Ok(_) => panic!("not an answer to {name}"),
                        // One was lost: another takes its place.
                        Err(_) => {}
                    }
                    socket.send(&query).unwrap();
                }
                answers
            })
        })
        .collect();
    let answers: u64 = asking.into_iter().map(|thread| thread.join().unwrap()).sum();
    println!("{:.0} answers a second", answers as f64 / TIME.as_secs_f64());
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [mode, server, name] = &args[..]
        && mode == "dns"
    {
        return flood(server.parse().unwrap(), name);
    }
    commits();
    attaches();
    ways();
}
