//! What changes the jobs, or their runs: JobWatcher, LeaseKeeper, people, the agent's stop.
use std::time::Duration;

use actix::prelude::*;

use super::{
    CronRunner,
    run::{Phase, Run},
};
use crate::{
    executors::Stop,
    messages::{
        control::Drain,
        jobs::{
            Action, CommandAnswer, JobAnswer, JobCommand, JobStateChanged, JobsChanged, LetGo, MayFire, MeetWatcher,
        },
    },
    model::{
        JobKey, RunId, RunRecord, RunState,
        job::{Cause, OnAgentStop, Overlap},
    },
};

impl Handler<JobsChanged> for CronRunner {
    type Result = MessageResult<JobsChanged>;
    fn handle(&mut self, change: JobsChanged, ctx: &mut Self::Context) -> Self::Result {
        let applied = self.agenda.apply(change, self.clock.wall());
        for key in &applied.gone {
            self.take_back(key, "the job is gone");
            if self.agenda.by_key(key).is_none() {
                self.last.remove(key);
            }
        }
        // Paused by its new value, or shadowed: what waits does not run.
        for answer in applied.answers.iter().chain(&applied.turned) {
            let stands = self.agenda.by_key(&answer.key).is_some_and(|(_, job)| job.is_active());
            if !stands {
                self.take_back(&answer.key, answer.state.word());
            }
        }
        for answer in applied.turned {
            self.tell(answer);
        }
        self.pump(ctx);
        MessageResult(applied.answers)
    }
}
impl Handler<MayFire> for CronRunner {
    type Result = ();
    fn handle(&mut self, MayFire { refused }: MayFire, ctx: &mut Self::Context) {
        if self.refused != refused {
            match &refused {
                Some(why) => slog::warn!(self.log, "no job is started now"; "why" => why),
                None => slog::info!(self.log, "jobs are started again"),
            }
            self.refused = refused;
        }
        self.pump(ctx);
    }
}
impl Handler<MeetWatcher> for CronRunner {
    type Result = ();
    fn handle(&mut self, watcher: MeetWatcher, ctx: &mut Self::Context) {
        self.watcher = Some(watcher);
        self.pump(ctx);
    }
}
impl Handler<JobCommand> for CronRunner {
    type Result = MessageResult<JobCommand>;
    fn handle(&mut self, command: JobCommand, ctx: &mut Self::Context) -> Self::Result {
        slog::info!(self.log, "order for a job"; "action" => ?command.action, "task_id" => &command.task_id, "by" => &command.by,
            "id" => &command.id);
        let answer = match command.action {
            Action::Run => self.run_now(&command, ctx),
            Action::Kill => self.kill_runs(&command),
            Action::Pause => self.pause(&command, true),
            Action::Resume => self.pause(&command, false),
        };
        self.pump(ctx);
        MessageResult(answer.unwrap_or_else(|why| CommandAnswer {
            done: false,
            said: why,
            run_ids: vec![],
        }))
    }
}
impl Handler<LetGo> for CronRunner {
    type Result = ();
    fn handle(&mut self, LetGo(id): LetGo, _: &mut Self::Context) {
        if let Some(Run {
            phase: Phase::Running { stop, .. },
            ..
        }) = self.runs.get(&id)
        {
            slog::info!(self.log, "a run asked its own agent to stop, and is left alone"; "run" => %id);
            stop.send_replace(Some(Stop::Leave));
        }
    }
}
impl Handler<Drain> for CronRunner {
    type Result = ResponseFuture<()>;
    /// Nothing new; what runs is killed, or waited for until it is time to kill it.
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.drained.ask();
        if !self.draining {
            self.draining = true;
            let all = self.runs.keys().copied().collect::<Vec<_>>();
            let mut longest = Duration::ZERO;
            for id in all {
                let Some(run) = self.runs.get(&id) else { continue };
                if run.is_yet_to_come() {
                    self.end_unbegun(id, RunState::Skipped("the agent stops".into()));
                } else if let Some(spec) = run.spec.clone() {
                    longest = longest.max(spec.terms.kill_after);
                    if spec.terms.on_agent_stop == OnAgentStop::Kill {
                        self.kill(id, "the agent's stop");
                    }
                }
            }
            // SIGTERM, `kill_after`, SIGKILL and the last record have to fit before the deadline.
            let to_kill = (longest + Duration::from_millis(1500)).min(self.drain / 2);
            ctx.run_later(self.drain - to_kill, |runner, ctx| {
                for id in runner.runs.keys().copied().collect::<Vec<_>>() {
                    if !matches!(
                        runner.runs.get(&id),
                        Some(Run {
                            phase: Phase::Left(_),
                            ..
                        })
                    ) {
                        runner.kill(id, "the agent's stop");
                    }
                }
                runner.pump(ctx);
            });
        }
        self.pump(ctx);
        answer
    }
}

