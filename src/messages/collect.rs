//! The data path: Collector ─Port─► FilterStage ─Port─► Sink a, Sink b, …
use actix::prelude::*;

use crate::{messages::receipt::Receipt, model::Batch};

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
    /// By output, in their order: events of the window that this one has not done with.
    pub waiting: Vec<u64>,
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
