//! The house while it lives: hears signals and orders until somebody asks for a stop, all inputs have ended, or the far side has left.
//! Reloads are made here, one at a time; a stop that comes during one wins.
use std::{panic::AssertUnwindSafe, sync::atomic::Ordering::SeqCst, time::Duration};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::{
    House, Signal,
    reload::{Answer, Asked},
    stop::Why,
    wire::Over,
};
use crate::messages::control::{ReloadRefused, Reopen};

/// A reload that has begun to change things is given so long to come to a whole state when a stop has begun.
const WHOLE_WITHIN: Duration = Duration::from_secs(1);

pub(super) struct Orders<'a> {
    pub signals: &'a mut mpsc::Receiver<Signal>,
    pub reloads: mpsc::Receiver<oneshot::Sender<Answer>>,
    pub ends: mpsc::UnboundedReceiver<Over>,
}

impl House {
    pub(super) async fn until_over(&self, mut orders: Orders<'_>) -> Why {
        let mut again = false; // a signal to reload came during a reload
        loop {
            if self.has_ended() {
                return Why::Ended;
            }
            let asked = tokio::select! {
                signal = orders.signals.recv(), if !again => match signal.unwrap_or(Signal::Stop) {
                    Signal::Stop => return Why::Asked,
                    Signal::Reopen => { self.reopen(); continue; }
                    Signal::Reload => None,
                },
                Some(asked) = orders.reloads.recv(), if !again => Some(asked),
                Some(over) = orders.ends.recv(), if !again => match over {
                    Over::Ended => continue,
                    Over::Closed { pipeline, said } => return Why::Closed { pipeline, said },
                },
                () = std::future::ready(()), if again => None,
            };
            again = false;
            if let Some(why) = self.reload_for(asked, &mut orders, &mut again).await {
                return why;
            }
        }
    }
    fn has_ended(&self) -> bool {
        let pipelines = self.pipelines();
        !pipelines.is_empty() && pipelines.iter().all(|pipeline| pipeline.ended.load(SeqCst))
    }
    fn reopen(&self) {
        for sink in self.pipelines().iter().flat_map(|p| &p.sinks) {
            // Control messages are few: a full mailbox would mean hundreds of signals unheard.
            let _ = sink.stage.addr.try_send(Reopen);
        }
    }
    async fn reload_for(&self, asked: Asked, orders: &mut Orders<'_>, again: &mut bool) -> Option<Why> {
        let guarded = AssertUnwindSafe(self.reload()).catch_unwind();
        let reload = guarded.map(|done| done.unwrap_or(Err(ReloadRefused::Failed("the reload panicked".into()))));
        tokio::pin!(reload);
        let mut why = None;
        let answer = loop {
            tokio::select! {
                answer = &mut reload => break answer,
                signal = orders.signals.recv() => match signal.unwrap_or(Signal::Stop) {
                    Signal::Reopen => self.reopen(),
                    Signal::Reload => *again = true,
                    Signal::Stop => {
                        self.ground.stopping.begin();
                        let whole = tokio::time::timeout(WHOLE_WITHIN, &mut reload).await;
                        why = Some(Why::Asked);
                        break whole.unwrap_or(Err(ReloadRefused::Stopping));
                    }
                },
                Some(over) = orders.ends.recv() => if let Over::Closed { pipeline, said } = over {
                    why.get_or_insert(Why::Closed { pipeline, said });
                },
            }
        };
        if let Some(tell) = asked {
            let _ = tell.send(answer); // who has gone away reads it in the log
        }
        why
    }
}
