//! What only the owner may see, and what only one process may use: private directories and files, locks.
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::IntoRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, fcntl};

use super::process;

/// Every file of the agent's state: its owner reads and writes, nobody else does either.
pub const PRIVATE_FILE: u32 = 0o600;
/// Every directory of the agent's state.
pub const PRIVATE_DIR: u32 = 0o700;

/// Why a directory cannot hold what is private.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// Another directory is needed; nothing that the system may still mend.
    #[error("{0}")]
    Unfit(String),
    #[error("could not make {path} private: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// Makes `path` (with its parents) a directory that only its owner can enter. One that is there is taken if it is ours: its mode is
/// narrowed if it is empty or `is_ours` says that the agent made it, else it must be private already, so that a mistyped `/tmp` or
/// home directory is never closed to its other users. A directory of root that others cannot write to is taken as it is (a mounted
/// volume). Answers what to warn about.
pub fn private_dir(path: &Path, is_ours: impl FnOnce(&Path) -> bool) -> Result<Option<String>, DirError> {
    let io = |source| DirError::Io {
        path: path.to_owned(),
        source,
    };
    let shown = path.display();
    let found = match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            return Err(DirError::Unfit(format!("{shown} is not a directory")));
        }
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                // Parents are ordinary directories, as `mkdir -p` makes them.
                std::fs::create_dir_all(parent).map_err(io)?;
            }
            match DirBuilder::new().mode(PRIVATE_DIR).create(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io(e)),
                _ => std::fs::metadata(path).map_err(io)?,
            }
        }
        Err(e) => return Err(io(e)),
    };
    let mode = found.mode() & 0o7777;
    if found.uid() == process::own_uid() {
        if mode & 0o077 == 0 {
            return Ok(None);
        }
        if !is_ours(path) && !is_empty(path).map_err(io)? {
            return Err(DirError::Unfit(format!(
                "{shown} holds other files and is open to other users (mode {mode:o}); give the agent a directory of its own"
            )));
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(PRIVATE_DIR)).map_err(io)?;
        return Ok(None);
    }
    if found.uid() == 0 && mode & 0o002 == 0 {
        return Ok((mode & 0o070 != 0).then(|| format!("{shown} belongs to root and its group may enter it")));
    }
    Err(DirError::Unfit(format!(
        "{shown} belongs to user {}, and the agent runs as user {}",
        found.uid(),
        process::own_uid()
    )))
}

fn is_empty(path: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(path)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A new private directory under the system's place for temporary files.
pub fn private_temp_dir() -> io::Result<PathBuf> {
    let template = std::env::temp_dir().join("luffly-agent-XXXXXX");
    Ok(nix::unistd::mkdtemp(&template)?)
}

/// Replaces a private file in one step: whoever reads it sees the old text or the new one. On disk when this returns.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE_FILE)
        .open(&fresh)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&fresh, path)
}

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat: with it a reused pid is not taken for the holder. None where only the
    /// pid is known.
    pub started: Option<u64>,
}
impl Holder {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            pid: words.next()?.parse().ok().filter(|pid| *pid > 0)?,
            started: words.next().and_then(|ticks| ticks.parse().ok()),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it; which one, where it has said so.
    #[error("another process holds it{}", .0.map(|h| format!(", pid {}", h.pid)).unwrap_or_default())]
    Held(Option<Holder>),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An exclusive lock on a file that names its holder. It ends with this value, or with the process however that ends; what the file
/// then still says is stale. (Open-file-description locks: they work over NFS, a look at them takes nothing, and another close of the
/// same file in this process does not lose them.)
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// For our own eyes: the file holds pid and start, so that a reused pid is not taken for the holder.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let pid = std::process::id();
        let name = match process::start_ticks(pid as i32) {
            Some(ticks) => format!("{pid} {ticks}\n"),
            None => format!("{pid}\n"),
        };
        Self::take_as(path, PRIVATE_FILE, &name)
    }
    /// A pid file as everybody reads them: the pid alone.
    pub fn take_pid_file(path: &Path) -> Result<Self, LockError> {
        Self::take_as(path, 0o644, &format!("{}\n", std::process::id()))
    }

    #[expect(clippy::disallowed_methods, reason = "at a start, before anything else lives")]
    fn take_as(path: &Path, mode: u32, name: &str) -> Result<Self, LockError> {
        let until = Instant::now() + DYING_TAKES;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                // Pid files may stand where others can write: a link there must not lead us to somebody's file.
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)?;
            if let Err(errno) = fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                let holder = match errno {
                    nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES => read_holder(&mut file)?,
                    other => return Err(LockError::Io(other.into())),
                };
                if holder.is_some_and(process::is_dying) && Instant::now() < until {
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
                return Err(LockError::Held(holder));
            }
            // Its last holder may have removed it between our open and our lock: then we hold a file that nobody else will find.
            let (ours, there) = (file.metadata()?, std::fs::metadata(path));
            if !there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                continue;
            }
            file.set_len(0)?;
            file.write_all(name.as_bytes())?;
            return Ok(Self {
                file,
                path: path.to_owned(),
            });
        }
    }

    /// Held until the process is gone.
    pub fn hold_to_the_end(self) {
        let _ = self.file.into_raw_fd();
    }
    /// Removes the file and lets go. (A file that has been replaced by somebody else's is left alone.)
    pub fn remove(self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, std::fs::metadata(&self.path)?);
        if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) {
            std::fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

/// A process that was killed is dead to whoever looks, and holds its locks until its last thread has ended: that is waited for.
const DYING_TAKES: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Who holds the lock on this file at present; none if nobody does, whatever the file says. Takes nothing.
#[expect(clippy::disallowed_methods, reason = "in a command, never on an arbiter")]
pub fn holder(path: &Path) -> io::Result<Option<Holder>> {
    let until = Instant::now() + DYING_TAKES;
    loop {
        match holder_now(path)? {
            Some(holder) if process::is_dying(holder) && Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
            other => return Ok(other),
        }
    }
}
fn holder_now(path: &Path) -> io::Result<Option<Holder>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut probe = whole_file();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    if probe.l_type == nix::libc::F_UNLCK as i16 {
        return Ok(None);
    }
    match read_holder(&mut file)? {
        Some(holder) => Ok(Some(holder)),
        None => Err(io::Error::other(format!(
            "{} is locked by a process that does not name itself",
            path.display()
        ))),
    }
}

