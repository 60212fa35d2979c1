//! So many events in so much time, for each key by itself. Kept per key is one instant: when all it has let through would be paid off at
//! an even pace (GCRA). A key whose instant has passed is like a new one, and forgotten.
use std::{collections::HashMap, time::Duration};

use serde::Deserialize;

use super::{key::Key, *};
use crate::{
    model::Span,
    plugins::{BadValue, Opt},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "throttle",
    tag: "v1",
    stable: true,
    about: "lets so many events through in so much time, for each key by itself",
    delivery: "an event taken away counts as filtered, by reason: throttled. What was counted is forgotten with the agent",
    options: &[
        Opt {
            name: "events",
            default: "required",
            about: "so many in each `per`: a key that was quiet may have them all at once, after that they come back evenly",
        },
        Opt {
            name: "per",
            default: "\"1s\"",
            about: "counted when the agent reads the event, whatever time stands in it",
        },
        super::key::FIELD,
        super::key::PATTERN,
        Opt {
            name: "max_keys",
            default: "10000",
            about: "so many busy keys are told apart; past that, those nearest to quiet are forgotten",
        },
    ],
    sample: r#"{ plugin = "throttle", events = 100, per = "1s", key = "service" }"#,
    check: |table| rules(table).map(drop),
    build: |table, context| {
        let (events, per, key, most) = rules(table)?;
        Ok(Box::new(Throttle {
            each: per.as_nanos() as u64 / events,
            per: per.as_nanos() as u64,
            key,
            most,
            clock: context.clock,
            busy: HashMap::new(),
            noted: HashMap::new(),
            now: 0,
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "throttle",
    options: r#"{"events":2,"per":"1s","key_pattern":"^\\w+"}"#,
    lines: &["db: slow", "db: slow", "db: slow", "web: started", "db: slow"],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    events: u64,
    #[serde(default = "per")]
    per: String,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    key_pattern: Option<String>,
    #[serde(default = "max_keys")]
    max_keys: usize,
}
fn per() -> String {
    "1s".to_owned()
}
fn max_keys() -> usize {
    10_000
}
fn rules(table: &Table) -> Result<(u64, Duration, Key, usize), BadValue> {
    let config = table.read::<Config>()?;
    let Span(per) = config
        .per
        .parse::<Span>()
        .map_err(|error| BadValue::new("per", error))?;
    if per.is_zero() || per > Duration::from_secs(366 * 86_400) {
        return Err(BadValue::new(
            "per",
            format!("found {:?}, accepted: more than 0, at most a year", config.per),
        ));
    }
    if config.events == 0 || u128::from(config.events) > per.as_nanos() {
        let message = format!("found {}, accepted: 1 or more, at most one a nanosecond", config.events);
        return Err(BadValue::new("events", message));
    }
    if config.max_keys == 0 {
        return Err(BadValue::new("max_keys", "found 0, accepted: 1 or more"));
    }
    let key = Key::new(config.key.as_deref(), config.key_pattern.as_deref())?;
    Ok((config.events, per, key, config.max_keys))
}

/// Nanoseconds of the steady clock.
struct Throttle {
    each: u64,
    per: u64,
    /// Whole: one for all, since nobody throttles each text by itself.
    key: Key,
    most: usize,
    clock: SharedClock,
    busy: HashMap<u128, u64>, // bounded by `most`, after each commit
    /// Of the present batch.
    noted: HashMap<u128, u64>,
    now: u64,
}
/// The key of events that have none.
const NO_KEY: u128 = 0;

impl Filter for Throttle {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        let now = self.clock.steady().as_nanos() as u64;
        self.now = now;
        self.noted.clear();
        let before = events.len();
        let left = events.retain(|event| {
            let key = match &self.key {
                Key::Whole => NO_KEY,
                key => key.of(event).unwrap_or(NO_KEY),
            };
            let paid_at = self.noted.get(&key).or_else(|| self.busy.get(&key)).copied();
            let paid_at = paid_at.unwrap_or(now).max(now) + self.each;
            let fits = paid_at - now <= self.per;
            if fits {
                self.noted.insert(key, paid_at);
            }
            fits
        });
        note(dropped, "throttled", (before - left.len()) as u64);
        left
    }
    fn commit(&mut self) {
        self.busy.extend(self.noted.drain());
        if self.busy.len() > self.most {
            self.forget();
        }
    }
}
impl Throttle {
    /// First those that are like new; then, down to three quarters so that this is rare, those that come next.
    fn forget(&mut self) {
        self.busy.retain(|_, paid_at| *paid_at > self.now);
        if self.busy.len() > self.most {
            let room = (self.most * 3 / 4).max(1);
            let mut all = self.busy.values().copied().collect::<Vec<_>>();
            let first_kept = all.len() - room;
            let (_, border, _) = all.select_nth_unstable(first_kept);
            let border = *border;
            let mut at_border = room
                - self
                    .busy
                    .values()
                    .filter(|paid_at| **paid_at > border)
                    .count()
                    .min(room);
            self.busy.retain(|_, paid_at| {
                let stays = *paid_at > border || (*paid_at == border && at_border > 0);
                at_border -= usize::from(stays && *paid_at == border);
                stays
            });
        }
        self.busy.shrink_to(self.most);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::*, *};
    use crate::clock::ManualClock;

    fn throttle(options: &str) -> (Box<dyn Filter>, Arc<ManualClock>) {
        let clock = ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
        (build_at("throttle", options, clock.clone(), &Arc::default()), clock)
    }

    #[test]
    fn so_many_and_then_evenly() {
        let (mut filter, clock) = throttle(r#"{"events":4,"per":"1s"}"#);
        let lines = ["a", "b", "c", "d", "e", "f"];
        assert_eq!(
            pass(&mut *filter, &lines),
            (
                lines[..4].iter().map(|s| s.to_string()).collect(),
                vec![("throttled", 2)]
            )
        );
        clock.advance(Duration::from_millis(249));
        assert_eq!(pass(&mut *filter, &lines).0.len(), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(pass(&mut *filter, &lines).0.len(), 1);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(
            pass(&mut *filter, &lines).0.len(),
            4,
            "what was not used is not saved up"
        );
    }
    #[test]
    fn keys_do_not_share() {
        let (mut filter, _) = throttle(r#"{"events":1,"per":"1m","key":"s"}"#);
        let (left, _) = pass(
            &mut *filter,
            &[r#"{"s":"a"}"#, r#"{"s":"a","n":2}"#, r#"{"s":"b"}"#, "none", "none too"],
        );
        assert_eq!(left, [r#"{"s":"a"}"#, r#"{"s":"b"}"#, "none"]);
    }
    #[test]
    fn a_pass_that_was_lost_does_not_count() {
        let (mut filter, _) = throttle(r#"{"events":3}"#);
        for _ in 0..5 {
            assert_eq!(filter.apply(events(&["a", "b"]), &mut Dropped::new()).len(), 2);
        }
        filter.commit();
        assert_eq!(pass(&mut *filter, &["c", "d"]).0, ["c"]);
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            (r#"{"events":0}"#, "events"),
            (r#"{"events":1,"per":"0s"}"#, "per"),
            (r#"{"events":1,"per":"fast"}"#, "per"),
            (r#"{"events":1,"max_keys":0}"#, "max_keys"),
            (r#"{"events":2000000000}"#, "events"),
            (r#"{"events":1,"key":""}"#, "key"),
        ] {
            assert_eq!(refused("throttle", options).key, key, "{options}");
        }
    }
    #[test]
    fn memory_is_bounded() {
        let clock = ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
        let mut filter = Throttle {
            each: 500_000_000,
            per: 1_000_000_000,
            key: Key::new(None, Some(".*")).unwrap(),
            most: 100,
            clock: clock.clone(),
            busy: HashMap::new(),
            noted: HashMap::new(),
            now: 0,
        };
        for i in 0..50 {
            let lines = (0..40).map(|n| (i * 40 + n).to_string()).collect::<Vec<_>>();
            filter.apply(events(&lines), &mut Dropped::new());
            filter.commit();
            assert!((1..=100).contains(&filter.busy.len()));
            clock.advance(Duration::from_millis(1));
        }
        clock.advance(Duration::from_secs(1));
        filter.apply(
            events(&(0..101).map(|i| format!("new {i}")).collect::<Vec<_>>()),
            &mut Dropped::new(),
        );
        filter.commit();
        assert_eq!(filter.busy.len(), 75, "the quiet ones went first, then the bound");
    }
    proptest! {
        /// In any window of `per`, at most what may come at once and what has come back since.
        #[test]
        fn never_more_than_twice(events in 1..6u64, steps in prop::collection::vec((0..400u64, 0..5usize), 1..40)) {
            let (mut filter, clock) = throttle(&format!(r#"{{"events":{events}}}"#));
            let (mut at, mut passed) = (0, vec![]);
            for (step, n) in steps {
                clock.advance(Duration::from_millis(step));
                at += step;
                let left = pass(&mut *filter, &vec!["x"; n]).0.len();
                passed.extend(vec![at; left]);
            }
            for start in &passed {
                let within = passed.iter().filter(|t| (*start..start + 1000).contains(t)).count() as u64;
                prop_assert!(within < 2 * events + 1, "{} in a second, from {}", within, start);
            }
            prop_assert!(passed.len() as u64 <= events + at * events / 1000 + 1);
        }
    }
}
