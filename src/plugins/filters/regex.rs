//! Takes text apart by a regular expression: each named group becomes a field of a JSON object, which is the new event.
use ::regex::bytes::{CaptureLocations, Regex};
use serde::Deserialize;

use super::{
    fields::{Object, Type, Types},
    search::parse,
    *,
};
use crate::plugins::{BadValue, Opt};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "regex",
    tag: "v1",
    stable: true,
    about: "takes text apart: the named groups of a pattern become the fields of a JSON object",
    delivery: "with on_error = \"drop\" an event taken away counts as filtered, by reason: no_match",
    options: &[
        Opt {
            name: "pattern",
            default: "required",
            about: "a regular expression with named groups: `(?<status>\\d+)`. A group that took no part gives no field",
        },
        Opt {
            name: "types",
            default: "none",
            about: "`{ status = \"number\" }`: text (as without), number, bool; what is none stays text",
        },
        Opt {
            name: "original",
            default: "none",
            about: "the name of a field that gets the event as it was",
        },
        Opt {
            name: "on_error",
            default: "\"keep\"",
            about: "an event without a match: `keep` lets it pass untouched and counts it, `drop` takes it away",
        },
    ],
    sample: r#"{ plugin = "regex", pattern = '^(?<ip>\S+) \S+ \S+ \[(?<time>[^\]]+)\] "(?<request>[^"]*)" (?<status>\d+)', types = { status = "number" } }"#,
    check: |table| parts(table).map(drop),
    build: |table, context| {
        let (pattern, fields, config) = parts(table)?;
        let failures = Failures::new(config.on_error, "no_match", &context);
        Ok(Box::new(ByRegex {
            at: pattern.capture_locations(),
            pattern,
            fields,
            original: config.original,
            failures,
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "regex",
    options: r#"{"pattern":"^(?<ip>\\S+) \"(?<method>[A-Z]+) (?<path>\\S+)[^\"]*\" (?<status>\\d+)(?: (?<took>[0-9.]+)s)?","types":{"status":"number","took":"number"}}"#,
    lines: &[
        r#"10.0.0.7 "GET /shop HTTP/1.1" 200 0.012s"#,
        r#"10.0.0.8 "POST /cart HTTP/1.1" 500"#,
        "-- rotated --",
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    pattern: String,
    #[serde(default)]
    types: Types,
    #[serde(default)]
    original: Option<String>,
    #[serde(default)]
    on_error: OnError,
}
/// Group, field, type.
type Fields = Vec<(usize, String, Type)>;

fn parts(table: &Table) -> Result<(Regex, Fields, Config), BadValue> {
    let config = table.read::<Config>()?;
    let bad = |error: String| BadValue::new("pattern", error);
    parse(&config.pattern, false, false).map_err(bad)?; // for its message
    let pattern = Regex::new(&config.pattern).map_err(|error| bad(error.to_string()))?;
    let names = pattern.capture_names().enumerate();
    let named = names.filter_map(|(i, name)| Some((i, name?.to_owned(), Type::Text)));
    let mut fields = named.collect::<Fields>();
    if fields.is_empty() {
        return Err(bad(format!(
            "found {:?}, accepted: at least one named group, as (?<name>…)",
            config.pattern
        )));
    }
    for (name, kind) in &config.types {
        let Some(field) = fields.iter_mut().find(|(_, field, _)| field == name) else {
            let names = fields.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>();
            let message = format!("found no such group in the pattern, accepted: {}", names.join(", "));
            return Err(BadValue::new(format!("types.{name}"), message));
        };
        field.2 = *kind;
    }
    if let Some(original) = &config.original
        && fields.iter().any(|(_, name, _)| name == original)
    {
        return Err(BadValue::new(
            "original",
            format!("found {original:?}, which is a group of the pattern, accepted: another name"),
        ));
    }
    Ok((pattern, fields, config))
}

struct ByRegex {
    pattern: Regex,
    /// Room for one event's groups.
    at: CaptureLocations,
    fields: Fields,
    original: Option<String>,
    failures: Failures,
}
impl Filter for ByRegex {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        let Self {
            pattern,
            at,
            fields,
            original,
            failures,
        } = self;
        failures.begin();
        let left = rewrite(events, |_, event, out| {
            if pattern.captures_read(at, event).is_none() {
                return if failures.one() { Becomes::Same } else { Becomes::Gone };
            }
            let mut object = Object::begin(out);
            for (group, name, kind) in fields.iter() {
                if let Some((from, to)) = at.get(*group) {
                    object.field(name, &event[from..to], *kind);
                }
            }
            if let Some(name) = original {
                object.field(name, event, Type::Text);
            }
            object.end();
            Becomes::Changed
        });
        failures.end(dropped);
        left
    }
    fn commit(&mut self) {
        self.failures.commit();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};

    #[test]
    fn groups_become_fields() {
        let options = r#"{"pattern":"(?<a>\\w+)=(?<n>\\S*)(?: (?<ok>\\w+))?","types":{"n":"number","ok":"bool"},"original":"was"}"#;
        let (left, dropped) = run("regex", options, &["x=1", "x=01 true", "none", "\"q=\u{e9}\t maybe"]);
        assert_eq!(
            left,
            [
                r#"{"a":"x","n":1,"was":"x=1"}"#,
                r#"{"a":"x","n":"01","ok":true,"was":"x=01 true"}"#,
                "none",
                "{\"a\":\"q\",\"n\":\"\u{e9}\",\"was\":\"\\\"q=\u{e9}\\t maybe\"}",
            ]
        );
        assert!(dropped.is_empty());
        let mut dropped = Dropped::new();
        let bytes: &[&[u8]] = &[b"a=\xff"];
        let left = build("regex", r#"{"pattern":"(?s-u:a=(?<v>.*))"}"#).apply(events(bytes), &mut dropped);
        assert_eq!(left.iter().collect::<Vec<_>>(), ["{\"v\":\"\u{fffd}\"}".as_bytes()]);
    }
    #[test]
    fn without_a_match() {
        let (mut filter, tally) = build_counting("regex", r#"{"pattern":"(?<n>\\d+)"}"#);
        assert_eq!(
            pass(&mut *filter, &["a", "1", "b"]),
            (vec!["a".into(), r#"{"n":"1"}"#.into(), "b".into()], vec![])
        );
        assert_eq!(tally.all(), [("no_match", 2)]);
        let (left, dropped) = run(
            "regex",
            r#"{"pattern":"(?<n>\\d+)","on_error":"drop"}"#,
            &["a", "1", "b"],
        );
        assert_eq!((left, dropped), (vec![r#"{"n":"1"}"#.into()], vec![("no_match", 2)]));
        untouched("regex", r#"{"pattern":"(?<n>\\d+)"}"#, &["a", "b"]);
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            (r#"{"pattern":"(\\d+)"}"#, "pattern"),
            (r#"{"pattern":"(?<a>"}"#, "pattern"),
            (r#"{"pattern":"(?<a>b)","types":{"b":"number"}}"#, "types.b"),
            (r#"{"pattern":"(?<a>b)","types":{"a":"int"}}"#, "types.a"),
            (r#"{"pattern":"(?<a>b)","original":"a"}"#, "original"),
        ] {
            assert_eq!(refused("regex", options).key, key, "{options}");
        }
    }
}
