//! Patches as pure functions on JSON trees: JSON patch, JSON merge patch, strategic merge patch and
//! server-side apply.
//!
//! In: the live object as a tree, the patch, the type from `kinds::schema`. Out: the new tree, not yet
//! decoded against its type, or a [`PatchError`] that says which HTTP status it deserves.
//! Invariants: every function is bounded by the size of its input; none keeps state.
//! Deliberately absent: reading bodies, storage, clocks (a `now` is an argument).

mod apply;
mod fieldset;
pub mod go;
mod json;
mod managers;
mod strategic;
mod typed;

pub use apply::{ApplyError, Conflicts, Writer, apply, keep_times, track_update};
pub use json::{OPERATIONS_MAX, json_patch, merge_patch};
pub use strategic::strategic_merge;

/// Why a patch does not apply; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400: the patch itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// 422: it does not fit the object.
    #[error("{0}")]
    Unprocessable(String),
    /// 500, as upstream, which takes it for its own failure: it does not fit the type.
    #[error("{0}")]
    Untyped(String),
    /// 413: it asks for too much.
    #[error("{0}")]
    TooLarge(String),
}
