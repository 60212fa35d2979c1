//! The life of the real process: start, status, stop, restart; locks and pid files; signals; exit codes; what the parent says. And the
//! commands that ask a running agent, before an agent that is played.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use luffly_agent::os::{Lock, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// More than any step here takes; a machine under load is slow.
const LONG: Duration = Duration::from_secs(30);

/// What a command said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}
impl Said {
    #[track_caller]
    fn is(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A place for one agent. Whatever still runs there at the end is ended.
struct Home {
    root: tempfile::TempDir,
}
impl Home {
    fn new() -> Self {
        Self::with("[http]\naddress = \"off\"\n")
    }
    /// `rest`: settings besides the data dir and a pipeline that has nothing to do.
    fn with(rest: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Self { root };
        home.configure(rest);
        home
    }
    fn configure(&self, rest: &str) {
        let text = format!(
            "[agent]\ndata_dir = {:?}\n{rest}\n[[pipeline]]\nname = \"idle\"\ninput = {{ plugin = \"file\", paths = [\"/nowhere/*.log\"] }}\n\
             outputs = [{{ plugin = \"null\" }}]\n",
            self.data()
        );
        fs::write(self.config(), text).unwrap();
    }
    fn config(&self) -> PathBuf {
        self.root.path().join("agent.toml")
    }
    fn data(&self) -> PathBuf {
        self.root.path().join("state")
    }
    fn pid_file(&self) -> PathBuf {
        self.data().join("agent.pid")
    }
    fn pid(&self) -> i32 {
        fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap()
    }
    fn last_exit(&self) -> Value {
        serde_json::from_slice(&fs::read(self.data().join("last-exit.json")).unwrap()).unwrap()
    }
    fn log(&self) -> String {
        fs::read_to_string(self.data().join("logs/agent.log")).unwrap_or_default()
    }
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(words.split_whitespace());
        command.arg("-config").arg(self.config());
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command
    }
    /// Runs `agent WORDS -config …` to its end.
    fn agent(&self, words: &str) -> Said {
        finish(self.command(words))
    }
    /// `start --foreground`, ready.
    fn foreground(&self, stdout: Stdio) -> Child {
        let log = self.root.path().join("foreground.log");
        let child = self
            .command(&format!("start --foreground --set log.file={}", log.display()))
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("ready", || {
            fs::read_to_string(&log)
                .unwrap_or_default()
                .contains("\"msg\":\"ready\"")
        });
        child
    }
}
impl Drop for Home {
    fn drop(&mut self) {
        if let Ok(Some(holder)) = luffly_agent::agent::running(&self.data())
            && holder.pid != std::process::id() as i32
            && let Some(process) = Process::open(holder)
        {
            let _ = process.signal(Signal::SIGKILL);
            process.wait(LONG);
        }
    }
}

/// Waits for the end of the process and of its outputs: a daemon that kept them open would be noticed here.
#[track_caller]
fn finish(mut command: Command) -> Said {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        })
    }
    let (out, err) = (
        reader(child.stdout.take().unwrap()),
        reader(child.stderr.take().unwrap()),
    );
    let status = ended(&mut child);
    until("end of its outputs", || out.is_finished() && err.is_finished());
    Said {
        code: status.code().unwrap_or(-1),
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}
#[track_caller]
fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    until("end of the process", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}
#[track_caller]
#[expect(
    clippy::disallowed_methods,
    reason = "another process, which cannot call us: look, and look again"
)]
fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let limit = Instant::now() + LONG;
    while !happens() {
        assert!(Instant::now() < limit, "waited in vain for: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}
fn lives(pid: i32) -> bool {
    // A zombie has ended; whoever adopted it may be slow to look.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}
fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn start_status_stop() {
    let home = Home::new();
    home.agent("status").is(3);
    assert!(home.agent("stop").is(3).err.contains("no agent runs on"));

    let started = home.agent("start").is(0);
    let pid = home.pid();
    assert!(lives(pid));
    assert_eq!(started.out, format!("agent started; pid={pid} http=off\n"));
    assert_eq!(started.err, "");
    assert_eq!(mode(home.data()), 0o700);
    assert_eq!(mode(home.data().join("logs")), 0o700);
    for name in [
        "lock",
        "version",
        "agent.sock",
        "instance",
        "admin.token",
        "logs/agent.log",
    ] {
        assert_eq!(mode(home.data().join(name)), 0o600, "{name}");
    }
    assert_eq!(
        mode(home.pid_file()),
        0o644,
        "others may look for us by it, if it is elsewhere"
    );
    assert_eq!(fs::read_to_string(home.data().join("version")).unwrap(), "1\n");
    assert_eq!(
        fs::read_to_string(home.data().join("admin.token"))
            .unwrap()
            .trim()
            .len(),
        64
    );
    let null = |fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap() == Path::new("/dev/null");
    assert!(null("0") && null("1"));
    let status = home.agent("status").is(0);
    assert!(
        status.out.contains(&format!("running   pid {pid}, ")) && status.out.contains("health    ok"),
        "{status:?}"
    );
    assert_eq!(
        home.agent("log-level debug --for 5m").is(0).out,
        "log level is debug for 5m\n"
    );
    assert!(home.agent("status").is(0).out.contains("log level debug"));
    home.agent("files").is(0);

    let stopped = home.agent("stop").is(0);
    assert!(stopped.out.starts_with("agent stopped; code=0 why="), "{stopped:?}");
    assert!(!lives(pid));
    for name in ["agent.pid", "agent.sock"] {
        assert!(!home.data().join(name).exists(), "{name}");
    }
    let last = home.last_exit();
    assert_eq!((&last["code"], &last["pid"]), (&json!(0), &json!(pid)));
    assert_eq!(last["version"], luffly_agent::VERSION);
    assert!(last["ended"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    for line in home.log().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(
            record["ts"].is_string() && record["level"].is_string() && record["msg"].is_string(),
            "{line}"
        );
    }
    assert!(home.log().contains("\"msg\":\"stopped\""), "flushed to the last word");
    let status = home.agent("status").is(3);
    assert!(
        status.out.contains("not running") && status.out.contains("code 0"),
        "{status:?}"
    );
    home.agent("stop").is(3);
}

#[test]
fn a_second_agent_is_refused_with_the_pid_of_the_first() {
    let home = Home::new();
    home.agent("start").is(0);
    let pid = home.pid();
    let elsewhere = home.root.path().join("other.pid");
    for words in ["start".to_owned(), format!("start --pid-file {}", elsewhere.display())] {
        let refused = home.agent(&words).is(1);
        assert_eq!(
            refused.err,
            format!("agent: another agent (pid {pid}) runs on {}\n", home.data().display())
        );
        assert_eq!(refused.out, "");
    }
    assert!(!elsewhere.exists());
    // Another data dir, the same pid file.
    let other = Home::new();
    let refused = other
        .agent(&format!("start --pid-file {}", home.pid_file().display()))
        .is(1);
    assert!(
        refused.err.contains(&format!("another process holds it, pid {pid}")),
        "{refused:?}"
    );
    assert_eq!(home.pid(), pid, "untouched");
    home.agent("stop").is(0);
    // What the refused one left behind does not keep it from starting.
    other.agent("start").is(0);
    other.agent("stop").is(0);
}

/// Some other process, ended when the test ends in whatever way.
struct Stranger(Child);
impl Stranger {
    fn new() -> Self {
        let mut sleep = Command::new("sleep");
        sleep
            .arg("600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(sleep.spawn().unwrap())
    }
}
impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reused_pid_is_neither_taken_for_the_agent_nor_hit() {
    let home = Home::new();
    home.agent("start").is(0);
    home.agent("stop").is(0);
    let mut stranger = Stranger::new();
    for name in ["agent.pid", "lock"] {
        fs::write(home.data().join(name), format!("{}\n", stranger.0.id())).unwrap();
    }
    home.agent("stop --force").is(3);
    let status = home.agent("status").is(3);
    assert!(status.out.contains("without a word"), "{status:?}");
    assert!(stranger.0.try_wait().unwrap().is_none(), "not hit");
    home.agent("start").is(0);
    assert_ne!(home.pid(), stranger.0.id() as i32);
    home.agent("stop").is(0);
}

#[test]
fn after_kill_9_the_next_start_takes_over() {
    let home = Home::new();
    home.agent("start").is(0);
    let first = home.pid();
    let instance = fs::read(home.data().join("instance")).unwrap();
    let token = fs::read(home.data().join("admin.token")).unwrap();
    signal(first, Signal::SIGKILL);
    until("its death", || !lives(first));
    assert!(
        home.pid_file().exists() && home.data().join("agent.sock").exists(),
        "left behind"
    );
    assert!(home.agent("status").is(3).out.contains("without a word"));
    home.agent("stop").is(3);
    home.agent("start").is(0);
    assert_ne!(home.pid(), first);
    assert_eq!(
        fs::read(home.data().join("instance")).unwrap(),
        instance,
        "the same installation"
    );
    assert_eq!(fs::read(home.data().join("admin.token")).unwrap(), token);
    home.agent("stop").is(0);
}

#[test]
fn a_start_that_fails_is_told_by_the_parent_with_its_code() {
    let home = Home::with("[http]\naddress = \"off\"\n[limits]\nmemory = \"lots\"\n");
    let refused = home.agent("start").is(78);
    assert!(
        refused.err.contains("limits.memory") && refused.err.contains("lots"),
        "{refused:?}"
    );
    assert!(!home.data().exists(), "refused before anything was made");

    // From here on it is the child in the background that finds out.
    home.configure("[http]\naddress = \"off\"\n");
    fs::create_dir(home.data()).unwrap();
    fs::write(home.data().join("letter"), "dear").unwrap();
    fs::set_permissions(home.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = home.agent("start").is(78);
    assert!(
        refused.err.contains("holds other files and is open to other users"),
        "{refused:?}"
    );
    assert_eq!(mode(home.data()), 0o755);

    fs::set_permissions(home.data(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.data().join("version"), "2\n").unwrap();
    let refused = home.agent("start").is(78);
    assert!(
        refused.err.contains("has version 2, written by another release"),
        "{refused:?}"
    );
    assert!(!home.pid_file().exists());
    home.agent("version --check-state").is(78);
    fs::write(home.data().join("version"), "1\n").unwrap();
    assert!(home.agent("version --check-state").is(0).out.contains("can be read"));
    home.agent("start").is(0);
    home.agent("stop").is(0);
}

#[test]
fn an_explicit_port_in_use_is_an_error_and_the_default_one_a_warning() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let home = Home::with(&format!("[http]\naddress = \"{address}\"\n"));
    for words in ["start", "start --foreground --log-level=critical"] {
        let refused = home.agent(words).is(1);
        assert_eq!(refused.out, "");
        if words == "start" {
            assert!(
                refused
                    .err
                    .starts_with(&format!("agent: could not listen on http address {address}: ")),
                "{refused:?}"
            );
        }
        assert!(!home.pid_file().exists() && !home.data().join("agent.sock").exists());
        assert_eq!(home.last_exit()["code"], 1);
        assert!(home.last_exit()["why"].as_str().unwrap().contains(&address.to_string()));
    }
    drop(taken);
    assert!(home.agent("start").is(0).out.contains(&format!("http={address}")));
    home.agent("stop").is(0);

    // If we cannot have it, somebody else has it: just as good.
    let _default = TcpListener::bind("0.0.0.0:10630");
    let home = Home::with("");
    assert!(home.agent("start").is(0).out.contains("http=off"));
    assert!(
        home.log().contains("no http, its default address cannot be had"),
        "{}",
        home.log()
    );
    home.agent("stop").is(0);
}

/// An agent whose output takes nothing any more: it has much to deliver and nobody reads.
fn stuck(drain: &str) -> (Home, Child) {
    let home = Home::new();
    let lines = home.root.path().join("lines.log");
    fs::write(&lines, "a line that waits\n".repeat(100_000)).unwrap();
    let text = format!(
        "[agent]\ndata_dir = {:?}\ndrain = \"{drain}\"\n[http]\naddress = \"off\"\n[[pipeline]]\nname = \"stuck\"\n\
         input = {{ plugin = \"file\", paths = [{lines:?}] }}\noutputs = [{{ plugin = \"stdout\" }}]\n",
        home.data()
    );
    fs::write(home.config(), text).unwrap();
    let mut child = home.foreground(Stdio::piped());
    // The first byte is here, so the first write is under way; it is larger than what the pipe takes.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    (home, child)
}

/// An agent that copies `in.log` to `out/x.log`.
fn copying(retry: &str) -> Home {
    let home = Home::new();
    let at = |name: &str| home.root.path().join(name);
    let text = format!(
        "[agent]\ndata_dir = {:?}\ndrain = \"60s\"\n[http]\naddress = \"off\"\n[[pipeline]]\nname = \"copy\"\n\
         input = {{ plugin = \"file\", paths = [{:?}] }}\noutputs = [{{ plugin = \"logr\", path = {:?}{retry} }}]\n",
        home.data(),
        at("in.log"),
        at("out/x.log"),
    );
    fs::write(home.config(), text).unwrap();
    home
}

#[test]
fn a_stop_delivers_what_was_read_and_the_next_start_goes_on_from_there() {
    let home = copying("");
    let (from, to) = (home.root.path().join("in.log"), home.root.path().join("out/x.log"));
    fs::create_dir(to.parent().unwrap()).unwrap();
    let mut all = String::new();
    for round in 0..3 {
        let new = (0..20_000)
            .map(|n| format!("round {round} line {n}\n"))
            .collect::<String>();
        all += &new;
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&from)
            .unwrap()
            .write_all(new.as_bytes())
            .unwrap();
        home.agent("start").is(0);
        home.agent("stop").is(0); // wherever it is by then
        let there = fs::read_to_string(&to).unwrap_or_default();
        assert!(
            all.starts_with(&there),
            "round {round}: nothing twice, torn or out of order"
        );
        let last = home.last_exit();
        assert_eq!((&last["code"], &last["counts"]["lost"]), (&json!(0), &json!(0)));
    }
    home.agent("start").is(0);
    until("all of it", || {
        fs::read_to_string(&to).unwrap_or_default().len() >= all.len()
    });
    home.agent("stop").is(0);
    assert!(fs::read_to_string(&to).unwrap() == all, "each line once");
}

#[test]
fn a_stop_does_not_wait_for_a_backoff() {
    let home = copying(", retry = { first = \"10m\", most = \"10m\" }");
    fs::write(home.root.path().join("in.log"), "one\ntwo\n").unwrap();
    let dir = home.root.path().join("out");
    fs::write(&dir, "in the way").unwrap();
    home.agent("start").is(0);
    until("a failed write", || home.log().contains("output failed, trying again"));
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    let asked = Instant::now();
    let stopped = home.agent("stop --timeout 50s").is(0);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert!(stopped.out.contains("delivered=2"), "{stopped:?}");
    assert_eq!(fs::read_to_string(dir.join("x.log")).unwrap(), "one\ntwo\n");
}

/// Bare `agent` between two pipes.
fn between_pipes() -> Child {
    Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["-http-address", "off"])
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn bare_it_copies_and_leaves_at_the_end_of_its_input() {
    let mut agent = between_pipes();
    let lines = (0..50_000).map(|n| format!("line {n}\n")).collect::<String>();
    let (mut to, all) = (agent.stdin.take().unwrap(), lines.clone());
    let writer = thread::spawn(move || to.write_all(all.as_bytes()));
    let mut out = String::new();
    agent.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    writer.join().unwrap().unwrap();
    assert!(out == lines);
    assert_eq!(ended(&mut agent).code(), Some(0));
}

#[test]
fn bare_it_leaves_quietly_when_nobody_reads_any_more() {
    let mut agent = between_pipes();
    drop(agent.stdout.take());
    let mut to = agent.stdin.take().unwrap();
    to.write_all(b"for nobody\n").unwrap();
    assert_eq!(ended(&mut agent).code(), Some(1));
    let mut said = String::new();
    agent.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("panic"), "{said}");
    assert!(said.contains("\"msg\":\"stopped\""), "{said}");
}

#[test]
fn bare_it_waits_without_spinning_while_nobody_reads() {
    let mut agent = between_pipes();
    let mut to = agent.stdin.take().unwrap();
    // More than pipe and window hold: the writer must come to a stand.
    let written = Arc::new(Mutex::new(0));
    let (counts, line) = (written.clone(), "x".repeat(1023) + "\n");
    let writer = thread::spawn(move || {
        while to.write_all(line.as_bytes()).is_ok() {
            *counts.lock().unwrap() += line.len();
        }
    });
    let cpu = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.id())).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>()
    };
    // A second in which nothing moves: then what it costs is what waiting costs.
    let (mut seen, mut since, mut before) = (0, Instant::now(), cpu());
    until("a stand", || {
        let now = *written.lock().unwrap();
        if now != seen {
            (seen, since, before) = (now, Instant::now(), cpu());
        }
        since.elapsed() > Duration::from_secs(1)
    });
    let ticks = cpu() - before;
    assert!(
        ticks <= 20,
        "{ticks} hundredths of a second of CPU in one second of waiting"
    );
    assert!((64 << 10..256 << 20).contains(&seen), "{seen} bytes taken");
    agent.kill().unwrap();
    agent.wait().unwrap();
    writer.join().unwrap();
}

#[test]
fn a_second_signal_leaves_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let (home, mut child) = stuck("600s");
        let pid = child.id() as i32;
        signal(pid, Signal::SIGTERM);
        let log = home.root.path().join("foreground.log");
        until("a drain", || {
            fs::read_to_string(&log).unwrap().contains("draining, then stopping")
        });
        assert!(child.try_wait().unwrap().is_none());
        signal(pid, second);
        assert_eq!(ended(&mut child).code(), Some(1));
        let last = home.last_exit();
        assert_eq!(last["code"], 1);
        assert!(
            last["why"]
                .as_str()
                .unwrap()
                .contains(&format!("{second} came while draining")),
            "{last}"
        );
        assert!(!home.pid_file().exists() && !home.data().join("agent.sock").exists());
    }
}

