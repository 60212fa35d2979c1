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
    /// Contiguous byte ranges of the kept events, line ends included: what a byte stream writes.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.runs()
            .map(|run| &self.bytes[self.start(run.start)..self.ends[run.end as usize - 1] as usize])
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
        self.retain_where(|bytes, start, end| keep(&bytes[start..end - 1]))
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
            self.retain_where(|_, start, end| end - start > 1)
        } else {
            self
        }
    }
    fn retain_where(self, mut keep: impl FnMut(&[u8], usize, usize) -> bool) -> Self {
        let (mut runs, mut events, mut size) = (Vec::<Range<u32>>::new(), 0, 0);
        for run in self.runs() {
            let mut start = self.start(run.start);
            for i in run {
                let end = self.ends[i as usize] as usize;
                if keep(&self.bytes, start, end) {
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

/// Where a batch came from.
#[derive(Clone, Debug)]
pub struct Origin {
    pub host: Arc<Host>,
    /// The file it was read from; none for a stream.
    pub path: Option<PathBuf>,
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
    #[test]
    fn each_output_accounts_once() {
        let outcome = Outcome::default();
        assert!(outcome.account(0) && !outcome.account(0) && outcome.account(63));
        assert!(outcome.is_accounted(63) && !outcome.is_accounted(1));
    }
}
