//! figment layers → Raw → checked Settings. The only reader of settings files and environment.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{model::PluginName, plugins::Table};

/// Everything the agent was told, checked: what is in here can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub agent: Agent,
    pub http: Http,
    pub log: Log,
    pub limits: Limits,
    /// Events that may wait between an input and its filters.
    pub max_read_channel_size: u32,
    /// Events that may wait at one output.
    pub max_write_channel_size: u32,
    /// The most events in one request to an output that sends requests.
    pub max_write_bulk_size: u32,
    pub pipelines: Vec<Pipeline>,
    /// Read what is there, drain, leave (`--once`).
    pub once: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    pub id: String,
    pub group: String,
    pub ip: Ip,
    pub data_dir: PathBuf,
    /// Bare `agent` on stdin alone: a temporary directory of its own, nothing to come back to.
    pub private_data_dir: bool,
    /// Default: `<data_dir>/agent.pid`.
    pub pid_file: PathBuf,
    /// How long a stop may take.
    pub drain: Duration,
}
/// Which address this host goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ip {
    Auto,
    Fixed(std::net::IpAddr),
    Interface(String),
    /// The first address of this host in the network, `10.1.0.0/16`.
    Network(std::net::IpAddr, u8),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// None: `off`.
    pub address: Option<SocketAddr>,
    /// Somebody asked for that very address: if it is in use, that is an error and not a warning.
    pub explicit: bool,
    pub insecure_remote: bool,
    pub tls: Option<Tls>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub level: slog::Level,
    pub format: LogFormat,
    /// None: stderr; in the background `<data_dir>/logs/agent.log`.
    pub file: Option<PathBuf>,
    pub max_size: u64,
    pub keep: u32,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Terminal where stderr is one, JSON elsewhere.
    Auto,
    Terminal,
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of all events in flight.
    pub memory: u64,
    /// 0 to 19; none: as started.
    pub nice: Option<i32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    pub name: String,
    pub input: Plugin,
    /// Bytes per second; none: as fast as it goes. Option of every input.
    pub max_rate: Option<u64>,
    pub filters: Vec<Plugin>,
    pub outputs: Vec<Output>,
}
/// A plugin that the catalog knows, with options that it accepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// Always with its tag.
    pub name: PluginName,
    pub table: Table,
}
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub plugin: Plugin,
    pub when_full: WhenFull,
    /// Used while the breaker is open; default: `when_full`.
    pub degrade: WhenFull,
    pub retry: Retry,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    Block,
    DropNewest,
    DropOldest,
}
/// `retry = { first = "2s", most = "30s" }`: doubling, full jitter, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    pub first: Duration,
    pub most: Duration,
}
