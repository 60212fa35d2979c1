//! kill -9 at random moments, while the file is written and rotated: nothing is missing, and what is doubled is bounded. 50 times
//! here; `make soak` sets CRASH_KILLS=1000.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    fs::{File, OpenOptions, rename},
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use kit::{agent::*, judge::*};
use nix::sys::signal::Signal;

const PAD: usize = 180;
const LINE: u64 = PAD as u64 + 20;
/// What the input may read in a second: so the bound on what is doubled is known.
const RATE: u64 = 4_000_000;
/// Bytes in the file at which the writer renames it; it keeps all it has written.
const ROTATE_AT: u64 = 1_000_000;

/// Writes numbered lines at somewhat less than RATE, with an unfinished line now and then, and rotates. How many lines each file has.
fn writer(dir: PathBuf, stop: Arc<AtomicBool>) -> Vec<u64> {
    let path = dir.join("app.log");
    let open = || -> File { OpenOptions::new().append(true).create(true).open(&path).unwrap() };
    let (mut file, mut written, mut files) = (open(), 0, vec![0]);
    while !stop.load(SeqCst) {
        let (number, seq) = (files.len() - 1, files[files.len() - 1]);
        let text = lines(&format!("f{number}"), seq..seq + 50, PAD);
        let middle = text.len() / 2; // in the middle of a line
        file.write_all(&text.as_bytes()[..middle]).unwrap();
        file.write_all(&text.as_bytes()[middle..]).unwrap();
        files[number] += 50;
        written += text.len() as u64;
        if written > ROTATE_AT {
            rename(&path, dir.join(format!("app.log.{number}"))).unwrap();
            (file, written) = (open(), 0);
            files.push(0);
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    files
}

#[test]
fn killed_at_random_moments_nothing_is_missing() {
    let kills = std::env::var("CRASH_KILLS").map_or(50, |n| n.parse::<u64>().unwrap());
    let place = Place::default();
    std::fs::create_dir(place.path("in")).unwrap();
    let config = place.write(
        "agent.toml",
        format!(
            r#"
[[pipeline]]
name = "t"
input = {{ plugin = "file:v1", paths = ["{0}/in/app.log*"], max_rate = "{RATE}", poll_every = "20ms" }}
filters = [{{ plugin = "valid" }}]
outputs = [{{ plugin = "logr", path = "{0}/out/a.log", max_size = "700KiB", keep = 1000000 }}]
"#,
            place.path("").display().to_string().trim_end_matches('/')
        ),
    );
    let args = ["start", "--foreground", "-config", config.to_str().unwrap()];
    let stop = Arc::new(AtomicBool::new(false));
    let (dir, told) = (place.path("in"), stop.clone());
    let writing = std::thread::spawn(move || writer(dir, told));

    let mut random = 0x2545_F491_4F6C_DD1Du64;
    for _ in 0..kills {
        let mut agent = place
            .agent(&args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(20 + random % 230));
        assert_eq!(agent.try_wait().unwrap(), None, "it ended before it was killed");
        signal(&agent, Signal::SIGKILL);
        agent.wait().unwrap();
    }
    stop.store(true, SeqCst);
    let files = writing.join().unwrap();
    let written = files.iter().sum::<u64>();
    let last = place.run(&["--once", "-config", config.to_str().unwrap()]);
    assert_eq!(last.code(), Some(0), "{}", last.err);

    let names = (0..files.len()).map(|n| format!("f{n}")).collect::<Vec<_>>();
    let expected = names.iter().map(String::as_str).zip(files).collect::<Vec<_>>();
    let verdict = judge(&rotated(&place.path("out"), "a.log"), &expected);
    // In flight: a tenth of a second of the rate is the most that one read takes, and two may be under way; and 50 ms of checkpoints.
    let window = 2 * RATE / 10 + RATE / 20;
    let most = kills * window / LINE;
    println!(
        "{kills} kills, {written} lines, {verdict:?}, doubled a kill {:.0}",
        verdict.doubled as f64 / kills as f64
    );
    assert_eq!((verdict.missing, verdict.torn), (0, 0), "{verdict:?}");
    assert!(verdict.doubled <= most, "{} doubled, at most {most}", verdict.doubled);
    assert_eq!(verdict.reordered, 0, "within each file, first arrivals are in order");
    assert_eq!(verdict.lines, written + verdict.doubled);
}
