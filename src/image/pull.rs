//! Pulls an image: resolve, choose the build, stream its layers into the store, record it.
//!
//! Invariants: a layer is loaded by one pull at a time and unpacked while it arrives, at most
//! [`LAYERS_AT_ONCE_MAX`] on the whole node; a failed pull keeps its whole layers for the next try.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, future::BoxFuture, stream};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{
    Credentials, Error, Image, Options, Progress, blocking,
    http::Client,
    manifest::{ConfigHead, Descriptor, Document, Manifest, platforms},
    offers::Offers,
    registry::{self, Endpoint, Mirror, Repository},
    store::{Content, NewImage},
    verified::Verified,
};
use crate::oci::{Platform, Reference, choose};

/// Layers that are loaded at once on this node; each takes up to 2 MiB, and what its compression needs.
pub const LAYERS_AT_ONCE_MAX: usize = 2;
/// Chunks between network and unpacker.
const WAITING_CHUNKS_MAX: usize = 8;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 3;

/// What all pulls of a node share.
#[derive(Debug)]
pub struct Shared {
    layers: Semaphore,
    pub offers: Offers,
    /// One loader a layer.
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    pub fn new() -> Self {
        Self {
            layers: Semaphore::new(LAYERS_AT_ONCE_MAX),
            offers: Offers::default(),
            locks: Mutex::default(),
        }
    }

    fn lock(&self, layer: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().expect("no panic with the lock");
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(layer).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(layer.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// A failed try, and whether another may do better.
#[derive(Debug)]
enum Failure {
    /// With other credentials.
    Denied(String),
    /// From another endpoint.
    Other(String),
    /// Nowhere.
    Final(Error),
}

/// One pull.
pub struct Pull<'a> {
    pub content: &'a Arc<Content>,
    pub shared: &'a Shared,
    pub options: &'a Options,
    pub reference: &'a Reference,
    pub progress: Option<watch::Sender<Progress>>,
}

impl Pull<'_> {
    /// Tries mirrors, then the registry; there the credentials in turn, then none.
    pub async fn run(&self, credentials: &[Credentials]) -> Result<Arc<Image>, Error> {
        let client = Client::new(
            self.options.certificates.clone(),
            self.options.authorities.clone(),
            self.options.stall,
        );
        let insecure = |host: &str| self.options.insecure_registries.iter().any(|insecure| insecure == host);
        let mirrors: &[Mirror] = [&self.reference.domain, "*"]
            .iter()
            .find_map(|key| self.options.mirrors.get(*key))
            .map_or(&[], Vec::as_slice);
        let mut last = String::new();
        for endpoint in Endpoint::of(self.reference, mirrors, insecure) {
            let own: &[Credentials] =
                if endpoint.namespace.is_some() { endpoint.credentials.as_slice() } else { credentials };
            let tries: Vec<Option<&Credentials>> = own.iter().map(Some).chain([None]).collect();
            for credentials in tries {
                let repository = Repository::new(&client, &endpoint, credentials);
                let result = self.try_one(&repository).await;
                if result.is_err() {
                    self.keep_layers().await;
                }
                match result {
                    Ok(image) => return Ok(image),
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Denied(message)) => last = message,
                    Err(Failure::Other(message)) => {
                        last = message;
                        break;
                    }
                }
            }
        }
        Err(Error::Pull { reference: self.reference.to_string(), message: last })
    }

    async fn keep_layers(&self) {
        let content = self.content.clone();
        if let Err(error) = blocking(move || content.keep_fresh()).await {
            tracing::warn!(%error, "layers of a failed pull are not kept");
        }
    }

    async fn try_one(&self, repository: &Repository<'_>) -> Result<Arc<Image>, Failure> {
        let unresolved = |error: registry::Error| {
            let reference = self.reference.to_string();
            let prefix = format!("failed to resolve reference {reference:?}");
            match error {
                registry::Error::NotFound => Failure::Other(format!("{prefix}: {reference}: not found")),
                registry::Error::Denied(_) => Failure::Denied(format!("{prefix}: {error}")),
                error => Failure::Other(format!("{prefix}: {error}")),
            }
        };
        if let Some(image) = self.unchanged(repository).await.map_err(unresolved)? {
            return Ok(image);
        }
        let (bytes, digest) = repository.manifest(self.reference.object()).await.map_err(unresolved)?;
        let document = Document::parse(&bytes).map_err(Failure::Other)?;
        let is_index = document.is_index();
        let manifest = self.choose(repository, document).await?;
        let config = repository
            .blob(&manifest.config)
            .await
            .map_err(|error| failed("copy", &manifest.config, &error))?;
        let head = ConfigHead::parse(&config, manifest.layers.len()).map_err(Failure::Other)?;
        if !is_index {
            self.learn([&head.platform]);
        }
        if head.platform.rank_on(&self.options.platform).is_none() {
            return Err(self.wrong_platform(head.platform.to_string()));
        }
        let layers: Vec<(Descriptor, String)> =
            manifest.layers.into_iter().zip(head.rootfs.diff_ids).collect();
        let _lease = self.content.lease(layers.iter().map(|(_, diff_id)| diff_id.as_str()));
        self.load_layers(repository, &layers).await?;
        let new = NewImage {
            config: config.to_vec(),
            names: if self.reference.tag.is_some() && self.reference.digest.is_none() {
                vec![self.reference.to_string()]
            } else {
                Vec::new()
            },
            digests: vec![self.reference.with_digest(&digest)],
            ..NewImage::default()
        };
        let content = self.content.clone();
        blocking(move || content.record(new)).await.map_err(Failure::Final)
    }

