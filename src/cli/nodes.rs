//! `agent nodes`: the fleet, from etcd: who is online, since when, with which version and how many jobs, and how who is not ended. `rm`
//! takes away what is kept of hosts that are gone. Needs no agent here.
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Done, FAILED, Failed,
    args::Ask,
    fleet::{self, Fleet},
    print, show,
};
use crate::{
    clock,
    model::Span,
    settings::Options,
    store::{
        Compare, Entry, Op, SharedStore, StoreError, Transaction,
        keys::{self, Health, Node},
    },
};

#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Nodes {
    #[command(subcommand)]
    command: Option<Below>,
    #[command(flatten)]
    through: Through,
}
#[derive(clap::Subcommand, Clone, Debug, PartialEq)]
enum Below {
    /// Forget hosts that are not online
    Rm {
        /// Their addresses
        ip: Vec<IpAddr>,
        /// All that have been gone for so long, as 30d
        #[arg(long, value_name = "DURATION", conflicts_with = "ip", required_unless_present = "ip")]
        older: Option<Span>,
        #[command(flatten)]
        through: Through,
    },
}
#[derive(clap::Args, Clone, Debug, PartialEq)]
struct Through {
    /// Other etcd servers than those of the settings
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    etcd_endpoint: Vec<String>,
    #[command(flatten)]
    ask: Ask,
}
impl Through {
    fn open(&self) -> Result<Fleet, Failed> {
        let options = Options {
            place: self.ask.place.clone(),
            etcd_endpoint: self.etcd_endpoint.clone(),
            ..Options::default()
        };
        let none =
            "the fleet is seen in etcd, and the settings name none, accepted: with etcd.endpoints, or --etcd-endpoint";
        Fleet::open(&options)?.ok_or_else(|| Failed::usage(none))
    }
}

pub fn run(nodes: &Nodes) -> Done {
    match &nodes.command {
        None => list(&nodes.through),
        Some(Below::Rm { ip, older, through }) => {
            let fleet = through.open()?;
            let now = clock::system().wall();
            let outcomes = match older {
                Some(Span(older)) => {
                    let before = now.saturating_sub(*older).map_err(Failed::new)?;
                    fleet.wait(remove_older(&fleet.store, before, now))?
                }
                None => {
                    let ips = ip.iter().map(IpAddr::to_string).collect();
                    fleet.wait(fleet::each(ips, |ip: String| remove(&fleet.store, ip)))?
                }
            };
            let failed = outcomes.iter().any(|outcome| !outcome.done);
            if through.ask.json {
                let shown = |o: &Outcome| json!({ "ip": o.ip, "done": o.done, "said": o.said });
                print(&show::json(
                    &json!({ "nodes": outcomes.iter().map(shown).collect::<Vec<_>>() }),
                ));
            } else if outcomes.is_empty() {
                print("no host has been gone for so long");
            } else {
                outcomes.iter().for_each(|o| print(&format!("{}: {}", o.ip, o.said)));
            }
            Ok(if failed { FAILED } else { 0 })
        }
    }
}

/// A host that is, or was, there.
struct Seen {
    ip: String,
    health: Option<Health>,
    /// What stands under /agent/nodes/, and as what it was read.
    node: Option<(Node, Entry)>,
}
impl Seen {
    fn kept(&self) -> Node {
        match (&self.node, &self.health) {
            (Some((node, _)), _) => node.clone(),
            (None, Some(health)) => Node::of(health),
            (None, None) => Node::default(),
        }
    }
    /// The state, and since when: not known of who went without a word.
    fn state(&self) -> (&'static str, Option<String>) {
        let node = self.kept();
        match &self.health {
            Some(health) => ("online", Some(health.started.clone())),
            None if node.has_stopped() => ("stopped", node.stopped),
            None => ("gone", node.gone_since),
        }
    }
}
async fn all(store: &SharedStore) -> Result<Vec<Seen>, StoreError> {
    let mut found = std::collections::BTreeMap::<_, Seen>::new();
    let listing = store.list(&[keys::NODES.to_owned(), keys::HEALTH.to_owned()]).await?;
    for entry in listing.entries {
        let Some(ip) = entry
            .key
            .strip_prefix(keys::NODES)
            .or(entry.key.strip_prefix(keys::HEALTH))
        else {
            continue;
        };
        let seen = found.entry(fleet::sorted(ip)).or_insert_with(|| Seen {
            ip: ip.to_owned(),
            health: None,
            node: None,
        });
        match entry.key.starts_with(keys::HEALTH) {
            true => seen.health = Some(keys::read(&entry.value)),
            false => seen.node = Some((keys::read(&entry.value), entry)),
        }
    }
    Ok(found.into_values().collect())
}

