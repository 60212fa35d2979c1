//! Framing against a reference in simple words: the whole source at once, decoded as a whole, nothing cut, nothing kept back.
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{options::Kind, *};

/// Options as in a pipeline.
pub fn framing(options: &Value) -> Framing {
    let written = Written {
        framing: options.get("framing"),
        multiline: options.get("multiline"),
        encoding: options.get("encoding").and_then(Value::as_str),
        keep_fields: options.get("keep_fields").is_some(),
    };
    let max_line = options.get("max_line").and_then(Value::as_u64).unwrap_or(CHUNK as u64);
    let policy = options.get("on_long_line").cloned().unwrap_or(json!("cut"));
    let policy = serde_json::from_value(policy).unwrap();
    Framing::read(Size(max_line), policy, &written).unwrap_or_else(|error| panic!("{options}: {error}"))
}

/// All records of a source that ends here.
pub fn reference(plan: &Plan, source: &[u8]) -> Vec<Vec<u8>> {
    let (text, mark) = plan.encoding.of(source, false).unwrap();
    let text = match text {
        encoding::Text::AsIs => source[mark..].to_vec(),
        encoding::Text::Coded(encoding) => encoding
            .decode_without_bom_handling(&source[mark..])
            .0
            .as_bytes()
            .to_vec(),
    };
    let mut lines = split(&text, plan.delimiter.as_bytes());
    if lines.last().is_some_and(Vec::is_empty) {
        lines.pop(); // there is nothing behind the last end
    }
    let (mut records, mut pieces, mut open) = (vec![], [None, None], [None, None]);
    for (i, line) in lines.into_iter().enumerate() {
        let nuls = line.iter().take_while(|byte| **byte == 0).count();
        let mut line = line[nuls..].to_vec();
        if plan.strips_return && line.last() == Some(&b'\r') {
            line.pop();
        }
        let (stream, last, line) = match (plan.kind, unwrap(plan.kind, &line)) {
            (Kind::Lines, _) => (0, true, line),
            (_, Some(piece)) => piece,
            (_, None) => {
                records.push((i, line));
                continue;
            }
        };
        let (begun, joined) = pieces[stream]
            .take()
            .map_or((i, line.clone()), |(begun, text): (usize, Vec<u8>)| {
                (begun, [text, line.clone()].concat())
            });
        if !last {
            pieces[stream] = Some((begun, joined));
            continue;
        }
        add(plan, &mut open[stream], (begun, joined), &mut records);
    }
    for stream in 0..2 {
        if let Some(rest) = pieces[stream].take() {
            add(plan, &mut open[stream], rest, &mut records);
        }
        records.extend(open[stream].take().map(|(begun, text, _)| (begun, text)));
    }
    records.sort_by_key(|(begun, _)| *begun);
    records
        .into_iter()
        .flat_map(|(_, text)| limit(&plan.rules, text))
        .collect()
}
type Record = (usize, Vec<u8>);
fn add(plan: &Plan, open: &mut Option<(usize, Vec<u8>, u8)>, (begun, line): Record, records: &mut Vec<Record>) {
    let Some(multiline) = &plan.multiline else {
        return records.push((begun, line));
    };
    let judged = line[..plan.rules.judged(&line).len()].to_vec();
    let ends = multiline.ends_with(&judged);
    *open = match open.take() {
        Some((first, text, state)) => match multiline.next(state, &judged) {
            Some(state) => Some((first, [text, line].join(&b'\n'), state)),
            None => {
                records.push((first, text));
                Some((begun, line.clone(), multiline.begin(&judged)))
            }
        },
        None => Some((begun, line.clone(), multiline.begin(&judged))),
    };
    if ends {
        records.extend(open.take().map(|(begun, text, _)| (begun, text)));
    }
}
fn unwrap(kind: Kind, line: &[u8]) -> Option<(usize, bool, Vec<u8>)> {
    let text = String::from_utf8_lossy(line).into_owned();
    let stream = |word: &str| ["stdout", "stderr"].iter().position(|stream| *stream == word);
    if kind == Kind::Docker {
        let line: Value = serde_json::from_str(&text).ok()?;
        let log = line["log"].as_str()?;
        let text = log.strip_suffix('\n').unwrap_or(log);
        return Some((stream(line["stream"].as_str()?)?, log.ends_with('\n'), text.into()));
    }
    let rest = text.strip_prefix("2026-11-25T10:00:00.0Z ")?;
    let (word, rest) = rest.split_once(' ')?;
    Some((stream(word)?, rest.starts_with('F'), rest[2..].into()))
}
fn split(text: &[u8], by: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut rest) = (vec![], text);
    while let Some(at) = (0..rest.len()).find(|at| rest[*at..].starts_with(by)) {
        parts.push(rest[..at].to_vec());
        rest = &rest[at + by.len()..];
    }
    parts.push(rest.to_vec());
    parts
}
fn limit(rules: &Rules, text: Vec<u8>) -> Vec<Vec<u8>> {
    // The plain reference knows one line: a line feed inside must not end it.
    let hidden = text
        .iter()
        .map(|byte| if *byte == b'\n' { 1 } else { *byte })
        .chain([b'\n']);
    let shown = |event: Vec<u8>| {
        event
            .into_iter()
            .map(|byte| if byte == 1 { b'\n' } else { byte })
            .collect()
    };
    let hidden = hidden.collect::<Vec<_>>();
    super::reference::frame(rules, &hidden).into_iter().map(shown).collect()
}

