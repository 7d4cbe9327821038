//! One supervisor for every background task of the process.
//!
//! Tasks are named, started in order, told to stop in reverse order through their own
//! [`CancellationToken`], joined, and aborted after a grace period. A task that ends with an error
//! while the process should run stops the process: a half-working daemon is worse than a restart.
//! Deliberately absent: detached `tokio::spawn` anywhere else in daemon code.

use std::{future::Future, sync::Mutex, time::Duration};

use tokio::task::JoinHandle;
pub use tokio_util::sync::CancellationToken;

/// How long a task may take to end once told to (seconds).
pub const STOP_GRACE: Duration = Duration::from_secs(5);

struct Task {
    name: String,
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

/// The supervisor. Cheap to share by reference or in an `Arc`.
#[derive(Default)]
pub struct Tasks {
    running: Mutex<Vec<Task>>,
    failed: CancellationToken,
}

impl Tasks {
    /// A supervisor without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. `make` gets the token that is cancelled when the task has to end.
    pub fn spawn<F, E>(&self, name: impl Into<String>, make: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display + Send + 'static,
    {
        let name = name.into();
        let stop = CancellationToken::new();
        let future = make(stop.clone());
        let failed = self.failed.clone();
        let told = stop.clone();
        let task_name = name.clone();
        let handle = tokio::spawn(async move {
            match future.await {
                Ok(()) if told.is_cancelled() => {}
                Ok(()) => tracing::debug!(task = task_name, "task ended"),
                Err(error) => {
                    tracing::error!(task = task_name, %error, "task failed");
                    failed.cancel();
                }
            }
        });
        let mut running = self.running.lock().expect("no task panics with the lock");
        running.retain(|task| !task.handle.is_finished());
        running.push(Task { name, stop, handle });
    }

    /// Resolves when a task has failed.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Stops all tasks, the youngest first, each with [`STOP_GRACE`].
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.running.lock().expect("no task panics with the lock"));
        while let Some(Task { name, stop, mut handle }) = tasks.pop() {
            stop.cancel();
            if tokio::time::timeout(STOP_GRACE, &mut handle).await.is_err() {
                tracing::warn!(task = name, "task did not stop in time, aborted");
                handle.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn tasks_stop_in_reverse_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks = Tasks::new();
        for name in ["first", "second"] {
            let order = order.clone();
            tasks.spawn(name, |stop| async move {
                stop.cancelled().await;
                order.lock().unwrap().push(name);
                Ok::<(), std::convert::Infallible>(())
            });
        }
        tasks.stop().await;
        assert_eq!(*order.lock().unwrap(), ["second", "first"]);
    }

    #[tokio::test]
    async fn a_failed_task_is_reported() {
        let tasks = Tasks::new();
        tasks.spawn("bad", |_| async { Err("broken") });
        tasks.failed().await;
    }
}
