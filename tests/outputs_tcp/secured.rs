//! TLS and mTLS, with authorities made for the test; and every way in which a session does not come about.
use std::{net::TcpListener, thread};

use serde_json::json;

use crate::{outputs_kit::*, peer::*, *};

/// Serves one connection: what came over it, or why there was no session.
fn serve(listener: &TcpListener, config: &Arc<rustls::ServerConfig>) -> thread::JoinHandle<Result<Vec<u8>, String>> {
    let (listener, config) = (listener.try_clone().unwrap(), config.clone());
    thread::spawn(move || {
        let mut session = secure(accept(&listener), &config)?;
        Ok(read_all(&mut session))
    })
}

#[test]
fn all_of_it_arrives_over_tls_and_over_mtls() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Authority::new(dir.path(), "servers");
    let clients = Authority::new(dir.path(), "clients");
    let (pair, own) = (servers.issue("localhost", |_| {}), clients.issue("agent", |_| {}));
    let batches = (0..300)
        .map(|seq| batch(seq, &[&format!("{seq}"), &"y".repeat(seq as usize * 97 % 70_000)]))
        .collect::<Vec<_>>();
    for mutual in [false, true] {
        let (listener, address) = listener();
        let address = address.replace("127.0.0.1", "localhost");
        let peer = serve(&listener, &Authority::server(&pair, mutual.then_some(&clients)));
        let mut tls = json!({ "ca": servers.pem() });
        if mutual {
            tls["cert"] = json!(own.cert);
            tls["key"] = json!(own.key);
        }
        let mut output = tcp(json!({ "addresses": [address], "tls": tls }));
        assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
        output.close().unwrap();
        assert!(peer.join().unwrap().unwrap() == lines(&batches).into_bytes());
    }
}
#[test]
fn what_was_not_acknowledged_over_tls_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "servers");
    let config = Authority::server(&authority.issue("localhost", |_| {}), None);
    for shift in [0, 1, 9, 23] {
        let first = batch(0, &[&"-".repeat(shift)]);
        let batches = [first]
            .into_iter()
            .chain((1..3000).map(|seq| batch(seq, &[&format!("{seq:023}")])));
        let batches = batches.collect::<Vec<_>>();
        let (listener, address) = small_listener();
        let mut output =
            tcp(json!({ "addresses": [address], "tls": { "ca": authority.pem(), "server_name": "localhost" } }));
        // The peer shakes hands, then reads no more, and leaves when nothing moves.
        let shaking = thread::spawn({
            let (listener, config) = (listener.try_clone().unwrap(), config.clone());
            move || secure(accept(&listener), &config).unwrap()
        });
        let mut done = 0;
        while !shaking.is_finished() {
            done += ok(output.write(&batches[done..]));
        }
        let mut session = shaking.join().unwrap();
        let (mut held, mut still) = (0, 0);
        while still < 4 {
            let more = ok(output.write(&batches[done..]));
            done += more;
            let now = peek(&session.sock).len();
            still = if more > 0 || now > held { 0 } else { still + 1 };
            held = now;
        }
        // What its kernel has, as far as that can be decrypted.
        let mut encrypted = &peek(&session.sock)[..];
        let mut got = vec![];
        while !encrypted.is_empty() {
            session.conn.read_tls(&mut encrypted).unwrap();
            session.conn.process_new_packets().unwrap();
            let mut some = vec![0; 1 << 16];
            while let Ok(n) = session.conn.reader().read(&mut some) {
                got.extend_from_slice(&some[..n]);
            }
        }
        drop(session);
        let peer = serve(&listener, &config);
        let written = output.write(&batches[done..]);
        done += written.batches;
        assert!(written.stopped.is_some());
        assert_eq!(deliver(&mut *output, &batches[done..]), Vec::<String>::new());
        output.close().unwrap();
        let again = peer.join().unwrap().unwrap();
        let all = [whole_lines(&got), &again].concat();
        assert!(
            all == lines(&batches).into_bytes(),
            "shift {shift}: {} + {}",
            got.len(),
            again.len()
        );
    }
}
#[test]
fn a_session_that_does_not_come_about_names_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (good, other) = (Authority::new(dir.path(), "good"), Authority::new(dir.path(), "other"));
    let localhost = good.issue("localhost", |_| {});
    let expired = good.issue("old", |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let early = good.issue("early", |params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
    let stranger = other.issue("stranger", |_| {});
    let batches = numbered(0, 1, "");
    for (server, clients, tls, part) in [
        (&localhost, None, json!({ "ca": other.pem() }), "from an unknown issuer"),
        (
            &expired,
            None,
            json!({ "ca": good.pem(), "server_name": "old" }),
            "certificate has expired: ",
        ),
        (
            &early,
            None,
            json!({ "ca": good.pem(), "server_name": "early" }),
            "is not valid yet: ",
        ),
        (
            &localhost,
            None,
            json!({ "ca": good.pem(), "server_name": "elsewhere" }),
            "is for another name: certificate not valid for name \"elsewhere\"",
        ),
        (
            &localhost,
            Some(&good),
            json!({ "ca": good.pem() }),
            "the peer refused: CertificateRequired",
        ),
        (
            &localhost,
            Some(&good),
            json!({ "ca": good.pem(), "cert": stranger.cert, "key": stranger.key }),
            "the peer refused: ",
        ),
    ] {
        let (listener, address) = listener();
        let address = address.replace("127.0.0.1", "localhost");
        let mut output = tcp(json!({ "addresses": [address], "tls": tls }));
        for _ in 0..2 {
            let peer = serve(&listener, &Authority::server(server, clients));
            let error = next_error(&mut *output, &batches);
            assert!(
                error.starts_with(&format!("TLS handshake with {address} (")) && error.contains(part),
                "{error}"
            );
            peer.join().unwrap().unwrap_err();
        }
    }
    // No TLS at the other end; one who says nothing; one who leaves.
    for (says, part) in [
        (Some(&b"220 hello\r\n"[..]), "does not seem to speak TLS"),
        (None, "does not answer"),
    ] {
        let (listener, address) = listener();
        let mut output =
            tcp(json!({ "addresses": [address], "tls": { "ca": good.pem() }, "connect_timeout": "300ms" }));
        let peer = thread::spawn(move || {
            let mut socket = accept(&listener);
            says.map(|says| std::io::Write::write_all(&mut socket, says));
            read_all(&mut socket)
        });
        let error = next_error(&mut *output, &batches);
        assert!(error.contains(part), "{error}");
        peer.join().unwrap();
    }
    // Files that are missing, or wrong, are told before anything starts.
    let plugin = luffly_agent::plugins::outputs::CATALOG
        .iter()
        .find(|p| p.name == "tcp")
        .unwrap();
    for (tls, part) in [
        (json!({ "ca": "/no/such.pem" }), "could not read /no/such.pem as PEM"),
        (json!({ "ca": localhost.key }), "found no certificate in"),
        (
            json!({ "ca": good.pem(), "cert": localhost.cert, "key": expired.key }),
            "could not use",
        ),
    ] {
        let options = json!({ "addresses": ["a:1"], "tls": tls });
        let table = luffly_agent::plugins::Table(options.as_object().unwrap().clone());
        let error = (plugin.build)(&table, context("p", &clock()))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(part), "{error}");
    }
}
#[test]
fn a_renewed_certificate_is_used_at_the_next_connect() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(dir.path(), "old"), Authority::new(dir.path(), "new"));
    let ca = dir.path().join("ca.pem");
    std::fs::copy(old.pem(), &ca).unwrap();
    let (listener, address) = listener();
    let mut output = tcp(json!({ "addresses": [address], "tls": { "ca": ca, "server_name": "localhost" } }));
    let server = Authority::server(&new.issue("localhost", |_| {}), None);
    let batches = numbered(0, 1, "");
    let peer = serve(&listener, &server);
    assert!(next_error(&mut *output, &batches).contains("unknown issuer"));
    peer.join().unwrap().unwrap_err();
    std::fs::copy(new.pem(), &ca).unwrap();
    let peer = serve(&listener, &server);
    assert_eq!(deliver(&mut *output, &batches), Vec::<String>::new());
    output.close().unwrap();
    assert_eq!(peer.join().unwrap().unwrap(), lines(&batches).into_bytes());
}
