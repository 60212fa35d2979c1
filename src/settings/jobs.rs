//! `[jobs]`: what jobs may do on this host, and how many at once.
use std::time::Duration;

use super::{
    check::{Section, boolean, one_of, size, span, text, whole},
    finding::unknown,
    layers::{Node, Value},
};
use crate::{
    executors::{Allowed, Custom, Executors, Guards},
    model::job::Limits,
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
    /// By name.
    pub executors: Vec<(String, Custom, Vec<String>)>,
    pub webhooks: Vec<Webhook>,
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
    let webhooks = named(&mut table, "webhook", |section| {
        let preset = section.or("preset", Preset::Plain, |node| one_of(node, Preset::WORDS));
        let url = section.required("url", |node| match text(node)? {
            url if url.starts_with("https://") || url.starts_with("http://") => Ok(url),
            _ => Err("found no URL, accepted: https://… or http://…".to_owned()), // it may hold a secret: not shown
        })?;
        Some((preset, url))
    });
    for later in ["verify_key", "fleet"] {
        table.read(later, |_| Err::<(), _>("not built yet".to_owned()));
    }
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
        executors,
        webhooks: webhooks
            .into_iter()
            .map(|(name, (preset, url))| Webhook { name, preset, url })
            .collect(),
    }
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
            return Err(unknown("key", name, ["executor", "argv"].into_iter()));
        }
        let (Some(executor), Some(argv)) = (node.get("executor"), node.get("argv")) else {
            return Err(refused("found one without executor or argv".into()));
        };
        Allowed::new(text(executor)?, texts(argv)?, executors)
    };
    nodes.iter().map(one).collect()
}
