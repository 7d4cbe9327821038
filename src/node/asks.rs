//! Questions of this node to its master, and who waits for the answers.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use crate::mqtt::messages::{Answer, Ask};

/// How long a master may be silent while something is asked. As long as it answers others, it is busy:
/// who asked a second time would only make it busier.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The longest wait for one answer.
const ANSWER_WAIT_MAX: Duration = Duration::from_mins(2);
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
    /// When the master has last answered anything.
    heard: Mutex<Option<Instant>>,
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
        self.ask_for(ask, ANSWER_WAIT_MAX).await
    }

    /// The same for who does not wait longer than `at_most`.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_for(&self, ask: Ask, at_most: Duration) -> Result<Answer, String> {
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
        let answer = self.wait(answer, at_most.min(ANSWER_WAIT_MAX)).await;
        self.lock().remove(&id);
        match answer {
            Some(Answer::Refused(reason)) => Err(reason),
            Some(answer) => Ok(answer),
            None => Err("the master did not answer in time".to_owned()),
        }
    }

    async fn wait(&self, mut answer: oneshot::Receiver<Answer>, at_most: Duration) -> Option<Answer> {
        let begun = Instant::now();
        let until = || {
            let heard = *self.heard.lock().expect("no holder of this lock panics");
            (heard.map_or(begun, |heard| heard.max(begun)) + SILENCE_MAX).min(begun + at_most)
        };
        loop {
            let now = until();
            match timeout_at(now, &mut answer).await {
                Ok(answer) => return answer.ok(),
                Err(_) if until() <= now => return None,
                Err(_) => {}
            }
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
        *self.heard.lock().expect("no holder of this lock panics") = Some(Instant::now());
        if let Some(open) = self.lock().remove(&id) {
            // Nobody waits any more when this fails.
            let _ = open.reply.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Ask {
        Ask::Token {
            namespace: "ns".into(),
            service_account: "default".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            audiences: Vec::new(),
            expiration_seconds: 3600,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_that_answers_others_is_waited_for() {
        let asks = Asks::default();
        let begun = Instant::now();
        let first = asks.ask(question());
        let second = asks.ask(question());
        let master = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            asks.answer(0, Answer::Done);
        };
        let (first, second, ()) = tokio::join!(first, second, master);
        assert!(matches!(first, Ok(Answer::Done)));
        assert_eq!(second.unwrap_err(), "the master did not answer in time");
        assert_eq!(begun.elapsed(), Duration::from_secs(25), "15 s after the last sign of it");
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_waited_for_for_ever() {
        let asks = Asks::default();
        let begun = Instant::now();
        let lost = asks.ask(question());
        let busy = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                asks.answer(7, Answer::Done);
            }
        };
        tokio::select! {
            answer = lost => assert!(answer.is_err()),
            () = busy => {}
        }
        assert_eq!(begun.elapsed(), ANSWER_WAIT_MAX);
    }
}
