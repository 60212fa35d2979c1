//! The store of a fleet: etcd, v3.4 or later. One client with one connection an endpoint, made on the runtime where this store was
//! made: its tasks live there, and every clone dies with it.
//!
//! etcd-client opens nothing again by itself but the connection. Every call here ends within `CALL`, streams that fall silent are
//! ended by pings and by asking for signs of life. Reads and writes that may be done twice are tried up to three times: with one dead
//! endpoint of two a third of all calls fails at once.
use std::{collections::VecDeque, path::PathBuf, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity, KeyValue, KvClient,
    LeaseKeepAliveStream, LeaseKeeper, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchClient, WatchOptions,
    WatchRequestSender, WatchResponse, WatchResponseStream,
};
use futures_util::stream;
use tokio::{sync::Mutex, time::timeout};

use super::{
    Changes, Compare, Entry, Event, KeepAlive, LeaseId, Listing, Op, Outcome, Reply, Store, StoreError, Transaction,
    Watch, wall,
};

/// The longest that one try may take.
const CALL: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);
/// etcd answers pings under 5 s with GOAWAY.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(5);
/// A page of the largest values (64 KiB) and what a thousand changes in one message may weigh: the default of 4 MiB breaks on it.
const LARGEST_MESSAGE: usize = 96 << 20;
const PAGE: i64 = 1000;
/// A watch that has said nothing for so long is asked for a sign of life; one that then stays silent is over.
const SILENT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`, or `http://` or `https://` before it.
    pub endpoints: Vec<String>,
    /// Before every key.
    pub prefix: String,
    pub user: Option<User>,
    pub tls: Option<Tls>,
}
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}
/// Files, read at each connect: certificates are renewed.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// None: what the system trusts.
    pub ca: Option<PathBuf>,
    pub cert_and_key: Option<(PathBuf, PathBuf)>,
}

pub struct EtcdStore {
    options: Options,
    /// Where the connection's tasks live.
    home: tokio::runtime::Handle,
    client: Mutex<Option<Clients>>,
}
#[derive(Clone)]
struct Clients {
    all: Client,
    kv: KvClient,
    watch: WatchClient,
}

