//! Time, injected. Wall time steps when somebody sets the clock; steady time does not, and also counts while the machine sleeps.
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use jiff::Timestamp;

pub trait Clock: Send + Sync {
    /// Wall time: for people, file names and records. May jump either way.
    fn wall(&self) -> Timestamp;
    /// Time since some fixed instant, never backwards: for waits, ages and rates.
    fn steady(&self) -> Duration;
}
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clocks.
pub struct SystemClock;
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where it comes from")]
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
    fn steady(&self) -> Duration {
        crate::os::since_boot()
    }
}
pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}

/// A clock that stands still until a test moves it.
#[derive(Default)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    steady_ms: AtomicU64,
}
impl ManualClock {
    pub fn at(wall: Timestamp) -> Arc<Self> {
        let clock = Self::default();
        clock.wall_ms.store(wall.as_millisecond(), SeqCst);
        Arc::new(clock)
    }
    /// Both clocks move, as they do in an ordinary life.
    pub fn advance(&self, by: Duration) {
        self.wall_ms.fetch_add(by.as_millis() as i64, SeqCst);
        self.steady_ms.fetch_add(by.as_millis() as u64, SeqCst);
    }
    /// Somebody sets the wall clock.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall_ms.store(wall.as_millisecond(), SeqCst);
    }
}
impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_millisecond(self.wall_ms.load(SeqCst)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
    fn steady(&self) -> Duration {
        Duration::from_millis(self.steady_ms.load(SeqCst))
    }
}
