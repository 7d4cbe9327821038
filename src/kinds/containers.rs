//! Containers of pods: main, init and ephemeral (`validateContainers` and its parts).

use serde_json::Value;

use super::{
    ErrorList, FieldError,
    at::At,
    names,
    pod::RESTART_ALL,
    resource_names,
    volume_sources::{
        Volumes, check_field_ref, check_local_path, check_no_backsteps, check_relative_path,
        check_resource_ref,
    },
};

/// What containers are checked against.
pub struct PodContext<'a> {
    /// A Pod and not a template of one.
    pub is_pod: bool,
    pub volumes: Volumes<'a>,
    /// The names of `spec.resourceClaims`.
    pub claims: Vec<&'a str>,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace_seconds: Option<i64>,
    pub restart_policy: &'a str,
    /// `spec.hostUsers`, which is true by default.
    pub host_users: bool,
    /// `spec.os`.
    pub os: At<'a>,
}

pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Refuses bad containers of all three lists of a pod spec.
pub fn check_containers(spec: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let (main, init) = (spec.get("containers"), spec.get("initContainers"));
    if main.is_empty() {
        errors.push(main.required(""));
    }
    let mut names: Vec<&str> = Vec::new();
    for container in main.items() {
        check_common(&container, context, errors);
        check_unique_name(&container, &mut names, errors);
        check_lifecycle_and_probes(&container, context, errors);
        check_restart_rules(&container, errors);
    }
    check_host_ports(main.items(), errors);
    for container in init.items() {
        check_common(&container, context, errors);
        let policy = container.get("restartPolicy");
        check_restart_rules(&container, errors);
        check_unique_name(&container, &mut names, errors);
        check_host_ports(std::iter::once(container.clone()), errors);
        if policy.str() == "Always" {
            check_lifecycle_and_probes(&container, context, errors);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                let field = container.get(field);
                if field.is_set() {
                    errors.push(
                        field.forbidden("may not be set for init containers without restartPolicy=Always"),
                    );
                }
            }
        }
    }
    let targets = names.clone();
    for container in spec.get("ephemeralContainers").items() {
        check_ephemeral(&container, context, &targets, errors);
        check_unique_name(&container, &mut names, errors);
    }
    if context.is_pod {
        for container in ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .flat_map(|list| spec.get(list).items().collect::<Vec<_>>())
        {
            let image = container.get("image");
            if image.str().trim() != image.str() {
                errors.push(image.invalid("must not have leading or trailing whitespace"));
            }
        }
    }
}

fn check_unique_name<'a>(container: &At<'a>, names: &mut Vec<&'a str>, errors: &mut ErrorList) {
    let name = container.get("name");
    if names.contains(&name.str()) {
        errors.push(name.duplicate());
    } else if !name.is_empty() {
        names.push(name.str());
    }
}

/// Restart rules of a container, and exit codes of a rule.
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

/// `restartPolicy` of main and init containers, and the rules beside it.
fn check_restart_rules(container: &At<'_>, errors: &mut ErrorList) {
    let (policy, rules) = (container.get("restartPolicy"), container.get("restartPolicyRules"));
    if policy.is_set() {
        policy.check_one_of(&["Always", "Never", "OnFailure"], errors);
    } else if !rules.is_empty() {
        errors.push(policy.required("must specify restartPolicy when restart rules are used"));
    }
    let many = |list: &At<'_>, max: usize| FieldError::too_many(&list.path, list.len(), max);
    if rules.len() > RESTART_RULES_MAX {
        errors.push(many(&rules, RESTART_RULES_MAX));
    }
    for rule in rules.items() {
        let (action, codes) = (rule.get("action"), rule.get("exitCodes"));
        if !["Restart", RESTART_ALL].contains(&action.str()) {
            errors.push(action.not_supported(&["Restart", RESTART_ALL]));
        }
        if !codes.is_set() {
            errors.push(codes.required("must be specified"));
            continue;
        }
        let (operator, values) = (codes.get("operator"), codes.get("values"));
        if !["In", "NotIn"].contains(&operator.str()) {
            errors.push(operator.not_supported(&["In", "NotIn"]));
        }
        if values.len() > EXIT_CODES_MAX {
            errors.push(many(&values, EXIT_CODES_MAX));
        }
    }
}

