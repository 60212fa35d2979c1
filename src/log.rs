//! What the agent says of itself: slog to a terminal, as JSON to stderr, or to a rotating file; never waiting for any of them. What does
//! not fit into the queue is dropped, counted (`luffly_log_records_dropped_total`) and reported. The last records stay in memory for
//! `agent doctor` and the page of logs.
//!
//! A record passes: LevelSwitch → Overflow (queue, its own thread) → Recent and the target.
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    panic::{RefUnwindSafe, UnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use prometheus::IntCounter;
use slog::{Drain, FnValue, Level, Logger, Never, OwnedKVList, PushFnValue, Record, o};
use slog_async::{AsyncCore, AsyncError, AsyncGuard};

use crate::{
    clock::SharedClock,
    os,
    settings::{Log as Settings, LogFormat},
};

/// Records that may wait for the writing thread: some hundred bytes each, so about 1 MiB at most.
const QUEUE: usize = 4096;
/// How many records stay in memory, and how much of each: 400 KiB at most.
const RECENT: usize = 200;
const RECENT_BYTES: usize = 2048;

/// Where it goes.
pub enum Target {
    Stderr,
    /// With stderr turned to it too, so that the last words of an abort are found there. Without that in the foreground.
    File {
        path: PathBuf,
        take_stderr: bool,
    },
}

/// The open log. Dropping it does not flush: `finish` does.
pub struct Log {
    pub logger: Logger,
    pub level: LevelSwitch,
    pub recent: Recent,
    reopen: Arc<AtomicBool>,
    guard: Mutex<Option<AsyncGuard>>,
}

/// Opens the log. Errors: the file cannot be made; the text says which.
pub fn open(settings: &Settings, target: Target, clock: SharedClock, dropped: IntCounter) -> io::Result<Log> {
    let level = LevelSwitch::new(settings.level, clock.clone());
    let stamp = Stamp(clock);
    let recent = Recent::default();
    let reopen = Arc::new(AtomicBool::new(false));
    let in_terminal = match (&target, settings.format) {
        (_, LogFormat::Terminal) => true,
        (_, LogFormat::Json) | (Target::File { .. }, LogFormat::Auto) => false,
        (Target::Stderr, LogFormat::Auto) => io::stderr().is_terminal(),
    };
    // The writer belongs to the writing thread alone; the Mutex is what slog asks for, and is never waited for.
    let remember = Remember {
        recent: recent.clone(),
        stamp: stamp.clone(),
    };
    let (core, guard) = match target {
        Target::Stderr if in_terminal => {
            let decorator = slog_term::TermDecorator::new().stderr().build();
            queue(Both(remember, for_people(stamp, decorator)))
        }
        Target::Stderr => queue(Both(remember, json(stamp, Lines::new(io::stderr(), dropped.clone())))),
        Target::File { path, take_stderr } => {
            let file = RotatingFile::open(path, settings.max_size, settings.keep, take_stderr, reopen.clone())?;
            let lines = Lines::new(file, dropped.clone());
            match in_terminal {
                true => queue(Both(
                    remember,
                    for_people(stamp, slog_term::PlainSyncDecorator::new(lines)),
                )),
                false => queue(Both(remember, json(stamp, lines))),
            }
        }
    };
    let overflow = Overflow {
        core,
        lost: AtomicU64::new(0),
        counter: dropped,
    };
    let filtered = Filtered {
        level: level.clone(),
        below: overflow,
    };
    Ok(Log {
        logger: Logger::root(filtered.ignore_res(), o!()),
        level,
        recent,
        reopen,
        guard: Mutex::new(Some(guard)),
    })
}

impl Log {
    /// The file is opened anew by its name before the next record is written (somebody moved it).
    pub fn reopen(&self) {
        self.reopen.store(true, SeqCst);
    }
    /// Writes what waits, for at most `limit` (a full pipe as stderr would hold us for ever). What is logged later is lost, harmlessly.
    pub fn finish(&self, limit: Duration) {
        let Some(guard) = lock(&self.guard).take() else { return };
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard); // waits for the writing thread
            let _ = done.send(());
        });
        let _ = wait.recv_timeout(limit);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

