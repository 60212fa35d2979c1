//! Bad days of etcd, as LeaseKeeper and JobWatcher live them, on a real one.

use std::time::Duration;

use luffly_agent::{
    messages::lease::Standing,
    store::{
        etcd::User,
        keys::{self, Answer, Health, Node, Record},
    },
};

use crate::kit::agent::until;
use crate::kit::seat::{Cable, Seat, Setup};
use crate::kit::servers::Etcd;

const JOBS: &str = "/cron/jobs/10.0.0.1";
fn job(task: &str) -> String {
    format!("{JOBS}/{task}")
}
fn record(etcd: &Etcd, task: &str) -> Option<Record> {
    etcd.get(&format!("/cron/cronid{}", &job(task)[5..]))
        .map(|value| keys::read(value.as_bytes()))
}
fn health(etcd: &Etcd) -> Option<Health> {
    etcd.get("/agent/health/10.0.0.1")
        .map(|value| keys::read(value.as_bytes()))
}
/// Blocking calls are fine here: the agents live on arbiters of their own.
fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(test);
}

#[test]
fn jobs_put_changed_and_deleted_are_seen_in_order_and_answered() {
    run(async {
        let etcd = Etcd::start();
        etcd.put(&job("1"), "one");
        let seat = Seat::take(Setup::on(&etcd.endpoint()));
        seat.hears(&["full", "+/cron/jobs/10.0.0.1/1=one"]);
        etcd.put(&job("2"), "two");
        etcd.put("/cron/jobs/10.0.0.11/2", "not ours");
        etcd.put(&job("1"), "one more");
        etcd.delete(&job("2"));
        etcd.put(&job("3"), "bad");
        let told = [
            "full",
            "+/cron/jobs/10.0.0.1/1=one",
            "+/cron/jobs/10.0.0.1/2=two",
            "+/cron/jobs/10.0.0.1/1=one more",
            "-/cron/jobs/10.0.0.1/2",
            "+/cron/jobs/10.0.0.1/3=bad",
        ];
        seat.hears(&told);
        assert_eq!(seat.log(), told);

        etcd.until("both records are there", |etcd| {
            let states = ["1", "2", "3"].map(|task| record(etcd, task).map(|record| record.state));
            states == [Some("ok".into()), None, Some("invalid".into())]
        });
        let bad = record(&etcd, "3").unwrap();
        assert_eq!(bad.error.as_deref(), Some("`express`: found bad"));
        let health = health(&etcd).unwrap();
        assert_eq!(
            (&*health.status, &*health.instance, &*health.version),
            ("Online", "a", luffly_agent::VERSION)
        );
        let leased = etcd.ctl(&["get", "/agent/health/10.0.0.1", "-w", "fields"]);
        assert!(
            leased.contains("\"Lease\" : ") && !leased.contains("\"Lease\" : 0"),
            "{leased}"
        );
        assert_eq!((seat.watcher_view().await.reads, etcd.leases()), (1, 1));

        seat.stop().await;
        let left = [etcd.keys("/cron/cronid/"), etcd.keys("/agent/health/")].concat();
        assert_eq!((left, etcd.leases()), (vec![], 0));
        let node: Node = keys::read(etcd.get("/agent/nodes/10.0.0.1").unwrap().as_bytes());
        assert_eq!(node.why.as_deref(), Some("stopped as asked"));
    });
}

#[test]
fn etcd_killed_again_and_again_leaves_one_connection_one_watch_and_one_lease() {
    run(async {
        let mut etcd = Etcd::start();
        let seat = Seat::take(Setup {
            group: Some("web"),
            ..Setup::on(&etcd.endpoint())
        });
        etcd.put(&job("untouched"), "x");
        seat.has("the first job is there", |heard| heard.table.len() == 1);
        let counts = |etcd: &Etcd| {
            (
                etcd.connections_of(std::process::id()),
                etcd.metric("etcd_debugging_mvcc_watcher_total"),
                etcd.leases(),
            )
        };
        until("it has settled", || counts(&etcd) == (1, 3.0, 1));
        for round in 0..12 {
            etcd.put(&job("each"), &format!("before {round}"));
            etcd.restart();
            etcd.put(&job("each"), &format!("after {round}"));
            seat.has("the last word is heard", |heard| {
                heard.table.get(&job("each")) == Some(&format!("after {round}"))
            });
        }
        until("it is as before", || counts(&etcd) == (1, 3.0, 1));
        seat.is("all is well", |lease, watcher| {
            matches!(lease.standing, Standing::Held { .. })
                && lease.trouble.is_empty()
                && watcher.trouble.is_empty()
                && watcher.stale.is_none()
        })
        .await;
        assert_eq!(
            seat.lease_view().await.granted,
            1,
            "the lease survives a restart of etcd"
        );
        seat.heard(|heard| {
            assert_eq!(heard.told[&job("untouched")], 1);
            assert_eq!(heard.log.iter().filter(|line| *line == "full").count(), 1);
            // In order, and none twice.
            let each = heard
                .log
                .iter()
                .filter(|line| line.contains("/each="))
                .collect::<Vec<_>>();
            let mut sorted = each.clone();
            sorted.dedup();
            assert_eq!(each, sorted);
        });
    });
}

