//! Volumes of pods, and the sources that PersistentVolumes share with them
//! (`validateVolumeSource` and its parts).

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    ErrorList, FieldError,
    at::At,
    meta::{check_annotations, check_label_selector, check_labels},
    names, persistent_volume_claim,
    quantity::Quantity,
};

const FILE_MODE_MAX: i64 = 0o777;
const MODE_DETAIL: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// A projected token lives ten minutes at least (seconds).
const TOKEN_SECONDS_MIN: i64 = 10 * 60;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

/// The good volumes of a pod by name.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

/// Refuses bad volumes; answers with the good ones.
pub fn check_volumes<'a>(volumes: &At<'a>, pod_name: &str, errors: &mut ErrorList) -> Volumes<'a> {
    let created: Vec<String> = volumes
        .items()
        .filter(|v| !pod_name.is_empty() && v.get("ephemeral").is_set())
        .map(|v| format!("{pod_name}-{}", v.get("name").str()))
        .collect();
    let mut good = Volumes::new();
    for volume in volumes.items() {
        let before = errors.len();
        let name = volume.get("name");
        check_source(&volume, pod_name, errors);
        name.check_required_name(names::dns_label, errors);
        if good.contains_key(name.str()) {
            errors.push(name.duplicate());
        }
        if errors.len() == before {
            good.insert(name.str(), volume.value);
        }
        let claim = volume.get("persistentVolumeClaim").get("claimName");
        if created.iter().any(|c| c == claim.str()) {
            errors.push(claim.invalid("must not reference a PVC that gets created for an ephemeral volume"));
        }
    }
    good
}

/// The sources in the order in which upstream looks at them.
const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn check_source(volume: &At<'_>, pod_name: &str, errors: &mut ErrorList) {
    let mut found = false;
    for source in SOURCES.iter().map(|s| (s, volume.get(s))).filter(|(_, at)| at.is_set()) {
        let (kind, at) = source;
        if found {
            errors.push(one_source_only(kind, &at));
            continue;
        }
        found = true;
        match *kind {
            "emptyDir" => {
                let limit = at.get("sizeLimit");
                let bad = Quantity::from_json(limit.value).map_or(true, Quantity::is_negative);
                if limit.is_set() && bad {
                    errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
                }
            }
            "secret" => {
                at.get("secretName").check_required(errors);
                check_files(&at, errors);
            }
            "configMap" => {
                at.get("name").check_required(errors);
                check_files(&at, errors);
            }
            "downwardAPI" => {
                check_mode(&at.get("defaultMode"), errors);
                // Upstream names the list's parent for every file.
                at.get("items").items().for_each(|f| check_downward_file(&f.with_path(&at.path), errors));
            }
            "projected" => check_projected(&at, errors),
            "persistentVolumeClaim" => {
                at.get("claimName").check_required(errors);
            }
            "ephemeral" => check_ephemeral(volume, &at, pod_name, errors),
            "csi" => {
                check_csi_driver_name(&at.get("driver"), errors);
                let secret = at.get("nodePublishSecretRef");
                if secret.is_set() {
                    let name = secret.get("name");
                    if name.check_required(errors) {
                        name.with_path(format!("{}.name", at.path)).check(names::dns_subdomain, errors);
                    }
                }
            }
            "image" => {
                at.get("reference").check_required(errors);
                at.get("pullPolicy").check_one_of(&["Always", "IfNotPresent", "Never"], errors);
            }
            _ => check_shared_source(kind, &at, errors),
        }
        if *kind == "iscsi" {
            let name = volume.get("name");
            check_initiator(&at, name.str(), &name, errors);
        }
    }
    if !found {
        errors.push(volume.required("must specify a volume type"));
    }
}

/// That a volume has a source already; the paths of two sources are upstream's, letter by letter.
pub fn one_source_only(kind: &str, at: &At<'_>) -> FieldError {
    let parent = at.path.strip_suffix(kind).unwrap_or_default();
    let shown = match kind {
        "cephfs" => "cephFS",
        "downwardAPI" => "downwarAPI",
        kind => kind,
    };
    FieldError::forbidden(format!("{parent}{shown}"), "may not specify more than 1 volume type")
}

