//! How events look at an output: as they came, or as one JSON object a line. Shared by all outputs.
use std::io::{IoSlice, Write};

use serde::Deserialize;

use crate::{
    model::Batch,
    plugins::{Opt, json::whole_object},
};

/// The row that every output has in its options.
pub const OPTION: Opt = Opt {
    name: "encode",
    default: "\"raw\"",
    about: "`raw`: the event as it came; `json`: one line {ts, host, group, path, offset, message}, ts being when it was read; \
            namespace, pod, container and container_id stand behind path where the input knows them (framing cri, docker); an \
            event that is a JSON object stands as it is under `fields`, and then there is no message",
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encode {
    #[default]
    Raw,
    Json,
}

/// Of more separate ranges of a batch than these, each of fewer bytes than those on average, one copy is as cheap as handing each to the
/// kernel, or cheaper (measured).
const FEW_RANGES: usize = 10;
const LONG_RANGE: usize = 2048;
/// What is joined by copying stays in the second-level cache; a single larger batch goes all the same.
const MOST_COPIED: usize = 256 << 10;

/// Batches as a byte stream would write them.
pub struct Joined<'a> {
    pub slices: Vec<IoSlice<'a>>,
    /// Where each batch ends, counted in bytes from the start of the first. Its length is how many batches were joined.
    pub ends: Vec<usize>,
}
impl Joined<'_> {
    /// How many whole batches the first `bytes` bytes are.
    pub fn whole(&self, bytes: usize) -> usize {
        self.ends.partition_point(|end| *end <= bytes)
    }
}

impl Encode {
    /// Joins from the front, at least one batch if there is any. The same batch always gives the same bytes, so that a write that
    /// stopped in its middle can go on from there. `copied` is room for what cannot be written in place, kept by the caller.
    pub fn join<'a>(self, batches: &'a [Batch], copied: &'a mut Vec<u8>) -> Joined<'a> {
        /// One whole batch in place, or its part of `copied`.
        enum Piece<'a> {
            InPlace(&'a [u8]),
            CopiedTo(usize),
        }
        copied.clear();
        copied.shrink_to(MOST_COPIED * 8); // one giant event must not hold its memory for ever
        let mut pieces = Vec::with_capacity(batches.len());
        let (mut ends, mut size) = (Vec::with_capacity(batches.len()), 0);
        for batch in batches {
            if copied.len() >= MOST_COPIED {
                break;
            }
            let before = copied.len();
            match self {
                Self::Json => json(batch, copied),
                Self::Raw if batch.events.ranges() <= FEW_RANGES.max(batch.events.size() / LONG_RANGE) => {
                    pieces.extend(batch.events.slices().map(Piece::InPlace));
                    size += batch.events.size();
                }
                Self::Raw => batch.events.slices().for_each(|s| copied.extend_from_slice(s)),
            }
            if copied.len() > before {
                size += copied.len() - before;
                match pieces.last_mut() {
                    Some(Piece::CopiedTo(end)) => *end = copied.len(),
                    _ => pieces.push(Piece::CopiedTo(copied.len())),
                }
            }
            ends.push(size);
        }
        let (copied, mut from) = (&*copied, 0);
        let slices = pieces.into_iter().map(|piece| match piece {
            Piece::InPlace(slice) => IoSlice::new(slice),
            Piece::CopiedTo(end) => IoSlice::new(&copied[std::mem::replace(&mut from, end)..end]),
        });
        Joined {
            slices: slices.collect(),
            ends,
        }
    }
}

