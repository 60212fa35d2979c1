//! Jobs: LeaseKeeper holds this agent's address in the store, JobWatcher follows the jobs there and answers. Both live on the control
//! arbiter, which keeps the connection, and nothing slow does.
pub mod follow;
pub mod notifier;
pub mod registration;