/// The names of iSCSI initiators and targets.
fn is_iscsi_name(name: &str) -> bool {
    let alnum =
        |text: &str, chars: usize| text.len() == chars && text.bytes().all(|b| b.is_ascii_alphanumeric());
    // Any byte may stand for the dot of `eui.` and `naa.`, as in upstream's expressions.
    match name.get(..3) {
        Some("eui") => name.get(4..).is_some_and(|rest| alnum(rest, 16)),
        Some("naa") => name.get(4..).is_some_and(|rest| alnum(rest, 32)),
        Some("iqn") => {
            let Some((date, rest)) = name.strip_prefix("iqn.").and_then(|n| n.split_once('.')) else {
                return false;
            };
            let is_date = date.len() == 7
                && date.bytes().enumerate().all(|(i, b)| if i == 4 { b == b'-' } else { b.is_ascii_digit() });
            let Some((authority, target)) = rest.split_once(':') else { return false };
            is_date
                && !authority.is_empty()
                && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
                && !target.is_empty()
                && target.bytes().all(|b| !b",;*&$|".contains(&b) && !b.is_ascii_whitespace())
        }
        _ => false,
    }
}

/// Names and their portal share a length (characters).
const ISCSI_NAMES_MAX: usize = 64;

/// Refuses a volume's name that is too long beside its portal.
pub fn check_initiator(at: &At<'_>, name: &str, shown: &At<'_>, errors: &mut ErrorList) {
    let portal = at.get("targetPortal").str();
    if at.get("initiatorName").is_set() && name.len() + 1 + portal.len() > ISCSI_NAMES_MAX {
        errors.push(shown.invalid(
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        ));
    }
}

/// A reference to a Secret in the pod's own namespace.
fn check_own_secret(at: &At<'_>, errors: &mut ErrorList) {
    let secret = at.get("secretRef");
    if secret.is_set() {
        secret.get("name").check_required(errors);
    }
}

/// Sources that PersistentVolumes have too.
pub fn check_shared_source(kind: &str, at: &At<'_>, errors: &mut ErrorList) {
    let required: &[&str] = match kind {
        "gitRepo" => &["repository"],
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "portworxVolume" | "cinder" => &["volumeID"],
        "glusterfs" => &["endpoints", "path"],
        "rbd" => &["monitors", "image"],
        "cephfs" => &["monitors"],
        "flexVolume" => &["driver"],
        "azureFile" => &["secretName", "shareName"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "azureDisk" => &["diskName", "diskURI"],
        "storageos" => &["volumeName"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        "nfs" => &["server", "path"],
        "iscsi" => &["targetPortal", "iqn"],
        _ => &[],
    };
    for field in required {
        at.get(field).check_required(errors);
    }
    match kind {
        "hostPath" => {
            let path = at.get("path");
            if path.check_required(errors) {
                check_no_backsteps(&path, errors);
                at.get("type").check_one_of(
                    &[
                        "",
                        "BlockDevice",
                        "CharDevice",
                        "Directory",
                        "DirectoryOrCreate",
                        "File",
                        "FileOrCreate",
                        "Socket",
                    ],
                    errors,
                );
            }
        }
        "local" => {
            let path = at.get("path");
            if path.check_required(errors) {
                check_no_backsteps(&path, errors);
            }
        }
        "nfs" if !at.get("path").str().starts_with('/') => {
            errors.push(FieldError::invalid(
                format!("{}.path", at.path),
                at.get("path").str(),
                "must be an absolute path",
            ));
        }
        "iscsi" => {
            let initiator = at.get("initiatorName").with_path(format!("{}.initiatorname", at.path));
            for name in [at.get("iqn"), initiator].iter().filter(|name| !name.is_empty()) {
                if !["iqn", "eui", "naa"].iter().any(|p| name.str().starts_with(p)) {
                    errors.push(name.invalid("must be valid format starting with iqn, eui, or naa"));
                } else if !is_iscsi_name(name.str()) {
                    errors.push(name.invalid("must be valid format"));
                }
            }
            at.get("lun").check_range(0, 255, errors);
            let chap = at.get("chapAuthDiscovery").is_true() || at.get("chapAuthSession").is_true();
            if chap && !at.get("secretRef").is_set() {
                errors.push(at.get("secretRef").required(""));
            }
        }
        "fc" => {
            let (targets, wwids) = (at.get("targetWWNs"), at.get("wwids"));
            if targets.is_empty() && wwids.is_empty() {
                errors.push(targets.required("must specify either targetWWNs or wwids, but not both"));
            }
            if !targets.is_empty() && !wwids.is_empty() {
                errors.push(targets.invalid("targetWWNs and wwids can not be specified simultaneously"));
            }
            let lun = at.get("lun");
            if !targets.is_empty() && !lun.is_set() {
                errors.push(lun.required("lun is required if targetWWNs is specified"));
            } else if !targets.is_empty() {
                lun.check_range(0, 255, errors);
            }
        }
        "gitRepo" => check_relative_path(&at.get("directory"), errors),
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let partition = at.get("partition");
            if partition.int().is_some_and(|p| !(0..=255).contains(&p)) {
                errors.push(partition.invalid("must be between 1 and 255, inclusive"));
            }
        }
        "quobyte" => check_quobyte(at, errors),
        "flocker" => {
            let (name, uuid) = (at.get("datasetName"), at.get("datasetUUID"));
            match (name.is_empty(), uuid.is_empty()) {
                (true, true) => errors.push(at.required("one of datasetName and datasetUUID is required")),
                (false, false) => {
                    let detail = "datasetName and datasetUUID can not be specified simultaneously";
                    errors.push(FieldError::invalid(&at.path, "resource", detail));
                }
                _ => {}
            }
            if name.str().contains('/') {
                errors.push(name.invalid("must not contain '/'"));
            }
        }
        "cinder" => check_own_secret(at, errors),
        "flexVolume" => {
            for (option, _) in at.get("options").entries() {
                let domain = option.split_once('/').map_or(option, |(domain, _)| domain).to_lowercase();
                let domain = format!(".{domain}");
                if [".kubernetes.io", ".k8s.io"].iter().any(|reserved| domain.ends_with(reserved)) {
                    let path = at.get("options").key(option).path;
                    let detail = "kubernetes.io and k8s.io namespaces are reserved";
                    errors.push(FieldError::invalid(path, option, detail));
                }
            }
        }
        "azureDisk" => check_azure_disk(at, errors),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"].map(|f| at.get(f)) {
                if !field.is_empty() {
                    field.check(names::dns_label, errors);
                }
            }
            check_own_secret(at, errors);
        }
        _ => {}
    }
}

