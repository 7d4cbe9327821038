//! The daemon's side of the runtime: starts shims, watches monitors, keeps what the node asks for.
//!
//! In: the calls of [`Runtime`]. Out: helper processes and files in the state folder (see
//! [`super::state`]). Invariants: nothing is known here that a scan of the folder does not tell; a
//! container's task ends with its monitor, whoever started that; libcontainer is never called.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{broadcast, mpsc, oneshot},
    task::JoinSet,
};

use super::{
    Container, ContainerSpec, ContainerState, Error, ExecSpec, Exit, Resources, Runtime, SandboxSpec,
    Session, Stats,
    cgroup::Cgroups,
    exec,
    monitor::Role,
    mounts, oci, sandbox,
    state::{self, Folder, Record},
    sys, wire,
};
use crate::{
    clock::{Clock as _, SystemClock},
    crash,
};

/// Changes kept for a slow reader of [`Runtime::watch`].
const CHANGES_MAX: usize = 1024;
/// Longest name of a container or sandbox (bytes): it names folders.
const ID_BYTES_MAX: usize = 200;
/// How often a container is looked at whose start an earlier daemon began.
const ADOPTED_START_POLL: Duration = Duration::from_millis(20);
/// Exit code of a container whose end nobody saw, as containerd has it.
const CODE_UNKNOWN: i32 = 255;

/// Where the runtime works.
#[derive(Debug, Clone)]
pub struct Options {
    /// State of running things; best on a tmpfs.
    pub run_dir: PathBuf,
    /// Writable layers.
    pub data_dir: PathBuf,
    /// The group above all pods', absolute in the hierarchy: `/sampan`.
    pub cgroup_root: String,
    /// This binary: `/proc/self/exe`.
    pub self_exe: PathBuf,
}

/// The runtime: containers under shims that outlive the daemon.
pub struct ShimRuntime {
    inner: Arc<Inner>,
    /// One task a container, one an open session. They end with this.
    tasks: Mutex<JoinSet<()>>,
}

struct Inner {
    options: Options,
    cgroups: Cgroups,
    boot: String,
    containers: Mutex<BTreeMap<String, Entry>>,
    sandboxes: Mutex<BTreeMap<String, SandboxSpec>>,
    changes: broadcast::Sender<String>,
}

struct Entry {
    spec: Arc<ContainerSpec>,
    cgroup: String,
    state: ContainerState,
}

fn failed(operation: &'static str, id: &str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { operation, id: id.to_owned(), source }
}

fn check_id(id: &str) -> Result<(), Error> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if id.is_empty() || id.len() > ID_BYTES_MAX || id.starts_with('.') || !id.chars().all(known) {
        return Err(Error::Create(format!("invalid id {id:?}")));
    }
    Ok(())
}

/// Runs what blocks (files, mounts, processes) off the runtime's threads.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    id: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(failed(operation, id)(io::Error::other(error))))
}

impl ShimRuntime {
    /// Looks at what an earlier daemon has left: adopts what runs, settles what has ended, removes
    /// what was begun and not finished. Must be called inside a tokio runtime.
    pub fn new(options: Options) -> Result<Self, Error> {
        let fail = failed("set up the runtime in", "");
        for folder in ["containers", "sandboxes", "ns"] {
            fs::create_dir_all(options.run_dir.join(folder)).map_err(&fail)?;
        }
        fs::create_dir_all(options.data_dir.join("containers")).map_err(&fail)?;
        mounts::make_skeleton(&options.run_dir).map_err(&fail)?;
        let cgroups = Cgroups::detect().map_err(&fail)?;
        Cgroups::favor_dynamic_moves();
        let inner = Arc::new(Inner {
            options,
            cgroups,
            boot: state::boot(),
            containers: Mutex::default(),
            sandboxes: Mutex::default(),
            changes: broadcast::channel(CHANGES_MAX).0,
        });
        let runtime = Self { inner, tasks: Mutex::default() };
        runtime.scan().map_err(&fail)?;
        Ok(runtime)
    }

