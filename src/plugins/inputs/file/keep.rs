//! What the input keeps for its files: descriptors, what the journal and the board say, and how long what is gone stays.
use std::{
    fs::File,
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

use nix::libc::{EMFILE, ENFILE, O_NOCTTY, O_NONBLOCK};
use slog::{debug, info, warn};

use super::{
    Files, Key, Orphan, Watching,
    discovery::shown,
    identity::{Head, Inode, Stamp},
    reconcile::too_old,
    records::last_line_end,
    source::{Source, is_gzip},
    tail::{Tail, Trouble},
    watch,
};
use crate::{
    checkpoint::{Identity, Journal},
    model::{FileState, FileStatus, Progress, SourceId},
    os,
};

/// Descriptors left to sockets, the log and the state, of those that the process may have.
const RESERVE: u64 = 64;
/// How long a deleted file stays open after the last news: whoever has it open may write some more.
const DELETED_GRACE: Duration = Duration::from_secs(5);
/// How often the journal is told that a file is still there.
pub const STAMP_EVERY: Duration = Duration::from_secs(3600);
/// The same warning about the same file is not given again before.
const WARN_EVERY: Duration = Duration::from_secs(3600);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Half of what may be open.
pub fn default_open() -> usize {
    (os::most_open_files() / 2).clamp(16, 4096) as usize
}
pub fn most_open(wanted: usize) -> usize {
    wanted
        .min(os::most_open_files().saturating_sub(RESERVE) as usize)
        .max(1)
}
/// Opens for reading, without waiting for anybody, and only if it is a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = O_NONBLOCK | O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a regular file any more")),
    }
}

