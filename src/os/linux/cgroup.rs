//! A cgroup (version 2) for what one run starts: nothing leaves it unasked, and all of it can be killed at once. Needs no controller,
//! only the right to make a directory below our own cgroup (root, or `Delegate=yes` of the unit).
use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// What the directories of runs are called; what is behind it is the run's id.
const PREFIX: &str = "luffly-run-";

pub struct Cgroup {
    dir: PathBuf,
}
/// The ways into one, for a start.
pub struct Door {
    /// For whoever is born in it.
    pub(super) dir: File,
    /// `cgroup.procs`: whoever writes `0` to it is in.
    pub(super) procs: File,
}

/// Our own cgroup's directory; none where there is no version 2.
fn own() -> Option<PathBuf> {
    let (root, point) = MOUNT.as_ref()?;
    let path = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = path.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Inside a container the mount may show a part only.
    let path = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
    Some(point.join(path.trim_start_matches('/')))
}
/// What part of the tree is mounted where. Looked for once: it does not move while we live, and the table is long on a host with
/// containers.
static MOUNT: LazyLock<Option<(String, PathBuf)>> = LazyLock::new(|| {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(3);
        let (root, point) = (head.next()?, head.next()?);
        tail.starts_with("cgroup2 ").then(|| (root.to_owned(), point.into()))
    })
});

impl Cgroup {
    /// None: it cannot be made here.
    pub fn make(run_id: &str) -> Option<(Self, Door)> {
        let dir = outside_of_a_run(own()?).join(format!("{PREFIX}{run_id}"));
        fs::create_dir(&dir).ok()?;
        let made = Self { dir };
        // Somebody else's file system can look like one.
        match made.door() {
            Ok(door) => Some((made, door)),
            Err(_) => {
                made.remove();
                None
            }
        }
    }
    fn door(&self) -> io::Result<Door> {
        Ok(Door {
            dir: File::open(&self.dir)?,
            procs: OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?,
        })
    }
    /// All processes in it and below, zombies not.
    pub fn pids(&self) -> Vec<i32> {
        let mut all = vec![];
        collect(&self.dir, &mut all);
        all
    }
    /// SIGKILL to all. False: this kernel has no such file, or refuses.
    pub fn kill(&self) -> bool {
        fs::write(self.dir.join("cgroup.kill"), "1").is_ok()
    }
    /// Nobody in it makes a step until it is thawed.
    pub fn freeze(&self, frozen: bool) {
        let _ = fs::write(self.dir.join("cgroup.freeze"), if frozen { "1" } else { "0" });
    }
    /// Takes the directory away, with those below; false while somebody is in it.
    pub fn remove(&self) -> bool {
        remove(&self.dir)
    }
}
fn collect(dir: &Path, all: &mut Vec<i32>) {
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    all.extend(
        pids.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for below in fs::read_dir(dir).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&below.path(), all);
        }
    }
}
fn remove(dir: &Path) -> bool {
    for below in fs::read_dir(dir).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&below.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}
fn outside_of_a_run(own: PathBuf) -> PathBuf {
    let of_a_run = own.ancestors().filter(|dir| {
        let name = dir.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX))
    });
    match of_a_run.last().and_then(Path::parent) {
        Some(parent) => parent.to_owned(),
        None => own,
    }
}

/// An agent that a job starts is no part of that job's run: leaves the run's cgroup, if it is in one.
pub(super) fn leave_run_cgroup() {
    let Some(own) = own() else { return };
    let outside = outside_of_a_run(own.clone());
    if outside != own {
        let _ = fs::write(outside.join("cgroup.procs"), "0"); // without the right to, it stays, and ends with the run
    }
}
/// Takes away the empty directories that a former agent left.
pub fn remove_left_cgroups() {
    let Some(own) = own() else { return };
    for entry in fs::read_dir(outside_of_a_run(own)).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_a_run_is_left_upwards() {
        for (own, outside) in [
            ("/cg/system.slice/agent.service", "/cg/system.slice/agent.service"),
            ("/cg/agent.service/luffly-run-A", "/cg/agent.service"),
            ("/cg/agent.service/luffly-run-A/below", "/cg/agent.service"),
            ("/cg/agent.service/luffly-run-A/x/luffly-run-B", "/cg/agent.service"),
        ] {
            assert_eq!(outside_of_a_run(own.into()), Path::new(outside));
        }
    }
}
