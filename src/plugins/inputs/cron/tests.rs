use std::{net::Ipv4Addr, path::Path, sync::Mutex};

use serde_json::json;

use super::*;
use crate::clock;

#[derive(Default)]
struct Counted(Mutex<Vec<(&'static str, u64)>>);
impl Tally for Counted {
    fn count(&self, name: &'static str, by: u64) {
        self.0.lock().unwrap().push((name, by));
    }
}
impl Counted {
    fn of(&self, name: &str) -> u64 {
        self.0
            .lock()
            .unwrap()
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, by)| by)
            .sum()
    }
}
fn context(tally: SharedTally, once: bool) -> InputContext {
    InputContext {
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
        once,
        journal: None,
        board: Arc::default(),
        runs: None,
        tally,
    }
}
fn table(options: serde_json::Value) -> Table {
    Table(options.as_object().unwrap().clone())
}
fn input(options: serde_json::Value, once: bool) -> (Box<dyn Input>, Arc<Counted>) {
    let tally = Arc::new(Counted::default());
    let input = (PLUGIN.build)(&table(options), context(tally.clone(), once));
    (input.unwrap_or_else(|error| panic!("{error}")), tally)
}
const WANT: Want = Want {
    chunks: 4,
    bytes: 1 << 20,
};
fn texts(chunks: &[Chunk]) -> Vec<String> {
    let events = chunks.iter().flat_map(|chunk| chunk.events.iter());
    events.map(|event| String::from_utf8(event.to_vec()).unwrap()).collect()
}
fn all(input: &mut dyn Input) -> Vec<String> {
    let mut chunks = Vec::new();
    while input.read(WANT, &mut chunks).unwrap() != Next::Ended {}
    texts(&chunks)
}
/// Reads until there are so many lines.
fn lines(input: &mut dyn Input, most: usize) -> Vec<String> {
    let mut chunks = Vec::new();
    while texts(&chunks).len() < most {
        assert_ne!(input.read(WANT, &mut chunks).unwrap(), Next::Ended);
    }
    texts(&chunks)
}
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

