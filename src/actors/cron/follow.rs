//! What JobWatcher thinks about the store: read all, then follow what changes; after any break read all again and tell the difference.
//! Without actix.
//!
//! The difference is by *unequal* (mod_revision and value), never by greater: a restored store counts on from an older revision and may
//! be past ours by now. A job that did not change is told to nobody.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::gate::SharedGate;
use crate::{
    clock::SharedClock,
    messages::jobs::{JobEntry, JobsChanged, Signed},
    model::{Invalid, JobKey},
    store::{
        Changes, Entry, Event, SharedStore, StoreError, Watch,
        kept::{Kept, Whose},
        keys,
    },
};

const NOT_REMEMBERED: &str = "could not remember the jobs in the data dir";
/// Even if nothing breaks: whatever went wrong unseen is mended then.
const READ_AGAIN: Duration = Duration::from_secs(3600);
/// While a signature is refused: whether the clock was set since, or a disk could not be written. Then all is read and judged again.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);
/// A clock that is slewed is not set.
const CLOCK_SET: SignedDuration = SignedDuration::from_secs(2);

pub struct Follow {
    store: SharedStore,
    /// None: the store is on this host, nothing is to be remembered of it.
    kept: Option<Kept>,
    whose: Whose,
    table: BTreeMap<String, Row>,
    /// The runner has this table.
    told: bool,
    /// `kept` has this table.
    remembered: bool,
    state: State,
    read_again: Instant,
    /// None: signatures are not looked at.
    door: Option<Door>,
    pub revision: i64,
    pub reads: u64,
}
/// Who looks at signatures, and what he has turned away.
struct Door {
    gate: SharedGate,
    clock: SharedClock,
    refused: BTreeSet<String>,
    /// Wall time less steady time, when that was.
    judged: Option<SignedDuration>,
    look_again: Instant,
    /// A serial could not be written.
    unkept: bool,
}
impl Door {
    fn drift(&self) -> SignedDuration {
        let steady = SignedDuration::try_from(self.clock.steady()).unwrap_or(SignedDuration::MAX);
        let wall = self.clock.wall().duration_since(Timestamp::UNIX_EPOCH);
        wall.saturating_sub(steady)
    }
    /// What was refused may be good by now.
    fn is_to_be_asked_again(&self) -> bool {
        let set = |judged: SignedDuration| self.drift().saturating_sub(judged).abs() > CLOCK_SET;
        !self.refused.is_empty() && (self.unkept || self.judged.is_some_and(set))
    }
}
enum State {
    Unread,
    /// Everything up to that revision is in the table.
    Read,
    Following(Watch),
}
/// Small: there may be 100,000.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Row {
    create_revision: i64,
    mod_revision: i64,
    value: u128,
}
impl Row {
    fn of(entry: &Entry) -> Self {
        Self {
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision,
            value: xxh3_128(&entry.value),
        }
    }
}

/// What is new.
#[derive(Default)]
pub struct Seen {
    /// None: nothing for the runner.
    pub jobs: Option<JobsChanged>,
    pub commands: Vec<Entry>,
    /// The same as in `jobs`, for `kept`.
    put: Vec<Entry>,
    removed: Vec<String>,
}

