//! The outputs and the dead letter on good and bad days: exact contents after each.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod outputs_kit;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use luffly_agent::plugins::outputs::CATALOG;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigHandler, Signal, signal},
};
use outputs_kit::*;
use serde_json::json;

#[test]
fn events_are_written_as_they_came_and_empty_batches_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/app.log");
    let mut out = logr(json!({ "path": path }));
    let filtered = batch_of(3, events(["keep", "drop", "keep2"]).retain(|e| e != b"drop"));
    let batches = [
        batch(0, &[]),
        batch(1, &["one", "two"]),
        batch(2, &[]),
        filtered,
        batch(4, &[]),
    ];
    assert_eq!(ok(out.write(&batches)), 5);
    assert_eq!(ok(out.write(&[])), 0);
    assert_eq!(ok(out.write(&batches[..1])), 1);
    out.sync().unwrap();
    out.close().unwrap();
    assert_eq!(text(&path), "one\ntwo\nkeep\nkeep2\n");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
}
#[test]
fn more_batches_than_one_writev_takes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let batches = numbered(0, 5000, "x");
    assert_eq!(ok(logr(json!({ "path": path })).write(&batches)), 5000);
    assert_eq!(text(&path), lines(&batches));
}
#[test]
fn json_says_where_an_event_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    write_all(
        &mut *logr(json!({ "path": path, "encode": "json" })),
        &[batch(0, &["a", "\"b\""])],
    );
    let head = r#"{"ts":"2026-11-23T10:15:00.250Z","host":"h1","group":"net01","path":"/var/log/app.log","offset":"#;
    assert_eq!(
        text(&path),
        format!("{head}0,\"message\":\"a\"}}\n{head}2,\"message\":\"\\\"b\\\"\"}}\n")
    );
}
#[test]
fn null_takes_everything() {
    assert_eq!(
        ok(build("null", json!({}), context("p", &clock())).write(&numbered(0, 7, "x"))),
        7
    );
}
#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let check = |name: &str, options: serde_json::Value| {
        let plugin = CATALOG.iter().find(|p| p.name == name).unwrap();
        (plugin.check)(&luffly_agent::plugins::Table(options.as_object().unwrap().clone()))
    };
    for (options, key) in [
        (json!({}), ""),
        (json!({ "path": "x.log" }), "path"),
        (json!({ "path": "/x/{nope}" }), "path"),
        (json!({ "path": "/x", "keep": 0 }), "keep"),
        (json!({ "path": "/x", "max_size": "0B" }), "max_size"),
        (json!({ "path": "/x", "max_size": "big" }), "max_size"),
        (json!({ "path": "/x", "encode": "xml" }), "encode"),
        (json!({ "path": "/x", "maxsize": "1MiB" }), "maxsize"),
    ] {
        assert_eq!(check("logr", options.clone()).unwrap_err().key, key, "{options}");
    }
    assert_eq!(check("null", json!({ "path": "/x" })).unwrap_err().key, "path");
    assert_eq!(check("stdout", json!({ "path": "/x" })).unwrap_err().key, "path");
}

