//! Jobs: JobWatcher follows the store and tells CronRunner what changed; CronRunner runs it and tells what became of it.
use actix::prelude::*;
use bytes::Bytes;
use jiff::Timestamp;

use crate::model::{Invalid, JobKey, JobState, RunId, RunRecord};

// ---- JobWatcher → CronRunner (its Port, 1)
/// What is in the store now, or what is different there since last time. Answered when it holds: one answer for each of `put`, in
/// their order. A job that is put again unchanged (mod_revision and value) is not touched.
#[derive(Message, Clone, Debug)]
#[rtype(result = "Vec<JobAnswer>")]
pub struct JobsChanged {
    /// `put` is all there is: what else was known is removed.
    pub full: bool,
    pub put: Vec<JobEntry>,
    pub removed: Vec<JobKey>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEntry {
    pub key: JobKey,
    pub value: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub signed: Signed,
}
/// What the signature of a value is worth here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Signed {
    /// Nobody asks for one: no `verify_key`, or a job of this host's own store.
    #[default]
    Unasked,
    /// It fits, its serial is remembered, and it counts not a moment longer.
    Until { serial: u64, not_after: Timestamp },
    /// The job is invalid. Boxed: there may be 100,000 that are not.
    Refused(Box<Invalid>),
}
/// What the cronid record is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobAnswer {
    pub key: JobKey,
    pub mod_revision: i64,
    /// Numbers the jobs that this runner took on, from 1; a job keeps its number while it is known. 0: invalid from the start.
    pub cronid: u64,
    pub state: JobState,
    /// Why it is invalid or failing; else empty.
    pub error: String,
}

/// May jobs be started now? LeaseKeeper says so whenever it changes; until it does they may. What comes due meanwhile is `skipped`.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct MayFire {
    /// Why not: `no lease`, `10.0.0.7 is held by …`. None: they may.
    pub refused: Option<String>,
}

/// An order for one job, or for one of its runs. Answered at once: a run is not waited for.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "CommandAnswer")]
pub struct JobCommand {
    pub action: Action,
    pub task_id: String,
    /// Of the group of that name; none: the host's own job, else the group's.
    pub group: Option<String>,
    /// Of the command, for the log and the answer.
    pub id: String,
    /// Who asks, for the record: `cli`, `http`, `etcd`.
    pub by: String,
    /// For `run`: the id that its run shall have (a command is claimed with it). For `kill`: this run only.
    pub run_id: Option<RunId>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Run,
    Kill,
    /// Holds until resumed, over restarts too, or until the job's value changes.
    Pause,
    Resume,
}
impl Action {
    pub const WORDS: &[(&str, Self)] = &[
        ("run", Self::Run),
        ("kill", Self::Kill),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
    ];
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAnswer {
    pub done: bool,
    /// One sentence: what was done, or why not.
    pub said: String,
    /// The run that was started, or those that are being killed.
    pub run_ids: Vec<RunId>,
}

// ---- CronRunner → JobWatcher
/// A job that was good is failing, or the other way round, or was paused or resumed here. Never once a run.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct JobStateChanged(pub JobAnswer);

/// May this agent run that firing of an exclusive job?
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "Claimed")]
pub struct Claim {
    pub job: JobKey,
    /// As it is known here: a job that has changed is not claimed.
    pub mod_revision: i64,
    pub planned: Timestamp,
    pub run_id: RunId,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    Granted,
    /// By whom, or what stands against it: `claimed`, `running elsewhere`, `changed`.
    Taken(String),
    /// Nobody can be asked: `no claim`.
    NoStore(String),
}
/// That run is over: the group's key `running` goes.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ReleaseClaim {
    pub job: JobKey,
    pub run_id: RunId,
}
/// Write the done mark of a `once` job, before its run.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "OnceMarked")]
pub struct MarkOnce {
    pub job: JobKey,
    pub create_revision: i64,
    /// Of the value without status: the same job put again has the same.
    pub value_hash: String,
    /// Of its signature, where one is asked for.
    pub serial: Option<u64>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnceMarked {
    Marked,
    /// It ran, here or in a former life of this host.
    Already,
    /// This host was not there yet when the job was put.
    TooYoung,
    /// Nobody can be asked; the job waits. Why.
    NoStore(String),
}
/// Root → CronRunner: who answers the three above.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct MeetWatcher {
    pub state_changed: Recipient<JobStateChanged>,
    pub claim: Recipient<Claim>,
    pub release: Recipient<ReleaseClaim>,
    pub once: Recipient<MarkOnce>,
}

