//! What is remembered of a job over a restart.
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// So many ranges are kept; past that the two oldest become one, and what lies between counts as run.
const MOST_RANGES: usize = 64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobMemory {
    /// The schedule, and its zone, that the rest is about. Another one begins anew.
    pub express: Arc<str>,
    pub tz: Option<Arc<str>>,
    /// When it was accepted: nothing before counts as missed, and `@every` counts from here.
    pub accepted: Timestamp,
    /// Up to here every instant was decided on: run, skipped, or recorded as missed.
    pub decided: Timestamp,
    /// Planned instants that ran.
    #[serde(default)]
    pub ran: Ranges,
    /// It was paused when this was written: what passes until it runs again is not missed.
    #[serde(default)]
    pub paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordered: Option<Box<Override>>,
    /// Its last run did not succeed: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<Box<str>>,
    /// What a `once` job has run as: its create revision and the hash of its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<Box<str>>,
}
impl JobMemory {
    pub fn new(express: Arc<str>, tz: Option<Arc<str>>, now: Timestamp) -> Self {
        Self {
            express,
            tz,
            accepted: now,
            decided: now,
            ran: Ranges::default(),
            paused: false,
            ordered: None,
            failing: None,
            once: None,
        }
    }
}

/// Somebody paused or resumed it here. Holds until its value changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    pub paused: bool,
    /// Of the value it is about.
    pub value_hash: String,
}

/// Planned instants, in seconds, as ranges of neighbours in the schedule. In the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges(Vec<(i64, i64)>);
impl Ranges {
    /// `before`: the instant before it in the schedule, if it is known.
    pub fn add(&mut self, planned: Timestamp, before: Option<Timestamp>) {
        let planned = planned.as_second();
        let follows = |last: i64| before.is_some_and(|before| before.as_second() == last) && planned > last;
        if let Some((_, last)) = self.0.last_mut().filter(|(_, last)| follows(*last)) {
            *last = planned;
        } else if !self.contains_second(planned) {
            self.0.push((planned, planned));
        }
        if self.0.len() > MOST_RANGES {
            let (first, second) = (self.0[0], self.0.remove(1));
            self.0[0] = (first.0.min(second.0), first.1.max(second.1));
        }
    }
    /// First and last of each.
    pub fn iter(&self) -> impl Iterator<Item = (Timestamp, Timestamp)> + '_ {
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
        self.0.iter().map(move |(first, last)| (at(*first), at(*last)))
    }
    pub fn contains(&self, planned: Timestamp) -> bool {
        self.contains_second(planned.as_second())
    }
    fn contains_second(&self, planned: i64) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&planned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }
    #[test]
    fn neighbours_join() {
        let mut ranges = Ranges::default();
        for (planned, before) in [
            (60, None),
            (120, Some(60)),
            (180, Some(120)),
            (300, Some(240)),
            (360, Some(300)),
            (120, Some(60)),
        ] {
            ranges.add(at(planned), before.map(at));
        }
        assert_eq!(ranges, Ranges(vec![(60, 180), (300, 360)]));
        for (planned, ran) in [
            (59, false),
            (60, true),
            (180, true),
            (240, false),
            (300, true),
            (361, false),
        ] {
            assert_eq!(ranges.contains(at(planned)), ran, "{planned}");
        }
    }
    #[test]
    fn ranges_are_bounded_and_forget_to_the_safe_side() {
        let mut ranges = Ranges::default();
        for n in 0..1000 {
            ranges.add(at(n * 600), None);
        }
        assert_eq!(ranges.0.len(), MOST_RANGES);
        assert!((0..1000).all(|n| ranges.contains(at(n * 600))));
        assert!(!ranges.contains(at(999 * 600 - 300)));
    }
}
