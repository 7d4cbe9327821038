//! Imports archives: `docker save` files and OCI image layouts as a tar, plain, gzip or zstd.
//!
//! In: a file. Out: recorded images. The archive is streamed twice, because its parts come in any order and a
//! compressed one cannot be searched: first for the small JSON files, then for the layers that are wanted. Nothing
//! is stored in between. Formats: OCI image spec, "Image Layout"; Docker's image spec v1.2, `manifest.json`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use serde::Deserialize;
use tar::EntryType;

use super::{
    Error, Image,
    digest::{hex_part, sha256},
    manifest::{ConfigHead, Descriptor, Document, MANIFEST_BYTES_MAX, platforms},
    store::{CONFIG_BYTES_MAX, Content, NewImage},
    tar::{Source, TarStream},
    tree, unpack,
    verified::Verified,
};
use crate::oci::{Platform, Reference, choose};

/// Entries of an archive.
const ENTRIES_MAX: usize = 100_000;
/// All JSON files of an archive together (bytes).
const DOCUMENTS_BYTES_MAX: u64 = 64 << 20;
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 3;
const BUFFER_BYTES: usize = 128 * 1024;

/// Imports all images of the archive that run on `platform`.
pub fn import(content: &Arc<Content>, path: &Path, platform: &Platform) -> Result<Vec<Arc<Image>>, Error> {
    let failed = |message: String| Error::Import { path: path.to_owned(), message };
    let listing = list(path).map_err(|error| failed(error.to_string()))?;
    let images = listing.images(platform).map_err(|refusal| match refusal {
        Refusal::Malformed(message) => failed(message),
        Refusal::Platform { found } => {
            Error::Platform { reference: path.display().to_string(), wanted: platform.to_string(), found }
        }
    })?;
    let _lease =
        content.lease(images.iter().flat_map(|image| image.layers.iter().map(|l| l.diff_id.as_str())));
    unpack_layers(content, path, &images).map_err(failed)?;
    images
        .into_iter()
        .map(|image| {
            content.record(NewImage {
                config: image.config,
                names: image.names,
                digests: image.digests,
                imported: true,
                ..NewImage::default()
            })
        })
        .collect()
}

/// A layer to be taken from the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    member: String,
    diff_id: String,
    /// The digest and size of the member, where the archive says them.
    blob: Option<(String, u64)>,
}

/// An image of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    config: Vec<u8>,
    names: Vec<String>,
    digests: Vec<String>,
    layers: Vec<Layer>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Malformed(String),
    Platform { found: String },
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self::Malformed(message)
    }
}

/// What the first pass finds.
#[derive(Debug, Default)]
struct Listing {
    /// JSON files by path.
    documents: BTreeMap<String, Vec<u8>>,
    /// Links by path; old `docker save` files have them for layers that repeat.
    links: BTreeMap<String, String>,
}

