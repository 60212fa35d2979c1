//! The data path as a whole, in one process: whatever falls, exactly the input, in order, at every output that blocks; and every event
//! accounted for at those that drop.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use kit::house::*;
use luffly_agent::{
    messages::{
        collect::{Hurry, ObserveSink, SyncNow},
        control::Drain,
    },
    model::{Chunk, Events, Origin},
    plugins::{
        Table, filters,
        inputs::{Input, InputError, Next, Want},
    },
    settings::WhenFull::*,
};

fn plan(input: impl Input + 'static, dice: &Dice, outputs: Vec<(Memory, luffly_agent::settings::WhenFull)>) -> Plan {
    let outputs = outputs
        .into_iter()
        .map(|(memory, when_full)| (memory, when_full, when_full))
        .collect();
    let filter = Through {
        dice: dice.clone(),
        ..Through::default()
    };
    Plan {
        input: Box::new(input),
        around: [None, None],
        filter,
        outputs,
        read_size: 64,
        write_size: 64,
        memory: 1 << 20,
        retry: Duration::from_millis(4),
        losses: Dice::never(),
    }
}

#[actix_rt::test]
async fn exactly_the_input_in_order_though_every_plugin_panics() {
    for seed in 1..=4 {
        let (n, dice, errs) = (4_000, Dice::new(seed, 40), Dice::new(seed + 100, 20));
        let (a, b) = (Target::default(), Target::default());
        let outputs = vec![
            (Memory::new(&a, &dice, &errs), Block),
            (Memory::new(&b, &dice, &Dice::never()), Block),
        ];
        let house = House::build(plan(Numbers::new(n, 10, &dice), &dice, outputs));
        house.ended().await;
        house.conserved().await;
        let letters = std::fs::read_to_string(&house.letters)
            .unwrap_or_default()
            .lines()
            .count() as u64;
        for (target, meter) in [(&a, &house.meters[0]), (&b, &house.meters[1])] {
            let got = target.numbers();
            assert_eq!(got.len() as u64 + meter.all_dead(), n);
            assert!(got.is_sorted_by(|a, b| a < b), "nothing doubled, nothing out of order");
        }
        assert!(
            letters <= house.meters.iter().map(|m| m.all_dead()).sum(),
            "what is dead stands in the dead letter"
        );
        assert!(house.falls() > 10, "{} falls", house.falls());
    }
}

#[actix_rt::test]
async fn an_event_that_always_panics_the_filter_goes_alone() {
    let (n, a, b) = (1_000, Target::default(), Target::default());
    let outputs = vec![
        (Memory::new(&a, &Dice::never(), &Dice::never()), Block),
        (Memory::new(&b, &Dice::never(), &Dice::never()), DropNewest),
    ];
    let mut plan = plan(Numbers::new(n, 50, &Dice::never()), &Dice::never(), outputs);
    plan.filter.deadly = ["77", "78", "500"].into();
    plan.write_size = 100_000;
    let house = House::build(plan);
    house.ended().await;
    until("the dropping one is done", async || house.waiting().await == [0, 0]).await;
    house.conserved().await;
    let expected = (0..n).filter(|n| ![77, 78, 500].contains(n)).collect::<Vec<_>>();
    assert_eq!(a.numbers(), expected);
    assert_eq!(b.numbers(), expected);
    assert_eq!(house.meters.iter().map(|m| m.all_dead()).collect::<Vec<_>>(), [3, 3]);
    let letters = std::fs::read_to_string(&house.letters).unwrap();
    assert_eq!(letters.lines().count(), 3);
    for deadly in ["77", "78", "500"] {
        assert!(
            letters
                .lines()
                .any(|l| l.contains(&format!("\"{deadly}\"")) && l.contains("panic")),
            "{deadly}: {letters}"
        );
    }
}

