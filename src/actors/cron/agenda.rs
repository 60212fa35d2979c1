//! What CronRunner thinks about time: which jobs there are, when each is due, what passed without a run. Without actix, without a clock
//! of its own.
//!
//! An instant is decided on once: it is run, or skipped, or counted as missed. Those that ran are remembered one by one (as ranges),
//! so that a clock that is set back finds them run.
mod job;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    executors::Guards,
    history::{JobMemory, Override},
    messages::jobs::{JobAnswer, JobEntry, JobsChanged, Signed},
    model::{
        Invalid, JobKey, JobSpec,
        job::{Cause, Limits, Scope, Terms, When, parse},
    },
};

pub use job::Job;
use job::value_hash;

/// An instant that passed no longer ago is run as if it were due now: a busy machine is no absence.
const FRESH: Duration = Duration::from_secs(5);
/// So many different terms are known, to be shared by the next jobs that have them.
const MOST_TERMS: usize = 16;

pub struct Agenda {
    limits: Limits,
    guards: Guards,
    start_grace: Duration,
    /// Boxed: the list grows by doubling.
    jobs: Vec<Option<Box<Job>>>,
    free: Vec<usize>,
    by_key: HashMap<JobKey, usize>,
    /// Addresses and groups that jobs are known of; few.
    scopes: HashSet<Scope>,
    /// The last that were new.
    terms: VecDeque<Arc<Terms>>,
    due: BTreeSet<(Timestamp, usize)>,
    /// When the signatures of jobs end.
    lapses: BTreeSet<(Timestamp, usize)>,
    /// Active `once` jobs that have not run as they stand.
    once: BTreeSet<usize>,
    cronids: u64,
    /// Of jobs that have not been told of since the start.
    memories: HashMap<String, JobMemory>,
    /// Jobs whose memory changed, for the next write.
    changed: BTreeSet<usize>,
    /// Of them, those whose change somebody was told of.
    told: Vec<usize>,
    /// What is remembered of jobs that are gone, for the next write.
    forgotten: BTreeSet<String>,
}
/// What is due of one job.
#[derive(Debug, Default, PartialEq)]
pub struct Due {
    pub job: usize,
    pub fire: Vec<Firing>,
    /// How many passed without a run, and the last of them.
    pub missed: Option<(u64, Timestamp)>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct Firing {
    pub planned: Timestamp,
    pub cause: Cause,
    /// The instant before it in the schedule.
    pub before: Option<Timestamp>,
}
/// What a change did.
#[derive(Default)]
pub struct Applied {
    /// One for each that was put, in order.
    pub answers: Vec<JobAnswer>,
    /// Others that stand differently now: shadowed, or no longer.
    pub turned: Vec<JobAnswer>,
    /// Those that are gone, or can no longer be understood.
    pub gone: Vec<JobKey>,
}

impl Agenda {
    pub fn new(limits: Limits, guards: Guards, start_grace: Duration, memories: HashMap<String, JobMemory>) -> Self {
        Self {
            limits,
            guards,
            start_grace,
            jobs: vec![],
            free: vec![],
            by_key: HashMap::new(),
            scopes: HashSet::new(),
            terms: VecDeque::new(),
            due: BTreeSet::new(),
            lapses: BTreeSet::new(),
            once: BTreeSet::new(),
            cronids: 0,
            memories,
            changed: BTreeSet::new(),
            told: vec![],
            forgotten: BTreeSet::new(),
        }
    }
    pub fn get(&self, job: usize) -> Option<&Job> {
        self.jobs.get(job)?.as_deref()
    }
    pub fn by_key(&self, key: &JobKey) -> Option<(usize, &Job)> {
        let at = *self.by_key.get(key)?;
        Some((at, self.get(at)?))
    }
    pub fn all(&self) -> impl Iterator<Item = (usize, &Job)> {
        self.jobs
            .iter()
            .enumerate()
            .filter_map(|(at, job)| Some((at, job.as_deref()?)))
    }
    /// By task id: of that group, or the host's own before the group's.
    pub fn named(&self, group: Option<&str>, task_id: &str) -> Option<(usize, &Job)> {
        let fits = |scope: &&Scope| match (scope, group) {
            (Scope::Group(name), Some(group)) => **name == *group,
            (Scope::Host(_), Some(_)) => false,
            (_, None) => true,
        };
        let mut scopes = self.scopes.iter().filter(fits).collect::<Vec<_>>();
        scopes.sort(); // hosts come first
        scopes.into_iter().find_map(|scope| {
            self.by_key(&JobKey {
                scope: scope.clone(),
                task_id: task_id.into(),
            })
        })
    }
    pub fn len(&self) -> usize {
        self.by_key.len()
    }
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
    pub fn next_at(&self) -> Option<Timestamp> {
        let (due, lapse) = (self.due.first(), self.lapses.first());
        due.into_iter().chain(lapse).map(|(at, _)| *at).min()
    }

