//! The asking side of the socket.

use std::{io, path::Path};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{ControlError, ImageInfo, Line, Request, frames, socket};
use crate::mqtt::stream::Mux;

/// Connects and asks; `None` when no daemon runs.
async fn say(run_dir: &Path, request: &Request) -> Result<Option<UnixStream>, ControlError> {
    let path = socket(run_dir);
    let failed = |operation| {
        let path = path.clone();
        move |source| ControlError::Io { operation, path, source }
    };
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed("connect to")(error)),
    };
    let mut text = serde_json::to_vec(request).expect("requests are plain data");
    text.push(b'\n');
    stream.write_all(&text).await.map_err(failed("write to"))?;
    Ok(Some(stream))
}

/// Asks the node that uses `run_dir`. The inner result is its answer: pods, or why not.
///
/// # Errors
/// No daemon runs, or it breaks off.
pub async fn ask_node(
    run_dir: &Path,
    request: &Request,
) -> Result<Result<Vec<serde_json::Value>, String>, ControlError> {
    let path = socket(run_dir);
    let stream = say(run_dir, request).await?.ok_or_else(|| ControlError::Absent(path.clone()))?;
    let mut lines = BufReader::new(stream).lines();
    let read = |source| ControlError::Io { operation: "read from", path: path.clone(), source };
    while let Some(line) = lines.next_line().await.map_err(read)? {
        match serde_json::from_str(&line).map_err(ControlError::Answer)? {
            Line::Progress(_) => {}
            Line::Pods(pods) => return Ok(Ok(pods)),
            Line::Images(_) => return Ok(Ok(Vec::new())),
            Line::Error(error) => return Ok(Err(error)),
        }
    }
    Err(ControlError::Ended)
}

/// Opens the way for streams to the node's pods.
///
/// # Errors
/// No daemon runs.
pub async fn streams(run_dir: &Path) -> Result<Mux, ControlError> {
    let stream = say(run_dir, &Request::Streams).await?;
    let stream = stream.ok_or_else(|| ControlError::Absent(socket(run_dir)))?;
    let (read, write) = stream.into_split();
    let (bus, writing) = frames::bus(write);
    let mux = Mux::new(bus, |_| String::new());
    let near = mux.clone();
    // The process is short-lived, and ends these with itself.
    tokio::spawn(writing);
    tokio::spawn(async move {
        frames::each(BufReader::new(read), |frame| drop(near.heard(frames::PEER, &frame))).await;
        near.lost(frames::PEER);
    });
    Ok(mux)
}

/// Asks the daemon that uses `run_dir`; `None` when none runs. The inner result is its answer.
pub async fn ask(
    run_dir: &Path,
    request: &Request,
    mut progress: impl FnMut(&[(String, u64, u64)]),
) -> Result<Option<Result<Vec<ImageInfo>, String>>, ControlError> {
    let Some(stream) = say(run_dir, request).await? else { return Ok(None) };
    let path = socket(run_dir);
    let read_failed = |source| ControlError::Io { operation: "read from", path: path.clone(), source };
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next_line().await.map_err(&read_failed)? {
        match serde_json::from_str(&line).map_err(ControlError::Answer)? {
            Line::Progress(layers) => progress(&layers),
            Line::Images(images) => return Ok(Some(Ok(images))),
            Line::Pods(_) => return Ok(Some(Ok(Vec::new()))),
            Line::Error(error) => return Ok(Some(Err(error))),
        }
    }
    Err(ControlError::Ended)
}
