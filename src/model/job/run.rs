//! One run of a job: what started it, how it went, how it ended.
use std::fmt;

use jiff::Timestamp;

use super::JobKey;

/// Names a run for ever: 48 bits of milliseconds and 80 of chance, in 26 letters that sort by time (a ULID).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(u128);
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
impl RunId {
    pub fn new(at: Timestamp, chance: [u8; 10]) -> Self {
        let ms = u128::from(at.as_millisecond().max(0) as u64 & 0xffff_ffff_ffff);
        let mut low = [0; 16];
        low[6..].copy_from_slice(&chance);
        Self(ms << 80 | u128::from_be_bytes(low))
    }
    pub fn as_u128(self) -> u128 {
        self.0
    }
    pub fn of_u128(number: u128) -> Self {
        Self(number)
    }
}
impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: [u8; 26] = std::array::from_fn(|i| LETTERS[(self.0 >> (5 * (25 - i)) & 31) as usize]);
        f.pad(std::str::from_utf8(&letters).unwrap_or_default())
    }
}
impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl std::str::FromStr for RunId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("found {text:?}, accepted: a run id, 26 letters and digits, as `agent jobs runs` shows them");
        if text.len() != 26 || !matches!(text.as_bytes()[0], b'0'..=b'7') {
            return Err(refused());
        }
        text.bytes()
            .try_fold(0u128, |number, letter| {
                let value = LETTERS
                    .iter()
                    .position(|l| *l == letter.to_ascii_uppercase())
                    .ok_or_else(refused)?;
                Ok(number << 5 | value as u128)
            })
            .map(Self)
    }
}

/// What made it run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its instant came.
    Planned,
    /// Its instant had passed while no agent was there, by `start_grace` at most.
    Late,
    /// `catch_up = last`.
    CatchUp,
    /// `type = once`.
    Once,
    /// Somebody asked for it: who.
    Asked(String),
}
impl Cause {
    pub fn word(&self) -> &str {
        match self {
            Self::Planned => "planned",
            Self::Late => "late",
            Self::CatchUp => "catch_up",
            Self::Once => "once",
            Self::Asked(_) => "asked",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Waits for the run before it, its jitter, its retry or a free place.
    Queued,
    Running,
    Succeeded,
    /// Its exit code; 128 + signal if a signal ended it; none: it could not be started (`RunRecord::error` says why).
    Failed(Option<i32>),
    TimedOut,
    /// By whom.
    Killed(String),
    /// Why.
    Skipped(String),
    /// So many planned instants passed without a run.
    Missed(u64),
    /// The agent ended during it.
    Lost,
}
impl RunState {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed(_) => "failed",
            Self::TimedOut => "timed_out",
            Self::Killed(_) => "killed",
            Self::Skipped(_) => "skipped",
            Self::Missed(_) => "missed",
            Self::Lost => "lost",
        }
    }
    pub fn is_over(&self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
    /// It ran, and not well: what turns a job to `failing`.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TimedOut | Self::Lost)
    }
}
impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Self::Failed(Some(code)) => write!(f, "({code})"),
            Self::Killed(what) | Self::Skipped(what) => write!(f, "({what})"),
            Self::Missed(n) => write!(f, "({n})"),
            _ => Ok(()),
        }
    }
}

/// How the agent finds all that a run started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// A cgroup of its own: nothing escapes.
    Cgroup,
    /// Descendants, then AGENT_RUN_ID: misses who cleared its environment and left its session.
    Sweep,
}
impl Tree {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Sweep => "sweep",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    pub run_id: RunId,
    pub job: JobKey,
    pub cause: Cause,
    /// The instant it was due at; for a run that was asked for, when it was asked for.
    pub planned: Timestamp,
    pub started: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub state: RunState,
    /// 1 is the first try.
    pub attempt: u32,
    /// Why it could not be started, or what is to be said of its end; empty: nothing.
    pub error: String,
    pub pid: Option<i32>,
    /// Of its leader, in clock ticks since boot: so that a reused pid is no survivor.
    pub pid_started: Option<u64>,
    pub tree: Option<Tree>,
    /// Bytes that it wrote, and how many of them were not kept.
    pub output_bytes: u64,
    pub output_gap: u64,
    /// Processes that outlived SIGKILL by 5 s.
    pub unkillable: Vec<i32>,
}
impl RunRecord {
    pub fn new(run_id: RunId, job: JobKey, cause: Cause, planned: Timestamp) -> Self {
        Self {
            run_id,
            job,
            cause,
            planned,
            started: None,
            ended: None,
            state: RunState::Queued,
            attempt: 1,
            error: String::new(),
            pid: None,
            pid_started: None,
            tree: None,
            output_bytes: 0,
            output_gap: 0,
            unkillable: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn run_ids_are_read_back_and_sort_by_time(a in 0i64..1 << 47, b in 0i64..1 << 47, chance: [u8; 10], other: [u8; 10]) {
            let id = |ms, chance| RunId::new(Timestamp::from_millisecond(ms).unwrap(), chance);
            let (first, second) = (id(a, chance), id(b, other));
            prop_assert_eq!(first.to_string().parse::<RunId>(), Ok(first));
            prop_assert_eq!(first.to_string().to_lowercase().parse::<RunId>(), Ok(first));
            if a != b {
                prop_assert_eq!(first.to_string() < second.to_string(), a < b);
            }
        }
        #[test]
        fn any_text_is_answered(text: String) {
            let _ = text.parse::<RunId>();
        }
    }
    #[test]
    fn states_as_they_are_shown() {
        for (state, shown) in [
            (RunState::Failed(Some(3)), "failed(3)"),
            (RunState::Failed(None), "failed"),
            (RunState::Killed("stop".into()), "killed(stop)"),
            (RunState::Skipped("overlap".into()), "skipped(overlap)"),
            (RunState::Missed(7), "missed(7)"),
            (RunState::TimedOut, "timed_out"),
        ] {
            assert_eq!(state.to_string(), shown);
        }
    }
}
