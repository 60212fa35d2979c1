//! Processes: this one's signals, limits and use of the machine; another one's life, safe from reused pids.
use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{self, SigHandler, SigSet, SigmaskHow, Signal},
    },
    unistd::{Pid, geteuid},
};

/// The user id that this process acts as.
pub fn own_uid() -> u32 {
    geteuid().as_raw()
}

/// How many threads run in this process.
pub(super) fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, |threads| threads.count())
}

/// Closes every descriptor but the three standard ones: a daemon that keeps its caller's pipe lets the caller wait for ever.
///
/// # Safety
/// Nothing in this process may own a descriptor past stderr: call it early, and after what was handed down (`-config <(…)`) is read.
pub unsafe fn close_inherited() {
    // SAFETY: takes numbers only; what they stand for is the caller's promise.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    // A kernel before 5.9. Listed first: the listing itself has a descriptor among them.
    let open = std::fs::read_dir("/proc/self/fd").map(|entries| {
        let number = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<i32>().ok();
        entries.filter_map(number).collect::<Vec<_>>()
    });
    for fd in open.unwrap_or_default() {
        if fd > 2 {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// Signals as the agent needs them, whatever it was started by: none blocked, a write past a file size limit is an error (EFBIG) and
/// not a death. SIGPIPE is ignored by the standard library already. Before the first thread, for threads inherit the mask.
pub fn prepare_signals() {
    let _ = signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // SAFETY: no handler function is installed, so nothing can run in signal context.
    let _ = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Lifts the soft limit of open files to the hard one, but to 65,536 at most (some systems give a million, and then whoever loops over
/// all of them is slow). Answers the limit that holds now.
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let wanted = hard.min(65_536).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

/// 0 to 19. Before the first thread: on Linux each thread has its own, inherited from its maker.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })?;
    Ok(())
}

/// What is written to stderr from now on, also by an abort, goes to `file`.
pub fn redirect_stderr(file: &File) -> io::Result<()> {
    Ok(nix::unistd::dup2_stderr(file)?)
}

/// Clock ticks between boot and the start of a process; none if it is gone.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in brackets and may hold anything: count from the last one. Field 3 comes next; 22 is wanted.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Its first thread has ended (a zombie), so the others are ending, too. What it holds, a lock too, is let go of only when the last of
/// them has.
pub(super) fn is_dying(holder: super::Holder) -> bool {
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid)).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    };
    let is_the_one = holder
        .started
        .is_none_or(|started| start_ticks(holder.pid) == Some(started));
    is_the_one && state() == Some('Z')
}

/// Another process, held so that a signal never reaches a stranger who got its pid later.
pub struct Process {
    pid: i32,
    started: Option<u64>,
    /// None on kernels and in sandboxes without pidfd: then the start time is compared before each use.
    fd: Option<OwnedFd>,
}

impl Process {
    /// None if there is no such process: never was, is gone, or lives where we cannot see it (another container).
    pub fn open(holder: super::Holder) -> Option<Self> {
        // SAFETY: the call takes numbers only; a descriptor that it returns is new and belongs to nobody else.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, holder.pid, 0);
            (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
        };
        let process = Self {
            pid: holder.pid,
            started: holder.started,
            fd,
        };
        // Looked at after the descriptor was opened: what fits now is what it holds.
        process.is_the_one().then_some(process)
    }
    fn is_the_one(&self) -> bool {
        match (start_ticks(self.pid), self.started) {
            (Some(found), Some(wanted)) => found == wanted,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    }

    /// False if it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let sent = match &self.fd {
            // SAFETY: numbers and a null pointer, which asks for the default siginfo.
            Some(fd) => Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    fd.as_raw_fd(),
                    signal as i32,
                    std::ptr::null::<libc::siginfo_t>(),
                    0,
                )
            })
            .map(drop),
            None if self.is_the_one() => signal::kill(Pid::from_raw(self.pid), signal),
            None => Err(Errno::ESRCH),
        };
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until it has ended, for at most `limit`; false if it lives on. Blocks the thread.
    #[expect(clippy::disallowed_methods, reason = "blocking is what it says")]
    pub fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match &self.fd {
                Some(fd) => {
                    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    let mut ended = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut ended, wait).is_ok_and(|n| n > 0) {
                        return true;
                    }
                }
                None if !self.is_the_one() => return true,
                None => std::thread::sleep(left.min(Duration::from_millis(20))),
            }
            if left.is_zero() {
                return false;
            }
        }
    }
}

/// Lets go of the pages of the program's own code, most of which only a start needs: they stay in the page cache, and what is used is
/// mapped again, page by page. An idle agent is some megabytes smaller for it.
pub fn release_code() {
    use nix::sys::mman::{MmapAdvise, madvise};
    let (Ok(maps), Ok(exe)) = (
        std::fs::read_to_string("/proc/self/maps"),
        std::fs::read_link("/proc/self/exe"),
    ) else {
        return;
    };
    let exe = exe.to_string_lossy();
    for line in maps
        .lines()
        .filter(|line| line.contains(" r-xp ") && line.ends_with(&*exe))
    {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let Some((Ok(from), Ok(to))) =
            range.map(|(from, to)| (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)))
        else {
            continue;
        };
        let Some(start) = std::ptr::NonNull::new(from as *mut std::ffi::c_void) else {
            continue;
        };
        // SAFETY: a read-only mapping of our own file, as the kernel has just described it, without pages of its own: nothing was
        // relocated or written there (relocated data lie in other mappings), so each page comes back from the file as it was.
        let _ = unsafe { madvise(start, to - from, MmapAdvise::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{super::Holder, *};

    #[test]
    fn a_reused_pid_is_not_taken_for_the_process() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let started = start_ticks(pid);
        assert!(started.is_some());
        let process = Process::open(Holder { pid, started }).unwrap();
        assert!(
            Process::open(Holder {
                pid,
                started: started.map(|t| t - 1)
            })
            .is_none(),
            "same pid, another start"
        );
        assert!(!process.wait(Duration::ZERO));
        assert!(process.signal(Signal::SIGTERM).unwrap());
        assert!(process.wait(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(!process.signal(Signal::SIGTERM).unwrap(), "gone");
        assert!(Process::open(Holder { pid, started }).is_none());
    }

    #[test]
    fn without_pidfd_the_start_time_is_compared() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let process = Process {
            pid,
            started: start_ticks(pid),
            fd: None,
        };
        assert!(!process.wait(Duration::from_millis(1)));
        assert!(process.signal(Signal::SIGKILL).unwrap());
        child.wait().unwrap();
        assert!(process.wait(Duration::ZERO));
        assert!(!process.signal(Signal::SIGKILL).unwrap());
    }
}
