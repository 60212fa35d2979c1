//! `[jobs]`: what jobs may do on this host, and how many at once.
use std::time::Duration;

use super::{
    check::{Section, boolean, one_of, path, size, span, text, whole},
    finding::unknown,
    layers::{Node, Value},
};
use crate::{
    executors::{Allowed, Custom, Executors, Guards},
    model::job::Limits,
    signature::Verifier,
    webhook::{Preset, Webhook},
};

#[derive(Clone, Debug, PartialEq)]
pub struct Jobs {
    /// False: no job is started here, whoever sends it.
    pub enabled: bool,
    /// Runs at one time.
    pub max_parallel: usize,
    /// An instant that passed while no agent was there is run if it is not older.
    pub start_grace: Duration,
    pub ignore_fields: Vec<String>,
    /// The most that a job may ask for.
    pub output_limit: u64,
    pub retries: u32,
    pub kill_after: Duration,
    pub jitter: Duration,
    pub guards: Guards,
    /// Public keys, checked. Not empty: what comes from etcd runs only if one of them has signed it, for this `fleet`.
    pub verify_key: Vec<String>,
    pub fleet: Option<String>,
    /// By name.
    pub executors: Vec<(String, Custom, Vec<String>)>,
    /// By name.
    pub webhooks: Vec<(String, Webhook)>,
}
impl Default for Jobs {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            enabled: true,
            max_parallel: 64,
            start_grace: Duration::from_secs(60),
            ignore_fields: vec![],
            output_limit: limits.output_limit,
            retries: limits.retries,
            kill_after: limits.kill_after,
            jitter: limits.jitter,
            guards: Guards::default(),
            verify_key: vec![],
            fleet: None,
            executors: vec![],
            webhooks: vec![],
        }
    }
}
impl Jobs {
    pub fn all_executors(&self) -> Executors {
        Executors::new(
            self.executors
                .iter()
                .map(|(name, custom, _)| (name.clone(), custom.clone())),
        )
    }
    /// What a job may ask for.
    pub fn limits(&self) -> Limits {
        Limits {
            executors: self.all_executors().names(),
            ignore_fields: self.ignore_fields.clone(),
            webhooks: self.webhooks.iter().map(|(name, _)| name.clone()).collect(),
            output_limit: self.output_limit,
            retries: self.retries,
            kill_after: self.kill_after,
            jitter: self.jitter,
            zone: jiff::tz::TimeZone::system(),
            leave_refused: Some("`leave` is not built yet".into()),
        }
    }
}
pub fn jobs(top: &mut Section<'_>) -> Jobs {
    let default = Jobs::default();
    let mut table = top.section("jobs");
    let enabled = table.or("enabled", default.enabled, boolean);
    let max_parallel = table.or("max_parallel", default.max_parallel, |node| whole(node, 1..=4096));
    let start_grace = table.or("start_grace", default.start_grace, span);
    let ignore_fields = table.or("ignore_fields", vec![], texts);
    let output_limit = table.or("output_limit", default.output_limit, size);
    let retries = table.or("retries", default.retries, |node| whole(node, 0..=10_000));
    let kill_after = table.or("kill_after", default.kill_after, span);
    let jitter = table.or("jitter", default.jitter, span);
    let users = table.read("allow_users", texts);
    let env = table.or("allow_env", vec![], texts);
    let executors = named(&mut table, "executor", |section| {
        let words = section.required("command", texts)?;
        match Custom::new(words.clone()) {
            Ok(custom) => Some((custom, words)),
            Err(message) => {
                section.findings.add(&section.at, section.key("command"), message);
                None
            }
        }
    });
    let executors = executors
        .into_iter()
        .map(|(name, (custom, words))| (name, custom, words))
        .collect::<Vec<_>>();
    let all = Executors::new(executors.iter().map(|(name, custom, _)| (name.clone(), custom.clone())));
    let commands = table.read("allow_commands", |node| allowed(node, &all));
    let webhooks = named(&mut table, "webhook", webhook);
    let (verify_key, fleet) = signed_by(&mut table);
    table.done();
    Jobs {
        enabled,
        max_parallel,
        start_grace,
        ignore_fields,
        output_limit,
        retries,
        kill_after,
        jitter,
        guards: Guards {
            users,
            commands,
            env,
            own_user: String::new(),
        },
        verify_key,
        fleet,
        executors,
        webhooks,
    }
}
/// A key or a list of keys, and the fleet that they sign for.
fn signed_by(table: &mut Section<'_>) -> (Vec<String>, Option<String>) {
    let named = table.has("fleet");
    let fleet = table.read("fleet", |node| match text(node)? {
        fleet if fleet.trim().is_empty() => Err("found nothing, accepted: a name".to_owned()),
        fleet => Ok(fleet),
    });
    let asked = table.has("verify_key");
    let keys = table.read("verify_key", |node| {
        let keys = match node.typed() {
            Value::List(_) => texts(node)?,
            _ => vec![text(node).map_err(|_| format!("{}, accepted: a key, or a list of keys", node.found()))?],
        };
        Verifier::new(&keys, "any").map(|_| keys)
    });
    if asked && !named {
        let (at, key) = (table.at.clone(), table.key("fleet"));
        let message = "missing, required beside verify_key: a name, so that signatures of other fleets do not count";
        table.findings.add(&at, key, message);
    }
    (keys.unwrap_or_default(), fleet)
}