#[test]
fn a_torn_last_line_is_cut_at_the_start() {
    for (before, kept) in [
        ("a\nb\ntorn", "a\nb\n"),
        ("torn", ""),
        ("", ""),
        ("a\n", "a\n"),
        ("a\n\n", "a\n\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        fs::write(&path, before).unwrap();
        write_all(&mut *logr(json!({ "path": path })), &[batch(0, &["next"])]);
        assert_eq!(text(&path), format!("{kept}next\n"));
    }
    // Longer than one look backwards.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    fs::write(&path, format!("a\n{}", "t".repeat(200_000))).unwrap();
    write_all(&mut *logr(json!({ "path": path })), &[batch(0, &["next"])]);
    assert_eq!(text(&path), "a\nnext\n");
}

#[test]
fn rotates_before_the_file_would_grow_past_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let mut out = logr(json!({ "path": path, "max_size": "64B", "keep": 100 }));
    // 10 bytes each, so six fit.
    let batches = numbered(10, 30, "345678").into_iter().collect::<Vec<_>>();
    write_all(&mut *out, &batches);
    let files = history(&path);
    assert_eq!(
        files.iter().map(|f| text(f).len()).collect::<Vec<_>>(),
        [60, 60, 60, 60, 60]
    );
    // A batch that is larger than a file may be goes alone, and whole.
    write_all(&mut *out, &[batch(50, &[&"l".repeat(99)]), batch(51, &["s"])]);
    let sizes = history(&path).iter().map(|f| text(f).len()).collect::<Vec<_>>();
    assert_eq!(sizes, [60, 60, 60, 60, 60, 100, 2]);
    assert_eq!(whole_text(&path), format!("{}{}\ns\n", lines(&batches), "l".repeat(99)));
    out.sync().unwrap();
}
#[test]
fn rotations_in_one_second_with_compression_and_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let options = json!({ "path": path, "max_size": "100B", "keep": 3, "compress": true });
    let mut out = logr(options);
    let batches = numbered(0, 40, &"x".repeat(60));
    for (i, one) in batches.iter().enumerate() {
        write_all(&mut *out, std::slice::from_ref(one));
        let whole = history(&path).len() - 1;
        assert!(whole <= 3, "{whole} after {i}");
    }
    // The compressor is a thread of its own: nothing but waiting tells when it is done.
    let deadline = Instant::now() + Duration::from_secs(30);
    let done = |names: &[String]| names.len() == 4 && names[1..].iter().all(|n| n.ends_with("Z.gz"));
    while !done(&names(dir.path())) {
        assert!(Instant::now() < deadline, "{:?}", names(dir.path()));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(whole_text(&path), lines(&batches[36..]));
}
#[test]
fn a_lower_bound_and_leftovers_are_tidied_at_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    for day in 1..=5 {
        fs::write(dir.path().join(format!("app.log.2026110{day}T000000.000Z")), "x\n").unwrap();
    }
    fs::write(dir.path().join("app.log.20261105T000000.000Z.gz.tmp"), "half").unwrap();
    write_all(&mut *logr(json!({ "path": path, "keep": 2 })), &[batch(0, &["a"])]);
    let expected = [
        "app.log",
        "app.log.20261104T000000.000Z",
        "app.log.20261105T000000.000Z",
    ];
    let deadline = Instant::now() + Duration::from_secs(30);
    while names(dir.path()) != expected {
        assert!(Instant::now() < deadline, "{:?}", names(dir.path()));
        std::thread::sleep(Duration::from_millis(5));
    }
}
#[test]
fn rotates_at_midnight() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let clock = clock();
    let mut out = build("logr", json!({ "path": path, "daily": true }), context("p", &clock));
    write_all(&mut *out, &[batch(0, &["monday"])]);
    write_all(&mut *out, &[batch(1, &["monday too"])]);
    clock.advance(Duration::from_secs(24 * 3600));
    write_all(&mut *out, &[batch(2, &["tuesday"])]);
    write_all(&mut *out, &[batch(3, &["tuesday too"])]);
    let texts = history(&path).iter().map(text).collect::<Vec<_>>();
    assert_eq!(texts, ["monday\nmonday too\n", "tuesday\ntuesday too\n"]);
    assert_eq!(names(dir.path())[1], "app.log.20261124T101500.250Z");
}
#[test]
fn a_rotation_that_fails_lets_the_file_grow_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let clock = clock();
    let options = json!({ "path": path, "max_size": "8B", "keep": 1 });
    let mut out = build("logr", options, context("p", &clock));
    // A directory under the name of the oldest file cannot be removed, not by root either.
    let in_the_way = dir.path().join("app.log.20261101T000000.000Z");
    fs::create_dir(&in_the_way).unwrap();
    write_all(&mut *out, &numbered(0, 5, "x"));
    assert_eq!(text(&path), "0 x\n1 x\n2 x\n3 x\n4 x\n");
    fs::remove_dir(&in_the_way).unwrap();
    clock.advance(Duration::from_secs(10));
    write_all(&mut *out, &numbered(5, 1, "x"));
    assert_eq!(text(&path), "5 x\n");
    assert_eq!(history(&path).len(), 2);
}

