//! The cronid records: what the runner answered, job by job, until it stands in the store under the lease. Without actix.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    messages::jobs::JobAnswer,
    model::JobKey,
    store::{
        LeaseId, MOST_OPERATIONS, Op,
        keys::{self, Record},
    },
};

#[derive(Default)]
pub struct Records {
    known: BTreeMap<Arc<str>, Slot>,
    /// What does not stand in the store as it should, and from when on it may be written (steady time).
    due: BTreeMap<Arc<str>, Duration>,
}
/// One record a task id: an own job stands before one of the group.
#[derive(Default)]
struct Slot {
    own: Option<Record>,
    group: Option<Record>,
    written: Option<Record>,
}
impl Slot {
    fn wanted(&self) -> Option<&Record> {
        self.own.as_ref().or(self.group.as_ref())
    }
}

impl Records {
    /// May be written from `due` on.
    pub fn answered(&mut self, answer: &JobAnswer, due: Duration) {
        let record = Record {
            cronid: answer.cronid,
            rev: answer.mod_revision,
            state: answer.state.word().to_owned(),
            error: (!answer.error.is_empty()).then(|| answer.error.clone()),
        };
        self.change(&answer.key, Some(record), due);
    }
    pub fn removed(&mut self, key: &JobKey) {
        self.change(key, None, Duration::ZERO);
    }
    fn change(&mut self, key: &JobKey, record: Option<Record>, due: Duration) {
        let slot = self.known.entry(key.task_id.clone()).or_default();
        match key.is_group() {
            true => slot.group = record,
            false => slot.own = record,
        }
        match slot.wanted() == slot.written.as_ref() {
            true => drop(self.due.remove(&key.task_id)),
            // One that changes all the time is written all the same.
            false => {
                let first = self.due.entry(key.task_id.clone()).or_insert(due);
                *first = due.min(*first);
            }
        }
        self.forget(&key.task_id.clone());
    }
    fn forget(&mut self, task_id: &Arc<str>) {
        let empty = |slot: &Slot| slot.wanted().is_none() && slot.written.is_none();
        if self.known.get(task_id).is_some_and(empty) {
            self.known.remove(task_id);
            self.due.remove(task_id);
        }
    }
    /// All that is known now; the rest is gone.
    pub fn keep_only(&mut self, keys: &BTreeSet<&JobKey>) {
        let of = |groups: bool| {
            let keys = keys.iter().filter(|key| key.is_group() == groups);
            keys.map(|key| key.task_id.clone()).collect::<BTreeSet<_>>()
        };
        let (own, group) = (of(false), of(true));
        let mut gone = vec![];
        for (task_id, slot) in &self.known {
            if slot.own.is_some() && !own.contains(task_id) {
                gone.push(JobKey::host("", task_id.clone()));
            }
            if slot.group.is_some() && !group.contains(task_id) {
                gone.push(JobKey::group("", task_id.clone()));
            }
        }
        gone.iter().for_each(|key| self.removed(key));
    }
    /// The lease is another, or the address: nothing of it stands any more.
    pub fn write_all_again(&mut self) {
        let all = self.known.keys().cloned().collect::<Vec<_>>();
        for task_id in all {
            if let Some(slot) = self.known.get_mut(&task_id) {
                slot.written = None;
                match slot.wanted() {
                    Some(_) => self.due.insert(task_id.clone(), Duration::ZERO),
                    None => self.due.remove(&task_id),
                };
            }
            self.forget(&task_id);
        }
    }
    pub fn unwritten(&self) -> usize {
        self.due.len()
    }
    /// When there is something to write.
    pub fn next_due(&self) -> Option<Duration> {
        self.due.values().min().copied()
    }
    /// One transaction of what is due.
    pub fn batch(&self, ip: &str, lease: LeaseId, now: Duration) -> Batch {
        let due = self
            .due
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(task_id, _)| task_id);
        let writes = due.take(MOST_OPERATIONS).map(|task_id| {
            let record = self.known.get(task_id).and_then(|slot| slot.wanted()).cloned();
            (task_id.clone(), record)
        });
        let writes = writes.collect::<Vec<_>>();
        let ops = writes.iter().map(|(task_id, record)| {
            let key = keys::cronid(ip, task_id);
            match record {
                Some(record) => Op::put(key, record.value(), Some(lease)),
                None => Op::delete(key),
            }
        });
        Batch {
            ops: ops.collect(),
            writes,
        }
    }
    /// It stands there now.
    pub fn written(&mut self, batch: Batch) {
        for (task_id, record) in batch.writes {
            if let Some(slot) = self.known.get_mut(&task_id) {
                slot.written = record;
                // It may have changed while it was written.
                if slot.wanted() == slot.written.as_ref() {
                    self.due.remove(&task_id);
                }
            }
            self.forget(&task_id);
        }
    }
}
pub struct Batch {
    pub ops: Vec<Op>,
    writes: Vec<(Arc<str>, Option<Record>)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::JobState;

