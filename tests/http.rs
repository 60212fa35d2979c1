//! The agent's pages over real sockets: what each shows, who may ask, and what strangers cannot do (BEHAVIOUR 73).
#![allow(
    clippy::disallowed_methods,
    reason = "real files and processes are waited for in small steps"
)]
use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kit::{Agent, Answer, Plan, TOKEN, ask, bounded, receive, send};
use luffly_agent::messages::control::HealthState;
use serde_json::json;

#[path = "kit/http.rs"]
mod kit;

// As the agent's own main does, so that heap profiles can be taken.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
#[cfg(feature = "jemalloc")]
// SAFETY: the name and type are those that jemalloc looks for: a pointer to text that ends in NUL.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8] = b"prof:true,prof_active:false,lg_prof_sample:10\0";

/// Every page, and the methods that it takes.
const OPEN: &[&str] = &["/ping", "/version", "/health", "/metrics"];
const READ: &[&str] = &[
    "/api/v1/agent",
    "/api/v1/actors",
    "/api/v1/pipelines",
    "/api/v1/files",
    "/api/v1/why?what=/a",
    "/api/v1/health",
    "/api/v1/config",
    "/api/v1/logs",
    "/api/v1/log-level",
];
const WRITE: &[(&str, &str)] = &[
    ("POST", "/api/v1/stop"),
    ("POST", "/api/v1/reopen"),
    ("POST", "/api/v1/reload"),
    ("PUT", "/api/v1/log-level?level=debug"),
    ("POST", "/api/v1/session"),
    ("DELETE", "/api/v1/session"),
];
const AGENT: &[(&str, &str)] = &[("X-Agent", "test")];

// ---- what pages show

#[test]
fn open_pages() {
    let agent = Agent::plain();
    let ping = agent.stranger("GET", "/ping");
    assert_eq!((ping.status, ping.text().as_str()), (200, "OK"));

    let version = agent.stranger("GET", "/version");
    assert_eq!((version.status, version.text().as_str()), (200, "v.1.1.0"));
    let version = ask(agent.tcp(), "GET", "/version", &[("accept", "application/json")], b"");
    assert_eq!(version.json(), json!({ "version": "v.1.1.0" }));

    let metrics = agent.stranger("GET", "/metrics");
    assert_eq!(
        (metrics.status, metrics.header("content-type")),
        (200, "text/plain; version=0.0.4")
    );
    assert!(metrics.text().contains("\nluffly_build_info{version=\"v.1.1.0\"} 1\n"));
    assert_eq!(agent.heard(), ["metrics"], "gauges are brought up to date first");

    let root = agent.stranger("GET", "/");
    assert_eq!(root.problem(404), "dashboard: not built yet");
    assert_eq!(
        agent.stranger("GET", "/nothing").problem(404),
        "there is no page /nothing"
    );
    assert_eq!(root.header("cache-control"), "no-store");
    assert_eq!(root.header("x-content-type-options"), "nosniff");
}

#[test]
fn health_has_three_states() {
    let reasons = json!(["output default/logr: no space left"]);
    for (health, status, shown) in [
        (HealthState::Ok, 200, json!({ "state": "ok", "reasons": [] })),
        (
            HealthState::Degraded,
            200,
            json!({ "state": "degraded", "reasons": reasons }),
        ),
        (
            HealthState::Failing,
            503,
            json!({ "state": "failing", "reasons": reasons }),
        ),
    ] {
        let agent = Agent::start(Plan {
            health,
            ..Plan::default()
        });
        for answer in [
            agent.stranger("GET", "/health"),
            agent.member("GET", "/api/v1/health", &[], b""),
        ] {
            assert_eq!((answer.status, answer.json()), (status, shown.clone()));
            assert_eq!(answer.header("content-type"), "application/json");
        }
    }
}

