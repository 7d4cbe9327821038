//! Images: pulled or imported, verified, unpacked once a layer, kept until collected.
//!
//! In: references, archives. Out: [`Image`] with its configuration and layer folders.
//! Invariants: a layer is visible only after its digest was verified and it reached the disk; a
//! power cut leaves no half image; pinned, imported and used images are never collected.
//! Deliberately absent: Pods, pull policies (the node's), containers.

mod auth;
mod collect;
mod demo;
mod digest;
mod export;
pub mod fake;
mod http;
mod import;
pub mod inbox;
mod index;
mod keyring;
mod manifest;
mod offers;
mod pull;
mod registries;
mod registry;
mod store;
#[allow(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;
mod tar;
mod tree;
mod unpack;
mod verified;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use oci_spec::image::ImageConfiguration;
use tokio::sync::watch;

pub use self::{
    collect::Usage, demo::DEMO_IMAGE, keyring::Keyring, registries::Registries, registry::Mirror,
    unpack::Depth,
};
pub use crate::oci::{Platform, Reference};
use crate::{config::Least, oci::InvalidReference};

/// An image that can be run.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its configuration: `sha256:…`.
    pub id: String,
    /// References it is known by: `docker.io/library/nginx:1.27`.
    pub names: Vec<String>,
    /// `name@sha256:…` references, for `imageID`.
    pub digests: Vec<String>,
    pub config: Arc<ImageConfiguration>,
    /// Unpacked layers, the lowest first.
    pub layers: Vec<PathBuf>,
    pub size_bytes: u64,
    pub pinned: bool,
}

/// Credentials for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// How far a pull is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// (layer digest, bytes done, bytes in all).
    pub layers: Vec<(String, u64, u64)>,
}

/// Why an image is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    InvalidReference(#[from] InvalidReference),
    #[error("image {0:?} not found")]
    NotFound(String),
    /// The registry's or network's answer, for the user.
    #[error("failed to pull and unpack image {reference:?}: {message}")]
    Pull { reference: String, message: String },
    #[error("import {path}: {message}")]
    Import { path: PathBuf, message: String },
    #[error("image {reference:?} has no build for {wanted}; it has {found}")]
    Platform { reference: String, wanted: String, found: String },
    #[error("image {0:?} is in use")]
    InUse(String),
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

/// The images of one node, as the node and the command line see them.
pub trait Images: Send + Sync + 'static {
    /// The image by reference, digest or id; as people write it (`nginx` is `docker.io/library/nginx:latest`).
    fn find(&self, reference: &str) -> Option<Arc<Image>>;
    fn list(&self) -> Vec<Arc<Image>>;
    /// The platforms that registries have said images are built for, by reference.
    fn platforms(&self) -> BTreeMap<String, Vec<String>> {
        BTreeMap::new()
    }
    /// Pulls from the registry; `credentials` are tried in turn, then none.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: &'a [Credentials],
        progress: Option<watch::Sender<Progress>>,
    ) -> BoxFuture<'a, Result<Arc<Image>, Error>>;
    /// Tells which images (ids) are in use: they are neither removed nor collected.
    fn set_in_use(&self, _ids: BTreeSet<String>) {}
    /// Removes unused images when the disk is fuller than `high_percent`, until `low_percent`.
    fn collect(&self, _high_percent: u8, _low_percent: u8) -> BoxFuture<'_, Result<Collected, Error>> {
        Box::pin(async { Ok(Collected::default()) })
    }
    /// Changes whenever there is a new image or name.
    fn arrivals(&self) -> Option<watch::Receiver<u64>> {
        None
    }
    /// A docker-archive or OCI layout tar, plain, gzip or zstd.
    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<Arc<Image>>, Error>>;
    fn remove<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}

/// How long a registry may send nothing, unless [`Options`] say otherwise.
const STALL: Duration = Duration::from_secs(30);
/// Hundredths of the disk that layers leave free, unless [`Options`] say otherwise.
const RESERVE_PERCENT: f64 = 5.0;

/// How a node keeps images.
#[derive(Debug, Clone)]
pub struct Options {
    /// Images lie in its folder `images`.
    pub data_dir: PathBuf,
    /// What images are chosen for; usually [`Platform::host`].
    pub platform: Platform,
    /// The binary that the demo image is made of.
    pub binary: PathBuf,
    /// Registries (`host:port`) whose certificates are not checked and that may do without TLS.
    pub insecure_registries: Vec<String>,
    /// Where to ask before a registry (`docker.io`; `*` for all others).
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// The node's own credentials; `config.json` of the data folder is read beside them.
    pub keyring: Keyring,
    /// Files of additional certificates to trust, by host.
    pub authorities: BTreeMap<String, PathBuf>,
    /// Folder of additional certificates to trust: `*.crt` and `*.pem` for all registries, `<host:port>/*.crt`
    /// for one.
    pub certificates: Option<PathBuf>,
    /// The longest time that a registry may send nothing.
    pub stall: Duration,
    /// What unpacked layers leave free of the disk.
    pub reserve: Least,
}

impl Options {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            platform: Platform::host(),
            binary: "/proc/self/exe".into(),
            insecure_registries: Vec::new(),
            mirrors: BTreeMap::new(),
            keyring: Keyring::default(),
            authorities: BTreeMap::new(),
            certificates: None,
            stall: STALL,
            reserve: Least::Percent(RESERVE_PERCENT),
        }
    }

    /// The same with settings of registries.
    #[must_use]
    pub fn with_registries(mut self, registries: Registries) -> Self {
        self.mirrors.extend(registries.mirrors);
        self.keyring.extend(registries.keyring);
        self.insecure_registries.extend(registries.insecure);
        self.authorities.extend(registries.authorities);
        self
    }
}

