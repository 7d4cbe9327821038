//! Images made by hand, for the tests of the image store.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write;

use ring::digest::{SHA256, digest};
use sampan::ids::hex;
use tar::{Builder, EntryType, Header};

pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(digest(&SHA256, bytes).as_ref()))
}

/// An entry of a layer.
pub struct File<'a> {
    pub path: &'a str,
    pub kind: EntryType,
    pub body: &'a [u8],
    pub link: &'a str,
    pub mode: u32,
}

pub fn file<'a>(path: &'a str, body: &'a str) -> File<'a> {
    File { path, kind: EntryType::Regular, body: body.as_bytes(), link: "", mode: 0o644 }
}

pub fn folder(path: &str) -> File<'_> {
    File { path, kind: EntryType::Directory, body: b"", link: "", mode: 0o755 }
}

pub fn link<'a>(kind: EntryType, path: &'a str, link: &'a str) -> File<'a> {
    File { path, kind, body: b"", link, mode: 0o777 }
}

pub fn header(file: &File) -> Header {
    let mut header = Header::new_gnu();
    // Written as they are: the builder would refuse hostile names.
    header.as_old_mut().name[..file.path.len()].copy_from_slice(file.path.as_bytes());
    header.as_old_mut().linkname[..file.link.len()].copy_from_slice(file.link.as_bytes());
    header.set_entry_type(file.kind);
    header.set_size(file.body.len() as u64);
    header.set_mode(file.mode);
    header.set_uid(1000);
    header.set_gid(1001);
    header.set_mtime(1_000_000_000);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    header
}

pub fn layer(files: &[File]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for file in files {
        builder.append(&header(file), file.body).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn add(builder: &mut Builder<Vec<u8>>, path: &str, body: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_size(body.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, body).unwrap();
}

pub fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    serde_json::json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": ids}})
    .to_string()
    .into_bytes()
}

pub fn docker_archive(name: &str, layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    // Layers come first, as `docker save` may write them.
    for (i, layer) in layers.iter().enumerate() {
        add(&mut builder, &format!("{i}/layer.tar"), layer);
    }
    add(&mut builder, "config.json", &config(layers, architecture));
    let members: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": members}]);
    add(&mut builder, "manifest.json", manifest.to_string().as_bytes());
    builder.into_inner().unwrap()
}

/// An OCI layout with one build a platform, its layers compressed by gzip and zstd in turn.
pub fn oci_archive(name: &str, builds: &[(&str, Vec<Vec<u8>>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut blob = |bytes: &[u8], media: &str| {
        let digest = sha256(bytes);
        add(&mut builder, &format!("blobs/sha256/{}", &digest[7..]), bytes);
        serde_json::json!({"mediaType": media, "digest": digest, "size": bytes.len()})
    };
    let mut manifests = Vec::new();
    for (architecture, layers) in builds {
        let packed =
            layers.iter().enumerate().map(|(i, layer)| if i % 2 == 0 { gzip(layer) } else { zstd(layer) });
        let layers_json: Vec<_> = packed.map(|bytes| blob(&bytes, "application/octet-stream")).collect();
        let config = blob(&config(layers, architecture), "application/vnd.oci.image.config.v1+json");
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers_json});
        let mut descriptor =
            blob(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        descriptor["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        manifests.push(descriptor);
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
    let mut top = blob(index.to_string().as_bytes(), "application/vnd.oci.image.index.v1+json");
    top["annotations"] = serde_json::json!({"io.containerd.image.name": name});
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [top]});
    add(&mut builder, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add(&mut builder, "index.json", top.to_string().as_bytes());
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// `docker save` of `test.local/busybox:1`: the machine's package busybox-static, with links to it in `/bin`, and a user
/// `member` who is in the group `club` too.
pub fn busybox(applets: &[&str]) -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("the package busybox-static");
    let paths: Vec<_> = applets.iter().map(|applet| format!("bin/{applet}")).collect();
    let mut files = vec![
        folder("bin"),
        folder("tmp"),
        folder("etc"),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\nmember:x:1500:1500::/:/bin/sh\n"),
        file("etc/group", "root:x:0:\nmember:x:1500:\nclub:x:5000:member\n"),
        File { path: "bin/busybox", kind: EntryType::Regular, body: &program, link: "", mode: 0o755 },
    ];
    files.extend(paths.iter().map(|path| link(EntryType::Symlink, path, "busybox")));
    let architecture = std::process::Command::new("dpkg").arg("--print-architecture").output().unwrap();
    let architecture = String::from_utf8(architecture.stdout).unwrap();
    docker_archive("test.local/busybox:1", &[layer(&files)], architecture.trim())
}
