//! Which pods of this node have to go so that a critical one fits: a pure function.
//!
//! In: what is lacking, who is here. Out: those who go. As few as can be, of the least service first, and
//! of the like the one that asks for least.
//! Source: `pkg/kubelet/preemption`.

use super::{
    admit::{Lack, units},
    qos::Class,
    record::Verdict,
};
use crate::kinds::resources::ResourceList;

/// The reason of the event and of the status.
pub const REASON: &str = "Preempting";
/// What the condition of a pod says that had to go.
pub const CONDITION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// The verdict on who goes.
pub fn verdict() -> Verdict {
    Verdict {
        reason: REASON.to_owned(),
        message: "Preempted in order to admit critical pod".to_owned(),
        disrupted: true,
        ..Verdict::default()
    }
}

/// A pod that is here.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub uid: &'a str,
    pub class: Class,
    pub requests: &'a ResourceList,
}

impl Candidate<'_> {
    /// In the unit of [`Lack`].
    fn request(&self, resource: &str) -> i64 {
        self.requests.get(resource).map_or(0, |amount| units(resource, *amount))
    }
}

/// Amounts that are still missing, by resource.
type Needs = Vec<(String, i64)>;

/// The uids of those who go.
///
/// # Errors
/// All of them together do not have what is lacking.
pub fn choose<'a>(candidates: &[Candidate<'a>], lacks: &[Lack]) -> Result<Vec<&'a str>, String> {
    let needs: Needs = lacks
        .iter()
        .map(|lack| (lack.resource.clone(), lack.requested - (lack.capacity - lack.used)))
        .collect();
    let of = |class: Class| candidates.iter().filter(|c| c.class == class).collect::<Vec<_>>();
    let (best_effort, burstable, guaranteed) =
        (of(Class::BestEffort), of(Class::Burstable), of(Class::Guaranteed));
    nothing_left(left(&needs, candidates.iter()))?;
    // As few of the better ones as all of the lesser ones leave necessary.
    let lesser = || best_effort.iter().chain(&burstable).copied();
    let first = nearest(guaranteed.clone(), left(&needs, lesser()))?;
    let second = nearest(burstable.clone(), left(&needs, best_effort.iter().chain(&first).copied()))?;
    let third = nearest(best_effort.clone(), left(&needs, second.iter().chain(&first).copied()))?;
    Ok(third.iter().chain(&second).chain(&first).map(|c| c.uid).collect())
}

fn nothing_left(needs: Needs) -> Result<(), String> {
    if needs.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        needs.iter().map(|(resource, amount)| format!("(res: {resource}, q: {amount}), ")).collect();
    Err(format!("no set of running pods found to reclaim resources: [{}]", list.concat()))
}

/// What is missing once these are gone.
fn left<'a, 'b: 'a>(needs: &Needs, gone: impl Iterator<Item = &'a Candidate<'b>> + Clone) -> Needs {
    let one = |(resource, amount): &(String, i64)| {
        let freed: i64 = gone.clone().map(|c| c.request(resource)).sum();
        (amount - freed > 0).then(|| (resource.clone(), amount - freed))
    };
    needs.iter().filter_map(one).collect()
}

/// One after the other, who leaves least to be missing.
fn nearest<'a, 'b>(
    mut pods: Vec<&'a Candidate<'b>>,
    mut needs: Needs,
) -> Result<Vec<&'a Candidate<'b>>, String> {
    let mut chosen = Vec::new();
    while !needs.is_empty() {
        let size = |pod: &Candidate<'_>| (pod.request("memory"), pod.request("cpu"));
        let best = pods.iter().enumerate().min_by(|(_, a), (_, b)| {
            distance(&needs, a).total_cmp(&distance(&needs, b)).then_with(|| size(a).cmp(&size(b)))
        });
        let Some((n, best)) = best else { return nothing_left(needs).map(|()| chosen) };
        needs = left(&needs, [*best].into_iter());
        chosen.push(pods.swap_remove(n));
    }
    Ok(chosen)
}

/// How much of each need a pod would leave, each resource of the same weight.
fn distance(needs: &Needs, pod: &Candidate<'_>) -> f64 {
    let part = |(resource, amount): &(String, i64)| {
        let missing = (amount - pod.request(resource)).max(0);
        // Amounts have less than 53 bits; the order is all that counts.
        #[allow(clippy::cast_precision_loss)]
        let part = missing as f64 / *amount as f64;
        part * part
    };
    needs.iter().map(part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_few_as_can_be_go_and_those_of_the_least_service_first() {
        let list = |cpu: &str, memory: &str| -> ResourceList {
            let parse = |(name, text): (&str, &str)| (name.to_owned(), text.parse().unwrap());
            [("cpu", cpu), ("memory", memory), ("pods", "1")].map(parse).into()
        };
        let amounts = [
            ("idle", Class::BestEffort, list("0", "0")),
            ("small", Class::Burstable, list("100m", "100Mi")),
            ("large", Class::Burstable, list("300m", "300Mi")),
            ("wide", Class::Burstable, list("300m", "200Mi")),
            ("sure", Class::Guaranteed, list("100m", "100Mi")),
            ("surest", Class::Guaranteed, list("800m", "800Mi")),
        ];
        let all: Vec<Candidate> =
            amounts.iter().map(|(uid, class, requests)| Candidate { uid, class: *class, requests }).collect();
        let lack = |resource: &str, missing: i64| Lack {
            resource: resource.to_owned(),
            requested: missing + 5,
            used: 95,
            capacity: 100,
        };
        let mi = |n: i64| n << 20;
        for (lacks, expect) in [
            (vec![lack("pods", 1)], vec!["idle"]),
            (vec![lack("cpu", 100)], vec!["small"]),
            (vec![lack("cpu", 200)], vec!["wide"]),
            (vec![lack("cpu", 200), lack("memory", mi(250))], vec!["large"]),
            (vec![lack("memory", mi(550))], vec!["large", "wide", "small"]),
            (vec![lack("cpu", 750)], vec!["wide", "large", "small", "sure"]),
            (vec![lack("cpu", 1000)], vec!["wide", "surest"]),
        ] {
            let mut chosen = choose(&all, &lacks).unwrap();
            let mut expect = expect;
            chosen.sort_unstable();
            expect.sort_unstable();
            assert_eq!(chosen, expect, "{lacks:?}");
        }
        assert_eq!(
            choose(&all[..2], &[lack("cpu", 150), lack("memory", mi(1))]).unwrap_err(),
            "no set of running pods found to reclaim resources: [(res: cpu, q: 50), ]"
        );
    }
}