#[test]
fn a_drain_ends_in_time_and_leaves_word() {
    let (home, mut child) = stuck("100ms");
    let asked = Instant::now();
    signal(child.id() as i32, Signal::SIGTERM);
    let code = ended(&mut child).code();
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(code.map(i64::from), home.last_exit()["code"].as_i64());
    assert!(!home.pid_file().exists());
}

#[test]
fn stop_past_its_timeout_leaves_it_running_but_with_force() {
    let (home, mut child) = stuck("600s");
    // Twice: a second one who waits forces nothing.
    for _ in 0..2 {
        let left = home.agent("stop --timeout 100ms").is(1);
        assert!(left.err.contains("is left running"), "{left:?}");
        assert!(child.try_wait().unwrap().is_none());
    }
    let forced = thread::spawn(move || (home.agent("stop --timeout 100ms --force"), home));
    assert_eq!(ended(&mut child).code(), Some(1));
    let (forced, home) = forced.join().unwrap();
    let forced = forced.is(1);
    assert!(
        forced.out.contains("code=1") && forced.out.contains("came while draining"),
        "{forced:?}"
    );
    home.agent("status").is(3);
}

#[test]
fn a_stopped_process_is_killed_by_force() {
    let home = Home::new();
    home.agent("start").is(0);
    let pid = home.pid();
    signal(pid, Signal::SIGSTOP); // hears nothing, not even a second signal
    let forced = home.agent("stop --timeout 100ms --force").is(1);
    assert!(forced.err.contains("left no word"), "{forced:?}");
    assert!(!lives(pid));
}

