//! Validation of pod specs wherever they stand, and of pod templates (`ValidatePodSpec`,
//! `ValidatePodTemplateSpec`).

use serde_json::Value;

use super::{
    ErrorList, FieldError, addresses,
    at::At,
    containers::{PodContext, check_containers, check_id, check_profiles},
    labels::Selector,
    meta::{check_annotations, check_labels},
    names,
    quantity::Quantity,
    resource_names, resources,
    scheduling::{check_affinity, check_tolerations, check_topology_spread},
    volume_sources::check_volumes,
};

/// Limits of the resolver (`resolv.conf(5)`).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCHES_CHARS_MAX: usize = 2048;
/// The longest host name that Linux takes (bytes).
const HOST_NAME_BYTES_MAX: usize = 64;

/// Stands for a volume that a StatefulSet's claim template makes.
static CLAIM_VOLUME: std::sync::LazyLock<Value> =
    std::sync::LazyLock::new(|| serde_json::json!({"persistentVolumeClaim": {}}));

/// Refuses a bad pod spec. `pod_name` is empty in templates; `claims` are names of volumes that
/// come from claim templates.
pub fn check_spec(spec: &At<'_>, pod_name: Option<&str>, claims: &[&str], errors: &mut ErrorList) {
    let grace = spec.get("terminationGracePeriodSeconds");
    if !grace.is_set() {
        errors.push(grace.required(""));
    }
    let mut volumes = check_volumes(&spec.get("volumes"), pod_name.unwrap_or_default(), errors);
    let names: Vec<String> = claims.iter().map(ToString::to_string).collect();
    for claim in &names {
        volumes.insert(claim, &CLAIM_VOLUME);
    }
    let resource_claims = spec.get("resourceClaims");
    check_resource_claims(&resource_claims, errors);
    let claim_names: Vec<String> = resource_claims.items().map(|c| c.get("name").str().to_owned()).collect();
    let context = PodContext {
        is_pod: pod_name.is_some(),
        volumes,
        claims: claim_names.iter().map(String::as_str).collect(),
        grace_seconds: grace.int(),
        restart_policy: spec.get("restartPolicy").str(),
        host_users: spec.get("hostUsers").value != false,
        os: spec.get("os"),
    };
    check_containers(spec, &context, errors);
    check_pod_resources(spec, errors);
    check_host_network_ports(spec, context.is_pod, errors);
    spec.get("restartPolicy").check_required_one_of(&["Always", "OnFailure", "Never"], errors);
    spec.get("dnsPolicy")
        .check_required_one_of(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], errors);
    check_labels(&spec.get("nodeSelector"), errors);
    check_security_context(spec, errors);
    check_affinity(&spec.get("affinity"), errors);
    check_dns_config(spec, errors);
    for gate in spec.get("readinessGates").items() {
        let kind = gate.get("conditionType");
        let wrong = names::qualified(kind.str());
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&kind.path, kind.str(), m)));
    }
    check_scheduling_gates(&spec.get("schedulingGates"), errors);
    check_topology_spread(&spec.get("topologySpreadConstraints"), errors);
    if !context.host_users {
        for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
        {
            if spec.get(field).is_true() {
                let at = spec.get(field).with_path(format!("{}.{shown}", spec.path));
                errors.push(at.forbidden("when `pod.Spec.HostUsers` is false"));
            }
        }
    }
    let rules: [(&str, names::Rule); 6] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ];
    for (field, rule) in rules {
        let at = spec.get(field);
        if !at.is_empty() {
            at.check(rule, errors);
        }
    }
    check_host_name(spec, errors);
    spec.get("activeDeadlineSeconds").check_range(1, i64::from(i32::MAX), errors);
    check_tolerations(&spec.get("tolerations"), errors);
    for alias in spec.get("hostAliases").items() {
        let ip = alias.get("ip");
        errors
            .extend(addresses::ip(ip.str()).into_iter().map(|m| FieldError::invalid(&ip.path, ip.str(), m)));
        alias.get("hostnames").items().for_each(|name| name.check(names::dns_subdomain, errors));
    }
    spec.get("preemptionPolicy").check_one_of(&["PreemptLowerPriority", "Never"], errors);
    let overhead = spec.get("overhead");
    for (name, _) in overhead.entries() {
        let at = overhead.with_path(format!("{}.limits", overhead.path)).key(name);
        resource_names::check_container_name(name, &at, errors);
        resource_names::check_amount(name, &at, errors);
    }
    check_os(spec, errors);
}

