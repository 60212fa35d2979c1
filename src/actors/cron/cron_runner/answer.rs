//! What pages and commands ask. Nothing here changes anything.
use actix::prelude::*;
use jiff::Timestamp;

use super::{CronRunner, run::Phase};
use crate::{
    actors::cron::agenda::Job,
    history::History,
    messages::jobs::{
        AskJob, AskJobs, AskOutput, AskRuns, AskSummary, AskWhyJob, CheckJob, JobDetail, JobView, ObserveRunner,
        OutputView, RunnerView, Summary,
    },
    model::{
        Invalid, JobKey, JobSpec, JobState, RunId, RunRecord, RunState,
        job::{Kept, When},
    },
};

/// Instants that are shown of a job.
const NEXT: usize = 5;
/// Runs that are looked up for a list of jobs: past that many jobs, only those of this life are shown.
const MOST_LOOKED_UP: usize = 2_000;

impl Handler<AskJobs> for CronRunner {
    type Result = ResponseFuture<Vec<JobView>>;
    fn handle(&mut self, _: AskJobs, _: &mut Self::Context) -> Self::Result {
        let mut views = self.agenda.all().map(|(_, job)| self.view(job)).collect::<Vec<_>>();
        views.sort_by(|a, b| a.key.cmp(&b.key));
        let history = self.history.clone();
        Box::pin(async move {
            if views.len() > MOST_LOOKED_UP {
                return views;
            }
            let looked_up = actix_rt::task::spawn_blocking(move || {
                for view in views.iter_mut().filter(|view| view.last.is_none()) {
                    view.last = last_in(&history, &view.key);
                }
                views
            });
            looked_up.await.unwrap_or_default()
        })
    }
}
impl Handler<AskJob> for CronRunner {
    type Result = ResponseFuture<Option<Box<JobDetail>>>;
    fn handle(&mut self, ask: AskJob, _: &mut Self::Context) -> Self::Result {
        let Some((_, job)) = self.agenda.named(ask.group.as_deref(), &ask.task_id) else {
            return Box::pin(async { None });
        };
        let mut detail = Box::new(JobDetail {
            view: self.view(job),
            value: job.value.clone().into(),
            next: following(|after| job.next_after(after), self.clock.wall()),
        });
        let history = self.history.clone();
        Box::pin(async move {
            if detail.view.last.is_some() {
                return Some(detail);
            }
            let key = detail.view.key.clone();
            let last = actix_rt::task::spawn_blocking(move || last_in(&history, &key));
            detail.view.last = last.await.ok().flatten();
            Some(detail)
        })
    }
}
impl Handler<AskRuns> for CronRunner {
    type Result = ResponseFuture<Vec<RunRecord>>;
    fn handle(&mut self, ask: AskRuns, _: &mut Self::Context) -> Self::Result {
        let fits = |record: &&RunRecord| ask.task_id.as_deref().is_none_or(|id| *record.job.task_id == *id);
        let written = self
            .writing
            .iter()
            .flat_map(|writing| &writing.change.runs)
            .chain(&self.unwritten);
        let written = written.map(|(record, _)| record);
        let present = self.runs.values().map(|run| &run.record);
        let mut newer = present.chain(written).filter(fits).cloned().collect::<Vec<_>>();
        let (history, most) = (self.history.clone(), ask.most);
        // A job that is gone has its runs still.
        let keys = ask.task_id.map(|id| {
            let known = self
                .agenda
                .all()
                .filter(|(_, job)| *job.key.task_id == *id)
                .map(|(_, job)| job.key.kept_as());
            let mut keys = known.chain([format!("own/{id}")]).collect::<Vec<_>>();
            keys.sort_unstable();
            keys.dedup();
            keys
        });
        Box::pin(async move {
            let older = actix_rt::task::spawn_blocking(move || match keys {
                None => history.runs(None, most).unwrap_or_default(),
                Some(keys) => keys
                    .iter()
                    .flat_map(|key| history.runs(Some(key), most).unwrap_or_default())
                    .collect(),
            });
            newer.extend(older.await.unwrap_or_default());
            // The first of each id is the newest word on it.
            newer.sort_by_key(|record| std::cmp::Reverse(record.run_id));
            newer.dedup_by_key(|record| record.run_id);
            newer.truncate(most);
            newer
        })
    }
}
impl Handler<AskOutput> for CronRunner {
    type Result = ResponseFuture<Option<OutputView>>;
    fn handle(&mut self, AskOutput { run_id, from }: AskOutput, _: &mut Self::Context) -> Self::Result {
        if let Some(run) = self
            .runs
            .get(&run_id)
            .filter(|run| !matches!(run.phase, Phase::Left(_)))
        {
            let kept = match &run.phase {
                Phase::Running { output, .. } => output.lock().kept(),
                _ => Kept::default(),
            };
            let view = part(&kept, from, false);
            return Box::pin(async { Some(view) });
        }
        let written = self
            .writing
            .iter()
            .flat_map(|writing| &writing.change.runs)
            .chain(&self.unwritten);
        let mut written = written.filter(|(record, _)| record.run_id == run_id && record.state.is_over());
        if let Some((_, kept)) = written.next() {
            let view = part(&kept.clone().unwrap_or_default(), from, true);
            return Box::pin(async { Some(view) });
        }
        let history = self.history.clone();
        Box::pin(async move {
            let found = actix_rt::task::spawn_blocking(move || in_history(&history, run_id, from));
            found.await.ok().flatten()
        })
    }
}
impl Handler<CheckJob> for CronRunner {
    type Result = Result<Vec<Timestamp>, Invalid>;
    fn handle(&mut self, ask: CheckJob, _: &mut Self::Context) -> Self::Result {
        let key = match ask.group {
            Some(group) => JobKey::group(group, ask.task_id),
            None => JobKey::host("own", ask.task_id),
        };
        let spec = self.agenda.check(&key, &ask.value)?;
        Ok(next_of(&spec, self.clock.wall()))
    }
}
impl Handler<AskWhyJob> for CronRunner {
    type Result = MessageResult<AskWhyJob>;
    fn handle(&mut self, AskWhyJob(task_id): AskWhyJob, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.agenda.named(None, &task_id).map(|(_, job)| self.why(job)))
    }
}

