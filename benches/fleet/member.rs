//! One agent of the fleet: LeaseKeeper and JobWatcher as they are, with a connection of their own, and a runner that says when it has
//! heard of a job.
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
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
        jobs::{Claim, Claimed, CommandAnswer, JobAnswer, JobCommand, JobsChanged, MayFire, ReleaseClaim},
        lease::{ObserveLease, ObserveWatcher, Standing},
    },
    metrics::{Metrics, SharedMetrics},
    model::{Host, JobKey, JobState, RunId},
    store::{Op, SharedStore, Store as _, Transaction, etcd::EtcdStore},
};

use super::etcd::Server;

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

struct Runner {
    arrivals: Arc<Arrivals>,
}
impl Actor for Runner {
    type Context = Context<Self>;
}
impl Handler<JobsChanged> for Runner {
    type Result = MessageResult<JobsChanged>;
    fn handle(&mut self, changed: JobsChanged, _: &mut Self::Context) -> Self::Result {
        if !changed.full && !changed.put.is_empty() {
            self.arrivals
                .0
                .lock()
                .expect("nobody panics with it")
                .push(Instant::now());
        }
        let answer = |(n, entry): (usize, luffly_agent::messages::jobs::JobEntry)| JobAnswer {
            key: entry.key,
            mod_revision: entry.mod_revision,
            cronid: n as u64 + 1,
            state: JobState::Ok,
            error: String::new(),
        };
        MessageResult(changed.put.into_iter().enumerate().map(answer).collect())
    }
}
impl Handler<JobCommand> for Runner {
    type Result = MessageResult<JobCommand>;
    fn handle(&mut self, _: JobCommand, _: &mut Self::Context) -> Self::Result {
        MessageResult(CommandAnswer {
            done: true,
            said: String::new(),
            run_ids: vec![],
        })
    }
}
impl Handler<MayFire> for Runner {
    type Result = ();
    fn handle(&mut self, _: MayFire, _: &mut Self::Context) {}
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
    let runner = Runner { arrivals }.start();
    let ip = address(n);
    let watcher = JobWatcherParts {
        store: store.clone(),
        kept: None,
        instance: format!("i{n}"),
        group: Some("fleet".into()),
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
        |_, _| JobWatcher::new(watcher),
    );
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
            ttl: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
            look: Arc::new(move || Ok(ip)),
            clock,
        },
        hold_when_away: false,
        watcher: Some(watcher.clone().recipient()),
        runner: Some(runner.recipient()),
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
        r#"{"cmd":"true","express":"* * * * *","exclusive":true}"#,
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
