//! A place in an object and its path, for validation.

use serde_json::Value;

use super::{ErrorList, FieldError, names};

/// What stands at a place of an object, and the place's path as errors name it.
#[derive(Clone)]
pub struct At<'a> {
    /// Null where nothing stands.
    pub value: &'a Value,
    pub path: String,
}

impl<'a> At<'a> {
    /// The object itself.
    pub fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field: `spec.replicas`.
    pub fn get(&self, field: &str) -> Self {
        let value = self.value.get(field).unwrap_or(&Value::Null);
        let path = if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) };
        Self { value, path }
    }

    /// An entry of a map: `data[key]`.
    pub fn key(&self, key: &str) -> Self {
        Self { value: self.value.get(key).unwrap_or(&Value::Null), path: format!("{}[{key}]", self.path) }
    }

    /// The same value under the path of another place.
    pub fn with_path(&self, path: impl Into<String>) -> Self {
        Self { value: self.value, path: path.into() }
    }

    /// The items of a list: `ports[0]`.
    pub fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let path = self.path.clone();
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(i, value)| Self { value, path: format!("{path}[{i}]") })
    }

    /// The entries of a map, by key.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.value.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v))
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether Go would call the value empty: absent, `""`, `{}` or `[]`.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        }
    }

    /// The text; empty where there is none.
    pub fn str(&self) -> &'a str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(fields) => fields.len(),
            Value::String(text) => text.len(),
            _ => 0,
        }
    }

    pub fn required(&self, detail: &str) -> FieldError {
        FieldError::required(&self.path, detail)
    }

    pub fn invalid(&self, detail: impl Into<String>) -> FieldError {
        FieldError::invalid(&self.path, self.value.clone(), detail)
    }

    /// [`At::invalid`] that does not show the value.
    pub fn refused(&self, detail: impl Into<String>) -> FieldError {
        FieldError::refused(&self.path, detail)
    }

    pub fn not_supported(&self, supported: &[&str]) -> FieldError {
        FieldError::not_supported(&self.path, self.value.clone(), supported)
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        FieldError::forbidden(&self.path, detail)
    }

    pub fn duplicate(&self) -> FieldError {
        FieldError::duplicate(&self.path, self.value.clone())
    }

    /// Refuses an empty value; says whether there is one.
    pub fn check_required(&self, errors: &mut ErrorList) -> bool {
        if self.is_empty() {
            errors.push(self.required(""));
        }
        !self.is_empty()
    }

    /// Refuses a text that breaks a rule.
    pub fn check(&self, rule: names::Rule, errors: &mut ErrorList) {
        let wrong = rule(self.str()).into_iter();
        errors.extend(wrong.map(|detail| FieldError::invalid(&self.path, self.str(), detail)));
    }

    /// [`At::check`] of a text that must be there.
    pub fn check_required_name(&self, rule: names::Rule, errors: &mut ErrorList) {
        if self.check_required(errors) {
            self.check(rule, errors);
        }
    }

    /// Refuses a text that is set but is none of `supported` (listed as given).
    pub fn check_one_of(&self, supported: &[&str], errors: &mut ErrorList) {
        if !self.is_empty() && !supported.contains(&self.str()) {
            errors.push(self.not_supported(supported));
        }
    }

    /// [`At::check_one_of`] of a text that must be there.
    pub fn check_required_one_of(&self, supported: &[&str], errors: &mut ErrorList) {
        if self.check_required(errors) {
            self.check_one_of(supported, errors);
        }
    }

    /// Refuses what is no path below a domain: `acme.io/foo` (`IsDomainPrefixedPath`).
    pub fn check_domain_prefixed(&self, errors: &mut ErrorList) {
        if !self.check_required(errors) {
            return;
        }
        let Some((domain, path)) =
            self.str().split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
        else {
            errors.push(self.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
            return;
        };
        let wrong = names::dns_subdomain(domain);
        errors.extend(wrong.into_iter().map(|m| FieldError::invalid(&self.path, domain, m)));
        if !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b)) {
            let detail = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
            errors.push(FieldError::invalid(&self.path, path, detail));
        }
    }

    /// Refuses a negative number.
    pub fn check_not_negative(&self, errors: &mut ErrorList) {
        if self.int().is_some_and(|n| n < 0) {
            errors.push(self.invalid("must be greater than or equal to 0"));
        }
    }

    /// Refuses a number outside `low..=high`; an absent one counts as 0 when it is `required`.
    pub fn check_range(&self, low: i64, high: i64, errors: &mut ErrorList) {
        if let Some(detail) = self.int().and_then(|n| names::in_range(n, low, high)) {
            errors.push(self.invalid(detail));
        }
    }

    /// Refuses anything but a port number; absent counts as 0.
    pub fn check_port(&self, errors: &mut ErrorList) {
        if let Some(detail) = names::port_number(self.int().unwrap_or(0)) {
            errors.push(FieldError::invalid(&self.path, self.int().unwrap_or(0), detail));
        }
    }

    /// Refuses a value that is not as it was.
    pub fn check_immutable(&self, old: &At<'_>, errors: &mut ErrorList) {
        if self.value != old.value && !(self.is_empty() && old.is_empty()) {
            errors.push(self.invalid("field is immutable"));
        }
    }
}
