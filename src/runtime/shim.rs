//! The shim: makes one container through a copy of itself, and is its monitor then.
//!
//! In: a state folder with its record, a socket to the daemon as standard input. Out: a running
//! container and one byte to the daemon; or an `exit` record that says why not. The copy, the
//! **builder**, is the only process that calls libcontainer: what it touches and mounts goes with it, so
//! that the monitor keeps next to nothing. It joins the container's memory group before it mounts
//! anything, takes the shim's death for its own, and leaves the container to the shim by ending.
//! Invariants: single-threaded; the lock is taken before anything is made; `started` is written
//! before the container's process runs. The daemon may die at any moment without changing any of it.

use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error as _,
    ffi::CString,
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd},
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
};

use libcontainer::{
    container::builder::ContainerBuilder,
    error::LibcontainerError,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{memfd::MemFdCreateFlag, signal::Signal, wait::waitpid},
    unistd::{ForkResult, Pid, pipe2},
};
use oci_spec::runtime::Spec;
use tracing::level_filters::LevelFilter;

use super::{
    Exit, Resources,
    cgroup::Cgroups,
    devices,
    monitor::{self, Handover, Streams},
    mounts, oci, process, seccomp,
    state::{Folder, Record, Started},
    sys, wire,
};
use crate::{
    clock::{Clock as _, SystemClock},
    crash, memory,
};

/// Exit code of a container that never ran.
pub const CODE_NOT_STARTED: i32 = 128;
/// The shim and the monitor go last when memory runs out.
const OOM_SCORE_OF_MONITOR: &str = "-998";
/// The places where tests kill the builder.
const BUILDER_PLACES: u32 = 5;
/// Set for shims whose bundle is wanted afterwards (the benchmark hands it to crun).
const KEEP_BUNDLE: &str = "SAMPAN_TEST_KEEP_BUNDLE";
/// What every message about a container that could not be made starts with.
const PREFIX: &str = "OCI runtime create failed: ";

/// Runs the shim on a state folder.
pub fn run(mut args: impl Iterator<Item = String>) -> ExitCode {
    let Some(folder) = args.next().map(|path| Folder(path.into())) else { return ExitCode::FAILURE };
    let control = UnixStream::from(sys::own(0));
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    // Another shim works here, or a daemon cleans up: it is theirs.
    let Ok(Some(_lock)) = folder.lock() else { return ExitCode::FAILURE };
    crash::point(crash::SHIM);
    // A daemon that came while nobody held the lock may have settled it all already, and even be
    // taking the folder away: then the record is gone too.
    if folder.file("exit").exists() || !folder.file("spec.json").exists() {
        return ExitCode::FAILURE;
    }
    let failure = match start(&folder, control) {
        Ok((handover, streams)) => {
            return match monitor::watch_over(&folder, handover, streams) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
        Err(message) => message,
    };
    if let (Ok(cgroups), Ok(record)) = (Cgroups::detect(), folder.record()) {
        let _ = cgroups.kill(&record.cgroup);
    }
    let never_ran = Exit {
        code: CODE_NOT_STARTED,
        signal: None,
        oom_killed: false,
        started_at: None,
        finished_at: SystemClock.now(),
        error: Some(format!("{PREFIX}{failure}")),
    };
    let _ = folder.write_exit(&never_ran);
    ExitCode::FAILURE
}

/// Lets a builder make the container, tells the daemon, and takes it over.
fn start(folder: &Folder, mut control: UnixStream) -> Result<(Handover, Streams), String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("{what}: {}", mounts::reason(&error));
    let (near, far) = UnixStream::pair().map_err(say("make a socket"))?;
    // The container's process is the builder's child first.
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| say("adopt processes")(error.into()))?;
    let shim = Pid::this();
    let builder = match sys::fork().map_err(say("fork"))? {
        ForkResult::Child => {
            drop(near);
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            // The signal is sent once: not to a process that asks too late.
            if nix::unistd::getppid() == shim {
                build(folder, &far);
            }
            sys::exit_now(0);
        }
        ForkResult::Parent { child } => child,
    };
    drop(far);
    crash::skip(BUILDER_PLACES);
    let told = hear(&near, builder);
    if told.is_ok() {
        crash::point(crash::SHIM);
        let _ = control.write_all(b"R");
        crash::point(crash::SHIM);
        let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_OF_MONITOR);
    }
    // With its end the container's process is ours.
    let _ = waitpid(builder, None);
    let _ = nix::sys::prctl::set_child_subreaper(false);
    if told.is_ok() {
        // Standard output is /dev/null; it takes the socket's place.
        let _ = nix::unistd::dup2(libc::STDOUT_FILENO, control.into_raw_fd());
    }
    told
}

