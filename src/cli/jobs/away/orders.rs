//! One command to one agent, and its answer: a key under a lease, which the agent takes away when it claims it. Nobody is left in doubt:
//! a command that nobody has claimed is taken back before that is said.
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    model::RunId,
    store::{
        Compare, LeaseId, Op, SharedStore, StoreError, Transaction,
        keys::{self, Answer},
    },
};

/// A command stands for so long.
const STANDS: Duration = Duration::from_secs(60);
/// It is waited for so long that somebody claims it, and then so long for what became of it.
const CLAIMED_WITHIN: Duration = Duration::from_secs(15);
const DONE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks for the answer, doubling up to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

pub struct Order<'a> {
    pub action: &'static str,
    pub task_id: &'a str,
    pub group: Option<&'a str>,
    pub run_id: Option<&'a str>,
}
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// `done`, `refused`, `expired` as the agent says; `claimed`: it took it, and has not said more; `nobody`.
    pub state: String,
    pub said: String,
    pub runs: Vec<String>,
}
impl Answered {
    fn of(answer: Answer) -> Self {
        Self {
            state: answer.state,
            said: answer.said,
            runs: answer.runs,
        }
    }
    pub fn done(&self) -> bool {
        self.state == "done"
    }
    pub fn json(&self, ip: &str) -> Value {
        json!({ "node": ip, "state": self.state, "said": self.said, "runs": self.runs })
    }
}

/// An order as it is put: may be signed until it is sent.
pub struct Command {
    pub ip: String,
    id: String,
    pub value: String,
}
impl Command {
    pub fn new(ip: String, order: &Order<'_>, now: Timestamp) -> Self {
        let mut chance = [0; 10];
        let _ = getrandom::fill(&mut chance); // then it is the time alone that tells commands apart
        let expires = now.saturating_add(STANDS).unwrap_or(now);
        let mut value = json!({ "action": order.action, "task_id": order.task_id, "expires": keys::instant(expires) });
        for (name, text) in [("group", order.group), ("run_id", order.run_id)] {
            if let Some(text) = text {
                value[name] = text.into();
            }
        }
        Self {
            ip,
            id: format!("cli-{}", RunId::new(now, chance)),
            value: value.to_string(),
        }
    }
    pub fn key(&self) -> String {
        format!("{}{}", keys::commands(&self.ip), self.id)
    }
}

