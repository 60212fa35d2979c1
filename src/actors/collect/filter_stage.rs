//! Runs a pipeline's filters, in order, over each batch and hands the result to every output.
//! Hears: Ship, Rewire, HandOver, Drain, Retire. Says: Ship → Sinks. Bound: its Port's room. Waits: for room at a Sink that blocks.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use futures_util::future::{AbortHandle, abortable};

use crate::{
    actors::{
        collect::meter::{OutputMeter, PipelineMeter},
        kit::{
            Carried, Errand, Farewell, Gone, Port, Restarts, Room, SharedPulse, Weight, errand::guarded, port::Permits,
            supervise::Falls,
        },
    },
    deadletter::{DeadLetter, Letter},
    messages::{
        collect::{HandOver, Retire, Rewire, Ship},
        control::Drain,
        receipt::Receipt,
    },
    model::{Batch, Events, Lane},
    plugins::filters::{Dropped, Filter},
};

/// After so many falls over a batch its events are tried one by one; those that make it fall go to the dead letter.
const TRIES: u32 = 3;
const RETRY_LETTER: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub struct Edge {
    /// The output's number: its bit in `Outcome::account`.
    pub number: u32,
    /// None: held, its Sink is about to join.
    pub port: Option<Port<Ship>>,
    /// Wait for room there. Otherwise what cannot be taken at once is shed here, and counted.
    pub waits: bool,
    pub meter: OutputMeter,
}

pub struct FilterStageParts {
    /// With their names, for the counters.
    pub filters: Vec<(String, Box<dyn Filter>)>,
    pub edges: Vec<Edge>,
    pub meter: PipelineMeter,
    pub pipeline: Arc<str>,
    pub letters: Arc<DeadLetter>,
    pub pulse: SharedPulse,
    pub log: slog::Logger,
}

/// A filter of the list that takes over.
pub enum NextFilter {
    /// The one at this place stays, with all it remembers.
    Kept(usize),
    New(String, Box<dyn Filter>),
}

pub struct FilterStage {
    parts: FilterStageParts,
    farewell: Farewell,
    // Survives a fall.
    heirs: Option<Vec<NextFilter>>, // from the next batch on
    queue: VecDeque<Passing>,       // bounded by the room in it
    lanes: HashMap<Lane, u64>,      // the next seq of each
    falls: Falls,
    salvage: Option<Salvage>, // of the front, which nobody else touches
    burying: Option<Errand<Result<(), String>>>,
    // Made anew in each life.
    waits: bool, // for room, for a timer or for the dead letter
    waits_for_room: Option<AbortHandle>,
}
struct Passing {
    batch: Batch,
    receipt: Option<Receipt>,       // until it is filtered
    todo: VecDeque<(u32, Receipt)>, // edges that have not got it yet
    _room: Permits,
}
/// What could be saved of a batch over which the filters fell.
struct Salvage {
    good: Events,
    dropped: Vec<(usize, &'static str, u64)>,
    bad: Events,
    cause: String,
}

impl FilterStage {
    pub fn new(parts: FilterStageParts, farewell: Farewell) -> Self {
        let falls = Falls::new(Restarts::DATA);
        Self {
            parts,
            farewell,
            heirs: None,
            queue: VecDeque::new(),
            lanes: HashMap::new(),
            falls,
            salvage: None,
            burying: None,
            waits: false,
            waits_for_room: None,
        }
    }
}
impl Actor for FilterStage {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        (self.waits, self.waits_for_room) = (false, None);
        self.pump(ctx);
    }
}
impl Supervised for FilterStage {}

impl Handler<Carried<Ship>> for FilterStage {
    type Result = ();
    fn handle(
        &mut self,
        Carried {
            msg: Ship { batch, receipt },
            room,
        }: Carried<Ship>,
        ctx: &mut Self::Context,
    ) {
        fail::fail_point!("filter-hear"); // a message lost: its receipt says "again"
        let next = self.lanes.entry(batch.lane).or_insert(batch.low);
        *next = batch.low.max(*next);
        if batch.seq > *next {
            return; // out of turn, so "again" too: an output that drops could not take the lost one after this one
        }
        *next = (*next).max(batch.seq + 1);
        self.queue.push_back(Passing {
            batch,
            receipt,
            todo: VecDeque::new(),
            _room: room,
        });
        self.pump(ctx);
    }
}
impl Handler<Drain> for FilterStage {
    type Result = ();
    /// Its Collector has drained before: so nothing is in here.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.parts.pulse.drained();
    }
}

