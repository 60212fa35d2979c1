//! One `next`: 20 µs at most is the promise.
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use luffly_agent::schedule::{Schedule, zone};

fn next(c: &mut Criterion) {
    let mut group = c.benchmark_group("next");
    let at: Timestamp = "2024-03-09T12:00:00Z".parse().expect("an instant");
    for (line, name) in [
        ("* * * * *", "UTC"),
        ("*/5 * * * *", "Asia/Shanghai"),
        ("30 2 * * *", "America/New_York"), // over a gap
        ("0 0 29 2 *", "Europe/Berlin"),    // years away, over many shifts
        ("0 0 31 2 *", "Europe/Berlin"),    // never
        ("@every 90s", "UTC"),
    ] {
        let schedule = Schedule::parse(line, &zone(name).expect("a zone")).expect("a schedule");
        group.bench_function(format!("{line} {name}"), |b| {
            b.iter(|| black_box(schedule.next(black_box(at))))
        });
    }
    group.finish();
}
criterion_group!(benches, next);
criterion_main!(benches);
