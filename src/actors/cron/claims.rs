//! What stands in the store for one firing or one run: the claim of an exclusive job, which only ever moves forward in planned time, who
//! runs it now, and the mark of a `once` job. Without actix.
use std::time::Duration;

use jiff::Timestamp;

use crate::{
    messages::jobs::{Claim, Claimed, MarkOnce, OnceMarked},
    model::{JobKey, RunId, job::Scope},
    store::{
        Compare, LeaseId, Op, SharedStore, StoreError, Transaction,
        keys::{self, Once},
    },
};

/// A firing that is older is never claimed.
const TOO_OLD: i64 = 300;
/// The most that a clock may be off the store's.
pub const MOST_SKEW: i64 = 5;
/// Waits between the tries of one firing; each is four times as likely as the one before to ask.
const NEXT_TRY: Duration = Duration::from_millis(300);
/// Whoever has lost looks whether another has won; all together they look at this rate.
const LOOKS_PER_SECOND: f64 = 5000.0;

/// Who claims.
pub struct Claimer<'a> {
    pub store: &'a SharedStore,
    pub instance: &'a str,
    pub lease: LeaseId,
    pub now: Timestamp,
    /// Agents that may try too.
    pub others: u64,
}
impl Claimer<'_> {
    /// Waits until it is this agent's turn to try. None: it is; else the answer. `dice`: evenly from 0 to 1, one for each try and wait.
    ///
    /// 2,000 that all try cost etcd half a second, and as much if they all look first: so a few try at once and look at nothing before,
    /// and of the others each looks once when these have won, and more try only if nobody did.
    pub async fn turn(&self, claim: &Claim, dice: &(dyn Fn() -> f64 + Send + Sync)) -> Option<Claimed> {
        let Scope::Group(group) = &claim.job.scope else {
            return Some(Claimed::Taken("not a job of a group".into()));
        };
        if self.now.as_second() - claim.planned.as_second() > TOO_OLD {
            return Some(Claimed::Taken("older than 5 minutes".into()));
        }
        let others = self.others.max(1) as f64;
        let mut chance = 4.0 / others;
        while dice() >= chance {
            chance *= 4.0;
            tokio::time::sleep(NEXT_TRY + Duration::from_secs_f64(others / LOOKS_PER_SECOND * dice())).await;
            match self.store.glance(&keys::claim(group, &claim.job.task_id)).await {
                Ok(Some(entry)) if is_claimed(&entry.value, claim.planned) => {
                    return Some(Claimed::Taken("claimed".into()));
                }
                Ok(_) => {}
                Err(error) => return Some(Claimed::NoStore(error.to_string())),
            }
        }
        None
    }
    pub async fn claim(&self, claim: &Claim) -> Claimed {
        let Scope::Group(group) = &claim.job.scope else {
            return Claimed::Taken("not a job of a group".into());
        };
        match self.try_once(claim, group).await {
            Ok(claimed) => claimed,
            Err(error) => Claimed::NoStore(error.to_string()),
        }
    }
    async fn try_once(&self, claim: &Claim, group: &str) -> Result<Claimed, StoreError> {
        let task_id = &claim.job.task_id;
        let (key, running) = (keys::claim(group, task_id), keys::running(group, task_id));
        let last = self.store.get(&key).await?;
        if let Some(entry) = &last
            && is_claimed(&entry.value, claim.planned)
        {
            return Ok(self.ours(&entry.value, claim));
        }
        let value = keys::json(&keys::Claimed {
            planned: keys::instant(claim.planned),
            instance: self.instance.to_owned(),
            run_id: claim.run_id.to_string(),
        });
        let job = claim.job.path();
        let when = vec![
            last.as_ref().map_or(Compare::absent(&*key), Compare::unchanged),
            Compare::ModRevision {
                key: job.clone(),
                is: claim.mod_revision,
            },
            Compare::absent(&*running),
        ];
        let then = vec![
            Op::put(&*key, value.clone(), None),
            Op::put(&*running, value, Some(self.lease)),
        ];
        let transaction = Transaction::when(when, then).or_else(vec![Op::get(&*key), Op::get(job), Op::get(&*running)]);
        let outcome = match self.store.transact(transaction).await {
            Err(StoreError::Unknown(why)) => {
                // With our run in it, it is ours.
                let Some(entry) = self.store.get(&key).await? else {
                    return Err(StoreError::Away(why));
                };
                return match self.ours(&entry.value, claim) {
                    Claimed::Granted => Ok(Claimed::Granted),
                    other if is_claimed(&entry.value, claim.planned) => Ok(other),
                    _ => Err(StoreError::Away(why)),
                };
            }
            outcome => outcome?,
        };
        if outcome.held {
            return Ok(Claimed::Granted);
        }
        let [claimed, job, running] = &outcome.got[..] else {
            return Err(StoreError::Invalid("an answer without what was asked for".into()));
        };
        Ok(Claimed::Taken(match (claimed, job, running) {
            (Some(entry), ..) if is_claimed(&entry.value, claim.planned) => "claimed".into(),
            (_, job, _) if job.as_ref().map(|job| job.mod_revision) != Some(claim.mod_revision) => "changed".into(),
            (.., Some(_)) => "running elsewhere".into(),
            _ => "claimed".into(),
        }))
    }
    fn ours(&self, value: &[u8], claim: &Claim) -> Claimed {
        match keys::read::<keys::Claimed>(value).run_id == claim.run_id.to_string() {
            true => Claimed::Granted,
            false => Claimed::Taken("claimed".into()),
        }
    }
}
/// That firing or a later one. What cannot be read claims nothing.
fn is_claimed(value: &[u8], planned: Timestamp) -> bool {
    let last = keys::read::<keys::Claimed>(value).planned.parse::<Timestamp>();
    last.is_ok_and(|last| last.as_second() >= planned.as_second())
}

