//! The pipelines: `[[pipeline]]`s, and the one called `default` that the flags and the tables `[input.X] [filter.X] [output.X]` make.
//! Each plugin is looked up in its CATALOG; the stage takes its own words out of the plugin's table, the plugin checks the rest.
use std::time::Duration;

use serde_json::Map;

use super::{
    Options, Output, Pipeline, Plugin, Purpose, Retry, WhenFull,
    check::{self, Section},
    finding::{At, Findings, did_you_mean, unknown},
    layers::{Node, Value},
};
use crate::{
    model::{PluginName, batch::MOST_OUTPUTS},
    plugins::{self, BadValue, Table, filters, inputs, outputs},
};

pub const DEFAULT: &str = "default";
const WHEN_FULL: [(&str, WhenFull); 3] = [
    ("block", WhenFull::Block),
    ("drop_newest", WhenFull::DropNewest),
    ("drop_oldest", WhenFull::DropOldest),
];
const RETRY: Retry = Retry {
    first: Duration::from_secs(2),
    most: Duration::from_secs(30),
};

/// A plugin that somebody asked for.
struct Wanted {
    /// `name` or `name:tag`
    plugin: String,
    /// Where that is said.
    at: At,
    /// Of its table, from the top.
    key: String,
    /// Its options and the stage's.
    table: Node,
}

pub fn pipelines(top: &mut Section<'_>, options: &Options, purpose: Purpose) -> Vec<Pipeline> {
    let mut reader = Reader {
        findings: top.findings,
        purpose,
        streams: Vec::new(),
    };
    let listed = top.take("pipeline");
    let picked = Picked {
        inputs: reader.picks(top, ("input", "-input"), inputs::CATALOG, &options.input),
        filters: reader.picks(top, ("filter", "-filter"), filters::CATALOG, &options.filter),
        outputs: reader.picks(top, ("output", "-output"), outputs::CATALOG, &options.output),
    };
    let flags = reader.default_pipeline(picked, listed.is_some(), options);
    let mut pipelines = listed
        .map(|list| reader.listed(list, flags.is_some()))
        .unwrap_or_default();
    pipelines.extend(flags);
    pipelines
}

struct Picked {
    inputs: Vec<Wanted>,
    filters: Vec<Wanted>,
    outputs: Vec<Wanted>,
}

struct Reader<'a> {
    findings: &'a Findings,
    purpose: Purpose,
    /// Who has stdin, who has stdout.
    streams: Vec<(&'static str, String)>,
}
impl<'a> Reader<'a> {
    /// What the flags name, with the options from the tables; without flags, what the tables name.
    fn picks<B>(
        &self,
        top: &mut Section<'_>,
        (kind, flag): (&'static str, &'static str),
        catalog: &'static [plugins::Plugin<B>],
        flags: &[String],
    ) -> Vec<Wanted> {
        let (tables, _) = top.section(kind).rest();
        if flags.is_empty() {
            let wanted = |(plugin, table): (String, Node)| Wanted {
                at: table.at.clone(),
                key: format!("{kind}.{plugin}"),
                plugin,
                table,
            };
            return tables.into_iter().map(wanted).collect();
        }
        let at = At::Flag(flag);
        let wanted = |plugin: &String| {
            let plugin = plugin.trim().to_owned();
            let name = plugin.split(':').next().unwrap_or_default();
            let table = [&*plugin, name] // [input."file:v1"] before [input.file]
                .iter()
                .find_map(|key| tables.iter().find(|(table, _)| table == key))
                .cloned();
            let (key, table) = table.unwrap_or_else(|| (name.to_owned(), Node::table(&at)));
            Wanted {
                plugin,
                at: at.clone(),
                key: format!("{kind}.{key}"),
                table,
            }
        };
        let picked = flags.iter().map(wanted).collect::<Vec<_>>();
        for (plugin, table) in &tables {
            let key = format!("{kind}.{plugin}");
            // The options of a plugin that is not wanted now; a misspelled one would go unseen.
            if !picked.iter().any(|p| p.key == key)
                && let Err(message) = find(kind, catalog, plugin)
            {
                self.findings.add(&table.at, key, message);
            }
        }
        picked
    }

