//! Every framing but plain lines: one source's bytes go in, line by line, and records come out with the place up to which the source is
//! done with. That place never lies inside a record, nor between two that overlap (stdout and stderr of a container): whoever reads again
//! from there gets the rest exactly, and nothing twice. So all that is kept here may be dropped at any time.
use std::sync::Arc;

use bytes::Bytes;

use super::{
    Counts, Kind, OnLongLine, Plan, Rules,
    container::{self, Piece, Stream},
    encoding::{LineEnd, Text},
    multiline::{Multiline, State},
};
use crate::model::Events;

/// A record that another stream's lines have crossed is closed once it spans so many bytes of the source (and twice `max_line`): what
/// comes after it has to wait for it in memory.
const MOST_SPAN: u64 = 1 << 20;

/// What became of the bytes given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// So many are taken in.
    Took(usize),
    /// More must be there: the line is not finished, and not too long yet (`most_line` tells when).
    Unfinished,
    /// NULs at the start of a line, and nothing else: a hole, or space that is reserved.
    Nuls,
}

pub struct Framer {
    plan: Arc<Plan>,
    text: Text,
    ends: LineEnd,
    /// Source bytes of a line that are looked at; what is longer is too long.
    most: usize,
    /// Up to here the source was taken in.
    at: u64,
    /// A line that is too long, whose end is looked for: its start.
    passing: Option<Passing>,
    streams: [Open; Stream::ALL],
    /// Complete, in the order of their ends, and their contents with a line end behind each.
    done: Vec<Done>,
    bytes: Vec<u8>,
    counts: Counts,
    /// The place told last.
    told: u64,
    /// A buffer to use again.
    spare: Vec<u8>,
}
struct Passing {
    start: u64,
    line: Vec<u8>,
}
/// What is not complete in a stream.
#[derive(Default)]
struct Open {
    /// Pieces of one line.
    line: Option<Joint>,
    /// Lines of one record.
    record: Option<Joint>,
    /// Another stream has got lines since this was begun.
    crossed: bool,
}
impl Open {
    fn start(&self) -> Option<u64> {
        self.record.iter().chain(&self.line).map(|joint| joint.span.0).min()
    }
}
#[derive(Default)]
struct Joint {
    /// Source bytes, from the start of the first line to the end of the last.
    span: (u64, u64),
    text: Vec<u8>,
    /// More was there than `text` holds.
    over: bool,
    state: State,
    time: String,
}
struct Done {
    span: (u64, u64),
    /// Where it ends in `bytes`; it begins where the one before ends.
    end: usize,
    /// It was left out: too long.
    skipped: bool,
}
/// A line as it goes up through the layers.
#[derive(Clone, Copy)]
struct Line<'a> {
    text: &'a [u8],
    span: (u64, u64),
    over: bool,
    stream: Stream,
    time: &'a str,
}

impl Framer {
    /// At this place of the source, which is one that a framer told, or its beginning behind the byte order mark.
    pub fn new(plan: Arc<Plan>, text: Text, at: u64) -> Self {
        let max = plan.rules.max_line;
        let most = match plan.kind {
            Kind::Lines => text.enough_for(max + 2), // a carriage return, and one that is too much
            // Runtimes write 16 KiB of text at most, and what is around it. A byte may be written as \u0000.
            Kind::Cri => max.max(64 << 10) + 128,
            Kind::Docker => 6 * max.max(64 << 10) + 4096,
        };
        Self {
            ends: LineEnd::new(&plan.delimiter, text),
            most,
            text,
            at,
            told: at,
            plan,
            passing: None,
            streams: Default::default(),
            done: Vec::new(),
            bytes: Vec::new(),
            counts: Counts::default(),
            spare: Vec::new(),
        }
    }
    /// The next byte that is to be fed.
    pub fn at(&self) -> u64 {
        self.at
    }
    /// So many bytes settle what an unfinished line is.
    pub fn most_line(&self) -> usize {
        self.most + self.ends.len()
    }
    /// Bytes of a line end, and where the last one in a text ends.
    pub fn end_len(&self) -> usize {
        self.ends.len()
    }
    pub fn last_end(&self, text: &[u8]) -> Option<usize> {
        self.ends.last(text)
    }
    /// Nothing is kept here.
    pub fn is_idle(&self) -> bool {
        self.passing.is_none() && !self.is_open()
    }
    /// A record waits for its end.
    pub fn is_open(&self) -> bool {
        self.streams.iter().any(|stream| stream.start().is_some())
    }

