//! `HttpApi` on real sockets in this process, before a stand-in for Root that says fixed things and notes what it was asked; and a
//! client that sends exactly the bytes it is told to.
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use actix::prelude::*;
use luffly_agent::{
    actors::http_api::{HttpApi, HttpApiParts},
    clock,
    messages::{
        control::{OutputView as OutputLook, *},
        jobs::{OutputView, *},
    },
    metrics::Metrics,
    model::{FileState, FileStatus, Host, Invalid, RunRecord},
    web::Ask,
};
use serde_json::Value;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What a test can change before it starts.
pub struct Plan {
    pub bind: IpAddr,
    pub tls: Option<rustls::ServerConfig>,
    pub insecure_remote: bool,
    pub health: HealthState,
    /// Root hears, and says nothing.
    pub silent: bool,
    /// How long the pages wait for it.
    pub limit: Duration,
}
impl Default for Plan {
    fn default() -> Self {
        Self {
            bind: [127, 0, 0, 1].into(),
            tls: None,
            insecure_remote: false,
            health: HealthState::Ok,
            silent: false,
            limit: Duration::from_secs(2),
        }
    }
}

pub struct Agent {
    pub http: SocketAddr,
    pub socket: PathBuf,
    /// Questions as they came.
    pub heard: Arc<Mutex<Vec<String>>>,
    orders: mpsc::Sender<Order>,
    thread: Option<thread::JoinHandle<()>>,
    pub dir: tempfile::TempDir,
}
enum Order {
    Drain(mpsc::Sender<()>),
    Fall(mpsc::Sender<()>),
    End,
}

/// Ends a life of the actor.
#[derive(Message)]
#[rtype(result = "()")]
struct Fall;
impl Handler<Fall> for HttpApi {
    type Result = ();
    fn handle(&mut self, _: Fall, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
/// Heard in the next life, after what was before it.
#[derive(Message)]
#[rtype(result = "()")]
struct Alive;
impl Handler<Alive> for HttpApi {
    type Result = ();
    fn handle(&mut self, _: Alive, _: &mut Context<Self>) {}
}

impl Agent {
    pub fn start(plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let http_listener = TcpListener::bind((plan.bind, 0)).unwrap();
        // The library listens for 128; a test of crowds wants all of them to have come.
        nix::sys::socket::listen(&http_listener, nix::sys::socket::Backlog::new(2048).unwrap()).unwrap();
        let socket_listener = UnixListener::bind(&socket).unwrap();
        let http = http_listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let (orders, ordered) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let heard_too = heard.clone();
        let thread = thread::spawn(move || {
            System::new().block_on(async move {
                let root = Root {
                    silent: plan.silent,
                    health: plan.health,
                    heard: heard_too,
                }
                .start();
                let mut ask = Ask::of(&root);
                ask.limit = plan.limit;
                let mut api = Some(HttpApi::new(HttpApiParts {
                    ask,
                    http: Some(http_listener),
                    tls: plan.tls,
                    socket: Some(socket_listener),
                    token: TOKEN.into(),
                    insecure_remote: plan.insecure_remote,
                    log: slog::Logger::root(slog::Discard, slog::o!()),
                    metrics: Metrics::new(),
                    clock: clock::system(),
                }));
                let api = Supervisor::start(move |_| api.take().expect("made once, then restarted"));
                tell.send(()).unwrap();
                let mut ordered = ordered;
                loop {
                    let (order, rest) = actix_rt::task::spawn_blocking(move || (ordered.recv(), ordered))
                        .await
                        .unwrap();
                    ordered = rest;
                    match order {
                        Ok(Order::Drain(done)) => {
                            api.send(Drain).await.unwrap();
                            done.send(()).unwrap();
                        }
                        Ok(Order::Fall(done)) => {
                            api.send(Fall).await.unwrap();
                            api.send(Alive).await.unwrap();
                            done.send(()).unwrap();
                        }
                        Ok(Order::End) | Err(_) => break,
                    }
                }
                api.send(Drain).await.unwrap();
            });
        });
        told.recv().unwrap();
        Self {
            http,
            socket,
            heard,
            orders,
            thread: Some(thread),
            dir,
        }
    }
    pub fn plain() -> Self {
        Self::start(Plan::default())
    }
    fn order(&self, order: impl FnOnce(mpsc::Sender<()>) -> Order) {
        let (done, wait) = mpsc::channel();
        self.orders.send(order(done)).unwrap();
        wait.recv().unwrap();
    }
    pub fn drain(&self) {
        self.order(Order::Drain);
    }
    pub fn fall(&self) {
        self.order(Order::Fall);
    }
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub fn tcp(&self) -> TcpStream {
        bounded(TcpStream::connect(self.http).unwrap())
    }
    pub fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }
    /// Over loopback, without anything to show for itself.
    pub fn stranger(&self, method: &str, path: &str) -> Answer {
        ask(self.tcp(), method, path, &[], b"")
    }
    /// Over loopback, with the token and whatever else.
    pub fn member(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let token = format!("Bearer {TOKEN}");
        ask(
            self.tcp(),
            method,
            path,
            &[&[("authorization", token.as_str())], headers].concat(),
            body,
        )
    }
    pub fn local(&self, method: &str, path: &str) -> Answer {
        ask(self.unix(), method, path, &[], b"")
    }
}
impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the agent's thread fell");
        }
    }
}

