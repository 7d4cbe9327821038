//! What holds of every controller, checked of each in the same way. A case names controllers, what
//! there is, and what somebody then wants; it is played
//!
//! - as it should go: the cluster comes to rest as wanted, nothing is left to do, every plan carried
//!   out twice changes nothing the second time, the bounds hold after every plan, and no more is
//!   deleted than the case says;
//! - with the master ending at every action (a sample of them where there are many) and beginning
//!   anew: it comes to the very same rest, within the same bounds, deleting no more;
//! - with random faults: lost, cut and repeated plans, restarts, late and repeated statuses, clocks
//!   that jump. `SAMPAN_SEED=n` replays one such play.
//!
//! A test holds that no controller is left out.

mod cases;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    owner,
    plan::{Action, Plan},
    pods,
    runner::Controller,
    sim::{Dice, Fate, Sim, mangle},
};
use crate::{
    ids,
    kinds::{Subresource, registry},
    objects::{DeleteOptions, Objects, Propagation},
    store::Key,
};

/// How many actions of a play are tried as the master's last.
const ENDS_MAX: usize = 10;
/// How many plays with random faults there are, and how many faulty rounds follow each change.
const SEEDS: u64 = 3;
const FAULTY_ROUNDS: usize = 6;
/// How many rounds a cluster may take to come to rest.
const ROUNDS_MAX: usize = 100;

/// Pods (by the label `app`) of which there may never be more than `most`, and of which no plan may
/// leave fewer than `least` available where there were more.
#[derive(Debug, Clone, Copy)]
struct Bound {
    app: &'static str,
    least: usize,
    most: usize,
}

/// What somebody does.
enum Change {
    Create(Value),
    /// A merge patch of `resource` `name`.
    Merge(&'static str, &'static str, Value),
    Status(&'static str, &'static str, Value),
    Delete(&'static str, &'static str, Option<Propagation>),
    /// Time passes (seconds).
    Pass(i64),
    /// Only this node does nothing; `""`: all work.
    Down(&'static str),
    /// From now on.
    Bound(Bound),
}

type Controllers = fn() -> Vec<Arc<dyn Controller>>;
type End = Box<dyn Fn(&Objects) -> Value>;

/// One case; see the module.
struct Case {
    controllers: Controllers,
    /// What there is at first, before anybody looks.
    objects: Vec<Value>,
    /// Everything comes to rest after each.
    changes: Vec<Change>,
    fate: fn(&Pod) -> Fate,
    /// How many objects of each resource controllers delete, all in all.
    deletes: &'static [(&'static str, usize)],
    /// What is said of the cluster at the end, and what it should be.
    end: (End, Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Faults {
    None,
    /// The master ends after so many actions, and begins anew.
    EndAfter(usize),
    Seed(u64),
}

/// What a play came to.
struct Outcome {
    actions: usize,
    /// All that is there, without what differs from run to run.
    summary: String,
    trouble: Vec<String>,
}

struct Play<'a> {
    case: &'a Case,
    sim: Sim,
    dice: Dice,
    faults: Faults,
    bounds: Vec<Bound>,
    watch: Watch,
}

/// What has been seen so far.
#[derive(Default)]
struct Watch {
    actions: usize,
    /// Objects (uids) that controllers deleted, by resource.
    deleted: BTreeMap<String, BTreeSet<String>>,
    available: BTreeMap<&'static str, usize>,
    trouble: Vec<String>,
}

impl Watch {
    fn note(&mut self, objects: &Objects, bounds: &[Bound]) {
        self.available = bounds.iter().map(|b| (b.app, available(objects, b.app))).collect();
    }

    fn check(&mut self, objects: &Objects, whose: &str, bounds: &[Bound]) {
        for Bound { app, least, most } in bounds {
            let count = of(objects, app).filter(|p| pods::is_active(p)).count();
            if count > *most {
                self.trouble.push(format!("{whose}: {count} pods {app}, may be {most}"));
            }
            let (before, now) = (self.available.get(app).copied().unwrap_or(0), available(objects, app));
            if now < before && now < *least {
                self.trouble.push(format!("{whose}: {now} of {before} pods {app} left, should be {least}"));
            }
        }
        self.note(objects, bounds);
    }

    /// Counts what a plan is about to do.
    fn count(&mut self, objects: &Objects, plan: &Plan) {
        self.actions += plan.actions.len();
        for action in &plan.actions {
            let Action::Delete { target, .. } = action else { continue };
            let key = Key::new(&target.kind.resource(), &target.namespace, &target.name);
            if objects.store().get(&key).is_some_and(|o| *o.meta.uid == *target.uid && !o.meta.deleting) {
                self.deleted.entry(target.kind.resource()).or_default().insert(target.uid.clone());
            }
        }
    }
}

