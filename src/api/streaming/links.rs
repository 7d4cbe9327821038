//! Links in pages that come through a proxy: what points at the backend's root is made to point
//! below the proxy's path (`k8s.io/apimachinery/pkg/util/proxy/transport.go`).

/// Attributes that hold a link.
const ATTRIBUTES: &[&str] = &[
    "action",
    "background",
    "cite",
    "codebase",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "profile",
    "src",
    "usemap",
];

/// Where a link leads that a backend gives: `prefix` is the proxy's path without a trailing slash.
/// Links to other hosts, and relative ones, stay.
pub fn location(link: &str, prefix: &str) -> String {
    if link.starts_with('/') && !link.starts_with("//") && !link.starts_with(&format!("{prefix}/")) {
        format!("{prefix}{link}")
    } else {
        link.to_owned()
    }
}

/// A page with the links of its tags rewritten.
pub fn page(html: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(html.len() + 256);
    let mut rest = html;
    while let Some(begin) = rest.find('<') {
        let (text, tag) = rest.split_at(begin);
        out.push_str(text);
        let end = tag_end(tag);
        rewrite_tag(&tag[..end], prefix, &mut out);
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Where a tag ends: behind the `>` that stands in no quotes, or at the end of the page.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (at, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), _) if open == byte => quote = None,
            (None, b'>') => return at + 1,
            _ => {}
        }
    }
    tag.len()
}

/// Copies a tag, the values of its links rewritten.
fn rewrite_tag(tag: &str, prefix: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, behind) = rest.split_at(equals + 1);
        out.push_str(before);
        let name = before[..equals].trim_end().rsplit(|c: char| c.is_ascii_whitespace()).next();
        let is_link = name.is_some_and(|n| ATTRIBUTES.iter().any(|a| a.eq_ignore_ascii_case(n)));
        let value = behind.trim_start();
        out.push_str(&behind[..behind.len() - value.len()]);
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            rest = value;
            continue;
        };
        let Some(length) = value[1..].find(quote) else {
            out.push_str(value);
            return;
        };
        let link = &value[1..=length];
        out.push(quote);
        if is_link {
            out.push_str(&location(link, prefix));
        } else {
            out.push_str(link);
        }
        out.push(quote);
        rest = &value[length + 2..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_through_the_proxy() {
        let cases = [
            (r#"<a href="/rewriteme">test</a>"#, r#"<a href="/p/rewriteme">test</a>"#),
            (r#"<img alt="/x" SRC = '/a?b=c'>"#, r#"<img alt="/x" SRC = '/p/a?b=c'>"#),
            (
                r#"<a href="b.html"> <a href="//h/x"> <a href="http://h/">"#,
                r#"<a href="b.html"> <a href="//h/x"> <a href="http://h/">"#,
            ),
            (r#"a < b = "/c" <p"#, r#"a < b = "/c" <p"#),
            ("<a href=\"/é", "<a href=\"/é"),
            (r#"<a href="/p/x">"#, r#"<a href="/p/x">"#),
        ];
        for (given, wanted) in cases {
            assert_eq!(page(given, "/p"), wanted);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_page_breaks_the_reader(html in "[<>=\"' a-zé/]{0,64}") {
            let _ = page(&html, "/p");
        }
    }
}
