//! One file that is appended to: what was settled, what was written since, and how to get back to the last settled border.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fail::fail_point;
use jiff::Timestamp;
use slog::{Logger, info, warn};

use crate::plugins::outputs::said;

pub struct Target {
    pub path: Arc<Path>,
    pub file: Arc<File>,
    /// Device and inode: names come and go, and only this file is ever cut.
    id: (u64, u64),
    /// Its length at the last border that was reported as delivered.
    pub settled: u64,
    /// Bytes that were appended since.
    pub pending: u64,
    /// Written to since the last sync.
    pub dirty: bool,
    /// Just made: its directory has to be synced, too.
    pub new: bool,
    /// When it was begun, or last written to by an earlier life: the day that it belongs to.
    pub began: Timestamp,
    /// When (steady) to look whether the path still leads here.
    pub look_at: Duration,
    /// Not before this (steady) is a rotation tried again that has failed.
    pub rotate_at: Duration,
    /// When it was last asked for, in calls.
    pub used: u64,
    log: Logger,
    _claim: Claim,
}

/// The file, what is known of it, and whether it was made now.
fn open_or_make(path: &Path) -> Result<(File, fs::Metadata, bool), String> {
    let could_not = |error: io::Error| format!("could not open {}: {}", path.display(), said(&error));
    let open = |create| {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(create).mode(0o640);
        // Neither a terminal nor a named pipe may hold us here; on regular files it means nothing.
        options.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
    };
    let (file, new) = match open(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory).map_err(could_not)?;
            }
            (open(true).map_err(could_not)?, true)
        }
        result => (result.map_err(could_not)?, false),
    };
    let meta = file.metadata().map_err(could_not)?;
    if !meta.is_file() {
        return Err(format!("could not open {}: not a regular file", path.display()));
    }
    Ok((file, meta, new))
}