fn check_quobyte(at: &At<'_>, errors: &mut ErrorList) {
    const REGISTRY: &str = "must be a host:port pair or multiple pairs separated by commas";
    const TENANT_BYTES_MAX: usize = 64;
    let (registry, tenant) = (at.get("registry"), at.get("tenant"));
    if registry.is_empty() {
        errors.push(registry.required(REGISTRY));
    } else if tenant.len() > TENANT_BYTES_MAX {
        errors.push(tenant.required("must be a UUID and may not exceed a length of 64 characters"));
    } else {
        for pair in registry.str().split(',') {
            let host = pair.rsplit_once(':').map(|(host, _)| host);
            if host.is_none_or(|host| host.contains(':') && !host.starts_with('[')) {
                errors.push(registry.invalid(REGISTRY));
            }
        }
    }
    at.get("volume").check_required(errors);
}

fn check_azure_disk(at: &At<'_>, errors: &mut ErrorList) {
    let (uri, kind) = (at.get("diskURI"), at.get("kind"));
    at.get("cachingMode").check_one_of(&["None", "ReadOnly", "ReadWrite"], errors);
    kind.check_one_of(&["Dedicated", "Managed", "Shared"], errors);
    let (start, example) = if kind.str() == "Managed" {
        (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        )
    } else {
        ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd")
    };
    if kind.is_set() && !uri.str().starts_with(start) {
        errors.push(At { value: &uri.str().into(), path: uri.path.clone() }.not_supported(&[example]));
    }
}

/// The name of a CSI driver.
pub fn check_csi_driver_name(name: &At<'_>, errors: &mut ErrorList) {
    const BYTES_MAX: usize = 63;
    name.check_required(errors);
    if name.len() > BYTES_MAX {
        errors.push(FieldError::too_long(&name.path, BYTES_MAX));
    }
    let lower = name.str().to_lowercase();
    errors.extend(
        names::dns_subdomain(&lower).into_iter().map(|m| FieldError::invalid(&name.path, name.str(), m)),
    );
}

fn check_mode(mode: &At<'_>, errors: &mut ErrorList) {
    if mode.int().is_some_and(|m| !(0..=FILE_MODE_MAX).contains(&m)) {
        errors.push(mode.invalid(MODE_DETAIL));
    }
}

