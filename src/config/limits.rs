//! What a worker keeps for itself and how much it gives to pods. The flags are kubelet's.

use std::time::Duration;

use clap::Args;

use crate::kinds::quantity::Quantity;

/// An amount of a resource: `cpu=100m`.
pub type Amount = (String, Quantity);

/// How long a soft threshold may not be held: `memory.available=1m30s`.
pub type Grace = (&'static str, Duration);

/// The signals that thresholds may be set for.
pub const SIGNALS: [&str; 6] = [
    "memory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "pid.available",
];

/// `memory.available<100Mi`, `nodefs.available<10%`.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// One of [`SIGNALS`].
    pub signal: &'static str,
    pub least: Least,
}

/// What there has to be at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Least {
    /// Bytes, inodes or processes.
    Amount(Quantity),
    /// Hundredths of the whole.
    Percent(f64),
}

impl Least {
    /// In units of a whole of `capacity`.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => u64::try_from(amount.value()).unwrap_or(0),
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

impl std::fmt::Display for Least {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Amount(amount) => amount.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Limits of one worker.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// Pods that this node runs at most
    #[arg(long, env = "SAMPAN_MAX_PODS", default_value_t = 110, value_name = "N")]
    pub max_pods: u32,
    /// Processes and threads of one pod; -1: no limit
    #[arg(
        long,
        env = "SAMPAN_POD_MAX_PIDS",
        default_value_t = 4096,
        value_name = "N",
        allow_negative_numbers = true
    )]
    pub pod_max_pids: i64,
    /// What is kept from pods for Sampan itself (`cpu=100m,memory=50Mi,ephemeral-storage=1Gi`)
    #[arg(
        long,
        env = "SAMPAN_KUBE_RESERVED",
        value_delimiter = ',',
        value_parser = amount,
        value_name = "AMOUNTS"
    )]
    pub kube_reserved: Vec<Amount>,
    /// The same for the rest of the system
    #[arg(
        long,
        env = "SAMPAN_SYSTEM_RESERVED",
        value_delimiter = ',',
        value_parser = amount,
        value_name = "AMOUNTS"
    )]
    pub system_reserved: Vec<Amount>,
    /// Below these amounts pods are evicted (5% of a disk, not kubelet's 10%: cards are small and full)
    #[arg(
        long,
        env = "SAMPAN_EVICTION_HARD",
        value_delimiter = ',',
        value_parser = threshold,
        default_value = "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,pid.available<10%",
        value_name = "THRESHOLDS"
    )]
    pub eviction_hard: Vec<Threshold>,
    /// Below these amounts for a grace period of their own, pods are evicted, and given time to end
    #[arg(
        long,
        env = "SAMPAN_EVICTION_SOFT",
        value_delimiter = ',',
        value_parser = threshold,
        value_name = "THRESHOLDS"
    )]
    pub eviction_soft: Vec<Threshold>,
    /// The grace period of each soft threshold (`memory.available=1m30s`)
    #[arg(
        long,
        env = "SAMPAN_EVICTION_SOFT_GRACE_PERIOD",
        value_delimiter = ',',
        value_parser = grace,
        value_name = "PERIODS"
    )]
    pub eviction_soft_grace_period: Vec<Grace>,
    /// What a pod gets to end when a soft threshold evicts it (seconds); its own grace period if shorter
    #[arg(long, env = "SAMPAN_EVICTION_MAX_POD_GRACE_PERIOD", default_value_t = 0, value_name = "SECONDS")]
    pub eviction_max_pod_grace_period: u32,
    /// How long a node stays under pressure after the last sign of it (seconds)
    #[arg(
        long,
        env = "SAMPAN_EVICTION_PRESSURE_TRANSITION_PERIOD",
        default_value_t = 300,
        value_name = "SECONDS"
    )]
    pub eviction_pressure_transition_period: u32,
    /// Sysctls besides the safe ones that pods may set (`net.core.*`)
    #[arg(long, env = "SAMPAN_ALLOWED_UNSAFE_SYSCTLS", value_delimiter = ',', value_name = "PATTERNS")]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Size at which a container's log is rotated
    #[arg(
        long,
        env = "SAMPAN_CONTAINER_LOG_MAX_SIZE",
        default_value = "10Mi",
        value_parser = size,
        value_name = "SIZE"
    )]
    pub container_log_max_size: u64,
    /// Files of one container's log, the current one included
    #[arg(long, env = "SAMPAN_CONTAINER_LOG_MAX_FILES", default_value_t = 5, value_name = "N")]
    pub container_log_max_files: u32,
    /// What all logs of pods may take; beyond it the oldest rotated files go. 0: no limit
    #[arg(
        long,
        env = "SAMPAN_POD_LOGS_MAX_SIZE",
        default_value = "1Gi",
        value_parser = size,
        value_name = "SIZE"
    )]
    pub pod_logs_max_size: u64,
    /// Keeps the logs of pods in memory: the size of a tmpfs for them
    #[arg(long, env = "SAMPAN_POD_LOGS_TMPFS", value_parser = size, value_name = "SIZE")]
    pub pod_logs_tmpfs: Option<u64>,
}

