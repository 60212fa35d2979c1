//! The keys of SPEC §3 and what stands in them, as JSON. Whoever reads is lenient, whoever writes is exact.
use std::net::IpAddr;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::Host;

pub const HEALTH: &str = "/agent/health/";
pub const NODES: &str = "/agent/nodes/";

pub fn health(ip: &str) -> String {
    format!("{HEALTH}{ip}")
}
pub fn node(ip: &str) -> String {
    format!("{NODES}{ip}")
}
pub fn jobs(ip: &str) -> String {
    format!("/cron/jobs/{ip}/")
}
pub fn group_jobs(group: &str) -> String {
    format!("/cron/groups/{group}/jobs/")
}
pub fn cronid(ip: &str, task_id: &str) -> String {
    format!("/cron/cronid/jobs/{ip}/{task_id}")
}
pub fn commands(ip: &str) -> String {
    format!("/cron/commands/{ip}/")
}
pub fn result(ip: &str, id: &str) -> String {
    format!("/cron/results/{ip}/{id}")
}
pub fn runs(ip: &str) -> String {
    format!("/cron/runs/{ip}")
}
pub fn once(ip: &str, task_id: &str) -> String {
    format!("/cron/once/{ip}/{task_id}")
}
pub fn claim(group: &str, task_id: &str) -> String {
    format!("/cron/claims/{group}/{task_id}")
}
pub fn running(group: &str, task_id: &str) -> String {
    format!("/cron/running/{group}/{task_id}")
}

/// `/agent/health/<ip>`, under the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `Online`
    pub status: String,
    pub version: String,
    pub instance: String,
    pub agent_id: String,
    pub group: String,
    pub hostname: String,
    /// RFC 3339
    pub started: String,
    /// Where its pages are; none: off.
    pub http: Option<String>,
}
impl Health {
    pub fn of(host: &Host, started: Timestamp, http: Option<&str>) -> Self {
        Self {
            status: "Online".into(),
            version: crate::VERSION.into(),
            instance: host.instance.clone(),
            agent_id: host.agent_id.clone(),
            group: host.group.clone(),
            hostname: host.hostname.clone(),
            started: instant(started),
            http: http.map(str::to_owned),
        }
    }
    /// How it is called in an error.
    pub fn shown(&self, ip: IpAddr) -> String {
        match self.instance.is_empty() {
            true => format!("{ip} is held by somebody who does not say who"),
            false => format!(
                "{ip} is held by {} (instance {}) on {}, since {}",
                self.agent_id, self.instance, self.hostname, self.started
            ),
        }
    }
}

/// `/agent/nodes/<ip>`, without a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    pub instance: String,
    pub agent_id: String,
    pub group: String,
    pub hostname: String,
    pub version: String,
    pub started: String,
    /// The last stop, and why; none: there was none, or without a word.
    pub stopped: Option<String>,
    pub why: Option<String>,
    /// It went without a word, and somebody who swept saw that first then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<String>,
}
impl Node {
    /// And was not started since. Instants of one form are in order as texts.
    pub fn has_stopped(&self) -> bool {
        self.stopped.as_ref().is_some_and(|stopped| *stopped >= self.started)
    }
    pub fn of(health: &Health) -> Self {
        Self {
            instance: health.instance.clone(),
            agent_id: health.agent_id.clone(),
            group: health.group.clone(),
            hostname: health.hostname.clone(),
            version: health.version.clone(),
            started: health.started.clone(),
            stopped: None,
            why: None,
            gone_since: None,
        }
    }
}

/// `/cron/cronid/jobs/<ip>/<task_id>`, under the lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub cronid: u64,
    pub rev: i64,
    pub state: String,
    pub error: Option<String>,
}
/// The longest record.
const LONGEST_RECORD: usize = 1024;
impl Record {
    /// Within 1 KiB: a longer error is cut.
    pub fn value(&self) -> Bytes {
        let whole = json(self);
        match &self.error {
            Some(error) if whole.len() > LONGEST_RECORD => {
                // Escapes make up to six bytes of one.
                let most = (LONGEST_RECORD - 128) / 6;
                let cut = error
                    .char_indices()
                    .map(|(at, _)| at)
                    .take_while(|at| *at <= most)
                    .last()
                    .unwrap_or(0);
                json(&Self {
                    error: Some(format!("{}…", &error[..cut])),
                    ..self.clone()
                })
            }
            _ => whole,
        }
    }
}