impl EtcdStore {
    /// Connects at the first call. Call it on the runtime that is to keep the connection.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            home: tokio::runtime::Handle::current(),
            client: Mutex::default(),
        }
    }
    fn full(&self, key: &str) -> Vec<u8> {
        [self.options.prefix.as_bytes(), key.as_bytes()].concat()
    }
    async fn clients(&self) -> Result<Clients, StoreError> {
        let mut slot = self.client.lock().await;
        if let Some(clients) = &*slot {
            return Ok(clients.clone());
        }
        let options = self.options.clone();
        let made = timeout(CALL, self.home.spawn(connect(options))).await;
        let client = match made {
            Err(_) => return Err(StoreError::Away(format!("no answer within {CALL:?}"))),
            Ok(Err(error)) => return Err(StoreError::Away(error.to_string())),
            Ok(Ok(client)) => client?,
        };
        let clients = Clients {
            kv: client.kv_client().max_decoding_message_size(LARGEST_MESSAGE),
            watch: client.watch_client().max_decoding_message_size(LARGEST_MESSAGE),
            all: client,
        };
        *slot = Some(clients.clone());
        Ok(clients)
    }
    /// `again`: it does no harm when it is done twice.
    async fn call<T, F>(&self, again: bool, call: impl Fn(Clients) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_somewhere(again, call).await.map_err(|error| match error {
            StoreError::Away(why) => StoreError::Away(format!("etcd at {}: {why}", self.options.endpoints.join(", "))),
            error => error,
        })
    }
    async fn call_somewhere<T, F>(&self, again: bool, call: impl Fn(Clients) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut tries = 1;
        loop {
            let clients = self.clients().await?;
            let error = match timeout(CALL, call(clients.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if is_old_token(&error) && tries < TRIES => {
                    // Refused, so not done. etcd's users or roles were changed, or it was started anew.
                    let _ = timeout(CALL, clients.all.refresh_token()).await;
                    tries += 1;
                    continue;
                }
                Ok(Err(error)) => classify(&error),
                Err(_) => StoreError::Unknown(format!("no answer within {CALL:?}")),
            };
            match error {
                StoreError::Away(_) | StoreError::Unknown(_) if again && tries < TRIES => {}
                StoreError::Unknown(why) if again => return Err(StoreError::Away(why)),
                // A new password or certificate is tried with the next connection; a right that is missing needs none.
                StoreError::Refused(why) if !why.contains("permission denied") => {
                    *self.client.lock().await = None;
                    return Err(StoreError::Refused(why));
                }
                error => return Err(error),
            }
            tokio::time::sleep(BETWEEN_TRIES * tries).await;
            tries += 1;
        }
    }
    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        let (_, bytes) = kv.key().split_at_checked(self.options.prefix.len())?;
        Some(Entry {
            // A key that is not UTF-8 is none of ours: nobody finds it under any name.
            key: String::from_utf8(bytes.to_vec()).ok()?,
            value: Bytes::copy_from_slice(kv.value()),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: (kv.lease() != 0).then_some(LeaseId(kv.lease())),
        })
    }
    fn ops(&self, ops: &[Op]) -> Vec<TxnOp> {
        let op = |op: &Op| match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.full(key), value.to_vec(), options)
            }
            Op::Delete { key } => TxnOp::delete(self.full(key), None),
            Op::Get { key } => TxnOp::get(self.full(key), None),
        };
        ops.iter().map(op).collect()
    }
    async fn read(&self, key: &str, options: GetOptions) -> Result<Option<Entry>, StoreError> {
        let key = self.full(key);
        let answer = self
            .call(true, |mut clients| {
                let (key, options) = (key.clone(), options.clone());
                async move { clients.kv.get(key, Some(options)).await }
            })
            .await?;
        Ok(answer.kvs().first().and_then(|kv| self.entry(kv)))
    }
    async fn read_all(&self, prefixes: &[String]) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        for prefix in prefixes {
            let mut from = self.full(prefix);
            let end = end_of(&from);
            loop {
                let mut options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
                if listing.revision != 0 {
                    options = options.with_revision(listing.revision);
                }
                let answer = self
                    .call(true, |mut clients| {
                        let (from, options) = (from.clone(), options.clone());
                        async move { clients.kv.get(from, Some(options)).await }
                    })
                    .await?;
                if listing.revision == 0
                    && let Some(header) = answer.header()
                {
                    listing.revision = header.revision();
                    listing.cluster = header.cluster_id();
                }
                listing
                    .entries
                    .extend(answer.kvs().iter().filter_map(|kv| self.entry(kv)));
                match answer.kvs().last() {
                    Some(last) if answer.more() => from = [last.key(), b"\0"].concat(),
                    _ => break,
                }
            }
        }
        Ok(listing)
    }
    async fn open_watch(&self, prefixes: &[String], after: i64) -> Result<Watch, StoreError> {
        let options = |prefix: &[u8]| {
            WatchOptions::new()
                .with_range(end_of(prefix))
                .with_start_revision(after + 1)
        };
        let full = prefixes.iter().map(|prefix| self.full(prefix)).collect::<Vec<_>>();
        let Some(first) = full.first() else {
            return Ok(Box::pin(stream::pending()));
        };
        let stream = self
            .call(true, |mut clients| {
                let (key, options) = (first.clone(), options(first));
                async move { clients.watch.watch(key, Some(options)).await }
            })
            .await?;
        let (sender, responses) = stream.split();
        let mut watching = Watching {
            sender,
            responses,
            strip: self.options.prefix.len(),
            ready: VecDeque::new(),
            over: false,
        };
        for prefix in &full[1..] {
            let asked = watching.sender.watch(prefix.clone(), Some(options(prefix))).await;
            asked.map_err(|error| classify(&error))?;
        }
        let mut waits_for = full.len();
        while waits_for > 0 {
            let response = watching.message().await?;
            waits_for -= usize::from(response.created());
            if let Some(item) = watching.look(&response) {
                watching.ready.push_back(item);
                if watching.over {
                    break; // its stream says why
                }
            }
        }
        Ok(Box::pin(stream::unfold(watching, |mut watching| async {
            Some((watching.next().await?, watching))
        })))
    }
}

async fn connect(options: Options) -> Result<Client, StoreError> {
    let mut connect = ConnectOptions::new()
        .with_keep_alive(PING_EVERY, PING_ANSWER)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(CONNECT)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(User { name, password }) = &options.user {
        connect = connect.with_user(name, password);
    }
    if let Some(tls) = &options.tls {
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| StoreError::Refused(format!("could not read {}: {error}", path.display())))
        };
        let ca = match &tls.ca {
            Some(path) => read(path)?,
            None => wall::system_roots(),
        };
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((cert, key)) = &tls.cert_and_key {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        connect = connect.with_tls(config);
    }
    Client::connect(&options.endpoints, Some(connect))
        .await
        .map_err(|error| match classify(&error) {
            StoreError::Unknown(why) => StoreError::Away(why),
            error => error,
        })
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0] // all keys
}

