//! When this agent last had word of how it stands in the store. Whoever was frozen or suspended for longer than its lease lives has to have
//! word again before anything is started: another may have its address by now.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

/// Written by LeaseKeeper after each of its turns, whatever came of it; read by whoever starts something.
pub struct Sign {
    /// Steady milliseconds; 0: none yet.
    at: AtomicU64,
    most: Duration,
}
pub type SharedSign = Arc<Sign>;
impl Sign {
    /// `most`: how long a lease lives.
    pub fn new(most: Duration) -> SharedSign {
        Arc::new(Self {
            at: AtomicU64::new(0),
            most,
        })
    }
    /// `now`: steady time, which counts while the machine sleeps.
    pub fn note(&self, now: Duration) {
        self.at.store((now.as_millis() as u64).max(1), SeqCst);
    }
    /// Wait, and ask again: the next word comes within a second or two.
    pub fn is_overdue(&self, now: Duration) -> bool {
        match self.at.load(SeqCst) {
            0 => false,
            at => now.saturating_sub(Duration::from_millis(at)) > self.most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overdue_after_a_gap_longer_than_a_lease() {
        let sign = Sign::new(Duration::from_secs(30));
        let at = Duration::from_secs;
        assert!(!sign.is_overdue(at(1000)), "nothing to go by yet");
        sign.note(at(1000));
        assert!(!sign.is_overdue(at(1030)));
        assert!(sign.is_overdue(at(1031)));
        sign.note(at(1031));
        assert!(!sign.is_overdue(at(1031)));
    }
}
