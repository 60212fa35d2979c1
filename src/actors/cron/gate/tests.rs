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
        let mut seen = self.follow.next().await.unwrap();
        let jobs = seen.jobs.clone().unwrap();
        let told = self.apply(jobs, kit);
        self.follow.taken_in(&mut seen).await.unwrap();
        told
    }
    fn apply(&mut self, jobs: JobsChanged, kit: &Kit) -> Vec<String> {
        let gone = jobs.removed.iter().map(|key| format!("-{}", key.task_id)).collect::<Vec<_>>();
        let applied = self.agenda.apply(jobs, kit.now());
        let answers = applied.answers.iter().map(|answer| match answer.error.as_str() {
            "" => format!("{} {}", answer.key.task_id, answer.state.word()),
            error => format!("{} {}: {error}", answer.key.task_id, answer.state.word()),
        });
        gone.into_iter().chain(answers).collect()
    }
    /// So that deadlines in between are passed.
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
    kit.put(JOB, VALUE).await;
    refused(&life, &life.step(&kit).await.clone(), "none, accepted: a signed value");
}
