//! Jobs: LeaseKeeper holds this agent's address in the store, JobWatcher follows the jobs there and answers. Both live on the control
//! arbiter, which keeps the connection, and nothing slow does. CronRunner has a thread of its own and runs them.
pub mod agenda;
pub mod claims;
pub mod commands;
pub mod cron_runner;
pub mod follow;
pub mod gate;
pub mod job_watcher;
pub mod lease_keeper;
pub mod notifier;
pub mod publish;
pub mod records;
pub mod registration;
