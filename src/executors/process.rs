//! One run, from the look-up of its user to the last of its processes.
//!
//! The leader is the first process of a session of its own, in a cgroup where one can be made. The run ends when the leader ends (one
//! second more for its output), at its timeout, or when somebody stops it; then what is left of it is ended too. Whatever may wait for
//! a directory service or a disk runs on a thread, and for 10 s at most.
use std::{
    ffi::OsStr,
    future::Future,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{
    io::unix::AsyncFd,
    net::unix::pipe::Receiver,
    sync::{mpsc, oneshot, watch},
};

use super::{
    SharedCapture,
    tree::{self, RunTree},
};
use crate::{
    model::job::Tree,
    os::{self, Cgroup, Exit, User},
};

/// User, directory and program are to be had within that.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// What the leader has left in the pipe, or its children write, is waited for so long.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// Bytes that one read takes; the default size of a pipe.
const READ: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub run_id: String,
    pub task_id: String,
    /// RFC 3339.
    pub fire_time: String,
    pub program: String,
    pub args: Vec<String>,
    /// Besides, and before, what every run is given.
    pub env: Vec<(String, String)>,
    pub dir: Option<String>,
    pub user: Option<String>,
    pub timeout: Option<Duration>,
    pub kill_after: Duration,
    pub leave_children: bool,
}
/// It lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    pub pid: i32,
    /// Clock ticks since boot.
    pub pid_started: u64,
    pub tree: Tree,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM, then SIGKILL; by whom.
    Kill(String),
    /// Look away: it lives on without the agent.
    Leave,
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Exited(Exit),
    TimedOut,
    Killed(String),
    Left,
    /// Why.
    NotStarted(String),
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    /// Processes that outlived SIGKILL.
    pub unkillable: Vec<i32>,
}

