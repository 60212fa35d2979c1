//! Mounts an Input: reads batches, numbers them, sends them on, and keeps each until everyone who had to has settled it.
//! Hears: Fate, AwaitEnd, Join, Relink, HandOver, Drain, Retire, ObserveCollector. Says: Ship → FilterStage, SyncNow → Sinks.
//! Bound: the window (`WINDOW` batches, and its Share of the memory). Waits: for the input, on a blocking thread; for room.
mod checkpoints;
mod reload;

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use futures_util::{
    future::{AbortHandle, abortable},
    stream,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

pub use self::reload::{InputHeir, Links};
use self::{checkpoints::lock, reload::Missed};
use crate::{
    actors::{
        collect::{memory::Share, meter::PipelineMeter, rate::Rate},
        kit::{Errand, Farewell, Later, Port, Restarts, Room, SharedPulse, Weight, errand::guarded, supervise::Falls},
    },
    checkpoint::SharedJournal,
    clock::SharedClock,
    messages::{
        collect::{AwaitEnd, CollectorView, ObserveCollector, Ship, SyncNow},
        control::Drain,
        receipt::{Fate, Receipt},
    },
    model::{Batch, Chunk, Lane, Outcome},
    plugins::inputs::{Input, InputError, News, Next, Want},
};

/// Batches that may be under way: so many that reading, sending and writing go on side by side in groups of `CHUNKS_A_READ`.
const WINDOW: usize = 16;
/// So many chunks in one call of `read`: it shares the cost of the hand-over to the blocking thread.
const CHUNKS_A_READ: usize = 4;
const CHUNK: u64 = 256 * 1024;
const TEND_EVERY: Duration = Duration::from_millis(500);
const INPUT_RETRY: Restarts = Restarts {
    first: Duration::from_millis(100),
    most: Duration::from_secs(5),
    healthy_after: Duration::from_secs(1),
};

pub struct CollectorParts {
    pub input: Box<dyn Input>,
    pub next: Port<Ship>,
    /// Those that block or spill: a checkpoint waits for them.
    pub sinks: Vec<Recipient<SyncNow>>,
    /// One more than the highest number of an output.
    pub outputs: u32,
    pub journal: Option<SharedJournal>,
    pub share: Share,
    pub max_rate: Option<u64>,
    pub meter: PipelineMeter,
    pub pulse: SharedPulse,
    pub clock: SharedClock,
    pub log: slog::Logger,
}

pub struct Collector {
    parts: Parts,
    farewell: Farewell,
    // Survives a fall: changed in single steps, after all that can fail.
    lane: Lane,
    input: Option<Box<dyn Input>>, // away while it reads
    heir: Option<InputHeir>,       // takes its place when all is settled
    passed: u64,                   // events of batches that have left the window, less those that were filtered away
    joins: HashMap<u32, Missed>,   // outputs that joined later, by number
    reading: Option<Errand<ReadDone>>,
    window: VecDeque<Slot>, // batches low .. low + len
    low: u64,
    share: Share,
    rate: Option<Rate>,
    ended: bool,
    draining: bool,
    drained: bool,
    attempt: u32,
    went_back_at: Option<(u64, u32)>, // the low at which it went back last, and how often in a row
    falls: Falls,
    errors_in_a_row: u32,
    error: Option<String>,
    note: Option<String>,
    checkpoint_error: Option<String>,
    unwritten: bool, // settled marks that the journal's file does not have yet
    unsynced: bool,
    tell_settled: bool,
    await_end: Later<()>,
    await_heir: Later<()>,
    await_drain: Later<()>,
    tell: UnboundedSender<Fate>, // as many as there are batches in the window
    fates: Rc<RefCell<UnboundedReceiver<Fate>>>,
    // Made anew in each life.
    to_send: u64,
    sending: bool,
    waits_for_room: Option<AbortHandle>,
    watching: bool, // the read under way
    resting: bool,  // until a timer wakes it
    tending: bool,
    checkpointing: bool,
    syncing: bool,
    concluding: bool,
}
struct Parts {
    next: Port<Ship>,
    sinks: Vec<Recipient<SyncNow>>,
    outputs: u32,
    journal: Option<SharedJournal>,
    meter: PipelineMeter,
    pulse: SharedPulse,
    clock: SharedClock,
    log: slog::Logger,
    rewinds: bool,
}
struct Slot {
    chunk: Chunk,
    outcome: Arc<Outcome>,
    settled: bool,
}
impl Slot {
    /// How many of its events were not filtered away.
    fn passing(&self) -> u64 {
        let events = self.outcome.filtered.get().unwrap_or(&self.chunk.events).len() as u64;
        events + self.outcome.buried.load(Relaxed)
    }
}
struct ReadDone {
    input: Box<dyn Input>,
    chunks: Vec<Chunk>,
    claimed: u64,
    /// The outer error is a panic.
    result: Result<Result<Next, InputError>, String>,
}

impl Collector {
    pub fn new(parts: CollectorParts, farewell: Farewell) -> Self {
        let CollectorParts {
            input,
            next,
            sinks,
            outputs,
            journal,
            share,
            max_rate,
            meter,
            pulse,
            clock,
            log,
        } = parts;
        let (tell, fates) = unbounded_channel();
        Self {
            lane: Lane::fresh(),
            rate: max_rate.map(|rate| Rate::new(rate, clock.steady())),
            parts: Parts {
                rewinds: input.rewinds(),
                next,
                sinks,
                outputs,
                journal,
                meter,
                pulse,
                clock,
                log,
            },
            farewell,
            input: Some(input),
            heir: None,
            passed: 0,
            joins: HashMap::new(),
            reading: None,
            window: VecDeque::with_capacity(WINDOW),
            low: 0,
            share,
            ended: false,
            draining: false,
            drained: false,
            attempt: 0,
            went_back_at: None,
            falls: Falls::new(Restarts::DATA),
            errors_in_a_row: 0,
            error: None,
            note: None,
            checkpoint_error: None,
            unwritten: false,
            unsynced: false,
            tell_settled: false,
            tell,
            fates: Rc::new(RefCell::new(fates)),
            to_send: 0,
            sending: false,
            waits_for_room: None,
            watching: false,
            resting: false,
            tending: false,
            checkpointing: false,
            syncing: false,
            concluding: false,
            await_end: Later::default(),
            await_heir: Later::default(),
            await_drain: Later::default(),
        }
    }
}

impl Actor for Collector {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        let fates = self.fates.clone();
        ctx.add_stream(stream::poll_fn(move |cx| fates.borrow_mut().poll_recv(cx)));
        self.waits_for_room = None;
        (self.sending, self.watching, self.resting, self.tending) = (false, false, false, false);
        (self.checkpointing, self.syncing, self.concluding) = (false, false, false);
        (self.unwritten, self.unsynced) = (true, true); // a checkpoint under way fell with the last life
        self.hear_settled();
        self.go_back();
        self.pump(ctx);
        self.checkpoint_later(ctx);
        self.sync_later(ctx);
    }
}
impl Supervised for Collector {}

