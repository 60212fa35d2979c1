//! The life of the process: from checked settings to the exit code. In this order, so that each step may rely on those before it:
//! background → signals, limits → data directory (private, locked, versioned, pid file) → log → identity → listeners → signals heard →
//! actors → and back. The process ends in this file and nowhere else.
mod data_dir;
mod signals;

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{IsTerminal, Write},
    net::TcpListener,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use slog::{crit, error, info, warn};

use data_dir::DataDir;
pub use data_dir::{LastExit, STATE_VERSION, can_read, last_exit, log_file, running, socket, state_version};

use crate::{
    VERSION,
    actors::root::{self, DrainLimit, Ended, Start},
    clock::{self, SharedClock},
    identity,
    log::{self, Log, Target},
    metrics::{Metrics, SharedMetrics},
    model::Host,
    os::{self, Forked, Outcome, Ready},
    settings::{self, Http, Reread, Settings},
};

/// How long the parent waits for its child in the background: local things only, so a second is long already.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long the last words may take, if a disk or a pipe hangs.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `agent`: ends with its input.
    Bare,
    /// `agent start --foreground`
    Foreground,
    /// `agent start`
    Background,
}

/// Why there is no agent.
#[derive(Debug)]
pub struct Failure {
    /// 1, or 78 if the settings ask for what cannot be.
    pub code: u8,
    pub text: String,
}
impl Failure {
    fn plain(text: impl Display) -> Self {
        Self {
            code: 1,
            text: text.to_string(),
        }
    }
    fn config(text: impl Display) -> Self {
        Self {
            code: 78,
            text: text.to_string(),
        }
    }
}

/// Lives the agent's life. In the foreground it ends with it; in the background it answers the parent's exit code, once the child is
/// ready or has failed. `reread`: for a reload.
pub fn run(settings: Settings, mode: Mode, reread: Reread) -> u8 {
    if mode != Mode::Background {
        live(settings, mode, reread, None)
    }
    match os::into_background() {
        Ok(Forked::Child(ready)) => live(settings, mode, reread, Some(ready)),
        Ok(Forked::Parent(child)) => {
            let pid = child.pid();
            let outcome = child.outcome(READY_WITHIN);
            answer(pid, outcome, &log_path(&settings))
        }
        Err(e) => {
            complain(format_args!("could not go into the background: {e}"));
            1
        }
    }
}

/// What the parent says of its child.
fn answer(pid: i32, outcome: Outcome, log: &Path) -> u8 {
    match outcome {
        Outcome::Ready(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            0
        }
        Outcome::Failed { code, text } => {
            complain(text);
            code
        }
        Outcome::Died(how) => {
            complain(format_args!("the agent (pid {pid}) ended without a word: {how}"));
            let text = std::fs::read(log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines = text.lines().collect::<Vec<_>>();
            for line in &lines[lines.len().saturating_sub(10)..] {
                let _ = writeln!(std::io::stderr(), "  {line}");
            }
            1
        }
        Outcome::Late => {
            complain(format_args!(
                "the agent (pid {pid}) was not ready after {READY_WITHIN:?} and was ended; see {}",
                log.display()
            ));
            1
        }
    }
}

/// println! and its kin panic where nobody reads any more.
fn complain(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "agent: {text}");
}

fn log_path(settings: &Settings) -> PathBuf {
    let own = || data_dir::log_file(&settings.agent.data_dir);
    settings.log.file.clone().unwrap_or_else(own)
}

fn live(mut settings: Settings, mode: Mode, reread: Reread, ready: Option<Ready>) -> ! {
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup(); // from the environment
    os::prepare_signals();
    tune_allocator();
    let (metrics, clock) = (Metrics::new(), clock::system());
    let opened = open_state(&mut settings).and_then(|(data, warning)| {
        let log = open_log(&settings.log, mode, &data, clock.clone(), &metrics)?;
        Ok((data, warning, Arc::new(log)))
    });
    let (data, warning, log) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            match ready {
                Some(ready) => ready.failed(failure.code, &failure.text),
                None => complain(&failure.text),
            }
            end_process(failure.code)
        }
    };
    log_panics(&log);
    if let Some(warning) = warning {
        warn!(log.logger, "{}", warning);
    }
    let leaving = Arc::new(Leaving {
        log: log.clone(),
        on_stderr: settings.log.file.is_none(),
        clock: clock.clone(),
        data: Mutex::new(None),
        parent: Mutex::new(ready),
        was_ready: AtomicBool::new(false),
        begun: AtomicBool::new(false),
    });
    let ended = match prepare(settings, mode, reread, data, &leaving, metrics, clock) {
        Err(failure) => Ended {
            code: failure.code,
            why: failure.text,
            counts: Vec::new(),
        },
        Ok(start) => run_actors(start, mode, &leaving),
    };
    leaving.leave(ended)
}

