//! What others ask of JobWatcher: claims of firings and their release, marks, jobs to be written, its view.

use std::time::Duration;

use actix::prelude::*;

use super::{
    super::{
        claims::{Claimer, MOST_SKEW},
        follow::blocking,
        gate,
    },
    JobWatcher,
    writes::dice,
};
use crate::{
    clock::SharedClock,
    messages::{
        jobs::{CheckSigned, Claim, Claimed, MarkOnce, OnceMarked, ReleaseClaim, WriteJob, WriteRefused, Written},
        lease::{ObserveWatcher, WatcherView},
    },
    model::{Invalid, JobKey},
    store::{Op, SharedStore, StoreError, Transaction},
};

/// The store's clock is looked at again after this, when something is to be claimed.
pub(super) const SKEW_EVERY: Duration = Duration::from_secs(60);

impl Handler<Claim> for JobWatcher {
    type Result = ResponseActFuture<Self, Claimed>;
    fn handle(&mut self, claim: Claim, ctx: &mut Self::Context) -> Self::Result {
        self.ask_again(ctx);
        let Some((_, lease)) = self.held() else {
            let none = Claimed::NoStore("not registered".into());
            return Box::pin(std::future::ready(none).into_actor(self));
        };
        let (store, instance, clock) = (
            self.parts.store.clone(),
            self.parts.instance.clone(),
            self.parts.clock.clone(),
        );
        let others = self.agents.map_or(1, |(_, agents)| agents);
        let known = self.skew.filter(|(at, _)| self.now().saturating_sub(*at) < SKEW_EVERY);
        let asked = claim.clone();
        let work = async move {
            let claimer = Claimer {
                store: &store,
                instance: &instance,
                lease,
                now: clock.wall(),
                others,
            };
            if let Some(answer) = claimer.turn(&claim, &dice).await {
                return (None, answer);
            }
            // After that: it is a connection of its own, and with TLS the dearest part of a claim.
            let looked = match known {
                Some((_, skew)) => Ok(skew),
                None => look_at_clock(&store, &clock).await,
            };
            match looked {
                Err(error) => (None, Claimed::NoStore(error.to_string())),
                Ok(skew) if skew > MOST_SKEW => (Some(skew), Claimed::NoStore(too_far_off(skew))),
                Ok(skew) => (Some(skew), claimer.claim(&claim).await),
            }
        };
        Box::pin(work.into_actor(self).map(move |(skew, claimed), watcher, _| {
            if let Some(skew) = skew
                && known.is_none()
            {
                watcher.skew = Some((watcher.now(), skew));
            }
            if claimed == Claimed::Granted {
                watcher.running.insert(asked.job, (asked.run_id, asked.planned));
            }
            claimed
        }))
    }
}
impl Handler<ReleaseClaim> for JobWatcher {
    type Result = ();
    fn handle(&mut self, ReleaseClaim { job, run_id }: ReleaseClaim, ctx: &mut Self::Context) {
        if self.running.get(&job).is_some_and(|(running, _)| *running == run_id) {
            self.running.remove(&job);
        }
        self.to_release.insert(job, run_id);
        self.tidy(ctx);
    }
}
impl Handler<MarkOnce> for JobWatcher {
    type Result = ResponseFuture<OnceMarked>;
    fn handle(&mut self, ask: MarkOnce, _: &mut Self::Context) -> Self::Result {
        let Some((ip, _)) = self.held() else {
            return Box::pin(std::future::ready(OnceMarked::NoStore("not registered".into())));
        };
        let (store, gate, now) = (
            self.parts.store.clone(),
            self.parts.gate.clone(),
            self.parts.clock.wall(),
        );
        Box::pin(async move { gate::mark_once(gate.as_ref(), &store, &ip.to_string(), &ask, now).await })
    }
}
impl Handler<WriteJob> for JobWatcher {
    type Result = ResponseFuture<Result<Written, WriteRefused>>;
    fn handle(&mut self, WriteJob { group, task_id, value }: WriteJob, _: &mut Self::Context) -> Self::Result {
        let key = match (group, self.following) {
            (Some(group), _) => JobKey::group(group, task_id),
            (None, Some(ip)) => JobKey::host(ip.to_string(), task_id),
            (None, None) => {
                let why = "this agent has no address in the store now".to_owned();
                return Box::pin(std::future::ready(Err(WriteRefused::Store(why))));
            }
        };
        let store = self.parts.store.clone();
        Box::pin(async move { write_job(&store, key, value).await })
    }
}
/// Done twice it does no harm, and there is nobody to compare with: the last word counts.
async fn write_job(store: &SharedStore, key: JobKey, value: Option<bytes::Bytes>) -> Result<Written, WriteRefused> {
    let path = key.path();
    let refused = |error: StoreError| WriteRefused::Store(error.to_string());
    let existed = store.get(&path).await.map_err(refused)?.is_some();
    let op = match value {
        None if !existed => return Err(WriteRefused::Unknown),
        None => Op::delete(path),
        Some(value) => Op::put(path, value, None),
    };
    let done = store
        .transact(Transaction::of(vec![op]).idempotent())
        .await
        .map_err(refused)?;
    Ok(Written {
        key,
        mod_revision: done.revision,
        existed,
    })
}
impl Handler<CheckSigned> for JobWatcher {
    type Result = ResponseFuture<Result<(), Invalid>>;
    fn handle(&mut self, ask: CheckSigned, _: &mut Self::Context) -> Self::Result {
        let key = match (ask.group, self.following) {
            (Some(group), _) => Some(JobKey::group(group, ask.task_id)),
            (None, ip) => ip.map(|ip| JobKey::host(ip.to_string(), ask.task_id)),
        };
        // Without an address it cannot be written either.
        let (Some(gate), Some(key)) = (self.parts.gate.clone(), key) else {
            return Box::pin(std::future::ready(Ok(())));
        };
        let now = self.parts.clock.wall();
        let look = blocking(move || Ok(gate.would_take(&key.path(), &ask.value, now)));
        Box::pin(async move {
            look.await.unwrap_or_else(|error| {
                Err(Invalid {
                    field: "signature".into(),
                    found: format!("one that could not be looked at: {error}"),
                    accepted: "one that fits".into(),
                })
            })
        })
    }
}
impl Handler<ObserveWatcher> for JobWatcher {
    type Result = MessageResult<ObserveWatcher>;
    fn handle(&mut self, _: ObserveWatcher, ctx: &mut Self::Context) -> Self::Result {
        self.ask_again(ctx);
        let skew = self
            .skew
            .filter(|(_, skew)| *skew > MOST_SKEW)
            .map(|(_, skew)| format!("{}: it runs no exclusive jobs", too_far_off(skew)));
        let trouble = [&self.read_trouble, &self.write_trouble, &skew];
        MessageResult(WatcherView {
            jobs: self.jobs,
            stale: self.stale_since.map(|since| self.now().saturating_sub(since)),
            revision: self.revision,
            reads: self.reads,
            unwritten: self.records.unwritten(),
            trouble: trouble.into_iter().flatten().cloned().collect(),
        })
    }
}
/// Seconds between this host's clock and the store's.
pub(super) async fn look_at_clock(store: &SharedStore, clock: &SharedClock) -> Result<i64, StoreError> {
    let wall = store.wall().await?;
    Ok(wall.map_or(0, |wall| (clock.wall().as_second() - wall.as_second()).abs()))
}
fn too_far_off(skew: i64) -> String {
    format!("this host's clock is {skew} s off etcd's")
}
