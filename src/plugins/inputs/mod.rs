//! Inputs: where events come from. To add one: its file, and one line of CATALOG.
pub mod cron;
pub mod file;
pub mod jobs;
pub mod stdin;

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use crate::{
    checkpoint::SharedJournal,
    clock::SharedClock,
    model::{Chunk, Host, file_status::SharedFileBoard, job::feed::SharedRunFeed},
    plugins::{Plugin, PluginError, Table},
};

pub type Build = fn(&Table, InputContext) -> Result<Box<dyn Input>, PluginError>;
pub const CATALOG: &[Plugin<Build>] = &[
    stdin::PLUGIN,
    file::PLUGIN_V1,
    file::PLUGIN_V2,
    cron::PLUGIN,
    jobs::PLUGIN,
];

/// What an input is given at its mount.
#[derive(Clone)]
pub struct InputContext {
    /// The pipeline's name; checkpoints belong to it.
    pub pipeline: Arc<str>,
    pub host: Arc<Host>,
    pub log: slog::Logger,
    pub clock: SharedClock,
    /// Read what is there, then end (`--once`, bare `agent`).
    pub once: bool,
    /// None where no state is kept (bare `agent` on stdin).
    pub journal: Option<SharedJournal>,
    pub board: SharedFileBoard,
    /// Counters by name and reason: `tally.count("lines_cut", 1)`.
    pub tally: SharedTally,
    /// Runs of this agent's jobs. None: it runs none.
    pub runs: Option<SharedRunFeed>,
}

/// Where a plugin counts what happened to it. Names are lower_snake; they become `luffly_input_<name>_total{pipeline}`.
pub trait Tally: Send + Sync {
    fn count(&self, name: &'static str, by: u64);
}
pub type SharedTally = Arc<dyn Tally>;
/// For tests and tools.
pub struct NoTally;
impl Tally for NoTally {
    fn count(&self, _: &'static str, _: u64) {}
}

/// How much may be read now.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// How many chunks at most.
    pub chunks: usize,
    /// Bytes in all of them at most; one larger event goes alone all the same.
    pub bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There may be more at once.
    More,
    /// Nothing for now; look again after this long.
    Idle(Duration),
    /// Nothing will ever come.
    Ended,
}

/// What ends a wait before its time.
pub struct News {
    /// Readable when there may be something to read.
    pub fd: Arc<OwnedFd>,
    /// Not looked at before so long: a source that has news all the time costs no wake-up for each.
    pub rest: Duration,
}

/// The source cannot be read at present; the Collector backs off and asks again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// Blocking: runs on a thread that may wait for a disk, where the Collector moves it and takes it back. It keeps its place through a
/// panic: whatever it has put into `into` counts as read, whatever it has not is read again.
pub trait Input: Send {
    /// Reads up to `want` into `into`. Waits for at most about 100 ms, so that a stop is heard.
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError>;
    /// If a poll says that a read would find something and wait for nothing: reads. None: it might wait, so `read` must do it. It runs
    /// where the Collector lives and saves the way to the blocking thread and back.
    fn read_at_once(&mut self, _want: Want, _into: &mut Vec<Chunk>) -> Option<Result<Next, InputError>> {
        None
    }
    /// Nothing more will be asked from the source: give out what was taken from it already, then end. For inputs that cannot rewind.
    fn no_more(&mut self) {}
    /// Goes back to what the journal says, after the Collector has lost what was read since (it never does by itself).
    fn rewinds(&self) -> bool;
    /// Asked after `Idle`: what may end that wait sooner. The next `read` takes it in.
    fn news(&self) -> Option<News> {
        None
    }
    /// One sentence about how it reads at present that an operator should know: shown in status, and no trouble.
    fn note(&self) -> Option<&str> {
        None
    }
    /// Told about once in 50 ms how far things are settled; the place to let go of files that are done with.
    fn settled(&mut self) {}
}
