//! A panic at every step of every output, and of `valid`: what is there after the retry is exact.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
#![cfg(feature = "failpoints")]
mod outputs_kit;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::Stdio,
};

use fail::FailScenario;
use luffly_agent::{
    model::Batch,
    plugins::{Table, filters, outputs::Output},
};
use outputs_kit::*;
use serde_json::json;

/// As a Sink does it: a panic is a fall, after which the same front is written again. Answers how often it fell.
fn write_through_falls(output: &mut dyn Output, batches: &[Batch]) -> usize {
    let (mut done, mut falls) = (0, 0);
    while done < batches.len() {
        match catch_unwind(AssertUnwindSafe(|| output.write(&batches[done..]))) {
            Ok(written) => done += written.batches,
            Err(_) => falls += 1,
        }
        assert!(falls < 10_000);
    }
    falls
}

/// `fail` keeps one table for the process: so one test for all that use it.
#[test]
fn every_step_may_fall() {
    let scenario = FailScenario::setup();
    let every_third = |point| fail::cfg(point, "2*off->1*panic->1*off->1*panic->3*off->1*panic->off").unwrap();

    // More batches than one writev takes: there is a step between two writes.
    let batches = numbered(0, 3000, "logr");
    // (As json they are copied together: one write a call, and fewer steps.)
    for (encode, expected) in [("raw", 3), ("json", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let mut out = logr(json!({ "path": path, "encode": encode }));
        every_third("logr-write");
        let falls = write_through_falls(&mut *out, &batches);
        assert_eq!(falls, expected, "{encode}");
        match encode {
            "raw" => assert_eq!(text(&path), lines(&batches)),
            _ => {
                let numbers = text(&path).lines().map(number).collect::<Vec<_>>();
                assert_eq!(numbers, (0..3000).collect::<Vec<_>>());
            }
        }
    }
    // The front falls for ever and goes to the dead letter: nothing of it stays.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.log");
    let mut out = logr(json!({ "path": path }));
    write_through_falls(&mut *out, &batches[..1]);
    fail::cfg("logr-write", "1*off->panic").unwrap(); // falls behind the first write
    for _ in 0..3 {
        assert!(catch_unwind(AssertUnwindSafe(|| out.write(&batches[1..3]))).is_err());
    }
    fail::remove("logr-write");
    write_through_falls(&mut *out, &batches[2..4]);
    assert_eq!(text(&path), "0 logr\n2 logr\n3 logr\n");
    // Half out, then replaced by a reload: the heir begins at a border.
    fail::cfg("logr-write", "1*off->panic").unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| out.write(&batches[4..5]))).is_err());
    fail::remove("logr-write");
    drop(out);
    write_through_falls(&mut *logr(json!({ "path": path })), &batches[4..6]);
    assert_eq!(text(&path), "0 logr\n2 logr\n3 logr\n4 logr\n5 logr\n");

    // An error that goes away.
    fail::cfg("logr-write", "1*return->1*off->1*return->off").unwrap();
    let mut out = logr(json!({ "path": path }));
    assert!(
        retry(out.write(&batches[6..7]))
            .1
            .ends_with("app.log: no space left on device")
    );
    write_through_falls(&mut *out, &batches[6..8]);
    assert_eq!(text(&path).lines().count(), 7);
    drop(out);

    // Each step of a rotation falls once, in each of many rotations.
    for step in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let options = json!({ "path": path, "max_size": "100B", "keep": 4, "compress": true });
        let mut out = logr(options);
        let batches = numbered(0, 60, &"r".repeat(40));
        let mut falls = 0;
        for (i, batch) in batches.iter().enumerate() {
            if i % 7 == 3 {
                fail::cfg("logr-rotate", &format!("{step}*off->1*panic->off")).unwrap();
            }
            falls += write_through_falls(&mut *out, std::slice::from_ref(batch));
            assert!(history(&path).len() <= 4 + 1, "bound at {i}, step {step}");
        }
        fail::remove("logr-rotate");
        assert!(falls >= 8, "step {step}: {falls}");
        drop(out);
        let text = whole_text(&path);
        let last = text.lines().count();
        assert!((9..=10).contains(&last), "step {step}: {last}");
        assert_eq!(text, lines(&batches[60 - last..]), "step {step}");
    }

    // A fall between two writes costs nothing, one of the thread that dials is a failure like others.
    for encode in ["raw", "json"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peer = std::thread::spawn(move || {
            let mut all = vec![];
            std::io::Read::read_to_end(&mut listener.accept().unwrap().0, &mut all).unwrap();
            all
        });
        let mut out = build(
            "tcp",
            json!({ "addresses": [address], "encode": encode }),
            context("p", &clock()),
        );
        fail::cfg("tcp-dial", "2*panic->off").unwrap();
        // As a Sink gives them, in six calls: so there are six writes at least, however much the kernel takes at once.
        fail::cfg("tcp-write", "1*panic->1*off->1*panic->1*off->1*panic->off").unwrap();
        let falls = batches
            .chunks(500)
            .map(|some| write_through_falls(&mut *out, some))
            .sum::<usize>();
        assert_eq!(falls, 3, "{encode}");
        out.close().unwrap();
        let got = String::from_utf8(peer.join().unwrap()).unwrap();
        match encode {
            "raw" => assert_eq!(got, lines(&batches)),
            _ => assert_eq!(
                got.lines().map(number).collect::<Vec<_>>(),
                (0..3000).collect::<Vec<_>>()
            ),
        }
    }

    let mut null = build("null", json!({}), context("p", &clock()));
    every_third("null-write");
    assert_eq!(
        (0..8)
            .map(|_| write_through_falls(&mut *null, &batches[..1]))
            .sum::<usize>(),
        3
    );

    fail::cfg("filter-valid", "1*panic->off").unwrap();
    let valid = filters::CATALOG.iter().find(|p| p.name == "valid").unwrap();
    let mut valid = (valid.build)(&Table::default(), filter_context(&clock())).unwrap();
    let mut dropped = filters::Dropped::new();
    let some = events(["a", "", "b"]);
    assert!(catch_unwind(AssertUnwindSafe(|| valid.apply(some.clone(), &mut dropped))).is_err());
    assert!(dropped.is_empty());
    assert_eq!(
        (valid.apply(some, &mut dropped).len(), &dropped[..]),
        (2, &[("empty", 1)][..])
    );
    scenario.teardown();
}
fn number(line: &str) -> u64 {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["message"]
        .as_str()
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}
#[test]
fn stdout_goes_on_behind_what_was_out_when_it_fell() {
    let batches = numbered(0, 3000, "stdout");
    if child_dir().is_some() {
        let scenario = FailScenario::setup();
        let mut out = build("stdout", json!({}), context("p", &clock()));
        fail::cfg("stdout-write", "2*off->1*panic->1*off->1*panic->off").unwrap();
        let falls = write_through_falls(&mut *out, &batches);
        assert_eq!(falls, 2);
        return scenario.teardown();
    }
    let dir = tempfile::tempdir().unwrap();
    let child = child("stdout_goes_on_behind_what_was_out_when_it_fell", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert!(child.status.success());
    let said = String::from_utf8(child.stdout).unwrap();
    // The harness says its own before and after.
    let start = said.find("0 stdout\n").unwrap();
    assert!(said[start..].starts_with(&lines(&batches)), "{}", said.len());
    assert_eq!(said.matches(" stdout\n").count(), 3000);
}
