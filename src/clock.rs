//! Wall-clock time as an input.
//!
//! Decisions never read the system clock themselves: they get a [`Clock`] or a `now`. Monotonic
//! time is `tokio::time::Instant`, which tests can pause. A board without a battery has a wrong clock
//! until somebody sets it: [`Jumps`] tells that from time that has passed.

use std::{
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

/// Wall-clock time that did not pass counts as a jump from here on; less is a clock being steered.
const JUMP_MIN: SignedDuration = SignedDuration::from_secs(10);

/// A source of wall-clock time.
pub trait Clock: Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;
    /// Time that has passed since some moment, whatever was done to the clock.
    fn steady(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// A clock shared by the parts of one process.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now() + wrong::by()
    }
}

/// How far a test has set this process's clock, in builds for development only: seconds in a file, which
/// the test may write while the process runs.
#[cfg(debug_assertions)]
mod wrong {
    use std::{env, fs, sync::LazyLock};

    use jiff::SignedDuration;

    const FILE: &str = "SAMPAN_TEST_CLOCK";
    static PATH: LazyLock<Option<String>> = LazyLock::new(|| env::var(FILE).ok());

    pub fn by() -> SignedDuration {
        let read = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
        SignedDuration::from_secs(PATH.as_ref().and_then(read).unwrap_or(0))
    }
}

#[cfg(not(debug_assertions))]
mod wrong {
    pub fn by() -> jiff::SignedDuration {
        jiff::SignedDuration::ZERO
    }
}
/// Watches a clock for being set.
#[derive(Debug)]
pub struct Jumps {
    now: Timestamp,
    steady: Duration,
}

impl Jumps {
    pub fn new(clock: &dyn Clock) -> Self {
        Self { now: clock.now(), steady: clock.steady() }
    }

    /// By how much the clock was set since the last call; zero when it was not.
    pub fn since_last(&mut self, clock: &dyn Clock) -> SignedDuration {
        let before = std::mem::replace(self, Self::new(clock));
        let passed = SignedDuration::try_from(self.steady.saturating_sub(before.steady)).unwrap_or_default();
        let jump = self.now.duration_since(before.now) - passed;
        if jump.abs() < JUMP_MIN { SignedDuration::ZERO } else { jump }
    }
}

/// A clock that a test or a simulation moves by hand.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(Mutex::new((start, Duration::ZERO)))
    }

    /// Lets time pass. Backwards, the clock is set.
    pub fn advance(&self, by: SignedDuration) {
        let mut clock = self.0.lock().expect("the clock's lock is never poisoned");
        clock.0 += by;
        clock.1 += Duration::try_from(by).unwrap_or_default();
    }

    /// Sets the clock, forwards or backwards; no time passes.
    pub fn jump(&self, by: SignedDuration) {
        self.0.lock().expect("the clock's lock is never poisoned").0 += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().expect("the clock's lock is never poisoned").0
    }

    fn steady(&self) -> Duration {
        self.0.lock().expect("the clock's lock is never poisoned").1
    }
}

/// `now` as Kubernetes writes it: RFC 3339, UTC, whole seconds (`2026-11-23T21:58:44Z`).
pub fn rfc3339_seconds(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `now` as a Kubernetes MicroTime: RFC 3339, UTC, six decimals.
pub fn rfc3339_micros(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_time_that_passes() {
        let clock = ManualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let mut jumps = Jumps::new(&clock);
        let hours = SignedDuration::from_hours;
        clock.advance(hours(3));
        assert_eq!(jumps.since_last(&clock), SignedDuration::ZERO);
        clock.jump(SignedDuration::from_secs(5));
        assert_eq!(jumps.since_last(&clock), SignedDuration::ZERO, "steered");
        for by in [hours(24 * 3650), hours(-24 * 3650)] {
            clock.advance(hours(1));
            clock.jump(by);
            assert_eq!(jumps.since_last(&clock), by);
            assert_eq!(jumps.since_last(&clock), SignedDuration::ZERO);
        }
    }

    #[test]
    fn times_are_written_as_kubernetes_writes_them() {
        let t: Timestamp = "2026-11-23T21:58:44.123456789Z".parse().unwrap();
        assert_eq!(rfc3339_seconds(t), "2026-11-23T21:58:44Z");
        assert_eq!(rfc3339_micros(t), "2026-11-23T21:58:44.123456Z");
    }
}
