//! The output tcp against real listeners: what the peer's kernel has not acknowledged arrives all the same, in order, and no event is
//! continued on another connection than it was begun on. Times are moved by hand.
#![allow(
    clippy::disallowed_methods,
    reason = "real processes and peers are waited for in small steps"
)]
#[path = "../kit/mod.rs"]
mod kit;
#[path = "../outputs_kit/mod.rs"]
mod outputs_kit;
mod peer;
mod real;
mod secured;

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use luffly_agent::{clock::ManualClock, model::Batch, plugins::outputs::Output};
use outputs_kit::*;
use peer::*;
use serde_json::{Value, json};

pub fn tcp(options: Value) -> Box<dyn Output> {
    tcp_at(options, &clock())
}
pub fn tcp_at(options: Value, clock: &Arc<ManualClock>) -> Box<dyn Output> {
    build("tcp", options, context("p", clock))
}
/// Writes all of them, as a Sink would, whatever goes wrong in between; the errors are given back.
pub fn deliver(output: &mut dyn Output, batches: &[Batch]) -> Vec<String> {
    let (mut done, mut errors) = (0, vec![]);
    while done < batches.len() {
        let written = output.write(&batches[done..]);
        done += written.batches;
        errors.extend(written.stopped.map(|error| error.to_string()));
        assert!(errors.len() < 1000, "{errors:?}");
    }
    errors
}
/// Accepts once and reads all until the other side ends.
pub fn reads_all(listener: TcpListener) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || read_all(&mut accept(&listener)))
}
/// The next error; meanwhile nothing is delivered.
pub fn next_error(output: &mut dyn Output, batches: &[Batch]) -> String {
    loop {
        let written = output.write(batches);
        assert_eq!(written.batches, 0);
        if let Some(error) = written.stopped {
            return error.to_string();
        }
    }
}

#[test]
fn all_of_it_arrives_once_and_in_order() {
    let batches = (0..400)
        .map(|seq| match seq % 7 {
            3 => batch(seq, &[]),
            5 => batch(seq, &[&"x".repeat(300_000)]),
            _ => batch(seq, &["", &format!("{seq} a"), "b\nof two lines"]),
        })
        .collect::<Vec<_>>();
    for encode in ["raw", "json"] {
        let (listener, address) = listener();
        let peer = reads_all(listener);
        let mut output = tcp(json!({ "addresses": [address], "encode": encode }));
        assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
        output.close().unwrap();
        let got = peer.join().unwrap();
        if encode == "raw" {
            assert!(got == lines(&batches).into_bytes(), "{}", got.len());
        } else {
            let messages = got.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(|line| {
                let line: Value = serde_json::from_slice(line).unwrap();
                line["message"].as_str().unwrap().to_owned()
            });
            let sent = batches
                .iter()
                .flat_map(|b| b.events.iter())
                .map(|e| String::from_utf8(e.to_vec()).unwrap());
            assert!(messages.eq(sent));
        }
    }
}

