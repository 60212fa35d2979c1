//! From the merged layers to checked settings. A `Section` hands out a table's keys one by one and knows in the end which ones nobody
//! asked for; the readers below it say what a value may be. Nothing stops at the first error.
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Agent, Http, Ip, Limits, Log, LogFormat, Tls,
    finding::{At, Findings, unknown},
    layers::{Environment, Node, Value},
};
use crate::model::{Size, Span};

/// What later versions do: refused, never ignored.
const NOT_BUILT: [&str; 2] = ["influxdb", "limits.cpu"];

/// A table that is being read.
pub struct Section<'a> {
    pub findings: &'a Findings,
    /// Dotted; empty at the top.
    key: String,
    pub at: At,
    entries: Vec<(String, Node)>,
    /// What was asked for so far.
    accepted: Vec<&'static str>,
}
impl<'a> Section<'a> {
    /// What is no table is refused here, and read as an empty one.
    pub fn open(findings: &'a Findings, key: String, node: Node) -> Self {
        let entries = match node.typed() {
            Value::Table(entries) => entries,
            _ => {
                findings.add(&node.at, &*key, format!("{}, accepted: a table", node.found()));
                Vec::new()
            }
        };
        Self {
            findings,
            key,
            at: node.at,
            entries,
            accepted: Vec::new(),
        }
    }
    /// `name` as it is called from the top.
    pub fn key(&self, name: &str) -> String {
        match &*self.key {
            "" => name.to_owned(),
            key => format!("{key}.{name}"),
        }
    }
    pub fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _)| key == name)
    }
    pub fn take(&mut self, name: &'static str) -> Option<Node> {
        self.accepted.push(name);
        let found = self.entries.iter().position(|(key, _)| key == name)?;
        Some(self.entries.remove(found).1)
    }
    /// An inner table; empty if it is not there.
    pub fn section(&mut self, name: &'static str) -> Section<'a> {
        let node = self.take(name).unwrap_or_else(|| Node::table(&At::Nowhere));
        Section::open(self.findings, self.key(name), node)
    }
    /// None: not given, or refused.
    pub fn read<T>(&mut self, name: &'static str, reader: impl Fn(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.take(name)?;
        let refused = |message| self.findings.add(&node.at, self.key(name), message);
        reader(&node).map_err(refused).ok()
    }
    pub fn or<T>(&mut self, name: &'static str, default: T, reader: impl Fn(&Node) -> Result<T, String>) -> T {
        self.read(name, reader).unwrap_or(default)
    }
    pub fn required<T>(&mut self, name: &'static str, reader: impl Fn(&Node) -> Result<T, String>) -> Option<T> {
        if !self.has(name) {
            self.findings.add(&self.at, self.key(name), "missing, required");
        }
        self.read(name, reader)
    }
    /// What nobody asked for yet, and what was asked for: the first is a plugin's.
    pub fn rest(self) -> (Vec<(String, Node)>, Vec<&'static str>) {
        (self.entries, self.accepted)
    }
    /// Whatever nobody asked for is unknown.
    pub fn done(self) {
        for (name, node) in &self.entries {
            let key = self.key(name);
            let message = match NOT_BUILT.contains(&&*key) {
                true => "not built yet".to_owned(),
                false => unknown("key", name, self.accepted.iter().copied()),
            };
            self.findings.add(&node.at, key, message);
        }
    }
}

// ---- the tables

/// The group of whoever says none: it takes no jobs of a group.
const DEFAULT_GROUP: &str = "net01";

pub fn agent(top: &mut Section<'_>, env: &Environment) -> Agent {
    let mut table = top.section("agent");
    let mut agent = Agent {
        id: table.or("id", "sky01".to_owned(), name),
        group_given: false, // below
        group: table.or("group", DEFAULT_GROUP.to_owned(), name),
        ip: table.or("ip", Ip::Auto, ip),
        private_data_dir: !table.has("data_dir"), // if the pipelines agree, see `load`
        data_dir: data_dir(&mut table, env).unwrap_or_default(),
        pid_file: pid_file(&mut table).unwrap_or_default(),
        drain: table.or("drain", Duration::from_secs(20), span),
    };
    agent.group_given = agent.group != DEFAULT_GROUP;
    table.done();
    agent
}
/// None if there is no default for lack of a home.
pub fn data_dir(agent: &mut Section<'_>, env: &Environment) -> Option<PathBuf> {
    let default = default_data_dir(env, crate::os::is_root());
    agent.read("data_dir", path).or(default)
}
pub fn pid_file(agent: &mut Section<'_>) -> Option<PathBuf> {
    agent.read("pid_file", path)
}
fn default_data_dir(env: &Environment, root: bool) -> Option<PathBuf> {
    if root {
        return Some("/var/lib/luffly".into());
    }
    // The XDG specification says that what is not absolute is void.
    let absolute = |dir: &Option<PathBuf>| dir.clone().filter(|dir| dir.is_absolute());
    let state = absolute(&env.xdg_state_home).or_else(|| Some(absolute(&env.home)?.join(".local/state")));
    Some(state?.join("luffly"))
}
/// Refused where a data dir is needed.
pub const NO_DATA_DIR: &str = "found neither HOME nor XDG_STATE_HOME to make a default from, accepted: a directory, by --data-dir or [agent] data_dir";

