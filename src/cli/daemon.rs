//! `sampan server` and `sampan agent`: set up logging and the runtime, build the app, run it until
//! a signal.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::App,
    config::{self, LogFormat},
};

/// Worker threads of the daemon: enough for a board, each costs memory.
const WORKER_THREADS: usize = 2;
/// How long work that cannot be interrupted is waited for at the end.
const STUCK_WAIT: Duration = Duration::from_secs(2);
/// Stack of a worker thread (bytes).
const THREAD_STACK: usize = 1 << 20;

pub fn server(config: config::Server) -> anyhow::Result<ExitCode> {
    start_logging(&config.common)?;
    run(async {
        let app = App::server(config).await?;
        app.run(stop_signal()?).await
    })
}

pub fn agent(config: config::Agent) -> anyhow::Result<ExitCode> {
    start_logging(&config.common)?;
    run(async {
        let app = App::agent(config).await?;
        app.run(stop_signal()?).await
    })
}

fn run(daemon: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_stack_size(THREAD_STACK)
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let ended = runtime.block_on(daemon);
    // A thread that waits for a file system which is silent ends with the process.
    runtime.shutdown_timeout(STUCK_WAIT);
    ended.map(|()| ExitCode::SUCCESS)
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_logging(common: &config::Common) -> anyhow::Result<()> {
    // The broker's library tells of every connection.
    let filter = tracing_subscriber::EnvFilter::try_new(format!("mqtt5=warn,{}", common.log))
        .with_context(|| format!("--log {:?}", common.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match common.log_format {
        LogFormat::Text => lines.with_ansi(nix::unistd::isatty(2).unwrap_or(false)).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

/// Runs a short-lived client on this thread.
pub fn block_on(verb: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    wait_for(verb)?
}

/// Runs something to its end on this thread.
pub fn wait_for<T>(verb: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let outcome = runtime.block_on(verb);
    // A read of standard input may still be waiting; the process ends without it.
    runtime.shutdown_background();
    Ok(outcome)
}
