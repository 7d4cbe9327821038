//! Image references as Docker and containerd read them.
//!
//! In: what people write (`nginx`, `ghcr.io/a/b:1@sha256:…`). Out: a [`Reference`] whose `Display` is the full
//! form. Grammar: <https://pkg.go.dev/github.com/distribution/reference>.

use std::{fmt, str::FromStr};

/// Longest `domain/path` (bytes), as upstream.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag (bytes).
const TAG_BYTES_MAX: usize = 128;
/// Shortest digest that is accepted (hexadecimal digits).
const DIGEST_HEX_MIN: usize = 32;
/// The registry that names without a domain belong to.
const DEFAULT_DOMAIN: &str = "docker.io";

/// Text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {name:?}: invalid reference format{more}", name = .0, more = upper_case(.0))]
pub struct InvalidReference(pub String);

/// What upstream adds for the commonest mistake.
fn upper_case(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let Some(path) = parse(&lower).map(|reference| reference.path).filter(|_| lower != text) else {
        return String::new();
    };
    let written = |part: &str| lower.find(part).map(|at| text[at..at + part.len()].to_owned());
    let official = || Some(format!("library/{}", written(path.strip_prefix("library/")?)?));
    let name = written(&path).or_else(official).unwrap_or(path);
    format!(": repository name ({name}) must be lowercase")
}

/// A normalised reference: has a domain, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub domain: String,
    /// `library/nginx`.
    pub path: String,
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// `domain/path`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path@digest`.
    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }

    /// What a registry is asked for: the digest when there is one, else the tag.
    pub fn object(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).ok_or_else(|| InvalidReference(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Reference> {
    // A bare image id cannot be told from a name and is refused, as upstream does.
    if text.len() == 64 && is_hex(text) {
        return None;
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (domain, rest) = split_domain(rest);
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    let valid = is_domain(domain)
        && path.split('/').all(is_path_component)
        && domain.len() + 1 + path.len() <= NAME_BYTES_MAX
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    valid.then(|| Reference {
        domain: domain.to_owned(),
        path,
        tag: match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        },
        digest: digest.map(str::to_owned),
    })
}

/// The first component is a domain when it looks like one; else all is a path on Docker Hub.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first =>
        {
            (if first == "index.docker.io" { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match port.strip_prefix(':') {
                Some(port) => return is_port(port),
                None => return port.is_empty(),
            }
        }
        None => domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port))),
    };
    port.is_none_or(is_port)
        && host.split('.').all(|label| {
            let bytes = label.as_bytes();
            !bytes.is_empty()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
                && bytes[0] != b'-'
                && bytes[bytes.len() - 1] != b'-'
        })
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let mut separator = String::new();
    let mut seen = false;
    for c in component.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let legal = matches!(separator.as_str(), "" | "." | "_" | "__")
                    || separator.chars().all(|s| s == '-');
                if !legal || (!seen && !separator.is_empty()) {
                    return false;
                }
                separator.clear();
                seen = true;
            }
            '.' | '_' | '-' => separator.push(c),
            _ => return false,
        }
    }
    seen && separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= TAG_BYTES_MAX
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    match digest.split_once(':') {
        Some(("sha256", hex)) => hex.len() == 64 && is_hex(hex),
        Some((algorithm, hex)) => {
            !algorithm.is_empty()
                && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+._-".contains(&b))
                && hex.len() >= DIGEST_HEX_MIN
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (written, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("grafana/grafana:11", "docker.io/grafana/grafana:11".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            ("board:5000/a", "board:5000/a:latest".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            ("10.0.0.1:5000/x__y/z-1.2", "10.0.0.1:5000/x__y/z-1.2:latest".to_owned()),
            ("Registry/a", "Registry/a:latest".to_owned()),
            ("sampan.dev/demo", "sampan.dev/demo:latest".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("ghcr.io/a/b:1@{digest}"), format!("ghcr.io/a/b:1@{digest}")),
        ] {
            let parsed: Reference = written.parse().unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(parsed.to_string(), full, "{written}");
            assert_eq!(full.parse::<Reference>().unwrap(), parsed, "{full} is stable");
        }
    }

    #[test]
    fn wrong_references_are_refused() {
        let id = "ab".repeat(32);
        let long = format!("a/{}", "b".repeat(255));
        for written in [
            "",
            "Nginx",
            "nginx:",
            "nginx:-x",
            "nginx/",
            "/nginx",
            "a//b",
            "a/b_",
            "a/.b",
            "a/b___c",
            "nginx@sha256:12",
            "nginx@",
            "a b",
            "https://nginx",
            "x.y:port/a",
            "-x.y/a",
            "[::1:5000/a",
            id.as_str(),
            long.as_str(),
        ] {
            assert!(matches!(written.parse::<Reference>(), Err(InvalidReference(_))), "{written:?}");
        }
    }

    #[test]
    fn a_name_in_capitals_is_told_as_such() {
        for (written, said) in [
            (
                "test.local/Team/App:1",
                "invalid reference format: repository name (Team/App) must be lowercase",
            ),
            ("Nginx", "invalid reference format: repository name (library/Nginx) must be lowercase"),
            ("a b", "couldn't parse image name \"a b\": invalid reference format"),
        ] {
            let error = written.parse::<Reference>().unwrap_err().to_string();
            assert!(error.ends_with(said), "{error}");
        }
    }

    #[test]
    fn a_digest_is_asked_for_before_a_tag() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let both: Reference = format!("a:1@{digest}").parse().unwrap();
        assert_eq!(both.object(), digest);
        assert_eq!("a:1".parse::<Reference>().unwrap().object(), "1");
    }
}
