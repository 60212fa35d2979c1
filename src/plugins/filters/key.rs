//! What of an event tells it from others, for filters that remember: all of it, a field, or what a pattern finds. Kept as a hash of 128
//! bits: two different keys are taken for one about never, and a long key costs no more memory than a short one.
use regex::bytes::Regex;
use xxhash_rust::xxh3::xxh3_128;

use crate::plugins::{
    BadValue, Opt,
    json::{Found, Path, look},
};

pub enum Key {
    Whole,
    Field(Path),
    Pattern(Regex),
}
pub const FIELD: Opt = Opt {
    name: "key",
    default: "none",
    about: "a field of events that are JSON objects, as `user.id`",
};
pub const PATTERN: Opt = Opt {
    name: "key_pattern",
    default: "none",
    about: "for other events: a regular expression; what its first group, or all of it, finds is the key",
};

impl Key {
    /// From the options `key` and `key_pattern`.
    pub fn new(field: Option<&str>, pattern: Option<&str>) -> Result<Self, BadValue> {
        match (field, pattern) {
            (None, None) => Ok(Self::Whole),
            (Some(field), None) => Ok(Self::Field(Path::new(field).map_err(|e| BadValue::new("key", e))?)),
            (None, Some(pattern)) => {
                // For its message.
                let parsed = super::search::parse(pattern, false, false);
                parsed.map_err(|e| BadValue::new("key_pattern", e))?;
                let compiled = Regex::new(pattern);
                let compiled = compiled.map_err(|e| BadValue::new("key_pattern", e.to_string()))?;
                Ok(Self::Pattern(compiled))
            }
            (Some(_), Some(_)) => Err(BadValue::new(
                "key_pattern",
                "found beside `key`, accepted: one of the two",
            )),
        }
    }
    /// None: this event has no such key.
    pub fn of(&self, event: &[u8]) -> Option<u128> {
        match self {
            Self::Whole => Some(xxh3_128(event)),
            Self::Field(path) => match look(event, path) {
                Found::Value(value) => Some(match value.unescaped() {
                    Some(text) => xxh3_128(text.as_bytes()),
                    None => xxh3_128(value.raw().as_bytes()),
                }),
                Found::Nothing | Found::NotJson => None,
            },
            Self::Pattern(pattern) if pattern.captures_len() == 1 => {
                pattern.find(event).map(|found| xxh3_128(found.as_bytes()))
            }
            Self::Pattern(pattern) => {
                let found = pattern.captures(event)?;
                found.get(1).map(|found| xxh3_128(found.as_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let field = Key::new(Some("u.id"), None).unwrap();
        let of = |text: &str| field.of(text.as_bytes());
        assert_eq!(of(r#"{"u":{"id":"ab"}}"#), of(r#"{"x":1, "u": {"id": "\u0061b"}}"#));
        assert_ne!(of(r#"{"u":{"id":"1"}}"#), of(r#"{"u":{"id":1}}"#), "text is no number");
        assert_eq!((of(r#"{"u":1}"#), of("u.id=1"), of("")), (None, None, None));
        let pattern = Key::new(None, Some(r"user=(\w+)")).unwrap();
        assert_eq!(pattern.of(b"a user=x b"), pattern.of(b"user=x"));
        assert!(pattern.of(b"user=y").is_some() && pattern.of(b"nobody").is_none());
        let plain = Key::new(None, Some(r"\d+")).unwrap();
        assert_eq!(plain.of(b"a 12"), plain.of(b"12 b"));
        assert_ne!(Key::Whole.of(b"a"), Key::Whole.of(b"a "));
        for (key, pattern, at) in [
            (Some(""), None, "key"),
            (None, Some("("), "key_pattern"),
            (Some("a"), Some("b"), "key_pattern"),
        ] {
            assert_eq!(Key::new(key, pattern).err().unwrap().key, at);
        }
    }
}
