//! The part of the house that is seen by others and runs jobs: LeaseKeeper and JobWatcher on the control arbiter, which keeps the
//! connection to the store and hosts nothing else. Built before they need it, stopped after all that hangs on the lease.
use std::{sync::Arc, time::Duration};

use actix::prelude::*;

use super::Start;
use crate::{
    actors::{
        cron::{
            gate::{Gate, SharedGate},
            job_watcher::{JobWatcher, JobWatcherParts},
            lease_keeper::{LeaseKeeper, LeaseKeeperParts},
            publish::Publish,
            registration::Parts,
        },
        kit::{Pulse, Restarts, SharedPulse, Stopping, supervise},
    },
    history::{Bounds, History},
    identity::Addresses,
    messages::{
        control::Drain,
        jobs::{AskSummary, JobCommand, JobsChanged, MayFire, MeetWatcher},
        lease::{GiveBack, LeaseView, ObserveLease, ObserveWatcher, WatcherView},
    },
    model::{SharedSign, Sign},
    os,
    settings::{OnPartition, Settings},
    signature::Verifier,
    store::{
        SharedStore,
        embedded::{self, EmbeddedStore},
        etcd::EtcdStore,
        kept::Kept,
        keys::{self, Health},
    },
};

/// How long an answer of an actor is waited for.
const ANSWER: Duration = Duration::from_secs(1);
/// A store that is away holds up no stop for longer: the lease ends by itself then.
const GIVE_BACK: Duration = Duration::from_secs(3);
/// Messages that may wait at one of them; all are few.
const MAILBOX: usize = 64;

/// The first look at who holds the address takes so long at most; no answer is no failure.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// Jobs of the host's own store are read before the agent counts as started, if that takes no longer: who asks for one then finds it.
const FIRST_READ: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What is there before any actor: the database of this host, and the store that counts.
pub struct Stores {
    pub control: Arbiter,
    /// In `store.redb`, beside the embedded store and what is remembered of etcd.
    pub history: History,
    pub store: SharedStore,
    kept: Option<Kept>,
    gate: Option<SharedGate>,
}
/// Who runs jobs.
pub struct Runner {
    pub jobs: Recipient<JobsChanged>,
    pub commands: Recipient<JobCommand>,
    pub may_fire: Recipient<MayFire>,
    pub meet: Recipient<MeetWatcher>,
    /// What of its runs is published in etcd.
    pub summary: Recipient<AskSummary>,
    /// Asked before anything is started.
    pub sign: SharedSign,
}
pub struct JobsHouse {
    lease: Member<LeaseKeeper>,
    watcher: Option<Member<JobWatcher>>,
    /// Whoever reaches etcd is root here.
    open_to_all: bool,
    _control: Arbiter,
}
struct Member<A: Actor> {
    addr: Addr<A>,
    pulse: SharedPulse,
}

/// None: this run keeps no state, so it is nobody that could be registered.
pub async fn open(start: &Start) -> Result<Option<Stores>, String> {
    let settings = &start.settings;
    let etcd = &settings.etcd;
    if settings.agent.private_data_dir || settings.once {
        if !etcd.endpoints.is_empty() {
            slog::warn!(
                start.log,
                "etcd is not used: a run on stdin alone, or with --once, is nobody that could be registered"
            );
        }
        return Ok(None);
    }
    let data_dir = settings.agent.data_dir.clone();
    let signed = !settings.jobs.verify_key.is_empty() && !etcd.endpoints.is_empty();
    let opened = embedded::open(&data_dir)?;
    if let Some(warning) = opened.warning {
        slog::error!(start.log, "{}", warning);
        if signed {
            slog::error!(
                start.log,
                "the serials of signed jobs are forgotten: an old value that has not ended yet would be taken when it is put again"
            );
        }
    }
    let database = opened.database;
    let local = EmbeddedStore::new(database.clone()).map_err(|error| error.to_string())?;
    let history = History::open(database.clone(), Bounds::default())
        .map_err(|error| format!("could not open the history of jobs in store.redb: {error}"))?;
    let control = Arbiter::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("blocking")
            .thread_stack_size(512 * 1024)
            .build()
            .expect("a runtime needs an epoll descriptor, and no more")
    });
    let (store, kept): (SharedStore, _) = match etcd.endpoints.is_empty() {
        true => (Arc::new(local), None),
        false => {
            let here = local.jobs();
            if here > 0 {
                slog::warn!(start.log, "jobs of this host's own store do not run while there is etcd"; "jobs" => here);
            }
            let way = etcd.way();
            // The connection's tasks live where it is made.
            let store = on(&control, move || {
                os::name_thread("control");
                EtcdStore::new(way)
            });
            (Arc::new(store.await?), Some(Kept::new(database.clone())))
        }
    };
    if settings.require_address {
        match tokio::time::timeout(FIRST_LOOK, holder(start, &store)).await {
            Ok(Some(holder)) => {
                return Err(format!(
                    "{holder}; --require-address: this agent does not start beside it"
                ));
            }
            Ok(None) => {}
            Err(_) => {
                slog::warn!(start.log, "etcd has not said who holds the address, starting all the same"; "after" => ?FIRST_LOOK)
            }
        }
    }
    let gate = match (&kept, signed) {
        (Some(kept), true) => {
            let fleet = settings.jobs.fleet.as_deref().unwrap_or_default();
            let verifier = Verifier::new(&settings.jobs.verify_key, fleet)?;
            let gate = Gate::open(verifier, kept.clone());
            Some(gate.map_err(|error| format!("could not read the serials of signed jobs in store.redb: {error}"))?)
        }
        _ => None,
    };
    Ok(Some(Stores {
        control,
        history,
        store,
        kept,
        gate,
    }))
}
async fn on<T: Send + 'static>(arbiter: &Arbiter, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (tell, told) = tokio::sync::oneshot::channel();
    arbiter.spawn_fn(move || {
        let _ = tell.send(work());
    });
    told.await
        .map_err(|_| "the control thread could not be started".to_owned())
}

