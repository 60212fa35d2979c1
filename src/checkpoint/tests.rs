//! What was written is read again; after damage, something that was once written.
use std::{
    os::unix::{
        ffi::OsStringExt,
        fs::{FileExt, MetadataExt},
    },
    process::Command,
};

use proptest::prelude::*;

use super::*;

const BOOT: &str = "boot-1";

fn at(offset: u64) -> Progress {
    Progress {
        offset,
        window_len: offset.min(1024) as u16,
        window_hash: offset.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}
fn named(name: &str) -> Identity {
    Identity {
        path: name.into(),
        device: 2049,
        inode: name.len() as u64,
        head_len: 4096,
        head_hash: 7,
    }
}
fn mark(source: SourceId, offset: u64) -> Mark {
    Mark {
        source,
        progress: at(offset),
    }
}
/// Opened, and no damage found.
fn opened(dir: &Path, boot_id: &str) -> Journal {
    let Opened { journal, damage } = Journal::open(dir, boot_id).unwrap();
    assert_eq!(damage, None);
    journal
}
fn newest(dir: &Path) -> PathBuf {
    generation::path(dir, generation::list(dir).unwrap()[0])
}
fn generations(dir: &Path) -> Vec<u64> {
    generation::list(dir).unwrap()
}
/// Bytes in the file in use.
fn length(journal: &Journal) -> u64 {
    journal.file.as_ref().unwrap().len()
}

#[test]
fn what_was_written_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = &dir.path().join("checkpoints/p"); // is made, with all above it
    let mut journal = opened(dir, BOOT);
    assert!(journal.entries().is_empty());
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/var/log/\xff\n*".to_vec()));
    let a = journal.add(named("a"), at(0), -5);
    let b = journal.add(
        Identity {
            path: odd.clone(),
            ..named("")
        },
        at(10),
        1 << 40,
    );
    journal.settle(&[mark(a, 100), mark(b, 20), mark(a, 50), mark(SourceId(99), 1)]);
    journal.write().unwrap();
    journal.identify(a, named("a.1"), 6);
    journal.write().unwrap();
    journal.settle(&[mark(b, 30)]); // never written

    let mut again = opened(dir, BOOT);
    assert_eq!(
        again.get(a),
        Some(Entry {
            id: a,
            identity: named("a.1"),
            settled: at(50),
            synced: at(0),
            seen: 6
        })
    );
    let entry = again.get(b).unwrap();
    assert_eq!(
        (&entry.identity.path, entry.settled, entry.seen),
        (&odd, at(20), 1 << 40)
    );
    assert_eq!(again.entries().len(), 2);
    // Goes on in the same file.
    assert!(again.add(named("c"), at(0), 0) > b);
    again.remove(b);
    again.write().unwrap();
    let last = opened(dir, BOOT);
    assert_eq!(last.entries().len(), 2);
    assert_eq!(last.get(b), None);
    assert_eq!(generations(dir), [1]);
    assert_eq!(std::fs::metadata(newest(dir)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn another_boot_begins_at_what_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let id = journal.add(named("a"), at(0), 0);
    journal.settle(&[mark(id, 10)]);
    let about_to_sync = journal.before_sync();
    assert_eq!(about_to_sync, [(id, at(10))]);
    journal.settle(&[mark(id, 20)]);
    journal.sync(&about_to_sync).unwrap();
    assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled, at(20));
    for _ in 0..2 {
        let entry = opened(dir.path(), "boot-2").get(id).unwrap();
        assert_eq!((entry.settled, entry.synced), (at(10), at(10)));
    }
    // A boot that is not known is like no other, not even like itself.
    let mut unknown = opened(dir.path(), "");
    assert_eq!(unknown.get(id).unwrap().settled, at(10));
    unknown.settle(&[mark(id, 12)]);
    unknown.write().unwrap();
    assert_eq!(opened(dir.path(), "").get(id).unwrap().settled, at(10));
    // What is appended under the new boot must not count as the old one's.
    let mut journal = opened(dir.path(), "boot-2");
    journal.settle(&[mark(id, 15)]);
    journal.write().unwrap();
    assert_eq!(generations(dir.path()), [3, 2]);
    assert_eq!(opened(dir.path(), "boot-2").get(id).unwrap().settled, at(15));
    assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled, at(10));
}

