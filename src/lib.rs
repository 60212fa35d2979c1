//! The agent of a host: collects events, and says that it is alive. (The map; see each module's first lines.)
pub mod actors;
pub mod agent;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod identity;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod os;
pub mod plugins;
pub mod settings;

/// As it is shown, registered and compared.
pub const VERSION: &str = concat!("v.", env!("CARGO_PKG_VERSION"));
