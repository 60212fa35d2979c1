//! Raises the actors of a pipeline that was planned, from the sinks to the input, and introduces them to each other.
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use actix::prelude::*;
use tokio::sync::mpsc;

use super::{
    House, Pipeline, Stage, WiredSink,
    plan::{Fresh, Limits},
    stop::until_answered,
};
use crate::{
    actors::{
        collect::{
            collector::{Collector, CollectorParts, Links},
            filter_stage::{Edge, FilterStage, FilterStageParts},
            memory::{self, Share},
            meter::{OutputMeter, PipelineMeter},
            sink::{Sink, SinkParts, SinkRules},
        },
        kit::{Carried, Farewell, Port, Pulse, Restarts, SharedPulse, Weight, supervise},
    },
    messages::collect::{AwaitClosed, AwaitEnd, Joined, Ship},
    plugins::outputs::Output,
    retry::Backoff,
    settings::{self, WhenFull},
};

/// Threads for data, made when they are needed and kept: an arbiter that is let go of would take its runtime's blocking calls along.
#[derive(Default)]
pub(super) struct Arbiters(Mutex<Vec<Arbiter>>);
impl Arbiters {
    /// The one with the fewest pipelines, of as many as half the cores.
    pub fn least_used(&self, used: impl Fn(usize) -> usize) -> (usize, ArbiterHandle) {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let most = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2);
        let least = (0..all.len()).min_by_key(|at| used(*at));
        let at = match least {
            Some(at) if used(at) == 0 || all.len() >= most => at,
            _ => {
                all.push(data_arbiter());
                all.len() - 1
            }
        };
        (at, all[at].handle())
    }
    pub fn at(&self, at: usize) -> ArbiterHandle {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[at].handle()
    }
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

