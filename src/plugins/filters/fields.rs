//! What filters share that make JSON objects out of text.
use std::collections::BTreeMap;

use serde::Deserialize;

/// As what a captured text is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    #[default]
    Text,
    /// A number, if it is one as JSON writes it; else text.
    Number,
    /// true or false, if it is one of these; else text.
    Bool,
}
pub type Types = BTreeMap<String, Type>;

/// Writes one object: `begin`, any number of `field`s, `end`.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}
impl<'a> Object<'a> {
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }
    pub fn name(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        string(name, self.out);
        self.out.push(b':');
        self.out
    }
    pub fn field(&mut self, name: &str, value: &[u8], kind: Type) {
        typed(value, kind, self.name(name));
    }
    pub fn end(self) {
        self.out.push(b'}');
    }
}
pub fn string(text: &str, out: &mut Vec<u8>) {
    let _ = serde_json::to_writer(out, text); // writing to a Vec does not fail
}
/// What is not UTF-8 becomes U+FFFD.
fn typed(value: &[u8], kind: Type, out: &mut Vec<u8>) {
    let as_it_is = match kind {
        Type::Text => false,
        Type::Number => is_number(value),
        Type::Bool => matches!(value, b"true" | b"false"),
    };
    match simdutf8::basic::from_utf8(value) {
        Ok(text) if as_it_is => out.extend_from_slice(text.as_bytes()),
        Ok(text) => string(text, out),
        Err(_) => string(&String::from_utf8_lossy(value), out),
    }
}
/// As JSON writes one: no leading zeros, no bare dots.
pub fn is_number(text: &[u8]) -> bool {
    let digits = |from: usize| text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let start = usize::from(text.first() == Some(&b'-'));
    let whole = digits(start);
    if whole == 0 || (whole > 1 && text[start] == b'0') {
        return false;
    }
    let mut at = start + whole;
    if text.get(at) == Some(&b'.') {
        let part = digits(at + 1);
        if part == 0 {
            return false;
        }
        at += 1 + part;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        at += usize::from(matches!(text.get(at), Some(b'+' | b'-')));
        let part = if at < text.len() { digits(at) } else { 0 };
        if part == 0 {
            return false;
        }
        at += part;
    }
    at == text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9]{0,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            proptest::prop_assert_eq!(is_number(text.as_bytes()), serde_json::from_str::<serde_json::Number>(&text).is_ok()
                || text.contains(['e', 'E']) && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
        }
        #[test]
        fn an_object_is_one(fields in proptest::collection::vec((".{0,4}", proptest::collection::vec(proptest::prelude::any::<u8>(), 0..5)), 0..4)) {
            let mut out = vec![];
            let mut object = Object::begin(&mut out);
            fields.iter().for_each(|(name, value)| object.field(name, value, Type::Number));
            object.end();
            serde_json::from_slice::<serde_json::Value>(&out).unwrap();
        }
    }
}
