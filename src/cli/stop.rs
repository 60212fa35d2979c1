//! `agent stop`: asks the agent to drain and stop, waits until it is gone, and answers with its exit code.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use hyper::Method;
use nix::sys::signal::Signal;

use super::{
    Done, FAILED, Failed, NOT_RUNNING,
    args::Stopping,
    client::{self, AskError},
    complain, data_dir, print,
};
use crate::{
    agent::{self, LastExit},
    os::{Holder, Process},
    settings::Place,
};

/// What the agent is given to say that it has heard.
const ANSWER: Duration = Duration::from_secs(5);
/// What it is given to leave at once, before it is killed; and how often it is told so.
const AT_ONCE: Duration = Duration::from_secs(3);
const NEXT_WORD: Duration = Duration::from_millis(300);
const UNSEEN: &str = "its process cannot be seen from here (another container or host?)";

pub fn run(place: &Place, how: &Stopping) -> Done {
    let dir = data_dir(place)?;
    let Some(end) = stop(&dir, how.timeout.0, how.force)? else {
        return Ok(complain(&format!("no agent runs on {}", dir.display()), NOT_RUNNING));
    };
    match end {
        End::Word(last) => {
            let counts = last
                .counts
                .iter()
                .map(|(what, n)| format!(" {what}={n}"))
                .collect::<String>();
            print(&format!("agent stopped; code={} why={:?}{counts}", last.code, last.why));
            Ok(last.code)
        }
        End::NoWord => Ok(complain("the agent is gone and left no word how it ended", FAILED)),
    }
}

/// How it ended.
pub enum End {
    Word(LastExit),
    /// Killed, or it could not write.
    NoWord,
}

/// None: none runs. An error: it still does.
pub fn stop(dir: &Path, timeout: Duration, force: bool) -> Result<Option<End>, Failed> {
    let look = |e| Failed::new(format!("could not look at {}: {e}", dir.display()));
    let Some(holder) = agent::running(dir).map_err(look)? else {
        return Ok(None);
    };
    let kill = |e| Failed::new(format!("could not end the agent (pid {}): {e}", holder.pid));
    let until = Instant::now() + timeout;
    let process = Process::open(holder);
    let asked = client::ask_within(timeout.min(ANSWER), dir, Method::POST, "/api/v1/stop");
    if let Err(deaf @ AskError::Deaf { .. }) = &asked {
        // Then as `kill` does it; the process is held, so that no stranger with its pid is hit. Only here: to an agent that may have
        // heard us a signal would be the second word, and it would leave at once.
        match &process {
            Some(process) => drop(process.signal(Signal::SIGTERM).map_err(kill)?),
            None if agent::running(dir).map_err(look)?.is_none() => {}
            None => return Err(Failed::new(format!("{deaf}; {UNSEEN}"))),
        }
    }
    if wait(&process, dir, until) {
        return Ok(Some(end(dir, holder)));
    }
    if !force {
        let state = match &asked {
            Err(AskError::Silent { .. } | AskError::Refused { .. }) => "has not answered and still runs",
            _ => "still drains",
        };
        return Err(Failed::new(format!(
            "the agent (pid {}) {state} after {timeout:?} and is left running; --force ends it",
            holder.pid
        )));
    }
    let Some(process) = process else {
        return Err(Failed::new(format!(
            "the agent (pid {}) still runs; {UNSEEN}",
            holder.pid
        )));
    };
    // One signal if it drains already, two if it had not heard of a stop: it leaves at once, with a word. Two that come close are one.
    let until = Instant::now() + AT_ONCE;
    while Instant::now() < until {
        process.signal(Signal::SIGTERM).map_err(kill)?;
        if process.wait(NEXT_WORD) {
            return Ok(Some(end(dir, holder)));
        }
    }
    process.signal(Signal::SIGKILL).map_err(kill)?;
    if !process.wait(AT_ONCE) {
        return Err(Failed::new(format!("the agent (pid {}) outlives SIGKILL", holder.pid)));
    }
    Ok(Some(end(dir, holder)))
}

/// True when it is gone.
#[expect(clippy::disallowed_methods, reason = "a command has nothing else to do")]
fn wait(process: &Option<Process>, dir: &Path, until: Instant) -> bool {
    if let Some(process) = process {
        return process.wait(until.saturating_duration_since(Instant::now()));
    }
    // A process that cannot be seen: its lock tells.
    while agent::running(dir).is_ok_and(|holder| holder.is_some()) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

fn end(dir: &Path, holder: Holder) -> End {
    match agent::last_exit(dir) {
        Some(last) if i64::from(last.pid) == i64::from(holder.pid) => End::Word(last),
        _ => End::NoWord,
    }
}
