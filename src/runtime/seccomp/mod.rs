//! Seccomp filters as programs for the kernel.
//!
//! In: which profile, and the container's capabilities. Out: a BPF program for this machine and the
//! 32-bit architecture it runs too. Compiling takes about a tenth of a millisecond, so nothing is
//! cached and libseccomp (18 ms a start) is not needed.

mod bpf;
mod profile;

use std::{collections::BTreeMap, path::Path};

use bpf::{Architecture, Call, Compare, Condition};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator};

use super::{Seccomp, process::CAP_SYS_ADMIN};

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// One architecture of system calls: its token (linux/audit.h), its column in the table, and its
/// name in profiles.
struct Abi {
    token: u32,
    column: usize,
    name: Arch,
}

/// What processes on this machine may be, the machine's own first.
const ABIS: &[Abi] = &[
    #[cfg(target_arch = "x86_64")]
    Abi { token: 0xc000_003e, column: 1, name: Arch::ScmpArchX86_64 },
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    Abi { token: 0x4000_0003, column: 2, name: Arch::ScmpArchX86 },
    #[cfg(target_arch = "aarch64")]
    Abi { token: 0xc000_00b7, column: 3, name: Arch::ScmpArchAarch64 },
    #[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
    Abi { token: 0x4000_0028, column: 4, name: Arch::ScmpArchArm },
];

/// The newest number of the tables below the private range of ARM.
const PRIVATE_FROM: u32 = 0xf_0000;

/// The program for a container with these capabilities; empty for none.
pub fn filter(wanted: &Seccomp, capabilities: u64) -> Result<Vec<libc::sock_filter>, String> {
    match wanted {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::RuntimeDefault => {
            let sections: Vec<_> = ABIS.iter().map(|abi| runtime_default(abi, capabilities)).collect();
            bpf::compile(&sections, KILL_PROCESS)
        }
        Seccomp::Localhost(path) => {
            let text = std::fs::read(path)
                .map_err(|error| format!("cannot load seccomp profile {:?}: {error}", path.display()))?;
            let bad = |error: &dyn std::fmt::Display| bad_profile(path, error);
            let profile: LinuxSeccomp = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
            translate(&profile).map_err(|error| bad(&error))
        }
    }
}

fn bad_profile(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot load seccomp profile {:?}: {error}", path.display())
}

/// Numbers by name on one architecture.
fn numbers(abi: &Abi) -> BTreeMap<&'static str, u32> {
    let table = include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#'));
    table
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            Some((name, words.nth(abi.column - 1)?.parse().ok()?))
        })
        .collect()
}

/// The section of one architecture from rules by name.
fn section(
    abi: &Abi,
    numbers: &BTreeMap<&str, u32>,
    rules: BTreeMap<u32, Vec<(Vec<Condition>, u32)>>,
    default: u32,
) -> Architecture {
    // What is newer than all we know does not exist, as programs that probe for it expect.
    let newest = numbers.values().copied().filter(|number| *number < PRIVATE_FROM).max().unwrap_or(0);
    Architecture {
        token: abi.token,
        calls: rules.into_iter().map(|(number, rules)| Call { number, rules }).collect(),
        default,
        unknown: if default & 0xffff_0000 == ERRNO { ERRNO | libc::ENOSYS as u32 } else { default },
        newest,
    }
}

fn runtime_default(abi: &Abi, capabilities: u64) -> Architecture {
    let numbers = numbers(abi);
    let mut rules: BTreeMap<u32, Vec<(Vec<Condition>, u32)>> = BTreeMap::new();
    let mut allow = |names: &str, conditions: &[Vec<Condition>]| {
        for number in names.split_whitespace().filter_map(|name| numbers.get(name)) {
            let of = rules.entry(*number).or_default();
            of.extend(conditions.iter().map(|conditions| (conditions.clone(), ALLOW)));
        }
    };
    let always = [Vec::new()];
    let one = |compare, value| vec![Condition { argument: 0, compare, value }];
    allow(profile::ALWAYS, &always);
    for (capability, names) in profile::WITH_CAPABILITY {
        if capabilities >> capability & 1 == 1 {
            allow(names, &always);
        }
    }
    allow("socket", &[one(Compare::Ne, profile::SOCKET_REFUSED)]);
    allow("personality", &profile::PERSONALITIES.map(|value| one(Compare::Eq, value)));
    if capabilities & CAP_SYS_ADMIN == 0 {
        allow("clone", &[one(Compare::MaskedEq(profile::CLONE_NAMESPACES), 0)]);
        // Its flags are in memory, where a filter cannot look; C libraries then use clone.
        if let Some(number) = numbers.get("clone3") {
            rules.insert(*number, vec![(Vec::new(), ERRNO | libc::ENOSYS as u32)]);
        }
    }
    section(abi, &numbers, rules, ERRNO | libc::EPERM as u32)
}

