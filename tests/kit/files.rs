//! A file input with everything around it: a directory, a journal, a clock that a test moves, outputs that settle at once or not at
//! all, and a judge.
#![allow(
    clippy::disallowed_methods,
    reason = "real files, with the times that the system gives them"
)]
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    ops::RangeInclusive,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use luffly_agent::{
    checkpoint::{Identity, Journal, SharedJournal},
    clock::{self, ManualClock, SharedClock},
    model::{FileBoard, FileStatus, Host, Mark},
    os,
    plugins::{
        Plugin, Table,
        inputs::{Build, Input, InputContext, Next, Tally, Want, file},
    },
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use tempfile::TempDir;

/// Test files that end in `_v2` are about that version of the plugin, all others about the first.
fn plugin() -> &'static Plugin<Build> {
    match env!("CARGO_CRATE_NAME").ends_with("_v2") {
        true => &file::PLUGIN_V2,
        false => &file::PLUGIN_V1,
    }
}
pub fn is_v2() -> bool {
    plugin().tag == "v2"
}
/// In a place without inotify `file:v2` polls, too.
pub const NO_EVENTS: &str = "TEST_WITHOUT_EVENTS";
pub fn is_told() -> bool {
    is_v2() && std::env::var_os(NO_EVENTS).is_none()
}
/// Runs cases of this very test file again, somewhere else: `command` gets the program and its arguments as `"$@"`.
pub fn again(command: &str, envs: &[(&str, &str)], cases: &[&str]) {
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", command, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(cases)
        .envs(envs.iter().copied())
        .output()
        .expect("`unshare` (util-linux) is missing: it makes the place for this test");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "`{command}` in namespaces of its own (user namespaces must be allowed here):\n{out}{err}"
    );
    let ran = out.matches(" ... ok").count();
    assert!(ran >= cases.len(), "only {ran} cases were run:\n{out}");
}
/// One numbered line: whose it is, which one, a checksum of both.
pub fn text(id: &str, seq: usize) -> String {
    let line = format!("{id} {seq:06}");
    format!("{line} {:08x}", crc32fast::hash(line.as_bytes()))
}
pub fn lines(id: &str, seqs: RangeInclusive<usize>) -> String {
    seqs.map(|seq| text(id, seq) + "\n").collect()
}
/// Whose line it is and which, if it is whole.
fn read(line: &str) -> Option<(&str, usize)> {
    let (id, rest) = line.split_once(' ')?;
    let seq = rest.split_once(' ')?.0.parse().ok()?;
    (text(id, seq) == line).then_some((id, seq))
}
/// Waits until the file system's clock has moved past the last change of a file: it ticks every few milliseconds.
pub fn tick(file: &Path) {
    let modified = fs::metadata(file).unwrap().modified().unwrap();
    let dir = file.parent().unwrap().parent().unwrap();
    while tempfile::tempfile_in(dir)
        .unwrap()
        .metadata()
        .unwrap()
        .modified()
        .unwrap()
        <= modified
    {
        std::thread::yield_now();
    }
}

#[derive(Default)]
struct Counts(Mutex<HashMap<&'static str, u64>>);
impl Tally for Counts {
    fn count(&self, name: &'static str, by: u64) {
        *self.0.lock().unwrap().entry(name).or_default() += by;
    }
}
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);
impl slog::Drain for Log {
    type Ok = ();
    type Err = slog::Never;
    fn log(&self, record: &slog::Record, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
        self.0.lock().unwrap().push(record.msg().to_string());
        Ok(())
    }
}

