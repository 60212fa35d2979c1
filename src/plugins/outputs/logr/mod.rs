//! Appends events to files. Each call writes whole batches to one file, in one `writev` where the kernel takes it so; what a failed
//! or fallen call left behind the last settled border is cut off before anything else is written, so that every event is there
//! once, whole and in order. A process holds each file alone.
mod rotate;
mod target;
mod template;

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use fail::fail_point;
use jiff::tz::TimeZone;
use serde::Deserialize;
use slog::{debug, info, warn};

use self::{
    rotate::{Job, TIDIER},
    target::Target,
    template::{Days, Paths},
};
use super::{
    encode::{self, Encode, Joined},
    *,
};
use crate::{
    model::Size,
    plugins::{BadValue, Opt},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "logr",
    tag: "v1",
    stable: true,
    about: "appends events to files, rotated by size and day",
    delivery: "delivered once the system has taken it, and synced before a checkpoint that passes it is; nothing is doubled \
               by a fall inside the agent",
    options: &[
        Opt {
            name: "path",
            default: "required",
            about: "absolute; {host} {group} {agent_id} {pipeline} {date} {path} are filled in, as single names below the \
                    directory before the first of them; {path} is the source's path with `_` for `/`, {date} the day it was \
                    read. Missing directories are made",
        },
        Opt {
            name: "max_size",
            default: "\"100MiB\"",
            about: "before the file would grow past this it is rotated: it gets the instant as a suffix, as in \
                    app.log.20261123T101500.250Z",
        },
        Opt {
            name: "daily",
            default: "false",
            about: "also rotate at midnight, local time",
        },
        Opt {
            name: "keep",
            default: "7",
            about: "how many rotated files stay, of each file; those that {date} makes are not counted",
        },
        Opt {
            name: "compress",
            default: "false",
            about: "gzip rotated files, in the background",
        },
        encode::OPTION,
    ],
    sample: r#"{ plugin = "logr", path = "/var/log/fleet/{host}.log", max_size = "100MiB", keep = 7, compress = true }"#,
    check: |table| config(table).map(drop),
    build: |table, context| {
        let config = config(table)?;
        Ok(Box::new(Logr::new(config, context, TimeZone::system())?))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    path: String,
    #[serde(default = "max_size")]
    max_size: Size,
    #[serde(default)]
    daily: bool,
    #[serde(default = "keep")]
    keep: usize,
    #[serde(default)]
    compress: bool,
    #[serde(default)]
    encode: Encode,
}
fn max_size() -> Size {
    Size(100 << 20)
}
fn keep() -> usize {
    7
}
fn config(table: &Table) -> Result<Config, BadValue> {
    let config: Config = table.read()?;
    template::check(&config.path).map_err(|message| BadValue::new("path", message))?;
    if config.max_size.0 == 0 {
        return Err(BadValue::new("max_size", "found 0, accepted: at least 1 byte"));
    }
    if config.keep == 0 {
        return Err(BadValue::new("keep", "found 0, accepted: at least 1"));
    }
    Ok(config)
}

/// How many files are open at once; the one not used for longest is closed for the next.
const MOST_OPEN: usize = 64;
/// How many files may be closed and still wait for the next sync; with more, the oldest is synced at once.
const MOST_CLOSED: usize = 256;
/// How often to look whether a file is still where it was: what is written to one that was deleted meanwhile is lost with it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a rotation that failed the file grows on for so long.
const ROTATE_AGAIN: Duration = Duration::from_secs(10);
/// How many paths to remember as tidied; past it all are tidied once more.
const MOST_TIDIED: usize = 10_000;

struct Logr {
    config: Config,
    paths: Paths,
    days: Days,
    /// `pipeline p, output logr`
    owner: String,
    log: slog::Logger,
    clock: SharedClock,
    /// All open files; at most one has anything pending.
    targets: Vec<Target>,
    calls: u64,
    copied: Vec<u8>,
    reopen: bool,
    /// Closed, but not synced since they were written to.
    closed: Vec<(Arc<Path>, Arc<File>)>,
    /// Directories in which names have changed since the last sync.
    directories: BTreeSet<PathBuf>,
    /// Whose rotated files were looked at, for what a kill has left.
    tidied: HashSet<Arc<Path>>,
}

impl Logr {
    fn new(config: Config, context: OutputContext, zone: TimeZone) -> Result<Self, BadValue> {
        let paths = Paths::new(&config.path, context.pipeline.clone(), zone.clone());
        Ok(Self {
            paths: paths.map_err(|message| BadValue::new("path", message))?,
            days: Days::new(zone),
            owner: format!("pipeline {}, output {}", context.pipeline, context.label),
            log: context.log,
            clock: context.clock,
            config,
            targets: Vec::new(),
            calls: 0,
            copied: Vec::new(),
            reopen: false,
            closed: Vec::new(),
            directories: BTreeSet::new(),
            tidied: HashSet::new(),
        })
    }

    /// Writes the first run of batches that go to one file and fit into it. How many are delivered, and why no more.
    fn try_write(&mut self, batches: &[Batch], copied: &mut Vec<u8>) -> (usize, Result<(), String>) {
        if let Err(error) = self.cut_back() {
            return (0, Err(error));
        }
        let Some(empty) = batches.iter().position(|b| !b.events.is_empty()) else {
            return (batches.len(), Ok(()));
        };
        let batches = &batches[empty..];
        let path = self.paths.of(&batches[0]);
        let same = batches
            .iter()
            .take_while(|b| b.events.is_empty() || self.paths.of(b) == path)
            .count();
        let mut joined = self.config.encode.join(&batches[..same], copied);
        let at = match self.ready(&path, joined.ends[0] as u64) {
            Ok(at) => at,
            Err(error) => return (empty, Err(error)),
        };
        let target = &mut self.targets[at];
        // No room at all: it could not be rotated, and grows on.
        let room = self
            .config
            .max_size
            .0
            .checked_sub(target.settled + 1)
            .map_or(u64::MAX, |left| left + 1);
        let fit = joined.whole(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
        if fit < joined.ends.len() {
            joined = self.config.encode.join(&batches[..fit], copied);
        }
        let Joined { mut slices, ends } = joined;
        let result = target.append(&mut slices);
        // Reported from here on: nothing below can fall.
        let whole = ends.partition_point(|end| *end as u64 <= target.pending);
        target.settle(if whole == 0 { 0 } else { ends[whole - 1] as u64 });
        let result = result.map_err(|error| {
            // Nobody should see a torn line while the next try waits. If it fails, that one begins with it.
            let _ = target.cut_back();
            format!("could not write {}: {}", path.display(), said(&error))
        });
        (empty + whole, result)
    }

    fn cut_back(&mut self) -> Result<(), String> {
        self.targets.iter_mut().try_for_each(|target| {
            let cut = target.cut_back();
            cut.map_err(|error| format!("could not cut back {}: {}", target.path.display(), said(&error)))
        })
    }

    /// Where among the open files the path's is: still in its place, and with room for `bytes` more.
    fn ready(&mut self, path: &Arc<Path>, bytes: u64) -> Result<usize, String> {
        if self.reopen {
            while !self.targets.is_empty() {
                self.retire(0);
            }
            self.reopen = false;
            info!(self.log, "opening files again"; "output" => &self.owner);
        }
        let now = self.clock.steady();
        self.calls += 1;
        // Opened, found full, rotated, opened again: more rounds only if others keep putting files in our way.
        for _ in 0..8 {
            let Some(at) = self.targets.iter().position(|t| t.path == *path) else {
                self.open(path, now)?;
                continue;
            };
            let target = &mut self.targets[at];
            target.used = self.calls;
            if now >= target.look_at {
                target.look_at = now + LOOK_EVERY;
                if !target.is_in_place() {
                    info!(self.log, "the file is gone from its place, opening it again"; "path" => %path.display());
                    self.retire(at);
                    continue;
                }
            }
            if now < target.rotate_at || !self.is_due(at, bytes) {
                return Ok(at);
            }
            if let Err(error) = self.rotate(at) {
                warn!(self.log, "could not rotate, the file grows on; next_in={}s", ROTATE_AGAIN.as_secs();
                    "path" => %path.display(), "error" => said(&error));
                self.targets[at].rotate_at = now + ROTATE_AGAIN;
                return Ok(at);
            }
        }
        Err(format!(
            "could not keep {} open: it is replaced again and again",
            path.display()
        ))
    }

    fn open(&mut self, path: &Arc<Path>, now: Duration) -> Result<(), String> {
        if self.targets.len() >= MOST_OPEN
            && let Some((oldest, _)) = self.targets.iter().enumerate().min_by_key(|(_, t)| t.used)
        {
            self.retire(oldest);
        }
        let mut target = Target::open(path, &self.owner, &self.log)?;
        target.look_at = now + LOOK_EVERY;
        if target.new {
            self.directories.extend(path.parent().map(Path::to_owned));
        }
        self.targets.push(target);
        if self.tidied.len() >= MOST_TIDIED {
            self.tidied.clear();
        }
        if self.tidied.insert(path.clone()) {
            self.tidy(path);
        }
        Ok(())
    }
    fn tidy(&self, path: &Arc<Path>) {
        let job = Job {
            keep: self.config.keep,
            compress: self.config.compress,
            log: self.log.clone(),
        };
        TIDIER.ask(path, job);
    }

    /// Closes a file, without its data being forgotten by the next sync.
    fn retire(&mut self, at: usize) {
        if self.targets[at].dirty {
            if self.closed.len() >= MOST_CLOSED {
                let (path, file) = self.closed.remove(0);
                if let Err(error) = file.sync_data() {
                    warn!(self.log, "could not sync"; "path" => %path.display(), "error" => said(&error));
                }
            }
            self.closed
                .push((self.targets[at].path.clone(), self.targets[at].file.clone()));
        }
        self.targets.swap_remove(at);
    }

    fn is_due(&mut self, at: usize, bytes: u64) -> bool {
        let target = &mut self.targets[at];
        if target.settled == 0 {
            target.began = self.clock.wall();
            return false;
        }
        if target.settled.saturating_add(bytes) > self.config.max_size.0 {
            return true;
        }
        self.config.daily && {
            let began = self.days.of(target.began).number;
            let today = self.days.of(self.clock.wall()).number;
            began < today
        }
    }

    /// After this the path is free for a new file. A fall between any two of its steps leaves what the next call can go on from.
    fn rotate(&mut self, at: usize) -> io::Result<()> {
        fail_point!("logr-rotate");
        let path = self.targets[at].path.clone();
        if self.targets[at].is_in_place() {
            let to = rotate::move_away(&path, self.config.keep, self.clock.wall())?;
            debug!(self.log, "rotated"; "path" => %path.display(), "to" => %to.display());
        }
        fail_point!("logr-rotate");
        self.directories.extend(path.parent().map(Path::to_owned));
        self.retire(at);
        fail_point!("logr-rotate");
        if self.config.compress {
            self.tidy(&path);
        }
        fail_point!("logr-rotate");
        Ok(())
    }
}

/// Looks only; what is missing would be made.
fn writable(directory: &Path, file: Option<&Path>) -> Result<&'static str, String> {
    use nix::unistd::{AccessFlags, eaccess};
    let cannot = |path: &Path, why: &str| format!("could not write {}: {why}", path.display());
    if let Some(file) = file
        && file.exists()
    {
        return match eaccess(file, AccessFlags::W_OK) {
            Ok(()) if file.is_file() => Ok("ok"),
            Ok(()) => Err(cannot(file, "it is no file")),
            Err(error) => Err(cannot(file, &said(&error.into()))),
        };
    }
    let there = directory.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    match eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if !there.is_dir() => Err(cannot(there, "it is no directory")),
        Ok(()) if there == directory => Ok("ok"),
        Ok(()) => Ok("ok, it will be made"),
        Err(error) => Err(cannot(there, &said(&error.into()))),
    }
}

