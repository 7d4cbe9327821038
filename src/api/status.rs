//! Refusals as Status objects; the one place that knows HTTP status codes.
//!
//! The texts and reasons are those of `k8s.io/apimachinery/pkg/api/errors`.

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::objects;

/// Why a request was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Objects(#[from] objects::Error),
    #[error("Unauthorized")]
    Unauthorized,
    /// The whole message; `resource` and `name` are for the details and may be empty.
    #[error("{message}")]
    Forbidden { resource: String, name: String, message: String },
    /// No such path of a group version that is served.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// No such path, and nobody whose it would be: answered by a text, as Go's own server does.
    #[error("404 page not found")]
    NoSuchPage,
    #[error("the server does not allow this method on the requested resource")]
    NoSuchMethod,
    #[error("only the following media types are accepted: {0}")]
    NotAcceptable(&'static str),
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// A patch that cannot be applied; upstream does not say why.
    #[error("the server rejected our request due to an error in our request")]
    Inapplicable,
    /// A failure for which upstream has no reason: Go's error as it is.
    #[error("{0}")]
    Failed(String),
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// A continue token whose revision is gone; the token continues inconsistently.
    #[error("{message}")]
    ContinueExpired { message: String, token: String },
    /// A resource version that is not yet: tried again after a second.
    #[error("Too large resource version: {asked}, current: {current}")]
    TooLargeResourceVersion { asked: u64, current: u64 },
}

impl Refusal {
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::Objects(objects::Error::BadRequest(message.into()))
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::Objects(objects::Error::Internal(message.into()))
    }

    pub fn code(&self) -> StatusCode {
        use objects::Error as E;
        match self {
            Self::Objects(error) => match error {
                E::NotFound { .. } => StatusCode::NOT_FOUND,
                E::AlreadyExists { .. } | E::Conflict { .. } | E::ApplyConflict { .. } => {
                    StatusCode::CONFLICT
                }
                E::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
                E::BadRequest(_) => StatusCode::BAD_REQUEST,
                E::Forbidden { .. } | E::Terminating { .. } => StatusCode::FORBIDDEN,
                E::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
                E::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
                E::Expired(_) => StatusCode::GONE,
                E::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
                E::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                E::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
                E::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NoSuchPath | Self::NoSuchPage => StatusCode::NOT_FOUND,
            Self::NoSuchMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Inapplicable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::ContinueExpired { .. } => StatusCode::GONE,
            Self::TooLargeResourceVersion { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn reason(&self) -> &'static str {
        use objects::Error as E;
        match self {
            Self::Objects(error) => match error {
                E::NotFound { .. } => "NotFound",
                E::AlreadyExists { .. } => "AlreadyExists",
                E::Conflict { .. } | E::ApplyConflict { .. } => "Conflict",
                E::Invalid { .. } => "Invalid",
                E::BadRequest(_) => "BadRequest",
                E::Forbidden { .. } | E::Terminating { .. } => "Forbidden",
                E::MethodNotAllowed(_) => "MethodNotAllowed",
                E::Unsupported(_) => "NotImplemented",
                E::Expired(_) => "Expired",
                E::TooManyRequests { .. } => "TooManyRequests",
                E::Unavailable(_) => "ServiceUnavailable",
                E::Timeout(_) => "Timeout",
                E::Internal(_) => "InternalError",
            },
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NoSuchPath | Self::NoSuchPage => "NotFound",
            Self::NoSuchMethod => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Self::Inapplicable => "Invalid",
            Self::Failed(_) => "",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::ContinueExpired { .. } => "Expired",
            Self::TooLargeResourceVersion { .. } => "Timeout",
        }
    }

    /// How long a client should wait (seconds), where there is a time.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::Objects(objects::Error::TooManyRequests { retry_after_seconds, .. }) => {
                Some(*retry_after_seconds)
            }
            Self::TooLargeResourceVersion { .. } => Some(1),
            _ => None,
        }
    }

    fn details(&self) -> Option<Value> {
        use objects::Error as E;
        let mut details = match self {
            Self::Objects(error) => match error {
                E::NotFound { resource, name }
                | E::AlreadyExists { resource, name }
                | E::Forbidden { resource, name, .. }
                | E::Conflict { resource, name, .. } => named(resource, name),
                E::Terminating { resource, name, namespace } => {
                    let mut details = named(resource, name);
                    details["causes"] = json!([{"reason": "NamespaceTerminating",
                        "message": format!("namespace {namespace} is being terminated"),
                        "field": "metadata.namespace"}]);
                    details
                }
                E::Invalid { kind, name, errors } => {
                    let mut details = named(kind, name);
                    details["causes"] = errors
                        .iter()
                        .map(|e| json!({"reason": e.kind.reason(), "message": e.body(), "field": e.path}))
                        .collect();
                    details
                }
                E::ApplyConflict { causes, .. } => json!({"causes": causes.iter().map(|(field, message)|
                    json!({"reason": "FieldManagerConflict", "message": message, "field": field})).collect::<Vec<_>>()}),
                E::TooManyRequests { causes, .. } if !causes.is_empty() => json!({"causes": causes.iter()
                    .map(|(reason, message)| json!({"reason": reason, "message": message})).collect::<Vec<_>>()}),
                E::Internal(message) => json!({"causes": [{"message": message}]}),
                _ => return self.retry_after().map(|s| json!({"retryAfterSeconds": s})),
            },
            Self::Forbidden { resource, name, .. } => named(resource, name),
            Self::NoSuchPath | Self::NoSuchMethod | Self::Inapplicable => json!({}),
            Self::TooLargeResourceVersion { .. } => {
                json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]})
            }
            _ => return None,
        };
        if let Some(seconds) = self.retry_after() {
            details["retryAfterSeconds"] = seconds.into();
        }
        Some(details)
    }

    /// The Status object.
    pub fn to_status(&self) -> Value {
        let mut metadata = json!({});
        if let Self::ContinueExpired { token, .. } = self {
            metadata["continue"] = token.as_str().into();
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.to_string(), "code": self.code().as_u16(),
        });
        if !self.reason().is_empty() {
            status["reason"] = self.reason().into();
        }
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        status
    }
}

/// Details of `deployments.apps` or `Deployment.apps` and a name.
fn named(resource: &str, name: &str) -> Value {
    let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
    let mut details = json!({});
    for (field, text) in [("name", name), ("group", group), ("kind", kind)] {
        if !text.is_empty() {
            details[field] = text.into();
        }
    }
    details
}

/// The Status of a delete that left nothing behind.
pub fn deleted(resource: &str, name: &str, uid: &str) -> Value {
    let mut details = named(resource, name);
    details["uid"] = uid.into();
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::FieldError;

    #[test]
    fn refusals_read_as_upstream_writes_them() {
        let missing = objects::Error::NotFound { resource: "deployments.apps".into(), name: "web".into() };
        assert_eq!(
            Refusal::from(missing).to_status(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"web\" not found", "reason": "NotFound",
                "details": {"name": "web", "group": "apps", "kind": "deployments"}, "code": 404})
        );
        let invalid = objects::Error::Invalid {
            kind: "Pod".into(),
            name: "p".into(),
            errors: vec![FieldError::required("spec.containers", "")],
        };
        let status = Refusal::from(invalid).to_status();
        assert_eq!(status["message"], "Pod \"p\" is invalid: spec.containers: Required value");
        assert_eq!(
            status["details"]["causes"],
            json!([{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"}])
        );
    }
}
