//! What the agent is told, checked: layers (`layers`) → tables (`check`, `pipelines`) → `Settings`, or all that is wrong with it, with
//! the place of each (`finding`). The only reader of settings files and of the environment.
mod check;
mod difference;
mod etcd;
mod finding;
mod flags;
mod jobs;
mod layers;
mod pipelines;
mod show;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

pub use check::level;
pub use difference::{Changed, Difference, Heirs, difference, heirs};
pub use etcd::{Etcd, EtcdTls, OnPartition};
pub use finding::{At, Finding, Refused, unknown};
pub use flags::{Options, Place};
pub use jobs::Jobs;
pub use show::level_word;

use self::{
    check::Section,
    finding::Findings,
    layers::{Environment, Layers},
};
use crate::{model::PluginName, plugins::Table};

/// Read by `start` and `check` where no other is named, if it is there.
pub const CONFIG: &str = "/etc/luffly/agent.toml";

/// What the settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Bare `agent`: has a terminal, leaves at the end of its input.
    Run,
    /// The daemon; in the background it has neither stdin nor stdout.
    Start { foreground: bool },
    /// Only to be looked at.
    Check,
    /// Only the filters are used, on a sample.
    Try,
}

/// Reads and checks all layers; later wins: built-in defaults < file < environment < `-f` < other flags.
pub fn load(
    options: &Options,
    env: impl Iterator<Item = (OsString, OsString)>,
    purpose: Purpose,
) -> Result<Settings, Refused> {
    let (findings, env) = (Findings::default(), Environment::read(env));
    let _ = from_the_start(Path::new(".")); // remembers where that is
    let config = match purpose {
        Purpose::Run => options.place.config.clone(),
        // What is asked for on the command line is tried by itself.
        Purpose::Try if !(options.filter.is_empty() && options.inline.is_empty() && options.set.is_empty()) => {
            options.place.config.clone()
        }
        _ => options.place.config.clone().or_else(usual_config),
    };
    let mut layers = Layers::default();
    if let Some(path) = &config {
        layers::merge_file(path, &mut layers, &findings);
    }
    env.merge_into(&mut layers, &findings);
    layers::merge_flags(options, &mut layers, &findings);
    if !findings.is_empty() {
        // A layer could not be read: what would be said of the rest without it may be wrong.
        return Err(findings.refused());
    }

    let mut top = Section::open(&findings, String::new(), layers.tree());
    let mut agent = check::agent(&mut top, &env);
    let http = check::http(&mut top);
    let etcd = etcd::etcd(&mut top);
    let jobs = jobs::jobs(&mut top);
    let log = check::log(&mut top);
    let (limits, [max_read_channel_size, max_write_channel_size, max_write_bulk_size]) = check::limits(&mut top);
    let pipelines = pipelines::pipelines(&mut top, options, purpose);
    top.done();

    let given = !agent.private_data_dir;
    agent.private_data_dir &= match purpose {
        Purpose::Run => pipelines.iter().all(|p| p.input.name.name == "stdin"),
        Purpose::Try => true, // it has none
        _ => false,
    };
    if agent.private_data_dir {
        agent.data_dir = PathBuf::new();
    } else if agent.data_dir.as_os_str().is_empty() && !given {
        findings.add(&At::Nowhere, "agent.data_dir", check::NO_DATA_DIR);
    } else if agent.pid_file.as_os_str().is_empty() {
        agent.pid_file = agent.data_dir.join(PID_FILE);
    }
    if !findings.is_empty() {
        return Err(findings.refused());
    }
    Ok(Settings {
        agent,
        http,
        etcd,
        jobs,
        log,
        limits,
        max_read_channel_size,
        max_write_channel_size,
        max_write_bulk_size,
        pipelines,
        once: options.once,
        require_address: false,
        config,
    })
}

