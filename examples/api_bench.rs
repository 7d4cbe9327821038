//! What the API server does in a second, and what it costs: creates on 16 connections, gets, a Table
//! of 6,000 objects, 1,000 watchers.
//!
//! `cargo run --release --example api_bench KUBECONFIG [PID]`; with the daemon's process id it also
//! tells proportional memory (PSS).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

const CONNECTIONS: usize = 16;
const OBJECTS: usize = 6000;
const GETS: usize = 4000;
const WATCHERS: usize = 1000;
const STREAMS_PER_CONNECTION: usize = 100;
const CHANGES: usize = 20;
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// Where a cluster is and who we are there.
struct Cluster {
    address: String,
    tls: rustls::ClientConfig,
}

impl Cluster {
    fn of(path: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let field = |name: &str| -> anyhow::Result<String> {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(&format!("{name}: ")));
            Ok(line.with_context(|| format!("{path} has no {name}"))?.to_owned())
        };
        let pem = |name: &str| -> anyhow::Result<Vec<u8>> { Ok(STANDARD.decode(field(name)?)?) };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("certificate-authority-data")?)?)?;
        let own = CertificateDer::from_pem_slice(&pem("client-certificate-data")?)?;
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], key)?;
        let address = field("server")?.trim_start_matches("https://").to_owned();
        Ok(Self { address, tls })
    }

    async fn connect(&self, protocol: &[u8]) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let host = self.address.rsplit_once(':').context("no port")?.0.to_owned();
        Ok(TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(host)?, stream).await?)
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect(b"http/1.1").await?)).await?;
        tokio::spawn(connection);
        Ok(Client { sender, host: self.address.clone() })
    }
}

struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Bytes> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.map(|b| b.to_string()).unwrap_or_default()))?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let code = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        anyhow::ensure!(code.is_success(), "{path}: {code} {}", String::from_utf8_lossy(&bytes));
        Ok(bytes)
    }
}

/// Proportional memory of a process (kB), where we may see it.
fn pss(pid: Option<&str>) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid?)).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
}

fn shown(kilobytes: Option<u64>) -> String {
    kilobytes.map_or_else(|| "?".to_owned(), |k| format!("{:.1} MB", k as f64 / 1024.0))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let cluster = Arc::new(Cluster::of(&arguments.next().context("which kubeconfig?")?)?);
    let pid = arguments.next();
    let pid = pid.as_deref();
    let namespace = format!("bench-{}", std::process::id());
    let mut client = cluster.client().await?;
    let json = "application/json";
    let made = json!({"metadata": {"name": namespace}});
    client.ask(Method::POST, "/api/v1/namespaces", json, Some(made)).await?;
    let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    println!("before: {}", shown(pss(pid)));

    let start = Instant::now();
    let mut working = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let (cluster, maps) = (Arc::clone(&cluster), maps.clone());
        working.spawn(async move {
            let mut client = cluster.client().await?;
            for n in (worker..OBJECTS).step_by(CONNECTIONS) {
                let map = json!({"metadata": {"name": format!("map-{n:05}"), "labels": {"app": "bench"}},
                    "data": {"key": "value", "text": "x".repeat(200)}});
                client.ask(Method::POST, &maps, "application/json", Some(map)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = working.join_next().await {
        done??;
    }
    println!("create: {:.0}/s on {CONNECTIONS} connections", OBJECTS as f64 / start.elapsed().as_secs_f64());
    println!("with {OBJECTS} ConfigMaps: {}", shown(pss(pid)));

    let mut took = Vec::with_capacity(GETS);
    for n in 0..GETS {
        let path = format!("{maps}/map-{:05}", (n * 7919) % OBJECTS);
        let one = Instant::now();
        client.ask(Method::GET, &path, json, None).await?;
        took.push(one.elapsed());
    }
    took.sort();
    println!("get: median {:?}, p99 {:?}", took[GETS / 2], took[GETS * 99 / 100]);

    for _ in 0..3 {
        let one = Instant::now();
        let table = client.ask(Method::GET, &maps, TABLE, None).await?;
        println!("list of {OBJECTS} as Table: {:?}, {} KB", one.elapsed(), table.len() / 1024);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("after lists: {}", shown(pss(pid)));

    watchers(&cluster, &mut client, &maps, pid).await?;
    client.ask(Method::DELETE, &format!("/api/v1/namespaces/{namespace}"), json, None).await?;
    Ok(())
}

/// How soon all watchers hear of a change, and what they cost.
async fn watchers(
    cluster: &Cluster,
    client: &mut Client,
    maps: &str,
    pid: Option<&str>,
) -> anyhow::Result<()> {
    let before = pss(pid);
    let list: Value = serde_json::from_slice(
        &client.ask(Method::GET, &format!("{maps}?limit=1"), "application/json", None).await?,
    )?;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel::<Instant>();
    for _ in 0..WATCHERS / STREAMS_PER_CONNECTION {
        let io = TokioIo::new(cluster.connect(b"h2").await?);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        for _ in 0..STREAMS_PER_CONNECTION {
            let uri = format!("https://{}{maps}?watch=1&resourceVersion={revision}", cluster.address);
            let request = Request::builder().uri(uri).body(Full::<Bytes>::default())?;
            sender.ready().await?;
            let answer: Response<Incoming> = sender.send_request(request).await?;
            anyhow::ensure!(answer.status().is_success(), "watch: {}", answer.status());
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut body = answer.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let lines = frame.data_ref().map_or(0, |d| d.split(|b| *b == b'\n').count() - 1);
                    for _ in 0..lines {
                        let _ = heard.send(Instant::now());
                    }
                }
            });
        }
        drop(sender);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = pss(pid);
    let mut slowest = Vec::new();
    for n in 0..CHANGES {
        let change = json!({"metadata": {"name": "map-00000"}, "data": {"n": n.to_string()}});
        let start = Instant::now();
        client.ask(Method::PUT, &format!("{maps}/map-00000"), "application/json", Some(change)).await?;
        let mut last = start;
        for _ in 0..WATCHERS {
            last = last.max(hears.recv().await.context("the watchers are gone")?);
        }
        slowest.push(last - start);
    }
    slowest.sort();
    println!(
        "{WATCHERS} watchers hear of a change in {:?}, at worst {:?}",
        slowest[CHANGES / 2],
        slowest[CHANGES - 1]
    );
    if let (Some(before), Some(after)) = (before, after) {
        println!("a watcher costs {:.1} KB", after.saturating_sub(before) as f64 / WATCHERS as f64);
    }
    Ok(())
}
