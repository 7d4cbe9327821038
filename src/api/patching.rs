//! `PATCH`: the patch types, on an object or one of its subresources.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use super::{
    authz,
    body::{self, FieldValidation},
    negotiate::{self, Encoding},
    reply::Reply,
    status::Refusal,
    verbs::Call,
};
use crate::{
    kinds::{
        FieldError, Subresource,
        schema::{self, Problem, Type},
    },
    objects::{self, WriteOptions, scale},
    patch::{self, PatchError},
};

/// How often an apply is tried again when others write the same object.
const APPLY_TRIES_MAX: u32 = 5;
const PATCH_OPTIONS: &str = "PatchOptions.meta.k8s.io";
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A patch of a body.
enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

/// A patch as it came.
struct Given {
    patch: Patch,
    /// How refusals show it.
    shown: String,
    /// Keys that stood twice.
    duplicates: Vec<Problem>,
}

impl Given {
    /// A patch whose outcome is no object of the type.
    fn refused(&self, detail: impl Into<String>) -> Refusal {
        let errors = vec![FieldError::invalid("patch", self.shown.as_str(), detail)];
        objects::Error::Invalid { kind: String::new(), name: String::new(), errors }.into()
    }

    /// The outcome, fitted to its type; what the patch says wrongly is judged.
    fn fit(
        &self,
        value: Value,
        schema: &'static Type,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Refusal> {
        let (value, unknown) =
            schema::decode(value, schema, validation.mode()).map_err(|e| self.refused(e.to_string()))?;
        let problems = [&self.duplicates[..], &unknown].concat();
        validation.judge(&problems, warnings).map_err(|refusal| self.refused(refusal.to_string()))?;
        Ok(value)
    }
}

