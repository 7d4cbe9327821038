//! Makes one container ready for its start: its image by pull policy, its files, its specification.
//!
//! In: a pod, a container, the attempt's number. Out: a [`ContainerSpec`] or a [`Refusal`] with the
//! reason that kubelet gives.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};

use super::{
    env::{self, Lookup},
    files,
    ledger::Ledger,
    qos,
    record::{self, Wanted},
    security,
    shared::Shared,
    volumes::{self, Mounted},
};
use crate::{
    crash,
    image::{Credentials, Image, Keyring},
    mqtt::messages::ItemKind,
    oci::Reference,
    runtime::{
        ContainerSpec, Mount, Propagation, Seccomp,
        apparmor::{self, Loaded},
        reason,
    },
};

/// Where containerd puts it when a container does not say (`terminationMessagePath`).
const TERMINATION_LOG: &str = "/dev/termination-log";
/// `/dev/shm` of a pod (containerd's default, bytes).
const SHM_BYTES: u64 = 64 << 20;
/// The longest file that environment variables are read from (bytes; upstream's 64 KiB).
const ENV_FILE_BYTES_MAX: u64 = 64 << 10;
/// The search path of an image that has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container cannot be started now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: &'static str,
    pub message: String,
    /// The image that it is about, where that is a volume's.
    pub image: Option<String>,
}

impl Refusal {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), image: None }
    }
}

fn config_error(message: impl Into<String>) -> Refusal {
    Refusal::new("CreateContainerConfigError", message)
}

/// What kubelet leaves to the container runtime to find out.
pub fn create_error(message: impl Into<String>) -> Refusal {
    Refusal::new("CreateContainerError", message)
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        config_error(message)
    }
}

/// What a container is started with.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub spec: ContainerSpec,
    pub image: String,
    pub image_id: String,
}

/// Makes everything ready. `services` is the environment of the namespace's services.
pub async fn prepare(
    shared: &Shared,
    wanted: &Wanted,
    name: &str,
    attempt: u32,
    ip: Option<std::net::Ipv4Addr>,
    mounted: &BTreeMap<String, Mounted>,
    processes_of: Option<String>,
) -> Result<Prepared, Refusal> {
    let (_, container) =
        wanted.container(name).ok_or_else(|| config_error(format!("container {name} is gone")))?;
    let reference = container.image.as_deref().unwrap_or_default();
    let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
    let absent = absent_secrets(shared, wanted).join(", ");
    if !absent.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({absent}); attempting to pull the image may not succeed."
        );
        shared.event(wanted, None, true, "FailedToRetrieveImagePullSecret", message);
    }
    let mut mounted = mounted.clone();
    mounted.extend(volumes::images(shared, wanted, container).await?);
    let image = fetch(shared, wanted, Some(&container.name), reference, policy).await?;
    let spec = build(shared, wanted, container, attempt, ip, &mounted, &image).await?;
    volumes::check_propagation(&spec.mounts).map_err(|why| {
        let text = format!("failed to generate container {:?} spec: failed to generate spec: {why}", spec.id);
        create_error(text)
    })?;
    Ok(Prepared {
        spec: ContainerSpec { processes_of, ..spec },
        image: shown(&image, reference),
        image_id: image.digests.first().cloned().unwrap_or_else(|| image.id.clone()),
    })
}

/// What an image is called where a container's is told: as the asked name is written out, else as it is known;
/// one without a tag by its id (containerd's `toCRIContainerStatus`).
fn shown(image: &Image, asked: &str) -> String {
    let asked = asked.parse::<Reference>().map(|reference| reference.to_string()).unwrap_or_default();
    let mut tags = image.names.iter().filter(|name| !name.contains('@'));
    let same = tags.clone().find(|name| **name == asked);
    same.or_else(|| tags.next()).unwrap_or(&image.id).clone()
}

/// Where the environment's values come from.
struct Sources<'a> {
    ledger: &'a Ledger,
    mounted: &'a BTreeMap<String, Mounted>,
}

impl Lookup for Sources<'_> {
    fn config_map(&self, namespace: &str, name: &str) -> Option<ConfigMap> {
        self.ledger.config_map(namespace, name)
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.ledger.secret(namespace, name)
    }

    fn file(&self, volume: &str, path: &str) -> Result<Option<Result<String, String>>, String> {
        let Some(mounted) = self.mounted.get(volume) else {
            return Err(format!("cannot find the volume {volume:?} referenced by FileKeyRef"));
        };
        let text = volumes::read_inside(&mounted.path, Path::new(path), ENV_FILE_BYTES_MAX);
        Ok(text.map_err(|error| error.to_string()).transpose())
    }
}

