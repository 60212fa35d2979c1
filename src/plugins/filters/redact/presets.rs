//! What is secret by its form. A candidate is found by a pattern, and proven where a number proves itself.
use std::{iter::once, ops::Range};

pub struct Preset {
    pub name: &'static str,
    pub pattern: &'static str,
    /// Which parts of what the pattern found (all of it, or its first group) are secret.
    pub parts: fn(&[u8]) -> Vec<Range<usize>>,
}
/// ASCII only: `\b`, `\d` and `\w` of other scripts cost speed and find nothing here.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "card",
        // card numbers of 13 to 19 digits, also in groups, that pass Luhn's check
        pattern: r"(?-u)\b[0-9](?:[ -]?[0-9]){12,}\b",
        parts: cards,
    },
    Preset {
        name: "phone",
        // + and 8 to 15 digits, (555) 123-4567, 555-123-4567, and Chinese mobile numbers
        pattern: r"(?-u)\+[0-9](?:[ .-]?\(?[0-9]\)?){7,14}\b|\([2-9][0-9]{2}\) ?[0-9]{3}[ .-][0-9]{4}\b|\b[2-9][0-9]{2}[.-][0-9]{3}[.-][0-9]{4}\b|\b1[3-9][0-9]{9}\b",
        parts: all,
    },
    Preset {
        name: "id_number",
        // Chinese resident numbers with a right date and check digit, US social security numbers
        pattern: r"(?-u)\b[1-9][0-9]{16}[0-9Xx]\b|\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b",
        parts: ids,
    },
    Preset {
        name: "email",
        // e-mail addresses
        pattern: r"(?-u)\b[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,63})@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}\b",
        parts: all,
    },
    Preset {
        name: "bearer",
        // what follows `Bearer`, and JSON web tokens anywhere
        pattern: r"(?-u)(?i:\bbearer)[ \t:=]+[A-Za-z0-9._~+/-]+=*|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*",
        parts: tokens,
    },
];

fn all(found: &[u8]) -> Vec<Range<usize>> {
    once(0..found.len()).collect()
}

/// In a row of groups of digits, perhaps with other numbers around: the longest that is a card, from left to right.
fn cards(found: &[u8]) -> Vec<Range<usize>> {
    let mut cards = vec![];
    let mut start = 0;
    while start < found.len() {
        match card_at(found, start) {
            Some(end) => {
                cards.push(start..end);
                start = end;
            }
            // The next group.
            None => {
                start += found[start..]
                    .iter()
                    .position(|b| !b.is_ascii_digit())
                    .unwrap_or(found.len() - start)
            }
        }
        while found.get(start).is_some_and(|b| !b.is_ascii_digit()) {
            start += 1;
        }
    }
    cards
}
fn card_at(found: &[u8], start: usize) -> Option<usize> {
    if !(b'2'..=b'6').contains(&found[start]) {
        return None; // no issuer: keeps times in milliseconds out
    }
    let (mut digits, mut longest) = ([0u8; 19], None);
    let mut n = 0;
    for (i, byte) in found.iter().enumerate().skip(start) {
        if !byte.is_ascii_digit() {
            continue;
        }
        if n == digits.len() {
            break;
        }
        digits[n] = byte - b'0';
        n += 1;
        let group_ends = found.get(i + 1).is_none_or(|b| !b.is_ascii_digit());
        if n >= 13 && group_ends && luhn(&digits[..n]) {
            longest = Some(i + 1);
        }
    }
    longest
}
pub fn luhn(digits: &[u8]) -> bool {
    let sum = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, digit)| match (i % 2, digit * 2) {
            (0, _) => u32::from(*digit),
            (_, twice) if twice > 9 => u32::from(twice - 9),
            (_, twice) => u32::from(twice),
        });
    sum.sum::<u32>().is_multiple_of(10)
}

fn ids(found: &[u8]) -> Vec<Range<usize>> {
    let fits = if found.len() == 18 {
        is_resident(found)
    } else {
        is_social_security(found)
    };
    if fits { all(found) } else { vec![] }
}
/// GB 11643: 6 digits of a region, the date of birth, 3 of a sequence, and the check by ISO 7064 MOD 11-2.
fn is_resident(id: &[u8]) -> bool {
    let number = |range: Range<usize>| id[range].iter().fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    let (year, month, day) = (number(6..10), number(10..12), number(12..14));
    if !(1850..2100).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return false;
    }
    let sum = id[..17]
        .iter()
        .fold(0u32, |sum, b| (sum + u32::from(b - b'0')) * 2 % 11);
    let check = match id[17] {
        b'X' | b'x' => 10,
        digit => u32::from(digit - b'0'),
    };
    (sum + check) % 11 == 1
}
fn is_social_security(id: &[u8]) -> bool {
    let area = &id[..3];
    area != b"000" && area != b"666" && area[0] != b'9' && &id[4..6] != b"00" && &id[7..] != b"0000"
}

/// The word `Bearer` stays.
fn tokens(found: &[u8]) -> Vec<Range<usize>> {
    let is_word = found.len() > 6 && found[..6].eq_ignore_ascii_case(b"bearer");
    let blanks = |found: &[u8]| {
        found
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t' | b':' | b'='))
            .count()
    };
    let start = if is_word { 6 + blanks(&found[6..]) } else { 0 };
    once(start..found.len()).collect()
}
