//! One file: reads the next lines behind the place up to which it was read. Nothing is buffered between two looks: an unfinished line
//! is read again when the file has grown. So ten thousand quiet files cost no memory, and a fall loses nothing.
use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use memchr::{memchr, memrchr};

use super::{
    Key,
    identity::{self, Head, Inode, Stamp, Window},
    records::OpenRecord,
    source::Source,
};
use crate::{
    model::{Events, Host, Origin, Progress, SourceId},
    plugins::framing::{CHUNK, Counts, Framing, OnLongLine, Pool, Rules, UTF8_MARK, leading_nuls},
};

pub struct Tail {
    pub id: SourceId,
    pub path: PathBuf,
    /// Other names of it that match.
    pub aliases: Vec<PathBuf>,
    /// Where a symlink led when it was opened: there it is looked for when its name is gone.
    pub real: Option<PathBuf>,
    pub inode: Inode,
    pub head: Head,
    /// Everything before it was handed over.
    pub at: Progress,
    /// Its size when it was last known to be the same file: what was lost of it if it is not any more.
    pub size: u64,
    /// As last seen by name.
    pub listed: Stamp,
    /// Bears the name under which its lines were written; a rotation does not change it.
    pub origin: Arc<Origin>,
    pub file: Option<Source>,
    /// What it looked like when all of it had been read.
    pub read_to_end: Option<Stamp>,
    /// It was compared with what it is known by since the last pause.
    pub checked: bool,
    /// An unfinished line or record stands at its end.
    pub partial: bool,
    /// Deliver that line as it is.
    pub flush: bool,
    /// With other framings than plain lines.
    pub record: OpenRecord,
    pub(super) ahead: Option<Ahead>,
    /// What it looked like at the last step.
    pub(super) seen: Stamp,
    /// It is in the queue of files to read.
    pub queued: bool,
    /// Steady time at which something of it was last read, or seen to change.
    pub active: Duration,
    pub gone: Option<Gone>,
    /// What stood under this name before: read that to its end first.
    pub after: Option<Key>,
    pub trouble: Option<Trouble>,
    /// Left out for its age: what is before its place was not read, and is not.
    pub aged: bool,
    /// Closed because too many were open.
    pub made_room: bool,
    /// When the journal was last told that it is there, in seconds since 1970.
    pub stamped: i64,
}

/// No name of it matches any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// No name at all: we alone hold its space.
    pub deleted: bool,
    /// Steady time: since it is gone, or since something of it was last read.
    pub since: Duration,
}
/// It cannot be read at present.
pub struct Trouble {
    pub reason: String,
    /// Steady time of the next try, and how long after the last one that is.
    pub until: Duration,
    pub wait: Duration,
    /// What it looked like: a change of its owner or mode may end the trouble.
    pub listed: Stamp,
}

/// How far the file was searched for the end of something that is longer than a chunk.
#[derive(Clone, Copy)]
pub(super) enum Ahead {
    /// NULs at the start of a line: a sparse hole, maybe a huge one.
    Nuls(u64),
    /// A line that is too long and will be cut or skipped. The place stays at its start until its end is found, so that no restart takes
    /// the rest of it for a line.
    Line(u64),
}

pub enum Step {
    /// Events (maybe none: all skipped), and the place behind them.
    Read(Events, Counts, Progress),
    /// Worked, nothing to hand over yet.
    Busy(Counts),
    /// All whole lines are read.
    End,
    /// It is not the file that was read so far: truncated, or its content replaced.
    Replaced,
}

impl Tail {
    pub fn new(
        id: SourceId,
        path: PathBuf,
        inode: Inode,
        listed: Stamp,
        known: (Head, Progress),
        host: Arc<Host>,
        framing: &Framing,
    ) -> Self {
        let (head, at) = known;
        let origin = Arc::new(Origin {
            host,
            path: Some(path.clone()),
            tags: framing.tags(&path),
        });
        Self {
            id,
            path,
            aliases: Vec::new(),
            real: None,
            inode,
            head,
            at,
            size: at.offset,
            listed,
            origin,
            file: None,
            read_to_end: None,
            checked: false,
            partial: false,
            flush: false,
            record: OpenRecord::default(),
            ahead: None,
            seen: Stamp::default(),
            queued: false,
            active: Duration::ZERO,
            gone: None,
            after: None,
            trouble: None,
            aged: false,
            made_room: false,
            stamped: 0,
        }
    }
    /// Goes on in the same file under another identity in the journal.
    pub fn begin_anew(&mut self, id: SourceId) {
        (self.id, self.head, self.at) = (id, Head::default(), Progress::default());
        (self.size, self.ahead, self.read_to_end, self.partial) = (0, None, None, false);
        self.record = OpenRecord::default();
    }
    pub fn close(&mut self) {
        (self.file, self.checked) = (None, false);
        self.record.forget_lines();
    }
    /// Bytes that are known to be there and were not read.
    pub fn unread(&self) -> u64 {
        self.size.saturating_sub(self.at.offset)
    }

