//! Jobs on a host of its own, from outside: the real binary, real processes, killed and started again.
mod kit;

use std::process::Stdio;

use kit::agent::{Output, Place, Running, until};
use serde_json::Value;

/// An agent without pipelines.
struct House {
    place: Place,
    agent: Option<Running>,
}
impl House {
    fn new() -> Self {
        let place = Place::default();
        place.write("agent.toml", "[agent]\ndrain = \"3s\"\n");
        let mut house = Self { place, agent: None };
        house.start();
        house
    }
    fn start(&mut self) {
        self.agent = Some(self.place.start(&self.place.path("agent.toml"), Stdio::null()));
    }
    fn kill(&mut self) {
        self.agent.take().unwrap().kill();
    }
    fn stop(&mut self) -> Option<i32> {
        self.agent.take().unwrap().stop()
    }
    fn run(&self, args: &[&str]) -> Output {
        let mut all = vec!["jobs"];
        all.extend(args);
        self.place.run(&all)
    }
    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code(), Some(0), "{args:?}: {done:?}");
        done.out
    }
    fn put(&self, task: &str, fields: &str) {
        self.ok(&["put", &format!(r#"{{"task_id": "{task}", {fields}}}"#)]);
        until("the job is known", || self.job(task).is_some());
    }
    fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }
    fn job(&self, task: &str) -> Option<Value> {
        let jobs = self.json(&["list"]);
        jobs["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .find(|job| job["task_id"] == task)
            .cloned()
    }
    /// Newest first, `succeeded`, `failed(3)`, …
    fn states(&self, task: &str) -> Vec<String> {
        let runs = self.json(&["runs", task]);
        runs["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| run["shown"].as_str().unwrap().to_owned())
            .collect()
    }
    /// The only job's only run.
    fn last(&self, task: &str) -> Value {
        self.json(&["runs", task])["runs"][0].clone()
    }
    fn read(&self, name: &str) -> String {
        String::from_utf8(self.place.read(name)).unwrap()
    }
    fn path(&self, name: &str) -> String {
        self.place.path(name).to_str().unwrap().to_owned()
    }
}
/// One in the background ends with its test too.
impl Drop for House {
    fn drop(&mut self) {
        let pid = self.read("data/agent.pid").trim().parse::<i32>();
        if let (None, Ok(pid)) = (&self.agent, pid) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
/// Processes whose command line holds this.
fn processes(mark: &str) -> Vec<i32> {
    let dirs = std::fs::read_dir("/proc").unwrap().flatten();
    let pid = |dir: std::fs::DirEntry| {
        let pid = dir.file_name().to_str()?.parse::<i32>().ok()?;
        let line = std::fs::read(dir.path().join("cmdline")).ok()?;
        (pid != std::process::id() as i32 && String::from_utf8_lossy(&line).contains(mark)).then_some(pid)
    };
    dirs.filter_map(pid).collect()
}

#[test]
fn a_job_is_put_runs_and_survives_a_restart() {
    let mut house = House::new();
    assert_eq!(house.ok(&["list"]), "no jobs\n");
    let put = house.ok(&["put", r#"{"task_id": 17, "cmd": "echo run >> FILE; echo said; echo wrong >&2", "express": "* * * * * *", "status": "running", "executor": "bash"}"#.replace("FILE", &house.path("out")).as_str()]);
    assert_eq!(put.lines().count(), 6, "{put}");
    assert!(put.starts_with("job 17 put\nnext "), "{put}");
    until("it has run", || house.read("out").lines().count() >= 2);
    until("it is told", || {
        house.states("17").iter().any(|state| state == "succeeded")
    });
    assert_eq!(house.ok(&["output", "17"]), "said\nwrong\n");
    let run = house.last("17");
    assert!(
        ["cgroup", "sweep"].contains(&run["tree"].as_str().unwrap_or("cgroup")),
        "{run}"
    );
    assert!(house.ok(&["get", "17"]).contains("state    ok\n"));

    house.ok(&["pause", "17"]);
    assert_eq!(house.job("17").unwrap()["state"], "paused");
    assert_eq!(house.stop(), Some(0));
    let before = house.read("out");
    house.start();
    until("the job is known", || house.job("17").is_some());
    assert_eq!(
        house.job("17").unwrap()["state"],
        "paused",
        "a pause holds over a restart"
    );
    let done = house.run(&["run", "17", "--wait"]);
    assert_eq!((done.code(), done.out.as_str()), (Some(0), "said\nwrong\n"), "{done:?}");
    assert_eq!(house.read("out").lines().count(), before.lines().count() + 1);
    house.ok(&["resume", "17"]);
    until("it runs again", || {
        house.read("out").lines().count() >= before.lines().count() + 3
    });
    house.ok(&["rm", "17"]);
    until("the job is gone", || house.job("17").is_none());
    assert!(house.states("17").len() > 3, "its runs are still there");
    let done = house.run(&["get", "17"]);
    assert_eq!(
        (done.code(), done.err.as_str()),
        (Some(1), "agent: there is no job `17`\n")
    );
    let why = house.place.run(&["why", "18"]);
    assert_eq!(why.code(), Some(0));
}
#[test]
fn what_is_no_job_is_refused_with_the_reason() {
    let house = House::new();
    for (value, said) in [
        (
            r#"{"task_id": 1, "cmd": "x", "express": "* * *"}"#,
            "`express`: found \"* * *\", accepted: ",
        ),
        (
            r#"{"task_id": 1, "cmd": "x", "express": "@daily", "exlusive": true}"#,
            "`exlusive`: found true, accepted: no such field",
        ),
        (
            r#"{"task_id": "../x", "cmd": "x", "express": "@daily"}"#,
            "`task_id`: found \"../x\"",
        ),
    ] {
        let done = house.run(&["put", value]);
        assert!(done.code() == Some(1) && done.err.contains(said), "{done:?}");
    }
    let done = house.run(&["put", r#"{"cmd": "x", "express": "@daily"}"#]);
    assert_eq!(done.code(), Some(64), "{done:?}");
    let checked = house.ok(&["put", "--check", r#"{"task_id": 1, "cmd": "x", "express": "@daily"}"#]);
    assert!(checked.starts_with("job 1 would be accepted\nnext "), "{checked}");
    assert_eq!(house.ok(&["list"]), "no jobs\n");
    let done = house.run(&["run", "1"]);
    assert_eq!(
        (done.code(), done.err.as_str()),
        (Some(1), "agent: there is no job `1`\n")
    );
}
/// BEHAVIOUR 83, through all of it.
#[test]
fn nothing_is_left_of_a_job_that_times_out() {
    let house = House::new();
    let mark = format!("luffly-test-{}", std::process::id());
    let script = house.place.write(
        "stay.sh",
        format!("trap '' TERM\necho begun\nsetsid bash -c \"trap '' TERM; : {mark}; while :; do sleep 1; done\" &\nwhile :; do sleep 1; done\n"),
    );
    let script = script.to_str().unwrap();
    house.put(
        "stay",
        &format!(r#""type": "once", "cmd": "bash {script}", "timeout": "1s", "kill_after": "200ms""#),
    );
    until("it has timed out", || house.states("stay") == ["timed_out"]);
    assert_eq!(processes(&mark), Vec::<i32>::new());
    let run = house.last("stay");
    assert_eq!(
        (&run["unkillable"], run["output_bytes"].as_u64()),
        (&serde_json::json!([]), Some(6)),
        "{run}"
    );
    assert!(matches!(run["tree"].as_str(), Some("cgroup" | "sweep")));
    assert_eq!(house.ok(&["output", "stay"]), "begun\n");
}
/// BEHAVIOUR 86.
#[test]
fn runs_of_a_killed_agent_are_lost_and_survivors_count() {
    let mut house = House::new();
    house.put("long", r#""cmd": "sleep 1000", "express": "@every 1h""#);
    house.ok(&["run", "long"]);
    until("it runs", || house.states("long") == ["running"]);
    house.kill();
    house.start();
    until("it is lost", || house.states("long") == ["lost"]);
    until("the job is known", || house.job("long").is_some());
    // Its process lives, and counts.
    let done = house.run(&["run", "long"]);
    assert_eq!(
        done.err,
        "agent: a run of the job is present, and its overlap is skip\n"
    );
    house.ok(&["kill", "long"]);
    until("the survivor is gone", || {
        house.job("long").unwrap()["runs"].as_array().unwrap().is_empty()
    });
    house.ok(&["run", "long"]);
    until("it runs anew", || house.states("long") == ["running", "lost"]);
    house.ok(&["kill", "long"]);
    until("it is killed", || house.states("long")[0] == "killed(http)");
}
/// BEHAVIOUR 99.
#[test]
fn a_job_may_restart_its_agent() {
    let mut house = House::new();
    assert_eq!(house.stop(), Some(0));
    let (data, config) = (house.path("data"), house.path("agent.toml"));
    let start = ["start", "-config", &config];
    let done = house.place.run(&start);
    assert_eq!(done.code(), Some(0), "{done:?}");
    let pid = || -> i32 { house.read("data/agent.pid").trim().parse().unwrap_or(0) };
    let first = pid();
    let binary = env!("CARGO_BIN_EXE_agent");
    let cmd = format!(
        "{binary} restart -config {config} -http-address=off --data-dir {data} && touch {}",
        house.path("restarted")
    );
    // Not looked for: it may have begun, and then nobody answers for a moment.
    house.ok(&[
        "put",
        &format!(r#"{{"task_id": "upgrade", "type": "once", "cmd": "{cmd}"}}"#),
    ]);
    until("another agent is there", || {
        ![0, first].contains(&pid()) && house.place.path("restarted").exists()
    });
    let second = pid();
    until("it answers", || house.run(&["list"]).code() == Some(0));
    assert_eq!(house.states("upgrade").len(), 1, "recorded, and not run again");
    house.put("after", r#""type": "once", "cmd": "echo here""#);
    until("it runs jobs", || house.states("after") == ["succeeded"]);
    until("the old one is gone", || {
        !std::path::Path::new(&format!("/proc/{first}")).exists()
    });
    assert_eq!(pid(), second, "what swept the old one's runs spared the new one");
    let done = house.place.run(&["stop"]);
    assert_eq!(done.code(), Some(0), "{done:?}");
}
#[test]
fn when_an_expression_is_due_needs_no_agent() {
    let place = Place::default();
    let next = |args: &[&str]| {
        let mut all = vec!["jobs", "next"];
        all.extend(args);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agent"));
        kit::agent::finish(
            command
                .args(&all)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    };
    let done = next(&[
        "30 1 * * *",
        "--tz",
        "America/New_York",
        "--from",
        "2024-11-02T12:00:00Z",
        "-n",
        "3",
    ]);
    assert_eq!(
        done.out,
        "2024-11-03T01:30:00-04:00\n2024-11-03T01:30:00-05:00 (second pass)\n2024-11-04T01:30:00-05:00\n"
    );
    let done = next(&["* * * * 7"]);
    assert_eq!(done.code(), Some(64));
    assert_eq!(
        done.err,
        "agent: \"* * * * 7\": day of week: found \"7\", accepted: *, 0 to 6 or sun to sat, as 1, 1-5, */2 or 1-5/2\n"
    );
    let done = next(&["@daily", "--tz", "Mars"]);
    assert_eq!(done.code(), Some(64));
    drop(place);
}
#[test]
fn a_crontab_becomes_jobs() {
    let house = House::new();
    let crontab = house.place.write("crontab", "MAILTO=me\n*/5 * * * * date\n@reboot x\n");
    let import = |yes: bool| {
        let mut args = vec!["import", "--user", "root", "--file", crontab.to_str().unwrap()];
        args.extend(yes.then_some("--yes"));
        house.run(&args)
    };
    let done = import(false);
    assert_eq!((done.code(), done.out.lines().count()), (Some(1), 3), "{done:?}");
    assert!(done.out.ends_with("nothing was done; --yes does it\n"));
    assert_eq!(house.ok(&["list"]), "no jobs\n");
    let done = import(true);
    assert_eq!(done.out.lines().count(), 2, "{done:?}");
    until("it is there", || {
        house.json(&["list"])["jobs"].as_array().unwrap().len() == 1
    });
    assert!(import(true).out.contains("is there already"));
}

#[test]
fn runs_and_what_they_said_are_events_also_after_a_kill() {
    let mut house = House::new();
    house.stop();
    let settings = "[agent]\ndrain = \"3s\"\n[[pipeline]]\nname = \"runs\"\ninput = { plugin = \"jobs\", output = true }\n\
        outputs = [{ plugin = \"logr\", path = \"{0}/runs.log\" }]\n";
    let dir = house.place.path("").display().to_string();
    house
        .place
        .write("agent.toml", settings.replace("{0}", dir.trim_end_matches('/')));
    house.start();
    let events = |house: &House| {
        let text = house.read("runs.log");
        text.lines()
            .map(|line| {
                let event: Value = serde_json::from_str(line).unwrap();
                match event["event"].as_str() {
                    Some("run") => format!(
                        "{} {}",
                        event["task_id"].as_str().unwrap(),
                        event["state"].as_str().unwrap()
                    ),
                    _ => event["message"].as_str().unwrap().to_owned(),
                }
            })
            .collect::<Vec<_>>()
    };
    house.put(
        "a",
        r#""cmd": "echo one; echo two", "express": "0 0 1 1 *", "executor": "sh""#,
    );
    house.ok(&["run", "a", "--wait"]);
    until("it is an event", || events(&house) == ["one", "two", "a succeeded"]);
    house.put(
        "b",
        r#""cmd": "exec sleep 60", "express": "0 0 1 1 *", "executor": "sh""#,
    );
    house.ok(&["run", "b"]);
    until("it runs", || house.states("b") == ["running"]);
    house.kill();
    house.start();
    // What was delivered may come again once, and nothing is missing.
    until("the lost one is an event", || {
        events(&house).last().is_some_and(|last| last == "b lost")
    });
    let mut seen = events(&house);
    seen.dedup();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["a succeeded", "b lost", "one", "two"]);
    house.place.conserved();
    let before = events(&house);
    assert_eq!(house.stop(), Some(0));
    house.start();
    house.ok(&["run", "a", "--wait"]);
    until("only the new one came", || {
        events(&house) == [&before[..], &["one".into(), "two".into(), "a succeeded".into()]].concat()
    });
    assert_eq!(house.stop(), Some(0));
}
