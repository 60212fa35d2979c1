//! Mounts an Output: writes batches in the order of their lane, settles what is delivered, tries again for ever what is not.
//! Hears: Ship, SyncNow, Hurry, Reopen, AwaitClosed, HandOver, Drain, Retire, ObserveSink. Bound: its Port's room; an output that drops lets go of the
//! room on entry and bounds its own queue. Waits: for the far side, on a blocking thread.
mod letters;
mod reload;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;

use crate::{
    actors::{
        collect::meter::OutputMeter,
        kit::{
            Carried, Errand, Farewell, Later, Restarts, SharedPulse, Weight, errand::guarded, port::Permits,
            supervise::Falls,
        },
    },
    clock::SharedClock,
    deadletter::DeadLetter,
    messages::{
        collect::{AwaitClosed, Hurry, Joined, ObserveSink, Ship, SinkView, SyncNow},
        control::{Drain, Reopen},
        receipt::Receipt,
    },
    model::{Batch, Lane},
    plugins::outputs::{Output, OutputError, Written},
    retry::{Backoff, Breaker, BreakerState},
    settings::WhenFull,
};

/// What waits is joined into one write, up to so much: more is not faster and would be repeated whole after a failure.
const JOIN_BYTES: usize = 1024 * 1024;
const JOIN_BATCHES: usize = 64;
/// A batch over which the plugin panics so often in a row goes to the dead letter.
const PANICS: u32 = 3;
/// After a stop has begun nothing waits longer than this.
const HURRIED: Duration = Duration::from_millis(200);

pub struct SinkParts {
    /// Its place among the pipeline's outputs.
    pub number: u32,
    pub output: Box<dyn Output>,
    pub rules: SinkRules,
    /// It joins a pipeline that runs: its first batch.
    pub joined: Option<Joined>,
    pub meter: OutputMeter,
    pub pipeline: Arc<str>,
    pub label: Arc<str>,
    pub letters: Arc<DeadLetter>,
    pub pulse: SharedPulse,
    pub clock: SharedClock,
    pub log: slog::Logger,
}

/// What the stage itself is told, beside its output.
#[derive(Clone)]
pub struct SinkRules {
    pub when_full: WhenFull,
    pub degrade: WhenFull,
    /// Bounds the queue of an output that drops.
    pub most: Weight,
    pub backoff: Backoff,
}
/// What takes over in a reload.
pub struct SinkHeir {
    /// None: the present one goes on, under other rules.
    pub output: Option<Box<dyn Output>>,
    pub rules: SinkRules,
    /// Messages without a Port that may wait.
    pub mailbox: usize,
}

pub struct Sink {
    parts: Parts,
    farewell: Farewell,
    // Survives a fall.
    output: Option<Box<dyn Output>>, // away while it works
    heir: Option<Box<dyn Output>>,   // takes its place when it is back
    errand: Option<Errand<Done>>,
    lanes: HashMap<Lane, u64>, // the next seq of each
    queue: VecDeque<Waiting>,
    queued: (usize, usize), // events and bytes in it
    in_flight: usize,       // batches, from the front, that are being written
    breaker: Breaker,
    backoff: Backoff,
    falls: Falls,
    panics: u32, // in a row, over the same front
    error: Option<String>,
    condemned: Option<(String, &'static str)>, // the front goes to the dead letter: what was said, and the reason
    closed: Option<String>,
    hurried: bool,
    reopen: bool,
    draining: bool,
    drained: bool,
    await_sync: Later<Result<(), String>>,
    syncing: Later<Result<(), String>>,
    syncer: Option<Errand<Result<(), String>>>,
    sync_broken: Option<String>,
    await_closed: Later<String>,
    await_heir: Later<()>,
    await_drain: Later<()>,
    // Made anew in each life.
    pumping: bool,
    watching: bool,
    watching_sync: bool,
    resting: Option<SpawnHandle>,
}
struct Parts {
    number: u32,
    rules: SinkRules,
    meter: OutputMeter,
    pipeline: Arc<str>,
    label: Arc<str>,
    letters: Arc<DeadLetter>,
    pulse: SharedPulse,
    clock: SharedClock,
    log: slog::Logger,
}
struct Waiting {
    batch: Batch,
    /// None for an output that drops, or for one that has begun to.
    receipts: Vec<Receipt>,
    /// The outcome's bit is set already: the batch counts as waiting here until it is delivered or dropped.
    entered: bool,
    _room: Option<Permits>,
}
/// Without a receipt nobody sends a lost message again, and it counts as waiting already: so a fall counts it as dropped.
struct Uncounted<'a> {
    meter: &'a OutputMeter,
    events: usize,
}
impl Uncounted<'_> {
    fn arrived(mut self) {
        self.events = 0;
    }
}
impl Drop for Uncounted<'_> {
    fn drop(&mut self) {
        self.meter.dropped("fell", self.events);
    }
}
enum Done {
    /// The outer error is a panic.
    Wrote(Box<dyn Output>, Result<Written, String>),
    Closed(Box<dyn Output>, Result<(), String>),
    /// It is gone, and whatever it held with it.
    LetGo(Result<(), String>),
    Buried(Result<(), String>),
}