// ---- level

/// The level, changed while the agent runs, for good or for a while. Clones share it.
#[derive(Clone)]
pub struct LevelSwitch(Arc<Switch>);
struct Switch {
    /// As `Level::as_usize`: 1 critical … 6 trace.
    now: AtomicU8,
    /// What it goes back to.
    base: AtomicU8,
    /// When, in milliseconds of the steady clock; 0: never.
    until: AtomicU64,
    clock: SharedClock,
}
impl LevelSwitch {
    pub fn new(level: Level, clock: SharedClock) -> Self {
        let level = level.as_usize() as u8;
        Self(Arc::new(Switch {
            now: AtomicU8::new(level),
            base: AtomicU8::new(level),
            until: AtomicU64::new(0),
            clock,
        }))
    }
    /// For good; ends what `set_for` began.
    pub fn set(&self, level: Level) {
        self.0.until.store(0, SeqCst);
        self.0.base.store(level.as_usize() as u8, SeqCst);
        self.0.now.store(level.as_usize() as u8, SeqCst);
    }
    /// For a while: the first look after it has passed goes back to the level of the last `set`.
    pub fn set_for(&self, level: Level, time: Duration) {
        let until = self.0.clock.steady().saturating_add(time).as_millis() as u64;
        self.0.now.store(level.as_usize() as u8, SeqCst);
        self.0.until.store(until.max(1), SeqCst);
    }
    pub fn level(&self) -> Level {
        let switch = &*self.0;
        let until = switch.until.load(SeqCst);
        if until != 0 && switch.clock.steady().as_millis() as u64 >= until {
            switch.now.store(switch.base.load(SeqCst), SeqCst);
            switch.until.store(0, SeqCst);
        }
        Level::from_usize(switch.now.load(SeqCst).into()).unwrap_or(Level::Info)
    }
    /// How long the present level still holds; none: for good.
    pub fn time_left(&self) -> Option<Duration> {
        self.level(); // may end here
        match self.0.until.load(SeqCst) {
            0 => None,
            until => Some(Duration::from_millis(until).saturating_sub(self.0.clock.steady())),
        }
    }
    /// Cheap: two loads, and a look at the clock only while a level is on loan.
    pub fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(self.level())
    }
}

struct Filtered<D> {
    level: LevelSwitch,
    below: D,
}
impl<D: Drain<Ok = ()>> Drain for Filtered<D> {
    type Ok = ();
    type Err = D::Err;
    fn log(&self, record: &Record, values: &OwnedKVList) -> Result<(), D::Err> {
        match self.level.is_enabled(record.level()) {
            true => self.below.log(record, values),
            false => Ok(()),
        }
    }
    fn is_enabled(&self, level: Level) -> bool {
        self.level.is_enabled(level)
    }
}
// Logger asks for these; a switch that a panic left half changed shows one wrong level at worst.
impl<D> UnwindSafe for Filtered<D> {}
impl<D> RefUnwindSafe for Filtered<D> {}

// ---- queue

fn queue<D: Drain<Ok = (), Err = Never> + Send + 'static>(drain: D) -> (AsyncCore, AsyncGuard) {
    AsyncCore::custom(drain)
        .chan_size(QUEUE)
        .thread_name("log".to_owned())
        .build_with_guard()
}

/// slog-async's own `DropAndReport` keeps its count to itself; this one also tells the metrics.
struct Overflow {
    core: AsyncCore,
    /// Since the last report.
    lost: AtomicU64,
    counter: IntCounter,
}
impl Drain for Overflow {
    type Ok = ();
    type Err = Never;
    fn log(&self, record: &Record, values: &OwnedKVList) -> Result<(), Never> {
        let lost = self.lost.swap(0, SeqCst);
        if lost > 0 {
            let report = self.core.log(
                &slog::record!(
                    Level::Error,
                    "",
                    &format_args!("log queue was full, records dropped"),
                    slog::b!("dropped" => lost)
                ),
                values,
            );
            if report.is_err() {
                self.lost.fetch_add(lost, SeqCst);
            }
        }
        match self.core.log(record, values) {
            Ok(()) => {}
            Err(AsyncError::Full) => {
                self.lost.fetch_add(1, SeqCst);
                self.counter.inc();
            }
            Err(AsyncError::Fatal(_)) => self.counter.inc(), // the writing thread has ended: we are on our way out
        }
        Ok(())
    }
}

