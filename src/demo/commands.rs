//! Unix commands, as far as trying a container out needs them.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{Failure, number, pause};

fn out(text: impl AsRef<[u8]>) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).map_err(Failure::io("write"))?;
    Ok(0)
}

#[expect(clippy::unnecessary_wraps, reason = "all applets have one signature")]
pub fn yes(_: &[String]) -> Result<u8, Failure> {
    Ok(0)
}

#[expect(clippy::unnecessary_wraps, reason = "all applets have one signature")]
pub fn no(_: &[String]) -> Result<u8, Failure> {
    Ok(1)
}

pub fn exit(args: &[String]) -> Result<u8, Failure> {
    Ok(number::<u8>(args, 0, "exit [CODE]")?.unwrap_or(0))
}

pub fn echo(args: &[String]) -> Result<u8, Failure> {
    match args.split_first() {
        Some((flag, rest)) if flag == "-n" => out(rest.join(" ")),
        _ => out(args.join(" ") + "\n"),
    }
}

pub fn env(_: &[String]) -> Result<u8, Failure> {
    let mut text = Vec::new();
    for (key, value) in std::env::vars_os() {
        text.extend_from_slice(key.as_encoded_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_encoded_bytes());
        text.push(b'\n');
    }
    out(text)
}

pub fn cat(args: &[String]) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    let mut copy = |mut from: &mut dyn io::Read, name: &str| {
        io::copy(&mut from, &mut stdout).and_then(|_| stdout.flush()).map_err(Failure::io(name))
    };
    if args.is_empty() {
        copy(&mut io::stdin().lock(), "stdin")?;
    }
    for name in args {
        copy(&mut File::open(name).map_err(Failure::io(name))?, name)?;
    }
    Ok(0)
}

pub fn write(args: &[String]) -> Result<u8, Failure> {
    let Some((file, text)) = args.split_first() else { return Err(Failure::Usage("write FILE TEXT…")) };
    fs::write(file, text.join(" ") + "\n").map_err(Failure::io(file))?;
    Ok(0)
}

pub fn sleep(args: &[String]) -> Result<u8, Failure> {
    const USAGE: &str = "sleep SECONDS|infinity";
    match args {
        [word] if word == "infinity" => pause(None),
        [word] => {
            let seconds =
                word.trim_end_matches('s').parse::<f64>().ok().filter(|s| s.is_finite() && *s >= 0.0);
            pause(Some(seconds.ok_or(Failure::Usage(USAGE))?));
        }
        _ => return Err(Failure::Usage(USAGE)),
    }
    Ok(0)
}

pub fn date(_: &[String]) -> Result<u8, Failure> {
    out(format!("{:.3}\n", jiff::Timestamp::now()))
}

/// The host name of this namespace.
pub fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub fn hostname(_: &[String]) -> Result<u8, Failure> {
    out(host_name() + "\n")
}

pub fn id(_: &[String]) -> Result<u8, Failure> {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    out(format!(
        "uid={} gid={} groups={}\n",
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
        if groups.is_empty() { nix::unistd::getegid().to_string() } else { groups.join(",") }
    ))
}

pub fn ls(args: &[String]) -> Result<u8, Failure> {
    let (flags, mut paths): (Vec<&String>, Vec<&String>) = args.iter().partition(|arg| arg.starts_with('-'));
    let long = flags.iter().any(|flag| flag.contains('l'));
    let here = ".".to_owned();
    if paths.is_empty() {
        paths.push(&here);
    }
    let mut text = String::new();
    for path in paths {
        let path = Path::new(path);
        let failed = || Failure::io(path.display().to_string());
        if path.symlink_metadata().map_err(failed())?.is_dir() {
            let mut names = fs::read_dir(path)
                .and_then(|entries| {
                    entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()
                })
                .map_err(failed())?;
            names.sort();
            for name in names {
                line(&mut text, &name, &name.file_name().unwrap_or_default().to_string_lossy(), long);
            }
        } else {
            line(&mut text, path, &path.to_string_lossy(), long);
        }
    }
    out(text)
}

fn line(text: &mut String, path: &Path, name: &str, long: bool) {
    use std::fmt::Write as _;
    let Ok(metadata) = path.symlink_metadata().map_err(|error| eprintln!("ls: {name}: {error}")) else {
        return;
    };
    if long {
        let kind = metadata.file_type();
        let letter = match () {
            () if kind.is_dir() => 'd',
            () if kind.is_symlink() => 'l',
            () if kind.is_char_device() => 'c',
            () if kind.is_block_device() => 'b',
            () if kind.is_fifo() => 'p',
            () if kind.is_socket() => 's',
            () => '-',
        };
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        let _ = write!(text, "{letter} {mode:04o} {uid:>5} {gid:>5} {:>10} ", metadata.len());
    }
    text.push_str(name);
    if let (true, Ok(target)) = (long, path.read_link()) {
        let _ = write!(text, " -> {}", target.display());
    }
    text.push('\n');
}

pub fn ps(_: &[String]) -> Result<u8, Failure> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .map_err(Failure::io("/proc"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut text = format!("{:>7} {:>7} {:>6} S COMMAND\n", "PID", "PPID", "UID");
    for pid in pids {
        use std::fmt::Write as _;
        let folder = Path::new("/proc").join(pid.to_string());
        let Ok(status) = fs::read_to_string(folder.join("status")) else { continue };
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.split_whitespace().next()).unwrap_or("?").to_owned()
        };
        let command = fs::read(folder.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
        let command = if command.is_empty() { format!("[{}]", field("Name:")) } else { command };
        let (parent, uid, state) = (field("PPid:"), field("Uid:"), field("State:"));
        let _ = writeln!(text, "{pid:>7} {parent:>7} {uid:>6} {state} {command}");
    }
    out(text)
}

pub fn test(args: &[String]) -> Result<u8, Failure> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let holds = match words.as_slice() {
        ["!", rest @ ..] => {
            let rest: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
            return Ok(u8::from(test(&rest)? == 0));
        }
        ["-e", path] => Path::new(path).exists(),
        ["-f", path] => Path::new(path).is_file(),
        ["-d", path] => Path::new(path).is_dir(),
        ["-s", path] => fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0),
        ["-n", text] | [text] => !text.is_empty(),
        ["-z", text] => text.is_empty(),
        [a, "=", b] => a == b,
        [a, "!=", b] => a != b,
        [] => false,
        _ => return Err(Failure::Usage("test -e|-f|-d|-s|-n|-z X, test A =|!= B")),
    };
    Ok(u8::from(!holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_exit_codes() {
        for (line, want) in [
            ("-d /proc", 0),
            ("-f /proc", 1),
            ("-e /no/where", 1),
            ("! -e /no/where", 0),
            ("a = a", 0),
            ("a != a", 1),
            ("-z x", 1),
            ("", 1),
        ] {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(test(&args).unwrap(), want, "{line}");
        }
        assert!(test(&["a".to_owned(), "-gt".to_owned(), "b".to_owned()]).is_err());
    }
}
