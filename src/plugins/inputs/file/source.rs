//! Where the bytes of a file come from: from itself, or from what is packed in it (gzip, one or more members). Offsets count unpacked
//! bytes, so that a file and its packed form have the same places. What is packed can only be read forwards: going back means to
//! begin again, so a little of what was passed is kept.
use std::{
    cell::RefCell,
    fs::{File, Metadata},
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use flate2::read::MultiGzDecoder;

use super::identity::{HEAD, Head, ReadAt, Stamp, WINDOW, fits};
use crate::{model::Progress, os};

/// Endings of files that hold packed ones.
pub const PACKED: [&str; 4] = ["gz", "bz2", "xz", "zst"];
/// Unpacked in one call of `reach` at most: some 20 ms of work.
const BUDGET: usize = 4 << 20;
const PIECE: usize = 64 * 1024;

/// The ending, if it is one of a packed file.
pub fn packing(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?;
    PACKED.into_iter().find(|packed| ending == *packed)
}
pub fn is_gzip(path: &Path) -> bool {
    packing(path) == Some("gz")
}

pub struct Source {
    file: File,
    packed: Option<RefCell<Packed>>,
}
impl Source {
    pub fn new(file: File, is_packed: bool) -> io::Result<Self> {
        let packed = match is_packed {
            true => Some(RefCell::new(Packed::new(&file)?)),
            false => None,
        };
        Ok(Self { file, packed })
    }
    pub fn raw(&self) -> &File {
        &self.file
    }
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }
    /// Of the file itself.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
    /// Makes `from .. to` ready to be read, and says how many bytes there are at least. None: it takes longer, call again.
    pub fn reach(&self, from: u64, to: u64, stamp: &Stamp) -> io::Result<Option<u64>> {
        match &self.packed {
            Some(packed) => packed.borrow_mut().reach(from, to, stamp, &self.file),
            None => Ok(Some(stamp.size)),
        }
    }
    /// All of it is there: a last line without an end is one.
    pub fn is_whole(&self) -> bool {
        self.packed.as_ref().is_some_and(|packed| packed.borrow().ended)
    }
    pub fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        match &self.packed {
            Some(_) => Ok(Some(from)),
            None => os::next_data(&self.file, from),
        }
    }
}
impl ReadAt for Source {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.packed {
            Some(packed) => packed.borrow_mut().read_at(buffer, offset, &self.file),
            None => self.file.read_at(buffer, offset),
        }
    }
}

/// Is this the file that was read up to there? Of a packed one only the start is compared, the rest when it is read on.
pub fn fits_file(path: &Path, packed: bool, file: File, head: &Head, at: &Progress) -> io::Result<bool> {
    match packed && is_gzip(path) {
        true => head.fits(&Source::new(file, true)?),
        false => fits(&file, head, at),
    }
}

/// Reads a file from its start, whatever its own position is.
struct FromStart {
    file: File,
    at: u64,
}
impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

