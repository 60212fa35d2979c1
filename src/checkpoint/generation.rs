//! The files of the journal. Each is one generation, `journal.<number>`: the whole state, then what each write changed.
//!
//! ```text
//! header   magic [8] · version u32 · len u32 · crc u32 · body [len]: generation u64, boot id
//! frame    len u32 · crc u32 · payload [len]                  the first one holds the whole state
//! payload  count u32 · count × (1 put · 2 moved · 3 gone)     applied as a whole or not at all
//! ```
//! All numbers little-endian; crc is CRC-32 (IEEE). The header keeps its layout for ever, and its crc covers the version, so that a newer
//! version is told from a flipped bit. The crc of a frame begins with the generation: a disk block of an older file that comes back
//! after a power loss is no frame of this one. Nor are zeros one: their crc is wrong.
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{Entry, Identity};
use crate::model::{Progress, SourceId};

const MAGIC: &[u8; 8] = b"LUFFLYCP";
pub const VERSION: u32 = 1;
const HEADER: usize = MAGIC.len() + 12;
/// Of a header's body; it holds 44 bytes on Linux.
const MOST_BODY: usize = 4096;
const PREFIX: &str = "journal.";
const UNFINISHED: &str = "journal.tmp";
/// A generation may grow to this many bytes of changes, however small its snapshot is.
const LEAST_LOG: u64 = 64 << 10;

pub fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{generation}"))
}
/// The generations in `dir`, newest first.
pub fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(dir)? {
        let file = file?.path();
        let number = file
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.parse().ok());
        // Only as we write it (`007` is none), and with room to count on.
        found.extend(number.filter(|&number| number < u64::MAX / 2 && path(dir, number) == file));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

// ---- writing

/// An open generation.
pub struct Generation {
    pub number: u64,
    file: File,
    /// Bytes, to the end of the last good frame.
    good: u64,
    /// There may be half a frame after `good`.
    torn: bool,
    /// Something was written that was not synced.
    dirty: bool,
    /// Past this length a new generation is due.
    due_at: u64,
}

impl Generation {
    /// Writes a whole new one, so that after a crash there is all of it or nothing.
    pub fn create(dir: &Path, number: u64, boot_id: &str, snapshot: &Payload) -> io::Result<Self> {
        let unfinished = dir.join(UNFINISHED);
        let made = (|| {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            let mut bytes = header(number, boot_id, VERSION);
            bytes.extend(snapshot.frame(number)?);
            file.write_all_at(&bytes, 0)?;
            file.sync_data()?;
            std::fs::rename(&unfinished, path(dir, number))?;
            File::open(dir)?.sync_all()?;
            Ok(Self::at(file, number, bytes.len() as u64, bytes.len() as u64))
        })();
        if made.is_err() {
            // They take up room that may be what is missing; and what was renamed before the error must not pass for the newest.
            let _ = std::fs::remove_file(&unfinished);
            let _ = std::fs::remove_file(path(dir, number));
        }
        made
    }
    /// Goes on after the last frame of one that was read without damage.
    pub fn resume(dir: &Path, number: u64, loaded: &Loaded) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path(dir, number))?;
        let mut generation = Self::at(file, number, loaded.snapshot, loaded.good);
        generation.dirty = true; // the process before may have left it so
        Ok(generation)
    }
    fn at(file: File, number: u64, snapshot: u64, good: u64) -> Self {
        Self {
            number,
            file,
            good,
            torn: false,
            dirty: false,
            due_at: snapshot + LEAST_LOG.max(4 * snapshot),
        }
    }

    /// All of it or nothing counts: what a failed one has left behind is cut off before the next.
    pub fn append(&mut self, changes: &Payload) -> io::Result<()> {
        let frame = changes.frame(self.number)?;
        if self.torn {
            self.file.set_len(self.good)?;
        }
        self.torn = true;
        self.dirty = true;
        if let Err(error) = self.file.write_all_at(&frame, self.good) {
            self.torn = self.file.set_len(self.good).is_err();
            return Err(error);
        }
        self.torn = false;
        self.good += frame.len() as u64;
        Ok(())
    }
    /// Its file, if anything was written since the last time: for the caller to sync.
    pub fn unsynced(&mut self) -> io::Result<Option<File>> {
        if !self.dirty {
            return Ok(None);
        }
        let file = self.file.try_clone()?;
        self.dirty = false;
        Ok(Some(file))
    }
    pub fn is_long(&self) -> bool {
        self.good > self.due_at
    }
    /// The next generation could not be begun; not to be tried again with every single write.
    pub fn go_on(&mut self) {
        self.due_at = self.good + LEAST_LOG;
    }
    #[cfg(test)]
    pub fn len(&self) -> u64 {
        self.good
    }
}

