//! Follows files: by polling (v1), or told by the kernel where to look (v2, see `watch`). `discovery` finds names, `identity` knows a
//! file again, `tail` reads one file (`records` in other framings than lines, `source` what is packed), `reconcile` brings names and
//! files together after each look at the directories (with `recall` for what the journal knows, `copies` for what is no plain rename and
//! `packed` for packed forms of files that were read), `keep` looks after descriptors, the board and the journal.
//!
//! Nothing is lost by a rotation as long as the old file can still be found: open, under another name that matches, or by its inode in
//! the same directory. What cannot be found again is counted.
mod copies;
mod discovery;
mod identity;
mod keep;
mod packed;
mod recall;
mod reconcile;
mod records;
mod source;
mod tail;
mod watch;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
};

use serde::Deserialize;

use super::*;
use crate::{
    model::{
        Mark, Progress, SourceId,
        units::{Size, Span},
    },
    os,
    plugins::{
        BadValue, Opt,
        framing::{self, Framing, OnLongLine, Pool, SMALL},
    },
};
use discovery::Globs;
use identity::{Head, Inode};
use tail::{Step, Tail};
use watch::{Watcher, Watching};

pub const PLUGIN_V1: Plugin<Build> = Plugin {
    name: "file",
    tag: "v1",
    stable: true,
    about: "Follows files by polling, through every kind of rotation. Works on all file systems, network ones too. Polling has one limit: \
            a file of one line that is truncated and given the same line again looks as if it had been touched; it is seen as new with \
            its next change of size.",
    delivery: DELIVERY,
    options: OPTIONS,
    sample: r#"{ plugin = "file:v1", paths = ["/var/log/*.log"] }"#,
    check: |table| Options::read(table).map(drop),
    build: |table, context| Ok(Box::new(Files::new(Options::read(table)?, context, false))),
};
/// `file` alone: the same, told by the kernel where to look.
pub const PLUGIN_V2: Plugin<Build> = Plugin {
    name: "file",
    tag: "v2",
    stable: true,
    about: "Follows files by what the kernel says about them (inotify), through every kind of rotation; looks at everything now and then all \
            the same. Where the kernel does not tell (a limit of inotify, a network file system) it polls as file:v1 does, and says why. \
            Same options and same checkpoints as file:v1: either goes on where the other was.",
    delivery: DELIVERY,
    options: OPTIONS,
    sample: r#"{ plugin = "file:v2", paths = ["/var/log/*.log"] }"#,
    check: |table| Options::read(table).map(drop),
    build: |table, context| Ok(Box::new(Files::new(Options::read(table)?, context, true))),
};
const DELIVERY: &str = "Read again from the checkpoint: at least once, and exactly once after a clean stop. What no agent can recover (truncated \
     before it was read, no copy in sight) is counted as bytes_lost.";
