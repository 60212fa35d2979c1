//! `exec`: `cmd` is a program, `args` its arguments, and no shell between.
use std::sync::Arc;

use super::{Executor, Kind};

pub const EXEC: Kind = Kind {
    name: "exec",
    about: "`cmd` is a program, `args` its arguments; no shell",
    make: || Arc::new(Exec),
};

struct Exec;
impl Executor for Exec {
    fn argv(&self, cmd: &str, args: &[String]) -> (String, Vec<String>) {
        (cmd.to_owned(), args.to_vec())
    }
    fn interprets(&self) -> bool {
        false
    }
}