#[test]
fn resources() {
    let agent = Agent::plain();
    for (path, shown) in [
        (
            "/api/v1/agent",
            json!({
                "agent_id": "sky01", "group": "net01", "hostname": "web-7", "ip": "10.0.0.7", "instance": "i-1",
                "version": "v.1.1.0", "pid": 4711, "started": "2026-11-02T03:04:05Z", "data_dir": "/var/lib/luffly",
                "http": "0.0.0.0:10630", "stopping": false, "log_level": "info", "last_reload": null,
            }),
        ),
        (
            "/api/v1/actors",
            json!({ "actors": [
                {
                    "name": "sink/default/logr", "state": "restarting", "restarts": { "panic: no": 2, "ended itself": 1 },
                    "last_error": "no space left", "fill": { "taken": 3, "room": 4096 }, "waited_seconds": 1.5,
                },
                { "name": "http", "state": "running", "restarts": {}, "last_error": null, "fill": null, "waited_seconds": 0.0 },
            ]}),
        ),
        (
            "/api/v1/pipelines",
            json!({ "pipelines": [{
                "name": "default", "input": "file:v2", "filters": ["valid:v1"], "events_in": 10, "bytes_in": 1000,
                "filtered": 1, "ended": false, "error": null, "note": null,
                "outputs": [{
                    "name": "logr", "plugin": "logr:v1", "when_full": "block", "breaker": "open", "delivered": 4,
                    "dropped": 2, "dead": 1, "waiting": 2, "difference": 0, "error": "no space left",
                }],
            }]}),
        ),
        (
            "/api/v1/files",
            json!({ "files": [{
                "pipeline": "default", "path": "/var/log/a.log", "identity": "801:2a", "size": 100, "read": 80,
                "acknowledged": 60, "lag": 40, "state": "tailing", "reason": "", "aliases": ["/var/log/b.log"],
            }]}),
        ),
        (
            "/api/v1/why?what=/var/log/a%20b.log",
            json!({ "what": "/var/log/a b.log", "why": "the rule ignore_older" }),
        ),
        ("/api/v1/config", json!({ "http": { "address": "0.0.0.0:10630" } })),
        ("/api/v1/logs?n=2", json!({ "records": ["first", "last"] })),
        ("/api/v1/log-level", json!({ "level": "info" })),
    ] {
        for answer in [agent.member("GET", path, &[], b""), agent.local("GET", path)] {
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.json(), shown, "{path}");
        }
        let head = agent.member("HEAD", path, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
    }
    let heard = agent.heard();
    assert!(
        heard.contains(&"why /var/log/a b.log".into()) && heard.contains(&"logs 2".into()),
        "{heard:?}"
    );
    agent.member("GET", "/api/v1/logs", &[], b"");
    assert_eq!(agent.heard().last().unwrap(), "logs 100");
    for (path, part) in [
        ("/api/v1/logs?n=many", "invalid digit"),
        ("/api/v1/logs?m=1", "unknown field `m`"),
        ("/api/v1/why", "missing field `what`"),
    ] {
        let detail = agent.member("GET", path, &[], b"").problem(400);
        assert!(detail.contains(part), "{detail}");
    }
}

