//! What LeaseKeeper thinks: one turn after the other, from no address to a held one, and back when it is lost. Without actix.
//!
//! A turn does what is next and says when the one after it is due. It never fails for good: whatever was lost is looked up in the next.
use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;

use crate::{
    clock::SharedClock,
    messages::lease::Standing,
    model::Host,
    retry::Reconnect,
    store::{
        Compare, Entry, KeepAlive, LeaseId, Op, SharedStore, StoreError, Transaction,
        keys::{self, Health, Node},
    },
};

/// Where the address comes from: `identity::Addresses::look`, or a test.
pub type Look = std::sync::Arc<dyn Fn() -> Result<IpAddr, String> + Send + Sync>;

/// The address is looked at again this often; a change counts after two equal looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Without an address, and while another holds ours.
const ASK_AGAIN: Duration = Duration::from_secs(1);

pub struct Registration {
    parts: Parts,
    ip: Option<IpAddr>,
    /// Seen once.
    next_ip: Option<IpAddr>,
    looked: Duration,
    lease: Option<LeaseId>,
    beats: Option<Box<dyn KeepAlive>>,
    /// Our key stands under our lease, as of the last answer.
    held: bool,
    /// The node record of this start stands there.
    recorded: Option<IpAddr>,
    /// An address that was ours: its keys go with the new registration.
    left: Option<(IpAddr, Option<LeaseId>)>,
    stranger: Option<Stranger>,
    reconnect: Reconnect,
    /// Steady time of the last answer.
    pub heard: Option<Duration>,
    pub granted: u64,
}
#[derive(Clone)]
pub struct Parts {
    pub store: SharedStore,
    pub host: Host,
    pub started: Timestamp,
    pub http: Option<String>,
    pub ttl: Duration,
    pub renew_every: Duration,
    pub look: Look,
    pub clock: SharedClock,
}
struct Stranger {
    holder: String,
    since: Duration,
}
pub struct Turn {
    pub standing: Standing,
    pub next_in: Duration,
    pub trouble: Option<String>,
}

