//! `[etcd]`: where jobs come from, and where this agent is seen. Without endpoints this host is on its own.
use std::{path::PathBuf, time::Duration};

use super::{
    check::{Section, boolean, one_of, path, span, text},
    layers::{Node, Value},
};
use crate::{model::Span, store};

#[derive(Clone, PartialEq)]
pub struct Etcd {
    /// `host:port`; empty: the embedded store.
    pub endpoints: Vec<String>,
    /// Before every key.
    pub prefix: String,
    pub user: Option<String>,
    pub password: Option<String>,
    pub tls: Option<EtcdTls>,
    /// Whole seconds.
    pub lease_ttl: Duration,
    pub renew_every: Duration,
    /// How the jobs do is seen in etcd.
    pub publish_runs: bool,
    pub on_partition: OnPartition,
}
impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("user", &self.user)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}
impl Default for Etcd {
    fn default() -> Self {
        Self {
            endpoints: vec![],
            prefix: String::new(),
            user: None,
            password: None,
            tls: None,
            lease_ttl: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
            publish_runs: false,
            on_partition: OnPartition::Run,
        }
    }
}
impl Etcd {
    /// How the store is to be reached.
    pub fn way(&self) -> store::etcd::Options {
        let user = self.user.clone().zip(self.password.clone());
        store::etcd::Options {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            user: user.map(|(name, password)| store::etcd::User { name, password }),
            tls: self.tls.as_ref().map(|tls| store::etcd::Tls {
                ca: tls.ca.clone(),
                cert_and_key: tls.cert_and_key.clone(),
            }),
        }
    }
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdTls {
    /// None: what the system trusts.
    pub ca: Option<PathBuf>,
    pub cert_and_key: Option<(PathBuf, PathBuf)>,
}
/// What becomes of schedules while etcd is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPartition {
    /// The last known jobs go on.
    Run,
    /// None is started.
    Hold,
}
impl OnPartition {
    pub fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Hold => "hold",
        }
    }
}

pub fn etcd(top: &mut Section<'_>) -> Etcd {
    let default = Etcd::default();
    let mut table = top.section("etcd");
    let endpoints = table.or("endpoints", vec![], endpoints);
    let prefix = table.or("prefix", String::new(), prefix);
    let user = table.read("user", some_text);
    let given = table.read("password", some_text);
    let of_file = table.read("password_file", password_file);
    if given.is_some() && of_file.is_some() {
        let key = table.key("password_file");
        table
            .findings
            .add(&table.at, key, "found `password` too, accepted: one of them");
    }
    let password = given.or(of_file);
    if user.is_some() != password.is_some() {
        let (missing, other) = if user.is_some() {
            ("password", "user")
        } else {
            ("user", "password")
        };
        let key = table.key(missing);
        table
            .findings
            .add(&table.at, key, format!("missing, required with `{other}`"));
    }
    let has_tls = table.has("tls");
    let mut tls = table.section("tls");
    let ca = tls.read("ca", path);
    let cert_and_key = match (tls.has("cert"), tls.has("key")) {
        (false, false) => None,
        _ => tls.required("cert", path).zip(tls.required("key", path)),
    };
    tls.done();
    let lease_ttl = table.or("lease_ttl", default.lease_ttl, ttl);
    let renew_every = table.or("renew_every", default.renew_every.min(lease_ttl / 3), span);
    if renew_every > lease_ttl / 2 {
        let key = table.key("renew_every");
        let message = format!(
            "found {}, accepted: at most half of lease_ttl ({})",
            Span(renew_every),
            Span(lease_ttl)
        );
        table.findings.add(&table.at, key, message);
    }
    let publish_runs = table.or("publish_runs", false, boolean);
    if publish_runs && endpoints.is_empty() {
        let key = table.key("publish_runs");
        let message = "found true without etcd.endpoints, accepted: false, or with them";
        table.findings.add(&table.at, key, message);
    }
    let words = [("run", OnPartition::Run), ("hold", OnPartition::Hold)];
    let on_partition = table.or("on_partition", OnPartition::Run, |node| one_of(node, &words));
    if has_tls && endpoints.iter().any(|endpoint| endpoint.starts_with("http://")) {
        let key = table.key("endpoints");
        table.findings.add(
            &table.at,
            key,
            "found http:// beside [etcd.tls], accepted: https:// or host:port",
        );
    }
    let secure = has_tls || endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    table.done();
    Etcd {
        endpoints,
        prefix,
        user,
        password,
        tls: secure.then_some(EtcdTls { ca, cert_and_key }),
        lease_ttl,
        renew_every,
        publish_runs,
        on_partition,
    }
}

