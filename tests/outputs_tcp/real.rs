//! The real binary: peers that are killed, hang and break beside an output that works.
use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use crate::{
    kit::agent::{Place, finish, until},
    outputs_kit::{child, child_dir, numbered},
    peer::*,
    *,
};

fn text(from: u64, to: u64) -> String {
    (from..to).map(|n| format!("{n:07} a line of the file\n")).collect()
}

#[test]
fn a_stop_while_the_peer_hangs_ends_in_time_and_loses_nothing() {
    let place = Place::default();
    place.write("in/app.log", text(0, 100_000));
    let (deaf, address) = small_listener();
    let config = place.configure(
        &format!(r#"{{ plugin = "tcp", addresses = ["{address}"] }}"#),
        "[agent]\ndrain = \"500ms\"",
    );
    let agent = place.start(&config, Stdio::null());
    let socket = accept(&deaf);
    let mut held = 0;
    until("nothing moves any more", || {
        let before = std::mem::replace(&mut held, peek(&socket).len());
        before > 0 && before == held
    });
    assert_eq!(agent.stop(), Some(0), "the rest is at its source");
    let peer = thread::spawn(move || {
        let mut all = vec![];
        let mut socket = accept(&deaf);
        let mut some = [0; 65536];
        while all.len() < text(0, 100_000).len() && !all.ends_with(b"0099999 a line of the file\n") {
            let n = socket.read(&mut some).unwrap();
            all.extend_from_slice(&some[..n]);
        }
        all
    });
    let first = peek(&socket);
    drop(socket);
    let agent = place.start(&config, Stdio::null());
    let got = peer.join().unwrap();
    assert_eq!(agent.stop(), Some(0));
    // What the first peer's kernel had acknowledged is not lost by the test: it goes on within that, or behind it.
    let all = text(0, 100_000);
    assert!(all.as_bytes().ends_with(&got), "from some line on, all of it in order");
    assert!(
        got.len() + whole_lines(&first).len() >= all.len(),
        "{} + {}",
        got.len(),
        first.len()
    );
}

#[test]
fn a_breaking_peer_that_may_be_dropped_takes_nothing_from_the_other_output() {
    const LINES: u64 = 60_000;
    for policy in [
        r#"when_full = "drop_oldest""#,
        r#"when_full = "drop_newest""#,
        r#"when_full = "block", degrade = "drop_oldest""#,
    ] {
        let place = Place::default();
        let (listener, address) = small_listener();
        let over = Arc::new(AtomicBool::new(false));
        let breaks = thread::spawn({
            let over = over.clone();
            move || {
                let mut times = 0;
                while let Ok((mut socket, _)) = listener.accept() {
                    if over.load(SeqCst) {
                        break;
                    }
                    times += 1;
                    let _ = socket.read(&mut [0; 100]); // and leaves, with a reset where there was more
                }
                times
            }
        });
        let config = place.configure(
            &format!(
                r#"{{ plugin = "logr", path = "{{0}}/out/all.log" }},
                   {{ plugin = "tcp", addresses = ["{address}"], retry = {{ first = "10ms", most = "20ms" }}, {policy} }}"#
            ),
            "[http]\naddress = \"off\"\n[agent]\ndrain = \"1s\"",
        );
        place.write("in/app.log", text(0, LINES / 2));
        let agent = place.start(&config, Stdio::null());
        until("the first half is there", || {
            place.read("out/all.log").len() == text(0, LINES / 2).len()
        });
        place.write("in/more.log", text(LINES / 2, LINES));
        until("the second half is there", || {
            place.read("out/all.log").len() == text(0, LINES).len()
        });
        // It drops, or has delivered (to kernels) all: nothing waits in the end but what is being tried.
        until("each event is accounted for", || {
            let of = |name: &str| place.metric(name, "output=\"tcp\"");
            let done = of("events_delivered_total") + of("events_dropped_total") + of("events_waiting");
            done == LINES as i64 && of("output_retries_total") > 2
        });
        place.conserved();
        assert!(agent.stop().is_some());
        over.store(true, SeqCst);
        let _ = std::net::TcpStream::connect(&address);
        assert!(breaks.join().unwrap() > 2);
        assert!(place.read("out/all.log") == text(0, LINES).into_bytes(), "{policy}");
    }
}

#[test]
fn a_deaf_peer_is_left_again_and_again_beside_an_output_that_works() {
    let place = Place::default();
    let (_deaf, address) = small_listener();
    let config = place.configure(
        &format!(
            r#"{{ plugin = "logr", path = "{{0}}/out/all.log" }},
               {{ plugin = "tcp", addresses = ["{address}"], write_timeout = "100ms", when_full = "drop_oldest",
                  retry = {{ first = "10ms", most = "20ms" }} }}"#
        ),
        "[http]\naddress = \"off\"\n[agent]\ndrain = \"200ms\"",
    );
    place.write("in/app.log", text(0, 50_000));
    let agent = place.start(&config, Stdio::null());
    until("the other has all of it", || {
        place.read("out/all.log").len() == text(0, 50_000).len()
    });
    until("the peer was left twice", || {
        place.metric("output_retries_total", "output=\"tcp\"") >= 2
    });
    let (_, health) = place.get("/health");
    assert!(
        health.contains("the peer took nothing for 100ms") && health.contains("degraded"),
        "{health}"
    );
    place.conserved();
    assert!(agent.stop().is_some());
    assert!(place.read("out/all.log") == text(0, 50_000).into_bytes());
}

#[test]
fn memory_stays_bounded_while_a_peer_is_deaf() {
    let place = Place::default();
    let (deaf, address) = small_listener();
    // Takes every connection and reads nothing; it ends with the test's process.
    thread::spawn(move || {
        let mut held = vec![];
        while let Ok((socket, _)) = deaf.accept() {
            held.push(socket);
        }
    });
    let config = place.configure(
        &format!(
            r#"{{ plugin = "tcp", addresses = ["{address}"], encode = "json", write_timeout = "50ms",
                  retry = {{ first = "10ms", most = "20ms" }} }}"#
        ),
        "[http]\naddress = \"off\"\n[limits]\nmemory = \"4MiB\"",
    );
    place.write("in/app.log", text(0, 1_000_000)); // 29 MB
    let agent = place.start(&config, Stdio::null());
    let rss = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let retries = || place.metric("output_retries_total", "output=\"tcp\"");
    until("it was left ten times", || retries() >= 10);
    let before = rss();
    until("it was left thirty times", || retries() >= 30);
    // A rest for the allocator's own habits.
    assert!(rss() <= before + 8, "{before} MiB, then {} MiB", rss());
    agent.kill();
}

