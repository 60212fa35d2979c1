//! What the tests of the outputs share: outputs built as the agent builds them, batches with known lines, files read back.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use luffly_agent::{
    clock::{Clock, ManualClock},
    model::{Batch, Events, Host, Lane, Origin},
    plugins::{
        Table,
        outputs::{CATALOG, Output, OutputContext, OutputError, Written},
    },
};

pub fn clock() -> Arc<ManualClock> {
    ManualClock::at("2026-11-23T10:15:00.25Z".parse().unwrap())
}
pub fn host() -> Arc<Host> {
    Arc::new(Host {
        agent_id: "sky01".into(),
        group: "net01".into(),
        hostname: "h1".into(),
        ip: [127, 0, 0, 1].into(),
        instance: String::new(),
    })
}
pub fn context(pipeline: &str, clock: &Arc<ManualClock>) -> OutputContext {
    OutputContext {
        pipeline: pipeline.into(),
        label: "logr".into(),
        host: host(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: clock.clone(),
    }
}
pub fn filter_context(clock: &Arc<ManualClock>) -> luffly_agent::plugins::filters::FilterContext {
    luffly_agent::plugins::filters::FilterContext {
        pipeline: "p".into(),
        label: "f".into(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: clock.clone(),
        tally: Arc::new(luffly_agent::plugins::inputs::NoTally),
    }
}
pub fn build(name: &str, options: serde_json::Value, context: OutputContext) -> Box<dyn Output> {
    let plugin = CATALOG.iter().find(|p| p.name == name).unwrap();
    let table = Table(options.as_object().unwrap().clone());
    (plugin.check)(&table).unwrap();
    (plugin.build)(&table, context).unwrap()
}
/// A logr whose clock stands still.
pub fn logr(options: serde_json::Value) -> Box<dyn Output> {
    build("logr", options, context("p", &clock()))
}
pub fn events<C: AsRef<[u8]>>(contents: impl IntoIterator<Item = C>) -> Events {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for content in contents {
        bytes.extend_from_slice(content.as_ref());
        bytes.push(b'\n');
        ends.push(bytes.len() as u32);
    }
    Events::new(Bytes::from(bytes), ends)
}
pub fn batch_of(seq: u64, events: Events) -> Batch {
    static LANE: OnceLock<Lane> = OnceLock::new();
    static ORIGIN: OnceLock<Arc<Origin>> = OnceLock::new();
    let origin = || {
        Arc::new(Origin {
            host: host(),
            path: Some("/var/log/app.log".into()),
            tags: Vec::new(),
        })
    };
    Batch {
        lane: *LANE.get_or_init(Lane::fresh),
        seq,
        low: 0,
        events,
        origin: ORIGIN.get_or_init(origin).clone(),
        offset: 0,
        read_at: clock().wall(),
        outcome: Default::default(),
    }
}
pub fn batch(seq: u64, contents: &[&str]) -> Batch {
    batch_of(seq, events(contents))
}
pub fn from(path: impl Into<PathBuf>, batch: Batch) -> Batch {
    let origin = Arc::new(Origin {
        host: host(),
        path: Some(path.into()),
        tags: Vec::new(),
    });
    Batch { origin, ..batch }
}
/// `count` batches from `first` on, each of one line: `<seq> <filling>`.
pub fn numbered(first: u64, count: u64, filling: &str) -> Vec<Batch> {
    (first..first + count)
        .map(|seq| batch(seq, &[&format!("{seq} {filling}")]))
        .collect()
}
pub fn ok(written: Written) -> usize {
    assert!(written.stopped.is_none(), "{:?}", written.stopped);
    written.batches
}
/// Writes all of them, as a Sink would; anything wrong fails the test.
pub fn write_all(output: &mut dyn Output, batches: &[Batch]) {
    let mut done = 0;
    while done < batches.len() {
        let more = ok(output.write(&batches[done..]));
        assert!(more > 0, "no progress at {done}");
        done += more;
    }
}
pub fn retry(written: Written) -> (usize, String) {
    match written.stopped {
        Some(OutputError::Retry(why)) => (written.batches, why),
        other => panic!("{other:?}"),
    }
}
pub fn lines(batches: &[Batch]) -> String {
    batches
        .iter()
        .flat_map(|b| b.events.iter())
        .map(|e| format!("{}\n", String::from_utf8_lossy(e)))
        .collect()
}
/// The contents of a file, or of its compressed form if it has become that: the compressor is a thread of its own.
pub fn text(path: impl AsRef<Path>) -> String {
    let plain = path.as_ref().to_str().unwrap().trim_end_matches(".gz").to_owned();
    let mut text = String::new();
    match File::open(&plain) {
        Ok(mut file) => file.read_to_string(&mut text).unwrap(),
        Err(_) => {
            let gz = File::open(format!("{plain}.gz")).unwrap_or_else(|e| panic!("{plain}: {e}"));
            flate2::read::GzDecoder::new(gz).read_to_string(&mut text).unwrap()
        }
    };
    text
}
pub fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let mut names = fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect::<Vec<_>>();
    names.sort();
    names
}
/// What was rotated away from `live`, oldest first, then `live`; by plain names, whatever the form.
pub fn history(live: &Path) -> Vec<PathBuf> {
    let name = format!("{}.", live.file_name().unwrap().to_str().unwrap());
    let mut stamps = names(live.parent().unwrap())
        .into_iter()
        .filter_map(|n| Some(n.strip_prefix(&name)?.to_owned()))
        .filter(|n| !n.ends_with(".tmp"))
        .map(|n| n.trim_end_matches(".gz").to_owned())
        .collect::<Vec<_>>();
    stamps.sort();
    stamps.dedup();
    let mut files = stamps
        .iter()
        .map(|s| live.with_file_name(format!("{name}{s}")))
        .collect::<Vec<_>>();
    if live.exists() {
        files.push(live.to_owned());
    }
    files
}
pub fn whole_text(live: &Path) -> String {
    history(live).iter().map(text).collect()
}

/// This test binary once more, running only `test` with `dir` in its environment: for what cannot be done to the own process.
pub fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("OUTPUTS_CHILD", dir);
    command
}
/// Set in a child only.
pub fn child_dir() -> Option<PathBuf> {
    std::env::var_os("OUTPUTS_CHILD").map(PathBuf::from)
}
