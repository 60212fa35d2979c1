//! From an instant, or an order, to a run.
use super::*;

#[actix_rt::test]
async fn an_instant_becomes_a_run_with_its_record() {
    let house = House::new().await;
    house
        .put(
            "17",
            r#", "args": ["a"], "env": {"A": "1"}, "dir": "/tmp", "timeout": "1m""#,
        )
        .await;
    house.minute().await;
    house.until_started(1).await;
    let order = house.fake.runs.lock().unwrap()[0].order.clone();
    assert_eq!(
        (order.program.as_str(), order.args.join(" ").as_str()),
        ("bash", "-c date bash a")
    );
    assert_eq!(
        (order.task_id.as_str(), order.fire_time.as_str()),
        ("17", "2024-01-15T10:01:00Z")
    );
    assert_eq!(
        (order.env, order.dir.as_deref(), order.timeout),
        (
            vec![("A".into(), "1".into())],
            Some("/tmp"),
            Some(Duration::from_secs(60))
        )
    );
    let said = |from| {
        house.runner.send(AskOutput {
            run_id: house.run_id(0),
            from,
        })
    };
    let view = said(5).await.unwrap().unwrap();
    assert_eq!((view.bytes.as_slice(), view.from, view.ended), (&b"17\n"[..], 5, false));
    house.end(0, ok()).await;
    let view = said(5).await.unwrap().unwrap();
    assert_eq!((view.bytes.as_slice(), view.from, view.ended), (&b"17\n"[..], 5, true));
    let [run] = &house.runs().await[..] else {
        panic!("one run")
    };
    assert_eq!((run.state.word(), run.output_bytes, run.attempt), ("succeeded", 8, 1));
    let views = house.runner.send(AskJobs).await.unwrap();
    assert_eq!(views[0].last.as_ref().map(|last| last.run_id), Some(run.run_id));
    assert_eq!(views[0].next, Some("2024-01-15T10:02:00Z".parse().unwrap()));
    assert!(house.heard().is_empty(), "never told once a run");
    assert_eq!(house.pulse.word(), "running");
}
/// BEHAVIOUR 82.
#[actix_rt::test]
async fn a_malformed_job_is_shown_and_the_others_go_on() {
    let house = House::new().await;
    let huge = format!(r#"{{"cmd": "{}"}}"#, "x".repeat(1 << 20));
    for (n, value) in [
        "no json",
        "[]",
        r#"{"cmd": 1}"#,
        r#"{"cmd": "x", "express": "* 25 * * *"}"#,
        &huge,
    ]
    .iter()
    .enumerate()
    {
        let (state, error) = house
            .put_as(JobKey::host("10.0.0.1", format!("bad{n}")), value, 1)
            .await;
        assert!(state == JobState::Invalid && error.contains("accepted: "), "{error}");
        let shown = house.runner.send(AskWhyJob(format!("bad{n}"))).await.unwrap().unwrap();
        assert_eq!(shown, format!("job bad{n} is invalid: {error}"));
    }
    house.put("17", "").await;
    house.minute().await;
    house.until_started(1).await;
    assert_eq!(house.fake.runs.lock().unwrap()[0].order.task_id, "17");
    house.put("bad3", "").await;
    house.minute().await;
    house.until_started(2).await;
}
/// BEHAVIOUR 85.
#[actix_rt::test]
async fn who_was_frozen_for_longer_than_its_lease_has_word_before_it_starts_anything() {
    let sign = Sign::new(Duration::from_secs(30));
    let house = House::with(|parts| parts.sign = sign.clone(), Claimed::Granted, OnceMarked::Marked).await;
    sign.note(house.clock.steady());
    house.put("17", "").await;
    house.minute().await; // 30 s: it may be as late as that
    house.until_started(1).await;
    house.end(0, ok()).await;
    house.minute().await;
    house.look().await;
    assert_eq!(house.started(), 1, "60 s later nobody has said how it stands");
    sign.note(house.clock.steady());
    house.look().await;
    house.until_started(2).await;
}
#[actix_rt::test]
async fn overlap_does_what_it_says() {
    for (overlap, starts, states) in [
        ("skip", 1, vec!["running", "skipped(overlap)", "skipped(overlap)"]),
        ("queue", 1, vec!["running", "queued", "skipped(the queue is full)"]),
        ("parallel", 3, vec!["running", "running", "running"]),
        (
            "replace",
            3,
            vec![
                "killed(the run that replaces it)",
                "killed(the run that replaces it)",
                "running",
            ],
        ),
    ] {
        let house = House::new().await;
        house.put("17", &format!(r#", "overlap": "{overlap}""#)).await;
        for n in 1..=3 {
            house.minute().await;
            house.until_started(starts.min(n)).await;
        }
        assert_eq!(house.states().await, states, "{overlap}");
        if overlap == "queue" {
            house.end(0, ok()).await;
            house.until_started(2).await;
            assert_eq!(house.states().await[..2], ["succeeded", "running"]);
        }
    }
}
#[actix_rt::test]
async fn a_queued_run_that_waited_too_long_is_missed() {
    let house = House::new().await;
    house.put("17", r#", "overlap": "queue""#).await;
    house.minute().await;
    house.until_started(1).await;
    house.minute().await;
    house.pass(TOO_LATE + Duration::from_secs(2)).await;
    house.end(0, ok()).await;
    house.look().await;
    let states = house.states().await;
    assert_eq!(states[..2], ["succeeded", "missed(1)"], "{states:?}");
}
#[actix_rt::test]
async fn so_many_at_one_time() {
    let house = House::with(|parts| parts.max_parallel = 2, Claimed::Granted, OnceMarked::Marked).await;
    for task in ["a", "b", "c", "d"] {
        house.put(task, "").await;
    }
    house.minute().await;
    house.until_started(2).await;
    let mut states = house.states().await;
    states.sort();
    assert_eq!(states, ["queued", "queued", "running", "running"]);
    house.end(1, ok()).await;
    house.until_started(3).await;
    house.end(0, ok()).await;
    house.until_started(4).await;
}
#[actix_rt::test]
async fn what_fails_is_tried_again_until_the_next_instant() {
    let house = House::new().await;
    house.put("17", r#", "retries": 5, "retry_wait": "10s""#).await;
    house.minute().await;
    house.until_started(1).await;
    house.end(0, failed()).await;
    house.pass(Duration::from_secs(9)).await;
    assert_eq!(house.started(), 1);
    house.pass(Duration::from_secs(1)).await;
    house.until_started(2).await;
    house.end(1, failed()).await;
    house.pass(Duration::from_secs(20)).await;
    house.until_started(3).await;
    // 40 s more would be past the next instant.
    house.end(2, failed()).await;
    assert_eq!(house.until_heard(1).await, ["17 failing failed(3)"]);
    let runs = house.runs().await;
    assert_eq!(runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(runs.iter().filter(|run| run.planned != runs[0].planned).count(), 0);
    // Good again; and told once each way.
    house.minute().await;
    house.until_started(4).await;
    house.end(3, ok()).await;
    assert_eq!(house.until_heard(2).await, ["17 failing failed(3)", "17 ok "]);
}
#[actix_rt::test]
async fn a_retry_that_succeeds_was_no_failure() {
    let house = House::new().await;
    house.put("17", r#", "retries": 1"#).await;
    house.minute().await;
    house.until_started(1).await;
    house.end(0, End::NotStarted("no".into())).await;
    house.pass(Duration::from_secs(2)).await;
    house.until_started(2).await;
    house.end(1, ok()).await;
    house.look().await;
    assert_eq!(house.states().await, ["failed", "succeeded"]);
    assert!(house.heard().is_empty());
}
#[actix_rt::test]
async fn orders_are_answered() {
    let house = House::new().await;
    house.put("17", "").await;
    let run = house.command(Action::Run, "17").await;
    assert_eq!((run.done, run.said.as_str(), run.run_ids.len()), (true, "started", 1));
    house.until_started(1).await;
    let again = house.command(Action::Run, "17").await;
    assert_eq!(
        (again.done, again.said.as_str()),
        (false, "a run of the job is present, and its overlap is skip")
    );
    let killed = house.command(Action::Kill, "17").await;
    assert_eq!((killed.done, killed.run_ids), (true, run.run_ids));
    while house.states().await != ["killed(test)"] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(
        house.command(Action::Kill, "17").await.said,
        "no run of `17` is present"
    );
    for action in [Action::Run, Action::Kill, Action::Pause, Action::Resume] {
        let answer = house.command(action, "18").await;
        assert_eq!((answer.done, answer.said.as_str()), (false, "there is no job `18`"));
    }
    assert_eq!(
        house.command(Action::Pause, "17").await.said,
        "paused; a present run goes on"
    );
    assert_eq!(house.command(Action::Pause, "17").await.said, "it was paused already");
    house.minute().await;
    assert!(house.command(Action::Run, "17").await.done, "paused, it runs by order");
    house.until_started(2).await;
    house.end(1, ok()).await;
    assert_eq!(house.command(Action::Resume, "17").await.said, "resumed");
    house.minute().await;
    house.until_started(3).await;
    assert_eq!(house.until_heard(2).await, ["17 paused ", "17 ok "]);
    let why = house.runner.send(AskWhyJob("17".into())).await.unwrap().unwrap();
    assert_eq!(why, "job 17 runs now, or waits to (1 present); its last run: succeeded");
    let detail = house
        .runner
        .send(AskJob {
            group: None,
            task_id: "17".into(),
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(detail.next.len(), 5);
    let check = |value: &str| CheckJob {
        group: None,
        task_id: "x".into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    assert_eq!(house.runner.send(check("{}")).await.unwrap().unwrap_err().field, "cmd");
    assert_eq!(
        house
            .runner
            .send(check(r#"{"cmd": "x", "express": "@daily"}"#))
            .await
            .unwrap()
            .unwrap()
            .len(),
        5
    );
}
#[actix_rt::test]
async fn what_waits_ends_with_its_job() {
    let house = House::new().await;
    house.put("17", r#", "overlap": "queue""#).await;
    house.minute().await;
    house.until_started(1).await;
    house.minute().await;
    let gone = JobsChanged {
        full: false,
        put: vec![],
        removed: vec![JobKey::host("10.0.0.1", "17")],
    };
    house.runner.send(gone).await.unwrap();
    assert_eq!(house.states().await, ["running", "skipped(the job is gone)"]);
    house.end(0, ok()).await;
    assert_eq!(house.states().await, ["succeeded", "skipped(the job is gone)"]);
}
#[actix_rt::test]
async fn nothing_fires_while_it_may_not() {
    let house = House::new().await;
    house.put("17", "").await;
    let refused = Some("10.0.0.1 is held by another".to_owned());
    house.runner.send(MayFire { refused }).await.unwrap();
    house.clock.advance(Duration::from_secs(30));
    house
        .runner
        .send(MayFire {
            refused: Some("still".into()),
        })
        .await
        .unwrap();
    assert_eq!(house.states().await, ["skipped(still)"]);
    house.minute().await;
    house.until_started(1).await;
}
/// BEHAVIOUR 91, the runner's part.
#[actix_rt::test]
async fn an_exclusive_firing_is_claimed_first() {
    let value = r#"{"cmd": "date", "express": "* * * * *", "exclusive": true, "retries": 1}"#;
    let key = JobKey::group("web", "17");
    for (claim, states) in [
        (Claimed::Taken("another".into()), vec![]),
        (Claimed::NoStore("away".into()), vec!["skipped(no claim)"]),
    ] {
        let house = House::with(|_| {}, claim, OnceMarked::Marked).await;
        house.put_as(key.clone(), value, 1).await;
        house.minute().await;
        house.until_heard(1).await;
        house.look().await;
        house.look().await;
        assert_eq!(
            (house.states().await, house.started()),
            (states.into_iter().map(str::to_owned).collect(), 0)
        );
    }
    let house = House::new().await;
    house.put_as(key, value, 1).await;
    house.minute().await;
    house.until_started(1).await;
    house.end(0, failed()).await;
    house.pass(Duration::from_secs(2)).await;
    house.until_started(2).await;
    house.end(1, ok()).await;
    // Held from try to try, released once.
    assert_eq!(
        house.until_heard(2).await,
        ["claim 17 2024-01-15T10:01:00Z", "release 17"]
    );
}
/// BEHAVIOUR 90, the runner's part: a signature counts not a moment longer than it says, whatever waits.
#[actix_rt::test]
async fn a_job_whose_signature_has_ended_starts_no_more() {
    let house = House::new().await;
    let key = JobKey::host("10.0.0.1", "17");
    let signed = |not_after: &str| Signed::Until {
        serial: 1,
        not_after: not_after.parse().unwrap(),
    };
    let value = r#"{"cmd": "date", "express": "* * * * *", "overlap": "queue"}"#;
    let until = signed("2024-01-15T10:02:30Z");
    let put = house.put_signed(key.clone(), value, 1, until.clone()).await;
    assert_eq!(put, (JobState::Ok, String::new()));
    house.minute().await;
    house.until_started(1).await;
    house.minute().await; // 10:02 waits behind
    house.minute().await;
    let ended =
        "`signature`: found not_after 2024-01-15T10:02:30Z, which has passed, accepted: a value that is signed anew";
    assert_eq!(house.until_heard(1).await, [format!("17 invalid {ended}")]);
    assert_eq!(house.states().await, ["running", "skipped(invalid)"]);
    let why = house.runner.send(AskWhyJob("17".into())).await.unwrap();
    assert_eq!(why, Some(format!("job 17 is invalid: {ended}")));
    assert_eq!(house.runner.send(AskJobs).await.unwrap()[0].error, ended);
    let answer = house.command(Action::Run, "17").await;
    assert_eq!(answer.said, format!("the job is invalid: {ended}"));
    house.end(0, ok()).await;
    house.pass(Duration::from_secs(3600)).await;
    assert_eq!(house.started(), 1);

    // It had been set forward: what is signed until later counts again, and was not missed.
    house.clock.set_wall("2024-01-15T10:02:10Z".parse().unwrap());
    house.look().await;
    assert_eq!(house.until_heard(2).await[1], "17 ok ");
    assert_eq!(house.command(Action::Run, "17").await.said, "started");
    house.until_started(2).await;
    // By order, behind the present run, and it ends too late for it.
    assert_eq!(
        house.command(Action::Run, "17").await.said,
        "queued behind the present run"
    );
    house.pass(Duration::from_secs(21)).await;
    house.until_heard(3).await;
    house.end(1, ok()).await;
    house.look().await;
    let ended_too_soon = "skipped(the signature of the job has ended)".to_owned();
    while !house.states().await.contains(&ended_too_soon) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(house.started(), 2);
    // Signed anew it goes on.
    let put = house.put_signed(key, value, 2, signed("2024-01-16T00:00:00Z")).await;
    assert_eq!(put, (JobState::Ok, String::new()));
    house.minute().await;
    house.until_started(3).await;
}
/// What was refused is taken on when it is judged anew, though nothing else of it has changed; and the other way round.
#[actix_rt::test]
async fn another_verdict_makes_another_job() {
    let house = House::new().await;
    let key = JobKey::host("10.0.0.1", "17");
    let value = r#"{"cmd": "date", "express": "* * * * *"}"#;
    let refused = Signed::Refused(Box::new(crate::model::Invalid {
        field: "signature".into(),
        found: "none".into(),
        accepted: "one".into(),
    }));
    let good = Signed::Until {
        serial: 1,
        not_after: "2024-01-16T00:00:00Z".parse().unwrap(),
    };
    let why = "`signature`: found none, accepted: one".to_owned();
    let put = async |signed: &Signed| house.put_signed(key.clone(), value, 1, signed.clone()).await;
    assert_eq!(put(&refused).await, (JobState::Invalid, why.clone()));
    house.minute().await;
    assert_eq!(put(&good).await, (JobState::Ok, String::new()));
    house.minute().await;
    house.until_started(1).await;
    assert_eq!(put(&refused).await, (JobState::Invalid, why));
    house.minute().await;
    assert_eq!(house.started(), 1);
}
