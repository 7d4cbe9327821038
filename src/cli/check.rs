//! `sampan check`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;

use crate::{
    check::{self, Finding, Host, Severity},
    net,
};

#[derive(Debug, Args)]
pub struct Check {
    /// Where the node's state would be
    #[arg(long, default_value = "/var/lib/sampan", value_name = "DIR")]
    data_dir: PathBuf,
    /// TCP ports the node would listen on
    #[arg(long, value_delimiter = ',', default_value = "6443,8883,80,443", value_name = "PORTS")]
    ports: Vec<u16>,
    /// Form of the output
    #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
    output: String,
    /// Turn the memory controller on where a Raspberry Pi has it off
    #[arg(long)]
    fix: bool,
    /// Also what is fine
    #[arg(short, long)]
    verbose: bool,
}

/// Prints the findings; the exit code is 1 when one of them is an error.
pub fn run(args: &Check) -> anyhow::Result<ExitCode> {
    // Whoever may not ask is told to be root.
    let closed = net::closed_chains().unwrap_or_default();
    let options = check::Options {
        data_dir: args.data_dir.clone(),
        ports: args.ports.clone(),
        closed_forward: closed.forward,
        closed_input: closed.input,
    };
    if args.fix
        && let Some(path) =
            check::fix_memory_cgroup(&Host::default()).context("turn the memory controller on")?
    {
        eprintln!("wrote {}: reboot now", path.display());
    }
    let mut findings = check::run(&Host::default(), &options);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    if args.output == "json" {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{}", text(&findings, args.verbose));
    }
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub fn text(findings: &[Finding], verbose: bool) -> String {
    let mut lines = Vec::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Ok if !verbose => continue,
            Severity::Ok => "ok     ",
            Severity::Info => "info   ",
            Severity::Warning => "warning",
            Severity::Error => "ERROR  ",
        };
        lines.push(format!("{word}  {}", finding.summary));
        if !finding.remedy.is_empty() {
            lines.push(format!("         → {}", finding.remedy));
        }
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    lines.push(format!(
        "{} checks: {} errors, {} warnings",
        findings.len(),
        count(Severity::Error),
        count(Severity::Warning)
    ));
    lines.join("\n") + "\n"
}