fn list(through: &Through) -> Done {
    let fleet = through.open()?;
    let store = &fleet.store;
    let seen = fleet.wait(all(store))?;
    let ips = seen.iter().map(|seen| keys::jobs(&seen.ip)).collect();
    let jobs = fleet.wait(fleet::each(
        ips,
        |prefix: String| async move { store.count(&prefix).await },
    ))?;
    let nodes = seen
        .iter()
        .zip(jobs)
        .map(|(seen, jobs)| as_json(seen, jobs))
        .collect::<Vec<_>>();
    print(&match through.ask.json {
        true => show::json(&json!({ "nodes": nodes })),
        false => table(&nodes),
    });
    Ok(0)
}
fn as_json(seen: &Seen, jobs: u64) -> Value {
    let (node, (state, since)) = (seen.kept(), seen.state());
    let health = seen.health.as_ref();
    let now = health.map_or_else(|| node.clone(), Node::of);
    json!({ "ip": seen.ip, "state": state, "since": since, "version": now.version, "group": now.group,
        "agent_id": now.agent_id, "hostname": now.hostname, "instance": now.instance, "started": now.started,
        "http": health.and_then(|health| health.http.clone()), "jobs": jobs, "last_stop": node.stopped, "why": node.why })
}
fn table(nodes: &[Value]) -> String {
    if nodes.is_empty() {
        return "no nodes\n".to_owned();
    }
    let head = [
        "IP",
        "STATE",
        "SINCE",
        "VERSION",
        "GROUP",
        "AGENT",
        "HOST",
        "JOBS",
        "LAST STOP",
        "WHY",
    ];
    let columns = [
        "ip",
        "state",
        "since",
        "version",
        "group",
        "agent_id",
        "hostname",
        "jobs",
        "last_stop",
        "why",
    ];
    let row = |node: &Value| columns.iter().map(|key| show::text(node, key)).collect::<Vec<_>>();
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().map(row));
    show::table(&rows)
}

