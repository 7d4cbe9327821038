//! `sampan check`: what on this board would keep a node from working, why, and what to do.
//!
//! In: the files of `/proc`, `/sys`, `/etc` below a root (a test gives its own tree) and a few
//! probes of the live system. Out: [`Finding`]s, one a subject, also for what is fine.
//! Deliberately absent: changing anything, but for the one file that `--fix` is about.

mod fix;
mod host;
mod rules;

use std::path::PathBuf;

pub use fix::{can_fix_memory_cgroup, fix_memory_cgroup};
pub use host::Host;
use serde::Serialize;

/// The id of the finding that the memory controller is off.
pub const MEMORY_CGROUP: &str = "memory-cgroup";

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Good to know.
    Info,
    /// A node runs, with less.
    Warning,
    /// A node does not run.
    Error,
}

/// What was looked at and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for scripts: `memory-cgroup`.
    pub id: &'static str,
    pub severity: Severity,
    pub summary: String,
    /// Empty when the severity is `Ok`.
    pub remedy: String,
}

impl Finding {
    fn ok(id: &'static str, summary: impl Into<String>) -> Self {
        Self { id, severity: Severity::Ok, summary: summary.into(), remedy: String::new() }
    }

    fn bad(
        id: &'static str,
        severity: Severity,
        summary: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { id, severity, summary: summary.into(), remedy: remedy.into() }
    }
}

/// What the check is about.
#[derive(Debug, Clone)]
pub struct Options {
    pub data_dir: PathBuf,
    /// TCP ports the daemon would listen on.
    pub ports: Vec<u16>,
    /// Chains of other programs that drop what no rule of theirs lets pass through the board, as
    /// `ip filter FORWARD`, or to it.
    pub closed_forward: Vec<String>,
    pub closed_input: Vec<String>,
}

/// What keeps a node from running at all: the rules that a daemon looks at before it starts, none of
/// which takes measurable time.
pub fn obstacles(host: &Host, data_dir: &std::path::Path) -> Vec<Finding> {
    let mut findings = rules::essential(host, data_dir);
    findings.retain(|finding| finding.severity == Severity::Error);
    findings
}

/// Runs every rule.
pub fn run(host: &Host, options: &Options) -> Vec<Finding> {
    rules::all(host, options)
}
