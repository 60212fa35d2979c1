//! What `embedded` and `memory` have in common: the whole table in memory, with etcd's semantics. Changes go through one writer; where
//! there is a disk, it has them before anybody sees them.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::{sync::broadcast, time::Instant};

use super::{
    Changes, Compare, Entry, Event, KeepAlive, LeaseId, Listing, Op, Outcome, Reply, StoreError, Transaction, Watch,
};

/// Transactions that are remembered for watches from an older revision, and that may wait at one watch that is slow.
const REMEMBERED: usize = 1024;

/// Where changes go before they count.
pub(super) trait Disk: Send + Sync {
    fn commit(&self, changes: &Changes) -> Result<(), StoreError>;
}

pub(super) struct Local {
    /// One writer at a time, over the disk and the table.
    writer: Mutex<()>,
    table: RwLock<Table>,
    disk: Option<Box<dyn Disk>>,
}
struct Table {
    revision: i64,
    entries: BTreeMap<String, Entry>,
    leases: HashMap<LeaseId, Lease>,
    next_lease: i64,
    recent: VecDeque<Arc<Changes>>,
    /// Watches go on from after this one or later.
    forgotten: i64,
    hub: broadcast::Sender<Arc<Changes>>,
}
struct Lease {
    ttl: Duration,
    ends: Instant,
    keys: BTreeSet<String>,
}
/// A transaction thought through, and not done yet.
struct Planned {
    outcome: Outcome,
    changes: Changes,
}

