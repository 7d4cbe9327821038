//! A bad link: a TCP proxy that delays, slows down, stalls and cuts, and counts what passes.
//!
//! What a lossy link does to TCP is delay and stalls; bytes are never lost, so they are not here either.
//! A stall without an end is a NAT that has forgotten the connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// What the link is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weather {
    /// One way.
    pub delay: Duration,
    /// Bytes a second, one way; 0 for no limit.
    pub rate: u64,
    /// Of a hundred pieces, so many are held up as by a lost segment.
    pub loss_percent: u64,
}

/// How long TCP takes to make up for a lost segment.
const RETRANSMISSION: Duration = Duration::from_millis(200);

pub const FAIR: Weather = Weather { delay: Duration::ZERO, rate: 0, loss_percent: 0 };

#[derive(Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
}

pub struct Proxy {
    pub port: u16,
    /// Connections with a lower number are dead: nothing passes, nobody is told.
    stalled_below: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
    counts: Arc<Counts>,
    tasks: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
}

impl Proxy {
    pub async fn to(target: SocketAddr, weather: Weather) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self {
            port,
            stalled_below: Arc::default(),
            cut: watch::Sender::new(0),
            counts: Arc::default(),
            tasks: Arc::default(),
        };
        let (stalled, cut) = (Arc::clone(&proxy.stalled_below), proxy.cut.subscribe());
        let (counts, tasks) = (Arc::clone(&proxy.counts), Arc::clone(&proxy.tasks));
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = counts.connections.fetch_add(1, Relaxed) + 1;
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let (stalled, mut cut) = (Arc::clone(&stalled), cut.clone());
                let counts = Arc::clone(&counts);
                let task = tokio::spawn(async move {
                    let (near_read, near_write) = near.into_split();
                    let (far_read, far_write) = far.into_split();
                    let dead = move || number <= stalled.load(Relaxed);
                    let up = pass(near_read, far_write, weather, dead.clone(), |n| {
                        counts.up.fetch_add(n, Relaxed);
                    });
                    let down = pass(far_read, near_write, weather, dead, |n| {
                        counts.down.fetch_add(n, Relaxed);
                    });
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = cut.wait_for(|below| number <= *below) => {}
                    }
                });
                tasks.lock().unwrap().push(task);
            }
        });
        proxy.tasks.lock().unwrap().push(accepting);
        proxy
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.cut.send_replace(self.connections());
    }

    /// Lets nothing more through on the present connections, and tells nobody.
    pub fn stall(&self) {
        self.stalled_below.store(self.connections(), Relaxed);
    }

    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Relaxed)
    }

    /// Bytes towards the broker and back.
    pub fn bytes(&self) -> (u64, u64) {
        (self.counts.up.load(Relaxed), self.counts.down.load(Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.lock().unwrap().iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn pass(
    mut read: impl AsyncReadExt + Unpin,
    mut write: impl AsyncWriteExt + Unpin,
    now: Weather,
    dead: impl Fn() -> bool,
    count: impl Fn(u64),
) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let dead = &dead;
    let reading = async move {
        let mut free = Instant::now();
        let mut dice = 1u64;
        let mut buffer = vec![0; 1_280];
        while let Ok(size @ 1..) = read.read(&mut buffer).await {
            if dead() {
                std::future::pending::<()>().await;
            }
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut at = Instant::now() + now.delay;
            if (dice >> 33) % 100 < now.loss_percent {
                at += RETRANSMISSION + now.delay * 2;
            }
            // In order, and not faster than the link.
            let at = at.max(free);
            let nanos = (size as u64 * 1_000_000_000).checked_div(now.rate).unwrap_or(0);
            free = at + Duration::from_nanos(nanos);
            if send.send((at, buffer[..size].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = receive.recv().await {
            sleep_until(at).await;
            if dead() {
                std::future::pending::<()>().await;
            }
            count(bytes.len() as u64);
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // The writing ends when the reading has ended and all is written.
    tokio::join!(reading, writing);
}
