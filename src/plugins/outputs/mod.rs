//! Outputs: where events go. To add one: its file, and one line of CATALOG.
pub mod encode;
pub mod logr;
pub mod null;
pub mod stdout;
pub mod tcp;
#[cfg(test)]
mod testing;

use std::{io, sync::Arc};

use crate::{
    clock::SharedClock,
    model::{Batch, Host},
    plugins::{Plugin, PluginError, Table},
};

pub type Build = fn(&Table, OutputContext) -> Result<Box<dyn Output>, PluginError>;
pub const CATALOG: &[Plugin<Build>] = &[stdout::PLUGIN, logr::PLUGIN, tcp::PLUGIN, null::PLUGIN];

/// What an output is given at its mount.
#[derive(Clone)]
pub struct OutputContext {
    pub pipeline: Arc<str>,
    /// Its name within the pipeline, for logs: `logr`, or `logr#2` for the second.
    pub label: Arc<str>,
    pub host: Arc<Host>,
    pub log: slog::Logger,
    pub clock: SharedClock,
}

/// What came of a write.
#[derive(Debug)]
pub struct Written {
    /// How many batches, from the front, are delivered.
    pub batches: usize,
    /// Why not all. None with fewer than all: nothing is known to be wrong, call again at once with what is left (a border was
    /// reached, or the far side took or acknowledged nothing for up to 100 ms: so that a stop is heard meanwhile, and that what came
    /// meanwhile is sent too).
    pub stopped: Option<OutputError>,
}
impl Written {
    pub fn all(batches: usize) -> Self {
        Self { batches, stopped: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// May go away: the same front is written again, later.
    #[error("{0}")]
    Retry(String),
    /// The batch after the delivered ones will never be taken: it goes to the dead letter.
    #[error("{0}")]
    Refused(String),
    /// The far side has left for good (stdout closed): the pipeline ends.
    #[error("{0}")]
    Closed(String),
}

/// One step of reaching the far side, for `agent check --online`.
#[derive(Debug)]
pub struct Step {
    /// `connect to a:514`
    pub what: String,
    /// What was found, or what failed.
    pub result: Result<String, String>,
}
impl Step {
    pub fn new(what: String, result: Result<String, &String>) -> Self {
        Self {
            what,
            result: result.map_err(String::clone),
        }
    }
}

pub type Syncer = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What the system said, in our words: lower case, without the number.
pub fn said(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Blocking: runs on a thread that may wait for the far side, where the Sink moves it and takes it back. It survives falls: what a
/// failed or panicked `write` had already written is its own to remember, for the next `write` begins with the same first batch
/// unless that was reported as delivered, and what is delivered must be there once, whole and in order.
pub trait Output: Send {
    /// Writes these in order. Batches may be empty (all filtered away): they count as delivered.
    fn write(&mut self, batches: &[Batch]) -> Written;
    /// In a reload, before it is mounted: opens or tries what can be without an event, so that settings which cannot work change
    /// nothing. What another output of this process still holds is no error: it is about to let go of it.
    fn bind(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// Work after which what was delivered until now survives a power loss. It may be done on another thread while the next writes
    /// go on; after an error the next one may succeed, although what this one was for is not safe.
    fn syncer(&mut self) -> Syncer {
        Box::new(|| Ok(()))
    }
    /// What was delivered so far survives a power loss after this.
    fn sync(&mut self) -> io::Result<()> {
        self.syncer()()
    }
    /// Opens its target by name again at the next write (SIGUSR1: somebody moved the file).
    fn reopen(&mut self) {}
    /// Reaches for its far side, step by step, and writes nothing there that stays (`agent check --online`). An output without a far
    /// side has no steps.
    fn online(&mut self, _say: &mut dyn FnMut(Step)) {}
    /// The last call of an orderly stop.
    fn close(&mut self) -> io::Result<()> {
        self.sync()
    }
}
