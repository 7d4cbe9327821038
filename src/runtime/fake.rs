//! A runtime in memory, for simulations: containers are entries, processes are timers.
//!
//! In: the calls of [`Runtime`] and a [`Script`] a container (by a part of its id). Out: the same
//! states, exits and changes as the real one, on tokio's clock (which a test may pause) and a
//! [`SharedClock`] for the time stamps. Every call is recorded.
//! Deliberately absent: files (nothing is written, logs neither), namespaces, real streams of attach.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use super::{
    Container, ContainerSpec, ContainerState, Error, ExecSpec, Exit, Resources, Runtime, SandboxSpec,
    Session, Stats,
};
use crate::clock::SharedClock;

/// Changes kept for a slow reader of [`Runtime::watch`].
const CHANGES_MAX: usize = 1024;
/// Bytes of a fake stream in flight.
const STREAM_BYTES: usize = 4096;
const SIGKILL: i32 = 9;

/// How the containers behave whose id contains the key of [`FakeRuntime::script`].
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// How long `start` takes.
    pub start_delay: Duration,
    /// `start` itself fails with [`Error::Create`].
    pub start_failure: Option<String>,
    /// The container never runs: `start` gives an exit with code 128 and this error.
    pub bad_entrypoint: Option<String>,
    /// Ends by itself so long after its start, with this code.
    pub exit: Option<(Duration, i32)>,
    /// How long the process takes to end after any signal but SIGKILL.
    pub stop_delay: Duration,
    /// Only SIGKILL ends it.
    pub ignores_signals: bool,
    /// How long the kernel takes to end it then.
    pub kill_delay: Duration,
    /// Its limits cannot be changed.
    pub update_failure: Option<String>,
    pub stats: Stats,
}

/// What a fake exec answers: exit code and standard output.
pub type ExecAnswer = Arc<dyn Fn(&str, &ExecSpec) -> (i32, Vec<u8>) + Send + Sync>;

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, SandboxSpec>,
    containers: BTreeMap<String, Container>,
    scripts: Vec<(String, Script)>,
    exec: Option<ExecAnswer>,
    calls: Vec<String>,
    timers: JoinSet<()>,
}

/// The fake. Share it in an `Arc`; dropping it ends its timers.
pub struct FakeRuntime {
    clock: SharedClock,
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<String>,
}

impl FakeRuntime {
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, state: Arc::default(), changes: broadcast::channel(CHANGES_MAX).0 }
    }

    /// Containers whose id contains `part` behave like `script` from their next start; the youngest
    /// script that fits counts, an empty `part` fits all.
    pub fn script(&self, part: &str, script: Script) {
        self.lock().scripts.push((part.to_owned(), script));
    }

    /// Who answers execs (with code 0 and no output otherwise).
    pub fn answer_exec(&self, answer: impl Fn(&str, &ExecSpec) -> (i32, Vec<u8>) + Send + Sync + 'static) {
        self.lock().exec = Some(Arc::new(answer));
    }

    /// Ends a running container now, as if by itself.
    pub fn exit(&self, id: &str, code: i32) {
        end(&self.state, &self.changes, &self.clock, id, None, |exit| exit.code = code);
    }

    /// Ends a running container now, as if out of memory.
    pub fn oom(&self, id: &str) {
        end(&self.state, &self.changes, &self.clock, id, None, |exit| {
            exit.code = 128 + SIGKILL;
            exit.signal = Some(SIGKILL);
            exit.oom_killed = true;
        });
    }

    /// Every call so far: `start <id>`, `signal <id> 15`, `kill <id>`, `remove <id>`,
    /// `ensure_sandbox <id>`, `remove_sandbox <id>`, `update <id>`, `exec <id> <args>`, `attach <id>`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the fake's lock panics")
    }

    fn set(&self, id: &str, state: ContainerState) {
        if let Some(entry) = self.lock().containers.get_mut(id) {
            entry.1 = state;
        }
        let _ = self.changes.send(id.to_owned());
    }

    /// Ends the container after `delay`, unless it was started anew meanwhile.
    fn end_later(&self, id: &str, delay: Duration, how: impl FnOnce(&mut Exit) + Send + 'static) {
        let (id, clock, changes) = (id.to_owned(), self.clock.clone(), self.changes.clone());
        let state: Weak<_> = Arc::downgrade(&self.state);
        let pid = match self.lock().containers.get(&id) {
            Some((_, ContainerState::Running { pid, .. })) => *pid,
            _ => return,
        };
        self.lock().timers.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(state) = state.upgrade() {
                end(&state, &changes, &clock, &id, Some(pid), how);
            }
        });
    }
}

