//! One file, framed by anything but plain lines. What is open of a record is kept while the file is open; the place stays at its start, so
//! all of it may be forgotten at any time and read again.
use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use super::{
    identity::{self, Stamp, Window},
    tail::{Ahead, Step, Tail, last_line_start},
};
use crate::{
    model::Progress,
    plugins::framing::{CHUNK, Counts, Fed, Framer, Framing, LONGEST_MARK, Plan, Pool, leading_nuls},
};

/// What is known of a record that is not complete.
#[derive(Default)]
pub struct OpenRecord {
    /// None: nothing is kept of it.
    framer: Option<Box<Framer>>,
    /// How far the file was taken in when it was read to its end.
    fed: Option<Progress>,
    /// It waits for more lines, whether they are kept or not.
    pub waits: bool,
    /// It has waited for long enough.
    pub flush: bool,
    /// Something was taken in at the last step.
    pub grew: bool,
}
impl OpenRecord {
    pub fn forget_lines(&mut self) {
        (self.framer, self.fed) = (None, None);
    }
}

impl Tail {
    /// As `step`, for other framings.
    pub(super) fn step_records(&mut self, plan: &Arc<Plan>, pool: &mut Pool, room: usize) -> io::Result<Step> {
        let known = self.record.framer.take(); // after an error it is read again
        let Some(file) = &self.file else { return Ok(Step::End) };
        let raw = Stamp::of(&file.metadata()?);
        let fed = known.as_deref().map_or(0, Framer::at).max(self.at.offset);
        let from = match self.ahead {
            Some(Ahead::Nuls(from)) => from,
            _ => fed,
        };
        let most = known
            .as_deref()
            .map_or(plan.rules.max_line * 8 + (1 << 19), Framer::most_line);
        let Some(size) = file.reach(from, from + (most + 2 * CHUNK) as u64, &raw)? else {
            self.record.framer = known;
            return Ok(Step::Busy(Counts::default()));
        };
        self.seen = raw;
        let stamp = Stamp { size, ..raw };
        if stamp.size < fed || !(self.checked || self.head.fits(file)?) {
            return Ok(Step::Replaced);
        }
        // The lines of the open record are compared, too: they were read, but are not behind the place. What is packed does not change while
        // it is read, and its window lies far back.
        let kept = self.record.fed.take().filter(|_| known.is_some());
        let looks = kept
            .iter()
            .chain([&self.at])
            .filter(|_| known.is_none() || !file.is_packed());
        for at in looks {
            if Window::check(file, at)?.is_none() {
                return Ok(Step::Replaced);
            }
        }
        self.checked = true;
        self.size = stamp.size;
        self.record.flush &= self.read_to_end == Some(raw);
        let framer = match known {
            Some(framer) => framer,
            None => {
                let mut start = [0; LONGEST_MARK];
                let read = identity::read_full(file, &mut start, 0)?;
                let more = read < start.len() && !self.flush;
                match plan.framer(&start[..read], more, self.at.offset) {
                    Some(framer) => Box::new(framer),
                    None => return Ok(self.end(read > 0)),
                }
            }
        };
        match self.ahead.take() {
            Some(Ahead::Nuls(from)) => self.search_hole_end(framer, from, &stamp),
            _ => self.feed(framer, &stamp, pool, room),
        }
    }
    fn feed(&mut self, mut framer: Box<Framer>, stamp: &Stamp, pool: &mut Pool, room: usize) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let (offset, left) = (framer.at(), stamp.size.saturating_sub(framer.at()));
        let mut want = left.min(room.clamp(1, CHUNK) as u64) as usize;
        loop {
            let mut text = pool.take(want);
            fail::fail_point!("file-read");
            let read = identity::read_full(file, &mut text, offset)?;
            text.truncate(read);
            match framer.feed(&text) {
                Fed::Took(_) => {
                    pool.lend(text); // nobody else has it: free at once
                    self.record.grew = true;
                    return self.give(framer);
                }
                Fed::Unfinished if read == want && (want as u64) < left && want < framer.most_line() => {
                    want = left.min(framer.most_line() as u64) as usize;
                }
                Fed::Unfinished => return self.records_end(framer, &text),
                Fed::Nuls => return self.search_hole_end(framer, offset + leading_nuls(&text) as u64, stamp),
            }
        }
    }
    /// What is complete, if anything is.
    fn give(&mut self, mut framer: Box<Framer>) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let ready = framer.ready(self.at.offset);
        let step = match ready {
            Some((events, counts, safe)) => Step::Read(events, counts, identity::place(file, safe)?),
            None => Step::Busy(Counts::default()),
        };
        self.record.framer = Some(framer);
        Ok(step)
    }
    fn records_end(&mut self, mut framer: Box<Framer>, rest: &[u8]) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        if self.flush && !(rest.is_empty() && framer.is_idle()) {
            framer.flush(Some(rest));
            return self.give(framer);
        }
        if self.record.flush && framer.is_open() {
            framer.flush(None);
            return self.give(framer);
        }
        let waits = framer.is_open();
        let partial = !rest.is_empty() || !framer.is_idle();
        self.record = OpenRecord {
            fed: Some(identity::place(file, framer.at())?),
            waits,
            flush: false,
            grew: false,
            framer: (!framer.is_idle()).then_some(framer),
        };
        Ok(self.end(partial))
    }
    /// Looks for what follows NULs at the start of a line. While there is nothing they count as not written yet.
    fn search_hole_end(&mut self, mut framer: Box<Framer>, from: u64, stamp: &Stamp) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let from = file.next_data(from)?.unwrap_or(stamp.size);
        if from >= stamp.size {
            return self.records_end(framer, &[]);
        }
        let mut bytes = vec![0; CHUNK.min((stamp.size - from) as usize)];
        let read = identity::read_full(file, &mut bytes, from)?;
        let nuls = leading_nuls(&bytes[..read]);
        if nuls == read {
            self.ahead = Some(Ahead::Nuls(from + (read as u64).max(1)));
            self.record.framer = Some(framer);
            return Ok(Step::Busy(Counts::default()));
        }
        framer.skip_nuls(from + nuls as u64 - framer.at());
        self.give(framer)
    }
}

