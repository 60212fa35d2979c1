//! The agent of a host: collects events, and says that it is alive. (The map; see each module's first lines.)
pub mod checkpoint;
pub mod clock;
pub mod deadletter;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod os;
pub mod plugins;
pub mod settings;
