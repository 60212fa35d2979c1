//! Where events end in what was read. Shared by all inputs. Here: plain lines, one line, one event, as they are. Everything else is in
//! `records` (one source's lines and records), with `encoding`, `container` (cri, docker) and `multiline`; `options` is how it is written.
//!
//! Ordinary text is not copied: the read buffer itself becomes the batch. Only a chunk with a line that is too long, or that begins
//! with NULs, is written anew. Buffers come back from the outputs through the `Pool` (measured: a quarter to a half faster).
mod container;
mod encoding;
mod multiline;
mod options;
mod records;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use memchr::memchr_iter;
use serde::Deserialize;

use crate::{
    model::{Events, units::Size},
    plugins::{BadValue, Opt, inputs::Tally},
};

pub use encoding::{LONGEST_MARK, UTF8_MARK};
use options::Kind;
pub use options::{ENCODING, FRAMING, Framing, KEEP_FIELDS, MULTILINE, Plan, Written};
pub use records::{Fed, Framer};

/// How much is read at once, in bytes: larger ones fall out of the second-level cache, smaller ones cost more calls.
pub const CHUNK: usize = 256 << 10;
/// Up to here a buffer has the size of what is read into it: a few bytes in flight must not hold a whole chunk of memory.
pub const SMALL: usize = CHUNK / 4;
/// A line may not be allowed to be longer than this: it has to be in memory as a whole.
const MOST_MAX_LINE: u64 = 64 << 20;

pub const MAX_LINE: Opt = Opt {
    name: "max_line",
    default: "\"256KiB\"",
    about: "The longest event, without its line end; `on_long_line` says what becomes of longer ones. Accepted: 1B to 64MiB.",
};
pub const ON_LONG_LINE: Opt = Opt {
    name: "on_long_line",
    default: "\"cut\"",
    about: "cut: the event ends at max_line, the rest of the line is left out (counted lines_cut). split: the line becomes several events \
            (counted lines_split, one for each extra event). skip: the line is left out (counted lines_skipped). Never inside a UTF-8 character.",
};
pub fn default_max_line() -> Size {
    Size(CHUNK as u64)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLongLine {
    #[default]
    Cut,
    Split,
    Skip,
}

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes, without the line end.
    pub max_line: usize,
    pub on_long_line: OnLongLine,
}

/// What was done to the text, for the tally.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub cut: u64,
    pub split: u64,
    pub skipped: u64,
    pub nul_bytes: u64,
    /// Lines that held what is no text in their encoding.
    pub replaced: u64,
    /// Lines of another form than `framing` says.
    pub malformed: u64,
}
impl Counts {
    pub fn nuls(nul_bytes: u64) -> Self {
        Self {
            nul_bytes,
            ..Self::default()
        }
    }
    pub fn tell(self, tally: &dyn Tally) {
        for (name, by) in [
            ("lines_cut", self.cut),
            ("lines_split", self.split),
            ("lines_skipped", self.skipped),
            ("nul_bytes_skipped", self.nul_bytes),
            ("lines_replaced", self.replaced),
            ("lines_malformed", self.malformed),
        ] {
            if by > 0 {
                tally.count(name, by);
            }
        }
    }
}

impl Rules {
    pub fn new(max_line: Size, on_long_line: OnLongLine) -> Result<Self, BadValue> {
        if !(1..=MOST_MAX_LINE).contains(&max_line.0) {
            let message = format!("found {max_line}, accepted: 1B to 64MiB");
            return Err(BadValue::new("max_line", message));
        }
        Ok(Self {
            max_line: max_line.0 as usize,
            on_long_line,
        })
    }

