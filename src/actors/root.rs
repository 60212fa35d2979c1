//! Builds the house from the sink to the input, keeps the one list of what was wired, answers what it is asked about it, and stops
//! it from the input to the sink, with one deadline, naming the late.
//! Hears: the `Ask*` questions. Says: AwaitEnd, AwaitClosed, Observe*, Reopen, Hurry, Drain → every stage. Waits: at most for the
//! drain's deadline.
use std::{net::TcpListener, os::unix::net::UnixListener, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::future::{join_all, select_all};
use tokio::sync::mpsc;

use crate::{
    actors::{
        collect::{
            collector::{Collector, CollectorParts},
            filter_stage::{Edge, FilterStage, FilterStageParts},
            memory,
            meter::{InputTally, OutputMeter, PipelineMeter},
            sink::{Sink, SinkParts},
        },
        http_api::{HttpApi, HttpApiParts},
        kit::{Carried, Port, Pulse, Restarts, SharedPulse, Stopping, Weight, supervise},
    },
    checkpoint::Journal,
    clock::SharedClock,
    deadletter::DeadLetter,
    log::{LevelSwitch, Recent},
    messages::{
        collect::{AwaitClosed, AwaitEnd, CollectorView, Hurry, ObserveCollector, ObserveSink, Ship, SinkView},
        control::*,
    },
    metrics::SharedMetrics,
    model::{FileStatus, Host, file_status::SharedFileBoard},
    os,
    plugins::{self, filters, inputs, outputs},
    retry::Backoff,
    settings::{self, Settings, WhenFull},
    web::{self, Ask},
};

/// How long an answer of a stage is waited for; a stage that is being raised again may need some seconds.
const ANSWER: Duration = Duration::from_secs(1);

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

/// Starts an actor on that arbiter.
async fn raise<A>(
    arbiter: &Arbiter,
    stopping: &Stopping,
    pulse: &SharedPulse,
    log: &slog::Logger,
    mailbox: usize,
    make: impl FnOnce() -> A + Send + 'static,
) -> Result<Addr<A>, String>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    let (tell, told) = tokio::sync::oneshot::channel();
    let (stopping, pulse, log) = (stopping.clone(), pulse.clone(), log.clone());
    arbiter.spawn_fn(move || {
        let (addr, _task) = supervise(Restarts::DATA, stopping, pulse, log, |ctx, _farewell| {
            ctx.set_mailbox_capacity(mailbox);
            make()
        });
        let _ = tell.send(addr);
    });
    told.await.map_err(|_| "a data thread could not be started".to_owned())
}

fn data_arbiter() -> Arbiter {
    Arbiter::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("blocking") // reads and writes
            .thread_stack_size(512 * 1024)
            .build()
            .expect("a runtime needs an epoll descriptor, and no more")
    })
}

impl House {
    pub async fn build(start: &Start) -> Result<Self, String> {
        let Start {
            settings,
            host,
            log,
            metrics,
            clock,
            boot_id,
            ..
        } = start;
        let data_dir = &settings.agent.data_dir;
        let letters = DeadLetter::open(&data_dir.join("deadletter"))
            .map_err(|error| format!("could not open the dead letter in {}: {error}", data_dir.display()))?;
        let letters = Arc::new(letters);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arbiters = (0..settings.pipelines.len().min(cores.div_ceil(2)))
            .map(|_| data_arbiter())
            .collect::<Vec<_>>();
        let mut house = Self {
            pipelines: vec![],
            root: Pulse::new("root", metrics.restarts.clone()),
            http: Pulse::new("http", metrics.restarts.clone()),
            stopping: Stopping::default(),
            metrics: metrics.clone(),
            letters,
            _arbiters: vec![],
        };
        // Half for what the Collectors hold, half for the queues of outputs that drop: these hold what is settled already.
        let dropping = settings
            .pipelines
            .iter()
            .flat_map(|p| &p.outputs)
            .filter(|o| may_drop(o))
            .count() as u64;
        let queues = (settings.limits.memory / 2).checked_div(dropping).unwrap_or(0);
        let held = settings.limits.memory - queues * dropping;
        let shares = memory::shares(held, settings.pipelines.len());
        for (i, (pipeline, share)) in settings.pipelines.iter().zip(shares).enumerate() {
            let name: Arc<str> = pipeline.name.as_str().into();
            let log = log.new(slog::o!("pipeline" => pipeline.name.clone()));
            let arbiter = &arbiters[i % arbiters.len()];
            let wired = Wiring {
                settings,
                host,
                metrics,
                clock,
                boot_id,
                house: &house,
                arbiter,
                name,
                log,
                queues,
            };
            let wired = wired
                .wire(pipeline, share)
                .await
                .map_err(|error| format!("pipeline `{}`: {error}", pipeline.name))?;
            house.pipelines.push(wired);
        }
        house._arbiters = arbiters;
        Ok(house)
    }
}
fn may_drop(output: &settings::Output) -> bool {
    output.when_full != WhenFull::Block || output.degrade != WhenFull::Block
}

