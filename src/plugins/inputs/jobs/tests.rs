use std::{net::Ipv4Addr, sync::Mutex};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock,
    model::{JobKey, RunId, job::feed::RunFeed},
};

/// Some runs, and the number of the first.
struct Feed(Mutex<(u64, Vec<Over>)>);
impl RunFeed for Feed {
    fn id(&self) -> u64 {
        self.0.lock().unwrap().0
    }
    fn last(&self) -> u64 {
        self.0.lock().unwrap().1.last().map_or(0, |over| over.number)
    }
    fn next(&self, after: u64) -> Result<Option<Over>, String> {
        Ok(self
            .0
            .lock()
            .unwrap()
            .1
            .iter()
            .find(|over| over.number > after)
            .cloned())
    }
}
fn over(number: u64, head: &str, tail: &str, total: u64) -> Over {
    let at = Timestamp::from_second(1_700_000_000 + number as i64).unwrap();
    let mut record = RunRecord::new(RunId::new(at, [7; 10]), JobKey::group("web", "17"), Cause::Planned, at);
    record.state = RunState::Failed(Some(3));
    (record.started, record.ended) = (Some(at), Some(at));
    Over {
        number,
        record,
        output: Kept {
            head: head.into(),
            tail: tail.into(),
            total,
        },
    }
}
#[derive(Default)]
struct Counted(Mutex<u64>);
impl Tally for Counted {
    fn count(&self, name: &'static str, by: u64) {
        assert_eq!(name, "runs_forgotten");
        *self.0.lock().unwrap() += by;
    }
}

struct Kit {
    feed: Arc<Feed>,
    dir: tempfile::TempDir,
    journal: SharedJournal,
    forgotten: Arc<Counted>,
}
impl Kit {
    fn new(all: Vec<Over>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            feed: Arc::new(Feed(Mutex::new((99, all)))),
            journal: open(dir.path()),
            dir,
            forgotten: Arc::default(),
        }
    }
    fn input(&self, options: Value) -> Box<dyn Input> {
        let context = InputContext {
            pipeline: "test".into(),
            host: Arc::new(Host {
                agent_id: String::new(),
                group: String::new(),
                hostname: String::new(),
                ip: Ipv4Addr::LOCALHOST.into(),
                instance: String::new(),
            }),
            log: slog::Logger::root(slog::Discard, slog::o!()),
            clock: clock::system(),
            once: false,
            journal: Some(self.journal.clone()),
            board: Arc::default(),
            tally: self.forgotten.clone(),
            runs: Some(self.feed.clone()),
        };
        let table = Table(options.as_object().unwrap().clone());
        (PLUGIN.build)(&table, context).unwrap_or_else(|error| panic!("{error}"))
    }
    /// The process ends, with what was written.
    fn restart(&mut self) {
        self.journal.lock().unwrap().write().unwrap();
        self.journal = open(self.dir.path());
    }
    fn settle(&self, chunks: &[Chunk]) {
        let marks = chunks.iter().filter_map(|chunk| chunk.mark).collect::<Vec<_>>();
        self.journal.lock().unwrap().settle(&marks);
    }
}
fn open(dir: &std::path::Path) -> SharedJournal {
    Arc::new(Mutex::new(Journal::open(dir, "boot").unwrap().journal))
}
/// All that there is now, with so much room.
fn read(input: &mut dyn Input, bytes: usize) -> Vec<Chunk> {
    let mut chunks = vec![];
    while input.read(Want { chunks: 2, bytes }, &mut chunks).unwrap() == Next::More {}
    chunks
}
fn texts(chunks: &[Chunk]) -> Vec<String> {
    let events = chunks.iter().flat_map(|chunk| chunk.events.iter());
    events.map(|event| String::from_utf8(event.to_vec()).unwrap()).collect()
}
/// `17 succeeded`, or what was said.
fn short(chunks: &[Chunk]) -> Vec<String> {
    let of = |text: &String| {
        let event: Value = serde_json::from_str(text).unwrap();
        match event["event"].as_str() {
            Some("run") => format!(
                "{} {}",
                event["planned"].as_str().unwrap(),
                event["state"].as_str().unwrap()
            ),
            _ => format!("{} {}{}", event["offset"], event["message"], event["gap"]),
        }
    };
    texts(chunks).iter().map(of).collect()
}

