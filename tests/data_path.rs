//! The data path as a whole, in one process: whatever falls, exactly the input, in order, at every output that blocks; and every event
//! accounted for at those that drop.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::sync::atomic::Ordering::SeqCst;

use kit::house::*;
use luffly_agent::settings::WhenFull::*;

fn plan(input: Numbers, dice: &Dice, outputs: Vec<(Memory, luffly_agent::settings::WhenFull)>) -> Plan {
    let outputs = outputs
        .into_iter()
        .map(|(memory, when_full)| (memory, when_full, when_full))
        .collect();
    let filter = Through {
        dice: dice.clone(),
        deadly: [].into(),
    };
    Plan {
        input,
        filter,
        outputs,
        read_size: 64,
        write_size: 64,
        memory: 1 << 20,
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
        house.sinks[1]
            .send(luffly_agent::messages::collect::ObserveSink)
            .await
            .unwrap()
            .breaker
            != "closed"
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
