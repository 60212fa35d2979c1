//! Where the agent's state lives: private to its owner, versioned, held by one agent at a time. What is in it:
//!
//! | name | what |
//! |---|---|
//! | `lock` | held for the agent's life; pid and start of its holder; never removed |
//! | `version` | the version of all that lies beside it |
//! | `agent.pid` | the pid, locked too; removed at an orderly end (so one that is left tells of another end) |
//! | `agent.sock` | the admin API |
//! | `instance`, `admin.token` | see `identity` |
//! | `logs/` | `agent.log`, in the background |
//! | `last-exit.json` | how the last agent ended |
use std::{
    collections::BTreeMap,
    io,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::{
    VERSION,
    os::{self, DirError, Holder, Lock, LockError},
    settings,
};

/// The layout that this binary writes. One that is newer is refused: an older binary would not know what it destroys.
pub const STATE_VERSION: u32 = 1;

/// The directory, held: for as long as this lives no other agent uses it.
pub struct DataDir {
    path: PathBuf,
    /// Nothing outlives this run: the directory goes with it.
    passing: bool,
    lock: Lock,
    pid_file: Lock,
}

/// `last-exit.json`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct LastExit {
    pub code: u8,
    /// One sentence.
    pub why: String,
    /// `delivered`, `lost`, …
    pub counts: BTreeMap<String, u64>,
    /// RFC 3339.
    pub ended: String,
    pub version: String,
    pub pid: u32,
}

impl DataDir {
    /// Makes it if it is missing, takes it, and writes the pid file. Answers with it what to warn about.
    pub fn open(agent: &settings::Agent) -> Result<(Self, Option<String>), Failure> {
        let path = &agent.data_dir;
        let warning = os::private_dir(path, |dir| dir.join("version").exists()).map_err(|e| match e {
            DirError::Unfit(_) => Failure::config(format!("data_dir: {e}")),
            DirError::Io { .. } => Failure::plain(e),
        })?;
        let this = Self::take(path.clone(), &agent.pid_file, false)?;
        Ok((this, warning))
    }

    /// A private one under the system's place for temporary files, for a run that keeps nothing.
    pub fn passing() -> Result<Self, Failure> {
        let path =
            os::private_temp_dir().map_err(|e| Failure::plain(format!("could not make a temporary directory: {e}")))?;
        Self::take(path.clone(), &path.join("agent.pid"), true)
    }

