//! Drops events that were there already: within the last so many different ones, and the last so much time. A key is kept as a hash of 128
//! bits, so memory is about 100 bytes each, whatever the length of an event.
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use serde::Deserialize;

use super::{key::Key, *};
use crate::{
    model::Span,
    plugins::{BadValue, Opt},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "dedupe",
    tag: "v1",
    stable: true,
    about: "drops events that were there already, as a whole or by a key, within a window",
    delivery: "an event taken away counts as filtered, by reason: duplicate. What was seen is forgotten with the agent, so a start lets one more through",
    options: &[
        super::key::FIELD,
        super::key::PATTERN,
        Opt {
            name: "window",
            default: "100000",
            about: "so many different events are remembered, the oldest goes first; about 100 bytes each",
        },
        Opt {
            name: "within",
            default: "none",
            about: "`\"5m\"`: and so long at most, from the first of them",
        },
        Opt {
            name: "on_error",
            default: "\"keep\"",
            about: "an event without that key: `keep` lets it pass and counts it, `drop` takes it away",
        },
    ],
    sample: r#"{ plugin = "dedupe", within = "1m" }"#,
    check: |table| rules(table).map(drop),
    build: |table, context| {
        let (key, most, within, on_error) = rules(table)?;
        let failures = Failures::new(on_error, "no_key", &context);
        Ok(Box::new(Dedupe {
            key,
            most,
            within,
            clock: context.clock,
            failures,
            first: 0,
            order: VecDeque::new(),
            numbers: HashMap::new(),
            noted: Noted::default(),
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "dedupe",
    options: r#"{"key_pattern":"\\] (.*)"}"#,
    lines: &[
        "[10:15:01] disk full",
        "[10:15:02] disk full",
        "[10:15:03] disk replaced",
        "[10:15:04] disk full",
        "-- no bracket --",
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    key_pattern: Option<String>,
    #[serde(default = "window")]
    window: usize,
    #[serde(default)]
    within: Option<String>,
    #[serde(default)]
    on_error: OnError,
}
fn window() -> usize {
    100_000
}
/// 100 MB.
const WIDEST: usize = 1_000_000;

fn rules(table: &Table) -> Result<(Key, usize, Option<Duration>, OnError), BadValue> {
    let config = table.read::<Config>()?;
    if !(1..=WIDEST).contains(&config.window) {
        return Err(BadValue::new(
            "window",
            format!("found {}, accepted: 1 to {WIDEST}", config.window),
        ));
    }
    let within = match config.within.as_deref().map(str::parse::<Span>).transpose() {
        Ok(Some(Span(Duration::ZERO))) => return Err(BadValue::new("within", "found 0, accepted: more")),
        Ok(span) => span.map(|Span(within)| within),
        Err(error) => return Err(BadValue::new("within", error)),
    };
    let key = Key::new(config.key.as_deref(), config.key_pattern.as_deref())?;
    Ok((key, config.window, within, config.on_error))
}

/// What is remembered has running numbers: live are those from `first` on.
struct Dedupe {
    key: Key,
    most: usize,
    within: Option<Duration>,
    clock: SharedClock,
    failures: Failures,
    /// Of the oldest that is remembered.
    first: u64,
    /// From there on, without gaps: when each was seen. At most `most`.
    order: VecDeque<(u128, Duration)>,
    numbers: HashMap<u128, u64>,
    noted: Noted,
}
/// What the present batch brings.
#[derive(Default)]
struct Noted {
    first: u64,
    order: Vec<u128>,
    numbers: HashMap<u128, u64>,
    now: Duration,
}

impl Filter for Dedupe {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        let (order, numbers, noted, failures) = (&self.order, &self.numbers, &mut self.noted, &mut self.failures);
        failures.begin();
        noted.order.clear();
        noted.numbers.clear();
        noted.now = self.clock.steady();
        let now = noted.now;
        let is_over = |at: Duration| self.within.is_some_and(|within| now.saturating_sub(at) >= within);
        noted.first = self.first + order.partition_point(|(_, at)| is_over(*at)) as u64;
        let (mut next, mut duplicates) = (self.first + order.len() as u64, 0);
        let left = events.retain(|event| {
            let Some(key) = self.key.of(event) else {
                return failures.one();
            };
            let number = noted.numbers.get(&key).or_else(|| numbers.get(&key));
            if number.is_some_and(|number| *number >= noted.first) {
                duplicates += 1;
                return false;
            }
            noted.numbers.insert(key, next);
            noted.order.push(key);
            next += 1;
            noted.first = noted.first.max(next.saturating_sub(self.most as u64));
            true
        });
        note(dropped, "duplicate", duplicates);
        failures.end(dropped);
        left
    }
    fn commit(&mut self) {
        let noted = &mut self.noted;
        self.order.extend(noted.order.drain(..).map(|key| (key, noted.now)));
        self.numbers.extend(noted.numbers.drain());
        while self.first < noted.first
            && let Some((key, _)) = self.order.pop_front()
        {
            // It may have come again since, under another number.
            if self.numbers.get(&key) == Some(&self.first) {
                self.numbers.remove(&key);
            }
            self.first += 1;
        }
        self.failures.commit();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::*, *};
    use crate::clock::ManualClock;

    fn dedupe(options: &str) -> (Box<dyn Filter>, Arc<ManualClock>, Arc<Counts>) {
        let (clock, tally) = (ManualClock::at(jiff::Timestamp::UNIX_EPOCH), Arc::default());
        (build_at("dedupe", options, clock.clone(), &tally), clock, tally)
    }

    #[test]
    fn whole_events() {
        let (mut filter, ..) = dedupe("{}");
        assert_eq!(
            pass(&mut *filter, &["a", "b", "a", "", ""]),
            (vec!["a".into(), "b".into(), "".into()], vec![("duplicate", 2)])
        );
        assert_eq!(pass(&mut *filter, &["b", "c"]).0, ["c"]);
    }
    #[test]
    fn by_count_and_by_time() {
        let (mut filter, clock, _) = dedupe(r#"{"window":2,"within":"10s"}"#);
        assert_eq!(
            pass(&mut *filter, &["a", "b", "c", "a", "c"]).0,
            ["a", "b", "c", "a"],
            "a was pushed out by c"
        );
        clock.advance(Duration::from_millis(9_999));
        assert_eq!(pass(&mut *filter, &["a"]).0.len(), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(
            pass(&mut *filter, &["a", "a"]).0,
            ["a"],
            "from the first of them, not from the last"
        );
    }
    #[test]
    fn by_a_key() {
        let (mut filter, _, tally) = dedupe(r#"{"key":"id"}"#);
        assert_eq!(
            pass(
                &mut *filter,
                &[r#"{"id":1,"n":1}"#, r#"{"id":1,"n":2}"#, "text", "text"]
            )
            .0,
            [r#"{"id":1,"n":1}"#, "text", "text"]
        );
        assert_eq!(tally.all(), [("no_key", 2)]);
        let (mut filter, ..) = dedupe(r#"{"key":"id","on_error":"drop"}"#);
        assert_eq!(pass(&mut *filter, &["text"]), (vec![], vec![("no_key", 1)]));
    }
    #[test]
    fn a_pass_that_was_lost_is_not_remembered() {
        let (mut filter, ..) = dedupe(r#"{"window":3}"#);
        for _ in 0..5 {
            assert_eq!(
                filter.apply(events(&["a", "b", "c", "d"]), &mut Dropped::new()).len(),
                4
            );
        }
        filter.commit();
        assert_eq!(pass(&mut *filter, &["d", "c", "b", "a"]).0, ["a"]);
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            (r#"{"window":0}"#, "window"),
            (r#"{"window":1000001}"#, "window"),
            (r#"{"within":"0s"}"#, "within"),
            (r#"{"within":"soon"}"#, "within"),
            (r#"{"key":"a","key_pattern":"b"}"#, "key_pattern"),
        ] {
            assert_eq!(refused("dedupe", options).key, key, "{options}");
        }
    }
    proptest! {
        #[test]
        fn as_the_model_says(batches in prop::collection::vec((prop::collection::vec(0..8u8, 0..10), 0..3u64), 0..20), window in 1..6usize) {
            let (mut filter, clock, _) = dedupe(&format!(r#"{{"window":{window},"within":"3s"}}"#));
            let (mut model, mut now) = (VecDeque::<(u8, u64)>::new(), 0);
            for (batch, step) in batches {
                clock.advance(Duration::from_secs(step));
                now += step;
                model.retain(|(_, at)| now - at < 3);
                let mut expected = vec![];
                for n in &batch {
                    if !model.iter().any(|(seen, _)| seen == n) {
                        expected.push(n.to_string());
                        model.push_back((*n, now));
                        if model.len() > window {
                            model.pop_front();
                        }
                    }
                }
                let lines = batch.iter().map(u8::to_string).collect::<Vec<_>>();
                prop_assert_eq!(pass(&mut *filter, &lines.iter().map(String::as_str).collect::<Vec<_>>()).0, expected);
            }
        }
        #[test]
        fn memory_is_bounded(batches in prop::collection::vec(prop::collection::vec(0..50u8, 0..30), 0..20)) {
            let key = Key::new(None, None).unwrap();
            let context = context(ManualClock::at(jiff::Timestamp::UNIX_EPOCH), Arc::default());
            let failures = Failures::new(OnError::Keep, "no_key", &context);
            let mut filter = Dedupe { key, most: 5, within: None, clock: context.clock.clone(), failures, first: 0,
                order: VecDeque::new(), numbers: HashMap::new(), noted: Noted::default() };
            for batch in batches {
                filter.apply(events(&batch.iter().map(u8::to_string).collect::<Vec<_>>()), &mut Dropped::new());
                filter.commit();
                prop_assert!(filter.order.len() <= 5 && filter.numbers.len() == filter.order.len());
            }
        }
    }
}
