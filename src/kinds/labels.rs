//! Label selectors (`k8s.io/apimachinery/pkg/labels`): `a=b,c!=d,e in (x,y),!f,g>1`.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{FieldError, field, names};

/// A text that is no selector; upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted.
    pub values: Vec<String>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// Sorted by key.
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches everything.
    pub const EVERYTHING: Self = Self { requirements: Vec::new(), nothing: false };
    /// Matches nothing.
    pub const NOTHING: Self = Self { requirements: Vec::new(), nothing: true };

    fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// Reads a `labelSelector` query parameter.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser { tokens: tokens(text), next: 0 }.selector().map(Self::new)
    }

    /// Of labels that must have these values (a Service's or ReplicationController's selector).
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equals = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        Self::new(labels.into_iter().map(equals).collect())
    }

    /// Of a typed LabelSelector: an absent one matches nothing, an empty one everything.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Result<Self, SelectorError> {
        let Some(selector) = selector else { return Ok(Self::NOTHING) };
        let labels = selector.match_labels.iter().flatten();
        let mut all: Vec<_> = labels.map(|(k, v)| (k.as_str(), "Equals", vec![v.as_str()])).collect();
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.iter().flatten().map(String::as_str).collect();
            all.push((&expression.key, &expression.operator, values));
        }
        Self::from_parts(all)
    }

    /// Of a LabelSelector in its JSON form: null matches nothing, `{}` everything.
    pub fn from_json(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::NOTHING);
        }
        let text = |v: &'_ Value| v.as_str().map(str::to_owned).unwrap_or_default();
        let mut all: Vec<(&str, &str, Vec<&str>)> = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            all.push((key, "Equals", vec![value.as_str().unwrap_or_default()]));
        }
        let expressions: Vec<_> = selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|e| (text(&e["key"]), text(&e["operator"]), e["values"].as_array()))
            .collect();
        for (key, operator, values) in &expressions {
            let values = values.iter().copied().flatten().filter_map(Value::as_str).collect();
            all.push((key, operator, values));
        }
        Self::from_parts(all)
    }

    fn from_parts(parts: Vec<(&str, &str, Vec<&str>)>) -> Result<Self, SelectorError> {
        let requirement = |(key, operator, values): (&str, &str, Vec<&str>)| {
            let operator = match operator {
                "Equals" => Operator::Equals,
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("{other:?} is not a valid label selector operator")));
                }
            };
            Requirement::new(key.to_owned(), operator, values.into_iter().map(str::to_owned).collect())
        };
        parts.into_iter().map(requirement).collect::<Result<_, _>>().map(Self::new)
    }

    /// Whether labels, asked for by key, satisfy every condition.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// [`Selector::matches`] of `metadata.labels` of a typed object.
    pub fn matches_map(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// [`Selector::matches`] of a JSON map of labels.
    pub fn matches_json(&self, labels: &Value) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether there is no condition at all.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl Requirement {
    fn new(key: String, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        use Operator as O;
        let mut errors: Vec<FieldError> = Vec::new();
        check_key(&key, "key", &mut errors);
        let mut wrong = |detail: &str| errors.push(FieldError::invalid("values", values.clone(), detail));
        match operator {
            O::In | O::NotIn if values.is_empty() => {
                wrong("for 'in', 'notin' operators, values set can't be empty");
            }
            O::Equals | O::DoubleEquals | O::NotEquals if values.len() != 1 => {
                wrong("exact-match compatibility requires one single value");
            }
            O::Exists | O::DoesNotExist if !values.is_empty() => {
                wrong("values set must be empty for exists and does not exist");
            }
            O::GreaterThan | O::LessThan => {
                if values.len() != 1 {
                    wrong("for 'Gt', 'Lt' operators, exactly one value is required");
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.push(FieldError::invalid(format!("values[{i}]"), value.as_str(), detail));
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                let path = format!("values[{i}][{key}]");
                errors.push(FieldError::invalid(path, value.as_str(), wrong.join("; ")));
            }
        }
        if errors.is_empty() {
            Ok(Self { key, operator, values })
        } else {
            Err(SelectorError(field::aggregate(&errors)))
        }
    }

    /// Whether the label's value (`None`: there is no such label) satisfies the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        use Operator as O;
        let among = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            O::Equals | O::DoubleEquals | O::In => value.is_some_and(among),
            O::NotEquals | O::NotIn => !value.is_some_and(among),
            O::Exists => value.is_some(),
            O::DoesNotExist => value.is_none(),
            O::GreaterThan | O::LessThan => {
                let number = |text: &str| text.parse::<i64>().ok();
                match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                    (Some(have), Some(than)) if self.operator == O::GreaterThan => have > than,
                    (Some(have), Some(than)) => have < than,
                    _ => false,
                }
            }
        }
    }
}

