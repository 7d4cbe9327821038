//! CronJobs.

use serde_json::{Value, json};

use super::{
    Column, ErrorList, Kind, Strategy, Subresource,
    at::At,
    columns::{self, AGE, NAME, TEMPLATE, boolean, integer, template_cells, text, text_or},
    edit::{child, set_default, set_default_empty},
    job, labels, meta, names, pod_warnings,
    registry::row,
    schedule,
    workload::check_numbers,
};

pub const CRON_JOB: Kind = Kind {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    strategy: Strategy {
        default,
        prepare_create: |new| {
            new["status"] = json!({});
            new["metadata"]["generation"] = 1.into();
        },
        validate,
        validate_update: |new, old| meta::check_update(new, old, check_change),
        warnings: |cron| {
            let mut warnings = Vec::new();
            let job = At::root(cron).get("spec").get("jobTemplate").get("spec");
            pod_warnings::of_template(&job.get("template"), &mut warnings);
            warnings
        },
        cells,
        ..Strategy::SPEC_AND_STATUS
    },
    ..row("batch", "v1", "CronJob", "cronjobs", "cronjob", "io.k8s.api.batch.v1.CronJob")
};

/// A CronJob's name leaves room for what its Jobs' names append (bytes).
const NAME_BYTES_MAX: usize = 52;

fn default(cron: &mut Value) {
    let spec = child(cron, "spec");
    set_default_empty(spec, "concurrencyPolicy", "Allow");
    set_default(spec, "suspend", false);
    set_default(spec, "successfulJobsHistoryLimit", 3);
    set_default(spec, "failedJobsHistoryLimit", 1);
    job::default_spec(child(child(spec, "jobTemplate"), "spec"));
}

fn validate(cron: &Value) -> ErrorList {
    let is_new = meta::is_new(cron);
    meta::check(cron, true, names::dns_subdomain, |cron, errors| {
        let (spec, name) = (cron.get("spec"), cron.get("metadata").get("name"));
        let text = spec.get("schedule");
        if text.check_required(errors)
            && let Err(why) = schedule::check(text.str())
        {
            errors.push(text.invalid(why));
        }
        let zone = spec.get("timeZone");
        if text.str().contains("TZ") && is_new {
            errors.push(text.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
        }
        check_zone(&zone, errors);
        check_numbers(
            &spec,
            &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"],
            errors,
        );
        spec.get("concurrencyPolicy").check_required_one_of(&["Allow", "Forbid", "Replace"], errors);
        let job_spec = spec.get("jobTemplate").get("spec");
        job::check_spec(&job_spec, errors);
        if job_spec.get("selector").is_set() {
            errors.push(job_spec.get("selector").invalid("`selector` will be auto-generated"));
        }
        if job_spec.get("manualSelector").is_true() {
            errors.push(job_spec.get("manualSelector").not_supported(&["nil", "false"]));
        }
        if is_new && name.len() > NAME_BYTES_MAX {
            errors.push(name.invalid(format!("must be no more than {NAME_BYTES_MAX} characters")));
        }
    })
}

fn check_zone(zone: &At<'_>, errors: &mut ErrorList) {
    if !zone.is_set() {
        return;
    }
    let name = zone.str();
    if name.is_empty() {
        errors.push(zone.invalid("timeZone must be nil or non-empty string"));
    } else if name.eq_ignore_ascii_case("local") {
        errors.push(
            zone.invalid(
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ),
        );
    } else if jiff::tz::TimeZone::get(name).is_err() {
        errors.push(zone.invalid(format!("unknown time zone {name}")));
    }
}

/// A zone in the schedule may stay, not come.
fn check_change(new: &At<'_>, old: &At<'_>, errors: &mut ErrorList) {
    let [text, had] = [new, old].map(|cron| cron.get("spec").get("schedule"));
    let zone = new.get("spec").get("timeZone");
    if !text.str().contains("TZ") {
        return;
    }
    if !had.str().contains("TZ") {
        errors.push(text.invalid("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"));
    } else if zone.is_set() {
        errors.push(text.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule"));
    }
}

const COLUMNS: &[Column] = &[
    NAME,
    text("Schedule", "spec.schedule"),
    text("Timezone", "spec.timeZone"),
    boolean("Suspend", "spec.suspend"),
    integer("Active", "status.active"),
    text("Last Schedule", "status.lastScheduleTime"),
    AGE,
    TEMPLATE[0],
    TEMPLATE[1],
    Column { description: "spec.jobTemplate.spec.selector", ..TEMPLATE[2] },
];

fn cells(cron: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&cron["spec"], &cron["status"]);
    let last = if status["lastScheduleTime"].is_null() {
        "<none>".to_owned()
    } else {
        columns::since(&status["lastScheduleTime"], now)
    };
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let mut cells = vec![
        columns::name(cron),
        spec["schedule"].clone(),
        text_or(&spec["timeZone"], "<none>"),
        suspended.into(),
        status["active"].as_array().map_or(0, Vec::len).into(),
        last.into(),
        columns::age(cron, now).into(),
    ];
    let job = &spec["jobTemplate"]["spec"];
    cells.extend(template_cells(job, labels::format_json(&job["selector"])));
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(schedule: &str, zone: Option<&str>) -> Vec<String> {
        let mut cron = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"schedule": schedule, "timeZone": zone,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
        default(&mut cron);
        validate(&cron).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn schedules_and_zones_are_checked() {
        assert_eq!(errors("*/5 * * * *", None), Vec::<String>::new());
        assert_eq!(errors("*/5 * * * *", Some("UTC")), Vec::<String>::new());
        assert_eq!(
            errors("* * *", Some("Mars/Olympus")),
            [
                "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]",
                "spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus",
            ]
        );
        assert_eq!(
            errors("TZ=UTC 0 * * * *", None),
            [
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
            ]
        );
    }
}
