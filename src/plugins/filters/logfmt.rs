//! `level=info msg="it is" done` to a JSON object, and back.
use std::borrow::Cow;

use serde::Deserialize;
use sonic_rs::JsonValueTrait;

use super::{
    fields::{Object, Types},
    *,
};
use crate::plugins::{
    Opt,
    json::{is_object, is_shallow},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "logfmt",
    tag: "v1",
    stable: true,
    about: "`key=value` pairs to a JSON object, or a JSON object to pairs",
    delivery: "with on_error = \"drop\" an event taken away counts as filtered, by reason: not_logfmt, not_json",
    options: &[
        Opt {
            name: "to",
            default: "\"json\"",
            about: "`json`: pairs to an object, a key without a value is true, of two equal keys the last counts; `logfmt`: an object to pairs, fields in fields as `a.b=…`",
        },
        Opt {
            name: "types",
            default: "none",
            about: "`{ took = \"number\" }`: text (as without), number, bool; what is none stays text",
        },
        Opt {
            name: "on_error",
            default: "\"keep\"",
            about: "an event without any pair, or that is no object: `keep` lets it pass untouched and counts it, `drop` takes it away",
        },
    ],
    sample: r#"{ plugin = "logfmt", types = { took = "number" } }"#,
    check: |table| table.read::<Config>().map(drop),
    build: |table, context| {
        let Config { to, types, on_error } = table.read()?;
        let reason = if to == To::Json { "not_logfmt" } else { "not_json" };
        let failures = Failures::new(on_error, reason, &context);
        Ok(Box::new(Logfmt { to, types, failures }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "logfmt",
    options: r#"{"types":{"took":"number"}}"#,
    lines: &[
        r#"level=info msg="user \"ann\" logged in" took=1.25 cached"#,
        "Started the service.",
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    to: To,
    #[serde(default)]
    types: Types,
    #[serde(default)]
    on_error: OnError,
}
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum To {
    #[default]
    Json,
    Logfmt,
}

struct Logfmt {
    to: To,
    types: Types,
    failures: Failures,
}
impl Filter for Logfmt {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        let Self { to, types, failures } = self;
        failures.begin();
        let left = rewrite(events, |_, event, out| {
            let done = match to {
                To::Json => to_json(event, types, out),
                To::Logfmt => to_logfmt(event, out),
            };
            match done {
                true => Becomes::Changed,
                false if failures.one() => Becomes::Same,
                false => Becomes::Gone,
            }
        });
        failures.end(dropped);
        left
    }
    fn commit(&mut self) {
        self.failures.commit();
    }
}

/// So many pairs of an event are compared with as many behind them: else one long line could take a second.
const MOST_COMPARED: usize = 256;

/// A key and its value; none: the key alone.
type Pair<'a> = (&'a [u8], Option<Cow<'a, [u8]>>);

/// Blanks lie between pairs; a key ends at `=` or a blank; a value in quotes ends at the next quote without a backslash before it.
struct Pairs<'a>(&'a [u8]);
impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;
    fn next(&mut self) -> Option<Pair<'a>> {
        let text = self.0.trim_ascii_start();
        if text.is_empty() {
            return None;
        }
        let end = text.iter().position(|b| *b == b'=' || b.is_ascii_whitespace());
        let (key, rest) = text.split_at(end.unwrap_or(text.len()));
        let Some(rest) = rest.strip_prefix(b"=") else {
            self.0 = rest;
            return Some((key, None));
        };
        if let Some(quoted) = rest.strip_prefix(b"\"")
            && let Some((value, rest)) = unquoted(quoted)
        {
            self.0 = rest;
            return Some((key, Some(value)));
        }
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        self.0 = rest;
        Some((key, Some(Cow::Borrowed(value))))
    }
}
/// Up to the closing quote, and what is behind it; none if there is none.
fn unquoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let first = memchr::memchr2(b'"', b'\\', text)?;
    if text[first] == b'"' {
        return Some((Cow::Borrowed(&text[..first]), &text[first + 1..]));
    }
    let (mut value, mut at) = (text[..first].to_vec(), first);
    loop {
        match *text.get(at)? {
            b'"' => return Some((Cow::Owned(value), &text[at + 1..])),
            b'\\' => {
                at += 1;
                value.push(match *text.get(at)? {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    other => other,
                });
            }
            other => value.push(other),
        }
        at += 1;
    }
}

fn to_json(event: &[u8], types: &Types, out: &mut Vec<u8>) -> bool {
    // Prose has words, which would all be keys: one `=` there must be.
    if !Pairs(event).any(|(key, value)| value.is_some() && !key.is_empty()) {
        return false;
    }
    let mut pairs = Pairs(event);
    let mut object = Object::begin(out);
    let mut seen = 0;
    while let Some((key, value)) = pairs.next() {
        // Few: looking ahead for an equal key costs less than a set. What has very many is no log line.
        seen += 1;
        let again = seen <= MOST_COMPARED && Pairs(pairs.0).take(MOST_COMPARED).any(|(later, _)| later == key);
        if key.is_empty() || again {
            continue;
        }
        let name = String::from_utf8_lossy(key);
        match value {
            None => object.name(&name).extend_from_slice(b"true"),
            Some(value) => object.field(&name, &value, types.get(&*name).copied().unwrap_or_default()),
        }
    }
    object.end();
    true
}

