//! One agent of the fleet: LeaseKeeper, JobWatcher and CronRunner as they are, with a connection of their own.
use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use actix::prelude::*;
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
    clock,
    executors::{End, Executors, Guards, Launcher, Order, Outcome, SharedCapture, Started, Stop},
    history::{Bounds, History},
    messages::{
        jobs::{Claim, Claimed, JobAnswer, JobsChanged, MeetWatcher, ReleaseClaim},
        lease::{ObserveLease, ObserveWatcher, Standing},
    },
    metrics::{Metrics, SharedMetrics},
    model::{Host, JobKey, RunId, SharedSign, Sign, job::Limits},
    store::{Op, SharedStore, Store as _, Transaction, etcd::EtcdStore},
};

use tokio::sync::{oneshot, watch};

use super::etcd::Server;

/// How long a lease lives.
const TTL: Duration = Duration::from_secs(30);

/// When each runner heard of the job that was put last.
#[derive(Default)]
pub struct Arrivals(Mutex<Vec<Instant>>);
impl Arrivals {
    pub fn begin(&self) {
        self.0.lock().expect("nobody panics with it").clear();
    }
    pub fn count(&self) -> usize {
        self.0.lock().expect("nobody panics with it").len()
    }
    pub fn take(&self) -> Vec<Instant> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with it"))
    }
}

pub fn address(n: usize) -> IpAddr {
    let n = n as u32 + 1;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n).into()
}

/// Stands before the runner, and notes when a job comes.
struct Ear {
    arrivals: Arc<Arrivals>,
    runner: Addr<CronRunner>,
}
impl Actor for Ear {
    type Context = Context<Self>;
}
impl Handler<JobsChanged> for Ear {
    type Result = ResponseFuture<Vec<JobAnswer>>;
    fn handle(&mut self, changed: JobsChanged, _: &mut Self::Context) -> Self::Result {
        if !changed.full && !changed.put.is_empty() {
            self.arrivals
                .0
                .lock()
                .expect("nobody panics with it")
                .push(Instant::now());
        }
        let answers = self.runner.send(changed);
        Box::pin(async move { answers.await.unwrap_or_default() })
    }
}
/// No job of the fleet comes due, and none is started.
struct Nothing;
impl Launcher for Nothing {
    fn launch(
        &self,
        _: Order,
        _: SharedCapture,
        _: watch::Receiver<Option<Stop>>,
        _: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let end = End::NotStarted("this is a bench".into());
        let unkillable = vec![];
        Box::pin(async move { Outcome { end, unkillable } })
    }
}
/// Its history is in memory: thousands of them have one disk here, and one each in life.
fn runner(metrics: &SharedMetrics, sign: &SharedSign, log: &slog::Logger) -> CronRunnerParts {
    let database = redb::Database::builder().create_with_backend(redb::backends::InMemoryBackend::new());
    let history = History::open(Arc::new(database.expect("memory is there")), Bounds::default());
    CronRunnerParts {
        history: history.expect("an empty history"),
        memories: HashMap::new(),
        lost: vec![],
        launcher: Arc::new(Nothing),
        executors: Executors::new([]),
        limits: Limits::default(),
        guards: Guards::default(),
        notifier: None,
        enabled: true,
        max_parallel: 64,
        start_grace: Duration::from_secs(60),
        drain: Duration::from_secs(20),
        pulse: Pulse::new("runner", metrics.restarts.clone()),
        sign: sign.clone(),
        clock: clock::system(),
        log: log.clone(),
    }
}

