//! The gate before signed jobs and commands (`[jobs] verify_key`): which of those from etcd may be taken on. What it lets in is on the
//! disk by its serial before anything comes of it. Without actix; calls block, for a sync of the disk or for the look at many signatures.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{claims, follow::blocking};
use crate::{
    messages::jobs::{MarkOnce, OnceMarked, Signed},
    model::Invalid,
    signature::{Kind, Row, Serials, Verifier},
    store::{SharedStore, StoreError, kept::Kept},
};

/// Rows of commands that are over are taken away this often, when there is a command.
const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(1);

pub type SharedGate = Arc<Gate>;
pub struct Gate {
    verifier: Verifier,
    kept: Kept,
    /// Held over judgement and sync: one after the other.
    serials: Mutex<Known>,
}
struct Known {
    serials: Serials,
    swept: Option<Timestamp>,
}

impl Gate {
    /// With all serials that were seen. One that cannot be read is an error: to forget it is to let an old value in again.
    pub fn open(verifier: Verifier, kept: Kept) -> Result<SharedGate, String> {
        let rows = kept.serials().map_err(|error| error.to_string())?;
        let serials = Serials::load(rows)?;
        Ok(Arc::new(Self {
            verifier,
            kept,
            serials: Mutex::new(Known { serials, swept: None }),
        }))
    }
    fn known(&self) -> MutexGuard<'_, Known> {
        self.serials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each is worth, by key path and value, once the new serials among them are on the disk; and whether that failed, so that it
    /// is to be asked again.
    pub fn jobs(&self, jobs: &[(String, Bytes)], now: Timestamp) -> (Vec<Signed>, bool) {
        let mut known = self.known();
        let judged = jobs
            .iter()
            .map(|(path, value)| known.serials.admit(&self.verifier, Kind::Job, path, value, now))
            .collect::<Vec<_>>();
        let rows = judged.iter().flatten().filter_map(|admitted| admitted.row.as_ref());
        let unkept = self.keep(rows.clone(), &[]).err().map(|error| unkept(&error));
        if unkept.is_none() {
            rows.for_each(|row| known.serials.remember(row));
        }
        let verdicts = judged.iter().map(|judged| match (judged, &unkept) {
            (Err(invalid), _) => Signed::Refused(Box::new(invalid.clone())),
            (Ok(admitted), Some(unkept)) if admitted.row.is_some() => Signed::Refused(Box::new(unkept.clone())),
            (Ok(admitted), _) => Signed::Until {
                serial: admitted.serial,
                not_after: admitted.not_after,
            },
        });
        (verdicts.collect(), unkept.is_some())
    }
    /// Would that job be let in? Nothing is remembered.
    pub fn would_take(&self, path: &str, value: &[u8], now: Timestamp) -> Result<(), Invalid> {
        let known = self.known();
        known
            .serials
            .admit(&self.verifier, Kind::Job, path, value, now)
            .map(drop)
    }

    /// Before a command is claimed: the row that is to be kept when it is, and before it is done.
    pub fn command(&self, path: &str, value: &[u8], now: Timestamp) -> Result<Option<Row>, Invalid> {
        let known = self.known();
        let admitted = known.serials.admit(&self.verifier, Kind::Command, path, value, now)?;
        Ok(admitted.row)
    }
    /// It is claimed: never again.
    pub fn claimed(&self, row: &Row, now: Timestamp) -> Result<(), StoreError> {
        let mut known = self.known();
        let due = known
            .swept
            .is_none_or(|swept| now.duration_since(swept).abs() >= SWEEP_EVERY);
        let old = if due { known.serials.old(now) } else { vec![] };
        self.keep([row].into_iter(), &old)?;
        known.serials.remember(row);
        old.iter().for_each(|path| known.serials.forget(path));
        if due {
            known.swept = Some(now);
        }
        Ok(())
    }

    /// The `once` job of that key was run with that serial, whatever became of its marks.
    pub fn has_run(&self, path: &str, serial: u64) -> bool {
        self.known().serials.has_run(path, serial)
    }
    /// It is about to run. False: another value stands there by now.
    pub fn mark_run(&self, path: &str, serial: u64) -> Result<bool, StoreError> {
        let mut known = self.known();
        let Some(row) = known.serials.ran(path, serial) else {
            return Ok(false);
        };
        self.keep([&row].into_iter(), &[])?;
        known.serials.remember(&row);
        Ok(true)
    }

    fn keep<'a>(&self, rows: impl Iterator<Item = &'a Row>, gone: &[String]) -> Result<(), StoreError> {
        let rows = rows.map(|row| (&*row.path, &*row.bytes)).collect::<Vec<_>>();
        match rows.is_empty() && gone.is_empty() {
            true => Ok(()),
            false => self.kept.keep_serials(&rows, gone),
        }
    }
}
fn unkept(error: &StoreError) -> Invalid {
    Invalid {
        field: "signature".into(),
        found: format!("a serial that could not be remembered: {error}"),
        accepted: "one that is on this host's disk before the job runs; it is tried again".into(),
    }
}

/// Marks a `once` job before its run as `claims::mark_once` does, and by its serial: deleted and put again it does not run again.
pub async fn mark_once(
    gate: Option<&SharedGate>,
    store: &SharedStore,
    ip: &str,
    ask: &MarkOnce,
    now: Timestamp,
) -> OnceMarked {
    let Some(gate) = gate.cloned() else {
        return claims::mark_once(store, ip, ask, now).await;
    };
    let Some(serial) = ask.serial else {
        return OnceMarked::NoStore("it is not signed".into());
    };
    let path = ask.job.path();
    let looked = {
        let (gate, path) = (gate.clone(), path.clone());
        blocking(move || Ok(gate.has_run(&path, serial))).await
    };
    match looked {
        Ok(true) => return OnceMarked::Already,
        Ok(false) => {}
        Err(error) => return OnceMarked::NoStore(error.to_string()),
    }
    // Who is too young is asked no more either, whether it runs or not.
    let marked = claims::mark_once(store, ip, ask, now).await;
    if !matches!(marked, OnceMarked::Marked | OnceMarked::TooYoung) {
        return marked;
    }
    match blocking(move || gate.mark_run(&path, serial)).await {
        Ok(true) => marked,
        Ok(false) => OnceMarked::NoStore("it was changed meanwhile".into()),
        Err(error) => OnceMarked::NoStore(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
