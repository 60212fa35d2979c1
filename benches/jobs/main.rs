//! `make bench-jobs`: how fast jobs are. 100,000 of them: loading, memory, and the lag of 200 firings a second among them. From a put in a
//! real etcd to a process that lives, beside `etcdctl watch` seeing the same put. (`next` alone: benches/schedule.rs.)
#[path = "../../tests/kit/mod.rs"]
mod kit;

use std::{
    collections::HashMap,
    future::Future,
    io::{BufRead, BufReader},
    net::IpAddr,
    pin::Pin,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use actix::prelude::*;
use luffly_agent::{
    actors::{
        cron::{
            cron_runner::{CronRunner, CronRunnerParts},
            job_watcher::{JobWatcher, JobWatcherParts},
            lease_keeper::{LeaseKeeper, LeaseKeeperParts},
            registration::Parts,
        },
        kit::Pulse,
    },
    clock,
    executors::{End, Executors, Guards, Launcher, Order, Outcome, Processes, SharedCapture, Started, Stop},
    history::{Bounds, History},
    messages::{
        jobs::{JobEntry, JobsChanged, MeetWatcher, Signed},
        lease::{ObserveLease, ObserveWatcher, Standing},
    },
    metrics::Metrics,
    model::{Host, JobKey, JobState, SharedSign, Sign, job::Limits},
    os::Exit,
    store::{
        Op, SharedStore, Transaction, embedded,
        etcd::{EtcdStore, Options},
        kept::Kept,
    },
};
use redb::Database;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};

/// As the agent has it: memory is told of the same.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const JOBS: usize = 100_000;
const A_SECOND: usize = 200;
const SECONDS: u64 = 20;
const PUTS: usize = 200;
/// By then the allocator has given back what loading needed.
const GIVEN_BACK: Duration = Duration::from_secs(15);
/// Nothing here takes longer; then it is given up.
const LONGEST: Duration = Duration::from_secs(120);
const IP: &str = "10.0.0.1";

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[cfg(feature = "jemalloc")]
    // SAFETY: as the agent does it: the name ends in a zero and stands for a bool.
    unsafe { tikv_jemalloc_ctl::raw::write(b"background_thread\0", true) }.expect("jemalloc is the allocator");
    println!("| what | result | goal |");
    println!("|---|---|---|");
    System::new().block_on(many());
    System::new().block_on(from_put_to_process());
}

// ---- launchers
/// When each task's process was there.
type Times = Arc<Mutex<HashMap<String, Instant>>>;
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts nothing, and says how late it was asked to.
#[derive(Clone, Default)]
struct Lags(Arc<Mutex<Vec<i64>>>);
impl Launcher for Lags {
    fn launch(
        &self,
        order: Order,
        _: SharedCapture,
        _: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let planned: jiff::Timestamp = order.fire_time.parse().unwrap_or_default();
        let lag = clock::system().wall().as_microsecond() - planned.as_microsecond();
        held(&self.0).push(lag);
        drop(started);
        let end = End::Exited(Exit::Code(0));
        let unkillable = vec![];
        Box::pin(async move { Outcome { end, unkillable } })
    }
}
/// Real ones, and when they were there.
struct Timed {
    real: Processes,
    times: Times,
}
impl Launcher for Timed {
    fn launch(
        &self,
        order: Order,
        output: SharedCapture,
        stop: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        let (tell, told) = oneshot::channel();
        let (times, task_id) = (self.times.clone(), order.args.first().cloned().unwrap_or_default());
        let run = self.real.launch(order, output, stop, tell);
        Box::pin(async move {
            let note = async move {
                if let Ok(there) = told.await {
                    held(&times).insert(task_id, Instant::now());
                    let _ = started.send(there);
                }
            };
            tokio::join!(run, note).0
        })
    }
}

