//! The parts of the desired set that the node's network and its servers stand on.

use serde::de::DeserializeOwned;

use super::{Agent, Mail, health};
use crate::{
    mqtt::messages::ItemKind,
    net::{Peer, Viewpoint, cidr::Cidr, policy},
};

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

impl Agent {
    /// Starts the network when the node's range of addresses is known, or has changed.
    pub(super) async fn apply_config(&mut self) {
        let config = self.shared.config();
        if self.unschedulable != config.unschedulable {
            self.unschedulable = config.unschedulable;
            let reason = if config.unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" };
            let message = format!("Node {} status is now: {reason}", self.shared.options.node);
            self.shared.node_event(false, reason, message);
        }
        if config.pod_cidr.is_empty() || config.pod_cidr == self.network_start {
            return;
        }
        if let Err(error) = self.shared.addresses().set_range(&config.pod_cidr) {
            tracing::error!(error, "the master gave a bad range of addresses");
            return;
        }
        match self.shared.network.start(&config.pod_cidr).await {
            Ok(()) => {
                self.network_start = config.pod_cidr;
                if !self.shared.set_network_error(String::new()).is_empty() {
                    self.tell_all(Mail::Items).await;
                }
                self.apply_peers().await;
                self.apply_policies().await;
                self.apply_services().await;
            }
            Err(error) => {
                tracing::error!(%error, "starting the pod network");
                self.shared.set_network_error(error.to_string());
            }
        }
        if self.welcome {
            self.look_at_state();
            self.send_news().await;
        }
    }

    fn bodies<T: DeserializeOwned>(&self, kind: ItemKind) -> Vec<T> {
        let items = self.shared.ledger.items(kind);
        items
            .iter()
            .filter_map(|item| {
                item.read().map_err(|error| tracing::error!(%error, "an item cannot be read")).ok()
            })
            .collect()
    }

    pub(super) async fn apply_peers(&mut self) {
        let peers: Vec<Peer> = self.bodies::<Vec<Peer>>(ItemKind::Peers).into_iter().flatten().collect();
        if self.peers.as_ref() == Some(&peers) || self.network_start.is_empty() {
            return;
        }
        match self.shared.network.set_peers(&peers).await {
            Ok(()) => self.peers = Some(peers),
            Err(error) => {
                tracing::error!(%error, "setting the ways to other nodes");
                self.peers = None;
            }
        }
    }

    /// Tells of nodes behind another router that do not answer.
    pub(super) fn tell_silent_peers(&mut self) {
        let silent = self.shared.network.silent_peers();
        for peer in silent.difference(&self.silent) {
            let message = format!(
                "node {peer} does not answer through the tunnel: pods here and there do not reach each \
                 other. It is off, or a router between lets no UDP through or changes source ports \
                 (docs/network.md)"
            );
            self.shared.node_event(true, "NodeNotReached", message);
        }
        self.silent = silent;
    }

    pub(super) async fn apply_services(&mut self) {
        let labels = self.shared.config().labels;
        let zone = labels.get(ZONE).map(String::as_str).unwrap_or_default();
        let pods = self.network_start.parse::<Cidr>().ok();
        let here = pods.map(|pods| Viewpoint { node: &self.shared.options.node, zone, pods });
        let services = self.services_read.update(self.shared.ledger.items(ItemKind::Service), here);
        let ports: Vec<_> = {
            let held = self.shared.host_ports.lock().expect("no holder of the ports' lock panics");
            held.values().flatten().cloned().collect()
        };
        let all = (services, ports);
        if self.services.as_ref() == Some(&all) || self.network_start.is_empty() {
            return;
        }
        match self.shared.network.set_services(&all.0, &all.1).await {
            Ok(shortfalls) => {
                for shortfall in &shortfalls {
                    if !self.shortfalls.contains(shortfall) {
                        let message = format!("Services are not whole on this node: {shortfall}");
                        self.shared.node_event(true, "ServicesIncomplete", message);
                    }
                }
                self.shortfalls = shortfalls;
                let health = health(&all.0);
                self.tables.send_if_modified(|tables| {
                    let changed = tables.health != health;
                    tables.health = health;
                    changed
                });
                self.services = Some(all);
            }
            Err(error) => {
                tracing::error!(%error, "setting the services");
                self.services = None;
            }
        }
    }

    /// Isolates this node's pods; those that wait for it may start.
    pub(super) async fn apply_policies(&mut self) {
        if self.network_start.is_empty() {
            return;
        }
        let (change, addresses) = self.shared.isolation.addresses();
        let pods = policy::of_pods(&self.bodies(ItemKind::Policy), &addresses);
        let mut error = None;
        if self.policies.as_ref() != Some(&pods) {
            match self.shared.network.set_policies(&pods).await {
                Ok(()) => self.policies = Some(pods),
                Err(cause) => {
                    tracing::error!(error = %cause, "isolating pods");
                    self.policies = None;
                    error = Some(cause.to_string());
                }
            }
        }
        self.shared.isolation.enforced(change, error);
    }

    pub(super) fn publish_tables(&self) {
        let ledger = &self.shared.ledger;
        self.tables.send_modify(|tables| {
            tables.config = self.shared.config();
            tables.dns = ledger.items(ItemKind::Dns);
            tables.ingress = ledger.items(ItemKind::Ingress);
        });
    }
}
