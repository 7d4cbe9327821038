//! The services as this node sees them, read anew only where they have changed: what stays the same is
//! the same value, by which the network knows it.

use std::sync::Arc;

use crate::{
    mqtt::messages::Item,
    net::{ServicePort, Viewpoint, cidr::Cidr},
};

type Ports = Vec<Arc<ServicePort>>;

#[derive(Default)]
pub(super) struct Services {
    /// Where they are seen from: the node's zone, its pods.
    place: Option<(String, Cidr)>,
    /// In the order of their keys.
    read: Vec<(Arc<Item>, Ports)>,
}

impl Services {
    /// All services of these items, which are in the order of their keys.
    pub fn update(&mut self, items: Vec<Arc<Item>>, here: Option<Viewpoint<'_>>) -> Ports {
        let mut known = std::mem::take(&mut self.read);
        let place = here.map(|here| (here.zone.to_owned(), here.pods));
        if self.place != place {
            self.place = place;
            known.clear();
        }
        let mut known = known.into_iter().peekable();
        for item in items {
            while known.next_if(|(other, _)| other.key < item.key).is_some() {}
            let same = known.next_if(|(other, _)| other.key == item.key && other.hash == item.hash);
            let ports = same.map_or_else(|| read(&item, here), |(_, ports)| ports);
            self.read.push((item, ports));
        }
        self.read.iter().flat_map(|(_, ports)| ports).cloned().collect()
    }
}

fn read(item: &Item, here: Option<Viewpoint<'_>>) -> Ports {
    let mut ports: Vec<ServicePort> = item.read().unwrap_or_else(|error| {
        tracing::error!(%error, "a service cannot be read");
        Vec::new()
    });
    if let Some(here) = here {
        for port in &mut ports {
            port.see_from(here);
        }
    }
    ports.into_iter().map(Arc::new).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mqtt::messages::{ItemKey, ItemKind};

    fn item(name: &str, addresses: &[&str]) -> Arc<Item> {
        let backends: Vec<_> = addresses.iter().map(|a| json!({"address": a, "port": 80})).collect();
        let port = json!({
            "name": name, "protocol": "Tcp", "port": 80, "cluster_ips": [], "external_ips": [],
            "node_port": null, "affinity_seconds": null, "external_local": false, "internal_local": false,
            "source_ranges": [], "backends": backends,
        });
        let key = ItemKey { kind: ItemKind::Service, namespace: "default".to_owned(), name: name.to_owned() };
        Arc::new(Item::new(key, json!([port]).to_string()))
    }

    #[test]
    fn only_what_changed_is_another_value() {
        let mut services = Services::default();
        let here =
            |zone| Some(Viewpoint { node: "n", zone, pods: "10.42.0.0/24".parse().expect("a network") });
        let (a, b, c) = (item("a", &["10.42.0.2"]), item("b", &["10.42.1.2"]), item("c", &[]));
        let first = services.update(vec![a.clone(), b.clone(), c.clone()], here(""));
        assert_eq!(first.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!([&first[0], &first[1]].map(|s| s.backends[0].local), [true, false]);
        // One is gone, one is different, one is new.
        let changed = item("b", &["10.42.0.3"]);
        let second = services.update(vec![changed, c.clone(), item("d", &[])], here(""));
        assert!(second[0].backends[0].local && !Arc::ptr_eq(&second[0], &first[1]));
        assert!(Arc::ptr_eq(&second[1], &first[2]));
        assert_eq!(second[2].name, "d");
        // Seen from elsewhere all may be different.
        let third = services.update(vec![c], here("zone"));
        assert!(!Arc::ptr_eq(&third[0], &first[2]));
    }
}
