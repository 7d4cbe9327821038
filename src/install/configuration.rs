//! The keys of `config.yaml`, from the flags themselves: a skeleton, single keys, and the page of
//! the documentation.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

/// The keys that a command takes from the file.
fn keys(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let long = arg.get_long();
        long.is_some() && !matches!(long, Some("config" | "help" | "version"))
    })
}

fn help(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default().trim().to_owned()
}

fn default(arg: &Arg) -> Option<String> {
    let values: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn placeholder(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    names.first().map_or("VALUE".to_owned(), ToString::to_string)
}

/// A file with every key, commented out, with what it would be without it.
pub fn skeleton(command: &Command) -> String {
    let mut text = format!(
        "# Configuration of `sampan {}`. What is commented out is as the line says.\n\
         # Lists are written [a, b]. `sampan {} --help` tells more.\n",
        command.get_name(),
        command.get_name()
    );
    for arg in keys(command) {
        let key = arg.get_long().expect("keys have names");
        let value = default(arg).unwrap_or_else(|| placeholder(arg));
        let _ = write!(text, "\n# {}\n#{key}: {value}\n", help(arg).replace('\n', "\n# "));
    }
    text
}

/// Sets one key in the text of a configuration, leaving everything else as it is.
pub fn set(text: &str, key: &str, value: &str) -> String {
    let line = format!("{key}: {}", serde_json::Value::from(value));
    let is_key = |found: &str| found.split_once(':').is_some_and(|(name, _)| name == key);
    let active = text.lines().position(is_key);
    let place = active.or_else(|| text.lines().position(|found| found.strip_prefix('#').is_some_and(is_key)));
    let mut lines: Vec<&str> = text.lines().collect();
    match place {
        Some(at) => lines[at] = &line,
        None => lines.push(&line),
    }
    lines.join("\n") + "\n"
}

/// A Markdown table of the keys.
pub fn table(command: &Command) -> String {
    let mut text = "| key and flag | variable | without it | what |\n| --- | --- | --- | --- |\n".to_owned();
    for arg in keys(command) {
        let mut what = help(arg).replace('\n', " ").replace('|', "\\|");
        let choices = arg.get_possible_values();
        if !choices.is_empty() && !matches!(arg.get_action(), ArgAction::SetTrue) {
            let names: Vec<_> = choices.iter().map(|choice| format!("`{}`", choice.get_name())).collect();
            let _ = write!(what, ": {}", names.join(", "));
        }
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {} | {what} |",
            arg.get_long().expect("keys have names"),
            arg.get_env().map(|env| env.to_string_lossy().into_owned()).unwrap_or_default(),
            default(arg).map_or_else(|| "—".to_owned(), |value| format!("`{value}`")),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::config;

    const HEAD: &str = "\
# Configuration

A daemon takes each setting from its flag (`--node-name kitchen`), else from its variable
(`SAMPAN_NODE_NAME=kitchen`), else from the file (`node-name: kitchen`), else as the table says.
The file is `/etc/sampan/config.yaml`, or what `--config` names; an unknown key or a wrong value is refused
with the key's name. Lists are written `[a, b]` in the file and `a,b` elsewhere. After a change:
`systemctl restart sampan` (`sampan-agent` on a worker); containers run on meanwhile.

This page is generated from the flags themselves and a test holds it against them.
";

    /// The keys and variables of a page, in order.
    fn names(page: &str) -> Vec<&str> {
        let rows = page.lines().filter(|line| line.starts_with("| `") || line.starts_with("## "));
        rows.map(|row| row.rsplitn(3, " | ").last().unwrap_or(row)).collect()
    }

    fn server() -> Command {
        config::Server::augment_args(Command::new("server"))
    }

    #[test]
    fn the_skeleton_says_nothing_and_each_of_its_lines_is_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let text = skeleton(&server());
        std::fs::write(&path, &text).unwrap();
        config::with_file(server(), &path).unwrap();
        // The same with every line that has a default in force.
        let on: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .filter(|line| !line.split(": ").nth(1).unwrap().chars().all(|c| c.is_uppercase() || c == ':'))
            .collect();
        let on = on.join("\n");
        assert!(on.lines().count() > 10, "{on}");
        std::fs::write(&path, on).unwrap();
        let command = config::with_file(server(), &path).unwrap();
        command.try_get_matches_from(["server"]).unwrap();
    }

    #[test]
    fn a_key_is_set_once_and_the_rest_stays() {
        let text = "# mine\nnode-name: kitchen\n\n# The master's broker\n#join: URL\n";
        let once = set(text, "join", "mqtts://a:8883");
        assert_eq!(once, "# mine\nnode-name: kitchen\n\n# The master's broker\njoin: \"mqtts://a:8883\"\n");
        assert_eq!(set(&once, "join", "mqtts://a:8883"), once);
        assert!(set(&once, "join", "mqtts://b:8883").contains("\njoin: \"mqtts://b:8883\"\n"));
        assert!(set(&once, "token", "t").ends_with("\ntoken: \"t\"\n"));
    }

    /// docs/configuration.md is what the flags say. To write it anew:
    /// `UPDATE_GOLDEN=1 cargo test --lib configuration`.
    #[test]
    fn the_page_of_the_keys_is_true() {
        let agent = config::Agent::augment_args(Command::new("agent"));
        let page = format!(
            "{}\n## `sampan server`\n\n{}\n## `sampan agent`\n\n{}",
            HEAD,
            table(&server()),
            table(&agent)
        );
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(names(&there), names(&page), "write {path} anew with UPDATE_GOLDEN=1");
    }
}
