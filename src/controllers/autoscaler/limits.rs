//! How fast and how far a scale may move (`podautoscaler/horizontal.go`): stabilization windows,
//! rate policies, bounds.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// For how long the highest recommendation holds where no behavior says otherwise.
const DOWN_WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// Without a behavior a step up at most doubles, but may always reach this.
const UP_LIMIT_MIN: i32 = 4;
/// The longest window and period there can be: what is older is forgotten.
const MEMORY: SignedDuration = SignedDuration::from_hours(1);

pub const IN_RANGE: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);

/// What an autoscaler remembers of its past; lost with the process, as upstream's.
#[derive(Debug, Default, Clone)]
pub struct Past {
    /// What the metrics asked for, and when.
    recommendations: Vec<(Timestamp, i32)>,
    /// Changes made: positive up, negative down.
    changes: Vec<(Timestamp, i32)>,
}

/// The bounds of one decision.
pub struct Bounds<'a> {
    pub min: i32,
    pub max: i32,
    pub current: i32,
    pub behavior: Option<&'a HorizontalPodAutoscalerBehavior>,
}

/// What became of a recommendation: reason and message of `AbleToScale` and of `ScalingLimited`.
pub struct Limited {
    pub replicas: i32,
    pub stable: (&'static str, &'static str),
    pub limit: (&'static str, &'static str),
    pub held: bool,
}

impl Past {
    /// The first look: what is there is what is recommended.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
        self.recommendations.retain(|(then, _)| *then + MEMORY > now);
        self.changes.retain(|(then, _)| *then + MEMORY > now);
    }

    pub fn changed(&mut self, from: i32, to: i32, now: Timestamp) {
        self.changes.push((now, to - from));
    }

    /// How many pods came (or went, with `up` false) within the last seconds.
    fn moved(&self, up: bool, seconds: i32, now: Timestamp) -> i32 {
        let since = now - SignedDuration::from_secs(seconds.into());
        let recent = self.changes.iter().filter(|(then, by)| *then > since && (*by > 0) == up);
        recent.map(|(_, by)| by.abs()).sum()
    }

    fn recent(&self, window: SignedDuration, now: Timestamp) -> impl Iterator<Item = i32> {
        self.recommendations.iter().filter(move |(then, _)| *then > now - window).map(|(_, count)| *count)
    }

    /// Brings a recommendation within what is allowed, and remembers it.
    pub fn limit(&mut self, wanted: i32, bounds: &Bounds<'_>, now: Timestamp) -> Limited {
        let stable = match bounds.behavior {
            None => self.recent(DOWN_WINDOW, now).fold(wanted, i32::max),
            Some(behavior) => self.stabilize(wanted, bounds.current, behavior, now),
        };
        self.recommendations.push((now, wanted));
        let why = match bounds.behavior {
            _ if stable == wanted => READY,
            Some(_) if wanted >= bounds.current => UP_STABILIZED,
            _ => DOWN_STABILIZED,
        };
        let (replicas, limit) = match bounds.behavior {
            None => plain(stable, bounds),
            Some(behavior) => self.rated(stable, bounds, behavior, now),
        };
        Limited { replicas, stable: why, limit, held: replicas != stable }
    }

    /// The recommendation nearest to the present size that all of the windows agree on.
    fn stabilize(
        &self,
        wanted: i32,
        current: i32,
        behavior: &HorizontalPodAutoscalerBehavior,
        now: Timestamp,
    ) -> i32 {
        let window = |rules: Option<&HPAScalingRules>, default: SignedDuration| {
            let seconds = rules.and_then(|r| r.stabilization_window_seconds);
            seconds.map_or(default, |s| SignedDuration::from_secs(s.into()))
        };
        let up = window(behavior.scale_up.as_ref(), SignedDuration::ZERO);
        let down = window(behavior.scale_down.as_ref(), DOWN_WINDOW);
        let lowest = self.recent(up, now).fold(wanted, i32::min);
        let highest = self.recent(down, now).fold(wanted, i32::max);
        // `lowest` is never above `highest`.
        current.max(lowest).min(highest)
    }

    fn rated(
        &self,
        wanted: i32,
        bounds: &Bounds<'_>,
        behavior: &HorizontalPodAutoscalerBehavior,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        let current = bounds.current;
        if wanted > current {
            let limit = self.rate(true, current, behavior.scale_up.as_ref(), now).max(current);
            let (most, why) = if bounds.max > limit { (limit, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
            if wanted > most {
                return (most, why);
            }
        } else if wanted < current {
            let limit = self.rate(false, current, behavior.scale_down.as_ref(), now).min(current);
            let (least, why) = if bounds.min < limit { (limit, DOWN_LIMIT) } else { (bounds.min, TOO_FEW) };
            if wanted < least {
                return (least, why);
            }
        }
        (wanted, IN_RANGE)
    }

    /// The furthest size that the policies of a direction allow.
    fn rate(&self, up: bool, current: i32, rules: Option<&HPAScalingRules>, now: Timestamp) -> i32 {
        let select = rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max");
        if select == "Disabled" {
            return current;
        }
        let sizes = rules.and_then(|r| r.policies.as_ref()).into_iter().flatten().map(|policy| {
            let came = self.moved(true, policy.period_seconds, now);
            let went = self.moved(false, policy.period_seconds, now);
            let before = current - came + went;
            let share = f64::from(before) * f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), up) {
                ("Pods", true) => before.saturating_add(policy.value),
                ("Pods", false) => before.saturating_sub(policy.value),
                (_, true) => (f64::from(before) + share).ceil() as i32,
                (_, false) => (f64::from(before) - share) as i32,
            }
        });
        // The policy that changes most, or least.
        let found = if (select == "Min") == up { sizes.min() } else { sizes.max() };
        found.unwrap_or(current)
    }
}

/// Without a behavior: between the bounds, and not more than double.
fn plain(wanted: i32, bounds: &Bounds<'_>) -> (i32, (&'static str, &'static str)) {
    let up_limit = bounds.current.saturating_mul(2).max(UP_LIMIT_MIN);
    let (most, why) = if bounds.max > up_limit { (up_limit, UP_LIMIT) } else { (bounds.max, TOO_MANY) };
    if wanted < bounds.min {
        (bounds.min, TOO_FEW)
    } else if wanted > most {
        (most, why)
    } else {
        (wanted, IN_RANGE)
    }
}
