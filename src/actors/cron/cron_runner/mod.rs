//! Runs the jobs: looks when they are due (`agenda`), writes the start record, starts them, and keeps what became of them.
//! Hears: JobsChanged, MayFire, JobCommand, MeetWatcher, the `Ask*` of jobs, CheckJob, Drain. Says: JobStateChanged, Claim,
//! ReleaseClaim, MarkOnce → JobWatcher. Bound: `[jobs] max_parallel` runs, one queued a job; its mailbox. Waits: for the next
//! instant, 30 s at most, so that a clock that is set or a machine that slept is seen.
//!
//! A start is on the disk before the process is: what is due in one tick is one commit. Runs live in tasks of their own and tell how
//! they end by a mailbox that outlives a fall of this actor.
mod answer;
mod fire;
mod hear;
mod run;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::prelude::*;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::{
    actors::{
        cron::agenda::Agenda,
        kit::{Errand, Later, SharedPulse},
    },
    clock::SharedClock,
    executors::{Executors, Guards, Launcher, Outcome, Started, tree},
    history::{Change, History, JobMemory},
    messages::{jobs::MeetWatcher, notify::JobFailed},
    model::{JobKey, RunId, RunRecord, SharedSign, job::Limits},
    os,
};
use run::{Phase, Run};

/// Until the clock is read again, at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// The wall clock may lag so much behind the steady one from look to look before it counts as set back: it is slewed by less.
const SET_BACK: SignedDuration = SignedDuration::from_secs(1);
/// Past its instant by more, a run is not started any more.
pub const TOO_LATE: Duration = Duration::from_secs(300);
/// A frozen agent looks so often whether it has had word.
const LOOK_FOR_WORD: Duration = Duration::from_millis(200);
/// What a former life left, and orphans that became ours, are looked for so often, if there may be some.
const LOOK_FOR_LEFT: Duration = Duration::from_secs(5);
/// Looks after the last run: an orphan is buried at the second that sees it.
const LAST_LOOKS: u8 = 3;
/// Records that wait for a disk that cannot be written; past that the oldest are lost, and counted.
const MOST_UNWRITTEN: usize = 10_000;
/// What no start waits for is written after this.
const WRITE_SOON: Duration = Duration::from_millis(10);
/// A write holds so many records besides those of starts, and of so many jobs what is remembered besides theirs: who starts a run does
/// not wait for 100,000 new jobs.
const RECORDS_A_WRITE: usize = 2048;
const JOBS_A_WRITE: usize = 2048;

pub struct CronRunnerParts {
    pub history: History,
    /// What `History::memories` gave.
    pub memories: HashMap<String, JobMemory>,
    /// What `History::take_lost` gave.
    pub lost: Vec<RunRecord>,
    pub launcher: Arc<dyn Launcher>,
    pub executors: Executors,
    pub limits: Limits,
    pub guards: Guards,
    /// Who tells people of runs that did not succeed.
    pub notifier: Option<Recipient<JobFailed>>,
    pub enabled: bool,
    pub max_parallel: usize,
    pub start_grace: Duration,
    /// How long a stop may take.
    pub drain: Duration,
    pub sign: SharedSign,
    pub pulse: SharedPulse,
    pub clock: SharedClock,
    pub log: slog::Logger,
}

pub struct CronRunner {
    history: History,
    launcher: Arc<dyn Launcher>,
    executors: Executors,
    notifier: Option<Recipient<JobFailed>>,
    enabled: bool,
    max_parallel: usize,
    drain: Duration,
    /// While it is overdue, this agent was frozen and does not know yet whether another has its address.
    sign: SharedSign,
    pulse: SharedPulse,
    clock: SharedClock,
    log: slog::Logger,

