//! AppArmor: the profiles that the kernel has, and the one that this binary brings.
//!
//! In: a compiled policy, made with the host's tool at development time (`apparmor/sampan-default.profile`
//! says how), because boards need not have it. Out: the profile [`DEFAULT`] in the kernel, which stays
//! until [`remove`] or the next boot.
//! Deliberately absent: profiles of users, which their host loads.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// The profile of containers that ask for `RuntimeDefault`, and of those that ask for nothing.
pub const DEFAULT: &str = "sampan-default";

const POLICY: &[u8] = include_bytes!("apparmor/sampan-default.policy");
/// Where the kernel takes and shows policy (securityfs).
const FOLDER: &str = "/sys/kernel/security/apparmor";

/// Whether the kernel confines processes by AppArmor.
pub fn is_enabled() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with('Y'))
}

/// Gives the kernel the default profile, in the place of an earlier one of that name.
///
/// # Errors
/// The kernel does not take it: securityfs is not mounted, or this process may not administer policy.
pub fn load() -> io::Result<()> {
    say(".replace", POLICY)
}

/// Takes the default profile from the kernel, when it has it.
pub fn remove() -> io::Result<()> {
    if loaded().is_some_and(|loaded| loaded.has(DEFAULT)) {
        return say(".remove", DEFAULT.as_bytes());
    }
    Ok(())
}

/// One write, which the kernel takes as a whole.
fn say(file: &str, what: &[u8]) -> io::Result<()> {
    File::options().write(true).open(Path::new(FOLDER).join(file))?.write_all(what)
}

/// The profiles that the kernel has: `name (mode)`, one a line.
#[derive(Debug, Clone)]
pub struct Loaded(pub String);

/// `None`: the kernel does not tell, or has no AppArmor.
pub fn loaded() -> Option<Loaded> {
    fs::read_to_string(Path::new(FOLDER).join("profiles")).ok().map(Loaded)
}

impl Loaded {
    /// Whether a profile of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.lines().any(|line| line.rsplit_once(" (").map_or(line, |(name, _)| name) == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_of_the_default_profile() {
        let name = [DEFAULT.as_bytes(), b"\0"].concat();
        assert!(POLICY.windows(name.len()).any(|part| part == name));
        let source = include_str!("apparmor/sampan-default.profile");
        assert!(source.contains(&format!("\nprofile {DEFAULT} ")));
    }

    #[test]
    fn names_may_have_blanks_and_parentheses() {
        let loaded = Loaded("/usr/bin/man (enforce)\nno writes (x) (complain)\n".into());
        assert!(loaded.has("/usr/bin/man"));
        assert!(loaded.has("no writes (x)"));
        assert!(!loaded.has("no writes"));
        assert!(!loaded.has(DEFAULT));
    }
}
