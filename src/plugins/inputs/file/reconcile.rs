//! Brings together what a look at the directories has found and the files that are followed: renamed, gone, new, copied, and at the
//! first look, those that the journal remembers.
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use slog::{info, warn};

use super::{
    Files, Key, Start, Watching,
    discovery::{Found, Scan, shown},
    identity::{ENOUGH_WITHOUT_INODE, Head, Inode, Stamp, fits},
    keep::open_regular,
    packed::is_other_kind,
    recall::Listings,
    records::last_line_end,
    tail::{Gone, Tail},
    watch,
};
use crate::{
    model::{FileState, FileStatus, Progress, SourceId},
    os,
};

/// Looking at the directories takes a hundredth of the time at most …
const SCAN_SHARE: u32 = 100;
/// … and happens so often all the same.
const SCAN_AT_LEAST: Duration = Duration::from_secs(10);
/// So long it is known what a name led to before: a rotation may be seen half done.
const NAME_IS_REMEMBERED: Duration = Duration::from_secs(10);
/// Clocks are set now and then: a file must be older by so much to count as older than a run.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// A file that was found, with all its names, sorted.
pub struct Group {
    pub inode: Inode,
    pub stamp: Stamp,
    pub paths: Vec<PathBuf>,
}
/// What `follow` has found out.
#[derive(Default)]
struct Left {
    /// Files that are nowhere, and not open.
    lost: Vec<Key>,
}
impl Files {
    pub(super) fn scan(&mut self, now: Duration) {
        let began = os::thread_cpu_time();
        let mut scan = match &mut self.watching {
            Watching::Never => self.options.globs.scan(&mut |_| ()),
            Watching::Here(watcher) => {
                watcher.begin();
                self.options.globs.scan(&mut |place| watcher.enter(place))
            }
        };
        self.watch_again();
        if self.watcher().is_some_and(|watcher| watcher.done()) {
            self.tell_watching();
        }
        self.pass_over(&mut scan);
        self.show_skipped(&scan, now);
        let (groups, index) = group(std::mem::take(&mut scan.files));
        let mut listings = Listings::new();
        let first = !self.scanned;
        if first {
            self.recall(&groups, &index, &mut listings);
        }
        self.left
            .retain(|_, (_, since)| now.saturating_sub(*since) < NAME_IS_REMEMBERED);
        let left = self.follow(&groups, &index, &scan, &mut listings, now);
        let new = groups
            .iter()
            .filter(|group| !self.by_inode.contains_key(&group.inode))
            .collect::<Vec<_>>();
        if !first && !new.is_empty() {
            self.recheck();
            self.recall_returned(&new);
        }
        for group in &new {
            if !self.by_inode.contains_key(&group.inode) {
                self.welcome(group, &left, &index, first, now);
            }
        }
        self.held
            .retain(|inode, _| new.iter().any(|group| group.inode == *inode));
        for key in left.lost {
            if self.tails.get(&key).is_some_and(|tail| tail.gone.is_some()) {
                self.lost_sight(key);
            }
        }
        self.mourn();
        if first && self.tails.is_empty() {
            warn!(self.context.log, "no file matches so far");
        }
        self.scanned = true;
        let worked = os::thread_cpu_time().saturating_sub(began);
        self.looked += worked;
        let every = self.options.poll_every;
        // What is held back is looked at again in the rhythm of polling: it is waited for, not heard of.
        let pause = if self.is_told() && self.held.is_empty() {
            (worked * watch::QUIET_SHARE)
                .clamp(watch::QUIET.0, watch::QUIET.1)
                .max(every)
        } else {
            (worked * SCAN_SHARE).clamp(every, SCAN_AT_LEAST.max(every))
        };
        let end = self.context.clock.steady();
        (self.next_scan, self.soonest_scan) = (end + pause, end + worked * watch::HINTED_SHARE);
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
        let skipped = scan
            .skipped
            .iter()
            .map(|(path, rule)| (path, FileState::Skipped, rule.clone()));
        let blind = scan
            .blind
            .iter()
            .map(|(path, error)| (path, FileState::Denied, format!("could not look at it: {error}")));
        // What is followed has a row of its own.
        let followed = self.tails.values().map(|tail| &tail.path).collect::<HashSet<_>>();
        let mut names = HashSet::new();
        for (path, state, reason) in skipped.chain(blind).filter(|(path, ..)| !followed.contains(path)) {
            names.insert(path.clone());
            if !self.unread_names.contains(path) {
                self.context.board.set(path, unread_row(path, state, reason));
            }
        }
        for path in self
            .unread_names
            .difference(&names)
            .filter(|path| !followed.contains(path))
        {
            self.context.board.remove(path);
        }
        self.warned
            .retain(|path, _| names.contains(path) || followed.contains(path));
        self.unread_names = names;
    }

