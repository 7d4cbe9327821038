//! Subresources that are neither status nor streams: scale, binding, eviction, token, finalize,
//! approval, ephemeralcontainers, resize.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    body::{self, Expected, FieldValidation},
    negotiate,
    reply::Reply,
    status::Refusal,
    verbs::Call,
};
use crate::{
    clock::{Clock as _, rfc3339_seconds},
    kinds::{
        Subresource, field,
        pod::BINDING,
        schema::{self, Type},
    },
    objects::{
        Binding, scale,
        token::{Bound, TokenSpec},
    },
};

fn type_named(name: &str) -> Result<&'static Type, Refusal> {
    schema::lookup(name).ok_or_else(|| Refusal::internal(format!("{name} has no schema")))
}

pub fn scale_schema() -> Result<&'static Type, Refusal> {
    type_named("io.k8s.api.autoscaling.v1.Scale")
}

impl Call {
    /// `GET` of a subresource that has an object of its own.
    pub fn get_subresource(&self, subresource: Subresource) -> Result<Reply, Refusal> {
        let object = self.api.objects.get(self.stored, self.namespace(), &self.path.name)?;
        match subresource {
            Subresource::Scale => self.value(StatusCode::OK, &scale::of(&object.value())),
            Subresource::Status | Subresource::Other("ephemeralcontainers" | "resize" | "approval") => {
                self.object(StatusCode::OK, &object)
            }
            Subresource::Other(_) => Err(Refusal::NoSuchMethod),
        }
    }

    /// `PUT` of a Scale.
    pub async fn update_scale(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let options = self.write_options()?;
        let wanted = self.body_of(bytes, "autoscaling/v1", "Scale", scale_schema()?)?;
        let (kind, name) = (self.stored, self.path.name.clone());
        let objects = &self.api.objects;
        let updated = objects
            .modify(kind, self.subresource, self.namespace(), &name, &options, |object| {
                scale::apply(kind, object, &wanted)
            })
            .await?;
        self.value(StatusCode::OK, &scale::of(&updated.value()))
    }

    /// `POST` to a subresource.
    pub async fn create_subresource(&mut self, name: &str, bytes: &Bytes) -> Result<Reply, Refusal> {
        match name {
            "binding" => self.bind(bytes).await,
            "eviction" => self.evict(bytes).await,
            "token" => self.token(bytes),
            _ => Err(Refusal::NoSuchMethod),
        }
    }

    fn body_of(
        &mut self,
        bytes: &Bytes,
        api_version: &str,
        kind: &str,
        schema: &'static Type,
    ) -> Result<Value, Refusal> {
        let encoding = negotiate::body_encoding(&self.headers)?;
        let expected = Expected { api_version, kind, schema };
        let validation = FieldValidation::parse(&self.query, "CreateOptions.meta.k8s.io")?;
        let value = body::object(bytes, encoding, &expected, validation, &mut self.warnings)?;
        let named = value["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && named != self.path.name {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({named}) does not match the name on the URL ({})",
                self.path.name
            )));
        }
        Ok(value)
    }

    async fn bind(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let options = self.write_options()?;
        let schema = type_named("io.k8s.api.core.v1.Binding")?;
        let binding = self.body_of(bytes, "v1", "Binding", schema)?;
        self.bind_to(&self.path.name.clone(), &binding, &options).await
    }

    /// Binds a pod as a Binding says (`pods/binding`, `bindings`).
    pub async fn bind_to(
        &self,
        pod: &str,
        binding: &Value,
        options: &crate::objects::WriteOptions,
    ) -> Result<Reply, Refusal> {
        if binding["metadata"]["name"].as_str() != Some(pod) {
            return Err(Refusal::bad_request("name in URL does not match name in Binding object"));
        }
        let errors = (BINDING.strategy.validate)(binding);
        if !errors.is_empty() {
            return Err(Refusal::Failed(field::aggregate(&errors)));
        }
        self.api.objects.bind(self.namespace(), pod, &Binding::of(binding), options).await?;
        self.value(StatusCode::CREATED, &success())
    }

    async fn evict(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let mut options = self.write_options()?;
        let schema = type_named("io.k8s.api.policy.v1.Eviction")?;
        let eviction = self.body_of(bytes, "policy/v1", "Eviction", schema)?;
        let (delete, dry_run) = self.delete_options_of(&eviction["deleteOptions"])?;
        options.dry_run |= dry_run;
        self.api.objects.evict(self.namespace(), &self.path.name, &delete, &options).await?;
        self.value(StatusCode::CREATED, &success())
    }

    fn token(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let schema = type_named("io.k8s.api.authentication.v1.TokenRequest")?;
        let request = self.body_of(bytes, "authentication.k8s.io/v1", "TokenRequest", schema)?;
        let spec = &request["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bound = &spec["boundObjectRef"];
        let asked = TokenSpec {
            audiences: spec["audiences"].as_array().into_iter().flatten().map(text).collect(),
            expiration_seconds: spec["expirationSeconds"].as_i64(),
            bound: (!bound.is_null()).then(|| Bound {
                kind: text(&bound["kind"]),
                name: text(&bound["name"]),
                uid: text(&bound["uid"]),
            }),
        };
        let now = self.api.time.now();
        let user = self.write_options()?.user;
        let issued = self.api.objects.issue_token(&user, self.namespace(), &self.path.name, &asked, now)?;
        let mut answer = request.clone();
        answer["metadata"]["name"] = self.path.name.as_str().into();
        answer["metadata"]["namespace"] = self.namespace().into();
        answer["metadata"]["creationTimestamp"] = rfc3339_seconds(now).into();
        answer["spec"]["audiences"] = issued.audiences.into();
        answer["spec"]["expirationSeconds"] = (issued.expires.as_second() - now.as_second()).into();
        answer["status"] =
            json!({"token": issued.token, "expirationTimestamp": rfc3339_seconds(issued.expires)});
        self.value(StatusCode::CREATED, &answer)
    }
}

/// The Status of something that was done.
fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}
