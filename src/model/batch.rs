//! A batch: one read chunk and where its events end. Lines are never copied between stages: a filter narrows the selection, an
//! output writes contiguous ranges.
use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use jiff::Timestamp;

use crate::model::Host;

/// One Collector's stream of batches, numbered without gaps. Never used twice in a process: a second Collector under an old number
/// would be taken for a repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(u64);
impl Lane {
    pub fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// Events in one buffer. Event `i` is `bytes[start of i .. ends[i]]`, and its last byte is always `\n` (which is not part of its
/// content); a content may hold `\n` itself (multiline), so only `ends` says where an event stops. At most 4 GiB.
#[derive(Clone, Debug, Default)]
pub struct Events {
    bytes: Bytes,
    ends: Arc<Vec<u32>>,
    kept: Kept,
    /// Where each event began in the chunk as it was read, if a filter has rewritten the bytes since.
    read_at: Option<Arc<Vec<u32>>>,
}
#[derive(Clone, Debug, Default)]
enum Kept {
    #[default]
    All,
    /// Runs of event numbers, in order, apart and not empty; and how many events and bytes they are.
    Runs {
        runs: Arc<Vec<Range<u32>>>,
        events: usize,
        size: usize,
    },
}

impl Events {
    /// `ends` must rise, and the last must be the length of `bytes`.
    pub fn new(bytes: Bytes, ends: Vec<u32>) -> Self {
        debug_assert_eq!(ends.last().copied().unwrap_or(0) as usize, bytes.len());
        debug_assert!(ends.windows(2).all(|w| w[0] < w[1]));
        Self {
            bytes,
            ends: Arc::new(ends),
            kept: Kept::All,
            read_at: None,
        }
    }
    /// For a filter that changes contents: as `new`, and where each event began before (see `with_offsets`), so that its place in
    /// the source stays known.
    pub fn rewritten(bytes: Bytes, ends: Vec<u32>, offsets: Vec<u32>) -> Self {
        debug_assert_eq!(ends.len(), offsets.len());
        Self {
            read_at: Some(Arc::new(offsets)),
            ..Self::new(bytes, ends)
        }
    }
    pub fn none() -> Self {
        Self::default()
    }
    /// How many events are kept.
    pub fn len(&self) -> usize {
        match &self.kept {
            Kept::All => self.ends.len(),
            Kept::Runs { events, .. } => *events,
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many bytes the kept events have, line ends included.
    pub fn size(&self) -> usize {
        match &self.kept {
            Kept::All => self.bytes.len(),
            Kept::Runs { size, .. } => *size,
        }
    }
    /// The whole buffer, with what was not kept.
    pub fn buffer(&self) -> &Bytes {
        &self.bytes
    }
    /// If nothing was taken away, the buffer is exactly the kept events.
    pub fn is_whole(&self) -> bool {
        matches!(self.kept, Kept::All)
    }
    fn start(&self, i: u32) -> usize {
        if i == 0 { 0 } else { self.ends[i as usize - 1] as usize }
    }
    fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let (all, runs): (_, &[Range<u32>]) = match &self.kept {
            Kept::All => ((!self.ends.is_empty()).then_some(0..self.ends.len() as u32), &[]),
            Kept::Runs { runs, .. } => (None, runs),
        };
        all.into_iter().chain(runs.iter().cloned())
    }
    /// How many `slices` there are.
    pub fn ranges(&self) -> usize {
        match &self.kept {
            Kept::All => usize::from(!self.ends.is_empty()),
            Kept::Runs { runs, .. } => runs.len(),
        }
    }
    /// Contiguous byte ranges of the kept events, line ends included: what a byte stream writes.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.runs()
            .map(|run| &self.bytes[self.start(run.start)..self.ends[run.end as usize - 1] as usize])
    }
    /// The byte ranges of `slices` in the buffer.
    pub fn stretches(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.runs()
            .map(|run| self.start(run.start)..self.ends[run.end as usize - 1] as usize)
    }
    /// The content of each kept event, and where in the buffer it begins.
    pub fn places(&self) -> impl Iterator<Item = (usize, &[u8])> + '_ {
        self.runs().flatten().map(|i| {
            let start = self.start(i);
            (start, &self.bytes[start..self.ends[i as usize] as usize - 1])
        })
    }
    /// Is every kept event one line: no content holds `\n`.
    pub fn are_lines(&self) -> bool {
        let newlines = self.slices().map(|slice| memchr::memchr_iter(b'\n', slice).count());
        newlines.sum::<usize>() == self.len()
    }
    /// Into `hits`: the numbers in the buffer of those kept events in which something is found, in order. `find(stretch, from)` looks at
    /// a row of events as they stand in the buffer, from there on; what it finds across an event's end is no hit.
    pub fn hits(&self, hits: &mut Vec<u32>, mut find: impl FnMut(&[u8], usize) -> Option<Range<usize>>) {
        hits.clear();
        for run in self.runs() {
            let ends = &self.ends[..run.end as usize];
            let base = self.start(run.start);
            let stretch = &self.bytes[base..ends[ends.len() - 1] as usize];
            let (mut i, mut from) = (run.start as usize, 0);
            while from < stretch.len()
                && let Some(hit) = find(stretch, from)
            {
                i += event_at(&ends[i..], base + hit.start);
                let Some(end) = ends.get(i) else { break };
                let end = *end as usize - base;
                if hit.end < end {
                    hits.push(i as u32);
                    i += 1;
                    from = end;
                } else {
                    from = hit.start + 1;
                }
            }
        }
    }
    /// Keeps only these events, or only the others; `hits` as from `hits`. Events that are not hit are not looked at.
    pub fn retain_hits(self, hits: &[u32], keep: bool) -> Self {
        if hits.len() == if keep { self.len() } else { 0 } {
            return self;
        }
        let mut runs = Vec::<Range<u32>>::new();
        if keep {
            for &i in hits {
                match runs.last_mut() {
                    Some(run) if run.end == i => run.end = i + 1,
                    _ => runs.push(i..i + 1),
                }
            }
        } else {
            let mut hits = hits.iter().copied().peekable();
            for run in self.runs() {
                let mut from = run.start;
                while let Some(hit) = hits.next_if(|hit| *hit < run.end) {
                    if from < hit {
                        runs.push(from..hit);
                    }
                    from = hit + 1;
                }
                if from < run.end {
                    runs.push(from..run.end);
                }
            }
        }
        let events = runs.iter().map(ExactSizeIterator::len).sum();
        let size = |run: &Range<u32>| self.ends[run.end as usize - 1] as usize - self.start(run.start);
        let size = runs.iter().map(size).sum();
        Self {
            kept: Kept::Runs {
                runs: Arc::new(runs),
                events,
                size,
            },
            ..self
        }
    }
    /// The content of each kept event, without its line end.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.runs()
            .flatten()
            .map(|i| &self.bytes[self.start(i)..self.ends[i as usize] as usize - 1])
    }
    /// The same, each with where it began in the chunk as it was read: `batch.offset` plus this is its offset in the source.
    pub fn with_offsets(&self) -> impl Iterator<Item = (u32, &[u8])> + '_ {
        self.runs().flatten().map(|i| {
            let start = self.start(i);
            let offset = self.read_at.as_ref().map_or(start as u32, |all| all[i as usize]);
            (offset, &self.bytes[start..self.ends[i as usize] as usize - 1])
        })
    }
    /// The kept events number `range.start` to `range.end`, counted among the kept ones.
    pub fn part(&self, range: Range<usize>) -> Self {
        let numbers = self.runs().flatten().skip(range.start).take(range.len());
        let (mut runs, mut events, mut size) = (Vec::<Range<u32>>::new(), 0, 0);
        for i in numbers {
            events += 1;
            size += self.ends[i as usize] as usize - self.start(i);
            match runs.last_mut() {
                Some(run) if run.end == i => run.end = i + 1,
                _ => runs.push(i..i + 1),
            }
        }
        Self {
            bytes: self.bytes.clone(),
            ends: self.ends.clone(),
            read_at: self.read_at.clone(),
            kept: Kept::Runs {
                runs: Arc::new(runs),
                events,
                size,
            },
        }
    }
    /// All of these after each other, in a buffer of their own.
    pub fn join(parts: &[Self]) -> Self {
        let mut bytes = Vec::with_capacity(parts.iter().map(Self::size).sum());
        let (mut ends, mut offsets) = (vec![], vec![]);
        for (offset, event) in parts.iter().flat_map(Self::with_offsets) {
            bytes.extend_from_slice(event);
            bytes.push(b'\n');
            ends.push(bytes.len() as u32);
            offsets.push(offset);
        }
        Self::rewritten(bytes.into(), ends, offsets)
    }
    /// Keeps the events for which `keep` (asked with each content) says so.
    pub fn retain(self, mut keep: impl FnMut(&[u8]) -> bool) -> Self {
        self.retain_where(|_, bytes, start, end| keep(&bytes[start..end - 1]))
    }
    /// The same; `keep` is told the event's number in the buffer too, as `hits` gives it.
    pub fn retain_numbered(self, mut keep: impl FnMut(u32, &[u8]) -> bool) -> Self {
        self.retain_where(|i, bytes, start, end| keep(i, &bytes[start..end - 1]))
    }
    /// Keeps the events that have any content. Looks at the ends only; without empty ones nothing is allocated.
    pub fn retain_nonempty(self) -> Self {
        let ends = &self.ends[..];
        // Block by block without an early way out inside, so that it becomes a wide comparison.
        let any = ends.first() == Some(&1)
            || (ends.get(1..).unwrap_or_default().chunks(256).zip(ends.chunks(256))).any(|(ends, starts)| {
                let gaps = ends.iter().zip(starts).map(|(end, start)| end.wrapping_sub(*start));
                gaps.fold(false, |any, gap| any | (gap == 1))
            });
        if any {
            self.retain_where(|_, _, start, end| end - start > 1)
        } else {
            self
        }
    }
    fn retain_where(self, mut keep: impl FnMut(u32, &[u8], usize, usize) -> bool) -> Self {
        let (mut runs, mut events, mut size) = (Vec::<Range<u32>>::new(), 0, 0);
        for run in self.runs() {
            let mut start = self.start(run.start);
            for i in run {
                let end = self.ends[i as usize] as usize;
                if keep(i, &self.bytes, start, end) {
                    events += 1;
                    size += end - start;
                    match runs.last_mut() {
                        Some(run) if run.end == i => run.end = i + 1,
                        _ => runs.push(i..i + 1),
                    }
                }
                start = end;
            }
        }
        if events == self.len() {
            return self;
        }
        Self {
            kept: Kept::Runs {
                runs: Arc::new(runs),
                events,
                size,
            },
            ..self
        }
    }
}

