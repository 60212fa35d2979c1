//! Starts a program as the leader of a session of its own, as a user, with one pipe for all it says. All that may wait for a
//! directory service or a disk is in here: call it where waiting is allowed.
//!
//! The child shares our memory until its exec, as that of posix_spawn(3) does, which knows no cgroups: copied page tables cost
//! milliseconds in an agent with 100,000 jobs, and a fault for each page that is written afterwards. (One that becomes another user has
//! a copy all the same: what is his must not have a hand in our memory, not for a moment.) And it is born in its cgroup where the kernel
//! can do that (5.7): to move a process into one waits for every CPU of the machine, 5 ms and more.
use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, OsStr, c_char},
    fs::File,
    io,
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    sync::atomic::{AtomicI32, Ordering::Relaxed},
};

use nix::{
    errno::Errno,
    libc,
    sched::CloneFlags,
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
        signal::{SigSet, SigmaskHow, sigprocmask},
        wait::waitpid,
    },
    unistd,
};

use super::{cgroup::Door, proc_table::expect_child};

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
    /// All of it: nothing is inherited. The last of a name counts.
    pub env: &'a [(String, String)],
    pub dir: &'a Path,
    /// Become that user; none: stay who we are.
    pub user: Option<&'a User>,
    /// Where stdout and stderr go.
    pub output: OwnedFd,
    /// Of the cgroup to start in.
    pub cgroup: Option<&'a Door>,
    /// Hears the new process's pid before it can wait for anything.
    pub pid: OwnedFd,
}

/// Answers the pid. The child is expected to be waited for with `peek_exit` and `reap`.
pub fn spawn(program: Program<'_>) -> io::Result<i32> {
    let mut start = Start::new(&program)?;
    let born_in = program.cgroup.and_then(|door| start.clone_into(door.dir.as_raw_fd()));
    let pid = match born_in {
        Some(pid) => pid,
        None => {
            start.door = program.cgroup.map(|door| door.procs.as_raw_fd());
            start.clone()?
        }
    };
    match start.failed.get().load(Relaxed) {
        0 => {
            expect_child(pid);
            Ok(pid)
        }
        errno => {
            let _ = waitpid(unistd::Pid::from_raw(pid), None);
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// All that the child needs, made before it is there: it must not allocate.
struct Start {
    candidates: Vec<Candidate>,
    args: Strings,
    env: Strings,
    dir: CString,
    user: Option<(libc::uid_t, libc::gid_t, Vec<libc::gid_t>)>,
    null: File,
    output: RawFd,
    pid: RawFd,
    /// `cgroup.procs`, if it still has to go in.
    door: Option<RawFd>,
    /// Why the child could not become the program; 0: it did.
    failed: Shared,
}
/// A file that may be the program.
struct Candidate {
    path: CString,
    /// What a shell is started with if the file is a script that names no interpreter.
    script: Strings,
}
/// A number that a child sees too which has a copy of all else.
struct Shared(NonNull<AtomicI32>);
impl Shared {
    /// It becomes a page, whatever is asked for.
    const LENGTH: NonZeroUsize = NonZeroUsize::MIN;
    fn new() -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that nobody has.
        let made = unsafe { mmap_anonymous(None, Self::LENGTH, access, MapFlags::MAP_SHARED) }?;
        Ok(Self(made.cast()))
    }
    fn get(&self) -> &AtomicI32 {
        // SAFETY: mapped until the drop, aligned to a page, and zeroed, which is an atomic 0.
        unsafe { self.0.as_ref() }
    }
}
impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the child has its program, or is gone.
        let _ = unsafe { munmap(self.0.cast(), Self::LENGTH.get()) };
    }
}
/// As exec wants them: pointers, and a null.
struct Strings {
    pointers: Vec<*const c_char>,
    _texts: Vec<CString>,
}
impl Strings {
    fn new(texts: Vec<CString>) -> Self {
        let pointers = texts.iter().map(|text| text.as_ptr());
        Self {
            pointers: pointers.chain([ptr::null()]).collect(),
            _texts: texts,
        }
    }
}
const SHELL: &CStr = c"/bin/sh";

