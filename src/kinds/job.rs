//! Jobs.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, FieldError, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, TEMPLATE, number, template_cells, text},
    edit::{child, drop_empty, each, set_default, set_default_empty},
    labels::{self, Selector},
    meta::{self, check_label_selector},
    names, pod_spec,
    pod_template::default_template,
    pod_warnings,
    registry::row,
    replace,
    workload::check_numbers,
};

pub const JOB: Kind = Kind {
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create,
        validate,
        validate_update: |new, old| meta::check_update(new, old, check_change),
        warnings: pod_warnings::of_workload,
        selectable: |job| vec![("status.successful", number(&job["status"]["succeeded"]).to_string())],
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("batch", "v1", "Job", "jobs", "job", "io.k8s.api.batch.v1.Job")
};

/// How often failed pods are replaced.
const BACKOFF_LIMIT: i64 = 6;
/// Pods of an Indexed job that run at once.
const PARALLELISM_MAX_INDEXED: i64 = 100_000;
const POD_FAILURE_RULES_MAX: usize = 20;

/// The labels that tie a pod to its job: prefixed, and as they were before.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

fn default(job: &mut Value) {
    default_labels(job);
    let spec = child(job, "spec");
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec["completions"] = 1.into();
    }
    set_default(spec, "parallelism", 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    set_default(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { BACKOFF_LIMIT });
    set_default_empty(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    set_default(spec, "manualSelector", false);
    let on_failure = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    set_default(spec, "podReplacementPolicy", on_failure);
    default_spec(spec);
}

/// What also the spec of a CronJob's template gets.
pub fn default_spec(spec: &mut Value) {
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in each(policy, "rules") {
            each(rule, "onPodConditions").for_each(|c| set_default_empty(c, "status", "True"));
        }
    }
    default_template(child(spec, "template"));
}

/// A job without labels has those of its pods.
fn default_labels(job: &mut Value) {
    let labels = job["spec"]["template"]["metadata"]["labels"].clone();
    if labels.as_object().is_some_and(|l| !l.is_empty()) {
        let metadata = child(job, "metadata");
        drop_empty(metadata, &["labels"]);
        set_default(metadata, "labels", labels);
    }
}

