//! What the tests of the filters share.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;

use super::*;
use crate::{
    clock::ManualClock,
    plugins::{BadValue, inputs::Tally},
};

#[derive(Default)]
pub struct Counts(Mutex<BTreeMap<&'static str, u64>>);
impl Tally for Counts {
    fn count(&self, name: &'static str, by: u64) {
        *self.0.lock().unwrap().entry(name).or_default() += by;
    }
}
impl Counts {
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        self.0.lock().unwrap().iter().map(|(name, n)| (*name, *n)).collect()
    }
}

pub fn context(clock: Arc<ManualClock>, tally: Arc<Counts>) -> FilterContext {
    FilterContext {
        pipeline: "p".into(),
        label: "f".into(),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock,
        tally,
    }
}
pub fn events<T: AsRef<[u8]>>(contents: &[T]) -> Events {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for content in contents {
        bytes.extend_from_slice(content.as_ref());
        bytes.push(b'\n');
        ends.push(bytes.len() as u32);
    }
    Events::new(Bytes::from(bytes), ends)
}
fn plugin(name: &str) -> &'static Plugin<Build> {
    CATALOG.iter().find(|p| p.name == name).unwrap()
}
fn table(options: &str) -> Table {
    Table(serde_json::from_str(options).unwrap())
}
pub fn build(name: &str, options: &str) -> Box<dyn Filter> {
    build_counting(name, options).0
}
pub fn build_counting(name: &str, options: &str) -> (Box<dyn Filter>, Arc<Counts>) {
    let tally = Arc::new(Counts::default());
    (
        build_at(name, options, ManualClock::at(jiff::Timestamp::UNIX_EPOCH), &tally),
        tally,
    )
}
pub fn build_at(name: &str, options: &str, clock: Arc<ManualClock>, tally: &Arc<Counts>) -> Box<dyn Filter> {
    let table = table(options);
    (plugin(name).check)(&table).unwrap();
    (plugin(name).build)(&table, context(clock, tally.clone())).unwrap()
}
pub fn refused(name: &str, options: &str) -> BadValue {
    let table = table(options);
    let error = (plugin(name).check)(&table).unwrap_err();
    let tally = Arc::new(Counts::default());
    let clock = ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
    assert!((plugin(name).build)(&table, context(clock, tally)).is_err());
    error
}
/// One batch through a filter of its own: what is left, what was dropped, what was let pass.
pub fn run(name: &str, options: &str, contents: &[&str]) -> (Vec<String>, Dropped) {
    let mut filter = build(name, options);
    pass(&mut *filter, contents)
}
pub fn pass(filter: &mut dyn Filter, contents: &[&str]) -> (Vec<String>, Dropped) {
    let mut dropped = Dropped::new();
    let before = events(contents);
    let left = filter.apply(before.clone(), &mut dropped);
    filter.commit();
    assert_eq!(
        left.len() as u64 + dropped.iter().map(|d| d.1).sum::<u64>(),
        before.len() as u64
    );
    let left = left.iter().map(|e| String::from_utf8_lossy(e).into_owned());
    (left.collect(), dropped)
}
pub fn summed(dropped: &Dropped) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    dropped
        .iter()
        .for_each(|(reason, n)| *sums.entry(*reason).or_default() += n);
    sums
}
/// Nothing to do: the very same buffer.
pub fn untouched(name: &str, options: &str, contents: &[&str]) {
    let before = events(contents);
    let mut dropped = Dropped::new();
    let after = build(name, options).apply(before.clone(), &mut dropped);
    assert!(after.is_whole() && dropped.is_empty());
    assert_eq!(after.buffer().as_ptr(), before.buffer().as_ptr());
}
