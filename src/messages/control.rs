//! Questions and orders. Answers are plain data; who shows them gives them their form.
use std::time::Duration;

use actix::prelude::*;
use jiff::Timestamp;

use crate::model::{FileStatus, Host, RunId};

/// Finish what you have, then answer. A Collector stops reading; a stage or Sink answers when it holds nothing.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain;

/// Open targets by name again (SIGUSR1).
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct Reopen;

// ---- what HttpApi asks Root
#[derive(Message)]
#[rtype(result = "AgentView")]
pub struct AskAgent;
#[derive(Message)]
#[rtype(result = "Vec<ActorView>")]
pub struct AskActors;
#[derive(Message)]
#[rtype(result = "Vec<PipelineView>")]
pub struct AskPipelines;
#[derive(Message)]
#[rtype(result = "Vec<(String, Vec<FileStatus>)>")] // by pipeline
pub struct AskFiles;
/// Brings all gauges of the registry up to date; the text is then read from there.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AskMetrics;
#[derive(Message)]
#[rtype(result = "Health")]
pub struct AskHealth;
/// Why is this file not read? One sentence, the one rule.
#[derive(Message)]
#[rtype(result = "String")]
pub struct AskWhy(pub String);
/// Drain and leave, as SIGTERM does. Answered at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AskStop {
    /// A run of this agent asks for it: it is not waited for, else both would wait.
    pub by_run: Option<RunId>,
}
/// As SIGUSR1.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AskReopen;

/// Read the settings again and change by difference what runs, as SIGHUP does. Answered when that is done.
#[derive(Message)]
#[rtype(result = "Result<Reloaded, ReloadRefused>")]
pub struct AskReload;
/// What a reload has changed. Empty: nothing was other than before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reloaded {
    pub added: Vec<KeyChange>,
    pub removed: Vec<KeyChange>,
    pub changed: Vec<KeyChange>,
    /// What goes on by itself, because something hangs: a sentence each.
    pub pending: Vec<String>,
}
impl Reloaded {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}
/// A key with its values before and after, secrets masked; null where there was or is none.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    pub key: String,
    pub from: serde_json::Value,
    pub to: serde_json::Value,
}
/// Nothing was touched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReloadRefused {
    /// What `agent check` says of them.
    #[error("{text}")]
    Settings { text: String, errors: Vec<String> },
    #[error("needs restart: {}", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// Something could not be made or bound.
    #[error("{0}")]
    Failed(String),
    #[error("a reload is under way and another one waits, try again when they are done")]
    Busy,
    #[error("the agent is stopping")]
    Stopping,
}
#[derive(Clone, Debug, PartialEq)]
pub struct ReloadView {
    pub at: Timestamp,
    /// Why it was refused; none: it was made.
    pub error: Option<String>,
}

/// The settings in effect, with secrets masked.
#[derive(Message)]
#[rtype(result = "serde_json::Value")]
pub struct AskConfig;
/// The last log records as text, one a line, oldest first; at most so many.
#[derive(Message)]
#[rtype(result = "Vec<String>")]
pub struct AskLogs(pub usize);
/// Log from now on from this level upwards. Answered when it holds.
#[derive(Message, Clone, Copy, Debug, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct SetLogLevel {
    pub level: slog::Level,
    /// Then back to the level of the settings; none: until the next order or start. A later order replaces an earlier one, its
    /// way back included.
    pub revert_after: Option<Duration>,
}

pub struct AgentView {
    pub host: Host,
    pub version: &'static str,
    pub pid: u32,
    pub started: Timestamp,
    pub data_dir: String,
    /// The bound address, with its true port; none: off.
    pub http: Option<String>,
    pub stopping: bool,
    pub log_level: String,
    pub last_reload: Option<ReloadView>,
}

#[derive(Clone, Debug)]
pub struct ActorView {
    /// `collector/default`, `filter/default`, `sink/default/logr`, `http`, …
    pub name: String,
    /// `running`, `restarting`, `drained`, `failing` (five falls in a row)
    pub state: &'static str,
    /// By cause.
    pub restarts: Vec<(String, u64)>,
    pub last_error: Option<String>,
    /// Room that is taken, of all there is, in events; none if no data enters by a Port.
    pub fill: Option<(u64, u64)>,
    /// How long others waited for room here.
    pub waited: Duration,
}

#[derive(Clone, Debug)]
pub struct PipelineView {
    pub name: String,
    pub input: String,
    pub filters: Vec<String>,
    pub events_in: u64,
    pub bytes_in: u64,
    pub filtered: u64,
    /// All was read (`--once`, end of stdin).
    pub ended: bool,
    /// Why the input cannot be read at present.
    pub error: Option<String>,
    /// How the input reads at present, if an operator should know: it polls, and why.
    pub note: Option<String>,
    pub checkpoint_error: Option<String>,
    /// Events read and not yet settled by every output that blocks.
    pub unsettled: u64,
    /// What is unsettled is still at its source.
    pub rewinds: bool,
    pub outputs: Vec<OutputView>,
}

#[derive(Clone, Debug)]
pub struct OutputView {
    pub label: String,
    pub plugin: String,
    pub when_full: &'static str,
    /// `closed`, `half-open`, `open`
    pub breaker: &'static str,
    pub delivered: u64,
    pub dropped: u64,
    pub dead: u64,
    pub waiting: u64,
    /// Of these: in its own queue, settled already (outputs that drop).
    pub queued: u64,
    /// in - filtered - delivered - dropped - dead - waiting
    pub difference: i64,
    /// Why the last write failed, while it has not succeeded since.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    Ok,
    /// An output is away, the log or a checkpoint cannot be written …: things still flow or wait.
    Degraded,
    /// An actor is out, the state dir cannot be written, conservation is broken.
    Failing,
}
#[derive(Clone, Debug)]
pub struct Health {
    pub state: HealthState,
    pub reasons: Vec<String>,
}
