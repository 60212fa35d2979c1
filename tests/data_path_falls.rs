//! The data path in one process, with `--features failpoints`: each actor falls at each of its points, in ten of a hundred passes. Exactly
//! the input, in order, at every output that blocks; each event accounted for, once, at all.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use kit::house::*;
use luffly_agent::settings::WhenFull::*;

/// Failpoints belong to the whole process: one test at a time.
fn alone() -> (MutexGuard<'static, ()>, fail::FailScenario<'static>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    (guard, fail::FailScenario::setup())
}

async fn falls_at(points: &[&str], share: u32) {
    for point in points {
        fail::cfg(*point, &format!("{share}%panic")).unwrap();
    }
    let (n, [a, b, c]) = (4_000, <[Target; 3]>::default());
    let sure = |target: &Target| Memory::new(target, &Dice::never(), &Dice::never());
    let filter = Through::default();
    let calls = filter.calls.clone();
    let house = House::build(Plan {
        input: Box::new(Numbers::new(n, 10, &Dice::never())),
        around: [None, None],
        filter,
        outputs: vec![
            (sure(&a), Block, Block),
            (sure(&b), Block, Block),
            (sure(&c), DropNewest, DropNewest),
        ],
        read_size: 64,
        write_size: 64,
        memory: 1 << 20,
        retry: Duration::from_millis(4),
        losses: Dice::never(),
    });
    house.ended().await;
    until("nothing waits", async || house.waiting().await == [0, 0, 0]).await;
    for point in points {
        fail::remove(*point);
    }
    let falls = house.falls();
    println!(
        "{points:?}: {falls} falls, {} batches sent again",
        house.meter.resent.get()
    );
    assert!(falls > 3, "{points:?}: {falls} falls");
    let text = house.metrics.text();
    for (cause, _) in house.pulses.iter().flat_map(|p| p.causes()) {
        assert!(
            points.iter().any(|point| cause.contains(point)),
            "fell for another cause: {cause}"
        );
        assert!(
            text.contains(&format!("cause=\"{cause}\"")),
            "{cause} is not in the metrics"
        );
    }
    house.conserved().await;
    for (name, target) in [("first", &a), ("second", &b)] {
        assert!(
            target.numbers().into_iter().eq(0..n),
            "{points:?}: at the {name} output"
        );
    }
    let got = c.numbers();
    assert!(got.is_sorted_by(|a, b| a < b), "{points:?}: doubled or out of order");
    assert_eq!(got.len() as u64 + house.meters[2].all_dropped(), n, "{points:?}");
    let calls = calls.lock().unwrap();
    assert_eq!(
        (calls.len() as u64, calls.values().max()),
        (n, Some(&1)),
        "{points:?}: filtered once"
    );
}

#[actix_rt::test]
async fn every_actor_falls_at_every_point() {
    let _alone = alone();
    for point in [
        "collector-read",
        "collector-send",
        "collector-settle",
        "filter-hear",
        "filter-send",
        "sink-hear",
        "sink-take",
        "sink-settle",
    ] {
        falls_at(&[point], 10).await;
    }
}
#[actix_rt::test]
async fn all_of_them_fall() {
    let _alone = alone();
    let points = [
        "collector-read",
        "collector-send",
        "collector-settle",
        "filter-hear",
        "filter-send",
        "sink-hear",
        "sink-take",
        "sink-settle",
    ];
    falls_at(&points, 4).await;
}