fn check_common(container: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    container.get("name").check_required_name(names::dns_label, errors);
    container.get("image").check_required(errors);
    let policy = container.get("terminationMessagePolicy");
    policy.check_required_one_of(&["File", "FallbackToLogsOnError"], errors);
    check_ports(&container.get("ports"), errors);
    check_env(&container.get("env"), errors);
    check_env_from(&container.get("envFrom"), errors);
    check_mounts(container, context, errors);
    check_devices(container, context, errors);
    container.get("imagePullPolicy").check_required_one_of(&["Always", "IfNotPresent", "Never"], errors);
    let resources = container.get("resources");
    resource_names::check_requirements(
        &resources,
        resource_names::check_container_name,
        &context.claims,
        errors,
    );
    check_resize_policy(&container.get("resizePolicy"), context, errors);
    check_security_context(&container.get("securityContext"), context.host_users, errors);
}

fn check_ports(ports: &At<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.is_empty() {
            let before = errors.len();
            name.check(names::port_name, errors);
            if errors.len() == before && seen.contains(&name.str()) {
                errors.push(name.duplicate());
            }
            seen.push(name.str());
        }
        let container_port = port.get("containerPort");
        match container_port.int() {
            None | Some(0) => errors.push(container_port.required("")),
            Some(_) => container_port.check_port(errors),
        }
        let host_port = port.get("hostPort");
        if host_port.int().is_some_and(|p| p != 0) {
            host_port.check_port(errors);
        }
        port.get("protocol").check_required_one_of(PROTOCOLS, errors);
    }
}

