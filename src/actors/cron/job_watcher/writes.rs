//! What JobWatcher writes: what became of jobs, how they do, the answers of commands, and what is to be tidied up.

use std::time::Duration;

use actix::prelude::*;
use futures_util::{FutureExt as _, future::BoxFuture};

use super::{
    super::{
        claims::{self, MOST_SKEW},
        commands, publish,
    },
    JobWatcher,
    asked::{SKEW_EVERY, look_at_clock},
};
use crate::{
    messages::jobs::{AskSummary, CommandAnswer, JobAnswer, JobCommand, JobStateChanged, JobsChanged},
    model::{JobKey, RunId},
    store::{Op, StoreError, Transaction, keys},
};

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

impl JobWatcher {
    // ---- what is written
    pub(super) fn answered(&mut self, changes: &JobsChanged, answers: &[JobAnswer]) {
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
    pub(super) fn group_answer_in(&self) -> Duration {
        let agents = self.agents.map_or(0, |(_, agents)| agents) as f64;
        Duration::from_secs_f64(agents / GROUP_ANSWERS_PER_SECOND * dice())
    }
    /// Writes what is due, unless that is under way.
    pub(super) fn write(&mut self, ctx: &mut Context<Self>) {
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
    pub(super) fn write_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.write_timer = Some(ctx.run_later(wait, |watcher, ctx| {
            watcher.write_timer = None;
            watcher.write(ctx);
        }));
    }

    // ---- how the jobs do
    pub(super) fn publish_soon(&mut self, ctx: &mut Context<Self>) {
        if let Some(publish) = &self.parts.publish {
            self.publish_in(publish.first_within.mul_f64(dice()), ctx);
        }
    }
    pub(super) fn publish_in(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        let next = ctx.run_later(wait, |watcher, ctx| {
            watcher.publish_timer = None;
            watcher.publish(ctx);
        });
        if let Some(before) = self.publish_timer.replace(next) {
            ctx.cancel_future(before);
        }
    }
    /// Without a lease it waits for the next one: whoever registers begins anew.
    pub(super) fn publish(&mut self, ctx: &mut Context<Self>) {
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
    pub(super) fn serve(&mut self, ctx: &mut Context<Self>) {
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
                Ok(told) => {
                    // Apart from this actor: its fall loses no answer. It ends within a minute.
                    if let Some(told) = told {
                        actix_rt::spawn(told.tell(watcher.parts.store.clone()));
                    }
                    watcher.serve(ctx);
                }
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
    pub(super) fn is_to_be_asked(&self) -> (bool, bool) {
        let age = |at: Duration| self.now().saturating_sub(at);
        let count = self.agents.is_none_or(|(at, _)| age(at) >= COUNT_EVERY);
        let off = |(at, skew): (Duration, i64)| skew > MOST_SKEW && age(at) >= SKEW_EVERY;
        (self.parts.group.is_some() && count, self.skew.is_some_and(off))
    }
    pub(super) fn ask_again(&mut self, ctx: &mut Context<Self>) {
        if self.is_to_be_asked() != (false, false) {
            self.tidy(ctx);
        }
    }
    pub(super) fn tidy(&mut self, ctx: &mut Context<Self>) {
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
impl Handler<JobStateChanged> for JobWatcher {
    type Result = ();
    fn handle(&mut self, JobStateChanged(answer): JobStateChanged, ctx: &mut Self::Context) {
        let soon = self.now() + WRITE_SOON;
        self.records.answered(&answer, soon);
        self.write(ctx);
    }
}
#[derive(Default)]
struct Tidied {
    agents: Option<u64>,
    skew: Option<i64>,
    released: Vec<(JobKey, RunId)>,
    unmarked: Vec<JobKey>,
}

/// Evenly from 0 to 1.
pub(super) fn dice() -> f64 {
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