#[test]
fn a_file_renamed_under_it_is_left_within_a_second_or_at_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("app.log"), dir.path().join("moved"));
    let clock = clock();
    let mut out = build("logr", json!({ "path": path }), context("p", &clock));
    write_all(&mut *out, &[batch(0, &["a"])]);
    fs::rename(&path, &moved).unwrap();
    write_all(&mut *out, &[batch(1, &["b"])]);
    assert_eq!((text(&moved), path.exists()), ("a\nb\n".into(), false));
    clock.advance(Duration::from_secs(1));
    write_all(&mut *out, &[batch(2, &["c"])]);
    assert_eq!((text(&moved), text(&path)), ("a\nb\n".into(), "c\n".into()));
    fs::rename(&path, dir.path().join("moved2")).unwrap();
    out.reopen();
    write_all(&mut *out, &[batch(3, &["d"])]);
    assert_eq!(
        (text(dir.path().join("moved2")), text(&path)),
        ("c\n".into(), "d\n".into())
    );
    // Nobody moved it: then it is gone on with.
    out.reopen();
    write_all(&mut *out, &[batch(4, &["e"])]);
    assert_eq!(text(&path), "d\ne\n");
    out.sync().unwrap();
}
#[test]
fn a_file_put_in_its_place_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let clock = clock();
    let mut out = build("logr", json!({ "path": path }), context("p", &clock));
    write_all(&mut *out, &[batch(0, &["a"])]);
    fs::write(dir.path().join("other"), "theirs\n").unwrap();
    fs::rename(dir.path().join("other"), &path).unwrap();
    clock.advance(Duration::from_secs(1));
    write_all(&mut *out, &[batch(1, &["b"])]);
    assert_eq!(text(&path), "theirs\nb\n");
}
#[test]
fn a_directory_removed_is_made_again_and_one_that_cannot_be_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, path) = (dir.path().join("logs"), dir.path().join("logs/app.log"));
    let clock = clock();
    let mut out = build("logr", json!({ "path": path }), context("p", &clock));
    write_all(&mut *out, &[batch(0, &["a"])]);
    fs::remove_dir_all(&parent).unwrap();
    clock.advance(Duration::from_secs(1));
    write_all(&mut *out, &[batch(1, &["b"])]);
    assert_eq!(text(&path), "b\n");
    fs::remove_dir_all(&parent).unwrap();
    fs::write(&parent, "").unwrap();
    clock.advance(Duration::from_secs(1));
    let (done, why) = retry(out.write(&[batch(2, &[]), batch(3, &["c"])]));
    assert_eq!(
        (done, why),
        (1, format!("could not open {}: not a directory", path.display()))
    );
    fs::remove_file(&parent).unwrap();
    write_all(&mut *out, &[batch(3, &["c"])]);
    assert_eq!(text(&path), "c\n");
    out.sync().unwrap();
}
#[test]
fn what_is_no_file_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [fifo.as_path(), Path::new("/dev/null"), dir.path()] {
        let (done, why) = retry(logr(json!({ "path": path })).write(&[batch(0, &["a"])]));
        let wrong = if path == dir.path() {
            "is a directory"
        } else {
            "not a regular file"
        };
        assert_eq!((done, why), (0, format!("could not open {}: {wrong}", path.display())));
    }
}
#[test]
fn others_may_truncate_it_and_append_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let clock = clock();
    let mut out = build("logr", json!({ "path": path, "max_size": "20B" }), context("p", &clock));
    write_all(&mut *out, &[batch(0, &["0123456789"])]);
    File::create(&path).unwrap(); // `> app.log`
    write_all(&mut *out, &[batch(1, &["a"])]);
    assert_eq!(text(&path), "a\n");
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"theirs\n")
        .unwrap();
    clock.advance(Duration::from_secs(1));
    write_all(&mut *out, &[batch(2, &["b"])]);
    // Had it believed in its own count, it would have rotated.
    write_all(&mut *out, &[batch(3, &["cdefgh"])]);
    assert_eq!(text(&path), "a\ntheirs\nb\ncdefgh\n");
}

