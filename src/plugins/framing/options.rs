//! The options of framing, as every input takes them, and what they come to.
use std::{path::Path, sync::Arc, time::Duration};

use regex::bytes::Regex;
use serde_json::{Map, Value};

use super::{
    OnLongLine, Rules, container,
    encoding::{self, Wanted},
    multiline::{Multiline, PRESETS},
    records::Framer,
};
use crate::{
    model::units::{Size, Span},
    plugins::{BadValue, Opt},
};

pub const FRAMING: Opt = Opt {
    name: "framing",
    default: "\"lines\"",
    about: "Where an event ends. lines: at a line feed. crlf: there, and a carriage return before it goes as well. { delimiter = \"…\" }: at \
            these characters. cri (containerd, CRI-O), docker (json-file): the text that a container wrote, its partial lines joined (at the \
            latest after flush_partial, or 5s); namespace, pod, container and container_id come from the path and show with encode = \"json\". \
            A line of another form is given out as it is (counted lines_malformed).",
};
pub const MULTILINE: Opt = Opt {
    name: "multiline",
    default: "none",
    about: "Joins lines to one event: \"java\", \"python\" or \"go\" (stack traces, with the line before them), or exactly one pattern: { start = \
            \"^\\\\d\" } begins an event, { continue = \"^\\\\s\" } belongs to the one before, { end = \";$\" } ends it. timeout = \"5s\": an event \
            that gets no more for so long is complete. With preset = \"java\" in the table that one's timeout is set. max_line counts \
            for the whole event.",
};
pub const ENCODING: Opt = Opt {
    name: "encoding",
    default: "\"utf-8\"",
    about: "utf-8: bytes stay as they are. utf-16le, utf-16be, gbk, gb18030, big5, shift-jis, euc-kr or another WHATWG label: becomes UTF-8, \
            what is malformed becomes U+FFFD (counted lines_replaced). auto: the byte order mark of each file tells, utf-8 without. A mark is \
            left out, and tells more than a label.",
};
pub const KEEP_FIELDS: Opt = Opt {
    name: "keep_fields",
    default: "false",
    about: "With framing cri or docker: an event becomes one JSON object {time, stream, message}, the first two being of its first line.",
};
/// An open record of cri or docker is given out after so long, if `flush_partial` says nothing else.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_DELIMITER: usize = 64;

/// The options as they are written.
#[derive(Default)]
pub struct Written<'a> {
    pub framing: Option<&'a Value>,
    pub multiline: Option<&'a Value>,
    pub encoding: Option<&'a str>,
    pub keep_fields: bool,
}

/// How a source's bytes become events.
#[derive(Clone)]
pub struct Framing {
    pub rules: Rules,
    /// None: plain lines, as they are.
    pub plan: Option<Arc<Plan>>,
}
impl From<Rules> for Framing {
    fn from(rules: Rules) -> Self {
        Self { rules, plan: None }
    }
}
/// Everything but plain lines.
pub struct Plan {
    pub rules: Rules,
    pub kind: Kind,
    pub delimiter: String,
    /// A carriage return before the delimiter goes with it.
    pub strips_return: bool,
    pub multiline: Option<Multiline>,
    pub encoding: Wanted,
    pub keep_fields: bool,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lines,
    Cri,
    Docker,
}

