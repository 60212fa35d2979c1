//! Looks into an event that is JSON without parsing all of it.
use sonic_rs::{JsonValueTrait, LazyValue, PointerNode};

/// Deeper ones are refused: the parser calls itself, and one line must not be able to exhaust a thread's stack.
const DEEPEST: usize = 128;

/// `a.b.0`: field `b` of object `a`, there the first of a list.
#[derive(Clone, Debug)]
pub struct Path {
    pub names: Vec<String>,
    nodes: Vec<PointerNode>,
}
impl Path {
    pub fn new(text: &str) -> Result<Self, String> {
        let names = text.split('.').map(str::to_owned).collect::<Vec<_>>();
        if names.iter().any(String::is_empty) {
            return Err(format!(
                "found {text:?}, accepted: a field's name, as `level` or `user.id`"
            ));
        }
        let nodes = names.iter().enumerate().map(|(i, name)| match name.parse::<usize>() {
            Ok(index) if i > 0 => PointerNode::Index(index),
            _ => PointerNode::Key(name.clone().into()),
        });
        Ok(Self {
            nodes: nodes.collect(),
            names,
        })
    }
}

pub enum Found<'a> {
    Value(Value<'a>),
    /// It is an object, without that field as far as was looked.
    Nothing,
    NotJson,
}
pub struct Value<'a>(LazyValue<'a>);
impl Value<'_> {
    /// As it stands there.
    pub fn raw(&self) -> &str {
        self.0.as_raw_str()
    }
    /// With quotes, if it is text with a backslash in it and so may be written in more than one way.
    pub fn unescaped(&self) -> Option<String> {
        let text = self.raw().contains('\\').then(|| self.0.as_str())??;
        Some(format!("\"{text}\""))
    }
    pub fn is(&self, wanted: &Wanted) -> bool {
        let raw = self.raw();
        match wanted {
            Wanted::Text(text) => match raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                Some(inner) if !inner.contains('\\') => inner == text,
                Some(_) => self.0.as_str() == Some(text),
                None => false,
            },
            Wanted::Number(number) => {
                raw.starts_with(|c: char| c == '-' || c.is_ascii_digit()) && plain_number(raw) == number
            }
            Wanted::Word(word) => raw == *word,
        }
    }
}