pub(super) fn header(generation: u64, boot_id: &str, version: u32) -> Vec<u8> {
    let mut body = generation.to_le_bytes().to_vec();
    body.extend(boot_id.bytes().take(MOST_BODY - 8));
    let (version, len) = (version.to_le_bytes(), (body.len() as u32).to_le_bytes());
    let crc = crc(&[&version, &len, &body]);
    [&MAGIC[..], &version, &len, &crc, &body].concat()
}
fn crc(parts: &[&[u8]]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().to_le_bytes()
}

/// What one frame says.
#[derive(Default)]
pub struct Payload {
    count: u32,
    bytes: Vec<u8>,
}
impl Payload {
    fn begin(&mut self, kind: u8, id: SourceId) {
        self.count += 1;
        self.bytes.push(kind);
        self.bytes.extend(id.0.to_le_bytes());
    }
    fn progress(&mut self, p: Progress) {
        self.bytes.extend(p.offset.to_le_bytes());
        self.bytes.extend(p.window_len.to_le_bytes());
        self.bytes.extend(p.window_hash.to_le_bytes());
    }
    pub fn put(&mut self, entry: &Entry) {
        self.begin(1, entry.id);
        let Identity {
            path,
            device,
            inode,
            head_len,
            head_hash,
        } = &entry.identity;
        let path = path.as_os_str().as_bytes();
        self.bytes.extend((path.len() as u32).to_le_bytes()); // the kernel's own limit is 4096
        self.bytes.extend(path);
        self.bytes.extend(device.to_le_bytes());
        self.bytes.extend(inode.to_le_bytes());
        self.bytes.extend(head_len.to_le_bytes());
        self.bytes.extend(head_hash.to_le_bytes());
        self.progress(entry.settled);
        self.progress(entry.synced);
        self.bytes.extend(entry.seen.to_le_bytes());
    }
    pub fn moved(&mut self, entry: &Entry) {
        self.begin(2, entry.id);
        self.progress(entry.settled);
        self.progress(entry.synced);
    }
    pub fn gone(&mut self, id: SourceId) {
        self.begin(3, id);
    }
    fn frame(&self, generation: u64) -> io::Result<Vec<u8>> {
        let len = u32::try_from(self.bytes.len() + 4)
            .map_err(|_| io::Error::other("a checkpoint of more than 4 GiB is not accepted"))?
            .to_le_bytes();
        let count = self.count.to_le_bytes();
        let crc = crc(&[&generation.to_le_bytes(), &len, &count, &self.bytes]);
        Ok([&len[..], &crc, &count, &self.bytes].concat())
    }
}

// ---- reading

pub type Entries = BTreeMap<SourceId, Entry>;

/// What a generation says, up to its last good frame.
#[derive(Debug)]
pub struct Loaded {
    pub entries: Entries,
    pub boot_id: String,
    /// Bytes: to the end of the snapshot, of the last good frame, of the file.
    snapshot: u64,
    pub good: u64,
    pub len: u64,
}
/// Why a generation says nothing.
#[derive(Debug)]
pub enum Unusable {
    Newer(u32),
    Damaged(String),
}

impl Loaded {
    pub fn read(dir: &Path, generation: u64) -> Result<Self, Unusable> {
        let Opening {
            mut file,
            len,
            begin,
            boot_id,
        } = open(dir, generation)?;
        let mut loaded = Self {
            entries: Entries::new(),
            boot_id,
            snapshot: begin,
            good: begin,
            len,
        };
        let mut payload = Vec::new();
        while let Some(changes) = next_frame(&mut file, generation, len.saturating_sub(loaded.good), &mut payload) {
            for change in changes {
                change.apply(&mut loaded.entries);
            }
            let first = loaded.good == begin;
            loaded.good += 8 + payload.len() as u64;
            if first {
                loaded.snapshot = loaded.good;
            }
        }
        if loaded.good == begin {
            return Err(Unusable::Damaged("its snapshot is damaged".to_owned()));
        }
        Ok(loaded)
    }
    pub fn is_whole(&self) -> bool {
        self.good == self.len
    }
}