impl Output for Logr {
    fn online(&mut self, say: &mut dyn FnMut(Step)) {
        let (directory, file) = self.paths.root();
        let found = writable(&directory, file.as_deref());
        say(Step::new(
            format!("write below {}", directory.display()),
            found.as_ref().map(|found| (*found).to_owned()),
        ));
    }
    fn write(&mut self, batches: &[Batch]) -> Written {
        let mut copied = std::mem::take(&mut self.copied);
        let (batches, result) = self.try_write(batches, &mut copied);
        self.copied = copied;
        Written {
            batches,
            stopped: result.err().map(OutputError::Retry),
        }
    }
    fn bind(&mut self) -> Result<(), String> {
        match self.paths.root() {
            (_, Some(path)) => Target::can_be_opened(&path),
            (root, None) => {
                let could_not = |error: io::Error| format!("could not write in {}: {}", root.display(), said(&error));
                std::fs::create_dir_all(&root).map_err(could_not)?;
                let flags = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
                nix::unistd::access(&root, flags).map_err(|errno| could_not(errno.into()))
            }
        }
    }
    fn syncer(&mut self) -> Syncer {
        // After a failed sync the system takes the data for clean, and to ask it again would only hide that: so each is asked once.
        let mut files = std::mem::take(&mut self.closed);
        for target in self.targets.iter_mut().filter(|t| t.dirty) {
            target.dirty = false;
            files.push((target.path.clone(), target.file.clone()));
        }
        let directories = std::mem::take(&mut self.directories);
        Box::new(move || {
            let mut result = Ok(());
            let mut note = |path: &Path, done: io::Result<()>| {
                if let Err(error) = done
                    && result.is_ok()
                {
                    let text = format!("could not sync {}: {}", path.display(), said(&error));
                    result = Err(io::Error::new(error.kind(), text));
                }
            };
            for (path, file) in files {
                note(&path, file.sync_data());
            }
            for directory in directories {
                let done = match File::open(&directory).and_then(|d| d.sync_all()) {
                    // Removed meanwhile, and its names with it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    done => done,
                };
                note(&directory, done);
            }
            result
        })
    }
    fn reopen(&mut self) {
        self.reopen = true;
    }
}
