//! What registries said lately about the builds of images, so that a pod is not sent to a board
//! that its image has no build for.
//!
//! In memory only, and forgotten after [`KEPT`]: a tag may be given another build at any time, and
//! what was forgotten is learned again with the next pull.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::oci::Platform;

/// How long an answer counts.
const KEPT: Duration = Duration::from_hours(1);
/// How many images are remembered.
const IMAGES_MAX: usize = 100;

#[derive(Debug, Default)]
pub struct Offers(Mutex<BTreeMap<String, (Instant, Vec<String>)>>);

impl Offers {
    /// Remembers the builds of an image; none says nothing.
    pub fn learn<'a>(&self, reference: &str, builds: impl IntoIterator<Item = &'a Platform>, now: Instant) {
        let mut names: Vec<String> = builds.into_iter().map(Platform::to_string).collect();
        names.sort();
        names.dedup();
        if names.is_empty() {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(reference.to_owned(), (now, names));
        while all.len() > IMAGES_MAX {
            let oldest = all.iter().min_by_key(|(_, (then, _))| *then).map(|(name, _)| name.clone());
            all.retain(|name, _| Some(name) != oldest.as_ref());
        }
    }

    /// What is remembered.
    pub fn list(&self, now: Instant) -> BTreeMap<String, Vec<String>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (then, _)| now.saturating_duration_since(*then) < KEPT);
        all.iter().map(|(name, (_, builds))| (name.clone(), builds.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_count_for_a_while_and_are_bounded() {
        let (offers, start) = (Offers::default(), Instant::now());
        let builds = [Platform::linux("arm64", ""), Platform::linux("amd64", "")];
        offers.learn("a", &builds, start);
        offers.learn("nothing", &[], start);
        assert_eq!(
            offers.list(start),
            BTreeMap::from([("a".into(), vec!["linux/amd64".into(), "linux/arm64".into()])])
        );
        assert!(offers.list(start + KEPT).is_empty());
        for n in 0..IMAGES_MAX + 5 {
            offers.learn(&n.to_string(), &builds, start);
        }
        assert_eq!(offers.list(start).len(), IMAGES_MAX);
    }
}
