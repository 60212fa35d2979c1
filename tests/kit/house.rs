//! A pipeline of real actors between an input and outputs in memory.
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytes::Bytes;
use luffly_agent::{
    actors::{
        collect::{
            collector::{Collector, CollectorParts},
            filter_stage::{Edge, FilterStage, FilterStageParts},
            memory,
            meter::{OutputMeter, PipelineMeter},
            sink::{Sink, SinkParts},
        },
        kit::{Carried, Port, Pulse, Restarts, SharedPulse, Stopping, Weight, supervise},
    },
    clock,
    deadletter::DeadLetter,
    messages::collect::{AwaitEnd, ObserveCollector, ObserveSink, Ship},
    metrics::{Metrics, SharedMetrics},
    model::{Batch, Chunk, Events, Host, Origin},
    plugins::{
        filters::{Dropped, Filter},
        inputs::{Input, InputError, Next, Want},
        outputs::{Output, OutputError, Syncer, Written},
    },
    retry::Backoff,
    settings::WhenFull,
};

/// Falls once in `one_in` rolls; 0 never falls.
#[derive(Clone, Default)]
pub struct Dice {
    state: Arc<AtomicU64>,
    one_in: u64,
}
impl Dice {
    pub fn new(seed: u64, one_in: u64) -> Self {
        Self {
            state: Arc::new(AtomicU64::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)),
            one_in,
        }
    }
    pub fn never() -> Self {
        Self::new(1, 0)
    }
    pub fn hits(&self) -> bool {
        if self.one_in == 0 {
            return false;
        }
        let step = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ (x << 17)
        };
        let before = self.state.fetch_update(SeqCst, SeqCst, |x| Some(step(x))).unwrap();
        step(before).is_multiple_of(self.one_in)
    }
    pub fn roll(&self) {
        assert!(!self.hits(), "fell");
    }
}
/// Panics that are part of the test say nothing.
pub fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let said = panic.payload().downcast_ref::<&str>().map(|s| s.to_string());
            let said = said
                .or(panic.payload().downcast_ref::<String>().cloned())
                .unwrap_or_default();
            if said != "fell" && !said.starts_with("failpoint") {
                usual(panic);
            }
        }));
    });
}

pub fn host() -> Arc<Host> {
    Arc::new(Host {
        agent_id: "sky01".into(),
        group: "net01".into(),
        hostname: "here".into(),
        ip: [127, 0, 0, 1].into(),
        instance: String::new(),
    })
}
pub fn events(text: &str) -> Events {
    let ends = text.match_indices('\n').map(|(i, _)| i as u32 + 1).collect();
    Events::new(Bytes::copy_from_slice(text.as_bytes()), ends)
}

/// Counts from 0 to `end`, so many to a batch. It can go on from where it was, as stdin can.
pub struct Numbers {
    pub at: u64,
    pub end: u64,
    pub batch: u64,
    pub dice: Dice,
    origin: Arc<Origin>,
}
impl Numbers {
    pub fn new(end: u64, batch: u64, dice: &Dice) -> Self {
        Self {
            at: 0,
            end,
            batch,
            dice: dice.clone(),
            origin: Arc::new(Origin {
                host: host(),
                path: None,
                tags: Vec::new(),
            }),
        }
    }
}
impl Input for Numbers {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        for _ in 0..want.chunks {
            self.dice.roll();
            if self.at == self.end {
                return Ok(Next::Ended);
            }
            let to = self.end.min(self.at + self.batch);
            let text = (self.at..to).map(|n| format!("{n}\n")).collect::<String>();
            let (origin, read_at) = (self.origin.clone(), jiff::Timestamp::UNIX_EPOCH);
            into.push(Chunk {
                events: events(&text),
                origin,
                offset: self.at,
                read_at,
                mark: None,
            });
            self.at = to;
            self.dice.roll();
        }
        Ok(Next::More)
    }
    fn no_more(&mut self) {
        self.end = self.at;
    }
    fn rewinds(&self) -> bool {
        false
    }
}

/// Passes all; falls by the dice, and always over these.
#[derive(Default)]
pub struct Through {
    pub dice: Dice,
    pub deadly: HashSet<&'static str>,
    /// Always falls over a batch of more events than this.
    pub most: Option<usize>,
    /// How often each event came through.
    pub calls: Arc<Mutex<HashMap<Vec<u8>, u32>>>,
}
impl Filter for Through {
    fn apply(&mut self, events: Events, _: &mut Dropped) -> Events {
        self.dice.roll();
        let falls = events
            .iter()
            .any(|e| self.deadly.contains(std::str::from_utf8(e).unwrap()));
        assert!(!falls && self.most.is_none_or(|most| events.len() <= most), "fell");
        let mut calls = self.calls.lock().unwrap();
        events
            .iter()
            .for_each(|event| *calls.entry(event.to_vec()).or_default() += 1);
        drop(calls);
        events
    }
}