    /// Makes events of whole lines: `text` is empty or ends with `\n`. An empty line is an event, too. NULs at the start of a line are
    /// left out; they are what a sparse hole reads as (a log truncated under a writer that kept its offset).
    pub fn frame(&self, text: BytesMut, pool: &mut Pool) -> (Events, Counts) {
        debug_assert!(text.last().is_none_or(|last| *last == b'\n'));
        let mut ends = Vec::with_capacity(text.len() / 128 + 8);
        let (mut start, mut odd) = (0, false);
        for newline in memchr_iter(b'\n', &text) {
            odd |= newline - start > self.max_line || text[start] == 0;
            start = newline + 1;
            ends.push(start as u32);
        }
        if !odd {
            return (Events::new(pool.lend(text), ends), Counts::default());
        }
        let (anew, ends, counts) = self.rewrite(&text, &ends);
        pool.lend(text); // nobody else has it: free at once
        (Events::new(anew.into(), ends), counts)
    }

    fn rewrite(&self, text: &[u8], old_ends: &[u32]) -> (Vec<u8>, Vec<u32>, Counts) {
        let (mut anew, mut ends, mut counts) = (Vec::with_capacity(text.len()), Vec::new(), Counts::default());
        let mut event = |content: &[u8]| {
            anew.extend_from_slice(content);
            anew.push(b'\n');
            ends.push(anew.len() as u32);
        };
        let mut start = 0;
        for &end in old_ends {
            let line = &text[start..end as usize - 1];
            start = end as usize;
            let nuls = leading_nuls(line);
            counts.nul_bytes += nuls as u64;
            let mut line = &line[nuls..];
            if line.len() > self.max_line {
                match self.on_long_line {
                    OnLongLine::Cut => {
                        counts.cut += 1;
                        line = &line[..self.cut_at(line)];
                    }
                    OnLongLine::Skip => {
                        counts.skipped += 1;
                        continue;
                    }
                    OnLongLine::Split => {
                        while line.len() > self.max_line {
                            counts.split += 1;
                            let (piece, rest) = line.split_at(self.cut_at(line));
                            event(piece);
                            line = rest;
                        }
                    }
                }
            }
            event(line);
        }
        (anew, ends, counts)
    }

    /// A line without its end: the last one, or the start of one that is too long (its first `max_line + 1` bytes are enough).
    pub fn close(&self, line: &[u8]) -> (Events, Counts) {
        let (text, ends, counts) = self.rewrite(line, &[line.len() as u32 + 1]);
        (Events::new(text.into(), ends), counts)
    }
    /// Splits the start of a line that goes on, while more than `max_line` of it is there. Also returns how many of its bytes that was.
    pub fn pieces(&self, line: &[u8]) -> (Events, Counts, usize) {
        let (mut text, mut ends, mut done) = (Vec::with_capacity(line.len() + 8), Vec::new(), 0);
        while line.len() - done > self.max_line {
            let piece = &line[done..][..self.cut_at(&line[done..])];
            text.extend_from_slice(piece);
            text.push(b'\n');
            ends.push(text.len() as u32);
            done += piece.len();
        }
        let counts = Counts {
            split: ends.len() as u64,
            ..Counts::default()
        };
        (Events::new(text.into(), ends), counts, done)
    }

    /// Where a line that is longer than `max_line` is cut: there, or up to three bytes before, between two UTF-8 characters. Needs its
    /// first `max_line + 1` bytes only.
    pub fn cut_at(&self, line: &[u8]) -> usize {
        let continues = |at: &usize| line[*at] & 0xC0 == 0x80;
        let most = self.max_line;
        if !continues(&most) {
            return most;
        }
        // No start within three bytes: this is not UTF-8 anyway.
        (most.saturating_sub(3).max(1)..most)
            .rev()
            .find(|at| !continues(at))
            .unwrap_or(most)
    }
    /// What patterns of `multiline` see of a line: what `on_long_line = "cut"` would leave of it.
    pub fn judged<'a>(&self, line: &'a [u8]) -> &'a [u8] {
        match line.len() > self.max_line {
            true => &line[..self.cut_at(line)],
            false => line,
        }
    }
}

pub fn leading_nuls(line: &[u8]) -> usize {
    line.iter().take_while(|byte| **byte == 0).count()
}

