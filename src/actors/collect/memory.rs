//! `[limits] memory`: half of it is shared out among the Collectors, the other half is lent to whoever has need of more. So one
//! pipeline with a dead output can fill its own share and the common half, and starves no other.
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

/// Below zero after it was made smaller than what is lent.
#[derive(Clone, Default)]
pub struct Common(Arc<AtomicI64>);
impl Common {
    fn take(&self, most: u64) -> u64 {
        let mut took = 0;
        let _ = self.0.fetch_update(Relaxed, Relaxed, |left| {
            took = most.min(left.max(0) as u64);
            Some(left - took as i64)
        });
        took
    }
    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes as i64, Relaxed);
    }
    /// There is so much more of it now, or less.
    pub fn grow(&self, by: i64) {
        self.0.fetch_add(by, Relaxed);
    }
    /// Somebody's share beside it.
    pub fn share(&self, own: u64) -> Share {
        Share {
            own,
            used: 0,
            borrowed: 0,
            common: self.clone(),
        }
    }
}
/// Of all the memory: each Collector's own share, and what is lent.
pub fn parts(memory: u64, collectors: usize) -> (u64, u64) {
    (memory / 2 / (collectors.max(1) as u64), memory - memory / 2)
}

/// One Collector's part of the memory, in bytes.
pub struct Share {
    own: u64,
    used: u64,
    borrowed: u64,
    common: Common,
}

/// Shares for so many Collectors.
pub fn shares(memory: u64, collectors: usize) -> Vec<Share> {
    let (own, lent) = parts(memory, collectors);
    let common = Common::default();
    common.add(lent);
    (0..collectors).map(|_| common.share(own)).collect()
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
        self.common.add(spare);
    }
    /// What it holds beyond that, it gives back as it settles.
    pub fn resize(&mut self, own: u64) {
        self.own = own;
        self.give_back(0);
    }
}
impl Drop for Share {
    fn drop(&mut self) {
        self.common.add(self.borrowed);
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
    #[test]
    fn made_smaller_and_larger_while_it_is_used() {
        let mut shares = shares(64, 2);
        let (mut one, two) = (shares.remove(0), shares.remove(0));
        assert_eq!(one.claim(100), 48);
        one.resize(8);
        two.common.grow(-16);
        assert_eq!(one.claim(1), 0);
        one.give_back(40);
        assert_eq!(
            one.claim(100),
            16,
            "8 of its own are used; 32 came home to a pool that is 16 smaller"
        );
        one.resize(64);
        assert_eq!(one.claim(100), 56, "40 of its own, and the 16 that came home once more");
    }
}
