//! With `--features failpoints`: each stage in turn falls, at each of its points, in five of a hundred passes. At both outputs exactly
//! the input arrives, in order, or stands in the dead letter.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::process::Stdio;

use kit::{agent::*, judge::*};

/// All that CONTRIBUTING lists.
const POINTS: &[&str] = &[
    "collector-read",
    "collector-send",
    "collector-settle",
    "file-read",
    "filter-hear",
    "filter-run",
    "filter-step",
    "filter-valid",
    "filter-send",
    "sink-hear",
    "sink-take",
    "sink-write",
    "sink-settle",
    "logr-write",
    "logr-rotate",
    "checkpoint-write",
];
const LINES: u64 = 200_000;

/// How often it fell.
fn one_point(point: &str) -> usize {
    let place = Place::default();
    place.write("in/app.log", lines("a", 0..LINES, 200));
    let config = place.write(
        "agent.toml",
        format!(
            r#"
[[pipeline]]
name = "t"
input = {{ plugin = "file:v1", paths = ["{0}/in/*.log"] }}
filters = [{{ plugin = "valid" }}]
outputs = [
  {{ plugin = "logr", path = "{0}/out/a.log", max_size = "4MiB", keep = 50 }},
  {{ plugin = "logr", path = "{0}/out/b.log", max_size = "4MiB", keep = 50 }},
]
"#,
            place.path("").display().to_string().trim_end_matches('/')
        ),
    );
    let args = ["--once", "-config", config.to_str().unwrap()];
    let mut agent = place.agent(&args);
    // A checkpoint is written once in 50 ms, a rotation done every 4 MiB: these pass rarely.
    let share = if ["checkpoint-write", "logr-rotate"].contains(&point) {
        20
    } else {
        5
    };
    // The first pass falls for sure: on a quick machine so few follow that chance might spare them all.
    agent.env("FAILPOINTS", format!("{point}=1*panic->{share}%panic"));
    let ended = finish(agent.spawn().unwrap());
    let letters = String::from_utf8(place.read("data/deadletter/t.jsonl")).unwrap();
    for output in ["a", "b"] {
        let text = rotated(&place.path("out"), &format!("{output}.log"));
        let dead = letters
            .lines()
            .filter(|l| !l.contains("\"output\":\"logr") || output_is(l, output))
            .count() as u64;
        let verdict = judge(&text, &[("a", LINES)]);
        let expected = Verdict {
            lines: LINES - dead,
            missing: dead,
            ..Verdict::default()
        };
        assert_eq!(
            verdict, expected,
            "{point}, output {output}, {dead} dead\n{}",
            ended.err
        );
    }
    let falls = ended.err.matches(&format!("failpoint {point} panic")).count();
    assert!(falls > 0, "{point} never fell: {}", ended.err);
    let code = if letters.is_empty() { 0 } else { 75 };
    assert_eq!(ended.code(), Some(code), "{point}: {}", ended.err);
    falls
}
fn output_is(letter: &str, output: &str) -> bool {
    letter.contains(if output == "a" {
        "\"output\":\"logr\""
    } else {
        "\"output\":\"logr#2\""
    })
}

#[test]
fn whatever_falls_all_of_it_arrives_in_order() {
    for point in POINTS {
        let began = std::time::Instant::now();
        let falls = one_point(point);
        println!("{point}: {falls} falls, {:.1} s", began.elapsed().as_secs_f64());
    }
}

#[test]
fn falls_are_counted_by_cause_and_the_balance_is_zero() {
    let place = Place::default();
    place.write("in/a.log", lines("a", 0..LINES, 100));
    let outputs = r#"{ plugin = "logr", path = "{0}/out/a.log" }, { plugin = "null", when_full = "drop_newest" }"#;
    let settings = place.configure(outputs, "");
    let points = [
        "collector-send",
        "filter-hear",
        "filter-send",
        "sink-hear",
        "sink-settle",
    ];
    let failpoints = points.map(|point| format!("{point}=8%panic")).join(";");
    let agent = place.start_with(&settings, Stdio::null(), &failpoints);
    until("all has arrived", || {
        place.metric("events_delivered_total", "\"logr\"") == LINES as i64 && place.metric("events_waiting", "") == 0
    });
    place.conserved();
    let (_, text) = place.get("/metrics");
    let mut all = 0;
    for line in text
        .lines()
        .filter(|line| line.starts_with("luffly_actor_restarts_total{"))
    {
        let point = points
            .iter()
            .find(|point| line.contains(&format!("cause=\"failpoint {point} panic\"")));
        let actor = point.unwrap_or_else(|| panic!("{line}")).split('-').next().unwrap();
        assert!(line.contains(&format!("actor=\"{actor}/t")), "{line}");
        all += line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    }
    assert!(all > 5, "{all} falls:\n{text}");
    let (status, health) = place.get("/health");
    assert_eq!(status, 200, "{health}");
    assert_eq!(agent.stop(), Some(0));
    let verdict = judge(&place.read("out/a.log"), &[("a", LINES)]);
    assert_eq!(
        verdict,
        Verdict {
            lines: LINES,
            ..Verdict::default()
        }
    );
}

