//! `make fleet N=2000`: what N agents cost one real etcd, and how fast they are with it. All of them live in this process, each with a
//! connection of its own and the real actors; etcd is a process of its own, on loopback, and ended by its pid. Beside each fleet stand
//! as many bare clients with the same connection, lease and watchers: what nobody could do without.
mod bare;
mod etcd;
#[path = "../../tests/kit/mod.rs"]
mod kit;
mod member;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use futures_util::{StreamExt as _, stream};
use luffly_agent::store::{Op, Store as _, Transaction, etcd::EtcdStore};

use self::{
    etcd::{Auth, Server, Usage},
    member::{Arrivals, Member},
};

/// So many start, or are asked, at a time: a fleet does not come up within one second either.
const AT_ONCE: usize = 32;
/// Group jobs that are put, one after the other.
const DISPATCHES: usize = 20;
const FIRINGS: usize = 10;
/// Nothing here takes longer; then it is given up with a message.
const LONGEST: Duration = Duration::from_secs(300);

struct Args {
    agents: Vec<usize>,
    /// How long a fleet stands before it is looked at again.
    stand: Duration,
    passwords: usize,
}
fn args() -> Args {
    let mut args = Args {
        agents: vec![100, 500, 2000],
        stand: Duration::from_secs(60),
        passwords: 100,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse::<u64>().ok());
        match word.as_str() {
            "--bench" => {}
            "--agents" => {
                let list = words.next().unwrap_or_default();
                args.agents = list
                    .split(',')
                    .filter_map(|n| n.parse().ok())
                    .filter(|n| (1..=5000).contains(n))
                    .collect();
            }
            "--stand" => args.stand = number().map_or(args.stand, |n| Duration::from_secs(n.min(3600))),
            "--passwords" => args.passwords = number().map_or(args.passwords, |n| n.min(5000) as usize),
            other => panic!("found `{other}`, accepted: --agents N[,N…] --stand SECONDS --passwords N"),
        }
    }
    args
}

