//! The rules, one function a subject.

use std::{path::Path, time::Duration};

use jiff::Timestamp;

use super::{Finding, Host, MEMORY_CGROUP, Options, Severity, fix};

/// The oldest kernel a node runs on: `mount_setattr` and idmapped mounts (5.12).
const KERNEL_MIN: (u32, u32) = (5, 12);
/// Memory below which a board is for one or two small pods (KiB).
const MEMORY_MIN_KIB: u64 = 200 * 1024;
/// Free space a node wants for images and logs (bytes), and inodes.
const FREE_BYTES_MIN: u64 = 1 << 30;
const FREE_INODES_MIN: u64 = 50_000;
/// A synced write that takes longer than this slows every change of the cluster.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// Where boards begin to slow themselves down (thousandths of a degree Celsius).
const HOT_MILLIDEGREES: i64 = 80_000;
/// Time before which a clock has not been set: this code did not exist yet.
const CLOCK_MIN: &str = "2026-11-01T00:00:00Z";

/// What the network and the containers need of the kernel.
const MODULES: &[(&str, &str)] = &[
    ("overlay", "containers' root file systems"),
    ("veth", "the pods' network links"),
    ("nf_tables", "Services"),
    ("nf_conntrack", "Services"),
    ("vxlan", "pods on nodes behind a router"),
];

/// How the usual firewalls let pods and nodes pass.
const UFW_REMEDY: &str = "ufw route allow from 10.42.0.0/16; ufw route allow to 10.42.0.0/16; \
    ufw allow from 10.42.0.0/16; ufw allow 6443,8883,80,443/tcp; ufw allow 8472/udp";
const FIREWALLD_REMEDY: &str = "firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16; \
    firewall-cmd --permanent --add-port=6443/tcp --add-port=8883/tcp --add-port=80/tcp --add-port=443/tcp \
    --add-port=8472/udp; firewall-cmd --reload";

/// File systems that cannot hold the writable side of an overlay (`statfs` magic numbers,
/// `linux/magic.h`).
const NO_OVERLAY: &[(i64, &str)] = &[
    (0x794c_7630, "overlay"),
    (0x6969, "NFS"),
    (0x4d44, "FAT"),
    (0x2011_bab0, "exFAT"),
    (0x5346_544e, "NTFS"),
];

/// What no node can do without.
pub fn essential(host: &Host, data_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![root(), kernel(host), cgroups(host), memory_cgroup(host), overlay(data_dir)];
    findings.extend(MODULES.iter().map(|(module, purpose)| kernel_module(host, module, purpose)));
    findings
}

pub fn all(host: &Host, options: &Options) -> Vec<Finding> {
    let mut findings = essential(host, &options.data_dir);
    findings.extend([
        memory(host),
        clock(host, Timestamp::now()),
        space(&options.data_dir),
        speed(&options.data_dir),
        wear(host),
        engines(host),
        firewall(host),
        forwarding(&options.closed_forward),
        input(&options.closed_input),
        legacy_tables(host),
        bridge_netfilter(host),
        default_route(host),
        resolver(host),
        temperature(host),
        voltage(host),
        ipv6(host),
    ]);
    findings.extend(options.ports.iter().map(|port| port_in_use(host, *port)));
    findings
}

fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::ok("root", "running as root")
    } else {
        Finding::bad(
            "root",
            Severity::Error,
            "not running as root",
            "run sampan as root: containers and networks need it",
        )
    }
}

fn kernel(host: &Host) -> Finding {
    let (major, minor) = KERNEL_MIN;
    match host.kernel() {
        Some(found) if found >= KERNEL_MIN => {
            Finding::ok("kernel", format!("kernel {}.{}", found.0, found.1))
        }
        Some(found) => Finding::bad(
            "kernel",
            Severity::Error,
            format!("kernel {}.{} is older than {major}.{minor}", found.0, found.1),
            "update the board's system; Raspberry Pi OS 12 and Debian 12 have 6.1 and newer",
        ),
        None => Finding::bad("kernel", Severity::Warning, "the kernel's version is not known", "mount /proc"),
    }
}

