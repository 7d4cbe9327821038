//! What this board is: read from `/proc`, `/sys` and `/etc`.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path};

use nix::{ifaddrs::getifaddrs, sys::statvfs::statvfs};

use super::shared::{Options, Pressure};
use crate::{
    config::Limits,
    ids,
    image::Images,
    kinds::{self, builds, quantity::Quantity, volumes},
    mqtt::{
        messages::{NodeInfo, NodeState},
        topics,
    },
};

/// What the board's firmware says of it (Documentation/ABI/testing/sysfs-firmware-ofw).
const DEVICE_TREE: &str = "/sys/firmware/devicetree/base";

/// The kernel that first knows a tmpfs of which nothing is swapped out.
const NOSWAP_SINCE: (u32, u32) = (6, 4);

/// The longest value of a label (characters).
const LABEL_VALUE_MAX: usize = 63;

/// Looks at the machine; `address` is used when given.
pub fn gather(options: &Options, address: Option<Ipv4Addr>) -> NodeInfo {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let uname = nix::sys::utsname::uname().ok();
    let kernel = uname.as_ref().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let machine_id = text("/etc/machine-id");
    let uuid = text("/sys/class/dmi/id/product_uuid");
    let capacity = capacity(&options.data_dir, options.limits.max_pods);
    let labels = board(Path::new(DEVICE_TREE)).map(|model| ("sampan.dev/board".to_owned(), model));
    let own = address.or_else(outward_address);
    let mut addresses: Vec<(String, String)> =
        own.map(|ip| ("InternalIP".to_owned(), ip.to_string())).into_iter().collect();
    addresses.extend(options.external_ip.map(|ip| ("ExternalIP".to_owned(), ip.to_string())));
    addresses.push(("Hostname".to_owned(), options.node.clone()));
    let mut annotations = local_volumes(&options.local_volumes);
    annotations.insert(builds::PLATFORM.to_owned(), crate::oci::Platform::host().to_string());
    NodeInfo {
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        kernel_boot_id: text("/proc/sys/kernel/random/boot_id"),
        kernel_version: kernel,
        os_image: os_image(&text("/etc/os-release")),
        architecture: architecture.to_owned(),
        agent_version: kinds::VERSION.to_owned(),
        addresses,
        own_addresses: own_addresses().into_iter().map(|(_, ip)| ip).collect(),
        allocatable: allocatable(&capacity, &options.limits),
        capacity,
        labels: labels.into_iter().collect(),
        annotations,
        serves_ingress: options.serves_ingress,
    }
}

/// The board's model (`Raspberry Pi 4 Model B Rev 1.4`) as the value of a label.
fn board(device_tree: &Path) -> Option<String> {
    Some(label_value(&word(&device_tree.join("model"))?)).filter(|model| !model.is_empty())
}

/// The text of a file without what is around it: the device tree ends texts with a NUL.
fn word(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    Some(text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned()).filter(|t| !t.is_empty())
}

/// Where this node has its `local-path` volumes, and how large their file system is.
fn local_volumes(root: &Path) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([(volumes::LOCAL_PATH_ROOT.to_owned(), root.display().to_string())]);
    // The folder is made with the first volume; until then its nearest ancestor tells.
    let place = root.ancestors().find(|place| place.exists()).unwrap_or(root);
    if let Some(bytes) = capacity_bytes(place) {
        annotations.insert(volumes::LOCAL_PATH_CAPACITY.to_owned(), bytes.to_string());
    }
    annotations
}

fn capacity_bytes(place: &Path) -> Option<u64> {
    let stat = statvfs(place).ok()?;
    // The C types differ in width between processors.
    #[allow(clippy::useless_conversion)]
    Some(u64::from(stat.blocks()).saturating_mul(u64::from(stat.fragment_size())))
}