impl Sink {
    pub fn new(parts: SinkParts, farewell: Farewell) -> Self {
        let SinkParts {
            number,
            output,
            rules,
            joined,
            meter,
            pipeline,
            label,
            letters,
            pulse,
            clock,
            log,
        } = parts;
        Self {
            backoff: rules.backoff.clone(),
            parts: Parts {
                number,
                rules,
                meter,
                pipeline,
                label,
                letters,
                pulse,
                clock,
                log,
            },
            farewell,
            output: Some(output),
            heir: None,
            errand: None,
            lanes: joined.map(|Joined { lane, seq }| (lane, seq)).into_iter().collect(),
            queue: VecDeque::new(),
            queued: (0, 0),
            in_flight: 0,
            breaker: Breaker::default(),
            falls: Falls::new(Restarts::DATA),
            panics: 0,
            error: None,
            condemned: None,
            closed: None,
            hurried: false,
            reopen: false,
            draining: false,
            drained: false,
            pumping: false,
            watching: false,
            resting: None,
            await_sync: Later::default(),
            syncing: Later::default(),
            syncer: None,
            sync_broken: None,
            watching_sync: false,
            await_closed: Later::default(),
            await_heir: Later::default(),
            await_drain: Later::default(),
        }
    }
}
impl Actor for Sink {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        (self.pumping, self.watching, self.watching_sync, self.resting) = (false, false, false, None);
        self.pump(ctx);
    }
}
impl Supervised for Sink {}