    agenda: Agenda,
    /// None: jobs may fire.
    refused: Option<String>,
    watcher: Option<MeetWatcher>,
    runs: HashMap<RunId, Run>,
    /// Present runs by job, waiting ones too, oldest first.
    present: HashMap<JobKey, Vec<RunId>>,
    /// Until then, by the steady clock.
    waiting: BTreeSet<(Duration, RunId)>,
    /// Due, and waiting for a free place.
    ready: VecDeque<RunId>,
    /// Nothing stands before them any more.
    let_on: Vec<RunId>,
    /// To be written, then started.
    starting: Vec<RunId>,
    /// Being written, or running.
    occupied: usize,
    unwritten: Vec<Written>,
    /// Until what no start waits for is written.
    write_later: Option<SpawnHandle>,
    writing: Option<Writing>,
    /// Why the last write failed, while none has succeeded since.
    history_error: Option<String>,
    lost_records: u64,
    /// The last run of each job that ended in this life.
    last: HashMap<JobKey, RunRecord>,
    /// `once` jobs that the watcher is being asked about.
    marking: BTreeSet<usize>,
    /// When a `once` job that could not be marked is tried again, by the steady clock.
    mark_again: Option<Duration>,

    inbox: Arc<Inbox>,
    /// Wall and steady at the last look.
    looked: Option<(Timestamp, Duration)>,
    alarm: Option<SpawnHandle>,
    reaper: Arc<Mutex<os::Reaper>>,
    look_for_left: Option<SpawnHandle>,
    /// So many more looks, once no run is present.
    looks_left: u8,
    draining: bool,
    drained: Later<()>,
    /// Ids of one tick differ.
    chance: Box<dyn FnMut() -> [u8; 10]>,
}
type Written = (RunRecord, Option<crate::model::job::Kept>);
struct Writing {
    errand: Errand<Result<(), String>>,
    /// The same, in case it fails, and for whoever asks meanwhile.
    change: Arc<Change>,
    starting: Vec<RunId>,
}

