//! With `--features failpoints`: each stage in turn falls, at each of its points, in five of a hundred passes. At both outputs exactly
//! the input arrives, in order, or stands in the dead letter.
mod kit;
use kit::{agent::*, judge::*};

/// All that CONTRIBUTING lists.
const POINTS: &[&str] = &[
    "collector-read",
    "collector-send",
    "collector-settle",
    "file-read",
    "filter-hear",
    "filter-run",
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
        50
    } else {
        5
    };
    agent.env("FAILPOINTS", format!("{point}={share}%panic"));
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
