//! `file:v1` on good and bad days (`file_input_v2`: the same for `file:v2`). Numbered lines go in, a judge finds what is missing, doubled, torn, merged or out of order. Time
//! stands still unless a test moves it. The numbers in the names are those of the cases in the specification of behaviour.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit {
    #[allow(dead_code, reason = "other tests use the rest of it")]
    pub mod files;
}

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    time::Duration,
};

use kit::files::{NO_EVENTS, Rig, again, is_told, is_v2, lines, text};
use luffly_agent::model::FileState;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

// A. Discovery and start

#[test]
fn a1_a_file_that_appears_is_read_from_its_start() {
    for start in ["beginning", "end"] {
        let mut rig = Rig::new(json!({ "start": start }));
        rig.run(SECOND);
        rig.append("a.log", lines("a", 1..=100));
        rig.run(Duration::from_millis(250));
        rig.judge(&[("a", 1..=100)]);
    }
}
#[test]
fn a2_start_end_leaves_out_what_is_there() {
    let mut rig = Rig::new(json!({ "start": "end" }));
    rig.append("a.log", lines("a", 1..=50));
    rig.append("b.log", &(lines("b", 1..=5) + "b 6 half"));
    rig.run(SECOND);
    rig.append("a.log", lines("a", 51..=60));
    rig.run(SECOND);
    // What was being written counts as new, and is not torn.
    rig.append("b.log", "way\n");
    rig.run(SECOND);
    assert_eq!(rig.take_others(), ["b 6 halfway"]);
    rig.judge(&[("a", 51..=60)]);
}
#[test]
fn a2_start_end_is_about_the_first_start_only() {
    let mut rig = Rig::new(json!({ "start": "end" }));
    rig.append("a.log", lines("a", 1..=50));
    rig.run(SECOND);
    rig.stop();
    rig.append("a.log", lines("a", 51..=60));
    rig.append("new.log", lines("new", 1..=10));
    rig.run(SECOND);
    rig.judge(&[("a", 51..=60), ("new", 1..=10)]);
}
#[test]
fn a3_start_beginning_gives_every_line_once() {
    let mut rig = Rig::new(json!({}));
    for id in ["a", "b", "c"] {
        rig.append(&format!("{id}.log"), lines(id, 1..=20_000));
    }
    rig.run(SECOND);
    rig.judge(&[("a", 1..=20_000), ("b", 1..=20_000), ("c", 1..=20_000)]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn a4_permission_denied_and_granted_later() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=10));
    rig.append("b.log", lines("b", 1..=10));
    let path = rig.path("a.log");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    rig.as_nobody(|rig| rig.run(60 * SECOND));
    rig.judge(&[("b", 1..=10)]);
    let row = rig.row("a.log");
    assert_eq!(row.state, FileState::Denied);
    assert!(row.reason.contains("ermission denied"), "{}", row.reason);
    assert_eq!(rig.logged("file is not read"), 1, "one line a file, not one a try");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    rig.as_nobody(|rig| rig.run(SECOND));
    rig.judge(&[("a", 1..=10), ("b", 1..=10)]);
    assert_eq!(rig.row("a.log").state, FileState::Tailing);
}
#[test]
fn a5_excluded_files_are_never_opened() {
    let mut rig = Rig::new(json!({ "exclude": ["secret*"] }));
    rig.append("a.log", lines("a", 1..=10));
    rig.append("secret.log", lines("secret", 1..=10));
    rig.run(5 * SECOND);
    rig.judge(&[("a", 1..=10)]);
    let row = rig.row("secret.log");
    assert_eq!(
        (row.state, row.reason.as_str()),
        (FileState::Skipped, "matches exclude \"secret*\"")
    );
    let atime = fs::metadata(rig.path("secret.log")).unwrap();
    assert_eq!(atime.atime(), atime.mtime(), "reading would have moved it");
    assert_eq!(rig.open_files(), ["a.log"]);
}
#[test]
fn a6_no_minimum_size() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", "x");
    rig.append("empty.log", "");
    rig.run(5 * SECOND);
    assert!(rig.take_texts().is_empty());
    rig.append("a.log", "\n");
    rig.append("empty.log", "\n");
    rig.run(SECOND);
    let mut got = rig.take_texts();
    got.sort();
    assert_eq!(got, ["", "x"]);
}
#[test]
fn a7_the_same_first_bytes_are_no_reason_to_skip() {
    let banner = "=".repeat(5000) + "\n";
    // There at the start, and appearing later; the names of a rotation, too.
    let mut rig = Rig::new(json!({}));
    for (name, id) in [("a.log", "a"), ("b.log", "b"), ("a.log.1", "c")] {
        rig.append(name, &(banner.clone() + &lines(id, 1..=100)));
    }
    rig.run(SECOND);
    for (name, id) in [("d.log", "d"), ("a.log.2", "e"), ("a-2.log", "f")] {
        rig.append(name, &(banner.clone() + &lines(id, 1..=100)));
    }
    rig.run(SECOND);
    let texts = rig.take_texts();
    assert_eq!(texts.iter().filter(|text| **text == banner.trim_end()).count(), 6);
    for id in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(
            texts.iter().filter(|text| text.starts_with(&format!("{id} "))).count(),
            100,
            "{id}"
        );
    }
    // The same content throughout under the name of a rotation: read as well, once it is clear that nothing is truncated.
    fs::copy(rig.path("b.log"), rig.path("b.log.1")).unwrap();
    rig.run(5 * SECOND);
    assert!(rig.take_texts().is_empty());
    assert_eq!(rig.row("b.log.1").state, FileState::Skipped);
    rig.run(10 * SECOND);
    assert_eq!(rig.take_texts().len(), 101);
}
#[test]
fn a8_one_file_with_several_names_is_read_once() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=10));
    fs::hard_link(rig.path("a.log"), rig.path("hard.log")).unwrap();
    symlink(rig.path("a.log"), rig.path("link.log")).unwrap();
    symlink(rig.path("link.log"), rig.path("link2.log")).unwrap();
    rig.run(SECOND);
    rig.append("hard.log", lines("a", 11..=20));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=20)]);
    let row = rig.row("a.log");
    let mut aliases = row
        .aliases
        .iter()
        .map(|path| path.rsplit('/').next().unwrap())
        .collect::<Vec<_>>();
    aliases.sort_unstable();
    assert_eq!(aliases, ["hard.log", "link.log", "link2.log"]);
    // One name less is no loss.
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.append("hard.log", lines("a", 21..=30));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=30)]);
}
#[test]
fn a9_a_symlink_led_elsewhere() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/current.log"] }));
    rig.append("old.txt", lines("old", 1..=10));
    symlink(rig.path("old.txt"), rig.path("current.log")).unwrap();
    rig.run(SECOND);
    rig.append("old.txt", lines("old", 11..=30_000));
    rig.append("new.txt", lines("new", 1..=10));
    fs::remove_file(rig.path("current.log")).unwrap();
    symlink(rig.path("new.txt"), rig.path("current.log")).unwrap();
    rig.run(SECOND);
    let last_old = rig.got.iter().rposition(|line| line.starts_with("old ")).unwrap();
    let first_new = rig.got.iter().position(|line| line.starts_with("new ")).unwrap();
    assert!(last_old < first_new, "the old one first, to its end");
    rig.judge(&[("new", 1..=10), ("old", 1..=30_000)]);
}
#[test]
fn a10_odd_names() {
    let mut rig = Rig::new(json!({}));
    let names: [&[u8]; 3] = [b"\xff\xfe.log", b"two\nlines.log", b"star*[x]{y}.log"];
    for (i, name) in names.iter().enumerate() {
        let path = rig.dir().join(std::ffi::OsStr::from_bytes(name));
        fs::write(path, lines(&format!("f{i}"), 1..=10)).unwrap();
    }
    rig.run(SECOND);
    rig.judge(&[("f0", 1..=10), ("f1", 1..=10), ("f2", 1..=10)]);
    for shown in ["\\xff\\xfe.log", "two\\nlines.log", "star*[x]{y}.log"] {
        assert_eq!(rig.row(shown).read, rig.row(shown).size);
    }
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn a11_ten_thousand_files_of_which_ten_are_active() {
    let mut rig = Rig::new(json!({ "max_open_files": 100 }));
    for i in 0..10_000 {
        rig.append(&format!("f{i}.log"), lines(&format!("f{i}"), 1..=1));
    }
    rig.run(SECOND);
    assert_eq!(rig.take_texts().len(), 10_000);
    assert!(rig.open_files().len() <= 100);
    // On the machine's own clock, for the looks at the directory are spaced by what they cost.
    rig.use_real_clock();
    let append = |rig: &mut Rig, seq| {
        for i in 0..10 {
            rig.append(&format!("f{i}.log"), lines(&format!("f{i}"), seq..=seq));
        }
    };
    append(&mut rig, 2);
    while rig.got.len() < 10 {
        rig.run_real(SECOND / 10); // found by name: not open any more
    }
    let before = rig.cpu;
    for seq in 3..7 {
        append(&mut rig, seq);
        rig.run_real(SECOND);
        assert_eq!(rig.got.len(), 10 * (seq - 1), "all within a second");
    }
    let share = (rig.cpu - before).as_secs_f64() / 4.0;
    assert!(
        share < 0.05,
        "{share}: this build is not optimised, and the machine may be busy; the real one stays under 0.01"
    );
    eprintln!("cpu share {share:.4}");
}
#[test]
fn a12_a_directory_removed_and_made_again() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/*/x.log"] }));
    fs::create_dir(rig.path("sub")).unwrap();
    rig.append("sub/x.log", lines("a", 1..=10));
    rig.run(SECOND);
    for round in 0..3 {
        fs::remove_dir_all(rig.path("sub")).unwrap();
        rig.run(20 * SECOND);
        fs::create_dir(rig.path("sub")).unwrap();
        rig.append("sub/x.log", lines(&format!("b{round}"), 1..=10));
        rig.run(SECOND);
    }
    rig.judge(&[("a", 1..=10), ("b0", 1..=10), ("b1", 1..=10), ("b2", 1..=10)]);
}
/// Of all cases, those that run in another place, too.
const ELSEWHERE: [&str; 10] = [
    "a1_",
    "a8_",
    "a9_",
    "a10_",
    "a12_",
    "a14_",
    "c2",
    "c3",
    "d4",
    "files_that_come_back",
];
#[test]
fn a13_without_inotify_it_polls_and_names_the_limit() {
    if std::env::var_os(NO_EVENTS).is_some() {
        return the_limit_is_named(); // we are in that place
    }
    let limit = "echo 0 > /proc/sys/user/max_inotify_instances; exec \"$@\"";
    again(
        limit,
        &[(NO_EVENTS, "instances")],
        &[&["a13_without"][..], &ELSEWHERE].concat(),
    );
    let limit = "echo 0 > /proc/sys/user/max_inotify_watches; exec \"$@\"";
    again(
        limit,
        &[(NO_EVENTS, "watches")],
        &["a13_without", "a1_", "c26_", "c30_"],
    );
}
fn the_limit_is_named() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/**/*.log"] }));
    fs::create_dir(rig.path("sub")).unwrap();
    rig.append("sub/a.log", lines("a", 1..=10));
    rig.run(SECOND);
    rig.append("sub/a.log", lines("a", 11..=20));
    rig.run(Duration::from_millis(250));
    rig.judge(&[("a", 1..=20)]);
    let limit = std::env::var(NO_EVENTS).unwrap();
    match is_v2() {
        true => {
            let note = rig.note().expect("it says that it polls");
            assert!(note.contains(&format!("user.max_inotify_{limit}")), "{note}");
            assert!(note.contains(&format!("fs.inotify.max_user_{limit}")), "{note}");
            rig.run(60 * SECOND);
            assert_eq!(rig.logged("polling; reason="), 1, "said once");
        }
        false => assert_eq!(rig.note(), None),
    }
}
#[test]
fn a13_told_again_when_the_limit_is_raised() {
    // What a directory must not be read by us, its events are not ours either; its files are read by name all the same.
    let mut rig = Rig::new(json!({ "paths": ["{dir}/sub/a.log"] }));
    fs::create_dir(rig.path("sub")).unwrap();
    rig.append("sub/a.log", lines("a", 1..=10));
    fs::set_permissions(rig.path("sub"), fs::Permissions::from_mode(0o711)).unwrap();
    rig.as_nobody(|rig| rig.run(5 * SECOND));
    rig.append("sub/a.log", lines("a", 11..=20));
    rig.as_nobody(|rig| rig.run(SECOND));
    rig.judge(&[("a", 1..=20)]);
    assert_eq!(rig.note().is_some_and(|note| note.contains("cannot watch")), is_told());
    fs::set_permissions(rig.path("sub"), fs::Permissions::from_mode(0o755)).unwrap();
    rig.as_nobody(|rig| rig.run(11 * SECOND));
    assert_eq!(rig.note(), None);
    rig.append("sub/a.log", lines("a", 21..=30));
    rig.as_nobody(|rig| rig.run(SECOND));
    rig.judge(&[("a", 1..=30)]);
}
#[test]
fn a14_more_happens_than_the_kernel_keeps() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=1));
    rig.run(SECOND);
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    for i in 0..most / 2 + 10 {
        rig.append("a.log", lines("a", i + 2..=i + 2));
        fs::write(rig.path("b.log"), "").unwrap(); // truncated each time: a hint of its own
    }
    rig.append("b.log", lines("b", 1..=10));
    for i in 0..100 {
        rig.append(&format!("new{i}.log"), lines(&format!("n{i}"), 1..=10));
    }
    rig.run(SECOND);
    assert_eq!(rig.count("watch_overflows"), u64::from(is_told()));
    let news = (0..100).map(|i| format!("n{i}")).collect::<Vec<_>>();
    let mut expected = news.iter().map(|id| (id.as_str(), 1..=10)).collect::<Vec<_>>();
    expected.extend([("a", 1..=most / 2 + 11), ("b", 1..=10)]);
    rig.judge(&expected);
}
#[test]
fn a15_what_is_no_regular_file_is_skipped() {
    let mut rig = Rig::new(json!({}));
    nix::unistd::mkfifo(&rig.path("fifo.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(rig.path("dir.log")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("socket.log")).unwrap();
    symlink("/dev/zero", rig.path("device.log")).unwrap();
    rig.append("a.log", lines("a", 1..=10));
    rig.run(60 * SECOND);
    rig.judge(&[("a", 1..=10)]);
    assert_eq!(rig.logged("file is not read"), 4, "one warning each");
    for (name, kind) in [
        ("fifo.log", "fifo"),
        ("dir.log", "directory"),
        ("socket.log", "socket"),
        ("device.log", "device"),
    ] {
        assert_eq!(
            rig.row(name).reason,
            format!("is a {kind}, only regular files are read")
        );
    }
    assert_eq!(rig.open_files(), ["a.log"]);
}

// B. Lines

#[test]
fn b16_a_line_written_in_pieces() {
    let mut rig = Rig::new(json!({}));
    for piece in ["one ", "two ", "three\n"] {
        assert!(rig.take_texts().is_empty());
        rig.append("a.log", piece);
        rig.run(60 * SECOND);
    }
    assert_eq!(rig.take_texts(), ["one two three"]);
}
#[test]
fn b16_an_unfinished_line_after_the_time_set() {
    let mut rig = Rig::new(json!({ "flush_partial": "5s" }));
    rig.append("a.log", "first\npassword: ");
    rig.run(4 * SECOND);
    assert_eq!(rig.take_texts(), ["first"]);
    rig.run(2 * SECOND);
    assert_eq!(rig.take_texts(), ["password: "]);
    rig.append("a.log", "more\n");
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["more"]);
    assert_eq!(rig.row("a.log").read, 21);
}
#[test]
fn b17_an_unfinished_line_and_a_restart() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", "whole\nhalf ");
    rig.run(SECOND);
    rig.stop();
    rig.run(SECOND);
    rig.stop();
    rig.append("a.log", "line\n");
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["whole", "half line"]);
}
#[test]
fn b19_lines_that_are_too_long() {
    for max_line in [1000, 300_000, 1_000_000] {
        let long = |n: usize| "0123456789".repeat(n / 10 + 1)[..n].to_owned();
        let lines = [
            long(10),
            long(max_line),
            long(max_line + 1),
            long(11),
            long(5 * max_line + 7),
            String::new(),
            long(2 * max_line),
            long(12),
        ];
        let all = lines.join("\n") + "\n";
        for (policy, counter, count, expected) in [
            (
                "cut",
                "lines_cut",
                3,
                lines
                    .iter()
                    .map(|line| line[..line.len().min(max_line)].to_owned())
                    .collect::<Vec<_>>(),
            ),
            (
                "skip",
                "lines_skipped",
                3,
                lines.iter().filter(|line| line.len() <= max_line).cloned().collect(),
            ),
            (
                "split",
                "lines_split",
                1 + 5 + 1,
                lines
                    .iter()
                    .flat_map(|line| {
                        let pieces = line
                            .as_bytes()
                            .chunks(max_line)
                            .map(|piece| String::from_utf8(piece.to_vec()).unwrap());
                        if line.is_empty() {
                            vec![String::new()]
                        } else {
                            pieces.collect()
                        }
                    })
                    .collect(),
            ),
        ] {
            let options = json!({ "max_line": max_line, "on_long_line": policy });
            let mut rig = Rig::new(options.clone());
            rig.append("a.log", &all);
            rig.run(SECOND);
            assert!(rig.take_texts() == expected, "{policy} at {max_line}");
            assert_eq!(rig.count(counter), count);
            assert_eq!(rig.row("a.log").acknowledged, all.len() as u64);
            // Written in pieces, with a clean restart after each: nothing more and nothing less.
            let mut rig = Rig::new(options);
            for piece in all.as_bytes().chunks(max_line / 3 + 1) {
                rig.append("a.log", std::str::from_utf8(piece).unwrap());
                rig.run(SECOND);
                rig.stop();
            }
            assert!(rig.take_texts() == expected, "{policy} at {max_line} in pieces");
        }
    }
}
#[test]
fn b20_a_gigabyte_without_a_line_end() {
    for (policy, expected) in [("cut", 3), ("skip", 2)] {
        let mut rig = Rig::new(json!({ "on_long_line": policy }));
        rig.append("a.log", "first\nx");
        let file = File::options().write(true).open(rig.path("a.log")).unwrap();
        file.set_len(1 << 30).unwrap(); // a hole is as long as anything else, and costs no disk
        let before = memory();
        rig.run(SECOND);
        assert_eq!(rig.take_texts(), ["first"]);
        file.write_all_at(b"\nlast\n", 1 << 30).unwrap();
        rig.run(SECOND);
        assert!(memory() < before + (100 << 20), "it stays bounded");
        let texts = rig.take_texts();
        assert_eq!(texts.len() + 1, expected);
        assert_eq!(texts.last().unwrap(), "last");
        assert!(texts.iter().all(|text| text.len() <= 256 << 10));
    }
}
fn memory() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
#[test]
fn b21_empty_lines_are_events() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", "\n\n\na\n\nb\n\n");
    rig.append("b.log", "\n".repeat(300_000));
    rig.run(SECOND);
    let texts = rig.take_texts();
    assert_eq!(texts.len(), 7 + 300_000);
    assert_eq!(texts.iter().filter(|text| text.is_empty()).count(), 5 + 300_000);
    assert_eq!(
        (rig.row("a.log").acknowledged, rig.row("b.log").acknowledged),
        (9, 300_000)
    );
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn b22_a_hole_left_by_a_stale_writer() {
    let mut rig = Rig::new(json!({}));
    let mut writer = File::create(rig.path("a.log")).unwrap(); // keeps its offset, does not append
    writer.write_all(lines("a", 1..=30_000).as_bytes()).unwrap();
    let written = fs::metadata(rig.path("a.log")).unwrap().len();
    rig.run(SECOND);
    File::options()
        .write(true)
        .open(rig.path("a.log"))
        .unwrap()
        .set_len(0)
        .unwrap();
    rig.run(SECOND);
    writer.write_all(lines("a", 30_001..=30_010).as_bytes()).unwrap();
    rig.run(SECOND);
    writer.write_all(lines("a", 30_011..=30_020).as_bytes()).unwrap();
    rig.run(SECOND);
    rig.judge(&[("a", 1..=30_020)]);
    assert_eq!(rig.count("nul_bytes_skipped"), written);
    assert_eq!(rig.restart_and_count(), 0);
    rig.append("a.log", lines("a", 30_021..=30_030));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=30_030)]);
}
#[test]
fn b22_space_reserved_by_the_writer_is_not_content() {
    let mut rig = Rig::new(json!({}));
    let file = File::create(rig.path("a.log")).unwrap();
    file.set_len(1 << 20).unwrap();
    rig.run(SECOND);
    let mut at = 0;
    for part in [1..=10, 11..=5000, 5001..=5001] {
        let text = lines("a", part);
        file.write_all_at(text.as_bytes(), at).unwrap();
        at += text.len() as u64;
        rig.run(SECOND);
    }
    rig.judge(&[("a", 1..=5001)]);
    assert_eq!(rig.count("nul_bytes_skipped"), 0);
}

