//! Volumes behind claims: what a PersistentVolume is on this node.

use std::{
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Volume,
};

use super::{
    super::{ledger::Ledger, record::Wanted, shared::Shared},
    Mounted, at, blocking, dir_of, nfs, ownership, patiently, payload, quota,
};
use crate::{
    kinds::{placement, quantity::Quantity, volumes},
    mqtt::messages::ItemKind,
};

/// What a claim leads to.
#[derive(Debug)]
pub struct Found {
    pub name: String,
    volume: PersistentVolume,
    /// No second pod may have it.
    alone: bool,
    /// The uid of whom the claim was made for.
    controller: Option<String>,
}

/// The volume behind a claim. A pod that `runs` keeps what it has; others do not begin with a claim that
/// goes.
///
/// # Errors
/// Why there is none, in upstream's words (`pkg/kubelet/volumemanager/populator`).
pub fn find(
    shared: &Shared,
    wanted: &Wanted,
    volume: &Volume,
    name: &str,
    runs: bool,
) -> Result<Found, String> {
    let found = behind(&shared.ledger, &wanted.namespace, name, runs)
        .map_err(|why| format!("error processing PVC {}/{name}: {why}", wanted.namespace))?;
    if volume.ephemeral.is_some() && found.controller.as_ref() != Some(&wanted.uid) {
        let Wanted { namespace, name: pod, .. } = wanted;
        return Err(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{pod} (pod is not owner)"
        ));
    }
    let mode = found.volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref());
    let mounted = wanted
        .containers()
        .any(|(_, c)| c.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name));
    match mode.unwrap_or("Filesystem") {
        "Filesystem" if mounted => Ok(found),
        mode if mounted => {
            Err(format!("volume {} has volumeMode {mode}, but is specified in volumeMounts", volume.name))
        }
        "Block" => Ok(found),
        mode => {
            Err(format!("volume {} has volumeMode {mode}, but is specified in volumeDevices", volume.name))
        }
    }
}

fn behind(ledger: &Ledger, namespace: &str, name: &str, runs: bool) -> Result<Found, String> {
    let claim: PersistentVolumeClaim =
        ledger.object(ItemKind::PersistentVolumeClaim, namespace, name).ok_or_else(|| {
            format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found")
        })?;
    let spec = claim.spec.unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() && !runs {
        return Err("PVC is being deleted".to_owned());
    }
    if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound".to_owned());
    }
    let Some(name) = spec.volume_name.filter(|name| !name.is_empty()) else {
        return Err("PVC has empty pvc.Spec.VolumeName".to_owned());
    };
    let volume: PersistentVolume = ledger.object(ItemKind::PersistentVolume, "", &name).ok_or_else(|| {
        format!("failed to fetch PV {name} from API server: persistentvolumes {name:?} not found")
    })?;
    let Some(owner) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    let [owner, uid] = [&owner.uid, &claim.metadata.uid].map(|uid| uid.as_deref().unwrap_or_default());
    if owner != uid {
        return Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {owner} does not point to claim.UID {uid}"
        ));
    }
    let alone = spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod");
    let mut owners = claim.metadata.owner_references.into_iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid);
    Ok(Found { name, volume, alone, controller })
}

/// Whether the volume is one of this node: who has not asked the scheduler may be anywhere.
///
/// # Errors
/// In upstream's words (`CheckNodeAffinity`).
pub fn belongs(found: &Found, node: &Node) -> Result<(), String> {
    let affinity = found.volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    // Labels that the master has not told yet tell nothing.
    let known = node.metadata.labels.is_some();
    if required.is_some_and(|required| known && !placement::selector_selects(required, node)) {
        return Err("no matching NodeSelectorTerms".to_owned());
    }
    Ok(())
}

/// A path of the host is no mount, and has no options.
///
/// # Errors
/// In upstream's words (`checkMountOptionSupport`).
pub fn takes_options(found: &Found) -> Result<(), String> {
    let given = found.volume.spec.as_ref().filter(|spec| spec.host_path.is_some());
    let options =
        given.and_then(|spec| spec.mount_options.as_ref()).is_some_and(|options| !options.is_empty());
    if options && !volumes::is_local_path(&found.volume) {
        return Err("Mount options are not supported for this volume type".to_owned());
    }
    Ok(())
}

