//! What pages can ask the agent's root, and for how long they wait.
use std::time::Duration;

use actix::prelude::*;

use crate::{
    messages::{
        control::{
            AskActors, AskAgent, AskConfig, AskFiles, AskHealth, AskLogs, AskMetrics, AskPipelines, AskReload,
            AskReopen, AskStop, AskWhy, SetLogLevel,
        },
        jobs::{AskJob, AskJobs, AskOutput, AskRuns, CheckJob, JobCommand, WriteJob},
    },
    web::problem::Problem,
};

macro_rules! questions {
    ($($field:ident: $question:ty,)*) => {
        /// Where each question goes. The whole is one actor to whoever asks, Root to the agent, a stand-in to a test.
        #[derive(Clone)]
        pub struct Ask {
            $(pub $field: Recipient<$question>,)*
            /// How long an answer may take.
            pub limit: Duration,
        }
        impl Ask {
            pub fn of<A: Actor<Context = Context<A>> $(+ Handler<$question>)*>(root: &Addr<A>) -> Self {
                Self {
                    $($field: root.clone().recipient(),)*
                    limit: Duration::from_secs(2),
                }
            }
        }
    };
}
questions! {
    agent: AskAgent,
    actors: AskActors,
    pipelines: AskPipelines,
    files: AskFiles,
    health: AskHealth,
    metrics: AskMetrics,
    why: AskWhy,
    config: AskConfig,
    logs: AskLogs,
    stop: AskStop,
    reopen: AskReopen,
    reload: AskReload,
    log_level: SetLogLevel,
    jobs: AskJobs,
    job: AskJob,
    runs: AskRuns,
    output: AskOutput,
    check_job: CheckJob,
    write_job: WriteJob,
    command: JobCommand,
}

impl Ask {
    /// Puts a question: `ask.put(&ask.agent, AskAgent)`. 503 if the root is gone, or answers too late.
    pub async fn put<M>(&self, to: &Recipient<M>, question: M) -> Result<M::Result, Problem>
    where
        M: Message + Send,
        M::Result: Send,
    {
        self.put_within(self.limit, to, question).await
    }
    pub async fn put_within<M>(&self, limit: Duration, to: &Recipient<M>, question: M) -> Result<M::Result, Problem>
    where
        M: Message + Send,
        M::Result: Send,
    {
        match tokio::time::timeout(limit, to.send(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(Problem::unavailable("the agent's root does not answer")),
        }
    }
}