/// An entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Listing {
    fn images(&self, platform: &Platform) -> Result<Vec<Planned>, Refusal> {
        // Newer `docker save` files have both forms; the OCI one has digests.
        if let Some(index) =
            self.documents.get("index.json").filter(|_| self.documents.contains_key("oci-layout"))
        {
            let mut images = self.oci_images(&Document::parse(index)?, platform)?;
            if let Ok(docker) = self.docker_images(platform) {
                for image in &mut images {
                    let same = docker.iter().filter(|other| other.config == image.config);
                    for name in same.flat_map(|other| &other.names) {
                        if !image.names.contains(name) {
                            image.names.push(name.clone());
                        }
                    }
                }
            }
            return Ok(images);
        }
        if self.documents.contains_key("manifest.json") {
            return self.docker_images(platform);
        }
        Err("neither a docker-archive (manifest.json) nor an OCI image layout (index.json)".to_owned().into())
    }

    fn docker_images(&self, platform: &Platform) -> Result<Vec<Planned>, Refusal> {
        let manifest = self.documents.get("manifest.json").ok_or_else(|| "no manifest.json".to_owned())?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(manifest).map_err(|error| format!("manifest.json: {error}"))?;
        images
            .into_iter()
            .map(|image| {
                let config = self.document(&image.config)?.clone();
                let head = ConfigHead::parse(&config, image.layers.len())?;
                if head.platform.rank_on(platform).is_none() {
                    return Err(Refusal::Platform { found: head.platform.to_string() });
                }
                let layers = image
                    .layers
                    .iter()
                    .zip(head.rootfs.diff_ids)
                    .map(|(member, diff_id)| {
                        Ok(Layer { member: self.resolve(&clean(member.as_bytes())?), diff_id, blob: None })
                    })
                    .collect::<Result<_, String>>()?;
                let names = normalised(image.repo_tags.iter().flatten())?;
                Ok(Planned { config, names, digests: Vec::new(), layers })
            })
            .collect()
    }

    fn oci_images(&self, index: &Document, platform: &Platform) -> Result<Vec<Planned>, Refusal> {
        // Entries of one name are builds of one image.
        let mut groups: BTreeMap<Option<String>, Vec<&Descriptor>> = BTreeMap::new();
        for descriptor in &index.manifests {
            groups.entry(oci_name(descriptor)).or_default().push(descriptor);
        }
        if groups.is_empty() {
            return Err("index.json names no image".to_owned().into());
        }
        groups
            .into_iter()
            .map(|(name, descriptors)| {
                let mut builds = Vec::new();
                for descriptor in &descriptors {
                    self.builds(descriptor, descriptor, 0, &mut builds)?;
                }
                let chosen =
                    choose(&builds, |build| Some(build.platform.clone()), platform).ok_or_else(|| {
                        Refusal::Platform { found: platforms(builds.iter().map(|b| &b.platform)) }
                    })?;
                let manifest = Document::parse(self.blob(&chosen.manifest)?)?.manifest()?;
                let config = self.blob(&manifest.config)?.clone();
                let head = ConfigHead::parse(&config, manifest.layers.len())?;
                let layers = manifest.layers.iter().zip(head.rootfs.diff_ids);
                let layers = layers
                    .map(|(blob, diff_id)| Layer {
                        member: self.resolve(&blob_path(&blob.digest)),
                        diff_id,
                        blob: Some((blob.digest.clone(), blob.size)),
                    })
                    .collect();
                let names = normalised(name.iter())?;
                let digests = names
                    .iter()
                    .filter_map(|name| name.parse::<Reference>().ok())
                    .map(|name| name.with_digest(&chosen.top.digest))
                    .collect();
                Ok(Planned { config, names, digests, layers })
            })
            .collect()
    }

    /// Finds the builds below a descriptor whose blobs are in the archive.
    fn builds<'a>(
        &self,
        top: &'a Descriptor,
        descriptor: &Descriptor,
        depth: usize,
        out: &mut Vec<Build<'a>>,
    ) -> Result<(), Refusal> {
        if depth > INDEX_DEPTH_MAX {
            return Err("indexes are nested too deep".to_owned().into());
        }
        // `docker save` keeps one platform and the index of all.
        if !self.documents.contains_key(&self.resolve(&blob_path(&descriptor.digest))) {
            return Ok(());
        }
        let document = Document::parse(self.blob(descriptor)?)?;
        if document.is_index() {
            for build in document.builds() {
                self.builds(top, &build, depth + 1, out)?;
            }
            return Ok(());
        }
        let platform = if let Some(platform) = &descriptor.platform {
            platform.clone()
        } else {
            let manifest = document.manifest()?;
            ConfigHead::parse(self.blob(&manifest.config)?, manifest.layers.len())?.platform
        };
        out.push(Build { top, manifest: descriptor.clone(), platform });
        Ok(())
    }

    /// A JSON blob, its digest checked.
    fn blob(&self, descriptor: &Descriptor) -> Result<&Vec<u8>, String> {
        let bytes = self.document(&blob_path(&descriptor.digest))?;
        let found = sha256(bytes);
        if found == descriptor.digest {
            Ok(bytes)
        } else {
            Err(format!("blob {} is damaged: its digest is {found}", descriptor.digest))
        }
    }

    fn document(&self, member: &str) -> Result<&Vec<u8>, String> {
        let member = self.resolve(&clean(member.as_bytes())?);
        self.documents.get(&member).ok_or_else(|| format!("the archive has no {member}"))
    }

    /// Follows one link.
    fn resolve(&self, member: &str) -> String {
        self.links.get(member).cloned().unwrap_or_else(|| member.to_owned())
    }
}

