//! What a batch, a write and a sync cost the checkpoint journal, with as many sources as a busy host has.
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use luffly_agent::{
    checkpoint::{Identity, Journal},
    model::{Mark, Progress, SourceId},
};

const SOURCES: u64 = 10_000;

fn journal(dir: &std::path::Path) -> (Journal, Vec<SourceId>) {
    let mut journal = Journal::open(dir, "boot").unwrap().journal;
    let ids = (0..SOURCES)
        .map(|i| {
            let identity = Identity {
                path: format!("/var/log/pods/namespace_pod-{i}/container/0.log").into(),
                device: 1,
                inode: i,
                head_len: 4096,
                head_hash: i,
            };
            journal.add(identity, Progress::default(), 0)
        })
        .collect();
    journal.write().unwrap();
    (journal, ids)
}
fn mark(source: SourceId, offset: u64) -> Mark {
    Mark {
        source,
        progress: Progress {
            offset,
            window_len: 1024,
            window_hash: offset,
        },
    }
}

fn checkpoint(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ids) = journal(dir.path());
    let mut offset = 0;
    let mut next = move || {
        offset += 1;
        offset
    };
    let mut group = c.benchmark_group("checkpoint");
    group.throughput(Throughput::Elements(1));
    group.bench_function("settle a batch", |b| {
        b.iter(|| {
            let at = next();
            journal.settle(black_box(&[mark(ids[(at % SOURCES) as usize], at)]));
        });
    });
    group.bench_function("write after 100 sources moved", |b| {
        b.iter(|| {
            let marks: Vec<_> = ids[..100].iter().map(|id| mark(*id, next())).collect();
            journal.settle(&marks);
            journal.write().unwrap();
        });
    });
    group.bench_function("sync after 100 sources moved", |b| {
        b.iter(|| {
            let marks: Vec<_> = ids[..100].iter().map(|id| mark(*id, next())).collect();
            journal.settle(&marks);
            let synced = journal.before_sync();
            journal.sync(&synced).unwrap();
        });
    });
    group.bench_function("open", |b| {
        b.iter(|| Journal::open(dir.path(), "boot").unwrap().journal.entries().len());
    });
}

criterion_group!(benches, checkpoint);
criterion_main!(benches);
