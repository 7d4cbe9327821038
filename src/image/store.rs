//! The content store: unpacked layers, configurations, names, on disk below `<data-dir>/images`.
//!
//! ```text
//! index.json        what is complete (see `index`)
//! configs/<hex>     configurations of images, by their digest
//! layers/<n>/       an unpacked layer; layers/<n>.sums its files' checksums
//! running           the boot id while a daemon has the store open
//! lock              held by that daemon
//! ```
//! Invariants: a layer or image is in the index only after one `syncfs` that followed its last byte; what is on
//! disk and not in the index is removed at open; layers with a lease are never removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::ImageConfiguration;
use tokio::sync::watch;

use super::{
    Error, Image,
    digest::{hex_part, sha256},
    index::{ImageRecord, Index, LayerRecord, remove_file},
    unpack::{self, Depth, Unpacked},
};
use crate::{config::Least, crash, oci::Reference};

/// Largest configuration that is read (bytes).
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of one image; as many as Docker allows.
pub const LAYERS_MAX: usize = 127;
/// The shortest abbreviation of an image id (hexadecimal digits).
const SHORT_ID_MIN: usize = 8;

/// An image to be recorded.
#[derive(Debug, Default)]
pub struct NewImage {
    /// The configuration's bytes, whose digest is the image's id.
    pub config: Vec<u8>,
    pub names: Vec<String>,
    pub digests: Vec<String>,
    pub pinned: bool,
    pub imported: bool,
    pub made_from: Option<String>,
}

struct State {
    index: Index,
    images: BTreeMap<String, Arc<Image>>,
    /// Unpacked, but perhaps not on disk yet.
    fresh: BTreeMap<String, LayerRecord>,
    /// How many pulls and imports count on a layer.
    leases: BTreeMap<String, usize>,
    in_use: BTreeSet<String>,
    /// When an image was last seen in use: a count of looks.
    last_used: BTreeMap<String, u64>,
    looks: u64,
    /// Names of images that an unclean stop broke, and how.
    damaged: BTreeMap<String, String>,
}

/// The store of one node; see the module.
pub struct Content {
    root: PathBuf,
    /// What layers leave free of the disk.
    reserve: Least,
    next_layer: AtomicU64,
    state: Mutex<State>,
    /// One change of the index at a time.
    change: Mutex<()>,
    /// Counts recorded images.
    arrivals: watch::Sender<u64>,
    _lock: Flock<File>,
}

impl Content {
    /// Opens the store below `root`, removes leftovers and, after an unclean stop, what is broken.
    pub fn open(root: &Path, reserve: Least) -> Result<Self, Error> {
        for folder in [root.to_owned(), root.join("configs"), root.join("layers")] {
            io_at("create", &folder, fs::create_dir_all(&folder))?;
        }
        let lock_path = root.join("lock");
        let lock = io_at("open", &lock_path, File::create(&lock_path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| Error::Io {
            operation: "lock (another sampan has the image store open)",
            path: lock_path,
            source: errno.into(),
        })?;
        let (index, fell_back) = io_at("read the image index of", root, Index::load(root))?;
        let content = Self {
            root: root.to_owned(),
            reserve,
            next_layer: AtomicU64::new(1 + index.layers.values().map(|l| l.number).max().unwrap_or(0)),
            state: Mutex::new(State {
                images: BTreeMap::new(),
                fresh: BTreeMap::new(),
                leases: BTreeMap::new(),
                in_use: BTreeSet::new(),
                last_used: BTreeMap::new(),
                looks: 0,
                damaged: BTreeMap::new(),
                index,
            }),
            change: Mutex::new(()),
            arrivals: watch::Sender::new(0),
            _lock: lock,
        };
        content.remove_leftovers()?;
        let marker = root.join("running");
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let before = fs::read_to_string(&marker).ok();
        let images = content.load_images();
        content.state().images = images;
        // An index from before may name what was removed since.
        if fell_back || before.is_some_and(|before| before != boot) {
            tracing::warn!("the image store was not closed before the last boot; checking it");
            content.verify(Depth::Sizes)?;
        }
        io_at("write", &marker, fs::write(&marker, boot))?;
        Ok(content)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock")
    }

    /// The folder of a layer.
    fn layer_path(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(number.to_string())
    }

    fn sums_path(&self, number: u64) -> PathBuf {
        self.root.join("layers").join(format!("{number}.sums"))
    }

    fn config_path(&self, id: &str) -> PathBuf {
        self.root.join("configs").join(hex_part(id).unwrap_or("invalid"))
    }

    /// Removes what no index entry names.
    fn remove_leftovers(&self) -> Result<(), Error> {
        let (numbers, configs): (BTreeSet<String>, BTreeSet<String>) = {
            let state = self.state();
            (
                state.index.layers.values().map(|l| l.number.to_string()).collect(),
                state.index.images.keys().filter_map(|id| hex_part(id).map(str::to_owned)).collect(),
            )
        };
        let leftovers = |folder: &str, known: &dyn Fn(&str) -> bool| -> io::Result<()> {
            for entry in fs::read_dir(self.root.join(folder))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if !known(&name) {
                    remove_tree(&entry.path())?;
                }
            }
            Ok(())
        };
        let known_layer = |name: &str| numbers.contains(name.strip_suffix(".sums").unwrap_or(name));
        io_at("clean", &self.root, leftovers("layers", &known_layer))?;
        io_at("clean", &self.root, leftovers("configs", &|name| configs.contains(name)))
    }

