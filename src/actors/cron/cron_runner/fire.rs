//! From an instant to a process and to its end: overlap, claim, jitter, start, retry.
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use super::{
    CronRunner, Event, TOO_LATE,
    run::{Phase, Run, end_of, order, retry_wait},
};
use crate::{
    actors::cron::agenda::{Due, Firing},
    executors::{End, Outcome, SharedCapture, Stop, tree},
    messages::{
        jobs::{Claim, Claimed, JobStateChanged, MarkOnce, OnceMarked, ReleaseClaim},
        notify::JobFailed,
    },
    model::{
        JobKey, JobSpec, RunId, RunRecord, RunState,
        job::{Cause, Overlap},
    },
};

/// The store is asked about a `once` job again after that.
const MARK_AGAIN: Duration = Duration::from_secs(5);
/// Bytes of a run's last words that people are told.
const LONGEST_TOLD: usize = 4096;

impl CronRunner {
    pub(super) fn due(&mut self, due: Due, now: Timestamp, ctx: &mut Context<Self>) {
        if let Some((count, last)) = due.missed
            && let Some(job) = self.agenda.get(due.job)
        {
            let key = job.key.clone();
            slog::warn!(self.log, "instants passed without a run"; "job" => %key, "count" => count, "last" => %last);
            self.over_at_once(key, Cause::Planned, last, RunState::Missed(count), now);
        }
        for firing in due.fire {
            self.fire(due.job, firing, now, ctx);
        }
    }
    /// A record of what did not run.
    fn over_at_once(&mut self, key: JobKey, cause: Cause, planned: Timestamp, state: RunState, now: Timestamp) {
        let id = self.new_id(now);
        let mut record = RunRecord::new(id, key, cause, planned);
        (record.state, record.ended) = (state, Some(now));
        self.note(record);
    }
    fn note(&mut self, record: RunRecord) {
        self.last.insert(record.job.clone(), record.clone());
        self.unwritten.push((record, None));
    }