struct Watching {
    sender: WatchRequestSender,
    responses: WatchResponseStream,
    strip: usize,
    ready: VecDeque<Result<Changes, StoreError>>,
    over: bool,
}
impl Watching {
    async fn next(&mut self) -> Option<Result<Changes, StoreError>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if self.over {
                return None;
            }
            let item = match timeout(SILENT, self.responses.message()).await {
                Ok(Ok(Some(response))) => self.look(&response),
                Ok(Ok(None)) => Some(Err(StoreError::Away("the watch was ended by the server".into()))),
                Ok(Err(error)) => Some(Err(away(&error))),
                Err(_) => match self.sign_of_life().await {
                    Ok(response) => self.look(&response).or(Some(Ok(Changes {
                        revision: 0,
                        events: vec![],
                    }))),
                    Err(error) => Some(Err(error)),
                },
            };
            if let Some(item) = item {
                self.over |= item.is_err();
                return Some(item);
            }
        }
    }
    async fn sign_of_life(&mut self) -> Result<WatchResponse, StoreError> {
        let asked = timeout(CALL, self.sender.request_progress()).await;
        asked
            .map_err(|_| StoreError::Away("the watch takes no requests".into()))?
            .map_err(|error| away(&error))?;
        self.message().await
    }
    async fn message(&mut self) -> Result<WatchResponse, StoreError> {
        match timeout(CALL, self.responses.message()).await {
            Ok(Ok(Some(response))) => Ok(response),
            Ok(Ok(None)) => Err(StoreError::Away("the watch was ended by the server".into())),
            Ok(Err(error)) => Err(away(&error)),
            Err(_) => Err(StoreError::Away("the watch is silent".into())),
        }
    }
    /// None: nothing in it for whoever watches.
    fn look(&mut self, response: &WatchResponse) -> Option<Result<Changes, StoreError>> {
        if response.canceled() {
            self.over = true;
            let why = response.cancel_reason();
            return Some(Err(match response.compact_revision() {
                0 if why.contains("permission denied") || why.contains("auth") => StoreError::Refused(why.to_owned()),
                0 => StoreError::Away(format!("the watch was cancelled: {why}")),
                revision => StoreError::Compacted(revision),
            }));
        }
        let event = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            let (_, key) = kv.key().split_at_checked(self.strip)?;
            let key = String::from_utf8(key.to_vec()).ok()?;
            let mod_revision = kv.mod_revision();
            Some(match event.event_type() {
                EventType::Delete => Event::Deleted { key, mod_revision },
                EventType::Put => Event::Put(Entry {
                    key,
                    value: Bytes::copy_from_slice(kv.value()),
                    create_revision: kv.create_revision(),
                    mod_revision,
                    lease: (kv.lease() != 0).then_some(LeaseId(kv.lease())),
                }),
            })
        };
        let events = response.events().iter().filter_map(event).collect::<Vec<_>>();
        let revision = response.events().last()?.kv()?.mod_revision();
        (!events.is_empty()).then_some(Ok(Changes { revision, events }))
    }
}