fn open_state(settings: &mut Settings) -> Result<(DataDir, Option<String>), Failure> {
    if !settings.agent.private_data_dir {
        return DataDir::open(&settings.agent);
    }
    let data = DataDir::passing()?;
    settings.agent.move_to(data.path().to_owned());
    Ok((data, None))
}

fn open_log(
    settings: &settings::Log,
    mode: Mode,
    data: &DataDir,
    clock: SharedClock,
    metrics: &Metrics,
) -> Result<Log, Failure> {
    let background = mode == Mode::Background;
    let target = match &settings.file {
        None if !background => Target::Stderr,
        file => Target::File {
            path: match file {
                Some(path) => path.clone(),
                None => {
                    let path = data_dir::log_file(data.path());
                    if let Some(dir) = path.parent() {
                        os::private_dir(dir, |_| true).map_err(Failure::plain)?;
                    }
                    path
                }
            },
            take_stderr: background,
        },
    };
    log::open(settings, target, clock, metrics.log_dropped.clone()).map_err(Failure::plain)
}

/// All that is local and can fail, before the first actor.
fn prepare(
    settings: Settings,
    mode: Mode,
    reread: Reread,
    data: DataDir,
    leaving: &Arc<Leaving>,
    metrics: SharedMetrics,
    clock: SharedClock,
) -> Result<Start, Failure> {
    let log = &leaving.log;
    let dir = data.path().to_owned();
    let socket = data.listen();
    *leaving.data() = Some(data); // from here on it is closed by whoever leaves
    let socket = socket?;
    info!(log.logger, "starting"; "version" => VERSION, "pid" => std::process::id(), "data_dir" => %dir.display());
    let open_files = os::raise_open_files();
    if open_files < 1024 {
        warn!(log.logger, "few files may be open at once"; "limit" => open_files);
    }
    if let Some(nice) = settings.limits.nice
        && let Err(e) = os::set_nice(nice)
    {
        warn!(log.logger, "could not be nicer"; "nice" => nice, "error" => %e);
    }
    let keeps_state = !settings.agent.private_data_dir;
    let found = identity::find(&settings.agent, &settings.etcd.endpoints, keeps_state.then_some(&dir))
        .map_err(Failure::plain)?;
    for warning in found.warnings {
        warn!(log.logger, "{}", warning);
    }
    let token = identity::token(&dir.join("admin.token")).map_err(Failure::plain)?;
    let http = listen_http(&settings.http, log)?;
    let (to_root, signals) = tokio::sync::mpsc::channel(4);
    let (orders, asked) = tokio::sync::mpsc::channel(4);
    let drain = DrainLimit::new(settings.agent.drain);
    signals::listen(to_root, asked, log.clone(), drain.clone(), leaving.clone())
        .map_err(|e| Failure::plain(format!("could not listen for signals: {e}")))?;
    Ok(Start {
        settings,
        reread,
        drain,
        host: Arc::new(found.host),
        log: log.logger.clone(),
        level: log.level.clone(),
        recent: log.recent.clone(),
        metrics,
        clock,
        boot_id: os::boot_id(),
        socket: Some(socket),
        http,
        signals,
        orders,
        token,
        background: mode == Mode::Background,
    })
}

/// A default address that cannot be had is a warning: two agents on a host must not need settings for that.
fn listen_http(http: &Http, log: &Log) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = http.address else { return Ok(None) };
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if http.explicit => Err(Failure::plain(format!(
            "could not listen on http address {address}: {e}"
        ))),
        Err(e) => {
            warn!(log.logger, "no http, its default address cannot be had"; "address" => %address, "error" => %e);
            Ok(None)
        }
    }
}

