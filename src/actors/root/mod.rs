//! Builds the house from the sink to the input, keeps the one list of what was wired, answers what it is asked about it, changes it by
//! difference in a reload, and stops it from the input to the sink, with one deadline, naming the late.
//! Hears: the `Ask*` questions. Says: AwaitEnd, AwaitClosed, Observe*, Reopen, Hurry, Drain → every stage; Join, Relink, Rewire,
//! HandOver, Retire in a reload. Waits: at most for the drain's deadline.
//!
//! `plan` makes plugins (and may fail), `wire` raises actors, `live` is the loop of signals and orders, `reload` changes, `stop` ends.
mod jobs;
mod live;
mod look;
mod plan;
mod reload;
mod runner;
mod stop;
mod wire;

use std::{
    net::TcpListener,
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot};

use self::{
    jobs::JobsHouse,
    live::Orders,
    plan::{Fresh, Limits, Plan, Planned},
    reload::Answer,
    runner::RunnerHouse,
    wire::{Arbiters, Over, Watch, Wiring},
};
use crate::{
    actors::{
        collect::{
            collector::Collector,
            filter_stage::FilterStage,
            memory::{self, Common},
            meter::{OutputMeter, PipelineMeter},
            sink::Sink,
        },
        http_api::{HttpApi, HttpApiParts},
        kit::{Port, Pulse, Restarts, SharedPulse, Stopping, supervise},
    },
    checkpoint::SharedJournal,
    clock::SharedClock,
    deadletter::DeadLetter,
    log::{LevelSwitch, Recent},
    messages::{
        collect::Ship,
        control::{
            ActorView, AgentView, AskActors, AskAgent, AskConfig, AskFiles, AskHealth, AskLogs, AskMetrics,
            AskPipelines, AskReload, AskReopen, AskStop, AskWhy, Drain, Health, PipelineView, ReloadRefused,
            ReloadView, SetLogLevel,
        },
    },
    metrics::SharedMetrics,
    model::{self, FileStatus, Host, file_status::SharedFileBoard, job::feed::SharedRunFeed},
    os,
    settings::{self, Reread, Settings},
    web::{self, Ask},
};

/// What only a start needs is not needed any more.
const SETTLED_IN: Duration = Duration::from_secs(1);

/// How long a stop may take: the signals' own thread and Root agree on it, also after a reload.
#[derive(Clone)]
pub struct DrainLimit(Arc<AtomicU64>); // milliseconds
impl DrainLimit {
    pub fn new(limit: Duration) -> Self {
        let found = Self(Arc::default());
        found.set(limit);
        found
    }
    pub fn set(&self, limit: Duration) {
        self.0.store(limit.as_millis() as u64, SeqCst);
    }
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(SeqCst))
    }
}

pub struct Start {
    pub settings: Settings,
    /// Reads them again, for a reload.
    pub reread: Reread,
    pub drain: DrainLimit,
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
    Reload,
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
    wired: Mutex<Arc<Wired>>,
    shown: Mutex<Shown>,
    ground: Arc<Ground>,
    root: SharedPulse,
    http: SharedPulse,
    /// None: this run is nobody that could be registered.
    jobs: Option<JobsHouse>,
    /// None likewise.
    runner: Option<RunnerHouse>,
    api: OnceLock<Addr<HttpApi>>,
    /// Of the Collectors' memory, what is lent.
    common: Common,
    arbiters: Arbiters,
    /// Whatever ends by itself says so here.
    over: mpsc::UnboundedSender<Over>, // once for each input and output
}
/// By these settings. Replaced as a whole: who looks at one sees one state.
struct Wired {
    settings: Settings,
    /// With those that are on their way out.
    pipelines: Vec<Arc<Pipeline>>,
}
/// What the pages show and a reload changes.
struct Shown {
    config: serde_json::Value,
    http: Option<String>,
    last_reload: Option<ReloadView>,
}
/// What all pipelines stand on, from the start to the end.
pub(super) struct Ground {
    host: Arc<Host>,
    log: slog::Logger,
    level: LevelSwitch,
    metrics: SharedMetrics,
    clock: SharedClock,
    boot_id: String,
    letters: Arc<DeadLetter>,
    stopping: Stopping,
    drain: DrainLimit,
    reread: Reread,
    /// None: no jobs run in this house.
    runs: Option<SharedRunFeed>,
}
impl Ground {
    /// An order of `agent log-level` stands until the level of the settings changes.
    fn level_of(&self, new: &settings::Log, old: &settings::Log) {
        if new.level != old.level {
            self.level.set(new.level);
        }
    }
}
pub struct Pipeline {
    pub name: String,
    /// Its place among these.
    arbiter: usize,
    settings: settings::Pipeline,
    limits: Limits,
    board: SharedFileBoard,
    journal: Option<SharedJournal>,
    meter: PipelineMeter,
    collector: Stage<Collector>,
    filter: Stage<FilterStage>,
    /// Labels: their counters go by them.
    filters: Vec<String>,
    sinks: Vec<WiredSink>,
    /// All was read, and is settled.
    ended: Arc<AtomicBool>,
    end: Arc<Watch>,
}
struct Stage<A: Actor> {
    addr: Addr<A>,
    pulse: SharedPulse,
    port: Option<Port<Ship>>,
}
impl<A: Actor> Clone for Stage<A> {
    fn clone(&self) -> Self {
        Self {
            addr: self.addr.clone(),
            pulse: self.pulse.clone(),
            port: self.port.clone(),
        }
    }
}
#[derive(Clone)]
struct WiredSink {
    /// Its bit in `Outcome::account`: its own as long as it lives.
    number: u32,
    /// The same: its counters go by it.
    label: String,
    settings: settings::Output,
    meter: OutputMeter,
    stage: Stage<Sink>,
    closed: Arc<Watch>,
}

