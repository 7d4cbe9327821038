//! A master with many nodes: real store, controllers and scheduler; the nodes are a task that
//! reports pods as running. Prints what the master takes once everything runs.
//!
//! `cargo run --release --example scale [nodes] [pods]` (default 1000 and 10000).

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::{StreamExt, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Node, Pod};
use sampan::{
    clock::SystemClock,
    controllers,
    kinds::{Subresource, registry},
    objects::{Objects, WriteOptions},
    scheduler,
    store::Store,
    tasks::Tasks,
};
use serde_json::json;

/// Pods of one Deployment.
const REPLICAS: usize = 100;
/// How long the idle master is watched.
const IDLE: Duration = Duration::from_secs(20);
/// Statuses that are written at once.
const WRITES_MAX: usize = 128;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let nodes = arguments.next().transpose()?.unwrap_or(1000);
    let pods = arguments.next().transpose()?.unwrap_or(10_000);
    let dir = tempfile::tempdir()?;
    let objects = Objects::new(Store::open(&dir.path().join("state.db"))?, Arc::new(SystemClock));
    let options = WriteOptions::system("scale");
    for n in 0..nodes {
        let name = format!("node-{n:04}");
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        objects.create(registry::of::<Node>(), "", node, &options).await?;
        let status = json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}]});
        let set = |node: &mut serde_json::Value| {
            node["status"] = status.clone();
            Ok(())
        };
        objects.modify(registry::of::<Node>(), Some(Subresource::Status), "", &name, &options, set).await?;
    }
    let tasks = Tasks::new();
    controllers::start(&tasks, &objects, &controllers::Options::default());
    scheduler::start(&tasks, objects.clone());
    let kubelets = objects.clone();
    tasks.spawn("kubelets", |stop| async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            result = run_pods(kubelets) => result,
        }
    });
    let start = Instant::now();
    let row = registry::by_resource("deployments.apps").context("no row for Deployments")?;
    for n in 0..pods.div_ceil(REPLICAS) {
        let name = format!("app-{n}");
        let container =
            json!({"name": "c", "image": "a", "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}}});
        let deployment = json!({"metadata": {"name": name}, "spec": {"replicas": REPLICAS.min(pods), "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}});
        objects.create(row, "default", deployment, &options).await?;
    }
    loop {
        let available: i64 = objects
            .list(row, None)
            .items
            .iter()
            .map(|d| d.value()["status"]["availableReplicas"].as_i64().unwrap_or(0))
            .sum();
        if usize::try_from(available)? >= pods {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{pods} pods available on {nodes} nodes after {:?}", start.elapsed());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_ticks()?;
    tokio::time::sleep(IDLE).await;
    let percent = (cpu_ticks()? - before) as f64 / IDLE.as_secs_f64();
    println!("idle: {percent:.1} % of a core, {:.0} MB PSS", pss_kib()? as f64 / 1024.0);
    tasks.stop().await;
    Ok(())
}

/// All kubelets: whatever is bound runs and is ready.
async fn run_pods(objects: Objects) -> anyhow::Result<()> {
    let mut events = objects.follow("pods");
    let options = WriteOptions::system("kubelet");
    let mut writes = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(event) = events.next() => {
                let event = event?;
                let pod = event.object.typed::<Pod>();
                let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
                let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
                if bound && !running {
                    let (objects, options) = (objects.clone(), options.clone());
                    let key = event.object.key.clone();
                    writes.push(async move {
                        let then = "2026-11-23T12:00:00Z";
                        let status = BTreeMap::from([
                            ("phase", json!("Running")),
                            ("conditions", json!([{"type": "Ready", "status": "True", "lastTransitionTime": then}])),
                        ]);
                        let set = |pod: &mut serde_json::Value| {
                            for (field, value) in &status {
                                pod["status"][*field] = value.clone();
                            }
                            Ok(())
                        };
                        let row = registry::of::<Pod>();
                        objects.modify(row, Some(Subresource::Status), &key.namespace, &key.name, &options, set).await
                    });
                }
                while writes.len() >= WRITES_MAX {
                    writes.next().await;
                }
            }
            Some(_) = writes.next() => {}
        }
    }
}

/// User and system time of this process, in hundredths of a second (`proc(5)`).
fn cpu_ticks() -> anyhow::Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn pss_kib() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
