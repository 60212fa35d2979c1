//! Signed jobs and commands (SPEC §4, Guards): with `[jobs] verify_key` set, a stolen etcd can stop jobs but not start any.
//!
//! A value from etcd carries `"signature": {"serial": N, "not_after": "RFC 3339", "sig": "base64"}`. `sig` is Ed25519 over the RFC 8785
//! JSON of `{fleet, key, value, serial, not_after}`: `key` is the path of SPEC §3 without the prefix of the settings, `value` is the value
//! without `signature`. So it counts for one fleet, one key, a limited time, and forwards only.
//!
//! How it is called, by whoever takes jobs and commands from etcd (what comes from the embedded store is not looked at):
//! 1. At start, with the settings' keys: `Verifier::new`, and `Serials::load` with all rows that were kept.
//! 2. A job that is new or has changed, parsed as usual: `serials.admit(&verifier, Kind::Job, &key.path(), &value, now)`. An `Invalid` is
//!    the job's state and reason. Else `row` is written to the disk and synced (those of one turn together), then `serials.remember(row)`,
//!    and only then is the job taken on. A row that could not be written: the job is not taken on, and is tried again.
//!    Rows stay when the job is deleted.
//! 3. Before each firing: `now > admitted.not_after` → the job turns invalid with `ended(not_after)`, and does not run.
//! 4. A `once` job: not if it `has_run`; else the row of `serials.ran(path, serial)` is written and synced before the run, after its mark.
//! 5. A command, before it is claimed: the same `admit` with `Kind::Command`; an `Invalid` is the answer to it. Its row is written and
//!    synced when it is claimed and before it is done. Now and then `serials.old(now)` names rows that are not needed any more.
mod canonical;
pub mod key_file;

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde_json::{Map, Value};

use crate::model::{Invalid, job::Signature};

/// Bytes of a public key.
const PUBLIC: usize = 32;
/// Numbers are doubles in RFC 8785: what lies beyond could be changed under a signature.
const MOST_NUMBER: u64 = (1 << 53) - 1;
/// So long after its end a command is remembered: the wall clock may be set back meanwhile.
const OLD: Duration = Duration::from_secs(86_400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Job,
    Command,
}
impl Kind {
    /// How far off `not_after` may be.
    pub fn longest(self) -> Duration {
        match self {
            Self::Job => Duration::from_secs(90 * 86_400),
            Self::Command => Duration::from_secs(600),
        }
    }
    fn longest_shown(self) -> &'static str {
        match self {
            Self::Job => "90 days",
            Self::Command => "10 minutes",
        }
    }
}

