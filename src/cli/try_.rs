//! `agent try --sample FILE`: sends a sample through the filters of a pipeline, and shows before and after. Starts nothing, touches no state,
//! dials nobody. Each event goes by itself, which is the same for filters as going in batches; the clock stands still, so the sample
//! counts as come in one instant.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, IsTerminal, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Done, Failed, load};
use crate::{
    clock::ManualClock,
    model::Events,
    plugins::{
        self,
        filters::{self, Dropped, Filter, FilterContext},
        inputs::Tally,
    },
    settings::{self, Options, Purpose},
};

pub fn run(options: &Options, sample: &Path, pipeline: Option<&str>, json: bool) -> Done {
    let settings = load(options, Purpose::Try)?;
    let pipeline = pick(&settings.pipelines, pipeline, !options.filter.is_empty()).map_err(Failed::usage)?;
    let mut trial = Trial::new(&pipeline.filters).map_err(Failed::new)?;
    let unread = |error: io::Error| Failed::new(format!("could not read the sample {}: {error}", sample.display()));
    let from_stdin = sample.as_os_str() == "-";
    let mut lines: Box<dyn BufRead> = match from_stdin {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(File::open(sample).map_err(unread)?)),
    };
    let stdout = io::stdout();
    let colours = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let mut out = BufWriter::new(stdout.lock());
    let mut line = vec![];
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(unread)? == 0 {
            break;
        }
        let event = line.strip_suffix(b"\n").unwrap_or(&line);
        let passage = trial.one(event);
        let shown = match json {
            true => format!("{}\n", passage.json(event, trial.counts.events)),
            false => passage.text(event, trial.counts.events, colours),
        };
        // Whoever reads may have seen enough.
        let written = out.write_all(shown.as_bytes());
        if written
            .and_then(|()| if from_stdin { out.flush() } else { Ok(()) })
            .is_err()
        {
            return Ok(0);
        }
    }
    let end = match json {
        true => format!("{}\n", trial.counts.json()),
        false => format!("{}\n", trial.counts),
    };
    let _ = out.write_all(end.as_bytes()).and_then(|()| out.flush());
    Ok(0)
}

/// The one that is named; else the only one, or that of the filters on the command line.
fn pick<'a>(
    pipelines: &'a [settings::Pipeline],
    wanted: Option<&str>,
    has_flags: bool,
) -> Result<&'a settings::Pipeline, String> {
    let names = || pipelines.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
    let named = |name: &str| pipelines.iter().find(|p| p.name == name);
    match (wanted, pipelines) {
        (Some(name), _) => named(name).ok_or_else(|| format!("unknown pipeline `{name}`, accepted: {}", names())),
        (None, [only]) => Ok(only),
        (None, []) => Err("found no pipeline, accepted: -config FILE, or -filter=PLUGIN".to_owned()),
        (None, _) => (if has_flags { named("default") } else { None }).ok_or_else(|| {
            format!(
                "found {} pipelines, accepted: --pipeline with one of {}",
                pipelines.len(),
                names()
            )
        }),
    }
}

