//! Questions that are answered and not stored: who a token is, what somebody may do.

use super::{Durability, ErrorList, FieldError, Kind, Strategy, Value, at::At, registry::row};

/// Refuses a question about nothing, about two things, or (`of_somebody`) about nobody.
fn check_access(review: &Value, of_somebody: bool) -> ErrorList {
    const EXACTLY_ONE: &str = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    let spec = At::root(review).get("spec");
    let mut errors = ErrorList::new();
    let (resource, url) = (spec.get("resourceAttributes"), spec.get("nonResourceAttributes"));
    if resource.is_set() == url.is_set() {
        let at = if url.is_set() { &url } else { &resource };
        errors.push(at.invalid(EXACTLY_ONE));
    }
    if of_somebody && spec.get("user").is_empty() && spec.get("groups").is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    errors
}

const OF_SOMEBODY: Strategy = Strategy { validate: |review| check_access(review, true), ..Strategy::PLAIN };

pub const SELF_SUBJECT_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        "io.k8s.api.authentication.v1.SelfSubjectReview",
    )
};

pub const TOKEN_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authentication.k8s.io",
        "v1",
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        "io.k8s.api.authentication.v1.TokenReview",
    )
};

pub const LOCAL_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    strategy: OF_SOMEBODY,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    )
};

pub const SELF_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    strategy: Strategy { validate: |review| check_access(review, false), ..Strategy::PLAIN },
    namespaced: false,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    )
};

pub const SELF_SUBJECT_RULES_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    )
};

pub const SUBJECT_ACCESS_REVIEW: Kind = Kind {
    strategy: OF_SOMEBODY,
    namespaced: false,
    verbs: &["create"],
    durability: Durability::Virtual,
    ..row(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        "io.k8s.api.authorization.v1.SubjectAccessReview",
    )
};