pub fn http(top: &mut Section<'_>) -> Http {
    let mut table = top.section("http");
    let explicit = table.has("address");
    let address = table.or("address", Some((Ipv4Addr::UNSPECIFIED, 10630).into()), listener);
    let insecure_remote = table.or("insecure_remote", false, boolean);
    let given = table.has("tls");
    let mut tls = table.section("tls");
    let both = given.then(|| tls.required("cert", path).zip(tls.required("key", path)));
    tls.done();
    table.done();
    Http {
        address,
        explicit,
        insecure_remote,
        tls: both.flatten().map(|(cert, key)| Tls { cert, key }),
    }
}

pub fn log(top: &mut Section<'_>) -> Log {
    let mut table = top.section("log");
    let formats = [
        ("auto", LogFormat::Auto),
        ("terminal", LogFormat::Terminal),
        ("json", LogFormat::Json),
    ];
    let log = Log {
        level: table.or("level", slog::Level::Info, |node| level(&text(node)?)),
        format: table.or("format", LogFormat::Auto, |node| one_of(node, &formats)),
        file: table.read("file", path),
        max_size: table.or("max_size", 10 << 20, size),
        keep: table.or("keep", 5, |node| whole(node, 1..=1000)),
    };
    table.done();
    log
}

/// Eight batches of 256 KiB before the filters, and as many behind.
const LEAST_MEMORY: Size = Size(4 << 20);

/// The limits, and the sizes of the read channel, the write channel, and one request.
pub fn limits(top: &mut Section<'_>) -> (Limits, [u32; 3]) {
    let mut table = top.section("limits");
    let memory = |node: &Node| match size(node)? {
        bytes if bytes >= LEAST_MEMORY.0 => Ok(bytes),
        _ => Err(format!(
            "{}, accepted: {LEAST_MEMORY} or more (eight batches of 256KiB before the filters and as many behind)",
            node.found()
        )),
    };
    let events = |node: &Node| whole(node, 1..=u32::MAX);
    let limits = Limits {
        memory: table.or("memory", 64 << 20, memory),
        nice: table.read("nice", |node| whole(node, 0..=19)),
    };
    let sizes = [
        table.or("max_read_channel_size", 4096, events),
        table.or("max_write_channel_size", 4096, events),
        table.or("max_write_bulk_size", 500, events),
    ];
    table.done();
    (limits, sizes)
}

// ---- what a value may be