    /// Read and checked, as it would be taken on.
    pub fn check(&self, key: &JobKey, value: &[u8]) -> Result<JobSpec, Invalid> {
        let spec = parse(key, value, &self.limits)?;
        self.guards.check(&spec)?;
        Ok(spec)
    }

    pub fn apply(&mut self, change: JobsChanged, now: Timestamp) -> Applied {
        let mut applied = Applied::default();
        let mut touched = HashSet::<Arc<str>>::new();
        let mut removed = change.removed;
        if change.full {
            let there = change.put.iter().map(|entry| &entry.key).collect::<HashSet<_>>();
            removed.extend(self.by_key.keys().filter(|key| !there.contains(key)).cloned());
        }
        for key in removed {
            if self.remove(&key) {
                touched.insert(key.task_id.clone());
                applied.gone.push(key);
            }
        }
        let mut put = vec![];
        for entry in change.put {
            touched.insert(entry.key.task_id.clone());
            let at = self.put(entry, now);
            put.push(at);
        }
        if change.full {
            // What was remembered and is no longer there is gone for good.
            self.forgotten.extend(std::mem::take(&mut self.memories).into_keys());
        }
        // A job of a group stands behind an own one of the same id.
        let groups = self
            .scopes
            .iter()
            .filter(|scope| matches!(scope, Scope::Group(_)))
            .cloned()
            .collect::<Vec<_>>();
        let hosts = self
            .scopes
            .iter()
            .filter(|scope| matches!(scope, Scope::Host(_)))
            .cloned()
            .collect::<Vec<_>>();
        let just_put = put.iter().copied().collect::<HashSet<_>>();
        for task_id in touched {
            let key = |scope: &Scope| JobKey {
                scope: scope.clone(),
                task_id: task_id.clone(),
            };
            let shadowed = hosts.iter().any(|scope| self.by_key.contains_key(&key(scope)));
            for scope in &groups {
                let Some(at) = self.by_key.get(&key(scope)).copied() else {
                    continue;
                };
                if let Some(job) = self.jobs[at].as_mut().filter(|job| job.shadowed != shadowed) {
                    job.shadowed = shadowed;
                    self.plan(at, now);
                    if !just_put.contains(&at) {
                        applied.turned.extend(self.get(at).map(Job::answer));
                    }
                }
            }
        }
        for at in put {
            if let Some(job) = self.get(at) {
                if job.invalid().is_some() {
                    applied.gone.push(job.key.clone());
                }
                applied.answers.push(job.answer());
            }
        }
        applied
    }
    fn put(&mut self, entry: JobEntry, now: Timestamp) -> usize {
        let JobEntry {
            mut key,
            value,
            create_revision,
            mod_revision,
            signed,
        } = entry;
        let known = self.by_key.get(&key).copied();
        if let Some(at) = known
            && let Some(job) = self.get(at)
            && (job.mod_revision, &*job.value, &job.signed) == (mod_revision, &*value, &signed)
        {
            return at;
        }
        let body = match (self.check(&key, &value), &signed) {
            (Ok(_), Signed::Refused(invalid)) => Err(invalid.clone()),
            (Ok(mut spec), _) => {
                spec.terms = self.shared(spec.terms);
                Ok(Arc::new(spec))
            }
            (Err(invalid), _) => Err(Box::new(invalid)),
        };
        if let Some(scope) = self.scopes.get(&key.scope) {
            key.scope = scope.clone();
        }
        if !self.forgotten.is_empty() {
            self.forgotten.remove(&key.kept_as());
        }
        let former = known.and_then(|at| self.unplan(at));
        let (cronid, memory) = match former {
            Some(job) => (job.cronid, Some(job.memory)),
            None => (0, self.memories.remove(&key.kept_as())),
        };
        let cronid = match &body {
            Ok(_) if cronid == 0 => {
                self.cronids += 1;
                self.cronids
            }
            _ => cronid,
        };
        let (express, tz) = match &body {
            Ok(spec) => (spec.express.clone(), spec.tz.clone()),
            Err(_) => Default::default(),
        };
        let memory = match memory {
            // The same schedule goes on where it was; an invalid value meanwhile changes nothing.
            Some(memory) if body.is_err() || (&memory.express, &memory.tz) == (&express, &tz) => memory,
            Some(memory) => JobMemory {
                failing: memory.failing,
                once: memory.once,
                ordered: memory.ordered,
                ..JobMemory::new(express, tz, now)
            },
            None => JobMemory::new(express, tz, now),
        };
        let job = Box::new(Job {
            key: key.clone(),
            value: (*value).into(), // not all of what it came in
            create_revision,
            mod_revision,
            cronid,
            body,
            signed,
            ended: false,
            shadowed: false,
            before: None,
            next: None,
            memory,
        });
        self.scopes.insert(key.scope.clone());
        let at = match known.or_else(|| self.free.pop()) {
            Some(at) => {
                self.jobs[at] = Some(job);
                at
            }
            None => {
                self.jobs.push(Some(job));
                self.jobs.len() - 1
            }
        };
        self.by_key.insert(key, at);
        self.changed.insert(at);
        if let Some(job) = self.jobs[at].as_mut() {
            job.ended = job.has_ended(now);
            if let Some(not_after) = job.not_after().filter(|_| !job.ended) {
                self.lapses.insert((not_after, at));
            }
        }
        self.plan(at, now);
        at
    }
    /// These terms, or the same that are known.
    fn shared(&mut self, terms: Arc<Terms>) -> Arc<Terms> {
        if let Some(known) = self.terms.iter().find(|known| **known == terms) {
            return known.clone();
        }
        self.terms.truncate(MOST_TERMS - 1);
        self.terms.push_front(terms.clone());
        terms
    }
    fn unplan(&mut self, at: usize) -> Option<Box<Job>> {
        let job = self.jobs[at].take()?;
        if let Some(next) = job.next {
            self.due.remove(&(next, at));
        }
        if let Some(not_after) = job.not_after() {
            self.lapses.remove(&(not_after, at));
        }
        self.once.remove(&at);
        Some(job)
    }
    fn remove(&mut self, key: &JobKey) -> bool {
        let Some(at) = self.by_key.remove(key) else {
            self.memories.remove(&key.kept_as());
            self.forgotten.insert(key.kept_as());
            return false;
        };
        self.unplan(at);
        self.changed.remove(&at);
        self.free.push(at);
        self.forgotten.insert(key.kept_as());
        true
    }