/// What the builder tells: a zero byte, then the handover with its descriptors; or a reason why not.
fn hear(socket: &UnixStream, builder: Pid) -> Result<(Handover, Streams), String> {
    let process = sys::pidfd_open(builder.as_raw()).map_err(|error| format!("watch the builder: {error}"))?;
    let (mut text, mut fds) = (Vec::new(), Vec::new());
    loop {
        // Whatever it has begun may hold the socket's other end open when it has died.
        let mut sources =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut sources, PollTimeout::NONE);
        if sources[0].any() != Some(true) && sources[1].any() == Some(true) {
            break;
        }
        match wire::receive(socket.as_fd()) {
            Ok((more, with)) if !more.is_empty() => {
                text.extend(more);
                fds.extend(with);
            }
            _ => break,
        }
    }
    match text.split_first() {
        Some((0, bytes)) => {
            let handover = Handover::from_bytes(bytes);
            let both = handover.and_then(|handover| {
                let streams = Streams::from_descriptors(fds, &handover)?;
                Some((handover, streams))
            });
            both.ok_or_else(|| "the container was not handed over".to_owned())
        }
        Some(_) => Err(String::from_utf8_lossy(&text).into_owned()),
        None => Err("its making was interrupted".to_owned()),
    }
}

/// Makes the container and hands it over through `shim`.
#[inline(never)]
fn build(folder: &Folder, shim: &UnixStream) {
    // It and what libcontainer makes of it live for some milliseconds: to give each block back at once would
    // be a tenth of their work.
    memory::keep_blocks();
    let mut folder = folder.clone();
    let made = folder
        .record()
        .map_err(|error| format!("read the record: {error}"))
        .and_then(|record| create(&mut folder, &record));
    match made {
        Ok((handover, streams)) => {
            let mut bytes = handover.to_bytes();
            bytes.insert(0, 0);
            let sent = wire::send(shim.as_fd(), &bytes, &streams.descriptors());
            if let Ok(sent) = sent {
                let _ = (&mut &*shim).write_all(&bytes[sent..]);
            }
            let _ = shim.shutdown(std::net::Shutdown::Both);
            if std::env::var_os(KEEP_BUNDLE).is_none() {
                forget_bundle(&folder);
            }
        }
        Err(reason) => {
            let _ = (&mut &*shim).write_all(reason.as_bytes());
            let _ = shim.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Makes the container and starts it. `folder` becomes what it is called where this process is then.
fn create(folder: &mut Folder, record: &Record) -> Result<(Handover, Streams), String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("{what}: {}", mounts::reason(&error));
    let c = &record.spec;
    std::env::set_current_dir(&folder.0).map_err(say("enter the state folder"))?;
    let bits = oci::capabilities(record);
    let filter = if c.privileged { Vec::new() } else { seccomp::filter(&c.seccomp, bits)? };
    let cgroups = Cgroups::from_word(&record.cgroups);
    // The making of a container is not slowed down by how little CPU it may use.
    let (cpu, others) = (
        Resources { cpu_quota_us: c.resources.cpu_quota_us, ..Resources::default() },
        Resources { cpu_quota_us: None, ..c.resources.clone() },
    );
    cgroups.create(&record.cgroup, &others).map_err(say("create cgroup"))?;
    cgroups.kill_together_on_oom(&record.cgroup);
    let charge = cgroups.charge(&record.cgroup).map_err(say("join cgroup"))?;
    let nodes = if c.privileged { host_devices() } else { listed_devices(record)? };
    if let (false, Some(group)) = (c.privileged, cgroups.folder("devices", &record.cgroup)) {
        let limit = if cgroups.is_v2() { devices::attach } else { devices::restrict };
        limit(&group, &nodes).map_err(say("filter devices"))?;
    }
    let shown: Vec<_> = match &cgroups {
        Cgroups::V1(mounts) => {
            let shown = mounts.iter().filter(|(name, _)| oci::V1_SHOWN.contains(&name.as_str()));
            shown
                .filter_map(|(name, _)| Some((name.clone(), cgroups.folder(name, &record.cgroup)?)))
                .collect()
        }
        Cgroups::V2(_) => Vec::new(),
    };
    crash::point(crash::SHIM);
    let outside = &record.spec;
    // The hierarchies are out of sight from here on; descriptors still lead to them.
    let unseen = cgroups.kept_open().map_err(say("open cgroup"))?;
    let mounts::Ready { folder: here, record, root, staged, groups } = mounts::enter(folder, record, &shown)?;
    *folder = here;
    let record = &record;
    process::make_folder(&root, oci::cwd(record)).map_err(say("create working directory"))?;
    let machine = oci::Machine {
        cgroup_v2: cgroups.is_v2(),
        oom_score_min: process::oom_score_min(),
        open_files_max: process::open_files_max(),
        groups,
        devices: nodes,
        staged,
    };
    let spec = oci::spec(record, &machine, &root, bits).map_err(|error| error.to_string())?;
    spec.save(folder.file("config.json")).map_err(|error| format!("write config.json: {error}"))?;

    crash::point(crash::SHIM);
    let listener = UnixListener::bind("attach").map_err(say("listen on the attach socket"))?;
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
    let executor = Program {
        report: reporter.as_raw_fd(),
        capabilities: bits,
        no_new_privileges: c.no_new_privileges,
        filter: filter.into(),
        home: Rc::default(),
    };
    let state = folder.file("lc");
    fs::create_dir_all(&state).map_err(say("create state folder"))?;
    let mut builder = ContainerBuilder::new("c".to_owned(), SyscallType::default())
        .with_root_path(&state)
        .map_err(|error| chain(&error))?
        .with_executor(executor);
    let mut console = None;
    let mut near = (None, None, None);
    if c.tty {
        console = Some(UnixListener::bind("console").map_err(say("listen on the console socket"))?);
        builder = builder.with_console_socket(Some(folder.file("console")));
    } else {
        let pipe = || -> Result<(OwnedFd, OwnedFd), String> {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|error| error.to_string())?;
            // So that a process of another user may open /dev/stdout again.
            for end in [&read, &write] {
                let owner = nix::unistd::Uid::from_raw(c.uid);
                let _ = nix::unistd::fchown(end.as_raw_fd(), Some(owner), None);
            }
            Ok((read, write))
        };
        let (stdin, stdin_near) = if c.stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (File::open("/dev/null").map_err(say("open /dev/null"))?.into(), None)
        };
        let ((stdout_near, stdout), (stderr_near, stderr)) = (pipe()?, pipe()?);
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        near = (stdin_near, Some(stdout_near), Some(stderr_near));
    }

    let complaints = Complaints::hear().map_err(say("hear complaints"))?;
    // What libcontainer cannot finish it ends with the whole group.
    charge.end().map_err(say("leave cgroup"))?;
    let built = builder.as_init(&folder.0).with_systemd(false).with_detach(true).build();
    let mut container = match built {
        Ok(container) => container,
        Err(error) => {
            drop(reporter);
            let reported = read_report(report);
            let reason = if reported.is_empty() { complaints.first() } else { Some(reported) };
            return Err(reason.map_or_else(
                || chain(&error),
                |reason| format!("unable to start container process: error during container init: {reason}"),
            ));
        }
    };
    let (stdin, stdout, stderr) = match console {
        Some(console) => {
            let (socket, _) = console.accept().map_err(say("accept the console"))?;
            let (_, mut fds) = wire::receive(socket.as_fd()).map_err(say("receive the console"))?;
            let terminal = fds.pop().ok_or("libcontainer sent no terminal")?;
            let again = terminal.try_clone().map_err(say("copy the terminal"))?;
            (Some(again), terminal, None)
        }
        None => match near {
            (stdin, Some(stdout), stderr) => (stdin, stdout, stderr),
            _ => return Err("no standard output".to_owned()),
        },
    };
    crash::point(crash::SHIM);
    let pid = container.pid().ok_or("libcontainer told no pid")?.as_raw();
    unseen.join(&record.cgroup, pid as u32).map_err(say("join cgroup"))?;
    unseen.limit(&record.cgroup, &cpu).map_err(say("limit CPU"))?;
    let started = Started { pid, at: SystemClock.now() };
    folder.write_started(&started).map_err(say("write started"))?;
    crash::point(crash::SHIM);
    container.start().map_err(|error| chain(&error))?;
    crash::point(crash::SHIM);
    drop(reporter);
    // Ends when the program has replaced the init process, which closes its copy.
    let reported = read_report(report);
    if !reported.is_empty() {
        return Err(format!("unable to start container process: {reported}"));
    }
    let handover = Handover {
        cgroups: cgroups.for_ending(),
        cgroup: record.cgroup.clone(),
        outlived: record.sandbox.host_pid || record.sandbox.share_pid || record.pid_namespace.is_some(),
        log_path: outside.log_path.clone(),
        log_bytes_max: c.log_bytes_max,
        log_files_max: c.log_files_max,
        pid,
        started_at: started.at,
        tty: c.tty,
        stdin: stdin.is_some(),
        stdin_once: c.stdin_once,
    };
    Ok((handover, Streams { listener, stdout, stderr, stdin }))
}

