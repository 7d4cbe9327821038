//! How long something that fails again and again is left alone: upstream's `flowcontrol.Backoff`.
//!
//! In memory only: a master that has just started tries at once. Pure in its time, which is an
//! argument.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

/// How long the first failure keeps the next try off; doubled with each further one.
const DELAY_MIN: SignedDuration = SignedDuration::from_secs(1);
const DELAY_MAX: SignedDuration = SignedDuration::from_mins(15);
/// After so many times the longest delay without a failure the count begins anew.
const FORGOTTEN_AFTER: i32 = 2;

#[derive(Debug, Clone, Copy)]
struct Wait {
    delay: SignedDuration,
    since: Timestamp,
}

impl Wait {
    fn is_forgotten(&self, now: Timestamp) -> bool {
        let passed = now.duration_since(self.since);
        // A clock that was set back must not keep anything off.
        passed.is_negative() || passed > DELAY_MAX * FORGOTTEN_AFTER
    }
}

/// What one owner (an object of a generation) has to leave alone, by name.
pub type Waits = HashMap<String, SignedDuration>;

#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, HashMap<String, Wait>>>);

impl Backoff {
    /// What is to be left alone now, and for how long still.
    pub fn of(&self, owner: &str, now: Timestamp) -> Waits {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, items| {
            items.retain(|_, wait| !wait.is_forgotten(now));
            !items.is_empty()
        });
        let left = |wait: &Wait| wait.delay - now.duration_since(wait.since);
        let items = all.get(owner).into_iter().flatten();
        items.map(|(name, wait)| (name.clone(), left(wait))).filter(|(_, left)| left.is_positive()).collect()
    }

    /// Counts failures of `items`.
    pub fn failed(&self, owner: &str, items: impl IntoIterator<Item = String>, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for item in items {
            let known = all.entry(owner.to_owned()).or_default();
            let delay = known
                .get(&item)
                .filter(|wait| !wait.is_forgotten(now))
                .map_or(DELAY_MIN, |wait| (wait.delay * 2).min(DELAY_MAX));
            known.insert(item, Wait { delay, since: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_bound_and_are_forgotten() {
        let backoff = Backoff::default();
        let mut now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let mut delays = Vec::new();
        for _ in 0..12 {
            assert!(backoff.of("set", now).is_empty());
            backoff.failed("set", ["node".to_owned()], now);
            let delay = backoff.of("set", now)["node"];
            delays.push(delay.as_secs());
            now += delay;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert!(backoff.of("other", now).is_empty());
        backoff.failed("set", ["node".to_owned()], now);
        let before = now - SignedDuration::from_hours(1);
        assert!(backoff.of("set", before).is_empty(), "the clock was set back");
        backoff.failed("set", ["node".to_owned()], now);
        now += SignedDuration::from_secs(1801);
        backoff.failed("set", ["node".to_owned()], now);
        assert_eq!(backoff.of("set", now)["node"], DELAY_MIN);
    }
}
