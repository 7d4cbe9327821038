//! What images are built for, as nodes have learned it from registries, and which node runs what.
//!
//! A node tells in two annotations: what it runs, and what it lately learned. What nobody has
//! learned yet is not held against an image.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, PodSpec};

use crate::oci::{Platform, Reference};

/// The annotation of a node with its platform: `linux/arm/v6`.
pub const PLATFORM: &str = "sampan.dev/platform";
/// The annotation of a node with what it learned: a JSON object of lists of platforms by reference.
pub const IMAGES: &str = "sampan.dev/image-platforms";

/// Platforms by full reference.
pub type Learned = BTreeMap<String, BTreeSet<String>>;

fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// What a node runs.
pub fn platform(node: &Node) -> Option<Platform> {
    let own = annotation(node, PLATFORM).and_then(|text| text.parse().ok());
    let info = || node.status.as_ref()?.node_info.as_ref();
    own.or_else(|| Some(Platform::linux(&info()?.architecture, "")))
}

/// What a node has learned; nothing where the annotation cannot be read.
pub fn learned(node: &Node) -> Learned {
    annotation(node, IMAGES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Adds what one node learned to what all have.
pub fn add(all: &mut Learned, some: &Learned) {
    for (image, platforms) in some {
        all.entry(image.clone()).or_default().extend(platforms.iter().cloned());
    }
}

/// The images of a pod whose builds are known.
#[derive(Debug, Default)]
pub struct Wanted(Vec<(String, Vec<Platform>)>);

impl Wanted {
    pub fn of(spec: &PodSpec, learned: &Learned) -> Self {
        if learned.is_empty() {
            return Self::default();
        }
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let known = |image: &String| {
            let full = image.parse::<Reference>().ok()?.to_string();
            let builds = learned.get(&full)?.iter().filter_map(|text| text.parse().ok()).collect();
            Some((full, builds))
        };
        Self(containers.filter_map(|c| c.image.as_ref()).filter_map(known).collect())
    }

    /// The first image that a node has no build of and cannot get one for, and what there is.
    pub fn misfit(&self, node: &Node) -> Option<(&str, String)> {
        if self.0.is_empty() {
            return None;
        }
        let host = platform(node)?;
        let present = |image: &str| {
            let images = node.status.as_ref().and_then(|s| s.images.as_ref());
            let mut names = images.into_iter().flatten().flat_map(|i| i.names.iter().flatten());
            names.any(|name| name == image)
        };
        let (image, builds) = self.0.iter().find(|(image, builds)| {
            builds.iter().all(|build| build.rank_on(&host).is_none()) && !present(image)
        })?;
        let names: Vec<String> = builds.iter().map(Platform::to_string).collect();
        Some((image, names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_board_without_a_build_is_a_misfit() {
        let node = |platform: &str, present: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "annotations": {PLATFORM: platform}},
                "status": {"images": [{"names": [present]}]}}))
            .unwrap()
        };
        let teller: Node = serde_json::from_value(json!({"metadata": {"annotations":
            {IMAGES: r#"{"docker.io/library/web:1": ["linux/arm/v7", "linux/arm64"]}"#}}}))
        .unwrap();
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "c", "image": "web:1"}]})).unwrap();
        let wanted = Wanted::of(&spec, &learned(&teller));
        let has = "linux/arm/v7, linux/arm64".to_owned();
        for (platform, expected) in [
            ("linux/amd64", Some(has.clone())),
            ("linux/arm/v6", Some(has)),
            ("linux/arm64/v8", None),
            ("linux/arm/v7", None),
        ] {
            assert_eq!(wanted.misfit(&node(platform, "x")).map(|(_, has)| has), expected, "{platform}");
        }
        assert!(wanted.misfit(&node("linux/amd64", "docker.io/library/web:1")).is_none(), "imported by hand");
        assert!(Wanted::of(&spec, &Learned::new()).misfit(&node("linux/amd64", "x")).is_none());
    }
}