/// A host name of the pod's own choice excludes what would choose another.
fn check_host_name(spec: &At<'_>, errors: &mut ErrorList) {
    let name = spec.get("hostnameOverride");
    if name.is_empty() {
        return;
    }
    name.check(names::dns_subdomain, errors);
    if name.str().len() > HOST_NAME_BYTES_MAX {
        errors.push(FieldError::too_long(&name.path, HOST_NAME_BYTES_MAX));
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        let other = spec.get(field);
        if other.is_true() {
            errors.push(other.forbidden("may not be true when `hostnameOverride` is specified"));
        }
    }
}

/// The fields of Go's PodResourceClaim.
const RESOURCE_CLAIM: &str = "Name= ResourceClaimName ResourceClaimTemplateName";

fn check_resource_claims(claims: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for claim in claims.items() {
        let name = claim.get("name");
        if seen.contains(&name.str()) {
            errors.push(name.duplicate());
        } else {
            name.check_required_name(names::dns_label, errors);
        }
        seen.push(name.str());
        let fields = ["resourceClaimName", "resourceClaimTemplateName"].map(|f| claim.get(f));
        match fields.iter().filter(|f| f.is_set()).count() {
            0 => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(claim.invalid(detail).as_struct(RESOURCE_CLAIM));
            }
            1 => {}
            _ => {
                let detail =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(claim.invalid(detail).as_struct(RESOURCE_CLAIM));
            }
        }
        for field in fields.iter().filter(|f| f.is_set()) {
            field.check(names::dns_subdomain, errors);
        }
    }
}

/// Requests and limits of the whole pod: only some resources, and not less than the containers'.
fn check_pod_resources(spec: &At<'_>, errors: &mut ErrorList) {
    let own = spec.get("resources");
    if !own.is_set() {
        return;
    }
    if own.get("claims").is_set() {
        errors.push(own.get("claims").forbidden("claims cannot be set for Resources at pod-level"));
    }
    let check_name = |name: &str, at: &At<'_>, errors: &mut ErrorList| {
        if resource_names::check_name(name, at, errors) && !resources::is_pod_level(name) {
            let supported = &["cpu", "hugepages-", "memory"];
            errors.push(FieldError::not_supported(&at.path, name, supported));
        }
    };
    resource_names::check_requirements(&own, check_name, &[], errors);
    let requests = own.get("requests");
    for (name, needed) in resources::aggregate_json(spec.value, "requests") {
        let at = requests.key(&name);
        let given = Quantity::from_json(at.value).unwrap_or(Quantity::ZERO);
        if needed > given && resources::is_pod_level(&name) {
            let detail = format!("must be greater than or equal to aggregate container requests of {needed}");
            errors.push(FieldError::invalid(at.path, given.to_string(), detail));
        }
    }
    for (i, container) in spec.get("containers").items().enumerate() {
        let limits = container.get("resources").get("limits");
        for (name, value) in limits.entries() {
            let (Ok(limit), Ok(most)) =
                (Quantity::from_json(value), Quantity::from_json(own.get("limits").key(name).value))
            else {
                continue;
            };
            if limit > most {
                let path = format!("{}.containers[{i}][{name}].limits", own.path);
                let detail = format!("must be less than or equal to pod limits of {most}");
                errors.push(FieldError::invalid(path, limit.to_string(), detail));
            }
        }
    }
}

