//! kubectl's JSONPath templates: `{range .items[*]}{.metadata.name}{"\n"}{end}`.
//!
//! Source: <https://kubernetes.io/docs/reference/kubectl/jsonpath/>. Text outside braces stands for
//! itself; several results are joined by a space; strings are printed without quotes.
//! Deliberately absent: `&&` and `||` in filters, regular expressions (kubectl has neither).

use anyhow::{Context, bail};
use serde_json::Value;

/// How deep `range` may be nested.
const DEPTH_MAX: usize = 16;

#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Part>),
}

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Descendants(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Filter(Filter),
}

/// `?(@.type=="Ready")`; without an operator: the left side exists.
#[derive(Debug, PartialEq)]
struct Filter {
    left: Vec<Step>,
    test: Option<(&'static str, Operand)>,
}

#[derive(Debug, PartialEq)]
enum Operand {
    Literal(Value),
    Path(Vec<Step>),
}

/// A template, parsed.
#[derive(Debug)]
pub struct Template(Vec<Part>);

impl Template {
    /// # Errors
    /// What is wrong with the template, and where.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parser = Parser { text, rest: text };
        let parts = parser.parts(0)?;
        Ok(Self(parts))
    }

    /// One path, with or without braces and leading dot, as `custom-columns` and `--sort-by` take it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn path(text: &str) -> anyhow::Result<Self> {
        let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
        let dotted =
            if inner.starts_with(['.', '[', '$', '@']) { inner.to_owned() } else { format!(".{inner}") };
        Self::parse(&format!("{{{dotted}}}"))
    }

    /// The template filled in from an object.
    pub fn render(&self, root: &Value) -> String {
        let mut out = String::new();
        render(&self.0, root, &mut out);
        out
    }

    /// The values that the template's paths find, in order.
    pub fn values<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        let paths =
            self.0.iter().filter_map(|part| if let Part::Path(steps) = part { Some(steps) } else { None });
        paths.flat_map(|steps| select(steps, vec![root])).collect()
    }
}

fn render(parts: &[Part], here: &Value, out: &mut String) {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(steps) => {
                let found: Vec<_> = select(steps, vec![here]).into_iter().map(text).collect();
                out.push_str(&found.join(" "));
            }
            Part::Range(steps, body) => {
                for item in select(steps, vec![here]) {
                    render(body, item, out);
                }
            }
        }
    }
}

/// A value as kubectl prints it.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn select<'v>(steps: &[Step], mut values: Vec<&'v Value>) -> Vec<&'v Value> {
    for step in steps {
        values = values.into_iter().flat_map(|value| follow(step, value)).collect();
    }
    values
}

fn follow<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let at = |index: i64| usize::try_from(if index < 0 { index + items.len() as i64 } else { index }).ok();
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Descendants(name) => {
            let mut found = Vec::new();
            descend(name, value, &mut found);
            found
        }
        Step::Index(index) => at(*index).and_then(|i| items.get(i)).into_iter().collect(),
        Step::Slice(from, to) => {
            let from = at(from.unwrap_or(0)).unwrap_or(0).min(items.len());
            let to = to.map_or(items.len(), |to| at(to).unwrap_or(0).min(items.len()));
            items.get(from..to).into_iter().flatten().collect()
        }
        Step::All => match value {
            Value::Object(fields) => fields.values().collect(),
            _ => items.iter().collect(),
        },
        Step::Filter(filter) => items.iter().filter(|item| holds(filter, item)).collect(),
    }
}

fn descend<'v>(name: &str, value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name));
            fields.values().for_each(|child| descend(name, child, found));
        }
        Value::Array(items) => items.iter().for_each(|child| descend(name, child, found)),
        _ => {}
    }
}