impl StreamHandler<Fate> for Collector {
    fn handle(&mut self, fate: Fate, ctx: &mut Self::Context) {
        if fate.seq >= self.low {
            if fate.settled {
                self.settle(fate.seq);
            } else if fate.attempt == self.attempt {
                let wait = self.go_back();
                if !wait.is_zero() && !self.sending {
                    self.sending = true;
                    ctx.run_later(wait, |me, ctx| {
                        me.sending = false;
                        me.pump(ctx);
                    });
                }
            }
        }
        fail::fail_point!("collector-settle");
        self.checkpoint_later(ctx);
        self.sync_later(ctx);
        self.pump(ctx);
    }
    fn finished(&mut self, _: &mut Self::Context) {} // never: `tell` is a field
}

impl Handler<AwaitEnd> for Collector {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: AwaitEnd, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.await_end.ask();
        self.pump(ctx);
        answer
    }
}
impl Handler<Drain> for Collector {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let answer = self.await_drain.ask();
        self.pump(ctx);
        answer
    }
}
impl Handler<ObserveCollector> for Collector {
    type Result = MessageResult<ObserveCollector>;
    fn handle(&mut self, _: ObserveCollector, _: &mut Self::Context) -> Self::Result {
        let mut view = CollectorView {
            ended: self.ended && self.window.is_empty(),
            waiting: vec![0; self.parts.outputs as usize],
            missed: vec![0; self.parts.outputs as usize],
            error: self.error.clone(),
            note: self.note.clone(),
            checkpoint_error: self.checkpoint_error.clone(),
            rewinds: self.parts.rewinds,
            ..CollectorView::default()
        };
        for slot in &self.window {
            let events = slot.outcome.filtered.get().unwrap_or(&slot.chunk.events).len() as u64;
            view.unsettled += if slot.settled { 0 } else { events };
            for (output, waiting) in view.waiting.iter_mut().enumerate() {
                *waiting += if slot.outcome.is_accounted(output as u32) {
                    0
                } else {
                    events
                };
            }
        }
        for (output, Missed { before, passed }) in &self.joins {
            let within = (self.low..*before).zip(&self.window).map(|(_, slot)| slot.passing());
            if let Some(missed) = view.missed.get_mut(*output as usize) {
                *missed = passed + within.sum::<u64>();
            }
        }
        MessageResult(view)
    }
}

