//! Patterns, looked for over a whole chunk at once. A literal is found by SIMD. A regular expression runs over the chunk if every event
//! of it is one line: rewritten so that it cannot leave a line, it finds there exactly what it would find in each event by itself.
//! Else, and where it cannot be rewritten, it is asked event by event.
use std::ops::Range;

use memchr::memmem::Finder;
use regex::bytes::Regex;
use regex_syntax::{
    ParserBuilder,
    hir::{self, Class, Hir, HirKind, Look},
};

use crate::model::Events;

pub struct Search {
    literal: Option<Finder<'static>>,
    /// For one event.
    event: Regex,
    /// For events that are lines.
    line: Option<Regex>,
}

/// What is looked for: any of them.
pub fn parse(pattern: &str, literal: bool, ignore_case: bool) -> Result<Hir, String> {
    let escaped = if literal {
        regex::escape(pattern)
    } else {
        pattern.to_owned()
    };
    let mut parser = ParserBuilder::new().utf8(false).case_insensitive(ignore_case).build();
    parser.parse(&escaped).map_err(|error| {
        // The caret text is for terminals; its last line says it.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        let said = last.strip_prefix("error: ").unwrap_or(last);
        format!("found {pattern:?}: {said}, accepted: a regular expression as of the Rust crate regex")
    })
}

impl Search {
    pub fn new(any: Vec<Hir>) -> Result<Self, String> {
        let hir = Hir::alternation(any);
        let literal = match hir.kind() {
            HirKind::Literal(literal) => Some(Finder::new(&literal.0).into_owned()),
            _ => None,
        };
        let compile = |hir: &Hir| {
            let compiled = Regex::new(&hir.to_string());
            compiled.map_err(|error| format!("found a pattern that is too large: {error}"))
        };
        Ok(Self {
            event: compile(&hir)?,
            line: within_line(&hir).map(|hir| compile(&hir)).transpose()?,
            literal,
        })
    }
    /// Into `hits`: the numbers of the events that have a match, as `Events::hits`.
    pub fn hits(&self, events: &Events, hits: &mut Vec<u32>) {
        match (&self.literal, &self.line) {
            (Some(literal), _) => {
                let len = literal.needle().len();
                events.hits(hits, |stretch, from| {
                    let at = from + literal.find(&stretch[from..])?;
                    Some(at..at + len)
                });
            }
            (None, Some(line)) if events.are_lines() => {
                events.hits(hits, |stretch, from| Some(line.find_at(stretch, from)?.range()));
            }
            _ => {
                hits.clear();
                events.clone().retain_numbered(|i, event| {
                    if self.event.is_match(event) {
                        hits.push(i);
                    }
                    true
                });
            }
        }
    }
    /// Asks `found` about each match, in order: told the event-wide buffer, the match in it, and that of group 1 if there is one.
    pub fn matches(&self, events: &Events, mut found: impl FnMut(&[u8], Range<usize>, Option<Range<usize>>)) {
        let bytes = events.buffer();
        let mut in_part = |regex: &Regex, part: Range<usize>| {
            if regex.captures_len() == 1 {
                for hit in regex.find_iter(&bytes[part.clone()]) {
                    found(bytes, part.start + hit.start()..part.start + hit.end(), None);
                }
                return;
            }
            for hit in regex.captures_iter(&bytes[part.clone()]) {
                let range = |hit: regex::bytes::Match<'_>| part.start + hit.start()..part.start + hit.end();
                if let Some(whole) = hit.get(0) {
                    found(bytes, range(whole), hit.get(1).map(range));
                }
            }
        };
        match &self.line {
            Some(line) if events.are_lines() => {
                for stretch in events.stretches() {
                    in_part(line, stretch);
                }
            }
            _ => {
                for (start, event) in events.places() {
                    in_part(&self.event, start..start + event.len());
                }
            }
        }
    }
    /// For tests: what it finds in one event.
    #[cfg(test)]
    pub fn is_match(&self, event: &[u8]) -> bool {
        self.event.is_match(event)
    }
}