impl Start {
    fn new(program: &Program<'_>) -> io::Result<Self> {
        let env = program.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let env = env.collect::<BTreeMap<_, _>>();
        let args = program.args.iter().map(|arg| CString::new(arg.as_str()));
        let args = args.collect::<Result<Vec<_>, _>>()?;
        let paths = match program.program.as_bytes().contains(&b'/') {
            true => vec![PathBuf::from(program.program)],
            false => {
                let path = env.get("PATH").copied().unwrap_or("/usr/bin:/bin");
                path.split(':')
                    .map(|dir| Path::new(dir).join(program.program))
                    .collect()
            }
        };
        let candidate = |path: PathBuf| -> io::Result<Candidate> {
            let path = CString::new(path.as_os_str().as_bytes())?;
            let script = [SHELL.to_owned(), path.clone()].into_iter().chain(args.iter().cloned());
            Ok(Candidate {
                script: Strings::new(script.collect()),
                path,
            })
        };
        let candidates = paths.into_iter().map(candidate).collect::<io::Result<_>>()?;
        let name = CString::new(program.program.as_bytes())?;
        let env = env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        Ok(Self {
            candidates,
            args: Strings::new([name].into_iter().chain(args.iter().cloned()).collect()),
            env: Strings::new(env.collect::<Result<_, _>>()?),
            dir: CString::new(program.dir.as_os_str().as_bytes())?,
            user: program.user.map(|user| (user.uid, user.gid, user.groups.clone())),
            null: File::open("/dev/null")?,
            output: program.output.as_raw_fd(),
            pid: program.pid.as_raw_fd(),
            door: None,
            failed: Shared::new()?,
        })
    }

    fn flags(&self) -> CloneFlags {
        match self.user {
            None => CloneFlags::CLONE_VFORK | CloneFlags::CLONE_VM,
            Some(_) => CloneFlags::CLONE_VFORK,
        }
    }
    /// Starts the child in that cgroup; none: it cannot be done here. Returns when the program runs, or could not.
    #[cfg(target_arch = "x86_64")]
    fn clone_into(&self, cgroup: RawFd) -> Option<i32> {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        extern "C" fn child(start: &Start) -> ! {
            start.become_program()
        }
        // SAFETY: numbers; zero stands for what is not asked for.
        let mut how = unsafe { std::mem::zeroed::<libc::clone_args>() };
        how.flags = self.flags().bits() as u64 | CLONE_INTO_CGROUP;
        how.exit_signal = libc::SIGCHLD as u64;
        how.cgroup = cgroup as u64;
        let mut result: libc::c_long = libc::SYS_clone3;
        let _masked = Masked::all();
        // SAFETY: the child starts on our stack, below all that is in use, and never comes back up: it calls a function that does not
        // return. Until it is another program or gone, the kernel holds this thread; then its registers are as they were. See
        // `become_program` for what the child may do.
        unsafe {
            std::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inout("rax") result,
                in("rdi") &raw const how,
                in("rsi") size_of::<libc::clone_args>(),
                in("r12") self,
                in("r13") child as extern "C" fn(&Start) -> !,
                out("rcx") _,
                out("r11") _,
            );
        }
        i32::try_from(result).ok().filter(|pid| *pid > 0)
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn clone_into(&self, _: RawFd) -> Option<i32> {
        None
    }
    /// Starts the child, which goes into its cgroup by itself. Returns when the program runs, or could not.
    fn clone(&self) -> io::Result<i32> {
        let mut stack = vec![0; 64 << 10];
        let child = Box::new(|| self.become_program());
        let _masked = Masked::all();
        // SAFETY: the stack outlives the child's use of it, for this thread is held until then. See `become_program`.
        let pid = unsafe { nix::sched::clone(child, &mut stack, self.flags(), Some(libc::SIGCHLD)) }?;
        Ok(pid.as_raw())
    }

