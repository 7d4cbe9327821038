//! The demo image: this binary as a container image, so that a first run needs no network.
//!
//! In: the running static binary. Out: the pinned image `sampan.dev/demo:latest`. Its only layer is made by the
//! same unpacker from a tar that exists only as a stream; then the copy gives way to a hard link of
//! the binary where one is possible, so the image takes no space of its own.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex},
};

use tar::{EntryType, Header};

use super::{
    Error, Image,
    store::{Content, NewImage},
    unpack,
};
use crate::{
    config::Least,
    oci::{Platform, Reference},
};

/// The image's full name.
pub const DEMO_IMAGE: &str = "sampan.dev/demo:latest";
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// Whether a reference means the demo image.
pub fn is_demo(reference: &str) -> bool {
    reference.starts_with("sampan.dev/demo")
        && reference.parse::<Reference>().is_ok_and(|parsed| parsed.to_string() == DEMO_IMAGE)
}

/// The demo image of `binary`, made unless it is there.
pub fn ensure(content: &Arc<Content>, binary: &Path) -> Result<Arc<Image>, Error> {
    static MAKING: Mutex<()> = Mutex::new(());
    let refused = |message: String| Error::Import { path: binary.to_owned(), message };
    let _one = MAKING.lock().expect("no thread panics with the lock");
    let metadata = fs::metadata(binary).map_err(|error| refused(error.to_string()))?;
    let stamp = format!(
        "{}:{}:{}:{}.{}",
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let before = content.find(DEMO_IMAGE);
    if let Some(image) = &before
        && content.image_record(&image.id).is_some_and(|record| record.made_from.as_ref() == Some(&stamp))
    {
        return Ok(image.clone());
    }
    let mut file = File::open(binary).map_err(|error| refused(error.to_string()))?;
    if !is_static(&mut file).map_err(|error| refused(error.to_string()))? {
        return Err(refused(
            "the demo image needs a statically linked sampan; this one is dynamically linked".to_owned(),
        ));
    }
    let layer = layer_stream(file, metadata.len()).map_err(|error| refused(error.to_string()))?;
    let unpacked = content
        .make_layer(|root, sums| {
            let unpacked = unpack::unpack(root, sums, layer, None, Least::Percent(0.0))?;
            share_binary(binary, &metadata, &root.join("sampan"));
            Ok(unpacked)
        })
        .map_err(|error| refused(error.to_string()))?;
    let image = content.record(NewImage {
        config: config(&unpacked.diff_id),
        names: vec![DEMO_IMAGE.to_owned()],
        pinned: true,
        made_from: Some(stamp),
        ..NewImage::default()
    })?;
    if let Some(old) = before.filter(|old| old.id != image.id) {
        content.pin(&old.id, false)?;
    }
    Ok(image)
}

/// Replaces the copy by a hard link where the binary may be run by everybody and lies on the same file system.
fn share_binary(binary: &Path, metadata: &fs::Metadata, copy: &Path) {
    if metadata.mode() & 0o7777 != 0o755 || metadata.uid() != 0 {
        return;
    }
    let link = copy.with_extension("link");
    let linked = nix::unistd::linkat(None, binary, None, &link, nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW)
        .map_err(io::Error::from)
        .and_then(|()| fs::rename(&link, copy));
    if let Err(error) = linked {
        tracing::debug!(%error, "the demo image has a copy of the binary");
    }
}

/// The image's configuration.
fn config(diff_id: &str) -> Vec<u8> {
    let platform = Platform::host();
    let mut config = serde_json::json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "Entrypoint": ["/sampan", "demo"],
            "Cmd": ["web"],
            "Env": ["PATH=/bin"],
            "WorkingDir": "/",
            "ExposedPorts": {"8080/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    if let Some(variant) = platform.variant {
        config["variant"] = variant.into();
    }
    config.to_string().into_bytes()
}

/// The layer as a tar, always the same for the same binary.
fn layer_stream(binary: File, size: u64) -> io::Result<impl Read> {
    let mut start = tar::Builder::new(Vec::new());
    for (folder, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("proc/", 0o755),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
    ] {
        start.append_data(&mut header(EntryType::Directory, mode, 0), folder, io::empty())?;
    }
    for (path, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        start.append_data(
            &mut header(EntryType::Regular, 0o644, text.len() as u64),
            path,
            text.as_bytes(),
        )?;
    }
    for applet in crate::demo::applets() {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        start.append_link(&mut header, format!("bin/{applet}"), "/sampan")?;
    }
    let mut start = start.into_inner()?;
    // The end mark that the builder wrote comes after the binary.
    start.truncate(start.len() - 1024);
    let mut header = header(EntryType::Regular, 0o755, size);
    header.set_path("sampan")?;
    header.set_cksum();
    start.extend_from_slice(header.as_bytes());
    let padding = (512 - size % 512) % 512 + 1024;
    Ok(io::Cursor::new(start).chain(binary.take(size)).chain(io::repeat(0).take(padding)))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Whether an ELF file runs without an interpreter (elf(5): no `PT_INTERP` program header). Leaves the file
/// at its start.
fn is_static(file: &mut File) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let not_elf = || io::Error::new(io::ErrorKind::InvalidData, "not an ELF file of this machine");
    let mut start = [0; 64];
    file.read_exact(&mut start)?;
    let little = start[5] == 1;
    if &start[..4] != b"\x7fELF" || little != cfg!(target_endian = "little") {
        return Err(not_elf());
    }
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&start[at..at + bytes]);
        u64::from_le_bytes(value)
    };
    let (table, entry, count) = match start[4] {
        2 => (number(32, 8), number(54, 2), number(56, 2)),
        1 => (number(28, 4), number(42, 2), number(44, 2)),
        _ => return Err(not_elf()),
    };
    let mut interpreted = false;
    for i in 0..count {
        let mut kind = [0; 4];
        file.seek(SeekFrom::Start(table + i * entry))?;
        file.read_exact(&mut kind)?;
        interpreted |= u32::from_ne_bytes(kind) == PT_INTERP;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(!interpreted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_demo_reference_is_the_demo_image() {
        for (reference, want) in [
            ("sampan.dev/demo", true),
            ("sampan.dev/demo:latest", true),
            ("sampan.dev/demo:1", false),
            ("sampan.dev/demo2", false),
            ("demo", false),
        ] {
            assert_eq!(is_demo(reference), want, "{reference}");
        }
    }

    #[test]
    fn the_layer_is_a_tar_of_whole_blocks_for_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("binary");
        for size in [0, 1, 511, 512, 513] {
            fs::write(&path, vec![7; size]).unwrap();
            let mut bytes = Vec::new();
            layer_stream(File::open(&path).unwrap(), size as u64).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() % 512, 0);
            let mut archive = tar::Archive::new(bytes.as_slice());
            let names: Vec<String> = archive
                .entries()
                .unwrap()
                .map(|e| e.unwrap().path().unwrap().display().to_string())
                .collect();
            assert!(
                names.contains(&"bin/sh".to_owned()) && names.last().is_some_and(|last| last == "sampan")
            );
        }
    }
}