pub fn text(node: &Node) -> Result<String, String> {
    match (node.typed(), &node.value) {
        (Value::Text(text), _) => Ok(text),
        (_, Value::Untyped(text)) => Ok(text.clone()), // it looks like a number, and is none
        _ => Err(format!("{}, accepted: text", node.found())),
    }
}
pub fn boolean(node: &Node) -> Result<bool, String> {
    match node.typed() {
        Value::Bool(value) => Ok(value),
        _ => Err(format!("{}, accepted: true, false", node.found())),
    }
}
pub fn whole<N: TryFrom<i128> + Copy + PartialOrd + std::fmt::Display>(
    node: &Node,
    accepted: std::ops::RangeInclusive<N>,
) -> Result<N, String> {
    let number = match node.typed() {
        Value::Integer(number) => N::try_from(number).ok(),
        _ => None,
    };
    number.filter(|n| accepted.contains(n)).ok_or_else(|| {
        let (least, most) = accepted.clone().into_inner();
        format!("{}, accepted: a whole number from {least} to {most}", node.found())
    })
}
/// Bytes, at least one.
pub fn size(node: &Node) -> Result<u64, String> {
    let bytes = match node.typed() {
        Value::Integer(bytes) => u64::try_from(bytes).ok(),
        Value::Text(text) => text.parse().ok().map(|Size(bytes)| bytes),
        _ => None,
    };
    match bytes {
        Some(0) => Err(format!(
            "{}, which means nothing here, accepted: {}",
            node.found(),
            Size::ACCEPTED
        )),
        Some(bytes) => Ok(bytes),
        None => Err(format!("{}, accepted: {}", node.found(), Size::ACCEPTED)),
    }
}
/// Longer than nothing.
pub fn span(node: &Node) -> Result<Duration, String> {
    let span = match node.typed() {
        Value::Text(text) => text.parse().ok().map(|Span(span)| span),
        _ => None,
    };
    match span {
        Some(Duration::ZERO) => Err(format!(
            "{}, which means nothing here, accepted: {}",
            node.found(),
            Span::ACCEPTED
        )),
        Some(span) => Ok(span),
        None => Err(format!("{}, accepted: {}", node.found(), Span::ACCEPTED)),
    }
}
pub fn one_of<T: Copy>(node: &Node, words: &[(&'static str, T)]) -> Result<T, String> {
    let word = text(node).ok();
    let known = words.iter().find(|(known, _)| word.as_deref() == Some(*known));
    known.map(|(_, value)| *value).ok_or_else(|| {
        let accepted = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        format!("{}, accepted: {}", node.found(), accepted.join(", "))
    })
}
/// Made absolute against where the agent was started: the daemon leaves that place.
pub fn path(node: &Node) -> Result<PathBuf, String> {
    let refused = || format!("{}, accepted: a path", node.found());
    let text = text(node).map_err(|_| refused())?;
    if text.is_empty() || text.contains('\0') {
        return Err(refused());
    }
    super::from_the_start(Path::new(&text))
        .map_err(|error| format!("{}, and no working directory: {error}", node.found()))
}
/// Part of keys in stores and of paths in templates.
fn name(node: &Node) -> Result<String, String> {
    let fits = |name: &String| {
        (1..=64).contains(&name.chars().count())
            && ![".", ".."].contains(&&**name)
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
    };
    text(node).ok().filter(fits).ok_or_else(|| {
        format!(
            "{}, accepted: 1 to 64 characters without blanks and slashes",
            node.found()
        )
    })
}
/// `warning` and `warn`, in small letters.
pub fn level(word: &str) -> Result<slog::Level, String> {
    use slog::Level::*;
    Ok(match word {
        "critical" => Critical,
        "error" => Error,
        "warning" | "warn" => Warning,
        "info" => Info,
        "debug" => Debug,
        "trace" => Trace,
        _ => {
            return Err(format!(
                "found {word:?}, accepted: critical, error, warning, info, debug, trace"
            ));
        }
    })
}
fn ip(node: &Node) -> Result<Ip, String> {
    let refused = || {
        format!(
            "{}, accepted: \"auto\", an address, a network as in \"10.1.0.0/16\", or an interface as in \"eth0\"",
            node.found()
        )
    };
    let text = text(node).map_err(|_| refused())?;
    if text == "auto" {
        return Ok(Ip::Auto);
    }
    if let Some((ip, bits)) = text.split_once('/') {
        let ip: IpAddr = ip.parse().map_err(|_| refused())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits
            .parse()
            .ok()
            .filter(|bits| (1..=most).contains(bits))
            .ok_or_else(refused)?;
        return Ok(Ip::Network(ip, bits));
    }
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err(refused()),
        Ok(ip) => Ok(Ip::Fixed(ip)),
        // The kernel's rule for names of interfaces; a misspelled address must not pass for one.
        Err(_) if !(1..=15).contains(&text.len()) || text.contains(|c: char| c.is_whitespace() || c == ':') => {
            Err(refused())
        }
        Err(_) if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') => Err(refused()),
        Err(_) => Ok(Ip::Interface(text)),
    }
}
/// None: off.
fn listener(node: &Node) -> Result<Option<SocketAddr>, String> {
    let refused = || {
        format!(
            "{}, accepted: \"off\", or host:port as in \"127.0.0.1:10630\", \"[::1]:10630\" or \":10630\" (port 0: any)",
            node.found()
        )
    };
    let text = text(node).map_err(|_| refused())?;
    if text == "off" {
        return Ok(None);
    }
    // Names are not asked for: what is listened on must not depend on a name server.
    let full = match text.split_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => text,
    };
    full.parse().map(Some).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        Node::new(&At::Nowhere, Value::Text(text.to_owned()))
    }

    #[test]
    fn state_has_a_home() {
        let env = |home: &str, xdg: &str| {
            let pairs = [("HOME", home), ("XDG_STATE_HOME", xdg)];
            Environment::read(pairs.into_iter().map(|(k, v)| (k.into(), v.into())))
        };
        let dir = |home, xdg, root| default_data_dir(&env(home, xdg), root).map(|dir| dir.display().to_string());
        assert_eq!(dir("/home/a", "/state", true).as_deref(), Some("/var/lib/luffly"));
        assert_eq!(dir("/home/a", "/state", false).as_deref(), Some("/state/luffly"));
        assert_eq!(
            dir("/home/a", "state", false).as_deref(),
            Some("/home/a/.local/state/luffly")
        );
        assert_eq!(dir("", "", false), None);
    }
    #[test]
    fn addresses() {
        for (text, address) in [
            ("off", None),
            ("127.0.0.1:0", Some("127.0.0.1:0")),
            (":10630", Some("0.0.0.0:10630")),
            ("localhost:1", Some("127.0.0.1:1")),
            ("[::]:10630", Some("[::]:10630")),
        ] {
            assert_eq!(listener(&node(text)), Ok(address.map(|a| a.parse().unwrap())), "{text}");
        }
        for bad in [
            "",
            "10630",
            "10.0.0.1",
            "::1:10630",
            "example.org:1",
            "127.0.0.1:65536",
            ":",
            "OFF",
        ] {
            let accepted =
                "\"off\", or host:port as in \"127.0.0.1:10630\", \"[::1]:10630\" or \":10630\" (port 0: any)";
            assert_eq!(
                listener(&node(bad)),
                Err(format!("found {bad:?}, accepted: {accepted}"))
            );
        }
    }
    #[test]
    fn own_address() {
        let fixed = |ip: &str| Ip::Fixed(ip.parse().unwrap());
        for (text, wanted) in [
            ("auto", Ip::Auto),
            ("10.0.0.1", fixed("10.0.0.1")),
            ("fe80::1", fixed("fe80::1")),
            ("eth0.17", Ip::Interface("eth0.17".into())),
            ("10.1.0.0/16", Ip::Network("10.1.0.0".parse().unwrap(), 16)),
            ("fd00::/8", Ip::Network("fd00::".parse().unwrap(), 8)),
        ] {
            assert_eq!(ip(&node(text)), Ok(wanted));
        }
        for bad in [
            "",
            "0.0.0.0",
            "224.0.0.1",
            "10.0.0.256",
            "10.0.0.0/33",
            "10.0.0.0/0",
            "eth0/8",
            "fe80::x",
            "a name",
            "averylonginterface",
        ] {
            let accepted = "\"auto\", an address, a network as in \"10.1.0.0/16\", or an interface as in \"eth0\"";
            assert_eq!(ip(&node(bad)), Err(format!("found {bad:?}, accepted: {accepted}")));
        }
    }
    #[test]
    fn untyped_text_means_what_is_wanted() {
        let untyped = |text: &str| Node::new(&At::Nowhere, Value::Untyped(text.to_owned()));
        assert_eq!(text(&untyped("007")).unwrap(), "007");
        assert_eq!(text(&untyped("5")).unwrap(), "5");
        assert_eq!(text(&untyped("\"5\"")).unwrap(), "5");
        assert_eq!(text(&untyped("{host}.log")).unwrap(), "{host}.log");
        assert_eq!(whole(&untyped("5"), 1..=9), Ok(5));
        assert_eq!(boolean(&untyped("true")), Ok(true));
        for (given, json) in [
            ("true", "true"),
            ("5", "5"),
            ("1.5", "1.5"),
            ("\"5\"", "\"5\""),
            ("007", "\"007\""),
            ("30s", "\"30s\""),
            ("2026-01-01", "\"2026-01-01\""),
            ("127.0.0.1:9092", "\"127.0.0.1:9092\""),
            ("{host}.log", "\"{host}.log\""),
            ("[\"/a\", \"/b\"]", "[\"/a\",\"/b\"]"),
            ("{ first = \"2s\" }", "{\"first\":\"2s\"}"),
            ("", "\"\""),
        ] {
            assert_eq!(untyped(given).json().to_string(), json, "{given}");
        }
    }
}
