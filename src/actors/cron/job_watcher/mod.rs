//! Follows the jobs in the store and tells the runner what changed; writes what it answers, takes commands, claims firings. Without a
//! store in reach the jobs of the last time go on.
//!
//! Hears: StandingChanged, JobStateChanged, Claim, ReleaseClaim, MarkOnce, WriteJob, CheckSigned, ObserveWatcher, Drain.
//! Says: JobsChanged → CronRunner, one at a time, the next when it is answered; JobCommand, AskSummary → CronRunner.
//! Bound: one change under way, `MOST_COMMANDS` commands, one record a task id. Waits: for the store, with a limit each time.
mod asked;
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use actix::prelude::*;
use jiff::Timestamp;

use super::{
    follow::{Follow, Seen},
    gate::SharedGate,
    publish::Publish,
    records::Records,
};
use crate::{
    clock::SharedClock,
    messages::{
        control::Drain,
        jobs::{JobAnswer, JobCommand, JobsChanged},
        lease::{Standing, StandingChanged},
    },
    model::{JobKey, RunId},
    retry::Reconnect,
    store::{
        Entry, LeaseId, SharedStore, StoreError,
        kept::{Kept, Whose},
    },
};

/// Commands that wait; whoever sends more is not answered, and hears so.
const MOST_COMMANDS: usize = 1000;
/// A runner that fell is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(50);

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
