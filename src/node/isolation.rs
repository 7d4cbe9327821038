//! Which addresses this node's pods have, and up to when the NetworkPolicies about them are in force.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Mutex, time::Duration};

use tokio::sync::{Notify, watch};

/// How long a pod waits for its isolation before its set-up fails and is tried again.
const ISOLATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The addresses of this node's pods, for the NetworkPolicies about them.
#[derive(Default)]
pub struct Isolation {
    held: Mutex<(u64, BTreeMap<String, Ipv4Addr>)>,
    /// Addresses have come or gone.
    pub changed: Notify,
    /// Up to which change the policies are in force, and why not if they are not.
    done: watch::Sender<(u64, Option<String>)>,
}

impl Isolation {
    /// How many changes there were, and the addresses by pod uid.
    pub fn addresses(&self) -> (u64, BTreeMap<String, Ipv4Addr>) {
        self.held.lock().expect("no holder of the addresses' lock panics").clone()
    }

    /// Notes an address, or that there is none any more; returns the number of the change.
    pub fn set(&self, uid: &str, address: Option<Ipv4Addr>) -> u64 {
        let mut held = self.held.lock().expect("no holder of the addresses' lock panics");
        let before = match address {
            Some(address) => held.1.insert(uid.to_owned(), address),
            None => held.1.remove(uid),
        };
        if before != address {
            held.0 += 1;
            self.changed.notify_one();
        }
        held.0
    }

    /// Tells that the policies are in force up to this change, or why not.
    pub fn enforced(&self, change: u64, error: Option<String>) {
        self.done.send_replace((change, error));
    }

    /// Returns once the policies are in force up to this change.
    ///
    /// # Errors
    /// Why they could not be enforced.
    pub async fn wait(&self, change: u64) -> Result<(), String> {
        let mut done = self.done.subscribe();
        let reached =
            tokio::time::timeout(ISOLATION_TIMEOUT, done.wait_for(|(reached, _)| *reached >= change));
        match reached.await {
            Ok(Ok(done)) => done.1.clone().map_or(Ok(()), Err),
            Ok(Err(_)) => Err("the agent ends".to_owned()),
            Err(_) => Err("the pod network is not ready".to_owned()),
        }
    }
}