/// Sends to a peer that holds few bytes until nothing moves any more; gives back what its kernel has acknowledged, read by nobody.
fn stuck(output: &mut dyn Output, batches: &[Batch], listener: &TcpListener) -> (usize, TcpStream, Vec<u8>) {
    let mut done = output.write(batches).batches;
    let socket = accept(listener);
    let (mut held, mut still) = (vec![], 0);
    while still < 4 {
        let more = ok(output.write(&batches[done..]));
        done += more;
        let now = peek(&socket);
        still = if more > 0 || now.len() > held.len() {
            0
        } else {
            still + 1
        };
        held = now;
    }
    (done, socket, held)
}
#[test]
fn what_was_not_acknowledged_is_sent_again_from_the_first_such_event() {
    const LINE: usize = 24; // with its end
    // The kernel ends in the middle of a line, at its end, and everywhere between.
    for shift in 0..=LINE {
        let first = batch(0, &[&"-".repeat(shift)]);
        let rest = (1..1500).map(|seq| batch(seq, &[&format!("{seq:023}")]));
        let batches = [first].into_iter().chain(rest).collect::<Vec<_>>();
        let (listener, address) = small_listener();
        let mut output = tcp(json!({ "addresses": [address] }));
        let (mut done, socket, held) = stuck(&mut *output, &batches, &listener);
        assert!(held.len() > 1000 && held.len() < 1499 * LINE, "{}", held.len());
        drop(socket); // with unread bytes: a reset
        let peer = reads_all(listener);
        let written = output.write(&batches[done..]);
        let error = written.stopped.unwrap().to_string();
        assert!(error.starts_with("127.0.0.1:") && error.contains("reset"), "{error}");
        done += written.batches;
        assert_eq!(deliver(&mut *output, &batches[done..]), Vec::<String>::new());
        output.close().unwrap();
        let again = peer.join().unwrap();
        let all = [whole_lines(&held), &again].concat();
        assert!(
            all == lines(&batches).into_bytes(),
            "shift {shift}: {} + {}",
            held.len(),
            again.len()
        );
    }
}
#[test]
fn an_event_that_was_cut_off_begins_anew() {
    // One batch alone, of many events: the border is within it.
    for encode in ["raw", "json"] {
        let batches = [batch_of(0, events((0..2000).map(|n| format!("{n:030}"))))];
        let (listener, address) = small_listener();
        let mut output = tcp(json!({ "addresses": [address], "encode": encode }));
        let mut got = Vec::new();
        for _ in 0..5 {
            let (done, socket, held) = stuck(&mut *output, &batches, &listener);
            assert_eq!(done, 0);
            got.extend_from_slice(whole_lines(&held));
            drop(socket);
            retry(output.write(&batches));
        }
        let peer = reads_all(listener);
        assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
        output.close().unwrap();
        got.extend(peer.join().unwrap());
        assert_eq!(got.iter().filter(|b| **b == b'\n').count(), 2000);
        if encode == "raw" {
            assert!(got == lines(&batches).into_bytes());
        }
    }
}
#[test]
fn a_peer_that_ends_an_idle_connection_is_dialled_again_without_a_failure() {
    let (listener, address) = listener();
    let mut output = tcp(json!({ "addresses": [address] }));
    let batches = numbered(0, 20, "idle");
    for one in &batches {
        let peer = thread::spawn({
            let listener = listener.try_clone().unwrap();
            let length = one.events.size();
            move || read_exactly(&mut accept(&listener), length) // and closes
        });
        assert_eq!(deliver(&mut *output, std::slice::from_ref(one)), Vec::<String>::new());
        assert_eq!(peer.join().unwrap(), lines(std::slice::from_ref(one)).into_bytes());
    }
}
#[test]
fn what_the_filters_left_empty_needs_no_peer() {
    let (_, address) = listener(); // closed at once
    let mut output = tcp(json!({ "addresses": [address] }));
    let batches = [batch(0, &[]), batch(1, &[]), batch(2, &["x"])];
    assert_eq!(ok(output.write(&batches)), 2);
    assert!(next_error(&mut *output, &batches[2..]).contains("connection refused"));
}

