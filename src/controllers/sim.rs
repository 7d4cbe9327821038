//! A cluster without nodes for tests: a real store in a temporary directory, a clock moved by
//! hand, the controllers' own plans and executor, a kubelet of a few lines, and what can go wrong
//! with plans ([`mangle`]).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{Metadata, Resource, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    plan::{Action, Plan},
    runner::{Controller, Round, execute, whole_second},
};
use crate::{
    clock::{Clock, ManualClock},
    kinds::{Kind, Subresource, registry},
    objects::{Binding, DeleteOptions, Objects, WriteOptions},
    patch::merge_patch,
    store::{Key, Store},
};

/// How many rounds a cluster may take to come to rest.
const ROUNDS_MAX: usize = 200;

/// `xorshift64*`: the same numbers for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % sides
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(usize::try_from(self.roll(of.len() as u64)).unwrap()) }
    }
}

/// What becomes of a plan where things go wrong.
pub fn mangle(mut plan: Plan, dice: &mut Dice) -> Vec<Plan> {
    match dice.roll(8) {
        // The event was lost, or the master ended before it began.
        0 => Vec::new(),
        // The master ended in the middle.
        1 if !plan.actions.is_empty() => {
            let kept = dice.roll(plan.actions.len() as u64);
            plan.actions.truncate(usize::try_from(kept).unwrap());
            plan.events.clear();
            vec![plan]
        }
        // It did not know that it had done so already. Creations of generated names would be
        // new objects, and no runner repeats them: it looks again first.
        2 if !plan.actions.iter().any(|a| matches!(a, Action::Create { .. })) => vec![plan.clone(), plan],
        _ => vec![plan],
    }
}

/// What the kubelet makes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Run,
    RunUnready,
    Fail,
    Succeed,
    Leave,
}

pub struct Sim {
    pub objects: Objects,
    pub clock: Arc<ManualClock>,
    /// Where pods are put; empty: on a node that there is no object of.
    pub nodes: Vec<String>,
    /// Nodes that do nothing.
    pub down: HashSet<String>,
    controllers: Vec<Arc<dyn Controller>>,
    failures: HashMap<(usize, Key), String>,
    options: WriteOptions,
    _dir: tempfile::TempDir,
}

impl Sim {
    pub fn new(controllers: Vec<Arc<dyn Controller>>) -> Self {
        // Where there is memory for files, no disk is waited for.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = Store::open(&dir.path().join("state.db")).unwrap();
        let start: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let clock = Arc::new(ManualClock::new(start));
        let objects = Objects::new(store, clock.clone());
        let options = WriteOptions::system("test");
        let (nodes, down, failures) = (Vec::new(), HashSet::new(), HashMap::new());
        Self { objects, clock, nodes, down, controllers, failures, options, _dir: dir }
    }

    /// The master ends and begins anew: what controllers had in memory is lost.
    pub fn restart(&mut self, controllers: Vec<Arc<dyn Controller>>) {
        self.controllers = controllers;
        self.failures.clear();
    }

    pub fn pass(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
    }

    /// Creates an object from JSON; if its kind has namespaces and it names none, in `default`.
    pub async fn create(&self, object: Value) {
        let api_version = object["apiVersion"].as_str().unwrap();
        let kind = registry::by_type(api_version, object["kind"].as_str().unwrap()).unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let namespace = if kind.namespaced { namespace } else { String::new() };
        self.objects.create(kind, &namespace, object, &self.options).await.unwrap();
    }

    /// Merges into an object.
    pub async fn change<T: Resource>(&self, name: &str, patch: Value) {
        self.patch::<T>(None, name, patch).await;
    }

    pub async fn change_status<T: Resource>(&self, name: &str, patch: Value) {
        self.patch::<T>(Some(Subresource::Status), name, json!({ "status": patch })).await;
    }

    async fn patch<T: Resource>(&self, subresource: Option<Subresource>, name: &str, patch: Value) {
        self.merge(registry::of::<T>(), subresource, name, patch).await;
    }

    pub async fn merge(&self, kind: &Kind, subresource: Option<Subresource>, name: &str, patch: Value) {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.objects
            .modify(kind, subresource, namespace, name, &self.options, |value| {
                *value = merge_patch(value, &patch);
                Ok(())
            })
            .await
            .unwrap();
    }

    pub async fn delete<T: Resource>(&self, name: &str, grace_seconds: Option<i64>) {
        self.remove(registry::of::<T>(), name, DeleteOptions { grace_seconds, ..DeleteOptions::default() })
            .await;
    }

    pub async fn remove(&self, kind: &Kind, name: &str, delete: DeleteOptions) {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.objects.delete(kind, namespace, name, &delete, &self.options).await.unwrap();
    }

    pub fn get<T>(&self, name: &str) -> Arc<T>
    where
        T: Resource + DeserializeOwned + Send + Sync + 'static,
    {
        let kind = registry::of::<T>();
        let namespace = if kind.namespaced { "default" } else { "" };
        self.objects.get_typed(namespace, name).unwrap_or_else(|| panic!("no {} {name}", T::KIND))
    }

    pub fn list<T>(&self) -> Vec<Arc<T>>
    where
        T: Resource + DeserializeOwned + Send + Sync + 'static,
    {
        self.objects.list_typed(None)
    }

    /// The names of all objects of a kind.
    pub fn names<T>(&self) -> Vec<String>
    where
        T: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static,
    {
        self.list::<T>().iter().map(|o| o.metadata().name.clone().unwrap_or_default()).collect()
    }

