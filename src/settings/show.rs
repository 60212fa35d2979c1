//! The settings as they are in effect, in the form of the file: for `/config` and `agent doctor`. Secrets are masked.
use std::time::Duration;

use serde_json::{Value, json};

use super::{Ip, LogFormat, Output, Plugin, Settings, WhenFull};
use crate::model::{Size, Span};

const MASK: &str = "***";

impl Settings {
    /// All keys with their values; null where there is none. Secrets are masked.
    pub fn effective(&self) -> Value {
        let mut shown = self.plain();
        mask(&mut shown);
        shown
    }
    /// The same, secrets and all.
    pub(super) fn plain(&self) -> Value {
        let Settings {
            agent,
            http,
            etcd,
            jobs,
            log,
            limits,
            ..
        } = self;
        json!({
            "agent": {
                "id": agent.id,
                "group": agent.group,
                "ip": agent.ip.to_string(),
                "data_dir": agent.data_dir,
                "pid_file": agent.pid_file,
                "drain": span(agent.drain),
            },
            "http": {
                "address": http.address.map_or("off".to_owned(), |address| address.to_string()),
                "insecure_remote": http.insecure_remote,
                "tls": http.tls.as_ref().map(|tls| json!({ "cert": tls.cert, "key": tls.key })),
            },
            "etcd": {
                "endpoints": etcd.endpoints,
                "prefix": etcd.prefix,
                "user": etcd.user,
                "password": etcd.password,
                "tls": etcd.tls.as_ref().map(|tls| json!({
                    "ca": tls.ca,
                    "cert": tls.cert_and_key.as_ref().map(|(cert, _)| cert),
                    "key": tls.cert_and_key.as_ref().map(|(_, key)| key),
                })),
                "lease_ttl": span(etcd.lease_ttl),
                "renew_every": span(etcd.renew_every),
                "publish_runs": etcd.publish_runs,
                "on_partition": etcd.on_partition.word(),
            },
            "jobs": {
                "enabled": jobs.enabled,
                "max_parallel": jobs.max_parallel,
                "start_grace": span(jobs.start_grace),
                "ignore_fields": jobs.ignore_fields,
                "output_limit": Size(jobs.output_limit).to_string(),
                "retries": jobs.retries,
                "kill_after": span(jobs.kill_after),
                "jitter": span(jobs.jitter),
                "allow_users": jobs.guards.users,
                "allow_commands": jobs.guards.commands.as_ref().map(|all| all.iter().map(|allowed| {
                    json!({ "executor": allowed.executor(), "argv": allowed.argv() })
                }).collect::<Vec<_>>()),
                "allow_env": jobs.guards.env,
                "verify_key": (!jobs.verify_key.is_empty()).then_some(&jobs.verify_key), // an empty list would be none to verify with
                "fleet": jobs.fleet,
                "executor": jobs.executors.iter().map(|(name, _, command)| {
                    (name.clone(), json!({ "command": command }))
                }).collect::<serde_json::Map<_, _>>(),
                "webhook": jobs.webhooks.iter().map(|(name, hook)| {
                    let secret = hook.has_secret().then_some(MASK);
                    (name.clone(), json!({ "preset": hook.preset().word(), "url": hook.masked(), "secret": secret }))
                }).collect::<serde_json::Map<_, _>>(),
            },
            "log": {
                "level": level_word(log.level),
                "format": log.format.word(),
                "file": log.file,
                "max_size": Size(log.max_size).to_string(),
                "keep": log.keep,
            },
            "limits": {
                "memory": Size(limits.memory).to_string(),
                "nice": limits.nice,
                "max_read_channel_size": self.max_read_channel_size,
                "max_write_channel_size": self.max_write_channel_size,
                "max_write_bulk_size": self.max_write_bulk_size,
            },
            "pipeline": self.pipelines.iter().map(|pipeline| {
                let mut input = plugin(&pipeline.input);
                input["max_rate"] = json!(pipeline.max_rate.map(|rate| Size(rate).to_string()));
                json!({
                    "name": pipeline.name,
                    "input": input,
                    "filters": pipeline.filters.iter().map(plugin).collect::<Vec<_>>(),
                    "outputs": pipeline.outputs.iter().map(output).collect::<Vec<_>>(),
                })
            }).collect::<Vec<_>>(),
        })
    }
}
fn span(span: Duration) -> String {
    Span(span).to_string()
}
fn plugin(plugin: &Plugin) -> Value {
    let mut shown = plugin.table.0.clone();
    shown.shift_insert(0, "plugin".to_owned(), plugin.name.to_string().into());
    Value::Object(shown)
}
fn output(output: &Output) -> Value {
    let mut shown = plugin(&output.plugin);
    shown["when_full"] = output.when_full.word().into();
    shown["degrade"] = output.degrade.word().into();
    shown["retry"] = json!({ "first": span(output.retry.first), "most": span(output.retry.most) });
    shown
}
/// Whatever is called like a secret, at any depth. A path to one is none.
pub(super) fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => map
            .iter_mut()
            .for_each(|(key, value)| match is_secret(key) && !value.is_null() {
                true => *value = MASK.into(),
                false => mask(value),
            }),
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let named = ["password", "passwd", "passphrase", "secret", "token"]
        .iter()
        .any(|word| key.contains(word));
    named && !["_file", "_path"].iter().any(|end| key.ends_with(end))
}

impl std::fmt::Display for Ip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(ip) => ip.fmt(f),
            Self::Interface(name) => f.write_str(name),
            Self::Network(ip, bits) => write!(f, "{ip}/{bits}"),
        }
    }
}
impl LogFormat {
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Terminal => "terminal",
            Self::Json => "json",
        }
    }
}
impl WhenFull {
    pub fn word(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::DropNewest => "drop_newest",
            Self::DropOldest => "drop_oldest",
        }
    }
}
/// As the settings and the command line accept it.
pub fn level_word(level: slog::Level) -> &'static str {
    use slog::Level::*;
    match level {
        Critical => "critical",
        Error => "error",
        Warning => "warning",
        Info => "info",
        Debug => "debug",
        Trace => "trace",
    }
}
