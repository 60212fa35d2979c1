//! Lets a part of the events through: by count, or by the hash of a key, so that all events of one key share their fate on every host
//! and after every start.
use serde::Deserialize;

use super::{key::Key, *};
use crate::plugins::{BadValue, Opt};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "sample",
    tag: "v1",
    stable: true,
    about: "keeps one of N events, or a share of them; by count, or the same choice for all events of a key",
    delivery: "an event taken away counts as filtered, by reason: sampled_out. The count begins anew with the agent",
    options: &[
        Opt {
            name: "every",
            default: "none",
            about: "keeps the first of every N events; with a key, one of N keys",
        },
        Opt {
            name: "share",
            default: "none",
            about: "instead: keeps this share, from 0 to 1, evenly spread; with a key, of the keys",
        },
        super::key::FIELD,
        super::key::PATTERN,
    ],
    sample: r#"{ plugin = "sample", every = 10 }"#,
    check: |table| rules(table).map(drop),
    build: |table, _| Ok(Box::new(rules(table)?)),
};
pub const EXAMPLE: Example = Example {
    plugin: "sample",
    options: r#"{"every":3}"#,
    lines: &["one", "two", "three", "four", "five"],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    every: Option<u64>,
    #[serde(default)]
    share: Option<f64>,
    #[serde(default)]
    key: Option<String>,
    #[serde(default)]
    key_pattern: Option<String>,
}
#[derive(Clone, Copy)]
enum Part {
    Every(u64),
    /// In 2^32 parts.
    Share(u64),
}
const WHOLE: u64 = 1 << 32;

struct Sample {
    part: Part,
    /// None: by count.
    key: Option<Key>,
    /// Every: how many since the last that was kept. Share: how much of the next one is full.
    count: u64,
    noted: u64,
}
fn rules(table: &Table) -> Result<Sample, BadValue> {
    let config = table.read::<Config>()?;
    let part = match (config.every, config.share) {
        (Some(0), None) => return Err(BadValue::new("every", "found 0, accepted: 1 or more")),
        (Some(n), None) => Part::Every(n),
        (None, Some(share)) if (0.0..=1.0).contains(&share) => Part::Share((share * WHOLE as f64).round() as u64),
        (None, Some(share)) => return Err(BadValue::new("share", format!("found {share}, accepted: 0 to 1"))),
        (None, None) => {
            return Err(BadValue::new(
                "",
                "found neither `every` nor `share`, accepted: one of the two",
            ));
        }
        (Some(_), Some(_)) => return Err(BadValue::new("share", "found beside `every`, accepted: one of the two")),
    };
    let key = match Key::new(config.key.as_deref(), config.key_pattern.as_deref())? {
        Key::Whole => None,
        key => Some(key),
    };
    let count = match part {
        Part::Every(n) => n - 1, // the first is kept
        Part::Share(_) => 0,
    };
    Ok(Sample {
        part,
        key,
        count,
        noted: count,
    })
}

impl Filter for Sample {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        let (mut count, before) = (self.count, events.len());
        let left = events.retain(|event| {
            // An event without the key is one of all those without: chosen by count.
            match (self.part, self.key.as_ref().and_then(|key| key.of(event))) {
                (Part::Every(n), Some(hash)) => ((hash >> 64) as u64).is_multiple_of(n),
                (Part::Share(share), Some(hash)) => (hash as u64 >> 32) < share,
                (Part::Every(n), None) => {
                    count += 1;
                    let is_next = count >= n;
                    if is_next {
                        count = 0;
                    }
                    is_next
                }
                (Part::Share(share), None) => {
                    count += share;
                    let is_full = count >= WHOLE;
                    if is_full {
                        count -= WHOLE;
                    }
                    is_full
                }
            }
        });
        self.noted = count;
        note(dropped, "sampled_out", (before - left.len()) as u64);
        left
    }
    fn commit(&mut self) {
        self.count = self.noted;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::*;

    fn numbers(n: usize) -> Vec<String> {
        (0..n).map(|i| i.to_string()).collect()
    }
    fn kept(options: &str, lines: &[String]) -> Vec<String> {
        run("sample", options, &lines.iter().map(String::as_str).collect::<Vec<_>>()).0
    }

    #[test]
    fn by_count() {
        assert_eq!(kept(r#"{"every":4}"#, &numbers(10)), ["0", "4", "8"]);
        assert_eq!(kept(r#"{"every":1}"#, &numbers(3)), ["0", "1", "2"]);
        assert_eq!(kept(r#"{"share":0.25}"#, &numbers(8)), ["3", "7"]);
        assert_eq!(kept(r#"{"share":1}"#, &numbers(3)).len(), 3);
        assert_eq!(kept(r#"{"share":0}"#, &numbers(3)).len(), 0);
    }
    #[test]
    fn a_key_shares_its_fate() {
        let lines = (0..4_000)
            .map(|i| format!("user={} n={i}", i % 1000))
            .collect::<Vec<_>>();
        for (options, about) in [
            (r#"{"every":10,"key_pattern":"user=(\\d+)"}"#, 100),
            (r#"{"share":0.1,"key_pattern":"user=(\\d+)"}"#, 100),
        ] {
            let kept = kept(options, &lines);
            let users = kept
                .iter()
                .map(|l| l.split(' ').next().unwrap())
                .collect::<std::collections::BTreeSet<_>>();
            assert_eq!(kept.len(), users.len() * 4, "all or none of each");
            assert!((about / 2..about * 2).contains(&users.len()), "{}", users.len());
        }
        // Without the key: by count.
        assert_eq!(kept(r#"{"every":2,"key":"id"}"#, &numbers(4)), ["0", "2"]);
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            ("{}", ""),
            (r#"{"every":0}"#, "every"),
            (r#"{"share":1.5}"#, "share"),
            (r#"{"share":-0.1}"#, "share"),
            (r#"{"every":2,"share":0.5}"#, "share"),
            (r#"{"every":2,"key":"a","key_pattern":"b"}"#, "key_pattern"),
        ] {
            assert_eq!(refused("sample", options).key, key, "{options}");
        }
    }
    proptest! {
        #[test]
        fn a_share_is_one(share in 0.0..1.0f64, n in 0..500usize) {
            let kept = kept(&format!(r#"{{"share":{share}}}"#), &numbers(n)).len() as f64;
            prop_assert!((kept - share * n as f64).abs() <= 1.0, "{} of {}", kept, n);
        }
    }
}
