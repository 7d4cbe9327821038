//! The queue of keys that have to be looked at: deduplicated, delayed, one key once at a time.
//!
//! Pure: instants are arguments. The runner asks for the next key and for when to ask again.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// The delay after a first failure (milliseconds); doubles with each further one.
const BACKOFF_BASE: Duration = Duration::from_millis(5);
/// The longest delay after failures.
const BACKOFF_MAX: Duration = Duration::from_mins(5);

/// A work queue as described above.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    /// The keys in `ready`, and those to be made ready when they are done.
    dirty: HashSet<K>,
    active: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    deadline: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            active: HashSet::new(),
            delayed: BTreeSet::new(),
            deadline: HashMap::new(),
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Wants `key` to be looked at as soon as possible.
    pub fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.active.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Wants `key` to be looked at then; the earliest of several wishes counts.
    pub fn add_at(&mut self, key: K, then: Instant) {
        if let Some(&planned) = self.deadline.get(&key) {
            if planned <= then {
                return;
            }
            self.delayed.remove(&(planned, key.clone()));
        }
        self.deadline.insert(key.clone(), then);
        self.delayed.insert((then, key));
    }

    /// The next key, which is then active until [`Queue::done`].
    pub fn next(&mut self, now: Instant) -> Option<K> {
        while let Some((then, _)) = self.delayed.first() {
            if *then > now {
                break;
            }
            let Some((_, key)) = self.delayed.pop_first() else { break };
            self.deadline.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.active.insert(key.clone());
        Some(key)
    }

    /// When a delayed key becomes ready.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.delayed.first().map(|(then, _)| *then)
    }

    /// Ends the turn of a key; if it was wanted meanwhile, it is ready again.
    pub fn done(&mut self, key: &K) {
        self.active.remove(key);
        if self.dirty.contains(key) {
            self.ready.push_back(key.clone());
        }
    }

    /// Forgets the failures of a key.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Counts a failure and plans the next try.
    pub fn failed(&mut self, key: &K, now: Instant) {
        let count = self.failures.entry(key.clone()).or_default();
        let delay = backoff(*count);
        *count += 1;
        self.add_at(key.clone(), now + delay);
    }
}

/// The delay after `failures` failures before this one.
fn backoff(failures: u32) -> Duration {
    BACKOFF_BASE.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_queued_once_and_worked_on_once_at_a_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next(now), Some("a"));
        queue.add("a");
        assert_eq!(queue.next(now), None);
        queue.done(&"a");
        assert_eq!(queue.next(now), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.next(now), None);
    }

    #[test]
    fn the_earliest_delay_counts() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add_at("a", now + Duration::from_secs(10));
        queue.add_at("a", now + Duration::from_secs(5));
        queue.add_at("a", now + Duration::from_secs(7));
        assert_eq!(queue.next_deadline(), Some(now + Duration::from_secs(5)));
        assert_eq!(queue.next(now), None);
        assert_eq!(queue.next(now + Duration::from_secs(5)), Some("a"));
        queue.done(&"a");
        assert_eq!(queue.next(now + Duration::from_secs(20)), None);
    }

    #[test]
    fn failures_back_off_to_a_bound() {
        assert_eq!(backoff(0), Duration::from_millis(5));
        assert_eq!(backoff(3), Duration::from_millis(40));
        assert_eq!(backoff(40), BACKOFF_MAX);
    }
}
