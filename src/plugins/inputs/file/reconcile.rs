//! Brings together what a look at the directories has found and the files that are followed: renamed, gone, new, copied, and at the
//! first look, those that the journal remembers.
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use slog::{info, warn};

use super::{
    Files, Held, Key, Orphan, Start,
    discovery::{Found, Scan, shown},
    identity::{self, ENOUGH_WITHOUT_INODE, Head, Inode, Stamp, fits, head_of, is_rotated_name},
    keep::open_regular,
    tail::{Gone, Tail, last_line_start},
};
use crate::{
    checkpoint::Entry,
    model::{FileState, FileStatus, Progress, SourceId},
    os,
};

/// So long a file that begins like another one, and has the name of a rotated one, is taken for a copy in the making: until the other is
/// truncated, or this one has not grown for so long.
const COPY_TAKES: Duration = Duration::from_secs(10);
/// Looking at the directories takes a hundredth of the time at most …
const SCAN_SHARE: u32 = 100;
/// … and happens so often all the same.
const SCAN_AT_LEAST: Duration = Duration::from_secs(10);
/// Made of a rotated file: not text, and not another rotation.
const PACKED: [&str; 4] = ["gz", "bz2", "xz", "zst"];

/// A file that was found, with all its names, sorted.
struct Group {
    inode: Inode,
    stamp: Stamp,
    paths: Vec<PathBuf>,
}
/// What `follow` has found out.
#[derive(Default)]
struct Left {
    /// Which file each name led to that it does not lead to any more.
    names: HashMap<PathBuf, Key>,
    /// Files that are nowhere, and not open.
    lost: Vec<Key>,
}
/// Which files lie in a directory, by inode number: each is listed once per look.
type Listings = HashMap<PathBuf, HashMap<u64, PathBuf>>;

impl Files {
    pub(super) fn scan(&mut self, now: Duration) {
        let mut scan = self.options.globs.scan();
        self.show_skipped(&scan, now);
        let (groups, index) = group(std::mem::take(&mut scan.files));
        let mut listings = Listings::new();
        let first = !self.scanned;
        if first {
            self.recall(&groups, &index, &mut listings);
        }
        let left = self.follow(&groups, &index, &scan, &mut listings, now);
        let new = groups.iter().filter(|group| !self.by_inode.contains_key(&group.inode)).collect::<Vec<_>>();
        if !first && !new.is_empty() {
            self.recheck();
        }
        for group in &new {
            self.welcome(group, &left, &index, first, now);
        }
        self.held.retain(|inode, _| new.iter().any(|group| group.inode == *inode));
        for key in left.lost {
            if self.tails.get(&key).is_some_and(|tail| tail.gone.is_some()) {
                self.lost_sight(key);
            }
        }
        self.mourn();
        if first && self.tails.is_empty() {
            warn!(self.context.log, "no file matches so far"; "pipeline" => %self.context.pipeline);
        }
        self.scanned = true;
        let took = self.context.clock.steady().saturating_sub(now);
        let pause = (took * SCAN_SHARE).clamp(self.options.poll_every, SCAN_AT_LEAST.max(self.options.poll_every));
        self.next_scan = now + took + pause;
    }

    /// Names that match and are not read: on the board, with the rule.
    fn show_skipped(&mut self, scan: &Scan, now: Duration) {
        for (path, kind) in &scan.special {
            self.warn_once(path, format!("it is a {kind}"), now);
        }
        for (path, error) in &scan.blind {
            self.warn_once(path, format!("could not look at it: {error}"), now);
        }
        if scan.skipped.is_empty() && scan.blind.is_empty() && self.unread_names.is_empty() && self.warned.is_empty() {
            return;
        }
        let skipped = scan.skipped.iter().map(|(path, rule)| (path, FileState::Skipped, rule.clone()));
        let blind = scan.blind.iter().map(|(path, error)| (path, FileState::Denied, format!("could not look at it: {error}")));
        // What is followed has a row of its own.
        let followed = self.tails.values().map(|tail| &tail.path).collect::<HashSet<_>>();
        let mut names = HashSet::new();
        for (path, state, reason) in skipped.chain(blind).filter(|(path, ..)| !followed.contains(path)) {
            names.insert(path.clone());
            if !self.unread_names.contains(path) {
                self.context.board.set(path, unread_row(path, state, reason));
            }
        }
        for path in self.unread_names.difference(&names).filter(|path| !followed.contains(path)) {
            self.context.board.remove(path);
        }
        self.warned.retain(|path, _| names.contains(path) || followed.contains(path));
        self.unread_names = names;
    }

