//! Follows the jobs in the store and tells the runner what changed; writes what it answers, takes commands, claims firings. Without a
//! store in reach the jobs of the last time go on.
//!
//! Hears: StandingChanged, JobStateChanged, Claim, ReleaseClaim, MarkOnce, WriteJob, CheckSigned, ObserveWatcher, Drain.
//! Says: JobsChanged → CronRunner, one at a time, the next when it is answered; JobCommand, AskSummary → CronRunner.
//! Bound: one change under way, `MOST_COMMANDS` commands, one record a task id. Waits: for the store, with a limit each time.
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use actix::prelude::*;
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;

use super::{
    claims::{self, Claimer, MOST_SKEW},
    commands,
    follow::{Follow, Seen, blocking},
    gate::{self, SharedGate},
    publish::{self, Publish},
    records::Records,
};
use crate::{
    clock::SharedClock,
    messages::{
        control::Drain,
        jobs::{
            AskSummary, CheckSigned, Claim, Claimed, CommandAnswer, JobAnswer, JobCommand, JobStateChanged,
            JobsChanged, MarkOnce, OnceMarked, ReleaseClaim, WriteJob, WriteRefused, Written,
        },
        lease::{ObserveWatcher, Standing, StandingChanged, WatcherView},
    },
    model::{Invalid, JobKey, RunId},
    retry::Reconnect,
    store::{
        Entry, LeaseId, Op, SharedStore, StoreError, Transaction,
        kept::{Kept, Whose},
        keys,
    },
};

/// Commands that wait; whoever sends more is not answered, and hears so.
const MOST_COMMANDS: usize = 1000;
/// A runner that fell is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// The longest that the runner may take for a command.
const COMMAND: Duration = Duration::from_secs(5);
/// What became of jobs is written this much later: runs that start now go first, and what comes together is written together.
const WRITE_SOON: Duration = Duration::from_millis(10);
/// Records that could not be written are tried again after this.
const WRITE_AGAIN: Duration = Duration::from_secs(2);
/// Agents of a group answer to a change of a group's job at this rate, all together.
const GROUP_ANSWERS_PER_SECOND: f64 = 500.0;
/// How many agents there are is asked again after this.
const COUNT_EVERY: Duration = Duration::from_secs(600);
/// The store's clock is looked at again after this, when something is to be claimed.
const SKEW_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct JobWatcherParts {
    pub store: SharedStore,
    /// What is remembered of a store that is elsewhere. None: it is here.
    pub kept: Option<Kept>,
    /// None: signatures are not looked at.
    pub gate: Option<SharedGate>,
    pub instance: String,
    /// None: takes no jobs of a group.
    pub group: Option<String>,
    /// Of the settings: whose table it is.
    pub prefix: String,
    pub jobs: Recipient<JobsChanged>,
    pub commands: Recipient<JobCommand>,
    /// None: how the jobs do is not published.
    pub publish: Option<Publish>,
    pub clock: SharedClock,
    pub log: slog::Logger,
}

pub struct JobWatcher {
    parts: JobWatcherParts,
    standing: Standing,
    /// Whose jobs are followed. None: of nobody.
    following: Option<IpAddr>,
    /// Of the present following: an older one's results do not count any more.
    round: u64,
    turning: Option<SpawnHandle>,
    /// None while a turn is under way.
    follow: Option<Follow>,
    reconnect: Reconnect,
    jobs: usize,
    revision: i64,
    reads: u64,
    /// Steady time at which the store was lost, or the jobs of the last time were taken.
    stale_since: Option<Duration>,
    /// The runner may have jobs from us.
    told: bool,
    records: Records,
    writing: bool,
    write_timer: Option<SpawnHandle>,
    /// When the summary of runs is written next.
    publish_timer: Option<SpawnHandle>,
    commands: VecDeque<Entry>,
    serving: bool,
    /// Exclusive runs of ours, under their keys.
    running: BTreeMap<JobKey, (RunId, Timestamp)>,
    /// Over, and still to be said so.
    to_release: BTreeMap<JobKey, RunId>,
    /// Gone, and their marks still to be taken away.
    to_unmark: BTreeSet<JobKey>,
    tidying: bool,
    agents: Option<(Duration, u64)>,
    skew: Option<(Duration, i64)>,
    read_trouble: Option<String>,
    write_trouble: Option<String>,
    drained: bool,
}