/// The filters of a pipeline, with nothing around them.
pub struct Trial {
    filters: Vec<(String, Box<dyn Filter>, Arc<Notes>)>,
    pub counts: Counts,
}
/// What a filter has let pass since the last event.
#[derive(Default)]
struct Notes(Mutex<Vec<&'static str>>);
impl Tally for Notes {
    fn count(&self, name: &'static str, _: u64) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).push(name);
    }
}
impl Notes {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

/// What became of one event.
pub struct Passage {
    outcome: Outcome,
    /// (filter, why it could do nothing with it)
    passed: Vec<(String, &'static str)>,
}
enum Outcome {
    Kept,
    Changed(Bytes),
    Dropped { filter: String, reason: String },
}

impl Trial {
    pub fn new(plugins: &[settings::Plugin]) -> Result<Self, String> {
        let clock = ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
        let mut filters = vec![];
        for (label, plugin) in filters::labels(plugins.iter().map(|p| &p.name)).zip(plugins) {
            let row = plugins::find(filters::CATALOG, "filter", &plugin.name)?;
            let notes = Arc::new(Notes::default());
            let context = FilterContext {
                pipeline: "try".into(),
                label: label.as_str().into(),
                log: slog::Logger::root(slog::Discard, slog::o!()),
                clock: clock.clone(),
                tally: notes.clone(),
            };
            let built = (row.build)(&plugin.table, context).map_err(|error| format!("filter `{label}`: {error}"))?;
            filters.push((label, built, notes));
        }
        let counts = Counts::default();
        Ok(Self { filters, counts })
    }
    pub fn one(&mut self, event: &[u8]) -> Passage {
        let mut bytes = event.to_vec();
        bytes.push(b'\n');
        let ends = vec![bytes.len() as u32];
        let mut events = Events::new(bytes.into(), ends);
        let (mut gone, mut fell) = (None, false);
        for (label, filter, _) in &mut self.filters {
            let mut dropped = Dropped::new();
            let input = events.clone();
            match catch_unwind(AssertUnwindSafe(|| filter.apply(input, &mut dropped))) {
                Ok(left) => events = left,
                // As the agent does it in the end.
                Err(_) => {
                    fell = true;
                    gone = Some((label.clone(), "panic, to the dead letter"));
                    break;
                }
            }
            if events.is_empty() {
                gone = Some((label.clone(), dropped.first().map_or("no reason", |(reason, _)| reason)));
                break;
            }
        }
        if !fell {
            self.filters.iter_mut().for_each(|(_, filter, _)| filter.commit());
        }
        let notes = self.filters.iter().map(|(label, _, notes)| (label, notes.take()));
        let passed = notes.flat_map(|(label, notes)| notes.into_iter().map(|note| (label.clone(), note)));
        let passed = passed.collect::<Vec<_>>();
        let outcome = match gone {
            Some((filter, reason)) => Outcome::Dropped {
                filter,
                reason: reason.to_owned(),
            },
            None => match events.iter().next() {
                Some(after) if after != event => Outcome::Changed(Bytes::copy_from_slice(after)),
                _ => Outcome::Kept,
            },
        };
        self.counts.one(&outcome, &passed);
        Passage { outcome, passed }
    }
}

impl Passage {
    pub fn text(&self, before: &[u8], number: u64, colours: bool) -> String {
        let colour = |code: &str, text: &str| match colours {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_owned(),
        };
        let before = printable(before);
        let mut text = match &self.outcome {
            Outcome::Kept => format!("{number:>3} kept     {before}\n"),
            Outcome::Changed(after) => {
                let (word, arrow) = (colour("33", "changed"), colour("33", "→"));
                format!(
                    "{number:>3} {word}  {before}\n          {arrow}  {}\n",
                    printable(after)
                )
            }
            Outcome::Dropped { filter, reason } => {
                let word = colour("31", "dropped");
                format!("{number:>3} {word}  {before}\n             by {filter}: {reason}\n")
            }
        };
        for (filter, reason) in &self.passed {
            text += &format!("             let pass by {filter}: {reason}\n");
        }
        text
    }
    fn json(&self, before: &[u8], number: u64) -> Value {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut line = json!({ "event": number, "outcome": "kept", "before": lossy(before) });
        match &self.outcome {
            Outcome::Kept => {}
            Outcome::Changed(after) => {
                line["outcome"] = "changed".into();
                line["after"] = lossy(after).into();
            }
            Outcome::Dropped { filter, reason } => {
                line["outcome"] = "dropped".into();
                line["filter"] = filter.as_str().into();
                line["reason"] = reason.as_str().into();
            }
        }
        if !self.passed.is_empty() {
            let passed = self.passed.iter();
            line["let_pass"] = passed
                .map(|(filter, reason)| json!({ "filter": filter, "reason": reason }))
                .collect();
        }
        line
    }
}
/// On one line, and nothing that a terminal would obey.
fn printable(event: &[u8]) -> String {
    if event.is_empty() {
        return "(empty)".to_owned();
    }
    let mut shown = String::with_capacity(event.len());
    for c in String::from_utf8_lossy(event).chars() {
        match c {
            '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

#[derive(Default)]
pub struct Counts {
    events: u64,
    kept: u64,
    changed: u64,
    dropped: BTreeMap<(String, String), u64>,
    passed: BTreeMap<(String, String), u64>,
}
impl Counts {
    fn one(&mut self, outcome: &Outcome, passed: &[(String, &'static str)]) {
        self.events += 1;
        match outcome {
            Outcome::Kept => self.kept += 1,
            Outcome::Changed(_) => self.changed += 1,
            Outcome::Dropped { filter, reason } => {
                *self.dropped.entry((filter.clone(), reason.clone())).or_default() += 1;
            }
        }
        for (filter, reason) in passed {
            *self.passed.entry((filter.clone(), (*reason).to_owned())).or_default() += 1;
        }
    }
    fn json(&self) -> Value {
        let list = |counts: &BTreeMap<(String, String), u64>| {
            let row = |((filter, reason), n): (&(String, String), &u64)| json!({ "filter": filter, "reason": reason, "events": n });
            counts.iter().map(row).collect::<Value>()
        };
        json!({ "events": self.events, "kept": self.kept, "changed": self.changed, "dropped": self.dropped.values().sum::<u64>(),
            "dropped_by": list(&self.dropped), "let_pass_by": list(&self.passed) })
    }
}
impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |counts: &BTreeMap<(String, String), u64>| {
            let rows = counts
                .iter()
                .map(|((filter, reason), n)| format!("{filter}: {reason} {n}"));
            rows.collect::<Vec<_>>().join(", ")
        };
        let events = if self.events == 1 { "event" } else { "events" };
        let dropped = self.dropped.values().sum::<u64>();
        write!(
            f,
            "{} {events}: {} kept, {} changed, {dropped} dropped",
            self.events, self.kept, self.changed
        )?;
        if dropped > 0 {
            write!(f, " ({})", list(&self.dropped))?;
        }
        if !self.passed.is_empty() {
            write!(f, "; let pass: {}", list(&self.passed))?;
        }
        Ok(())
    }
}
