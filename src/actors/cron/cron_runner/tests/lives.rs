//! Past a restart, a kill and a stop; in short; and with real processes.
use super::*;

/// BEHAVIOUR 97, the runner's part.
#[actix_rt::test]
async fn a_once_job_is_marked_and_runs_once() {
    let database = Arc::new(Database::builder().create_with_backend(InMemoryBackend::new()).unwrap());
    let value = r#"{"cmd": "date", "type": "once"}"#;
    let key = JobKey::host("10.0.0.1", "17");
    let house = House::on(
        database.clone(),
        BEGIN,
        |_| {},
        Claimed::Granted,
        OnceMarked::NoStore("away".into()),
    )
    .await;
    house.put_as(key.clone(), value, 1).await;
    house.until_heard(1).await;
    house.pass(Duration::from_secs(6)).await;
    assert_eq!(
        house.until_heard(2).await,
        ["once 17 1", "once 17 1"],
        "it waits for the store"
    );
    assert_eq!(house.started(), 0);
    house.runner.send(Drain).await.unwrap(); // two houses at one disk: the first is done with it
    let house = House::on(database.clone(), BEGIN, |_| {}, Claimed::Granted, OnceMarked::Marked).await;
    house.put_as(key.clone(), value, 1).await;
    house.until_started(1).await;
    house.end(0, ok()).await;
    assert_eq!(house.runs().await[0].cause.word(), "once");
    house
        .put_as(key.clone(), &value.replace("}", r#", "status": "running"}"#), 2)
        .await;
    house.pass(Duration::from_secs(60)).await;
    house.runner.send(Drain).await.unwrap();
    // And not after a restart, nor where the store knows better than a lost data dir.
    let house = House::on(database, BEGIN, |_| {}, Claimed::Granted, OnceMarked::Marked).await;
    house.put_as(key.clone(), value, 3).await;
    house.pass(Duration::from_secs(60)).await;
    assert_eq!((house.started(), house.heard().len()), (0, 0));
    let house = House::with(|_| {}, Claimed::Granted, OnceMarked::Already).await;
    house.put_as(key.clone(), value, 3).await;
    house.until_heard(1).await;
    house.pass(Duration::from_secs(60)).await;
    assert_eq!((house.started(), house.heard().len()), (0, 1));
    let house = House::with(|_| {}, Claimed::Granted, OnceMarked::TooYoung).await;
    house.put_as(key, value, 3).await;
    house.until_heard(1).await;
    while house.states().await != ["skipped(this host was not there when the job was put)"] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
/// BEHAVIOUR 86, the runner's part: a fresh runner on the same disk.
#[actix_rt::test]
async fn runs_of_a_killed_agent_are_lost_and_not_run_again() {
    let database = Arc::new(Database::builder().create_with_backend(InMemoryBackend::new()).unwrap());
    let house = House::on(database.clone(), BEGIN, |_| {}, Claimed::Granted, OnceMarked::Marked).await;
    house.put("17", "").await;
    house.minute().await;
    house.until_started(1).await;
    let again = House::on(
        database,
        "2024-01-15T10:01:10Z",
        |_| {},
        Claimed::Granted,
        OnceMarked::Marked,
    )
    .await;
    again.put("17", "").await;
    again.look().await;
    assert_eq!((again.states().await, again.started()), (vec!["lost".to_owned()], 0));
}
#[actix_rt::test]
async fn a_stop_waits_or_kills_as_the_job_says() {
    let house = House::new().await;
    house.put("waits", "").await;
    house.put("dies", r#", "on_agent_stop": "kill""#).await;
    house.put("jitters", r#", "jitter": "1h""#).await;
    house.minute().await;
    house.until_started(2).await;
    let drained = house.runner.send(Drain);
    tokio::pin!(drained);
    let waits = house
        .fake
        .runs
        .lock()
        .unwrap()
        .iter()
        .position(|run| run.order.task_id == "waits")
        .unwrap();
    assert!(tokio::time::timeout(Duration::ZERO, drained.as_mut()).await.is_err());
    house.end(waits, ok()).await;
    drained.await.unwrap();
    let mut states = house
        .runs()
        .await
        .iter()
        .map(|run| format!("{} {}", run.job.task_id, run.state))
        .collect::<Vec<_>>();
    states.sort();
    assert_eq!(
        states,
        [
            "dies killed(the agent's stop)",
            "jitters skipped(the agent stops)",
            "waits succeeded"
        ]
    );
    house.minute().await;
    assert_eq!(house.started(), 2, "nothing new after that");
}
#[actix_rt::test]
async fn a_stop_kills_who_stays_too_long() {
    let house = House::with(
        |parts| parts.drain = Duration::from_millis(100),
        Claimed::Granted,
        OnceMarked::Marked,
    )
    .await;
    house.put("17", "").await;
    house.minute().await;
    house.until_started(1).await;
    house.runner.send(Drain).await.unwrap();
    assert_eq!(house.states().await, ["killed(the agent's stop)"]);
}
#[actix_rt::test]
async fn how_the_jobs_do_in_short() {
    let house = House::new().await;
    house.put("a", "").await;
    house.minute().await;
    house.until_started(1).await;
    house.end(0, ok()).await;
    house.command(Action::Pause, "a").await;
    house.put("b", "").await;
    house.put_as(JobKey::host("10.0.0.1", "c"), "}", 1).await;
    house.minute().await;
    house.until_started(2).await;
    house.end(1, failed()).await;
    let summary = house.runner.send(AskSummary { most: 1 }).await.unwrap();
    let last = summary
        .last
        .iter()
        .map(|record| &*record.job.task_id)
        .collect::<Vec<_>>();
    assert_eq!((last, summary.left_out), (vec!["b"], 1), "who fails comes first");
    let counts = [
        summary.jobs,
        summary.paused,
        summary.invalid,
        summary.failing,
        summary.present,
    ];
    assert_eq!(counts, [3, 1, 1, 1, 0]);
}
#[actix_rt::test]
async fn jobs_may_be_off() {
    let house = House::with(|parts| parts.enabled = false, Claimed::Granted, OnceMarked::Marked).await;
    house.put("17", "").await;
    house.minute().await;
    assert_eq!((house.states().await.len(), house.started()), (0, 0));
    assert_eq!(
        house.command(Action::Run, "17").await.said,
        "jobs are off here: [jobs] enabled = false"
    );
}
/// Real processes, to the end.
#[actix_rt::test]
async fn from_the_instant_to_a_process() {
    let processes = |parts: &mut CronRunnerParts| parts.launcher = Arc::new(Processes { cgroups: true });
    let house = House::with(processes, Claimed::Granted, OnceMarked::Marked).await;
    let value = r#"{"cmd": "echo here; exit 5", "express": "* * * * *"}"#;
    house.put_as(JobKey::host("10.0.0.1", "17"), value, 1).await;
    house.minute().await;
    assert_eq!(house.until_heard(1).await, ["17 failing failed(5)"]);
    let [run] = &house.runs().await[..] else {
        panic!("one run")
    };
    assert_eq!((run.state.to_string().as_str(), run.output_bytes), ("failed(5)", 5));
    assert!(run.pid.is_some() && run.tree.is_some());
    let view = house
        .runner
        .send(AskOutput {
            run_id: run.run_id,
            from: 0,
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!((view.bytes.as_slice(), view.ended), (&b"here\n"[..], true));
}