impl Follow {
    pub fn new(store: SharedStore, kept: Option<Kept>, whose: Whose) -> Self {
        Self {
            store,
            kept,
            whose,
            table: BTreeMap::new(),
            told: false,
            remembered: false,
            state: State::Unread,
            read_again: Instant::now() + READ_AGAIN,
            door: None,
            revision: 0,
            reads: 0,
        }
    }
    /// Signatures are looked at.
    pub fn with_gate(mut self, gate: SharedGate, clock: SharedClock) -> Self {
        self.door = Some(Door {
            gate,
            clock,
            refused: BTreeSet::new(),
            judged: None,
            look_again: Instant::now(),
            unkept: false,
        });
        self
    }
    pub fn ip(&self) -> &str {
        &self.whose.ip
    }
    pub fn jobs(&self) -> usize {
        self.table.len()
    }
    /// The next that is new: at once after a start or a break, else when something changes.
    pub async fn next(&mut self) -> Result<Seen, StoreError> {
        let mut seen = self.try_next().await;
        match &mut seen {
            Ok(seen) => {
                if let Some(jobs) = &mut seen.jobs {
                    self.judge(jobs).await;
                }
            }
            Err(_) => self.state = State::Unread,
        }
        seen
    }
    async fn judge(&mut self, jobs: &mut JobsChanged) {
        let Some(door) = &mut self.door else { return };
        if jobs.full {
            door.refused.clear();
        }
        for key in &jobs.removed {
            door.refused.remove(&key.path());
        }
        if jobs.put.is_empty() {
            return;
        }
        let (gate, now) = (door.gate.clone(), door.clock.wall());
        door.judged = Some(door.drift());
        door.look_again = Instant::now() + LOOK_AT_CLOCK;
        let asked = jobs
            .put
            .iter()
            .map(|job| (job.key.path(), job.value.clone()))
            .collect::<Vec<_>>();
        let judged = blocking(move || Ok(gate.jobs(&asked, now))).await;
        let (verdicts, unkept) = judged.unwrap_or_else(|_| (vec![], true));
        door.unkept |= unkept;
        // If that fell, there are none, and nothing is let in.
        let mut verdicts = verdicts.into_iter();
        for job in &mut jobs.put {
            job.signed = verdicts.next().unwrap_or_else(nobody_looked);
            let path = job.key.path();
            match job.signed {
                Signed::Refused(_) => door.refused.insert(path),
                _ => door.refused.remove(&path),
            };
        }
    }
    fn was_refused(&self, key: &str) -> bool {
        self.door.as_ref().is_some_and(|door| door.refused.contains(key))
    }
    /// Until when the watch is waited for.
    fn patience(&self) -> Instant {
        match &self.door {
            Some(door) if !door.refused.is_empty() => door.look_again.min(self.read_again),
            _ => self.read_again,
        }
    }
    /// That was in vain: is all to be read again?
    fn look_around(&mut self) -> bool {
        let now = Instant::now();
        let again = match &mut self.door {
            Some(door) => {
                door.look_again = now + LOOK_AT_CLOCK;
                door.is_to_be_asked_again()
            }
            None => false,
        };
        again || now >= self.read_again
    }
    async fn try_next(&mut self) -> Result<Seen, StoreError> {
        loop {
            let patience = self.patience();
            match &mut self.state {
                State::Unread => return self.read().await,
                State::Read => {
                    let watch = self.store.watch(&self.prefixes(), self.revision).await?;
                    self.state = State::Following(watch);
                }
                State::Following(watch) => match tokio::time::timeout_at(patience, watch.next()).await {
                    Err(_) => {
                        if self.look_around() {
                            self.state = State::Unread;
                        }
                    }
                    Ok(None) => return Err(StoreError::Away("the watch is over".into())),
                    Ok(Some(changes)) => {
                        let seen = self.apply(changes?);
                        if seen.jobs.is_some() || !seen.commands.is_empty() {
                            return Ok(seen);
                        }
                    }
                },
            }
        }
    }
    fn prefixes(&self) -> Vec<String> {
        let mut all = vec![keys::jobs(&self.whose.ip), keys::commands(&self.whose.ip)];
        all.extend(self.whose.group.as_deref().map(keys::group_jobs));
        all
    }
    async fn read(&mut self) -> Result<Seen, StoreError> {
        let listing = self.store.list(&self.prefixes()).await?;
        self.reads += 1;
        self.read_again = Instant::now() + READ_AGAIN;
        if let Some(door) = &mut self.door {
            door.unkept = false; // all that was refused is asked again
        }
        if listing.cluster != self.whose.cluster {
            self.whose.cluster = listing.cluster;
            self.remembered = false;
        }
        self.revision = listing.revision;
        self.state = State::Read;
        Ok(self.compare(listing.entries))
    }
    /// This is all there is now.
    fn compare(&mut self, entries: Vec<Entry>) -> Seen {
        let mut seen = Seen::default();
        let full = !self.told || !self.remembered;
        let mut table = BTreeMap::new();
        for entry in entries {
            if JobKey::of_path(&entry.key).is_none() {
                if entry.key.starts_with(&keys::commands(&self.whose.ip)) {
                    seen.commands.push(entry);
                }
                continue;
            }
            let row = Row::of(&entry);
            if full || self.table.get(&entry.key) != Some(&row) || self.was_refused(&entry.key) {
                seen.put.push(entry.clone());
            }
            table.insert(entry.key, row);
        }
        seen.removed = self
            .table
            .keys()
            .filter(|key| !table.contains_key(*key))
            .cloned()
            .collect();
        self.table = table;
        self.message(seen, full)
    }
    fn apply(&mut self, changes: Changes) -> Seen {
        let mut seen = Seen::default();
        self.revision = self.revision.max(changes.revision);
        for event in changes.events {
            match event {
                Event::Put(entry) if JobKey::of_path(&entry.key).is_some() => {
                    let row = Row::of(&entry);
                    if self.table.insert(entry.key.clone(), row) != Some(row) {
                        seen.removed.retain(|key| *key != entry.key);
                        seen.put.retain(|other| other.key != entry.key);
                        seen.put.push(entry);
                    }
                }
                Event::Put(entry) => seen.commands.push(entry),
                Event::Deleted { key, .. } => {
                    seen.commands.retain(|command| command.key != key);
                    if self.table.remove(&key).is_some() {
                        seen.put.retain(|entry| entry.key != key);
                        seen.removed.push(key);
                    }
                }
            }
        }
        self.message(seen, false)
    }
    fn message(&self, mut seen: Seen, full: bool) -> Seen {
        if full || !seen.put.is_empty() || !seen.removed.is_empty() {
            seen.jobs = Some(JobsChanged {
                full,
                put: seen.put.iter().filter_map(job).collect(),
                removed: match full {
                    true => vec![],
                    false => seen.removed.iter().filter_map(|key| JobKey::of_path(key)).collect(),
                },
            });
        }
        seen
    }
    /// What was known when the store was last there; none: nothing that is for us.
    pub async fn last_time(&mut self) -> Result<Option<JobsChanged>, StoreError> {
        let Some(kept) = self.kept.clone() else { return Ok(None) };
        let whose = self.whose.clone();
        let Some((cluster, entries)) = blocking(move || kept.load(&whose)).await? else {
            return Ok(None);
        };
        self.whose.cluster = cluster;
        self.table = entries
            .iter()
            .map(|entry| (entry.key.clone(), Row::of(entry)))
            .collect();
        let mut jobs = JobsChanged {
            full: true,
            put: entries.iter().filter_map(job).collect(),
            removed: vec![],
        };
        self.judge(&mut jobs).await;
        Ok(Some(jobs))
    }
    /// The runner has taken it in.
    pub async fn taken_in(&mut self, seen: &mut Seen) -> Result<(), StoreError> {
        self.told = true;
        let Some(jobs) = &seen.jobs else { return Ok(()) };
        let Some(kept) = self.kept.clone() else {
            self.remembered = true;
            return Ok(());
        };
        let (full, whose) = (jobs.full, self.whose.clone());
        if !full && !self.remembered {
            return Err(StoreError::Away(NOT_REMEMBERED.into())); // an earlier change is missing there
        }
        let (put, removed) = (std::mem::take(&mut seen.put), std::mem::take(&mut seen.removed));
        let done = blocking(move || match full {
            true => kept.replace(&whose, &put),
            false => kept.change(&put, &removed),
        });
        // A change that is not on disk makes the next read a full one.
        self.remembered = done.await.is_ok();
        match self.remembered {
            true => Ok(()),
            false => Err(StoreError::Away(NOT_REMEMBERED.into())),
        }
    }
    /// The runner fell over it, or it is not known what it has.
    pub fn not_taken_in(&mut self) {
        self.told = false;
        self.state = State::Unread;
    }
    /// The runner has a table from us.
    pub fn is_told(&self) -> bool {
        self.told
    }
    /// The runner has what `last_time` gave.
    pub fn told_last_time(&mut self) {
        (self.told, self.remembered) = (true, true);
    }
}
fn job(entry: &Entry) -> Option<JobEntry> {
    Some(JobEntry {
        key: JobKey::of_path(&entry.key)?,
        value: entry.value.clone(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        signed: Signed::Unasked,
    })
}
fn nobody_looked() -> Signed {
    Signed::Refused(Box::new(Invalid {
        field: "signature".into(),
        found: "one that could not be looked at, the log says why".into(),
        accepted: "one that fits".into(),
    }))
}
/// Beside the arbiter: nothing slow may stand on it.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let task = tokio::task::spawn_blocking(work);
    task.await
        .unwrap_or_else(|error| Err(StoreError::Unknown(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Op, Store, Transaction, embedded, memory::MemoryStore};

    fn whose() -> Whose {
        Whose {
            instance: "a".into(),
            ip: "10.0.0.1".into(),
            group: Some("web".into()),
            ..Whose::default()
        }
    }
    /// `full`, `+key=value`, `-key`, `!command`.
    fn shown(seen: &Seen) -> Vec<String> {
        let mut all = vec![];
        if let Some(jobs) = &seen.jobs {
            all.extend(jobs.full.then(|| "full".to_owned()));
            let value = |entry: &JobEntry| String::from_utf8_lossy(&entry.value).into_owned();
            all.extend(jobs.put.iter().map(|entry| format!("+{}={}", entry.key, value(entry))));
            all.extend(jobs.removed.iter().map(|key| format!("-{key}")));
        }
        all.extend(seen.commands.iter().map(|command| format!("!{}", command.key)));
        all
    }
    async fn put(store: &MemoryStore, pairs: &[(&str, &str)]) {
        let ops = pairs.iter().map(|(key, value)| match *value {
            "" => Op::delete(*key),
            value => Op::put(*key, value.to_owned(), None),
        });
        store.transact(Transaction::of(ops.collect())).await.unwrap();
    }
    async fn seen(follow: &mut Follow) -> Vec<String> {
        let mut seen = follow.next().await.unwrap();
        follow.taken_in(&mut seen).await.unwrap();
        shown(&seen)
    }

    #[tokio::test]
    async fn all_then_what_changes_and_only_ours() {
        let store = MemoryStore::default();
        put(
            &store,
            &[
                ("/cron/jobs/10.0.0.1/1", "a"),
                ("/cron/jobs/10.0.0.11/1", "not ours"),
                ("/cron/groups/web/jobs/2", "b"),
            ],
        )
        .await;
        let mut follow = Follow::new(Arc::new(store.clone()), None, whose());
        assert_eq!(
            seen(&mut follow).await,
            ["full", "+/cron/jobs/10.0.0.1/1=a", "+/cron/groups/web/jobs/2=b"]
        );
        put(
            &store,
            &[
                ("/cron/jobs/10.0.0.11/1", "not ours"),
                ("/cron/groups/webs/jobs/2", "not ours"),
            ],
        )
        .await;
        put(
            &store,
            &[("/cron/jobs/10.0.0.1/1", "c"), ("/cron/jobs/10.0.0.1/3", "d")],
        )
        .await;
        assert_eq!(
            seen(&mut follow).await,
            ["+/cron/jobs/10.0.0.1/1=c", "+/cron/jobs/10.0.0.1/3=d"]
        );
        put(&store, &[("/cron/groups/web/jobs/2", "")]).await;
        assert_eq!(seen(&mut follow).await, ["-/cron/groups/web/jobs/2"]);
        put(&store, &[("/cron/commands/10.0.0.1/x", "{}")]).await;
        assert_eq!(seen(&mut follow).await, ["!/cron/commands/10.0.0.1/x"]);
        assert_eq!((follow.reads, follow.jobs()), (1, 2));
    }

    #[tokio::test]
    async fn after_a_break_only_the_difference_is_told_whatever_the_revisions_say() {
        let store = MemoryStore::default();
        put(&store, &[("/cron/jobs/10.0.0.1/1", "a")]).await;
        put(&store, &[("/cron/jobs/10.0.0.1/2", "b")]).await;
        put(&store, &[("/cron/jobs/10.0.0.1/3", "c")]).await;
        let mut follow = Follow::new(Arc::new(store.clone()), None, whose());
        seen(&mut follow).await;
        let backup = store.snapshot();
        let follow_once = async |follow: &mut Follow| {
            // The watch is opened by waiting on it.
            tokio::select! {
                biased;
                other = follow.next() => panic!("{:?}", other.map(|seen| shown(&seen))),
                () = tokio::task::yield_now() => {}
            }
        };
        follow_once(&mut follow).await;

        // Away, and changed and compacted meanwhile: the deletion is seen, job 1 is not touched.
        store.break_watches();
        put(&store, &[("/cron/jobs/10.0.0.1/2", ""), ("/cron/jobs/10.0.0.1/3", "d")]).await;
        store.compact();
        assert!(follow.next().await.is_err());
        assert_eq!(
            seen(&mut follow).await,
            ["+/cron/jobs/10.0.0.1/3=d", "-/cron/jobs/10.0.0.1/2"]
        );
        follow_once(&mut follow).await;

        // An older backup, and then past our revision with another value under the very same revision.
        store.restore(&backup);
        assert!(follow.next().await.is_err());
        assert_eq!(
            seen(&mut follow).await,
            ["+/cron/jobs/10.0.0.1/2=b", "+/cron/jobs/10.0.0.1/3=c"]
        );
        follow_once(&mut follow).await;
        let ours = store.get("/cron/jobs/10.0.0.1/3").await.unwrap().unwrap();
        store.restore(&backup);
        put(&store, &[("/cron/jobs/10.0.0.1/4", "e")]).await;
        assert!(follow.next().await.is_err());
        assert_eq!(seen(&mut follow).await, ["+/cron/jobs/10.0.0.1/4=e"]);
        assert_eq!(store.get("/cron/jobs/10.0.0.1/3").await.unwrap().unwrap(), ours);
        follow_once(&mut follow).await;

        // An empty one.
        store.restore(&MemoryStore::default().snapshot());
        assert!(follow.next().await.is_err());
        assert_eq!(
            seen(&mut follow).await,
            [
                "-/cron/jobs/10.0.0.1/1",
                "-/cron/jobs/10.0.0.1/2",
                "-/cron/jobs/10.0.0.1/3",
                "-/cron/jobs/10.0.0.1/4"
            ]
        );
    }

    #[tokio::test]
    async fn a_compaction_between_read_and_watch_is_read_again() {
        let store = MemoryStore::default();
        let mut follow = Follow::new(Arc::new(store.clone()), None, whose());
        assert_eq!(seen(&mut follow).await, ["full"]);
        put(&store, &[("/cron/jobs/10.0.0.1/1", "a")]).await;
        put(&store, &[("/cron/jobs/10.0.0.1/2", "b")]).await;
        store.compact();
        assert!(matches!(follow.next().await, Err(StoreError::Compacted(_))));
        assert_eq!(
            seen(&mut follow).await,
            ["+/cron/jobs/10.0.0.1/1=a", "+/cron/jobs/10.0.0.1/2=b"]
        );
    }

    #[tokio::test]
    async fn the_last_table_is_there_after_a_start_and_the_difference_follows() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(embedded::open(dir.path()).unwrap().database);
        let store = MemoryStore::default();
        put(
            &store,
            &[("/cron/jobs/10.0.0.1/1", "a"), ("/cron/jobs/10.0.0.1/2", "b")],
        )
        .await;
        let mut follow = Follow::new(Arc::new(store.clone()), Some(kept.clone()), whose());
        assert_eq!(follow.last_time().await.unwrap().map(|jobs| jobs.put.len()), None);
        seen(&mut follow).await;
        put(&store, &[("/cron/jobs/10.0.0.1/2", "c")]).await;
        seen(&mut follow).await;

        store.away(true);
        let mut follow = Follow::new(Arc::new(store.clone()), Some(kept.clone()), whose());
        assert!(follow.next().await.is_err());
        let jobs = follow.last_time().await.unwrap().unwrap();
        follow.told_last_time();
        let values = jobs.put.iter().map(|job| job.value.clone()).collect::<Vec<_>>();
        assert_eq!((jobs.full, &values[..]), (true, &["a".into(), "c".into()][..]));
        store.away(false);
        put(&store, &[("/cron/jobs/10.0.0.1/1", "")]).await;
        assert_eq!(
            seen(&mut follow).await,
            ["-/cron/jobs/10.0.0.1/1"],
            "job 2 is not touched"
        );
        let mut other = Follow::new(
            Arc::new(store.clone()),
            Some(kept),
            Whose {
                ip: "10.0.0.2".into(),
                ..whose()
            },
        );
        assert_eq!(other.last_time().await.unwrap().map(|jobs| jobs.put.len()), None);
    }

    #[tokio::test]
    async fn a_runner_that_fell_gets_all_again() {
        let store = MemoryStore::default();
        put(&store, &[("/cron/jobs/10.0.0.1/1", "a")]).await;
        let mut follow = Follow::new(Arc::new(store.clone()), None, whose());
        seen(&mut follow).await;
        put(&store, &[("/cron/jobs/10.0.0.1/2", "b")]).await;
        assert_eq!(shown(&follow.next().await.unwrap()), ["+/cron/jobs/10.0.0.1/2=b"]);
        follow.not_taken_in();
        assert_eq!(
            seen(&mut follow).await,
            ["full", "+/cron/jobs/10.0.0.1/1=a", "+/cron/jobs/10.0.0.1/2=b"]
        );
    }
}