impl Handler<ObserveRunner> for CronRunner {
    type Result = MessageResult<ObserveRunner>;
    fn handle(&mut self, _: ObserveRunner, _: &mut Self::Context) -> Self::Result {
        MessageResult(RunnerView {
            jobs: self.agenda.len(),
            runs: self.runs.len(),
            refused: self.refused.clone(),
            history_error: self.history_error.clone(),
            lost_records: self.lost_records,
        })
    }
}

impl Handler<AskSummary> for CronRunner {
    type Result = MessageResult<AskSummary>;
    /// Of runs of this life: those before are in the history.
    fn handle(&mut self, AskSummary { most }: AskSummary, _: &mut Self::Context) -> Self::Result {
        let mut summary = Summary {
            jobs: self.agenda.len(),
            present: self.runs.len(),
            ..Summary::default()
        };
        let mut last = vec![];
        for (_, job) in self.agenda.all() {
            let state = job.state().0;
            match state {
                JobState::Paused => summary.paused += 1,
                JobState::Invalid => summary.invalid += 1,
                JobState::Failing => summary.failing += 1,
                JobState::Ok | JobState::Shadowed => {}
            }
            last.extend(
                self.last
                    .get(&job.key)
                    .map(|record| (state == JobState::Failing, record)),
            );
        }
        last.sort_by_key(|(failing, record)| std::cmp::Reverse((*failing, record.ended, record.run_id)));
        summary.left_out = last.len().saturating_sub(most);
        summary.last = last.into_iter().take(most).map(|(_, record)| record.clone()).collect();
        MessageResult(summary)
    }
}

impl CronRunner {
    fn view(&self, job: &Job) -> JobView {
        let (state, error) = job.state();
        let spec = job.spec();
        let text = |of: fn(&JobSpec) -> &str| spec.map_or(String::new(), |spec| of(spec).to_owned());
        JobView {
            key: job.key.clone(),
            cronid: job.cronid,
            mod_revision: job.mod_revision,
            state,
            error,
            express: text(|spec| &spec.express),
            cmd: text(|spec| &spec.cmd),
            executor: text(|spec| &spec.terms.executor),
            title: text(|spec| &spec.title),
            next: job.next,
            last: self.last.get(&job.key).cloned(),
            runs: self.present.get(&job.key).cloned().unwrap_or_default(),
        }
    }
    /// The one rule that it does not run by, or when it does.
    fn why(&self, job: &Job) -> String {
        let name = &job.key.task_id;
        if let Some(invalid) = job.invalid() {
            return format!("job {name} is invalid: {invalid}");
        }
        if job.shadowed {
            return format!("job {name} of the group is shadowed by this host's own job of the same task id");
        }
        if job.paused() {
            return format!("job {name} is paused");
        }
        if !self.enabled {
            return "no job runs here: [jobs] enabled = false".to_owned();
        }
        if let Some(why) = &self.refused {
            return format!("no job is started now: {why}");
        }
        let present = self.present.get(&job.key).map_or(0, Vec::len);
        let last = match self.last.get(&job.key) {
            Some(last) => match last.error.as_str() {
                "" => format!("; its last run: {}", last.state),
                error => format!("; its last run: {}: {error}", last.state),
            },
            None => String::new(),
        };
        match (job.next, present) {
            (_, 1..) => format!("job {name} runs now, or waits to ({present} present){last}"),
            (Some(next), _) => format!("job {name} is due at {next}{last}"),
            (None, _) if job.schedule().is_some() => format!(
                "job {name} is never due: `{}` has no further instant within five years",
                job.spec().map_or("", |spec| &spec.express)
            ),
            (None, _) if job.memory.once.is_some() => format!("job {name} runs once, and has{last}"),
            (None, _) => format!("job {name} runs once, and waits for the store to say that it may"),
        }
    }
}

fn last_in(history: &History, key: &JobKey) -> Option<RunRecord> {
    history.runs(Some(&key.kept_as()), 1).ok()?.into_iter().next()
}
fn in_history(history: &History, run_id: RunId, from: u64) -> Option<OutputView> {
    let record = history.run(run_id).ok()??;
    let kept = history.output(run_id).ok()?.unwrap_or_default();
    Some(part(
        &kept,
        from,
        !matches!(record.state, RunState::Running | RunState::Queued),
    ))
}
/// The gap takes an answer of its own, so that whoever follows is told of it.
fn part(kept: &Kept, from: u64, over: bool) -> OutputView {
    let (begin, bytes, gap) = kept.from(from);
    OutputView {
        from: begin,
        bytes: bytes.to_vec(),
        gap,
        ended: over && begin + bytes.len() as u64 >= kept.total,
    }
}
fn following(next: impl Fn(Timestamp) -> Option<Timestamp>, now: Timestamp) -> Vec<Timestamp> {
    std::iter::successors(next(now), |at| next(*at)).take(NEXT).collect()
}
/// Of a job that would be accepted now.
fn next_of(spec: &JobSpec, now: Timestamp) -> Vec<Timestamp> {
    match &spec.when {
        When::Once => vec![],
        When::At(schedule) => following(|after| schedule.next_from(now, after), now),
    }
}
