//! How a job's command is run: an executor makes a program and its arguments of it (`CATALOG`, and those that the settings define);
//! `process` starts that as a run of its own, watches it, and leaves nothing of it behind. No actor in here, and no schedule.
pub mod capture;
mod custom;
mod exec;
mod guard;
pub mod process;
mod shell;
pub mod tree;

use std::{collections::BTreeMap, sync::Arc};

pub use capture::{Capture, SharedCapture};
pub use custom::Custom;
pub use guard::{Allowed, Guards};
pub use process::{End, Launcher, Order, Outcome, Processes, Started, Stop};

pub trait Executor: Send + Sync {
    /// The program, with or without a path, and its arguments.
    fn argv(&self, cmd: &str, args: &[String]) -> (String, Vec<String>);
    /// `cmd` is a program of its own language: what it does cannot be told from its first word.
    fn interprets(&self) -> bool {
        true
    }
}

/// A row of the catalog.
pub struct Kind {
    pub name: &'static str,
    pub about: &'static str,
    pub make: fn() -> Arc<dyn Executor>,
}
pub const CATALOG: &[Kind] = &[shell::BASH, shell::SH, shell::PYTHON3, exec::EXEC];

/// By name: the catalog's, and those of the settings before them.
#[derive(Clone)]
pub struct Executors(BTreeMap<String, Arc<dyn Executor>>);
impl Executors {
    pub fn new(custom: impl IntoIterator<Item = (String, Custom)>) -> Self {
        let built_in = CATALOG.iter().map(|kind| (kind.name.to_owned(), (kind.make)()));
        let custom = custom
            .into_iter()
            .map(|(name, custom)| (name, Arc::new(custom) as Arc<dyn Executor>));
        Self(built_in.chain(custom).collect())
    }
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Executor>> {
        self.0.get(name)
    }
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}
