//! What `file:v2` knows sooner: the kernel's hints about files and directories. They only say where to look: what is true is still
//! found by looking, and all of it is looked at now and then without any hint. Where hints are missing (a limit, a network file
//! system), the input polls as `file:v1` does, and says why.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::libc::{EMFILE, ENFILE, ENOMEM, ENOSPC};
use slog::{info, warn};

use super::{
    Files, Key,
    discovery::Place,
    identity::{HEAD, Inode, Stamp},
};
use crate::model::SourceId;
use crate::os::{self, Hint, Watch, Watches};

/// Without a hint so many open files are looked at …
pub const POLLED_AT_ONCE: usize = 64;
/// … so often, in turn, to close idle ones: what no hint tells is found by the look at all of them.
pub const POLL_QUIET: Duration = Duration::from_secs(5);
/// The same while something has a time of its own: a file that leaves, trouble, an open record.
pub const POLL_EVERY: Duration = Duration::from_secs(1);
/// A hint about names has all directories looked at, for a tenth of the time at most.
pub const HINTED_SHARE: u32 = 10;
/// Without a hint that takes a 400th of the time at most, and happens between these two.
pub const QUIET_SHARE: u32 = 400;
pub const QUIET: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Reading because of hints takes a 40th of the time at most (the way of a batch through the pipeline costs a multiple of that), but rests
/// no longer than the first of these; than the second where there were news at the end of the last rests, too. So a source that writes
/// all the time does not cost a wake-up a line, and one that writes now and then is read at once.
const REST_SHARE: u32 = 40;
const REST: Duration = Duration::from_millis(4);
const LONG_REST: Duration = Duration::from_millis(50);
/// So many rests that ended with news at once.
const BUSY: u32 = 3;
/// At once: within so long.
const AT_ONCE: Duration = Duration::from_millis(2);
/// A file that has the same size and content but was written to is compared again after so long: whoever writes it may just be at it.
const REWRITE_TAKES: Duration = Duration::from_millis(50);
/// So many queues full are heard before the files have their turn.
const MOST_AT_ONCE: usize = 64;

/// How this input learns of news.
pub enum Watching {
    /// By polling alone, as asked for.
    Never,
    Here(Box<Watcher>),
}

#[derive(Default)]
pub struct Watcher {
    /// None: it could not be made.
    watches: Option<Watches>,
    by_dir: HashMap<PathBuf, Watch>,
    /// A directory may have several names.
    dirs: HashMap<Watch, Vec<PathBuf>>,
    /// Files that are written to through names in other directories.
    files: HashMap<Watch, Key>,
    by_key: HashMap<Key, Watch>,
    /// Directories that the present look has entered.
    entered: HashSet<PathBuf>,
    /// What symlinks lead to, in directories that nobody looks into otherwise.
    targets: HashSet<PathBuf>,
    /// Files that should be watched themselves and are not, and why.
    unwatched: HashMap<Key, String>,
    /// What is not told about, and why; the empty path: nothing is.
    gaps: BTreeMap<PathBuf, String>,
    told: Option<String>,
    /// Written to without a change that could be seen.
    suspects: HashMap<Key, Suspect>,
    /// Time that the calls since the last rest worked on what was heard.
    worked: Duration,
    rested: bool,
    /// Steady time at which the last rest is over.
    rest_ends: Duration,
    /// Rests in a row that ended with news at once.
    busy: u32,
}
struct Suspect {
    stamp: Stamp,
    /// If it was read since, that found what there was.
    id: SourceId,
    until: Duration,
}
/// What has been heard, without repetitions.
#[derive(Default)]
struct Heard {
    written: HashMap<Watch, HashSet<OsString>>,
    named: HashMap<Watch, HashMap<OsString, bool>>,
    moved: HashSet<Watch>,
    over: HashSet<Watch>,
    overflow: bool,
    /// A directory itself has changed.
    look: bool,
    more: bool,
}

