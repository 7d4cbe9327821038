//! What manifests of pods say, held against what their containers see, on a running board. Needs root and the
//! package busybox-static.

#[path = "../common/mod.rs"]
mod common;
mod containers;
mod image_verbs;
#[path = "../images/mod.rs"]
mod images;
mod security;
mod streams;
mod volumes;

use std::fs;

use common::{Node, board, must};

/// A board with busybox: `test.local/busybox:1`.
fn board_with_busybox(test: &str) -> Node {
    with_busybox(board(test))
}

/// Gives a board the image.
fn with_busybox(node: Node) -> Node {
    let file = node.dir.path().join("busybox.tar");
    let applets = [
        "sh", "cat", "cp", "dd", "echo", "env", "grep", "hostname", "id", "kill", "ln", "ls", "mkdir",
        "mount", "nc", "ps", "readlink", "rm", "sleep", "stat", "stty", "tar", "touch", "true", "umount",
        "wc",
    ];
    fs::write(&file, images::busybox(&applets)).unwrap();
    must(&mut node.import(&file));
    node
}

/// A pod: `spec` is what comes beside its containers, indented by two.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}\n"
    )
}

/// A container of busybox that runs a script.
fn container(name: &str, script: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    image: test.local/busybox:1\n    imagePullPolicy: Never\n    command: [/bin/sh, -c, {script:?}]\n{more}\n"
    )
}

/// Waits until the pods have ended well, and gives the log of the last.
fn log_of_ended(node: &Node, name: &str) -> String {
    node.wait_output(&["get", "pod", name, "-o", "jsonpath={.status.phase}"], "its end", |phase| {
        assert_ne!(phase, "Failed", "{name}: {}", node.k(&["logs", name, "--all-containers"]));
        phase == "Succeeded"
    });
    node.k(&["logs", name])
}

fn wait_ready(node: &Node, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    let mut args = vec!["wait", "--for=condition=Ready", "--timeout=60s"];
    args.extend(names.iter().map(String::as_str));
    node.k(&args);
}
