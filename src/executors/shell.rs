//! `bash`, `sh`, `python3`: `cmd` is a text in their language, `args` are its arguments (`$1`, `sys.argv[1]`).
use std::sync::Arc;

use super::{Executor, Kind};

pub const BASH: Kind = Kind {
    name: "bash",
    about: "`cmd` is a bash script; `args` are $1, $2, …",
    make: || {
        Arc::new(Interpreter {
            program: "bash",
            named: true,
        })
    },
};
pub const SH: Kind = Kind {
    name: "sh",
    about: "`cmd` is a script for the system's sh; `args` are $1, $2, …",
    make: || {
        Arc::new(Interpreter {
            program: "sh",
            named: true,
        })
    },
};
pub const PYTHON3: Kind = Kind {
    name: "python3",
    about: "`cmd` is a Python program; `args` are sys.argv[1:]",
    make: || {
        Arc::new(Interpreter {
            program: "python3",
            named: false,
        })
    },
};

struct Interpreter {
    program: &'static str,
    /// What follows the text is its own name, and its arguments only then.
    named: bool,
}
impl Executor for Interpreter {
    fn argv(&self, cmd: &str, args: &[String]) -> (String, Vec<String>) {
        let name = self.named.then(|| self.program.to_owned());
        let all = ["-c".to_owned(), cmd.to_owned()]
            .into_iter()
            .chain(name)
            .chain(args.iter().cloned());
        (self.program.to_owned(), all.collect())
    }
}