#[test]
fn orders() {
    let agent = Agent::plain();
    let stop = agent.member("POST", "/api/v1/stop", AGENT, b"");
    assert_eq!((stop.status, stop.json()), (202, json!({ "accepted": "stop" })));
    let reopen = agent.local("POST", "/api/v1/reopen");
    assert_eq!((reopen.status, reopen.json()), (202, json!({ "accepted": "reopen" })));
    let reload = agent.local("POST", "/api/v1/reload");
    let answer = json!({ "added": [], "removed": [], "changed": [{ "key": "log.level", "from": "info", "to": "debug" }], "pending": [] });
    assert_eq!((reload.status, reload.json()), (200, answer));
    let level = agent.member("PUT", "/api/v1/log-level?for=5m", AGENT, br#"{"level":"debug"}"#);
    assert_eq!(
        (level.status, level.json()),
        (200, json!({ "level": "debug", "for_seconds": 300.0 }))
    );
    let level = agent.member("PUT", "/api/v1/log-level?level=warning", AGENT, b"");
    assert_eq!(
        (level.status, level.json()),
        (200, json!({ "level": "warning", "for_seconds": null }))
    );
    let detail = agent
        .member("PUT", "/api/v1/log-level?level=loud", AGENT, b"")
        .problem(400);
    assert_eq!(
        detail,
        "level: found `loud`, accepted: critical, error, warning, info, debug, trace"
    );
    assert_eq!(
        agent.heard(),
        ["STOP", "REOPEN", "RELOAD", "SET Debug Some(300s)", "SET Warning None"]
    );
}

#[test]
fn a_root_that_does_not_answer() {
    let agent = Agent::start(Plan {
        silent: true,
        limit: Duration::from_millis(50),
        ..Plan::default()
    });
    for path in READ
        .iter()
        .chain(&["/metrics", "/debug?cmd=go"])
        .filter(|path| !path.ends_with("/health"))
    {
        assert_eq!(
            agent.member("GET", path, &[], b"").problem(503),
            "the agent's root does not answer",
            "{path}"
        );
    }
    assert_eq!(
        agent.member("POST", "/api/v1/stop", AGENT, b"").problem(503),
        "the agent's root does not answer"
    );
    let health = agent.stranger("GET", "/health");
    assert_eq!(health.status, 503);
    assert_eq!(
        health.json(),
        json!({ "state": "failing", "reasons": ["the agent's root does not answer"] })
    );
    assert_eq!(agent.stranger("GET", "/ping").status, 200);
}

// ---- who may ask

fn closed() -> Vec<(&'static str, &'static str)> {
    let read = READ
        .iter()
        .chain(&["/debug?cmd=heap", "/debug?cmd=nothing", "/api/v1/nothing"]);
    read.map(|path| ("GET", *path)).chain(WRITE.iter().copied()).collect()
}

#[test]
fn strangers_get_the_open_pages_only() {
    let agent = Agent::plain();
    for (method, path) in closed() {
        let url_token = format!("{path}{}token={TOKEN}", if path.contains('?') { '&' } else { '?' });
        let bearer = format!("Bearer {TOKEN}");
        for (path, headers) in [
            (path, &[][..]),
            (path, &[("authorization", "Bearer wrong")]),
            (path, &[("authorization", "Bearer ")]),
            (path, &[("authorization", TOKEN)]),
            (path, &[("authorization", &format!("Basic {TOKEN}"))]),
            (path, &[("authorization", &bearer[..bearer.len() - 1])]),
            (path, &[("authorization", &format!("{bearer}0"))]),
            (path, &[("cookie", "luffly_session=00")]),
            (path, &[("x-forwarded-for", "127.0.0.1"), ("x-agent", "1")]),
            (url_token.as_str(), &[("x-agent", "1")]),
        ] {
            let answer = ask(agent.tcp(), method, path, headers, b"");
            answer.problem(401);
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"agent\"");
            assert_eq!(answer.header("cache-control"), "no-store");
        }
    }
    assert_eq!(agent.heard(), [""; 0], "nothing reached the agent");
    assert_eq!(
        ask(
            agent.tcp(),
            "GET",
            "/api/v1/agent",
            &[("authorization", &format!("bearer {TOKEN}"))],
            b""
        )
        .status,
        200
    );
}

/// An address of this host that is not loopback; none on a host without a network.
fn outer() -> Option<IpAddr> {
    local_ip_address::local_ip().ok().filter(|ip| !ip.is_loopback())
}

#[test]
fn from_another_address() {
    let Some(outer) = outer() else {
        return eprintln!("this host has loopback addresses only: the table in web::guard tells of the others");
    };
    let start = |insecure_remote| {
        Agent::start(Plan {
            bind: [0, 0, 0, 0].into(),
            insecure_remote,
            ..Plan::default()
        })
    };
    let bearer = format!("Bearer {TOKEN}");
    let reach = |agent: &Agent, method: &str, path: &str, headers: &[(&str, &str)]| {
        let stream = bounded(TcpStream::connect((outer, agent.http.port())).unwrap());
        ask(stream, method, path, headers, b"")
    };
    let (agent, lax) = (start(false), start(true));
    for path in OPEN {
        assert_eq!(reach(&agent, "GET", path, &[]).status, 200, "{path}");
    }
    agent.heard.lock().unwrap().clear();
    for (method, path) in closed() {
        for agent in [&agent, &lax] {
            reach(agent, method, path, &[]).problem(401);
            reach(
                agent,
                method,
                path,
                &[("authorization", "Bearer wrong"), ("x-agent", "1")],
            )
            .problem(401);
        }
        let detail = reach(&agent, method, path, &[("authorization", &bearer), ("x-agent", "1")]).problem(403);
        assert!(detail.contains("use the socket, loopback or TLS"), "{detail}");
    }
    assert_eq!((agent.heard().len(), lax.heard().len()), (0, 0));
    assert_eq!(
        reach(&lax, "GET", "/api/v1/agent", &[("authorization", &bearer)]).status,
        200
    );
    reach(&lax, "POST", "/api/v1/stop", &[("authorization", &bearer)]).problem(403);
    assert_eq!(
        reach(
            &lax,
            "POST",
            "/api/v1/stop",
            &[("authorization", &bearer), ("x-agent", "1")]
        )
        .status,
        202
    );
}

