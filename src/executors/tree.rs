//! All that a run has started: found, signalled, and ended to the last process.
//!
//! With a cgroup the kernel knows. Without, it is looked for: the leader's session and process group, whoever descends from one that
//! was found, and whoever was started with the run's AGENT_RUN_ID. What is found is stopped before the next look, so that nothing
//! new comes while one looks; what cleared its environment *and* left its session is missed.
use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use nix::sys::signal::Signal;

use crate::{
    model::job::Tree,
    os::{self, Cgroup, Holder, Proc, Process},
};

/// What outlives SIGKILL for so long is named and left.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// Looks at most until no new process is found: who forks faster than that is killed all the same, and looked for again.
const MOST_LOOKS: usize = 50;

pub struct RunTree {
    /// `AGENT_RUN_ID=…`
    variable: String,
    /// 0: there is none of ours, only what may be left of a former life.
    leader: i32,
    started: u64,
    cgroup: Option<Cgroup>,
    /// By pid and start: to be buried in the end, if they became our children.
    seen: Mutex<BTreeSet<(i32, u64)>>,
}
impl RunTree {
    pub fn new(run_id: &str, leader: i32, cgroup: Option<Cgroup>) -> Self {
        Self {
            variable: format!("AGENT_RUN_ID={run_id}"),
            leader,
            started: os::process(leader).map_or(0, |proc| proc.started),
            cgroup,
            seen: Mutex::default(),
        }
    }
    /// Of a run that a former life of the agent has started.
    pub fn left(run_id: &str) -> Self {
        Self::new(run_id, 0, None)
    }
    pub fn kind(&self) -> Tree {
        match self.cgroup {
            Some(_) => Tree::Cgroup,
            None => Tree::Sweep,
        }
    }
    /// Clock ticks since boot.
    pub fn leader_started(&self) -> u64 {
        self.started
    }

