//! Filters from outside: `agent try` prints what docs/plugins.md says, and a chain of filters in a running agent accounts for every event.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use kit::agent::*;
use luffly_agent::plugins::filters;
use serde_json::{Value, json};

/// The fenced blocks behind a heading, as (language, text).
fn blocks(section: &str) -> Vec<(String, String)> {
    let parts = section.split("\n```").collect::<Vec<_>>();
    let fenced = parts.iter().skip(1).step_by(2);
    let split = fenced.map(|block| block.split_once('\n').unwrap_or((block, "")));
    split
        .map(|(language, text)| (language.to_owned(), text.to_owned()))
        .collect()
}

#[test]
fn each_example_of_the_page_prints_what_the_page_says() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugins.md")).unwrap();
    let part = page
        .split("\n## Filters\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let sections = part.split("\n### ").skip(1).collect::<Vec<_>>();
    let names = sections
        .iter()
        .map(|s| s.split(':').next().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(names, filters::CATALOG.iter().map(|p| p.name).collect::<Vec<_>>());
    let agents = Path::new(env!("CARGO_BIN_EXE_agent")).parent().unwrap();
    let path = std::env::join_paths([agents, Path::new("/bin"), Path::new("/usr/bin")]).unwrap();
    for (name, section) in names.iter().zip(sections) {
        let blocks = blocks(section);
        let languages = blocks.iter().map(|(language, _)| language.as_str()).collect::<Vec<_>>();
        assert_eq!(languages, ["toml", "text", "sh", "text"], "{name}");
        // As a user would: the lines into a file, the command into a shell.
        let place = Place::default();
        place.write("sample.log", format!("{}\n", blocks[1].1));
        let done = Command::new("sh")
            .args(["-c", &blocks[2].1])
            .current_dir(place.path(""))
            .env("PATH", &path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), &*err), (Some(0), ""), "{name}");
        assert_eq!(
            String::from_utf8(done.stdout).unwrap(),
            format!("{}\n", blocks[3].1),
            "{name}"
        );
        // And the sample of its options is one that a config takes.
        let config = place.write(
            "agent.toml",
            format!(
                "[[pipeline]]\nname = \"t\"\ninput = \"stdin\"\n{}\noutputs = [\"stdout\"]\n",
                blocks[0].1
            ),
        );
        let checked = place.run(&["check", "-config", config.to_str().unwrap()]);
        assert_eq!(checked.code(), Some(0), "{name}: {}", checked.err);
    }
}

const TWO: &str = r#"
[[pipeline]]
name = "a"
input = { plugin = "file", paths = ["/nowhere/*.log"] }
filters = ["valid", { plugin = "grep", pattern = "x" }, { plugin = "grep", pattern = "y", action = "drop" }, { plugin = "regex", pattern = "^(?<first>\\w+) " }]
outputs = [{ plugin = "logr", path = "{0}/never.log" }]
[[pipeline]]
name = "b"
input = "stdin"
outputs = ["stdout"]
"#;

fn fed(mut command: Command, text: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    finish(child)
}