impl Watcher {
    pub fn new() -> Self {
        Self::default()
    }
    /// All there is to know is told.
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty() && self.unwatched.is_empty() && self.watches.is_some()
    }
    pub fn fd(&self) -> Option<Arc<OwnedFd>> {
        self.watches.as_ref().map(Watches::fd)
    }
    /// How long to rest before hints are heard again.
    pub fn rest(&self) -> Duration {
        let most = if self.busy >= BUSY { LONG_REST } else { REST };
        (self.worked * REST_SHARE).min(most)
    }
    /// A call begins.
    pub fn begins(&mut self, now: Duration) {
        if std::mem::take(&mut self.rested) {
            self.busy = if now < self.rest_ends + AT_ONCE {
                self.busy + 1
            } else {
                0
            };
            self.worked = Duration::ZERO;
        }
    }
    /// It has worked for so long on what was heard, and rests now or goes on.
    pub fn worked(&mut self, time: Duration, rests_now: Option<Duration>) {
        self.worked += time;
        if let Some(now) = rests_now {
            (self.rested, self.rest_ends) = (true, now + self.rest());
        }
    }
    /// Why it polls.
    pub fn why_polling(&self) -> Option<&str> {
        self.told.as_deref()
    }
    pub fn next_suspect(&self) -> Option<Duration> {
        self.suspects.values().map(|suspect| suspect.until).min()
    }

    /// A look at the directories begins.
    pub fn begin(&mut self) {
        self.entered.clear();
        self.targets.clear();
        self.gaps.clear();
        if self.watches.is_none() {
            match Watches::new() {
                Ok(watches) => self.watches = Some(watches),
                Err(error) => {
                    self.gaps.insert(PathBuf::new(), no_watcher(&error));
                }
            }
        }
    }
    /// Before a directory is looked at: what comes after the look is told.
    pub fn enter(&mut self, place: Place<'_>) {
        match place {
            Place::Directory(dir) => self.enter_directory(dir),
            Place::Target(path) => {
                self.targets.insert(path.to_owned());
                path.parent().into_iter().for_each(|dir| self.enter_directory(dir));
            }
        }
    }
    fn enter_directory(&mut self, dir: &Path) {
        let Some(watches) = &self.watches else { return };
        if self.entered.contains(dir) {
            return;
        }
        self.entered.insert(dir.to_owned());
        match watches.directory(dir) {
            Ok(watch) => {
                if self.by_dir.get(dir) != Some(&watch) {
                    self.forget_dir(dir);
                    self.by_dir.insert(dir.to_owned(), watch);
                    self.dirs.entry(watch).or_default().push(dir.to_owned());
                }
                if let Some(kind) = os::foreign_file_system(dir) {
                    let why = format!("{} is on {kind}, where others write without a word here", dir.display());
                    self.gaps.insert(dir.to_owned(), why);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => {
                self.gaps.insert(dir.to_owned(), not_watched(dir, &error));
            }
        }
    }
    /// The look is over: what it did not enter matters no more. True if what there is to say about it has changed.
    pub fn done(&mut self) -> bool {
        let left = self
            .by_dir
            .keys()
            .filter(|dir| !self.entered.contains(*dir))
            .cloned()
            .collect::<Vec<_>>();
        left.iter().for_each(|dir| self.forget_dir(dir));
        self.tell()
    }
    fn tell(&mut self) -> bool {
        let all = self.gaps.values().chain(self.unwatched.values());
        let more = (self.gaps.len() + self.unwatched.len()).saturating_sub(1);
        let told = all.min().map(|why| match more {
            0 => why.clone(),
            more => format!("{why} (and {more} more)"),
        });
        std::mem::replace(&mut self.told, told) != self.told
    }
    fn forget_dir(&mut self, dir: &Path) {
        let Some(watch) = self.by_dir.remove(dir) else { return };
        let Some(names) = self.dirs.get_mut(&watch) else { return };
        names.retain(|name| name != dir);
        if names.is_empty() {
            self.dirs.remove(&watch);
            self.watches.iter().for_each(|watches| watches.remove(watch));
        }
    }
    pub fn watch_file(&mut self, key: Key, file: &File, path: &Path) {
        let Some(watches) = &self.watches else { return };
        match watches.file(file) {
            Ok(watch) => {
                self.unwatched.remove(&key);
                self.files.insert(watch, key);
                self.by_key.insert(key, watch);
            }
            Err(error) => {
                self.unwatched.insert(key, not_watched(path, &error));
                self.tell();
            }
        }
    }
    pub fn forget_file(&mut self, key: Key) {
        self.suspects.remove(&key);
        self.unwatched.remove(&key);
        if let Some(watch) = self.by_key.remove(&key)
            && self.files.remove(&watch).is_some()
        {
            self.watches.iter().for_each(|watches| watches.remove(watch));
        }
    }

    fn hear(&mut self) -> Heard {
        let mut heard = Heard::default();
        let Some(watches) = &mut self.watches else { return heard };
        for _ in 0..MOST_AT_ONCE {
            match watches.hear(|hint| heard.take(hint)) {
                Ok(true) => heard.more = true,
                Ok(false) => {
                    heard.more = false;
                    break;
                }
                Err(error) => {
                    // Never seen; then it is made anew.
                    *self = Self {
                        told: Some(format!("inotify failed: {error}")),
                        ..Self::new()
                    };
                    heard.overflow = true;
                    return heard;
                }
            }
        }
        for watch in &heard.over {
            self.files.remove(watch);
            for dir in self.dirs.remove(watch).into_iter().flatten() {
                self.by_dir.remove(&dir);
                heard.look = true;
            }
        }
        heard
    }
}
impl Heard {
    fn take(&mut self, hint: Hint<'_>) {
        match hint {
            Hint::Written(watch, name) => {
                let names = self.written.entry(watch).or_default();
                if !names.contains(name) {
                    names.insert(name.to_owned());
                }
            }
            Hint::Named(watch, name, is_dir) => {
                let names = self.named.entry(watch).or_default();
                if !names.contains_key(name) {
                    names.insert(name.to_owned(), is_dir);
                }
            }
            Hint::Moved(watch) => drop(self.moved.insert(watch)),
            Hint::Over(watch) => drop(self.over.insert(watch)),
            Hint::Overflow => self.overflow = true,
        }
    }
}

fn no_watcher(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(EMFILE) => format!(
            "inotify is not to be had ({error}): raise fs.inotify.max_user_instances or user.max_inotify_instances (sysctl), or ulimit -n"
        ),
        Some(ENFILE) => format!("inotify is not to be had ({error}): raise fs.file-max (sysctl)"),
        _ => format!("inotify is not to be had: {error}"),
    }
}
fn not_watched(path: &Path, error: &io::Error) -> String {
    let path = super::discovery::shown(path);
    match error.raw_os_error() {
        Some(ENOSPC) => format!(
            "inotify's limit is reached at {path}: raise fs.inotify.max_user_watches or user.max_inotify_watches (sysctl)"
        ),
        Some(ENOMEM) => format!("inotify has no memory for {path}: {error}"),
        _ => format!("inotify cannot watch {path}: {error}"),
    }
}

