//! Network applets: echo servers, `nc`, `wget`.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    thread,
    time::Duration,
};

use super::{Failure, http::Message, number, resolve::resolve};

const ECHO_PORT: u16 = 7;
const STACK_BYTES: usize = 128 * 1024;
const CONNECT: Duration = Duration::from_secs(10);
/// Largest UDP payload (bytes).
const DATAGRAM_BYTES: usize = 65_535;
/// Redirections that `wget` follows.
const REDIRECTS_MAX: usize = 5;

/// All addresses of both families where the machine has IPv6, else of IPv4.
pub struct ListenAddress(u16);

/// See [`ListenAddress`].
pub fn listen_address(port: u16) -> ListenAddress {
    ListenAddress(port)
}

impl ToSocketAddrs for ListenAddress {
    type Iter = std::array::IntoIter<SocketAddr, 2>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        let port = self.0;
        Ok([SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))]
            .into_iter())
    }
}

pub fn tcp_echo(args: &[String]) -> Result<u8, Failure> {
    let port = number(args, 0, "tcp-echo [PORT] [PREFIX]")?.unwrap_or(ECHO_PORT);
    let prefix = args.get(1).cloned().unwrap_or_default();
    let listener =
        TcpListener::bind(listen_address(port)).map_err(Failure::io(format!("listen on port {port}")))?;
    println!("echoes TCP on port {port}");
    loop {
        let (mut stream, _) = listener.accept().map_err(Failure::io("accept"))?;
        let prefix = prefix.clone();
        let work = move || {
            let mut buffer = [0; 8192];
            // A peer that goes away ends its connection only.
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&[prefix.as_bytes(), &buffer[..read]].concat()).is_err() {
                    break;
                }
            }
        };
        if let Err(error) = thread::Builder::new().stack_size(STACK_BYTES).spawn(work) {
            eprintln!("tcp-echo: {error}");
        }
    }
}

pub fn udp_echo(args: &[String]) -> Result<u8, Failure> {
    let port = number(args, 0, "udp-echo [PORT] [PREFIX]")?.unwrap_or(ECHO_PORT);
    let prefix = args.get(1).cloned().unwrap_or_default();
    let socket =
        UdpSocket::bind(listen_address(port)).map_err(Failure::io(format!("listen on port {port}")))?;
    println!("echoes UDP on port {port}");
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((read, peer)) => {
                if let Err(error) = socket.send_to(&[prefix.as_bytes(), &buffer[..read]].concat(), peer) {
                    eprintln!("udp-echo: answer {peer}: {error}");
                }
            }
            // An ICMP error for an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(Failure::Io { what: "receive".to_owned(), source: error }),
        }
    }
}

/// Options of a command line: letters with and without values, then words.
fn options(args: &[String], with_value: &str) -> (Vec<(char, String)>, Vec<String>) {
    let (mut flags, mut words) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            words.push(arg.clone());
            continue;
        };
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if with_value.contains(letter) {
                let rest = letters.as_str();
                let value = if rest.is_empty() { args.next().cloned() } else { Some(rest.to_owned()) };
                flags.push((letter, value.unwrap_or_default()));
                break;
            }
            flags.push((letter, String::new()));
        }
    }
    (flags, words)
}

fn seconds(flags: &[(char, String)], letter: char, usage: &'static str) -> Result<Option<Duration>, Failure> {
    let Some((_, value)) = flags.iter().find(|(flag, _)| *flag == letter) else { return Ok(None) };
    let seconds =
        value.parse::<f64>().ok().filter(|s| (0.001..1e6).contains(s)).ok_or(Failure::Usage(usage))?;
    Ok(Some(Duration::from_secs_f64(seconds)))
}

/// Connects to the first address of `host` that answers.
fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in resolve(host)? {
        match TcpStream::connect_timeout(&(address, port).into(), timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| io::ErrorKind::NotFound.into());
    Err(Failure::Io { what: format!("connect to {host} port {port}"), source: error })
}

pub fn nc(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "nc [-u] [-z] [-w SECONDS] HOST PORT";
    let (flags, words) = options(args, "w");
    let [host, _] = words.as_slice() else { return Err(Failure::Usage(USAGE)) };
    let port: u16 = number(&words, 1, USAGE)?.ok_or(Failure::Usage(USAGE))?;
    let wait = seconds(&flags, 'w', USAGE)?;
    let has = |letter| flags.iter().any(|(flag, _)| *flag == letter);
    if has('u') {
        return nc_udp(host, port, wait);
    }
    let stream = connect(host, port, wait.unwrap_or(CONNECT))?;
    if has('z') {
        return Ok(0);
    }
    stream.set_read_timeout(wait).map_err(Failure::io("set timeout"))?;
    let mut sender = stream.try_clone().map_err(Failure::io("clone"))?;
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut sender);
        let _ = sender.shutdown(Shutdown::Write);
    });
    copy_out(&stream)
}