fn cgroups(host: &Host) -> Finding {
    if host.exists("/sys/fs/cgroup/cgroup.controllers") {
        Finding::ok("cgroups", "cgroup version 2")
    } else if host.exists("/sys/fs/cgroup/memory") || host.exists("/sys/fs/cgroup/cpu") {
        Finding::ok("cgroups", "cgroup version 1")
    } else {
        Finding::bad(
            "cgroups",
            Severity::Error,
            "no cgroups are mounted",
            "boot with systemd, or mount cgroup2 on /sys/fs/cgroup",
        )
    }
}

/// The Raspberry Pi's firmware turns the memory controller off.
fn memory_cgroup(host: &Host) -> Finding {
    const ID: &str = MEMORY_CGROUP;
    let v2 =
        host.read("/sys/fs/cgroup/cgroup.controllers").map(|list| list.split(' ').any(|c| c == "memory"));
    let v1 = host.read("/proc/cgroups").map(|table| {
        table.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("memory") && words.last() == Some("1")
        })
    });
    if v2.or(v1).unwrap_or(false) {
        return Finding::ok(ID, "the memory controller is on");
    }
    let remedy = match fix::command_line(host) {
        Some(file) if fix::can_fix_memory_cgroup(host) => format!(
            "append ` cgroup_enable=memory cgroup_memory=1` to the one line of {file} (`sampan check --fix` does it) and reboot"
        ),
        Some(file) => format!("reboot: {file} turns it on"),
        None => "add cgroup_enable=memory to the kernel's command line and reboot".to_owned(),
    };
    Finding::bad(
        ID,
        Severity::Error,
        "the kernel's memory controller is off: no memory limits, no OOM protection",
        remedy,
    )
}

fn memory(host: &Host) -> Finding {
    let total = host.read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    match total {
        Some(kib) if kib >= MEMORY_MIN_KIB => Finding::ok("memory", format!("{} MiB of memory", kib / 1024)),
        Some(kib) => Finding::bad(
            "memory",
            Severity::Warning,
            format!("{} MiB of memory", kib / 1024),
            "run this board as an agent (`sampan agent`) rather than as a server",
        ),
        None => Finding::bad("memory", Severity::Warning, "the amount of memory is not known", "mount /proc"),
    }
}

fn overlay(data_dir: &Path) -> Finding {
    let found = Host::file_system(data_dir).and_then(|magic| NO_OVERLAY.iter().find(|(m, _)| *m == magic));
    match found {
        Some((_, name)) => Finding::bad(
            "data-file-system",
            Severity::Error,
            format!("{} is on {name}, which cannot hold containers", data_dir.display()),
            "put --data-dir on ext4, btrfs, xfs or f2fs",
        ),
        None => match Host::overlay_mount(data_dir) {
            Err(error) => Finding::bad(
                "data-file-system",
                Severity::Error,
                format!("no overlay can be mounted on {}: {error}", data_dir.display()),
                "put --data-dir on ext4, btrfs, xfs or f2fs, and see to the kernel's overlay module",
            ),
            Ok(()) => Finding::ok("data-file-system", format!("{} can hold containers", data_dir.display())),
        },
    }
}

fn kernel_module(host: &Host, module: &str, purpose: &str) -> Finding {
    if host.has_module(module) {
        return Finding::ok("kernel-module", format!("{module} is there"));
    }
    let severity = if module == "vxlan" { Severity::Warning } else { Severity::Error };
    Finding::bad(
        "kernel-module",
        severity,
        format!("the kernel has no {module}, which {purpose} need"),
        format!("install the kernel's modules, or build it with {module}"),
    )
}

fn clock(host: &Host, now: Timestamp) -> Finding {
    let earliest: Timestamp = CLOCK_MIN.parse().expect("a constant");
    if now < earliest {
        return Finding::bad(
            "clock",
            Severity::Warning,
            format!("the clock says {now}, which cannot be"),
            "set the time or let it be set by NTP; certificates are checked against a plausible time until then",
        );
    }
    if host.names("/sys/class/rtc").is_empty() {
        return Finding::bad(
            "clock",
            Severity::Info,
            "no clock with a battery: after a power cut the time is wrong until NTP sets it",
            "nothing has to be done; CronJobs may start late after an offline boot",
        );
    }
    Finding::ok("clock", "the clock is plausible and has hardware")
}

