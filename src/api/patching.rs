//! `PATCH`: the patch types, on an object or one of its subresources.

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;

use super::{
    body::{self, FieldValidation},
    negotiate::{self, Encoding},
    reply::Reply,
    status::Refusal,
    verbs::Call,
};
use crate::{
    kinds::{FieldError, Subresource, schema::Type},
    objects::{self, scale},
    patch::{self, PatchError},
};

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

/// A patch of a body.
enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
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
        let validation = FieldValidation::parse(&self.query, "PatchOptions.meta.k8s.io")?;
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
        let duplicates: Vec<_> =
            duplicates.into_iter().map(crate::kinds::schema::Problem::Duplicate).collect();
        validation.judge(&duplicates, &mut self.warnings)?;
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
                match self.patched(stored, &patch, schema, validation, &mut warnings) {
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

    /// The stored object as the patch makes it.
    fn patched(
        &self,
        stored: &Value,
        patch: &Patch,
        schema: &'static Type,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<Value, Refusal> {
        let name = &self.path.name;
        let refuse = |error: PatchError| match error {
            PatchError::BadRequest(message) => Refusal::bad_request(message),
            PatchError::TooLarge(_) => Refusal::TooLarge(body::BODY_BYTES_MAX),
            PatchError::Unprocessable(message) => objects::Error::Invalid {
                kind: self.full_kind(),
                name: name.clone(),
                errors: vec![FieldError::invalid("patch", Value::Null, message)],
            }
            .into(),
        };
        if self.subresource == Some(Subresource::Scale) {
            let live = scale::of(stored);
            let value = patch.apply(&live, schema).map_err(refuse)?;
            let (value, problems) = body::fit(value, schema, validation)?;
            validation.judge(&problems, warnings)?;
            let mut object = stored.clone();
            scale::apply(self.stored, &mut object, &value)?;
            return Ok(object);
        }
        let live = self.requested_form(stored.clone());
        let value = patch.apply(&live, schema).map_err(refuse)?;
        let (value, problems) = body::fit(value, schema, validation)?;
        validation.judge(&problems, warnings)?;
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
        Ok(self.to_stored(value))
    }
}
