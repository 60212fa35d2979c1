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
    plugins::{
        BadValue,
        framing::{self, CHUNK, Counts, OnLongLine, Pool, Rules, SMALL, leading_nuls},
    },
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "stdin",
    tag: "v1",
    stable: true,
    about: "Reads lines from standard input.",
    delivery: "Cannot be read again: what the agent has taken is lost if it is killed before delivery. Ends with its input; a last line \
               without line end is delivered with one.",
    options: &[framing::MAX_LINE, framing::ON_LONG_LINE],
    sample: r#"{ plugin = "stdin" }"#,
    check: |table| rules(table).map(drop),
    build: |table, context| {
        let rules = rules(table)?;
        // A duplicate: dropping the input must not close descriptor 0.
        let fd = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| PluginError::Failed(format!("could not open standard input: {error}")))?;
        Ok(Box::new(Stdin::over(fd, rules, context)))
    },
};

/// The options as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default = "framing::default_max_line")]
    max_line: Size,
    #[serde(default)]
    on_long_line: OnLongLine,
}
fn rules(table: &Table) -> Result<Rules, BadValue> {
    let options: Options = table.read()?;
    Rules::new(options.max_line, options.on_long_line)
}

/// A larger pipe wakes both sides less often. Best effort: it is refused to users who have used up their share.
const PIPE_SIZE: i32 = 1 << 20;
/// So long a stop may go unheard.
const WAIT_MS: u8 = 100;

pub struct Stdin {
    fd: OwnedFd,
    rules: Rules,
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
    ended: bool,
}

impl Stdin {
    /// Over any descriptor that can be polled and read.
    pub fn over(fd: OwnedFd, rules: Rules, context: InputContext) -> Self {
        let _ = fcntl(&fd, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        let mut pool = Pool::default();
        Self {
            fd,
            rules,
            buffer: pool.take(CHUNK),
            pool,
            origin: Arc::new(Origin {
                host: context.host,
                path: None,
            }),
            clock: context.clock,
            tally: context.tally,
            filled: 0,
            passing: false,
            offset: 0,
            ended: false,
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
            self.buffer
                .resize((2 * self.filled).min(self.rules.max_line + 1).max(CHUNK), 0);
        }
        fail::fail_point!("stdin-read");
        match nix::unistd::read(&self.fd, &mut self.buffer[self.filled..]) {
            Ok(0) => self.ended = true,
            Ok(read) => self.filled += read,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(InputError(format!("could not read standard input: {errno}"))),
        }
        Ok(())
    }

    /// Puts the next events into `into`, of `room` bytes or one that is larger. False: more must be read first.
    fn deliver(&mut self, room: usize, into: &mut Vec<Chunk>) -> bool {
        self.pass_over();
        let (at, have) = (self.offset, &self.buffer[..self.filled]);
        let newline = memrchr(b'\n', &have[..room.min(have.len())]).or_else(|| memchr(b'\n', have));
        let (events, counts) = if let Some(newline) = newline {
            let text = self.take(newline + 1);
            self.rules.frame(text, &mut self.pool)
        } else if have.len() > self.rules.max_line {
            self.long_line()
        } else if self.ended && !have.is_empty() {
            let last = self.rules.close(have);
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
    /// All that is here is the start of a line that is too long.
    fn long_line(&mut self) -> (Events, Counts) {
        let have = &self.buffer[..self.filled];
        if self.rules.on_long_line == OnLongLine::Split {
            let (events, counts, size) = self.rules.pieces(have);
            self.drop_front(size);
            return (events, counts);
        }
        let framed = self.rules.close(&have[..self.rules.max_line + 1]);
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
        let before = into.len();
        let mut room = want.bytes;
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
            let wait = if into.len() == before { WAIT_MS } else { 0 };
            match self.is_ready(wait.into()).and_then(|ready| {
                if ready {
                    self.fill()?;
                }
                Ok(ready)
            }) {
                Ok(true) => {}
                Ok(false) => return Ok(Next::Idle(Duration::ZERO)), // the waiting was done here
                // What was read before it counts; an error that stays comes again.
                Err(_) if into.len() > before => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Next::More)
    }
    fn rewinds(&self) -> bool {
        false
    }
}
