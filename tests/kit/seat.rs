//! LeaseKeeper and JobWatcher as they live in an agent, on a control arbiter of their own, before a runner that only writes down what it
//! hears. And a cable between them and etcd that can be cut.
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use actix::prelude::*;
use luffly_agent::{
    actors::{
        cron::{
            job_watcher::{JobWatcher, JobWatcherParts},
            lease_keeper::{LeaseKeeper, LeaseKeeperParts},
            registration::Parts,
        },
        kit::{Pulse, Restarts, Stopping, supervise},
    },
    clock,
    messages::{
        jobs::{Action, CommandAnswer, JobAnswer, JobCommand, JobsChanged, MayFire},
        lease::{GiveBack, LeaseView, ObserveLease, ObserveWatcher, WatcherView},
    },
    metrics::Metrics,
    model::{Host, JobState, RunId, Sign},
    store::{
        SharedStore, embedded,
        etcd::{EtcdStore, Options},
        kept::Kept,
    },
};

use super::agent::until;

/// What the runner has heard, in its order: `full`, `+key=value`, `-key`, `run 17`; and what it has now.
#[derive(Default)]
pub struct Heard {
    pub log: Vec<String>,
    pub table: BTreeMap<String, String>,
    /// Of the log: how often each job was told.
    pub told: BTreeMap<String, usize>,
    pub refused: Option<String>,
    pub commands: Vec<JobCommand>,
}
#[derive(Clone, Default)]
pub struct Probe(pub Arc<Mutex<Heard>>);
impl Actor for Probe {
    type Context = Context<Self>;
}
impl Handler<JobsChanged> for Probe {
    type Result = MessageResult<JobsChanged>;
    fn handle(&mut self, changed: JobsChanged, _: &mut Self::Context) -> Self::Result {
        let mut heard = self.0.lock().unwrap();
        if changed.full {
            heard.log.push("full".into());
            let keys = changed.put.iter().map(|job| job.key.path()).collect::<Vec<_>>();
            heard.table.retain(|key, _| keys.contains(key));
        }
        for key in &changed.removed {
            heard.log.push(format!("-{key}"));
            heard.table.remove(&key.path());
        }
        let answers = changed.put.into_iter().enumerate().map(|(i, job)| {
            let (key, value) = (job.key.path(), String::from_utf8_lossy(&job.value).into_owned());
            // As the real one: what is put again unchanged is not touched.
            if heard.table.insert(key.clone(), value.clone()).as_ref() != Some(&value) {
                heard.log.push(format!("+{key}={value}"));
                *heard.told.entry(key).or_default() += 1;
            }
            let bad = value.contains("bad");
            JobAnswer {
                key: job.key,
                mod_revision: job.mod_revision,
                cronid: i as u64 + 1,
                state: if bad { JobState::Invalid } else { JobState::Ok },
                error: if bad {
                    "`express`: found bad".into()
                } else {
                    String::new()
                },
            }
        });
        MessageResult(answers.collect())
    }
}
impl Handler<JobCommand> for Probe {
    type Result = MessageResult<JobCommand>;
    fn handle(&mut self, command: JobCommand, _: &mut Self::Context) -> Self::Result {
        let run_ids = match command.action {
            Action::Run => command.run_id.into_iter().collect::<Vec<RunId>>(),
            _ => vec![],
        };
        self.0.lock().unwrap().commands.push(command);
        MessageResult(CommandAnswer {
            done: true,
            said: "done as asked".into(),
            run_ids,
        })
    }
}
impl Handler<MayFire> for Probe {
    type Result = ();
    fn handle(&mut self, may: MayFire, _: &mut Self::Context) {
        self.0.lock().unwrap().refused = may.refused;
    }
}

