//! `[limits] memory`: half of it is shared out among the Collectors, the other half is lent to whoever has need of more. So one
//! pipeline with a dead output can fill its own share and the common half, and starves no other.
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[derive(Clone)]
pub struct Common(Arc<AtomicU64>);
impl Common {
    fn take(&self, most: u64) -> u64 {
        let mut took = 0;
        let _ = self.0.fetch_update(Relaxed, Relaxed, |left| {
            took = most.min(left);
            Some(left - took)
        });
        took
    }
}

/// One Collector's part of the memory, in bytes.
pub struct Share {
    own: u64,
    used: u64,
    borrowed: u64,
    common: Common,
}

/// Parts for so many Collectors.
pub fn shares(memory: u64, collectors: usize) -> Vec<Share> {
    let own = memory / 2 / (collectors.max(1) as u64);
    let common = Common(Arc::new(AtomicU64::new(memory - memory / 2)));
    (0..collectors)
        .map(|_| Share {
            own,
            used: 0,
            borrowed: 0,
            common: common.clone(),
        })
        .collect()
}

impl Share {
    /// Claims up to `most` bytes: what it got, which may be nothing.
    pub fn claim(&mut self, most: u64) -> u64 {
        let own = most.min((self.own + self.borrowed).saturating_sub(self.used));
        let lent = self.common.take(most - own);
        self.borrowed += lent;
        self.used += own + lent;
        own + lent
    }
    /// What was read is what it is: one event may be larger than the claim.
    pub fn exceed(&mut self, by: u64) {
        self.used += by;
    }
    pub fn give_back(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
        // The lent part goes home first.
        let spare = (self.own + self.borrowed).saturating_sub(self.used).min(self.borrowed);
        self.borrowed -= spare;
        self.common.0.fetch_add(spare, Relaxed);
    }
}
impl Drop for Share {
    fn drop(&mut self) {
        self.common.0.fetch_add(self.borrowed, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_takes_all_it_can_starves_no_other() {
        let mut shares = shares(64, 2);
        assert_eq!(shares[0].claim(100), 16 + 32);
        assert_eq!(shares[0].claim(1), 0);
        assert_eq!(shares[1].claim(100), 16);
        shares[0].give_back(40);
        assert_eq!(shares[1].claim(100), 32, "what was lent came home");
        assert_eq!(shares[0].claim(100), 8);
        shares[1].exceed(10);
        shares[1].give_back(58);
        assert_eq!(shares[0].claim(100), 32);
        drop(shares.remove(0));
        assert_eq!(shares[0].claim(100), 48);
    }
}
