//! All workload controllers at once in a cluster where everything goes wrong: writes are lost in
//! the middle of a plan (the master restarts), plans are carried out twice, nodes go and come
//! back, pods fail and are deleted, the clock jumps. What must never happen is checked after every
//! plan; when the faults end, everything wanted is there and nothing is left to do.
//!
//! `SAMPAN_SEED=n` replays one run; `SAMPAN_RUNS=n` makes as many, `SAMPAN_FIRST` being the first seed.

use std::{collections::BTreeSet, sync::Arc};

use jiff::SignedDuration;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Node, Pod, ReplicationController},
};
use serde_json::{Value, json};

use super::{
    cron_job::CronJobController,
    daemon_set::DaemonSetController,
    deployment::DeploymentController,
    disruption::DisruptionController,
    job::{self, JobController},
    node::{NodeLifecycleController, PodCollector, TaintEvictionController},
    owner,
    plan::Plan,
    pods,
    replica_set::ReplicaSetController,
    replication_controller::ReplicationManager,
    sim::{Dice, Fate, Sim, mangle, template},
    stateful_set::StatefulSetController,
};
use crate::{ids, objects::Objects};

/// How many runs there are unless `SAMPAN_RUNS` says otherwise.
const RUNS: u64 = 6;
/// How many faults hit one run.
const STEPS: usize = 40;
const NODES: [&str; 3] = ["a", "b", "c"];

const REPLICAS: usize = 4;
const SURGE: usize = 1;
const UNAVAILABLE: usize = 1;
const COMPLETIONS: i32 = 6;
const PARALLELISM: usize = 2;

fn world() -> Sim {
    let mut sim = Sim::new(vec![
        Arc::new(DeploymentController),
        Arc::new(ReplicaSetController),
        Arc::new(ReplicationManager),
        Arc::new(StatefulSetController::default()),
        Arc::new(DaemonSetController::default()),
        Arc::new(JobController),
        Arc::new(CronJobController),
        Arc::new(DisruptionController),
        Arc::new(NodeLifecycleController { grace: SignedDuration::from_secs(40) }),
        Arc::new(TaintEvictionController::default()),
        Arc::new(PodCollector),
    ]);
    sim.nodes = NODES.iter().map(|n| (*n).to_owned()).collect();
    sim
}

async fn add_node(sim: &Sim, name: &str) {
    sim.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).await;
    set_ready(sim, name, "True").await;
}

async fn set_ready(sim: &Sim, node: &str, state: &str) {
    if sim.objects.get_typed::<Node>("", node).is_some() {
        sim.change_status::<Node>(node, json!({"conditions": [{"type": "Ready", "status": state}]})).await;
    }
}

async fn fill(sim: &Sim) {
    for node in NODES {
        add_node(sim, node).await;
    }
    let of = |kind: &str, api: &str, spec: Value| {
        let app = kind.to_lowercase();
        let selector = if kind == "ReplicationController" {
            json!({"app": app})
        } else {
            json!({"matchLabels": {"app": app}})
        };
        let base = json!({"selector": selector, "template": template(json!({"app": app}), "a:1")});
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": app}, "spec": crate::patch::merge_patch(&base, &spec)})
    };
    let rolling = json!({"maxSurge": SURGE, "maxUnavailable": UNAVAILABLE});
    sim.create(of(
        "Deployment",
        "apps/v1",
        json!({"replicas": REPLICAS, "progressDeadlineSeconds": 600,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}),
    ))
    .await;
    sim.create(of("ReplicationController", "v1", json!({"replicas": 2}))).await;
    sim.create(of("StatefulSet", "apps/v1", json!({"replicas": 3, "serviceName": "s"}))).await;
    sim.create(of("DaemonSet", "apps/v1", json!({"updateStrategy": {"type": "RollingUpdate"}}))).await;
    let never = json!({"spec": {"restartPolicy": "Never"}});
    sim.create(of(
        "Job",
        "batch/v1",
        json!({"manualSelector": true, "completions": COMPLETIONS, "parallelism": PARALLELISM,
        "backoffLimit": 1000, "template": never}),
    ))
    .await;
    let template = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}}});
    sim.create(json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cron"},
        "spec": {"schedule": "*/5 * * * *", "concurrencyPolicy": "Forbid", "jobTemplate": template}}))
        .await;
    sim.create(json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "pdb"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "deployment"}}}}))
        .await;
}

fn of(objects: &Objects, app: &str) -> Vec<Arc<Pod>> {
    let mut pods = objects.list_typed::<Pod>(None);
    pods.retain(|p| owner::label(&p.metadata, "app") == Some(app));
    pods
}

fn active(objects: &Objects, app: &str) -> usize {
    of(objects, app).iter().filter(|p| pods::is_active(p)).count()
}

