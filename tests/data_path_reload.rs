//! What a reload does to the data path, in one process: plugins are replaced, outputs join and leave, edges are wired anew while batches
//! are under way and everything falls. Exactly the input, in order, at every output that stays.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use kit::house::*;
use luffly_agent::{actors::collect::filter_stage::NextFilter, settings::WhenFull::*};

fn sure(target: &Target) -> Memory {
    Memory::new(target, &Dice::never(), &Dice::never())
}
fn plan(n: u64, dice: &Dice, outputs: Vec<Memory>) -> Plan {
    Plan {
        input: Box::new(Numbers::new(n, 10, dice)),
        around: [None, None],
        filter: Through {
            dice: dice.clone(),
            ..Through::default()
        },
        outputs: outputs.into_iter().map(|output| (output, Block, Block)).collect(),
        read_size: 64,
        write_size: 64,
        memory: 1 << 20,
        retry: Duration::from_millis(4),
        losses: Dice::never(),
    }
}
const N: u64 = 20_000;

#[actix_rt::test]
async fn replaced_again_and_again_while_everything_panics() {
    for seed in 1..=3 {
        let (dice, errs) = (Dice::new(seed, 60), Dice::new(seed + 100, 20));
        let [a, b, c] = <[Target; 3]>::default();
        let mut plan = plan(N, &dice, vec![sure(&a), Memory::new(&b, &dice, &errs)]);
        plan.losses = Dice::new(seed + 200, 50);
        let house = House::build(plan);
        let mut replaced = 0;
        while house.meter.events_in.get() < N {
            // In turn to the other target and back; the same target too, as with other options of one file.
            let target = [&b, &c, &c, &b][replaced % 4];
            house.replace(1, Some(Memory::new(target, &dice, &errs)), Block).await;
            replaced += 1;
        }
        house.ended().await;
        house.conserved().await;
        let dead = house.meters.iter().map(|m| m.all_dead()).collect::<Vec<_>>();
        let got = a.numbers();
        assert_eq!(got.len() as u64 + dead[0], N);
        assert!(got.is_sorted_by(|a, b| a < b));
        let (one, two) = (b.numbers(), c.numbers());
        assert!(one.is_sorted_by(|a, b| a < b) && two.is_sorted_by(|a, b| a < b));
        let mut both = [one, two].concat();
        both.sort_unstable();
        assert!(both.is_sorted_by(|a, b| a < b), "nothing doubled");
        assert_eq!(both.len() as u64 + dead[1], N, "nothing missing");
        assert!(replaced > 10, "{replaced}");
    }
}

#[actix_rt::test]
async fn an_output_joins_without_a_gap_and_another_leaves() {
    for seed in 1..=3 {
        let dice = Dice::new(seed, 80);
        let [a, b] = <[Target; 2]>::default();
        let mut plan = plan(N, &dice, vec![sure(&a), sure(&b)]);
        plan.losses = Dice::new(seed + 200, 30);
        let mut house = House::build(plan);
        let mut rounds = 0;
        while house.meter.events_in.get() < N {
            let c = Target::default();
            let policy = if rounds % 2 == 0 { Block } else { DropNewest };
            house.join(sure(&c), policy).await;
            let at = house.meter.events_in.get();
            until("it has something", async || {
                c.len() > 0 || house.meter.events_in.get() >= N.min(at + 2000)
            })
            .await;

            let drained = rounds % 3 != 0;
            let meter = house.remove(2, drained).await;
            let got = c.numbers();
            assert!(got.is_sorted_by(|a, b| a < b));
            if policy == Block
                && drained
                && let Some(first) = got.first()
            {
                let gone = meter.all_dead();
                assert!(
                    gone > 0 || got.iter().copied().eq(*first..first + got.len() as u64),
                    "a gap"
                );
            }
            // The next one of that number begins at nothing.
            house.metrics.forget_output("t", "o2");
            rounds += 1;
        }
        house.ended().await;
        house.conserved().await;
        for (at, target) in [&a, &b].into_iter().enumerate() {
            let got = target.numbers();
            assert_eq!(got.len() as u64 + house.meters[at].all_dead(), N);
            assert!(got.is_sorted_by(|a, b| a < b), "nothing doubled");
        }
        assert!(rounds > 3, "{rounds}");
    }
}

#[actix_rt::test]
async fn an_output_that_joins_is_accounted_for_from_then_on() {
    for seed in 1..=3 {
        let [a, b, c] = <[Target; 3]>::default();
        b.0.broken.store(true, SeqCst);
        let mut plan = plan(2_000, &Dice::never(), vec![sure(&a), sure(&b)]);
        plan.filter.deadly = ["5", "41", "78", "333", "1999"].into();
        plan.losses = Dice::new(seed, 20);
        let mut house = House::build(plan);
        until("it stands", async || house.waiting().await[1] > 64).await;
        // What is in the window, filtered or not, buried or about to be, is none of its business.
        house.join(sure(&c), Block).await;
        until("nothing moves", async || {
            let before = (house.meter.events_in.get(), house.waiting_and_missed().await, a.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
            before == (house.meter.events_in.get(), house.waiting_and_missed().await, a.len())
        })
        .await;
        house.conserved().await;
        b.0.broken.store(false, SeqCst);
        house.ended().await;
        house.conserved().await;
        let (got, (_, missed)) = (c.numbers(), house.waiting_and_missed().await);
        let first = got[0];
        assert!(first > 0 && first.is_multiple_of(10), "from a batch's start: {first}");
        assert!(
            got.into_iter()
                .eq((first..2_000).filter(|n| ![5, 41, 78, 333, 1999].contains(n)))
        );
        assert_eq!(missed, [0, 0, first]);
        assert_eq!(a.len(), 1_995);
    }
}

#[actix_rt::test]
async fn what_an_output_that_leaves_has_not_delivered_holds_nobody_back() {
    let [a, b] = <[Target; 2]>::default();
    b.0.broken.store(true, SeqCst);
    let mut house = House::build(plan(5_000, &Dice::never(), vec![sure(&a), sure(&b)]));
    until("it stands", async || house.waiting().await[1] > 64).await;
    let meter = house.remove(1, false).await;
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..5_000));
    assert_eq!((b.len(), meter.delivered.get()), (0, 0));
    assert!(meter.all_dropped() > 0, "counted as removed");
}