impl Patch {
    fn shown(&self, bytes: &[u8]) -> String {
        match self {
            Self::Strategic(change) => patch::go::plain(change),
            Self::Json(_) | Self::Merge(_) => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    fn apply(&self, live: &Value, schema: &'static Type) -> Result<Value, PatchError> {
        match self {
            Self::Json(operations) => patch::json_patch(live, operations),
            Self::Merge(change) => Ok(patch::merge_patch(live, change)),
            Self::Strategic(change) => patch::strategic_merge(live, change, schema),
        }
    }
}

impl Call {
    pub async fn patch(&mut self, bytes: &Bytes) -> Result<Reply, Refusal> {
        let options = self.write_options()?;
        if negotiate::content_type(&self.headers) == "application/apply-patch+yaml" {
            return self.apply(bytes, options).await;
        }
        if self.query.get("force").is_some() {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            let (kind, name) = (PATCH_OPTIONS.to_owned(), String::new());
            return Err(objects::Error::Invalid { kind, name, errors: vec![error] }.into());
        }
        let validation = FieldValidation::parse(&self.query, PATCH_OPTIONS)?;
        let parse = |bytes: &[u8]| body::parse(bytes, Encoding::Json);
        let (patch, duplicates) = match negotiate::content_type(&self.headers) {
            "application/json-patch+json" => {
                let parsed = parse(bytes)?;
                (Patch::Json(parsed.value), parsed.duplicates)
            }
            "application/merge-patch+json" => {
                let parsed = parse(bytes)?;
                (Patch::Merge(parsed.value), parsed.duplicates)
            }
            "application/strategic-merge-patch+json" => {
                let parsed = parse(bytes)?;
                (Patch::Strategic(parsed.value), parsed.duplicates)
            }
            _ => {
                return Err(Refusal::UnsupportedMediaType(format!(
                    "the body of the request was in an unknown format - accepted media types include: {ACCEPTED}"
                )));
            }
        };
        let given = Given {
            shown: patch.shown(bytes),
            patch,
            duplicates: duplicates.into_iter().map(Problem::Duplicate).collect(),
        };
        let schema = if self.subresource == Some(Subresource::Scale) {
            super::subresources::scale_schema()?
        } else {
            self.schema()?
        };
        let mut warnings: Vec<String> = Vec::new();
        let mut refused: Option<Refusal> = None;
        let objects = self.api.objects.clone();
        let patched = objects
            .modify(self.stored, self.subresource, self.namespace(), &self.path.name, &options, |stored| {
                warnings.clear();
                match self.patched(stored, &given, schema, validation, &mut warnings) {
                    Ok(value) => {
                        *stored = value;
                        Ok(())
                    }
                    Err(Refusal::Objects(error)) => Err(error),
                    Err(other) => {
                        let message = other.to_string();
                        refused = Some(other);
                        Err(objects::Error::BadRequest(message))
                    }
                }
            })
            .await
            .map_err(|error| refused.take().unwrap_or(Refusal::Objects(error)))?;
        self.warnings.extend(warnings);
        if self.subresource == Some(Subresource::Scale) {
            return self.value(StatusCode::OK, &scale::of(&patched.value()));
        }
        self.object(StatusCode::OK, &patched)
    }

    /// Server-side apply: creates the object when it is not there.
    async fn apply(&mut self, bytes: &Bytes, mut options: WriteOptions) -> Result<Reply, Refusal> {
        if self.query.filled("fieldManager").is_none() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(objects::Error::Invalid {
                kind: PATCH_OPTIONS.to_owned(),
                name: String::new(),
                errors: vec![error],
            }
            .into());
        }
        let validation = FieldValidation::parse(&self.query, PATCH_OPTIONS)?;
        let force = self.query.flag("force");
        let schema = self.schema()?;
        let parsed = body::parse(bytes, Encoding::Yaml)
            .map_err(|refusal| Refusal::bad_request(format!("error decoding YAML: {refusal}")))?;
        let problems: Vec<_> = parsed.duplicates.into_iter().map(Problem::Duplicate).collect();
        let patch = match self.subresource {
            Some(Subresource::Scale) => self.of_scale(&parsed.value)?,
            _ => parsed.value,
        };
        options.tracked = false;
        let subresource = self.subresource.map(Subresource::name).unwrap_or_default();
        let manager = options.manager.clone();
        let objects = self.api.objects.clone();
        let name = self.path.name.clone();
        let mut tries = 0;
        loop {
            tries += 1;
            let current = match objects.get(self.stored, self.namespace(), &name) {
                Ok(current) => Some(current),
                Err(error) if error.is_not_found() && self.subresource.is_none() => None,
                Err(error) => return Err(error.into()),
            };
            let live = current.as_ref().map(|o| self.requested_form(o.value()));
            let writer = patch::Writer { manager: &manager, subresource, now: objects.clock().now() };
            let applied = patch::apply(live.as_ref(), &patch, schema, force, writer)
                .map_err(|e| self.apply_refused(e))?;
            validation.judge(&problems, &mut self.warnings)?;
            if live.is_none() {
                self.refuse_uid_of_none(&patch)?;
            }
            let (mut value, _) = body::fit(applied, schema, FieldValidation::Ignore)?;
            if let Some(live) = &live {
                patch::keep_times(&mut value, live);
            }
            self.refuse_escalation(&value, live.as_ref())?;
            if live.is_none() {
                authz::authorize_creation(&objects, &self.user, &self.info)?;
            }
            let warnings = match self.subresource {
                None => (self.kind.strategy.warnings)(&value),
                Some(_) => Vec::new(),
            };
            let value = self.to_stored(value);
            let outcome = match &current {
                Some(_) => {
                    let subresource = self.subresource;
                    objects.update(self.stored, subresource, self.namespace(), &name, value, &options).await
                }
                None => objects.create(self.stored, self.namespace(), value, &options).await,
            };
            match outcome {
                Err(objects::Error::Conflict { .. } | objects::Error::AlreadyExists { .. })
                    if tries < APPLY_TRIES_MAX => {}
                Err(error) => return Err(error.into()),
                Ok(object) if self.subresource == Some(Subresource::Scale) => {
                    return self.value(StatusCode::OK, &scale::of(&object.value()));
                }
                Ok(object) => {
                    self.warnings.extend(warnings);
                    let code = if current.is_some() { StatusCode::OK } else { StatusCode::CREATED };
                    return self.object(code, &object);
                }
            }
        }
    }

    /// The applied Scale as what it says of the workload.
    fn of_scale(&self, applied: &Value) -> Result<Value, Refusal> {
        const SCALE: &str = "autoscaling/v1";
        let version = applied["apiVersion"].as_str().unwrap_or_default();
        if version != SCALE {
            return Err(Refusal::bad_request(format!(
                "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {SCALE}"
            )));
        }
        let mut spec = serde_json::Map::new();
        if let Some(replicas) = applied["spec"].get("replicas") {
            spec.insert("replicas".to_owned(), replicas.clone());
        }
        Ok(serde_json::json!({"apiVersion": self.kind.api_version(), "kind": self.kind.kind,
            "metadata": {"name": self.path.name}, "spec": spec}))
    }

    /// Refuses to create what is meant to be an object that was there before.
    fn refuse_uid_of_none(&self, patch: &Value) -> Result<(), Refusal> {
        match patch["metadata"]["uid"].as_str().unwrap_or_default() {
            "" => Ok(()),
            uid => Err(objects::Error::Conflict {
                resource: self.stored.resource(),
                name: self.path.name.clone(),
                message: format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                ),
            }
            .into()),
        }
    }

