//! What a source's bytes mean: its encoding, by option or byte order mark, and where its lines end in that encoding. Lines are found in
//! the bytes as they are, and decoded one by one: so every place stays a byte offset of the source.
use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use memchr::{memchr, memmem, memrchr};

use crate::plugins::BadValue;

pub const UTF8_MARK: &[u8] = b"\xEF\xBB\xBF";
/// The longest byte order mark.
pub const LONGEST_MARK: usize = UTF8_MARK.len();

/// The option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// UTF-8, or whatever else it is: handed on byte by byte.
    AsIs,
    /// The byte order mark tells; without one as it is.
    Auto,
    Named(&'static Encoding),
}
impl Wanted {
    pub fn read(label: &str) -> Result<Self, BadValue> {
        if label == "auto" {
            return Ok(Self::Auto);
        }
        match Encoding::for_label_no_replacement(label.as_bytes()) {
            Some(encoding) if encoding == UTF_8 => Ok(Self::AsIs),
            Some(encoding) => Ok(Self::Named(encoding)),
            None => {
                let accepted = "auto, utf-8, utf-16le, utf-16be, gbk, gb18030, big5, shift-jis, euc-jp, euc-kr, windows-1252 or another label of \
                                the WHATWG encoding standard";
                Err(BadValue::new(
                    "encoding",
                    format!("found {label:?}, accepted: {accepted}"),
                ))
            }
        }
    }
    /// What a source is that begins with these bytes (`LONGEST_MARK` are enough), and how many of them are a mark. None: too few to tell,
    /// and there may be `more`. A mark tells more than the option, as in browsers; but bytes that are handed on as they are stay so.
    pub fn of(self, start: &[u8], more: bool) -> Option<(Text, usize)> {
        let marks: &[(&[u8], Text)] = &[
            (UTF8_MARK, Text::AsIs),
            (b"\xFF\xFE", Text::Coded(UTF_16LE)),
            (b"\xFE\xFF", Text::Coded(UTF_16BE)),
        ];
        let marks = if self == Self::AsIs { &marks[..1] } else { marks };
        if let Some((mark, text)) = marks.iter().find(|(mark, _)| start.starts_with(mark)) {
            return Some((*text, mark.len()));
        }
        if more && marks.iter().any(|(mark, _)| mark.starts_with(start)) {
            return None;
        }
        let text = match self {
            Self::AsIs | Self::Auto => Text::AsIs,
            Self::Named(encoding) => Text::Coded(encoding),
        };
        Some((text, 0))
    }
}

/// How a source is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    AsIs,
    Coded(&'static Encoding),
}
impl Text {
    /// Bytes in a code unit: a line end stands at a border of two.
    pub fn unit(self) -> usize {
        match self {
            Self::Coded(encoding) if encoding == UTF_16LE || encoding == UTF_16BE => 2,
            _ => 1,
        }
    }
    /// So many source bytes are enough for `len` bytes of UTF-8: UTF-16 and GB18030 need twice as many at most.
    pub fn enough_for(self, len: usize) -> usize {
        match self {
            Self::AsIs => len,
            Self::Coded(_) => 2 * len + 16,
        }
    }
    /// One line, and whether something in it was no text of this encoding (it became U+FFFD).
    pub fn decode(self, line: &[u8]) -> (Cow<'_, [u8]>, bool) {
        let Self::Coded(encoding) = self else {
            return (line.into(), false);
        };
        let (text, bad) = encoding.decode_without_bom_handling(line);
        let text = match text {
            Cow::Borrowed(text) => text.as_bytes().into(),
            Cow::Owned(text) => text.into_bytes().into(),
        };
        (text, bad)
    }
    /// Up to where `start` of a longer line can be taken without cutting a character in two: its end or up to three bytes before.
    pub fn whole(self, start: &[u8]) -> usize {
        let most = start.len() - start.len() % self.unit();
        let is_whole = |to: &usize| {
            let text = match self {
                Self::AsIs => String::from_utf8_lossy(&start[to.saturating_sub(4)..*to]),
                Self::Coded(encoding) => encoding.decode_without_bom_handling(&start[..*to]).0,
            };
            !text.ends_with('\u{FFFD}')
        };
        (most.saturating_sub(3).max(1)..=most)
            .rev()
            .filter(|to| to % self.unit() == 0)
            .find(is_whole)
            .unwrap_or(most)
    }
    fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::AsIs => text.as_bytes().to_vec(),
            Self::Coded(encoding) if encoding == UTF_16LE => text.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            Self::Coded(encoding) if encoding == UTF_16BE => text.encode_utf16().flat_map(u16::to_be_bytes).collect(),
            Self::Coded(encoding) => encoding.encode(text).0.into_owned(),
        }
    }
}

/// What a delimiter may be in an encoding: other characters' second bytes look like letters and signs in many.
pub fn check_delimiter(delimiter: &str, wanted: Wanted) -> Result<(), BadValue> {
    let Wanted::Named(encoding) = wanted else { return Ok(()) };
    let text = Text::Coded(encoding);
    let safe = encoding.is_single_byte() || text.unit() == 2 || delimiter.bytes().all(|byte| byte < b'!');
    let found = format!("found delimiter {delimiter:?} with encoding {}", encoding.name());
    if !safe {
        let message = format!("{found}, accepted there: control characters and blanks, as \"\\r\\n\" or \"\\u001e\"");
        return Err(BadValue::new("framing.delimiter", message));
    }
    if text.unit() == 1 && encoding.encode(delimiter).2 {
        let message = format!("{found}, accepted: characters that this encoding has");
        return Err(BadValue::new("framing.delimiter", message));
    }
    Ok(())
}