impl Files {
    /// Hints for all that matters: what is left is only looked at now and then.
    pub(super) fn is_told(&self) -> bool {
        matches!(&self.watching, Watching::Here(watcher) if watcher.is_whole())
    }
    pub(super) fn watcher(&mut self) -> Option<&mut Watcher> {
        match &mut self.watching {
            Watching::Here(watcher) => Some(watcher),
            Watching::Never => None,
        }
    }
    pub(super) fn tell_watching(&self) {
        let Watching::Here(watcher) = &self.watching else {
            return;
        };
        match watcher.why_polling() {
            Some(why) => warn!(
                self.context.log,
                "file events are not all told, polling; reason={}", why
            ),
            None => info!(self.context.log, "file events are told again"),
        }
    }
    /// Hears what has happened. Files with something to read stand in the queue afterwards, and a look is due if names have changed.
    pub(super) fn hear(&mut self, now: Duration) {
        let Watching::Here(watcher) = &mut self.watching else {
            return;
        };
        let mut heard = watcher.hear();
        if heard.overflow {
            self.context.tally.count("watch_overflows", 1);
            info!(
                self.context.log,
                "more happened than the kernel keeps, looking at everything"
            );
            self.polled = None;
        }
        let Some(watcher) = self.watcher() else { return };
        let mut look = heard.overflow || heard.look;
        // A directory; or a file that a symlink leads to, which then leads elsewhere.
        look |= !heard.moved.is_empty();
        let own = heard.written.keys().map(|watch| (watch, true));
        let own = own.chain(heard.moved.iter().map(|watch| (watch, false)));
        let keys = own
            .filter_map(|(watch, written)| Some((*watcher.files.get(watch)?, written)))
            .collect::<Vec<_>>();
        let mut names = Vec::new();
        for (watch, written) in std::mem::take(&mut heard.written) {
            let dirs = watcher.dirs.get(&watch).cloned().unwrap_or_default();
            names.extend(
                written
                    .into_iter()
                    .flat_map(|name| dirs.iter().map(move |dir| (dir.join(&name), None)).collect::<Vec<_>>()),
            );
        }
        for (watch, named) in std::mem::take(&mut heard.named) {
            let dirs = watcher.dirs.get(&watch).cloned().unwrap_or_default();
            names.extend(named.into_iter().flat_map(|(name, is_dir)| {
                dirs.iter()
                    .map(move |dir| (dir.join(&name), Some(is_dir)))
                    .collect::<Vec<_>>()
            }));
        }
        for (key, written) in keys {
            let stamp = self
                .tails
                .get(&key)
                .and_then(|tail| tail.file.as_ref()?.metadata().ok());
            match stamp {
                Some(meta) => self.hint(key, Stamp::of(&meta), written, now),
                None => self.queue_unless_troubled(key),
            }
        }
        for (path, named) in names {
            let meta = fs::metadata(&path);
            let known = meta.as_ref().ok().and_then(|meta| {
                let key = self.by_inode.get(&Inode::of(meta))?;
                let tail = self.tails.get(key).filter(|tail| tail.gone.is_none())?;
                Some((*key, Stamp::of(meta), tail.path == path || tail.aliases.contains(&path)))
            });
            if let Some((key, stamp, _)) = known {
                self.hint(key, stamp, named.is_none(), now);
            }
            let is_new = known.is_none_or(|(_, _, by_this_name)| !by_this_name);
            look |= match named {
                _ if !is_new => false,
                Some(is_dir) => {
                    let is_dir = is_dir || meta.is_ok_and(|meta| meta.is_dir());
                    self.options.globs.concerns(&path, is_dir) || self.is_target(&path)
                }
                // Written to under a name that the last look did not find, or before it could.
                None => {
                    known.is_none()
                        && meta.is_ok()
                        && self.options.globs.concerns(&path, false)
                        && !self.unread_names.contains(&path)
                }
            };
        }
        if look {
            self.next_scan = self.next_scan.min(self.soonest_scan.max(now));
        }
        if heard.more {
            self.heard_more = true;
        }
        self.suspect(now);
    }
    fn is_target(&self, path: &Path) -> bool {
        matches!(&self.watching, Watching::Here(watcher) if watcher.targets.contains(path))
    }
    /// Files that could not be watched: perhaps now.
    pub(super) fn watch_again(&mut self) {
        let Watching::Here(watcher) = &mut self.watching else {
            return;
        };
        for key in watcher.unwatched.keys().copied().collect::<Vec<_>>() {
            if let Some(tail) = self.tails.get(&key)
                && let Some(file) = &tail.file
            {
                watcher.watch_file(key, file.raw(), &tail.path);
            }
        }
    }
    fn queue_unless_troubled(&mut self, key: Key) {
        if self.tails.get(&key).is_some_and(|tail| tail.trouble.is_none()) {
            self.queue(key);
        }
    }
    fn hint(&mut self, key: Key, stamp: Stamp, written: bool, now: Duration) {
        let Some(tail) = self.tails.get_mut(&key) else { return };
        tail.listed = stamp;
        if tail.queued || tail.trouble.as_ref().is_some_and(|trouble| trouble.listed == stamp) {
            return;
        }
        let Some(before) = tail.read_to_end.filter(|before| *before != stamp) else {
            if tail.read_to_end.is_none() {
                self.queue(key);
            }
            return;
        };
        // A short file truncated and given the same content again: known by the hint alone. Longer ones differ in what is compared. Whoever
        // sets times as he likes has not written.
        let rewritten = written
            && before.size == stamp.size
            && before.modified != stamp.modified
            && stamp.modified == stamp.changed
            && (1..=HEAD).contains(&stamp.size)
            && tail.at.offset == stamp.size;
        let id = tail.id;
        tail.active = now;
        if rewritten && let Some(watcher) = self.watcher() {
            let until = now + REWRITE_TAKES;
            watcher.suspects.insert(key, Suspect { stamp, id, until });
        }
        self.queue(key);
    }
    /// What still looks the same after a while was written anew with the same content.
    fn suspect(&mut self, now: Duration) {
        let Some(watcher) = self.watcher() else { return };
        if watcher.suspects.is_empty() {
            return;
        }
        let due = watcher
            .suspects
            .extract_if(|_, suspect| suspect.until <= now)
            .collect::<Vec<_>>();
        for (key, Suspect { stamp, id, .. }) in due {
            let Some(tail) = self.tails.get(&key) else { continue };
            let same =
                fs::metadata(&tail.path).is_ok_and(|meta| Stamp::of(&meta) == stamp && Inode::of(&meta) == tail.inode);
            if same && tail.id == id && !tail.queued && tail.at.offset == stamp.size {
                self.replaced(key);
            }
            self.queue(key);
        }
    }
}