struct Beats {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    broken: Option<StoreError>,
}
impl KeepAlive for Beats {
    fn beat(&mut self) -> Reply<'_, Duration> {
        Box::pin(async {
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            // If nobody waits for the answer any more, it must not be taken for that of the next beat.
            self.broken = Some(StoreError::Away("a beat was given up".into()));
            let beat = async {
                self.keeper.keep_alive().await.map_err(|error| away(&error))?;
                match self.answers.message().await {
                    Ok(Some(answer)) if answer.ttl() > 0 => Ok(Duration::from_secs(answer.ttl() as u64)),
                    Ok(Some(_)) => Err(StoreError::LeaseGone),
                    Ok(None) => Err(StoreError::Away("the keep-alive stream was ended by the server".into())),
                    Err(error) => Err(away(&error)),
                }
            };
            let result = timeout(CALL, beat)
                .await
                .unwrap_or_else(|_| Err(StoreError::Away(format!("no answer to a beat within {CALL:?}"))));
            self.broken = result.as_ref().err().cloned();
            result
        })
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Reply<'_, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key, GetOptions::new()).await })
    }
    fn glance(&self, key: &str) -> Reply<'_, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(async move { self.read(&key, GetOptions::new().with_serializable()).await })
    }
    fn list(&self, prefixes: &[String]) -> Reply<'_, Listing> {
        let prefixes = prefixes.to_vec();
        Box::pin(async move { self.read_all(&prefixes).await })
    }
    fn transact(&self, transaction: Transaction) -> Reply<'_, Outcome> {
        Box::pin(async move {
            transaction.check()?;
            use etcd_client::Compare as Is;
            let compare = |compare: &Compare| match compare {
                Compare::CreateRevision { key, is } => {
                    vec![Is::create_revision(self.full(key), CompareOp::Equal, *is)]
                }
                Compare::ModRevision { key, is } => vec![Is::mod_revision(self.full(key), CompareOp::Equal, *is)],
                Compare::MadeBy { key, revision } => vec![
                    Is::create_revision(self.full(key), CompareOp::Greater, 0),
                    Is::create_revision(self.full(key), CompareOp::Less, revision.saturating_add(1)),
                ],
            };
            let txn = Txn::new()
                .when(transaction.when.iter().flat_map(compare).collect::<Vec<_>>())
                .and_then(self.ops(&transaction.then))
                .or_else(self.ops(&transaction.or_else));
            let answer = self
                .call(transaction.idempotent, |mut clients| {
                    let txn = txn.clone();
                    async move { clients.kv.txn(txn).await }
                })
                .await?;
            let got = answer.op_responses().into_iter().filter_map(|response| match response {
                TxnOpResponse::Get(got) => Some(got.kvs().first().and_then(|kv| self.entry(kv))),
                _ => None,
            });
            Ok(Outcome {
                held: answer.succeeded(),
                revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
                got: got.collect(),
            })
        })
    }
    fn watch(&self, prefixes: &[String], after: i64) -> Reply<'_, Watch> {
        let prefixes = prefixes.to_vec();
        Box::pin(async move { self.open_watch(&prefixes, after).await })
    }
    fn grant(&self, ttl: Duration) -> Reply<'_, LeaseId> {
        Box::pin(async move {
            let seconds = ttl.as_secs().max(1) as i64;
            let answer = self
                .call(true, |mut clients| async move {
                    clients.all.lease_grant(seconds, None).await
                })
                .await?;
            Ok(LeaseId(answer.id()))
        })
    }
    fn keep_alive(&self, lease: LeaseId) -> Reply<'_, Box<dyn KeepAlive>> {
        Box::pin(async move {
            let (keeper, answers) = self
                .call(true, |mut clients| async move {
                    clients.all.lease_keep_alive(lease.0).await
                })
                .await?;
            Ok(Box::new(Beats {
                keeper,
                answers,
                broken: None,
            }) as Box<dyn KeepAlive>)
        })
    }
    fn revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        Box::pin(async move {
            let revoked = self
                .call(
                    true,
                    |mut clients| async move { clients.all.lease_revoke(lease.0).await },
                )
                .await;
            match revoked {
                Ok(_) | Err(StoreError::LeaseGone) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
    fn count(&self, prefix: &str) -> Reply<'_, u64> {
        let key = self.full(prefix);
        Box::pin(async move {
            let options = GetOptions::new()
                .with_range(end_of(&key))
                .with_count_only()
                .with_serializable();
            let answer = self
                .call(true, |mut clients| {
                    let (key, options) = (key.clone(), options.clone());
                    async move { clients.kv.get(key, Some(options)).await }
                })
                .await?;
            Ok(answer.count().max(0) as u64)
        })
    }
    fn wall(&self) -> Reply<'_, Option<jiff::Timestamp>> {
        Box::pin(async move {
            let (endpoints, tls) = (&self.options.endpoints, self.options.tls.as_ref());
            match timeout(CALL, wall::of_any(endpoints, tls)).await {
                Ok(Ok(wall)) => Ok(Some(wall)),
                Ok(Err(error)) => Err(StoreError::Away(error)),
                Err(_) => Err(StoreError::Away(format!("no answer within {CALL:?}"))),
            }
        })
    }
}

/// The error of a stream: whatever was lost with it is read again.
fn away(error: &Error) -> StoreError {
    match classify(error) {
        StoreError::Unknown(why) => StoreError::Away(why),
        error => error,
    }
}