/// A generation of a newer version is not ours to delete: an upgrade may come back to it.
pub fn is_newer(dir: &Path, generation: u64) -> bool {
    matches!(open(dir, generation), Err(Unusable::Newer(_)))
}

/// A file whose header was read.
struct Opening {
    file: BufReader<File>,
    len: u64,
    /// Where the first frame begins.
    begin: u64,
    boot_id: String,
}
fn open(dir: &Path, generation: u64) -> Result<Opening, Unusable> {
    let unreadable = |e: io::Error| Unusable::Damaged(format!("could not be read: {e}"));
    let damaged = || Unusable::Damaged("its header is damaged".to_owned());
    let file = File::open(path(dir, generation)).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    let mut file = BufReader::with_capacity(256 << 10, file);

    let mut head = [0; HEADER];
    file.read_exact(&mut head).map_err(|_| damaged())?;
    let (magic, head) = head.split_at(MAGIC.len());
    let mut fields = Fields(head);
    let (Some(version), Some(body_len)) = (fields.u32(), fields.u32()) else {
        return Err(damaged());
    };
    if magic != MAGIC || body_len as usize > MOST_BODY {
        return Err(damaged());
    }
    let mut body = vec![0; body_len as usize];
    file.read_exact(&mut body).map_err(|_| damaged())?;
    if crc(&[&head[..8], &body]) != head[8..] {
        return Err(damaged());
    }
    if version > VERSION {
        return Err(Unusable::Newer(version));
    }
    let mut fields = Fields(&body);
    if version != VERSION || fields.u64() != Some(generation) {
        return Err(damaged());
    }
    Ok(Opening {
        file,
        len,
        begin: (HEADER + body.len()) as u64,
        boot_id: String::from_utf8_lossy(fields.0).into_owned(),
    })
}

/// None at the end, and at the first thing that is not a whole good frame.
fn next_frame(file: &mut impl Read, generation: u64, left: u64, payload: &mut Vec<u8>) -> Option<Vec<Change>> {
    let mut head = [0; 8];
    file.read_exact(&mut head).ok()?;
    let mut fields = Fields(&head);
    let (len, sum) = (u64::from(fields.u32()?), fields.0);
    if len > left.checked_sub(8)? {
        return None;
    }
    payload.resize(len as usize, 0);
    file.read_exact(payload).ok()?;
    if crc(&[&generation.to_le_bytes(), &head[..4], payload]) != sum {
        return None;
    }
    let mut fields = Fields(payload);
    let count = fields.u32()?;
    // The smallest change is 9 bytes.
    let mut changes = Vec::with_capacity((count as usize).min(payload.len() / 9));
    for _ in 0..count {
        changes.push(fields.change()?);
    }
    fields.0.is_empty().then_some(changes)
}

enum Change {
    Put(Entry),
    Moved(SourceId, Progress, Progress),
    Gone(SourceId),
}
impl Change {
    fn apply(self, entries: &mut Entries) {
        match self {
            Self::Put(entry) => {
                entries.insert(entry.id, entry);
            }
            Self::Moved(id, settled, synced) => {
                if let Some(entry) = entries.get_mut(&id) {
                    (entry.settled, entry.synced) = (settled, synced);
                }
            }
            Self::Gone(id) => {
                entries.remove(&id);
            }
        }
    }
}

/// What is left to be read of some bytes.
struct Fields<'a>(&'a [u8]);
impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn progress(&mut self) -> Option<Progress> {
        Some(Progress {
            offset: self.u64()?,
            window_len: u16::from_le_bytes(self.array()?),
            window_hash: self.u64()?,
        })
    }
    fn change(&mut self) -> Option<Change> {
        let [kind] = self.array()?;
        let id = SourceId(self.u64()?);
        Some(match kind {
            1 => {
                let path_len = self.u32()? as usize;
                let path = std::ffi::OsString::from_vec(self.bytes(path_len)?.to_vec());
                let identity = Identity {
                    path: path.into(),
                    device: self.u64()?,
                    inode: self.u64()?,
                    head_len: self.u32()?,
                    head_hash: self.u64()?,
                };
                Change::Put(Entry {
                    id,
                    identity,
                    settled: self.progress()?,
                    synced: self.progress()?,
                    seen: i64::from_le_bytes(self.array()?),
                })
            }
            2 => Change::Moved(id, self.progress()?, self.progress()?),
            3 => Change::Gone(id),
            _ => return None,
        })
    }
}
