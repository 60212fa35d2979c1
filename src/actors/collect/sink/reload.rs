//! What a reload changes of a Sink that goes on: its output has an heir, or other rules. And how it leaves when it is removed.
use actix::prelude::*;

use super::{Done, Sink, SinkHeir, Waiting};
use crate::{
    actors::kit::{Errand, errand::guarded},
    messages::{
        collect::{HandOver, Retire},
        receipt::Receipt,
    },
    retry::Breaker,
};

/// The one under way goes on to its end, and what it reports counts; then the heir begins with what is not delivered.
impl Handler<HandOver<SinkHeir>> for Sink {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, HandOver(slot): HandOver<SinkHeir>, ctx: &mut Self::Context) -> Self::Result {
        fail::fail_point!("sink-heir"); // a message lost: it is said again
        let heir = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(SinkHeir { output, rules, mailbox }) = heir {
            ctx.set_mailbox_capacity(mailbox);
            self.backoff = rules.backoff.clone();
            self.parts.rules = rules;
            self.heir = output.or(self.heir.take());
            if let Some(timer) = self.resting.take() {
                ctx.cancel_future(timer);
            }
            self.bound();
        }
        let answer = self.await_heir.ask();
        self.pump(ctx);
        answer
    }
}
/// What it holds is let go of, and counted.
impl Handler<Retire> for Sink {
    type Result = ();
    fn handle(&mut self, _: Retire, ctx: &mut Self::Context) {
        for Waiting {
            batch,
            receipts,
            entered,
            ..
        } in self.queue.drain(..)
        {
            if entered || batch.outcome.account(self.parts.number) {
                self.parts.meter.dropped("removed", batch.events.len());
            }
            receipts.into_iter().for_each(Receipt::settle);
        }
        for asked in [&mut self.await_sync, &mut self.syncing] {
            asked.tell(Err("the output was removed".into()));
        }
        self.await_closed.tell("the output was removed".into());
        self.await_heir.tell(());
        self.await_drain.tell(());
        self.farewell.say(ctx);
    }
}
impl Sink {
    /// The output is back: it puts in order what it has delivered and is let go of, then the heir takes its place.
    pub(super) fn succeed(&mut self, ctx: &mut Context<Self>) {
        if let Some(mut output) = self.output.take() {
            self.errand = Some(Errand::start(move || {
                let closed = guarded(&mut output, |output| output.close().map_err(|error| error.to_string()));
                let gone = guarded(&mut Some(output), |output| drop(output.take())); // here, it may wait for a disk
                Done::LetGo(closed.and_then(|closed| closed).and(gone))
            }));
            return self.pump(ctx);
        }
        self.output = self.heir.take();
        // Whatever was the matter, it was with the one that is gone.
        (self.panics, self.condemned, self.error, self.closed) = (0, None, None, None);
        self.breaker = Breaker::default();
        self.backoff.reset();
        self.falls.over(&self.parts.pulse);
        self.show_breaker();
        self.pump(ctx);
    }
}