#[test]
fn deletions_and_a_compaction_while_it_was_away_are_seen_and_the_rest_is_not_touched() {
    run(async {
        let etcd = Etcd::start();
        let cable = Cable::to(etcd.port);
        for task in ["1", "2", "3"] {
            etcd.put(&job(task), "x");
        }
        let seat = Seat::take(Setup::on(&cable.endpoint()));
        seat.has("all are there", |heard| heard.table.len() == 3);
        cable.cut();
        seat.is("it knows that etcd is away", |lease, watcher| {
            matches!(lease.standing, Standing::Away { .. }) && watcher.stale.is_some()
        })
        .await;
        etcd.delete(&job("2"));
        etcd.put(&job("3"), "y");
        etcd.compact();
        cable.mend();
        seat.hears(&["+/cron/jobs/10.0.0.1/3=y"]);
        let log = seat.log();
        assert_eq!(log[4..], ["-/cron/jobs/10.0.0.1/2", "+/cron/jobs/10.0.0.1/3=y"]);
    });
}

#[test]
fn a_restored_backup_and_an_empty_etcd_are_followed() {
    run(async {
        let mut etcd = Etcd::start();
        etcd.put(&job("1"), "x");
        etcd.put(&job("2"), "old");
        let backup = etcd.save("backup");
        let seat = Seat::take(Setup::on(&etcd.endpoint()));
        seat.has("both are there", |heard| heard.table.len() == 2);
        etcd.put(&job("2"), "new");
        etcd.put(&job("3"), "x");
        seat.hears(&["+/cron/jobs/10.0.0.1/2=new", "+/cron/jobs/10.0.0.1/3=x"]);
        let before = seat.log().len();

        etcd.restore(&backup);
        seat.hears(&["-/cron/jobs/10.0.0.1/3", "+/cron/jobs/10.0.0.1/2=old"]);
        assert_eq!(seat.log().len(), before + 2, "job 1 is not touched");
        etcd.until("registered again", |etcd| health(etcd).is_some());

        // Its revision passes ours with other contents before we look.
        let seen = seat.watcher_view().await.revision;
        let cable = Cable::to(etcd.port);
        let second = Seat::take(Setup {
            ip: [10, 0, 0, 2],
            instance: "b",
            ..Setup::on(&cable.endpoint())
        });
        etcd.put("/cron/jobs/10.0.0.2/1", "b");
        second.hears(&["+/cron/jobs/10.0.0.2/1=b"]);
        cable.cut();
        etcd.restore(&backup);
        while etcd.revision() <= seen + 10 {
            etcd.put("/cron/jobs/10.0.0.2/9", "filler");
        }
        cable.mend();
        second.hears(&["-/cron/jobs/10.0.0.2/1", "+/cron/jobs/10.0.0.2/9=filler"]);

        etcd.replace_by_empty();
        seat.has("nothing is left", |heard| heard.table.is_empty());
        etcd.put(&job("new"), "x");
        seat.hears(&["+/cron/jobs/10.0.0.1/new=x"]);
        etcd.until("registered again", |etcd| {
            health(etcd).is_some() && record(etcd, "new").is_some()
        });
    });
}

#[test]
fn a_frozen_etcd_is_noticed_and_found_again() {
    run(async {
        let etcd = Etcd::start();
        let seat = Seat::take(Setup {
            ttl: Duration::from_secs(60),
            ..Setup::on(&etcd.endpoint())
        });
        etcd.put(&job("1"), "x");
        seat.hears(&["+/cron/jobs/10.0.0.1/1=x"]);
        etcd.freeze();
        // 10 s to the ping and 5 s for its answer: the watch ends, and with it the connection.
        seat.is("both know", |lease, watcher| {
            matches!(lease.standing, Standing::Away { .. }) && watcher.stale.is_some()
        })
        .await;
        etcd.thaw();
        etcd.put(&job("2"), "y");
        seat.hears(&["+/cron/jobs/10.0.0.1/2=y"]);
        seat.is("all is well", |lease, watcher| {
            lease.trouble.is_empty() && watcher.trouble.is_empty()
        })
        .await;
        until("one connection", || etcd.connections_of(std::process::id()) == 1);
        assert_eq!(seat.heard(|heard| heard.told[&job("1")]), 1);
    });
}

