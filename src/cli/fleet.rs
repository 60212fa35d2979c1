//! What the commands that go through etcd share: the settings that they need, the store, and a runtime to wait on it. No agent is asked,
//! on no host.
use std::{future::Future, net::IpAddr, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Failed;
use crate::{
    model::job::Limits,
    settings::{self, Options},
    store::{
        SharedStore, StoreError,
        etcd::EtcdStore,
        keys::{self, Health},
    },
};

/// Questions to etcd that are under way at one time.
pub const AT_ONCE: usize = 32;

pub struct Fleet {
    pub store: SharedStore,
    /// What a job may ask for, by the settings of here.
    pub limits: Limits,
    /// Which fleet's agents take what is signed.
    pub signed_for: Option<String>,
    runtime: tokio::runtime::Runtime,
}
impl Fleet {
    /// None: the settings name no etcd.
    pub fn open(options: &Options) -> Result<Option<Self>, Failed> {
        let (etcd, jobs) = settings::reach(options, std::env::vars_os())?;
        if etcd.endpoints.is_empty() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failed::new(format!("no runtime: {error}")))?;
        let store = {
            let _inside = runtime.enter();
            EtcdStore::new(etcd.way())
        };
        Ok(Some(Self {
            store: Arc::new(store),
            limits: jobs.limits(),
            signed_for: jobs.fleet,
            runtime,
        }))
    }
    pub fn wait<T, E: Into<Failed>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, Failed> {
        self.runtime.block_on(work).map_err(Into::into)
    }
}
impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::new(error)
    }
}

/// Who is online at that address.
pub async fn health(store: &SharedStore, ip: &str) -> Result<Option<Health>, StoreError> {
    let found = store.get(&keys::health(ip)).await?;
    Ok(found.map(|entry| keys::read(&entry.value)))
}
/// Everybody who is online, by address.
pub async fn online(store: &SharedStore) -> Result<Vec<(String, Health)>, StoreError> {
    let found = store.list(&[keys::HEALTH.to_owned()]).await?;
    let read = found.entries.iter().filter_map(|entry| {
        let ip = entry.key.strip_prefix(keys::HEALTH)?;
        Some((ip.to_owned(), keys::read(&entry.value)))
    });
    let mut all = read.collect::<Vec<_>>();
    all.sort_by_key(|(ip, _)| sorted(ip));
    Ok(all)
}
/// 10.0.0.9 before 10.0.0.10; what is no address comes last.
pub fn sorted(ip: &str) -> (bool, Option<IpAddr>, String) {
    let address = ip.parse().ok();
    (address.is_none(), address, ip.to_owned())
}
/// The same question about each, some at a time; the answers in their order.
pub async fn each<T, A, F>(all: Vec<T>, ask: impl Fn(T) -> F) -> Result<Vec<A>, StoreError>
where
    F: Future<Output = Result<A, StoreError>>,
{
    stream::iter(all.into_iter().map(ask))
        .buffered(AT_ONCE)
        .try_collect()
        .await
}