fn space(data_dir: &Path) -> Finding {
    const ID: &str = "free-space";
    match Host::free(data_dir) {
        Some((bytes, inodes)) if bytes >= FREE_BYTES_MIN && (inodes == 0 || inodes >= FREE_INODES_MIN) => {
            Finding::ok(ID, format!("{} MiB free in {}", bytes >> 20, data_dir.display()))
        }
        Some((bytes, inodes)) => Finding::bad(
            ID,
            Severity::Warning,
            format!("{} MiB and {inodes} inodes free in {}", bytes >> 20, data_dir.display()),
            "free some space, or put --data-dir on a larger disk",
        ),
        None => Finding::bad(ID, Severity::Warning, "free space is not known", "look at --data-dir"),
    }
}

fn speed(data_dir: &Path) -> Finding {
    const ID: &str = "disk-speed";
    match Host::synced_write(data_dir) {
        Some(took) if took <= SLOW_SYNC => {
            Finding::ok(ID, format!("a synced write takes {} ms", took.as_millis()))
        }
        Some(took) => Finding::bad(
            ID,
            Severity::Warning,
            format!(
                "a synced write takes {} ms: every change of the cluster waits for one",
                took.as_millis()
            ),
            "use an A2-rated card, an SSD or eMMC for --data-dir",
        ),
        None => Finding::bad(
            ID,
            Severity::Error,
            format!("{} cannot be written to", data_dir.display()),
            "mount it read-write, or give another --data-dir",
        ),
    }
}

/// eMMC and some cards tell how worn they are (JEDEC eMMC 5.0, EXT_CSD 267 to 269).
fn wear(host: &Host) -> Finding {
    const ID: &str = "disk-wear";
    for disk in host.names("/sys/block").iter().filter(|name| name.starts_with("mmcblk")) {
        if let Some(state) = host.read(&format!("/sys/block/{disk}/device/pre_eol_info")) {
            match state.as_str() {
                "0x02" => {
                    return Finding::bad(
                        ID,
                        Severity::Warning,
                        format!("{disk} has used up 80% of its spare blocks"),
                        "plan for a new one and keep backups (`sampan backup`)",
                    );
                }
                "0x03" => {
                    return Finding::bad(
                        ID,
                        Severity::Error,
                        format!("{disk} is at the end of its life"),
                        "replace it now (`sampan backup` first)",
                    );
                }
                _ => {}
            }
        }
        if let Some(life) = host.read(&format!("/sys/block/{disk}/device/life_time")) {
            let worst = life
                .split(' ')
                .filter_map(|w| u32::from_str_radix(w.trim_start_matches("0x"), 16).ok())
                .max();
            if let Some(tenths @ 1..=10) = worst {
                return Finding::ok(ID, format!("{disk} is at most {}% worn", tenths * 10));
            }
        }
    }
    Finding::ok(ID, "no disk reports wear")
}

fn engines(host: &Host) -> Finding {
    let found: Vec<_> =
        ["dockerd", "containerd", "k3s-server", "k3s-agent", "kubelet", "crio", "microk8s", "podman"]
            .into_iter()
            .filter(|name| host.runs(name))
            .collect();
    if found.is_empty() {
        return Finding::ok("other-engines", "no other container engine runs");
    }
    let kubernetes = found.iter().any(|name| !matches!(*name, "dockerd" | "containerd" | "podman"));
    Finding::bad(
        "other-engines",
        if kubernetes { Severity::Warning } else { Severity::Info },
        format!("also running: {}", found.join(", ")),
        if kubernetes {
            "two Kubernetes on one board compete for ports 6443, 80, 443 and for addresses: stop the other one"
        } else {
            "they go together; if Docker's firewall drops forwarded traffic, that is said apart"
        },
    )
}