    /// Every controller looks at every key once; `check` sees the cluster after each plan.
    pub async fn step(&mut self, check: &mut impl FnMut(&Objects)) {
        self.faulty_step(&mut |plan| vec![plan], &mut |objects, _| check(objects)).await;
    }

    /// The same, with what `mangle` makes of each plan; `check` is told whose plan it was.
    pub async fn faulty_step(
        &mut self,
        mangle: &mut impl FnMut(Plan) -> Vec<Plan>,
        check: &mut impl FnMut(&Objects, &'static str),
    ) {
        for (index, controller) in self.controllers.clone().iter().enumerate() {
            for key in self.keys(controller.as_ref()) {
                let id = (index, key.clone());
                let round =
                    Round { now: whole_second(self.clock.now()), failure: self.failures.get(&id).cloned() };
                for plan in mangle(controller.plan(&self.objects, &key, &round)) {
                    match execute(&self.objects, controller.name(), &plan).await {
                        Ok(()) => self.failures.remove(&id),
                        Err(error) if error.is_conflict() => None,
                        Err(error) => self.failures.insert(id.clone(), error.to_string()),
                    };
                    check(&self.objects, controller.name());
                }
            }
        }
    }

    /// What the controllers would still do now.
    pub fn plans(&self) -> Vec<(&'static str, Plan)> {
        let mut all = Vec::new();
        for controller in &self.controllers {
            for key in self.keys(controller.as_ref()) {
                let round = Round { now: whole_second(self.clock.now()), failure: None };
                all.push((controller.name(), controller.plan(&self.objects, &key, &round)));
            }
        }
        all
    }

    /// What a controller would look at, had everything there is just changed.
    fn keys(&self, controller: &dyn Controller) -> BTreeSet<Key> {
        let list = |resource: &str| self.objects.store().list(resource, None).items;
        let mut keys: BTreeSet<Key> = list(controller.primary()).iter().map(|o| o.key.clone()).collect();
        for source in controller.sources() {
            keys.extend(list(source.resource).iter().flat_map(|o| (source.keys)(&self.objects, o)));
        }
        keys
    }

    /// Runs controllers and the kubelet until nothing is written any more.
    pub async fn settle(&mut self, fate: impl Fn(&Pod) -> Fate, mut check: impl FnMut(&Objects)) {
        for _ in 0..ROUNDS_MAX {
            let before = self.fingerprint();
            self.step(&mut check).await;
            self.kubelet(&fate).await;
            if self.fingerprint() == before {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Changes with every object but Events, which may be said again and again. What is made anew takes the
    /// next revision, so none stands twice for different things (a sum of them could).
    pub fn fingerprint(&self) -> BTreeSet<u64> {
        self.objects.store().find(|o| &*o.key.resource != "events").iter().map(|o| o.revision.0).collect()
    }

    /// The node of a pod that has none yet.
    fn place<'a>(&'a self, pod: &'a Pod) -> Option<&'a str> {
        let up: Vec<&String> = self.nodes.iter().filter(|node| !self.down.contains(*node)).collect();
        match super::daemon_set::target_node(pod) {
            Some(node) => Some(node).filter(|node| !self.down.contains(*node)),
            None if self.nodes.is_empty() => Some("node"),
            None => {
                let dice = pod.metadata.uid.iter().flat_map(|u| u.bytes()).map(usize::from).sum::<usize>();
                up.get(dice % up.len().max(1)).map(|node| node.as_str())
            }
        }
    }

    /// One pass of the kubelet of all nodes (which also schedules).
    pub async fn kubelet(&self, fate: &impl Fn(&Pod) -> Fate) {
        for pod in self.list::<Pod>() {
            let name = pod.metadata.name.as_deref().unwrap();
            let phase = super::pods::phase(&pod);
            if self.down.contains(super::pods::node_name(&pod)) {
                continue;
            }
            if super::pods::is_deleting(&pod) {
                if pod.metadata.finalizers.iter().flatten().next().is_none() {
                    self.delete::<Pod>(name, Some(0)).await;
                } else if phase == "Running" {
                    self.change_status::<Pod>(name, json!({"phase": "Failed"})).await;
                }
                continue;
            }
            if matches!(phase, "Succeeded" | "Failed") {
                continue;
            }
            if super::pods::node_name(&pod).is_empty() {
                let Some(node) = self.place(&pod) else { continue };
                let binding = Binding { node, ..Binding::default() };
                self.objects.bind("default", name, &binding, &self.options).await.unwrap();
            }
            let (phase, ready) = match fate(&pod) {
                Fate::Run => ("Running", true),
                Fate::RunUnready => ("Running", false),
                Fate::Fail => ("Failed", false),
                Fate::Succeed => ("Succeeded", false),
                Fate::Leave => continue,
            };
            if super::pods::phase(&pod) == phase && super::pods::is_ready(&pod) == ready {
                continue;
            }
            let state = if ready { "True" } else { "False" };
            let then = crate::clock::rfc3339_seconds(self.clock.now());
            let condition = json!({"type": "Ready", "status": state, "lastTransitionTime": then});
            self.change_status::<Pod>(name, json!({"phase": phase, "conditions": [condition]})).await;
        }
    }
}

/// A pod template that validates.
pub fn template(labels: Value, image: &str) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}})
}
