//! Which PersistentVolume suits which claim (`k8s.io/component-helpers/storage`): the binder and
//! the scheduler decide with this.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};

use super::{labels::Selector, placement, quantity::Quantity, resources};

/// Set by the scheduler: the node for which a claim is to be provisioned.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Set on a volume whose claim was chosen by the system, not by the user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Set on a claim that is bound.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Names who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The built-in provisioner's name in a StorageClass: folders on nodes.
pub const LOCAL_PATH: &str = "sampan.dev/local-path";
/// The finalizer of a `local-path` volume whose folder is still on its node.
pub const LOCAL_PATH_CLEANUP: &str = "sampan.dev/local-path-cleanup";
/// A node's annotation: the folder in which it has its `local-path` volumes.
pub const LOCAL_PATH_ROOT: &str = "sampan.dev/local-path-root";
/// A node's annotation: bytes of the file system that has them.
pub const LOCAL_PATH_CAPACITY: &str = "sampan.dev/local-path-capacity";
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Whether the built-in provisioner made a volume.
pub fn is_local_path(volume: &PersistentVolume) -> bool {
    volume.metadata.annotations.iter().flatten().any(|(k, v)| k == PROVISIONED_BY && v == LOCAL_PATH)
}

/// The node that has the folder of a `local-path` volume.
pub fn local_path_node(volume: &PersistentVolume) -> Option<&str> {
    let spec = volume.spec.as_ref().filter(|_| is_local_path(volume))?;
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.filter(|f| f.key == "metadata.name").find_map(|f| f.values.as_ref()?.first()).map(String::as_str)
}

/// The labels that say where a volume or a node is.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// Whether a volume's zone, where its labels name one (or several: `a__b`), is the node's; a node that
/// is in none has all (upstream's VolumeZone).
pub fn in_zone(volume: &PersistentVolume, node: &Node) -> bool {
    let placed = ZONES.iter().any(|key| placement::node_label(node, key).is_some());
    let labels = volume.metadata.labels.iter().flatten().filter(|(key, _)| ZONES.contains(&key.as_str()));
    let mut labels = labels.map(|(key, zones)| (placement::node_label(node, key), zones));
    !placed || labels.all(|(zone, zones)| zone.is_some_and(|zone| zones.split("__").any(|z| z == zone)))
}

/// Bytes of the folders that a node has promised to `local-path` volumes.
pub fn promised<'a>(node: &Node, volumes: impl Iterator<Item = &'a PersistentVolume>) -> Quantity {
    let own = volumes.filter(|volume| local_path_node(volume) == Some(placement::node_name(node)));
    own.fold(Quantity::ZERO, |sum, volume| sum + volume_size(volume))
}

/// Whether a node's file system holds folders of so many bytes; a node that does not say holds any.
pub fn has_room(node: &Node, bytes: Quantity) -> bool {
    let said = node.metadata.annotations.as_ref().and_then(|a| a.get(LOCAL_PATH_CAPACITY));
    said.and_then(|text| text.parse::<Quantity>().ok()).is_none_or(|capacity| bytes <= capacity)
}

/// Whether a `local-path` volume's folder has to be removed by its node: it is deleted, its claim
/// is gone, and it is not to be retained.
pub fn local_path_doomed(volume: &PersistentVolume) -> bool {
    let held = volume.metadata.finalizers.iter().flatten().any(|f| f == LOCAL_PATH_CLEANUP);
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    is_local_path(volume)
        && volume.metadata.deletion_timestamp.is_some()
        && held
        && policy == Some("Delete")
        && phase != Some("Bound")
}

/// The class a claim asks for; empty: none.
pub fn claim_class(claim: &PersistentVolumeClaim) -> &str {
    let annotation = claim.metadata.annotations.as_ref().and_then(|a| a.get(BETA_CLASS));
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    annotation.or(field).map(String::as_str).unwrap_or_default()
}

pub fn volume_class(volume: &PersistentVolume) -> &str {
    let annotation = volume.metadata.annotations.as_ref().and_then(|a| a.get(BETA_CLASS));
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    annotation.or(field).map(String::as_str).unwrap_or_default()
}

/// The storage a claim asks for.
pub fn claim_size(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    resources::parse(requests).get("storage").copied().unwrap_or(Quantity::ZERO)
}

