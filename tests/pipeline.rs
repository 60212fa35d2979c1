//! The whole agent on good and bad days: what arrives, what is counted, how it ends (docs/operating.md has the table).
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use kit::{agent::*, judge::*};
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn},
    },
};

const ALL_WELL: Verdict = Verdict {
    lines: 0,
    missing: 0,
    doubled: 0,
    torn: 0,
    reordered: 0,
};
const LOGR: &str = r#"{ plugin = "logr", path = "{0}/out/a.log", retry = { first = "20ms", most = "100ms" } }"#;

fn append(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
/// `once` over the same settings, which must end well: what it printed.
fn once(place: &Place, settings: &Path) -> String {
    let ended = place.run(&["--once", "-config", settings.to_str().unwrap()]);
    assert_eq!(ended.code(), Some(0), "{}", ended.err);
    ended.out
}

// ---- good days
/// Root may read everything: so the agent runs as nobody.
#[test]
fn a_file_that_may_not_be_read_yet() {
    let place = Place::default();
    let (now, later) = (lines("a", 0..1_000, 50), lines("b", 0..1_000, 50));
    place.write("in/a.log", now);
    let closed = place.write("in/b.log", later);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    let settings = place.configure(LOGR, "");
    let agent = place.start_as_nobody(&settings);
    until("the open one has arrived", || {
        place.metric("events_delivered_total", "") == 1_000
    });
    until("the other is told of", || {
        let (_, files) = place.get("/api/v1/files");
        files.contains("ermission denied")
    });
    let told = || {
        String::from_utf8(place.read("log"))
            .unwrap()
            .matches("file is not read")
            .count()
    };
    assert_eq!(told(), 1, "one line a file, not one a look");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o644)).unwrap();
    until("the other has arrived", || {
        place.metric("events_delivered_total", "") == 2_000
    });
    place.conserved();
    assert_eq!((told(), agent.stop()), (1, Some(0)));
    let verdict = judge(&place.read("out/a.log"), &[("a", 1_000), ("b", 1_000)]);
    assert_eq!(
        verdict,
        Verdict {
            lines: 2_000,
            ..ALL_WELL
        }
    );
}
#[test]
fn a_million_lines_from_stdin_through_valid_to_stdout() {
    let place = Place::default();
    let (mut given, mut expected) = (String::new(), String::new());
    for seq in 0..1_000_000 {
        let line = line("a", seq, 5) + "\n";
        given += &line;
        expected += &line;
        if seq % 1000 == 0 {
            given += "\n"; // which `valid` drops
        }
    }
    given.pop(); // the last line has no end; it gets one
    let stdin = File::open(place.write("given", given)).unwrap();
    let out = File::create(place.path("out")).unwrap();
    let ended = finish(place.agent(&[]).stdin(stdin).stdout(out).spawn().unwrap());
    assert_eq!(ended.code(), Some(0), "{}", ended.err);
    assert!(place.read("out") == expected.as_bytes(), "other bytes came out");
}
#[test]
fn once_to_two_files() {
    let place = Place::default();
    let text = lines("a", 0..100_000, 100);
    place.write("in/a.log", &text);
    let settings = place.configure(
        r#"{ plugin = "logr", path = "{0}/out/a.log" }, { plugin = "logr", path = "{0}/out/b.log" }"#,
        "",
    );
    once(&place, &settings);
    once(&place, &settings); // nothing is new
    for output in ["out/a.log", "out/b.log"] {
        assert!(place.read(output) == text.as_bytes(), "{output}");
    }
}