/// Refuses a port of the node that two containers want.
fn check_host_ports<'a>(containers: impl Iterator<Item = At<'a>>, errors: &mut ErrorList) {
    let mut taken: Vec<String> = Vec::new();
    for port in containers.flat_map(|c| c.get("ports").items().collect::<Vec<_>>()) {
        let number = port.get("hostPort").int().unwrap_or(0);
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", port.get("protocol").str(), port.get("hostIP").str());
        if taken.contains(&key) {
            errors.push(FieldError::duplicate(port.get("hostPort").path, key));
        } else {
            taken.push(key);
        }
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn check_env(env: &At<'_>, errors: &mut ErrorList) {
    for variable in env.items() {
        variable.get("name").check_required_name(names::env_name, errors);
        let from = variable.get("valueFrom");
        if !from.is_set() {
            continue;
        }
        let sources = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
        let count = sources.iter().filter(|s| from.get(s).is_set()).count();
        if from.get("fieldRef").is_set() {
            check_field_ref(&from.get("fieldRef"), ENV_FIELDS, errors);
        }
        if from.get("resourceFieldRef").is_set() {
            check_resource_ref(&from.get("resourceFieldRef"), false, errors);
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            let source = from.get(source);
            if source.is_set() {
                source.get("name").check(names::dns_subdomain, errors);
                source.get("key").check_required_name(names::config_key, errors);
            }
        }
        let file = from.get("fileKeyRef");
        if file.is_set() {
            file.get("volumeName").check_required(errors);
            file.get("path").check_required(errors);
            check_local_path(&file.get("path"), errors);
            file.get("key").check_required_name(names::env_name, errors);
        }
        let mut wrong = |detail: &str| errors.push(FieldError::invalid(&from.path, "", detail));
        if count == 0 {
            wrong(
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            );
        } else if !variable.get("value").is_empty() {
            wrong("may not be specified when `value` is not empty");
        } else if count > 1 {
            wrong("may not have more than one field specified at a time");
        }
    }
}

fn check_env_from(list: &At<'_>, errors: &mut ErrorList) {
    for from in list.items() {
        let prefix = from.get("prefix");
        if !prefix.is_empty() {
            prefix.check(names::env_name, errors);
        }
        let mut count = 0;
        for source in ["configMapRef", "secretRef"] {
            let source = from.get(source);
            if source.is_set() {
                count += 1;
                source.get("name").check_required_name(names::dns_subdomain, errors);
            }
        }
        match count {
            0 => errors.push(FieldError::invalid(
                &list.path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                &list.path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn check_mounts(container: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let (mounts, devices) = (container.get("volumeMounts"), container.get("volumeDevices"));
    let privileged = container.get("securityContext").get("privileged").is_true();
    let mut points: Vec<&str> = Vec::new();
    for mount in mounts.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        name.check_required(errors);
        let volume = context.volumes.get(name.str());
        if volume.is_none() {
            errors.push(FieldError::not_found(&name.path, name.str()));
        }
        path.check_required(errors);
        if points.contains(&path.str()) {
            errors.push(path.invalid("must be unique"));
        }
        points.push(path.str());
        if devices.items().any(|d| d.get("name").str() == name.str()) {
            errors.push(name.invalid("must not already exist in volumeDevices"));
        }
        if devices.items().any(|d| d.get("devicePath").str() == path.str()) {
            errors.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        let (sub, expression) = (mount.get("subPath"), mount.get("subPathExpr"));
        if !sub.is_empty() {
            check_relative_path(&sub.with_path(format!("{}.subPath", mounts.path)), errors);
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.push(expression.invalid("subPathExpr and subPath are mutually exclusive"));
            }
            check_relative_path(&expression.with_path(format!("{}.subPathExpr", mounts.path)), errors);
        }
        let propagation =
            mount.get("mountPropagation").with_path(format!("{}.mountPropagation", mounts.path));
        if propagation.is_set() {
            propagation.check_one_of(&["Bidirectional", "HostToContainer", "None"], errors);
            if propagation.str() == "Bidirectional" && !privileged {
                errors.push(
                    propagation.forbidden(
                        "Bidirectional mount propagation is available only to privileged containers",
                    ),
                );
            }
        }
        check_recursive_read_only(&mount, &mounts.path, errors);
    }
}

fn check_recursive_read_only(mount: &At<'_>, list_path: &str, errors: &mut ErrorList) {
    let recursive = mount.get("recursiveReadOnly").with_path(format!("{list_path}.recursiveReadOnly"));
    recursive.check_one_of(&["Disabled", "Enabled", "IfPossible"], errors);
    if matches!(recursive.str(), "Enabled" | "IfPossible") {
        if !mount.get("readOnly").is_true() {
            errors.push(recursive.forbidden("may only be specified when readOnly is true"));
        }
        if !matches!(mount.get("mountPropagation").str(), "" | "None") {
            errors.push(
                recursive.forbidden("may only be specified when mountPropagation is None or not specified"),
            );
        }
    }
}

fn check_devices(container: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let mounts = container.get("volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for device in container.get("volumeDevices").items() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        name.check_required(errors);
        if names.contains(&name.str()) {
            errors.push(name.invalid("must be unique"));
        }
        match context.volumes.get(name.str()) {
            None => errors.push(FieldError::not_found(&name.path, name.str())),
            Some(volume)
                if volume.get("persistentVolumeClaim").is_none() && volume.get("ephemeral").is_none() =>
            {
                errors.push(name.invalid(
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ));
            }
            Some(_) => {}
        }
        path.check_required(errors);
        if paths.contains(&path.str()) {
            errors.push(path.invalid("must be unique"));
        }
        let mut backsteps = ErrorList::new();
        check_no_backsteps(&path, &mut backsteps);
        if !backsteps.is_empty() {
            errors.push(path.invalid("can not contain backsteps ('..')"));
        }
        if mounts.items().any(|m| m.get("name").str() == name.str()) {
            errors.push(name.invalid("must not already exist in volumeMounts"));
        }
        if mounts.items().any(|m| m.get("mountPath").str() == path.str()) {
            errors.push(path.invalid("must not already exist as a path in volumeMounts"));
        }
        names.push(name.str());
        paths.push(path.str());
    }
}

fn check_resize_policy(policies: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for policy in policies.items() {
        let (resource, restart) = (policy.get("resourceName"), policy.get("restartPolicy"));
        if seen.contains(&resource.str()) {
            errors.push(FieldError::duplicate(&policy.path, resource.str()));
        }
        seen.push(resource.str());
        resource.with_path(&policies.path).check_required_one_of(&["cpu", "memory"], errors);
        let restart = restart.with_path(&policies.path);
        restart.check_required_one_of(&["NotRequired", "RestartContainer"], errors);
        if context.restart_policy == "Never" && restart.str() != "NotRequired" {
            errors.push(restart.invalid("must be 'NotRequired' when `restartPolicy` is 'Never'"));
        }
    }
}

fn check_lifecycle_and_probes(container: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let lifecycle = container.get("lifecycle");
    for hook in ["postStart", "preStop"] {
        let hook = lifecycle.get(hook);
        if hook.is_set() {
            check_handler(&hook, context, errors);
        }
    }
    check_stop_signal(&lifecycle.get("stopSignal"), &context.os, errors);
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.get(kind);
        if !probe.is_set() {
            continue;
        }
        check_handler(&probe, context, errors);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            probe.get(field).check_not_negative(errors);
        }
        let grace = probe.get("terminationGracePeriodSeconds");
        if grace.int().is_some_and(|s| s <= 0) {
            errors.push(grace.invalid("must be greater than 0"));
        }
        let threshold = probe.get("successThreshold");
        if kind == "readinessProbe" {
            if grace.is_set() {
                errors.push(grace.invalid("must not be set for readinessProbes"));
            }
        } else if threshold.int() != Some(1) {
            errors.push(threshold.invalid("must be 1"));
        }
    }
}

/// Signals of Linux but for the real-time ones, without `SIG`.
const SIGNALS: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT \
    SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ";

/// The signals that may end a container of Linux, sorted.
fn signals() -> Vec<String> {
    let above = (1..=15).map(|n| format!("RTMIN+{n}"));
    let below = (1..=14).map(|n| format!("RTMAX-{n}"));
    let plain = SIGNALS.split(' ').chain(["RTMIN", "RTMAX"]).map(str::to_owned);
    let mut all: Vec<_> = plain.chain(above).chain(below).map(|name| format!("SIG{name}")).collect();
    all.sort();
    all
}

/// Which signals there are depends on the system that the pod says it is for.
fn check_stop_signal(signal: &At<'_>, os: &At<'_>, errors: &mut ErrorList) {
    if !signal.is_set() {
        return;
    }
    match os.get("name").str() {
        _ if !os.is_set() => {
            errors.push(signal.forbidden("may not be set for containers with empty `spec.os.name`"));
        }
        "windows" => signal.check_one_of(&["SIGKILL", "SIGTERM"], errors),
        "linux" => {
            let all = signals();
            signal.check_one_of(&all.iter().map(String::as_str).collect::<Vec<_>>(), errors);
        }
        _ => {}
    }
}

fn check_handler(handler: &At<'_>, context: &PodContext<'_>, errors: &mut ErrorList) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let at = handler.get(kind);
        if !at.is_set() {
            continue;
        }
        if found {
            errors.push(at.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match kind {
            "exec" => {
                at.get("command").check_required(errors);
            }
            "httpGet" => {
                at.get("path").check_required(errors);
                check_port_or_name(&at.get("port"), errors);
                let scheme = at.get("scheme");
                if !["HTTP", "HTTPS"].contains(&scheme.str()) {
                    errors.push(scheme.not_supported(&["HTTP", "HTTPS"]));
                }
                for header in at.get("httpHeaders").items() {
                    let name = header.get("name").with_path(format!("{}.httpHeaders", at.path));
                    name.check(names::http_header, errors);
                }
            }
            "tcpSocket" => check_port_or_name(&at.get("port"), errors),
            "grpc" => at.get("port").check_port(errors),
            _ => {
                let (seconds, grace) = (at.get("seconds").int().unwrap_or(0), context.grace_seconds);
                if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                    errors.push(FieldError::invalid(
                        &at.path,
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    ));
                }
            }
        }
    }
    if !found {
        errors.push(handler.required("must specify a handler type"));
    }
}

/// Refuses what is neither a port number nor a port's name.
pub fn check_port_or_name(port: &At<'_>, errors: &mut ErrorList) {
    match port.value {
        Value::String(_) => port.check(names::port_name, errors),
        _ => port.check_port(errors),
    }
}

/// Refuses a user or group number that the kernel does not take.
pub fn check_id(id: &At<'_>, errors: &mut ErrorList) {
    id.check_range(0, i64::from(i32::MAX), errors);
}

/// The fields of Go's struct.
const SECURITY_CONTEXT: &str = "Capabilities Privileged SELinuxOptions WindowsOptions RunAsUser RunAsGroup RunAsNonRoot ReadOnlyRootFilesystem AllowPrivilegeEscalation ProcMount SeccompProfile AppArmorProfile";

fn check_security_context(context: &At<'_>, host_users: bool, errors: &mut ErrorList) {
    if !context.is_set() {
        return;
    }
    check_id(&context.get("runAsUser"), errors);
    check_id(&context.get("runAsGroup"), errors);
    let mount = context.get("procMount");
    if mount.is_set() {
        mount.check_one_of(&["Default", "Unmasked"], errors);
        if host_users && mount.str() == "Unmasked" {
            errors.push(mount.invalid("`hostUsers` must be false to use `Unmasked`"));
        }
    }
    check_profiles(context, errors);
    if context.get("allowPrivilegeEscalation").value == false {
        if context.get("privileged").is_true() {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(context.invalid(detail).as_struct(SECURITY_CONTEXT));
        }
        let capabilities = context.get("capabilities").get("add");
        if capabilities.items().any(|c| c.str() == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(context.invalid(detail).as_struct(SECURITY_CONTEXT));
        }
    }
}

/// `seccompProfile` and `appArmorProfile` of a pod's or container's security context.
pub fn check_profiles(context: &At<'_>, errors: &mut ErrorList) {
    const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
    for (field, name) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = context.get(field);
        if !profile.is_set() {
            continue;
        }
        let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
        if kind.is_empty() {
            errors.push(kind.required(&format!("type is required when {field} is set")));
            continue;
        }
        kind.check_one_of(TYPES, errors);
        if kind.str() == "Localhost" {
            if local.is_empty() {
                errors.push(local.required(&format!("must be set when {name} type is Localhost")));
            } else if name == "seccomp" {
                check_relative_path(&local, errors);
            } else if local.str().trim() != local.str() {
                errors.push(local.invalid("must not be padded with whitespace"));
            }
        } else if local.is_set() && TYPES.contains(&kind.str()) {
            errors.push(local.invalid(format!("can only be set when {name} type is Localhost")));
        }
    }
}

/// What an ephemeral container cannot have.
fn check_ephemeral(container: &At<'_>, context: &PodContext<'_>, targets: &[&str], errors: &mut ErrorList) {
    const CANNOT: &str = "cannot be set for an Ephemeral Container";
    check_common(container, context, errors);
    let target = container.get("targetContainerName");
    if !target.is_empty() && !targets.contains(&target.str()) {
        errors.push(FieldError::not_found(&target.path, target.str()));
    }
    let fields = [
        "ports",
        "resources",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
    ];
    for field in fields.iter().chain(&["restartPolicy"]).map(|f| container.get(f)) {
        if !field.is_empty() {
            errors.push(field.forbidden(CANNOT));
        }
    }
    for mount in container.get("volumeMounts").items() {
        for field in ["subPath", "subPathExpr"].map(|f| mount.get(f)) {
            if !field.is_empty() {
                errors.push(field.forbidden(CANNOT));
            }
        }
    }
}