#[test]
fn what_became_of_a_run_and_what_it_said() {
    let kit = Kit::new(vec![over(1, "one\r\ntw", "ree\nend", 20)]);
    let chunks = read(&mut *kit.input(json!({ "output": true })), 1 << 20);
    let run = RunId::new(Timestamp::from_second(1_700_000_001).unwrap(), [7; 10]);
    let output = |rest: &str| format!(r#"{{"event":"output","task_id":"17","run_id":"{run}",{rest}}}"#);
    assert_eq!(
        texts(&chunks),
        [
            output(r#""offset":0,"message":"one""#),
            output(r#""offset":5,"message":"tw""#),
            output(r#""offset":7,"gap":6"#),
            output(r#""offset":13,"message":"ree""#),
            output(r#""offset":17,"message":"end""#),
            format!(
                r#"{{"event":"run","task_id":"17","group":"web","run_id":"{run}","state":"failed","code":3,"missed":null,"why":null,"error":"","cause":"planned","by":null,"planned":"2023-11-14T22:13:21Z","started":"2023-11-14T22:13:21Z","ended":"2023-11-14T22:13:21Z","attempt":1,"tree":null,"output_bytes":0,"output_gap":0,"unkillable":[]}}"#
            ),
        ]
    );
    assert_eq!(chunks.len(), 1);
    let alone = read(&mut *Kit::new(vec![over(1, "x\n", "", 2)]).input(json!({})), 1 << 20);
    assert_eq!(short(&alone), ["2023-11-14T22:13:21Z failed"]);
}
#[test]
fn a_restart_goes_on_behind_what_is_settled_whole() {
    let mut kit = Kit::new(vec![over(1, "a\nb\n", "", 4), over(2, "", "", 0)]);
    let (first, second) = ("2023-11-14T22:13:21Z failed", "2023-11-14T22:13:22Z failed");
    let mut input = kit.input(json!({ "output": true }));
    let chunks = read(&mut *input, 10);
    assert_eq!(short(&chunks), ["0 \"a\"null", "2 \"b\"null", first, second]);
    assert_eq!(chunks.len(), 4, "as much as there is room for, and one event at least");
    // Half of the first run is settled: all of it comes again.
    kit.settle(&chunks[..2]);
    kit.restart();
    let chunks = read(&mut *kit.input(json!({ "output": true })), 1 << 20);
    assert_eq!(short(&chunks), ["0 \"a\"null", "2 \"b\"null", first, second]);
    kit.settle(&chunks[..1]);
    kit.restart();
    let mut input = kit.input(json!({}));
    assert_eq!(short(&read(&mut *input, 1 << 20)), [second]);
    // It ended while the input waits.
    kit.feed.0.lock().unwrap().1.push(over(3, "", "", 0));
    let chunks = read(&mut *input, 1 << 20);
    assert_eq!(chunks.len(), 1);
    kit.settle(&chunks);
    // Thrown away before they were read; then another history.
    kit.restart();
    *kit.feed.0.lock().unwrap() = (99, vec![over(7, "", "", 0)]);
    let chunks = read(&mut *kit.input(json!({})), 1 << 20);
    assert_eq!((chunks.len(), *kit.forgotten.0.lock().unwrap()), (1, 3));
    kit.settle(&chunks);
    kit.restart();
    for (id, all) in [
        (98, vec![over(1, "", "", 0), over(9, "", "", 0)]),
        (98, vec![over(1, "", "", 0)]),
    ] {
        *kit.feed.0.lock().unwrap() = (id, all);
        let chunks = read(&mut *kit.input(json!({})), 1 << 20);
        assert_eq!(short(&chunks)[0], first);
        kit.settle(&chunks);
        kit.restart();
    }
}
#[test]
fn from_now_on() {
    let kit = Kit::new(vec![over(1, "", "", 0)]);
    let mut input = kit.input(json!({ "start": "end" }));
    assert_eq!(texts(&read(&mut *input, 1 << 20)), [""; 0]);
    kit.feed.0.lock().unwrap().1.push(over(2, "", "", 0));
    assert_eq!(read(&mut *input, 1 << 20).len(), 1);
    let refused = |options: Value| (PLUGIN.check)(&Table(options.as_object().unwrap().clone())).is_err();
    assert!(refused(json!({ "start": "now" })) && refused(json!({ "outputs": true })));
}
