//! An IPv4 network in prefix notation.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use super::Error;

/// `10.42.0.0/16`; the address has no bits beyond the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The network of `prefix` bits (0..=32) that `address` is in.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { address: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// A network whose address has no bits beyond the prefix, for constants.
    pub const fn literal(address: Ipv4Addr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// The lowest address.
    pub fn first(self) -> Ipv4Addr {
        self.address
    }

    /// The highest address.
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The bits that all addresses have in common.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::Invalid(format!("{text:?} is not an IPv4 CIDR"));
        let (address, prefix) = text.trim().split_once('/').ok_or_else(invalid)?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        if prefix > 32 {
            return Err(invalid());
        }
        Ok(Self::new(address.parse().map_err(|_| invalid())?, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_bounded() {
        let net: Cidr = "10.42.3.7/24".parse().unwrap();
        assert_eq!(net.to_string(), "10.42.3.0/24");
        assert_eq!(net.last(), Ipv4Addr::new(10, 42, 3, 255));
        assert!(net.contains(Ipv4Addr::new(10, 42, 3, 9)) && !net.contains(Ipv4Addr::new(10, 42, 4, 9)));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.last(), Ipv4Addr::BROADCAST);
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "fd00::/8"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