impl Handler<Carried<Ship>> for Sink {
    type Result = ();
    fn handle(
        &mut self,
        Carried {
            msg: Ship { batch, receipt },
            room,
        }: Carried<Ship>,
        ctx: &mut Self::Context,
    ) {
        let uncounted = Uncounted {
            meter: &self.parts.meter,
            events: if receipt.is_none() { batch.events.len() } else { 0 },
        };
        fail::fail_point!("sink-hear"); // a message lost: its receipt says "again"
        uncounted.arrived();
        let (lane, seq) = (batch.lane, batch.seq);
        let next = self.lanes.entry(lane).or_insert(batch.low);
        *next = batch.low.max(*next);
        if seq < *next {
            match self
                .queue
                .iter_mut()
                .find(|w| (w.batch.lane, w.batch.seq) == (lane, seq))
            {
                Some(waiting) if !waiting.entered => waiting.receipts.extend(receipt),
                _ => receipt.into_iter().for_each(Receipt::settle),
            }
            return;
        }
        let waiting = match receipt {
            Some(_) if seq > *next => return, // out of turn: its receipt says "again"
            Some(receipt) => Waiting {
                batch,
                receipts: vec![receipt],
                entered: false,
                _room: Some(room),
            },
            None => Waiting {
                batch,
                receipts: vec![],
                entered: true,
                _room: None,
            }, // and the room is free again
        };
        self.queued.0 += waiting.batch.events.len();
        self.queued.1 += waiting.batch.events.buffer().len();
        self.queue.push_back(waiting);
        *next = seq + 1;
        self.bound();
        self.pump_soon(ctx);
    }
}
impl Handler<SyncNow> for Sink {
    type Result = ResponseFuture<Result<(), String>>;
    fn handle(&mut self, _: SyncNow, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.await_sync.ask();
        self.pump(ctx);
        answer
    }
}
impl Handler<Hurry> for Sink {
    type Result = ();
    fn handle(&mut self, _: Hurry, ctx: &mut Self::Context) {
        self.hurried = true;
        if let Some(timer) = self.resting.take() {
            ctx.cancel_future(timer);
        }
        self.pump(ctx);
    }
}
impl Handler<Reopen> for Sink {
    type Result = ();
    fn handle(&mut self, _: Reopen, ctx: &mut Self::Context) {
        self.reopen = true;
        if let Some(timer) = self.resting.take() {
            ctx.cancel_future(timer); // whoever mended the target wants to see it at once
        }
        self.pump(ctx);
    }
}
impl Handler<AwaitClosed> for Sink {
    type Result = ResponseFuture<String>;
    fn handle(&mut self, _: AwaitClosed, _: &mut Self::Context) -> Self::Result {
        let answer = self.await_closed.ask();
        self.tell_closed();
        answer
    }
}
impl Handler<Drain> for Sink {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let answer = self.await_drain.ask();
        self.pump(ctx);
        answer
    }
}
impl Handler<ObserveSink> for Sink {
    type Result = MessageResult<ObserveSink>;
    fn handle(&mut self, _: ObserveSink, _: &mut Self::Context) -> Self::Result {
        let queued = self
            .queue
            .iter()
            .filter(|w| w.entered)
            .map(|w| w.batch.events.len() as u64)
            .sum();
        MessageResult(SinkView {
            queued,
            breaker: self.breaker_word(),
            error: self.error.clone(),
        })
    }
}

