//! `-f`: files, folders and standard input.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::manifest::{self, Document, MANIFEST_BYTES_MAX};

/// A document and the file it stands in.
pub struct Source {
    pub file: String,
    pub document: Document,
}

impl Source {
    /// `web.yaml: document 2`: what an error starts with.
    pub fn place(&self) -> String {
        format!("{}: document {}", self.file, self.document.index)
    }
}

/// All documents of the given paths, in order; `-` is standard input, a folder means its `.yaml`,
/// `.yml` and `.json` files, with `recursive` those below it too.
pub fn read(paths: &[PathBuf], recursive: bool) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().take(MANIFEST_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
            add("standard input", &text, &mut sources)?;
        } else if path.is_dir() {
            for file in folder(path, recursive)? {
                add_file(&file, &mut sources)?;
            }
        } else if path.to_string_lossy().contains("://") {
            bail!("{}: addresses are not supported, give a file or pipe it in with -f -", path.display());
        } else {
            add_file(path, &mut sources)?;
        }
    }
    if sources.is_empty() {
        bail!("no objects found in the given manifests");
    }
    Ok(sources)
}

fn folder(path: &Path, recursive: bool) -> anyhow::Result<Vec<PathBuf>> {
    let mut entries = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("read {}", path.display()))?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                files.extend(folder(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(entry);
        }
    }
    Ok(files)
}

fn add_file(path: &Path, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    add(&path.display().to_string(), &text, sources)
}

fn add(file: &str, text: &str, sources: &mut Vec<Source>) -> anyhow::Result<()> {
    let documents = manifest::documents(text).with_context(|| file.to_owned())?;
    sources.extend(documents.into_iter().map(|document| Source { file: file.to_owned(), document }));
    Ok(())
}
