//! The schedules of CronJobs, as upstream's parser reads them (robfig/cron, `ParseStandard`):
//! five fields, names of months and days, `@daily` and the like, `@every 90m`.
//!
//! This only says what is wrong with one; the next time is the controller's business.

/// A field's name, bounds and the names of its values.
struct Field {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { low: 0, high: 59, names: &[] },
    Field { low: 0, high: 23, names: &[] },
    Field { low: 1, high: 31, names: &[] },
    Field {
        low: 1,
        high: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

/// Splits `TZ=Europe/Berlin 0 * * * *` into its zone and the rest.
pub fn split_zone(schedule: &str) -> (Option<&str>, &str) {
    let rest = schedule.strip_prefix("CRON_TZ=").or_else(|| schedule.strip_prefix("TZ="));
    match rest.map(|r| r.split_once(' ').unwrap_or((r, ""))) {
        Some((zone, rest)) => (Some(zone), rest.trim()),
        None => (None, schedule),
    }
}

/// What is wrong with a schedule; `Ok` for a good one.
pub fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    let (zone, schedule) = split_zone(schedule);
    if let Some(zone) = zone
        && jiff::tz::TimeZone::get(zone).is_err()
    {
        return Err(format!("provided bad location {zone}: unknown time zone {zone}"));
    }
    if schedule.starts_with('@') {
        return check_descriptor(schedule);
    }
    let fields: Vec<_> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(text, field)| {
        text.split(',').filter(|range| !range.is_empty()).try_for_each(|range| field.check_range(range))
    })
}

fn check_descriptor(schedule: &str) -> Result<(), String> {
    match schedule {
        "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly" => Ok(()),
        _ => match schedule.strip_prefix("@every ") {
            Some(duration) if is_go_duration(duration) => Ok(()),
            Some(duration) => {
                Err(format!("failed to parse duration {schedule}: time: invalid duration {duration:?}"))
            }
            None => Err(format!("unrecognized descriptor: {schedule}")),
        },
    }
}

/// `1h30m`, `90s`, `1.5h`.
fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let units = &rest[digits..];
        let Some(unit) = ["ns", "us", "µs", "ms", "h", "m", "s"].iter().find(|u| units.starts_with(**u))
        else {
            return false;
        };
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &units[unit.len()..];
    }
    true
}

impl Field {
    /// `*`, `?`, `5`, `mon-fri`, `*/15`, `10-50/20`.
    fn check_range(&self, text: &str) -> Result<(), String> {
        let parts: Vec<_> = text.split('/').collect();
        let ends: Vec<_> = parts[0].split('-').collect();
        let (start, mut end) = if matches!(ends[0], "*" | "?") {
            (self.low, self.high)
        } else {
            let start = self.number(ends[0])?;
            match ends.as_slice() {
                [_] => (start, start),
                [_, end] => (start, self.number(end)?),
                _ => return Err(format!("too many hyphens: {text}")),
            }
        };
        match parts.as_slice() {
            [_] => {}
            [_, step] => {
                let step: u32 = parse(step)?;
                if ends.len() == 1 {
                    end = self.high;
                }
                if step == 0 {
                    return Err(format!("step of range should be a positive number: {text}"));
                }
            }
            _ => return Err(format!("too many slashes: {text}")),
        }
        if start < self.low {
            return Err(format!("beginning of range ({start}) below minimum ({}): {text}", self.low));
        }
        if end > self.high {
            return Err(format!("end of range ({end}) above maximum ({}): {text}", self.high));
        }
        if start > end {
            return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
        }
        Ok(())
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_lowercase();
        match self.names.iter().position(|name| *name == lower) {
            Some(i) => Ok(i as u32 + self.low),
            None => parse(text),
        }
    }
}

fn parse(text: &str) -> Result<u32, String> {
    let number: i64 = text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })?;
    u32::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        for good in [
            "* * * * *",
            "*/15 0-6,20 1 jan,Dec mon-fri",
            "0 0 ? * 0",
            "5/10 * * * *",
            "@daily",
            "@every 1h30m",
            "TZ=UTC 0 * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let cases = [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
        ];
        for (bad, why) in cases {
            assert_eq!(check(bad).expect_err(bad), why);
        }
    }
}
