//! The layers: file < environment < `-f` < other flags. figment lays them over each other and knows which one each value is from; the
//! layer itself knows where in it the value stands, down to the line, so that whoever refuses it can say so. What a value means is
//! checked later (see `check`); here it only has a shape.
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Map, Value as Plain},
};
use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Options,
    finding::{At, Findings},
};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    pub at: At,
    pub value: Value,
}
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    /// From the environment or a flag: text that means a number where a number is wanted.
    Untyped(String),
    List(Vec<Node>),
    /// In the order of the file: that of filters counts.
    Table(Vec<(String, Node)>),
}

/// How deep a key may be nested; what is deeper is no setting of ours.
const DEEPEST: usize = 16;

impl Node {
    pub fn new(at: &At, value: Value) -> Self {
        Self { at: at.clone(), value }
    }
    pub fn table(at: &At) -> Self {
        Self::new(at, Value::Table(Vec::new()))
    }
    /// None: this is no table.
    fn entries(&self) -> Option<&[(String, Node)]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|(k, _)| k == key).map(|(_, node)| node)
    }
    /// `value` under `a.b.c`: a layer of its own.
    fn nested(path: &[&str], at: &At, value: Value) -> Node {
        path.iter().rev().fold(Node::new(at, value), |inner, key| {
            Node::new(at, Value::Table(vec![((*key).to_owned(), inner)]))
        })
    }
    /// For an error: what stands here.
    pub fn found(&self) -> String {
        match &self.value {
            Value::Null => "found null".to_owned(),
            Value::Bool(value) => format!("found {value}"),
            Value::Integer(value) => format!("found {value}"),
            Value::Float(value) => format!("found {value:?}"),
            Value::Text(text) | Value::Untyped(text) => format!("found {text:?}"),
            Value::List(_) => "found a list".to_owned(),
            Value::Table(_) => "found a table".to_owned(),
        }
    }
    /// Untyped text read as a TOML value if it is one (`true`, `5`, `["a", "b"]`, `"5"`), else as the text it is. Whoever wants text
    /// only takes the text: see `check`.
    pub fn typed(&self) -> Value {
        let Value::Untyped(text) = &self.value else {
            return self.value.clone();
        };
        match DeValue::parse(text) {
            Ok(value) => match from_toml(value.into_inner(), &|_| self.at.clone()) {
                Node {
                    value: Value::Text(_), ..
                } if !text.starts_with(['"', '\'']) => Value::Text(text.clone()), // a date
                node => node.value,
            },
            Err(_) => Value::Text(text.clone()),
        }
    }
    /// What a plugin is handed.
    pub fn json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self.typed() {
            Value::Null => Json::Null,
            Value::Bool(value) => value.into(),
            Value::Integer(value) => match (i64::try_from(value), u64::try_from(value)) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => (value as f64).into(),
            },
            Value::Float(value) => value.into(), // an infinite one becomes null, which no option is
            Value::Text(text) | Value::Untyped(text) => text.into(),
            Value::List(nodes) => nodes.iter().map(Node::json).collect(),
            Value::Table(entries) => Json::Object(entries.iter().map(|(k, node)| (k.clone(), node.json())).collect()),
        }
    }
    /// What figment is handed: it merges tables, and lays all else over as a whole.
    fn plain(&self) -> Plain {
        match &self.value {
            Value::Table(entries) => {
                Plain::from(entries.iter().map(|(k, node)| (k, node.plain())).collect::<Map<_, _>>())
            }
            Value::Untyped(text) => text.as_str().into(), // no table, whatever it means
            _ => Plain::serialize(self.json()).expect("figment has a value for all of JSON"),
        }
    }
    /// Where the value at `brokers[2].name` stands, or the nearest thing around it.
    pub fn place_of(&self, path: &str) -> &At {
        let mut node = self;
        for part in path.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
            let inner = match &node.value {
                Value::List(nodes) => part.parse().ok().and_then(|i: usize| nodes.get(i)),
                _ => node.get(part),
            };
            match inner {
                Some(inner) => node = inner,
                None => break,
            }
        }
        &node.at
    }
}

/// A layer, by the root of its tree.
impl Provider for Node {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.at.to_string())
    }
    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.plain().into_dict().unwrap_or_default()))
    }
}

