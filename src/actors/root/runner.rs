//! The part of the house that runs jobs: CronRunner on a thread of its own. Drained with the pipelines, before the lease goes.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::prelude::*;

use super::{
    Root, Start,
    jobs::{Runner, place},
    stop::until_answered,
    wire,
};
use crate::{
    actors::{
        cron::{
            cron_runner::{CronRunner, CronRunnerParts},
            notifier::{Notifier, NotifierConfig},
        },
        kit::{Pulse, SharedPulse, Stopping},
    },
    executors::Processes,
    history::History,
    messages::{
        control::Drain,
        jobs::{
            AskJob, AskJobs, AskOutput, AskRuns, AskWhyJob, CheckJob, CheckSigned, CommandAnswer, JobCommand,
            JobDetail, JobView, LetGo, ObserveRunner, OutputView, WriteJob, WriteRefused, Written,
        },
    },
    model::{Invalid, RunId, RunRecord, SharedSign, Sign},
    os,
    webhook::{self, Sender},
};

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(1);

pub struct RunnerHouse {
    pub addr: Addr<CronRunner>,
    pub pulse: SharedPulse,
    sign: SharedSign,
    /// None: there is no webhook in the settings.
    notifier: Option<(Addr<Notifier>, SharedPulse)>,
    _arbiter: Arbiter,
}
impl RunnerHouse {
    pub async fn raise(start: &Start, history: History, stopping: &Stopping) -> Result<Self, String> {
        let (jobs, clock) = (&start.settings.jobs, &start.clock);
        let failed =
            |error: &dyn std::fmt::Display| format!("could not read the history of jobs in store.redb: {error}");
        let memories = history.memories().map_err(|error| failed(&error))?;
        let lost = history.take_lost(clock.wall()).map_err(|error| failed(&error))?;
        if !os::become_subreaper() {
            slog::warn!(start.log, "orphans of jobs go to init: this kernel knows no subreaper");
        }
        os::remove_left_cgroups();
        let executors = jobs.all_executors();
        let limits = jobs.limits();
        let mut guards = jobs.guards.clone();
        guards.own_user = os::User::own()
            .ok()
            .flatten()
            .map_or_else(String::new, |user| user.name);
        let sign = Sign::new(start.settings.etcd.lease_ttl);
        let arbiter = wire::data_arbiter();
        let notifier = raise_notifier(start, &arbiter, stopping).await?;
        let pulse = Pulse::new("jobs/runner", start.metrics.restarts.clone());
        let parts = CronRunnerParts {
            history,
            memories,
            lost,
            launcher: Arc::new(Processes { cgroups: true }),
            executors,
            limits,
            guards,
            notifier: notifier.as_ref().map(|(addr, _)| addr.clone().recipient()),
            enabled: jobs.enabled,
            max_parallel: jobs.max_parallel,
            start_grace: jobs.start_grace,
            drain: start.settings.agent.drain,
            sign: sign.clone(),
            pulse: pulse.clone(),
            clock: clock.clone(),
            log: start.log.new(slog::o!("actor" => "jobs/runner")),
        };
        let make = move || CronRunner::new(parts);
        let addr = place(&arbiter, stopping, &pulse, &start.log, make).await?;
        Ok(Self {
            addr,
            pulse,
            sign,
            notifier,
            _arbiter: arbiter,
        })
    }
    pub fn pulses(&self) -> impl Iterator<Item = &SharedPulse> {
        std::iter::once(&self.pulse).chain(self.notifier.iter().map(|(_, pulse)| pulse))
    }
    pub fn runner(&self) -> Runner {
        Runner {
            jobs: self.addr.clone().recipient(),
            commands: self.addr.clone().recipient(),
            may_fire: self.addr.clone().recipient(),
            meet: self.addr.clone().recipient(),
            summary: self.addr.clone().recipient(),
            sign: self.sign.clone(),
        }
    }
    /// Heard before the drain: messages keep their order.
    pub fn let_go(&self, run: RunId) {
        let _ = self.addr.try_send(LetGo(run)); // full or gone: then it is waited for, and killed at the deadline
    }
    /// Its name, if it is late.
    pub async fn drain(&self, deadline: tokio::time::Instant) -> Option<String> {
        let drained = tokio::time::timeout_at(deadline, until_answered(&self.addr, || Drain)).await;
        if let (Ok(_), Some((notifier, _))) = (&drained, &self.notifier) {
            // The last alerts. A chat that hangs is no reason to be late.
            let _ = tokio::time::timeout_at(deadline, until_answered(notifier, || Drain)).await;
        }
        drained.is_err().then(|| self.pulse.name.clone())
    }
    /// What degrades the agent's health.
    pub async fn trouble(&self) -> Vec<String> {
        let view = tokio::time::timeout(ANSWER, self.addr.send(ObserveRunner)).await;
        let error = view.ok().and_then(Result::ok).and_then(|view| view.history_error);
        error
            .map(|error| format!("the history of jobs cannot be written: {error}"))
            .into_iter()
            .collect()
    }
    pub async fn why(&self, task_id: &str) -> Option<String> {
        let asked = tokio::time::timeout(ANSWER, self.addr.send(AskWhyJob(task_id.to_owned()))).await;
        asked.ok()?.ok()?
    }
}