    fn default_pipeline(&mut self, picked: Picked, listed: bool, options: &Options) -> Option<Pipeline> {
        let Picked {
            mut inputs,
            mut filters,
            mut outputs,
        } = picked;
        let tries = self.purpose == Purpose::Try;
        let bare = tries || self.purpose == Purpose::Run && !listed;
        let usual = match bare {
            true => "both, or neither (then stdin → valid → stdout)",
            false => "both, or neither",
        };
        let lonely = |wanted: &Wanted, found: &str| {
            self.findings.add(&wanted.at, "", format!("{found}, accepted: {usual}"));
            None
        };
        match (&inputs[..], &outputs[..], &filters[..]) {
            ([], [], []) if !bare || listed => return None,
            ([], [], []) => {
                inputs.push(usually("input", "stdin"));
                filters.push(usually("filter", "valid"));
                outputs.push(usually("output", "stdout"));
            }
            ([], [], _) if bare => {
                inputs.push(usually("input", "stdin"));
                outputs.push(usually("output", "stdout"));
            }
            ([], [], [filter, ..]) => return lonely(filter, "found filters without an input and an output"),
            ([input, ..], [], _) => return lonely(input, "found an input without an output"),
            ([], [output, ..], _) => return lonely(output, "found an output without an input"),
            ([_, second, ..], ..) => {
                let names = inputs.iter().map(|i| &*i.plugin).collect::<Vec<_>>().join(", ");
                let message = format!(
                    "found {} inputs ({names}), accepted: one; a [[pipeline]] for each further one",
                    inputs.len()
                );
                self.findings.add(&second.at, "", message);
            }
            _ => {}
        }
        let reads_files = inputs
            .iter()
            .any(|input| input.plugin.split(':').next() == Some("file"));
        let input = inputs.swap_remove(0);
        if !options.filepath.is_empty() && !reads_files {
            let message = format!(
                "found globs for the input `file` beside the input `{}`, accepted: with -input=file",
                input.plugin
            );
            self.findings.add(&At::Flag("-filepath"), "", message);
        }
        self.pipeline(DEFAULT.to_owned(), input, filters, outputs)
    }

    /// The `[[pipeline]]`s. `taken`: the name `default` is.
    fn listed(&mut self, list: Node, taken: bool) -> Vec<Pipeline> {
        let Value::List(nodes) = list.typed() else {
            let message = format!("{}, accepted: a list of tables, each under [[pipeline]]", list.found());
            self.findings.add(&list.at, "pipeline", message);
            return Vec::new();
        };
        let mut names = Vec::new();
        if taken {
            names.push(DEFAULT.to_owned());
        }
        let mut pipelines = Vec::new();
        for (i, node) in nodes.into_iter().enumerate() {
            let mut table = Section::open(self.findings, format!("pipeline[{i}]"), node);
            let name = table.required("name", |node| match pipeline_name(node)? {
                name if name == DEFAULT && taken => Err(
                    "found \"default\" twice: the flags and the tables [input.X], [output.X] make it too".to_owned(),
                ),
                name if names.contains(&name) => {
                    Err(format!("found {name:?} twice, accepted: a name of its own for each"))
                }
                name => Ok(name),
            });
            names.extend(name.clone());
            let input = table.required("input", |node| Ok(node.clone()));
            let input = input.and_then(|node| self.wanted(node, table.key("input")));
            let [filters, outputs] = ["filters", "outputs"].map(|key| match table.take(key) {
                Some(node) => self.wanted_list(node, table.key(key)),
                None => Vec::new(),
            });
            if outputs.is_empty() {
                let message = "missing, required: at least one, as in [{ plugin = \"stdout\" }]";
                self.findings.add(&table.at, table.key("outputs"), message);
            }
            table.done();
            if let Some(input) = input {
                // Under a refused name the rest is looked at all the same.
                pipelines.extend(self.pipeline(name.unwrap_or_default(), input, filters, outputs));
            }
        }
        pipelines
    }
    fn wanted_list(&self, node: Node, key: String) -> Vec<Wanted> {
        match node.value {
            Value::List(nodes) => {
                let nodes = nodes.into_iter().enumerate();
                nodes
                    .filter_map(|(i, node)| self.wanted(node, format!("{key}[{i}]")))
                    .collect()
            }
            _ => {
                let message = format!("{}, accepted: a list as in [{{ plugin = \"name\" }}]", node.found());
                self.findings.add(&node.at, key, message);
                Vec::new()
            }
        }
    }
    /// `{ plugin = "name:tag", … }`, or the name alone.
    fn wanted(&self, node: Node, key: String) -> Option<Wanted> {
        let at = node.at.clone();
        if let Value::Text(plugin) = node.value {
            let table = Node::table(&at);
            return Some(Wanted { plugin, at, key, table });
        }
        if !matches!(node.value, Value::Table(_)) {
            let message = format!(
                "{}, accepted: a table as in {{ plugin = \"name\" }}, or a plugin's name",
                node.found()
            );
            self.findings.add(&at, key, message);
            return None;
        }
        let at = node.get("plugin").map_or(at, |plugin| plugin.at.clone());
        let mut table = Section::open(self.findings, key.clone(), node);
        let plugin = table.required("plugin", check::text)?;
        let place = table.at.clone();
        let table = Node::new(&place, Value::Table(table.rest().0));
        Some(Wanted { plugin, at, key, table })
    }