/// A list, or text with commas. An empty list: none.
fn endpoints(node: &Node) -> Result<Vec<String>, String> {
    let refused = |found: String| format!("{found}, accepted: host:port as in \"10.0.0.1:2379\", one or more");
    let all = match node.typed() {
        Value::List(nodes) => nodes.iter().map(text).collect::<Result<Vec<_>, _>>().map_err(refused)?,
        _ => {
            let all = text(node).map_err(refused)?;
            all.split(',').map(|one| one.trim().to_owned()).collect()
        }
    };
    for one in &all {
        let bare = one
            .strip_prefix("https://")
            .or_else(|| one.strip_prefix("http://"))
            .unwrap_or(one);
        let fits = bare.rsplit_once(':').is_some_and(|(host, port)| {
            let named = match host.strip_prefix('[') {
                Some(ip) => ip
                    .strip_suffix(']')
                    .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
                None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)),
            };
            named && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !fits {
            return Err(refused(format!("found {one:?}")));
        }
    }
    Ok(all)
}
fn prefix(node: &Node) -> Result<String, String> {
    let found = text(node)?;
    let fits =
        found.is_empty() || (found.starts_with('/') && !found.ends_with('/') && !found.contains(char::is_whitespace));
    match fits {
        true => Ok(found),
        false => Err(format!(
            "{}, accepted: empty, or as in \"/luffly\", without a slash at its end",
            node.found()
        )),
    }
}
fn some_text(node: &Node) -> Result<String, String> {
    match text(node)? {
        found if found.is_empty() => Err("found nothing, accepted: text".into()),
        found => Ok(found),
    }
}
/// Its first line.
fn password_file(node: &Node) -> Result<String, String> {
    let path = path(node)?;
    let all = std::fs::read_to_string(&path).map_err(|error| format!("could not read {}: {error}", path.display()))?;
    match all.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(format!("found nothing in {}, accepted: a line", path.display())),
    }
}
/// etcd counts in seconds, and takes less than two for two elections.
fn ttl(node: &Node) -> Result<Duration, String> {
    match span(node)? {
        found if found >= Duration::from_secs(2) && found.subsec_nanos() == 0 => Ok(found),
        _ => Err(format!("{}, accepted: whole seconds, 2s or more", node.found())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::finding::Findings;

    fn read(toml: &str) -> (Etcd, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        std::fs::write(&file, toml).unwrap();
        let (findings, mut layers) = (Findings::default(), super::super::layers::Layers::default());
        super::super::layers::merge_file(&file, &mut layers, &findings);
        let mut top = Section::open(&findings, String::new(), layers.tree());
        let etcd = etcd(&mut top);
        top.done();
        let said = match findings.is_empty() {
            true => vec![],
            false => findings
                .refused()
                .errors
                .iter()
                .map(|e| format!("{}: {}", e.key, e.message))
                .collect(),
        };
        (etcd, said)
    }

    #[test]
    fn what_is_given_and_what_is_not() {
        let (etcd, said) = read("");
        assert_eq!((etcd, said), (Etcd::default(), vec![]));
        let (etcd, said) = read(
            r#"[etcd]
endpoints = "a:1, 10.0.0.2:2379"
prefix = "/luffly"
user = "u"
password = "p"
lease_ttl = "15m"
renew_every = "5m"
on_partition = "hold"
tls = { ca = "/ca.pem" }"#,
        );
        assert_eq!(said, Vec::<String>::new());
        assert_eq!(etcd.endpoints, ["a:1", "10.0.0.2:2379"]);
        assert_eq!(etcd.renew_every, Duration::from_secs(300));
        assert_eq!(etcd.tls.unwrap().ca.unwrap(), PathBuf::from("/ca.pem"));
        assert_eq!(read("[etcd]\nlease_ttl = \"6s\"").0.renew_every, Duration::from_secs(2));
        assert!(read("[etcd]\nendpoints = [\"https://a:1\"]").0.tls.is_some());
    }
    #[test]
    fn what_is_refused() {
        for (toml, says) in [
            ("endpoints = \"a\"", "etcd.endpoints: found \"a\""),
            ("endpoints = [\"a:0\"]", "etcd.endpoints: found \"a:0\""),
            ("prefix = \"x/\"", "etcd.prefix: found \"x/\""),
            ("user = \"u\"", "etcd.password: missing, required with `user`"),
            ("password = \"u\"", "etcd.user: missing, required with `password`"),
            ("lease_ttl = \"1s\"", "etcd.lease_ttl: found \"1s\""),
            (
                "renew_every = \"20s\"",
                "etcd.renew_every: found 20s, accepted: at most half",
            ),
            ("publish_runs = true", "etcd.publish_runs: found true without"),
            (
                "on_partition = \"x\"",
                "etcd.on_partition: found \"x\", accepted: run, hold",
            ),
            ("tls = { cert = \"/c\" }", "etcd.tls.key: missing, required"),
            (
                "endpoints = [\"http://a:1\"]\ntls = { ca = \"/c\" }",
                "etcd.endpoints: found http://",
            ),
            (
                "user = \"u\"\npassword_file = \"/nowhere/x\"",
                "etcd.password_file: could not read /nowhere/x",
            ),
            ("tll = 1", "etcd.tll"),
        ] {
            let (_, said) = read(&format!("[etcd]\n{toml}"));
            assert!(said.iter().any(|line| line.starts_with(says)), "{toml}: {said:?}");
        }
    }
}