    fn scan(&self) -> io::Result<()> {
        let inner = &self.inner;
        for id in names(&inner.options.run_dir.join("sandboxes"))? {
            match state::read::<SandboxSpec>(&inner.sandbox_file(&id)) {
                Ok(spec) => drop(inner.sandboxes().insert(id, spec)),
                Err(_) => state::remove_folder(&inner.options.run_dir.join("sandboxes").join(&id))?,
            }
        }
        for id in names(&inner.options.run_dir.join("ns"))? {
            if !inner.sandboxes().contains_key(&id) {
                sandbox::remove(&inner.namespaces(&id))?;
            }
        }
        for id in names(&inner.options.run_dir.join("containers"))? {
            let folder = inner.folder(&id);
            let record = folder.record();
            let (Ok(record), false) = (record, id.starts_with('.')) else {
                // Not yet given its name, or not whole.
                state::remove_folder(&folder.0)?;
                continue;
            };
            let entry = |state| Entry { spec: Arc::new(record.spec), cgroup: record.cgroup, state };
            if record.boot != inner.boot && folder.exit().is_none() {
                folder.write_exit(&unseen(&folder, "the machine was restarted"))?;
            }
            inner.containers().insert(id.clone(), entry(folder.state()));
            loop {
                if let Some(monitor) = monitor(&folder) {
                    self.spawn(inner.clone().supervise(id, monitor, None));
                    break;
                }
                if inner.settle(&id)? {
                    break;
                }
            }
        }
        for id in names(&inner.options.data_dir.join("containers"))? {
            if !inner.containers().contains_key(&id) {
                state::remove_folder(&inner.options.data_dir.join("containers").join(id))?;
            }
        }
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder of this lock panics");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// The entries of a folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The end of a container that no monitor has recorded.
fn unseen(folder: &Folder, error: &str) -> Exit {
    Exit {
        code: CODE_UNKNOWN,
        signal: None,
        oom_killed: false,
        started_at: folder.started().map(|started| started.at),
        finished_at: SystemClock.now(),
        error: Some(error.to_owned()),
    }
}

/// The process that holds a container's lock.
fn monitor(folder: &Folder) -> Option<OwnedFd> {
    let pid = folder.holder()?;
    // Held still: the descriptor is of the holder, not of a later process of that number.
    sys::pidfd_open(pid).ok().filter(|_| folder.holder() == Some(pid))
}

/// Waits for the end of a process and, if it is a child of ours, lets it go.
async fn ended(process: OwnedFd) {
    let Ok(process) = sys::readable(process) else { return };
    let _ = process.readable().await;
    let _ = waitid(Id::PIDFd(process.get_ref().as_fd()), WaitPidFlag::WEXITED);
}

impl Inner {
    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.containers.lock().expect("no holder of this lock panics")
    }

    fn sandboxes(&self) -> MutexGuard<'_, BTreeMap<String, SandboxSpec>> {
        self.sandboxes.lock().expect("no holder of this lock panics")
    }

    fn folder(&self, id: &str) -> Folder {
        Folder(self.options.run_dir.join("containers").join(id))
    }

    /// The folder while it is being made or removed; a scan removes it.
    fn unnamed(&self, id: &str) -> PathBuf {
        self.options.run_dir.join("containers").join(format!(".{id}"))
    }

    fn data(&self, id: &str) -> PathBuf {
        self.options.data_dir.join("containers").join(id)
    }

    fn namespaces(&self, sandbox: &str) -> PathBuf {
        self.options.run_dir.join("ns").join(sandbox)
    }

    fn sandbox_file(&self, id: &str) -> PathBuf {
        self.options.run_dir.join("sandboxes").join(id).join("spec.json")
    }

    fn pod_cgroup(&self, sandbox: &SandboxSpec) -> String {
        format!("{}/{}", self.options.cgroup_root.trim_end_matches('/'), sandbox.cgroup.trim_matches('/'))
    }

