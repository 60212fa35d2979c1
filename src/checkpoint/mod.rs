//! The checkpoint journal of a pipeline: how far each source was read, settled and synced.
//!
//! The state is in memory; a write appends what has changed to the newest file of its directory, and when that has grown long a new
//! file begins with the whole state (see `generation`). The one before is kept. Nothing found on the disk blocks a start: what is
//! damaged is left out, back to the last state that is whole.
mod generation;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::model::{Mark, Progress, SourceId};
use generation::{Generation, Loaded, Payload, Unusable, VERSION};

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

/// Sits behind a mutex. A panic in here leaves no half state: after one, go on with what is in the poisoned mutex.
pub struct Journal {
    dir: PathBuf,
    boot_id: String,
    rows: BTreeMap<SourceId, Row>,
    /// Never used twice in a process: a late mark must not hit another source.
    next_id: u64,
    /// To be written: rows, and rows that are gone.
    changed: BTreeSet<SourceId>,
    removed: Vec<SourceId>,
    /// None: there is no file that could be appended to; the next write begins one.
    file: Option<Generation>,
    /// To be begun even if nothing changes: the file in use is damaged, or of another boot.
    renew: bool,
    /// The highest generation seen or tried.
    highest: u64,
    /// The one that holds our last written state.
    base: Option<u64>,
    /// Counts the calls of `before_sync`, so that `sync` knows which rows were restarted in between.
    syncs: Cell<u64>,
}

struct Row {
    entry: Entry,
    change: Change,
    /// It is in the file, in this or an older form.
    stored: bool,
    /// The value of `syncs` when it was restarted.
    restarted: Option<u64>,
}
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    None,
    Moved,
    Whole,
}

/// What was found at the opening.
pub struct Opened {
    pub journal: Journal,
    /// Loud: what was damaged and what was used instead.
    pub damage: Option<String>,
}

impl Journal {
    /// Reads what is in `dir` (made if missing). Damage never blocks the start. Under another boot id than the one it was written
    /// under, each `settled` is set back to its `synced`: the kernel may have written the journal back, but not the outputs' data.
    /// An empty boot id is like no other. Nothing is written before the first `write`.
    pub fn open(dir: &Path, boot_id: &str) -> io::Result<Opened> {
        make_dir(dir).map_err(|e| said(e, "could not make checkpoint directory", dir))?;
        let generations = generation::list(dir).map_err(|e| said(e, "could not read checkpoint directory", dir))?;
        let mut journal = Self {
            dir: dir.to_owned(),
            boot_id: boot_id.to_owned(),
            rows: BTreeMap::new(),
            next_id: 1,
            changed: BTreeSet::new(),
            removed: Vec::new(),
            file: None,
            renew: false,
            highest: generations.first().copied().unwrap_or(0),
            base: None,
            syncs: Cell::new(0),
        };
        let mut damage = Vec::new();
        for &number in &generations {
            let name = generation::path(dir, number);
            let name = name.display();
            match Loaded::read(dir, number) {
                Ok(loaded) => {
                    if !loaded.is_whole() {
                        let lost = loaded.len - loaded.good;
                        damage.push(format!(
                            "{name}: the last {lost} bytes are torn or damaged, using what is before them"
                        ));
                    }
                    journal.take(number, loaded);
                    break;
                }
                Err(Unusable::Damaged(why)) => damage.push(format!("{name}: {why}")),
                Err(Unusable::Newer(version)) => damage.push(format!(
                    "{name}: it is of version {version}, accepted are versions up to {VERSION}"
                )),
            }
        }
        if !damage.is_empty() {
            journal.renew = true;
            match journal.base {
                Some(number) if number < journal.highest => {
                    damage.push(format!("using the older generation {number}"));
                }
                None => damage.push("no usable checkpoint is left, sources begin anew".to_owned()),
                _ => {}
            }
        }
        Ok(Opened {
            journal,
            damage: (!damage.is_empty()).then(|| damage.join("; ")),
        })
    }
    fn take(&mut self, number: u64, loaded: Loaded) {
        let same_boot = loaded.boot_id == self.boot_id && !self.boot_id.is_empty();
        if same_boot && loaded.is_whole() && number == self.highest {
            // If it cannot be opened for writing, the next write says so.
            self.file = Generation::resume(&self.dir, number, &loaded).ok();
        }
        self.renew = self.file.is_none();
        self.base = Some(number);
        self.next_id = loaded.entries.last_key_value().map_or(1, |(id, _)| id.0 + 1);
        self.rows = loaded
            .entries
            .into_iter()
            .map(|(id, mut entry)| {
                if !same_boot {
                    entry.settled = entry.synced;
                }
                (id, Row::new(entry, Change::None))
            })
            .collect();
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.rows.values().map(|row| row.entry.clone()).collect()
    }
    pub fn get(&self, id: SourceId) -> Option<Entry> {
        self.rows.get(&id).map(|row| row.entry.clone())
    }

