//! Counts probes of one container: a task a probe, told of by a channel.
//!
//! Source: `pkg/kubelet/prober/worker.go`. A result is told when the threshold is reached.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;

use super::hooks::{self, Fault, Target};
use crate::{clock::SharedClock, runtime::Runtime};

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub container: String,
    pub attempt: u32,
    pub kind: Kind,
    /// Well (with a warning), or not.
    pub result: Result<Option<String>, Fault>,
    /// The threshold is reached: the verdict counts. Before that it is only worth an event.
    pub counts: bool,
}

/// Thresholds of a probe (pure).
#[derive(Debug, Default)]
pub struct Count {
    last: Option<bool>,
    run: i32,
}

impl Count {
    /// Takes a result; says whether the threshold for it is reached.
    pub fn take(&mut self, ok: bool, probe: &Probe) -> bool {
        self.run = if self.last == Some(ok) { self.run + 1 } else { 1 };
        self.last = Some(ok);
        let needed =
            if ok { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        self.run >= needed
    }
}

/// Probes until the task is aborted, or, for a startup probe, until its verdict.
pub async fn run(
    runtime: Arc<dyn Runtime>,
    clock: SharedClock,
    target: Target,
    (container, attempt): (String, u32),
    kind: Kind,
    probe: Probe,
    told: mpsc::Sender<Verdict>,
) {
    let period = Duration::from_secs(probe.period_seconds.unwrap_or(10).max(1) as u64);
    let first = Duration::from_secs(probe.initial_delay_seconds.unwrap_or(0).max(0) as u64);
    // Probes of many pods that start together are spread over the first second.
    let spread = clock.now().subsec_nanosecond().unsigned_abs() % 997;
    tokio::time::sleep(
        first + if first.is_zero() { Duration::ZERO } else { Duration::from_millis(u64::from(spread)) },
    )
    .await;
    let mut count = Count::default();
    let mut last_told: Option<bool> = None;
    loop {
        let result = hooks::probe(&runtime, &target, &probe).await;
        let ok = result.is_ok();
        // What could not be asked is as if it had not been.
        let counts = !matches!(result, Err(Fault::Unknown(_))) && count.take(ok, &probe);
        let news = !matches!(result, Ok(None)) || counts && last_told != Some(ok);
        if counts {
            last_told = Some(ok);
        }
        if news {
            let verdict = Verdict { container: container.clone(), attempt, kind, result, counts };
            if told.send(verdict).await.is_err() || counts && kind == Kind::Startup {
                return;
            }
        }
        tokio::time::sleep(period).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut count = Count::default();
        let verdicts: Vec<_> = [false, false, true, true, false, false, false]
            .into_iter()
            .map(|ok| count.take(ok, &probe))
            .collect();
        assert_eq!(verdicts, [false, false, false, true, false, false, true]);
    }
}