    fn load_images(&self) -> BTreeMap<String, Arc<Image>> {
        let records = self.state().index.images.clone();
        records
            .into_iter()
            .filter_map(|(id, record)| {
                let config = fs::read(self.config_path(&id)).map_err(|error| error.to_string()).and_then(|bytes| {
                    if sha256(&bytes) != id {
                        return Err("its configuration is damaged".to_owned());
                    }
                    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
                });
                match config {
                    Ok(config) => {
                        let image = self.image(&self.state().index, &id, &record, Arc::new(config));
                        Some((id, Arc::new(image)))
                    }
                    Err(error) => {
                        tracing::error!(image = id, names = ?record.names, error, "image is damaged and not used");
                        let mut state = self.state();
                        for name in record.names {
                            state.damaged.insert(name, error.clone());
                        }
                        None
                    }
                }
            })
            .collect()
    }

    fn image(&self, index: &Index, id: &str, record: &ImageRecord, config: Arc<ImageConfiguration>) -> Image {
        let layers: Vec<&LayerRecord> =
            record.layers.iter().filter_map(|layer| index.layers.get(layer)).collect();
        Image {
            id: id.to_owned(),
            names: record.names.clone(),
            digests: record.digests.clone(),
            config,
            layers: layers.iter().map(|layer| self.layer_path(layer.number)).collect(),
            size_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
            pinned: record.pinned,
        }
    }

    /// Changes the index on disk, then in memory. `sync` waits for all data of the file system first.
    fn change<T>(&self, sync: bool, change: impl FnOnce(&mut Index, &State) -> T) -> Result<T, Error> {
        let _one = self.change.lock().expect("no thread panics with the lock");
        if sync {
            let synced = File::open(&self.root).and_then(|folder| {
                nix::unistd::syncfs(std::os::fd::AsRawFd::as_raw_fd(&folder)).map_err(io::Error::from)
            });
            io_at("sync", &self.root, synced)?;
            crash::point(crash::IMAGES);
        }
        let (mut index, result) = {
            let state = self.state();
            let mut index = state.index.clone();
            let result = change(&mut index, &state);
            (index, result)
        };
        io_at("write the image index of", &self.root, index.save(&self.root))?;
        let mut state = self.state();
        std::mem::swap(&mut state.index, &mut index);
        state.fresh = std::mem::take(&mut state.fresh)
            .into_iter()
            .filter(|(id, _)| !state.index.layers.contains_key(id))
            .collect();
        let images = std::mem::take(&mut state.images);
        state.images = images
            .into_iter()
            .filter_map(|(id, image)| {
                let record = state.index.images.get(&id)?;
                let image = self.image(&state.index, &id, record, image.config.clone());
                Some((id, Arc::new(image)))
            })
            .collect();
        Ok(result)
    }

