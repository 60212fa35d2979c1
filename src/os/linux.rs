//! Linux: clocks, boot id, processes.
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Time since boot, suspend included.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// Changes at every boot: what the kernel had not written back by then is gone.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

/// Whoever may do everything keeps its state where the system keeps it.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
