//! A store that is gone with its process, for tests, with the misfortunes of a real one on demand.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Entry, KeepAlive, LeaseId, Listing, Outcome, Reply, Store, StoreError, Transaction, Watch,
    local::{Local, LocalBeats},
};

#[derive(Clone)]
pub struct MemoryStore {
    local: Arc<Local>,
    mishaps: Arc<Mishaps>,
}
struct Mishaps {
    /// Every call fails at once.
    away: AtomicBool,
    /// Calls are not answered while it is so.
    frozen: watch::Sender<bool>,
    /// The next transactions fail so; `Unknown` ones are done all the same.
    transactions: Mutex<VecDeque<StoreError>>,
}
/// All that was in it at that moment.
pub struct Snapshot(i64, BTreeMap<String, Entry>);

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            local: Local::new(1, BTreeMap::new(), None), // as a new etcd
            mishaps: Arc::new(Mishaps {
                away: AtomicBool::new(false),
                frozen: watch::Sender::new(false),
                transactions: Mutex::default(),
            }),
        }
    }
}
impl MemoryStore {
    /// As a killed server: every call fails, every stream ends. Leases wait, for they start anew with the server.
    pub fn away(&self, away: bool) {
        self.mishaps.away.store(away, SeqCst);
        if away {
            self.local.break_watches();
        }
    }
    /// As a stopped one: nothing is answered.
    pub fn freeze(&self, frozen: bool) {
        self.mishaps.frozen.send_replace(frozen);
    }
    pub fn break_watches(&self) {
        self.local.break_watches();
    }
    pub fn compact(&self) {
        self.local.compact();
    }
    pub fn expire(&self, lease: LeaseId) {
        let _ = self.local.revoke(lease); // there is no disk that could fail
    }
    pub fn leases(&self) -> Vec<LeaseId> {
        self.local.leases()
    }
    pub fn snapshot(&self) -> Snapshot {
        let (revision, entries) = self.local.snapshot();
        Snapshot(revision, entries)
    }
    pub fn restore(&self, snapshot: &Snapshot) {
        self.local.replace(snapshot.0, snapshot.1.clone());
    }
    /// The next transaction ends so; after an `Unknown` one it is done all the same.
    pub fn next_transaction(&self, error: StoreError) {
        self.transactions().push_back(error);
    }
    fn transactions(&self) -> MutexGuard<'_, VecDeque<StoreError>> {
        self.mishaps.transactions.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn reply<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&Local) -> Result<T, StoreError> + Send + 'a,
    ) -> Reply<'a, T> {
        Box::pin(async move {
            self.mishaps.there().await?;
            work(&self.local)
        })
    }
}
impl Mishaps {
    async fn there(&self) -> Result<(), StoreError> {
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        match self.away.load(SeqCst) {
            true => Err(StoreError::Away("connection refused".into())),
            false => Ok(()),
        }
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Reply<'_, Option<Entry>> {
        let key = key.to_owned();
        self.reply(move |local| Ok(local.get(&key)))
    }
    fn glance(&self, key: &str) -> Reply<'_, Option<Entry>> {
        self.get(key)
    }
    fn list(&self, prefixes: &[String]) -> Reply<'_, Listing> {
        let prefixes = prefixes.to_vec();
        self.reply(move |local| Ok(local.list(&prefixes)))
    }
    fn transact(&self, transaction: Transaction) -> Reply<'_, Outcome> {
        self.reply(move |local| match self.transactions().pop_front() {
            Some(error) => {
                if matches!(error, StoreError::Unknown(_)) {
                    local.transact(&transaction)?;
                }
                Err(error)
            }
            None => local.transact(&transaction),
        })
    }
    fn watch(&self, prefixes: &[String], after: i64) -> Reply<'_, Watch> {
        let prefixes = prefixes.to_vec();
        self.reply(move |local| Ok(local.watch(&prefixes, after)))
    }
    fn grant(&self, ttl: Duration) -> Reply<'_, LeaseId> {
        self.reply(move |_| Ok(self.local.grant(ttl)))
    }
    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, Box<dyn KeepAlive>> {
        self.reply(move |local| {
            local.beat(lease)?;
            Ok(Box::new(Beats {
                inner: LocalBeats {
                    store: self.local.clone(),
                    lease,
                },
                mishaps: self.mishaps.clone(),
            }) as Box<dyn KeepAlive>)
        })
    }
    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        self.reply(move |local| local.revoke(lease))
    }
    fn count(&self, prefix: &str) -> Reply<'_, u64> {
        let prefix = prefix.to_owned();
        self.reply(move |local| Ok(local.list(&[prefix]).entries.len() as u64))
    }
    fn wall(&self) -> Reply<'_, Option<jiff::Timestamp>> {
        self.reply(|_| Ok(None))
    }
}
struct Beats {
    inner: LocalBeats,
    mishaps: Arc<Mishaps>,
}
impl KeepAlive for Beats {
    fn beat(&mut self) -> Reply<'_, Duration> {
        Box::pin(async {
            self.mishaps.there().await?;
            self.inner.beat().await
        })
    }
}
