use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener},
};

use proptest::prelude::*;

use super::*;
use crate::model::{JobKey, RunId, RunState, job::Cause};

fn host() -> Host {
    Host {
        agent_id: "sky01".into(),
        group: "net01".into(),
        hostname: "web01".into(),
        ip: Ipv4Addr::new(10, 0, 0, 1).into(),
        instance: "i".into(),
    }
}
fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
fn run() -> RunRecord {
    let id = RunId::of_u128(7);
    RunRecord {
        started: Some(at("2026-11-25T12:00:00.1Z")),
        ended: Some(at("2026-11-25T12:00:03.35Z")),
        state: RunState::Failed(Some(3)),
        attempt: 2,
        ..RunRecord::new(
            id,
            JobKey::host("10.0.0.1", "17"),
            Cause::Planned,
            at("2026-11-25T12:00:00Z"),
        )
    }
}
fn made(preset: Preset, secret: Option<&str>, output: &[u8]) -> (String, Value) {
    let webhook = Webhook::new(
        "https://chat.example/robot/send?access_token=t0k3n",
        preset,
        secret.map(Into::into),
    )
    .unwrap();
    let (host, run) = (host(), run());
    let alert = Alert {
        host: &host,
        title: "nightly <backup> & co",
        run: &run,
        output,
    };
    let request = request(&webhook, &alert, at("2026-11-25T12:00:05.123Z"));
    (request.url.to_string(), serde_json::from_slice(&request.body).unwrap())
}
const URL: &str = "https://chat.example/robot/send?access_token=t0k3n";
const TEXT: &str = "[luffly agent] job 17 failed(3) on web01 (10.0.0.1)\nnightly <backup> & co\nrun 00000000000000000000000007, due 2026-11-25T12:00:00Z, ran 3.250s, attempt 2\nit wrote:\na\nb";

