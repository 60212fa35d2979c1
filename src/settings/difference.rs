//! What is other in new settings: for whoever asked for a reload, and for Root, which changes that and nothing else. Pure.
use serde_json::{Map, Value};

use super::{Output, Settings, show};

/// Dotted keys, with the values as they are shown: secrets are masked, but a changed one is seen to have changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    pub added: Vec<Changed>,
    pub removed: Vec<Changed>,
    pub changed: Vec<Changed>,
    /// Keys of these that cannot change while the agent runs.
    pub needs_restart: Vec<String>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    pub key: String,
    /// Null for what was added.
    pub from: Value,
    /// Null for what was removed.
    pub to: Value,
}
impl Difference {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Whose place in the world is taken at the start: state, identity, the log's file, priority.
const NEED_RESTART: [&str; 10] = [
    "agent.data_dir",
    "agent.pid_file",
    "agent.id",
    "agent.group",
    "agent.ip",
    "log.format",
    "log.file",
    "log.max_size",
    "log.keep",
    "limits.nice",
];

/// Tables of which nothing can change.
const NEED_RESTART_BELOW: [&str; 2] = ["etcd.", "jobs."];

/// By key. Pipelines are known by their names, outputs as `heirs` says.
pub fn difference(old: &Settings, new: &Settings) -> Difference {
    let mut found = Difference::default();
    let (before, after) = (old.plain(), new.plain());
    let others = |value: &Value| {
        let mut all = value.as_object().cloned().unwrap_or_default();
        all.remove("pipeline");
        Value::Object(all)
    };
    found.values("", &others(&before), &others(&after));
    for (i, pipeline) in old.pipelines.iter().enumerate() {
        if !new.pipelines.iter().any(|p| p.name == pipeline.name) {
            found.went(format!("pipeline.{}", pipeline.name), &before["pipeline"][i]);
        }
    }
    for (i, pipeline) in new.pipelines.iter().enumerate() {
        let (key, after) = (format!("pipeline.{}", pipeline.name), &after["pipeline"][i]);
        let Some(at) = old.pipelines.iter().position(|p| p.name == pipeline.name) else {
            found.came(key, after);
            continue;
        };
        let before = &before["pipeline"][at];
        found.values(&format!("{key}.input"), &before["input"], &after["input"]);
        if before["filters"] != after["filters"] {
            found.other(format!("{key}.filters"), &before["filters"], &after["filters"]);
        }
        let Heirs { of, gone } = heirs(&old.pipelines[at].outputs, &pipeline.outputs);
        for old in gone {
            found.went(format!("{key}.outputs[{old}]"), &before["outputs"][old]);
        }
        for (new, old) in of.into_iter().enumerate() {
            let key = format!("{key}.outputs[{new}]");
            match old {
                Some(old) => found.values(&key, &before["outputs"][old], &after["outputs"][new]),
                None => found.came(key, &after["outputs"][new]),
            }
        }
    }
    let keys = found
        .changed
        .iter()
        .filter(|changed| NEED_RESTART.contains(&changed.key.as_str()));
    let all = found.added.iter().chain(&found.removed).chain(&found.changed);
    let below = all.filter(|changed| NEED_RESTART_BELOW.iter().any(|table| changed.key.starts_with(table)));
    found.needs_restart = keys.chain(below).map(|changed| changed.key.clone()).collect();
    found
}
impl Difference {
    fn came(&mut self, key: String, to: &Value) {
        self.added.push(masked(key, &Value::Null, to));
    }
    fn went(&mut self, key: String, from: &Value) {
        self.removed.push(masked(key, from, &Value::Null));
    }
    fn other(&mut self, key: String, from: &Value, to: &Value) {
        self.changed.push(masked(key, from, to));
    }
    /// Goes into tables; a list is one value. A key that only one side has is a change from or to null.
    fn values(&mut self, key: &str, from: &Value, to: &Value) {
        let (Value::Object(before), Value::Object(after)) = (from, to) else {
            if from != to {
                self.other(key.to_owned(), from, to);
            }
            return;
        };
        let inner = |name: &str| match key {
            "" => name.to_owned(),
            key => format!("{key}.{name}"),
        };
        for (name, from) in before {
            self.values(&inner(name), from, after.get(name).unwrap_or(&Value::Null));
        }
        for (name, to) in after.iter().filter(|(name, _)| !before.contains_key(*name)) {
            self.values(&inner(name), &Value::Null, to);
        }
    }
}
fn masked(key: String, from: &Value, to: &Value) -> Changed {
    // Under its own name, so that it is known for a secret.
    let name = key.rsplit('.').next().unwrap_or_default().to_owned();
    let mask = |value: &Value| {
        let mut shown = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        show::mask(&mut shown);
        shown[&name].take()
    };
    Changed {
        from: mask(from),
        to: mask(to),
        key,
    }
}

/// Which old output goes on as which new one.
#[derive(Debug, PartialEq, Eq)]
pub struct Heirs {
    /// For each new output the old one that goes on in it; none: it is new.
    pub of: Vec<Option<usize>>,
    /// Old ones that end.
    pub gone: Vec<usize>,
}
/// Outputs have no names: who is exactly the same goes on first, then who has the same plugin and its options, then the rest of the
/// same plugin, in their order.
pub fn heirs(old: &[Output], new: &[Output]) -> Heirs {
    let mut of = vec![None; new.len()];
    let mut left = (0..old.len()).collect::<Vec<_>>();
    let fits: [fn(&Output, &Output) -> bool; 3] = [
        |old, new| old == new,
        |old, new| old.plugin == new.plugin,
        |old, new| old.plugin.name.name == new.plugin.name.name,
    ];
    for fits in fits {
        for (heir, new) in of.iter_mut().zip(new).filter(|(heir, _)| heir.is_none()) {
            if let Some(place) = left.iter().position(|i| fits(&old[*i], new)) {
                *heir = Some(left.remove(place));
            }
        }
    }
    Heirs { of, gone: left }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::settings::{Options, Place, Purpose, load};

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, format!("[agent]\ndata_dir = \"/d\"\n{text}")).unwrap();
        let options = Options {
            place: Place {
                config: Some(path),
                ..Place::default()
            },
            ..Options::default()
        };
        let mut settings = load(&options, std::iter::empty(), Purpose::Check).unwrap();
        settings.config = Some(Path::new("agent.toml").into());
        settings
    }
    fn pipeline(name: &str, outputs: &str) -> String {
        format!(
            "[[pipeline]]\nname = \"{name}\"\ninput = {{ plugin = \"file:v1\", paths = [\"/in\"] }}\noutputs = [{outputs}]\n"
        )
    }
    fn logr(path: &str) -> String {
        format!("{{ plugin = \"logr\", path = \"{path}\" }}")
    }
    fn keys(of: &[Changed]) -> Vec<&str> {
        of.iter().map(|changed| &*changed.key).collect()
    }

    #[test]
    fn nothing_is_other_than_itself() {
        let text = pipeline("a", &[logr("/1"), logr("/2")].join(", "));
        assert!(difference(&settings(&text), &settings(&text)).is_empty());
    }
    #[test]
    fn by_key() {
        let one = settings(&(pipeline("a", &logr("/1")) + &pipeline("b", &logr("/2"))));
        let two = format!(
            "{}{}[log]\nlevel = \"debug\"\n[limits]\nnice = 5\n",
            pipeline("a", &logr("/3")),
            pipeline("c", "{ plugin = \"null\" }")
        );
        let found = difference(&one, &settings(&two));
        assert_eq!(keys(&found.added), ["pipeline.c"]);
        assert_eq!(keys(&found.removed), ["pipeline.b"]);
        assert_eq!(
            keys(&found.changed),
            ["log.level", "limits.nice", "pipeline.a.outputs[0].path"]
        );
        assert_eq!(
            (&found.changed[2].from, &found.changed[2].to),
            (&json!("/1"), &json!("/3"))
        );
        assert_eq!(found.needs_restart, ["limits.nice"]);
    }
    #[test]
    fn a_changed_secret_is_seen_and_not_shown() {
        let mut found = Difference::default();
        let (from, to) = (
            json!({"user": "me", "password": "a"}),
            json!({"user": "me", "password": "b"}),
        );
        found.values("x", &from, &to);
        found.went("y".into(), &json!({"tls": {"key_password": "c"}}));
        assert_eq!(keys(&found.changed), ["x.password"]);
        let shown = format!("{found:?}");
        assert!(
            shown.contains("***") && !shown.contains("\"a\"") && !shown.contains("\"c\""),
            "{shown}"
        );
    }
    #[test]
    fn outputs_are_known_by_what_they_are() {
        let outputs = |all: &[&str]| {
            let all = all.iter().map(|path| match path.strip_prefix('!') {
                Some("null") => "{ plugin = \"null\" }".to_owned(),
                Some(path) => logr(path).replace(" }", ", when_full = \"drop_oldest\" }"),
                None => logr(path),
            });
            settings(&pipeline("a", &all.collect::<Vec<_>>().join(", "))).pipelines[0]
                .outputs
                .clone()
        };
        for (old, new, of, gone) in [
            (&["/1", "/2"][..], &["/2"][..], &[Some(1)][..], &[0][..]),
            (&["/1", "/2"], &["/2", "/1"], &[Some(1), Some(0)], &[]),
            (&["/1", "/2"], &["/3", "/1"], &[Some(1), Some(0)], &[]),
            (&["/1"], &["/1", "/2"], &[Some(0), None], &[]),
            (&["/1"], &["!/1", "/2"], &[Some(0), None], &[]),
            (&["!/1", "/1"], &["/1", "!null"], &[Some(1), None], &[0]),
        ] {
            let found = heirs(&outputs(old), &outputs(new));
            let wanted = Heirs {
                of: of.to_vec(),
                gone: gone.to_vec(),
            };
            assert_eq!(found, wanted, "{old:?} → {new:?}");
        }
    }
}