fn database(dir: &TempDir) -> Arc<Database> {
    embedded::open(dir.path()).expect("an empty directory").database
}
fn runner(database: Arc<Database>, launcher: Arc<dyn Launcher>, sign: SharedSign) -> Addr<CronRunner> {
    let history = History::open(database, Bounds::default()).expect("an empty history");
    let clock = clock::system();
    let parts = CronRunnerParts {
        memories: history.memories().expect("it is empty"),
        lost: history.take_lost(clock.wall()).expect("it is empty"),
        history,
        launcher,
        executors: Executors::new([]),
        limits: Limits::default(),
        guards: Guards::default(),
        notifier: None,
        enabled: true,
        max_parallel: 512,
        start_grace: Duration::from_secs(60),
        drain: Duration::from_secs(20),
        sign,
        pulse: Pulse::new("jobs/runner", Metrics::new().restarts.clone()),
        clock,
        log: slog::Logger::root(slog::Discard, slog::o!()),
    };
    CronRunner::new(parts).start()
}
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}
fn at<T: Copy>(sorted: &[T], share: f64) -> T {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

// ---- many jobs
async fn many() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lags = Lags::default();
    let runner = runner(
        database(&dir),
        Arc::new(lags.clone()),
        Sign::new(Duration::from_secs(30)),
    );
    let entry = |id: String, value: String| JobEntry {
        key: JobKey::host(IP, id),
        value: value.into(),
        create_revision: 1,
        mod_revision: 1,
        signed: Signed::Unasked,
    };
    let before = resident_mib();
    let began = Instant::now();
    // Far from now, so that none of them is due meanwhile.
    let hour = (clock::system().wall().as_second() / 3600 % 24 + 12) % 24;
    let job = |n: usize| {
        let value = format!(
            r#"{{"task_id":"j{n}","cmd":"/usr/local/bin/do-something --with {n}","express":"{} {hour} * * *","tz":"UTC","name":"job number {n}"}}"#,
            n % 60
        );
        entry(format!("j{n}"), value)
    };
    let all = JobsChanged {
        full: true,
        put: (0..JOBS).map(job).collect(),
        removed: vec![],
    };
    let answers = runner.send(all).await.expect("the runner lives");
    let took = began.elapsed();
    assert!(answers.len() == JOBS && answers.iter().all(|answer| answer.state == JobState::Ok));
    drop(answers);
    println!("| {JOBS} jobs: load | {:.2} s | < 3 s |", took.as_secs_f64());
    let at_once = resident_mib() - before;
    tokio::time::sleep(GIVEN_BACK).await;
    println!(
        "| {JOBS} jobs: memory, {} s later (at once) | {:.0} MiB ({at_once:.0}) | < 114 MiB (120 MB) |",
        GIVEN_BACK.as_secs(),
        resident_mib() - before
    );

    let each_second = |n: usize| entry(format!("s{n}"), r#"{"cmd":"true","express":"* * * * * *"}"#.into());
    let some = JobsChanged {
        full: false,
        put: (0..A_SECOND).map(each_second).collect(),
        removed: vec![],
    };
    runner.send(some).await.expect("the runner lives");
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let mut lags = std::mem::take(&mut *held(&lags.0));
    lags.sort_unstable();
    let ms = |share| at(&lags, share) as f64 / 1e3;
    println!(
        "| {A_SECOND} firings/s among {JOBS} jobs, {} in {SECONDS} s: lag p50 / p99 | {:.1} / {:.1} ms | p99 < 10 ms |",
        lags.len(),
        ms(0.5),
        ms(0.99)
    );
}

// ---- from etcd to a process
async fn from_put_to_process() {
    let etcd = kit::servers::Etcd::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let times = Times::default();
    let launcher = Timed {
        real: Processes { cgroups: true },
        times: times.clone(),
    };
    let sign = Sign::new(Duration::from_secs(30));
    let database = database(&dir);
    let kept = Kept::new(database.clone());
    let runner = runner(database, Arc::new(launcher), sign.clone());
    let store: SharedStore = Arc::new(EtcdStore::new(Options {
        endpoints: vec![etcd.endpoint()],
        prefix: String::new(),
        user: None,
        tls: None,
    }));
    let (clock, log) = (clock::system(), slog::Logger::root(slog::Discard, slog::o!()));
    let ip: IpAddr = IP.parse().expect("an address");
    let watcher = JobWatcher::new(JobWatcherParts {
        store: store.clone(),
        kept: Some(kept),
        gate: None,
        instance: "i".into(),
        group: None,
        prefix: String::new(),
        jobs: runner.clone().recipient(),
        commands: runner.clone().recipient(),
        publish: None,
        clock: clock.clone(),
        log: log.clone(),
    })
    .start();
    runner
        .send(MeetWatcher {
            state_changed: watcher.clone().recipient(),
            claim: watcher.clone().recipient(),
            release: watcher.clone().recipient(),
            once: watcher.clone().recipient(),
        })
        .await
        .expect("the runner lives");
    let keeper = LeaseKeeper::new(LeaseKeeperParts {
        registration: Parts {
            store: store.clone(),
            host: Host {
                agent_id: "bench".into(),
                group: String::new(),
                hostname: "bench".into(),
                ip,
                instance: "i".into(),
            },
            started: clock.wall(),
            http: None,
            ttl: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
            look: Arc::new(move || Ok(ip)),
            clock: clock.clone(),
        },
        hold_when_away: false,
        sign,
        watcher: Some(watcher.clone().recipient()),
        runner: Some(runner.recipient()),
        log,
    })
    .start();
    until("the agent to be up", || async {
        let held = keeper
            .send(ObserveLease)
            .await
            .is_ok_and(|view| matches!(view.standing, Standing::Held { .. }));
        held && watcher.send(ObserveWatcher).await.is_ok_and(|view| view.reads > 0)
    })
    .await;

    // The other one who watches. Its lines are `PUT`, the key, the value.
    let seen = Times::default();
    let mut ctl = etcdctl(&etcd, &["watch", "--prefix", "/cron/"]);
    let out = BufReader::new(ctl.stdout.take().expect("it was asked for"));
    let see = seen.clone();
    let reading = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if let Some(id) = line.rsplit('/').next().filter(|_| line.starts_with("/cron/")) {
                held(&see).entry(id.to_owned()).or_insert_with(Instant::now);
            }
        }
    });
    let base = r#"{"cmd":"/bin/true","executor":"exec","args":["base"],"express":"0 0 1 1 *","overlap":"parallel"}"#;
    put(&store, format!("/cron/jobs/{IP}/base"), base.into()).await;
    until("etcdctl to watch", || async {
        put(&store, "/cron/x/warm".into(), "x".into()).await;
        held(&seen).contains_key("warm")
    })
    .await;

    for (what, once) in [
        ("`once` job put → process", true),
        ("`run` command put → process", false),
    ] {
        let (mut to_process, mut to_ctl, mut over) = (vec![], vec![], vec![]);
        for n in 0..PUTS {
            let id = format!("{}{n}", if once { "o" } else { "c" });
            let (key, value, task) = match once {
                true => {
                    let value = format!(r#"{{"type":"once","cmd":"/bin/true","executor":"exec","args":["{id}"]}}"#);
                    (format!("/cron/jobs/{IP}/{id}"), value, id.clone())
                }
                false => {
                    held(&times).remove("base");
                    let expires = clock.wall().as_second() + 60;
                    let value = format!(r#"{{"action":"run","task_id":"base","expires":{expires}}}"#);
                    (format!("/cron/commands/{IP}/{id}"), value, "base".to_owned())
                }
            };
            let began = Instant::now();
            put(&store, key, value).await;
            until("a process", || async {
                held(&times).contains_key(&task) && held(&seen).contains_key(&id)
            })
            .await;
            let process = held(&times)[&task].saturating_duration_since(began);
            let ctl = held(&seen)[&id].saturating_duration_since(began);
            to_process.push(process);
            to_ctl.push(ctl);
            over.push(process.saturating_sub(ctl));
        }
        for times in [&mut to_process, &mut to_ctl, &mut over] {
            times.sort();
        }
        let ms = |times: &[Duration], share| at(times, share).as_secs_f64() * 1e3;
        println!(
            "| {what}, {PUTS} times: p50 / p99 (etcdctl watch) | {:.1} / {:.1} ms ({:.1} / {:.1}); over it p50 / p99 {:.1} / {:.1} ms | p99 < 15 ms, < 5 ms over |",
            ms(&to_process, 0.5),
            ms(&to_process, 0.99),
            ms(&to_ctl, 0.5),
            ms(&to_ctl, 0.99),
            ms(&over, 0.5),
            ms(&over, 0.99),
        );
    }
    let _ = ctl.kill();
    let _ = ctl.wait();
    let _ = reading.join();
}
async fn put(store: &SharedStore, key: String, value: String) {
    store
        .transact(Transaction::of(vec![Op::put(key, value, None)]))
        .await
        .expect("etcd takes it");
}
fn etcdctl(etcd: &kit::servers::Etcd, args: &[&str]) -> std::process::Child {
    let brought = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers/etcd/usr/bin/etcdctl");
    let program = if brought.exists() { brought } else { "etcdctl".into() };
    Command::new(program)
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints=http://{}", etcd.endpoint()))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("scripts/setup.sh etcd brings it")
}
async fn until<F: Future<Output = bool>>(what: &str, mut is: impl FnMut() -> F) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < LONGEST, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
