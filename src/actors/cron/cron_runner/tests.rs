//! A runner without processes: a test says how each run ends.
mod firings;
mod lives;

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use redb::{Database, backends::InMemoryBackend};
use tokio::sync::{oneshot, watch};

use super::*;
use crate::{
    actors::kit::Pulse,
    clock::{Clock, ManualClock},
    executors::{End, Order, Processes, SharedCapture, Stop},
    history::Bounds,
    messages::{
        control::Drain,
        jobs::{
            Action, AskJob, AskJobs, AskOutput, AskRuns, AskSummary, AskWhyJob, CheckJob, Claim, Claimed,
            CommandAnswer, JobCommand, JobEntry, JobStateChanged, JobsChanged, MarkOnce, MayFire, OnceMarked,
            ReleaseClaim, Signed,
        },
    },
    metrics::Metrics,
    model::{JobState, Sign},
    os::Exit,
};

/// Starts nothing: a test says how each run ends.
#[derive(Default)]
struct Fake {
    history: Mutex<Option<History>>,
    runs: Mutex<Vec<FakeRun>>,
}
struct FakeRun {
    order: Order,
    end: Option<oneshot::Sender<End>>,
}
impl Launcher for Fake {
    fn launch(
        &self,
        order: Order,
        output: SharedCapture,
        mut stop: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let (end, told) = oneshot::channel();
        if let Some(history) = &*self.history.lock().unwrap() {
            let record = history.run(order.run_id.parse().unwrap()).unwrap();
            let state = record.map(|record| record.state.word());
            assert_eq!(
                state,
                Some("running"),
                "its start stands on the disk before it is started"
            );
        }
        output.lock().push(format!("I am {}\n", order.task_id).as_bytes());
        self.runs.lock().unwrap().push(FakeRun { order, end: Some(end) });
        let _ = started.send(Started {
            pid: 1,
            pid_started: 1,
            tree: crate::model::job::Tree::Sweep,
        });
        Box::pin(async move {
            let end = tokio::select! {
                end = told => end.unwrap(),
                asked = stop.wait_for(Option::is_some) => match asked.unwrap().clone() {
                    Some(Stop::Kill(by)) => End::Killed(by),
                    _ => End::Left,
                },
            };
            Outcome {
                end,
                unkillable: vec![],
            }
        })
    }
}
/// Answers as it is told, and keeps what it heard.
struct Watcher {
    heard: Arc<Mutex<Vec<String>>>,
    claim: Claimed,
    once: OnceMarked,
}
impl Actor for Watcher {
    type Context = Context<Self>;
}
macro_rules! hears {
    ($message:ty, $result:ty, |$watcher:ident, $told:ident| $shown:expr, $answer:expr) => {
        impl Handler<$message> for Watcher {
            type Result = MessageResult<$message>;
            fn handle(&mut self, $told: $message, _: &mut Self::Context) -> Self::Result {
                let $watcher = self;
                let shown = $shown;
                $watcher.heard.lock().unwrap().push(shown);
                MessageResult($answer)
            }
        }
    };
}
hears!(
    JobStateChanged,
    (),
    |watcher, told| format!("{} {} {}", told.0.key.task_id, told.0.state.word(), told.0.error),
    ()
);
hears!(
    Claim,
    Claimed,
    |watcher, told| format!("claim {} {}", told.job.task_id, told.planned),
    watcher.claim.clone()
);
hears!(
    ReleaseClaim,
    (),
    |watcher, told| format!("release {}", told.job.task_id),
    ()
);
hears!(
    MarkOnce,
    OnceMarked,
    |watcher, told| format!("once {} {}", told.job.task_id, told.create_revision),
    watcher.once.clone()
);

