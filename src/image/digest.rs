//! SHA-256 over streams, on a second thread where there is a second core.

use std::{sync::mpsc, thread};

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use crate::ids::hex;

/// Chunks that may wait for the hashing thread; with the unpacker's buffers 0.5 MiB a layer.
const WAITING_CHUNKS_MAX: usize = 4;

/// `sha256:…` of bytes at hand.
pub fn sha256(bytes: &[u8]) -> String {
    named(ring::digest::digest(&SHA256, bytes).as_ref())
}

/// `sha256:` and hexadecimal digits.
pub fn named(hash: &[u8]) -> String {
    format!("sha256:{}", hex(hash))
}

/// The 64 hexadecimal digits of a well-formed `sha256:…` digest.
pub fn hex_part(digest: &str) -> Option<&str> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// A hash that is fed chunk by chunk.
pub enum Hasher {
    Here(Context),
    Beside { chunks: mpsc::SyncSender<Bytes>, thread: thread::JoinHandle<Context> },
}

impl Hasher {
    /// Hashes on the caller's thread.
    pub fn here() -> Self {
        Self::Here(Context::new(&SHA256))
    }

    /// Hashes on a thread of its own where that helps and a thread can be had.
    pub fn beside() -> Self {
        if thread::available_parallelism().map_or(1, usize::from) < 2 {
            return Self::here();
        }
        let (chunks, waiting) = mpsc::sync_channel::<Bytes>(WAITING_CHUNKS_MAX);
        let hash = move || {
            let mut context = Context::new(&SHA256);
            while let Ok(chunk) = waiting.recv() {
                context.update(&chunk);
            }
            context
        };
        match thread::Builder::new().name("sha256".to_owned()).stack_size(64 * 1024).spawn(hash) {
            Ok(thread) => Self::Beside { chunks, thread },
            Err(_) => Self::here(),
        }
    }

    pub fn update(&mut self, chunk: &Bytes) {
        match self {
            Self::Here(context) => context.update(chunk),
            // The thread receives until the sender is dropped.
            Self::Beside { chunks, .. } => drop(chunks.send(chunk.clone())),
        }
    }

    /// `sha256:…` of all chunks.
    pub fn finish(self) -> String {
        let context = match self {
            Self::Here(context) => context,
            Self::Beside { chunks, thread } => {
                drop(chunks);
                thread.join().expect("hashing does not panic")
            }
        };
        named(context.finish().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_threads_find_the_same_hash() {
        // FIPS 180-2, appendix B.1.
        let want = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for mut hasher in [Hasher::here(), Hasher::beside()] {
            hasher.update(&Bytes::from_static(b"a"));
            hasher.update(&Bytes::from_static(b"bc"));
            assert_eq!(hasher.finish(), want);
        }
        assert_eq!(sha256(b"abc"), want);
    }

    #[test]
    fn only_plain_sha256_digests_have_a_hex_part() {
        let hex = "0f".repeat(32);
        assert_eq!(hex_part(&format!("sha256:{hex}")), Some(hex.as_str()));
        for wrong in [
            hex.clone(),
            format!("sha256:{}", "0F".repeat(32)),
            "sha256:../..".to_owned(),
            format!("sha512:{hex}"),
        ] {
            assert_eq!(hex_part(&wrong), None, "{wrong}");
        }
    }
}