/// Its current life, and what outlives it.
pub struct Rig {
    dir: TempDir,
    state: TempDir,
    table: Table,
    pub clock: Arc<ManualClock>,
    real_clock: bool,
    tally: Arc<Counts>,
    log: Log,
    board: Arc<FileBoard>,
    journal: Option<SharedJournal>,
    input: Option<Box<dyn Input>>,
    pub once: bool,
    /// The other version of the plugin is mounted next.
    pub other_version: bool,
    pub keeps_journal: bool,
    /// The outputs settle what they get.
    pub settling: bool,
    /// Every line that an output has.
    pub got: Vec<String>,
    pub settled_lines: usize,
    unsettled: Vec<(Mark, usize)>,
    pub last_size: usize,
    pub last_lines: usize,
    /// What the path of the last chunk's file says.
    pub tags: Vec<(&'static str, String)>,
    /// Time that this thread has worked within the input.
    pub cpu: Duration,
}

impl Rig {
    pub fn new(mut options: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let table = options.as_object_mut().unwrap();
        let paths = table.entry("paths").or_insert_with(|| serde_json::json!(["{dir}/*"]));
        for path in paths.as_array_mut().unwrap() {
            *path = Value::String(path.as_str().unwrap().replace("{dir}", root));
        }
        Self {
            table: Table(table.clone()),
            dir,
            state: tempfile::tempdir().unwrap(),
            clock: ManualClock::at(jiff::Timestamp::now()),
            real_clock: false,
            tally: Arc::default(),
            log: Log::default(),
            board: Arc::default(),
            journal: None,
            input: None,
            once: false,
            other_version: false,
            keeps_journal: true,
            settling: true,
            got: Vec::new(),
            settled_lines: 0,
            unsettled: Vec::new(),
            last_size: 0,
            last_lines: 0,
            tags: Vec::new(),
            cpu: Duration::ZERO,
        }
    }
    /// Why these options are refused.
    pub fn refusal(options: Value) -> String {
        let table = Table(options.as_object().unwrap().clone());
        (plugin().check)(&table)
            .expect_err(&format!("{options} is accepted"))
            .to_string()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(name))
            .unwrap();
        std::io::Write::write_all(&mut file, text.as_ref()).unwrap();
    }

    /// As `gzip` does: the packed file first, then the plain one goes.
    pub fn pack(&self, name: &str) {
        let text = fs::read(self.path(name)).unwrap();
        let packed = format!("{name}.gz");
        self.write_packed(&packed, &[&text]);
        let modified = fs::metadata(self.path(name)).unwrap().modified().unwrap();
        let file = fs::File::options().write(true).open(self.path(&packed)).unwrap();
        file.set_modified(modified).unwrap();
        fs::remove_file(self.path(name)).unwrap();
    }
    /// A gzip file of these members.
    pub fn write_packed(&self, name: &str, members: &[&[u8]]) {
        let mut file = fs::File::create(self.path(name)).unwrap();
        for member in members {
            let mut encoder = flate2::write::GzEncoder::new(&mut file, flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, member).unwrap();
            encoder.finish().unwrap();
        }
    }

    /// `name.1` becomes `name.2`, and so on up to `count`.
    pub fn shift(&self, name: &str, count: usize) {
        for i in (1..=count).rev() {
            let _ = fs::rename(
                self.path(&format!("{name}.{i}")),
                self.path(&format!("{name}.{}", i + 1)),
            );
        }
    }