/// A framing, and a source that fits it more or less.
pub fn cases() -> impl Strategy<Value = (Value, Vec<u8>)> {
    let word = || {
        prop_oneof![
            6 => Just("x"), 3 => Just("語"), 2 => Just(" "), 2 => Just("-"), 2 => Just("["), 1 => Just(";"), 1 => Just("\r"), 1 => Just("é"),
            1 => Just("中文字符"), 1 => Just("long-enough"),
        ]
    };
    let line = || proptest::collection::vec(word(), 0..8).prop_map(|words| words.concat());
    let lines = || proptest::collection::vec((line(), 0u8..32), 0..40);
    let kinds = prop_oneof![
        Just(json!({"framing": "crlf"})),
        Just(json!({"framing": {"delimiter": "--"}})),
        Just(json!({"framing": {"delimiter": "\r\n"}})),
        Just(json!({"framing": {"delimiter": "語x語"}})),
        Just(json!({"multiline": {"start": r"^\["}})),
        Just(json!({"multiline": {"continue": "^ "}, "framing": "crlf"})),
        Just(json!({"multiline": {"end": ";$"}})),
        Just(json!({"multiline": "java"})),
        Just(json!({"multiline": "java", "max_line": 500})),
        Just(json!({"framing": "cri"})),
        Just(json!({"framing": "docker"})),
        Just(json!({"framing": "cri", "multiline": {"start": r"^\["}})),
        Just(json!({"framing": "docker", "multiline": {"continue": "^[ -]"}})),
        Just(json!({"encoding": "utf-16le"})),
        Just(json!({"encoding": "utf-16be", "framing": {"delimiter": "é"}})),
        Just(json!({"encoding": "auto"})),
        Just(json!({"encoding": "gbk"})),
        Just(json!({"encoding": "gb18030", "framing": "crlf"})),
        Just(json!({"encoding": "shift-jis", "multiline": {"start": r"^\["}})),
        Just(json!({"encoding": "windows-1252", "framing": {"delimiter": "-"}})),
    ];
    let policy = prop_oneof![Just("cut"), Just("skip")];
    (kinds, lines(), 1u64..60, policy, any::<bool>()).prop_map(|(mut options, lines, max_line, policy, marked)| {
        let table = options.as_object_mut().unwrap();
        table.entry("max_line").or_insert(max_line.into());
        table.insert("on_long_line".into(), policy.into());
        let source = source(&options, &lines, marked);
        (options, source)
    })
}
fn source(options: &Value, lines: &[(String, u8)], marked: bool) -> Vec<u8> {
    let delimiter = options["framing"]["delimiter"].as_str().unwrap_or("\n");
    let wrap = |line: &str, dice: u8| {
        let stream = if dice.is_multiple_of(4) { "stderr" } else { "stdout" };
        let last = !dice.is_multiple_of(3);
        match options["framing"].as_str() {
            Some("crlf") if last => format!("{line}\r"),
            Some("cri" | "docker") if dice == 31 => line.to_owned(),
            Some("cri") => format!(
                "2026-11-25T10:00:00.0Z {stream} {} {line}",
                if last { "F" } else { "P" }
            ),
            Some("docker") => {
                json!({"log": format!("{line}{}", if last { "\n" } else { "" }), "stream": stream, "time": "t"})
                    .to_string()
            }
            _ if dice == 31 => format!("\0\0{line}"),
            _ => line.to_owned(),
        }
    };
    let text = lines
        .iter()
        .map(|(line, dice)| wrap(line, *dice) + delimiter)
        .collect::<String>();
    let wide = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
    match options["encoding"].as_str() {
        None => text.into_bytes(),
        Some("utf-16le") => [if marked { &b"\xFF\xFE"[..] } else { b"" }, &wide(u16::to_le_bytes)].concat(),
        Some("utf-16be") => wide(u16::to_be_bytes),
        Some("auto") if marked => [&b"\xFE\xFF"[..], &wide(u16::to_be_bytes)].concat(),
        Some("auto") => [&b"\xEF\xBB\xBF"[..], text.as_bytes()].concat(),
        Some(label) => encoding_rs::Encoding::for_label(label.as_bytes())
            .unwrap()
            .encode(&text)
            .0
            .into_owned(),
    }
}

