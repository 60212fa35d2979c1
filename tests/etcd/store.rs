//! The store: one suite of what etcd does, which all three faces pass; then what only a real etcd can do to us.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use luffly_agent::store::{
    Changes, Compare, Event, LeaseId, Op, SharedStore, StoreError, Transaction, Watch,
    embedded::{self, EmbeddedStore},
    etcd::{EtcdStore, Options, Tls, User},
    memory::MemoryStore,
};

use crate::kit::servers::Etcd;

/// A face under test, and how it is made to forget.
struct Face<'a> {
    store: SharedStore,
    compact: Box<dyn Fn() + 'a>,
}
fn key(name: &str) -> String {
    format!("/t/{name}")
}
async fn put(store: &SharedStore, name: &str, value: &str, lease: Option<LeaseId>) -> i64 {
    let done = store.transact(Transaction::of(vec![Op::put(key(name), value.to_owned(), lease)]));
    done.await.unwrap().revision
}
async fn delete(store: &SharedStore, name: &str) -> i64 {
    store
        .transact(Transaction::of(vec![Op::delete(key(name))]))
        .await
        .unwrap()
        .revision
}
/// Reads from it until so many events are there: each as `+key=value` or `-key`.
async fn events(watch: &mut Watch, most: usize) -> Vec<String> {
    let mut seen = vec![];
    while seen.len() < most {
        let Changes { revision, events } = watch.next().await.unwrap().unwrap();
        for event in events {
            seen.push(match event {
                Event::Put(entry) => {
                    assert!(entry.mod_revision <= revision);
                    format!("+{}={}", entry.key, std::str::from_utf8(&entry.value).unwrap())
                }
                Event::Deleted { key, mod_revision } => {
                    assert!(mod_revision <= revision);
                    format!("-{key}")
                }
            });
        }
    }
    seen
}

