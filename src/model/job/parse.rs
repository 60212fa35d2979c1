//! A job's value, read and checked. Unknown fields are refused: `exlusive` must not run on all hosts.
use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::{Invalid, JobKey, JobSpec, OnAgentStop, Overlap, Signature, Terms, When};
use crate::{
    model::{Size, Span},
    schedule::{self, Schedule},
};

/// Bytes.
pub const LONGEST_VALUE: usize = 64 << 10;
const LONGEST_ID: usize = 128;
/// So much of what was found is shown.
const LONGEST_FOUND: usize = 100;
/// For people; the agent takes no notice of them but to show one.
const DESCRIPTIONS: &[&str] = &[
    "name",
    "desc",
    "description",
    "owner",
    "comment",
    "labels",
    "created_at",
    "updated_at",
];
/// Set by the agent for each run: a job cannot set them, for the sweep finds a run's processes by one of them.
pub const OWN_ENV: &[&str] = &["AGENT_TASK_ID", "AGENT_RUN_ID", "AGENT_FIRE_TIME"];

/// What a job may ask for here, from the settings.
#[derive(Clone, Debug)]
pub struct Limits {
    /// By name: those built in and those that the settings define.
    pub executors: Vec<String>,
    pub ignore_fields: Vec<String>,
    /// Names that `on_failure` may give.
    pub webhooks: Vec<String>,
    /// The most that may be asked for.
    pub output_limit: u64,
    pub retries: u32,
    pub kill_after: Duration,
    pub jitter: Duration,
    /// Of a job that names none.
    pub zone: TimeZone,
    /// Why `on_agent_stop = leave` is not possible here; none: it is.
    pub leave_refused: Option<String>,
}
impl Default for Limits {
    fn default() -> Self {
        Self {
            executors: ["bash", "sh", "python3", "exec"].map(String::from).to_vec(),
            ignore_fields: vec![],
            webhooks: vec![],
            output_limit: 16 << 20,
            retries: 100,
            kill_after: Duration::from_secs(300),
            jitter: Duration::from_secs(3600),
            zone: TimeZone::UTC,
            leave_refused: Some("this host has no scope of its own for a run".into()),
        }
    }
}

/// `[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}`
pub fn is_task_id(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= LONGEST_ID && text.bytes().next().is_some_and(fits) && text.bytes().all(|b| fits(b) || b == b'.')
}

pub fn parse(key: &JobKey, value: &[u8], limits: &Limits) -> Result<JobSpec, Invalid> {
    if !is_task_id(&key.task_id) {
        return refuse(
            "task_id",
            short(&format!("{:?}", key.task_id)),
            "letters, digits, `_`, `-` and, but for the first, `.`; 128 at most",
        );
    }
    if value.len() > LONGEST_VALUE {
        return refuse(
            "",
            format!("{} bytes", value.len()),
            format!("{LONGEST_VALUE} bytes at most"),
        );
    }
    let object = "a JSON object as {\"cmd\": …, \"express\": …}";
    let text = match std::str::from_utf8(value) {
        Ok(text) => text,
        Err(error) => return refuse("", format!("no UTF-8 at byte {}", error.valid_up_to()), object),
    };
    let fields = serde_json::from_str::<Fields>(text).map_err(|error| Invalid {
        field: String::new(),
        found: format!("{} ({error})", short(&format!("{text:?}"))),
        accepted: object.into(),
    })?;
    read(key, fields, limits)
}