// ---- stops
/// Writes lines all the time, in pieces that end within lines.
fn writer(path: &Path) -> (Arc<AtomicBool>, thread::JoinHandle<u64>) {
    let (stop, path) = (Arc::new(AtomicBool::new(false)), path.to_owned());
    let told = stop.clone();
    let writing = thread::spawn(move || {
        let mut seq = 0;
        while !told.load(SeqCst) {
            let text = lines("a", seq..seq + 100, 100);
            let (first, second) = text.split_at(text.len() / 2);
            append(&path, first);
            append(&path, second);
            seq += 100;
            thread::sleep(Duration::from_millis(1));
        }
        seq
    });
    (stop, writing)
}
#[test]
fn stopped_and_started_again_nothing_is_missing_and_nothing_doubled() {
    let place = Place::default();
    let settings = place.configure(LOGR, "");
    let (stop, writing) = writer(&place.path("in/a.log"));
    for _ in 0..6 {
        let before = len(&place.path("out/a.log"));
        let agent = place.start(&settings, Stdio::null());
        until("more has arrived", || len(&place.path("out/a.log")) > before + 50_000);
        assert_eq!(agent.stop(), Some(0));
    }
    stop.store(true, SeqCst);
    let lines = writing.join().unwrap();
    once(&place, &settings);
    assert_eq!(
        judge(&place.read("out/a.log"), &[("a", lines)]),
        Verdict { lines, ..ALL_WELL }
    );
}
#[test]
fn a_sink_that_hangs_is_left_at_the_deadline_and_loses_nothing() {
    let place = Place::default();
    let text = lines("a", 0..50_000, 200);
    place.write("in/a.log", &text);
    let settings = place.configure(r#"{ plugin = "stdout" }"#, "[agent]\ndrain = \"300ms\"");
    let mut agent = place.start(&settings, Stdio::piped()); // which nobody reads
    let mut out = agent.0.stdout.take().unwrap();
    until("the pipe is full and the window too", || {
        place.metric("events_waiting", "") > 5_000
    });
    let asked = Instant::now();
    assert_eq!(agent.stop(), Some(0), "all of it is still at its source");
    assert!(
        (Duration::from_millis(290)..Duration::from_secs(10)).contains(&asked.elapsed()),
        "{:?}",
        asked.elapsed()
    );
    let last = String::from_utf8(place.read("data/last-exit.json")).unwrap();
    assert!(
        last.contains("past the deadline of 0.3s: ") && last.contains("sink/t/stdout"),
        "{last}"
    );
    let mut first = vec![];
    out.read_to_end(&mut first).unwrap();
    assert!(!first.is_empty() && text.as_bytes().starts_with(&first));
    // A batch of which a part went out was not settled: it comes again, whole.
    let second = once(&place, &settings);
    assert!(text.ends_with(&second));
    assert!(first.len() + second.len() >= text.len(), "something is missing");
    assert!(first.len() + second.len() - text.len() <= first.len());
}
#[test]
fn the_reader_of_stdout_leaves() {
    let place = Place::default();
    place.write("given", lines("a", 0..500_000, 30));
    let stdin = File::open(place.path("given")).unwrap();
    let mut child = place.agent(&[]).stdin(stdin).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    assert_eq!(first, line("a", 0, 30) + "\n");
    drop(reader); // as `head -1` does
    let began = Instant::now();
    let ended = finish(child);
    assert_eq!(ended.code(), Some(1), "{}", ended.err);
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!ended.err.contains("panic"), "{}", ended.err);
}

