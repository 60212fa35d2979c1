//! An answer that comes later. Whoever asks waits in a field of the actor, so a fall does not forget him: the next life answers.
use actix::prelude::*;
use tokio::sync::oneshot;

pub struct Later<T>(Vec<oneshot::Sender<T>>);
impl<T> Default for Later<T> {
    fn default() -> Self {
        Self(vec![])
    }
}
impl<T: Clone + 'static> Later<T> {
    /// One more who asks: what its handler returns. actix runs that future apart from the actor, so it outlives a fall too.
    pub fn ask(&mut self) -> ResponseFuture<T> {
        let (tell, told) = oneshot::channel();
        self.0.push(tell);
        Box::pin(async move {
            match told.await {
                Ok(answer) => answer,
                // The actor itself is gone, which it is only when the agent ends; every asker has a limit of its own.
                Err(_) => std::future::pending().await,
            }
        })
    }
    pub fn is_asked(&self) -> bool {
        !self.0.is_empty()
    }
    /// Those who asked there ask here now.
    pub fn append(&mut self, others: &mut Self) {
        self.0.append(&mut others.0);
    }
    /// Tells all who ask.
    pub fn tell(&mut self, answer: T) {
        for asked in self.0.drain(..) {
            let _ = asked.send(answer.clone()); // who has gone away does not mind
        }
    }
}