/// Feeds a source that grows by these pieces, through windows of these sizes; true: forgets what it knows and goes on from the place.
fn drive(plan: &Arc<Plan>, source: &[u8], cuts: &[(usize, usize, bool)]) -> Vec<(u64, Vec<u8>)> {
    drive_counting(plan, source, cuts).0
}
/// And how many NULs were skipped.
fn drive_counting(plan: &Arc<Plan>, source: &[u8], cuts: &[(usize, usize, bool)]) -> (Vec<(u64, Vec<u8>)>, u64) {
    let (mut framer, mut told, mut events, mut there) = (None::<Framer>, 0, vec![], 0usize);
    let mut nuls = 0;
    let mut take = |framer: &mut Framer, told: &mut u64| {
        if let Some((read, counts, safe)) = framer.ready(*told) {
            assert!(safe > *told && safe <= framer.at());
            nuls += counts.nul_bytes;
            events.extend(
                read.with_offsets()
                    .map(|(at, event)| (*told + u64::from(at), event.to_vec())),
            );
            *told = safe;
        }
    };
    for (grown, room, again) in cuts.iter().copied().chain([(usize::MAX, 50, false)]) {
        there = source.len().min(there.saturating_add(grown));
        if again {
            framer = None;
        }
        let Some(framer) = framer
            .take()
            .or_else(|| plan.framer(&source[..there.min(3)], there < 3 && grown < usize::MAX, told))
            .map(|it| framer.insert(it))
        else {
            continue;
        };
        let mut want = room;
        loop {
            let from = framer.at() as usize;
            let to = there.min(from.saturating_add(want));
            match framer.feed(&source[from..to]) {
                Fed::Took(size) => {
                    assert!(size > 0 && size <= to - from);
                    want = room;
                }
                Fed::Unfinished if to < there => {
                    assert!(want < framer.most_line());
                    want = framer.most_line();
                }
                Fed::Nuls if to < there => framer.skip_nuls(leading_nuls(&source[from..to]) as u64),
                _ => break,
            }
            take(framer, &mut told);
        }
    }
    if let Some(framer) = &mut framer {
        framer.flush(Some(&source[framer.at() as usize..]));
        take(framer, &mut told);
        assert!(framer.is_idle());
    }
    let only_mark = plan
        .encoding
        .of(source, false)
        .is_some_and(|(_, mark)| mark == source.len());
    assert!(told == source.len() as u64 || only_mark);
    (events, nuls)
}
fn cuts() -> impl Strategy<Value = Vec<(usize, usize, bool)>> {
    proptest::collection::vec((0usize..60, 1usize..80, any::<bool>()), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn frames_as_the_reference_does((options, source) in cases(), cuts in cuts()) {
        let plan = framing(&options).plan.unwrap();
        let events = drive(&plan, &source, &cuts);
        let offsets = events.iter().map(|(at, _)| *at).collect::<Vec<_>>();
        prop_assert!(offsets.is_sorted());
        let texts = events.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
        prop_assert_eq!(texts, reference(&plan, &source), "{}", options);
    }
    /// Pieces of a line that is too long, and of a record: nothing is lost or doubled, and where text is cut does not depend on the reads.
    #[test]
    fn split_loses_nothing((mut options, source) in cases(), cuts in cuts()) {
        options["on_long_line"] = "split".into();
        let plan = framing(&options).plan.unwrap();
        let (pieces, nuls) = drive_counting(&plan, &source, &[]);
        prop_assert_eq!(&drive(&plan, &source, &cuts), &pieces);
        prop_assert!(pieces.iter().all(|(_, piece)| piece.len() <= plan.rules.max_line));
        // Joined they are the records; a cut record has lost the line feed where it was begun anew, and NULs where a piece begins count as a
        // hole, like those where a line begins.
        options["max_line"] = 100_000.into();
        let whole_plan = framing(&options).plan.unwrap();
        let (whole, whole_nuls) = (reference(&whole_plan, &source).concat(), drive_counting(&whole_plan, &source, &[]).1);
        let kept_nuls = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
        let pieces_nuls = pieces.iter().map(|(_, piece)| kept_nuls(piece)).sum::<usize>();
        if plan.encoding.of(&source, false).unwrap().0 == encoding::Text::AsIs {
            prop_assert_eq!(pieces_nuls as u64 + nuls, kept_nuls(&whole) as u64 + whole_nuls);
        }
        let text = |bytes: Vec<u8>| bytes.into_iter().filter(|byte| *byte != b'\n' && *byte != 0).collect::<Vec<_>>();
        let mut joined = text(pieces.into_iter().flat_map(|(_, piece)| piece).collect());
        let mut whole = text(whole);
        if plan.kind != Kind::Lines {
            joined.sort_unstable(); // a piece stands where it begins, among those of the other stream
            whole.sort_unstable();
        }
        prop_assert_eq!(joined, whole, "{}", options);
    }
    /// No bytes at all make it stumble or stand still.
    #[test]
    fn anything_is_framed(source in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(0)], 0..300), cuts in cuts(), (mut options, _) in cases()) {
        if options["encoding"] == "shift-jis" {
            options["encoding"] = "iso-2022-jp".into();
        }
        let plan = framing(&options).plan.unwrap();
        let events = drive(&plan, &source, &cuts);
        prop_assert!(events.iter().all(|(_, event)| event.len() <= plan.rules.max_line));
    }
}