fn read_report(report: OwnedFd) -> String {
    let mut text = String::new();
    let _ = File::from(report).read_to_string(&mut text);
    text
}

/// Takes away what only the start has needed: on most boards it would lie in memory.
fn forget_bundle(folder: &Folder) {
    let _ = fs::remove_file(folder.file("config.json"));
    for made in ["lc", "l"] {
        let _ = fs::remove_dir_all(folder.file(made));
    }
}

/// libcontainer's errors say little by themselves; their sources do.
fn chain(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

/// What libcontainer has logged as an error. Its init process tells only the outermost words of a failure to
/// who waits for it.
struct Complaints(File);

/// The kept length of one complaint (bytes).
const COMPLAINT_BYTES_MAX: usize = 1024;

impl Complaints {
    /// Hears this process, and those that it is the parent of.
    fn hear() -> std::io::Result<Self> {
        let file = nix::sys::memfd::memfd_create(c"complaints", MemFdCreateFlag::MFD_CLOEXEC)?;
        let file = File::from(file);
        let _ = tracing::subscriber::set_global_default(Listener(file.try_clone()?));
        Ok(Self(file))
    }

    /// What was wrong first.
    fn first(mut self) -> Option<String> {
        let mut text = String::new();
        self.0.seek(std::io::SeekFrom::Start(0)).ok()?;
        self.0.read_to_string(&mut text).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

struct Listener(File);

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            let _ = match field.name() {
                "message" => write!(text, "{value:?} "),
                name => write!(text, "{name}: {value:?} "),
            };
        });
        text.truncate(text.floor_char_boundary(COMPLAINT_BYTES_MAX));
        let _ = (&self.0).write_all(format!("{}\n", text.trim_end().replace('\n', " ")).as_bytes());
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Runs in the container's init process, after everything else was set up.
#[derive(Clone)]
struct Program {
    /// Takes the reason why the program does not run; closed by `execve`.
    report: RawFd,
    capabilities: u64,
    no_new_privileges: bool,
    filter: Rc<[libc::sock_filter]>,
    /// `HOME=…`, which libcontainer reads from the image's passwd.
    home: Rc<RefCell<Option<String>>>,
}

impl Program {
    fn find(spec: &Spec) -> Result<(PathBuf, &[String], &[String]), process::Unrunnable> {
        let process = spec.process().as_ref();
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        let args = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
        let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(process::DEFAULT_PATH);
        let name = args.first().map_or("", String::as_str);
        Ok((process::find_executable(name, path)?, args, env))
    }

    fn tell(&self, reason: &process::Unrunnable) -> String {
        let mut report = File::from(sys::own(self.report));
        let _ = report.write_all(reason.message.as_bytes());
        reason.message.clone()
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        match Self::find(spec) {
            Ok(_) => Ok(()),
            Err(reason) => Err(ExecutorValidationError::ArgValidationError(self.tell(&reason))),
        }
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        *self.home.borrow_mut() = envs.get("HOME").map(|home| format!("HOME={home}"));
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let reason = match Self::find(spec) {
            Err(reason) => reason,
            Ok((path, args, env)) => {
                let mut env: Vec<_> =
                    env.iter().filter_map(|entry| CString::new(entry.as_str()).ok()).collect();
                if !env.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
                    // Whom the image does not know is at home at the root.
                    env.extend(CString::new(self.home.borrow().as_deref().unwrap_or("HOME=/")));
                }
                process::become_program(
                    &path,
                    args,
                    &env,
                    self.capabilities,
                    self.no_new_privileges,
                    &self.filter,
                )
            }
        };
        Err(ExecutorError::Other(self.tell(&reason)))
    }
}