fn firewall(host: &Host) -> Finding {
    let ufw =
        host.read("/etc/ufw/ufw.conf").is_some_and(|text| text.lines().any(|l| l.trim() == "ENABLED=yes"));
    let found: Vec<_> = [(ufw, "ufw", UFW_REMEDY), (host.runs("firewalld"), "firewalld", FIREWALLD_REMEDY)]
        .into_iter()
        .filter(|(on, _, _)| *on)
        .collect();
    let all = |part: fn(&(bool, &'static str, &'static str)) -> &'static str, between: &str| {
        found.iter().map(part).collect::<Vec<_>>().join(between)
    };
    if found.is_empty() {
        return Finding::ok("firewall", "no firewall service is on");
    }
    Finding::bad(
        "firewall",
        Severity::Warning,
        format!("{} is on and may drop the pods' traffic", all(|f| f.1, " and ")),
        format!(
            "let pods pass, the nodes (TCP 6443 and 8883 to the master, UDP 8472 between nodes) and who \
             comes to Ingresses (TCP 80 and 443): {}",
            all(|f| f.2, "; ")
        ),
    )
}

/// Older programs keep their rules where nf_tables does not show them.
fn legacy_tables(host: &Host) -> Finding {
    const ID: &str = "legacy-iptables";
    let filters = host
        .read("/proc/net/ip_tables_names")
        .is_some_and(|names| names.lines().any(|name| name == "filter"));
    if !filters {
        return Finding::ok(ID, "no rules of the older iptables");
    }
    Finding::bad(
        ID,
        Severity::Info,
        "there are rules of the older iptables, which cannot be seen from here",
        "look whether they let pods pass (`iptables-legacy -S FORWARD`); if the policy is DROP: \
         iptables-legacy -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables-legacy -I FORWARD -d 10.42.0.0/16 -j ACCEPT",
    )
}

/// Tables that a program writes anew from its own settings: those have to be changed, which the finding
/// `firewall` is about.
fn is_firewalld(chain: &str) -> bool {
    chain.starts_with("inet firewalld ")
}

/// Every chain at the kernel's forward hook has to let a packet pass: ours cannot overrule another's.
fn forwarding(closed: &[String]) -> Finding {
    const ID: &str = "forwarding";
    if closed.is_empty() {
        return Finding::ok(ID, "no firewall drops forwarded packets by default");
    }
    let what = if closed.iter().all(|chain| is_firewalld(chain)) {
        "pods reach neither other pods nor what is outside"
    } else {
        "pods reach neither each other nor Services nor what is outside, and nobody reaches them but their own node"
    };
    let remedies = remedies(closed, |chain| match chain {
        "ip filter FORWARD" => {
            "iptables -I FORWARD -s 10.42.0.0/16 -j ACCEPT; iptables -I FORWARD -d 10.42.0.0/16 -j ACCEPT \
             (where Docker runs, in DOCKER-USER instead of FORWARD: Docker keeps that chain; with ufw: \
             ufw route allow from 10.42.0.0/16; ufw route allow to 10.42.0.0/16)"
                .to_owned()
        }
        _ => format!(
            "nft insert rule {chain} ip saddr 10.42.0.0/16 accept; \
             nft insert rule {chain} ip daddr 10.42.0.0/16 accept"
        ),
    });
    let summary = format!("{} stops forwarded packets by default: {what}", closed.join(" and "));
    Finding::bad(ID, Severity::Warning, summary, format!("let pods pass: {remedies}"))
}

/// The same for packets to the board itself.
fn input(closed: &[String]) -> Finding {
    const ID: &str = "input";
    if closed.is_empty() {
        return Finding::ok(ID, "no firewall drops what comes to this board by default");
    }
    let remedies = remedies(closed, |chain| match chain {
        "ip filter INPUT" => "iptables -I INPUT -s 10.42.0.0/16 -j ACCEPT; \
             iptables -I INPUT -p tcp -m multiport --dports 6443,8883,80,443 -j ACCEPT; \
             iptables -I INPUT -p udp --dport 8472 -j ACCEPT (with ufw: ufw allow from 10.42.0.0/16; \
             ufw allow 6443,8883,80,443/tcp; ufw allow 8472/udp)"
            .to_owned(),
        _ => format!(
            "nft insert rule {chain} ip saddr 10.42.0.0/16 accept; \
             nft insert rule {chain} tcp dport '{{ 6443, 8883, 80, 443 }}' accept; \
             nft insert rule {chain} udp dport 8472 accept"
        ),
    });
    let summary = format!(
        "{} stops what comes to this board by default: its pods get no answers from its DNS and its API, other \
         nodes and Ingress's clients do not reach it",
        closed.join(" and ")
    );
    Finding::bad(ID, Severity::Warning, summary, format!("let pods, nodes and clients in: {remedies}"))
}

