//! Keys and values that everybody sees: jobs, who is online, answers. One trait with three faces: `etcd`, `embedded` (this host alone,
//! in `store.redb`) and `memory` (tests). The semantics are etcd's: one revision counts every change of anything, a key knows the
//! revisions of its making and of its last change, keys may hang on a lease, a watch goes on from a revision. `tests/store.rs`
//! says it in tests, which all three pass.
//!
//! Nothing in here reconnects, and nothing tries for ever: every call has a time limit and ends; a stream that broke stays broken, and
//! whoever held it reads all again. That is the LeaseKeeper's and JobWatcher's work.
pub mod embedded;
pub mod etcd;
pub mod kept;
pub mod keys;
mod local;
pub mod memory;
pub mod roles;
mod wall;

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture};

pub type SharedStore = Arc<dyn Store>;
/// The answer of a store, some time later, within a limit.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The most operations in one transaction, then and or-else apart, comparisons too (etcd refuses more than 128).
pub const MOST_OPERATIONS: usize = 100;

pub trait Store: Send + Sync {
    /// As all agree on it (linearizable).
    fn get(&self, key: &str) -> Reply<'_, Option<Entry>>;
    /// As the nearest member knows it, perhaps a little old: cheap, for a first look.
    fn glance(&self, key: &str) -> Reply<'_, Option<Entry>>;
    /// All keys that begin with one of these, as of one revision, read page by page. Sorted by key within each prefix.
    fn list(&self, prefixes: &[String]) -> Reply<'_, Listing>;
    /// All of it or nothing. A write whose answer was lost is `Unknown`, unless it is idempotent: that is tried again.
    fn transact(&self, transaction: Transaction) -> Reply<'_, Outcome>;
    /// What changes under these prefixes after revision `after`, in order. Resolves when the store has accepted it.
    fn watch(&self, prefixes: &[String], after: i64) -> Reply<'_, Watch>;
    /// A lease that ends by itself after `ttl` (whole seconds) without a beat.
    fn grant(&self, ttl: Duration) -> Reply<'_, LeaseId>;
    /// Opens the one stream of beats. A lease that is not there: `LeaseGone`.
    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, Box<dyn KeepAlive>>;
    /// Ends a lease, and takes away all keys on it. One that has gone already is no error.
    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()>;
    /// How many keys begin with that.
    fn count(&self, prefix: &str) -> Reply<'_, u64>;
    /// What the store's clock says; none where it has no other than ours.
    fn wall(&self) -> Reply<'_, Option<jiff::Timestamp>>;
}

/// Asked again and again for the lease's whole life; once it has failed it goes on failing.
pub trait KeepAlive: Send {
    /// One beat: for how long the lease lives from now. `LeaseGone` if it had ended.
    fn beat(&mut self) -> Reply<'_, Duration>;
}

/// Ends with an error, and then with `None`. Never opens again by itself.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Changes, StoreError>> + Send>>;

/// Changes that were made together under one prefix come together. May be empty: a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Of the last change in it. A sign of life promises nothing: 0.
    pub revision: i64,
    pub events: Vec<Event>,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Deleted { key: String, mod_revision: i64 },
}
impl Event {
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without the prefix of the settings.
    pub key: String,
    pub value: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub lease: Option<LeaseId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    /// A watch goes on after this one.
    pub revision: i64,
    /// Which cluster answered; 0: this host's own store.
    pub cluster: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub when: Vec<Compare>,
    pub then: Vec<Op>,
    pub or_else: Vec<Op>,
    /// Done twice it does no harm: a lost answer is asked for again.
    pub idempotent: bool,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// 0: the key is not there.
    CreateRevision {
        key: String,
        is: i64,
    },
    ModRevision {
        key: String,
        is: i64,
    },
    /// It is there, and was made at that revision or before.
    MadeBy {
        key: String,
        revision: i64,
    },
}
impl Compare {
    pub fn absent(key: impl Into<String>) -> Self {
        Self::CreateRevision { key: key.into(), is: 0 }
    }
    /// As it was read.
    pub fn unchanged(entry: &Entry) -> Self {
        Self::ModRevision {
            key: entry.key.clone(),
            is: entry.mod_revision,
        }
    }
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
    Get {
        key: String,
    },
}
impl Op {
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, lease: Option<LeaseId>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease,
        }
    }
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get { key: key.into() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// All comparisons held, so `then` was done; else `or_else`.
    pub held: bool,
    pub revision: i64,
    /// What the gets of the branch taken found, in their order.
    pub got: Vec<Option<Entry>>,
}

/// What a caller does differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was done. Later it may go.
    #[error("store unreachable: {0}")]
    Away(String),
    /// A write whose answer was lost: look it up before it is tried again.
    #[error("the answer of the store was lost, the write may have been done: {0}")]
    Unknown(String),
    /// Needs a person: password, certificate, rights.
    #[error("the store refuses us: {0}")]
    Refused(String),
    /// At its quota, or the disk is full: reads go on.
    #[error("the store has no space left: {0}")]
    NoSpace(String),
    /// What was to be watched from is not kept any more: read all again.
    #[error("the revision asked for is compacted, kept from {0}")]
    Compacted(i64),
    /// Grant anew, and put again what hung on it.
    #[error("the lease has ended")]
    LeaseGone,
    /// It would fail again: too large, too many operations.
    #[error("the store cannot take it: {0}")]
    Invalid(String),
}

impl Transaction {
    /// Without a condition.
    pub fn of(then: Vec<Op>) -> Self {
        Self {
            then,
            ..Self::default()
        }
    }
    pub fn when(when: Vec<Compare>, then: Vec<Op>) -> Self {
        Self {
            when,
            then,
            ..Self::default()
        }
    }
    pub fn or_else(mut self, ops: Vec<Op>) -> Self {
        self.or_else = ops;
        self
    }
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }
    /// What every face refuses alike.
    fn check(&self) -> Result<(), StoreError> {
        let most = self.when.len().max(self.then.len()).max(self.or_else.len());
        if most > MOST_OPERATIONS {
            return Err(StoreError::Invalid(format!(
                "found {most} operations in one transaction, accepted: {MOST_OPERATIONS} at most"
            )));
        }
        for ops in [&self.then, &self.or_else] {
            let mut written = ops
                .iter()
                .filter_map(|op| match op {
                    Op::Put { key, .. } | Op::Delete { key } => Some(key),
                    Op::Get { .. } => None,
                })
                .collect::<Vec<_>>();
            written.sort();
            if let Some(twice) = written.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(StoreError::Invalid(format!(
                    "{} is written twice in one transaction",
                    twice[0]
                )));
            }
        }
        Ok(())
    }
}