#[derive(Clone)]
pub struct Setup {
    pub options: Options,
    pub instance: &'static str,
    pub ip: [u8; 4],
    pub group: Option<&'static str>,
    pub ttl: Duration,
    pub renew: Duration,
    pub hold: bool,
}
impl Setup {
    pub fn on(endpoint: &str) -> Self {
        Self {
            options: Options {
                endpoints: vec![endpoint.to_owned()],
                prefix: String::new(),
                user: None,
                tls: None,
            },
            instance: "a",
            ip: [10, 0, 0, 1],
            group: None,
            ttl: Duration::from_secs(10),
            renew: Duration::from_millis(300),
            hold: false,
        }
    }
}
/// An agent's control arbiter.
pub struct Seat {
    arbiter: Option<Arbiter>,
    pub lease: Addr<LeaseKeeper>,
    pub watcher: Addr<JobWatcher>,
    pub probe: Probe,
    _own: Option<tempfile::TempDir>,
    pub data: PathBuf,
}
impl Seat {
    pub fn take(setup: Setup) -> Self {
        let own = tempfile::tempdir().unwrap();
        let data = own.path().to_owned();
        let mut seat = Self::at(setup, &data);
        seat._own = Some(own);
        seat
    }
    /// On that data dir.
    pub fn at(setup: Setup, data: &Path) -> Self {
        let arbiter = Arbiter::new();
        let (tell, told) = std::sync::mpsc::channel();
        let (probe, dir) = (Probe::default(), data.to_owned());
        let runner = probe.clone();
        arbiter.spawn_fn(move || {
            let log = slog::Logger::root(slog::Discard, slog::o!());
            let database = embedded::open(&dir).unwrap().database;
            let store: SharedStore = Arc::new(EtcdStore::new(setup.options.clone()));
            let runner = runner.start();
            let metrics = Metrics::new();
            let pulse = |name: &str| Pulse::new(name, metrics.restarts.clone());
            let parts = JobWatcherParts {
                store: store.clone(),
                kept: Some(Kept::new(database)),
                gate: None,
                instance: setup.instance.into(),
                group: setup.group.map(str::to_owned),
                prefix: setup.options.prefix.clone(),
                jobs: runner.clone().recipient(),
                commands: runner.clone().recipient(),
                publish: None,
                clock: clock::system(),
                log: log.clone(),
            };
            let (watcher, _) = supervise(
                Restarts::CONTROL,
                Stopping::default(),
                pulse("watcher"),
                log.clone(),
                |_, _| JobWatcher::new(parts),
            );
            let ip = setup.ip.into();
            let parts = LeaseKeeperParts {
                registration: Parts {
                    store,
                    host: Host {
                        agent_id: "sky01".into(),
                        group: "net01".into(),
                        hostname: "here".into(),
                        ip,
                        instance: setup.instance.into(),
                    },
                    started: "2026-11-25T10:00:00Z".parse().unwrap(),
                    http: None,
                    ttl: setup.ttl,
                    renew_every: setup.renew,
                    look: Arc::new(move || Ok(ip)),
                    clock: clock::system(),
                },
                hold_when_away: setup.hold,
                watcher: Some(watcher.clone().recipient()),
                runner: Some(runner.recipient()),
                sign: Sign::new(setup.ttl),
                log: log.clone(),
            };
            let (lease, _) = supervise(Restarts::CONTROL, Stopping::default(), pulse("lease"), log, |_, _| {
                LeaseKeeper::new(parts)
            });
            tell.send((lease, watcher)).unwrap();
        });
        let (lease, watcher) = told.recv().unwrap();
        Self {
            arbiter: Some(arbiter),
            lease,
            watcher,
            probe,
            _own: None,
            data: data.to_owned(),
        }
    }
    pub fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.probe.0.lock().unwrap())
    }
    pub fn log(&self) -> Vec<String> {
        self.heard(|heard| heard.log.clone())
    }
    /// Waits until the runner's log ends so.
    pub fn hears(&self, last: &[&str]) {
        let wanted = last.iter().map(ToString::to_string).collect::<Vec<_>>();
        let began = std::time::Instant::now();
        loop {
            let log = self.log();
            if log.ends_with(&wanted) {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "waited for {wanted:?}, heard {log:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    pub fn has(&self, what: &str, is: impl Fn(&Heard) -> bool) {
        until(what, || self.heard(&is));
    }
    pub async fn lease_view(&self) -> LeaseView {
        self.lease.send(ObserveLease).await.unwrap()
    }
    pub async fn watcher_view(&self) -> WatcherView {
        self.watcher.send(ObserveWatcher).await.unwrap()
    }
    pub async fn is(&self, what: &str, is: impl Fn(&LeaseView, &WatcherView) -> bool) {
        let began = std::time::Instant::now();
        loop {
            let (lease, watcher) = (self.lease_view().await, self.watcher_view().await);
            if is(&lease, &watcher) {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "waited until {what}: {lease:?} {watcher:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    pub async fn stop(mut self) {
        self.watcher.send(luffly_agent::messages::control::Drain).await.unwrap();
        self.lease
            .send(GiveBack {
                why: "stopped as asked".into(),
            })
            .await
            .unwrap();
        self.end();
    }
    /// As kill -9: nothing is said to anybody.
    pub fn kill(mut self) {
        self.end();
    }
    fn end(&mut self) {
        if let Some(arbiter) = self.arbiter.take() {
            arbiter.stop();
            arbiter.join().unwrap();
        }
    }
}
impl Drop for Seat {
    fn drop(&mut self) {
        self.end();
    }
}

/// Between an agent and its etcd.
pub struct Cable {
    pub port: u16,
    to: Arc<Mutex<u16>>,
    whole: Arc<AtomicBool>,
    pairs: Arc<Mutex<Vec<[TcpStream; 2]>>>,
    over: Arc<AtomicBool>,
}
impl Cable {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Self {
            port: listener.local_addr().unwrap().port(),
            to: Arc::new(Mutex::new(port)),
            whole: Arc::new(AtomicBool::new(true)),
            pairs: Arc::default(),
            over: Arc::default(),
        };
        let (to, whole, pairs, over) = (
            cable.to.clone(),
            cable.whole.clone(),
            cable.pairs.clone(),
            cable.over.clone(),
        );
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if over.load(SeqCst) {
                    return;
                }
                let (Ok(near), true) = (near, whole.load(SeqCst)) else {
                    continue;
                };
                let Ok(far) = TcpStream::connect(("127.0.0.1", *to.lock().unwrap())) else {
                    continue;
                };
                let copies = || [near.try_clone().unwrap(), far.try_clone().unwrap()];
                pairs.lock().unwrap().push(copies());
                let [a, b] = copies();
                std::thread::spawn(move || carry(a, b));
                std::thread::spawn(move || carry(far, near));
            }
        });
        cable
    }
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
    /// Every connection breaks, and no new one is made.
    pub fn cut(&self) {
        self.whole.store(false, SeqCst);
        for end in self.pairs.lock().unwrap().drain(..).flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
    pub fn mend(&self) {
        self.whole.store(true, SeqCst);
    }
}
impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
        self.over.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes who waits for the next
    }
}
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16384];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
