//! `agent jobs keygen` and `agent jobs sign`: for fleets with a `verify_key`. They need no agent and no etcd: the key that signs stays on
//! the machine of whoever signs.
use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;

use super::super::{Done, Failed, print};
use crate::{
    clock,
    model::{JobKey, Span},
    signature::{Kind, key_file},
};

#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Keygen {
    /// The key that signs, readable by nobody else; FILE.pub gets what `[jobs] verify_key` takes
    file: PathBuf,
}
#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Sign {
    /// The job or command, as JSON
    value: Option<String>,
    /// It is in this file; `-`: stdin
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The key that signs, as `keygen` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// `[jobs] fleet` of the agents
    #[arg(long, value_name = "NAME")]
    fleet: String,
    /// Where it will be put, without `[etcd] prefix`: /cron/jobs/10.0.0.1/17
    #[arg(long, value_name = "KEY")]
    at: String,
    /// Above that of the value before [default: milliseconds since 1970]
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
    /// How long it counts [default: 30d; a command: 5m]
    #[arg(long, value_name = "DURATION")]
    valid_for: Option<Span>,
}

pub fn keygen(asked: &Keygen) -> Done {
    let public = key_file::create(&asked.file).map_err(Failed::new)?;
    print(&public);
    Ok(0)
}
/// Prints the signed value.
pub fn sign(asked: &Sign, read: impl FnOnce(Option<&PathBuf>) -> Result<String, Failed>) -> Done {
    let kind = kind_of(&asked.at).ok_or_else(|| {
        let accepted = "/cron/jobs/IP/TASK, /cron/groups/GROUP/jobs/TASK or /cron/commands/IP/ID";
        Failed::usage(format!("--at: found {:?}, accepted: {accepted}", asked.at))
    })?;
    let value = match (&asked.value, &asked.file) {
        (Some(_), Some(_)) => return Err(Failed::usage("a value and --file were given, accepted: one of them")),
        (Some(value), None) => value.clone(),
        (None, file) => read(file.as_ref())?,
    };
    let now = clock::system().wall();
    let valid_for = asked.valid_for.map_or(usual(kind), |Span(span)| span);
    if valid_for.is_zero() || valid_for > kind.longest() {
        let (found, longest) = (Span(valid_for), Span(kind.longest()));
        return Err(Failed::usage(format!(
            "--valid-for: found {found}, accepted: more than zero, {longest} at most"
        )));
    }
    let not_after = Timestamp::saturating_add(now, valid_for).map_err(Failed::new)?;
    let serial = asked.serial.unwrap_or(now.as_millisecond().max(0).unsigned_abs());
    let key = key_file::load(&asked.key).map_err(Failed::new)?;
    let signed = key
        .sign(&asked.fleet, &asked.at, value.as_bytes(), serial, not_after)
        .map_err(Failed::usage)?;
    print(&String::from_utf8_lossy(&signed));
    Ok(0)
}
fn kind_of(path: &str) -> Option<Kind> {
    if JobKey::of_path(path).is_some() {
        return Some(Kind::Job);
    }
    let (ip, id) = path.strip_prefix("/cron/commands/")?.split_once('/')?;
    (!ip.is_empty() && !id.is_empty()).then_some(Kind::Command)
}
fn usual(kind: Kind) -> Duration {
    match kind {
        Kind::Job => Duration::from_secs(30 * 86_400),
        Kind::Command => Duration::from_secs(300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_signed() {
        for (path, kind) in [
            ("/cron/jobs/10.0.0.1/17", Some(Kind::Job)),
            ("/cron/groups/web/jobs/17", Some(Kind::Job)),
            ("/cron/commands/10.0.0.1/c1", Some(Kind::Command)),
            ("/cron/commands/10.0.0.1/", None),
            ("/cron/cronid/jobs/10.0.0.1/17", None),
            ("17", None),
        ] {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }
    #[test]
    fn a_key_is_made_and_signs() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        keygen(&Keygen { file: key.clone() }).unwrap();
        let ask = |at: &str, valid_for: Option<Span>| Sign {
            value: Some(r#"{"cmd":"date","express":"* * * * *"}"#.into()),
            file: None,
            key: key.clone(),
            fleet: "shop".into(),
            at: at.into(),
            serial: None,
            valid_for,
        };
        let done = |asked: &Sign| sign(asked, |_| panic!("a value was given")).map_err(|failed| failed.text);
        assert_eq!(done(&ask("/cron/jobs/10.0.0.1/17", None)), Ok(0));
        let hour = Some(Span(Duration::from_secs(3600)));
        assert_eq!(
            done(&ask("/cron/commands/10.0.0.1/c1", hour)),
            Err("--valid-for: found 1h, accepted: more than zero, 10m at most".into())
        );
        assert!(
            done(&ask("17", None))
                .unwrap_err()
                .starts_with("--at: found \"17\", accepted: /cron/jobs/IP/TASK")
        );
        assert!(keygen(&Keygen { file: key }).is_err());
    }
}