impl Target {
    /// Whether `open` would succeed if whoever holds the file in this process let go of it.
    pub fn can_be_opened(path: &Path) -> Result<(), String> {
        let (file, ..) = open_or_make(path)?;
        let ours = fs::canonicalize(path).is_ok_and(|path| Claim::is_taken(&path));
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if !ours => {
                Err(format!("{} is being written by another process", path.display()))
            }
            _ => Ok(()),
        }
    }
    /// Opens or makes the file, and its directories; becomes its only writer; cuts off a torn last line. The error is for people.
    pub fn open(path: &Arc<Path>, owner: &str, log: &Logger) -> Result<Self, String> {
        let could_not = |error: io::Error| format!("could not open {}: {}", path.display(), said(&error));
        let (file, meta, new) = open_or_make(path)?;
        let claim = Claim::new(fs::canonicalize(path).map_err(could_not)?, owner)?;
        match file.try_lock() {
            // Not every file system has locks; then the claim alone must do.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(format!("{} is being written by another process", path.display()));
            }
        }
        let settled = whole_length(&file, meta.len()).map_err(could_not)?;
        if settled < meta.len() {
            file.set_len(settled).map_err(could_not)?;
            warn!(log, "cut off a torn last line"; "path" => %path.display(), "bytes" => meta.len() - settled);
        }
        Ok(Self {
            path: path.clone(),
            file: Arc::new(file),
            id: (meta.dev(), meta.ino()),
            settled,
            pending: 0,
            dirty: settled < meta.len(),
            new,
            // Set at the first write of an empty one.
            began: meta
                .modified()
                .and_then(|at| at.try_into().map_err(io::Error::other))
                .unwrap_or_default(),
            look_at: Duration::ZERO,
            rotate_at: Duration::ZERO,
            used: 0,
            log: log.clone(),
            _claim: claim,
        })
    }

    /// Appends everything, or as much as goes: `pending` says how much.
    pub fn append(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !slices.is_empty() {
            fail_point!("logr-write", failed);
            match (&*self.file).write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.pending += written as u64;
                    self.dirty = true;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        fail_point!("logr-write", failed);
        Ok(())
    }

    /// The first `bytes` of what is pending are reported as delivered.
    pub fn settle(&mut self, bytes: u64) {
        self.settled += bytes;
        self.pending -= bytes;
    }

    /// Takes away what was written since the last settled border: our last bytes, and only if nobody has touched the file since.
    pub fn cut_back(&mut self) -> io::Result<()> {
        if self.pending == 0 {
            return Ok(());
        }
        // The position of an appending descriptor is the end of its last write, wherever the file began then.
        let (end, size) = ((&*self.file).stream_position()?, self.file.metadata()?.len());
        if size == end {
            let border = end.saturating_sub(self.pending);
            self.file.set_len(border)?;
            self.settled = border;
            info!(self.log, "cut back an unfinished write"; "path" => %self.path.display(), "bytes" => self.pending);
        } else {
            warn!(self.log, "somebody else has changed the file, an unfinished write stays in it";
                "path" => %self.path.display(), "bytes" => self.pending, "size" => size, "expected" => end);
            self.settled = size;
        }
        self.pending = 0;
        Ok(())
    }

    /// Whether the path still leads to this file. At a settled border only.
    pub fn is_in_place(&mut self) -> bool {
        match fs::metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == self.id => {
                if meta.len() != self.settled {
                    info!(self.log, "somebody else has changed the file"; "path" => %self.path.display(),
                        "size" => meta.len(), "expected" => self.settled);
                    self.settled = meta.len();
                }
                true
            }
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}
impl Drop for Target {
    fn drop(&mut self) {
        // An heir starts at a border, and need not wait until the last copy of the descriptor is closed. Best effort: the file is
        // looked at again whenever it is opened.
        let _ = self.cut_back();
        let _ = self.file.unlock();
    }
}

/// The length up to and with the last line end.
fn whole_length(file: &File, size: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 << 10;
    let mut block = vec![0; size.min(BLOCK) as usize];
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        if let Some(at) = memchr::memrchr(b'\n', block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Who writes which file in this process, by resolved path: two writers would cut each other's lines.
static OWNERS: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
struct Claim(PathBuf);
impl Claim {
    fn is_taken(path: &Path) -> bool {
        OWNERS.lock().unwrap_or_else(PoisonError::into_inner).contains_key(path)
    }
    fn new(path: PathBuf, owner: &str) -> Result<Self, String> {
        let mut owners = OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = owners.get(&path) {
            return Err(format!(
                "{} is being written by {first}, accepted: one output a file",
                path.display()
            ));
        }
        owners.insert(path.clone(), owner.to_owned());
        Ok(Self(path))
    }
}
impl Drop for Claim {
    fn drop(&mut self) {
        OWNERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// What a failpoint with `return` or `return(EIO)` says: a full disk, or a broken one.
#[cfg(feature = "failpoints")]
fn failed(what: Option<String>) -> io::Result<()> {
    let code = if what.as_deref() == Some("EIO") {
        libc::EIO
    } else {
        libc::ENOSPC
    };
    Err(io::Error::from_raw_os_error(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one settled line and a torn one.
    fn torn(path: &Path) -> Target {
        let log = Logger::root(slog::Discard, slog::o!());
        let mut target = Target::open(&path.into(), "test", &log).unwrap();
        target.append(&mut [IoSlice::new(b"settled\n")]).unwrap();
        target.settle(8);
        target.append(&mut [IoSlice::new(b"to")]).unwrap();
        target.append(&mut [IoSlice::new(b"rn")]).unwrap();
        target
    }

    #[test]
    fn cuts_back_to_the_border_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let mut target = torn(&path);
        target.cut_back().unwrap();
        target.cut_back().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "settled\n");
        assert_eq!((target.settled, target.pending), (8, 0));
        // Whatever it is called by now.
        target.append(&mut [IoSlice::new(b"again")]).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        drop(target);
        assert_eq!(fs::read_to_string(dir.path().join("moved")).unwrap(), "settled\n");
    }
    #[test]
    fn what_others_wrote_behind_is_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let mut target = torn(&path);
        let mut theirs = OpenOptions::new().append(true).open(&path).unwrap();
        theirs.write_all(b"\ntheirs\n").unwrap();
        target.cut_back().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "settled\ntorn\ntheirs\n");
        assert_eq!((target.settled, target.pending), (20, 0));
    }
    #[test]
    fn a_file_truncated_meanwhile_is_not_made_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let mut target = torn(&path);
        File::create(&path).unwrap();
        target.cut_back().unwrap();
        assert_eq!((fs::metadata(&path).unwrap().len(), target.settled), (0, 0));
        // Truncated before the unfinished write: then that is at the start of the file.
        target.append(&mut [IoSlice::new(b"settled\n")]).unwrap();
        target.settle(8);
        File::create(&path).unwrap();
        target.append(&mut [IoSlice::new(b"torn")]).unwrap();
        target.cut_back().unwrap();
        assert_eq!((fs::metadata(&path).unwrap().len(), target.settled), (0, 0));
    }
}