const OPTIONS: &[Opt] = &[
    opt(
        "paths",
        "required",
        "Patterns of the files to read: *, ?, [a-z], {a,b} within a name, ** for any depth of directories. \
         Symlinks are followed, a file with several names is read once. A backslash takes the meaning from the next character.",
    ),
    opt(
        "exclude",
        "[]",
        "Patterns of files that are never opened. One without a slash is about the name alone, as in \"*.gz\".",
    ),
    opt(
        "start",
        "\"beginning\"",
        "beginning or end: where a file is begun that is there at the very first start. What appears later is \
         always read from its beginning.",
    ),
    framing::FRAMING,
    framing::MULTILINE,
    framing::ENCODING,
    framing::KEEP_FIELDS,
    framing::MAX_LINE,
    framing::ON_LONG_LINE,
    opt(
        "max_open_files",
        "half the limit",
        "How many files may be open at once; by default half of what the process may have open (ulimit -n), 4096 at most. 64 are \
         always left to sockets, the log and the state. Beyond it the one idle for longest is closed, and looked at by name.",
    ),
    opt(
        "close_idle",
        "\"5m\"",
        "After so long without news a file is closed, and looked at by name. Also how long a file that was renamed \
         out of sight stays open after the last news.",
    ),
    opt(
        "hold_deleted",
        "\"5m\"",
        "For so long a deleted file is held open while nothing of what is left in it can be delivered. Then it is \
         given up, and counted as bytes_given_up.",
    ),
    opt(
        "forget_after",
        "\"14d\"",
        "So long the checkpoint of a file that is not there any more is kept.",
    ),
    opt(
        "poll_every",
        "\"250ms\"",
        "How often open files are looked at, and at most how often the directories are: looking for files takes \
         a hundredth of the time at most, and happens every 10s at least.",
    ),
    opt(
        "ignore_older",
        "none",
        "A file that is met for the first time, and was last written to longer ago, is not opened; only what is added to it \
         later is read.",
    ),
    opt(
        "read_compressed",
        "false",
        "Reads gzip files (*.gz), of one or more members, too. What was read before it was packed is not read again. \
         Otherwise packed files (*.gz, *.bz2, *.xz, *.zst) are left out.",
    ),
    opt(
        "flush_partial",
        "none",
        "After so long an unfinished line at the end of a file is delivered as it is, with the record it belongs to. What is \
         written to it later becomes a line of its own. By default such a line waits for its end.",
    ),
];
const fn opt(name: &'static str, default: &'static str, about: &'static str) -> Opt {
    Opt { name, default, about }
}

/// The options as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    paths: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    start: Start,
    framing: Option<serde_json::Value>,
    multiline: Option<serde_json::Value>,
    encoding: Option<String>,
    #[serde(default)]
    keep_fields: bool,
    #[serde(default = "framing::default_max_line")]
    max_line: Size,
    #[serde(default)]
    on_long_line: OnLongLine,
    max_open_files: Option<usize>,
    close_idle: Option<Span>,
    hold_deleted: Option<Span>,
    forget_after: Option<Span>,
    poll_every: Option<Span>,
    flush_partial: Option<Span>,
    ignore_older: Option<Span>,
    #[serde(default)]
    read_compressed: bool,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Beginning,
    End,
}

/// The options, checked.
struct Options {
    globs: Globs,
    start: Start,
    framing: Framing,
    max_open: usize,
    close_idle: Duration,
    hold_deleted: Duration,
    forget_after: Duration,
    poll_every: Duration,
    flush_partial: Option<Duration>,
    ignore_older: Option<Duration>,
    read_compressed: bool,
}
impl Options {
    fn read(table: &Table) -> Result<Self, BadValue> {
        let written: Written = table.read()?;
        if written.paths.is_empty() {
            let message = "found none, accepted: at least one pattern as in \"/var/log/*.log\"";
            return Err(BadValue::new("paths", message));
        }
        if written.max_open_files == Some(0) {
            return Err(BadValue::new("max_open_files", "found 0, accepted: at least 1"));
        }
        let span = |key: &str, found: Option<Span>, default: u64| match found.map(|span| span.0) {
            Some(Duration::ZERO) => Err(BadValue::new(key, "found 0s, accepted: a duration above zero")),
            found => Ok(found.unwrap_or(Duration::from_millis(default))),
        };
        let framing = framing::Written {
            framing: written.framing.as_ref(),
            multiline: written.multiline.as_ref(),
            encoding: written.encoding.as_deref(),
            keep_fields: written.keep_fields,
        };
        Ok(Self {
            globs: Globs::new(&written.paths, &written.exclude)?.unpacking(written.read_compressed),
            start: written.start,
            framing: Framing::read(written.max_line, written.on_long_line, &framing)?,
            max_open: written.max_open_files.unwrap_or_else(keep::default_open),
            close_idle: span("close_idle", written.close_idle, 300_000)?,
            hold_deleted: span("hold_deleted", written.hold_deleted, 300_000)?,
            forget_after: span("forget_after", written.forget_after, 14 * 86_400_000)?,
            poll_every: span("poll_every", written.poll_every, 250)?,
            flush_partial: match written.flush_partial {
                Some(_) => Some(span("flush_partial", written.flush_partial, 0)?),
                None => None,
            },
            ignore_older: match written.ignore_older {
                Some(_) => Some(span("ignore_older", written.ignore_older, 0)?),
                None => None,
            },
            read_compressed: written.read_compressed,
        })
    }
}