#[test]
fn tls_is_as_good_as_loopback() {
    let made = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = luffly_agent::web::tls::server_config(&cert, &key).unwrap();
    let agent = Agent::start(Plan {
        bind: [0, 0, 0, 0].into(),
        tls: Some(tls),
        ..Plan::default()
    });

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let address = SocketAddr::new(outer().unwrap_or([127, 0, 0, 1].into()), agent.http.port());
    let reach = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let connection = rustls::ClientConnection::new(config.clone(), "agent".try_into().unwrap()).unwrap();
        let stream = rustls::StreamOwned::new(connection, bounded(TcpStream::connect(address).unwrap()));
        ask(stream, method, path, headers, b"")
    };
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(reach("GET", "/ping", &[]).text(), "OK");
    reach("GET", "/api/v1/agent", &[]).problem(401);
    assert_eq!(reach("GET", "/api/v1/agent", &[("authorization", &bearer)]).status, 200);
    let session = reach(
        "POST",
        "/api/v1/session",
        &[("authorization", &bearer), ("x-agent", "1")],
    );
    assert!(session.header("set-cookie").ends_with("; Secure"), "{session:?}");

    // In the clear there is nothing on that port.
    let mut stream = bounded(TcpStream::connect(address).unwrap());
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // an alert, or a reset
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));
}

#[test]
fn the_socket_knows_its_user() {
    let agent = Agent::plain();
    for (method, path) in closed().into_iter().filter(|(_, path)| !path.contains("nothing")) {
        let status = agent.local(method, path).status;
        assert!((200..300).contains(&status), "{method} {path}: {status}");
    }
    let root = nix::unistd::geteuid().is_root();
    if !root {
        return eprintln!("only root can become another user: the table in web::guard tells of that");
    }
    // Somebody opened directory and socket to all.
    let anyone = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(agent.dir.path(), anyone(0o755)).unwrap();
    std::fs::set_permissions(&agent.socket, anyone(0o666)).unwrap();
    let heard = agent.heard().len();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            // SAFETY: a plain system call; made directly it changes this thread only, which ends here.
            let done = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(done, 0);
            for (method, path) in closed().into_iter().chain(OPEN.iter().map(|path| ("GET", *path))) {
                let bearer = format!("Bearer {TOKEN}");
                let answer = ask(
                    agent.unix(),
                    method,
                    path,
                    &[("authorization", &bearer), ("x-agent", "1")],
                    b"",
                );
                assert_eq!(
                    answer.problem(403),
                    "this socket is for root and the user who runs the agent"
                );
            }
        });
        other.join().unwrap();
    });
    assert_eq!(agent.heard().len(), heard);
}

#[test]
fn writes_over_tcp_need_the_header() {
    let agent = Agent::plain();
    for (method, path) in WRITE {
        let detail = agent.member(method, path, &[], b"").problem(403);
        assert_eq!(
            detail,
            "a request that changes something needs the header X-Agent, with any value"
        );
    }
    assert_eq!(agent.heard(), [""; 0]);
    for (method, path) in WRITE {
        let status = agent.member(method, path, &[("x-agent", "")], b"").status;
        assert!((200..300).contains(&status), "{method} {path}: {status}");
    }
    assert_eq!(agent.heard(), ["STOP", "REOPEN", "RELOAD", "SET Debug None"]);
}