    /// Reads the next events, of about `room` bytes or one that is larger. The place moves only when the caller has handed them over: it
    /// sets `at`. The file must be open.
    pub fn step(&mut self, framing: &Framing, pool: &mut Pool, room: usize) -> io::Result<Step> {
        match &framing.plan {
            None => self.step_lines(&framing.rules, pool, room),
            Some(plan) => self.step_records(plan, pool, room),
        }
    }
    /// Reads the next lines, of `room` bytes or one that is larger. The place moves only when the caller has handed them over: it sets
    /// `at`. The file must be open.
    fn step_lines(&mut self, rules: &Rules, pool: &mut Pool, room: usize) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let raw = Stamp::of(&file.metadata()?);
        let from = match self.ahead {
            Some(Ahead::Nuls(from) | Ahead::Line(from)) => from,
            None => self.at.offset,
        };
        let Some(size) = file.reach(from, from + (rules.max_line + 2 * CHUNK) as u64, &raw)? else {
            return Ok(Step::Busy(Counts::default()));
        };
        self.seen = raw;
        let stamp = Stamp { size, ..raw };
        if stamp.size < self.at.offset || !(self.checked || self.head.fits(file)?) {
            return Ok(Step::Replaced);
        }
        if file.is_packed() && self.ahead.is_some() {
            // It does not change, and its window lies far back.
            return match self.ahead {
                Some(Ahead::Nuls(from)) => self.search_text(from, &stamp),
                _ => self.search_line_end(from, &stamp, rules),
            };
        }
        let Some(window) = Window::check(file, &self.at)? else {
            return Ok(Step::Replaced);
        };
        self.checked = true;
        self.size = stamp.size;
        match self.ahead {
            Some(Ahead::Nuls(from)) => return self.search_text(from, &stamp),
            Some(Ahead::Line(from)) if from <= stamp.size => return self.search_line_end(from, &stamp, rules),
            _ => self.ahead = None,
        }

        if self.at.offset == 0 {
            let mut start = [0; UTF8_MARK.len()];
            if identity::read_full(file, &mut start, 0)? == start.len() && start == UTF8_MARK {
                self.at = window.after(0, UTF8_MARK);
                return Ok(Step::Busy(Counts::default()));
            }
        }
        let (offset, left) = (self.at.offset, stamp.size - self.at.offset);
        // Sizes fit: what is larger than a chunk is cut to one first.
        let mut want = left.min(room.clamp(1, CHUNK) as u64) as usize;
        let mut alone = false;
        let mut text = loop {
            if want == 0 {
                return Ok(self.end(false));
            }
            let mut text = pool.take(want);
            fail::fail_point!("file-read");
            let read = identity::read_full(file, &mut text, offset)?;
            text.truncate(read);
            // A line may be larger than the room: then it goes alone.
            let longest = left.min(rules.max_line as u64 + 1) as usize;
            if read == want && want < longest && memchr(b'\n', &text).is_none() {
                (want, alone) = (longest, true);
                continue;
            }
            break text;
        };
        let newline = if alone {
            memchr(b'\n', &text)
        } else {
            memrchr(b'\n', &text)
        };
        if let Some(newline) = newline {
            text.truncate(newline + 1);
            let at = window.after(offset, &text);
            let (events, counts) = rules.frame(text, pool);
            return Ok(Step::Read(events, counts, at));
        }
        let nuls = leading_nuls(&text);
        if nuls > 0 {
            if nuls == text.len() {
                self.ahead = Some(Ahead::Nuls(offset + nuls as u64));
            } else {
                self.at = window.after(offset, &text[..nuls]);
                return Ok(Step::Busy(Counts::nuls(nuls as u64)));
            }
            return Ok(Step::Busy(Counts::default()));
        }
        if text.len() > rules.max_line {
            if rules.on_long_line == OnLongLine::Split {
                let (events, counts, size) = rules.pieces(&text);
                return Ok(Step::Read(events, counts, window.after(offset, &text[..size])));
            }
            self.ahead = Some(Ahead::Line(offset + text.len() as u64));
            return Ok(Step::Busy(Counts::default()));
        }
        if self.flush && !text.is_empty() {
            let (events, counts) = rules.close(&text);
            return Ok(Step::Read(events, counts, window.after(offset, &text)));
        }
        Ok(self.end(!text.is_empty()))
    }

    pub(super) fn end(&mut self, partial: bool) -> Step {
        (self.read_to_end, self.checked, self.partial) = (Some(self.seen), false, partial);
        Step::End
    }
    /// Looks for the first byte that is not NUL. While there is none they count as not written yet: some writers reserve space.
    fn search_text(&mut self, from: u64, stamp: &Stamp) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let from = file.next_data(from)?.unwrap_or(stamp.size);
        if from >= stamp.size {
            // Searched again from here when it has grown, and from the start when it was overwritten.
            self.ahead = None;
            return Ok(self.end(false));
        }
        let mut bytes = vec![0; CHUNK.min((stamp.size - from) as usize)];
        let read = identity::read_full(file, &mut bytes, from)?;
        let nuls = leading_nuls(&bytes[..read]);
        if nuls == read {
            self.ahead = Some(Ahead::Nuls(from + (read as u64).max(1)));
            return Ok(Step::Busy(Counts::default()));
        }
        let at = identity::place(file, from + nuls as u64)?;
        let skipped = at.offset - self.at.offset;
        (self.at, self.ahead) = (at, None);
        Ok(Step::Busy(Counts::nuls(skipped)))
    }
    /// Looks for the end of a line that is too long, and then reads of it what is delivered.
    fn search_line_end(&mut self, from: u64, stamp: &Stamp, rules: &Rules) -> io::Result<Step> {
        let Some(file) = &self.file else { return Ok(Step::End) };
        let mut bytes = vec![0; CHUNK.min(stamp.size.saturating_sub(from) as usize)];
        let read = identity::read_full(file, &mut bytes, from)?;
        let end = match memchr(b'\n', &bytes[..read]) {
            Some(newline) => from + newline as u64 + 1,
            None if read > 0 => {
                self.ahead = Some(Ahead::Line(from + read as u64));
                return Ok(Step::Busy(Counts::default()));
            }
            None if self.flush => from,
            None => return Ok(self.end(true)),
        };
        let mut start = vec![0; rules.max_line + 1];
        let read = identity::read_full(file, &mut start, self.at.offset)?;
        let (events, counts) = rules.close(&start[..read]);
        Ok(Step::Read(events, counts, identity::place(file, end)?))
    }
    /// The caller has handed over what `step` read.
    pub fn hand_over(&mut self, at: Progress) {
        (self.at, self.ahead, self.partial) = (at, None, false);
    }
}