fn texts(options: Value, source: &[u8]) -> Vec<String> {
    let events = drive(&framing(&options).plan.unwrap(), source, &[]);
    events
        .into_iter()
        .map(|(_, event)| String::from_utf8(event).unwrap())
        .collect()
}
#[test]
fn crlf_and_delimiters() {
    assert_eq!(
        texts(json!({"framing": "crlf"}), b"a\r\nb\n\r\nc\rd\r\r\nlast"),
        ["a", "b", "", "c\rd\r", "last"]
    );
    assert_eq!(
        texts(json!({"framing": {"delimiter": "\r\n"}}), b"a\nb\r\nc\r"),
        ["a\nb", "c\r"]
    );
    assert_eq!(
        texts(json!({"framing": {"delimiter": "\0"}}), b"a\nb\0c\0"),
        ["a\nb", "c"]
    );
}
#[test]
fn fields_of_containers_are_kept_if_asked() {
    let options = json!({"framing": "cri", "keep_fields": true});
    let source = b"2026-11-25T10:00:00.0Z stderr P ha\n2026-11-25T10:00:01.0Z stderr F lf \"q\"\nodd\n";
    assert_eq!(
        texts(options, source),
        [
            r#"{"time":"2026-11-25T10:00:00.0Z","stream":"stderr","message":"half \"q\""}"#,
            "odd"
        ]
    );
}
#[test]
fn what_is_no_text_is_replaced_and_counted() {
    let plan = framing(&json!({"encoding": "utf-16le"})).plan.unwrap();
    let mut framer = plan.framer(b"a\0", false, 0).unwrap();
    assert_eq!(framer.feed(b"a\0\x00\xd8b\0\n\0c\0\n\0"), Fed::Took(12));
    let (events, counts, safe) = framer.ready(0).unwrap();
    assert_eq!(events.iter().collect::<Vec<_>>(), ["a\u{fffd}b".as_bytes(), b"c"]);
    assert_eq!((counts.replaced, safe), (1, 12));
}
#[test]
fn one_stream_does_not_hold_the_other_for_ever() {
    let plan = framing(&json!({"framing": "cri", "max_line": 100})).plan.unwrap();
    let mut framer = plan.framer(b"", false, 0).unwrap();
    let line = |stream: &str, tag: &str| format!("2026-11-25T10:00:00.0Z {stream} {tag} some text\n").into_bytes();
    framer.feed(&line("stderr", "P"));
    let (mut lines, mut told) = (0, 0);
    while told == 0 {
        framer.feed(&line("stdout", "F"));
        lines += 1;
        told = framer.ready(0).map_or(0, |(events, _, safe)| {
            assert_eq!(events.len(), lines + 1, "what was open, and all that waited for it");
            assert_eq!(events.iter().next().unwrap(), b"some text");
            safe
        });
    }
    assert!(told > 1 << 20 && told < (1 << 20) + 400, "{told}");
    // By itself a record may be as long as it likes: what is too much of it is not kept.
    for _ in 0..100_000 {
        framer.feed(&line("stderr", "P"));
    }
    assert!(framer.ready(told).is_none() && framer.is_open());
    framer.feed(&line("stderr", "F"));
    let (events, counts, _) = framer.ready(told).unwrap();
    assert_eq!((events.len(), events.size(), counts.cut), (1, 101, 1));
}