pub struct Member {
    keeper: Addr<LeaseKeeper>,
    watcher: Addr<JobWatcher>,
}
impl Member {
    pub async fn start(n: usize, server: &Server, arbiter: &Arbiter, arrivals: Arc<Arrivals>) -> Self {
        let options = server.options();
        let (tell, told) = tokio::sync::oneshot::channel();
        arbiter.spawn_fn(move || {
            // Here, for the connection lives where it is made.
            let store: SharedStore = Arc::new(EtcdStore::new(options));
            let _ = tell.send(raise(n, store, arrivals));
        });
        told.await.expect("the arbiter lives")
    }
    pub async fn is_up(&self) -> bool {
        let held = self
            .keeper
            .send(ObserveLease)
            .await
            .is_ok_and(|view| matches!(view.standing, Standing::Held { .. }));
        held && self
            .watcher
            .send(ObserveWatcher)
            .await
            .is_ok_and(|view| view.reads > 0 && view.stale.is_none())
    }
    pub async fn reads(&self) -> u64 {
        self.watcher.send(ObserveWatcher).await.map_or(0, |view| view.reads)
    }
}
fn raise(n: usize, store: SharedStore, arrivals: Arc<Arrivals>) -> Member {
    let metrics: SharedMetrics = Metrics::new();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let (stopping, clock) = (Stopping::default(), clock::system());
    let pulse = |name: &str| Pulse::new(name, metrics.restarts.clone());
    let sign = Sign::new(TTL);
    let parts = runner(&metrics, &sign, &log);
    let (runner, _) = supervise(
        Restarts::CONTROL,
        stopping.clone(),
        pulse("runner"),
        log.clone(),
        |_, _| CronRunner::new(parts),
    );
    let ear = Ear {
        arrivals,
        runner: runner.clone(),
    };
    let ip = address(n);
    let watcher = JobWatcherParts {
        store: store.clone(),
        kept: None,
        gate: None,
        instance: format!("i{n}"),
        group: Some("fleet".into()),
        prefix: String::new(),
        jobs: ear.start().recipient(),
        commands: runner.clone().recipient(),
        publish: None,
        clock: clock.clone(),
        log: log.clone(),
    };
    let (watcher, _) = supervise(
        Restarts::CONTROL,
        stopping.clone(),
        pulse("watcher"),
        log.clone(),
        |_, _| JobWatcher::new(watcher),
    );
    let meet = runner.send(MeetWatcher {
        state_changed: watcher.clone().recipient(),
        claim: watcher.clone().recipient(),
        release: watcher.clone().recipient(),
        once: watcher.clone().recipient(),
    });
    actix_rt::spawn(async move {
        let _ = meet.await; // it lives as long as this process
    });
    let keeper = LeaseKeeperParts {
        registration: Parts {
            store,
            host: Host {
                agent_id: format!("fleet{n}"),
                group: "fleet".into(),
                hostname: format!("host{n}"),
                ip,
                instance: format!("i{n}"),
            },
            started: clock.wall(),
            http: None,
            ttl: TTL,
            renew_every: Duration::from_secs(10),
            look: Arc::new(move || Ok(ip)),
            clock,
        },
        hold_when_away: false,
        watcher: Some(watcher.clone().recipient()),
        runner: Some(runner.recipient()),
        sign,
        log: log.clone(),
    };
    let (keeper, _) = supervise(Restarts::CONTROL, stopping, pulse("lease"), log, |_, _| {
        LeaseKeeper::new(keeper)
    });
    Member { keeper, watcher }
}

/// An instant of an exclusive job comes: all ask for it. How many were granted it.
pub async fn fire(fleet: &[Member], n: usize, server: &Server) -> usize {
    let store = server.store();
    let job = JobKey::group("fleet", "exclusive");
    let put = Transaction::of(vec![Op::put(
        job.path(),
        r#"{"cmd":"true","express":"0 0 1 1 *","exclusive":true}"#,
        None,
    )]);
    let mod_revision = match store.get(&job.path()).await.expect("etcd answers") {
        Some(entry) => entry.mod_revision,
        None => store.transact(put).await.expect("etcd takes a job").revision,
    };
    let clock = clock::system();
    let planned =
        jiff::Timestamp::from_second(clock.wall().as_second() - 100 + 10 * n as i64).expect("now is an instant");
    let ask = |(i, member): (usize, &Member)| {
        let run_id = RunId::of_u128((n * fleet.len() + i) as u128);
        let claim = Claim {
            job: job.clone(),
            mod_revision,
            planned,
            run_id,
        };
        let (watcher, job) = (member.watcher.clone(), job.clone());
        async move {
            let granted = matches!(watcher.send(claim).await, Ok(Claimed::Granted));
            if granted {
                let _ = watcher.send(ReleaseClaim { job, run_id }).await;
            }
            granted
        }
    };
    let all = futures_util::future::join_all(fleet.iter().enumerate().map(ask)).await;
    all.into_iter().filter(|granted| *granted).count()
}
