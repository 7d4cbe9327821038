//! Images: pulled or imported, verified, unpacked once a layer, kept until collected.
//!
//! In: references, archives. Out: [`Image`] with its configuration and layer folders.
//! Invariants: a layer is visible only after its digest was verified and it reached the disk; a
//! power cut leaves no half image; pinned, imported and used images are never collected.
//! Deliberately absent: Pods, pull policies (the node's), containers.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use oci_spec::image::ImageConfiguration;
use tokio::sync::watch;

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
    #[error("couldn't parse image name {0:?}: invalid reference format")]
    InvalidReference(String),
    #[error("image {0:?} not found")]
    NotFound(String),
    /// The registry's or network's answer, for the user.
    #[error("failed to pull image {reference:?}: {message}")]
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
    /// Pulls from the registry; `credentials` are tried in turn, then none.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: &'a [Credentials],
        progress: Option<watch::Sender<Progress>>,
    ) -> BoxFuture<'a, Result<Arc<Image>, Error>>;
    /// A docker-archive or OCI layout tar, plain, gzip or zstd.
    fn import<'a>(&'a self, archive: &'a Path) -> BoxFuture<'a, Result<Vec<Arc<Image>>, Error>>;
    fn remove<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<(), Error>>;
}