/// What is at hand while one pipeline is wired.
struct Wiring<'a> {
    settings: &'a Settings,
    host: &'a Arc<Host>,
    metrics: &'a SharedMetrics,
    clock: &'a SharedClock,
    boot_id: &'a str,
    house: &'a House,
    arbiter: &'a Arbiter,
    name: Arc<str>,
    log: slog::Logger,
    queues: u64,
}
impl Wiring<'_> {
    async fn wire(self, pipeline: &settings::Pipeline, share: memory::Share) -> Result<Pipeline, String> {
        let meter = PipelineMeter::new(self.metrics, &self.name);
        let mut sinks = Vec::<WiredSink>::new();
        for (number, output) in pipeline.outputs.iter().enumerate() {
            let same = sinks
                .iter()
                .filter(|s| s.plugin.split(':').next() == Some(&output.plugin.name.name))
                .count();
            let label = match same {
                0 => output.plugin.name.name.clone(),
                n => format!("{}#{}", output.plugin.name.name, n + 1),
            };
            sinks.push(self.sink(number, label, output).await?);
        }
        let filter = self.filter_stage(pipeline, &sinks, &meter).await?;
        let board = SharedFileBoard::default();
        let collector = self.collector(pipeline, share, &sinks, &filter, &board, &meter).await?;
        Ok(Pipeline {
            name: pipeline.name.clone(),
            input: pipeline.input.name.to_string(),
            filters: pipeline.filters.iter().map(|f| f.name.to_string()).collect(),
            board,
            meter,
            collector,
            filter,
            sinks,
        })
    }
    fn pulse(&self, kind: &str, label: Option<&str>) -> SharedPulse {
        let name = match label {
            None => format!("{kind}/{}", self.name),
            Some(label) => format!("{kind}/{}/{label}", self.name),
        };
        Pulse::new(name, self.metrics.restarts.clone())
    }
    /// Every message weighs at least one event: so many can wait at once.
    fn port<A>(&self, addr: &Addr<A>, events: u32) -> Port<Ship>
    where
        A: Actor<Context = Context<A>> + Handler<Carried<Ship>>,
    {
        Port::new(
            addr.clone().recipient(),
            Weight {
                events,
                kib: (self.settings.limits.memory / 1024) as u32,
            },
        )
    }

    async fn sink(&self, number: usize, label: String, output: &settings::Output) -> Result<WiredSink, String> {
        let plugin = plugins::find(outputs::CATALOG, "output", &output.plugin.name)?;
        let log = self.log.new(slog::o!("output" => label.clone()));
        let shared: Arc<str> = label.as_str().into();
        let context = outputs::OutputContext {
            pipeline: self.name.clone(),
            label: shared.clone(),
            host: self.host.clone(),
            log: log.clone(),
            clock: self.clock.clone(),
        };
        let made =
            (plugin.build)(&output.plugin.table, context).map_err(|error| format!("output `{label}`: {error}"))?;
        let (meter, pulse) = (
            OutputMeter::new(self.metrics, &self.name, &label),
            self.pulse("sink", Some(&label)),
        );
        let events = self.settings.max_write_channel_size;
        let parts = SinkParts {
            number: number as u32,
            output: made,
            when_full: output.when_full,
            degrade: output.degrade,
            most: Weight {
                events,
                kib: (self.queues / 1024) as u32,
            },
            backoff: Backoff::new(output.retry.first, output.retry.most),
            meter: meter.clone(),
            pipeline: self.name.clone(),
            label: shared,
            letters: self.house.letters.clone(),
            pulse: pulse.clone(),
            clock: self.clock.clone(),
            log: log.clone(),
        };
        let make = move || Sink::new(parts);
        let addr = raise(self.arbiter, &self.house.stopping, &pulse, &log, events as usize, make).await?;
        let port = Some(self.port(&addr, events));
        let stage = Stage { addr, pulse, port };
        Ok(WiredSink {
            label,
            plugin: output.plugin.name.to_string(),
            when_full: output.when_full,
            meter,
            stage,
        })
    }

    async fn filter_stage(
        &self,
        pipeline: &settings::Pipeline,
        sinks: &[WiredSink],
        meter: &PipelineMeter,
    ) -> Result<Stage<FilterStage>, String> {
        let mut made = vec![];
        for filter in &pipeline.filters {
            let plugin = plugins::find(filters::CATALOG, "filter", &filter.name)?;
            let built = (plugin.build)(&filter.table).map_err(|error| format!("filter `{}`: {error}", filter.name))?;
            made.push((filter.name.name.clone(), built));
        }
        let edges = sinks.iter().filter_map(|sink| {
            let port = sink.stage.port.clone()?;
            Some(Edge {
                port,
                waits: sink.when_full == WhenFull::Block,
                meter: sink.meter.clone(),
            })
        });
        let pulse = self.pulse("filter", None);
        let parts = FilterStageParts {
            filters: made,
            edges: edges.collect(),
            meter: meter.clone(),
            pipeline: self.name.clone(),
            letters: self.house.letters.clone(),
            pulse: pulse.clone(),
            log: self.log.clone(),
        };
        let make = move || FilterStage::new(parts);
        let events = self.settings.max_read_channel_size;
        let addr = raise(
            self.arbiter,
            &self.house.stopping,
            &pulse,
            &self.log,
            events as usize,
            make,
        )
        .await?;
        let port = Some(self.port(&addr, events));
        Ok(Stage { addr, pulse, port })
    }

    async fn collector(
        &self,
        pipeline: &settings::Pipeline,
        share: memory::Share,
        sinks: &[WiredSink],
        filter: &Stage<FilterStage>,
        board: &SharedFileBoard,
        meter: &PipelineMeter,
    ) -> Result<Stage<Collector>, String> {
        let plugin = plugins::find(inputs::CATALOG, "input", &pipeline.input.name)?;
        let journal = match self.settings.agent.private_data_dir {
            true => None, // bare `agent` on stdin: nothing to come back to
            false => Some(self.journal()?),
        };
        let context = inputs::InputContext {
            pipeline: self.name.clone(),
            host: self.host.clone(),
            log: self.log.clone(),
            clock: self.clock.clone(),
            once: self.settings.once,
            journal: journal.clone(),
            board: board.clone(),
            tally: Arc::new(InputTally::new(self.metrics, &self.name)),
        };
        let input = (plugin.build)(&pipeline.input.table, context)
            .map_err(|error| format!("input `{}`: {error}", pipeline.input.name))?;
        let Some(next) = filter.port.clone() else {
            return Err("the filter stage has no port".into());
        };
        let pulse = self.pulse("collector", None);
        let parts = CollectorParts {
            input,
            next,
            sinks: sinks
                .iter()
                .filter(|sink| sink.when_full == WhenFull::Block)
                .map(|sink| sink.stage.addr.clone().recipient())
                .collect(),
            outputs: sinks.len() as u32,
            journal,
            share,
            max_rate: pipeline.max_rate,
            meter: meter.clone(),
            pulse: pulse.clone(),
            clock: self.clock.clone(),
            log: self.log.clone(),
        };
        let make = move || Collector::new(parts);
        let addr = raise(self.arbiter, &self.house.stopping, &pulse, &self.log, 16, make).await?;
        Ok(Stage {
            addr,
            pulse,
            port: None,
        })
    }
    fn journal(&self) -> Result<crate::checkpoint::SharedJournal, String> {
        let dir = self.settings.agent.data_dir.join("checkpoints").join(&*self.name);
        let opened = Journal::open(&dir, self.boot_id)
            .map_err(|error| format!("could not open the checkpoints in {}: {error}", dir.display()))?;
        if let Some(damage) = opened.damage {
            slog::error!(self.log, "checkpoints were damaged, going on from the last good ones"; "damage" => damage);
        }
        Ok(Arc::new(std::sync::Mutex::new(opened.journal)))
    }
}

