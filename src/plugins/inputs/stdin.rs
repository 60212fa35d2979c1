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
mod tests;
