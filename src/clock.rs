//! Wall-clock time as an input.
//!
//! Decisions never read the system clock themselves: they get a [`Clock`] or a `now`. Monotonic
//! time is `tokio::time::Instant`, which tests can pause.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;

/// A source of wall-clock time.
pub trait Clock: Send + Sync + 'static {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// A clock shared by the parts of one process.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that a test or a simulation moves by hand.
#[derive(Debug)]
pub struct ManualClock(Mutex<Timestamp>);

impl ManualClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(Mutex::new(start))
    }

    /// Moves the clock, forwards or backwards.
    pub fn advance(&self, by: jiff::SignedDuration) {
        let mut now = self.0.lock().expect("the clock's lock is never poisoned");
        *now += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("the clock's lock is never poisoned")
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
    fn times_are_written_as_kubernetes_writes_them() {
        let t: Timestamp = "2026-11-23T21:58:44.123456789Z".parse().unwrap();
        assert_eq!(rfc3339_seconds(t), "2026-11-23T21:58:44Z");
        assert_eq!(rfc3339_micros(t), "2026-11-23T21:58:44.123456Z");
    }
}
