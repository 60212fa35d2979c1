//! The agent of a host: collects events, runs jobs, and is seen. The library behind the binary `agent`.
//!
//! ```text
//! main → cli → agent ─► actors::root ─► Collector ─Port─► FilterStage ─Port─► Sink, Sink, …      (one such row a pipeline)
//!                            │               │ mounts          │ runs            │ mounts
//!                            │            plugins::inputs   plugins::filters   plugins::outputs
//!                            └► HttpApi ─► web (pages)
//!
//! store::etcd or store::embedded ◄─► actors::cron: LeaseKeeper ─► JobWatcher     (on the control arbiter)
//!                                                                      │ JobsChanged, orders
//!                              schedule, history ◄─ actors::cron::CronRunner ─► executors (processes)      (a thread of its own)
//! ```
//!
//! * Everything that lives is a supervised actor (`actors`); actors talk only through the typed messages in `messages`.
//! * Everything that thinks is a plain function or trait without actix: `plugins`, `checkpoint`, `store`, `schedule`,
//!   `executors`, `history`, `signature`, `webhook`, `retry`, `settings`, `model`.
//! * A receipt travels with every batch, and the Collector keeps the batch until all have settled it: any stage may fall at any moment.
//! * Every way in is bounded (a `Port`), every wait for the outside has a limit, every restart a backoff.
//! * Time comes from `clock`, the system from `os`. Only `agent` ends the process, only `settings` reads files and environment for them.
//!
//! Who may know whom is written, and tested, in `tests/layers/main.rs`. Why things are as they are: `docs/decisions.md`.
#![warn(clippy::unwrap_used)] // `expect` with the reason; tests may

pub mod actors;
pub mod agent;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod deadletter;
pub mod executors;
pub mod history;
pub mod http_client;
pub mod identity;
pub mod log;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod os;
pub mod plugins;
pub mod retry;
pub mod schedule;
pub mod settings;
pub mod signature;
pub mod store;
pub mod web;
pub mod webhook;

/// As it is shown, registered and compared.
pub const VERSION: &str = concat!("v.", env!("CARGO_PKG_VERSION"));