fn of<'a>(objects: &Objects, app: &'a str) -> impl Iterator<Item = Arc<Pod>> + 'a {
    objects.list_typed::<Pod>(None).into_iter().filter(move |p| owner::label(&p.metadata, "app") == Some(app))
}

fn available(objects: &Objects, app: &str) -> usize {
    of(objects, app).filter(|p| pods::is_active(p) && pods::is_ready(p)).count()
}

impl Play<'_> {
    async fn change(&mut self, change: &Change) {
        let row = |resource: &str| registry::by_resource(resource).unwrap();
        match change {
            Change::Create(object) => self.sim.create(object.clone()).await,
            Change::Merge(resource, name, patch) => {
                self.sim.merge(row(resource), None, name, patch.clone()).await;
            }
            Change::Status(resource, name, status) => {
                let patch = json!({ "status": status });
                self.sim.merge(row(resource), Some(Subresource::Status), name, patch).await;
            }
            Change::Delete(resource, name, propagation) => {
                let delete = DeleteOptions { propagation: *propagation, ..DeleteOptions::default() };
                self.sim.remove(row(resource), name, delete).await;
            }
            Change::Pass(seconds) => self.sim.pass(*seconds),
            Change::Down(node) => self.sim.down = [(*node).to_owned()].into(),
            Change::Bound(bound) => {
                self.bounds.retain(|b| b.app != bound.app);
                self.bounds.push(*bound);
            }
        }
        self.watch.note(&self.sim.objects, &self.bounds);
    }

    /// Every controller looks at everything once, then the kubelets.
    async fn round(&mut self, faulty: bool) {
        let objects = self.sim.objects.clone();
        let (watch, dice, faults) = (&mut self.watch, &mut self.dice, self.faults);
        let mut ended = false;
        // Both closures of a step need what has been seen.
        let watch = std::cell::RefCell::new(watch);
        let mut happens = |plan: Plan| {
            let mut watch = watch.borrow_mut();
            let plans = match faults {
                _ if ended => Vec::new(),
                Faults::EndAfter(last)
                    if watch.actions + plan.actions.len() > last && watch.actions <= last =>
                {
                    ended = true;
                    let mut plan = plan;
                    plan.actions.truncate(last - watch.actions);
                    plan.events.clear();
                    // Whatever comes next is beyond the end.
                    watch.actions = last + 1;
                    vec![plan]
                }
                Faults::Seed(_) if faulty => mangle(plan, dice),
                _ => vec![plan],
            };
            for plan in plans.iter().take(1) {
                watch.count(&objects, plan);
            }
            plans
        };
        let bounds = &self.bounds;
        let mut check = |objects: &Objects, whose: &'static str| {
            watch.borrow_mut().check(objects, whose, bounds);
        };
        self.sim.faulty_step(&mut happens, &mut check).await;
        if ended || (faulty && self.dice.roll(6) == 0) {
            self.sim.restart((self.case.controllers)());
        }
        let (fate, lazy) = (self.case.fate, faulty && self.dice.roll(3) == 0);
        let late = self.dice.roll(1 << 16) as usize;
        let fate = |pod: &Pod| {
            let dice: usize = owner::uid(&pod.metadata).bytes().map(usize::from).sum();
            if lazy && (dice ^ late).is_multiple_of(2) { Fate::Leave } else { fate(pod) }
        };
        self.sim.kubelet(&fate).await;
        self.watch.note(&self.sim.objects, &self.bounds);
    }

    async fn rest(&mut self) {
        if matches!(self.faults, Faults::Seed(_)) {
            for _ in 0..FAULTY_ROUNDS {
                // Clocks of boards go wrong by little and by much, and come back.
                let jump = [0, 0, 1, -1, 30, -30][usize::try_from(self.dice.roll(6)).unwrap()];
                self.sim.pass(jump);
                self.round(true).await;
                self.sim.pass(-jump);
            }
        }
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.sim.fingerprint();
            self.round(false).await;
            quiet = if self.sim.fingerprint() == before { quiet + 1 } else { 0 };
            if quiet == 2 {
                return;
            }
        }
        let plans = self.sim.plans().into_iter().filter(|(_, plan)| !plan.actions.is_empty());
        let wanted: Vec<_> = plans.map(|(whose, plan)| (whose, plan.actions)).collect();
        self.watch.trouble.push(format!("it does not come to rest; next would be {wanted:?}"));
    }
}

