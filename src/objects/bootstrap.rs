//! What every cluster has from the start: namespaces, priority classes, the API's own Service.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{Error, Objects, WriteOptions, rbac, roles};
use crate::{
    clock,
    kinds::{Subresource, flow_control, registry},
    tasks::CancellationToken,
};

/// Upstream's namespaces.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const CRITICAL_CLUSTER: i64 = 2_000_000_000;
const CRITICAL_NODE: i64 = 2_000_001_000;
/// Marks the one EndpointSlice of `default/kubernetes`.
const NAME: &str = "kubernetes";

/// How often it is looked after what must not be missing (upstream's reconciler of its Service).
const KEEP_PERIOD: Duration = Duration::from_secs(10);

/// Whether upstream's defaults come back (`rbac.AutoUpdateAnnotationKey`).
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What `kubectl get componentstatuses` tells: parts of this process, which answers when they run.
const COMPONENTS: &[&str] = &["controller-manager", "etcd-0", "scheduler"];

/// Adds the rules of `wanted` that a role does not cover; of an aggregated role, the way it is gathered.
fn add_rules(role: &mut Value, wanted: &Value) {
    if wanted["aggregationRule"].is_object() {
        role["aggregationRule"] = wanted["aggregationRule"].clone();
        return;
    }
    let rules = |role: &Value| -> Vec<PolicyRule> {
        serde_json::from_value(role["rules"].clone()).unwrap_or_default()
    };
    let (held, wanted) = (rules(role), rules(wanted));
    let missing = rbac::uncovered(&held, &wanted);
    if !missing.is_empty() {
        let all: Vec<_> = held.iter().chain(missing).collect();
        role["rules"] = json!(all);
    }
}

/// Adds the subjects of `wanted` that a binding does not name.
fn add_subjects(binding: &mut Value, wanted: &Value) {
    let mut all = binding["subjects"].as_array().cloned().unwrap_or_default();
    for subject in wanted["subjects"].as_array().into_iter().flatten() {
        if !all.contains(subject) {
            all.push(subject.clone());
        }
    }
    binding["subjects"] = all.into();
}

fn writer() -> WriteOptions {
    WriteOptions::system("apiserver").tracked_as("kube-apiserver")
}

impl Objects {
    /// Makes what is missing of what every cluster has; `api` is where pods and nodes reach the API.
    pub async fn bootstrap(&self, api: SocketAddr) -> Result<(), Error> {
        let options = writer();
        self.ensure_namespaces(&options).await?;
        for (name, value, what) in [
            (
                "system-cluster-critical",
                CRITICAL_CLUSTER,
                "critical pods that must run in the cluster, but can be moved to another node if necessary.",
            ),
            (
                "system-node-critical",
                CRITICAL_NODE,
                "critical pods that must not be moved from their current node.",
            ),
        ] {
            let class = json!({"metadata": {"name": name}, "value": value,
                "description": format!("Used for system {what}")});
            self.ensure("scheduling.k8s.io/v1", "PriorityClass", "", class, &options).await?;
        }
        for (version, kind, object) in flow_control::mandatory() {
            self.ensure(version, kind, "", object, &options).await?;
        }
        for name in COMPONENTS {
            let condition = json!({"type": "Healthy", "status": "True", "message": "ok"});
            let status = json!({"metadata": {"name": name}, "conditions": [condition]});
            self.ensure("v1", "ComponentStatus", "", status, &options).await?;
        }
        self.ensure_roles(&options).await?;
        self.ensure_service_cidr(&options).await?;
        self.own_service(api, &options).await
    }