/// The end of a line, as it is written in a source.
pub struct LineEnd {
    bytes: Vec<u8>,
    finder: memmem::Finder<'static>,
    back: memmem::FinderRev<'static>,
    unit: usize,
}
impl LineEnd {
    pub fn new(delimiter: &str, text: Text) -> Self {
        let bytes = text.encode(delimiter);
        Self {
            finder: memmem::Finder::new(&bytes).into_owned(),
            back: memmem::FinderRev::new(&bytes).into_owned(),
            bytes,
            unit: text.unit(),
        }
    }
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Where the first one at or behind `from` begins. `text` and `from` stand at borders of units.
    pub fn find(&self, text: &[u8], from: usize) -> Option<usize> {
        if let [byte] = self.bytes[..] {
            return Some(from + memchr(byte, &text[from..])?);
        }
        let mut at = from;
        loop {
            at += self.finder.find(&text[at..])?;
            if at.is_multiple_of(self.unit) {
                return Some(at);
            }
            at += 1;
        }
    }
    /// Where the last one ends, counted from the start of `text`, which stands at a border of units.
    pub fn last(&self, text: &[u8]) -> Option<usize> {
        if let [byte] = self.bytes[..] {
            return Some(memrchr(byte, text)? + 1);
        }
        let mut to = text.len();
        loop {
            let at = self.back.rfind(&text[..to])?;
            if at.is_multiple_of(self.unit) {
                return Some(at + self.bytes.len());
            }
            to = at + self.bytes.len() - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(label: &str) -> Text {
        Wanted::read(label).unwrap().of(b"xyz", false).unwrap().0
    }
    #[test]
    fn marks_tell() {
        let gbk = Wanted::read("GBK").unwrap();
        assert_eq!(Wanted::read("utf-8"), Ok(Wanted::AsIs));
        for (wanted, start, expected) in [
            (Wanted::Auto, &b"\xEF\xBB\xBFa"[..], Some((Text::AsIs, 3))),
            (Wanted::Auto, b"\xFF\xFEa", Some((Text::Coded(UTF_16LE), 2))),
            (Wanted::Auto, b"\xFE\xFF", Some((Text::Coded(UTF_16BE), 2))),
            (Wanted::Auto, b"abc", Some((Text::AsIs, 0))),
            (Wanted::Auto, b"\xEF\xBB", None),
            (Wanted::Auto, b"\xFF", None),
            (Wanted::AsIs, b"\xFF\xFEa", Some((Text::AsIs, 0))),
            (Wanted::AsIs, b"\xEF\xBB\xBF", Some((Text::AsIs, 3))),
            (gbk, b"\xFF\xFEa", Some((Text::Coded(UTF_16LE), 2))),
            (gbk, b"abc", Some((coded("gbk"), 0))),
        ] {
            assert_eq!(wanted.of(start, true), expected, "{wanted:?} {start:?}");
        }
        assert_eq!(Wanted::Auto.of(b"\xEF", false), Some((Text::AsIs, 0)));
        let error = Wanted::read("klingon").unwrap_err().to_string();
        assert!(error.contains("\"klingon\", accepted: auto, utf-8"), "{error}");
    }
    #[test]
    fn line_ends_of_two_bytes_stand_at_borders() {
        let little = LineEnd::new("\n", coded("utf-16le"));
        // U+0A31 U+000A: the bytes 0A 00 stand across a border first.
        let text = [0x31, 0x0A, 0x00, 0x4E, 0x0A, 0x00, 0x31, 0x0A, 0x00, 0x41];
        assert_eq!(little.find(&text, 0), Some(4));
        assert_eq!(little.find(&text, 6), None);
        assert_eq!(little.last(&text), Some(6));
        assert_eq!(LineEnd::new("\n", coded("utf-16be")).find(&[0x00, 0x0A], 0), Some(0));
        let long = LineEnd::new("--", Text::AsIs);
        assert_eq!(
            (long.find(b"a---b", 0), long.last(b"a---b"), long.last(b"a-")),
            (Some(1), Some(4), None)
        );
    }
    #[test]
    fn no_character_is_cut() {
        let gbk = coded("gbk");
        let bytes = gbk.encode("ab中文");
        assert_eq!([3, 4, 5, 6].map(|to| gbk.whole(&bytes[..to])), [2, 4, 4, 6]);
        let wide = coded("utf-16le");
        let bytes = wide.encode("a😀");
        assert_eq!([3, 4, 5, 6].map(|to| wide.whole(&bytes[..to])), [2, 2, 2, 6]);
        assert_eq!(Text::AsIs.whole(&"aé語".as_bytes()[..5]), 3);
        assert_eq!(Text::AsIs.whole(b"\xff\xff\xff\xff"), 4, "no text at all");
    }
    #[test]
    fn delimiters_that_could_be_half_a_character_are_refused() {
        let gbk = Wanted::read("gbk").unwrap();
        assert!(check_delimiter("\r\n", gbk).is_ok() && check_delimiter("|", Wanted::AsIs).is_ok());
        assert!(check_delimiter("|", Wanted::read("windows-1252").unwrap()).is_ok());
        assert!(check_delimiter("語", Wanted::read("windows-1252").unwrap()).is_err());
        let error = check_delimiter("|", gbk).unwrap_err().to_string();
        assert!(error.contains("control characters"), "{error}");
    }
}