/// An image for a container or a volume of the pod, pulled when the policy says so.
pub async fn fetch(
    shared: &Shared,
    wanted: &Wanted,
    container: Option<&str>,
    reference: &str,
    policy: &str,
) -> Result<Arc<Image>, Refusal> {
    let say = |warning, reason, message| shared.event(wanted, container, warning, reason, message);
    if let Err(error) = reference.parse::<Reference>() {
        let message = format!("Failed to apply default image tag {reference:?}: {error}");
        say(true, "InspectFailed", message.clone());
        say(true, "Failed", "Error: InvalidImageName".to_owned());
        return Err(Refusal::new("InvalidImageName", message));
    }
    let present = shared.images.find(reference);
    if let Some(image) = present.clone().filter(|_| policy != "Always") {
        say(
            false,
            "Pulled",
            format!(
                "Container image {reference:?} already present on machine and can be accessed by the pod"
            ),
        );
        return Ok(image);
    }
    if policy == "Never" {
        let message = format!("Container image {reference:?} is not present with pull policy of Never");
        say(true, "ErrImageNeverPull", message.clone());
        say(true, "Failed", "Error: ErrImageNeverPull".to_owned());
        return Err(Refusal::new("ErrImageNeverPull", message));
    }
    say(false, "Pulling", format!("Pulling image {reference:?}"));
    let begun = Instant::now();
    let credentials = credentials(shared, wanted, reference);
    let pulled = tokio::select! {
        pulled = shared.images.pull(reference, &credentials, None) => pulled,
        () = wanted.ending.cancelled() => {
            let message = format!("the pod ends while image {reference:?} is pulled");
            return Err(Refusal::new("ErrImagePull", message));
        }
    };
    match pulled {
        Ok(image) => {
            let took = go_seconds(begun.elapsed());
            say(
                false,
                "Pulled",
                format!(
                    "Successfully pulled image {reference:?} in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size_bytes
                ),
            );
            Ok(image)
        }
        Err(error) => {
            let error = error.to_string();
            // The client of the container runtime tells of this code as gRPC does, and of others plainly.
            let lacks = error.ends_with(": not found");
            let error = if lacks { format!("rpc error: code = NotFound desc = {error}") } else { error };
            // A board that was cut off runs what it has, also of a tag that moves.
            if let Some(image) = present {
                say(
                    true,
                    "Failed",
                    format!("Failed to pull image {reference:?}: {error}; using the image that is present"),
                );
                return Ok(image);
            }
            say(true, "Failed", format!("Failed to pull image {reference:?}: {error}"));
            say(true, "Failed", "Error: ErrImagePull".to_owned());
            Err(Refusal::new("ErrImagePull", error))
        }
    }
}

/// A duration as Go prints it, in seconds with milliseconds: `1.234s`, `45ms`.
fn go_seconds(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 { format!("{millis}ms") } else { format!("{}.{:03}s", millis / 1000, millis % 1000) }
}

/// The pod's pull secrets that are not there.
fn absent_secrets<'a>(shared: &Shared, wanted: &'a Wanted) -> Vec<&'a str> {
    let secrets = wanted.spec.image_pull_secrets.iter().flatten().map(|named| named.name.as_str());
    secrets.filter(|name| shared.ledger.secret(&wanted.namespace, name).is_none()).collect()
}

/// The credentials that the pod's pull secrets have for an image.
fn credentials(shared: &Shared, wanted: &Wanted, reference: &str) -> Vec<Credentials> {
    let Ok(reference) = reference.parse() else { return Vec::new() };
    let secrets = wanted.spec.image_pull_secrets.iter().flatten();
    let mut ring = Keyring::default();
    for secret in secrets.filter_map(|named| shared.ledger.secret(&wanted.namespace, &named.name)) {
        let data = secret.data.unwrap_or_default();
        if let Some(text) = data.get(".dockerconfigjson").or(data.get(".dockercfg")) {
            ring.extend(Keyring::parse(&text.0));
        }
    }
    ring.find(&reference)
}

