//! Writes events to standard output. A pipe is written without blocking, so that a reader who stands still is backpressure and a
//! stop is heard all the same; what was half written when a call ended is gone on with, never repeated.
use std::{
    fs::{File, OpenOptions},
    io::{IoSlice, IsTerminal, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fail::fail_point;
use nix::{
    fcntl::{FcntlArg, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Deserialize;

use super::{
    encode::{self, Encode},
    *,
};
use crate::model::Lane;

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "stdout",
    tag: "v1",
    stable: true,
    about: "writes events to standard output",
    delivery: "delivered once the system has taken it; after a fall inside the agent nothing is doubled",
    options: &[encode::OPTION],
    sample: r#"{ plugin = "stdout", encode = "raw" }"#,
    check: |table| table.read::<Config>().map(drop),
    build: |table, context| {
        let encode = table.read::<Config>()?.encode;
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|e| PluginError::Failed(format!("could not open stdout: {}", said(&e))))?;
        static TURN: Turn = Turn::new();
        Ok(Box::new(Stdout::new(stdout, &TURN, encode, context.clock)))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    encode: Encode,
}

/// The longest that a call waits for the far side.
const PATIENCE: Duration = Duration::from_millis(100);
/// What a pipe that is ready takes without blocking, in any case (PIPE_BUF).
const SURE: usize = 4096;
/// Holds a few batches, so that writer and reader need not take turns; the most that the kernel gives without privilege.
const PIPE_SIZE: i32 = 1 << 20;

/// There is one stdout for the whole process: who has a batch half out goes first, and is known here even after a reload has
/// replaced it.
struct Turn(Mutex<Begun>, Condvar);
struct Begun {
    /// The number of the output that has something half out; none also if that one is gone.
    holder: Option<u64>,
    /// What a call has begun with and not reported as delivered: the batches, and how many of their bytes the system has taken.
    batches: Vec<(Lane, u64)>,
    encode: Encode,
    taken: usize,
    /// The last byte taken was inside a line.
    torn: bool,
}
impl Turn {
    const fn new() -> Self {
        Self(
            Mutex::new(Begun {
                holder: None,
                batches: Vec::new(),
                encode: Encode::Raw,
                taken: 0,
                torn: false,
            }),
            Condvar::new(),
        )
    }
    fn lock(&self) -> MutexGuard<'_, Begun> {
        // Every field is changed right behind what it tells of, so a fall leaves the truth.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Waits for up to `PATIENCE` until nobody else has a batch half out.
    fn take(&self, me: u64) -> Option<MutexGuard<'_, Begun>> {
        let others = |begun: &mut Begun| begun.holder.is_some_and(|holder| holder != me);
        let (begun, waited) = self
            .1
            .wait_timeout_while(self.lock(), PATIENCE, others)
            .unwrap_or_else(PoisonError::into_inner);
        (!waited.timed_out()).then_some(begun)
    }
}

struct Stdout {
    file: File,
    /// It may block: ask first, and write no more than `SURE`.
    blocks: bool,
    encode: Encode,
    clock: SharedClock,
    copied: Vec<u8>,
    turn: &'static Turn,
    me: u64,
}

impl Stdout {
    fn new(stdout: OwnedFd, turn: &'static Turn, encode: Encode, clock: SharedClock) -> Self {
        let shared = File::from(stdout);
        let is_pipe = shared.metadata().is_ok_and(|m| m.file_type().is_fifo());
        // O_NONBLOCK belongs to the open file description, which a shell and its other children share: so a pipe is opened anew.
        let own = is_pipe
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(format!("/proc/self/fd/{}", shared.as_raw_fd()))
            })
            .and_then(Result::ok);
        if is_pipe {
            // Best effort: refused where the user has too many large pipes already.
            let _ = fcntl(&shared, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        }
        let is_socket = shared.metadata().is_ok_and(|m| m.file_type().is_socket());
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self {
            blocks: own.is_none() && (is_pipe || is_socket || shared.is_terminal()),
            file: own.unwrap_or(shared),
            encode,
            clock,
            copied: Vec::new(),
            turn,
            me: NUMBER.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Waits until there is room, or `PATIENCE` since `start` is used up: false.
    fn wait(&self, start: Duration) -> io::Result<bool> {
        let left = PATIENCE.saturating_sub(self.clock.steady().saturating_sub(start));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
    /// One write, as much as goes; None: there was no room in time.
    fn write_some(&self, slices: &[IoSlice<'_>], start: Duration) -> io::Result<Option<usize>> {
        let mut file = &self.file;
        loop {
            if self.blocks && !self.wait(start)? {
                return Ok(None);
            }
            let result = match slices {
                [first, ..] if self.blocks => file.write(&first[..first.len().min(SURE)]),
                slices => file.write_vectored(slices),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => return Ok(Some(taken)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait(start)? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    fn try_write(&self, batches: &[Batch], copied: &mut Vec<u8>) -> (usize, io::Result<()>) {
        let Some(mut begun) = self.turn.take(self.me) else {
            return (0, Ok(()));
        };
        let start = self.clock.steady();
        let joined = self.encode.join(batches, copied);
        let end_of = |whole: usize| if whole == 0 { 0 } else { joined.ends[whole - 1] };
        let mut slices = &mut { joined.slices }[..];
        // Where the last call stopped, or fell. If the batch that it was in has gone (to the dead letter), its line is ended.
        let same = batches
            .iter()
            .zip(&begun.batches)
            .take_while(|(b, id)| (b.lane, b.seq) == **id);
        let same = if begun.encode == self.encode {
            same.count().min(joined.ends.len())
        } else {
            0
        };
        let done = begun.taken.min(end_of(same));
        if begun.taken > done && same == joined.ends.len() {
            // All of these went out in a call that fell, and more that will be asked for next.
            begun.batches.drain(..same);
            begun.taken -= done;
            return (same, Ok(()));
        }
        if begun.taken > done && begun.torn {
            match self.write_some(&[IoSlice::new(b"\n")], start) {
                Ok(Some(_)) => begun.torn = false,
                Ok(None) => return (0, Ok(())),
                Err(error) => return (0, Err(error)),
            }
        }
        begun.holder = Some(self.me);
        begun.encode = self.encode;
        begun.taken = done;
        begun.batches.clear();
        let ids = batches[..joined.ends.len()].iter().map(|b| (b.lane, b.seq));
        begun.batches.extend(ids);
        IoSlice::advance_slices(&mut slices, done);
        let result = loop {
            fail_point!("stdout-write");
            if slices.is_empty() {
                break Ok(());
            }
            match self.write_some(slices, start) {
                Ok(Some(taken)) => {
                    begun.taken += taken;
                    begun.torn = ends_in_a_line(slices, taken);
                    IoSlice::advance_slices(&mut slices, taken);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // Reported from here on: nothing below can fall.
        let whole = joined.ends.partition_point(|end| *end <= begun.taken);
        begun.batches.drain(..whole);
        begun.taken -= end_of(whole);
        if begun.taken == 0 {
            begun.holder = None;
            self.turn.1.notify_all();
        }
        (whole, result)
    }
}
impl Drop for Stdout {
    fn drop(&mut self) {
        let mut begun = self.turn.lock();
        if begun.holder == Some(self.me) {
            begun.holder = None;
            self.turn.1.notify_all();
        }
    }
}

/// Whether the last of the first `taken` bytes is inside a line.
fn ends_in_a_line(slices: &[IoSlice<'_>], mut taken: usize) -> bool {
    for slice in slices {
        if taken <= slice.len() {
            return slice[..taken].last() != Some(&b'\n');
        }
        taken -= slice.len();
    }
    false
}

impl Output for Stdout {
    fn write(&mut self, batches: &[Batch]) -> Written {
        let mut copied = std::mem::take(&mut self.copied);
        let (batches, result) = self.try_write(batches, &mut copied);
        self.copied = copied;
        let stopped = result.err().map(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::Closed("stdout is closed".into()),
            _ => OutputError::Retry(format!("could not write to stdout: {}", said(&error))),
        });
        Written { batches, stopped }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::{
        testing::{batch, clock},
        *,
    };

    /// Each test has a stdout of its own.
    fn turn() -> &'static Turn {
        Box::leak(Box::new(Turn::new()))
    }
    /// A pipe of one page, and its writer as the plugin sees it.
    fn small_pipe(encode: Encode) -> (File, Stdout) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let stdout = Stdout::new(writer, turn(), encode, crate::clock::system());
        fcntl(&stdout.file, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        (File::from(reader), stdout)
    }
    fn read_some(reader: &mut File, most: usize) -> Vec<u8> {
        let mut into = vec![0; most];
        let n = reader.read(&mut into).unwrap();
        into.truncate(n);
        into
    }
    fn ok(written: Written) -> usize {
        assert!(written.stopped.is_none(), "{:?}", written.stopped);
        written.batches
    }
    fn expected(batches: &[Batch], encode: Encode) -> Vec<u8> {
        let mut copied = Vec::new();
        let joined = encode.join(batches, &mut copied);
        joined.slices.iter().flat_map(|s| s.to_vec()).collect()
    }

    #[test]
    fn a_full_pipe_is_gone_on_with_where_it_stopped() {
        for encode in [Encode::Raw, Encode::Json] {
            let (mut reader, mut stdout) = small_pipe(encode);
            assert!(!stdout.blocks);
            let line = "y".repeat(999);
            let batches = (0..10).map(|seq| batch(seq, &[line.as_str(); 3])).collect::<Vec<_>>();
            let (mut done, mut got, mut calls) = (0, Vec::new(), 0);
            while done < batches.len() {
                done += ok(stdout.write(&batches[done..]));
                calls += 1;
                // As much as there is: at most one page.
                got.extend(read_some(&mut reader, 4096));
            }
            drop(stdout);
            reader.read_to_end(&mut got).unwrap();
            assert_eq!(got, expected(&batches, encode));
            assert!(calls >= 7, "30 kB through 4 kB in {calls} calls");
        }
    }
    #[test]
    fn a_reader_that_stands_still_is_waited_for_without_spinning() {
        let (_reader, mut stdout) = small_pipe(Encode::Raw);
        let batches = [batch(0, &[&"z".repeat(9000)])];
        let cpu = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        let (start, cpu_start) = (std::time::Instant::now(), cpu());
        for _ in 0..3 {
            assert_eq!(ok(stdout.write(&batches)), 0);
        }
        let waited = start.elapsed();
        assert!(
            waited >= Duration::from_millis(290) && waited < Duration::from_secs(5),
            "{waited:?}"
        );
        let used = Duration::from(cpu()) - Duration::from(cpu_start);
        assert!(used < Duration::from_millis(50), "{used:?}");
    }
    #[test]
    fn a_pipe_that_cannot_be_made_nonblocking_is_asked_first() {
        let (mut reader, mut stdout) = small_pipe(Encode::Raw);
        let flags = fcntl(&stdout.file, FcntlArg::F_GETFL).unwrap();
        let blocking = nix::fcntl::OFlag::from_bits_retain(flags) - nix::fcntl::OFlag::O_NONBLOCK;
        fcntl(&stdout.file, FcntlArg::F_SETFL(blocking)).unwrap();
        stdout.blocks = true;
        let batches = [batch(0, &[&"z".repeat(9000)]), batch(1, &["end"])];
        let (mut done, mut got) = (0, Vec::new());
        while done < batches.len() {
            done += ok(stdout.write(&batches[done..]));
            got.extend(read_some(&mut reader, 4096));
        }
        drop(stdout);
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, expected(&batches, Encode::Raw));
    }
    #[test]
    fn nobody_reads_any_more() {
        let (reader, mut stdout) = small_pipe(Encode::Raw);
        drop(reader);
        let written = stdout.write(&[batch(0, &["x"])]);
        assert_eq!(written.batches, 0);
        assert!(matches!(written.stopped, Some(OutputError::Closed(why)) if why == "stdout is closed"));
    }
    #[test]
    fn a_full_device_is_tried_again() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut stdout = Stdout::new(full.into(), turn(), Encode::Raw, clock());
        let written = stdout.write(&[batch(0, &[]), batch(1, &["x"])]);
        assert_eq!(written.batches, 1);
        let Some(OutputError::Retry(why)) = written.stopped else {
            panic!("{:?}", written.stopped)
        };
        assert_eq!(why, "could not write to stdout: no space left on device");
    }
    #[test]
    fn the_line_of_a_batch_that_was_given_up_is_ended() {
        let (mut reader, mut stdout) = small_pipe(Encode::Raw);
        let poison = batch(0, &[&"p".repeat(5000)]);
        assert_eq!(ok(stdout.write(&[poison, batch(1, &["next"])])), 0);
        assert_eq!(read_some(&mut reader, 8192), [b'p'; 4096]);
        assert_eq!(ok(stdout.write(&[batch(1, &["next"]), batch(2, &["last"])])), 2);
        assert_eq!(read_some(&mut reader, 100), b"\nnext\nlast\n");
    }
    #[test]
    fn what_a_fallen_call_got_out_may_be_asked_for_piece_by_piece() {
        let (mut reader, mut stdout) = small_pipe(Encode::Raw);
        let batches = [batch(0, &["a"]), batch(1, &["b"]), batch(2, &["c"])];
        // As a panic behind the last write leaves it.
        let ids = batches[..2].iter().map(|b| (b.lane, b.seq)).collect();
        *stdout.turn.lock() = Begun {
            holder: Some(stdout.me),
            batches: ids,
            encode: Encode::Raw,
            taken: 4,
            torn: false,
        };
        assert_eq!(ok(stdout.write(&batches[..1])), 1);
        assert_eq!(ok(stdout.write(&batches[1..])), 2);
        drop(stdout);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "c\n");
    }
    #[test]
    fn an_heir_goes_on_in_the_middle_and_others_wait_for_their_turn() {
        let (mut reader, mut first) = small_pipe(Encode::Raw);
        let (clock, turn) = (crate::clock::system(), first.turn);
        let same_pipe = || first.file.try_clone().unwrap().into();
        let (mut heir, mut other) = (
            Stdout::new(same_pipe(), turn, Encode::Raw, clock.clone()),
            Stdout::new(same_pipe(), turn, Encode::Raw, clock),
        );
        fcntl(&heir.file, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let long = [batch(0, &[&"l".repeat(4999)])];
        assert_eq!(ok(first.write(&long)), 0);
        assert_eq!(read_some(&mut reader, 8192).len(), 4096);
        assert_eq!(ok(other.write(&[batch(1, &["other"])])), 0);
        drop(first);
        assert_eq!(ok(heir.write(&long)), 1);
        assert_eq!(ok(other.write(&[batch(1, &["other"])])), 1);
        let rest = format!("{}\nother\n", "l".repeat(4999 - 4096));
        assert_eq!(read_some(&mut reader, 8192), rest.as_bytes());
    }
    #[test]
    fn a_regular_file_is_written_whole_and_behind_what_others_wrote() {
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"before\n").unwrap();
        let mut stdout = Stdout::new(file.try_clone().unwrap().into(), turn(), Encode::Raw, clock());
        let batches = (0..2000).map(|seq| batch(seq, &["a", "b"])).collect::<Vec<_>>();
        assert_eq!(ok(stdout.write(&batches)), 2000);
        assert_eq!(ok(stdout.write(&[])), 0);
        let mut got = String::new();
        io::Seek::rewind(&mut (&file)).unwrap();
        (&file).read_to_string(&mut got).unwrap();
        assert_eq!(got, format!("before\n{}", "a\nb\n".repeat(2000)));
    }
    #[test]
    fn built_from_its_sample() {
        let context = testing::context(clock());
        let table = |text| Table(serde_json::from_str(text).unwrap());
        assert!((PLUGIN.build)(&table(r#"{"encode":"json"}"#), context).is_ok());
        let error = (PLUGIN.check)(&table(r#"{"encode":"xml"}"#)).unwrap_err();
        assert_eq!(error.key, "encode");
    }
}