async fn raise_notifier(
    start: &Start,
    arbiter: &Arbiter,
    stopping: &Stopping,
) -> Result<Option<(Addr<Notifier>, SharedPulse)>, String> {
    let webhooks = start.settings.jobs.webhooks.iter().cloned().collect::<BTreeMap<_, _>>();
    if webhooks.is_empty() {
        return Ok(None);
    }
    let config = NotifierConfig {
        webhooks,
        sender: Sender::new(start.clock.clone())?,
        host: start.host.clone(),
        log: start.log.new(slog::o!("actor" => "jobs/notifier")),
        metrics: start.metrics.clone(),
        waits: webhook::send::waits,
    };
    let pulse = Pulse::new("jobs/notifier", start.metrics.restarts.clone());
    let make = move || Notifier::new(config);
    let addr = place(arbiter, stopping, &pulse, &start.log, make).await?;
    Ok(Some((addr, pulse)))
}

/// Questions that Root hands on. `without`: this run has no jobs, or the one who knows fell over the question.
macro_rules! hands_on {
    ($($message:ty => $result:ty, $without:expr;)*) => {$(
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$result>;
            fn handle(&mut self, ask: $message, _: &mut Self::Context) -> Self::Result {
                let house = self.house.clone();
                Box::pin(async move {
                    match &house.runner {
                        Some(runner) => runner.addr.send(ask).await.unwrap_or_else(|_| $without),
                        None => $without,
                    }
                })
            }
        }
    )*};
}
const NOBODY: &str = "this run of the agent has no jobs, or its runner fell over the question";
hands_on! {
    AskJobs => Vec<JobView>, vec![];
    AskJob => Option<Box<JobDetail>>, None;
    AskRuns => Vec<RunRecord>, vec![];
    AskOutput => Option<OutputView>, None;
    JobCommand => CommandAnswer, CommandAnswer {
        done: false,
        said: NOBODY.into(),
        run_ids: vec![],
    };
}
/// Its runner says what would become of it, the one who follows etcd whether its signature would do.
impl Handler<CheckJob> for Root {
    type Result = ResponseFuture<Result<Vec<jiff::Timestamp>, Invalid>>;
    fn handle(&mut self, ask: CheckJob, _: &mut Self::Context) -> Self::Result {
        let house = self.house.clone();
        let signed = CheckSigned {
            group: ask.group.clone(),
            task_id: ask.task_id.clone(),
            value: ask.value.clone(),
        };
        let nobody = || {
            Err(Invalid {
                field: String::new(),
                found: "a job".into(),
                accepted: NOBODY.into(),
            })
        };
        Box::pin(async move {
            let Some(runner) = &house.runner else { return nobody() };
            let next = runner.addr.send(ask).await.unwrap_or_else(|_| nobody())?;
            if let Some(watcher) = house.jobs.as_ref().and_then(|jobs| jobs.watcher()) {
                watcher.send(signed).await.unwrap_or_else(|_| nobody().map(drop))?;
            }
            Ok(next)
        })
    }
}
impl Handler<WriteJob> for Root {
    type Result = ResponseFuture<Result<Written, WriteRefused>>;
    fn handle(&mut self, write: WriteJob, _: &mut Self::Context) -> Self::Result {
        let house = self.house.clone();
        Box::pin(async move {
            let watcher = house.jobs.as_ref().and_then(|jobs| jobs.watcher());
            let watcher = watcher.ok_or_else(|| WriteRefused::Store(NOBODY.into()))?;
            let lost = "it fell over the question: look whether it was written";
            watcher
                .send(write)
                .await
                .map_err(|_| WriteRefused::Store(lost.into()))?
        })
    }
}