/// No test waits for ever.
pub fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}
impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
    /// That it is a problem of this status in the form that all have; gives its detail.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), "application/problem+json");
        let json = self.json();
        let keys = json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys, ["type", "title", "status", "detail"]);
        assert_eq!(json["status"], status);
        json["detail"].as_str().unwrap().to_owned()
    }
}

pub fn ask(stream: impl Read + Write, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    send(stream, &[head.as_bytes(), b"\r\n", body].concat())
}

/// Sends these bytes and reads to the end of the connection.
pub fn send(mut stream: impl Read + Write, bytes: &[u8]) -> Answer {
    // A server that refuses may close before all is written: its answer counts.
    let _ = stream.write_all(bytes).and_then(|()| stream.flush());
    receive(stream)
}
/// Reads one answer: as long as it says that it is, or to the end of the connection.
pub fn receive(mut stream: impl Read) -> Answer {
    let whole = |answer: &Answer| answer.header("content-length").parse() == Ok(answer.body.len());
    let (mut bytes, mut part) = (Vec::new(), [0; 1 << 16]);
    loop {
        let answer = match parse(&bytes) {
            Some(answer) if whole(&answer) => return answer,
            begun => begun,
        };
        match stream.read(&mut part) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&part[..n]),
            // A CPU profile of this very process: its signal ends a reading that has a time limit.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            end => return answer.unwrap_or_else(|| panic!("no answer but {bytes:?}, then {end:?}")),
        }
    }
}
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    Some(Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    })
}