impl Framing {
    pub fn read(max_line: Size, on_long_line: OnLongLine, written: &Written<'_>) -> Result<Self, BadValue> {
        let rules = Rules::new(max_line, on_long_line)?;
        let encoding = written.encoding.map_or(Ok(Wanted::AsIs), Wanted::read)?;
        let (kind, delimiter, strips_return) = written
            .framing
            .map_or_else(|| read_framing(&"lines".into()), read_framing)?;
        encoding::check_delimiter(&delimiter, encoding)?;
        let multiline = written.multiline.map(read_multiline).transpose()?;
        if kind == Kind::Lines && written.keep_fields {
            let message = "found true without fields to keep, accepted with framing = \"cri\" or \"docker\"";
            return Err(BadValue::new("keep_fields", message));
        }
        if kind != Kind::Lines && encoding != Wanted::AsIs {
            let message = "found with framing cri or docker, which are always UTF-8, accepted: leave it out";
            return Err(BadValue::new("encoding", message));
        }
        let plain = kind == Kind::Lines && delimiter == "\n" && !strips_return;
        if plain && multiline.is_none() && encoding == Wanted::AsIs {
            return Ok(rules.into());
        }
        let plan = Plan {
            rules,
            kind,
            delimiter,
            strips_return,
            multiline,
            encoding,
            keep_fields: written.keep_fields,
        };
        Ok(Self {
            rules,
            plan: Some(Arc::new(plan)),
        })
    }
    /// What the path of a source says about it.
    pub fn tags(&self, path: &Path) -> Vec<(&'static str, String)> {
        match &self.plan {
            Some(plan) if plan.kind != Kind::Lines => container::tags(path),
            _ => Vec::new(),
        }
    }
    /// After so long without news what is open of a record is given out.
    pub fn record_timeout(&self, flush_partial: Option<Duration>) -> Option<Duration> {
        let plan = self.plan.as_ref()?;
        let joins = (plan.kind != Kind::Lines).then(|| flush_partial.unwrap_or(JOIN_TIMEOUT));
        // Pieces of a line are part of a record: who waits for the record waits for them.
        plan.multiline.as_ref().map(|multiline| multiline.timeout).or(joins)
    }
}
impl Plan {
    /// A framer for a source that begins with these bytes, to go on at this place. None: too few are there to tell its encoding.
    pub fn framer(self: &Arc<Self>, start: &[u8], more: bool, at: u64) -> Option<Framer> {
        let (text, mark) = self.encoding.of(start, more)?;
        Some(Framer::new(self.clone(), text, at.max(mark as u64)))
    }
}

type Lines = (Kind, String, bool);