    /// An instant of a job has come. What cannot run is recorded as skipped.
    fn fire(&mut self, at: usize, firing: Firing, now: Timestamp, ctx: &mut Context<Self>) {
        let Some(job) = self.agenda.get(at) else { return };
        let Some(spec) = job.spec().cloned() else { return };
        let (key, mod_revision) = (job.key.clone(), job.mod_revision);
        let skip = |runner: &mut Self, why: &str| {
            let state = RunState::Skipped(why.to_owned());
            runner.over_at_once(key.clone(), firing.cause.clone(), firing.planned, state, now);
        };
        if let Some(why) = self.refused.clone() {
            return skip(self, &why);
        }
        let (there, queued) = self.stand_in_the_way(&key, &spec);
        let behind = match (there, spec.terms.overlap) {
            (false, _) | (_, Overlap::Parallel) => false,
            (true, Overlap::Skip) => return skip(self, "overlap"),
            (true, Overlap::Queue) if queued => return skip(self, "the queue is full"),
            (true, Overlap::Queue) => true,
            (true, Overlap::Replace) => {
                for id in self.present.get(&key).cloned().unwrap_or_default() {
                    self.kill(id, "the run that replaces it");
                }
                self.stand_in_the_way(&key, &spec).0
            }
        };
        let id = self.new_id(now);
        let record = RunRecord::new(id, key, firing.cause, firing.planned);
        self.take_on(record, at, spec, mod_revision, firing.before);
        if behind {
            self.set(id, Phase::Behind);
        } else {
            self.go(id, ctx);
        }
    }
    /// Runs of that job that a new one has to heed, and whether one of them waits already.
    pub(super) fn stand_in_the_way(&self, key: &JobKey, spec: &JobSpec) -> (bool, bool) {
        let steady = self.clock.steady();
        let runs = self
            .present
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|id| self.runs.get(id));
        let (mut there, mut queued) = (false, false);
        for run in runs {
            match run.phase {
                Phase::Left(since) => there |= steady.saturating_sub(since) < spec.terms.overlap_max_wait,
                Phase::Behind => (there, queued) = (true, true),
                _ => there = true,
            }
        }
        (there, queued)
    }
    pub(super) fn take_on(
        &mut self,
        record: RunRecord,
        at: usize,
        spec: Arc<JobSpec>,
        mod_revision: i64,
        before: Option<Timestamp>,
    ) {
        let id = record.run_id;
        self.present.entry(record.job.clone()).or_default().push(id);
        let run = Run {
            record,
            at,
            spec: Some(spec),
            mod_revision,
            phase: Phase::Behind,
            before,
            claim: None,
        };
        self.runs.insert(id, run);
    }
    /// Over, but not gone: it counts for `overlap`.
    pub(super) fn keep_left(&mut self, record: RunRecord, steady: Duration) {
        let id = record.run_id;
        self.present.entry(record.job.clone()).or_default().push(id);
        let run = Run {
            record,
            at: usize::MAX,
            spec: None,
            mod_revision: 0,
            phase: Phase::Left(steady),
            before: None,
            claim: None,
        };
        self.runs.insert(id, run);
    }
    pub(super) fn set(&mut self, id: RunId, phase: Phase) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.phase = phase;
        }
    }
    /// Nothing of its job stands in its way any more.
    pub(super) fn go(&mut self, id: RunId, ctx: &mut Context<Self>) {
        let Some(run) = self.runs.get(&id) else { return };
        let Some(spec) = run.spec.clone() else { return };
        let asked = matches!(run.record.cause, Cause::Asked(_));
        if spec.exclusive && !asked && run.claim.is_none() {
            return self.claim(id, ctx);
        }
        let jitter = spec.terms.jitter.as_millis() as u64;
        if jitter == 0 || asked || run.record.attempt > 1 {
            return self.make_ready(id);
        }
        let chance = u64::from_le_bytes((self.chance)()[..8].try_into().unwrap_or_default());
        let until = self.clock.steady() + Duration::from_millis(chance % (jitter + 1));
        self.wait(id, until);
    }
    fn wait(&mut self, id: RunId, until: Duration) {
        self.set(id, Phase::Waiting(until));
        self.waiting.insert((until, id));
    }
    pub(super) fn make_ready(&mut self, id: RunId) {
        self.set(id, Phase::Ready);
        self.ready.push_back(id);
    }

    // ---- exclusive
    fn claim(&mut self, id: RunId, ctx: &mut Context<Self>) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.phase = Phase::Claiming;
        let ask = Claim {
            job: run.record.job.clone(),
            mod_revision: run.mod_revision,
            planned: run.record.planned,
            run_id: id,
        };
        let Some(watcher) = &self.watcher else {
            return self.skip_unclaimed(id, "not registered yet");
        };
        let answer = watcher.claim.send(ask);
        ctx.spawn(answer.into_actor(self).map(move |answer, runner, ctx| {
            if !matches!(
                runner.runs.get(&id),
                Some(Run {
                    phase: Phase::Claiming,
                    ..
                })
            ) {
                return; // taken back meanwhile; a claim stands for this instant only
            }
            match answer {
                Ok(Claimed::Granted) => {
                    if let Some(run) = runner.runs.get_mut(&id) {
                        run.claim = Some(id);
                    }
                    runner.go(id, ctx);
                }
                Ok(Claimed::Taken(by)) => runner.forget_unbegun(id, &by),
                Ok(Claimed::NoStore(why)) => runner.skip_unclaimed(id, &why),
                Err(_) => runner.skip_unclaimed(id, "nobody answered"),
            }
            runner.pump(ctx);
        }));
    }
    /// Nobody could be asked, or this host may not ask.
    fn skip_unclaimed(&mut self, id: RunId, why: &str) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.record.error = why.to_owned();
        }
        self.end_unbegun(id, RunState::Skipped("no claim".into()));
    }
    /// After a fall: the answers went to the life before.
    pub(super) fn claim_again(&mut self, ctx: &mut Context<Self>) {
        let asked = self
            .runs
            .iter()
            .filter(|(_, run)| matches!(run.phase, Phase::Claiming))
            .map(|(id, _)| *id);
        for id in asked.collect::<Vec<_>>() {
            self.claim(id, ctx);
        }
    }
    /// Another agent runs it: no record here.
    fn forget_unbegun(&mut self, id: RunId, by: &str) {
        slog::debug!(self.log, "an exclusive firing is another's"; "run" => %id, "by" => by);
        self.gone(id);
    }

    // ---- once
    pub(super) fn mark_once(&mut self, steady: Duration, ctx: &mut Context<Self>) {
        if self.refused.is_some() || self.mark_again.is_some_and(|again| again > steady) {
            return;
        }
        self.mark_again = None;
        let Some(watcher) = self.watcher.clone() else { return };
        for at in self.agenda.once_jobs() {
            let Some(job) = self.agenda.get(at).filter(|_| !self.marking.contains(&at)) else {
                continue;
            };
            let (key, once_id) = (job.key.clone(), job.once_id());
            let ask = MarkOnce {
                job: key.clone(),
                create_revision: job.create_revision,
                value_hash: once_id.split_once('/').map_or("", |(_, hash)| hash).to_owned(),
                serial: job.serial(),
            };
            self.marking.insert(at);
            let answer = watcher.once.send(ask);
            ctx.spawn(answer.into_actor(self).map(move |answer, runner, ctx| {
                runner.marking.remove(&at);
                runner.marked(
                    at,
                    &key,
                    &once_id,
                    answer.unwrap_or(OnceMarked::NoStore("no answer".into())),
                    ctx,
                );
                runner.pump(ctx);
            }));
        }
    }
    fn marked(&mut self, at: usize, key: &JobKey, once_id: &str, answer: OnceMarked, ctx: &mut Context<Self>) {
        let Some(job) = self
            .agenda
            .get(at)
            .filter(|job| job.key == *key && job.once_id() == once_id)
        else {
            return; // another by now
        };
        let catch_up = job.spec().is_some_and(|spec| spec.terms.catch_up);
        let now = self.clock.wall();
        match answer {
            OnceMarked::NoStore(why) => {
                slog::info!(self.log, "a job that runs once waits for the store"; "job" => %key, "why" => why);
                self.mark_again = Some(self.clock.steady() + MARK_AGAIN);
            }
            OnceMarked::Already => self.agenda.note_once(at),
            OnceMarked::TooYoung if !catch_up => {
                self.agenda.note_once(at);
                let why = "this host was not there when the job was put";
                self.over_at_once(key.clone(), Cause::Once, now, RunState::Skipped(why.into()), now);
            }
            OnceMarked::TooYoung | OnceMarked::Marked => {
                self.agenda.note_once(at);
                let firing = Firing {
                    planned: now,
                    cause: Cause::Once,
                    before: None,
                };
                self.fire(at, firing, now, ctx);
            }
        }
    }

    // ---- start
    /// It has a place: its start record is written next.
    pub(super) fn prepare_start(&mut self, id: RunId, now: Timestamp) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let job = self.agenda.get(run.at).filter(|job| job.key == run.record.job);
        if job.is_some_and(|job| job.has_ended(now)) {
            return self.end_unbegun(id, RunState::Skipped("the signature of the job has ended".into()));
        }
        if let Some(why) = self.refused.clone() {
            return self.end_unbegun(id, RunState::Skipped(why));
        }
        let planned = matches!(run.record.cause, Cause::Planned | Cause::Late) && run.record.attempt == 1;
        let late = now.duration_since(run.record.planned);
        if planned && late > jiff::SignedDuration::try_from(TOO_LATE).unwrap_or_default() {
            return self.end_unbegun(id, RunState::Missed(1));
        }
        run.record.state = RunState::Running;
        run.record.started = Some(now);
        run.phase = Phase::Writing(None);
        let (at, planned, before) = (run.at, run.record.planned, run.before);
        if matches!(run.record.cause, Cause::Planned | Cause::Late | Cause::CatchUp) && run.record.attempt == 1 {
            self.agenda.note_run(at, planned, before);
        }
        self.occupied += 1;
        self.starting.push(id);
    }
    /// Its start record is on the disk (or cannot be).
    pub(super) fn launch(&mut self, id: RunId) {
        let now = self.clock.wall();
        let Some(run) = self.runs.get_mut(&id) else { return };
        let Some(spec) = run.spec.clone() else { return };
        if let Phase::Writing(Some(by)) = &run.phase {
            let killed = Outcome {
                end: End::Killed(by.clone()),
                unkillable: vec![],
            };
            return self.ended(id, killed, now);
        }
        if self.sign.is_overdue(self.clock.steady()) {
            // Frozen since it was written down: it waits for word like all others, and is prepared anew.
            run.phase = Phase::Ready;
            self.occupied = self.occupied.saturating_sub(1);
            return self.ready.push_front(id);
        }
        // Twice is worse than not at all for these.
        let at_most_once = run.claim.is_some() || run.record.cause == Cause::Once;
        let order = match (order(&run.record, &spec, &self.executors), &self.history_error) {
            (_, Some(error)) if at_most_once => Err(format!("its start could not be recorded: {error}")),
            (None, _) => Err(format!("there is no executor `{}`", spec.terms.executor)),
            (Some(order), _) => Ok(order),
        };
        let order = match order {
            Ok(order) => order,
            Err(why) => {
                let failed = Outcome {
                    end: End::NotStarted(why),
                    unkillable: vec![],
                };
                return self.ended(id, failed, now);
            }
        };
        let (stop, asked) = watch::channel(None);
        let output = SharedCapture::new(spec.terms.output_limit);
        let (tell, started) = oneshot::channel();
        let life = self.launcher.launch(order, output.clone(), asked, tell);
        run.phase = Phase::Running { stop, output };
        let inbox = self.inbox.clone();
        // Apart from this actor: its fall ends no run.
        actix_rt::spawn(async move {
            let told = async {
                if let Ok(started) = started.await {
                    inbox.push(Event::Started(id, started));
                }
            };
            let (outcome, ()) = tokio::join!(AssertUnwindSafe(life).catch_unwind(), told);
            let outcome = outcome.unwrap_or_else(|_| Outcome {
                end: End::NotStarted("the agent fell over it; its log says where".into()),
                unkillable: vec![],
            });
            inbox.push(Event::Ended(id, outcome));
        });
    }

    // ---- end
    pub(super) fn heard(&mut self, event: Event, wall: Timestamp) {
        match event {
            Event::Started(id, started) => {
                if let Some(run) = self.runs.get_mut(&id) {
                    run.record.pid = Some(started.pid);
                    run.record.pid_started = Some(started.pid_started);
                    run.record.tree = Some(started.tree);
                }
            }
            Event::Ended(id, outcome) => self.ended(id, outcome, wall),
            Event::LeftGone(ids) => {
                for id in ids {
                    self.gone(id);
                }
            }
        }
    }
    fn ended(&mut self, id: RunId, outcome: Outcome, now: Timestamp) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        self.occupied = self.occupied.saturating_sub(1);
        let (state, error) = end_of(&outcome);
        run.record.state = state;
        run.record.error = error;
        run.record.ended = Some(now);
        run.record.unkillable = outcome.unkillable;
        let kept = match &run.phase {
            Phase::Running { output, .. } => Some(output.lock().kept()),
            _ => None,
        };
        if let Some(kept) = &kept {
            (run.record.output_bytes, run.record.output_gap) = (kept.total, kept.gap());
        }
        let record = run.record.clone();
        let (at, spec, claim) = (run.at, run.spec.clone(), run.claim);
        match record.state.is_bad() {
            true => slog::warn!(self.log, "run ended"; "job" => %record.job, "run" => %id, "state" => %record.state,
                "error" => &record.error),
            // Hundreds a second, perhaps; `agent jobs runs` has them.
            false => slog::debug!(self.log, "run ended"; "job" => %record.job, "run" => %id, "state" => %record.state),
        }
        if !record.unkillable.is_empty() {
            slog::error!(self.log, "processes of a run cannot be killed"; "run" => %id, "pids" => ?record.unkillable);
        }
        self.last.insert(record.job.clone(), record.clone());
        let tail = kept.as_ref().map_or(vec![], |kept| kept.last(LONGEST_TOLD).to_vec());
        self.unwritten.push((record.clone(), kept));
        let retried = spec
            .as_ref()
            .is_some_and(|spec| self.retry(&record, at, spec, claim, now));
        if let Some(claim) = claim.filter(|_| !retried)
            && let Some(watcher) = &self.watcher
        {
            let release = ReleaseClaim {
                job: record.job.clone(),
                run_id: claim,
            };
            let told = watcher.release.send(release);
            actix_rt::spawn(async move {
                let _ = told.await; // unheard, the key goes with the lease
            });
        }
        if !retried && !self.draining {
            self.judge(&record, at, spec.as_deref(), tail);
        }
        match record.unkillable.is_empty() {
            true => self.gone(id),
            false => self.set(id, Phase::Left(self.clock.steady())),
        }
    }
    /// One more try, if it may and there is time before the next instant.
    fn retry(
        &mut self,
        record: &RunRecord,
        at: usize,
        spec: &Arc<JobSpec>,
        claim: Option<RunId>,
        now: Timestamp,
    ) -> bool {
        if !record.state.is_bad() || record.attempt > spec.terms.retries || self.draining {
            return false;
        }
        let Some(job) = self
            .agenda
            .get(at)
            .filter(|job| job.key == record.job && job.is_active())
        else {
            return false;
        };
        let Some(spec) = job.spec().cloned() else { return false };
        let wait = retry_wait(&spec, record.attempt);
        let again = now.checked_add(wait).unwrap_or(Timestamp::MAX);
        if job.next.is_some_and(|next| again >= next) {
            return false;
        }
        let mod_revision = job.mod_revision;
        let id = self.new_id(now);
        let mut next = RunRecord::new(id, record.job.clone(), record.cause.clone(), record.planned);
        next.attempt = record.attempt + 1;
        self.take_on(next, at, spec, mod_revision, None);
        if let Some(run) = self.runs.get_mut(&id) {
            run.claim = claim; // held on to from try to try
        }
        let until = self.clock.steady() + wait;
        self.wait(id, until);
        true
    }
    /// Good or failing: told when it turns.
    fn judge(&mut self, record: &RunRecord, at: usize, spec: Option<&JobSpec>, output: Vec<u8>) {
        if self.agenda.get(at).is_none_or(|job| job.key != record.job) {
            return;
        }
        let failing = match &record.state {
            RunState::Succeeded => None,
            state if state.is_bad() => Some(match record.error.as_str() {
                "" => state.to_string(),
                error => format!("{state}: {error}"),
            }),
            _ => return,
        };
        if failing.is_some()
            && let Some(spec) = spec
            && let Some(webhook) = &spec.terms.on_failure
            && let Some(notifier) = &self.notifier
        {
            let failed = JobFailed {
                webhook: webhook.clone(),
                title: spec.title.to_string(),
                run: record.clone(),
                output,
            };
            if notifier.try_send(failed).is_err() {
                slog::warn!(self.log, "a webhook is not told of a failed run: too many wait"; "webhook" => webhook, "run" => %record.run_id);
            }
        }
        if self.agenda.note_failing(at, failing) {
            self.tell_state(at);
        }
    }
    pub(super) fn tell_state(&self, at: usize) {
        if let (Some(watcher), Some(job)) = (&self.watcher, self.agenda.get(at)) {
            let told = watcher.state_changed.send(JobStateChanged(job.answer()));
            actix_rt::spawn(async move {
                let _ = told.await; // the next full answer says it again
            });
        }
    }

    /// Ends what has not begun.
    pub(super) fn end_unbegun(&mut self, id: RunId, state: RunState) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.record.state = state;
            run.record.ended = Some(self.clock.wall());
            let record = run.record.clone();
            self.note(record);
        }
        self.gone(id);
    }
    /// Takes it away, and lets on whoever stood behind it.
    pub(super) fn gone(&mut self, id: RunId) {
        let Some(run) = self.runs.remove(&id) else { return };
        if let Phase::Waiting(until) = run.phase {
            self.waiting.remove(&(until, id));
        }
        self.ready.retain(|ready| *ready != id);
        let key = run.record.job;
        let Some(present) = self.present.get_mut(&key) else {
            return;
        };
        present.retain(|known| *known != id);
        if present.is_empty() {
            self.present.remove(&key);
            return;
        }
        self.let_on.extend(self.free_to_go(&key));
    }
    /// The run of that job that stands behind others, if they do not stand in its way any more.
    pub(super) fn free_to_go(&self, key: &JobKey) -> Option<RunId> {
        let runs = || {
            self.present
                .get(key)
                .into_iter()
                .flatten()
                .filter_map(|id| self.runs.get(id))
        };
        let next = runs().find(|run| matches!(run.phase, Phase::Behind))?;
        let most = next.spec.as_ref()?.terms.overlap_max_wait;
        let steady = self.clock.steady();
        let in_the_way = runs().any(|run| match run.phase {
            Phase::Behind => false,
            Phase::Left(since) => steady.saturating_sub(since) < most,
            _ => true,
        });
        (!in_the_way).then_some(next.record.run_id)
    }
    /// Whatever state it is in.
    pub(super) fn kill(&mut self, id: RunId, by: &str) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        match &mut run.phase {
            Phase::Running { stop, .. } => {
                stop.send_if_modified(|asked| {
                    let first = asked.is_none();
                    if first {
                        *asked = Some(Stop::Kill(by.to_owned()));
                    }
                    first
                });
            }
            Phase::Writing(killed) => {
                killed.get_or_insert_with(|| by.to_owned());
            }
            Phase::Left(_) => {
                let tree = Arc::new(tree::RunTree::left(&id.to_string()));
                let kill_after = run
                    .spec
                    .as_ref()
                    .map_or(Duration::from_secs(5), |spec| spec.terms.kill_after);
                let inbox = self.inbox.clone();
                actix_rt::spawn(async move {
                    if tree::end(&tree, kill_after).await.is_empty() {
                        inbox.push(Event::LeftGone(vec![id]));
                    }
                });
            }
            _ => self.end_unbegun(id, RunState::Killed(by.to_owned())),
        }
    }
}
