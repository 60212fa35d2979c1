//! The etcd under measurement: with mutual TLS or passwords, and its own metrics in the clear.
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    time::Duration,
};

use luffly_agent::store::etcd::{EtcdStore, Options, Tls, User};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::kit::servers::Etcd;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    Certificates,
    Passwords,
}
impl Auth {
    pub fn word(self) -> &'static str {
        match self {
            Self::Certificates => "mTLS",
            Self::Passwords => "password",
        }
    }
}
#[derive(Clone, Copy)]
pub struct Usage {
    pub kib: f64,
    pub goroutines: f64,
    pub cpu: f64,
}

pub struct Server {
    etcd: Etcd,
    auth: Auth,
    metrics: u16,
}
impl Server {
    pub fn start(auth: Auth) -> Self {
        let metrics = TcpListener::bind("127.0.0.1:0")
            .and_then(|held| held.local_addr())
            .expect("a free port")
            .port();
        let page = format!("--listen-metrics-urls=http://127.0.0.1:{metrics}");
        let etcd = match auth {
            Auth::Passwords => {
                let etcd = Etcd::start_with(&[&page]);
                etcd.ctl(&["user", "add", "root:pass"]);
                etcd.ctl(&["user", "grant-role", "root", "root"]);
                etcd.ctl(&["auth", "enable"]);
                etcd
            }
            Auth::Certificates => Etcd::start_tls(
                certificates,
                &[
                    "--client-cert-auth",
                    "--trusted-ca-file={dir}/ca.pem",
                    "--cert-file={dir}/own.pem",
                    "--key-file={dir}/own.key",
                    &page,
                ],
                &["--cacert={dir}/ca.pem", "--cert={dir}/own.pem", "--key={dir}/own.key"],
            ),
        };
        Self { etcd, auth, metrics }
    }
    pub fn options(&self) -> Options {
        let dir = self.etcd.dir.path();
        Options {
            endpoints: vec![self.etcd.endpoint()],
            prefix: String::new(),
            user: (self.auth == Auth::Passwords).then(|| User {
                name: "root".into(),
                password: "pass".into(),
            }),
            tls: (self.auth == Auth::Certificates).then(|| Tls {
                ca: Some(dir.join("ca.pem")),
                cert_and_key: Some((dir.join("own.pem"), dir.join("own.key"))),
            }),
        }
    }
    pub fn store(&self) -> EtcdStore {
        EtcdStore::new(self.options())
    }
    pub fn dir(&self) -> &Path {
        self.etcd.dir.path()
    }
    pub fn kill(&mut self) {
        self.etcd.kill();
    }
    /// Started anew, with a heap that holds little more than what lives: else a fifth of what is measured, up to a half, is what Go's
    /// collector has not looked at yet. It costs time, so times are taken without.
    pub fn keep_little(&mut self) {
        self.etcd.kill();
        self.etcd.env.push(("GOGC", "20"));
        self.etcd.resume();
    }
    pub fn resume(&mut self) {
        self.etcd.resume();
    }
    pub fn usage(&self) -> Usage {
        Usage {
            kib: resident_kib(self.etcd.pid()),
            goroutines: self.metric("go_goroutines", ""),
            cpu: self.metric("process_cpu_seconds_total", ""),
        }
    }
    /// When its memory has not changed by more than a hundredth for two seconds, or after twenty.
    pub async fn settled(&self) -> Usage {
        let mut before = self.usage();
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = self.usage();
            if (now.kib - before.kib).abs() < before.kib / 100.0 {
                return now;
            }
            before = now;
        }
        before
    }
    /// The sum of a metric over the series that hold `with`.
    pub fn metric(&self, name: &str, with: &str) -> f64 {
        let page = self.page().unwrap_or_default();
        let series = page
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        series
            .filter(|line| line.contains(with))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
    fn page(&self) -> Option<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.metrics)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(
            socket,
            "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}
pub fn resident_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0.0)
}
/// One authority, one certificate for both sides.
fn certificates(dir: &Path) {
    let key = || KeyPair::generate().expect("ring makes keys");
    let mut params = CertificateParams::new(vec![]).expect("no names are fine");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, key()).expect("an authority signs itself");
    let own = key();
    let params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("both are names");
    let cert = params.signed_by(&own, &ca).expect("the authority signs");
    for (name, text) in [
        ("ca.pem", ca.pem()),
        ("own.pem", cert.pem()),
        ("own.key", own.serialize_pem()),
    ] {
        std::fs::write(dir.join(name), text).expect("the directory is ours");
    }
}