fn check_host_network_ports(spec: &At<'_>, is_pod: bool, errors: &mut ErrorList) {
    if !spec.get("hostNetwork").is_true() {
        return;
    }
    for port in spec.get("containers").items().flat_map(|c| c.get("ports").items().collect::<Vec<_>>()) {
        let (host, own) = (port.get("hostPort"), port.get("containerPort").int().unwrap_or(0));
        let number = host.int().unwrap_or(0);
        if (is_pod || number != 0) && number != own {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(host.path, number, detail));
        }
    }
}

/// The kernel parameters that belong to a namespace which the pod may share with its node.
fn sysctl_namespace(name: &str) -> &'static str {
    let name = name.replace('/', ".");
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p));
    if ipc || name == "kernel.sem" {
        "ipc"
    } else if name.starts_with("net.") {
        "net"
    } else {
        ""
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|b| inner(*b))
                && bytes.last().is_some_and(|b| inner(*b))
                && bytes.iter().all(|b| inner(*b) || b"-_".contains(b))
        })
}

fn check_security_context(spec: &At<'_>, errors: &mut ErrorList) {
    let context = spec.get("securityContext");
    if !context.is_set() {
        return;
    }
    for id in ["fsGroup", "runAsUser", "runAsGroup"] {
        check_id(&context.get(id), errors);
    }
    context.get("supplementalGroups").items().for_each(|group| check_id(&group, errors));
    let shared = spec.get("shareProcessNamespace");
    if shared.is_true() && spec.get("hostPID").is_true() {
        errors.push(
            shared
                .with_path(format!("{}.shareProcessNamespace", context.path))
                .invalid("ShareProcessNamespace and HostPID cannot both be enabled"),
        );
    }
    let mut seen: Vec<&str> = Vec::new();
    for sysctl in context.get("sysctls").items() {
        let name = sysctl.get("name");
        if !name.check_required(errors) {
            continue;
        }
        if !is_sysctl_name(name.str()) {
            errors.push(name.invalid(
                r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if seen.contains(&name.str()) {
            errors.push(name.duplicate());
        }
        seen.push(name.str());
        for (field, namespace) in [("hostNetwork", "net"), ("hostIPC", "ipc")] {
            if spec.get(field).is_true() && sysctl_namespace(name.str()) == namespace {
                errors.push(name.invalid(format!("may not be specified when '{field}' is true")));
            }
        }
    }
    context.get("fsGroupChangePolicy").check_one_of(&["Always", "OnRootMismatch"], errors);
    check_profiles(&context, errors);
    context.get("supplementalGroupsPolicy").check_one_of(&["Merge", "Strict"], errors);
    context.get("seLinuxChangePolicy").check_one_of(&["MountOption", "Recursive"], errors);
}

fn check_dns_config(spec: &At<'_>, errors: &mut ErrorList) {
    let (config, none) = (spec.get("dnsConfig"), spec.get("dnsPolicy").str() == "None");
    if !config.is_set() {
        if none {
            errors.push(config.required("must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        return;
    }
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if none && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(servers.required(detail));
        return;
    }
    if servers.len() > NAMESERVERS_MAX {
        errors.push(servers.invalid(format!("must not have more than {NAMESERVERS_MAX} nameservers")));
    }
    servers.items().for_each(|server| server.check(addresses::ip, errors));
    if searches.len() > SEARCHES_MAX {
        errors.push(searches.invalid(format!("must not have more than {SEARCHES_MAX} search paths")));
    }
    let chars = searches.items().map(|s| s.len() + 1).sum::<usize>().saturating_sub(1);
    if chars > SEARCHES_CHARS_MAX {
        errors.push(searches.invalid(format!(
            "must not have more than {SEARCHES_CHARS_MAX} characters (including spaces) in the search list"
        )));
    }
    for search in searches.items().filter(|s| s.str() != ".") {
        // Underscores are allowed here, and only here.
        let name = search.str().strip_suffix('.').unwrap_or(search.str());
        let wrong = names::dns_subdomain(&name.replace('_', "a"));
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&search.path, name, m)));
    }
    for option in config.get("options").items().filter(|o| o.get("name").is_empty()) {
        errors.push(option.required("must not be empty"));
    }
}

fn check_scheduling_gates(gates: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for gate in gates.items() {
        let name = gate.get("name").str();
        errors.extend(names::qualified(name).into_iter().map(|m| FieldError::invalid(&gate.path, name, m)));
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&gate.path, name));
        }
        seen.push(name);
    }
}

