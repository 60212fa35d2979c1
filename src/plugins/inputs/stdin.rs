//! What others write to us: a pipe, a terminal, a file given as standard input. It cannot be read twice, so what was read stays in a
//! field until it is delivered: a fall loses nothing of it.
use std::os::fd::{AsFd, OwnedFd};

use bytes::BytesMut;
use memchr::{memchr, memrchr};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Deserialize;

use super::*;
use crate::{
    model::{Events, Origin, units::Size},
    os,
    plugins::{
        BadValue,
        framing::{
            self, CHUNK, Counts, Fed, Framer, Framing, LONGEST_MARK, OnLongLine, Plan, Pool, SMALL, UTF8_MARK,
            leading_nuls,
        },
    },
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "stdin",
    tag: "v1",
    stable: true,
    about: "Reads lines from standard input; with framing and multiline, records of other forms.",
    delivery: "Cannot be read again: what the agent has taken is lost if it is killed before delivery. Ends with its input; a last line \
               without line end is delivered with one.",
    options: &[
        framing::FRAMING,
        framing::MULTILINE,
        framing::ENCODING,
        framing::KEEP_FIELDS,
        framing::MAX_LINE,
        framing::ON_LONG_LINE,
    ],
    sample: r#"{ plugin = "stdin" }"#,
    check: |table| framing_of(table).map(drop),
    build: |table, context| {
        let framing = framing_of(table)?;
        // A duplicate: dropping the input must not close descriptor 0.
        let fd = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| PluginError::Failed(format!("could not open standard input: {error}")))?;
        Ok(Box::new(Stdin::over(fd, framing, context)))
    },
};

/// The options as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    framing: Option<serde_json::Value>,
    multiline: Option<serde_json::Value>,
    encoding: Option<String>,
    #[serde(default)]
    keep_fields: bool,
    #[serde(default = "framing::default_max_line")]
    max_line: Size,
    #[serde(default)]
    on_long_line: OnLongLine,
}
fn framing_of(table: &Table) -> Result<Framing, BadValue> {
    let options: Options = table.read()?;
    let written = framing::Written {
        framing: options.framing.as_ref(),
        multiline: options.multiline.as_ref(),
        encoding: options.encoding.as_deref(),
        keep_fields: options.keep_fields,
    };
    Framing::read(options.max_line, options.on_long_line, &written)
}

/// A larger pipe wakes both sides less often. Best effort: it is refused to users who have used up their share.
const PIPE_SIZE: i32 = 1 << 20;
/// So long a stop may go unheard.
const WAIT_MS: u8 = 100;

pub struct Stdin {
    fd: OwnedFd,
    framing: Framing,
    /// With other framings than plain lines: what is open of a record.
    framer: Option<Framer>,
    /// Steady time of the last news, for them.
    heard: Duration,
    pool: Pool,
    origin: Arc<Origin>,
    clock: SharedClock,
    tally: SharedTally,
    /// `buffer[..filled]` was read and is not delivered. It may be filled further to its length.
    buffer: BytesMut,
    filled: usize,
    /// In a line whose rest is left out.
    passing: bool,
    /// Of `buffer[0]` in the stream.
    offset: u64,
    /// With a framer: up to where it has given out what there was.
    told: u64,
    ended: bool,
    /// A poll says truly whether a read would wait.
    polls: bool,
}

