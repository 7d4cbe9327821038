//! What images are called and what they run on: pure, for whoever pulls and whoever places.

mod platform;
mod reference;

pub use platform::{Platform, choose};
pub use reference::{InvalidReference, Reference};
