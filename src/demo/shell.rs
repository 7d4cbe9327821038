//! A shell of lines: words, quotes, variables, `;`, `&&`, `||`, `|`, `>`, `>>`, `<`, `2>`, `2>&1`.
//!
//! Deliberately absent: loops, functions, substitution of commands, patterns, jobs.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, IsTerminal, Write},
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{Failure, TABLE, commands::host_name};

/// A word, variables still in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Vec<Part>),
    /// `;`, `&&`, `||`, `|`, `>`, `>>`, `<`, `2>`, `2>>`, `2>&1`
    Operator(&'static str),
}

/// Longest first.
const OPERATORS: &[&str] = &["2>&1", "2>>", "2>", "&&", "||", ">>", ";", "|", ">", "<", "\n"];

/// Programs with their redirections, joined by pipes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Program {
    words: Vec<Vec<Part>>,
    redirections: Vec<(&'static str, Vec<Part>)>,
}

/// What decides whether a pipeline runs.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum When {
    Always,
    Succeeded,
    Failed,
}

fn tokens(line: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut word: Option<Vec<Part>> = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let starts = word.is_none();
        let operator = OPERATORS
            .iter()
            .find(|operator| rest.starts_with(**operator) && (starts || !operator.starts_with('2')));
        if let Some(operator) = operator {
            tokens.extend(word.take().map(Token::Word));
            tokens.push(Token::Operator(if *operator == "\n" { ";" } else { operator }));
            rest = &rest[operator.len()..];
            continue;
        }
        match c {
            '#' if starts => rest = rest.find('\n').map_or("", |end| &rest[end..]),
            ' ' | '\t' | '\r' => {
                tokens.extend(word.take().map(Token::Word));
                rest = &rest[1..];
            }
            '\'' => {
                let end = rest[1..].find('\'').ok_or("unterminated quote")? + 1;
                push_text(word.get_or_insert_default(), &rest[1..end]);
                rest = &rest[end + 1..];
            }
            '"' => rest = quoted(&rest[1..], word.get_or_insert_default())?,
            '\\' => {
                let escaped = rest[1..].chars().next().ok_or("nothing after a backslash")?;
                push_text(word.get_or_insert_default(), &escaped.to_string());
                rest = &rest[1 + escaped.len_utf8()..];
            }
            '$' => rest = variable(&rest[1..], word.get_or_insert_default())?,
            _ => {
                push_text(word.get_or_insert_default(), &rest[..c.len_utf8()]);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

fn push_text(word: &mut Vec<Part>, text: &str) {
    match word.last_mut() {
        Some(Part::Text(last)) => last.push_str(text),
        _ => word.push(Part::Text(text.to_owned())),
    }
}

/// Reads to the closing `"`; returns what follows.
fn quoted<'a>(mut rest: &'a str, word: &mut Vec<Part>) -> Result<&'a str, &'static str> {
    push_text(word, "");
    loop {
        let c = rest.chars().next().ok_or("unterminated quote")?;
        match c {
            '"' => return Ok(&rest[1..]),
            '$' => rest = variable(&rest[1..], word)?,
            '\\' if rest[1..].starts_with(['"', '\\', '$']) => {
                push_text(word, &rest[1..2]);
                rest = &rest[2..];
            }
            _ => {
                push_text(word, &rest[..c.len_utf8()]);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
}

/// Reads a variable's name after `$`; returns what follows.
fn variable<'a>(rest: &'a str, word: &mut Vec<Part>) -> Result<&'a str, &'static str> {
    if let Some(braced) = rest.strip_prefix('{') {
        let (name, rest) = braced.split_once('}').ok_or("unterminated ${")?;
        word.push(Part::Variable(name.to_owned()));
        return Ok(rest);
    }
    if rest.starts_with(['?', '$']) {
        word.push(Part::Variable(rest[..1].to_owned()));
        return Ok(&rest[1..]);
    }
    if rest.starts_with('(') {
        return Err("$( ) is not supported");
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    if end == 0 {
        push_text(word, "$");
    } else {
        word.push(Part::Variable(rest[..end].to_owned()));
    }
    Ok(&rest[end..])
}

type Line = Vec<(When, Vec<Program>)>;

fn parse(line: &str) -> Result<Line, &'static str> {
    let mut result: Line = Vec::new();
    let mut when = When::Always;
    let mut pipeline = vec![Program::default()];
    let finish = |result: &mut Line, when: When, pipeline: &mut Vec<Program>| {
        let done = std::mem::replace(pipeline, vec![Program::default()]);
        let empty = |program: &Program| program.words.is_empty() && program.redirections.is_empty();
        match (done.iter().any(empty), done.len()) {
            (true, 1) if when == When::Always => Ok(()),
            (true, _) => Err("a command is missing"),
            (false, _) => {
                result.push((when, done));
                Ok(())
            }
        }
    };
    let mut tokens = tokens(line)?.into_iter();
    while let Some(token) = tokens.next() {
        let program = pipeline.last_mut().ok_or("a command is missing")?;
        match token {
            Token::Word(word) => program.words.push(word),
            Token::Operator("2>&1") => program.redirections.push(("2>&1", Vec::new())),
            Token::Operator("|") => pipeline.push(Program::default()),
            Token::Operator(operator @ (";" | "&&" | "||")) => {
                let before = result.len();
                finish(&mut result, when, &mut pipeline)?;
                if operator != ";" && result.len() == before {
                    return Err("a command is missing");
                }
                when = match operator {
                    "&&" => When::Succeeded,
                    "||" => When::Failed,
                    _ => When::Always,
                };
            }
            Token::Operator(operator) => match tokens.next() {
                Some(Token::Word(word)) => program.redirections.push((operator, word)),
                _ => return Err("a file name is missing"),
            },
        }
    }
    finish(&mut result, when, &mut pipeline)?;
    Ok(result)
}

struct Shell {
    last: i32,
}

impl Shell {
    fn expand(&self, word: &[Part]) -> String {
        word.iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Variable(name) if name == "?" => self.last.to_string(),
                Part::Variable(name) if name == "$" => std::process::id().to_string(),
                Part::Variable(name) => {
                    std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()).unwrap_or_default()
                }
            })
            .collect()
    }

    /// Runs a line; `Some` is the code to leave with. With `last`, the last program replaces the shell.
    fn run(&mut self, text: &str, last: bool) -> Option<i32> {
        let line = match parse(text) {
            Ok(line) => line,
            Err(message) => {
                eprintln!("sh: {message}");
                self.last = 2;
                return None;
            }
        };
        let count = line.len();
        for (i, (when, pipeline)) in line.iter().enumerate() {
            let runs = match when {
                When::Always => true,
                When::Succeeded => self.last == 0,
                When::Failed => self.last != 0,
            };
            if runs && let Some(code) = self.pipeline(pipeline, last && i + 1 == count) {
                return Some(code);
            }
        }
        None
    }

    fn pipeline(&mut self, pipeline: &[Program], replace: bool) -> Option<i32> {
        if let [program] = pipeline {
            let words: Vec<String> = program.words.iter().map(|word| self.expand(word)).collect();
            if let Some(exit) = self.builtin(&words) {
                return exit.break_value();
            }
            if replace && let Ok(mut command) = self.command(program) {
                let error = super::become_command(&mut command);
                eprintln!("sh: {}: {error}", words[0]);
                return Some(127);
            }
        }
        let mut children: Vec<Child> = Vec::new();
        let mut piped: Option<Stdio> = None;
        for (i, program) in pipeline.iter().enumerate() {
            let spawned = self.command(program).and_then(|mut command| {
                if let Some(input) = piped.take() {
                    command.stdin(input);
                }
                if i + 1 < pipeline.len() {
                    command.stdout(Stdio::piped());
                }
                command.spawn()
            });
            match spawned {
                Ok(mut child) => {
                    piped = child.stdout.take().map(Stdio::from);
                    children.push(child);
                }
                Err(error) => {
                    let name = program.words.first().map(|word| self.expand(word)).unwrap_or_default();
                    eprintln!("sh: {name}: {error}");
                    self.last = 127;
                    for mut child in children {
                        drop(child.wait());
                    }
                    return None;
                }
            }
        }
        for mut child in children {
            if let Ok(status) = child.wait() {
                self.last = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
        }
        None
    }

    /// What must happen in the shell itself; `Break` has the code to leave with.
    fn builtin(&mut self, words: &[String]) -> Option<ControlFlow<i32>> {
        let (name, args) = words.split_first()?;
        self.last = match name.as_str() {
            "exit" => {
                return Some(ControlFlow::Break(
                    args.first().map_or(self.last, |code| code.parse().unwrap_or(2)),
                ));
            }
            "cd" => {
                let to = args.first().map_or("/", String::as_str);
                let changed = std::env::set_current_dir(to);
                i32::from(changed.map_err(|error| eprintln!("sh: cd: {to}: {error}")).is_err())
            }
            "pwd" => {
                println!("{}", std::env::current_dir().unwrap_or_default().display());
                0
            }
            _ => return None,
        };
        Some(ControlFlow::Continue(()))
    }

    /// A program on the path, or else an applet of this binary.
    fn command(&self, program: &Program) -> io::Result<Command> {
        let words: Vec<String> = program.words.iter().map(|word| self.expand(word)).collect();
        let missing = || io::Error::new(io::ErrorKind::NotFound, "command not found");
        let (name, args) = words.split_first().ok_or_else(missing)?;
        let mut command = match find(name) {
            Some(path) => Command::new(path),
            None if TABLE.iter().any(|applet| applet.0 == name) => {
                let mut command = Command::new("/proc/self/exe");
                command.args(["demo", name]);
                command
            }
            None => return Err(missing()),
        };
        command.args(args);
        let mut output = None;
        for (operator, word) in &program.redirections {
            let path = self.expand(word);
            let open = |append: bool| -> io::Result<File> {
                OpenOptions::new().write(true).create(true).append(append).truncate(!append).open(&path)
            };
            match *operator {
                "<" => drop(command.stdin(File::open(&path)?)),
                "2>&1" => {
                    let both = match &output {
                        Some(file) => File::try_clone(file)?.into(),
                        None => Stdio::from(io::stdout()),
                    };
                    command.stderr(both);
                }
                "2>" | "2>>" => drop(command.stderr(open(*operator == "2>>")?)),
                append => {
                    let file = open(append == ">>")?;
                    output = Some(file.try_clone()?);
                    command.stdout(file);
                }
            }
        }
        Ok(command)
    }
}

/// Where a program lies: by its path, or in the folders of `PATH`.
fn find(name: &str) -> Option<std::path::PathBuf> {
    if name.contains('/') {
        return Some(name.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| Path::is_file(file))
}

pub fn sh(args: &[String]) -> Result<u8, Failure> {
    let mut shell = Shell { last: 0 };
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let code = match words.as_slice() {
        ["-c", line, ..] => shell.run(line, true),
        [file] if !file.starts_with('-') => {
            let text = std::fs::read_to_string(file).map_err(Failure::io(*file))?;
            shell.run(&text, true)
        }
        _ => interactive(&mut shell)?,
    };
    Ok(code.unwrap_or(shell.last) as u8)
}

fn interactive(shell: &mut Shell) -> Result<Option<i32>, Failure> {
    let prompt = io::stdin().is_terminal();
    let mut line = String::new();
    loop {
        if prompt {
            let folder = std::env::current_dir().unwrap_or_default();
            print!("{}:{} # ", host_name(), folder.display());
        }
        io::stdout().flush().map_err(Failure::io("write"))?;
        line.clear();
        if io::stdin().lock().read_line(&mut line).map_err(Failure::io("stdin"))? == 0 {
            return Ok(None);
        }
        if let Some(code) = shell.run(&line, false) {
            return Ok(Some(code));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<String>> {
        let shell = Shell { last: 3 };
        let line = parse(line).unwrap();
        let programs = line.iter().flat_map(|(_, pipeline)| pipeline);
        programs.map(|program| program.words.iter().map(|word| shell.expand(word)).collect()).collect()
    }

    #[test]
    fn words_quotes_and_variables() {
        for (line, want) in [
            ("echo a  b", &[&["echo", "a", "b"][..]][..]),
            ("echo 'a  $HOME' \"x $?\" $?y ${NOT_SET_HERE}", &[&["echo", "a  $HOME", "x 3", "3y", ""]]),
            ("echo a\\ b \"\" 'it'\"'\"s", &[&["echo", "a b", "", "it's"]]),
            ("a;b && c|d # e", &[&["a"], &["b"], &["c"], &["d"]]),
            ("echo 5$", &[&["echo", "5$"]]),
            ("\n\n# nothing\n", &[]),
        ] {
            let want: Vec<Vec<String>> =
                want.iter().map(|w| w.iter().map(|w| (*w).to_owned()).collect()).collect();
            assert_eq!(words(line), want, "{line}");
        }
    }

    #[test]
    fn connectors_and_redirections() {
        let line = parse("a >x 2>&1 && b <y || c 2>>z").unwrap();
        assert_eq!(
            line.iter().map(|(when, _)| *when).collect::<Vec<_>>(),
            [When::Always, When::Succeeded, When::Failed]
        );
        let operators: Vec<Vec<&str>> = line
            .iter()
            .map(|(_, p)| p[0].redirections.iter().map(|(operator, _)| *operator).collect())
            .collect();
        assert_eq!(operators, [vec![">", "2>&1"], vec!["<"], vec!["2>>"]]);
        for wrong in ["a |", "| a", "a &&", "&& a", "a >", "'a", "\"a", "${a", "echo $(b)"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
