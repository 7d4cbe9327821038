//! The command line: `sampan server`, `sampan agent` and the verbs.

mod backup;
mod check;
mod daemon;
mod image;
mod install;
mod kube;
mod mqtt;
mod node;
mod remedy;
#[expect(unsafe_code, reason = "terminal size, signals")]
mod sys;
mod token;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config;

#[derive(Debug, Parser)]
#[command(name = "sampan", version, about = "Kubernetes for a board you can hold in your hand")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// Where a verb finds the daemon's state on this board.
#[derive(Debug, Args)]
struct State {
    /// The state of the server or node
    #[arg(
        long,
        global = true,
        env = "SAMPAN_DATA_DIR",
        default_value = "/var/lib/sampan",
        value_name = "DIR"
    )]
    data_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a master that is also a worker
    Server(Box<config::Server>),
    /// Run a worker of another board's master
    Agent(Box<config::Agent>),
    /// What lets another board join (on the master)
    Token(token::Token),
    /// The boards of the cluster (on the master)
    Node(node::Node),
    /// Look into the link between master and nodes; what an external broker needs
    Mqtt(mqtt::Mqtt),
    /// Copy the whole cluster into one file while the server runs
    Backup(backup::Backup),
    /// Look at this board: what would keep a node from working, and what to do
    Check(check::Check),
    /// Make this board a node that starts by itself (systemd); again to upgrade
    Install(install::Install),
    /// Stop its pods and remove what `install` has made
    Uninstall(install::Uninstall),
    /// The images of this machine
    Image(image::Image),
    #[command(flatten)]
    Kube(kube::Verb),
    /// The same verbs under the name people's fingers know
    #[command(subcommand)]
    Kubectl(kube::Verb),
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {}", remedy::line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let cli = parse()?;
    if !matches!(cli.verb, Verb::Server(_) | Verb::Agent(_)) {
        sys::end_at_broken_pipe();
    }
    match cli.verb {
        Verb::Server(server) => daemon::server(*server),
        Verb::Agent(agent) => daemon::agent(*agent),
        Verb::Token(args) => daemon::block_on(token::run(args)),
        Verb::Node(args) => daemon::block_on(node::run(args)),
        Verb::Mqtt(args) => daemon::block_on(mqtt::run(args)),
        Verb::Backup(args) => backup::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Install(args) => install::install(&args),
        Verb::Uninstall(args) => install::uninstall(&args),
        Verb::Image(args) => daemon::block_on(image::run(args)),
        Verb::Kube(verb) | Verb::Kubectl(verb) => daemon::block_on(kube::run(verb)),
    }
}

/// Parses twice: once to learn the verb and its configuration file, then with the file's defaults.
fn parse() -> anyhow::Result<Cli> {
    let mut command = Cli::command();
    let first = command.clone().get_matches();
    if let Some((verb, matches)) = first.subcommand()
        && matches.try_contains_id("config").unwrap_or(false)
    {
        let given = matches.get_one::<PathBuf>("config").cloned();
        let default = std::path::Path::new(config::DEFAULT_FILE);
        if let Some(path) = given.or_else(|| default.exists().then(|| default.into())) {
            let with_file = config::with_file(
                command.find_subcommand(verb).expect("the verb was just parsed").clone(),
                &path,
            )?;
            command = command.mut_subcommand(verb, |_| with_file);
        }
    }
    Ok(Cli::from_arg_matches(&command.get_matches())?)
}
