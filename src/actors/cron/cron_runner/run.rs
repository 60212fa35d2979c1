//! One run on its way, and what its end means.
use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    executors::{End, Executors, Order, Outcome, SharedCapture, Stop},
    model::{JobSpec, RunId, RunRecord, RunState},
    os::Exit,
};

pub struct Run {
    pub record: RunRecord,
    /// Of the job, in the agenda; what stands there may be another by now.
    pub at: usize,
    pub spec: Option<Arc<JobSpec>>,
    pub mod_revision: i64,
    pub phase: Phase,
    /// The instant before its own.
    pub before: Option<Timestamp>,
    /// The run that its exclusive firing was claimed with: itself, or its first try.
    pub claim: Option<RunId>,
}
pub enum Phase {
    /// The store is being asked whether it is ours.
    Claiming,
    /// Until its jitter or retry wait is over, by the steady clock.
    Waiting(Duration),
    /// For the run before it.
    Behind,
    /// For a free place.
    Ready,
    /// Its start record is on its way to the disk. By whom it was killed meanwhile.
    Writing(Option<String>),
    Running {
        stop: watch::Sender<Option<Stop>>,
        output: SharedCapture,
    },
    /// Over, but processes of it are left, since then by the steady clock: it counts for `overlap`.
    Left(Duration),
}
impl Run {
    /// It has not begun, and may be taken back without a trace on the host.
    pub fn is_yet_to_come(&self) -> bool {
        matches!(
            self.phase,
            Phase::Claiming | Phase::Waiting(_) | Phase::Behind | Phase::Ready
        )
    }
}

pub fn order(record: &RunRecord, spec: &JobSpec, executors: &Executors) -> Option<Order> {
    let (program, args) = executors.get(&spec.terms.executor)?.argv(&spec.cmd, &spec.args);
    Some(Order {
        run_id: record.run_id.to_string(),
        task_id: record.job.task_id.to_string(),
        fire_time: record.planned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        program,
        args,
        env: spec.terms.env.clone(),
        dir: spec.terms.dir.clone(),
        user: spec.terms.user.clone(),
        timeout: spec.terms.timeout,
        kill_after: spec.terms.kill_after,
        leave_children: spec.terms.leave_children,
    })
}

/// What a run's end is called, and what is to be said of it.
pub fn end_of(outcome: &Outcome) -> (RunState, String) {
    let (state, error) = match &outcome.end {
        End::Exited(Exit::Code(0)) => (RunState::Succeeded, String::new()),
        End::Exited(Exit::Code(code)) => (RunState::Failed(Some(*code)), String::new()),
        End::Exited(Exit::Signal(signal)) => (
            RunState::Failed(Some(128 + signal)),
            format!("ended by signal {signal}"),
        ),
        End::TimedOut => (RunState::TimedOut, String::new()),
        End::Killed(by) => (RunState::Killed(by.clone()), String::new()),
        End::Left => (RunState::Lost, "left alone by the agent's stop".to_owned()),
        End::NotStarted(why) => (RunState::Failed(None), why.clone()),
    };
    match outcome.unkillable.as_slice() {
        [] => (state, error),
        pids => {
            let pids = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
            (
                state,
                format!(
                    "{error}{}SIGKILL did not end {pids}",
                    if error.is_empty() { "" } else { "; " }
                ),
            )
        }
    }
}

/// Before try `attempt + 1`: the wait of the job, doubled each time.
pub fn retry_wait(spec: &JobSpec, attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    spec.terms.retry_wait.saturating_mul(1 << doublings)
}
