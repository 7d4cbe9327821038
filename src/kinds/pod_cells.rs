//! A pod's row in a table: how many of its containers are ready, what it is doing, how often it
//! was restarted (`printPod`).

use serde_json::Value;

use super::{
    Column,
    columns::{self, AGE, NAME, number, text, text_or, wide},
};

pub const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    text("Status", "The aggregate status of the containers in this pod."),
    text(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
    ),
    AGE,
    wide(text("IP", "status.podIP")),
    wide(text("Node", "spec.nodeName")),
    wide(text("Nominated Node", "status.nominatedNodeName")),
    wide(text("Readiness Gates", "spec.readinessGates")),
];

/// Restarts of some containers, and when the last of them was.
#[derive(Default)]
struct Restarts {
    count: i64,
    /// RFC 3339 in UTC: orders as text.
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += number(&status["restartCount"]);
        let finished = status["lastState"]["terminated"]["finishedAt"].as_str().map(str::to_owned);
        self.last = self.last.take().max(finished);
    }

    fn cell(&self, now: jiff::Timestamp) -> Value {
        match &self.last {
            Some(last) if self.count > 0 => {
                format!("{} ({} ago)", self.count, columns::since(&last.as_str().into(), now)).into()
            }
            _ => self.count.to_string().into(),
        }
    }
}

fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    items(&pod["status"], "conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// `Completed`, `Signal:9`, `ExitCode:1`.
fn termination(terminated: &Value) -> String {
    match terminated["reason"].as_str() {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ if number(&terminated["signal"]) != 0 => format!("Signal:{}", terminated["signal"]),
        _ => format!("ExitCode:{}", number(&terminated["exitCode"])),
    }
}

/// What the table says of a pod.
struct Summary {
    ready: usize,
    total: usize,
    status: String,
    restarts: Restarts,
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut reason = text(&status["phase"]);
    if !text(&status["reason"]).is_empty() {
        reason = text(&status["reason"]);
    }
    let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if items(status, "conditions").iter().any(gated) {
        "SchedulingGated".clone_into(&mut reason);
    }
    let init = items(spec, "initContainers");
    let is_sidecar = |name: &Value| init.iter().any(|c| c["name"] == *name && c["restartPolicy"] == "Always");
    let sidecars = init.iter().filter(|c| c["restartPolicy"] == "Always").count();
    let total = items(spec, "containers").len() + sidecars;

    let (mut ready, mut initializing) = (0, false);
    let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
    for (i, container) in items(status, "initContainerStatuses").iter().enumerate() {
        all.add(container);
        let sidecar = is_sidecar(&container["name"]);
        if sidecar {
            of_sidecars.add(container);
        }
        let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
        if !terminated.is_null() && number(&terminated["exitCode"]) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        let why = text(&waiting["reason"]);
        reason = if !terminated.is_null() {
            format!("Init:{}", termination(terminated))
        } else if !why.is_empty() && why != "PodInitializing" {
            format!("Init:{why}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    let mut restarts = all;
    if !initializing || has_condition(pod, "Initialized") {
        restarts = of_sidecars;
        let mut running = false;
        let mut failure = None;
        for container in items(status, "containerStatuses").iter().rev() {
            restarts.add(container);
            let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            let why = text(&waiting["reason"]);
            if !why.is_empty() {
                reason = why;
            } else if !terminated.is_null() {
                reason = termination(terminated);
                if number(&terminated["exitCode"]) != 0 {
                    failure = Some(reason.clone());
                }
            } else if container["ready"] == true && !container["state"]["running"].is_null() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" {
            reason = match failure {
                _ if running && has_condition(pod, "Ready") => "Running".to_owned(),
                Some(failure) => failure,
                None if running => "NotReady".to_owned(),
                None => reason,
            };
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
            "Terminating".clone_into(&mut reason);
        }
    }
    Summary { ready, total, status: reason, restarts }
}

pub fn cells(pod: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let Summary { ready, total, status, restarts } = summarize(pod);
    let gates = items(&pod["spec"], "readinessGates");
    let passed = gates.iter().filter(|g| has_condition(pod, g["conditionType"].as_str().unwrap_or_default()));
    let gates_cell =
        if gates.is_empty() { "<none>".to_owned() } else { format!("{}/{}", passed.count(), gates.len()) };
    let ip = match pod["status"]["podIPs"].get(0) {
        Some(first) => &first["ip"],
        None => &pod["status"]["podIP"],
    };
    vec![
        columns::name(pod),
        format!("{ready}/{total}").into(),
        status.into(),
        restarts.cell(now),
        columns::age(pod, now).into(),
        text_or(ip, "<none>"),
        text_or(&pod["spec"]["nodeName"], "<none>"),
        text_or(&pod["status"]["nominatedNodeName"], "<none>"),
        gates_cell.into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_row_tells_what_a_pod_is_doing() {
        let now: jiff::Timestamp = "2026-01-01T00:10:00Z".parse().expect("time");
        let running = json!({"name": "c", "ready": true, "state": {"running": {}}, "restartCount": 0});
        let crashing = json!({"name": "c", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:05:00Z"}}});
        let done = json!({"name": "c", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        let cases = [
            (json!({"phase": "Pending"}), Value::Null, ["0/1", "Pending", "0"]),
            (
                json!({"phase": "Running", "containerStatuses": [running]}),
                Value::Null,
                ["1/1", "Running", "0"],
            ),
            (
                json!({"phase": "Running", "containerStatuses": [crashing]}),
                Value::Null,
                ["0/1", "CrashLoopBackOff", "2 (5m ago)"],
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [done]}),
                Value::Null,
                ["0/1", "Completed", "0"],
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                Value::Null,
                ["0/1", "ExitCode:3", "0"],
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
                Value::Null,
                ["0/1", "Init:0/1", "0"],
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"restartCount": 1, "state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}),
                Value::Null,
                ["0/1", "Init:Error", "1"],
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running]}),
                json!("2026-01-01T00:00:00Z"),
                ["1/1", "Terminating", "0"],
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), Value::Null, ["0/1", "Evicted", "0"]),
        ];
        for (status, deleted, expected) in cases {
            let pod = json!({"metadata": {"name": "p", "deletionTimestamp": deleted},
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status});
            assert_eq!(cells(&pod, now)[1..4], expected.map(Value::from), "{status}");
        }
    }

    #[test]
    fn sidecars_count_as_containers() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "a", "status": "True"}],
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 1, "state": {"running": {}}}]}});
        let cells = cells(&pod, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(cells[1..4], ["2/2", "Running", "2"].map(Value::from));
        assert_eq!(cells[5..], ["10.0.0.1", "<none>", "<none>", "1/2"].map(Value::from));
    }
}