    /// A new source, at `progress` (settled and synced alike).
    pub fn add(&mut self, identity: Identity, at: Progress, seen: i64) -> SourceId {
        let id = SourceId(self.next_id);
        self.next_id += 1;
        let entry = Entry {
            id,
            identity,
            settled: at,
            synced: at,
            seen,
        };
        self.rows.insert(id, Row::new(entry, Change::Whole));
        self.changed.insert(id);
        id
    }
    /// The source has another name now, or its head has grown.
    pub fn identify(&mut self, id: SourceId, identity: Identity, seen: i64) {
        self.change(id, Change::Whole, |entry| {
            set(&mut entry.identity, identity) | set(&mut entry.seen, seen)
        });
    }
    /// Begins the source anew (it was truncated): settled and synced alike.
    pub fn restart(&mut self, id: SourceId, at: Progress) {
        self.change(id, Change::Moved, |entry| {
            set(&mut entry.settled, at) | set(&mut entry.synced, at)
        });
        if let Some(row) = self.rows.get_mut(&id) {
            row.restarted = Some(self.syncs.get());
        }
    }
    pub fn remove(&mut self, id: SourceId) {
        self.changed.remove(&id);
        if self.rows.remove(&id).is_some_and(|row| row.stored) {
            self.removed.push(id);
        }
    }
    /// All outputs have settled up to these marks (in order; the last of a source counts).
    pub fn settle(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.change(mark.source, Change::Moved, |entry| {
                set(&mut entry.settled, mark.progress)
            });
        }
    }
    /// A source that is not known any more is none of our business: its marks may come late. `how` says whether it is other than before.
    fn change(&mut self, id: SourceId, change: Change, how: impl FnOnce(&mut Entry) -> bool) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        if !how(&mut row.entry) {
            return;
        }
        if row.change == Change::None {
            self.changed.insert(id);
        }
        row.change = row.change.max(change);
    }

    /// Appends what has changed since the last write. Called at most every 50 ms. An error leaves it to be written next time.
    pub fn write(&mut self) -> io::Result<()> {
        if self.changed.is_empty() && self.removed.is_empty() && !self.renew {
            return Ok(());
        }
        fail::fail_point!("checkpoint-write", |_| Err(io::Error::other(
            "failpoint checkpoint-write"
        )));
        let Some(file) = &mut self.file else {
            return self.begin_generation();
        };
        let mut changes = Payload::default();
        for id in &self.removed {
            changes.gone(*id);
        }
        for row in self.changed.iter().filter_map(|id| self.rows.get(id)) {
            match row.change {
                Change::None => {}
                Change::Moved => changes.moved(&row.entry),
                Change::Whole => changes.put(&row.entry),
            }
        }
        file.append(&changes)
            .map_err(|e| said(e, "could not write checkpoint", &self.dir))?;
        let long = file.is_long();
        self.is_written();
        if long && let Err(error) = self.begin_generation() {
            // All is written all the same, and the file in use serves on.
            self.file.iter_mut().for_each(Generation::go_on);
            return Err(error);
        }
        Ok(())
    }
    fn begin_generation(&mut self) -> io::Result<()> {
        self.highest += 1; // also if it fails: what is left of it must not be taken for the next one
        let mut snapshot = Payload::default();
        for row in self.rows.values() {
            snapshot.put(&row.entry);
        }
        let begun = Generation::create(&self.dir, self.highest, &self.boot_id, &snapshot)
            .map_err(|e| said(e, "could not begin a new checkpoint generation in", &self.dir))?;
        let before = self.base.replace(begun.number);
        self.file = Some(begun);
        self.renew = false;
        self.is_written();
        // What cannot be deleted now is deleted by the next one.
        for number in generation::list(&self.dir).unwrap_or_default() {
            if ![self.base, before].contains(&Some(number)) && !generation::is_newer(&self.dir, number) {
                let _ = std::fs::remove_file(generation::path(&self.dir, number));
            }
        }
        Ok(())
    }
    fn is_written(&mut self) {
        self.removed.clear();
        for id in std::mem::take(&mut self.changed) {
            if let Some(row) = self.rows.get_mut(&id) {
                (row.change, row.stored) = (Change::None, true);
            }
        }
    }

    /// What the outputs are about to sync: take it before they do, hand it to `sync` after. One at a time.
    pub fn before_sync(&self) -> Vec<(SourceId, Progress)> {
        self.syncs.set(self.syncs.get() + 1);
        self.rows
            .values()
            .filter(|row| row.entry.settled != row.entry.synced)
            .map(|row| (row.entry.id, row.entry.settled))
            .collect()
    }
    /// The outputs have synced: sets `synced`, writes, fdatasyncs. What was restarted since `before_sync` stays as it is.
    pub fn sync(&mut self, synced: &[(SourceId, Progress)]) -> io::Result<()> {
        match self.begin_sync(synced)?.map_or(Ok(()), |file| file.sync_data()) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.sync_failed(error)),
        }
    }
    /// The first half of `sync`: the caller then syncs that file, which may take its time, and tells `sync_failed` if it could not.
    pub fn begin_sync(&mut self, synced: &[(SourceId, Progress)]) -> io::Result<Option<File>> {
        for &(id, progress) in synced {
            if self
                .rows
                .get(&id)
                .is_some_and(|row| row.restarted != Some(self.syncs.get()))
            {
                self.change(id, Change::Moved, |entry| set(&mut entry.synced, progress));
            }
        }
        self.write()?;
        let file = self.file.as_mut().map_or(Ok(None), Generation::unsynced);
        file.map_err(|error| said(error, "could not sync checkpoint", &self.dir))
    }
    /// The kernel may have thrown the pages away and call them clean: what they held is written anew. Says the error in full.
    pub fn sync_failed(&mut self, error: io::Error) -> io::Error {
        self.file = None;
        self.renew = true;
        said(error, "could not sync checkpoint", &self.dir)
    }
}

impl Row {
    fn new(entry: Entry, change: Change) -> Self {
        Self {
            entry,
            change,
            stored: change == Change::None,
            restarted: None,
        }
    }
}

fn set<T: PartialEq>(field: &mut T, value: T) -> bool {
    let other = *field != value;
    *field = value;
    other
}
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Where that is not possible, a power loss may take the new directory: then sources begin anew.
    let parent = dir.parent().and_then(|parent| File::open(parent).ok());
    let _ = parent.map(|parent| parent.sync_all());
    Ok(())
}
fn said(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
