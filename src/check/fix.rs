//! The one thing that the check mends itself, when asked to: the Raspberry Pi's kernel command line.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use super::Host;

/// Where the firmware reads the command line: since and before Raspberry Pi OS 12.
const FILES: [&str; 2] = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"];
/// What turns the memory controller on; the second is what older kernels understand.
const WORDS: [&str; 2] = ["cgroup_enable=memory", "cgroup_memory=1"];

/// The file to change, if this board has one.
pub fn command_line(host: &Host) -> Option<&'static str> {
    FILES.into_iter().find(|file| host.exists(file))
}

/// Whether [`fix_memory_cgroup`] has something to change.
pub fn can_fix_memory_cgroup(host: &Host) -> bool {
    command_line(host).and_then(|file| host.read(file)).is_some_and(|line| mended(&line) != line)
}

/// Adds what is missing to the command line that the firmware gives the kernel; it counts from the
/// next boot on. The changed file; `None` when there is none or nothing is missing.
///
/// # Errors
/// When the file cannot be read or written.
pub fn fix_memory_cgroup(host: &Host) -> io::Result<Option<PathBuf>> {
    let Some(path) = command_line(host).map(|file| host.path(file)) else { return Ok(None) };
    let text = fs::read_to_string(&path)?;
    let new = mended(text.trim());
    if new == text.trim() {
        return Ok(None);
    }
    // The board does not boot without this file: the new one is whole before it takes the name.
    let part = path.with_extension("txt.part");
    let mut file = File::create(&part)?;
    file.write_all(format!("{new}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, &path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(Some(path))
}

/// The command line with the memory controller on. Only the first line is read by the firmware.
fn mended(line: &str) -> String {
    let line = line.lines().next().unwrap_or_default();
    let kept = line.split_whitespace().filter(|word| {
        !matches!(*word, "cgroup_disable=memory" | "cgroup_memory=0") && !WORDS.contains(word)
    });
    kept.chain(WORDS).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_mended_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot/firmware/cmdline.txt");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "console=tty1 cgroup_disable=memory root=PARTUUID=1-02 rootwait\n").unwrap();
        let host = Host::at(dir.path());
        assert!(can_fix_memory_cgroup(&host));
        assert_eq!(fix_memory_cgroup(&host).unwrap(), Some(file.clone()));
        let expected = "console=tty1 root=PARTUUID=1-02 rootwait cgroup_enable=memory cgroup_memory=1\n";
        assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        assert!(!can_fix_memory_cgroup(&host));
        assert_eq!(fix_memory_cgroup(&host).unwrap(), None);
        fs::remove_file(&file).unwrap();
        assert_eq!(fix_memory_cgroup(&host).unwrap(), None);
    }
}