/// Says what ends by itself: all of an input, or the far side of an output.
pub(super) enum Over {
    Ended,
    Closed { pipeline: String, said: String },
}
/// Waits for an actor's word; ends with the last who holds it.
pub(super) struct Watch(actix_rt::task::JoinHandle<()>);
impl Watch {
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
    pub fn end(&self) {
        self.0.abort();
    }
}
impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// What is at hand while one pipeline is wired.
pub(super) struct Wiring<'a> {
    pub house: &'a House,
    pub limits: Limits,
    pub name: &'a str,
    pub arbiter: ArbiterHandle,
    pub log: slog::Logger,
}
impl Wiring<'_> {
    pub async fn pipeline(self, fresh: Fresh, at: usize) -> Result<Pipeline, String> {
        let ground = &self.house.ground;
        let meter = PipelineMeter::new(&ground.metrics, self.name);
        let Fresh {
            settings,
            input,
            journal,
            board,
            filters,
            outputs,
        } = fresh;
        let mut sinks = Vec::<WiredSink>::new();
        for ((number, (label, output)), said) in outputs.into_iter().enumerate().zip(&settings.outputs) {
            sinks.push(self.sink(number as u32, label, output, said, None).await?);
        }
        let pulse = self.pulse("filter", None);
        let labels = filters.iter().map(|(label, _)| label.clone()).collect();
        let parts = FilterStageParts {
            filters,
            edges: sinks.iter().map(WiredSink::edge).collect(),
            meter: meter.clone(),
            pipeline: self.name.into(),
            letters: ground.letters.clone(),
            pulse: pulse.clone(),
            log: self.log.clone(),
        };
        let make = move |farewell| FilterStage::new(parts, farewell);
        let addr = self
            .raise(&pulse, &self.log, self.limits.read.events as usize, make)
            .await?;
        let port = Some(Port::new(addr.clone().recipient(), self.limits.read));
        let filter = Stage { addr, pulse, port };

        let links = self.links(&settings, &sinks, &filter)?;
        let pulse = self.pulse("collector", None);
        let parts = CollectorParts {
            input,
            next: links.next,
            sinks: links.sinks,
            outputs: sinks.len() as u32,
            journal: journal.clone(),
            share: self.share(),
            max_rate: settings.max_rate,
            meter: meter.clone(),
            pulse: pulse.clone(),
            clock: ground.clock.clone(),
            log: self.log.clone(),
        };
        let make = move |farewell| Collector::new(parts, farewell);
        let addr = self.raise(&pulse, &self.log, 16, make).await?;
        let collector = Stage {
            addr,
            pulse,
            port: None,
        };
        let ended = Arc::<AtomicBool>::default();
        Ok(Pipeline {
            name: self.name.to_owned(),
            arbiter: at,
            end: Arc::new(watch_end(
                self.house.over.clone(),
                collector.addr.clone(),
                ended.clone(),
            )),
            ended,
            limits: self.limits,
            settings,
            board,
            journal,
            meter,
            collector,
            filter,
            filters: labels,
            sinks,
        })
    }
    fn share(&self) -> Share {
        let (own, _) = memory::parts(self.limits.held, self.limits.collectors);
        self.house.common.share(own)
    }
    /// Whom the Collector knows.
    pub fn links(
        &self,
        settings: &settings::Pipeline,
        sinks: &[WiredSink],
        filter: &Stage<FilterStage>,
    ) -> Result<Links, String> {
        let blocking = sinks.iter().filter(|sink| sink.settings.when_full == WhenFull::Block);
        Ok(Links {
            next: filter.port.clone().ok_or("the filter stage has no port")?,
            sinks: blocking.map(|sink| sink.stage.addr.clone().recipient()).collect(),
            outputs: sinks.iter().map(|sink| sink.number).collect(),
            share: memory::parts(self.limits.held, self.limits.collectors).0,
            max_rate: settings.max_rate,
        })
    }

    pub async fn sink(
        &self,
        number: u32,
        label: String,
        output: Box<dyn Output>,
        settings: &settings::Output,
        joined: Option<Joined>,
    ) -> Result<WiredSink, String> {
        let ground = &self.house.ground;
        let log = self.log.new(slog::o!("output" => label.clone()));
        let meter = OutputMeter::new(&ground.metrics, self.name, &label);
        let pulse = self.pulse("sink", Some(&label));
        let parts = SinkParts {
            number,
            output,
            rules: self.rules(settings),
            joined,
            meter: meter.clone(),
            pipeline: self.name.into(),
            label: label.as_str().into(),
            letters: ground.letters.clone(),
            pulse: pulse.clone(),
            clock: ground.clock.clone(),
            log: log.clone(),
        };
        let make = move |farewell| Sink::new(parts, farewell);
        let addr = self
            .raise(&pulse, &log, self.limits.write.events as usize, make)
            .await?;
        let closed = watch_closed(self.house.over.clone(), addr.clone(), self.name.to_owned());
        Ok(WiredSink {
            number,
            label,
            meter,
            closed: Arc::new(closed),
            stage: Stage {
                port: Some(self.port(&addr)),
                addr,
                pulse,
            },
            settings: settings.clone(),
        })
    }
    pub fn rules(&self, settings: &settings::Output) -> SinkRules {
        SinkRules {
            when_full: settings.when_full,
            degrade: settings.degrade,
            most: self.limits.queue,
            backoff: Backoff::new(settings.retry.first, settings.retry.most),
        }
    }
    /// Every message weighs at least one event: so many can wait at once.
    pub fn port<A>(&self, addr: &Addr<A>) -> Port<Ship>
    where
        A: Actor<Context = Context<A>> + Handler<Carried<Ship>>,
    {
        let Weight { events, kib } = self.limits.write;
        Port::new(addr.clone().recipient(), Weight { events, kib })
    }
    fn pulse(&self, kind: &str, label: Option<&str>) -> SharedPulse {
        let name = match label {
            None => format!("{kind}/{}", self.name),
            Some(label) => format!("{kind}/{}/{label}", self.name),
        };
        Pulse::new(name, self.house.ground.metrics.restarts.clone())
    }
    /// Starts an actor on the pipeline's arbiter.
    async fn raise<A>(
        &self,
        pulse: &SharedPulse,
        log: &slog::Logger,
        mailbox: usize,
        make: impl FnOnce(Farewell) -> A + Send + 'static,
    ) -> Result<Addr<A>, String>
    where
        A: Supervised + Actor<Context = Context<A>>,
    {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (stopping, pulse, log) = (self.house.ground.stopping.clone(), pulse.clone(), log.clone());
        self.arbiter.spawn_fn(move || {
            let (addr, _task) = supervise(Restarts::DATA, stopping, pulse, log, |ctx, farewell| {
                ctx.set_mailbox_capacity(mailbox);
                make(farewell)
            });
            let _ = tell.send(addr);
        });
        told.await.map_err(|_| "a data thread could not be started".to_owned())
    }
}
impl WiredSink {
    pub fn edge(&self) -> Edge {
        Edge {
            number: self.number,
            port: self.stage.port.clone(),
            waits: self.settings.when_full == WhenFull::Block,
            meter: self.meter.clone(),
        }
    }
}

pub(super) fn watch_end(over: mpsc::UnboundedSender<Over>, addr: Addr<Collector>, ended: Arc<AtomicBool>) -> Watch {
    Watch(actix_rt::spawn(async move {
        until_answered(&addr, || AwaitEnd).await;
        ended.store(true, SeqCst);
        let _ = over.send(Over::Ended);
    }))
}
fn watch_closed(over: mpsc::UnboundedSender<Over>, addr: Addr<Sink>, pipeline: String) -> Watch {
    Watch(actix_rt::spawn(async move {
        let said = until_answered(&addr, || AwaitClosed).await;
        let _ = over.send(Over::Closed { pipeline, said });
    }))
}
