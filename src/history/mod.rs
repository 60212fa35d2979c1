//! What became of the jobs: records of runs, what they said, and what must be remembered of each job over a restart. In
//! `store.redb`, beside the embedded store. Bounded per job, by age, and in all; the oldest go first.
//!
//! Every call blocks: a write until it is on the disk.
mod memory;
mod stored;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use jiff::Timestamp;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};

pub use memory::{JobMemory, Override, Ranges};

use crate::model::{
    RunId, RunRecord, RunState,
    job::{
        Kept,
        feed::{Over, RunFeed},
    },
};

/// By run, and so by time.
const RUNS: TableDefinition<u128, &[u8]> = TableDefinition::new("runs");
/// Job (`JobKey::kept_as`) and run.
const RUNS_OF: TableDefinition<(&str, u128), ()> = TableDefinition::new("runs_of_job");
const OUTPUTS: TableDefinition<u128, &[u8]> = TableDefinition::new("outputs");
/// Runs that have no end yet.
const OPEN: TableDefinition<u128, ()> = TableDefinition::new("runs_open");
/// Runs that are over, numbered as they were written so; and their numbers by run.
const OVER: TableDefinition<u64, u128> = TableDefinition::new("runs_over");
const OVER_AS: TableDefinition<u128, u64> = TableDefinition::new("runs_over_as");
const JOBS: TableDefinition<&str, &[u8]> = TableDefinition::new("jobs");
/// `bytes` of records and outputs; `over`: the last number given to a run that is over; `id`: of this history.
const SIZES: TableDefinition<&str, u64> = TableDefinition::new("history");

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub runs_per_job: usize,
    pub age: Duration,
    /// Bytes of all records and outputs.
    pub bytes: u64,
}
impl Default for Bounds {
    fn default() -> Self {
        Self {
            runs_per_job: 100,
            age: Duration::from_secs(30 * 86_400),
            bytes: 256 << 20,
        }
    }
}

/// One commit.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// New, or as they are now; with what was said, once they are over.
    pub runs: Vec<(RunRecord, Option<Kept>)>,
    /// By `JobKey::kept_as`; none: the job is gone.
    pub jobs: Vec<(String, Option<JobMemory>)>,
}
impl Change {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.jobs.is_empty()
    }
}

pub type HistoryError = redb::Error;
type Done<T> = Result<T, HistoryError>;

#[derive(Clone)]
pub struct History {
    database: Arc<Database>,
    bounds: Bounds,
    id: u64,
    /// The last number in `OVER`, as of the last commit.
    over: Arc<AtomicU64>,
}
impl History {
    pub fn open(database: Arc<Database>, bounds: Bounds) -> Done<Self> {
        let writing = database.begin_write()?;
        {
            writing.open_table(RUNS)?;
            writing.open_table(RUNS_OF)?;
            writing.open_table(OUTPUTS)?;
            writing.open_table(OPEN)?;
            writing.open_table(OVER)?;
            writing.open_table(OVER_AS)?;
            writing.open_table(JOBS)?;
        }
        let (id, over) = {
            let mut sizes = writing.open_table(SIZES)?;
            let known = sizes.get("id")?.map(|id| id.value());
            let id = match known {
                Some(id) => id,
                None => {
                    let mut chance = [0; 8];
                    let _ = getrandom::fill(&mut chance); // then it is like any other without
                    let id = u64::from_le_bytes(chance);
                    sizes.insert("id", id)?;
                    id
                }
            };
            (id, sizes.get("over")?.map_or(0, |over| over.value()))
        };
        writing.commit()?;
        Ok(Self {
            database,
            bounds,
            id,
            over: Arc::new(AtomicU64::new(over)),
        })
    }

    /// All of it, or nothing; on the disk when it answers.
    pub fn write(&self, change: &Change, now: Timestamp) -> Done<()> {
        fail::fail_point!("history-write", |_| Err(HistoryError::Io(std::io::Error::other(
            "failpoint"
        ))));
        let mut writing = self.database.begin_write()?;
        writing.set_durability(Durability::Immediate)?;
        let over = {
            let mut tables = Tables::open(&writing)?;
            // By ends only: a start waits for this.
            let mut ended = vec![];
            for (record, output) in &change.runs {
                tables.put(record, output.as_ref())?;
                if record.state.is_over() {
                    ended.push(record.job.kept_as());
                }
            }
            for (job, memory) in &change.jobs {
                match memory {
                    Some(memory) => tables.jobs.insert(job.as_str(), stored::memory(memory).as_slice())?,
                    None => tables.jobs.remove(job.as_str())?,
                };
            }
            ended.sort_unstable();
            ended.dedup();
            for job in ended {
                tables.keep_newest(&job, self.bounds.runs_per_job)?;
            }
            tables.keep_within(&self.bounds, now)?;
            tables.sizes.insert("bytes", tables.bytes)?;
            tables.sizes.insert("over", tables.last_over)?;
            tables.last_over
        };
        writing.commit()?;
        self.over.store(over, SeqCst);
        Ok(())
    }

