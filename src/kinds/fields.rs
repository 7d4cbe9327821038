//! Field selectors (`k8s.io/apimachinery/pkg/fields`): `status.phase=Running,spec.nodeName!=`.

/// A text that is no field selector; upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldSelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    #[error("invalid field selector: unescaped character in value: {}", u32::from(*.0))]
    Unescaped(char),
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    pub field: String,
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

impl Selector {
    /// Reads a `fieldSelector` query parameter.
    pub fn parse(text: &str) -> Result<Self, FieldSelectorError> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let (field, negated, value) = split_term(term).ok_or_else(|| FieldSelectorError::Term {
                selector: text.to_owned(),
                term: term.to_owned(),
            })?;
            terms.push(Term { field: field.to_owned(), value: unescape(value)?, negated });
        }
        terms.sort();
        Ok(Self { terms })
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have (a list of one name, the pods of one node).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.field == field && !t.negated).map(|t| t.value.as_str())
    }

    /// Whether fields, asked for by name, satisfy every condition; an unknown field is empty.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|t| (field(&t.field) == t.value) != t.negated)
    }
}

/// The terms between commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.char_indices().find(|(i, c)| *c == '=' || term[*i..].starts_with("!="))?.0;
    let (field, rest) = term.split_at(at);
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Some((field, negated, value));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    return Err(FieldSelectorError::Escape(std::iter::once('\\').chain(other).collect()));
                }
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(c)),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_and_matched() {
        let selector = Selector::parse(r"status.phase!=Running,spec.nodeName=a\,b,x==").expect("selector");
        assert_eq!(selector.exact("spec.nodeName"), Some("a,b"));
        assert_eq!(selector.exact("status.phase"), None);
        let fields = |name: &str| if name == "spec.nodeName" { "a,b" } else { "" };
        assert!(selector.matches(fields));
        assert!(!selector.matches(|_| "Running"));
        assert!(Selector::parse("").expect("everything").is_everything());
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        let text = |s: &str| Selector::parse(s).expect_err(s).to_string();
        assert_eq!(text("abc"), "invalid selector: 'abc'; can't understand 'abc'");
        assert_eq!(text(r"a=b\c"), r"invalid field selector: invalid escape sequence: \c");
        assert_eq!(text("a=b=c"), "invalid field selector: unescaped character in value: 61");
    }

    proptest::proptest! {
        #[test]
        fn any_selector_is_answered(text in "[a-z!=,.\\\\]{0,32}|\\PC{0,32}") {
            let _ = Selector::parse(&text);
        }
    }
}