#[test]
fn a_lease_taken_away_behind_our_back_is_granted_anew_with_all_that_hung_on_it() {
    run(async {
        let etcd = Etcd::start();
        let seat = Seat::take(Setup::on(&etcd.endpoint()));
        for task in ["1", "2"] {
            etcd.put(&job(task), "x");
        }
        etcd.until("both answered", |etcd| {
            record(etcd, "1").is_some() && record(etcd, "2").is_some()
        });
        let lease = etcd.ctl(&["lease", "list"]).lines().nth(1).unwrap().trim().to_owned();
        etcd.ctl(&["lease", "revoke", &lease]);
        etcd.until("all is there again", |etcd| {
            health(etcd).is_some() && record(etcd, "1").is_some() && record(etcd, "2").is_some()
        });
        assert_eq!(seat.lease_view().await.granted, 2);
        assert_eq!((etcd.leases(), seat.watcher_view().await.reads), (1, 1));
        assert_eq!(seat.heard(|heard| heard.log.len()), 3, "no job was touched");
    });
}

#[test]
fn tokens_that_expire_and_users_that_change_are_survived() {
    run(async {
        let mut etcd = Etcd::start_with(&["--auth-token-ttl=1", "--bcrypt-cost=4"]);
        for args in [
            &["user", "add", "root:secret"][..],
            &["user", "grant-role", "root", "root"],
            &["auth", "enable"],
        ] {
            etcd.ctl(args);
        }
        etcd.ctl_args = vec!["--user=root:secret".into()];
        let mut setup = Setup::on(&etcd.endpoint());
        setup.options.user = Some(User {
            name: "root".into(),
            password: "secret".into(),
        });
        let seat = Seat::take(setup.clone());
        etcd.put(&job("1"), "x");
        seat.hears(&["+/cron/jobs/10.0.0.1/1=x"]);
        // Nothing is asked for longer than a token lives: the next question finds it expired.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        etcd.put(&job("2"), "x");
        etcd.until("answered", |etcd| record(etcd, "2").is_some());
        etcd.restart(); // it forgets all tokens
        etcd.put(&job("3"), "x");
        seat.hears(&["+/cron/jobs/10.0.0.1/3=x"]);
        etcd.ctl(&["user", "add", "other:x"]); // the auth store has a new revision
        etcd.put(&job("4"), "x");
        etcd.until("answered", |etcd| record(etcd, "4").is_some());
        assert_eq!(
            seat.heard(|heard| heard.told.values().copied().collect::<Vec<_>>()),
            [1; 4]
        );

        setup.options.user = Some(User {
            name: "root".into(),
            password: "wrong".into(),
        });
        setup.ip = [10, 0, 0, 2];
        let wrong = Seat::take(setup);
        wrong
            .is("it says why", |lease, _| {
                lease
                    .trouble
                    .iter()
                    .any(|why| why.contains("the store refuses us") && why.contains("authentication failed"))
            })
            .await;
    });
}

#[test]
fn a_second_agent_at_the_address_runs_nothing_says_who_and_takes_over() {
    run(async {
        let etcd = Etcd::start();
        etcd.put(&job("1"), "x");
        let ttl = Duration::from_secs(2);
        let setup = |instance| Setup {
            instance,
            ttl,
            ..Setup::on(&etcd.endpoint())
        };
        let first = Seat::take(setup("a"));
        first.hears(&["full", "+/cron/jobs/10.0.0.1/1=x"]);
        let second = Seat::take(setup("b"));
        second
            .is("it says who", |lease, _| {
                matches!(lease.standing, Standing::Taken { .. })
                    && lease
                        .trouble
                        .iter()
                        .any(|why| why.contains("held by sky01 (instance a) on here") && why.contains("runs no jobs"))
            })
            .await;
        assert_eq!(second.log(), Vec::<String>::new());
        second.has("nothing may be started", |heard| {
            heard.refused.as_deref().is_some_and(|why| why.contains("instance a"))
        });
        assert_eq!(etcd.leases(), 1);
        first.kill();
        second.hears(&["full", "+/cron/jobs/10.0.0.1/1=x"]);
        second.has("it may", |heard| heard.refused.is_none());
        assert_eq!(health(&etcd).unwrap().instance, "b");
        // Its own former life is no stranger.
        let data = tempfile::tempdir().unwrap();
        second.kill();
        let third = Seat::at(setup("b"), data.path());
        third.hears(&["full", "+/cron/jobs/10.0.0.1/1=x"]);
    });
}