struct House {
    clock: Arc<ManualClock>,
    fake: Arc<Fake>,
    history: History,
    runner: Addr<CronRunner>,
    heard: Arc<Mutex<Vec<String>>>,
    pulse: SharedPulse,
}
const BEGIN: &str = "2024-01-15T10:00:30Z";
impl House {
    async fn new() -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        Self::on(Arc::new(database), BEGIN, |_| {}, Claimed::Granted, OnceMarked::Marked).await
    }
    async fn with(change: impl FnOnce(&mut CronRunnerParts), claim: Claimed, once: OnceMarked) -> Self {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        Self::on(Arc::new(database), BEGIN, change, claim, once).await
    }
    async fn on(
        database: Arc<Database>,
        begin: &str,
        change: impl FnOnce(&mut CronRunnerParts),
        claim: Claimed,
        once: OnceMarked,
    ) -> Self {
        let clock = ManualClock::at(begin.parse().unwrap());
        let history = History::open(database, Bounds::default()).unwrap();
        let fake = Arc::new(Fake::default());
        *fake.history.lock().unwrap() = Some(history.clone());
        let pulse = Pulse::new("cron/runner", Metrics::new().restarts.clone());
        let mut parts = CronRunnerParts {
            memories: history.memories().unwrap(),
            lost: history.take_lost(begin.parse().unwrap()).unwrap(),
            history: history.clone(),
            launcher: fake.clone(),
            executors: Executors::new([]),
            limits: Limits::default(),
            guards: Guards::default(),
            notifier: None,
            enabled: true,
            max_parallel: 64,
            start_grace: Duration::from_secs(60),
            drain: Duration::from_secs(20),
            sign: Sign::new(Duration::from_secs(30)),
            pulse: pulse.clone(),
            clock: clock.clone(),
            log: slog::Logger::root(slog::Discard, slog::o!()),
        };
        change(&mut parts);
        let runner = CronRunner::new(parts).start();
        let heard = Arc::new(Mutex::new(vec![]));
        let watcher = Watcher {
            heard: heard.clone(),
            claim,
            once,
        };
        let watcher = watcher.start();
        let meet = MeetWatcher {
            state_changed: watcher.clone().recipient(),
            claim: watcher.clone().recipient(),
            release: watcher.clone().recipient(),
            once: watcher.recipient(),
        };
        runner.send(meet).await.unwrap();
        Self {
            clock,
            fake,
            history,
            runner,
            heard,
            pulse,
        }
    }
    async fn put_as(&self, key: JobKey, value: &str, revision: i64) -> (JobState, String) {
        self.put_signed(key, value, revision, Signed::Unasked).await
    }
    async fn put_signed(&self, key: JobKey, value: &str, revision: i64, signed: Signed) -> (JobState, String) {
        let entry = JobEntry {
            key,
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: 1,
            mod_revision: revision,
            signed,
        };
        let change = JobsChanged {
            full: false,
            put: vec![entry],
            removed: vec![],
        };
        let answer = self.runner.send(change).await.unwrap().remove(0);
        (answer.state, answer.error)
    }
    async fn put(&self, task: &str, more: &str) {
        let value = format!(r#"{{"cmd": "date", "express": "* * * * *"{more}}}"#);
        assert_eq!(
            self.put_as(JobKey::host("10.0.0.1", task), &value, 1).await,
            (JobState::Ok, String::new())
        );
    }
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.look().await;
    }
    /// Any message makes it look at the clock.
    async fn look(&self) {
        self.runner.send(MayFire { refused: None }).await.unwrap();
    }
    /// To the next full minute, so that something is due.
    async fn minute(&self) {
        let past = self.clock.wall().as_second() % 60;
        self.pass(Duration::from_secs((60 - past) as u64)).await;
    }
    /// Starts so far.
    fn started(&self) -> usize {
        self.fake.runs.lock().unwrap().len()
    }
    async fn until_started(&self, n: usize) {
        while self.started() < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(self.started(), n);
    }
    async fn end(&self, n: usize, end: End) {
        let tell = self.fake.runs.lock().unwrap()[n].end.take().unwrap();
        tell.send(end).unwrap();
        let id = self.run_id(n);
        while self
            .history
            .run(id)
            .unwrap()
            .is_none_or(|record| !record.state.is_over())
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    fn run_id(&self, n: usize) -> RunId {
        self.fake.runs.lock().unwrap()[n].order.run_id.parse().unwrap()
    }
    async fn runs(&self) -> Vec<RunRecord> {
        let mut runs = self
            .runner
            .send(AskRuns {
                task_id: None,
                most: 100,
            })
            .await
            .unwrap();
        runs.sort_by_key(|run| (run.planned, run.attempt, run.job.clone()));
        runs
    }
    async fn states(&self) -> Vec<String> {
        self.runs().await.iter().map(|run| run.state.to_string()).collect()
    }
    async fn command(&self, action: Action, task: &str) -> CommandAnswer {
        let command = JobCommand {
            action,
            task_id: task.into(),
            group: None,
            id: "1".into(),
            by: "test".into(),
            run_id: None,
        };
        self.runner.send(command).await.unwrap()
    }
    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
    async fn until_heard(&self, n: usize) -> Vec<String> {
        while self.heard().len() < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.heard()
    }
}
fn ok() -> End {
    End::Exited(Exit::Code(0))
}
fn failed() -> End {
    End::Exited(Exit::Code(3))
}
