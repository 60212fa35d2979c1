//! What a file is known by: its inode, a hash of its first bytes (head) and of the bytes before the place up to which it was read
//! (window). Names do not count: they change when logs are rotated.
use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{checkpoint::Identity, model::Progress};

/// Bytes of the head at most.
pub const HEAD: u64 = 4096;
/// Bytes of the window at most.
pub const WINDOW: usize = 1024;
/// A file with another inode is taken for the same one (restored, moved to another disk, saved by an editor) if at least so many bytes
/// of it are known: a first line alone is too often the same.
pub const ENOUGH_WITHOUT_INODE: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Inode {
    pub device: u64,
    pub number: u64,
}
impl Inode {
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            number: meta.ino(),
        }
    }
}
impl std::fmt::Display for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}:{:x}", self.device, self.number)
    }
}

/// While none of this changes, nothing was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub size: u64,
    /// As the file system says, in seconds and nanoseconds; compared with such times only, never with our clock.
    pub modified: (i64, i64),
    pub changed: (i64, i64),
}
impl Stamp {
    pub fn of(meta: &Metadata) -> Self {
        Self {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The first bytes, as many as were read of it, up to `HEAD`. It grows with the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub len: u32,
    pub hash: u64,
}
impl Head {
    /// Of a file of which `read` bytes were read: what is behind that may not be final.
    pub fn of(file: &impl ReadAt, read: u64) -> io::Result<Self> {
        let mut bytes = [0; HEAD as usize];
        let len = read_full(file, &mut bytes[..read.min(HEAD) as usize], 0)?;
        Ok(Self {
            len: len as u32,
            hash: xxh3_64(&bytes[..len]),
        })
    }
    pub fn fits(&self, file: &impl ReadAt) -> io::Result<bool> {
        Ok(self.len == 0 || Self::of(file, self.len.into())? == *self)
    }
    /// Worth to be taken anew: not at every line.
    pub fn is_short_for(&self, read: u64) -> bool {
        let most = read.min(HEAD);
        u64::from(self.len) < most && (most == HEAD || most >= 2 * u64::from(self.len))
    }
}

/// The bytes before an offset.
pub struct Window {
    bytes: [u8; WINDOW],
    len: usize,
}
impl Window {
    /// Reads the bytes before `at`, and says whether they are those that were there.
    pub fn check(file: &impl ReadAt, at: &Progress) -> io::Result<Option<Self>> {
        let mut window = Self {
            bytes: [0; WINDOW],
            len: usize::from(at.window_len).min(WINDOW),
        };
        if window.len == 0 {
            return Ok(Some(window));
        }
        let bytes = &mut window.bytes[..window.len];
        let read = read_full(file, bytes, at.offset - bytes.len() as u64)?;
        Ok((read == bytes.len() && xxh3_64(bytes) == at.window_hash).then_some(window))
    }
    /// The place behind `text`, which stands directly behind this window at `offset`.
    pub fn after(&self, offset: u64, text: &[u8]) -> Progress {
        let mut joined = [0; 2 * WINDOW];
        let text_tail = &text[text.len().saturating_sub(WINDOW)..];
        joined[..self.len].copy_from_slice(&self.bytes[..self.len]);
        joined[self.len..][..text_tail.len()].copy_from_slice(text_tail);
        let joined = &joined[..self.len + text_tail.len()];
        let window = &joined[joined.len().saturating_sub(WINDOW)..];
        Progress {
            offset: offset + text.len() as u64,
            window_len: window.len() as u16,
            window_hash: xxh3_64(window),
        }
    }
}
/// The place at `offset`, its window read from the file.
pub fn place(file: &impl ReadAt, offset: u64) -> io::Result<Progress> {
    let len = offset.min(WINDOW as u64);
    let mut bytes = [0; WINDOW];
    let len = read_full(file, &mut bytes[..len as usize], offset - len)?;
    Ok(Progress {
        offset,
        window_len: len as u16,
        window_hash: xxh3_64(&bytes[..len]),
    })
}

/// Is this the file that was read up to there?
pub fn fits(file: &File, head: &Head, at: &Progress) -> io::Result<bool> {
    Ok(file.metadata()?.size() >= at.offset && head.fits(file)? && Window::check(file, at)?.is_some())
}
pub fn head_of(identity: &Identity) -> Head {
    Head {
        len: identity.head_len,
        hash: identity.head_hash,
    }
}

/// What can be read at any offset.
pub trait ReadAt {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}
impl ReadAt for File {
    fn read_some_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buffer, offset)
    }
}
/// Reads until the buffer is full or the file ends.
pub fn read_full(file: &impl ReadAt, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_some_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What a log was called that was given this name when it was rotated: `app.log.1`, `app.log-20261123`, `app-20261123.log` and
/// `app.1.log` may all be from `app.log` (and from other names that nobody has).
pub fn bases(name: &Path) -> impl Iterator<Item = OsString> {
    let name = name.file_name().unwrap_or_default().as_bytes();
    let ending = memchr::memrchr(b'.', name).map_or(&b""[..], |dot| &name[dot..]);
    let seams = (1..name.len()).filter(|at| matches!(name[*at], b'.' | b'-' | b'_'));
    seams
        .flat_map(|at| {
            let stem = &name[..at];
            let inside = [stem, ending].concat();
            let inside = (inside.len() < name.len() && !ending.is_empty()).then(|| OsString::from_vec(inside));
            [Some(OsString::from_vec(stem.to_owned())), inside]
        })
        .flatten()
}
pub fn is_rotated_name(base: &Path, name: &Path) -> bool {
    base.file_name().is_some_and(|base| bases(name).any(|b| b == base))
}

/// Is what `copy` holds (`size` bytes) the beginning of `original`? Looks at its head and its end.
pub fn is_beginning(copy: &File, size: u64, original: &File) -> io::Result<bool> {
    let same = |offset: u64, len: u64| -> io::Result<bool> {
        let (mut a, mut b) = ([0; HEAD as usize], [0; HEAD as usize]);
        let (a, b) = (&mut a[..len as usize], &mut b[..len as usize]);
        Ok(read_full(copy, a, offset)? == a.len() && read_full(original, b, offset)? == b.len() && a == b)
    };
    let len = size.min(HEAD);
    Ok(same(0, len)? && same(size - len, len)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(text, 0).unwrap();
        file
    }
    #[test]
    fn windows_grow_with_what_is_read() {
        let text = (0..5000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>();
        let file = file(&text);
        let mut at = Progress::default();
        for size in [1, 500, 600, 30, 2000, 1023, 1024, 1, 0] {
            let window = Window::check(&file, &at).unwrap().expect("the same bytes are there");
            let offset = at.offset as usize;
            let size = size.min(text.len() - offset);
            at = window.after(at.offset, &text[offset..offset + size]);
            assert_eq!(at, place(&file, (offset + size) as u64).unwrap());
        }
        file.write_all_at(b"!", at.offset - 7).unwrap();
        assert!(Window::check(&file, &at).unwrap().is_none());
    }
    #[test]
    fn a_head_covers_what_it_has_seen() {
        let file = file(b"first line\n");
        let head = Head::of(&file, 11).unwrap();
        file.write_all_at(b"second\n", 11).unwrap();
        assert!(head.fits(&file).unwrap());
        assert!(!head.is_short_for(18) && head.is_short_for(22) && head.is_short_for(HEAD));
        file.write_all_at(b"F", 0).unwrap();
        assert!(!head.fits(&file).unwrap());
        file.set_len(5).unwrap();
        assert!(!head.fits(&file).unwrap());
        assert!(Head::default().fits(&file).unwrap());
    }
    #[test]
    fn rotated_names() {
        let is = |name: &str| is_rotated_name(Path::new("/x/app.log"), Path::new("/y").join(name).as_path());
        for yes in [
            "app.log.1",
            "app.log-20261123",
            "app-20261123.log",
            "app.1.log",
            "app.log_old",
        ] {
            assert!(is(yes), "{yes}");
        }
        for no in ["app.log", "apple.log", "app.logger", "app", "other.log.1", "app-1.txt"] {
            assert!(!is(no), "{no}");
        }
    }
}