struct Build<'a> {
    top: &'a Descriptor,
    manifest: Descriptor,
    platform: Platform,
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", hex_part(digest).unwrap_or("unsupported"))
}

/// containerd's annotation has the full name, the OCI one often a tag only.
fn oci_name(descriptor: &Descriptor) -> Option<String> {
    let annotation = |key: &str| descriptor.annotations.get(key).cloned();
    annotation("io.containerd.image.name")
        .or_else(|| annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':'])))
}

fn normalised<'a>(names: impl Iterator<Item = &'a String>) -> Result<Vec<String>, String> {
    names
        .map(|name| name.parse::<Reference>().map(|name| name.to_string()).map_err(|error| error.to_string()))
        .collect()
}

fn clean(path: &[u8]) -> Result<String, String> {
    let path = tree::relative(path).map_err(|error| error.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

/// The archive's own bytes; a plain one is skipped by seeking.
enum Archive {
    Plain(BufReader<File>),
    Packed(Box<dyn Read>),
}

impl Read for Archive {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(out),
            Self::Packed(stream) => stream.read(out),
        }
    }
}

impl Source for Archive {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.seek_relative(bytes as i64),
            Self::Packed(stream) => {
                let skipped = io::copy(&mut stream.take(bytes), &mut io::sink())?;
                if skipped < bytes { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
            }
        }
    }
}

fn open(path: &Path) -> io::Result<TarStream<Archive>> {
    let mut file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    let packed = file.fill_buf()?.get(257..262).is_none_or(|magic| magic != b"ustar");
    Ok(TarStream::new(if packed { Archive::Packed(unpack::decompress(file)?) } else { Archive::Plain(file) }))
}

/// The first pass.
fn list(path: &Path) -> io::Result<Listing> {
    let too_much =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("too many {what} in the archive"));
    let mut archive = open(path)?;
    let (mut listing, mut entries, mut bytes) = (Listing::default(), 0, 0);
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(too_much("entries"));
        }
        let member = clean(&entry.path).map_err(io::Error::other)?;
        match entry.kind {
            EntryType::Regular | EntryType::Continuous
                if (1..=CONFIG_BYTES_MAX.max(MANIFEST_BYTES_MAX)).contains(&entry.size) =>
            {
                let mut first = [0];
                archive.read_exact(&mut first)?;
                if matches!(first[0], b'{' | b'[') {
                    bytes += entry.size;
                    if bytes > DOCUMENTS_BYTES_MAX {
                        return Err(too_much("JSON files"));
                    }
                    let mut document = first.to_vec();
                    archive.read_to_end(&mut document)?;
                    listing.documents.insert(member, document);
                }
            }
            EntryType::Symlink | EntryType::Link => {
                let mut target = entry.link;
                if entry.kind == EntryType::Symlink {
                    let folder = Path::new(&member).parent().unwrap_or(Path::new(""));
                    let below = [folder.to_string_lossy().as_bytes(), b"/", &target].concat();
                    target = below;
                }
                listing.links.insert(member, clean(&target).map_err(io::Error::other)?);
            }
            _ => {}
        }
    }
    Ok(listing)
}

/// The second pass: unpacks the layers that are not there yet.
fn unpack_layers(content: &Content, path: &Path, images: &[Planned]) -> Result<(), String> {
    let mut wanted: BTreeMap<&str, &Layer> = BTreeMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        if !content.has_layer(&layer.diff_id) {
            wanted.insert(&layer.member, layer);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut archive = open(path).map_err(|error| error.to_string())?;
    while let Some(entry) = archive.next_entry().map_err(|error| error.to_string())? {
        let Some(layer) = wanted.remove(clean(&entry.path)?.as_str()) else { continue };
        let failed = |error: unpack::Error| format!("layer {}: {error}", layer.diff_id);
        let unpacked = match &layer.blob {
            Some((digest, size)) => {
                content.unpack(Verified::new(&mut archive, digest, Some(*size)), Some(&layer.diff_id))
            }
            None => content.unpack(&mut archive, Some(&layer.diff_id)),
        };
        unpacked.map_err(failed)?;
    }
    match wanted.keys().next() {
        Some(missing) => Err(format!("the archive has no {missing}")),
        None => Ok(()),
    }
}