#[test]
fn without_etcd_at_the_start_the_jobs_of_the_last_time_go_on_for_whom_they_were() {
    run(async {
        let mut etcd = Etcd::start();
        let data = tempfile::tempdir().unwrap();
        for task in ["1", "2"] {
            etcd.put(&job(task), "x");
        }
        let setup = Setup::on(&etcd.endpoint());
        let seat = Seat::at(setup.clone(), data.path());
        seat.has("both are there", |heard| heard.table.len() == 2);
        etcd.put(&job("2"), "y");
        seat.hears(&["+/cron/jobs/10.0.0.1/2=y"]);
        etcd.until("remembered and answered", |etcd| {
            record(etcd, "2").is_some_and(|record| record.rev > 3)
        });
        seat.kill();
        etcd.kill();

        let seat = Seat::at(setup.clone(), data.path());
        let both = ["full", "+/cron/jobs/10.0.0.1/1=x", "+/cron/jobs/10.0.0.1/2=y"];
        seat.hears(&both);
        seat.is("it says that they are old", |lease, watcher| {
            watcher.stale.is_some() && !watcher.trouble.is_empty() && matches!(lease.standing, Standing::Away { .. })
        })
        .await;
        seat.has("they may run", |heard| heard.refused.is_none());
        etcd.resume();
        etcd.put(&job("3"), "z");
        seat.hears(&["+/cron/jobs/10.0.0.1/3=z"]);
        assert_eq!(seat.log().len(), 4, "what was the same is not touched");
        seat.kill();
        etcd.kill();

        // A clone of the data dir on another machine has another instance; another address is another host.
        for other in [
            Setup {
                instance: "clone",
                ..setup.clone()
            },
            Setup {
                ip: [10, 0, 0, 2],
                ..setup.clone()
            },
        ] {
            let seat = Seat::at(other, data.path());
            seat.is("it has looked", |_, watcher| watcher.stale.is_some()).await;
            assert_eq!(seat.log(), Vec::<String>::new());
        }
        let hold = Seat::at(Setup { hold: true, ..setup }, data.path());
        hold.has("all three are known", |heard| heard.table.len() == 3);
        hold.has("nothing may be started", |heard| {
            heard.refused.as_deref().is_some_and(|why| why.contains("on_partition"))
        });
    });
}

#[test]
fn at_its_quota_it_says_so_and_after_a_defragmentation_all_is_as_before() {
    run(async {
        let etcd = Etcd::start_with(&["--quota-backend-bytes=2097152"]);
        let seat = Seat::take(Setup::on(&etcd.endpoint()));
        etcd.put(&job("1"), "x");
        etcd.until("answered", |etcd| record(etcd, "1").is_some());
        let full = "x".repeat(100_000);
        let filler = etcd.dir.path().join("filler");
        std::fs::write(&filler, &full).unwrap();
        let fill = || {
            std::process::Command::new("sh")
                .args(["-c", "exec \"$1\" --endpoints=\"$2\" put filler < \"$3\"", "sh"])
                .arg(etcd.ctl_path())
                .arg(etcd.endpoint())
                .arg(&filler)
                .env("ETCDCTL_API", "3")
                .output()
                .unwrap()
        };
        let mut last = fill();
        while last.status.success() {
            last = fill();
        }
        assert!(
            String::from_utf8_lossy(&last.stderr).contains("space exceeded"),
            "{last:?}"
        );
        // Deletions are still taken; the answer to them, that is none any more, too. A change of state is not.
        etcd.delete(&job("1"));
        seat.hears(&["-/cron/jobs/10.0.0.1/1"]);
        use luffly_agent::{
            messages::jobs::{JobAnswer, JobStateChanged},
            model::{JobKey, JobState},
        };
        let answer = JobAnswer {
            key: JobKey::host("10.0.0.1", "7"),
            mod_revision: 3,
            cronid: 7,
            state: JobState::Failing,
            error: "exit 1".into(),
        };
        seat.watcher.send(JobStateChanged(answer)).await.unwrap();
        seat.is("it says so", |_, watcher| {
            watcher.trouble.iter().any(|why| why.contains("no space left"))
        })
        .await;
        seat.is("the lease lives", |lease, _| {
            matches!(lease.standing, Standing::Held { .. })
        })
        .await;
        etcd.compact();
        etcd.ctl(&["defrag"]);
        etcd.ctl(&["alarm", "disarm"]);
        etcd.until("it is written", |etcd| {
            record(etcd, "7").is_some_and(|record| record.state == "failing")
        });
        seat.is("all is well", |lease, watcher| {
            lease.trouble.is_empty() && watcher.trouble.is_empty()
        })
        .await;
        etcd.put(&job("2"), "y");
        seat.hears(&["+/cron/jobs/10.0.0.1/2=y"]);
        assert_eq!(seat.lease_view().await.granted, 1);
    });
}