    /// At start: what had no end yet has lost its agent.
    pub fn take_lost(&self, now: Timestamp) -> Done<Vec<RunRecord>> {
        let reading = self.database.begin_read()?;
        let open = reading.open_table(OPEN)?;
        let ids = open.iter()?.map(|row| Ok(row?.0.value())).collect::<Done<Vec<_>>>()?;
        let mut lost = vec![];
        for id in ids {
            if let Some(mut record) = self.run(RunId::of_u128(id))? {
                record.error = match record.state {
                    RunState::Queued => "the agent ended before it was started".into(),
                    _ => "the agent ended during it".into(),
                };
                record.state = RunState::Lost;
                record.ended = Some(now);
                lost.push(record);
            }
        }
        if !lost.is_empty() {
            let runs = lost.iter().map(|record| (record.clone(), None)).collect();
            self.write(&Change { runs, jobs: vec![] }, now)?;
        }
        Ok(lost)
    }
    /// What is remembered of every job, by `JobKey::kept_as`.
    pub fn memories(&self) -> Done<HashMap<String, JobMemory>> {
        let reading = self.database.begin_read()?;
        let jobs = reading.open_table(JOBS)?;
        let mut all = HashMap::new();
        for row in jobs.iter()? {
            let (job, memory) = row?;
            // What a later version wrote in another form is a job that was never seen.
            if let Some(memory) = stored::read_memory(memory.value()) {
                all.insert(job.value().to_owned(), memory);
            }
        }
        Ok(all)
    }

    pub fn run(&self, id: RunId) -> Done<Option<RunRecord>> {
        let reading = self.database.begin_read()?;
        let runs = reading.open_table(RUNS)?;
        let found = runs
            .get(id.as_u128())?
            .and_then(|value| stored::read_record(id, value.value()));
        Ok(found)
    }
    /// Newest first; of one job (`JobKey::kept_as`), or of all.
    pub fn runs(&self, job: Option<&str>, most: usize) -> Done<Vec<RunRecord>> {
        let reading = self.database.begin_read()?;
        let runs = reading.open_table(RUNS)?;
        let mut found = vec![];
        let mut take = |id: u128, value: &[u8]| found.extend(stored::read_record(RunId::of_u128(id), value));
        match job {
            None => {
                for row in runs.iter()?.rev().take(most) {
                    let (id, value) = row?;
                    take(id.value(), value.value());
                }
            }
            Some(job) => {
                let of_job = reading.open_table(RUNS_OF)?;
                for row in of_job.range((job, 0)..=(job, u128::MAX))?.rev().take(most) {
                    let id = row?.0.value().1;
                    if let Some(value) = runs.get(id)? {
                        take(id, value.value());
                    }
                }
            }
        }
        Ok(found)
    }
    pub fn output(&self, id: RunId) -> Done<Option<Kept>> {
        let reading = self.database.begin_read()?;
        let outputs = reading.open_table(OUTPUTS)?;
        let found = outputs
            .get(id.as_u128())?
            .and_then(|value| stored::read_output(value.value()));
        Ok(found)
    }
    /// Bytes of records and outputs.
    pub fn bytes(&self) -> Done<u64> {
        let reading = self.database.begin_read()?;
        let bytes = reading
            .open_table(SIZES)?
            .get("bytes")?
            .map_or(0, |bytes| bytes.value());
        Ok(bytes)
    }
}

impl RunFeed for History {
    fn id(&self) -> u64 {
        self.id
    }
    fn last(&self) -> u64 {
        self.over.load(SeqCst)
    }
    fn next(&self, after: u64) -> Result<Option<Over>, String> {
        let next = || -> Done<Option<Over>> {
            let reading = self.database.begin_read()?;
            let (over, runs, outputs) = (
                reading.open_table(OVER)?,
                reading.open_table(RUNS)?,
                reading.open_table(OUTPUTS)?,
            );
            for row in over.range(after.saturating_add(1)..)? {
                let (number, id) = row?;
                let (number, id) = (number.value(), id.value());
                // What a later version wrote in another form is passed over.
                let record = runs
                    .get(id)?
                    .and_then(|value| stored::read_record(RunId::of_u128(id), value.value()));
                if let Some(record) = record {
                    let output = outputs.get(id)?.and_then(|value| stored::read_output(value.value()));
                    let output = output.unwrap_or_default();
                    return Ok(Some(Over { number, record, output }));
                }
            }
            Ok(None)
        };
        next().map_err(|error| format!("could not read the history of jobs: {error}"))
    }
}

