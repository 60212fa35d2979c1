//! BEHAVIOUR 90 and 102: what comes from etcd, through the gate, to the agenda. A life ends and another begins on the same disk.
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::*;
use crate::{
    actors::cron::{agenda::Agenda, commands, follow::Follow},
    clock::{Clock, ManualClock},
    executors::Guards,
    messages::jobs::{CommandAnswer, JobCommand, JobsChanged},
    model::{JobKey, RunId, job::Limits},
    signature::{SigningKey, key_file},
    store::{Op, Store, Transaction, embedded, kept::Whose, keys, memory::MemoryStore},
};

const JOB: &str = "/cron/jobs/10.0.0.1/17";
const NOW: &str = "2026-11-25T10:00:00Z";
const LATER: &str = "2026-12-25T10:00:00Z";
const VALUE: &str = r#"{"cmd":"date","express":"* * * * *"}"#;

struct Kit {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    key: SigningKey,
}
/// Of an agent.
struct Life {
    gate: SharedGate,
    kept: Kept,
    follow: Follow,
    agenda: Agenda,
}
impl Kit {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        key_file::create(&key).unwrap();
        Self {
            store: MemoryStore::default(),
            clock: ManualClock::at(NOW.parse().unwrap()),
            key: key_file::load(&key).unwrap(),
            dir,
        }
    }
    fn life(&self) -> Life {
        let kept = Kept::new(embedded::open(self.dir.path()).unwrap().database);
        let verifier = Verifier::new(&[self.key.public()], "shop").unwrap();
        let gate = Gate::open(verifier, kept.clone()).unwrap();
        let whose = Whose {
            ip: "10.0.0.1".into(),
            group: Some("web".into()),
            ..Whose::default()
        };
        let follow = Follow::new(Arc::new(self.store.clone()), Some(kept.clone()), whose);
        Life {
            follow: follow.with_gate(gate.clone(), self.clock.clone()),
            agenda: Agenda::new(
                Limits::default(),
                Guards::default(),
                Duration::from_secs(60),
                Default::default(),
            ),
            gate,
            kept,
        }
    }
    fn signed_for(&self, path: &str, value: &str, serial: u64) -> String {
        self.signed_until(path, value, serial, LATER)
    }
    fn signed_until(&self, path: &str, value: &str, serial: u64, until: &str) -> String {
        let signed = self
            .key
            .sign("shop", path, value.as_bytes(), serial, until.parse().unwrap());
        String::from_utf8(signed.unwrap()).unwrap()
    }
    fn signed(&self, serial: u64) -> String {
        self.signed_for(JOB, VALUE, serial)
    }
    async fn put(&self, path: &str, value: &str) {
        let op = Op::put(path, value.to_owned(), None);
        self.store.transact(Transaction::of(vec![op])).await.unwrap();
    }
    async fn delete(&self, path: &str) {
        let gone = Transaction::of(vec![Op::delete(path)]);
        self.store.transact(gone).await.unwrap();
    }
    fn now(&self) -> Timestamp {
        self.clock.wall()
    }
}
impl Life {
    /// What is told next, and how those jobs stand then: `17 ok`, `17 invalid: …`, `-17`.
    async fn step(&mut self, kit: &Kit) -> Vec<String> {
        loop {
            let mut seen = self.follow.next().await.unwrap();
            let Some(jobs) = seen.jobs.clone() else {
                continue; // a command came
            };
            let told = self.apply(jobs, kit);
            self.follow.taken_in(&mut seen).await.unwrap();
            return told;
        }
    }
    /// After a put at that path.
    async fn put(&mut self, kit: &Kit, path: &str, value: &str) -> Vec<String> {
        kit.put(path, value).await;
        self.step(kit).await
    }
    fn apply(&mut self, jobs: JobsChanged, kit: &Kit) -> Vec<String> {
        let gone = jobs
            .removed
            .iter()
            .map(|key| format!("-{}", key.task_id))
            .collect::<Vec<_>>();
        let applied = self.agenda.apply(jobs, kit.now());
        let answers = applied.answers.iter().map(|answer| match answer.error.as_str() {
            "" => format!("{} {}", answer.key.task_id, answer.state.word()),
            error => format!("{} {}: {error}", answer.key.task_id, answer.state.word()),
        });
        gone.into_iter().chain(answers).collect()
    }
    fn next_at(&self) -> Option<String> {
        self.agenda.next_at().map(|at| at.to_string())
    }
}
/// One word on it, and nothing is due.
fn refused(life: &Life, told: &[String], why: &str) {
    assert_eq!(told.len(), 1, "{told:?}");
    let expected = format!("17 invalid: `signature`: found {why}");
    assert!(told[0].starts_with(&expected), "{told:?}");
    assert_eq!(life.next_at(), None, "nothing is due");
    assert!(life.agenda.named(None, "17").unwrap().1.spec().is_none());
}