#[test]
fn get_changes_nothing() {
    let agent = Agent::plain();
    let read = OPEN.iter().chain(READ).chain(&["/", "/debug?cmd=go"]).copied();
    for path in read.chain(WRITE.iter().map(|(_, path)| *path)) {
        for method in ["GET", "HEAD"] {
            let headers = [("x-agent", "1"), ("x-http-method-override", "POST")];
            agent.member(method, path, &headers, b"");
            ask(agent.unix(), method, path, &headers, b"");
        }
    }
    let heard = agent.heard();
    assert!(heard.len() > 30, "{heard:?}");
    let orders = heard
        .iter()
        .filter(|question| question.chars().all(|c| !c.is_lowercase()) || question.starts_with("SET"));
    assert_eq!(orders.count(), 0, "{heard:?}");
}

#[test]
fn wrong_methods() {
    let agent = Agent::plain();
    for (method, path, allowed) in [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
        ("POST", "/api/v1/agent", "GET, HEAD"),
        ("OPTIONS", "/api/v1/agent", "GET, HEAD"),
        ("GET", "/api/v1/stop", "POST"),
        ("PUT", "/api/v1/reopen", "POST"),
        ("DELETE", "/api/v1/log-level", "GET, HEAD, PUT"),
        ("GET", "/api/v1/session", "POST, DELETE"),
        ("POST", "/debug?cmd=heap", "GET"),
        ("HEAD", "/debug?cmd=heap", "GET"),
    ] {
        let answer = agent.member(method, path, AGENT, b"");
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, allowed),
            "{method} {path}"
        );
        if method != "HEAD" {
            assert_eq!(
                answer.problem(405),
                format!("{method} is not possible here, accepted: {allowed}")
            );
        }
    }
    assert_eq!(agent.heard(), [""; 0]);
    agent.member("GET", "/api/v1/nothing", &[], b"").problem(404);
    agent.member("GET", "/debug/x", &[], b"").problem(404);
    agent.member("POST", "/api/v1/nothing", AGENT, b"").problem(404);
}

#[test]
fn sessions() {
    let agent = Agent::plain();
    let begun = agent.member("POST", "/api/v1/session", AGENT, b"");
    assert_eq!((begun.status, begun.json()), (201, json!({ "expires_in": 43200 })));
    let (cookie, attributes) = begun.header("set-cookie").split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; Max-Age=43200; HttpOnly; SameSite=Strict");
    let with = |method: &str, path: &str, more: &[(&str, &str)]| {
        ask(agent.tcp(), method, path, &[&[("cookie", cookie)], more].concat(), b"")
    };
    assert_eq!(with("GET", "/api/v1/agent", &[]).status, 200);
    with("POST", "/api/v1/stop", &[]).problem(403); // what another site's form could send
    assert_eq!(with("POST", "/api/v1/stop", AGENT).status, 202);
    with("POST", "/api/v1/session", AGENT).problem(403); // no session from a session

    agent.fall();
    assert_eq!(with("GET", "/api/v1/agent", &[]).status, 200, "it outlives a fall");

    with("DELETE", "/api/v1/session", &[]).problem(403);
    let ended = with("DELETE", "/api/v1/session", AGENT);
    assert_eq!(ended.status, 204);
    assert!(
        ended
            .header("set-cookie")
            .starts_with("luffly_session=; Path=/; Max-Age=0;")
    );
    with("GET", "/api/v1/agent", &[]).problem(401);
}

// ---- what strangers cannot do

#[test]
fn huge_bodies() {
    let agent = Agent::plain();
    let head = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nX-Agent: 1\r\n{more}\r\n")
    };
    let level = "/api/v1/log-level?level=info";
    for (method, path) in [
        ("PUT", level),
        ("POST", "/api/v1/stop"),
        ("GET", "/ping"),
        ("POST", "/nothing"),
    ] {
        for length in ["65537", "10995116277760"] {
            let request = head(method, path, &format!("Content-Length: {length}\r\n"));
            // None of the body is sent: the answer does not wait for it.
            let (tcp, unix) = (
                send(agent.tcp(), request.as_bytes()),
                send(agent.unix(), request.as_bytes()),
            );
            for answer in [tcp, unix] {
                assert_eq!(
                    answer.problem(413),
                    "a request body may have 65536 bytes at most",
                    "{path} {length}"
                );
            }
        }
        let chunked = head(method, path, "Transfer-Encoding: chunked\r\n");
        send(agent.tcp(), chunked.as_bytes()).problem(411);
    }
    let most = br#"{"level":"info"}"#;
    let padded = |size: usize| [most.as_slice(), &vec![b' '; size - most.len()]].concat();
    assert_eq!(
        agent.member("PUT", "/api/v1/log-level", AGENT, &padded(65536)).status,
        200
    );
    agent
        .member("PUT", "/api/v1/log-level", AGENT, &padded(65537))
        .problem(413);
    agent
        .member("PUT", "/api/v1/log-level", AGENT, &padded(1 << 20))
        .problem(413);
    assert_eq!(agent.heard(), ["SET Info None"]);
}