// ---- forms

/// The time of a record, as it is written.
#[derive(Clone)]
struct Stamp(SharedClock);
impl Stamp {
    fn for_people(&self) -> String {
        let here = self.0.wall().to_zoned(jiff::tz::TimeZone::system());
        here.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
    }
    fn for_machines(&self) -> String {
        self.0.wall().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }
}
// slog asks for these; a clock that a panic left half set shows one wrong time at worst.
impl UnwindSafe for Stamp {}
impl RefUnwindSafe for Stamp {}

fn for_people(
    stamp: Stamp,
    decorator: impl slog_term::Decorator + Send + 'static,
) -> impl Drain<Ok = (), Err = Never> + Send + 'static {
    let format = slog_term::FullFormat::new(decorator)
        .use_custom_timestamp(move |w: &mut dyn Write| write!(w, "{}", stamp.for_people()))
        .use_original_order()
        .build();
    Mutex::new(format).ignore_res()
}

fn json(stamp: Stamp, w: impl Write + Send + 'static) -> impl Drain<Ok = (), Err = Never> + Send + 'static {
    let format = slog_json::Json::new(w)
        .set_flush(true)
        .add_key_value(o!(
            // slog hands them on last first: in the line the time stands first.
            "msg" => PushFnValue(|r: &Record, to| to.emit(r.msg())),
            "level" => FnValue(|r: &Record| r.level().as_str().to_ascii_lowercase()),
            "ts" => FnValue(move |_: &Record| stamp.for_machines()),
        ))
        .build();
    Mutex::new(format).ignore_res()
}

/// Each record to both.
struct Both<A, B>(A, B);
impl<A, B> Drain for Both<A, B>
where
    A: Drain<Ok = (), Err = Never>,
    B: Drain<Ok = (), Err = Never>,
{
    type Ok = ();
    type Err = Never;
    fn log(&self, record: &Record, values: &OwnedKVList) -> Result<(), Never> {
        self.0.log(record, values)?;
        self.1.log(record, values)
    }
}

/// The last records, as lines of JSON. Clones share them.
#[derive(Clone, Default)]
pub struct Recent(Arc<Mutex<VecDeque<String>>>);
impl Recent {
    /// Oldest first.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.0).iter().cloned().collect()
    }
}
/// Puts records there.
struct Remember {
    recent: Recent,
    stamp: Stamp,
}
impl Drain for Remember {
    type Ok = ();
    type Err = Never;
    fn log(&self, record: &Record, values: &OwnedKVList) -> Result<(), Never> {
        let line = Line::default();
        json(self.stamp.clone(), line.clone()).log(record, values)?;
        let bytes = std::mem::take(&mut *lock(&line.0));
        let mut text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if text.len() > RECENT_BYTES {
            // Still a line of JSON, with the beginning of what was said.
            let message = record
                .msg()
                .to_string()
                .chars()
                .take(RECENT_BYTES / 8)
                .collect::<String>();
            text =
                serde_json::json!({ "level": record.level().as_str(), "msg": message, "cut": text.len() }).to_string();
        }
        let mut lines = lock(&self.recent.0);
        if lines.len() == RECENT {
            lines.pop_front();
        }
        lines.push_back(text);
        Ok(())
    }
}
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Vec<u8>>>);
impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// ---- targets

/// Gathers the pieces in which a record comes and writes it whole, so that no record is torn between two files. One that cannot be
/// written is dropped and counted.
struct Lines<W> {
    to: W,
    record: Vec<u8>,
    dropped: IntCounter,
}
impl<W> Lines<W> {
    fn new(to: W, dropped: IntCounter) -> Self {
        Self {
            to,
            record: Vec::new(),
            dropped,
        }
    }
}
impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.record.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    /// Both formats flush at the end of each record.
    fn flush(&mut self) -> io::Result<()> {
        if !self.record.is_empty() && self.to.write_all(&self.record).is_err() {
            self.dropped.inc();
        }
        self.record.clear();
        Ok(())
    }
}