async fn build(
    shared: &Shared,
    wanted: &Wanted,
    container: &Container,
    attempt: u32,
    ip: Option<std::net::Ipv4Addr>,
    mounted: &BTreeMap<String, Mounted>,
    image: &Image,
) -> Result<ContainerSpec, Refusal> {
    let config = shared.config();
    let facts = shared.facts(wanted, ip);
    let links = wanted.spec.enable_service_links != Some(false);
    let mut services: BTreeMap<String, String> =
        shared.ledger.object(ItemKind::ServiceEnv, &wanted.namespace, "env").unwrap_or_default();
    if !links {
        // The API's own service is told in any case (`getServiceEnvVarMap`).
        services
            .retain(|name, _| name.starts_with("KUBERNETES_SERVICE_") || name.starts_with("KUBERNETES_PORT"));
    }
    let sources = Sources { ledger: &shared.ledger, mounted };
    let declared = env::declared(wanted, container, &sources, &facts, &services)?;
    let known: BTreeMap<&str, &str> = declared.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let lookup = |name: &str| known.get(name).map(|v| (*v).to_owned());
    let expand = |text: &String| env::expand(text, lookup);
    let of_image = image.config.config().clone().unwrap_or_default();
    let entry = of_image.entrypoint().clone().unwrap_or_default();
    let arguments = of_image.cmd().clone().unwrap_or_default();
    let given = |list: &Option<Vec<String>>| {
        list.as_ref().filter(|l| !l.is_empty()).map(|l| l.iter().map(expand).collect())
    };
    let args: Vec<String> = match (given(&container.command), given(&container.args)) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [entry, args].concat(),
        (None, None) => [entry, arguments].concat(),
    };
    if args.is_empty() {
        return Err(create_error(format!(
            "failed to generate container {:?} spec: failed to generate spec: no command specified",
            record::told_id(&wanted.uid, &container.name, attempt)
        )));
    }
    let host = files::uts_name(wanted, &config.cluster_domain);
    let mut environment: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match environment.iter_mut().find(|(n, _)| n == name) {
        Some(entry) => value.clone_into(&mut entry.1),
        None => environment.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    set("HOSTNAME", &host);
    if container.tty == Some(true) {
        set("TERM", "xterm");
    }
    for line in of_image.env().iter().flatten() {
        if let Some((name, value)) = line.split_once('=') {
            set(name, value);
        }
    }
    for (name, value) in &declared {
        set(name, value);
    }
    let accounts = security::Accounts::of_layers(&image.layers);
    let image_user = of_image.user().clone().unwrap_or_default();
    security::check_root(wanted, container, &image_user)?;
    let user = security::user(wanted, container, &image_user, &accounts).map_err(create_error)?;
    let context = container.security_context.clone().unwrap_or_default();
    let privileged = context.privileged == Some(true);
    let cwd = container
        .working_dir
        .clone()
        .or_else(|| of_image.working_dir().clone())
        .filter(|dir| !dir.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    let seccomp = security::seccomp(wanted, container, &shared.options.seccomp_profiles);
    if let Seccomp::Localhost(path) = &seccomp
        && let Err(error) = tokio::fs::metadata(path).await
    {
        return Err(create_error(format!(
            "failed to create containerd container: cannot load seccomp profile {:?}: open {}: {}",
            path.display(),
            path.display(),
            reason(&error)
        )));
    }
    let log_path = log_path(shared, wanted, &container.name, attempt);
    let mut mounts = volumes::mounts(shared, wanted, container, mounted, &lookup).await?;
    mounts.extend(own_files(shared, wanted, container, attempt, ip, &mounts).await?);
    Ok(ContainerSpec {
        id: record::container_id(&wanted.uid, &container.name, attempt),
        sandbox: wanted.uid.clone(),
        processes_of: None,
        layers: image.layers.clone(),
        read_only_root: context.read_only_root_filesystem == Some(true),
        args,
        env: environment,
        cwd,
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
        capabilities: security::capabilities(container),
        no_new_privileges: context.allow_privilege_escalation == Some(false) && !privileged,
        privileged,
        seccomp,
        unmasked_proc: context.proc_mount.as_deref() == Some("Unmasked"),
        apparmor_profile: apparmor_profile(wanted, container, apparmor::loaded).map_err(create_error)?,
        volumes: image_volumes(of_image.volumes().iter().flatten(), &mounts),
        mounts,
        devices: Vec::new(),
        shm_bytes: SHM_BYTES,
        resources: shared.without_other_pages(qos::container(&wanted.spec, container, None)),
        oom_score_adj: qos::oom_score_adj(wanted, container, shared.memory_capacity()),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        log_path,
        log_bytes_max: shared.options.limits.container_log_max_size,
        log_files_max: shared.options.limits.container_log_max_files,
    })
}

/// The folders that an image wants to write to, but for those that something is mounted on.
fn image_volumes<'a>(volumes: impl Iterator<Item = &'a String>, mounts: &[Mount]) -> Vec<PathBuf> {
    let plain =
        |path: &PathBuf| path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    let volumes = volumes.map(|path| Path::new("/").join(path).components().collect());
    volumes.filter(plain).filter(|path| mounts.iter().all(|mount| mount.target != *path)).collect()
}