    fn set(&self, id: &str, state: ContainerState) {
        if let Some(entry) = self.containers().get_mut(id) {
            entry.state = state;
        }
        let _ = self.changes.send(id.to_owned());
    }

    fn find<T>(&self, id: &str, get: impl FnOnce(&Entry) -> T) -> Result<T, Error> {
        self.containers().get(id).map(get).ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// The pid of a running container.
    fn running(&self, id: &str) -> Result<i32, Error> {
        match self.find(id, |entry| entry.state.clone())? {
            ContainerState::Running { pid, .. } => Ok(pid),
            _ => Err(Error::NotRunning(id.to_owned())),
        }
    }

    /// The first process of a running container. The monitor does not reap it while it holds the
    /// lock, so that the pid means it.
    fn process(&self, id: &str) -> Result<OwnedFd, Error> {
        let gone = || Error::NotRunning(id.to_owned());
        let process = sys::pidfd_open(self.running(id)?).map_err(|_| gone())?;
        self.folder(id).holder().map(|_| process).ok_or_else(gone)
    }

    /// The state folder of a new container, and a shim that works on it.
    fn begin(&self, spec: &ContainerSpec) -> Result<(OwnedFd, StdUnixStream), Error> {
        let fail = failed("start container", &spec.id);
        let sandbox = self.sandboxes().get(&spec.sandbox).cloned();
        let sandbox = sandbox.ok_or_else(|| Error::NotFound(spec.sandbox.clone()))?;
        let namespaces = self.namespaces(&spec.sandbox);
        if spec.shm_bytes > sandbox::SHM_BYTES_DEFAULT && !sandbox.host_ipc {
            sandbox::resize_shm(&namespaces, spec.shm_bytes).map_err(&fail)?;
        }
        let pid_namespace = match &spec.processes_of {
            Some(other) => Some(PathBuf::from(format!("/proc/{}/ns/pid", self.running(other)?))),
            None => None,
        };
        let record = Record {
            pid_namespace,
            cgroup: format!("{}/{}", self.pod_cgroup(&sandbox), spec.id),
            spec: spec.clone(),
            sandbox,
            data: self.data(&spec.id),
            namespaces,
            cgroups: self.cgroups.used().to_word(),
            boot: self.boot.clone(),
        };
        if let Some(entry) = self.containers().get_mut(&spec.id) {
            entry.cgroup.clone_from(&record.cgroup);
        }
        state::remove_folder(&record.data).map_err(&fail)?;
        crash::point(crash::DAEMON);
        let folder = self.folder(&spec.id);
        // Whole or not there: the name comes last.
        let unnamed = Folder(self.unnamed(&spec.id));
        state::remove_folder(&unnamed.0).map_err(&fail)?;
        fs::create_dir_all(&unnamed.0).map_err(&fail)?;
        crash::point(crash::DAEMON);
        fs::write(unnamed.file("lock"), "").map_err(&fail)?;
        unnamed.write_record(&record).map_err(&fail)?;
        crash::point(crash::DAEMON);
        fs::rename(&unnamed.0, &folder.0).map_err(&fail)?;
        crash::point(crash::DAEMON);
        let spawned = wire::spawn_helper(&self.options.self_exe, "shim", &[&folder.0])
            .and_then(|(child, control)| Ok((sys::pidfd_open(child.id() as i32)?, control)));
        crash::point(crash::DAEMON);
        spawned.map_err(|error| {
            let _ = state::remove_folder(&folder.0);
            fail(error)
        })
    }

    /// Follows one container to its end. `start` has the shim's socket, and who waits for the start.
    async fn supervise(
        self: Arc<Self>,
        id: String,
        monitor: OwnedFd,
        start: Option<(StdUnixStream, oneshot::Sender<()>)>,
    ) {
        let folder = self.folder(&id);
        if let Some((control, done)) = start {
            let running = shim_says_running(control).await;
            if running {
                crash::point(crash::DAEMON);
                self.set(&id, folder.state());
                let _ = done.send(());
                ended(monitor).await;
                crash::point(crash::DAEMON);
                self.settle_soon(&id).await;
            } else {
                ended(monitor).await;
                self.settle_soon(&id).await;
                let _ = done.send(());
            }
            return;
        }
        let end = ended(monitor);
        tokio::pin!(end);
        while self.find(&id, |entry| entry.state == ContainerState::Starting).unwrap_or(false) {
            tokio::select! {
                () = &mut end => return self.settle_soon(&id).await,
                () = tokio::time::sleep(ADOPTED_START_POLL) => {}
            }
            let state = folder.state();
            if state != ContainerState::Starting {
                self.set(&id, state);
            }
        }
        end.await;
        self.settle_soon(&id).await;
    }

    async fn settle_soon(self: &Arc<Self>, id: &str) {
        loop {
            let (inner, name) = (self.clone(), id.to_owned());
            let settled = blocking("settle container", id, move || {
                inner.settle(&name).map_err(failed("settle container", &name))
            });
            match settled.await {
                Ok(true) => return,
                Ok(false) => {
                    if let Some(monitor) = monitor(&self.folder(id)) {
                        ended(monitor).await;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a container's end could not be recorded");
                    return;
                }
            }
        }
    }

    /// Finds out how a container without a monitor has ended, and makes it so; `false` when it has
    /// one after all.
    fn settle(&self, id: &str) -> io::Result<bool> {
        let folder = self.folder(id);
        let exit = if let Some(exit) = folder.exit() {
            exit
        } else {
            // Seen as ended by its files, and removed meanwhile.
            if !self.containers().contains_key(id) {
                return Ok(true);
            }
            // A shim that comes only now finds the lock taken, or the record, and goes.
            let lock = match folder.lock() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                other => other?,
            };
            let Some(_lock) = lock else { return Ok(false) };
            if let Some(exit) = folder.exit() {
                self.set(id, ContainerState::Exited(exit));
                return Ok(true);
            }
            if let Ok(cgroup) = self.find(id, |entry| entry.cgroup.clone()) {
                self.cgroups.kill(&cgroup)?;
            }
            let exit = unseen(&folder, "the container's monitor has died");
            folder.write_exit(&exit)?;
            exit
        };
        self.set(id, ContainerState::Exited(exit));
        Ok(true)
    }

    /// Removes an ended container's things, the folder that tells of them last.
    fn clear(&self, id: &str, cgroup: &str) -> io::Result<()> {
        self.cgroups.kill(cgroup)?;
        crash::point(crash::DAEMON);
        self.cgroups.delete(cgroup)?;
        crash::point(crash::DAEMON);
        state::remove_folder(&self.data(id))?;
        crash::point(crash::DAEMON);
        // Away under its name at once: a late shim must not find half of it, and go on.
        let unnamed = self.unnamed(id);
        state::remove_folder(&unnamed)?;
        match fs::rename(self.folder(id).0, &unnamed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {
                crash::point(crash::DAEMON);
                state::remove_folder(&unnamed)?;
            }
        }
        crash::point(crash::DAEMON);
        self.containers().remove(id);
        Ok(())
    }

    fn connect(&self, id: &str, role: Role) -> io::Result<UnixStream> {
        // Through a descriptor: a socket's path has room for 108 bytes only.
        let folder = fs::File::open(self.folder(id).0)?;
        let path = format!("/proc/self/fd/{}/attach", folder.as_raw_fd());
        let mut stream = StdUnixStream::connect(path)?;
        io::Write::write_all(&mut stream, &[role.byte()])?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }
}

/// Whether the shim has told that the container runs.
async fn shim_says_running(control: StdUnixStream) -> bool {
    let stream = control.set_nonblocking(true).and_then(|()| UnixStream::from_std(control));
    let Ok(mut stream) = stream else { return false };
    stream.read_u8().await.is_ok()
}

/// Brings terminal sizes to the monitor until it tells the exit code.
async fn drive_attach(
    mut control: UnixStream,
    mut sizes: mpsc::Receiver<(u16, u16)>,
    mut exit: oneshot::Sender<i32>,
) {
    let mut sizing = true;
    let mut code = [0; 4];
    let mut filled = 0;
    loop {
        tokio::select! {
            () = exit.closed() => return,
            read = control.read(&mut code[filled..]) => match read {
                Ok(read) if read > 0 => filled += read,
                _ => return,
            },
            size = sizes.recv(), if sizing => match size {
                Some((columns, rows)) => {
                    let [a, b] = columns.to_le_bytes();
                    let [c, d] = rows.to_le_bytes();
                    let _ = control.write_all(&[a, b, c, d]).await;
                }
                None => sizing = false,
            },
        }
        if filled == code.len() {
            let _ = exit.send(i32::from_le_bytes(code));
            return;
        }
    }
}

impl Runtime for ShimRuntime {
    fn ensure_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> BoxFuture<'a, Result<PathBuf, Error>> {
        Box::pin(async move {
            check_id(&spec.id)?;
            let (inner, spec) = (self.inner.clone(), spec.clone());
            let id = spec.id.clone();
            blocking("make sandbox", &id, move || {
                let fail = failed("make sandbox", &spec.id);
                let file = inner.sandbox_file(&spec.id);
                let known = inner.sandboxes().get(&spec.id).cloned();
                if known.as_ref() != Some(&spec) {
                    fs::create_dir_all(file.parent().unwrap_or(&file)).map_err(&fail)?;
                    state::write(&file, &spec).map_err(&fail)?;
                }
                // From here on there is something to remove, also when the rest fails.
                inner.sandboxes().insert(spec.id.clone(), spec.clone());
                crash::point(crash::DAEMON);
                let cgroup = inner.pod_cgroup(&spec);
                inner.cgroups.create(&cgroup, &spec.resources).map_err(&fail)?;
                crash::point(crash::DAEMON);
                if known.is_some_and(|known| known.resources != spec.resources) {
                    inner.cgroups.update(&cgroup, &spec.resources).map_err(&fail)?;
                }
                let namespaces = inner.namespaces(&spec.id);
                sandbox::ensure(&spec, &namespaces, &inner.options.self_exe).map_err(&fail)?;
                crash::point(crash::DAEMON);
                Ok(if spec.host_network {
                    PathBuf::from("/proc/self/ns/net")
                } else {
                    namespaces.join("net")
                })
            })
            .await
        })
    }

