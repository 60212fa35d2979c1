//! Inputs that fall while they read: nothing is lost and nothing doubled. On its own, for failpoints belong to the whole process.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
#![cfg(feature = "failpoints")]
mod kit {
    #[allow(dead_code, reason = "the other tests use the rest of it")]
    pub mod files;
}

use std::{
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use kit::files::{Rig, lines};
use luffly_agent::{
    model::units::Size,
    plugins::{
        framing::{OnLongLine, Rules},
        inputs::{Input, Next, Want, stdin::Stdin},
    },
};
use serde_json::json;

fn fall_each_third_time(point: &str) {
    let calls = AtomicUsize::new(0);
    fail::cfg_callback(point, move || {
        assert!(!calls.fetch_add(1, Relaxed).is_multiple_of(3), "a fall")
    })
    .unwrap();
}
#[test]
fn files() {
    let _scenario = fail::FailScenario::setup();
    let mut rig = Rig::new(json!({}));
    for id in ["a", "b", "c"] {
        rig.append(&format!("{id}.log"), lines(id, 1..=50_000));
    }
    fall_each_third_time("file-read");
    let falls = rig.run_through_falls(Duration::from_secs(1));
    fail::remove("file-read");
    rig.run(Duration::from_secs(1));
    assert!(falls > 3, "{falls}");
    rig.judge(&[("a", 1..=50_000), ("b", 1..=50_000), ("c", 1..=50_000)]);
    assert_eq!(rig.restart_and_count(), 0);
}
#[test]
fn standard_input() {
    let _scenario = fail::FailScenario::setup();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let text = lines("a", 1..=200_000);
    let sent = text.clone() + "the end";
    let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
    let rules = Rules::new(Size(1 << 18), OnLongLine::Cut).unwrap();
    let mut stdin = Stdin::over(reader.into(), rules, Rig::new(json!({})).context());
    fall_each_third_time("stdin-read");
    let want = Want {
        chunks: 4,
        bytes: 1 << 20,
    };
    let (mut chunks, mut falls) = (Vec::new(), 0);
    loop {
        match catch_unwind(AssertUnwindSafe(|| stdin.read(want, &mut chunks).unwrap())) {
            Ok(Next::Ended) => break,
            Ok(_) => {}
            Err(_) => falls += 1,
        }
    }
    writing.join().unwrap();
    assert!(falls > 3);
    let got = chunks
        .iter()
        .map(|chunk| chunk.events.buffer().as_ref())
        .collect::<Vec<_>>()
        .concat();
    assert!(got == (text + "the end\n").into_bytes());
}