fn check_key(key: &str, path: &str, errors: &mut Vec<FieldError>) {
    let wrong = names::qualified(key);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path, key, wrong.join("; ")));
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operator as O;
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            O::Equals => write!(f, "{key}={values}"),
            O::DoubleEquals => write!(f, "{key}=={values}"),
            O::NotEquals => write!(f, "{key}!={values}"),
            O::In => write!(f, "{key} in ({values})"),
            O::NotIn => write!(f, "{key} notin ({values})"),
            O::Exists => f.write_str(key),
            O::DoesNotExist => write!(f, "!{key}"),
            O::GreaterThan => write!(f, "{key}>{values}"),
            O::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            write!(f, "{}{requirement}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// A LabelSelector in its JSON form as a selector's text, as tables show it.
pub fn format_json(selector: &Value) -> String {
    if selector.is_null() {
        return "<none>".to_owned();
    }
    match Selector::from_json(selector) {
        Ok(selector) if selector.is_everything() => "<none>".to_owned(),
        Ok(selector) => selector.to_string(),
        Err(_) => "<error>".to_owned(),
    }
}

/// The tokens of a selector: operators, or identifiers.
fn tokens(text: &str) -> Vec<&str> {
    let special = |c: char| "=!(),><".contains(c);
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(first) = rest.chars().next() else { return tokens };
        let len = if special(first) {
            if ["==", "!="].iter().any(|two| rest.starts_with(two)) { 2 } else { 1 }
        } else {
            rest.find(|c: char| special(c) || " \t\r\n".contains(c)).unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(len);
        tokens.push(token);
        rest = after;
    }
}

/// A parser by recursive descent over the tokens.
struct Parser<'a> {
    tokens: Vec<&'a str>,
    next: usize,
}

impl<'a> Parser<'a> {
    /// The next token; empty at the end.
    fn peek(&self) -> &'a str {
        self.tokens.get(self.next).copied().unwrap_or_default()
    }

    fn take(&mut self) -> &'a str {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn is_identifier(token: &str) -> bool {
        !token.is_empty() && !token.starts_with(['=', '!', '(', ')', ',', '>', '<'])
    }

    fn selector(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut all = Vec::new();
        loop {
            let token = self.peek();
            if token.is_empty() {
                return Ok(all);
            }
            if !Self::is_identifier(token) && token != "!" {
                return Err(SelectorError(format!(
                    "found '{token}', expected: !, identifier, or 'end of string'"
                )));
            }
            all.push(
                self.requirement().map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?,
            );
            match self.take() {
                "" => return Ok(all),
                "," => {
                    let after = self.peek();
                    if !Self::is_identifier(after) && after != "!" {
                        return Err(SelectorError(format!(
                            "found '{after}', expected: identifier after ','"
                        )));
                    }
                }
                other => {
                    return Err(SelectorError(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.peek() == "!";
        if absent {
            self.take();
        }
        let key = self.take();
        if !Self::is_identifier(key) {
            return Err(SelectorError(format!("found '{key}', expected: identifier")));
        }
        let mut errors = Vec::new();
        check_key(key, "<nil>", &mut errors);
        if !errors.is_empty() {
            return Err(SelectorError(field::aggregate(&errors)));
        }
        if absent {
            return Requirement::new(key.to_owned(), Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), "" | ",") {
            return Requirement::new(key.to_owned(), Operator::Exists, Vec::new());
        }
        let operator = match self.take() {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            "=" => Operator::Equals,
            "==" => Operator::DoubleEquals,
            "!=" => Operator::NotEquals,
            ">" => Operator::GreaterThan,
            "<" => Operator::LessThan,
            other => {
                return Err(SelectorError(format!(
                    "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                )));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key.to_owned(), operator, values)
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let open = self.take();
        if open != "(" {
            return Err(SelectorError(format!("found '{open}' expected: '('")));
        }
        let mut values = Vec::new();
        loop {
            let token = self.peek();
            if Self::is_identifier(token) {
                values.push(self.take().to_owned());
            } else {
                values.push(String::new());
            }
            match self.take() {
                "," => {}
                ")" => break,
                other => return Err(SelectorError(format!("found '{other}', expected: ',' or ')'"))),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if Self::is_identifier(token) => Ok(self.take().to_owned()),
            other => Err(SelectorError(format!("found '{other}', expected: identifier"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_match_as_upstreams_do() {
        let labels = json!({"app": "web", "tier": "1", "empty": ""});
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web)", true),
            ("app notin (web)", false),
            ("nothere notin (web)", true),
            ("!nothere", true),
            ("!app", false),
            ("tier>0", true),
            ("tier<1", false),
            ("app>1", false),
            ("empty=", true),
            ("app=,tier", false),
            ("empty in (,x)", true),
            ("in in (in)", false),
            ("  app = web ", true),
        ];
        for (text, matches) in cases {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.matches_json(&labels), matches, "{text}");
        }
    }

    #[test]
    fn the_text_of_a_selector_is_normal() {
        let selector = Selector::parse("z notin (b,a), a==1,!q,e").expect("selector");
        assert_eq!(selector.to_string(), "a==1,e,!q,z notin (a,b)");
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        let cases = [
            ("a=b,", "found '', expected: identifier after ','"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(Selector::parse(text).expect_err(text).to_string(), message, "{text}");
        }
        assert!(Selector::parse("-a").expect_err("bad key").to_string().starts_with(
            "unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"
        ));
    }

    #[test]
    fn a_label_selector_reads_the_same_from_json() {
        let json = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["x", "y"]}]});
        let typed: LabelSelector = serde_json::from_value(json.clone()).expect("label selector");
        let selector = Selector::from_json(&json).expect("selector");
        assert_eq!(Selector::from_label_selector(Some(&typed)).expect("selector"), selector);
        assert_eq!(selector.to_string(), "a=b,c in (x,y)");
        assert!(!Selector::from_json(&Value::Null).expect("nothing").matches(|_| Some("b")));
        assert!(Selector::from_json(&json!({})).expect("all").is_everything());
    }

    proptest::proptest! {
        #[test]
        fn any_selector_is_answered(text in "[a-z!=,() /.<>]{0,32}|\\PC{0,32}") {
            if let Ok(selector) = Selector::parse(&text) {
                let labels = json!({"a": "b"});
                let _ = selector.matches_json(&labels);
            }
        }
    }
}
