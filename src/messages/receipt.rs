//! What becomes of a batch. A `Receipt` travels with it; each clone is one more party that must settle it. When the last clone is
//! gone the sender hears whether every one of them was settled. A clone dropped in any other way (its stage fell, its batch came out
//! of turn) means "again". Nobody can forget to answer.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::sync::mpsc::UnboundedSender;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    pub seq: u64,
    /// Which sending of it this is about: an older one has no say.
    pub attempt: u32,
    pub settled: bool,
}

struct Shared {
    seq: u64,
    attempt: u32,
    again: AtomicBool,
    tell: UnboundedSender<Fate>, // as many as there are batches in the sender's window: bounded by it
}
impl Drop for Shared {
    fn drop(&mut self) {
        let settled = !*self.again.get_mut();
        let _ = self.tell.send(Fate {
            seq: self.seq,
            attempt: self.attempt,
            settled,
        });
    }
}

#[derive(Clone)]
pub struct Receipt {
    shared: Arc<Shared>,
    settled: bool,
}
impl Receipt {
    pub fn new(seq: u64, attempt: u32, tell: UnboundedSender<Fate>) -> Self {
        Self {
            shared: Arc::new(Shared {
                seq,
                attempt,
                again: AtomicBool::new(false),
                tell,
            }),
            settled: false,
        }
    }
    pub fn settle(mut self) {
        self.settled = true;
    }
}
impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            self.shared.again.store(true, Relaxed);
        }
    }
}