/// A hundred requests that never become whole, in every way: others are served, and these are let go.
#[test]
fn slow_requests() {
    let agent = Agent::plain();
    let head = format!("PUT /api/v1/log-level HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nX-Agent: 1\r\n");
    // How it begins, and what comes now and then.
    let starts = [
        (String::new(), "G"),
        ("G".into(), "E"),
        ("GET /ping HTTP/1.1\r\nHost: a\r\nX-Slow: ".into(), "a"),
        (head.clone() + "Content-Length: 9999\r\n\r\n{", " "),
        // Answered at once; the rest is not read to its end.
        (
            "POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\na".into(),
            "a",
        ),
        (
            "POST /ping HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            "1\r\na\r\n",
        ),
        (head + "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n"),
        // A second request, begun on the connection of the first.
        (
            "GET /ping HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /pi".into(),
            "n",
        ),
    ];
    let began = Instant::now();
    let mut slow = Vec::new();
    for (start, more) in starts.iter().cycle().take(100) {
        let mut stream = agent.tcp();
        stream.write_all(start.as_bytes()).unwrap();
        slow.push((start, more, stream));
    }
    for _ in 0..20 {
        assert_eq!(agent.stranger("GET", "/ping").text(), "OK");
        assert_eq!(agent.local("GET", "/api/v1/agent").status, 200);
    }
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "served while they were held, after {:?}",
        began.elapsed()
    );
    // Something now and then keeps none of them alive.
    for (_, _, stream) in &slow {
        stream.set_nonblocking(true).unwrap();
    }
    while !slow.is_empty() {
        let held = slow
            .iter()
            .map(|(start, ..)| *start)
            .collect::<std::collections::BTreeSet<_>>();
        assert!(began.elapsed() < Duration::from_secs(12), "still held: {held:?}");
        slow.retain_mut(|(_, more, stream)| {
            let waits = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
            stream.read(&mut [0; 4096]).map_or_else(waits, |n| n > 0)
                && stream.write(more.as_bytes()).map_or_else(waits, |_| true)
        });
        thread::sleep(Duration::from_millis(50)); // the pace of a slow client
    }
}

/// Connections to this port that the server holds; one that still waits in the backlog has no inode yet.
fn held(port: u16) -> usize {
    let (table, local) = (
        std::fs::read_to_string("/proc/self/net/tcp").unwrap(),
        format!(":{port:04X}"),
    );
    let fields = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let held = fields.filter(|f| f[1].ends_with(&local) && f[3] == "01" && f[9] != "0");
    // The table is read in pages while others come and go, so a row may be seen twice.
    held.map(|f| f[2].to_owned())
        .collect::<std::collections::BTreeSet<_>>()
        .len()
}

#[test]
fn a_thousand_connections() {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
    setrlimit(RLIMIT_NOFILE, hard.min(1 << 16), hard).unwrap(); // both ends are in this process
    let agent = Agent::plain();
    let began = Instant::now();
    let many = (0..1000).map(|_| agent.tcp()).collect::<Vec<_>>();
    let (mut most, mut looks) = (0, 0);
    // After 5 s the first are let go and others take their places, and the table shows some of both.
    while looks < 20 && began.elapsed() < Duration::from_secs(4) {
        // The admin socket is apart from them.
        assert_eq!(agent.local("GET", "/api/v1/agent").status, 200);
        most = most.max(held(agent.http.port()));
        looks += usize::from(most >= 256);
    }
    assert_eq!(most, 256);
    drop(many);
    assert_eq!(agent.stranger("GET", "/ping").text(), "OK");
}

