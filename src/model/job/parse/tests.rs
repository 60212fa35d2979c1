use proptest::prelude::*;

use super::*;

fn own() -> JobKey {
    JobKey::host("10.0.0.1", "17")
}
fn read_own(value: &str) -> Result<JobSpec, Invalid> {
    parse(&own(), value.as_bytes(), &Limits::default())
}
/// A job of the example of SPEC §4 with these fields besides.
fn with(fields: &str) -> String {
    format!(r#"{{"cmd": "date", "express": "* * * * *", {fields}}}"#)
}

#[test]
fn the_example_and_its_defaults() {
    let spec = read_own(
        r#"{"task_id": 17, "cmd": "/tmp/demo.sh", "express": "* * * * *", "status": "running", "executor": "bash"}"#,
    )
    .unwrap();
    assert_eq!(
        read_own(r#"{"cmd": "/tmp/demo.sh", "express": "* * * * *"}"#).unwrap(),
        spec
    );
    assert_eq!(
        (&*spec.cmd, &*spec.express, spec.terms.executor.as_str()),
        ("/tmp/demo.sh", "* * * * *", "bash")
    );
    assert!(matches!(spec.when, When::At(_)));
    assert!(!spec.paused && !spec.exclusive && !spec.terms.catch_up && !spec.terms.leave_children);
    assert_eq!(
        (spec.terms.timeout, spec.terms.kill_after),
        (None, Duration::from_secs(5))
    );
    assert_eq!(
        (spec.terms.overlap, spec.terms.overlap_max_wait),
        (Overlap::Skip, Duration::from_secs(3600))
    );
    assert_eq!(
        (spec.terms.retries, spec.terms.retry_wait, spec.terms.jitter),
        (0, Duration::from_secs(2), Duration::ZERO)
    );
    assert_eq!(
        (spec.terms.output_limit, spec.terms.on_agent_stop),
        (64 << 10, OnAgentStop::Wait)
    );
    assert!(spec.args.is_empty() && spec.terms.env.is_empty());
    assert_eq!((&spec.terms.dir, &spec.terms.user), (&None, &None));
    assert_eq!((spec.tz, &spec.terms.on_failure, spec.signature), (None, &None, None));
}
#[test]
fn every_field() {
    let limits = Limits {
        webhooks: vec!["ops".into()],
        leave_refused: None,
        ..Limits::default()
    };
    let value = r#"{"task_id": "other", "name": "Backup", "cmd": "x", "type": "schedule", "express": "0 1 * * *", "status": "pause",
        "executor": "exec", "args": ["-a", ""], "env": {"A": "1"}, "dir": "/tmp", "user": "nobody", "timeout": "1m", "kill_after": "0s",
        "overlap": "queue", "overlap_max_wait": "2h", "retries": 3, "retry_wait": "5s", "jitter": "30s", "catch_up": "last",
        "tz": "Asia/Shanghai", "exclusive": false, "output_limit": "1MiB", "leave_children": true, "on_agent_stop": "leave",
        "on_failure": "ops", "x_mine": {"any": 1}, "labels": ["a"], "owner": null,
        "signature": {"serial": 4, "not_after": "2026-01-01T00:00:00Z", "sig": "AA=="}}"#;
    let spec = parse(&own(), value.as_bytes(), &limits).unwrap();
    assert!(spec.paused && spec.terms.catch_up && spec.terms.leave_children);
    assert_eq!(
        (&*spec.args, &*spec.terms.env),
        (
            &["-a".to_owned(), String::new()][..],
            &[("A".to_owned(), "1".to_owned())][..]
        )
    );
    assert_eq!(
        (
            spec.terms.dir.as_deref(),
            spec.terms.user.as_deref(),
            spec.tz.as_deref()
        ),
        (Some("/tmp"), Some("nobody"), Some("Asia/Shanghai"))
    );
    assert_eq!(
        (spec.terms.timeout, spec.terms.kill_after),
        (Some(Duration::from_secs(60)), Duration::ZERO)
    );
    assert_eq!(
        (spec.terms.overlap, spec.terms.overlap_max_wait),
        (Overlap::Queue, Duration::from_secs(7200))
    );
    assert_eq!(
        (spec.terms.retries, spec.terms.retry_wait, spec.terms.jitter),
        (3, Duration::from_secs(5), Duration::from_secs(30))
    );
    assert_eq!(
        (spec.terms.output_limit, spec.terms.on_agent_stop),
        (1 << 20, OnAgentStop::Leave)
    );
    assert_eq!(
        (spec.terms.on_failure.as_deref(), &*spec.title),
        (Some("ops"), "Backup")
    );
    assert_eq!(spec.signature.unwrap().serial, 4);
    let When::At(schedule) = spec.when else {
        panic!("a schedule")
    };
    assert_eq!(schedule.zone().iana_name(), Some("Asia/Shanghai"));
}
#[test]
fn once_and_exclusive() {
    let once = read_own(r#"{"cmd": "x", "type": "once"}"#).unwrap();
    assert_eq!((once.when, &*once.express), (When::Once, ""));
    let limits = Limits {
        zone: schedule::zone("Asia/Shanghai").unwrap(),
        ..Limits::default()
    };
    for (fields, zone) in [
        ("\"exclusive\": true", "UTC"),
        ("\"exclusive\": false", "Asia/Shanghai"),
        ("\"exclusive\": true, \"tz\": \"Asia/Tokyo\"", "Asia/Tokyo"),
    ] {
        let spec = parse(&JobKey::group("web", "17"), with(fields).as_bytes(), &limits).unwrap();
        let When::At(schedule) = spec.when else {
            panic!("a schedule")
        };
        assert_eq!(schedule.zone().iana_name(), Some(zone), "{fields}");
    }
}

/// What is refused: field, found and accepted, as they are shown.
#[test]
fn refusals() {
    let no_such = "no such field; for notes of your own `x_…`, or name it in [jobs] ignore_fields";
    let span = Span::ACCEPTED;
    for (value, shown) in [
        (r#"{"express": "* * * * *"}"#.to_owned(), "`cmd`: found nothing, accepted: a command".to_owned()),
        (r#"{"cmd": " ", "express": "* * * * *"}"#.into(), "`cmd`: found \" \", accepted: a command".into()),
        (r#"{"cmd": 1, "express": "* * * * *"}"#.into(), "`cmd`: found 1, accepted: text".into()),
        (r#"{"cmd": "a\u0000b", "express": "* * * * *"}"#.into(), "`cmd`: found \"a\\0b\", accepted: text without NUL".into()),
        (
            r#"{"cmd": "x"}"#.into(),
            "`express`: found nothing, accepted: a schedule as \"*/5 * * * *\", or \"type\": \"once\"".into(),
        ),
        (
            r#"{"cmd": "x", "express": "* 24 * * *"}"#.into(),
            "`express`: found \"* 24 * * *\", accepted: a schedule as \"*/5 * * * *\" (hour: found \"24\", accepted: *, or 0 to 23, as 1, 1-5, */2 or 1-5/2)".into(),
        ),
        (
            r#"{"cmd": "x", "express": "* * * * *", "type": "once"}"#.into(),
            "`express`: found \"* * * * *\", accepted: nothing beside \"type\": \"once\"".into(),
        ),
        (with("\"exlusive\": true"), format!("`exlusive`: found true, accepted: {no_such}")),
        (with("\"exclusive\": true"), "`exclusive`: found true, accepted: true in a job of a group only: a job of one host runs nowhere else".into()),
        (with("\"executor\": \"zsh\""), "`executor`: found \"zsh\", accepted: \"bash\", \"sh\", \"python3\", \"exec\"".into()),
        (with("\"status\": \"paused\""), "`status`: found \"paused\", accepted: \"running\", \"pause\"".into()),
        (with("\"overlap\": true"), "`overlap`: found true, accepted: \"skip\", \"queue\", \"parallel\", \"replace\"".into()),
        (with("\"timeout\": 30"), format!("`timeout`: found 30, accepted: {span}")),
        (with("\"timeout\": \"0s\""), "`timeout`: found \"0s\", accepted: more than zero".into()),
        (with("\"kill_after\": \"6m\""), "`kill_after`: found \"6m\", accepted: 5m at most".into()),
        (with("\"jitter\": \"2h\""), "`jitter`: found \"2h\", accepted: 1h at most".into()),
        (with("\"retries\": 101"), "`retries`: found 101, accepted: a whole number from 0 to 100".into()),
        (with("\"retries\": -1"), "`retries`: found -1, accepted: a whole number from 0 to 100".into()),
        (with("\"output_limit\": 16777217"), "`output_limit`: found \"16777217\", accepted: 16MiB at most".into()),
        (with("\"args\": \"-l\""), "`args`: found \"-l\", accepted: a list of texts".into()),
        (with("\"args\": [1]"), "`args`: found 1, accepted: a list of texts".into()),
        (with("\"env\": {\"A=B\": \"\"}"), "`env`: found \"A=B\", accepted: names without `=` and NUL".into()),
        (with("\"env\": {\"AGENT_RUN_ID\": \"\"}"), "`env`: found \"AGENT_RUN_ID\", accepted: other names: the agent sets this one".into()),
        (with("\"dir\": \"tmp\""), "`dir`: found \"tmp\", accepted: a path that begins with /".into()),
        (
            with("\"tz\": \"Mars\""),
            "`tz`: found \"Mars\", accepted: a name of the system's zoneinfo as \"Asia/Shanghai\"".into(),
        ),
        (with("\"on_failure\": \"ops\""), "`on_failure`: found \"ops\", accepted: the name of a webhook in [jobs.webhook], and there is none".into()),
        (
            with("\"on_agent_stop\": \"leave\""),
            "`on_agent_stop`: found \"leave\", accepted: \"wait\" or \"kill\": this host has no scope of its own for a run".into(),
        ),
        (with("\"task_id\": {}"), "`task_id`: found {}, accepted: text or a whole number".into()),
    ] {
        assert_eq!(read_own(&value).map_err(|invalid| invalid.to_string()), Err(shown), "{value}");
    }
    let twice = read_own(&with("\"cmd\": \"y\"")).unwrap_err().to_string();
    assert!(twice.contains("`cmd` stands there twice"), "{twice}");
}
#[test]
fn values_that_are_no_object() {
    for value in [
        &b"not json"[..],
        b"",
        b"[]",
        b"7",
        b"\xff\xfe",
        b"{\"cmd\": \"a\"",
        b"{} {}",
    ] {
        let invalid = parse(&own(), value, &Limits::default()).unwrap_err();
        assert_eq!(invalid.field, "", "{invalid}");
        assert!(invalid.accepted.starts_with("a JSON object"), "{invalid}");
    }
    let huge = with(&format!("\"x_note\": \"{}\"", "n".repeat(1 << 20)));
    assert!(
        read_own(&huge)
            .unwrap_err()
            .to_string()
            .ends_with("bytes, accepted: 65536 bytes at most")
    );
    let long = read_own(&with(&format!("\"note\": \"{}\"", "n".repeat(60_000)))).unwrap_err();
    assert!(long.found.len() < 200, "shown in short");
}
#[test]
fn task_ids() {
    for good in ["17", "a", "_a", "-1", "A.b-c_d", &"x".repeat(128)] {
        assert!(is_task_id(good), "{good}");
    }
    for bad in ["", ".", "..", "../x", "a/b", "a b", "ä", &"x".repeat(129)] {
        assert!(!is_task_id(bad), "{bad}");
        let key = JobKey::host("10.0.0.1", bad);
        assert_eq!(
            parse(&key, with("\"x_a\": 1").as_bytes(), &Limits::default())
                .unwrap_err()
                .field,
            "task_id"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(value: Vec<u8>) {
        let _ = parse(&own(), &value, &Limits::default());
    }
    #[test]
    fn any_value_of_a_field_is_answered(
        field in prop::sample::select(vec!["cmd", "express", "type", "env", "args", "timeout", "retries", "output_limit", "signature", "tz", "status"]),
        value in prop::sample::select(vec!["null", "true", "0", "-1", "1e99", "\"\"", "\"x\"", "[]", "[[]]", "{}", "{\"a\":1}"]),
    ) {
        let _ = read_own(&format!("{{\"{field}\": {value}}}"));
        let _ = read_own(&with(&format!("\"{field}\": {value}")));
    }
}