/// What [`ImageStore::collect`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: Vec<String>,
    pub freed_bytes: u64,
    /// What had to be freed to reach the low mark.
    pub wanted_bytes: u64,
}

/// The images of this machine: content store, imports, the demo image and registries.
#[derive(Clone)]
pub struct ImageStore {
    content: Arc<store::Content>,
    options: Arc<Options>,
    pulls: Arc<pull::Shared>,
}

impl ImageStore {
    /// Opens the store; one process at a time can. Blocks, after an unclean stop for as long as it takes
    /// to look at every file's size.
    pub fn open(options: Options) -> Result<Self, Error> {
        let content = Arc::new(store::Content::open(&options.data_dir.join("images"), options.reserve)?);
        Ok(Self { content, options: Arc::new(options), pulls: Arc::new(pull::Shared::new()) })
    }

    /// Keeps an image from being collected, or lets it go.
    pub fn pin(&self, reference: &str, pinned: bool) -> Result<(), Error> {
        self.content.pin(reference, pinned)
    }

    /// The folder of the store, in which archives are put to be imported.
    pub fn folder(&self) -> &Path {
        self.content.root()
    }

    /// [`Images::collect`]. Blocks while files are removed.
    pub fn collect_now(&self, high_percent: u8, low_percent: u8) -> Result<Collected, Error> {
        let usage = self.usage()?;
        let wanted_bytes = usage.excess_bytes(high_percent, low_percent);
        let (images, freed_bytes) =
            collect::plan(wanted_bytes, self.content.collectable(), self.content.layer_users());
        if !images.is_empty() {
            self.content.remove_images(&images)?;
        }
        Ok(Collected { images, freed_bytes, wanted_bytes })
    }

    /// Writes an image to a tar file. Blocks.
    pub fn export(&self, reference: &str, archive: &Path, progress: impl Fn(Progress)) -> Result<(), Error> {
        let image = self.find(reference).ok_or_else(|| Error::NotFound(reference.to_owned()))?;
        let _lease = self.content.lease_image(&image.id);
        export::export(&image, &self.content.config(&image.id)?, archive, progress)
    }

    /// The node's own credentials for an image.
    fn own_credentials(&self, reference: &Reference) -> Vec<Credentials> {
        let mut ring = self.options.keyring.clone();
        if let Ok(text) = std::fs::read(self.options.data_dir.join("config.json")) {
            ring.extend(Keyring::parse(&text));
        }
        ring.find(reference)
    }

    /// The file system that holds the images.
    pub fn usage(&self) -> Result<Usage, Error> {
        let root = self.content.root();
        let stat = nix::sys::statvfs::statvfs(root).map_err(|errno| Error::Io {
            operation: "statvfs",
            path: root.to_owned(),
            source: errno.into(),
        })?;
        let unit = stat.fragment_size() as u64;
        Ok(Usage {
            capacity_bytes: stat.blocks() as u64 * unit,
            available_bytes: stat.blocks_available() as u64 * unit,
            images_bytes: self.content.size_bytes(),
        })
    }

    /// Checks every layer and drops damaged images, whose names it returns. Reads all of them with
    /// [`Depth::Contents`]. Blocks.
    pub fn verify(&self, depth: Depth) -> Result<Vec<String>, Error> {
        self.content.verify(depth)
    }

    /// Why an image that was here is not any more: an unclean stop damaged it.
    pub fn damage(&self, reference: &str) -> Option<String> {
        self.content.damage(reference)
    }
}

/// Runs blocking work of this room off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}

impl Images for ImageStore {
    /// The demo image is made at its first mention, which may block for a second, once in a binary's life.
    fn find(&self, reference: &str) -> Option<Arc<Image>> {
        if demo::is_demo(reference) {
            return match demo::ensure(&self.content, &self.options.binary) {
                Ok(image) => Some(image),
                Err(error) => {
                    tracing::error!(%error, "the demo image cannot be made");
                    None
                }
            };
        }
        self.content.find(reference)
    }

    fn list(&self) -> Vec<Arc<Image>> {
        self.content.list()
    }

    fn platforms(&self) -> BTreeMap<String, Vec<String>> {
        self.pulls.offers.list(std::time::Instant::now())
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: &'a [Credentials],
        progress: Option<watch::Sender<Progress>>,
    ) -> BoxFuture<'a, Result<Arc<Image>, Error>> {
        Box::pin(async move {
            if demo::is_demo(reference) {
                let (content, options) = (self.content.clone(), self.options.clone());
                return blocking(move || demo::ensure(&content, &options.binary)).await;
            }
            let reference: Reference = reference.parse()?;
            let mut all = credentials.to_vec();
            all.extend(self.own_credentials(&reference).into_iter().filter(|own| !credentials.contains(own)));
            let pull = pull::Pull {
                content: &self.content,
                shared: &self.pulls,
                options: &self.options,
                reference: &reference,
                progress,
            };
            pull.run(&all).await
        })
    }

    fn set_in_use(&self, ids: BTreeSet<String>) {
        self.content.set_in_use(ids);
    }

    fn collect(&self, high_percent: u8, low_percent: u8) -> BoxFuture<'_, Result<Collected, Error>> {
        let store = self.clone();
        Box::pin(blocking(move || store.collect_now(high_percent, low_percent)))
    }

    fn arrivals(&self) -> Option<watch::Receiver<u64>> {
        Some(self.content.arrivals())
    }

    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<Arc<Image>>, Error>> {
        let (content, options, archive) = (self.content.clone(), self.options.clone(), archive.to_owned());
        Box::pin(blocking(move || import::import(&content, &archive, &options.platform)))
    }

    fn remove<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let (content, reference) = (self.content.clone(), reference.to_owned());
        Box::pin(blocking(move || content.remove(&reference)))
    }
}