#[test]
fn a_peer_that_never_reads_is_left_after_the_write_timeout() {
    let clock = clock();
    let (deaf, first) = small_listener();
    let (hears, second) = listener();
    let mut output = tcp_at(json!({ "addresses": [first.clone(), second] }), &clock);
    let batches = numbered(0, 3000, "to nobody");
    let (done, socket, held) = stuck(&mut *output, &batches, &deaf);
    clock.advance(Duration::from_secs(29));
    assert_eq!(ok(output.write(&batches[done..])), 0, "it is waited for");
    clock.advance(Duration::from_secs(1));
    let (more, error) = retry(output.write(&batches[done..]));
    assert_eq!((more, error), (0, format!("{first}: the peer took nothing for 30s")));
    let peer = reads_all(hears);
    assert_eq!(deliver(&mut *output, &batches[done..]), Vec::<String>::new());
    output.close().unwrap();
    let all = [whole_lines(&held), &peer.join().unwrap()].concat();
    assert!(all == lines(&batches).into_bytes(), "the next address has the rest");
    // Whoever reads late gets what was on its way: twice, as the promise says, and in order.
    let mut socket = socket;
    let late = read_all(&mut socket);
    assert!(late.starts_with(&held) && lines(&batches).into_bytes().starts_with(&late));
}
#[test]
fn a_slow_reader_gets_all_of_it() {
    let (listener, address) = small_listener();
    let batches = numbered(0, 20_000, "slowly");
    let length = lines(&batches).len();
    let peer = thread::spawn(move || {
        let (mut socket, mut all, mut some) = (accept(&listener), vec![], [0; 777]);
        while all.len() < length {
            let n = socket.read(&mut some).unwrap();
            all.extend_from_slice(&some[..n]);
        }
        all
    });
    let mut output = tcp(json!({ "addresses": [address] }));
    assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
    assert!(peer.join().unwrap() == lines(&batches).into_bytes());
}
#[test]
fn a_peer_that_is_restarted_gets_the_rest() {
    let (first, address) = listener();
    let mut output = tcp(json!({ "addresses": [address.clone()] }));
    let batches = numbered(0, 2000, "restart");
    let half = lines(&batches[..1000]).len();
    let peer = thread::spawn(move || read_exactly(&mut accept(&first), half));
    assert_eq!(deliver(&mut *output, &batches[..1000]), Vec::<String>::new());
    assert!(peer.join().unwrap() == lines(&batches[..1000]).into_bytes());
    for _ in 0..3 {
        let error = next_error(&mut *output, &batches[1000..]);
        assert_eq!(error, format!("could not connect to {address}: connection refused"));
    }
    let peer = reads_all(TcpListener::bind(&address).unwrap());
    assert_eq!(deliver(&mut *output, &batches[1000..]), Vec::<String>::new());
    output.close().unwrap();
    assert!(peer.join().unwrap() == lines(&batches[1000..]).into_bytes());
}
#[test]
fn addresses_are_tried_in_turn_and_every_failure_is_named() {
    let nobody = || listener().1;
    let (listener, address) = listener();
    let (one, two) = (nobody(), nobody());
    let mut output = tcp(json!({ "addresses": [one, two, "no.such.name.invalid:1"], "connect_timeout": "60s" }));
    let error = next_error(&mut *output, &numbered(0, 1, ""));
    for part in [
        &*format!("{one}: connection refused"),
        &format!("{two}: connection refused"),
        "could not look up `no.such.name.invalid`: ",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let batches = numbered(0, 100, "");
    let peer = reads_all(listener);
    let mut output = tcp(json!({ "addresses": [nobody(), address] }));
    assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
    output.close().unwrap();
    assert!(peer.join().unwrap() == lines(&batches).into_bytes());
}
#[test]
fn reopen_dials_anew_between_two_events() {
    let (listener, address) = listener();
    let peer = thread::spawn(move || [0, 1, 2].map(|_| read_all(&mut accept(&listener))));
    let mut output = tcp(json!({ "addresses": [address] }));
    let batches = numbered(0, 3, "");
    for one in batches.chunks(1) {
        assert_eq!(deliver(&mut *output, one), Vec::<String>::new());
        output.reopen();
    }
    output.close().unwrap();
    let got = peer.join().unwrap();
    assert!(
        got.iter()
            .zip(batches.chunks(1))
            .all(|(got, one)| *got == lines(one).into_bytes()),
        "{got:?}"
    );
}
#[test]
fn what_was_half_sent_and_has_gone_is_not_continued() {
    let (listener, address) = small_listener();
    let mut output = tcp(json!({ "addresses": [address] }));
    const LONG: usize = 16 << 20; // no kernel takes so much for a peer that does not read
    let batches = [batch(0, &[&"x".repeat(LONG)]), batch(1, &["after"])];
    let (done, mut socket, _) = stuck(&mut *output, &batches[..1], &listener);
    assert_eq!(done, 0);
    // The Sink has put the first into the dead letter.
    let peer = thread::spawn(move || (read_all(&mut socket), read_all(&mut accept(&listener))));
    assert_eq!(deliver(&mut *output, &batches[1..]), Vec::<String>::new());
    output.close().unwrap();
    let (half, after) = peer.join().unwrap();
    assert!(half.iter().all(|b| *b == b'x') && half.len() < LONG);
    assert_eq!(after, b"after\n");
}
#[test]
fn dials_that_fail_leave_nothing_behind() {
    let (_, address) = listener(); // closed at once
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let mut output = tcp(json!({ "addresses": [address] }));
    let batches = numbered(0, 1, "");
    next_error(&mut *output, &batches);
    let before = (count("task"), count("fd"));
    for _ in 0..300 {
        next_error(&mut *output, &batches);
    }
    // Other tests of this process come and go meanwhile, with a few of each.
    let after = (count("task"), count("fd"));
    assert!(
        after.0 < before.0 + 100 && after.1 < before.1 + 100,
        "{before:?} → {after:?}"
    );
}
