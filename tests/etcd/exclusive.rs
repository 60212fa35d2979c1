//! BEHAVIOUR 91: five agents of a group with clocks of their own, the real actors, one real etcd, and an exclusive job.
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use actix::prelude::*;
use jiff::Timestamp;
use luffly_agent::{
    actors::{
        cron::{
            cron_runner::{CronRunner, CronRunnerParts},
            job_watcher::{JobWatcher, JobWatcherParts},
            lease_keeper::{LeaseKeeper, LeaseKeeperParts},
            registration::Parts,
        },
        kit::{Pulse, Restarts, Stopping, supervise},
    },
    clock::{self, Clock, SharedClock},
    executors::{End, Executors, Guards, Launcher, Order, Outcome, SharedCapture, Started, Stop},
    history::{Bounds, History},
    messages::{
        jobs::{AskJobs, AskRuns, MeetWatcher},
        lease::{ObserveLease, ObserveWatcher, Standing},
    },
    metrics::Metrics,
    model::{Host, RunRecord, Sign, job::Limits},
    os::Exit,
    store::{
        SharedStore, embedded,
        etcd::{EtcdStore, Options},
        kept::Kept,
        keys,
    },
};
use tokio::sync::{oneshot, watch};

use crate::kit::agent::until;
use crate::kit::servers::Etcd;

const JOB: &str = "/cron/groups/web/jobs/e";
const TTL: Duration = Duration::from_secs(2);

/// The machine's, and so much ahead: wall time alone, or both as after a sleep.
struct OwnClock {
    machine: SharedClock,
    wall_ms: AtomicI64,
    slept_ms: AtomicI64,
}
impl OwnClock {
    fn off(seconds: i64) -> Arc<Self> {
        Arc::new(Self {
            machine: clock::system(),
            wall_ms: AtomicI64::new(seconds * 1000),
            slept_ms: AtomicI64::new(0),
        })
    }
    fn sleep(&self, time: Duration) {
        self.slept_ms.fetch_add(time.as_millis() as i64, SeqCst);
    }
}
impl Clock for OwnClock {
    fn wall(&self) -> Timestamp {
        let ahead = self.wall_ms.load(SeqCst) + self.slept_ms.load(SeqCst);
        Timestamp::from_millisecond(self.machine.wall().as_millisecond() + ahead).unwrap()
    }
    fn steady(&self) -> Duration {
        self.machine.steady() + Duration::from_millis(self.slept_ms.load(SeqCst) as u64)
    }
}

/// Which planned instants ran, and where, in the order of their starts.
#[derive(Clone, Default)]
struct Ran(Arc<Mutex<Vec<(Timestamp, usize)>>>);
impl Ran {
    fn all(&self) -> Vec<(Timestamp, usize)> {
        self.0.lock().unwrap().clone()
    }
    fn planned(&self) -> Vec<Timestamp> {
        let mut all = self.all().into_iter().map(|(at, _)| at).collect::<Vec<_>>();
        all.sort();
        all
    }
}
/// A run is over as soon as it has begun.
struct Notes {
    agent: usize,
    ran: Ran,
}
impl Launcher for Notes {
    fn launch(
        &self,
        order: Order,
        _: SharedCapture,
        _: watch::Receiver<Option<Stop>>,
        _: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let planned = order.fire_time.parse().unwrap();
        self.ran.0.lock().unwrap().push((planned, self.agent));
        let outcome = Outcome {
            end: End::Exited(Exit::Code(0)),
            unkillable: vec![],
        };
        Box::pin(std::future::ready(outcome))
    }
}

