//! `sampan install` and `sampan uninstall`.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Command, FromArgMatches};

use super::{check as report, daemon};
use crate::{
    app::App,
    check::{self, Host, Severity},
    config,
    install::{self, Layout, Role, configuration},
    net,
};

/// What a daemon listens on by default.
const SERVER_PORTS: [u16; 4] = [6443, 8883, 80, 443];
const AGENT_PORTS: [u16; 2] = [80, 443];

#[derive(Debug, Args)]
pub struct Install {
    /// A worker of another board's master [default: what is installed, else a server]
    #[arg(long)]
    agent: bool,
    /// A master that is also a worker
    #[arg(long, conflicts_with = "agent")]
    server: bool,
    /// The master's broker, as `sampan token create` prints it
    #[arg(long, env = "SAMPAN_JOIN", value_name = "URL", conflicts_with = "server")]
    join: Option<String>,
    /// The token that it prints
    #[arg(long, env = "SAMPAN_TOKEN", value_name = "TOKEN", hide_env_values = true, requires = "join")]
    token: Option<String>,
    /// The binary to install [default: this one]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Install on a disk that is mounted here (the card of another board)
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Enable it for the next boot, do not start it now
    #[arg(long)]
    no_start: bool,
    /// Turn the kernel's memory controller on where a Raspberry Pi has it off
    #[arg(long)]
    fix: bool,
    /// Go on though the check finds errors
    #[arg(long)]
    force: bool,
    /// Put the binary before the last upgrade back, and do nothing else
    #[arg(long, exclusive = true)]
    rollback: bool,
}

#[derive(Debug, Args)]
pub struct Uninstall {
    /// Also remove the data: the cluster, its volumes and images, the pods' logs
    #[arg(long)]
    purge: bool,
}

