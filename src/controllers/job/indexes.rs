//! Sets of completion indexes, as a Job's status writes them: `1,3-5,7`.

use std::{collections::BTreeSet, fmt};

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads `1,3-5,7`; what is no index is left out.
    pub fn parse(text: &str) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse::<i32>().ok()?..=last.trim().parse().ok()?)
        };
        Self(text.split(',').filter_map(range).flatten().collect())
    }

    pub fn contains(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    pub fn len(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    pub fn extend(&mut self, indexes: impl IntoIterator<Item = i32>) {
        self.0.extend(indexes);
    }

    pub fn remove_all(&mut self, others: &Self) {
        self.0.retain(|index| !others.contains(*index));
    }

    /// How many of `others` are in this set.
    pub fn common(&self, others: &Self) -> i32 {
        i32::try_from(self.0.intersection(&others.0).count()).unwrap_or(i32::MAX)
    }
}

impl fmt::Display for Indexes {
    /// Two neighbours are written `1,2`, longer runs `1-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(i32, i32)> = Vec::new();
        for index in &self.0 {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => runs.push((*index, *index)),
            }
        }
        let text = |(first, last): &(i32, i32)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        };
        f.write_str(&runs.iter().map(text).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_written_short() {
        let indexes = Indexes::parse("0,2-4,6,7,9");
        assert_eq!(indexes.len(), 7);
        assert_eq!(indexes.to_string(), "0,2-4,6,7,9");
    }
}