    fn journal(&mut self) -> SharedJournal {
        let dir = self.state.path();
        let open = || Arc::new(Mutex::new(Journal::open(dir, "this boot").unwrap().journal));
        self.journal.get_or_insert_with(open).clone()
    }
    pub fn context(&mut self) -> InputContext {
        let clock: SharedClock = if self.real_clock {
            clock::system()
        } else {
            self.clock.clone()
        };
        InputContext {
            pipeline: "test".into(),
            host: Arc::new(Host {
                agent_id: "sky01".into(),
                group: "net01".into(),
                hostname: "host".into(),
                ip: [127, 0, 0, 1].into(),
                instance: String::new(),
            }),
            log: slog::Logger::root(slog::Fuse(self.log.clone()), slog::o!()),
            clock,
            once: self.once,
            journal: self.keeps_journal.then(|| self.journal()),
            board: self.board.clone(),
            runs: None,
            tally: self.tally.clone(),
        }
    }
    fn plugin(&self) -> &'static Plugin<Build> {
        match is_v2() != self.other_version {
            true => &file::PLUGIN_V2,
            false => &file::PLUGIN_V1,
        }
    }
    pub fn note(&mut self) -> Option<String> {
        self.mount().note().map(str::to_owned)
    }
    fn mount(&mut self) -> &mut Box<dyn Input> {
        if self.input.is_none() {
            let context = self.context();
            let input = (self.plugin().build)(&self.table, context);
            self.input = Some(input.unwrap_or_else(|error| panic!("{error}")));
        }
        self.input.as_mut().unwrap()
    }
    fn read(&mut self, want: Want) -> Next {
        let mut chunks = Vec::new();
        let began = os::thread_cpu_time();
        let next = self.mount().read(want, &mut chunks).unwrap();
        self.cpu += os::thread_cpu_time() - began;
        self.take(chunks);
        next
    }
    fn take(&mut self, chunks: Vec<luffly_agent::model::Chunk>) {
        (self.last_size, self.last_lines) = (0, 0);
        for chunk in chunks {
            assert_eq!(chunk.mark.is_some(), self.keeps_journal);
            self.last_size += chunk.events.size();
            self.last_lines += chunk.events.len();
            self.tags.clone_from(&chunk.origin.tags);
            self.got.extend(
                chunk
                    .events
                    .iter()
                    .map(|event| String::from_utf8_lossy(event).into_owned()),
            );
            self.unsettled.extend(chunk.mark.map(|mark| (mark, self.got.len())));
        }
        if self.settling {
            self.settle_chunks(usize::MAX);
            self.tell_settled();
        }
    }
    /// The outputs have the first so many chunks of those that are not settled.
    pub fn settle_chunks(&mut self, chunks: usize) {
        let chunks = self
            .unsettled
            .drain(..chunks.min(self.unsettled.len()))
            .collect::<Vec<_>>();
        if let Some((_, lines)) = chunks.last() {
            self.settled_lines = *lines;
        }
        if let Some(journal) = &self.journal {
            let mut journal = journal.lock().unwrap();
            journal.settle(&chunks.iter().map(|(mark, _)| *mark).collect::<Vec<_>>());
            journal.write().unwrap();
        }
    }
    pub fn tell_settled(&mut self) {
        self.mount().settled();
    }
    /// One call, for so many chunks at most.
    pub fn read_once(&mut self, chunks: usize) {
        self.read(Want {
            chunks,
            bytes: 64 << 20,
        });
    }
    /// One call. False: there is nothing more.
    pub fn read_of(&mut self, chunks: usize, bytes: usize) -> bool {
        self.read(Want { chunks, bytes }) == Next::More
    }
    /// Lets so much time pass, reading all that there is.
    pub fn run(&mut self, time: Duration) {
        let want = Want {
            chunks: 8,
            bytes: 4 << 20,
        };
        let mut left = time;
        loop {
            match self.read(want) {
                Next::More => {}
                Next::Ended => panic!("a file input does not end"),
                Next::Idle(wait) => {
                    assert!(!wait.is_zero(), "it would spin");
                    if left.is_zero() {
                        // As the Collector does after every read, though nothing was settled: what files are known by.
                        if let Some(journal) = &self.journal {
                            let _ = journal.lock().unwrap().write(); // not everybody may
                        }
                        return;
                    }
                    let wait = wait.max(Duration::from_millis(1)).min(left);
                    self.clock.advance(wait);
                    left -= wait;
                }
            }
        }
    }
    /// As `run`, on the machine's clock.
    pub fn run_real(&mut self, time: Duration) {
        let want = Want {
            chunks: 8,
            bytes: 4 << 20,
        };
        let began = std::time::Instant::now();
        while began.elapsed() < time {
            if let Next::Idle(wait) = self.read(want) {
                let wait = wait.min(time.saturating_sub(began.elapsed()));
                match self.mount().news() {
                    Some(news) => {
                        std::thread::sleep(news.rest.min(wait));
                        let mut fds = [PollFd::new(news.fd.as_fd(), PollFlags::POLLIN)];
                        let wait = wait.saturating_sub(news.rest);
                        poll(&mut fds, PollTimeout::try_from(wait).unwrap()).unwrap();
                    }
                    None => std::thread::sleep(wait),
                }
            }
        }
    }
    pub fn use_real_clock(&mut self) {
        self.stop();
        self.real_clock = true;
    }
    /// Reads what is there with `--once`. True: it ended by itself.
    pub fn run_once(&mut self) -> bool {
        let want = Want {
            chunks: 8,
            bytes: 4 << 20,
        };
        loop {
            match self.read(want) {
                Next::More => {}
                next => return next == Next::Ended,
            }
        }
    }
    /// Panics are caught where the Collector would. Returns how many there were.
    #[cfg(feature = "failpoints")] // used by the tests that need it
    pub fn run_through_falls(&mut self, time: Duration) -> usize {
        let want = Want {
            chunks: 8,
            bytes: 4 << 20,
        };
        let (mut left, mut falls) = (time, 0);
        while !left.is_zero() {
            let mut chunks = Vec::new();
            let input = self.mount();
            let read =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| input.read(want, &mut chunks).unwrap()));
            self.take(chunks); // what was put there counts as read
            match read {
                Err(_) => falls += 1,
                Ok(Next::Idle(wait)) => {
                    let wait = wait.min(left);
                    self.clock.advance(wait);
                    left -= wait;
                }
                Ok(_) => {}
            }
        }
        falls
    }

    /// A clean stop: all that was read is settled.
    pub fn stop(&mut self) {
        self.settle_chunks(usize::MAX);
        self.drop_life();
    }
    /// Killed: what was not settled is gone from the outputs, what was not written from the journal.
    pub fn crash(&mut self) {
        self.unsettled.clear();
        self.got.truncate(self.settled_lines);
        self.drop_life();
    }
    fn drop_life(&mut self) {
        (self.input, self.journal, self.board) = (None, None, Arc::default());
    }
    /// A clean restart with nothing new: how many lines came again.
    pub fn restart_and_count(&mut self) -> usize {
        let before = self.got.len();
        self.stop();
        self.run(Duration::from_secs(15));
        self.got.len() - before
    }
    /// Works without root's right to read everything: file system rights belong to a thread.
    pub fn as_nobody(&mut self, work: impl FnOnce(&mut Self)) {
        use nix::unistd::{Uid, setfsuid};
        use std::os::unix::fs::PermissionsExt;
        for dir in [self.dir.path(), self.state.path()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
        }
        self.journal();
        self.journal.as_ref().unwrap().lock().unwrap().write().unwrap();
        let before = setfsuid(Uid::from_raw(65534));
        work(self);
        setfsuid(before);
    }

    pub fn count(&self, name: &str) -> u64 {
        self.tally.0.lock().unwrap().get(name).copied().unwrap_or(0)
    }
    pub fn reset_counts(&self) {
        self.tally.0.lock().unwrap().clear();
    }
    pub fn logged(&self, words: &str) -> usize {
        self.log
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(words))
            .count()
    }
    pub fn board(&self) -> Vec<FileStatus> {
        self.board.list()
    }
    pub fn row(&self, name: &str) -> FileStatus {
        let rows = self.board();
        let row = rows.iter().find(|row| row.path.ends_with(&format!("/{name}")));
        row.unwrap_or_else(|| panic!("no {name} in {rows:#?}")).clone()
    }
    /// Which files of the directory this process has open.
    pub fn open_files(&self) -> Vec<String> {
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        let mut names = targets
            .filter_map(|path| {
                path.strip_prefix(self.dir.path())
                    .ok()
                    .map(|path| path.display().to_string())
            })
            .collect::<Vec<_>>();
        names.sort();
        names
    }
    /// What the journal knows, by name.
    pub fn entries(&mut self) -> Vec<String> {
        let journal = self.journal();
        let entries = journal.lock().unwrap().entries();
        let name = |path: &Path| path.strip_prefix(self.dir.path()).unwrap_or(path).display().to_string();
        let mut names = entries
            .iter()
            .map(|entry| name(&entry.identity.path))
            .collect::<Vec<_>>();
        names.sort();
        names
    }
    pub fn change_identity(&mut self, change: impl Fn(&mut Identity)) {
        let journal = self.journal();
        let mut journal = journal.lock().unwrap();
        for mut entry in journal.entries() {
            change(&mut entry.identity);
            journal.identify(entry.id, entry.identity, entry.seen);
        }
    }
    pub fn take_texts(&mut self) -> Vec<String> {
        self.settled_lines = 0;
        self.unsettled.iter_mut().for_each(|(_, lines)| *lines = 0);
        std::mem::take(&mut self.got)
    }
    /// The lines that are not numbered ones.
    pub fn take_others(&mut self) -> Vec<String> {
        let (numbered, others) = self.got.drain(..).partition(|line| read(line).is_some());
        self.got = numbered;
        others
    }
    /// Exactly these lines, each once, whole, and in order within its file.
    pub fn judge(&self, expected: &[(&str, RangeInclusive<usize>)]) {
        let mut files = BTreeMap::<&str, Vec<usize>>::new();
        for line in &self.got {
            let (id, seq) = read(line).unwrap_or_else(|| panic!("torn or merged: {line:?}"));
            files.entry(id).or_default().push(seq);
        }
        for (id, seqs) in expected {
            let got = files.remove(id).unwrap_or_default();
            let mut sorted = got.clone();
            sorted.sort_unstable();
            sorted.dedup();
            let missing = seqs
                .clone()
                .filter(|seq| sorted.binary_search(seq).is_err())
                .collect::<Vec<_>>();
            let extra = got.len() as i64 - sorted.len() as i64;
            assert!(
                missing.is_empty(),
                "{id}: {} missing, the first is {}",
                missing.len(),
                missing[0]
            );
            assert_eq!(extra, 0, "{id}: doubled");
            assert_eq!(sorted.len(), seqs.clone().count(), "{id}: lines nobody has written");
            assert!(got.is_sorted(), "{id}: out of order");
        }
        assert!(files.is_empty(), "lines of other files: {:?}", files.keys());
    }
}