fn read_framing(value: &Value) -> Result<Lines, BadValue> {
    let lines = |delimiter: &str, strips| Ok((Kind::Lines, delimiter.to_owned(), strips));
    let accepted = "accepted: \"lines\", \"crlf\", \"cri\", \"docker\" or { delimiter = \"…\" }";
    match value {
        Value::String(word) => match word.as_str() {
            "lines" => lines("\n", false),
            "crlf" => lines("\n", true),
            "cri" => Ok((Kind::Cri, "\n".to_owned(), false)),
            "docker" => Ok((Kind::Docker, "\n".to_owned(), false)),
            other => Err(BadValue::new("framing", format!("found {other:?}, {accepted}"))),
        },
        Value::Object(table) => {
            only(table, "framing", &["delimiter"])?;
            match table.get("delimiter") {
                Some(Value::String(text)) if (1..=LONGEST_DELIMITER).contains(&text.len()) => lines(text, false),
                other => {
                    let message = format!(
                        "found {}, accepted: text of 1 to {LONGEST_DELIMITER} bytes",
                        shown(other)
                    );
                    Err(BadValue::new("framing.delimiter", message))
                }
            }
        }
        other => Err(BadValue::new("framing", format!("found {other}, {accepted}"))),
    }
}
fn read_multiline(value: &Value) -> Result<Multiline, BadValue> {
    let accepted = format!(
        "accepted: \"{}\", or one of {{ start = \"…\" }}, {{ continue = \"…\" }}, {{ end = \"…\" }}, {{ preset = \"…\" }}, with timeout",
        PRESETS.join("\", \"")
    );
    let preset = |key: &str, name: &str| {
        let message = || format!("found {name:?}, accepted: \"{}\"", PRESETS.join("\", \""));
        Multiline::preset(name).ok_or_else(|| BadValue::new(key, message()))
    };
    let table = match value {
        Value::String(name) => return preset("multiline", name),
        Value::Object(table) => table,
        other => return Err(BadValue::new("multiline", format!("found {other}, {accepted}"))),
    };
    only(table, "multiline", &["start", "continue", "end", "preset", "timeout"])?;
    let rules = table.iter().filter(|(key, _)| *key != "timeout").collect::<Vec<_>>();
    let [(rule, pattern)] = rules[..] else {
        let found = match rules.len() {
            0 => "no rule".to_owned(),
            n => format!("{n} rules"),
        };
        return Err(BadValue::new("multiline", format!("found {found}, {accepted}")));
    };
    let key = format!("multiline.{rule}");
    let Value::String(text) = pattern else {
        return Err(BadValue::new(key, format!("found {pattern}, accepted: text")));
    };
    let regex = |text: &str| {
        Regex::new(text).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            BadValue::new(
                &*key,
                format!("found {text:?}, accepted: a regular expression ({reason})"),
            )
        })
    };
    let mut multiline = match rule.as_str() {
        "start" => Multiline::start(regex(text)?),
        "continue" => Multiline::goes_on(regex(text)?),
        "end" => Multiline::end(regex(text)?),
        _ => preset(&key, text)?,
    };
    if let Some(timeout) = table.get("timeout") {
        let span = serde_json::from_value::<Span>(timeout.clone());
        let span = span.map_err(|error| BadValue::new("multiline.timeout", error.to_string()))?;
        if span.0.is_zero() {
            let message = "found 0s, accepted: a duration above zero";
            return Err(BadValue::new("multiline.timeout", message));
        }
        multiline.timeout = span.0;
    }
    Ok(multiline)
}
fn only(table: &Map<String, Value>, place: &str, known: &[&str]) -> Result<(), BadValue> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let message = format!("found an unknown key, accepted: {}", known.join(", "));
            Err(BadValue::new(format!("{place}.{key}"), message))
        }
    }
}
fn shown(value: Option<&Value>) -> String {
    value.map_or("none".to_owned(), Value::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::framing::default_max_line;

    fn read(options: Value) -> Result<Framing, String> {
        let written = Written {
            framing: options.get("framing"),
            multiline: options.get("multiline"),
            encoding: options.get("encoding").and_then(Value::as_str),
            keep_fields: options.get("keep_fields").is_some(),
        };
        Framing::read(default_max_line(), OnLongLine::Cut, &written).map_err(|error| error.to_string())
    }
    #[test]
    fn plain_lines_need_no_plan() {
        for options in [
            json!({}),
            json!({"framing": "lines", "encoding": "UTF-8"}),
            json!({"framing": {"delimiter": "\n"}}),
        ] {
            assert!(read(options).unwrap().plan.is_none());
        }
        let plan = read(json!({"framing": "crlf"})).unwrap().plan.unwrap();
        assert!(plan.strips_return && plan.delimiter == "\n");
    }
    #[test]
    fn timeouts() {
        let timeout =
            |options, partial: Option<u64>| read(options).unwrap().record_timeout(partial.map(Duration::from_secs));
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(timeout(json!({"multiline": "go"}), None), seconds(5));
        assert_eq!(
            timeout(
                json!({"framing": "cri", "multiline": {"preset": "go", "timeout": "2s"}}),
                Some(9)
            ),
            seconds(2)
        );
        assert_eq!(timeout(json!({"framing": "docker"}), Some(9)), seconds(9));
        assert_eq!(timeout(json!({"framing": "docker"}), None), seconds(5));
        assert_eq!(timeout(json!({"framing": "crlf"}), Some(9)), None);
    }
    #[test]
    fn what_is_refused_says_where_and_why() {
        for (options, expected) in [
            (
                json!({"framing": "xml"}),
                "framing: found \"xml\", accepted: \"lines\", \"crlf\"",
            ),
            (json!({"framing": 5}), "framing: found 5, accepted"),
            (
                json!({"framing": {"delimiter": ""}}),
                "framing.delimiter: found \"\", accepted: text of 1 to 64",
            ),
            (json!({"framing": {}}), "framing.delimiter: found none"),
            (
                json!({"framing": {"delimeter": "x"}}),
                "framing.delimeter: found an unknown key, accepted: delimiter",
            ),
            (
                json!({"multiline": "cobol"}),
                "multiline: found \"cobol\", accepted: \"java\", \"python\", \"go\"",
            ),
            (json!({"multiline": {}}), "multiline: found no rule"),
            (
                json!({"multiline": {"start": "a", "end": "b"}}),
                "multiline: found 2 rules",
            ),
            (
                json!({"multiline": {"start": "("}}),
                "multiline.start: found \"(\", accepted: a regular expression (unclosed group)",
            ),
            (json!({"multiline": {"start": 1}}), "multiline.start: found 1"),
            (
                json!({"multiline": {"begin": "a"}}),
                "multiline.begin: found an unknown key",
            ),
            (
                json!({"multiline": {"start": "a", "timeout": "0s"}}),
                "multiline.timeout: found 0s",
            ),
            (
                json!({"multiline": {"start": "a", "timeout": 5}}),
                "multiline.timeout: ",
            ),
            (json!({"multiline": {"preset": "c"}}), "multiline.preset: found \"c\""),
            (json!({"encoding": "x"}), "encoding: found \"x\""),
            (
                json!({"encoding": "gbk", "framing": {"delimiter": "|"}}),
                "framing.delimiter: found delimiter \"|\" with encoding GBK",
            ),
            (
                json!({"encoding": "gbk", "framing": "cri"}),
                "encoding: found with framing cri",
            ),
            (json!({"keep_fields": true}), "keep_fields: found true without fields"),
        ] {
            let error = read(options.clone())
                .err()
                .unwrap_or_else(|| panic!("{options} is accepted"));
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