#[actix_rt::test]
async fn an_output_that_always_panics_ends_in_the_dead_letter_and_holds_nobody_up_for_ever() {
    let (n, a, b) = (30, Target::default(), Target::default());
    let outputs = vec![
        (Memory::new(&a, &Dice::never(), &Dice::never()), Block),
        (Memory::new(&b, &Dice::new(1, 1), &Dice::never()), Block),
    ];
    let house = House::build(plan(Numbers::new(n, 10, &Dice::never()), &Dice::never(), outputs));
    house.ended().await;
    house.conserved().await;
    assert_eq!((a.len() as u64, b.len(), house.meters[1].all_dead()), (n, 0, n));
    assert_eq!(
        std::fs::read_to_string(&house.letters).unwrap().lines().count() as u64,
        n
    );
}

#[actix_rt::test]
async fn a_dead_output_that_drops_holds_nobody_up_and_every_event_is_accounted_for() {
    for policy in [DropNewest, DropOldest] {
        let (n, a, b) = (10_000, Target::default(), Target::default());
        b.0.broken.store(true, SeqCst);
        let outputs = vec![
            (Memory::new(&a, &Dice::never(), &Dice::never()), Block),
            (Memory::new(&b, &Dice::never(), &Dice::never()), policy),
        ];
        let house = House::build(plan(Numbers::new(n, 10, &Dice::never()), &Dice::never(), outputs));
        house.ended().await;
        house.conserved().await;
        assert_eq!(a.len() as u64, n);
        assert_eq!(house.meters[1].delivered.get(), 0);
        let waiting = house.waiting().await[1];
        assert!(
            (1..=80).contains(&waiting),
            "{waiting} wait, bounded by 64 and the batch that is being written"
        );
        b.0.broken.store(false, SeqCst);
        until("it has caught up", async || house.waiting().await[1] == 0).await;
        house.conserved().await;
        let (got, dropped) = (b.numbers(), house.meters[1].all_dropped());
        assert_eq!(got.len() as u64 + dropped, n);
        assert!(got.is_sorted_by(|a, b| a < b));
        match policy {
            DropNewest => assert_eq!(got, (0..got.len() as u64).collect::<Vec<_>>()),
            _ => assert_eq!(got.last(), Some(&(n - 1)), "the newest are kept"),
        }
    }
}

#[actix_rt::test]
async fn a_blocking_output_that_is_broken_holds_all_back_and_loses_nothing() {
    let (n, a, b) = (5_000, Target::default(), Target::default());
    b.0.broken.store(true, SeqCst);
    let outputs = vec![
        (Memory::new(&a, &Dice::never(), &Dice::never()), Block),
        (Memory::new(&b, &Dice::never(), &Dice::never()), Block),
    ];
    let house = House::build(plan(Numbers::new(n, 10, &Dice::never()), &Dice::never(), outputs));
    until("the breaker is open", async || {
        house.sinks[1].send(ObserveSink).await.unwrap().breaker != "closed"
    })
    .await;
    let held = a.len();
    assert!(
        held < 1_000,
        "{held} went on to the healthy one: more than the queues hold"
    );
    house.conserved().await;
    b.0.broken.store(false, SeqCst);
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..n) && b.numbers().into_iter().eq(0..n));
}

#[actix_rt::test]
async fn an_output_that_degrades_drops_only_while_it_is_broken() {
    let (n, a, b) = (20_000, Target::default(), Target::default());
    b.0.broken.store(true, SeqCst);
    let mut plan = plan(
        Numbers::new(n, 10, &Dice::never()),
        &Dice::never(),
        vec![
            (Memory::new(&a, &Dice::never(), &Dice::never()), Block),
            (Memory::new(&b, &Dice::never(), &Dice::never()), Block),
        ],
    );
    plan.outputs[1].2 = DropOldest;
    let house = House::build(plan);
    until("it has dropped some", async || house.meters[1].all_dropped() > 100).await;
    b.0.broken.store(false, SeqCst);
    house.ended().await;
    until("the queue is written", async || house.waiting().await == [0, 0]).await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..n));
    assert!(b.numbers().is_sorted_by(|a, b| a < b));
    assert_eq!(b.len() as u64 + house.meters[1].all_dropped(), n);
}

/// An output that never falls and never fails of itself.
fn sure(target: &Target) -> Memory {
    Memory::new(target, &Dice::never(), &Dice::never())
}