impl JobWatcher {
    pub fn new(parts: JobWatcherParts) -> Self {
        Self {
            parts,
            standing: Standing::Waiting("not registered yet".into()),
            following: None,
            round: 0,
            turning: None,
            follow: None,
            reconnect: Reconnect::default(),
            jobs: 0,
            revision: 0,
            reads: 0,
            stale_since: None,
            told: false,
            records: Records::default(),
            writing: false,
            write_timer: None,
            publish_timer: None,
            commands: VecDeque::new(),
            serving: false,
            running: BTreeMap::new(),
            to_release: BTreeMap::new(),
            to_unmark: BTreeSet::new(),
            tidying: false,
            agents: None,
            skew: None,
            read_trouble: None,
            write_trouble: None,
            drained: false,
        }
    }
    fn now(&self) -> Duration {
        self.parts.clock.steady()
    }
    fn held(&self) -> Option<(IpAddr, LeaseId)> {
        match self.standing {
            Standing::Held { ip, lease } => Some((ip, LeaseId(lease))),
            _ => None,
        }
    }

    // ---- what is followed
    fn stand(&mut self, standing: Standing, ctx: &mut Context<Self>) {
        let lease_before = self.held();
        let wanted = match &standing {
            Standing::Held { ip, .. } | Standing::Away { ip, .. } => Some(*ip),
            Standing::Waiting(_) | Standing::Taken { .. } => None,
        };
        let returned = matches!(self.standing, Standing::Away { .. }) && matches!(standing, Standing::Held { .. });
        self.standing = standing;
        if let Some(held) = self.held()
            && lease_before != Some(held)
        {
            self.records.write_all_again();
            self.publish_soon(ctx);
        }
        if wanted != self.following {
            self.follow_anew(wanted, ctx);
        } else if returned && self.follow.is_some() {
            self.reconnect.reset();
            self.turn(ctx); // it is there: no need to wait out the last wait
        }
        self.write(ctx);
        self.tidy(ctx);
    }
    fn follow_anew(&mut self, ip: Option<IpAddr>, ctx: &mut Context<Self>) {
        self.round += 1;
        if let Some(turn) = self.turning.take() {
            ctx.cancel_future(turn);
        }
        self.following = ip;
        self.reconnect.reset();
        self.read_trouble = None;
        (self.follow, self.stale_since) = (None, None);
        match ip {
            None if self.told => self.clear(ctx),
            None => {}
            Some(ip) => {
                self.told = true;
                self.follow = Some(self.new_follow(ip));
                self.turn(ctx);
            }
        }
    }
    fn new_follow(&self, ip: IpAddr) -> Follow {
        let whose = Whose {
            instance: self.parts.instance.clone(),
            ip: ip.to_string(),
            group: self.parts.group.clone(),
            prefix: self.parts.prefix.clone(),
            cluster: 0,
        };
        let follow = Follow::new(self.parts.store.clone(), self.parts.kept.clone(), whose);
        match &self.parts.gate {
            Some(gate) => follow.with_gate(gate.clone(), self.parts.clock.clone()),
            None => follow,
        }
    }
    /// No jobs are ours: the runner hears it until it has.
    fn clear(&mut self, ctx: &mut Context<Self>) {
        let round = self.round;
        let jobs = self.parts.jobs.clone();
        let none = JobsChanged {
            full: true,
            put: vec![],
            removed: vec![],
        };
        let work = async move { jobs.send(none).await.is_ok() };
        let work = work.into_actor(self).map(move |heard, watcher, ctx| {
            if watcher.round != round {
                return;
            }
            match heard {
                true => {
                    watcher.turning = None;
                    watcher.told = false;
                    watcher.jobs = 0;
                    watcher.records = Records::default();
                    watcher.commands.clear();
                }
                false => {
                    watcher.turning = Some(ctx.run_later(ASK_AGAIN, |watcher, ctx| watcher.clear(ctx)));
                }
            }
        });
        self.turning = Some(ctx.spawn(work));
    }

