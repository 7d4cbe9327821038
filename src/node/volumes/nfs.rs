//! NFS without helper programs: the options that mount.nfs(8) would work out, as text for mount(2).
//!
//! In: server, path and mount options of a volume. Out: attempts, the newest protocol first, each a
//! file system type and the text of its options (kernel: `fs/nfs/fs_context.c`; nfs(5)).
//! Invariants: the server's name is resolved here, since the kernel only knows addresses; an option
//! that the user gave is never overridden.
//! Deliberately absent: rpc.statd and rpcbind of our own: v3 mounts are `nolock` unless asked
//! otherwise, and the kernel asks the server's rpcbind for its mount port.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::Path,
};

use nix::mount::MsFlags;

const PORT: u16 = 2049;

/// What is to be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    pub server: String,
    pub path: String,
    pub read_only: bool,
    /// `mountOptions` of the PersistentVolume.
    pub options: Vec<String>,
}

/// One try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// `server:/path`, as mount tables show it.
    pub source: String,
    /// `nfs` or `nfs4`.
    pub kind: &'static str,
    pub flags: MsFlags,
    pub data: String,
}

/// The tries for an export whose server is at `server` and sees us as `client`.
///
/// # Errors
/// An option that cannot be: a version that no kernel has, or one that needs a program.
pub fn attempts(export: &Export, server: IpAddr, client: IpAddr) -> Result<Vec<Attempt>, String> {
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, export.read_only);
    let mut versions = vec!["4.2", "4.1", "4.0", "3"];
    let mut chosen = None;
    let mut rest: Vec<&str> = Vec::new();
    for option in export.options.iter().flat_map(|o| o.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
        let flag = match option {
            "ro" => Some((MsFlags::MS_RDONLY, true)),
            "rw" => Some((MsFlags::MS_RDONLY, export.read_only)),
            "noexec" => Some((MsFlags::MS_NOEXEC, true)),
            "exec" => Some((MsFlags::MS_NOEXEC, false)),
            "nosuid" => Some((MsFlags::MS_NOSUID, true)),
            "suid" => Some((MsFlags::MS_NOSUID, false)),
            "nodev" => Some((MsFlags::MS_NODEV, true)),
            "dev" => Some((MsFlags::MS_NODEV, false)),
            "noatime" => Some((MsFlags::MS_NOATIME, true)),
            "nodiratime" => Some((MsFlags::MS_NODIRATIME, true)),
            "relatime" => Some((MsFlags::MS_RELATIME, true)),
            "strictatime" => Some((MsFlags::MS_STRICTATIME, true)),
            "sync" => Some((MsFlags::MS_SYNCHRONOUS, true)),
            "async" => Some((MsFlags::MS_SYNCHRONOUS, false)),
            "defaults" | "auto" | "noauto" | "_netdev" | "nofail" | "user" | "nouser" => continue,
            _ => None,
        };
        if let Some((flag, on)) = flag {
            flags.set(flag, on);
            continue;
        }
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let version = match key {
            "vers" | "nfsvers" => Some(value),
            "v2" => Some("2"),
            "v3" => Some("3"),
            "v4" => Some("4"),
            "v4.0" => Some("4.0"),
            "v4.1" => Some("4.1"),
            "v4.2" => Some("4.2"),
            _ => None,
        };
        match version {
            Some(version) => chosen = Some(version),
            None => rest.push(option),
        }
    }
    match chosen {
        None => {}
        Some("3") => versions = vec!["3"],
        Some("4") => versions = vec!["4.2", "4.1", "4.0"],
        Some("4.0" | "4.1" | "4.2") => versions.retain(|v| Some(*v) == chosen),
        Some(other) => {
            return Err(format!("NFS version {other:?} is not supported (3, 4, 4.0, 4.1 and 4.2 are)"));
        }
    }
    let given = |name: &str| rest.iter().any(|o| o.split('=').next() == Some(name));
    let host = if export.server.contains(':') && !export.server.starts_with('[') {
        format!("[{}]", export.server)
    } else {
        export.server.clone()
    };
    let family = if server.is_ipv6() { "tcp6" } else { "tcp" };
    Ok(versions
        .into_iter()
        .map(|version| {
            let mut data = vec![format!("vers={version}")];
            data.extend(rest.iter().map(|o| (*o).to_owned()));
            if !given("proto") {
                data.push(format!("proto={family}"));
            }
            if version == "3" {
                if !given("lock") && !given("nolock") {
                    data.push("nolock".to_owned());
                }
                if !given("mountaddr") {
                    data.push(format!("mountaddr={server}"));
                }
                if !given("mountproto") {
                    data.push(format!("mountproto={family}"));
                }
            } else if !given("clientaddr") {
                data.push(format!("clientaddr={client}"));
            }
            data.push(format!("addr={server}"));
            Attempt {
                source: format!("{host}:{}", export.path),
                kind: if version == "3" { "nfs" } else { "nfs4" },
                flags,
                data: data.join(","),
            }
        })
        .collect())
}