    pub(super) fn insert(
        &mut self,
        id: SourceId,
        path: PathBuf,
        inode: Inode,
        listed: Stamp,
        known: (Head, Progress),
    ) -> Key {
        self.last_key += 1;
        let key = Key(self.last_key);
        let mut tail = Tail::new(
            id,
            path,
            inode,
            listed,
            known,
            self.context.host.clone(),
            &self.options.framing,
        );
        tail.stamped = self.context.clock.wall().as_second();
        tail.aged = is_aged(&known);
        let grows = !tail.aged || listed.size != known.1.offset;
        self.by_inode.insert(inode, key);
        self.tails.insert(key, tail);
        match grows {
            true => self.queue(key),
            false => self.is_quiet(key),
        }
        self.show(key);
        key
    }
    pub(super) fn set_aliases(&mut self, key: Key, group: &Group) {
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
        let (mut left, mut gone, mut moved, mut changed, mut linked) =
            (Left::default(), vec![], vec![], vec![], vec![]);
        let (names, unpacks, mut given_again) = (&mut self.left, self.options.read_compressed, vec![]);
        for (key, tail) in &mut self.tails {
            let found = index.get(&tail.inode).map(|i| &groups[*i]);
            let other = unpacks && found.is_some_and(|group| is_other_kind(&tail.path, group));
            if other {
                given_again.push(tail.inode);
            }
            let Some(group) = found.filter(|_| !other) else {
                if tail.gone.is_none() && !scan.is_blind_at(&tail.path) {
                    names.insert(tail.path.clone(), (*key, now));
                    gone.push(*key);
                }
                continue;
            };
            tail.listed = group.stamp;
            if !group.paths.contains(&tail.path) {
                names.insert(tail.path.clone(), (*key, now));
                moved.push((*key, group.paths[0].clone()));
            }
            if tail.aliases.len() + 1 != group.paths.len()
                || tail.aliases.iter().any(|path| !group.paths.contains(path))
            {
                linked.push((*key, group));
            }
            if tail.gone.take().is_some() {
                self.leaving.remove(key);
            }
            let waits = tail
                .trouble
                .as_ref()
                .is_some_and(|trouble| trouble.listed == group.stamp);
            if !tail.queued && !waits && tail.read_to_end != Some(group.stamp) {
                tail.active = now;
                changed.push(*key);
            }
        }
        for inode in given_again {
            self.by_inode.remove(&inode);
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
            (
                os::name_of(file.raw()).unwrap_or_else(|| tail.path.clone()),
                tail.listed,
                deleted,
            )
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
    pub(super) fn leaves(&mut self, key: Key, deleted: bool, now: Duration) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        info!(self.context.log, "file is gone from sight, reading it to its end"; "file" => shown(&tail.path), "deleted" => deleted);
        tail.gone = Some(Gone { deleted, since: now });
        tail.aliases.clear();
        if let (Some(file), Watching::Here(watcher)) = (&tail.file, &mut self.watching) {
            watcher.watch_file(key, file.raw(), &tail.path); // no name of a watched directory tells of it any more
        }
        self.leaving.insert(key);
        if !deleted {
            self.identify(key);
        }
        self.queue(key);
        self.show(key);
    }
    /// A file that was not there before.
    fn welcome(&mut self, group: &Group, left: &Left, index: &HashMap<Inode, usize>, first: bool, now: Duration) {
        let path = &group.paths[0];
        if self.welcome_packed(group, &left.lost) {
            return;
        }
        let before = group
            .paths
            .iter()
            .find_map(|path| self.left.get(path).map(|(key, _)| (path.clone(), *key)));
        if let Some((_, key)) = &before
            && self.is_same_content(*key, group)
        {
            return;
        }
        let (mut id, mut known) = (None, (Head::default(), Progress::default()));
        if let Some((orphan, head, at)) = self.claim(group) {
            info!(self.context.log, "file is a copy of a truncated one, reading on in it";
                "file" => shown(path), "of" => shown(&orphan.path), "offset" => at.offset);
            if at.offset < orphan.at.offset {
                self.shorter.push((orphan.id, at, orphan.at.offset));
            }
            (id, known) = (Some(orphan.id), (head, at));
        } else if !self.context.once && self.is_held(group, first, now) {
            return;
        } else if let Some(rule) = self.is_too_old(group) {
            if self.unpacks(path) {
                self.passed_over.insert(group.inode, rule);
                return;
            }
            known.1.offset = group.stamp.size; // where it is when it grows
        } else if (first || self.held.get(&group.inode).is_some_and(|held| held.first)) && self.begins_at_end(group) {
            if self.unpacks(path) {
                let rule = "was there before, and start = \"end\"";
                self.passed_over.insert(group.inode, rule.to_owned());
                return;
            }
            let opened = open_regular(path).and_then(|file| {
                let at = last_line_end(&file, file.metadata()?.size(), &self.options.framing)?;
                Ok((Head::of(&file, at.offset)?, at))
            });
            known = opened.unwrap_or_default(); // cannot be opened now: whatever is in it then is new to us
        }
        let id = id.unwrap_or_else(|| self.new_source(path, group.inode, known.1));
        let key = self.insert(id, path.clone(), group.inode, group.stamp, known);
        self.set_aliases(key, group);
        self.identify(key);
        if let Some((path, old)) = before {
            self.left.remove(&path);
            self.context.tally.count("rotations", 1);
            match self.tails.get(&old).filter(|tail| tail.gone.is_some()) {
                Some(lost) if left.lost.contains(&old) => {
                    self.rotation_missed(&path, 1);
                    self.journal().iter_mut().for_each(|journal| journal.remove(lost.id));
                }
                Some(gone) => self.count_missed(&path, gone, group, index),
                None => {} // has another name that matches
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
        let Some(tail) = self.tails.get_mut(&key) else {
            return false;
        };
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
    /// Files met for the first time that nobody has written to for long.
    fn is_too_old(&self, group: &Group) -> Option<String> {
        let age = self.options.ignore_older?;
        let now = self.context.clock.wall().as_second();
        (now.saturating_sub(group.stamp.modified.0) > age.as_secs() as i64).then(|| too_old(age))
    }
    /// Packed files that are not read are no news at the next look.
    fn pass_over(&mut self, scan: &mut Scan) {
        if self.passed_over.is_empty() {
            return;
        }
        let (mut here, passed_over) = (HashSet::new(), &self.passed_over);
        let skipped = &mut scan.skipped;
        scan.files.retain(|file| match passed_over.get(&file.inode) {
            Some(rule) => {
                here.insert(file.inode);
                skipped.push((file.path.clone(), rule.clone()));
                false
            }
            None => true,
        });
        self.passed_over.retain(|inode, _| here.contains(inode));
    }
    /// `start = "end"` is about what is there at the very first start, and, at a later one, about what was there before and did not match.
    fn begins_at_end(&self, group: &Group) -> bool {
        let is_older = |last_run: i64| {
            let made = fs::metadata(&group.paths[0]).and_then(|meta| meta.created());
            let made = made
                .ok()
                .and_then(|made| made.duration_since(std::time::UNIX_EPOCH).ok());
            made.is_some_and(|made| (made + CLOCK_SLACK).as_secs() < last_run as u64)
        };
        self.options.start == Start::End
            && self.last_run.is_none_or(is_older)
            && !group.paths.iter().any(|path| self.known_names.contains(path))
    }
}

/// A place that nobody has read up to: where a file was when it was left out for its age.
fn is_aged((head, at): &(Head, Progress)) -> bool {
    head.len == 0 && at.window_len == 0 && at.offset > 0
}
pub fn too_old(age: Duration) -> String {
    format!("was not written to for longer than ignore_older = {age:?}: only what is added later is read")
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
pub fn unread_row(path: &Path, state: FileState, reason: String) -> FileStatus {
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