struct Packed {
    reader: MultiGzDecoder<BufReader<FromStart>>,
    /// The first bytes, for they are compared again and again.
    head: Vec<u8>,
    /// Unpacked bytes from this offset on.
    from: u64,
    buffer: Vec<u8>,
    ended: bool,
    /// What the file looked like when its end was met.
    stamp: Option<Stamp>,
}
impl Packed {
    fn new(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        Ok(Self {
            reader: MultiGzDecoder::new(BufReader::with_capacity(PIECE, FromStart { file, at: 0 })),
            head: Vec::new(),
            from: 0,
            buffer: Vec::new(),
            ended: false,
            stamp: None,
        })
    }
    fn end(&self) -> u64 {
        self.from + self.buffer.len() as u64
    }
    fn reach(&mut self, from: u64, to: u64, stamp: &Stamp, file: &File) -> io::Result<Option<u64>> {
        if self.ended && self.stamp.is_some_and(|then| then != *stamp) {
            *self = Self::new(file)?; // another member may have come
        }
        if stamp.size == 0 {
            return Ok(Some(0)); // just made
        }
        let keep = from.saturating_sub(WINDOW as u64);
        self.rewind_to(keep, file)?;
        let mut left = BUDGET;
        while self.end() < to && !self.ended {
            self.pass(keep);
            let Some(rest) = left.checked_sub(self.unpack()?) else {
                return Ok(None);
            };
            left = rest;
        }
        if self.ended && self.stamp.is_none() {
            self.stamp = Some(*stamp);
        }
        self.pass(keep);
        Ok(Some(self.end()))
    }
    fn read_at(&mut self, buffer: &mut [u8], offset: u64, file: &File) -> io::Result<usize> {
        if offset < self.from && offset < self.head.len() as u64 {
            return Ok(copy(&self.head[offset as usize..], buffer));
        }
        self.rewind_to(offset, file)?;
        while self.end() <= offset && !self.ended {
            self.pass(offset.saturating_sub(WINDOW as u64));
            self.unpack()?;
        }
        let at = (offset - self.from).min(self.buffer.len() as u64) as usize;
        Ok(copy(&self.buffer[at..], buffer))
    }
    fn rewind_to(&mut self, offset: u64, file: &File) -> io::Result<()> {
        if offset < self.from {
            *self = Self::new(file)?;
        }
        Ok(())
    }
    /// What lies before is not needed any more.
    fn pass(&mut self, keep: u64) {
        let passed = keep.saturating_sub(self.from).min(self.buffer.len() as u64) as usize;
        if passed >= PIECE {
            self.buffer.drain(..passed);
            self.from += passed as u64;
        }
    }
    fn unpack(&mut self) -> io::Result<usize> {
        let had = self.buffer.len();
        self.buffer.resize(had + PIECE, 0);
        let read = self.reader.read(&mut self.buffer[had..]);
        self.buffer.truncate(had + *read.as_ref().unwrap_or(&0));
        let read = read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the gzip data ends in the middle"),
            kind => io::Error::new(kind, format!("not gzip, or damaged: {error}")),
        })?;
        self.ended = read == 0;
        let missing = (HEAD as usize).saturating_sub(self.head.len()).min(read);
        if missing > 0 && self.from + had as u64 == self.head.len() as u64 {
            self.head.extend_from_slice(&self.buffer[had..had + missing]);
        }
        Ok(read.max(1))
    }
}
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;
    use crate::plugins::inputs::file::identity::{place, read_full};

    fn gzip(members: &[&[u8]]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        for member in members {
            let mut encoder = GzEncoder::new(&mut file, Compression::fast());
            encoder.write_all(member).unwrap();
            encoder.finish().unwrap();
        }
        file
    }
    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        /// Wherever it is read, back and forth, it is what a plain file would give.
        #[test]
        fn what_is_packed_reads_as_what_is_not(
            sizes in proptest::collection::vec(0usize..200_000, 1..4),
            looks in proptest::collection::vec((0u64..500_000, 0usize..100_000, any::<bool>()), 1..20),
        ) {
            let text = (0..sizes.iter().sum::<usize>()).map(|i| (i * i / 7 % 251) as u8).collect::<Vec<_>>();
            let mut rest = &text[..];
            let members = sizes.iter().map(|size| { let (member, after) = rest.split_at(*size); rest = after; member }).collect::<Vec<_>>();
            let source = Source::new(gzip(&members), true).unwrap();
            let mut plain = tempfile::tempfile().unwrap();
            plain.write_all(&text).unwrap();
            let stamp = Stamp::of(&source.metadata().unwrap());
            for (offset, len, reach) in looks {
                if reach {
                    while source.reach(offset, offset + len as u64, &stamp).unwrap().is_none() {}
                }
                let (mut a, mut b) = (vec![0; len], vec![0; len]);
                prop_assert_eq!(read_full(&source, &mut a, offset).unwrap(), read_full(&plain, &mut b, offset).unwrap());
                prop_assert_eq!(a, b);
                let at = offset.min(text.len() as u64);
                prop_assert_eq!(place(&source, at).unwrap(), place(&plain, at).unwrap());
                prop_assert_eq!(Head::of(&source, at).unwrap(), Head::of(&plain, at).unwrap());
            }
        }
    }
    #[test]
    fn what_is_no_gzip_or_half_of_one_says_so() {
        let look = |file: File| {
            let stamp = Stamp::of(&file.metadata().unwrap());
            let source = Source::new(file, true).unwrap();
            source.reach(0, 1 << 20, &stamp).map_err(|error| error.to_string())
        };
        let mut plain = tempfile::tempfile().unwrap();
        plain.write_all(b"a line of text, and another\n").unwrap();
        assert!(look(plain).unwrap_err().starts_with("not gzip, or damaged"));
        let half = gzip(&[&[b'x'; 100_000]]);
        half.set_len(half.metadata().unwrap().len() - 9).unwrap();
        assert_eq!(look(half).unwrap_err(), "the gzip data ends in the middle");
        assert_eq!(look(gzip(&[b"abc"])), Ok(Some(3)));
    }
}