impl House {
    async fn build(start: &Start, over: mpsc::UnboundedSender<Over>) -> Result<Self, String> {
        let settings = start.settings.clone();
        let data_dir = &settings.agent.data_dir;
        let letters = DeadLetter::open(&data_dir.join("deadletter"))
            .map_err(|error| format!("could not open the dead letter in {}: {error}", data_dir.display()))?;
        // Before anything is read: it may be that this agent is not to start.
        let stores = jobs::open(start).await?;
        let ground = Arc::new(Ground {
            host: start.host.clone(),
            log: start.log.clone(),
            level: start.level.clone(),
            metrics: start.metrics.clone(),
            clock: start.clock.clone(),
            boot_id: start.boot_id.clone(),
            letters: Arc::new(letters),
            stopping: Stopping::default(),
            drain: start.drain.clone(),
            reread: start.reread.clone(),
            runs: stores.as_ref().map(|stores| Arc::new(stores.history.clone()) as _),
        });
        let Plan { pipelines, limits, .. } = Plan::make(&ground, &[], &settings, false)?;
        let http = start.http.as_ref().and_then(|listener| listener.local_addr().ok());
        let mut house = Self {
            shown: Mutex::new(Shown {
                config: settings.effective(),
                http: http.map(|address| address.to_string()),
                last_reload: None,
            }),
            wired: Mutex::new(Arc::new(Wired {
                settings,
                pipelines: vec![],
            })),
            root: Pulse::new("root", ground.metrics.restarts.clone()),
            http: Pulse::new("http", ground.metrics.restarts.clone()),
            jobs: None,
            runner: None,
            api: OnceLock::new(),
            common: Common::default(),
            arbiters: Arbiters::default(),
            ground,
            over,
        };
        house
            .common
            .grow(memory::parts(limits.held, limits.collectors).1 as i64);
        for planned in pipelines {
            if let Planned::New(fresh) = planned {
                let name = fresh.settings.name.clone();
                let raised = house.raise(*fresh, limits).await;
                raised.map_err(|error| format!("pipeline `{name}`: {error}"))?;
            }
        }
        if let Some(stores) = stores {
            let stopping = house.ground.stopping.clone();
            let runner = RunnerHouse::raise(start, stores.history.clone(), &stopping).await?;
            house.jobs = Some(JobsHouse::raise(start, stores, &stopping, Some(runner.runner())).await?);
            house.runner = Some(runner);
        }
        Ok(house)
    }
    /// A new pipeline, at the end of the list.
    async fn raise(&self, fresh: Fresh, limits: Limits) -> Result<Arc<Pipeline>, String> {
        let name = fresh.settings.name.clone();
        let (at, _) = self
            .arbiters
            .least_used(|at| self.pipelines().iter().filter(|p| p.arbiter == at).count());
        let raised = Arc::new(self.wiring(&name, at, limits).pipeline(fresh, at).await?);
        self.change_pipelines(|all| all.push(raised.clone()));
        Ok(raised)
    }
    fn wiring<'a>(&'a self, name: &'a str, arbiter: usize, limits: Limits) -> Wiring<'a> {
        Wiring {
            house: self,
            limits,
            name,
            arbiter: self.arbiters.at(arbiter),
            log: self.ground.log.new(slog::o!("pipeline" => name.to_owned())),
        }
    }