#[test]
fn a_restart_beats_a_sync_that_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let id = journal.add(named("a"), at(0), 0);
    let other = journal.add(named("b"), at(0), 0);
    journal.settle(&[mark(id, 100), mark(other, 7)]);
    let about_to_sync = journal.before_sync();
    journal.restart(id, at(0)); // truncated: offset 100 is of another content
    journal.sync(&about_to_sync).unwrap();
    assert_eq!(journal.get(id).unwrap().synced, at(0));
    assert_eq!(journal.get(other).unwrap().synced, at(7));
    // The next one counts again.
    journal.settle(&[mark(id, 5)]);
    let about_to_sync = journal.before_sync();
    journal.sync(&about_to_sync).unwrap();
    assert_eq!(opened(dir.path(), "boot-2").get(id).unwrap().settled, at(5));
}

#[test]
fn a_write_costs_what_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let ids: Vec<_> = (0..100_000)
        .map(|i| journal.add(named(&format!("/var/log/pods/{i:06}")), at(0), 0))
        .collect();
    journal.write().unwrap();
    let before = length(&journal);
    journal.write().unwrap();
    journal.settle(&[mark(ids[5], 0)]); // as it is
    journal.write().unwrap();
    assert_eq!(length(&journal), before);
    for offset in 1..=1000 {
        journal.settle(&[mark(ids[7], offset)]);
    }
    journal.write().unwrap();
    assert_eq!(length(&journal), before + 8 + 4 + 45);
    journal.remove(ids[8]);
    journal.write().unwrap();
    assert_eq!(length(&journal), before + 57 + 8 + 4 + 9);
    // All but one vanish, also those never written.
    let never = journal.add(named("never written"), at(0), 0);
    journal.remove(never);
    for &id in ids.iter().filter(|id| **id != ids[7]) {
        journal.remove(id);
    }
    journal.write().unwrap();
    assert_eq!(length(&journal), before + 57 + 21 + 8 + 4 + 9 * 99_998);
    let left = opened(dir.path(), BOOT).entries();
    assert_eq!(
        left.iter().map(|e| (e.id, e.settled)).collect::<Vec<_>>(),
        [(ids[7], at(1000))]
    );
}

#[test]
fn a_long_journal_becomes_a_new_generation_and_the_one_before_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let id = journal.add(named("a"), at(0), 0);
    let mut most = 0;
    for offset in 1..=10_000 {
        journal.settle(&[mark(id, offset)]);
        journal.write().unwrap();
        most = most.max(length(&journal));
    }
    // 57 bytes a write: 10,000 of them are eight times 64 KiB.
    assert!((64 << 10..66 << 10).contains(&most), "{most}");
    assert_eq!(generations(dir.path()), [9, 8]);
    // Its snapshot gone, the one before holds the state just before it.
    let file = File::options().write(true).open(newest(dir.path())).unwrap();
    file.write_all_at(&[0xff; 100], 60).unwrap();
    let Opened { mut journal, damage } = Journal::open(dir.path(), BOOT).unwrap();
    let settled = journal.get(id).unwrap().settled.offset;
    assert!((8_000..10_000).contains(&settled), "{settled}");
    let damage = damage.unwrap();
    assert!(
        damage.contains("journal.9: its snapshot is damaged; using the older generation 8"),
        "{damage}"
    );
    // And heals.
    journal.write().unwrap();
    assert_eq!(generations(dir.path()), [10, 8]);
    assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled.offset, settled);
}

#[test]
fn a_newer_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let id = journal.add(named("a"), at(3), 0);
    journal.write().unwrap();
    let mut newer = generation::header(7, BOOT, VERSION + 1);
    newer.extend(b"what only it understands");
    std::fs::write(dir.path().join("journal.7"), &newer).unwrap();
    for name in [
        "journal.tmp",
        "journal.007",
        "journal.18446744073709551615",
        "journal.x",
    ] {
        std::fs::write(dir.path().join(name), "not a generation").unwrap();
    }

    let Opened { mut journal, damage } = Journal::open(dir.path(), BOOT).unwrap();
    let damage = damage.unwrap();
    assert!(
        damage.contains("journal.7: it is of version 2, accepted are versions up to 1; using the older generation 1"),
        "{damage}"
    );
    assert_eq!(journal.get(id).unwrap().settled, at(3));
    for boot in ["boot-2", "boot-3", "boot-4"] {
        journal.write().unwrap();
        journal = opened(dir.path(), boot);
    }
    journal.write().unwrap();
    assert_eq!(generations(dir.path()), [11, 10, 7]);
    assert_eq!(std::fs::read(dir.path().join("journal.7")).unwrap(), newer);
}

