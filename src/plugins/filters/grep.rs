//! Keeps or drops events by patterns. Looks over the whole chunk at once (see `search`); events without a match are not looked at one by one.
use serde::Deserialize;

use super::{
    search::{Search, parse},
    *,
};
use crate::plugins::{BadValue, Opt};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "grep",
    tag: "v1",
    stable: true,
    about: "keeps or drops events in which a pattern is found",
    delivery: "an event taken away counts as filtered, by reason: no_match, match",
    options: &[
        Opt {
            name: "pattern",
            default: "required",
            about: "what is looked for: a regular expression, or a list of them, of which any counts",
        },
        Opt {
            name: "action",
            default: "\"keep\"",
            about: "events with a match: `keep` drops all others, `drop` drops them",
        },
        Opt {
            name: "literal",
            default: "false",
            about: "the patterns are plain text",
        },
        Opt {
            name: "ignore_case",
            default: "false",
            about: "`Error` is found by `error`",
        },
    ],
    sample: r#"{ plugin = "grep", pattern = ["error", "timeout after \\d+ s"], ignore_case = true }"#,
    check: |table| search(table).map(drop),
    build: |table, _| {
        let (search, keep) = search(table)?;
        Ok(Box::new(Grep {
            search,
            keep,
            hits: vec![],
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "grep",
    options: r#"{"pattern":["GET /health", " 30[14] "],"action":"drop"}"#,
    lines: &[
        r#"10.0.0.7 "GET /shop HTTP/1.1" 200 512"#,
        r#"10.0.0.1 "GET /health HTTP/1.1" 200 2"#,
        r#"10.0.0.8 "GET /logo.png HTTP/1.1" 304 0"#,
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    pattern: OneOrMany,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    literal: bool,
    #[serde(default)]
    ignore_case: bool,
}
#[derive(Deserialize)]
#[serde(untagged, expecting = "text, or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}
/// With events that have a match.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[default]
    Keep,
    Drop,
}

fn search(table: &Table) -> Result<(Search, bool), BadValue> {
    let config = table.read::<Config>()?;
    let patterns = match config.pattern {
        OneOrMany::One(pattern) => vec![pattern],
        OneOrMany::Many(patterns) => patterns,
    };
    let bad = |error: String| BadValue::new("pattern", error);
    if patterns.is_empty() || patterns.iter().any(String::is_empty) {
        return Err(bad(
            "found an empty one, accepted: at least one pattern, none of them empty".into(),
        ));
    }
    let any = patterns.iter().map(|p| parse(p, config.literal, config.ignore_case));
    let any = any.collect::<Result<Vec<_>, _>>().map_err(bad)?;
    Ok((Search::new(any).map_err(bad)?, config.action == Action::Keep))
}

struct Grep {
    search: Search,
    keep: bool,
    /// Only its room is kept.
    hits: Vec<u32>,
}
impl Filter for Grep {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        self.search.hits(&events, &mut self.hits);
        let before = events.len();
        let left = events.retain_hits(&self.hits, self.keep);
        let reason = if self.keep { "no_match" } else { "match" };
        note(dropped, reason, (before - left.len()) as u64);
        left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::*;

    #[test]
    fn keeps_and_drops() {
        let lines = ["an error", "", "fine", "Error", "a.b"];
        let grep = |options: &str| run("grep", options, &lines);
        assert_eq!(
            grep(r#"{"pattern":"error"}"#),
            (vec!["an error".into()], vec![("no_match", 4)])
        );
        assert_eq!(
            grep(r#"{"pattern":"error","ignore_case":true}"#).0,
            ["an error", "Error"]
        );
        assert_eq!(
            grep(r#"{"pattern":["^$","^f.*e$"],"action":"drop"}"#),
            (
                vec!["an error".into(), "Error".into(), "a.b".into()],
                vec![("match", 2)]
            )
        );
        assert_eq!(grep(r#"{"pattern":"a.b","literal":true}"#).0, ["a.b"]);
        assert_eq!(
            grep(r#"{"pattern":"A.B","literal":true,"ignore_case":true}"#).0,
            ["a.b"]
        );
        // A line end is no part of an event, but may be inside one.
        let inner = ["Traceback\n  at line 1", "line", "1"];
        assert_eq!(run("grep", r#"{"pattern":"back\n"}"#, &inner).0, inner[..1]);
        assert_eq!(
            run("grep", r#"{"pattern":"line\n1","literal":true}"#, &inner).0,
            [""; 0]
        );
        assert_eq!(
            run("grep", r#"{"pattern":"^line"}"#, &inner).0,
            ["line"],
            "an event has one beginning"
        );
    }
    #[test]
    fn nothing_to_take_away_touches_nothing() {
        untouched("grep", r#"{"pattern":"x","action":"drop"}"#, &["a", "b"]);
        untouched("grep", r#"{"pattern":"[ab]"}"#, &["a", "b"]);
    }
    #[test]
    fn refuses() {
        for (options, said) in [
            (r#"{"pattern":"a("}"#, "unclosed group"),
            (r#"{"pattern":[]}"#, "at least one"),
            (r#"{"pattern":["a",""]}"#, "none of them empty"),
            (r#"{"pattern":7}"#, "text, or a list of texts"),
            (r#"{"pattern":"(\\w{1000}){100}"}"#, "too large"),
        ] {
            let error = refused("grep", options);
            assert!(
                error.key == "pattern" && error.message.contains(said),
                "{options}: {error}"
            );
        }
        assert!(refused("grep", "{}").message.contains("missing field `pattern`"));
        assert!(
            refused("grep", r#"{"pattern":"a","action":"x"}"#)
                .message
                .contains("`keep` or `drop`")
        );
    }

    proptest! {
        #[test]
        fn as_looking_at_each_event(contents in prop::collection::vec("[ab\n]{0,5}", 0..30), wanted in "[ab]{1,3}", drops: bool) {
            let options = serde_json::json!({ "pattern": wanted, "literal": true, "action": if drops { "drop" } else { "keep" } });
            let lines = contents.iter().map(String::as_str).collect::<Vec<_>>();
            let expected = lines.iter().copied().filter(|line| line.contains(&wanted) != drops).collect::<Vec<_>>();
            prop_assert_eq!(run("grep", &options.to_string(), &lines).0, expected);
        }
    }
}
