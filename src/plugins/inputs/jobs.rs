//! Runs of this agent's jobs as events: what became of each, and, if asked for, what it said. They are read from the history, run by run
//! in the order in which they ended; the place is a number there, kept in the pipeline's checkpoints as that of a file would be.
use std::path::PathBuf;

use bytes::{BufMut as _, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    checkpoint::{Identity, Journal},
    model::{
        Events, Mark, Origin, Progress, RunRecord, RunState, SourceId,
        job::{Cause, Kept, Scope, feed::Over},
    },
    plugins::Opt,
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "jobs",
    tag: "v1",
    stable: true,
    about: "Runs of this agent's jobs, as JSON: what became of each, and what it said",
    delivery: "At least once, over restarts too, as long as the history keeps a run (100 of each job, 30 days, 256 MiB in all); what goes \
               unread is counted as runs_forgotten",
    options: &[
        Opt {
            name: "start",
            default: "\"beginning\"",
            about: "Where a new pipeline begins: with the oldest run that is kept (\"beginning\"), or with those that end from now on (\"end\").",
        },
        Opt {
            name: "output",
            default: "false",
            about: "What a run said comes before its end, an event for each line, as far as it was kept (`output_limit` of the job).",
        },
    ],
    sample: r#"{ plugin = "jobs", output = true }"#,
    check: |table| table.read::<Options>().map(drop),
    build: |table, context| {
        let options: Options = table.read::<Options>().map_err(PluginError::from)?;
        let Some(feed) = context.runs.clone() else {
            let why = "no jobs run here that could be told of: not with --once, and not in a pipe";
            return Err(PluginError::Failed(format!("could not set up the input jobs: {why}")));
        };
        Ok(Box::new(Jobs::new(options, feed, context)))
    },
};

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    start: Start,
    #[serde(default)]
    output: bool,
}
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Beginning,
    End,
}

/// What our row in the journal is called.
const ROW: &str = "runs";
/// So often it is looked whether a run has ended.
const REST: Duration = Duration::from_millis(200);
/// A longer line comes in pieces.
const LONGEST_LINE: usize = 256 << 10;

pub struct Jobs {
    feed: SharedRunFeed,
    output: bool,
    /// None: no place is kept.
    source: Option<SourceId>,
    /// The last run that was given out whole.
    at: u64,
    /// The one that is being given out.
    open: Option<Open>,
    origin: Arc<Origin>,
    clock: SharedClock,
    tally: SharedTally,
}
/// A run on its way: what it said, up to there; its end comes last.
struct Open {
    over: Over,
    from: u64,
}

impl Jobs {
    fn new(options: Options, feed: SharedRunFeed, context: InputContext) -> Self {
        let begin = match options.start {
            Start::Beginning => 0,
            Start::End => feed.last(),
        };
        let (source, at) = match &context.journal {
            None => (None, begin),
            Some(journal) => {
                let mut journal = journal.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                let (id, at) = place(&mut journal, &*feed, begin, &context);
                (Some(id), at)
            }
        };
        Self {
            feed,
            output: options.output,
            source,
            at,
            open: None,
            origin: Arc::new(Origin {
                host: context.host,
                path: None,
                tags: Vec::new(),
            }),
            clock: context.clock,
            tally: context.tally,
        }
    }
    /// False: no run has ended since.
    fn open_next(&mut self) -> Result<bool, InputError> {
        if self.open.is_none() && self.feed.last() > self.at {
            let over = self.feed.next(self.at).map_err(InputError)?;
            if let Some(over) = &over {
                let forgotten = over.number - self.at - 1;
                if forgotten > 0 {
                    self.tally.count("runs_forgotten", forgotten);
                    self.at = over.number - 1;
                }
            }
            self.open = over.map(|over| Open {
                from: if self.output { 0 } else { over.output.total },
                over,
            });
        }
        Ok(self.open.is_some())
    }
}

/// Where it goes on, by the journal.
fn place(
    journal: &mut Journal,
    feed: &dyn crate::model::job::feed::RunFeed,
    begin: u64,
    context: &InputContext,
) -> (SourceId, u64) {
    let row = journal
        .entries()
        .into_iter()
        .find(|entry| entry.identity.path.as_os_str() == ROW);
    if let Some(row) = row {
        if row.identity.head_hash == feed.id() && row.settled.offset <= feed.last() {
            return (row.id, row.settled.offset);
        }
        slog::warn!(context.log, "the history of jobs is another than before: all of its runs come";
            "was_at" => row.settled.offset, "it_ends_at" => feed.last());
        journal.remove(row.id);
        return (
            journal.add(identity(feed.id()), progress(0), context.clock.wall().as_second()),
            0,
        );
    }
    let id = journal.add(identity(feed.id()), progress(begin), context.clock.wall().as_second());
    (id, begin)
}
fn identity(history: u64) -> Identity {
    Identity {
        path: PathBuf::from(ROW),
        device: 0,
        inode: 0,
        head_len: 0,
        head_hash: history,
    }
}
fn progress(number: u64) -> Progress {
    Progress {
        offset: number,
        ..Progress::default()
    }
}