#[actix_rt::test]
async fn filtered_once_though_it_comes_again() {
    for seed in 1..=4 {
        let (n, a, b) = (5_000, Target::default(), Target::default());
        let mut plan = plan(
            Numbers::new(n, 10, &Dice::never()),
            &Dice::never(),
            vec![(sure(&a), Block), (sure(&b), DropNewest)],
        );
        (plan.losses, plan.write_size) = (Dice::new(seed, 15), 100_000);
        let calls = plan.filter.calls.clone();
        let house = House::build(plan);
        house.ended().await;
        until("the dropping one is done", async || house.waiting().await == [0, 0]).await;
        house.conserved().await;
        assert!(a.numbers().into_iter().eq(0..n) && b.numbers().into_iter().eq(0..n));
        assert!(
            house.meter.resent.get() > 50,
            "{} batches came again",
            house.meter.resent.get()
        );
        let calls = calls.lock().unwrap();
        assert_eq!((calls.len() as u64, calls.values().max()), (n, Some(&1)));
    }
}

/// Gives chunks of one event each, over buffers that are counted while they live.
struct Large {
    chunks: u64,
    size: usize,
    read: Arc<AtomicU64>,
    live: Arc<AtomicUsize>,
    at: u64,
}
impl Large {
    fn new(chunks: u64, size: usize) -> Self {
        Self {
            chunks,
            size,
            read: Arc::default(),
            live: Arc::default(),
            at: 0,
        }
    }
}
struct Tracked(Vec<u8>, Arc<AtomicUsize>);
impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl Drop for Tracked {
    fn drop(&mut self) {
        self.1.fetch_sub(1, SeqCst);
    }
}
impl Input for Large {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        let mut room = want.bytes;
        for i in 0..want.chunks {
            if self.at == self.chunks {
                return Ok(Next::Ended);
            }
            if i > 0 && room < self.size {
                break;
            }
            room = room.saturating_sub(self.size);
            let number = self.at.to_string();
            let text = "0".repeat(self.size - 1 - number.len()) + &number + "\n";
            self.live.fetch_add(1, SeqCst);
            let bytes = Bytes::from_owner(Tracked(text.into_bytes(), self.live.clone()));
            let origin = Origin {
                host: host(),
                path: None,
                tags: Vec::new(),
            };
            into.push(Chunk {
                events: Events::new(bytes, vec![self.size as u32]),
                origin: Arc::new(origin),
                offset: self.at,
                read_at: jiff::Timestamp::UNIX_EPOCH,
                mark: None,
            });
            self.at += 1;
            self.read.fetch_add(self.size as u64, SeqCst);
        }
        Ok(Next::More)
    }
    fn rewinds(&self) -> bool {
        false
    }
}

#[actix_rt::test]
async fn nothing_is_kept_of_what_is_settled() {
    for losses in [Dice::never(), Dice::new(7, 10)] {
        let (n, a, b) = (500, Target::default(), Target::default());
        let input = Large::new(n, 1000);
        let live = input.live.clone();
        let mut plan = plan(input, &Dice::never(), vec![(sure(&a), Block), (sure(&b), DropOldest)]);
        (plan.losses, plan.write_size) = (losses, 100_000);
        let house = House::build(plan);
        house.ended().await;
        until("the dropping one is done", async || house.waiting().await == [0, 0]).await;
        assert!(a.numbers().into_iter().eq(0..n) && b.numbers().into_iter().eq(0..n));
        until("the last write has let go", async || live.load(SeqCst) == 0).await;
    }
}

#[actix_rt::test]
async fn memory_bounds_what_a_blocked_pipeline_holds() {
    // One event larger than all the memory passes alone; without a bound by bytes there would be 16 batches, the window.
    for (memory, batches) in [(64 << 10, 1), (1 << 20, 4), (1536 << 10, 7), (64 << 20, 16)] {
        let (n, size, a) = (40, 200_000, Target::default());
        a.0.broken.store(true, SeqCst);
        let input = Large::new(n, size);
        let read = input.read.clone();
        let mut plan = plan(input, &Dice::never(), vec![(sure(&a), Block)]);
        plan.memory = memory;
        let house = House::build(plan);
        until("the breaker is open", async || {
            house.sinks[0].send(ObserveSink).await.unwrap().breaker != "closed"
        })
        .await;
        // Longer than the input is tended with a full window: also then nothing more is read.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(read.load(SeqCst), batches * size as u64, "of {memory} bytes");
        house.conserved().await;
        a.0.broken.store(false, SeqCst);
        house.ended().await;
        house.conserved().await;
        assert!(a.numbers().into_iter().eq(0..n));
    }
}

