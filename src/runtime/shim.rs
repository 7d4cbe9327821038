//! The shim: makes one container and becomes its monitor. The only place that calls libcontainer.
//!
//! In: a state folder with its record, a socket to the daemon as standard input. Out: a running
//! container under a monitor and one byte to the daemon; or an `exit` record that says why not.
//! Invariants: single-threaded; the lock is taken before anything is made; `started` is written
//! before the container's process runs. The daemon may die at any moment without changing any of it.

use std::{
    cell::RefCell,
    collections::HashMap,
    error::Error as _,
    ffi::CString,
    fs::{self, File},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
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
use nix::{fcntl::OFlag, unistd::pipe2};
use oci_spec::runtime::Spec;

use super::{
    Exit,
    cgroup::Cgroups,
    devices,
    monitor::Handover,
    mounts, oci, process, seccomp,
    state::{Folder, Record, Started},
    sys, wire,
};
use crate::{
    clock::{self, Clock as _, SystemClock},
    crash,
};

/// Exit code of a container that never ran.
pub const CODE_NOT_STARTED: i32 = 128;
/// The shim and the monitor go last when memory runs out.
const OOM_SCORE_OF_MONITOR: &str = "-998";
/// Set for shims whose bundle is wanted afterwards (the benchmark hands it to crun).
const KEEP_BUNDLE: &str = "SAMPAN_TEST_KEEP_BUNDLE";
/// What every message about a container that could not be made starts with.
const PREFIX: &str = "OCI runtime create failed: ";

/// Runs the shim on a state folder.
pub fn run(mut args: impl Iterator<Item = String>) -> ExitCode {
    let Some(folder) = args.next().map(|path| Folder(path.into())) else { return ExitCode::FAILURE };
    let control = UnixStream::from(sys::own(0));
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir(&folder.0);
    // Another shim works here, or a daemon cleans up: it is theirs.
    let Ok(Some(lock)) = folder.lock() else { return ExitCode::FAILURE };
    crash::point(crash::SHIM);
    // A daemon that came while nobody held the lock may have settled it all already, and even be
    // taking the folder away: then the record, read last, is gone too.
    let (None, Ok(record)) = (folder.exit(), folder.record()) else { return ExitCode::FAILURE };
    let name = folder.0.display().to_string();
    let mut folder = folder;
    let failure = match create(&mut folder, &record) {
        Ok(running) => hand_over(name, &folder, running, lock, control),
        Err(message) => message,
    };
    clean_up(&record);
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

/// Kills what a failed start has left.
fn clean_up(record: &Record) {
    if let Ok(cgroups) = Cgroups::detect() {
        let _ = cgroups.kill(&record.cgroup);
    }
}

/// A container whose process runs.
struct Running {
    record: Record,
    started: Started,
    listener: UnixListener,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
}

/// Makes the container and starts it. `folder` becomes what it is called where this process is then.
fn create(folder: &mut Folder, record: &Record) -> Result<Running, String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("{what}: {}", mounts::reason(&error));
    let c = &record.spec;
    let bits = oci::capabilities(record)?;
    let filter = if c.privileged { Vec::new() } else { seccomp::filter(&c.seccomp, bits)? };
    let cgroups = Cgroups::detect().map_err(say("detect cgroups"))?;
    cgroups.create(&record.cgroup, &c.resources).map_err(say("create cgroup"))?;
    cgroups.kill_together_on_oom(&record.cgroup);
    let nodes = if c.privileged { host_devices() } else { listed_devices(record)? };
    if let (Cgroups::V2(_), false, Some(group)) =
        (&cgroups, c.privileged, cgroups.folder("devices", &record.cgroup))
    {
        devices::attach(&group, &nodes).map_err(say("filter devices"))?;
    }
    crash::point(crash::SHIM);
    let mounts::Ready { folder: here, record, root, staged } = mounts::enter(folder, record)?;
    *folder = here;
    let record = &record;
    process::make_folder(&root, oci::cwd(record)).map_err(say("create working directory"))?;
    let machine = oci::Machine {
        cgroup_v2: cgroups.is_v2(),
        oom_score_min: process::oom_score_min(),
        open_files_max: process::open_files_max(),
        v1_mounts: match &cgroups {
            Cgroups::V1(mounts) => mounts.clone(),
            Cgroups::V2(_) => Vec::new(),
        },
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

    let built = builder.as_init(&folder.0).with_systemd(false).with_detach(true).build();
    let mut container = match built {
        Ok(container) => container,
        Err(error) => {
            drop(reporter);
            let reported = read_report(report);
            return Err(if reported.is_empty() {
                chain(&error)
            } else {
                format!("unable to start container process: error during container init: {reported}")
            });
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
    let started = Started { pid, at: SystemClock.now() };
    folder.write_started(&started).map_err(say("write started"))?;
    crash::point(crash::SHIM);
    container.start().map_err(|error| chain(&error))?;
    crash::point(crash::SHIM);
    drop(reporter);
    // Ends when the program has replaced the init process, which closes its copy.
    let reported = read_report(report);
    if reported.is_empty() {
        Ok(Running { record: record.clone(), started, listener, stdout, stderr, stdin })
    } else {
        Err(format!("unable to start container process: {reported}"))
    }
}

fn read_report(report: OwnedFd) -> String {
    let mut text = String::new();
    let _ = File::from(report).read_to_string(&mut text);
    text
}

/// Tells the daemon and becomes the monitor; returns only a reason why not.
fn hand_over(
    name: String,
    folder: &Folder,
    running: Running,
    lock: OwnedFd,
    mut control: UnixStream,
) -> String {
    let Running { record, .. } = &running;
    let (c, cgroup) = (record.spec.clone(), record.cgroup.clone());
    let arguments = || -> std::io::Result<Vec<CString>> {
        let handover = Handover {
            name,
            folder: folder.0.clone(),
            cgroup,
            log_path: c.log_path.clone(),
            log_bytes_max: c.log_bytes_max,
            log_files_max: c.log_files_max,
            pid: running.started.pid,
            started_at: running.started.at,
            lock: sys::keep_across_exec(lock)?,
            listener: sys::keep_across_exec(running.listener.into())?,
            stdout: sys::keep_across_exec(running.stdout)?,
            stderr: running.stderr.map(sys::keep_across_exec).transpose()?,
            stdin: running.stdin.map(sys::keep_across_exec).transpose()?,
            tty: c.tty,
            stdin_once: c.stdin_once,
        };
        let names = ["sampan-shim".to_owned(), "monitor".to_owned()];
        names.into_iter().chain(handover.to_args()).map(|arg| Ok(CString::new(arg)?)).collect()
    };
    let args = match arguments() {
        Ok(args) => args,
        Err(error) => return format!("start the monitor: {error}"),
    };
    // libcontainer has set the container's score on this process.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_OF_MONITOR);
    crash::point(crash::SHIM);
    let _ = control.write_all(b"R");
    crash::point(crash::SHIM);
    if std::env::var_os(KEEP_BUNDLE).is_none() {
        forget_bundle(folder);
    }
    let _ = std::env::set_current_dir("/");
    let env: Vec<CString> =
        [crash::left(crash::SHIM), clock::left()].into_iter().flatten().flat_map(CString::new).collect();
    let Err(error) = nix::unistd::execve(c"/proc/self/exe", &args, &env);
    format!("start the monitor: {error}")
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
                if let Some(home) = self.home.borrow().as_ref()
                    && !env.iter().any(|entry| entry.as_bytes().starts_with(b"HOME="))
                {
                    env.extend(CString::new(home.as_str()));
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