/// What to do about each of these chains; `own` says it of one that no program writes anew.
fn remedies(chains: &[String], own: impl Fn(&str) -> String) -> String {
    let remedy = |chain: &String| if is_firewalld(chain) { FIREWALLD_REMEDY.to_owned() } else { own(chain) };
    chains.iter().map(remedy).collect::<Vec<_>>().join("; ")
}

fn bridge_netfilter(host: &Host) -> Finding {
    let on = host.read("/proc/sys/net/bridge/bridge-nf-call-iptables").is_some_and(|v| v == "1");
    if on {
        Finding::bad(
            "bridge-netfilter",
            Severity::Info,
            "br_netfilter is on (another engine wants it)",
            "nothing has to be done: pods are routed, not bridged",
        )
    } else {
        Finding::ok("bridge-netfilter", "br_netfilter is off")
    }
}

fn default_route(host: &Host) -> Finding {
    let any = host.read("/proc/net/route").is_some_and(|table| {
        table.lines().skip(1).any(|line| {
            let mut words = line.split_whitespace();
            words.nth(1) == Some("00000000")
        })
    });
    if any {
        Finding::ok("default-route", "there is a default route")
    } else {
        Finding::bad(
            "default-route",
            Severity::Info,
            "no default route: images cannot be pulled from outside",
            "nothing has to be done for work offline; import images with `sampan image import`",
        )
    }
}

fn resolver(host: &Host) -> Finding {
    const ID: &str = "resolver";
    let servers: Vec<String> = host
        .read("/etc/resolv.conf")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver").map(|s| s.trim().to_owned()))
        .collect();
    if servers.is_empty() {
        return Finding::bad(
            ID,
            Severity::Info,
            "no name servers: only cluster names resolve",
            "nothing has to be done for work offline",
        );
    }
    if servers.iter().all(|s| s.starts_with("127.") || s == "::1") {
        let real = host.exists("/run/systemd/resolve/resolv.conf");
        let remedy = if real {
            "nothing has to be done: the servers behind systemd-resolved are used"
        } else {
            "see to it that the local resolver does not ask the cluster's DNS: that would be a loop"
        };
        let severity = if real { Severity::Ok } else { Severity::Warning };
        return Finding {
            id: ID,
            severity,
            summary: "the name server is on this machine".to_owned(),
            remedy: remedy.to_owned(),
        };
    }
    Finding::ok(ID, format!("name servers {}", servers.join(", ")))
}

fn temperature(host: &Host) -> Finding {
    let hottest = host
        .names("/sys/class/thermal")
        .iter()
        .filter_map(|zone| host.read(&format!("/sys/class/thermal/{zone}/temp"))?.parse::<i64>().ok())
        .max();
    match hottest {
        Some(milli) if milli >= HOT_MILLIDEGREES => Finding::bad(
            "temperature",
            Severity::Warning,
            format!("the board is at {} °C and slows down", milli / 1000),
            "cool it",
        ),
        Some(milli) => Finding::ok("temperature", format!("{} °C", milli / 1000)),
        None => Finding::ok("temperature", "no thermometer"),
    }
}