/// Runs an order to its end. Real ones start processes; tests have others.
pub trait Launcher: Send + Sync {
    fn launch(
        &self,
        order: Order,
        output: SharedCapture,
        stop: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;
}
pub struct Processes {
    /// Where they can be made. False: as if they could not.
    pub cgroups: bool,
}
impl Launcher for Processes {
    fn launch(
        &self,
        order: Order,
        output: SharedCapture,
        stop: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
        Box::pin(run(order, Output::Kept(output), stop, started, self.cgroups))
    }
}
impl Processes {
    /// As `launch`, with all of the output passed on: whoever does not take it holds the run up.
    pub fn pass(
        &self,
        order: Order,
        output: mpsc::Sender<Vec<u8>>,
        stop: watch::Receiver<Option<Stop>>,
        started: oneshot::Sender<Started>,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        run(order, Output::Passed(output), stop, started, self.cgroups)
    }
}
/// What becomes of a run's output.
enum Output {
    Kept(SharedCapture),
    Passed(mpsc::Sender<Vec<u8>>),
}

async fn run(
    order: Order,
    output: Output,
    mut stop: watch::Receiver<Option<Stop>>,
    started: oneshot::Sender<Started>,
    cgroups: bool,
) -> Outcome {
    // What is passed on is passed on as a whole: whoever takes it may take his time.
    let whole = matches!(output, Output::Passed(_));
    let (over, is_over) = watch::channel(false);
    let (timeout, kill_after, leave_children) = (order.timeout, order.kill_after, order.leave_children);
    let made = within(
        STARTED_WITHIN,
        move |pid| start(&order, cgroups, pid),
        |late: Running| {
            late.tree.kill();
            late.tree.bury();
        },
    );
    let running = match made.await {
        Ok(running) => running,
        Err(why) => {
            return Outcome {
                end: End::NotStarted(why),
                unkillable: vec![],
            };
        }
    };
    let Running { pid, tree, pipe } = running;
    let _ = started.send(Started {
        pid,
        pid_started: tree.leader_started(),
        tree: tree.kind(),
    });
    let mut reader = tokio::spawn(read(pipe, output, is_over));
    let mut end = tokio::select! {
        exit = exit_of(pid) => End::Exited(exit),
        () = past(timeout) => End::TimedOut,
        stop = asked(&mut stop) => match stop {
            Stop::Kill(by) => End::Killed(by),
            Stop::Leave => End::Left,
        },
    };
    let mut unkillable = vec![];
    match &end {
        End::Left => {
            reader.abort();
            os::forget_child(pid);
            return Outcome { end, unkillable };
        }
        End::Exited(_) => {
            // A stop cuts the wait for the rest of its output short, and is no reason for how it ended.
            let all_read = tokio::select! {
                read = tokio::time::timeout(LAST_OUTPUT, &mut reader) => read.is_ok(),
                _ = asked(&mut stop) => false,
            };
            if leave_children {
                // Its children may write on without a SIGPIPE: read, and no longer kept once this is over.
                if all_read {
                    reader.abort();
                }
                bury(tree).await;
                return Outcome { end, unkillable };
            }
            unkillable = tree::end(&tree, kill_after).await;
        }
        End::TimedOut | End::Killed(_) => unkillable = tree::end(&tree, kill_after).await,
        End::NotStarted(_) => {}
    }
    over.send_replace(true);
    if whole && !reader.is_finished() {
        let _ = (&mut reader).await; // it ends by itself when nothing comes any more
    } else if !reader.is_finished() && tokio::time::timeout(LAST_OUTPUT, &mut reader).await.is_err() {
        reader.abort(); // somebody that was missed, or cannot be killed, holds the pipe
    }
    if let (End::Killed(_) | End::TimedOut, true) = (&end, unkillable.contains(&pid)) {
        // It keeps its pid; the reaper will see it off.
        os::forget_child(pid);
        return Outcome { end, unkillable };
    }
    if let End::Exited(exit) = &mut end
        && let Ok(Some(now)) = os::peek_exit(pid)
    {
        *exit = now;
    }
    bury(tree).await;
    Outcome { end, unkillable }
}
async fn bury(tree: Arc<RunTree>) {
    let _ = tokio::task::spawn_blocking(move || tree.bury()).await;
}
async fn past(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}
async fn asked(stop: &mut watch::Receiver<Option<Stop>>) -> Stop {
    let told = stop.wait_for(Option::is_some).await.ok().and_then(|stop| stop.clone());
    match told {
        Some(stop) => stop,
        None => std::future::pending().await, // nobody is left who could ask
    }
}

struct Running {
    pid: i32,
    tree: Arc<RunTree>,
    pipe: OwnedFd,
}

/// Work on a thread, for so long at most. Of a process that was forked by then (`pid` hears of it) nothing is left; whatever comes of
/// the work later is handed to `late`.
async fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(OwnedFd) -> Result<T, String> + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Result<T, String> {
    let (hear, tell) =
        pipe(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|error| format!("could not make a pipe: {error}"))?;
    let given_up = Arc::new(AtomicBool::new(false));
    let asked = given_up.clone();
    let (answer, answered) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let done = work(tell);
        if asked.load(SeqCst) {
            if let Ok(done) = done {
                late(done);
            }
            return;
        }
        let _ = answer.send(done);
    });
    match tokio::time::timeout(limit, answered).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err("could not be started: its thread ended".into()),
        Err(_) => {
            given_up.store(true, SeqCst);
            let mut pid = [0; 4];
            if let Ok(4) = nix::unistd::read(&hear, &mut pid) {
                // Not ours to wait for: the thread that hangs in its start does.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(i32::from_ne_bytes(pid)),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            Err(format!("could not be started within {}", crate::model::Span(limit)))
        }
    }
}
fn pipe(flags: OFlag) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(flags)?)
}

/// Looks up the user, prepares all, and forks. Blocks.
fn start(order: &Order, cgroups: bool, tell_pid: OwnedFd) -> Result<Running, String> {
    let own = User::own().map_err(|error| format!("could not look up the agent's own user: {error}"))?;
    let user = match &order.user {
        None => own.clone(),
        Some(name) => {
            match User::named(name).map_err(|error| format!("could not look up the user `{name}`: {error}"))? {
                Some(user) => Some(user),
                None => return Err(format!("there is no user `{name}`")),
            }
        }
    };
    let other = user.as_ref().filter(|user| user.uid != os::own_uid());
    if let Some(user) = other
        && !os::is_root()
    {
        return Err(format!("only root can run a job as `{}`", user.name));
    }
    let home = user.as_ref().map(|user| user.home.clone()).filter(|home| home.is_dir());
    let dir = match &order.dir {
        Some(dir) => {
            let path = PathBuf::from(dir);
            match std::fs::metadata(&path) {
                Ok(found) if found.is_dir() => path,
                Ok(_) => return Err(format!("`{dir}` is no directory")),
                Err(error) => return Err(format!("could not enter the directory `{dir}`: {error}")),
            }
        }
        None => home.clone().unwrap_or_else(|| PathBuf::from("/")),
    };
    let env = environment(order, user.as_ref(), other.is_some());
    let (pipe, output) = pipe(OFlag::O_CLOEXEC).map_err(|error| format!("could not make a pipe: {error}"))?;
    let (cgroup, door) = cgroups.then(|| Cgroup::make(&order.run_id)).flatten().unzip();
    let spawned = os::spawn(os::Program {
        program: OsStr::new(&order.program),
        args: &order.args,
        env: &env,
        dir: &dir,
        user: other,
        output,
        cgroup: door.as_ref(),
        pid: tell_pid,
    });
    match spawned {
        Ok(pid) => Ok(Running {
            pid,
            tree: Arc::new(RunTree::new(&order.run_id, pid, cgroup)),
            pipe,
        }),
        Err(error) => {
            if let Some(cgroup) = cgroup {
                cgroup.remove();
            }
            Err(why_not(&order.program, &dir, other, &error))
        }
    }
}
fn why_not(program: &str, dir: &Path, user: Option<&User>, error: &io::Error) -> String {
    let who = user.map_or(String::new(), |user| format!(" as `{}`", user.name));
    match error.kind() {
        io::ErrorKind::NotFound if program.contains('/') => format!("there is no program `{program}`"),
        io::ErrorKind::NotFound => format!("there is no program `{program}` in PATH"),
        _ => format!("could not start `{program}`{who} in {}: {error}", dir.display()),
    }
}

