//! One job as the agenda has it.
use std::sync::Arc;

use jiff::Timestamp;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    history::JobMemory,
    messages::jobs::{JobAnswer, Signed},
    model::{Invalid, JobKey, JobSpec, JobState, job::When},
    schedule::Schedule,
    signature,
};

pub struct Job {
    pub key: JobKey,
    pub value: Box<[u8]>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub cronid: u64,
    pub body: Result<Arc<JobSpec>, Box<Invalid>>,
    pub signed: Signed,
    /// Its signature has: it is invalid now.
    pub ended: bool,
    pub shadowed: bool,
    pub memory: JobMemory,
    /// The last instant that was decided on.
    pub(super) before: Option<Timestamp>,
    pub next: Option<Timestamp>,
}
impl Job {
    pub fn spec(&self) -> Option<&Arc<JobSpec>> {
        self.body.as_ref().ok()
    }
    pub fn paused(&self) -> bool {
        let ordered = self
            .memory
            .ordered
            .as_ref()
            .filter(|order| order.value_hash == value_hash(&self.value));
        ordered.map_or_else(|| self.spec().is_some_and(|spec| spec.paused), |order| order.paused)
    }
    /// Why it cannot be run as it stands.
    pub fn invalid(&self) -> Option<Invalid> {
        match (&self.body, &self.signed) {
            (Err(invalid), _) => Some((**invalid).clone()),
            (Ok(_), Signed::Until { not_after, .. }) if self.ended => Some(signature::ended(*not_after)),
            _ => None,
        }
    }
    pub(super) fn not_after(&self) -> Option<Timestamp> {
        match self.signed {
            Signed::Until { not_after, .. } => Some(not_after),
            _ => None,
        }
    }
    /// What is remembered of its signature, if one is asked for.
    pub fn serial(&self) -> Option<u64> {
        match self.signed {
            Signed::Until { serial, .. } => Some(serial),
            _ => None,
        }
    }
    /// Not a moment longer: looked at again directly before each start.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.ended || self.not_after().is_some_and(|not_after| now > not_after)
    }
    /// It is run when it is due.
    pub fn is_active(&self) -> bool {
        self.body.is_ok() && !self.ended && !self.shadowed && !self.paused()
    }
    pub fn schedule(&self) -> Option<&Schedule> {
        match &self.spec()?.when {
            When::At(schedule) => Some(schedule),
            When::Once => None,
        }
    }
    pub fn state(&self) -> (JobState, String) {
        if let Some(invalid) = self.invalid() {
            return (JobState::Invalid, invalid.to_string());
        }
        match &self.memory.failing {
            _ if self.shadowed => (JobState::Shadowed, String::new()),
            _ if self.paused() => (JobState::Paused, String::new()),
            Some(why) => (JobState::Failing, why.to_string()),
            None => (JobState::Ok, String::new()),
        }
    }
    pub fn answer(&self) -> JobAnswer {
        let (state, error) = self.state();
        JobAnswer {
            key: self.key.clone(),
            mod_revision: self.mod_revision,
            cronid: self.cronid,
            state,
            error,
        }
    }
    /// What a `once` job has run as, when it has.
    pub fn once_id(&self) -> String {
        format!("{}/{}", self.create_revision, hash_without_status(&self.value))
    }
    /// The next instant is looked for from here: `@every` counts from it. Of an exclusive job from the epoch, so that all agree.
    pub(super) fn anchor(&self) -> Timestamp {
        match self.spec() {
            Some(spec) if spec.exclusive => Timestamp::UNIX_EPOCH,
            _ => self.memory.accepted,
        }
    }
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule()?.next_from(self.anchor(), after)
    }
}

pub fn value_hash(value: &[u8]) -> String {
    format!("{:032x}", xxh3_128(value))
}
/// The same for a job that was put again with another status, or with its fields in another order.
pub fn hash_without_status(value: &[u8]) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_slice(value) else {
        return value_hash(value);
    };
    fields.shift_remove("status");
    let canonical = serde_json_canonicalizer::to_vec(&fields).unwrap_or_else(|_| value.to_vec());
    let digest = ring::digest::digest(&ring::digest::SHA256, &canonical);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