    fn take(path: PathBuf, pid_file: &Path, passing: bool) -> Result<Self, Failure> {
        let shown = path.display();
        let lock = Lock::take(&path.join("lock")).map_err(|e| match e {
            LockError::Held(Some(holder)) => {
                Failure::plain(format!("another agent (pid {}) runs on {shown}", holder.pid))
            }
            LockError::Held(None) => Failure::plain(format!("another agent runs on {shown}")),
            LockError::Io(e) => Failure::plain(format!("could not lock {shown}: {e}")),
        })?;
        check_version(&path)?;
        let pid_file = Lock::take_pid_file(pid_file).map_err(|e| match e {
            LockError::Held(_) => Failure::plain(format!("pid file {}: {e}", pid_file.display())),
            LockError::Io(e) => Failure::plain(format!("could not write pid file {}: {e}", pid_file.display())),
        })?;
        Ok(Self {
            path,
            passing,
            lock,
            pid_file,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn listen(&self) -> Result<UnixListener, Failure> {
        let path = socket(&self.path);
        os::bind_private(&path).map_err(|e| Failure::plain(format!("could not listen on {}: {e}", path.display())))
    }

    /// An orderly end: says how it was and takes away what shows that an agent runs. The lock is held on until the process is gone.
    pub fn close(self, last: &LastExit) -> io::Result<()> {
        self.lock.hold_to_the_end();
        if self.passing {
            return std::fs::remove_dir_all(&self.path);
        }
        let wrote = serde_json::to_vec_pretty(last)
            .map_err(io::Error::from)
            .and_then(|text| os::write_private(&self.path.join("last-exit.json"), &text));
        match std::fs::remove_file(socket(&self.path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.pid_file.remove()?;
        wrote
    }
}

/// The state's version, 1 in a new directory.
fn check_version(dir: &Path) -> Result<(), Failure> {
    match state_version(dir).map_err(Failure::plain)? {
        Some(version) => can_read(dir, version).map_err(Failure::config),
        None => os::write_private(&dir.join("version"), format!("{STATE_VERSION}\n").as_bytes())
            .map_err(|e| Failure::plain(format!("could not write {}: {e}", dir.join("version").display()))),
    }
}

/// What `dir` says of itself; none if there is no state in it.
pub fn state_version(dir: &Path) -> Result<Option<u32>, String> {
    let path = dir.join("version");
    let shown = path.display();
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(version) => Ok(Some(version)),
            Err(_) => Err(format!(
                "{shown} holds `{}`, accepted is a number",
                text.trim().escape_debug()
            )),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("could not read {shown}: {e}")),
    }
}

/// Whether this binary may work on state of that version, or why not.
pub fn can_read(dir: &Path, version: u32) -> Result<(), String> {
    match version {
        1..=STATE_VERSION => Ok(()),
        _ => Err(format!(
            "state in {} has version {version}, written by another release; this one ({}) reads up to {STATE_VERSION}",
            dir.display(),
            VERSION
        )),
    }
}

// ---- for those who look from outside

pub fn socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}
/// Where the log is in the background.
pub fn log_file(dir: &Path) -> PathBuf {
    dir.join("logs/agent.log")
}
/// The agent that runs on this directory; none if there is none.
pub fn running(dir: &Path) -> io::Result<Option<Holder>> {
    os::holder(&dir.join("lock"))
}
/// How the last agent ended; none if it is not known.
pub fn last_exit(dir: &Path) -> Option<LastExit> {
    let text = std::fs::read(dir.join("last-exit.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(data_dir: &Path) -> settings::Agent {
        settings::Agent {
            id: "sky01".into(),
            group: "net01".into(),
            group_given: false,
            ip: settings::Ip::Auto,
            data_dir: data_dir.to_owned(),
            private_data_dir: false,
            pid_file: data_dir.join("agent.pid"),
            drain: std::time::Duration::from_secs(20),
        }
    }
    fn last(code: u8) -> LastExit {
        LastExit {
            code,
            why: "told to stop".into(),
            counts: BTreeMap::from([("delivered".to_owned(), 7)]),
            ended: "2026-11-23T10:00:00Z".into(),
            version: "1.1.0".into(),
            pid: 7,
        }
    }

    #[test]
    fn one_agent_at_a_time_and_an_orderly_end_leaves_word() {
        let dir = tempfile::tempdir().unwrap();
        let settings = agent(&dir.path().join("state"));
        let (held, warning) = DataDir::open(&settings).unwrap();
        assert_eq!(warning, None);
        let socket = held.listen().unwrap();
        let refused = DataDir::open(&settings).err().unwrap();
        assert_eq!(refused.code, 1);
        assert!(
            refused.text.contains(&format!("(pid {})", std::process::id())),
            "{}",
            refused.text
        );
        assert_eq!(running(held.path()).unwrap().unwrap().pid, std::process::id() as i32);
        drop(socket);
        held.close(&last(75)).unwrap();
        assert_eq!(last_exit(&settings.data_dir), Some(last(75)));
        let mut left = std::fs::read_dir(&settings.data_dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        left.sort();
        assert_eq!(left, ["last-exit.json", "lock", "version"]);
        assert!(
            running(&settings.data_dir).unwrap().is_some(),
            "held until the process ends"
        );
    }

    #[test]
    fn newer_state_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let settings = agent(dir.path());
        for (text, code, word) in [
            ("2\n", 78, "has version 2, written by another release"),
            ("0", 78, "has version 0"),
            ("one", 1, "holds `one`"),
        ] {
            std::fs::write(dir.path().join("version"), text).unwrap();
            let refused = DataDir::open(&settings).err().unwrap();
            assert_eq!(refused.code, code, "{}", refused.text);
            assert!(refused.text.contains(word), "{}", refused.text);
            assert!(!settings.pid_file.exists());
            assert_eq!(std::fs::read_to_string(dir.path().join("version")).unwrap(), text);
        }
        std::fs::write(dir.path().join("version"), "1\n").unwrap();
        DataDir::open(&settings).unwrap();
    }

    #[test]
    fn a_passing_one_leaves_nothing() {
        let held = DataDir::passing().unwrap();
        let path = held.path().to_owned();
        assert!(path.join("agent.pid").exists());
        let _socket = held.listen().unwrap();
        held.close(&last(0)).unwrap();
        assert!(!path.exists());
    }
}