async fn as_etcd_does(face: Face<'_>) {
    let store = &face.store;
    let first = store.list(&[key("")]).await.unwrap();
    assert_eq!(first.entries, vec![]);

    // ---- revisions
    let made = put(store, "a", "1", None).await;
    assert_eq!(made, first.revision + 1);
    let changed = put(store, "a", "2", None).await;
    assert_eq!(changed, made + 1, "one transaction, one revision");
    let entry = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (made, changed));
    assert_eq!((&entry.value[..], entry.lease), (&b"2"[..], None));
    assert_eq!(store.glance(&key("a")).await.unwrap(), Some(entry));
    assert_eq!(delete(store, "a").await, changed + 1);
    assert_eq!(
        delete(store, "a").await,
        changed + 1,
        "nothing was there, nothing happened"
    );
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    let again = put(store, "a", "3", None).await;
    let entry = store.get(&key("a")).await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));

    // ---- transactions
    let take = |value: &str| {
        Transaction::when(
            vec![Compare::absent(key("lock"))],
            vec![Op::put(key("lock"), value.to_owned(), None), Op::get(key("lock"))],
        )
        .or_else(vec![Op::get(key("lock")), Op::get(key("nothing"))])
    };
    let won = store.transact(take("me")).await.unwrap();
    assert!(won.held);
    assert_eq!(won.got[0].as_ref().unwrap().value, "me", "it sees what it has done");
    let lost = store.transact(take("you")).await.unwrap();
    assert!(!lost.held);
    let holder = lost.got[0].clone().unwrap();
    assert_eq!((&holder.value[..], &lost.got[1]), (&b"me"[..], &None));
    assert_eq!(lost.revision, won.revision, "reading changes nothing");
    let made_by = async |name: &str, revision: i64| {
        let made_by = Compare::MadeBy {
            key: key(name),
            revision,
        };
        let look = Transaction::when(vec![made_by], vec![]);
        store.transact(look).await.unwrap().held
    };
    assert!(made_by("lock", holder.create_revision).await && made_by("lock", i64::MAX).await);
    assert!(!made_by("lock", holder.create_revision - 1).await && !made_by("nothing", i64::MAX).await);
    let over = || {
        Transaction::when(
            vec![Compare::unchanged(&holder)],
            vec![Op::put(key("lock"), "next", None), Op::delete(key("a"))],
        )
    };
    assert!(store.transact(over()).await.unwrap().held);
    assert!(!store.transact(over()).await.unwrap().held, "it has changed since");
    assert_eq!(store.get(&key("a")).await.unwrap(), None);
    let many = |n: usize| {
        Transaction::of(
            (0..n)
                .map(|i| Op::put(key(&format!("many/{i:03}")), "x", None))
                .collect(),
        )
    };
    assert!(matches!(store.transact(many(101)).await, Err(StoreError::Invalid(_))));
    let all = store.transact(many(100)).await.unwrap();
    let list = store.list(&[key("many/")]).await.unwrap();
    assert_eq!((list.entries.len(), list.revision), (100, all.revision));
    assert!(list.entries.iter().all(|entry| entry.mod_revision == all.revision));
    let twice = Transaction::of(vec![Op::put(key("a"), "1", None), Op::delete(key("a"))]);
    assert!(matches!(store.transact(twice).await, Err(StoreError::Invalid(_))));
    let nowhere = Transaction::of(vec![
        Op::put(key("b"), "1", None),
        Op::put(key("c"), "1", Some(LeaseId(77))),
    ]);
    assert_eq!(store.transact(nowhere).await, Err(StoreError::LeaseGone));
    assert_eq!(store.get(&key("b")).await.unwrap(), None, "all or nothing");

    // ---- more than a page, several prefixes, nothing beside them
    for hundred in 0..11 {
        let ops = (0..100).map(|i| Op::put(key(&format!("page/{:04}", hundred * 100 + i)), "x", None));
        store.transact(Transaction::of(ops.collect())).await.unwrap();
    }
    put(store, "pagex", "x", None).await;
    let list = store.list(&[key("page/"), key("lock"), key("none/")]).await.unwrap();
    let found = list.entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>();
    let mut expected = (0..1100).map(|i| key(&format!("page/{i:04}"))).collect::<Vec<_>>();
    expected.push(key("lock"));
    assert_eq!(found, expected);

    // ---- watches: from a revision on, in order, no others
    let from = put(store, "w/before", "1", None).await;
    put(store, "w/1", "a", None).await;
    delete(store, "w/1").await;
    let mut watch = store.watch(&[key("w/"), key("v/")], from).await.unwrap();
    assert_eq!(events(&mut watch, 2).await, ["+/t/w/1=a", "-/t/w/1"]);
    put(store, "wx", "not this", None).await;
    put(store, "w/2", "b", None).await;
    assert_eq!(events(&mut watch, 1).await, ["+/t/w/2=b"]);
    put(store, "v/2", "b", None).await;
    assert_eq!(events(&mut watch, 1).await, ["+/t/v/2=b"]);
    let both = Transaction::of(vec![Op::put(key("w/3"), "c", None), Op::put(key("w/4"), "d", None)]);
    store.transact(both).await.unwrap();
    assert_eq!(events(&mut watch, 2).await, ["+/t/w/3=c", "+/t/w/4=d"]);

    // ---- leases
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    put(store, "w/leased", "1", Some(lease)).await;
    put(store, "w/freed", "1", Some(lease)).await;
    put(store, "w/freed", "2", None).await;
    assert_eq!(events(&mut watch, 3).await.len(), 3);
    assert_eq!(store.get(&key("w/leased")).await.unwrap().unwrap().lease, Some(lease));
    let mut beats = store.keep_alive(lease).await.unwrap();
    assert_eq!(beats.beat().await.unwrap(), Duration::from_secs(60));
    assert_eq!(beats.beat().await.unwrap(), Duration::from_secs(60));
    store.revoke(lease).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, ["-/t/w/leased"]);
    assert!(
        store.get(&key("w/freed")).await.unwrap().is_some(),
        "it hung on it no more"
    );
    assert_eq!(beats.beat().await, Err(StoreError::LeaseGone));
    assert!(beats.beat().await.is_err(), "once it has failed it goes on failing");
    assert_eq!(store.keep_alive(lease).await.err(), Some(StoreError::LeaseGone));
    store.revoke(lease).await.unwrap();
    let short = store.grant(Duration::from_secs(2)).await.unwrap();
    put(store, "w/short", "1", Some(short)).await;
    assert_eq!(
        events(&mut watch, 2).await,
        ["+/t/w/short=1", "-/t/w/short"],
        "it ends by itself"
    );

    // ---- compacted: it says so, and is over
    put(store, "w/5", "e", None).await;
    assert_eq!(events(&mut watch, 1).await, ["+/t/w/5=e"]);
    (face.compact)();
    let mut late = store.watch(&[key("w/"), key("v/")], from).await.unwrap();
    assert!(matches!(late.next().await, Some(Err(StoreError::Compacted(_)))));
    assert_eq!(late.next().await, None);
    put(store, "w/6", "f", None).await;
    assert_eq!(events(&mut watch, 1).await, ["+/t/w/6=f"], "who was there goes on");
    let list = store.list(&[key("w/")]).await.unwrap();
    let mut fresh = store.watch(&[key("w/")], list.revision).await.unwrap();
    put(store, "w/7", "g", None).await;
    assert_eq!(events(&mut fresh, 1).await, ["+/t/w/7=g"]);
}

