//! What actors are made with.
pub mod errand;
pub mod later;
pub mod port;
pub mod pulse;
pub mod supervise;

pub use errand::Errand;
pub use later::Later;
pub use port::{Carried, Gone, Port, Room, Weight};
pub use pulse::{Pulse, SharedPulse};
pub use supervise::{Ended, Farewell, Restarts, Stopping, supervise};
