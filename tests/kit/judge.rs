//! Numbered lines `<source> <seq> <crc>`, and a judge that finds what is missing, doubled, torn, merged or out of order.
use std::collections::HashMap;

/// One line without its end. `pad` bytes of filling make it as long as a real one.
pub fn line(source: &str, seq: u64, pad: usize) -> String {
    let filling = "x".repeat(pad);
    let head = format!("{source} {seq} {filling}");
    format!("{head} {:08x}", crc32fast::hash(head.as_bytes()))
}
pub fn lines(source: &str, seqs: std::ops::Range<u64>, pad: usize) -> String {
    seqs.map(|seq| line(source, seq, pad) + "\n").collect()
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lines: u64,
    pub missing: u64,
    pub doubled: u64,
    /// Not as they were written: cut, merged with another, or changed.
    pub torn: u64,
    /// First arrivals that came after a later one of their source.
    pub reordered: u64,
}

/// `expected`: how many lines, numbered from 0, each source has written.
pub fn judge(text: &[u8], expected: &[(&str, u64)]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut seen = expected
        .iter()
        .map(|(s, n)| (*s, (vec![0u32; *n as usize], None)))
        .collect::<HashMap<_, _>>();
    let text = match text {
        [rest @ .., b'\n'] => rest,
        [] => {
            return Verdict {
                missing: expected.iter().map(|(_, n)| n).sum(),
                ..verdict
            };
        }
        unended => {
            verdict.torn += 1;
            &unended[..unended.iter().rposition(|b| *b == b'\n').unwrap_or(0)]
        }
    };
    for line in text.split(|b| *b == b'\n') {
        verdict.lines += 1;
        let Some((source, seq)) = read(line) else {
            verdict.torn += 1;
            continue;
        };
        let Some((counts, last)) = seen.get_mut(source) else {
            verdict.torn += 1;
            continue;
        };
        let Some(count) = counts.get_mut(seq as usize) else {
            verdict.torn += 1;
            continue;
        };
        *count += 1;
        verdict.doubled += u64::from(*count > 1);
        if *count == 1 {
            verdict.reordered += u64::from(last.is_some_and(|last| seq < last));
            *last = Some(seq);
        }
    }
    verdict.missing = seen
        .values()
        .flat_map(|(counts, _)| counts)
        .filter(|count| **count == 0)
        .count() as u64;
    verdict
}
fn read(line: &[u8]) -> Option<(&str, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let (head, crc) = line.rsplit_once(' ')?;
    if u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(head.as_bytes()) {
        return None;
    }
    let mut words = head.split(' ');
    Some((words.next()?, words.next()?.parse().ok()?))
}

#[test]
fn the_judge_finds_each_fault() {
    let good = lines("a", 0..5, 3) + &lines("b", 0..2, 0);
    let expected = [("a", 5), ("b", 2)];
    assert_eq!(
        judge(good.as_bytes(), &expected),
        Verdict {
            lines: 7,
            ..Verdict::default()
        }
    );
    let l = |seq| line("a", seq, 3);
    let faulty = [
        l(0),
        l(2),
        l(1),
        l(2),
        l(3)[..7].to_owned(),
        l(4) + &l(4),
        line("b", 0, 0),
        line("c", 0, 0),
    ]
    .join("\n");
    let verdict = Verdict {
        lines: 7,
        missing: 3,
        doubled: 1,
        torn: 3,
        reordered: 1,
    };
    assert_eq!(
        judge(faulty.as_bytes(), &expected),
        verdict,
        "a last line without an end is torn"
    );
}