    /// The image that is here already, when its tag has not moved.
    async fn unchanged(&self, repository: &Repository<'_>) -> Result<Option<Arc<Image>>, registry::Error> {
        let Some(image) = self.content.find(&self.reference.to_string()) else { return Ok(None) };
        if self.reference.digest.is_some() {
            return Ok(Some(image));
        }
        let digest = repository.head(self.reference.object()).await?;
        let known = |digest: String| image.digests.contains(&self.reference.with_digest(&digest));
        Ok(digest.is_some_and(known).then_some(image))
    }

    /// The manifest of this machine's build.
    async fn choose(&self, repository: &Repository<'_>, mut document: Document) -> Result<Manifest, Failure> {
        for _ in 0..INDEX_DEPTH_MAX {
            if !document.is_index() {
                return document.manifest().map_err(Failure::Other);
            }
            let builds = document.builds();
            // A build that does not say what it is for may be for anything.
            if builds.iter().all(|build| build.platform.is_some()) {
                self.learn(builds.iter().filter_map(|build| build.platform.as_ref()));
            }
            let chosen =
                choose(&builds, |build| build.platform.clone(), &self.options.platform).ok_or_else(|| {
                    self.wrong_platform(platforms(builds.iter().filter_map(|b| b.platform.as_ref())))
                })?;
            let fetched = repository.manifest(&chosen.digest).await;
            let (bytes, _) = fetched.map_err(|error| failed("copy", chosen, &error))?;
            document = Document::parse(&bytes).map_err(Failure::Other)?;
        }
        Err(Failure::Other("indexes are nested too deep".to_owned()))
    }

    fn learn<'b>(&self, builds: impl IntoIterator<Item = &'b Platform>) {
        self.shared.offers.learn(&self.reference.to_string(), builds, Instant::now());
    }

    fn wrong_platform(&self, found: String) -> Failure {
        Failure::Final(Error::Platform {
            reference: self.reference.to_string(),
            wanted: self.options.platform.to_string(),
            found,
        })
    }

    async fn load_layers(
        &self,
        repository: &Repository<'_>,
        layers: &[(Descriptor, String)],
    ) -> Result<(), Failure> {
        if let Some(progress) = &self.progress {
            progress.send_modify(|progress| {
                progress.layers =
                    layers.iter().map(|(blob, _)| (blob.digest.clone(), 0, blob.size)).collect();
            });
        }
        // After a failure, what runs is finished and nothing more begun.
        let stop = AtomicBool::new(false);
        let mut loads: Vec<BoxFuture<'_, Result<(), Failure>>> = Vec::with_capacity(layers.len());
        for (i, (blob, diff_id)) in layers.iter().enumerate() {
            let stop = &stop;
            loads.push(Box::pin(async move {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let result = self.load_layer(repository, i, blob, diff_id).await;
                if result.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                result
            }));
        }
        let results: Vec<Result<(), Failure>> =
            stream::iter(loads).buffer_unordered(LAYERS_AT_ONCE_MAX).collect().await;
        results.into_iter().collect()
    }

    async fn load_layer(
        &self,
        repository: &Repository<'_>,
        i: usize,
        blob: &Descriptor,
        diff_id: &str,
    ) -> Result<(), Failure> {
        let done = |bytes: u64| {
            if let Some(progress) = &self.progress {
                progress.send_modify(|progress| progress.layers[i].1 = bytes);
            }
        };
        let lock = self.shared.lock(diff_id);
        let _one = lock.lock().await;
        if self.content.has_layer(diff_id) {
            done(blob.size);
            return Ok(());
        }
        let _permit = self.shared.layers.acquire().await.expect("the semaphore is never closed");
        let (to, chunks) = mpsc::channel(WAITING_CHUNKS_MAX);
        let (content, owned, wanted) = (self.content.clone(), blob.clone(), diff_id.to_owned());
        let unpacked = blocking(move || {
            let stream = Chunks { chunks, chunk: Bytes::new() };
            content.unpack(Verified::new(stream, &owned.digest, Some(owned.size)), Some(&wanted))
        });
        let streamed = async move { repository.stream(blob, &to, done).await };
        let (streamed, unpacked) = tokio::join!(streamed, unpacked);
        // A stream that broke explains what the unpacker saw only as an end.
        streamed.map_err(|error| failed("copy", blob, &error))?;
        unpacked.map(drop).map_err(|error| {
            Failure::Other(format!("failed to extract layer {diff_id} ({}): {error}", blob.digest))
        })
    }
}

fn failed(what: &str, blob: &Descriptor, error: &registry::Error) -> Failure {
    let message = match error {
        registry::Error::NotFound => format!("failed to {what}: {}: not found", blob.digest),
        error => format!("failed to {what}: {}: {error}", blob.digest),
    };
    match error {
        registry::Error::Denied(_) => Failure::Denied(message),
        _ => Failure::Other(message),
    }
}

/// Chunks that arrive, as a blocking reader.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let read = out.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut out[..read]);
        Ok(read)
    }
}