/// Buffers that went out as batches, and are used again when the last output has let go of them.
#[derive(Default)]
pub struct Pool {
    lent: VecDeque<Bytes>,
}
impl Pool {
    /// So much memory the pool may keep from being freed: 8 MiB. It is more than the windows of a pipeline hold.
    const MOST: usize = 32;
    /// Batches come back about in order; one that somebody holds for long must not make us look through all.
    const TRIES: usize = 4;

    /// A buffer of `len` bytes, filled with anything.
    pub fn take(&mut self, len: usize) -> BytesMut {
        if len <= SMALL || len > CHUNK {
            return BytesMut::zeroed(len);
        }
        for _ in 0..self.lent.len().min(Self::TRIES) {
            let Some(bytes) = self.lent.pop_front() else { break };
            match bytes.try_into_mut() {
                Ok(mut free) => {
                    free.resize(len, 0); // zeroes only what the last batch did not fill
                    return free;
                }
                Err(in_use) => self.lent.push_back(in_use),
            }
        }
        let mut fresh = BytesMut::zeroed(CHUNK);
        fresh.truncate(len);
        fresh
    }
    /// Hands a buffer out, and remembers it if it is one to use again.
    pub fn lend(&mut self, filled: BytesMut) -> Bytes {
        let again = filled.capacity() == CHUNK;
        let bytes = filled.freeze();
        if again {
            if self.lent.len() == Self::MOST {
                self.lent.pop_front();
            }
            self.lent.push_back(bytes.clone());
        }
        bytes
    }
    /// Nothing is going on: lets go of one buffer.
    pub fn rest(&mut self) {
        self.lent.pop_front();
    }
}

#[cfg(test)]
pub(crate) mod reference {
    use proptest::prelude::*;

    use super::{OnLongLine, Rules};