    /// The next that is new in the store, unless that is waited for already.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        let Some(mut follow) = self.follow.take() else { return };
        if let Some(waiting) = self.turning.take() {
            ctx.cancel_future(waiting);
        }
        let (round, jobs) = (self.round, self.parts.jobs.clone());
        let work = async move {
            let turned = turn(&mut follow, &jobs).await;
            (follow, turned)
        };
        let work = work.into_actor(self).map(move |(follow, turned), watcher, ctx| {
            if watcher.round == round {
                watcher.turned(follow, turned, ctx);
            }
        });
        self.turning = Some(ctx.spawn(work));
    }
    fn turned(&mut self, follow: Follow, turned: Turned, ctx: &mut Context<Self>) {
        self.turning = None;
        (self.jobs, self.revision, self.reads) = (follow.jobs(), follow.revision, follow.reads);
        self.follow = Some(follow);
        match turned {
            Turned::New { seen, changes, trouble } => {
                self.reconnect.reset();
                if let Some(since) = self.stale_since.take() {
                    let gone = self.now().saturating_sub(since);
                    slog::info!(self.parts.log, "the store is back"; "jobs" => self.jobs, "after" => ?gone);
                }
                self.read_trouble = trouble;
                if let Some((changes, answers)) = changes {
                    self.answered(&changes, &answers);
                }
                let room = MOST_COMMANDS.saturating_sub(self.commands.len());
                self.commands.extend(seen.commands.into_iter().take(room));
                self.serve(ctx);
                self.write(ctx);
                self.tidy(ctx);
                self.turn(ctx);
            }
            Turned::RunnerFell => {
                self.turning = Some(ctx.run_later(ASK_AGAIN, |watcher, ctx| watcher.turn(ctx)));
            }
            Turned::LastTime { changes, answers } => {
                slog::warn!(self.parts.log, "going on with the jobs of the last time"; "jobs" => self.jobs);
                self.answered(&changes, &answers);
                self.turn(ctx);
            }
            Turned::Lost(error) => {
                let next_in = self.reconnect.next();
                if self.stale_since.is_none() || self.read_trouble.as_ref() != Some(&error.to_string()) {
                    slog::warn!(self.parts.log, "the jobs cannot be followed, trying again";
                        "error" => %error, "attempt" => self.reconnect.attempt(), "next_in" => ?next_in);
                }
                self.stale_since.get_or_insert(self.parts.clock.steady());
                self.read_trouble = Some(error.to_string());
                self.turning = Some(ctx.run_later(next_in, |watcher, ctx| watcher.turn(ctx)));
            }
        }
    }

    // ---- what is written
    fn answered(&mut self, changes: &JobsChanged, answers: &[JobAnswer]) {
        let soon = self.now() + WRITE_SOON;
        for answer in answers {
            let due = match answer.key.is_group() {
                true => soon + self.group_answer_in(),
                false => soon,
            };
            self.records.answered(answer, due);
        }
        for key in &changes.removed {
            self.records.removed(key);
            self.to_unmark.insert(key.clone());
        }
        if changes.full {
            self.records
                .keep_only(&changes.put.iter().map(|job| &job.key).collect());
        }
    }
    /// All agents of a group answer at the same time, to the same job.
    fn group_answer_in(&self) -> Duration {
        let agents = self.agents.map_or(0, |(_, agents)| agents) as f64;
        Duration::from_secs_f64(agents / GROUP_ANSWERS_PER_SECOND * dice())
    }
    /// Writes what is due, unless that is under way.
    fn write(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.write_timer.take() {
            ctx.cancel_future(timer);
        }
        let (false, false, Some((ip, lease)), Some(due)) =
            (self.writing, self.drained, self.held(), self.records.next_due())
        else {
            return;
        };
        let now = self.now();
        if due > now {
            return self.write_in(due - now, ctx);
        }
        self.writing = true;
        let batch = self.records.batch(&ip.to_string(), lease, now);
        let store = self.parts.store.clone();
        let ops = batch.ops.clone();
        let work = async move { store.transact(Transaction::of(ops).idempotent()).await };
        ctx.spawn(work.into_actor(self).map(move |done, watcher, ctx| {
            watcher.writing = false;
            match done {
                // Under another lease by now: all of it is written again.
                Ok(_) if watcher.held() != Some((ip, lease)) => watcher.write(ctx),
                Ok(_) => {
                    watcher.records.written(batch);
                    watcher.write_trouble = None;
                    watcher.write(ctx);
                }
                // LeaseKeeper will say so too.
                Err(StoreError::LeaseGone) => watcher.write_in(WRITE_AGAIN, ctx),
                Err(error) => {
                    watcher.write_trouble = Some(format!("could not write what became of jobs: {error}"));
                    watcher.write_in(WRITE_AGAIN, ctx);
                }
            }
        }));
    }
    fn write_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.write_timer = Some(ctx.run_later(wait, |watcher, ctx| {
            watcher.write_timer = None;
            watcher.write(ctx);
        }));
    }

    // ---- how the jobs do
    fn publish_soon(&mut self, ctx: &mut Context<Self>) {
        if let Some(publish) = &self.parts.publish {
            self.publish_in(publish.first_within.mul_f64(dice()), ctx);
        }
    }
    fn publish_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        let next = ctx.run_later(wait, |watcher, ctx| {
            watcher.publish_timer = None;
            watcher.publish(ctx);
        });
        if let Some(before) = self.publish_timer.replace(next) {
            ctx.cancel_future(before);
        }
    }
    /// Without a lease it waits for the next one: whoever registers begins anew.
    fn publish(&mut self, ctx: &mut Context<Self>) {
        let (false, Some((ip, lease)), Some(publish)) = (self.drained, self.held(), self.parts.publish.clone()) else {
            return;
        };
        let (store, now) = (self.parts.store.clone(), self.parts.clock.wall());
        let work = async move {
            let asked = publish.runs.send(AskSummary { most: publish::MOST });
            let Ok(Ok(summary)) = tokio::time::timeout(COMMAND, asked).await else {
                return Err("the runner of jobs did not answer".to_owned());
            };
            let put = Op::put(keys::runs(&ip.to_string()), publish::value(&summary, now), Some(lease));
            let put = Transaction::of(vec![put]).idempotent();
            store.transact(put).await.map(drop).map_err(|error| error.to_string())
        };
        ctx.spawn(work.into_actor(self).map(move |done, watcher, ctx| {
            // Under another lease by now, it is on its way already.
            if watcher.publish_timer.is_some() || watcher.drained {
                return;
            }
            if let Err(error) = &done {
                slog::warn!(watcher.parts.log, "could not publish how the jobs do"; "error" => error, "next_in" => ?publish::AGAIN);
            }
            watcher.publish_in(if done.is_ok() { publish::EVERY } else { publish::AGAIN }, ctx);
        }));
    }

    // ---- commands
    /// One after the other.
    fn serve(&mut self, ctx: &mut Context<Self>) {
        let (false, false, Some((ip, lease))) = (self.serving, self.drained, self.held()) else {
            return;
        };
        let Some(entry) = self.commands.pop_front() else { return };
        self.serving = true;
        let (store, gate) = (self.parts.store.clone(), self.parts.gate.clone());
        let (now, runner, log) = (
            self.parts.clock.wall(),
            self.parts.commands.clone(),
            self.parts.log.clone(),
        );
        let run_id = RunId::new(now, chance());
        let work = async move {
            let ask = move |command: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> {
                let asked = tokio::time::timeout(COMMAND, runner.send(command));
                asked.map(|answer| answer.ok()?.ok()).boxed()
            };
            let taker = commands::Taker {
                store: &store,
                gate: gate.as_ref(),
                ip: &ip.to_string(),
                lease,
            };
            let served = commands::serve(&taker, &entry, run_id, now, &ask).await;
            (entry, served)
        };
        ctx.spawn(work.into_actor(self).map(move |(entry, served), watcher, ctx| {
            watcher.serving = false;
            match served {
                Ok(()) => watcher.serve(ctx),
                // It stands there still: the next full read brings it again, while it has not expired.
                Err(error) => {
                    slog::warn!(log, "a command could not be claimed"; "key" => entry.key, "error" => %error);
                    watcher.serve(ctx);
                }
            }
        }));
    }

    // ---- what is to be tidied up, whenever the store is there
    /// How many agents there are; whether the clock is still off.
    fn is_to_be_asked(&self) -> (bool, bool) {
        let age = |at: Duration| self.now().saturating_sub(at);
        let count = self.agents.is_none_or(|(at, _)| age(at) >= COUNT_EVERY);
        let off = |(at, skew): (Duration, i64)| skew > MOST_SKEW && age(at) >= SKEW_EVERY;
        (self.parts.group.is_some() && count, self.skew.is_some_and(off))
    }
    fn ask_again(&mut self, ctx: &mut Context<Self>) {
        if self.is_to_be_asked() != (false, false) {
            self.tidy(ctx);
        }
    }
    fn tidy(&mut self, ctx: &mut Context<Self>) {
        let (false, false, Some((ip, lease))) = (self.tidying, self.drained, self.held()) else {
            return;
        };
        let (count, off) = self.is_to_be_asked();
        let nothing = self.to_release.is_empty() && self.to_unmark.is_empty() && self.running.is_empty();
        if !count && !off && nothing {
            return;
        }
        self.tidying = true;
        let clock = self.parts.clock.clone();
        let (store, instance) = (self.parts.store.clone(), self.parts.instance.clone());
        let (release, unmark) = (self.to_release.clone(), self.to_unmark.clone());
        let running = self.running.clone();
        let work = async move {
            let mut tidied = Tidied::default();
            if count {
                tidied.agents = store.count(keys::HEALTH).await.ok();
            }
            if off {
                tidied.skew = look_at_clock(&store, &clock).await.ok();
            }
            for (job, run_id) in release {
                if claims::release(&store, &job, run_id).await.is_ok() {
                    tidied.released.push((job, run_id));
                }
            }
            for job in unmark {
                if claims::unmark_once(&store, &ip.to_string(), &job).await.is_ok() {
                    tidied.unmarked.push(job);
                }
            }
            for (job, run) in running {
                let _ = claims::put_running_again(&store, &instance, lease, &job, run).await; // again at the next turn
            }
            tidied
        };
        ctx.spawn(work.into_actor(self).map(|tidied, watcher, _| {
            watcher.tidying = false;
            if let Some(agents) = tidied.agents {
                watcher.agents = Some((watcher.now(), agents));
            }
            if let Some(skew) = tidied.skew {
                watcher.skew = Some((watcher.now(), skew));
            }
            for (job, run_id) in tidied.released {
                if watcher.to_release.get(&job) == Some(&run_id) {
                    watcher.to_release.remove(&job);
                }
            }
            for job in tidied.unmarked {
                watcher.to_unmark.remove(&job);
            }
        }));
    }
}
#[derive(Default)]
struct Tidied {
    agents: Option<u64>,
    skew: Option<i64>,
    released: Vec<(JobKey, RunId)>,
    unmarked: Vec<JobKey>,
}

