//! Exports an image as one tar that every tool reads: an OCI image layout with Docker's `manifest.json` beside it.
//!
//! In: a recorded image. Out: a file. The store keeps unpacked layers only, so they are packed anew: whiteouts and
//! opaque folders become `.wh.` files again, and the configuration names the new layers; the copy has another id
//! than the original and the same files. Each layer is walked twice, first for its digest, then into the file,
//! so that nothing is stored in between.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{
    Error, Image, Progress, Reference,
    digest::{hex_part, named, sha256},
    manifest::{Descriptor, OCI_INDEX, OCI_MANIFEST},
    sys,
};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OPAQUE: &str = "trusted.overlay.opaque";

/// Writes `image` with its `config` to `path`; the file is complete when it has that name. `progress` hears of
/// the bytes of each layer.
pub fn export(image: &Image, config: &[u8], path: &Path, progress: impl Fn(Progress)) -> Result<(), Error> {
    let partial =
        path.with_file_name(format!(".{}.partial", path.file_name().unwrap_or_default().to_string_lossy()));
    let written = write(image, config, &partial, progress).and_then(|()| fs::rename(&partial, path));
    written.map_err(|source| {
        // What is left of it is of no use; it may not be there.
        let _ = fs::remove_file(&partial);
        Error::Io { operation: "export to", path: path.to_owned(), source }
    })
}

fn write(image: &Image, config: &[u8], path: &Path, progress: impl Fn(Progress)) -> io::Result<()> {
    let mut layers = Vec::new();
    for root in &image.layers {
        let mut sink = Measured { inner: io::sink(), hash: Context::new(&SHA256), bytes: 0, tell: &|_| {} };
        pack(root, &mut sink)?;
        layers.push(descriptor(LAYER, named(sink.hash.finish().as_ref()), sink.bytes));
    }
    let config = with_layers(config, &layers)?;
    let config_blob = descriptor(CONFIG, sha256(&config), config.len() as u64);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_blob, "layers": layers,
    }))?;
    let (index, docker) = names(image, &manifest, &config_blob, &layers)?;

    let mut tar = Builder::new(BufWriter::new(File::create(path)?));
    small(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    small(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
    small(&mut tar, "manifest.json", &serde_json::to_vec(&docker)?)?;
    small(&mut tar, &blob(&config_blob.digest), &config)?;
    small(&mut tar, &blob(&sha256(&manifest)), &manifest)?;
    let mut done: Vec<(String, u64, u64)> = layers.iter().map(|l| (l.digest.clone(), 0, l.size)).collect();
    let mut there: Vec<&str> = Vec::new();
    for (n, (root, layer)) in image.layers.iter().zip(&layers).enumerate() {
        if there.contains(&layer.digest.as_str()) {
            continue;
        }
        there.push(&layer.digest);
        let mut head = header(EntryType::Regular, 0o644, layer.size);
        head.set_path(blob(&layer.digest))?;
        head.set_cksum();
        let out = tar.get_mut();
        out.write_all(head.as_bytes())?;
        let shown = std::cell::RefCell::new(&mut done);
        let tell = |bytes: u64| {
            let mut shown = shown.borrow_mut();
            shown[n].1 = bytes;
            progress(Progress { layers: shown.clone() });
        };
        let mut measured = Measured { inner: &mut *out, hash: Context::new(&SHA256), bytes: 0, tell: &tell };
        pack(root, &mut measured)?;
        let bytes = measured.bytes;
        if named(measured.hash.finish().as_ref()) != layer.digest {
            return Err(io::Error::other("a layer changed while it was exported"));
        }
        let padding = (512 - bytes % 512) % 512;
        out.write_all(&vec![0; padding as usize])?;
    }
    let file = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

fn small<W: Write>(tar: &mut Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, 0o644, bytes.len() as u64), name, bytes)
}

fn descriptor(kind: &str, digest: String, size: u64) -> Descriptor {
    Descriptor { media_type: kind.to_owned(), digest, size, ..Descriptor::default() }
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", hex_part(digest).unwrap_or_default())
}

/// The configuration with the digests of the layers as they are packed.
fn with_layers(config: &[u8], layers: &[Descriptor]) -> io::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(config)?;
    config["rootfs"]["diff_ids"] = layers.iter().map(|layer| layer.digest.clone()).collect();
    Ok(serde_json::to_vec(&config)?)
}

