//! The real agent beside a real etcd: the whole way that README shows, signed jobs, and an agent that was frozen.

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
    configured_with(place, etcd, "")
}
fn configured_with(place: &Place, etcd: &Etcd, jobs: &str) -> std::path::PathBuf {
    let endpoint = etcd.endpoint();
    let text = format!(
        "[agent]\nip = \"10.0.0.1\"\n[etcd]\nendpoints = [\"{endpoint}\"]\nlease_ttl = \"2s\"\nrenew_every = \"500ms\"\n[http]\naddress = \"off\"\n[jobs]\n{jobs}\n"
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
        etcd.until("it is followed again", |etcd| counts(etcd) == (1, 2.0, 1));
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

/// A command that needs no agent.
fn alone(args: &[&str]) -> String {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(args)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap().trim_end().to_owned()
}
/// BEHAVIOUR 90 and 102.
#[test]
fn with_a_verify_key_only_what_is_signed_runs() {
    let etcd = Etcd::start();
    let place = Place::default();
    let (key, out) = (place.path("key"), place.path("out"));
    let key = key.to_str().unwrap();
    let public = alone(&["jobs", "keygen", key]);
    let value = |word: &str| {
        format!(
            r#"{{"cmd":"echo {word} >> {}","express":"* * * * * *","executor":"sh"}}"#,
            out.display()
        )
    };
    let sign = |at: &str, value: &str, more: &[&str]| {
        let args = ["jobs", "sign", "--key", key, "--fleet", "shop", "--at", at, value];
        alone(&[&args, more].concat())
    };
    let settings = configured_with(&place, &etcd, &format!("verify_key = \"{public}\"\nfleet = \"shop\""));
    etcd.put(&job("17"), &value("unsigned"));
    let running = place.start(&settings, Stdio::null());
    let stands = |state: &str, error: &str| {
        etcd.until(&format!("17 is {state} {error}"), |etcd| {
            record(etcd, "17").is_some_and(|record| {
                record.state == state && record.error.as_deref().unwrap_or_default().starts_with(error)
            })
        });
    };
    stands("invalid", "`signature`: found none, accepted: a signed value");
    let said = |word: &str| {
        std::fs::read_to_string(&out)
            .unwrap_or_default()
            .lines()
            .filter(|line| *line == word)
            .count()
    };
    let (first, second) = (
        sign(&job("17"), &value("first"), &["--serial", "1"]),
        sign(&job("17"), &value("second"), &["--serial", "2"]),
    );
    etcd.put(&job("17"), &first);
    until("the first runs", || said("first") >= 1);
    stands("ok", "");
    etcd.put(&job("17"), &first.replace("first", "altered"));
    stands("invalid", "`signature`: found one that does not fit");
    etcd.put(&job("17"), &second);
    until("the second runs", || said("second") >= 1);
    etcd.put(&job("17"), &first);
    stands("invalid", "`signature`: found serial 1, and 2 was seen");
    let firsts = said("first");

    // A command.
    let at = |id: &str| format!("/cron/commands/10.0.0.1/{id}");
    let command = r#"{"action":"run","task_id":17,"expires":"2100-01-01T00:00:00Z"}"#;
    let answer = |id: &str, value: &str| {
        etcd.ctl(&["del", &format!("/cron/results/10.0.0.1/{id}")]);
        etcd.put(&at(id), value);
        let mut said = None;
        etcd.until("it is answered", |etcd| {
            let value = etcd.get(&format!("/cron/results/10.0.0.1/{id}"));
            said = value.map(|value| keys::read::<Answer>(value.as_bytes()));
            said.as_ref().is_some_and(|said| said.state != "claimed")
        });
        said.map(|said| format!("{} {}", said.state, said.said)).unwrap()
    };
    assert!(answer("c1", command).starts_with("refused `signature`: found none"));
    let signed = sign(&at("c1"), command, &[]);
    assert!(answer("c1", &signed).starts_with("refused the job is invalid: `signature`: found serial 1"));
    assert!(answer("c1", &signed).starts_with("refused `signature`: found serial "));
    let page = place.run(&["why", "17"]).out;
    assert!(
        page.contains("job 17 is invalid: `signature`: found serial 1, and 2 was seen"),
        "{page}"
    );
    for args in [&["jobs", "list"][..], &["jobs", "get", "17"]] {
        let page = place.run(args).out;
        assert!(page.contains("`signature`: found serial 1, and 2 was seen"), "{page}");
    }

    // It knows over a restart, and past deletion.
    assert_eq!(running.stop(), Some(0));
    let running = place.start(&settings, Stdio::null());
    stands("invalid", "`signature`: found serial 1, and 2 was seen");
    etcd.delete(&job("17"));
    etcd.put(&job("17"), &first);
    stands("invalid", "`signature`: found serial 1, and 2 was seen");
    assert!(answer("c1", &signed).starts_with("refused `signature`: found serial "));
    let seconds = said("second");
    etcd.put(&job("17"), &second);
    until("the second runs again", || said("second") > seconds);
    assert_eq!(said("first"), firsts);

    // By the command line, with the fleet and the place that the agent names.
    let put = |more: &[&str]| place.run(&[&["jobs", "put", "--id", "17", &value("third")], more].concat());
    let refused = put(&[]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.err.contains("`signature`: found none"), "{}", refused.err);
    let done = put(&["--sign", key, "--valid-for", "3s"]);
    assert_eq!(done.code(), Some(0), "{}", done.err);
    until("the third runs", || said("third") >= 1);
    stands("invalid", "`signature`: found not_after ");
    let page = place.run(&["why", "17"]).out;
    assert!(page.contains("which has passed"), "{page}");

    let all = std::fs::read_to_string(&out).unwrap();
    assert!(!all.contains("unsigned") && !all.contains("altered"), "{all}");
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
