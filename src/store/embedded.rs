//! The store of a host on its own: `store.redb` in the data dir, which holds the history of runs too. The whole table is in memory;
//! every change is on disk before anybody sees it, but for keys on a lease: these end with the process, as their leases do.
use std::{
    collections::BTreeMap, fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration,
};

use redb::{Database, Durability, ReadableTable, TableDefinition, WriteTransaction, backends::FileBackend};

use super::{
    Changes, Entry, Event, KeepAlive, LeaseId, Listing, Outcome, Reply, Store, StoreError, Transaction, Watch,
    local::{Disk, Local, LocalBeats, decode, encode},
};

const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("store");
/// Its one key is `revision`.
const REVISION: TableDefinition<&str, i64> = TableDefinition::new("store_revision");
/// Bytes of pages that the database keeps in memory, for all tables.
const CACHE: usize = 4 << 20;

pub struct Opened {
    pub database: Arc<Database>,
    /// What is to be said of it in the log.
    pub warning: Option<String>,
}
/// Opens or makes `store.redb`, private. One that cannot be read is put aside, for an agent without its old jobs and history is better
/// than none.
pub fn open(data_dir: &Path) -> Result<Opened, String> {
    let path = data_dir.join("store.redb");
    let shown = path.display();
    let try_open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| (false, error.to_string()))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        FileBackend::new(file)
            .and_then(|file| builder.create_with_backend(file))
            .map_err(|error| {
                use redb::{DatabaseError::*, StorageError};
                let damaged = match &error {
                    Storage(StorageError::Corrupted(_)) | UpgradeRequired(_) => true,
                    Storage(StorageError::Io(error)) => matches!(
                        error.kind(),
                        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
                    ),
                    _ => false,
                };
                (damaged, error.to_string())
            })
    };
    let (damaged, error) = match try_open() {
        Ok(database) => {
            return Ok(Opened {
                database: Arc::new(database),
                warning: None,
            });
        }
        Err(failed) => failed,
    };
    if !damaged {
        return Err(format!("could not open {shown}: {error}"));
    }
    let aside = path.with_extension("redb.damaged");
    std::fs::rename(&path, &aside).map_err(|e| format!("could not open {shown}: {error}, nor put it aside: {e}"))?;
    let database = try_open().map_err(|(_, error)| format!("could not open {shown}: {error}"))?;
    Ok(Opened {
        database: Arc::new(database),
        warning: Some(format!(
            "{shown} was damaged ({error}) and is now {}, beginning with an empty one",
            aside.display()
        )),
    })
}

/// Every write to `store.redb` begins so: after a kill -9 the next start opens it at once, however much is in it.
pub fn begin_write(database: &Database) -> Result<WriteTransaction, redb::TransactionError> {
    let mut writing = database.begin_write()?;
    writing.set_quick_repair(true);
    Ok(writing)
}

#[derive(Clone)]
pub struct EmbeddedStore(Arc<Local>);

impl EmbeddedStore {
    /// Reads the whole table.
    pub fn new(database: Arc<Database>) -> Result<Self, StoreError> {
        let (revision, entries) = read_all(&database).map_err(|error| StoreError::Away(error.to_string()))?;
        Ok(Self(Local::new(revision, entries, Some(Box::new(OnDisk(database))))))
    }
    /// How many jobs there are in it.
    pub fn jobs(&self) -> usize {
        let jobs = |entry: &Entry| entry.key.starts_with("/cron/jobs/") || entry.key.starts_with("/cron/groups/");
        self.0
            .list(&["/cron/".to_owned()])
            .entries
            .iter()
            .filter(|entry| jobs(entry))
            .count()
    }
    /// Forgets what was up to now: older watches are refused.
    pub fn compact(&self) {
        self.0.compact();
    }
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Local>) -> Result<T, StoreError> + Send + 'static,
    ) -> Reply<'static, T> {
        let local = self.0.clone();
        // Once begun it is done to its end, whoever still waits for it.
        let task = tokio::task::spawn_blocking(move || work(&local));
        Box::pin(async {
            task.await
                .unwrap_or_else(|error| Err(StoreError::Unknown(error.to_string())))
        })
    }
}
fn read_all(database: &Database) -> Result<(i64, BTreeMap<String, Entry>), redb::Error> {
    let writing = begin_write(database)?;
    let (mut revision, mut entries) = (1, BTreeMap::new());
    {
        // Opening them makes them.
        let table = writing.open_table(ENTRIES)?;
        for row in table.iter()? {
            let (key, value) = row?;
            if let Some(entry) = decode(key.value(), value.value()) {
                entries.insert(entry.key.clone(), entry);
            }
        }
        let table = writing.open_table(REVISION)?;
        if let Some(kept) = table.get("revision")? {
            revision = kept.value();
        }
    }
    writing.commit()?;
    Ok((revision, entries))
}

struct OnDisk(Arc<Database>);
impl Disk for OnDisk {
    fn commit(&self, changes: &Changes) -> Result<(), StoreError> {
        fail::fail_point!("store-write", |_| Err(StoreError::NoSpace("failpoint".into())));
        self.write(changes).map_err(|error| match error {
            redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                StoreError::NoSpace(error.to_string())
            }
            error => StoreError::Away(format!("could not write the embedded store: {error}")),
        })
    }
}
impl OnDisk {
    fn write(&self, changes: &Changes) -> Result<(), redb::Error> {
        let mut writing = begin_write(&self.0)?;
        let passing = |event: &Event| matches!(event, Event::Put(entry) if entry.lease.is_some());
        if changes.events.iter().all(passing) {
            // Nothing of it must outlive the process.
            writing.set_durability(Durability::None)?;
        }
        {
            let mut table = writing.open_table(ENTRIES)?;
            for event in &changes.events {
                match event {
                    Event::Put(entry) if entry.lease.is_none() => {
                        table.insert(entry.key.as_str(), encode(entry).as_slice())?;
                    }
                    event => {
                        table.remove(event.key())?;
                    }
                }
            }
            writing.open_table(REVISION)?.insert("revision", changes.revision)?;
        }
        writing.commit()?;
        Ok(())
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Reply<'_, Option<Entry>> {
        Box::pin(std::future::ready(Ok(self.0.get(key))))
    }
    fn glance(&self, key: &str) -> Reply<'_, Option<Entry>> {
        self.get(key)
    }
    fn list(&self, prefixes: &[String]) -> Reply<'_, Listing> {
        Box::pin(std::future::ready(Ok(self.0.list(prefixes))))
    }
    fn transact(&self, transaction: Transaction) -> Reply<'_, Outcome> {
        self.blocking(move |local| local.transact(&transaction))
    }
    fn watch(&self, prefixes: &[String], after: i64) -> Reply<'_, Watch> {
        Box::pin(std::future::ready(Ok(self.0.watch(prefixes, after))))
    }
    fn grant(&self, ttl: Duration) -> Reply<'_, LeaseId> {
        Box::pin(async move { Ok(self.0.grant(ttl)) })
    }
    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, Box<dyn KeepAlive>> {
        let beats = self.0.beat(lease).map(|_| {
            Box::new(LocalBeats {
                store: self.0.clone(),
                lease,
            }) as Box<dyn KeepAlive>
        });
        Box::pin(std::future::ready(beats))
    }
    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        self.blocking(move |local| local.revoke(lease))
    }
    fn count(&self, prefix: &str) -> Reply<'_, u64> {
        let count = self.0.list(&[prefix.to_owned()]).entries.len() as u64;
        Box::pin(std::future::ready(Ok(count)))
    }
    fn wall(&self) -> Reply<'_, Option<jiff::Timestamp>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}