// ---- life

#[test]
fn a_fall_keeps_the_address() {
    let agent = Agent::plain();
    for _ in 0..5 {
        assert_eq!(agent.stranger("GET", "/ping").status, 200);
        assert_eq!(agent.local("GET", "/ping").status, 200);
        agent.fall();
    }
    assert_eq!(agent.stranger("GET", "/ping").status, 200);
    assert!(agent.socket.exists());
}

#[test]
fn drain_ends_it() {
    // Root never answers, so a request is under way for as long as it may be.
    let agent = Agent::start(Plan {
        silent: true,
        limit: Duration::from_secs(60),
        ..Plan::default()
    });
    let mut hanging = agent.unix();
    hanging
        .write_all(b"GET /api/v1/agent HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    while agent.heard().is_empty() {
        thread::yield_now();
    }
    let began = Instant::now();
    agent.drain();
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(
        TcpStream::connect(agent.http).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    let socket = std::os::unix::net::UnixStream::connect(&agent.socket).unwrap_err();
    assert_eq!(socket.kind(), std::io::ErrorKind::ConnectionRefused);
    let mut rest = Vec::new();
    let _ = hanging.read_to_end(&mut rest); // closed or reset
    assert_eq!(rest, b"", "it was cut off, not answered");
    agent.drain(); // once more does no harm
}

#[test]
fn what_is_under_way_is_answered() {
    let agent = Agent::start(Plan {
        silent: true,
        limit: Duration::from_millis(400),
        ..Plan::default()
    });
    let mut request = agent.tcp();
    let head = format!("GET /api/v1/agent HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    request.write_all(head.as_bytes()).unwrap();
    while agent.heard().is_empty() {
        thread::yield_now();
    }
    agent.drain();
    receive(request).problem(503);
}

// ---- debug

fn debug(agent: &Agent, query: &str) -> Answer {
    agent.local("GET", &format!("/debug?{query}"))
}

#[test]
fn debug_texts() {
    let agent = Agent::plain();
    let go = debug(&agent, "cmd=go");
    assert_eq!(
        (go.status, go.header("content-type")),
        (200, "text/plain; charset=utf-8")
    );
    let line = go
        .text()
        .lines()
        .find(|line| line.starts_with("sink/default/logr"))
        .unwrap()
        .to_owned();
    let words = line.split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        words,
        [
            "sink/default/logr",
            "restarting",
            "3",
            "3/4096",
            "1.500",
            "no",
            "space",
            "left"
        ]
    );

    assert_eq!(agent.stranger("GET", "/ping").status, 200); // its thread runs
    let threads = debug(&agent, "cmd=thread").text();
    for name in ["http", "admin-socket"] {
        assert!(
            threads.lines().any(|line| line.split_whitespace().nth(1) == Some(name)),
            "{threads}"
        );
    }
    for (query, part) in [
        (
            "cmd=nothing",
            "cmd: found `nothing`, accepted: heap, gc, go, thread, cpuprof, memprof",
        ),
        ("", "cmd: found ``, accepted: heap, gc, go, thread, cpuprof, memprof"),
        ("cmd=cpuprof&seconds=0", "seconds: found 0, accepted: 1 to 60"),
        ("cmd=cpuprof&seconds=61", "seconds: found 61, accepted: 1 to 60"),
        ("cmd=memprof&seconds=61", "seconds: found 61, accepted: 1 to 60"),
        (
            "cmd=cpuprof&format=perf",
            "format: found `perf`, accepted: flamegraph, pprof",
        ),
        ("cmd=heap&x=1", "unknown field `x`"),
    ] {
        let detail = debug(&agent, query).problem(400);
        assert!(detail.contains(part), "{detail}");
    }
}

/// Not inlined: without line numbers in the binary a profile knows only functions that are called.
#[inline(never)]
fn spend_time(done: &std::sync::atomic::AtomicBool) {
    let mut n = 0u64;
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
    }
}
/// Uses CPU time in a function of its own, on a thread of its own, while something else is done.
fn while_burning<T>(then: impl FnOnce() -> T) -> T {
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let burner = thread::Builder::new().name("burner".into());
        burner.spawn_scoped(scope, || spend_time(&done)).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(then));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One test, for there is one profiler.