/// A file within this input, for as long as it is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key(u64);

/// What was in a file before it was truncated, until the next look at the directories: a copy of it may be there.
struct Orphan {
    key: Option<Key>,
    id: SourceId,
    path: PathBuf,
    head: Head,
    at: Progress,
    /// Bytes that were there and not read.
    unread: u64,
}
/// A new file that may be a copy in the making: not read before that is known.
struct Held {
    of: Key,
    size: u64,
    /// Steady time at which it was first seen or grew.
    since: Duration,
    /// It was there at the first look.
    first: bool,
}

/// After a call has worked for so long it comes back, so that a stop is heard.
const SLICE: Duration = Duration::from_millis(50);

struct Files {
    options: Options,
    context: InputContext,
    pool: Pool,
    tails: HashMap<Key, Tail>,
    by_inode: HashMap<Inode, Key>,
    last_key: u64,
    /// Files that (may) have something to read, in turn. Whoever is at work stands at the back: a fall leaves it there.
    ready: VecDeque<Key>,
    open: HashSet<Key>,
    /// Files that no name leads to any more.
    leaving: HashSet<Key>,
    troubled: HashSet<Key>,
    /// Closed, with a record that waits for its end.
    waiting: HashSet<Key>,
    orphans: Vec<Orphan>,
    held: HashMap<Inode, Held>,
    /// Read further than acknowledged.
    settling: HashSet<Key>,
    /// Deleted files that were read to their end: forgotten when all of it is settled.
    done: Vec<(SourceId, u64)>,
    /// Copies that are shorter than what was read of the original: their end, and the offset up to which receipts may still come.
    shorter: Vec<(SourceId, Progress, u64)>,
    /// What was warned about, and when (steady): each once, and again after an hour.
    warned: HashMap<PathBuf, (String, Duration)>,
    /// Names on the board that are not read.
    unread_names: HashSet<PathBuf>,
    scanned: bool,
    /// When the previous run last saw its files, in seconds since 1970; none at the very first start.
    last_run: Option<i64>,
    /// Names that the journal knew at the first look.
    known_names: HashSet<PathBuf>,
    /// Steady times.
    next_scan: Duration,
    polled: Option<Duration>,
    next_forget: Duration,
    /// The number of the next source where no journal is kept.
    next_id: u64,
    max_open: usize,
    watching: Watching,
    /// Hints ask for a look at the directories not before this (steady).
    soonest_scan: Duration,
    /// More hints wait to be heard.
    heard_more: bool,
    /// Time that looks without a hint have taken in this call.
    looked: Duration,
    /// Open files whose turn to be looked at without a hint has not come yet.
    to_poll: Vec<Key>,
    /// Names that led to other files a short time ago, and since when (steady).
    left: HashMap<PathBuf, (Key, Duration)>,
    /// Packed forms of files that are still read themselves, by those.
    packed_forms: HashMap<Key, packed::Waiting>,
    /// Packed files that are not read, and the rule.
    passed_over: HashMap<Inode, String>,
}