fn holds(filter: &Filter, item: &Value) -> bool {
    let found = select(&filter.left, vec![item]);
    let Some(left) = found.first() else { return false };
    let Some((operator, operand)) = &filter.test else { return true };
    let others;
    let right = match operand {
        Operand::Literal(value) => value,
        Operand::Path(steps) => {
            others = select(steps, vec![item]);
            let Some(right) = others.first() else { return false };
            *right
        }
    };
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        _ => Some(text(left).cmp(&text(right))),
    };
    order.is_some_and(|order| match *operator {
        "==" => order.is_eq(),
        "!=" => order.is_ne(),
        "<=" => order.is_le(),
        ">=" => order.is_ge(),
        "<" => order.is_lt(),
        _ => order.is_gt(),
    })
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl Parser<'_> {
    /// Parts up to the end, or to the `{end}` of a range.
    fn parts(&mut self, depth: usize) -> anyhow::Result<Vec<Part>> {
        if depth > DEPTH_MAX {
            bail!("ranges are nested deeper than {DEPTH_MAX}");
        }
        let mut parts = Vec::new();
        while !self.rest.is_empty() {
            let (text, more) = self.rest.split_at(self.rest.find('{').unwrap_or(self.rest.len()));
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            self.rest = more;
            if !self.eat("{") {
                break;
            }
            self.spaces();
            if self.eat("end") {
                self.close()?;
                if depth == 0 {
                    bail!("{}: {{end}} without {{range}}", self.place());
                }
                return Ok(parts);
            }
            if self.eat("range ") {
                self.spaces();
                let steps = self.steps()?;
                self.close()?;
                parts.push(Part::Range(steps, self.parts(depth + 1)?));
            } else if self.rest.starts_with(['"', '\'']) {
                parts.push(Part::Text(self.quoted()?));
                self.close()?;
            } else {
                parts.push(Part::Path(self.steps()?));
                self.close()?;
            }
        }
        if depth > 0 {
            bail!("{{range}} without {{end}}");
        }
        Ok(parts)
    }

    fn place(&self) -> String {
        format!("jsonpath at character {}", self.text.len() - self.rest.len() + 1)
    }

    fn eat(&mut self, what: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(what) else { return false };
        self.rest = rest;
        true
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn close(&mut self) -> anyhow::Result<()> {
        self.spaces();
        if !self.eat("}") {
            bail!("{}: expected }}", self.place());
        }
        Ok(())
    }

    /// A quoted text with Go's escapes.
    fn quoted(&mut self) -> anyhow::Result<String> {
        let quote = self.rest.chars().next().context("a quote")?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(c) => text.push(c),
                    None => break,
                },
                c if c == quote => {
                    self.rest = &self.rest[index + c.len_utf8()..];
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        bail!("{}: the quote is not closed", self.place());
    }

    fn name(&mut self) -> anyhow::Result<String> {
        let mut name = String::new();
        let mut end = self.rest.len();
        let mut chars = self.rest.char_indices();
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                c if c.is_alphanumeric() || "_-/:".contains(c) => name.push(c),
                _ => {
                    end = index;
                    break;
                }
            }
        }
        if name.is_empty() {
            bail!("{}: expected a field's name", self.place());
        }
        self.rest = &self.rest[end..];
        Ok(name)
    }

    fn steps(&mut self) -> anyhow::Result<Vec<Step>> {
        let mut steps = Vec::new();
        if !self.eat("$") {
            self.eat("@");
        }
        loop {
            if self.eat("..") {
                steps.push(Step::Descendants(self.name()?));
            } else if self.eat(".*") {
                steps.push(Step::All);
            } else if self.eat(".") {
                // A lone dot is the object itself.
                if !self.rest.starts_with(['}', '[', ' ']) {
                    steps.push(Step::Field(self.name()?));
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else {
                return Ok(steps);
            }
        }
    }

    fn bracket(&mut self) -> anyhow::Result<Step> {
        self.spaces();
        let step = if self.eat("*") {
            Step::All
        } else if self.eat("?(") {
            Step::Filter(self.filter()?)
        } else if self.rest.starts_with(['"', '\'']) {
            Step::Field(self.quoted()?)
        } else {
            let from = self.number()?;
            if self.eat(":") {
                Step::Slice(from, self.number()?)
            } else {
                Step::Index(from.context("an index in []")?)
            }
        };
        self.spaces();
        if !self.eat("]") {
            bail!("{}: expected ]", self.place());
        }
        Ok(step)
    }

    fn number(&mut self) -> anyhow::Result<Option<i64>> {
        let end = self.rest.find(|c: char| c != '-' && !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        if digits.is_empty() {
            return Ok(None);
        }
        let number = digits.parse().with_context(|| format!("{}: {digits}", self.place()))?;
        self.rest = rest;
        Ok(Some(number))
    }

    fn filter(&mut self) -> anyhow::Result<Filter> {
        self.spaces();
        let left = self.steps()?;
        self.spaces();
        let operator = ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|operator| self.eat(operator));
        let test = match operator {
            None => None,
            Some(operator) => {
                self.spaces();
                Some((operator, self.operand()?))
            }
        };
        self.spaces();
        if !self.eat(")") {
            bail!("{}: expected )", self.place());
        }
        Ok(Filter { left, test })
    }

    fn operand(&mut self) -> anyhow::Result<Operand> {
        if self.rest.starts_with(['"', '\'']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        if self.rest.starts_with(['@', '$', '.']) {
            return Ok(Operand::Path(self.steps()?));
        }
        let end = self.rest.find([')', ' ']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Operand::Literal(serde_json::from_str(word).unwrap_or_else(|_| word.into())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(template: &str) -> String {
        let root = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app.io/x": "1"}}, "status": {"n": 3, "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}},
            {"metadata": {"name": "b"}, "status": {"n": 12}},
        ]});
        Template::parse(template).unwrap().render(&root)
    }

    #[test]
    fn templates_say_what_kubectl_says() {
        for (template, text) in [
            ("{.kind}", "List"),
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].metadata.labels.app\\.io/x}", "1"),
            ("{.items[0].metadata.labels['app.io/x']}", "1"),
            ("{.items[-1:].metadata.name}", "b"),
            ("{.items[0:1].metadata.name}", "a"),
            ("{range .items[*]}{.metadata.name}{\"\\n\"}{end}", "a\nb\n"),
            ("{.items[?(@.status.n>5)].metadata.name}", "b"),
            ("{.items[?(@.metadata.name==\"a\")].status.n}", "3"),
            ("{.items[*].status.conditions[?(@.type==\"Ready\")].status}", "True"),
            ("{.items[?(@.metadata.labels)].metadata.name}", "a"),
            ("{..name}", "a b"),
            ("n: {.items[0].status.n}, {.nothing}!", "n: 3, !"),
            ("{.items[1].status}", "{\"n\":12}"),
            ("{.items[1]['metadata'].name}", "b"),
            ("{@.kind} {$.kind}", "List List"),
        ] {
            assert_eq!(rendered(template), text, "{template}");
        }
    }

    #[test]
    fn wrong_templates_name_the_place() {
        for (template, why) in [
            ("{.a", "character 4: expected }"),
            ("{.items[}", "an index in []"),
            ("{range .a}", "{range} without {end}"),
            ("{end}", "{end} without {range}"),
            ("{.a[?(@.b==\"c]}", "the quote is not closed"),
            ("{.a..}", "expected a field's name"),
        ] {
            let error = Template::parse(template).unwrap_err().to_string();
            assert!(error.contains(why), "{template}: {error}");
        }
    }

    #[test]
    fn columns_need_neither_braces_nor_dot() {
        let object = json!({"metadata": {"name": "a"}});
        for path in ["metadata.name", ".metadata.name", "{.metadata.name}"] {
            assert_eq!(Template::path(path).unwrap().render(&object), "a");
        }
    }
}
