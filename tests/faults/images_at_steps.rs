//! The image store killed at every step of taking images in and giving them away, and the plug pulled at the same
//! steps: its disk is a file system of its own, of which only what was written back is left.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sampan::{
    crash,
    image::{Depth, ImageStore, Images, Options, Platform},
};
use tar::EntryType;

use crate::{
    common::must,
    images::{docker_archive, file, folder, layer, link},
};

/// Where an importer that is a process of its own finds store and archives.
const STORE: &str = "SAMPAN_TEST_STORE";
/// Metadata reaches this disk without the data it speaks of, and nothing does by itself.
const LOOSE: &str = "loop,data=writeback,noauto_da_alloc,commit=600";

/// A file system in a file, mounted while the value lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        must(Command::new("mount").args(["-o", LOOSE]).arg(image).arg(at));
        Self(at.to_owned())
    }

    fn copy(from: &Path, to: &Path) {
        must(Command::new("cp").arg("--sparse=always").arg(from).arg(to));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The file goes with the folder; who still has it open shows itself there.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn open(root: &Path) -> ImageStore {
    let platform = Platform::linux("arm64", "v8");
    ImageStore::open(Options { platform, ..Options::new(root.join("store")) }).unwrap()
}

/// `old` and `new` share a layer; `again` is `new` with another name.
fn write_archives(to: &Path) {
    let base = layer(&[folder("etc"), file("etc/base", "shared\n")]);
    let old = layer(&[file("etc/old", "an old file\n")]);
    let large = "x".repeat(300_000);
    let new = layer(&[
        file("etc/new", &large),
        link(EntryType::Symlink, "etc/link", "new"),
        link(EntryType::Link, "etc/hard", "etc/new"),
        file("etc/.wh.base", ""),
    ]);
    let last = layer(&[file("last", "of all\n")]);
    let new = [base.clone(), new, last];
    for (name, layers) in [("old", &[base, old][..]), ("new", &new), ("again", &new)] {
        fs::write(to.join(name), docker_archive(&format!("{name}:1"), layers, "arm64")).unwrap();
    }
}

/// What the importer does: a new image, the same by another name, an old one away.
async fn exchange(root: &Path, archives: &Path) {
    let store = open(root);
    for name in ["new", "again"] {
        store.import(&archives.join(name)).await.unwrap();
    }
    if store.find("old:1").is_some() {
        store.remove("old:1").await.unwrap();
    }
}

#[tokio::test]
#[ignore = "a process that the test of steps starts"]
async fn importer() {
    let Ok(place) = std::env::var(STORE) else { return };
    let (root, archives) = place.split_once(':').unwrap();
    exchange(Path::new(root), Path::new(archives)).await;
}

/// Whether every image that the store knows is whole, one is there always, and nothing else is on its disk.
fn assert_whole(root: &Path, when: &str) {
    let store = open(root);
    let known = |name: &str| store.find(name).is_some();
    assert!(known("old:1") || known("again:1") && known("new:1"), "{when}: {:?}", store.list());
    assert!(known("new:1") || !known("again:1"), "{when}");
    for name in ["old:1", "new:1", "again:1"] {
        assert_eq!(store.damage(name), None, "{when}: {name}");
    }
    assert!(store.verify(Depth::Contents).unwrap().is_empty(), "{when}");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join("store/images").join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let images = store.list();
    let layers: BTreeSet<String> = images
        .iter()
        .flat_map(|image| &image.layers)
        .map(|layer| layer.file_name().unwrap().to_str().unwrap().to_owned())
        .flat_map(|number| [format!("{number}.sums"), number])
        .collect();
    assert_eq!(names("layers"), layers, "{when}");
    let configs = images.iter().map(|image| image.id.trim_start_matches("sha256:").to_owned()).collect();
    assert_eq!(names("configs"), configs, "{when}");
}

#[tokio::test]
async fn a_store_may_die_or_lose_its_power_at_every_step() {
    let dir = tempfile::Builder::new().prefix("sampan-store-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (first, disk, root) = (path("first.img"), path("disk.img"), path("mounted"));
    write_archives(dir.path());
    fs::File::create(&first).unwrap().set_len(128 << 20).unwrap();
    must(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&first));
    {
        let _mounted = Disk::mount(&first, &root);
        open(&root).import(&path("old")).await.unwrap();
    }
    let mut deaths = 0;
    loop {
        Disk::copy(&first, &disk);
        let mounted = Disk::mount(&disk, &root);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "images_at_steps::importer", "--ignored"])
            .env(STORE, format!("{}:{}", root.display(), dir.path().display()))
            .env(crash::IMAGES, (deaths + 1).to_string())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        let died = status.signal() == Some(libc::SIGKILL);
        assert!(died || status.success(), "{status}");
        // The plug now; or a moment later, when the journal has been written and the data of files has not.
        let cuts = ["cut", "later"].map(|name| (path(name), format!("{name} at {}", deaths + 1)));
        Disk::copy(&disk, &cuts[0].0);
        fs::File::create(root.join("poke")).unwrap().sync_all().unwrap();
        Disk::copy(&disk, &cuts[1].0);
        assert_whole(&root, &format!("killed at {}", deaths + 1));
        exchange(&root, dir.path()).await;
        assert_whole(&root, &format!("after being killed at {}", deaths + 1));
        drop(mounted);
        for (cut, when) in cuts {
            let _mounted = Disk::mount(&cut, &root);
            let marker = root.join("store/images/running");
            if marker.exists() {
                fs::write(marker, "another boot").unwrap();
            }
            assert_whole(&root, &when);
            exchange(&root, dir.path()).await;
            assert_whole(&root, &format!("after {when}"));
        }
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths >= 30, "only {deaths} steps");
}
