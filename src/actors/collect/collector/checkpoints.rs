//! A Collector's checkpoints: written soon after something was settled, synced each second after the outputs' own sync, and once more
//! when all is drained. None of it is waited for by the batches.
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::prelude::*;
use futures_util::future::join_all;

use super::Collector;
use crate::{
    checkpoint::{Journal, SharedJournal},
    messages::collect::SyncNow,
    model::{Progress, SourceId},
};

const CHECKPOINT_EVERY: Duration = Duration::from_millis(50);
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// A sink that cannot sync holds only the synced watermark back.
const SYNC_LIMIT: Duration = Duration::from_secs(10);
const LAST_SYNC_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn lock(journal: &Mutex<Journal>) -> std::sync::MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
pub(super) type Checkpointed = Result<(), String>;
/// On a thread that may wait for the disk; a panic (a failpoint) is an error like others.
async fn on_disk(
    journal: SharedJournal,
    work: impl FnOnce(&mut Journal) -> std::io::Result<()> + Send + 'static,
) -> Checkpointed {
    let work = move || std::panic::catch_unwind(AssertUnwindSafe(|| work(&mut lock(&journal))));
    match actix_rt::task::spawn_blocking(work).await {
        Ok(Ok(result)) => result.map_err(|error| format!("could not write checkpoint: {error}")),
        Ok(Err(_)) | Err(_) => Err("could not write checkpoint: its write panicked".into()),
    }
}

/// The disk is waited for without the lock: who settles meanwhile does not wait with us.
async fn sync_on_disk(journal: SharedJournal, until: Vec<(SourceId, Progress)>) -> Checkpointed {
    let file = Arc::new(Mutex::new(None));
    let (found, again) = (file.clone(), journal.clone());
    on_disk(journal, move |journal| {
        *found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = journal.begin_sync(&until)?;
        Ok(())
    })
    .await?;
    let Some(file) = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() else {
        return Ok(());
    };
    match actix_rt::task::spawn_blocking(move || file.sync_data()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(lock(&again).sync_failed(error).to_string()),
        Err(_) => Err("could not write checkpoint: its sync panicked".into()),
    }
}

impl Collector {
    pub(super) fn checkpointed(&mut self, result: Checkpointed) -> bool {
        match result {
            Ok(()) => {
                if self.checkpoint_error.take().is_some() {
                    slog::info!(self.parts.log, "checkpoints can be written again");
                }
                true
            }
            Err(error) => {
                self.parts.meter.checkpoint_errors.inc();
                if self.checkpoint_error.is_none() {
                    slog::error!(self.parts.log, "checkpoint failed, collecting on; a restart would repeat"; "error" => &error);
                }
                self.checkpoint_error = Some(error);
                false
            }
        }
    }
    pub(super) fn checkpoint_later(&mut self, ctx: &mut Context<Self>) {
        if !self.unwritten || self.checkpointing {
            return;
        }
        let Some(journal) = self.parts.journal.clone() else {
            return;
        };
        self.checkpointing = true;
        // After an error once a second, so as not to hammer a full disk.
        let wait = if self.checkpoint_error.is_some() {
            SYNC_EVERY
        } else {
            CHECKPOINT_EVERY
        };
        ctx.run_later(wait, move |me, ctx| {
            me.unwritten = false;
            ctx.spawn(on_disk(journal, Journal::write).into_actor(me).map(|result, me, ctx| {
                me.checkpointing = false;
                me.unwritten |= !me.checkpointed(result);
                me.tell_settled = true;
                me.checkpoint_later(ctx);
            }));
        });
    }
    pub(super) fn sync_later(&mut self, ctx: &mut Context<Self>) {
        if !self.unsynced || self.syncing || self.parts.journal.is_none() {
            return;
        }
        self.syncing = true;
        ctx.run_later(SYNC_EVERY, |me, ctx| {
            me.unsynced = false;
            ctx.spawn(me.sync(SYNC_LIMIT).into_actor(me).map(|done, me, ctx| {
                me.syncing = false;
                me.unsynced |= match done {
                    Some(result) => !me.checkpointed(result),
                    None => true,
                };
                me.sync_later(ctx);
            }));
        });
    }
    /// First the outputs, then the journal. None: an output could not; the synced watermark stays where it was.
    fn sync(&self, limit: Duration) -> impl Future<Output = Option<Checkpointed>> + use<> {
        let sinks = self.parts.sinks.clone();
        let journal = self.parts.journal.clone();
        let until = journal.as_ref().map(|journal| lock(journal).before_sync());
        async move {
            let asked = join_all(sinks.iter().map(|sink| tokio::time::timeout(limit, sink.send(SyncNow)))).await;
            if !asked.iter().all(|answer| matches!(answer, Ok(Ok(Ok(()))))) {
                return None;
            }
            match (journal, until) {
                (Some(journal), Some(until)) => Some(sync_on_disk(journal, until).await),
                _ => Some(Ok(())),
            }
        }
    }
    /// Nothing is left: one last checkpoint, then the answer.
    pub(super) fn conclude(&mut self, ctx: &mut Context<Self>) {
        if self.drained {
            self.await_drain.tell(());
            return;
        }
        if std::mem::replace(&mut self.concluding, true) {
            return;
        }
        let (journal, sync) = (self.parts.journal.clone(), self.sync(LAST_SYNC_LIMIT));
        let last = async move {
            let written = match journal {
                Some(journal) => on_disk(journal, Journal::write).await,
                None => Ok(()),
            };
            (written, sync.await)
        };
        ctx.spawn(last.into_actor(self).map(|(written, synced), me, ctx| {
            me.concluding = false;
            me.checkpointed(written);
            if let Some(result) = synced {
                me.checkpointed(result);
            }
            me.drained = true;
            me.parts.pulse.drained();
            me.conclude(ctx);
        }));
    }
}