impl Files {
    /// Opens a file by its name. False: not now; its state says why.
    pub(super) fn open(&mut self, key: Key, now: Duration) -> bool {
        while self.open.len() >= self.max_open {
            if !self.close_one() {
                self.trouble(
                    key,
                    "waits for another file to be closed (max_open_files)".to_owned(),
                    now,
                );
                return false;
            }
        }
        let Some(tail) = self.tails.get_mut(&key) else {
            return false;
        };
        let unpack = self.options.read_compressed && is_gzip(&tail.path);
        let opened = open_regular(&tail.path).and_then(|file| {
            let meta = file.metadata()?;
            let (inode, names) = (Inode::of(&meta), meta.nlink());
            Ok((Source::new(file, unpack)?, inode, names))
        });
        match opened {
            Ok((file, inode, names)) if inode == tail.inode => {
                let is_link = tail.path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
                tail.real = is_link.then(|| tail.path.canonicalize().ok()).flatten();
                if let Watching::Here(watcher) = &mut self.watching
                    && (is_link || names > 1 || tail.gone.is_some())
                {
                    watcher.watch_file(key, file.raw(), &tail.path); // it may be written to through a name elsewhere
                }
                if std::mem::take(&mut tail.aged)
                    && let Ok(at) = last_line_end(file.raw(), tail.at.offset, &self.options.framing)
                {
                    (tail.at, tail.size) = (at, at.offset); // not into the middle of a line
                }
                tail.file = Some(file);
                tail.made_room = false;
                tail.active = now;
                self.open.insert(key);
                self.show(key);
                true
            }
            // Another file has the name by now: the next look at the directories tells who is who.
            Ok(_) => self.is_not_there(key),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.is_not_there(key),
            Err(error) => {
                let mut reason = format!("could not open: {error}");
                if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) {
                    self.max_open = self.open.len().max(1);
                    reason += ", raise the limit of open files (ulimit -n, fs.file-max) or lower max_open_files";
                }
                self.trouble(key, reason, now);
                false
            }
        }
    }
    fn is_not_there(&mut self, key: Key) -> bool {
        if self.tails.get(&key).is_some_and(|tail| tail.gone.is_some()) {
            self.lost_sight(key);
        }
        false
    }
    /// Closes the file that was idle for longest; if all have something to read, the one that has waited longest for its turn.
    fn close_one(&mut self) -> bool {
        let candidates = self.open.iter().filter_map(|key| Some((key, self.tails.get(key)?)));
        let oldest = candidates
            .filter(|(_, tail)| tail.gone.is_none())
            .min_by_key(|(_, tail)| (tail.queued, tail.record.waits, tail.active))
            .map(|(key, _)| *key);
        let Some(key) = oldest else { return false };
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.made_room = true;
        }
        self.close(key);
        true
    }
    pub(super) fn close(&mut self, key: Key) {
        self.open.remove(&key);
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.close();
            if tail.record.waits && tail.gone.is_none() {
                self.waiting.insert(key);
            }
        }
        self.show(key);
    }
    pub(super) fn trouble(&mut self, key: Key, reason: String, now: Duration) {
        self.close(key);
        let Some(tail) = self.tails.get_mut(&key) else { return };
        let wait = tail
            .trouble
            .as_ref()
            .map_or(FIRST_WAIT, |trouble| (trouble.wait * 2).min(LONGEST_WAIT));
        let path = tail.path.clone();
        tail.trouble = Some(Trouble {
            reason: reason.clone(),
            until: now + wait,
            wait,
            listed: tail.listed,
        });
        self.troubled.insert(key);
        self.warn_once(&path, reason, now);
        self.show(key);
    }
    pub(super) fn is_well_again(&mut self, key: Key) {
        if !self.troubled.remove(&key) {
            return;
        }
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.trouble = None;
            info!(self.context.log, "file can be read again"; "file" => shown(&tail.path));
        }
        self.show(key);
    }
    pub(super) fn warn_once(&mut self, path: &Path, text: String, now: Duration) {
        let known = self.warned.get(path);
        if known.is_some_and(|(said, when)| *said == text && now.saturating_sub(*when) < WARN_EVERY) {
            return;
        }
        warn!(self.context.log, "file is not read; reason={}", text; "file" => shown(path));
        self.warned.insert(path.to_owned(), (text, now));
    }

    /// Looks at the open files, and at those whose time has come.
    pub(super) fn poll(&mut self, now: Duration) {
        let (mut changed, mut idle) = (Vec::new(), Vec::new());
        let timeout = self.options.framing.record_timeout(self.options.flush_partial);
        let is_due = |tail: &Tail| {
            let quiet = now.saturating_sub(tail.active);
            let deleted = tail.gone.is_some_and(|gone| gone.deleted); // goes as a whole, half a line too
            tail.record.waits && !deleted && timeout.is_some_and(|timeout| quiet >= timeout)
        };
        // All of them, or where the kernel tells, a few: their memory is cold.
        let times_out = self.options.flush_partial.is_some() || timeout.is_some();
        let few = if self.is_told() && !times_out {
            watch::POLLED_AT_ONCE
        } else {
            usize::MAX
        };
        if self.to_poll.is_empty() || few == usize::MAX {
            self.to_poll = self.open.iter().copied().collect();
        }
        let rest = self.to_poll.len().saturating_sub(few);
        for key in &self.to_poll.split_off(rest) {
            let Some(tail) = self
                .tails
                .get_mut(key)
                .filter(|tail| tail.file.is_some() && !tail.queued)
            else {
                continue;
            };
            let stamp = tail
                .file
                .as_ref()
                .and_then(|file| file.metadata().ok())
                .map(|meta| Stamp::of(&meta));
            let quiet = now.saturating_sub(tail.active);
            if stamp != tail.read_to_end {
                tail.active = now;
                changed.push(*key);
            } else if tail.partial && self.options.flush_partial.is_some_and(|after| quiet >= after) {
                tail.flush = true;
                changed.push(*key);
            } else if is_due(tail) {
                tail.record.flush = true;
                changed.push(*key);
            } else if tail.gone.is_none() && !tail.record.waits && quiet >= self.options.close_idle {
                idle.push(*key);
            }
        }
        idle.into_iter().for_each(|key| self.close(key));
        self.waiting.retain(|key| {
            let Some(tail) = self.tails.get_mut(key) else {
                return false;
            };
            if is_due(tail) {
                tail.record.flush = true;
                changed.push(*key); // it is opened again
                return false;
            }
            tail.record.waits && tail.file.is_none()
        });
        let due = |key: &&Key| {
            let trouble = self.tails.get(key).and_then(|tail| tail.trouble.as_ref());
            trouble.is_none_or(|trouble| now >= trouble.until)
        };
        changed.extend(self.troubled.iter().filter(due));
        changed.into_iter().for_each(|key| self.queue(key));
        self.tend_leaving(now);
    }
    /// What no name leads to is kept until its end is read and nobody writes to it any more.
    pub(super) fn tend_leaving(&mut self, now: Duration) {
        for key in self.leaving.iter().copied().collect::<Vec<_>>() {
            let Some(tail) = self.tails.get_mut(&key) else { continue };
            let Some(gone) = &mut tail.gone else { continue };
            let meta = tail.file.as_ref().and_then(|file| file.metadata().ok());
            gone.deleted |= meta.as_ref().is_some_and(|meta| meta.nlink() == 0);
            let (gone, stamp) = (*gone, meta.map(|meta| Stamp::of(&meta)));
            let at_end = tail.read_to_end.is_some() && stamp == tail.read_to_end;
            let grace = if gone.deleted {
                DELETED_GRACE
            } else {
                self.options.close_idle
            };
            if gone.deleted && now.saturating_sub(gone.since) >= self.options.hold_deleted {
                let size = match &tail.file {
                    Some(file) if file.is_packed() => tail.size,
                    _ => stamp.map_or(0, |stamp| stamp.size),
                };
                let left = size.saturating_sub(tail.at.offset);
                if left > 0 {
                    self.context.tally.count("bytes_given_up", left);
                    warn!(self.context.log, "deleted file could not be delivered in time, given up; bytes={}", left;
                        "file" => shown(&tail.path));
                }
                self.finish(key);
            } else if at_end && !tail.queued && now.saturating_sub(tail.active.max(gone.since)) >= grace {
                if tail.partial {
                    tail.flush = true;
                    self.queue(key);
                } else {
                    self.finish(key);
                }
            }
        }
    }
    /// All of it is read, and it will not be found again.
    pub(super) fn finish(&mut self, key: Key) {
        let packed = self.packed_forms.remove(&key);
        let Some(tail) = self.drop_tail(key) else { return };
        debug!(self.context.log, "file is done with"; "file" => shown(&tail.path), "offset" => tail.at.offset);
        if packed.is_some_and(|packed| self.unpack_rest(packed, &tail)) {
            return;
        }
        if tail.gone.is_some_and(|gone| gone.deleted) {
            self.done.push((tail.id, tail.at.offset));
        }
    }
    /// Its name is gone, and it is not open.
    pub(super) fn lost_sight(&mut self, key: Key) {
        let Some(tail) = self.drop_tail(key) else { return };
        let listed = if self.unpacks(&tail.path) { 0 } else { tail.listed.size };
        let lost = listed.max(tail.size).saturating_sub(tail.at.offset);
        if lost > 0 {
            self.context.tally.count("bytes_lost", lost);
            warn!(self.context.log, "file is gone before its end was read; bytes={}", lost; "file" => shown(&tail.path));
        }
    }
    pub(super) fn drop_tail(&mut self, key: Key) -> Option<Tail> {
        let tail = self.tails.remove(&key)?;
        if self.by_inode.get(&tail.inode) == Some(&key) {
            self.by_inode.remove(&tail.inode);
        }
        for keys in [
            &mut self.open,
            &mut self.leaving,
            &mut self.troubled,
            &mut self.waiting,
            &mut self.settling,
        ] {
            keys.remove(&key);
        }
        self.packed_forms.remove(&key);
        if let Some(watcher) = self.watcher() {
            watcher.forget_file(key);
        }
        self.context.board.remove(&tail.path);
        self.stamp(&tail);
        Some(tail)
    }

    /// Something of it was handed over.
    pub(super) fn was_read(&mut self, key: Key, now: Duration) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        tail.active = now;
        if let Some(gone) = &mut tail.gone {
            gone.since = now;
        }
        let read = tail.at.offset;
        let (size, path) = (tail.size, &tail.path);
        self.context
            .board
            .update(path, |row| (row.read, row.size) = (read, size.max(read)));
        self.settling.insert(key);
        let grown = match &tail.file {
            Some(file) if tail.head.is_short_for(read) => Head::of(file, read).ok(),
            _ => None,
        };
        if let Some(head) = grown {
            tail.head = head;
            self.identify(key);
        }
    }
    /// The file has other content than was read: truncated, or written anew. It begins again under a new id, so that what is still in
    /// flight of the old content cannot move the new one's checkpoint; a copy of the old content may take over the old one.
    pub(super) fn replaced(&mut self, key: Key) {
        let Some(tail) = self.tails.get(&key) else { return };
        self.context.tally.count("truncations", 1);
        info!(self.context.log, "file was truncated or written anew, reading it from its start";
            "file" => shown(&tail.path), "read" => tail.at.offset);
        self.orphans.push(Orphan {
            key: Some(key),
            id: tail.id,
            path: tail.path.clone(),
            head: tail.head,
            at: tail.at,
            unread: tail.unread(),
        });
        self.next_scan = Duration::ZERO; // the copy, if there is one, is there already
        let id = self.new_source(&tail.path.clone(), tail.inode, Progress::default());
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.begin_anew(id);
        }
        self.show(key);
    }

    pub(super) fn journal(&self) -> Option<std::sync::MutexGuard<'_, Journal>> {
        let journal = self.context.journal.as_ref()?;
        Some(journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
    pub(super) fn new_source(&mut self, path: &Path, inode: Inode, at: Progress) -> SourceId {
        let seen = self.context.clock.wall().as_second();
        let identity = Identity {
            path: path.to_owned(),
            device: inode.device,
            inode: inode.number,
            head_len: 0,
            head_hash: 0,
        };
        if let Some(mut journal) = self.journal() {
            return journal.add(identity, at, seen);
        }
        self.next_id += 1;
        SourceId(self.next_id - 1)
    }
    pub(super) fn identify(&mut self, key: Key) {
        let now = self.context.clock.wall().as_second();
        let Some(tail) = self.tails.get_mut(&key) else { return };
        tail.stamped = now;
        if let Some(tail) = self.tails.get(&key) {
            self.stamp(tail);
        }
    }
    /// Tells the journal what the file is known by, and that it is there now.
    fn stamp(&self, tail: &Tail) {
        let identity = Identity {
            path: tail.path.clone(),
            device: tail.inode.device,
            inode: tail.inode.number,
            head_len: tail.head.len,
            head_hash: tail.head.hash,
        };
        let now = self.context.clock.wall().as_second();
        if let Some(mut journal) = self.journal() {
            journal.identify(tail.id, identity, now);
        }
    }
    /// Entries of files that were not seen for long go; those of files that are here are kept from it.
    pub(super) fn forget_old(&mut self) {
        let now = self.context.clock.wall().as_second();
        let stale = |tail: &Tail| now.abs_diff(tail.stamped) >= STAMP_EVERY.as_secs();
        let keys = self
            .tails
            .iter()
            .filter(|(_, tail)| stale(tail))
            .map(|(key, _)| *key)
            .collect::<Vec<_>>();
        keys.into_iter().for_each(|key| self.identify(key));
        self.max_open = most_open(self.options.max_open); // it may have been lowered for want of descriptors
        let after = self.options.forget_after.as_secs() as i64;
        if let Some(mut journal) = self.journal() {
            for entry in journal.entries() {
                if now.saturating_sub(entry.seen) > after {
                    journal.remove(entry.id);
                }
            }
        }
    }

    /// Writes a file's row on the board.
    pub(super) fn show(&self, key: Key) {
        let Some(tail) = self.tails.get(&key) else { return };
        let (state, reason) = match (&tail.trouble, tail.gone) {
            (Some(trouble), _) => (FileState::Denied, trouble.reason.clone()),
            (None, Some(gone)) if gone.deleted => (FileState::Leaving, "deleted, is read to its end".to_owned()),
            (None, Some(_)) => (
                FileState::Leaving,
                "renamed out of sight, is read to its end".to_owned(),
            ),
            (None, None) if tail.record.waits && !tail.queued => (
                FileState::Tailing,
                "its last event waits for its end, or for the timeout".to_owned(),
            ),
            (None, None) if tail.file.is_some() || tail.queued => (FileState::Tailing, String::new()),
            (None, None) if tail.aged => (
                FileState::Skipped,
                too_old(self.options.ignore_older.unwrap_or_default()),
            ),
            (None, None) if tail.made_room => (
                FileState::Idle,
                format!(
                    "closed to make room (max_open_files = {}), looked at by name",
                    self.max_open
                ),
            ),
            (None, None) => (FileState::Idle, String::new()),
        };
        let acknowledged = match self.journal() {
            Some(journal) => journal.get(tail.id).map_or(0, |entry| entry.settled.offset),
            None => tail.at.offset,
        };
        let status = FileStatus {
            path: shown(&tail.path),
            identity: tail.inode.to_string(),
            size: if tail.file.is_some() || self.unpacks(&tail.path) {
                tail.size.max(tail.at.offset)
            } else {
                tail.listed.size
            },
            read: tail.at.offset,
            acknowledged,
            state,
            reason,
            aliases: tail.aliases.iter().map(|path| shown(path)).collect(),
        };
        self.context.board.set(&tail.path, status);
    }
    pub(super) fn show_acknowledged(&mut self) {
        let Some(journal) = self.context.journal.clone() else {
            self.settling.clear();
            return;
        };
        let mut journal = journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.settling.retain(|key| {
            let Some(tail) = self.tails.get(key) else { return false };
            let settled = journal.get(tail.id).map_or(0, |entry| entry.settled.offset);
            self.context.board.update(&tail.path, |row| row.acknowledged = settled);
            settled < tail.at.offset
        });
        self.shorter.retain(|(id, end, reach)| {
            let Some(entry) = journal.get(*id) else { return false };
            if entry.settled.offset > end.offset {
                journal.restart(*id, *end);
            }
            entry.settled.offset < *reach
        });
        self.done.retain(|(id, end)| {
            let waits = journal.get(*id).is_some_and(|entry| entry.settled.offset < *end);
            if !waits {
                journal.remove(*id);
            }
            waits
        });
    }
}