#[tokio::test]
async fn memory_does_as_etcd_does() {
    let store = MemoryStore::default();
    let other = store.clone();
    as_etcd_does(Face {
        store: Arc::new(store),
        compact: Box::new(move || other.compact()),
    })
    .await;
}

#[tokio::test]
async fn embedded_does_as_etcd_does_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let opened = embedded::open(dir.path()).unwrap();
        assert_eq!(opened.warning, None);
        let store = EmbeddedStore::new(opened.database).unwrap();
        let other = store.clone();
        let shared: SharedStore = Arc::new(store);
        as_etcd_does(Face {
            store: shared.clone(),
            compact: Box::new(move || other.compact()),
        })
        .await;
        let lease = shared.grant(Duration::from_secs(60)).await.unwrap();
        put(&shared, "passing", "1", Some(lease)).await;
        put(&shared, "w/2", "on a lease now", Some(lease)).await;
        shared.list(&[key("")]).await.unwrap()
    };
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("store.redb"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let store = EmbeddedStore::new(embedded::open(dir.path()).unwrap().database).unwrap();
    let shared: SharedStore = Arc::new(store);
    let after = shared.list(&[key("")]).await.unwrap();
    let kept = before
        .entries
        .iter()
        .filter(|entry| entry.lease.is_none())
        .cloned()
        .collect::<Vec<_>>();
    assert_eq!(before.entries.len(), kept.len() + 2);
    assert_eq!(
        after.entries, kept,
        "with their revisions; what hung on a lease went with it"
    );
    assert!(after.revision >= kept.iter().map(|entry| entry.mod_revision).max().unwrap());
    assert!(put(&shared, "next", "1", None).await > after.revision);
}

#[tokio::test]
async fn a_damaged_store_is_put_aside_and_a_held_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    let opened = embedded::open(dir.path()).unwrap();
    assert!(opened.warning.unwrap().contains("store.redb.damaged"));
    assert_eq!(
        std::fs::read(dir.path().join("store.redb.damaged")).unwrap(),
        vec![7u8; 8192]
    );
    let held = embedded::open(dir.path()).err().unwrap();
    assert!(held.contains("could not open"), "{held}");
}

fn options(etcd: &Etcd) -> Options {
    Options {
        endpoints: vec![etcd.endpoint()],
        prefix: String::new(),
        user: None,
        tls: None,
    }
}
#[tokio::test]
async fn etcd_does_as_etcd_does() {
    let etcd = Etcd::start();
    let prefixed = Options {
        prefix: "/fleet".into(),
        ..options(&etcd)
    };
    let store: SharedStore = Arc::new(EtcdStore::new(prefixed));
    as_etcd_does(Face {
        store: store.clone(),
        compact: Box::new(|| etcd.compact()),
    })
    .await;
    assert_eq!(etcd.keys("/t/"), Vec::<String>::new());
    assert!(etcd.keys("/fleet/t/").len() > 1000);
    let wall = store.wall().await.unwrap().unwrap();
    let here = luffly_agent::clock::system().wall();
    assert!((wall.as_second() - here.as_second()).abs() <= 30, "{wall} {here}");
}

