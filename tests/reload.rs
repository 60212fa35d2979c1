//! `agent reload`, SIGHUP and `POST /api/v1/reload` on the real binary: what is other changes, nothing else, and no event is lost or
//! doubled by it.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use kit::agent::*;
use nix::sys::signal::Signal;

fn logr(path: &str) -> String {
    format!("{{ plugin = \"logr\", path = \"{{0}}/{path}\" }}")
}
/// As `Place::configure`, in one step: a reload may read it at any moment.
fn configure(place: &Place, outputs: &[String], rest: &str) -> PathBuf {
    let path = place.configure(&outputs.join(", "), rest);
    let (text, whole) = (std::fs::read(&path).unwrap(), place.path("whole.toml"));
    std::fs::write(&whole, text).unwrap();
    std::fs::rename(&whole, &path).unwrap();
    path
}
fn numbers(place: &Place, name: &str) -> Vec<u64> {
    let text = String::from_utf8(place.read(name)).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line in {name}");
    text.lines().map(|line| line.parse().unwrap()).collect()
}
fn reloaded(place: &Place) -> serde_json::Value {
    let (status, body) = place.reload();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}
fn keys(answer: &serde_json::Value, what: &str) -> Vec<String> {
    let list = answer[what].as_array().unwrap().iter();
    list.map(|of| of["key"].as_str().unwrap().to_owned()).collect()
}

/// Appends rising numbers to `in/a.log` until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}
impl Writer {
    fn start(place: &Place) -> Self {
        let (stop, written) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut file = File::create(place.write("in/a.log", "")).unwrap();
        let (stopped, count) = (stop.clone(), written.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                let n = count.load(SeqCst);
                let text = (n..n + 100).map(|n| format!("{n}\n")).collect::<String>();
                file.write_all(text.as_bytes()).unwrap();
                count.store(n + 100, SeqCst);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self {
            stop,
            written,
            thread: Some(thread),
        }
    }
    /// How many there are in all.
    fn stop(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.written.load(SeqCst)
    }
}
impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}
fn append(place: &Place, name: &str, text: &str) {
    let file = std::fs::OpenOptions::new().append(true).open(place.path(name));
    file.unwrap().write_all(text.as_bytes()).unwrap();
}
fn settled(place: &Place) {
    until("nothing waits", || place.metric("events_waiting", "") == 0);
    place.conserved();
}

#[test]
fn f69_a_reload_that_fails_changes_nothing_and_says_why() {
    let place = Place::default();
    let http = "[http]\naddress = \"127.0.0.1:0\"\n";
    let settings = configure(&place, &[logr("a")], http);
    let running = place.start(&settings, Stdio::null());
    let config = ["-config", settings.to_str().unwrap()];
    place.write("in/a.log", "");
    let mut lines = String::new();
    let mut goes_on = |place: &Place| {
        let line = format!("{}\n", lines.lines().count());
        lines += &line;
        append(place, "in/a.log", &line);
        until("it goes on as before", || place.read("a") == lines.as_bytes());
    };
    goes_on(&place);
    let status = || place.run(&["status"]).out;
    assert!(!status().contains("reload"), "{}", status());

    // Refused by the settings: 78, with the words of `agent check`.
    let broken = std::fs::read_to_string(&settings)
        .unwrap()
        .replace("poll_every", "pol_every");
    std::fs::write(&settings, broken).unwrap();
    let (reload, check) = (place.run(&["reload"]), place.run(&["check", config[0], config[1]]));
    assert_eq!((reload.code(), check.code()), (Some(78), Some(78)), "{reload:?}");
    assert_eq!(reload.err, check.err);
    assert!(
        reload
            .err
            .contains("agent.toml:6: pipeline[0].input.pol_every: unknown key"),
        "{reload:?}"
    );
    assert!(
        status().contains("reload    failed at 20") && status().contains("pol_every"),
        "{}",
        status()
    );
    goes_on(&place);

    // Good settings that cannot be had: 1.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let files = |outputs: &[String], rest: &str| drop(configure(&place, outputs, rest));
    for (outputs, rest, said) in [
        (
            vec![logr("a"), logr("agent.toml/x")],
            http.to_owned(),
            "output `logr#2`: could not open",
        ),
        (
            vec![logr("b"), logr("agent.toml/{date}")],
            http.to_owned(),
            "output `logr#2`: could not write in",
        ),
        (
            vec![logr("b")],
            format!("[http]\naddress = \"127.0.0.1:{port}\"\n"),
            "could not listen on http address",
        ),
        (
            vec![logr("b")],
            format!("{http}[agent]\nid = \"other\"\n[limits]\nnice = 3\n"),
            "needs restart: agent.id, limits.nice",
        ),
    ] {
        files(&outputs, &rest);
        let reload = place.run(&["reload"]);
        assert_eq!(reload.code(), Some(1), "{reload:?}");
        assert!(reload.err.contains(said), "{reload:?}");
        assert!(status().contains(said), "{}", status());
        goes_on(&place);
        assert!(numbers(&place, "b").is_empty());
    }
    files(&[logr("a")], http);
    let reload = place.run(&["reload"]);
    assert_eq!((reload.code(), &*reload.out), (Some(0), "nothing changed\n"));
    assert!(!status().contains("failed at"), "{}", status());
    goes_on(&place);
    settled(&place);
    assert_eq!(running.stop(), Some(0));
    assert_eq!(place.run(&["reload"]).code(), Some(3));
}