/// What a run finds in its environment. The job's own comes last, but for what only the agent sets.
fn environment(order: &Order, user: Option<&User>, other: bool) -> Vec<(String, String)> {
    let own = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let path = match (own("PATH"), user) {
        (Some(path), _) if !other => path,
        (_, Some(user)) if user.uid != 0 => "/usr/local/bin:/usr/bin:/bin".to_owned(),
        _ => "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let name = user.map_or_else(|| os::own_uid().to_string(), |user| user.name.clone());
    let mut env = vec![
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), user.map_or("/".to_owned(), |user| text(&user.home))),
        ("USER".to_owned(), name.clone()),
        ("LOGNAME".to_owned(), name),
        (
            "SHELL".to_owned(),
            user.map_or("/bin/sh".to_owned(), |user| text(&user.shell)),
        ),
        ("LANG".to_owned(), own("LANG").unwrap_or_else(|| "C.UTF-8".to_owned())),
    ];
    env.extend(own("TZ").map(|tz| ("TZ".to_owned(), tz)));
    env.extend(order.env.iter().cloned());
    env.extend([
        ("AGENT_TASK_ID".to_owned(), order.task_id.clone()),
        ("AGENT_RUN_ID".to_owned(), order.run_id.clone()),
        ("AGENT_FIRE_TIME".to_owned(), order.fire_time.clone()),
    ]);
    env
}

/// Until nobody holds the other end, or the run is over and nothing comes.
async fn read(pipe: OwnedFd, output: Output, mut over: watch::Receiver<bool>) {
    let Ok(pipe) = Receiver::from_owned_fd(pipe) else {
        return;
    };
    let silent = async move {
        if over.wait_for(|over| *over).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let mut silent = std::pin::pin!(silent);
    let (mut buffer, mut last_call) = (vec![0; READ], false);
    loop {
        let ready = tokio::select! {
            biased;
            ready = pipe.readable() => ready.is_ok(),
            () = &mut silent, if !last_call => {
                last_call = true;
                continue;
            }
            () = tokio::time::sleep(LAST_OUTPUT), if last_call => false,
        };
        if !ready {
            return;
        }
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                match &output {
                    Output::Kept(capture) => capture.lock().push(&buffer[..n]),
                    Output::Passed(to) => {
                        if to.send(buffer[..n].to_vec()).await.is_err() {
                            return; // nobody takes it any more
                        }
                    }
                }
                tokio::task::yield_now().await; // who writes without end must not have the thread for himself
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}

/// Waits until the child has ended. It stays a zombie.
async fn exit_of(pid: i32) -> Exit {
    let pidfd = os::exit_fd(pid);
    // SAFETY: an OwnedFd is its descriptor's owner, and this one is moved in and not taken out.
    let pidfd = pidfd.and_then(|fd| unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }.ok());
    loop {
        match os::peek_exit(pid) {
            Ok(Some(exit)) => return exit,
            Ok(None) => {}
            Err(_) => return Exit::Code(-1), // not ours any more: somebody else has waited for it
        }
        match &pidfd {
            Some(fd) => {
                if let Ok(mut ready) = fd.readable().await {
                    ready.clear_ready();
                }
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await, // a kernel before 5.3
        }
    }
}

#[cfg(test)]
mod tests;