impl Stdin {
    /// Over any descriptor that can be polled and read.
    pub fn over(fd: OwnedFd, framing: impl Into<Framing>, context: InputContext) -> Self {
        let _ = fcntl(&fd, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        let polls = os::is_stream(&fd);
        let mut pool = Pool::default();
        Self {
            fd,
            framing: framing.into(),
            framer: None,
            heard: Duration::ZERO,
            buffer: pool.take(CHUNK),
            pool,
            origin: Arc::new(Origin {
                host: context.host,
                path: None,
                tags: Vec::new(),
            }),
            clock: context.clock,
            tally: context.tally,
            filled: 0,
            passing: false,
            offset: 0,
            told: 0,
            ended: false,
            polls,
        }
    }

    fn is_ready(&self, wait: PollTimeout) -> Result<bool, InputError> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, wait) {
            Ok(n) => Ok(n > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(InputError(format!("could not wait for standard input: {errno}"))),
        }
    }
    /// From read(2) to the count nothing stands that could fail: what was read would be gone.
    fn fill(&mut self) -> Result<(), InputError> {
        if self.filled == self.buffer.len() {
            // No line end in all of it and still not too long.
            let most = self
                .framer
                .as_ref()
                .map_or(self.framing.rules.max_line + 1, Framer::most_line);
            self.buffer.resize((2 * self.filled).min(most).max(CHUNK), 0);
        }
        fail::fail_point!("stdin-read");
        match nix::unistd::read(&self.fd, &mut self.buffer[self.filled..]) {
            Ok(0) => self.ended = true,
            Ok(read) => {
                self.filled += read;
                if self.framing.plan.is_some() {
                    self.heard = self.clock.steady();
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(InputError(format!("could not read standard input: {errno}"))),
        }
        Ok(())
    }

    /// Puts the next events into `into`, of `room` bytes or one that is larger. False: more must be read first.
    fn deliver(&mut self, room: usize, into: &mut Vec<Chunk>) -> bool {
        if let Some(plan) = self.framing.plan.clone() {
            return self.deliver_records(&plan, into);
        }
        if self.offset == 0 && self.buffer[..self.filled].starts_with(UTF8_MARK) {
            self.drop_front(UTF8_MARK.len());
        }
        self.pass_over();
        let (at, have) = (self.offset, &self.buffer[..self.filled]);
        let newline = memrchr(b'\n', &have[..room.min(have.len())]).or_else(|| memchr(b'\n', have));
        let (events, counts) = if let Some(newline) = newline {
            let text = self.take(newline + 1);
            self.framing.rules.frame(text, &mut self.pool)
        } else if have.len() > self.framing.rules.max_line {
            self.long_line()
        } else if self.ended && !have.is_empty() {
            let last = self.framing.rules.close(have);
            self.drop_front(self.filled);
            last
        } else {
            return false;
        };
        if !events.is_empty() {
            into.push(Chunk {
                events,
                origin: self.origin.clone(),
                offset: at,
                read_at: self.clock.wall(),
                mark: None,
            });
        }
        counts.tell(&*self.tally);
        true
    }
    /// The same for other framings. What was fed to the framer stays there until it is delivered.
    fn deliver_records(&mut self, plan: &Arc<Plan>, into: &mut Vec<Chunk>) -> bool {
        if self.framer.is_none() {
            let start = &self.buffer[..self.filled.min(LONGEST_MARK)];
            let more = start.len() < LONGEST_MARK && !self.ended;
            let Some(framer) = plan.framer(start, more, 0) else {
                return false;
            };
            let mark = framer.at() as usize;
            self.framer = Some(framer);
            self.drop_front(mark);
        }
        let Some(framer) = &mut self.framer else { return false };
        match framer.feed(&self.buffer[..self.filled]) {
            Fed::Took(size) => self.drop_front(size),
            Fed::Nuls => {
                let before = framer.at();
                framer.skip_nuls(leading_nuls(&self.buffer[..self.filled]) as u64);
                let skipped = framer.at() - before;
                self.drop_front(skipped as usize);
            }
            Fed::Unfinished if self.ended => {
                if self.filled == 0 && framer.is_idle() {
                    return false;
                }
                framer.flush(Some(&self.buffer[..self.filled]));
                self.drop_front(self.filled);
            }
            Fed::Unfinished => {
                let quiet = self.clock.steady().saturating_sub(self.heard);
                let timeout = self.framing.record_timeout(None);
                if !framer.is_open() || timeout.is_none_or(|timeout| quiet < timeout) {
                    return false;
                }
                framer.flush(None);
            }
        }
        let base = self.told;
        let ready = self.framer.as_mut().and_then(|framer| framer.ready(base));
        if let Some((events, counts, safe)) = ready {
            self.told = safe;
            counts.tell(&*self.tally);
            if !events.is_empty() {
                into.push(Chunk {
                    events,
                    origin: self.origin.clone(),
                    offset: base,
                    read_at: self.clock.wall(),
                    mark: None,
                });
            }
        }
        true
    }
    /// All that is here is the start of a line that is too long.
    fn long_line(&mut self) -> (Events, Counts) {
        let have = &self.buffer[..self.filled];
        if self.framing.rules.on_long_line == OnLongLine::Split {
            let (events, counts, size) = self.framing.rules.pieces(have);
            self.drop_front(size);
            return (events, counts);
        }
        let framed = self.framing.rules.close(&have[..self.framing.rules.max_line + 1]);
        self.passing = true;
        self.drop_front(self.filled);
        framed
    }
    /// Leaves out the rest of a long line, and NULs before a line whose end is not here yet.
    fn pass_over(&mut self) {
        let newline = |this: &Self| memchr(b'\n', &this.buffer[..this.filled]);
        if self.passing {
            let end = newline(self);
            self.passing = end.is_none();
            self.drop_front(end.map_or(self.filled, |at| at + 1));
        }
        if self.filled > 0 && self.buffer[0] == 0 && newline(self).is_none() {
            let nuls = leading_nuls(&self.buffer[..self.filled]);
            self.drop_front(nuls);
            Counts::nuls(nuls as u64).tell(&*self.tally);
        }
    }
    fn drop_front(&mut self, size: usize) {
        self.buffer.copy_within(size..self.filled, 0);
        self.filled -= size;
        self.offset += size as u64;
    }
    /// The first `size` bytes, as a buffer of their own.
    fn take(&mut self, size: usize) -> BytesMut {
        if size <= SMALL {
            let text = BytesMut::from(&self.buffer[..size]);
            self.drop_front(size);
            return text;
        }
        let rest = self.filled - size;
        let mut next = self.pool.take(CHUNK.max(rest));
        next[..rest].copy_from_slice(&self.buffer[size..self.filled]);
        let mut text = std::mem::replace(&mut self.buffer, next);
        text.truncate(size);
        self.filled = rest;
        self.offset += size as u64;
        text
    }
}

impl Input for Stdin {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        self.read_within(WAIT_MS, want, into)
    }
    fn read_at_once(&mut self, want: Want, into: &mut Vec<Chunk>) -> Option<Result<Next, InputError>> {
        let ready = self.polls && self.is_ready(PollTimeout::ZERO).unwrap_or(false);
        ready.then(|| self.read_within(0, want, into))
    }
    fn no_more(&mut self) {
        self.ended = true;
    }
    fn rewinds(&self) -> bool {
        false
    }
}

/// A read that only throws away (NULs, the rest of a line that is too long) comes back after so many fills: a stop is heard.
const MOST_FILLS: u32 = 8;

impl Stdin {
    /// Waits at most so long for the first byte.
    fn read_within(&mut self, wait_ms: u8, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        let before = into.len();
        let (mut room, mut fills) = (want.bytes, 0);
        while into.len() - before < want.chunks && (room > 0 || into.len() == before) {
            let had = into.len();
            if self.deliver(room, into) {
                let size: usize = into[had..].iter().map(|chunk| chunk.events.size()).sum();
                room = room.saturating_sub(size);
                continue;
            }
            if self.ended {
                return Ok(if into.len() == before { Next::Ended } else { Next::More });
            }
            if fills == MOST_FILLS {
                return Ok(Next::Idle(Duration::ZERO));
            }
            let wait = if into.len() == before { wait_ms } else { 0 };
            match self.is_ready(wait.into()).and_then(|ready| {
                if ready {
                    self.fill()?;
                }
                Ok(ready)
            }) {
                Ok(true) => fills += 1,
                Ok(false) => return Ok(Next::Idle(Duration::ZERO)), // the waiting was done here
                // What was read before it counts; an error that stays comes again.
                Err(_) if into.len() > before => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Next::More)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Seek, Write},
        os::{fd::FromRawFd, unix::net::UnixStream},
        sync::Mutex,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        clock,
        plugins::framing::{Rules, reference},
    };

