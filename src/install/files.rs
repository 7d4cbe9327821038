//! Which files there are, and how they are written.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{Error, Role};

/// Where things are, below a root.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

/// What a write has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    Written,
    /// Something else was there before.
    Replaced,
}

impl Change {
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "kept",
            Self::Written => "wrote",
            Self::Replaced => "replaced",
        }
    }
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether it is this machine's own root.
    pub fn is_running_system(&self) -> bool {
        self.root == Path::new("/")
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    pub fn binary(&self) -> PathBuf {
        self.path("/usr/local/bin/sampan")
    }

    /// The binary before the last upgrade.
    pub fn previous(&self) -> PathBuf {
        self.path("/usr/local/bin/sampan.previous")
    }

    pub fn config(&self) -> PathBuf {
        self.path(crate::config::DEFAULT_FILE)
    }

    pub fn unit(&self, role: Role) -> PathBuf {
        self.path("/etc/systemd/system").join(role.unit())
    }

    /// The link that makes systemd start the unit.
    pub fn wants(&self, role: Role) -> PathBuf {
        self.path("/etc/systemd/system/multi-user.target.wants").join(role.unit())
    }

    fn sysctl(&self) -> PathBuf {
        self.path("/etc/sysctl.d/90-sampan.conf")
    }

    fn modules(&self) -> PathBuf {
        self.path("/etc/modules-load.d/sampan.conf")
    }

    fn tmpfiles(&self) -> PathBuf {
        self.path("/etc/tmpfiles.d/sampan.conf")
    }
}

/// The kernel modules that a node may need.
pub fn modules() -> impl Iterator<Item = &'static str> {
    include_str!("../../systemd/modules-load.conf").lines().filter(|line| !line.starts_with('#'))
}

/// The small files with their text.
pub fn wanted(layout: &Layout, role: Role, there: &[&str]) -> Vec<(PathBuf, String)> {
    let modules = include_str!("../../systemd/modules-load.conf")
        .lines()
        .filter(|line| line.starts_with('#') || there.contains(line))
        .fold(String::new(), |text, line| text + line + "\n");
    vec![
        (layout.unit(role), role.unit_text().to_owned()),
        (layout.sysctl(), include_str!("../../systemd/sysctl.conf").to_owned()),
        (layout.modules(), modules),
        (layout.tmpfiles(), include_str!("../../systemd/tmpfiles.conf").to_owned()),
    ]
}

/// Every file that an installation may have.
pub fn all(layout: &Layout) -> Vec<PathBuf> {
    let mut all = vec![
        layout.sysctl(),
        layout.modules(),
        layout.tmpfiles(),
        layout.config(),
        layout.previous(),
        layout.binary(),
    ];
    all.extend(Role::ALL.iter().flat_map(|role| [layout.wants(*role), layout.unit(*role)]));
    all
}

/// Makes `path` have this content and mode, durably, unless it has it.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<Change, Error> {
    let there = match fs::read(path) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Error::File { operation: "read", path: path.into(), source }),
    };
    if there.as_deref() == Some(content) {
        return Ok(Change::None);
    }
    replace(path, mode, |file| file.write_all(content))?;
    Ok(if there.is_some() { Change::Replaced } else { Change::Written })
}

/// Writes a new file beside `path`, syncs it and renames it: whole, or not at all.
pub fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> Result<(), Error> {
    let fail = |operation| move |source| Error::File { operation, path: path.into(), source };
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&part)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            fill(&mut file)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, path))
        .and_then(|()| fs::File::open(folder)?.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(&part);
        fail("write")(source)
    })
}

/// Removes a file; whether there was one.
pub fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File { operation: "remove", path: path.into(), source }),
    }
}