/// `defaultMode` and `items` of a Secret's or ConfigMap's volume.
fn check_files(at: &At<'_>, errors: &mut ErrorList) {
    check_mode(&at.get("defaultMode"), errors);
    at.get("items").items().for_each(|item| check_key_to_path(&item, errors));
}

fn check_key_to_path(item: &At<'_>, errors: &mut ErrorList) {
    item.get("key").check_required(errors);
    item.get("path").check_required(errors);
    check_local_path(&item.get("path"), errors);
    check_mode(&item.get("mode"), errors);
}

/// Refuses `..` among the elements of a path.
pub fn check_no_backsteps(path: &At<'_>, errors: &mut ErrorList) {
    if path.str().split('/').any(|element| element == "..") {
        errors.push(path.invalid("must not contain '..'"));
    }
}

/// Refuses absolute paths and `..`.
pub fn check_relative_path(path: &At<'_>, errors: &mut ErrorList) {
    if path.str().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    check_no_backsteps(path, errors);
}

/// [`check_relative_path`], and no name that starts with `..`.
pub fn check_local_path(path: &At<'_>, errors: &mut ErrorList) {
    check_relative_path(path, errors);
    if path.str().starts_with("..") && !path.str().starts_with("../") && path.str() != ".." {
        errors.push(path.invalid("must not start with '..'"));
    }
}

const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn check_downward_file(file: &At<'_>, errors: &mut ErrorList) {
    file.get("path").check_required(errors);
    check_local_path(&file.get("path"), errors);
    let (field, resource) = (file.get("fieldRef"), file.get("resourceFieldRef"));
    if field.is_set() {
        check_field_ref(&field, DOWNWARD_FIELDS, errors);
        if resource.is_set() {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(FieldError::invalid(&file.path, "resource", detail));
        }
    } else if resource.is_set() {
        check_resource_ref(&resource, true, errors);
    } else {
        errors.push(file.required("one of fieldRef and resourceFieldRef is required"));
    }
    check_mode(&file.get("mode"), errors);
}

/// What a fieldRef can name anywhere.
const FIELD_LABELS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Refuses a reference to a field of the pod that is not among `supported`.
pub fn check_field_ref(field: &At<'_>, supported: &[&str], errors: &mut ErrorList) {
    let (version, path) = (field.get("apiVersion"), field.get("fieldPath"));
    if !version.check_required(errors) || !path.check_required(errors) {
        return;
    }
    let mut convert = |why: String| errors.push(path.invalid(format!("error converting fieldPath: {why}")));
    if version.str() != "v1" {
        return convert(format!("unsupported pod version: {}", version.str()));
    }
    let subscript = path.str().strip_suffix("']").and_then(|rest| rest.split_once("['"));
    if let Some((base, key)) = subscript {
        let key = match base {
            "metadata.annotations" => key.to_lowercase(),
            "metadata.labels" => key.to_owned(),
            _ => return convert(format!("field label does not support subscript: {}", path.str())),
        };
        let wrong = names::qualified(&key);
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&field.path, key.as_str(), m)));
        return;
    }
    if !FIELD_LABELS.contains(&path.str()) && path.str() != "spec.host" {
        return convert(format!("field label not supported: {}", path.str()));
    }
    path.check_one_of(supported, errors);
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Refuses a reference to an amount of a container that is none.
pub fn check_resource_ref(reference: &At<'_>, in_volume: bool, errors: &mut ErrorList) {
    const BYTES: &[&str] =
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let (container, resource) = (reference.get("containerName"), reference.get("resource"));
    let name = resource.str();
    let huge = ["requests.hugepages-", "limits.hugepages-"].iter().any(|p| name.starts_with(p));
    if in_volume && container.is_empty() {
        errors.push(container.required(""));
    } else if resource.check_required(errors) && !huge {
        resource.check_one_of(RESOURCE_FIELDS, errors);
    }
    let divisor = Quantity::from_json(reference.get("divisor").value).unwrap_or(Quantity::ZERO);
    if divisor.is_zero() {
        return;
    }
    let divisor = divisor.to_string();
    let (good, what) = match name.split_once('.').map_or(name, |(_, what)| what) {
        "cpu" => (["1m", "1"].contains(&divisor.as_str()), "1m and 1 are supported with the cpu"),
        "memory" => (BYTES.contains(&divisor.as_str()), "memory"),
        "ephemeral-storage" => (BYTES.contains(&divisor.as_str()), "local ephemeral storage"),
        _ if huge => (BYTES.contains(&divisor.as_str()), "hugepages"),
        _ => return,
    };
    if !good {
        let list = BYTES.join(", ");
        let what = if what.starts_with("1m") {
            what.to_owned()
        } else {
            format!("{list} are supported with the {what}")
        };
        let detail = format!("only divisor's values {what} resource");
        errors.push(FieldError::invalid(format!("{}.divisor", reference.path), name, detail));
    }
}