/// The run is over. Only what is ours goes.
pub async fn release(store: &SharedStore, job: &JobKey, run_id: RunId) -> Result<(), StoreError> {
    let Scope::Group(group) = &job.scope else { return Ok(()) };
    let key = keys::running(group, &job.task_id);
    let Some(entry) = store.get(&key).await? else {
        return Ok(());
    };
    if keys::read::<keys::Claimed>(&entry.value).run_id != run_id.to_string() {
        return Ok(());
    }
    let gone = Transaction::when(vec![Compare::unchanged(&entry)], vec![Op::delete(key)]);
    store.transact(gone.idempotent()).await.map(drop)
}
/// The lease is another one now: who runs something goes on saying so under it.
pub async fn put_running_again(
    store: &SharedStore,
    instance: &str,
    lease: LeaseId,
    job: &JobKey,
    run: (RunId, Timestamp),
) -> Result<(), StoreError> {
    let Scope::Group(group) = &job.scope else { return Ok(()) };
    let key = keys::running(group, &job.task_id);
    let value = keys::json(&keys::Claimed {
        planned: keys::instant(run.1),
        instance: instance.to_owned(),
        run_id: run.0.to_string(),
    });
    let when = match store.get(&key).await? {
        None => Compare::absent(&*key),
        Some(entry) if entry.value == value && entry.lease != Some(lease) => Compare::unchanged(&entry),
        Some(_) => return Ok(()), // it stands, or somebody else runs it by now
    };
    let put = Transaction::when(vec![when], vec![Op::put(key, value, Some(lease))]);
    store.transact(put.idempotent()).await.map(drop)
}