fn read(key: &JobKey, mut fields: Fields, limits: &Limits) -> Result<JobSpec, Invalid> {
    match fields.take("task_id") {
        None => {}
        Some(Value::Number(n)) if n.is_u64() || n.is_i64() => {}
        // The key beats it, whatever it is.
        Some(Value::String(_)) => {}
        Some(other) => return refuse("task_id", show(&other), "text or a whole number"),
    }
    let cmd = match fields.text("cmd")? {
        Some(cmd) if !cmd.trim().is_empty() => cmd,
        Some(cmd) => return refuse("cmd", format!("{cmd:?}"), "a command"),
        None => return refuse("cmd", "nothing", "a command"),
    };
    let executor = match fields.text("executor")? {
        None => "bash".to_owned(),
        Some(name) if limits.executors.contains(&name) => name,
        Some(name) => {
            return refuse(
                "executor",
                short(&format!("{name:?}")),
                one_of(limits.executors.iter().map(String::as_str)),
            );
        }
    };
    let once = fields
        .word("type", &[("schedule", false), ("once", true)])?
        .unwrap_or(false);
    let exclusive = fields.flag("exclusive")?.unwrap_or(false);
    if exclusive && !key.is_group() {
        return refuse(
            "exclusive",
            "true",
            "true in a job of a group only: a job of one host runs nowhere else",
        );
    }
    if exclusive && once {
        return refuse(
            "exclusive",
            "true",
            "false in a job of type \"once\": it runs once on every host of the group",
        );
    }
    let tz = fields.text("tz")?;
    let zone = match &tz {
        Some(name) => match schedule::zone(name) {
            Some(zone) => zone,
            None => return refuse("tz", short(&format!("{name:?}")), schedule::ZONES),
        },
        None if exclusive => TimeZone::UTC,
        None => limits.zone.clone(),
    };
    let express = fields.text("express")?;
    let (when, express) = match (once, express) {
        (true, None) => (When::Once, String::new()),
        (true, Some(express)) => {
            return refuse(
                "express",
                short(&format!("{express:?}")),
                "nothing beside \"type\": \"once\"",
            );
        }
        (false, None) => {
            return refuse(
                "express",
                "nothing",
                "a schedule as \"*/5 * * * *\", or \"type\": \"once\"",
            );
        }
        (false, Some(express)) => {
            let schedule = Schedule::parse(&express, &zone).map_err(|error| Invalid {
                field: "express".into(),
                found: short(&format!("{express:?}")),
                accepted: format!("a schedule as \"*/5 * * * *\" ({error})"),
            })?;
            (When::At(Box::new(schedule)), express)
        }
    };
    let catch_up = fields
        .word("catch_up", &[("none", false), ("last", true)])?
        .unwrap_or(false);
    if catch_up && exclusive {
        return refuse("catch_up", "\"last\"", "\"none\" in an exclusive job");
    }
    let on_failure = match fields.text("on_failure")? {
        Some(name) if !limits.webhooks.contains(&name) => {
            let known = match limits.webhooks.is_empty() {
                true => "the name of a webhook in [jobs.webhook], and there is none".to_owned(),
                false => one_of(limits.webhooks.iter().map(String::as_str)),
            };
            return refuse("on_failure", short(&format!("{name:?}")), known);
        }
        name => name,
    };
    let on_agent_stop = fields.word("on_agent_stop", OnAgentStop::WORDS)?.unwrap_or_default();
    if let (OnAgentStop::Leave, Some(why)) = (on_agent_stop, &limits.leave_refused) {
        return refuse("on_agent_stop", "\"leave\"", format!("\"wait\" or \"kill\": {why}"));
    }
    let terms = Terms {
        executor,
        env: fields.env()?,
        dir: fields.path("dir")?,
        user: fields.text("user")?,
        timeout: fields.span("timeout", Duration::MAX, true)?,
        kill_after: fields
            .span("kill_after", limits.kill_after, false)?
            .unwrap_or(Duration::from_secs(5)),
        overlap: fields.word("overlap", Overlap::WORDS)?.unwrap_or_default(),
        overlap_max_wait: fields
            .span("overlap_max_wait", Duration::MAX, true)?
            .unwrap_or(Duration::from_secs(3600)),
        retries: fields.count("retries", limits.retries)?.unwrap_or(0),
        retry_wait: fields
            .span("retry_wait", Duration::MAX, true)?
            .unwrap_or(Duration::from_secs(2)),
        jitter: fields.span("jitter", limits.jitter, false)?.unwrap_or_default(),
        catch_up,
        output_limit: fields
            .size("output_limit", limits.output_limit)?
            .unwrap_or((64 << 10).min(limits.output_limit)),
        leave_children: fields.flag("leave_children")?.unwrap_or(false),
        on_agent_stop,
        on_failure,
    };
    let spec = JobSpec {
        when,
        express: express.into(),
        tz: tz.map(Arc::from),
        cmd: cmd.into(),
        args: fields.texts("args")?.into(),
        paused: fields
            .word("status", &[("running", false), ("pause", true)])?
            .unwrap_or(false),
        exclusive,
        terms: Arc::new(terms),
        signature: fields.signature()?.map(Box::new),
        title: fields.title().into(),
    };
    fields.nothing_left(&limits.ignore_fields)?;
    Ok(spec)
}

fn refuse<T>(field: &str, found: impl Into<String>, accepted: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid {
        field: field.into(),
        found: found.into(),
        accepted: accepted.into(),
    })
}
fn short(text: &str) -> String {
    match text.char_indices().nth(LONGEST_FOUND) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
fn show(value: &Value) -> String {
    short(&value.to_string())
}
fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}
/// Nothing that is handed to a program can hold one.
fn no_nul(field: &str, text: &str) -> Result<(), Invalid> {
    match text.contains('\0') {
        true => refuse(field, short(&format!("{text:?}")), "text without NUL"),
        false => Ok(()),
    }
}