/// Started by the test below, as a process of its own: reads one connection after the other into files.
#[test]
fn receives_until_killed() {
    let Some(dir) = child_dir() else { return };
    let address = std::fs::read_to_string(dir.join("address")).unwrap();
    let listener = TcpListener::bind(address).unwrap();
    std::fs::write(dir.join("ready"), "").unwrap();
    loop {
        let mut socket = accept(&listener);
        let number = std::fs::read_dir(&dir).unwrap().count();
        let mut file = std::fs::File::create(dir.join(format!("got.{number:03}"))).unwrap();
        let _ = std::io::copy(&mut socket, &mut file);
    }
}
fn receiver(dir: &Path) -> Child {
    let _ = std::fs::remove_file(dir.join("ready"));
    let mut command: Command = child("real::receives_until_killed", dir);
    let started = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the receiver listens", || dir.join("ready").exists());
    started
}
/// TCP cannot tell what the process behind a kernel has read. So a receiver that is killed may lose what its kernel held for it, and
/// nothing else: no line is torn, none comes out of order, and the gaps are no larger than what a kernel holds.
#[test]
fn a_receiver_that_is_killed_loses_at_most_what_its_kernel_held() {
    const KILLS: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let (_, address) = listener();
    std::fs::write(dir.path().join("address"), &address).unwrap();
    let mut output = tcp(json!({ "addresses": [address] }));
    let batches = numbered(0, 40_000, &"k".repeat(100));
    let mut kills = 0;
    let mut running = receiver(dir.path());
    let mut done = 0;
    while done < batches.len() {
        let written = output.write(&batches[done..batches.len().min(done + 64)]);
        done += written.batches;
        if kills < KILLS && done > (kills + 1) * batches.len() / (KILLS + 1) {
            running.kill().unwrap();
            running.wait().unwrap();
            running = receiver(dir.path());
            kills += 1;
        }
    }
    output.close().unwrap();
    let total = || {
        let mut files = crate::outputs_kit::names(dir.path());
        files.retain(|name| name.starts_with("got."));
        files
            .into_iter()
            .map(|name| std::fs::read(dir.path().join(name)).unwrap())
            .collect::<Vec<_>>()
    };
    until("the last line is there", || {
        total()
            .last()
            .unwrap()
            .ends_with(lines(&batches[batches.len() - 1..]).as_bytes())
    });
    running.kill().unwrap();
    running.wait().unwrap();
    let (mut expected, mut lost) = (0, 0);
    for file in total() {
        for line in String::from_utf8(whole_lines(&file).to_vec()).unwrap().lines() {
            let number = line.split(' ').next().unwrap().parse::<u64>().unwrap();
            assert_eq!(line, format!("{number} {}", "k".repeat(100)), "a line is whole");
            lost += number.saturating_sub(expected);
            expected = expected.max(number + 1);
        }
    }
    assert_eq!(expected, batches.len() as u64);
    assert!(lost < KILLS as u64 * (8 << 20) / 100, "{lost}");
}

