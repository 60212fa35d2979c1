//! Stand-in of the daemon's branch.
pub mod root;