#[test]
fn one_that_falls_again_and_again_turns_health_red_and_touches_no_other_pipeline() {
    let place = Place::default();
    place.write("in/a.log", lines("a", 0..LINES, 100));
    place.write("other/b.log", lines("b", 0..LINES, 100));
    let other = r#"
[[pipeline]]
name = "other"
input = { plugin = "file:v1", paths = ["{0}/other/*.log"], poll_every = "20ms" }
outputs = [{ plugin = "null" }]
"#;
    let settings = place.configure(r#"{ plugin = "logr", path = "{0}/out/a.log" }"#, other);
    let agent = place.start_with(&settings, Stdio::null(), "logr-write=panic");
    until("health is red", || {
        let (status, health) = place.get("/health");
        status == 503 && health.contains("sink/t/logr keeps falling: failpoint logr-write panic")
    });
    until("the other pipeline has all", || {
        place.metric("events_delivered_total", "pipeline=\"other\"") == LINES as i64
    });
    assert_eq!(place.metric("actor_restarts_total", "/other"), 0);
    assert!(
        place.metric("events_dead_total", "panic") > 0,
        "three falls over a batch, and it stands aside"
    );
    drop(agent);
}

#[test]
fn a_disk_that_errs_is_waited_for_and_nothing_is_torn() {
    let place = Place::default();
    place.write("in/a.log", lines("a", 0..LINES, 100));
    let settings = place.configure(
        r#"{ plugin = "logr", path = "{0}/out/a.log", retry = { first = "10ms", most = "50ms" } }"#,
        "",
    );
    let agent = place.start_with(&settings, Stdio::null(), "logr-write=9*return(EIO)->20%return(EIO)");
    until("health says so", || {
        let (_, health) = place.get("/health");
        health.contains("i/o error") || place.metric("output_retries_total", "") >= 9
    });
    until("all has arrived", || {
        place.metric("events_delivered_total", "") == LINES as i64
    });
    place.conserved();
    assert!(place.metric("output_retries_total", "") >= 9);
    assert_eq!(agent.stop(), Some(0));
    let verdict = judge(&place.read("out/a.log"), &[("a", LINES)]);
    let expected = Verdict {
        lines: LINES,
        ..Verdict::default()
    };
    assert_eq!(verdict, expected);
}

/// A batch that falls in the middle of its filters is filtered again: what they remember counts it once.
#[test]
fn filters_with_a_memory_count_once() {
    let place = Place::default();
    let lines = (0..20_000)
        .map(|n| format!("key={} n={n}\n", n / 5))
        .collect::<String>();
    place.write("in/app.log", &lines);
    let config = place.write(
        "agent.toml",
        format!(
            r#"
[[pipeline]]
name = "t"
input = {{ plugin = "file:v1", paths = ["{0}/in/*.log"] }}
filters = [
  {{ plugin = "sample", every = 2 }},
  {{ plugin = "dedupe", key_pattern = "key=(\\d+)" }},
  {{ plugin = "throttle", events = 1000000000, per = "1s" }},
]
outputs = [{{ plugin = "logr", path = "{0}/out/a.log" }}]
"#,
            place.path("").display().to_string().trim_end_matches('/')
        ),
    );
    let mut agent = place.agent(&["--once", "-config", config.to_str().unwrap()]);
    agent.env(
        "FAILPOINTS",
        "filter-step=1*off->1*panic->2*off->1*panic->3*off->2*panic->off",
    );
    let ended = finish(agent.spawn().unwrap());
    assert_eq!(ended.code(), Some(0), "{}", ended.err);
    assert_eq!(
        ended.err.matches("filter panicked, trying again").count(),
        4,
        "{}",
        ended.err
    );
    let mut seen = std::collections::HashSet::new();
    let expected = lines
        .lines()
        .step_by(2)
        .filter(|line| seen.insert(line.split(' ').next().unwrap()));
    let expected = expected.map(|line| format!("{line}\n")).collect::<String>();
    assert_eq!(String::from_utf8(place.read("out/a.log")).unwrap(), expected);
}