/// Whose signatures count, and for which fleet.
#[derive(Debug)]
pub struct Verifier {
    keys: Vec<UnparsedPublicKey<Vec<u8>>>,
    fleet: String,
}
impl Verifier {
    /// `keys`: base64 of 32 bytes each, as `key_file::create` shows them; any of them counts, so that a new one can be brought in while
    /// the old one is still in use.
    pub fn new<T: AsRef<str>>(keys: &[T], fleet: &str) -> Result<Self, String> {
        if fleet.is_empty() {
            return Err(
                "found no `fleet` beside `verify_key`, accepted: a name, so that signatures of other fleets do not count".into(),
            );
        }
        let keys = keys
            .iter()
            .map(|key| public_key(key.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err("found no key, accepted: one or more".into());
        }
        Ok(Self {
            keys,
            fleet: fleet.into(),
        })
    }

    /// Is that value signed, for this place and for now? The serial is for `Serials` to judge.
    fn verify(&self, kind: Kind, path: &str, value: &[u8], now: Timestamp) -> Result<(u64, Timestamp), Invalid> {
        let value = canonical::read(value).map_err(|found| Invalid {
            field: "signature".into(),
            found,
            accepted: "a signed JSON object, each name once, whole numbers up to 2^53".into(),
        })?;
        let (value, signature) = apart(value)?;
        let Some(signature) = signature else {
            return refuse(
                "none",
                "a signed value, as `agent jobs put --sign` makes it: this agent has a `verify_key`",
            );
        };
        let Ok(not_after) = signature.not_after.parse::<Timestamp>() else {
            return refuse(
                format!("not_after {:?}", short(&signature.not_after)),
                "an instant, RFC 3339",
            );
        };
        let bytes = canonical::message(&self.fleet, path, value, signature.serial, &signature.not_after);
        let sig = BASE64_STANDARD.decode(&signature.sig).unwrap_or_default();
        if !self.keys.iter().any(|key| key.verify(&bytes, &sig).is_ok()) {
            return refuse(
                "one that does not fit",
                format!(
                    "one by the owner of `verify_key`, for this value, key {path} and fleet {:?}",
                    self.fleet
                ),
            );
        }
        // What is said from here on is signed: a lie about it would be the signer's.
        if now > not_after {
            return Err(ended(not_after));
        }
        let longest = Timestamp::saturating_add(now, kind.longest()).unwrap_or(Timestamp::MAX);
        if not_after > longest {
            let accepted = format!("one at most {} from now", kind.longest_shown());
            return refuse(format!("not_after {not_after}"), accepted);
        }
        Ok((signature.serial, not_after))
    }
}
fn public_key(text: &str) -> Result<UnparsedPublicKey<Vec<u8>>, String> {
    match BASE64_STANDARD.decode(text.trim()) {
        Ok(bytes) if bytes.len() == PUBLIC => Ok(UnparsedPublicKey::new(&ED25519, bytes)),
        _ => Err(format!(
            "found {:?}, accepted: an Ed25519 public key, base64 of {PUBLIC} bytes, as `agent jobs keygen` shows it",
            short(text)
        )),
    }
}

/// The reason of a job whose time is over.
pub fn ended(not_after: Timestamp) -> Invalid {
    Invalid {
        field: "signature".into(),
        found: format!("not_after {not_after}, which has passed"),
        accepted: "a value that is signed anew".into(),
    }
}
fn refuse<T>(found: impl Into<String>, accepted: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid {
        field: "signature".into(),
        found: found.into(),
        accepted: accepted.into(),
    })
}
fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A value without its signature, and the signature.
fn apart(mut value: Map<String, Value>) -> Result<(Map<String, Value>, Option<Signature>), Invalid> {
    let found = match value.shift_remove("signature") {
        None | Some(Value::Null) => return Ok((value, None)),
        Some(found) => found,
    };
    let read = || {
        let object = found.as_object().filter(|object| object.len() == 3)?;
        Some(Signature {
            serial: object.get("serial")?.as_u64()?,
            not_after: object.get("not_after")?.as_str()?.to_owned(),
            sig: object.get("sig")?.as_str()?.to_owned(),
        })
    };
    match read() {
        Some(signature) => Ok((value, Some(signature))),
        None => refuse(
            short(&found.to_string()),
            "an object as {\"serial\": 1, \"not_after\": \"2026-12-31T00:00:00Z\", \"sig\": …}",
        ),
    }
}

// ---- what was seen

/// The last value that was admitted under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    serial: u64,
    /// SHA-256 of the value's bytes.
    digest: [u8; 32],
    /// Of a `once` job: it was run with this serial.
    ran: bool,
    /// Of a command: its `not_after`. A job is remembered for ever: an older one that was never seen here may have a later end.
    until: Option<Timestamp>,
}
/// A row to be kept on disk: its key, and what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub path: String,
    pub bytes: Vec<u8>,
}
const ROW: usize = 50;
impl Seen {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ROW);
        bytes.push(1); // version
        bytes.extend(self.serial.to_be_bytes());
        bytes.extend(self.digest);
        bytes.push(u8::from(self.ran));
        bytes.extend(self.until.map_or(0, Timestamp::as_second).to_be_bytes());
        bytes
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ROW] = bytes.try_into().ok()?;
        let until = i64::from_be_bytes(bytes[42..].try_into().ok()?);
        (bytes[0] == 1).then_some(Self {
            serial: u64::from_be_bytes(bytes[1..9].try_into().ok()?),
            digest: bytes[9..41].try_into().ok()?,
            ran: bytes[41] == 1,
            until: if until == 0 {
                None
            } else {
                Some(Timestamp::from_second(until).ok()?)
            },
        })
    }
}

/// A value that may be taken on, once `row` is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    pub serial: u64,
    /// Not a moment longer.
    pub not_after: Timestamp,
    /// Of a `once` job: it has run with this serial, here.
    pub ran: bool,
    /// None: nothing is new.
    pub row: Option<Row>,
}