#[test]
fn outputs_filters_pipelines_and_limits_change_under_load() {
    let place = Place::default();
    let running = place.start(&configure(&place, &[logr("a")], ""), Stdio::null());
    let writer = Writer::start(&place);
    let goes_on = |name: &str| {
        let before = len(&place.path(name));
        until("it goes on", || len(&place.path(name)) > before + 1000);
    };
    goes_on("a");
    configure(&place, &[logr("a"), logr("b")], "");
    assert_eq!(keys(&reloaded(&place), "added"), ["pipeline.t.outputs[1]"]);
    goes_on("b");
    // One gone: what goes on is known by what it is, whatever its place.
    configure(&place, &[logr("b")], "");
    assert_eq!(keys(&reloaded(&place), "removed"), ["pipeline.t.outputs[0]"]);
    let a = numbers(&place, "a");
    goes_on("b");
    // Moved; with another way to wait, other limits, another level.
    let dropping = logr("c").replace(" }", ", when_full = \"drop_oldest\", retry = { first = \"1s\" } }");
    configure(
        &place,
        &[dropping],
        "[limits]\nmemory = \"32MiB\"\nmax_write_channel_size = 2000\nmax_read_channel_size = 3000\n[log]\nlevel = \"debug\"\n",
    );
    let mut changed = keys(&reloaded(&place), "changed");
    changed.sort();
    let of = "pipeline.t.outputs[0]";
    let wanted = [
        "limits.max_read_channel_size",
        "limits.max_write_channel_size",
        "limits.memory",
        "log.level",
        &format!("{of}.degrade"),
        &format!("{of}.path"),
        &format!("{of}.retry.first"),
        &format!("{of}.when_full"),
    ];
    assert_eq!(changed, wanted);
    goes_on("c");
    // A pipeline more, over other files; and no filter.
    let text = std::fs::read_to_string(place.path("agent.toml")).unwrap();
    let second = text[text.find("[[pipeline]]").unwrap()..]
        .replace("\"t\"", "\"u\"")
        .replace("/in/", "/in2/")
        .replace("/c\"", "/u\"");
    let text = text.replace("filters = [{ plugin = \"valid\" }]", "filters = []") + &second;
    place.write("in2/a.log", "1\n2\n\n3\n");
    place.write("agent.toml", &text);
    let answer = reloaded(&place);
    assert_eq!(
        (keys(&answer, "added"), keys(&answer, "changed")),
        (vec!["pipeline.u".to_owned()], vec!["pipeline.t.filters".to_owned()])
    );
    until("the second has read", || place.read("u") == b"1\n2\n3\n");
    goes_on("c");
    // And the first one less.
    let n = writer.stop();
    until("all is read", || {
        place.metric("events_in_total", "pipeline=\"t\"") == n as i64
    });
    settled(&place);
    place.write(
        "agent.toml",
        text.replace("name = \"t\"", "name = \"v\"")
            .replace("/in/", "/in3/")
            .replace("/c\"", "/v\""),
    );
    let answer = reloaded(&place);
    assert_eq!(
        (keys(&answer, "added"), keys(&answer, "removed")),
        (vec!["pipeline.v".to_owned()], vec!["pipeline.t".to_owned()])
    );
    let (_, metrics) = place.get("/metrics");
    assert!(
        metrics.contains("pipeline=\"u\"") && !metrics.contains("pipeline=\"t\"") && !metrics.contains("/t\""),
        "{metrics}"
    );
    place.conserved();

    let (b, c) = (numbers(&place, "b"), numbers(&place, "c"));
    assert!(
        a.iter().copied().eq(0..a.len() as u64),
        "the first: all until it was taken away"
    );
    assert!(
        !b.is_empty() && b[0] <= a.len() as u64,
        "the second: from when it joined"
    );
    let later = b.iter().chain(&c).copied();
    assert!(
        later.eq(b[0]..n),
        "and on in another file; {} and {} of {n}",
        b.len(),
        c.len()
    );
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn another_input_starts_at_the_checkpoint_of_its_pipeline() {
    let place = Place::default();
    let settings = configure(&place, &[logr("a")], "");
    let running = place.start(&settings, Stdio::null());
    place.write("in/a.log", "1\n2\n");
    place.write("in2/b.log", "3\n");
    until("the first is read", || place.read("a") == b"1\n2\n");
    let text = std::fs::read_to_string(&settings).unwrap();
    place.write("agent.toml", text.replace("/in/", "/in2/"));
    assert_eq!(keys(&reloaded(&place), "changed"), ["pipeline.t.input.paths"]);
    until("the second is read", || place.read("a") == b"1\n2\n3\n");
    let (_, files) = place.get("/api/v1/files");
    assert!(files.contains("b.log") && !files.contains("a.log"), "{files}");
    append(&place, "in/a.log", "4\n");
    place.write("agent.toml", &text);
    assert_eq!(keys(&reloaded(&place), "changed"), ["pipeline.t.input.paths"]);
    until("the first goes on where it was", || place.read("a") == b"1\n2\n3\n4\n");
    settled(&place);
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn hang_up_reloads_and_says_so_in_the_log() {
    let place = Place::default();
    let settings = configure(&place, &[logr("a")], "");
    let running = place.start(&settings, Stdio::null());
    let log = || String::from_utf8(place.read("log")).unwrap();
    place.write("agent.toml", "[agent\n");
    signal(&running.0, Signal::SIGHUP);
    until("it is refused", || log().contains("not reloaded, going on as before"));
    assert!(log().contains("agent.toml:1: syntax"), "{}", log());
    configure(&place, &[logr("b")], "");
    signal(&running.0, Signal::SIGHUP);
    until("it is made", || log().contains("\"msg\":\"reloaded\""));
    place.write("in/a.log", "1\n");
    until("it goes there", || place.read("b") == b"1\n");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn http_moves_to_another_address() {
    let place = Place::default();
    let settings = configure(&place, &[logr("a")], "[http]\naddress = \"127.0.0.1:0\"\n");
    let running = place.start(&settings, Stdio::null());
    let address = || {
        let (_, agent) = place.get("/api/v1/agent");
        serde_json::from_str::<serde_json::Value>(&agent).unwrap()["http"].clone()
    };
    let first = address().as_str().unwrap().to_owned();
    let ping = |address: &str| std::net::TcpStream::connect(address).is_ok();
    assert!(ping(&first));
    // Another spelling of "any port": another address.
    configure(&place, &[logr("a")], "[http]\naddress = \"127.0.0.2:0\"\n");
    assert_eq!(keys(&reloaded(&place), "changed"), ["http.address"]);
    let second = address().as_str().unwrap().to_owned();
    assert!(second.starts_with("127.0.0.2:") && ping(&second), "{second}");
    until("the first is closed", || !ping(&first));
    configure(&place, &[logr("a")], "[http]\naddress = \"off\"\n");
    reloaded(&place);
    assert!(address().is_null());
    until("the second is closed", || !ping(&second));
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn f70_a_thousand_reloads_under_load() {
    let place = Place::default();
    let outputs = |i: u32| [logr("a"), logr(&format!("b{}", i % 2))];
    let running = place.start(&configure(&place, &outputs(0), ""), Stdio::null());
    let writer = Writer::start(&place);
    let pid = running.0.id();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let memory = || {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let tasks = || {
        let (_, actors) = place.get("/api/v1/actors");
        actors.matches("\"name\"").count()
    };
    let mut before = (0, 0, 0, 0);
    for i in 1..=1000 {
        configure(&place, &outputs(i), "");
        assert_eq!(keys(&reloaded(&place), "changed"), ["pipeline.t.outputs[1].path"]);
        if i == 100 {
            before = (count("fd"), count("task"), tasks(), memory());
        }
    }
    let after = (count("fd"), count("task"), tasks(), memory());
    let n = writer.stop();
    until("all is read", || {
        place.metric("events_in_total", "pipeline=\"t\"") == n as i64
    });
    settled(&place);
    assert_eq!(before.2, after.2, "actors");
    assert!(after.0 <= before.0 + 4, "descriptors: {} → {}", before.0, after.0);
    assert!(after.1 <= before.1 + 4, "threads: {} → {}", before.1, after.1);
    assert!(after.3 < before.3 + (16 << 20), "memory: {} → {}", before.3, after.3);
    assert_eq!(running.stop(), Some(0));
    assert!(numbers(&place, "a").into_iter().eq(0..n), "the one that stayed");
    let (even, odd) = (numbers(&place, "b0"), numbers(&place, "b1"));
    assert!(even.is_sorted() && odd.is_sorted() && !odd.is_empty());
    let mut both = [even, odd].concat();
    both.sort_unstable();
    assert!(
        both.into_iter().eq(0..n),
        "the one that changed: nothing missing, nothing doubled"
    );
}

#[test]
fn f71_a_reload_beside_an_output_that_takes_nothing_ends_in_time() {
    let place = Place::default();
    let stdout = "{ plugin = \"stdout\" }".to_owned();
    let settings = configure(&place, &[stdout.clone(), logr("a")], "");
    // A pipe that nobody reads.
    let mut running = place.start(&settings, Stdio::piped());
    let n = 1_500_000u64;
    place.write("in/a.log", (0..n).map(|n| format!("{n}\n")).collect::<String>());
    place.write("in2/b.log", "x\n");
    until("the pipe is full", || place.metric("events_waiting", "stdout") > 0);
    // The input waits for what it has read to be settled, and the answer does not wait for that.
    let text = std::fs::read_to_string(&settings).unwrap();
    place.write("agent.toml", text.replace("/in/*.log*", "/in[2]/*.log*"));
    let answer = reloaded(&place);
    assert_eq!(keys(&answer, "changed"), ["pipeline.t.input.paths"]);
    assert!(
        answer["pending"][0]
            .as_str()
            .unwrap()
            .starts_with("collector/t changes when"),
        "{answer}"
    );
    // Without the one that takes nothing all goes on.
    let text = std::fs::read_to_string(&settings).unwrap();
    place.write("agent.toml", text.replace("{ plugin = \"stdout\" }, ", ""));
    let answer = reloaded(&place);
    assert_eq!(keys(&answer, "removed"), ["pipeline.t.outputs[0]"]);
    assert!(
        answer["pending"][0]
            .as_str()
            .unwrap()
            .starts_with("sink/t/stdout was removed"),
        "{answer}"
    );
    until("the other input is there", || place.read("a").ends_with(b"x\n"));
    settled(&place);
    let a = String::from_utf8(place.read("a")).unwrap();
    let read = a.lines().count() as u64 - 1;
    assert!(read < n, "what was not read yet is left to the next one that wants it");
    assert!(
        a.lines().take(read as usize).eq((0..read).map(|n| n.to_string())),
        "all that was read, once"
    );
    let mut said = running.0.stdout.take().unwrap();
    let (status, _) = place.get("/health");
    assert_eq!(status, 200);
    assert_eq!(running.stop(), Some(0));
    let mut out = String::new();
    std::io::Read::read_to_string(&mut said, &mut out).unwrap();
    assert!(
        out.lines().eq((0..out.lines().count()).map(|n| n.to_string())),
        "whole lines, in order"
    );
}

#[test]
fn a_stop_wins_over_a_reload_that_waits() {
    let place = Place::default();
    let stdout = "{ plugin = \"stdout\" }".to_owned();
    let settings = configure(&place, &[stdout, logr("a")], "[agent]\ndrain = \"1s\"\n");
    let running = place.start(&settings, Stdio::piped());
    place.write("in/a.log", "0123456789\n".repeat(200_000));
    until("the pipe is full", || place.metric("events_waiting", "stdout") > 0);
    configure(&place, &[logr("a")], "[agent]\ndrain = \"1s\"\n");
    signal(&running.0, Signal::SIGHUP);
    let log = || String::from_utf8(place.read("log")).unwrap();
    until("it reloads", || log().contains("\"reloading\""));
    assert!(running.stop().is_some());
    assert!(log().contains("\"msg\":\"stopped\""), "{}", log());
}
