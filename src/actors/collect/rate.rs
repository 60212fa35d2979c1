//! `max_rate`: catching up never hurts the host. A bucket of a tenth of a second.
use std::time::Duration;

pub struct Rate {
    per_second: f64,
    have: f64,
    at: Duration,
}
impl Rate {
    /// Bytes per second; `now` is steady time.
    pub fn new(per_second: u64, now: Duration) -> Self {
        Self {
            per_second: per_second as f64,
            have: 0.0,
            at: now,
        }
    }
    pub fn per_second(&self) -> u64 {
        self.per_second as u64
    }
    /// How many bytes may be read now; if none: when to ask again.
    pub fn allow(&mut self, now: Duration) -> Result<u64, Duration> {
        let burst = (self.per_second / 10.0).max(1.0);
        self.have = (self.have + now.saturating_sub(self.at).as_secs_f64() * self.per_second).min(burst);
        self.at = now;
        // Not byte by byte: a fiftieth of a second at least.
        let least = (burst / 5.0).max(1.0);
        if self.have >= least {
            Ok(self.have as u64)
        } else {
            Err(Duration::from_secs_f64((least - self.have) / self.per_second))
        }
    }
    /// One large event may put it into debt.
    pub fn took(&mut self, bytes: u64) {
        self.have -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_its_rate() {
        let (mut now, mut took) = (Duration::ZERO, 0);
        let mut rate = Rate::new(1_000_000, now);
        while now < Duration::from_secs(10) {
            match rate.allow(now) {
                Ok(bytes) => {
                    rate.took(bytes);
                    took += bytes;
                }
                Err(wait) => now += wait.max(Duration::from_micros(1)),
            }
        }
        assert!((9_900_000..=10_100_000).contains(&took), "{took}");
        rate.took(500_000);
        assert!(rate.allow(now).unwrap_err() >= Duration::from_millis(500));
    }
}