/// The serials that were seen, by key, past the deletion of what they stood for. In memory; the rows are kept by whoever keeps history.
#[derive(Clone, Debug, Default)]
pub struct Serials(HashMap<String, Seen>);
impl Serials {
    /// An unreadable row is an error: to forget a serial is to let an old value in again.
    pub fn load<T: AsRef<[u8]>>(rows: impl IntoIterator<Item = (String, T)>) -> Result<Self, String> {
        let seen = |(path, bytes): (String, T)| match Seen::decode(bytes.as_ref()) {
            Some(seen) => Ok((path, seen)),
            None => Err(format!("could not read the kept serial of {path}")),
        };
        rows.into_iter().map(seen).collect::<Result<_, _>>().map(Self)
    }
    pub fn admit(
        &self,
        verifier: &Verifier,
        kind: Kind,
        path: &str,
        value: &[u8],
        now: Timestamp,
    ) -> Result<Admitted, Invalid> {
        let (serial, not_after) = verifier.verify(kind, path, value, now)?;
        let sum: [u8; 32] = digest(&SHA256, value)
            .as_ref()
            .try_into()
            .expect("SHA-256 has 32 bytes");
        let admitted = |ran, row| Admitted {
            serial,
            not_after,
            ran,
            row,
        };
        match self.0.get(path) {
            Some(seen) if serial < seen.serial => refuse(
                format!(
                    "serial {serial}, and {} was seen: an old value was put again",
                    seen.serial
                ),
                format!("a serial above {}", seen.serial),
            ),
            Some(seen) if serial == seen.serial && kind == Kind::Command => {
                refuse(format!("serial {serial} again"), "each command once")
            }
            Some(seen) if serial == seen.serial && sum != seen.digest => refuse(
                format!("serial {serial} again, in another value"),
                format!("a serial above {serial}"),
            ),
            Some(seen) if serial == seen.serial => Ok(admitted(seen.ran, None)),
            _ => {
                let seen = Seen {
                    serial,
                    digest: sum,
                    ran: false,
                    until: (kind == Kind::Command).then_some(not_after),
                };
                let bytes = seen.encode();
                let path = path.to_owned();
                Ok(admitted(false, Some(Row { path, bytes })))
            }
        }
    }
    /// It is on the disk now.
    pub fn remember(&mut self, row: &Row) {
        if let Some(seen) = Seen::decode(&row.bytes) {
            self.0.insert(row.path.clone(), seen);
        }
    }
    /// The `once` job of this key was run with that serial.
    pub fn has_run(&self, path: &str, serial: u64) -> bool {
        self.0.get(path).is_some_and(|seen| seen.serial == serial && seen.ran)
    }
    /// The row that says so. None: that serial is not the one that was admitted last.
    pub fn ran(&self, path: &str, serial: u64) -> Option<Row> {
        let seen = self.0.get(path).filter(|seen| seen.serial == serial)?;
        let seen = Seen {
            ran: true,
            ..seen.clone()
        };
        let bytes = seen.encode();
        let path = path.to_owned();
        Some(Row { path, bytes })
    }
    /// Rows of commands that are over: to be taken from the disk, then told by `forget`.
    pub fn old(&self, now: Timestamp) -> Vec<String> {
        let line = Timestamp::saturating_sub(now, OLD).unwrap_or(Timestamp::MIN);
        let over = |seen: &Seen| seen.until.is_some_and(|until| until < line);
        self.0
            .iter()
            .filter(|(_, seen)| over(seen))
            .map(|(path, _)| path.clone())
            .collect()
    }
    pub fn forget(&mut self, path: &str) {
        self.0.remove(path);
    }
}

// ---- signing

/// Signs for `agent jobs put --sign KEY`; `key_file` reads and makes it.
pub struct SigningKey(Ed25519KeyPair);
impl SigningKey {
    /// A new one, and its PKCS#8.
    fn generate() -> Result<(Self, Vec<u8>), String> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| "could not make a key: the system gives no random numbers".to_owned())?;
        let key = Self::of_pkcs8(pkcs8.as_ref())?;
        Ok((key, pkcs8.as_ref().to_vec()))
    }
    fn of_pkcs8(pkcs8: &[u8]) -> Result<Self, String> {
        // As `openssl genpkey` writes it, without its public half: fine too.
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8)
            .map(Self)
            .map_err(|error| {
                format!("found no Ed25519 key ({error}), accepted: PKCS#8 as `agent jobs keygen` makes it")
            })
    }
    /// What stands in `verify_key`.
    pub fn public(&self) -> String {
        BASE64_STANDARD.encode(self.0.public_key())
    }
    /// The value with its signature; another one that it had is replaced.
    pub fn sign(
        &self,
        fleet: &str,
        path: &str,
        value: &[u8],
        serial: u64,
        not_after: Timestamp,
    ) -> Result<Vec<u8>, String> {
        if serial > MOST_NUMBER {
            return Err(format!("found serial {serial}, accepted: {MOST_NUMBER} at most"));
        }
        let mut value = canonical::read(value)?;
        value.shift_remove("signature");
        let not_after = not_after.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let bytes = canonical::message(fleet, path, value.clone(), serial, &not_after);
        let sig = BASE64_STANDARD.encode(self.0.sign(&bytes));
        let signature = serde_json::json!({"serial": serial, "not_after": not_after, "sig": sig});
        value.insert("signature".into(), signature);
        Ok(Value::Object(value).to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests;
