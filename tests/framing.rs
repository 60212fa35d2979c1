//! Records of all forms through `file:v1`, on good and bad days: written byte by byte, stopped and killed inside of a record, rotated,
//! truncated. Time stands still unless a test moves it. The numbers in the names are those of the cases in the specification of behaviour.
mod kit {
    #[allow(dead_code, reason = "other tests use the rest of it")]
    pub mod files;
}

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    time::Duration,
};

use kit::files::{Rig, lines};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const CHUNK: usize = 256 << 10;

fn wide(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(unit).collect()
}
fn little(text: &str) -> Vec<u8> {
    wide(text, u16::to_le_bytes)
}
fn coded(label: &str, text: &str) -> Vec<u8> {
    let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).unwrap();
    encoding.encode(text).0.into_owned()
}
fn cri(stream: &str, tag: &str, text: &str) -> String {
    format!("2026-11-25T10:00:00.123456789Z {stream} {tag} {text}\n")
}
fn docker(stream: &str, log: &str) -> String {
    json!({"log": log, "stream": stream, "time": "2026-11-25T10:00:00.1Z"}).to_string() + "\n"
}
/// Each framing with a source that ends with a complete record, and the records.
fn forms() -> Vec<(Value, Vec<u8>, Vec<String>)> {
    let form = |options: Value, source: &[u8], records: &[&str]| {
        (
            options,
            source.to_vec(),
            records.iter().map(|record| (*record).to_owned()).collect(),
        )
    };
    let traces = "[1] failed\n  at a\n\n  at b\n[2] fine\n[3] failed\n  at c\n[4] end\n[5] open";
    let containers = [
        cri("stdout", "P", "one, "),
        cri("stderr", "F", "a warning"),
        cri("stdout", "P", "two, "),
        cri("stdout", "F", "three"),
        cri("stdout", "F", ""),
    ];
    let json_files = [
        docker("stdout", "one, "),
        docker("stderr", "a \"warning\"\n"),
        docker("stdout", "two\n"),
        docker("stdout", "\n"),
    ];
    let text = "第一行\n\n第二 line\n行\n";
    let decoded = ["第一行", "", "第二 line", "行"];
    vec![
        form(
            json!({"framing": "crlf"}),
            b"one\r\ntwo\n\r\nth\rree\r\n",
            &["one", "two", "", "th\rree"],
        ),
        form(
            json!({"framing": {"delimiter": "<|>"}}),
            b"one<|>t\nwo<<|><|>|three<|>",
            &["one", "t\nwo<", "", "|three"],
        ),
        form(
            json!({"multiline": {"start": r"^\["}}),
            (traces.to_owned() + "\n").as_bytes(),
            &[
                "[1] failed\n  at a\n\n  at b",
                "[2] fine",
                "[3] failed\n  at c",
                "[4] end",
                "[5] open",
            ],
        ),
        form(
            json!({"multiline": {"end": ";$"}}),
            b"a\nb;\nc;\n\nd;\n",
            &["a\nb;", "c;", "\nd;"],
        ),
        form(
            json!({"framing": "cri"}),
            containers.concat().as_bytes(),
            &["one, two, three", "a warning", ""],
        ),
        form(
            json!({"framing": "docker"}),
            json_files.concat().as_bytes(),
            &["one, two", "a \"warning\"", ""],
        ),
        form(
            json!({"framing": "cri", "multiline": {"continue": r"^\s"}}),
            [
                cri("stdout", "F", "boom"),
                cri("stdout", "P", "  at "),
                cri("stderr", "F", "meanwhile"),
                cri("stdout", "F", "x"),
                cri("stdout", "F", "next"),
            ]
            .concat()
            .as_bytes(),
            &["boom\n  at x", "meanwhile", "next"],
        ),
        form(json!({"encoding": "utf-16le"}), &little(text), &decoded),
        form(
            json!({"encoding": "auto"}),
            &[&b"\xFE\xFF"[..], &wide(text, u16::to_be_bytes)].concat(),
            &decoded,
        ),
        form(
            json!({"encoding": "auto"}),
            &[&b"\xEF\xBB\xBF"[..], text.as_bytes()].concat(),
            &decoded,
        ),
        form(json!({"encoding": "gbk"}), &coded("gbk", text), &decoded),
        form(
            json!({"encoding": "big5", "multiline": {"start": "^第"}}),
            &coded("big5", text),
            &["第一行\n", "第二 line\n行"],
        ),
        form(json!({}), &[&b"\xEF\xBB\xBF"[..], text.as_bytes()].concat(), &decoded),
    ]
}

