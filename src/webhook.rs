//! Tells a chat room, or whatever listens, that a job's run did not succeed.
use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Uri, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::model::RunRecord;

/// One try, all in all.
const LIMIT: Duration = Duration::from_secs(10);
/// Waits before the second and third try.
const AGAIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub name: String,
    pub preset: Preset,
    /// May hold a token: not shown.
    pub url: String,
}
/// Whose form a message has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `{"text", "job", "run_id", "state", "error", "host", …}`
    Plain,
    DingTalk,
    WeCom,
    Feishu,
    Slack,
}
impl Preset {
    pub const WORDS: &[(&str, Self)] = &[
        ("plain", Self::Plain),
        ("dingtalk", Self::DingTalk),
        ("wecom", Self::WeCom),
        ("feishu", Self::Feishu),
        ("slack", Self::Slack),
    ];
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, preset)| *preset == self)
            .map_or("", |(word, _)| word)
    }
}

/// What is said of a run.
pub fn message(preset: Preset, record: &RunRecord, host: &str) -> Value {
    let error = match record.error.as_str() {
        "" => String::new(),
        error => format!(": {error}"),
    };
    let text = format!(
        "job {} on {host}: {}{error} (planned {}, run {})",
        record.job.task_id, record.state, record.planned, record.run_id
    );
    match preset {
        Preset::Plain => json!({
            "text": text,
            "job": record.job.path(),
            "task_id": &*record.job.task_id,
            "run_id": record.run_id.to_string(),
            "state": record.state.to_string(),
            "error": record.error,
            "planned": record.planned.to_string(),
            "attempt": record.attempt,
            "host": host,
        }),
        Preset::DingTalk | Preset::WeCom => json!({ "msgtype": "text", "text": { "content": text } }),
        Preset::Feishu => json!({ "msg_type": "text", "content": { "text": text } }),
        Preset::Slack => json!({ "text": text }),
    }
}

/// Three tries. The error names no URL.
pub async fn tell(hook: &Webhook, message: &Value) -> Result<(), String> {
    let mut waits = AGAIN.into_iter();
    loop {
        let tried = tokio::time::timeout(LIMIT, post(&hook.url, message)).await;
        let error = match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        match waits.next() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}
async fn post(url: &str, message: &Value) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "its url cannot be read".to_owned())?;
    let host = uri
        .host()
        .ok_or("its url names no host")?
        .trim_matches(['[', ']'])
        .to_owned();
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| format!("could not connect to {host}:{port}: {error}"))?;
    if !tls {
        return exchange(stream, &uri, message).await;
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| format!("no TLS with {host}:{port}: {error}"))?;
    exchange(stream, &uri, message).await
}
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
    message: &Value,
) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| said(&e))?;
    let connection = tokio::spawn(connection);
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header("host", uri.authority().map_or("", |authority| authority.as_str()))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(message.to_string())))
        .map_err(|e| said(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| said(&e))?;
    let status = answer.status();
    let _ = http_body_util::Limited::new(answer.into_body(), 64 << 10)
        .collect()
        .await;
    connection.abort();
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("answered with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::model::{JobKey, RunId, RunState, job::Cause};

    fn failed() -> RunRecord {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let mut record = RunRecord::new(RunId::of_u128(7), JobKey::host("10.0.0.1", "17"), Cause::Planned, at);
        record.state = RunState::Failed(Some(3));
        record
    }
    #[test]
    fn each_room_has_its_form() {
        let text = "job 17 on h1: failed(3) (planned 2023-11-14T22:13:20Z, run 00000000000000000000000007)";
        for (preset, path) in [
            (Preset::Plain, "/text"),
            (Preset::Slack, "/text"),
            (Preset::DingTalk, "/text/content"),
            (Preset::WeCom, "/text/content"),
            (Preset::Feishu, "/content/text"),
        ] {
            assert_eq!(
                message(preset, &failed(), "h1").pointer(path),
                Some(&json!(text)),
                "{}",
                preset.word()
            );
        }
    }
    #[tokio::test]
    async fn a_hook_hears_it_once_it_answers_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hook = Webhook {
            name: "ops".into(),
            preset: Preset::Slack,
            url: format!("http://{}/a?token=x", listener.local_addr().unwrap()),
        };
        let server = tokio::spawn(async move {
            let mut heard = vec![];
            for status in ["500 No", "204 Well"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut all = String::new();
                while !all.contains("\"text\"") || !all.ends_with('}') {
                    let mut bytes = [0; 1000];
                    let n = stream.read(&mut bytes).await.unwrap();
                    all.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
                }
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                heard.push(all);
            }
            heard
        });
        tell(&hook, &message(hook.preset, &failed(), "h1")).await.unwrap();
        let heard = server.await.unwrap();
        assert_eq!(heard[0], heard[1]);
        assert!(heard[0].starts_with("POST /a?token=x HTTP/1.1\r\n"));
    }
}
