//! Whether this node takes a pod at all: a pure function, asked once, before anything is made for it.
//!
//! Source: the kubelet's admit handlers (`pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/sysctl`,
//! `pkg/security/apparmor`, `pkg/kubelet/eviction`), in their words. A refused pod is `Failed`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use super::record::{Verdict, Wanted};
use crate::kinds::{
    placement::{self, HostPort},
    quantity::Quantity,
    resource_names,
    resources::{self, ResourceList},
};

/// Sysctls that only act inside of a pod's own namespaces (upstream's safe set).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// A pod of at least this priority is needed by the node or the cluster.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a node is to a pod.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// Allocatable amounts, `pods` among them.
    pub allocatable: ResourceList,
    /// What other pods of the node have.
    pub used: ResourceList,
    pub used_ports: Vec<HostPort>,
    /// The node as labels and selectors see it; without labels when the master has not told them yet.
    pub node: Node,
    pub apparmor: bool,
    pub selinux: bool,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
}

fn refusal(reason: impl Into<String>, message: impl std::fmt::Display) -> Verdict {
    let message = format!("Pod was rejected: {message}");
    Verdict { reason: reason.into(), message, rejected: true, ..Verdict::default() }
}

/// Takes a pod or says why not.
pub fn admit(wanted: &Wanted, ground: &Ground) -> Result<(), Verdict> {
    let spec = &wanted.spec;
    let labels = wanted.pod.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get("kubernetes.io/os")).is_some_and(|os| os != "linux") {
        return Err(refusal(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return Err(refusal(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    pressure(wanted, ground)?;
    sysctls(spec, ground)?;
    if !ground.apparmor && wants_apparmor(wanted) {
        return Err(refusal("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    }
    if !ground.selinux && wants_selinux(wanted) {
        return Err(refusal("SELinux", "Cannot enforce SELinux: SELinux is not enabled on the host"));
    }
    if let Err(Lack { resource, requested, used, capacity }) = fit(&requests(spec), ground) {
        return Err(refusal(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        ));
    }
    predicates(spec, ground)
}

/// What the scheduler sees to; a pod that names its node has not asked it.
fn predicates(spec: &PodSpec, ground: &Ground) -> Result<(), Verdict> {
    let failed = |name: &str, why: &str| Err(refusal(name, format!("Predicate {name} failed: {why}")));
    if ground.node.metadata.labels.is_some() && !placement::affinity_allows(spec, &ground.node) {
        return failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let ports = placement::host_ports(spec);
    if ports.iter().any(|port| ground.used_ports.iter().any(|used| port.collides(used))) {
        return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let (taints, tolerations) = (placement::taints(&ground.node), spec.tolerations.as_ref());
    if placement::untolerated(taints, tolerations, &[placement::NO_EXECUTE]).is_some() {
        return failed("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    Ok(())
}

/// What is not there in sufficient quantity: CPU in thousandths, the rest in units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub resource: String,
    pub requested: i64,
    pub used: i64,
    pub capacity: i64,
}

/// What a pod asks of its node, itself among it.
pub fn requests(spec: &PodSpec) -> ResourceList {
    let mut all = resources::pod_requests(spec);
    all.insert("pods".to_owned(), Quantity::from_value(1));
    all
}

/// Whether amounts fit beside what is used. An extended resource that the node does not have at all is
/// not its business: somebody gives it out for the whole cluster.
pub fn fit(requests: &ResourceList, ground: &Ground) -> Result<(), Lack> {
    // What is told first is what upstream looks at first.
    let order = |resource: &str| {
        let first = ["pods", "cpu", "memory", "ephemeral-storage"];
        first.iter().position(|name| *name == resource).unwrap_or(first.len())
    };
    let mut wanted: Vec<_> = requests.iter().filter(|(_, amount)| !amount.is_zero()).collect();
    wanted.sort_by_key(|(resource, _)| order(resource));
    for (resource, amount) in wanted {
        let units = |q: Quantity| if resource == "cpu" { q.milli_value() } else { q.value() };
        let amount_in = |list: &ResourceList| list.get(resource).copied().map(units);
        let capacity = match amount_in(&ground.allocatable) {
            None if resource_names::is_extended(resource) => continue,
            capacity => capacity.unwrap_or(0),
        };
        let used = amount_in(&ground.used).unwrap_or(0);
        let requested = units(*amount);
        if requested > capacity - used {
            return Err(Lack { resource: resource.clone(), requested, used, capacity });
        }
    }
    Ok(())
}

/// Under pressure a node takes no more pods of the kind it would evict first.
fn pressure(wanted: &Wanted, ground: &Ground) -> Result<(), Verdict> {
    if wanted.spec.priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY) {
        return Ok(());
    }
    let best_effort = super::qos::class(&wanted.spec) == super::qos::Class::BestEffort;
    let tolerated = wanted.spec.tolerations.iter().flatten().any(|t| {
        let any = t.key.as_deref().unwrap_or_default().is_empty() && t.operator.as_deref() == Some("Exists");
        any || t.key.as_deref() == Some("node.kubernetes.io/memory-pressure")
    });
    let memory = ground.memory_pressure && best_effort && !tolerated;
    let found: Vec<_> = [
        ("MemoryPressure", memory),
        ("DiskPressure", ground.disk_pressure),
        ("PIDPressure", ground.pid_pressure),
    ]
    .into_iter()
    .filter(|(_, under)| *under)
    .map(|(name, _)| name)
    .collect();
    if found.is_empty() {
        return Ok(());
    }
    Err(refusal("Evicted", format!("The node had condition: [{}]. ", found.join(" "))))
}

fn sysctls(spec: &PodSpec, ground: &Ground) -> Result<(), Verdict> {
    let forbidden =
        |name: &str, why: &str| Err(refusal("SysctlForbidden", format!("forbidden sysctl: {name:?} {why}")));
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        let name = sysctl_name(&sysctl.name);
        let safe = SAFE_SYSCTLS.contains(&name.as_str());
        let allowed = ground.allowed_unsafe_sysctls.iter().any(|pattern| {
            let pattern = sysctl_name(pattern);
            pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix))
        });
        if !safe && !allowed {
            return forbidden(&sysctl.name, "not allowlisted");
        }
        if name.starts_with("net.") && spec.host_network == Some(true) {
            return forbidden(&sysctl.name, "not allowed with host net enabled");
        }
        let ipc = name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name == "kernel.sem";
        if (ipc || name.starts_with("fs.mqueue.")) && spec.host_ipc == Some(true) {
            return forbidden(&sysctl.name, "not allowed with host ipc enabled");
        }
    }
    Ok(())
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` are one name (sysctl(8)); the form with
/// dots between the parts.
pub fn sysctl_name(text: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match text.find(['.', '/']) {
        Some(at) if text[at..].starts_with('/') => text.chars().map(swap).collect(),
        _ => text.to_owned(),
    }
}

fn wants_apparmor(wanted: &Wanted) -> bool {
    let pod = wanted.spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let confined = |profile: &k8s_openapi::api::core::v1::AppArmorProfile| profile.type_ != "Unconfined";
    wanted.containers().any(|(_, c)| {
        let own = c.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
        own.or(pod).is_some_and(confined)
    })
}

fn wants_selinux(wanted: &Wanted) -> bool {
    let pod = wanted.spec.security_context.as_ref().is_some_and(|s| s.se_linux_options.is_some());
    let own = |c: &k8s_openapi::api::core::v1::Container| {
        c.security_context.as_ref().is_some_and(|s| s.se_linux_options.is_some())
    };
    pod || wanted.containers().any(|(_, c)| own(c))
}

/// What a pod has of its node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Share {
    pub amounts: ResourceList,
    pub ports: Vec<HostPort>,
}

impl Share {
    /// Of a pod that was given `spec` and still has what is `in_force`.
    pub fn of(spec: &PodSpec, in_force: &PodSpec) -> Self {
        let mut amounts = requests(spec);
        resources::raise(&mut amounts, &requests(in_force));
        Self { amounts, ports: placement::host_ports(spec) }
    }
}

/// What pods of this node have been given, by uid.
pub type Allocations = BTreeMap<String, Share>;

/// The sum of what all pods but one have.
pub fn used_by_others(allocations: &Allocations, uid: &str) -> Share {
    let mut total = Share::default();
    for share in allocations.iter().filter(|(other, _)| *other != uid).map(|(_, share)| share) {
        resources::add(&mut total.amounts, &share.amounts);
        total.ports.extend_from_slice(&share.ports);
    }
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(spec: serde_json::Value, ground: &Ground) -> String {
        let pod =
            serde_json::json!({ "metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec });
        let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
        match admit(&wanted, ground) {
            Ok(()) => "admitted".to_owned(),
            Err(verdict) => format!("{}: {}", verdict.reason, verdict.message),
        }
    }

    #[test]
    fn pods_are_refused_in_kubelets_words() {
        let list = |pairs: &[(&str, &str)]| -> ResourceList {
            pairs.iter().map(|(n, q)| ((*n).to_owned(), q.parse().unwrap())).collect()
        };
        let ground = Ground {
            allocatable: list(&[("cpu", "2"), ("memory", "1Gi"), ("pods", "3"), ("example.com/foo", "2")]),
            used: list(&[("cpu", "1500m"), ("pods", "1"), ("example.com/foo", "1")]),
            used_ports: placement::host_ports(
                &serde_json::from_value(json!({"containers": [{"name": "o", "ports": [
                    {"containerPort": 1, "hostPort": 80, "protocol": "TCP"},
                ]}]}))
                .unwrap(),
            ),
            node: serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}}))
                .unwrap(),
            allowed_unsafe_sysctls: vec!["kernel.msg*".into()],
            ..Ground::default()
        };
        let port = |number: u16, ip: &str| {
            json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 8080, "hostPort": number, "hostIP": ip, "protocol": "TCP"},
            ]}]})
        };
        let with = |extra: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            spec
        };
        let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let cpu =
            |amount: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]});
        let extended = |name: &str, n: i32| json!({"containers": [{"name": "c", "resources": {"requests": {name: n.to_string()}}}]});
        for (spec, expect) in [
            (with(json!({})), "admitted"),
            (cpu("500m"), "admitted"),
            (
                cpu("600m"),
                "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000",
            ),
            (extended("example.com/foo", 1), "admitted"),
            (extended("example.com/unknown", 7), "admitted"),
            (
                extended("example.com/foo", 2),
                "OutOfexample.com/foo: Pod was rejected: Node didn't have enough resource: example.com/foo, requested: 2, used: 1, capacity: 2",
            ),
            (
                extended("hugepages-2Mi", 4),
                "OutOfhugepages-2Mi: Pod was rejected: Node didn't have enough resource: hugepages-2Mi, requested: 4, used: 0, capacity: 0",
            ),
            (with(sysctl("kernel.shm_rmid_forced")), "admitted"),
            (with(sysctl("kernel/msgmax")), "admitted"),
            (
                with(sysctl("kernel.pid_max")),
                "SysctlForbidden: Pod was rejected: forbidden sysctl: \"kernel.pid_max\" not allowlisted",
            ),
            (
                with(json!({"os": {"name": "windows"}})),
                "PodOSNotSupported: Pod was rejected: Failed to admit pod as the OS field doesn't match node OS",
            ),
            (
                with(json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}})),
                "AppArmor: Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host",
            ),
            (with(json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}})), "admitted"),
            (
                with(json!({"securityContext": {"seLinuxOptions": {"level": "s0"}}})),
                "SELinux: Pod was rejected: Cannot enforce SELinux: SELinux is not enabled on the host",
            ),
            (port(81, ""), "admitted"),
            (
                port(80, "192.0.2.1"),
                "NodePorts: Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
            (with(json!({"nodeSelector": {"disk": "ssd"}})), "admitted"),
            (
                with(json!({"nodeSelector": {"disk": "hdd"}})),
                "NodeAffinity: Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            ),
        ] {
            assert_eq!(verdict(spec, &ground), expect);
        }
        let empty = Ground { allocatable: ground.allocatable.clone(), ..Ground::default() };
        let taints = json!([
            {"key": "old", "value": "x", "effect": "NoExecute"},
            {"key": "full", "effect": "NoSchedule"},
        ]);
        let tainted = Ground {
            node: serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}}))
                .unwrap(),
            ..empty.clone()
        };
        assert_eq!(
            verdict(with(json!({})), &tainted),
            "TaintToleration: Pod was rejected: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        );
        let tolerations = json!([{"key": "old", "operator": "Exists", "tolerationSeconds": 5}]);
        assert_eq!(verdict(with(json!({"tolerations": tolerations})), &tainted), "admitted");
        let pressed = Ground { memory_pressure: true, ..empty };
        assert_eq!(
            verdict(with(json!({})), &pressed),
            "Evicted: Pod was rejected: The node had condition: [MemoryPressure]. "
        );
        assert_eq!(verdict(cpu("1"), &pressed), "admitted");
    }

    #[test]
    fn sysctls_have_one_name() {
        assert_eq!(sysctl_name("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(sysctl_name("kernel.shmmax"), "kernel.shmmax");
    }
}
