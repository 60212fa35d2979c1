//! What an output refuses for good, or always panics over, goes to the dead letter; the queue goes on when it is safe there.
use actix::prelude::*;

use super::{Done, Sink, Waiting};
use crate::{actors::kit::Errand, deadletter::Letter, messages::receipt::Receipt};

impl Sink {
    pub(super) fn bury(&mut self, ctx: &mut Context<Self>) {
        let (Some(front), Some((error, reason))) = (self.queue.front(), &self.condemned) else {
            self.condemned = None;
            return;
        };
        let (batch, error, reason) = (front.batch.clone(), error.clone(), *reason);
        let (letters, pipeline, label) = (
            self.parts.letters.clone(),
            self.parts.pipeline.clone(),
            self.parts.label.clone(),
        );
        self.errand = Some(Errand::start(move || {
            let letter = Letter {
                pipeline: &pipeline,
                output: Some(&label),
                reason,
                error: &error,
                batch: &batch,
            };
            Done::Buried(letters.put(letter).map_err(|error| error.to_string()))
        }));
        self.pump(ctx);
    }
    pub(super) fn buried(&mut self, result: Result<(), String>, ctx: &mut Context<Self>) {
        if let Err(error) = result {
            slog::error!(self.parts.log, "dead letter cannot be written, the batch waits"; "error" => &error);
            self.error = Some(error);
            let wait = self.backoff.next();
            let wait = self.limited(wait);
            return self.rest(wait, ctx);
        }
        let Some((error, reason)) = self.condemned.take() else {
            return;
        };
        let Some(Waiting {
            batch,
            receipts,
            entered,
            ..
        }) = self.remove(0)
        else {
            return;
        };
        if entered || batch.outcome.account(self.parts.number) {
            self.parts.meter.dead(reason, batch.events.len());
        }
        slog::error!(self.parts.log, "batch is in the dead letter"; "reason" => reason, "events" => batch.events.len(), "error" => error);
        receipts.into_iter().for_each(Receipt::settle);
        self.panics = 0;
    }
}
