//! The changes of a resource as a stream, for parts of the system that follow it.

use std::sync::Arc;

use futures_util::{StreamExt, stream, stream::BoxStream};

use super::Objects;
use crate::store::{Event, StoreError};

impl Objects {
    /// The changes of a resource from now on. Ends after an error, which says that changes were
    /// missed: list, and follow anew.
    pub fn follow(&self, resource: &'static str) -> BoxStream<'static, Result<Arc<Event>, StoreError>> {
        match self.store.watch(resource, self.store.revision()) {
            Ok(watch) => stream::unfold(Some(watch), |watch| async {
                let mut watch = watch?;
                let seen = watch.next().await;
                let rest = seen.is_ok().then_some(watch);
                Some((seen, rest))
            })
            .boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }
}