/// gRPC's codes.
mod code {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNAVAILABLE: i32 = 14;
    pub const UNAUTHENTICATED: i32 = 16;
}

/// What an error of a call means. What cannot be known to have failed before it was done is `Unknown`.
fn classify(error: &Error) -> StoreError {
    let text = told(error);
    match error {
        Error::GRpcStatus(status) => of_status(i32::from(status.code()), status.message(), text),
        Error::LeaseKeepAliveError(why) if why.contains("lease not found") => StoreError::LeaseGone,
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => StoreError::Invalid(text),
        Error::TransportError(_) if is_certificate(&text) => StoreError::Refused(text),
        Error::TransportError(_) | Error::EndpointError(_) | Error::IoError(_) => StoreError::Away(text),
        _ => StoreError::Unknown(text),
    }
}
fn of_status(status: i32, message: &str, text: String) -> StoreError {
    let says = |part: &str| message.contains(part);
    if says("lease not found") {
        return StoreError::LeaseGone;
    }
    if says("space exceeded") {
        return StoreError::NoSpace(text);
    }
    if says("has been compacted") {
        return StoreError::Compacted(0);
    }
    match status {
        code::PERMISSION_DENIED | code::UNAUTHENTICATED => StoreError::Refused(text),
        code::INVALID_ARGUMENT
            if ["authentication failed", "user name", "auth"]
                .iter()
                .any(|part| says(part)) =>
        {
            StoreError::Refused(text)
        }
        code::INVALID_ARGUMENT | code::OUT_OF_RANGE => StoreError::Invalid(text),
        code::RESOURCE_EXHAUSTED if says("too many requests") => StoreError::Away(text),
        code::RESOURCE_EXHAUSTED => StoreError::Invalid(text),
        _ if is_certificate(&text) => StoreError::Refused(text),
        // Before anything was sent, or refused before it was begun.
        code::UNAVAILABLE if says("connect error") || says("no leader") || says("not ready") => StoreError::Away(text),
        _ => StoreError::Unknown(text),
    }
}
fn is_old_token(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.message().contains("auth store is old") || status.message().contains("invalid auth token"))
}
fn is_certificate(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["certificate", "unknownissuer", "unknownca", "notvalidforname"]
        .iter()
        .any(|word| text.contains(word))
}
/// All that is said, from the outside in, in one line.
fn told(error: &Error) -> String {
    let mut parts = match error {
        Error::GRpcStatus(status) => vec![status.message().to_owned()],
        other => vec![other.to_string()],
    };
    let mut source = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        other => std::error::Error::source(other),
    };
    while let Some(inner) = source {
        let text = inner.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = inner.source();
    }
    parts.join(": ").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        for (prefix, end) in [
            (&b"/cron/"[..], &b"/cron0"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(end_of(prefix), end);
        }
    }
    #[test]
    fn what_an_error_means() {
        let of = |status, message: &str| of_status(status, message, message.to_owned());
        use StoreError::*;
        assert_eq!(of(5, "etcdserver: requested lease not found"), LeaseGone);
        assert!(matches!(of(8, "etcdserver: mvcc: database space exceeded"), NoSpace(_)));
        assert!(matches!(of(8, "etcdserver: too many requests"), Away(_)));
        assert!(matches!(of(3, "etcdserver: request is too large"), Invalid(_)));
        assert!(matches!(
            of(3, "etcdserver: authentication failed, invalid user ID or password"),
            Refused(_)
        ));
        assert!(matches!(of(3, "etcdserver: user name is empty"), Refused(_)));
        assert!(matches!(of(7, "etcdserver: permission denied"), Refused(_)));
        assert!(matches!(of(16, "etcdserver: invalid auth token"), Refused(_)));
        assert!(matches!(
            of(11, "etcdserver: mvcc: required revision has been compacted"),
            Compacted(0)
        ));
        assert!(matches!(of(14, "tcp connect error"), Away(_)));
        assert!(matches!(of(14, "etcdserver: no leader"), Away(_)));
        // It may have been done.
        assert!(matches!(of(14, "etcdserver: request timed out"), Unknown(_)));
        assert!(matches!(of(14, "etcdserver: leader changed"), Unknown(_)));
        assert!(matches!(
            of(2, "h2 protocol error: error reading a body from connection"),
            Unknown(_)
        ));
    }
}