#[test]
fn cpu_profiles() {
    let agent = Agent::plain();
    let graph = while_burning(|| debug(&agent, "cmd=cpuprof&seconds=1"));
    assert_eq!((graph.status, graph.header("content-type")), (200, "image/svg+xml"));
    let svg = graph.text();
    assert!(
        svg.contains("<svg") && svg.contains("burner") && svg.contains("spend_time"),
        "{}",
        &svg[..svg.len().min(2000)]
    );

    // Two at once: one has the profiler, the other is told so at once, and pages are served meanwhile.
    let profile = while_burning(|| {
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            for _ in 0..2 {
                let (agent, tell) = (&agent, tell.clone());
                scope.spawn(move || tell.send(debug(agent, "cmd=cpuprof&seconds=2&format=pprof")).unwrap());
            }
            let refused = told.recv().unwrap().problem(409);
            assert_eq!(
                refused,
                "a profile of this kind is being taken, try again when it is done"
            );
            assert_eq!(agent.local("GET", "/ping").text(), "OK");
            told.try_recv().unwrap_err();
            told.recv().unwrap()
        })
    });
    assert_eq!(profile.status, 200, "{}", String::from_utf8_lossy(&profile.body));
    assert_eq!(
        profile.header("content-disposition"),
        "attachment; filename=\"cpu.pb.gz\""
    );
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(profile.body.as_slice())
        .read_to_end(&mut bytes)
        .unwrap();
    let profile: pprof::protos::Profile = pprof::protos::Message::decode(bytes.as_slice()).unwrap();
    assert!(
        profile.sample.iter().map(|sample| sample.value[0]).sum::<i64>() > 5,
        "{} samples",
        profile.sample.len()
    );
    for part in ["burner", "spend_time"] {
        assert!(profile.string_table.iter().any(|name| name.contains(part)), "{part}");
    }
}

#[cfg(feature = "jemalloc")]
#[test]
fn memory() {
    let agent = Agent::plain();
    let heap = debug(&agent, "cmd=heap").text();
    let allocated = heap.lines().find_map(|line| line.strip_prefix("allocated ")).unwrap();
    assert!(
        allocated.split_whitespace().next().unwrap().parse::<u64>().unwrap() > 10_000,
        "{allocated}"
    );
    assert!(heap.contains("___ Begin jemalloc statistics ___"), "{heap}");

    drop(std::hint::black_box(vec![1u8; 64 << 20]));
    let gc = debug(&agent, "cmd=gc").text();
    let words = gc.split_whitespace().collect::<Vec<_>>();
    let [before, after] = [words[2], words[4]].map(|n| n.parse::<u64>().unwrap());
    assert!(gc.starts_with("resident before ") && before > 0 && after > 0, "{gc}");

    // What is allocated while it samples, and kept, is in it.
    let profile = thread::scope(|scope| {
        let taken = scope.spawn(|| debug(&agent, "cmd=memprof&seconds=1"));
        let mut kept = Vec::new();
        while !taken.is_finished() {
            kept.push(vec![0u8; 100_000]);
            thread::sleep(Duration::from_millis(5));
        }
        taken.join().unwrap()
    });
    assert_eq!(profile.status, 200, "{}", profile.text());
    let text = profile.text();
    assert!(text.starts_with("heap_v2/1024\n"), "{}", &text[..100.min(text.len())]);
    let total = text.lines().nth(1).unwrap().trim(); // t*: 17: 1700000 [0: 0]
    let bytes = total.split([':', '[']).nth(2).unwrap().trim().parse::<u64>().unwrap();
    assert!(bytes >= 1_000_000, "{total}");
    assert!(
        text.contains("\nMAPPED_LIBRARIES:"),
        "it names the code that the addresses belong to"
    );
}

#[cfg(not(feature = "jemalloc"))]
#[test]
fn memory() {
    let agent = Agent::plain();
    for cmd in ["heap", "gc", "memprof"] {
        let detail = debug(&agent, &format!("cmd={cmd}")).problem(501);
        assert!(detail.contains("built without the feature jemalloc"), "{detail}");
    }
}