    /// When it is due next, after what was decided on.
    fn plan(&mut self, at: usize, now: Timestamp) {
        let Some(job) = self.jobs[at].as_mut() else { return };
        if let Some(next) = job.next.take() {
            self.due.remove(&(next, at));
        }
        let active = job.is_active();
        let waits = active
            && job.spec().is_some_and(|spec| spec.when == When::Once)
            && job.memory.once.as_deref() != Some(&*job.once_id());
        match waits {
            true => self.once.insert(at),
            false => self.once.remove(&at),
        };
        if !active {
            if !job.memory.paused {
                job.memory.paused = true;
                self.changed.insert(at);
            }
            return;
        }
        if job.memory.paused {
            // What passed meanwhile was not to run.
            job.memory.paused = false;
            job.memory.decided = now;
            job.before = None;
            self.changed.insert(at);
        }
        job.next = not_run(job, job.memory.decided);
        if let Some(next) = job.next {
            self.due.insert((next, at));
        }
    }
    /// The wall clock was set back: every job is looked at again from there. What ran stays run. Those whose signature counts again.
    pub fn clock_set_back(&mut self, now: Timestamp) -> Vec<JobAnswer> {
        let mut turned = vec![];
        for at in 0..self.jobs.len() {
            if let Some(job) = self.jobs[at].as_mut() {
                if job.ended
                    && let Some(not_after) = job.not_after().filter(|not_after| now <= *not_after)
                {
                    job.ended = false;
                    self.lapses.insert((not_after, at));
                    turned.push(at);
                }
                if job.memory.decided > now {
                    job.memory.decided = now;
                    job.before = None;
                }
                self.plan(at, now);
            }
        }
        self.answers(&turned)
    }
    /// Jobs whose signature has ended by now. They stand as invalid.
    pub fn take_lapsed(&mut self, now: Timestamp) -> Vec<JobAnswer> {
        let mut turned = vec![];
        while let Some((not_after, at)) = self.lapses.first().copied().filter(|(not_after, _)| now > *not_after) {
            self.lapses.remove(&(not_after, at));
            if let Some(job) = self.jobs[at].as_mut() {
                job.ended = true;
                turned.push(at);
            }
            self.plan(at, now);
        }
        self.answers(&turned)
    }
    fn answers(&self, jobs: &[usize]) -> Vec<JobAnswer> {
        jobs.iter().filter_map(|at| self.get(*at)).map(Job::answer).collect()
    }

