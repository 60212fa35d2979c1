//! Builds a house from its settings, from the sinks to the input.
use std::sync::Arc;

use actix::prelude::*;

use super::{
    House, Pipeline, Stage, Start, WiredSink,
    jobs::{self, JobsHouse},
    runner::RunnerHouse,
};
use crate::{
    actors::{
        collect::{
            collector::{Collector, CollectorParts},
            filter_stage::{Edge, FilterStage, FilterStageParts},
            memory,
            meter::{InputTally, OutputMeter, PipelineMeter},
            sink::{Sink, SinkParts},
        },
        kit::{Carried, Port, Pulse, Restarts, SharedPulse, Stopping, Weight, supervise},
    },
    checkpoint::{Journal, SharedJournal},
    clock::SharedClock,
    deadletter::DeadLetter,
    messages::collect::Ship,
    metrics::SharedMetrics,
    model::{Host, file_status::SharedFileBoard},
    plugins::{self, filters, inputs, outputs},
    retry::Backoff,
    settings::{self, Settings, WhenFull},
};

/// Starts an actor on that arbiter.
pub(super) async fn raise<A>(
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

pub(super) fn data_arbiter() -> Arbiter {
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
            jobs: None,
            runner: None,
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
        if let Some(stores) = jobs::open(start).await? {
            let runner = RunnerHouse::raise(start, stores.database.clone(), &house.stopping).await?;
            house.jobs = Some(JobsHouse::raise(start, stores, &house.stopping, Some(runner.runner())).await?);
            house.runner = Some(runner);
        }
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
    fn journal(&self) -> Result<SharedJournal, String> {
        let dir = self.settings.agent.data_dir.join("checkpoints").join(&*self.name);
        let opened = Journal::open(&dir, self.boot_id)
            .map_err(|error| format!("could not open the checkpoints in {}: {error}", dir.display()))?;
        if let Some(damage) = opened.damage {
            slog::error!(self.log, "checkpoints were damaged, going on from the last good ones"; "damage" => damage);
        }
        Ok(Arc::new(std::sync::Mutex::new(opened.journal)))
    }
}
