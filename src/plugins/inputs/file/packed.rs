//! Packed files (`read_compressed`): which of them hold what was read already in its plain form, and where to read on in them. A file
//! and its packed form have the same places, so the packed one goes on under the journal's row of the plain one.
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use slog::info;

use super::{
    Files, Key, Orphan,
    discovery::shown,
    identity::{Head, Inode, Stamp, bases},
    keep::open_regular,
    recall::inode_of,
    reconcile::{Group, unread_row},
    source::{Source, is_gzip},
    tail::Tail,
};
use crate::{
    checkpoint::Entry,
    model::{FileState, Progress, SourceId},
};

/// A packed file that waits until its plain form, which is read itself, is done with.
pub struct Waiting {
    inode: Inode,
    stamp: Stamp,
    path: PathBuf,
}

impl Files {
    pub(super) fn unpacks(&self, path: &Path) -> bool {
        self.options.read_compressed && is_gzip(path)
    }
    /// The inode's number was given again: nothing turns into a packed file, or back, by being renamed.
    pub(super) fn is_given_again(&self, known_as: &Path, group: &Group) -> bool {
        self.options.read_compressed && is_other_kind(known_as, group)
    }
    /// A new packed file. True: it is looked after.
    pub(super) fn welcome_packed(&mut self, group: &Group, lost: &[Key]) -> bool {
        let path = &group.paths[0];
        if !self.unpacks(path) {
            return false;
        }
        if let Some(key) = self.plain_form(path) {
            if lost.contains(&key)
                && let Some(plain) = self.drop_tail(key)
            {
                self.take_over(plain.id, (plain.head, plain.at), group.inode, group.stamp, path, false);
                return true;
            }
            let plain = self.tails.get(&key).map(|tail| shown(&tail.path)).unwrap_or_default();
            let reason = format!("is the packed form of {plain}, which is read itself");
            self.context
                .board
                .set(path, unread_row(path, FileState::Skipped, reason));
            self.unread_names.insert(path.clone());
            let (inode, stamp, path) = (group.inode, group.stamp, path.clone());
            self.packed_forms.insert(key, Waiting { inode, stamp, path });
            return true;
        }
        // A copy of what was truncated, packed before anybody saw it.
        let head = PackedHead::of(path);
        let is_it = |orphan: &Orphan| {
            let named = same_base(&orphan.path, &path.with_extension(""));
            named && orphan.head.len > 0 && head.as_ref().is_some_and(|head| head.fits(&orphan.head))
        };
        if let Some(i) = self.orphans.iter().position(is_it) {
            let Orphan { id, head, at, .. } = self.orphans.remove(i);
            self.take_over(id, (head, at), group.inode, group.stamp, path, false);
            return true;
        }
        let in_use = self.tails.values().map(|tail| tail.id);
        let in_use = in_use.chain(self.orphans.iter().map(|orphan| orphan.id));
        let in_use = in_use
            .chain(self.done.iter().map(|(id, _)| *id))
            .collect::<HashSet<_>>();
        let entries = self.journal().map(|journal| journal.entries()).unwrap_or_default();
        let entry = entries
            .into_iter()
            .find(|entry| !in_use.contains(&entry.id) && is_packed_form(entry, path));
        entry.is_some_and(|entry| self.adopt_packed(&entry, group))
    }
    /// Goes on in the packed form of a file that the journal remembers, if this is it.
    pub(super) fn adopt_packed(&mut self, entry: &Entry, group: &Group) -> bool {
        let path = &group.paths[0];
        if !self.unpacks(path) || self.by_inode.contains_key(&group.inode) || !is_packed_form(entry, path) {
            return false;
        }
        let head = super::identity::head_of(&entry.identity);
        self.take_over(entry.id, (head, entry.settled), group.inode, group.stamp, path, false);
        true
    }
    /// The plain form is done with: all that may be left to read is in the packed one.
    pub(super) fn unpack_rest(&mut self, Waiting { inode, stamp, path }: Waiting, plain: &Tail) -> bool {
        if self.by_inode.contains_key(&inode) {
            return false;
        }
        let whole = plain.unread() == 0 && !plain.partial;
        self.take_over(plain.id, (plain.head, plain.at), inode, stamp, &path, whole);
        true
    }
    fn take_over(
        &mut self,
        id: SourceId,
        known: (Head, Progress),
        inode: Inode,
        stamp: Stamp,
        path: &Path,
        whole: bool,
    ) {
        info!(self.context.log, "file was packed, reading on in that form"; "file" => shown(path), "offset" => known.1.offset);
        self.context.board.remove(path);
        self.unread_names.remove(path);
        let key = self.insert(id, path.to_owned(), inode, stamp, known);
        self.identify(key);
        if whole {
            self.is_quiet(key);
        }
    }
    /// Nothing of it is left to be read as long as it does not change.
    pub(super) fn is_quiet(&mut self, key: Key) {
        if let Some(tail) = self.tails.get_mut(&key) {
            (tail.read_to_end, tail.queued) = (Some(tail.listed), false);
            self.ready.retain(|ready| *ready != key);
            self.show(key);
        }
    }
    /// Which of the files that are followed, or read to their end, this is the packed form of.
    fn plain_form(&self, path: &Path) -> Option<Key> {
        let stem = path.with_extension("");
        let head = PackedHead::of(path);
        let is_it = |tail: &Tail| {
            let exact = named(&tail.path) == stem;
            let fits = head.as_ref().map(|head| head.fits(&tail.head));
            !is_gzip(&tail.path)
                && match tail.gone {
                    // While it is being packed there may be nothing to compare yet.
                    None => exact && fits.unwrap_or(true),
                    Some(_) => (exact || same_base(&tail.path, &stem)) && fits.unwrap_or(false),
                }
        };
        self.tails.iter().find(|(_, tail)| is_it(tail)).map(|(key, _)| *key)
    }
}
pub fn is_other_kind(known_as: &Path, group: &Group) -> bool {
    is_gzip(&group.paths[0]) != is_gzip(&named(known_as))
}
fn is_packed_form(entry: &Entry, path: &Path) -> bool {
    let plain = &entry.identity.path;
    let stem = path.with_extension("");
    entry.identity.head_len > 0
        && !is_gzip(plain)
        && inode_of(entry).number != 0
        && (named(plain) == stem || same_base(plain, &stem))
        && PackedHead::of(path).is_some_and(|head| head.fits(&super::identity::head_of(&entry.identity)))
}
/// What the system says of a deleted file, without that.
fn named(path: &Path) -> PathBuf {
    let text = path.as_os_str().as_encoded_bytes();
    match text.strip_suffix(b" (deleted)") {
        Some(name) => <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name).into(),
        None => path.to_owned(),
    }
}
/// Names of one log's rotations, or of itself.
fn same_base(plain: &Path, stem: &Path) -> bool {
    let plain = named(plain);
    let of = |path: &Path| bases(path).chain(path.file_name().map(Into::into)).collect::<Vec<_>>();
    let stems = of(stem);
    of(&plain).iter().any(|base| stems.contains(base))
}
/// A packed file whose start can be unpacked.
struct PackedHead(Source);
impl PackedHead {
    fn of(path: &Path) -> Option<Self> {
        let source = Source::new(open_regular(path).ok()?, true).ok()?;
        let is_there = Head::of(&source, 1).is_ok_and(|head| head.len > 0);
        is_there.then_some(Self(source))
    }
    fn fits(&self, head: &Head) -> bool {
        head.fits(&self.0).unwrap_or(false)
    }
}