async fn play(case: &Case, faults: Faults) -> Outcome {
    let seed = if let Faults::Seed(seed) = faults { seed } else { 1 };
    ids::seeded::start(seed);
    let mut play = Play {
        case,
        sim: Sim::new((case.controllers)()),
        dice: Dice::new(seed),
        faults,
        bounds: Vec::new(),
        watch: Watch::default(),
    };
    play.sim.nodes = vec!["a".to_owned()];
    for object in &case.objects {
        play.sim.create(object.clone()).await;
    }
    play.rest().await;
    for change in &case.changes {
        play.change(change).await;
        play.rest().await;
    }
    let Play { mut watch, sim, .. } = play;
    let is = (case.end.0)(&sim.objects);
    if is != case.end.1 {
        watch.trouble.push(format!("it ends as {is}, should be {}", case.end.1));
    }
    for (whose, plan) in sim.plans() {
        if !plan.actions.is_empty() {
            watch.trouble.push(format!("{whose} still wants {:?}", plan.actions));
        }
    }
    for (resource, uids) in &watch.deleted {
        let most = case.deletes.iter().find(|(r, _)| r == resource).map_or(0, |(_, most)| *most);
        if uids.len() > most {
            watch.trouble.push(format!("{} {resource} were deleted, should be {most}", uids.len()));
        }
    }
    Outcome { actions: watch.actions, summary: summary(&sim.objects), trouble: watch.trouble }
}

/// All that is there, without times, uids, revisions and generated names.
fn summary(objects: &Objects) -> String {
    const VOLATILE: [&str; 17] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "lastTransitionTime",
        "lastUpdateTime",
        "lastProbeTime",
        "startTime",
        "completionTime",
        "timeAdded",
        "managedFields",
        "generation",
        "observedGeneration",
        "nodeName",
        "lastPhaseTransitionTime",
        "lastScaleTime",
        "endpoints.kubernetes.io/last-change-trigger-time",
    ];
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, _| !VOLATILE.contains(&name.as_str()));
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => {
                items.iter_mut().for_each(strip);
                if items.iter().all(|i| i["type"].is_string()) {
                    items.sort_by_key(|i| i["type"].as_str().map(str::to_owned));
                }
            }
            _ => {}
        }
    }
    let all = objects.store().find(|o| !["events", "leases.coordination.k8s.io"].contains(&&*o.key.resource));
    let mut replaced: Vec<(String, &str)> = Vec::new();
    for object in &all {
        replaced.push((object.meta.uid.to_string(), "(uid)"));
        if object.value()["metadata"]["generateName"].is_string() {
            replaced.push((object.key.name.to_string(), "(name)"));
        }
    }
    let line = |object: &Arc<crate::store::Object>| {
        let mut value = object.value();
        strip(&mut value);
        let mut text = value.to_string();
        for (word, by) in &replaced {
            text = text.replace(word.as_str(), by);
        }
        text
    };
    let mut lines: Vec<String> = all.iter().map(line).collect();
    lines.sort();
    lines.join("\n")
}

async fn holds(case: Case) {
    let seeds = std::env::var("SAMPAN_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seeds: Vec<u64> = seeds.map_or_else(|| (1..=SEEDS).collect(), |seed| vec![seed]);
    let right = play(&case, Faults::None).await;
    assert!(right.trouble.is_empty(), "as it should go: {:#?}", right.trouble);
    let step = right.actions.div_ceil(ENDS_MAX).max(1);
    for last in (0..right.actions).step_by(step) {
        let outcome = play(&case, Faults::EndAfter(last)).await;
        assert!(outcome.trouble.is_empty(), "ended after action {last}: {:#?}", outcome.trouble);
        let differs = |a: &str, b: &str| -> Vec<String> {
            a.lines().filter(|line| !b.lines().any(|other| other == *line)).map(str::to_owned).collect()
        };
        let (here, there) =
            (differs(&outcome.summary, &right.summary), differs(&right.summary, &outcome.summary));
        assert!(
            here.is_empty() && there.is_empty(),
            "ended after action {last}, it comes to another rest: {here:#?}, should be {there:#?}"
        );
    }
    for seed in seeds {
        let outcome = play(&case, Faults::Seed(seed)).await;
        assert!(outcome.trouble.is_empty(), "SAMPAN_SEED={seed} replays this: {:#?}", outcome.trouble);
    }
}