#[tokio::test]
async fn only_what_fits_is_taken_on() {
    let kit = Kit::new();
    let mut life = kit.life();
    assert_eq!(life.step(&kit).await, Vec::<String>::new());
    let told = life.put(&kit, JOB, VALUE).await;
    refused(&life, &told, "none, accepted: a signed value");
    let told = life.put(&kit, JOB, "}{").await;
    assert!(
        told[0].starts_with("17 invalid: found"),
        "a job that is none is called so: {told:?}"
    );

    let good = kit.signed(5);
    let altered = good.replace("date", "id");
    let told = life.put(&kit, JOB, &altered).await;
    refused(
        &life,
        &told,
        "one that does not fit, accepted: one by the owner of `verify_key`, for this value, key /cron/jobs/10.0.0.1/17",
    );
    let other = Kit::new();
    let told = life.put(&kit, JOB, &other.signed(5)).await;
    refused(&life, &told, "one that does not fit");
    let fleet = kit
        .key
        .sign("bank", JOB, VALUE.as_bytes(), 5, LATER.parse().unwrap())
        .unwrap();
    let told = life.put(&kit, JOB, std::str::from_utf8(&fleet).unwrap()).await;
    refused(&life, &told, "one that does not fit");
    let told = life
        .put(&kit, JOB, &kit.signed_for("/cron/jobs/10.0.0.1/18", VALUE, 5))
        .await;
    refused(&life, &told, "one that does not fit");
    let told = life
        .put(&kit, JOB, &kit.signed_for("/cron/groups/web/jobs/17", VALUE, 5))
        .await;
    refused(&life, &told, "one that does not fit");
    let told = life
        .put(&kit, JOB, &kit.signed_until(JOB, VALUE, 5, "2026-11-25T09:59:59Z"))
        .await;
    refused(&life, &told, "not_after 2026-11-25T09:59:59Z, which has passed");
    let told = life
        .put(&kit, JOB, &kit.signed_until(JOB, VALUE, 5, "2027-02-24T10:00:00Z"))
        .await;
    refused(
        &life,
        &told,
        "not_after 2027-02-24T10:00:00Z, accepted: one at most 90 days from now",
    );
    assert_eq!(life.kept.serials().unwrap(), [], "what was refused leaves no trace");

    assert_eq!(life.put(&kit, JOB, &good).await, ["17 ok"]);
    assert_eq!(life.next_at().as_deref(), Some("2026-11-25T10:01:00Z"));
    assert_eq!(life.kept.serials().unwrap().len(), 1);
    // Other guards stand as before.
    let unknown = kit.signed_for(JOB, r#"{"cmd":"date","express":"* * * * *","exlusive":true}"#, 6);
    let told = life.put(&kit, JOB, &unknown).await;
    assert!(told[0].starts_with("17 invalid: `exlusive`"), "{told:?}");
}

#[tokio::test]
async fn serials_go_forward_only_past_deletion_and_restart() {
    let kit = Kit::new();
    let mut life = kit.life();
    life.step(&kit).await;
    let (third, fourth, fifth) = (kit.signed(3), kit.signed(4), kit.signed(5));
    assert_eq!(life.put(&kit, JOB, &fourth).await, ["17 ok"]);
    let told = life.put(&kit, JOB, &third).await;
    refused(&life, &told, "serial 3, and 4 was seen: an old value was put again");
    // The same bytes again are the same job, deleted meanwhile or not.
    assert_eq!(life.put(&kit, JOB, &fourth).await, ["17 ok"]);
    kit.delete(JOB).await;
    assert_eq!(life.step(&kit).await, ["-17"]);
    assert_eq!(life.put(&kit, JOB, &fourth).await, ["17 ok"]);
    let other = kit.signed_for(JOB, r#"{"cmd":"id","express":"* * * * *"}"#, 4);
    let told = life.put(&kit, JOB, &other).await;
    refused(&life, &told, "serial 4 again, in another value");
    assert_eq!(life.put(&kit, JOB, &fifth).await, ["17 ok"]);
    kit.delete(JOB).await;
    life.step(&kit).await;
    let told = life.put(&kit, JOB, &fourth).await;
    refused(&life, &told, "serial 4, and 5 was seen");
    kit.delete(JOB).await;
    life.step(&kit).await;

    // A restart, and what is put while nobody is there.
    drop(life);
    kit.put(JOB, &fourth).await;
    let mut life = kit.life();
    let told = life.step(&kit).await;
    refused(&life, &told, "serial 4, and 5 was seen");
    assert_eq!(life.put(&kit, JOB, &fifth).await, ["17 ok"]);
    drop(life);
    let mut life = kit.life();
    assert_eq!(life.step(&kit).await, ["17 ok"]);
    // With etcd away the jobs of the last time are judged as well.
    drop(life);
    kit.store.away(true);
    let mut life = kit.life();
    assert!(life.follow.next().await.is_err());
    let last = life.follow.last_time().await.unwrap().unwrap();
    assert_eq!(life.apply(last, &kit), ["17 ok"]);
    drop(life);
    kit.clock.set_wall("2026-12-25T10:00:01Z".parse().unwrap());
    let mut life = kit.life();
    assert!(life.follow.next().await.is_err());
    let last = life.follow.last_time().await.unwrap().unwrap();
    let told = life.apply(last, &kit);
    refused(&life, &told, "not_after 2026-12-25T10:00:00Z, which has passed");
}

#[tokio::test]
async fn a_damaged_row_is_an_error_and_no_empty_memory() {
    let kit = Kit::new();
    let mut life = kit.life();
    life.step(&kit).await;
    life.put(&kit, JOB, &kit.signed(4)).await;
    life.kept.keep_serials(&[(JOB, b"?")], &[]).unwrap();
    let verifier = Verifier::new(&[kit.key.public()], "shop").unwrap();
    let error = Gate::open(verifier, life.kept.clone()).err().unwrap();
    assert_eq!(error, format!("could not read the kept serial of {JOB}"));
}

/// A host that boots with a wrong clock: when it is set, all is judged again, without a word from etcd.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_has_them_judged_again() {
    let kit = Kit::new();
    kit.clock.set_wall("1970-01-01T00:00:10Z".parse().unwrap());
    let mut life = kit.life();
    kit.put(JOB, &kit.signed(4)).await;
    let told = life.step(&kit).await;
    refused(
        &life,
        &told,
        "not_after 2026-12-25T10:00:00Z, accepted: one at most 90 days from now",
    );
    kit.clock.set_wall(NOW.parse().unwrap());
    assert_eq!(life.step(&kit).await, ["17 ok"]);
    assert_eq!(life.follow.reads, 2);
    // What is refused for good costs etcd one look an hour.
    let told = life.put(&kit, JOB, VALUE).await;
    refused(&life, &told, "none");
    let began = tokio::time::Instant::now();
    let told = life.step(&kit).await;
    refused(&life, &told, "none");
    assert!(began.elapsed() > Duration::from_secs(3000), "{:?}", began.elapsed());
    assert_eq!(life.follow.reads, 3);
}

struct Asked {
    gate: SharedGate,
    runs: Arc<Mutex<Vec<String>>>,
}
impl Asked {
    /// Puts it there, serves it, and says what was answered.
    async fn serve(&self, kit: &Kit, path: &str, value: &str) -> String {
        kit.put(path, value).await;
        let entry = kit.store.get(path).await.unwrap().unwrap();
        let runs = self.runs.clone();
        let ask = move |command: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> {
            runs.lock().unwrap().push(command.task_id);
            Box::pin(std::future::ready(Some(CommandAnswer {
                done: true,
                said: "started".into(),
                run_ids: vec![],
            })))
        };
        let store: SharedStore = Arc::new(kit.store.clone());
        let taker = commands::Taker {
            store: &store,
            gate: Some(&self.gate),
            ip: "10.0.0.1",
            lease: kit.store.grant(Duration::from_secs(30)).await.unwrap(),
        };
        let told = commands::serve(&taker, &entry, RunId::of_u128(7), kit.now(), &ask).await;
        if let Some(told) = told.unwrap() {
            told.tell(store).await;
        }
        assert_eq!(kit.store.get(path).await.unwrap(), None, "it is gone");
        let result = path.replace("commands", "results");
        let answer = kit.store.get(&result).await.unwrap().unwrap();
        let answer = keys::read::<keys::Answer>(&answer.value);
        format!("{} {}", answer.state, answer.said)
    }
}
#[tokio::test]
async fn a_command_counts_once() {
    const COMMAND: &str = "/cron/commands/10.0.0.1/c1";
    const RUN: &str = r#"{"action":"run","task_id":17,"expires":"2026-11-25T10:09:00Z"}"#;
    const UNTIL: &str = "2026-11-25T10:09:00Z";
    let kit = Kit::new();
    let runs = Arc::default();
    let life = kit.life();
    let asked = Asked {
        gate: life.gate.clone(),
        runs: Arc::clone(&runs),
    };
    let good = kit.signed_until(COMMAND, RUN, 5, UNTIL);
    for (value, why) in [
        (RUN.to_owned(), "found none"),
        (good.replace("17", "18"), "found one that does not fit"),
        (
            kit.signed_until("/cron/commands/10.0.0.1/c2", RUN, 5, UNTIL),
            "found one that does not fit",
        ),
        (
            kit.signed_until(COMMAND, RUN, 5, "2026-11-25T10:10:01Z"),
            "found not_after 2026-11-25T10:10:01Z, accepted: one at most 10 minutes",
        ),
        (
            kit.signed_until(COMMAND, RUN, 5, "2026-11-25T09:59:59Z"),
            "found not_after 2026-11-25T09:59:59Z, which has passed",
        ),
    ] {
        let answer = asked.serve(&kit, COMMAND, &value).await;
        assert!(answer.starts_with(&format!("refused `signature`: {why}")), "{answer}");
    }
    assert_eq!(*runs.lock().unwrap(), Vec::<String>::new());
    assert_eq!(asked.serve(&kit, COMMAND, &good).await, "done started");
    let again = asked.serve(&kit, COMMAND, &good).await;
    assert!(
        again.starts_with("refused `signature`: found serial 5 again, accepted: each command once"),
        "{again}"
    );
    let older = asked
        .serve(&kit, COMMAND, &kit.signed_until(COMMAND, RUN, 4, UNTIL))
        .await;
    assert!(
        older.starts_with("refused `signature`: found serial 4, and 5 was seen"),
        "{older}"
    );
    drop((asked, life));

    let life = kit.life();
    let asked = Asked {
        gate: life.gate.clone(),
        runs: Arc::clone(&runs),
    };
    let again = asked.serve(&kit, COMMAND, &good).await;
    assert!(
        again.starts_with("refused `signature`: found serial 5 again"),
        "{again}"
    );
    assert_eq!(*runs.lock().unwrap(), ["17"]);
    // When it has been over for a day the next command sweeps its row away.
    kit.clock.set_wall("2026-11-26T10:09:01Z".parse().unwrap());
    let path = "/cron/commands/10.0.0.1/c3";
    let next = r#"{"action":"run","task_id":3,"expires":"2026-11-26T10:15:00Z"}"#;
    let next = kit.signed_until(path, next, 1, "2026-11-26T10:15:00Z");
    assert_eq!(asked.serve(&kit, path, &next).await, "done started");
    let rows = life.kept.serials().unwrap().into_iter().map(|(path, _)| path);
    assert_eq!(rows.collect::<Vec<_>>(), [path]);
    let again = asked.serve(&kit, COMMAND, &good).await;
    assert!(again.starts_with("expired "), "{again}");
}

#[tokio::test]
async fn a_once_job_runs_once_for_each_serial() {
    const ONCE: &str = r#"{"cmd":"date","type":"once"}"#;
    let kit = Kit::new();
    kit.put("/agent/nodes/10.0.0.1", "{}").await;
    let mut life = kit.life();
    life.step(&kit).await;
    let value = kit.signed_for(JOB, ONCE, 4);
    let mark = async |life: &Life| {
        let job = life.agenda.named(None, "17").unwrap().1;
        let ask = MarkOnce {
            job: job.key.clone(),
            create_revision: job.create_revision,
            value_hash: "h".into(),
            serial: job.serial(),
        };
        let store: SharedStore = Arc::new(kit.store.clone());
        mark_once(Some(&life.gate), &store, "10.0.0.1", &ask, kit.now()).await
    };
    // Deleted and put again it is another job for everything but its serial.
    let anew = async |life: &mut Life, value: &str| {
        kit.delete(JOB).await;
        life.step(&kit).await;
        let store: SharedStore = Arc::new(kit.store.clone());
        claims::unmark_once(&store, "10.0.0.1", &JobKey::host("10.0.0.1", "17"))
            .await
            .unwrap();
        life.put(&kit, JOB, value).await
    };
    assert_eq!(life.put(&kit, JOB, &value).await, ["17 ok"]);
    assert_eq!(mark(&life).await, OnceMarked::Marked);
    assert_eq!(mark(&life).await, OnceMarked::Already);
    assert_eq!(anew(&mut life, &value).await, ["17 ok"]);
    assert_eq!(mark(&life).await, OnceMarked::Already);
    drop(life);
    let mut life = kit.life();
    life.step(&kit).await;
    assert_eq!(anew(&mut life, &value).await, ["17 ok"]);
    assert_eq!(mark(&life).await, OnceMarked::Already);
    let next = kit.signed_for(JOB, ONCE, 5);
    assert_eq!(anew(&mut life, &next).await, ["17 ok"]);
    assert_eq!(mark(&life).await, OnceMarked::Marked);
    // Signed by the time the runner asks for an older one.
    let ask = MarkOnce {
        job: JobKey::host("10.0.0.1", "17"),
        create_revision: 1000,
        value_hash: "h".into(),
        serial: Some(4),
    };
    let store: SharedStore = Arc::new(kit.store.clone());
    let marked = mark_once(Some(&life.gate), &store, "10.0.0.1", &ask, kit.now()).await;
    assert_eq!(marked, OnceMarked::NoStore("it was changed meanwhile".into()));
}

/// A full disk: what was known goes on, what is new is refused and taken on when there is room.
#[cfg(feature = "failpoints")]
#[tokio::test(start_paused = true)]
async fn a_serial_that_cannot_be_written_lets_nothing_in() {
    let scenario = fail::FailScenario::setup();
    let kit = Kit::new();
    let mut life = kit.life();
    life.step(&kit).await;
    let other = "/cron/jobs/10.0.0.1/18";
    let known = kit.signed_for(other, VALUE, 1);
    assert_eq!(life.put(&kit, other, &known).await, ["18 ok"]);
    fail::cfg("serials-write", "return").unwrap();
    let told = life.put(&kit, JOB, &kit.signed(4)).await;
    assert!(
        told[0].starts_with("17 invalid: `signature`: found a serial that could not be remembered: "),
        "{told:?}"
    );
    kit.delete(JOB).await;
    assert_eq!(life.step(&kit).await, ["-17"]);
    let told = life.put(&kit, JOB, &kit.signed(4)).await;
    assert!(told[0].starts_with("17 invalid: "), "{told:?}");
    assert_eq!(life.next_at().as_deref(), Some("2026-11-25T10:01:00Z"), "of the other");
    // A command is claimed, and not done.
    let path = "/cron/commands/10.0.0.1/c1";
    let run = r#"{"action":"run","task_id":17,"expires":"2026-11-25T10:09:00Z"}"#;
    let asked = Asked {
        gate: life.gate.clone(),
        runs: Arc::default(),
    };
    let answer = asked
        .serve(&kit, path, &kit.signed_until(path, run, 5, "2026-11-25T10:09:00Z"))
        .await;
    assert!(
        answer.starts_with("refused its serial could not be remembered: "),
        "{answer}"
    );
    assert!(asked.runs.lock().unwrap().is_empty());
    fail::remove("serials-write");
    assert_eq!(life.step(&kit).await, ["17 ok"], "without a word from etcd");
    scenario.teardown();
}