struct Tables<'t> {
    runs: Table<'t, u128, &'static [u8]>,
    of_job: Table<'t, (&'static str, u128), ()>,
    outputs: Table<'t, u128, &'static [u8]>,
    open: Table<'t, u128, ()>,
    over: Table<'t, u64, u128>,
    over_as: Table<'t, u128, u64>,
    last_over: u64,
    jobs: Table<'t, &'static str, &'static [u8]>,
    sizes: Table<'t, &'static str, u64>,
    bytes: u64,
}
impl<'t> Tables<'t> {
    fn open(writing: &'t WriteTransaction) -> Done<Self> {
        let sizes = writing.open_table(SIZES)?;
        let bytes = sizes.get("bytes")?.map_or(0, |bytes| bytes.value());
        let last_over = sizes.get("over")?.map_or(0, |over| over.value());
        Ok(Self {
            runs: writing.open_table(RUNS)?,
            of_job: writing.open_table(RUNS_OF)?,
            outputs: writing.open_table(OUTPUTS)?,
            open: writing.open_table(OPEN)?,
            over: writing.open_table(OVER)?,
            over_as: writing.open_table(OVER_AS)?,
            last_over,
            jobs: writing.open_table(JOBS)?,
            sizes,
            bytes,
        })
    }
    fn put(&mut self, record: &RunRecord, output: Option<&Kept>) -> Done<()> {
        let id = record.run_id.as_u128();
        let job = record.job.kept_as();
        let value = stored::record(record);
        let before = self
            .runs
            .insert(id, value.as_slice())?
            .map_or(0, |value| value.value().len());
        self.bytes = (self.bytes + value.len() as u64).saturating_sub(before as u64);
        self.of_job.insert((job.as_str(), id), ())?;
        match record.state.is_over() {
            true => self.open.remove(id)?,
            false => self.open.insert(id, ())?,
        };
        // Written again it is the same end.
        if record.state.is_over() && self.over_as.get(id)?.is_none() {
            self.last_over += 1;
            self.over.insert(self.last_over, id)?;
            self.over_as.insert(id, self.last_over)?;
        }
        if let Some(output) = output.filter(|output| output.total > 0) {
            let value = stored::output(output);
            let before = self
                .outputs
                .insert(id, value.as_slice())?
                .map_or(0, |value| value.value().len());
            self.bytes = (self.bytes + value.len() as u64).saturating_sub(before as u64);
        }
        Ok(())
    }
    fn remove(&mut self, id: u128) -> Done<()> {
        let gone = self.runs.remove(id)?.map(|value| {
            (
                value.value().len(),
                stored::read_record(RunId::of_u128(id), value.value()),
            )
        });
        if let Some((length, record)) = gone {
            self.bytes = self.bytes.saturating_sub(length as u64);
            if let Some(record) = record {
                self.of_job.remove((record.job.kept_as().as_str(), id))?;
            }
        }
        let said = self.outputs.remove(id)?.map_or(0, |value| value.value().len());
        self.bytes = self.bytes.saturating_sub(said as u64);
        self.open.remove(id)?;
        let number = self.over_as.remove(id)?.map(|number| number.value());
        if let Some(number) = number {
            self.over.remove(number)?;
        }
        Ok(())
    }
    /// Runs without an end are not counted out: they are needed at the next start.
    fn keep_newest(&mut self, job: &str, most: usize) -> Done<()> {
        let ids = self.of_job.range((job, 0)..=(job, u128::MAX))?;
        let ids = ids.map(|row| Ok(row?.0.value().1)).collect::<Done<Vec<_>>>()?;
        for id in &ids[..ids.len().saturating_sub(most)] {
            if self.open.get(*id)?.is_none() {
                self.remove(*id)?;
            }
        }
        Ok(())
    }
    fn keep_within(&mut self, bounds: &Bounds, now: Timestamp) -> Done<()> {
        let age = i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX);
        let oldest = (now.as_millisecond().saturating_sub(age).max(0) as u128) << 80;
        loop {
            let mut over = None;
            for row in self.runs.iter()? {
                let id = row?.0.value();
                if id >= oldest && self.bytes <= bounds.bytes {
                    return Ok(());
                }
                if self.open.get(id)?.is_none() {
                    over = Some(id);
                    break;
                }
            }
            match over {
                Some(id) => self.remove(id)?,
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
