//! What an input says about each file it knows: shown by `agent files`, asked by `agent why`.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Open and being read, or waiting for more.
    Tailing,
    /// All was read and nothing new came for a while; no descriptor is held.
    Idle,
    /// Renamed out of sight or deleted; the open descriptor is read to its end.
    Leaving,
    /// Cannot be opened or read: `reason` says why.
    Denied,
    /// Not read on purpose: `reason` names the rule.
    Skipped,
}
impl FileState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Tailing => "tailing",
            Self::Idle => "idle",
            Self::Leaving => "leaving",
            Self::Denied => "denied",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// Escaped for people: a name may hold any byte.
    pub path: String,
    /// `device:inode` in hex, empty if never opened.
    pub identity: String,
    /// Bytes.
    pub size: u64,
    /// How far it was read, in bytes.
    pub read: u64,
    /// How far all outputs have settled it, in bytes.
    pub acknowledged: u64,
    pub state: FileState,
    /// One sentence: why it is in that state; empty for the ordinary one.
    pub reason: String,
    /// Other names of the same file.
    pub aliases: Vec<String>,
}

/// Where a file input writes what it knows, and whoever asks reads it: the input itself may be away, reading.
#[derive(Default)]
pub struct FileBoard(Mutex<BTreeMap<PathBuf, FileStatus>>);
pub type SharedFileBoard = Arc<FileBoard>;
impl FileBoard {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, FileStatus>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    /// Changes one row, or makes it.
    pub fn set(&self, path: &Path, status: FileStatus) {
        self.lock().insert(path.to_owned(), status);
    }
    pub fn update(&self, path: &Path, change: impl FnOnce(&mut FileStatus)) {
        if let Some(status) = self.lock().get_mut(path) {
            change(status);
        }
    }
    pub fn remove(&self, path: &Path) {
        self.lock().remove(path);
    }
    /// Another input takes over.
    pub fn clear(&self) {
        self.lock().clear();
    }
    pub fn list(&self) -> Vec<FileStatus> {
        self.lock().values().cloned().collect()
    }
}
