//! The demo image's programs, run as processes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
    // Empty: names are found among the applets only.
    command.arg("demo").args(args).env("PATH", "");
    command
}

fn output(args: &[&str]) -> Output {
    demo(args).output().unwrap()
}

/// A child that ends with the value.
struct Running(Child);

impl Running {
    fn new(args: &[&str]) -> Self {
        Self(demo(args).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    /// The code as a shell shows it.
    fn signal(&mut self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        let status = self.0.wait().unwrap();
        status.code().or_else(|| status.signal().map(|signal| 128 + signal))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn lines_of_the_shell_run() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f").display().to_string();
    for (line, code, out) in [
        ("echo a b | cat", 0, "a b\n"),
        ("false || echo no && echo yes", 0, "no\nyes\n"),
        ("true && exit 7; echo never", 7, ""),
        ("false; echo $?", 0, "1\n"),
        ("cd /proc && pwd", 0, "/proc\n"),
        (&format!("echo one > {file}; echo two >> {file}; cat < {file}"), 0, "one\ntwo\n"),
        (&format!("write {file} three && test -f {file} && cat {file}"), 0, "three\n"),
        ("ls /no/where 2>&1 | cat; exit 3", 3, "ls: /no/where: No such file or directory (os error 2)\n"),
        ("nosuch", 127, ""),
        ("'", 2, ""),
        ("exit 5", 5, ""),
    ] {
        let got = output(&["sh", "-c", line]);
        assert_eq!(
            (got.status.code(), String::from_utf8_lossy(&got.stdout).as_ref()),
            (Some(code), out),
            "{line}"
        );
    }
    let mut shell = demo(&["sh"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo one\n# nothing\n\nexit 4\necho never\n").unwrap();
    let mut text = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((shell.wait().unwrap().code(), text.as_str()), (Some(4), "one\n"));
}

#[test]
fn applets_end_with_their_code_and_at_once_on_signals() {
    for (args, code) in [
        (&["exit", "9"][..], 9),
        (&["true"], 0),
        (&["false"], 1),
        (&["sleep", "0.01"], 0),
        (&["sleep", "soon"], 1),
        (&["cpuburn", "0.01", "2"], 0),
        (&["memhog", "2", "0.01"], 0),
        (&["nosuch"], 127),
        (&["cat", "/no/where"], 1),
    ] {
        assert_eq!(output(args).status.code(), Some(code), "{args:?}");
    }
    let start = Instant::now();
    for (args, signal, code) in [
        (&["sh", "-c", "echo up; exec-not-there; sleep 60"][..], Signal::SIGTERM, 143),
        (&["memhog", "1"], Signal::SIGTERM, 143),
        (&["tcp-echo", "0"], Signal::SIGTERM, 0),
        (&["web", "0"], Signal::SIGTERM, 0),
        (&["web", "0"], Signal::SIGINT, 0),
    ] {
        let mut child = Running::new(args);
        assert!(!child.line().is_empty(), "{args:?}");
        assert_eq!(child.signal(signal), Some(code), "{args:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn an_applet_is_known_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("echo");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sampan"), &link).unwrap();
    let got = Command::new(&link).args(["demo", "x"]).output().unwrap();
    assert_eq!(got.stdout, b"demo x\n");
}
