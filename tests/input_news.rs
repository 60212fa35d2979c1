//! An input that names a descriptor is asked as soon as that has news, not at every event, and a stop does not wait for either.
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
mod kit;
use std::{
    io::{PipeReader, Read, Write, pipe},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use kit::house::*;
use luffly_agent::{
    messages::control::Drain,
    model::Chunk,
    plugins::inputs::{Input, InputError, News, Next, Want},
    settings::WhenFull::Block,
};

/// One number for each byte in a pipe; by itself it would look again in an hour.
struct Told {
    pipe: PipeReader,
    fd: Arc<OwnedFd>,
    numbers: Numbers,
    reads: Arc<AtomicU64>,
    rest: Duration,
}
impl Input for Told {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        self.reads.fetch_add(1, SeqCst);
        let mut bytes = [0; 4096];
        let came = match self.pipe.read(&mut bytes) {
            Ok(came) => came as u64,
            Err(_) => 0, // nothing there: it does not wait
        };
        let before = self.numbers.at;
        self.numbers.end = before + came;
        while self.numbers.at < self.numbers.end {
            self.numbers.read(Want { chunks: 1, ..want }, into)?;
        }
        Ok(Next::Idle(Duration::from_secs(3600)))
    }
    fn news(&self) -> Option<News> {
        let (fd, rest) = (self.fd.clone(), self.rest);
        Some(News { fd, rest })
    }
    fn rewinds(&self) -> bool {
        true
    }
}
fn told(rest: Duration) -> (Told, impl Write, Arc<AtomicU64>) {
    let (reader, writer) = pipe().unwrap();
    let fd = reader.as_fd().try_clone_to_owned().unwrap();
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    let reads = Arc::<AtomicU64>::default();
    let told = Told {
        pipe: reader,
        fd: Arc::new(fd),
        numbers: Numbers::new(0, 4096, &Dice::never()),
        reads: reads.clone(),
        rest,
    };
    (told, writer, reads)
}
fn plan(input: Told, target: &Target) -> Plan {
    let output = Memory::new(target, &Dice::never(), &Dice::never());
    Plan {
        input: Box::new(input),
        filter: Through::default(),
        outputs: vec![(output, Block, Block)],
        read_size: 4096,
        write_size: 4096,
        memory: 1 << 20,
        retry: Duration::from_millis(4),
        losses: Dice::never(),
        around: [None, None],
    }
}

#[actix_rt::test]
async fn news_end_the_wait_each_time() {
    let (input, mut writer, reads) = told(Duration::ZERO);
    let target = Target::default();
    let house = House::build(plan(input, &target));
    for n in 1..=50 {
        writer.write_all(b"x").unwrap();
        until("it is there, long before the hour is over", async || target.len() == n).await;
    }
    // Without news it rests.
    let before = reads.load(SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reads.load(SeqCst) <= before + 1, "it spins");
    let drained = tokio::time::timeout(Duration::from_secs(10), house.collector.send(Drain)).await;
    drained.expect("a stop waits for news").unwrap();
}
#[actix_rt::test]
async fn what_comes_in_the_first_moment_is_read_together() {
    let (input, mut writer, reads) = told(Duration::from_millis(50));
    let target = Target::default();
    let _house = House::build(plan(input, &target));
    until("it rests", async || reads.load(SeqCst) == 1).await;
    let writing = std::thread::spawn(move || {
        for _ in 0..2000 {
            writer.write_all(b"x").unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
        writer // else its end is news
    });
    until("all of it is there", async || target.len() == 2000).await;
    let took = reads.load(SeqCst);
    assert!(took < 500, "{took} reads for 2000 writes");
    drop(writing.join().unwrap());
}