#[test]
fn b16_b18_written_byte_by_byte_and_in_one() {
    for (options, source, records) in forms() {
        let mut rig = Rig::new(options.clone());
        rig.append("a.log", &source);
        rig.run(6 * SECOND);
        assert_eq!(rig.take_texts(), records, "{options}");
        assert_eq!(rig.row("a.log").acknowledged, source.len() as u64, "{options}");
        assert_eq!(rig.restart_and_count(), 0);
        let mut rig = Rig::new(options.clone());
        for byte in &source {
            rig.append("a.log", [*byte]);
            rig.run(Duration::from_millis(250));
        }
        rig.run(6 * SECOND);
        assert_eq!(rig.take_texts(), records, "{options} byte by byte");
    }
}
#[test]
fn b17_b24_stopped_or_killed_anywhere_inside_of_a_record() {
    for (options, source, records) in forms() {
        for kills in [false, true] {
            let mut rig = Rig::new(options.clone());
            for piece in source.chunks(3) {
                rig.append("a.log", piece);
                rig.run(Duration::from_millis(250));
                match kills {
                    true => rig.crash(),
                    false => rig.stop(),
                }
            }
            rig.run(6 * SECOND);
            assert_eq!(rig.take_texts(), records, "{options}, killed: {kills}");
        }
    }
}
#[test]
fn b17_an_unfinished_line_waits_and_is_flushed_if_asked() {
    let open = |options: Value, source: &[u8], waits: &[&str], flushed: &[&str]| {
        let mut rig = Rig::new(options.clone());
        rig.append("a.log", source);
        rig.run(60 * SECOND);
        assert_eq!(rig.take_texts(), waits, "{options}");
        let mut options = options;
        options["flush_partial"] = "2s".into();
        let mut rig = Rig::new(options.clone());
        rig.append("a.log", source);
        rig.run(SECOND);
        rig.take_texts();
        rig.run(2 * SECOND);
        assert_eq!(rig.take_texts(), flushed, "{options}");
        assert_eq!(rig.row("a.log").acknowledged, source.len() as u64);
    };
    open(json!({"framing": "crlf"}), b"one\r\ntwo\r", &["one"], &["two"]);
    open(
        json!({"framing": {"delimiter": "--"}}),
        b"one--two-",
        &["one"],
        &["two-"],
    );
    open(
        json!({"multiline": {"start": "^x"}}),
        b"x\n y\n z",
        &["x\n y"],
        &["x\n y\n z"],
    );
    open(json!({"encoding": "utf-16le"}), b"a\0\n\0b\0c", &["a"], &["b\u{fffd}"]);
    // A piece of a container's line whose end never comes is given out after a while; half a line of the file is not.
    let piece = cri("stdout", "P", "half");
    open(json!({"framing": "cri"}), piece.as_bytes(), &["half"], &["half"]);
    open(
        json!({"framing": "cri"}),
        (piece + "2026").as_bytes(),
        &["half"],
        &["half", "2026"],
    );
}
#[test]
fn b19_records_that_are_too_long() {
    let long = "0123456789".repeat(40_000);
    let pieces = |size: usize| {
        long.as_bytes()
            .chunks(size)
            .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let trace = long
        .as_bytes()
        .chunks(99)
        .map(|line| format!(" {}\n", std::str::from_utf8(line).unwrap()))
        .collect::<String>();
    let parts = |stream| {
        let pieces = pieces(16 << 10);
        let last = pieces.len() - 1;
        pieces
            .iter()
            .enumerate()
            .map(move |(i, piece)| cri(stream, if i == last { "F" } else { "P" }, piece))
            .collect::<String>()
    };
    for (options, source) in [
        (
            json!({"framing": "crlf"}),
            format!("before\r\n{long}\r\nafter\r\n").into_bytes(),
        ),
        (
            json!({"framing": {"delimiter": "||"}}),
            format!("before||{long}||after||").into_bytes(),
        ),
        (
            json!({"encoding": "utf-16le"}),
            little(&format!("before\n{long}\nafter\n")),
        ),
        (
            json!({"multiline": {"continue": "^ "}}),
            format!("before\nhead\n{trace}after\n").into_bytes(),
        ),
        (
            json!({"framing": "cri"}),
            [
                cri("stdout", "F", "before"),
                parts("stderr"),
                cri("stdout", "F", "after"),
            ]
            .concat()
            .into_bytes(),
        ),
    ] {
        for (policy, counter) in [
            ("cut", "lines_cut"),
            ("skip", "lines_skipped"),
            ("split", "lines_split"),
        ] {
            for pieces in [1, 7] {
                let mut options = options.clone();
                options["max_line"] = 100_000.into();
                options["on_long_line"] = policy.into();
                let mut rig = Rig::new(options.clone());
                for piece in source.chunks(source.len() / pieces + 1) {
                    rig.append("a.log", piece);
                    rig.run(SECOND);
                    rig.stop();
                }
                rig.run(6 * SECOND);
                let texts = rig.take_texts();
                let says = format!("{options} in {pieces} pieces");
                assert_eq!(
                    (texts[0].as_str(), texts[texts.len() - 1].as_str()),
                    ("before", "after"),
                    "{says}"
                );
                assert!(texts.iter().all(|text| text.len() <= 100_000), "{says}");
                let between = &texts[1..texts.len() - 1];
                match policy {
                    "cut" => assert_eq!((between.len(), between[0].len()), (1, 100_000), "{says}"),
                    "skip" => assert!(between.is_empty(), "{says}"),
                    _ => {
                        let joined = between.concat().replace(['\n', ' '], "").replace("head", "");
                        assert!(joined == long, "{says}: {}", joined.len());
                    }
                }
                assert!(rig.count(counter) >= 1, "{says}");
                assert_eq!(rig.row("a.log").acknowledged, source.len() as u64, "{says}");
            }
        }
    }
}
#[test]
fn b20_a_gigabyte_without_an_end() {
    for (options, end) in [
        (json!({"framing": "crlf"}), "\r\nlast\r\n"),
        (
            json!({"framing": {"delimiter": "||"}, "on_long_line": "skip"}),
            "||last||",
        ),
        (json!({"multiline": {"continue": "^ "}}), "\nlast\n"),
    ] {
        let mut rig = Rig::new(options.clone());
        rig.append("a.log", "x");
        let file = File::options().write(true).open(rig.path("a.log")).unwrap();
        file.set_len(1 << 30).unwrap(); // a hole is as long as anything else, and costs no disk
        let before = memory();
        rig.run(SECOND);
        assert!(rig.take_texts().is_empty());
        file.write_all_at(end.as_bytes(), 1 << 30).unwrap();
        rig.run(6 * SECOND);
        assert!(memory() < before + (100 << 20), "it stays bounded");
        let texts = rig.take_texts();
        let expected = if options["on_long_line"] == "skip" { 1 } else { 2 };
        assert_eq!(
            (texts.len(), texts.last().unwrap().as_str()),
            (expected, "last"),
            "{options}"
        );
        assert!(texts.iter().all(|text| text.len() <= CHUNK));
    }
}
fn memory() -> usize {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
#[test]
fn b21_empty_records_and_offsets() {
    for (options, end) in [
        (json!({"framing": "crlf"}), &b"\r\n"[..]),
        (json!({"encoding": "utf-16be"}), b"\0\n"),
    ] {
        let mut rig = Rig::new(options);
        rig.append("a.log", end.repeat(200_000));
        rig.run(SECOND);
        let texts = rig.take_texts();
        assert_eq!(texts.len(), 200_000);
        assert!(texts.iter().all(String::is_empty));
        assert_eq!(rig.row("a.log").acknowledged, 400_000);
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn b22_holes_and_reserved_space() {
    for (options, write) in [
        (
            json!({"framing": "crlf"}),
            (|text: &str| text.replace('\n', "\r\n").into_bytes()) as fn(&str) -> Vec<u8>,
        ),
        (json!({"encoding": "utf-16le"}), little),
        (json!({"encoding": "utf-16be"}), |text: &str| {
            wide(text, u16::to_be_bytes)
        }),
        (json!({"framing": "cri"}), |text: &str| {
            text.lines()
                .map(|line| cri("stdout", "F", line))
                .collect::<String>()
                .into_bytes()
        }),
    ] {
        // A writer that keeps its offset after a truncation leaves a hole.
        let mut rig = Rig::new(options.clone());
        let file = File::create(rig.path("a.log")).unwrap();
        let first = write(&lines("a", 1..=20_000));
        file.write_all_at(&first, 0).unwrap();
        rig.run(SECOND);
        file.set_len(0).unwrap();
        rig.run(SECOND);
        let second = write(&lines("a", 20_001..=20_010));
        file.write_all_at(&second, first.len() as u64).unwrap();
        rig.run(SECOND);
        rig.judge(&[("a", 1..=20_010)]);
        assert_eq!(rig.count("nul_bytes_skipped"), first.len() as u64, "{options}");
        assert_eq!(rig.restart_and_count(), 0);
        // Space that is reserved is not content.
        let mut rig = Rig::new(options.clone());
        let file = File::create(rig.path("a.log")).unwrap();
        file.set_len(1 << 20).unwrap();
        rig.run(SECOND);
        let mut at = 0;
        for part in [1..=10, 11..=2000, 2001..=2001] {
            let text = write(&lines("a", part));
            file.write_all_at(&text, at).unwrap();
            at += text.len() as u64;
            rig.run(SECOND);
        }
        rig.judge(&[("a", 1..=2001)]);
        assert_eq!(rig.count("nul_bytes_skipped"), 0, "{options}");
    }
}
#[test]
fn b23_files_of_different_encodings_do_not_disturb_each_other() {
    let mut rig = Rig::new(json!({"encoding": "gbk"}));
    let text = lines("a", 1..=3000).replace("a ", "文 ");
    rig.append("gbk.log", coded("gbk", &text));
    rig.append(
        "marked.log",
        [&b"\xEF\xBB\xBF"[..], text.replace('文', "語").as_bytes()].concat(),
    );
    rig.append(
        "wide.log",
        [&b"\xFF\xFE"[..], &little(&text.replace('文', "é"))].concat(),
    );
    rig.append("bad.log", b"a\xFFb\n\xC4\n"); // no byte of GBK; half a character
    rig.run(SECOND);
    rig.stop();
    for (name, piece) in [
        ("gbk.log", coded("gbk", "文后\n")),
        ("marked.log", "語后\n".into()),
        ("wide.log", little("é后\n")),
    ] {
        for byte in piece {
            rig.append(name, [byte]);
            rig.run(Duration::from_millis(250));
            rig.stop();
        }
    }
    rig.run(SECOND);
    let mut texts = rig.take_texts();
    assert_eq!(rig.count("lines_replaced"), 2);
    for first in ["文", "語", "é"] {
        let (mine, others) = texts.into_iter().partition::<Vec<_>, _>(|line| line.starts_with(first));
        texts = others;
        let expected = text.replace('文', first) + first + "后\n";
        assert!(
            mine.iter().map(|line| line.clone() + "\n").collect::<String>() == expected,
            "{first}"
        );
    }
    assert_eq!(texts, ["a\u{fffd}b", "\u{fffd}"]);
    for (name, size) in [("gbk.log", coded("gbk", &text).len() + 5), ("bad.log", 6)] {
        assert_eq!(rig.row(name).acknowledged, size as u64);
    }
}
#[test]
fn b23_half_a_mark_is_waited_for() {
    let mut rig = Rig::new(json!({"encoding": "auto"}));
    for byte in [&b"\xFF\xFE"[..], &little("a\n")].concat() {
        assert!(rig.take_texts().is_empty());
        rig.append("a.log", [byte]);
        rig.run(SECOND);
        rig.stop();
    }
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["a"]);
}
#[test]
fn b24_the_last_record_has_no_follower() {
    let mut rig = Rig::new(json!({"multiline": {"start": r"^\[", "timeout": "3s"}}));
    rig.append("a.log", "[1] a\n  b\n[2] c\n");
    rig.run(2 * SECOND);
    assert_eq!(rig.take_texts(), ["[1] a\n  b"]);
    rig.append("a.log", "  d\n");
    rig.run(2 * SECOND);
    assert!(rig.take_texts().is_empty(), "it got news");
    assert_eq!(rig.row("a.log").acknowledged, 10, "the start of the open record");
    rig.run(2 * SECOND);
    assert_eq!(rig.take_texts(), ["[2] c\n  d"]);
    assert_eq!(rig.row("a.log").acknowledged, 20);
    // What comes too late is a record of its own.
    rig.append("a.log", "  e\n[3]\n");
    rig.run(4 * SECOND);
    assert_eq!(rig.take_texts(), ["  e", "[3]"]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn b24_a_stop_leaves_the_open_record_where_it_is() {
    let mut rig = Rig::new(json!({"multiline": "java"}));
    rig.append("a.log", "ok\nfailed\njava.lang.Error: x\n\tat a.B.c(B.java:1)\n");
    rig.run(SECOND);
    rig.stop();
    assert_eq!(rig.take_texts(), ["ok"]);
    rig.append("a.log", "\tat a.B.d(B.java:2)\nnext\n");
    rig.run(SECOND);
    let record = "failed\njava.lang.Error: x\n\tat a.B.c(B.java:1)\n\tat a.B.d(B.java:2)";
    assert_eq!(rig.take_texts(), [record]);
    // Delivered, but not acknowledged: it comes again as a whole.
    rig.settling = false;
    rig.append("a.log", "more\n\tx\nend\n");
    rig.run(SECOND);
    assert_eq!(rig.got, ["next", "more\n\tx"]);
    rig.crash();
    rig.settling = true;
    rig.run(6 * SECOND);
    assert_eq!(rig.take_texts(), ["next", "more\n\tx", "end"]);
}
#[test]
fn b24_once_takes_the_last_record() {
    let mut rig = Rig::new(json!({"multiline": {"start": r"^\["}}));
    rig.once = true;
    rig.append("a.log", "[1]\n a\n[2]\n b\n  half");
    assert!(rig.run_once());
    assert_eq!(rig.take_texts(), ["[1]\n a", "[2]\n b"]);
    assert_eq!(rig.row("a.log").acknowledged, 14);
}
#[test]
fn b24_more_open_records_than_descriptors() {
    let mut rig = Rig::new(json!({"multiline": {"start": r"^\["}, "max_open_files": 2}));
    for i in 0..10 {
        rig.append(&format!("{i}.log"), format!("[{i}]\n more\n"));
    }
    rig.run(30 * SECOND);
    let mut texts = rig.take_texts();
    texts.sort();
    assert_eq!(texts, (0..10).map(|i| format!("[{i}]\n more")).collect::<Vec<_>>());
}
#[test]
fn b25_the_tail_record_of_a_rotated_file_is_its_own() {
    for paths in ["{dir}/a.log", "{dir}/a.log*"] {
        let mut rig = Rig::new(json!({"paths": [paths], "multiline": {"continue": r"^\s"}}));
        rig.append("a.log", "1\n x\n2\n y\n");
        rig.run(SECOND);
        fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
        rig.append("a.log", " z\n3\n");
        rig.run(SECOND);
        rig.append("a.log.1", " late\n"); // by a writer that has it open
        rig.run(400 * SECOND);
        let mut texts = rig.take_texts();
        texts.sort();
        assert_eq!(texts, [" z", "1\n x", "2\n y\n late", "3"], "{paths}");
        assert_eq!(rig.restart_and_count(), 0);
    }
}
#[test]
fn b25_rotated_while_stopped_truncated_and_deleted() {
    let options = json!({"multiline": {"continue": r"^\s"}});
    let mut rig = Rig::new(options.clone());
    rig.append("a.log", "1\n x\n2\n y\n");
    rig.run(SECOND);
    rig.stop();
    fs::rename(rig.path("a.log"), rig.path("a.log.1")).unwrap();
    rig.append("a.log", " z\n");
    rig.run(6 * SECOND);
    let mut texts = rig.take_texts();
    texts.sort();
    assert_eq!(texts, [" z", "1\n x", "2\n y"]);
    // Deleted: what it holds is a record, and half a line belongs to it.
    let mut rig = Rig::new(options.clone());
    rig.append("a.log", "1\n x\n2\n y\n half");
    rig.run(SECOND);
    fs::remove_file(rig.path("a.log")).unwrap();
    rig.run(30 * SECOND);
    assert_eq!(rig.take_texts(), ["1\n x", "2\n y\n half"]);
    assert!(rig.open_files().is_empty());
    // Copytruncate: the open record is in the copy.
    let mut rig = Rig::new(options.clone());
    rig.append("a.log", "1 long enough to be known again\n x\n2\n y\n");
    rig.run(SECOND);
    fs::copy(rig.path("a.log"), rig.path("a.log.1")).unwrap();
    File::options()
        .write(true)
        .open(rig.path("a.log"))
        .unwrap()
        .set_len(0)
        .unwrap();
    rig.append("a.log", " z\n");
    rig.run(6 * SECOND);
    rig.run(30 * SECOND);
    let mut texts = rig.take_texts();
    texts.sort();
    assert_eq!(texts, [" z", "1 long enough to be known again\n x", "2\n y"]);
    assert_eq!(rig.count("bytes_lost"), 0);
    // Truncated, grown beyond, and no copy: the new content is read from its start, nothing is joined over the border, the loss is counted.
    let mut rig = Rig::new(options);
    rig.append("a.log", "only\n open\n");
    rig.run(SECOND);
    File::options()
        .write(true)
        .open(rig.path("a.log"))
        .unwrap()
        .set_len(0)
        .unwrap();
    rig.append("a.log", "new content\n that is longer\nend\n");
    rig.run(6 * SECOND);
    assert_eq!(rig.take_texts(), ["new content\n that is longer", "end"]);
    assert_eq!(rig.count("bytes_lost"), 11);
}
#[test]
fn start_end_begins_behind_the_last_line() {
    let mut rig = Rig::new(json!({"encoding": "utf-16le", "start": "end"}));
    rig.append("a.log", [&b"\xFF\xFE"[..], &little("old\nhalf ")].concat());
    rig.run(SECOND);
    rig.append("a.log", little("a line\nnew\n"));
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["half a line", "new"]);
}
#[test]
fn pod_and_container_come_from_the_path() {
    let mut rig = Rig::new(json!({"paths": ["{dir}/pods/*/*/*.log"], "framing": "cri"}));
    fs::create_dir_all(rig.path("pods/shop_web-0_0f3a/nginx")).unwrap();
    rig.append("pods/shop_web-0_0f3a/nginx/0.log", cri("stdout", "F", "x"));
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["x"]);
    assert_eq!(
        rig.tags,
        [
            ("namespace", "shop".to_owned()),
            ("pod", "web-0".into()),
            ("container", "nginx".into())
        ]
    );
    let id = "0123456789abcdef".repeat(4);
    let mut rig =
        Rig::new(json!({"paths": ["{dir}/containers/*/*-json.log"], "framing": "docker", "keep_fields": true}));
    fs::create_dir_all(rig.path(&format!("containers/{id}"))).unwrap();
    rig.append(&format!("containers/{id}/{id}-json.log"), docker("stderr", "y\n"));
    rig.run(SECOND);
    assert_eq!(
        rig.take_texts(),
        [r#"{"time":"2026-11-25T10:00:00.1Z","stream":"stderr","message":"y"}"#]
    );
    assert_eq!(rig.tags, [("container_id", id)]);
}
#[test]
fn lines_of_another_form_are_given_out_and_counted() {
    let mut rig = Rig::new(json!({"framing": "docker"}));
    rig.append(
        "a.log",
        docker("stdout", "half, ") + "what is this\n" + &docker("stdout", "whole\n"),
    );
    rig.run(SECOND);
    assert_eq!(rig.take_texts(), ["half, whole", "what is this"]);
    assert_eq!(rig.count("lines_malformed"), 1);
}