struct Agent {
    arbiter: Option<Arbiter>,
    clock: Arc<OwnClock>,
    keeper: Addr<LeaseKeeper>,
    watcher: Addr<JobWatcher>,
    runner: Addr<CronRunner>,
    _data: tempfile::TempDir,
}
impl Agent {
    fn start(n: usize, etcd: &Etcd, off: i64, ran: &Ran) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (dir, own, ran, endpoint) = (data.path().to_owned(), OwnClock::off(off), ran.clone(), etcd.endpoint());
        let (arbiter, (tell, told)) = (Arbiter::new(), mpsc::channel());
        let clock = own.clone();
        arbiter.spawn_fn(move || {
            let log = slog::Logger::root(slog::Discard, slog::o!());
            let (metrics, stopping) = (Metrics::new(), Stopping::default());
            let pulse = |name: &str| Pulse::new(name, metrics.restarts.clone());
            let database = embedded::open(&dir).unwrap().database;
            let store: SharedStore = Arc::new(EtcdStore::new(Options {
                endpoints: vec![endpoint],
                prefix: String::new(),
                user: None,
                tls: None,
            }));
            let sign = Sign::new(TTL);
            let parts = CronRunnerParts {
                history: History::open(database.clone(), Bounds::default()).unwrap(),
                memories: HashMap::new(),
                lost: vec![],
                launcher: Arc::new(Notes { agent: n, ran }),
                executors: Executors::new([]),
                limits: Limits::default(),
                guards: Guards::default(),
                notifier: None,
                enabled: true,
                max_parallel: 64,
                start_grace: Duration::from_secs(60),
                drain: Duration::from_secs(20),
                pulse: pulse("runner"),
                sign: sign.clone(),
                clock: clock.clone(),
                log: log.clone(),
            };
            let (runner, _) = supervise(
                Restarts::CONTROL,
                stopping.clone(),
                pulse("runner"),
                log.clone(),
                |_, _| CronRunner::new(parts),
            );
            let parts = JobWatcherParts {
                publish: None,
                store: store.clone(),
                kept: Some(Kept::new(database)),
                gate: None,
                instance: format!("i{n}"),
                group: Some("web".into()),
                prefix: String::new(),
                jobs: runner.clone().recipient(),
                commands: runner.clone().recipient(),
                clock: clock.clone(),
                log: log.clone(),
            };
            let (watcher, _) = supervise(
                Restarts::CONTROL,
                stopping.clone(),
                pulse("watcher"),
                log.clone(),
                |_, _| JobWatcher::new(parts),
            );
            let meet = runner.send(MeetWatcher {
                state_changed: watcher.clone().recipient(),
                claim: watcher.clone().recipient(),
                release: watcher.clone().recipient(),
                once: watcher.clone().recipient(),
            });
            actix::spawn(async move { meet.await.unwrap() });
            let ip = [10, 0, 0, n as u8 + 1].into();
            let parts = LeaseKeeperParts {
                registration: Parts {
                    store,
                    host: Host {
                        agent_id: format!("a{n}"),
                        group: "web".into(),
                        hostname: format!("h{n}"),
                        ip,
                        instance: format!("i{n}"),
                    },
                    started: clock.wall(),
                    http: None,
                    ttl: TTL,
                    renew_every: Duration::from_millis(300),
                    look: Arc::new(move || Ok(ip)),
                    clock,
                },
                hold_when_away: false,
                watcher: Some(watcher.clone().recipient()),
                runner: Some(runner.clone().recipient()),
                sign,
                log: log.clone(),
            };
            let (keeper, _) = supervise(Restarts::CONTROL, stopping, pulse("lease"), log, |_, _| {
                LeaseKeeper::new(parts)
            });
            tell.send((keeper, watcher, runner)).unwrap();
        });
        let (keeper, watcher, runner) = told.recv().unwrap();
        Self {
            arbiter: Some(arbiter),
            clock: own,
            keeper,
            watcher,
            runner,
            _data: data,
        }
    }
    /// Registered, and the job is known.
    async fn is_up(&self) -> bool {
        let standing = self.keeper.send(ObserveLease).await.unwrap().standing;
        let jobs = self.runner.send(AskJobs).await.unwrap();
        matches!(standing, Standing::Held { .. }) && jobs.len() == 1
    }
    async fn runs(&self) -> Vec<RunRecord> {
        let ask = AskRuns {
            task_id: None,
            most: 1000,
        };
        self.runner.send(ask).await.unwrap()
    }
    /// The whole of it stands still until the sender is dropped.
    fn freeze(&self) -> mpsc::Sender<()> {
        let (thaw, thawed) = mpsc::channel::<()>();
        let (tell, frozen) = mpsc::channel();
        self.arbiter.as_ref().unwrap().spawn_fn(move || {
            tell.send(()).unwrap();
            let _ = thawed.recv(); // its end is the word
        });
        frozen.recv().unwrap();
        thaw
    }
    /// As kill -9.
    fn kill(&mut self) {
        if let Some(arbiter) = self.arbiter.take() {
            arbiter.stop();
            arbiter.join().unwrap();
        }
    }
}
impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}
/// Blocking calls are fine here: the agents live on arbiters of their own.
fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(test);
}
async fn all_up(agents: &[Agent]) {
    for agent in agents {
        while !agent.is_up().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
fn every(seconds: u64, more: &str) -> String {
    format!(r#"{{"cmd":"date","express":"*/{seconds} * * * * *","exclusive":true{more}}}"#)
}
fn gaps(planned: &[Timestamp]) -> Vec<i64> {
    planned
        .windows(2)
        .map(|pair| pair[1].as_second() - pair[0].as_second())
        .collect()
}

#[test]
fn each_firing_runs_once_whatever_the_clocks_say_and_whoever_dies() {
    run(async {
        let etcd = Etcd::start();
        let ran = Ran::default();
        let off = [-4, -2, 0, 2, 4];
        let mut agents = off
            .iter()
            .enumerate()
            .map(|(n, off)| Agent::start(n, &etcd, *off, &ran))
            .collect::<Vec<_>>();
        // So far off that it may not claim.
        agents.push(Agent::start(5, &etcd, 60, &ran));
        etcd.put(JOB, &every(2, ""));
        all_up(&agents).await;
        // Who is ahead claims ahead: what those behind would have run before it came is passed over, once.
        let settled = agents[4].clock.wall() + Duration::from_secs(4);
        let since = |ran: &Ran| {
            ran.planned()
                .into_iter()
                .filter(|at| *at >= settled)
                .collect::<Vec<_>>()
        };
        until("it runs", || since(&ran).len() >= 3);
        etcd.until("the last is over", |etcd| etcd.get("/cron/running/web/e").is_none());
        // Whoever ran the last one dies, just after it.
        let dead = ran.all().last().unwrap().1;
        agents[dead].kill();
        let before = ran.all().len();
        until("the others go on", || ran.all().len() >= before + 4);
        let of_dead = ran.all()[before..].iter().filter(|(_, agent)| *agent == dead).count();
        assert_eq!(of_dead, 0);

        let planned = since(&ran);
        assert!(
            gaps(&planned).iter().all(|gap| *gap == 2),
            "each once, and none is left out: {planned:?}"
        );
        let mut claims = BTreeMap::<Timestamp, usize>::new();
        for agent in agents.iter().filter(|agent| agent.arbiter.is_some()) {
            for record in agent.runs().await.into_iter().filter(|record| record.started.is_some()) {
                *claims.entry(record.planned).or_default() += 1;
            }
        }
        assert!(claims.values().all(|times| *times == 1), "{claims:?}");
        // It says why it does not.
        let far = &agents[5];
        assert!(ran.all().iter().all(|(_, agent)| *agent != 5));
        // The newest may be asking for its claim still.
        let (runs, asking) = far
            .runs()
            .await
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.state.is_over());
        assert!(asking.iter().all(|record| record.started.is_none()), "{asking:?}");
        let skipped = runs
            .iter()
            .filter(|record| record.state.to_string() == "skipped(no claim)")
            .count();
        assert!(skipped >= 1 && skipped == runs.len(), "{runs:?}");
        let says = |text: &str| text.starts_with("this host's clock is ") && text.contains(" s off etcd's");
        assert!(runs.iter().all(|record| says(&record.error)), "{runs:?}");
        let trouble = far.watcher.send(ObserveWatcher).await.unwrap().trouble;
        assert!(trouble.iter().any(|text| says(text)), "{trouble:?}");
        let others = agents[usize::from(dead == 0)]
            .watcher
            .send(ObserveWatcher)
            .await
            .unwrap()
            .trouble;
        assert_eq!(others, Vec::<String>::new());
    });
}

/// Its claim stands, its lease does not: what it claimed runs late, or not at all, and the rest is for the others.
fn a_claimer_freezes(slept: Duration) -> (RunRecord, usize) {
    let mut told = None;
    run(async {
        let etcd = Etcd::start();
        let ran = Ran::default();
        let first = [Agent::start(0, &etcd, 0, &ran)];
        // Between its claim and its start is a while.
        etcd.put(JOB, &every(2, r#","jitter":"3m""#));
        all_up(&first).await;
        let claim = |etcd: &Etcd| {
            let value = etcd.get("/cron/claims/web/e")?;
            Some(keys::read::<keys::Claimed>(value.as_bytes()))
        };
        etcd.until("it has claimed one", |etcd| claim(etcd).is_some());
        let thaw = first[0].freeze();
        let claimed = claim(&etcd).unwrap();
        let (planned, before) = (claimed.planned.parse::<Timestamp>().unwrap(), ran.all());
        assert_eq!((claimed.instance.as_str(), before), ("i0", vec![]));
        etcd.until("its lease has ended", |etcd| etcd.get("/cron/running/web/e").is_none());
        let second = [Agent::start(1, &etcd, 0, &ran)];
        all_up(&second).await;
        etcd.until("another has claimed the next", |etcd| {
            claim(etcd).is_some_and(|claimed| claimed.instance == "i1")
        });
        let next = claim(&etcd).unwrap();
        first[0].clock.sleep(slept);
        drop(thaw);
        let record = loop {
            let runs = first[0].runs().await;
            if let Some(record) = runs
                .into_iter()
                .find(|record| record.planned == planned && record.state.is_over())
            {
                break record;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(
            claim(&etcd).unwrap().run_id,
            next.run_id,
            "and nothing of the other's is touched"
        );
        let times = ran.all().iter().filter(|(at, _)| *at == planned).count();
        told = Some((record, times));
    });
    told.unwrap()
}
#[test]
fn the_firing_of_a_claimer_that_froze_is_late_and_shown_so() {
    let slept = Duration::from_secs(200);
    let (record, times) = a_claimer_freezes(slept);
    assert_eq!((record.state.to_string().as_str(), times), ("succeeded", 1));
    let late = record.started.unwrap().duration_since(record.planned);
    assert!(late.unsigned_abs() >= slept, "{late:?}");
}
#[test]
fn the_firing_of_a_claimer_that_froze_for_too_long_is_lost_and_shown_so() {
    let (record, times) = a_claimer_freezes(Duration::from_secs(3600));
    assert_eq!((record.state.to_string().as_str(), times), ("missed(1)", 0));
}
