//! The scheduler: finds every pod a node.
//!
//! Watches pods, nodes, namespaces and volumes; keeps a [`snapshot`] of sums; takes one pod at a
//! time from its [`queue`], decides purely ([`plan::schedule`]) and writes the decision. Many
//! bindings are under way at once: a pod counts on its node as soon as that is decided.
//! Invariants: a pod is bound once (compare and swap on the pod); a refused pod says why in its
//! `PodScheduled` condition and in an Event, in upstream's words.
//! Deliberately absent: extenders, profiles, dynamic resource allocation.

pub mod affinity;
pub mod filters;
pub mod plan;
pub mod preempt;
mod queue;
mod scores;
pub mod snapshot;
pub mod volumes;
mod write;

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use tokio::time::Instant;

use crate::{
    kinds::{builds, labels::Selector, placement, pod::is_terminal},
    objects::Objects,
    store::{Event, EventKind, Object, StoreError},
    tasks::{CancellationToken, Tasks},
};
use filters::Cause;
use plan::Decision;
use preempt::Budget;
use queue::Queue;
use snapshot::{PodInfo, Snapshot};
use volumes::Claims;

/// The scheduler's name in `spec.schedulerName` and in Events.
pub const NAME: &str = "default-scheduler";
/// How many writes may be under way at once.
const WRITES_MAX: usize = 128;
/// How many pods are decided on before events are looked at again.
const DECISIONS_MAX: usize = 32;

/// What is followed.
const RESOURCES: [&str; 6] = [
    "pods",
    "nodes",
    "namespaces",
    "persistentvolumeclaims",
    "persistentvolumes",
    "storageclasses.storage.k8s.io",
];

/// Starts the scheduler as a task.
pub fn start(tasks: &Tasks, objects: Objects) {
    tasks.spawn("scheduler", |stop| async move {
        Scheduler::new(objects).run(stop).await;
        Ok::<(), Infallible>(())
    });
}

struct Scheduler {
    objects: Objects,
    snapshot: Snapshot,
    queue: Queue,
    writes: FuturesUnordered<BoxFuture<'static, write::Written>>,
}

impl Scheduler {
    fn new(objects: Objects) -> Self {
        Self {
            objects,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            writes: FuturesUnordered::new(),
        }
    }

    async fn run(mut self, stop: CancellationToken) {
        let mut events = self.follow();
        loop {
            while self.decide_some() {
                while let Some(Some(seen)) = events.next().now_or_never() {
                    self.see_or_restart(seen, &mut events);
                }
                while let Some(Some(written)) = self.writes.next().now_or_never() {
                    self.written(written);
                }
                tokio::task::yield_now().await;
            }
            let deadline = self.queue.next_deadline();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(seen) = events.next() => self.see_or_restart(seen, &mut events),
                Some(written) = self.writes.next() => self.written(written),
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Starts to follow everything, and reads what there is.
    fn follow(&mut self) -> SelectAll<BoxStream<'static, Result<Arc<Event>, StoreError>>> {
        let events = RESOURCES.iter().map(|resource| self.objects.follow(resource)).collect();
        self.snapshot = Snapshot::default();
        for node in self.objects.list_typed::<Node>(None) {
            self.snapshot.set_node(node);
        }
        for namespace in self.objects.list_typed::<Namespace>(None) {
            self.set_namespace(&namespace);
        }
        for pod in self.objects.list_typed::<Pod>(None) {
            self.see_pod(pod);
        }
        for cause in [Cause::Node, Cause::Room, Cause::Pods, Cause::Volumes] {
            self.queue.wake(cause);
        }
        events
    }

    fn see_or_restart(
        &mut self,
        seen: Result<Arc<Event>, StoreError>,
        events: &mut SelectAll<BoxStream<'static, Result<Arc<Event>, StoreError>>>,
    ) {
        match seen {
            Ok(event) => self.see(&event),
            Err(error) => {
                tracing::debug!(%error, "scheduler starts over from lists");
                *events = self.follow();
            }
        }
    }

    fn see(&mut self, event: &Event) {
        let object: &Object = &event.object;
        let deleted = event.kind == EventKind::Deleted;
        match &*object.key.resource {
            "pods" if deleted => self.forget_pod(&object.meta.uid),
            "pods" => self.see_pod(object.typed()),
            "nodes" if deleted => self.snapshot.remove_node(&object.key.name),
            "nodes" => {
                let node = object.typed::<Node>();
                let before = event.previous.as_ref().map(|o| o.typed::<Node>());
                if before.is_none_or(|before| differs(&before, &node)) {
                    for cause in [Cause::Node, Cause::Room, Cause::Pods, Cause::Volumes] {
                        self.queue.wake(cause);
                    }
                }
                self.snapshot.set_node(node);
            }
            "namespaces" if deleted => {
                self.snapshot.namespaces.remove(&*object.key.name);
            }
            "namespaces" => {
                self.set_namespace(&object.typed());
                self.queue.wake(Cause::Pods);
            }
            _ => self.queue.wake(Cause::Volumes),
        }
    }

    fn set_namespace(&mut self, namespace: &Namespace) {
        let labels: HashMap<String, String> =
            namespace.metadata.labels.clone().unwrap_or_default().into_iter().collect();
        self.snapshot.namespaces.insert(namespace.metadata.name.clone().unwrap_or_default(), labels);
    }

    fn see_pod(&mut self, pod: Arc<Pod>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if is_terminal(&pod) {
            self.forget_pod(&uid);
            return;
        }
        let info = Arc::new(PodInfo::new(pod));
        if !info.node().is_empty() {
            let node = info.node().to_owned();
            let before = self.snapshot.place(Arc::clone(&info), &node);
            self.queue.remove(&uid);
            if before.is_none() || info.is_deleting() {
                self.queue.wake(Cause::Pods);
            }
            if before.is_some_and(|before| info.requests.is_less_than(&before.requests)) {
                self.queue.wake(Cause::Room);
            }
            return;
        }
        if !is_ours(&info) {
            self.queue.remove(&uid);
            self.snapshot.nominated.remove(&uid);
            return;
        }
        match info.pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()).filter(|n| !n.is_empty()) {
            Some(node) => {
                self.snapshot.nominated.insert(uid, (node, Arc::clone(&info)));
            }
            None => {
                self.snapshot.nominated.remove(&uid);
            }
        }
        self.queue.add(info, Instant::now());
    }

