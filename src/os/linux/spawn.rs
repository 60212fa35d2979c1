//! Starts a program as the leader of a session of its own, as a user, with one pipe for all it says. All that may wait for a
//! directory service or a disk is in here: call it where waiting is allowed.
use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{libc, unistd};

use super::proc_table::expect_child;

/// Somebody that a program can be run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
    /// All that he is in.
    pub groups: Vec<u32>,
}
impl User {
    /// By name. May ask a directory service.
    pub fn named(name: &str) -> io::Result<Option<Self>> {
        unistd::User::from_name(name)?.map(Self::whole).transpose()
    }
    /// Whoever runs this process.
    pub fn own() -> io::Result<Option<Self>> {
        unistd::User::from_uid(unistd::geteuid())?.map(Self::whole).transpose()
    }
    fn whole(user: unistd::User) -> io::Result<Self> {
        let name = CString::new(user.name.as_bytes())?;
        let groups = unistd::getgrouplist(&name, user.gid)?;
        Ok(Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
            shell: user.shell,
            groups: groups.into_iter().map(unistd::Gid::as_raw).collect(),
        })
    }
}

pub struct Program<'a> {
    /// With or without a path; looked for in the PATH of `env`.
    pub program: &'a OsStr,
    pub args: &'a [String],
    /// All of it: nothing is inherited.
    pub env: &'a [(String, String)],
    pub dir: &'a Path,
    /// Become that user; none: stay who we are.
    pub user: Option<&'a User>,
    /// Where stdout and stderr go.
    pub output: OwnedFd,
    /// `cgroup.procs` of the cgroup to enter.
    pub cgroup: Option<&'a File>,
    /// Hears the new process's pid before it can wait for anything.
    pub pid: OwnedFd,
}

/// Answers the pid. The child is expected to be waited for with `peek_exit` and `reap`.
pub fn spawn(program: Program<'_>) -> io::Result<i32> {
    let mut command = Command::new(program.program);
    command
        .args(program.args)
        .env_clear()
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(program.output.try_clone()?)
        .stderr(program.output);
    let dir = CString::new(program.dir.as_os_str().as_bytes())?;
    let become_user = program.user.map(|user| (user.uid, user.gid, user.groups.clone()));
    let (door, pid) = (program.cgroup.map(AsRawFd::as_raw_fd), program.pid);
    let check = move || -> io::Result<()> {
        let done = |result: libc::c_long| match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        // SAFETY: runs between fork and exec, so only what is safe there is called: system calls on numbers and on memory that was
        // made before. The descriptors are open in the parent and closed by exec.
        unsafe {
            let own = libc::getpid().to_ne_bytes();
            done(libc::write(pid.as_raw_fd(), own.as_ptr().cast(), own.len()) as libc::c_long)?;
            if let Some(door) = door {
                done(libc::write(door, b"0".as_ptr().cast(), 1) as libc::c_long)?;
            }
            done(libc::setsid().into())?;
            if let Some((uid, gid, groups)) = &become_user {
                done(libc::setgroups(groups.len(), groups.as_ptr()).into())?;
                done(libc::setgid(*gid).into())?;
                done(libc::setuid(*uid).into())?;
            }
            done(libc::chdir(dir.as_ptr()).into())?;
            libc::umask(0o022);
            // What we ignore for ourselves, it shall not.
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            // Whatever a library left open for our children is not for them; a kernel before 5.11 cannot.
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                4, /* CLOSE_RANGE_CLOEXEC */
            );
        }
        Ok(())
    };
    // SAFETY: see inside.
    unsafe { command.pre_exec(check) };
    let child = command.spawn()?;
    let pid = child.id() as i32; // waited for by pid: dropping the handle leaves the child as it is
    expect_child(pid);
    Ok(pid)
}