#[test]
fn hang_up_reloads_and_usr1_reopens_the_log() {
    let home = Home::new();
    home.agent("start").is(0);
    let pid = home.pid();
    signal(pid, Signal::SIGHUP);
    until("a word about SIGHUP", || {
        home.log().contains("reloaded, nothing has changed")
    });
    let log = home.data().join("logs/agent.log");
    let moved = home.data().join("logs/moved");
    fs::rename(&log, &moved).unwrap();
    signal(pid, Signal::SIGUSR1);
    until("a new log", || home.log().contains("opened again"));
    assert!(
        fs::read_to_string(&moved)
            .unwrap()
            .contains("reloaded, nothing has changed")
    );
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/fd/2")).unwrap(),
        log,
        "stderr follows, for the last words of an abort"
    );
    assert!(lives(pid));
    home.agent("stop").is(0);
}

#[test]
fn restart_takes_the_new_settings_only_if_they_can_be_started_with() {
    let home = Home::new();
    assert!(
        home.agent("restart").is(0).out.contains("agent started"),
        "also if none runs"
    );
    let first = home.pid();
    home.configure("[http]\naddress = \"off\"\n[log]\nlevel = \"loud\"\n");
    home.agent("restart").is(78);
    assert_eq!(home.pid(), first);
    assert!(lives(first));
    home.configure("[http]\naddress = \"127.0.0.1:0\"\n");
    let restarted = home.agent("restart").is(0);
    assert!(restarted.out.contains("http=127.0.0.1:"), "{restarted:?}");
    assert!(!lives(first) && lives(home.pid()));
    assert_eq!(home.last_exit()["pid"], first);
    home.agent("stop").is(0);
}

