//! An answer that comes later. Whoever asks waits in a field of the actor; the answer dies with the life that owes it, the asker
//! hears `Closed`, and asks the next one.
use actix::prelude::*;
use tokio::sync::oneshot;

pub struct Later<T>(Vec<oneshot::Sender<T>>);
impl<T> Default for Later<T> {
    fn default() -> Self {
        Self(vec![])
    }
}
impl<T: Clone + 'static> Later<T> {
    /// One more who asks: what its handler returns.
    pub fn ask(&mut self) -> ResponseFuture<T> {
        let (tell, told) = oneshot::channel();
        self.0.push(tell);
        Box::pin(async move {
            match told.await {
                Ok(answer) => answer,
                // That life is over, and this future goes with it.
                Err(_) => std::future::pending().await,
            }
        })
    }
    pub fn is_asked(&self) -> bool {
        !self.0.is_empty()
    }
    /// Tells all who ask.
    pub fn tell(&mut self, answer: T) {
        for asked in self.0.drain(..) {
            let _ = asked.send(answer.clone()); // who has gone away does not mind
        }
    }
}
