//! `[etcd] publish_runs`: how this agent's jobs do, as one key under its lease.
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;

use crate::{
    messages::jobs::{AskSummary, Summary},
    store::keys::{self, LastRun, Runs},
};

/// Written so often. 10,000 agents are 17 writes a second, and as many revisions of 8 KiB as auto-compaction lets stand.
pub const EVERY: Duration = Duration::from_secs(600);
/// After a failure.
pub const AGAIN: Duration = Duration::from_secs(60);
/// More than find room in the key.
pub const MOST: usize = 100;

#[derive(Clone)]
pub struct Publish {
    pub runs: Recipient<AskSummary>,
    /// After a registration it is written within this time: not by all agents at once, when etcd is back.
    pub first_within: Duration,
}

pub fn value(summary: &Summary, now: Timestamp) -> bytes::Bytes {
    let last = summary.last.iter().map(|record| LastRun {
        task_id: record.job.task_id.to_string(),
        run_id: record.run_id.to_string(),
        state: record.state.to_string(),
        ended: record.ended.map(keys::instant).unwrap_or_default(),
    });
    let runs = Runs {
        at: keys::instant(now),
        jobs: summary.jobs,
        paused: summary.paused,
        invalid: summary.invalid,
        failing: summary.failing,
        present: summary.present,
        last: last.collect(),
        left_out: summary.left_out,
    };
    runs.value()
}
