//! One task a pod: looks, plans, acts, tells.
//!
//! Level-triggered: mail says only that something may have changed. Actions run side by side as
//! jobs; their ends are mail as well. The record is on disk before a container is started.
//! Invariants: what the plan does not ask for is not done; when the agent stops, containers stay.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PodStatus, Probe};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    admit::{self, Admission},
    hooks::{self, Fault, Target},
    jobs::{self, Deadline, Done, Hindrance},
    plan::{self, Action, Plan},
    preempt,
    probes::{self, Kind},
    qos,
    record::{
        Failure, Identity, Job, LOST_EXIT_CODE, Live, LiveContainer, Now, Past, Record, Role, Setup, Verdict,
        WHOLE_POD, Wanted, container_id, move_times, patience,
    },
    resize,
    shared::Shared,
    status::{self, Waiting},
    volumes::{Mounted, Token},
};
use crate::{
    clock::Jumps,
    crash,
    mqtt::messages::Item,
    runtime::{self, ContainerState, Exit},
    tasks::CancellationToken,
};

/// Mail that a worker may have waiting.
const MAIL_MAX: usize = 64;
/// Probe verdicts that may be waiting.
const VERDICTS_MAX: usize = 32;
/// The first pause between tries of a pod's set-up.
const SETUP_RETRY_SECONDS_FIRST: i64 = 1;
/// The longest time without a look.
const LOOK_PERIOD: Duration = Duration::from_mins(5);

/// What a worker is told.
#[derive(Debug, Clone)]
pub enum Mail {
    /// The pod as it is wanted now.
    Wanted(Arc<Item>),
    /// The pod is wanted no longer.
    Removed,
    /// A container of it may have changed.
    Look,
    /// ConfigMaps, Secrets or claims may have changed.
    Items,
    /// The node needs what the pod has.
    Evict(Verdict),
    /// There are images that were not there before.
    Images,
    /// A user of this board wants a container (or all) to be started anew.
    Restart(Option<String>),
}

/// Where mail for a worker goes.
#[derive(Clone)]
pub struct Mailbox(mpsc::Sender<Mail>);

impl Mailbox {
    /// Tells the worker. A full box has a look in it anyway; wanted states wait for their place.
    pub async fn send(&self, mail: Mail) {
        match mail {
            Mail::Look | Mail::Items | Mail::Images => drop(self.0.try_send(mail)),
            mail => drop(self.0.send(mail).await),
        }
    }
}

/// Since when a container runs, as it was told last.
fn running_since(status: &PodStatus, name: &str) -> Option<Timestamp> {
    let told = status::of_container(status, name)?;
    Some(told.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)
}

/// The worker of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    wanted: Wanted,
    removed: bool,
    record: Record,
    live: Live,
    mounted: BTreeMap<String, Mounted>,
    /// The namespaces were there when the agent started.
    sandbox_exists: bool,
    setup_tries: u32,
    waiting: Waiting,
    reported: bool,
    next_refresh: Option<Instant>,
    /// Others go so that this pod, which is critical, can come.
    preempting: Option<Preempting>,
    /// When it is told that a pod which the node ends takes too long.
    overdue: Option<Instant>,
    room: watch::Receiver<()>,
    clock: Jumps,
    /// The contents of volumes are being brought up to date, and may have changed since that began.
    refreshing: bool,
    stale: bool,
    /// Whether the pod's volumes are there; locked while they are written or taken away.
    volumes: Arc<tokio::sync::Mutex<bool>>,
    jobs: JoinSet<Done>,
    /// When the pod's containers are killed, once it has to end.
    deadline: watch::Sender<Option<Instant>>,
    probing: BTreeMap<(String, &'static str), AbortHandle>,
    probes: JoinSet<()>,
    verdicts: (mpsc::Sender<probes::Verdict>, mpsc::Receiver<probes::Verdict>),
    mail: mpsc::Receiver<Mail>,
}

/// Who goes for a critical pod, and how long that is waited for.
struct Preempting {
    victims: Vec<String>,
    until: Instant,
}

impl Worker {
    /// A worker for a pod with what is remembered of it. `removed`: only the record is left of it.
    pub fn new(
        shared: Arc<Shared>,
        wanted: Wanted,
        record: Record,
        sandbox_exists: bool,
        removed: bool,
    ) -> (Self, Mailbox) {
        let (sender, mail) = mpsc::channel(MAIL_MAX);
        let mut record = Record { namespace: wanted.namespace.clone(), name: wanted.name.clone(), ..record };
        // A pod of before the node asked itself whether to take it.
        record.admitted |= record.epoch > 0;
        let mut wanted = wanted;
        wanted.allocate(&record.allocated);
        let worker = Self {
            clock: Jumps::new(&*shared.clock),
            room: shared.room.subscribe(),
            shared,
            wanted,
            removed,
            record,
            live: Live::default(),
            mounted: BTreeMap::new(),
            sandbox_exists,
            setup_tries: 0,
            waiting: Waiting::new(),
            reported: false,
            next_refresh: None,
            preempting: None,
            overdue: None,
            refreshing: false,
            stale: false,
            volumes: Arc::default(),
            jobs: JoinSet::new(),
            deadline: watch::Sender::new(None),
            probing: BTreeMap::new(),
            probes: JoinSet::new(),
            verdicts: mpsc::channel(VERDICTS_MAX),
            mail,
        };
        worker.note_allocation();
        (worker, Mailbox(sender))
    }