/// The Raspberry Pi's firmware tells of low voltage: bit 0 now, bit 16 since boot.
fn voltage(host: &Host) -> Finding {
    // The kernel's own driver, where the firmware's file is not there.
    let alarm = host.names("/sys/class/hwmon").iter().any(|sensor| {
        let file = |name: &str| host.read(&format!("/sys/class/hwmon/{sensor}/{name}"));
        file("name").as_deref() == Some("rpi_volt") && file("in0_lcrit_alarm").as_deref() == Some("1")
    });
    let bits = host
        .read("/sys/devices/platform/soc/soc:firmware/get_throttled")
        .and_then(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok())
        .unwrap_or(u32::from(alarm));
    if bits & 0x1_0001 == 0 {
        return Finding::ok("voltage", "no low voltage is reported");
    }
    let when = if bits & 1 == 1 { "now" } else { "since boot" };
    Finding::bad(
        "voltage",
        Severity::Warning,
        format!("the supply voltage was too low ({when})"),
        "use a stronger power supply and a shorter cable: low voltage damages files",
    )
}

fn ipv6(host: &Host) -> Finding {
    let on =
        host.read("/proc/net/if_inet6").is_some_and(|text| text.lines().any(|line| !line.ends_with("lo")));
    Finding::ok("ipv6", if on { "IPv6 is on (pods have IPv4 only)" } else { "IPv6 is off" })
}