impl Registration {
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            ip: None,
            next_ip: None,
            looked: Duration::ZERO,
            lease: None,
            beats: None,
            held: false,
            recorded: None,
            left: None,
            stranger: None,
            reconnect: Reconnect::default(),
            heard: None,
            granted: 0,
        }
    }

    pub async fn turn(&mut self) -> Turn {
        let ip = match self.address().await {
            Ok(ip) => ip,
            Err(why) => {
                return Turn {
                    standing: Standing::Waiting(why.clone()),
                    next_in: ASK_AGAIN,
                    trouble: Some(why),
                };
            }
        };
        match self.hold(ip).await {
            Ok(lease) => {
                self.reconnect.reset();
                self.stranger = None;
                self.heard = Some(self.parts.clock.steady());
                Turn {
                    standing: Standing::Held { ip, lease: lease.0 },
                    next_in: self.parts.renew_every.min(LOOK_EVERY),
                    trouble: None,
                }
            }
            Err(Trouble::Stranger(holder)) => self.taken(ip, holder),
            Err(Trouble::Store(error)) => {
                self.beats = None;
                self.held = false; // looked up when it is back
                let why = error.to_string();
                Turn {
                    standing: Standing::Away { ip, why: why.clone() },
                    next_in: self.reconnect.next(),
                    trouble: Some(why),
                }
            }
        }
    }
    fn taken(&mut self, ip: IpAddr, holder: String) -> Turn {
        let now = self.parts.clock.steady();
        self.heard = Some(now);
        self.reconnect.reset();
        let since = match &self.stranger {
            Some(known) if known.holder == holder => known.since,
            _ => now,
        };
        // A dead agent's key stands for one TTL more.
        let lives = now.saturating_sub(since) > self.parts.ttl;
        let trouble = lives.then(|| format!("{holder}: this agent runs no jobs"));
        self.stranger = Some(Stranger {
            holder: holder.clone(),
            since,
        });
        Turn {
            standing: Standing::Taken { ip, holder },
            next_in: ASK_AGAIN,
            trouble,
        }
    }

    /// Which address it is now.
    async fn address(&mut self) -> Result<IpAddr, String> {
        let now = self.parts.clock.steady();
        if let Some(ip) = self.ip
            && now.saturating_sub(self.looked) < LOOK_EVERY
        {
            return Ok(ip);
        }
        self.looked = now;
        let look = self.parts.look.clone();
        let seen = tokio::task::spawn_blocking(move || look())
            .await
            .unwrap_or_else(|error| Err(format!("the look at the address fell: {error}")));
        match (self.ip, seen) {
            (None, seen) => self.ip = Some(seen?),
            // A network that is gone for a while is no other address.
            (Some(ip), Err(_)) => {
                self.next_ip = None;
                return Ok(ip);
            }
            (Some(ip), Ok(seen)) if seen == ip => self.next_ip = None,
            (Some(ip), Ok(seen)) if self.next_ip == Some(seen) => {
                let lease = self.lease.take();
                self.left = Some((ip, lease));
                (self.ip, self.next_ip) = (Some(seen), None);
                (self.beats, self.held) = (None, false);
            }
            (Some(_), Ok(seen)) => self.next_ip = Some(seen),
        }
        self.ip.ok_or_else(|| "no address yet".to_owned())
    }

    /// Registered when it returns, and heard.
    async fn hold(&mut self, ip: IpAddr) -> Result<LeaseId, Trouble> {
        // Twice: the first may find that the lease is gone.
        for _ in 0..2 {
            match self.try_hold(ip).await {
                Err(Trouble::Store(StoreError::LeaseGone)) => {
                    (self.lease, self.beats, self.held) = (None, None, false);
                }
                done => return done,
            }
        }
        Err(Trouble::Store(StoreError::LeaseGone))
    }
    async fn try_hold(&mut self, ip: IpAddr) -> Result<LeaseId, Trouble> {
        let store = self.parts.store.clone();
        if let (true, Some(lease), Some(beats)) = (self.held, self.lease, &mut self.beats) {
            beats.beat().await?;
            return Ok(lease);
        }
        // Before a lease is granted: whoever has to wait needs none.
        let found = store.get(&keys::health(&ip.to_string())).await?;
        if let Some(holder) = found.as_ref().and_then(|entry| self.stranger_in(ip, entry)) {
            self.forget_lease().await;
            return Err(Trouble::Stranger(holder));
        }
        let lease = match self.lease {
            Some(lease) => lease,
            None => {
                let lease = store.grant(self.parts.ttl).await?;
                self.granted += 1;
                *self.lease.insert(lease)
            }
        };
        if self.beats.is_none() {
            self.beats = Some(store.keep_alive(lease).await?);
        }
        self.register(ip, lease, found).await?;
        self.held = true;
        Ok(lease)
    }
    /// By one transaction on the key as it was read.
    async fn register(&mut self, ip: IpAddr, lease: LeaseId, found: Option<Entry>) -> Result<(), Trouble> {
        let Parts {
            store,
            host,
            started,
            http,
            ..
        } = &self.parts;
        let (address, health) = (ip.to_string(), Health::of(host, *started, http.as_deref()));
        let value = keys::json(&health);
        let stands = found
            .as_ref()
            .is_some_and(|entry| entry.lease == Some(lease) && entry.value == value);
        if stands && self.recorded == Some(ip) && self.left.is_none() {
            return Ok(());
        }
        let key = keys::health(&address);
        // Its last stop is still to be seen while it runs.
        let before = store.get(&keys::node(&address)).await?;
        let before = before.map(|entry| keys::read::<Node>(&entry.value)).unwrap_or_default();
        let node = Node {
            stopped: before.stopped,
            why: before.why,
            ..Node::of(&health)
        };
        let when = found.as_ref().map_or(Compare::absent(&*key), Compare::unchanged);
        let mut then = vec![
            Op::put(key, value, Some(lease)),
            Op::put(keys::node(&address), keys::json(&node), None),
        ];
        if let Some((old, _)) = self.left.filter(|(old, _)| *old != ip) {
            then.extend([
                Op::delete(keys::health(&old.to_string())),
                Op::delete(keys::node(&old.to_string())),
            ]);
        }
        if !store.transact(Transaction::when(vec![when], then)).await?.held {
            // Somebody was faster; the next turn sees who.
            return Err(StoreError::Away(format!("{address} was changed while we registered")).into());
        }
        self.recorded = Some(ip);
        if let Some((_, Some(old))) = self.left.take() {
            let _ = store.revoke(old).await; // else it ends by itself
        }
        Ok(())
    }
    /// Who holds the key, if it is not us.
    fn stranger_in(&self, ip: IpAddr, entry: &Entry) -> Option<String> {
        let health = keys::read::<Health>(&entry.value);
        (health.instance != self.parts.host.instance).then(|| health.shown(ip))
    }
    async fn forget_lease(&mut self) {
        (self.beats, self.held) = (None, false);
        if let Some(lease) = self.lease.take() {
            let _ = self.parts.store.revoke(lease).await; // else it ends by itself
        }
    }

    /// A clean stop: what the node record says, then the lease goes, and with it all that hangs on it.
    pub async fn give_back(&mut self, why: &str) {
        let (Some(ip), true) = (self.ip, self.held) else {
            return self.forget_lease().await;
        };
        let health = Health::of(&self.parts.host, self.parts.started, self.parts.http.as_deref());
        let node = Node {
            stopped: Some(keys::instant(self.parts.clock.wall())),
            why: Some(why.to_owned()),
            ..Node::of(&health)
        };
        let key = keys::node(&ip.to_string());
        let told = Transaction::of(vec![Op::put(key, keys::json(&node), None)]).idempotent();
        let _ = self.parts.store.transact(told).await; // a stop does not wait for a store that is away
        self.forget_lease().await;
    }
}