impl Local {
    pub fn new(revision: i64, entries: BTreeMap<String, Entry>, disk: Option<Box<dyn Disk>>) -> Arc<Self> {
        Arc::new(Self {
            writer: Mutex::default(),
            table: RwLock::new(Table {
                revision,
                entries,
                leases: HashMap::new(),
                next_lease: 1,
                recent: VecDeque::new(),
                forgotten: revision,
                hub: broadcast::channel(REMEMBERED).0,
            }),
            disk,
        })
    }
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.read().entries.get(key).cloned()
    }
    pub fn list(&self, prefixes: &[String]) -> Listing {
        let table = self.read();
        let under = |prefix: &String| {
            let prefix = prefix.clone();
            table
                .entries
                .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
                .map(|(_, entry)| entry)
                .take_while(|entry| entry.key.starts_with(&prefix))
                .cloned()
                .collect::<Vec<_>>()
        };
        Listing {
            entries: prefixes.iter().flat_map(under).collect(),
            revision: table.revision,
            cluster: 0,
        }
    }

    /// Blocks where there is a disk.
    pub fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        let _turn = self.turn();
        let planned = self.read().plan(transaction)?;
        self.carry_out(planned)
    }
    fn carry_out(&self, planned: Planned) -> Result<Outcome, StoreError> {
        let Planned { outcome, changes } = planned;
        if !changes.events.is_empty() {
            if let Some(disk) = &self.disk {
                disk.commit(&changes)?;
            }
            self.write().apply(changes);
        }
        Ok(outcome)
    }

    pub fn watch(&self, prefixes: &[String], after: i64) -> Watch {
        let (backlog, news) = {
            let table = self.read();
            if after < table.forgotten {
                let first = table.forgotten + 1;
                return Box::pin(stream::iter([Err(StoreError::Compacted(first))]));
            }
            (table.recent.iter().cloned().collect::<Vec<_>>(), table.hub.subscribe())
        };
        let prefixes = prefixes.to_vec();
        let ours = move |changes: &Changes| {
            let fits = |event: &&Event| prefixes.iter().any(|prefix| event.key().starts_with(prefix));
            let events = changes.events.iter().filter(fits).cloned().collect::<Vec<_>>();
            (changes.revision > after && !events.is_empty()).then_some(Changes {
                revision: changes.revision,
                events,
            })
        };
        let news = stream::unfold(Some(news), |news| async {
            let mut news = news?;
            match news.recv().await {
                Ok(changes) => Some((Ok(changes), Some(news))),
                Err(broadcast::error::RecvError::Lagged(n)) => {
                    let why = format!("this watch fell {n} changes behind");
                    Some((Err(StoreError::Away(why)), None))
                }
                Err(broadcast::error::RecvError::Closed) => Some((Err(StoreError::Away("watch ended".into())), None)),
            }
        });
        let all = stream::iter(backlog.into_iter().map(Ok)).chain(news);
        Box::pin(all.filter_map(move |item| {
            let item = match item {
                Ok(changes) => ours(&changes).map(Ok),
                Err(error) => Some(Err(error)),
            };
            std::future::ready(item)
        }))
    }

    pub fn grant(self: &Arc<Self>, ttl: Duration) -> LeaseId {
        let mut table = self.write();
        let id = LeaseId(table.next_lease);
        table.next_lease += 1;
        let ends = Instant::now() + ttl;
        let keys = BTreeSet::new();
        table.leases.insert(id, Lease { ttl, ends, keys });
        tokio::spawn(expire(Arc::downgrade(self), id, ends));
        id
    }
    pub fn beat(&self, id: LeaseId) -> Result<Duration, StoreError> {
        let mut table = self.write();
        let lease = table.leases.get_mut(&id).ok_or(StoreError::LeaseGone)?;
        lease.ends = Instant::now() + lease.ttl;
        Ok(lease.ttl)
    }
    pub fn revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let _turn = self.turn();
        let Some(lease) = self.write().leases.remove(&id) else {
            return Ok(());
        };
        let planned = self.read().plan_deletion(lease.keys);
        self.carry_out(planned).map(drop)
    }
    /// When it ends, if it still lives.
    fn ends(&self, id: LeaseId) -> Option<Instant> {
        self.read().leases.get(&id).map(|lease| lease.ends)
    }

    // ---- what a real store does behind our back
    /// Forgets what was up to now: older watches are refused.
    pub fn compact(&self) {
        let mut table = self.write();
        table.recent.clear();
        table.forgotten = table.revision;
    }
    /// Ends every watch.
    pub fn break_watches(&self) {
        self.write().hub = broadcast::channel(REMEMBERED).0;
    }
    /// Another table in its place, as a restored backup is. All leases are gone, all watches end.
    pub fn replace(&self, revision: i64, entries: BTreeMap<String, Entry>) {
        let _turn = self.turn();
        let mut table = self.write();
        table.revision = revision;
        table.entries = entries;
        table.leases.clear();
        table.recent.clear();
        table.forgotten = revision;
        table.hub = broadcast::channel(REMEMBERED).0;
    }
    pub fn snapshot(&self) -> (i64, BTreeMap<String, Entry>) {
        let table = self.read();
        (table.revision, table.entries.clone())
    }
    pub fn leases(&self) -> Vec<LeaseId> {
        let mut all = self.read().leases.keys().copied().collect::<Vec<_>>();
        all.sort();
        all
    }
}

async fn expire(store: Weak<Local>, id: LeaseId, mut ends: Instant) {
    loop {
        tokio::time::sleep_until(ends).await;
        let Some(store) = store.upgrade() else { return };
        match store.ends(id) {
            None => return,
            Some(later) if later > ends => ends = later,
            Some(_) => {
                let gone = match store.disk.is_some() {
                    true => {
                        let store = store.clone();
                        tokio::task::spawn_blocking(move || store.revoke(id)).await
                    }
                    false => Ok(store.revoke(id)),
                };
                match gone {
                    Ok(Ok(())) => return,
                    // The disk is full: the keys stay until there is room.
                    _ => ends = Instant::now() + Duration::from_secs(1),
                }
            }
        }
    }
}