/// Where a first read begins if what is there is to be left out: behind the last whole line.
pub fn last_line_start(file: &File, size: u64, max_line: usize) -> io::Result<Progress> {
    let mut bytes = vec![0; CHUNK];
    let mut end = size;
    while end > size.saturating_sub((max_line + CHUNK) as u64) {
        let start = end.saturating_sub(CHUNK as u64);
        let part = &mut bytes[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(newline) = memrchr(b'\n', part) {
            return identity::place(file, start + newline as u64 + 1);
        }
        end = start;
    }
    identity::place(file, if end == 0 { 0 } else { size })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::plugins::framing::reference;

    fn host() -> Arc<Host> {
        Arc::new(Host {
            agent_id: String::new(),
            group: String::new(),
            hostname: String::new(),
            ip: [127, 0, 0, 1].into(),
            instance: String::new(),
        })
    }
    pub fn tail(file: File, at: Progress, framing: &Framing) -> Tail {
        let inode = Inode::of(&file.metadata().unwrap());
        let mut tail = Tail::new(
            SourceId(1),
            "x".into(),
            inode,
            Stamp::default(),
            (Head::default(), at),
            host(),
            framing,
        );
        tail.file = Some(Source::new(file, false).unwrap());
        tail
    }
    proptest! {
        /// However the text is cut in pieces when it is written and when it is read, and wherever it is read again after a restart.
        #[test]
        fn reads_as_the_reference_does(
            text in reference::texts(),
            rules in reference::rules(),
            cuts in proptest::collection::vec((0usize..60, 1usize..40, any::<bool>()), 1..20),
        ) {
            let mut writer = tempfile::NamedTempFile::new().unwrap();
            let path = writer.path().to_owned();
            let open = || File::open(&path).unwrap();
            let (mut reader, mut pool, mut events, mut rest) = (tail(open(), Progress::default(), &rules.into()), Pool::default(), vec![], text.as_bytes());
            for (write, room, restart) in cuts.into_iter().chain([(usize::MAX, 10, false)]) {
                let (piece, more) = rest.split_at(write.min(rest.len()));
                writer.write_all(piece).unwrap();
                rest = more;
                if restart {
                    reader = tail(open(), reader.at, &rules.into());
                }
                loop {
                    match reader.step(&rules.into(), &mut pool, room).unwrap() {
                        Step::Read(read, _, at) => {
                            prop_assert!(read.size() <= room || read.len() == 1 || rules.on_long_line == OnLongLine::Split);
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
            prop_assert_eq!(reader.at, identity::place(&open(), text.len() as u64).unwrap());
            prop_assert_eq!(events, reference::frame(&rules, text.as_bytes()));
        }
    }
    #[test]
    fn the_last_line_start() {
        let start = |text: &[u8], max_line| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            last_line_start(&file, text.len() as u64, max_line).unwrap().offset
        };
        assert_eq!(start(b"", 10), 0);
        assert_eq!(start(b"half", 10), 0);
        assert_eq!(start(b"one\ntwo\n", 10), 8);
        assert_eq!(start(b"one\ntw", 10), 4);
        let long = [b"one\n".as_slice(), &vec![b'x'; 3 * CHUNK]].concat();
        assert_eq!(start(&long, 4 * CHUNK), 4);
        assert_eq!(start(&long, 10), long.len() as u64, "too long to be looked for");
    }
}