impl State {
    fn script_of(&self, id: &str) -> Script {
        let fits = self.scripts.iter().rev().find(|(part, _)| id.contains(part.as_str()));
        fits.map(|(_, script)| script.clone()).unwrap_or_default()
    }

    fn find(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(id.to_owned()))
    }
}

/// Moves a running container (with this pid, if given) to its end and tells the watchers.
fn end(
    state: &Mutex<State>,
    changes: &broadcast::Sender<String>,
    clock: &SharedClock,
    id: &str,
    only_pid: Option<i32>,
    how: impl FnOnce(&mut Exit),
) {
    {
        let mut state = state.lock().expect("no holder of the fake's lock panics");
        let Some((_, now)) = state.containers.get_mut(id) else { return };
        let ContainerState::Running { pid, started_at } = *now else { return };
        if only_pid.is_some_and(|only| only != pid) {
            return;
        }
        let mut exit = Exit {
            code: 0,
            signal: None,
            oom_killed: false,
            started_at: Some(started_at),
            finished_at: clock.now(),
            error: None,
        };
        how(&mut exit);
        *now = ContainerState::Exited(exit);
    }
    let _ = changes.send(id.to_owned());
}

fn ready<'a, T: Send + 'a>(value: Result<T, Error>) -> BoxFuture<'a, Result<T, Error>> {
    Box::pin(std::future::ready(value))
}

impl Runtime for FakeRuntime {
    fn ensure_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<PathBuf, Error>> {
        let mut state = self.lock();
        state.calls.push(format!("ensure_sandbox {}", spec.id));
        state.sandboxes.insert(spec.id.clone(), spec.clone());
        ready(Ok(if spec.host_network {
            PathBuf::from("/proc/1/ns/net")
        } else {
            PathBuf::from(format!("/fake/ns/{}/net", spec.id))
        }))
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let mut state = self.lock();
        state.calls.push(format!("remove_sandbox {id}"));
        state.sandboxes.remove(id);
        ready(Ok(()))
    }

    fn sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxSpec>, Error>> {
        ready(Ok(self.lock().sandboxes.values().cloned().collect()))
    }

