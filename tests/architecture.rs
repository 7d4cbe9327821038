//! Holds the picture of ARCHITECTURE.md against the code: imports go down only, and the rules that
//! name single rooms.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Rooms by floor, the lowest first. Rooms of the first floor are one heap of leaves and may import
/// each other; on the others they do not.
const FLOORS: &[&[&str]] = &[
    &[
        "check", "config", "crash", "ids", "clock", "tasks", "kinds", "manifest", "patch", "streams",
        "trust", "http", "memory", "demo", "usage", "oci", "install",
    ],
    &["store", "mqtt", "runtime", "image", "net"],
    &["objects", "control"],
    &["api", "controllers", "scheduler", "dispatch", "node", "dns", "ingress"],
    &["app"],
    &["cli"],
    &["main", "lib"],
];

/// (from, to) that the floors would allow and that must not be.
const FORBIDDEN: &[(&str, &str)] = &[
    ("node", "store"),
    ("node", "objects"),
    ("controllers", "mqtt"),
    ("controllers", "runtime"),
    ("scheduler", "mqtt"),
    ("runtime", "kinds"),
    ("net", "kinds"),
    ("image", "kinds"),
    ("api", "mqtt"),
    ("dns", "objects"),
    ("ingress", "objects"),
    ("dns", "store"),
    ("ingress", "store"),
];

fn may_import(from: &str, to: &str, floors: &BTreeMap<&str, usize>) -> bool {
    let Some(a) = floors.get(from) else {
        panic!("src/{from} is on no floor: put it into ARCHITECTURE.md and this test")
    };
    let b = &floors[to];
    (b < a || *b == 0 && *a == 0) && !FORBIDDEN.contains(&(from, to))
}

fn sources() -> (PathBuf, Vec<PathBuf>) {
    fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    (src, files)
}

fn room_of(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_string_lossy().into_owned()
}

/// The rooms that a text names as `crate::room`, also in grouped `use crate::{…}`.
fn imports(text: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut rooms = Vec::new();
    for (at, found) in text.match_indices("crate::") {
        let rest = &text[at + found.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.push(word(rest));
            continue;
        };
        rooms.push(word(group));
        let mut depth = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => rooms.push(word(&group[i + 1..])),
                _ => {}
            }
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

#[test]
fn imports_go_down_only() {
    let floors: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(n, rooms)| rooms.iter().map(move |r| (*r, n))).collect();
    let (src, files) = sources();
    let mut wrong = Vec::new();
    for file in &files {
        let from = room_of(file, &src);
        let text = fs::read_to_string(file).unwrap();
        let code: Vec<_> = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
        for to in imports(&code.join("\n")) {
            if floors.contains_key(to.as_str()) && to != from && !may_import(&from, &to, &floors) {
                wrong.push(format!("{} imports crate::{to}", file.strip_prefix(&src).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_runtime_knows_libcontainer_and_unsafe_code_lives_in_sys_files() {
    let (src, files) = sources();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let room = room_of(file, &src);
        assert!(
            room == "runtime" || !text.contains("libcontainer::"),
            "{} uses libcontainer",
            file.display()
        );
        let is_sys = file.file_name().is_some_and(|n| n == "sys.rs");
        assert!(is_sys || !text.contains("unsafe {"), "{} has unsafe code outside sys.rs", file.display());
    }
}

#[test]
fn grouped_imports_are_read() {
    let text = "use crate::{\n clock::{self, Clock},\n ids,\n store::Key,\n};\nuse crate::kinds;";
    assert_eq!(imports(text), ["clock", "ids", "store", "kinds"]);
}