#[test]
fn the_caller_gets_its_descriptors_back() {
    let home = Home::new();
    // stdout of the shell stays open as 9 in whoever inherits it: `finish` waits for its end.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "exec \"$0\" start -config \"$1\" 9>&1 >/dev/null 2>/dev/null"])
        .arg(env!("CARGO_BIN_EXE_agent"))
        .arg(home.config());
    finish(shell).is(0);
    home.agent("stop").is(0);
}

#[test]
fn a_data_dir_with_a_long_name_has_its_socket() {
    let home = Home::new();
    let deep = home.root.path().join("d".repeat(150));
    home.agent(&format!("start --data-dir {}", deep.display())).is(0);
    assert!(deep.join("agent.sock").exists());
    home.agent(&format!("stop --data-dir {}", deep.display())).is(0);
}

#[test]
fn the_bare_agent_on_stdin_leaves_no_trace() {
    let home = Home::new();
    let temp = home.root.path().join("tmp");
    fs::create_dir(&temp).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["-http-address", "off", "-output", "null", "-input", "stdin"])
        .env("TMPDIR", &temp)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(
        said.any(|line| line.unwrap().contains("\"msg\":\"ready\"")),
        "JSON, where stderr is no terminal"
    );
    let states = || {
        fs::read_dir(&temp)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect::<Vec<_>>()
    };
    assert_eq!(states().len(), 1);
    assert_eq!(mode(&states()[0]), 0o700);
    signal(child.id() as i32, Signal::SIGINT);
    assert_eq!(ended(&mut child).code(), Some(0));
    assert_eq!(states(), Vec::<PathBuf>::new());
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert_eq!(out, b"", "only events go to stdout");
}

