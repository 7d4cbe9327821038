//! The binary in its place, and the one before it.

use std::{fs, io, path::Path};

use super::{
    Error,
    files::{self, Change, Layout},
};

fn fail<'a>(operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File { operation, path: path.into(), source }
}

/// Copies `source` to its place, unless it is there already; the one before is kept.
pub fn place(layout: &Layout, source: &Path) -> Result<Change, Error> {
    let target = layout.binary();
    let there = target.exists();
    if there && same(source, &target)? {
        return Ok(Change::None);
    }
    if there {
        keep(layout)?;
    }
    let mut from = fs::File::open(source).map_err(fail("open", source))?;
    files::replace(&target, 0o755, |file| io::copy(&mut from, file).map(drop))?;
    Ok(if there { Change::Replaced } else { Change::Written })
}

/// Makes the present binary the previous one, without a moment in which there is none.
fn keep(layout: &Layout) -> Result<(), Error> {
    let previous = layout.previous();
    files::remove(&previous)?;
    fs::hard_link(layout.binary(), &previous).map_err(fail("keep the earlier binary as", &previous))
}

/// Puts the binary before the last upgrade back; the present one becomes the previous, so that a
/// second rollback undoes the first.
///
/// # Errors
/// When there is no previous one, or a file cannot be moved.
pub fn rollback(layout: &Layout) -> Result<(), Error> {
    let (binary, previous) = (layout.binary(), layout.previous());
    if !previous.exists() {
        return Err(Error::NoPrevious(previous));
    }
    let aside = previous.with_extension("aside");
    files::remove(&aside)?;
    fs::hard_link(&binary, &aside)
        .and_then(|()| fs::rename(&previous, &binary))
        .and_then(|()| fs::rename(&aside, &previous))
        .map_err(fail("put back", &binary))
}

fn same(a: &Path, b: &Path) -> Result<bool, Error> {
    let size = |path: &Path| fs::metadata(path).map(|meta| meta.len()).map_err(fail("look at", path));
    if size(a)? != size(b)? {
        return Ok(false);
    }
    let read = |path: &Path| fs::read(path).map_err(fail("read", path));
    Ok(read(a)? == read(b)?)
}