    const NOW: Duration = Duration::from_secs(9);
    fn answer(key: &JobKey, state: JobState, revision: i64) -> JobAnswer {
        JobAnswer {
            key: key.clone(),
            mod_revision: revision,
            cronid: 1,
            state,
            error: String::new(),
        }
    }
    /// Writes what is due: `+task state` or `-task`.
    fn write(records: &mut Records) -> Vec<String> {
        let batch = records.batch("10.0.0.1", LeaseId(1), NOW);
        let op = |op: &Op| match op {
            Op::Put { key, value, .. } => {
                let record = keys::read::<Record>(value);
                format!("+{} {}", key.rsplit('/').next().unwrap(), record.state)
            }
            Op::Delete { key } => format!("-{}", key.rsplit('/').next().unwrap()),
            Op::Get { .. } => unreachable!("nothing is read"),
        };
        let shown = batch.ops.iter().map(op).collect();
        records.written(batch);
        shown
    }

    #[test]
    fn what_changed_is_written_once_and_an_own_job_stands_before_the_groups() {
        let mut records = Records::default();
        let (own, group) = (JobKey::host("10.0.0.1", "7"), JobKey::group("web", "7"));
        records.answered(&answer(&group, JobState::Ok, 3), Duration::ZERO);
        assert_eq!(write(&mut records), ["+7 ok"]);
        records.answered(&answer(&group, JobState::Ok, 3), Duration::ZERO);
        assert_eq!(write(&mut records), Vec::<String>::new());
        records.answered(&answer(&own, JobState::Paused, 4), Duration::ZERO);
        records.answered(&answer(&group, JobState::Shadowed, 3), Duration::ZERO);
        assert_eq!(write(&mut records), ["+7 paused"]);
        records.removed(&own);
        assert_eq!(write(&mut records), ["+7 shadowed"]);
        records.removed(&group);
        assert_eq!(write(&mut records), ["-7"]);
        assert_eq!((records.known.len(), records.unwritten()), (0, 0));
    }
    #[test]
    fn a_hundred_at_a_time_when_they_are_due_and_all_again_under_a_new_lease() {
        let mut records = Records::default();
        for i in 0..250 {
            let key = JobKey::host("10.0.0.1", format!("{i:03}"));
            records.answered(&answer(&key, JobState::Ok, 1), Duration::ZERO);
        }
        let late = JobKey::group("web", "late");
        records.answered(&answer(&late, JobState::Ok, 1), NOW + Duration::from_secs(1));
        let sizes = [(); 4].map(|()| write(&mut records).len());
        assert_eq!(sizes, [100, 100, 50, 0]);
        assert_eq!(
            (records.unwritten(), records.next_due()),
            (1, Some(Duration::from_secs(10)))
        );
        records.write_all_again();
        assert_eq!(records.unwritten(), 251);
        let sizes = [(); 4].map(|()| write(&mut records).len());
        assert_eq!(sizes, [100, 100, 51, 0]);
        let keys = [JobKey::host("10.0.0.1", "003"), late];
        records.keep_only(&keys.iter().collect());
        let sizes = [(); 4].map(|()| write(&mut records).len());
        assert_eq!(sizes, [100, 100, 49, 0]);
        assert_eq!(records.known.len(), 2);
    }
    #[test]
    fn what_changes_while_it_is_written_is_written_again() {
        let mut records = Records::default();
        let key = JobKey::host("10.0.0.1", "7");
        records.answered(&answer(&key, JobState::Ok, 3), Duration::ZERO);
        let batch = records.batch("10.0.0.1", LeaseId(1), NOW);
        records.answered(&answer(&key, JobState::Failing, 3), Duration::ZERO);
        records.written(batch);
        assert_eq!(write(&mut records), ["+7 failing"]);
    }
}
