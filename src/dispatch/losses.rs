//! When a node that is gone counts as lost: at once, but later and later for one that comes and goes.
//!
//! Every loss that is told moves Endpoints, taints and conditions, and writes them to the master's
//! disk. A board on a bad link would do that without end; its pods run on meanwhile anyway.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Losses are counted over this time.
const WINDOW: Duration = Duration::from_mins(10);
/// So many losses are told at once.
const FREE: usize = 2;
/// How long the next one is held back; twice as long for each further one.
const HOLD_FIRST: Duration = Duration::from_secs(5);
const HOLD_MAX: Duration = Duration::from_mins(1);

/// The losses of all nodes.
#[derive(Default)]
pub struct Losses {
    seen: BTreeMap<String, VecDeque<Instant>>,
    held: BTreeMap<String, Instant>,
}

impl Losses {
    /// Counts a loss. `None`: tell it at once; else it is held back, and this was loss number n of
    /// the last [`WINDOW`].
    pub fn count(&mut self, node: &str, now: Instant) -> Option<usize> {
        let seen = self.seen.entry(node.to_owned()).or_default();
        seen.retain(|then| now.duration_since(*then) < WINDOW);
        seen.push_back(now);
        let number = seen.len();
        let further = number.checked_sub(FREE + 1)?;
        // Enough to know that the pause is the longest.
        if number > 32 {
            seen.pop_front();
        }
        let hold = HOLD_FIRST.saturating_mul(1 << further.min(8)).min(HOLD_MAX);
        self.held.insert(node.to_owned(), now + hold);
        Some(number)
    }

    /// The node is back: what was held back is not told.
    pub fn back(&mut self, node: &str) {
        self.held.remove(node);
    }

    /// When the next loss that is held back is due.
    pub fn next(&self) -> Option<Instant> {
        self.held.values().min().copied()
    }

    /// The losses that are due.
    pub fn due(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<String> =
            self.held.iter().filter(|(_, at)| **at <= now).map(|(node, _)| node.clone()).collect();
        self.held.retain(|_, at| *at > now);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_a_flapping_node_are_held_back_longer_and_longer() {
        let mut losses = Losses::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(losses.count("a", at(0)), None);
        assert_eq!(losses.count("a", at(1)), None);
        assert_eq!(losses.count("b", at(1)), None);
        assert_eq!(losses.count("a", at(2)), Some(3));
        assert_eq!(losses.next(), Some(at(7)));
        losses.back("a");
        assert!(losses.due(at(100)).is_empty(), "it came back in time");
        assert_eq!(losses.count("a", at(10)), Some(4));
        assert!(losses.due(at(19)).is_empty());
        assert_eq!(losses.due(at(20)), ["a"]);
        for _ in 0..20 {
            losses.count("a", at(30));
        }
        assert_eq!(losses.next(), Some(at(90)), "never longer than a minute");
        losses.back("a");
        assert_eq!(losses.count("a", at(700)), None, "it is forgiven after the window");
    }
}
