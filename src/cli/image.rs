//! `sampan image`: list, pull, import, export, check, remove and pin the images of this machine.

use std::{collections::BTreeMap, io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc;

use super::{State, kube::align};
use crate::{
    control::{self, ImageInfo, Line, Request},
    image::{ImageStore, Options, Reference, Registries},
};

/// Lines of progress that may wait while the terminal is slow.
const LINES_MAX: usize = 16;

#[derive(Debug, Args)]
pub struct Image {
    #[command(flatten)]
    state: State,
    /// Settings of registries, where no daemon runs
    #[arg(long, global = true, env = "SAMPAN_REGISTRIES", value_name = "FILE")]
    registries: Option<String>,
    /// Form of the output
    #[arg(short, long, global = true, value_parser = ["table", "json"], default_value = "table")]
    output: String,
    /// The running daemon's state
    #[arg(long, global = true, env = "SAMPAN_RUN_DIR", default_value = "/run/sampan", value_name = "DIR")]
    run_dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the images
    #[command(visible_alias = "list")]
    Ls,
    /// Pull an image from its registry
    Pull {
        reference: String,
        /// User of the registry; the password comes from SAMPAN_REGISTRY_PASSWORD
        #[arg(short, long, value_name = "NAME", default_value = "")]
        username: String,
    },
    /// Import a docker-archive or OCI layout tar (plain, gzip or zstd)
    Import { archive: PathBuf },
    /// Write an image to a tar that every tool imports (OCI layout and docker-archive in one)
    Export { reference: String, archive: PathBuf },
    /// Check the files of all images; damaged ones are dropped and named
    Verify {
        /// Read every byte, not sizes only
        #[arg(long)]
        contents: bool,
    },
    /// Remove an image
    Rm { reference: String },
    /// Keep an image whatever happens
    Pin { reference: String },
    /// Let a pinned image be collected again
    Unpin { reference: String },
}

/// Asks the running daemon, or does it itself when none runs.
pub async fn run(args: Image) -> anyhow::Result<ExitCode> {
    let request = match &args.verb {
        Verb::Ls => Request::ListImages,
        Verb::Pull { reference, username } => Request::PullImage {
            reference: reference.clone(),
            username: username.clone(),
            password: std::env::var("SAMPAN_REGISTRY_PASSWORD").unwrap_or_default(),
        },
        Verb::Import { archive } => Request::ImportImages {
            archive: archive.canonicalize().with_context(|| format!("read {}", archive.display()))?,
        },
        Verb::Export { reference, archive } => Request::ExportImage {
            reference: reference.clone(),
            archive: std::path::absolute(archive).with_context(|| format!("find {}", archive.display()))?,
        },
        Verb::Verify { contents } => Request::VerifyImages { contents: *contents },
        Verb::Rm { reference } => Request::RemoveImage { reference: reference.clone() },
        Verb::Pin { reference } => Request::PinImage { reference: reference.clone(), pinned: true },
        Verb::Unpin { reference } => Request::PinImage { reference: reference.clone(), pinned: false },
    };
    let mut bars = Bars::new();
    let answer = match control::ask(&args.run_dir, &request, |layers| bars.show(layers)).await? {
        Some(answer) => answer,
        None => alone(&args, request, &mut bars).await?,
    };
    bars.clear();
    let images = match answer {
        Ok(images) => images,
        Err(error) => bail!(error),
    };
    let damaged = matches!(args.verb, Verb::Verify { .. }) && !images.is_empty();
    match &args.verb {
        _ if args.output == "json" => println!("{}", serde_json::to_string_pretty(&images)?),
        Verb::Ls => print!("{}", table(&images)),
        Verb::Rm { reference } => println!("removed {reference}"),
        Verb::Export { archive, .. } => println!("wrote {}", archive.display()),
        Verb::Verify { .. } if images.is_empty() => println!("all images are sound"),
        Verb::Verify { .. } => {
            for image in &images {
                println!("damaged and dropped: {}", image.names.join(", "));
            }
        }
        Verb::Pull { reference, .. } | Verb::Pin { reference } | Verb::Unpin { reference } => {
            for image in &images {
                println!("{}", name_asked_for(image, reference));
            }
        }
        Verb::Import { .. } => {
            for image in &images {
                println!("{}", image.names.first().unwrap_or(&image.id));
            }
        }
    }
    Ok(if damaged { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn alone(
    args: &Image,
    request: Request,
    bars: &mut Bars,
) -> anyhow::Result<Result<Vec<ImageInfo>, String>> {
    let registries = Registries::load(args.registries.as_deref()).map_err(anyhow::Error::msg)?;
    let images = ImageStore::open(Options::new(&args.state.data_dir).with_registries(registries))?;
    let (send, mut lines) = mpsc::channel(LINES_MAX);
    let show = async {
        while let Some(line) = lines.recv().await {
            match line {
                Line::Progress(layers) => bars.show(&layers),
                Line::Images(images) => return Ok(images),
                Line::Pods(_) => {}
                Line::Error(error) => return Err(error),
            }
        }
        Err("the work ended without an answer".to_owned())
    };
    let ((), answer) = tokio::join!(control::execute(&images, request, &send), show);
    Ok(answer)
}

/// The name of an image, in full, by which it was asked for: it may have others.
fn name_asked_for<'a>(image: &'a ImageInfo, reference: &str) -> &'a str {
    let asked = reference.parse::<Reference>().map(|parsed| parsed.to_string());
    let own = image.names.iter().chain(&image.digests).find(|name| asked.as_ref().is_ok_and(|a| a == *name));
    own.or(image.names.first()).unwrap_or(&image.id)
}

fn table(images: &[ImageInfo]) -> String {
    let mut lines = vec![["IMAGE", "ID", "SIZE", "PINNED"].map(str::to_owned).to_vec()];
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = indicatif::DecimalBytes(image.size_bytes).to_string();
        let names = if image.names.is_empty() { vec!["<none>".to_owned()] } else { image.names.clone() };
        for name in names {
            lines.push(vec![name, id.clone(), size.clone(), image.pinned.to_string()]);
        }
    }
    align(&lines)
}

/// One bar a layer, on a terminal only.
struct Bars {
    all: Option<MultiProgress>,
    by_layer: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        Self { all: std::io::stderr().is_terminal().then(MultiProgress::new), by_layer: BTreeMap::new() }
    }

    fn show(&mut self, layers: &[(String, u64, u64)]) {
        let Some(all) = &self.all else { return };
        for (layer, done, total) in layers {
            let bar = self.by_layer.entry(layer.clone()).or_insert_with(|| {
                let short: String = layer.trim_start_matches("sha256:").chars().take(12).collect();
                let style = ProgressStyle::with_template("{prefix} {wide_bar} {bytes:>10}/{total_bytes:10}");
                all.add(
                    ProgressBar::new(*total)
                        .with_prefix(short)
                        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
                )
            });
            bar.set_length(*total);
            bar.set_position(*done);
        }
    }

    fn clear(&self) {
        if let Some(all) = &self.all {
            // A terminal that went away needs no clearing.
            let _ = all.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_by_the_name_it_was_asked_for() {
        let image = ImageInfo {
            id: "sha256:1".into(),
            names: vec!["other.example/app:1".into(), "docker.io/library/app:1".into()],
            digests: vec!["docker.io/library/app@sha256:2".into()],
            size_bytes: 0,
            pinned: false,
        };
        for (asked, told) in [
            ("app:1", "docker.io/library/app:1"),
            ("other.example/app:1", "other.example/app:1"),
            ("sha256:1", "other.example/app:1"),
        ] {
            assert_eq!(name_asked_for(&image, asked), told);
        }
        assert_eq!(name_asked_for(&ImageInfo { names: Vec::new(), ..image }, "x"), "sha256:1");
    }
}
