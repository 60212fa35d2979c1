//! Jobs (SPEC §4): whose a job is, what it asks for, how it stands. `parse` makes one of a stored value, `run` says what became of it.
pub mod feed;
mod output;
mod parse;
pub mod run;

use std::{fmt, sync::Arc, time::Duration};

pub use output::Kept;
pub use parse::{LONGEST_VALUE, Limits, OWN_ENV, is_task_id, parse};
pub use run::{Cause, RunId, RunRecord, RunState, Tree};

use crate::schedule::Schedule;

/// Where a job stands in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// `/cron/jobs/<ip>/<task_id>`: of one host.
    Host(Arc<str>),
    /// `/cron/groups/<group>/jobs/<task_id>`: of every agent of that group.
    Group(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey {
    pub scope: Scope,
    pub task_id: Arc<str>,
}
impl JobKey {
    pub fn host(ip: impl Into<Arc<str>>, task_id: impl Into<Arc<str>>) -> Self {
        Self {
            scope: Scope::Host(ip.into()),
            task_id: task_id.into(),
        }
    }
    pub fn group(group: impl Into<Arc<str>>, task_id: impl Into<Arc<str>>) -> Self {
        Self {
            scope: Scope::Group(group.into()),
            task_id: task_id.into(),
        }
    }
    /// As it stands in the store, behind the prefix of the settings.
    pub fn path(&self) -> String {
        match &self.scope {
            Scope::Host(ip) => format!("/cron/jobs/{ip}/{}", self.task_id),
            Scope::Group(group) => format!("/cron/groups/{group}/jobs/{}", self.task_id),
        }
    }
    /// None if it is no job's. The task id is not looked at: a key that nobody may use is kept, as an invalid job.
    pub fn of_path(path: &str) -> Option<Self> {
        let parts = path.strip_prefix("/cron/")?;
        let (scope, task_id) = match parts.strip_prefix("jobs/") {
            Some(rest) => {
                let (ip, task_id) = rest.split_once('/')?;
                (Scope::Host(ip.into()), task_id)
            }
            None => {
                let (group, rest) = parts.strip_prefix("groups/")?.split_once('/')?;
                (Scope::Group(group.into()), rest.strip_prefix("jobs/")?)
            }
        };
        let named = match &scope {
            Scope::Host(name) | Scope::Group(name) => !name.is_empty(),
        };
        (named && !task_id.is_empty()).then(|| Self {
            scope,
            task_id: task_id.into(),
        })
    }
    pub fn is_group(&self) -> bool {
        matches!(self.scope, Scope::Group(_))
    }
    /// What its history is kept under: a host keeps it when its address changes.
    pub fn kept_as(&self) -> String {
        match &self.scope {
            Scope::Host(_) => format!("own/{}", self.task_id),
            Scope::Group(group) => format!("group/{group}/{}", self.task_id),
        }
    }
}
impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// Why a job cannot be understood, or may not be run: one field, what it held, what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Empty: the value as a whole.
    pub field: String,
    pub found: String,
    pub accepted: String,
}
impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        write!(f, "found {}, accepted: {}", self.found, self.accepted)
    }
}
impl std::error::Error for Invalid {}

#[derive(Clone, Debug, PartialEq)]
pub enum When {
    /// As `express` says, in the job's zone.
    At(Box<Schedule>),
    /// `"type": "once"`: as soon as it is known.
    Once,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    #[default]
    Skip,
    /// One waits.
    Queue,
    Parallel,
    /// The one that runs is killed.
    Replace,
}
impl Overlap {
    pub const WORDS: &[(&str, Self)] = &[
        ("skip", Self::Skip),
        ("queue", Self::Queue),
        ("parallel", Self::Parallel),
        ("replace", Self::Replace),
    ];
}

/// What becomes of a run when the agent stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAgentStop {
    /// Waited for until the drain's deadline, then killed.
    #[default]
    Wait,
    Kill,
    /// It lives on.
    Leave,
}
impl OnAgentStop {
    pub const WORDS: &[(&str, Self)] = &[("wait", Self::Wait), ("kill", Self::Kill), ("leave", Self::Leave)];
}

/// What stands in the field `signature` of a signed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub serial: u64,
    /// RFC 3339, as it was signed.
    pub not_after: String,
    /// Base64 of 64 bytes.
    pub sig: String,
}

/// A job as it was asked for, checked. Without room to spare: there may be 100,000 of them.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    pub when: When,
    /// `express` as it was written; empty for `once`.
    pub express: Arc<str>,
    /// The zone by name, if one was given.
    pub tz: Option<Arc<str>>,
    pub cmd: Box<str>,
    pub args: Box<[String]>,
    pub paused: bool,
    pub exclusive: bool,
    pub terms: Arc<Terms>,
    pub signature: Option<Box<Signature>>,
    /// `name`, `desc` or `description`, for people.
    pub title: Box<str>,
}

/// How a job is run: what many jobs have in common, and then share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub executor: String,
    pub env: Vec<(String, String)>,
    pub dir: Option<String>,
    pub user: Option<String>,
    pub timeout: Option<Duration>,
    pub kill_after: Duration,
    pub overlap: Overlap,
    pub overlap_max_wait: Duration,
    pub retries: u32,
    pub retry_wait: Duration,
    pub jitter: Duration,
    /// `catch_up = last`.
    pub catch_up: bool,
    /// Bytes of output that are kept.
    pub output_limit: u64,
    pub leave_children: bool,
    pub on_agent_stop: OnAgentStop,
    /// The name of a webhook in the settings.
    pub on_failure: Option<String>,
}

/// How a job stands here: what its cronid record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    Ok,
    Paused,
    /// Its last run did not succeed.
    Failing,
    /// It cannot be understood, or may not be run here.
    Invalid,
    /// An own job of the same task id stands before this one of the group.
    Shadowed,
}
impl JobState {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Paused => "paused",
            Self::Failing => "failing",
            Self::Invalid => "invalid",
            Self::Shadowed => "shadowed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_paths() {
        for (path, key) in [
            ("/cron/jobs/10.0.0.1/17", JobKey::host("10.0.0.1", "17")),
            ("/cron/groups/web/jobs/a.b-c_D", JobKey::group("web", "a.b-c_D")),
            ("/cron/jobs/10.0.0.1/../x", JobKey::host("10.0.0.1", "../x")),
            ("/cron/jobs/fe80::1/1", JobKey::host("fe80::1", "1")),
        ] {
            assert_eq!(JobKey::of_path(path).as_ref(), Some(&key));
            assert_eq!(key.path(), path);
        }
        for none in [
            "",
            "/cron/jobs/10.0.0.1/",
            "/cron/jobs//17",
            "/cron/jobs/10.0.0.1",
            "/cron/groups/web/17",
            "/cron/groups//jobs/17",
            "/cron/cronid/jobs/10.0.0.1/17",
            "cron/jobs/10.0.0.1/17",
        ] {
            assert_eq!(JobKey::of_path(none), None, "{none}");
        }
        assert_eq!(JobKey::host("10.0.0.1", "17").kept_as(), "own/17");
        assert_eq!(JobKey::group("web", "17").kept_as(), "group/web/17");
    }
}
