//! Built-in verbs that speak to the API server as kubectl does, with kubectl's flags.
//!
//! A board that carries nothing but this binary can be worked on; for the rest there is kubectl.
//! Deliberately absent: edit, explain, diff, plugins, go-template and kustomize.

mod apply;
pub(super) mod client;
mod delete;
mod describe;
mod discovery;
mod exec;
mod files;
mod get;
mod jsonpath;
mod local;
mod logs;
mod which;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use client::Client;
pub use client::Refused;
pub use get::align;

/// The flags every verb has.
#[derive(Debug, Clone, Args)]
struct Connection {
    /// Path to the kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the request
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// Ask this node's own daemon, with the master or without it: get pods, logs, exec
    #[arg(long, global = true)]
    local: bool,
    /// Where that daemon has its socket
    #[arg(long, global = true, env = "SAMPAN_RUN_DIR", default_value = "/run/sampan", value_name = "DIR")]
    run_dir: PathBuf,
}

impl Connection {
    fn here(&self) -> local::Here<'_> {
        local::Here { run_dir: &self.run_dir, namespace: self.namespace.as_deref().unwrap_or("default") }
    }

    fn client(&self) -> anyhow::Result<Client> {
        anyhow::ensure!(!self.local, "--local: a node shows what it runs; this verb needs the master");
        let mut client = Client::load(self.kubeconfig.as_deref(), self.context.as_deref())?;
        if let Some(namespace) = &self.namespace {
            client.namespace.clone_from(namespace);
        }
        Ok(client)
    }
}

/// A verb with its flags.
#[derive(Debug, Args)]
pub struct Call<A: Args> {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    args: A,
}

/// The verbs, alone (`sampan get`) or behind `sampan kubectl`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create or change objects from manifests
    Apply(Call<apply::Apply>),
    /// Show objects
    Get(Call<get::Get>),
    /// Show one object in detail, with its events
    Describe(Call<describe::Describe>),
    /// Delete objects by name, label or manifest
    Delete(Call<delete::Delete>),
    /// Show the output of a container
    Logs(Call<logs::Logs>),
    /// Run a command in a container
    Exec(Call<exec::Exec>),
    /// Start a pod's containers on this node anew
    Restart(Call<local::Restart>),
}

/// Runs a verb; the exit code is the command's for `exec`, else 0.
pub async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Get(call) if call.connection.local => local::get(&call.connection.here(), &call.args).await?,
        Verb::Logs(call) if call.connection.local => local::logs(&call.connection.here(), &call.args).await?,
        Verb::Exec(call) if call.connection.local => {
            return local::exec(&call.connection.here(), &call.args).await;
        }
        Verb::Restart(call) => local::restart(&call.connection.here(), &call.args).await?,
        Verb::Apply(call) => apply::run(&call.connection.client()?, &call.args).await?,
        Verb::Get(call) => get::run(&call.connection.client()?, &call.args).await?,
        Verb::Describe(call) => describe::run(&call.connection.client()?, &call.args).await?,
        Verb::Delete(call) => delete::run(&call.connection.client()?, &call.args).await?,
        Verb::Logs(call) => logs::run(&call.connection.client()?, &call.args).await?,
        Verb::Exec(call) => return exec::run(&call.connection.client()?, &call.args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// `TYPE NAME…` or `TYPE/NAME…` as (type, name); no names mean all of the type.
fn targets(words: &[String]) -> anyhow::Result<(String, Vec<String>)> {
    let Some((first, rest)) = words.split_first() else {
        anyhow::bail!("You must specify the type of resource, for example `pods` or `deployment/web`");
    };
    let Some((kind, name)) = first.split_once('/') else {
        return Ok((first.clone(), rest.to_vec()));
    };
    let mut names = vec![name.to_owned()];
    for word in rest {
        match word.split_once('/') {
            Some((k, name)) if k == kind => names.push(name.to_owned()),
            _ => anyhow::bail!(
                "arguments in TYPE/NAME form must all be of one type here, {word:?} is not a {kind}"
            ),
        }
    }
    Ok((kind.to_owned(), names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_in_both_forms() {
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(targets(&words(&["pods"])).unwrap(), ("pods".into(), vec![]));
        assert_eq!(targets(&words(&["pod", "a", "b"])).unwrap(), ("pod".into(), words(&["a", "b"])));
        assert_eq!(targets(&words(&["pod/a", "pod/b"])).unwrap(), ("pod".into(), words(&["a", "b"])));
        assert!(targets(&words(&["pod/a", "svc/b"])).is_err());
        assert!(targets(&[]).is_err());
    }
}