/// Who holds our address, if that is another agent. LeaseKeeper sees to whatever cannot be told now.
async fn holder(start: &Start, store: &SharedStore) -> Option<String> {
    let addresses = addresses(&start.settings);
    let ip = tokio::task::spawn_blocking(move || addresses.look()).await.ok()?.ok()?;
    let found = store.get(&keys::health(&ip.to_string())).await.ok()??;
    let health = keys::read::<Health>(&found.value);
    (health.instance != start.host.instance).then(|| health.shown(ip))
}
fn addresses(settings: &Settings) -> Addresses {
    Addresses {
        wanted: settings.agent.ip.clone(),
        etcd: settings.etcd.endpoints.clone(),
    }
}

impl JobsHouse {
    /// JobWatcher, then LeaseKeeper: who tells is raised after who hears.
    pub async fn raise(
        start: &Start,
        stores: Stores,
        stopping: &Stopping,
        runner: Option<Runner>,
    ) -> Result<Self, String> {
        let (settings, host) = (&start.settings, &start.host);
        let http = start.http.as_ref().and_then(|listener| listener.local_addr().ok());
        let Stores {
            control,
            store,
            kept,
            gate,
            ..
        } = stores;
        let signed = gate.is_some();
        let member = |name: &str| Pulse::new(name, start.metrics.restarts.clone());
        let (watcher, may_fire, sign) = match runner {
            None => (None, None, Sign::new(settings.etcd.lease_ttl)),
            Some(Runner {
                jobs,
                commands,
                may_fire,
                meet,
                summary,
                sign,
            }) => {
                let parts = JobWatcherParts {
                    store: store.clone(),
                    kept,
                    gate,
                    instance: host.instance.clone(),
                    group: settings.agent.group_given.then(|| host.group.clone()),
                    prefix: settings.etcd.prefix.clone(),
                    jobs,
                    commands,
                    publish: settings.etcd.publish_runs.then_some(Publish {
                        runs: summary,
                        first_within: settings.etcd.lease_ttl,
                    }),
                    clock: start.clock.clone(),
                    log: start.log.clone(),
                };
                let pulse = member("jobs/watcher");
                let addr = place(&control, stopping, &pulse, &start.log, || JobWatcher::new(parts)).await?;
                let watcher = MeetWatcher {
                    state_changed: addr.clone().recipient(),
                    claim: addr.clone().recipient(),
                    release: addr.clone().recipient(),
                    once: addr.clone().recipient(),
                };
                meet.send(watcher)
                    .await
                    .map_err(|_| "the runner of jobs fell at the start")?;
                (Some(Member { addr, pulse }), Some(may_fire), sign)
            }
        };
        let addresses = addresses(settings);
        let nobody_is_asked =
            settings.etcd.user.is_none() && settings.etcd.tls.as_ref().is_none_or(|tls| tls.cert_and_key.is_none());
        let open_to_all = os::is_root() && nobody_is_asked && !signed && !addresses.etcd_is_here();
        let parts = LeaseKeeperParts {
            registration: Parts {
                store,
                host: (**host).clone(),
                started: start.clock.wall(),
                http: http.map(|address| address.to_string()),
                ttl: settings.etcd.lease_ttl,
                renew_every: settings.etcd.renew_every,
                look: Arc::new(move || addresses.look()),
                clock: start.clock.clone(),
            },
            hold_when_away: settings.etcd.on_partition == OnPartition::Hold,
            watcher: watcher.as_ref().map(|watcher| watcher.addr.clone().recipient()),
            runner: may_fire,
            sign,
            log: start.log.clone(),
        };
        let pulse = member("jobs/lease");
        let addr = place(&control, stopping, &pulse, &start.log, || LeaseKeeper::new(parts)).await?;
        let house = Self {
            lease: Member { addr, pulse },
            watcher,
            open_to_all,
            _control: control,
        };
        if settings.etcd.endpoints.is_empty() {
            let _ = tokio::time::timeout(FIRST_READ, house.read()).await;
        }
        Ok(house)
    }
    /// Until CronRunner has been told of all jobs once.
    async fn read(&self) {
        let Some(watcher) = &self.watcher else { return };
        while !watcher.addr.send(ObserveWatcher).await.is_ok_and(|view| view.reads > 0) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    pub fn watcher(&self) -> Option<&Addr<JobWatcher>> {
        self.watcher.as_ref().map(|watcher| &watcher.addr)
    }
    pub fn pulses(&self) -> impl Iterator<Item = &SharedPulse> {
        let watcher = self.watcher.as_ref().map(|watcher| &watcher.pulse);
        std::iter::once(&self.lease.pulse).chain(watcher)
    }
    pub async fn views(&self) -> (Option<LeaseView>, Option<WatcherView>) {
        let lease = tokio::time::timeout(ANSWER, self.lease.addr.send(ObserveLease)).await;
        let watcher = match &self.watcher {
            Some(watcher) => tokio::time::timeout(ANSWER, watcher.addr.send(ObserveWatcher))
                .await
                .ok(),
            None => None,
        };
        (lease.ok().and_then(Result::ok), watcher.and_then(Result::ok))
    }
    /// What degrades the agent's health.
    pub async fn trouble(&self) -> Vec<String> {
        let (lease, watcher) = self.views().await;
        let mut trouble = lease.map(|lease| lease.trouble).unwrap_or_default();
        let watcher = watcher.unwrap_or_default();
        for what in watcher.trouble {
            if !trouble.contains(&what) {
                trouble.push(what);
            }
        }
        if let Some(stale) = watcher.stale {
            trouble.push(format!("the jobs are those of {} s ago", stale.as_secs()));
        }
        if self.open_to_all {
            trouble.push(
                "jobs run as root, and etcd asks nobody who he is: set [etcd] user and password, tls with cert and key, or [jobs] verify_key"
                    .into(),
            );
        }
        trouble
    }
    /// After the drain of all runs: nothing is followed any more, and the lease goes.
    pub async fn stop(&self, why: &str, deadline: tokio::time::Instant, log: &slog::Logger) -> Vec<String> {
        let mut late = vec![];
        if let Some(watcher) = &self.watcher {
            let drained = tokio::time::timeout_at(deadline, super::stop::until_answered(&watcher.addr, || Drain)).await;
            late.extend(drained.is_err().then(|| watcher.pulse.name.clone()));
        }
        let give_back = || GiveBack { why: why.to_owned() };
        let given = super::stop::until_answered(&self.lease.addr, give_back);
        if tokio::time::timeout(GIVE_BACK, given).await.is_err() {
            slog::warn!(log, "the store did not take the lease back in time, it ends by itself"; "after" => ?GIVE_BACK);
        }
        late
    }
}
pub(super) async fn place<A>(
    arbiter: &Arbiter,
    stopping: &Stopping,
    pulse: &SharedPulse,
    log: &slog::Logger,
    make: impl FnOnce() -> A + Send + 'static,
) -> Result<Addr<A>, String>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    let (stopping, pulse, log) = (stopping.clone(), pulse.clone(), log.clone());
    on(arbiter, move || {
        let (addr, _task) = supervise(Restarts::CONTROL, stopping, pulse, log, |ctx, _farewell| {
            ctx.set_mailbox_capacity(MAILBOX);
            make()
        });
        addr
    })
    .await
}
