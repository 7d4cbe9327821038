//! Which Events are an earlier one again, which are like too many others, and which come too often.
//!
//! As upstream's EventCorrelator (client-go, tools/record/events_cache.go): the same thing said again
//! is counted; from the tenth different message with one reason on, an object's Events become one;
//! a source may say [`BURST`] things about an object at once and then one every five minutes.
//! In: what is said and when. Out: the name and count that it gets. Bounds: [`RECENT_MAX`] of each.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;

/// Entries of each memory; half of them, the longest unused, go when there are more.
const RECENT_MAX: usize = 4096;
/// Different messages of one reason that are Events of their own, plus one.
const SIMILAR_MAX: usize = 10;
/// Messages further apart than this are not put together.
const SIMILAR_WITHIN: Duration = Duration::from_mins(10);
/// Events about one object from one source at once.
const BURST: f64 = 25.0;
/// After which another one may come.
const REFILL: Duration = Duration::from_mins(5);
/// What the message of Events that became one begins with.
const COMBINED: &str = "(combined from similar events): ";

/// What an Event is judged by, as hashes.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// The source and the object.
    pub source: u64,
    /// These, the type and the reason.
    pub similar: u64,
    /// All of these and the message.
    pub same: u64,
}

/// What becomes of an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correlated {
    /// Names it, and grows with time.
    pub serial: u64,
    pub count: i32,
    pub first: Timestamp,
    pub message: String,
}

/// The memory of what was said.
#[derive(Debug, Default)]
pub struct Correlator {
    same: Recent<Known>,
    similar: Recent<Similar>,
    bursts: Recent<Burst>,
    last_serial: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    serial: u64,
    count: i32,
    first: Timestamp,
}

#[derive(Debug, Default)]
struct Similar {
    messages: BTreeSet<u64>,
    last: Duration,
}

#[derive(Debug)]
struct Burst {
    left: f64,
    last: Duration,
}

fn hash_of(message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    hasher.finish()
}

impl Correlator {
    /// Takes note of an Event that happened at `when` and is said at `now`, steady time; `None` when
    /// its source says too much about the object.
    pub fn correlate(
        &mut self,
        keys: Keys,
        message: &str,
        when: Timestamp,
        now: Duration,
    ) -> Option<Correlated> {
        let similar = self.similar.entry(keys.similar, Similar::default);
        if now.saturating_sub(similar.last) > SIMILAR_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(hash_of(message));
        let combined = similar.messages.len() >= SIMILAR_MAX;
        if combined {
            similar.messages.pop_first();
        }
        let (key, message) = if combined {
            (keys.similar, format!("{COMBINED}{message}"))
        } else {
            (keys.same, message.to_owned())
        };
        // Never twice the same, and in order even when the clock was set back.
        let serial = u64::try_from(when.as_nanosecond()).unwrap_or_default().max(self.last_serial + 1);
        let known = self.same.entry(key, || Known { serial, count: 0, first: when });
        known.count += 1;
        let Known { serial, count, first } = *known;
        self.last_serial = self.last_serial.max(serial);

        let burst = self.bursts.entry(keys.source, || Burst { left: BURST, last: now });
        let refilled = now.saturating_sub(burst.last).as_secs_f64() / REFILL.as_secs_f64();
        *burst = Burst { left: (burst.left + refilled).min(BURST), last: now };
        if burst.left < 1.0 {
            return None;
        }
        burst.left -= 1.0;
        Some(Correlated { serial, count, first, message })
    }
}

/// A map that keeps what was used last.
#[derive(Debug)]
struct Recent<V> {
    entries: HashMap<u64, (u64, V)>,
    uses: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), uses: 0 }
    }
}

impl<V> Recent<V> {
    fn entry(&mut self, key: u64, new: impl FnOnce() -> V) -> &mut V {
        self.uses += 1;
        if self.entries.len() >= RECENT_MAX && !self.entries.contains_key(&key) {
            let mut uses: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            let (_, median, _) = uses.select_nth_unstable(RECENT_MAX / 2);
            let median = *median;
            self.entries.retain(|_, (used, _)| *used >= median);
        }
        let (used, value) = self.entries.entry(key).or_insert_with(|| (0, new()));
        *used = self.uses;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says `message` about an object `about`, with one reason.
    fn say(
        correlator: &mut Correlator,
        about: u64,
        message: u64,
        seconds: u64,
    ) -> Option<(u64, i32, String)> {
        let keys = Keys { source: about, similar: about << 8, same: about << 8 | message };
        let when = Timestamp::from_second(seconds as i64).unwrap();
        let said = correlator.correlate(keys, &message.to_string(), when, Duration::from_secs(seconds))?;
        Some((said.serial, said.count, said.message))
    }

    #[test]
    fn the_same_again_is_counted_and_others_come_after_it() {
        let mut correlator = Correlator::default();
        let (first, count, _) = say(&mut correlator, 1, 1, 100).unwrap();
        assert_eq!((first, count), (100_000_000_000, 1));
        let (second, ..) = say(&mut correlator, 1, 2, 100).unwrap();
        assert_eq!(second, first + 1);
        assert_eq!(say(&mut correlator, 1, 1, 107), Some((first, 2, "1".into())));
        // The clock was set back.
        let (third, ..) = say(&mut correlator, 1, 3, 50).unwrap();
        assert_eq!(third, second + 1);
    }

    #[test]
    fn many_messages_of_one_reason_become_one_event() {
        let mut correlator = Correlator::default();
        for message in 1..SIMILAR_MAX as u64 {
            let (_, count, text) = say(&mut correlator, 1, message, 10).unwrap();
            assert_eq!((count, text), (1, message.to_string()));
        }
        let (name, count, text) = say(&mut correlator, 1, 10, 11).unwrap();
        assert_eq!((count, text.as_str()), (1, "(combined from similar events): 10"));
        assert_eq!(
            say(&mut correlator, 1, 11, 12),
            Some((name, 2, "(combined from similar events): 11".into()))
        );
        // One message about many parts of an object is one message.
        for part in 1..=SIMILAR_MAX as u64 {
            let keys = Keys { source: 3, similar: 3 << 8, same: 3 << 8 | part };
            let said = correlator.correlate(keys, "Container started", Timestamp::UNIX_EPOCH, Duration::ZERO);
            assert_eq!(said.unwrap().message, "Container started");
        }
        // Of another object, and after a pause, they are their own again.
        assert_eq!(say(&mut correlator, 2, 12, 12).unwrap().2, "12");
        assert_eq!(say(&mut correlator, 1, 12, 12 + 601).unwrap().2, "12");
    }

    #[test]
    fn who_says_too_much_is_heard_every_five_minutes() {
        let mut correlator = Correlator::default();
        for _ in 0..25 {
            assert!(say(&mut correlator, 1, 1, 10).is_some());
        }
        assert_eq!(say(&mut correlator, 1, 1, 10), None);
        assert_eq!(say(&mut correlator, 1, 1, 200), None);
        assert!(say(&mut correlator, 2, 1, 200).is_some());
        // What was not recorded is in the count all the same.
        assert_eq!(say(&mut correlator, 1, 1, 311).unwrap().1, 28);
        assert_eq!(say(&mut correlator, 1, 1, 311), None);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let mut recent = Recent::default();
        for key in 0..3 * RECENT_MAX as u64 {
            *recent.entry(key, || 0) += 1;
            *recent.entry(0, || 0) += 1;
            assert!(recent.entries.len() <= RECENT_MAX);
        }
        assert_eq!(*recent.entry(0, || 0), 3 * RECENT_MAX as u64 + 1);
    }
}
