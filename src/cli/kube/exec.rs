//! `exec`: a command in a container over WebSocket (`v5.channel.k8s.io`), with a terminal when asked.

use std::{os::fd::AsFd, process::ExitCode};

use anyhow::{Context, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use hyper::{Method, header};
use hyper_util::rt::TokioIo;
use nix::sys::termios::{self, SetArg, Termios};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use super::{
    client::{Client, escape, request},
    logs,
};

/// The channels of the remote command protocol (`k8s.io/apimachinery/pkg/util/remotecommand`).
mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    pub const CLOSE: u8 = 255;
}

#[derive(Debug, Clone, Args)]
pub struct Exec {
    /// POD, or TYPE/NAME of a workload
    pub(super) target: String,
    /// Container [default: the only one, or the default of the pod]
    #[arg(short, long, value_name = "NAME")]
    pub(super) container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub(super) stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// The command, after --
    #[arg(last = true, required = true)]
    pub(super) command: Vec<String>,
}

/// Puts the terminal back as it was.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).context("standard input is not a terminal")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done when the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}

pub async fn run(client: &Client, args: &Exec) -> anyhow::Result<ExitCode> {
    let pod = logs::pod_of(client, &args.target).await?;
    let mut query: Vec<String> = args.command.iter().map(|c| format!("command={}", escape(c))).collect();
    if let Some(container) = &args.container {
        query.push(format!("container={}", escape(container)));
    }
    query.push(format!("stdin={}&stdout=true&stderr={}&tty={}", args.stdin, !args.tty, args.tty));
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/exec?{}", client.namespace, query.join("&"));
    let mut call = request(Method::GET, &path, "*/*", None)?;
    let key = BASE64_STANDARD.encode(crate::ids::random_bytes::<16>());
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_KEY, &key),
        (header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io"),
    ] {
        call.headers_mut().insert(name, value.parse()?);
    }
    let response = client.send(call).await?;
    if response.status() != hyper::StatusCode::SWITCHING_PROTOCOLS {
        use http_body_util::BodyExt;
        let body = response.into_body().collect().await?.to_bytes();
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        bail!("{}", status["message"].as_str().unwrap_or("the server refused the upgrade"));
    }
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    let raw = (args.tty && args.stdin).then(Raw::enter).transpose()?;
    let outcome = converse(socket, args).await;
    drop(raw);
    outcome
}

async fn converse<S>(socket: WebSocketStream<S>, args: &Exec) -> anyhow::Result<ExitCode>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut send, mut receive) = socket.split();
    let mut resized = signal(SignalKind::window_change())?;
    let mut stdin = tokio::io::stdin();
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut input = vec![0; 32 << 10];
    let mut reading = args.stdin;
    if args.tty {
        send.send(size_message()?).await?;
    }
    loop {
        tokio::select! {
            message = receive.next() => {
                let Some(message) = message else { bail!("the server closed the connection") };
                let Message::Binary(data) = message? else { continue };
                let Some((channel, payload)) = data.split_first() else { continue };
                match *channel {
                    channel::STDOUT => { stdout.write_all(payload).await?; stdout.flush().await?; }
                    channel::STDERR => { stderr.write_all(payload).await?; stderr.flush().await?; }
                    channel::ERROR => return ended(payload),
                    _ => {}
                }
            }
            read = stdin.read(&mut input), if reading => match read? {
                0 => {
                    reading = false;
                    send.send(Message::Binary(Bytes::from_static(&[channel::CLOSE, channel::STDIN]))).await?;
                }
                n => send.send(framed(channel::STDIN, &input[..n])).await?,
            },
            _ = resized.recv(), if args.tty => send.send(size_message()?).await?,
        }
    }
}

fn framed(channel: u8, payload: &[u8]) -> Message {
    Message::Binary([&[channel], payload].concat().into())
}

fn size_message() -> anyhow::Result<Message> {
    let (columns, rows) = crate::cli::sys::terminal_size().unwrap_or((80, 24));
    Ok(framed(channel::RESIZE, &serde_json::to_vec(&json!({"Width": columns, "Height": rows}))?))
}

/// The Status that ends a command: success, or its exit code among the causes.
fn ended(payload: &[u8]) -> anyhow::Result<ExitCode> {
    let status: Value = serde_json::from_slice(payload).context("the command's end is not a Status")?;
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let cause = |c: &&Value| c["reason"] == "ExitCode";
    let code = status["details"]["causes"]
        .as_array()
        .and_then(|causes| causes.iter().find(cause))
        .and_then(|c| c["message"].as_str()?.parse::<u8>().ok());
    let message = status["message"].as_str().unwrap_or("the command failed");
    match code {
        Some(code) => {
            eprintln!("{message}");
            Ok(ExitCode::from(code))
        }
        None => bail!("{message}"),
    }
}