/// How many of these ends are not behind `at`. Near ones are found at once, far ones by doubling steps: hits come in order.
fn event_at(ends: &[u32], at: usize) -> usize {
    let is_before = |end: &u32| *end as usize <= at;
    let mut step = 1;
    while ends.get(step - 1).is_some_and(is_before) {
        step *= 2;
    }
    let from = step / 2;
    from + ends[from..ends.len().min(step)].partition_point(is_before)
}

/// Where a batch came from.
#[derive(Clone, Debug)]
pub struct Origin {
    pub host: Arc<Host>,
    /// The file it was read from; none for a stream.
    pub path: Option<PathBuf>,
    /// What else is known about the source: name and value, as `pod`, `namespace`, `container`. Few, and in a fixed order.
    pub tags: Vec<(&'static str, String)>,
}

/// A row of the checkpoint journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u64);

/// How far a source was read, and a hash of the bytes before that point, by which it is known again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes from the start of the source; the next read begins here.
    pub offset: u64,
    /// How many bytes before `offset` the hash covers: at most 1 KiB.
    pub window_len: u16,
    /// xxh3 of these bytes.
    pub window_hash: u64,
}

/// What the checkpoint may say once this batch is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub source: SourceId,
    pub progress: Progress,
}

/// What an input reads: a batch that has no number yet.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub events: Events,
    pub origin: Arc<Origin>,
    /// Of the first byte, in the source.
    pub offset: u64,
    pub read_at: Timestamp,
    /// None where the input cannot rewind.
    pub mark: Option<Mark>,
}

