//! What the scheduler decides on: nodes, the pods on them, and what those take.
//!
//! Built from lists and kept up to date by events; a copy of sums, the objects themselves are the
//! store's. Pods on nodes that are not known (yet) count as soon as the node is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};

use crate::kinds::{
    builds::{self, Learned},
    labels::Selector,
    placement::{self, HostPort},
    quantity::Quantity,
    resources::{self, ResourceList},
};

/// What a container counts for in scores when it requests nothing (upstream's defaults).
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts of resources.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_bytes: i64,
    /// Extended resources, huge pages, devices; sorted by name.
    pub others: Vec<(Box<str>, i64)>,
}

impl Amounts {
    pub fn of(list: &ResourceList) -> Self {
        let mut amounts = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                "cpu" => amounts.cpu_milli = quantity.milli_value(),
                "memory" => amounts.memory_bytes = quantity.value(),
                "ephemeral-storage" => amounts.ephemeral_bytes = quantity.value(),
                "pods" => {}
                other => amounts.others.push((other.into(), quantity.value())),
            }
        }
        amounts
    }

    /// Adds (`sign` 1) or takes away (`sign` -1).
    pub fn change(&mut self, by: &Self, sign: i64) {
        self.cpu_milli += sign * by.cpu_milli;
        self.memory_bytes += sign * by.memory_bytes;
        self.ephemeral_bytes += sign * by.ephemeral_bytes;
        for (name, amount) in &by.others {
            match self.others.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(index) => self.others[index].1 += sign * amount,
                Err(index) => self.others.insert(index, (name.clone(), sign * amount)),
            }
        }
    }

    /// Whether anything is less than in others.
    pub fn is_less_than(&self, others: &Self) -> bool {
        self.cpu_milli < others.cpu_milli
            || self.memory_bytes < others.memory_bytes
            || self.ephemeral_bytes < others.ephemeral_bytes
            || others.others.iter().any(|(name, amount)| self.other(name) < *amount)
    }

    pub fn other(&self, name: &str) -> i64 {
        self.others.binary_search_by(|(n, _)| (**n).cmp(name)).map_or(0, |index| self.others[index].1)
    }
}

/// A pod and what can be said about it once.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub requests: Amounts,
    /// CPU (milli) and memory (bytes) for scores.
    pub weight: (i64, i64),
    pub ports: Vec<HostPort>,
    /// Terms of required anti-affinity.
    pub anti_affinity: Vec<Term>,
    /// The names of the pod's claims, ephemeral volumes' included.
    pub claims: Vec<String>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let anti = spec.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref());
        let terms = anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let requests = Amounts::of(&resources::pod_requests_now(&pod));
        Self {
            weight: weight(spec, &requests),
            requests,
            ports: placement::host_ports(spec),
            anti_affinity: terms.into_iter().flatten().map(|t| Term::new(&pod, t)).collect(),
            claims: claim_names(&pod),
            pod: Arc::clone(&pod),
        }
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.pod.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub fn node(&self) -> &str {
        self.spec().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
    }

    pub fn priority(&self) -> i32 {
        self.spec().and_then(|s| s.priority).unwrap_or(0)
    }

    /// Whether the pod looks for other pods or avoids them.
    pub fn is_sociable(&self) -> bool {
        let affinity = self.spec().and_then(|s| s.affinity.as_ref());
        affinity.is_some_and(|a| a.pod_affinity.is_some() || a.pod_anti_affinity.is_some())
    }

    pub fn is_deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The uid of the pod's controller.
    pub fn controller(&self) -> Option<&str> {
        let owners = self.pod.metadata.owner_references.as_ref()?;
        owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
    }
}

/// A term of pod (anti)affinity, compiled.
#[derive(Debug)]
pub struct Term {
    pub selector: Selector,
    pub topology_key: String,
    /// Namespaces by name, and by their labels.
    pub namespaces: Vec<String>,
    pub namespace_selector: Selector,
}

