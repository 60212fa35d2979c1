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
            collector::{Collector, CollectorParts, InputHeir, Links},
            filter_stage::{Edge, FilterStage, FilterStageParts, NextFilter},
            memory,
            meter::{OutputMeter, PipelineMeter},
            sink::{Sink, SinkHeir, SinkParts, SinkRules},
        },
        kit::{Carried, Farewell, Port, Pulse, Restarts, SharedPulse, Stopping, Weight, supervise},
    },
    clock,
    deadletter::DeadLetter,
    messages::{
        collect::{AwaitEnd, HandOver, Join, Joined, ObserveCollector, ObserveSink, Relink, Retire, Rewire, Ship},
        control::Drain,
    },
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
    /// Who writes to it.
    open: AtomicU64,
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
    /// None: not opened yet, it will go on behind what is there.
    settled: Option<usize>,
}
impl Memory {
    pub fn new(target: &Target, dice: &Dice, errs: &Dice) -> Self {
        Self {
            target: target.clone(),
            dice: dice.clone(),
            errs: errs.clone(),
            settled: None,
        }
    }
}
impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(settled) = self.settled {
            self.target.0.lines.lock().unwrap().truncate(settled);
            self.target.0.open.fetch_sub(1, SeqCst);
        }
    }
}
impl Output for Memory {
    fn write(&mut self, batches: &[Batch]) -> Written {
        let settled = match self.settled {
            Some(settled) => settled,
            None => {
                let writers = self.target.0.open.fetch_add(1, SeqCst) + 1;
                assert_eq!(writers, 1, "two write to one target");
                *self.settled.insert(self.target.len())
            }
        };
        self.target.0.lines.lock().unwrap().truncate(settled);
        while self.target.0.hangs.load(SeqCst) {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let mut whole = settled; // said to be delivered only on return
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
                self.settled = Some(whole);
                return Written { batches: i, stopped };
            }
            whole = self.target.len();
        }
        self.settled = Some(whole);
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

fn raise<A>(stopping: &Stopping, pulse: &SharedPulse, make: impl FnOnce(Farewell) -> A) -> Addr<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    let log = slog::Logger::root(slog::Discard, slog::o!());
    supervise(Restarts::DATA, stopping.clone(), pulse.clone(), log, |ctx, farewell| {
        ctx.set_mailbox_capacity(4096);
        make(farewell)
    })
    .0
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
pub fn rules(events: u32, retry: Duration, when_full: WhenFull, degrade: WhenFull) -> SinkRules {
    SinkRules {
        when_full,
        degrade,
        most: Weight { events, kib: 1024 },
        backoff: Backoff::new(retry / 4, retry),
    }
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
    edges: Vec<Edge>,
    when_full: Vec<WhenFull>,
    next: Port<Ship>,
    write_size: u32,
    dead_letter: Arc<DeadLetter>,
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
        let (mut sinks, mut edges, mut meters) = (vec![], vec![], vec![]);
        for (i, (output, when_full, degrade)) in plan.outputs.into_iter().enumerate() {
            let (label, pulse) = (format!("o{i}"), pulse(&format!("sink/t/o{i}")));
            let meter = OutputMeter::new(&metrics, "t", &label);
            let parts = SinkParts {
                number: i as u32,
                output: Box::new(output),
                rules: rules(plan.write_size, plan.retry, when_full, degrade),
                joined: None,
                meter: meter.clone(),
                pipeline: "t".into(),
                label: label.as_str().into(),
                letters: letters.clone(),
                pulse: pulse.clone(),
                clock: clock::system(),
                log: log.clone(),
            };
            let addr = raise(&stopping, &pulse, |farewell| Sink::new(parts, farewell));
            let port = Port::new(
                losing(addr.clone().recipient(), &plan.losses),
                Weight {
                    events: plan.write_size,
                    kib: 1024,
                },
            );
            edges.push(Edge {
                number: i as u32,
                port: Some(port),
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
            edges: edges.clone(),
            meter: meter.clone(),
            pipeline: "t".into(),
            letters: letters.clone(),
            pulse: filter_pulse.clone(),
            log: log.clone(),
        };
        let filter = raise(&stopping, &filter_pulse, |farewell| FilterStage::new(parts, farewell));
        let collector_pulse = pulse("collector/t");
        let next = Port::new(
            losing(filter.clone().recipient(), &plan.losses),
            Weight {
                events: plan.read_size,
                kib: 1024,
            },
        );
        let parts = CollectorParts {
            input: plan.input,
            next: next.clone(),
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
        let collector = raise(&stopping, &collector_pulse, |farewell| Collector::new(parts, farewell));
        let (sinks, when_full) = sinks.into_iter().unzip();
        let (dead_letter, letters) = (letters, dir.path().join("t.jsonl"));
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
            edges,
            when_full,
            next,
            write_size: plan.write_size,
            dead_letter,
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
        self.waiting_and_missed().await.0
    }
    /// And what came before it joined.
    pub async fn waiting_and_missed(&self) -> (Vec<u64>, Vec<u64>) {
        let view = said(&self.collector, || ObserveCollector).await;
        let (mut waiting, mut missed) = (vec![], vec![]);
        for (edge, sink) in self.edges.iter().zip(&self.sinks) {
            let queued = said(sink, || ObserveSink).await.queued;
            waiting.push(view.waiting[edge.number as usize] + queued);
            missed.push(view.missed[edge.number as usize]);
        }
        (waiting, missed)
    }
    /// in = filtered + delivered + dropped + dead + waiting, at every output.
    pub async fn conserved(&self) {
        let (waiting, missed) = self.waiting_and_missed().await;
        for (i, meter) in self.meters.iter().enumerate() {
            let out = [
                meter.delivered.get(),
                meter.all_dropped(),
                meter.all_dead(),
                waiting[i],
                missed[i],
                self.meter.all_filtered(),
            ];
            let what = "[delivered, dropped, dead, waiting, missed, filtered]";
            assert_eq!(
                self.meter.events_in.get(),
                out.iter().sum::<u64>(),
                "output {i}: {what} {out:?}"
            );
        }
    }
    // ---- what a reload does, as `actors::root::reload` does it
    /// This output's plugin is replaced, and it is told these rules. The answer comes when it was.
    pub async fn replace(&self, at: usize, output: Option<Memory>, when_full: WhenFull) {
        let heir = SinkHeir {
            output: output.map(|output| Box::new(output) as _),
            rules: rules(self.write_size, Duration::from_millis(4), when_full, when_full),
            mailbox: 4096,
        };
        let slot = Arc::new(Mutex::new(Some(heir)));
        said(&self.sinks[at], || HandOver(slot.clone())).await;
    }
    /// Other rules for an output that goes on.
    pub async fn set_policy(&mut self, at: usize, when_full: WhenFull) {
        self.when_full[at] = when_full;
        self.edges[at].waits = when_full == WhenFull::Block;
        self.replace(at, None, when_full).await;
        self.relink().await;
        self.rewire().await;
    }
    pub async fn rewire(&self) {
        said(&self.filter, || Rewire(self.edges.clone())).await;
    }
    /// Ports of another size, for all.
    pub async fn resize(&mut self, events: u32) {
        let weight = Weight { events, kib: 1024 };
        for (edge, sink) in self.edges.iter_mut().zip(&self.sinks) {
            edge.port = Some(Port::new(sink.clone().recipient(), weight));
        }
        self.next = Port::new(self.filter.clone().recipient(), weight);
        self.relink().await;
        self.rewire().await;
    }
    pub async fn relink(&self) {
        let blocking = self.sinks.iter().zip(&self.when_full);
        let links = Links {
            next: self.next.clone(),
            sinks: blocking
                .filter(|(_, w)| **w == WhenFull::Block)
                .map(|(s, _)| s.clone().recipient())
                .collect(),
            outputs: self.edges.iter().map(|edge| edge.number).collect(),
            share: 1 << 19,
            max_rate: None,
        };
        said(&self.collector, || Relink(links.clone())).await;
    }
    /// One more output; the first batch that is its own.
    pub async fn join(&mut self, output: Memory, when_full: WhenFull) -> Joined {
        let number = (0..64).find(|n| !self.edges.iter().any(|e| e.number == *n)).unwrap();
        let label = format!("o{number}");
        let meter = OutputMeter::new(&self.metrics, "t", &label);
        self.edges.push(Edge {
            number,
            port: None,
            waits: true,
            meter: meter.clone(),
        });
        self.rewire().await;
        let joined = said(&self.collector, || Join(number)).await;
        let pulse = Pulse::new(format!("sink/t/{label}"), self.metrics.restarts.clone());
        self.pulses.push(pulse.clone());
        let parts = SinkParts {
            number,
            output: Box::new(output),
            rules: rules(self.write_size, Duration::from_millis(4), when_full, when_full),
            joined: Some(joined),
            meter: meter.clone(),
            pipeline: "t".into(),
            label: label.as_str().into(),
            letters: self.dead_letter.clone(),
            pulse: pulse.clone(),
            clock: clock::system(),
            log: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let addr = raise(&self.stopping, &pulse, |farewell| Sink::new(parts, farewell));
        let weight = Weight {
            events: self.write_size,
            kib: 1024,
        };
        let edge = self.edges.last_mut().unwrap();
        edge.port = Some(Port::new(addr.clone().recipient(), weight));
        edge.waits = when_full == WhenFull::Block;
        self.sinks.push(addr);
        self.when_full.push(when_full);
        self.meters.push(meter);
        self.relink().await;
        self.rewire().await;
        joined
    }
    /// The output leaves; its counters.
    pub async fn remove(&mut self, at: usize, drained: bool) -> OutputMeter {
        self.edges.remove(at);
        self.when_full.remove(at);
        let (sink, meter) = (self.sinks.remove(at), self.meters.remove(at));
        self.rewire().await;
        self.relink().await;
        if drained {
            said(&sink, || Drain).await;
        }
        said(&sink, || Retire).await;
        until("it has left for good", async || !sink.connected()).await;
        meter
    }
    pub async fn change_filters(&self, next: Vec<NextFilter>) {
        let slot = Arc::new(Mutex::new(Some(next)));
        said(&self.filter, || HandOver(slot.clone())).await;
    }
    pub async fn change_input(&self, input: impl Input + 'static) {
        let heir = InputHeir {
            input: Box::new(input),
            board: Arc::default(),
        };
        let slot = Arc::new(Mutex::new(Some(heir)));
        said(&self.collector, || HandOver(slot.clone())).await;
    }
    pub fn falls(&self) -> u64 {
        self.pulses.iter().flat_map(|p| p.causes()).map(|(_, n)| n).sum()
    }
}
/// Asks again when the message was lost in a fall.
pub async fn said<A, M>(addr: &Addr<A>, message: impl Fn() -> M) -> M::Result
where
    M: Message + Send + 'static,
    M::Result: Send,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    let limit = Duration::from_secs(60);
    let asked = async {
        loop {
            match addr.send(message()).await {
                Ok(answer) => return answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    tokio::time::timeout(limit, asked)
        .await
        .expect("an answer within a minute")
}
pub async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
