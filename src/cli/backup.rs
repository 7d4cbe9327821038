//! `sampan backup`: the whole cluster in one file.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use crate::app;

#[derive(Debug, Args)]
pub struct Backup {
    /// The server's state
    #[arg(long, env = "SAMPAN_DATA_DIR", default_value = "/var/lib/sampan", value_name = "DIR")]
    data_dir: PathBuf,
    /// The file to write; who has it is the cluster: it holds all Secrets and the authority's key
    file: PathBuf,
}

pub fn run(args: &Backup) -> anyhow::Result<ExitCode> {
    let meta = app::backup(&args.data_dir, &args.file)?;
    let bytes = std::fs::metadata(&args.file).map_or(0, |m| m.len());
    println!("cluster {} written to {} ({} KiB)", meta.cluster, args.file.display(), bytes.div_ceil(1024));
    println!("to begin with it on another board: sampan server --restore {}", args.file.display());
    Ok(ExitCode::SUCCESS)
}