/// The URL is a secret as the other is: from the file, or from files of their own.
fn webhook(table: &mut Section<'_>) -> Option<Webhook> {
    let preset = table.or("preset", Preset::default(), |node| one_of(node, &Preset::WORDS));
    let url = secret(table, "url", "url_file");
    let (url_at, url_key) = (table.at.clone(), table.key("url"));
    let given = ["secret", "secret_file"].iter().any(|name| table.has(name));
    if given && let Some(message) = Webhook::secret_refused(preset) {
        let key = table.key("secret");
        table.findings.add(&table.at, key, message);
    }
    let signs_with = secret(table, "secret", "secret_file");
    let Some(url) = url else {
        table.findings.add(&url_at, url_key, "missing, required (or url_file)");
        return None;
    };
    match Webhook::new(&url, preset, signs_with) {
        Ok(webhook) => Some(webhook),
        Err(message) => {
            table.findings.add(&url_at, url_key, message);
            None
        }
    }
}
/// As text, or the first line of a file. What was found is not shown.
fn secret(table: &mut Section<'_>, name: &'static str, file: &'static str) -> Option<String> {
    let some = |text: String| match text.trim() {
        "" => Err("found nothing, accepted: text".to_owned()),
        text => Ok(text.to_owned()),
    };
    let given = table.read(name, |node| {
        some(text(node).map_err(|_| "found no text, accepted: text".to_owned())?)
    });
    let of_file = table.read(file, |node| {
        let path = path(node)?;
        let all =
            std::fs::read_to_string(&path).map_err(|error| format!("could not read {}: {error}", path.display()))?;
        some(all.lines().next().unwrap_or_default().to_owned())
    });
    if given.is_some() && of_file.is_some() {
        let key = table.key(file);
        table
            .findings
            .add(&table.at, key, format!("found `{name}` too, accepted: one of them"));
    }
    given.or(of_file)
}

fn texts(node: &Node) -> Result<Vec<String>, String> {
    match node.typed() {
        Value::List(nodes) => nodes.iter().map(text).collect(),
        _ => Err(format!("{}, accepted: a list of texts", node.found())),
    }
}
/// Tables below a table, by names of their own.
fn named<'a, T>(
    table: &mut Section<'a>,
    name: &'static str,
    mut read: impl FnMut(&mut Section<'a>) -> Option<T>,
) -> Vec<(String, T)> {
    let Some(node) = table.take(name) else {
        return vec![];
    };
    let all = Section::open(table.findings, table.key(name), node);
    let key = all.key("");
    let (entries, _) = all.rest();
    let mut found = vec![];
    for (name, node) in entries {
        let mut section = Section::open(table.findings, format!("{key}{name}"), node);
        found.extend(read(&mut section).map(|read| (name, read)));
        section.done();
    }
    found
}
/// `[{ executor = "exec", argv = ["/usr/bin/df", "-h"] }]`
fn allowed(node: &Node, executors: &Executors) -> Result<Vec<Allowed>, String> {
    let refused = |found: String| {
        format!("{found}, accepted: a list of {{ executor = \"exec\", argv = [\"/usr/bin/df\", \"-h\"] }}")
    };
    let Value::List(nodes) = node.typed() else {
        return Err(refused(node.found()));
    };
    let one = |node: &Node| {
        let Value::Table(entries) = node.typed() else {
            return Err(refused(node.found()));
        };
        if let Some((name, _)) = entries
            .iter()
            .find(|(name, _)| !["executor", "argv"].contains(&name.as_str()))
        {
            return Err(unknown("key", name, ["executor", "argv"]));
        }
        let (Some(executor), Some(argv)) = (node.get("executor"), node.get("argv")) else {
            return Err(refused("found one without executor or argv".into()));
        };
        Allowed::new(text(executor)?, texts(argv)?, executors)
    };
    nodes.iter().map(one).collect()
}
