use std::time::Instant;

use super::*;

fn order(script: &str) -> Order {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    Order {
        run_id: format!("TEST{}N{}", std::process::id(), NEXT.fetch_add(1, SeqCst)),
        task_id: "17".into(),
        fire_time: "2024-01-15T10:25:00Z".into(),
        program: "bash".into(),
        args: ["-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        dir: Some("/".into()),
        user: None,
        timeout: None,
        kill_after: Duration::from_millis(200),
        leave_children: false,
    }
}
struct Ran {
    outcome: Outcome,
    output: String,
    total: u64,
    started: Option<Started>,
}
async fn run_with(order: Order, cgroups: bool, stop: watch::Receiver<Option<Stop>>, limit: u64) -> Ran {
    os::become_subreaper();
    let (tell, started) = oneshot::channel();
    let capture = SharedCapture::new(limit);
    let outcome = Processes { cgroups }.launch(order, capture.clone(), stop, tell).await;
    let kept = capture.lock().kept();
    Ran {
        outcome,
        output: String::from_utf8([kept.head, kept.tail].concat()).unwrap(),
        total: kept.total,
        started: started.await.ok(),
    }
}
async fn ran(order: Order) -> Ran {
    let (_stop, never) = watch::channel(None);
    run_with(order, true, never, 64 << 10).await
}
/// Of that run, by its environment.
fn alive(run_id: &str) -> usize {
    tree::survivors(&[run_id.to_owned()])
        .iter()
        .map(|(_, members)| members.len())
        .sum()
}
/// Waits for something that another process does.
async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_run_finds_and_says() {
    let mut order = order(
        "echo out; echo err >&2; pwd; echo $A $AGENT_TASK_ID $AGENT_RUN_ID $AGENT_FIRE_TIME; [ -n \"$PATH$HOME$USER$SHELL$LANG\" ] && ls -l /proc/self/fd/0 | sed 's/.*> //'; ps -o sid= -p $$ | grep -c \"\\b$$\\b\"; exit 3",
    );
    order.env = vec![("A".into(), "x y".into()), ("B".into(), String::new())];
    order.dir = Some("/tmp".into());
    let run_id = order.run_id.clone();
    let ran = ran(order).await;
    assert_eq!(
        ran.output,
        format!("out\nerr\n/tmp\nx y 17 {run_id} 2024-01-15T10:25:00Z\n/dev/null\n1\n")
    );
    assert_eq!(
        ran.outcome,
        Outcome {
            end: End::Exited(Exit::Code(3)),
            unkillable: vec![]
        }
    );
    let started = ran.started.unwrap();
    assert!(
        os::process(started.pid).is_none_or(|proc| proc.started != started.pid_started),
        "no zombie is left"
    );
}
#[tokio::test]
async fn a_signal_is_told_from_a_code() {
    assert_eq!(ran(order("kill -9 $$")).await.outcome.end, End::Exited(Exit::Signal(9)));
}
/// BEHAVIOUR 89.
#[tokio::test]
async fn who_cannot_be_started_says_why() {
    for (change, why) in [
        (
            (|order| order.user = Some("no-such-user".into())) as fn(&mut Order),
            "there is no user `no-such-user`",
        ),
        (
            |order| order.dir = Some("/no/such/dir".into()),
            "could not enter the directory `/no/such/dir`: No such file or directory (os error 2)",
        ),
        (
            |order| order.dir = Some("/etc/passwd".into()),
            "`/etc/passwd` is no directory",
        ),
        (
            |order| order.program = "no-such-program".into(),
            "there is no program `no-such-program` in PATH",
        ),
        (
            |order| order.program = "/no/program".into(),
            "there is no program `/no/program`",
        ),
        (
            |order| order.program = "/etc/passwd".into(),
            "could not start `/etc/passwd` in /: Permission denied (os error 13)",
        ),
    ] {
        let mut order = order("true");
        change(&mut order);
        let ran = ran(order).await;
        assert_eq!(ran.outcome.end, End::NotStarted(why.into()));
        assert_eq!(ran.started, None);
    }
}
#[tokio::test]
async fn as_another_user() {
    let mut order = order("id -un; id -G; echo $HOME $USER $PATH");
    order.user = Some("nobody".into());
    let ran = ran(order).await;
    if !os::is_root() {
        assert_eq!(
            ran.outcome.end,
            End::NotStarted("only root can run a job as `nobody`".into())
        );
        return;
    }
    let nobody = User::named("nobody").unwrap().unwrap();
    let mut groups = nobody.groups.clone();
    groups.sort_unstable();
    let shown = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(
        ran.output,
        format!(
            "nobody\n{shown}\n{} nobody /usr/local/bin:/usr/bin:/bin\n",
            nobody.home.display()
        )
    );
}

/// BEHAVIOUR 83, with a cgroup where one can be made, and by the sweep.
#[tokio::test]
async fn nothing_is_left_of_a_job_that_does_all_to_stay() {
    for cgroups in [true, false] {
        let mut order = order(
            "trap '' TERM; echo begun; \
             setsid bash -c \"trap '' TERM; echo one; exec sleep 100\" & \
             (trap '' TERM; (setsid bash -c \"trap '' TERM HUP; echo two; sleep 100; sleep 100\" &) ) & \
             env -i setsid bash -c \"trap '' TERM; echo three; while :; do sleep 100; done\" & \
             bash -c \"trap '' TERM; echo four; while :; do sleep 100; done\"; sleep 100",
        );
        order.kill_after = Duration::from_millis(300);
        let run_id = order.run_id.clone();
        let (stop, asked) = watch::channel(None);
        let capture = SharedCapture::new(64 << 10);
        let (tell, started) = oneshot::channel();
        os::become_subreaper();
        let run = tokio::spawn(Processes { cgroups }.launch(order, capture.clone(), asked, tell));
        until(|| capture.lock().total() == "begun one two three four ".len() as u64).await;
        let pid = started.await.unwrap().pid;
        let before = os::processes().iter().filter(|proc| proc.session == pid).count();
        assert!(before >= 1 && alive(&run_id) >= 3, "{before} of its session");
        stop.send_replace(Some(Stop::Kill("test".into())));
        let killed = Instant::now();
        let outcome = run.await.unwrap();
        assert_eq!(
            outcome,
            Outcome {
                end: End::Killed("test".into()),
                unkillable: vec![]
            }
        );
        assert!(
            killed.elapsed() >= Duration::from_millis(300),
            "SIGKILL came before kill_after"
        );
        assert_eq!(alive(&run_id), 0, "cgroups: {cgroups}");
        let left = os::processes()
            .into_iter()
            .filter(|proc| proc.session == pid)
            .collect::<Vec<_>>();
        assert_eq!(left, [], "cgroups: {cgroups}");
        let mut said = String::from_utf8(capture.lock().kept().head)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        said.sort();
        assert_eq!(said, ["begun", "four", "one", "three", "two"]);
    }
}
#[tokio::test]
async fn a_timeout_asks_first() {
    let mut order = order("trap 'echo asked; exit 0' TERM; echo begun; while :; do sleep 0.01; done");
    order.timeout = Some(Duration::from_millis(300));
    order.kill_after = Duration::from_secs(60);
    let ran = ran(order).await;
    assert_eq!(ran.outcome.end, End::TimedOut);
    assert!(
        ran.output.starts_with("begun\n") && ran.output.ends_with("asked\n"),
        "{}",
        ran.output
    );
}
#[tokio::test]
async fn children_left_behind_end_with_the_leader() {
    for cgroups in [true, false] {
        let order = order("(sleep 100; echo never) & echo here");
        let run_id = order.run_id.clone();
        let (_stop, never) = watch::channel(None);
        let ran = run_with(order, cgroups, never, 64 << 10).await;
        assert_eq!(
            (ran.outcome.end, ran.output.as_str()),
            (End::Exited(Exit::Code(0)), "here\n")
        );
        assert_eq!(
            ran.started.map(|started| started.tree == Tree::Sweep),
            Some(!cgroups || Cgroup::make("probe").map(|(c, _)| c.remove()).is_none())
        );
        assert_eq!(alive(&run_id), 0);
    }
}
#[tokio::test]
async fn children_may_be_left_on_purpose() {
    let mut order = order("setsid bash -c 'echo $$; sleep 0.2; echo more; sleep 100' & echo here");
    order.leave_children = true;
    let run_id = order.run_id.clone();
    let ran = ran(order).await;
    assert_eq!(ran.outcome.end, End::Exited(Exit::Code(0)));
    let left = tree::survivors(std::slice::from_ref(&run_id));
    assert!(!left.is_empty() && ran.output.contains("here\n"));
    // It wrote to the pipe meanwhile, and lives.
    let tree = Arc::new(RunTree::left(&run_id));
    assert_eq!(tree::end(&tree, Duration::from_secs(5)).await, Vec::<i32>::new());
    assert_eq!(alive(&run_id), 0);
}
/// BEHAVIOUR 84, with an eighth of it.
#[tokio::test]
async fn output_without_end_is_bounded() {
    let order = order("echo first; head -c 134217728 /dev/zero | tr '\\0' x; echo; echo last");
    let (_stop, never) = watch::channel(None);
    let ran = run_with(order, true, never, 1000).await;
    assert_eq!(ran.total, 6 + (128 << 20) + 1 + 5);
    assert_eq!(ran.output.len(), 1000);
    assert!(ran.output.starts_with("first\nxxx") && ran.output.ends_with("xxx\nlast\n"));
}
/// BEHAVIOUR 100: whatever hangs in a start hangs alone, and is not started later.
#[tokio::test]
async fn a_start_that_hangs_is_given_up() {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (tell, told) = oneshot::channel();
    let hung = within(
        Duration::from_millis(50),
        move |_| {
            wait.recv().map_err(|error| error.to_string())?;
            Ok(7)
        },
        move |late| tell.send(late).unwrap(),
    );
    assert_eq!(hung.await, Err("could not be started within 50ms".into()));
    go_on.send(()).unwrap();
    assert_eq!(
        told.await,
        Ok(7),
        "what it started after all is handed over to be ended"
    );
}
#[tokio::test]
async fn a_left_run_lives_on() {
    let order = order("echo here; sleep 100");
    let run_id = order.run_id.clone();
    let (stop, asked) = watch::channel(None);
    let (tell, started) = oneshot::channel();
    let capture = SharedCapture::new(100);
    let run = tokio::spawn(Processes { cgroups: true }.launch(order, capture.clone(), asked, tell));
    until(|| capture.lock().total() == 5).await;
    stop.send_replace(Some(Stop::Leave));
    assert_eq!(run.await.unwrap().end, End::Left);
    assert!(alive(&run_id) > 0);
    let tree = Arc::new(RunTree::left(&run_id));
    assert_eq!(tree::end(&tree, Duration::from_secs(5)).await, Vec::<i32>::new());
    os::reap(started.await.unwrap().pid).unwrap();
    os::remove_left_cgroups();
}
