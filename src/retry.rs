//! How long to wait before the next try, and whether a target counts as broken. The only place that names the crate `backoff`: it is
//! not maintained any more, and by default gives up after 15 minutes.
use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff as _};

/// The least wait: a target that fails at once must not keep a thread busy.
const FLOOR: Duration = Duration::from_millis(10);
/// Failures in a row after which a target counts as broken.
const FAILURES: u32 = 5;

/// Waits of up to `first`, twice that, … `most`, each somewhere between (almost) zero and that, so that many who failed together do not
/// come back together. For ever.
#[derive(Clone, Debug)]
pub struct Backoff {
    inner: ExponentialBackoff,
    most: Duration,
    attempt: u32,
}

impl Backoff {
    pub fn new(first: Duration, most: Duration) -> Self {
        let most = most.max(FLOOR);
        // The crate's interval is the middle of what it draws from: with a factor of 1 that is 0 ..= 2 × interval.
        let first = first.clamp(FLOOR, most) / 2;
        Self {
            inner: ExponentialBackoff {
                current_interval: first,
                initial_interval: first,
                max_interval: most / 2,
                multiplier: 2.0,
                randomization_factor: 1.0,
                max_elapsed_time: None,
                ..Default::default()
            },
            most,
            attempt: 0,
        }
    }
    /// After a failure: how long to wait.
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, and nobody iterates over waits"
    )]
    pub fn next(&mut self) -> Duration {
        self.attempt = self.attempt.saturating_add(1);
        self.inner.next_backoff().unwrap_or(self.most).clamp(FLOOR, self.most)
    }
    /// After a success.
    pub fn reset(&mut self) {
        self.inner.reset();
        self.attempt = 0;
    }
    /// How many failures in a row there were.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Up to 0.2, 0.5, 1, 2, 4, 8 s and then 8 s for ever, each somewhere between (almost) zero and that: a server that was started anew
/// meets all who were connected to it.
#[derive(Clone, Debug)]
pub struct Reconnect {
    chance: ExponentialBackoff,
    attempt: u32,
}
impl Default for Reconnect {
    fn default() -> Self {
        Self {
            // Used as dice only: evenly from 0 to 2 s.
            chance: ExponentialBackoff {
                current_interval: Duration::from_secs(1),
                initial_interval: Duration::from_secs(1),
                max_interval: Duration::from_secs(1),
                multiplier: 1.0,
                randomization_factor: 1.0,
                max_elapsed_time: None,
                ..Default::default()
            },
            attempt: 0,
        }
    }
}
impl Reconnect {
    const STEPS: [u32; 6] = [200, 500, 1000, 2000, 4000, 8000];
    #[expect(
        clippy::should_implement_trait,
        reason = "it never ends, and nobody iterates over waits"
    )]
    pub fn next(&mut self) -> Duration {
        let step = Self::STEPS[(self.attempt as usize).min(Self::STEPS.len() - 1)];
        self.attempt = self.attempt.saturating_add(1);
        let dice = self.chance.next_backoff().unwrap_or_default().as_secs_f64() / 2.0;
        Duration::from_millis(step.into())
            .mul_f64(dice.clamp(0.0, 1.0))
            .max(FLOOR)
    }
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    /// The wait is over: the next try is a probe.
    HalfOpen,
    Open,
}

/// Closed → open after five failures in a row → half-open, for one probe, when the wait is over → closed by a success, or open for the
/// next wait. Nothing here waits or counts probes, so a probe that falls without an answer leaves no breaker open for ever.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    failures: u32,
    probe_at: Duration,
}