#[actix_rt::test]
async fn a_hung_write_is_waited_for_and_everybody_answers_meanwhile() {
    let [a, b, c] = <[Target; 3]>::default();
    let house = House::build(plan(5_000, &Dice::never(), vec![sure(&a), sure(&b)]));
    until("it writes", async || b.len() > 0).await;
    b.0.hangs.store(true, SeqCst);
    until("it hangs", async || house.waiting().await[1] > 64).await;
    let handed = tokio::time::timeout(Duration::from_millis(300), house.replace(1, Some(sure(&c)), Block)).await;
    assert!(handed.is_err(), "not before the write has come back");
    let answered = tokio::time::timeout(Duration::from_secs(5), house.conserved()).await;
    answered.expect("questions are answered meanwhile");
    assert_eq!(c.len(), 0);
    b.0.hangs.store(false, SeqCst);
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..5_000));
    let (first, then) = (b.numbers(), c.numbers());
    assert!(!then.is_empty(), "the heir was not forgotten");
    assert!(
        first.into_iter().chain(then).eq(0..5_000),
        "the old one's write counts, once"
    );
}

#[actix_rt::test]
async fn a_new_port_is_live_though_the_pump_waits_at_the_old_one() {
    let a = Target::default();
    a.0.broken.store(true, SeqCst);
    let mut house = House::build(plan(5_000, &Dice::never(), vec![sure(&a)]));
    until("all wait for room", async || house.waiting().await[0] >= 80).await;
    let waiting = house.waiting().await[0];
    house.resize(4096).await;
    until("there is room", async || {
        house.meter.events_in.get() > 0 && house.waiting().await[0] >= waiting
    })
    .await;
    a.0.broken.store(false, SeqCst);
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..5_000));
}

#[actix_rt::test]
async fn an_output_is_told_to_drop_and_to_block_again() {
    let [a, b] = <[Target; 2]>::default();
    b.0.broken.store(true, SeqCst);
    let mut house = House::build(plan(N, &Dice::never(), vec![sure(&a), sure(&b)]));
    until("it stands", async || house.waiting().await[1] > 64).await;
    house.set_policy(1, DropOldest).await;
    until("the other one goes on", async || a.len() as u64 > N / 2).await;
    b.0.broken.store(false, SeqCst);
    house.set_policy(1, Block).await;
    house.ended().await;
    until("it has written all", async || house.waiting().await == [0, 0]).await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..N));
    let got = b.numbers();
    assert!(got.is_sorted_by(|a, b| a < b));
    assert_eq!(house.meters[1].delivered.get() + house.meters[1].all_dropped(), N);
}

#[actix_rt::test]
async fn filters_change_between_two_batches_and_keep_what_they_remember() {
    let a = Target::default();
    let first = Through::default();
    let calls = first.calls.clone();
    let mut plan = plan(N, &Dice::never(), vec![sure(&a)]);
    plan.filter = first;
    let house = House::build(plan);
    until("some have passed", async || a.len() > 1_000).await;
    let second = Through::default();
    let later = second.calls.clone();
    let new = NextFilter::New("second".into(), Box::new(second));
    house.change_filters(vec![NextFilter::Kept(0), new]).await;
    until("the second is at work", async || {
        !later.lock().unwrap().is_empty() || a.len() as u64 == N
    })
    .await;
    house.change_filters(vec![NextFilter::Kept(1)]).await;
    house.ended().await;
    house.conserved().await;
    assert!(a.numbers().into_iter().eq(0..N));
    let (calls, later) = (calls.lock().unwrap(), later.lock().unwrap());
    assert!(
        calls.values().chain(later.values()).all(|n| *n == 1),
        "each event once through each"
    );
    assert!(calls.len() as u64 <= N && calls.len() + later.len() >= N as usize);
}

#[actix_rt::test]
async fn another_input_begins_when_all_of_the_old_one_is_settled() {
    for seed in 1..=3 {
        let dice = Dice::new(seed, 80);
        let a = Target::default();
        let mut plan = plan(u64::MAX, &dice, vec![sure(&a)]);
        plan.losses = Dice::new(seed + 200, 30);
        let house = House::build(plan);
        until("some have passed", async || a.len() > 1_000).await;
        house.change_input(Numbers::new(500, 10, &dice)).await;
        house.ended().await;
        house.conserved().await;
        let got = a.numbers();
        let dead = house.meters[0].all_dead();
        assert_eq!(got.len() as u64 + dead, house.meter.events_in.get());
        let border = got.windows(2).position(|w| w[1] < w[0]).expect("it began anew") + 1;
        let (old, new) = got.split_at(border);
        assert!(old.is_sorted_by(|a, b| a < b) && new.is_sorted_by(|a, b| a < b));
        assert!(
            new.len() as u64 + dead >= 500 && old.len() >= 1_000,
            "what the old one had taken was given out"
        );
    }
}