    /// Takes in what stands at `at`. What is in there of an unfinished line is not taken, and must come again.
    pub fn feed(&mut self, text: &[u8]) -> Fed {
        let plan = self.plan.clone();
        let base = self.at;
        let mut from = 0;
        if self.passing.is_some() {
            let Some(end) = self.ends.find(text, 0) else {
                // The end may be cut in two here.
                let passed = text.len().saturating_sub(self.ends.len() - 1);
                let passed = passed - passed % self.text.unit();
                self.at += passed as u64;
                return if passed == 0 {
                    Fed::Unfinished
                } else {
                    Fed::Took(passed)
                };
            };
            from = end + self.ends.len();
            self.end_passing(&plan, base + from as u64);
        }
        let nuls_only = loop {
            let nuls = self.nuls(&text[from..]);
            if nuls > 0 && from + nuls + self.text.unit() > text.len() {
                break true;
            }
            self.counts.nul_bytes += nuls as u64;
            from += nuls;
            let start = base + from as u64;
            let found = self.ends.find(text, from);
            let is_long = match found {
                Some(end) => end - from > self.most,
                None => text.len() - from >= self.most_line(),
            };
            match (is_long, found) {
                (false, None) => break false,
                (false, Some(end)) => {
                    let line = &text[from..end];
                    from = end + self.ends.len();
                    self.line(&plan, line, (start, base + from as u64), false);
                }
                (true, _) if plan.rules.on_long_line == OnLongLine::Split => {
                    from += self.split_front(&plan, &text[from..from + self.most], start);
                }
                (true, Some(end)) => {
                    let line = &text[from..from + self.most];
                    from = end + self.ends.len();
                    self.line(&plan, line, (start, base + from as u64), true);
                }
                (true, None) => {
                    let line = text[from..from + self.most].to_vec();
                    self.passing = Some(Passing { start, line });
                    let passed = text.len() - from - (self.ends.len() - 1);
                    from += passed - passed % self.text.unit();
                    break false;
                }
            }
        };
        self.at = base + from as u64;
        match from {
            0 if nuls_only => Fed::Nuls,
            0 => Fed::Unfinished,
            from => Fed::Took(from),
        }
    }
    /// The source has no more, or nothing came for long: what is open ends here, and so does the `rest` of the last line, if it is given.
    pub fn flush(&mut self, rest: Option<&[u8]>) {
        let plan = self.plan.clone();
        if let Some(rest) = rest {
            let start = self.at;
            self.at += rest.len() as u64;
            if self.passing.is_some() {
                self.end_passing(&plan, self.at);
            } else if !rest.is_empty() {
                self.line(&plan, rest, (start, self.at), false);
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.close(&plan, stream);
        }
    }
    /// These NULs at `at` are a hole.
    pub fn skip_nuls(&mut self, count: u64) {
        let count = count - count % self.text.unit() as u64;
        self.at += count;
        self.counts.nul_bytes += count;
    }

    /// What is complete, in the order in which it begins, and the place up to which the source is done with. Offsets count from `base`.
    pub fn ready(&mut self, base: u64) -> Option<(Events, Counts, u64)> {
        let open = self.streams.iter().filter_map(Open::start);
        let open = open.chain(self.passing.iter().map(|passing| passing.start));
        let mut safe = open.fold(self.at, u64::min);
        // Nor may it lie inside of what is complete. From the last end backwards: what ends before the place cannot lie across a lower one
        // that an earlier end has asked for.
        let lies_across = |(start, end): (u64, u64), place: u64| start < place && end > place;
        if self.done.iter().any(|done| lies_across(done.span, safe)) {
            let mut spans = self.done.iter().map(|done| done.span).collect::<Vec<_>>();
            spans.sort_unstable_by_key(|(_, end)| std::cmp::Reverse(*end));
            for span in spans {
                safe = if lies_across(span, safe) { span.0 } else { safe };
            }
        }
        if safe <= self.told {
            return None;
        }
        self.told = safe;
        let counts = std::mem::take(&mut self.counts);
        if !self.done.is_sorted_by_key(|done| done.span.0) {
            self.sort();
        }
        let mut begun = 0;
        let keep = self.done.partition_point(|done| done.span.0 < safe);
        let rest = self.done.split_off(keep);
        let (mut ends, mut offsets) = (Vec::with_capacity(keep), Vec::with_capacity(keep));
        for done in self.done.drain(..) {
            begun = done.end;
            if !done.skipped {
                ends.push(done.end as u32);
                offsets.push(u32::try_from(done.span.0 - base).unwrap_or(u32::MAX));
            }
        }
        let kept = self.bytes.split_off(begun);
        let bytes = Bytes::from(std::mem::replace(&mut self.bytes, kept));
        self.done.extend(rest.into_iter().map(|done| Done {
            end: done.end - begun,
            ..done
        }));
        Some((Events::rewritten(bytes, ends, offsets), counts, safe))
    }
    /// Brings what is complete into the order in which it begins; pieces of one record stay in theirs.
    fn sort(&mut self) {
        let mut start = 0;
        let mut all = Vec::with_capacity(self.done.len());
        for done in self.done.drain(..) {
            let end = done.end;
            all.push((start..end, done));
            start = end;
        }
        all.sort_by_key(|(_, done)| done.span.0);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for (range, done) in all {
            bytes.extend_from_slice(&self.bytes[range]);
            self.done.push(Done {
                end: bytes.len(),
                ..done
            });
        }
        self.bytes = bytes;
    }

    // ---- lines

    /// NULs at the start of a line, in whole units.
    fn nuls(&self, text: &[u8]) -> usize {
        let nuls = super::leading_nuls(text);
        nuls - nuls % self.text.unit()
    }
    fn end_passing(&mut self, plan: &Plan, end: u64) {
        if let Some(Passing { start, line }) = self.passing.take() {
            self.line(plan, &line, (start, end), true);
        }
    }
    /// The start of a line that is too long and goes on, as pieces. Returns how many of its bytes they are: the rest counts as a line.
    fn split_front(&mut self, plan: &Plan, front: &[u8], start: u64) -> usize {
        let plain = plan.kind == Kind::Lines && plan.multiline.is_none() && self.text == Text::AsIs;
        let mut size = self.text.whole(front);
        if plain {
            // Pieces of the same size throughout.
            size = 0;
            while front.len() - size > plan.rules.max_line {
                let piece = &front[size..][..plan.rules.cut_at(&front[size..])];
                let at = start + size as u64;
                size += piece.len();
                self.put(plan, &Line::plain(piece, (at, start + size as u64)));
                self.counts.split += 1;
            }
            return size;
        }
        self.counts.split += 1;
        self.whole_line(
            plan,
            &self.text.decode(&front[..size]).0,
            (start, start + size as u64),
            false,
        );
        // Whoever reads again from here begins anew, and so do we.
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.close(plan, stream);
        }
        size
    }
    /// One line of the source, without its end.
    fn line(&mut self, plan: &Plan, raw: &[u8], span: (u64, u64), over: bool) {
        let (text, bad) = self.text.decode(raw);
        self.counts.replaced += u64::from(bad && !over);
        let text = match plan.strips_return {
            true => text.strip_suffix(b"\r").unwrap_or(&text),
            false => &text,
        };
        self.whole_line(plan, text, span, over);
    }
    fn whole_line(&mut self, plan: &Plan, text: &[u8], span: (u64, u64), over: bool) {
        let piece = match plan.kind {
            Kind::Lines => {
                let line = Line::plain(text, span);
                return self.message(plan, Line { over, ..line });
            }
            Kind::Cri => container::cri(text),
            Kind::Docker => container::docker(text),
        };
        match piece {
            Some(piece) => self.piece(plan, &piece, span, over),
            None => {
                // Given out as it is: whatever it is, it is no reason to lose it.
                self.counts.malformed += 1;
                self.crosses(plan, None, span.1);
                let line = Line::plain(text, span);
                self.finish(plan, &Line { over, ..line });
            }
        }
    }
    /// A piece of a line of a container.
    fn piece(&mut self, plan: &Plan, piece: &Piece<'_>, span: (u64, u64), over: bool) {
        let (rules, stream) = (&plan.rules, piece.stream);
        let open = &mut self.streams[stream as usize];
        if piece.last && open.line.is_none() {
            let line = Line {
                text: &piece.text,
                span,
                over,
                stream,
                time: &piece.time,
            };
            self.message(plan, line);
        } else {
            if open.start().is_none() {
                open.crossed = false;
            }
            let joint = open.line.get_or_insert_with(|| Joint {
                span,
                time: piece.time.clone().into_owned(),
                ..Joint::default()
            });
            joint.add(&piece.text, over, rules);
            joint.span.1 = span.1;
            let splits = rules.on_long_line == OnLongLine::Split && joint.text.len() > rules.max_line;
            if (piece.last || splits)
                && let Some(joint) = open.line.take()
            {
                self.message(plan, joint.as_line(stream));
            }
        }
        self.crosses(plan, Some(stream), span.1);
    }
    /// A whole line as it was written by whoever writes.
    fn message(&mut self, plan: &Plan, line: Line<'_>) {
        let Some(multiline) = &plan.multiline else {
            return self.finish(plan, &line);
        };
        let judged = plan.rules.judged(line.text);
        let stream = line.stream;
        let open = &mut self.streams[stream as usize];
        let next = open
            .record
            .as_ref()
            .and_then(|record| multiline.next(record.state, judged));
        match (next, &mut open.record) {
            (Some(state), Some(record)) => {
                record.add(b"\n", false, &plan.rules);
                record.add(line.text, line.over, &plan.rules);
                (record.state, record.span.1) = (state, line.span.1);
            }
            _ => {
                self.close_record(plan, stream);
                self.begin(plan, multiline, line);
            }
        }
        let open = &self.streams[stream as usize];
        let splits =
            |record: &Joint| plan.rules.on_long_line == OnLongLine::Split && record.text.len() > plan.rules.max_line;
        if multiline.ends_with(judged) || open.record.as_ref().is_some_and(splits) {
            self.close_record(plan, stream);
        }
    }
    fn begin(&mut self, plan: &Plan, multiline: &Multiline, line: Line<'_>) {
        let mut text = std::mem::take(&mut self.spare);
        text.clear();
        let mut record = Joint {
            span: line.span,
            text,
            over: false,
            state: multiline.begin(plan.rules.judged(line.text)),
            time: line.time.to_owned(),
        };
        record.add(line.text, line.over, &plan.rules);
        let open = &mut self.streams[line.stream as usize];
        open.record = Some(record);
        if open.line.is_none() {
            open.crossed = false;
        }
    }
    /// A line of `of` ends here: records of the other stream that are open are crossed by it, and end if they span too much.
    fn crosses(&mut self, plan: &Plan, of: Option<Stream>, end: u64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = &mut self.streams[stream as usize];
            let Some(start) = open.start() else { continue };
            open.crossed |= Some(stream) != of;
            if open.crossed && end - start > MOST_SPAN + 2 * plan.rules.max_line as u64 {
                self.close(plan, stream);
            }
        }
    }
    fn close(&mut self, plan: &Plan, stream: Stream) {
        if let Some(line) = self.streams[stream as usize].line.take() {
            self.message(plan, line.as_line(stream));
        }
        self.close_record(plan, stream);
    }
    fn close_record(&mut self, plan: &Plan, stream: Stream) {
        if let Some(record) = self.streams[stream as usize].record.take() {
            self.finish(plan, &record.as_line(stream));
            self.spare = record.text;
        }
    }
    /// A complete record.
    fn finish(&mut self, plan: &Plan, line: &Line<'_>) {
        let (rules, mut text) = (&plan.rules, line.text);
        let is_long = text.len() > rules.max_line;
        if is_long || line.over {
            match rules.on_long_line {
                OnLongLine::Cut => {
                    self.counts.cut += 1;
                    text = if is_long { &text[..rules.cut_at(text)] } else { text };
                }
                OnLongLine::Skip => {
                    self.counts.skipped += 1;
                    self.done.push(Done {
                        span: line.span,
                        end: self.bytes.len(),
                        skipped: true,
                    });
                    return;
                }
                OnLongLine::Split => {
                    while text.len() > rules.max_line {
                        let (piece, rest) = text.split_at(rules.cut_at(text));
                        self.counts.split += 1;
                        self.put(plan, &Line { text: piece, ..*line });
                        text = rest;
                    }
                }
            }
        }
        self.put(plan, &Line { text, ..*line });
    }
    fn put(&mut self, plan: &Plan, line: &Line<'_>) {
        if plan.keep_fields && !line.time.is_empty() {
            container::write_fields(line.time, line.stream, line.text, &mut self.bytes);
        } else {
            self.bytes.extend_from_slice(line.text);
        }
        self.bytes.push(b'\n');
        self.done.push(Done {
            span: line.span,
            end: self.bytes.len(),
            skipped: false,
        });
    }
}

impl<'a> Line<'a> {
    fn plain(text: &'a [u8], span: (u64, u64)) -> Self {
        Self {
            text,
            span,
            over: false,
            stream: Stream::default(),
            time: "",
        }
    }
}
impl Joint {
    /// Of what will be cut or left out no more is kept than tells so.
    fn add(&mut self, text: &[u8], over: bool, rules: &Rules) {
        let room = match rules.on_long_line {
            OnLongLine::Split => usize::MAX,
            _ => (rules.max_line + 1).saturating_sub(self.text.len()),
        };
        self.over |= over || text.len() > room;
        self.text.extend_from_slice(&text[..text.len().min(room)]);
    }
    fn as_line(&self, stream: Stream) -> Line<'_> {
        Line {
            text: &self.text,
            span: self.span,
            over: self.over,
            stream,
            time: &self.time,
        }
    }
}