/// Where tasks of runs tell what happened.
#[derive(Default)]
struct Inbox {
    events: Mutex<Vec<Event>>,
    wake: Notify,
}
enum Event {
    Started(RunId, Started),
    Ended(RunId, Outcome),
    /// Runs that ended and had left processes: now they have none.
    LeftGone(Vec<RunId>),
}
impl Inbox {
    fn push(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.wake.notify_one();
    }
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CronRunner {
    pub fn new(parts: CronRunnerParts) -> Self {
        let mut runner = Self {
            history: parts.history,
            launcher: parts.launcher,
            executors: parts.executors,
            notifier: parts.notifier,
            enabled: parts.enabled,
            max_parallel: parts.max_parallel.max(1),
            drain: parts.drain,
            sign: parts.sign,
            pulse: parts.pulse,
            clock: parts.clock,
            log: parts.log,
            agenda: Agenda::new(parts.limits, parts.guards, parts.start_grace, parts.memories),
            refused: None,
            watcher: None,
            runs: HashMap::new(),
            present: HashMap::new(),
            waiting: BTreeSet::new(),
            ready: VecDeque::new(),
            let_on: vec![],
            starting: vec![],
            occupied: 0,
            unwritten: vec![],
            write_later: None,
            writing: None,
            history_error: None,
            lost_records: 0,
            last: HashMap::new(),
            marking: BTreeSet::new(),
            mark_again: None,
            inbox: Arc::default(),
            looked: None,
            alarm: None,
            reaper: Arc::default(),
            look_for_left: None,
            looks_left: 0,
            draining: false,
            drained: Later::default(),
            chance: Box::new(|| {
                let mut chance = [0; 10];
                let _ = getrandom::fill(&mut chance); // without the system's chance they differ by time and by the test of `new_id`
                chance
            }),
        };
        let steady = runner.clock.steady();
        for record in parts.lost {
            slog::warn!(runner.log, "a run was lost"; "job" => %record.job, "run" => %record.run_id, "why" => &record.error);
            runner.last.insert(record.job.clone(), record.clone());
            runner.keep_left(record, steady);
        }
        runner
    }
    fn new_id(&mut self, now: Timestamp) -> RunId {
        loop {
            let id = RunId::new(now, (self.chance)());
            if !self.runs.contains_key(&id) {
                return id;
            }
        }
    }

    /// Everything that can be done now, then sleeps until the next.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let (wall, steady) = (self.clock.wall(), self.clock.steady());
        if let Some((wall_then, steady_then)) = self.looked.replace((wall, steady)) {
            let passed = SignedDuration::try_from(steady.saturating_sub(steady_then)).unwrap_or(SignedDuration::MAX);
            if wall.duration_since(wall_then) < passed - SET_BACK && wall < wall_then {
                slog::warn!(self.log, "the clock was set back"; "from" => %wall_then, "to" => %wall);
                for answer in self.agenda.clock_set_back(wall) {
                    self.tell(answer);
                }
            }
        }
        for answer in self.agenda.take_lapsed(wall) {
            slog::warn!(self.log, "a job's signature has ended"; "job" => %answer.key, "why" => &answer.error);
            self.take_back(&answer.key, answer.state.word());
            self.tell(answer);
        }
        for event in self.inbox.take() {
            self.heard(event, wall);
        }
        let word = !self.sign.is_overdue(steady);
        if self.enabled && !self.draining && word {
            for due in self.agenda.take_due(wall) {
                self.due(due, wall, ctx);
            }
            self.mark_once(steady, ctx);
        }
        while let Some(id) = self.let_on.pop() {
            if matches!(
                self.runs.get(&id),
                Some(Run {
                    phase: Phase::Behind,
                    ..
                })
            ) {
                self.go(id, ctx);
            }
        }
        while let Some((until, id)) = self
            .waiting
            .first()
            .copied()
            .filter(|(until, _)| *until <= steady && word)
        {
            self.waiting.remove(&(until, id));
            self.make_ready(id);
        }
        while self.occupied < self.max_parallel
            && word
            && let Some(id) = self.ready.pop_front()
        {
            self.prepare_start(id, wall);
        }
        self.write_soon(wall, ctx);
        self.answer_drain();
        self.sleep(wall, steady, ctx);
    }
    fn sleep(&mut self, wall: Timestamp, steady: Duration, ctx: &mut Context<Self>) {
        let due = self.agenda.next_at().filter(|_| self.enabled && !self.draining); // or a signature's end, which may be seen late
        let due = due.map(|due| Duration::try_from(due.duration_since(wall)).unwrap_or_default());
        let waits = [self.waiting.first().map(|(until, _)| *until), self.mark_again];
        let waits = waits.into_iter().flatten().map(|until| until.saturating_sub(steady));
        let time = due
            .into_iter()
            .chain(waits)
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP);
        // A timer's grain is a millisecond: what is rounded down is looked for once too often.
        let time = match self.sign.is_overdue(steady) {
            true => LOOK_FOR_WORD,
            false => time.max(Duration::from_millis(1)),
        };
        if let Some(alarm) = self.alarm.take() {
            ctx.cancel_future(alarm);
        }
        let inbox = self.inbox.clone();
        let rest = async move {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = inbox.wake.notified() => {}
            }
        };
        self.alarm = Some(ctx.spawn(rest.into_actor(self).map(|_, runner, ctx| {
            runner.alarm = None;
            runner.pump(ctx);
        })));
        if !self.runs.is_empty() {
            self.looks_left = LAST_LOOKS;
        }
        if self.look_for_left.is_none() && self.looks_left > 0 {
            self.look_for_left = Some(ctx.run_later(LOOK_FOR_LEFT, Self::look_for_left));
        }
    }
    /// Orphans to bury, processes of runs that are over.
    fn look_for_left(&mut self, _: &mut Context<Self>) {
        self.look_for_left = None;
        self.looks_left = self.looks_left.saturating_sub(1);
        // Who cannot be killed does not hold up its job for ever.
        let waiting = self
            .present
            .keys()
            .filter_map(|key| self.free_to_go(key))
            .collect::<Vec<_>>();
        self.let_on.extend(waiting);
        let left = self.runs.values().filter(|run| matches!(run.phase, Phase::Left(_)));
        let left = left.map(|run| run.record.run_id).collect::<Vec<_>>();
        let (reaper, inbox) = (self.reaper.clone(), self.inbox.clone());
        actix_rt::task::spawn_blocking(move || {
            reaper.lock().unwrap_or_else(PoisonError::into_inner).look();
            let ids = left.iter().map(RunId::to_string).collect::<Vec<_>>();
            let there = tree::survivors(&ids);
            let gone = left
                .iter()
                .zip(&ids)
                .filter(|(_, id)| !there.iter().any(|(there, _)| there == *id));
            inbox.push(Event::LeftGone(gone.map(|(id, _)| *id).collect()));
        });
    }

    // ---- writing
    /// Starts at once; the rest a little later, together with what else comes by then: a start that comes first finds the disk free.
    fn write_soon(&mut self, now: Timestamp, ctx: &mut Context<Self>) {
        if !self.starting.is_empty() || self.draining {
            return self.write(now, ctx);
        }
        let nothing = self.unwritten.is_empty() && self.agenda.is_taken();
        if nothing || self.writing.is_some() || self.write_later.is_some() {
            return;
        }
        self.write_later = Some(ctx.run_later(WRITE_SOON, |runner, ctx| {
            runner.write_later = None;
            let now = runner.clock.wall();
            runner.write(now, ctx);
        }));
    }
    fn write(&mut self, now: Timestamp, ctx: &mut Context<Self>) {
        if self.writing.is_some() {
            return;
        }
        let starting = std::mem::take(&mut self.starting);
        let some = self.unwritten.len().min(RECORDS_A_WRITE);
        let mut runs = self.unwritten.drain(..some).collect::<Vec<_>>();
        let started = starting.iter().filter_map(|id| self.runs.get(id));
        runs.extend(started.map(|run| (run.record.clone(), None)));
        // What a record rests on stands in the same commit: an instant is decided on once.
        let jobs = runs
            .iter()
            .filter_map(|(record, _)| Some(self.agenda.by_key(&record.job)?.0));
        let jobs = jobs.collect::<Vec<_>>();
        let change = Arc::new(Change {
            runs,
            jobs: self.agenda.take_changed(&jobs, JOBS_A_WRITE),
        });
        if change.is_empty() {
            return;
        }
        let (history, written) = (self.history.clone(), change.clone());
        let errand = Errand::start(move || history.write(&written, now).map_err(|error| error.to_string()));
        self.writing = Some(Writing {
            errand,
            change,
            starting,
        });
        self.await_writing(ctx);
    }
    fn await_writing(&mut self, ctx: &mut Context<Self>) {
        if let Some(writing) = &self.writing {
            let done = writing.errand.done();
            ctx.spawn(done.into_actor(self).map(|(), runner, ctx| runner.written(ctx)));
        }
    }
    fn written(&mut self, ctx: &mut Context<Self>) {
        let Some(Writing {
            errand,
            change,
            starting,
        }) = self.writing.take()
        else {
            return;
        };
        let failed = match errand.take() {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(error),
            None => Some("its thread fell".to_owned()),
        };
        if let Some(error) = &failed {
            if self.history_error.is_none() {
                slog::error!(self.log, "could not write the history of jobs, going on without"; "error" => error);
            }
            // The starts among them are written again with their ends.
            let ends = change.runs.iter().filter(|(record, _)| record.state.is_over()).cloned();
            self.unwritten.splice(0..0, ends.collect::<Vec<_>>());
            let over = self.unwritten.len().saturating_sub(MOST_UNWRITTEN);
            self.unwritten.drain(..over);
            self.lost_records += over as u64;
            self.agenda.write_again(&change.jobs);
        } else if self.history_error.is_some() {
            slog::info!(self.log, "the history of jobs is written again"; "records_lost" => self.lost_records);
        } else {
            self.pulse.progressed();
        }
        self.history_error = failed;
        for id in starting {
            self.launch(id);
        }
        if self.history_error.is_some() {
            // Not at once: the disk is full, or worse.
            ctx.run_later(Duration::from_secs(1), |runner, ctx| runner.pump(ctx));
            self.answer_drain();
        } else {
            self.pump(ctx);
        }
    }
}

impl Actor for CronRunner {
    type Context = Context<Self>;
    /// What ran in the former life runs on and tells `inbox`; a write under way is waited for.
    fn started(&mut self, ctx: &mut Self::Context) {
        (self.alarm, self.look_for_left, self.write_later) = (None, None, None);
        self.marking.clear();
        self.claim_again(ctx);
        self.await_writing(ctx);
        self.pump(ctx);
    }
}
impl Supervised for CronRunner {}

#[cfg(test)]
mod tests;
