//! Logs and commands, with the flags that people use.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{ChildStdout, Command, Stdio},
};

use super::{board_with_busybox, container, pod, wait_ready, with_busybox};
use crate::common::{Namespace, Node, Running, must, output, unique, wait_for};

#[test]
fn logs_are_cut_as_asked() {
    let node = board_with_busybox("logs");
    let script = "if [ -e /s/again ]; then echo second; sleep 3600; fi; touch /s/again; for n in 1 2 3 4 5; do echo line $n; done; echo wrong >&2; exit 1";
    let spec = format!(
        "  containers:\n{}{}  volumes: [{{name: s, emptyDir: {{}}}}]",
        container("main", script, "    volumeMounts: [{name: s, mountPath: /s}]"),
        container("other", "echo other; sleep 3600", ""),
    );
    node.apply(&pod("p", &spec));
    node.wait_output(&["logs", "p", "-c", "main"], "the second start", |text| text == "second\n");
    let logs = |flags: &[&str]| node.k(&[&["logs", "p", "-c", "main"], flags].concat());
    let whole = logs(&["--previous"]);
    // What came together is told with standard output first.
    assert_eq!(whole, "line 1\nline 2\nline 3\nline 4\nline 5\nwrong\n");
    let first = whole.lines().next().unwrap();
    assert_eq!(logs(&["--previous", "--tail=2"]).lines().count(), 2);
    assert_eq!(logs(&["--previous", "--tail=0"]), "");
    assert_eq!(logs(&["--previous", "--limit-bytes=4"]), first[..4]);
    let stamped = logs(&["--previous", "--timestamps"]);
    let (time, text) = stamped.lines().next().unwrap().split_once(' ').unwrap();
    assert_eq!(text, first);
    time.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(logs(&["--since-time=2001-01-01T00:00:00Z"]), "second\n");
    assert_eq!(logs(&["--since-time=2100-01-01T00:00:00Z"]), "");
    assert_eq!(logs(&["--since=1h"]), "second\n");
    let all = node.k(&["logs", "p", "--all-containers", "--prefix"]);
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["[pod/p/main] second", "[pod/p/other] other"]);
    let refused = |args: &[&str]| {
        let out = output(node.kubectl().args(args));
        assert!(!out.status.success());
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let words = refused(&["logs", "p", "-c", "other", "--previous"]);
    assert!(words.contains("previous terminated container \"other\" in pod \"p\" not found"), "{words}");
    let words = refused(&["logs", "p", "-c", "nobody"]);
    assert!(words.contains("container nobody is not valid for pod p"), "{words}");
    let absent = |name: &str, more: &str| {
        let container = format!("  - {{name: c, image: 127.0.0.1:1/absent:1, {more}}}");
        pod(name, &format!("  containers:\n{container}"))
    };
    node.apply(&(absent("never", "imagePullPolicy: Never") + &absent("pulled", "")));
    for (name, why) in [("never", "ErrImageNeverPull"), ("pulled", "trying and failing to pull image")] {
        let words = format!(
            "Error from server (BadRequest): container \"c\" in pod \"{name}\" is waiting to start: {why}\n"
        );
        wait_for("the reason why there is no log", || match refused(&["logs", name]) {
            told if told == words => Ok(()),
            told => Err(told),
        });
    }
    node.k(&["delete", "pod", "never", "pulled"]);
    // Where log shippers look.
    let links = node.dir.path().join("log/containers");
    let names: Vec<String> = std::fs::read_dir(&links)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let main =
        names.iter().find(|name| name.starts_with("p_default_other-")).unwrap_or_else(|| panic!("{names:?}"));
    let text = std::fs::read_to_string(links.join(main)).unwrap();
    assert!(text.ends_with(" stdout F other\n"), "{text}");
    node.k(&["delete", "pod", "p"]);
    wait_for("no link to be left", || match std::fs::read_dir(&links).unwrap().count() {
        0 => Ok(()),
        n => Err(format!("{n} are left")),
    });
}