    fn start<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<ContainerState, Error>> {
        Box::pin(async move {
            let script = {
                let mut state = self.lock();
                state.calls.push(format!("start {}", spec.id));
                if let Some((_, now)) = state.containers.get(&spec.id) {
                    return Ok(now.clone());
                }
                if !state.sandboxes.contains_key(&spec.sandbox) {
                    return Err(Error::NotFound(spec.sandbox.clone()));
                }
                let script = state.script_of(&spec.id);
                if let Some(text) = script.start_failure {
                    return Err(Error::Create(text));
                }
                let entry = (Arc::new(spec.clone()), ContainerState::Starting);
                state.containers.insert(spec.id.clone(), entry);
                script
            };
            if !script.start_delay.is_zero() {
                tokio::time::sleep(script.start_delay).await;
            }
            let now = self.clock.now();
            let reached = if let Some(error) = script.bad_entrypoint {
                ContainerState::Exited(Exit {
                    code: 128,
                    signal: None,
                    oom_killed: false,
                    started_at: None,
                    finished_at: now,
                    error: Some(error),
                })
            } else {
                let pid = 1000 + self.lock().calls.len() as i32;
                ContainerState::Running { pid, started_at: now }
            };
            self.set(&spec.id, reached.clone());
            if let Some((after, code)) = script.exit {
                self.end_later(&spec.id, after, move |exit| exit.code = code);
            }
            Ok(reached)
        })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<(), Error>> {
        let script = {
            let mut state = self.lock();
            state.calls.push(format!("signal {id} {signal}"));
            if let Err(error) = state.find(id) {
                return ready(Err(error));
            }
            state.script_of(id)
        };
        let delay = if signal == SIGKILL { Duration::ZERO } else { script.stop_delay };
        if signal == SIGKILL || !script.ignores_signals {
            self.end_later(id, delay, move |exit| {
                // A program that handles SIGTERM ends with 0 in no fixed way; the plain case is death.
                exit.code = 128 + signal;
                exit.signal = Some(signal);
            });
        }
        ready(Ok(()))
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let known = {
            let mut state = self.lock();
            state.calls.push(format!("kill {id}"));
            state.find(id).map(|_| state.script_of(id).kill_delay)
        };
        let known = known.map(|delay| {
            self.end_later(id, delay, |exit| {
                exit.code = 128 + SIGKILL;
                exit.signal = Some(SIGKILL);
            });
        });
        ready(known)
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let mut state = self.lock();
        state.calls.push(format!("remove {id}"));
        state.containers.remove(id);
        ready(Ok(()))
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        ready(Ok(self.lock().containers.values().cloned().collect()))
    }

    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<ContainerState, Error>> {
        ready(self.lock().find(id).map(|(_, state)| state.clone()))
    }

    fn update<'a>(&'a self, id: &'a str, resources: &'a Resources) -> BoxFuture<'a, Result<(), Error>> {
        let mut state = self.lock();
        state.calls.push(format!("update {id}"));
        if let Some(text) = state.script_of(id).update_failure {
            return ready(Err(Error::Unsupported(text)));
        }
        let found = match state.containers.get_mut(id) {
            Some((spec, _)) => {
                Arc::make_mut(spec).resources = resources.clone();
                Ok(())
            }
            None => Err(Error::NotFound(id.to_owned())),
        };
        ready(found)
    }

    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats, Error>> {
        let state = self.lock();
        ready(state.find(id).map(|_| state.script_of(id).stats))
    }

    fn written<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    fn exec<'a>(&'a self, id: &'a str, spec: &'a ExecSpec) -> BoxFuture<'a, Result<Session, Error>> {
        let answer = {
            let mut state = self.lock();
            state.calls.push(format!("exec {id} {}", spec.args.join(" ")));
            match state.find(id) {
                Err(error) => return ready(Err(error)),
                Ok((_, ContainerState::Running { .. })) => state.exec.clone(),
                Ok(_) => return ready(Err(Error::NotRunning(id.to_owned()))),
            }
        };
        let (code, output) = answer.map_or((0, Vec::new()), |answer| answer(id, spec));
        ready(Ok(Session {
            stdin: spec.stdin.then(|| Box::new(tokio::io::sink()) as _),
            stdout: Some(Box::new(std::io::Cursor::new(output))),
            stderr: (!spec.tty).then(|| Box::new(tokio::io::empty()) as _),
            resize: spec.tty.then(|| mpsc::channel(1).0),
            exit: ready(Ok(code)),
        }))
    }

    fn attach<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Session, Error>> {
        let spec = {
            let mut state = self.lock();
            state.calls.push(format!("attach {id}"));
            match state.find(id) {
                Err(error) => return ready(Err(error)),
                Ok((spec, ContainerState::Running { .. })) => spec.clone(),
                Ok(_) => return ready(Err(Error::NotRunning(id.to_owned()))),
            }
        };
        let mut changes = self.watch();
        let (name, state) = (id.to_owned(), self.state.clone());
        let exit = Box::pin(async move {
            loop {
                {
                    let state = state.lock().expect("no holder of the fake's lock panics");
                    if let (_, ContainerState::Exited(exit)) = state.find(&name)? {
                        return Ok(exit.code);
                    }
                }
                if let Err(broadcast::error::RecvError::Closed) = changes.recv().await {
                    return Err(Error::NotRunning(name));
                }
            }
        });
        // What is written to the container comes back on its output: an echo.
        let (near, far) = tokio::io::duplex(STREAM_BYTES);
        let (stdout, _) = tokio::io::split(near);
        let (_, stdin) = tokio::io::split(far);
        ready(Ok(Session {
            stdin: spec.stdin.then(|| Box::new(stdin) as _),
            stdout: Some(Box::new(stdout)),
            stderr: (!spec.tty).then(|| Box::new(tokio::io::empty()) as _),
            resize: spec.tty.then(|| mpsc::channel(1).0),
            exit,
        }))
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::clock::ManualClock;

    async fn fake_with(script: Script) -> (FakeRuntime, ContainerSpec) {
        let clock = ManualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let fake = FakeRuntime::new(Arc::new(clock));
        fake.script("", script);
        fake.ensure_sandbox(&SandboxSpec { id: "p".into(), ..SandboxSpec::default() }).await.unwrap();
        let spec = ContainerSpec { id: "p_c_0".into(), sandbox: "p".into(), ..ContainerSpec::default() };
        (fake, spec)
    }

    fn code(state: ContainerState) -> Option<i32> {
        match state {
            ContainerState::Exited(exit) => Some(exit.code),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_scripted_exit_happens_and_is_told() {
        let after = Duration::from_mins(1);
        let (fake, spec) = fake_with(Script { exit: Some((after, 3)), ..Script::default() }).await;
        let mut changes = fake.watch();
        assert_eq!(code(fake.start(&spec).await.unwrap()), None);
        let started = tokio::time::Instant::now();
        assert_eq!(changes.recv().await.unwrap(), "p_c_0");
        assert_eq!(changes.recv().await.unwrap(), "p_c_0");
        assert!(started.elapsed() >= after);
        assert_eq!(code(fake.state("p_c_0").await.unwrap()), Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn only_sigkill_ends_what_ignores_signals() {
        let (fake, spec) = fake_with(Script { ignores_signals: true, ..Script::default() }).await;
        fake.start(&spec).await.unwrap();
        let mut changes = fake.watch();
        fake.signal("p_c_0", 15).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(code(fake.state("p_c_0").await.unwrap()), None);
        fake.kill("p_c_0").await.unwrap();
        changes.recv().await.unwrap();
        assert_eq!(code(fake.state("p_c_0").await.unwrap()), Some(137));
        fake.remove("p_c_0").await.unwrap();
        assert!(matches!(fake.state("p_c_0").await, Err(Error::NotFound(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_as_scripted() {
        let bad = Script { bad_entrypoint: Some("no such file".into()), ..Script::default() };
        let (fake, spec) = fake_with(bad).await;
        let ContainerState::Exited(exit) = fake.start(&spec).await.unwrap() else { panic!("it ran") };
        assert_eq!((exit.code, exit.error.as_deref()), (128, Some("no such file")));
        fake.remove(&spec.id).await.unwrap();
        fake.script("_c_", Script { start_failure: Some("disk".into()), ..Script::default() });
        assert!(matches!(fake.start(&spec).await, Err(Error::Create(text)) if text == "disk"));
    }

    #[tokio::test]
    async fn execs_are_answered() {
        let (fake, spec) = fake_with(Script::default()).await;
        fake.answer_exec(|_, spec| (7, spec.args.join("-").into_bytes()));
        fake.start(&spec).await.unwrap();
        let exec = ExecSpec { args: vec!["a".into(), "b".into()], ..ExecSpec::default() };
        let mut session = fake.exec(&spec.id, &exec).await.unwrap();
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((session.exit.await.unwrap(), text.as_str()), (7, "a-b"));
    }
}