/// Unless its author does so, a job selects its pods by its uid.
fn prepare_create(job: &mut Value) {
    job["status"] = json!({});
    job["metadata"]["generation"] = 1.into();
    if job["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (job["metadata"]["uid"].clone(), job["metadata"]["name"].clone());
    let theirs = job["spec"]["template"]["metadata"]["labels"].clone();
    let follows = job["metadata"]["labels"].is_null() || job["metadata"]["labels"] == theirs;
    let labels = child(child(child(child(job, "spec"), "template"), "metadata"), "labels");
    for (ours, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
        for label in ours {
            set_default(labels, label, value.clone());
        }
    }
    let labels = labels.clone();
    if follows {
        job["metadata"]["labels"] = labels;
    }
    let selector = child(child(child(job, "spec"), "selector"), "matchLabels");
    set_default(selector, UID_LABELS[0], uid);
}

fn validate(job: &Value) -> ErrorList {
    meta::check(job, true, names::dns_subdomain, |job, errors| {
        let spec = job.get("spec");
        check_generated_selector(job, &spec, errors);
        check_spec(&spec, errors);
        let selector = spec.get("selector");
        if selector.is_set() {
            check_label_selector(&selector, errors);
        } else {
            errors.push(selector.required(""));
        }
        let labels = spec.get("template").get("metadata").get("labels");
        if Selector::from_json(selector.value).is_ok_and(|s| !s.matches_json(labels.value)) {
            errors.push(labels.invalid("`selector` does not match template `labels`"));
        }
    })
}

fn check_generated_selector(job: &At<'_>, spec: &At<'_>, errors: &mut ErrorList) {
    let selector = spec.get("selector");
    if spec.get("manualSelector").is_true() || !selector.is_set() {
        return;
    }
    let uid = job.get("metadata").get("uid");
    uid.check_required(errors);
    let labels = spec.get("template").get("metadata").get("labels");
    let name = job.get("metadata").get("name");
    let expected = UID_LABELS.map(|l| (l, uid.str())).into_iter().chain(NAME_LABELS.map(|l| (l, name.str())));
    for (label, value) in expected.clone() {
        let at = labels.key(label);
        if !at.is_set() {
            errors.push(at.required(&format!("must be '{value}'")));
        } else if at.str() != value {
            let detail = format!("must be '{value}'");
            errors.push(FieldError::invalid(at.path, labels.value.clone(), detail));
        }
    }
    let value = |key: &str| expected.clone().find(|(label, _)| *label == key).map(|(_, value)| value);
    if Selector::from_json(selector.value).is_ok_and(|s| !s.matches(value)) {
        errors.push(selector.invalid("`selector` not auto-generated"));
    }
}

/// Refuses a bad spec of a job, but for its selector.
pub fn check_spec(spec: &At<'_>, errors: &mut ErrorList) {
    check_numbers(
        spec,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
        errors,
    );
    let mode = spec.get("completionMode");
    mode.check_one_of(&["NonIndexed", "Indexed"], errors);
    let (completions, parallelism) = (spec.get("completions"), spec.get("parallelism"));
    if mode.str() == "Indexed" {
        if !completions.is_set() {
            errors.push(completions.required("when completion mode is Indexed"));
        }
        if parallelism.int().is_some_and(|p| p > PARALLELISM_MAX_INDEXED) {
            errors.push(parallelism.invalid(format!(
                "must be less than or equal to {PARALLELISM_MAX_INDEXED} when completion mode is Indexed"
            )));
        }
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
            let field = spec.get(field);
            if field.is_set() {
                errors.push(field.invalid("requires indexed completion mode"));
            }
        }
    }
    let failed = spec.get("maxFailedIndexes");
    if failed.is_set() && !spec.get("backoffLimitPerIndex").is_set() {
        errors.push(spec.get("backoffLimitPerIndex").required("when maxFailedIndexes is specified"));
    }
    check_failure_policy(&spec.get("podFailurePolicy"), errors);
    let replacement = spec.get("podReplacementPolicy");
    replacement.check_one_of(&["Failed", "TerminatingOrFailed"], errors);
    if spec.get("podFailurePolicy").is_set() && replacement.str() == "TerminatingOrFailed" {
        errors.push(replacement.not_supported(&["Failed"]));
    }
    let template = spec.get("template");
    pod_spec::check_template(&template, &[], errors);
    let policy = template.get("spec").get("restartPolicy");
    match policy.str() {
        "" | "Always" => errors.push(policy.required("valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if spec.get("podFailurePolicy").is_set() => {
            errors.push(policy.invalid("only \"Never\" is supported when podFailurePolicy is specified"));
        }
        "OnFailure" | "Never" => {}
        _ => errors.push(policy.not_supported(&["OnFailure", "Never"])),
    }
}

fn check_failure_policy(policy: &At<'_>, errors: &mut ErrorList) {
    let rules = policy.get("rules");
    if rules.len() > POD_FAILURE_RULES_MAX {
        errors.push(FieldError::too_many(&rules.path, rules.len(), POD_FAILURE_RULES_MAX));
    }
    for rule in rules.items() {
        rule.get("action").check_required_one_of(&["Count", "FailIndex", "FailJob", "Ignore"], errors);
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        match (codes.is_set(), !conditions.is_empty()) {
            (false, false) => {
                errors.push(rule.invalid("specifying one of OnExitCodes and OnPodConditions is required"));
            }
            (true, true) => {
                errors.push(rule.invalid("specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            _ => {}
        }
        if codes.is_set() {
            let (operator, values) = (codes.get("operator"), codes.get("values"));
            operator.check_required_one_of(&["In", "NotIn"], errors);
            if values.is_empty() {
                errors.push(values.invalid("at least one value is required"));
            }
            for value in values.items().filter(|v| v.int() == Some(0) && operator.str() == "In") {
                errors.push(value.invalid("must not be 0 for the In operator"));
            }
        }
        for condition in conditions.items() {
            condition.get("type").check_required_name(names::qualified, errors);
            condition.get("status").check_required_one_of(&["False", "True", "Unknown"], errors);
        }
    }
}

fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (spec, old_spec) = (new.get("spec"), old.get("spec"));
    let same = |field: &str, errors: &mut ErrorList| {
        spec.get(field).check_immutable(&old_spec.get(field), errors);
    };
    let completions = spec.get("completions");
    if spec.get("completionMode").str() != "Indexed" {
        same("completions", errors);
    } else if completions.value != old_spec.get("completions").value
        && completions.value != spec.get("parallelism").value
    {
        errors.push(completions.invalid("can only be modified in tandem with spec.parallelism"));
    }
    same("selector", errors);
    check_template_change(&spec, old, errors);
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        same(field, errors);
    }
}

/// A job that is suspended and has never run may be sent to other nodes.
fn check_template_change(spec: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (template, old_spec) = (spec.get("template"), old.get("spec"));
    let old_template = old_spec.get("template");
    let mut allowed = template.value.clone();
    let asleep = old_spec.get("suspend").is_true() && !old.get("status").get("startTime").is_set();
    if asleep {
        for field in ["labels", "annotations"] {
            replace(&mut allowed["metadata"], field, &old_template.value["metadata"]);
        }
        for field in ["nodeSelector", "tolerations", "schedulingGates"] {
            replace(&mut allowed["spec"], field, &old_template.value["spec"]);
        }
        if !allowed["spec"]["affinity"].is_null() || !old_template.value["spec"]["affinity"].is_null() {
            replace(&mut allowed["spec"], "affinity", &old_template.value["spec"]);
        }
    }
    if allowed != *old_template.value {
        errors.push(template.invalid("field is immutable"));
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Status"),
    text("Completions"),
    text("Duration"),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    TEMPLATE[2],
];

fn status_text(job: &Value) -> &'static str {
    let has = |kind: &str| {
        let conditions = job["status"]["conditions"].as_array();
        conditions.is_some_and(|list| list.iter().any(|c| c["type"] == kind && c["status"] == "True"))
    };
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if !job["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn cells(job: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let succeeded = number(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), number(&spec["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let end = status["completionTime"].as_str().and_then(|t| t.parse().ok()).unwrap_or(now);
    let duration =
        if status["startTime"].is_null() { String::new() } else { columns::since(&status["startTime"], end) };
    let mut cells = vec![
        columns::name(job),
        status_text(job).into(),
        completions.into(),
        duration.into(),
        columns::age(job, now).into(),
    ];
    cells.extend(template_cells(spec, labels::format_json(&spec["selector"])));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Value {
        let mut job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u-1"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        default(&mut job);
        prepare_create(&mut job);
        job
    }

    fn errors(job: &Value) -> Vec<String> {
        validate(job).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_job_selects_its_pods_by_its_uid() {
        let job = job();
        let spec = &job["spec"];
        assert_eq!(spec["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}));
        let labels = json!({"batch.kubernetes.io/controller-uid": "u-1", "controller-uid": "u-1",
            "batch.kubernetes.io/job-name": "j", "job-name": "j"});
        assert_eq!((&spec["template"]["metadata"]["labels"], &job["metadata"]["labels"]), (&labels, &labels));
        assert_eq!(
            ["completions", "parallelism", "backoffLimit"].map(|f| spec[f].as_i64()),
            [Some(1), Some(1), Some(6)]
        );
        assert_eq!(
            (&spec["completionMode"], &spec["podReplacementPolicy"]),
            (&json!("NonIndexed"), &json!("TerminatingOrFailed"))
        );
        assert_eq!(errors(&job), Vec::<String>::new());
    }

    #[test]
    fn bad_jobs_are_refused_in_upstreams_words() {
        let mut bad = job();
        bad["spec"]["template"]["spec"]["restartPolicy"] = "Always".into();
        bad["spec"]["template"]["metadata"]["labels"]["job-name"] = "other".into();
        let texts = errors(&bad);
        assert!(
            texts[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value: "),
            "{texts:?}"
        );
        assert_eq!(
            texts[1],
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
    }

    #[test]
    fn a_template_changes_only_while_suspended() {
        let old = job();
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        let count = |new: &Value, old: &Value| (JOB.strategy.validate_update)(new, old).len();
        assert_eq!(count(&new, &old), 1);
        let mut asleep = old.clone();
        asleep["spec"]["suspend"] = true.into();
        assert_eq!(count(&new, &asleep), 0);
        let mut done = old.clone();
        done["spec"]["parallelism"] = 5.into();
        assert_eq!(count(&done, &old), 0);
        done["spec"]["completions"] = 5.into();
        assert_eq!(count(&done, &old), 1);
    }
}