    fn apply_refused(&self, error: patch::ApplyError) -> Refusal {
        match error {
            patch::ApplyError::Conflicts(conflicts) => {
                let patch::Conflicts { message, causes } = conflicts;
                objects::Error::ApplyConflict { message, causes }.into()
            }
            patch::ApplyError::Patch(error) => self.patch_refused(error),
        }
    }

    fn patch_refused(&self, error: PatchError) -> Refusal {
        match error {
            PatchError::BadRequest(message) => Refusal::bad_request(message),
            PatchError::Untyped(message) => Refusal::Failed(message),
            PatchError::TooLarge(_) => Refusal::TooLarge(body::BODY_BYTES_MAX),
            PatchError::Unprocessable(message) => {
                tracing::debug!(name = %self.path.name, message, "a patch that cannot be applied");
                Refusal::Inapplicable
            }
        }
    }

    /// The stored object as the patch makes it.
    fn patched(
        &self,
        stored: &Value,
        given: &Given,
        schema: &'static Type,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Refusal> {
        let refuse = |error: PatchError| self.patch_refused(error);
        if self.subresource == Some(Subresource::Scale) {
            let live = scale::of(stored);
            let value = given.patch.apply(&live, schema).map_err(refuse)?;
            let value = given.fit(value, schema, validation, warnings)?;
            let mut object = stored.clone();
            scale::apply(self.stored, &mut object, &value)?;
            return Ok(object);
        }
        let live = self.requested_form(stored.clone());
        let value = given.patch.apply(&live, schema).map_err(refuse)?;
        let value = given.fit(value, schema, validation, warnings)?;
        for (field, what) in [("name", "name"), ("namespace", "namespace")] {
            let (new, old) = (&value["metadata"][field], &live["metadata"][field]);
            if !new.is_null() && new != old {
                return Err(Refusal::bad_request(format!(
                    "the {what} of the object ({}) does not match the {what} on the URL ({})",
                    new.as_str().unwrap_or_default(),
                    old.as_str().unwrap_or_default()
                )));
            }
        }
        for field in ["apiVersion", "kind"] {
            if value[field] != live[field] {
                return Err(Refusal::bad_request(format!(
                    "the {field} of an object cannot be changed by a patch"
                )));
            }
        }
        warnings.extend((self.kind.strategy.warnings)(&value));
        self.refuse_escalation(&value, Some(&live))?;
        Ok(self.to_stored(value))
    }
}
