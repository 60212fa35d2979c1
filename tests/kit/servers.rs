//! Real servers: on loopback, on free ports, with private directories, ended by their process ids, also when a test fails.
//! `ETCD=/path/to/etcd` runs the tests on another etcd than the one that scripts/setup.sh brings.
use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::agent::{finish, signal, until};

fn brought(name: &str) -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/servers/etcd/usr/bin")
        .join(name);
    match unpacked.exists() {
        true => unpacked,
        false => name.into(), // on the PATH
    }
}
fn etcd_binary() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| brought("etcd"), PathBuf::from)
}
fn free_ports<const N: usize>() -> [u16; N] {
    let held = std::array::from_fn::<_, N, _>(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

pub struct Etcd {
    child: Option<Child>,
    pub dir: tempfile::TempDir,
    pub port: u16,
    args: Vec<String>,
    /// From its next start on.
    pub env: Vec<(&'static str, &'static str)>,
    /// `--cacert …` and the like.
    pub ctl_args: Vec<String>,
    scheme: &'static str,
}
impl Etcd {
    pub fn start() -> Self {
        Self::start_with(&[])
    }
    pub fn start_with(args: &[&str]) -> Self {
        let [port, peer] = free_ports();
        let mut etcd = Self::new("http", port, &[peer], 0, args);
        etcd.resume();
        etcd
    }
    /// One with TLS, and its certificate authority's file: `{dir}` in the arguments is its directory.
    pub fn start_tls(make: impl FnOnce(&Path), args: &[&str], ctl_args: &[&str]) -> Self {
        let [port, peer] = free_ports();
        let mut etcd = Self::new("https", port, &[peer], 0, &[]);
        make(etcd.dir.path());
        let dir = etcd.dir.path().to_str().unwrap().to_owned();
        let fill = |arg: &&str| arg.replace("{dir}", &dir);
        etcd.args.extend(args.iter().map(fill));
        etcd.ctl_args = ctl_args.iter().map(fill).collect();
        etcd.resume();
        etcd
    }
    /// Three that elect one.
    pub fn cluster() -> [Self; 3] {
        let ports = free_ports::<3>();
        let peers = free_ports::<3>();
        let mut all = std::array::from_fn(|i| Self::new("http", ports[i], &peers, i, &[]));
        all.iter_mut().for_each(Self::spawn);
        all.iter().for_each(Self::ready);
        all
    }
    /// Not started; one of as many as there are peer ports.
    fn new(scheme: &'static str, port: u16, peers: &[u16], own: usize, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = format!("{scheme}://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", peers[own]);
        let all = peers
            .iter()
            .enumerate()
            .map(|(i, port)| format!("m{i}=http://127.0.0.1:{port}"));
        let mut full = vec![
            format!("--name=m{own}"),
            format!("--data-dir={}", dir.path().join("data").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", all.collect::<Vec<_>>().join(",")),
        ];
        full.extend(args.iter().map(ToString::to_string));
        Self {
            child: None,
            dir,
            port,
            args: full,
            env: vec![],
            ctl_args: vec![],
            scheme,
        }
    }
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(etcd_binary())
            .args(&self.args)
            .envs(self.env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("no etcd: {e}; scripts/setup.sh etcd brings it"));
        self.child = Some(child);
    }
    /// Until it answers: a health check goes through the consensus.
    fn ready(&self) {
        let began = Instant::now();
        loop {
            let healthy = match self.scheme {
                "http" => self.http("/health").is_some_and(|body| body.contains("\"true\"")),
                _ => self.ctl_try(&["endpoint", "health"]).is_some(),
            };
            if healthy {
                return;
            }
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "etcd is not ready: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    /// Starts it on what it has.
    pub fn resume(&mut self) {
        self.spawn();
        self.ready();
    }
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    /// kill -9, and up again.
    pub fn restart(&mut self) {
        self.kill();
        self.resume();
    }
    pub fn freeze(&self) {
        signal(self.child.as_ref().unwrap(), Signal::SIGSTOP);
    }
    pub fn thaw(&self) {
        signal(self.child.as_ref().unwrap(), Signal::SIGCONT);
    }
    /// Another etcd takes its place: an empty one.
    pub fn replace_by_empty(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.resume();
    }
    pub fn save(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        self.ctl(&["snapshot", "save", path.to_str().unwrap()]);
        path
    }
    pub fn restore(&mut self, snapshot: &Path) {
        self.kill();
        let data = self.dir.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        // 3.6 has it in etcdutl alone; the format is the same.
        let of = |prefix: &str| self.args.iter().find(|arg| arg.starts_with(prefix)).unwrap().clone();
        let args = [
            "snapshot".to_owned(),
            "restore".to_owned(),
            snapshot.to_str().unwrap().to_owned(),
            of("--name="),
            of("--data-dir="),
            of("--initial-cluster="),
            of("--initial-advertise-peer-urls="),
        ];
        let done = self.ctl_command(&args.each_ref().map(String::as_str)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.resume();
    }
    fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(brought("etcdctl"));
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}://{}", self.scheme, self.endpoint()))
            .args(&self.ctl_args)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
    pub fn ctl_path(&self) -> PathBuf {
        brought("etcdctl")
    }
    pub fn ctl_try(&self, args: &[&str]) -> Option<String> {
        let done = finish(self.ctl_command(args).spawn().unwrap());
        (done.code() == Some(0)).then_some(done.out)
    }
    /// What `etcdctl` prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let done = finish(self.ctl_command(args).spawn().unwrap());
        assert_eq!(done.code(), Some(0), "etcdctl {args:?}: {}", done.err);
        done.out
    }
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", "--", key, value]);
    }
    pub fn delete(&self, key: &str) {
        self.ctl(&["del", key]);
    }
    /// The value; none if it is not there.
    pub fn get(&self, key: &str) -> Option<String> {
        let out = self.ctl(&["get", "--print-value-only", key]);
        (!out.is_empty()).then(|| out.trim_end_matches('\n').to_owned())
    }
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let out = self.ctl(&["get", "--prefix", "--keys-only", prefix]);
        out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
    pub fn until(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        until(what, || is(self));
    }
    pub fn leases(&self) -> usize {
        let out = self.ctl(&["lease", "list"]);
        out.lines().skip(1).filter(|line| !line.trim().is_empty()).count()
    }
    pub fn revision(&self) -> i64 {
        let out = self.ctl(&["get", "x", "-w", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        answer["header"]["revision"].as_i64().unwrap()
    }
    /// Forgets all older revisions.
    pub fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]);
    }
    fn http(&self, page: &str) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            socket,
            "GET {page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
    /// The sum of a metric of etcd over all its series.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.http("/metrics").unwrap();
        let series = page.lines().filter_map(|line| line.strip_prefix(name));
        let values = series.filter(|rest| rest.starts_with([' ', '{']));
        values
            .map(|rest| rest.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }
    /// Established connections of that process to this server.
    pub fn connections_of(&self, pid: u32) -> usize {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        let ours = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .map(|link| link.to_string_lossy().into_owned())
            .collect::<Vec<_>>();
        let to = format!(":{:04X}", self.port);
        table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words[2].ends_with(&to) && words[3] == "01")
            .filter(|words| ours.contains(&format!("socket:[{}]", words[9])))
            .count()
    }
}
impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill(); // a frozen one too
            let _ = child.wait();
        }
    }
}