    #[derive(Default)]
    struct Counted(Mutex<Vec<(&'static str, u64)>>);
    impl Tally for Counted {
        fn count(&self, name: &'static str, by: u64) {
            self.0.lock().unwrap().push((name, by));
        }
    }
    fn context(tally: SharedTally) -> InputContext {
        InputContext {
            pipeline: "test".into(),
            host: Arc::new(Host {
                agent_id: String::new(),
                group: String::new(),
                hostname: String::new(),
                ip: [127, 0, 0, 1].into(),
                instance: String::new(),
            }),
            log: slog::Logger::root(slog::Discard, slog::o!()),
            clock: clock::system(),
            once: true,
            journal: None,
            board: Arc::default(),
            tally,
        }
    }
    fn over(fd: impl Into<OwnedFd>, rules: Rules) -> Stdin {
        Stdin::over(fd.into(), rules, context(Arc::new(NoTally)))
    }
    fn rules(max_line: usize, on_long_line: OnLongLine) -> Rules {
        Rules { max_line, on_long_line }
    }
    fn ordinary() -> Rules {
        rules(CHUNK, OnLongLine::Cut)
    }
    const WANT: Want = Want {
        chunks: 4,
        bytes: 1 << 20,
    };
    fn texts(chunks: &[Chunk]) -> Vec<String> {
        let events = chunks.iter().flat_map(|chunk| chunk.events.iter());
        events.map(|event| String::from_utf8(event.to_vec()).unwrap()).collect()
    }
    /// Reads until it ends; what stands in between must not be waited for.
    fn all(stdin: &mut Stdin) -> Vec<String> {
        let mut chunks = Vec::new();
        while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
        assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Ended, "it stays ended");
        texts(&chunks)
    }
    fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
        std::io::pipe().unwrap()
    }

