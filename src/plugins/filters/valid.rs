//! Takes away what is no event: empty ones, and, as told, those that are not UTF-8. A batch with nothing wrong passes untouched:
//! one look over the line ends and one check over the whole chunk; single events are looked at only where that check fails.
use fail::fail_point;
use serde::Deserialize;

use super::*;
use crate::plugins::{BadValue, Opt};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "valid",
    tag: "v1",
    stable: true,
    about: "drops empty events, and replaces or drops what is not UTF-8",
    delivery: "an event taken away counts as filtered, by reason: empty, invalid_utf8",
    options: &[Opt {
        name: "invalid_utf8",
        default: "\"replace\"",
        about: "what is not UTF-8: `replace` puts U+FFFD in its place, `drop` takes the event away, `keep` leaves it",
    }],
    sample: r#"{ plugin = "valid", invalid_utf8 = "replace" }"#,
    check: |table| config(table).map(drop),
    build: |table, _| Ok(Box::new(Valid(config(table)?.invalid_utf8))),
};

pub const EXAMPLE: Example = Example {
    plugin: "valid",
    options: "{}",
    lines: &["an event", "", "another"],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    invalid_utf8: Invalid,
}
/// What becomes of an event that is not UTF-8.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Invalid {
    #[default]
    Replace,
    Drop,
    Keep,
}
fn config(table: &Table) -> Result<Config, BadValue> {
    table.read()
}

struct Valid(Invalid);
impl Filter for Valid {
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events {
        fail_point!("filter-valid");
        let before = events.len();
        let events = events.retain_nonempty();
        let empty = before - events.len();
        if empty > 0 {
            dropped.push(("empty", empty as u64));
        }
        // Every event ends behind an ASCII byte, so a chunk that is UTF-8 as a whole is made of events that are.
        if matches!(self.0, Invalid::Keep) || is_utf8(events.buffer()) {
            return events;
        }
        if matches!(self.0, Invalid::Replace) {
            return replace(events);
        }
        let before = events.len();
        let events = events.retain(is_utf8);
        let invalid = before - events.len();
        if invalid > 0 {
            dropped.push(("invalid_utf8", invalid as u64));
        }
        events
    }
}

fn is_utf8(bytes: &[u8]) -> bool {
    simdutf8::basic::from_utf8(bytes).is_ok()
}

/// The same events, each broken sequence a U+FFFD. Untouched if the fault was in events that are gone already.
fn replace(events: Events) -> Events {
    if events.slices().all(is_utf8) {
        return events;
    }
    let mut bytes = Vec::with_capacity(events.size() + events.size() / 8);
    let (mut ends, mut offsets) = (Vec::with_capacity(events.len()), Vec::with_capacity(events.len()));
    for (offset, event) in events.with_offsets() {
        if is_utf8(event) {
            bytes.extend_from_slice(event);
        } else {
            bytes.extend_from_slice(String::from_utf8_lossy(event).as_bytes());
        }
        bytes.push(b'\n');
        // Grows to three times at most: far below 4 GiB for any batch that fits in memory's share.
        ends.push(bytes.len() as u32);
        offsets.push(offset);
    }
    Events::rewritten(bytes.into(), ends, offsets)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::testing::{build, events},
        *,
    };

    fn valid(options: &str) -> Box<dyn Filter> {
        build("valid", options)
    }
    fn run(options: &str, contents: &[&[u8]]) -> (Vec<Vec<u8>>, Dropped) {
        let all = contents.iter().map(|c| c.to_vec()).collect::<Vec<_>>();
        let mut dropped = Dropped::new();
        let left = valid(options).apply(events(&all), &mut dropped);
        assert_eq!(left.size(), left.iter().map(|e| e.len() + 1).sum::<usize>());
        (left.iter().map(<[u8]>::to_vec).collect(), dropped)
    }

    #[test]
    fn drops_empty_events_only() {
        let (left, dropped) = run("{}", &[b"", b"a", b"", b"", b" ", b"\r", b""]);
        assert_eq!(left, [b"a".to_vec(), b" ".to_vec(), b"\r".to_vec()]);
        assert_eq!(dropped, [("empty", 4)]);
        assert_eq!(run("{}", &[b""]), (vec![], vec![("empty", 1)]));
        assert_eq!(run("{}", &[]), (vec![], vec![]));
    }
    #[test]
    fn what_is_not_utf8() {
        let bad: &[&[u8]] = &[b"a\xff\xfeb", b"", "ünd".as_bytes(), b"\xe2\x82"];
        let (left, dropped) = run("{}", bad);
        assert_eq!(
            left,
            ["a\u{fffd}\u{fffd}b", "ünd", "\u{fffd}"].map(|s| s.as_bytes().to_vec())
        );
        assert_eq!(dropped, [("empty", 1)]);
        let (left, dropped) = run(r#"{"invalid_utf8":"drop"}"#, bad);
        assert_eq!(left, ["ünd".as_bytes().to_vec()]);
        assert_eq!(dropped, [("empty", 1), ("invalid_utf8", 2)]);
        let (left, dropped) = run(r#"{"invalid_utf8":"keep"}"#, bad);
        assert_eq!(left, [bad[0].to_vec(), bad[2].to_vec(), bad[3].to_vec()]);
        assert_eq!(dropped, [("empty", 1)]);
    }
    #[test]
    fn two_halves_of_a_character_in_two_events_are_two_faults() {
        let (left, _) = run("{}", &[b"\xe2\x82", b"\xac"]);
        assert_eq!(left, ["\u{fffd}", "\u{fffd}"].map(|s| s.as_bytes().to_vec()));
    }
    #[test]
    fn nothing_wrong_touches_nothing() {
        let before = events(&[b"one".to_vec(), "zwölf".into()]);
        let mut dropped = Dropped::new();
        let after = valid("{}").apply(before.clone(), &mut dropped);
        assert!(after.is_whole() && dropped.is_empty());
        assert_eq!(after.buffer().as_ptr(), before.buffer().as_ptr());
    }
    #[test]
    fn a_fault_in_an_event_that_is_gone_already_changes_nothing() {
        let before = events(&[b"\xff".to_vec(), b"good".to_vec()]).retain(|e| e == b"good");
        let after = valid("{}").apply(before.clone(), &mut Dropped::new());
        assert_eq!(after.buffer().as_ptr(), before.buffer().as_ptr());
    }
    #[test]
    fn unknown_options_and_values_are_refused() {
        let refused = |text| (PLUGIN.check)(&Table(serde_json::from_str(text).unwrap())).unwrap_err();
        assert_eq!(refused(r#"{"utf8":"drop"}"#).key, "utf8");
        let error = refused(r#"{"invalid_utf8":"ignore"}"#);
        assert!(
            error.key == "invalid_utf8" && error.message.contains("`replace`, `drop`, `keep`"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6), 0..40)) {
            let lossy = contents.iter().filter(|c| !c.is_empty());
            let (mut offset, mut offsets) = (0, Vec::new());
            for content in &contents {
                if !content.is_empty() {
                    offsets.push(offset);
                }
                offset += content.len() as u32 + 1;
            }
            let expected = lossy.map(|c| String::from_utf8_lossy(c).into_owned().into_bytes()).collect::<Vec<_>>();
            let left = valid("{}").apply(events(&contents), &mut Dropped::new());
            prop_assert_eq!(left.iter().map(<[u8]>::to_vec).collect::<Vec<_>>(), expected);
            prop_assert_eq!(left.with_offsets().map(|(at, _)| at).collect::<Vec<_>>(), offsets);
        }
    }
}