// C. Rotation, truncation, deletion, identity

#[test]
fn c26_rename_and_create_under_constant_writes() {
    for glob in ["{dir}/*.log", "{dir}/*"] {
        let mut rig = Rig::new(json!({ "paths": [glob] }));
        let mut old = File::create(rig.path("a.log")).unwrap();
        let mut write_old = |part| old.write_all(lines("old", part).as_bytes()).unwrap();
        write_old(1..=1000);
        rig.run(SECOND);
        write_old(1001..=2000);
        fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        let mut new = File::create(rig.path("a.log")).unwrap();
        for step in 0..50 {
            write_old(2001 + step * 10..=2010 + step * 10);
            new.write_all(lines("new", step * 10 + 1..=step * 10 + 10).as_bytes())
                .unwrap();
            rig.run(Duration::from_millis(100));
        }
        rig.run(SECOND);
        rig.judge(&[("new", 1..=500), ("old", 1..=2500)]);
        assert_eq!(rig.count("rotations"), 1);
        assert_eq!(rig.count("rotations_missed"), 0);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn c27_five_rotations_between_two_looks() {
    for (glob, missed) in [("{dir}/a.log*", 0), ("{dir}/a.log", 4)] {
        let mut rig = Rig::new(json!({ "paths": [glob] }));
        rig.append("a.log", lines("r0", 1..=100));
        rig.run(SECOND);
        for round in 1..=5 {
            rig.append("a.log", lines(&format!("r{}", round - 1), 101..=200));
            for i in (1..round).rev() {
                fs::rename(rig.path(&format!("a.log.{i}")), rig.path(&format!("a.log.{}", i + 1))).unwrap();
            }
            fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
            rig.append("a.log", lines(&format!("r{round}"), 1..=100));
        }
        rig.run(2 * SECOND);
        if missed == 0 {
            rig.judge(&[
                ("r0", 1..=200),
                ("r1", 1..=200),
                ("r2", 1..=200),
                ("r3", 1..=200),
                ("r4", 1..=200),
                ("r5", 1..=100),
            ]);
        } else {
            rig.judge(&[("r0", 1..=200), ("r5", 1..=100)]);
        }
        assert_eq!(rig.count("rotations_missed"), missed);
        for i in (1..=5).filter(|_| missed == 0) {
            let name = format!("a.log.{i}");
            let (row, meta) = (rig.row(&name), fs::metadata(rig.path(&name)).unwrap());
            assert_eq!(row.identity, format!("{:x}:{:x}", meta.dev(), meta.ino()), "{name}");
            assert_eq!((row.read, row.acknowledged), (meta.len(), meta.len()), "{name}");
        }
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn c27_old_and_packed_rotations_are_not_counted_as_missed() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/a.log"] }));
    rig.append("a.log.1", lines("x", 1..=100));
    kit::files::tick(&rig.path("a.log.1"));
    rig.append("a.log", lines("a", 1..=100));
    rig.run(SECOND);
    fs::rename(rig.path("a.log.1"), rig.path("a.log.2")).unwrap();
    fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
    rig.append("a.log", lines("b", 1..=100));
    rig.append("a.log.1.gz", "packed");
    rig.append("a.logger", "something else");
    rig.run(SECOND);
    rig.judge(&[("a", 1..=100), ("b", 1..=100)]);
    assert_eq!((rig.count("rotations"), rig.count("rotations_missed")), (1, 0));
}
#[test]
fn c28_rename_and_create_while_stopped() {
    // The old file's new name matches, or lies beside it.
    for glob in ["{dir}/a.log*", "{dir}/a.log"] {
        let mut rig = Rig::new(json!({ "paths": [glob], "start": "end" }));
        rig.run(SECOND);
        rig.append("a.log", lines("old", 1..=100));
        rig.run(SECOND);
        rig.stop();
        rig.append("a.log", lines("old", 101..=200));
        fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        rig.append("a.log", lines("new", 1..=50));
        rig.run(SECOND);
        rig.judge(&[("new", 1..=50), ("old", 1..=200)]);
        assert_eq!(rig.restart_and_count(), 0);
    }
    // It is nowhere: visible.
    let mut rig = Rig::new(json!({ "paths": ["{dir}/a.log"] }));
    rig.append("a.log", lines("old", 1..=100));
    rig.run(SECOND);
    rig.stop();
    fs::create_dir(rig.path("archive")).unwrap();
    fs::rename(rig.path("a.log"), rig.path("archive/a.log")).unwrap();
    rig.append("a.log", lines("new", 1..=50));
    rig.run(SECOND);
    rig.judge(&[("new", 1..=50), ("old", 1..=100)]);
    assert_eq!(rig.count("rotations_missed"), 1);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn c29_renamed_out_of_sight_is_read_to_its_end() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/a.log"], "close_idle": "1m" }));
    rig.append("a.log", lines("a", 1..=10));
    rig.run(SECOND);
    rig.append("a.log", lines("a", 11..=20));
    fs::rename(rig.path("a.log"), rig.path("gone")).unwrap();
    rig.run(SECOND);
    rig.append("gone", &(lines("a", 21..=30) + "the end"));
    rig.run(50 * SECOND);
    assert_eq!(rig.row("gone").state, FileState::Leaving);
    rig.append("gone", "\n");
    rig.append("gone", &(lines("a", 31..=40) + "the real end"));
    rig.run(50 * SECOND);
    assert_eq!(rig.open_files(), ["gone"]);
    rig.run(20 * SECOND);
    assert_eq!(rig.open_files(), [""; 0]);
    let others = rig.take_others();
    assert_eq!(others, ["the end", "the real end"]);
    rig.judge(&[("a", 1..=40)]);
    assert!(rig.board().is_empty());
}
#[test]
fn c30_truncated_and_shorter() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/a.log"] }));
    rig.append("a.log", lines("a", 1..=1000));
    rig.run(SECOND);
    for round in 0..5 {
        fs::write(rig.path("a.log"), lines(&format!("b{round}"), 1..=100 - round * 10)).unwrap();
        rig.run(SECOND);
    }
    rig.judge(&[
        ("a", 1..=1000),
        ("b0", 1..=100),
        ("b1", 1..=90),
        ("b2", 1..=80),
        ("b3", 1..=70),
        ("b4", 1..=60),
    ]);
    assert_eq!((rig.count("truncations"), rig.count("bytes_lost")), (5, 0));
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn c31_c32_truncated_and_grown_to_the_same_size_or_beyond() {
    for stopped in [false, true] {
        for more in [0, 1, 5000] {
            let mut rig = Rig::new(json!({}));
            rig.append("a.log", lines("a", 1..=1000));
            rig.run(SECOND);
            if stopped {
                rig.stop();
            }
            let size = fs::metadata(rig.path("a.log")).unwrap().len();
            kit::files::tick(&rig.path("a.log"));
            let new = lines("b", 1..=1000 + more);
            fs::write(rig.path("a.log"), &new).unwrap();
            assert_eq!(new.len() as u64 == size, more == 0);
            rig.run(SECOND);
            rig.judge(&[("a", 1..=1000), ("b", 1..=1000 + more)]);
            assert_eq!(rig.count("truncations"), 1);
            assert_eq!(rig.restart_and_count(), 0);
        }
    }
}
#[test]
fn c33_copytruncate_with_the_copy_in_sight() {
    for (stopped, copy) in [
        (false, "a.log.1"),
        (false, "other-name"),
        (true, "a.log.1"),
        (true, "other-name"),
    ] {
        let mut rig = Rig::new(json!({ "paths": ["{dir}/*"] }));
        rig.append("a.log", lines("a", 1..=1000));
        rig.run(SECOND);
        if stopped {
            rig.stop();
        }
        fs::copy(rig.path("a.log"), rig.path(copy)).unwrap();
        if copy == "a.log.1" {
            rig.run(SECOND); // the copy is seen before the original is truncated
            if stopped {
                rig.stop();
            }
        }
        fs::write(rig.path("a.log"), lines("b", 1..=10)).unwrap();
        rig.run(SECOND);
        rig.judge(&[("a", 1..=1000), ("b", 1..=10)]);
        // From now on the copy is a file like others.
        rig.append(copy, lines("a", 1001..=1001));
        rig.run(SECOND);
        rig.judge(&[("a", 1..=1001), ("b", 1..=10)]);
        assert_eq!(rig.count("bytes_lost"), 0);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn c33_lines_read_between_the_copy_and_the_truncation() {
    // The smaller one has less than a whole head.
    for (seen, size) in [(false, 1000), (true, 1000), (true, 10)] {
        let mut rig = Rig::new(json!({}));
        rig.append("a.log", lines("a", 1..=size));
        rig.run(SECOND);
        fs::copy(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        if seen {
            rig.run(SECOND);
        }
        rig.append("a.log", lines("a", size + 1..=size + 10)); // copytruncate loses these; we had them
        rig.run(Duration::from_millis(250));
        fs::write(rig.path("a.log"), lines("b", 1..=5)).unwrap();
        rig.run(SECOND);
        rig.judge(&[("a", 1..=size + 10), ("b", 1..=5)]);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn c33_a_new_file_that_is_no_copy_does_not_wait() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", &("banner\n".to_owned() + &lines("a", 1..=1000)));
    rig.run(SECOND);
    rig.append("a-error.log", "");
    rig.run(SECOND);
    rig.append("a-error.log", "banner\n");
    rig.run(SECOND);
    rig.append("a-error.log", lines("e", 1..=1));
    rig.run(Duration::from_millis(250));
    assert_eq!(rig.take_others().len(), 2);
    rig.judge(&[("a", 1..=1000), ("e", 1..=1)]);
}
#[test]
fn c33b_copytruncate_while_we_lag() {
    // The copy's unread tail is read.
    for stopped in [false, true] {
        let mut rig = Rig::new(json!({}));
        rig.append("a.log", lines("a", 1..=100_000));
        rig.read_once(3); // of many chunks
        if stopped {
            rig.stop();
        }
        fs::copy(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        fs::write(rig.path("a.log"), lines("b", 1..=100)).unwrap();
        rig.run(SECOND);
        rig.judge(&[("a", 1..=100_000), ("b", 1..=100)]);
        assert_eq!((rig.count("truncations"), rig.count("bytes_lost")), (1, 0));
        assert_eq!(rig.restart_and_count(), 0);
    }
    // No copy in sight: counted, to the byte.
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=100_000));
    rig.read_once(3);
    let read = rig.got.len();
    let size = fs::metadata(rig.path("a.log")).unwrap().len();
    let taken: usize = rig.got.iter().map(|line| line.len() + 1).sum();
    fs::write(rig.path("a.log"), lines("b", 1..=100)).unwrap();
    rig.run(SECOND);
    rig.judge(&[("a", 1..=read), ("b", 1..=100)]);
    assert_eq!(rig.count("bytes_lost"), size - taken as u64);
    assert_eq!(rig.logged("no copy is in sight"), 1);
}
#[test]
fn c33_a_crash_before_the_old_content_is_settled() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=1000));
    rig.run(SECOND);
    rig.settling = false; // the outputs are away
    rig.append("a.log", lines("a", 1001..=2000));
    rig.run(SECOND);
    fs::copy(rig.path("a.log"), rig.path("a.log.1")).unwrap();
    fs::write(rig.path("a.log"), lines("b", 1..=100)).unwrap();
    rig.run(SECOND);
    rig.crash();
    rig.settling = true;
    rig.run(SECOND);
    // What had no receipt is read again, from the copy.
    rig.judge(&[("a", 1..=2000), ("b", 1..=100)]);
}
#[test]
fn c34_truncated_and_the_same_first_line_again() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=3));
    rig.run(SECOND);
    fs::write(rig.path("a.log"), lines("a", 1..=1)).unwrap();
    rig.run(SECOND);
    assert_eq!(
        rig.take_texts(),
        [text("a", 1), text("a", 2), text("a", 3), text("a", 1)]
    );
    // A file of one line only: seen when the size in between was.
    fs::write(rig.path("a.log"), "").unwrap();
    rig.run(SECOND);
    rig.append("a.log", lines("a", 1..=1));
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), [text("a", 1)]);
    // Where the kernel tells that it was written to, without that.
    if is_told() {
        kit::files::tick(&rig.path("a.log"));
        fs::write(rig.path("a.log"), lines("a", 1..=1)).unwrap();
        rig.run(SECOND);
        assert_eq!(rig.take_texts(), [text("a", 1)]);
        rig.run(60 * SECOND);
    }
    // Touched: nothing new.
    kit::files::tick(&rig.path("a.log"));
    File::options()
        .write(true)
        .open(rig.path("a.log"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    rig.run(SECOND);
    let times = std::fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
    let file = File::options().write(true).open(rig.path("a.log")).unwrap();
    file.set_times(times.set_modified(std::time::SystemTime::now()))
        .unwrap();
    rig.run(SECOND);
    assert!(rig.take_texts().is_empty());
}
#[test]
fn c35_deleted_with_unread_data() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=100));
    rig.run(SECOND);
    rig.append("a.log", &(lines("a", 101..=90_000) + "no line end"));
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.run(SECOND);
    assert_eq!(rig.open_files(), ["a.log (deleted)"], "somebody may be writing still");
    rig.run(5 * SECOND);
    assert_eq!(rig.open_files(), [""; 0]);
    assert_eq!(rig.take_others(), ["no line end"]);
    rig.judge(&[("a", 1..=90_000)]);
    assert!(rig.board().is_empty());
    assert!(rig.entries().is_empty(), "forgotten when all of it is settled");
    assert_eq!(rig.count("bytes_given_up"), 0);
}
#[test]
fn c35_deleted_while_the_outputs_are_away() {
    let mut rig = Rig::new(json!({ "hold_deleted": "1m" }));
    rig.append("a.log", lines("a", 1..=100_000));
    rig.read_once(2);
    let taken: usize = rig.got.iter().map(|line| line.len() + 1).sum();
    let size = fs::metadata(rig.path("a.log")).unwrap().len();
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.clock.advance(SECOND);
    rig.tell_settled();
    rig.clock.advance(59 * SECOND);
    rig.tell_settled();
    assert_eq!(rig.open_files(), ["a.log (deleted)"]);
    rig.clock.advance(2 * SECOND);
    rig.tell_settled();
    assert_eq!(rig.open_files(), [""; 0]);
    assert_eq!(rig.count("bytes_given_up"), size - taken as u64);
    // And what was read to its end needs no further read to be let go of.
    rig.append("b.log", lines("b", 1..=10));
    rig.run(SECOND);
    fs::remove_file(rig.path("b.log")).unwrap();
    rig.run(SECOND);
    rig.clock.advance(6 * SECOND);
    rig.tell_settled();
    assert_eq!(rig.open_files(), [""; 0]);
    assert_eq!(rig.count("bytes_given_up"), size - taken as u64);
}
#[test]
fn c35_deleted_and_written_to_while_the_outputs_are_away() {
    let mut rig = Rig::new(json!({ "hold_deleted": "1m" }));
    let mut writer = File::create(rig.path("a.log")).unwrap();
    writer.write_all(lines("a", 1..=10).as_bytes()).unwrap();
    rig.run(SECOND);
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.run(SECOND);
    rig.settling = false;
    for _ in 0..130 {
        writer.write_all(b"0123456789").unwrap(); // news do not make it stay for ever
        rig.clock.advance(SECOND / 2);
        rig.tell_settled();
    }
    assert!(rig.board().is_empty());
    assert_eq!(rig.open_files(), ["a.log (deleted)"], "the writer's own");
    assert!(
        (1100..=1300).contains(&rig.count("bytes_given_up")),
        "{}",
        rig.count("bytes_given_up")
    );
}
#[test]
fn c36_deleted_and_made_again_with_the_same_inode() {
    for stopped in [false, true] {
        for size in [10, 100, 300] {
            let mut rig = Rig::new(json!({ "paths": ["{dir}/a.log"], "close_idle": "10s" }));
            rig.append("a.log", lines("a", 1..=100));
            rig.run(20 * SECOND);
            assert_eq!(rig.open_files(), [""; 0]);
            if stopped {
                rig.stop();
            }
            let inode = fs::metadata(rig.path("a.log")).unwrap().ino();
            // Most file systems give the number again at once; where not, the case is an ordinary new file.
            for _ in 0..20 {
                fs::remove_file(rig.path("a.log")).unwrap();
                fs::write(rig.path("a.log"), lines("b", 1..=size)).unwrap();
                if fs::metadata(rig.path("a.log")).unwrap().ino() == inode {
                    break;
                }
            }
            rig.run(SECOND);
            rig.judge(&[("a", 1..=100), ("b", 1..=size)]);
            assert_eq!(rig.restart_and_count(), 0);
        }
    }
}
#[test]
fn c37_a_rotated_file_that_is_packed() {
    for (unpack, stopped, unread) in [
        (true, false, false),
        (true, false, true),
        (true, true, false),
        (true, true, true),
        (false, false, false),
        (false, true, false),
    ] {
        let mut rig = Rig::new(json!({ "read_compressed": unpack }));
        rig.append("a.log", lines("a", 1..=50_000));
        match unread {
            true => rig.read_once(2), // of many chunks
            false => rig.run(SECOND),
        }
        if stopped {
            rig.stop();
        }
        fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        rig.append("a.log", lines("b", 1..=10));
        rig.pack("a.log.1");
        rig.run(60 * SECOND);
        rig.judge(&[("a", 1..=50_000), ("b", 1..=10)]);
        let row = rig.row("a.log.1.gz");
        match unpack {
            true => assert_eq!((row.read, row.acknowledged, row.state), (row.size, row.size, row.state)),
            false => assert_eq!(row.reason, "is packed (gz), and read_compressed is false"),
        }
        assert_eq!(
            (rig.count("bytes_lost"), rig.count("rotations_missed")),
            (0, u64::from(!unpack && stopped))
        );
        // It goes on being rotated, and is known again.
        fs::rename(rig.path("a.log.1.gz"), rig.path("a.log.2.gz")).unwrap();
        assert_eq!(rig.restart_and_count(), 0);
        rig.run(60 * SECOND);
        rig.judge(&[("a", 1..=50_000), ("b", 1..=10)]);
    }
}
#[test]
fn c37_packed_while_the_plain_form_is_kept() {
    let mut rig = Rig::new(json!({ "read_compressed": true, "close_idle": "10s" }));
    rig.append("a.log.1", lines("a", 1..=5000));
    rig.run(20 * SECOND);
    rig.write_packed("a.log.1.gz", &[&fs::read(rig.path("a.log.1")).unwrap()[..20_000]]); // half done
    rig.run(20 * SECOND);
    rig.judge(&[("a", 1..=5000)]);
    let why = rig.row("a.log.1.gz").reason;
    assert!(
        why.starts_with("is the packed form of ") && why.ends_with("a.log.1, which is read itself"),
        "{why}"
    );
    rig.append("a.log.1", lines("a", 5001..=6000)); // not seen by anybody: in the packed form only
    rig.pack("a.log.1");
    rig.run(60 * SECOND);
    rig.judge(&[("a", 1..=6000)]);
    assert_eq!(rig.restart_and_count(), 0);
    assert_eq!(rig.count("bytes_lost"), 0);
}
#[test]
fn c38_packed_files_of_several_members() {
    let mut rig = Rig::new(json!({ "read_compressed": true }));
    let text = lines("a", 1..=60_000) + "the end";
    let (one, rest) = text.as_bytes().split_at(700_001);
    let (two, three) = rest.split_at(33);
    rig.write_packed("old.log.gz", &[one, two, b"", three]);
    rig.read_once(2);
    rig.stop(); // in the middle
    rig.read_once(1);
    rig.settling = false;
    rig.read_once(3);
    rig.crash(); // what had no receipt comes again
    rig.settling = true;
    rig.run(SECOND);
    assert_eq!(rig.take_others(), ["the end"]);
    rig.judge(&[("a", 1..=60_000)]);
    assert_eq!(rig.restart_and_count(), 0);
    // Another member comes; half a one waits for the rest.
    let mut more = File::options().append(true).open(rig.path("old.log.gz")).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(("\n".to_owned() + &lines("b", 1..=10_000)).as_bytes())
        .unwrap();
    let member = encoder.finish().unwrap();
    more.write_all(&member[..member.len() / 2]).unwrap();
    rig.run(5 * SECOND);
    let row = rig.row("old.log.gz");
    assert_eq!(
        (row.state, row.reason.as_str()),
        (FileState::Denied, "could not read: the gzip data ends in the middle")
    );
    more.write_all(&member[member.len() / 2..]).unwrap();
    rig.run(60 * SECOND);
    assert_eq!(
        rig.take_others(),
        [""],
        "the line end of what was taken for the last line"
    );
    rig.judge(&[("a", 1..=60_000), ("b", 1..=10_000)]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn c38_packed_and_framed() {
    let mut rig = Rig::new(json!({ "read_compressed": true, "multiline": "java" }));
    let records = (0..3000)
        .map(|i| format!("{i} failed\n\tat a.b.C\n\tat d.e.F"))
        .collect::<Vec<_>>();
    rig.write_packed("a.log.gz", &[(records.join("\n") + "\n").as_bytes()]);
    rig.read_once(1);
    rig.stop(); // in the middle
    rig.run(60 * SECOND);
    assert_eq!(rig.take_texts(), records);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn c38_what_only_has_the_name_of_a_packed_file() {
    let mut rig = Rig::new(json!({ "read_compressed": true }));
    rig.append("a.log.gz", lines("a", 1..=10));
    rig.append("a.log.xz", "whatever");
    rig.append("b.log", lines("b", 1..=10));
    rig.run(60 * SECOND);
    rig.judge(&[("b", 1..=10)]);
    let why = rig.row("a.log.gz").reason;
    assert!(why.starts_with("could not read: not gzip, or damaged"), "{why}");
    assert_eq!(rig.row("a.log.xz").reason, "is packed (xz), only gz can be read");
}
#[test]
fn c39_files_that_are_too_old_are_not_opened() {
    for restart in [false, true] {
        let mut rig = Rig::new(json!({ "ignore_older": "1d" }));
        rig.append("old.log", &(lines("old", 1..=100) + "begun"));
        rig.append("new.log", lines("new", 1..=10));
        let long_ago = std::time::SystemTime::now() - 2 * 24 * 3600 * SECOND;
        File::options()
            .write(true)
            .open(rig.path("old.log"))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        rig.run(20 * SECOND);
        rig.judge(&[("new", 1..=10)]);
        assert_eq!(rig.open_files(), ["new.log"]);
        let row = rig.row("old.log");
        assert_eq!(row.state, FileState::Skipped);
        assert!(row.reason.contains("ignore_older"), "{}", row.reason);
        if restart {
            assert_eq!(rig.restart_and_count(), 0);
            assert_eq!(rig.open_files(), ["new.log"]);
        }
        // What was begun is finished, and whole.
        rig.append("old.log", &(" long ago\n".to_owned() + &lines("old", 101..=110)));
        rig.run(SECOND);
        assert_eq!(rig.take_others(), ["begun long ago"]);
        rig.judge(&[("new", 1..=10), ("old", 101..=110)]);
        assert_eq!(rig.row("old.log").state, FileState::Tailing);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn c41_other_file_systems() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path().to_str().unwrap();
    let on = |dir: &str| format!("{dir} && cd - && exec env TMPDIR={place}/t \"$@\"");
    let overlay = "mount -t tmpfs tmpfs \"$PLACE\" && cd \"$PLACE\" && mkdir lower upper work t && \
                   mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work t";
    again(&on(overlay), &[("PLACE", place)], &ELSEWHERE);
    let tmpfs = "mount -t tmpfs tmpfs \"$PLACE\" && cd \"$PLACE\" && mkdir t";
    again(&on(tmpfs), &[("PLACE", place)], &ELSEWHERE);
}
#[test]
fn c41_a_file_of_the_lower_layer() {
    // Written to for the first time it is copied up: the same file still.
    let Ok(place) = std::env::var("TEST_LOWER") else {
        let overlay = "mount -t tmpfs tmpfs \"$PLACE\" && cd \"$PLACE\" && mkdir lower upper work t && cp \"$PLACE.log\" lower/a.log && \
                       mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work t && exec \"$@\"";
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        fs::create_dir(&place).unwrap();
        fs::write(dir.path().join("place.log"), lines("a", 1..=1000)).unwrap();
        let place = place.to_str().unwrap();
        return again(
            overlay,
            &[("PLACE", place), ("TEST_LOWER", place)],
            &["c41_a_file_of_the_lower_layer"],
        );
    };
    let mut rig = Rig::new(json!({ "paths": [format!("{place}/t/*.log")] }));
    rig.run(SECOND);
    for seq in 1001..1010 {
        let mut file = File::options().append(true).open(format!("{place}/t/a.log")).unwrap();
        file.write_all(lines("a", seq..=seq).as_bytes()).unwrap();
        rig.run(11 * SECOND);
    }
    rig.judge(&[("a", 1..=1009)]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn c40_the_clock_is_set_by_a_day() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=10));
    rig.run(SECOND);
    let mut seq = 10;
    for hours in [24, -48, 24 * 365, -24 * 400] {
        let wall = luffly_agent::clock::Clock::wall(&*rig.clock);
        rig.clock.set_wall(wall + jiff::SignedDuration::from_hours(hours));
        rig.append("a.log", lines("a", seq + 1..=seq + 10));
        seq += 10;
        rig.run(SECOND);
        rig.judge(&[("a", 1..=seq)]);
    }
    assert_eq!(rig.restart_and_count(), 0);
}

// D. Checkpoints

#[test]
fn d42_d44_what_has_no_receipt_is_read_again() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=50_000));
    rig.run(SECOND);
    rig.settling = false;
    rig.append("a.log", lines("a", 50_001..=100_000));
    rig.append("b.log", lines("b", 1..=50_000));
    rig.run(SECOND);
    assert_eq!(rig.got.len(), 150_000);
    rig.crash();
    assert_eq!(rig.got.len(), 50_000);
    rig.run(SECOND);
    rig.crash();
    rig.settling = true;
    rig.run(SECOND);
    rig.judge(&[("a", 1..=100_000), ("b", 1..=50_000)]);
    assert_eq!(rig.row("a.log").acknowledged, rig.row("a.log").size);
}
#[test]
fn d45_the_checkpoint_waits_for_the_first_that_is_not_settled() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=100_000));
    rig.settling = false;
    rig.run(SECOND);
    assert_eq!(
        (rig.row("a.log").read, rig.row("a.log").acknowledged),
        (rig.row("a.log").size, 0)
    );
    rig.settle_chunks(2);
    rig.tell_settled();
    let settled = rig.row("a.log").acknowledged;
    assert!(0 < settled && settled < rig.row("a.log").read);
    let kept: u64 = rig.got[..rig.settled_lines]
        .iter()
        .map(|line| line.len() as u64 + 1)
        .sum();
    assert_eq!(settled, kept);
    rig.crash();
    rig.settling = true;
    rig.run(SECOND);
    rig.judge(&[("a", 1..=100_000)]);
}
#[test]
fn d49_what_vanished_is_forgotten_in_time() {
    let mut rig = Rig::new(json!({ "forget_after": "7d" }));
    let day = 24 * 3600 * SECOND;
    for name in ["stays.log", "running.log", "stopped.log"] {
        rig.append(name, lines(&name.replace(".log", ""), 1..=10));
    }
    rig.run(SECOND);
    fs::create_dir(rig.path("away")).unwrap();
    fs::rename(rig.path("running.log"), rig.path("away/running.log")).unwrap();
    rig.run(SECOND);
    rig.clock.advance(600 * SECOND);
    rig.run(SECOND);
    rig.stop();
    fs::rename(rig.path("stopped.log"), rig.path("away/stopped.log")).unwrap();
    rig.run(SECOND);
    assert_eq!(rig.entries(), ["away/running.log", "stays.log", "stopped.log"]);
    for _ in 0..6 {
        rig.clock.advance(day);
        rig.run(SECOND);
    }
    assert_eq!(rig.entries().len(), 3);
    // It may come back until then, and goes on where it was.
    fs::rename(rig.path("away/running.log"), rig.path("back.log")).unwrap();
    rig.append("back.log", lines("running", 11..=20));
    rig.run(SECOND);
    rig.judge(&[("running", 1..=20), ("stays", 1..=10), ("stopped", 1..=10)]);
    rig.clock.advance(day);
    rig.clock.advance(day);
    rig.run(SECOND);
    assert_eq!(rig.entries(), ["back.log", "stays.log"]);
}

