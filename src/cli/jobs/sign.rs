//! `agent jobs keygen`, `agent jobs sign` and `--sign` of `put`, `run` and `kill`: for fleets with a `verify_key`. The first two need no agent and no
//! etcd: the key that signs stays on the machine of whoever signs.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

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
/// Of `put`, `run` and `kill`: sign it on the way.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct With {
    /// Sign it with this key, as `keygen` makes it, for agents that take signed jobs only
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// With --sign: `[jobs] fleet` of the agents [default: the asked agent's]
    #[arg(long, value_name = "NAME", requires = "sign")]
    pub fleet: Option<String>,
    /// With --sign: above that of the value before [default: milliseconds since 1970]
    #[arg(long, value_name = "N", requires = "sign")]
    serial: Option<u64>,
    /// With --sign: how long it counts [default: 30d; a command: 5m]
    #[arg(long, value_name = "DURATION", requires = "sign")]
    valid_for: Option<Span>,
}
impl With {
    /// The agent of this host hears a command from its own user, who signs nothing.
    pub(super) fn is_for_etcd(&self, of: &super::Of) -> Result<(), Failed> {
        match self.sign.is_some() && of.node.is_none() && of.group.is_none() {
            true => Err(Failed::usage(
                "--sign: the agent of this host takes a command as it is, accepted: with --node or --group",
            )),
            false => Ok(()),
        }
    }
    /// The value as it is to be put at that key path: signed if that was asked for.
    pub(super) fn value(
        &self,
        value: &str,
        at: impl FnOnce() -> Result<String, Failed>,
        fleet: impl FnOnce() -> Result<String, Failed>,
    ) -> Result<String, Failed> {
        let Some(key) = &self.sign else {
            return Ok(value.to_owned());
        };
        let fleet = self.fleet.clone().map_or_else(fleet, Ok)?;
        signed(value, key, &fleet, &at()?, self.serial, self.valid_for)
    }
}

pub fn keygen(asked: &Keygen) -> Done {
    let public = key_file::create(&asked.file).map_err(Failed::new)?;
    print(&public);
    Ok(0)
}
/// Prints the signed value.
pub fn sign(asked: &Sign, read: impl FnOnce(Option<&PathBuf>) -> Result<String, Failed>) -> Done {
    let value = match (&asked.value, &asked.file) {
        (Some(_), Some(_)) => return Err(Failed::usage("a value and --file were given, accepted: one of them")),
        (Some(value), None) => value.clone(),
        (None, file) => read(file.as_ref())?,
    };
    let signed = signed(
        &value,
        &asked.key,
        &asked.fleet,
        &asked.at,
        asked.serial,
        asked.valid_for,
    )?;
    print(&signed);
    Ok(0)
}
fn signed(
    value: &str,
    key: &Path,
    fleet: &str,
    at: &str,
    serial: Option<u64>,
    valid_for: Option<Span>,
) -> Result<String, Failed> {
    let kind = kind_of(at).ok_or_else(|| {
        let accepted = "/cron/jobs/IP/TASK, /cron/groups/GROUP/jobs/TASK or /cron/commands/IP/ID";
        Failed::usage(format!("--at: found {at:?}, accepted: {accepted}"))
    })?;
    let now = clock::system().wall();
    let valid_for = valid_for.map_or(usual(kind), |Span(span)| span);
    if valid_for.is_zero() || valid_for > kind.longest() {
        let (found, longest) = (Span(valid_for), Span(kind.longest()));
        return Err(Failed::usage(format!(
            "--valid-for: found {found}, accepted: more than zero, {longest} at most"
        )));
    }
    let not_after = Timestamp::saturating_add(now, valid_for).map_err(Failed::new)?;
    let serial = serial.unwrap_or(now.as_millisecond().max(0).unsigned_abs());
    let key = key_file::load(key).map_err(Failed::new)?;
    let signed = key
        .sign(fleet, at, value.as_bytes(), serial, not_after)
        .map_err(Failed::usage)?;
    Ok(String::from_utf8_lossy(&signed).into_owned())
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
        // `put --sign`: the fleet of the agent unless another is named, nothing asked for without.
        let with = With {
            sign: Some(key.clone()),
            ..With::default()
        };
        let at = || Ok("/cron/jobs/10.0.0.1/17".to_owned());
        let value = with.value(r#"{"cmd":"date"}"#, at, || Ok("shop".to_owned())).unwrap();
        assert!(value.starts_with(r#"{"cmd":"date","signature":{"serial":"#), "{value}");
        let none = || -> Result<String, Failed> { panic!("nobody is asked") };
        let plain = With::default().value("{}", none, none).map_err(|failed| failed.text);
        assert_eq!(plain.as_deref(), Ok("{}"));
        assert!(keygen(&Keygen { file: key }).is_err());
    }
}