/// Where a running agent is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    pub data_dir: PathBuf,
    pub pid_file: PathBuf,
}
/// For the commands that speak to a running agent: they need two settings only, and work whatever is wrong with the others. With
/// `--data-dir` and without `-config` no file is read.
pub fn locate(place: &Place, env: impl Iterator<Item = (OsString, OsString)>) -> Result<Whereabouts, Refused> {
    let (findings, env) = (Findings::default(), Environment::read(env));
    let mut layers = Layers::default();
    let usual = || if place.data_dir.is_none() { usual_config() } else { None };
    if let Some(path) = place.config.clone().or_else(usual) {
        layers::merge_file(&path, &mut layers, &findings);
    }
    env.merge_into(&mut layers, &findings);
    layers::merge_values(place.values(), &mut layers);
    let mut agent = Section::open(&findings, String::new(), layers.tree()).section("agent");
    let data_dir = check::data_dir(&mut agent, &env);
    let pid_file = check::pid_file(&mut agent);
    if data_dir.is_none() && findings.is_empty() {
        findings.add(&At::Nowhere, "agent.data_dir", check::NO_DATA_DIR);
    }
    match data_dir {
        Some(data_dir) if findings.is_empty() => Ok(Whereabouts {
            pid_file: pid_file.unwrap_or_else(|| data_dir.join(PID_FILE)),
            data_dir,
        }),
        _ => Err(findings.refused()),
    }
}

/// For the commands that go through etcd: they need two tables only, and work whatever is wrong with the others.
pub fn reach(options: &Options, env: impl Iterator<Item = (OsString, OsString)>) -> Result<(Etcd, Jobs), Refused> {
    let (findings, env) = (Findings::default(), Environment::read(env));
    let _ = from_the_start(Path::new(".")); // remembers where that is
    let mut layers = Layers::default();
    if let Some(path) = options.place.config.clone().or_else(usual_config) {
        layers::merge_file(&path, &mut layers, &findings);
    }
    env.merge_into(&mut layers, &findings);
    layers::merge_flags(options, &mut layers, &findings);
    if !findings.is_empty() {
        return Err(findings.refused());
    }
    let mut top = Section::open(&findings, String::new(), layers.tree());
    let found = (etcd::etcd(&mut top), jobs::jobs(&mut top));
    match findings.is_empty() {
        true => Ok(found),
        false => Err(findings.refused()),
    }
}

const PID_FILE: &str = "agent.pid";

/// An absolute path, against where the agent was started: the daemon leaves that place, and may read its settings again.
fn from_the_start(path: &Path) -> std::io::Result<PathBuf> {
    static STARTED_IN: OnceLock<PathBuf> = OnceLock::new();
    if path.is_absolute() {
        return std::path::absolute(path);
    }
    let started_in = match STARTED_IN.get() {
        Some(dir) => dir,
        None => {
            let dir = std::env::current_dir()?;
            STARTED_IN.get_or_init(|| dir)
        }
    };
    std::path::absolute(started_in.join(path))
}

/// Reads all layers again, as at the start.
pub type Reread = Arc<dyn Fn() -> Result<Settings, Refused> + Send + Sync>;

fn usual_config() -> Option<PathBuf> {
    let path = Path::new(CONFIG);
    path.try_exists().unwrap_or(true).then(|| path.to_owned()) // it may be there and closed to us: that is an error to be shown
}

/// Everything the agent was told, checked: what is in here can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub agent: Agent,
    pub http: Http,
    pub etcd: Etcd,
    pub jobs: Jobs,
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
    /// Do not start while another agent holds our address in etcd (`start --require-address`).
    pub require_address: bool,
    /// The file that was read.
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    pub id: String,
    pub group: String,
    /// Not the default one: only then does it take jobs of its group.
    pub group_given: bool,
    pub ip: Ip,
    /// Absolute; empty if private, until `move_to`.
    pub data_dir: PathBuf,
    /// Bare `agent` on stdin alone keeps nothing: whoever runs it makes a temporary directory, tells `move_to`, and removes it.
    pub private_data_dir: bool,
    /// Default: `<data_dir>/agent.pid`.
    pub pid_file: PathBuf,
    /// How long a stop may take.
    pub drain: Duration,
}
impl Agent {
    /// Into the private data dir.
    pub fn move_to(&mut self, data_dir: PathBuf) {
        if self.pid_file.as_os_str().is_empty() {
            self.pid_file = data_dir.join(PID_FILE);
        }
        self.data_dir = data_dir;
    }
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
