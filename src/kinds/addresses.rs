//! IP addresses and networks (`k8s.io/apimachinery/pkg/util/validation/ip.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: an address and how many of its bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Reads `10.0.0.0/8`; bits beyond the prefix may be set.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let canonical = prefix == "0" || !prefix.starts_with(['0', '+']);
        let prefix: u8 = prefix.parse().ok().filter(|_| canonical)?;
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }

    /// The network's first address.
    pub fn network(self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
        }
    }

    /// Whether the network holds an address.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self { address, prefix: self.prefix }.network() == self.network()
    }
}

/// An IP address in its canonical form.
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(ip) if ip.to_string() != text => vec![format!("must be in canonical form (\"{ip}\")")],
        Ok(_) => Vec::new(),
    }
}

/// A network without bits beyond its prefix.
pub fn cidr(text: &str) -> Vec<String> {
    match Cidr::parse(text) {
        None => vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()],
        Some(cidr) if cidr.network() != cidr.address => {
            vec!["must not have bits set beyond the prefix length".to_owned()]
        }
        Some(cidr) if format!("{}/{}", cidr.address, cidr.prefix) != text => {
            vec![format!("must be in canonical form (\"{}/{}\")", cidr.address, cidr.prefix)]
        }
        Some(_) => Vec::new(),
    }
}

/// An address that can stand for something outside: not loopback, not link-local.
pub fn non_special_ip(text: &str) -> Vec<String> {
    let Ok(ip) = text.parse::<IpAddr>() else { return vec!["must be a valid IP address".to_owned()] };
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (a.is_unicast_link_local(), a.segments()[0] & 0xff0f == 0xff02),
    };
    let mut wrong = Vec::new();
    if ip.is_unspecified() {
        wrong.push(format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        wrong.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if link_local {
        wrong.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if link_local_multicast {
        wrong.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned());
    }
    wrong
}

/// Whether a list of addresses or networks has at most one of each family.
pub fn one_of_each_family<'a>(list: impl IntoIterator<Item = &'a str>) -> bool {
    let (six, four): (Vec<_>, Vec<_>) = list.into_iter().partition(|text| text.contains(':'));
    six.len() <= 1 && four.len() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_read_strictly() {
        for good in ["10.0.0.1", "fe80::1", "::"] {
            assert!(ip(good).is_empty(), "{good}");
        }
        for bad in ["", "10.0.0", "010.0.0.1", "::ffff:1.2.3.4", "FE80::1", "fe80:0::1", "1.2.3.4/8"] {
            assert!(!ip(bad).is_empty(), "{bad}");
        }
        for good in ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/64", "1.2.3.4/32"] {
            assert!(cidr(good).is_empty(), "{good}");
        }
        for bad in ["10.0.0.1/8", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/08", "x/8"] {
            assert!(!cidr(bad).is_empty(), "{bad}");
        }
        let net = Cidr::parse("10.1.0.0/16").expect("network");
        assert!(
            net.contains("10.1.2.3".parse().expect("ip")) && !net.contains("10.2.0.0".parse().expect("ip"))
        );
    }

    #[test]
    fn special_addresses_are_refused() {
        for bad in ["0.0.0.0", "127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.5", "ff02::1", "x"] {
            assert_eq!(non_special_ip(bad).len(), 1, "{bad}");
        }
        assert!(non_special_ip("192.0.2.1").is_empty());
    }
}
