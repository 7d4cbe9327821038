//! What the authoriser of paths cannot see: nobody grants what they do not hold, unless they may
//! `escalate` or `bind`; and nobody approves or signs certificates for a signer that is not theirs
//! (upstream's CertificateApproval and CertificateSigning).

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use serde_json::Value;

use super::{
    authz::{self, Attributes, MASTERS},
    status::Refusal,
    verbs::Call,
};
use crate::{kinds::Subresource, objects};

const CERTIFICATES: &str = "certificates.k8s.io";
const GROUP: &str = "rbac.authorization.k8s.io";

impl Call {
    /// Refuses a role or binding that grants more than its writer holds, and an approval or a
    /// signature of who is not entitled to it.
    pub fn refuse_escalation(&self, value: &Value, old: Option<&Value>) -> Result<(), Refusal> {
        if self.kind.group == CERTIFICATES {
            return self.refuse_signing(value, old);
        }
        if self.kind.group != GROUP || self.user.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        let may = |verb: &'static str, resource: &str, name: &str| {
            let namespace = self.namespace();
            let what = Attributes {
                verb,
                group: GROUP,
                resource: resource.to_owned(),
                name,
                namespace,
                ..Attributes::default()
            };
            authz::allowed(&self.api.objects, &self.user, &what)
        };
        let rules: Vec<PolicyRule> = match self.kind.kind {
            "Role" | "ClusterRole" => {
                let same = old.is_some_and(|old| {
                    old["rules"] == value["rules"] && old["aggregationRule"] == value["aggregationRule"]
                });
                if same || may("escalate", self.kind.plural, name) {
                    return Ok(());
                }
                let any = |resources: bool| PolicyRule {
                    verbs: vec!["*".to_owned()],
                    api_groups: resources.then(|| vec!["*".to_owned()]),
                    resources: resources.then(|| vec!["*".to_owned()]),
                    non_resource_urls: (!resources).then(|| vec!["*".to_owned()]),
                    ..PolicyRule::default()
                };
                if value["aggregationRule"].is_object() {
                    vec![any(true), any(false)]
                } else {
                    serde_json::from_value(value["rules"].clone()).unwrap_or_default()
                }
            }
            _ => {
                let same = old.is_some_and(|old| {
                    old["roleRef"] == value["roleRef"] && old["subjects"] == value["subjects"]
                });
                let Ok(role) = serde_json::from_value::<RoleRef>(value["roleRef"].clone()) else {
                    return Ok(());
                };
                let resource = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
                if same || may("bind", resource, &role.name) {
                    return Ok(());
                }
                authz::role_rules(&self.api.objects, &role, self.namespace()).ok_or_else(|| {
                    objects::Error::NotFound {
                        resource: format!("{resource}.{GROUP}"),
                        name: role.name.clone(),
                    }
                })?
            }
        };
        let held = authz::rules(&self.api.objects, &self.user, self.namespace());
        let missing = authz::uncovered(&held, &rules);
        if missing.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = missing.into_iter().map(authz::shown).collect();
        Err(objects::Error::Forbidden {
            resource: self.kind.resource(),
            name: name.to_owned(),
            message: format!(
                "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
                self.user.name,
                self.user.groups.iter().map(|group| format!("{group:?}")).collect::<Vec<_>>().join(" "),
                shown.join("\n")
            ),
        }
        .into())
    }

    fn refuse_signing(&self, value: &Value, old: Option<&Value>) -> Result<(), Refusal> {
        let Some(old) = old else { return Ok(()) };
        let (new_status, old_status) = (&value["status"], &old["status"]);
        let verb = match self.subresource {
            Some(Subresource::Other("approval")) => "approve",
            Some(Subresource::Status)
                if new_status["certificate"] != old_status["certificate"]
                    || new_status["conditions"] != old_status["conditions"] =>
            {
                "sign"
            }
            _ => return Ok(()),
        };
        let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
        let any = format!("{}/*", signer.split('/').next().unwrap_or_default());
        let may = |name: &str| {
            let resource = "signers".to_owned();
            let what = Attributes { verb, group: CERTIFICATES, resource, name, ..Attributes::default() };
            authz::allowed(&self.api.objects, &self.user, &what)
        };
        if may(signer) || may(&any) {
            return Ok(());
        }
        Err(objects::Error::Forbidden {
            resource: self.kind.resource(),
            name: self.path.name.clone(),
            message: format!("user not permitted to {verb} requests with signerName {signer:?}"),
        }
        .into())
    }
}
