//! Runs a pipeline's filters, in order, over each batch and hands the result to every output.
//! Hears: Ship. Says: Ship → Sinks. Bound: its Port's room. Waits: for room at a Sink that blocks.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;

use crate::{
    actors::{
        collect::meter::{OutputMeter, PipelineMeter},
        kit::{
            Carried, Errand, Gone, Port, Restarts, Room, SharedPulse, Weight, errand::guarded, port::Permits,
            supervise::Falls,
        },
    },
    deadletter::{DeadLetter, Letter},
    messages::{collect::Ship, control::Drain, receipt::Receipt},
    model::{Batch, Events, Lane},
    plugins::filters::{Dropped, Filter},
};

/// After so many falls over a batch its events are tried one by one; those that make it fall go to the dead letter.
const TRIES: u32 = 3;
const RETRY_LETTER: Duration = Duration::from_secs(1);

pub struct Edge {
    pub port: Port<Ship>,
    /// Wait for room there. Otherwise what cannot be taken at once is shed here, and counted.
    pub waits: bool,
    pub meter: OutputMeter,
}

pub struct FilterStageParts {
    /// With their names, for the counters.
    pub filters: Vec<(String, Box<dyn Filter>)>,
    /// In the order of the pipeline's outputs: output `i` is bit `i` of `Outcome::account`.
    pub edges: Vec<Edge>,
    pub meter: PipelineMeter,
    pub pipeline: Arc<str>,
    pub letters: Arc<DeadLetter>,
    pub pulse: SharedPulse,
    pub log: slog::Logger,
}

pub struct FilterStage {
    parts: FilterStageParts,
    // Survives a fall.
    queue: VecDeque<Passing>,  // bounded by the room in it
    lanes: HashMap<Lane, u64>, // the next seq of each
    falls: Falls,
    salvage: Option<Salvage>, // of the front, which nobody else touches
    burying: Option<Errand<Result<(), String>>>,
    // Made anew in each life.
    waits: bool, // for room, for a timer or for the dead letter
}
struct Passing {
    batch: Batch,
    receipt: Option<Receipt>,         // until it is filtered
    todo: VecDeque<(usize, Receipt)>, // edges that have not got it yet
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
    pub fn new(parts: FilterStageParts) -> Self {
        let falls = Falls::new(Restarts::DATA);
        Self {
            parts,
            queue: VecDeque::new(),
            lanes: HashMap::new(),
            falls,
            salvage: None,
            burying: None,
            waits: false,
        }
    }
}
impl Actor for FilterStage {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        self.waits = false;
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

impl FilterStage {
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
            let edge = *edge;
            let weight = Weight::of(front.batch.events.len(), front.batch.events.size());
            let Edge { port, waits, .. } = &self.parts.edges[edge];
            match port.try_reserve(weight) {
                Some(room) => self.hand_over(room),
                None if !*waits => self.shed(),
                None => {
                    let port = port.clone();
                    self.waits = true;
                    ctx.spawn(
                        async move { port.reserve(weight).await }
                            .into_actor(self)
                            .map(|room, me, ctx| {
                                me.waits = false;
                                me.hand_over(room);
                                me.pump(ctx);
                            }),
                    );
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
        if self.parts.edges[edge].waits {
            if let Err(Gone(Ship { receipt, .. })) = room.send(Ship {
                batch,
                receipt: Some(receipt),
            }) {
                drop(receipt); // "again": the Collector comes back, slower each time; a Sink is gone only while the agent ends
            }
            return;
        }
        receipt.settle();
        if batch.outcome.account(edge as u32) {
            let events = batch.events.len();
            if room.send(Ship { batch, receipt: None }).is_err() {
                self.parts.edges[edge].meter.dropped("gone", events);
            }
        }
    }
    /// The output may drop and has no room: what comes again is not counted again.
    fn shed(&mut self) {
        let Some(front) = self.queue.front_mut() else { return };
        let Some((edge, receipt)) = front.todo.pop_front() else {
            return;
        };
        if front.batch.outcome.account(edge as u32) {
            self.parts.edges[edge].meter.dropped("full", front.batch.events.len());
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
        let edges = self.parts.edges.len();
        let Some(front) = self.queue.front_mut() else { return };
        front.batch.events = events;
        if let Some(receipt) = front.receipt.take() {
            front.todo = (0..edges).map(|edge| (edge, receipt.clone())).collect();
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
                    slog::error!(me.parts.log, "dead letter cannot be written, the batch waits"; "error" => error);
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
        if front.batch.outcome.filtered.set(good.clone()).is_ok() {
            self.count(&dropped);
            self.parts
                .edges
                .iter()
                .for_each(|edge| edge.meter.dead("panic", bad.len()));
            if !bad.is_empty() {
                slog::error!(self.parts.log, "events that make a filter panic are in the dead letter"; "events" => bad.len(), "cause" => cause);
            }
        }
        self.filtered(good);
    }
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