impl Files {
    fn new(options: Options, context: InputContext, follows_events: bool) -> Self {
        Self {
            // What reads once and ends needs no news.
            watching: match follows_events && !context.once {
                true => Watching::Here(Box::new(Watcher::new())),
                false => Watching::Never,
            },
            soonest_scan: Duration::ZERO,
            heard_more: false,
            looked: Duration::ZERO,
            to_poll: Vec::new(),
            left: HashMap::new(),
            packed_forms: HashMap::new(),
            passed_over: HashMap::new(),
            max_open: keep::most_open(options.max_open),
            options,
            context,
            pool: Pool::default(),
            tails: HashMap::new(),
            by_inode: HashMap::new(),
            last_key: 0,
            ready: VecDeque::new(),
            open: HashSet::new(),
            leaving: HashSet::new(),
            troubled: HashSet::new(),
            waiting: HashSet::new(),
            orphans: Vec::new(),
            held: HashMap::new(),
            settling: HashSet::new(),
            done: Vec::new(),
            shorter: Vec::new(),
            warned: HashMap::new(),
            unread_names: HashSet::new(),
            scanned: false,
            last_run: None,
            known_names: HashSet::new(),
            next_scan: Duration::ZERO,
            polled: None,
            next_forget: Duration::ZERO,
            next_id: 1,
        }
    }
    fn queue(&mut self, key: Key) {
        if let Some(tail) = self.tails.get_mut(&key)
            && !tail.queued
        {
            tail.queued = true;
            self.ready.push_back(key);
        }
    }
    /// Open files are looked at as often as was asked for; where the kernel tells, so often as something has a time of its own.
    fn next_poll(&self) -> Duration {
        let Some(polled) = self.polled else {
            return Duration::ZERO;
        };
        let every = self.options.poll_every;
        let timed = self.options.flush_partial.or(self.options.framing.record_timeout(None));
        let is_quiet = timed.is_none() && self.leaving.is_empty() && self.troubled.is_empty();
        polled
            + match self.is_told() {
                true if is_quiet => every.max(watch::POLL_QUIET),
                true => every.max(watch::POLL_EVERY),
                false => every,
            }
    }
    /// What is due by time.
    fn tend(&mut self, now: Duration) {
        self.hear(now);
        if now >= self.next_poll() {
            let work = os::thread_cpu_time();
            self.poll(now);
            self.looked += os::thread_cpu_time().saturating_sub(work);
            self.polled = Some(now);
        }
        if now >= self.next_scan {
            self.scan(now);
        }
        if now >= self.next_forget {
            self.forget_old();
            self.next_forget = now + keep::STAMP_EVERY;
        }
    }
    /// One file's turn: at most one chunk. It stays in the queue until there is nothing more to read.
    fn turn(&mut self, key: Key, room: usize, into: &mut Vec<Chunk>, now: Duration) {
        self.ready.push_back(key);
        if self.go_on(key, room, into, now) {
            return;
        }
        if let Some(place) = self.ready.iter().rposition(|other| *other == key) {
            self.ready.remove(place);
        }
        if let Some(tail) = self.tails.get_mut(&key) {
            tail.queued = false;
        }
        self.show(key);
    }
    /// False: nothing more for now.
    fn go_on(&mut self, key: Key, room: usize, into: &mut Vec<Chunk>, now: Duration) -> bool {
        let Some(tail) = self.tails.get(&key) else { return false };
        if let Some(before) = tail.after
            && self.tails.get(&before).is_some_and(|before| before.queued)
        {
            return true;
        }
        if tail.file.is_none() && !self.open(key, now) {
            return false;
        }
        let Some(tail) = self.tails.get_mut(&key) else {
            return false;
        };
        tail.after = None;
        let step = tail.step(&self.options.framing, &mut self.pool, room);
        if step.is_ok() {
            self.is_well_again(key);
        }
        let Some(tail) = self.tails.get_mut(&key) else {
            return false;
        };
        if std::mem::take(&mut tail.record.grew) {
            tail.active = now; // even if nothing of it is complete
        }
        match step {
            Ok(Step::Read(events, counts, at)) => {
                let mark = Mark {
                    source: tail.id,
                    progress: at,
                };
                into.push(Chunk {
                    events,
                    origin: tail.origin.clone(),
                    offset: tail.at.offset,
                    read_at: self.context.clock.wall(),
                    mark: self.context.journal.is_some().then_some(mark),
                });
                tail.hand_over(at); // nothing that could fail stands between the two
                counts.tell(&*self.context.tally);
                self.was_read(key, now);
                true
            }
            Ok(Step::Busy(counts)) => {
                counts.tell(&*self.context.tally);
                true
            }
            Ok(Step::Replaced) => {
                self.replaced(key);
                true
            }
            Ok(Step::End) => self.at_end(key),
            Err(error) => {
                self.trouble(key, format!("could not read: {error}"), now);
                false
            }
        }
    }
    /// All whole lines of it are read. True if the last, unfinished one is to be read, too.
    fn at_end(&mut self, key: Key) -> bool {
        let Some(tail) = self.tails.get_mut(&key) else {
            return false;
        };
        let flushed = std::mem::take(&mut tail.flush);
        let whole = tail.file.as_ref().is_some_and(|file| file.is_whole());
        if whole && !flushed && (tail.partial || tail.record.waits) {
            (tail.flush, tail.record.flush) = (tail.partial, tail.record.waits); // packed: nothing will come behind it
            return true;
        }
        if tail.gone.is_some() && flushed {
            self.finish(key);
        } else if self.context.once {
            // No more will come in this run: of a file that is gone the unfinished line is taken, too.
            tail.flush = tail.gone.is_some();
            tail.record.flush = tail.record.waits;
            return tail.flush || tail.record.flush;
        }
        false
    }
}