#[test]
fn wrong_usage_and_what_is_not_built_exit_64() {
    let home = Home::new();
    for (words, part) in [
        ("strat", "unknown command `strat`"),
        ("start -input=stdin -output=null", "stdin"),
        ("start -input=file -filepath=/x -output=stdout", "stdout"),
        ("plugins nosuch", "unknown plugin `nosuch`, accepted: "),
        ("plugins File", "accepted is a plugin as `name` or `name:tag`"),
    ] {
        let said = if words.starts_with("plugins") {
            let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
            command.args(words.split(' '));
            finish(command)
        } else {
            home.agent(words)
        };
        let said = said.is(64);
        assert!(
            said.err.starts_with("agent: ") && said.err.contains(part),
            "{words}: {said:?}"
        );
        assert_eq!(said.out, "");
    }
    assert!(!home.data().exists());
}

#[test]
fn commands_that_need_no_agent() {
    let home = Home::new();
    assert_eq!(home.agent("check").is(0).out, "configuration ok\n");
    let version = home.agent("version").is(0);
    assert!(
        version
            .out
            .starts_with(&format!("luffly-agent {} (linux ", luffly_agent::VERSION)),
        "{version:?}"
    );
    let mut plugins = Command::new(env!("CARGO_BIN_EXE_agent"));
    plugins.args(["plugins", "--json"]);
    let plugins: Value = serde_json::from_str(&finish(plugins).is(0).out).unwrap();
    assert!(
        plugins
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "file" && p["kind"] == "input")
    );
    assert!(home.agent("version --check-state").is(0).out.starts_with("no state in"));
    assert!(!home.data().exists(), "looking makes nothing");
    for words in ["files", "why /x", "log-level debug"] {
        assert!(home.agent(words).is(3).err.contains("no agent runs on"), "{words}");
    }
    home.configure("[http]\naddress = \"off\"\n[limits]\nmemory = \"lots\"\n");
    let errors: Value = serde_json::from_str(&home.agent("check --json").is(78).out).unwrap();
    assert_eq!(errors["ok"], false);
    assert_eq!(errors["errors"].as_array().unwrap().len(), 1);
    assert!(home.agent("check").is(78).err.contains("limits.memory"));
    // A broken file keeps nobody from looking or stopping.
    home.agent("status").is(3);
}

