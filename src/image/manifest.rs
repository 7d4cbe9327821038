//! Manifests and indexes, of OCI and of Docker, and the choice among builds.
//!
//! Read leniently, by what is in them rather than by media type: registries and archives label them
//! in many ways. Sources: OCI image spec, "Image Manifest" and "Image Index"; Docker's "Image Manifest V 2, Schema 2".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    digest::hex_part,
    store::{CONFIG_BYTES_MAX, LAYERS_MAX},
};
use crate::oci::Platform;

/// Largest manifest or index (bytes); registries refuse larger ones.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether this is a build to run: not a signature or attestation.
    fn is_build(&self) -> bool {
        !self.annotations.contains_key("vnd.docker.reference.type")
            && self.platform.as_ref().is_none_or(|p| p.os != "unknown" && p.architecture != "unknown")
    }
}

/// A manifest (`config`, `layers`) or an index (`manifests`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Document {
    pub schema_version: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
}

/// A manifest that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Document {
    /// Reads either form; the error is for users.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let document: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("malformed manifest: {error}"))?;
        if document.schema_version == 1 {
            return Err(
                "manifest schema 1 is not supported; push the image again with a current tool".to_owned()
            );
        }
        Ok(document)
    }

    /// The checked manifest, unless this is an index.
    pub fn manifest(self) -> Result<Manifest, String> {
        let config = self.config.ok_or("malformed manifest: neither an image nor an index")?;
        if self.layers.len() > LAYERS_MAX {
            return Err(format!("the image has {} layers (at most {LAYERS_MAX})", self.layers.len()));
        }
        if config.size > CONFIG_BYTES_MAX {
            return Err(format!("its configuration has {} bytes (at most {CONFIG_BYTES_MAX})", config.size));
        }
        for descriptor in std::iter::once(&config).chain(&self.layers) {
            if hex_part(&descriptor.digest).is_none() {
                return Err(format!("digest {:?} is not supported (sha256 is)", descriptor.digest));
            }
        }
        Ok(Manifest { config, layers: self.layers })
    }

    pub fn is_index(&self) -> bool {
        self.config.is_none() && !self.manifests.is_empty()
    }

    /// The builds of an index.
    pub fn builds(&self) -> Vec<Descriptor> {
        self.manifests.iter().filter(|descriptor| descriptor.is_build()).cloned().collect()
    }
}

/// The platforms of an index, for a message: `linux/amd64, linux/arm64`.
pub fn platforms<'a>(platforms: impl IntoIterator<Item = &'a Platform>) -> String {
    let mut names: Vec<String> = platforms.into_iter().map(Platform::to_string).collect();
    names.sort();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What this room reads of a configuration before it is stored.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfigHead {
    #[serde(flatten)]
    pub platform: Platform,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

impl ConfigHead {
    /// Reads and checks a configuration for `layers` layers; the error is for users.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, String> {
        let head: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("malformed image configuration: {error}"))?;
        if let Some(wrong) = head.rootfs.diff_ids.iter().find(|id| hex_part(id).is_none()) {
            return Err(format!("malformed image configuration: layer id {wrong:?}"));
        }
        if head.rootfs.diff_ids.len() != layers {
            return Err(format!(
                "the image has {layers} layers and its configuration names {}",
                head.rootfs.diff_ids.len()
            ));
        }
        if layers > LAYERS_MAX {
            return Err(format!("the image has {layers} layers (at most {LAYERS_MAX})"));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_manifests_are_refused() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let many = vec![serde_json::json!({"digest": digest, "size": 1}); LAYERS_MAX + 1];
        for (document, want) in [
            (serde_json::json!({"schemaVersion": 1}), "schema 1"),
            (serde_json::json!({"schemaVersion": 2}), "neither"),
            (
                serde_json::json!({"schemaVersion": 2, "config": {"digest": "sha256:../x", "size": 1}}),
                "not supported",
            ),
            (serde_json::json!({"config": {"digest": digest, "size": 1}, "layers": many}), "at most 127"),
            (serde_json::json!({"config": {"digest": digest, "size": 1_u64 << 40}}), "configuration has"),
        ] {
            let bytes = serde_json::to_vec(&document).unwrap();
            let error = Document::parse(&bytes).and_then(Document::manifest).unwrap_err();
            assert!(error.contains(want), "{error} has no {want}");
        }
    }

    #[test]
    fn attestations_are_no_builds() {
        let index = Document::parse(
            br#"{"schemaVersion":2,"manifests":[
                {"digest":"a","platform":{"os":"linux","architecture":"arm64"}},
                {"digest":"b","platform":{"os":"unknown","architecture":"unknown"}},
                {"digest":"c","annotations":{"vnd.docker.reference.type":"attestation-manifest"}}]}"#,
        )
        .unwrap();
        assert!(index.is_index());
        assert_eq!(index.builds().iter().map(|d| d.digest.as_str()).collect::<Vec<_>>(), ["a"]);
    }
}