fn check_projected(at: &At<'_>, errors: &mut ErrorList) {
    check_mode(&at.get("defaultMode"), errors);
    let mut seen: Vec<String> = Vec::new();
    for source in at.get("sources").items() {
        let kinds = ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle"];
        if kinds.iter().filter(|k| source.get(k).is_set()).count() > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type per source"));
        }
        for kind in ["secret", "configMap"] {
            let files = source.get(kind);
            if files.is_set() {
                files.get("name").check_required(errors);
                for item in files.get("items").items() {
                    check_key_to_path(&item, errors);
                    note_path(&mut seen, &item.get("path"), files.get("name").str(), at, errors);
                }
            }
        }
        for file in source.get("downwardAPI").get("items").items() {
            check_downward_file(&file.with_path(format!("{}.downwardAPI", source.path)), errors);
            note_path(&mut seen, &file.get("path"), file.get("path").str(), at, errors);
        }
        let token = source.get("serviceAccountToken");
        if token.is_set() {
            let seconds = token.get("expirationSeconds");
            if seconds.int().is_some_and(|s| s < TOKEN_SECONDS_MIN) {
                errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
            }
            if seconds.int().is_some_and(|s| s > TOKEN_SECONDS_MAX) {
                errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
            }
            let path = token.get("path").with_path(format!("{}.path", at.path));
            if path.check_required(errors) {
                check_local_path(&path, errors);
            }
        }
        let bundle = source.get("clusterTrustBundle");
        if bundle.is_set() {
            let [name, signer, selector] = ["name", "signerName", "labelSelector"].map(|f| bundle.get(f));
            match (name.is_set(), signer.is_set()) {
                (true, true) => {
                    errors.push(bundle.invalid("only one of name and signerName may be used"));
                }
                (false, false) => {
                    errors.push(bundle.required("either name or signerName must be specified"));
                }
                (true, false) => {
                    if name.is_empty() {
                        errors.push(name.required("must be a valid object name"));
                    }
                    if selector.is_set() {
                        errors.push(selector.invalid("labelSelector must be unset if name is specified"));
                    }
                }
                (false, true) => {
                    if signer.is_empty() {
                        errors.push(signer.required("must be a valid signer name"));
                    }
                    check_label_selector(&selector, errors);
                }
            }
            bundle.get("path").check_required(errors);
            check_local_path(&bundle.get("path"), errors);
            note_path(&mut seen, &bundle.get("path"), bundle.get("path").str(), at, errors);
        }
    }
}

/// Refuses a path that two sources of a projection write.
fn note_path(seen: &mut Vec<String>, path: &At<'_>, shown: &str, projected: &At<'_>, errors: &mut ErrorList) {
    if path.is_empty() {
        return;
    }
    if seen.iter().any(|p| p == path.str()) {
        errors.push(FieldError::invalid(&projected.path, shown, "conflicting duplicate paths"));
    } else {
        seen.push(path.str().to_owned());
    }
}

fn check_ephemeral(volume: &At<'_>, at: &At<'_>, pod_name: &str, errors: &mut ErrorList) {
    let template = at.get("volumeClaimTemplate");
    if !template.is_set() {
        errors.push(template.required(""));
        return;
    }
    let metadata = template.get("metadata");
    check_annotations(&metadata.get("annotations"), errors);
    check_labels(&metadata.get("labels"), errors);
    for (field, value) in metadata.entries() {
        if !matches!(field, "annotations" | "labels") && !value.is_null() {
            errors.push(metadata.get(field).forbidden("cannot be set"));
        }
    }
    persistent_volume_claim::check_spec(&template.get("spec"), errors);
    let name = volume.get("name");
    if !pod_name.is_empty() && !name.is_empty() {
        let claim = format!("{pod_name}-{}", name.str());
        for message in names::dns_subdomain(&claim) {
            errors.push(name.invalid(format!("PVC name {claim:?}: {message}")));
        }
    }
}