/// The device nodes that the spec names; a folder stands for all nodes in it.
fn listed_devices(record: &Record) -> Result<Vec<oci::Device>, String> {
    let mut found = Vec::new();
    for (host, container, access) in &record.spec.devices {
        let fail = |error: std::io::Error| {
            format!(
                "error gathering device information while adding custom device {:?}: {}",
                host.to_string_lossy(),
                mounts::reason(&error)
            )
        };
        if fs::metadata(host).map_err(fail)?.is_dir() {
            collect_devices(host, container, access, &mut found);
        } else {
            let device = device(host, container, access).map_err(fail)?;
            found.push(device.ok_or_else(|| format!("{} is not a device node", host.display()))?);
        }
    }
    Ok(found)
}

/// All device nodes of the host, for a privileged container.
fn host_devices() -> Vec<oci::Device> {
    let mut found = Vec::new();
    collect_devices(Path::new("/dev"), Path::new("/dev"), "rwm", &mut found);
    found
}

fn collect_devices(host: &Path, container: &Path, access: &str, found: &mut Vec<oci::Device>) {
    for entry in fs::read_dir(host).into_iter().flatten().flatten() {
        let (name, Ok(kind)) = (entry.file_name(), entry.file_type()) else { continue };
        let (from, to) = (entry.path(), container.join(&name));
        if kind.is_dir() {
            // The container has its own of these.
            if !["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"].iter().any(|own| name == *own)
            {
                collect_devices(&from, &to, access, found);
            }
        } else if (kind.is_char_device() || kind.is_block_device())
            && !["console", "ptmx"].iter().any(|own| name == *own)
            && let Ok(Some(device)) = device(&from, &to, access)
        {
            found.push(device);
        }
    }
}

fn device(host: &Path, container: &Path, access: &str) -> std::io::Result<Option<oci::Device>> {
    let data = fs::metadata(host)?;
    let kind = data.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(None);
    }
    Ok(Some(oci::Device {
        path: container.to_owned(),
        block: kind.is_block_device(),
        major: u64::from(libc::major(data.rdev())),
        minor: u64::from(libc::minor(data.rdev())),
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
        access: access.to_owned(),
    }))
}
