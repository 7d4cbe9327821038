//! How long the scheduler takes to decide: pods in a cluster of simulated nodes, in memory.
//!
//! `cargo run --release --example schedule_bench [nodes] [pods]` (default 1000 and 5000).

use std::{sync::Arc, time::Instant};

use sampan::scheduler::{
    plan::{Decision, schedule},
    snapshot::{PodInfo, Snapshot},
    volumes::Claims,
};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let nodes = arguments.next().transpose()?.unwrap_or(1000);
    let pods = arguments.next().transpose()?.unwrap_or(5000);
    let mut snapshot = Snapshot::default();
    for n in 0..nodes {
        let name = format!("node-{n:04}");
        snapshot.set_node(Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        }))?));
    }
    let start = Instant::now();
    let mut slowest = std::time::Duration::ZERO;
    for p in 0..pods {
        let set = format!("set-{}", p % 50);
        let pod = Arc::new(PodInfo::new(Arc::new(serde_json::from_value(json!({
            "metadata": {"name": format!("pod-{p}"), "namespace": "default", "uid": format!("uid-{p}"), "ownerReferences":
                [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": set, "controller": true}]},
            "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]},
        }))?)));
        let one = Instant::now();
        match schedule(&snapshot, &pod, &Claims::default(), &[]) {
            Decision::Bind { node, .. } => drop(snapshot.place(pod, &node)),
            Decision::Refuse { message, .. } => anyhow::bail!(message),
        }
        slowest = slowest.max(one.elapsed());
    }
    println!("{pods} pods on {nodes} nodes: {:?}, the slowest {slowest:?}", start.elapsed());
    Ok(())
}
