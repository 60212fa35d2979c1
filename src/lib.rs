//! The agent of a host: collects events, and says that it is alive. (The map; see each module's first lines.)
#![warn(clippy::unwrap_used)] // `expect` with the reason; tests may
pub mod actors;
pub mod agent;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod deadletter;
pub mod identity;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod os;
pub mod plugins;
pub mod retry;
pub mod settings;
pub mod web;

/// As it is shown, registered and compared.
pub const VERSION: &str = concat!("v.", env!("CARGO_PKG_VERSION"));