/// `/cron/runs/<ip>`, under the lease: how an agent's jobs do. Not a history: that is the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runs {
    /// When it was written.
    pub at: String,
    pub jobs: usize,
    pub paused: usize,
    pub invalid: usize,
    pub failing: usize,
    /// Present runs.
    pub present: usize,
    /// The last run of each job, failing ones first, then by their ends, newest first.
    pub last: Vec<LastRun>,
    /// Jobs whose last run found no room.
    pub left_out: usize,
}
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastRun {
    pub task_id: String,
    pub run_id: String,
    /// As in `failed(3)`.
    pub state: String,
    pub ended: String,
}
/// The longest summary of runs.
pub const LONGEST_RUNS: usize = 8 << 10;
impl Runs {
    /// Within 8 KiB: what is last in `last` goes.
    pub fn value(mut self) -> Bytes {
        loop {
            let whole = json(&self);
            if whole.len() <= LONGEST_RUNS || self.last.is_empty() {
                return whole;
            }
            self.last.pop(); // they are few: whoever asks for them asks for a hundred
            self.left_out += 1;
        }
    }
}

/// `/cron/commands/<ip>/<id>`
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Command {
    pub action: String,
    /// Text or a number.
    pub task_id: serde_json::Value,
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub run_id: Option<String>,
    /// RFC 3339, or seconds since 1970.
    #[serde(default)]
    pub expires: serde_json::Value,
}
impl Command {
    pub fn task(&self) -> Option<String> {
        match &self.task_id {
            serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }
    pub fn expires(&self) -> Option<Timestamp> {
        match &self.expires {
            serde_json::Value::String(text) => text.parse().ok(),
            serde_json::Value::Number(number) => Timestamp::from_second(number.as_i64()?).ok(),
            _ => None,
        }
    }
}
/// `/cron/results/<ip>/<id>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// `claimed`, then `done` or `refused`; `expired`
    pub state: String,
    /// Of the run that the command is claimed with.
    pub run_id: String,
    pub said: String,
    /// The runs that it was about.
    pub runs: Vec<String>,
}

/// `/cron/claims/<group>/<task_id>`: the last firing that somebody claimed. `running` has the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claimed {
    pub planned: String,
    pub instance: String,
    pub run_id: String,
}
/// `/cron/once/<ip>/<task_id>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Once {
    pub create_revision: i64,
    pub value_hash: String,
    pub at: String,
}

pub fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("plain structs with text keys are JSON")
        .into()
}
/// What it can be read as; else as if nothing stood there.
pub fn read<T: for<'a> Deserialize<'a> + Default>(value: &[u8]) -> T {
    serde_json::from_slice(value).unwrap_or_default()
}
/// To the second, in UTC.
pub fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_the_page_says_and_stays_small() {
        let record = Record {
            cronid: 3,
            rev: 17,
            state: "ok".into(),
            error: None,
        };
        assert_eq!(record.value(), r#"{"cronid":3,"rev":17,"state":"ok","error":null}"#);
        for error in ["x".repeat(5000), "\u{1}".repeat(5000), "ü\"".repeat(3000)] {
            let value = Record {
                state: "invalid".into(),
                error: Some(error),
                ..record.clone()
            }
            .value();
            assert!(value.len() <= 1024, "{}", value.len());
            assert!(read::<Record>(&value).error.unwrap().ends_with('…'));
        }
    }
    #[test]
    fn a_summary_of_runs_stays_small() {
        let last = |n: usize| LastRun {
            task_id: format!("{n:0128}"),
            run_id: "x".repeat(26),
            state: format!("skipped({})", "\u{1}".repeat(n % 50)),
            ended: "2026-11-25T10:00:00Z".into(),
        };
        let all = Runs {
            jobs: 1000,
            last: (0..100).map(last).collect(),
            left_out: 900,
            ..Runs::default()
        };
        let value = all.clone().value();
        assert!(
            value.len() <= LONGEST_RUNS && value.len() > LONGEST_RUNS - 1024,
            "{}",
            value.len()
        );
        let read = read::<Runs>(&value);
        assert_eq!((read.last.len() + read.left_out, &read.last[0]), (1000, &all.last[0]));
        let few = Runs::default();
        assert_eq!(
            few.value(),
            r#"{"at":"","jobs":0,"paused":0,"invalid":0,"failing":0,"present":0,"last":[],"left_out":0}"#
        );
    }
    #[test]
    fn commands_are_read_as_people_write_them() {
        let read = |text: &str| serde_json::from_str::<Command>(text).unwrap();
        let command = read(r#"{"action":"run","task_id":17,"expires":"2026-11-25T20:00:00Z"}"#);
        assert_eq!(command.task().as_deref(), Some("17"));
        assert_eq!(command.expires(), Some("2026-11-25T20:00:00Z".parse().unwrap()));
        let command = read(r#"{"action":"run","task_id":"a","expires":1764100800}"#);
        assert_eq!(command.task().as_deref(), Some("a"));
        assert_eq!(command.expires(), Timestamp::from_second(1_764_100_800).ok());
        assert_eq!(read(r#"{"action":"run","task_id":[]}"#).task(), None);
        assert_eq!(read(r#"{"action":"run","task_id":1}"#).expires(), None);
    }
}