/// The same for text without `\n` in it, found between the line ends of longer text. None: cannot be said so.
fn within_line(hir: &Hir) -> Option<Hir> {
    let all = |hirs: &[Hir]| hirs.iter().map(within_line).collect::<Option<Vec<_>>>();
    Some(match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) if literal.0.contains(&b'\n') => Hir::fail(),
        HirKind::Literal(literal) => Hir::literal(literal.0.clone()),
        HirKind::Class(Class::Unicode(class)) => {
            let newline = hir::ClassUnicode::new([hir::ClassUnicodeRange::new('\n', '\n')]);
            let mut class = class.clone();
            class.difference(&newline);
            Hir::class(Class::Unicode(class))
        }
        HirKind::Class(Class::Bytes(class)) => {
            let newline = hir::ClassBytes::new([hir::ClassBytesRange::new(b'\n', b'\n')]);
            let mut class = class.clone();
            class.difference(&newline);
            Hir::class(Class::Bytes(class))
        }
        HirKind::Look(Look::Start | Look::StartLF) => Hir::look(Look::StartLF),
        HirKind::Look(Look::End | Look::EndLF) => Hir::look(Look::EndLF),
        HirKind::Look(Look::StartCRLF | Look::EndCRLF) => return None,
        // Words: a line end is no part of one, as the edge of an event is none.
        HirKind::Look(look) => Hir::look(*look),
        HirKind::Repetition(rep) => Hir::repetition(rep.with(within_line(&rep.sub)?)),
        HirKind::Capture(group) => Hir::capture(hir::Capture {
            sub: Box::new(within_line(&group.sub)?),
            ..group.clone()
        }),
        HirKind::Concat(parts) => Hir::concat(all(parts)?),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::testing::events, *};

    fn search(pattern: &str) -> Search {
        Search::new(vec![parse(pattern, false, false).unwrap()]).unwrap()
    }

    #[test]
    fn what_runs_over_the_chunk() {
        assert!(search("plain").literal.is_some() && search("a.b").literal.is_none());
        for pattern in [
            "^a", "a$", r"\s+b", "[^x]*y", r"\bw\b", "(?s)a.b", "x|y", "(a)(b)?", "(?m)^x$", "a\nb|c",
        ] {
            assert!(search(pattern).line.is_some(), "{pattern}");
        }
        assert!(search("(?R)(?m)a$").line.is_none());
        let error = parse("a(b", false, false).unwrap_err();
        assert!(error.contains("unclosed group"), "{error}");
        assert!(parse("a(b", true, false).is_ok());
    }

    proptest! {
        #[test]
        fn the_whole_chunk_and_single_events_agree(
            pattern in r"(\^|\(\?m\)\^)?(a|b|\\s|\[\^a\]|\.|\\b|\(\?s:\.\)|\\n|(a\|b)|(b)\+\?|a\*|\$){1,5}(\$)?",
            contents in prop::collection::vec("[ab \u{e9}]{0,6}", 0..12),
            inner in prop::collection::vec("[ab\n]{0,6}", 0..3),
        ) {
            let Ok(hir) = parse(&pattern, false, false) else { return Ok(()) };
            let search = Search::new(vec![hir]).unwrap();
            let all = contents.iter().chain(&inner).map(|c| c.as_bytes().to_vec()).collect::<Vec<_>>();
            let lines = contents.iter().map(|c| c.as_bytes().to_vec()).collect::<Vec<_>>();
            for contents in [lines, all] {
                let events = events(&contents);
                let mut hits = vec![];
                search.hits(&events, &mut hits);
                let expected = (0..contents.len() as u32).filter(|i| search.is_match(&contents[*i as usize])).collect::<Vec<_>>();
                prop_assert_eq!(hits, expected, "{} {:?}", pattern, contents);
            }
        }
    }
}