fn to_logfmt(event: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(text) = simdutf8::basic::from_utf8(event) else {
        return false;
    };
    if !is_object(event) || !is_shallow(event) || sonic_rs::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return false;
    }
    let from = out.len();
    pairs_of(text, "", from, out);
    true
}
/// Its depth is bounded by `is_shallow`.
fn pairs_of(object: &str, before: &str, from: usize, out: &mut Vec<u8>) {
    for (name, value) in sonic_rs::to_object_iter(object).map_while(Result::ok) {
        let name = name.replace(
            |c: char| c.is_whitespace() || c.is_control() || c == '=' || c == '"',
            "_",
        );
        let name = format!("{before}{name}");
        let raw = value.as_raw_str();
        if raw.starts_with('{') {
            pairs_of(raw, &format!("{name}."), from, out);
            continue;
        }
        if out.len() > from {
            out.push(b' ');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        let text = value.as_str();
        quote(text.unwrap_or(raw), text.is_none(), out);
    }
}
/// `plain`: a number, true, null, which need no quotes; a list does.
fn quote(value: &str, plain: bool, out: &mut Vec<u8>) {
    let special = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '=' | '\\');
    if (plain || !value.is_empty()) && !value.contains(special) {
        return out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
    for c in value.chars() {
        match c {
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::*, *};

    #[test]
    fn pairs_become_fields() {
        for (line, object) in [
            ("a=1 b=x", r#"{"a":1,"b":"x"}"#),
            (
                r#"a="x y" b="q \"in\" \\ \n" c="#,
                r#"{"a":"x y","b":"q \"in\" \\ \n","c":""}"#,
            ),
            ("  a=01\tdone  ", r#"{"a":"01","done":true}"#),
            ("a=1 a=2 b=3", r#"{"a":2,"b":"3"}"#),
            (r#"a="open b=1"#, r#"{"a":"\"open","b":"1"}"#),
            ("a=x=y =z", r#"{"a":"x=y"}"#),
            ("é=ü", r#"{"é":"ü"}"#),
        ] {
            let (left, _) = run("logfmt", r#"{"types":{"a":"number"}}"#, &[line]);
            assert_eq!(left, [object], "{line}");
        }
        let (mut filter, tally) = build_counting("logfmt", "{}");
        assert_eq!(
            pass(&mut *filter, &["plain words", "", "=x"]).0,
            ["plain words", "", "=x"]
        );
        assert_eq!(tally.all(), [("not_logfmt", 3)]);
        assert_eq!(
            run("logfmt", r#"{"on_error":"drop"}"#, &["words", "a=b"]),
            (vec![r#"{"a":"b"}"#.into()], vec![("not_logfmt", 1)])
        );
        untouched("logfmt", "{}", &["plain", "words"]);
    }
    #[test]
    fn and_back() {
        let lines = [
            r#"{"a": 1.50, "b": {"c": "x y", "d": [1, 2]}, "e k": "", "f": null, "g": "a\"b\n"}"#,
            "text",
            r#"{"a":1} x}"#,
            "{}",
        ];
        let (left, dropped) = run("logfmt", r#"{"to":"logfmt","on_error":"drop"}"#, &lines);
        assert_eq!(left, [r#"a=1.50 b.c="x y" b.d="[1, 2]" e_k="" f=null g="a\"b\n""#, ""]);
        assert_eq!(dropped, [("not_json", 2)]);
    }
    #[test]
    fn refuses() {
        assert_eq!(refused("logfmt", r#"{"to":"xml"}"#).key, "to");
        assert_eq!(refused("logfmt", r#"{"type":{}}"#).key, "type");
    }

    proptest! {
        #[test]
        fn there_and_back(fields in prop::collection::btree_map("[a-c]{1,2}", "[xy=\"\\\\ \n\t\u{e9}]{0,6}", 1..5)) {
            let object = serde_json::to_string(&fields).unwrap();
            let (pairs, _) = run("logfmt", r#"{"to":"logfmt"}"#, &[&object]);
            let (back, _) = run("logfmt", "{}", &[&pairs[0]]);
            prop_assert_eq!(&back[0], &object);
        }
        #[test]
        fn any_bytes_give_an_object(event in prop::collection::vec(prop::sample::select(b"ab=\" \\\t\xff\xc3\xa9".to_vec()), 0..20)) {
            let mut out = vec![];
            if to_json(&event, &Types::new(), &mut out) {
                serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(&out).unwrap();
            }
        }
    }
}