impl Term {
    pub fn new(owner: &Pod, term: &k8s_openapi::api::core::v1::PodAffinityTerm) -> Self {
        let compile = |s: Option<&_>| Selector::from_label_selector(s).unwrap_or(Selector::NOTHING);
        let listed = term.namespaces.clone().unwrap_or_default();
        let own = owner.metadata.namespace.clone().unwrap_or_default();
        let namespaces =
            if listed.is_empty() && term.namespace_selector.is_none() { vec![own] } else { listed };
        Self {
            selector: compile(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
            namespaces,
            namespace_selector: compile(term.namespace_selector.as_ref()),
        }
    }

    /// Whether the term speaks of a pod.
    pub fn selects(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let namespace = pod.namespace();
        (self.namespaces.iter().any(|n| n == namespace)
            || self.namespace_selector.matches(|key| namespaces.get(namespace)?.get(key).map(|v| &**v)))
            && self.selector.matches(|key| pod.label(key))
    }
}

/// The labels of namespaces.
pub type Namespaces = HashMap<String, HashMap<String, String>>;

fn weight(spec: &PodSpec, effective: &Amounts) -> (i64, i64) {
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let list = resources::parse(requests);
        (
            list.get("cpu").map_or(DEFAULT_CPU_MILLI, |q: &Quantity| q.milli_value()),
            list.get("memory").map_or(DEFAULT_MEMORY_BYTES, |q| q.value()),
        )
    };
    let sum = spec.containers.iter().map(of).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    (sum.0.max(effective.cpu_milli), sum.1.max(effective.memory_bytes))
}

fn claim_names(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
            (None, None) => None,
        })
        .collect()
}

/// A node, its pods, and what they take together.
#[derive(Debug, Default)]
pub struct NodeInfo {
    /// `None`: pods name a node that is not there.
    pub node: Option<Arc<Node>>,
    /// What the node knows of images.
    learned: Learned,
    /// The sizes (bytes) of the images that the node has, by name.
    pub images: HashMap<Box<str>, i64>,
    pub allocatable: Amounts,
    pub pods_max: i64,
    pub requested: Amounts,
    pub weight: (i64, i64),
    pub pods: Vec<Arc<PodInfo>>,
}

impl NodeInfo {
    fn set_node(&mut self, node: Arc<Node>) {
        let list = resources::parse(node.status.as_ref().and_then(|s| s.allocatable.as_ref()));
        self.pods_max = list.get("pods").map_or(0, |q| q.value());
        self.allocatable = Amounts::of(&list);
        let images = |node: &Node| node.status.as_ref().and_then(|s| s.images.clone()).unwrap_or_default();
        let now = images(&node);
        if self.node.as_ref().is_none_or(|before| images(before) != now) {
            let named = now.iter().flat_map(|i| i.names.iter().flatten().map(|n| (&**n, i.size_bytes)));
            self.images = named.map(|(name, size)| (name.into(), size.unwrap_or(0))).collect();
        }
        self.node = Some(node);
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.change(&pod.requests, 1);
        self.weight = (self.weight.0 + pod.weight.0, self.weight.1 + pod.weight.1);
        self.pods.push(pod);
    }

    /// Takes a pod (by uid) away.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let index = self.pods.iter().position(|p| p.uid() == uid)?;
        let pod = self.pods.swap_remove(index);
        self.requested.change(&pod.requests, -1);
        self.weight = (self.weight.0 - pod.weight.0, self.weight.1 - pod.weight.1);
        Some(pod)
    }

    /// The same node with other pods; for trying out preemption.
    #[must_use]
    pub fn with_pods(&self, pods: impl Iterator<Item = Arc<PodInfo>>) -> Self {
        let mut other = Self {
            node: self.node.clone(),
            allocatable: self.allocatable.clone(),
            pods_max: self.pods_max,
            ..Self::default()
        };
        pods.for_each(|pod| other.add(pod));
        other
    }
}