#[test]
fn a_command_is_done_once_and_one_put_while_it_was_away_is_not() {
    run(async {
        let etcd = Etcd::start();
        let seat = Seat::take(Setup::on(&etcd.endpoint()));
        seat.hears(&["full"]);
        let at = |seconds: i64| {
            let now = luffly_agent::clock::system().wall().as_second();
            now + seconds
        };
        let command = |task: u32, expires: i64| format!(r#"{{"action":"run","task_id":{task},"expires":{expires}}}"#);
        let answer = |id: &str| -> Option<Answer> {
            etcd.get(&format!("/cron/results/10.0.0.1/{id}"))
                .map(|value| keys::read(value.as_bytes()))
        };
        let put = |id: &str, value: &str, lease: &str| {
            etcd.ctl(&[
                "put",
                &format!("--lease={lease}"),
                &format!("/cron/commands/10.0.0.1/{id}"),
                value,
            ]);
        };
        let grant = |seconds: &str| {
            etcd.ctl(&["lease", "grant", seconds])
                .split(' ')
                .nth(1)
                .unwrap()
                .to_owned()
        };
        put("c1", &command(17, at(60)), &grant("60"));
        until("answered", || answer("c1").is_some_and(|answer| answer.state == "done"));
        let done = answer("c1").unwrap();
        assert_eq!(
            (&*done.said, done.runs.len(), &done.runs[0]),
            ("done as asked", 1, &done.run_id)
        );
        assert_eq!(etcd.keys("/cron/commands/"), Vec::<String>::new());

        let data = seat.data.clone();
        let kept = tempfile::tempdir().unwrap();
        seat.kill();
        let short = grant("1");
        put("gone", &command(18, at(60)), &short);
        put("late", &command(19, at(-6)), &grant("60"));
        put("good", &command(20, at(60)), &grant("60"));
        etcd.until("it has gone unclaimed", |etcd| {
            !etcd.keys("/cron/commands/").iter().any(|key| key.ends_with("gone"))
        });
        drop(data);
        let seat = Seat::at(Setup::on(&etcd.endpoint()), kept.path());
        until("both are answered", || {
            answer("late").is_some() && answer("good").is_some_and(|answer| answer.state == "done")
        });
        assert_eq!(answer("late").unwrap().state, "expired");
        assert_eq!(answer("gone"), None);
        let tasks = seat.heard(|heard| {
            heard
                .commands
                .iter()
                .map(|command| command.task_id.clone())
                .collect::<Vec<_>>()
        });
        assert_eq!(tasks, ["20"]);
    });
}

#[test]
fn three_members_and_one_killed_hold_nobody_up() {
    run(async {
        let mut cluster = Etcd::cluster();
        let mut setup = Setup {
            group: Some("web"),
            ..Setup::on("")
        };
        setup.options.endpoints = cluster.iter().map(Etcd::endpoint).collect();
        let seat = Seat::take(setup);
        cluster[1].put(&job("1"), "x");
        cluster[1].put("/cron/groups/web/jobs/g", "y");
        // Two watches, and etcd promises an order within one only.
        seat.has("both are there", |heard| heard.table.len() == 2);
        for killed in 0..3 {
            cluster[killed].kill();
            let alive = (killed + 1) % 3;
            let task = format!("k{killed}");
            until("the others have elected one", || {
                cluster[alive].ctl_try(&["put", &job(&task), "z"]).is_some()
            });
            seat.has("it is heard", |heard| heard.table.contains_key(&job(&task)));
            until("it is answered", || record(&cluster[alive], &task).is_some());
            cluster[killed].resume();
        }
        seat.heard(|heard| assert_eq!(heard.told.values().copied().max(), Some(1)));
        for etcd in &cluster {
            assert!(etcd.connections_of(std::process::id()) <= 1);
        }
    });
}