    /// The same in simple words: event by event, no buffers.
    pub fn frame(rules: &Rules, text: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap();
            let nuls = line.iter().position(|byte| *byte != 0).unwrap_or(line.len());
            let mut line = line[nuls..].to_vec();
            while line.len() > rules.max_line {
                // The last place at or before max_line where a character begins, if it is near.
                let at = (0..=3)
                    .filter_map(|back| rules.max_line.checked_sub(back))
                    .find(|at| *at > 0 && !(0x80..0xC0).contains(&line[*at]))
                    .unwrap_or(rules.max_line);
                let rest = line.split_off(at);
                match rules.on_long_line {
                    OnLongLine::Cut => {}
                    OnLongLine::Split => {
                        events.push(std::mem::replace(&mut line, rest));
                        continue;
                    }
                    OnLongLine::Skip => line = vec![b'\n'], // no content holds that: stands for none
                }
                break;
            }
            if line != b"\n" {
                events.push(line);
            }
        }
        events
    }
    /// Texts with long lines, characters of several bytes and NULs at the start of lines; ends with a line end.
    pub fn texts() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            6 => Just("x"), 4 => Just("\n"), 2 => Just("語"), 1 => Just("\n\0"), 1 => Just("\n\0\0\0\n"), 1 => Just("long-enough-to-cross"),
        ];
        proptest::collection::vec(word, 0..120).prop_map(|words| words.concat() + "\n")
    }
    pub fn rules() -> impl Strategy<Value = Rules> {
        let policy = prop_oneof![Just(OnLongLine::Cut), Just(OnLongLine::Split), Just(OnLongLine::Skip)];
        (1usize..12, policy).prop_map(|(max_line, on_long_line)| Rules { max_line, on_long_line })
    }
}
#[cfg(test)]
mod plain_tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(max_line: usize, on_long_line: OnLongLine) -> Rules {
        Rules { max_line, on_long_line }
    }
    fn framed(rules: &Rules, text: &[u8]) -> (Vec<Vec<u8>>, Counts) {
        let (events, counts) = rules.frame(BytesMut::from(text), &mut Pool::default());
        (events.iter().map(<[u8]>::to_vec).collect(), counts)
    }

    #[test]
    fn lines_and_empty_lines() {
        let (events, counts) = framed(&rules(10, OnLongLine::Cut), b"a\n\nbb\r\n\n");
        assert_eq!(events, [b"a".as_slice(), b"", b"bb\r", b""]);
        assert_eq!(counts, Counts::default());
        assert_eq!(framed(&rules(10, OnLongLine::Cut), b"").0.len(), 0);
    }
    #[test]
    fn long_lines_leave_their_neighbours_alone() {
        let text = b"before\n0123456789ABCDEFGHIJK\nexactly_10\nafter\n";
        let (events, counts) = framed(&rules(10, OnLongLine::Cut), text);
        assert_eq!(events, [b"before".as_slice(), b"0123456789", b"exactly_10", b"after"]);
        assert_eq!(counts.cut, 1);
        let (events, counts) = framed(&rules(10, OnLongLine::Skip), text);
        assert_eq!(events, [b"before".as_slice(), b"exactly_10", b"after"]);
        assert_eq!(counts.skipped, 1);
        let (events, counts) = framed(&rules(10, OnLongLine::Split), text);
        assert_eq!(events[1..4], [b"0123456789".as_slice(), b"ABCDEFGHIJ", b"K"]);
        assert_eq!((events.len(), counts.split), (6, 2));
    }
    #[test]
    fn no_character_is_cut_in_two() {
        let (events, _) = framed(&rules(4, OnLongLine::Cut), "日本語\n".as_bytes());
        assert_eq!(events, ["日".as_bytes()]);
        let (events, _) = framed(&rules(4, OnLongLine::Split), "日本語\n".as_bytes());
        assert_eq!(events, ["日".as_bytes(), "本".as_bytes(), "語".as_bytes()]);
        // Too narrow for one character, or not UTF-8: cut all the same.
        assert_eq!(framed(&rules(1, OnLongLine::Split), "語\n".as_bytes()).0.len(), 3);
        assert_eq!(
            framed(&rules(4, OnLongLine::Cut), b"\x80\x80\x80\x80\x80\x80\n").0,
            [[0x80; 4]]
        );
    }
    #[test]
    fn nuls_go_at_the_start_of_a_line_only() {
        let (events, counts) = framed(&rules(10, OnLongLine::Cut), b"a\n\0\0\0b\0c\n\0\n");
        assert_eq!(events, [b"a".as_slice(), b"b\0c", b""]);
        assert_eq!(counts.nul_bytes, 4);
    }
    #[test]
    fn max_line_has_bounds() {
        assert!(Rules::new(Size(0), OnLongLine::Cut).is_err());
        assert!(Rules::new(Size(MOST_MAX_LINE + 1), OnLongLine::Cut).is_err());
        assert!(Rules::new(default_max_line(), OnLongLine::Cut).is_ok());
    }
    #[test]
    fn a_buffer_comes_back_when_all_have_let_go() {
        let mut pool = Pool::default();
        let mut buffer = pool.take(CHUNK);
        let place = buffer.as_ptr();
        buffer.truncate(CHUNK - 77);
        let first = pool.lend(buffer);
        let second = first.clone();
        drop(first);
        assert_ne!(pool.take(CHUNK).as_ptr(), place, "somebody still has it");
        drop(second);
        let again = pool.take(CHUNK);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, CHUNK, CHUNK));
        let _ = pool.lend(again);
        pool.rest();
        assert!(pool.lent.is_empty());
        // What is small has its own size, and is not kept.
        let small = pool.take(100);
        assert_eq!(small.capacity(), 100);
        let _ = pool.lend(small);
        assert!(pool.lent.is_empty());
    }
    #[test]
    fn the_pool_is_bounded() {
        let mut pool = Pool::default();
        let held = (0..100).map(|_| pool.take(CHUNK)).collect::<Vec<_>>();
        let held = held.into_iter().map(|buffer| pool.lend(buffer)).collect::<Vec<_>>();
        assert_eq!((held.len(), pool.lent.len()), (100, Pool::MOST));
    }

    proptest! {
        #[test]
        fn frames_as_the_reference_does(text in reference::texts(), rules in reference::rules()) {
            prop_assert_eq!(framed(&rules, text.as_bytes()).0, reference::frame(&rules, text.as_bytes()));
        }
    }
}
