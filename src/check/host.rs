//! What the rules read of the machine.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{statfs, statvfs},
};

/// A function that only this module has.
const SYMBOLS: &[(&str, &str)] = &[
    ("overlay", "ovl_fill_super"),
    ("veth", "veth_setup"),
    ("nf_tables", "nf_tables_newtable"),
    ("nf_conntrack", "nf_conntrack_in"),
    ("vxlan", "vxlan_setup"),
];

/// How many synced writes the speed of the disk is measured with.
const SYNCED_WRITES: u32 = 8;

/// The machine, or a tree that looks like one.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    /// The modules of `SYMBOLS` that the kernel's own code has: its list has megabytes and is read once, when asked for.
    built_in: OnceLock<Vec<&'static str>>,
}

impl Default for Host {
    fn default() -> Self {
        Self::at(Path::new("/"))
    }
}

impl Host {
    /// A tree with its own `/proc`, `/sys` and `/etc`.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), built_in: OnceLock::new() }
    }

    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// A file's text, trimmed; `None` when it cannot be read.
    pub fn read(&self, absolute: &str) -> Option<String> {
        fs::read_to_string(self.path(absolute)).ok().map(|text| text.trim().trim_matches('\0').to_owned())
    }

    pub fn exists(&self, absolute: &str) -> bool {
        self.path(absolute).exists()
    }

    /// The names in a folder, sorted.
    pub fn names(&self, absolute: &str) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(absolute))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// `6.1.0` as (6, 1).
    pub fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.read("/proc/sys/kernel/osrelease")?;
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Whether a kernel feature is there: built in, loaded, or a module that can be loaded.
    pub fn has_module(&self, name: &str) -> bool {
        if self.exists(&format!("/sys/module/{name}")) {
            return true;
        }
        let release = self.read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let wanted = format!("/{name}.ko");
        let listed = ["modules.builtin", "modules.dep"]
            .iter()
            .filter_map(|list| self.read(&format!("/lib/modules/{release}/{list}")))
            .any(|list| {
                list.lines().any(|line| {
                    line.split(':').next().unwrap_or_default().replace('-', "_").contains(&wanted)
                })
            });
        listed || self.has_symbol_of(name)
    }

    /// Whether the kernel's own code has the module's symbols: a kernel without modules (or without
    /// its folder in `/lib/modules`) says nowhere else what is built in.
    fn has_symbol_of(&self, name: &str) -> bool {
        let read = || {
            let symbols = fs::File::open(self.path("/proc/kallsyms")).map(BufReader::new);
            let lines = symbols.into_iter().flat_map(|s| s.lines().map_while(Result::ok));
            let module = |line: String| {
                let last = line.rsplit(' ').next();
                SYMBOLS.iter().find(|(_, symbol)| last == Some(symbol)).map(|(module, _)| *module)
            };
            lines.filter_map(module).collect()
        };
        SYMBOLS.iter().any(|(module, _)| *module == name) && self.built_in.get_or_init(read).contains(&name)
    }

    /// Whether processes with this name run.
    pub fn runs(&self, name: &str) -> bool {
        self.names("/proc")
            .iter()
            .filter(|entry| entry.bytes().all(|b| b.is_ascii_digit()))
            .any(|pid| self.read(&format!("/proc/{pid}/comm")).is_some_and(|comm| comm == name))
    }

    /// The nearest existing folder at or above `dir`.
    pub fn existing(dir: &Path) -> PathBuf {
        dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
    }

    #[allow(clippy::unnecessary_cast, reason = "the type differs between targets")]
    /// The magic number of the file system a folder is on (`statfs(2)`).
    pub fn file_system(dir: &Path) -> Option<i64> {
        statfs::statfs(&Self::existing(dir)).ok().map(|s| s.filesystem_type().0 as i64)
    }

    #[allow(clippy::useless_conversion, reason = "the types are narrower on 32-bit ARM")]
    /// Free bytes and free inodes for unprivileged users.
    pub fn free(dir: &Path) -> Option<(u64, u64)> {
        let stat = statvfs::statvfs(&Self::existing(dir)).ok()?;
        Some((
            u64::from(stat.blocks_available()) * stat.fragment_size() as u64,
            stat.files_available() as u64,
        ))
    }

    /// The mean time of a small synced write in `dir`; `None` when it cannot be written to.
    pub fn synced_write(dir: &Path) -> Option<Duration> {
        use std::io::Write;
        let path = Self::existing(dir).join(".sampan-check");
        let mut file = fs::File::create(&path).ok()?;
        let start = Instant::now();
        let written = (0..SYNCED_WRITES).try_for_each(|_| {
            file.write_all(&[0; 4096])?;
            file.sync_data()
        });
        let took = start.elapsed() / SYNCED_WRITES;
        let removed = fs::remove_file(&path);
        written.and(removed).ok().map(|()| took)
    }

    /// Whether an overlay can be mounted with its writable side below `dir`; tried in a namespace of
    /// its own, so that nothing is seen of it. Who may not mount is told nothing.
    pub fn overlay_mount(dir: &Path) -> io::Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let base = Self::existing(dir).join(".sampan-check-overlay");
        let part = |name: &str| base.join(name);
        let made =
            ["lower", "upper", "work", "merged"].iter().try_for_each(|name| fs::create_dir_all(part(name)));
        let tried = made.and_then(|()| {
            std::thread::scope(|scope| scope.spawn(|| mount_overlay(&base)).join()).unwrap_or(Ok(()))
        });
        let removed = fs::remove_dir_all(&base);
        tried.and(removed)
    }

    /// The process that listens on a TCP port and its name; `None` when it cannot be told.
    pub fn port_holder(&self, port: u16) -> Option<(u32, String)> {
        let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .filter_map(|file| self.read(file))
            .flat_map(|table| table.lines().filter_map(|line| listening(line, port)).collect::<Vec<_>>())
            .collect();
        let holds = |pid: &String| {
            self.names(&format!("/proc/{pid}/fd")).iter().any(|fd| {
                fs::read_link(self.path(&format!("/proc/{pid}/fd/{fd}")))
                    .is_ok_and(|target| sockets.iter().any(|s| target.as_os_str() == s.as_str()))
            })
        };
        let pid = self.names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).find(holds)?;
        let name = self.read(&format!("/proc/{pid}/comm"))?;
        Some((pid.parse().ok()?, name))
    }

    /// Whether a TCP port can be listened on.
    pub fn port_is_free(port: u16) -> bool {
        match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::AddrInUse,
        }
    }
}

/// The socket (`socket:[inode]`) of a line of `/proc/net/tcp` that listens on `port` (`proc(5)`).
fn listening(line: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_whitespace().collect();
    let local = words.get(1)?.rsplit(':').next()?;
    (u16::from_str_radix(local, 16).ok()? == port && *words.get(3)? == LISTEN)
        .then(|| format!("socket:[{}]", words.get(9).unwrap_or(&"")))
}

/// Mounts an overlay on `base`/merged and leaves it to the end of this thread's mount namespace.
fn mount_overlay(base: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let part = |name: &str| base.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
    Ok(mount(
        Some("overlay"),
        base.join("merged").as_path(),
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?)
}