/// Makes the volume of a claim ready.
///
/// # Errors
/// What is wrong with it.
pub async fn ready(
    shared: &Shared,
    wanted: &Wanted,
    found: Found,
    claim: &str,
    read_only: bool,
) -> Result<Mounted, String> {
    take(shared, wanted, &found.name, claim, found.alone)?;
    source(shared, wanted, &found.volume, &found.name, read_only).await
}

/// Looks whether a folder of the node that is a volume is there.
///
/// # Errors
/// In upstream's words (`pkg/volume/local`).
pub async fn look(shared: &Shared, wanted: &Wanted, found: &Found) -> Result<(), String> {
    let Some(local) = found.volume.spec.as_ref().and_then(|spec| spec.local.as_ref()) else { return Ok(()) };
    let path = PathBuf::from(&local.path);
    let what = format!("looking at {:?}", local.path);
    let key = dir_of(shared, wanted, "local-volume", &found.name);
    patiently(shared, &key, &what, move || is_folder(&path), || ()).await
}

/// Notes that the pod has the volume; a volume for one pod is refused to a second.
fn take(shared: &Shared, wanted: &Wanted, volume: &str, claim: &str, alone: bool) -> Result<(), String> {
    let mut in_use = shared.volumes_in_use();
    let others = in_use.iter().any(|(uid, volumes)| *uid != wanted.uid && volumes.contains_key(volume));
    if alone && others {
        return Err(
            "volume uses the ReadWriteOncePod access mode and is already in use by another pod".to_owned()
        );
    }
    let of_pod = in_use.entry(wanted.uid.clone()).or_default();
    of_pod.insert(volume.to_owned(), (wanted.namespace.clone(), claim.to_owned()));
    Ok(())
}

async fn source(
    shared: &Shared,
    wanted: &Wanted,
    volume: &PersistentVolume,
    name: &str,
    read_only: bool,
) -> Result<Mounted, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("volumes of volumeMode Block are not supported by Sampan".to_owned());
    }
    if let Some(export) = &spec.nfs {
        let export = nfs::Export {
            server: export.server.clone(),
            path: export.path.clone(),
            read_only: read_only || export.read_only == Some(true),
            options: spec.mount_options.clone().unwrap_or_default(),
        };
        let read_only = export.read_only;
        let path = dir_of(shared, wanted, "nfs", name);
        super::mount_nfs(shared, export, &path).await?;
        return Ok(Mounted { path, read_only });
    }
    let path = if let Some(local) = spec.local {
        PathBuf::from(local.path)
    } else if let Some(source) = spec.host_path.clone() {
        let path = PathBuf::from(&source.path);
        if volumes::is_local_path(volume) {
            folder(shared, wanted, &spec, name, &path).await?;
        } else {
            // Upstream does not change the ownership of a path of the host.
            super::host_path(shared, wanted, name, source).await?;
            return Ok(Mounted { path, read_only });
        }
        path
    } else {
        return Err(format!(
            "persistentvolume {name:?}: volumes of type {:?} are not supported by Sampan",
            kind_of(&spec)
        ));
    };
    if let Some(group) = payload::Group::of(wanted).filter(|_| !read_only) {
        ownership::give(shared, wanted, name, path.clone(), group).await?;
    }
    Ok(Mounted { path, read_only })
}

fn is_folder(path: &Path) -> Result<(), String> {
    let shown = path.display().to_string();
    match std::fs::metadata(path) {
        Err(_) => Err(format!("path {shown:?} does not exist")),
        Ok(data) if data.is_dir() => Ok(()),
        Ok(data) if data.file_type().is_block_device() => {
            Err(format!("path {shown:?} is a device: file systems on devices are not mounted by Sampan"))
        }
        Ok(_) => Err("only directory and block device are supported".to_owned()),
    }
}

