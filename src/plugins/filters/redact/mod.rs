//! Puts something harmless in the place of what nobody should read: card numbers, phones, tokens, and own patterns. All patterns run over
//! the whole chunk (see `search`); a batch without a find passes untouched.
mod presets;

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;

use self::presets::{PRESETS, Preset};
use super::{
    search::{Search, parse},
    *,
};
use crate::plugins::{BadValue, Opt};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "redact",
    tag: "v1",
    stable: true,
    about: "replaces what nobody should read: cards, phones, id numbers, e-mail addresses, tokens, own patterns",
    delivery: "takes no event away",
    options: &[
        Opt {
            name: "presets",
            default: "none",
            about: "any of card (13 to 19 digits that pass Luhn's check), phone, id_number (Chinese resident, US social security), email, bearer (tokens behind `Bearer`, JSON web tokens); or [\"all\"]",
        },
        Opt {
            name: "patterns",
            default: "none",
            about: "`{ session = \"sid=(\\\\w+)\" }`: regular expressions by name; with groups only the first is replaced",
        },
        Opt {
            name: "replacement",
            default: "\"[{name}]\"",
            about: "what is written instead; `{name}` is the preset's or pattern's name. In a JSON object a bare number's gets quotes",
        },
    ],
    sample: r#"{ plugin = "redact", presets = ["card", "email", "bearer"], patterns = { session = "sid=(\\w+)" } }"#,
    check: |table| rules(table).map(drop),
    build: |table, _| {
        Ok(Box::new(Redact {
            rules: rules(table)?,
            found: vec![],
        }))
    },
};
pub const EXAMPLE: Example = Example {
    plugin: "redact",
    options: r#"{"presets":["card","email","bearer"],"patterns":{"session":"sid=(\\w+)"}}"#,
    lines: &[
        "paid with 4111 1111 1111 1111, order 1764104000123",
        "mail from ann@example.org sid=8f3a2c",
        "Authorization: Bearer abc.def-123",
        r#"{"card":4111111111111111,"ok":true}"#,
        "nothing to hide",
    ],
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    presets: Vec<String>,
    #[serde(default)]
    patterns: BTreeMap<String, String>,
    #[serde(default = "replacement")]
    replacement: String,
}
fn replacement() -> String {
    "[{name}]".to_owned()
}
struct Rule {
    search: Search,
    preset: Option<&'static Preset>,
    replacement: String,
}

fn rules(table: &Table) -> Result<Vec<Rule>, BadValue> {
    let config = table.read::<Config>()?;
    if config.replacement.contains(char::is_control) {
        return Err(BadValue::new(
            "replacement",
            format!(
                "found {:?}, accepted: text without control characters",
                config.replacement
            ),
        ));
    }
    let rule = |key: String, name: &str, pattern: &str, preset| {
        let search = parse(pattern, false, false).and_then(|hir| Search::new(vec![hir]));
        Ok(Rule {
            search: search.map_err(|error| BadValue::new(key, error))?,
            preset,
            replacement: config.replacement.replace("{name}", name),
        })
    };
    let mut rules = vec![];
    for (i, wanted) in config.presets.iter().enumerate() {
        let fits = PRESETS
            .iter()
            .filter(|preset| wanted == "all" || preset.name == wanted)
            .collect::<Vec<_>>();
        if fits.is_empty() {
            let names = PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ");
            return Err(BadValue::new(
                format!("presets[{i}]"),
                format!("found {wanted:?}, accepted: {names}, all"),
            ));
        }
        for preset in fits {
            rules.push(rule(
                format!("presets[{i}]"),
                preset.name,
                preset.pattern,
                Some(preset),
            )?);
        }
    }
    for (name, pattern) in &config.patterns {
        rules.push(rule(format!("patterns.{name}"), name, pattern, None)?);
    }
    if rules.is_empty() {
        return Err(BadValue::new(
            "",
            "found neither `presets` nor `patterns`, accepted: at least one of them",
        ));
    }
    Ok(rules)
}