    #[test]
    fn a_pipe_and_its_last_line() {
        let (reader, mut writer) = pipe();
        let mut stdin = over(reader, ordinary());
        let mut chunks = Vec::new();
        writer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Idle(Duration::ZERO));
        assert_eq!(texts(&chunks), ["one", "two"]);
        let began = std::time::Instant::now();
        assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Idle(Duration::ZERO));
        assert!(began.elapsed() < Duration::from_secs(5), "a stop is heard");
        writer.write_all(b"ee\n\nlast").unwrap();
        drop(writer);
        assert_eq!(all(&mut stdin), ["three", "", "last"]);
    }
    #[test]
    fn whatever_standard_input_is() {
        assert!(all(&mut over(File::open("/dev/null").unwrap(), ordinary())).is_empty());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"a\nb").unwrap();
        file.rewind().unwrap();
        assert_eq!(all(&mut over(file, ordinary())), ["a", "b"]);
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.write_all(b"a\nb\n").unwrap();
        drop(far);
        assert_eq!(all(&mut over(near, ordinary())), ["a", "b"]);
        let (terminal, mut keyboard) = terminal();
        keyboard.write_all(b"typed\n\x04").unwrap(); // and Ctrl-D
        assert_eq!(all(&mut over(terminal, ordinary())), ["typed"]);
        // What cannot be read says so, and again.
        let mut directory = over(File::open("/").unwrap(), ordinary());
        for _ in 0..2 {
            let error = directory.read(WANT, &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("could not read standard input"), "{error}");
        }
    }
    fn terminal() -> (OwnedFd, File) {
        let (mut keyboard, mut terminal) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: both descriptors are written by a call that succeeded and are owned by nobody else.
        unsafe {
            assert_eq!(
                nix::libc::openpty(&mut keyboard, &mut terminal, none, none.cast(), none.cast()),
                0
            );
            (OwnedFd::from_raw_fd(terminal), File::from_raw_fd(keyboard))
        }
    }
    #[test]
    fn large_amounts_in_order_and_with_offsets() {
        let (reader, mut writer) = pipe();
        let lines = (0..300_000)
            .map(|i| format!("line {i} {}", "x".repeat(i % 60)))
            .collect::<Vec<_>>();
        let text = lines.join("\n") + "\n";
        let sent = text.clone();
        let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
        let mut stdin = over(reader, ordinary());
        let (mut chunks, mut offset) = (Vec::new(), 0);
        let mut seen = Vec::new();
        while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {
            assert!(chunks.len() <= 4);
            for chunk in chunks.drain(..) {
                assert_eq!(chunk.offset, offset);
                assert!(chunk.mark.is_none());
                offset += chunk.events.size() as u64;
                seen.extend(
                    chunk
                        .events
                        .iter()
                        .map(|event| String::from_utf8(event.to_vec()).unwrap()),
                );
            }
        }
        writing.join().unwrap();
        assert!(seen == lines);
        assert_eq!(offset, text.len() as u64);
    }
    #[test]
    fn long_lines_stay_bounded() {
        for (policy, count, name) in [
            (OnLongLine::Cut, 3, "lines_cut"),
            (OnLongLine::Skip, 2, "lines_skipped"),
            (OnLongLine::Split, 2 + 656, "lines_split"),
        ] {
            let (reader, mut writer) = pipe();
            let writing = std::thread::spawn(move || {
                writer.write_all(b"first\n").unwrap();
                let part = vec![b'x'; 1 << 20];
                (0..64).for_each(|_| writer.write_all(&part).unwrap());
                writer.write_all(b"\nlast\n").unwrap();
            });
            let tally = Arc::new(Counted::default());
            let mut stdin = Stdin::over(reader.into(), rules(100 << 10, policy), context(tally.clone()));
            let texts = all(&mut stdin);
            writing.join().unwrap();
            assert!(stdin.buffer.capacity() <= 2 * CHUNK);
            assert_eq!(
                (texts.len(), texts[0].as_str(), texts[texts.len() - 1].as_str()),
                (count, "first", "last")
            );
            assert!(texts.iter().all(|text| text.len() <= 100 << 10));
            let counted: u64 = tally
                .0
                .lock()
                .unwrap()
                .iter()
                .filter(|(n, _)| *n == name)
                .map(|(_, by)| by)
                .sum();
            assert_eq!(
                counted,
                if policy == OnLongLine::Split {
                    (64 << 20) / (100 << 10)
                } else {
                    1
                }
            );
        }
    }
    #[test]
    fn a_line_longer_than_a_chunk() {
        let (reader, mut writer) = pipe();
        let line = "y".repeat(3 * CHUNK);
        let sent = line.clone() + "\nnext\n" + &line;
        let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
        let texts = all(&mut over(reader, rules(4 * CHUNK, OnLongLine::Cut)));
        writing.join().unwrap();
        assert!(texts == [line.clone(), "next".to_owned(), line]);
    }
    #[test]
    fn holes_are_skipped_and_counted() {
        let (reader, mut writer) = pipe();
        let tally = Arc::new(Counted::default());
        let mut stdin = Stdin::over(reader.into(), ordinary(), context(tally.clone()));
        let mut chunks = Vec::new();
        for part in ["\0\0", "\0one\n\0\0two\n", "\0"] {
            writer.write_all(part.as_bytes()).unwrap();
            stdin.read(WANT, &mut chunks).unwrap();
        }
        drop(writer);
        assert!(all(&mut stdin).is_empty());
        assert_eq!(texts(&chunks), ["one", "two"]);
        assert_eq!(tally.0.lock().unwrap().iter().map(|(_, by)| by).sum::<u64>(), 6);
    }
    #[test]
    fn its_own_descriptor_stays_open() {
        let table = Table::default();
        drop((PLUGIN.build)(&table, context(Arc::new(NoTally))).unwrap_or_else(|error| panic!("{error}")));
        let mut nothing = [];
        std::io::stdin().read_exact(&mut nothing).unwrap();
        assert!(nix::fcntl::fcntl(std::io::stdin(), FcntlArg::F_GETFD).is_ok());
        let unknown = Table(serde_json::Map::from_iter([("max_lines".to_owned(), 5.into())]));
        assert_eq!((PLUGIN.check)(&unknown).unwrap_err().key, "max_lines");
    }
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))] // each waits for what does not come
        #[test]
        fn reads_as_the_reference_does(
            text in reference::texts(),
            rules in reference::rules(),
            cuts in proptest::collection::vec((1usize..60, 1usize..40), 1..20),
        ) {
            let (reader, mut writer) = pipe();
            let mut stdin = over(reader, rules);
            let (mut chunks, mut rest) = (Vec::new(), text.as_bytes());
            for (write, bytes) in cuts {
                let (piece, more) = rest.split_at(write.min(rest.len()));
                writer.write_all(piece).unwrap();
                rest = more;
                if !piece.is_empty() {
                    stdin.read(Want { chunks: 2, bytes }, &mut chunks).unwrap();
                }
            }
            writer.write_all(rest).unwrap();
            drop(writer);
            while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
            let events = chunks.iter().flat_map(|chunk| chunk.events.iter()).map(<[u8]>::to_vec).collect::<Vec<_>>();
            prop_assert_eq!(events, reference::frame(&rules, text.as_bytes()));
        }
    }
}
