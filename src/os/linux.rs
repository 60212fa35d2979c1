//! Linux: clocks, machine, and (in the files below) processes, private files and locks, local sockets, the way into the background.
mod background;
mod files;
mod process;
mod sockets;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub use background::{Child, Forked, Outcome, Ready, into_background};
pub use files::{
    DirError, Holder, Lock, LockError, PRIVATE_DIR, PRIVATE_FILE, holder, private_dir, private_temp_dir, write_private,
};
pub use process::{
    Process, close_inherited, end_self_softly, own_uid, prepare_signals, raise_open_files, redirect_stderr,
    reopen_self, set_nice,
};
pub use sockets::{LocalAddress, bind_private};

/// Time since boot, suspend included.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
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

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .map(|text| text.lines().next().unwrap_or_default().trim().to_owned())
        .unwrap_or_default()
}

/// Whoever may do everything keeps its state where the system keeps it.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