#[test]
fn nothing_usable_is_a_start_from_nothing() {
    let garbage: [&[u8]; 4] = [b"", b"LUFF", &[0; 5000], b"LUFFLYCP\xff\xff\xff\xff\xff\xff\xff\xff"];
    for bytes in garbage {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("journal.1"), bytes).unwrap();
        let Opened { mut journal, damage } = Journal::open(dir.path(), BOOT).unwrap();
        let damage = damage.unwrap();
        assert!(
            damage.ends_with("its header is damaged; no usable checkpoint is left, sources begin anew"),
            "{damage}"
        );
        journal.write().unwrap();
        assert!(opened(dir.path(), BOOT).entries().is_empty());
        assert_eq!(generations(dir.path()), [2]);
    }
}

#[test]
fn a_directory_that_is_away_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let mut journal = opened(&here, BOOT);
    std::fs::rename(&here, &there).unwrap();
    let id = journal.add(named("a"), at(1), 0);
    let error = journal.write().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let text = error.to_string();
    assert!(
        text.starts_with("could not begin a new checkpoint generation in "),
        "{text}"
    );
    assert!(journal.sync(&[]).is_err());
    std::fs::rename(&there, &here).unwrap();
    journal.settle(&[mark(id, 2)]);
    journal.write().unwrap();
    assert_eq!(opened(&here, BOOT).get(id).unwrap().settled, at(2));
}

/// A file size limit stands for the full disk; it counts for a whole process, so it is put on a child.
#[test]
fn a_full_disk() {
    const DIR: &str = "LUFFLY_TEST_FULL_DISK";
    if let Some(dir) = std::env::var_os(DIR) {
        return on_a_full_disk(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::tests::a_full_disk"])
        .env(DIR, dir.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    // It ended with 3,001 settled, and says so.
    assert_eq!(opened(dir.path(), BOOT).entries()[0].settled, at(3_001));
}
fn on_a_full_disk(dir: &Path) {
    use nix::sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        signal::{SigHandler, Signal, signal},
    };
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let room = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, RLIM_INFINITY).unwrap();
    let mut journal = opened(dir, BOOT);
    let id = journal.add(named("a"), at(0), 0);
    journal.write().unwrap();
    let mut written = 0;
    room(10_000);
    for offset in 1..=3_000 {
        journal.settle(&[mark(id, offset)]);
        match journal.write() {
            Ok(()) => written = offset,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::FileTooLarge),
        }
    }
    let full = std::fs::metadata(newest(dir)).unwrap().len();
    assert!(
        written > 100 && full == length(&journal) && full > 10_000 - 57,
        "{written} {full}"
    );
    // Nothing torn is in the file, and nothing newer than was written.
    assert_eq!(opened(dir, BOOT).get(id).unwrap().settled, at(written));
    // Many small ones are lost, one large one fits: all of it is there at once.
    room(RLIM_INFINITY);
    journal.settle(&[mark(id, 3_001)]);
    journal.write().unwrap();
    assert_eq!(length(&journal), full + 57);

    // Nor is anything left of a generation that found no room.
    journal.file = None;
    journal.renew = true;
    room(60);
    assert!(journal.write().is_err());
    assert_eq!(generations(dir), [1]);
    assert!(!dir.join("journal.tmp").exists());
    room(RLIM_INFINITY);
    journal.write().unwrap();
    assert_eq!(generations(dir), [3, 1]);
}

#[test]
fn while_no_new_generation_can_be_begun_the_old_one_serves_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = opened(dir.path(), BOOT);
    let id = journal.add(named("a"), at(0), 0);
    journal.write().unwrap();
    let in_the_way = dir.path().join("journal.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    // 57 bytes each: said once for every 64 KiB, not with every write.
    let mut errors = 0;
    for offset in 1..=3_000 {
        journal.settle(&[mark(id, offset)]);
        errors += u32::from(journal.write().is_err());
    }
    assert_eq!(errors, 2);
    assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled, at(3_000));
    std::fs::remove_dir(&in_the_way).unwrap();
    for offset in 3_001..=4_000 {
        journal.settle(&[mark(id, offset)]);
        journal.write().unwrap();
    }
    assert_eq!(generations(dir.path()), [4, 1]);
    assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled, at(4_000));
}