/// The index and Docker's manifest, which name the image.
fn names(
    image: &Image,
    manifest: &[u8],
    config: &Descriptor,
    layers: &[Descriptor],
) -> io::Result<(Value, Value)> {
    let digest = sha256(manifest);
    let entry = |name: Option<&String>| -> io::Result<Value> {
        let mut entry =
            serde_json::to_value(descriptor(OCI_MANIFEST, digest.clone(), manifest.len() as u64))?;
        if let Some(name) = name {
            let tag = name.parse::<Reference>().ok().and_then(|r| r.tag).unwrap_or_default();
            entry["annotations"] = json!({
                "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
            });
        }
        Ok(entry)
    };
    let manifests = if image.names.is_empty() {
        vec![entry(None)?]
    } else {
        image.names.iter().map(|name| entry(Some(name))).collect::<io::Result<_>>()?
    };
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let docker = json!([{
        "Config": blob(&config.digest),
        "RepoTags": image.names,
        "Layers": layers.iter().map(|layer| blob(&layer.digest)).collect::<Vec<_>>(),
    }]);
    Ok((index, docker))
}

/// Counts and hashes what is written.
struct Measured<'a, W> {
    inner: W,
    hash: Context,
    bytes: u64,
    tell: &'a dyn Fn(u64),
}

impl<W: Write> Write for Measured<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        (self.tell)(self.bytes);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Packs an unpacked layer, always the same for the same files.
fn pack(root: &Path, out: &mut impl Write) -> io::Result<()> {
    // Large writes: every one is hashed and told.
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 18, out));
    let mut links: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(folder) = waiting.pop() {
        let mut entries: Vec<_> = fs::read_dir(root.join(&folder))?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in &entries {
            let path = folder.join(entry.file_name());
            append(&mut tar, root, &path, &mut links)?;
            if entry.file_type()?.is_dir() {
                waiting.push(path);
            }
        }
    }
    tar.into_inner()?.flush()
}

fn append<W: Write>(
    tar: &mut Builder<W>,
    root: &Path,
    path: &Path,
    links: &mut BTreeMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full)?;
    let kind = meta.file_type();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if kind.is_char_device() && meta.rdev() == 0 {
        let hidden = path.with_file_name(format!(".wh.{name}"));
        return tar.append_data(&mut header(EntryType::Regular, 0o644, 0), hidden, io::empty());
    }
    let mut head = Header::new_gnu();
    head.set_mode(meta.mode() & 0o7777);
    head.set_uid(u64::from(meta.uid()));
    head.set_gid(u64::from(meta.gid()));
    head.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    head.set_size(0);
    if !kind.is_dir()
        && meta.nlink() > 1
        && let Some(first) = links.get(&(meta.dev(), meta.ino()))
    {
        head.set_entry_type(EntryType::Link);
        return tar.append_link(&mut head, path, first);
    }
    links.insert((meta.dev(), meta.ino()), path.to_owned());
    let mut opaque = false;
    let mut attributes = Vec::new();
    for (key, value) in sys::xattrs(&full)? {
        if key == OPAQUE {
            opaque = true;
        } else if !key.starts_with("trusted.overlay.") {
            attributes.push((format!("SCHILY.xattr.{key}"), value));
        }
    }
    if !attributes.is_empty() {
        let records: Vec<u8> = attributes.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        let mut head = header(EntryType::XHeader, 0o644, records.len() as u64);
        tar.append_data(&mut head, "pax", records.as_slice())?;
    }
    if kind.is_dir() {
        head.set_entry_type(EntryType::Directory);
        tar.append_data(&mut head, path, io::empty())?;
        if opaque {
            let mark = path.join(".wh..wh..opq");
            tar.append_data(&mut header(EntryType::Regular, 0o644, 0), mark, io::empty())?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        head.set_entry_type(EntryType::Symlink);
        return tar.append_link(&mut head, path, fs::read_link(&full)?);
    }
    if kind.is_file() {
        head.set_entry_type(EntryType::Regular);
        head.set_size(meta.len());
        return tar.append_data(&mut head, path, File::open(&full)?);
    }
    if kind.is_fifo() {
        head.set_entry_type(EntryType::Fifo);
    } else if kind.is_char_device() || kind.is_block_device() {
        head.set_entry_type(if kind.is_block_device() { EntryType::Block } else { EntryType::Char });
        head.set_device_major(nix::sys::stat::major(meta.rdev()) as u32)?;
        head.set_device_minor(nix::sys::stat::minor(meta.rdev()) as u32)?;
    } else {
        // A socket means nothing without the process that made it.
        return Ok(());
    }
    tar.append_data(&mut head, path, io::empty())
}

/// `LENGTH KEY=VALUE\n`, the length counting itself (pax(1), "pax Extended Header").
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_count_themselves() {
        for size in [1, 3, 4, 5, 92, 93, 94, 95, 992, 993, 994] {
            let record = pax_record("k", &vec![b'v'; size]);
            let said: usize = String::from_utf8_lossy(&record).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(record.len(), said, "{size}");
        }
    }
}