// Identity

#[test]
fn another_device_number_is_the_same_file() {
    let mut rig = Rig::new(json!({}));
    rig.append("a.log", lines("a", 1..=100));
    rig.run(SECOND);
    rig.stop();
    rig.change_identity(|identity| identity.device += 1);
    rig.append("a.log", lines("a", 101..=110));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=110)]);
    // But another file with that number is another file.
    rig.append("b.log", lines("b", 1..=100));
    rig.stop();
    let number = fs::metadata(rig.path("b.log")).unwrap().ino();
    rig.change_identity(|identity| (identity.device, identity.inode) = (identity.device + 1, number));
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.run(SECOND);
    rig.judge(&[("a", 1..=110), ("b", 1..=100)]);
}
#[test]
fn another_inode_with_the_same_content_is_the_same_file() {
    for (stopped, idle) in [(true, false), (false, false), (false, true)] {
        let mut rig = Rig::new(json!({ "close_idle": "10s" }));
        rig.append("a.log", lines("a", 1..=100));
        rig.run(if idle { 20 * SECOND } else { SECOND });
        if stopped {
            rig.stop();
        }
        // As editors and restores do.
        fs::copy(rig.path("a.log"), rig.path("saved")).unwrap();
        fs::rename(rig.path("saved"), rig.path("a.log")).unwrap();
        rig.append("a.log", lines("a", 101..=110));
        rig.run(SECOND);
        rig.judge(&[("a", 1..=110)]);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn an_idle_file_is_closed_and_followed_by_name() {
    let mut rig = Rig::new(json!({ "close_idle": "10s", "paths": ["{dir}/a.log"] }));
    rig.append("a.log", lines("a", 1..=10));
    rig.run(20 * SECOND);
    assert_eq!((rig.open_files().len(), rig.row("a.log").state), (0, FileState::Idle));
    rig.append("a.log", lines("a", 11..=20));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=20)]);
    rig.run(20 * SECOND);
    assert_eq!(rig.open_files().len(), 0);
    // Written to and renamed out of sight between two looks: found by its inode.
    rig.append("a.log", lines("a", 21..=30));
    fs::rename(rig.path("a.log"), rig.path("a.old")).unwrap();
    rig.append("a.log", lines("b", 1..=10));
    rig.run(SECOND);
    rig.judge(&[("a", 1..=30), ("b", 1..=10)]);
    assert_eq!(rig.count("rotations_missed"), 0);
}