    /// See [`super::Images::arrivals`].
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// The bytes of an image's configuration.
    pub fn config(&self, id: &str) -> Result<Vec<u8>, Error> {
        let path = self.config_path(id);
        io_at("read", &path, fs::read(&path))
    }

    /// Keeps an image's layers from removal while the lease lives.
    pub fn lease_image(self: &Arc<Self>, id: &str) -> Lease {
        let layers = self.image_record(id).map(|record| record.layers).unwrap_or_default();
        self.lease(layers.iter().map(String::as_str))
    }

    /// Keeps layers from removal while the lease lives.
    pub fn lease<'a>(self: &'a Arc<Self>, layers: impl IntoIterator<Item = &'a str>) -> Lease {
        let layers: Vec<String> = layers.into_iter().map(str::to_owned).collect();
        let mut state = self.state();
        for layer in &layers {
            *state.leases.entry(layer.clone()).or_default() += 1;
        }
        Lease { content: self.clone(), layers }
    }

    pub fn has_layer(&self, diff_id: &str) -> bool {
        let state = self.state();
        state.index.layers.contains_key(diff_id) || state.fresh.contains_key(diff_id)
    }

    /// Unpacks a layer from its stream. It becomes durable with the next [`Content::record`] or
    /// [`Content::keep_fresh`]. Nothing stays on failure.
    pub fn unpack(&self, stream: impl Read, diff_id: Option<&str>) -> Result<Unpacked, unpack::Error> {
        self.make_layer(|root, sums| unpack::unpack(root, sums, stream, diff_id, self.reserve))
    }

    /// Fills a new layer's folder and checksum file by `fill`.
    pub fn make_layer(
        &self,
        fill: impl FnOnce(&Path, &Path) -> Result<Unpacked, unpack::Error>,
    ) -> Result<Unpacked, unpack::Error> {
        let number = self.next_layer.fetch_add(1, Ordering::Relaxed);
        let (root, sums) = (self.layer_path(number), self.sums_path(number));
        let result = make_folder(&root)
            .map_err(|source| unpack::Error::Write { operation: "create", path: root.clone(), source })
            .and_then(|()| {
                crash::point(crash::IMAGES);
                fill(&root, &sums)
            });
        let kept = match &result {
            Ok(unpacked) => {
                let mut state = self.state();
                let known = state.index.layers.contains_key(&unpacked.diff_id);
                let record = LayerRecord { number, size_bytes: unpacked.size_bytes };
                !known
                    && state.fresh.insert(unpacked.diff_id.clone(), record.clone()).is_none_or(|other| {
                        // Another unpacked it meanwhile: its folder stays.
                        state.fresh.insert(unpacked.diff_id.clone(), other);
                        false
                    })
            }
            Err(_) => false,
        };
        if !kept {
            self.remove_layer_files(number);
        }
        crash::point(crash::IMAGES);
        result
    }

    fn remove_layer_files(&self, number: u64) {
        for path in [self.layer_path(number), self.sums_path(number)] {
            if let Err(error) = remove_tree(&path) {
                // Tried again at the next open.
                tracing::warn!(path = %path.display(), %error, "could not remove a layer");
            }
            crash::point(crash::IMAGES);
        }
    }

    /// Records an image whose layers are all there; it is durable when this returns.
    pub fn record(&self, new: NewImage) -> Result<Arc<Image>, Error> {
        let id = sha256(&new.config);
        let path = self.config_path(&id);
        let config: ImageConfiguration = serde_json::from_slice(&new.config).map_err(|error| Error::Io {
            operation: "read configuration of",
            path: path.clone(),
            source: error.into(),
        })?;
        let layers = config.rootfs().diff_ids().clone();
        if let Some(missing) = layers.iter().find(|layer| !self.has_layer(layer)) {
            let source = io::Error::new(io::ErrorKind::NotFound, format!("layer {missing} is missing"));
            return Err(Error::Io { operation: "record", path, source });
        }
        io_at("write", &path, write_config(&path, &new.config))?;
        crash::point(crash::IMAGES);
        let record = ImageRecord {
            names: new.names,
            digests: new.digests,
            layers,
            pinned: new.pinned,
            imported: new.imported,
            sequence: 0,
            made_from: new.made_from,
        };
        self.change(true, |index, state| {
            index.layers.extend(state.fresh.clone());
            index.add(&id, record);
        })?;
        let mut state = self.state();
        let image = Arc::new(self.image(&state.index, &id, &state.index.images[&id], Arc::new(config)));
        for name in &image.names {
            state.damaged.remove(name);
        }
        state.images.insert(id, image.clone());
        drop(state);
        self.arrivals.send_modify(|count| *count += 1);
        Ok(image)
    }

    /// Makes layers of an unfinished pull durable, so that the next try does not load them again.
    pub fn keep_fresh(&self) -> Result<(), Error> {
        if self.state().fresh.is_empty() {
            return Ok(());
        }
        self.change(true, |index, state| index.layers.extend(state.fresh.clone()))
    }

    /// The image by name, digest or (short) id.
    pub fn find(&self, reference: &str) -> Option<Arc<Image>> {
        let state = self.state();
        if let Some(image) = state.images.get(reference) {
            return Some(image.clone());
        }
        let images = || state.images.values();
        if let Ok(parsed) = reference.parse::<Reference>() {
            let found = if let Some(digest) = &parsed.digest {
                let wanted = parsed.with_digest(digest);
                images().find(|image| image.digests.contains(&wanted))
            } else {
                let wanted = parsed.to_string();
                images().find(|image| image.names.contains(&wanted))
            };
            if let Some(image) = found {
                return Some(image.clone());
            }
        }
        let short = reference.strip_prefix("sha256:").unwrap_or(reference);
        if short.len() < SHORT_ID_MIN {
            return None;
        }
        let mut matching =
            images().filter(|image| hex_part(&image.id).is_some_and(|hex| hex.starts_with(short)));
        matching.next().filter(|_| matching.next().is_none()).cloned()
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        self.state().images.values().cloned().collect()
    }

    /// What the index says of an image.
    pub fn image_record(&self, id: &str) -> Option<ImageRecord> {
        self.state().index.images.get(id).cloned()
    }

    /// Takes a name from an image, and the image with its last name. An id takes the image with all names.
    pub fn remove(&self, reference: &str) -> Result<(), Error> {
        let image = self.find(reference).ok_or_else(|| Error::NotFound(reference.to_owned()))?;
        let name = reference
            .parse::<Reference>()
            .map(|parsed| parsed.to_string())
            .ok()
            .filter(|name| image.names.contains(name) && image.names.len() > 1);
        if let Some(name) = name {
            self.change(false, |index, _| index.untag(&name))?;
            return Ok(());
        }
        if self.state().in_use.contains(&image.id) {
            return Err(Error::InUse(reference.to_owned()));
        }
        self.remove_images(std::slice::from_ref(&image.id))
    }

    /// Removes images and the layers that only they have.
    pub fn remove_images(&self, ids: &[String]) -> Result<(), Error> {
        let layers = self.change(false, |index, state| {
            for id in ids {
                index.images.remove(id);
            }
            index.take_unused_layers(|layer| state.leases.contains_key(layer))
        })?;
        for (_, layer) in layers {
            self.remove_layer_files(layer.number);
        }
        for id in ids {
            let path = self.config_path(id);
            io_at("remove", &path, remove_file(&path))?;
        }
        Ok(())
    }

    /// Pins an image against collection, or lets it go.
    pub fn pin(&self, reference: &str, pinned: bool) -> Result<(), Error> {
        let image = self.find(reference).ok_or_else(|| Error::NotFound(reference.to_owned()))?;
        if image.pinned == pinned {
            return Ok(());
        }
        self.change(false, |index, _| {
            if let Some(record) = index.images.get_mut(&image.id) {
                record.pinned = pinned;
            }
        })
    }

    /// Tells which images containers run from; they are neither removed nor collected.
    pub fn set_in_use(&self, ids: BTreeSet<String>) {
        let mut state = self.state();
        state.looks += 1;
        let now = state.looks;
        for id in &ids {
            state.last_used.insert(id.clone(), now);
        }
        state.in_use = ids;
    }

    /// The images that may be collected, the longest unused first, with the bytes that only they hold
    /// among the images that stay.
    pub fn collectable(&self) -> Vec<super::collect::Candidate> {
        let state = self.state();
        state
            .index
            .images
            .iter()
            .filter(|(id, image)| !image.pinned && !image.imported && !state.in_use.contains(*id))
            .map(|(id, image)| super::collect::Candidate {
                id: id.clone(),
                last_used: state.last_used.get(id).copied().unwrap_or(0),
                sequence: image.sequence,
                layers: image
                    .layers
                    .iter()
                    .filter_map(|layer| Some((layer.clone(), state.index.layers.get(layer)?.size_bytes)))
                    .collect(),
            })
            .collect()
    }

    /// How many images have each layer.
    pub fn layer_users(&self) -> BTreeMap<String, usize> {
        let mut users = BTreeMap::new();
        for image in self.state().index.images.values() {
            for layer in image.layers.iter().collect::<BTreeSet<_>>() {
                *users.entry(layer.clone()).or_default() += 1;
            }
        }
        users
    }

    /// Bytes of all layers.
    pub fn size_bytes(&self) -> u64 {
        self.state().index.layers.values().map(|layer| layer.size_bytes).sum()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Why an image that was here is no more, after an unclean stop.
    pub fn damage(&self, reference: &str) -> Option<String> {
        let name = reference.parse::<Reference>().ok()?.to_string();
        self.state().damaged.get(&name).cloned()
    }

    /// Checks all layers; drops damaged ones with their images, so that they are pulled again. Returns the
    /// names that were dropped.
    pub fn verify(&self, depth: Depth) -> Result<Vec<String>, Error> {
        let layers = self.state().index.layers.clone();
        let broken: BTreeMap<String, String> = layers
            .into_iter()
            .filter_map(|(id, layer)| {
                let result =
                    unpack::verify(&self.layer_path(layer.number), &self.sums_path(layer.number), depth);
                result.err().map(|what| (id, what))
            })
            .collect();
        if broken.is_empty() {
            return Ok(Vec::new());
        }
        let mut dropped = Vec::new();
        let mut ids = Vec::new();
        {
            let mut state = self.state();
            let images = state.index.images.clone();
            for (id, image) in images {
                let Some(what) = image.layers.iter().find_map(|layer| broken.get(layer)) else { continue };
                let kept = if image.imported { "import it again" } else { "it is pulled again when needed" };
                tracing::error!(image = id, names = ?image.names, "damaged by an unclean stop: {what}; {kept}");
                for name in &image.names {
                    state
                        .damaged
                        .insert(name.clone(), format!("damaged by an unclean stop ({what}); {kept}"));
                }
                dropped.extend(image.names);
                ids.push(id);
            }
        }
        let removed: Vec<LayerRecord> = self.change(false, |index, _| {
            for id in &ids {
                index.images.remove(id);
            }
            broken.keys().filter_map(|id| index.layers.remove(id)).collect()
        })?;
        for layer in removed {
            self.remove_layer_files(layer.number);
        }
        Ok(dropped)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // All that is in the index is on disk already; the mark only saves a check.
        if let Err(error) = remove_file(&self.root.join("running")) {
            tracing::warn!(%error, "could not mark the image store as closed");
        }
    }
}

/// See [`Content::lease`].
pub struct Lease {
    content: Arc<Content>,
    layers: Vec<String>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.content.state();
        for layer in &self.layers {
            if let Some(count) = state.leases.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(layer);
                }
            }
        }
    }
}

/// Puts a configuration into its place. One that is there, of an image that may be in use, is never cut short.
fn write_config(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    crash::point(crash::IMAGES);
    fs::rename(&new, path)
}

/// A folder of mode 0755 whatever the umask: it becomes `/` of containers.
fn make_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Removes a file or folder that may be gone.
fn remove_tree(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn io_at<T>(operation: &'static str, path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { operation, path: path.to_owned(), source })
}
