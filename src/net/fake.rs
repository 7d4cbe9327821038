//! A network of plain values, for simulations and tests of what stands above [`Network`].
//!
//! In: the calls of [`Network`]. Out: [`FakeState`], which a test can look at or wait on.
//! Deliberately absent: packets.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::{BoxFuture, ready};
use tokio::sync::watch;

use super::{Error, HostPort, Network, Peer, ServicePort, policy::PodPolicy};

/// What the calls so far have asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FakeState {
    /// The pod CIDR of [`Network::start`]; `None` before it and after [`Network::stop`].
    pub pod_cidr: Option<String>,
    /// By pod uid.
    pub attached: BTreeMap<String, (PathBuf, Ipv4Addr)>,
    pub peers: Vec<Peer>,
    pub services: Vec<Arc<ServicePort>>,
    pub host_ports: Vec<HostPort>,
    pub policies: Vec<PodPolicy>,
    /// While set, every call fails with this text.
    pub failure: Option<String>,
}

/// A [`Network`] without a kernel.
#[derive(Debug, Default)]
pub struct FakeNetwork(watch::Sender<FakeState>);

impl FakeNetwork {
    /// A network nobody has started yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now, and a way to wait on its changes.
    pub fn watch(&self) -> watch::Receiver<FakeState> {
        self.0.subscribe()
    }

    /// Makes all calls fail with `failure` until it is `None` again.
    pub fn set_failure(&self, failure: Option<String>) {
        self.0.send_modify(|state| state.failure = failure);
    }

    fn call(
        &self,
        operation: &str,
        change: impl FnOnce(&mut FakeState),
    ) -> BoxFuture<'static, Result<(), Error>> {
        let mut result = Ok(());
        self.0.send_modify(|state| match &state.failure {
            Some(text) => {
                result = Err(Error::Kernel {
                    operation: operation.to_owned(),
                    source: std::io::Error::other(text.clone()),
                });
            }
            None => change(state),
        });
        Box::pin(ready(result))
    }
}

impl Network for FakeNetwork {
    fn start<'a>(&'a self, pod_cidr: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.call("start the network", |state| state.pod_cidr = Some(pod_cidr.to_owned()))
    }

    fn attach<'a>(
        &'a self,
        pod_uid: &'a str,
        netns: &'a Path,
        address: Ipv4Addr,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.call("attach a pod", |state| {
            state.attached.insert(pod_uid.to_owned(), (netns.to_owned(), address));
        })
    }

    fn detach<'a>(&'a self, pod_uid: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.call("detach a pod", |state| {
            state.attached.remove(pod_uid);
        })
    }

    fn set_peers<'a>(&'a self, peers: &'a [Peer]) -> BoxFuture<'a, Result<(), Error>> {
        self.call("set peers", |state| state.peers = peers.to_vec())
    }

    fn set_services<'a>(
        &'a self,
        services: &'a [Arc<ServicePort>],
        host_ports: &'a [HostPort],
    ) -> BoxFuture<'a, Result<Vec<String>, Error>> {
        let done = self.call("set services", |state| {
            state.services = services.to_vec();
            state.host_ports = host_ports.to_vec();
        });
        Box::pin(async { done.await.map(|()| Vec::new()) })
    }

    fn set_policies<'a>(&'a self, policies: &'a [PodPolicy]) -> BoxFuture<'a, Result<(), Error>> {
        self.call("set policies", |state| state.policies = policies.to_vec())
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.call("stop the network", |state| {
            *state = FakeState { failure: state.failure.take(), ..FakeState::default() };
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_change_the_state_that_a_test_waits_on() {
        let net = FakeNetwork::new();
        let mut watch = net.watch();
        net.start("10.42.0.0/24").await.unwrap();
        net.attach("uid", Path::new("/run/ns"), Ipv4Addr::new(10, 42, 0, 2)).await.unwrap();
        let state = watch.wait_for(|state| state.attached.contains_key("uid")).await.unwrap().clone();
        assert_eq!(state.pod_cidr.as_deref(), Some("10.42.0.0/24"));
        net.set_failure(Some("no".to_owned()));
        assert_eq!(net.detach("uid").await.unwrap_err().to_string(), "detach a pod: no");
        net.set_failure(None);
        net.detach("uid").await.unwrap();
        assert!(watch.borrow_and_update().attached.is_empty());
    }
}