#[test]
fn a_sample_goes_through_the_filters_of_a_config() {
    let place = Place::default();
    let config = place.write("agent.toml", TWO.replace("{0}", place.path("").to_str().unwrap()));
    let config = config.to_str().unwrap();
    let sample = b"one x\n\nx\ntwo xy\nz\n\x1b[2Jx \xff";
    let shown = fed(
        place.agent(&["try", "-config", config, "-sample", "-", "-pipeline", "a"]),
        sample,
    );
    assert_eq!(shown.code(), Some(0), "{}", shown.err);
    assert_eq!(
        shown.out,
        "  1 changed  one x
          →  {\"first\":\"one\"}
  2 dropped  (empty)
             by valid: empty
  3 kept     x
             let pass by regex: no_match
  4 dropped  two xy
             by grep#2: match
  5 dropped  z
             by grep: no_match
  6 changed  \\u{1b}[2Jx \u{fffd}
          →  \\u{1b}[2Jx \u{fffd}
             let pass by regex: no_match
6 events: 1 kept, 2 changed, 3 dropped (grep: no_match 1, grep#2: match 1, valid: empty 1); let pass: regex: no_match 2
"
    );
    let shown = fed(
        place.agent(&["try", "-config", config, "--sample=-", "--pipeline=a", "--json"]),
        b"one x\nz\nx",
    );
    let lines = shown
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect::<Vec<Value>>();
    assert_eq!(
        lines,
        [
            json!({ "event": 1, "outcome": "changed", "before": "one x", "after": "{\"first\":\"one\"}" }),
            json!({ "event": 2, "outcome": "dropped", "before": "z", "filter": "grep", "reason": "no_match" }),
            json!({ "event": 3, "outcome": "kept", "before": "x", "let_pass": [{ "filter": "regex", "reason": "no_match" }] }),
            json!({ "events": 3, "kept": 1, "changed": 1, "dropped": 1,
                "dropped_by": [{ "filter": "grep", "reason": "no_match", "events": 1 }],
                "let_pass_by": [{ "filter": "regex", "reason": "no_match", "events": 1 }] }),
        ]
    );
    // Filters from the command line, beside a config and without.
    let beside = fed(
        place.agent(&["try", "-config", config, "-sample", "-", "-filter=valid"]),
        b"a\n",
    );
    assert_eq!(
        beside.out, "  1 kept     a\n1 event: 1 kept, 0 changed, 0 dropped\n",
        "{}",
        beside.err
    );
    let empty = fed(place.agent(&["try", "-sample", "-", "-filter=valid"]), b"");
    assert_eq!(empty.out, "0 events: 0 kept, 0 changed, 0 dropped\n");
    // It touched nothing.
    let mut left = std::fs::read_dir(place.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect::<Vec<_>>();
    left.sort();
    assert_eq!(left, ["agent.toml"]);
}
#[test]
fn what_try_refuses() {
    let place = Place::default();
    let config = place.write("agent.toml", TWO.replace("{0}", place.path("").to_str().unwrap()));
    let config = config.to_str().unwrap();
    let bad = r#"{"filter":{"grep":{"pattern":"("}}}"#;
    for (args, code, said) in [
        (
            &["-config", config, "-sample", "-"] as &[&str],
            64,
            "agent: found 2 pipelines, accepted: --pipeline with one of a, b\n",
        ),
        (
            &["-config", config, "-sample", "-", "-pipeline", "c"],
            64,
            "agent: unknown pipeline `c`, accepted: a, b\n",
        ),
        (&["-config", config], 64, "--sample <FILE>"),
        (
            &["-sample", "/nowhere", "-filter=valid"],
            1,
            "could not read the sample /nowhere: ",
        ),
        (&["-sample", "-", "-filter=grap"], 64, "did you mean `grep`"),
        (
            &["-sample", "-", "-filter=grep", "-f", bad],
            64,
            "filter.grep.pattern: found \"(\": unclosed group, accepted: a regular expression",
        ),
    ] {
        let refused = place.run(&[&["try"], args].concat());
        assert_eq!(refused.code(), Some(code), "{args:?} {}", refused.err);
        assert!(
            refused.err.contains(said) && refused.out.is_empty(),
            "{args:?}: {}",
            refused.err
        );
    }
}

/// All filters in one pipeline: what goes in comes out or is counted, by filter and reason, and the numbers are those of `agent try`.
#[test]
fn a_chain_accounts_for_every_event() {
    let place = Place::default();
    let mut text = String::new();
    for n in 0..3_000 {
        let level = ["info", "error", "debug", "warn"][n / 3 % 4];
        text += &match n % 10 {
            0 => String::new(),
            1 => "GET /health 200\n".to_owned(),
            2 | 5 => format!("level={level} user=u{} card=4111111111111111\n", n % 250),
            _ => format!("{{\"level\":\"{level}\",\"user\":\"u{}\",\"n\":{n}}}\n", n % 250),
        };
        if n % 10 == 0 {
            text.push('\n');
        }
    }
    let filters = r#"filters = [
        "valid",
        { plugin = "grep", pattern = "/health", action = "drop" },
        { plugin = "logfmt" },
        { plugin = "json", keep = { level = ["error", "warn"] }, on_error = "drop" },
        { plugin = "redact", presets = ["card"] },
        { plugin = "dedupe", key = "user", window = 300 },
        { plugin = "sample", every = 2 },
        { plugin = "throttle", events = 20, per = "365d" },
    ]"#;
    place.write("in/app.log", &text);
    let settings = place.configure(r#"{ plugin = "logr", path = "{0}/out/a.log", encode = "json" }"#, "");
    let config = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(
        &settings,
        config.replace(r#"filters = [{ plugin = "valid" }]"#, filters),
    )
    .unwrap();
    let tried = place.run(&[
        "try",
        "--json",
        "-config",
        settings.to_str().unwrap(),
        "-sample",
        place.path("in/app.log").to_str().unwrap(),
    ]);
    let counts: Value = serde_json::from_str(tried.out.lines().last().unwrap()).unwrap();

    let agent = place.start(&settings, Stdio::null());
    until("all is read and delivered", || {
        place.metric("events_in_total", "") == 3_000 && place.metric("events_waiting", "") == 0
    });
    place.conserved();
    assert_eq!(counts["dropped_by"].as_array().unwrap().len(), 6, "{counts}");
    for row in counts["dropped_by"].as_array().unwrap() {
        let labels = format!(
            "filter=\"{}\",pipeline=\"t\",reason=\"{}\"",
            row["filter"].as_str().unwrap(),
            row["reason"].as_str().unwrap()
        );
        assert_eq!(
            place.metric("events_filtered_total", &labels),
            row["events"].as_i64().unwrap(),
            "{row}"
        );
    }
    for row in counts["let_pass_by"].as_array().unwrap() {
        let labels = format!("filter=\"{}\",", row["filter"].as_str().unwrap());
        assert_eq!(
            place.metric("filter_passed_total", &labels),
            row["events"].as_i64().unwrap(),
            "{row}"
        );
    }
    let out = String::from_utf8(place.read("out/a.log")).unwrap();
    let lines = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .collect::<Vec<_>>();
    assert_eq!(
        lines.len() as i64,
        counts["kept"].as_i64().unwrap() + counts["changed"].as_i64().unwrap()
    );
    assert_eq!(lines.len(), 20);
    for line in &lines {
        // What is left says where it was read, whatever was done to it.
        let at = line["offset"].as_u64().unwrap() as usize;
        let was = text[at..].lines().next().unwrap();
        let user = line["fields"]["user"].as_str().unwrap();
        assert!(was.contains(user) && line.get("message").is_none(), "{line} {was}");
        if let Some(card) = line["fields"].get("card") {
            assert_eq!(card, "[card]");
        }
    }
    assert!(
        lines.iter().any(|line| line["fields"].get("card").is_some()),
        "a rewritten one is among them"
    );
    assert_eq!(agent.stop(), Some(0));
}
