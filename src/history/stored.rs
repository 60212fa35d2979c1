//! How it lies on the disk: JSON with short names, an output as its length, its head's length, head and tail.
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::JobMemory;
use crate::model::{
    JobKey, RunId, RunRecord, RunState,
    job::{Cause, Kept, Tree},
};

#[derive(Serialize, Deserialize)]
struct Record {
    job: String,
    cause: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    by: String,
    planned: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Timestamp>,
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    what: String,
    attempt: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid_started: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree: Option<String>,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    gap: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unkillable: Vec<i32>,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default() // plain fields, and names that are text: nothing that could fail
}

pub fn record(record: &RunRecord) -> Vec<u8> {
    let (code, what) = match &record.state {
        RunState::Failed(code) => (code.map(i64::from), String::new()),
        RunState::Missed(n) => (i64::try_from(*n).ok(), String::new()),
        RunState::Killed(what) | RunState::Skipped(what) => (None, what.clone()),
        _ => (None, String::new()),
    };
    let by = match &record.cause {
        Cause::Asked(by) => by.clone(),
        _ => String::new(),
    };
    json(&Record {
        job: record.job.path(),
        cause: record.cause.word().to_owned(),
        by,
        planned: record.planned,
        started: record.started,
        ended: record.ended,
        state: record.state.word().to_owned(),
        code,
        what,
        attempt: record.attempt,
        error: record.error.clone(),
        pid: record.pid,
        pid_started: record.pid_started,
        tree: record.tree.map(|tree| tree.word().to_owned()),
        bytes: record.output_bytes,
        gap: record.output_gap,
        unkillable: record.unkillable.clone(),
    })
}
/// None: of another version's form.
pub fn read_record(run_id: RunId, value: &[u8]) -> Option<RunRecord> {
    let stored = serde_json::from_slice::<Record>(value).ok()?;
    let state = match stored.state.as_str() {
        "queued" => RunState::Queued,
        "running" => RunState::Running,
        "succeeded" => RunState::Succeeded,
        "failed" => RunState::Failed(stored.code.and_then(|code| code.try_into().ok())),
        "timed_out" => RunState::TimedOut,
        "killed" => RunState::Killed(stored.what),
        "skipped" => RunState::Skipped(stored.what),
        "missed" => RunState::Missed(stored.code.and_then(|n| n.try_into().ok()).unwrap_or(0)),
        "lost" => RunState::Lost,
        _ => return None,
    };
    let cause = match stored.cause.as_str() {
        "planned" => Cause::Planned,
        "late" => Cause::Late,
        "catch_up" => Cause::CatchUp,
        "once" => Cause::Once,
        "asked" => Cause::Asked(stored.by),
        _ => return None,
    };
    Some(RunRecord {
        run_id,
        job: JobKey::of_path(&stored.job)?,
        cause,
        planned: stored.planned,
        started: stored.started,
        ended: stored.ended,
        state,
        attempt: stored.attempt,
        error: stored.error,
        pid: stored.pid,
        pid_started: stored.pid_started,
        tree: match stored.tree.as_deref() {
            Some("cgroup") => Some(Tree::Cgroup),
            Some("sweep") => Some(Tree::Sweep),
            _ => None,
        },
        output_bytes: stored.bytes,
        output_gap: stored.gap,
        unkillable: stored.unkillable,
    })
}

pub fn output(kept: &Kept) -> Vec<u8> {
    let mut value = Vec::with_capacity(16 + kept.head.len() + kept.tail.len());
    value.extend(kept.total.to_le_bytes());
    value.extend((kept.head.len() as u64).to_le_bytes());
    value.extend(&kept.head);
    value.extend(&kept.tail);
    value
}
pub fn read_output(value: &[u8]) -> Option<Kept> {
    let (total, rest) = value.split_first_chunk::<8>()?;
    let (head, rest) = rest.split_first_chunk::<8>()?;
    let (head, tail) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*head)).ok()?)?;
    let total = u64::from_le_bytes(*total);
    (total >= rest.len() as u64).then(|| Kept {
        head: head.to_vec(),
        tail: tail.to_vec(),
        total,
    })
}

pub fn memory(memory: &JobMemory) -> Vec<u8> {
    json(memory)
}
pub fn read_memory(value: &[u8]) -> Option<JobMemory> {
    serde_json::from_slice(value).ok()
}
