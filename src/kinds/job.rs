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
/// Exit codes and conditions of a rule.
const EXIT_CODES_MAX: usize = 255;
const POD_CONDITIONS_MAX: usize = 20;
const SUCCESS_RULES_MAX: usize = 20;
/// The text that lists indexes which have to succeed (bytes).
const SUCCEEDED_INDEXES_MAX: usize = 64 * 1024;
/// Indexes that may fail; and, from so many completions on, how many may fail and run at once.
const FAILED_INDEXES_MAX: i64 = 100_000;
const COMPLETIONS_HIGH: i64 = 100_000;
const FAILED_INDEXES_MAX_HIGH: i64 = 10_000;
const PARALLELISM_MAX_HIGH: i64 = 10_000;
/// The name of a job's controller (bytes).
const MANAGED_BY_BYTES_MAX: usize = 63;

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
    let failed = spec.get("maxFailedIndexes");
    if failed.is_set() && !spec.get("backoffLimitPerIndex").is_set() {
        errors.push(spec.get("backoffLimitPerIndex").required("when maxFailedIndexes is specified"));
    }
    let managed_by = spec.get("managedBy");
    if managed_by.is_set() {
        managed_by.check_domain_prefixed(errors);
        if managed_by.len() > MANAGED_BY_BYTES_MAX {
            errors.push(FieldError::too_long(&managed_by.path, MANAGED_BY_BYTES_MAX));
        }
    }
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
        check_failed_indexes(spec, errors);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            let field = spec.get(field);
            if field.is_set() {
                errors.push(field.invalid("requires indexed completion mode"));
            }
        }
    }
    check_failure_policy(spec, errors);
    let success = spec.get("successPolicy");
    if success.is_set() {
        if mode.str() == "Indexed" {
            check_success_policy(&success, completions.int().unwrap_or(0), errors);
        } else {
            errors.push(success.invalid("requires indexed completion mode").as_struct("Rules"));
        }
    }
    let replacement = spec.get("podReplacementPolicy");
    let replacements: &[&str] =
        if spec.get("podFailurePolicy").is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    replacement.check_one_of(replacements, errors);
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

/// Of an Indexed job: how many indexes may fail.
fn check_failed_indexes(spec: &At<'_>, errors: &mut ErrorList) {
    let [failed, parallelism] = ["maxFailedIndexes", "parallelism"].map(|field| spec.get(field));
    let completions = spec.get("completions").int();
    let mut at_most = |at: &At<'_>, max: i64, what: &str| {
        if at.int().is_some_and(|n| n > max) {
            errors.push(at.invalid(format!("must be less than or equal to {what}")));
        }
    };
    if let Some(completions) = completions {
        at_most(&failed, completions, "completions");
    }
    at_most(&failed, FAILED_INDEXES_MAX, &FAILED_INDEXES_MAX.to_string());
    let high = completions.is_some_and(|n| n > COMPLETIONS_HIGH);
    if !high || !spec.get("backoffLimitPerIndex").is_set() {
        return;
    }
    let words =
        format!("when completions are above {COMPLETIONS_HIGH} and used with backoff limit per index");
    at_most(&parallelism, PARALLELISM_MAX_HIGH, &format!("{PARALLELISM_MAX_HIGH} {words}"));
    at_most(&failed, FAILED_INDEXES_MAX_HIGH, &format!("{FAILED_INDEXES_MAX_HIGH} {words}"));
    if !failed.is_set() {
        let detail = format!("must be specified when completions is above {COMPLETIONS_HIGH}");
        errors.push(failed.required(&detail));
    }
}