impl Limits {
    /// What holds when no flag is given.
    pub fn standard() -> Self {
        use clap::FromArgMatches;
        let command = Self::augment_args(clap::Command::new("limits").no_binary_name(true));
        let matches = command.get_matches_from::<[&str; 0], &str>([]);
        Self::from_arg_matches(&matches).expect("the defaults are sound")
    }

    /// The grace period of a soft threshold.
    pub fn grace_of(&self, signal: &str) -> Option<Duration> {
        self.eviction_soft_grace_period.iter().find(|(name, _)| *name == signal).map(|(_, period)| *period)
    }

    /// What images have to leave free of the disk: pulling one must not make the node evict pods.
    pub fn disk_kept(&self) -> Least {
        let hard =
            |signal| self.eviction_hard.iter().find(|hard| hard.signal == signal).map(|hard| hard.least);
        hard("imagefs.available").or_else(|| hard("nodefs.available")).unwrap_or(Least::Percent(0.0))
    }

    /// Refuses what no single flag can tell.
    ///
    /// # Errors
    /// A soft threshold has no grace period.
    pub fn check(&self) -> Result<(), String> {
        match self.eviction_soft.iter().find(|soft| self.grace_of(soft.signal).is_none()) {
            None => Ok(()),
            Some(soft) => {
                Err(format!("grace period must be specified for the soft eviction threshold {}", soft.signal))
            }
        }
    }

    /// What is reserved of a resource by both flags together.
    pub fn reserved(&self, resource: &str) -> Quantity {
        let both = self.kube_reserved.iter().chain(&self.system_reserved);
        let milli = both.filter(|(name, _)| name == resource).map(|(_, q)| q.milli_value()).sum();
        Quantity::from_milli(milli)
    }
}

fn quantity(text: &str) -> Result<Quantity, String> {
    text.parse().map_err(|_| format!("{text:?} is not a quantity such as 100Mi"))
}

fn size(text: &str) -> Result<u64, String> {
    u64::try_from(quantity(text)?.value()).map_err(|_| format!("{text:?} is negative"))
}

fn amount(text: &str) -> Result<Amount, String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form cpu=100m"))?;
    if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&name) {
        return Err(format!("{name:?}: only cpu, memory, ephemeral-storage and pid can be reserved"));
    }
    Ok((name.to_owned(), quantity(value)?))
}

fn signal(name: &str) -> Result<&'static str, String> {
    let known = SIGNALS.iter().find(|known| **known == name);
    known.copied().ok_or_else(|| format!("{name:?}: the signals are {}", SIGNALS.join(", ")))
}

fn grace(text: &str) -> Result<Grace, String> {
    let form = || format!("{text:?} is not of the form memory.available=1m30s");
    let (name, value) = text.split_once('=').ok_or_else(form)?;
    let period: jiff::SignedDuration = value.parse().map_err(|_| form())?;
    Ok((signal(name)?, Duration::try_from(period).map_err(|_| form())?))
}

fn threshold(text: &str) -> Result<Threshold, String> {
    let (name, value) =
        text.split_once('<').ok_or_else(|| format!("{text:?} is not of the form memory.available<100Mi"))?;
    let signal = signal(name)?;
    let least = match value.strip_suffix('%') {
        Some(percent) => Least::Percent(percent.parse().map_err(|_| format!("{value:?} is no percentage"))?),
        None => Least::Amount(quantity(value)?),
    };
    Ok(Threshold { signal, least })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_thresholds_are_read() {
        let standard = Limits::standard();
        assert_eq!(standard.max_pods, 110);
        assert_eq!(standard.container_log_max_size, 10 << 20);
        assert_eq!(standard.eviction_hard.len(), 4);
        assert_eq!(standard.eviction_hard[1].least.of(1000), 50);
        assert_eq!(standard.eviction_hard[0].least.of(1), 100 << 20);
        assert_eq!(standard.disk_kept(), Least::Percent(5.0));
        let both = Limits {
            kube_reserved: vec![amount("cpu=100m").unwrap()],
            system_reserved: vec![amount("cpu=1").unwrap(), amount("memory=1Mi").unwrap()],
            ..standard
        };
        assert_eq!(both.reserved("cpu").milli_value(), 1100);
        assert_eq!(both.reserved("pid").value(), 0);
        assert!(amount("gpu=1").unwrap_err().contains("gpu"));
        assert!(threshold("memory.free<1").unwrap_err().contains("memory.available"));
        assert!(threshold("memory.available<x%").is_err());
    }

    #[test]
    fn a_soft_threshold_needs_its_grace_period() {
        let soft = vec![threshold("memory.available<200Mi").unwrap()];
        let mut limits = Limits { eviction_soft: soft, ..Limits::standard() };
        assert_eq!(
            limits.check().unwrap_err(),
            "grace period must be specified for the soft eviction threshold memory.available"
        );
        limits.eviction_soft_grace_period = vec![grace("memory.available=1m30s").unwrap()];
        assert_eq!(limits.check(), Ok(()));
        assert_eq!(limits.grace_of("memory.available"), Some(Duration::from_secs(90)));
        assert!(grace("memory=1m").unwrap_err().contains("memory.available"));
        assert!(grace("memory.available=-1s").is_err());
    }
}
