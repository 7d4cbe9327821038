//! The image store on a real file system: archives in, folders for overlayfs out. Needs root (device nodes,
//! overlay mounts).

mod images;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use sampan::{
    config::Least,
    image::{Depth, Error, Image, ImageStore, Images, Options, Platform},
};
use tar::{Builder, EntryType};

use images::{File, add, config, docker_archive, file, folder, gzip, header, layer, link, oci_archive};

struct Bench {
    folder: tempfile::TempDir,
    store: Option<ImageStore>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut bench = Self { folder, store: None };
        bench.open();
        bench
    }

    fn open(&mut self) {
        self.store = None;
        let options =
            Options { platform: Platform::linux("arm64", "v8"), ..Options::new(self.folder.path()) };
        self.store = Some(ImageStore::open(options).unwrap());
    }

    fn store(&self) -> &ImageStore {
        self.store.as_ref().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn import(&self, archive: &[u8]) -> Result<std::sync::Arc<Image>, Error> {
        let path = self.path("archive");
        fs::write(&path, archive).unwrap();
        self.store().import(&path).await.map(|mut images| images.remove(0))
    }
}

/// An overlay mount that goes with the value.
struct Overlay(PathBuf);

impl Overlay {
    fn new(at: PathBuf, image: &Image) -> Self {
        fs::create_dir(&at).unwrap();
        let lower: Vec<String> = image.layers.iter().rev().map(|layer| layer.display().to_string()).collect();
        let options = format!("lowerdir={}", lower.join(":"));
        nix::mount::mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            nix::mount::MsFlags::MS_RDONLY,
            Some(options.as_str()),
        )
        .unwrap();
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A disk of so many bytes that goes with the value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, bytes: u64) -> Self {
        fs::create_dir(at).unwrap();
        let size = format!("size={bytes}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("disk"), at, Some("tmpfs"), flags, Some(size.as_str())).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What the two layers of the test below come to.
fn assert_stacked(at: &Path) {
    assert_eq!(names(at), set(&["bin", "hidden", "keep", "lib", "null", "swapped"]));
    assert_eq!(names(&at.join("keep")), set(&["a"]));
    assert_eq!(names(&at.join("hidden")), set(&["new"]));
    assert_eq!(names(&at.join("swapped")), set(&["new"]));
    assert_eq!(fs::read_to_string(at.join("keep/a")).unwrap(), "top");
    assert_eq!(names(&at.join("bin")), set(&["alias", "through-link", "tool"]));
    let tool = fs::metadata(at.join("bin/tool")).unwrap();
    assert_eq!(
        (tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.mtime()),
        (0o4755, 1000, 1001, 1_000_000_000)
    );
    assert_eq!(tool.nlink(), 2);
    assert_eq!(fs::metadata(at.join("hidden")).unwrap().mtime(), 1_000_000_000);
    let null = fs::metadata(at.join("null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == 0x103);
}

#[tokio::test]
async fn layers_stack_as_the_image_says() {
    let base = layer(&[
        folder("./"),
        folder("keep/"),
        file("keep/a", "base"),
        file("keep/b", "base"),
        folder("hidden/"),
        file("hidden/old", "base"),
        folder("swapped/"),
        file("swapped/old", "base"),
        file("gone", "base"),
        File { mode: 0o4755, ..file("bin/tool", "x") },
        link(EntryType::Symlink, "lib", "bin"),
        file("lib/through-link", "y"),
        link(EntryType::Link, "bin/alias", "bin/tool"),
        link(EntryType::Char, "null", ""),
    ]);
    let top = layer(&[
        file("keep/a", "top"),
        file("keep/.wh.b", ""),
        folder("hidden/"),
        file("hidden/.wh..wh..opq", ""),
        file("hidden/new", "top"),
        file(".wh.gone", ""),
        // Removed and made again in one layer: only the new content shows.
        file(".wh.swapped", ""),
        file("swapped/new", "top"),
    ]);
    let bench = Bench::new();
    for packed in [
        docker_archive("stack", &[base.clone(), top.clone()], "arm64"),
        gzip(&oci_archive(
            "docker.io/library/stack:latest",
            &[("amd64", vec![layer(&[file("wrong", "")])]), ("arm64", vec![base, top])],
        )),
    ] {
        let image = bench.import(&packed).await.unwrap();
        assert_eq!(image.names, ["docker.io/library/stack:latest"]);
        let mount = Overlay::new(bench.path("mnt"), &image);
        assert_stacked(&mount.0);
        drop(mount);
        fs::remove_dir(bench.path("mnt")).unwrap();
    }
    // The same layers, imported twice, are there once.
    assert_eq!(names(&bench.path("images/layers")).len(), 2 * 2);
    assert_eq!(bench.store().list().len(), 1);
    let image = bench.store().find("stack").unwrap();
    assert_eq!(image.digests.len(), 1);
    for reference in [image.digests[0].as_str(), image.id.as_str(), &image.id[7..19]] {
        assert_eq!(bench.store().find(reference).unwrap().id, image.id, "{reference}");
    }
    // What is exported has the same files elsewhere, deletions included.
    let archive = bench.path("exported.tar");
    bench.store().export("stack", &archive, |_| {}).unwrap();
    let other = Bench::new();
    let copy = other.store().import(&archive).await.unwrap().remove(0);
    assert_eq!(copy.names, image.names);
    let mount = Overlay::new(other.path("mnt"), &copy);
    assert_stacked(&mount.0);
    let twice = other.path("twice.tar");
    other.store().export("stack", &twice, |_| {}).unwrap();
    assert_eq!(other.store().import(&twice).await.unwrap()[0].id, copy.id, "packing is always the same");
}

#[tokio::test]
async fn archives_put_into_the_folder_are_imported_once() {
    let bench = Bench::new();
    let archive = |name: &str| docker_archive(name, &[layer(&[file(name, "x")])], "arm64");
    fs::write(bench.path("images/before.tar"), archive("before")).unwrap();
    let tasks = sampan::tasks::Tasks::new();
    let store = bench.store().clone();
    tasks.spawn("inbox", |stop| sampan::image::inbox::run(store, stop));
    let mut arrivals = bench.store().arrivals().unwrap();
    let arrived = async |arrivals: &mut tokio::sync::watch::Receiver<u64>, name: &str| {
        while bench.store().find(name).is_none() {
            arrivals.changed().await.unwrap();
        }
    };
    let limit = std::time::Duration::from_mins(1);
    tokio::time::timeout(limit, arrived(&mut arrivals, "before")).await.unwrap();
    fs::write(bench.path("later"), gzip(&archive("later"))).unwrap();
    fs::rename(bench.path("later"), bench.path("images/later.tar.gz")).unwrap();
    tokio::time::timeout(limit, arrived(&mut arrivals, "later")).await.unwrap();
    bench.store().remove("before").await.unwrap();
    fs::write(bench.path("images/third.tar"), archive("third")).unwrap();
    tokio::time::timeout(limit, arrived(&mut arrivals, "third")).await.unwrap();
    assert!(bench.store().find("before").is_none(), "what was removed does not come back");
    tasks.stop().await;
}

#[tokio::test]
async fn hostile_layers_write_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("victim");
    let victim = target.display().to_string();
    let up = format!("../../../../../../../../../..{victim}");
    let folder_out = outside.path().display().to_string();
    let deep = "d/".repeat(48);
    let nested: Vec<String> = (0..8).map(|i| format!("{deep}{i}")).collect();
    let bench = Bench::new();
    let refused: &[(&str, Vec<File>)] = &[
        ("parent", vec![file(&up, "x")]),
        ("hard link outside", vec![link(EntryType::Link, "a", "../../etc/passwd")]),
        ("hard link to the host", vec![link(EntryType::Link, "a", "/etc/shadow")]),
        ("hard link to a folder", vec![folder("d"), link(EntryType::Link, "a", "d")]),
        ("whiteout of the parent", vec![file("a/.wh...", "")]),
        ("file as folder", vec![link(EntryType::Fifo, ".", "")]),
        ("unknown type", vec![File { kind: EntryType::new(b'Z'), ..file("z", "") }]),
        ("dangling link as folder", vec![link(EntryType::Symlink, "a", "/no/where"), file("a/b", "x")]),
    ];
    for (what, files) in refused {
        let result = bench.import(&docker_archive("bad", &[layer(files)], "arm64")).await;
        assert!(matches!(result, Err(Error::Import { .. })), "{what}: {result:?}");
    }
    // Links out of the image resolve inside of it.
    let inside = [
        link(EntryType::Symlink, "out", &folder_out),
        folder(folder_out.trim_start_matches('/')),
        file("out/victim", "x"),
        link(EntryType::Symlink, "file", &victim),
        file("file", "replaced, not followed"),
        file(&nested[0], "x"),
    ];
    let image = bench.import(&docker_archive("tame", &[layer(&inside)], "arm64")).await.unwrap();
    assert!(image.layers[0].join(victim.trim_start_matches('/')).exists());
    assert!(image.layers[0].join("file").symlink_metadata().unwrap().is_file());
    assert!(!target.exists());
    assert_eq!(names(&bench.path("images/layers")).len(), 2, "refused layers leave nothing");
}

/// A layer that is small on its way and unpacks to one file of `size` bytes, so it says, and to `zeros` bytes.
fn bomb(size: u64, zeros: u64) -> Vec<u8> {
    let mut entry = header(&file("bomb", ""));
    entry.set_size(size);
    entry.set_cksum();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(entry.as_bytes()).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(zeros), &mut packed).unwrap();
    packed.finish().unwrap()
}

/// An archive of one layer whose configuration promises any digest.
fn archive_of(layer: &[u8]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    add(&mut archive, "l", layer);
    add(&mut archive, "c", &config(&[layer.to_vec()], "arm64"));
    add(&mut archive, "manifest.json", br#"[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]"#);
    archive.into_inner().unwrap()
}

#[tokio::test]
async fn a_layer_that_swells_is_refused_before_the_disk_is_full() {
    const DISK_BYTES: u64 = 256 << 20;
    let mut bench = Bench::new();
    let disk = Tmpfs::mount(&bench.path("small"), DISK_BYTES);
    // Half of it is what the node keeps.
    let reserve = Least::Percent(50.0);
    bench.store = None;
    let options =
        Options { platform: Platform::linux("arm64", "v8"), reserve, ..Options::new(disk.0.clone()) };
    bench.store = Some(ImageStore::open(options).unwrap());
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&disk.0).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let before = free();
    // A file says how large it is before it comes; many small ones are noticed on the way.
    let whole = bomb(8 << 30, 8 << 20);
    assert!(whole.len() < 1 << 20);
    let many: Vec<_> = (0..200).map(|n| format!("f{n}")).collect();
    let body = "0".repeat(1 << 20);
    let many = gzip(&layer(&many.iter().map(|name| file(name, &body)).collect::<Vec<_>>()));
    assert!(many.len() < 4 << 20);
    let endless = bomb(0, 16 << 20);
    // A size that no file can have must not turn into one that it can.
    let mut impossible = header(&file("x", ""));
    impossible.as_old_mut().size = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    impossible.set_cksum();
    for (what, layer, want) in [
        ("one file", &whole, "no space left"),
        ("many files", &many, "no space left"),
        ("behind the end", &endless, "bytes after its end"),
        ("an impossible size", &impossible.as_bytes().to_vec(), "a file of 18446744073709551615 bytes"),
    ] {
        match bench.import(&archive_of(layer)).await {
            Err(Error::Import { message, .. }) => {
                assert!(message.contains(want), "{what}: {message} has no {want}");
            }
            other => panic!("{what}: {other:?}"),
        }
        assert!(names(&disk.0.join("images/layers")).is_empty(), "{what}: nothing is left");
        assert_eq!(before, free(), "{what}: all of the disk is back");
    }
    // What fits is still taken.
    let image = bench.import(&docker_archive("x:1", &[layer(&[file("a", "b")])], "arm64")).await.unwrap();
    assert_eq!(image.size_bytes, 1);
}

#[tokio::test]
async fn an_image_of_a_hundred_thousand_layers_is_refused_unread() {
    const LAYERS: usize = 100_000;
    let bench = Bench::new();
    let one = layer(&[file("a", "")]);
    let ids = vec![images::sha256(&one); LAYERS];
    let config = serde_json::json!({"architecture": "arm64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let manifest = serde_json::json!([{"Config": "c", "RepoTags": ["x:1"], "Layers": vec!["l"; LAYERS]}]);
    let mut archive = Builder::new(Vec::new());
    add(&mut archive, "l", &one);
    add(&mut archive, "c", config.to_string().as_bytes());
    add(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    let many = archive.into_inner().unwrap();
    // As many members of an archive.
    let mut archive = Builder::new(Vec::new());
    for n in 0..=LAYERS {
        add(&mut archive, &format!("{n}/layer.tar"), b"");
    }
    let members = archive.into_inner().unwrap();
    for (archive, want) in
        [(many, "the image has 100000 layers (at most 127)"), (members, "too many entries in the archive")]
    {
        match bench.import(&archive).await {
            Err(Error::Import { message, .. }) => assert!(message.contains(want), "{message}"),
            other => panic!("{want}: {other:?}"),
        }
    }
    assert!(names(&bench.path("images/layers")).is_empty());
}

#[tokio::test]
async fn wrong_archives_are_refused_by_name() {
    let bench = Bench::new();
    let good = layer(&[file("a", "x")]);
    let other = layer(&[file("b", "x")]);
    let result = bench.import(&docker_archive("x", std::slice::from_ref(&good), "s390x")).await;
    assert!(matches!(&result, Err(Error::Platform { found, .. }) if found == "linux/s390x"), "{result:?}");
    // The configuration promises another layer.
    let mut lying = Builder::new(Vec::new());
    add(&mut lying, "l", &other);
    add(&mut lying, "c", &config(std::slice::from_ref(&good), "arm64"));
    add(&mut lying, "manifest.json", br#"[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]"#);
    let whole = docker_archive("x", &[good], "arm64");
    for (archive, want) in [
        (lying.into_inner().unwrap(), "unexpected content"),
        (b"PK\x03\x04 some zip".repeat(100), "checksum"),
        (Vec::new(), "neither a docker-archive"),
        (whole[..700].to_vec(), "neither a docker-archive"),
        (gzip(&whole)[..200].to_vec(), ""),
        (b"BZh9".repeat(200), "bzip2"),
    ] {
        match bench.import(&archive).await {
            Err(Error::Import { message, .. }) => assert!(message.contains(want), "{message} has no {want}"),
            other => panic!("{want}: {other:?}"),
        }
    }
    assert!(bench.store().list().is_empty());
}

#[tokio::test]
async fn images_outlive_the_daemon_and_damage_is_found_after_a_power_cut() {
    let mut bench = Bench::new();
    let image = bench
        .import(&docker_archive("a:1", &[layer(&[file("x", "bytes"), file("y", "more")])], "arm64"))
        .await;
    let image = image.unwrap();
    let marker = bench.path("images/running");
    assert!(marker.exists());
    let second = ImageStore::open(Options::new(bench.folder.path()));
    assert!(matches!(second, Err(Error::Io { .. })), "one process at a time");
    bench.open();
    assert_eq!(bench.store().find("a:1").unwrap().layers, image.layers);
    // Leftovers of a killed unpack go away; what is recorded stays.
    bench.store = None;
    assert!(!marker.exists());
    fs::create_dir(bench.path("images/layers/77")).unwrap();
    // A power cut: the marker names another boot, and a file lost its bytes.
    fs::write(&marker, "another boot").unwrap();
    bench.open();
    assert!(!bench.path("images/layers/77").exists());
    assert!(bench.store().find("a:1").is_some());
    fs::write(image.layers[0].join("x"), "bytez").unwrap();
    assert!(bench.store().verify(Depth::Sizes).unwrap().is_empty());
    assert_eq!(bench.store().verify(Depth::Contents).unwrap(), ["docker.io/library/a:1"]);
    assert!(bench.store().find("a:1").is_none());
    assert!(bench.store().damage("a:1").unwrap().contains("import it again"));
    bench
        .import(&docker_archive("a:1", &[layer(&[file("x", "bytes"), file("y", "more")])], "arm64"))
        .await
        .unwrap();
    let image = bench.store().find("a:1").unwrap();
    bench.store = None;
    fs::write(image.layers[0].join("x"), "").unwrap();
    fs::write(&marker, "another boot").unwrap();
    bench.open();
    assert!(bench.store().find("a:1").is_none(), "a truncated file is found at open");
    assert!(!image.layers[0].exists());
}

#[tokio::test]
async fn removal_takes_the_last_name_and_unshared_layers_only() {
    let bench = Bench::new();
    let (base, one, two) = (layer(&[file("b", "")]), layer(&[file("1", "1")]), layer(&[file("2", "22")]));
    let first = bench.import(&docker_archive("a:1", &[base.clone(), one], "arm64")).await.unwrap();
    let second = bench.import(&docker_archive("a:2", &[base, two], "arm64")).await.unwrap();
    bench.store().set_in_use([first.id.clone()].into());
    assert!(matches!(bench.store().remove("a:1").await, Err(Error::InUse(_))));
    bench.store().set_in_use(BTreeSet::new());
    bench.store().remove("a:1").await.unwrap();
    assert!(bench.store().find("a:1").is_none());
    assert!(!first.layers[1].exists() && first.layers[0].exists() && second.layers[1].exists());
    assert!(matches!(bench.store().remove("a:1").await, Err(Error::NotFound(_))));
    // Imported images are never collected, however full the disk.
    let collected = bench.store().collect_now(0, 0).unwrap();
    assert!(collected.images.is_empty() && bench.store().find("a:2").is_some());
}

#[tokio::test]
async fn the_demo_image_is_this_binary() {
    let bench = Bench::new();
    assert!(bench.store().list().is_empty(), "made when it is asked for");
    let image = bench.store().find("sampan.dev/demo").unwrap();
    assert!(image.pinned);
    let pulled = bench.store().pull("sampan.dev/demo:latest", &[], None).await.unwrap();
    assert_eq!(pulled.id, image.id);
    let inside = fs::metadata(image.layers[0].join("sampan")).unwrap();
    let own = fs::metadata("/proc/self/exe").unwrap();
    assert_eq!(inside.len(), own.len());
    assert_eq!(inside.mode() & 0o777, 0o755);
    assert_eq!(fs::read_link(image.layers[0].join("bin/sh")).unwrap(), Path::new("/sampan"));
    assert_eq!(fs::metadata(image.layers[0].join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_ref().unwrap(), &["/sampan", "demo"]);
    assert!(bench.store().verify(Depth::Contents).unwrap().is_empty());
}
