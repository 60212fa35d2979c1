//! What a reload changes of a Collector that goes on: outputs join and leave, links and limits change, another input takes over.
use actix::prelude::*;

use super::Collector;
use crate::{
    actors::{collect::rate::Rate, kit::Port},
    messages::collect::{HandOver, Join, Joined, Relink, Retire, Ship, SyncNow},
    model::file_status::SharedFileBoard,
    plugins::inputs::Input,
};

/// Whom it knows, and what it may take: may change in a reload.
#[derive(Clone)]
pub struct Links {
    pub next: Port<Ship>,
    pub sinks: Vec<Recipient<SyncNow>>,
    /// The numbers of all outputs.
    pub outputs: Vec<u32>,
    /// Its own share of the memory, in bytes.
    pub share: u64,
    pub max_rate: Option<u64>,
}
/// The input that takes over, from the checkpoint.
pub struct InputHeir {
    pub input: Box<dyn Input>,
    /// The pipeline's, which it will fill anew.
    pub board: SharedFileBoard,
}

/// What came before an output joined: it has no part in it.
pub(super) struct Missed {
    /// Batches below this one.
    pub before: u64,
    /// `passed`, of those that have left the window.
    pub passed: u64,
}

impl Handler<Join> for Collector {
    type Result = Joined;
    /// Whatever is in the window is none of its business; what is read from now on is.
    fn handle(&mut self, Join(output): Join, _: &mut Self::Context) -> Self::Result {
        for slot in &self.window {
            slot.outcome.account(output);
        }
        let missed = Missed {
            before: self.end(),
            passed: self.passed,
        };
        self.joins.insert(output, missed);
        self.parts.outputs = self.parts.outputs.max(output + 1);
        Joined {
            lane: self.lane,
            seq: self.end(),
        }
    }
}
impl Handler<Relink<Links>> for Collector {
    type Result = ();
    fn handle(&mut self, Relink(links): Relink<Links>, ctx: &mut Self::Context) {
        fail::fail_point!("collector-relink"); // a message lost: it is said again
        let Links {
            next,
            sinks,
            outputs,
            share,
            max_rate,
        } = links;
        (self.parts.next, self.parts.sinks) = (next, sinks);
        self.parts.outputs = outputs.iter().map(|number| number + 1).max().unwrap_or(0);
        self.joins.retain(|number, _| outputs.contains(number));
        self.share.resize(share);
        if self.rate.as_ref().map(Rate::per_second) != max_rate {
            self.rate = max_rate.map(|rate| Rate::new(rate, self.parts.clock.steady()));
        }
        if let Some(stop) = self.waits_for_room.take() {
            stop.abort(); // that room may be an old port's
            self.sending = false;
        }
        self.pump(ctx);
    }
}
/// The old one reads no more, or gives out what it has taken from a source that cannot be read again; when all is settled the heir
/// begins at the checkpoint.
impl Handler<HandOver<InputHeir>> for Collector {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, HandOver(slot): HandOver<InputHeir>, ctx: &mut Self::Context) -> Self::Result {
        fail::fail_point!("collector-relink");
        let heir = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        self.heir = heir.or(self.heir.take());
        let answer = self.await_heir.ask();
        self.pump(ctx);
        answer
    }
}
impl Handler<Retire> for Collector {
    type Result = ();
    fn handle(&mut self, _: Retire, ctx: &mut Self::Context) {
        for asked in [&mut self.await_end, &mut self.await_heir, &mut self.await_drain] {
            asked.tell(());
        }
        self.farewell.say(ctx);
    }
}
impl Collector {
    /// All that the old input gave is settled: the heir takes its place.
    pub(super) fn succeed(&mut self, ctx: &mut Context<Self>) {
        let Some(InputHeir { input, board }) = self.heir.take() else {
            return;
        };
        board.clear();
        self.parts.rewinds = input.rewinds();
        let before = self.input.replace(input);
        actix_rt::task::spawn_blocking(move || drop(before)); // it may wait for a disk
        (self.ended, self.errors_in_a_row, self.error, self.note) = (false, 0, None, None);
        self.resting = false; // it was the old one's; its timer may wake the heir once too early
        self.falls.over(&self.parts.pulse);
        self.await_heir.tell(());
        self.pump(ctx);
    }
}
