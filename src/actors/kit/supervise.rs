//! A supervisor that also survives panics, waits between restarts and can be told to stop.
//!
//! Built on two public pieces of actix 0.13: `Context::into_future` and `ContextFut::restart`. The mailbox lives in the
//! `ContextFut`, so every `Addr` stays valid and queued messages survive both a stop and a panic. So do the actor's fields: what
//! must not be lost stands there, what must be made anew is made in `started`.
use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use actix::prelude::*;
use tokio::{sync::watch, time::Instant};

use crate::actors::kit::SharedPulse;

/// Set once, when the agent starts to stop.
#[derive(Clone)]
pub struct Stopping(watch::Sender<bool>);
impl Default for Stopping {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}
impl Stopping {
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
    pub fn begun(&self) -> bool {
        *self.0.borrow()
    }
    /// Until it is set.
    pub async fn wait(&self) {
        let _ = self.0.subscribe().wait_for(|begun| *begun).await;
    }
}

/// An actor says by it that it has nothing left and ends on purpose. Any other end is a fall, during a drain too.
#[derive(Clone, Default)]
pub struct Farewell(Arc<AtomicBool>);
impl Farewell {
    pub fn say<A: Actor<Context = Context<A>>>(&self, ctx: &mut Context<A>) {
        self.0.store(true, SeqCst);
        ctx.stop();
    }
}

/// How long to wait before the next run. A run of `healthy_after` or longer, or one that got something done (see
/// `Pulse::progressed`), makes the next fall the first again.
#[derive(Clone, Copy)]
pub struct Restarts {
    pub first: Duration,
    pub most: Duration,
    pub healthy_after: Duration,
}
impl Restarts {
    pub const DATA: Self = Self {
        first: Duration::from_millis(10),
        most: Duration::from_secs(5),
        healthy_after: Duration::from_secs(1),
    };
    pub const CONTROL: Self = Self {
        first: Duration::from_millis(200),
        most: Duration::from_secs(30),
        healthy_after: Duration::from_secs(10),
    };
    const IN_A_DRAIN: Self = Self {
        first: Duration::from_millis(10),
        most: Duration::from_secs(1),
        healthy_after: Duration::from_secs(1),
    };

    pub fn delay(&self, in_a_row: u32) -> Duration {
        self.first
            .saturating_mul(1 << (in_a_row.max(1) - 1).min(16))
            .min(self.most)
    }
}

/// Counts the falls in a row of a plugin that is caught at its border, by the rules of its stage.
pub struct Falls {
    restarts: Restarts,
    in_a_row: u32,
    last: Option<Instant>,
}
impl Falls {
    pub fn new(restarts: Restarts) -> Self {
        Self {
            restarts,
            in_a_row: 0,
            last: None,
        }
    }
    /// One more: how long to wait before the next try.
    pub fn another(&mut self, cause: &str, pulse: &SharedPulse) -> Duration {
        let now = Instant::now();
        let rested = self
            .last
            .is_some_and(|last| now - last >= self.restarts.healthy_after + self.restarts.delay(self.in_a_row));
        self.in_a_row = if rested { 1 } else { self.in_a_row + 1 };
        self.last = Some(now);
        pulse.fell(cause, self.in_a_row);
        self.restarts.delay(self.in_a_row)
    }
    pub fn over(&mut self, pulse: &SharedPulse) {
        if self.in_a_row > 0 {
            self.in_a_row = 0;
            pulse.is_well();
            pulse.runs();
        }
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Ended {
    Drained,
    /// Nobody holds its address any more.
    Unreachable,
}

/// Starts an actor on the present arbiter and keeps it alive until it says farewell.
pub fn supervise<A>(
    restarts: Restarts,
    stopping: Stopping,
    pulse: SharedPulse,
    log: slog::Logger,
    make: impl FnOnce(&mut Context<A>, Farewell) -> A,
) -> (Addr<A>, actix_rt::task::JoinHandle<Ended>)
where
    A: Supervised + Actor<Context = Context<A>>,
{
    let farewell = Farewell::default();
    let mut ctx = Context::new();
    let act = make(&mut ctx, farewell.clone());
    let addr = ctx.address();
    let mut run = ctx.into_future(act);

    let task = actix_rt::spawn(async move {
        let mut in_a_row = 0u32;
        let mut fell_in_restarting = None;
        loop {
            let began = Instant::now();
            let panic = match fell_in_restarting.take() {
                Some(message) => Some(message),
                None => {
                    let mut healthy = Box::pin(tokio::time::sleep(restarts.healthy_after));
                    let mut unwell = in_a_row > 0;
                    poll_fn(|cx| {
                        if unwell && healthy.as_mut().poll(cx).is_ready() {
                            unwell = false;
                            pulse.is_well();
                        }
                        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut run).poll(cx))) {
                            Ok(Poll::Pending) => Poll::Pending,
                            Ok(Poll::Ready(())) => Poll::Ready(None),
                            Err(payload) => Poll::Ready(Some(panic_message(payload))),
                        }
                    })
                    .await
                }
            };
            if farewell.0.load(SeqCst) {
                pulse.drained();
                // Who fell over its own farewell would fall again here.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(run)));
                return Ended::Drained;
            }
            let rested = pulse.take_progress() || began.elapsed() >= restarts.healthy_after;
            in_a_row = if rested { 1 } else { in_a_row + 1 };
            // At once, not after the wait: it drops the fallen life's futures, and with them the room that they hold or queue for.
            match catch_unwind(AssertUnwindSafe(|| run.restart())) {
                Ok(true) => {}
                Ok(false) => return Ended::Unreachable,
                Err(payload) => fell_in_restarting = Some(panic_message(payload)),
            }
            let next_in = if stopping.begun() {
                Restarts::IN_A_DRAIN.delay(in_a_row)
            } else {
                restarts.delay(in_a_row)
            };
            let cause = panic.unwrap_or_else(|| "ended itself".into());
            pulse.fell(&cause, in_a_row);
            slog::warn!(log, "actor fell, raising it again"; "actor" => &pulse.name, "cause" => cause,
                "in_a_row" => in_a_row, "next_in" => ?next_in);
            if stopping.begun() {
                tokio::time::sleep(next_in).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(next_in) => {}
                    () = stopping.wait() => in_a_row = 0,
                }
            }
            pulse.runs();
        }
    });
    (addr, task)
}

/// What a panic said.
pub fn panic_message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other
            .downcast::<&str>()
            .map_or("panic without a message".into(), |text| text.to_string()),
    }
}
