//! How fast text becomes batches: the splitting alone, and a whole file in the page cache through `file:v1`.
use std::{hint::black_box, io::Write, sync::Arc};

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use luffly_agent::{
    clock,
    model::{Host, units::Size},
    plugins::{
        Table,
        framing::{CHUNK, OnLongLine, Pool, Rules},
        inputs::{Input, InputContext, Next, NoTally, Want, file},
    },
};

/// Lines of 200 bytes, each a little different.
fn text(size: usize) -> Vec<u8> {
    let line = |i: usize| format!("{i:010} {}\n", "x".repeat(170 + i * 7 % 37));
    let mut text = (0..).flat_map(|i| line(i).into_bytes()).take(size).collect::<Vec<_>>();
    text[size - 1] = b'\n';
    text
}

fn split(c: &mut Criterion) {
    let rules = Rules::new(Size(CHUNK as u64), OnLongLine::Cut).unwrap();
    let mut pool = Pool::default();
    let mut group = c.benchmark_group("split");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    let mut buffer = pool.take(CHUNK);
    buffer.copy_from_slice(&text(CHUNK));
    let mut buffer = Some(buffer);
    group.bench_function("256KiB of 200 B lines", |b| {
        b.iter(|| {
            let (events, _) = rules.frame(buffer.take().unwrap_or_default(), &mut pool);
            let back: BytesMut = {
                black_box(events.len());
                drop(events);
                pool.take(CHUNK)
            };
            buffer = Some(back);
        });
    });
    group.finish();
}

fn read_file(c: &mut Criterion) {
    const SIZE: usize = 256 << 20;
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(&text(SIZE)).unwrap();
    let table = serde_json::json!({ "paths": [source.path()] });
    let mut group = c.benchmark_group("file:v1");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE as u64));
    group.bench_function("256 MiB from the page cache", |b| {
        b.iter(|| {
            let mut input = mount(&table);
            let (mut chunks, mut size) = (Vec::new(), 0);
            let want = Want {
                chunks: 8,
                bytes: 4 << 20,
            };
            while input.read(want, &mut chunks).unwrap() != Next::Ended {
                size += chunks.drain(..).map(|chunk| chunk.events.size()).sum::<usize>();
            }
            assert_eq!(size, SIZE);
        });
    });
    group.finish();
}
fn mount(table: &serde_json::Value) -> Box<dyn Input> {
    let context = InputContext {
        pipeline: "bench".into(),
        host: Arc::new(Host {
            agent_id: String::new(),
            group: String::new(),
            hostname: String::new(),
            ip: [127, 0, 0, 1].into(),
            instance: String::new(),
        }),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: clock::system(),
        once: true,
        journal: None,
        board: Arc::default(),
        runs: None,
        tally: Arc::new(NoTally),
    };
    let table = Table(table.as_object().unwrap().clone());
    (file::PLUGIN_V1.build)(&table, context).unwrap_or_else(|error| panic!("{error}"))
}

criterion_group!(benches, split, read_file);
criterion_main!(benches);