    /// All that is due, each job once.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<Due> {
        let mut all = vec![];
        while let Some((at, job)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, job));
            all.extend(self.settle(job, now));
        }
        all
    }
    fn settle(&mut self, at: usize, now: Timestamp) -> Option<Due> {
        let grace = self.start_grace;
        let job = self.jobs[at].as_mut()?;
        job.next = None;
        let (anchor, decided) = (job.anchor(), job.memory.decided);
        let spec = job.spec()?.clone();
        let When::At(schedule) = &spec.when else { return None };
        let ran = &job.memory.ran;
        let (total, last) = schedule.passed(anchor, decided, now);
        let mut due = Due {
            job: at,
            ..Due::default()
        };
        let mut before = job.before;
        let mut from = decided.max(now.checked_sub(FRESH).unwrap_or(now));
        if from > decided {
            let (_, last_before) = schedule.passed(anchor, decided, from);
            before = last_before.or(before);
        }
        while let Some(planned) = schedule.next_from(anchor, from).filter(|next| *next <= now) {
            if !ran.contains(planned) {
                due.fire.push(Firing {
                    planned,
                    cause: Cause::Planned,
                    before,
                });
            }
            (from, before) = (planned, Some(planned));
        }
        if due.fire.is_empty()
            && let Some(planned) = last.filter(|last| !ran.contains(*last))
        {
            let late = now.duration_since(planned).unsigned_abs() <= grace;
            if late || spec.terms.catch_up {
                due.fire.push(Firing {
                    planned,
                    cause: if late { Cause::Late } else { Cause::CatchUp },
                    before: None,
                });
            }
        }
        let in_ranges = ran.iter().map(|(first, last)| {
            let from = decided.max(first.checked_sub(Duration::from_secs(1)).unwrap_or(first));
            schedule.passed(anchor, from, last.min(now)).0
        });
        let missed = total.saturating_sub(in_ranges.sum::<u64>() + due.fire.len() as u64);
        let last_missed = || match due.fire.first() {
            Some(first) => {
                schedule
                    .passed(anchor, decided, first.planned.checked_sub(Duration::from_secs(1)).ok()?)
                    .1
            }
            None => last,
        };
        due.missed = (missed > 0).then(|| (missed, last_missed().unwrap_or(now)));
        if let Some(last) = last {
            job.memory.decided = last;
            job.before = Some(last);
        }
        job.next = not_run(job, job.memory.decided.max(decided));
        if let Some(next) = job.next {
            self.due.insert((next, at));
        }
        (due.missed.is_some() || !due.fire.is_empty()).then(|| {
            self.changed.insert(at);
            due
        })
    }

    /// Its start is about to be written.
    pub fn note_run(&mut self, at: usize, planned: Timestamp, before: Option<Timestamp>) {
        if let Some(job) = self.jobs.get_mut(at).and_then(Option::as_deref_mut) {
            job.memory.ran.add(planned, before);
            self.changed.insert(at);
        }
    }
    pub fn note_once(&mut self, at: usize) {
        if let Some(job) = self.jobs.get_mut(at).and_then(Option::as_deref_mut) {
            job.memory.once = Some(job.once_id().into());
            self.once.remove(&at);
            self.changed.insert(at);
        }
    }
    /// True if that is news.
    pub fn note_failing(&mut self, at: usize, failing: Option<String>) -> bool {
        let Some(job) = self.jobs.get_mut(at).and_then(Option::as_deref_mut) else {
            return false;
        };
        let turned = job.memory.failing.is_some() != failing.is_some();
        if job.memory.failing.as_deref() != failing.as_deref() {
            job.memory.failing = failing.map(Into::into);
            self.changed.insert(at);
        }
        turned
    }
    /// Pauses or resumes it here. False: so it was.
    pub fn order(&mut self, at: usize, paused: bool, now: Timestamp) -> bool {
        let Some(job) = self.jobs.get_mut(at).and_then(Option::as_deref_mut) else {
            return false;
        };
        if job.paused() == paused {
            return false;
        }
        job.memory.ordered = Some(Box::new(Override {
            paused,
            value_hash: value_hash(&job.value),
        }));
        self.changed.insert(at);
        self.told.push(at);
        self.plan(at, now);
        true
    }
    /// What is to be written of jobs: of these in any case, of those paused or resumed here, and of so many others that changed since it was
    /// written last.
    pub fn take_changed(&mut self, first: &[usize], most: usize) -> Vec<(String, Option<JobMemory>)> {
        let mut taken = std::iter::from_fn(|| self.forgotten.pop_first())
            .take(most)
            .map(|job| (job, None))
            .collect::<Vec<_>>();
        let told = std::mem::take(&mut self.told);
        let first = first.iter().chain(&told).copied().filter(|at| self.changed.remove(at));
        let mut changed = first.collect::<Vec<_>>();
        changed.extend(std::iter::from_fn(|| self.changed.pop_first()).take(most - taken.len()));
        taken.extend(changed.into_iter().filter_map(|at| {
            let job = self.jobs[at].as_ref()?;
            Some((job.key.kept_as(), Some(job.memory.clone())))
        }));
        taken
    }
    /// All that changed was taken.
    pub fn is_taken(&self) -> bool {
        self.changed.is_empty() && self.forgotten.is_empty()
    }
    /// That could not be written.
    pub fn write_again(&mut self, jobs: &[(String, Option<JobMemory>)]) {
        let mut gone = jobs.iter().map(|(job, _)| job.clone()).collect::<BTreeSet<_>>();
        let there = self
            .by_key
            .iter()
            .map(|(key, at)| (key.kept_as(), *at))
            .filter(|(job, _)| gone.contains(job))
            .collect::<Vec<_>>();
        for (job, at) in there {
            gone.remove(&job);
            self.changed.insert(at);
        }
        self.forgotten.append(&mut gone);
    }
    /// Active `once` jobs that have not run as they stand.
    pub fn once_jobs(&self) -> Vec<usize> {
        self.once.iter().copied().collect()
    }
}

/// The first instant after it that did not run.
fn not_run(job: &Job, after: Timestamp) -> Option<Timestamp> {
    let mut after = after;
    loop {
        let next = job.next_after(after)?;
        match job
            .memory
            .ran
            .iter()
            .find(|(first, last)| (*first..=*last).contains(&next))
        {
            None => return Some(next),
            Some((_, last)) => after = last,
        }
    }
}

#[cfg(test)]
mod tests;
