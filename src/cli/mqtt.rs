//! `sampan mqtt`: looking into a cluster's link, and what an external broker needs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::{State, kube::client::Client};
use crate::{
    api::pki::{self, Pki},
    app,
    clock::{self, Clock as _, SystemClock},
    config::BrokerFiles,
    mqtt::topics,
};

#[derive(Debug, Args)]
pub struct Mqtt {
    #[command(flatten)]
    state: State,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show every message between master and nodes as it passes
    Tap {
        /// Only this node's messages
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// The broker
        #[arg(long, value_delimiter = ',', default_value = "mqtts://127.0.0.1:8883", value_name = "URLS")]
        url: Vec<String>,
        #[command(flatten)]
        files: BrokerFiles,
        /// Show the contents of Secrets too
        #[arg(long)]
        secrets: bool,
    },
    /// Print the access rules for Mosquitto (`acl_file`): the master may speak for the cluster, a node for itself
    Acl {
        /// A node that is not in the cluster yet
        #[arg(long, value_name = "NAME")]
        node: Vec<String>,
        /// The broker's names for its users; `{node}` and `{cluster}` stand for theirs
        #[arg(long, default_value = "sampan-{cluster}-node-{node}", value_name = "TEMPLATE")]
        user: String,
        #[arg(
            long,
            default_value = "sampan-{cluster}-master",
            value_name = "TEMPLATE",
            help = "The master's name there"
        )]
        master: String,
    },
    /// Write a certificate of the cluster's authority for an external broker or one of its clients
    Certificate {
        /// For this node, under the name that `acl` has for it
        #[arg(long, value_name = "NAME", group = "whom")]
        node: Option<String>,
        /// For the master
        #[arg(long, group = "whom")]
        master: bool,
        /// For the broker itself at this host name or address
        #[arg(long, value_name = "HOST", group = "whom")]
        broker: Option<String>,
        /// Folder for tls.crt, tls.key and ca.crt
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

pub async fn run(args: Mqtt) -> anyhow::Result<ExitCode> {
    let state = args.state.data_dir.join("server");
    match args.verb {
        Verb::Tap { node, url, files, secrets } => {
            let options = app::Tap { urls: url, files, node, secrets };
            let line = |text: &str| {
                println!("{} {text}", clock::rfc3339_micros(SystemClock.now()));
            };
            app::tap(&args.state.data_dir, &options, line).await?;
        }
        Verb::Acl { node, user, master } => {
            let mut nodes: BTreeSet<String> = node.into_iter().collect();
            let client = Client::load(Some(&args.state.data_dir.join("kubeconfig")), None)?;
            let known = client.get("/api/v1/nodes").await?;
            let name = |node: &serde_json::Value| node["metadata"]["name"].as_str().map(str::to_owned);
            nodes.extend(known["items"].as_array().into_iter().flatten().filter_map(name));
            print!("{}", acl(&cluster(&state)?, &nodes, &user, &master));
        }
        Verb::Certificate { node, master, broker, out } => {
            certificate(&state, node.as_deref(), master, broker.as_deref(), &out)?;
            println!("tls.crt, tls.key and ca.crt written to {}", out.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cluster(state: &Path) -> anyhow::Result<String> {
    let path = state.join("cluster-id");
    Ok(fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?.trim().to_owned())
}

/// Mosquitto's `acl_file` (mosquitto.conf(5)).
fn acl(cluster: &str, nodes: &BTreeSet<String>, user: &str, master: &str) -> String {
    let name = |template: &str, node: &str| template.replace("{cluster}", cluster).replace("{node}", node);
    let mut blocks = vec![format!(
        "# Cluster {cluster}: made by `sampan mqtt acl`; anew when a board joins.\nuser {}\n\
         topic readwrite sampan/{cluster}/#\n",
        name(master, "")
    )];
    blocks.extend(nodes.iter().map(|node| {
        format!(
            "user {}\ntopic write sampan/{cluster}/node/{node}/up/#\ntopic read sampan/{cluster}/node/{node}/down/#\n\
             topic read {}\ntopic read {}\ntopic write sampan/{cluster}/join/+/up\ntopic read sampan/{cluster}/join/+/down\n",
            name(user, node),
            topics::master(cluster),
            topics::shared(cluster),
        )
    }));
    blocks.join("\n")
}

fn certificate(
    state: &Path,
    node: Option<&str>,
    master: bool,
    broker: Option<&str>,
    out: &Path,
) -> anyhow::Result<()> {
    let cluster = cluster(state)?;
    let pki = Pki::open(&state.join("pki"))?;
    let credential = match (node, master, broker) {
        (Some(node), ..) => pki.issue_client(&topics::node_client_id(&cluster, node), "sampan-mqtt")?,
        (None, true, _) => pki.issue_client(&format!("sampan-{cluster}-master"), "sampan-mqtt")?,
        (None, false, Some(host)) => pki.issue_server(host)?,
        (None, false, None) => {
            bail!("say whom the certificate is for: --node NAME, --master or --broker HOST")
        }
    };
    pki::write_file(&out.join("tls.crt"), credential.certificate.as_bytes(), 0o644)?;
    pki::write_file(&out.join("tls.key"), credential.key.as_bytes(), 0o600)?;
    pki::write_file(&out.join("ca.crt"), pki.ca_pem().as_bytes(), 0o644)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_speak_for_itself_alone() {
        let nodes = ["kitchen".to_owned()].into();
        let text = acl("abc", &nodes, "{cluster}-{node}", "{cluster}-boss");
        let rules = "user abc-kitchen\n\
            topic write sampan/abc/node/kitchen/up/#\ntopic read sampan/abc/node/kitchen/down/#\n\
            topic read sampan/abc/master\ntopic read sampan/abc/shared\n\
            topic write sampan/abc/join/+/up\ntopic read sampan/abc/join/+/down\n";
        assert!(
            text.contains("user abc-boss\ntopic readwrite sampan/abc/#\n") && text.ends_with(rules),
            "{text}"
        );
    }
}