/// An output in memory. Like a file: what a failed write left behind is cut away by the next.
#[derive(Clone, Default)]
pub struct Target(pub Arc<TargetInner>);
#[derive(Default)]
pub struct TargetInner {
    lines: Mutex<Vec<u64>>,
    /// While set, it takes nothing and says so.
    pub broken: AtomicBool,
    /// While set, it hangs.
    pub hangs: AtomicBool,
    /// While set, its syncs hang.
    pub syncs_hang: AtomicBool,
    pub syncs: AtomicU64,
}
impl Target {
    pub fn numbers(&self) -> Vec<u64> {
        self.0.lines.lock().unwrap().clone()
    }
    pub fn len(&self) -> usize {
        self.0.lines.lock().unwrap().len()
    }
}
pub struct Memory {
    pub target: Target,
    pub dice: Dice,
    pub errs: Dice,
    settled: usize,
}
impl Memory {
    pub fn new(target: &Target, dice: &Dice, errs: &Dice) -> Self {
        Self {
            target: target.clone(),
            dice: dice.clone(),
            errs: errs.clone(),
            settled: 0,
        }
    }
}
impl Output for Memory {
    fn write(&mut self, batches: &[Batch]) -> Written {
        self.target.0.lines.lock().unwrap().truncate(self.settled);
        while self.target.0.hangs.load(SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let mut whole = self.settled; // said to be delivered only on return
        for (i, batch) in batches.iter().enumerate() {
            self.dice.roll();
            for event in batch.events.iter() {
                self.target
                    .0
                    .lines
                    .lock()
                    .unwrap()
                    .push(std::str::from_utf8(event).unwrap().parse().unwrap());
            }
            self.dice.roll();
            if self.errs.hits() || self.target.0.broken.load(SeqCst) {
                let stopped = Some(OutputError::Retry("out of order".into()));
                self.settled = whole;
                return Written { batches: i, stopped };
            }
            whole = self.target.len();
        }
        self.settled = whole;
        Written::all(batches.len())
    }
    fn syncer(&mut self) -> Syncer {
        let target = self.target.clone();
        Box::new(move || {
            while target.0.syncs_hang.load(SeqCst) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            target.0.syncs.fetch_add(1, SeqCst);
            Ok(())
        })
    }
}

/// Stands between two stages and loses messages by the dice, as a stage does whose handler falls.
struct Loses {
    to: Recipient<Carried<Ship>>,
    dice: Dice,
}
impl Actor for Loses {
    type Context = Context<Self>;
}
impl Handler<Carried<Ship>> for Loses {
    type Result = ();
    fn handle(&mut self, carried: Carried<Ship>, _: &mut Self::Context) {
        // Without a receipt it is counted as waiting already, and nobody would send it again.
        if carried.msg.receipt.is_none() || !self.dice.hits() {
            self.to.try_send(carried).ok().unwrap();
        }
    }
}
fn losing(to: Recipient<Carried<Ship>>, dice: &Dice) -> Recipient<Carried<Ship>> {
    Loses { to, dice: dice.clone() }.start().recipient()
}

pub struct Plan {
    pub input: Box<dyn Input>,
    /// Before and behind `filter`.
    pub around: [Option<Box<dyn Filter>>; 2],
    pub filter: Through,
    pub outputs: Vec<(Memory, WhenFull, WhenFull)>,
    pub read_size: u32,
    pub write_size: u32,
    pub memory: u64,
    /// The longest wait of an output before it tries again.
    pub retry: Duration,
    /// Messages between the stages are lost.
    pub losses: Dice,
}
pub struct House {
    pub metrics: SharedMetrics,
    pub stopping: Stopping,
    pub collector: Addr<Collector>,
    pub filter: Addr<FilterStage>,
    pub sinks: Vec<Addr<Sink>>,
    pub meter: PipelineMeter,
    pub meters: Vec<OutputMeter>,
    pub pulses: Vec<SharedPulse>,
    pub letters: std::path::PathBuf,
    _dir: tempfile::TempDir,
}
impl House {
    pub fn build(plan: Plan) -> Self {
        quiet();
        let dir = tempfile::tempdir().unwrap();
        let letters = Arc::new(DeadLetter::open(dir.path()).unwrap());
        let (metrics, stopping, log) = (
            Metrics::new(),
            Stopping::default(),
            slog::Logger::root(slog::Discard, slog::o!()),
        );
        let mut pulses = vec![];
        let mut pulse = |name: &str| {
            let pulse = Pulse::new(name, metrics.restarts.clone());
            pulses.push(pulse.clone());
            pulse
        };
        fn raise<A>(stopping: &Stopping, pulse: &SharedPulse, make: impl FnOnce() -> A) -> Addr<A>
        where
            A: Supervised + Actor<Context = Context<A>>,
        {
            let log = slog::Logger::root(slog::Discard, slog::o!());
            supervise(Restarts::DATA, stopping.clone(), pulse.clone(), log, |ctx, _| {
                ctx.set_mailbox_capacity(4096);
                make()
            })
            .0
        }
        let (mut sinks, mut edges, mut meters) = (vec![], vec![], vec![]);
        for (i, (output, when_full, degrade)) in plan.outputs.into_iter().enumerate() {
            let (label, pulse) = (format!("o{i}"), pulse(&format!("sink/t/o{i}")));
            let meter = OutputMeter::new(&metrics, "t", &label);
            let parts = SinkParts {
                number: i as u32,
                output: Box::new(output),
                when_full,
                degrade,
                most: Weight {
                    events: plan.write_size,
                    kib: 1024,
                },
                backoff: Backoff::new(plan.retry / 4, plan.retry),
                meter: meter.clone(),
                pipeline: "t".into(),
                label: label.as_str().into(),
                letters: letters.clone(),
                pulse: pulse.clone(),
                clock: clock::system(),
                log: log.clone(),
            };
            let addr = raise(&stopping, &pulse, || Sink::new(parts));
            let port = Port::new(
                losing(addr.clone().recipient(), &plan.losses),
                Weight {
                    events: plan.write_size,
                    kib: 1024,
                },
            );
            edges.push(Edge {
                port,
                waits: when_full == WhenFull::Block,
                meter: meter.clone(),
            });
            meters.push(meter);
            sinks.push((addr, when_full));
        }
        let meter = PipelineMeter::new(&metrics, "t");
        let filter_pulse = pulse("filter/t");
        let parts = FilterStageParts {
            filters: {
                let [before, behind] = plan
                    .around
                    .map(|filter| filter.map(|filter| ("around".to_owned(), filter)));
                let through: (String, Box<dyn Filter>) = ("through".into(), Box::new(plan.filter));
                before.into_iter().chain([through]).chain(behind).collect()
            },
            edges,
            meter: meter.clone(),
            pipeline: "t".into(),
            letters,
            pulse: filter_pulse.clone(),
            log: log.clone(),
        };
        let filter = raise(&stopping, &filter_pulse, || FilterStage::new(parts));
        let collector_pulse = pulse("collector/t");
        let parts = CollectorParts {
            input: plan.input,
            next: Port::new(
                losing(filter.clone().recipient(), &plan.losses),
                Weight {
                    events: plan.read_size,
                    kib: 1024,
                },
            ),
            sinks: sinks
                .iter()
                .filter(|(_, w)| *w == WhenFull::Block)
                .map(|(s, _)| s.clone().recipient())
                .collect(),
            outputs: sinks.len() as u32,
            journal: None,
            share: memory::shares(plan.memory, 1).remove(0),
            max_rate: None,
            meter: meter.clone(),
            pulse: collector_pulse.clone(),
            clock: clock::system(),
            log,
        };
        let collector = raise(&stopping, &collector_pulse, || Collector::new(parts));
        let sinks = sinks.into_iter().map(|(sink, _)| sink).collect();
        let letters = dir.path().join("t.jsonl");
        Self {
            metrics,
            stopping,
            collector,
            filter,
            sinks,
            meter,
            meters,
            pulses,
            letters,
            _dir: dir,
        }
    }
    /// Until the input has ended and all is settled; asked again when the Collector fell meanwhile.
    pub async fn ended(&self) {
        let limit = Duration::from_secs(60);
        let asked = async {
            while self.collector.send(AwaitEnd).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(limit, asked).await.is_err() {
            panic!("hangs: {}", self.metrics.text());
        }
    }
    /// What each output still has to do: in its own queue, and in the Collector's window.
    pub async fn waiting(&self) -> Vec<u64> {
        let mut waiting = self.collector.send(ObserveCollector).await.unwrap().waiting;
        for (i, sink) in self.sinks.iter().enumerate() {
            waiting[i] += sink.send(ObserveSink).await.unwrap().queued;
        }
        waiting
    }
    /// in = filtered + delivered + dropped + dead + waiting, at every output.
    pub async fn conserved(&self) {
        let waiting = self.waiting().await;
        for (i, meter) in self.meters.iter().enumerate() {
            let out = [
                meter.delivered.get(),
                meter.all_dropped(),
                meter.all_dead(),
                waiting[i],
                self.meter.all_filtered(),
            ];
            let what = "[delivered, dropped, dead, waiting, filtered]";
            assert_eq!(
                self.meter.events_in.get(),
                out.iter().sum::<u64>(),
                "output {i}: {what} {out:?}"
            );
        }
    }
    pub fn falls(&self) -> u64 {
        self.pulses.iter().flat_map(|p| p.causes()).map(|(_, n)| n).sum()
    }
}
pub async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