#[test]
fn logs_in_memory_are_rotated_and_kept_within_the_nodes_bound() {
    const KEPT: u64 = 250 << 10;
    let name = unique("rotated");
    let space = Namespace::new(&name, "192.0.2.10/24");
    let kept = format!("{}Ki", KEPT >> 10);
    let flags = [
        ["--pod-logs-tmpfs", "32Mi"],
        ["--container-log-max-size", "100Ki"],
        ["--container-log-max-files", "8"],
        ["--pod-logs-max-size", &kept],
    ];
    let node = Node::start("server", &name, space, flags.as_flattened());
    node.wait_ready();
    let node = with_busybox(node);
    let script =
        "n=0; while [ $n -lt 6000 ]; do n=$((n+1)); echo $n of a line of some length; done; sleep 3600";
    node.apply(&pod("p", &format!("  containers:\n{}", container("c", script, ""))));
    wait_ready(&node, &["p"]);
    // Followed, all lines come in their order, whatever is rotated meanwhile and however late the first look is.
    let mut follow = node.kubectl();
    follow.args(["logs", "-f", "p"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut following = Running(follow.spawn().unwrap());
    let numbers = BufReader::new(following.0.stdout.take().unwrap())
        .lines()
        .map(|line| line.unwrap().split(' ').next().unwrap().parse::<u32>().unwrap());
    let mut last = 0;
    for number in numbers {
        assert!(last == 0 || number == last + 1, "{number} after {last}");
        last = number;
        if number == 6000 {
            break;
        }
    }
    assert_eq!(last, 6000);
    let logs = node.dir.path().join("log/pods");
    let tmpfs = nix::sys::statfs::statfs(&logs).unwrap().filesystem_type();
    assert_eq!(tmpfs, nix::sys::statfs::TMPFS_MAGIC);
    let folder = std::fs::read_dir(&logs).unwrap().next().unwrap().unwrap().path().join("c");
    let files = || -> Vec<u64> {
        let entries = std::fs::read_dir(&folder).unwrap();
        entries.map(|entry| std::fs::metadata(entry.unwrap().path()).unwrap().len()).collect()
    };
    assert!(files().iter().all(|bytes| *bytes <= 100 << 10), "{:?}", files());
    wait_for("the oldest files to go", || match files().iter().sum::<u64>() {
        total if total <= KEPT => Ok(()),
        total => Err(format!("{total} bytes are left")),
    });
    assert!(files().len() > 1, "{:?}", files());
    let tail = node.k(&["logs", "p", "--tail=2500"]);
    let expected: Vec<String> = (3501..=6000).map(|n| format!("{n} of a line of some length")).collect();
    assert_eq!(tail.lines().collect::<Vec<_>>(), expected, "across a rotation");
}

#[test]
fn commands_have_input_codes_and_their_own_place() {
    let node = board_with_busybox("commands");
    let own = "    securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}}\n    workingDir: /tmp\n    env: [{name: GREETING, value: hello}]";
    node.apply(&pod("p", &format!("  containers:\n{}", container("c", "sleep 3600", own))));
    wait_ready(&node, &["p"]);
    let run = |args: &[&str]| output(node.kubectl().args([&["exec", "p", "--"], args].concat()));
    let out = run(&["/bin/sh", "-c", "echo $GREETING; pwd; id -u; echo bad >&2; exit 42"]);
    assert_eq!(out.status.code(), Some(42));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "hello\n/tmp\n1000\n");
    assert!(String::from_utf8_lossy(&out.stderr).starts_with("bad\n"));
    let out = run(&["/bin/nothing"]);
    assert!(
        String::from_utf8_lossy(&out.stderr)
            .contains("exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory"),
        "{out:?}"
    );
    let killed = run(&["/bin/sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137));
    node.apply(&pod(
        "absent",
        "  containers: [{name: c, image: test.local/absent:1, imagePullPolicy: Never}]",
    ));
    for (subresource, words) in
        [("exec", "container not found (\"c\")"), ("attach", "container c not found in pod absent_default")]
    {
        for (websockets, before) in [("true", "Internal error occurred: "), ("false", "")] {
            let mut command = node.kubectl();
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).args([subresource, "absent"]);
            let out = output(if subresource == "exec" { command.args(["--", "true"]) } else { &mut command });
            let told = String::from_utf8_lossy(&out.stderr);
            let expected = format!("error: {before}unable to upgrade connection: {words}\n");
            assert!(told.ends_with(&expected), "{told}");
            assert_eq!(out.status.code(), Some(1));
        }
    }
}

#[test]
fn attached_input_and_ends_are_as_asked_for() {
    let node = board_with_busybox("attached");
    let run = |name: &str, flags: &[&str], input: &str, script: &str| {
        let mut command = node.kubectl();
        command.args([
            "run",
            name,
            "--image=test.local/busybox:1",
            "--image-pull-policy=Never",
            "--restart=Never",
        ]);
        command.args(flags).args(["--", "/bin/sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), told)
    };
    // `kubectl run -i` asks for input once: its end is the container's.
    let (code, out, told) = run("once", &["-i", "--rm"], "some\nlines\n", "cat; echo over; exit 3");
    assert_eq!(code, Some(3), "{told}");
    assert_eq!(out, "some\nlines\nover\npod \"once\" deleted\n", "{told}");
    assert!(!told.contains("falling back"), "{told}");
    assert!(told.contains("pod default/once terminated (Error)"), "{told}");

    // Input that is not for one client only goes on after the first.
    let twice = "    stdin: true";
    let script = "read a; echo got $a; read b; echo got $b; exit 9";
    node.apply(&pod(
        "twice",
        &format!("  restartPolicy: Never\n  containers:\n{}", container("c", script, twice)),
    ));
    wait_ready(&node, &["twice"]);
    let attach = |line: &str| {
        let mut command = node.kubectl();
        command
            .args(["attach", "-i", "twice"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Running(command.spawn().unwrap());
        child.0.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut heard = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut heard).unwrap();
        (child, heard)
    };
    let (first, heard) = attach("one\n");
    assert_eq!(heard, "got one\n");
    drop(first);
    let (mut last, heard) = attach("two\n");
    assert_eq!(heard, "got two\n");
    // As upstream: the container's code is not that of the client.
    assert_eq!(last.0.wait().unwrap().code(), Some(0));
    let code = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    node.wait_output(&["get", "pod", "twice", "-o", code], "the end", |code| code == "9");
}

/// Runs kubectl in a terminal of 30 rows and 90 columns; with the terminal's name.
fn in_terminal(node: &Node, args: &[&str], websockets: &str) -> (Running, BufReader<ChildStdout>, String) {
    let kubectl = node.kubectl();
    let words = kubectl.get_args().map(|word| word.to_str().unwrap()).chain(args.iter().copied());
    let words: Vec<String> = words.map(|word| format!("'{word}'")).collect();
    let line = format!("stty rows 30 cols 90; tty; exec nsenter {}", words.join(" "));
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = Running(command.spawn().unwrap());
    let mut out = BufReader::new(child.0.stdout.take().unwrap());
    let mut name = String::new();
    out.read_line(&mut name).unwrap();
    (child, out, name.trim().to_owned())
}

#[test]
fn a_terminal_has_the_size_of_the_clients() {
    let node = board_with_busybox("terminals");
    // As upstream, the size comes a moment after the start.
    let sized = |size: &str| format!("until [ \"$(stty size)\" = \"{size}\" ]; do sleep 0.1; done");
    let script = format!("{}; echo sized; {}; echo resized; exit 7", sized("30 90"), sized("41 101"));
    let waiting = format!("read go; {script}");
    let never = "  restartPolicy: Never\n  containers:\n";
    node.apply(&pod("p", &format!("{never}{}", container("c", "sleep 3600", ""))));
    let tty = "    stdin: true\n    tty: true";
    node.apply(&pod("q", &format!("{never}{}", container("c", &waiting, tty))));
    wait_ready(&node, &["p", "q"]);
    let exec = ["exec", "-it", "p", "--", "/bin/sh", "-c", &script];
    // Exec gives the command's code, attach does not give the container's.
    let cases: [(&[&str], &str, i32); 3] =
        [(&exec, "true", 7), (&exec, "false", 7), (&["attach", "-it", "q"], "true", 0)];
    for (args, websockets, code) in cases {
        let (mut child, mut out, terminal) = in_terminal(&node, args, websockets);
        child.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        while line.trim() != "sized" {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "{args:?} ended");
        }
        must(Command::new("stty").args(["-F", &terminal, "rows", "41", "cols", "101"]));
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("resized\r\n"), "{rest}");
        assert_eq!(child.0.wait().unwrap().code(), Some(code), "{args:?}");
    }
}
