//! The only way data enters an actor: bounded, ordered, cancel-safe.
//!
//! A `Port` is a `Recipient` plus permits. Taking room is a wait; handing over is one synchronous step after it, so a sender that
//! reserves and sends in a loop keeps its order. The permits travel inside the message: they come back when the receiver lets go of
//! them, never because a sender was cancelled. They alone bound the data: every clone of an actix `Recipient` has a slot of its own
//! past the mailbox limit, which therefore is set to the Port's size for the sake of whoever sends without a Port.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::{dev::SendError, prelude::*};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How heavy a message is: events, and bytes in whole KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    pub events: u32,
    pub kib: u32,
}
impl Weight {
    pub fn of(events: usize, bytes: usize) -> Self {
        let whole = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            events: whole(events),
            kib: whole(bytes.div_ceil(1024)),
        }
    }
    /// Within `all`, and at least 1 of each: what is heavier than the whole Port passes alone.
    fn within(self, all: Self) -> Self {
        Self {
            events: self.events.clamp(1, all.events),
            kib: self.kib.clamp(1, all.kib),
        }
    }
}

/// Room that a message takes up; dropping it gives it back.
pub struct Permits {
    _events: OwnedSemaphorePermit,
    _kib: OwnedSemaphorePermit,
}

/// A message with the room that it takes up.
pub struct Carried<M> {
    pub msg: M,
    pub room: Permits,
}
impl<M: 'static> Message for Carried<M> {
    type Result = ();
}

pub struct Port<M: Send + 'static> {
    to: Recipient<Carried<M>>,
    events: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    all: Weight,
    waited: Arc<AtomicU64>,
}
impl<M: Send + 'static> Clone for Port<M> {
    fn clone(&self) -> Self {
        let Self {
            to,
            events,
            kib,
            all,
            waited,
        } = self;
        Self {
            to: to.clone(),
            events: events.clone(),
            kib: kib.clone(),
            all: *all,
            waited: waited.clone(),
        }
    }
}

/// Room that was taken and not used yet. Dropping it gives it back.
pub struct Room<M: Send + 'static> {
    to: Recipient<Carried<M>>,
    permits: Permits,
}
/// The receiver will never take anything again. Here is the message back: keep it, and stop until somebody hands you another Port.
pub struct Gone<M>(pub M);

impl<M: Send + 'static> Port<M> {
    /// `all`: how much may wait at the receiver. At least 1 of each.
    pub fn new(to: Recipient<Carried<M>>, all: Weight) -> Self {
        let all = Weight {
            events: all.events.max(1),
            kib: all.kib.max(1),
        };
        let semaphore = |n: u32| Arc::new(Semaphore::new(n as usize));
        Self {
            to,
            events: semaphore(all.events),
            kib: semaphore(all.kib),
            all,
            waited: Arc::default(),
        }
    }

    /// Waits for that much room. Cancelling it gives back what it had.
    pub async fn reserve(&self, weight: Weight) -> Room<M> {
        if let Some(room) = self.try_reserve(weight) {
            return room;
        }
        let began = Instant::now();
        let weight = weight.within(self.all);
        let never_closed = "nobody closes a Port's semaphores";
        let _events = self
            .events
            .clone()
            .acquire_many_owned(weight.events)
            .await
            .expect(never_closed);
        let _kib = self
            .kib
            .clone()
            .acquire_many_owned(weight.kib)
            .await
            .expect(never_closed);
        self.waited.fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
        Room {
            to: self.to.clone(),
            permits: Permits { _events, _kib },
        }
    }
    /// For a sender that must not wait, because another receiver would wait with it.
    pub fn try_reserve(&self, weight: Weight) -> Option<Room<M>> {
        let weight = weight.within(self.all);
        let _events = self.events.clone().try_acquire_many_owned(weight.events).ok()?;
        let _kib = self.kib.clone().try_acquire_many_owned(weight.kib).ok()?;
        Some(Room {
            to: self.to.clone(),
            permits: Permits { _events, _kib },
        })
    }

    /// Events that wait at the receiver, of how many at most.
    pub fn fill(&self) -> (u64, u64) {
        let all = u64::from(self.all.events);
        (all - self.events.available_permits() as u64, all)
    }
    /// How long senders have waited for room: which stage holds the others up.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited.load(Relaxed))
    }
}

impl<M: Send + 'static> Room<M> {
    /// Hands over at once.
    pub fn send(self, msg: M) -> Result<(), Gone<M>> {
        self.to
            .try_send(Carried {
                msg,
                room: self.permits,
            })
            .map_err(|refused| match refused {
                SendError::Full(back) | SendError::Closed(back) => Gone(back.msg),
            })
    }
}
