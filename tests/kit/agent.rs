//! The real binary, in directories of its own, on loopback, ended by its own process id.
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

pub struct Place {
    dir: tempfile::TempDir,
}
impl Default for Place {
    fn default() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }
}
impl Place {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        path
    }
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_default()
    }
    /// `agent` with a data dir in here and no HTTP, unless the arguments say otherwise.
    pub fn agent(&self, args: &[&str]) -> Command {
        let mut command = self.command(args);
        if !args.iter().any(|arg| arg.contains("http-address")) && !is_client(args) {
            command.arg("-http-address=off");
        }
        command
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(args).arg("--data-dir").arg(self.path("data"));
        command
            .env_remove("FAILPOINTS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
    /// The settings of one pipeline `t`: a file input over `in/*.log*` that looks often, `valid`, these outputs; `{0}` is this place.
    pub fn configure(&self, outputs: &str, rest: &str) -> PathBuf {
        let input = r#"{ plugin = "file:v1", paths = ["{0}/in/*.log*"], poll_every = "20ms", max_line = "2MiB" }"#;
        let text = format!(
            "{rest}\n[[pipeline]]\nname = \"t\"\ninput = {input}\nfilters = [{{ plugin = \"valid\" }}]\noutputs = [{outputs}]\n"
        );
        self.write("agent.toml", text.replace("{0}", self.dir.path().to_str().unwrap()))
    }
    /// `agent start --foreground` with these settings, until it is ready; its log goes to `log`.
    pub fn start(&self, settings: &Path, stdout: Stdio) -> Running {
        self.start_with(settings, stdout, "")
    }
    /// The same without any right that root has.
    pub fn start_as_nobody(&self, settings: &Path) -> Running {
        let (nobody, root) = (65534, nix::unistd::geteuid().is_root());
        let mut command = self.start_command(settings);
        if root {
            // Who is nobody may not look into root's directories: the binary comes along.
            let binary = self.path("agent");
            std::fs::copy(command.get_program(), &binary).unwrap();
            for path in [self.path(""), self.path("in"), binary.clone()] {
                std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).unwrap();
            }
            let files = std::fs::read_dir(self.path("in"))
                .unwrap()
                .map(|file| file.unwrap().path());
            files.for_each(|path| std::os::unix::fs::chown(path, Some(nobody), Some(nobody)).unwrap());
            let mut lowered = Command::new("setpriv");
            lowered.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            lowered.arg(binary).args(command.get_args()).stdin(Stdio::null());
            command = lowered;
        }
        self.until_ready(command.stdout(Stdio::null()))
    }
    /// The same, with failpoints as `name=5%panic;…` (they need the feature of that name).
    pub fn start_with(&self, settings: &Path, stdout: Stdio, failpoints: &str) -> Running {
        self.until_ready(
            self.start_command(settings)
                .env("FAILPOINTS", failpoints)
                .stdout(stdout),
        )
    }
    fn start_command(&self, settings: &Path) -> Command {
        let mut args = vec!["start", "--foreground", "-config", settings.to_str().unwrap()];
        if !std::fs::read_to_string(settings).unwrap().contains("[http]") {
            args.push("-http-address=off");
        }
        self.command(&args)
    }
    fn until_ready(&self, command: &mut Command) -> Running {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut running = Running(command.stderr(log).spawn().unwrap());
        until("the agent is ready", || {
            let log = self.read("log");
            let log = String::from_utf8_lossy(&log);
            let ended = running.0.try_wait().unwrap();
            assert!(ended.is_none(), "it ended at once, {ended:?}: {log}");
            log.contains("\"msg\":\"ready\"")
        });
        running
    }
    /// What the agent shows there: status and body.
    pub fn get(&self, page: &str) -> (u16, String) {
        self.ask("GET", page)
    }
    /// What it answers to `agent reload --json`, without the process.
    pub fn reload(&self) -> (u16, String) {
        self.ask("POST", "/api/v1/reload")
    }
    fn ask(&self, method: &str, page: &str) -> (u16, String) {
        let mut socket = UnixStream::connect(self.path("data/agent.sock")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(
            socket,
            "{method} {page} HTTP/1.1\r\nHost: localhost\r\nX-Agent: test\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
    /// The sum of that metric over all series whose labels contain this.
    pub fn metric(&self, name: &str, labels: &str) -> i64 {
        let (_, text) = self.get("/metrics");
        let series = text
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("luffly_{name}")));
        let values = series.filter(|rest| rest.starts_with([' ', '{']) && rest.contains(labels));
        values
            .map(|rest| rest.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as i64)
            .sum()
    }
    /// All that goes in comes out, at each output, at this quiet moment.
    pub fn conserved(&self) {
        let (_, text) = self.get("/metrics");
        let differences = text
            .lines()
            .filter(|line| line.starts_with("luffly_conservation_difference{"))
            .collect::<Vec<_>>();
        assert!(!differences.is_empty());
        assert!(differences.iter().all(|line| line.ends_with(" 0")), "{text}");
    }
    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        finish(self.agent(args).spawn().unwrap())
    }
}
/// An agent that does not outlive its test.
pub struct Running(pub Child);
impl Running {
    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> Option<i32> {
        signal(&self.0, nix::sys::signal::Signal::SIGTERM);
        wait(&mut self.0, Duration::from_secs(60)).code()
    }
    pub fn kill(mut self) {
        signal(&self.0, nix::sys::signal::Signal::SIGKILL);
        self.0.wait().unwrap();
    }
}
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may be gone already
        let _ = self.0.wait();
    }
}

/// Commands that speak to a running agent, or print something.
fn is_client(args: &[&str]) -> bool {
    let clients = [
        "stop",
        "status",
        "version",
        "plugins",
        "try",
        "files",
        "why",
        "jobs",
        "nodes",
        "doctor",
        "log-level",
        "reload",
    ];
    args.first().is_some_and(|first| clients.contains(first))
}

#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}
impl Output {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}
/// Waits for the end, at most two minutes, while both streams are read.
pub fn finish(mut child: Child) -> Output {
    let drain = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = vec![];
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = drain(child.stdout.take().map(|p| Box::new(p) as _));
    let err = drain(child.stderr.take().map(|p| Box::new(p) as _));
    let status = wait(&mut child, Duration::from_secs(120));
    Output {
        status,
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            panic!("pid {} did not end within {limit:?}", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
}
/// Waits until it is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
pub fn len(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}
/// What a rotating output has written: its rotated files (their names rise with time), then the present one.
pub fn rotated(dir: &Path, name: &str) -> Vec<u8> {
    let before = format!("{name}.");
    let mut old = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    old.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&before));
    old.sort();
    old.push(dir.join(name));
    old.iter()
        .flat_map(|path| std::fs::read(path).unwrap_or_default())
        .collect()
}