/// The holder writes its name directly after it took the lock: for a moment the file is empty.
#[expect(
    clippy::disallowed_methods,
    reason = "at a start that is refused or in a command, never on an arbiter"
)]
fn read_holder(file: &mut File) -> io::Result<Option<Holder>> {
    let until = Instant::now() + Duration::from_millis(200);
    loop {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(64).read_to_string(&mut text)?;
        // Only a whole line counts, else a pid could be read in half.
        let found = text.strip_suffix('\n').and_then(Holder::parse);
        if found.is_some() || Instant::now() >= until {
            return Ok(found);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn whole_file() -> nix::libc::flock {
    nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0, // to the end, however far that is
        l_pid: 0, // must be 0 for this kind of lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_second_lock_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);
        let lock = Lock::take(&path).unwrap();
        let me = std::process::id() as i32;
        assert!(matches!(Lock::take(&path), Err(LockError::Held(Some(h))) if h.pid == me));
        let seen = holder(&path).unwrap().unwrap();
        assert_eq!((seen.pid, seen.started), (me, process::start_ticks(me)));
        assert!(seen.started.is_some());
        drop(lock);
        assert_eq!(holder(&path).unwrap(), None, "the file stays, and says nothing");
        assert!(path.exists());
        Lock::take_pid_file(&path).unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_name_longer_than_ours_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pid");
        std::fs::write(&path, "4194303 99999999999999\nrubbish\n").unwrap();
        let _lock = Lock::take_pid_file(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
    }

    #[test]
    fn removing_a_lock_leaves_the_file_of_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pid");
        let lock = Lock::take_pid_file(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _heir = Lock::take_pid_file(&path).unwrap();
        lock.remove().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn directories_are_made_private_but_never_taken_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        assert_eq!(private_dir(&new, |_| false).unwrap(), None);
        assert_eq!(mode(&new), 0o700);

        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        std::fs::set_permissions(&empty, std::fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&empty, |_| false).unwrap();
        assert_eq!(mode(&empty), 0o700, "an empty one is taken");

        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("letter"), "").unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = private_dir(&home, |_| false).unwrap_err().to_string();
        assert!(error.contains("holds other files"), "{error}");
        assert_eq!(mode(&home), 0o755);
        private_dir(&home, |_| true).unwrap();
        assert_eq!(mode(&home), 0o700, "one that the agent made is narrowed again");

        let file = home.join("letter");
        assert!(
            private_dir(&file, |_| true)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
    }

    #[test]
    fn a_private_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write_private(&path, b"a long first text").unwrap();
        write_private(&path, b"short").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn closing_another_descriptor_of_the_file_does_not_lose_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let _lock = Lock::take(&path).unwrap();
        drop(File::open(&path).unwrap()); // a classic fcntl lock would be lost here
        assert!(holder(&path).unwrap().is_some());
    }
}