fn copy_out(mut stream: &TcpStream) -> Result<u8, Failure> {
    let mut buffer = [0; 8192];
    let mut stdout = io::stdout();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(0),
            Ok(read) => {
                stdout
                    .write_all(&buffer[..read])
                    .and_then(|()| stdout.flush())
                    .map_err(Failure::io("write"))?;
            }
            Err(error) => return Err(Failure::Io { what: "receive".to_owned(), source: error }),
        }
    }
}

/// Sends each line of the input as a datagram and prints one answer to it.
fn nc_udp(host: &str, port: u16, wait: Option<Duration>) -> Result<u8, Failure> {
    let address =
        resolve(host)?.into_iter().next().ok_or_else(|| Failure::Other(format!("{host}: no address")))?;
    let local: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(local)
        .and_then(|socket| socket.connect((address, port)).map(|()| socket))
        .map_err(Failure::io(format!("connect to {host} port {port}")))?;
    socket.set_read_timeout(Some(wait.unwrap_or(CONNECT))).map_err(Failure::io("set timeout"))?;
    let mut buffer = vec![0; DATAGRAM_BYTES];
    for line in io::stdin().lines() {
        let line = line.map_err(Failure::io("stdin"))? + "\n";
        socket.send(line.as_bytes()).map_err(Failure::io("send"))?;
        let read = socket.recv(&mut buffer).map_err(Failure::io("receive"))?;
        io::stdout().write_all(&buffer[..read]).map_err(Failure::io("write"))?;
    }
    Ok(0)
}

pub fn wget(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "wget [-q] [-O FILE] [-T SECONDS] http://…";
    let (flags, words) = options(args, "OT");
    let [url] = words.as_slice() else { return Err(Failure::Usage(USAGE)) };
    let timeout = seconds(&flags, 'T', USAGE)?.unwrap_or(CONNECT);
    let mut url = url.clone();
    for _ in 0..=REDIRECTS_MAX {
        let (head, mut body) = get(&url, timeout)?;
        let status: u16 = head.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        match (status, head.field("location")) {
            (300..400, Some(location)) if location.starts_with("http://") => {
                location.clone_into(&mut url);
            }
            (200..300, _) => {
                let file = flags.iter().find(|(flag, _)| *flag == 'O').map(|(_, file)| file.as_str());
                let copied = match file {
                    None | Some("-") => head.copy_body(&mut body, &mut io::stdout().lock()),
                    Some(file) => File::create(file).and_then(|mut out| head.copy_body(&mut body, &mut out)),
                };
                return copied.map(|()| 0).map_err(Failure::io(url));
            }
            _ => return Err(Failure::Other(format!("{url}: server returned: {}", head.start))),
        }
    }
    Err(Failure::Other(format!("{url}: too many redirections")))
}

fn get(url: &str, timeout: Duration) -> Result<(Message, BufReader<TcpStream>), Failure> {
    let (host, port, path) = split_url(url)?;
    let mut stream = connect(&host, port, timeout)?;
    stream.set_read_timeout(Some(timeout)).map_err(Failure::io("set timeout"))?;
    let host_field = url.split('/').nth(2).unwrap_or_default();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host_field}\r\nUser-Agent: sampan\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(Failure::io(url))?;
    let mut reader = BufReader::new(stream);
    let head = Message::read_head(&mut reader).map_err(Failure::io(url))?;
    Ok((head.ok_or_else(|| Failure::Other(format!("{url}: no answer")))?, reader))
}

/// Host, port and path of an `http://` URL; the scheme may be missing.
fn split_url(url: &str) -> Result<(String, u16, String), Failure> {
    let malformed = || Failure::Other(format!("{url}: malformed URL"));
    if url.starts_with("https://") {
        return Err(Failure::Other(format!("{url}: only http is supported")));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or_else(malformed)?;
            (host, port.strip_prefix(':'))
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Ok(80), str::parse).map_err(|_| malformed())?;
    if host.is_empty() {
        return Err(malformed());
    }
    Ok((host.to_owned(), port, if path.is_empty() { "/".to_owned() } else { path.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split() {
        for (url, want) in [
            ("http://web", Some(("web", 80, "/"))),
            ("web:81/a?b=c", Some(("web", 81, "/a?b=c"))),
            ("http://[::1]:8080/x", Some(("::1", 8080, "/x"))),
            ("https://web", None),
            ("http://:80", None),
            ("http://web:port", None),
        ] {
            let got = split_url(url).ok();
            assert_eq!(
                got.as_ref().map(|(host, port, path)| (host.as_str(), *port, path.as_str())),
                want,
                "{url}"
            );
        }
    }

    #[test]
    fn options_stand_together_or_alone() {
        let args: Vec<String> = ["-qO-", "-T", "5", "url"].map(str::to_owned).into();
        let (flags, words) = options(&args, "OT");
        let flags: Vec<(char, &str)> = flags.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        assert_eq!(flags, [('q', ""), ('O', "-"), ('T', "5")]);
        assert_eq!(words, ["url"]);
    }
}