pub fn volume_size(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|s| s.capacity.as_ref());
    resources::parse(capacity).get("storage").copied().unwrap_or(Quantity::ZERO)
}

/// Whether a volume refers to this claim (by name, and by uid once it has one).
pub fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (reference.uid.as_deref().unwrap_or_default().is_empty() || reference.uid == claim.metadata.uid)
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Why a volume cannot be given to a claim that names it, in upstream's words
/// (`pkg/controller/volume/persistentvolume/pv_controller.go`, `checkVolumeSatisfyClaim`).
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (Some(has), Some(wants)) = (volume.spec.as_ref(), claim.spec.as_ref()) else { return None };
    let attributes = |name: &Option<String>| name.clone().unwrap_or_default();
    let offered = has.access_modes.as_deref().unwrap_or_default();
    if volume_size(volume) < claim_size(claim) {
        Some("requested PV is too small")
    } else if volume_class(volume) != claim_class(claim) {
        Some("storageClassName does not match")
    } else if attributes(&has.volume_attributes_class_name) != attributes(&wants.volume_attributes_class_name)
    {
        Some("volumeAttributesClassName does not match")
    } else if mode(has.volume_mode.as_ref()) != mode(wants.volume_mode.as_ref()) {
        Some("incompatible volumeMode")
    } else if !wants.access_modes.iter().flatten().all(|wanted| offered.contains(wanted)) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// Whether the modes, the size, the class and the selector suit; not whether the volume is free.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let selector = match claim.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(selector) => Selector::from_label_selector(Some(selector)).unwrap_or(Selector::NOTHING),
        None => Selector::EVERYTHING,
    };
    volume.metadata.deletion_timestamp.is_none()
        && mismatch(volume, claim).is_none()
        && selector.matches_map(volume.metadata.labels.as_ref())
}

/// Whether a volume can be used on a node.
pub fn reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let required =
        volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    required.is_none_or(|selector| placement::selector_selects(selector, node))
}

/// The smallest free volume that suits a claim and that `allowed` lets through; one that the user
/// has reserved for the claim goes before all.
pub fn find<'a, V>(
    volumes: impl Iterator<Item = &'a V>,
    claim: &PersistentVolumeClaim,
    allowed: impl Fn(&PersistentVolume) -> bool,
) -> Option<&'a V>
where
    V: AsRef<PersistentVolume> + 'a,
{
    let mut best: Option<&V> = None;
    for candidate in volumes {
        let volume = candidate.as_ref();
        if refers_to(volume, claim) && suits(volume, claim) {
            return Some(candidate);
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Available");
        let free = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_none())
            && matches!(phase, "Available" | "Pending");
        let smaller = |than: &&V| volume_size(volume) < volume_size(than.as_ref());
        if free && suits(volume, claim) && allowed(volume) && best.as_ref().is_none_or(smaller) {
            best = Some(candidate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_fit_beside_those_that_are_promised() {
        let node: Node = serde_json::from_value(serde_json::json!({"metadata": {"name": "n",
            "annotations": {LOCAL_PATH_CAPACITY: "10737418240"}}}))
        .unwrap();
        let folder = |node: &str, size: &str| -> PersistentVolume {
            serde_json::from_value(serde_json::json!({
                "metadata": {"annotations": {PROVISIONED_BY: LOCAL_PATH}},
                "spec": {"capacity": {"storage": size}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
            }))
            .unwrap()
        };
        let all = [folder("n", "6Gi"), folder("other", "9Gi")];
        let with = |more: &str| promised(&node, all.iter()) + more.parse().unwrap();
        assert!(has_room(&node, with("4Gi")));
        assert!(!has_room(&node, with("5Gi")));
        assert!(has_room(&Node::default(), with("5Ti")), "a node that does not say");
    }

    #[test]
    fn a_volume_is_used_in_its_zones() {
        let labelled = |value: &str| serde_json::json!({"metadata": {"labels": {ZONES[0]: value}}});
        let volume: PersistentVolume = serde_json::from_value(labelled("a__b")).unwrap();
        for (zone, is_in) in [("a", true), ("b", true), ("c", false)] {
            assert_eq!(in_zone(&volume, &serde_json::from_value(labelled(zone)).unwrap()), is_in, "{zone}");
        }
        assert!(in_zone(&volume, &Node::default()));
        assert!(in_zone(&PersistentVolume::default(), &serde_json::from_value(labelled("c")).unwrap()));
    }
}
