//! The file input beside a model that knows what was written: any sequence of what happens to logs, each step seen by the agent or not,
//! with stops, crashes and changes of the version. What the model says is what comes out: every line once, in order, and the counters of
//! losses agree to the byte. `make soak` runs it with many more cases.
#![allow(clippy::disallowed_methods, reason = "real files")]
mod kit {
    #[allow(dead_code, reason = "other tests use the rest of it")]
    pub mod files;
}

use std::{fs, os::unix::fs::symlink, time::Duration};

use kit::files::{Rig, lines};
use proptest::{prelude::*, test_runner::RngSeed};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(300);

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    /// A line in two parts, looked at in between.
    Halves,
    /// Renamed; the next line makes a new file.
    Rename,
    Copytruncate(usize),
    /// `> file`, when all of it is read.
    Truncate,
    /// Deleted with lines that nobody has read yet.
    Delete(usize),
    /// The last rotated file is packed.
    Pack,
    /// The last rotated file is put elsewhere, and back later.
    Away,
    Back,
    /// Another name, through a symlink, comes and goes.
    Link,
    Stop,
    OtherVersion,
    /// Until the next crash the outputs acknowledge nothing.
    Unsettled,
    Crash,
}
use Step::*;
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..400).prop_map(Append),
        1 => Just(Halves),
        2 => Just(Rename),
        1 => (1usize..400).prop_map(Copytruncate),
        1 => Just(Truncate),
        1 => (1usize..400).prop_map(Delete),
        2 => Just(Pack),
        1 => Just(Away),
        1 => Just(Back),
        1 => Just(Link),
        1 => Just(Stop),
        1 => Just(OtherVersion),
        1 => Just(Unsettled),
        2 => Just(Crash),
    ]
}

/// What is where, and how much of it was written.
struct Model {
    rig: Rig,
    /// The present file, and its lines.
    file: usize,
    seq: usize,
    /// Files that are done, with their lines.
    done: Vec<(String, usize)>,
    /// Rotated, not packed.
    plain: Vec<String>,
    away: Option<String>,
    rotated: usize,
}
impl Model {
    fn new() -> Self {
        let rig = Rig::new(json!({ "paths": ["{dir}/a.log*"], "close_idle": "2s", "read_compressed": true }));
        fs::create_dir(rig.path("elsewhere")).unwrap();
        Self {
            rig,
            file: 0,
            seq: 0,
            done: vec![],
            plain: vec![],
            away: None,
            rotated: 0,
        }
    }
    fn id(&self) -> String {
        format!("f{}", self.file)
    }
    fn append(&mut self, count: usize) {
        self.rig
            .append("a.log", lines(&self.id(), self.seq + 1..=self.seq + count));
        self.seq += count;
    }
    /// The present file is complete.
    fn next(&mut self) {
        self.done.push((self.id(), self.seq));
        (self.file, self.seq) = (self.file + 1, 0);
    }
    fn rotated_name(&mut self) -> String {
        self.rotated += 1;
        let name = format!("a.log.{}", self.rotated);
        self.plain.push(name.clone());
        name
    }
    fn do_it(&mut self, step: Step) {
        match step {
            Append(count) => self.append(count),
            Halves => {
                let line = lines(&self.id(), self.seq + 1..=self.seq + 1);
                let (one, two) = line.split_at(line.len() / 2);
                self.rig.append("a.log", one);
                self.rig.run(SECOND);
                self.rig.append("a.log", two);
                self.seq += 1;
            }
            Rename if self.seq > 0 => {
                let name = self.rotated_name();
                fs::rename(self.rig.path("a.log"), self.rig.path(&name)).unwrap();
                self.next();
            }
            // Something of it must have been read, or nobody could tell a copy from another file; and two truncations that nobody sees
            // are one.
            Copytruncate(count) if self.seq > 0 => {
                self.rig.run(SECOND);
                self.append(count);
                let name = self.rotated_name();
                fs::copy(self.rig.path("a.log"), self.rig.path(&name)).unwrap();
                fs::write(self.rig.path("a.log"), "").unwrap();
                self.next();
                self.rig.run(SECOND);
            }
            // What is not acknowledged and gone from the disk is gone: not while the outputs are away.
            Truncate if self.seq > 0 && self.rig.settling => {
                self.rig.run(SECOND);
                fs::write(self.rig.path("a.log"), "").unwrap();
                self.next();
                self.rig.run(SECOND);
            }
            Delete(count) if self.rig.settling => {
                self.append(1);
                self.rig.run(SECOND); // it is open now
                self.append(count);
                fs::remove_file(self.rig.path("a.log")).unwrap();
                self.next();
                self.rig.run(SECOND);
            }
            Pack => {
                if let Some(name) = self.plain.pop() {
                    self.rig.pack(&name);
                }
            }
            Away if self.away.is_none() && self.rig.settling => {
                if let Some(name) = self.plain.pop() {
                    self.rig.run(SECOND);
                    let to = format!("elsewhere/{name}");
                    fs::rename(self.rig.path(&name), self.rig.path(&to)).unwrap();
                    self.away = Some(name);
                }
            }
            Back => self.bring_back(),
            Link => {
                let link = self.rig.path("a.log-link");
                if fs::remove_file(&link).is_err() {
                    symlink("a.log", link).unwrap();
                }
            }
            Stop => self.rig.stop(),
            OtherVersion => {
                self.rig.stop();
                self.rig.other_version = !self.rig.other_version;
            }
            Unsettled => self.rig.settling = false,
            Crash => {
                self.rig.crash();
                self.rig.settling = true;
            }
            _ => {}
        }
    }
    fn bring_back(&mut self) {
        if let Some(name) = self.away.take() {
            fs::rename(self.rig.path(&format!("elsewhere/{name}")), self.rig.path(&name)).unwrap();
            self.plain.push(name);
        }
    }
}

/// The same cases each time, but for whoever asks for more (`make soak`): chance is no judge of a change.
fn config() -> ProptestConfig {
    let asked = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => asked,
        None => ProptestConfig {
            cases: 60,
            rng_seed: RngSeed::Fixed(7),
            ..asked
        },
    }
}
proptest! {
    #![proptest_config(config())]
    #[test]
    fn as_the_model_says(steps in proptest::collection::vec((step(), any::<bool>()), 1..40)) {
        let mut model = Model::new();
        for (step, look) in steps {
            model.do_it(step);
            if look {
                model.rig.run(LOOK);
            }
        }
        if !model.rig.settling {
            model.rig.crash();
            model.rig.settling = true;
        }
        model.bring_back();
        model.rig.run(60 * SECOND);
        model.next();
        let expected = model.done.iter().filter(|(_, seq)| *seq > 0).map(|(id, seq)| (id.as_str(), 1..=*seq)).collect::<Vec<_>>();
        model.rig.judge(&expected);
        prop_assert_eq!((model.rig.count("bytes_lost"), model.rig.count("bytes_given_up")), (0, 0));
        prop_assert_eq!(model.rig.restart_and_count(), 0);
    }
}
