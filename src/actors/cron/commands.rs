//! Commands from the store, each done once: claimed by one transaction (it goes, and its result says `claimed` with the id of the run),
//! then given to the runner, then answered. What is claimed says so under the agent's own lease, for a grant of another is one more write of
//! the store before a run can start. Signed ones are judged before they are claimed, and their serial is on the disk before they are
//! done. Without actix.
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{follow::blocking, gate::SharedGate};
use crate::{
    messages::jobs::{Action, CommandAnswer, JobCommand},
    model::RunId,
    store::{
        Compare, Entry, LeaseId, Op, SharedStore, StoreError, Transaction,
        keys::{self, Answer, Command},
    },
};

/// Results stand that long.
const ANSWER_STANDS: Duration = Duration::from_secs(60);
/// What was done is told this much later: a run that was ordered starts first.
const TELL_SOON: Duration = Duration::from_millis(5);
/// And again after this, for as long as an answer stands.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// A command that is later than this past its end is not done: whoever sent it has been told that nobody answered.
const GRACE: i64 = 5;

/// How the runner is asked. None: it did not answer.
pub type AskRunner<'a> = &'a (dyn Fn(JobCommand) -> BoxFuture<'static, Option<CommandAnswer>> + Send + Sync);

/// Who takes commands, from where.
pub struct Taker<'a> {
    pub store: &'a SharedStore,
    pub gate: Option<&'a SharedGate>,
    pub ip: &'a str,
    /// The agent's own.
    pub lease: LeaseId,
}
/// One command, until it is done or refused, and what is to be told of it (`Told::tell`: the next command need not wait for that). An error
/// is one of the store, and the command is still there: try again while it has not expired.
pub async fn serve(
    taker: &Taker<'_>,
    entry: &Entry,
    run_id: RunId,
    now: Timestamp,
    ask: AskRunner<'_>,
) -> Result<Option<Told>, StoreError> {
    let Taker {
        store,
        gate,
        ip,
        lease: own,
    } = *taker;
    let Some(id) = entry.key.strip_prefix(&keys::commands(ip)) else {
        return Ok(None);
    };
    let key = keys::result(ip, id);
    let (mut order, mut row) = (understand(&entry.value, id, run_id, now), None);
    if let (Ok(_), Some(gate)) = (&order, gate.cloned()) {
        let (path, value) = (entry.key.clone(), entry.value.clone());
        match blocking(move || Ok(gate.command(&path, &value, now))).await? {
            Ok(new) => row = new,
            Err(invalid) => order = Err(refused(run_id, invalid.to_string())),
        }
    }
    let order = match order {
        Ok(order) => order,
        Err(answer) => {
            let lease = store.grant(ANSWER_STANDS).await?;
            if !claim(store, entry, &key, &answer, run_id, lease).await? {
                let _ = store.revoke(lease).await; // else it ends by itself
            }
            return Ok(None);
        }
    };
    let claimed = Answer {
        state: "claimed".into(),
        run_id: run_id.to_string(),
        ..Answer::default()
    };
    if !claim(store, entry, &key, &claimed, run_id, own).await? {
        return Ok(None); // it expired, or another life of ours was faster
    }
    let kept = match (row, gate.cloned()) {
        (Some(row), Some(gate)) => blocking(move || gate.claimed(&row, now)).await,
        _ => Ok(()),
    };
    let told = match kept {
        Ok(()) => Ok(ask(order).await),
        Err(error) => Err(format!("its serial could not be remembered: {error}")),
    };
    let answer = match told {
        Err(why) => refused(run_id, why),
        Ok(Some(CommandAnswer { done, said, run_ids })) => Answer {
            state: if done { "done" } else { "refused" }.into(),
            run_id: run_id.to_string(),
            said,
            runs: run_ids.iter().map(RunId::to_string).collect(),
        },
        Ok(None) => refused(run_id, "the runner of jobs did not answer".into()),
    };
    Ok(Some(Told { key, answer }))
}
/// What became of a claimed command.
pub struct Told {
    key: String,
    answer: Answer,
}
impl Told {
    /// It is done, so this is tried for a while; if it is lost, the result says `claimed` until it goes with our lease.
    pub async fn tell(self, store: SharedStore) {
        let Self { key, answer } = self;
        let told = async {
            tokio::time::sleep(TELL_SOON).await;
            loop {
                if let Ok(lease) = store.grant(ANSWER_STANDS).await {
                    let put = Op::put(&*key, keys::json(&answer), Some(lease));
                    match store.transact(Transaction::of(vec![put]).idempotent()).await {
                        Ok(_) | Err(StoreError::Invalid(_)) => return,
                        Err(_) => {}
                    }
                }
                tokio::time::sleep(TELL_AGAIN).await;
            }
        };
        let _ = tokio::time::timeout(ANSWER_STANDS, told).await;
    }
}
fn refused(run_id: RunId, said: String) -> Answer {
    Answer {
        state: "refused".into(),
        run_id: run_id.to_string(),
        said,
        runs: vec![],
    }
}
/// Whether it is ours. A lost answer is looked up: the result names our run.
async fn claim(
    store: &SharedStore,
    entry: &Entry,
    key: &str,
    answer: &Answer,
    run_id: RunId,
    lease: LeaseId,
) -> Result<bool, StoreError> {
    let then = vec![Op::delete(&*entry.key), Op::put(key, keys::json(answer), Some(lease))];
    match store
        .transact(Transaction::when(vec![Compare::unchanged(entry)], then))
        .await
    {
        Ok(done) => Ok(done.held),
        Err(StoreError::Unknown(why)) => match store.get(key).await? {
            Some(result) if keys::read::<Answer>(&result.value).run_id == run_id.to_string() => Ok(true),
            _ => Err(StoreError::Away(why)),
        },
        Err(error) => Err(error),
    }
}
/// What it asks for, or what is answered instead of doing it.
fn understand(value: &[u8], id: &str, run_id: RunId, now: Timestamp) -> Result<JobCommand, Answer> {
    let refused = |state: &str, said: String| Answer {
        state: state.into(),
        run_id: run_id.to_string(),
        said,
        runs: vec![],
    };
    let command: Command =
        serde_json::from_slice(value).map_err(|error| refused("refused", format!("found no command: {error}")))?;
    let words = Action::WORDS
        .iter()
        .map(|(word, _)| *word)
        .collect::<Vec<_>>()
        .join(", ");
    let action = Action::WORDS
        .iter()
        .find(|(word, _)| *word == command.action)
        .map(|(_, action)| *action)
        .ok_or_else(|| {
            refused(
                "refused",
                format!("`action`: found {:?}, accepted: {words}", command.action),
            )
        })?;
    let task_id = command.task().ok_or_else(|| {
        refused(
            "refused",
            format!("`task_id`: found {}, accepted: text or a number", command.task_id),
        )
    })?;
    let expires = command.expires().ok_or_else(|| {
        let accepted = "RFC 3339, or seconds since 1970";
        refused(
            "refused",
            format!("`expires`: found {}, accepted: {accepted}", command.expires),
        )
    })?;
    let late = now.as_second() - expires.as_second();
    if late > GRACE {
        return Err(refused(
            "expired",
            format!("expired {late} s ago, by this host's clock"),
        ));
    }
    let which = match &command.run_id {
        Some(text) => Some(
            text.parse()
                .map_err(|error| refused("refused", format!("`run_id`: {error}")))?,
        ),
        None => None,
    };
    Ok(JobCommand {
        action,
        task_id,
        group: command.group,
        id: id.to_owned(),
        by: "etcd".into(),
        run_id: if action == Action::Run { Some(run_id) } else { which },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::store::{Store, memory::MemoryStore};

    const NOW: &str = "2026-11-25T10:00:00Z";
    fn taker<'a>(store: &'a SharedStore, gate: Option<&'a SharedGate>, lease: LeaseId) -> Taker<'a> {
        Taker {
            store,
            gate,
            ip: "10.0.0.1",
            lease,
        }
    }
    async fn served(store: &MemoryStore, value: &str) -> (Vec<JobCommand>, Option<Answer>) {
        served_by(store, None, value).await
    }
    async fn served_by(
        store: &MemoryStore,
        gate: Option<&SharedGate>,
        value: &str,
    ) -> (Vec<JobCommand>, Option<Answer>) {
        let key = "/cron/commands/10.0.0.1/c1";
        store
            .transact(Transaction::of(vec![Op::put(key, value.to_owned(), None)]))
            .await
            .unwrap();
        let entry = store.get(key).await.unwrap().unwrap();
        let asked = Arc::new(Mutex::new(vec![]));
        let ask = {
            let asked = asked.clone();
            move |command: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> {
                let run_ids = command.run_id.into_iter().collect();
                asked.lock().unwrap().push(command);
                Box::pin(std::future::ready(Some(CommandAnswer {
                    done: true,
                    said: "started".into(),
                    run_ids,
                })))
            }
        };
        let own = store.grant(Duration::from_secs(30)).await.unwrap();
        let shared: SharedStore = Arc::new(store.clone());
        let told = serve(
            &taker(&shared, gate, own),
            &entry,
            RunId::of_u128(7),
            NOW.parse().unwrap(),
            &ask,
        )
        .await
        .unwrap();
        if let Some(told) = told {
            told.tell(shared).await;
        }
        let answer = store.get("/cron/results/10.0.0.1/c1").await.unwrap();
        (
            asked.lock().unwrap().clone(),
            answer.map(|entry| keys::read(&entry.value)),
        )
    }

    #[tokio::test]
    async fn done_once_and_answered() {
        let store = MemoryStore::default();
        let (asked, answer) = served(
            &store,
            r#"{"action":"run","task_id":17,"expires":"2026-11-25T10:01:00Z"}"#,
        )
        .await;
        assert_eq!(asked.len(), 1);
        assert_eq!(
            (asked[0].action, &*asked[0].task_id, asked[0].run_id),
            (Action::Run, "17", Some(RunId::of_u128(7)))
        );
        let run = RunId::of_u128(7).to_string();
        let expected = Answer {
            state: "done".into(),
            run_id: run.clone(),
            said: "started".into(),
            runs: vec![run],
        };
        assert_eq!(answer, Some(expected));
        assert_eq!(store.get("/cron/commands/10.0.0.1/c1").await.unwrap(), None);
        assert_eq!(store.leases().len(), 2, "our own, and the answer's");

        // Another life of ours has it: not done again.
        let gone = Entry {
            key: "/cron/commands/10.0.0.1/c1".into(),
            value: r#"{"action":"run","task_id":17,"expires":"2026-11-25T10:01:00Z"}"#.into(),
            create_revision: 2,
            mod_revision: 2,
            lease: None,
        };
        let own = store.leases()[0];
        let ask = |_: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> { panic!("done twice") };
        let shared: SharedStore = Arc::new(store.clone());
        let (taker, now) = (taker(&shared, None, own), NOW.parse().unwrap());
        let done = serve(&taker, &gone, RunId::of_u128(8), now, &ask);
        assert!(done.await.unwrap().is_none());
        assert_eq!(store.leases().len(), 2);
    }
    #[tokio::test]
    async fn a_claim_whose_answer_was_lost_is_looked_up() {
        let store = MemoryStore::default();
        // The first transaction puts the command.
        let value = r#"{"action":"kill","task_id":"a","expires":1796031900}"#;
        store
            .transact(Transaction::of(vec![Op::put(
                "/cron/commands/10.0.0.1/c2",
                value,
                None,
            )]))
            .await
            .unwrap();
        let entry = store.get("/cron/commands/10.0.0.1/c2").await.unwrap().unwrap();
        let own = store.grant(Duration::from_secs(30)).await.unwrap();
        store.next_transaction(StoreError::Unknown("lost".into()));
        let asked = Arc::new(Mutex::new(0));
        let count = asked.clone();
        let ask = move |_: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> {
            *count.lock().unwrap() += 1;
            Box::pin(std::future::ready(None))
        };
        let shared: SharedStore = Arc::new(store.clone());
        let (taker, now) = (taker(&shared, None, own), NOW.parse().unwrap());
        let done = serve(&taker, &entry, RunId::of_u128(7), now, &ask);
        done.await.unwrap();
        assert_eq!(*asked.lock().unwrap(), 1);
    }
    #[tokio::test(start_paused = true)]
    async fn what_was_done_while_the_store_went_away_is_told_when_it_is_back() {
        let store = MemoryStore::default();
        let key = "/cron/commands/10.0.0.1/c3";
        let value = r#"{"action":"run","task_id":"a","expires":1796031900}"#;
        let put = Transaction::of(vec![Op::put(key, value, None)]);
        store.transact(put).await.unwrap();
        let entry = store.get(key).await.unwrap().unwrap();
        let own = store.grant(Duration::from_secs(30)).await.unwrap();
        let shared: SharedStore = Arc::new(store.clone());
        let goes = store.clone();
        let ask = move |_: JobCommand| -> BoxFuture<'static, Option<CommandAnswer>> {
            goes.away(true);
            let done = CommandAnswer {
                done: true,
                said: "started".into(),
                run_ids: vec![],
            };
            Box::pin(std::future::ready(Some(done)))
        };
        let (taker, now) = (taker(&shared, None, own), NOW.parse().unwrap());
        let told = serve(&taker, &entry, RunId::of_u128(7), now, &ask).await.unwrap();
        let back = async {
            tokio::time::sleep(TELL_AGAIN * 5).await;
            store.away(false);
        };
        tokio::join!(told.unwrap().tell(shared.clone()), back);
        let result = store.get("/cron/results/10.0.0.1/c3").await.unwrap().unwrap();
        assert_eq!(keys::read::<Answer>(&result.value).state, "done");
        assert_ne!(result.lease, Some(own));
    }
    #[tokio::test]
    async fn what_cannot_be_done_is_answered_so() {
        for (value, state, said) in [
            ("}", "refused", "found no command"),
            (
                r#"{"action":"fly","task_id":1,"expires":1}"#,
                "refused",
                "`action`: found \"fly\", accepted: run, kill, pause, resume",
            ),
            (
                r#"{"action":"run","task_id":[],"expires":1}"#,
                "refused",
                "`task_id`: found []",
            ),
            (r#"{"action":"run","task_id":1}"#, "refused", "`expires`: found null"),
            (
                r#"{"action":"run","task_id":1,"expires":"2026-11-25T09:59:54Z"}"#,
                "expired",
                "expired 6 s ago",
            ),
            (
                r#"{"action":"kill","task_id":1,"expires":"2026-11-25T10:00:00Z","run_id":"x"}"#,
                "refused",
                "`run_id`: ",
            ),
        ] {
            let (asked, answer) = served(&MemoryStore::default(), value).await;
            let answer = answer.unwrap();
            assert_eq!((asked, &*answer.state), (vec![], state), "{value}");
            assert!(answer.said.starts_with(said), "{value}: {}", answer.said);
        }
        let value = r#"{"action":"run","task_id":1,"expires":"2026-11-25T09:59:55Z"}"#;
        assert_eq!(
            served(&MemoryStore::default(), value).await.0.len(),
            1,
            "5 s late is still done"
        );
    }
}