/// All that was read: what is in effect of it, says figment. It keeps neither lines nor the order of keys, nor that a text is untyped;
/// but the tag of a value leads back to its layer, and there it stands as it was read.
#[derive(Default)]
pub struct Layers {
    merged: Figment,
    all: Vec<Node>,
}
impl Layers {
    fn merge(&mut self, layer: Node) {
        self.merged = std::mem::take(&mut self.merged).merge(&layer);
        self.all.push(layer);
    }
    /// One tree of all layers.
    pub fn tree(&self) -> Node {
        let merged = self.merged.find_value("").expect("no layer refuses to give its data");
        let said = self.all.iter().map(|layer| (layer, layer)).collect::<Vec<_>>();
        self.node(merged, &said)
    }
    /// `said`: each layer that speaks of this key, and what it says there.
    fn node(&self, value: Plain, said: &[(&Node, &Node)]) -> Node {
        let Plain::Dict(_, mut dict) = value else {
            let layer = self.merged.get_metadata(value.tag());
            let from = said.iter().rfind(|(said_by, _)| layer == Some(&said_by.metadata()));
            return from.expect("figment takes every value from a layer").1.clone();
        };
        // The place of a table is where it begins: after whatever else a layer put there.
        let other = said.iter().rposition(|(_, here)| here.entries().is_none());
        let said = &said[other.map_or(0, |last| last + 1)..];
        let mut entries = Vec::new();
        for (key, _) in said.iter().filter_map(|(_, here)| here.entries()).flatten() {
            if let Some(value) = dict.remove(key) {
                let inner = said.iter().filter_map(|(layer, here)| Some((*layer, here.get(key)?)));
                entries.push((key.clone(), self.node(value, &inner.collect::<Vec<_>>())));
            }
        }
        let at = said.first().map_or(&At::Nowhere, |(_, here)| &here.at);
        Node::new(at, Value::Table(entries))
    }
}

/// What of the environment concerns the settings.
#[derive(Default)]
pub struct Environment {
    /// By name: `AGENT_HTTP__TLS` comes before `AGENT_HTTP__TLS__CERT`.
    settings: BTreeMap<String, OsString>,
    pub home: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
}
impl Environment {
    pub fn read(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let mut env = Self::default();
        for (name, value) in variables {
            match name.to_str() {
                Some("HOME") => env.home = Some(value.into()),
                Some("XDG_STATE_HOME") => env.xdg_state_home = Some(value.into()),
                // Without a `__` it is not ours: AGENT_RUN_ID of a job, AGENT_PORT of a Kubernetes service.
                Some(name) if name.strip_prefix("AGENT_").is_some_and(|rest| rest.contains("__")) => {
                    env.settings.insert(name.to_owned(), value);
                }
                _ => {}
            }
        }
        env
    }
    pub fn merge_into(&self, layers: &mut Layers, findings: &Findings) {
        for (name, value) in &self.settings {
            let at = At::Env(name.clone());
            let key = name["AGENT_".len()..].to_ascii_lowercase();
            let path = key.split("__").collect::<Vec<_>>();
            match value.to_str() {
                _ if path.len() > DEEPEST || path.contains(&"") => {
                    findings.add(
                        &at,
                        "",
                        "found no key in this name, accepted: AGENT_<TABLE>__<KEY> as in AGENT_HTTP__ADDRESS",
                    );
                }
                None => findings.add(&at, path.join("."), format!("found {value:?}, accepted: UTF-8 text")),
                Some(text) => layers.merge(Node::nested(&path, &at, Value::Untyped(text.to_owned()))),
            }
        }
    }
}

/// Reads a settings file, a layer; its ending tells the format.
pub fn merge_file(path: &Path, layers: &mut Layers, findings: &Findings) {
    let place: Arc<Path> = path.into();
    let at = |line| At::File {
        path: place.clone(),
        line,
    };
    let bytes = match super::from_the_start(path).and_then(std::fs::read) {
        Ok(bytes) => bytes,
        Err(error) => return findings.add(&at(None), "", format!("could not read it: {}", plain(&error))),
    };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let line = line_of(&bytes, error.valid_up_to());
            return findings.add(
                &at(Some(line)),
                "",
                "found bytes that are no UTF-8, accepted: UTF-8 text",
            );
        }
    };
    let node = match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
        "yaml" | "yml" => from_yaml(text, &at),
        "json" => from_json(text, &at(None)).map_err(|(line, message)| vec![(Some(line), message)]),
        _ => {
            let (table, errors) = DeTable::parse_recoverable(text);
            let line = |offset| line_of(text.as_bytes(), offset);
            let mut errors = errors
                .iter()
                .map(|e| (e.span().map(|span| line(span.start)), e.message().replace('\n', ", ")))
                .collect::<Vec<_>>();
            errors.dedup_by_key(|(line, _)| *line); // what follows on the same line follows from it
            match errors.is_empty() {
                true => Ok(from_toml(DeValue::Table(table.into_inner()), &|offset| {
                    at(Some(line(offset)))
                })),
                false => Err(errors),
            }
        }
    };
    match node {
        Ok(node) if node.entries().is_some() => layers.merge(Node { at: at(None), ..node }),
        Ok(Node { value: Value::Null, .. }) => {} // an empty YAML file
        Ok(node) => findings.add(&at(None), "", format!("{}, accepted: tables of settings", node.found())),
        Err(errors) => errors
            .into_iter()
            .for_each(|(line, message)| findings.add(&at(line), "", format!("syntax: {message}"))),
    }
}