struct Outcome {
    ip: String,
    done: bool,
    said: String,
}
impl Outcome {
    fn new(ip: &str, done: bool, said: impl Into<String>) -> Self {
        Self {
            ip: ip.to_owned(),
            done,
            said: said.into(),
        }
    }
}
/// Only while nobody is online there: it would write the key anew at its next start only.
async fn remove(store: &SharedStore, ip: String) -> Result<Outcome, StoreError> {
    let key = keys::node(&ip);
    if store.get(&key).await?.is_none() {
        return Ok(Outcome::new(&ip, false, "there is no such node"));
    }
    let offline = Compare::absent(keys::health(&ip));
    let done = store
        .transact(Transaction::when(vec![offline], vec![Op::delete(key)]).idempotent())
        .await?;
    Ok(match done.held {
        true => Outcome::new(&ip, true, "removed"),
        false => Outcome::new(&ip, false, "is online, so it stays"),
    })
}
/// Of who went without a word nobody knows when: the first look writes it down, and it counts from there.
async fn remove_older(store: &SharedStore, before: Timestamp, now: Timestamp) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes = vec![];
    for seen in all(store).await? {
        let (None, Some((node, entry))) = (&seen.health, &seen.node) else {
            continue;
        };
        let since = seen.state().1.and_then(|since| since.parse::<Timestamp>().ok());
        match since {
            Some(since) if since <= before => outcomes.push(remove(store, seen.ip.clone()).await?),
            Some(_) => {}
            None => {
                let marked = Node {
                    gone_since: Some(keys::instant(now)),
                    ..node.clone()
                };
                let when = vec![Compare::unchanged(entry), Compare::absent(keys::health(&seen.ip))];
                let mark = Transaction::when(when, vec![Op::put(&*entry.key, keys::json(&marked), None)]);
                if store.transact(mark).await?.held {
                    outcomes.push(Outcome::new(&seen.ip, true, "gone without a word; counted from now on"));
                }
            }
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::memory::MemoryStore;

    async fn put(store: &SharedStore, key: String, value: String) {
        store
            .transact(Transaction::of(vec![Op::put(key, value, None)]))
            .await
            .unwrap();
    }
    async fn kit() -> SharedStore {
        let store: SharedStore = Arc::new(MemoryStore::default());
        for (ip, started, rest) in [
            ("10.0.0.10", "2026-11-25T10:00:00Z", ""),
            (
                "10.0.0.9",
                "2026-11-01T10:00:00Z",
                r#","stopped":"2026-11-20T10:00:00Z","why":"stopped as asked""#,
            ),
            (
                "10.0.0.8",
                "2026-11-21T10:00:00Z",
                r#","stopped":"2026-11-20T10:00:00Z","why":"x""#,
            ),
        ] {
            let value = format!(r#"{{"started":"{started}","version":"v.1"{rest}}}"#);
            put(&store, keys::node(ip), value).await;
        }
        let health = r#"{"status":"Online","started":"2026-11-25T10:00:00Z","version":"v.1","group":"web"}"#;
        put(&store, keys::health("10.0.0.10"), health.into()).await;
        put(&store, format!("{}7", keys::jobs("10.0.0.10")), "{}".into()).await;
        store
    }
    async fn states(store: &SharedStore) -> Vec<String> {
        let all = all(store).await.unwrap();
        let shown = |seen: &Seen| {
            let (state, since) = seen.state();
            format!("{} {state} {}", seen.ip, since.unwrap_or_default())
        };
        all.iter().map(shown).collect()
    }

    #[tokio::test]
    async fn who_is_there_who_stopped_and_who_went_without_a_word() {
        let store = kit().await;
        let expected = [
            "10.0.0.8 gone ",
            "10.0.0.9 stopped 2026-11-20T10:00:00Z",
            "10.0.0.10 online 2026-11-25T10:00:00Z",
        ];
        assert_eq!(states(&store).await, expected);
        let seen = all(&store).await.unwrap();
        let page = table(&[as_json(&seen[1], 0), as_json(&seen[2], 1)]);
        let lines = page
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "IP STATE SINCE VERSION GROUP AGENT HOST JOBS LAST STOP WHY",
                "10.0.0.9 stopped 2026-11-20T10:00:00Z v.1 - - - 0 2026-11-20T10:00:00Z stopped as asked",
                "10.0.0.10 online 2026-11-25T10:00:00Z v.1 web - - 1 - -",
            ]
        );
    }
    #[tokio::test]
    async fn who_is_gone_is_forgotten_and_nobody_else() {
        let store = kit().await;
        for (ip, said) in [
            ("10.0.0.9", "removed"),
            ("10.0.0.9", "there is no such node"),
            ("10.0.0.10", "is online, so it stays"),
        ] {
            assert_eq!(remove(&store, ip.into()).await.unwrap().said, said, "{ip}");
        }
        let store = kit().await;
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let swept = |before: &'static str, now: &'static str| {
            let store = store.clone();
            async move {
                let outcomes = remove_older(&store, at(before), at(now)).await.unwrap();
                let shown = outcomes.iter().map(|o| format!("{} {}", o.ip, o.said));
                shown.collect::<Vec<_>>()
            }
        };
        let first = ["10.0.0.8 gone without a word; counted from now on"];
        assert_eq!(swept("2026-11-19T00:00:00Z", "2026-11-25T00:00:00Z").await, first);
        assert_eq!(swept("2026-11-20T09:59:59Z", "2026-11-26T00:00:00Z").await, [""; 0]);
        assert_eq!(
            swept("2026-11-20T10:00:00Z", "2026-11-26T00:00:00Z").await,
            ["10.0.0.9 removed"]
        );
        assert_eq!(
            swept("2026-11-25T00:00:00Z", "2026-12-25T00:00:00Z").await,
            ["10.0.0.8 removed"]
        );
        assert_eq!(states(&store).await, ["10.0.0.10 online 2026-11-25T10:00:00Z"]);
    }
}