/// What a Mutex around it is left with.
#[test]
#[cfg(feature = "failpoints")]
fn a_panic_in_a_write_loses_nothing() {
    let scenario = fail::FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let journal = Mutex::new(opened(dir.path(), BOOT));
    let id = journal.lock().unwrap().add(named("a"), at(1), 0);
    for action in ["1*panic->off", "1*return->off"] {
        fail::cfg("checkpoint-write", action).unwrap();
        let write = || journal.lock().unwrap_or_else(|e| e.into_inner()).write();
        let first = std::panic::catch_unwind(std::panic::AssertUnwindSafe(write));
        assert!(!matches!(first, Ok(Ok(()))), "{action}");
        assert!(generations(dir.path()).len() <= 1);
        write().unwrap();
        assert_eq!(opened(dir.path(), BOOT).get(id).unwrap().settled, at(1));
        journal.lock().unwrap_or_else(|e| e.into_inner()).settle(&[mark(id, 1)]);
        journal.lock().unwrap_or_else(|e| e.into_inner()).renew = true;
    }
    scenario.teardown();
}

// ---- against a model

#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Identify(u8, u8),
    Restart(u8, u16),
    Settle(Vec<(u8, u16)>),
    Remove(u8),
    Write,
    BeforeSync,
    Sync,
    /// And how often the machine was booted meanwhile.
    Reopen(bool),
    Damage(Damage),
}
#[derive(Clone, Debug)]
enum Damage {
    Truncate(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index, u16),
    Append(Vec<u8>),
}
impl Damage {
    /// To the newest file, if there is one.
    fn on(&self, dir: &Path) {
        let Some(&newest) = generations(dir).first() else {
            return;
        };
        let path = generation::path(dir, newest);
        let mut bytes = std::fs::read(&path).unwrap();
        match self {
            Self::Truncate(to) => bytes.truncate(to.index(bytes.len() + 1)),
            Self::Flip(byte, bit) if !bytes.is_empty() => {
                let byte = byte.index(bytes.len());
                bytes[byte] ^= 1 << bit;
            }
            Self::Zero(from, len) if !bytes.is_empty() => {
                let from = from.index(bytes.len());
                let to = bytes.len().min(from + usize::from(*len));
                bytes[from..to].fill(0);
            }
            Self::Append(more) => bytes.extend(more),
            _ => {}
        }
        std::fs::write(path, bytes).unwrap();
    }
}
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<prop::sample::Index>;
    let damage = prop_oneof![
        index().prop_map(Damage::Truncate),
        (index(), 0..8u8).prop_map(|(byte, bit)| Damage::Flip(byte, bit)),
        (index(), 1..5000u16).prop_map(|(from, len)| Damage::Zero(from, len)),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Damage::Append),
    ];
    let step = prop_oneof![
        3 => any::<u8>().prop_map(Step::Add),
        2 => any::<(u8, u8)>().prop_map(|(id, name)| Step::Identify(id, name)),
        1 => any::<(u8, u16)>().prop_map(|(id, to)| Step::Restart(id, to)),
        6 => prop::collection::vec(any::<(u8, u16)>(), 0..8).prop_map(Step::Settle),
        2 => any::<u8>().prop_map(Step::Remove),
        6 => Just(Step::Write),
        2 => Just(Step::BeforeSync),
        2 => Just(Step::Sync),
        2 => any::<bool>().prop_map(Step::Reopen),
        1 => damage.prop_map(Step::Damage),
    ];
    prop::collection::vec(step, 1..120)
}

type State = BTreeMap<SourceId, Entry>;
fn after_boot(mut state: State, another: bool) -> State {
    if another {
        state.values_mut().for_each(|entry| entry.settled = entry.synced);
    }
    state
}