    /// In the child, with the parent's memory under its feet and its thread asleep: system calls only, on numbers and on memory that was
    /// made before. No handler of the parent's may run in here: signals are blocked until they are all what a program expects.
    fn become_program(&self) -> ! {
        let failed = match self.prepare() {
            Ok(()) => self.exec(),
            Err(errno) => errno,
        };
        self.failed.get().store(failed, Relaxed);
        // SAFETY: ends the child at once, without a look at what belongs to the parent.
        unsafe { libc::_exit(127) }
    }
    /// The error is a number of the system, be it one that nobody has a name for.
    fn prepare(&self) -> Result<(), i32> {
        let done = |result: libc::c_long| match result {
            -1 => Err(Errno::last_raw()),
            _ => Ok(()),
        };
        // SAFETY: system calls on what `self` owns. Raw ones where the C library would do more: remember the pid, tell the parent's threads
        // of another user, take a lock for a signal.
        unsafe {
            let own = (libc::syscall(libc::SYS_getpid) as i32).to_ne_bytes();
            done(libc::write(self.pid, own.as_ptr().cast(), own.len()) as libc::c_long)?;
            if let Some(door) = self.door {
                done(libc::write(door, b"0".as_ptr().cast(), 1) as libc::c_long)?;
            }
            for (from, to) in [(self.null.as_raw_fd(), 0), (self.output, 1), (self.output, 2)] {
                done(libc::dup2(from, to).into())?;
            }
            done(libc::setsid().into())?;
            if let Some((uid, gid, groups)) = &self.user {
                done(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
                done(libc::syscall(libc::SYS_setgid, *gid))?;
                done(libc::syscall(libc::SYS_setuid, *uid))?;
            }
            done(libc::chdir(self.dir.as_ptr()).into())?;
            libc::umask(0o022);
            // Neither what we handle nor what we ignore is for it. (SIGKILL and SIGSTOP cannot be set, and need not be.)
            let default = [0_u64; 4]; // the kernel's `struct sigaction`
            for signal in 1..=64 {
                libc::syscall(
                    libc::SYS_rt_sigaction,
                    signal,
                    default.as_ptr(),
                    ptr::null::<u64>(),
                    size_of::<u64>(),
                );
            }
            // Whatever a library left open for our children is not for them; a kernel before 5.11 cannot.
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                4, /* CLOSE_RANGE_CLOEXEC */
            );
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(|errno| errno as i32)
    }
    /// As execvp(3) looks for it, which knows the parent's PATH only. Comes back with what failed.
    fn exec(&self) -> i32 {
        let mut failed = libc::ENOENT;
        let env = self.env.pointers.as_ptr();
        for candidate in &self.candidates {
            // SAFETY: all of it ends with a null and lives on.
            unsafe { libc::execve(candidate.path.as_ptr(), self.args.pointers.as_ptr(), env) };
            match Errno::last_raw() {
                libc::ENOEXEC => {
                    // SAFETY: the same.
                    unsafe { libc::execve(SHELL.as_ptr(), candidate.script.pointers.as_ptr(), env) };
                    return Errno::last_raw();
                }
                // One that may not be run hides none further on, but is what is said in the end.
                errno @ (libc::EACCES
                | libc::ENOENT
                | libc::ENOTDIR
                | libc::ENAMETOOLONG
                | libc::ESTALE
                | libc::ENODEV
                | libc::ETIMEDOUT) => {
                    if failed != libc::EACCES {
                        failed = errno;
                    }
                }
                errno => return errno,
            }
        }
        failed
    }
}

/// While it lives this thread hears no signal.
struct Masked(SigSet);
impl Masked {
    fn all() -> Self {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        Self(before.unwrap_or_else(|_| SigSet::empty())) // the call cannot fail with these
    }
}
impl Drop for Masked {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::PermissionsExt};

    use nix::fcntl::OFlag;

    use super::*;
    use crate::os::{Cgroup, Exit, linux::proc_table::forget_child};

    /// How a start may be made.
    #[derive(Clone, Copy, PartialEq)]
    enum Way {
        Plain,
        BornIn,
        MovedIn,
    }
    /// What the program said, and how it ended.
    fn run(way: Way, program: &str, args: &[&str], path: &str, user: Option<&User>) -> io::Result<(String, Exit)> {
        let (from, output) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (_hear, pid) = unistd::pipe2(OFlag::O_CLOEXEC)?;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let cgroup = match way {
            Way::Plain => None,
            _ => Some(Cgroup::make(&format!("{:?}", std::thread::current().id())).expect("root may make one")),
        };
        let env = [("PATH", "/nowhere"), ("PATH", path), ("X", "y")].map(|(name, value)| (name.into(), value.into()));
        let program = Program {
            program: program.as_ref(),
            args: &args,
            env: &env,
            dir: Path::new("/"),
            user,
            output,
            cgroup: cgroup.as_ref().map(|(_, door)| door),
            pid,
        };
        let spawned = match way {
            Way::MovedIn => {
                let mut start = Start::new(&program)?;
                start.door = program.cgroup.map(|door| door.procs.as_raw_fd());
                let pid = start.clone()?;
                assert_eq!(start.failed.get().load(Relaxed), 0);
                drop(program);
                Ok(pid)
            }
            _ => spawn(program),
        };
        let ended = spawned.and_then(|pid| {
            let mut said = String::new();
            File::from(from).read_to_string(&mut said)?;
            let status = waitpid(unistd::Pid::from_raw(pid), None)?;
            forget_child(pid);
            let exit = match status {
                nix::sys::wait::WaitStatus::Exited(_, code) => Exit::Code(code),
                other => panic!("{other:?}"),
            };
            Ok((said, exit))
        });
        if let Some((cgroup, _)) = cgroup {
            assert!(cgroup.remove());
        }
        ended
    }

