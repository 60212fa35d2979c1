//! Linux: clocks, machine, and (in the files below) processes, private files and locks, local sockets, watched directories, the way into the background.
mod background;
mod cgroup;
mod files;
mod leave;
mod proc_table;
mod process;
mod sockets;
mod spawn;
mod watches;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub use background::{Child, Forked, Outcome, Ready, into_background};
pub use cgroup::{Cgroup, remove_left_cgroups};
pub use files::{
    DirError, Holder, Lock, LockError, PRIVATE_DIR, PRIVATE_FILE, holder, private_dir, private_temp_dir, write_private,
};
pub use leave::leave_run;
pub use proc_table::{
    Exit, Proc, Reaper, become_subreaper, exit_fd, forget_child, peek_exit, process, processes, reap, start_variable,
    started_with,
};
pub use process::{
    Process, close_inherited, own_uid, prepare_signals, raise_open_files, redirect_stderr, release_code, set_nice,
};
pub use sockets::{LocalAddress, bind_private, keep_alive, unacknowledged};
pub use spawn::{Program, User, spawn};
pub use watches::{Hint, Watch, Watches, foreign_file_system};

/// Time since boot, suspend included.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// How long the calling thread has worked.
pub fn thread_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map(Duration::from)
        .unwrap_or_default()
}

/// Changes at every boot: what the kernel had not written back by then is gone.
pub fn boot_id() -> String {
    first_line("/proc/sys/kernel/random/boot_id")
}

/// Stays the same for an installed system; empty where there is none (many containers).
pub fn machine_id() -> String {
    let id = first_line("/etc/machine-id");
    match id.as_str() {
        "" => first_line("/var/lib/dbus/machine-id"),
        "uninitialized" => String::new(), // first boot of an image, before systemd has made one
        _ => id,
    }
}

/// The name that the system goes by, without domain if it was given none.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// The name that an open file has now; with ` (deleted)` behind it if it has none.
pub fn name_of(file: &std::fs::File) -> Option<std::path::PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

/// The first offset from `from` on that is not in a hole; none if only a hole follows.
pub fn next_data(file: &std::fs::File, from: u64) -> std::io::Result<Option<u64>> {
    use nix::{errno::Errno, unistd};
    match unistd::lseek(file, from as i64, unistd::Whence::SeekData) {
        Ok(offset) => Ok(Some(offset as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => Ok(Some(from)), // a file system that knows no holes
        Err(errno) => Err(errno.into()),
    }
}

/// A pipe or a socket: a poll says truly whether reading it would wait. (Of a file on a disk it always says no.)
pub fn is_stream(fd: &impl std::os::fd::AsFd) -> bool {
    use nix::sys::stat::{SFlag, fstat};
    let kind = fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    matches!(kind, Ok(SFlag::S_IFIFO | SFlag::S_IFSOCK))
}

/// How many files this process may have open.
pub fn most_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.lines().next().unwrap_or_default().trim().to_owned())
        .unwrap_or_default()
}

/// Whoever may do everything keeps its state where the system keeps it.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
/// What the kernel says about this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessStats {
    pub resident_bytes: u64,
    /// User and system.
    pub cpu_seconds: f64,
    pub open_fds: u64,
}
pub fn process_stats() -> std::io::Result<ProcessStats> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(ProcessStats {
        resident_bytes: pages * sysconf(nix::unistd::SysconfVar::PAGE_SIZE, 4096),
        cpu_seconds: seconds(usage.user_time()) + seconds(usage.system_time()),
        open_fds: std::fs::read_dir("/proc/self/fd")?.count() as u64 - 1, // the listing's own
    })
}

/// One thread of this process.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadStats {
    pub id: u32,
    /// At most 15 bytes: the kernel keeps no more.
    pub name: String,
    /// `R` runs, `S` sleeps, `D` waits for the disk, as in proc(5).
    pub state: char,
    pub user_seconds: f64,
    pub system_seconds: f64,
}
/// Every thread that still lived when it was looked at.
pub fn threads() -> std::io::Result<Vec<ThreadStats>> {
    let ticks = sysconf(nix::unistd::SysconfVar::CLK_TCK, 100) as f64;
    let stat = |text: &str| {
        // The name is in brackets and may itself hold brackets and spaces: what follows the last one is regular.
        let (head, tail) = text.rsplit_once(") ")?;
        let (id, name) = head.split_once(" (")?;
        let fields = tail.split(' ').collect::<Vec<_>>();
        let seconds = |i: usize| Some(fields.get(i)?.parse::<f64>().ok()? / ticks);
        Some(ThreadStats {
            id: id.parse().ok()?,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            user_seconds: seconds(11)?,
            system_seconds: seconds(12)?,
        })
    };
    let mut all = std::fs::read_dir("/proc/self/task")?
        .flatten()
        .filter_map(|entry| stat(&std::fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect::<Vec<_>>();
    all.sort_by_key(|thread| thread.id);
    Ok(all)
}

fn sysconf(what: nix::unistd::SysconfVar, otherwise: u64) -> u64 {
    nix::unistd::sysconf(what)
        .ok()
        .flatten()
        .map_or(otherwise, |n| n as u64)
}

/// Names the calling thread, for `top -H` and profiles; what is over 15 bytes is cut off.
pub fn name_thread(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name); // a name is a convenience
    }
}

/// A file that has no name on any disk and is gone when it is closed; others may open it as the path given back.
pub fn memory_file(name: &str) -> std::io::Result<(std::fs::File, std::path::PathBuf)> {
    use std::os::fd::AsRawFd;
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok((std::fs::File::from(fd), path.into()))
}

/// Who is at the other end of a unix socket: its user id when it connected.
pub fn peer_uid(socket: &impl std::os::fd::AsFd) -> std::io::Result<u32> {
    Ok(nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?.uid())
}

/// A connection whose peer takes nothing of what was sent for this long is ended by the kernel. Set on a listener it holds for
/// all connections that it accepts from then on.
pub fn give_up_unread_after(socket: &impl std::os::fd::AsFd, time: Duration) -> std::io::Result<()> {
    let ms = u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    Ok(nix::sys::socket::setsockopt(
        socket,
        nix::sys::socket::sockopt::TcpUserTimeout,
        &ms,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_and_threads_are_seen() {
        let before = process_stats().unwrap();
        let _one_more = std::fs::File::open("/proc/self/stat").unwrap();
        // Other tests open and close files meanwhile, so no exact difference.
        assert!(before.resident_bytes > 1 << 20 && before.open_fds >= 3, "{before:?}");

        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            name_thread("a b) c and too long for it");
            tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            ended.recv().unwrap_err();
        });
        let id = told.recv().unwrap();
        let seen = threads().unwrap();
        drop(end);
        thread.join().unwrap();
        let of_it = seen.iter().find(|t| t.id == id).unwrap();
        assert_eq!(of_it.name, "a b) c and too ");
    }
    #[test]
    fn memory_file_is_shared_by_its_path() {
        let (mut file, path) = memory_file("test").unwrap();
        std::fs::write(&path, "what another wrote").unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        assert_eq!(text, "what another wrote");
    }
    #[test]
    fn accepted_connections_take_the_listeners_limit() {
        use nix::sys::socket::{getsockopt, sockopt::TcpUserTimeout};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        give_up_unread_after(&listener, Duration::from_secs(7)).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(getsockopt(&accepted, TcpUserTimeout).unwrap(), 7000);
    }
    #[test]
    fn peer_of_a_socket_pair_is_ourselves() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&a).unwrap(), own_uid());
    }
}