/// An agent that is played by this very process: it holds the lock and answers from a table.
struct Played {
    home: Home,
    _lock: Lock,
    heard: Arc<Mutex<Vec<String>>>,
}
fn play() -> Played {
    let home = Home::new();
    fs::create_dir(home.data()).unwrap();
    let lock = Lock::take(&home.data().join("lock")).unwrap();
    let listener = UnixListener::bind(home.data().join("agent.sock")).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let lines = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>();
            let asked = lines[0].strip_suffix(" HTTP/1.1").unwrap().to_owned();
            let trusted = lines.iter().any(|line| line.eq_ignore_ascii_case("x-agent: cli"));
            let (status, body) = answer(&asked);
            hears
                .lock()
                .unwrap()
                .push(format!("{asked}{}", if trusted { "" } else { " without X-Agent" }));
            write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    });
    Played {
        home,
        _lock: lock,
        heard,
    }
}
fn answer(asked: &str) -> (&'static str, String) {
    let json = match asked {
        "GET /api/v1/agent" => json!({
            "agent_id": "sky01", "group": "net01", "hostname": "web1", "ip": "10.1.2.3", "version": "v.1.1.0", "pid": 7,
            "started": "2026-11-23T10:00:00Z", "data_dir": "/d", "http": "0.0.0.0:10630", "stopping": false, "log_level": "info",
        }),
        "GET /api/v1/health" => {
            return (
                "503 Service Unavailable",
                json!({ "state": "failing", "reasons": ["sink is out"] }).to_string(),
            );
        }
        "GET /api/v1/pipelines" => json!({ "pipelines": [] }),
        "GET /api/v1/files" => {
            json!({ "files": [{ "pipeline": "p", "path": "/a b.log", "state": "tailing", "size": 5 }] })
        }
        "GET /api/v1/why?what=/a%20b.log" => json!({ "what": "/a b.log", "why": "it is read" }),
        "PUT /api/v1/log-level?level=debug&for=5m" => json!({ "level": "debug", "for_seconds": 300.0 }),
        "POST /api/v1/stop" => json!({ "accepted": "stop" }),
        "GET /metrics" => return ("200 OK", "luffly_events_in_total 3\n".to_owned()),
        "GET /api/v1/actors" | "GET /api/v1/config" | "GET /api/v1/logs?n=200" => json!({}),
        _ => {
            return (
                "400 Bad Request",
                json!({ "detail": format!("not known: {asked}") }).to_string(),
            );
        }
    };
    ("200 OK", json.to_string())
}

