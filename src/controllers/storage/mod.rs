//! Storage: claims find volumes, volumes are made and taken back, and neither goes while in use.
//!
//! [`claims`] binds PersistentVolumeClaims; [`ephemeral`] makes those of pods; [`volumes`] keeps PersistentVolumes' phases and
//! reclaims them; [`protection`] holds both while they are in use; [`local_path`] is the built-in
//! provisioner, which makes folders on nodes.

mod claims;
mod ephemeral;
pub mod local_path;
mod protection;
mod volumes;

pub use claims::ClaimController;
pub use ephemeral::EphemeralVolumeController;
pub use protection::{ClaimProtectionController, VolumeProtectionController};
pub use volumes::VolumeController;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim};

use super::plan::reference;

/// How a volume refers to its claim.
fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    reference(claim)
}

#[cfg(test)]
mod tests;
