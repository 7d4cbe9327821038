//! The programs of the demo image: `sampan demo APPLET …`, or this binary called by an applet's name.
//!
//! In: a command line, as pid 1 of a container or beside it. Out: what a small test program does: web page, echo
//! servers, load, a few Unix commands and a line shell.
//! Invariants: SIGTERM ends every applet at once, also as pid 1; nothing of the daemon is used or started.
//! Deliberately absent: completeness; these are for trying a cluster out and for its tests.

mod commands;
mod http;
mod load;
mod net;
mod resolve;
mod shell;
mod web;

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Command, ExitCode},
    sync::{Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// What an applet does with its arguments; returns its exit code.
type Run = fn(&[String]) -> Result<u8, Failure>;

/// Name, usage, function.
struct Applet(&'static str, &'static str, Run);

/// The applets, by name.
const TABLE: &[Applet] = &[
    Applet("cat", "cat [FILE…]", commands::cat),
    Applet("cpuburn", "cpuburn SECONDS [THREADS]: keeps cores busy", load::cpuburn),
    Applet("date", "date: the time, RFC 3339", commands::date),
    Applet("echo", "echo [TEXT…]", commands::echo),
    Applet("env", "env: prints the environment", commands::env),
    Applet("exit", "exit [CODE]", commands::exit),
    Applet("false", "false", commands::no),
    Applet("hostname", "hostname", commands::hostname),
    Applet("id", "id", commands::id),
    Applet("ls", "ls [-l] [PATH…]", commands::ls),
    Applet("memhog", "memhog MIB [SECONDS]: fills memory and holds it", load::memhog),
    Applet("nc", "nc [-u] [-z] [-w SECONDS] HOST PORT", net::nc),
    Applet("nslookup", "nslookup NAME [SERVER]", resolve::nslookup),
    Applet("ps", "ps", commands::ps),
    Applet("sh", "sh [-c LINE | FILE]", shell::sh),
    Applet("sleep", "sleep SECONDS|infinity", commands::sleep),
    Applet("tcp-echo", "tcp-echo [PORT] [PREFIX]: default port 7", net::tcp_echo),
    Applet("test", "test -e|-f|-d|-n|-z X, test A =|!= B", commands::test),
    Applet("true", "true", commands::yes),
    Applet("udp-echo", "udp-echo [PORT] [PREFIX]: default port 7", net::udp_echo),
    Applet("web", "web [PORT]: a page about this pod; port from PORT, default 8080", web::web),
    Applet("wget", "wget [-q] [-O FILE] [-T SECONDS] http://…", net::wget),
    Applet("write", "write FILE TEXT…", commands::write),
];

/// Why an applet ended badly; printed after its name.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("usage: {0}")]
    Usage(&'static str),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The names that the demo image has links for.
pub fn applets() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|applet| applet.0)
}

/// Runs the applet that the process was called for: by its own name, or as `sampan demo`. `None` when it was
/// called for something else.
pub fn dispatch() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = Path::new(args.first()?).file_name()?.to_str()?.to_owned();
    let words = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    if TABLE.iter().any(|applet| applet.0 == name) {
        return Some(run(&name, &words.collect::<Vec<_>>()));
    }
    let mut words = words;
    (words.next()? == "demo").then(|| {
        let name = words.next().unwrap_or_else(|| "web".to_owned());
        run(&name, &words.collect::<Vec<_>>())
    })
}

fn run(name: &str, args: &[String]) -> ExitCode {
    let Some(Applet(_, usage, run)) = TABLE.iter().find(|applet| applet.0 == name) else {
        eprintln!("sampan demo: no applet {name:?}; there are:");
        for Applet(_, usage, _) in TABLE {
            eprintln!("  {usage}");
        }
        return ExitCode::from(127);
    };
    if args.iter().any(|arg| arg == "--help") {
        println!("{usage}");
        return ExitCode::SUCCESS;
    }
    end_on_signals(name);
    match run(args) {
        Ok(code) => ExitCode::from(code),
        // The reader went away, as in `cat … | head`.
        Err(Failure::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The signals that end us. Who holds the lock may take them; they wait meanwhile.
struct Ending {
    signals: SignalFd,
    taking: Mutex<()>,
}

static ENDING: OnceLock<Ending> = OnceLock::new();

impl Ending {
    /// Waits so long for a signal; `true` when there is one to take.
    fn has_come(&self, within: PollTimeout) -> bool {
        poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], within) == Ok(1)
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.taking.lock().expect("no holder of the signals' lock panics")
    }

    /// The next signal that is there.
    fn take(&self) -> Option<Signal> {
        let taken = self.signals.read_signal().ok().flatten()?;
        Signal::try_from(taken.ssi_signo as i32).ok()
    }
}

/// Pid 1 has no default signal actions, so a thread waits for the signals that end us. The exit code is the one
/// that a shell shows for the signal; a server that is told to stop has succeeded. A shell goes on after SIGINT,
/// which its children die of.
fn end_on_signals(name: &str) {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGHUP);
    // Threads started from here on inherit the mask; so only who reads the descriptor gets the signals.
    if signals.thread_block().is_err() {
        return;
    }
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let ending = match SignalFd::with_flags(&signals, flags) {
        Ok(signals) => ENDING.get_or_init(|| Ending { signals, taking: Mutex::new(()) }),
        Err(error) => {
            eprintln!("{name}: cannot wait for signals: {error}");
            return;
        }
    };
    let (server, shell) = (matches!(name, "web" | "tcp-echo" | "udp-echo"), name == "sh");
    let wait = move || {
        loop {
            ending.has_come(PollTimeout::NONE);
            let _taking = ending.lock();
            match ending.take() {
                None => {}
                Some(Signal::SIGINT) if shell => {}
                Some(signal) => std::process::exit(if server { 0 } else { 128 + signal as i32 }),
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("signals".to_owned()).stack_size(64 * 1024).spawn(wait) {
        eprintln!("{name}: cannot wait for signals: {error}");
    }
}

/// Becomes the command; returns only why not. A signal that the waiting thread had taken would be lost with the
/// thread, so what has come ends us first, and what comes now is the command's.
fn become_command(command: &mut Command) -> io::Error {
    let Some(ending) = ENDING.get() else { return command.exec() };
    loop {
        let taking = ending.lock();
        if !ending.has_come(PollTimeout::ZERO) {
            return command.exec();
        }
        drop(taking);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sleeps for `seconds`, or for ever.
fn pause(seconds: Option<f64>) {
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    loop {
        let left = end.map_or(Duration::from_hours(1), |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        thread::sleep(left);
    }
}

/// The argument at `i`, read as a number.
fn number<T: std::str::FromStr>(
    args: &[String],
    i: usize,
    usage: &'static str,
) -> Result<Option<T>, Failure> {
    args.get(i).map(|arg| arg.parse().map_err(|_| Failure::Usage(usage))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_no_applet_hides_the_binary() {
        let names: Vec<&str> = applets().collect();
        assert!(names.is_sorted() && !names.contains(&"sampan") && !names.contains(&"demo"));
    }
}