fn check_success_policy(policy: &At<'_>, completions: i64, errors: &mut ErrorList) {
    let rules = policy.get("rules");
    if rules.is_empty() {
        errors
            .push(rules.required("at least one rules must be specified when the successPolicy is specified"));
    }
    if rules.len() > SUCCESS_RULES_MAX {
        errors.push(FieldError::too_many(&rules.path, rules.len(), SUCCESS_RULES_MAX));
    }
    for rule in rules.items() {
        let (count, indexes) = (rule.get("succeededCount"), rule.get("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            errors
                .push(rule.required("at least one of succeededCount or succeededIndexes must be specified"));
        }
        if indexes.len() > SUCCEEDED_INDEXES_MAX {
            errors.push(FieldError::too_long(&indexes.path, SUCCEEDED_INDEXES_MAX));
        }
        let total = count_indexes(indexes.str(), completions).unwrap_or_else(|why| {
            errors.push(indexes.invalid(format!("error parsing succeededIndexes: {why}")));
            0
        });
        count.check_not_negative(errors);
        let mut at_most = |max: i64, what: &str| {
            if count.int().is_some_and(|n| n > max) {
                errors.push(count.invalid(format!("must be less than or equal to {max} ({what})")));
            }
        };
        at_most(completions, "the number of specified completions");
        if indexes.is_set() {
            at_most(total, "the number of indexes in the specified succeededIndexes field");
        }
    }
}

/// How many indexes a text like `0,2-4` names, or why it is none (`validateIndexesFormat`).
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = interval.split('-').collect();
        if limits.len() > 2 {
            return Err(format!(
                "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let read = |limit: &str| match limit.parse::<i64>() {
            Err(_) => Err(format!("cannot convert string to integer for index: {limit:?}")),
            Ok(index) if index >= completions => Err(format!("too large index: {limit:?}")),
            Ok(index) => Ok(index),
        };
        let grows = |previous: i64, current: i64| {
            let detail = format!("non-increasing order, previous: {previous}, current: {current}");
            if current > previous { Ok(()) } else { Err(detail) }
        };
        let first = read(limits[0])?;
        last.map_or(Ok(()), |last| grows(last, first))?;
        let end = match limits.get(1) {
            Some(limit) => {
                let end = read(limit)?;
                grows(first, end)?;
                end
            }
            None => first,
        };
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

fn check_failure_policy(spec: &At<'_>, errors: &mut ErrorList) {
    let rules = spec.get("podFailurePolicy").get("rules");
    let pods = spec.get("template").get("spec");
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pods.get(list).items().collect::<Vec<_>>())
        .map(|container| container.get("name").str())
        .collect();
    if rules.len() > POD_FAILURE_RULES_MAX {
        errors.push(FieldError::too_many(&rules.path, rules.len(), POD_FAILURE_RULES_MAX));
    }
    for rule in rules.items() {
        let action = rule.get("action");
        if action.str() == "FailIndex" && !spec.get("backoffLimitPerIndex").is_set() {
            errors.push(action.invalid("requires the backoffLimitPerIndex to be set"));
        }
        check_listed(&action, &["Count", "FailIndex", "FailJob", "Ignore"], errors);
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_set() {
            check_exit_codes(&codes, &containers, errors);
        }
        if conditions.len() > POD_CONDITIONS_MAX {
            errors.push(FieldError::too_many(&conditions.path, conditions.len(), POD_CONDITIONS_MAX));
        }
        for condition in conditions.items() {
            condition.get("type").check(names::qualified, errors);
            check_listed(&condition.get("status"), &["False", "True", "Unknown"], errors);
        }
        match (codes.is_set(), !conditions.is_empty()) {
            (false, false) => {
                errors.push(rule.refused("specifying one of OnExitCodes and OnPodConditions is required"));
            }
            (true, true) => {
                errors.push(rule.refused("specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            _ => {}
        }
    }
}

/// Refuses a text that is none of `supported`; one that is missing in the words of Jobs.
fn check_listed(at: &At<'_>, supported: &[&str], errors: &mut ErrorList) {
    if at.is_empty() {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        errors.push(at.required(&format!("valid values: [{}]", list.join(" "))));
    }
    at.check_one_of(supported, errors);
}

fn check_exit_codes(codes: &At<'_>, containers: &[&str], errors: &mut ErrorList) {
    let [operator, container, values] = ["operator", "containerName", "values"].map(|f| codes.get(f));
    check_listed(&operator, &["In", "NotIn"], errors);
    if container.is_set() && !containers.contains(&container.str()) {
        errors.push(
            container.invalid("must be one of the container or initContainer names in the pod template"),
        );
    }
    if values.is_empty() {
        let none = Value::Array(Vec::new());
        errors.push(At { value: &none, path: values.path.clone() }.invalid("at least one value is required"));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(&values.path, values.len(), EXIT_CODES_MAX));
    }
    let mut seen: Vec<i64> = Vec::new();
    for value in values.items() {
        let code = value.int().unwrap_or(0);
        if code == 0 && operator.str() == "In" {
            errors.push(value.invalid("must not be 0 for the In operator"));
        }
        if seen.contains(&code) {
            errors.push(value.duplicate());
        }
        seen.push(code);
    }
    if !seen.is_sorted() {
        errors.push(values.invalid("must be ordered"));
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

/// A job that is suspended, and whose pods are gone, may be sent to other nodes and be given other amounts.
fn check_template_change(spec: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let (template, old_template) = (spec.get("template"), old.get("spec").get("template"));
    let status = old.get("status");
    let stopped = !status.get("startTime").is_set() || has_condition(old.value, "Suspended");
    let asleep =
        old.get("spec").get("suspend").is_true() && status.get("active").int().unwrap_or(0) == 0 && stopped;
    let same = if asleep {
        fixed(template.value) == fixed(old_template.value)
    } else {
        template.value == old_template.value
    };
    if !same {
        errors.push(template.invalid("field is immutable"));
    }
}

/// What of a template never changes.
fn fixed(template: &Value) -> Value {
    let mut template = template.clone();
    remove(&mut template, "metadata", &["labels", "annotations"]);
    remove(&mut template, "spec", &["nodeSelector", "tolerations", "schedulingGates"]);
    let spec = &mut template["spec"];
    remove(spec, "affinity", &["nodeAffinity"]);
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            container.remove("resources");
        }
    }
    template
}

/// Removes `fields` of `parent`'s `child`, and the child when nothing is left of it.
fn remove(parent: &mut Value, child: &str, fields: &[&str]) {
    let Some(map) = parent.get_mut(child).and_then(Value::as_object_mut) else { return };
    map.retain(|name, _| !fields.contains(&name.as_str()));
    if map.is_empty() {
        parent.as_object_mut().map(|parent| parent.remove(child));
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Status of the job."),
    text("Completions", "status.succeeded"),
    text("Duration", "Time required to complete the job."),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    TEMPLATE[2],
];

fn has_condition(job: &Value, kind: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|c| c["type"] == kind && c["status"] == "True"))
}

fn status_text(job: &Value) -> &'static str {
    let has = |kind: &str| has_condition(job, kind);
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
        new["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        new["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {}});
        assert_eq!((count(&new, &asleep), count(&new, &old)), (0, 1));
        let mut affine = new.clone();
        affine["spec"]["template"]["spec"]["affinity"]["podAffinity"] = json!({});
        assert_eq!(count(&affine, &asleep), 1);
        let mut imaged = new.clone();
        imaged["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
        assert_eq!(count(&imaged, &asleep), 1);
        asleep["status"] = json!({"startTime": "2026-01-01T00:00:00Z"});
        assert_eq!(count(&new, &asleep), 1);
        asleep["status"]["conditions"] = json!([{"type": "Suspended", "status": "True"}]);
        assert_eq!(count(&new, &asleep), 0);
        asleep["status"]["active"] = 1.into();
        assert_eq!(count(&new, &asleep), 1);
        let mut done = old.clone();
        done["spec"]["parallelism"] = 5.into();
        assert_eq!(count(&done, &old), 0);
        done["spec"]["completions"] = 5.into();
        assert_eq!(count(&done, &old), 1);
    }
}