    /// The first look: finds the files that the journal remembers. By all that they are known by, else by inode and content (device
    /// numbers change over reboots, network mounts, containers), else by name and content (restored from a copy).
    fn recall(&mut self, groups: &[Group], index: &HashMap<Inode, usize>, listings: &mut Listings) {
        let mut entries = self.journal().map(|journal| journal.entries()).unwrap_or_default();
        self.last_run = entries.iter().map(|entry| entry.seen).max();
        // Of two with the same inode the one that was read further is tried first.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.settled.offset));
        let mut by_number: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut by_path: HashMap<&Path, usize> = HashMap::new();
        for (i, group) in groups.iter().enumerate() {
            by_number.entry(group.inode.number).or_default().push(i);
            by_path.extend(group.paths.iter().map(|path| (path.as_path(), i)));
        }
        let inode_of = |entry: &Entry| Inode {
            device: entry.identity.device,
            number: entry.identity.inode,
        };
        let evidence = |entry: &Entry, least: u64| entry.settled.offset >= least;

        entries.retain(|entry| match index.get(&inode_of(entry)) {
            Some(i) => !self.adopt(entry, &groups[*i], true),
            None => true,
        });
        entries.retain(|entry| {
            let there = by_number.get(&entry.identity.inode).filter(|_| evidence(entry, 1));
            !there.into_iter().flatten().any(|i| self.adopt(entry, &groups[*i], false))
        });
        entries.retain(|entry| {
            let inode = inode_of(entry);
            if index.contains_key(&inode) {
                return true;
            }
            let beside = self.beside(&entry.identity.path, inode, &head_of(&entry.identity), &entry.settled, listings);
            let Some((path, stamp)) = beside else { return true };
            let key = self.insert(entry.id, path, inode, stamp, (head_of(&entry.identity), entry.settled));
            self.leaves(key, false, Duration::ZERO);
            false
        });
        entries.retain(|entry| {
            let there = by_path.get(entry.identity.path.as_path()).filter(|_| evidence(entry, ENOUGH_WITHOUT_INODE));
            !there.is_some_and(|i| self.adopt(entry, &groups[*i], false))
        });

        for entry in entries {
            let path = &entry.identity.path;
            if index.contains_key(&inode_of(&entry)) {
                self.context.tally.count("truncations", 1);
                info!(self.context.log, "file was truncated or written anew meanwhile, reading it from its start";
                    "file" => shown(path), "read" => entry.settled.offset);
                self.orphans.push(Orphan {
                    key: None,
                    id: entry.id,
                    path: path.clone(),
                    head: head_of(&entry.identity),
                    at: entry.settled,
                    unread: 0, // nobody knows
                });
            } else if by_path.contains_key(path.as_path()) {
                // Another file has its name, and it is nowhere.
                self.rotation_missed(path, 1);
                self.journal().iter_mut().for_each(|journal| journal.remove(entry.id));
            } // else it may come back: forgotten in time
        }
    }
    /// Goes on with a file that the journal remembers. `anyway`: also if it cannot be opened now (it is compared when it can).
    fn adopt(&mut self, entry: &Entry, group: &Group, anyway: bool) -> bool {
        if self.by_inode.contains_key(&group.inode) {
            return false;
        }
        let head = head_of(&entry.identity);
        let same = open_regular(&group.paths[0]).and_then(|file| fits(&file, &head, &entry.settled));
        if !same.unwrap_or(anyway) {
            return false;
        }
        let path = group.paths.iter().find(|path| **path == entry.identity.path).unwrap_or(&group.paths[0]);
        let key = self.insert(entry.id, path.clone(), group.inode, group.stamp, (head, entry.settled));
        self.set_aliases(key, group);
        self.identify(key);
        true
    }
    fn insert(&mut self, id: SourceId, path: PathBuf, inode: Inode, listed: Stamp, known: (Head, Progress)) -> Key {
        self.last_key += 1;
        let key = Key(self.last_key);
        let mut tail = Tail::new(id, path, inode, listed, known, self.context.host.clone());
        tail.stamped = self.context.clock.wall().as_second();
        self.by_inode.insert(inode, key);
        self.tails.insert(key, tail);
        self.queue(key);
        self.show(key);
        key
    }
    fn set_aliases(&mut self, key: Key, group: &Group) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        let others = group.paths.iter().filter(|path| **path != tail.path);
        if !others.clone().eq(tail.aliases.iter()) {
            tail.aliases = others.cloned().collect();
            self.show(key);
        }
    }

    /// What became of the files that are followed.
    fn follow(
        &mut self,
        groups: &[Group],
        index: &HashMap<Inode, usize>,
        scan: &Scan,
        listings: &mut Listings,
        now: Duration,
    ) -> Left {
        let (mut left, mut gone, mut moved, mut changed, mut linked) = (Left::default(), vec![], vec![], vec![], vec![]);
        for (key, tail) in &mut self.tails {
            let Some(group) = index.get(&tail.inode).map(|i| &groups[*i]) else {
                if tail.gone.is_none() && !scan.is_blind_at(&tail.path) {
                    left.names.insert(tail.path.clone(), *key);
                    gone.push(*key);
                }
                continue;
            };
            tail.listed = group.stamp;
            if !group.paths.contains(&tail.path) {
                left.names.insert(tail.path.clone(), *key);
                moved.push((*key, group.paths[0].clone()));
            }
            if tail.aliases.len() + 1 != group.paths.len() || tail.aliases.iter().any(|path| !group.paths.contains(path)) {
                linked.push((*key, group));
            }
            if tail.gone.take().is_some() {
                self.leaving.remove(key);
            }
            let waits = tail.trouble.as_ref().is_some_and(|trouble| trouble.listed == group.stamp);
            if !tail.queued && !waits && tail.read_to_end != Some(group.stamp) {
                tail.active = now;
                changed.push(*key);
            }
        }
        changed.into_iter().for_each(|key| self.queue(key));
        // All old rows go first: names are passed on from file to file.
        for (key, _) in &moved {
            if let Some(tail) = self.tails.get(key) {
                self.context.board.remove(&tail.path);
            }
        }
        for (key, path) in moved {
            self.rename(key, path);
        }
        for (key, group) in linked {
            self.set_aliases(key, group);
        }
        for key in gone {
            if !self.vanish(key, listings, now) {
                left.lost.push(key);
            }
        }
        left
    }
    fn rename(&mut self, key: Key, path: PathBuf) {
        if let Some(tail) = self.tails.get_mut(&key) {
            info!(self.context.log, "file was renamed"; "from" => shown(&tail.path), "to" => shown(&path));
            tail.path = path;
            self.identify(key);
            self.show(key);
        }
    }
    /// No name of it matches any more. It is read to its end if it is open, or still lies in the same directory; else this is false.
    fn vanish(&mut self, key: Key, listings: &mut Listings, now: Duration) -> bool {
        let Some(tail) = self.tails.get(&key) else { return true };
        let place = tail.real.as_deref().unwrap_or(&tail.path);
        let (path, listed, deleted) = if let Some(file) = &tail.file {
            let deleted = file.metadata().is_ok_and(|meta| meta.nlink() == 0);
            (os::name_of(file).unwrap_or_else(|| tail.path.clone()), tail.listed, deleted)
        } else if let Some((path, listed)) = self.beside(place, tail.inode, &tail.head, &tail.at, listings) {
            (path, listed, false)
        } else {
            if let Some(tail) = self.tails.get_mut(&key) {
                let (deleted, since) = (false, now);
                tail.gone = Some(Gone { deleted, since });
            }
            return false;
        };
        self.context.board.remove(&tail.path);
        if let Some(tail) = self.tails.get_mut(&key) {
            (tail.path, tail.listed) = (path, listed);
        }
        self.leaves(key, deleted, now);
        true
    }
    fn leaves(&mut self, key: Key, deleted: bool, now: Duration) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        info!(self.context.log, "file is gone from sight, reading it to its end"; "file" => shown(&tail.path), "deleted" => deleted);
        tail.gone = Some(Gone { deleted, since: now });
        tail.aliases.clear();
        self.leaving.insert(key);
        if !deleted {
            self.identify(key);
        }
        self.queue(key);
        self.show(key);
    }
    /// Looks for a file under another name in the directory where it was.
    fn beside(&self, path: &Path, inode: Inode, head: &Head, at: &Progress, listings: &mut Listings) -> Option<(PathBuf, Stamp)> {
        let dir = path.parent()?;
        let names = listings.entry(dir.to_owned()).or_insert_with(|| list(dir));
        let path = names.get(&inode.number)?;
        if self.options.globs.excluded_by(path).is_some() {
            return None;
        }
        let file = open_regular(path).ok()?;
        let meta = file.metadata().ok()?;
        let same = Inode::of(&meta) == inode && fits(&file, head, at).ok()?;
        same.then(|| (path.clone(), Stamp::of(&meta)))
    }

    /// Files that changed are compared before new ones are looked at: one of these may be a copy of one that was truncated.
    fn recheck(&mut self) {
        let changed = self.tails.iter().filter(|(_, tail)| tail.queued && tail.gone.is_none() && tail.at.offset > 0);
        let replaced = |tail: &Tail| {
            let opened = open_regular(&tail.path).and_then(|file| {
                let is_it = Inode::of(&file.metadata()?) == tail.inode;
                Ok(is_it && !fits(&file, &tail.head, &tail.at)?)
            });
            opened.unwrap_or(false) // its turn will tell
        };
        let replaced = changed.filter(|(_, tail)| replaced(tail)).map(|(key, _)| *key).collect::<Vec<_>>();
        replaced.into_iter().for_each(|key| self.replaced(key));
    }

    /// A file that was not there before.
    fn welcome(&mut self, group: &Group, left: &Left, index: &HashMap<Inode, usize>, first: bool, now: Duration) {
        let path = &group.paths[0];
        let before = group.paths.iter().find_map(|path| left.names.get(path).map(|key| (path.clone(), *key)));
        if let Some((_, key)) = &before
            && self.is_same_content(*key, group)
        {
            return;
        }
        let (mut id, mut known) = (None, (Head::default(), Progress::default()));
        if let Some((orphan, at)) = self.claim(group) {
            info!(self.context.log, "file is a copy of a truncated one, reading on in it";
                "file" => shown(path), "of" => shown(&orphan.path), "offset" => at.offset);
            (id, known) = (Some(orphan.id), (orphan.head, at));
        } else if !first && !self.context.once && self.is_held(group, now) {
            return;
        } else if first && self.begins_at_end(group) {
            let opened = open_regular(path).and_then(|file| {
                let at = last_line_start(&file, self.options.rules.max_line)?;
                Ok((Head::of(&file, at.offset)?, at))
            });
            known = opened.unwrap_or_default(); // cannot be opened now: whatever is in it then is new to us
        }
        let id = id.unwrap_or_else(|| self.new_source(path, group.inode, known.1));
        let key = self.insert(id, path.clone(), group.inode, group.stamp, known);
        self.set_aliases(key, group);
        self.identify(key);
        if let Some((path, old)) = before {
            self.context.tally.count("rotations", 1);
            let old_file = self.tails.get(&old);
            if old_file.is_none_or(|tail| tail.gone.is_some()) {
                let listed = old_file.filter(|_| !left.lost.contains(&old)).map(|tail| (tail.inode, tail.listed.modified));
                self.count_missed(&path, listed, group, index);
            }
            if let Some(tail) = self.tails.get_mut(&key) {
                tail.after = Some(old);
            }
        }
    }
    /// What stands under the name of a file that is gone is that file again: saved by an editor, or on a file system without lasting
    /// inodes.
    fn is_same_content(&mut self, key: Key, group: &Group) -> bool {
        let Some(tail) = self.tails.get(&key) else { return false };
        let same = tail.gone.is_some()
            && tail.at.offset >= ENOUGH_WITHOUT_INODE
            && open_regular(&group.paths[0]).is_ok_and(|file| fits(&file, &tail.head, &tail.at).unwrap_or(false));
        if !same {
            return false;
        }
        self.close(key);
        self.leaving.remove(&key);
        let Some(tail) = self.tails.get_mut(&key) else { return false };
        self.context.board.remove(&tail.path);
        self.by_inode.remove(&tail.inode);
        self.by_inode.insert(group.inode, key);
        (tail.inode, tail.gone, tail.listed) = (group.inode, None, group.stamp);
        tail.path = group.paths[0].clone();
        tail.read_to_end = None;
        self.identify(key);
        self.set_aliases(key, group);
        self.queue(key);
        self.show(key);
        true
    }
    /// `start = "end"` is about what is there at the very first start, and, at a later one, about what was there before and did not match.
    fn begins_at_end(&self, group: &Group) -> bool {
        let is_older = |last_run: i64| {
            let made = fs::metadata(&group.paths[0]).and_then(|meta| meta.created());
            let age = made.ok().and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
            age.is_some_and(|age| (age.as_secs() as i64) < last_run)
        };
        self.options.start == Start::End && self.last_run.is_none_or(is_older)
    }

    /// Is it a copy of what was in a file before that was truncated? Then also where to read on in it.
    fn claim(&mut self, group: &Group) -> Option<(Orphan, Progress)> {
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
        let (i, at) = self.orphans.iter().enumerate().find_map(|(i, orphan)| Some((i, place_in(orphan)?)))?;
        Some((self.orphans.remove(i), at))
    }
    /// Does it look like a copy in the making? Then it has to wait: until the original is truncated, or for long enough.
    fn is_held(&mut self, group: &Group, now: Duration) -> bool {
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
        let Some(of) = originals.find(|(_, tail)| begins_like(tail).unwrap_or(false)).map(|(key, _)| *key) else {
            return false;
        };
        let size = group.stamp.size;
        let held = self.held.entry(group.inode).or_insert(Held { of, size, since: now });
        if held.size != size {
            (held.size, held.since) = (size, now);
        }
        held.of = of;
        if now.saturating_sub(held.since) >= COPY_TAKES {
            return false;
        }
        let original = self.tails.get(&of).map(|tail| shown(&tail.path)).unwrap_or_default();
        let reason = format!("begins like {original}: waits whether it is a copy made by copytruncate");
        self.context.board.set(path, unread_row(path, FileState::Skipped, reason));
        self.unread_names.insert(path.clone());
        true
    }
    /// What was truncated and has no copy in sight is lost.
    fn mourn(&mut self) {
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
    fn count_missed(&self, path: &Path, old: Option<(Inode, (i64, i64))>, new: &Group, index: &HashMap<Inode, usize>) {
        let Some((old, last_written)) = old else {
            return self.rotation_missed(path, 1);
        };
        let Some(entries) = path.parent().and_then(|dir| fs::read_dir(dir).ok()) else { return };
        let missed = entries.flatten().filter(|entry| {
            let name = entry.path();
            let packed = name.extension().is_some_and(|ending| PACKED.iter().any(|packed| ending == *packed));
            if packed || !is_rotated_name(path, &name) {
                return false;
            }
            let Ok(meta) = entry.metadata() else { return false };
            let inode = Inode::of(&meta);
            let known = inode == old || inode == new.inode || index.contains_key(&inode) || self.by_inode.contains_key(&inode);
            !known && meta.is_file() && meta.size() > 0 && Stamp::of(&meta).modified >= last_written
        });
        self.rotation_missed(path, missed.count() as u64);
    }
    fn rotation_missed(&self, path: &Path, by: u64) {
        if by > 0 {
            self.context.tally.count("rotations_missed", by);
            warn!(self.context.log, "file was rotated to names that do not match, and could not be read to its end; files={}", by;
                "file" => shown(path));
        }
    }
}

fn group(files: Vec<Found>) -> (Vec<Group>, HashMap<Inode, usize>) {
    let mut index = HashMap::with_capacity(files.len());
    let mut groups = Vec::<Group>::with_capacity(files.len());
    for Found { path, inode, stamp } in files {
        let i = *index.entry(inode).or_insert(groups.len());
        match groups.get_mut(i) {
            Some(group) => group.paths.push(path),
            None => groups.push(Group {
                inode,
                stamp,
                paths: vec![path],
            }),
        }
    }
    for group in groups.iter_mut().filter(|group| group.paths.len() > 1) {
        group.paths.sort();
        group.paths.dedup(); // two patterns, one name
    }
    (groups, index)
}
fn list(dir: &Path) -> HashMap<u64, PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| (entry.ino(), entry.path())).collect()
}
fn unread_row(path: &Path, state: FileState, reason: String) -> FileStatus {
    FileStatus {
        path: shown(path),
        identity: String::new(),
        size: 0,
        read: 0,
        acknowledged: 0,
        state,
        reason,
        aliases: Vec::new(),
    }
}
