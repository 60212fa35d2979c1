//! Changes fields of an object without taking it apart: what is not named is copied as it stands, in its order, numbers digit by digit.
use std::borrow::Cow;

use serde::de::IgnoredAny;
use sonic_rs::JsonValueTrait;

use super::super::fields::string;
use crate::plugins::json::{Path, is_object, is_shallow};

/// What happens to the fields of one object.
#[derive(Default, Debug)]
pub struct Edit {
    fields: Vec<(String, Field)>,
    /// Only fields that are named stay.
    selects: bool,
    /// Written at the end, in place of fields of that name. JSON text.
    add: Vec<(String, String)>,
}
#[derive(Default, Debug)]
struct Field {
    keep: bool,
    remove: bool,
    parse: bool,
    rename: Option<String>,
    inner: Edit,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Edited {
    Same,
    Changed,
    NotJson,
}
/// What came of a pass.
#[derive(Default)]
struct Pass {
    changed: bool,
    unparsed: u64,
}
struct NotJson;

impl Edit {
    fn at(&mut self, name: &str) -> &mut Field {
        let i = match self.fields.iter().position(|(field, _)| field == name) {
            Some(i) => i,
            None => {
                self.fields.push((name.to_owned(), Field::default()));
                self.fields.len() - 1
            }
        };
        &mut self.fields[i].1
    }
    fn field(&mut self, path: &Path, each: impl Fn(&mut Edit)) -> &mut Field {
        let (last, before) = path.names.split_last().expect("a path has a name");
        let mut edit = self;
        for name in before {
            each(edit);
            edit = &mut edit.at(name).inner;
        }
        each(edit);
        edit.at(last)
    }
    pub fn select(&mut self, path: &Path) {
        self.field(path, |edit| edit.selects = true).keep = true;
    }
    pub fn remove(&mut self, path: &Path) {
        self.field(path, |_| {}).remove = true;
    }
    pub fn parse(&mut self, path: &Path) {
        self.field(path, |_| {}).parse = true;
    }
    pub fn rename(&mut self, path: &Path, to: &str) {
        self.field(path, |_| {}).rename = Some(to.to_owned());
    }
    pub fn add(&mut self, name: &str, json: String) {
        self.add.push((name.to_owned(), json));
    }
    pub fn is_nothing(&self) -> bool {
        self.fields.is_empty() && self.add.is_empty()
    }