enum Trouble {
    Store(StoreError),
    Stranger(String),
}
impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        clock::ManualClock,
        store::{Store, memory::MemoryStore},
    };

    struct Kit {
        store: MemoryStore,
        clock: Arc<ManualClock>,
        address: Arc<Mutex<Result<IpAddr, String>>>,
    }
    impl Default for Kit {
        fn default() -> Self {
            Self {
                store: MemoryStore::default(),
                clock: ManualClock::at("2026-11-25T10:00:00Z".parse().unwrap()),
                address: Arc::new(Mutex::new(Ok([10, 0, 0, 1].into()))),
            }
        }
    }
    impl Kit {
        fn agent(&self, instance: &str) -> Registration {
            let address = self.address.clone();
            Registration::new(Parts {
                store: Arc::new(self.store.clone()),
                host: Host {
                    agent_id: "sky01".into(),
                    group: "net01".into(),
                    hostname: "here".into(),
                    ip: [10, 0, 0, 1].into(),
                    instance: instance.into(),
                },
                started: self.clock.wall(),
                http: None,
                ttl: Duration::from_secs(30),
                renew_every: Duration::from_secs(10),
                look: Arc::new(move || address.lock().unwrap().clone()),
                clock: self.clock.clone(),
            })
        }
        async fn keys(&self) -> Vec<String> {
            let list = self.store.list(&["/".to_owned()]).await.unwrap();
            list.entries.into_iter().map(|entry| entry.key).collect()
        }
    }
    use crate::clock::Clock;
    fn lease(turn: &Turn) -> i64 {
        match turn.standing {
            Standing::Held { lease, .. } => lease,
            ref other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn registers_beats_and_gives_back() {
        let kit = Kit::default();
        let mut agent = kit.agent("a");
        let first = lease(&agent.turn().await);
        assert_eq!(lease(&agent.turn().await), first);
        let health = kit.store.get("/agent/health/10.0.0.1").await.unwrap().unwrap();
        assert_eq!(health.lease, Some(LeaseId(first)));
        assert_eq!(
            health.value,
            r#"{"status":"Online","version":"v.1.1.0","instance":"a","agent_id":"sky01","group":"net01","hostname":"here","started":"2026-11-25T10:00:00Z","http":null}"#
        );
        assert_eq!(agent.granted, 1);
        agent.give_back("stopped as asked").await;
        assert_eq!(kit.keys().await, ["/agent/nodes/10.0.0.1"]);
        let node = kit.store.get("/agent/nodes/10.0.0.1").await.unwrap().unwrap();
        let node = keys::read::<Node>(&node.value);
        assert_eq!(node.why.as_deref(), Some("stopped as asked"));
        assert!(node.has_stopped());
        assert_eq!(kit.store.leases(), []);
        // The next one, which is killed: both are to be seen.
        kit.clock.advance(Duration::from_secs(60));
        kit.agent("a").turn().await;
        let node = kit.store.get("/agent/nodes/10.0.0.1").await.unwrap().unwrap();
        let node = keys::read::<Node>(&node.value);
        assert_eq!(node.why.as_deref(), Some("stopped as asked"));
        assert!(!node.has_stopped());
    }

    #[tokio::test]
    async fn a_lost_lease_is_granted_anew_in_the_same_turn() {
        let kit = Kit::default();
        let mut agent = kit.agent("a");
        let first = lease(&agent.turn().await);
        kit.store.expire(LeaseId(first));
        assert_eq!(kit.keys().await, ["/agent/nodes/10.0.0.1"]);
        let second = lease(&agent.turn().await);
        assert_ne!(first, second);
        assert_eq!(kit.keys().await.len(), 2);
        assert_eq!(kit.store.leases(), [LeaseId(second)]);
    }

    #[tokio::test]
    async fn away_and_back_the_same_lease_goes_on_and_a_restored_store_gets_all_anew() {
        let kit = Kit::default();
        let empty = kit.store.snapshot();
        let mut agent = kit.agent("a");
        let first = lease(&agent.turn().await);
        kit.store.away(true);
        for _ in 0..3 {
            let turn = agent.turn().await;
            assert!(matches!(turn.standing, Standing::Away { .. }) && turn.trouble.is_some());
            assert!(turn.next_in <= Duration::from_secs(2), "{:?}", turn.next_in);
        }
        kit.store.away(false);
        assert_eq!(lease(&agent.turn().await), first);
        let revision = kit.store.list(&[]).await.unwrap().revision;
        assert_eq!(lease(&agent.turn().await), first);
        assert_eq!(
            kit.store.list(&[]).await.unwrap().revision,
            revision,
            "nothing was written"
        );

        kit.store.restore(&empty);
        let again = lease(&agent.turn().await);
        assert_eq!(kit.store.leases(), [LeaseId(again)]);
        // The node record comes with the next registration.
        assert!(kit.keys().await.contains(&"/agent/health/10.0.0.1".to_owned()));
    }

    #[tokio::test]
    async fn the_same_instance_takes_over_and_a_lost_answer_is_looked_up() {
        let kit = Kit::default();
        let mut before = kit.agent("a");
        let old = lease(&before.turn().await);
        drop(before); // kill -9
        let mut after = kit.agent("a");
        kit.store.next_transaction(StoreError::Unknown("lost".into()));
        assert!(matches!(after.turn().await.standing, Standing::Away { .. }));
        let new = lease(&after.turn().await);
        assert_ne!(old, new);
        let health = kit.store.get("/agent/health/10.0.0.1").await.unwrap().unwrap();
        assert_eq!(health.lease, Some(LeaseId(new)));
        assert_eq!(after.granted, 1, "the lease of the lost try is used");
    }

    #[tokio::test]
    async fn another_one_waits_names_the_holder_and_takes_over_when_it_goes() {
        let kit = Kit::default();
        let (mut first, mut second) = (kit.agent("a"), kit.agent("b"));
        first.turn().await;
        let turn = second.turn().await;
        assert!(
            matches!(turn.standing, Standing::Taken { .. }) && turn.trouble.is_none(),
            "it may be dead"
        );
        kit.clock.advance(Duration::from_secs(31));
        let turn = second.turn().await;
        let trouble = turn.trouble.unwrap();
        assert!(
            trouble.contains("10.0.0.1 is held by sky01 (instance a) on here"),
            "{trouble}"
        );
        assert!(turn.next_in <= Duration::from_secs(1));
        assert_eq!(kit.store.leases().len(), 1, "who waits needs none");
        first.give_back("x").await;
        lease(&second.turn().await);
        assert!(matches!(first.turn().await.standing, Standing::Taken { .. }));
    }

    #[tokio::test]
    async fn no_address_waits_and_a_new_one_counts_after_two_looks() {
        let kit = Kit::default();
        *kit.address.lock().unwrap() = Err("no network".into());
        let mut agent = kit.agent("a");
        assert_eq!(agent.turn().await.standing, Standing::Waiting("no network".into()));
        assert_eq!(kit.keys().await, Vec::<String>::new());
        *kit.address.lock().unwrap() = Ok([10, 0, 0, 1].into());
        let old = lease(&agent.turn().await);
        kit.store
            .transact(Transaction::of(vec![Op::put(
                "/cron/cronid/jobs/10.0.0.1/7",
                "x",
                Some(LeaseId(old)),
            )]))
            .await
            .unwrap();
        let minute = Duration::from_secs(61);
        let on = |agent: &Registration| agent.ip.unwrap();
        // Seen once, and gone; seen once, then no network, then once: never twice in a row.
        for (seen, now) in [
            (Ok([10, 0, 0, 2]), 1),
            (Ok([10, 0, 0, 1]), 1),
            (Ok([10, 0, 0, 2]), 1),
            (Err("no network".to_owned()), 1),
            (Ok([10, 0, 0, 2]), 1),
            (Ok([10, 0, 0, 2]), 2),
        ] {
            *kit.address.lock().unwrap() = seen.map(IpAddr::from);
            kit.clock.advance(minute);
            agent.turn().await;
            assert_eq!(on(&agent), IpAddr::from([10, 0, 0, now]));
        }
        assert_eq!(kit.keys().await, ["/agent/health/10.0.0.2", "/agent/nodes/10.0.0.2"]);
        assert_eq!(kit.store.leases().len(), 1);
    }
}