struct Redact {
    rules: Vec<Rule>,
    /// Only its room is kept: where in the buffer, by which rule.
    found: Vec<(Range<usize>, usize)>,
}
impl Filter for Redact {
    fn apply(&mut self, events: Events, _: &mut Dropped) -> Events {
        let Self { rules, found } = self;
        found.clear();
        for (number, rule) in rules.iter().enumerate() {
            rule.search.matches(&events, |bytes, whole, group| {
                let hit = group.unwrap_or(whole);
                match rule.preset {
                    None => found.push((hit, number)),
                    Some(preset) => {
                        let parts = (preset.parts)(&bytes[hit.clone()]).into_iter();
                        found.extend(parts.map(|part| (hit.start + part.start..hit.start + part.end, number)));
                    }
                }
            });
        }
        found.retain(|(range, _)| !range.is_empty());
        if found.is_empty() {
            return events;
        }
        // In order; of two that meet the one that begins first, then the longer, then the rule named first.
        found.sort_unstable_by_key(|(range, number)| (range.start, std::cmp::Reverse(range.end), *number));
        let mut found = found.iter().peekable();
        rewrite(events, |start, event, out| {
            let end = start + event.len();
            let (mut done, mut changed) = (start, false);
            let is_json = event.trim_ascii_start().starts_with(b"{");
            while let Some((range, number)) = found.next_if(|(range, _)| range.start < end) {
                if range.end <= done {
                    continue; // inside what is gone already
                }
                changed = true;
                let from = range.start.max(done);
                out.extend_from_slice(&event[done - start..from - start]);
                if range.start >= done {
                    let bare = is_json && !in_text(&event[..from - start]);
                    out.extend(bare.then_some(b'"'));
                    out.extend_from_slice(rules[*number].replacement.as_bytes());
                    out.extend(bare.then_some(b'"'));
                }
                done = range.end;
            }
            out.extend_from_slice(&event[done - start..]);
            if changed { Becomes::Changed } else { Becomes::Same }
        })
    }
}
/// Behind this much of a JSON object: inside a text?
fn in_text(before: &[u8]) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in before {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    inside
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::*, presets::luhn};

    fn one(preset: &str, line: &str) -> String {
        let options = format!(r#"{{"presets":["{preset}"],"replacement":"*"}}"#);
        run("redact", &options, &[line]).0.remove(0)
    }

    #[test]
    fn presets() {
        for (preset, line, expected) in [
            ("card", "4111111111111111", "*"),
            ("card", "a 4111-1111-1111-1111.", "a *."),
            ("card", "2026 4111 1111 1111 1111 17", "2026 * 17"),
            ("card", "378282246310005 5555 5555 5555 4444", "* *"),
            ("card", "4111111111111112", "4111111111111112"),
            (
                "card",
                "1764104000123 x4111111111111111",
                "1764104000123 x4111111111111111",
            ),
            ("card", "41111111111111110000000000", "41111111111111110000000000"),
            ("phone", "call +49 (0)30 1234567 or +14155552671.", "call * or *."),
            ("phone", "(555) 123-4567 555-123-4567 13812345678", "* * *"),
            (
                "phone",
                "10.0.0.1 2026-11-25 10:15:00 1764104000 +0000]",
                "10.0.0.1 2026-11-25 10:15:00 1764104000 +0000]",
            ),
            ("id_number", "11010519491231002X and 123-45-6789", "* and *"),
            (
                "id_number",
                "110105194912310021 110105194913310022 000-12-3456 666-12-3456",
                "110105194912310021 110105194913310022 000-12-3456 666-12-3456",
            ),
            ("email", "to <a.b+c@mail.example.org>, x@y @z", "to <*>, x@y @z"),
            (
                "bearer",
                "authorization: bearer  a.b-c== x",
                "authorization: bearer  * x",
            ),
            ("bearer", "t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOjF9.c2ln;", "t=*;"),
            ("bearer", "the bearer", "the bearer"),
        ] {
            assert_eq!(one(preset, line), expected, "{preset}");
        }
        assert_eq!(
            run("redact", r#"{"presets":["all"]}"#, &["a@b.de 4111111111111111"]).0,
            ["[email] [card]"]
        );
    }
    #[test]
    fn own_patterns() {
        let options = r#"{"patterns":{"a":"x(\\d+)y","b":"\\d{3}","c":"^#.*$"},"replacement":"<{name}>"}"#;
        let (left, _) = run("redact", options, &["x12y x1234y 567", "#all", "in\n#ner", "1234567"]);
        assert_eq!(left, ["x<a>y x<a>y <b>", "<c>", "in\n#ner", "<b><b>7"]);
        untouched("redact", options, &["nothing", "12"]);
    }
    #[test]
    fn json_stays_json() {
        let line = r#"{"n":4111111111111111,"t":"is: 4111111111111111, \"q\"","l":[4111111111111111]}"#;
        let expected = r#"{"n":"[card]","t":"is: [card], \"q\"","l":["[card]"]}"#;
        assert_eq!(run("redact", r#"{"presets":["card"]}"#, &[line]).0, [expected]);
    }
    #[test]
    fn refuses() {
        for (options, key) in [
            ("{}", ""),
            (r#"{"presets":["cards"]}"#, "presets[0]"),
            (r#"{"patterns":{"x":"("}}"#, "patterns.x"),
            (r#"{"presets":["all"],"replacement":"a\nb"}"#, "replacement"),
            (r#"{"preset":["all"]}"#, "preset"),
        ] {
            assert_eq!(refused("redact", options).key, key, "{options}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })] // each compiles the patterns
        #[test]
        fn every_valid_card_goes_and_no_other(first in 2..=6u8, rest in prop::collection::vec(0..10u8, 11..17), check: u8, group in prop::option::of(3..6usize)) {
            let mut digits = vec![first];
            digits.extend(&rest);
            digits.push(check % 10);
            let text = digits.iter().enumerate().map(|(i, d)| match group {
                Some(n) if i > 0 && i % n == 0 => format!("-{d}"),
                _ => d.to_string(),
            }).collect::<String>();
            let line = format!("pay {text} now");
            let got = one("card", &line);
            if luhn(&digits) {
                prop_assert_eq!(got, "pay * now");
            } else {
                // A part of its groups may be one by chance.
                prop_assert!(got == line || group.is_some());
            }
        }
        #[test]
        fn what_is_not_found_stays(contents in prop::collection::vec("[a-z0-9@. -]{0,20}", 0..10)) {
            let lines = contents.iter().map(String::as_str).collect::<Vec<_>>();
            let (left, dropped) = run("redact", r#"{"presets":["all"],"replacement":"~"}"#, &lines);
            prop_assert!(dropped.is_empty() && left.len() == lines.len());
            for (left, line) in left.iter().zip(&lines) {
                // What stays, in its order, is in the original.
                let mut rest = *line;
                for part in left.split('~') {
                    let at = rest.find(part);
                    prop_assert!(at.is_some(), "{} {}", left, line);
                    rest = &rest[at.unwrap() + part.len()..];
                }
            }
        }
    }
}