/// `agent.log`, and its elders `agent.log.1` … `agent.log.<keep>`. Each `write` is one record and goes into one file, whole or not at all.
struct RotatingFile {
    path: PathBuf,
    /// None after a failure: opened again at the next write.
    file: Option<File>,
    /// Bytes in the file.
    size: u64,
    max_size: u64,
    keep: u32,
    take_stderr: bool,
    reopen: Arc<AtomicBool>,
}
impl RotatingFile {
    fn open(path: PathBuf, max_size: u64, keep: u32, take_stderr: bool, reopen: Arc<AtomicBool>) -> io::Result<Self> {
        let mut this = Self {
            path,
            file: None,
            size: 0,
            max_size,
            keep,
            take_stderr,
            reopen,
        };
        this.open_again()
            .map_err(|e| io::Error::new(e.kind(), format!("could not open log {}: {e}", this.path.display())))?;
        Ok(this)
    }
    fn open_again(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(os::PRIVATE_FILE)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        if self.take_stderr {
            os::redirect_stderr(&file)?;
        }
        self.file = Some(file);
        Ok(())
    }
    fn elder(&self, n: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        name.into()
    }
    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            remove(&self.path)?;
        }
        for n in (1..=self.keep).rev() {
            let from = if n == 1 { self.path.clone() } else { self.elder(n - 1) };
            match std::fs::rename(&from, self.elder(n)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.open_again()
    }
}
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
impl Write for RotatingFile {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, SeqCst) || self.file.is_none() {
            self.open_again()?;
        }
        if self.size > 0 && self.size + record.len() as u64 > self.max_size {
            // If that fails the file grows on: better too long than silent.
            let _ = self.rotate();
        }
        let Some(file) = self.file.as_mut() else {
            return Err(io::Error::other("the log is not open"));
        };
        match file.write_all(record) {
            Ok(()) => {
                self.size += record.len() as u64;
                Ok(record.len())
            }
            Err(e) => {
                // A full disk took a part of it: the next record must not stand behind half a line.
                let _ = file.set_len(self.size);
                Err(e)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use slog::{debug, info, warn};

    use super::*;
    use crate::clock::ManualClock;

    fn settings(max_size: u64, keep: u32) -> Settings {
        Settings {
            level: Level::Info,
            format: LogFormat::Json,
            file: None,
            max_size,
            keep,
        }
    }
    fn counter() -> IntCounter {
        IntCounter::new("x", "x").unwrap()
    }
    fn file_log(path: &Path, max_size: u64, keep: u32) -> (Log, IntCounter) {
        let dropped = counter();
        let target = Target::File {
            path: path.to_owned(),
            take_stderr: false,
        };
        let log = open(
            &settings(max_size, keep),
            target,
            crate::clock::system(),
            dropped.clone(),
        )
        .unwrap();
        (log, dropped)
    }
    fn records(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn records_are_json_with_their_values_and_the_last_ones_stay_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let (log, dropped) = file_log(&path, 1 << 20, 3);
        info!(log.logger, "store unreachable, retrying"; "attempt" => 4, "next_in" => "8s");
        debug!(log.logger, "not shown");
        for n in 0..RECENT {
            warn!(log.logger, "again"; "n" => n);
        }
        log.finish(Duration::from_secs(10));
        info!(log.logger, "too late, and no panic");

        let written = records(&path);
        assert_eq!(written.len(), 1 + RECENT);
        assert_eq!(written[0]["msg"], "store unreachable, retrying");
        assert_eq!(written[0]["level"], "info");
        assert_eq!(
            (&written[0]["attempt"], &written[0]["next_in"]),
            (&4.into(), &"8s".into())
        );
        assert!(written[0]["ts"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        let recent = log.recent.lines();
        assert_eq!(recent.len(), RECENT);
        assert!(recent[0].contains("\"n\":0") && recent[RECENT - 1].contains(&format!("\"n\":{}", RECENT - 1)));
        assert_eq!(dropped.get(), 1, "the late one");
    }

    #[test]
    fn a_long_record_is_kept_short_in_memory_and_stays_json() {
        let (log, _) = file_log(&tempfile::tempdir().unwrap().path().join("l"), 1 << 20, 1);
        info!(log.logger, "{}", "ü".repeat(100_000));
        log.finish(Duration::from_secs(10));
        let line = &log.recent.lines()[0];
        assert!(line.len() <= RECENT_BYTES, "{}", line.len());
        assert!(
            serde_json::from_str::<serde_json::Value>(line).unwrap()["cut"]
                .as_u64()
                .unwrap()
                > 100_000
        );
    }

    #[test]
    fn rotation_tears_no_record_and_keeps_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let (log, dropped) = file_log(&path, 2000, 2);
        for n in 0..100 {
            info!(log.logger, "a record of some length, so that files fill up"; "n" => n);
        }
        log.finish(Duration::from_secs(10));
        let mut numbers = Vec::new();
        for name in ["agent.log.2", "agent.log.1", "agent.log"] {
            let file = dir.path().join(name);
            assert!(std::fs::metadata(&file).unwrap().len() <= 2000, "{name}");
            numbers.extend(records(&file).iter().map(|r| r["n"].as_i64().unwrap()));
        }
        let first = numbers[0];
        assert!(first > 0, "the oldest are gone");
        assert_eq!(numbers, (first..100).collect::<Vec<_>>(), "no gap, in order");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn a_moved_file_is_written_on_until_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut file = RotatingFile::open(path.clone(), 1 << 20, 2, false, Arc::new(AtomicBool::new(false))).unwrap();
        file.write_all(b"one\n").unwrap();
        let moved = dir.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        file.write_all(b"two\n").unwrap();
        file.reopen.store(true, SeqCst);
        file.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_full_queue_drops_counts_and_reports() {
        // A target that takes nothing until it is let go.
        struct Gate(mpsc::Receiver<()>, Line);
        impl Write for Gate {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (open_gate, gate) = mpsc::channel();
        let written = Line::default();
        let counter = counter();
        let (core, guard) = queue(json(
            Stamp(crate::clock::system()),
            Lines::new(Gate(gate, written.clone()), counter.clone()),
        ));
        let overflow = Overflow {
            core,
            lost: AtomicU64::new(0),
            counter: counter.clone(),
        };
        let logger = Logger::root(overflow.ignore_res(), o!());
        let sent = QUEUE as u64 + 10;
        for n in 0..sent {
            info!(logger, "x"; "n" => n);
        }
        let lost = counter.get();
        assert!((9..=10).contains(&lost), "{lost}: one may be in the writer's hands");
        drop(open_gate);
        while !lock(&written.0).ends_with(format!("\"n\":{}}}\n", QUEUE as u64 - 1 + (10 - lost)).as_bytes()) {
            std::thread::yield_now();
        }
        info!(logger, "room again");
        drop(guard);
        let text = String::from_utf8(lock(&written.0).clone()).unwrap();
        assert!(
            text.contains(&format!("\"dropped\":{lost}")),
            "{}",
            &text[text.len() - 300..]
        );
        assert_eq!(text.lines().count() as u64, sent - lost + 2);
    }

    #[test]
    fn a_level_on_loan_goes_back_by_itself() {
        let clock = ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
        let switch = LevelSwitch::new(Level::Info, clock.clone());
        assert!(switch.is_enabled(Level::Info) && !switch.is_enabled(Level::Debug));
        switch.set_for(Level::Debug, Duration::from_secs(300));
        assert!(switch.is_enabled(Level::Debug));
        clock.advance(Duration::from_secs(299));
        assert!(switch.is_enabled(Level::Debug));
        assert_eq!(switch.time_left(), Some(Duration::from_secs(1)));
        clock.advance(Duration::from_secs(1));
        assert!(!switch.is_enabled(Level::Debug));
        assert_eq!((switch.level(), switch.time_left()), (Level::Info, None));
        switch.set_for(Level::Trace, Duration::from_secs(1));
        switch.set(Level::Warning);
        clock.advance(Duration::from_secs(2));
        assert_eq!(switch.level(), Level::Warning, "a level for good ends the loan");
    }
}