    /// The changed object to the end of `out`, if it is one; and how many fields could not be parsed, which stay text.
    pub fn edit(&self, event: &[u8], out: &mut Vec<u8>) -> (Edited, u64) {
        if !is_object(event) || !is_shallow(event) {
            return (Edited::NotJson, 0);
        }
        let Ok(text) = simdutf8::basic::from_utf8(event) else {
            return (Edited::NotJson, 0);
        };
        let mut pass = Pass::default();
        match self.object(text, false, &mut pass, out) {
            Err(NotJson) => (Edited::NotJson, 0),
            Ok(()) if pass.changed => (Edited::Changed, pass.unparsed),
            Ok(()) => (Edited::Same, pass.unparsed),
        }
    }
    /// `whole`: all of it was selected, whatever is selected of its parts.
    fn object(&self, text: &str, whole: bool, pass: &mut Pass, out: &mut Vec<u8>) -> Result<(), NotJson> {
        let selects = self.selects && !whole;
        let (mut end, mut first) = (None, true);
        out.push(b'{');
        for entry in sonic_rs::to_object_iter(text) {
            let (name, value) = entry.map_err(|_| NotJson)?;
            let raw = value.as_raw_str();
            end = Some(raw.as_ptr() as usize - text.as_ptr() as usize + raw.len());
            let field = self
                .fields
                .iter()
                .find(|(field, _)| *field == name)
                .map(|(_, field)| field);
            let selected = !selects || field.is_some_and(|field| field.keep || field.inner.selects);
            if !selected || field.is_some_and(|field| field.remove) || self.is_replaced(&name, field, text) {
                pass.changed = true;
                continue;
            }
            let before = out.len();
            if !first {
                out.push(b',');
            }
            let new_name = field.and_then(|field| field.rename.as_deref());
            pass.changed |= new_name.is_some();
            string(new_name.unwrap_or(&name), out);
            out.push(b':');
            let Some(field) = field else {
                out.extend_from_slice(raw.as_bytes());
                first = false;
                continue;
            };
            let mut raw = Cow::Borrowed(raw);
            if field.parse {
                match value.as_str().map(parsed) {
                    Some(Some(inner)) => {
                        raw = inner.into();
                        pass.changed = true;
                    }
                    Some(None) => pass.unparsed += 1,
                    None => {} // it is no text: nothing to parse
                }
            }
            if !field.inner.is_nothing() && raw.starts_with('{') {
                field.inner.object(&raw, whole || field.keep, pass, out)?;
            } else if selects && !field.keep {
                // Parts of it are wanted, but it has none.
                out.truncate(before);
                pass.changed = true;
                continue;
            } else {
                out.extend_from_slice(raw.as_bytes());
            }
            first = false;
        }
        // Behind its last value comes the brace, and then nothing.
        let rest = text[end.unwrap_or_default()..].trim_matches([' ', '\t', '\r', '\n']);
        let rest = if end.is_some() {
            rest
        } else {
            rest.strip_prefix('{').unwrap_or(rest).trim_start()
        };
        if rest != "}" {
            return Err(NotJson);
        }
        for (name, json) in &self.add {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            string(name, out);
            out.push(b':');
            out.extend_from_slice(json.as_bytes());
            pass.changed = true;
        }
        out.push(b'}');
        Ok(())
    }
    /// By an added field, or by one that gets its name and is there.
    fn is_replaced(&self, name: &str, field: Option<&Field>, text: &str) -> bool {
        if self.add.iter().any(|(add, _)| add == name) {
            return true;
        }
        let renames_away = field.is_some_and(|field| field.rename.is_some());
        let becomes = |(_, field): &&(String, Field)| field.rename.as_deref() == Some(name) && !field.remove;
        match self.fields.iter().find(becomes) {
            Some((from, _)) if !renames_away && from != name => {
                let mut names = sonic_rs::to_object_iter(text).map_while(Result::ok);
                names.any(|(other, _)| other == **from)
            }
            _ => false,
        }
    }
}
/// Text that is a JSON object or list by itself.
fn parsed(text: &str) -> Option<String> {
    let text = text.trim();
    let fits =
        text.starts_with(['{', '[']) && is_shallow(text.as_bytes()) && sonic_rs::from_str::<IgnoredAny>(text).is_ok();
    // On one line: an event that was one stays one.
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    fits.then(|| line(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(make: impl Fn(&mut Edit), event: &str) -> String {
        let mut edit = Edit::default();
        make(&mut edit);
        let mut out = b"before ".to_vec();
        match edit.edit(event.as_bytes(), &mut out) {
            (Edited::Changed, unparsed) => {
                assert_eq!(unparsed, 0);
                let text = String::from_utf8(out)
                    .unwrap()
                    .strip_prefix("before ")
                    .unwrap()
                    .to_owned();
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
                text
            }
            (other, unparsed) => format!("{other:?} {unparsed}"),
        }
    }
    fn path(text: &str) -> Path {
        Path::new(text).unwrap()
    }

    #[test]
    fn single_steps() {
        let event = r#"{"a": 1.50, "b": {"c": "\u00e9", "d": [1, 2]}, "e": "{\"f\": 1}"}"#;
        for (make, expected) in [
            (
                (&|e: &mut Edit| e.select(&path("b.c"))) as &dyn Fn(&mut Edit),
                r#"{"b":{"c":"\u00e9"}}"#,
            ),
            (
                &|e| {
                    e.select(&path("b"));
                    e.select(&path("b.c"))
                },
                r#"{"b":{"c":"\u00e9","d":[1, 2]}}"#,
            ),
            (&|e| e.select(&path("a.x")), "{}"),
            (
                &|e| e.remove(&path("b.d")),
                r#"{"a":1.50,"b":{"c":"\u00e9"},"e":"{\"f\": 1}"}"#,
            ),
            (
                &|e| e.rename(&path("b.d"), "z"),
                r#"{"a":1.50,"b":{"c":"\u00e9","z":[1, 2]},"e":"{\"f\": 1}"}"#,
            ),
            (
                &|e| e.rename(&path("a"), "e"),
                r#"{"e":1.50,"b":{"c": "\u00e9", "d": [1, 2]}}"#,
            ),
            (
                &|e| e.add("a", "true".into()),
                r#"{"b":{"c": "\u00e9", "d": [1, 2]},"e":"{\"f\": 1}","a":true}"#,
            ),
            (
                &|e| {
                    e.parse(&path("e"));
                    e.select(&path("e.f"))
                },
                r#"{"e":{"f":1}}"#,
            ),
            (&|e| e.remove(&path("none")), "Same 0"),
            (&|e| e.rename(&path("none"), "a"), "Same 0"),
            (&|e| e.parse(&path("b")), "Same 0"),
        ] {
            assert_eq!(edit(make, event), expected);
        }
        assert_eq!(edit(|e| e.add("x", "1".into()), " { } "), r#"{"x":1}"#);
        assert_eq!(edit(|e| e.parse(&path("e")), r#"{"e":"{broken"}"#), "Same 1");
        // Two that change names with each other.
        let swap = |e: &mut Edit| {
            e.rename(&path("a"), "b");
            e.rename(&path("b"), "a")
        };
        assert_eq!(edit(swap, r#"{"a":1,"b":2}"#), r#"{"b":1,"a":2}"#);
    }
    #[test]
    fn what_is_no_object_is_left_alone() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        for event in [
            "",
            "text",
            "[{}]",
            "{",
            r#"{"a":1} x}"#,
            r#"{"a":1}}"#,
            "{ x }",
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            &deep,
        ] {
            assert_eq!(
                edit(|e| e.remove(&path("a")), event),
                "NotJson 0",
                "{}",
                &event[..event.len().min(20)]
            );
        }
        let nested = format!(r#"{{"a":"{}{}"}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        assert_eq!(edit(|e| e.parse(&path("a")), &nested), "Same 1");
    }

    proptest::proptest! {
        /// As taking it apart and putting it together with serde_json.
        #[test]
        fn as_the_model_says(
            fields in proptest::collection::btree_map("[abc]", "[0-9]{1,3}|\"[xy\u{e9}]{0,3}\"|\\{\"a\":1,\"b\":\\[\\]\\}", 0..4),
            removed in "[abcd]", added in "[abcd]", space in "[ \t]{0,2}",
        ) {
            let fields = fields.into_iter().filter(|(_, value)| !value.starts_with('0') || value == "0").collect::<Vec<_>>();
            let inner = fields.iter().map(|(name, value)| format!("\"{name}\"{space}:{space}{value}")).collect::<Vec<_>>();
            let event = format!("{space}{{{space}{}{space}}}{space}", inner.join(","));
            let mut model = serde_json::from_str::<serde_json::Map<_, _>>(&event).unwrap();
            model.shift_remove(&removed);
            model.shift_remove(&added);
            model.insert(added.clone(), 7.into());
            let got = edit(|e| { e.remove(&path(&removed)); e.add(&added, "7".into()) }, &event);
            proptest::prop_assert_eq!(got.parse::<serde_json::Value>().unwrap(), serde_json::Value::Object(model));
        }
        #[test]
        fn any_bytes_are_answered(event in proptest::collection::vec(proptest::sample::select(b"{}[]\",:\\ae1\n\xff".to_vec()), 0..30)) {
            let mut edit = Edit::default();
            edit.parse(&path("a"));
            edit.select(&path("a.e"));
            let mut out = vec![];
            if edit.edit(&event, &mut out).0 == Edited::Changed {
                serde_json::from_slice::<serde_json::Value>(&out).unwrap();
            }
        }
    }
}