impl Handler<Rewire<Edge>> for FilterStage {
    type Result = ();
    fn handle(&mut self, Rewire(edges): Rewire<Edge>, ctx: &mut Self::Context) {
        fail::fail_point!("filter-rewire"); // a message lost: it is said again
        let before = std::mem::replace(&mut self.parts.edges, edges);
        let stays = |gone: &Edge| self.parts.edges.iter().any(|edge| edge.number == gone.number);
        for gone in before.iter().filter(|gone| !stays(gone)) {
            for passing in &mut self.queue {
                let batch = &passing.batch;
                for (_, receipt) in take_shares(&mut passing.todo, gone.number) {
                    if batch.outcome.account(gone.number) {
                        gone.meter.dropped("removed", batch.events.len());
                    }
                    receipt.settle();
                }
            }
        }
        if let Some(stop) = self.waits_for_room.take() {
            stop.abort(); // that room may be an old port's
            self.waits = false;
        }
        self.pump(ctx);
    }
}
/// Filters change between two batches: whatever was begun is done by those that began it.
impl Handler<HandOver<Vec<NextFilter>>> for FilterStage {
    type Result = ();
    fn handle(&mut self, HandOver(slot): HandOver<Vec<NextFilter>>, ctx: &mut Self::Context) {
        fail::fail_point!("filter-rewire");
        if let Some(next) = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            self.heirs = Some(match self.heirs.take() {
                None => next,
                Some(waiting) => through(waiting, next),
            });
            if self.queue.is_empty() {
                self.succeed();
            }
        }
        self.pump(ctx);
    }
}
impl Handler<Retire> for FilterStage {
    type Result = ();
    fn handle(&mut self, _: Retire, ctx: &mut Self::Context) {
        self.farewell.say(ctx);
    }
}

impl FilterStage {
    fn edge(&self, number: u32) -> Option<&Edge> {
        self.parts.edges.iter().find(|edge| edge.number == number)
    }
    /// The next filters take their place.
    fn succeed(&mut self) {
        let Some(heirs) = self.heirs.take() else { return };
        let mut before = std::mem::take(&mut self.parts.filters)
            .into_iter()
            .map(Some)
            .collect::<Vec<_>>();
        let filters = heirs.into_iter().filter_map(|heir| match heir {
            NextFilter::Kept(at) => before.get_mut(at).and_then(Option::take),
            NextFilter::New(name, filter) => Some((name, filter)),
        });
        self.parts.filters = filters.collect();
    }

    fn pump(&mut self, ctx: &mut Context<Self>) {
        while !self.waits {
            let Some(front) = self.queue.front() else { return };
            if front.receipt.is_some() {
                self.filter_front(ctx);
                continue;
            }
            let Some((edge, _)) = front.todo.front() else {
                self.queue.pop_front();
                self.parts.pulse.progressed();
                continue;
            };
            let weight = Weight::of(front.batch.events.len(), front.batch.events.size());
            let Some(Edge { port, waits, .. }) = self.edge(*edge) else {
                return slog::error!(self.parts.log, "no edge for a batch's share"; "number" => *edge); // Rewire lets go of these
            };
            let Some(port) = port else { return }; // held: whoever mends the edge pumps
            match port.try_reserve(weight) {
                Some(room) => self.hand_over(room),
                None if !*waits => self.shed(),
                None => {
                    let port = port.clone();
                    let (room, stop) = abortable(async move { port.reserve(weight).await });
                    (self.waits, self.waits_for_room) = (true, Some(stop));
                    ctx.spawn(room.into_actor(self).map(|room, me, ctx| {
                        let Ok(room) = room else { return }; // rewired meanwhile
                        (me.waits, me.waits_for_room) = (false, None);
                        me.hand_over(room);
                        me.pump(ctx);
                    }));
                }
            }
        }
    }