/// The server's address and the one it sees us under.
fn addresses(export: &Export) -> Result<(IpAddr, IpAddr), String> {
    let name = export.server.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = (name, PORT)
        .to_socket_addrs()
        .map_err(|e| format!("failed to resolve server {name}: {e}"))?
        .collect();
    let server = found.iter().find(|a| a.is_ipv4()).or(found.first()).copied();
    let server = server.ok_or_else(|| format!("failed to resolve server {name}: it has no address"))?;
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    // Nothing is sent: the kernel only chooses the way.
    let client = UdpSocket::bind(any).and_then(|s| s.connect(server).and_then(|()| s.local_addr()));
    let client = client.map_err(|e| format!("no route to server {}: {e}", server.ip()))?;
    Ok((server.ip(), client.ip()))
}

/// Mounts an export. Blocks, for minutes when the server is silent.
///
/// # Errors
/// What the kernel said, and what can be done about it.
pub fn mount(export: &Export, target: &Path) -> Result<(), String> {
    // A kernel without NFS is the commonest case on a board: told before the server is looked for.
    require_support()?;
    let (server, client) = addresses(export)?;
    let mut last = String::new();
    for attempt in attempts(export, server, client)? {
        let Attempt { source, kind, flags, data } = &attempt;
        let error = match nix::mount::mount(
            Some(source.as_str()),
            target,
            Some(*kind),
            *flags,
            Some(data.as_str()),
        ) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        last = format!("mounting {source} with {data}: {}", io::Error::from(error));
        tracing::debug!(%source, kind, data, %error, "an NFS mount was refused");
        // Other versions are tried where this one is not spoken, as mount.nfs does.
        let unspoken = matches!(
            error,
            nix::Error::EPROTONOSUPPORT
                | nix::Error::EINVAL
                | nix::Error::ENOENT
                | nix::Error::EPFNOSUPPORT
                | nix::Error::ENODEV
        );
        if !unspoken {
            break;
        }
    }
    Err(last)
}

/// The file systems of which the kernel has to know one.
fn known() -> bool {
    let table = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    table.lines().any(|line| matches!(line.split('\t').nth(1), Some("nfs" | "nfs4")))
}

/// Loads what speaks NFS where it is a module.
fn require_support() -> Result<(), String> {
    if known() {
        return Ok(());
    }
    let mut failures = Vec::new();
    for module in ["nfsv4", "nfsv3", "nfs"] {
        if let Err(error) = super::modules::load(module) {
            failures.push(format!("{module}: {error}"));
        }
    }
    if known() {
        return Ok(());
    }
    Err(format!(
        "this node's kernel does not know NFS: the module nfs (CONFIG_NFS_FS, CONFIG_NFS_V4) is missing ({})",
        failures.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(server: &str, options: &[&str], read_only: bool) -> Result<Vec<Attempt>, String> {
        let export = Export {
            server: server.to_owned(),
            path: "/srv/x".to_owned(),
            read_only,
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        attempts(&export, "192.0.2.7".parse().unwrap(), "192.0.2.1".parse().unwrap())
    }

    #[test]
    fn the_newest_version_is_tried_first() {
        let all = told("nas", &[], false).unwrap();
        let data: Vec<_> = all.iter().map(|a| (a.kind, a.data.as_str())).collect();
        assert_eq!(
            data,
            [
                ("nfs4", "vers=4.2,proto=tcp,clientaddr=192.0.2.1,addr=192.0.2.7"),
                ("nfs4", "vers=4.1,proto=tcp,clientaddr=192.0.2.1,addr=192.0.2.7"),
                ("nfs4", "vers=4.0,proto=tcp,clientaddr=192.0.2.1,addr=192.0.2.7"),
                ("nfs", "vers=3,proto=tcp,nolock,mountaddr=192.0.2.7,mountproto=tcp,addr=192.0.2.7"),
            ]
        );
        assert!(all.iter().all(|a| a.source == "nas:/srv/x" && a.flags.is_empty()));
    }

    #[test]
    fn what_the_user_says_stays() {
        let given =
            told("fd00::1", &["nfsvers=4.1,hard", "timeo=600", "noatime", "ro", "clientaddr=9.9.9.9"], false);
        let one = given.unwrap().remove(0);
        assert_eq!(one.source, "[fd00::1]:/srv/x");
        assert_eq!(one.data, "vers=4.1,hard,timeo=600,clientaddr=9.9.9.9,proto=tcp,addr=192.0.2.7");
        assert_eq!(one.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOATIME);
        let three = told("nas", &["vers=3", "lock", "mountport=20048", "proto=udp"], true).unwrap();
        assert_eq!(three.len(), 1);
        assert_eq!(
            three[0].data,
            "vers=3,lock,mountport=20048,proto=udp,mountaddr=192.0.2.7,mountproto=tcp,addr=192.0.2.7"
        );
        assert_eq!(three[0].flags, MsFlags::MS_RDONLY);
        assert_eq!(told("nas", &["rw"], true).unwrap()[0].flags, MsFlags::MS_RDONLY, "readOnly wins");
        assert_eq!(told("nas", &["v4"], false).unwrap().len(), 3);
        assert!(told("nas", &["vers=2"], false).unwrap_err().contains("\"2\" is not supported"));
    }
}
