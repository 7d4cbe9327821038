//! `sampan backup`: the whole cluster in one file.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::State;
use crate::app;

#[derive(Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    state: State,
    /// The file to write; who has it is the cluster: it holds all Secrets and the authority's key
    file: PathBuf,
}

pub fn run(args: &Backup) -> anyhow::Result<ExitCode> {
    let meta = app::backup(&args.state.data_dir, &args.file)?;
    let bytes = std::fs::metadata(&args.file).map_or(0, |m| m.len());
    println!("cluster {} written to {} ({} KiB)", meta.cluster, args.file.display(), bytes.div_ceil(1024));
    println!("to begin with it on another board: sampan server --restore {}", args.file.display());
    Ok(ExitCode::SUCCESS)
}