    /// Runs until the pod is gone and forgotten, or the agent stops. Returns the uid.
    pub async fn run(mut self, stop: CancellationToken) -> String {
        let uid = self.wanted.uid.clone();
        loop {
            self.follow_clock();
            self.observe().await;
            let wake = if self.record.gone { None } else { self.step().await };
            self.tell().await;
            if self.removed && self.record.gone {
                crash::point(crash::DAEMON);
                if let Err(error) = self.shared.ledger.forget(&uid).await {
                    tracing::error!(pod = self.wanted.full_name(), %error, "forgetting a pod");
                }
                return uid;
            }
            let now = self.shared.clock.now();
            let pause = wake.map_or(LOOK_PERIOD, |at| {
                Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO).min(LOOK_PERIOD)
            });
            let until = Instant::now() + pause;
            let patience = self.preempting.as_ref().map(|preempting| preempting.until);
            let until =
                [self.next_refresh, self.overdue, patience].into_iter().flatten().fold(until, Instant::min);
            let needs_room = self.preempting.is_some() || self.record.resize.pending.is_some();
            tokio::select! {
                () = stop.cancelled() => return uid,
                mail = self.mail.recv() => match mail {
                    Some(mail) => self.take(mail),
                    None => return uid,
                },
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.finish(done).await,
                    Err(error) => tracing::error!(pod = self.wanted.full_name(), %error, "a job ended badly"),
                },
                Some(verdict) = self.verdicts.1.recv() => self.judge(verdict),
                Ok(()) = self.room.changed(), if needs_room => {}
                () = tokio::time::sleep_until(until) => {}
            }
            if self.next_refresh.is_some_and(|at| at <= Instant::now()) {
                self.refresh();
            }
            if self.overdue.is_some_and(|at| at <= Instant::now()) {
                self.overdue = None;
                self.tell_overdue();
            }
        }
    }

    /// The node has told the pod to end, and something of it still runs.
    fn tell_overdue(&self) {
        let alive = |now| matches!(now, Now::Running { .. } | Now::Starting);
        if self.record.containers.keys().any(|name| alive(self.live.now(name, &self.record))) {
            let message = "Container runtime did not terminate the pod within specified grace period.";
            self.say(None, true, "ExceededGracePeriod", message);
        }
    }

    /// Somebody may have set the clock: what this pod waits for does not come sooner or later by that.
    fn follow_clock(&mut self) {
        let by = self.clock.since_last(&*self.shared.clock);
        if by.is_zero() {
            return;
        }
        tracing::info!(pod = self.wanted.full_name(), seconds = by.as_secs(), "the clock was set");
        self.live.clock_was_set(by);
        move_times(self.record.status.start_time.as_mut().map(|time| &mut time.0), by);
        // Tokens that seemed good may be over.
        self.refresh();
    }

    fn say(&self, container: Option<&str>, warning: bool, reason: &str, message: impl Into<String>) {
        self.shared.event(&self.wanted, container, warning, reason, message.into());
    }

    fn live(&mut self, container: &str) -> &mut LiveContainer {
        self.live.containers.entry(container.to_owned()).or_default()
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Wanted(item) => match item.read() {
                Ok(pod) => {
                    let mut wanted = Wanted::new(pod);
                    wanted.ending = self.wanted.ending.clone();
                    self.wanted = wanted;
                    self.wanted.allocate(&self.record.allocated);
                    self.want_new_volumes();
                    // Labels and annotations are shown in volumes.
                    self.refresh();
                }
                Err(error) => tracing::error!(%error, "a pod cannot be read"),
            },
            Mail::Removed => self.removed = true,
            Mail::Look => {}
            Mail::Evict(verdict) => {
                if self.record.verdict.is_none() && !self.wanted.deleting() {
                    self.say(None, true, &verdict.reason, verdict.message.clone());
                    let grace = verdict.grace_seconds.unwrap_or_else(|| self.wanted.grace_seconds());
                    self.overdue = Some(Instant::now() + patience(grace));
                    self.record.verdict = Some(verdict);
                }
            }
            Mail::Images => {
                for (name, live) in &mut self.live.containers {
                    let waits = live.failure.as_ref().is_some_and(|f| f.reason.starts_with("ErrImage"));
                    let of_volume = live.failure.as_ref().and_then(|failure| failure.image.as_deref());
                    let own = || self.wanted.container(name).and_then(|(_, c)| c.image.as_deref());
                    let image = of_volume.or_else(own);
                    if waits && image.is_some_and(|image| self.shared.images.find(image).is_some()) {
                        live.failure = None;
                    }
                }
            }
            Mail::Restart(only) => {
                for (role, container) in self.wanted.containers() {
                    let asked = only.as_ref().is_none_or(|name| *name == container.name);
                    let stays = matches!(role, Role::Main | Role::Sidecar);
                    if asked
                        && stays
                        && matches!(self.live.now(&container.name, &self.record), Now::Running { .. })
                    {
                        let live = self.live.containers.entry(container.name.clone()).or_default();
                        let message = format!("Container {} was restarted on the node", container.name);
                        live.doomed = Some((message, None));
                    }
                }
            }
            Mail::Items => {
                let now = self.shared.clock.now();
                if let Setup::Failed { retry_at } = &mut self.live.setup {
                    *retry_at = now;
                }
                for container in self.live.containers.values_mut() {
                    if container.failure.as_ref().is_some_and(|f| f.reason.starts_with("CreateContainer")) {
                        container.failure = None;
                    }
                }
                self.refresh();
            }
        }
    }

    /// Asks the runtime for the containers whose end is not known yet.
    async fn observe(&mut self) {
        let names: Vec<_> = self.record.containers.keys().cloned().collect();
        for name in names {
            let known = self.record.container(&name);
            let Some(attempt) = known.attempts.checked_sub(1) else { continue };
            let job = self.live.container(&name).job;
            if known.last.as_ref().is_some_and(|l| l.attempt == attempt) || job == Some(Job::Starting) {
                continue;
            }
            let id = container_id(&self.wanted.uid, &name, attempt);
            match self.shared.runtime.state(&id).await {
                Ok(ContainerState::Exited(exit)) => self.ended(&name, attempt, exit).await,
                Ok(state) => {
                    let first = self.live.container(&name).state.is_none();
                    self.live(&name).state = Some(state.clone());
                    if first && matches!(state, ContainerState::Running { .. }) {
                        self.adopt(&name, attempt);
                    }
                }
                Err(runtime::Error::NotFound(_)) => {
                    let exit = Exit {
                        code: LOST_EXIT_CODE,
                        signal: None,
                        oom_killed: false,
                        started_at: None,
                        finished_at: self.shared.clock.now(),
                        error: None,
                    };
                    self.ended(&name, attempt, exit).await;
                    let since = running_since(&self.record.status, &name);
                    if let Some(past) = self.record.containers.get_mut(&name).and_then(|c| c.last.as_mut()) {
                        past.since = since;
                    }
                }
                Err(error) => tracing::warn!(id, %error, "asking for a container's state"),
            }
        }
    }

    /// Notes the end of the newest attempt.
    async fn ended(&mut self, name: &str, attempt: u32, exit: Exit) {
        let message = jobs::termination_message(&self.shared, &self.wanted, name, attempt, &exit).await;
        if let Some(known) = self.record.containers.get_mut(name) {
            known.last = Some(Past { attempt, exit, message, since: None });
        }
        self.stop_probes(name, &[Kind::Startup, Kind::Liveness, Kind::Readiness]);
        let live = self.live(name);
        live.state = None;
        live.started = false;
        live.ready = false;
        live.hooking = false;
        live.doomed = None;
    }

    /// Takes over a container that an earlier agent has started.
    fn adopt(&mut self, name: &str, attempt: u32) {
        let before = &self.record.status;
        let statuses = before.container_statuses.iter().chain(&before.init_container_statuses).flatten();
        let old = statuses.into_iter().find(|s| s.name == name).cloned();
        let live = self.live(name);
        live.ready = old.as_ref().is_some_and(|s| s.ready);
        live.started = old.is_some_and(|s| s.started == Some(true));
        if self.live.container(name).started {
            self.watch_health(name, attempt);
        } else {
            self.started(name, attempt);
        }
    }

    /// Plans and begins what is planned. Returns when to look again.
    async fn step(&mut self) -> Option<Timestamp> {
        let now = self.shared.clock.now();
        let over = self.removed || self.wanted.deleting() || self.record.verdict.is_some();
        if !over {
            self.admit();
            self.allocate().await;
            if self.preempting.is_some() {
                return None;
            }
        }
        if (self.removed || self.wanted.deleting()) && !self.live.tearing {
            // Ended by itself before: its files and logs were kept, and go now.
            self.live.torn_down = false;
        }
        if over || self.record.verdict.is_some() {
            self.wanted.ending.cancel();
            self.hurry(now);
        }
        let Plan { actions, waiting, mut wake, verdict, crashed, anew } =
            plan::plan(&self.wanted, &self.record, &self.live, self.removed, now);
        if let Some(verdict) = verdict {
            self.say(None, false, &verdict.reason, verdict.message.clone());
            self.record.verdict = Some(verdict);
        }
        for name in &crashed {
            self.live(name).crash.note(now);
        }
        if anew {
            self.record.epoch += 1;
            self.record.anew = self.record.epoch;
            wake = Some(now);
        }
        self.tell_waiting(&waiting);
        self.waiting = waiting;
        for action in actions {
            self.begin(action).await;
        }
        wake
    }

    /// Sets the time at which what still runs is killed; one that comes later may only be earlier.
    fn hurry(&mut self, now: Timestamp) {
        let own = self.record.verdict.as_ref().and_then(|verdict| verdict.grace_seconds);
        let grace = self.wanted.grace_seconds();
        let grace = own.map_or(grace, |own| if self.wanted.deleting() { own.min(grace) } else { own }).max(1);
        if self.live.ending.is_some() && self.live.ending_grace.is_some_and(|before| before <= grace) {
            return;
        }
        let until = now + SignedDuration::from_secs(grace);
        self.live.ending = Some(self.live.ending.map_or(until, |before| before.min(until)));
        self.live.ending_grace = Some(grace);
        let until = Instant::now() + Duration::from_secs(grace.unsigned_abs());
        self.deadline.send_if_modified(|deadline| {
            let sooner = deadline.is_none_or(|deadline| until < deadline);
            if sooner {
                *deadline = Some(until);
            }
            sooner
        });
    }

    /// Asks once whether this node takes the pod. While others go for it, it has its place, and waits.
    fn admit(&mut self) {
        if self.record.admitted {
            return;
        }
        if let Some(Preempting { victims, until }) = &self.preempting {
            let all = self.shared.allocations();
            if Instant::now() < *until && victims.iter().any(|uid| all.contains_key(uid)) {
                return;
            }
            drop(all);
            self.preempting = None;
            self.record.admitted = true;
        } else {
            let shared = Arc::clone(&self.shared);
            let _one_after_the_other =
                shared.admitting.lock().expect("no holder of the admission's lock panics");
            match admit::admit(&self.wanted, &shared.ground(&self.wanted.uid)) {
                Ok(Admission::Taken) => {}
                Ok(Admission::Needs(lacks)) => {
                    match self.preempt(&lacks) {
                        Ok(preempting) => self.preempting = Some(preempting),
                        Err(verdict) => self.refuse(verdict),
                    }
                    self.note_allocation();
                    return;
                }
                Err(verdict) => {
                    self.refuse(verdict);
                    return;
                }
            }
            self.record.admitted = true;
            self.note_allocation();
        }
        self.record.allocated = self.wanted.asked();
    }

    fn refuse(&mut self, verdict: Verdict) {
        let said = verdict.message.trim_start_matches("Pod was rejected: ").to_owned();
        self.say(None, true, &verdict.reason, said);
        self.record.verdict = Some(verdict);
    }

    /// Tells those to go who have what this pod lacks.
    fn preempt(&self, lacks: &[admit::Lack]) -> Result<Preempting, Verdict> {
        let all = self.shared.allocations();
        let victims = admit::victims(&self.wanted, &all, lacks)?;
        let longest = victims.iter().filter_map(|uid| Some(patience(all.get(uid)?.grace_seconds))).max();
        drop(all);
        let signal = lacks.first().map(|lack| lack.resource.clone()).unwrap_or_default();
        let mut counts = self.shared.preemptions.lock().expect("no holder of the preemptions' lock panics");
        *counts.entry(signal).or_default() += victims.len() as u64;
        drop(counts);
        tracing::info!(pod = self.wanted.full_name(), ?victims, "others go for a critical pod");
        for uid in &victims {
            self.shared.victims.add(uid.clone(), preempt::verdict());
        }
        Ok(Preempting { victims, until: Instant::now() + longest.unwrap_or_default() })
    }

    /// Tells the other pods what this one has of the node: nothing, once it has ended.
    fn note_allocation(&self) {
        let over = matches!(self.record.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let has_place = self.record.admitted || self.preempting.is_some();
        let share = (has_place && !self.record.gone && !over).then(|| {
            let mut has = self.wanted.clone();
            has.allocate(&self.record.in_force());
            admit::Share::of(&self.wanted, &has.spec)
        });
        let mut all = self.shared.allocations();
        let before = match share.clone() {
            Some(share) => all.insert(self.wanted.uid.clone(), share),
            None => all.remove(&self.wanted.uid),
        };
        drop(all);
        if before.is_some() && before != share {
            self.shared.room.send_replace(());
        }
    }

    /// Gives the pod what it asks for anew, when the node has it.
    async fn allocate(&mut self) {
        if !self.record.admitted {
            return;
        }
        let asked = self.wanted.asked();
        if self.record.allocated.is_empty() {
            self.record.allocated.clone_from(&asked);
        }
        let generation = self.wanted.pod.metadata.generation.unwrap_or(0);
        if asked == self.record.allocated {
            self.record.resize.pending = None;
        } else {
            let mut larger = self.wanted.clone();
            larger.allocate(&asked);
            let ground = self.shared.ground(&self.wanted.uid);
            match resize::decide(&admit::requests(&larger.spec), &ground) {
                Ok(()) => {
                    let had = self.record.allocated.get(WHOLE_POD);
                    if self.record.resources.is_none() && asked.get(WHOLE_POD) != had {
                        self.record.resources = Some(had.cloned().unwrap_or_default());
                    }
                    self.wanted.allocate(&asked);
                    self.record.allocated = asked;
                    self.record.resize.pending = None;
                    self.record.resize.in_progress = Some((String::new(), generation));
                    self.live.resize_retry = None;
                    let message = resize::message("Pod resize started", &self.wanted, generation, "");
                    self.say(None, false, "ResizeStarted", message);
                    self.note_allocation();
                    if let Err(error) = self.shared.ledger.save(&self.wanted.uid, &self.record).await {
                        tracing::error!(%error, "writing the ledger");
                    }
                }
                Err((reason, why)) => {
                    let pending = Some((reason.to_owned(), why.clone(), generation));
                    if self.record.resize.pending != pending {
                        let what = format!("Pod resize {reason}");
                        let message = resize::message(&what, &larger, generation, &why);
                        self.say(None, true, &format!("Resize{reason}"), message);
                        self.record.resize.pending = pending;
                    }
                }
            }
        }
        if self.record.resize.in_progress.as_ref().is_some_and(|(error, _)| error.is_empty())
            && !self.live.resizing
            && plan::in_force(&self.wanted, &self.record, &self.live)
        {
            self.record.resize.in_progress = None;
            self.note_allocation();
            let message = resize::message("Pod resize completed", &self.wanted, generation, "");
            self.say(None, false, "ResizeCompleted", message);
        }
    }

    /// Events of containers that have begun to wait.
    fn tell_waiting(&self, waiting: &Waiting) {
        for (name, (reason, _)) in waiting {
            if self.waiting.get(name).is_some_and(|(old, _)| old == reason) {
                continue;
            }
            match reason.as_str() {
                "CrashLoopBackOff" => self.say(
                    Some(name),
                    true,
                    "BackOff",
                    format!("Back-off restarting failed container {name} in pod {}", self.wanted.full_name()),
                ),
                "ImagePullBackOff" => {
                    let of_volume = self.live.container(name).failure.and_then(|failure| failure.image);
                    let own = || self.wanted.container(name).and_then(|(_, c)| c.image.clone());
                    let subject = of_volume.is_none().then_some(name.as_str());
                    let image = of_volume.or_else(own).unwrap_or_default();
                    self.say(subject, false, "BackOff", format!("Back-off pulling image {image:?}"));
                    self.say(Some(name), true, "Failed", "Error: ImagePullBackOff");
                }
                _ => {}
            }
        }
    }

    async fn begin(&mut self, action: Action) {
        let shared = Arc::clone(&self.shared);
        let wanted = self.wanted.clone();
        match action {
            Action::Setup => {
                let network = shared.network_error();
                if !network.is_empty() && !wanted.host_network() {
                    self.setup_failed(("NetworkNotReady", vec![format!("network is not ready: {network}")]));
                    return;
                }
                if !self.sandbox_exists
                    && let Err(message) = jobs::runtime_handler(&shared, &wanted)
                {
                    self.setup_failed(("FailedCreatePodSandBox", vec![message]));
                    return;
                }
                if let Err(message) = self.take_address() {
                    self.setup_failed(("FailedCreatePodSandBox", vec![message]));
                    return;
                }
                if !self.sandbox_exists && self.record.epoch > 0 && self.setup_tries == 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.say(None, false, "SandboxChanged", message);
                }
                let (ip, runs) = (self.record.ip, self.sandbox_exists);
                let volumes = Arc::clone(&self.volumes);
                self.live.setup = Setup::Doing;
                self.jobs.spawn(async move {
                    let mut there = volumes.lock().await;
                    let result = jobs::set_up(&shared, &wanted, ip, runs).await;
                    *there |= result.is_ok();
                    Done::Setup(result)
                });
            }
            Action::Prepare { container } => {
                self.live(&container).job = Some(Job::Preparing);
                let attempt = self.record.container(&container).attempts;
                let (ip, mounted) = (self.record.ip, self.mounted.clone());
                let processes_of = wanted.target_of(&container).map(|target| {
                    let attempts = self.record.container(target).attempts;
                    container_id(&wanted.uid, target, attempts.saturating_sub(1))
                });
                self.jobs.spawn(async move {
                    let result = super::launch::prepare(
                        &shared,
                        &wanted,
                        &container,
                        attempt,
                        ip,
                        &mounted,
                        processes_of,
                    )
                    .await;
                    Done::Prepared { container, result: result.map(Box::new) }
                });
            }
            Action::Kill { container, message, grace_seconds } => {
                self.live(&container).job = Some(Job::Stopping);
                // As long as it runs it may be ready, and serve while no other does.
                self.stop_probes(&container, &[Kind::Startup, Kind::Liveness]);
                self.say(Some(&container), false, "Killing", message);
                let known = self.record.container(&container);
                let pod_ip = shared.facts(&wanted, self.record.ip).pod_ip;
                let deadline = Deadline::new(grace_seconds, self.deadline.subscribe());
                self.jobs.spawn(async move {
                    jobs::kill(&shared, &wanted, &container, &known, &pod_ip, deadline).await;
                    Done::Killed { container }
                });
            }
            Action::GiveUp { container } => {
                self.live(&container).given_up = true;
                let attempt = self.record.container(&container).attempts.saturating_sub(1);
                let id = container_id(&wanted.uid, &container, attempt);
                self.jobs.spawn(async move {
                    Done::GivenUp { result: shared.runtime.kill(&id).await, container }
                });
            }
            Action::Resize { containers } => {
                self.live.resizing = true;
                let record = self.record.clone();
                self.jobs.spawn(async move {
                    let limit = |(name, own): (&String, _)| (name.clone(), qos::limited(&wanted.spec, own));
                    let limited = containers.iter().map(limit).collect();
                    let result = jobs::resize(&shared, &wanted, &record, &containers).await;
                    Done::Resized { containers, limited, result }
                });
            }
            Action::Teardown => {
                self.live.tearing = true;
                self.probes.abort_all();
                let record = self.record.clone();
                let forever = self.removed || self.wanted.deleting();
                let volumes = Arc::clone(&self.volumes);
                self.jobs.spawn(async move {
                    let mut there = volumes.lock().await;
                    *there = false;
                    let result = jobs::tear_down(&shared, &wanted, &record, forever).await;
                    Done::TornDown { result, forever }
                });
            }
        }
    }

    /// An address for the pod, if it needs one and has none; it is in the record before it is used.
    fn take_address(&mut self) -> Result<(), String> {
        if self.wanted.host_network() {
            return Ok(());
        }
        let mut addresses = self.shared.addresses();
        if let Some(ip) = self.record.ip
            && (addresses.covers(ip) || self.sandbox_exists)
        {
            return Ok(());
        }
        self.record.ip = Some(addresses.allocate()?);
        Ok(())
    }

    fn setup_failed(&mut self, (reason, messages): Hindrance) {
        for message in messages {
            self.say(None, true, reason, message);
        }
        let pause = SignedDuration::from_secs(SETUP_RETRY_SECONDS_FIRST << self.setup_tries.min(7));
        self.setup_tries += 1;
        let retry_at = self.shared.clock.now() + pause.min(plan::SETUP_RETRY_MAX);
        self.live.setup = Setup::Failed { retry_at };
    }

    async fn finish(&mut self, done: Done) {
        match done {
            Done::Setup(Ok((mounted, tokens))) => {
                self.mounted = mounted;
                self.live.setup = Setup::Done;
                self.setup_tries = 0;
                if !self.sandbox_exists {
                    self.record.epoch += 1;
                    self.sandbox_exists = true;
                }
                self.schedule_refresh(&tokens);
                let now = self.shared.masters_time();
                if tokens.iter().any(|token| token.refresh_in(now).is_some_and(|left| left.is_zero())) {
                    // It has begun with an old one.
                    self.refresh();
                }
                jobs::publish_host_ports(&self.shared, &self.wanted, self.record.ip);
                self.want_new_volumes();
            }
            Done::Setup(Err(hindrance)) => self.setup_failed(hindrance),
            Done::Prepared { container, result } => self.prepared(container, result).await,
            Done::Started { container, attempt, result } => {
                self.was_started(&container, attempt, result).await;
            }
            Done::Hooked { container, attempt, result } => {
                if self.record.container(&container).attempts != attempt + 1 {
                    return;
                }
                self.live(&container).hooking = false;
                match result {
                    Ok(()) => self.started(&container, attempt),
                    Err(text) => {
                        // What a hook says may be secret, and events are read by many.
                        self.say(Some(&container), true, "FailedPostStartHook", "PostStartHook failed");
                        let live = self.live(&container);
                        live.doomed = Some(("FailedPostStartHook".to_owned(), None));
                        live.hook_error = Some(text);
                    }
                }
            }
            Done::Killed { container } => self.live(&container).job = None,
            Done::GivenUp { result: Ok(()) | Err(runtime::Error::NotFound(_)), .. } => {}
            Done::GivenUp { container, result: Err(error) } => {
                tracing::warn!(pod = self.wanted.full_name(), container, %error, "giving up a start");
                self.live(&container).given_up = false;
            }
            Done::TornDown { result: Ok(()), forever } => {
                self.live.tearing = false;
                self.live.torn_down = true;
                self.live.setup = Setup::No;
                self.sandbox_exists = false;
                self.next_refresh = None;
                self.shared.images_used.notify_one();
                if let Some(ip) = self.record.ip.take() {
                    self.shared.addresses().release(ip);
                }
                jobs::withdraw_host_ports(&self.shared, &self.wanted.uid);
                self.shared.isolation.set(&self.wanted.uid, None);
                if forever {
                    self.record.gone = true;
                } else {
                    // Deleted meanwhile: the files go as well.
                    self.live.torn_down = !(self.removed || self.wanted.deleting());
                }
            }
            Done::TornDown { result: Err(text), .. } => {
                self.say(None, true, "FailedKillPod", format!("error killing pod: {text}"));
                self.jobs.spawn(async {
                    tokio::time::sleep(jobs::TEARDOWN_RETRY).await;
                    Done::TeardownAgain
                });
            }
            Done::Resized { containers, mut limited, result } => {
                self.live.resizing = false;
                let generation = self.wanted.pod.metadata.generation.unwrap_or(0);
                match result {
                    Ok(()) => {
                        for (name, resources) in containers {
                            if name == WHOLE_POD {
                                self.record.resources = Some(resources);
                            } else if let Some(known) = self.record.containers.get_mut(&name) {
                                known.limited = limited.remove(&name);
                                known.resources = Some(resources);
                            }
                        }
                        if let Some((error, _)) = &mut self.record.resize.in_progress {
                            error.clear();
                        }
                    }
                    Err(error) => {
                        let told = matches!(&self.record.resize.in_progress, Some((old, _)) if *old == error);
                        if !told {
                            let message =
                                resize::message("Pod resize error", &self.wanted, generation, &error);
                            self.say(None, true, "ResizeError", message);
                        }
                        self.record.resize.in_progress = Some((error, generation));
                        self.live.resize_retry = Some(self.shared.clock.now() + plan::RESIZE_RETRY);
                    }
                }
            }
            Done::TeardownAgain => self.live.tearing = false,
            Done::Refreshed(result) => {
                self.refreshing = false;
                match result {
                    Ok(tokens) => self.schedule_refresh(&tokens),
                    Err(messages) => {
                        if !self.removed && !self.wanted.deleting() && self.record.verdict.is_none() {
                            for message in messages {
                                self.say(None, true, "FailedMount", message);
                            }
                        }
                        self.next_refresh = Some(Instant::now() + jobs::REFRESH_RETRY);
                    }
                }
                if std::mem::take(&mut self.stale) {
                    self.refresh();
                }
            }
        }
    }

    async fn prepared(
        &mut self,
        name: String,
        result: Result<Box<super::launch::Prepared>, super::launch::Refusal>,
    ) {
        let now = self.shared.clock.now();
        let over = self.removed || self.wanted.deleting() || self.record.verdict.is_some();
        let prepared = match result {
            Ok(prepared) => prepared,
            Err(_) if over => {
                self.live(&name).job = None;
                return;
            }
            Err(refusal) => {
                if matches!(refusal.reason, "ErrImagePull" | "InvalidImageName") {
                    self.live(&name).pull.note(now);
                } else if refusal.reason.starts_with("CreateContainer") {
                    self.say(Some(&name), true, "Failed", format!("Error: {}", refusal.message));
                }
                if refusal.image.is_some() {
                    self.say(Some(&name), true, "Failed", format!("Error: {}", refusal.reason));
                }
                let live = self.live(&name);
                live.job = None;
                live.failure = Some(Failure {
                    reason: refusal.reason.to_owned(),
                    message: refusal.message,
                    image: refusal.image,
                    at: now,
                });
                return;
            }
        };
        let Some((_, container)) = self.wanted.container(&name).filter(|_| !over) else {
            self.live(&name).job = None;
            return;
        };
        let hash = plan::spec_hash(container);
        let epoch = self.record.epoch;
        let known = self.record.containers.entry(name.clone()).or_default();
        let attempt = known.attempts;
        known.previous = known.last.take();
        known.attempts += 1;
        known.epoch = epoch;
        known.spec_hash = hash;
        known.image.clone_from(&prepared.image);
        known.image_id.clone_from(&prepared.image_id);
        known.resources.clone_from(&container.resources);
        let own = container.resources.clone().unwrap_or_default();
        known.limited = Some(qos::limited(&self.wanted.spec, &own));
        known.user = Some(Identity {
            uid: prepared.spec.uid,
            gid: prepared.spec.gid,
            groups: runtime::groups(&prepared.spec),
        });
        let live = self.live(&name);
        live.failure = None;
        live.doomed = None;
        live.hook_error = None;
        live.given_up = false;
        live.state = None;
        live.started = false;
        live.ready = false;
        live.job = Some(Job::Starting);
        if let Err(error) = self.shared.ledger.save(&self.wanted.uid, &self.record).await {
            // What is not on disk must not run: the attempt would be made a second time.
            tracing::error!(%error, "writing the ledger");
            let exit = jobs::never_ran(format!("the node's ledger cannot be written: {error}"), now);
            self.live(&name).job = None;
            self.ended(&name, attempt, exit).await;
            return;
        }
        crash::point(crash::DAEMON);
        self.shared.images_used.notify_one();
        self.say(Some(&name), false, "Created", "Container created");
        let (shared, wanted) = (Arc::clone(&self.shared), self.wanted.clone());
        self.jobs.spawn(async move {
            let result = jobs::start(&shared, &wanted, &name, attempt, &prepared.spec).await;
            Done::Started { container: name, attempt, result }
        });
    }

    async fn was_started(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<ContainerState, runtime::Error>,
    ) {
        self.live(name).job = None;
        let now = self.shared.clock.now();
        match result {
            Ok(ContainerState::Exited(exit)) if exit.error.is_none() => {
                self.say(Some(name), false, "Started", "Container started");
                self.ended(name, attempt, exit).await;
            }
            Ok(ContainerState::Exited(exit)) => {
                let text = exit.error.clone().unwrap_or_default();
                self.say(Some(name), true, "Failed", format!("Error: {text}"));
                self.ended(name, attempt, exit).await;
            }
            Ok(state) => {
                self.say(Some(name), false, "Started", "Container started");
                self.live(name).state = Some(state);
                let hook = self
                    .wanted
                    .container(name)
                    .and_then(|(_, c)| Some((c, c.lifecycle.as_ref()?.post_start.clone()?)));
                match hook {
                    Some((container, hook)) => {
                        self.live.containers.entry(name.to_owned()).or_default().hooking = true;
                        let target = self.target(container, attempt);
                        let runtime = Arc::clone(&self.shared.runtime);
                        let (container, pod) = (name.to_owned(), self.wanted.full_name());
                        self.jobs.spawn(async move {
                            let result = hooks::hook(&runtime, &target, (&container, &pod), &hook).await;
                            Done::Hooked { container, attempt, result }
                        });
                    }
                    None => self.started(name, attempt),
                }
            }
            Err(error) => {
                self.say(Some(name), true, "Failed", format!("Error: {error}"));
                let exit = jobs::never_ran(error.to_string(), now);
                self.ended(name, attempt, exit).await;
            }
        }
    }

    fn target(&self, container: &k8s_openapi::api::core::v1::Container, attempt: u32) -> Target {
        let id = container_id(&self.wanted.uid, &container.name, attempt);
        Target::new(container, id, self.shared.facts(&self.wanted, self.record.ip).pod_ip)
    }

    /// The container runs and its hook is through: the startup probe is next, if there is one.
    fn started(&mut self, name: &str, attempt: u32) {
        let startup = self.wanted.container(name).and_then(|(_, c)| c.startup_probe.clone());
        if let Some(probe) = startup {
            self.probe(name, attempt, Kind::Startup, probe);
        } else {
            let ready = self.wanted.container(name).is_none_or(|(_, c)| c.readiness_probe.is_none());
            let live = self.live(name);
            live.started = true;
            live.ready = ready;
            self.watch_health(name, attempt);
        }
    }

    fn watch_health(&mut self, name: &str, attempt: u32) {
        let Some((_, container)) = self.wanted.container(name) else { return };
        let both = [
            (Kind::Liveness, container.liveness_probe.clone()),
            (Kind::Readiness, container.readiness_probe.clone()),
        ];
        for (kind, probe) in both {
            if let Some(probe) = probe {
                self.probe(name, attempt, kind, probe);
            }
        }
    }

    fn probe(&mut self, name: &str, attempt: u32, kind: Kind, probe: Probe) {
        let Some((_, container)) = self.wanted.container(name) else { return };
        let target = self.target(container, attempt);
        let task = probes::run(
            Arc::clone(&self.shared.runtime),
            self.shared.clock.clone(),
            target,
            (name.to_owned(), attempt),
            kind,
            probe,
            self.verdicts.0.clone(),
        );
        while self.probes.try_join_next().is_some() {}
        let handle = self.probes.spawn(task);
        if let Some(old) = self.probing.insert((name.to_owned(), kind.name()), handle) {
            old.abort();
        }
    }

    fn stop_probes(&mut self, name: &str, kinds: &[Kind]) {
        for kind in kinds {
            if let Some(handle) = self.probing.remove(&(name.to_owned(), kind.name())) {
                handle.abort();
            }
        }
    }

    fn judge(&mut self, verdict: probes::Verdict) {
        let probes::Verdict { container: name, attempt, kind, result, counts } = verdict;
        let here = self.live.now(&name, &self.record);
        let current = self.record.container(&name).attempts == attempt + 1;
        let counts_now = match self.live.container(&name).job {
            None => true,
            Some(Job::Stopping) => kind == Kind::Readiness,
            Some(_) => false,
        };
        if !current || !matches!(here, Now::Running { .. }) || !counts_now {
            return;
        }
        let told = match &result {
            Ok(None) => None,
            Ok(Some(text)) => Some(("ProbeWarning", format!("warning: {text}"))),
            Err(Fault::Failed(text)) => Some(("Unhealthy", format!("failed: {text}"))),
            Err(Fault::Unknown(text)) => {
                Some(("Unhealthy", format!("errored and resulted in unknown state: {text}")))
            }
        };
        if let Some((reason, what)) = told {
            self.say(Some(&name), true, reason, format!("{} probe {what}", kind.name()));
        }
        if !counts {
            return;
        }
        let Some((_, container)) = self.wanted.container(&name) else { return };
        let own_grace = match kind {
            Kind::Startup => container.startup_probe.as_ref(),
            _ => container.liveness_probe.as_ref(),
        }
        .and_then(|p| p.termination_grace_period_seconds);
        match (kind, result) {
            (Kind::Readiness, result) => self.live(&name).ready = result.is_ok(),
            (Kind::Startup, Ok(_)) => {
                let ready = container.readiness_probe.is_none();
                let live = self.live(&name);
                live.started = true;
                live.ready = ready;
                self.watch_health(&name, attempt);
            }
            (Kind::Liveness, Ok(_)) => {}
            (_, Err(_)) => {
                let what = kind.name().to_lowercase();
                let message = format!("Container {name} failed {what} probe, will be restarted");
                self.live(&name).doomed = Some((message, own_grace));
            }
        }
    }

    fn schedule_refresh(&mut self, tokens: &[Token]) {
        let now = self.shared.masters_time();
        let first = tokens.iter().filter_map(|token| token.refresh_in(now)).min();
        self.next_refresh = first.map(|left| Instant::now() + left.max(jobs::REFRESH_RETRY));
    }

    /// A container that was added may use a volume that nobody has used before.
    fn want_new_volumes(&mut self) {
        let known = |name: &str| self.mounted.contains_key(name);
        if self.live.setup == Setup::Done && self.wanted.volumes().any(|volume| !known(&volume.name)) {
            self.live.setup = Setup::No;
        }
    }

    /// Brings the contents of volumes up to date, in the background.
    fn refresh(&mut self) {
        self.next_refresh = None;
        let there = match self.live.setup {
            Setup::Done => true,
            Setup::Doing => false,
            Setup::No | Setup::Failed { .. } => !self.mounted.is_empty(),
        };
        if !there || self.live.tearing {
            return;
        }
        // One at a time: they write the same folders.
        if self.refreshing {
            self.stale = true;
            return;
        }
        self.refreshing = true;
        let (shared, wanted, ip) = (Arc::clone(&self.shared), self.wanted.clone(), self.record.ip);
        let volumes = Arc::clone(&self.volumes);
        self.jobs.spawn(async move { Done::Refreshed(jobs::refresh(&shared, &wanted, ip, &volumes).await) });
    }

    /// Computes the status; what is new goes to the ledger and to the master.
    async fn tell(&mut self) {
        let now = self.shared.clock.now();
        let host_ip = self.shared.host_ip();
        let status = status::compute(&self.wanted, &self.record, &self.live, &self.waiting, &host_ip, now);
        if status != self.record.status || !self.reported || self.record.gone {
            self.record.status = status;
            self.note_allocation();
            if !(self.removed && self.record.gone) {
                self.shared.report(&self.wanted, &self.record.status, self.record.gone);
            }
            self.reported = true;
        }
        if let Err(error) = self.shared.ledger.save(&self.wanted.uid, &self.record).await {
            tracing::error!(pod = self.wanted.full_name(), %error, "writing the ledger");
        }
    }
}