/// The profile among those that the kernel has; where it does not tell, it will refuse what it does not have.
/// As with containerd, whoever asks for none has the default one, unless privileged.
fn apparmor_profile(
    wanted: &Wanted,
    container: &Container,
    loaded: impl Fn() -> Option<Loaded>,
) -> Result<Option<String>, String> {
    let own = container.security_context.as_ref();
    let privileged = own.and_then(|context| context.privileged) == Some(true);
    let own = own.and_then(|context| context.app_armor_profile.as_ref());
    let whole = wanted.spec.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let profile = own.or(whole);
    let name = match profile.map(|profile| profile.type_.as_str()) {
        Some("Localhost") => profile.and_then(|p| p.localhost_profile.clone()).unwrap_or_default(),
        Some("RuntimeDefault") | None if privileged => return Ok(None),
        Some("RuntimeDefault") => apparmor::DEFAULT.to_owned(),
        None => {
            let is_there = loaded().is_some_and(|loaded| loaded.has(apparmor::DEFAULT));
            return Ok(is_there.then(|| apparmor::DEFAULT.to_owned()));
        }
        Some(_) => return Ok(None),
    };
    if loaded().is_none_or(|loaded| loaded.has(&name)) {
        return Ok(Some(name));
    }
    Err(format!(
        "failed to get container spec opts: failed to generate apparmor spec opts: apparmor profile not found {name}"
    ))
}

/// The CRI log file of one attempt.
pub fn log_path(shared: &Shared, wanted: &Wanted, container: &str, attempt: u32) -> PathBuf {
    shared.log_dir(wanted).join(container).join(format!("{attempt}.log"))
}

/// The link that log shippers follow.
pub fn log_link(shared: &Shared, wanted: &Wanted, container: &str, attempt: u32) -> PathBuf {
    let id = record::told_id(&wanted.uid, container, attempt);
    let name = format!("{}_{}_{container}-{id}.log", wanted.name, wanted.namespace);
    shared.options.container_logs.join(name)
}

/// Where a container's termination message is on the node.
pub fn termination_file(shared: &Shared, uid: &str, container: &str, attempt: u32) -> PathBuf {
    shared.pod_dir(uid).join("containers").join(container).join(attempt.to_string())
}

/// `/etc/hosts` and the like, and the termination message, but for what the container mounts itself.
async fn own_files(
    shared: &Shared,
    wanted: &Wanted,
    container: &Container,
    attempt: u32,
    ip: Option<std::net::Ipv4Addr>,
    taken: &[Mount],
) -> Result<Vec<Mount>, String> {
    let config = shared.config();
    let dir = shared.pod_dir(&wanted.uid);
    let read = async |path: &Path| tokio::fs::read_to_string(path).await.unwrap_or_default();
    let facts = shared.facts(wanted, ip);
    let hosts =
        files::hosts(wanted, &config.cluster_domain, &facts.pod_ip, &read(&shared.options.hosts).await);
    let (resolv, short) = files::resolv_conf(wanted, &config, &read(&shared.options.resolv_conf).await);
    for (reason, text) in short {
        shared.event(wanted, None, true, reason, text);
    }
    let host = files::uts_name(wanted, &config.cluster_domain);
    let message = termination_file(shared, &wanted.uid, &container.name, attempt);
    let message_path =
        container.termination_message_path.clone().unwrap_or_else(|| TERMINATION_LOG.to_owned());
    let all = [
        (dir.join("etc-hosts"), "/etc/hosts".to_owned(), hosts),
        (dir.join("resolv.conf"), "/etc/resolv.conf".to_owned(), resolv),
        (dir.join("hostname"), "/etc/hostname".to_owned(), format!("{host}\n")),
        (message, message_path, String::new()),
    ];
    let mut mounts = Vec::new();
    for (source, target, text) in all {
        if target.is_empty() || taken.iter().any(|m| m.target == Path::new(&target)) {
            continue;
        }
        write_if_new(&source, &text).await.map_err(|e| format!("write {}: {e}", source.display()))?;
        mounts.push(Mount {
            source,
            target: target.into(),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
        });
    }
    let log = log_path(shared, wanted, &container.name, attempt);
    let link = log_link(shared, wanted, &container.name, attempt);
    for dir in [log.parent(), link.parent()].into_iter().flatten() {
        tokio::fs::create_dir_all(dir).await.map_err(|e| format!("create {}: {e}", dir.display()))?;
    }
    crash::point(crash::DAEMON);
    match tokio::fs::symlink(&log, &link).await {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(format!("link {}: {e}", link.display()))
        }
        _ => Ok(mounts),
    }
}