fn run_actors(start: Start, mode: Mode, leaving: &Arc<Leaving>) -> Ended {
    let http = start.http.as_ref().and_then(|l| l.local_addr().ok());
    let http = http.map_or("off".to_owned(), |address| address.to_string());
    let (host, drain) = (start.host.clone(), start.settings.agent.drain);
    let waiting = leaving.clone();
    let ready = move |outcome: Result<(), String>| match outcome {
        Ok(()) => {
            info!(waiting.log.logger, "ready"; "http" => &http, "ip" => %host.ip);
            if mode == Mode::Bare && std::io::stderr().is_terminal() {
                banner(&host, &http, drain);
            }
            waiting.ready(&format!("agent started; pid={} http={http}", std::process::id()));
        }
        Err(why) => error!(waiting.log.logger, "could not start"; "error" => why),
    };
    // A panic on the main thread outside all actors: nothing supervises that, but the pid file must go and somebody must hear.
    let lived = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let system = actix::System::new();
        let leaving = leaving.clone();
        system.block_on(async move {
            // Left from in here: dropping the runtime would wait for blocking calls, an idle terminal as stdin for ever.
            let ended = root::run(start, ready).await;
            leaving.leave(ended)
        })
    }));
    match lived {
        Ok(never) => never,
        Err(_) => Ended {
            code: 1,
            why: "the agent's root panicked; its log says where".to_owned(),
            counts: Vec::new(),
        },
    }
}

fn banner(host: &Host, http: &str, drain: Duration) {
    let _ = writeln!(
        std::io::stderr(),
        "luffly-agent {VERSION}  {}@{} on {} ({})\nhttp {http}  ctrl-c drains for at most {drain:?} and stops, twice leaves at once",
        host.agent_id,
        host.group,
        host.hostname,
        host.ip
    );
}

fn log_panics(log: &Arc<Log>) {
    let log = log.logger.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let what = panic.payload_as_str().unwrap_or("not a text");
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        crit!(log, "panic"; "what" => what, "at" => at, "thread" => thread.name().unwrap_or("-"),
            "trace" => %std::backtrace::Backtrace::capture());
    }));
}

/// jemalloc gives memory back by a thread of its own; only now, for there must be no thread before the fork.
fn tune_allocator() {
    #[cfg(feature = "jemalloc")]
    // SAFETY: the name ends in a zero and stands for a bool. Where jemalloc is not the allocator nothing listens.
    let _ = unsafe { tikv_jemalloc_ctl::raw::write(b"background_thread\0", true) };
}

/// What is to be put in order before the process ends, by whoever ends it: the end of all actors, a second signal, the deadline.
pub(crate) struct Leaving {
    log: Arc<Log>,
    on_stderr: bool,
    clock: SharedClock,
    data: Mutex<Option<DataDir>>,
    /// Who waits to hear that we are ready.
    parent: Mutex<Option<Ready>>,
    was_ready: AtomicBool,
    begun: AtomicBool,
}
impl Leaving {
    fn data(&self) -> std::sync::MutexGuard<'_, Option<DataDir>> {
        self.data.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    fn parent(&self) -> Option<Ready> {
        self.parent
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take()
    }
    fn ready(&self, text: &str) {
        self.was_ready.store(true, SeqCst);
        if let Some(parent) = self.parent() {
            parent.ok(text);
        }
    }

    /// The end. Nothing in here waits for long.
    pub(crate) fn leave(&self, ended: Ended) -> ! {
        if self.begun.swap(true, SeqCst) {
            // Another thread is at it and will take us along.
            loop {
                std::thread::park();
            }
        }
        let Ended { code, why, counts } = ended;
        let shown = counts.iter().map(|(what, n)| format!("{what}={n}")).collect::<Vec<_>>();
        match code {
            0 => info!(self.log.logger, "stopped"; "code" => code, "why" => &why, "counts" => shown.join(" ")),
            _ => error!(self.log.logger, "stopped"; "code" => code, "why" => &why, "counts" => shown.join(" ")),
        }
        if let Some(data) = self.data().take() {
            let last = LastExit {
                code,
                why: why.clone(),
                counts: counts.into_iter().collect::<BTreeMap<_, _>>(),
                ended: self.clock.wall().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                version: VERSION.to_owned(),
                pid: std::process::id(),
            };
            let log = self.log.clone();
            within(LAST_WORDS, move || {
                if let Err(e) = data.close(&last) {
                    warn!(log.logger, "could not leave the data directory in order"; "error" => %e);
                }
            });
        }
        match self.parent() {
            Some(parent) => parent.failed(code, &why),
            None if !self.was_ready.load(SeqCst) && !self.on_stderr => within(LAST_WORDS, move || complain(&why)),
            None => {}
        }
        self.log.finish(LAST_WORDS);
        end_process(code)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place; all that is to be put in order is"
)]
fn end_process(code: u8) -> ! {
    std::process::exit(code.into())
}

/// Does it on another thread, and waits no longer than that.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    let _ = wait.recv_timeout(limit);
}