#[test]
fn the_body_of_each_preset() {
    let output = b"a\n\x1b\x07b\n\n";
    for (preset, expected) in [
        (Preset::DingTalk, json!({"msgtype": "text", "text": {"content": TEXT}})),
        (Preset::WeCom, json!({"msgtype": "text", "text": {"content": TEXT}})),
        (Preset::Feishu, json!({"msg_type": "text", "content": {"text": TEXT}})),
        (
            Preset::Slack,
            json!({"text": TEXT.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")}),
        ),
        (
            Preset::Plain,
            json!({
                "event": "job_failed", "task_id": "17", "key": "/cron/jobs/10.0.0.1/17", "title": "nightly <backup> & co",
                "run_id": "00000000000000000000000007", "state": "failed", "outcome": "failed(3)", "error": "", "attempt": 2,
                "planned": "2026-11-25T12:00:00Z", "started": "2026-11-25T12:00:00Z", "ended": "2026-11-25T12:00:03Z",
                "output": "a\n\u{1b}\u{7}b\n\n", "host": "web01", "ip": "10.0.0.1", "agent_id": "sky01", "group": "net01",
            }),
        ),
    ] {
        assert_eq!(made(preset, None, output), (URL.to_owned(), expected), "{preset:?}");
    }
    let (_, body) = made(Preset::Feishu, None, b"<at user_id=\"all\">");
    assert!(
        body["content"]["text"]
            .as_str()
            .unwrap()
            .ends_with("< at user_id=\"all\">")
    );
}
/// Made with `openssl dgst -sha256 -hmac`.
#[test]
fn signatures() {
    let (url, _) = made(Preset::DingTalk, Some("SEC1"), b"");
    assert_eq!(
        url,
        format!("{URL}&timestamp=1795608005123&sign=iTcrtlTMFekFxFuu7mw1P3ysWMmYixasYdacOe%2BUXIQ%3D")
    );
    let (url, body) = made(Preset::Feishu, Some("SEC1"), b"");
    assert_eq!(url, URL);
    assert_eq!(
        (&body["timestamp"], &body["sign"]),
        (
            &json!("1795608005"),
            &json!("cb+WeeIXcGUyDOjYuzUkZfC9YOJOYvNlvTQKCUE+xhQ=")
        )
    );
}
#[test]
fn settings_and_what_is_shown_of_them() {
    let webhook = Webhook::new("https://u:p@chat.example:8443/hook/s3cret?k=v#f", Preset::Slack, None).unwrap();
    assert_eq!(webhook.masked(), "https://chat.example:8443/…");
    assert_eq!(format!("{webhook:?}"), "Webhook(slack https://chat.example:8443/…)");
    for bad in [
        "",
        "s3cret",
        "ftp://x/s3cret",
        "file:///s3cret",
        "https://",
        "https://[s3cret",
    ] {
        let error = Webhook::new(bad, Preset::Plain, None).unwrap_err();
        assert!(
            error.starts_with("found ") && !error.contains("s3cret"),
            "{bad}: {error}"
        );
    }
    let refused = Preset::WORDS.map(|(_, preset)| Webhook::secret_refused(preset).is_some());
    assert_eq!(refused, [false, true, false, true, true]);
}
#[test]
fn what_answers_mean() {
    let answer = |status, body: &str| Answer {
        status,
        retry_after: None,
        body: body.into(),
    };
    let again = |why: &str| Verdict::Again(why.into());
    let refused = |why: &str| Verdict::Refused(why.into());
    for (preset, status, body, expected) in [
        (Preset::Plain, 204, "", Verdict::Taken),
        (Preset::Slack, 200, "ok", Verdict::Taken),
        (Preset::Slack, 404, "no_team", refused("it answered 404: no_team")),
        (Preset::Plain, 302, "", refused("it answered 302")),
        (Preset::Plain, 429, "", again("it answered 429")),
        (Preset::Plain, 503, "a\r\x1b[0mb", again("it answered 503: a[0mb")),
        (Preset::DingTalk, 200, r#"{"errcode":0,"errmsg":"ok"}"#, Verdict::Taken),
        (
            Preset::DingTalk,
            200,
            r#"{"errcode":310000}"#,
            refused("its errcode is 310000: {\"errcode\":310000}"),
        ),
        (
            Preset::DingTalk,
            200,
            r#"{"errcode":130101}"#,
            again("its errcode is 130101: {\"errcode\":130101}"),
        ),
        (
            Preset::WeCom,
            200,
            r#"{"errcode":45009}"#,
            again("its errcode is 45009: {\"errcode\":45009}"),
        ),
        (
            Preset::WeCom,
            200,
            "<html>",
            refused("its answer has no errcode: <html>"),
        ),
        (Preset::Feishu, 200, r#"{"code":0}"#, Verdict::Taken),
        (
            Preset::Feishu,
            200,
            r#"{"StatusCode":0,"StatusMessage":"success"}"#,
            Verdict::Taken,
        ),
        (
            Preset::Feishu,
            200,
            r#"{"code":19021}"#,
            refused("its code is 19021: {\"code\":19021}"),
        ),
    ] {
        assert_eq!(verdict(preset, &answer(status, body)), expected, "{preset:?} {body}");
    }
}

/// Answers once with this, tells what it was sent.
fn server(answer: &'static str) -> (String, std::thread::JoinHandle<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook/s3cret", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let mut socket = BufReader::new(listener.accept().unwrap().0);
        let (mut head, mut size) = (String::new(), 0);
        loop {
            let mut line = String::new();
            socket.read_line(&mut line).unwrap();
            if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                size = length.trim().parse().unwrap();
            }
            head += &line;
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; size];
        socket.read_exact(&mut body).unwrap();
        socket.get_mut().write_all(answer.as_bytes()).unwrap();
        (head, String::from_utf8(body).unwrap())
    });
    (url, served)
}
async fn sent(url: &str, preset: Preset) -> (Verdict, Option<std::time::Duration>) {
    let webhook = Webhook::new(url, preset, None).unwrap();
    let sender = Sender::new(crate::clock::system()).unwrap();
    let (host, run) = (host(), run());
    let alert = Alert {
        host: &host,
        title: "",
        run: &run,
        output: b"x",
    };
    sender.try_once(&webhook, &alert).await
}
#[tokio::test]
async fn posted_and_answered() {
    let (url, served) = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(sent(&url, Preset::Slack).await, (Verdict::Taken, None));
    let (head, body) = served.join().unwrap();
    assert!(head.starts_with("POST /hook/s3cret HTTP/1.1\r\n"), "{head}");
    assert!(
        head.to_ascii_lowercase().contains("content-type: application/json\r\n"),
        "{head}"
    );
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(
        body["text"]
            .as_str()
            .unwrap()
            .starts_with("[luffly agent] job 17 failed(3)")
    );

    let (url, served) = server("HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n");
    let seven = Some(std::time::Duration::from_secs(7));
    assert_eq!(
        sent(&url, Preset::Slack).await,
        (Verdict::Again("it answered 503".into()), seven)
    );
    served.join().unwrap();
    // Not followed: what is posted is for that address alone.
    let (url, served) = server("HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(
        sent(&url, Preset::Plain).await.0,
        Verdict::Refused("it answered 307".into())
    );
    served.join().unwrap();
    let (url, served) = server("nonsense\r\n\r\n");
    let Verdict::Again(why) = sent(&url, Preset::Plain).await.0 else {
        panic!()
    };
    assert!(!why.contains("s3cret") && !why.is_empty(), "{why}");
    served.join().unwrap();
    // Nobody listens there any more.
    let Verdict::Again(why) = sent(&url, Preset::Plain).await.0 else {
        panic!()
    };
    assert!(
        why.starts_with("could not connect: ") && !why.contains("s3cret"),
        "{why}"
    );
}

proptest! {
    #[test]
    fn any_alert_fits_into_a_message(title: String, error in "(?s).{0,3000}", output: Vec<u8>, more in 0usize..5000) {
        let host = host();
        let run = RunRecord { error, ..run() };
        let output = [output, "ü".repeat(more).into_bytes()].concat();
        let alert = Alert { host: &host, title: &title, run: &run, output: &output };
        let text = text(&alert);
        prop_assert!(text.len() <= LONGEST_TEXT, "{}", text.len());
        prop_assert!(text.starts_with("[luffly agent] job 17 failed(3) on web01"));
        for (_, preset) in Preset::WORDS {
            let webhook = Webhook::new(URL, preset, None).unwrap();
            let body = request(&webhook, &alert, Timestamp::UNIX_EPOCH).body;
            prop_assert!(serde_json::from_slice::<Value>(&body).is_ok());
        }
    }
    #[test]
    fn any_answer_is_understood(status in 100u16..1000, body: Vec<u8>) {
        for (_, preset) in Preset::WORDS {
            let _ = verdict(preset, &Answer { status, retry_after: None, body: body.clone() });
        }
    }
}
