//! What the journal remembers: finds those files again, whatever their names are now.
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    time::Duration,
};

use slog::info;

use super::{
    Files, Orphan,
    discovery::shown,
    identity::{ENOUGH_WITHOUT_INODE, Head, Inode, Stamp, fits, head_of},
    keep::open_regular,
    reconcile::Group,
    source::fits_file,
};
use crate::{checkpoint::Entry, model::Progress};

/// Which files lie in a directory, by inode number: each is listed once per look.
pub type Listings = HashMap<PathBuf, HashMap<u64, PathBuf>>;

impl Files {
    /// The first look: finds the files that the journal remembers. By all that they are known by, else by inode and content (device
    /// numbers change over reboots, network mounts, containers), else by name and content (restored from a copy).
    pub(super) fn recall(&mut self, groups: &[Group], index: &HashMap<Inode, usize>, listings: &mut Listings) {
        let mut entries = self.journal().map(|journal| journal.entries()).unwrap_or_default();
        self.last_run = entries.iter().map(|entry| entry.seen).max();
        // Of two with the same inode the one that was read further is tried first.
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.settled.offset));
        self.known_names = entries.iter().map(|entry| entry.identity.path.clone()).collect();
        let mut by_number: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut by_path: HashMap<&Path, usize> = HashMap::new();
        for (i, group) in groups.iter().enumerate() {
            by_number.entry(group.inode.number).or_default().push(i);
            by_path.extend(group.paths.iter().map(|path| (path.as_path(), i)));
        }
        let evidence = |entry: &Entry, least: u64| entry.settled.offset >= least;

        entries.retain(|entry| match index.get(&inode_of(entry)) {
            Some(i) => !self.adopt(entry, &groups[*i], true),
            None => true,
        });
        entries.retain(|entry| {
            let there = by_number.get(&entry.identity.inode).filter(|_| evidence(entry, 1));
            !there
                .into_iter()
                .flatten()
                .any(|i| self.adopt(entry, &groups[*i], false))
        });
        entries.retain(|entry| {
            let inode = inode_of(entry);
            if index.contains_key(&inode) {
                return true;
            }
            let beside = self.beside(
                &entry.identity.path,
                inode,
                &head_of(&entry.identity),
                &entry.settled,
                listings,
            );
            // Under its own name it was not renamed: nobody wants it any more.
            let renamed = beside.filter(|(path, _)| *path != entry.identity.path);
            let Some((path, stamp)) = renamed else { return true };
            let key = self.insert(entry.id, path, inode, stamp, (head_of(&entry.identity), entry.settled));
            self.leaves(key, false, Duration::ZERO);
            false
        });
        entries.retain(|entry| {
            let there = by_path
                .get(entry.identity.path.as_path())
                .filter(|_| evidence(entry, ENOUGH_WITHOUT_INODE));
            !there.is_some_and(|i| self.adopt(entry, &groups[*i], false))
        });

        let packed = groups
            .iter()
            .filter(|group| self.unpacks(&group.paths[0]))
            .collect::<Vec<_>>();
        // Its inode may be another file's by now.
        entries.retain(|entry| !packed.iter().any(|group| self.adopt_packed(entry, group)));

        for entry in entries {
            let path = &entry.identity.path;
            let there = index.get(&inode_of(&entry)).map(|i| &groups[*i]);
            if there.is_some_and(|group| !self.is_given_again(path, group)) {
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
    /// Files that come back (moved out of sight and back, a disk mounted again) go on where they were.
    pub(super) fn recall_returned(&mut self, new: &[&Group]) {
        let in_use = self
            .tails
            .values()
            .map(|tail| tail.id)
            .chain(self.orphans.iter().map(|orphan| orphan.id));
        let in_use = in_use.collect::<HashSet<_>>();
        let entries = self.journal().map(|journal| journal.entries()).unwrap_or_default();
        // Of several with the same inode all but one are gone.
        let mut by_inode = HashMap::<Inode, Vec<Entry>>::new();
        for entry in entries.into_iter().filter(|entry| !in_use.contains(&entry.id)) {
            by_inode.entry(inode_of(&entry)).or_default().push(entry);
        }
        for group in new {
            let mut entries = by_inode.remove(&group.inode).unwrap_or_default();
            entries.sort_by_key(|entry| std::cmp::Reverse(entry.settled.offset));
            for entry in entries {
                self.adopt(&entry, group, false); // the first that fits
            }
        }
    }
    /// Goes on with a file that the journal remembers. `anyway`: also if it cannot be opened now (it is compared when it can).
    pub(super) fn adopt(&mut self, entry: &Entry, group: &Group, anyway: bool) -> bool {
        if self.by_inode.contains_key(&group.inode) || self.is_given_again(&entry.identity.path, group) {
            return false;
        }
        let head = head_of(&entry.identity);
        let (path, unpack) = (&group.paths[0], self.options.read_compressed);
        let same = open_regular(path).and_then(|file| fits_file(path, unpack, file, &head, &entry.settled));
        if !same.unwrap_or(anyway) {
            return false;
        }
        let path = group
            .paths
            .iter()
            .find(|path| **path == entry.identity.path)
            .unwrap_or(&group.paths[0]);
        let key = self.insert(entry.id, path.clone(), group.inode, group.stamp, (head, entry.settled));
        self.set_aliases(key, group);
        self.identify(key);
        true
    }
    /// Looks for a file under another name in the directory where it was.
    pub(super) fn beside(
        &self,
        path: &Path,
        inode: Inode,
        head: &Head,
        at: &Progress,
        listings: &mut Listings,
    ) -> Option<(PathBuf, Stamp)> {
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
}

pub fn inode_of(entry: &Entry) -> Inode {
    Inode {
        device: entry.identity.device,
        number: entry.identity.inode,
    }
}
fn list(dir: &Path) -> HashMap<u64, PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| (entry.ino(), entry.path())).collect()
}