#[derive(Clone)]
pub struct Batch {
    pub lane: Lane,
    pub seq: u64,
    /// The first seq of the lane that was not settled when this was sent. All below it is settled by everyone who had to.
    pub low: u64,
    /// As read, until the FilterStage puts the filters' result in its place.
    pub events: Events,
    pub origin: Arc<Origin>,
    pub offset: u64,
    pub read_at: Timestamp,
    /// Lives as long as the batch's place in the Collector's window.
    pub outcome: Arc<Outcome>,
}

/// What became of a batch, shared by all its repetitions.
#[derive(Default)]
pub struct Outcome {
    /// How often the filters began with it: counted before what may fall.
    pub tries: AtomicU32,
    /// The filters' result: a batch that comes again is not filtered again.
    pub filtered: OnceLock<Events>,
    /// Events that made the filters fall, and are in the dead letter.
    pub buried: AtomicU64,
    /// One bit an output: who has counted it as done with (delivered, dropped, dead), so that each counts it once.
    accounted: AtomicU64,
}
/// How many outputs a pipeline may have: one bit each in `Outcome::accounted`.
pub const MOST_OUTPUTS: usize = 64;
impl Outcome {
    /// True for the first who asks.
    pub fn account(&self, output: u32) -> bool {
        let bit = 1 << output;
        self.accounted.fetch_or(bit, Relaxed) & bit == 0
    }
    pub fn is_accounted(&self, output: u32) -> bool {
        self.accounted.load(Relaxed) & (1 << output) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Events {
        let ends = text.match_indices('\n').map(|(i, _)| i as u32 + 1).collect();
        Events::new(Bytes::from_static(text.as_bytes()), ends)
    }

    #[test]
    fn keeps_in_runs() {
        let all = lines("a\n\nbb\nc\n\n");
        assert_eq!((all.len(), all.size()), (5, 9));
        let some = all.clone().retain(|e| !e.is_empty());
        assert_eq!(some.iter().collect::<Vec<_>>(), [b"a".as_slice(), b"bb", b"c"]);
        assert_eq!(some.slices().collect::<Vec<_>>(), [b"a\n".as_slice(), b"bb\nc\n"]);
        assert_eq!((some.len(), some.size(), some.is_whole()), (3, 7, false));
        let fewer = some.retain(|e| e != b"bb");
        assert_eq!(fewer.slices().collect::<Vec<_>>(), [b"a\n".as_slice(), b"c\n"]);
        assert!(fewer.clone().retain(|_| false).is_empty());
        let parts = [fewer.part(1..2), all.part(0..0), all.part(2..4)];
        assert_eq!(
            Events::join(&parts).iter().collect::<Vec<_>>(),
            [b"c".as_slice(), b"bb", b"c"]
        );
        assert!(all.retain(|_| true).is_whole());
        assert_eq!(Events::none().slices().count(), 0);
        assert_eq!(
            fewer_by_ends("\n\na\n\nbb\n\n"),
            [(2, b"a".to_vec()), (5, b"bb".to_vec())]
        );
        assert_eq!(fewer_by_ends("a\nbb\n"), [(0, b"a".to_vec()), (2, b"bb".to_vec())]);
        assert_eq!(fewer_by_ends("\n\n"), []);
        assert_eq!(fewer_by_ends(""), []);
    }
    fn fewer_by_ends(text: &'static str) -> Vec<(u32, Vec<u8>)> {
        let some = lines(text).retain_nonempty();
        assert_eq!(some.iter().count(), some.len());
        assert_eq!(some.is_whole(), some.size() == text.len());
        some.with_offsets().map(|(at, e)| (at, e.to_vec())).collect()
    }
    #[test]
    fn rewritten_events_know_where_they_were() {
        let changed = Events::rewritten(Bytes::from_static(b"longer\n\nb\n"), vec![7, 8, 10], vec![0, 3, 4]);
        let kept = changed.retain_nonempty();
        assert_eq!(
            kept.with_offsets().collect::<Vec<_>>(),
            [(0, b"longer".as_slice()), (4, b"b")]
        );
    }
    proptest::proptest! {
        #[test]
        fn hits_over_the_whole_buffer_are_those_of_single_events(
            contents in proptest::collection::vec("[ab\n]{0,5}", 1..40), wanted in "[ab\n]{1,3}", odd in 0..3usize, keep: bool,
        ) {
            let (mut bytes, mut ends) = (String::new(), vec![]);
            for content in &contents {
                bytes += content;
                bytes.push('\n');
                ends.push(bytes.len() as u32);
            }
            let mut n = 0;
            let events = Events::new(bytes.into(), ends).retain(|_| { n += 1; odd == 0 || n % (odd + 1) == 0 });
            let finder = memchr::memmem::Finder::new(&wanted);
            let has = |event: &[u8]| finder.find(event).is_some();
            let mut hits = vec![];
            events.hits(&mut hits, |stretch, from| finder.find(&stretch[from..]).map(|at| from + at..from + at + wanted.len()));
            let expected = events.clone().retain(|event| has(event) == keep);
            let numbered = events.clone().retain_numbered(|i, _| hits.binary_search(&i).is_ok() == keep);
            let are_lines = events.iter().all(|event| !event.contains(&b'\n'));
            proptest::prop_assert_eq!(events.are_lines(), are_lines);
            let got = events.retain_hits(&hits, keep);
            for got in [&got, &numbered] {
                proptest::prop_assert_eq!(got.with_offsets().collect::<Vec<_>>(), expected.with_offsets().collect::<Vec<_>>());
                proptest::prop_assert_eq!((got.len(), got.size()), (expected.len(), expected.size()));
                proptest::prop_assert_eq!(got.slices().collect::<Vec<_>>(), expected.slices().collect::<Vec<_>>());
            }
            proptest::prop_assert_eq!(got.places().map(|(at, e)| got.buffer()[at..at + e.len()].to_vec()).collect::<Vec<_>>(),
                got.iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
        }
    }
    #[test]
    fn each_output_accounts_once() {
        let outcome = Outcome::default();
        assert!(outcome.account(0) && !outcome.account(0) && outcome.account(63));
        assert!(outcome.is_accounted(63) && !outcome.is_accounted(1));
    }
}