    #[test]
    fn every_way_starts_the_same() {
        let nobody = User::named("nobody").unwrap().expect("every system has one");
        let can_make = Cgroup::make("probe").map(|(cgroup, _)| cgroup.remove()).is_some();
        let ways = [Way::Plain, Way::BornIn, Way::MovedIn];
        for way in ways.into_iter().filter(|way| *way == Way::Plain || can_make) {
            for user in [None, Some(&nobody)] {
                if user.is_some() && !crate::os::is_root() {
                    continue; // there is no other user for us
                }
                let said = |program: &str, args: &[&str]| run(way, program, args, "/usr/bin:/bin", user).unwrap();
                let said = |program: &str, args: &[&str]| {
                    let (said, exit) = said(program, args);
                    assert_eq!(exit, Exit::Code(0), "{program}: {said}");
                    said
                };
                assert_eq!(said("cat", &["/proc/self/environ"]), "PATH=/usr/bin:/bin\0X=y\0");
                assert_eq!(said("pwd", &[]), "/\n");
                assert_eq!(said("ls", &["/proc/self/fd"]), "0\n1\n2\n3\n", "the last is its own");
                assert_eq!(said("cat", &[]), "", "nothing to read");
                let status = said("cat", &["/proc/self/status"]);
                let uid = user.map_or(crate::os::own_uid(), |user| user.uid);
                for line in [
                    format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
                    "Umask:\t0022".into(),
                    "SigBlk:\t0000000000000000".into(),
                    "SigIgn:\t0000000000000000".into(),
                ] {
                    assert!(status.lines().any(|found| found == line), "{line} in {status}");
                }
                let cgroup = said("cat", &["/proc/self/cgroup"]);
                assert_eq!(cgroup.contains("/luffly-run-"), way != Way::Plain, "{cgroup}");
            }
        }
        assert_eq!(
            run(Way::Plain, "sh", &["-c", "exit 3"], "/bin", None).unwrap().1,
            Exit::Code(3)
        );
    }
    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        std::fs::create_dir(dir.path().join("a")).unwrap();
        let script = file("bare", "echo bare $0 $1\n", 0o755);
        file("a/hidden", "echo never\n", 0o644);
        file("hidden", "#!/bin/sh\necho found\n", 0o755);
        file("a/alone", "", 0o644);
        let path = format!("/nowhere:{script}:{0}/a:{0}:/bin", dir.path().display());
        let said = |program: &str| {
            let ended = run(Way::Plain, program, &["one"], &path, None);
            ended.map(|(said, _)| said).map_err(|error| error.kind())
        };
        // A script that names no interpreter is the shell's.
        assert_eq!(said("bare"), Ok(format!("bare {script} one\n")));
        assert_eq!(said(&script), Ok(format!("bare {script} one\n")));
        assert_eq!(said("hidden"), Ok("found\n".into()));
        assert_eq!(said("alone"), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(said("no-such"), Err(io::ErrorKind::NotFound));
        assert_eq!(said("/no/such"), Err(io::ErrorKind::NotFound));
        assert_eq!(said(&format!("{script}/x")), Err(io::ErrorKind::NotADirectory));
        assert_eq!(said("a\0b"), Err(io::ErrorKind::InvalidInput));
    }
    /// The child is at work in this process's memory: whoever allocates, is signalled, or starts another meanwhile sees nothing of it.
    #[test]
    fn many_at_once() {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    for n in 0..40 {
                        let word = format!("{thread} {n} {}", "x".repeat(n * 50));
                        let program = if n % 8 == 7 { "no-such" } else { "echo" };
                        match run(Way::Plain, program, &[&word], "/usr/bin:/bin", None) {
                            Ok((said, exit)) => assert_eq!((said, exit), (word + "\n", Exit::Code(0))),
                            Err(error) => assert_eq!((program, error.kind()), ("no-such", io::ErrorKind::NotFound)),
                        }
                    }
                });
            }
        });
    }
}
