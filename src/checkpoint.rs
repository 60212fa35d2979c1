//! The checkpoint journal of a pipeline: how far each source was read, settled and synced.
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::model::{Mark, Progress, SourceId};

pub type SharedJournal = Arc<Mutex<Journal>>;

/// What a file is known by, besides its bytes before the offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub path: PathBuf,
    pub device: u64,
    pub inode: u64,
    /// How many bytes from its start the hash covers: at most 4 KiB, fewer while the file is shorter.
    pub head_len: u32,
    pub head_hash: u64,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: SourceId,
    pub identity: Identity,
    /// All outputs have it: where the next start begins.
    pub settled: Progress,
    /// And it survives a power loss there: where a start after another boot begins.
    pub synced: Progress,
    /// When the source was last seen, seconds since 1970.
    pub seen: i64,
}

pub struct Journal {}

/// What was found at the opening.
pub struct Opened {
    pub journal: Journal,
    /// Loud: what was damaged and what was used instead.
    pub damage: Option<String>,
}

impl Journal {
    /// Reads what is in `dir` (made if missing). Damage never blocks the start. Under another boot id than the one it was written
    /// under, each `settled` is set back to its `synced`.
    pub fn open(_dir: &Path, _boot_id: &str) -> io::Result<Opened> {
        todo!()
    }
    pub fn entries(&self) -> Vec<Entry> {
        todo!()
    }
    pub fn get(&self, _id: SourceId) -> Option<Entry> {
        todo!()
    }
    /// A new source, at `progress` (settled and synced alike).
    pub fn add(&mut self, _identity: Identity, _at: Progress, _seen: i64) -> SourceId {
        todo!()
    }
    /// The source has another name now, or its head has grown.
    pub fn identify(&mut self, _id: SourceId, _identity: Identity, _seen: i64) {
        todo!()
    }
    /// Begins the source anew (it was truncated): settled and synced alike.
    pub fn restart(&mut self, _id: SourceId, _at: Progress) {
        todo!()
    }
    pub fn remove(&mut self, _id: SourceId) {
        todo!()
    }
    /// All outputs have settled up to these marks (in order; the last of a source counts).
    pub fn settle(&mut self, _marks: &[Mark]) {
        todo!()
    }
    /// Appends what has changed since the last write. Called at most every 50 ms. An error leaves it to be written next time.
    pub fn write(&mut self) -> io::Result<()> {
        todo!()
    }
    /// What the outputs are about to sync: take it before they do, hand it to `sync` after.
    pub fn before_sync(&self) -> Vec<(SourceId, Progress)> {
        todo!()
    }
    /// The outputs have synced: sets `synced`, writes, fdatasyncs.
    pub fn sync(&mut self, _synced: &[(SourceId, Progress)]) -> io::Result<()> {
        todo!()
    }
}
