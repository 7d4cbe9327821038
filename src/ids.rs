//! Newtypes for the numbers and names that must not be mixed up, and the makers of fresh ones.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number!(
    /// A position in the store's log; an object's `resourceVersion`.
    Revision
);
number!(
    /// A version of the desired set of one node; grows by one with each change.
    Generation
);

/// Random bytes from the system.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[cfg(test)]
    if seeded::fill(&mut bytes) {
        return bytes;
    }
    SystemRandom::new().fill(&mut bytes).expect("the kernel's random source never fails once seeded");
    bytes
}

/// Random bytes that a test can have again.
#[cfg(test)]
pub mod seeded {
    use std::cell::Cell;

    thread_local!(static STATE: Cell<u64> = const { Cell::new(0) });

    /// From now on this thread's random bytes follow from `seed`.
    pub fn start(seed: u64) {
        STATE.set(seed | 1);
    }

    /// False where no seed was given.
    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        let mut state = STATE.get();
        if state == 0 {
            return false;
        }
        for byte in bytes {
            // Knuth's MMIX generator; its high bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        STATE.set(state.max(1));
        true
    }
}

/// A fresh object uid: a random UUID (RFC 9562, version 4).
pub fn new_uid() -> String {
    let mut b: [u8; 16] = random_bytes();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex = hex(&b);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// The alphabet of generated names: no vowels and no look-alikes, as in Kubernetes'
/// `k8s.io/apimachinery/pkg/util/rand`.
const NAME_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random suffix of `len` characters for `generateName`.
pub fn name_suffix(len: usize) -> String {
    let bytes: [u8; 32] = random_bytes();
    bytes[..len.min(32)]
        .iter()
        .map(|b| char::from(NAME_ALPHABET[usize::from(*b) % NAME_ALPHABET.len()]))
        .collect()
}

/// `text` with every character replaced by one of the name alphabet, as Kubernetes'
/// `SafeEncodeString` does it (used for the pod template hash).
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| char::from(NAME_ALPHABET[usize::from(b) % NAME_ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_a_version_4_uuid() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_ne!(uid, new_uid());
    }

    #[test]
    fn a_suffix_uses_the_safe_alphabet_only() {
        assert!(name_suffix(5).bytes().all(|b| NAME_ALPHABET.contains(&b)));
        assert_eq!(name_suffix(5).len(), 5);
    }
}