enum Turned {
    New {
        seen: Seen,
        /// What the runner was told, and its answers.
        changes: Option<(JobsChanged, Vec<JobAnswer>)>,
        trouble: Option<String>,
    },
    LastTime {
        changes: JobsChanged,
        answers: Vec<JobAnswer>,
    },
    RunnerFell,
    Lost(StoreError),
}
async fn turn(follow: &mut Follow, runner: &Recipient<JobsChanged>) -> Turned {
    let mut seen = match follow.next().await {
        Ok(seen) => seen,
        Err(error) => return lost(follow, runner, error).await,
    };
    let Some(changes) = seen.jobs.clone() else {
        return Turned::New {
            seen,
            changes: None,
            trouble: None,
        };
    };
    let Ok(answers) = runner.send(changes.clone()).await else {
        follow.not_taken_in();
        return Turned::RunnerFell;
    };
    let trouble = follow.taken_in(&mut seen).await.err().map(|error| error.to_string());
    Turned::New {
        seen,
        changes: Some((changes, answers)),
        trouble,
    }
}
/// The jobs of the last time, if the runner has none yet.
async fn lost(follow: &mut Follow, runner: &Recipient<JobsChanged>, error: StoreError) -> Turned {
    if follow.is_told() {
        return Turned::Lost(error);
    }
    let Ok(Some(changes)) = follow.last_time().await else {
        return Turned::Lost(error);
    };
    match runner.send(changes.clone()).await {
        Ok(answers) => {
            follow.told_last_time();
            Turned::LastTime { changes, answers }
        }
        Err(_) => Turned::RunnerFell,
    }
}