// ---- JobWatcher → CronRunner
/// How the jobs do, for those who look at a whole fleet. With the last run of `most` jobs: failing ones first, then the newest.
#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "Summary")]
pub struct AskSummary {
    pub most: usize,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub jobs: usize,
    pub paused: usize,
    pub invalid: usize,
    pub failing: usize,
    /// Present runs, waiting ones too.
    pub present: usize,
    pub last: Vec<RunRecord>,
    /// Jobs whose last run is known, and not in `last`.
    pub left_out: usize,
}

// ---- HttpApi → Root → JobWatcher
/// Write a job to the store, or take it away (`value` none). It has been checked; what runs is what JobWatcher then sees there.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "Result<Written, WriteRefused>")]
pub struct WriteJob {
    /// Of this group; none: the host's own.
    pub group: Option<String>,
    pub task_id: String,
    pub value: Option<Bytes>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub key: JobKey,
    pub mod_revision: i64,
    /// There was such a job before.
    pub existed: bool,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteRefused {
    /// A job to be removed is not there.
    Unknown,
    /// The store is away, or refuses.
    Store(String),
}

/// Would the signature of such a job do here? Ok too where none is asked for.
#[derive(Message, Clone, Debug, PartialEq, Eq)]
#[rtype(result = "Result<(), Invalid>")]
pub struct CheckSigned {
    /// Of this group; none: the host's own.
    pub group: Option<String>,
    pub task_id: String,
    pub value: Bytes,
}

// ---- HttpApi → Root → CronRunner
/// All jobs that are known here, by key.
#[derive(Message)]
#[rtype(result = "Vec<JobView>")]
pub struct AskJobs;
/// One job with its value; an own job before one of a group.
#[derive(Message)]
#[rtype(result = "Option<Box<JobDetail>>")]
pub struct AskJob {
    pub group: Option<String>,
    pub task_id: String,
}
/// Runs, newest first; of one job, or of all.
#[derive(Message)]
#[rtype(result = "Vec<RunRecord>")]
pub struct AskRuns {
    pub task_id: Option<String>,
    pub most: usize,
}
/// What a run wrote, from that byte on (of all that it wrote, gap included).
#[derive(Message)]
#[rtype(result = "Option<OutputView>")]
pub struct AskOutput {
    pub run_id: RunId,
    pub from: u64,
}
/// What would become of such a job here, without taking it on: why not, or its next instants.
#[derive(Message)]
#[rtype(result = "Result<Vec<Timestamp>, Invalid>")]
pub struct CheckJob {
    pub group: Option<String>,
    pub task_id: String,
    pub value: Bytes,
}
/// Why did this job not run? One sentence.
#[derive(Message)]
#[rtype(result = "Option<String>")]
pub struct AskWhyJob(pub String);

#[derive(Clone, Debug)]
pub struct JobView {
    pub key: JobKey,
    pub cronid: u64,
    pub mod_revision: i64,
    pub state: JobState,
    pub error: String,
    /// Empty if it is invalid.
    pub express: String,
    pub cmd: String,
    pub executor: String,
    pub title: String,
    pub next: Option<Timestamp>,
    pub last: Option<RunRecord>,
    /// Present runs, waiting ones too.
    pub runs: Vec<RunId>,
}
#[derive(Clone, Debug)]
pub struct JobDetail {
    pub view: JobView,
    pub value: Bytes,
    pub next: Vec<Timestamp>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputView {
    /// Where `bytes` begin, of all that was written.
    pub from: u64,
    pub bytes: Vec<u8>,
    /// So many bytes before `from` were asked for and are not kept.
    pub gap: u64,
    /// Nothing follows.
    pub ended: bool,
}

/// Root → CronRunner: look away from that run, it has asked its own agent to stop.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct LetGo(pub RunId);

/// How the runner is: for health.
#[derive(Message)]
#[rtype(result = "RunnerView")]
pub struct ObserveRunner;
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunnerView {
    pub jobs: usize,
    /// Present runs, waiting ones too.
    pub runs: usize,
    /// Why no job is started now.
    pub refused: Option<String>,
    /// Why the history cannot be written at present, and how many records were lost by it.
    pub history_error: Option<String>,
    pub lost_records: u64,
}