    fn remove_sandbox<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (inner, name) = (self.inner.clone(), id.to_owned());
            blocking("remove sandbox", id, move || {
                let fail = failed("remove sandbox", &name);
                if let Some(other) = inner
                    .containers()
                    .iter()
                    .find(|(_, entry)| entry.spec.sandbox == name)
                    .map(|(id, _)| id.clone())
                {
                    let busy = format!("container {other} is still there");
                    return Err(fail(io::Error::new(io::ErrorKind::ResourceBusy, busy)));
                }
                let Some(spec) = inner.sandboxes().get(&name).cloned() else { return Ok(()) };
                sandbox::remove(&inner.namespaces(&name)).map_err(&fail)?;
                crash::point(crash::DAEMON);
                let cgroup = inner.pod_cgroup(&spec);
                inner.cgroups.kill(&cgroup).map_err(&fail)?;
                inner.cgroups.delete(&cgroup).map_err(&fail)?;
                crash::point(crash::DAEMON);
                state::remove_folder(&inner.options.run_dir.join("sandboxes").join(&name)).map_err(&fail)?;
                crash::point(crash::DAEMON);
                inner.sandboxes().remove(&name);
                Ok(())
            })
            .await
        })
    }

    fn sandboxes(&self) -> BoxFuture<'_, Result<Vec<SandboxSpec>, Error>> {
        let all = self.inner.sandboxes().values().cloned().collect();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn start<'a>(&'a self, spec: &'a ContainerSpec) -> BoxFuture<'a, Result<ContainerState, Error>> {
        Box::pin(async move {
            check_id(&spec.id)?;
            let (inner, id) = (&self.inner, spec.id.clone());
            let known = {
                let mut containers = inner.containers();
                let known = containers.get(&id).map(|entry| entry.state.clone());
                if known.is_none() {
                    let entry = Entry {
                        spec: Arc::new(spec.clone()),
                        cgroup: String::new(),
                        state: ContainerState::Starting,
                    };
                    containers.insert(id.clone(), entry);
                }
                known
            };
            if let Some(state) = known {
                return Ok(state);
            }
            let (done, started) = oneshot::channel();
            let task = {
                let (inner, spec) = (inner.clone(), spec.clone());
                async move {
                    let id = spec.id.clone();
                    let begun = {
                        let inner = inner.clone();
                        blocking("start container", &id, move || inner.begin(&spec)).await
                    };
                    match begun {
                        Err(error) => {
                            inner.containers().remove(&id);
                            let _ = done.send(Err(error));
                        }
                        Ok((shim, control)) => {
                            let (running, up) = oneshot::channel();
                            let following = inner.supervise(id, shim, Some((control, running)));
                            let tell = async {
                                let _ = up.await;
                                let _ = done.send(Ok(()));
                            };
                            tokio::join!(following, tell);
                        }
                    }
                }
            };
            // Not part of this future: a caller that gives up must not leave a container unwatched.
            self.spawn(task);
            match started.await {
                Ok(result) => result?,
                Err(_) => return Err(failed("start container", &id)(io::Error::other("the runtime stops"))),
            }
            self.inner.find(&id, |entry| entry.state.clone())
        })
    }

    fn signal<'a>(&'a self, id: &'a str, signal: i32) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let process = match self.inner.process(id) {
                Ok(process) => process,
                Err(Error::NotRunning(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            match sys::pidfd_signal(process.as_fd(), signal) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    Err(failed("signal container", id)(error))
                }
                _ => Ok(()),
            }
        })
    }

    fn kill<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let (cgroup, state) = self.inner.find(id, |entry| (entry.cgroup.clone(), entry.state.clone()))?;
            let (inner, name) = (self.inner.clone(), id.to_owned());
            blocking("kill container", id, move || {
                if state == ContainerState::Starting
                    && let Some(shim) = inner.folder(&name).holder()
                {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL);
                }
                inner.cgroups.kill(&cgroup).map_err(failed("kill container", &name))
            })
            .await
        })
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let found = self.inner.find(id, |entry| (entry.cgroup.clone(), entry.state.clone()));
            let Ok((cgroup, state)) = found else { return Ok(()) };
            if !matches!(state, ContainerState::Exited(_)) {
                let busy = io::Error::new(io::ErrorKind::ResourceBusy, "it has not ended");
                return Err(failed("remove container", id)(busy));
            }
            let (inner, name) = (self.inner.clone(), id.to_owned());
            blocking("remove container", id, move || {
                inner.clear(&name, &cgroup).map_err(failed("remove container", &name))
            })
            .await
        })
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<Container>, Error>> {
        let containers = self.inner.containers();
        let all = containers.values().map(|entry| (entry.spec.clone(), entry.state.clone())).collect();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn state<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<ContainerState, Error>> {
        Box::pin(std::future::ready(self.inner.find(id, |entry| entry.state.clone())))
    }

    fn update<'a>(&'a self, id: &'a str, resources: &'a Resources) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let cgroup = self.inner.find(id, |entry| entry.cgroup.clone())?;
            let (inner, name, resources) = (self.inner.clone(), id.to_owned(), resources.clone());
            blocking("update container", id, move || {
                let fail = failed("update container", &name);
                inner.cgroups.update(&cgroup, &resources).map_err(&fail)?;
                let folder = inner.folder(&name);
                let mut record = folder.record().map_err(&fail)?;
                record.spec.resources = resources.clone();
                folder.write_record(&record).map_err(&fail)?;
                if let Some(entry) = inner.containers().get_mut(&name) {
                    Arc::make_mut(&mut entry.spec).resources = resources;
                }
                Ok(())
            })
            .await
        })
    }

    fn stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Stats, Error>> {
        Box::pin(async move {
            let cgroup = match self.inner.find(id, |entry| entry.cgroup.clone()) {
                Ok(cgroup) => cgroup,
                Err(error) => match self.inner.sandboxes().get(id) {
                    Some(sandbox) => self.inner.pod_cgroup(sandbox),
                    None => return Err(error),
                },
            };
            self.inner.cgroups.stats(&cgroup).map_err(failed("read usage of", id))
        })
    }

    fn written<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            let upper = self.inner.data(id).join("upper");
            blocking("read usage of", id, move || Ok(super::disk_usage(&upper))).await
        })
    }

    fn exec<'a>(&'a self, id: &'a str, spec: &'a ExecSpec) -> BoxFuture<'a, Result<Session, Error>> {
        Box::pin(async move {
            let container = self.inner.process(id)?;
            let (inner, name) = (self.inner.clone(), id.to_owned());
            let (record, helper, control) = blocking("exec in", id, move || {
                let fail = failed("exec in", &name);
                let record = inner.folder(&name).record().map_err(&fail)?;
                let (child, control) =
                    wire::spawn_helper(&inner.options.self_exe, "exec", &[]).map_err(&fail)?;
                Ok((record, sys::pidfd_open(child.id() as i32).map_err(&fail)?, control))
            })
            .await?;
            let c = &record.spec;
            let request = exec::Request {
                args: spec.args.clone(),
                env: oci::environment(&record, spec.tty),
                cwd: oci::cwd(&record).to_string_lossy().into_owned(),
                uid: c.uid,
                gid: c.gid,
                groups: oci::groups(c),
                capabilities: oci::capabilities(&record),
                no_new_privileges: c.no_new_privileges,
                seccomp: if c.privileged { super::Seccomp::Unconfined } else { c.seccomp.clone() },
                apparmor_profile: c.apparmor_profile.clone(),
                oom_score_adj: c.oom_score_adj,
                tty: spec.tty,
                cgroup: record.cgroup,
                cgroups: self.inner.cgroups.used().to_word(),
            };
            match exec::start(id, control, &request, container, spec.stdin).await {
                Ok(exec::Started { session, drive }) => {
                    self.spawn(async {
                        drive.await;
                        ended(helper).await;
                    });
                    Ok(session)
                }
                Err(error) => {
                    self.spawn(ended(helper));
                    Err(error)
                }
            }
        })
    }

    fn attach<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Session, Error>> {
        Box::pin(async move {
            self.inner.running(id)?;
            let spec = self.inner.find(id, |entry| entry.spec.clone())?;
            let connect = |role| self.inner.connect(id, role).map_err(failed("attach to", id));
            let (resize, sizes) = mpsc::channel(exec::RESIZES_MAX);
            let (code, exit) = oneshot::channel();
            let session = Session {
                stdin: if spec.stdin { Some(Box::new(connect(Role::Input)?)) } else { None },
                stdout: Some(Box::new(connect(Role::Output)?)),
                stderr: if spec.tty { None } else { Some(Box::new(connect(Role::Errors)?)) },
                resize: spec.tty.then_some(resize),
                exit: {
                    let name = id.to_owned();
                    Box::pin(async move { exit.await.map_err(|_| Error::NotRunning(name)) })
                },
            };
            self.spawn(drive_attach(connect(Role::Control)?, sizes, code));
            Ok(session)
        })
    }

    fn watch(&self) -> broadcast::Receiver<String> {
        self.inner.changes.subscribe()
    }
}