    /// Gives the front to the first edge that has not got it yet; who asks for room is the pump, one at a time.
    fn hand_over(&mut self, room: Room<Ship>) {
        fail::fail_point!("filter-send");
        let Some(front) = self.queue.front_mut() else { return };
        let Some((edge, receipt)) = front.todo.pop_front() else {
            return;
        };
        let batch = front.batch.clone();
        let Some(Edge { waits, meter, .. }) = self.parts.edges.iter().find(|e| e.number == edge) else {
            return receipt.settle();
        };
        if *waits {
            if let Err(Gone(Ship { receipt, .. })) = room.send(Ship {
                batch,
                receipt: Some(receipt),
            }) {
                drop(receipt); // "again": the Collector comes back, slower each time; a Sink is gone only while the agent ends
            }
            return;
        }
        receipt.settle();
        if batch.outcome.account(edge) {
            let events = batch.events.len();
            if room.send(Ship { batch, receipt: None }).is_err() {
                meter.dropped("gone", events);
            }
        }
    }
    /// The output may drop and has no room: what comes again is not counted again.
    fn shed(&mut self) {
        let Some(front) = self.queue.front_mut() else { return };
        let Some((edge, receipt)) = front.todo.pop_front() else {
            return;
        };
        if front.batch.outcome.account(edge)
            && let Some(edge) = self.parts.edges.iter().find(|e| e.number == edge)
        {
            edge.meter.dropped("full", front.batch.events.len());
        }
        receipt.settle();
    }