// ---- crashes
#[test]
fn killed_while_the_sink_was_away_all_the_time() {
    let place = Place::default();
    place.write("out", "a file where the directory should be");
    let settings = place.configure(LOGR, "");
    let (stop, writing) = writer(&place.path("in/a.log"));
    for n in 1..=3 {
        let agent = place.start(&settings, Stdio::null());
        until("it has tried", || place.metric("output_retries_total", "") > 2 * n);
        agent.kill();
    }
    stop.store(true, SeqCst);
    let lines = writing.join().unwrap();
    fs::remove_file(place.path("out")).unwrap();
    once(&place, &settings);
    // Nothing was ever delivered, so nothing can be doubled either.
    assert_eq!(
        judge(&place.read("out/a.log"), &[("a", lines)]),
        Verdict { lines, ..ALL_WELL }
    );
}
#[test]
fn damaged_checkpoints_are_told_and_lose_nothing() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("zeros", |bytes| bytes.fill(0)),
        ("a bit", |bytes| bytes[20] ^= 4),
        ("empty", Vec::clear),
    ];
    for (what, damage) in damages {
        let place = Place::default();
        let settings = place.configure(LOGR, "");
        append(&place.path("in/a.log"), &lines("a", 0..1000, 50));
        once(&place, &settings);
        let (dir, mut damaged) = (place.path("data/checkpoints/t"), 0);
        for file in fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap().to_str().unwrap().starts_with("journal.") {
                let mut bytes = fs::read(&file).unwrap();
                damage(&mut bytes);
                fs::write(&file, bytes).unwrap();
                damaged += 1;
            }
        }
        assert!(damaged > 0, "{what}");
        append(&place.path("in/a.log"), &lines("a", 1000..2000, 50));
        let ended = place.run(&["--once", "-config", settings.to_str().unwrap()]);
        assert_eq!(ended.code(), Some(0), "{what}: {}", ended.err);
        assert!(ended.err.contains("checkpoints were damaged"), "{what}: {}", ended.err);
        let verdict = judge(&place.read("out/a.log"), &[("a", 2000)]);
        assert_eq!((verdict.missing, verdict.torn, verdict.reordered), (0, 0, 0), "{what}");
        assert!(verdict.doubled <= 1000, "{what}: {verdict:?}");
        // And from there on all is as before.
        assert_eq!(
            place.run(&["--once", "-config", settings.to_str().unwrap()]).code(),
            Some(0)
        );
        assert_eq!(judge(&place.read("out/a.log"), &[("a", 2000)]), verdict, "{what}");
    }
}

