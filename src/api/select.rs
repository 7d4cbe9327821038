//! What a list or a watch selects: parameters, selectors, continue tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{request::Query, status::Refusal};
use crate::{
    ids::Revision,
    kinds::{ErrorList, FieldError, Kind, fields, labels},
    objects,
    store::Object,
};

/// The objects of one kind that a request is about.
#[derive(Clone)]
pub struct Filter {
    pub kind: &'static Kind,
    /// Empty: all.
    pub namespace: String,
    labels: labels::Selector,
    fields: fields::Selector,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector`.
    pub fn parse(kind: &'static Kind, namespace: &str, name: &str, query: &Query) -> Result<Self, Refusal> {
        let label_text = query.get("labelSelector").unwrap_or_default();
        let field_text = query.get("fieldSelector").unwrap_or_default();
        let unable = |detail: String| {
            Refusal::bad_request(format!(
                "Unable to find {:?} that match label selector {label_text:?}, field selector {field_text:?}: {detail}",
                format!("{}, Resource={}", kind_version(kind), kind.plural)
            ))
        };
        let labels = labels::Selector::parse(label_text).map_err(|e| Refusal::bad_request(e.to_string()))?;
        let mut fields =
            fields::Selector::parse(field_text).map_err(|e| Refusal::bad_request(e.to_string()))?;
        let known = (kind.strategy.selectable)(&json!({}));
        for term in fields.terms() {
            let common = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace");
            if !common && !known.iter().any(|(field, _)| *field == term.field) {
                return Err(unable(format!("field label not supported: {}", term.field)));
            }
        }
        if fields.is_everything() && !name.is_empty() {
            fields = fields::Selector::parse(&format!("metadata.name={name}"))
                .map_err(|e| Refusal::bad_request(e.to_string()))?;
        }
        Ok(Self { kind, namespace: namespace.to_owned(), labels, fields })
    }

    pub fn namespace(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(self.namespace.as_str())
    }

    /// Whether nothing but the namespace selects.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Object) -> bool {
        if !self.namespace.is_empty() && *self.namespace != *object.key.namespace {
            return false;
        }
        if !self.labels.matches(|key| object.meta.label(key)) {
            return false;
        }
        let beyond_name =
            |t: &fields::Term| !matches!(t.field.as_str(), "metadata.name" | "metadata.namespace");
        let own = if self.fields.terms().iter().any(beyond_name) {
            (self.kind.strategy.selectable)(&object.value())
        } else {
            Vec::new()
        };
        self.fields.matches(|field| match field {
            "metadata.name" => &object.key.name,
            "metadata.namespace" => &object.key.namespace,
            other => own.iter().find(|(f, _)| *f == other).map_or("", |(_, v)| v),
        })
    }
}

fn kind_version(kind: &Kind) -> String {
    format!("{}/{}", kind.group, kind.version)
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// Which state of the objects a list wants, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// At most so many; `None` for all.
    pub limit: Option<usize>,
    pub state: PageState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageState {
    Newest,
    /// The newest, which must not be older than this.
    NotOlderThan(Revision),
    Exact(Revision),
    /// The rest of an earlier list: after this key (`namespace/name`), of this revision, or of the
    /// newest state when there is none; the list began at this time (Unix seconds).
    Continue {
        after: (String, String),
        revision: Option<Revision>,
        began: i64,
    },
}

fn invalid(kind: &str, error: FieldError) -> Refusal {
    let errors: ErrorList = vec![error];
    objects::Error::Invalid { kind: kind.to_owned(), name: String::new(), errors }.into()
}

fn version_match(query: &Query, options: &str) -> Result<Option<VersionMatch>, Refusal> {
    match query.filled("resourceVersionMatch") {
        None => Ok(None),
        Some("Exact") => Ok(Some(VersionMatch::Exact)),
        Some("NotOlderThan") => Ok(Some(VersionMatch::NotOlderThan)),
        Some(other) => Err(invalid(
            options,
            FieldError::not_supported("resourceVersionMatch", other, &["Exact", "NotOlderThan", ""]),
        )),
    }
}

fn parse_revision(text: &str) -> Result<Revision, Refusal> {
    text.parse().map_err(|_| {
        invalid(
            "ListOptions.meta.k8s.io",
            FieldError::invalid(
                "resourceVersion",
                text,
                format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
            ),
        )
    })
}

fn parse_number(query: &Query, key: &str) -> Result<Option<i64>, Refusal> {
    let Some(text) = query.filled(key) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| Refusal::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

impl Page {
    /// Reads `limit`, `continue`, `resourceVersion` and `resourceVersionMatch`.
    pub fn parse(query: &Query) -> Result<Self, Refusal> {
        const OPTIONS: &str = "ListOptions.meta.k8s.io";
        let limit = parse_number(query, "limit")?.filter(|n| *n > 0).map(|n| n as usize);
        let matching = version_match(query, OPTIONS)?;
        let version = query.filled("resourceVersion");
        let token = query.filled("continue");
        let forbidden =
            |detail: &str| Err(invalid(OPTIONS, FieldError::forbidden("resourceVersionMatch", detail)));
        if query.flag("sendInitialEvents") {
            return Err(invalid(
                OPTIONS,
                FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"),
            ));
        }
        if matching.is_some() && version.is_none() {
            return forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if matching.is_some() && token.is_some() {
            return forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        if matching == Some(VersionMatch::Exact) && version == Some("0") {
            return forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        let state = match (token, version, matching) {
            (Some(_), Some(version), _) if version != "0" => {
                return Err(Refusal::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            (Some(token), ..) => decode_token(token)?,
            (None, None | Some("0"), _) => PageState::Newest,
            (None, Some(text), Some(VersionMatch::Exact)) => PageState::Exact(parse_revision(text)?),
            (None, Some(text), Some(VersionMatch::NotOlderThan)) => {
                PageState::NotOlderThan(parse_revision(text)?)
            }
            // Upstream's legacy reading: exact when the list is limited, else not older than.
            (None, Some(text), None) if limit.is_some() => PageState::Exact(parse_revision(text)?),
            (None, Some(text), None) => PageState::NotOlderThan(parse_revision(text)?),
        };
        Ok(Self { limit, state })
    }
}

fn decode_token(token: &str) -> Result<PageState, Refusal> {
    let wrong = |detail: &str| Refusal::bad_request(format!("continue key is not valid: {detail}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|e| wrong(&e.to_string()))?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(&e.to_string()))?;
    if value["v"] != "meta.k8s.io/v1" {
        return Err(wrong("server does not recognize this encoded version"));
    }
    let start =
        value["start"].as_str().filter(|s| !s.is_empty()).ok_or_else(|| wrong("encoded start key empty"))?;
    let (namespace, name) = start.trim_end_matches('\0').rsplit_once('/').unwrap_or(("", start));
    let revision = match value["rv"].as_i64() {
        None | Some(0) => return Err(wrong("incorrect encoded start resourceVersion")),
        Some(..0) => None,
        Some(revision) => Some(Revision(revision as u64)),
    };
    let began = value["began"].as_i64().unwrap_or(0);
    Ok(PageState::Continue { after: (namespace.to_owned(), name.to_owned()), revision, began })
}

/// A token that continues a list after a key, as of a revision at which it began at a time (Unix seconds);
/// without these it continues inconsistently.
pub fn encode_token(after: (&str, &str), of: Option<(Revision, i64)>) -> String {
    let start = format!("{}/{}\0", after.0, after.1);
    let mut token = json!({"v": "meta.k8s.io/v1", "rv": -1, "start": start});
    if let Some((revision, began)) = of {
        token["rv"] = revision.0.into();
        token["began"] = began.into();
    }
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// How a watch begins and goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    /// `None`: begin with the present state as ADDED events.
    pub from: Option<Revision>,
    pub bookmarks: bool,
    /// Say with a bookmark where the present state ends.
    pub initial_events_end: bool,
    /// Seconds.
    pub timeout: Option<u64>,
}

impl WatchOptions {
    pub fn parse(query: &Query) -> Result<Self, Refusal> {
        const OPTIONS: &str = "ListOptions.meta.k8s.io";
        let bookmarks = query.flag("allowWatchBookmarks");
        let timeout = parse_number(query, "timeoutSeconds")?.filter(|n| *n > 0).map(|n| n as u64);
        let version = query.filled("resourceVersion");
        let matching = version_match(query, OPTIONS)?;
        let send_initial = query.filled("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        if send_initial.is_some() && matching != Some(VersionMatch::NotOlderThan) {
            return Err(invalid(
                OPTIONS,
                FieldError::forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
            ));
        }
        if send_initial.is_none() && matching.is_some() {
            return Err(invalid(
                OPTIONS,
                FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ),
            ));
        }
        let asked = version.filter(|v| *v != "0").map(parse_revision).transpose()?;
        let from = if send_initial == Some(true) { None } else { asked };
        Ok(Self { from, bookmarks, initial_events_end: send_initial == Some(true) && bookmarks, timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_a_list_goes_on() {
        let token = encode_token(("default", "web"), Some((Revision(7), 5)));
        let page = Page::parse(&Query::parse(&format!("limit=2&continue={token}"))).unwrap();
        let after = ("default".to_owned(), "web".to_owned());
        let (revision, began) = (Some(Revision(7)), 5);
        assert_eq!(page.state, PageState::Continue { after: after.clone(), revision, began });
        let inconsistent = decode_token(&encode_token(("default", "web"), None)).unwrap();
        assert_eq!(inconsistent, PageState::Continue { after, revision: None, began: 0 });
        for bad in ["x", "e30", "bm90anNvbg"] {
            assert!(decode_token(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resource_versions_are_read_as_upstream_reads_them() {
        let state = |query: &str| Page::parse(&Query::parse(query)).map(|p| p.state).ok();
        assert_eq!(state(""), Some(PageState::Newest));
        assert_eq!(state("resourceVersion=0"), Some(PageState::Newest));
        assert_eq!(state("resourceVersion=5"), Some(PageState::NotOlderThan(Revision(5))));
        assert_eq!(state("resourceVersion=5&limit=1"), Some(PageState::Exact(Revision(5))));
        assert_eq!(
            state("resourceVersion=5&resourceVersionMatch=Exact"),
            Some(PageState::Exact(Revision(5)))
        );
        assert_eq!(state("resourceVersionMatch=Exact"), None);
        assert_eq!(state("resourceVersion=0&resourceVersionMatch=Exact"), None);
        assert_eq!(state("resourceVersion=x"), None);
        let watch = |query: &str| WatchOptions::parse(&Query::parse(query)).ok();
        assert!(watch("sendInitialEvents=true").is_none());
        let initial =
            watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
        assert!(initial.unwrap().initial_events_end);
    }

    proptest::proptest! {
        #[test]
        fn any_page_is_answered(token in "[A-Za-z0-9_=-]{0,40}", limit in "\\PC{0,8}", version in "[0-9a-z-]{0,20}") {
            let _ = Page::parse(&Query::parse(&format!("continue={token}&limit={limit}")));
            let _ = WatchOptions::parse(&Query::parse(&format!("resourceVersion={version}&timeoutSeconds={limit}")));
        }
    }
}
