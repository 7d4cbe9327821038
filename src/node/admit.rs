//! Whether this node takes a pod at all: a pure function, asked once, before anything is made for it.
//!
//! Source: the kubelet's admit handlers (`pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/sysctl`,
//! `pkg/security/apparmor`, `pkg/kubelet/eviction`), in their words. A refused pod is `Failed`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use super::{
    preempt,
    qos::{self, Class},
    record::{CRITICAL_PRIORITY, Verdict, Wanted},
};
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

/// What becomes of a pod that comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    Taken,
    /// It is needed, and other pods have what it asks for.
    Needs(Vec<Lack>),
}

/// Takes a pod or says why not.
pub fn admit(wanted: &Wanted, ground: &Ground) -> Result<Admission, Verdict> {
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
    let lacks = lacks(&requests(spec), ground);
    if let Some(Lack { resource, requested, used, capacity }) = lacks.first().filter(|_| !wanted.critical()) {
        return Err(refusal(
            format!("OutOf{resource}"),
            format!(
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        ));
    }
    predicates(spec, ground)?;
    Ok(if lacks.is_empty() { Admission::Taken } else { Admission::Needs(lacks) })
}

/// The pods that go for a critical one which lacks something: such as may, by uid.
///
/// # Errors
/// The refusal: nobody has it.
pub fn victims(wanted: &Wanted, allocations: &Allocations, lacks: &[Lack]) -> Result<Vec<String>, Verdict> {
    let lesser = |share: &Share| {
        let critical = share.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY);
        !critical || wanted.spec.priority.zip(share.priority).is_some_and(|(own, other)| own > other)
    };
    let candidates: Vec<_> = allocations
        .iter()
        .filter(|(uid, share)| **uid != wanted.uid && lesser(share))
        .map(|(uid, share)| preempt::Candidate { uid, class: share.class, requests: &share.amounts })
        .collect();
    let chosen = preempt::choose(&candidates, lacks).map_err(|why| {
        refusal(
            "UnexpectedAdmissionError",
            format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: {why}"
            ),
        )
    })?;
    Ok(chosen.into_iter().map(str::to_owned).collect())
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
    lacks(requests, ground).into_iter().next().map_or(Ok(()), Err)
}

/// An amount as it is counted here and told of: processors in thousandths.
pub fn units(resource: &str, amount: Quantity) -> i64 {
    if resource == "cpu" { amount.milli_value() } else { amount.value() }
}

/// As [`fit`], all that is lacking.
fn lacks(requests: &ResourceList, ground: &Ground) -> Vec<Lack> {
    // What is told first is what upstream looks at first.
    let order = |resource: &str| {
        let first = ["pods", "cpu", "memory", "ephemeral-storage"];
        first.iter().position(|name| *name == resource).unwrap_or(first.len())
    };
    let mut wanted: Vec<_> = requests.iter().filter(|(_, amount)| !amount.is_zero()).collect();
    wanted.sort_by_key(|(resource, _)| order(resource));
    let lack = |(resource, amount): (&String, &Quantity)| {
        let amount_in = |list: &ResourceList| list.get(resource).map(|amount| units(resource, *amount));
        let capacity = match amount_in(&ground.allocatable) {
            None if resource_names::is_extended(resource) => return None,
            capacity => capacity.unwrap_or(0),
        };
        let used = amount_in(&ground.used).unwrap_or(0);
        let requested = units(resource, *amount);
        (requested > capacity - used).then(|| Lack { resource: resource.clone(), requested, used, capacity })
    };
    wanted.into_iter().filter_map(lack).collect()
}

/// Under pressure a node takes no more pods of the kind it would evict first.
fn pressure(wanted: &Wanted, ground: &Ground) -> Result<(), Verdict> {
    if wanted.critical() {
        return Ok(());
    }
    let best_effort = qos::class(&wanted.spec) == Class::BestEffort;
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

/// What a pod has of its node, and what it is to a critical one that needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    pub amounts: ResourceList,
    pub ports: Vec<HostPort>,
    pub priority: Option<i32>,
    pub class: Class,
    /// What it takes to end (seconds).
    pub grace_seconds: i64,
}

impl Share {
    /// Of a pod that was given what it asks for and still has what is `in_force`.
    pub fn of(wanted: &Wanted, in_force: &PodSpec) -> Self {
        let mut amounts = requests(&wanted.spec);
        resources::raise(&mut amounts, &requests(in_force));
        Self {
            amounts,
            ports: placement::host_ports(&wanted.spec),
            priority: wanted.spec.priority,
            class: qos::class(&wanted.spec),
            grace_seconds: wanted.grace_seconds(),
        }
    }
}

/// What pods of this node have been given, by uid.
pub type Allocations = BTreeMap<String, Share>;