// ---- disks
/// How long files may become that the agent writes: a disk that is full, and has room again.
fn limit_files(agent: &Running, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure lives through the call; the process is our child.
    let done = unsafe { libc::prlimit(agent.0.id() as i32, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
#[test]
fn a_full_disk_is_waited_for_and_nothing_is_torn() {
    let place = Place::default();
    let settings = place.configure(LOGR, "");
    let agent = place.start(&settings, Stdio::null());
    limit_files(&agent, 300_010); // in the middle of a line
    append(&place.path("in/a.log"), &lines("a", 0..5_000, 100));
    until("health says so", || {
        let (status, text) = place.get("/health");
        status == 200 && text.contains("degraded") && text.contains("t/logr: ") && text.contains("file too large")
    });
    place.conserved();
    limit_files(&agent, libc::RLIM_INFINITY);
    append(&place.path("in/a.log"), &lines("a", 5_000..6_000, 100));
    until("all has arrived", || {
        place.metric("events_delivered_total", "") == 6_000
    });
    until("health is well", || place.get("/health").1.contains("\"ok\""));
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(
        judge(&place.read("out/a.log"), &[("a", 6_000)]),
        Verdict {
            lines: 6_000,
            ..ALL_WELL
        }
    );
}
#[test]
fn the_outputs_directory_is_removed() {
    let place = Place::default();
    let settings = place.configure(LOGR, "");
    let agent = place.start(&settings, Stdio::null());
    append(&place.path("in/a.log"), &lines("a", 0..1_000, 100));
    until("these have arrived", || {
        place.metric("events_delivered_total", "") == 1_000
    });
    fs::remove_dir_all(place.path("out")).unwrap(); // and what was delivered with it
    let mut seq = 1_000;
    until("the file is there again", || {
        append(&place.path("in/a.log"), &lines("a", seq..seq + 10, 100));
        seq += 10;
        thread::sleep(Duration::from_millis(20));
        len(&place.path("out/a.log")) > 0
    });
    append(&place.path("in/a.log"), &lines("a", seq..seq + 1_000, 100));
    seq += 1_000;
    until("all has arrived", || {
        place.metric("events_delivered_total", "") == seq as i64
    });
    assert_eq!(agent.stop(), Some(0));
    let text = String::from_utf8(place.read("out/a.log")).unwrap();
    let all = lines("a", 0..seq, 100);
    assert!(
        all.ends_with(&text) && text.lines().count() >= 1_000,
        "from a line's border on, all of it"
    );
}
#[test]
fn checkpoints_that_cannot_be_written_stop_nothing_and_are_told() {
    let place = Place::default();
    let settings = place.configure(r#"{ plugin = "stdout" }"#, "");
    let input = place.path("in/a.log");
    let mut agent = place.start(&settings, Stdio::piped());
    let (got, mut out) = (Arc::new(Mutex::new(vec![])), agent.0.stdout.take().unwrap());
    let keep = got.clone();
    let reading = thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut some) {
            keep.lock().unwrap().extend_from_slice(&some[..n]);
        }
    });
    let lines_out = || got.lock().unwrap().iter().filter(|byte| **byte == b'\n').count();
    append(&input, &lines("a", 0..1_000, 20));
    until("these have arrived", || lines_out() == 1_000);
    until("health is well", || place.get("/health").1.contains("\"ok\""));
    limit_files(&agent, 1);
    append(&input, &lines("a", 1_000..2_000, 20));
    until("tailing goes on", || lines_out() == 2_000);
    until("health says so", || {
        let (status, text) = place.get("/health");
        status == 503 && text.contains("could not write checkpoint")
    });
    assert!(place.metric("checkpoint_errors_total", "") > 0);
    limit_files(&agent, libc::RLIM_INFINITY);
    until("health is well again", || place.get("/health").1.contains("\"ok\""));
    append(&input, &lines("a", 2_000..3_000, 20));
    until("tailing went on", || lines_out() == 3_000);
    assert_eq!(agent.stop(), Some(0));
    reading.join().unwrap();
    assert!(*got.lock().unwrap() == lines("a", 0..3_000, 20).into_bytes());
    assert_eq!(once(&place, &settings), "", "and nothing is doubled by a restart");
}

// ---- memory, and outputs that are away
fn resident(agent: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
#[test]
fn memory_stays_bounded_while_every_output_is_away() {
    const CAP: u64 = 16 << 20;
    let place = Place::default();
    place.write("out", "a file where the directory should be");
    let settings = place.configure(
        r#"{ plugin = "logr", path = "{0}/out/a.log", retry = { first = "20ms", most = "100ms" } },
           { plugin = "logr", path = "{0}/out/b.log", retry = { first = "20ms", most = "100ms" }, when_full = "drop_oldest" }"#,
        "[limits]\nmemory = \"16MiB\"",
    );
    let mut input = String::new();
    for seq in 0..100 {
        input += &(line("a", seq, 1 << 20) + "\n");
    }
    place.write("in/a.log", &input);
    let agent = place.start(&settings, Stdio::null());
    let (mut most, began) = (0, Instant::now());
    until("it has tried for some seconds", || {
        most = most.max(resident(&agent));
        thread::sleep(Duration::from_millis(20));
        began.elapsed() > Duration::from_secs(4) && place.metric("output_retries_total", "") > 20
    });
    println!("most resident: {} MiB of {} MiB and 40", most >> 20, CAP >> 20);
    assert!(most < CAP + (40 << 20), "{} bytes", most);
    assert!(place.metric("events_in_total", "") < 30, "read on without room");
    place.conserved();
    fs::remove_file(place.path("out")).unwrap();
    until("all has arrived", || {
        place.metric("events_delivered_total", "\"logr\"") == 100 && place.metric("events_waiting", "") == 0
    });
    // What flew past meanwhile goes back to the system, by and by.
    until("memory is as before", || resident(&agent) < CAP + (24 << 20));
    place.conserved();
    assert_eq!(agent.stop(), Some(0));
    assert!(rotated(&place.path("out"), "a.log") == input.as_bytes());
}
#[test]
fn a_dead_output_that_drops_takes_nothing_from_the_other() {
    const N: u64 = 100_000;
    for policy in ["drop_newest", "drop_oldest"] {
        let place = Place::default();
        place.write("dead", "a file where the directory should be");
        let outputs = r#"{ plugin = "logr", path = "{0}/out/a.log" },
            { plugin = "logr", path = "{0}/dead/b.log", retry = { first = "20ms", most = "100ms" }, when_full = "POLICY" }"#;
        let settings = place.configure(&outputs.replace("POLICY", policy), "");
        place.write("in/a.log", lines("a", 0..N, 50));
        let agent = place.start(&settings, Stdio::null());
        until("the healthy one has all", || {
            place.metric("events_delivered_total", "\"logr\"") == N as i64
        });
        let text = lines("a", 0..N, 50);
        assert!(place.read("out/a.log") == text.as_bytes());
        until("the breaker is open", || place.metric("output_breaker", "logr#2") == 2);
        let (status, health) = place.get("/health");
        assert!(
            status == 200 && health.contains("degraded") && health.contains("t/logr#2: "),
            "{health}"
        );
        place.conserved();
        let dropped = place.metric("events_dropped_total", "logr#2");
        let waiting = place.metric("events_waiting", "logr#2");
        assert!(
            waiting > 0 && dropped + waiting == N as i64,
            "{dropped} dropped, {waiting} wait"
        );
        assert_eq!(place.metric("events_delivered_total", "logr#2"), 0);
        fs::remove_file(place.path("dead")).unwrap();
        until("it has caught up", || place.metric("events_waiting", "") == 0);
        place.conserved();
        assert_eq!(place.metric("events_delivered_total", "logr#2"), waiting);
        assert_eq!(agent.stop(), Some(0));
        let late = judge(&place.read("dead/b.log"), &[("a", N)]);
        let expected = Verdict {
            lines: waiting as u64,
            missing: dropped as u64,
            ..ALL_WELL
        };
        assert_eq!(late, expected, "{policy}");
    }
}

// ---- strangers
/// A connection on its way, that nobody waits for.
fn connecting(port: u16) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    let begun = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port));
    assert!(matches!(begun, Ok(()) | Err(Errno::EINPROGRESS)), "{begun:?}");
    socket
}
#[test]
fn strangers_on_the_http_port_take_nothing_from_the_data_path() {
    let place = Place::default();
    let settings = place.configure(LOGR, "[http]\naddress = \"127.0.0.1:0\"");
    let input = place.path("in/a.log");
    let agent = place.start(&settings, Stdio::null());
    let (_, about) = place.get("/api/v1/agent");
    let (_, after) = about.split_once("127.0.0.1:").unwrap_or_else(|| panic!("{about}"));
    let port = after.split('"').next().unwrap().parse::<u16>().unwrap();
    // Three ways to be a nuisance: half a request, no request, a body without an end. Most will not even be let in.
    let texts: [&[u8]; 3] = [
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow",
        b"",
        b"POST /api/v1/stop HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000000\r\n\r\nx",
    ];
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16), hard).unwrap();
    let mut strangers = Vec::with_capacity(10_000);
    for n in 0..50 {
        strangers.extend((0..200).map(|_| connecting(port)));
        for (stranger, text) in strangers.iter().zip(texts.iter().cycle()).skip(n * 200) {
            let _ = nix::sys::socket::send(stranger.as_raw_fd(), text, MsgFlags::MSG_NOSIGNAL); // if it is in at all
        }
        append(&input, &lines("a", n as u64 * 1_000..(n as u64 + 1) * 1_000, 50));
    }
    assert_eq!(strangers.len(), 10_000);
    until("all has arrived", || {
        place.metric("events_delivered_total", "") == 50_000
    });
    place.conserved();
    assert!(resident(&agent) < 100 << 20);
    drop(strangers);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(
        judge(&place.read("out/a.log"), &[("a", 50_000)]),
        Verdict {
            lines: 50_000,
            ..ALL_WELL
        }
    );
}

#[test]
fn a_stop_delivers_what_was_taken_from_stdin_an_unended_line_too() {
    let place = Place::default();
    let mut child = place.agent(&[]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo, not ended").unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!((first.as_str(), rest.as_str()), ("one\n", "two, not ended\n"));
    assert_eq!(finish(child).code(), Some(0));
    drop(stdin); // it was open all the time
}