/// The name of the field that says what a volume is.
fn kind_of(spec: &PersistentVolumeSpec) -> String {
    const PLAIN: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    let fields = serde_json::to_value(spec).unwrap_or_default();
    let mut fields = fields.as_object().into_iter().flatten().map(|(name, _)| name);
    fields.find(|name| !PLAIN.contains(&name.as_str())).cloned().unwrap_or_default()
}

/// Bytes of a volume.
fn size(spec: &PersistentVolumeSpec) -> Option<u64> {
    let capacity: Quantity = spec.capacity.as_ref()?.get("storage")?.0.parse().ok()?;
    u64::try_from(capacity.value()).ok().filter(|bytes| *bytes > 0)
}

/// The folder of a `local-path` volume, made for the first pod that has it.
async fn folder(
    shared: &Shared,
    wanted: &Wanted,
    spec: &PersistentVolumeSpec,
    name: &str,
    path: &Path,
) -> Result<(), String> {
    let made = path.to_owned();
    let fresh = blocking(move || {
        if let Some(parent) = made.parent() {
            std::fs::create_dir_all(parent).map_err(at("mkdir", parent))?;
        }
        match std::fs::create_dir(&made) {
            Ok(()) => {
                std::fs::set_permissions(&made, PermissionsExt::from_mode(0o777))
                    .map_err(at("chmod", &made))?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(at("mkdir", &made)(e)),
        }
    })
    .await?;
    let Some(bytes) = size(spec) else { return Ok(()) };
    let held = path.to_owned();
    let refusal = blocking(move || Ok(quota::hold(&held, bytes).err())).await?;
    if let Some(why) = refusal.filter(|_| fresh) {
        let message = format!("the size of volume {name:?} ({bytes} bytes) is not enforced: {why}");
        shared.event(wanted, None, false, "VolumeSizeNotEnforced", message);
    }
    Ok(())
}

/// Holds the `local-path` volumes of a pod to their sizes as they are now; a claim may have grown.
pub async fn resize(shared: &Shared, uid: &str) {
    let names: Vec<String> =
        shared.volumes_in_use().get(uid).into_iter().flat_map(|v| v.keys().cloned()).collect();
    for name in names {
        let Some(volume) = shared.ledger.object::<PersistentVolume>(ItemKind::PersistentVolume, "", &name)
        else {
            continue;
        };
        let Some(spec) = volume.spec.as_ref().filter(|_| volumes::is_local_path(&volume)) else { continue };
        if let (Some(bytes), Some(host)) = (size(spec), &spec.host_path) {
            let path = PathBuf::from(&host.path);
            let held = blocking(move || quota::hold(&path, bytes)).await;
            if let Err(error) = held {
                tracing::debug!(volume = name, error, "a volume's size is not enforced");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::Generation,
        mqtt::messages::{Item, ItemKey},
    };

    #[test]
    fn a_local_volume_is_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let there = |name: &str| is_folder(&dir.path().join(name));
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(there(""), Ok(()));
        assert_eq!(there("file"), Err("only directory and block device are supported".to_owned()));
        assert_eq!(there("none"), Err(format!("path {:?} does not exist", dir.path().join("none"))));
    }

    #[test]
    fn the_type_of_a_volume_is_named() {
        for (text, kind) in [
            (r#"{"capacity":{"storage":"1Gi"},"csi":{"driver":"d","volumeHandle":"h"}}"#, "csi"),
            (r#"{"accessModes":["ReadWriteOnce"],"iscsi":{"targetPortal":"p","iqn":"q","lun":0}}"#, "iscsi"),
        ] {
            assert_eq!(kind_of(&serde_json::from_str(text).unwrap()), kind);
        }
    }

    #[tokio::test]
    async fn a_claim_leads_to_its_volume_or_to_upstreams_words() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        let claim = |name: &str, volume: &str, status: &str, more: &str| {
            let text = format!(
                r#"{{"metadata":{{"uid":"c"{more}}},"spec":{{"volumeName":{volume:?}}},"status":{{"phase":{status:?}}}}}"#
            );
            Item::new(ItemKey::new(ItemKind::PersistentVolumeClaim, "ns", name), text)
        };
        let volume = |name: &str, spec: &str| {
            Item::new(ItemKey::new(ItemKind::PersistentVolume, "", name), format!(r#"{{"spec":{{{spec}}}}}"#))
        };
        let owned =
            r#","ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u","controller":true}]"#;
        let going = r#","deletionTimestamp":"2026-01-01T00:00:00Z""#;
        let items = vec![
            claim("good", "pv", "Bound", owned),
            claim("going", "pv", "Bound", going),
            claim("waiting", "pv", "Pending", ""),
            claim("empty", "", "Bound", ""),
            claim("lost", "absent", "Bound", ""),
            claim("free", "free", "Bound", ""),
            claim("foreign", "foreign", "Bound", ""),
            volume("pv", r#""claimRef":{"uid":"c"}"#),
            volume("free", ""),
            volume("foreign", r#""claimRef":{"uid":"d"}"#),
        ];
        ledger.apply(Generation(1), items, Vec::new()).await.unwrap();
        let leads = |name: &str, runs: bool| {
            behind(&ledger, "ns", name, runs).map(|found| (found.name, found.controller.unwrap_or_default()))
        };
        let to = |controller: &str| Ok(("pv".to_owned(), controller.to_owned()));
        assert_eq!(leads("good", false), to("u"));
        assert_eq!(leads("going", true), to(""), "who has it keeps it");
        for (name, words) in [
            ("none", "failed to fetch PVC from API server: persistentvolumeclaims \"none\" not found"),
            ("going", "PVC is being deleted"),
            ("waiting", "PVC is not bound"),
            ("empty", "PVC has empty pvc.Spec.VolumeName"),
            ("lost", "failed to fetch PV absent from API server: persistentvolumes \"absent\" not found"),
            (
                "free",
                "found PV object free but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim",
            ),
            (
                "foreign",
                "found PV object foreign but its pv.Spec.ClaimRef.UID d does not point to claim.UID c",
            ),
        ] {
            assert_eq!(leads(name, false), Err(words.to_owned()), "{name}");
        }
    }

    #[test]
    fn a_volume_is_used_where_it_is_and_as_it_can_be() {
        let found = |spec: &str| Found {
            name: "pv".to_owned(),
            volume: serde_json::from_str(&format!(r#"{{"spec":{spec}}}"#)).unwrap(),
            alone: false,
            controller: None,
        };
        let on = |host: &str| {
            let text = format!(
                r#"{{"nodeAffinity":{{"required":{{"nodeSelectorTerms":[{{"matchExpressions":[{{"key":"host","operator":"In","values":[{host:?}]}}]}}]}}}}}}"#
            );
            found(&text)
        };
        let here: Node = serde_json::from_str(r#"{"metadata":{"name":"n","labels":{"host":"n"}}}"#).unwrap();
        assert_eq!(belongs(&on("n"), &here), Ok(()));
        assert_eq!(belongs(&found("{}"), &here), Ok(()));
        assert_eq!(belongs(&on("m"), &here), Err("no matching NodeSelectorTerms".to_owned()));
        assert_eq!(belongs(&on("m"), &Node::default()), Ok(()), "nobody knows yet what it is");
        let refused = Err("Mount options are not supported for this volume type".to_owned());
        for (spec, expect) in [
            (r#"{"hostPath":{"path":"/x"},"mountOptions":["noatime"]}"#, refused),
            (r#"{"hostPath":{"path":"/x"},"mountOptions":[]}"#, Ok(())),
            (r#"{"local":{"path":"/x"},"mountOptions":["noatime"]}"#, Ok(())),
        ] {
            assert_eq!(takes_options(&found(spec)), expect, "{spec}");
        }
    }

    #[test]
    fn sizes_are_bytes() {
        let spec = |text: &str| serde_json::from_str::<PersistentVolumeSpec>(text).unwrap();
        assert_eq!(size(&spec(r#"{"capacity":{"storage":"1Mi"}}"#)), Some(1 << 20));
        assert_eq!(size(&spec("{}")), None);
    }
}
