//! stub until the worker's
use std::time::Duration;
pub struct Backoff(u32);
impl Backoff {
    pub fn new(_f: Duration, _m: Duration) -> Self {
        Self(0)
    }
    pub fn next(&mut self) -> Duration {
        self.0 += 1;
        Duration::from_millis(100)
    }
    pub fn reset(&mut self) {
        self.0 = 0
    }
    pub fn attempt(&self) -> u32 {
        self.0
    }
}
#[derive(Default)]
pub struct Breaker {}
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}
impl Breaker {
    pub fn state(&self, _n: Duration) -> BreakerState {
        BreakerState::Closed
    }
    pub fn failed(&mut self, _n: Duration) {}
    pub fn succeeded(&mut self) {}
    pub fn is_broken(&self) -> bool {
        false
    }
}