// ---- reading and sending
impl Collector {
    fn end(&self) -> u64 {
        self.low + self.window.len() as u64
    }

    fn pump(&mut self, ctx: &mut Context<Self>) {
        self.read_on(ctx);
        self.send_on(ctx);
        if self.window.is_empty() && self.reading.is_none() {
            if self.heir.is_some() && !self.draining && (self.parts.rewinds || self.ended) {
                return self.succeed(ctx);
            }
            if self.ended {
                self.await_end.tell(());
            }
            if self.draining && (self.parts.rewinds || self.ended) {
                self.conclude(ctx);
            }
        }
    }

    fn read_on(&mut self, ctx: &mut Context<Self>) {
        if let Some(reading) = &self.reading {
            if !std::mem::replace(&mut self.watching, true) {
                ctx.spawn(reading.done().into_actor(self).map(|(), me, ctx| me.finish_read(ctx)));
            }
            return;
        }
        let leaving = self.draining || self.heir.is_some();
        if self.ended || self.resting || (leaving && self.parts.rewinds) {
            return;
        }
        if leaving && let Some(input) = &mut self.input {
            input.no_more(); // what it has taken from its source would be gone
        }
        // Not for one place that became free: a read costs waking a thread, for one chunk as for four.
        if self.window.len() + CHUNKS_A_READ > WINDOW {
            return self.tend_later(ctx);
        }
        fail::fail_point!("collector-read");
        let mut most = CHUNK * CHUNKS_A_READ as u64;
        if let Some(rate) = &mut self.rate {
            match rate.allow(self.parts.clock.steady()) {
                Ok(allowed) => most = most.min(allowed),
                Err(wait) => return self.rest(wait, ctx),
            }
        }
        let mut claimed = self.share.claim(most);
        if claimed < most.min(CHUNK) && !self.window.is_empty() {
            self.share.give_back(claimed);
            return self.tend_later(ctx); // what is settled makes room, and pumps
        }
        if claimed < most.min(CHUNK) {
            let missing = most.min(CHUNK) - claimed; // at least one batch, else nothing would ever move
            self.share.exceed(missing);
            claimed += missing;
        }
        let want = Want {
            chunks: CHUNKS_A_READ,
            bytes: claimed as usize,
        };
        self.read(Some(want), claimed, ctx);
    }
    /// There is no room to read into, perhaps for long: the input still has to look after its files.
    fn tend_later(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.tending, true) {
            return;
        }
        ctx.run_later(TEND_EVERY, |me, ctx| {
            me.tending = false;
            if me.reading.is_none() && !me.ended && !me.draining && me.heir.is_none() && !me.resting {
                me.tell_settled = true;
                me.read(None, 0, ctx);
            }
        });
    }
    fn read(&mut self, want: Option<Want>, claimed: u64, ctx: &mut Context<Self>) {
        let Some(mut input) = self.input.take() else { return };
        let mut chunks = Vec::with_capacity(CHUNKS_A_READ);
        let tell_settled = std::mem::take(&mut self.tell_settled);
        if let (Some(want), false) = (want, tell_settled) {
            let at_once = guarded(&mut input, |input| input.read_at_once(want, &mut chunks));
            if let Some(result) = at_once.transpose() {
                let done = ReadDone {
                    input,
                    chunks,
                    claimed,
                    result,
                };
                self.reading = Some(Errand::done_with(done));
                return self.read_on(ctx);
            }
        }
        self.reading = Some(Errand::start(move || {
            let result = guarded(&mut input, |input| {
                if tell_settled {
                    input.settled();
                }
                want.map_or(Ok(Next::More), |want| input.read(want, &mut chunks))
            });
            ReadDone {
                input,
                chunks,
                claimed,
                result,
            }
        }));
        self.read_on(ctx);
    }

    fn finish_read(&mut self, ctx: &mut Context<Self>) {
        self.watching = false;
        fail::fail_point!("collector-read");
        let Some(ReadDone {
            input,
            chunks,
            claimed,
            result,
        }) = self.reading.take().and_then(Errand::take)
        else {
            self.error = Some("the input was lost with its thread".into());
            self.ended = true;
            return self.pump(ctx);
        };
        if self.note.as_deref() != input.note() {
            self.note = input.note().map(str::to_owned);
        }
        self.input = Some(input);
        let mut bytes = 0;
        for chunk in chunks {
            bytes += chunk.events.buffer().len() as u64;
            self.parts.meter.events_in.inc_by(chunk.events.len() as u64);
            self.parts.meter.bytes_in.inc_by(chunk.events.size() as u64);
            self.window.push_back(Slot {
                chunk,
                outcome: Arc::default(),
                settled: false,
            });
        }
        if bytes > claimed {
            self.share.exceed(bytes - claimed);
        } else {
            self.share.give_back(claimed - bytes);
        }
        if let Some(rate) = &mut self.rate {
            rate.took(bytes);
        }
        match result {
            Ok(Ok(next)) => {
                self.falls.over(&self.parts.pulse);
                if self.error.take().is_some() {
                    slog::info!(self.parts.log, "input can be read again");
                }
                self.errors_in_a_row = 0;
                self.unwritten |= self.parts.journal.is_some(); // it may have met new files
                self.checkpoint_later(ctx);
                match next {
                    Next::More => {}
                    Next::Idle(wait) => match self.input.as_ref().and_then(|input| input.news()) {
                        Some(news) => self.rest_or_hear(wait, news, ctx),
                        None => self.rest(wait, ctx),
                    },
                    Next::Ended => self.ended = true,
                }
            }
            Ok(Err(InputError(error))) => {
                self.errors_in_a_row += 1;
                let wait = INPUT_RETRY.delay(self.errors_in_a_row);
                slog::warn!(self.parts.log, "input cannot be read, trying again"; "error" => &error,
                    "attempt" => self.errors_in_a_row, "next_in" => ?wait);
                self.error = Some(error);
                self.rest(wait, ctx);
            }
            Err(panic) => {
                let wait = self.falls.another(&panic, &self.parts.pulse);
                slog::warn!(self.parts.log, "input panicked, reading on from where it was"; "cause" => panic, "next_in" => ?wait);
                self.rest(wait, ctx);
            }
        }
        self.pump(ctx);
    }
    /// Rests until there are news, but for the first moment: what comes in that one is read together.
    fn rest_or_hear(&mut self, wait: Duration, News { fd, rest }: News, ctx: &mut Context<Self>) {
        self.resting = true;
        let rest = rest.min(wait);
        let heard = async move {
            tokio::time::sleep(rest).await;
            let heard = async {
                // SAFETY: an `Arc<OwnedFd>` names one descriptor, open for as long as it lives.
                match unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) } {
                    Ok(fd) => drop(fd.readable().await),
                    Err(_) => std::future::pending().await, // then the wait is as long as was said
                }
            };
            let _ = tokio::time::timeout(wait - rest, heard).await;
        };
        ctx.spawn(heard.into_actor(self).map(|(), me, ctx| {
            me.resting = false;
            me.pump(ctx);
        }));
    }
    fn rest(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.resting = true;
        ctx.run_later(wait, |me, ctx| {
            me.resting = false;
            me.pump(ctx);
        });
    }

    /// One batch after the other: room, hand over, and only then the next. A second pump would break the order.
    fn send_on(&mut self, ctx: &mut Context<Self>) {
        while !self.sending && self.to_send < self.end() {
            let events = &self.window[(self.to_send - self.low) as usize].chunk.events;
            let weight = Weight::of(events.len(), events.size());
            if let Some(room) = self.parts.next.try_reserve(weight) {
                if !self.hand_over(room) {
                    return;
                }
                continue;
            }
            self.sending = true;
            let port = self.parts.next.clone();
            let (room, stop) = abortable(async move { port.reserve(weight).await });
            self.waits_for_room = Some(stop);
            ctx.spawn(room.into_actor(self).map(|room, me, ctx| {
                let Ok(room) = room else { return }; // linked anew meanwhile
                (me.sending, me.waits_for_room) = (false, None);
                // Meanwhile it may have gone back, or ahead: what that room was for need not be next.
                if me.to_send < me.end() && !me.hand_over(room) {
                    return;
                }
                me.pump(ctx);
            }));
        }
    }
    /// False: the next stage is gone. The receipt says "again", and the wait grows.
    fn hand_over(&mut self, room: Room<Ship>) -> bool {
        fail::fail_point!("collector-send");
        let seq = self.to_send;
        let Slot { chunk, outcome, .. } = &self.window[(seq - self.low) as usize];
        let Chunk {
            events,
            origin,
            offset,
            read_at,
            ..
        } = chunk.clone();
        let batch = Batch {
            lane: self.lane,
            seq,
            low: self.low,
            events,
            origin,
            offset,
            read_at,
            outcome: outcome.clone(),
        };
        let receipt = Some(Receipt::new(seq, self.attempt, self.tell.clone()));
        let sent = room.send(Ship { batch, receipt }).is_ok();
        if sent {
            self.to_send += 1;
        }
        sent
    }

    /// Begins again at the first batch that is not settled. Without progress since the last time, it waits before.
    fn go_back(&mut self) -> Duration {
        self.attempt += 1;
        self.parts.meter.resent.inc_by(self.to_send.saturating_sub(self.low));
        self.to_send = self.low;
        let times = match self.went_back_at {
            Some((low, times)) if low == self.low => times + 1,
            _ => 0,
        };
        self.went_back_at = Some((self.low, times));
        if times == 0 {
            Duration::ZERO
        } else {
            Duration::from_millis(1 << times.min(10))
        }
    }

    /// What was settled while it lay: without it a life that falls while it sends would begin where the last one did.
    fn hear_settled(&mut self) {
        loop {
            let heard = self.fates.borrow_mut().try_recv();
            match heard {
                Ok(fate) if fate.settled && fate.seq >= self.low => self.settle(fate.seq),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
    fn settle(&mut self, seq: u64) {
        self.parts.pulse.progressed();
        self.window[(seq - self.low) as usize].settled = true;
        let mut marks = vec![];
        while self.window.front().is_some_and(|slot| slot.settled)
            && let Some(slot) = self.window.pop_front()
        {
            let passing = slot.passing();
            self.passed += passing;
            for missed in self.joins.values_mut().filter(|missed| self.low < missed.before) {
                missed.passed += passing;
            }
            self.low += 1;
            self.share.give_back(slot.chunk.events.buffer().len() as u64);
            marks.extend(slot.chunk.mark);
        }
        self.to_send = self.to_send.max(self.low);
        if let Some(journal) = &self.parts.journal
            && !marks.is_empty()
        {
            lock(journal).settle(&marks);
            (self.unwritten, self.unsynced) = (true, true);
        }
    }
}
