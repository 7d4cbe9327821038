//! Field errors in upstream's words (`k8s.io/apimachinery/pkg/util/validation/field`).

use std::fmt::{self, Write as _};

use serde_json::Value;

/// Why a field is wrong; decides the first words of the message and the cause's reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    /// [`Self::Invalid`] that does not show the value (Go's `OmitValueType`).
    Refused,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    TypeInvalid,
    InternalError,
}

impl FieldErrorKind {
    /// The `reason` of a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid | Self::Refused => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::InternalError => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::Refused | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
            Self::InternalError => "Internal error",
        }
    }
}

/// One error of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    /// `spec.template.spec.containers[0].image`.
    pub path: String,
    /// The refused value, shown where the kind of error shows one.
    pub value: Value,
    /// How upstream's own form of the value reads, where it reads otherwise than `value`.
    shown: Option<String>,
    pub detail: String,
}

/// All errors of an object.
pub type ErrorList = Vec<FieldError>;

impl FieldError {
    fn new(
        kind: FieldErrorKind,
        path: impl Into<String>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self { kind, path: path.into(), value: value.into(), shown: None, detail: detail.into() }
    }

    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, Value::Null, detail)
    }

    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, value, detail)
    }

    /// [`Self::invalid`] that does not show the value.
    pub fn refused(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Refused, path, Value::Null, detail)
    }

    /// `supported` is listed as given: upstream sorts most of its lists, but not all.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", list.join(", "));
        Self::new(FieldErrorKind::NotSupported, path, value, detail)
    }

    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, value, "")
    }

    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, Value::Null, detail)
    }

    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, value, "")
    }

    pub fn too_long(path: impl Into<String>, max_bytes: usize) -> Self {
        let detail = format!("may not be more than {max_bytes} bytes");
        Self::new(FieldErrorKind::TooLong, path, Value::Null, detail)
    }

    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} items");
        Self::new(FieldErrorKind::TooMany, path, actual, detail)
    }

    /// The same about a struct that upstream shows in its own form: Go's names in Go's order, and what is
    /// not set as well. Of `fields`, those with `=` are texts, with `0` numbers, the others pointers.
    #[must_use]
    pub fn as_struct(mut self, fields: &str) -> Self {
        let members = fields.split(' ').map(|field| {
            let name = field.trim_end_matches(['=', '0']);
            let zero = match field.as_bytes().last() {
                Some(b'=') => "\"\"",
                Some(b'0') => "0",
                _ => "null",
            };
            let value = self.value.get(json_name(name)).map_or_else(|| zero.to_owned(), json);
            format!("\"{name}\":{value}")
        });
        self.shown = Some(format!("{{{}}}", members.collect::<Vec<_>>().join(",")));
        self
    }

    /// The message of a Status cause: everything but the path.
    pub fn body(&self) -> String {
        use FieldErrorKind as K;
        let words = self.kind.words();
        let shown = match self.kind {
            K::Required | K::Refused | K::Forbidden | K::TooLong | K::InternalError => String::new(),
            _ => format!(": {}", self.shown.clone().unwrap_or_else(|| show(&self.value))),
        };
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        format!("{words}{shown}{detail}")
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A value as field errors show it: texts as Go's `%q`, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => json(other),
    }
}

/// JSON as Go writes it.
fn json(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// The name in JSON of a field of a Go struct: `apiGroup` of `APIGroup`.
fn json_name(name: &str) -> String {
    let upper = name.bytes().take_while(u8::is_ascii_uppercase).count();
    let (head, tail) = name.split_at(if upper > 1 { upper - 1 } else { upper });
    head.to_ascii_lowercase() + tail
}

/// Go's `%q`.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match (c, u32::from(c)) {
            ('"' | '\\', _) => quoted.extend(['\\', c]),
            ('\u{7}', _) => quoted += "\\a",
            ('\u{8}', _) => quoted += "\\b",
            ('\t', _) => quoted += "\\t",
            ('\n', _) => quoted += "\\n",
            ('\u{b}', _) => quoted += "\\v",
            ('\u{c}', _) => quoted += "\\f",
            ('\r', _) => quoted += "\\r",
            // A mark is printed where it stands behind something.
            _ if !['x', c].iter().collect::<String>().escape_debug().any(|e| e == '\\') => quoted.push(c),
            (_, code @ ..0x80) => write!(quoted, "\\x{code:02x}").expect("text takes all"),
            (_, code @ ..0x1_0000) => write!(quoted, "\\u{code:04x}").expect("text takes all"),
            (_, code) => write!(quoted, "\\U{code:08x}").expect("text takes all"),
        }
    }
    quoted.push('"');
    quoted
}

/// Upstream's text for several errors: alone as it is, else in brackets, each distinct one once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in errors.iter().map(ToString::to_string) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_writes_them() {
        let cases = [
            (
                FieldError::required("spec.containers[0].image", ""),
                "spec.containers[0].image: Required value",
            ),
            (
                FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::not_supported(
                    "spec.restartPolicy",
                    "Sometimes",
                    &["OnFailure", "Always", "Never"],
                ),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"OnFailure\", \"Always\", \"Never\"",
            ),
            (
                FieldError::duplicate("spec.ports[1].name", "http"),
                "spec.ports[1].name: Duplicate value: \"http\"",
            ),
            (FieldError::forbidden("spec", "is immutable"), "spec: Forbidden: is immutable"),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn values_read_as_go_writes_them() {
        let cases = [
            (Value::from("a\"\\\n\0\u{a0}\u{e000}\u{10ffff}"), r#""a\"\\\n\x00\u00a0\ue000\U0010ffff""#),
            (Value::from("\u{e9} e\u{301}"), "\"\u{e9} e\u{301}\""),
            (serde_json::json!({"a": "<&>"}), r#"{"a":"\u003c\u0026\u003e"}"#),
            (Value::Null, "null"),
        ];
        for (value, text) in cases {
            assert_eq!(show(&value), text);
        }
        let taint = serde_json::json!({"key": "a", "effect": "NoSchedule", "seLinuxOptions": 1});
        let error = FieldError::duplicate("taints[1]", taint)
            .as_struct("Key= Value= Number0 Effect= SELinuxOptions At");
        assert_eq!(
            error.to_string(),
            r#"taints[1]: Duplicate value: {"Key":"a","Value":"","Number":0,"Effect":"NoSchedule","SELinuxOptions":1,"At":null}"#
        );
    }

    #[test]
    fn several_errors_stand_in_brackets() {
        let two = [FieldError::required("a", ""), FieldError::required("b", "why")];
        assert_eq!(aggregate(&two), "[a: Required value, b: Required value: why]");
        assert_eq!(aggregate(&two[..1]), "a: Required value");
    }
}