impl Input for Jobs {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        for done in 0..want.chunks.max(1) {
            match self.open_next() {
                Ok(true) => {}
                Ok(false) => return Ok(Next::Idle(REST)),
                Err(_) if done > 0 => break, // said when there is nothing else to say
                Err(error) => return Err(error),
            }
            let Some(open) = &self.open else { break };
            let (mut text, mut ends) = (BytesMut::new(), vec![]);
            let (from, whole) = open.write(want.bytes, &mut text, &mut ends);
            let settled = if whole { open.over.number } else { self.at };
            let chunk = Chunk {
                events: Events::new(text.freeze(), ends),
                origin: self.origin.clone(),
                offset: open.over.number,
                read_at: self.clock.wall(),
                mark: self.source.map(|source| Mark {
                    source,
                    progress: progress(settled),
                }),
            };
            into.push(chunk);
            self.at = settled;
            match (&mut self.open, whole) {
                (open, true) => *open = None,
                (Some(open), false) => open.from = from,
                (None, false) => {}
            }
        }
        Ok(Next::More)
    }
    fn rewinds(&self) -> bool {
        self.source.is_some()
    }
}

impl Open {
    /// The next events, of `room` bytes or one that is larger: up to where in its output, and whether its end is among them.
    fn write(&self, room: usize, text: &mut BytesMut, ends: &mut Vec<u32>) -> (u64, bool) {
        let record = &self.over.record;
        let mut from = self.from;
        loop {
            let (event, next, last) = match said(&self.over.output, from) {
                Some((piece, next)) => (json(&Said::of(record, piece)), next, false),
                None => (json(&Run::of(record)), from, true),
            };
            if !ends.is_empty() && text.len() + event.len() + 1 > room {
                return (from, false);
            }
            text.reserve(event.len() + 1);
            text.put_slice(&event);
            text.put_u8(b'\n');
            ends.push(text.len() as u32);
            if last {
                return (next, true);
            }
            from = next;
        }
    }
}
/// One line, or what is not there between the head and the tail, and where the next begins.
enum Piece<'a> {
    Line(u64, &'a [u8]),
    Gap(u64, u64),
}
fn said(output: &Kept, from: u64) -> Option<(Piece<'_>, u64)> {
    let (begin, rest, gap) = output.from(from);
    if gap > 0 {
        return Some((Piece::Gap(from, gap), begin));
    }
    let rest = &rest[..rest.len().min(LONGEST_LINE)];
    if rest.is_empty() {
        return None;
    }
    let (line, size) = match memchr::memchr(b'\n', rest) {
        Some(end) => (&rest[..end], end + 1),
        None => (rest, rest.len()),
    };
    Some((
        Piece::Line(begin, line.strip_suffix(b"\r").unwrap_or(line)),
        begin + size as u64,
    ))
}

#[derive(Serialize)]
struct Said<'a> {
    event: &'static str,
    task_id: &'a str,
    run_id: String,
    /// Where it begins in what the run said.
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<std::borrow::Cow<'a, str>>,
    /// Bytes that were not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<u64>,
}
impl<'a> Said<'a> {
    fn of(record: &'a RunRecord, piece: Piece<'a>) -> Self {
        let (offset, message, gap) = match piece {
            Piece::Line(at, line) => (at, Some(String::from_utf8_lossy(line)), None),
            Piece::Gap(at, bytes) => (at, None, Some(bytes)),
        };
        Self {
            event: "output",
            task_id: &record.job.task_id,
            run_id: record.run_id.to_string(),
            offset,
            message,
            gap,
        }
    }
}
#[derive(Serialize)]
struct Run<'a> {
    event: &'static str,
    task_id: &'a str,
    /// Null: this host's own job.
    group: Option<&'a str>,
    run_id: String,
    /// `succeeded`, `failed`, `timed_out`, `killed`, `skipped`, `missed`, `lost`
    state: &'static str,
    /// Of one that failed: its exit code; null: it was not started.
    code: Option<i32>,
    /// Planned instants without a run.
    missed: Option<u64>,
    /// Killed by whom, skipped why.
    why: Option<&'a str>,
    error: &'a str,
    cause: &'a str,
    by: Option<&'a str>,
    planned: String,
    started: Option<String>,
    ended: Option<String>,
    attempt: u32,
    tree: Option<&'static str>,
    output_bytes: u64,
    output_gap: u64,
    unkillable: &'a [i32],
}
impl<'a> Run<'a> {
    fn of(record: &'a RunRecord) -> Self {
        let (mut code, mut missed, mut why) = (None, None, None);
        match &record.state {
            RunState::Failed(found) => code = *found,
            RunState::Missed(n) => missed = Some(*n),
            RunState::Killed(what) | RunState::Skipped(what) => why = Some(what.as_str()),
            _ => {}
        }
        Self {
            event: "run",
            task_id: &record.job.task_id,
            group: match &record.job.scope {
                Scope::Group(group) => Some(group),
                Scope::Host(_) => None,
            },
            run_id: record.run_id.to_string(),
            state: record.state.word(),
            code,
            missed,
            why,
            error: &record.error,
            cause: record.cause.word(),
            by: match &record.cause {
                Cause::Asked(by) => Some(by),
                _ => None,
            },
            planned: instant(record.planned),
            started: record.started.map(instant),
            ended: record.ended.map(instant),
            attempt: record.attempt,
            tree: record.tree.map(|tree| tree.word()),
            output_bytes: record.output_bytes,
            output_gap: record.output_gap,
            unkillable: &record.unkillable,
        }
    }
}
/// To the millisecond.
fn instant(at: Timestamp) -> String {
    Timestamp::from_millisecond(at.as_millisecond())
        .unwrap_or(at)
        .to_string()
}
fn json(event: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(event).unwrap_or_default() // plain fields, and names that are text: nothing that could fail
}

#[cfg(test)]
mod tests;
