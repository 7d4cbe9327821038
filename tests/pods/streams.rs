//! Logs and commands, with the flags that people use.

use super::{board_with_busybox, container, pod, wait_ready};
use crate::common::{output, wait_for};

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
    let mut lines: Vec<&str> = whole.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5", "wrong"]);
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
}
