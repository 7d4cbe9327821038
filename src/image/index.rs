//! What the content store holds, as one small file.
//!
//! `index.json` is replaced whole: new file, sync, rename, sync of the folder. The version before it is kept as
//! `index.json.1` and used when a lying disk leaves the first unreadable.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::crash;

const FILE: &str = "index.json";
const BEFORE: &str = "index.json.1";
const NEW: &str = "index.json.new";

/// An unpacked layer on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its folder is `layers/<number>`, its checksums `layers/<number>.sums`: short, for overlayfs' options.
    pub number: u64,
    pub size_bytes: u64,
}

/// A complete image. Its configuration is the file `configs/<hex of the id>`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRecord {
    pub names: Vec<String>,
    pub digests: Vec<String>,
    /// Diff ids, the lowest first.
    pub layers: Vec<String>,
    #[serde(default)]
    pub pinned: bool,
    /// Came from a file, so it may not be had again.
    #[serde(default)]
    pub imported: bool,
    /// Grows with each image; the order of arrival without a clock.
    pub sequence: u64,
    /// Made by this machine from a file: what that file was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_from: Option<String>,
}

/// All of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Index {
    pub sequence: u64,
    /// By diff id.
    pub layers: BTreeMap<String, LayerRecord>,
    /// By image id.
    pub images: BTreeMap<String, ImageRecord>,
}

impl Index {
    /// Reads the index of `folder`, and whether it had to be the one before; an absent one is empty.
    pub fn load(folder: &Path) -> io::Result<(Self, bool)> {
        let error = match read(&folder.join(FILE)) {
            Ok(index) => return Ok((index, false)),
            Err(error) => error,
        };
        match read(&folder.join(BEFORE)) {
            Ok(index) => {
                tracing::warn!(%error, folder = %folder.display(), "image index unreadable, using the one before");
                Ok((index, true))
            }
            Err(before) if before.kind() == io::ErrorKind::NotFound && error.kind() == before.kind() => {
                Ok((Self::default(), false))
            }
            Err(_) => Err(error),
        }
    }

    /// Replaces the index of `folder` and returns when it is on disk.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(NEW);
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        crash::point(crash::IMAGES);
        file.sync_data()?;
        drop(file);
        crash::point(crash::IMAGES);
        let (current, before) = (folder.join(FILE), folder.join(BEFORE));
        if current.exists() {
            remove_file(&before)?;
            crash::point(crash::IMAGES);
            fs::hard_link(&current, &before)?;
        }
        crash::point(crash::IMAGES);
        fs::rename(&new, &current)?;
        crash::point(crash::IMAGES);
        File::open(folder)?.sync_all()
    }

    /// Adds an image, or names and digests to one that is there. Names leave the images they were on.
    pub fn add(&mut self, id: &str, new: ImageRecord) {
        self.sequence += 1;
        for name in &new.names {
            self.untag(name);
        }
        let sequence = self.sequence;
        let record = self.images.entry(id.to_owned()).or_insert_with(|| ImageRecord {
            layers: new.layers.clone(),
            sequence,
            ..ImageRecord::default()
        });
        record.names.extend(new.names);
        for digest in new.digests {
            if !record.digests.contains(&digest) {
                record.digests.push(digest);
            }
        }
        record.pinned |= new.pinned;
        record.imported |= new.imported;
        record.made_from = new.made_from.or(record.made_from.take());
    }

    /// Takes a name away; returns the image that had it.
    pub fn untag(&mut self, name: &str) -> Option<String> {
        let (id, record) =
            self.images.iter_mut().find(|(_, record)| record.names.iter().any(|n| n == name))?;
        record.names.retain(|n| n != name);
        Some(id.clone())
    }

    /// Takes out layers that no image has and `keep` does not want.
    pub fn take_unused_layers(&mut self, keep: impl Fn(&str) -> bool) -> Vec<(String, LayerRecord)> {
        let used: std::collections::BTreeSet<&str> =
            self.images.values().flat_map(|image| image.layers.iter().map(String::as_str)).collect();
        let unused: Vec<String> =
            self.layers.keys().filter(|id| !used.contains(id.as_str()) && !keep(id)).cloned().collect();
        unused.into_iter().filter_map(|id| self.layers.remove(&id).map(|record| (id, record))).collect()
    }
}

fn read(path: &Path) -> io::Result<Index> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Removes a file that may be gone.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str], layers: &[&str]) -> ImageRecord {
        ImageRecord {
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            layers: layers.iter().map(|n| (*n).to_owned()).collect(),
            ..ImageRecord::default()
        }
    }

    #[test]
    fn a_name_moves_and_unused_layers_are_found() {
        let mut index = Index::default();
        for layer in ["base", "old", "new", "lost"] {
            index.layers.insert(layer.to_owned(), LayerRecord { number: 1, size_bytes: 1 });
        }
        index.add("1", image(&["web:latest", "web:1"], &["base", "old"]));
        index.add("2", image(&["web:latest"], &["base", "new"]));
        assert_eq!(index.images["1"].names, ["web:1"]);
        assert_eq!(index.images["2"].names, ["web:latest"]);
        assert!(index.images["1"].sequence < index.images["2"].sequence);
        index.images.remove("1");
        let unused = index.take_unused_layers(|id| id == "lost");
        assert_eq!(unused.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["old"]);
        assert_eq!(index.layers.keys().collect::<Vec<_>>(), ["base", "lost", "new"]);
    }

    #[test]
    fn a_torn_index_falls_back_to_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut index, _) = Index::load(folder.path()).unwrap();
        assert_eq!(index, Index::default());
        index.add("1", image(&["a"], &[]));
        index.save(folder.path()).unwrap();
        let first = index.clone();
        index.add("2", image(&["b"], &[]));
        index.save(folder.path()).unwrap();
        assert_eq!(Index::load(folder.path()).unwrap(), (index, false));
        fs::write(folder.path().join(FILE), "{\"sequ").unwrap();
        assert_eq!(Index::load(folder.path()).unwrap(), (first, true));
        fs::write(folder.path().join(BEFORE), "").unwrap();
        assert!(Index::load(folder.path()).is_err());
    }
}