pub fn install(args: &Install) -> anyhow::Result<ExitCode> {
    let layout = Layout::new(&args.root);
    if args.rollback {
        install::rollback(&layout)?;
        println!("{} is the earlier one again", layout.binary().display());
        if let Some(role) = install::restart(&layout)? {
            println!("started {}", role.unit());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let before = install::installed(&layout);
    let role = match () {
        () if args.agent || args.join.is_some() => Role::Agent,
        () if args.server => Role::Server,
        () => before.unwrap_or(Role::Server),
    };
    let host = Host::at(&args.root);
    let fixed = args.fix && fix(&host)?;
    let live = layout.is_running_system();
    let reboot = live && inspect(&host, role, fixed, args.force)?;
    let config = config_text(&layout, role, args)?;
    let exe;
    let binary = if let Some(binary) = &args.binary {
        binary.as_path()
    } else {
        exe = std::env::current_exe().context("find this binary")?;
        exe.as_path()
    };
    let wanted = install::Wanted {
        role,
        binary,
        config,
        modules: install::modules().filter(|module| !live || host.has_module(module)).collect(),
        start: live && !args.no_start && !reboot,
    };
    let done = install::install(&layout, &wanted)?;
    for line in &done {
        println!("{line}");
    }
    if done.is_empty() {
        println!("installed already, nothing has changed");
    }
    if reboot {
        println!("reboot now: the memory controller is turned on by the next boot");
    } else if live && !Path::new("/run/systemd/system").is_dir() {
        println!("systemd does not run here: let your init run `sampan {}`", role.verb());
    } else if wanted.start && role == Role::Server {
        println!("next: sampan get nodes");
    }
    Ok(ExitCode::SUCCESS)
}

/// Turns the memory controller on; whether there was something to do.
fn fix(host: &Host) -> anyhow::Result<bool> {
    let changed = check::fix_memory_cgroup(host).context("turn the memory controller on")?;
    if let Some(path) = &changed {
        println!("wrote {}", path.display());
    }
    Ok(changed.is_some())
}

/// Runs the check and prints what matters; whether a reboot has to come first.
fn inspect(host: &Host, role: Role, fixed: bool, force: bool) -> anyhow::Result<bool> {
    let ports = match role {
        Role::Server => SERVER_PORTS.to_vec(),
        Role::Agent => AGENT_PORTS.to_vec(),
    };
    let closed = net::closed_chains().unwrap_or_default();
    let options = check::Options {
        data_dir: "/var/lib/sampan".into(),
        ports,
        closed_forward: closed.forward,
        closed_input: closed.input,
    };
    let findings = check::run(host, &options);
    let grave: Vec<_> = findings.iter().filter(|f| f.severity >= Severity::Warning).cloned().collect();
    if !grave.is_empty() {
        print!("{}", report::text(&findings, false));
    }
    let mut errors: Vec<_> = grave.iter().filter(|f| f.severity == Severity::Error).map(|f| f.id).collect();
    let mut reboot = fixed;
    if errors.contains(&check::MEMORY_CGROUP) && !fixed && check::can_fix_memory_cgroup(host) {
        reboot =
            ask("Turn the memory controller on (the board has to be rebooted after that)?")? && fix(host)?;
    }
    if reboot {
        errors.retain(|id| *id != check::MEMORY_CGROUP);
    }
    if !errors.is_empty() && !force {
        bail!("not installed: this board cannot be a node yet, see above (--force installs all the same)");
    }
    Ok(reboot)
}

/// Asks a person; nobody is no.
fn ask(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn command(role: Role) -> Command {
    match role {
        Role::Server => config::Server::augment_args(Command::new("server")),
        Role::Agent => config::Agent::augment_args(Command::new("agent")),
    }
}

/// The configuration to write; checked as the daemon will check it.
fn config_text(layout: &Layout, role: Role, args: &Install) -> anyhow::Result<Option<String>> {
    let path = layout.config();
    let there = match fs::read_to_string(&path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut text = there.clone().unwrap_or_else(|| configuration::skeleton(&command(role)));
    for (key, value) in [("join", &args.join), ("token", &args.token)] {
        if let Some(value) = value {
            text = configuration::set(&text, key, value);
        }
    }
    config::with_text(command(role), &text, &path)?
        .try_get_matches_from([role.verb()])
        .with_context(|| format!("{}", path.display()))?;
    Ok(Some(text).filter(|text| there.as_ref() != Some(text)))
}

pub fn uninstall(args: &Uninstall) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("run `sampan uninstall` as root");
    }
    let layout = Layout::new(Path::new("/"));
    let Some(role) = install::installed(&layout) else {
        bail!("Sampan is not installed here: there is no {} unit", Role::Server.unit());
    };
    // Read before anything goes: it says where everything is.
    let mut command = command(role);
    if layout.config().exists() {
        command = config::with_file(command, &layout.config())?;
    }
    let matches = command.try_get_matches_from([role.verb()])?;
    install::stop(&layout)?;
    let (common, mut failed) = match role {
        Role::Server => {
            let server = config::Server::from_arg_matches(&matches)?;
            let failed = daemon::wait_for(App::remove_server(&server))?;
            (server.common, failed)
        }
        Role::Agent => {
            let agent = config::Agent::from_arg_matches(&matches)?;
            let failed = daemon::wait_for(App::remove_agent(&agent))??;
            (agent.common, failed)
        }
    };
    let (removed, errors) = install::remove_files(&layout);
    for path in removed {
        println!("removed {}", path.display());
    }
    failed.extend(errors.iter().map(ToString::to_string));
    let mut folders = vec![common.run_dir];
    if args.purge {
        folders.extend([common.log_dir.join("pods"), common.log_dir.join("containers")]);
        folders.push(common.data_dir.clone());
    }
    for folder in folders {
        match fs::remove_dir_all(&folder) {
            Ok(()) => println!("removed {}", folder.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("remove {}: {error}", folder.display())),
        }
    }
    if !args.purge {
        println!("kept {} (--purge removes it as well)", common.data_dir.display());
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for line in failed {
        eprintln!("Error: {line}");
    }
    Ok(ExitCode::FAILURE)
}
