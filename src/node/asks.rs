//! Questions of this node to its master, and who waits for the answers.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use crate::mqtt::messages::{Answer, Ask};

/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Questions that may be open at once.
const OPEN_MAX: usize = 1024;

struct Open {
    ask: Ask,
    sent: bool,
    reply: oneshot::Sender<Answer>,
}

/// The open questions.
#[derive(Default)]
pub struct Asks {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Open>>,
    pub changed: Notify,
}

impl Asks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().expect("no holder of the questions' lock panics")
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The master refused, or did not answer in time.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        {
            let mut open = self.lock();
            if open.len() >= OPEN_MAX {
                return Err("too many questions to the master are open".to_owned());
            }
            open.insert(id, Open { ask, sent: false, reply });
        }
        self.changed.notify_one();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        self.lock().remove(&id);
        match answer {
            Ok(Ok(Answer::Refused(reason))) => Err(reason),
            Ok(Ok(answer)) => Ok(answer),
            _ => Err("the master did not answer in time".to_owned()),
        }
    }

    /// The questions that were not sent on this connection.
    pub fn take(&self) -> Vec<(u64, Ask)> {
        let mut open = self.lock();
        let fresh = open.iter_mut().filter(|(_, o)| !o.sent);
        fresh
            .map(|(id, o)| {
                o.sent = true;
                (*id, o.ask.clone())
            })
            .collect()
    }

    /// The connection was lost: what is open goes again.
    pub fn unsend(&self) {
        self.lock().values_mut().for_each(|o| o.sent = false);
    }

    pub fn answer(&self, id: u64, answer: Answer) {
        if let Some(open) = self.lock().remove(&id) {
            // Nobody waits any more when this fails.
            let _ = open.reply.send(answer);
        }
    }
}
