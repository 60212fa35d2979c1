//! Files that are full get the instant as a suffix, `app.log.20261123T101500.250Z`, and stay under that name, compressed or not.
//!
//! Why not `app.log.1` and shifting: an instant is given once, so a rotation is one rename, which a kill leaves done or not done, and
//! what compresses a file in the background need not fear that it is renamed meanwhile. Names only rise, even when the clock is
//! set back or two rotations fall into one instant: so the order of the names is the order of the contents, none collides, and
//! `keep` counts names. The oldest goes before the newest comes, so that the bound holds at any moment.
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use fail::fail_point;
use flate2::{Compression, write::GzEncoder};
use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};
use slog::{Logger, warn};

use crate::plugins::outputs::said;

const STAMP: &str = "%Y%m%dT%H%M%S";
const STAMP_LEN: usize = "20261123T101500.250Z".len();

/// What there is under one stamp. Both, after a kill between the making of the one and the removal of the other: the compressed
/// one is whole then, for it gets its name when it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    pub plain: bool,
    pub gz: bool,
    /// A compression that was not finished.
    pub unfinished: bool,
}

/// The rotated files of `live` by stamp, oldest first.
pub fn rotated(live: &Path) -> io::Result<BTreeMap<String, Forms>> {
    let (Some(directory), Some(name)) = (live.parent(), live.file_name()) else {
        return Ok(BTreeMap::new());
    };
    let mut found = BTreeMap::<String, Forms>::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?.file_name();
        let bytes = entry.as_encoded_bytes();
        let Some(rest) = bytes
            .strip_prefix(name.as_encoded_bytes())
            .and_then(|rest| rest.strip_prefix(b"."))
            .and_then(|rest| str::from_utf8(rest).ok())
        else {
            continue;
        };
        let Some((stamp, form)) = rest.split_at_checked(STAMP_LEN) else {
            continue;
        };
        if instant(stamp).is_none() {
            continue;
        }
        match form {
            "" => found.entry(stamp.to_owned()).or_default().plain = true,
            ".gz" => found.entry(stamp.to_owned()).or_default().gz = true,
            ".gz.tmp" => found.entry(stamp.to_owned()).or_default().unfinished = true,
            _ => {}
        }
    }
    Ok(found)
}
fn instant(stamp: &str) -> Option<Timestamp> {
    let (seconds, millis) = stamp.strip_suffix('Z')?.split_once('.')?;
    if seconds.len() != 15 || millis.len() != 3 || !millis.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let at = DateTime::strptime(STAMP, seconds).ok()?.to_zoned(TimeZone::UTC).ok()?;
    at.timestamp()
        .checked_add(millis.parse::<i64>().ok()?.milliseconds())
        .ok()
}
fn stamp(at: Timestamp) -> String {
    format!("{}.{:03}Z", at.strftime(STAMP), at.subsec_millisecond())
}
/// Later than all there are.
fn next_stamp(newest: Option<&str>, now: Timestamp) -> String {
    let after = newest
        .and_then(instant)
        .and_then(|at| at.checked_add(1.millisecond()).ok());
    stamp(after.map_or(now, |after| after.max(now)))
}
fn with(live: &Path, suffix: &str) -> PathBuf {
    let mut name = live.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Held by whoever decides by which names there are: a file that is pruned while it is being compressed must not come back. Never
/// held over a sync.
static NAMES: Mutex<()> = Mutex::new(());

/// Removes all but the newest `keep`.
pub fn prune(live: &Path, keep: usize) -> io::Result<()> {
    let _names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let all = rotated(live)?;
    let whole = all.values().filter(|forms| forms.plain || forms.gz).count();
    let mut excess = whole.saturating_sub(keep);
    for (stamp, forms) in all {
        if excess == 0 {
            break;
        }
        if forms.plain || forms.gz {
            excess -= 1;
            remove(&with(live, &stamp))?;
            remove(&with(live, &format!("{stamp}.gz")))?;
        }
    }
    Ok(())
}

/// Moves the live file out of the way, where it is one of the `keep` newest.
pub fn move_away(live: &Path, keep: usize, now: Timestamp) -> io::Result<PathBuf> {
    prune(live, keep - 1)?;
    fail_point!("logr-rotate");
    let newest = rotated(live)?.into_keys().next_back();
    let to = with(live, &next_stamp(newest.as_deref(), now));
    fs::rename(live, &to)?;
    Ok(to)
}

/// Brings what was rotated into order, whatever a kill has left: unfinished compressions go, the bound holds, and all plain ones
/// are compressed if wanted. Only one may run at a time (see `Tidier`).
pub fn tidy(live: &Path, keep: usize, compress: bool) -> io::Result<()> {
    let mut first_error = Ok(());
    let mut note = |result: io::Result<()>| {
        if first_error.is_ok() {
            first_error = result;
        }
    };
    note(prune(live, keep));
    for (stamp, forms) in rotated(live)? {
        let plain = with(live, &stamp);
        if forms.unfinished {
            note(remove(&with(&plain, "gz.tmp")));
        }
        if forms.plain && forms.gz {
            note(remove(&plain));
        } else if forms.plain && compress {
            note(self::compress(&plain));
        }
    }
    first_error
}

/// `X` becomes `X.gz`; at each moment one of them is whole and on the disk.
fn compress(plain: &Path) -> io::Result<()> {
    let (tmp, gz) = (with(plain, "gz.tmp"), with(plain, "gz"));
    let made = write_compressed(plain, &tmp).and_then(|()| {
        fail_point!("logr-compress");
        {
            let _names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
            fs::metadata(plain)?;
            fs::rename(&tmp, &gz)?;
        }
        sync_directory(&gz)?;
        remove(plain)
    });
    match made {
        // Pruned meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => remove(&tmp),
        Err(error) => {
            remove(&tmp)?;
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}
fn write_compressed(plain: &Path, tmp: &Path) -> io::Result<()> {
    let mut from = File::open(plain)?;
    let into = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(tmp)?;
    let mut encoder = GzEncoder::new(into, Compression::default());
    io::copy(&mut from, &mut encoder)?;
    let into = encoder.finish()?;
    // For people who look for a time in `ls -l`.
    into.set_modified(from.metadata()?.modified()?)?;
    into.sync_all()
}
/// Names in it survive a power loss.
fn sync_directory(of: &Path) -> io::Result<()> {
    of.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// One thread for the whole process: compression takes one core at most, and never two at the same file.
pub struct Tidier(Mutex<Waiting>, Condvar);
struct Waiting {
    jobs: BTreeMap<Arc<Path>, Job>,
    running: bool,
}
pub struct Job {
    pub keep: usize,
    pub compress: bool,
    pub log: Logger,
}
pub static TIDIER: Tidier = Tidier(
    Mutex::new(Waiting {
        jobs: BTreeMap::new(),
        running: false,
    }),
    Condvar::new(),
);
impl Tidier {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// To be done soon; asked twice it is done once. As many may wait as there are live files.
    pub fn ask(&'static self, live: &Arc<Path>, job: Job) {
        let mut waiting = self.lock();
        if !waiting.running {
            // The first time. Where no thread can be had now, the next rotation asks again.
            match thread::Builder::new().name("logr-tidy".into()).spawn(|| self.run()) {
                Ok(_) => waiting.running = true,
                Err(error) => warn!(job.log, "no thread to compress in, will try again"; "error" => said(&error)),
            }
        }
        waiting.jobs.insert(live.clone(), job);
        self.1.notify_one();
    }
    fn run(&self) {
        loop {
            let idle = |waiting: &mut Waiting| waiting.jobs.is_empty();
            let next = self
                .1
                .wait_while(self.lock(), idle)
                .unwrap_or_else(PoisonError::into_inner)
                .jobs
                .pop_first();
            let Some((live, job)) = next else { continue };
            let done = catch_unwind(AssertUnwindSafe(|| tidy(&live, job.keep, job.compress)));
            let error = match done {
                Ok(Ok(())) => continue,
                // The directory itself is gone: nothing to tidy.
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => continue,
                Ok(Err(error)) => said(&error),
                Err(_) => "panicked".into(),
            };
            warn!(job.log, "could not tidy rotated files, will try again after the next rotation";
                "path" => %live.display(), "error" => error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use tempfile::TempDir;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    /// A directory with these files, each holding its own name; and the live file's path.
    fn with_files(names: &[&str]) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), format!("{name}\n")).unwrap();
        }
        let live = dir.path().join("app.log");
        (dir, live)
    }
    fn names(dir: &TempDir) -> Vec<String> {
        let mut names = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        names.sort();
        names
    }
    fn content(path: PathBuf) -> String {
        let mut text = String::new();
        let file = File::open(&path).unwrap();
        match path.extension().is_some_and(|e| e == "gz") {
            true => GzDecoder::new(file).read_to_string(&mut text).unwrap(),
            false => { file }.read_to_string(&mut text).unwrap(),
        };
        text
    }

    #[test]
    fn knows_its_own_files_only() {
        let (_dir, live) = with_files(&[
            "app.log",
            "app.log.1",
            "app.log.20261123T101500.250Z",
            "app.log.20261123T101500.250Z.gz",
            "app.log.20261123T101500.251Z.gz.tmp",
            "app.log.20261123T101500.252Z.bz2",
            "app.log.20261323T101500.252Z",
            "app.log.20261123T101500.25xZ",
            "app.log.20261123T101500.2500",
            "xapp.log.20261123T101500.253Z",
            "app.logs.20261123T101500.253Z",
        ]);
        let (both, unfinished) = (
            Forms {
                plain: true,
                gz: true,
                unfinished: false,
            },
            Forms {
                unfinished: true,
                ..Forms::default()
            },
        );
        let expected = [("20261123T101500.250Z", both), ("20261123T101500.251Z", unfinished)];
        assert_eq!(
            rotated(&live).unwrap(),
            expected.map(|(stamp, forms)| (stamp.to_owned(), forms)).into()
        );
    }
    #[test]
    fn stamps_rise_whatever_the_clock_does() {
        let now = at("2026-11-23T10:15:00.2509Z");
        assert_eq!(next_stamp(None, now), "20261123T101500.250Z");
        assert_eq!(next_stamp(Some("20261123T101500.250Z"), now), "20261123T101500.251Z");
        assert_eq!(next_stamp(Some("20261123T101459.999Z"), now), "20261123T101500.250Z");
        assert_eq!(next_stamp(Some("20270101T000000.999Z"), now), "20270101T000001.000Z");
        assert_eq!(instant("20261123T101500.250Z"), Some(at("2026-11-23T10:15:00.25Z")));
    }
    #[test]
    fn rotations_within_one_instant_do_not_collide_and_keep_their_order() {
        let (dir, live) = with_files(&[]);
        for i in 0..5 {
            fs::write(&live, format!("{i}")).unwrap();
            let moved = move_away(&live, 3, at("2026-11-23T10:15:00Z")).unwrap();
            assert_eq!(content(moved), format!("{i}"));
            assert!(names(&dir).len() <= 3);
        }
        let texts = names(&dir)
            .iter()
            .map(|n| content(dir.path().join(n)))
            .collect::<Vec<_>>();
        assert_eq!(texts, ["2", "3", "4"]);
    }
    #[test]
    fn a_kill_before_the_rename_costs_what_that_rotation_would_have_cost() {
        let (dir, live) = with_files(&[
            "app.log",
            "app.log.20261101T000000.000Z",
            "app.log.20261102T000000.000Z.gz",
        ]);
        prune(&live, 2 - 1).unwrap(); // and killed here, twice
        prune(&live, 2 - 1).unwrap();
        assert_eq!(names(&dir), ["app.log", "app.log.20261102T000000.000Z.gz"]);
        move_away(&live, 2, at("2026-11-03T00:00:00Z")).unwrap();
        assert_eq!(
            names(&dir),
            ["app.log.20261102T000000.000Z.gz", "app.log.20261103T000000.000Z"]
        );
    }
    #[test]
    fn compresses_and_leaves_nothing_else() {
        let (dir, live) = with_files(&[
            "app.log",
            "app.log.20261101T000000.000Z",
            "app.log.20261102T000000.000Z",
        ]);
        tidy(&live, 5, true).unwrap();
        let expected = [
            "app.log",
            "app.log.20261101T000000.000Z.gz",
            "app.log.20261102T000000.000Z.gz",
        ];
        assert_eq!(names(&dir), expected);
        assert_eq!(content(dir.path().join(expected[1])), "app.log.20261101T000000.000Z\n");
        let mode = fs::metadata(dir.path().join(expected[1])).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
            0o640
        );
    }
    #[test]
    fn tidies_what_a_kill_left_at_each_step_of_a_compression() {
        let plain = "app.log.20261101T000000.000Z";
        for step in 0..3 {
            let (dir, live) = with_files(&["app.log", plain]);
            let path = dir.path().join(plain);
            if step >= 1 {
                fs::write(with(&path, "gz.tmp"), "half").unwrap();
            }
            if step >= 2 {
                write_compressed(&path, &with(&path, "gz.tmp")).unwrap();
                fs::rename(with(&path, "gz.tmp"), with(&path, "gz")).unwrap();
            }
            tidy(&live, 5, true).unwrap();
            assert_eq!(
                names(&dir),
                ["app.log", "app.log.20261101T000000.000Z.gz"],
                "step {step}"
            );
            assert_eq!(content(with(&path, "gz")), format!("{plain}\n"));
        }
        // The same where compression was switched off since.
        let (dir, live) = with_files(&[
            "app.log",
            plain,
            "app.log.20261101T000000.000Z.gz",
            "app.log.20261102T000000.000Z.gz.tmp",
        ]);
        tidy(&live, 5, false).unwrap();
        assert_eq!(names(&dir), ["app.log", "app.log.20261101T000000.000Z.gz"]);
    }
    #[test]
    fn the_bound_counts_files_and_not_their_forms() {
        let (dir, live) = with_files(&[
            "app.log.20261101T000000.000Z",
            "app.log.20261102T000000.000Z",
            "app.log.20261102T000000.000Z.gz",
            "app.log.20261103T000000.000Z.gz",
            "app.log.20261104T000000.000Z.gz.tmp",
        ]);
        tidy(&live, 2, true).unwrap();
        assert_eq!(
            names(&dir),
            ["app.log.20261102T000000.000Z.gz", "app.log.20261103T000000.000Z.gz"]
        );
    }
    #[test]
    fn a_file_pruned_under_the_compressor_is_no_error() {
        let (dir, live) = with_files(&[]);
        compress(&with(&live, "20261101T000000.000Z")).unwrap();
        assert_eq!(names(&dir), Vec::<String>::new());
    }
}
