//! Why a verb was refused, in the API's own terms. Only `api::status` knows HTTP.

use crate::kinds::{ErrorList, field};

/// A refused verb. `resource` is `Kind::resource()` (`deployments.apps`).
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{resource} {name:?} not found")]
    NotFound { resource: String, name: String },
    #[error("{resource} {name:?} already exists")]
    AlreadyExists { resource: String, name: String },
    /// Optimistic concurrency, preconditions, server-side apply conflicts.
    #[error("Operation cannot be fulfilled on {resource} {name:?}: {message}")]
    Conflict { resource: String, name: String, message: String },
    /// Server-side apply found fields that other managers own: (field path, message).
    #[error("{message}")]
    ApplyConflict { message: String, causes: Vec<(String, String)> },
    /// `kind` is the kind with its group (`Deployment.apps`).
    #[error("{kind} {name:?} is invalid: {}", field::aggregate(errors))]
    Invalid { kind: String, name: String, errors: ErrorList },
    #[error("{0}")]
    BadRequest(String),
    #[error("{resource} {name:?} is forbidden: {message}")]
    Forbidden { resource: String, name: String, message: String },
    /// A namespace that is being deleted takes nothing new.
    #[error(
        "{resource} {name:?} is forbidden: unable to create new content in namespace {namespace} because it is being terminated"
    )]
    Terminating { resource: String, name: String, namespace: String },
    #[error("{0}")]
    MethodNotAllowed(String),
    #[error("{0}")]
    Unsupported(String),
    /// 410: the revision is no longer in history.
    #[error("{0}")]
    Expired(String),
    /// 429 with `Retry-After` (eviction against a budget).
    #[error("{message}")]
    TooManyRequests { message: String, retry_after_seconds: u32, causes: Vec<(String, String)> },
    /// 503: the disk is full or read-only, a node is away.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Timeout(String),
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists { .. })
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