fn main() {
    let args = args();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let most = args.agents.iter().copied().max().unwrap_or(0).max(args.passwords);
    let descriptors = raise_descriptors();
    assert!(
        descriptors > 2 * most as u64 + 200,
        "{most} agents need twice as many descriptors, and {descriptors} are allowed: ulimit -n"
    );
    println!(
        "| agents | auth | etcd, KiB an agent (bare client) | ratio | goroutines (bare) | growth | keep-alives/s | all up, s | dispatch p50 / p99 / last, ms | exclusive firing: etcd CPU ms, wall ms, runs | back after kill -9, s | here, KiB an agent |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let rows = args
        .agents
        .iter()
        .map(|n| (*n, Auth::Certificates))
        .chain([(args.passwords, Auth::Passwords)]);
    for (agents, auth) in rows.filter(|(n, _)| *n > 0) {
        let bare = System::new().block_on(bare_cost(agents, auth));
        let cost = System::new().block_on(agents_cost(agents, auth, args.stand));
        let times = System::new().block_on(times(agents, auth));
        println!(
            "| {agents} | {} | {:.0} ({:.0}) | {:.2} | {:.1} ({:.1}) | {:+.1} % | {:.1} | {:.1} | {:.1} / {:.1} / {:.1} | {:.1}, {:.0}, {} of {FIRINGS} | {:.1} | {:.0} |",
            auth.word(),
            cost.kib,
            bare.kib,
            cost.kib / bare.kib,
            cost.goroutines,
            bare.goroutines,
            cost.growth * 100.0,
            cost.beats,
            times.up.as_secs_f64(),
            ms(times.dispatch[0]),
            ms(times.dispatch[1]),
            ms(times.dispatch[2]),
            times.firing_cpu_ms,
            times.firing_wall_ms,
            times.granted,
            times.back.as_secs_f64(),
            cost.own_kib,
        );
    }
}
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be asked for");
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// What a client costs etcd.
struct Cost {
    kib: f64,
    goroutines: f64,
    /// How much more etcd holds when they have stood for a while.
    growth: f64,
    beats: f64,
    /// What an agent costs this process.
    own_kib: f64,
}
async fn bare_cost(clients: usize, auth: Auth) -> Cost {
    let mut server = Server::start(auth);
    server.keep_little();
    let (server, empty) = (&server, server.settled().await);
    let all = stream::iter(0..clients).map(|n| bare::Client::connect(server, n));
    let all = all.buffered(AT_ONCE).collect::<Vec<_>>().await;
    let cost = cost(server, empty, clients, Duration::ZERO).await;
    drop(all);
    cost
}
async fn agents_cost(agents: usize, auth: Auth, stand: Duration) -> Cost {
    let mut server = Server::start(auth);
    server.keep_little();
    let empty = server.settled().await;
    let fleet = Fleet::up(agents, &server).await;
    let cost = cost(&server, empty, agents, stand).await;
    let own_kib = fleet.own_kib;
    fleet.end();
    Cost { own_kib, ..cost }
}
async fn cost(server: &Server, empty: Usage, clients: usize, stand: Duration) -> Cost {
    let first = server.settled().await;
    let (kib, goroutines) = first.per(empty, clients);
    let beats_then = server.metric("grpc_server_msg_received_total", "LeaseKeepAlive\"");
    let standing = Instant::now();
    tokio::time::sleep(stand).await;
    let beats = server.metric("grpc_server_msg_received_total", "LeaseKeepAlive\"") - beats_then;
    let later = server.settled().await;
    Cost {
        kib,
        goroutines,
        growth: (later.kib - first.kib) / first.kib,
        beats: beats / standing.elapsed().as_secs_f64(),
        own_kib: 0.0,
    }
}

struct Fleet {
    members: Vec<Member>,
    arbiters: [Arbiter; 2],
    arrivals: Arc<Arrivals>,
    /// How long it took.
    took: Duration,
    own_kib: f64,
}
impl Fleet {
    async fn up(agents: usize, server: &Server) -> Self {
        let own_before = etcd::resident_kib(std::process::id());
        let arrivals = Arc::new(Arrivals::default());
        let arbiters = [Arbiter::new(), Arbiter::new()];
        let began = Instant::now();
        let members = stream::iter(0..agents)
            .map(|n| Member::start(n, server, &arbiters[n % arbiters.len()], arrivals.clone()))
            .buffered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        until("all to be up", || all_up(&members)).await;
        Self {
            members,
            arbiters,
            arrivals,
            took: began.elapsed(),
            own_kib: (etcd::resident_kib(std::process::id()) - own_before) / agents as f64,
        }
    }
    fn end(self) {
        for arbiter in self.arbiters {
            arbiter.stop();
            let _ = arbiter.join();
        }
    }
}

/// How fast a fleet is.
struct Times {
    up: Duration,
    /// p50, p99, last
    dispatch: [Duration; 3],
    firing_cpu_ms: f64,
    firing_wall_ms: f64,
    granted: usize,
    back: Duration,
}
async fn times(agents: usize, auth: Auth) -> Times {
    let mut server = Server::start(auth);
    let fleet = Fleet::up(agents, &server).await;
    let up = fleet.took;
    let mut took = vec![];
    let store = server.store();
    for n in 0..DISPATCHES {
        took.extend(dispatched(&store, &fleet.members, &fleet.arrivals, n).await);
        // Their answers, spread over so long (SPEC §3), are no part of the next.
        tokio::time::sleep(Duration::from_secs_f64(0.2 + agents as f64 / 500.0)).await;
    }
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let dispatch = [at(0.5), at(0.99), took[took.len() - 1]];

    let (mut cpu, mut wall, mut granted) = (0.0, 0.0, 0);
    for n in 0..FIRINGS {
        let before = server.usage();
        let began = Instant::now();
        granted += member::fire(&fleet.members, n, &server).await;
        wall += began.elapsed().as_secs_f64() * 1e3;
        cpu += (server.usage().cpu - before.cpu) * 1e3;
    }

    let generation = fleet.members.iter().map(|member| member.reads()).collect::<Vec<_>>();
    let generation = futures_util::future::join_all(generation).await;
    server.kill();
    server.resume();
    let began = Instant::now();
    until("all to be back", || async {
        for (member, before) in fleet.members.iter().zip(&generation) {
            if member.reads().await <= *before || !member.is_up().await {
                return false;
            }
        }
        true
    })
    .await;
    let back = began.elapsed();
    fleet.end();
    Times {
        up,
        dispatch,
        firing_cpu_ms: cpu / FIRINGS as f64,
        firing_wall_ms: wall / FIRINGS as f64,
        granted,
        back,
    }
}
async fn all_up(fleet: &[Member]) -> bool {
    for member in fleet {
        if !member.is_up().await {
            return false;
        }
    }
    true
}
async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < LONGEST, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A job of the group is put: when each runner has it.
async fn dispatched(store: &EtcdStore, fleet: &[Member], arrivals: &Arrivals, n: usize) -> Vec<Duration> {
    let value = format!(r#"{{"task_id":"j{n}","cmd":"true","express":"0 0 1 1 *"}}"#);
    let key = format!("/cron/groups/fleet/jobs/j{n}");
    let put = Transaction::of(vec![Op::put(&*key, value, None)]).idempotent();
    store.glance(&key).await.expect("etcd answers"); // it is connected
    arrivals.begin();
    let began = Instant::now();
    store.transact(put).await.expect("etcd takes a job");
    until("a job to reach all", || async { arrivals.count() >= fleet.len() }).await;
    arrivals
        .take()
        .into_iter()
        .map(|at| at.saturating_duration_since(began))
        .collect()
}

impl Usage {
    fn per(self, empty: Self, clients: usize) -> (f64, f64) {
        let n = clients as f64;
        ((self.kib - empty.kib) / n, (self.goroutines - empty.goroutines) / n)
    }
}
