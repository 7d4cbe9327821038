//! Frames of streams over a socket: each is its length (4 bytes, big-endian) and its bytes.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

use crate::mqtt::{Bus, Error, Place, Priority};

/// The one peer at the other end.
pub const PEER: &str = "";
/// Frames that wait for the socket.
const QUEUE_MAX: usize = 16;
/// The largest frame (bytes): streams send at most 16 KiB and a head.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// The sending side: a bus with one topic.
pub struct SocketBus {
    queue: mpsc::Sender<Bytes>,
    open: Arc<AtomicBool>,
}

/// A bus that writes to a socket, and the writing itself, which ends when the socket does.
pub fn bus(
    mut write: impl AsyncWrite + Unpin + Send + 'static,
) -> (Arc<SocketBus>, impl Future<Output = ()> + Send) {
    let (queue, mut waiting) = mpsc::channel::<Bytes>(QUEUE_MAX);
    let open = Arc::new(AtomicBool::new(true));
    let bus = Arc::new(SocketBus { queue, open: Arc::clone(&open) });
    let writing = async move {
        while let Some(frame) = waiting.recv().await {
            let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
            if write.write_all(&length).await.is_err() || write.write_all(&frame).await.is_err() {
                break;
            }
        }
        open.store(false, Ordering::Release);
    };
    (bus, writing)
}

/// Reads frames until the socket ends or sends nonsense.
pub async fn each(mut read: impl AsyncRead + Unpin, mut take: impl FnMut(Bytes)) {
    while let Ok(length @ ..=FRAME_BYTES_MAX) = read.read_u32().await {
        let mut frame = vec![0; length as usize];
        if read.read_exact(&mut frame).await.is_err() {
            return;
        }
        take(frame.into());
    }
}

impl Bus for SocketBus {
    fn publish<'a>(&'a self, _: &'a str, payload: Bytes, _: Priority) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { self.queue.send(payload).await.map_err(|_| Error::Offline) })
    }

    fn reserve(&self, _: Priority) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(async move {
            let permit = self.queue.clone().reserve_owned().await.map_err(|_| Error::Offline)?;
            let place: Place = Box::new(move |_, payload| drop(permit.send(payload)));
            Ok(place)
        })
    }

    fn try_publish(&self, _: &str, payload: Bytes, _: Priority) -> Result<(), Error> {
        self.queue.try_send(payload).map_err(|_| Error::Offline)
    }

    fn connected(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}
