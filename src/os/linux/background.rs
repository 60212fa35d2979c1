//! The way into the background: fork, a session of its own, and a pipe by which the child tells the waiting parent that it is ready,
//! or why not. One fork, so that the parent can also see how a child died that said nothing. (A session leader could get a terminal by
//! opening one; the agent opens none.)
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, dup2_stdin, dup2_stdout, fork, pipe2, setsid},
};

pub enum Forked {
    Parent(Child),
    /// Goes on without terminal: stdin and stdout are /dev/null. stderr stays the parent's until a log is open.
    Child(Ready),
}

/// What the parent has of the child.
pub struct Child {
    pid: Pid,
    pipe: File,
}
/// What became of the child, as far as the parent waited.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is ready; what it has to say about itself.
    Ready(String),
    /// It has said why it failed.
    Failed { code: u8, text: String },
    /// It ended without a word: `exit code 1`, `signal SIGKILL`.
    Died(String),
    /// It had not answered in time and was ended.
    Late,
}

/// How the child answers. Dropped without an answer it says nothing, and the parent looks at how the child ends.
pub struct Ready(File);

/// Call it before there is a second thread.
pub fn into_background() -> io::Result<Forked> {
    let threads = super::process::thread_count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run already")));
    }
    let (reads, writes) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this is the only thread (looked at above), so no lock is held by a thread that the child does not have.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(Child {
            pid: child,
            pipe: File::from(reads),
        })),
        ForkResult::Child => {
            setsid()?;
            let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            Ok(Forked::Child(Ready(File::from(writes))))
        }
    }
}

impl Ready {
    /// `text`: what the parent shows.
    pub fn ok(mut self, text: &str) {
        // A parent that has gone away meanwhile is no reason to stop.
        let _ = self.0.write_all(format!("ok {text}").as_bytes());
    }
    pub fn failed(mut self, code: u8, text: &str) {
        let _ = self.0.write_all(format!("{code} {text}").as_bytes());
    }
}

impl Child {
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }
    /// Waits for the child's answer or end, for at most `limit`.
    pub fn outcome(mut self, limit: Duration) -> Outcome {
        let until = Instant::now() + limit;
        let mut answer = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut readable = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            if !poll(&mut readable, wait).is_ok_and(|n| n > 0) {
                if left.is_zero() {
                    self.end();
                    return Outcome::Late;
                }
                continue; // interrupted by a signal
            }
            let mut chunk = [0; 4096];
            match self.pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.split_once(' ') {
            Some(("ok", text)) => Outcome::Ready(text.to_owned()),
            Some((code, text)) if let Ok(code) = code.parse() => Outcome::Failed {
                code,
                text: text.to_owned(),
            },
            _ => Outcome::Died(match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal {signal}"),
                other => format!("{other:?}"),
            }),
        }
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the parent has one thread and nothing else to do"
    )]
    fn end(&self) {
        let _ = kill(self.pid, Signal::SIGTERM);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::OwnedFd,
        process::{Command, Stdio},
    };

    use super::*;

    /// Forking a process of many threads is refused, so a shell plays the child.
    #[expect(clippy::zombie_processes, reason = "`outcome` waits for it")]
    fn child(script: &str) -> Child {
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = File::from(OwnedFd::from(shell.stdout.take().unwrap()));
        Child {
            pid: Pid::from_raw(shell.id() as i32),
            pipe,
        }
    }

    #[test]
    fn the_parent_hears_what_became_of_the_child() {
        let long = Duration::from_secs(20);
        assert_eq!(
            child("printf 'ok pid 7'; exec >&-; sleep 0.2").outcome(long),
            Outcome::Ready("pid 7".into())
        );
        assert_eq!(
            child("printf '78 no '; printf 'such key'; exit 3").outcome(long),
            Outcome::Failed {
                code: 78,
                text: "no such key".into()
            }
        );
        assert_eq!(child("exit 3").outcome(long), Outcome::Died("exit code 3".into()));
        assert_eq!(
            child("kill -9 $$").outcome(long),
            Outcome::Died("signal SIGKILL".into())
        );
        let late = child("exec sleep 60");
        let pid = late.pid();
        assert_eq!(late.outcome(Duration::from_millis(20)), Outcome::Late);
        assert!(
            super::super::process::start_ticks(pid).is_none(),
            "and is not left behind"
        );
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let error = into_background().err().unwrap().to_string();
        assert!(error.contains("threads run already"), "{error}");
    }
}
