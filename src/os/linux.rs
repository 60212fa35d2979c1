//! Linux: clocks, boot id, processes.
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

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
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
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

/// How many files this process may have open.
pub fn most_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}
