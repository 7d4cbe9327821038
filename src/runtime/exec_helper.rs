//! Commands beside a container's process, the helper's half: joins the container and runs one.
//!
//! In: a [`Request`] with descriptors on standard input. Out: [`answer`]s on the same socket. The
//! parent stays outside the pid namespace, waits, and kills the command when the socket ends; the
//! child is the command. Invariants: single-threaded; nothing of the host stays open in the command.
//! libcontainer's own exec is not used: it drops seccomp and the OOM score.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Gid, Pid, Uid, pipe2},
};

use super::{
    cgroup::Cgroups,
    exec::{Request, answer},
    process::{self, CODE_NOT_EXECUTABLE, Unrunnable},
    seccomp, sys, wire,
};

/// Runs the helper.
pub fn run() -> ExitCode {
    let mut control = UnixStream::from(sys::own(0));
    match serve(&mut control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            fail(&mut control, &reason);
            ExitCode::FAILURE
        }
    }
}

fn fail(control: &mut UnixStream, reason: &Unrunnable) {
    let mut bytes = vec![answer::FAILED, reason.code as u8];
    bytes.extend(reason.message.as_bytes());
    let _ = control.write_all(&bytes);
}

fn serve(control: &mut UnixStream) -> Result<(), Unrunnable> {
    let say = |what: &'static str| {
        move |error: io::Error| Unrunnable { code: CODE_NOT_EXECUTABLE, message: format!("{what}: {error}") }
    };
    let (request, mut fds) = read_request(control).map_err(say("read the request"))?;
    if fds.is_empty() {
        return Err(say("read the request")(io::Error::other("no container")));
    }
    let container = fds.remove(0);
    // What is in the container must not look into this process before it is the command.
    nix::sys::prctl::set_dumpable(false).map_err(|e| say("prctl")(e.into()))?;
    let filter = seccomp::filter(&request.seccomp, request.capabilities)
        .map_err(|message| Unrunnable { code: CODE_NOT_EXECUTABLE, message })?;
    let score = process::oom_score_min().map_or(request.oom_score_adj, |min| request.oom_score_adj.max(min));
    fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(say("set oom score"))?;
    let cgroups = Cgroups::from_word(&request.cgroups);
    cgroups.join(&request.cgroup, std::process::id()).map_err(say("join cgroup"))?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if cgroups.is_v2() {
        namespaces |= CloneFlags::CLONE_NEWCGROUP;
    }
    setns(&container, namespaces).map_err(|e| say("join namespaces")(e.into()))?;
    drop(container);

    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(|e| say("pipe")(e.into()))?;
    let child = match sys::fork().map_err(say("fork"))? {
        ForkResult::Child => {
            drop(report);
            let reason = become_command(&request, &filter, fds, control);
            let mut reporter = File::from(reporter);
            let _ = reporter.write_all(&[reason.code as u8]);
            let _ = reporter.write_all(reason.message.as_bytes());
            sys::exit_now(reason.code);
        }
        ForkResult::Parent { child } => child,
    };
    drop((reporter, fds));
    let mut reported = Vec::new();
    File::from(report).read_to_end(&mut reported).map_err(say("read the report"))?;
    if let Some((code, message)) = reported.split_first() {
        let _ = waitpid(child, None);
        return Err(Unrunnable {
            code: i32::from(*code),
            message: String::from_utf8_lossy(message).into_owned(),
        });
    }
    let _ = control.write_all(&[answer::STARTED]);
    let code = wait(child, control).map_err(say("wait"))?;
    let _ = control.write_all(&[answer::EXITED, code as u8]);
    Ok(())
}

fn read_request(control: &UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut text = Vec::new();
    let mut fds = Vec::new();
    while text.last() != Some(&b'\n') {
        let (more, mut with) = wire::receive(control.as_fd())?;
        if more.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.extend(more);
        fds.append(&mut with);
    }
    Ok((serde_json::from_slice(&text)?, fds))
}