/// What stands in an object, each name once.
struct Fields(Vec<(String, Value)>);
impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::<(String, Value)>::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(de::Error::custom(format_args!("`{}` stands there twice", short(&name))));
                    }
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Visitor)
    }
}
impl Fields {
    /// `null` counts as not there.
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1).filter(|value| !value.is_null())
    }
    fn text(&mut self, name: &str) -> Result<Option<String>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => no_nul(name, &text).map(|()| Some(text)),
            Some(other) => refuse(name, show(&other), "text"),
        }
    }
    fn flag(&mut self, name: &str) -> Result<Option<bool>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => refuse(name, show(&other), "true or false"),
        }
    }
    fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Invalid> {
        let Some(found) = self.take(name) else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| found.as_str() == Some(word)) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => refuse(name, show(&found), one_of(words.iter().map(|(word, _)| *word))),
        }
    }
    fn count(&mut self, name: &str, most: u32) -> Result<Option<u32>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(found) => match found.as_u64().filter(|n| *n <= u64::from(most)) {
                Some(n) => Ok(Some(n as u32)),
                None => refuse(name, show(&found), format!("a whole number from 0 to {most}")),
            },
        }
    }
    fn unit<T: FromStr<Err = String>>(&mut self, name: &str, accepted: &str) -> Result<Option<(T, String)>, Invalid> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => match text.parse() {
                Ok(value) => Ok(Some((value, format!("{text:?}")))),
                Err(_) => refuse(name, short(&format!("{text:?}")), accepted),
            },
            Some(other) => refuse(name, show(&other), accepted),
        }
    }
    fn span(&mut self, name: &str, most: Duration, more_than_zero: bool) -> Result<Option<Duration>, Invalid> {
        match self.unit::<Span>(name, Span::ACCEPTED)? {
            Some((Span(span), found)) if span > most => refuse(name, found, format!("{} at most", Span(most))),
            Some((Span(span), found)) if span.is_zero() && more_than_zero => refuse(name, found, "more than zero"),
            span => Ok(span.map(|(Span(span), _)| span)),
        }
    }
    fn size(&mut self, name: &str, most: u64) -> Result<Option<u64>, Invalid> {
        let number = self.0.iter_mut().find(|(known, value)| known == name && value.is_u64());
        if let Some((_, value)) = number {
            *value = Value::String(value.to_string());
        }
        match self.unit::<Size>(name, Size::ACCEPTED)? {
            Some((Size(bytes), found)) if bytes > most => refuse(name, found, format!("{} at most", Size(most))),
            size => Ok(size.map(|(Size(bytes), _)| bytes)),
        }
    }
    fn texts(&mut self, name: &str) -> Result<Vec<String>, Invalid> {
        let accepted = "a list of texts";
        let list = match self.take(name) {
            None => return Ok(vec![]),
            Some(Value::Array(list)) => list,
            Some(other) => return refuse(name, show(&other), accepted),
        };
        let text = |value| match value {
            Value::String(text) => no_nul(name, &text).map(|()| text),
            other => refuse(name, show(&other), accepted),
        };
        list.into_iter().map(text).collect()
    }
    fn env(&mut self) -> Result<Vec<(String, String)>, Invalid> {
        let accepted = "an object of texts";
        let object = match self.take("env") {
            None => return Ok(vec![]),
            Some(Value::Object(object)) => object,
            Some(other) => return refuse("env", show(&other), accepted),
        };
        let pair = |(name, value): (String, Value)| {
            if name.is_empty() || name.contains(['=', '\0']) {
                return refuse("env", short(&format!("{name:?}")), "names without `=` and NUL");
            }
            if OWN_ENV.contains(&name.as_str()) {
                return refuse("env", format!("{name:?}"), "other names: the agent sets this one");
            }
            match value {
                Value::String(text) => no_nul("env", &text).map(|()| (name, text)),
                other => refuse("env", format!("{name}={}", show(&other)), accepted),
            }
        };
        object.into_iter().map(pair).collect()
    }
    fn path(&mut self, name: &str) -> Result<Option<String>, Invalid> {
        match self.text(name)? {
            Some(path) if !path.starts_with('/') => {
                refuse(name, short(&format!("{path:?}")), "a path that begins with /")
            }
            path => Ok(path),
        }
    }
    fn signature(&mut self) -> Result<Option<Signature>, Invalid> {
        let accepted = "an object as {\"serial\": 1, \"not_after\": \"2026-12-31T00:00:00Z\", \"sig\": …}, as `agent jobs put --sign` makes it";
        let Some(found) = self.take("signature") else {
            return Ok(None);
        };
        let read = || {
            let object = found.as_object().filter(|object| object.len() == 3)?;
            Some(Signature {
                serial: object.get("serial")?.as_u64()?,
                not_after: object.get("not_after")?.as_str()?.to_owned(),
                sig: object.get("sig")?.as_str()?.to_owned(),
            })
        };
        match read() {
            Some(signature) => Ok(Some(signature)),
            None => refuse("signature", show(&found), accepted),
        }
    }
    fn title(&self) -> String {
        let named = |name: &&str| self.0.iter().find(|(known, _)| known == name)?.1.as_str();
        let title = ["name", "desc", "description"].iter().find_map(named);
        short(title.unwrap_or_default())
    }
    fn nothing_left(self, ignored: &[String]) -> Result<(), Invalid> {
        let known = |name: &str| {
            name.starts_with("x_") || DESCRIPTIONS.contains(&name) || ignored.iter().any(|field| field == name)
        };
        match self.0.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((name, value)) => refuse(
                &short(name),
                show(value),
                "no such field; for notes of your own `x_…`, or name it in [jobs] ignore_fields",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
