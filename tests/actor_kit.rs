//! What the parts that actors are made of promise: the supervisor, the Port, the Errand, the Later, the Receipt.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use actix::prelude::*;
use kit::house::quiet;
use luffly_agent::{
    actors::kit::*,
    messages::receipt::{Fate, Receipt},
    metrics::Metrics,
};
use tokio::time::Instant;

const SLOW: Restarts = Restarts {
    first: Duration::from_secs(2),
    most: Duration::from_secs(30),
    healthy_after: Duration::from_secs(60),
};
fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
fn pulse() -> SharedPulse {
    Pulse::new("a", Metrics::new().restarts.clone())
}
fn raise<A: Supervised + Actor<Context = Context<A>>>(
    stopping: &Stopping,
    pulse: &SharedPulse,
    make: impl FnOnce(Farewell) -> A,
) -> (Addr<A>, actix_rt::task::JoinHandle<Ended>) {
    quiet();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    supervise(SLOW, stopping.clone(), pulse.clone(), log, |_, farewell| make(farewell))
}
fn falls(pulse: &SharedPulse) -> u64 {
    pulse.causes().iter().map(|(_, n)| n).sum()
}

#[derive(Message)]
#[rtype(result = "()")]
struct Fall;
#[derive(Message)]
#[rtype(result = "()")]
struct End;
#[derive(Message)]
#[rtype(result = "u32")]
struct Ask;

