//! Blocking work that outlives a fall. A thread that reads or writes cannot be called back: its handle stays in a field of the
//! actor, and the next life waits for the old call's result before it does anything else.
use std::{
    any::Any,
    cell::RefCell,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::Poll,
};

use tokio::task::JoinHandle;

use crate::actors::kit::supervise::panic_message;

pub struct Errand<T>(Rc<RefCell<State<T>>>);
enum State<T> {
    Running(JoinHandle<T>),
    Done(Option<T>),
}

impl<T: Send + 'static> Errand<T> {
    /// `work` must not panic past its own border: it owns the plugin, which would be lost. See `guarded`.
    pub fn start(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Rc::new(RefCell::new(State::Running(actix_rt::task::spawn_blocking(
            work,
        )))))
    }
    /// What was done already.
    pub fn done_with(result: T) -> Self {
        Self(Rc::new(RefCell::new(State::Done(Some(result)))))
    }
    /// Resolves when there is something to take. May be waited for again by the next life.
    pub fn done(&self) -> impl Future<Output = ()> + use<T> {
        let state = self.0.clone();
        poll_fn(move |cx| {
            let mut state = state.borrow_mut();
            if let State::Running(handle) = &mut *state {
                match Pin::new(handle).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    // An error only if the work panicked past its border, or the runtime ends.
                    Poll::Ready(result) => *state = State::Done(result.ok()),
                }
            }
            Poll::Ready(())
        })
    }
    /// None: the work was lost with its thread (or it is not done yet).
    pub fn take(self) -> Option<T> {
        match &mut *self.0.borrow_mut() {
            State::Running(_) => None,
            State::Done(result) => result.take(),
        }
    }
}

/// Runs what may panic and gives the plugin back in any case.
pub fn guarded<P, T>(plugin: &mut P, work: impl FnOnce(&mut P) -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(|| work(plugin))).map_err(|payload: Box<dyn Any + Send>| panic_message(payload))
}