    /// Makes again, as long as the server runs, what must not be missing, whoever deleted it; at once
    /// when the API is somewhere else.
    pub async fn keep(
        self,
        mut api: watch::Receiver<SocketAddr>,
        dns: Option<Ipv4Addr>,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        let mut ticks = tokio::time::interval(KEEP_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
                Ok(()) = api.changed() => {}
            }
            let now = *api.borrow_and_update();
            if let Err(error) = self.restore(now, dns).await {
                tracing::warn!(%error, "what every cluster has could not be restored");
            }
        }
    }

    /// One round of [`Self::keep`]: the system's namespaces, the API's Service and the names' Service.
    pub async fn restore(&self, api: SocketAddr, dns: Option<Ipv4Addr>) -> Result<(), Error> {
        let options = writer();
        self.ensure_namespaces(&options).await?;
        self.own_service(api, &options).await?;
        match dns {
            Some(address) => self.bootstrap_dns(address).await,
            None => Ok(()),
        }
    }

    async fn ensure_namespaces(&self, options: &WriteOptions) -> Result<(), Error> {
        for name in NAMESPACES {
            self.ensure("v1", "Namespace", "", json!({"metadata": {"name": name}}), options).await?;
        }
        Ok(())
    }

    /// `kube-system/kube-dns`: holds the address that every node answers names on, so that no other
    /// Service is given it, and shows it where people look for it.
    pub async fn bootstrap_dns(&self, address: Ipv4Addr) -> Result<(), Error> {
        let address = address.to_string();
        let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
            "kubernetes.io/name": "CoreDNS"});
        let service = json!({"metadata": {"name": "kube-dns", "labels": labels}, "spec": {
        "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
        ]}});
        self.ensure("v1", "Service", "kube-system", service, &writer()).await
    }

    /// The ServiceCIDR `kubernetes`: where Services' addresses come from first.
    async fn ensure_service_cidr(&self, options: &WriteOptions) -> Result<(), Error> {
        const VERSION: &str = "networking.k8s.io/v1";
        let Some(settings) = self.settings() else { return Ok(()) };
        let cidr =
            json!({"metadata": {"name": NAME}, "spec": {"cidrs": [settings.service_cidr.to_string()]}});
        self.ensure(VERSION, "ServiceCIDR", "", cidr, options).await?;
        let Some(kind) = registry::by_type(VERSION, "ServiceCIDR") else { return Ok(()) };
        let now = clock::rfc3339_seconds(self.clock().now());
        let ready = |cidr: &mut Value| {
            if cidr["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
                cidr["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "reason": "",
                    "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": now}]);
            }
            Ok(())
        };
        self.modify(kind, Some(Subresource::Status), "", NAME, options, ready).await.map(drop)
    }

    async fn ensure_roles(&self, options: &WriteOptions) -> Result<(), Error> {
        const VERSION: &str = "rbac.authorization.k8s.io/v1";
        for role in roles::cluster_roles() {
            self.reconcile(VERSION, "ClusterRole", role, options, add_rules).await?;
        }
        for binding in roles::cluster_role_bindings() {
            self.reconcile(VERSION, "ClusterRoleBinding", binding, options, add_subjects).await?;
        }
        Ok(())
    }

    /// Makes an object, or gives it again what it should grant, unless it says that it is to be left alone.
    async fn reconcile(
        &self,
        api_version: &str,
        kind: &str,
        wanted: Value,
        options: &WriteOptions,
        add: fn(&mut Value, &Value),
    ) -> Result<(), Error> {
        self.ensure(api_version, kind, "", wanted.clone(), options).await?;
        let Some(kind) = registry::by_type(api_version, kind) else { return Ok(()) };
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
        let change = |object: &mut Value| {
            if object["metadata"]["annotations"][AUTO_UPDATE] != "false" {
                add(object, &wanted);
            }
            Ok(())
        };
        self.modify(kind, None, "", name, options, change).await.map(drop)
    }

    async fn ensure(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        value: Value,
        options: &WriteOptions,
    ) -> Result<(), Error> {
        let Some(kind) = registry::by_type(api_version, kind) else { return Ok(()) };
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if self.get(kind, namespace, name).is_ok() {
            return Ok(());
        }
        match self.create(kind, namespace, value, options).await {
            Err(Error::AlreadyExists { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// `default/kubernetes`: the first Service address leads to the API.
    async fn own_service(&self, api: SocketAddr, options: &WriteOptions) -> Result<(), Error> {
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        if let Some(settings) = self.settings() {
            let address = settings.service_cidr.nth(1).map(|ip| ip.to_string());
            let service = json!({"metadata": {"name": NAME, "labels": labels}, "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api.port()}]}});
            self.ensure("v1", "Service", "default", service, options).await?;
        }
        let family = if matches!(api.ip(), IpAddr::V4(_)) { "IPv4" } else { "IPv6" };
        let slice = json!({"metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": family,
            "endpoints": [{"addresses": [api.ip().to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": api.port(), "protocol": "TCP"}]});
        let endpoints = json!({"metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": api.ip().to_string()}],
                "ports": [{"name": "https", "port": api.port(), "protocol": "TCP"}]}]});
        self.replace("discovery.k8s.io/v1", "EndpointSlice", slice, &["endpoints", "ports"], options).await?;
        self.replace("v1", "Endpoints", endpoints, &["subsets"], options).await
    }

    /// Makes an object of `default`, or makes some fields of it be as they should: the API's
    /// address moves with the board.
    async fn replace(
        &self,
        api_version: &str,
        kind: &str,
        value: Value,
        fields: &[&str],
        options: &WriteOptions,
    ) -> Result<(), Error> {
        self.ensure(api_version, kind, "default", value.clone(), options).await?;
        let Some(kind) = registry::by_type(api_version, kind) else { return Ok(()) };
        let change = |object: &mut Value| {
            for field in fields {
                object[*field] = value[*field].clone();
            }
            Ok(())
        };
        self.modify(kind, None, "default", NAME, options, change).await.map(drop)
    }
}
