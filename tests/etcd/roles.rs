//! What `agent etcd-roles` prints, typed into a real etcd with authentication: enough for every key of an agent, and no more.

use std::{process::Command, sync::Arc, time::Duration};

use crate::kit::agent::finish;
use crate::kit::servers::Etcd;
use luffly_agent::{
    actors::cron::registration::{Parts, Registration},
    clock,
    messages::lease::Standing,
    model::Host,
    store::{
        LeaseId, Op, SharedStore, StoreError, Transaction,
        etcd::{EtcdStore, Options, User},
    },
};

fn printed(args: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.arg("etcd-roles").args(args);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let done = finish(command.spawn().unwrap());
    assert_eq!(done.code(), Some(0), "{}", done.err);
    done.out.lines().map(str::to_owned).collect()
}
/// As a person would: but a password is given with the name, for nobody is there to type it.
fn type_in(etcd: &Etcd, lines: &[String]) {
    for line in lines.iter().filter(|line| !line.starts_with('#')) {
        let words = line.split(' ').collect::<Vec<_>>();
        let with_password;
        let words = match words[..] {
            ["etcdctl", "user", "add", name] => {
                with_password = format!("{name}:pass");
                vec!["user", "add", &with_password]
            }
            ["etcdctl", ref rest @ ..] => rest.to_vec(),
            _ => panic!("{line}"),
        };
        etcd.ctl(&words);
    }
}
fn as_user(etcd: &Etcd, name: &str) -> SharedStore {
    Arc::new(EtcdStore::new(Options {
        endpoints: vec![etcd.endpoint()],
        prefix: String::new(),
        user: Some(User {
            name: name.into(),
            password: "pass".into(),
        }),
        tls: None,
    }))
}
async fn may_read(store: &SharedStore, prefix: &str) -> bool {
    let read = match prefix.ends_with('/') {
        true => store.list(&[prefix.to_owned()]).await.map(drop),
        false => store.get(prefix).await.map(drop),
    };
    allowed(prefix, read)
}
async fn may_write(store: &SharedStore, key: &str, lease: Option<LeaseId>) -> bool {
    let put = allowed(
        key,
        store.transact(Transaction::of(vec![Op::put(key, "x", lease)])).await,
    );
    let delete = allowed(key, store.transact(Transaction::of(vec![Op::delete(key)])).await);
    assert_eq!(put, delete, "{key}");
    put
}
fn allowed<T>(key: &str, done: Result<T, StoreError>) -> bool {
    match done {
        Ok(_) => true,
        Err(StoreError::Refused(why)) if why.contains("permission denied") => false,
        Err(error) => panic!("{key}: {error}"),
    }
}