#[test]
fn a_second_owner_is_refused_with_the_firsts_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let mut first = build("logr", json!({ "path": path }), context("nginx", &clock()));
    write_all(&mut *first, &[batch(0, &["first"])]);
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let resolved = fs::canonicalize(&path).unwrap();
    for same in [
        path.clone(),
        dir.path().join("link/app.log"),
        dir.path().join("./link/./app.log"),
    ] {
        let mut second = build("logr", json!({ "path": same }), context("other", &clock()));
        let (done, why) = retry(second.write(&[batch(0, &["second"])]));
        let expected = format!(
            "{} is being written by pipeline nginx, output logr, accepted: one output a file",
            resolved.display()
        );
        assert_eq!((done, why), (0, expected));
    }
    // Another name of the same file: told by its lock, as for another process.
    fs::hard_link(&path, dir.path().join("hard")).unwrap();
    let mut second = logr(json!({ "path": dir.path().join("hard") }));
    let (_, why) = retry(second.write(&[batch(0, &["second"])]));
    assert!(why.ends_with("hard is being written by another process"), "{why}");
    drop(first);
    write_all(&mut *second, &[batch(0, &["second"])]);
    assert_eq!(text(&path), "first\nsecond\n");
}

#[test]
fn names_from_a_source_stay_inside_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let mut out = logr(json!({ "path": format!("{}/{{path}}.log", root.display()) }));
    let evil = from("../../etc/passwd", batch(0, &["evil"]));
    let batches = [evil, from("/var/log/a", batch(1, &["a"])), batch(2, &["b"])];
    write_all(&mut *out, &batches);
    assert_eq!(names(dir.path()), ["root"]);
    assert_eq!(
        names(&root),
        ["_._.._etc_passwd.log", "var_log_a.log", "var_log_app.log.log"]
    );
}
#[test]
fn many_files_with_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = logr(json!({ "path": format!("{}/{{path}}", dir.path().display()) }));
    let inside = |target: &Path| target.starts_with(dir.path());
    let open = || {
        let all = fs::read_dir("/proc/self/fd").unwrap();
        all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|to| inside(&to)))
            .count()
    };
    for round in 0..3 {
        for source in 0..200 {
            write_all(
                &mut *out,
                &[from(format!("/s{source}"), batch(0, &[&format!("{round} {source}")]))],
            );
        }
        assert!(open() <= 64 + 256, "{}", open());
        out.sync().unwrap();
        assert_eq!(open(), 64);
    }
    for source in 0..200 {
        let expected = (0..3).map(|round| format!("{round} {source}\n")).collect::<String>();
        assert_eq!(text(dir.path().join(format!("s{source}"))), expected);
    }
}