/// Processes and threads of the machine: the fourth word of /proc/loadavg is `running/all` (proc(5)).
pub fn tasks() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// What tells this board from every other: `given`, or its serial number, or what else its maker gave
/// it; hashed, [`topics::HARDWARE_LENGTH`] hexadecimal characters. A copied memory card takes the
/// machine id along, so that comes last.
pub fn hardware(given: Option<&str>) -> String {
    let files = ["/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/board_serial"];
    let serial = || {
        word(&Path::new(DEVICE_TREE).join("serial-number"))
            .or_else(|| files.iter().find_map(|path| word(Path::new(path))))
    };
    // The address of the first interface that is a device (`device` links to its bus).
    let address = || {
        let mut devices: Vec<_> = fs::read_dir("/sys/class/net").ok()?.flatten().map(|e| e.path()).collect();
        devices.retain(|path| path.join("device").exists());
        devices.sort();
        devices.iter().find_map(|path| word(&path.join("address")))
    };
    let found = given
        .map(str::to_owned)
        .or_else(serial)
        .or_else(address)
        .or_else(|| word(Path::new("/etc/machine-id")))
        .unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, found.as_bytes());
    ids::hex(&digest.as_ref()[..topics::HARDWARE_LENGTH / 2])
}

/// How the node is: what it runs short of, and its images, the largest first.
pub fn state(pressure: Pressure, images: &dyn Images) -> NodeState {
    let platforms = images.platforms();
    let mut images: Vec<_> = images
        .list()
        .iter()
        .map(|image| {
            let names = image.names.iter().chain(&image.digests).cloned().collect();
            (names, i64::try_from(image.size_bytes).unwrap_or(i64::MAX))
        })
        .collect();
    images.sort_by(|a: &(Vec<String>, i64), b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    NodeState {
        memory_pressure: pressure.memory,
        disk_pressure: pressure.disk,
        pid_pressure: pressure.pid,
        not_ready: String::new(),
        images,
        platforms,
    }
}

/// A line of /proc/meminfo (KiB).
pub fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find_map(|l| l.strip_prefix(name))?.trim().trim_end_matches(" kB").parse().ok()
}

/// Whether what lies in a tmpfs may come to a disk: there is swap space, and the kernel does not know
/// `noswap`.
pub fn memory_may_be_swapped() -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    nix::sys::utsname::uname().is_ok_and(|uname| may_be_swapped(&swaps, &uname.release().to_string_lossy()))
}

fn may_be_swapped(swaps: &str, kernel: &str) -> bool {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Below its headline.
    swaps.lines().count() > 1 && version < NOSWAP_SINCE
}

fn capacity(data_dir: &Path, pods: u32) -> BTreeMap<String, String> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory_kib = meminfo("MemTotal:").unwrap_or(0);
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), cpus.to_string()),
        ("memory".to_owned(), format!("{memory_kib}Ki")),
        ("pods".to_owned(), pods.to_string()),
    ]);
    if let Some(bytes) = capacity_bytes(data_dir) {
        capacity.insert("ephemeral-storage".to_owned(), format!("{}Ki", bytes >> 10));
    }
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    for size in sizes {
        let name = size.file_name().to_string_lossy().into_owned();
        let Some(kib) =
            name.strip_prefix("hugepages-").and_then(|n| n.strip_suffix("kB")?.parse::<u64>().ok())
        else {
            continue;
        };
        let pages: u64 = fs::read_to_string(size.path().join("nr_hugepages"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0);
        let unit = if kib >= 1 << 20 { format!("{}Gi", kib >> 20) } else { format!("{}Mi", kib >> 10) };
        capacity.insert(format!("hugepages-{unit}"), format!("{}Ki", pages * kib));
    }
    capacity
}

/// What of the capacity pods may have: without what is reserved, and without what has to stay free
/// (`pkg/kubelet/cm/node_container_manager_linux.go`). Huge pages are no ordinary memory.
fn allocatable(capacity: &BTreeMap<String, String>, limits: &Limits) -> BTreeMap<String, String> {
    let signals = [("memory", "memory.available"), ("ephemeral-storage", "nodefs.available")];
    let value = |name: &str| capacity.get(name).and_then(|t| t.parse::<Quantity>().ok());
    let mut out = capacity.clone();
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let Some(whole) = value(name) else { continue };
        let mut kept = limits.reserved(name).milli_value();
        for threshold in &limits.eviction_hard {
            if signals.iter().any(|(resource, signal)| *resource == name && *signal == threshold.signal) {
                let bytes = threshold.least.of(u64::try_from(whole.value()).unwrap_or(0));
                kept = kept.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX).saturating_mul(1000));
            }
        }
        if name == "memory" {
            let pages = capacity.keys().filter(|k| k.starts_with("hugepages-")).filter_map(|k| value(k));
            kept = kept.saturating_add(pages.map(Quantity::milli_value).sum());
        }
        if kept == 0 {
            continue;
        }
        let left = (whole.milli_value() - kept).max(0);
        let text = match name {
            "cpu" => Quantity::from_milli(left).to_string(),
            "memory" => format!("{}Ki", left / 1000 / 1024),
            _ => (left / 1000).to_string(),
        };
        out.insert(name.to_owned(), text);
    }
    out
}

