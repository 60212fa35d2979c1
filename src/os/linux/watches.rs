//! inotify: what the kernel says about directories and files. Its queue is bounded by the kernel; what overflows is told as such.
use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::Arc,
};

use nix::{errno::Errno, libc};

/// Of a directory: what is done to the files in it, and to itself. Not what is done to files that have no name there any more.
const OF_DIRECTORY: u32 = libc::IN_MODIFY
    | libc::IN_ATTRIB
    | libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_EXCL_UNLINK
    | libc::IN_ONLYDIR;
const OF_FILE: u32 = libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_MOVE_SELF;
/// Bytes: some hundred events at once.
const BUFFER: usize = 16 * 1024;
/// `struct inotify_event` without its name.
const HEAD: usize = 16;

/// The number of a watched directory or file.
pub type Watch = i32;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'a> {
    /// The content of the file with this name in the directory, or of the watched file itself, has changed.
    Written(Watch, &'a OsStr),
    /// The name came or went, or its rights changed, in a watched directory; true: it is a directory itself.
    Named(Watch, &'a OsStr, bool),
    /// The watched thing itself was moved, or has other rights or fewer names now.
    Moved(Watch),
    /// It is not watched any more: deleted, unmounted, or told so.
    Over(Watch),
    /// More has happened than the kernel has kept.
    Overflow,
}

pub struct Watches {
    fd: Arc<OwnedFd>,
    buffer: Vec<u8>,
}
impl Watches {
    /// An error is EMFILE at the limit `fs.inotify.max_user_instances`, and where this process may open no more files.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; what it returns is checked.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd: Arc::new(fd),
            buffer: vec![0; BUFFER],
        })
    }
    /// Readable while there are hints.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }
    /// The same number for the same directory, however often. ENOSPC at the limit `fs.inotify.max_user_watches`.
    pub fn directory(&self, path: &Path) -> io::Result<Watch> {
        self.add(path.as_os_str(), OF_DIRECTORY)
    }
    /// Whatever names it has.
    pub fn file(&self, file: &File) -> io::Result<Watch> {
        self.add(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref(), OF_FILE)
    }
    fn add(&self, path: &OsStr, mask: u32) -> io::Result<Watch> {
        let path = CString::new(path.as_bytes())?;
        // SAFETY: the path is a C string that outlives the call.
        let watch = unsafe { libc::inotify_add_watch(self.fd.as_raw_fd(), path.as_ptr(), mask) };
        Ok(Errno::result(watch)?)
    }
    pub fn remove(&self, watch: Watch) {
        // SAFETY: two numbers; one that is watched no more is an error that says nothing new.
        unsafe { libc::inotify_rm_watch(self.fd.as_raw_fd(), watch) };
    }
    /// Tells what lies in the queue. True: there may be more.
    pub fn hear(&mut self, mut each: impl FnMut(Hint<'_>)) -> io::Result<bool> {
        let read = match nix::unistd::read(&*self.fd, &mut self.buffer) {
            Ok(read) => read,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let mut rest = &self.buffer[..read];
        while let Some((event, after)) = next(rest) {
            rest = after;
            hint(event).into_iter().for_each(&mut each);
        }
        Ok(read > 0)
    }
}

struct Event<'a> {
    watch: Watch,
    mask: u32,
    name: &'a OsStr,
}
fn next(bytes: &[u8]) -> Option<(Event<'_>, &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (watch, mask, len) = (word(0)? as i32, word(4)?, word(12)? as usize);
    let name = bytes.get(HEAD..HEAD + len)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default(); // padded with NULs
    let name = OsStr::from_bytes(name);
    Some((Event { watch, mask, name }, &bytes[HEAD + len..]))
}
fn hint(Event { watch, mask, name }: Event<'_>) -> Option<Hint<'_>> {
    let is = |bits: u32| mask & bits != 0;
    let named = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO | libc::IN_ATTRIB;
    match () {
        () if is(libc::IN_Q_OVERFLOW) => Some(Hint::Overflow),
        () if is(libc::IN_IGNORED) => Some(Hint::Over(watch)),
        () if is(libc::IN_MODIFY) => Some(Hint::Written(watch, name)),
        () if is(named) && !name.is_empty() => Some(Hint::Named(watch, name, is(libc::IN_ISDIR))),
        () if is(libc::IN_ATTRIB | libc::IN_MOVE_SELF | libc::IN_DELETE_SELF | libc::IN_UNMOUNT) => {
            Some(Hint::Moved(watch))
        }
        () => None,
    }
}

/// The name of the file system that a directory lies on, if others may write to it without a word to this kernel.
pub fn foreign_file_system(path: &Path) -> Option<&'static str> {
    let kind = nix::sys::statfs::statfs(path).ok()?.filesystem_type().0;
    let kinds: [(i64, &str); 10] = [
        (0x6969, "nfs"),
        (0x517b, "smb"),
        (0xff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x6573_5546, "fuse"),
        (0x0102_1997, "9p"),
        (0x00c3_6400, "ceph"),
        (0x5346_414f, "afs"),
        (0x0bd0_0bd0, "lustre"),
        (0x0116_1970, "gfs2"),
    ];
    let kind = kind as u32;
    kinds
        .iter()
        .find(|(number, _)| *number as u32 == kind)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use nix::poll::{PollFd, PollFlags};

    use super::*;

    fn heard(watches: &mut Watches) -> Vec<String> {
        let mut all = Vec::new();
        while watches.hear(|hint| all.push(format!("{hint:?}"))).unwrap() {}
        all
    }
    #[test]
    fn tells_what_is_done_to_files_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let mut watches = Watches::new().unwrap();
        let watch = watches.directory(dir.path()).unwrap();
        assert_eq!(watches.directory(dir.path()).unwrap(), watch);
        fs::write(dir.path().join("a"), "x").unwrap();
        assert_eq!(
            heard(&mut watches),
            [
                format!("Named({watch}, \"a\", false)"),
                format!("Written({watch}, \"a\")") // the kernel joins equal ones
            ]
        );
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(
            heard(&mut watches),
            [
                format!("Named({watch}, \"a\", false)"),
                format!("Named({watch}, \"b\", false)")
            ]
        );
        let file = File::open(dir.path().join("b")).unwrap();
        let own = watches.file(&file).unwrap();
        assert_ne!(own, watch);
        fs::remove_file(dir.path().join("b")).unwrap();
        assert_eq!(
            heard(&mut watches),
            [format!("Moved({own})"), format!("Named({watch}, \"b\", false)")]
        );
        drop(file);
        // A child that another test starts just now holds a copy of the descriptor until its exec.
        let news = watches.fd();
        let mut news = [PollFd::new(news.as_fd(), PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut news, 30_000_u16).unwrap(), 1);
        assert_eq!(heard(&mut watches), [format!("Over({own})")]);
        fs::remove_dir(dir.path()).unwrap();
        assert_eq!(
            heard(&mut watches),
            [format!("Moved({watch})"), format!("Over({watch})")]
        );
    }
    #[test]
    fn what_lies_on_this_machine_is_not_foreign() {
        assert_eq!(foreign_file_system(Path::new("/proc")), None);
        assert_eq!(foreign_file_system(Path::new("/no/such/place")), None);
    }
}