/// Has the form of an object. A cheap look at both ends, which tells other lines and torn ones.
pub fn is_object(event: &[u8]) -> bool {
    let event = event.trim_ascii();
    event.first() == Some(&b'{') && event.last() == Some(&b'}')
}
/// Wholly an object, on one line, that may be written into other JSON as it stands.
pub fn whole_object(event: &[u8]) -> Option<&str> {
    let may = is_object(event) && is_shallow(event) && memchr::memchr2(b'\n', b'\r', event).is_none();
    let text = may.then(|| simdutf8::basic::from_utf8(event).ok())??;
    sonic_rs::from_str::<serde::de::IgnoredAny>(text)
        .is_ok()
        .then(|| text.trim_ascii())
}
pub fn look<'a>(event: &'a [u8], path: &Path) -> Found<'a> {
    if !is_object(event) || !is_shallow(event) {
        return Found::NotJson;
    }
    match sonic_rs::get_from_slice(event, &path.nodes) {
        Ok(value) => Found::Value(Value(value)),
        Err(error) if error.is_not_found() || error.is_unmatched_type() => Found::Nothing,
        Err(_) => Found::NotJson,
    }
}
/// Not more than `DEEPEST` lists and objects in each other.
pub fn is_shallow(event: &[u8]) -> bool {
    if memchr::memchr2_iter(b'[', b'{', event).nth(DEEPEST).is_none() {
        return true;
    }
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for byte in event {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > DEEPEST {
                    return false;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Text(String),
    /// Digits without a fraction of zeros.
    Number(String),
    Word(&'static str),
}
impl Wanted {
    pub fn new(value: &serde_json::Value) -> Result<Self, String> {
        Ok(match value {
            serde_json::Value::String(text) => Self::Text(text.clone()),
            serde_json::Value::Number(number) => Self::Number(plain_number(&number.to_string()).to_owned()),
            serde_json::Value::Bool(true) => Self::Word("true"),
            serde_json::Value::Bool(false) => Self::Word("false"),
            serde_json::Value::Null => Self::Word("null"),
            other => {
                return Err(format!(
                    "found {other}, accepted: text, a number, true, false, or a list of these"
                ));
            }
        })
    }
    /// An event that has it has these bytes too, or a backslash somewhere.
    pub fn bytes(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number,
            Self::Word(word) => word,
        }
    }
}
/// 5.0 and 5.00 are 5. Exponents stay: 5e0 is something else here.
fn plain_number(text: &str) -> &str {
    match text.contains('.') && !text.contains(['e', 'E']) {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields() {
        let raw = |event: &'static str, path: &str| match look(event.as_bytes(), &Path::new(path).unwrap()) {
            Found::Value(value) => value.raw().to_owned(),
            Found::Nothing => "nothing".into(),
            Found::NotJson => "not json".into(),
        };
        assert_eq!(raw(r#" {"a": {"b": [1, "x"]}} "#, "a.b.1"), "\"x\"");
        assert_eq!(raw(r#"{"a": {"b": [1]}}"#, "a"), r#"{"b": [1]}"#);
        assert_eq!(raw(r#"{"7": 1}"#, "7"), "1");
        for (event, path) in [
            ("{}", "a"),
            (r#"{"a":1}"#, "b"),
            (r#"{"a":1}"#, "a.b"),
            (r#"{"a":[1]}"#, "a.1"),
        ] {
            assert_eq!(raw(event, path), "nothing", "{event} {path}");
        }
        for event in ["", "text", "[1]", r#"{"a":"#, "{a}:1", r#"{"b":tru,"a":1}"#] {
            assert_eq!(raw(event, "a"), "not json", "{event}");
        }
        assert!(Path::new("a..b").is_err() && Path::new("").is_err());
    }
    #[test]
    fn a_deep_line_is_refused_and_brings_nothing_down() {
        let deep = |n: usize| format!(r#"{{"x":{}{},"a":1}}"#, "[".repeat(n), "]".repeat(n));
        let path = Path::new("a").unwrap();
        assert!(matches!(look(deep(DEEPEST - 1).as_bytes(), &path), Found::Value(_)));
        assert!(matches!(look(deep(DEEPEST).as_bytes(), &path), Found::NotJson));
        assert!(matches!(look(deep(1 << 20).as_bytes(), &path), Found::NotJson));
        assert!(
            is_shallow(format!(r#"{{"a":"{}\"["}}"#, "[".repeat(1000)).as_bytes()),
            "in text they do not count"
        );
        assert!(is_shallow("[]".repeat(1000).as_bytes()));
    }
    #[test]
    fn compares() {
        let is = |value: &str, wanted: serde_json::Value| {
            let event = format!(r#"{{"a":{value}}}"#);
            match look(event.as_bytes(), &Path::new("a").unwrap()) {
                Found::Value(found) => found.is(&Wanted::new(&wanted).unwrap()),
                _ => panic!("{value}"),
            }
        };
        assert!(is("\"é\"", "é".into()) && is(r#""\u00e9""#, "é".into()) && is(r#""a\"b""#, "a\"b".into()));
        assert!(
            is("5", 5.into())
                && is("5.00", 5.into())
                && is("5", 5.0.into())
                && is("0.5", 0.5.into())
                && is("-1", (-1).into())
        );
        assert!(!is("50", 5.into()) && !is("\"5\"", 5.into()) && !is("5e0", 5.into()) && !is("5", "5".into()));
        assert!(is("true", true.into()) && !is("\"true\"", true.into()) && is("null", serde_json::Value::Null));
        assert!(Wanted::new(&serde_json::json!({})).is_err());
    }
}
