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
    objects::User,
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

impl Call {
    /// Answers a review.
    pub fn review(&self, mut review: Value) -> Result<Reply, Refusal> {
        let spec = review["spec"].clone();
        match self.kind.kind {
            "SelfSubjectReview" => {
                review["metadata"]["creationTimestamp"] = rfc3339_seconds(self.api.time.now()).into();
                review["status"] = json!({"userInfo": user_info(&self.user)});
            }
            "TokenReview" => review["status"] = self.review_token(&spec),
            "SelfSubjectAccessReview" => review["status"] = self.review_access(&self.user, &spec)?,
            "SubjectAccessReview" | "LocalSubjectAccessReview" => {
                let extra = spec["extra"].as_object().into_iter().flatten();
                let user = User {
                    name: text(&spec["user"]),
                    uid: text(&spec["uid"]),
                    groups: texts(&spec["groups"]),
                    extra: extra.map(|(k, v)| (k.clone(), texts(v))).collect(),
                };
                if user.name.is_empty() && user.groups.is_empty() {
                    return Err(Refusal::bad_request(
                        "spec.user: at least one of user or group must be specified",
                    ));
                }
                let namespace = text(&spec["resourceAttributes"]["namespace"]);
                if self.kind.namespaced && namespace != self.path.namespace {
                    return Err(Refusal::bad_request(
                        "spec.resourceAttributes.namespace must match metadata.namespace",
                    ));
                }
                review["status"] = self.review_access(&user, &spec)?;
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

    fn review_access(&self, user: &User, spec: &Value) -> Result<Value, Refusal> {
        let (of_resource, of_path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let field = |value: &'_ Value, name: &str| text(&value[name]);
        let answer = if of_path.is_null() && !of_resource.is_null() {
            let (verb, group) = (field(of_resource, "verb"), field(of_resource, "group"));
            let (name, namespace) = (field(of_resource, "name"), field(of_resource, "namespace"));
            let mut resource = field(of_resource, "resource");
            let subresource = field(of_resource, "subresource");
            if !subresource.is_empty() {
                resource = format!("{resource}/{subresource}");
            }
            let what = Attributes {
                verb: &verb,
                group: &group,
                resource,
                name: &name,
                namespace: &namespace,
                path: "",
            };
            authz::allowed(&self.api.objects, user, &what)
        } else if of_resource.is_null() && !of_path.is_null() {
            let (verb, path) = (field(of_path, "verb"), field(of_path, "path"));
            let what = Attributes { verb: &verb, path: &path, ..Attributes::default() };
            authz::allowed(&self.api.objects, user, &what)
        } else {
            return Err(Refusal::bad_request(
                "spec.resourceAttributes: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        };
        Ok(json!({"allowed": answer}))
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