/// The journal, and what it should be.
struct Pair {
    dir: tempfile::TempDir,
    boot: u32,
    journal: Journal,
    now: State,
    /// Every state that was written, under which boot, oldest first; the first is that of an empty directory.
    written: Vec<(State, u32)>,
    syncing: Vec<(SourceId, Progress)>,
    /// Restarted since `syncing` was taken.
    restarted: BTreeSet<SourceId>,
    damaged: bool,
}
impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            journal: opened(dir.path(), "boot-0"),
            dir,
            boot: 0,
            now: State::new(),
            written: vec![(State::new(), 0)],
            syncing: Vec::new(),
            restarted: BTreeSet::new(),
            damaged: false,
        }
    }
    fn pick(&self, which: u8) -> Option<SourceId> {
        // One in four is a source that is not there.
        let wanted = usize::from(which) % (self.now.len() + self.now.len() / 3 + 1);
        self.now
            .keys()
            .copied()
            .nth(wanted)
            .or(Some(SourceId(u64::from(which) + 1_000)))
    }
    fn take(&mut self, step: &Step) {
        match step {
            Step::Add(name) => {
                let identity = named(&"x".repeat(usize::from(*name)));
                let id = self.journal.add(identity.clone(), at(1), 2);
                let entry = Entry {
                    id,
                    identity,
                    settled: at(1),
                    synced: at(1),
                    seen: 2,
                };
                assert!(self.now.insert(id, entry).is_none(), "{id:?} used twice");
            }
            Step::Identify(which, name) => {
                let (id, identity) = (self.pick(*which).unwrap(), named(&"y".repeat(usize::from(*name))));
                self.journal.identify(id, identity.clone(), 3);
                self.now
                    .entry(id)
                    .and_modify(|entry| (entry.identity, entry.seen) = (identity, 3));
            }
            Step::Restart(which, to) => {
                let (id, to) = (self.pick(*which).unwrap(), at(u64::from(*to)));
                self.journal.restart(id, to);
                self.restarted.insert(id);
                self.now
                    .entry(id)
                    .and_modify(|entry| (entry.settled, entry.synced) = (to, to));
            }
            Step::Settle(marks) => {
                let marks: Vec<_> = marks
                    .iter()
                    .map(|(which, to)| mark(self.pick(*which).unwrap(), u64::from(*to)))
                    .collect();
                self.journal.settle(&marks);
                for mark in marks {
                    self.now
                        .entry(mark.source)
                        .and_modify(|entry| entry.settled = mark.progress);
                }
            }
            Step::Remove(which) => {
                let id = self.pick(*which).unwrap();
                self.journal.remove(id);
                self.now.remove(&id);
            }
            Step::Write => {
                self.journal.write().unwrap();
                self.written.push((self.now.clone(), self.boot));
            }
            Step::BeforeSync => {
                self.syncing = self.journal.before_sync();
                self.restarted.clear();
                let unsynced = self.now.values().filter(|entry| entry.settled != entry.synced);
                assert_eq!(
                    self.syncing,
                    unsynced.map(|entry| (entry.id, entry.settled)).collect::<Vec<_>>()
                );
            }
            Step::Sync => {
                self.journal.sync(&self.syncing).unwrap();
                for (id, progress) in self.syncing.drain(..).filter(|(id, _)| !self.restarted.contains(id)) {
                    self.now.entry(id).and_modify(|entry| entry.synced = progress);
                }
                self.written.push((self.now.clone(), self.boot));
            }
            Step::Reopen(another) => {
                self.boot += u32::from(*another);
                self.open();
            }
            // The agent is not running: at once after it, one starts.
            Step::Damage(damage) => {
                damage.on(self.dir.path());
                self.damaged = true;
                self.open();
            }
        }
    }
    fn open(&mut self) {
        let Opened { journal, damage } = Journal::open(self.dir.path(), &format!("boot-{}", self.boot)).unwrap();
        self.journal = journal;
        self.syncing.clear();
        self.restarted.clear();
        let found: State = self
            .journal
            .entries()
            .into_iter()
            .map(|entry| (entry.id, entry))
            .collect();
        if self.damaged {
            // Any that was once written will do, and history goes on from there.
            let known = self
                .written
                .iter()
                .rposition(|(state, boot)| after_boot(state.clone(), *boot != self.boot) == found);
            let known = known.unwrap_or_else(|| panic!("never written: {found:?}"));
            self.written.truncate(known + 1);
        } else {
            assert_eq!(damage, None);
            let (state, boot) = self.written.last().unwrap().clone();
            assert_eq!(found, after_boot(state, boot != self.boot));
        }
        // A damage that was found is healed by the next write; until then it is found again.
        self.damaged = damage.is_some();
        self.now = found;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn as_the_model_says(steps in steps()) {
        let mut pair = Pair::new();
        for step in &steps {
            if matches!(step, Step::Write | Step::Sync) {
                pair.damaged = false;
            }
            pair.take(step);
        }
        let end = std::mem::take(&mut pair.now);
        let now: State = pair.journal.entries().into_iter().map(|entry| (entry.id, entry)).collect();
        prop_assert_eq!(now, end);
    }
}
