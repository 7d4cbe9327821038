//! `sampan token`: what lets a board join, made and looked at on the master.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use base64::Engine as _;
use clap::{Args, Subcommand};
use hyper::Method;
use jiff::SignedDuration;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use super::{
    State,
    kube::{
        align,
        client::{Client, request},
    },
};
use crate::{
    api::pki,
    app,
    clock::{self, Clock as _, SystemClock},
    dispatch::join::{NODE_ANNOTATION, TOKEN_NAMESPACE, TOKEN_PREFIX, TOKEN_TYPE},
    ids,
    kinds::names,
    mqtt::{
        join::{ID_LENGTH, SECRET_LENGTH, Token as Text},
        session::Address,
    },
    node,
};

const JSON: &str = "application/json";

#[derive(Debug, Args)]
pub struct Token {
    #[command(flatten)]
    state: State,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a token for one board and print the command to run on it
    Create {
        /// How long it can be used (`30m`, `24h`)
        #[arg(long, default_value = "24h", value_name = "TIME")]
        ttl: SignedDuration,
        /// The name the board gets; without it any name that no other board has
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// The broker as the board reaches it [default: as --endpoints of the server, or this machine's address]
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
    /// List the tokens that are not spent
    #[command(visible_alias = "ls")]
    List,
    /// Delete a token by its id
    Delete { id: String },
}

pub async fn run(args: Token) -> anyhow::Result<ExitCode> {
    let client = Client::load(Some(&args.state.data_dir.join("kubeconfig")), None)?;
    match args.verb {
        Verb::Create { ttl, node, url } => create(&client, &args.state.data_dir, ttl, node, url).await?,
        Verb::List => list(&client).await?,
        Verb::Delete { id } => {
            let path = format!("{}/{TOKEN_PREFIX}{id}", secrets());
            client.json(request(Method::DELETE, &path, JSON, None)?).await?;
            println!("token {id} deleted");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn secrets() -> String {
    format!("/api/v1/namespaces/{TOKEN_NAMESPACE}/secrets")
}

async fn create(
    client: &Client,
    data_dir: &Path,
    ttl: SignedDuration,
    node: Option<String>,
    url: Option<String>,
) -> anyhow::Result<()> {
    let url = match url {
        Some(url) => {
            for address in url.split(',') {
                let address: Address = address.parse()?;
                if !address.tls && address.login.is_none() {
                    bail!(
                        "--url {address}: joining needs TLS (mqtts://…), or an external broker's user and password"
                    );
                }
            }
            url
        }
        None => known_url(data_dir)?,
    };
    if let Some(wrong) = node.as_deref().and_then(|name| names::dns_subdomain(name).into_iter().next()) {
        bail!("--node: {wrong}");
    }
    let state = data_dir.join("server");
    let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("read {}", path.display()));
    let ca = read(state.join("pki/ca.crt"))?;
    let token = Text {
        cluster: read(state.join("cluster-id"))?.trim().to_owned(),
        pin: pki::pin(&CertificateDer::from_pem_slice(ca.as_bytes()).context("the authority's certificate")?),
        id: ids::name_suffix(ID_LENGTH),
        secret: ids::name_suffix(SECRET_LENGTH),
    };
    let expiration = SystemClock.now().checked_add(ttl).context("--ttl")?;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("{TOKEN_PREFIX}{}", token.id), "namespace": TOKEN_NAMESPACE},
        "type": TOKEN_TYPE,
        "data": {
            "token-id": encode(&token.id),
            "token-secret": encode(&token.secret),
            "expiration": encode(&clock::rfc3339_seconds(expiration)),
            "description": encode("lets one board join (sampan token create)"),
        },
    });
    if let Some(node) = &node {
        secret["metadata"]["annotations"][NODE_ANNOTATION] = node.as_str().into();
    }
    let body = serde_json::to_vec(&secret)?;
    client.json(request(Method::POST, &secrets(), JSON, Some((JSON, body)))?).await?;
    let name = node.map(|node| format!(" --node-name {node}")).unwrap_or_default();
    println!("sampan agent --join {url} --token {token}{name}");
    Ok(())
}

/// Where boards find the broker, by what the server has left of how it was started.
fn known_url(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("server").join(app::BROKER_NOTE);
    let note = fs::read_to_string(&path).unwrap_or_default();
    let note = note.trim();
    if note == app::BROKER_EXTERNAL {
        bail!(
            "the cluster uses an external broker: say with --url how the board reaches it, \
             for example mqtt://user:password@host:1883, or mqtts://host:8883 with --mqtt-cert on the board"
        );
    }
    if let Ok(port) = note.parse::<u16>() {
        let own = node::outward_address().context("this machine has no address; say it with --url")?;
        return Ok(format!("mqtts://{own}:{port}"));
    }
    if note.is_empty() {
        bail!("{} is not there yet: is the server running?", path.display());
    }
    Ok(note.to_owned())
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let secrets = client.get(&secrets()).await?;
    let mut lines = vec![["ID", "EXPIRES", "NODE"].map(str::to_owned).to_vec()];
    for secret in secrets["items"].as_array().into_iter().flatten().filter(|s| s["type"] == TOKEN_TYPE) {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default();
        let node = secret["metadata"]["annotations"][NODE_ANNOTATION].as_str().unwrap_or("<any>");
        let id = name.strip_prefix(TOKEN_PREFIX).unwrap_or(name);
        lines.push(vec![id.to_owned(), plain(&secret["data"]["expiration"]), node.to_owned()]);
    }
    print!("{}", align(&lines));
    Ok(())
}

/// The text of one of a Secret's values.
fn plain(value: &Value) -> String {
    let encoded = value.as_str().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