#[test]
fn commands_show_what_a_running_agent_answers() {
    let Played { home, heard, _lock } = play();
    let status = home.agent("status").is(0);
    for part in [
        "running   pid 7",
        "sky01 in net01, web1 (10.1.2.3)",
        "health    failing",
        "sink is out",
    ] {
        assert!(status.out.contains(part), "{part}: {status:?}");
    }
    let status: Value = serde_json::from_str(&home.agent("status --json").is(0).out).unwrap();
    assert_eq!(
        (&status["running"], &status["health"]["state"]),
        (&json!(true), &json!("failing"))
    );
    assert!(home.agent("files").is(0).out.contains("/a b.log"));
    let mut why = Command::new(env!("CARGO_BIN_EXE_agent"));
    why.args(["why", "/a b.log", "-config"]).arg(home.config());
    assert_eq!(finish(why).is(0).out, "it is read\n");
    assert_eq!(
        home.agent("log-level debug --for 5m").is(0).out,
        "log level is debug for 5m\n"
    );
    let refused = home.agent("why nothing").is(1);
    assert_eq!(
        refused.err, "agent: not known: GET /api/v1/why?what=nothing\n",
        "the agent's own words"
    );

    let tar = home.root.path().join("d.tar");
    home.agent(&format!("doctor --output {}", tar.display())).is(0);
    assert_eq!(mode(&tar), 0o600);
    let mut archive = tar::Archive::new(fs::File::open(&tar).unwrap());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        if name.ends_with("metrics.txt") {
            assert_eq!(text, "luffly_events_in_total 3\n");
        }
        if name.ends_with("missing.txt") {
            assert!(
                text.starts_with("agent.log: ") && text.contains("last-exit.json: "),
                "{text}"
            );
        }
        names.push(name.strip_prefix("agent-doctor/").unwrap().to_owned());
    }
    let expected = "about.json agent.json health.json actors.json pipelines.json files.json config.json logs.json metrics.txt missing.txt";
    assert_eq!(names.join(" "), expected);
    home.agent(&format!("doctor --output {}", tar.display())).is(1); // never over another file

    // Asked, it does not end; and no signal comes on top, or this test would die of it.
    let left = home.agent("stop --timeout 50ms").is(1);
    assert!(left.err.contains("is left running"), "{left:?}");
    let heard = heard.lock().unwrap();
    assert_eq!(heard.last().unwrap(), "POST /api/v1/stop");
    assert!(
        heard.iter().all(|asked| !asked.ends_with("without X-Agent")),
        "{heard:?}"
    );
}

#[test]
fn the_doctor_looks_at_a_dead_agent_too() {
    let home = Home::new();
    home.agent("start").is(0);
    home.agent("stop").is(0);
    let tar = home.root.path().join("d.tar");
    let said = home.agent(&format!("doctor --output {}", tar.display())).is(0);
    assert!(
        said.out
            .ends_with(": about.json, config.json, agent.log, last-exit.json\n"),
        "{said:?}"
    );
}