/// One line an event: `{"ts":…,"host":…,"group":…,"path":…|null,"offset":…,"message":…}`, with the origin's tags behind the path, the
/// message being text. An event that is a JSON object stands under `fields` instead: so neither ever changes its type, and no field
/// of it can hide one of ours. What is
/// not UTF-8 becomes U+FFFD.
pub fn json(batch: &Batch, out: &mut Vec<u8>) {
    let start = out.len();
    let mut head_end = None;
    for (offset, message) in batch.events.with_offsets() {
        match head_end {
            Some(end) => out.extend_from_within(start..end),
            None => {
                head(batch, out);
                head_end = Some(out.len());
            }
        }
        // Writing to a Vec does not fail, here and below.
        let _ = write!(out, "{}", batch.offset + u64::from(offset));
        if let Some(object) = whole_object(message) {
            out.extend_from_slice(b",\"fields\":");
            out.extend_from_slice(object.as_bytes());
            out.extend_from_slice(b"}\n");
            continue;
        }
        out.extend_from_slice(b",\"message\":");
        match simdutf8::basic::from_utf8(message) {
            Ok(text) => string(text, out),
            Err(_) => string(&String::from_utf8_lossy(message), out),
        }
        out.extend_from_slice(b"}\n");
    }
}
/// What all events of a batch begin with.
fn head(batch: &Batch, out: &mut Vec<u8>) {
    let _ = write!(out, "{{\"ts\":\"{:.3}\",\"host\":", batch.read_at);
    string(&batch.origin.host.hostname, out);
    out.extend_from_slice(b",\"group\":");
    string(&batch.origin.host.group, out);
    out.extend_from_slice(b",\"path\":");
    match &batch.origin.path {
        Some(path) => string(&path.to_string_lossy(), out),
        None => out.extend_from_slice(b"null"),
    }
    for (name, value) in &batch.origin.tags {
        let _ = write!(out, ",\"{name}\":");
        string(value, out);
    }
    out.extend_from_slice(b",\"offset\":");
}
fn string(text: &str, out: &mut Vec<u8>) {
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::outputs::testing::{batch, batch_from};

    fn bytes(joined: &Joined<'_>) -> Vec<u8> {
        joined.slices.iter().flat_map(|s| s.to_vec()).collect()
    }

    #[test]
    fn whole_batches_are_written_in_place() {
        let batches = [batch(0, &["one", "two"]), batch(1, &[]), batch(2, &["three"])];
        let mut copied = Vec::new();
        let joined = Encode::Raw.join(&batches, &mut copied);
        assert_eq!(bytes(&joined), b"one\ntwo\nthree\n");
        assert_eq!(joined.slices[0].as_ptr(), batches[0].events.buffer().as_ptr());
        assert_eq!((joined.slices.len(), &joined.ends[..]), (2, &[8, 8, 14][..]));
        assert_eq!([0, 7, 8, 13, 14].map(|n| joined.whole(n)), [0, 0, 2, 2, 3]);
    }
    #[test]
    fn many_small_ranges_are_copied_once_and_stay_in_order() {
        let words = (0..40).map(|i| i.to_string()).collect::<Vec<_>>();
        let mut sparse = batch(1, &words.iter().map(String::as_str).collect::<Vec<_>>());
        sparse.events = sparse
            .events
            .retain(|e| std::str::from_utf8(e).unwrap().parse::<u32>().unwrap() % 3 == 0);
        let batches = [
            batch(0, &["a"]),
            sparse.clone(),
            sparse.clone(),
            batch(2, &["z"]),
            sparse,
        ];
        let mut copied = Vec::new();
        let joined = Encode::Raw.join(&batches, &mut copied);
        let part = (0..40).step_by(3).map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(bytes(&joined), format!("a\n{part}{part}z\n{part}").into_bytes());
        assert_eq!(joined.slices.len(), 4);
        assert_eq!(
            joined.ends,
            [
                2,
                2 + part.len(),
                2 + 2 * part.len(),
                4 + 2 * part.len(),
                4 + 3 * part.len()
            ]
        );
    }
    #[test]
    fn long_ranges_are_written_in_place_however_many_they_are() {
        let long = "x".repeat(LONG_RANGE);
        let words = (0..40).map(|i| if i % 2 == 0 { long.as_str() } else { "short" });
        let mut sparse = batch(1, &words.collect::<Vec<_>>());
        sparse.events = sparse.events.retain(|event| event != b"short");
        assert_eq!(sparse.events.ranges(), 20);
        let (batches, mut copied) = ([batch(0, &["a"]), sparse], Vec::new());
        let joined = Encode::Raw.join(&batches, &mut copied);
        assert_eq!(
            bytes(&joined),
            format!("a\n{}", format!("{long}\n").repeat(20)).into_bytes()
        );
        assert_eq!((joined.slices.len(), joined.ends[1]), (21, 2 + 20 * (LONG_RANGE + 1)));
    }
    #[test]
    fn json_names_where_an_event_came_from() {
        let mut some = batch_from(7, "/var/log/ä \"q\".log", &["plain", "", "tab\tquote\" \u{1}é"]);
        some.offset = 1000;
        some.events = some.events.retain_nonempty();
        let mut out = Vec::new();
        json(&some, &mut out);
        let lines = out
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap())
            .collect::<Vec<_>>();
        let expect = |offset: u64, message: &str| {
            serde_json::json!({"ts": "2026-11-23T10:15:00.250Z", "host": "h1", "group": "net01",
                "path": "/var/log/ä \"q\".log", "offset": offset, "message": message})
        };
        assert_eq!(lines, [expect(1000, "plain"), expect(1007, "tab\tquote\" \u{1}é")]);
        assert!(out.starts_with(br#"{"ts":"2026-11-23T10:15:00.250Z","host":"h1","group":"net01","path":"#));
    }
    #[test]
    fn json_has_the_tags_of_the_origin() {
        let mut some = batch_from(0, "/x", &["a", "b"]);
        let mut origin = (*some.origin).clone();
        origin.tags = vec![("namespace", "shop".into()), ("pod", "web-\"0\"".into())];
        some.origin = origin.into();
        let mut out = Vec::new();
        json(&some, &mut out);
        let text = String::from_utf8(out).unwrap();
        let tagged = r#""path":"/x","namespace":"shop","pod":"web-\"0\"","offset":"#;
        assert_eq!(text.matches(tagged).count(), 2, "{text}");
    }
    #[test]
    fn json_of_a_stream_and_of_what_is_not_utf8() {
        let mut some = batch(0, &["x"]);
        some.events = crate::model::Events::new(bytes::Bytes::from_static(b"a\xffb\n"), vec![4]);
        let mut out = Vec::new();
        json(&some, &mut out);
        let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            (&line["path"], &line["message"]),
            (&serde_json::Value::Null, &"a\u{fffd}b".into())
        );
    }
    #[test]
    fn an_object_stays_one_under_fields() {
        let events = [
            r#" {"a":1.50,"ts":"mine"} "#,
            r#"{"a":1"#,
            r#"{"a":1} x}"#,
            "{}",
            "[1]",
            "{\"a\":\n1}",
        ];
        let mut out = Vec::new();
        json(&batch(0, &events), &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .collect::<Vec<_>>();
        assert_eq!(lines.len(), events.len());
        for (line, event) in lines.iter().zip(events) {
            let is_object = event == events[0] || event == "{}";
            let expected = if is_object {
                event.parse().unwrap()
            } else {
                event.into()
            };
            assert_eq!(
                (&line["fields"], &line["message"]),
                if is_object {
                    (&expected, &serde_json::Value::Null)
                } else {
                    (&serde_json::Value::Null, &expected)
                }
            );
        }
        assert!(text.contains(r#","fields":{"a":1.50,"ts":"mine"}}"#));
    }
    #[test]
    fn json_stops_joining_at_its_bound() {
        let long = "x".repeat(MOST_COPIED / 2);
        let batches = [0, 1, 2, 3].map(|seq| batch(seq, &[&long]));
        let mut copied = Vec::new();
        assert_eq!(Encode::Json.join(&batches, &mut copied).ends.len(), 2);
        assert_eq!(Encode::Json.join(&batches[..0], &mut copied).ends.len(), 0);
    }
}