/// A certificate authority with a server's and a client's certificate, as PEM files in there.
fn certificates(dir: &std::path::Path) {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.extended_key_usages = vec![Usage::ServerAuth, Usage::ClientAuth];
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

#[tokio::test]
async fn tls_with_a_certificate_of_ours_and_a_word_about_what_is_wrong() {
    let etcd = Etcd::start_tls(
        certificates,
        &[
            "--cert-file={dir}/server.pem",
            "--key-file={dir}/server.key",
            "--client-cert-auth",
            "--trusted-ca-file={dir}/ca.pem",
        ],
        &[
            "--cacert={dir}/ca.pem",
            "--cert={dir}/client.pem",
            "--key={dir}/client.key",
        ],
    );
    let file = |name: &str| etcd.dir.path().join(name);
    let with = |tls: Tls| -> SharedStore {
        Arc::new(EtcdStore::new(Options {
            tls: Some(tls),
            ..options(&etcd)
        }))
    };
    let ours = Some((file("client.pem"), file("client.key")));
    let good = with(Tls {
        ca: Some(file("ca.pem")),
        cert_and_key: ours.clone(),
    });
    put(&good, "a", "1", None).await;
    assert_eq!(etcd.get("/t/a").as_deref(), Some("1"));
    assert!(good.wall().await.unwrap().is_some());
    let lease = good.grant(Duration::from_secs(60)).await.unwrap();
    assert!(good.keep_alive(lease).await.unwrap().beat().await.is_ok());

    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    for (tls, word) in [
        (
            Tls {
                ca: Some(other.path().join("ca.pem")),
                cert_and_key: ours.clone(),
            },
            "certificate",
        ),
        (
            Tls {
                ca: Some(file("nothing.pem")),
                cert_and_key: ours,
            },
            "could not read",
        ),
        (
            Tls {
                ca: Some(file("ca.pem")),
                cert_and_key: None,
            },
            "",
        ),
    ] {
        let error = with(tls).get("/t/a").await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    }
}

#[tokio::test]
async fn rights_are_missed_by_name_and_a_dead_endpoint_of_two_is_passed_over() {
    let etcd = Etcd::start_with(&["--bcrypt-cost=4"]);
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "t"],
        &["role", "grant-permission", "t", "readwrite", "/t/", "--prefix"],
        &["user", "add", "agent:pass"],
        &["user", "grant-role", "agent", "t"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args);
    }
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let store: SharedStore = Arc::new(EtcdStore::new(Options {
        endpoints: vec![etcd.endpoint(), dead.to_string()],
        user: Some(User {
            name: "agent".into(),
            password: "pass".into(),
        }),
        ..options(&etcd)
    }));
    // The log-in itself may meet the dead one: it is tried again by whoever asks.
    let mut first = store.get("/t/a").await;
    while matches!(first, Err(StoreError::Away(_))) {
        first = store.get("/t/a").await;
    }
    assert_eq!(first, Ok(None));
    let refused = store.get("/elsewhere").await;
    assert!(
        matches!(&refused, Err(StoreError::Refused(why)) if why.contains("permission denied")),
        "{refused:?}"
    );
    let watch = store.watch(&["/elsewhere/".to_owned()], 0).await;
    let refused = match watch {
        Ok(mut watch) => watch.next().await.unwrap().unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, StoreError::Refused(_)), "{refused:?}");
    for i in 0..30 {
        let done = store.transact(Transaction::of(vec![Op::put(key("x"), i.to_string(), None)]).idempotent());
        match done.await {
            Ok(_) | Err(StoreError::Away(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}
