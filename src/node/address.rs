//! Addresses of pods on this node: the lowest free one after the last given out.

use std::{collections::BTreeSet, net::Ipv4Addr};

/// Addresses at the start of a range that pods do not get: the network's, and the node's own.
const RESERVED_FIRST: u32 = 2;

/// The range of one node and what of it is taken.
#[derive(Debug, Default)]
pub struct Addresses {
    /// First address and size.
    range: Option<(u32, u32)>,
    taken: BTreeSet<Ipv4Addr>,
    last: u32,
}

impl Addresses {
    /// Sets the range (`10.42.1.0/24`). Addresses taken before stay taken.
    ///
    /// # Errors
    /// The text is not an IPv4 range of at least four addresses.
    pub fn set_range(&mut self, cidr: &str) -> Result<(), String> {
        let bad = || format!("{cidr:?} is not a range of pod addresses");
        let (address, prefix) = cidr.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u32 = prefix.parse().ok().filter(|p| (8..=30).contains(p)).ok_or_else(bad)?;
        let size = 1 << (32 - prefix);
        self.range = Some((u32::from(address) & !(size - 1), size));
        Ok(())
    }

    /// Notes an address that a pod has already.
    pub fn take(&mut self, address: Ipv4Addr) {
        self.taken.insert(address);
    }

    pub fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }

    /// Whether an address lies in the node's range.
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        self.range.is_some_and(|(first, size)| u32::from(address).wrapping_sub(first) < size)
    }

    /// A free address; an address is not given out again soon.
    ///
    /// # Errors
    /// There is no range yet, or none is free.
    pub fn allocate(&mut self) -> Result<Ipv4Addr, String> {
        let (first, size) = self.range.ok_or("the node has no range of pod addresses yet")?;
        let usable = size - RESERVED_FIRST - 1;
        for step in 1..=usable {
            let offset = (self.last + step) % usable;
            let address = Ipv4Addr::from(first + RESERVED_FIRST + offset);
            if self.taken.insert(address) {
                self.last = offset;
                return Ok(address);
            }
        }
        Err(format!("all {usable} pod addresses of this node are in use"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_out_once_and_reused_late() {
        let mut addresses = Addresses::default();
        assert!(addresses.allocate().is_err());
        addresses.set_range("10.42.1.0/29").unwrap();
        addresses.take("10.42.1.4".parse().unwrap());
        let given: Vec<_> = (0..4).map(|_| addresses.allocate().unwrap().to_string()).collect();
        assert_eq!(given, ["10.42.1.3", "10.42.1.5", "10.42.1.6", "10.42.1.2"]);
        assert!(addresses.allocate().is_err());
        addresses.release("10.42.1.5".parse().unwrap());
        assert_eq!(addresses.allocate().unwrap().to_string(), "10.42.1.5");
        for bad in ["", "10.42.1.0", "10.42.1.0/33", "x/24"] {
            assert!(addresses.set_range(bad).is_err(), "{bad}");
        }
    }
}