/// Whether SELinux is in force or permissive on this host.
pub fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// `PRETTY_NAME` of os-release(5).
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// A text as the value of a label.
fn label_value(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let edge = |c: char| !c.is_ascii_alphanumeric();
    let value: String = text.trim_start_matches(edge).chars().map(plain).take(LABEL_VALUE_MAX).collect();
    value.trim_end_matches(edge).to_owned()
}

/// The addresses of all interfaces but the loopback.
fn own_addresses() -> Vec<(String, Ipv4Addr)> {
    getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|i| Some((i.interface_name.clone(), i.address?.as_sockaddr_in()?.ip())))
        .filter(|(name, ip)| !ip.is_loopback() && name != "lo")
        .collect()
}

/// The address of the interface with the default route; without one, of the first that is up.
pub fn outward_address() -> Option<Ipv4Addr> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let outward = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?.to_owned();
        (fields.next()? == "00000000").then_some(interface)
    });
    let found = own_addresses();
    let ours = |name: &str| ["smp", "sampan", "veth"].iter().any(|prefix| name.starts_with(prefix));
    found
        .iter()
        .find(|(name, _)| Some(name) == outward.as_ref())
        .or_else(|| found.iter().find(|(name, ip)| !ours(name) && !ip.is_link_local()))
        .map(|(_, ip)| *ip)
        .or(Some(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_becomes_a_label() {
        let tree = tempfile::tempdir().unwrap();
        assert_eq!(board(tree.path()), None, "no device tree");
        let long = "x".repeat(80);
        for (model, expected) in [
            (&b"Raspberry Pi 4 Model B Rev 1.4\0"[..], Some("Raspberry-Pi-4-Model-B-Rev-1.4")),
            (b"StarFive VisionFive 2 (v1.3B)\0", Some("StarFive-VisionFive-2--v1.3B")),
            (b"(unnamed)\0", Some("unnamed")),
            (b"Orange Pi \xff\0", Some("Orange-Pi")),
            (long.as_bytes(), Some(&long[..63])),
            (b"\0", None),
            (b"--\0", None),
        ] {
            fs::write(tree.path().join("model"), model).unwrap();
            assert_eq!(board(tree.path()).as_deref(), expected, "{}", String::from_utf8_lossy(model));
        }
    }

    #[test]
    fn memory_is_swapped_where_there_is_space_for_it_and_an_old_kernel() {
        let headline = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let some = format!("{headline}/dev/zram0  partition\t1024\t0\t100\n");
        for (swaps, kernel, expect) in [
            (some.as_str(), "6.1.0-38-arm64", true),
            (&some, "6.4.0", false),
            (&some, "6.12.25+rpt-rpi-v8", false),
            (&some, "5.15.0-1053-raspi", true),
            (&some, "10.0", false),
            (headline, "6.1.0", false),
            ("", "6.1.0", false),
        ] {
            assert_eq!(may_be_swapped(swaps, kernel), expect, "{kernel}");
        }
    }

    #[test]
    fn the_machine_is_described() {
        let mut options = Options::new("c", "n", "/".into(), "/".into());
        options.limits.system_reserved = vec![("cpu".into(), "100m".parse().unwrap())];
        let info = gather(&options, None);
        let milli = |list: &BTreeMap<String, String>| list["cpu"].parse::<Quantity>().unwrap().milli_value();
        assert_eq!(milli(&info.capacity) - milli(&info.allocatable), 100);
        let bytes = |list: &BTreeMap<String, String>| list["memory"].parse::<Quantity>().unwrap().value();
        assert!(bytes(&info.capacity) - bytes(&info.allocatable) >= 100 << 20);
        for key in ["cpu", "memory", "pods", "ephemeral-storage"] {
            assert!(info.capacity.contains_key(key), "{key}");
        }
        assert!(!info.kernel_version.is_empty());
        assert_eq!(os_image("A=b\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
