//! Which images go when the disk fills up.
//!
//! Upstream's rule (kubelet, `imageGCHighThresholdPercent`): above the high mark, remove the longest unused images
//! until the low mark is reached. Pure; the store applies the plan.

use std::collections::BTreeMap;

/// An image that nobody would miss for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    /// A count of looks; 0 is never since the start.
    pub last_used: u64,
    /// Order of arrival.
    pub sequence: u64,
    /// Diff ids and bytes.
    pub layers: Vec<(String, u64)>,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    /// What all images take, unpacked.
    pub images_bytes: u64,
}

impl Usage {
    /// Rounded as the kubelet rounds it.
    fn used_percent(&self) -> u64 {
        100 - (self.available_bytes * 100).checked_div(self.capacity_bytes).unwrap_or(100)
    }

    /// Bytes above the low mark, once the high one is reached.
    pub fn excess_bytes(&self, high_percent: u8, low_percent: u8) -> u64 {
        if self.used_percent() < u64::from(high_percent) {
            return 0;
        }
        let free = self.capacity_bytes * (100 - u64::from(low_percent.min(100))) / 100;
        free.saturating_sub(self.available_bytes)
    }
}

/// The images to remove to free so many bytes, in order, and the bytes that brings. `users` counts the images of each layer, the ones
/// that stay included.
pub fn plan(
    mut missing: u64,
    mut candidates: Vec<Candidate>,
    mut users: BTreeMap<String, usize>,
) -> (Vec<String>, u64) {
    candidates.sort_by_key(|image| (image.last_used, image.sequence));
    let (mut ids, mut freed) = (Vec::new(), 0);
    for image in candidates {
        if missing == 0 {
            break;
        }
        let layers: BTreeMap<String, u64> = image.layers.into_iter().collect();
        let mut bytes = 0;
        for (layer, size) in layers {
            let count = users.entry(layer).or_insert(1);
            *count = count.saturating_sub(1);
            if *count == 0 {
                bytes += size;
            }
        }
        freed += bytes;
        missing = missing.saturating_sub(bytes);
        ids.push(image.id);
    }
    (ids, freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, last_used: u64, sequence: u64, layers: &[(&str, u64)]) -> Candidate {
        let layers = layers.iter().map(|(layer, size)| ((*layer).to_owned(), *size)).collect();
        Candidate { id: id.to_owned(), last_used, sequence, layers }
    }

    #[test]
    fn the_longest_unused_go_until_the_low_mark() {
        let images = || {
            vec![
                image("used-last", 9, 1, &[("base", 5), ("a", 10)]),
                image("never-new", 0, 8, &[("base", 5), ("b", 4)]),
                image("never-old", 0, 2, &[("base", 5), ("c", 3)]),
            ]
        };
        // A fourth image, in use, has "d" alone; "base" is shared by the three.
        let users: BTreeMap<String, usize> =
            [("base", 3), ("a", 1), ("b", 1), ("c", 1)].map(|(layer, n)| (layer.to_owned(), n)).into();
        let usage = |available_bytes| Usage { capacity_bytes: 100, available_bytes, images_bytes: 0 };
        for (available, ids, freed) in [
            (16, &[][..], 0),
            (15, &["never-old", "never-new"][..], 7),
            (2, &["never-old", "never-new", "used-last"][..], 22),
            (100, &[][..], 0),
        ] {
            let got = plan(usage(available).excess_bytes(85, 80), images(), users.clone());
            assert_eq!(
                (got.0.iter().map(String::as_str).collect::<Vec<_>>(), got.1),
                (ids.to_vec(), freed),
                "{available}"
            );
        }
    }
}