/// Falls on demand, ends itself or says farewell; counts its lives.
struct Worker {
    farewell: Farewell,
    lives: Rc<Cell<u32>>,
    pulse: SharedPulse,
    progresses: bool,
    falls_in_stopping: bool,
    asked: Later<u32>,
}
impl Worker {
    fn new(farewell: Farewell, lives: &Rc<Cell<u32>>, pulse: &SharedPulse) -> Self {
        Self {
            farewell,
            lives: lives.clone(),
            pulse: pulse.clone(),
            progresses: false,
            falls_in_stopping: false,
            asked: Later::default(),
        }
    }
}
impl Actor for Worker {
    type Context = Context<Self>;
    fn started(&mut self, _: &mut Self::Context) {
        self.lives.set(self.lives.get() + 1);
        if self.lives.get() > 1 && self.asked.is_asked() {
            self.asked.tell(self.lives.get());
        }
    }
    fn stopping(&mut self, _: &mut Self::Context) -> Running {
        assert!(!self.falls_in_stopping, "fell");
        Running::Stop
    }
}
impl Supervised for Worker {}
impl Handler<Fall> for Worker {
    type Result = ();
    fn handle(&mut self, _: Fall, _: &mut Self::Context) {
        if self.progresses {
            self.pulse.progressed();
        }
        panic!("fell")
    }
}
impl Handler<End> for Worker {
    type Result = ();
    fn handle(&mut self, _: End, ctx: &mut Self::Context) {
        self.farewell.say(ctx);
    }
}
#[derive(Message)]
#[rtype(result = "()")]
struct JustStop;
impl Handler<JustStop> for Worker {
    type Result = ();
    fn handle(&mut self, _: JustStop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
impl Handler<Ask> for Worker {
    type Result = ResponseFuture<u32>;
    fn handle(&mut self, _: Ask, _: &mut Self::Context) -> Self::Result {
        self.asked.ask()
    }
}

// ---- the supervisor
/// Queues for room in its first life, then falls.
struct Waiter(Port<u32>, bool);
impl Actor for Waiter {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        if !std::mem::replace(&mut self.1, true) {
            let port = self.0.clone();
            let room = async move { port.reserve(Weight::of(2, 2)).await };
            ctx.spawn(room.into_actor(self).map(|room, _, _| assert!(room.send(1).is_ok())));
        }
    }
}
impl Supervised for Waiter {}
impl Handler<Fall> for Waiter {
    type Result = ();
    fn handle(&mut self, _: Fall, _: &mut Self::Context) {
        panic!("fell")
    }
}
#[derive(Default, Clone)]
struct Hold(Rc<RefCell<Vec<Carried<u32>>>>);
impl Actor for Hold {
    type Context = Context<Self>;
}
impl Handler<Carried<u32>> for Hold {
    type Result = ();
    fn handle(&mut self, carried: Carried<u32>, _: &mut Self::Context) {
        self.0.borrow_mut().push(carried);
    }
}
impl Handler<JustStop> for Hold {
    type Result = ();
    fn handle(&mut self, _: JustStop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

#[actix_rt::test]
async fn a_fallen_actor_neither_holds_nor_queues_for_room() {
    tokio::time::pause();
    let hold = Hold::default();
    let port = Port::new(hold.clone().start().recipient(), Weight { events: 2, kib: 2 });
    assert!(port.reserve(Weight::of(2, 2)).await.send(0).is_ok());
    let (pulse, at) = (pulse(), port.clone());
    let (waiter, _) = raise(&Stopping::default(), &pulse, |_| Waiter(at, false));
    tokio::time::sleep(millis(5)).await;
    waiter.try_send(Fall).unwrap();
    tokio::time::sleep(millis(5)).await;
    assert_eq!((falls(&pulse), pulse.word()), (1, "restarting"));
    hold.0.borrow_mut().clear();
    let began = Instant::now();
    assert!(port.reserve(Weight::of(1, 1)).await.send(2).is_ok());
    assert!(began.elapsed() < millis(1), "somebody who is gone stood before us");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hold.0.borrow().iter().map(|c| c.msg).collect::<Vec<_>>(), [2]);
}

struct Faller;
impl Actor for Faller {
    type Context = Context<Self>;
    fn started(&mut self, _: &mut Self::Context) {
        panic!("fell")
    }
}
impl Supervised for Faller {}

#[actix_rt::test]
async fn a_stop_cuts_the_wait_short_and_a_drain_backs_off_too() {
    tokio::time::pause();
    let (stopping, pulse) = (Stopping::default(), pulse());
    let (_faller, _) = raise(&stopping, &pulse, |_| Faller);
    tokio::time::sleep(millis(20)).await;
    assert_eq!(falls(&pulse), 1);
    stopping.begin();
    tokio::time::sleep(millis(5)).await;
    assert_eq!(falls(&pulse), 2);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let all = falls(&pulse); // 10, 20, 40 … 640 ms, then once a second
    assert!((12..25).contains(&all), "{all}");
    assert!(pulse.is_failing());
}
#[actix_rt::test]
async fn only_a_farewell_ends_it_even_in_a_drain() {
    tokio::time::pause();
    let (stopping, pulse, lives) = (Stopping::default(), pulse(), Rc::default());
    let (worker, task) = raise(&stopping, &pulse, |farewell| Worker::new(farewell, &lives, &pulse));
    stopping.begin();
    worker.send(JustStop).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((lives.get(), task.is_finished()), (2, false));
    assert_eq!(pulse.causes(), [("ended itself".to_owned(), 1)]);
    worker.send(End).await.unwrap();
    assert_eq!(task.await.unwrap(), Ended::Drained);
    assert_eq!(pulse.word(), "drained");
}
#[actix_rt::test]
async fn who_said_farewell_is_not_raised_again() {
    tokio::time::pause();
    let (pulse, lives) = (pulse(), Rc::default());
    let (worker, task) = raise(&Stopping::default(), &pulse, |farewell| Worker {
        falls_in_stopping: true,
        ..Worker::new(farewell, &lives, &pulse)
    });
    let _ = worker.send(End).await; // falls over its own farewell
    assert_eq!(task.await.unwrap(), Ended::Drained);
    assert_eq!((lives.get(), falls(&pulse)), (1, 0));
}
#[actix_rt::test]
async fn an_actor_that_nobody_knows_any_more_is_let_go() {
    tokio::time::pause();
    let (pulse, lives) = (pulse(), Rc::default());
    let (worker, task) = raise(&Stopping::default(), &pulse, |farewell| {
        Worker::new(farewell, &lives, &pulse)
    });
    drop(worker);
    assert_eq!(task.await.unwrap(), Ended::Unreachable);
}
/// Sends a Fall and measures how long the actor is away.
async fn away_after_a_fall(worker: &Addr<Worker>, lives: &Cell<u32>) -> Duration {
    let (before, began) = (lives.get(), Instant::now());
    worker.try_send(Fall).unwrap();
    while lives.get() == before {
        tokio::time::sleep(millis(10)).await;
    }
    began.elapsed()
}
#[actix_rt::test]
async fn waits_double_unless_it_got_something_done() {
    for (progresses, seconds) in [(false, [2, 4, 8, 16, 30, 30]), (true, [2; 6])] {
        tokio::time::pause();
        let (pulse, lives) = (pulse(), Rc::default());
        let (worker, _) = raise(&Stopping::default(), &pulse, |farewell| Worker {
            progresses,
            ..Worker::new(farewell, &lives, &pulse)
        });
        tokio::time::sleep(millis(1)).await;
        for seconds in seconds {
            let away = away_after_a_fall(&worker, &lives).await;
            assert!(
                (away.as_secs_f64() - f64::from(seconds)).abs() < 0.1,
                "{away:?}, expected {seconds} s"
            );
        }
        assert_eq!(
            (pulse.word(), falls(&pulse)),
            (if progresses { "running" } else { "failing" }, 6)
        );
        // A run of some length makes the next fall the first.
        tokio::time::sleep(SLOW.healthy_after + millis(1)).await;
        assert!(!pulse.is_failing() && pulse.word() == "running");
        assert!(away_after_a_fall(&worker, &lives).await < millis(2100));
        tokio::time::resume();
    }
}
#[actix_rt::test]
async fn what_waits_in_the_mailbox_survives_a_fall_and_so_does_who_asked() {
    tokio::time::pause();
    let (pulse, lives) = (pulse(), Rc::default());
    let (worker, task) = raise(&Stopping::default(), &pulse, |farewell| {
        Worker::new(farewell, &lives, &pulse)
    });
    let asked = [worker.send(Ask), worker.send(Ask)].map(actix_rt::spawn);
    tokio::time::sleep(millis(1)).await;
    worker.try_send(Fall).unwrap();
    worker.try_send(End).unwrap(); // heard by the next life
    let began = Instant::now();
    for asked in asked {
        assert_eq!(asked.await.unwrap(), Ok(2), "the next life answers");
    }
    assert!(began.elapsed() >= SLOW.first);
    assert_eq!(task.await.unwrap(), Ended::Drained);
}
#[test]
fn causes_are_few_and_short() {
    let metrics = Metrics::new();
    let pulse = Pulse::new("a", metrics.restarts.clone());
    for n in 0..40 {
        pulse.fell(&format!("cause {n} {}\nmore", "x".repeat(500)), 1);
        pulse.fell("the same", 1);
    }
    let causes = pulse.causes();
    assert!(
        causes.len() <= 17
            && causes
                .iter()
                .all(|(cause, _)| cause.len() <= 100 && !cause.contains('\n'))
    );
    assert_eq!(causes.iter().map(|(_, n)| n).sum::<u64>(), 80);
    assert!(causes.contains(&("the same".to_owned(), 40)));
    assert!(
        metrics
            .text()
            .contains(r#"luffly_actor_restarts_total{actor="a",cause="the same"} 40"#)
    );
}

// ---- the Port
/// Holds what it gets for a moment; knows the most that it ever held.
#[derive(Clone, Default)]
struct Slow(Arc<SlowInner>);
#[derive(Default)]
struct SlowInner {
    held: AtomicU32,
    most: AtomicU32,
    seen: Mutex<Vec<u32>>,
}
impl Actor for Slow {
    type Context = Context<Self>;
}
impl Handler<Carried<(u32, u32)>> for Slow {
    type Result = ();
    fn handle(&mut self, carried: Carried<(u32, u32)>, ctx: &mut Self::Context) {
        let (number, weight) = carried.msg;
        let inner = self.0.clone();
        inner
            .most
            .fetch_max(inner.held.fetch_add(weight, SeqCst) + weight, SeqCst);
        inner.seen.lock().unwrap().push(number);
        let let_go = async move {
            tokio::task::yield_now().await;
            inner.held.fetch_sub(weight, SeqCst);
            drop(carried.room);
        };
        ctx.spawn(let_go.into_actor(self));
    }
}
impl Slow {
    fn port(&self, all: u32) -> Port<(u32, u32)> {
        let actor = self.clone();
        let addr = Slow::create(|ctx| {
            ctx.set_mailbox_capacity(all as usize);
            actor
        });
        Port::new(addr.recipient(), Weight { events: all, kib: 1024 })
    }
    fn most(&self) -> u32 {
        self.0.most.load(SeqCst)
    }
    fn seen(&self) -> Vec<u32> {
        self.0.seen.lock().unwrap().clone()
    }
}
async fn emptied<M: Send + 'static>(port: &Port<M>) {
    while port.fill().0 > 0 {
        tokio::task::yield_now().await;
    }
}

#[actix_rt::test]
async fn in_order_and_never_more_than_it_holds() {
    let slow = Slow::default();
    let port = slow.port(8);
    for n in 0..20_000 {
        let weight = 1 + n % 3;
        let room = port.reserve(Weight::of(weight as usize, 1)).await;
        assert!(room.send((n, weight)).is_ok());
    }
    emptied(&port).await;
    assert!(slow.seen().into_iter().eq(0..20_000));
    assert!((6..=8).contains(&slow.most()), "{}", slow.most());
    assert!(port.waited() > Duration::ZERO);
}
#[actix_rt::test]
async fn many_senders_keep_each_its_order() {
    let slow = Slow::default();
    let port = slow.port(4);
    let senders = (0..8u32).map(|sender| {
        let port = port.clone();
        actix_rt::spawn(async move {
            for n in 0..1_000 {
                let room = port.reserve(Weight::of(1, 1)).await;
                assert!(room.send((sender * 10_000 + n, 1)).is_ok());
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    emptied(&port).await;
    for sender in 0..8 {
        let seen = slow.seen().into_iter().filter(|n| n / 10_000 == sender);
        assert!(seen.map(|n| n % 10_000).eq(0..1_000), "sender {sender}");
    }
    assert!(slow.most() <= 4);
}
#[actix_rt::test]
async fn a_sender_that_gives_up_takes_nothing_with_it() {
    let slow = Slow::default();
    let port = slow.port(2);
    let room = port.reserve(Weight::of(2, 2)).await;
    assert!(port.try_reserve(Weight::of(1, 1)).is_none());
    for _ in 0..100 {
        let gave_up = tokio::time::timeout(Duration::from_micros(50), port.reserve(Weight::of(1, 1))).await;
        assert!(gave_up.is_err());
    }
    drop(room);
    assert_eq!(port.fill(), (0, 2));
}
#[actix_rt::test]
async fn heavier_than_the_port_passes_alone_and_bytes_weigh_too() {
    let hold = Hold::default();
    let port = Port::new(hold.clone().start().recipient(), Weight { events: 100, kib: 4 });
    assert!(port.reserve(Weight::of(1_000_000, 1 << 40)).await.send(1).is_ok());
    assert!(
        port.try_reserve(Weight::of(0, 0)).is_none(),
        "even nothing weighs something"
    );
    tokio::task::yield_now().await;
    hold.0.borrow_mut().clear();
    let rooms = (0..4)
        .map(|_| port.try_reserve(Weight::of(1, 1024)).unwrap())
        .collect::<Vec<_>>();
    assert!(port.try_reserve(Weight::of(1, 1)).is_none(), "full by its bytes");
    assert_eq!(port.fill(), (4, 100));
    drop(rooms);
    assert!(port.try_reserve(Weight::of(100, 4096)).is_some());
}
#[actix_rt::test]
async fn whoever_is_gone_gives_the_message_back_and_keeps_no_room() {
    let gone = Hold::default().start();
    let port = Port::new(gone.clone().recipient(), Weight { events: 2, kib: 2 });
    gone.send(JustStop).await.unwrap();
    while gone.connected() {
        tokio::task::yield_now().await;
    }
    for n in 0..10 {
        let room = port.reserve(Weight::of(2, 2)).await;
        assert!(matches!(room.send(n), Err(Gone(back)) if back == n));
    }
}

// ---- Errand
#[actix_rt::test]
async fn an_errand_outlives_who_waited_for_it_and_is_taken_once() {
    let (go, runs) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (may, ran) = (go.clone(), runs.clone());
    let errand = Errand::start(move || {
        while !may.load(SeqCst) {
            std::thread::sleep(millis(1));
        }
        ran.fetch_add(1, SeqCst) + 7
    });
    for _ in 0..3 {
        // Lives that fall while they wait.
        assert!(tokio::time::timeout(millis(2), errand.done()).await.is_err());
    }
    go.store(true, SeqCst);
    errand.done().await;
    errand.done().await; // the life that heard of it fell before it took it
    assert_eq!(errand.take(), Some(7));
    assert_eq!(runs.load(SeqCst), 1);
}
#[actix_rt::test]
async fn an_errand_that_is_not_done_or_was_lost_gives_nothing() {
    quiet();
    let go = Arc::new(AtomicBool::new(false));
    let may = go.clone();
    let errand = Errand::start(move || {
        while !may.load(SeqCst) {
            std::thread::sleep(millis(1));
        }
    });
    assert_eq!(errand.take(), None);
    go.store(true, SeqCst);
    let lost = Errand::<u32>::start(|| panic!("fell"));
    lost.done().await;
    assert_eq!(lost.take(), None);
    let mut plugin = 1;
    let fell = errand::guarded(&mut plugin, |plugin| {
        *plugin = 2;
        panic!("fell")
    });
    assert_eq!((fell, plugin), (Err::<(), _>("fell".to_owned()), 2));
}

// ---- Later
#[actix_rt::test]
async fn a_later_tells_all_who_ask_once_and_forgets_nobody() {
    let (mut here, mut there) = (Later::default(), Later::default());
    let (a, b, gone) = (here.ask(), there.ask(), there.ask());
    drop(gone);
    here.append(&mut there);
    assert!(here.is_asked() && !there.is_asked());
    there.tell(1);
    here.tell(2);
    assert_eq!((a.await, b.await, here.is_asked()), (2, 2, false));
    let late = here.ask();
    assert!(
        tokio::time::timeout(millis(5), late).await.is_err(),
        "an old answer is no answer"
    );
}

// ---- Receipt
#[test]
fn a_receipt_is_settled_by_all_or_says_again_and_is_heard_once() {
    // How each of three clones ends: settled, or dropped by a stage that fell.
    for settle in (0..8u8).map(|bits| [0, 1, 2].map(|i| bits & (1 << i) != 0)) {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let first = Receipt::new(5, 2, tell);
        let clones = [first.clone(), first.clone(), first];
        for (clone, settled) in clones.into_iter().zip(settle) {
            assert!(told.try_recv().is_err(), "not before the last has answered");
            if settled {
                clone.settle();
            }
        }
        let fate = Fate {
            seq: 5,
            attempt: 2,
            settled: settle == [true; 3],
        };
        assert_eq!(told.try_recv(), Ok(fate));
        assert!(told.try_recv().is_err());
    }
}