/// Where a first read begins if what is there is to be left out: behind the last whole line.
pub fn last_line_end(file: &File, size: u64, framing: &Framing) -> io::Result<Progress> {
    let Some(plan) = &framing.plan else {
        return last_line_start(file, size, framing.rules.max_line);
    };
    let mut start = [0; LONGEST_MARK];
    let read = identity::read_full(file, &mut start, 0)?;
    let Some(framer) = plan.framer(&start[..read], false, 0) else {
        return Ok(Progress::default());
    };
    let mut bytes = vec![0; CHUNK];
    let mut end = size;
    let first = size.saturating_sub((framer.most_line() + CHUNK) as u64);
    while end > first {
        // At an even place, and with what may be cut in two by the window before it.
        let from = end.saturating_sub(CHUNK as u64 / 2) & !1;
        let part = &mut bytes[..(end + framer.end_len() as u64 - 1).min(size).saturating_sub(from) as usize];
        file.read_exact_at(part, from)?;
        if let Some(at) = framer.last_end(part) {
            return identity::place(file, from + at as u64);
        }
        end = from;
    }
    identity::place(file, if end == 0 { 0 } else { size })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        model::Progress,
        plugins::{
            framing::tests::{cases, framing, reference},
            inputs::file::{source::Source, tail::tests::tail},
        },
    };

    proptest! {
        /// However the file grows, however it is read, closed and read again from the place.
        #[test]
        fn reads_as_the_reference_does(
            (options, source) in cases(),
            cuts in proptest::collection::vec((0usize..60, 1usize..40, 0u8..3), 1..20),
        ) {
            let framing = framing(&options);
            let mut writer = tempfile::NamedTempFile::new().unwrap();
            let path = writer.path().to_owned();
            let open = || File::open(&path).unwrap();
            let (mut reader, mut pool, mut events) = (tail(open(), Progress::default(), &framing), Pool::default(), vec![]);
            let mut rest = &source[..];
            for (write, room, again) in cuts.into_iter().chain([(usize::MAX, 10, 3)]) {
                let (piece, more) = rest.split_at(write.min(rest.len()));
                writer.write_all(piece).unwrap();
                rest = more;
                match again {
                    0 => reader = tail(open(), reader.at, &framing),
                    1 => {
                        reader.close();
                        reader.file = Some(Source::new(open(), false).unwrap());
                    }
                    _ => {}
                }
                reader.flush = again == 3;
                loop {
                    match reader.step(&framing, &mut pool, room).unwrap() {
                        Step::Read(read, _, at) => {
                            prop_assert!(at.offset > reader.at.offset);
                            events.extend(read.iter().map(<[u8]>::to_vec));
                            reader.hand_over(at);
                        }
                        Step::Busy(_) => {}
                        Step::End => break,
                        Step::Replaced => prop_assert!(false, "it is the same file"),
                    }
                }
            }
            prop_assert!(!reader.record.waits && reader.record.framer.is_none());
            prop_assert_eq!(events, reference(framing.plan.as_ref().unwrap(), &source), "{}", options);
        }
    }
    #[test]
    fn the_last_line_end() {
        let end = |options, text: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            last_line_end(&file, text.len() as u64, &framing(&options))
                .unwrap()
                .offset
        };
        let wide = json!({"encoding": "utf-16le"});
        assert_eq!(end(wide.clone(), b"\xFF\xFEa\0\n\0b\0"), 6);
        assert_eq!(end(wide.clone(), b"a\x0A\0\x0A"), 0, "neither is a line feed");
        let long = [b"a\0\n\0".as_slice(), &b"xy".repeat(CHUNK)].concat();
        assert_eq!(end(wide, &long), 4);
        let by = json!({"framing": {"delimiter": "||"}, "max_line": 1000});
        for before in 0..6 {
            // The delimiter at, before and across the border of a window.
            let text = [&vec![b'-'; 1000][..], b"||", &vec![b'-'; CHUNK / 2 - 3 + before]].concat();
            assert_eq!(end(by.clone(), &text), 1002);
        }
        assert_eq!(end(by.clone(), b"|"), 0);
        assert_eq!(
            end(by, &vec![b'-'; 3 * CHUNK]),
            3 * CHUNK as u64,
            "too long to be looked for"
        );
    }
}