#[test]
fn files_that_come_back_go_on() {
    // A mount that goes away and returns, while the files in it are open or not.
    for wait in [SECOND, 20 * SECOND] {
        let mut rig = Rig::new(json!({ "paths": ["{dir}/mount/*"], "close_idle": "10s" }));
        fs::create_dir(rig.path("mount")).unwrap();
        rig.append("mount/a.log", lines("a", 1..=10));
        rig.append("mount/b.log", lines("b", 1..=1000));
        rig.run(wait);
        fs::rename(rig.path("mount"), rig.path("unmounted")).unwrap();
        rig.run(60 * SECOND);
        assert!(rig.board().is_empty());
        fs::rename(rig.path("unmounted"), rig.path("mount")).unwrap();
        rig.append("mount/a.log", lines("a", 11..=20));
        rig.run(SECOND);
        rig.judge(&[("a", 1..=20), ("b", 1..=1000)]);
        assert_eq!((rig.count("bytes_lost"), rig.count("rotations_missed")), (0, 0));
    }
}
#[test]
fn what_cannot_be_looked_at_is_not_gone() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/*/*.log"], "close_idle": "10s" }));
    fs::create_dir(rig.path("sub")).unwrap();
    rig.append("sub/a.log", lines("a", 1..=10));
    rig.as_nobody(|rig| rig.run(20 * SECOND));
    fs::set_permissions(rig.path("sub"), fs::Permissions::from_mode(0o000)).unwrap();
    rig.append("sub/a.log", lines("a", 11..=20));
    rig.as_nobody(|rig| rig.run(60 * SECOND));
    assert_eq!(rig.row("sub").state, FileState::Denied);
    fs::set_permissions(rig.path("sub"), fs::Permissions::from_mode(0o755)).unwrap();
    rig.as_nobody(|rig| rig.run(SECOND));
    rig.judge(&[("a", 1..=20)]);
    assert_eq!(rig.board().len(), 1);
    assert_eq!(rig.count("bytes_lost"), 0);
}

// Conduct

#[test]
fn files_take_turns() {
    let mut rig = Rig::new(json!({}));
    rig.append("big.log", lines("big", 1..=200_000));
    rig.append("small.log", lines("small", 1..=10));
    rig.read_once(2);
    assert_eq!(rig.got.iter().filter(|line| line.starts_with("small ")).count(), 10);
    assert!(rig.got.len() < 30_000);
}
#[test]
fn what_is_wanted_is_a_bound() {
    let mut rig = Rig::new(json!({}));
    rig.append(
        "a.log",
        &(lines("a", 1..=1000) + &"x".repeat(5000) + "\n" + &lines("b", 1..=1000)),
    );
    let mut largest = 0;
    while rig.read_of(1, 1000) {
        largest = largest.max(rig.last_size);
        assert!(
            rig.last_size <= 1000 || rig.last_lines == 1,
            "one that is larger goes alone"
        );
    }
    assert_eq!(largest, 5001);
    assert_eq!(rig.take_others(), ["x".repeat(5000)]);
    rig.judge(&[("a", 1..=1000), ("b", 1..=1000)]);
}
#[test]
fn more_files_than_may_be_open() {
    let mut rig = Rig::new(json!({ "max_open_files": 3 }));
    let ids = (0..20).map(|i| format!("f{i}")).collect::<Vec<_>>();
    for id in &ids {
        rig.append(&format!("{id}.log"), lines(id, 1..=10_000));
    }
    while rig.read_of(1, 256 << 10) {
        assert!(rig.open_files().len() <= 3);
    }
    for id in &ids {
        rig.append(&format!("{id}.log"), lines(id, 10_001..=10_010));
    }
    rig.run(SECOND);
    assert!(rig.open_files().len() <= 3);
    rig.judge(&ids.iter().map(|id| (id.as_str(), 1..=10_010)).collect::<Vec<_>>());
}
#[test]
fn whoever_made_room_says_so() {
    let mut rig = Rig::new(json!({ "max_open_files": 1 }));
    rig.append("a.log", lines("a", 1..=10));
    rig.append("b.log", lines("b", 1..=10));
    rig.run(SECOND);
    let rows = rig.board();
    let closed = rows
        .iter()
        .filter(|row| row.state == FileState::Idle)
        .collect::<Vec<_>>();
    assert_eq!(closed.len(), 1);
    assert_eq!(
        closed[0].reason,
        "closed to make room (max_open_files = 1), looked at by name"
    );
}
#[test]
fn a_noisy_file_starves_no_other() {
    let mut rig = Rig::new(json!({ "max_open_files": 50 }));
    for i in 0..500 {
        rig.append(&format!("f{i}.log"), lines(&format!("f{i}"), 1..=1));
    }
    rig.append("noisy.log", lines("noisy", 1..=10));
    rig.run(SECOND);
    let mut seq = 10;
    for round in 2..=5 {
        for i in 0..500 {
            rig.append(&format!("f{i}.log"), lines(&format!("f{i}"), round..=round));
        }
        // More than one turn's worth comes before each call.
        for _ in 0..1000 {
            rig.append("noisy.log", lines("noisy", seq + 1..=seq + 20_000));
            seq += 20_000;
            rig.clock.advance(Duration::from_millis(10));
            rig.read_once(8);
            if rig.got.iter().filter(|line| line.starts_with('f')).count() == 500 * round {
                break;
            }
        }
        assert_eq!(rig.got.iter().filter(|line| line.starts_with('f')).count(), 500 * round);
        assert!(seq < 20_000 * 500 * round, "they had their turns");
        rig.got.retain(|line| line.starts_with('f'));
        rig.settled_lines = 0;
    }
    assert!(rig.open_files().len() <= 50);
}
#[test]
fn one_version_goes_on_where_the_other_was() {
    let mut rig = Rig::new(json!({}));
    for round in 0..4 {
        rig.append("a.log", lines("a", round * 100 + 1..=round * 100 + 100));
        rig.append(&format!("r{round}.log"), lines(&format!("r{round}"), 1..=100));
        rig.run(SECOND);
        rig.append("a.log.1", lines("b", round * 100 + 1..=round * 100 + 100));
        fs::rename(rig.path(&format!("r{round}.log")), rig.path(&format!("r{round}.log.1"))).unwrap();
        rig.stop();
        rig.other_version = !rig.other_version;
        rig.append(&format!("r{round}.log.1"), lines(&format!("r{round}"), 101..=200));
    }
    rig.run(SECOND);
    rig.judge(&[
        ("a", 1..=400),
        ("b", 1..=400),
        ("r0", 1..=200),
        ("r1", 1..=200),
        ("r2", 1..=200),
        ("r3", 1..=200),
    ]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn names_elsewhere_tell_of_a_file_too() {
    // Through a symlink and a hard link, written to where nobody looks.
    let mut rig = Rig::new(json!({ "paths": ["{dir}/in/*.log"], "close_idle": "5s" }));
    fs::create_dir(rig.path("in")).unwrap();
    fs::create_dir(rig.path("out")).unwrap();
    rig.append("out/a", lines("a", 1..=10));
    rig.append("out/b", lines("b", 1..=10));
    symlink(rig.path("out/a"), rig.path("in/a.log")).unwrap();
    fs::hard_link(rig.path("out/b"), rig.path("in/b.log")).unwrap();
    for (round, wait) in [(1, SECOND), (2, 20 * SECOND), (3, SECOND)] {
        rig.run(wait);
        rig.append("out/a", lines("a", round * 10 + 1..=round * 10 + 10));
        rig.append("out/b", lines("b", round * 10 + 1..=round * 10 + 10));
        rig.run(Duration::from_millis(if is_told() { 0 } else { 250 }));
        rig.judge(&[("a", 1..=round * 10 + 10), ("b", 1..=round * 10 + 10)]);
    }
}
#[test]
fn a_file_rotated_behind_a_symlink() {
    let mut rig = Rig::new(json!({ "paths": ["{dir}/in/*.log"] }));
    fs::create_dir(rig.path("in")).unwrap();
    fs::create_dir(rig.path("pod")).unwrap();
    rig.append("pod/0.log", lines("old", 1..=10));
    symlink("../pod/link", rig.path("in/a.log")).unwrap();
    symlink("0.log", rig.path("pod/link")).unwrap();
    let soon = Duration::from_millis(if is_told() { 20 } else { 300 });
    rig.run(SECOND);
    for half_done in [false, true] {
        rig.append("pod/0.log", lines("old", 11..=20));
        fs::rename(rig.path("pod/0.log"), rig.path("pod/0.log.1")).unwrap();
        rig.append("pod/0.log.1", lines("old", 21..=30));
        if half_done {
            rig.run(soon);
        }
        rig.append("pod/0.log", lines("new", 1..=10));
        rig.run(soon);
        rig.judge(&[("new", 1..=10), ("old", 1..=30)]);
        assert_eq!(rig.count("rotations"), 1);
        fs::remove_file(rig.path("pod/0.log")).unwrap();
        rig.run(20 * SECOND);
        (rig.got, rig.settled_lines) = (Vec::new(), 0);
        rig.append("pod/0.log", lines("old", 1..=10));
        rig.run(soon);
        rig.reset_counts();
    }
}
#[test]
fn once_reads_what_is_there_and_ends() {
    let mut rig = Rig::new(json!({ "flush_partial": "1s" }));
    rig.once = true;
    rig.append("a.log", &(lines("a", 1..=50_000) + "unfinished"));
    rig.append("b.log", lines("b", 1..=10));
    assert!(rig.run_once());
    rig.judge(&[("a", 1..=50_000), ("b", 1..=10)]);
    rig.stop();
    rig.append("a.log", " business\n");
    assert!(rig.run_once());
    assert_eq!(rig.take_others(), ["unfinished business"]);
    rig.stop();
    // Nothing at all is an end, too.
    assert!(rig.run_once());
    let mut rig = Rig::new(json!({}));
    rig.once = true;
    assert!(rig.run_once());
}
#[test]
fn without_a_journal_it_reads_all_the_same() {
    let mut rig = Rig::new(json!({}));
    rig.keeps_journal = false;
    rig.append("a.log", lines("a", 1..=10));
    rig.run(SECOND);
    fs::write(rig.path("a.log"), lines("b", 1..=5)).unwrap();
    rig.run(SECOND);
    rig.judge(&[("a", 1..=10), ("b", 1..=5)]);
}
#[test]
fn bad_options_are_refused() {
    for bad in [
        json!({}),
        json!({ "paths": [] }),
        json!({ "paths": ["/x/"] }),
        json!({ "paths": ["/x"], "max_open_files": 0 }),
        json!({ "paths": ["/x"], "poll_every": "0s" }),
        json!({ "paths": ["/x"], "max_line": "0B" }),
        json!({ "paths": ["/x"], "start": "middle" }),
        json!({ "paths": ["/x"], "ignore_older": "0s" }),
        json!({ "paths": ["/x"], "ignore_older": "1" }),
        json!({ "paths": ["/x"], "read_compressed": "gz" }),
        json!({ "paths": ["/x"], "max_rate": 5 }),
        json!({ "paths": ["/x"], "framing": "xml" }),
        json!({ "paths": ["/x"], "multiline": { "start": "(" } }),
        json!({ "paths": ["/x"], "encoding": "klingon" }),
    ] {
        Rig::refusal(bad);
    }
}
// Everything in any order

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(100))]
    /// Any sequence of what happens to logs, each step seen by the agent or not, with stops, and crashes after which the outputs have
    /// what they settled: every line once, in order.
    #[test]
    fn any_sequence_of_ordinary_days(steps in proptest::collection::vec((0u8..10, 1usize..400, proptest::bool::ANY), 1..40)) {
        let mut rig = Rig::new(json!({ "close_idle": "2s" }));
        let (mut file, mut seq, mut done) = (0usize, 0usize, Vec::new());
        for (what, size, look) in steps {
            let id = format!("f{file}");
            match what {
                0..=3 => {
                    rig.append("a.log", lines(&id, seq + 1..=seq + size));
                    seq += size;
                }
                // An unfinished line, finished.
                4 => {
                    let line = lines(&id, seq + 1..=seq + 1);
                    rig.append("a.log", &line[..line.len() / 2]);
                    rig.run(SECOND);
                    rig.append("a.log", &line[line.len() / 2..]);
                    seq += 1;
                }
                // Rotated by renaming.
                5 => {
                    rig.shift("a.log", done.len());
                    let _ = fs::rename(rig.path("a.log"), rig.path("a.log.1"));
                    done.push((id, seq));
                    (file, seq) = (file + 1, 0);
                }
                // Rotated by copying; what is not read yet is in the copy. Something of it must have been read, or nobody could tell a
                // copy from another file; and two truncations that nobody sees are one.
                6 if seq > 0 => {
                    rig.run(SECOND);
                    rig.shift("a.log", done.len());
                    rig.append("a.log", lines(&id, seq + 1..=seq + size));
                    seq += size;
                    fs::copy(rig.path("a.log"), rig.path("a.log.1")).unwrap();
                    fs::write(rig.path("a.log"), "").unwrap();
                    done.push((id, seq));
                    (file, seq) = (file + 1, 0);
                    rig.run(SECOND);
                }
                7 => rig.stop(),
                8 => rig.settling = false,
                _ => {
                    rig.crash();
                    rig.settling = true;
                }
            }
            if look {
                rig.run(Duration::from_millis(300));
            }
        }
        if !rig.settling {
            rig.crash();
            rig.settling = true;
        }
        rig.run(20 * SECOND);
        done.push((format!("f{file}"), seq));
        let expected = done.iter().filter(|(_, seq)| *seq > 0).map(|(id, seq)| (id.as_str(), 1..=*seq)).collect::<Vec<_>>();
        rig.judge(&expected);
        proptest::prop_assert_eq!(rig.count("bytes_lost"), 0);
        proptest::prop_assert_eq!(rig.restart_and_count(), 0);
    }
}
