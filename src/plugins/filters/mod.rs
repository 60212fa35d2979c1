//! Filters: pure functions over a batch, in order, in one FilterStage. To add one: its file, one line of CATALOG and one of EXAMPLES.
pub mod dedupe;
pub mod fields;
pub mod grep;
pub mod json;
pub mod key;
pub mod logfmt;
pub mod redact;
pub mod regex;
pub mod sample;
pub mod search;
#[cfg(test)]
mod testing;
pub mod throttle;
pub mod valid;

use std::sync::Arc;

use serde::Deserialize;

use crate::{
    clock::SharedClock,
    model::{Events, PluginName},
    plugins::{Plugin, PluginError, Table, inputs::SharedTally},
};

pub type Build = fn(&Table, FilterContext) -> Result<Box<dyn Filter>, PluginError>;
pub const CATALOG: &[Plugin<Build>] = &[
    valid::PLUGIN,
    grep::PLUGIN,
    json::PLUGIN,
    regex::PLUGIN,
    logfmt::PLUGIN,
    sample::PLUGIN,
    throttle::PLUGIN,
    dedupe::PLUGIN,
    redact::PLUGIN,
];
/// For docs/plugins.md, in the order of CATALOG; a test has `agent try` do each of them.
pub const EXAMPLES: &[Example] = &[
    valid::EXAMPLE,
    grep::EXAMPLE,
    json::EXAMPLE,
    regex::EXAMPLE,
    logfmt::EXAMPLE,
    sample::EXAMPLE,
    throttle::EXAMPLE,
    dedupe::EXAMPLE,
    redact::EXAMPLE,
];
/// A filter at work on a few lines.
pub struct Example {
    pub plugin: &'static str,
    /// As JSON, for `-f '{"filter":{NAME:OPTIONS}}'`.
    pub options: &'static str,
    pub lines: &'static [&'static str],
}

/// What a filter is given at its mount.
#[derive(Clone)]
pub struct FilterContext {
    pub pipeline: Arc<str>,
    /// Its name within the pipeline, for logs and counters: `grep`, or `grep#2` for the second.
    pub label: Arc<str>,
    pub log: slog::Logger,
    pub clock: SharedClock,
    /// Events that it could not work on and let pass, by reason: `tally.count("not_json", 1)`. Only from `commit`.
    pub tally: SharedTally,
}

/// What the filters of a pipeline are called: `grep`, then `grep#2`.
pub fn labels<'a>(names: impl Iterator<Item = &'a PluginName>) -> impl Iterator<Item = String> {
    let mut before = Vec::<&str>::new();
    names.map(move |plugin| {
        let same = before.iter().filter(|name| **name == plugin.name).count();
        before.push(&plugin.name);
        match same {
            0 => plugin.name.clone(),
            n => format!("{}#{}", plugin.name, n + 1),
        }
    })
}

/// How many events a filter took away, by reason. Reasons are few and fixed.
pub type Dropped = Vec<(&'static str, u64)>;

pub trait Filter: Send {
    /// What is left of these events: each stays, is changed, or goes; none is made. May panic: then it is asked again. So what it
    /// remembers of earlier events stays as the last `commit` left it; what this batch would change is only noted.
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events;
    /// The result of the last `apply` counts, and that of all filters of the pipeline: takes over what was noted. Must not fall.
    fn commit(&mut self) {}
}

/// What becomes of an event that a filter cannot work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    #[default]
    Keep,
    Drop,
}
/// Events of one batch that could not be worked on: dropped, or let pass and counted with `commit`.
pub struct Failures {
    on_error: OnError,
    reason: &'static str,
    tally: SharedTally,
    noted: u64,
}
impl Failures {
    pub fn new(on_error: OnError, reason: &'static str, context: &FilterContext) -> Self {
        Self {
            on_error,
            reason,
            tally: context.tally.clone(),
            noted: 0,
        }
    }
    /// A batch begins.
    pub fn begin(&mut self) {
        self.noted = 0;
    }
    /// One more. True: the event stays.
    pub fn one(&mut self) -> bool {
        self.noted += 1;
        self.on_error == OnError::Keep
    }
    /// So many, counted elsewhere.
    pub fn set(&mut self, events: u64) {
        self.noted = events;
    }
    /// The batch has ended: what of it was dropped.
    pub fn end(&self, dropped: &mut Dropped) {
        if self.on_error == OnError::Drop {
            note(dropped, self.reason, self.noted);
        }
    }
    pub fn commit(&mut self) {
        let noted = std::mem::take(&mut self.noted);
        if self.on_error == OnError::Keep && noted > 0 {
            self.tally.count(self.reason, noted);
        }
    }
}
pub fn note(dropped: &mut Dropped, reason: &'static str, events: u64) {
    if events > 0 {
        dropped.push((reason, events));
    }
}

