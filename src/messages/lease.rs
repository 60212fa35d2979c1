//! Who this agent is to the others: LeaseKeeper holds its address in the store, and says how that stands.
use std::{net::IpAddr, time::Duration};

use actix::prelude::*;

/// LeaseKeeper → JobWatcher, whenever it changes.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct StandingChanged(pub Standing);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known yet, or there is no address that could be registered: why. No jobs.
    Waiting(String),
    /// Registered. What is to end with this agent hangs on that lease.
    Held { ip: IpAddr, lease: i64 },
    /// Another agent has the address: who. No jobs.
    Taken { ip: IpAddr, holder: String },
    /// The store does not answer, or refuses: why. The jobs that are known go on, and those of the last time after a start.
    Away { ip: IpAddr, why: String },
}
impl Standing {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting(_) => "waiting",
            Self::Held { .. } => "held",
            Self::Taken { .. } => "taken",
            Self::Away { .. } => "away",
        }
    }
}

#[derive(Message)]
#[rtype(result = "LeaseView")]
pub struct ObserveLease;
#[derive(Clone, Debug)]
pub struct LeaseView {
    pub standing: Standing,
    /// How long ago the store last answered; none: never.
    pub heard: Option<Duration>,
    /// What a person should know; empty: all is well.
    pub trouble: Vec<String>,
    /// Leases that this life granted: more than one tells of losses.
    pub granted: u64,
}

#[derive(Message)]
#[rtype(result = "WatcherView")]
pub struct ObserveWatcher;
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatcherView {
    pub jobs: usize,
    /// The jobs are those of the last time, since so long.
    pub stale: Option<Duration>,
    pub revision: i64,
    /// Full reads so far: one at the start, one after every break.
    pub reads: u64,
    /// Records that are still to be written.
    pub unwritten: usize,
    pub trouble: Vec<String>,
}

/// Root → LeaseKeeper, at a clean stop, after all runs: write why, give the address back at once.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct GiveBack {
    pub why: String,
}
