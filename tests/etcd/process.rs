//! The real agent beside a real etcd: the whole way that README shows, and an agent that was frozen.

use std::process::Stdio;

use luffly_agent::store::keys::{self, Answer, Health, Record};

use crate::kit::agent::{Place, signal, until};
use crate::kit::servers::Etcd;

fn job(task: &str) -> String {
    format!("/cron/jobs/10.0.0.1/{task}")
}
fn record(etcd: &Etcd, task: &str) -> Option<Record> {
    let value = etcd.get(&format!("/cron/cronid/jobs/10.0.0.1/{task}"))?;
    Some(keys::read(value.as_bytes()))
}
fn health(etcd: &Etcd) -> Option<Health> {
    let value = etcd.get("/agent/health/10.0.0.1")?;
    Some(keys::read(value.as_bytes()))
}

/// The real agent, on its own data dir, named by its instance.
fn configured(place: &Place, etcd: &Etcd) -> std::path::PathBuf {
    let endpoint = etcd.endpoint();
    let text = format!(
        "[agent]\nip = \"10.0.0.1\"\n[etcd]\nendpoints = [\"{endpoint}\"]\nlease_ttl = \"2s\"\nrenew_every = \"500ms\"\n[http]\naddress = \"off\"\n"
    );
    place.write("agent.toml", text)
}
fn lines(path: &std::path::Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn the_whole_way_by_etcdctl() {
    let etcd = Etcd::start();
    let place = Place::default();
    let out = place.path("out");
    let value = |status: &str| {
        format!(
            r#"{{"cmd":"echo run >> {}","express":"* * * * * *","task_id":17,"status":"{status}","executor":"sh"}}"#,
            out.display()
        )
    };
    etcd.put(&job("17"), &value("running"));
    let settings = configured(&place, &etcd);
    let running = place.start(&settings, Stdio::null());
    until("it runs each second", || lines(&out) >= 2);
    let state = |etcd: &Etcd| record(etcd, "17").map(|record| record.state);
    etcd.until("the record is there", |etcd| state(etcd).as_deref() == Some("ok"));
    etcd.put(&job("17"), &value("pause"));
    etcd.until("it is paused", |etcd| state(etcd).as_deref() == Some("paused"));
    etcd.put(&job("18"), "}{");
    etcd.until("a bad one is named", |etcd| {
        record(etcd, "18").is_some_and(|record| record.state == "invalid")
    });
    // By a command it runs all the same, once.
    let before = lines(&out);
    let lease = etcd
        .ctl(&["lease", "grant", "60"])
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned();
    let command = r#"{"action":"run","task_id":17,"expires":"2100-01-01T00:00:00Z"}"#;
    etcd.ctl(&[
        "put",
        &format!("--lease={lease}"),
        "/cron/commands/10.0.0.1/c1",
        command,
    ]);
    until("it has run", || lines(&out) == before + 1);
    let answer = etcd
        .get("/cron/results/10.0.0.1/c1")
        .map(|value| keys::read::<Answer>(value.as_bytes()));
    assert_eq!(answer.map(|answer| answer.runs.len()), Some(1));

    assert_eq!(running.stop(), Some(0));
    let left = [etcd.keys("/agent/health/"), etcd.keys("/cron/cronid/")].concat();
    assert_eq!(left, Vec::<String>::new(), "offline at once");
    assert_eq!(lines(&out), before + 1);

    let running = place.start(&settings, Stdio::null());
    etcd.until("it is there again", |etcd| {
        health(etcd).is_some() && state(etcd).as_deref() == Some("paused")
    });
    running.kill();
    etcd.until("its lease has ended", |etcd| {
        etcd.keys("/agent/health/").is_empty() && etcd.keys("/cron/cronid/").is_empty()
    });
    drop(etcd);
}

/// BEHAVIOUR 79 and issue 5: `make soak` restarts it fifty times.
#[test]
fn restarts_of_etcd_leave_nothing_behind() {
    let restarts = std::env::var("ETCD_RESTARTS").map_or(10, |n| n.parse::<usize>().expect("ETCD_RESTARTS: a number"));
    let mut etcd = Etcd::start();
    let place = Place::default();
    let out = place.path("out");
    let value = format!(r#"{{"cmd":"echo run >> {}","express":"* * * * * *"}}"#, out.display());
    etcd.put(&job("17"), &value);
    let running = place.start(&configured(&place, &etcd), Stdio::null());
    let pid = running.0.id();
    // Of the agent at etcd: connections, watchers, leases; then goroutines of etcd and KiB of the agent.
    let counts = |etcd: &Etcd| {
        (
            etcd.connections_of(pid),
            etcd.metric("etcd_debugging_mvcc_watcher_total"),
            etcd.leases(),
        )
    };
    let goroutines = |etcd: &Etcd| etcd.metric("go_goroutines");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let mut after_fifth = None;
    for round in 1..=restarts.max(6) {
        etcd.restart();
        let before = lines(&out);
        etcd.until("it is followed again", |etcd| counts(etcd) == (1, 3.0, 1));
        until("the job goes on", || lines(&out) > before);
        match after_fifth {
            None if round >= 5 => after_fifth = Some((goroutines(&etcd), resident())),
            None => {}
            Some((goroutines_then, _)) => {
                etcd.until("etcd has no more to do than after the fifth", |etcd| {
                    goroutines(etcd) <= goroutines_then + 2.0
                });
            }
        }
    }
    let (_, then) = after_fifth.unwrap();
    let now = resident();
    assert!(now < then + 2048, "the agent has grown from {then} to {now} KiB");
    println!("{restarts} restarts of etcd: the agent had {then} KiB after the fifth, {now} after the last");
    assert_eq!(record(&etcd, "17").map(|record| record.state).as_deref(), Some("ok"));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn an_agent_that_was_frozen_finds_its_address_taken_and_starts_nothing() {
    let etcd = Etcd::start();
    let (first, second) = (Place::default(), Place::default());
    let out = first.path("out");
    let value = format!(
        r#"{{"cmd":"cat /proc/$PPID/cmdline | tr '\\0' '\\n' | tail -1 >> {}","express":"* * * * * *","executor":"sh"}}"#,
        out.display()
    );
    etcd.put(&job("17"), &value);
    let one = first.start(&configured(&first, &etcd), Stdio::null());
    until("the first runs it", || lines(&out) >= 1);
    let holder = health(&etcd).unwrap().instance;
    signal(&one.0, nix::sys::signal::Signal::SIGSTOP);
    let two = second.start(&configured(&second, &etcd), Stdio::null());
    etcd.until("the second has taken over", |etcd| {
        health(etcd).is_some_and(|health| health.instance != holder)
    });
    // Its own runs are still to come; those of the first are over when it hears who holds the address.
    let by_first = || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        text.lines()
            .filter(|line| line.contains(first.path("data").to_str().unwrap()))
            .count()
    };
    let before = by_first();
    signal(&one.0, nix::sys::signal::Signal::SIGCONT);
    until("the first knows", || {
        first.get("/health").1.contains("runs no jobs") || first.get("/health").1.contains("is held by")
    });
    let now = lines(&out);
    until("the second goes on", || lines(&out) >= now + 2);
    assert!(before >= 1);
    assert_eq!(
        by_first(),
        before,
        "nothing between the thaw and the word, and nothing after it"
    );
    assert_eq!((one.stop(), two.stop()), (Some(0), Some(0)));
}
