//! All that differs from system to system, in one place. Only Linux is built so far; another system adds a file beside
//! `linux.rs` with the same functions.
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;

#[cfg(not(target_os = "linux"))]
compile_error!("luffly-agent is built for Linux only so far; src/os says what another system has to offer");