#[actix_rt::test]
async fn an_output_that_hangs_and_drops_holds_nobody_up() {
    for policy in [DropNewest, DropOldest] {
        let (n, a, b) = (10_000, Target::default(), Target::default());
        b.0.hangs.store(true, SeqCst);
        let outputs = vec![(sure(&a), Block), (sure(&b), policy)];
        let house = House::build(plan(Numbers::new(n, 10, &Dice::never()), &Dice::never(), outputs));
        house.ended().await;
        assert!(
            a.numbers().into_iter().eq(0..n),
            "the healthy one has all while the other hangs"
        );
        house.conserved().await;
        let waiting = house.waiting().await[1];
        // Its room, and what was taken into the write that hangs.
        assert!((1..=64 + 640).contains(&waiting), "{waiting} wait");
        b.0.hangs.store(false, SeqCst);
        until("it has caught up", async || house.waiting().await[1] == 0).await;
        house.conserved().await;
        let got = b.numbers();
        assert_eq!(got.len() as u64 + house.meters[1].all_dropped(), n);
        assert!(got.is_sorted_by(|a, b| a < b));
        if policy == DropOldest {
            assert_eq!(got.last(), Some(&(n - 1)), "the newest are kept");
        }
    }
}
#[actix_rt::test]
async fn an_output_that_hangs_and_blocks_loses_nothing() {
    let (n, a, b) = (5_000, Target::default(), Target::default());
    b.0.hangs.store(true, SeqCst);
    let outputs = vec![(sure(&a), Block), (sure(&b), Block)];
    let house = House::build(plan(Numbers::new(n, 10, &Dice::never()), &Dice::never(), outputs));
    until("something waits", async || house.waiting().await[1] > 64).await;
    let answered = tokio::time::timeout(Duration::from_secs(5), house.conserved()).await;
    answered.expect("questions are answered meanwhile");
    b.0.hangs.store(false, SeqCst);
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..n) && b.numbers().into_iter().eq(0..n));
}

#[actix_rt::test]
async fn a_sync_is_answered_while_writes_go_on_and_holds_none_up() {
    let a = Target::default();
    let house = House::build(plan(
        Numbers::new(u64::MAX, 10, &Dice::never()),
        &Dice::never(),
        vec![(sure(&a), Block)],
    ));
    let limit = Duration::from_secs(10);
    for n in 1..=20 {
        let before = a.len();
        until("something was written", async || a.len() > before).await;
        let answer = tokio::time::timeout(limit, house.sinks[0].send(SyncNow)).await;
        assert_eq!(answer.unwrap().unwrap(), Ok(()));
        assert_eq!(a.0.syncs.load(SeqCst), n);
    }
    a.0.syncs_hang.store(true, SeqCst);
    let asked = [house.sinks[0].send(SyncNow), house.sinks[0].send(SyncNow)].map(actix_rt::spawn);
    let before = a.len();
    until("writes go on beside a sync that hangs", async || {
        a.len() > before + 5_000
    })
    .await;
    assert!(asked.iter().all(|asked| !asked.is_finished()));
    a.0.syncs_hang.store(false, SeqCst);
    for asked in asked {
        let answer = tokio::time::timeout(limit, asked).await;
        assert_eq!(answer.unwrap().unwrap().unwrap(), Ok(()));
    }
    house.collector.send(Drain).await.unwrap();
}

