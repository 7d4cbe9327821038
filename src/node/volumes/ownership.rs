//! Gives the volumes behind claims to their pod's group, and tells when that takes long.
//!
//! Source: `pkg/volume/volume_linux.go` (`VolumeOwnership`).

use std::{
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use super::{
    super::{record::Wanted, shared::Shared},
    at, blocking,
    payload::{self, Group},
};

/// How long nothing is said.
const FIRST: Duration = Duration::from_secs(30);
/// How often it is told how far it is.
const AGAIN: Duration = Duration::from_mins(1);

/// Gives the files of a PersistentVolume to a group.
///
/// # Errors
/// The file system's refusal.
pub async fn give(
    shared: &Shared,
    wanted: &Wanted,
    volume: &str,
    path: PathBuf,
    group: Group,
) -> Result<(), String> {
    let files = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&files);
    let work =
        blocking(move || payload::own_counting(&path, group, false, &counted).map_err(at("lchown", &path)));
    let name = format!("{}/volumes/kubernetes.io~local-volume/{volume}", wanted.uid);
    let say = |message| shared.event(wanted, None, true, "VolumePermissionChangeInProgress", message);
    telling(work, &name, &files, say).await
}

async fn telling<T>(
    work: impl Future<Output = T>,
    name: &str,
    files: &AtomicU64,
    mut say: impl FnMut(String),
) -> T {
    let mut work = pin!(work);
    if let Ok(done) = timeout(FIRST, &mut work).await {
        return done;
    }
    say(format!(
        "Setting volume ownership for {name} is taking longer than expected, consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods"
    ));
    loop {
        if let Ok(done) = timeout(AGAIN, &mut work).await {
            return done;
        }
        let done = files.load(Ordering::Relaxed);
        say(format!("Setting volume ownership for {name}, processed {done} files."));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_told_with_how_far_it_is() {
        let said_in = async |seconds: u64| {
            let (files, mut said) = (AtomicU64::new(0), Vec::new());
            let work = async {
                for _ in 0..seconds {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    files.fetch_add(10, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            };
            telling(work, "uid/volumes/kind/v", &files, |text| said.push(text)).await;
            said
        };
        assert_eq!(said_in(29).await, Vec::<String>::new());
        let said = said_in(151).await;
        assert!(
            said[0].starts_with(
                "Setting volume ownership for uid/volumes/kind/v is taking longer than expected, consider using OnRootMismatch - https://"
            ),
            "{said:?}"
        );
        assert_eq!(
            said[1..],
            [
                "Setting volume ownership for uid/volumes/kind/v, processed 900 files.",
                "Setting volume ownership for uid/volumes/kind/v, processed 1500 files."
            ]
        );
    }
}
