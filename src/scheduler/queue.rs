//! The pods that wait for a node: the important first, then the early; those that were refused
//! wait until something happens that could help, and not before their back-off is over.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{filters::Cause, snapshot::PodInfo};

/// The back-off after the first refusal (upstream's `podInitialBackoffSeconds`).
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest back-off (upstream's `podMaxBackoffSeconds`).
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a refused pod waits at most although nothing happened.
const FLUSH: Duration = Duration::from_mins(5);

/// Where a waiting pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To be scheduled as soon as its turn comes.
    Active,
    /// Becomes active then.
    Delayed(Instant),
    /// Being decided on or bound.
    Taken,
}

#[derive(Debug)]
struct Waiting {
    info: Arc<PodInfo>,
    place: Place,
    /// How often it was refused since it last fitted.
    refusals: u32,
    last_try: Instant,
    /// What could help; empty: anything.
    causes: Vec<Cause>,
    order: Order,
}

/// Priority, then age.
type Order = (Reverse<i32>, Option<jiff::Timestamp>, String);

/// The queue, by pod uid.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<Order>,
    delayed: BTreeSet<(Instant, String)>,
}

fn order(info: &PodInfo) -> Order {
    let created = info.pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (Reverse(info.priority()), created, info.uid().to_owned())
}

impl Queue {
    /// Takes a pod in, or what is new about it. A change of its status alone changes nothing.
    pub fn add(&mut self, info: Arc<PodInfo>, now: Instant) {
        let uid = info.uid().to_owned();
        if let Some(known) = self.pods.get_mut(&uid) {
            let same = known.info.pod.spec == info.pod.spec
                && known.info.pod.metadata.labels == info.pod.metadata.labels;
            if same || known.place == Place::Taken {
                known.info = info;
                return;
            }
        }
        self.remove(&uid);
        let order = order(&info);
        self.active.insert(order.clone());
        let waiting =
            Waiting { info, place: Place::Active, refusals: 0, last_try: now, causes: Vec::new(), order };
        self.pods.insert(uid, waiting);
    }

    pub fn remove(&mut self, uid: &str) {
        let Some(waiting) = self.pods.remove(uid) else { return };
        self.active.remove(&waiting.order);
        if let Place::Delayed(then) = waiting.place {
            self.delayed.remove(&(then, uid.to_owned()));
        }
    }

    /// The next pod; it is taken until it is removed or [`Queue::refused`].
    pub fn next(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((then, _)) = self.delayed.first() {
            if *then > now {
                break;
            }
            let Some((_, uid)) = self.delayed.pop_first() else { break };
            if let Some(waiting) = self.pods.get_mut(&uid) {
                waiting.place = Place::Active;
                self.active.insert(waiting.order.clone());
            }
        }
        let (_, _, uid) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&uid)?;
        waiting.place = Place::Taken;
        waiting.last_try = now;
        Some(Arc::clone(&waiting.info))
    }

    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.delayed.first().map(|(then, _)| *then)
    }

    /// Puts a taken pod back to wait for help.
    pub fn refused(&mut self, uid: &str, causes: Vec<Cause>, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        waiting.refusals += 1;
        waiting.causes = causes;
        self.delay(uid, now + FLUSH);
    }

    /// Puts a taken pod back to be tried again after its back-off (a write failed).
    pub fn failed(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        waiting.refusals += 1;
        let then = now + backoff(waiting.refusals);
        self.delay(uid, then);
    }

    /// Something happened that may help.
    pub fn wake(&mut self, cause: Cause) {
        let helped: Vec<(String, Instant)> = self
            .pods
            .iter()
            .filter(|(_, w)| matches!(w.place, Place::Delayed(_)))
            .filter(|(_, w)| w.causes.is_empty() || w.causes.contains(&cause))
            .map(|(uid, w)| (uid.clone(), w.last_try + backoff(w.refusals)))
            .collect();
        for (uid, then) in helped {
            self.delay(&uid, then);
        }
    }

    fn delay(&mut self, uid: &str, then: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        if let Place::Delayed(planned) = waiting.place {
            if planned <= then {
                return;
            }
            self.delayed.remove(&(planned, uid.to_owned()));
        }
        waiting.place = Place::Delayed(then);
        self.delayed.insert((then, uid.to_owned()));
    }
}

fn backoff(refusals: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << refusals.saturating_sub(1).min(8)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "spec": {"containers": [], "priority": priority}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
    }

    #[test]
    fn the_important_come_first_and_the_refused_wait_for_help() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(pod("low", 0), now);
        queue.add(pod("high", 10), now);
        assert_eq!(queue.next(now).unwrap().uid(), "high");
        queue.refused("high", vec![Cause::Room], now);
        assert_eq!(queue.next(now).unwrap().uid(), "low");
        queue.remove("low");
        queue.wake(Cause::Volumes);
        assert!(queue.next(now + Duration::from_secs(100)).is_none());
        queue.wake(Cause::Room);
        assert!(queue.next(now).is_none(), "the back-off is not over");
        assert_eq!(queue.next(now + Duration::from_secs(1)).unwrap().uid(), "high");
        queue.refused("high", vec![Cause::Room], now);
        assert_eq!(queue.next(now + FLUSH).unwrap().uid(), "high");
    }
}