    /// None if a plugin of it is refused: then there is a finding.
    fn pipeline(
        &mut self,
        name: String,
        input: Wanted,
        filters: Vec<Wanted>,
        outputs: Vec<Wanted>,
    ) -> Option<Pipeline> {
        if let Some(first) = outputs.get(MOST_OUTPUTS) {
            let message = format!(
                "found {} outputs, accepted: at most {MOST_OUTPUTS} a pipeline",
                outputs.len()
            );
            self.findings.add(&first.at, &*first.key, message);
        }
        self.stream("stdin", &input, &name);
        outputs.iter().for_each(|output| self.stream("stdout", output, &name));
        let input = self.input(input);
        let filters = filters
            .into_iter()
            .map(|wanted| self.filter(wanted))
            .collect::<Vec<_>>();
        let outputs = outputs
            .into_iter()
            .map(|wanted| self.output(wanted))
            .collect::<Vec<_>>();
        let (input, max_rate) = input?;
        Some(Pipeline {
            name,
            input,
            max_rate,
            filters: filters.into_iter().collect::<Option<_>>()?,
            outputs: outputs.into_iter().collect::<Option<_>>()?,
        })
    }
    /// There is one stdin and one stdout, and a daemon has neither.
    fn stream(&mut self, stream: &'static str, wanted: &Wanted, pipeline: &str) {
        if wanted.plugin.split(':').next() != Some(stream) || self.purpose == Purpose::Try {
            return;
        }
        if self.purpose == (Purpose::Start { foreground: false }) {
            let message = format!("found {stream}, which a daemon has not, accepted: with --foreground");
            self.findings.add_usage(&wanted.at, &*wanted.key, message);
        }
        match self.streams.iter().find(|(taken, _)| *taken == stream) {
            None => self.streams.push((stream, pipeline.to_owned())),
            Some((_, by)) => {
                let message = format!("found {stream} twice, accepted: once in all, and pipeline `{by}` has it");
                self.findings.add(&wanted.at, &*wanted.key, message);
            }
        }
    }

    fn input(&self, wanted: Wanted) -> Option<(Plugin, Option<u64>)> {
        let (row, mut table) = self.look_up("input", inputs::CATALOG, wanted)?;
        let max_rate = table.read("max_rate", check::size);
        Some((self.plugin(row, table)?, max_rate))
    }
    fn filter(&self, wanted: Wanted) -> Option<Plugin> {
        let (row, table) = self.look_up("filter", filters::CATALOG, wanted)?;
        self.plugin(row, table)
    }
    fn output(&self, wanted: Wanted) -> Option<Output> {
        let (row, mut table) = self.look_up("output", outputs::CATALOG, wanted)?;
        let policy = |node: &Node| match check::text(node).as_deref() {
            Ok("spill") => {
                Err("found \"spill\", which is not built yet, accepted: block, drop_newest, drop_oldest".to_owned())
            }
            _ => check::one_of(node, &WHEN_FULL),
        };
        let when_full = table.or("when_full", WhenFull::Block, policy);
        let degrade = table.or("degrade", when_full, policy);
        let mut times = table.section("retry");
        let first = times.or("first", RETRY.first, check::span);
        let most = times.or("most", RETRY.most.max(first), |node| match check::span(node)? {
            most if most < first => Err(format!("{}, accepted: not less than `first`", node.found())),
            most => Ok(most),
        });
        times.done();
        Some(Output {
            plugin: self.plugin(row, table)?,
            when_full,
            degrade,
            retry: Retry { first, most },
        })
    }

    fn look_up<B>(
        &self,
        kind: &str,
        catalog: &'static [plugins::Plugin<B>],
        wanted: Wanted,
    ) -> Option<(&'static plugins::Plugin<B>, Section<'a>)> {
        let found = find(kind, catalog, &wanted.plugin);
        let refused = |message| self.findings.add(&wanted.at, &*wanted.key, message);
        let row = found.map_err(refused).ok()?;
        Some((row, Section::open(self.findings, wanted.key, wanted.table)))
    }
    /// Hands the rest of the table to the plugin.
    fn plugin<B>(&self, row: &plugins::Plugin<B>, section: Section<'_>) -> Option<Plugin> {
        let (at, key) = (section.at.clone(), section.key(""));
        let (entries, own) = section.rest();
        let table = Table(
            entries
                .iter()
                .map(|(key, node)| (key.clone(), node.json()))
                .collect::<Map<_, _>>(),
        );
        match (row.check)(&table) {
            Ok(()) => Some(Plugin {
                name: PluginName {
                    name: row.name.to_owned(),
                    tag: Some(row.tag.to_owned()),
                },
                table,
            }),
            Err(bad) => {
                let bad = in_our_words(bad, &own);
                let entries = Node::new(&at, Value::Table(entries));
                let at = entries.place_of(&bad.key);
                self.findings
                    .add(at, format!("{key}{}", bad.key).trim_end_matches('.'), bad.message);
                None
            }
        }
    }
}