#[tokio::test]
async fn enough_for_every_key_of_an_agent_and_no_more() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]);
    let of_hosts = printed(&["--host", "10.0.0.1,10.0.0.2", "--group=web", "--password"]);
    type_in(&etcd, &of_hosts);
    type_in(&etcd, &printed(&["--operator", "--password"]));
    etcd.ctl(&["user", "add", "root:pass"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["auth", "enable"]);

    let store = as_user(&etcd, "luffly-10.0.0.1");
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    // Each key of SPEC §3, of this host and its group: read, written.
    for (key, reads, writes) in [
        ("/cron/jobs/10.0.0.1/", true, false),
        ("/cron/jobs/10.0.0.1/17", true, false),
        ("/cron/groups/web/jobs/", true, false),
        ("/cron/groups/web/jobs/17", true, false),
        ("/cron/cronid/jobs/10.0.0.1/17", true, true),
        ("/cron/commands/10.0.0.1/", true, true),
        ("/cron/commands/10.0.0.1/c1", true, true),
        ("/cron/results/10.0.0.1/c1", true, true),
        ("/cron/claims/web/17", true, true),
        ("/cron/running/web/17", true, true),
        ("/cron/once/10.0.0.1/17", true, true),
        ("/agent/health/10.0.0.1", true, true),
        ("/agent/nodes/10.0.0.1", true, true),
        ("/cron/runs/10.0.0.1", true, true),
        // It counts who else is there, and cannot say anything for them.
        ("/agent/health/", true, false),
        ("/agent/health/10.0.0.2", true, false),
        // Of another host whose name begins alike, of others, of all.
        ("/agent/health/10.0.0.11", true, false),
        ("/cron/jobs/10.0.0.11/", false, false),
        ("/cron/jobs/10.0.0.2/17", false, false),
        ("/cron/jobs/", false, false),
        ("/cron/groups/db/jobs/", false, false),
        ("/cron/groups/webx/jobs/", false, false),
        ("/cron/cronid/jobs/10.0.0.2/17", false, false),
        ("/cron/commands/10.0.0.2/", false, false),
        ("/cron/results/10.0.0.2/c1", false, false),
        ("/cron/claims/db/17", false, false),
        ("/cron/running/db/17", false, false),
        ("/cron/once/10.0.0.2/17", false, false),
        ("/agent/nodes/10.0.0.2", false, false),
        ("/cron/runs/10.0.0.2", false, false),
        ("/agent/nodes/10.0.0.11", false, false),
        ("/other", false, false),
    ] {
        assert_eq!(may_read(&store, key).await, reads, "read {key}");
        let below = if key.ends_with('/') {
            format!("{key}x")
        } else {
            key.to_owned()
        };
        assert_eq!(may_write(&store, &below, None).await, writes, "write {below}");
        if writes {
            assert!(may_write(&store, &below, Some(lease)).await, "{below}");
        }
    }
    let watched = [
        "/cron/jobs/10.0.0.1/",
        "/cron/groups/web/jobs/",
        "/cron/commands/10.0.0.1/",
    ];
    store.watch(&watched.map(String::from), 0).await.map(drop).unwrap();
    assert!(store.count("/agent/health/").await.is_ok());
    store.revoke(lease).await.unwrap();

    // It registers, as it does in life.
    let mut registration = Registration::new(Parts {
        store: store.clone(),
        host: Host {
            agent_id: "sky01".into(),
            group: "web".into(),
            hostname: "web01".into(),
            ip: [10, 0, 0, 1].into(),
            instance: "i".into(),
        },
        started: clock::system().wall(),
        http: None,
        ttl: Duration::from_secs(30),
        renew_every: Duration::from_secs(10),
        look: Arc::new(|| Ok([10, 0, 0, 1].into())),
        clock: clock::system(),
    });
    let turn = registration.turn().await;
    assert!(
        matches!(turn.standing, Standing::Held { .. }),
        "{:?} {:?}",
        turn.standing,
        turn.trouble
    );
    registration.give_back("stop").await;

    let operator = as_user(&etcd, "luffly-operator");
    for (key, reads, writes) in [
        ("/cron/jobs/10.0.0.1/17", true, true),
        ("/cron/groups/web/jobs/17", true, true),
        ("/cron/commands/10.0.0.1/c1", true, true),
        ("/cron/results/10.0.0.1/c1", true, false),
        ("/cron/cronid/jobs/10.0.0.1/17", true, false),
        ("/cron/claims/web/17", true, false),
        ("/agent/health/", true, false),
        ("/agent/nodes/", true, true),
        ("/cron/once/10.0.0.1/17", false, false),
    ] {
        assert_eq!(may_read(&operator, key).await, reads, "read {key}");
        let below = if key.ends_with('/') {
            format!("{key}x")
        } else {
            key.to_owned()
        };
        assert_eq!(may_write(&operator, &below, None).await, writes, "write {below}");
    }
    assert!(store.get("/agent/nodes/10.0.0.1").await.unwrap().is_some());
}

#[test]
fn what_is_asked_for_wrongly() {
    for (args, says) in [
        (
            &["--set=agent.data_dir=/tmp"][..],
            "agent: found neither --host nor etcd.endpoints",
        ),
        (&["--host=x"], "agent: invalid value 'x' for '--host <IP>'"),
        (
            &["--host=10.0.0.1,10.0.0.2", "--user=a"],
            "agent: `--user` names one user",
        ),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.arg("etcd-roles").args(args);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let done = finish(command.spawn().unwrap());
        assert_eq!(done.code(), Some(64), "{args:?} {}", done.err);
        assert!(done.err.starts_with(says), "{args:?}: {}", done.err);
    }
    // Certificates are the default; JSON says the same.
    let lines = printed(&["--host=10.0.0.1", "--user=web01", "-agent-group=web"]);
    assert!(
        lines.contains(&"etcdctl user add --no-password web01".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.iter().all(|line| !line.contains("luffly-group")),
        "the settings are this host's: {lines:?}"
    );
    let shown: serde_json::Value =
        serde_json::from_str(&printed(&["--host=10.0.0.1", "--group=web", "--json"]).join("\n")).unwrap();
    assert_eq!(
        shown["users"][0]["roles"],
        serde_json::json!(["luffly-host-10.0.0.1", "luffly-group-web"])
    );
    assert_eq!(shown["roles"][0]["name"], "luffly-group-web");
}