// ---- looking
/// One look at a pipeline. A stage that does not answer in time (it is being raised again) is left at its default.
struct Look {
    collector: Option<CollectorView>,
    sinks: Vec<Option<SinkView>>,
}
async fn ask<A, M>(addr: &Addr<A>, message: M) -> Option<M::Result>
where
    M: Message + Send + 'static,
    M::Result: Send,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    tokio::time::timeout(ANSWER, addr.send(message)).await.ok()?.ok()
}
impl Pipeline {
    async fn look(&self) -> Look {
        let sinks = join_all(self.sinks.iter().map(|sink| ask(&sink.stage.addr, ObserveSink)));
        let (collector, sinks) = tokio::join!(ask(&self.collector.addr, ObserveCollector), sinks);
        Look { collector, sinks }
    }
    async fn view(&self) -> PipelineView {
        let Look { collector, sinks } = self.look().await;
        let collector = collector.unwrap_or_default();
        let (events_in, filtered) = (self.meter.events_in.get(), self.meter.all_filtered());
        let outputs = self.sinks.iter().zip(sinks).enumerate().map(|(i, (sink, look))| {
            let queued = look.as_ref().map_or(0, |look| look.queued);
            let waiting = collector.waiting.get(i).copied().unwrap_or(0) + queued;
            let (delivered, dropped, dead) = (
                sink.meter.delivered.get(),
                sink.meter.all_dropped(),
                sink.meter.all_dead(),
            );
            OutputView {
                label: sink.label.clone(),
                plugin: sink.plugin.clone(),
                when_full: match sink.when_full {
                    WhenFull::Block => "block",
                    WhenFull::DropNewest => "drop_newest",
                    WhenFull::DropOldest => "drop_oldest",
                },
                breaker: look.as_ref().map_or("closed", |look| look.breaker),
                delivered,
                dropped,
                dead,
                waiting,
                difference: events_in as i64 - (filtered + delivered + dropped + dead + waiting) as i64,
                error: look.and_then(|look| look.error),
            }
        });
        PipelineView {
            name: self.name.clone(),
            input: self.input.clone(),
            filters: self.filters.clone(),
            events_in,
            bytes_in: self.meter.bytes_in.get(),
            filtered,
            ended: collector.ended,
            error: collector.error.clone(),
            checkpoint_error: collector.checkpoint_error.clone(),
            unsettled: collector.unsettled,
            rewinds: collector.rewinds,
            outputs: outputs.collect(),
        }
    }
    fn actors(&self) -> impl Iterator<Item = ActorView> + '_ {
        fn view<A: Actor>(stage: &Stage<A>) -> ActorView {
            actor_view(&stage.pulse, stage.port.as_ref())
        }
        let sinks = self.sinks.iter().map(|sink| view(&sink.stage));
        [view(&self.collector), view(&self.filter)].into_iter().chain(sinks)
    }
}
fn actor_view(pulse: &SharedPulse, port: Option<&Port<Ship>>) -> ActorView {
    ActorView {
        name: pulse.name.clone(),
        state: pulse.word(),
        restarts: pulse.causes(),
        last_error: pulse.last_error(),
        fill: port.map(Port::fill),
        waited: port.map_or(Duration::ZERO, Port::waited),
    }
}
impl House {
    pub async fn views(&self) -> Vec<PipelineView> {
        let views = join_all(self.pipelines.iter().map(Pipeline::view)).await;
        for (pipeline, output) in views
            .iter()
            .flat_map(|view| view.outputs.iter().map(move |output| (&view.name, output)))
        {
            let labels = [pipeline.as_str(), output.label.as_str()];
            self.metrics
                .waiting
                .with_label_values(&labels)
                .set(output.waiting as i64);
            self.metrics
                .difference
                .with_label_values(&labels)
                .set(output.difference);
        }
        views
    }
    pub fn actors(&self) -> Vec<ActorView> {
        let control = [&self.root, &self.http].map(|pulse| actor_view(pulse, None));
        let actors = control
            .into_iter()
            .chain(self.pipelines.iter().flat_map(Pipeline::actors))
            .collect::<Vec<_>>();
        for actor in &actors {
            self.metrics
                .waited
                .with_label_values(&[&actor.name])
                .set(actor.waited.as_secs_f64());
        }
        actors
    }
    pub fn files(&self) -> Vec<(String, Vec<FileStatus>)> {
        self.pipelines
            .iter()
            .map(|p| (p.name.clone(), p.board.list()))
            .collect()
    }
    pub async fn health(&self) -> Health {
        let mut failing = self
            .actors()
            .into_iter()
            .filter(|actor| actor.state == "failing")
            .map(|actor| format!("{} keeps falling: {}", actor.name, actor.last_error.unwrap_or_default()))
            .collect::<Vec<_>>();
        let mut degraded = vec![];
        for pipeline in self.views().await {
            let of = |what: &str| format!("{}: {what}", pipeline.name);
            failing.extend(pipeline.checkpoint_error.as_deref().map(of));
            degraded.extend(pipeline.error.as_deref().map(of));
            for output in &pipeline.outputs {
                let of = |what: &str| format!("{}/{}: {what}", pipeline.name, output.label);
                degraded.extend(output.error.as_deref().map(of));
                // While events move, the counters are read one after the other; when nothing waits they must agree.
                if output.difference != 0
                    && output.waiting == 0
                    && self.quiet_difference(&pipeline.name, &output.label).await
                {
                    failing.push(of("events in and events out do not agree"));
                }
            }
        }
        let state = match (failing.is_empty(), degraded.is_empty()) {
            (false, _) => HealthState::Failing,
            (_, false) => HealthState::Degraded,
            _ => HealthState::Ok,
        };
        failing.append(&mut degraded);
        Health {
            state,
            reasons: failing,
        }
    }
    /// Looks twice more: does the same difference stand while nothing moves?
    async fn quiet_difference(&self, pipeline: &str, output: &str) -> bool {
        let look = async || {
            let view = self.pipelines.iter().find(|p| p.name == pipeline)?.view().await;
            let output = view.outputs.into_iter().find(|o| o.label == output)?;
            Some((view.events_in, output.delivered, output.waiting, output.difference))
        };
        let first = look().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        first == look().await && first.is_some_and(|(_, _, waiting, difference)| waiting == 0 && difference != 0)
    }
    pub fn why(&self, what: &str) -> String {
        let mut near = None;
        for (pipeline, file) in self
            .pipelines
            .iter()
            .flat_map(|p| p.board.list().into_iter().map(move |f| (&p.name, f)))
        {
            if file.path == what || file.aliases.iter().any(|alias| alias == what) {
                let reason = if file.reason.is_empty() {
                    match file.size.saturating_sub(file.read) {
                        0 if file.acknowledged >= file.read => "all of it was read and delivered".to_owned(),
                        0 => format!(
                            "all of it was read, {} bytes wait for the outputs",
                            file.read - file.acknowledged
                        ),
                        left => format!("{left} bytes are still to be read"),
                    }
                } else {
                    file.reason.clone()
                };
                return format!("{what}: {}, by pipeline `{pipeline}`: {reason}", file.state.word());
            }
            if file.path.ends_with(what) {
                near = Some(file.path);
            }
        }
        let inputs = self
            .pipelines
            .iter()
            .map(|p| format!("`{}` ({})", p.name, p.input))
            .collect::<Vec<_>>()
            .join(", ");
        match near {
            Some(near) => format!("{what} is not known by that name; did you mean {near}"),
            None => format!("{what} matches no path, or an exclude, of the pipelines {inputs}"),
        }
    }
    fn reopen(&self) {
        for sink in self.pipelines.iter().flat_map(|p| &p.sinks) {
            // Control messages are few: a full mailbox would mean hundreds of signals unheard.
            let _ = sink.stage.addr.try_send(Reopen);
        }
    }
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
answers!(AskWhy, String, |house, ask| house.why(&ask.0));
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
    fn handle(&mut self, _: AskStop, _: &mut Self::Context) {
        let _ = self.orders.try_send(Signal::Stop); // full: one is on its way
    }
}
impl Handler<AskReopen> for Root {
    type Result = ();
    fn handle(&mut self, _: AskReopen, _: &mut Self::Context) {
        let _ = self.orders.try_send(Signal::Reopen);
    }
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

enum Why {
    Asked,
    Ended,
    Closed(String),
}
/// A message that was lost in a fall is sent again; an answer that is owed survives it.
async fn until_answered<A, M>(addr: &Addr<A>, message: impl Fn() -> M) -> M::Result
where
    M: Message + Send + 'static,
    M::Result: Send,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    loop {
        match addr.send(message()).await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl House {
    /// Until somebody asks for a stop, all inputs have ended, or the far side has left.
    async fn until_over(&self, signals: &mut mpsc::Receiver<Signal>) -> Why {
        let all_ended = join_all(
            self.pipelines
                .iter()
                .map(|p| until_answered(&p.collector.addr, || AwaitEnd)),
        );
        let closed = self.pipelines.iter().flat_map(|p| &p.sinks);
        let closed = select_all(closed.map(|s| Box::pin(until_answered(&s.stage.addr, || AwaitClosed))));
        tokio::pin!(all_ended, closed);
        loop {
            let signal = tokio::select! {
                signal = signals.recv() => signal.unwrap_or(Signal::Stop),
                _ = &mut all_ended => return Why::Ended,
                (said, ..) = &mut closed => return Why::Closed(said),
            };
            match signal {
                Signal::Reopen => self.reopen(),
                Signal::Stop => return Why::Asked,
            }
        }
    }
    /// From the input to the sink. All of it within `limit`, and then the late are named.
    async fn stop(&self, why: Why, limit: Duration, log: &slog::Logger) -> Ended {
        self.stopping.begin();
        let mut late = vec![];
        if !matches!(why, Why::Closed(_)) {
            for sink in self.pipelines.iter().flat_map(|p| &p.sinks) {
                let _ = sink.stage.addr.try_send(Hurry);
            }
            let deadline = tokio::time::Instant::now() + limit;
            let drains = self.pipelines.iter().map(|p| async move {
                let mut left = None;
                if !within(deadline, &p.collector.addr, || Drain).await {
                    left = Some(p.collector.pulse.name.clone());
                }
                within(deadline, &p.filter.addr, || Drain).await;
                let sinks = p
                    .sinks
                    .iter()
                    .map(|s| async move { (s, within(deadline, &s.stage.addr, || Drain).await) });
                let slow = join_all(sinks)
                    .await
                    .into_iter()
                    .filter(|(_, done)| !done)
                    .map(|(s, _)| s.stage.pulse.name.clone());
                left.into_iter().chain(slow).collect::<Vec<_>>()
            });
            late = join_all(drains).await.into_iter().flatten().collect();
        }
        let mut total = Totals::default();
        for view in self.views().await {
            total.add(&view);
            if view.unsettled > 0 {
                let (pipeline, unsettled) = (&view.name, view.unsettled);
                match view.rewinds {
                    true => {
                        slog::warn!(log, "events are left at their source"; "pipeline" => pipeline, "events" => unsettled)
                    }
                    false => slog::error!(log, "events are lost"; "pipeline" => pipeline, "events" => unsettled),
                }
            }
        }
        let Totals {
            delivered,
            lost,
            dead,
            dropped,
            ..
        } = total;
        let (mut code, mut text) = match &why {
            Why::Asked => (0, "stopped as asked".to_owned()),
            Why::Ended => (0, "all input has ended".to_owned()),
            Why::Closed(said) => (1, said.clone()),
        };
        if !late.is_empty() {
            text = format!(
                "{text}; past the deadline of {}s: {}",
                limit.as_secs_f64(),
                late.join(", ")
            );
        }
        if lost > 0 {
            (code, text) = (1, format!("{text}; {lost} events are lost"));
        } else if dead > 0 && code == 0 {
            (code, text) = (75, format!("{text}; {dead} events wait in the dead letter"));
        }
        let counts = [
            ("delivered", delivered),
            ("at_source", total.at_source),
            ("lost", lost),
            ("dropped", dropped),
            ("dead", dead),
        ];
        Ended {
            code,
            why: text,
            counts: counts.map(|(what, n)| (what.to_owned(), n)).to_vec(),
        }
    }
}
async fn within<A, M>(deadline: tokio::time::Instant, addr: &Addr<A>, message: impl Fn() -> M) -> bool
where
    M: Message<Result = ()> + Send + 'static,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    tokio::time::timeout_at(deadline, until_answered(addr, message))
        .await
        .is_ok()
}
#[derive(Default)]
struct Totals {
    delivered: u64,
    at_source: u64,
    lost: u64,
    dropped: u64,
    dead: u64,
}
impl Totals {
    fn add(&mut self, view: &PipelineView) {
        match view.rewinds {
            true => self.at_source += view.unsettled,
            false => self.lost += view.unsettled,
        }
        for output in &view.outputs {
            self.delivered += output.delivered;
            self.dropped += output.dropped;
            self.dead += output.dead;
        }
    }
}
