//! How an actor is, for whoever asks: written by its supervisor and by itself, read without asking it.
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use prometheus::IntCounterVec;

/// So many different causes are kept apart; the rest is `other`. A cause is a metric's label, so there must be few.
const MOST_CAUSES: usize = 16;
const LONGEST_CAUSE: usize = 100;
/// After so many falls in a row health turns red; the actor is raised again all the same.
const FAILING_AFTER: u32 = 5;

pub type SharedPulse = Arc<Pulse>;
pub struct Pulse {
    pub name: String,
    restarts: IntCounterVec,
    progress: AtomicBool,
    state: Mutex<State>,
}
#[derive(Default)]
struct State {
    causes: Vec<(String, u64)>,
    last_error: Option<String>,
    trouble: Option<String>,
    in_a_row: u32,
    phase: Phase,
}
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    Waiting,
    Drained,
}

impl Pulse {
    /// `restarts` has the labels actor and cause.
    pub fn new(name: impl Into<String>, restarts: IntCounterVec) -> SharedPulse {
        Arc::new(Self {
            name: name.into(),
            restarts,
            progress: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    pub fn fell(&self, cause: &str, in_a_row: u32) {
        let mut state = self.state();
        let short = cause
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(LONGEST_CAUSE)
            .collect::<String>();
        let known = state.causes.iter().position(|(c, _)| *c == short);
        let label = if known.is_some() || state.causes.len() < MOST_CAUSES {
            short
        } else {
            "other".to_owned()
        };
        self.restarts
            .with_label_values(&[self.name.as_str(), label.as_str()])
            .inc();
        match state.causes.iter_mut().find(|(c, _)| *c == label) {
            Some((_, n)) => *n += 1,
            None => state.causes.push((label, 1)),
        }
        state.last_error = Some(cause.to_owned());
        state.in_a_row = in_a_row;
        state.phase = Phase::Waiting;
    }
    /// It got something done: its next fall is not one more in a row. Cheap, once a batch.
    pub fn progressed(&self) {
        self.progress.store(true, Relaxed);
    }
    pub fn take_progress(&self) -> bool {
        self.progress.swap(false, Relaxed)
    }
    pub fn runs(&self) {
        self.state().phase = Phase::Running;
    }
    /// It has run well for a while since its last fall.
    pub fn is_well(&self) {
        self.state().in_a_row = 0;
    }
    pub fn drained(&self) {
        self.state().phase = Phase::Drained;
    }
    pub fn is_failing(&self) -> bool {
        self.state().in_a_row >= FAILING_AFTER
    }
    pub fn word(&self) -> &'static str {
        let state = self.state();
        match state.phase {
            Phase::Drained => "drained",
            _ if state.in_a_row >= FAILING_AFTER => "failing",
            Phase::Waiting => "restarting",
            Phase::Running => "running",
        }
    }
    /// It lives, and cannot do its work for now: why.
    pub fn troubled(&self, why: Option<String>) {
        self.state().trouble = why;
    }
    pub fn trouble(&self) -> Option<String> {
        self.state().trouble.clone()
    }
    pub fn causes(&self) -> Vec<(String, u64)> {
        self.state().causes.clone()
    }
    pub fn last_error(&self) -> Option<String> {
        self.state().last_error.clone()
    }
}