impl Actor for JobWatcher {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        // The former life's futures ended with it, and what was under way is begun anew.
        (self.turning, self.write_timer, self.publish_timer) = (None, None, None);
        (self.writing, self.serving, self.tidying) = (false, false, false);
        if self.drained {
            return;
        }
        self.follow_anew(self.following, ctx);
        self.write(ctx);
        self.publish_soon(ctx);
        self.tidy(ctx);
    }
}
impl Supervised for JobWatcher {}

impl Handler<StandingChanged> for JobWatcher {
    type Result = ();
    fn handle(&mut self, StandingChanged(standing): StandingChanged, ctx: &mut Self::Context) {
        match self.drained {
            true => self.standing = standing,
            false => self.stand(standing, ctx),
        }
    }
}
impl Handler<JobStateChanged> for JobWatcher {
    type Result = ();
    fn handle(&mut self, JobStateChanged(answer): JobStateChanged, ctx: &mut Self::Context) {
        let soon = self.now() + WRITE_SOON;
        self.records.answered(&answer, soon);
        self.write(ctx);
    }
}
impl Handler<Claim> for JobWatcher {
    type Result = ResponseActFuture<Self, Claimed>;
    fn handle(&mut self, claim: Claim, ctx: &mut Self::Context) -> Self::Result {
        self.ask_again(ctx);
        let Some((_, lease)) = self.held() else {
            let none = Claimed::NoStore("not registered".into());
            return Box::pin(std::future::ready(none).into_actor(self));
        };
        let (store, instance, clock) = (
            self.parts.store.clone(),
            self.parts.instance.clone(),
            self.parts.clock.clone(),
        );
        let others = self.agents.map_or(1, |(_, agents)| agents);
        let known = self.skew.filter(|(at, _)| self.now().saturating_sub(*at) < SKEW_EVERY);
        let asked = claim.clone();
        let work = async move {
            let claimer = Claimer {
                store: &store,
                instance: &instance,
                lease,
                now: clock.wall(),
                others,
            };
            if let Some(answer) = claimer.turn(&claim, &dice).await {
                return (None, answer);
            }
            // After that: it is a connection of its own, and with TLS the dearest part of a claim.
            let looked = match known {
                Some((_, skew)) => Ok(skew),
                None => look_at_clock(&store, &clock).await,
            };
            match looked {
                Err(error) => (None, Claimed::NoStore(error.to_string())),
                Ok(skew) if skew > MOST_SKEW => (Some(skew), Claimed::NoStore(too_far_off(skew))),
                Ok(skew) => (Some(skew), claimer.claim(&claim).await),
            }
        };
        Box::pin(work.into_actor(self).map(move |(skew, claimed), watcher, _| {
            if let Some(skew) = skew
                && known.is_none()
            {
                watcher.skew = Some((watcher.now(), skew));
            }
            if claimed == Claimed::Granted {
                watcher.running.insert(asked.job, (asked.run_id, asked.planned));
            }
            claimed
        }))
    }
}
impl Handler<ReleaseClaim> for JobWatcher {
    type Result = ();
    fn handle(&mut self, ReleaseClaim { job, run_id }: ReleaseClaim, ctx: &mut Self::Context) {
        if self.running.get(&job).is_some_and(|(running, _)| *running == run_id) {
            self.running.remove(&job);
        }
        self.to_release.insert(job, run_id);
        self.tidy(ctx);
    }
}
impl Handler<MarkOnce> for JobWatcher {
    type Result = ResponseFuture<OnceMarked>;
    fn handle(&mut self, ask: MarkOnce, _: &mut Self::Context) -> Self::Result {
        let Some((ip, _)) = self.held() else {
            return Box::pin(std::future::ready(OnceMarked::NoStore("not registered".into())));
        };
        let (store, gate, now) = (
            self.parts.store.clone(),
            self.parts.gate.clone(),
            self.parts.clock.wall(),
        );
        Box::pin(async move { gate::mark_once(gate.as_ref(), &store, &ip.to_string(), &ask, now).await })
    }
}
impl Handler<WriteJob> for JobWatcher {
    type Result = ResponseFuture<Result<Written, WriteRefused>>;
    fn handle(&mut self, WriteJob { group, task_id, value }: WriteJob, _: &mut Self::Context) -> Self::Result {
        let key = match (group, self.following) {
            (Some(group), _) => JobKey::group(group, task_id),
            (None, Some(ip)) => JobKey::host(ip.to_string(), task_id),
            (None, None) => {
                let why = "this agent has no address in the store now".to_owned();
                return Box::pin(std::future::ready(Err(WriteRefused::Store(why))));
            }
        };
        let store = self.parts.store.clone();
        Box::pin(async move { write_job(&store, key, value).await })
    }
}
/// Done twice it does no harm, and there is nobody to compare with: the last word counts.
async fn write_job(store: &SharedStore, key: JobKey, value: Option<bytes::Bytes>) -> Result<Written, WriteRefused> {
    let path = key.path();
    let refused = |error: StoreError| WriteRefused::Store(error.to_string());
    let existed = store.get(&path).await.map_err(refused)?.is_some();
    let op = match value {
        None if !existed => return Err(WriteRefused::Unknown),
        None => Op::delete(path),
        Some(value) => Op::put(path, value, None),
    };
    let done = store
        .transact(Transaction::of(vec![op]).idempotent())
        .await
        .map_err(refused)?;
    Ok(Written {
        key,
        mod_revision: done.revision,
        existed,
    })
}
impl Handler<CheckSigned> for JobWatcher {
    type Result = ResponseFuture<Result<(), Invalid>>;
    fn handle(&mut self, ask: CheckSigned, _: &mut Self::Context) -> Self::Result {
        let key = match (ask.group, self.following) {
            (Some(group), _) => Some(JobKey::group(group, ask.task_id)),
            (None, ip) => ip.map(|ip| JobKey::host(ip.to_string(), ask.task_id)),
        };
        // Without an address it cannot be written either.
        let (Some(gate), Some(key)) = (self.parts.gate.clone(), key) else {
            return Box::pin(std::future::ready(Ok(())));
        };
        let now = self.parts.clock.wall();
        let look = blocking(move || Ok(gate.would_take(&key.path(), &ask.value, now)));
        Box::pin(async move {
            look.await.unwrap_or_else(|error| {
                Err(Invalid {
                    field: "signature".into(),
                    found: format!("one that could not be looked at: {error}"),
                    accepted: "one that fits".into(),
                })
            })
        })
    }
}
impl Handler<ObserveWatcher> for JobWatcher {
    type Result = MessageResult<ObserveWatcher>;
    fn handle(&mut self, _: ObserveWatcher, ctx: &mut Self::Context) -> Self::Result {
        self.ask_again(ctx);
        let skew = self
            .skew
            .filter(|(_, skew)| *skew > MOST_SKEW)
            .map(|(_, skew)| format!("{}: it runs no exclusive jobs", too_far_off(skew)));
        let trouble = [&self.read_trouble, &self.write_trouble, &skew];
        MessageResult(WatcherView {
            jobs: self.jobs,
            stale: self.stale_since.map(|since| self.now().saturating_sub(since)),
            revision: self.revision,
            reads: self.reads,
            unwritten: self.records.unwritten(),
            trouble: trouble.into_iter().flatten().cloned().collect(),
        })
    }
}
impl Handler<Drain> for JobWatcher {
    type Result = ();
    /// Nothing is taken on any more. What stands under the lease goes with it.
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.drained = true;
        self.round += 1;
        let under_way = [self.turning.take(), self.write_timer.take(), self.publish_timer.take()];
        for handle in under_way.into_iter().flatten() {
            ctx.cancel_future(handle);
        }
    }
}

/// Seconds between this host's clock and the store's.
async fn look_at_clock(store: &SharedStore, clock: &SharedClock) -> Result<i64, StoreError> {
    let wall = store.wall().await?;
    Ok(wall.map_or(0, |wall| (clock.wall().as_second() - wall.as_second()).abs()))
}
fn too_far_off(skew: i64) -> String {
    format!("this host's clock is {skew} s off etcd's")
}
/// Evenly from 0 to 1.
fn dice() -> f64 {
    let mut bytes = [0; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5, // no randomness: nobody waits longer than half
    }
}
fn chance() -> [u8; 10] {
    let mut bytes = [0; 10];
    let _ = getrandom::fill(&mut bytes); // then it is the time alone that tells runs apart
    bytes
}
