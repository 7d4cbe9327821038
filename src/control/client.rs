//! The asking side of the socket.

use std::{io, path::Path};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{ControlError, ImageInfo, Line, Request, socket};

/// Asks the daemon that uses `run_dir`; `None` when none runs. The inner result is its answer.
pub async fn ask(
    run_dir: &Path,
    request: &Request,
    mut progress: impl FnMut(&[(String, u64, u64)]),
) -> Result<Option<Result<Vec<ImageInfo>, String>>, ControlError> {
    let path = socket(run_dir);
    let failed = |operation| {
        let path = path.clone();
        move |source| ControlError::Io { operation, path, source }
    };
    let stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failed("connect to")(error)),
    };
    let (read, mut write) = stream.into_split();
    let mut text = serde_json::to_vec(request).expect("requests are plain data");
    text.push(b'\n');
    write.write_all(&text).await.map_err(failed("write to"))?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.map_err(failed("read from"))? {
        match serde_json::from_str(&line).map_err(ControlError::Answer)? {
            Line::Progress(layers) => progress(&layers),
            Line::Images(images) => return Ok(Some(Ok(images))),
            Line::Error(error) => return Ok(Some(Err(error))),
        }
    }
    Err(ControlError::Ended)
}