fn port_in_use(host: &Host, port: u16) -> Finding {
    if Host::port_is_free(port) {
        return Finding::ok("port", format!("TCP port {port} is free"));
    }
    let holder = host.port_holder(port);
    if holder.as_ref().is_some_and(|(_, name)| name == "sampan") {
        return Finding::ok("port", format!("TCP port {port} is Sampan's"));
    }
    let by = holder.map(|(pid, name)| format!(" by {name} (process {pid})")).unwrap_or_default();
    let remedy = match port {
        80 | 443 => "stop the other web server, or start with --disable ingress",
        6443 => "stop the other server, or give another --listen",
        8883 => "stop the other broker, give another --mqtt-listen, or use it with --mqtt-url",
        _ => "stop what uses it",
    };
    Finding::bad("port", Severity::Warning, format!("TCP port {port} is in use{by}"), remedy)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::at(dir.path());
        (dir, host)
    }

    #[test]
    fn a_pi_without_memory_cgroup_is_told_what_to_write() {
        let (_dir, pi) = host(&[
            (
                "/proc/cgroups",
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\n",
            ),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"),
            ("/boot/firmware/cmdline.txt", "console=tty1 root=/dev/mmcblk0p2\n"),
        ]);
        let finding = memory_cgroup(&pi);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.remedy.contains("cgroup_enable=memory cgroup_memory=1"));
        assert!(finding.remedy.contains("/boot/firmware/cmdline.txt"));
        let (_dir, good) = host(&[("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")]);
        assert_eq!(memory_cgroup(&good).severity, Severity::Ok);
    }

    #[test]
    fn each_rule_sees_what_it_is_for() {
        use Severity::{Error, Info, Ok, Warning};
        type Rule = fn(&Host) -> Finding;
        let cases: &[(Rule, &str, &str, Severity)] = &[
            (kernel, "/proc/sys/kernel/osrelease", "5.10.0-28-arm64", Error),
            (kernel, "/proc/sys/kernel/osrelease", "6.1.21-v8+", Ok),
            (memory, "/proc/meminfo", "MemTotal:  131072 kB", Warning),
            (memory, "/proc/meminfo", "MemTotal:  524288 kB", Ok),
            (firewall, "/etc/ufw/ufw.conf", "# x\nENABLED=yes\n", Warning),
            (firewall, "/etc/ufw/ufw.conf", "ENABLED=no\n", Ok),
            (default_route, "/proc/net/route", "Iface\tDestination\neth0\t00000000\t0101A8C0\n", Ok),
            (default_route, "/proc/net/route", "Iface\tDestination\neth0\t0001A8C0\t00000000\n", Info),
            (resolver, "/etc/resolv.conf", "nameserver 127.0.0.1\n", Warning),
            (resolver, "/etc/resolv.conf", "nameserver 192.168.1.1\n", Ok),
            (temperature, "/sys/class/thermal/thermal_zone0/temp", "84500", Warning),
            (temperature, "/sys/class/thermal/thermal_zone0/temp", "48312", Ok),
            (voltage, "/sys/devices/platform/soc/soc:firmware/get_throttled", "0x50005", Warning),
            (voltage, "/sys/devices/platform/soc/soc:firmware/get_throttled", "0x0", Ok),
            (voltage, "/sys/class/hwmon/hwmon1/name", "rpi_volt", Ok),
            (wear, "/sys/block/mmcblk0/device/pre_eol_info", "0x03", Error),
            (wear, "/sys/block/mmcblk0/device/life_time", "0x01 0x03", Ok),
            (engines, "/proc/4242/comm", "k3s-server", Warning),
            (engines, "/proc/4242/comm", "dockerd", Info),
            (firewall, "/proc/4242/comm", "firewalld", Warning),
            (legacy_tables, "/proc/net/ip_tables_names", "nat\nfilter\n", Info),
            (legacy_tables, "/proc/net/ip_tables_names", "nat\n", Ok),
            (bridge_netfilter, "/proc/sys/net/bridge/bridge-nf-call-iptables", "1", Info),
        ];
        for (rule, path, text, severity) in cases {
            let (_dir, host) = host(&[(path, text)]);
            let finding = rule(&host);
            assert_eq!(finding.severity, *severity, "{path}: {text:?}: {finding:?}");
            assert_eq!(finding.severity == Ok, finding.remedy.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_chain_that_drops_is_told_how_to_let_pass() {
        assert_eq!(forwarding(&[]).severity, Severity::Ok);
        let docker = forwarding(&["ip filter FORWARD".to_owned()]);
        assert!(docker.remedy.contains("DOCKER-USER"), "{docker:?}");
        let other = forwarding(&["inet own fwd".to_owned()]);
        assert!(other.remedy.contains("nft insert rule inet own fwd ip saddr"), "{other:?}");
        let firewalld = ["inet firewalld filter_FORWARD".to_owned()];
        assert!(forwarding(&firewalld).remedy.contains("--zone=trusted"));
        assert_eq!(input(&[]).severity, Severity::Ok);
        let own = input(&["inet filter input".to_owned()]);
        assert!(own.remedy.contains("nft insert rule inet filter input tcp dport"), "{own:?}");
        assert!(input(&["ip filter INPUT".to_owned()]).remedy.contains("ufw allow 6443,8883"));
    }

    #[test]
    fn low_voltage_is_told_by_the_kernel_s_driver_as_well() {
        let (_dir, host) = host(&[
            ("/sys/class/hwmon/hwmon1/name", "rpi_volt"),
            ("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1"),
        ]);
        assert_eq!(voltage(&host).severity, Severity::Warning);
    }

    #[test]
    fn who_holds_a_port_is_told() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (pid, _) = Host::default().port_holder(port).unwrap();
        assert_eq!(pid, std::process::id());
        let finding = port_in_use(&Host::default(), port);
        assert!(finding.summary.contains(&format!("(process {pid})")), "{finding:?}");
        drop(listener);
        assert_eq!(port_in_use(&Host::default(), port).severity, Severity::Ok);
    }

    #[test]
    fn modules_are_found_loaded_built_in_or_on_disk() {
        let (_dir, host) = host(&[
            ("/proc/sys/kernel/osrelease", "6.1.0"),
            ("/sys/module/overlay/x", ""),
            ("/lib/modules/6.1.0/modules.builtin", "kernel/drivers/net/veth.ko\n"),
            ("/lib/modules/6.1.0/modules.dep", "kernel/net/netfilter/nf-conntrack.ko.xz: kernel/x.ko\n"),
            ("/proc/kallsyms", "0 t ovl_other\n0 t nf_tables_newtable\n"),
        ]);
        for (module, there) in
            [("overlay", true), ("veth", true), ("nf_conntrack", true), ("nf_tables", true), ("vxlan", false)]
        {
            assert_eq!(host.has_module(module), there, "{module}");
        }
    }

    #[test]
    fn a_clock_from_before_the_build_is_noticed() {
        let (_dir, host) = host(&[("/sys/class/rtc/rtc0/name", "x")]);
        assert_eq!(clock(&host, Timestamp::UNIX_EPOCH).severity, Severity::Warning);
        assert_eq!(clock(&host, "2027-01-01T00:00:00Z".parse().unwrap()).severity, Severity::Ok);
    }
}
