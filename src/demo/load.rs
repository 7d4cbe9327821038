//! Load on purpose: memory that is really used, cores that are really busy.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use super::{Failure, number, pause};

const MIB: usize = 1 << 20;
/// Smallest page of all machines (bytes); one write in each makes memory real.
const PAGE_BYTES: usize = 4096;

pub fn memhog(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "memhog MIB [SECONDS]";
    let mib: usize = number(args, 0, USAGE)?.ok_or(Failure::Usage(USAGE))?;
    let mut held: Vec<Vec<u8>> = Vec::new();
    for taken in 1..=mib {
        let mut block = vec![0_u8; MIB];
        block.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        held.push(black_box(block));
        if taken % 64 == 0 || taken == mib {
            println!("holding {taken} MiB");
        }
    }
    pause(number(args, 1, USAGE)?);
    drop(black_box(held));
    Ok(0)
}

pub fn cpuburn(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "cpuburn SECONDS [THREADS]";
    let seconds: f64 = number(args, 0, USAGE)?.ok_or(Failure::Usage(USAGE))?;
    let threads: usize = number(args, 1, USAGE)?.unwrap_or(1);
    let end = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9));
    let burn = move || {
        let mut x = 1_u64;
        while Instant::now() < end {
            for _ in 0..100_000 {
                x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
    };
    let others: Vec<_> = (1..threads).map(|_| thread::spawn(burn)).collect();
    burn();
    for other in others {
        drop(other.join());
    }
    Ok(0)
}