impl Table {
    fn plan(&self, transaction: &Transaction) -> Result<Planned, StoreError> {
        let held = transaction.when.iter().all(|compare| {
            let of = |key: &String, what: fn(&Entry) -> i64| self.entries.get(key).map_or(0, what);
            match compare {
                Compare::CreateRevision { key, is } => of(key, |entry| entry.create_revision) == *is,
                Compare::ModRevision { key, is } => of(key, |entry| entry.mod_revision) == *is,
                Compare::MadeBy { key, revision } => (1..=*revision).contains(&of(key, |entry| entry.create_revision)),
            }
        });
        let ops = if held { &transaction.then } else { &transaction.or_else };
        let revision = self.revision + 1;
        let (mut events, mut got) = (Vec::<Event>::new(), vec![]);
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    if lease.is_some_and(|lease| !self.leases.contains_key(&lease)) {
                        return Err(StoreError::LeaseGone);
                    }
                    events.push(Event::Put(Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: self.entries.get(key).map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        lease: *lease,
                    }));
                }
                Op::Delete { key } if self.entries.contains_key(key) => events.push(Event::Deleted {
                    key: key.clone(),
                    mod_revision: revision,
                }),
                Op::Delete { .. } => {}
                // As it is after what came before it in this transaction.
                Op::Get { key } => got.push(match events.iter().rev().find(|event| event.key() == key) {
                    Some(Event::Put(entry)) => Some(entry.clone()),
                    Some(Event::Deleted { .. }) => None,
                    None => self.entries.get(key).cloned(),
                }),
            }
        }
        let revision = if events.is_empty() { self.revision } else { revision };
        Ok(Planned {
            outcome: Outcome { held, revision, got },
            changes: Changes { revision, events },
        })
    }
    fn plan_deletion(&self, keys: BTreeSet<String>) -> Planned {
        let mod_revision = self.revision + 1;
        let there = keys.into_iter().filter(|key| self.entries.contains_key(key));
        let events = there.map(|key| Event::Deleted { key, mod_revision }).collect();
        Planned {
            outcome: Outcome::default(),
            changes: Changes {
                revision: mod_revision,
                events,
            },
        }
    }
    fn apply(&mut self, changes: Changes) {
        self.revision = changes.revision;
        for event in &changes.events {
            let old = match event {
                Event::Put(entry) => self.entries.insert(entry.key.clone(), entry.clone()),
                Event::Deleted { key, .. } => self.entries.remove(key),
            };
            if let Some(lease) = old.and_then(|old| old.lease).and_then(|id| self.leases.get_mut(&id)) {
                lease.keys.remove(event.key());
            }
            if let Event::Put(entry) = event
                && let Some(lease) = entry.lease.and_then(|id| self.leases.get_mut(&id))
            {
                lease.keys.insert(entry.key.clone());
            }
        }
        let changes = Arc::new(changes);
        if self.recent.len() == REMEMBERED
            && let Some(oldest) = self.recent.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        self.recent.push_back(changes.clone());
        let _ = self.hub.send(changes); // nobody watches
    }
}

/// Beats of a lease in this process.
pub(super) struct LocalBeats {
    pub store: Arc<Local>,
    pub lease: LeaseId,
}
impl KeepAlive for LocalBeats {
    fn beat(&mut self) -> Reply<'_, Duration> {
        Box::pin(std::future::ready(self.store.beat(self.lease)))
    }
}

/// Revisions and value in one: `create, mod` as little-endian numbers, then the value.
pub(super) fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + entry.value.len());
    bytes.extend(entry.create_revision.to_le_bytes());
    bytes.extend(entry.mod_revision.to_le_bytes());
    bytes.extend(&entry.value);
    bytes
}
pub(super) fn decode(key: &str, bytes: &[u8]) -> Option<Entry> {
    let (create, rest) = bytes.split_first_chunk::<8>()?;
    let (modified, value) = rest.split_first_chunk::<8>()?;
    Some(Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        create_revision: i64::from_le_bytes(*create),
        mod_revision: i64::from_le_bytes(*modified),
        lease: None,
    })
}