#[test]
fn check_online_says_each_step_and_what_failed() {
    let place = Place::default();
    let (listener, address) = listener();
    let accepts = thread::spawn(move || {
        for _ in 0..2 {
            assert_eq!(read_all(&mut accept(&listener)), b"", "nothing is sent");
        }
    });
    let authority = Authority::new(&place.path(""), "authority");
    let pair = authority.issue("localhost", |_| {});
    let (secured, secure_address) = listener_of_tls(&pair);
    let outputs = format!(
        r#"{{ plugin = "logr", path = "{{0}}/out/all.log" }}, {{ plugin = "null" }}, {{ plugin = "tcp", addresses = ["{address}"] }},
           {{ plugin = "tcp", addresses = ["{secure_address}"], tls = {{ ca = "{}" }} }}"#,
        authority.pem().display()
    );
    let check = |config: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
        command.args(["check", "--online", "-config"]).arg(config).args(more);
        finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    let config = place.configure(&outputs, "");
    let good = check(&config, &[]);
    assert_eq!((good.code(), &*good.err), (Some(0), ""), "{good:?}");
    let expected = [
        "configuration ok".to_owned(),
        format!(
            "ok      t/logr: write below {}/out: ok, it will be made",
            place.path("").display().to_string().trim_end_matches('/')
        ),
        "ok      t/null: it has no far side".to_owned(),
        format!("ok      t/tcp: look up {address}: 127.0.0.1"),
        format!("ok      t/tcp: connect to {address}: ok, from 127.0.0.1:"),
        format!("ok      t/tcp#2: look up {secure_address}: "),
        format!("ok      t/tcp#2: connect to {secure_address} (127.0.0.1): ok, from 127.0.0.1:"),
        format!("ok      t/tcp#2: TLS handshake with {secure_address} (127.0.0.1): TLSv1_3, "),
    ];
    let seen = good
        .out
        .lines()
        .filter(|line| !line.contains("(::1)"))
        .collect::<Vec<_>>();
    assert_eq!(seen.len(), expected.len(), "{}", good.out);
    for (line, expected) in seen.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    assert!(!place.path("out").exists(), "looking makes nothing");
    let json: Value = serde_json::from_str(&check(&config, &["--json"]).out).unwrap();
    assert_eq!(
        (&json["ok"], &json["steps"][1]["output"]),
        (&json!(true), &json!("tcp"))
    );
    accepts.join().unwrap();
    secured.join().unwrap();

    // One who refuses, one who is none, a directory that is a file, a certificate that is for another.
    let (_, gone) = peer::listener();
    let (secured, secure_address) = listener_of_tls(&pair);
    place.write("file", "");
    let config = place.configure(
        &format!(
            r#"{{ plugin = "logr", path = "{{0}}/file/all.log" }}, {{ plugin = "tcp", addresses = ["{gone}", "no.such.invalid:1"] }},
               {{ plugin = "tcp", addresses = ["{secure_address}"], tls = {{ ca = "{}", server_name = "other" }} }}"#,
            authority.pem().display()
        ),
        "",
    );
    let bad = check(&config, &[]);
    assert_eq!(bad.code(), Some(1), "{bad:?}");
    for part in [
        "failed  t/logr: could not write ".to_owned(),
        format!(
            "ok      t/tcp: look up {gone}: 127.0.0.1\nfailed  t/tcp: could not connect to {gone}: connection refused\n"
        ),
        "failed  t/tcp: could not look up `no.such.invalid`: ".to_owned(),
        "failed  t/tcp#2: TLS handshake with ".to_owned(),
        "the peer's certificate is for another name".to_owned(),
    ] {
        assert!(bad.out.contains(&part), "{part}\n{}", bad.out);
    }
    secured.join().unwrap();
}
/// Two handshakes, or what becomes of them.
fn listener_of_tls(pair: &Pair) -> (thread::JoinHandle<()>, String) {
    let (listener, address) = listener();
    let config = Authority::server(pair, None);
    let served = thread::spawn(move || {
        listener.set_nonblocking(false).unwrap();
        for _ in 0..2 {
            let Ok((socket, _)) = listener.accept() else { return };
            match secure(socket, &config) {
                Ok(mut session) => assert_eq!(read_all(&mut session), b"", "nothing is sent"),
                Err(_) => return,
            }
        }
    });
    (served, address.replace("127.0.0.1", "localhost"))
}