fn available(objects: &Objects, app: &str) -> usize {
    of(objects, app).iter().filter(|p| pods::is_active(p) && pods::is_ready(p)).count()
}

/// How many pods of the Deployment may stay, of those its ReplicaSets say are available: what the
/// Deployment decides by. (Pods may fail between its decision and the ReplicaSets' deed.)
fn promised(objects: &Objects) -> i32 {
    let kept = |rs: &ReplicaSet| {
        let wanted = rs.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        wanted.min(rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0))
    };
    objects.list_typed::<ReplicaSet>(None).iter().map(|rs| kept(rs)).sum()
}

/// What was there before a plan, against which it is judged.
#[derive(Default)]
struct Watch {
    deployment: i32,
    stateful: usize,
    /// Pods of the Job that have ended, by how.
    succeeded: BTreeSet<String>,
    trouble: Vec<String>,
}

impl Watch {
    fn note(&mut self, objects: &Objects) {
        self.deployment = promised(objects);
        self.stateful = available(objects, "statefulset");
        let ended = of(objects, "job").into_iter().filter(|p| pods::phase(p) == "Succeeded");
        self.succeeded.extend(ended.filter_map(|p| p.metadata.uid.clone()));
    }

    fn claim(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.trouble.push(what());
        }
    }

    /// What must hold after every plan, whatever went wrong before.
    fn check(&mut self, objects: &Objects, whose: &str) {
        let count = active(objects, "deployment");
        self.claim(count <= REPLICAS + SURGE, || format!("{count} pods of the Deployment"));
        let (before, now) = (self.deployment, promised(objects));
        if whose == "deployment-controller" && now < before {
            let least = i32::try_from(REPLICAS - UNAVAILABLE).unwrap();
            self.claim(now >= least, || format!("{whose} left {now} of {before} available"));
        }
        let (before, now) = (self.stateful, available(objects, "statefulset"));
        if whose == "statefulset-controller" && now < before {
            self.claim(now + 1 == before, || format!("{whose} left {now} of {before} available"));
        }
        let names: Vec<String> =
            of(objects, "statefulset").iter().map(|p| owner::name(&p.metadata).to_owned()).collect();
        let known = ["statefulset-0", "statefulset-1", "statefulset-2"];
        self.claim(names.iter().all(|n| known.contains(&n.as_str())), || format!("{names:?}"));
        let mut on: Vec<String> = of(objects, "daemonset")
            .iter()
            .filter(|p| pods::is_active(p))
            .filter_map(|p| super::daemon_set::target_node(p).map(str::to_owned))
            .collect();
        let count = on.len();
        on.sort();
        on.dedup();
        self.claim(on.len() == count, || format!("several daemons on one node: {on:?}"));
        let count = active(objects, "job");
        self.claim(count <= PARALLELISM, || format!("{count} pods of the Job at once"));
        let jobs = objects.list_typed::<Job>(None);
        let running = jobs
            .iter()
            .filter(|j| owner::controller_of(&j.metadata).is_some() && !job::is_finished(j))
            .count();
        self.claim(running <= 1, || format!("{running} runs of the CronJob at once"));
        if let Some(status) = objects.get_typed::<Job>("default", "job").and_then(|j| j.status.clone()) {
            let counted = status.succeeded.unwrap_or(0);
            let seen = self.succeeded.len();
            self.claim(usize::try_from(counted).unwrap() <= seen, || {
                format!("{counted} successes counted of {seen}")
            });
        }
        self.note(objects);
    }
}

/// One run; what went wrong.
async fn run(seed: u64) -> Vec<String> {
    let mut dice = Dice::new(seed);
    ids::seeded::start(seed);
    let mut sim = world();
    let mut watch = Watch::default();
    fill(&sim).await;
    for step in 0..STEPS {
        disturb(&mut sim, &mut dice, step).await;
        watch.note(&sim.objects);
        let mut faults = |plan: Plan| mangle(plan, &mut dice);
        sim.faulty_step(&mut faults, &mut |objects, whose| watch.check(objects, whose)).await;
        let fates: Vec<Fate> = sim
            .list::<Pod>()
            .iter()
            .map(|pod| {
                let ends = owner::controller_of(&pod.metadata).is_some_and(|o| o.kind == "Job");
                match dice.roll(6) {
                    0 => Fate::Leave,
                    1 if ends => Fate::Fail,
                    2 | 3 if ends => Fate::Succeed,
                    1 if dice.roll(4) == 0 => Fate::Fail,
                    2 => Fate::RunUnready,
                    _ => Fate::Run,
                }
            })
            .collect();
        let names = sim.names::<Pod>();
        let fate = |pod: &Pod| {
            let index = names.iter().position(|n| Some(n) == pod.metadata.name.as_ref());
            index.map_or(Fate::Leave, |index| fates[index])
        };
        sim.kubelet(&fate).await;
        watch.note(&sim.objects);
    }
    rest(&mut sim, &mut watch).await;
    watch.trouble
}

