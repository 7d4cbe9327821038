//! The PROXY protocol, versions 1 and 2: a load balancer in front says who the client is.
//! Source: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>.

use std::{
    io::{Error, ErrorKind, Result},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Version 2 begins with these; no line of version 1 is shorter.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, with its end (bytes).
const LINE_BYTES_MAX: usize = 107;
/// Addresses and extensions of version 2 (bytes); nobody sends nearly as much.
const BLOCK_BYTES_MAX: usize = 2048;

/// Reads the header that a connection begins with. `None`: the balancer speaks for itself (a health
/// check) or does not know.
///
/// # Errors
/// `InvalidData` when there is no such header; what reading fails with.
pub async fn client(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return version_2(stream).await;
    }
    let mut line = start.to_vec();
    if !line.starts_with(b"PROXY ") {
        return Err(invalid());
    }
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(invalid());
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line)
}

fn invalid() -> Error {
    Error::new(ErrorKind::InvalidData, "no PROXY protocol header")
}

fn version_1(line: &[u8]) -> Result<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).map_err(|_| invalid())?;
    let mut words = line.trim_end_matches("\r\n").split(' ').skip(1);
    match words.next() {
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4" | "TCP6") => {}
        _ => return Err(invalid()),
    }
    let rest: Vec<&str> = words.collect();
    let [source, _, source_port, _] = rest[..] else { return Err(invalid()) };
    let address: IpAddr = source.parse().map_err(|_| invalid())?;
    let port: u16 = source_port.parse().map_err(|_| invalid())?;
    Ok(Some(SocketAddr::new(address, port)))
}

async fn version_2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>> {
    let [version_and_command, family] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = usize::from(stream.read_u16().await?);
    if version_and_command >> 4 != 2 || length > BLOCK_BYTES_MAX {
        return Err(invalid());
    }
    let mut block = vec![0; length];
    stream.read_exact(&mut block).await?;
    match version_and_command & 0xf {
        0 => return Ok(None),
        1 => {}
        _ => return Err(invalid()),
    }
    // Source and destination address, source and destination port.
    let port = |at: usize| block.get(at..at + 2).map(|p| u16::from_be_bytes([p[0], p[1]]));
    match family {
        0x11 => {
            let address = block.first_chunk::<4>().map(|a| IpAddr::from(Ipv4Addr::from(*a)));
            address.zip(port(8)).map(|found| Some(SocketAddr::from(found))).ok_or_else(invalid)
        }
        0x21 => {
            let address = block.first_chunk::<16>().map(|a| IpAddr::from(Ipv6Addr::from(*a)));
            address.zip(port(32)).map(|found| Some(SocketAddr::from(found))).ok_or_else(invalid)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Result<Option<String>> {
        let mut bytes = bytes;
        client(&mut bytes).await.map(|found| found.map(|address| address.to_string()))
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_else() {
        let tcp4 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\nGET /";
        assert_eq!(read(tcp4).await.unwrap().as_deref(), Some("203.0.113.7:4711"));
        assert_eq!(read(b"PROXY UNKNOWN\r\nGET /").await.unwrap(), None);
        let v2 = |command: u8, family: u8, block: &[u8]| {
            let length = (block.len() as u16).to_be_bytes();
            [&SIGNATURE[..], &[0x20 | command, family], &length, block].concat()
        };
        let block = [203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 1, 187, 4, 0, 1, 0];
        assert_eq!(read(&v2(1, 0x11, &block)).await.unwrap().as_deref(), Some("203.0.113.7:4711"));
        assert_eq!(read(&v2(0, 0, &[])).await.unwrap(), None);
        for wrong in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7\r\n".to_vec(),
            [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
            v2(1, 0x11, &[1, 2]),
            v2(7, 0x11, &block),
        ] {
            assert!(read(&wrong).await.is_err(), "{wrong:?}");
        }
    }
}