#[test]
fn once_runs_once_at_once_and_ends() {
    let (mut input, tally) = input(
        json!({
            "express": "0 0 1 1 *", "cmd": "echo $1 $A; printf 'no end' >&2", "args": ["x"], "env": {"A": "y"}, "dir": "/",
        }),
        true,
    );
    assert_eq!(all(&mut *input), ["x y", "no end"]);
    assert_eq!(input.read(WANT, &mut vec![]).unwrap(), Next::Ended);
    assert!(!input.rewinds());
    assert_eq!((tally.of("runs"), tally.of("runs_failed")), (1, 0));
}
#[test]
fn each_second_again_and_runs_share_no_line() {
    let (mut input, tally) = input(
        json!({"express": "* * * * * *", "cmd": "printf $AGENT_TASK_ID; exit 3"}),
        false,
    );
    // The third line is of a third run: two are over and counted, whatever becomes of it.
    assert_eq!(lines(&mut *input, 3)[..3], ["input-test"; 3]);
    input.no_more();
    all(&mut *input);
    assert!(tally.of("runs") >= 2 && tally.of("runs_failed") >= 2);
}
/// BEHAVIOUR 75: hangs, has grandchildren in sessions of their own, ignores SIGTERM.
#[test]
fn at_its_timeout_nothing_of_it_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let cmd = "trap '' TERM; setsid bash -c 'trap \"\" TERM; echo $BASHPID > pid; while :; do sleep 1; done' & while [ ! -s pid ]; do sleep 0.01; done; echo up; while :; do sleep 1; done";
    let (mut input, tally) = input(
        json!({"express": "@hourly", "cmd": cmd, "dir": dir.path(), "timeout": "2s", "kill_after": "10ms"}),
        true,
    );
    assert_eq!(all(&mut *input), ["up"]);
    assert_eq!((tally.of("runs"), tally.of("runs_timed_out")), (1, 1));
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    assert!(!lives(pid.trim()), "{pid}");
}
/// BEHAVIOUR 75: floods stdout. Nobody reads for a while: it is held up, not dropped; then all of it is there.
#[test]
fn a_flood_is_held_up() {
    let dir = tempfile::tempdir().unwrap();
    let cmd = "for ((i = 0; i < 400000; i++)); do echo \"line $i\"; done; touch done";
    let (mut input, tally) = input(json!({"express": "@hourly", "cmd": cmd, "dir": dir.path()}), true);
    let mut chunks = Vec::new();
    while chunks.is_empty() {
        input.read(Want { chunks: 1, bytes: 10 }, &mut chunks).unwrap();
    }
    assert!(!dir.path().join("done").exists(), "5 MB wait for whoever reads");
    let rest = all(&mut *input);
    let first = texts(&chunks);
    assert_eq!(first.len() + rest.len(), 400_000);
    assert_eq!((&*first[0], &*rest[rest.len() - 1]), ("line 0", "line 399999"));
    assert_eq!(tally.of("runs_failed"), 0);
    assert!(dir.path().join("done").exists());
}
/// BEHAVIOUR 75: dies in a loop, or cannot be started at all.
#[test]
fn what_cannot_be_started_is_counted() {
    let (mut input, tally) = input(
        json!({"express": "* * * * * *", "cmd": "/no/such/program", "executor": "exec"}),
        false,
    );
    while tally.of("runs_failed") < 2 {
        assert!(input.read(WANT, &mut vec![]).is_ok());
    }
}
#[test]
fn a_stop_ends_the_run_and_delivers_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let cmd = "trap 'echo bye; exit 0' TERM; echo $$; exec 2> /dev/null; while :; do sleep 0.1; done"; // bash says that its sleep was ended
    let (mut input, _) = input(json!({"express": "* * * * * *", "cmd": cmd, "dir": dir.path()}), false);
    let pid = lines(&mut *input, 1).remove(0);
    assert!(lives(&pid));
    input.no_more();
    assert_eq!(all(&mut *input), ["bye"]);
    assert!(!lives(&pid));
}
#[test]
fn dropped_it_leaves_nothing_behind() {
    let (mut input, _) = input(
        json!({"express": "* * * * * *", "cmd": "echo $$; exec sleep 1000"}),
        false,
    );
    let pid = lines(&mut *input, 1).remove(0);
    drop(input);
    while lives(&pid) {
        std::thread::yield_now();
    }
}
#[test]
fn an_instant_during_a_run_is_skipped_and_counted() {
    let (mut input, tally) = input(json!({"express": "* * * * * *", "cmd": "sleep 2.5; echo x"}), false);
    lines(&mut *input, 1);
    while tally.of("runs_skipped") < 2 {
        input.read(WANT, &mut vec![]).unwrap();
    }
}
#[test]
fn what_is_refused() {
    for (options, key, says) in [
        (json!({"express": "* * * * *"}), "", "missing field `cmd`"),
        (json!({"cmd": "x"}), "", "missing field `express`"),
        (json!({"cmd": " ", "express": "* * * * *"}), "cmd", "found \" \""),
        (
            json!({"cmd": "x", "express": "soon"}),
            "express",
            "found \"soon\", accepted: a schedule",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "tz": "Mars/X"}),
            "tz",
            "found \"Mars/X\"",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "executor": "perl"}),
            "executor",
            "found \"perl\", accepted: bash, exec, python3, sh",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "dir": "x"}),
            "dir",
            "found \"x\", accepted: a path that begins with /",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "timeout": "0s"}),
            "timeout",
            "found 0s",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "env": {"a=b": "c"}}),
            "env",
            "found \"a=b\"",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "args": ["a\u{0}"]}),
            "args",
            "found a NUL",
        ),
        (
            json!({"cmd": "x", "express": "* * * * *", "every": "1s"}),
            "every",
            "unknown field `every`",
        ),
    ] {
        let error = (PLUGIN.check)(&table(options)).unwrap_err();
        assert_eq!(error.key, key, "{error}");
        assert!(error.message.starts_with(says), "{error}");
    }
}
