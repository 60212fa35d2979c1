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
