//! Jobs as they stand in etcd: read beside the agents' records, written, and changed as they were read.
use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;

use super::super::super::{Failed, fleet};
use crate::{
    model::{
        Invalid, JobKey,
        job::{Limits, Scope, When, parse},
    },
    store::{
        Compare, Entry, Op, SharedStore, StoreError, Transaction,
        keys::{self, Health, Node, Record},
    },
};

/// Of a group with more agents, so many are asked how a job stands with them.
const MOST_ASKED: usize = 200;
/// Instants that are shown.
const NEXT: usize = 5;
/// A value that somebody else changes meanwhile is read again so often.
const TRIES: u32 = 5;
/// An agent's record of what was written is looked for so often, and after this.
const LOOKS: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A job and what the agents say of it.
pub struct Found {
    pub key: JobKey,
    pub entry: Entry,
    /// By address; none: no record.
    pub records: Vec<(String, Option<Record>)>,
}
impl Found {
    fn of(entry: Entry) -> Option<Self> {
        Some(Self {
            key: JobKey::of_path(&entry.key)?,
            entry,
            records: vec![],
        })
    }
    /// Text if it is no JSON.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.entry.value)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&self.entry.value).into_owned()))
    }
    pub fn group(&self) -> Option<&str> {
        match &self.key.scope {
            Scope::Group(group) => Some(group),
            Scope::Host(_) => None,
        }
    }
    /// A record is about one revision: that of an older value, or of an own job of the same task id, says nothing of this one.
    pub fn state_of(&self, record: Option<&Record>) -> String {
        match record {
            Some(record) if record.rev == self.entry.mod_revision => record.state.clone(),
            _ => "no word yet".to_owned(),
        }
    }
    /// `ok`; of several agents: `3 ok, 1 invalid`.
    pub fn states(&self) -> String {
        let mut counts = BTreeMap::<String, usize>::new();
        for (_, record) in &self.records {
            *counts.entry(self.state_of(record.as_ref())).or_default() += 1;
        }
        match (self.records.len(), counts.len()) {
            (0, _) => "-".to_owned(),
            (1, _) => counts.into_keys().collect(),
            _ => {
                let shown = counts.iter().map(|(state, count)| format!("{count} {state}"));
                shown.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

pub async fn find(store: &SharedStore, key: &JobKey) -> Result<Option<Found>, StoreError> {
    Ok(store.get(&key.path()).await?.and_then(Found::of))
}
pub async fn add_records(
    store: &SharedStore,
    found: &mut Found,
    agents: &[(String, Health)],
) -> Result<(), StoreError> {
    let ips = agents.iter().take(MOST_ASKED).map(|(ip, _)| ip.clone()).collect();
    let task_id = &found.key.task_id;
    found.records = fleet::each(ips, |ip: String| async move {
        let record = store.get(&keys::cronid(&ip, task_id)).await?;
        Ok((ip, record.map(|entry| keys::read(&entry.value))))
    })
    .await?;
    Ok(())
}
/// Of a node: its own jobs, and those of its group that it has answered to. Of a group: all of its jobs.
pub async fn list(
    store: &SharedStore,
    node: Option<&str>,
    group: Option<&str>,
    agents: &[(String, Health)],
) -> Result<Vec<Found>, StoreError> {
    let mut prefixes = vec![];
    match (node, group) {
        (_, Some(group)) => prefixes.push(keys::group_jobs(group)),
        (Some(ip), None) => {
            prefixes.push(keys::jobs(ip));
            let known = match agents.first() {
                Some((_, health)) => health.group.clone(),
                None => {
                    let node = store.get(&keys::node(ip)).await?;
                    node.map_or_else(String::new, |entry| keys::read::<Node>(&entry.value).group)
                }
            };
            if !known.is_empty() {
                prefixes.push(keys::group_jobs(&known));
            }
        }
        (None, None) => {}
    }
    let mut jobs = store
        .list(&prefixes)
        .await?
        .entries
        .into_iter()
        .filter_map(Found::of)
        .collect::<Vec<_>>();
    let ips = match node {
        Some(ip) => vec![ip.to_owned()],
        None => agents.iter().take(MOST_ASKED).map(|(ip, _)| ip.clone()).collect(),
    };
    let records = fleet::each(ips, |ip: String| async move {
        let prefix = keys::cronid(&ip, "");
        let found = store.list(std::slice::from_ref(&prefix)).await?;
        let of_task = found.entries.iter().filter_map(|entry| {
            let task_id = entry.key.strip_prefix(&prefix)?;
            Some((task_id.to_owned(), keys::read::<Record>(&entry.value)))
        });
        Ok((ip, of_task.collect::<BTreeMap<_, _>>()))
    })
    .await?;
    for job in &mut jobs {
        let of_agent =
            |(ip, records): &(String, BTreeMap<String, Record>)| (ip.clone(), records.get(&*job.key.task_id).cloned());
        job.records = records.iter().map(of_agent).collect();
    }
    if node.is_some() && group.is_none() {
        // Of the group's jobs those that run there: the record is about that very value.
        jobs.retain(|job| {
            let taken = |(_, record): &(String, Option<Record>)| {
                record.as_ref().is_some_and(|r| r.rev == job.entry.mod_revision)
            };
            job.group().is_none() || job.records.iter().any(taken)
        });
    }
    Ok(jobs)
}

/// Checked as an agent with these settings would; the next instants, by the zone of here where the job names none. `fresh`: the beat of
/// `@every` begins now; else only its agent knows it.
pub fn next(
    key: &JobKey,
    value: &[u8],
    limits: &Limits,
    now: Timestamp,
    fresh: bool,
) -> Result<Vec<Timestamp>, Invalid> {
    let spec = parse(key, value, limits)?;
    let When::At(schedule) = &spec.when else {
        return Ok(vec![]);
    };
    if schedule.is_every() && !spec.exclusive && !fresh {
        return Ok(vec![]);
    }
    let anchor = if spec.exclusive { Timestamp::UNIX_EPOCH } else { now };
    let all = std::iter::successors(schedule.next_from(anchor, now), |at| schedule.next_from(anchor, *at));
    Ok(all.take(NEXT).collect())
}
/// Whether there was one, and the revision of what stands there now. The last word counts, as with etcdctl.
pub async fn write(store: &SharedStore, key: &JobKey, value: Bytes) -> Result<(bool, i64), StoreError> {
    let path = key.path();
    let existed = store.get(&path).await?.is_some();
    let put = Transaction::of(vec![Op::put(path, value, None)]).idempotent();
    Ok((existed, store.transact(put).await?.revision))
}
/// None: there was none.
pub async fn remove(store: &SharedStore, key: &JobKey) -> Result<Option<i64>, StoreError> {
    let path = key.path();
    if store.get(&path).await?.is_none() {
        return Ok(None);
    }
    let delete = Transaction::of(vec![Op::delete(path)]).idempotent();
    Ok(Some(store.transact(delete).await?.revision))
}
/// What the agent there says of that revision, if it does so soon.
pub async fn heard(store: &SharedStore, ip: &str, task_id: &str, revision: i64) -> Result<Option<Record>, StoreError> {
    for _ in 0..LOOKS {
        let record = store.get(&keys::cronid(ip, task_id)).await?;
        let record = record.map(|entry| keys::read::<Record>(&entry.value));
        if let Some(record) = record.filter(|record| record.rev >= revision) {
            return Ok(Some(record));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(None)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Status {
    Changed,
    Same,
}
/// Changes `status` in the value as it was read, and nothing else in it.
pub async fn set_paused(store: &SharedStore, key: &JobKey, paused: bool) -> Result<Status, Failed> {
    let (path, word) = (key.path(), if paused { "pause" } else { "running" });
    for _ in 0..TRIES {
        let Some(entry) = store.get(&path).await? else {
            return Err(Failed::new(format!("there is no job {key}")));
        };
        let Ok(Value::Object(mut fields)) = serde_json::from_slice::<Value>(&entry.value) else {
            return Err(Failed::new(format!(
                "the value of {key} is no JSON object, so it has no status; put it anew"
            )));
        };
        let now = fields.get("status").and_then(Value::as_str).unwrap_or("running");
        if now == word {
            return Ok(Status::Same);
        }
        if fields.contains_key("signature") {
            return Err(Failed::new(format!(
                "{key} is signed, its status too: sign it anew with \"status\":\"{word}\", or send its agents the command {}",
                if paused { "pause" } else { "resume" }
            )));
        }
        fields.insert("status".to_owned(), word.into());
        let value = Bytes::from(Value::Object(fields).to_string());
        let change = Transaction::when(
            vec![Compare::unchanged(&entry)],
            vec![Op::put(&*path, value.clone(), entry.lease)],
        );
        match store.transact(change).await {
            Ok(done) if done.held => return Ok(Status::Changed),
            Ok(_) => {} // changed meanwhile: read again
            // It may stand there: the next look says so.
            Err(StoreError::Unknown(_)) => match store.get(&path).await? {
                Some(entry) if entry.value == value => return Ok(Status::Changed),
                _ => {}
            },
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failed::new(format!(
        "{key} was changed by somebody else {TRIES} times meanwhile; try again"
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn kit() -> (MemoryStore, SharedStore) {
        let store = MemoryStore::default();
        (store.clone(), Arc::new(store))
    }
    async fn put(store: &SharedStore, key: &str, value: &str) -> i64 {
        let done = store
            .transact(Transaction::of(vec![Op::put(key, value.to_owned(), None)]))
            .await;
        done.unwrap().revision
    }
    fn health(group: &str) -> Health {
        Health {
            group: group.into(),
            ..Health::default()
        }
    }

    #[tokio::test]
    async fn only_the_status_changes_and_only_as_it_was_read() {
        let (memory, store) = kit();
        let key = JobKey::host("10.0.0.1", "7");
        let said = set_paused(&store, &key, true).await.unwrap_err().text;
        assert_eq!(said, "there is no job /cron/jobs/10.0.0.1/7");
        put(
            &store,
            &key.path(),
            r#"{"b":1.50,"cmd":"x","a":[1],"express":"@daily"}"#,
        )
        .await;
        assert_eq!(set_paused(&store, &key, false).await.unwrap(), Status::Same);
        assert_eq!(set_paused(&store, &key, true).await.unwrap(), Status::Changed);
        let value = |entry: Option<Entry>| String::from_utf8(entry.unwrap().value.to_vec()).unwrap();
        let paused = r#"{"b":1.5,"cmd":"x","a":[1],"express":"@daily","status":"pause"}"#;
        assert_eq!(value(store.get(&key.path()).await.unwrap()), paused);
        // The answer is lost, and the write was done.
        memory.next_transaction(StoreError::Unknown("lost".into()));
        assert_eq!(set_paused(&store, &key, false).await.unwrap(), Status::Changed);
        assert!(value(store.get(&key.path()).await.unwrap()).ends_with(r#""status":"running"}"#));
        for (value, said) in [("}", "is no JSON object"), (r#"{"signature":{}}"#, "is signed")] {
            put(&store, &key.path(), value).await;
            assert!(set_paused(&store, &key, true).await.unwrap_err().text.contains(said));
        }
    }
    #[tokio::test]
    async fn values_beside_the_records_that_are_about_them() {
        let (_, store) = kit();
        let own = put(&store, "/cron/jobs/10.0.0.1/7", "{}").await;
        put(&store, "/cron/jobs/10.0.0.11/8", "{}").await;
        let group = put(&store, "/cron/groups/web/jobs/9", "{}").await;
        put(&store, "/cron/groups/web/jobs/7", "{}").await; // shadowed there
        for (ip, task, rev, state) in [
            ("10.0.0.1", "7", own, "ok"),
            ("10.0.0.1", "9", group, "failing"),
            ("10.0.0.2", "9", 1, "ok"),
        ] {
            let record = format!(r#"{{"cronid":1,"rev":{rev},"state":"{state}"}}"#);
            put(&store, &keys::cronid(ip, task), &record).await;
        }
        let shown = |jobs: &[Found]| {
            jobs.iter()
                .map(|job| format!("{} {}", job.key, job.states()))
                .collect::<Vec<_>>()
        };
        let one = [("10.0.0.1".to_owned(), health("web"))];
        let jobs = list(&store, Some("10.0.0.1"), None, &one).await.unwrap();
        assert_eq!(
            shown(&jobs),
            ["/cron/jobs/10.0.0.1/7 ok", "/cron/groups/web/jobs/9 failing"]
        );
        let both = [one[0].clone(), ("10.0.0.2".to_owned(), health("web"))];
        let jobs = list(&store, None, Some("web"), &both).await.unwrap();
        assert_eq!(
            shown(&jobs),
            [
                "/cron/groups/web/jobs/7 2 no word yet",
                "/cron/groups/web/jobs/9 1 failing, 1 no word yet"
            ]
        );
        let mut found = find(&store, &JobKey::group("web", "9")).await.unwrap().unwrap();
        add_records(&store, &mut found, &both).await.unwrap();
        assert_eq!(found.states(), "1 failing, 1 no word yet");
    }
    #[test]
    fn the_beat_of_every_is_its_agents() {
        let now = "2026-11-25T10:00:30Z".parse().unwrap();
        let ask = |key: &JobKey, value: &str, fresh| next(key, value.as_bytes(), &Limits::default(), now, fresh);
        let host = JobKey::host("10.0.0.1", "7");
        let every = r#"{"cmd":"x","express":"@every 60s"}"#;
        assert_eq!(ask(&host, every, false).unwrap(), []);
        assert_eq!(
            ask(&host, every, true).unwrap()[0],
            "2026-11-25T10:01:30Z".parse().unwrap()
        );
        let every = r#"{"cmd":"x","express":"@every 60s","exclusive":true}"#;
        assert_eq!(
            ask(&JobKey::group("web", "7"), every, false).unwrap()[0],
            "2026-11-25T10:01:00Z".parse().unwrap()
        );
        assert!(
            ask(&host, every, true)
                .unwrap_err()
                .to_string()
                .starts_with("`exclusive`")
        );
    }
}
