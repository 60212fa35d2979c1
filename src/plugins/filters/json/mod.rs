//! Works on events that are JSON objects: keeps or drops by fields, then changes fields. Lazy: an event is parsed only where its bytes
//! say that it may match. A value that an event must have is looked for by SIMD over the whole chunk first; what has neither it nor a
//! backslash (by which JSON can write any character in another way) cannot match.
mod edit;

use std::ops::Range;

use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::edit::{Edit, Edited};
use super::*;
use crate::plugins::{
    BadValue, Opt,
    json::{Found, Path, Wanted, is_object, look},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "json",
    tag: "v1",
    stable: true,
    about: "events that are JSON objects: keeps or drops by fields; selects, removes, renames, adds, parses fields",
    delivery: "an event taken away counts as filtered, by reason: no_match, match, not_json",
    options: &[
        Opt {
            name: "keep",
            default: "none",
            about: "keeps events that have all these fields with these values: `{ level = \"error\", status = [500, 502] }`; a list means any of them",
        },
        Opt {
            name: "has",
            default: "none",
            about: "keeps events that have all these fields, whatever their value",
        },
        Opt {
            name: "drop",
            default: "none",
            about: "drops events that have all these fields with these values",
        },
        Opt {
            name: "parse",
            default: "none",
            about: "fields that hold JSON as text: becomes part of the event; what is no JSON stays, and is counted as not_nested_json",
        },
        Opt {
            name: "select",
            default: "none",
            about: "only these fields stay",
        },
        Opt {
            name: "remove",
            default: "none",
            about: "these fields go",
        },
        Opt {
            name: "rename",
            default: "none",
            about: "`{ old = \"new\" }`: the field gets this name where it is; a field that has it goes",
        },
        Opt {
            name: "add",
            default: "none",
            about: "`{ env = \"prod\" }`: at the end, in place of a field of that name",
        },
        Opt {
            name: "on_error",
            default: "\"keep\"",
            about: "what is no JSON object: `keep` lets it pass untouched and counts it, `drop` takes it away",
        },
    ],
    sample: r#"{ plugin = "json", keep = { level = ["warn", "error"] }, remove = ["debug"], rename = { msg = "message" } }"#,
    check: |table| Json::rules(table).map(drop),
    build: |table, context| {
        let (rules, on_error) = Json::rules(table)?;
        Ok(Box::new(Json {
            rules,
            hits: vec![],
            failures: Failures::new(on_error, "not_json", &context),
            nested: Failures::new(OnError::Keep, "not_nested_json", &context),
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "json",
    options: r#"{"keep":{"level":["warn","error"]},"remove":["debug"],"rename":{"msg":"message"},"add":{"env":"prod"}}"#,
    lines: &[
        r#"{"level":"error","msg":"disk full","debug":{"pid":17},"took":1.50}"#,
        r#"{"level":"info","msg":"started"}"#,
        r#"{"msg":"slow","level":"warn"}"#,
        "plain text",
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    keep: Map<String, Value>,
    #[serde(default)]
    has: Vec<String>,
    #[serde(default)]
    drop: Map<String, Value>,
    #[serde(default)]
    parse: Vec<String>,
    #[serde(default)]
    select: Vec<String>,
    #[serde(default)]
    remove: Vec<String>,
    #[serde(default)]
    rename: Map<String, Value>,
    #[serde(default)]
    add: Map<String, Value>,
    #[serde(default)]
    on_error: OnError,
}

struct Rules {
    keep: Option<Conditions>,
    drop: Option<Conditions>,
    edit: Edit,
}
/// All of these.
struct Conditions {
    /// None: any value.
    fields: Vec<(Path, Option<Vec<Wanted>>)>,
    /// Of one of them, what an event must have to match. None: nothing that is worth a search.
    must: Option<Vec<Finder<'static>>>,
}
impl Conditions {
    fn new(fields: Vec<(Path, Option<Vec<Wanted>>)>) -> Option<Self> {
        // The longest is likely the rarest; each further value costs a search of its own.
        let bytes = |(path, wanted): &(Path, Option<Vec<Wanted>>)| match wanted {
            Some(wanted) => wanted.iter().map(|w| w.bytes().to_owned()).collect::<Vec<_>>(),
            None => path.names.last().into_iter().cloned().collect(),
        };
        let all = fields.iter().map(bytes);
        let shortest = |all: &Vec<String>| all.iter().map(String::len).min().unwrap_or(0);
        let best = all.filter(|all| (1..=8).contains(&all.len()) && shortest(all) > 0);
        let best = best.max_by_key(|all| (shortest(all), std::cmp::Reverse(all.len())));
        let finder = |text: String| Finder::new(text.as_bytes()).into_owned();
        let must = best.map(|all| all.into_iter().map(finder).collect());
        (!fields.is_empty()).then_some(Self { fields, must })
    }
    /// Into `hits`: the events that may match.
    fn may(&self, events: &Events, hits: &mut Vec<u32>) -> bool {
        let Some(must) = &self.must else { return false };
        let mut next = vec![Next::Unknown; must.len() + 1];
        events.hits(hits, |stretch, from| {
            if from == 0 {
                next.fill(Next::Unknown); // another stretch
            }
            let mut first: Option<Range<usize>> = None;
            for (i, next) in next.iter_mut().enumerate() {
                let finder = must.get(i);
                let len = finder.map_or(1, |finder| finder.needle().len());
                let find = |rest: &[u8]| match finder {
                    Some(finder) => finder.find(rest),
                    None => memchr::memchr(b'\\', rest),
                };
                let at = next.from(from, || find(&stretch[from..]).map(|at| from + at));
                if let Some(at) = at
                    && first.as_ref().is_none_or(|first| at < first.start)
                {
                    first = Some(at..at + len);
                }
            }
            first
        });
        true
    }
    /// None: cannot be said.
    fn fit(&self, event: &[u8]) -> Option<bool> {
        for (path, wanted) in &self.fields {
            let fits = match (look(event, path), wanted) {
                (Found::NotJson, _) => return None,
                (Found::Nothing, _) => false,
                (Found::Value(_), None) => true,
                (Found::Value(value), Some(wanted)) => wanted.iter().any(|wanted| value.is(wanted)),
            };
            if !fits {
                return Some(false);
            }
        }
        Some(true)
    }
}
/// Where a needle comes next, so that one that is far off or nowhere is not looked for again and again.
#[derive(Clone, Copy)]
enum Next {
    Unknown,
    At(usize),
    Nowhere,
}
impl Next {
    fn from(&mut self, from: usize, find: impl FnOnce() -> Option<usize>) -> Option<usize> {
        match *self {
            Self::At(at) if at >= from => return Some(at),
            Self::Nowhere => return None,
            _ => {}
        }
        let found = find();
        *self = found.map_or(Self::Nowhere, Self::At);
        found
    }
}

struct Json {
    rules: Rules,
    hits: Vec<u32>,
    failures: Failures,
    nested: Failures,
}
impl Json {
    fn rules(table: &Table) -> Result<(Rules, OnError), BadValue> {
        let config = table.read::<Config>()?;
        let path = |key: &str, text: &str| Path::new(text).map_err(|error| BadValue::new(key, error));
        let mut keep = wanted("keep", "", &config.keep)?;
        for field in &config.has {
            keep.push((path("has", field)?, None));
        }
        let drop = wanted("drop", "", &config.drop)?;
        let mut edit = Edit::default();
        for field in &config.parse {
            edit.parse(&path("parse", field)?);
        }
        for field in &config.select {
            edit.select(&path("select", field)?);
        }
        for field in &config.remove {
            edit.remove(&path("remove", field)?);
        }
        for (field, to) in flat("", &config.rename) {
            let Value::String(to) = to else {
                return Err(BadValue::new(
                    format!("rename.{field}"),
                    format!("found {to}, accepted: a name"),
                ));
            };
            edit.rename(&path("rename", &field)?, to);
        }
        for (name, value) in &config.add {
            edit.add(name, value.to_string());
        }
        if keep.is_empty() && drop.is_empty() && edit.is_nothing() {
            return Err(BadValue::new(
                "",
                "found nothing to do, accepted: at least one of keep, has, drop, parse, select, remove, rename, add",
            ));
        }
        let (keep, drop) = (Conditions::new(keep), Conditions::new(drop));
        Ok((Rules { keep, drop, edit }, config.on_error))
    }
}
/// Takes away by these conditions: what fits if `drops`, else what does not.
fn by(
    conditions: &Conditions,
    drops: bool,
    events: Events,
    hits: &mut Vec<u32>,
    failed: &mut Failed,
    dropped: &mut Dropped,
) -> Events {
    let searched = conditions.may(&events, hits);
    let (mut hits, mut gone) = (hits.iter().peekable(), 0);
    let left = events.retain_numbered(|i, event| {
        let may = hits.next_if_eq(&&i).is_some() || !searched;
        let fits = if may {
            conditions.fit(event)
        } else {
            is_object(event).then_some(false)
        };
        match fits {
            Some(fits) if fits == drops => {
                gone += 1;
                false
            }
            Some(_) => true,
            None => failed.stays(event),
        }
    });
    note(dropped, if drops { "match" } else { "no_match" }, gone);
    left
}
/// Events that could not be read, by where they stand in memory: one that passes may be met again by the next step, and counts once.
struct Failed {
    on_error: OnError,
    at: Vec<usize>,
}
impl Failed {
    fn stays(&mut self, event: &[u8]) -> bool {
        self.at.push(event.as_ptr() as usize);
        self.on_error == OnError::Keep
    }
    fn count(mut self) -> u64 {
        self.at.sort_unstable();
        self.at.dedup();
        self.at.len() as u64
    }
}
/// `{ a = { b = 1 } }` is `{ "a.b" = 1 }`.
fn flat<'a>(before: &str, table: &'a Map<String, Value>) -> Vec<(String, &'a Value)> {
    let mut all = vec![];
    for (name, value) in table {
        let name = if before.is_empty() {
            name.clone()
        } else {
            format!("{before}.{name}")
        };
        match value {
            Value::Object(inner) => all.extend(flat(&name, inner)),
            value => all.push((name, value)),
        }
    }
    all
}
/// A field, and the values that it may have; none: any.
type Condition = (Path, Option<Vec<Wanted>>);
fn wanted(key: &str, before: &str, table: &Map<String, Value>) -> Result<Vec<Condition>, BadValue> {
    let mut fields = vec![];
    for (field, value) in flat(before, table) {
        let bad = |error| BadValue::new(format!("{key}.{field}"), error);
        let path = Path::new(&field).map_err(bad)?;
        let values = match value {
            Value::Array(values) if values.is_empty() => {
                return Err(bad("found an empty list, accepted: at least one value".into()));
            }
            Value::Array(values) => values.iter().collect(),
            value => vec![value],
        };
        let values = values.into_iter().map(Wanted::new).collect::<Result<Vec<_>, _>>();
        fields.push((path, Some(values.map_err(bad)?)));
    }
    Ok(fields)
}

impl Filter for Json {
    fn apply(&mut self, mut events: Events, dropped: &mut Dropped) -> Events {
        let Self {
            rules: Rules { keep, drop, edit },
            hits,
            failures,
            nested,
        } = self;
        let (mut failed, mut unparsed) = (
            Failed {
                on_error: failures.on_error,
                at: vec![],
            },
            0,
        );
        if let Some(keep) = keep {
            events = by(keep, false, events, hits, &mut failed, dropped);
        }
        if let Some(drop) = drop {
            events = by(drop, true, events, hits, &mut failed, dropped);
        }
        if !edit.is_nothing() {
            events = rewrite(events, |_, event, out| {
                let (edited, more) = edit.edit(event, out);
                unparsed += more;
                match edited {
                    Edited::Changed => Becomes::Changed,
                    Edited::Same => Becomes::Same,
                    Edited::NotJson if failed.stays(event) => Becomes::Same,
                    Edited::NotJson => Becomes::Gone,
                }
            });
        }
        nested.set(unparsed);
        failures.set(failed.count());
        failures.end(dropped);
        events
    }
    fn commit(&mut self) {
        self.failures.commit();
        self.nested.commit();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::*, *};

    #[test]
    fn keeps_by_fields() {
        let lines = [
            r#"{"level":"error","n":1}"#,
            r#"{"level":"info","n":1}"#,
            r#"{"level":"\u0065rror"}"#,
            r#"{"msg":"error"}"#,
            "text error",
            "",
            r#"{"level":"error""#,
        ];
        let (left, dropped) = run("json", r#"{"keep":{"level":"error"}}"#, &lines);
        assert_eq!(left, [lines[0], lines[2], lines[4], lines[5], lines[6]]);
        assert_eq!(dropped, [("no_match", 2)]);
        let (left, dropped) = run(
            "json",
            r#"{"keep":{"level":["error","info"],"n":1},"on_error":"drop"}"#,
            &lines,
        );
        assert_eq!(
            (left.len(), summed(&dropped)),
            (2, [("no_match", 2), ("not_json", 3)].into())
        );
        let (left, dropped) = run("json", r#"{"drop":{"level":"error"}}"#, &lines[..4]);
        assert_eq!(
            (left, dropped),
            (vec![lines[1].to_owned(), lines[3].to_owned()], vec![("match", 2)])
        );
        let (left, _) = run("json", r#"{"has":["n"],"keep":{"level":"info"}}"#, &lines[..4]);
        assert_eq!(left, [lines[1]]);
        // A field in a field, both ways to write it; an empty text, which is in every line.
        let nested = [r#"{"a":{"b":200.0}}"#, r#"{"a":{"b":201}}"#, r#"{"a":{"b":""}}"#];
        assert_eq!(run("json", r#"{"keep":{"a.b":200}}"#, &nested).0, [nested[0]]);
        assert_eq!(
            run("json", r#"{"keep":{"a":{"b":[200, 201]}}}"#, &nested).0,
            nested[..2]
        );
        assert_eq!(run("json", r#"{"keep":{"a.b":""}}"#, &nested).0, nested[2..]);
    }
    #[test]
    fn what_passes_unread_is_counted_once() {
        let options = r#"{"keep":{"a":1},"drop":{"b":2},"remove":["c"],"parse":["d"]}"#;
        let (mut filter, tally) = build_counting("json", options);
        let (left, dropped) = pass(
            &mut *filter,
            &["text", r#"{"a":1,"c":3,"d":"{"}"#, r#"{"a":1,"b":2}"#, r#"{"a":1"#],
        );
        assert_eq!(left, ["text", r#"{"a":1,"d":"{"}"#, r#"{"a":1"#]);
        assert_eq!(dropped, [("match", 1)]);
        assert_eq!(tally.all(), [("not_json", 2), ("not_nested_json", 1)]);
    }
    #[test]
    fn nothing_to_change_touches_nothing() {
        untouched(
            "json",
            r#"{"keep":{"a":1},"remove":["x"],"select":["a"]}"#,
            &[r#"{"a":1}"#, r#"{ "a" : 1 }"#, "text"],
        );
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            ("{}", ""),
            (r#"{"keep":{"a":{}}}"#, ""),
            (r#"{"keep":{"a":[]}}"#, "keep.a"),
            (r#"{"keep":{"a":[[1]]}}"#, "keep.a"),
            (r#"{"keep":{"a..b":1}}"#, "keep.a..b"),
            (r#"{"rename":{"a":1}}"#, "rename.a"),
            (r#"{"select":[""]}"#, "select"),
            (r#"{"keeps":{}}"#, "keeps"),
            (r#"{"has":["a"],"on_error":"ignore"}"#, "on_error"),
        ] {
            assert_eq!(refused("json", options).key, key, "{options}");
        }
    }

    proptest! {
        /// The search before the parser changes nothing: as if each event were parsed as a whole.
        #[test]
        fn as_serde_json_says(
            events in prop::collection::vec("\\{\"(a|b|\\\\u0061)\":(5|50|5\\.0|\"5\"|\"x5\"|\"\\\\u0035\"|true|null|\\[5\\])(,\"b\":(5|6))?\\}", 0..12), drops: bool,
        ) {
            let options = if drops { r#"{"drop":{"a":[5,"5",true]}}"# } else { r#"{"keep":{"a":[5,"5",true]}}"# };
            let lines = events.iter().map(String::as_str).collect::<Vec<_>>();
            let fits = |line: &&str| {
                let value = &serde_json::from_str::<Value>(line).unwrap()["a"];
                value.as_f64() == Some(5.0) || value == "5" || value == true
            };
            let expected = lines.iter().copied().filter(|line| fits(line) != drops).collect::<Vec<_>>();
            prop_assert_eq!(run("json", options, &lines).0, expected);
        }
    }
}