    fn wired(&self) -> Arc<Wired> {
        self.wired
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }
    fn pipelines(&self) -> Vec<Arc<Pipeline>> {
        self.wired().pipelines.clone()
    }
    fn set_wired(&self, settings: Settings, pipelines: Vec<Arc<Pipeline>>) {
        *self.wired.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(Wired { settings, pipelines });
    }
    fn change_pipelines(&self, change: impl FnOnce(&mut Vec<Arc<Pipeline>>)) {
        let wired = self.wired();
        let mut pipelines = wired.pipelines.clone();
        change(&mut pipelines);
        self.set_wired(wired.settings.clone(), pipelines);
    }
    fn take_over(&self, old: &Arc<Pipeline>, new: Arc<Pipeline>) {
        self.change_pipelines(|all| {
            if let Some(place) = all.iter_mut().find(|p| Arc::ptr_eq(p, old)) {
                *place = new;
            }
        });
    }
    fn leave_out(&self, gone: &Arc<Pipeline>) {
        self.change_pipelines(|all| all.retain(|p| !Arc::ptr_eq(p, gone)));
    }
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

// ---- living
/// Runs until all inputs have ended, the far side has left, or somebody stops it. `ready` is called once.
pub async fn run(mut start: Start, ready: impl FnOnce(Result<(), String>)) -> Ended {
    let (over, ends) = mpsc::unbounded_channel();
    let (reloads, asked) = mpsc::channel(1); // one more may wait while one is under way
    let made = async {
        let tls = start
            .settings
            .http
            .tls
            .as_ref()
            .map(|tls| web::tls::server_config(&tls.cert, &tls.key))
            .transpose()?;
        Ok((Arc::new(House::build(&start, over).await?), tls))
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
    let known = Known {
        host: start.host.clone(),
        started: start.clock.wall(),
        data_dir: start.settings.agent.data_dir.display().to_string(),
        level: start.level,
        recent: start.recent,
        stopping: house.ground.stopping.clone(),
    };
    let root = Root {
        house: house.clone(),
        known,
        orders: start.orders,
        reloads,
    };
    let (root, _) = supervise(
        Restarts::CONTROL,
        house.ground.stopping.clone(),
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
        house.ground.stopping.clone(),
        house.http.clone(),
        start.log.clone(),
        |_, _| api,
    );
    let _ = house.api.set(api.clone()); // the first
    ready(Ok(()));
    actix_rt::spawn(async {
        tokio::time::sleep(SETTLED_IN).await;
        os::release_code();
    });
    let orders = Orders {
        signals: &mut start.signals,
        reloads: asked,
        ends,
    };
    let why = house.until_over(orders).await;
    let ended = house.stop(why, start.drain.get(), &start.log).await;
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
    reloads: mpsc::Sender<oneshot::Sender<Answer>>,
}
/// What does not change while the agent lives, and who can tell the rest.
struct Known {
    host: Arc<Host>,
    started: jiff::Timestamp,
    data_dir: String,
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
        let (http, last_reload) = {
            let shown = self.house.shown();
            (shown.http.clone(), shown.last_reload.clone())
        };
        MessageResult(AgentView {
            host: (*known.host).clone(),
            version: crate::VERSION,
            pid: std::process::id(),
            started: known.started,
            data_dir: known.data_dir.clone(),
            http,
            last_reload,
            stopping: known.stopping.begun(),
            log_level: settings::level_word(known.level.level()).to_owned(),
        })
    }
}
impl Handler<AskConfig> for Root {
    type Result = MessageResult<AskConfig>;
    fn handle(&mut self, _: AskConfig, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.house.shown().config.clone())
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
/// The answer comes from the house's own loop, so it outlives a fall of this actor.
impl Handler<AskReload> for Root {
    type Result = ResponseFuture<Answer>;
    fn handle(&mut self, _: AskReload, _: &mut Self::Context) -> Self::Result {
        let (tell, told) = oneshot::channel();
        let refused = match self.reloads.try_send(tell) {
            _ if self.known.stopping.begun() => Some(ReloadRefused::Stopping),
            Err(mpsc::error::TrySendError::Full(_)) => Some(ReloadRefused::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Some(ReloadRefused::Stopping),
            Ok(()) => None,
        };
        Box::pin(async move {
            match refused {
                Some(refused) => Err(refused),
                None => told.await.unwrap_or(Err(ReloadRefused::Stopping)),
            }
        })
    }
}
