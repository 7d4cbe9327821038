//! Which of an image's builds runs on this machine.
//!
//! The order of preference is containerd's `platforms.Only`: the exact architecture, then what it can also run.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant in Go's names (`linux/arm/v7`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform of Linux; `variant` may be empty.
    pub fn linux(architecture: &str, variant: &str) -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        }
    }

    /// The machine this binary runs on.
    pub fn host() -> Self {
        match std::env::consts::ARCH {
            "x86_64" => Self::linux("amd64", ""),
            "x86" => Self::linux("386", ""),
            "aarch64" => Self::linux("arm64", "v8"),
            "arm" => {
                Self::linux("arm", arm_variant(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
            }
            other => Self::linux(other, ""),
        }
    }

    /// How well an image built for `self` runs on `host`: 0 is best, `None` is not at all.
    pub fn rank_on(&self, host: &Self) -> Option<usize> {
        if self.os != host.os {
            return None;
        }
        let own = (self.architecture.as_str(), self.variant());
        host.runs().iter().position(|(architecture, variant)| own == (architecture.as_str(), *variant))
    }

    /// The variant with the default of its architecture filled in.
    fn variant(&self) -> u32 {
        let written = self.variant.as_deref().and_then(|v| v.trim_start_matches('v').parse().ok());
        match self.architecture.as_str() {
            "arm" => written.unwrap_or(7),
            "arm64" => written.unwrap_or(8),
            "amd64" => written.unwrap_or(1),
            _ => written.unwrap_or(0),
        }
    }

    /// What this machine runs, the best first.
    fn runs(&self) -> Vec<(String, u32)> {
        let arm = |newest: u32| (5..=newest).rev().map(|v| ("arm".to_owned(), v));
        let own = (self.architecture.clone(), self.variant());
        match self.architecture.as_str() {
            "arm" => arm(self.variant()).collect(),
            "arm64" => std::iter::once(own).chain(arm(8)).collect(),
            "amd64" => vec![own, ("386".to_owned(), 0)],
            _ => vec![own],
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `os/architecture` or `os/architecture/variant`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if os.is_empty() || architecture.is_empty() {
            return Err(format!("{text:?} is no platform"));
        }
        let variant = parts.next().filter(|v| !v.is_empty()).map(str::to_owned);
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

/// The best of `offers` (anything with an optional platform; none counts as fitting last).
pub fn choose<'a, T>(
    offers: &'a [T],
    platform: impl Fn(&T) -> Option<Platform>,
    host: &Platform,
) -> Option<&'a T> {
    offers
        .iter()
        .filter_map(|offer| match platform(offer) {
            Some(p) => p.rank_on(host).map(|rank| (rank, offer)),
            None => Some((usize::MAX, offer)),
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, offer)| offer)
}

/// `v7` or `v6` from `/proc/cpuinfo`. A 64-bit core runs v7 code in 32-bit mode; the ARM1176 of the
/// first boards calls itself architecture 7 but is a v6 (`model name: ARMv6-compatible`).
fn arm_variant(cpuinfo: &str) -> &'static str {
    let v6 = cpuinfo.lines().any(|l| l.starts_with("model name") && l.contains("ARMv6"))
        || cpuinfo.lines().any(|l| l.starts_with("CPU architecture") && l.trim_end().ends_with(": 6"));
    if v6 { "v6" } else { "v7" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn the_best_build_is_chosen() {
        let all =
            ["windows/amd64", "linux/386", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64"];
        for (host, offers, want) in [
            ("linux/amd64", &all[..], Some("linux/amd64")),
            ("linux/amd64", &all[..2], Some("linux/386")),
            ("linux/arm64/v8", &all[..], Some("linux/arm64")),
            ("linux/arm64/v8", &all[..4], Some("linux/arm/v7")),
            ("linux/arm/v7", &all[..], Some("linux/arm/v7")),
            ("linux/arm/v7", &all[..3], Some("linux/arm/v6")),
            ("linux/arm/v6", &all[3..], None),
            ("linux/amd64", &all[2..5], None),
            ("linux/riscv64", &all[..], None),
        ] {
            let got = choose(offers, |text| Some(platform(text)), &platform(host));
            assert_eq!(got.copied(), want, "{host} of {offers:?}");
        }
    }

    #[test]
    fn the_arm_variant_comes_from_cpuinfo() {
        assert_eq!(
            arm_variant("model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n"),
            "v6"
        );
        assert_eq!(arm_variant("model name\t: ARMv7 Processor rev 4 (v7l)\nCPU architecture: 7\n"), "v7");
        assert_eq!(arm_variant("CPU architecture: 8\n"), "v7");
    }
}
