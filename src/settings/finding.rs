//! What is wrong with the settings, and where: all of it at once, in words that say what was found and what is accepted.
use std::{cell::RefCell, fmt, path::Path, sync::Arc};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Nobody gave it.
    Nowhere,
    /// `line` counts from 1; none where the format does not tell (JSON).
    File { path: Arc<Path>, line: Option<usize> },
    /// The variable's name.
    Env(String),
    /// As it is written: `-input`, `--set`, `-f`.
    Flag(&'static str),
}
impl At {
    /// Findings are listed from the file's first line to the last flag.
    fn order(&self) -> (u8, usize) {
        match self {
            Self::File { line, .. } => (0, line.unwrap_or(0)),
            Self::Env(_) => (1, 0),
            Self::Flag(_) => (2, 0),
            Self::Nowhere => (3, 0),
        }
    }
}
impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::File { path, line: None } => write!(f, "{}: ", path.display()),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}: ", path.display()),
            Self::Env(name) => write!(f, "{name}: "),
            Self::Flag(name) => write!(f, "{name}: "),
        }
    }
}

/// One thing that is wrong: `agent.toml:7: limits.memory: found "lots", accepted: …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub at: At,
    /// Dotted, with numbers from 0 for lists: `pipeline[1].outputs[0].path`. Empty for a file or a flag as a whole.
    pub key: String,
    pub message: String,
    /// What was typed is wrong (64), and not what was configured (78).
    pub usage: bool,
}
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}{}{colon}{}", self.at, self.key, self.message)
    }
}

/// Why there are no settings. At least one error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub errors: Vec<Finding>,
    /// The exit code: 64 if any of it was typed (a flag, `-f`), else 78.
    pub code: u8,
}
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [error] = &self.errors[..] {
            return write!(f, "{error}");
        }
        write!(f, "{} errors in the settings", self.errors.len())?;
        self.errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}
impl std::error::Error for Refused {}

/// Collects while the settings are read; shared by all who read.
#[derive(Default)]
pub(super) struct Findings(RefCell<Vec<Finding>>);
impl Findings {
    pub fn add(&self, at: &At, key: impl Into<String>, message: impl Into<String>) {
        self.push(at, key.into(), message.into(), matches!(at, At::Flag(_)));
    }
    /// Wrong use of the command, wherever the value stands.
    pub fn add_usage(&self, at: &At, key: impl Into<String>, message: impl Into<String>) {
        self.push(at, key.into(), message.into(), true);
    }
    fn push(&self, at: &At, key: String, message: String, usage: bool) {
        let at = at.clone();
        self.0.borrow_mut().push(Finding {
            at,
            key,
            message,
            usage,
        });
    }
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
    pub fn refused(&self) -> Refused {
        let mut errors = self.0.take();
        errors.sort_by_key(|e| e.at.order()); // stable
        let code = if errors.iter().any(|e| e.usage) { 64 } else { 78 };
        Refused { errors, code }
    }
}

/// `unknown key, accepted: a, b; did you mean `a`?` for whatever may be misspelled.
pub fn unknown<'a>(what: &str, found: &str, accepted: impl IntoIterator<Item = &'a str>) -> String {
    let accepted = accepted.into_iter().collect::<Vec<_>>();
    let list = match accepted.is_empty() {
        true => "nothing here".to_owned(),
        false => accepted.join(", "),
    };
    format!("unknown {what}, accepted: {list}{}", did_you_mean(found, accepted))
}
/// Empty if nothing is near. A third of a word mistyped is still a typing error.
pub fn did_you_mean<'a>(found: &str, accepted: impl IntoIterator<Item = &'a str>) -> String {
    let near = accepted
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(word, found), word))
        .filter(|(steps, word)| *steps <= (word.len() / 3).max(1))
        .min();
    near.map(|(_, word)| format!("; did you mean `{word}`?"))
        .unwrap_or_default()
}