/// The sum of what all pods but one have, and their ports.
pub fn used_by_others(allocations: &Allocations, uid: &str) -> (ResourceList, Vec<HostPort>) {
    let (mut amounts, mut ports) = (ResourceList::new(), Vec::new());
    for share in allocations.iter().filter(|(other, _)| *other != uid).map(|(_, share)| share) {
        resources::add(&mut amounts, &share.amounts);
        ports.extend_from_slice(&share.ports);
    }
    (amounts, ports)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(spec: serde_json::Value, labels: serde_json::Value) -> Wanted {
        let metadata = json!({"name": "p", "namespace": "ns", "uid": "u", "labels": labels});
        Wanted::new(serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap())
    }

    fn verdict(spec: serde_json::Value, ground: &Ground) -> String {
        told(admit(&wanted(spec, json!({})), ground))
    }

    fn told(admission: Result<Admission, Verdict>) -> String {
        match admission {
            Ok(Admission::Taken) => "admitted".to_owned(),
            Ok(Admission::Needs(lacks)) => lacks.into_iter().map(|lack| lack.resource + " ").collect(),
            Err(verdict) => format!("{}: {}", verdict.reason, verdict.message),
        }
    }

    fn list(pairs: &[(&str, &str)]) -> ResourceList {
        pairs.iter().map(|(n, q)| ((*n).to_owned(), q.parse().unwrap())).collect()
    }

    /// A pod of one container that asks for so much.
    fn asks(cpu: &str, more: serde_json::Value) -> serde_json::Value {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    }

    #[test]
    fn pods_are_refused_in_kubelets_words() {
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
        let cpu = |amount: &str| asks(amount, json!({}));
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
        let pressed = Ground { memory_pressure: true, ..empty.clone() };
        assert_eq!(
            verdict(with(json!({})), &pressed),
            "Evicted: Pod was rejected: The node had condition: [MemoryPressure]. "
        );
        assert_eq!(verdict(cpu("1"), &pressed), "admitted");
        let full = Ground { disk_pressure: true, pid_pressure: true, ..empty };
        assert_eq!(
            verdict(cpu("1"), &full),
            "Evicted: Pod was rejected: The node had condition: [DiskPressure PIDPressure]. "
        );
        assert_eq!(verdict(asks("1", json!({"priority": 2_000_000_000})), &full), "admitted");
    }

    #[test]
    fn a_pod_for_another_system_is_refused_by_its_label() {
        let ground = Ground { allocatable: list(&[("cpu", "2"), ("pods", "3")]), ..Ground::default() };
        let labelled =
            |os: &str| told(admit(&wanted(asks("1", json!({})), json!({"kubernetes.io/os": os})), &ground));
        assert_eq!(labelled("linux"), "admitted");
        assert_eq!(
            labelled("windows"),
            "PodOSSelectorNodeLabelDoesNotMatch: Pod was rejected: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"
        );
    }

    #[test]
    fn a_critical_pod_gets_what_lesser_ones_have() {
        let ground = Ground {
            allocatable: list(&[("cpu", "2"), ("memory", "1Gi"), ("pods", "2")]),
            used: list(&[("cpu", "1800m"), ("pods", "2")]),
            node: serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}}))
                .unwrap(),
            ..Ground::default()
        };
        let priority = |priority: i64| asks("500m", json!({"priority": priority}));
        assert!(verdict(priority(1_999_999_999), &ground).starts_with("OutOfpods: "));
        assert_eq!(verdict(priority(2_000_000_000), &ground), "pods cpu ");
        let elsewhere = asks("500m", json!({"priority": 2_000_001_000, "nodeSelector": {"disk": "hdd"}}));
        assert!(verdict(elsewhere, &ground).starts_with("NodeAffinity: "), "nobody can help that");

        let critical = wanted(priority(2_000_000_000), json!({}));
        let share = |cpu: &str, priority: i64| {
            let pod = wanted(asks(cpu, json!({"priority": priority})), json!({}));
            Share::of(&pod, &pod.spec)
        };
        let here = |shares: &[(&str, Share)]| -> Allocations {
            shares.iter().map(|(uid, share)| ((*uid).to_owned(), share.clone())).collect()
        };
        let lacks = fit(&requests(&critical.spec), &ground).unwrap_err();
        let go = |shares: &[(&str, Share)]| {
            victims(&critical, &here(shares), std::slice::from_ref(&lacks))
                .map_err(|verdict| told(Err(verdict)))
        };
        assert_eq!(go(&[("a", share("1", 5)), ("b", share("800m", 0))]), Ok(vec!["b".to_owned()]));
        assert_eq!(
            go(&[("a", share("1", 2_000_000_000)), ("b", share("800m", 2_000_001_000))]),
            Err("UnexpectedAdmissionError: Pod was rejected: Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: pods, q: 1), ]".to_owned())
        );
    }

    #[test]
    fn a_pod_between_two_sizes_has_the_larger_of_each() {
        let pod = |cpu: &str, memory: &str| {
            let requests = json!({"cpu": cpu, "memory": memory});
            wanted(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}), json!({}))
        };
        let (given, has) = (pod("200m", "300Mi"), pod("500m", "100Mi"));
        let share = Share::of(&given, &has.spec);
        assert_eq!(share.amounts, list(&[("cpu", "500m"), ("memory", "300Mi"), ("pods", "1")]));
        let all: Allocations = [("u".to_owned(), share.clone()), ("v".to_owned(), share)].into();
        assert_eq!(used_by_others(&all, "u").0, list(&[("cpu", "500m"), ("memory", "300Mi"), ("pods", "1")]));
    }

    #[test]
    fn sysctls_have_one_name() {
        assert_eq!(sysctl_name("net/ipv4/conf/eth0.1/rp_filter"), "net.ipv4.conf.eth0/1.rp_filter");
        assert_eq!(sysctl_name("kernel.shmmax"), "kernel.shmmax");
    }
}
