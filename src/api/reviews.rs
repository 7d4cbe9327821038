//! Questions about who and may: the kinds that are answered and not stored.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    authn,
    authz::{self, Attributes},
    reply::Reply,
    status::Refusal,
    verbs::Call,
};
use crate::{
    clock::{Clock as _, rfc3339_seconds},
    kinds::FieldError,
    objects::{self, User},
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// A user as `authentication.k8s.io` writes it.
fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// The one node that a field selector of a review names (`spec.nodeName`).
fn selected_node(selector: &Value) -> String {
    let requirements = selector["requirements"].as_array().into_iter().flatten();
    let of_node = |r: &&Value| r["key"] == "spec.nodeName" && r["operator"] == "In";
    match requirements.filter(of_node).map(|r| texts(&r["values"])).next().as_deref() {
        Some([node]) => node.clone(),
        _ => String::new(),
    }
}

impl Call {
    /// Answers a review.
    pub fn review(&self, mut review: Value) -> Result<Reply, Refusal> {
        let spec = review["spec"].clone();
        self.refuse_invalid_review(&review)?;
        match self.kind.kind {
            "SelfSubjectReview" => {
                review["metadata"]["creationTimestamp"] = rfc3339_seconds(self.api.time.now()).into();
                review["status"] = json!({"userInfo": user_info(&self.user)});
            }
            "TokenReview" => review["status"] = self.review_token(&spec),
            "SelfSubjectAccessReview" => review["status"] = self.review_access(&self.user, &spec),
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                let extra = spec["extra"].as_object().into_iter().flatten();
                let user = User {
                    name: text(&spec["user"]),
                    uid: text(&spec["uid"]),
                    groups: texts(&spec["groups"]),
                    extra: extra.map(|(k, v)| (k.clone(), texts(v))).collect(),
                };
                review["status"] = self.review_access(&user, &spec);
            }
            "SelfSubjectRulesReview" => {
                let namespace = text(&spec["namespace"]);
                if namespace.is_empty() {
                    return Err(Refusal::bad_request("no namespace on request"));
                }
                review["status"] = self.review_rules(&namespace);
            }
            _ => return Err(Refusal::NoSuchMethod),
        }
        self.value(StatusCode::CREATED, &review)
    }

    fn review_token(&self, spec: &Value) -> Value {
        let wanted = texts(&spec["audiences"]);
        let now = self.api.time.now();
        match authn::of_token(&self.api.objects, &text(&spec["token"]), &wanted, now) {
            Some((user, audiences)) => {
                json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
            }
            None => json!({"user": {}, "error": "invalid bearer token"}),
        }
    }

    /// `pkg/apis/authorization/validation`.
    fn refuse_invalid_review(&self, review: &Value) -> Result<(), Refusal> {
        if !self.kind.kind.ends_with("AccessReview") {
            return Ok(());
        }
        let mut errors = Vec::new();
        let spec = &review["spec"];
        let (of_resource, of_path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let local = self.kind.kind == "LocalSubjectAccessReview";
        if !of_resource.is_null() && !of_path.is_null() {
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", of_path.clone(), why));
        }
        if of_resource.is_null() && of_path.is_null() {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, why));
        }
        let nobody = text(&spec["user"]).is_empty() && texts(&spec["groups"]).is_empty();
        if nobody && self.kind.kind != "SelfSubjectAccessReview" {
            errors.push(FieldError::invalid(
                "spec.user",
                "",
                "at least one of user or group must be specified",
            ));
        }
        if local {
            let namespace = &of_resource["namespace"];
            if !of_resource.is_null() && text(namespace) != self.path.namespace {
                let path = "spec.resourceAttributes.namespace";
                errors.push(FieldError::invalid(path, text(namespace), "must match metadata.namespace"));
            }
            if !of_path.is_null() {
                let why = "disallowed on this kind of request";
                errors.push(FieldError::invalid("spec.nonResourceAttributes", of_path.clone(), why));
            }
        }
        if errors.is_empty() {
            return Ok(());
        }
        let kind = format!("{}.{}", self.kind.kind, self.kind.group);
        Err(objects::Error::Invalid { kind, name: String::new(), errors }.into())
    }

    fn review_access(&self, user: &User, spec: &Value) -> Value {
        let (of_resource, of_path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let field = |value: &'_ Value, name: &str| text(&value[name]);
        let answer = if of_path.is_null() {
            let (verb, group) = (field(of_resource, "verb"), field(of_resource, "group"));
            let (name, namespace) = (field(of_resource, "name"), field(of_resource, "namespace"));
            let mut resource = field(of_resource, "resource");
            let subresource = field(of_resource, "subresource");
            if !subresource.is_empty() {
                resource = format!("{resource}/{subresource}");
            }
            let of_node = selected_node(&of_resource["fieldSelector"]);
            let what = Attributes {
                verb: &verb,
                group: &group,
                resource,
                name: &name,
                namespace: &namespace,
                path: "",
                of_node: &of_node,
            };
            authz::decide(&self.api.objects, user, &what)
        } else {
            let (verb, path) = (field(of_path, "verb"), field(of_path, "path"));
            let what = Attributes { verb: &verb, path: &path, ..Attributes::default() };
            authz::decide(&self.api.objects, user, &what)
        };
        let mut status = json!({"allowed": answer.is_ok()});
        let reason = answer.unwrap_or_else(|why| why);
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        status
    }

    fn review_rules(&self, namespace: &str) -> Value {
        let mut rules = authz::rules(&self.api.objects, &self.user, namespace);
        if self.user.groups.iter().any(|g| g == authz::MASTERS) {
            let any = vec!["*".to_owned()];
            rules.push(k8s_openapi::api::rbac::v1::PolicyRule {
                verbs: any.clone(),
                api_groups: Some(any.clone()),
                resources: Some(any.clone()),
                ..Default::default()
            });
            rules.push(k8s_openapi::api::rbac::v1::PolicyRule {
                verbs: any.clone(),
                non_resource_urls: Some(any),
                ..Default::default()
            });
        }
        let (mut of_resources, mut of_paths) = (Vec::new(), Vec::new());
        for rule in rules {
            if let Some(urls) = rule.non_resource_urls.filter(|u| !u.is_empty()) {
                of_paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": urls}));
            } else {
                let mut own = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups.unwrap_or_default(),
                    "resources": rule.resources.unwrap_or_default()});
                if let Some(names) = rule.resource_names.filter(|n| !n.is_empty()) {
                    own["resourceNames"] = names.into();
                }
                of_resources.push(own);
            }
        }
        json!({"resourceRules": of_resources, "nonResourceRules": of_paths, "incomplete": false})
    }
}