/// Marks a `once` job before its run. That it has run is also remembered here, with its start record: either of them stops the next.
pub async fn mark_once(store: &SharedStore, ip: &str, ask: &MarkOnce, now: Timestamp) -> OnceMarked {
    match try_mark_once(store, ip, ask, now).await {
        Ok(marked) => marked,
        Err(error) => OnceMarked::NoStore(error.to_string()),
    }
}
async fn try_mark_once(
    store: &SharedStore,
    ip: &str,
    ask: &MarkOnce,
    now: Timestamp,
) -> Result<OnceMarked, StoreError> {
    let mark = Once {
        create_revision: ask.create_revision,
        value_hash: ask.value_hash.clone(),
        at: keys::instant(now),
    };
    let same = |value: &[u8]| {
        let other = keys::read::<Once>(value);
        (other.create_revision, &other.value_hash) == (mark.create_revision, &mark.value_hash)
    };
    let (key, node) = (keys::once(ip, &ask.job.task_id), keys::node(ip));
    let old_enough = Compare::MadeBy {
        key: node.clone(),
        revision: ask.create_revision,
    };
    let mark_when = |when: Compare| {
        Transaction::when(
            vec![when, old_enough.clone()],
            vec![Op::put(&*key, keys::json(&mark), None)],
        )
        .or_else(vec![Op::get(&*key), Op::get(&*node)])
    };
    // Mostly there is none yet. A lost answer: the next try finds the mark and does not run. Once at most.
    let first = store.transact(mark_when(Compare::absent(&*key))).await?;
    if let ([there, node], false) = (first.got.as_slice(), first.held) {
        if there.as_ref().is_some_and(|entry| same(&entry.value)) {
            return Ok(OnceMarked::Already);
        }
        if node
            .as_ref()
            .is_none_or(|node| node.create_revision > ask.create_revision)
        {
            return Ok(OnceMarked::TooYoung);
        }
        let as_read = there.as_ref().map_or(Compare::absent(&*key), Compare::unchanged);
        if !store.transact(mark_when(as_read)).await?.held {
            return Err(StoreError::Away("the mark was changed by another".into()));
        }
    }
    Ok(OnceMarked::Marked)
}
/// The job is gone: so is its mark.
pub async fn unmark_once(store: &SharedStore, ip: &str, job: &JobKey) -> Result<(), StoreError> {
    let key = keys::once(ip, &job.task_id);
    match store.get(&key).await? {
        Some(_) => store
            .transact(Transaction::of(vec![Op::delete(key)]).idempotent())
            .await
            .map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Store, memory::MemoryStore};

    const NOW: &str = "2026-11-25T10:00:00Z";
    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    async fn kit() -> (MemoryStore, SharedStore, JobKey, i64, LeaseId) {
        let store = MemoryStore::default();
        let job = JobKey::group("web", "7");
        let done = store
            .transact(Transaction::of(vec![Op::put(job.path(), "{}", None)]))
            .await
            .unwrap();
        let lease = store.grant(Duration::from_secs(30)).await.unwrap();
        (store.clone(), Arc::new(store), job, done.revision, lease)
    }
    async fn claim(
        store: &SharedStore,
        who: &str,
        lease: LeaseId,
        job: &JobKey,
        revision: i64,
        planned: &str,
        run: u128,
    ) -> Claimed {
        let claimer = Claimer {
            store,
            instance: who,
            lease,
            now: at(NOW),
            others: 5,
        };
        let ask = Claim {
            job: job.clone(),
            mod_revision: revision,
            planned: at(planned),
            run_id: RunId::of_u128(run),
        };
        match claimer.turn(&ask, &|| 0.0).await {
            None => claimer.claim(&ask).await,
            Some(answer) => answer,
        }
    }
    fn taken(why: &str) -> Claimed {
        Claimed::Taken(why.into())
    }

    #[tokio::test]
    async fn one_claims_and_only_forward() {
        let (memory, store, job, revision, lease) = kit().await;
        assert_eq!(
            claim(&store, "a", lease, &job, revision, NOW, 1).await,
            Claimed::Granted
        );
        assert_eq!(
            claim(&store, "b", lease, &job, revision, NOW, 2).await,
            taken("claimed")
        );
        let later = "2026-11-25T10:01:00Z";
        assert_eq!(
            claim(&store, "b", lease, &job, revision, later, 3).await,
            taken("running elsewhere")
        );
        release(&store, &job, RunId::of_u128(9)).await.unwrap();
        assert_eq!(
            claim(&store, "b", lease, &job, revision, later, 3).await,
            taken("running elsewhere"),
            "not ours"
        );
        release(&store, &job, RunId::of_u128(1)).await.unwrap();
        assert_eq!(
            claim(&store, "b", lease, &job, revision - 1, later, 3).await,
            taken("changed")
        );
        assert_eq!(
            claim(&store, "b", lease, &job, revision, later, 3).await,
            Claimed::Granted
        );
        release(&store, &job, RunId::of_u128(3)).await.unwrap();
        assert_eq!(
            claim(&store, "a", lease, &job, revision, NOW, 4).await,
            taken("claimed"),
            "never back"
        );
        assert_eq!(
            claim(&store, "a", lease, &job, revision, "2026-11-25T09:54:59Z", 5).await,
            taken("older than 5 minutes")
        );
        let value = store.get("/cron/claims/web/7").await.unwrap().unwrap().value;
        assert_eq!(
            value,
            r#"{"planned":"2026-11-25T10:01:00Z","instance":"b","run_id":"00000000000000000000000003"}"#
        );
        memory.away(true);
        assert!(matches!(
            claim(&store, "a", lease, &job, revision, "2026-11-25T10:02:00Z", 6).await,
            Claimed::NoStore(_)
        ));
    }
    #[tokio::test]
    async fn a_lost_answer_is_ours_if_our_run_is_in_it_and_a_new_lease_takes_the_running_key() {
        let (memory, store, job, revision, lease) = kit().await;
        memory.next_transaction(StoreError::Unknown("lost".into()));
        assert_eq!(
            claim(&store, "a", lease, &job, revision, NOW, 1).await,
            Claimed::Granted
        );
        memory.expire(lease);
        assert_eq!(store.get("/cron/running/web/7").await.unwrap(), None);
        let next = store.grant(Duration::from_secs(30)).await.unwrap();
        let run = (RunId::of_u128(1), at(NOW));
        put_running_again(&store, "a", next, &job, run).await.unwrap();
        put_running_again(&store, "b", lease, &job, (RunId::of_u128(2), at(NOW)))
            .await
            .unwrap();
        let entry = store.get("/cron/running/web/7").await.unwrap().unwrap();
        assert_eq!(
            (entry.lease, keys::read::<keys::Claimed>(&entry.value).instance),
            (Some(next), "a".to_owned())
        );
    }
    #[tokio::test(start_paused = true)]
    async fn few_of_many_try_and_more_if_nobody_did() {
        let (_, store, job, revision, lease) = kit().await;
        let claimer = Claimer {
            store: &store,
            instance: "a",
            lease,
            now: at(NOW),
            others: 4000,
        };
        let ask = Claim {
            job,
            mod_revision: revision,
            planned: at(NOW),
            run_id: RunId::of_u128(1),
        };
        let began = tokio::time::Instant::now();
        // 0.001, 0.004, 0.016, 0.064; and 0.3 s and 5 % of 0.8 s between them
        assert_eq!(claimer.turn(&ask, &|| 0.05).await, None);
        assert_eq!(began.elapsed().as_millis() / 10, 102);
        assert_eq!(claimer.claim(&ask).await, Claimed::Granted);
        // Whoever lost hears at its first look who has won.
        let began = tokio::time::Instant::now();
        assert_eq!(claimer.turn(&ask, &|| 0.05).await, Some(taken("claimed")));
        assert_eq!(began.elapsed().as_millis() / 10, 34);
    }
    #[tokio::test]
    async fn a_once_job_is_marked_once_and_again_when_it_is_another() {
        let (memory, store, ..) = kit().await;
        let put = |key: &'static str, value: &'static str| Transaction::of(vec![Op::put(key, value, None)]);
        store.transact(put("/agent/nodes/10.0.0.1", "{}")).await.unwrap();
        let ask = |create_revision, hash: &str| MarkOnce {
            job: JobKey::host("10.0.0.1", "7"),
            create_revision,
            value_hash: hash.into(),
            serial: None,
        };
        let mark = async |ask: &MarkOnce| mark_once(&store, "10.0.0.1", ask, at(NOW)).await;
        let revision = store.list(&[]).await.unwrap().revision + 1;
        assert_eq!(mark(&ask(1, "h")).await, OnceMarked::TooYoung);
        assert_eq!(mark(&ask(revision, "h")).await, OnceMarked::Marked);
        assert_eq!(mark(&ask(revision, "h")).await, OnceMarked::Already);
        // Another value, or made anew: another job.
        assert_eq!(mark(&ask(revision, "g")).await, OnceMarked::Marked);
        memory.away(true);
        assert!(matches!(mark(&ask(revision, "f")).await, OnceMarked::NoStore(_)));
        memory.away(false);
        unmark_once(&store, "10.0.0.1", &ask(1, "h").job).await.unwrap();
        let left = store.get("/cron/once/10.0.0.1/7").await.unwrap();
        assert_eq!(left, None);
        // The answer is lost: it counts as done.
        memory.next_transaction(StoreError::Unknown("lost".into()));
        assert!(matches!(mark(&ask(revision, "h")).await, OnceMarked::NoStore(_)));
        assert_eq!(mark(&ask(revision, "h")).await, OnceMarked::Already);
    }
}