/// `-f`, the plain flags, `--set`. What picks plugins (`-input` …) is no setting; see `pipelines`.
pub fn merge_flags(options: &Options, layers: &mut Layers, findings: &Findings) {
    for text in &options.inline {
        match from_json(text, &At::Flag("-f")) {
            Ok(node) if node.entries().is_some() => layers.merge(node),
            Ok(node) => findings.add(
                &At::Flag("-f"),
                "",
                format!(
                    "{}, accepted: a JSON object as in '{{\"log\":{{\"level\":\"debug\"}}}}'",
                    node.found()
                ),
            ),
            Err((_, message)) => findings.add(&At::Flag("-f"), "", format!("syntax: {message}")),
        }
    }
    merge_values(options.values(), layers);
    if !options.etcd_endpoint.is_empty() {
        let all = options.etcd_endpoint.join(",");
        merge_values(vec![("-etcd-endpoint", "etcd.endpoints", &all)], layers);
    }
    if !options.filepath.is_empty() {
        merge_globs(options.globs(), layers);
    }
    for text in &options.set {
        let at = At::Flag("--set");
        let (key, value) = text.split_once('=').unwrap_or_default();
        let path = key.split('.').collect::<Vec<_>>();
        match path.len() > DEEPEST || path.contains(&"") {
            true => findings.add(
                &at,
                "",
                format!("found {text:?}, accepted: KEY=VALUE as in log.level=debug"),
            ),
            false => layers.merge(Node::nested(&path, &at, Value::Untyped(value.to_owned()))),
        }
    }
}
/// (option, key, value)
pub fn merge_values(values: Vec<(&'static str, &'static str, &str)>, layers: &mut Layers) {
    for (flag, key, value) in values {
        let path = key.split('.').collect::<Vec<_>>();
        layers.merge(Node::nested(&path, &At::Flag(flag), Value::Untyped(value.to_owned())));
    }
}
/// `-filepath` speaks to the input `file`, under whatever tag there is a table for it.
fn merge_globs(globs: Vec<String>, layers: &mut Layers) {
    let at = At::Flag("-filepath");
    let globs = globs.into_iter().map(|glob| Node::new(&at, Value::Text(glob)));
    let paths = Value::List(globs.collect());
    let input = layers.merged.find_value("input").ok().and_then(Plain::into_dict);
    let mut tables = input.unwrap_or_default().into_keys().collect::<Vec<_>>();
    tables.retain(|key| key.split(':').next() == Some("file"));
    if tables.is_empty() {
        tables.push("file".to_owned());
    }
    for table in &tables {
        layers.merge(Node::nested(&["input", table, "paths"], &at, paths.clone()));
    }
}

/// `offset` counts bytes; lines count from 1.
fn line_of(text: &[u8], offset: usize) -> usize {
    memchr::memchr_iter(b'\n', &text[..offset.min(text.len())]).count() + 1
}
/// A system's error without its number.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn from_toml(value: DeValue<'_>, at: &dyn Fn(usize) -> At) -> Node {
    fn spanned(span: std::ops::Range<usize>, value: DeValue<'_>, at: &dyn Fn(usize) -> At) -> Node {
        Node {
            at: at(span.start),
            ..from_toml(value, at)
        }
    }
    let value = match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Text(number.to_string()), // larger than any option may be: whoever wants a number refuses it
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Text(number.to_string()),
        },
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => {
            let items = items
                .into_iter()
                .map(|item| spanned(item.span(), item.into_inner(), at));
            Value::List(items.collect())
        }
        DeValue::Table(table) => {
            let mut entries = table
                .into_iter()
                .map(|(key, value)| (key.span(), key.into_inner().into_owned(), value.into_inner()))
                .collect::<Vec<_>>();
            entries.sort_by_key(|(span, ..)| span.start); // the map is sorted by name
            let node = |(span, key, value)| (key, spanned(span, value, at));
            Value::Table(entries.into_iter().map(node).collect())
        }
    };
    Node { at: at(0), value }
}