fn check_os(spec: &At<'_>, errors: &mut ErrorList) {
    let os = spec.get("os");
    if !os.is_set() {
        return;
    }
    let name = os.get("name");
    if name.is_empty() {
        errors.push(name.required("cannot be empty"));
    } else {
        name.with_path(&os.path).check_one_of(&["linux", "windows"], errors);
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .map(|list| spec.get(list).items().collect::<Vec<_>>())
        .concat();
    let contexts = containers.iter().map(|container| container.get("securityContext"));
    let context = spec.get("securityContext");
    match name.str() {
        "linux" => {
            for windows in std::iter::once(context).chain(contexts).map(|c| c.get("windowsOptions")) {
                if windows.is_set() {
                    errors.push(windows.forbidden("windows options cannot be set for a linux pod"));
                }
            }
        }
        "windows" => {
            let of_pod = NOT_OF_WINDOWS_PODS.iter().map(|field| spec.get(field));
            let of_context = NOT_OF_WINDOWS_CONTEXTS.iter().map(|field| context.get(field));
            let of_containers = contexts.flat_map(|context| {
                NOT_OF_WINDOWS_CONTAINERS.map(|field| context.get(field)).into_iter().collect::<Vec<_>>()
            });
            for field in of_pod.chain(of_context).chain(of_containers) {
                // These two are no pointers in Go: false is as good as absent.
                let is_off =
                    ["hostPID", "hostIPC"].iter().any(|f| field.path.ends_with(f)) && !field.is_true();
                if field.is_set() && !is_off {
                    errors.push(field.forbidden("cannot be set for a windows pod"));
                }
            }
        }
        _ => {}
    }
}

/// What a pod for Windows cannot have: itself, in its security context, in its containers' contexts.
const NOT_OF_WINDOWS_PODS: [&str; 4] = ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"];
const NOT_OF_WINDOWS_CONTEXTS: [&str; 11] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const NOT_OF_WINDOWS_CONTAINERS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// Refuses a bad pod template (`spec.template`).
pub fn check_template(template: &At<'_>, claims: &[&str], errors: &mut ErrorList) {
    let metadata = template.get("metadata");
    check_labels(&metadata.get("labels").with_path(format!("{}.labels", template.path)), errors);
    check_annotations(
        &metadata.get("annotations").with_path(format!("{}.annotations", template.path)),
        errors,
    );
    let spec = template.get("spec");
    check_spec(&spec, None, claims, errors);
    let ephemeral = spec.get("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.push(ephemeral.forbidden("ephemeral containers not allowed in pod template"));
    }
}

/// [`check_template`] of a workload: its labels satisfy the selector, its pods always restart.
pub fn check_workload_template(
    template: &At<'_>,
    selector: &Selector,
    claims: &[&str],
    deadline_detail: &str,
    errors: &mut ErrorList,
) {
    let labels = template.get("metadata").get("labels");
    if !selector.is_everything() && !selector.matches_json(labels.value) {
        errors.push(labels.invalid("`selector` does not match template `labels`"));
    }
    check_template(template, claims, errors);
    let spec = template.get("spec");
    let policy = spec.get("restartPolicy");
    if policy.str() != "Always" {
        errors.push(policy.not_supported(&["Always"]));
    }
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.is_set() {
        errors.push(deadline.forbidden(deadline_detail));
    }
}