/// What is common to a full disk of either kind: `room` bytes fit, `relief` makes more.
fn on_a_full_disk(directory: &Path, room: usize, says: &str, relief: impl FnOnce()) {
    let path = directory.join("app.log");
    let mut out = logr(json!({ "path": path }));
    let batches = numbered(100, 10, &"f".repeat(room / 5 - 5)); // each a fifth of the room
    let (done, why) = retry(out.write(&batches));
    assert_eq!((done, why), (5, format!("could not write {}: {says}", path.display())));
    assert_eq!(
        text(&path),
        lines(&batches[..5]),
        "no torn line stays, even before the next try"
    );
    let large = batch(200, &[&"l".repeat(room / 2)]);
    assert_eq!(retry(out.write(std::slice::from_ref(&large))).0, 0);
    // The front was given up (dead letter): the next one is another.
    relief();
    write_all(&mut *out, &batches[5..]);
    write_all(&mut *out, &[large]);
    out.sync().unwrap();
    assert_eq!(text(&path), format!("{}{}\n", lines(&batches), "l".repeat(room / 2)));
}
#[test]
fn a_disk_that_is_full_is_waited_for_at_a_line_border() {
    if let Some(dir) = child_dir() {
        // A limit on the size of files fails just like a full disk: short, then not at all. It belongs to the whole process.
        // SAFETY: no handler of ours runs.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 50_100, hard).unwrap();
        let relief = || setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        return on_a_full_disk(&dir, 50_000, "file too large", relief);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = child("a_disk_that_is_full_is_waited_for_at_a_line_border", dir.path());
    assert!(command.status().unwrap().success());
    // And a real one, where mounting is allowed.
    let disk = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(disk.path())
        .stderr(Stdio::null())
        .status();
    if mount.is_ok_and(|status| status.success()) {
        // 15 pages for the file are left.
        fs::write(disk.path().join("other"), vec![b'o'; 4096]).unwrap();
        let result = std::panic::catch_unwind(|| {
            on_a_full_disk(disk.path(), 60_000, "no space left on device", || {
                let remount = Command::new("mount")
                    .args(["-o", "remount,size=1m"])
                    .arg(disk.path())
                    .status();
                assert!(remount.unwrap().success());
            });
        });
        assert!(Command::new("umount").arg(disk.path()).status().unwrap().success());
        result.unwrap();
    } else {
        eprintln!("mounting is not allowed here: only the limit was tried");
    }
}

/// Writes from `OUTPUTS_FROM` on for ever, and says after each call how many batches are delivered.
fn write_until_killed(dir: &Path) {
    let mut out =
        logr(json!({ "path": dir.join("app.log"), "max_size": "20KiB", "keep": 1_000_000, "compress": true }));
    let mut next = std::env::var("OUTPUTS_FROM").unwrap().parse::<u64>().unwrap();
    let mut stdout = std::io::stdout();
    loop {
        let batches = numbered(next, 7, &"k".repeat(300 + next as usize % 500));
        next += ok(out.write(&batches)) as u64;
        writeln!(stdout, "delivered {next}").unwrap();
    }
}
#[test]
fn killed_at_any_moment_it_loses_nothing_and_tears_nothing() {
    if let Some(dir) = child_dir() {
        return write_until_killed(&dir);
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, mut next) = (dir.path().join("app.log"), 0);
    for round in 0..25_u64 {
        let mut child = child("killed_at_any_moment_it_loses_nothing_and_tears_nothing", dir.path())
            .env("OUTPUTS_FROM", next.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        // As many calls as fall on every part of writing, rotating and compressing in turn.
        let mut calls = 40 + round * 13 % 60;
        let mut hear = |line: std::io::Result<String>| {
            if let Some(n) = line.unwrap().strip_prefix("delivered ") {
                next = n.parse::<u64>().unwrap();
                calls = calls.saturating_sub(1);
            }
            calls
        };
        while hear(said.next().unwrap()) > 0 {}
        child.kill().unwrap();
        for line in said {
            hear(line);
        }
        child.wait().unwrap();
    }
    // One more life repairs what the last left.
    let last = logr(json!({ "path": path, "max_size": "20KiB", "keep": 1_000_000 }));
    write_all(&mut *{ last }, &numbered(next, 1, "end"));
    let text = whole_text(&path);
    assert!(text.ends_with(&format!("{next} end\n")));
    let mut expected = 0;
    for line in text.lines() {
        let (number, filling) = line.split_once(' ').unwrap_or_else(|| panic!("torn: {line}"));
        let number = number.parse::<u64>().unwrap_or_else(|_| panic!("torn: {line}"));
        // A life writes again what was under way when the one before it was killed, at most one call.
        assert!(
            number <= expected && number + 7 >= expected,
            "{number} after {expected}"
        );
        let whole = (300..800).contains(&filling.len()) && filling.bytes().all(|b| b == b'k');
        assert!(whole || number == next, "torn or merged: {line}");
        expected = number + 1;
    }
    assert_eq!(expected, next + 1);
}
