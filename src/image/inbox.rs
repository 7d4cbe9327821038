//! The folder whose archives are imported by themselves: `<data-dir>/images/*.tar` (`.tar.gz`, `.tgz`, `.tar.zst`).
//!
//! In: files that are there at the start, and those that are written or moved in later (inotify(7)). Out: imported
//! images. An archive is read again only when its size or time has changed, also across starts: an image
//! that was removed on purpose does not come back by itself.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

use super::{ImageStore, Images, sys};
use crate::tasks::CancellationToken;

const SUFFIXES: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];
const SEEN: &str = "imported.json";

/// Size, and time of the last change in nanoseconds since 1970.
type Stamp = (u64, i128);

/// Imports until told to stop.
pub async fn run(images: ImageStore, stop: CancellationToken) -> Result<(), Infallible> {
    let folder = images.folder().to_owned();
    // Watched before the first look, so that nothing is missed in between.
    let watch = watch(&folder);
    if let Err(error) = &watch {
        tracing::warn!(%error, folder = %folder.display(), "archives are imported at the start only");
    }
    let mut seen: BTreeMap<String, Stamp> = fs::read(folder.join(SEEN))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    loop {
        for (name, path, stamp) in archives(&folder) {
            if seen.get(&name) == Some(&stamp) {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                result = images.import(&path) => match result {
                    Ok(found) => {
                        let names: Vec<_> = found.iter().flat_map(|image| image.names.clone()).collect();
                        tracing::info!(archive = name, ?names, "imported an archive");
                    }
                    // One that is still being written is told of again when it is closed.
                    Err(error) => tracing::warn!(archive = name, %error, "an archive could not be imported"),
                },
            }
            seen.insert(name, stamp);
            if let Err(error) = remember(&folder, &seen) {
                tracing::warn!(%error, "what was imported cannot be noted");
            }
        }
        let Ok(watch) = &watch else {
            stop.cancelled().await;
            return Ok(());
        };
        let news = watch.async_io(Interest::READABLE, |inotify| {
            let events = inotify.read_events()?;
            Ok(events.iter().any(|e| e.name.as_ref().is_some_and(|name| is_archive(&name.to_string_lossy()))))
        });
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // Whatever it was: the folder is looked at.
            _ = news => {}
        }
    }
}

fn watch(folder: &Path) -> io::Result<AsyncFd<Watched>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(folder, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO)?;
    sys::pollable(Watched(inotify))
}

struct Watched(Inotify);

impl Watched {
    fn read_events(&self) -> io::Result<Vec<nix::sys::inotify::InotifyEvent>> {
        Ok(self.0.read_events()?)
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

fn is_archive(name: &str) -> bool {
    !name.starts_with('.') && SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

fn archives(folder: &Path) -> Vec<(String, PathBuf, Stamp)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| is_archive(name))?;
            let meta = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?;
            let time = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            Some((name, entry.path(), (meta.len(), time)))
        })
        .collect();
    found.sort();
    found
}

fn remember(folder: &Path, seen: &BTreeMap<String, Stamp>) -> io::Result<()> {
    let new = folder.join(format!("{SEEN}.new"));
    fs::write(&new, serde_json::to_vec(seen)?)?;
    fs::rename(new, folder.join(SEEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_by_their_names() {
        for (name, want) in [
            ("app.tar", true),
            ("app.tar.gz", true),
            ("app.tgz", true),
            ("app.tar.zst", true),
            (".app.tar.partial", false),
            (".app.tar", false),
            ("index.json", false),
            ("app.zip", false),
        ] {
            assert_eq!(is_archive(name), want, "{name}");
        }
    }
}
