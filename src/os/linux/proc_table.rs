//! Who else runs on this machine: the table of processes as /proc shows it, and what this process has to do as a parent of many.
use std::{
    collections::BTreeSet,
    os::fd::{FromRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proc {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// `Z` is a zombie, as in proc(5).
    pub state: u8,
    /// Clock ticks since boot: with the pid it names a process for ever.
    pub started: u64,
}
impl Proc {
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// None: it is gone.
pub fn process(pid: i32) -> Option<Proc> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in brackets and may hold anything: count from the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    let started = fields.nth(15)?.parse().ok()?;
    Some(Proc {
        pid,
        parent,
        group,
        session,
        state,
        started,
    })
}

/// All that we may see.
pub fn processes() -> Vec<Proc> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return vec![];
    };
    let pid = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    entries.filter_map(pid).filter_map(process).collect()
}

/// Was it started with this in its environment? `NAME=value`. False if we may not look.
pub fn started_with(pid: i32, variable: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|all| all.split(|b| *b == 0).any(|one| one == variable.as_bytes()))
}
/// What its environment held under that name when it was started.
pub fn start_variable(pid: i32, name: &str) -> Option<String> {
    let all = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let found = all
        .split(|b| *b == 0)
        .find_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(found.to_vec()).ok()
}

/// Whoever is orphaned below this process becomes its child, not init's. Not inherited by a fork: to be called in the process that stays.
pub fn become_subreaper() -> bool {
    prctl::set_child_subreaper(true).is_ok()
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}
/// Has this child ended? It stays a zombie, and so its pid its own, until `reap`.
pub fn peek_exit(pid: i32) -> std::io::Result<Option<Exit>> {
    wait(pid, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT)
}
/// Can be read when that process has ended; none on kernels before 5.3.
pub fn exit_fd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: takes numbers only; a descriptor that it returns is new and belongs to nobody else.
    unsafe {
        let fd = nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    }
}
/// Lets a child that has ended go.
pub fn reap(pid: i32) -> std::io::Result<Option<Exit>> {
    wait(pid, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)
}
fn wait(pid: i32, flags: WaitPidFlag) -> std::io::Result<Option<Exit>> {
    loop {
        return match waitid(Id::Pid(Pid::from_raw(pid)), flags) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(Exit::Signal(signal as i32))),
            Ok(_) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

/// Children that somebody waits for by pid: the reaper leaves them alone.
static EXPECTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
pub(super) fn expect_child(pid: i32) {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
}
/// `reap`ed, or to be left to the reaper.
pub fn forget_child(pid: i32) {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// Buries orphans that became ours. A zombie that somebody else in this process may still wait for is left until the next look.
#[derive(Default)]
pub struct Reaper {
    seen: BTreeSet<(i32, u64)>,
}
impl Reaper {
    /// How many were buried. Looks should lie some seconds apart.
    pub fn look(&mut self) -> usize {
        let own = std::process::id() as i32;
        let expected = EXPECTED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let zombies = processes()
            .into_iter()
            .filter(|proc| proc.parent == own && proc.is_zombie() && !expected.contains(&proc.pid))
            .map(|proc| (proc.pid, proc.started))
            .collect::<BTreeSet<_>>();
        let (again, new): (BTreeSet<_>, BTreeSet<_>) =
            zombies.into_iter().partition(|zombie| self.seen.contains(zombie));
        self.seen = new;
        again
            .iter()
            .filter(|(pid, _)| matches!(reap(*pid), Ok(Some(_))))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[expect(clippy::zombie_processes, reason = "`reap` is what is tested")]
    fn a_child_is_seen_in_the_table() {
        let mut child = Command::new("sleep")
            .arg("60")
            .env("LUFFLY_TEST", "x y")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let found = processes().into_iter().find(|proc| proc.pid == pid).unwrap();
        assert_eq!(found.parent, std::process::id() as i32);
        assert_eq!(Some(found.started), super::super::process::start_ticks(pid));
        assert_eq!(process(pid).map(|proc| proc.session), Some(found.session));
        // The environment is the child's once it has called exec: until then it is ours.
        while !started_with(pid, "LUFFLY_TEST=x y") {
            std::thread::yield_now();
        }
        assert!(!started_with(pid, "LUFFLY_TEST=x"));
        assert_eq!(start_variable(pid, "LUFFLY_TEST").as_deref(), Some("x y"));
        assert_eq!(peek_exit(pid).unwrap(), None);
        child.kill().unwrap();
        while peek_exit(pid).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(process(pid).unwrap().is_zombie(), "a look does not bury it");
        assert_eq!(reap(pid).unwrap(), Some(Exit::Signal(9)));
        assert_eq!(process(pid), None);
        assert!(reap(pid).is_err());
    }
}
