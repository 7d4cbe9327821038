//! Questions that are answered and not stored: who a token is, what somebody may do.

use super::{Durability, Kind, registry::row};

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