/// The cluster as the scheduler sees it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By node name; decisions go through them in this order.
    nodes: BTreeMap<String, NodeInfo>,
    /// How many of them are known.
    known: usize,
    /// How many placed pods that stay a controller (uid) has on each node.
    siblings: HashMap<String, HashMap<String, i32>>,
    /// Where each placed pod (uid) is.
    placed: HashMap<String, String>,
    /// How many placed pods look for other pods or avoid them: where there are none, nobody has to
    /// ask each of them.
    sociable: usize,
    pub namespaces: Namespaces,
    /// What the nodes know of images, together.
    pub learned: Learned,
    /// Pods (uid) that wait for room on a node, made by preemption.
    pub nominated: HashMap<String, (String, Arc<PodInfo>)>,
}

impl Snapshot {
    /// The known nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = (&Arc<Node>, &NodeInfo)> {
        self.nodes.values().filter_map(|info| Some((info.node.as_ref()?, info)))
    }

    pub fn node_count(&self) -> usize {
        self.known
    }

    /// How many pods of a controller (uid) are on which nodes.
    pub fn siblings(&self, controller: &str) -> impl Iterator<Item = (&str, i32)> {
        let all = self.siblings.get(controller).into_iter().flatten();
        all.map(|(node, count)| (node.as_str(), *count))
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|info| info.node.is_some())
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = placement::node_name(&node).to_owned();
        let learned = builds::learned(&node);
        let info = self.nodes.entry(name).or_default();
        self.known += usize::from(info.node.is_none());
        info.set_node(node);
        if info.learned != learned {
            info.learned = learned;
            self.learn();
        }
    }

    /// Sums up what the nodes know of images.
    fn learn(&mut self) {
        let mut all = Learned::new();
        for (_, info) in self.nodes() {
            builds::add(&mut all, &info.learned);
        }
        self.learned = all;
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(info) = self.nodes.get_mut(name) else { return };
        self.known -= usize::from(info.node.take().is_some());
        let knew = !std::mem::take(&mut info.learned).is_empty();
        if info.pods.is_empty() {
            self.nodes.remove(name);
        }
        if knew {
            self.learn();
        }
    }

    /// Puts a pod where it is bound to, in place of what was known of it, which is given back.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) -> Option<Arc<PodInfo>> {
        let before = self.remove_pod(pod.uid());
        self.nominated.remove(pod.uid());
        self.placed.insert(pod.uid().to_owned(), node.to_owned());
        self.sociable += usize::from(pod.is_sociable());
        if let Some(controller) = pod.controller().filter(|_| !pod.is_deleting()) {
            let on = self.siblings.entry(controller.to_owned()).or_default();
            *on.entry(node.to_owned()).or_default() += 1;
        }
        self.nodes.entry(node.to_owned()).or_default().add(pod);
        before
    }

    /// Forgets a pod; gives it back when it had a place.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let node = self.placed.remove(uid)?;
        let mut gone = None;
        if let Some(info) = self.nodes.get_mut(&node) {
            gone = info.remove(uid);
            self.sociable -= usize::from(gone.as_ref().is_some_and(|pod| pod.is_sociable()));
            if let Some(controller) = gone.as_ref().filter(|p| !p.is_deleting()).and_then(|p| p.controller())
            {
                let on = self.siblings.get_mut(controller);
                if on.is_some_and(|on| less_one(on, &node)) {
                    self.siblings.remove(controller);
                }
            }
            if info.node.is_none() && info.pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
        gone
    }

    /// Whether any placed pod looks for other pods or avoids them.
    pub fn has_sociable(&self) -> bool {
        self.sociable > 0
    }

    /// All placed pods of known nodes, with their node.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<Node>, &Arc<PodInfo>)> {
        self.nodes().flat_map(|(node, info)| info.pods.iter().map(move |pod| (node, pod)))
    }
}

/// Counts one less; true when nothing is left to count.
fn less_one(counts: &mut HashMap<String, i32>, key: &str) -> bool {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count <= 0 {
            counts.remove(key);
        }
    }
    counts.is_empty()
}