    // ---- filtering
    fn filter_front(&mut self, ctx: &mut Context<Self>) {
        let Some(front) = self.queue.front() else { return };
        let outcome = front.batch.outcome.clone();
        if let Some(events) = outcome.filtered.get() {
            return self.filtered(events.clone());
        }
        if self.salvage.is_some() {
            return self.bury(ctx);
        }
        if self.heirs.is_some() && outcome.tries.load(Relaxed) == 0 {
            self.succeed();
            return self.filter_front(ctx);
        }
        let events = front.batch.events.clone();
        if outcome.tries.fetch_add(1, Relaxed) >= TRIES {
            // Counted before what may fall.
            self.salvage = Some(salvage(&mut self.parts.filters, events));
            return self.bury(ctx);
        }
        match guarded(&mut self.parts.filters, |filters| run(filters, events)) {
            Ok((events, dropped)) => {
                self.falls.over(&self.parts.pulse);
                if outcome.filtered.set(events.clone()).is_ok() {
                    commit(&mut self.parts.filters);
                    self.count(&dropped);
                }
                self.filtered(events);
            }
            Err(cause) => {
                let wait = self.falls.another(&cause, &self.parts.pulse);
                slog::warn!(self.parts.log, "filter panicked, trying again"; "cause" => cause, "next_in" => ?wait);
                self.wait(wait, ctx);
            }
        }
    }
    fn wait(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        self.waits = true;
        ctx.run_later(wait, |me, ctx| {
            me.waits = false;
            me.pump(ctx);
        });
    }
    fn count(&self, dropped: &[(usize, &'static str, u64)]) {
        for (filter, reason, events) in dropped {
            self.parts
                .meter
                .filtered(&self.parts.filters[*filter].0, reason, *events);
        }
    }
    /// The front is filtered: one share of its receipt for each output. In one step, after all that can fall.
    fn filtered(&mut self, events: Events) {
        let edges = self.parts.edges.iter().map(|edge| edge.number);
        let Some(front) = self.queue.front_mut() else { return };
        front.batch.events = events;
        if let Some(receipt) = front.receipt.take() {
            front.todo = edges.map(|edge| (edge, receipt.clone())).collect();
            receipt.settle();
        }
    }
    /// First what cannot be filtered is safe in the dead letter, then the rest of the batch goes its way.
    fn bury(&mut self, ctx: &mut Context<Self>) {
        let (Some(front), Some(salvage)) = (self.queue.front(), &self.salvage) else {
            return;
        };
        if salvage.bad.is_empty() {
            return self.buried();
        }
        let letters = self.parts.letters.clone();
        let pipeline = self.parts.pipeline.clone();
        let batch = Batch {
            events: salvage.bad.clone(),
            ..front.batch.clone()
        };
        let cause = salvage.cause.clone();
        let errand = self.burying.get_or_insert_with(|| {
            Errand::start(move || {
                let letter = Letter {
                    pipeline: &pipeline,
                    output: None,
                    reason: "panic",
                    error: &cause,
                    batch: &batch,
                };
                letters.put(letter).map_err(|error| error.to_string())
            })
        });
        self.waits = true;
        ctx.spawn(errand.done().into_actor(self).map(|(), me, ctx| {
            me.waits = false;
            match me.burying.take().and_then(Errand::take) {
                Some(Ok(())) => me.buried(),
                Some(Err(error)) => {
                    slog::error!(me.parts.log, "dead letter cannot be written, the batch waits"; "error" => &error);
                    me.parts.pulse.troubled(Some(error));
                    me.wait(RETRY_LETTER, ctx);
                }
                None => me.wait(RETRY_LETTER, ctx),
            }
            me.pump(ctx);
        }));
    }
    fn buried(&mut self) {
        let (
            Some(front),
            Some(Salvage {
                good,
                dropped,
                bad,
                cause,
            }),
        ) = (self.queue.front(), self.salvage.take())
        else {
            return;
        };
        self.falls.over(&self.parts.pulse);
        self.parts.pulse.troubled(None);
        let outcome = &front.batch.outcome;
        outcome.buried.store(bad.len() as u64, Relaxed); // before whoever looks finds it filtered
        if outcome.filtered.set(good.clone()).is_ok() {
            self.count(&dropped);
            // An output that joined later has nothing to do with it, and one that is about to join neither.
            let theirs = self.parts.edges.iter();
            theirs
                .filter(|edge| edge.port.is_some() && !outcome.is_accounted(edge.number))
                .for_each(|edge| edge.meter.dead("panic", bad.len()));
            if !bad.is_empty() {
                slog::error!(self.parts.log, "events that make a filter panic are in the dead letter"; "events" => bad.len(), "cause" => cause);
            }
        }
        self.filtered(good);
    }
}

/// `next` counts its kept ones among those that still wait to take over.
fn through(waiting: Vec<NextFilter>, next: Vec<NextFilter>) -> Vec<NextFilter> {
    let mut waiting = waiting.into_iter().map(Some).collect::<Vec<_>>();
    let found = next.into_iter().filter_map(|filter| match filter {
        NextFilter::Kept(at) => waiting.get_mut(at).and_then(Option::take),
        new => Some(new),
    });
    found.collect()
}
/// Takes out the shares of this output.
fn take_shares(todo: &mut VecDeque<(u32, Receipt)>, of: u32) -> VecDeque<(u32, Receipt)> {
    let (theirs, rest) = std::mem::take(todo).into_iter().partition(|(number, _)| *number == of);
    *todo = rest;
    theirs
}

/// All filters over one batch; and how many events each took away, why.
fn run(filters: &mut [(String, Box<dyn Filter>)], mut events: Events) -> (Events, Vec<(usize, &'static str, u64)>) {
    fail::fail_point!("filter-run");
    let (mut all, mut dropped) = (vec![], Dropped::new());
    for (i, (_, filter)) in filters.iter_mut().enumerate() {
        fail::fail_point!("filter-step");
        events = filter.apply(events, &mut dropped);
        all.extend(dropped.drain(..).map(|(reason, events)| (i, reason, events)));
    }
    (events, all)
}

/// The result counts: so does what the filters remember of it.
fn commit(filters: &mut [(String, Box<dyn Filter>)]) {
    filters.iter_mut().for_each(|(_, filter)| filter.commit());
}

/// Halves what makes a filter fall until single events are left. These get three tries each.
fn salvage(filters: &mut Vec<(String, Box<dyn Filter>)>, events: Events) -> Salvage {
    let (mut good, mut bad, mut dropped, mut cause) = (vec![], vec![], vec![], String::new());
    let (mut todo, all) = (vec![], 0..events.len());
    todo.push(all);
    while let Some(range) = todo.pop() {
        let part = events.part(range.clone());
        let tries = if range.len() == 1 { TRIES } else { 1 };
        let result = (0..tries).find_map(|_| {
            guarded(filters, |filters| run(filters, part.clone()))
                .map_err(|panic| cause = panic)
                .ok()
        });
        match result {
            Some((events, lost)) => {
                commit(filters);
                good.push(events);
                dropped.extend(lost);
            }
            None if range.len() <= 1 => bad.push(part),
            None => {
                let middle = range.start + range.len() / 2;
                todo.extend([middle..range.end, range.start..middle]); // the first half is popped first
            }
        }
    }
    Salvage {
        good: Events::join(&good),
        dropped,
        bad: Events::join(&bad),
        cause,
    }
}