struct Root {
    silent: bool,
    health: HealthState,
    heard: Arc<Mutex<Vec<String>>>,
}
impl Actor for Root {
    type Context = Context<Self>;
}
impl Root {
    fn hear<T: 'static>(&self, question: impl Into<String>, answer: T) -> ResponseFuture<T> {
        self.heard.lock().unwrap().push(question.into());
        let silent = self.silent;
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            answer
        })
    }
}
macro_rules! answers {
    ($($question:ty => $of:ty: |$root:ident, $asked:pat_param| $name:expr, $answer:expr;)*) => {$(
        impl Handler<$question> for Root {
            type Result = ResponseFuture<$of>;
            fn handle(&mut self, $asked: $question, _: &mut Context<Self>) -> Self::Result {
                let $root = &*self;
                $root.hear($name, $answer)
            }
        }
    )*};
}
answers! {
    AskAgent => AgentView: |root, _| "agent", AgentView {
        host: Host {
            agent_id: "sky01".into(),
            group: "net01".into(),
            hostname: "web-7".into(),
            ip: [10, 0, 0, 7].into(),
            instance: "i-1".into(),
        },
        version: luffly_agent::VERSION,
        pid: 4711,
        started: "2026-11-02T03:04:05Z".parse().unwrap(),
        data_dir: "/var/lib/luffly".into(),
        http: Some("0.0.0.0:10630".into()),
        stopping: false,
        log_level: "info".into(),
        last_reload: None,
    };
    AskActors => Vec<ActorView>: |root, _| "actors", vec![
        ActorView {
            name: "sink/default/logr".into(),
            state: "restarting",
            restarts: vec![("panic: no".into(), 2), ("ended itself".into(), 1)],
            last_error: Some("no space left".into()),
            fill: Some((3, 4096)),
            waited: Duration::from_millis(1500),
        },
        ActorView {
            name: "http".into(),
            state: "running",
            restarts: vec![],
            last_error: None,
            fill: None,
            waited: Duration::ZERO,
        },
    ];
    AskPipelines => Vec<PipelineView>: |root, _| "pipelines", vec![PipelineView {
        name: "default".into(),
        input: "file:v2".into(),
        filters: vec!["valid:v1".into()],
        events_in: 10,
        bytes_in: 1000,
        filtered: 1,
        ended: false,
        error: None,
        checkpoint_error: None,
        note: None,
        unsettled: 0,
        rewinds: true,
        outputs: vec![OutputLook {
            label: "logr".into(),
            plugin: "logr:v1".into(),
            when_full: "block",
            breaker: "open",
            delivered: 4,
            dropped: 2,
            dead: 1,
            queued: 0,
            waiting: 2,
            difference: 0,
            error: Some("no space left".into()),
        }],
    }];
    AskFiles => Vec<(String, Vec<FileStatus>)>: |root, _| "files", vec![(
        "default".into(),
        vec![FileStatus {
            path: "/var/log/a.log".into(),
            identity: "801:2a".into(),
            size: 100,
            read: 80,
            acknowledged: 60,
            state: FileState::Tailing,
            reason: String::new(),
            aliases: vec!["/var/log/b.log".into()],
        }],
    )];
    AskMetrics => (): |root, _| "metrics", ();
    AskHealth => Health: |root, _| "health", Health {
        state: root.health,
        reasons: match root.health {
            HealthState::Ok => vec![],
            _ => vec!["output default/logr: no space left".into()],
        },
    };
    AskWhy => String: |root, AskWhy(what)| format!("why {what}"), "the rule ignore_older".into();
    AskConfig => Value: |root, _| "config", serde_json::json!({ "http": { "address": "0.0.0.0:10630" } });
    AskLogs => Vec<String>: |root, AskLogs(n)| format!("logs {n}"), vec!["first".into(), "last".into()];
    AskStop => (): |root, _| "STOP", ();
    AskReopen => (): |root, _| "REOPEN", ();
    AskReload => Result<Reloaded, ReloadRefused>: |root, _| "RELOAD", Ok(Reloaded {
        changed: vec![KeyChange { key: "log.level".into(), from: "info".into(), to: "debug".into() }],
        ..Reloaded::default()
    });
    SetLogLevel => (): |root, order| format!("SET {:?} {:?}", order.level, order.revert_after), ();
    AskJobs => Vec<JobView>: |root, _| "jobs", vec![];
    AskJob => Option<Box<JobDetail>>: |root, ask| format!("job {}", ask.task_id), None;
    AskRuns => Vec<RunRecord>: |root, ask| format!("runs {:?} {}", ask.task_id, ask.most), vec![];
    AskOutput => Option<OutputView>: |root, ask| format!("output {}", ask.run_id), None;
    CheckJob => Result<Vec<jiff::Timestamp>, Invalid>: |root, ask| format!("check {}", ask.task_id), Ok(vec![]);
    WriteJob => Result<Written, WriteRefused>: |root, ask| format!("WRITE {}", ask.task_id), Err(WriteRefused::Unknown);
    JobCommand => CommandAnswer: |root, ask| format!("ORDER {:?} {}", ask.action, ask.task_id), CommandAnswer {
        done: true,
        said: "started".into(),
        run_ids: vec![],
    };
}