/// The command's exit code; 128 + signal when one has ended it. Kills it when the socket ends.
fn wait(child: Pid, control: &UnixStream) -> io::Result<i32> {
    let process = sys::pidfd_open(child.as_raw())?;
    let mut killed = false;
    loop {
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if !killed {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let ready =
            |n: usize| fds.get(n).and_then(|fd| fd.revents()).is_some_and(|events| !events.is_empty());
        if ready(0) {
            break;
        }
        if ready(1) {
            // The daemon sends nothing: this is the end of the stream.
            sys::kill_group(child, Signal::SIGKILL);
            killed = true;
        }
    }
    Ok(match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => CODE_NOT_EXECUTABLE,
    })
}

/// Becomes the command; returns only a reason why not.
fn become_command(
    request: &Request,
    filter: &[libc::sock_filter],
    fds: Vec<OwnedFd>,
    control: &UnixStream,
) -> Unrunnable {
    let prepared = prepare(request, fds, control);
    if let Err((what, error)) = prepared {
        return Unrunnable { code: CODE_NOT_EXECUTABLE, message: format!("{what}: {error}") };
    }
    let path =
        request.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(process::DEFAULT_PATH);
    let name = request.args.first().map_or("", String::as_str);
    let program = match process::find_executable(name, path) {
        Ok(program) => program,
        Err(reason) => return reason,
    };
    let mut env: Vec<_> = request.env.iter().filter_map(|entry| CString::new(entry.as_str()).ok()).collect();
    if !request.env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.extend(CString::new(format!("HOME={}", home_of(request.uid))));
    }
    process::become_program(
        &program,
        &request.args,
        &env,
        request.capabilities,
        request.no_new_privileges,
        filter,
    )
}

/// Streams, session, groups and user.
fn prepare(
    request: &Request,
    fds: Vec<OwnedFd>,
    control: &UnixStream,
) -> Result<(), (&'static str, io::Error)> {
    fn at<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> (&'static str, io::Error) {
        move |error| (what, error.into())
    }
    nix::unistd::setsid().map_err(at("setsid"))?;
    if request.tty {
        open_terminal(request.uid, control).map_err(at("open terminal"))?;
    } else {
        for (target, fd) in fds.iter().enumerate() {
            sys::place(fd.as_fd(), target as i32).map_err(at("set up streams"))?;
        }
    }
    sys::close_others_on_exec().map_err(at("close descriptors"))?;
    if let Some(profile) = &request.apparmor_profile {
        fs::write("/proc/self/attr/apparmor/exec", format!("exec {profile}"))
            .map_err(at("apply apparmor profile"))?;
    }
    let limit = process::open_files_max();
    let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
    nix::sys::resource::setrlimit(files, limit, limit).map_err(at("set rlimit"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if request.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(at("set no_new_privs"))?;
    }
    nix::unistd::chdir(Path::new(&request.cwd)).map_err(at("chdir to cwd"))?;
    let groups: Vec<_> = request.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups).map_err(at("setgroups"))?;
    let (uid, gid) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
    // The permitted capabilities stay for a moment: they are set by what comes next.
    nix::sys::prctl::set_keepcaps(true).map_err(at("set keepcaps"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(at("setgid"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(at("setuid"))?;
    nix::sys::prctl::set_keepcaps(false).map_err(at("set keepcaps"))?;
    sys::set_capabilities(
        request.capabilities & process::all_capabilities() | process::CAP_SETPCAP | process::CAP_SYS_ADMIN,
    )
    .map_err(at("unable to apply caps"))
}

/// A terminal of the container's own, so that its name is right inside; the master goes to the daemon.
fn open_terminal(uid: u32, control: &UnixStream) -> io::Result<()> {
    let master = File::options().read(true).write(true).open("/dev/ptmx")?;
    let terminal = sys::terminal_of(master.as_fd())?;
    nix::unistd::fchown(terminal.as_raw_fd(), Some(Uid::from_raw(uid)), None)?;
    wire::send(control.as_fd(), &[answer::TERMINAL], &[master.as_raw_fd()])?;
    sys::set_controlling_terminal(terminal.as_fd())?;
    for target in 0..3 {
        sys::place(terminal.as_fd(), target)?;
    }
    Ok(())
}

/// The user's home in the container's passwd, `/` without one.
fn home_of(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let home = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| fields.get(5).map(ToString::to_string)).flatten()
    });
    home.filter(|home| !home.is_empty()).unwrap_or_else(|| "/".to_owned())
}