impl Breaker {
    /// The target failed and is tried again after `wait`. `now`: steady time.
    pub fn failed(&mut self, now: Duration, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.probe_at = now.saturating_add(wait);
    }
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
    /// Open or half-open: nothing has succeeded since it opened.
    pub fn is_broken(&self) -> bool {
        self.failures >= FAILURES
    }
    pub fn state(&self, now: Duration) -> BreakerState {
        match (self.is_broken(), now < self.probe_at) {
            (false, _) => BreakerState::Closed,
            (true, true) => BreakerState::Open,
            (true, false) => BreakerState::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BreakerState::*, *};

    #[test]
    fn waits_double_up_to_the_most() {
        let seconds = Duration::from_secs;
        // first, most → the upper bound of each wait in turn
        for (first, most, bounds) in [
            (
                seconds(2),
                seconds(30),
                vec![2_000, 4_000, 8_000, 16_000, 30_000, 30_000],
            ),
            (seconds(5), seconds(5), vec![5_000, 5_000]),
            (seconds(9), seconds(3), vec![3_000, 3_000]),
            (Duration::ZERO, seconds(1), vec![10, 20, 40]),
            (Duration::ZERO, Duration::ZERO, vec![10, 10]),
        ] {
            let mut backoff = Backoff::new(first, most);
            let mut longest = vec![Duration::ZERO; bounds.len()];
            let mut shortest = vec![Duration::MAX; bounds.len()];
            for _ in 0..1000 {
                backoff.reset();
                assert_eq!(backoff.attempt(), 0);
                for i in 0..bounds.len() {
                    let wait = backoff.next();
                    longest[i] = longest[i].max(wait);
                    shortest[i] = shortest[i].min(wait);
                }
                assert_eq!(backoff.attempt() as usize, bounds.len());
            }
            for (i, bound) in bounds.iter().copied().map(Duration::from_millis).enumerate() {
                // Of 1,000 uniform ones, none in the outer 5 % has a chance of 10^-22.
                assert!(
                    longest[i] <= bound && longest[i] > bound.mul_f64(0.95),
                    "{i}: {longest:?}"
                );
                assert!(
                    shortest[i] >= FLOOR && shortest[i] < (bound / 20).max(FLOOR * 2),
                    "{i}: {shortest:?}"
                );
            }
        }
    }
    #[test]
    fn reconnects_as_the_page_says() {
        let mut longest = [Duration::ZERO; 8];
        for _ in 0..1000 {
            let mut reconnect = Reconnect::default();
            for longest in &mut longest {
                *longest = reconnect.next().max(*longest);
            }
            assert_eq!(reconnect.attempt(), 8);
        }
        for (longest, bound) in longest.into_iter().zip([200, 500, 1000, 2000, 4000, 8000, 8000, 8000]) {
            let bound = Duration::from_millis(bound);
            assert!(
                longest <= bound && longest > bound.mul_f64(0.95),
                "{longest:?} of {bound:?}"
            );
        }
    }
    #[test]
    fn never_gives_up() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
        assert_eq!(backoff.inner.max_elapsed_time, None);
        assert!((0..100_000).all(|_| backoff.next() <= Duration::from_secs(30)));
        assert_eq!(backoff.attempt(), 100_000);
    }

    #[test]
    fn the_breaker_opens_probes_and_closes() {
        enum Event {
            /// And how long until the next try.
            Fails(u64),
            Succeeds,
            Nothing,
        }
        use Event::*;
        let mut breaker = Breaker::default();
        for (now, event, state) in [
            (0, Nothing, Closed),
            (1, Fails(2), Closed),
            (3, Fails(2), Closed),
            (5, Fails(2), Closed),
            (7, Fails(2), Closed),
            (8, Succeeds, Closed), // a row is a row
            (9, Fails(1), Closed),
            (10, Fails(1), Closed),
            (11, Fails(1), Closed),
            (12, Fails(1), Closed),
            (13, Fails(8), Open),
            (20, Nothing, Open),
            (21, Nothing, HalfOpen),
            (99, Nothing, HalfOpen), // the probe is under way, or was lost
            (99, Fails(8), Open),
            (106, Nothing, Open),
            (107, Nothing, HalfOpen),
            (108, Succeeds, Closed),
            (109, Fails(8), Closed),
        ] {
            match event {
                Fails(wait) => breaker.failed(Duration::from_secs(now), Duration::from_secs(wait)),
                Succeeds => breaker.succeeded(),
                Nothing => {}
            }
            assert_eq!(breaker.state(Duration::from_secs(now)), state, "at {now} s");
            assert_eq!(breaker.is_broken(), state != Closed, "at {now} s");
        }
        breaker.failed(Duration::MAX, Duration::MAX);
    }
}
