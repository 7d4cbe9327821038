//! A pod's claims: which nodes they allow, and what has to be bound before the pod can be.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};

use super::snapshot::{PodInfo, Snapshot};
use crate::{
    kinds::{placement, quantity::Quantity, volumes},
    objects::Objects,
};

/// The provisioner of a class whose volumes are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The claims of one pod.
#[derive(Debug, Default)]
pub struct Claims {
    /// Why no node will do.
    pub problem: Option<String>,
    items: Vec<Claim>,
    /// Bytes of the folders that each node has promised, where that matters.
    promised: HashMap<String, Quantity>,
}

#[derive(Debug)]
enum Claim {
    Bound(Arc<PersistentVolume>),
    /// Bound when its first consumer is scheduled.
    Delayed {
        claim: Arc<PersistentVolumeClaim>,
        class: Arc<StorageClass>,
        free: Vec<Arc<PersistentVolume>>,
    },
    /// `ReadWriteOncePod`, and another pod has it.
    InUse,
}

/// Whether the claims allow a node.
#[derive(Debug, PartialEq)]
pub enum VolumeFit {
    Fits,
    Refused(Cow<'static, str>),
    InUse(Cow<'static, str>),
}

/// What has to happen to a claim before its pod can be bound.
#[derive(Debug)]
pub enum Step {
    /// The volume gets a reference to the claim.
    Reserve { claim: Arc<PersistentVolumeClaim>, volume: Arc<PersistentVolume> },
    /// The claim is marked with the node, for which its class then makes a volume.
    Provision { claim: Arc<PersistentVolumeClaim> },
}

impl Claims {
    /// Looks the pod's claims up.
    pub fn of(objects: &Objects, snapshot: &Snapshot, pod: &PodInfo) -> Self {
        let mut all = Self::default();
        for name in &pod.claims {
            match find(objects, snapshot, pod, name) {
                Ok(claim) => all.items.push(claim),
                Err(problem) => all.problem = all.problem.or(Some(problem)),
            }
        }
        let folders = |claim: &Claim| matches!(claim, Claim::Delayed { class, .. } if class.provisioner == volumes::LOCAL_PATH);
        if all.items.iter().any(folders) {
            for volume in objects.list_typed::<PersistentVolume>(None) {
                if let Some(node) = volumes::local_path_node(&volume) {
                    *all.promised.entry(node.to_owned()).or_insert(Quantity::ZERO) +=
                        volumes::volume_size(&volume);
                }
            }
        }
        all
    }

    pub fn fit(&self, node: &Node) -> VolumeFit {
        let mut taken: Vec<&str> = Vec::new();
        let mut folders = Quantity::ZERO;
        for claim in &self.items {
            match claim {
                Claim::InUse => {
                    return VolumeFit::InUse(
                        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
                            .into(),
                    );
                }
                Claim::Bound(volume) if !volumes::reachable(volume, node) => {
                    return VolumeFit::Refused(
                        "node(s) didn't match PersistentVolume's node affinity".into(),
                    );
                }
                Claim::Bound(volume) if !volumes::in_zone(volume, node) => {
                    return VolumeFit::Refused("node(s) had no available volume zone".into());
                }
                Claim::Bound(_) => {}
                Claim::Delayed { claim, class, free } => match choose(claim, free, node, &taken) {
                    Some(volume) => taken.extend(volume.metadata.name.as_deref()),
                    None if provisions(class, node) => {
                        if class.provisioner == volumes::LOCAL_PATH {
                            folders += volumes::claim_size(claim);
                            let promised = self.promised.get(placement::node_name(node)).copied();
                            if !volumes::has_room(node, promised.unwrap_or(Quantity::ZERO) + folders) {
                                return VolumeFit::Refused("node(s) did not have enough free storage".into());
                            }
                        }
                    }
                    None => {
                        return VolumeFit::Refused(
                            "node(s) didn't find available persistent volumes to bind".into(),
                        );
                    }
                },
            }
        }
        VolumeFit::Fits
    }

    /// What has to happen for a node that fits.
    pub fn steps(&self, node: &Node) -> Vec<Step> {
        let mut taken: Vec<&str> = Vec::new();
        let mut steps = Vec::new();
        for item in &self.items {
            let Claim::Delayed { claim, free, .. } = item else { continue };
            let claim = Arc::clone(claim);
            match choose(&claim, free, node, &taken) {
                Some(volume) => {
                    taken.extend(volume.metadata.name.as_deref());
                    steps.push(Step::Reserve { claim, volume: Arc::clone(volume) });
                }
                None => steps.push(Step::Provision { claim }),
            }
        }
        steps
    }
}

fn choose<'a>(
    claim: &PersistentVolumeClaim,
    free: &'a [Arc<PersistentVolume>],
    node: &Node,
    taken: &[&str],
) -> Option<&'a Arc<PersistentVolume>> {
    let untaken = free.iter().filter(|v| !taken.contains(&v.metadata.name.as_deref().unwrap_or_default()));
    volumes::find(untaken, claim, |volume| volumes::reachable(volume, node))
        .filter(|volume| volumes::reachable(volume, node))
}

/// Whether a class makes volumes for a node.
fn provisions(class: &StorageClass, node: &Node) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let allows = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        term.match_label_expressions.iter().flatten().all(|expression| {
            placement::node_label(node, &expression.key)
                .is_some_and(|v| expression.values.iter().any(|w| w == v))
        })
    };
    class.provisioner != NO_PROVISIONER && (terms.is_empty() || terms.iter().any(allows))
}

/// Whether a claim of a pod is one of its ephemeral volumes'.
fn is_ephemeral(pod: &PodInfo, claim: &str) -> bool {
    let Some(volume) = claim.strip_prefix(pod.name()).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let volumes = pod.spec().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().any(|v| v.ephemeral.is_some() && v.name == volume)
}

fn find(objects: &Objects, snapshot: &Snapshot, pod: &PodInfo, name: &str) -> Result<Claim, String> {
    let namespace = pod.namespace();
    let ephemeral = is_ephemeral(pod, name);
    let Some(claim) = objects.get_typed::<PersistentVolumeClaim>(namespace, name) else {
        return Err(if ephemeral {
            format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
        } else {
            format!("persistentvolumeclaim {name:?} not found")
        });
    };
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    if status == "Lost" {
        let volume = spec.volume_name.as_deref().unwrap_or_default();
        return Err(format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
        ));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    let owned = claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == pod.uid());
    if ephemeral && !owned {
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name()
        ));
    }
    let exclusive = spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod");
    let uses = |other: &PodInfo| {
        other.namespace() == namespace && other.uid() != pod.uid() && other.claims.iter().any(|c| c == name)
    };
    if exclusive && snapshot.pods().any(|(_, other)| uses(other)) {
        return Ok(Claim::InUse);
    }
    let completed =
        claim.metadata.annotations.iter().flatten().any(|(key, _)| key == volumes::BIND_COMPLETED);
    if let Some(volume) = spec.volume_name.as_deref().filter(|v| !v.is_empty() && completed) {
        return match objects.get_typed::<PersistentVolume>("", volume) {
            Some(volume) => Ok(Claim::Bound(volume)),
            None => Err(format!("persistentvolume {volume:?} not found")),
        };
    }
    let class = objects.get_typed::<StorageClass>("", volumes::claim_class(&claim));
    match class.filter(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")) {
        Some(class) => {
            let free = objects.list_typed::<PersistentVolume>(None);
            Ok(Claim::Delayed { claim, class, free })
        }
        None => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
    }
}