/// Something goes wrong, or somebody wants something else.
async fn disturb(sim: &mut Sim, dice: &mut Dice, step: usize) {
    let node = (*dice.pick(&NODES).unwrap()).to_owned();
    match dice.roll(10) {
        0 => {
            sim.down.insert(node.clone());
            set_ready(sim, &node, "Unknown").await;
        }
        1 | 2 => {
            sim.down.remove(&node);
            if sim.objects.get_typed::<Node>("", &node).is_none() {
                add_node(sim, &node).await;
            }
            set_ready(sim, &node, "True").await;
        }
        3 if sim.down.contains(&node) && sim.objects.get_typed::<Node>("", &node).is_some() => {
            sim.delete::<Node>(&node, None).await;
        }
        4 => {
            let all = sim.list::<Pod>();
            if let Some(pod) = dice.pick(&all).filter(|p| !pods::is_deleting(p)) {
                sim.delete::<Pod>(owner::name(&pod.metadata), None).await;
            }
        }
        5 => {
            let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("a:{step}")}]}}}});
            match dice.roll(3) {
                0 => sim.change::<Deployment>("deployment", change).await,
                1 => sim.change::<StatefulSet>("statefulset", change).await,
                _ => sim.change::<DaemonSet>("daemonset", change).await,
            }
        }
        6 => sim.pass(i64::try_from(dice.roll(900)).unwrap()),
        7 => {
            // A board without a clock battery: by a little, or by hours.
            let far = if dice.roll(4) == 0 { 20_000 } else { 60 };
            sim.pass(-i64::try_from(dice.roll(far)).unwrap());
        }
        _ => sim.pass(1),
    }
}

/// The faults end: everything comes to rest as it is wanted, and nothing is left to do.
async fn rest(sim: &mut Sim, watch: &mut Watch) {
    sim.down.clear();
    for node in NODES {
        if sim.objects.get_typed::<Node>("", node).is_none() {
            add_node(sim, node).await;
        }
        set_ready(sim, node, "True").await;
    }
    sim.change::<CronJob>("cron", json!({"spec": {"suspend": true}})).await;
    let well = |pod: &Pod| {
        let ends = owner::controller_of(&pod.metadata).is_some_and(|o| o.kind == "Job");
        if ends { Fate::Succeed } else { Fate::Run }
    };
    for _ in 0..12 {
        watch.note(&sim.objects);
        sim.settle(well, |_| {}).await;
        watch.note(&sim.objects);
        sim.pass(700);
    }
    let objects = sim.objects.clone();
    for (app, wanted) in [
        ("deployment", REPLICAS),
        ("replicationcontroller", 2),
        ("statefulset", 3),
        ("daemonset", NODES.len()),
    ] {
        let (count, ready) = (active(&objects, app), available(&objects, app));
        watch.claim((count, ready) == (wanted, wanted), || format!("{app}: {count} pods, {ready} ready"));
    }
    let deployment = sim.get::<Deployment>("deployment").status.clone().unwrap_or_default();
    watch.claim(deployment.updated_replicas == Some(4), || format!("{deployment:?}"));
    let set = sim.get::<StatefulSet>("statefulset").status.clone().unwrap_or_default();
    watch.claim(set.current_revision == set.update_revision, || format!("{set:?}"));
    let rc = sim.get::<ReplicationController>("replicationcontroller").status.clone().unwrap_or_default();
    watch.claim(rc.available_replicas == Some(2), || format!("{rc:?}"));
    let status = sim.get::<Job>("job").status.clone().unwrap_or_default();
    let (counted, seen) = (status.succeeded, i32::try_from(watch.succeeded.len()).unwrap());
    watch.claim(counted == Some(seen) && seen >= COMPLETIONS, || format!("{seen} succeeded; {status:?}"));
    watch.claim(job::is_complete(&sim.get::<Job>("job")), || format!("not complete: {status:?}"));
    for (whose, plan) in sim.plans() {
        watch.claim(plan.actions.is_empty(), || format!("{whose} still wants {:?}", plan.actions));
    }
}

#[tokio::test]
async fn whatever_goes_wrong_the_bounds_hold_and_all_comes_to_rest() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = if let Some(seed) = number("SAMPAN_SEED") {
        seed..seed + 1
    } else {
        let first = number("SAMPAN_FIRST").unwrap_or(1);
        first..first + number("SAMPAN_RUNS").unwrap_or(RUNS)
    };
    for seed in seeds {
        eprintln!("SAMPAN_SEED={seed}");
        let trouble = run(seed).await;
        assert!(trouble.is_empty(), "SAMPAN_SEED={seed} replays this: {trouble:#?}");
    }
}
