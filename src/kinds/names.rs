//! What names, keys and other small texts must look like, in upstream's words
//! (`k8s.io/apimachinery/pkg/util/validation`, `pkg/api/validate/content`).
//!
//! A rule takes a text and answers what is wrong with it; an empty answer is a good text.

/// A rule about a text.
pub type Rule = fn(&str) -> Vec<String>;

const LABEL_MAX_BYTES: usize = 63;
const SUBDOMAIN_MAX_BYTES: usize = 253;

const DNS_LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn lower_alnum(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// Whether `text` starts and ends with an `edge` byte and has only `inner` bytes between.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    match bytes {
        [] => false,
        [first, .., last] => edge(*first) && edge(*last) && bytes.iter().all(|b| inner(*b)),
        [only] => edge(*only),
    }
}

fn is_dns_label(text: &str) -> bool {
    shaped(text, lower_alnum, |b| lower_alnum(b) || b == b'-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns_label)
}

fn too_long(text: &str, max: usize) -> Vec<String> {
    if text.len() > max { vec![format!("must be no more than {max} bytes")] } else { Vec::new() }
}

fn does_not_match(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<_> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

/// A DNS label of RFC 1123: namespaces, containers, volumes.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, LABEL_MAX_BYTES);
    if !is_dns_label(text) {
        wrong.push(if is_dns_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            does_not_match(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                DNS_LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    wrong
}

/// A DNS subdomain of RFC 1123: most objects' names.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, SUBDOMAIN_MAX_BYTES);
    if !is_dns_subdomain(text) {
        wrong.push(does_not_match(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            DNS_SUBDOMAIN,
            &["example.com"],
        ));
    }
    wrong
}

/// `*.` and a DNS subdomain (RFC 1034 section 4.3.3).
pub fn wildcard_subdomain(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, SUBDOMAIN_MAX_BYTES);
    if !text.strip_prefix("*.").is_some_and(is_dns_subdomain) {
        wrong.push(does_not_match(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!(r"\*\.{DNS_SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    wrong
}

/// A label's key, and everything else with an optional DNS prefix.
pub fn qualified(text: &str) -> Vec<String> {
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut wrong = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, rest)) if rest.contains('/') => {
            let rule = does_not_match(&format!("a valid label key {MESSAGE}"), LABEL_KEY, EXAMPLES);
            return vec![format!(
                "{rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(dns_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_BYTES {
        wrong.push(format!("name part must be no more than {LABEL_MAX_BYTES} bytes"));
    }
    if !is_label_part(name) {
        wrong.push(format!("name part {}", does_not_match(MESSAGE, LABEL_KEY, EXAMPLES)));
    }
    wrong
}

fn is_label_part(text: &str) -> bool {
    shaped(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut wrong = too_long(text, LABEL_MAX_BYTES);
    if !text.is_empty() && !is_label_part(text) {
        wrong.push(does_not_match(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({LABEL_KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    wrong
}

/// What may stand in a URL's path: RBAC and other lax names.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"].iter().filter(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// The name of a port: an IANA service name (RFC 6335).
pub fn port_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    let mut rule = |holds: bool, message: &str| {
        if !holds {
            wrong.push(message.to_owned());
        }
    };
    rule(
        !text.is_empty() && text.bytes().all(|b| lower_alnum(b) || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    rule(text.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    rule(!text.contains("--"), "must not contain consecutive hyphens");
    rule(!text.starts_with('-') && !text.ends_with('-'), "must not begin or end with a hyphen");
    wrong
}

/// The name of an environment variable, as upstream's relaxed rule has it.
pub fn env_name(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.is_empty() {
        wrong.push("environment variable name must be non-empty".to_owned());
    }
    if !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        wrong.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    wrong
}

/// A key of a ConfigMap or Secret: a file name.
pub fn config_key(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > SUBDOMAIN_MAX_BYTES {
        wrong.push(format!("must be no more than {SUBDOMAIN_MAX_BYTES} characters"));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        wrong.push(does_not_match(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// A percentage: `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let good = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if good {
        return Vec::new();
    }
    vec![does_not_match(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// The name of an HTTP header.
pub fn http_header(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![does_not_match(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A rule for `generateName`: what will be appended makes an ending dash good.
pub fn as_prefix(text: &str, rule: Rule) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => rule(&format!("{}a", &rest[..rest.len() - last_width(rest)])),
        _ => rule(text),
    }
}

/// The width of the last character: upstream drops it together with the dash.
fn last_width(text: &str) -> usize {
    text.chars().next_back().map_or(0, char::len_utf8)
}

/// What is wrong with a port number.
pub fn port_number(port: i64) -> Option<String> {
    in_range(port, 1, 65535)
}

/// What is wrong with a number that must lie in `low..=high`.
pub fn in_range(number: i64, low: i64, high: i64) -> Option<String> {
    (!(low..=high).contains(&number)).then(|| format!("must be between {low} and {high}, inclusive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_texts_pass_and_bad_ones_do_not() {
        let cases: &[(Rule, &[&str], &[&str])] = &[
            (dns_label, &["a", "a-b", "1a"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (dns_subdomain, &["a", "a.b-c"], &["", "a..b", ".a", "a.", "A.b", "a.-b"]),
            (wildcard_subdomain, &["*.a.b"], &["*", "*.", "*a.b", "*.*.a"]),
            (qualified, &["a", "A_b.c", "x.io/a"], &["", "/a", "x/", "a/b/c", "X.io/a", "-a"]),
            (label_value, &["", "a", "A_1.x"], &["-a", "a b", "é"]),
            (path_segment, &["system:node", ""], &[".", "..", "a/b", "a%"]),
            (port_name, &["http", "a-1"], &["", "123", "a--b", "-a", "A", "abcdefghijklmnop"]),
            (env_name, &["A", "a.b", "1"], &["", "a=b", "é"]),
            (config_key, &["a.b", "_A-1", ".a"], &["", "..", ".", "..a", "a/b"]),
            (percent, &["1%"], &["%", "1", "a%"]),
        ];
        for (rule, good, bad) in cases {
            good.iter().for_each(|text| assert_eq!(rule(text), Vec::<String>::new(), "{text}"));
            bad.iter().for_each(|text| assert_ne!(rule(text), Vec::<String>::new(), "{text}"));
        }
        assert!(as_prefix("my-app-", dns_subdomain).is_empty());
        assert!(!as_prefix("-", dns_subdomain).is_empty());
    }

    #[test]
    fn the_words_are_upstreams() {
        assert_eq!(
            dns_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(port_number(0).as_deref(), Some("must be between 1 and 65535, inclusive"));
    }
}
