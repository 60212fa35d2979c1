//! The data path: Collector ─Port─► FilterStage ─Port─► Sink a, Sink b, …
use std::sync::{Arc, Mutex};

use actix::{dev::MessageResponse, prelude::*};

use crate::{
    messages::receipt::Receipt,
    model::{Batch, Lane},
};

/// A batch on its way. No receipt for an output that may drop: it holds nobody back, whatever becomes of it.
pub struct Ship {
    pub batch: Batch,
    pub receipt: Option<Receipt>,
}

/// What you have delivered until now must survive a power loss: answer when it does.
#[derive(Message)]
#[rtype(result = "Result<(), String>")]
pub struct SyncNow;

/// A stop has begun: cut short whatever you are waiting for and try now.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Hurry;

/// Answered when the input has ended and all it gave is settled.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AwaitEnd;

/// Answered, with what it said, when the far side has left for good.
#[derive(Message)]
#[rtype(result = "String")]
pub struct AwaitClosed;

#[derive(Message)]
#[rtype(result = "CollectorView")]
pub struct ObserveCollector;
#[derive(Clone, Debug, Default)]
pub struct CollectorView {
    pub ended: bool,
    /// Events in the window, settled by nobody or not by all.
    pub unsettled: u64,
    /// By an output's number: events of the window that this one has not done with.
    pub waiting: Vec<u64>,
    /// By an output's number: events, less those that were filtered away, that came before it joined.
    pub missed: Vec<u64>,
    pub error: Option<String>,
    /// How the input reads at present, if an operator should know.
    pub note: Option<String>,
    pub checkpoint_error: Option<String>,
    /// What is unsettled is still at its source.
    pub rewinds: bool,
}

#[derive(Message)]
#[rtype(result = "SinkView")]
pub struct ObserveSink;
#[derive(Clone, Debug)]
pub struct SinkView {
    /// Events in a queue of its own, that the Collector knows nothing of any more (outputs that drop).
    pub queued: u64,
    pub breaker: &'static str,
    pub error: Option<String>,
}

// ---- reload: actors stay, what they mount and whom they know changes
/// What is handed to an actor that may fall over the message: whoever asks keeps it too, and asks again until it was taken.
pub type Slot<H> = Arc<Mutex<Option<H>>>;
/// The heir of a plugin (with the stage's own settings): takes its place at the next settled border, when whatever the old one has
/// under way has come back. Answered when it has.
pub struct HandOver<H>(pub Slot<H>);
impl<H: 'static> Message for HandOver<H> {
    type Result = ();
}

/// All outputs from now on. A wait for room at an old edge ends; what was meant for one that is gone is let go of, and counted.
#[derive(Clone)]
pub struct Rewire<E>(pub Vec<E>);
impl<E: 'static> Message for Rewire<E> {
    type Result = ();
}

/// Where to send, whom to ask for a sync, how much memory there is.
#[derive(Clone)]
pub struct Relink<L>(pub L);
impl<L: 'static> Message for Relink<L> {
    type Result = ();
}

/// An output of this number joins, its edge is held: it gets whatever is read from now on.
#[derive(Message, Clone, Copy)]
#[rtype(result = "Joined")]
pub struct Join(pub u32);
/// The first batch that is its own.
#[derive(MessageResponse, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    pub lane: Lane,
    pub seq: u64,
}

/// You are not needed any more: let go of all, answer all who ask, and leave for good.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Retire;