/// Writes a file that a container may write to as well; the same inode stays while it is mounted.
async fn write_if_new(path: &Path, text: &str) -> std::io::Result<()> {
    if tokio::fs::read_to_string(path).await.is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        tokio::fs::create_dir_all(dir).await?;
    }
    tokio::fs::write(path, text).await?;
    let mode = if text.is_empty() { 0o666 } else { 0o644 };
    tokio::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image;

    #[test]
    fn an_image_is_told_by_its_whole_name() {
        let mut image = (*image::Images::find(&image::fake::AnyImages, "x").unwrap()).clone();
        let mut told = |names: &[&str], asked: &str| {
            image.names = names.iter().map(|name| (*name).to_owned()).collect();
            shown(&image, asked)
        };
        let both = ["docker.io/library/bb:1", "docker.io/library/bb:2"];
        assert_eq!(told(&both, "bb:2"), both[1]);
        assert_eq!(told(&both, "other:3"), both[0]);
        assert_eq!(told(&["docker.io/library/bb@sha256:1"], "bb@sha256:1"), "sha256:1");
    }

    #[test]
    fn volumes_of_an_image_are_folders_that_nothing_is_mounted_on() {
        let volumes = ["/data", "/var/lib/db/", "logs", "/../up"].map(str::to_owned);
        let mounts = [Mount { target: "/data".into(), ..Mount::default() }];
        let found = image_volumes(volumes.iter(), &mounts);
        assert_eq!(found, ["/var/lib/db", "/logs"].map(PathBuf::from));
    }

    #[test]
    fn profiles_are_those_that_the_kernel_has() {
        let loaded = Some("/usr/bin/man (enforce)\nsampan-default (enforce)\n");
        let pick_as = |privileged: bool, own: &str, whole: &str, loaded: Option<&str>| {
            let context = |profile: &str| match profile {
                "" => serde_json::json!({}),
                text => {
                    serde_json::json!({"appArmorProfile": serde_json::from_str::<serde_json::Value>(text).unwrap()})
                }
            };
            let mut own = context(own);
            own["privileged"] = privileged.into();
            let pod = serde_json::json!({
                "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
                "spec": {"securityContext": context(whole), "containers": [{"name": "c", "securityContext": own}]},
            });
            let wanted = Wanted::new(serde_json::from_value(pod).unwrap());
            apparmor_profile(&wanted, &wanted.spec.containers[0], || {
                loaded.map(|text| Loaded(text.to_owned()))
            })
        };
        let pick = |own: &str, whole: &str, loaded: Option<&str>| pick_as(false, own, whole, loaded);
        let local = |name: &str| format!(r#"{{"type": "Localhost", "localhostProfile": "{name}"}}"#);
        let default = r#"{"type": "RuntimeDefault"}"#;
        let found = |name: &str| Ok(Some(name.to_owned()));
        let missing = |name: &str| {
            Err(format!(
                "failed to get container spec opts: failed to generate apparmor spec opts: apparmor profile not found {name}"
            ))
        };
        assert_eq!(pick("", "", loaded), found(apparmor::DEFAULT));
        assert_eq!(pick("", "", Some("")), Ok(None));
        assert_eq!(pick("", "", None), Ok(None));
        assert_eq!(pick_as(true, "", "", loaded), Ok(None));
        assert_eq!(pick_as(true, "", default, loaded), Ok(None));
        assert_eq!(pick_as(true, "", &local("/usr/bin/man"), loaded), found("/usr/bin/man"));
        assert_eq!(pick("", &local("/usr/bin/man"), loaded), found("/usr/bin/man"));
        assert_eq!(pick(&local("other"), "", loaded), missing("other"));
        assert_eq!(pick("", default, loaded), found(apparmor::DEFAULT));
        assert_eq!(pick("", default, Some("")), missing(apparmor::DEFAULT));
        assert_eq!(pick("", default, None), found(apparmor::DEFAULT));
        assert_eq!(pick(r#"{"type": "Unconfined"}"#, default, Some("")), Ok(None));
    }
}
