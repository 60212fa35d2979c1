//! What the tests of the outputs share: batches with known contents, and a context.
use std::{path::PathBuf, sync::Arc};

use super::*;
use crate::{
    clock::{Clock, ManualClock},
    model::{Events, Lane, Origin},
};

pub fn host() -> Arc<Host> {
    Arc::new(Host {
        agent_id: "sky01".into(),
        group: "net01".into(),
        hostname: "h1".into(),
        ip: [127, 0, 0, 1].into(),
        instance: String::new(),
    })
}
/// 2026-11-23 10:15:00.25 UTC.
pub fn clock() -> Arc<ManualClock> {
    ManualClock::at("2026-11-23T10:15:00.25Z".parse().unwrap())
}
pub fn context(clock: Arc<ManualClock>) -> OutputContext {
    OutputContext {
        pipeline: "p".into(),
        label: "logr".into(),
        host: host(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock,
    }
}
fn events(contents: &[&str]) -> Events {
    let (mut bytes, mut ends) = (String::new(), Vec::new());
    for content in contents {
        bytes.push_str(content);
        bytes.push('\n');
        ends.push(bytes.len() as u32);
    }
    Events::new(bytes.into(), ends)
}
/// Of one lane for all tests; read when `clock` begins.
pub fn batch(seq: u64, contents: &[&str]) -> Batch {
    static LANE: std::sync::OnceLock<Lane> = std::sync::OnceLock::new();
    Batch {
        lane: *LANE.get_or_init(Lane::fresh),
        seq,
        low: 0,
        events: events(contents),
        origin: Arc::new(Origin {
            host: host(),
            path: None,
            tags: Vec::new(),
        }),
        offset: 0,
        read_at: clock().wall(),
        outcome: Default::default(),
    }
}
pub fn batch_from(seq: u64, path: impl Into<PathBuf>, contents: &[&str]) -> Batch {
    let origin = Arc::new(Origin {
        host: host(),
        path: Some(path.into()),
        tags: Vec::new(),
    });
    Batch {
        origin,
        ..batch(seq, contents)
    }
}