    fn forget_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        let nominated = self.snapshot.nominated.remove(uid).is_some();
        if self.snapshot.remove_pod(uid).is_some() || nominated {
            self.queue.wake(Cause::Room);
            self.queue.wake(Cause::Pods);
            self.queue.wake(Cause::Volumes);
        }
    }

    /// Decides on the next pods; false when there is nothing to decide now.
    fn decide_some(&mut self) -> bool {
        for _ in 0..DECISIONS_MAX {
            if self.writes.len() >= WRITES_MAX {
                return false;
            }
            let Some(pod) = self.queue.next(Instant::now()) else { return false };
            self.decide(pod);
        }
        self.queue.has_active()
    }

    fn decide(&mut self, pod: Arc<PodInfo>) {
        let claims = Claims::of(&self.objects, &self.snapshot, &pod);
        let budgets = budgets(&self.objects);
        match plan::schedule(&self.snapshot, &pod, &claims, &budgets) {
            Decision::Bind { node, steps } if steps.is_empty() => {
                self.snapshot.place(Arc::clone(&pod), &node);
                self.writes.push(write::bind(self.objects.clone(), pod, node).boxed());
            }
            Decision::Bind { node, steps } => {
                self.writes.push(write::claims(self.objects.clone(), pod, node, steps).boxed());
            }
            Decision::Refuse { message, causes, preemption } => {
                if let Some(preemption) = &preemption {
                    let place = (preemption.node.clone(), Arc::clone(&pod));
                    self.snapshot.nominated.insert(pod.uid().to_owned(), place);
                }
                self.queue.refused(pod.uid(), causes, Instant::now());
                self.writes.push(write::refuse(self.objects.clone(), pod, message, preemption).boxed());
            }
        }
    }

    fn written(&mut self, written: write::Written) {
        let uid = written.pod.uid();
        match written.outcome {
            write::Outcome::Bound => self.queue.remove(uid),
            write::Outcome::ClaimsPrepared => self.queue.refused(uid, vec![Cause::Volumes], Instant::now()),
            write::Outcome::Refused => {}
            write::Outcome::Gone => {
                self.queue.remove(uid);
                self.snapshot.remove_pod(uid);
            }
            write::Outcome::Failed(error) => {
                tracing::warn!(pod = written.pod.name(), %error, "scheduling failed");
                self.snapshot.remove_pod(uid);
                self.queue.failed(uid, Instant::now());
            }
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Whether the pod waits for this scheduler.
fn is_ours(pod: &PodInfo) -> bool {
    let Some(spec) = pod.spec() else { return false };
    spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        && !pod.is_deleting()
}

/// Whether a node changed in something that a pod could have been refused for.
fn differs(before: &Node, now: &Node) -> bool {
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    before.metadata.labels != now.metadata.labels
        || placement::taints(before) != placement::taints(now)
        || before.spec.as_ref().map(|s| s.unschedulable) != now.spec.as_ref().map(|s| s.unschedulable)
        || allocatable(before) != allocatable(now)
        || builds::learned(before) != builds::learned(now)
}

fn budgets(objects: &Objects) -> Vec<Budget> {
    let budgets = objects.list_typed::<PodDisruptionBudget>(None);
    let one = |pdb: &Arc<PodDisruptionBudget>| Budget {
        namespace: pdb.metadata.namespace.clone().unwrap_or_default(),
        selector: Selector::from_label_selector(pdb.spec.as_ref().and_then(|s| s.selector.as_ref()))
            .unwrap_or(Selector::NOTHING),
        allowed: pdb.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0),
    };
    budgets.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
