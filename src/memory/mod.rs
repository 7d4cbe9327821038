//! The process's allocator: the system's, behind small blocks that a thread keeps for its next use.
//!
//! musl's own takes a lock and five times what others take, and a request of the Ingress server or of
//! the API asks it dozens of times; others keep megabytes a thread (DESIGN section 11). So the threads
//! that serve keep some, of sizes that cost nothing in rounding. The process's first small blocks lie
//! beside its static data: for a container's monitor they are all there is.
//! Invariants: what a thread keeps is bounded ([`sys::KEPT_BYTES_MAX`] a class, 290 KB in all) but for the
//! first blocks; threads keep no others until they say so; a block may be given back by another thread
//! than the one that took it.

#[expect(unsafe_code, reason = "an allocator")]
mod sys;

/// Lets this thread keep small blocks from now on. For threads that live as long as the process: what
/// one keeps when it ends is lost.
pub fn keep_blocks() {
    sys::keep();
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// Bytes that say whose they are, and of which length.
    fn filled(seed: usize, length: usize) -> Vec<u8> {
        vec![(seed ^ length) as u8; length]
    }

    #[test]
    fn blocks_are_whole_whoever_takes_keeps_and_returns_them() {
        const ROUNDS: usize = 10_000;
        let (to_b, from_a) = mpsc::sync_channel::<(usize, usize, Vec<u8>)>(64);
        let (to_a, from_b) = mpsc::sync_channel::<(usize, usize, Vec<u8>)>(64);
        let work = |keeps: bool, to: mpsc::SyncSender<_>, from: mpsc::Receiver<(usize, usize, Vec<u8>)>| {
            move || {
                if keeps {
                    keep_blocks();
                }
                let mut held = Vec::new();
                for round in 0..ROUNDS {
                    // Most are small; some are larger than what is kept.
                    let length = round * 7919 % if round % 4 == 0 { 12_000 } else { 1_100 };
                    let mut bytes = filled(round, length);
                    // Grows and shrinks as vectors do.
                    bytes.extend_from_slice(&[7; 40]);
                    bytes.truncate(length);
                    bytes.shrink_to_fit();
                    held.push((round, length, bytes));
                    if held.len() > 100 {
                        let one = held.swap_remove(round * 31 % 100);
                        if let Err(mpsc::TrySendError::Full(back)) = to.try_send(one) {
                            held.push(back);
                        }
                    }
                    for (seed, length, bytes) in from.try_iter() {
                        assert_eq!(bytes, filled(seed, length));
                    }
                    held.truncate(150);
                }
                for (seed, length, bytes) in held {
                    assert_eq!(bytes, filled(seed, length));
                }
            }
        };
        let threads = [thread::spawn(work(true, to_b, from_b)), thread::spawn(work(false, to_a, from_a))];
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    #[expect(clippy::useless_vec, reason = "they are to be blocks of the allocator")]
    fn aligned_and_zeroed_blocks_are_so() {
        #[repr(align(64))]
        struct Aligned([u8; 64]);
        keep_blocks();
        for round in 0..200u8 {
            drop(vec![0xff_u8; 200]);
            let zeroed = vec![0u8; 200];
            assert!(zeroed.iter().all(|byte| *byte == 0));
            let aligned = Box::new(Aligned([round; 64]));
            assert_eq!((&raw const *aligned).addr() % 64, 0);
            assert!(aligned.0.iter().all(|byte| *byte == round));
            let words = vec![u128::from(round); 3];
            assert_eq!(words.as_ptr().addr() % align_of::<u128>(), 0);
        }
    }
}