pub async fn send(store: &SharedStore, command: Command) -> Result<Answered, StoreError> {
    let (key, Command { ip, id, value }) = (command.key(), command);
    let lease = store.grant(STANDS).await?;
    let put = Op::put(&*key, value, Some(lease));
    // The key is ours alone; a lost answer is as good as one: whoever claims it answers.
    match store
        .transact(Transaction::when(vec![Compare::absent(&*key)], vec![put]))
        .await
    {
        Ok(_) | Err(StoreError::Unknown(_)) => {}
        Err(error) => {
            let _ = store.revoke(lease).await; // else it ends by itself
            return Err(error);
        }
    }
    let answered = await_answer(store, &ip, &keys::result(&ip, &id), lease).await;
    let _ = store.revoke(lease).await;
    answered
}
async fn await_answer(store: &SharedStore, ip: &str, result: &str, lease: LeaseId) -> Result<Answered, StoreError> {
    let seen = until(store, result, CLAIMED_WITHIN, |_| true).await?;
    if let Some(answer) = &seen
        && answer.state != "claimed"
    {
        return Ok(Answered::of(answer.clone()));
    }
    // Taken back if it is there still: from here on it is claimed, or never will be.
    store.revoke(lease).await?;
    let now = store.get(result).await?.map(|entry| keys::read::<Answer>(&entry.value));
    // What was claimed may be gone again, with the agent.
    let Some(claimed) = now.or(seen) else {
        let said = format!("nobody answered within {CLAIMED_WITHIN:?}; the command was taken back");
        return Ok(Answered {
            state: "nobody".into(),
            said,
            runs: vec![],
        });
    };
    let last = until(store, result, DONE_WITHIN, |answer| answer.state != "claimed").await?;
    Ok(match last {
        Some(answer) if answer.state != "claimed" => Answered::of(answer),
        _ => Answered {
            state: "claimed".into(),
            said: format!(
                "the agent at {ip} took the command, and has not said within {DONE_WITHIN:?} what became of it"
            ),
            runs: vec![claimed.run_id],
        },
    })
}
/// The last that was seen, when it is enough or the time is over.
async fn until(
    store: &SharedStore,
    key: &str,
    limit: Duration,
    enough: impl Fn(&Answer) -> bool,
) -> Result<Option<Answer>, StoreError> {
    let (mut waited, mut rest) = (Duration::ZERO, LOOK.0);
    loop {
        let answer = store.get(key).await?.map(|entry| keys::read::<Answer>(&entry.value));
        if answer.as_ref().is_some_and(&enough) || waited >= limit {
            return Ok(answer);
        }
        tokio::time::sleep(rest).await;
        waited += rest;
        rest = (rest * 2).min(LOOK.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Store, memory::MemoryStore};

    const ORDER: Order<'_> = Order {
        action: "run",
        task_id: "17",
        group: Some("web"),
        run_id: None,
    };
    fn run() -> Command {
        Command::new("10.0.0.1".into(), &ORDER, "2026-11-25T10:00:00Z".parse().unwrap())
    }
    /// The command that comes, as an agent claims it: it goes, its result stands there.
    async fn claim(store: &MemoryStore, results: &[&str]) -> String {
        loop {
            let found = store.list(&["/cron/commands/10.0.0.1/".to_owned()]).await.unwrap();
            let Some(entry) = found.entries.first() else {
                tokio::task::yield_now().await;
                continue;
            };
            assert!(entry.lease.is_some());
            let result = entry.key.replace("commands", "results");
            for value in results {
                let ops = vec![Op::delete(&*entry.key), Op::put(&*result, (*value).to_owned(), None)];
                store.transact(Transaction::of(ops)).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            return String::from_utf8(entry.value.to_vec()).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn claimed_answered_and_left_nothing_behind() {
        let memory = MemoryStore::default();
        let store: SharedStore = Arc::new(memory.clone());
        let done = [
            r#"{"state":"claimed","run_id":"A"}"#,
            r#"{"state":"done","said":"started","runs":["A"]}"#,
        ];
        let (answered, command) = tokio::join!(send(&store, run()), claim(&memory, &done));
        let answered = answered.unwrap();
        assert_eq!(
            (answered.done(), &*answered.said, &*answered.runs),
            (true, "started", &["A".to_owned()][..])
        );
        assert_eq!(
            command,
            r#"{"action":"run","task_id":"17","expires":"2026-11-25T10:01:00Z","group":"web"}"#
        );
        assert_eq!(memory.leases(), []);

        let silent = [r#"{"state":"claimed","run_id":"B"}"#];
        let (answered, _) = tokio::join!(send(&store, run()), claim(&memory, &silent));
        let answered = answered.unwrap();
        assert_eq!((&*answered.state, &*answered.runs), ("claimed", &["B".to_owned()][..]));

        // The agent takes it and is gone, its lease with it.
        let results = vec!["/cron/results/10.0.0.1/".to_owned()];
        let gone = async {
            claim(&memory, &silent).await;
            for entry in memory.list(&results).await.unwrap().entries {
                let gone = Transaction::of(vec![Op::delete(entry.key)]);
                memory.transact(gone).await.unwrap();
            }
        };
        let (answered, ()) = tokio::join!(send(&store, run()), gone);
        let answered = answered.unwrap();
        assert_eq!((&*answered.state, &*answered.runs), ("claimed", &["B".to_owned()][..]));
    }
    #[tokio::test(start_paused = true)]
    async fn what_nobody_claims_is_taken_back() {
        let memory = MemoryStore::default();
        let store: SharedStore = Arc::new(memory.clone());
        let answered = send(&store, run()).await.unwrap();
        assert_eq!(answered.state, "nobody");
        assert!(
            answered.said.starts_with("nobody answered within 15s"),
            "{}",
            answered.said
        );
        let left = memory.list(&["/".to_owned()]).await.unwrap().entries;
        assert_eq!((left, memory.leases()), (vec![], vec![]));
    }
}