#[actix_rt::test]
async fn a_collector_drains_though_its_input_never_ends() {
    let (a, b) = (Target::default(), Target::default());
    let outputs = vec![(sure(&a), Block), (sure(&b), DropNewest)];
    let house = House::build(plan(
        Numbers::new(u64::MAX, 10, &Dice::never()),
        &Dice::never(),
        outputs,
    ));
    until("some have gone through", async || a.len() > 1_000).await;
    let drained = tokio::time::timeout(Duration::from_secs(10), house.collector.send(Drain)).await;
    drained.expect("it hangs").unwrap();
    let read = house.meter.events_in.get();
    assert!(a.numbers().into_iter().eq(0..read), "what was read is delivered");
    for sink in &house.sinks {
        tokio::time::timeout(Duration::from_secs(10), sink.send(Drain))
            .await
            .expect("it hangs")
            .unwrap();
    }
    assert_eq!(house.waiting().await, [0, 0]);
    house.conserved().await;
    assert_eq!(house.meter.events_in.get(), read, "nothing was read any more");
    // Asked again, the answer is there.
    house.collector.send(Drain).await.unwrap();
}

#[actix_rt::test]
async fn a_stop_during_the_wait_for_a_retry_is_prompt() {
    let (n, a) = (2_000, Target::default());
    a.0.broken.store(true, SeqCst);
    let mut plan = plan(
        Numbers::new(n, 10, &Dice::never()),
        &Dice::never(),
        vec![(sure(&a), Block)],
    );
    plan.retry = Duration::from_secs(3600);
    let house = House::build(plan);
    until("it waits for its next try", async || house.meters[0].retries.get() > 0).await;
    house.stopping.begin();
    house.sinks[0].send(Hurry).await.unwrap();
    // Still broken: from now on it tries often.
    until("more tries", async || house.meters[0].retries.get() > 3).await;
    a.0.broken.store(false, SeqCst);
    let began = Instant::now();
    house.collector.send(Drain).await.unwrap();
    house.filter.send(Drain).await.unwrap();
    house.sinks[0].send(Drain).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..house.meter.events_in.get()));
}

#[actix_rt::test]
async fn an_output_that_drops_stays_bounded_though_it_is_told_to_block_while_broken() {
    let (n, a, b) = (10_000, Target::default(), Target::default());
    b.0.broken.store(true, SeqCst);
    let mut plan = plan(
        Numbers::new(n, 10, &Dice::never()),
        &Dice::never(),
        vec![(sure(&a), Block), (sure(&b), DropNewest)],
    );
    plan.outputs[1].2 = Block;
    let house = House::build(plan);
    house.ended().await;
    house.conserved().await;
    let waiting = house.waiting().await[1];
    assert!(
        (1..=80).contains(&waiting),
        "{waiting} wait, bounded by 64 and the batch that is being written"
    );
    assert_eq!(a.len() as u64, n);
}

fn filter(name: &str, options: serde_json::Value) -> Option<Box<dyn filters::Filter>> {
    let plugin = filters::CATALOG.iter().find(|p| p.name == name).unwrap();
    let context = filters::FilterContext {
        pipeline: "t".into(),
        label: name.into(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: luffly_agent::clock::system(),
        tally: Arc::new(luffly_agent::plugins::inputs::NoTally),
    };
    let table = Table(options.as_object().unwrap().clone());
    Some((plugin.build)(&table, context).unwrap())
}
/// A filter between two that remember falls: by chance, or over each batch of more than three events until it is halved. What they
/// remember of a pass that came to nothing would make the next one lose events.
#[actix_rt::test]
async fn filters_that_remember_count_a_batch_once_though_their_neighbour_falls() {
    for (dice, most, n) in [(Dice::new(5, 7), None, 3_000), (Dice::never(), Some(3), 300)] {
        let target = Target::default();
        let outputs = vec![(Memory::new(&target, &Dice::never(), &Dice::never()), Block)];
        let mut plan = plan(Numbers::new(n, 10, &Dice::never()), &dice, outputs);
        plan.filter.most = most;
        plan.around = [
            filter("sample", serde_json::json!({ "every": 3 })),
            filter("dedupe", serde_json::json!({ "key_pattern": "^(\\d*)\\d$" })),
        ];
        let house = House::build(plan);
        house.ended().await;
        house.conserved().await;
        assert!(house.falls() > 10, "{} falls", house.falls());
        assert_eq!(house.meters[0].all_dead(), 0);
        // The first multiple of three in each ten.
        let mut seen = std::collections::HashSet::new();
        let expected = (0..n).step_by(3).filter(|n| seen.insert(n / 10)).collect::<Vec<_>>();
        assert_eq!(target.numbers(), expected);
    }
}
