//! What the verbs of the Kubernetes API do to objects, whoever asks: a client through `api`, a
//! controller, the scheduler or a node through `dispatch`.
//!
//! In: a kind's row, a key, a JSON tree. Out: the stored object or an [`Error`] in upstream's words.
//! Invariants: everything written has been pruned, defaulted, admitted and validated; `uid`,
//! `creationTimestamp`, `generation` and `deletionTimestamp` are set here and nowhere else; a change
//! that changes nothing writes nothing; updates are compare-and-swap.
//! Deliberately absent: HTTP, authentication and authorisation (they are `api`'s).

mod error;

pub use error::Error;