impl Sink {
    fn breaker_state(&self) -> BreakerState {
        self.breaker.state(self.parts.clock.steady())
    }
    fn breaker_word(&self) -> &'static str {
        match self.breaker_state() {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half-open",
            BreakerState::Open => "open",
        }
    }
    fn tell_closed(&mut self) {
        if let Some(why) = &self.closed {
            self.await_closed.tell(why.clone());
        }
    }

    /// Keeps the queue of an output that may drop within its bounds.
    fn bound(&mut self) {
        // An output that drops always does: nobody else bounds its queue.
        let SinkRules {
            when_full,
            degrade,
            most,
            ..
        } = self.parts.rules.clone();
        let degrades = self.breaker.is_broken() && degrade != WhenFull::Block;
        let policy = if degrades { degrade } else { when_full };
        if policy == WhenFull::Block {
            return;
        }
        // What is being written, or was begun, is never dropped.
        let begun = usize::from(self.error.is_some() || self.panics > 0 || self.condemned.is_some());
        let first = self.in_flight.max(begun);
        // It degrades, or blocked before a reload: from now on it holds nobody back, not even with the front.
        for waiting in self.queue.iter_mut().filter(|w| !w.entered) {
            waiting.batch.outcome.account(self.parts.number);
            waiting.entered = true;
            waiting.receipts.drain(..).for_each(Receipt::settle);
            waiting._room = None;
        }
        let reason = if policy == when_full { "full" } else { "degraded" };
        let Weight { events, kib } = most;
        while self.queue.len() > first + 1 && (self.queued.0 > events as usize || self.queued.1 > kib as usize * 1024) {
            let at = if policy == WhenFull::DropOldest {
                first
            } else {
                self.queue.len() - 1
            };
            let Some(gone) = self.remove(at) else { return };
            self.parts.meter.dropped(reason, gone.batch.events.len());
        }
    }
    fn remove(&mut self, at: usize) -> Option<Waiting> {
        let gone = self.queue.remove(at)?;
        self.queued.0 -= gone.batch.events.len();
        self.queued.1 -= gone.batch.events.buffer().len();
        Some(gone)
    }
    /// How many batches, from the front, one write takes.
    fn joined(&self) -> usize {
        if self.panics > 0 || self.condemned.is_some() {
            return 1; // to find the one
        }
        let mut bytes = 0;
        let fits = |w: &&Waiting| {
            bytes += w.batch.events.size();
            bytes <= JOIN_BYTES
        };
        self.queue.iter().take(JOIN_BATCHES).take_while(fits).count().max(1)
    }

    /// After the rest of the mailbox: what has come together is written together.
    fn pump_soon(&mut self, ctx: &mut Context<Self>) {
        if self.errand.is_none() && !std::mem::replace(&mut self.pumping, true) {
            ctx.spawn(fut::ready(()).map(|(), me: &mut Self, ctx: &mut Context<Self>| {
                me.pumping = false;
                me.pump(ctx);
            }));
        }
    }
    fn pump(&mut self, ctx: &mut Context<Self>) {
        if let Some(errand) = &self.errand {
            if !std::mem::replace(&mut self.watching, true) {
                ctx.spawn(errand.done().into_actor(self).map(|(), me, ctx| me.finish(ctx)));
            }
            return;
        }
        if self.await_sync.is_asked() || self.syncer.is_some() {
            self.sync(ctx);
        }
        if self.heir.is_some() && !self.drained {
            return self.succeed(ctx);
        }
        self.await_heir.tell(());
        if self.closed.is_some() {
            if self.draining {
                self.await_drain.tell(()); // what it holds can go nowhere
            }
            return;
        }
        if self.resting.is_some() {
            return;
        }
        if self.condemned.is_some() {
            return self.bury(ctx);
        }
        if !self.queue.is_empty() {
            fail::fail_point!("sink-take");
            self.in_flight = self.joined();
            let batches = self
                .queue
                .iter()
                .take(self.in_flight)
                .map(|w| w.batch.clone())
                .collect::<Vec<_>>();
            let reopen = std::mem::take(&mut self.reopen);
            return self.start(ctx, move |mut output| {
                let result = guarded(&mut output, |output| {
                    if reopen {
                        output.reopen();
                    }
                    fail::fail_point!("sink-write");
                    output.write(&batches)
                });
                Done::Wrote(output, result)
            });
        }
        if std::mem::take(&mut self.reopen)
            && let Some(output) = &mut self.output
        {
            output.reopen();
        }
        if self.draining && !self.drained {
            return self.start(ctx, |mut output| {
                let result = guarded(&mut output, |output| output.close().map_err(|error| error.to_string()));
                Done::Closed(output, result.unwrap_or_else(Err))
            });
        }
        if self.drained {
            self.await_drain.tell(());
        }
    }
    fn show_breaker(&self) {
        self.parts.meter.breaker.set(match self.breaker_state() {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        });
    }
    /// The disk may take its time: the next writes go on meanwhile. The sync itself outlives a fall, and the next life hears of it.
    fn sync(&mut self, ctx: &mut Context<Self>) {
        if self.syncer.is_none() {
            let Some(output) = &mut self.output else { return };
            self.syncing.append(&mut self.await_sync);
            if let Some(error) = &self.sync_broken {
                return self.syncing.tell(Err(error.clone()));
            }
            let made = guarded(output, |output| output.syncer());
            self.syncer = Some(Errand::start(move || {
                let mut syncer = Some(made?);
                let done = guarded(&mut syncer, |syncer| syncer.take().map_or(Ok(()), |syncer| syncer()))?;
                done.map_err(|error| error.to_string())
            }));
        }
        let Some(syncer) = &self.syncer else { return };
        if std::mem::replace(&mut self.watching_sync, true) {
            return;
        }
        ctx.spawn(syncer.done().into_actor(self).map(|(), me, ctx| {
            me.watching_sync = false;
            let result = me.syncer.take().and_then(Errand::take).unwrap_or_else(|| Err("the sync was lost".into()));
            if let Err(error) = &result {
                slog::error!(me.parts.log, "output cannot sync: after a power loss more would be repeated"; "error" => error);
                // The next sync may succeed although what this one was for is not safe: until the next start nothing counts as synced.
                me.sync_broken = Some(error.clone());
            }
            me.syncing.tell(result);
            me.pump(ctx);
        }));
    }
    fn start(&mut self, ctx: &mut Context<Self>, work: impl FnOnce(Box<dyn Output>) -> Done + Send + 'static) {
        let Some(output) = self.output.take() else { return };
        self.errand = Some(Errand::start(move || work(output)));
        self.pump(ctx);
    }
    fn limited(&self, wait: Duration) -> Duration {
        if self.hurried { wait.min(HURRIED) } else { wait }
    }
    fn rest(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.resting = Some(ctx.run_later(wait, |me, ctx| {
            me.resting = None;
            me.pump(ctx);
        }));
    }

    /// What the plugin brought back. In single steps, after all that can fall.
    fn finish(&mut self, ctx: &mut Context<Self>) {
        self.watching = false;
        fail::fail_point!("sink-settle");
        self.in_flight = 0;
        match self.errand.take().and_then(Errand::take) {
            Some(Done::Wrote(output, result)) => {
                self.output = Some(output);
                match result {
                    Ok(written) => self.wrote(written, ctx),
                    Err(panic) => self.panicked(panic, ctx),
                }
            }
            Some(Done::Closed(output, result)) => {
                self.output = Some(output);
                if let Err(error) = result {
                    slog::error!(self.parts.log, "output could not be closed cleanly"; "error" => &error);
                    self.error = Some(error);
                }
                self.drained = true;
                self.parts.pulse.drained();
            }
            Some(Done::LetGo(Ok(()))) => {}
            Some(Done::LetGo(Err(error))) => {
                slog::error!(self.parts.log, "the replaced output could not be closed cleanly"; "error" => &error);
                // What it delivered may not survive a power loss: as after a sync that failed.
                self.sync_broken = Some(error);
            }
            Some(Done::Buried(result)) => self.buried(result, ctx),
            None => self.error = Some("the output was lost with its thread".into()),
        }
        self.pump(ctx);
    }
    fn wrote(&mut self, Written { batches, stopped }: Written, ctx: &mut Context<Self>) {
        for _ in 0..batches {
            let Some(Waiting {
                batch,
                receipts,
                entered,
                ..
            }) = self.remove(0)
            else {
                break;
            };
            if entered || batch.outcome.account(self.parts.number) {
                self.parts.meter.delivered.inc_by(batch.events.len() as u64);
                self.parts.meter.delivered_bytes.inc_by(batch.events.size() as u64);
            }
            receipts.into_iter().for_each(Receipt::settle);
        }
        if batches > 0 {
            self.panics = 0;
            self.falls.over(&self.parts.pulse);
            self.parts.pulse.progressed();
        }
        match stopped {
            // It is still at it: neither a success nor a failure.
            None if batches == 0 => {}
            None => {
                if self.error.take().is_some() {
                    slog::info!(self.parts.log, "output works again");
                }
                self.breaker.succeeded();
                self.backoff.reset();
            }
            Some(OutputError::Retry(error)) => {
                let wait = self.backoff.next();
                let wait = self.limited(wait);
                self.breaker.failed(self.parts.clock.steady(), wait);
                self.parts.meter.retries.inc();
                if !self.hurried || self.error.as_ref() != Some(&error) {
                    slog::warn!(self.parts.log, "output failed, trying again"; "error" => &error,
                        "attempt" => self.backoff.attempt(), "next_in" => ?wait, "waiting_batches" => self.queue.len());
                }
                self.error = Some(error);
                self.bound();
                self.rest(wait, ctx);
            }
            Some(OutputError::Refused(error)) => self.condemned = Some((error, "refused")),
            Some(OutputError::Closed(why)) => {
                slog::info!(self.parts.log, "the far side has left"; "error" => &why);
                self.error = Some(why.clone());
                self.closed = Some(why);
                self.tell_closed();
            }
        }
        self.show_breaker();
    }
    fn panicked(&mut self, panic: String, ctx: &mut Context<Self>) {
        self.panics += 1;
        let wait = self.falls.another(&panic, &self.parts.pulse);
        let wait = self.limited(wait);
        slog::warn!(self.parts.log, "output panicked, trying again"; "cause" => &panic, "in_a_row" => self.panics, "next_in" => ?wait);
        if self.panics >= PANICS {
            self.condemned = Some((panic, "panic"));
        } else {
            self.rest(wait, ctx);
        }
    }
}