/// An OCI profile as a program.
fn translate(profile: &LinuxSeccomp) -> Result<Vec<libc::sock_filter>, String> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut sections = Vec::new();
    for (n, abi) in ABIS.iter().enumerate() {
        let listed = profile.architectures().as_deref().unwrap_or_default();
        if n > 0 && !listed.contains(&abi.name) {
            continue;
        }
        let numbers = numbers(abi);
        let mut rules: BTreeMap<u32, Vec<(Vec<Condition>, u32)>> = BTreeMap::new();
        for entry in profile.syscalls().iter().flatten() {
            let action = action(entry.action(), entry.errno_ret())?;
            let conditions = entry.args().iter().flatten().map(|arg| {
                let compare = match arg.op() {
                    LinuxSeccompOperator::ScmpCmpNe => Compare::Ne,
                    LinuxSeccompOperator::ScmpCmpLt => Compare::Lt,
                    LinuxSeccompOperator::ScmpCmpLe => Compare::Le,
                    LinuxSeccompOperator::ScmpCmpEq => Compare::Eq,
                    LinuxSeccompOperator::ScmpCmpGe => Compare::Ge,
                    LinuxSeccompOperator::ScmpCmpGt => Compare::Gt,
                    LinuxSeccompOperator::ScmpCmpMaskedEq => Compare::MaskedEq(arg.value()),
                };
                let value = match compare {
                    Compare::MaskedEq(_) => arg.value_two().unwrap_or(0),
                    _ => arg.value(),
                };
                let argument = u8::try_from(arg.index()).ok().filter(|n| *n < 6);
                let argument =
                    argument.ok_or_else(|| format!("argument index {} is not 0 to 5", arg.index()))?;
                Ok(Condition { argument, compare, value })
            });
            let conditions = conditions.collect::<Result<Vec<_>, String>>()?;
            // A name that this machine does not have cannot be called on it.
            for number in entry.names().iter().filter_map(|name| numbers.get(name.as_str())) {
                rules.entry(*number).or_default().push((conditions.clone(), action));
            }
        }
        sections.push(section(abi, &numbers, rules, default));
    }
    bpf::compile(&sections, KILL_PROCESS)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, String> {
    let number = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActErrno => ERRNO | number,
        LinuxSeccompAction::ScmpActTrace => TRACE | number,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err("SCMP_ACT_NOTIFY needs an agent, which is not supported".into());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{bpf::machine::run, *};

    fn calls(program: &[libc::sock_filter], name: &str, arguments: &[u64]) -> u32 {
        run(program, ABIS[0].token, numbers(&ABIS[0])[name], arguments)
    }

    #[test]
    fn the_default_profile_follows_capabilities() {
        let plain = filter(&Seccomp::RuntimeDefault, 0).unwrap();
        let admin = filter(&Seccomp::RuntimeDefault, CAP_SYS_ADMIN).unwrap();
        let refused = ERRNO | libc::EPERM as u32;
        let missing = ERRNO | libc::ENOSYS as u32;
        for (name, arguments, without, with) in [
            ("read", &[][..], ALLOW, ALLOW),
            ("mount", &[], refused, ALLOW),
            ("clone3", &[], missing, ALLOW),
            ("clone", &[0x11], ALLOW, ALLOW),
            ("clone", &[0x1000_0000], refused, ALLOW),
            ("socket", &[2], ALLOW, ALLOW),
            ("socket", &[40], refused, refused),
            ("personality", &[8], ALLOW, ALLOW),
            ("personality", &[1], refused, refused),
            ("io_uring_setup", &[], refused, refused),
            ("reboot", &[], refused, refused),
        ] {
            assert_eq!(calls(&plain, name, arguments), without, "{name} {arguments:?}");
            assert_eq!(calls(&admin, name, arguments), with, "{name} {arguments:?}");
        }
        assert_eq!(run(&plain, ABIS[0].token, 5000, &[]), missing);
        assert_eq!(run(&plain, 1, 0, &[]), KILL_PROCESS);
        // Two system calls a search step, not one a call: far from the kernel's limit.
        assert!(plain.len() < 600, "{}", plain.len());
    }

    #[test]
    fn profiles_are_translated() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            {"names": ["read", "nonesuch"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["write"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["dup"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 12, "valueTwo": 4, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        let program = translate(&serde_json::from_str(text).unwrap()).unwrap();
        let missing = ERRNO | libc::ENOSYS as u32;
        assert_eq!(calls(&program, "read", &[]), ALLOW);
        assert_eq!(calls(&program, "write", &[2]), LOG);
        assert_eq!(calls(&program, "write", &[1]), missing);
        assert_eq!(calls(&program, "dup", &[5]), ALLOW);
        assert_eq!(calls(&program, "dup", &[12]), missing);
        assert_eq!(calls(&program, "mount", &[]), missing);
    }

    #[test]
    fn every_name_of_the_profile_is_known() {
        let known: Vec<_> =
            include_str!("syscalls.txt").lines().filter_map(|line| line.split(' ').next()).collect();
        let names = profile::WITH_CAPABILITY.iter().map(|(_, names)| *names).chain([profile::ALWAYS]);
        for name in names.flat_map(str::split_whitespace) {
            assert!(known.contains(&name), "{name}");
        }
    }
}