/// An error is its line and what the parser says.
fn from_json(text: &str, at: &At) -> Result<Node, (usize, String)> {
    fn node(json: serde_json::Value, at: &At) -> Node {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => match number.as_i128() {
                Some(number) => Value::Integer(number),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::Text(text),
            Json::Array(items) => Value::List(items.into_iter().map(|item| node(item, at)).collect()),
            Json::Object(map) => Value::Table(map.into_iter().map(|(k, v)| (k, node(v, at))).collect()),
        };
        Node::new(at, value)
    }
    match serde_json::from_str(text) {
        Ok(json) => Ok(node(json, at)),
        Err(error) => Err((error.line(), error.to_string())),
    }
}

type SyntaxErrors = Vec<(Option<usize>, String)>;
fn from_yaml(text: &str, at: &dyn Fn(Option<usize>) -> At) -> Result<Node, SyntaxErrors> {
    fn node(line: u64, yaml: Yaml, at: &dyn Fn(Option<usize>) -> At) -> Node {
        let inner = |item: Spanned<Yaml>| node(item.referenced.line(), item.value, at);
        let value = match yaml {
            Yaml::Plain(value) => value,
            Yaml::List(items) => Value::List(items.into_iter().map(inner).collect()),
            Yaml::Table(entries) => Value::Table(
                entries
                    .into_iter()
                    .map(|(key, item)| (key.value, node(key.referenced.line(), item.value, at)))
                    .collect(),
            ),
        };
        Node {
            at: at(Some(line as usize)),
            value,
        }
    }
    let options = serde_saphyr::Options {
        strict_booleans: true, // `no` is a word
        with_snippet: false,
        ..Default::default()
    };
    serde_saphyr::from_str_with_options::<Yaml>(text, options)
        .map(|yaml| node(1, yaml, at))
        .map_err(|error| {
            let line = error.location().map(|l| l.line() as usize);
            vec![(line, error.without_snippet().to_string())]
        })
}
/// YAML with the line of every key and value.
enum Yaml {
    Plain(Value),
    List(Vec<Spanned<Yaml>>),
    Table(Vec<(Spanned<String>, Spanned<Yaml>)>),
}
impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Yaml;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings")
            }
            fn visit_unit<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Bool(value)))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Integer(value.into())))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Integer(value.into())))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Float(value)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Text(text.to_owned())))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Yaml, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Yaml::List(list))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Yaml, A::Error> {
                let mut table = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    table.push(entry);
                }
                Ok(Yaml::Table(table))
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Layers as one would lay them by hand: what figment and the way back through its tags must come to.
    fn lay(under: &mut Node, over: Node) {
        match (&mut under.value, over.value) {
            (Value::Table(entries), Value::Table(new)) => {
                for (key, node) in new {
                    match entries.iter_mut().find(|(k, _)| *k == key) {
                        Some((_, old)) => lay(old, node),
                        None => entries.push((key, node)),
                    }
                }
            }
            (_, value) => *under = Node { at: over.at, value },
        }
    }
    fn layer() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::json!([{ "a": 1 }, null])),
            any::<i64>().prop_map(|n| n.into()),
            Just("x".into())
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop::collection::vec(("[a-c]", inner), 0..4)
                .prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect()))
        })
        .prop_filter("tables", serde_json::Value::is_object)
    }
    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Values, places and order, also where a table gives way to a value and comes back.
        #[test]
        fn figment_lays_them_as_by_hand(given in prop::collection::vec(layer(), 0..6)) {
            let (mut layers, mut by_hand) = (Layers::default(), Node::table(&At::Nowhere));
            for (i, json) in given.iter().enumerate() {
                let layer = from_json(&json.to_string(), &At::Env(i.to_string())).unwrap();
                if i == 0 {
                    by_hand.at = layer.at.clone();
                }
                lay(&mut by_hand, layer.clone());
                layers.merge(layer);
            }
            prop_assert_eq!(format!("{:?}", layers.tree()), format!("{by_hand:?}"));
        }
    }
}