/// What becomes of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    Same,
    /// What was written is its new content.
    Changed,
    Gone,
}
/// Asks for each event (told where in the buffer it begins) what becomes of it; a new content is written to the end of the given
/// bytes. Offsets in the source stay. Nothing is copied before the first that changes.
pub fn rewrite(events: Events, mut each: impl FnMut(usize, &[u8], &mut Vec<u8>) -> Becomes) -> Events {
    let mut gone = vec![];
    let mut new: Option<(Vec<u8>, Vec<u32>, Vec<u32>)> = None;
    let mut scratch = vec![];
    for (n, ((start, event), (offset, _))) in events.places().zip(events.with_offsets()).enumerate() {
        let (bytes, ends, offsets) = match &mut new {
            Some(new) => new,
            None => match each(start, event, &mut scratch) {
                Becomes::Same => {
                    scratch.clear();
                    continue;
                }
                Becomes::Gone => {
                    scratch.clear();
                    gone.push(n);
                    continue;
                }
                Becomes::Changed => {
                    let new = new.insert(before(&events, n, &gone));
                    new.0.append(&mut scratch);
                    close(new, offset);
                    continue;
                }
            },
        };
        let from = bytes.len();
        match each(start, event, bytes) {
            Becomes::Changed => {}
            Becomes::Same => {
                bytes.truncate(from);
                bytes.extend_from_slice(event);
            }
            Becomes::Gone => {
                bytes.truncate(from);
                continue;
            }
        }
        bytes.push(b'\n');
        ends.push(bytes.len() as u32);
        offsets.push(offset);
    }
    match new {
        Some((bytes, ends, offsets)) => Events::rewritten(bytes.into(), ends, offsets),
        None if gone.is_empty() => events,
        None => {
            let (mut n, mut gone) = (0, gone.into_iter().peekable());
            events.retain(|_| {
                n += 1;
                gone.next_if_eq(&(n - 1)).is_none()
            })
        }
    }
}
fn close((bytes, ends, offsets): &mut (Vec<u8>, Vec<u32>, Vec<u32>), offset: u32) {
    bytes.push(b'\n');
    ends.push(bytes.len() as u32);
    offsets.push(offset);
}
/// The first `n` events without those that are gone, copied.
fn before(events: &Events, n: usize, gone: &[usize]) -> (Vec<u8>, Vec<u32>, Vec<u32>) {
    let room = events.size() + events.size() / 4;
    let mut new = (
        Vec::with_capacity(room),
        Vec::with_capacity(events.len()),
        Vec::with_capacity(events.len()),
    );
    let mut gone = gone.iter().peekable();
    for (i, (offset, event)) in events.with_offsets().take(n).enumerate() {
        if gone.next_if_eq(&&i).is_none() {
            new.0.extend_from_slice(event);
            close(&mut new, offset);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{testing::*, *};

    #[test]
    fn every_filter_has_its_example() {
        let names = |names: Vec<&'static str>| names;
        assert_eq!(
            names(CATALOG.iter().map(|p| p.name).collect()),
            names(EXAMPLES.iter().map(|e| e.plugin).collect())
        );
        for example in EXAMPLES {
            build(example.plugin, example.options);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })] // each makes all filters twice
        /// Every filter, over what its example shows and noise, cut into batches anyhow and with every third pass lost before its
        /// commit: the same events and the same counts.
        #[test]
        fn batches_and_lost_passes_change_nothing(
            picks in prop::collection::vec((0..8usize, "[a-c=\" {}:1\n]{0,6}"), 0..40), cuts in prop::collection::vec(1..7usize, 40), odd: bool,
        ) {
            for example in EXAMPLES {
                let contents = picks.iter().map(|(n, noise)| match example.lines.get(*n) {
                    Some(line) => line.as_bytes().to_vec(),
                    None => noise.as_bytes().to_vec(),
                }).collect::<Vec<_>>();
                let mut n = 0;
                let all = events(&contents).retain(|_| { n += 1; !odd || n % 3 != 0 });
                let (mut one, one_tally) = build_counting(example.plugin, example.options);
                let mut expected_dropped = Dropped::new();
                let whole = one.apply(all.clone(), &mut expected_dropped);
                one.commit();
                let lost = expected_dropped.iter().map(|(_, n)| *n as usize).sum::<usize>();
                prop_assert_eq!(whole.len() + lost, all.len(), "{}: each removed event is counted", example.plugin);
                prop_assert_eq!(whole.size(), whole.iter().map(|e| e.len() + 1).sum::<usize>());
                let expected = whole.with_offsets().map(|(at, e)| (at, e.to_vec())).collect::<Vec<_>>();

                let (mut two, two_tally) = build_counting(example.plugin, example.options);
                let (mut got, mut got_dropped, mut from) = (vec![], Dropped::new(), 0);
                for (i, len) in cuts.iter().enumerate() {
                    let part = all.part(from..(from + len).min(all.len()));
                    if part.is_empty() {
                        break;
                    }
                    from += part.len();
                    for _ in 0..i % 3 {
                        two.apply(part.clone(), &mut Dropped::new()); // and then another filter falls
                    }
                    let left = two.apply(part, &mut got_dropped);
                    two.commit();
                    got.extend(left.with_offsets().map(|(at, e)| (at, e.to_vec())));
                }
                if from == all.len() {
                    prop_assert_eq!(got, expected, "{}", example.plugin);
                    prop_assert_eq!(summed(&got_dropped), summed(&expected_dropped), "{}", example.plugin);
                    prop_assert_eq!(two_tally.all(), one_tally.all(), "{}", example.plugin);
                }
            }
        }
        #[test]
        fn rewriting_is_what_it_says(contents in prop::collection::vec("[smg]{0,3}", 0..20)) {
            let all = contents.iter().map(|c| c.clone().into_bytes()).collect::<Vec<_>>();
            let before = events(&all);
            let becomes = |event: &[u8]| match event.first() {
                Some(b'm') => Becomes::Changed,
                Some(b'g') => Becomes::Gone,
                _ => Becomes::Same,
            };
            let after = rewrite(before.clone(), |_, event, out| {
                out.extend_from_slice(b"new ");
                out.extend_from_slice(event);
                becomes(event)
            });
            let expected = before.with_offsets().filter(|(_, e)| becomes(e) != Becomes::Gone).map(|(at, e)| match becomes(e) {
                Becomes::Changed => (at, [b"new ", e].concat()),
                _ => (at, e.to_vec()),
            });
            prop_assert_eq!(after.with_offsets().map(|(at, e)| (at, e.to_vec())).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            if !contents.iter().any(|c| c.starts_with('m')) {
                prop_assert_eq!(after.buffer().as_ptr(), before.buffer().as_ptr(), "nothing is copied");
            }
        }
    }
}