    /// Who lives.
    pub fn members(&self) -> Vec<Proc> {
        let found = match &self.cgroup {
            Some(cgroup) => cgroup.pids().into_iter().filter_map(os::process).collect(),
            None => {
                let started_with = |pid| os::started_with(pid, &self.variable);
                sweep(&os::processes(), self.leader, self.started, started_with)
            }
        };
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seen.extend(found.iter().map(|proc| (proc.pid, proc.started)));
        found.into_iter().filter(|proc| !proc.is_zombie()).collect()
    }
    /// To all, once. Answers how many heard it.
    pub fn signal(&self, signal: Signal) -> usize {
        self.members().iter().filter(|proc| tell(proc, signal)).count()
    }
    /// SIGKILL to all, whatever they do meanwhile. Answers who is left; to be called again until that is nobody.
    pub fn kill(&self) -> Vec<Proc> {
        match &self.cgroup {
            Some(cgroup) if cgroup.kill() => {}
            Some(cgroup) => {
                cgroup.freeze(true);
                self.signal(Signal::SIGKILL);
                cgroup.freeze(false);
            }
            None => {
                let mut stopped = BTreeSet::new();
                for _ in 0..MOST_LOOKS {
                    let found = self.members();
                    let new = found
                        .iter()
                        .filter(|proc| stopped.insert((proc.pid, proc.started)))
                        .collect::<Vec<_>>();
                    if new.is_empty() {
                        break;
                    }
                    for proc in new {
                        tell(proc, Signal::SIGSTOP);
                    }
                }
                self.signal(Signal::SIGKILL);
            }
        }
        self.members()
    }
    /// Zombies of it that became our children; the leader too. Then the cgroup goes.
    pub fn bury(&self) {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let own = std::process::id() as i32;
        for (pid, started) in seen {
            let ours = os::process(pid).is_some_and(|proc| proc.started == started && proc.parent == own);
            if ours && pid != self.leader {
                let _ = os::reap(pid);
            }
        }
        if self.leader > 0 {
            let _ = os::reap(self.leader); // until here its pid, and the session's number, could be nobody else's
            os::forget_child(self.leader);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }
}
fn tell(proc: &Proc, signal: Signal) -> bool {
    let holder = Holder {
        pid: proc.pid,
        started: Some(proc.started),
    };
    Process::open(holder).is_some_and(|process| process.signal(signal).unwrap_or(false))
}

/// Who belongs to the run of that leader. Pure but for the question about an environment, which is put for those only that are not
/// found otherwise and are not older than the leader.
fn sweep(all: &[Proc], leader: i32, leader_started: u64, started_with: impl Fn(i32) -> bool) -> Vec<Proc> {
    let own = std::process::id() as i32;
    let mut found = BTreeSet::new();
    let led = |proc: &Proc| leader > 0 && (proc.pid == leader || proc.session == leader || proc.group == leader);
    found.extend(all.iter().filter(|proc| led(proc)).map(|proc| proc.pid));
    descend(all, &mut found);
    let others = all
        .iter()
        .filter(|proc| proc.started >= leader_started && proc.pid != own);
    let named = others
        .filter(|proc| !found.contains(&proc.pid) && started_with(proc.pid))
        .map(|proc| proc.pid);
    let named = named.collect::<Vec<_>>();
    found.extend(named);
    descend(all, &mut found);
    found.remove(&own);
    all.iter().filter(|proc| found.contains(&proc.pid)).copied().collect()
}
fn descend(all: &[Proc], found: &mut BTreeSet<i32>) {
    loop {
        let before = found.len();
        let children = all
            .iter()
            .filter(|proc| found.contains(&proc.parent))
            .map(|proc| proc.pid)
            .collect::<Vec<_>>();
        found.extend(children);
        if found.len() == before {
            return;
        }
    }
}

/// Runs of a former life that still have a process, by their ids.
pub fn survivors(run_ids: &[String]) -> Vec<(String, Vec<Proc>)> {
    if run_ids.is_empty() {
        return vec![];
    }
    let mut of_runs = run_ids
        .iter()
        .map(|id| (id.clone(), vec![]))
        .collect::<Vec<(String, Vec<Proc>)>>();
    let own = std::process::id() as i32;
    for proc in os::processes() {
        if proc.pid == own || proc.is_zombie() {
            continue;
        }
        let Some(id) = os::start_variable(proc.pid, "AGENT_RUN_ID") else {
            continue;
        };
        if let Some((_, members)) = of_runs.iter_mut().find(|(known, _)| *known == id) {
            members.push(proc);
        }
    }
    of_runs.retain(|(_, members)| !members.is_empty());
    of_runs
}

/// SIGTERM, and SIGKILL after `kill_after`. Answers who outlived it all.
pub async fn end(tree: &std::sync::Arc<RunTree>, kill_after: Duration) -> Vec<i32> {
    let until = tokio::time::Instant::now() + kill_after;
    let told = on_thread(tree, |tree| {
        let told = tree.signal(Signal::SIGTERM);
        tree.signal(Signal::SIGCONT); // who is stopped would not hear it
        told
    });
    if told.await.is_none_or(|told| told == 0) {
        return vec![];
    }
    let mut wait = Duration::from_millis(5);
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(wait.min(until - tokio::time::Instant::now())).await;
        wait = (wait * 2).min(Duration::from_millis(100));
        if on_thread(tree, |tree| tree.members().is_empty()).await.unwrap_or(true) {
            return vec![];
        }
    }
    let until = tokio::time::Instant::now() + KILLED_WITHIN;
    let mut wait = Duration::from_millis(5);
    loop {
        let left = on_thread(tree, RunTree::kill).await.unwrap_or_default();
        if left.is_empty() || tokio::time::Instant::now() >= until {
            return left.into_iter().map(|proc| proc.pid).collect();
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_millis(200));
    }
}
/// None: the runtime ends, and nobody waits for it.
async fn on_thread<T: Send + 'static>(
    tree: &std::sync::Arc<RunTree>,
    work: impl FnOnce(&RunTree) -> T + Send + 'static,
) -> Option<T> {
    let tree = tree.clone();
    tokio::task::spawn_blocking(move || work(&tree)).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(pid: i32, parent: i32, session: i32, started: u64) -> Proc {
        Proc {
            pid,
            parent,
            group: session,
            session,
            state: b'S',
            started,
        }
    }
    #[test]
    fn the_sweep_finds_what_it_can() {
        let all = [
            proc(100, 1, 100, 50), // the leader
            proc(101, 100, 100, 51),
            proc(102, 1, 100, 51),   // orphaned, still in the session
            proc(103, 101, 103, 52), // left the session, its parent lives
            proc(104, 103, 103, 53),
            proc(105, 1, 105, 54),   // orphaned and left; started with the id
            proc(106, 105, 106, 55), // its child, without
            proc(107, 1, 107, 56),   // orphaned, left, and cleared: missed
            proc(90, 1, 90, 40),     // older than the leader, with the same id: no
            proc(200, 1, 200, 60),   // a stranger
        ];
        let found = sweep(&all, 100, 50, |pid| matches!(pid, 105 | 90));
        let pids = found.iter().map(|proc| proc.pid).collect::<Vec<_>>();
        assert_eq!(pids, [100, 101, 102, 103, 104, 105, 106]);
        let left = sweep(&all, 0, 0, |pid| pid == 105);
        assert_eq!(left.iter().map(|proc| proc.pid).collect::<Vec<_>>(), [105, 106]);
    }
}