fn find<B>(
    kind: &str,
    catalog: &'static [plugins::Plugin<B>],
    plugin: &str,
) -> Result<&'static plugins::Plugin<B>, String> {
    let name: PluginName = plugin.parse()?;
    plugins::find(catalog, kind, &name).map_err(|message| {
        let others = catalog.iter().map(|row| row.name).filter(|other| *other != name.name);
        message + &did_you_mean(&name.name, others)
    })
}
/// One of the plugins of a bare `agent`.
fn usually(kind: &str, plugin: &str) -> Wanted {
    Wanted {
        plugin: plugin.to_owned(),
        at: At::Nowhere,
        key: format!("{kind}.{plugin}"),
        table: Node::table(&At::Nowhere),
    }
}
/// Part of file names and metrics.
fn pipeline_name(node: &Node) -> Result<String, String> {
    let fits = |name: &String| {
        (1..=64).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = check::text(node).ok().filter(fits);
    name.ok_or_else(|| format!("{}, accepted: 1 to 64 of the characters A-Z a-z 0-9 - _", node.found()))
}
/// A plugin's settings struct is read by serde, whose messages name the Rust side of things; `own` are the stage's words, accepted
/// beside the plugin's.
fn in_our_words(bad: BadValue, own: &[&str]) -> BadValue {
    let BadValue { mut key, message } = bad;
    let ticked = message.split('`').skip(1).step_by(2).collect::<Vec<_>>();
    let message = if let ["unknown", "field", ..] = message.split(' ').collect::<Vec<_>>()[..] {
        let own = own.iter().copied().filter(|_| !key.contains(['.', '[']));
        unknown("key", ticked[0], ticked[1..].iter().copied().chain(own))
    } else if message.starts_with("missing field `") {
        if !key.is_empty() {
            key.push('.');
        }
        key.push_str(ticked[0]);
        "missing, required".to_owned()
    } else if message.starts_with("unknown variant `") {
        format!(
            "found {:?}, accepted: {}{}",
            ticked[0],
            ticked[1..].join(", "),
            did_you_mean(ticked[0], ticked[1..].iter().copied())
        )
    } else {
        let wrong = ["invalid type: ", "invalid value: "]
            .iter()
            .find_map(|prefix| message.strip_prefix(prefix));
        match wrong.and_then(|rest| rest.split_once(", expected ")) {
            Some((found, expected)) => format!("found {found}, accepted: {expected}"),
            None => message,
        }
    };
    BadValue { key, message }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields, rename_all = "snake_case")]
    #[allow(dead_code, reason = "only read into")]
    struct Options {
        paths: Vec<String>,
        #[serde(default)]
        most: u32,
        start: Option<Start>,
    }
    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "snake_case")]
    enum Start {
        Beginning,
        End,
    }

    #[test]
    fn serde_in_our_words() {
        for (json, key, message) in [
            (
                r#"{"pahts": []}"#,
                "pahts",
                "unknown key, accepted: paths, most, start, max_rate; did you mean `paths`?",
            ),
            ("{}", "paths", "missing, required"),
            (r#"{"paths": [3]}"#, "paths[0]", "found integer `3`, accepted: a string"),
            (
                r#"{"paths": [], "most": "many"}"#,
                "most",
                "found string \"many\", accepted: u32",
            ),
            (
                r#"{"paths": [], "most": -1}"#,
                "most",
                "found integer `-1`, accepted: u32",
            ),
            (
                r#"{"paths": [], "start": "now"}"#,
                "start",
                "found \"now\", accepted: beginning, end",
            ),
        ] {
            let table = Table(serde_json::from_str(json).unwrap());
            let bad = in_our_words(table.read::<Options>().unwrap_err(), &["max_rate"]);
            assert_eq!((&*bad.key, &*bad.message), (key, message), "{json}");
        }
        let own = BadValue::new("path", "found a directory, accepted: a file");
        assert_eq!(in_our_words(own.clone(), &[]), own);
    }
}
