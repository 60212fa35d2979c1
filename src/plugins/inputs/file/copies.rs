//! Rotations that are not plain renames: content replaced in place, copies of it, and files that were never seen.
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use slog::warn;

use super::{
    Files, Held, Orphan,
    discovery::shown,
    identity::{self, Head, Inode, Stamp, fits, is_rotated_name},
    keep::open_regular,
    reconcile::{Group, unread_row},
    source::{self, fits_file},
    tail::Tail,
};
use crate::model::{FileState, Progress};

/// So long a file that begins like another one, and has the name of a rotated one, is taken for a copy in the making: until the other is
/// truncated, or this one has not grown for so long.
const COPY_TAKES: Duration = Duration::from_secs(10);

impl Files {
    /// Files that changed are compared before new ones are looked at: one of these may be a copy of one that was truncated.
    pub(super) fn recheck(&mut self) {
        let changed = self
            .tails
            .iter()
            .filter(|(_, tail)| tail.queued && tail.gone.is_none() && tail.at.offset > 0);
        let replaced = |tail: &Tail| {
            let opened = open_regular(&tail.path).and_then(|file| {
                let is_it = Inode::of(&file.metadata()?) == tail.inode;
                let unpack = self.options.read_compressed;
                Ok(is_it && !fits_file(&tail.path, unpack, file, &tail.head, &tail.at)?)
            });
            opened.unwrap_or(false) // its turn will tell
        };
        let replaced = changed
            .filter(|(_, tail)| replaced(tail))
            .map(|(key, _)| *key)
            .collect::<Vec<_>>();
        replaced.into_iter().for_each(|key| self.replaced(key));
    }

    /// Is it a copy of what was in a file before that was truncated? Then also where to read on in it.
    pub(super) fn claim(&mut self, group: &Group) -> Option<(Orphan, Head, Progress)> {
        if self.orphans.is_empty() {
            return None;
        }
        let path = &group.paths[0];
        let file = open_regular(path).ok()?;
        let size = file.metadata().ok()?.size();
        let held_of = self.held.get(&group.inode).map(|held| held.of);
        let place_in = |orphan: &Orphan| -> Option<Progress> {
            let rotated = is_rotated_name(&orphan.path, path);
            if size >= orphan.at.offset {
                let same = fits(&file, &orphan.head, &orphan.at).ok()?;
                return (same && (orphan.at.offset > 0 || rotated)).then_some(orphan.at);
            }
            // The copy was made before the last lines were written, and these were read from the original: all of it is read.
            let seen_growing = held_of.is_some() && held_of == orphan.key;
            let whole_head = orphan.head.len > 0 && size >= u64::from(orphan.head.len);
            let same = seen_growing || (rotated && whole_head && orphan.head.fits(&file).ok()?);
            same.then(|| identity::place(&file, size).ok()).flatten()
        };
        let (i, at) = self
            .orphans
            .iter()
            .enumerate()
            .find_map(|(i, orphan)| Some((i, place_in(orphan)?)))?;
        let head = Head::of(&file, at.offset).ok()?;
        Some((self.orphans.remove(i), head, at))
    }
    /// Does it look like a copy in the making? Then it has to wait: until the original is truncated, or for long enough.
    pub(super) fn is_held(&mut self, group: &Group, first: bool, now: Duration) -> bool {
        let path = &group.paths[0];
        let bases = identity::bases(path).collect::<HashSet<_>>();
        let mut originals = self.tails.iter().filter(|(_, tail)| {
            tail.at.offset > 0 && tail.gone.is_none() && tail.path.file_name().is_some_and(|name| bases.contains(name))
        });
        let begins_like = |tail: &Tail| -> std::io::Result<bool> {
            let file = open_regular(path)?;
            let size = file.metadata()?.size();
            match size >= tail.at.offset {
                true => fits(&file, &tail.head, &tail.at),
                false => identity::is_beginning(&file, size, &open_regular(&tail.path)?),
            }
        };
        let Some(of) = originals
            .find(|(_, tail)| begins_like(tail).unwrap_or(false))
            .map(|(key, _)| *key)
        else {
            return false;
        };
        let size = group.stamp.size;
        let since = now;
        let held = self.held.entry(group.inode).or_insert(Held { of, size, since, first });
        if held.size != size {
            (held.size, held.since) = (size, now);
        }
        held.of = of;
        if now.saturating_sub(held.since) >= COPY_TAKES {
            return false;
        }
        let original = self.tails.get(&of).map(|tail| shown(&tail.path)).unwrap_or_default();
        let reason = format!("begins like {original}: waits whether it is a copy made by copytruncate");
        self.context
            .board
            .set(path, unread_row(path, FileState::Skipped, reason));
        self.unread_names.insert(path.clone());
        true
    }
    /// What was truncated and has no copy in sight is lost.
    pub(super) fn mourn(&mut self) {
        for orphan in std::mem::take(&mut self.orphans) {
            if orphan.unread > 0 {
                self.context.tally.count("bytes_lost", orphan.unread);
                warn!(self.context.log, "file was truncated before its end was read, and no copy is in sight; bytes={}", orphan.unread;
                    "file" => shown(&orphan.path), "offset" => orphan.at.offset);
            }
            self.journal().iter_mut().for_each(|journal| journal.remove(orphan.id));
        }
    }

    /// Files may have been rotated away between two looks that never were seen under this name. They are not read, for their names do
    /// not match; but they lie beside it, and were written to since.
    pub(super) fn count_missed(&self, path: &Path, gone: &Tail, new: &Group, index: &HashMap<Inode, usize>) {
        let (old, last_written) = (gone.inode, gone.listed.modified);
        let Some(entries) = path.parent().and_then(|dir| fs::read_dir(dir).ok()) else {
            return;
        };
        let missed = entries.flatten().filter(|entry| {
            let name = entry.path();
            if source::packing(&name).is_some() || !is_rotated_name(path, &name) {
                return false;
            }
            let Ok(meta) = entry.metadata() else { return false };
            let inode = Inode::of(&meta);
            let known =
                inode == old || inode == new.inode || index.contains_key(&inode) || self.by_inode.contains_key(&inode);
            !known && meta.is_file() && meta.size() > 0 && Stamp::of(&meta).modified >= last_written
        });
        self.rotation_missed(path, missed.count() as u64);
    }
    pub(super) fn rotation_missed(&self, path: &Path, by: u64) {
        if by > 0 {
            self.context.tally.count("rotations_missed", by);
            warn!(self.context.log, "file was rotated to names that do not match, and could not be read to its end; files={}", by;
                "file" => shown(path));
        }
    }
}
