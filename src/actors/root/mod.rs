//! Builds the house from the sink to the input, keeps the one list of what was wired, answers what it is asked about it, and stops
//! it from the input to the sink, with one deadline, naming the late.
//! Hears: the `Ask*` questions. Says: AwaitEnd, AwaitClosed, Observe*, Reopen, Hurry, Drain → every stage. Waits: at most for the
//! drain's deadline.
mod jobs;
mod look;
mod runner;
mod stop;
mod wire;

use std::{net::TcpListener, os::unix::net::UnixListener, sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::sync::mpsc;

use self::{jobs::JobsHouse, runner::RunnerHouse};
use crate::{
    actors::{
        collect::{
            collector::Collector,
            filter_stage::FilterStage,
            meter::{OutputMeter, PipelineMeter},
            sink::Sink,
        },
        http_api::{HttpApi, HttpApiParts},
        kit::{Port, Restarts, SharedPulse, Stopping, supervise},
    },
    clock::SharedClock,
    deadletter::DeadLetter,
    log::{LevelSwitch, Recent},
    messages::{
        collect::Ship,
        control::{
            ActorView, AgentView, AskActors, AskAgent, AskConfig, AskFiles, AskHealth, AskLogs, AskMetrics,
            AskPipelines, AskReopen, AskStop, AskWhy, Drain, Health, PipelineView, SetLogLevel,
        },
    },
    metrics::SharedMetrics,
    model::{self, FileStatus, Host, file_status::SharedFileBoard},
    os,
    settings::{self, Settings, WhenFull},
    web::{self, Ask},
};

/// What only a start needs is not needed any more.
const SETTLED_IN: Duration = Duration::from_secs(1);

pub struct Start {
    pub settings: Settings,
    pub host: Arc<Host>,
    pub log: slog::Logger,
    pub level: LevelSwitch,
    pub recent: Recent,
    pub metrics: SharedMetrics,
    pub clock: SharedClock,
    pub boot_id: String,
    /// `<data dir>/agent.sock`, bound.
    pub socket: Option<UnixListener>,
    /// Bound.
    pub http: Option<TcpListener>,
    pub signals: mpsc::Receiver<Signal>,
    /// What is asked over HTTP takes the road of the signals: it comes back by `signals`, once, with the deadline of a stop set.
    pub orders: mpsc::Sender<Signal>,
    pub token: String,
    pub background: bool,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Stop,
    Reopen,
}
/// How it ended: for the exit code, last-exit.json and one line in the log.
#[derive(Debug)]
pub struct Ended {
    pub code: u8,
    pub why: String,
    pub counts: Vec<(String, u64)>,
}

/// What was wired: health, drain and every page walk this list.
pub struct House {
    pub pipelines: Vec<Pipeline>,
    root: SharedPulse,
    http: SharedPulse,
    /// None: this run is nobody that could be registered.
    jobs: Option<JobsHouse>,
    /// None likewise.
    runner: Option<RunnerHouse>,
    stopping: Stopping,
    metrics: SharedMetrics,
    letters: Arc<DeadLetter>,
    _arbiters: Vec<Arbiter>,
}
pub struct Pipeline {
    pub name: String,
    input: String,
    filters: Vec<String>,
    board: SharedFileBoard,
    meter: PipelineMeter,
    collector: Stage<Collector>,
    filter: Stage<FilterStage>,
    sinks: Vec<WiredSink>,
}
struct Stage<A: Actor> {
    addr: Addr<A>,
    pulse: SharedPulse,
    port: Option<Port<Ship>>,
}
struct WiredSink {
    label: String,
    plugin: String,
    when_full: WhenFull,
    meter: OutputMeter,
    stage: Stage<Sink>,
}

// ---- living
/// Runs until all inputs have ended, the far side has left, or somebody stops it. `ready` is called once.
pub async fn run(mut start: Start, ready: impl FnOnce(Result<(), String>)) -> Ended {
    let made = async {
        let tls = start
            .settings
            .http
            .tls
            .as_ref()
            .map(|tls| web::tls::server_config(&tls.cert, &tls.key))
            .transpose()?;
        Ok((Arc::new(House::build(&start).await?), tls))
    };
    start.metrics.start_time.set(start.clock.wall().as_second() as f64);
    let (house, tls) = match made.await {
        Ok(made) => made,
        Err(error) => {
            let error: String = error;
            ready(Err(error.clone()));
            return Ended {
                code: 1,
                why: error,
                counts: vec![],
            };
        }
    };
    let http = start
        .http
        .as_ref()
        .and_then(|listener| listener.local_addr().ok())
        .map(|address| address.to_string());
    let known = Known {
        host: start.host.clone(),
        started: start.clock.wall(),
        data_dir: start.settings.agent.data_dir.display().to_string(),
        http,
        config: start.settings.effective(),
        level: start.level,
        recent: start.recent,
        stopping: house.stopping.clone(),
    };
    let root = Root {
        house: house.clone(),
        known,
        orders: start.orders,
    };
    let (root, _) = supervise(
        Restarts::CONTROL,
        house.stopping.clone(),
        house.root.clone(),
        start.log.clone(),
        |_, _| root,
    );
    let api = HttpApi::new(HttpApiParts {
        ask: Ask::of(&root),
        http: start.http.take(),
        tls,
        socket: start.socket.take(),
        token: start.token,
        insecure_remote: start.settings.http.insecure_remote,
        log: start.log.clone(),
        metrics: start.metrics.clone(),
        clock: start.clock.clone(),
    });
    let (api, _) = supervise(
        Restarts::CONTROL,
        house.stopping.clone(),
        house.http.clone(),
        start.log.clone(),
        |_, _| api,
    );
    ready(Ok(()));
    actix_rt::spawn(async {
        tokio::time::sleep(SETTLED_IN).await;
        os::release_code();
    });
    let why = house.until_over(&mut start.signals).await;
    let ended = house.stop(why, start.settings.agent.drain, &start.log).await;
    // Last: whoever looks on sees the drain.
    let _ = tokio::time::timeout(Duration::from_secs(2), api.send(Drain)).await;
    ended
}

// ---- answering
/// Answers what HttpApi asks.
pub struct Root {
    house: Arc<House>,
    known: Known,
    /// As a signal of the system would be.
    orders: mpsc::Sender<Signal>,
}
/// What does not change while the agent lives, and who can tell the rest.
struct Known {
    host: Arc<Host>,
    started: jiff::Timestamp,
    data_dir: String,
    http: Option<String>,
    config: serde_json::Value,
    level: LevelSwitch,
    recent: Recent,
    stopping: Stopping,
}
impl Actor for Root {
    type Context = Context<Self>;
}
impl Supervised for Root {}

macro_rules! answers {
    ($message:ty, $result:ty, |$house:ident, $ask:ident| $answer:expr) => {
        impl Handler<$message> for Root {
            type Result = ResponseFuture<$result>;
            fn handle(&mut self, $ask: $message, _: &mut Self::Context) -> Self::Result {
                let $house = self.house.clone();
                Box::pin(async move { $answer })
            }
        }
    };
}
answers!(AskActors, Vec<ActorView>, |house, _ask| house.actors());
answers!(AskPipelines, Vec<PipelineView>, |house, _ask| house.views().await);
answers!(AskFiles, Vec<(String, Vec<FileStatus>)>, |house, _ask| house.files());
answers!(AskHealth, Health, |house, _ask| house.health().await);
answers!(AskWhy, String, |house, ask| {
    let job = match &house.runner {
        Some(runner) if model::job::is_task_id(&ask.0) => runner.why(&ask.0).await,
        _ => None,
    };
    job.unwrap_or_else(|| house.why(&ask.0))
});
answers!(AskMetrics, (), |house, _ask| {
    house.views().await;
    house.actors();
});

impl Handler<AskAgent> for Root {
    type Result = MessageResult<AskAgent>;
    fn handle(&mut self, _: AskAgent, _: &mut Self::Context) -> Self::Result {
        let known = &self.known;
        MessageResult(AgentView {
            host: (*known.host).clone(),
            version: crate::VERSION,
            pid: std::process::id(),
            started: known.started,
            data_dir: known.data_dir.clone(),
            http: known.http.clone(),
            stopping: known.stopping.begun(),
            log_level: settings::level_word(known.level.level()).to_owned(),
        })
    }
}
impl Handler<AskConfig> for Root {
    type Result = MessageResult<AskConfig>;
    fn handle(&mut self, _: AskConfig, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.known.config.clone())
    }
}
impl Handler<AskLogs> for Root {
    type Result = MessageResult<AskLogs>;
    fn handle(&mut self, AskLogs(most): AskLogs, _: &mut Self::Context) -> Self::Result {
        let lines = self.known.recent.lines();
        MessageResult(lines[lines.len().saturating_sub(most)..].to_vec())
    }
}
impl Handler<SetLogLevel> for Root {
    type Result = ();
    fn handle(&mut self, SetLogLevel { level, revert_after }: SetLogLevel, _: &mut Self::Context) {
        match revert_after {
            Some(time) => self.known.level.set_for(level, time),
            None => self.known.level.set(level),
        }
    }
}
impl Handler<AskStop> for Root {
    type Result = ();
    fn handle(&mut self, ask: AskStop, _: &mut Self::Context) {
        if let (Some(run), Some(runner)) = (ask.by_run, &self.house.runner) {
            runner.let_go(run);
        }
        let _ = self.orders.try_send(Signal::Stop); // full: one is on its way
    }
}
impl Handler<AskReopen> for Root {
    type Result = ();
    fn handle(&mut self, _: AskReopen, _: &mut Self::Context) {
        let _ = self.orders.try_send(Signal::Reopen);
    }
}