impl Input for Files {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        let work = os::thread_cpu_time();
        let now = self.context.clock.steady();
        if let Some(watcher) = self.watcher() {
            watcher.begins(now);
        }
        let next = self.read_on(want, into);
        let looked = std::mem::take(&mut self.looked);
        let now = self.context.clock.steady();
        if let Some(watcher) = self.watcher() {
            let worked = os::thread_cpu_time().saturating_sub(work);
            watcher.worked(
                worked.saturating_sub(looked),
                matches!(next, Ok(Next::Idle(_))).then_some(now),
            );
        }
        next
    }
    fn rewinds(&self) -> bool {
        true
    }
    fn settled(&mut self) {
        let now = self.context.clock.steady();
        self.show_acknowledged();
        // Also while the outputs take nothing and `read` is not called: what is deleted meanwhile must not be held for ever.
        self.tend(now);
        self.tend_leaving(now);
    }
    fn news(&self) -> Option<News> {
        match &self.watching {
            Watching::Here(watcher) => Some(News {
                fd: watcher.fd()?,
                rest: watcher.rest(),
            }),
            Watching::Never => None,
        }
    }
    fn note(&self) -> Option<&str> {
        match &self.watching {
            Watching::Here(watcher) => watcher.why_polling(),
            Watching::Never => None,
        }
    }
}
impl Files {
    fn read_on(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        let clock = self.context.clock.clone();
        let began = clock.steady();
        let before = into.len();
        let mut room = want.bytes;
        loop {
            let now = clock.steady();
            self.tend(now);
            while into.len() - before < want.chunks
                && (room >= SMALL || into.len() == before) // not a few bytes for the sake of the rest
                && clock.steady().saturating_sub(began) < SLICE
                && let Some(key) = self.ready.pop_front()
            {
                let had = into.len();
                self.turn(key, room, into, now);
                let size: usize = into[had..].iter().map(|chunk| chunk.events.size()).sum();
                room = room.saturating_sub(size);
            }
            let due = self.next_poll().min(self.next_scan);
            let due = self
                .watcher()
                .and_then(|watcher| watcher.next_suspect())
                .map_or(due, |suspect| due.min(suspect));
            let due = due.saturating_sub(now);
            if std::mem::take(&mut self.heard_more) {
                return Ok(Next::More);
            }
            if !self.ready.is_empty() || into.len() > before && due.is_zero() {
                return Ok(Next::More);
            }
            if due.is_zero() {
                continue; // what was read calls for another look at the directories
            }
            if self.context.once {
                return Ok(if into.len() == before { Next::Ended } else { Next::More });
            }
            if into.len() == before {
                self.pool.rest();
            }
            return Ok(Next::Idle(due));
        }
    }
}
