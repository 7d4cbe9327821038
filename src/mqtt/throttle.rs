//! How much one client of the embedded broker may say: packets are counted on their way in, and who
//! says too many is read from more slowly. Nothing is dropped, and nobody else waits.
//!
//! Source of the format: MQTT 5.0, section 2.1 (fixed header).

use std::time::Duration;

use tokio::time::Instant;

/// Packets a second in the long run, and at once.
const PACKETS_PER_SECOND: f64 = 500.0;
const PACKETS_BURST: f64 = 2_000.0;

/// Where the parser is in a packet.
#[derive(Debug, Clone, Copy, Default)]
enum At {
    #[default]
    Head,
    /// In the remaining length: what was read of it, and the shift of the next seven bits.
    Length(u64, u32),
    /// In the body: bytes left.
    Body(u64),
}

/// Counts the packets in a stream of bytes.
#[derive(Debug, Default)]
pub struct Packets(At);

impl Packets {
    /// How many packets begin in the next bytes.
    pub fn count(&mut self, mut bytes: &[u8]) -> u32 {
        let mut begun = 0;
        while let Some((first, rest)) = bytes.split_first() {
            self.0 = match self.0 {
                At::Head => {
                    begun += 1;
                    bytes = rest;
                    At::Length(0, 0)
                }
                At::Length(value, shift) => {
                    bytes = rest;
                    let value = value | u64::from(first & 0x7f) << shift;
                    // A length of more than four bytes is malformed; the broker ends the connection.
                    if first & 0x80 != 0 && shift < 21 {
                        At::Length(value, shift + 7)
                    } else if value == 0 {
                        At::Head
                    } else {
                        At::Body(value)
                    }
                }
                At::Body(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[here as usize..];
                    if here == left { At::Head } else { At::Body(left - here) }
                }
            };
        }
        begun
    }
}

/// A client's allowance.
#[derive(Debug)]
pub struct Allowance {
    packets: Packets,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self { packets: Packets::default(), left: PACKETS_BURST, at: now }
    }

    /// Takes what these bytes cost; how long to wait before more is read.
    pub fn take(&mut self, bytes: &[u8], now: Instant) -> Option<Duration> {
        let gained = now.duration_since(self.at).as_secs_f64() * PACKETS_PER_SECOND;
        self.at = now;
        self.left = (self.left + gained).min(PACKETS_BURST) - f64::from(self.packets.count(bytes));
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / PACKETS_PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PINGREQ, a PUBLISH of 200 bytes, PINGREQ.
    fn stream() -> Vec<u8> {
        let mut bytes = vec![0xc0, 0x00, 0x30, 0xc8, 0x01];
        bytes.extend([0xc0; 200]);
        bytes.extend([0xc0, 0x00]);
        bytes
    }

    #[test]
    fn packets_are_counted_however_the_bytes_come() {
        for size in [1, 2, 3, 7, 64, 1000] {
            let mut packets = Packets::default();
            let total: u32 = stream().chunks(size).map(|chunk| packets.count(chunk)).sum();
            assert_eq!(total, 3, "in pieces of {size}");
        }
        Packets::default().count(&[0xff; 300]);
    }

    #[test]
    fn who_says_too_much_waits_and_is_forgiven() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let pings = [0xc0, 0x00].repeat(2_000);
        assert_eq!(allowance.take(&pings, start), None);
        assert_eq!(allowance.take(&pings[..1_000], start), Some(Duration::from_secs(1)));
        assert_eq!(allowance.take(&[], start + Duration::from_secs(1)), None);
        assert_eq!(allowance.take(&pings, start + Duration::from_mins(1)), None);
    }
}