impl CronRunner {
    pub(super) fn answer_drain(&mut self) {
        let over = |run: &Run| matches!(run.phase, Phase::Left(_));
        // A disk that cannot be written is no reason to stay.
        let unwritten = !self.unwritten.is_empty() || !self.agenda.is_taken();
        let written = self.writing.is_none() && (!unwritten || self.history_error.is_some());
        if self.draining && self.drained.is_asked() && written && self.runs.values().all(over) {
            self.drained.tell(());
        }
    }
    pub(super) fn tell(&self, answer: JobAnswer) {
        if let Some(watcher) = &self.watcher {
            let told = watcher.state_changed.send(JobStateChanged(answer));
            actix_rt::spawn(async move {
                let _ = told.await; // the next full answer says it again
            });
        }
    }
    /// What has not begun of that job does not begin any more. Present runs go on.
    pub(super) fn take_back(&mut self, key: &JobKey, why: &str) {
        for id in self.present.get(key).cloned().unwrap_or_default() {
            let unbegun = self
                .runs
                .get(&id)
                .is_some_and(|run| run.is_yet_to_come() && !matches!(run.record.cause, Cause::Asked(_)));
            if unbegun {
                self.end_unbegun(id, RunState::Skipped(why.to_owned()));
            }
        }
    }

    fn find(&self, command: &JobCommand) -> Result<(usize, JobKey), String> {
        let found = self.agenda.named(command.group.as_deref(), &command.task_id);
        found
            .map(|(at, job)| (at, job.key.clone()))
            .ok_or_else(|| format!("there is no job `{}`", command.task_id))
    }
    fn run_now(&mut self, command: &JobCommand, ctx: &mut Context<Self>) -> Result<CommandAnswer, String> {
        let (at, key) = self.find(command)?;
        if !self.enabled {
            return Err("jobs are off here: [jobs] enabled = false".into());
        }
        if self.draining {
            return Err("the agent stops".into());
        }
        if let Some(why) = &self.refused {
            return Err(format!("no job is started now: {why}"));
        }
        let job = self.agenda.get(at).ok_or("the job is gone")?;
        if let Some(invalid) = job.invalid() {
            return Err(format!("the job is invalid: {invalid}"));
        }
        let spec = job.spec().cloned().ok_or("the job is invalid")?;
        if job.shadowed {
            return Err("the job is shadowed by this host's own of the same task id".into());
        }
        let mod_revision = job.mod_revision;
        let (there, queued) = self.stand_in_the_way(&key, &spec);
        let behind = match (there, spec.terms.overlap) {
            (false, _) | (_, Overlap::Parallel) => false,
            (true, Overlap::Skip) => return Err("a run of the job is present, and its overlap is skip".into()),
            (true, Overlap::Queue) if queued => return Err("a run of the job is present, and one waits already".into()),
            (true, Overlap::Queue) => true,
            (true, Overlap::Replace) => {
                for id in self.present.get(&key).cloned().unwrap_or_default() {
                    self.kill(id, &command.by);
                }
                self.stand_in_the_way(&key, &spec).0
            }
        };
        let now = self.clock.wall();
        let id = match command.run_id {
            Some(id) if self.runs.contains_key(&id) => return Err(format!("there is a run {id} already")),
            Some(id) => id,
            None => self.new_id(now),
        };
        let record = RunRecord::new(id, key, Cause::Asked(command.by.clone()), now);
        self.take_on(record, at, spec, mod_revision, None);
        if !behind {
            self.go(id, ctx);
        }
        Ok(CommandAnswer {
            done: true,
            said: if behind {
                "queued behind the present run"
            } else {
                "started"
            }
            .into(),
            run_ids: vec![id],
        })
    }
    fn kill_runs(&mut self, command: &JobCommand) -> Result<CommandAnswer, String> {
        let ids: Vec<RunId> = match command.run_id {
            Some(id) => match self.runs.get(&id) {
                Some(run) if command.task_id.is_empty() || *run.record.job.task_id == *command.task_id => vec![id],
                _ => return Err(format!("there is no present run {id}")),
            },
            // Also of a job that is gone: its run may go on.
            None => {
                let of_it = |key: &&JobKey| *key.task_id == *command.task_id;
                let keys = self.present.keys().filter(of_it).cloned().collect::<Vec<_>>();
                keys.iter().flat_map(|key| self.present[key].clone()).collect()
            }
        };
        if ids.is_empty() {
            self.find(command)?;
            return Err(format!("no run of `{}` is present", command.task_id));
        }
        for id in &ids {
            self.kill(*id, &command.by);
        }
        Ok(CommandAnswer {
            done: true,
            said: "being killed".into(),
            run_ids: ids,
        })
    }
    fn pause(&mut self, command: &JobCommand, paused: bool) -> Result<CommandAnswer, String> {
        let (at, key) = self.find(command)?;
        let changed = self.agenda.order(at, paused, self.clock.wall());
        if paused {
            self.take_back(&key, "paused");
        }
        if changed {
            self.tell_state(at);
        }
        let said = match (paused, changed) {
            (true, true) => "paused; a present run goes on",
            (true, false) => "it was paused already",
            (false, true) => "resumed",
            (false, false) => "it was not paused",
        };
        Ok(CommandAnswer {
            done: true,
            said: said.into(),
            run_ids: vec![],
        })
    }
}
