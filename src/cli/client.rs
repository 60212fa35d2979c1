//! Asks the running agent over its socket. Every wait has an end.
use std::{io, path::Path, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::{agent, os::LocalAddress};

/// One question and its answer, all in all. The agent itself gives its parts 2 s.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest answer that is taken, in bytes: a table of 100,000 files has about 40 MiB.
const LARGEST: usize = 64 << 20;

type Sender = http1::SendRequest<Full<Bytes>>;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no agent runs on {}", .0.display())]
    NotRunning(std::path::PathBuf),
    /// It runs, and nobody takes the call: it has not heard the question.
    #[error("the agent (pid {pid}) cannot be asked: {why}")]
    Deaf { pid: i32, why: String },
    /// It may have heard, and may have done what it was told.
    #[error("the agent (pid {pid}) has not answered: {why}")]
    Silent { pid: i32, why: String },
    /// It answered that it will not.
    #[error("{detail}")]
    Refused { detail: String, status: Option<StatusCode> },
    #[error("could not look for an agent: {0}")]
    Io(#[from] io::Error),
}

/// GET, the answer as JSON.
pub fn get(data_dir: &Path, path: &str) -> Result<Value, AskError> {
    json(data_dir, Method::GET, path)
}
/// A question or an order, the answer as JSON.
pub fn json(data_dir: &Path, method: Method, path: &str) -> Result<Value, AskError> {
    let body = ask(data_dir, method, path)?;
    serde_json::from_slice(&body).map_err(|e| AskError::Refused {
        detail: format!("the agent's answer to {path} is not JSON: {e}"),
        status: None,
    })
}
/// A question or an order, the answer as it comes.
pub fn ask(data_dir: &Path, method: Method, path: &str) -> Result<Bytes, AskError> {
    ask_within(LIMIT, data_dir, method, path)
}
pub fn ask_within(limit: Duration, data_dir: &Path, method: Method, path: &str) -> Result<Bytes, AskError> {
    send_within(limit, data_dir, method, path, Bytes::new())
}
/// With a body.
pub fn send(data_dir: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, AskError> {
    send_within(LIMIT, data_dir, method, path, body)
}
fn send_within(limit: Duration, data_dir: &Path, method: Method, path: &str, body: Bytes) -> Result<Bytes, AskError> {
    let Some(holder) = agent::running(data_dir)? else {
        return Err(AskError::NotRunning(data_dir.to_owned()));
    };
    let pid = holder.pid;
    let deaf = |why: String| AskError::Deaf { pid, why };
    let silent = |why: String| AskError::Silent { pid, why };
    let socket = agent::socket(data_dir);
    let shown = socket.display();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (status, body) = runtime.block_on(async {
        let late = |_| format!("{shown}: nothing within {limit:?}");
        let until = tokio::time::Instant::now() + limit;
        let connected = tokio::time::timeout_at(until, connect(&socket)).await;
        let sender = connected.map_err(late).flatten().map_err(deaf)?;
        let answered = tokio::time::timeout_at(until, exchange(sender, method, path, body)).await;
        answered.map_err(late).flatten().map_err(silent)
    })?;
    // Health comes with 503 if it is bad, and is an answer all the same.
    if status.is_success() || (path.ends_with("/health") && status == StatusCode::SERVICE_UNAVAILABLE) {
        return Ok(body);
    }
    let detail = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|problem| Some(problem.get("detail")?.as_str()?.to_owned()));
    Err(AskError::Refused {
        detail: detail.unwrap_or_else(|| format!("the agent answered {path} with {status}")),
        status: Some(status),
    })
}

async fn connect(socket: &Path) -> Result<Sender, String> {
    let said = |e: &dyn std::error::Error| format!("{}: {e}", socket.display());
    let address = LocalAddress::of(socket).map_err(|e| said(&e))?;
    let stream = UnixStream::connect(address.as_path()).await.map_err(|e| said(&e))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| said(&e))?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(mut sender: Sender, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
    let said = |e: &dyn std::error::Error| format!("{path}: {e}");
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("x-agent", "cli"); // writes ask for it: no web page can send it
    if let Ok(run) = std::env::var("AGENT_RUN_ID") {
        request = request.header("x-agent-run", run); // asked from a job: it must not be waited for
    }
    let request = request.body(Full::new(body)).map_err(|e| said(&e))?;
    let response = sender.send_request(request).await.map_err(|e| said(&e))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LARGEST);
    let body = body.collect().await.map_err(|e| format!("{path}: {e}"))?;
    Ok((status, body.to_bytes()))
}

/// A value as part of a query.
pub fn quoted(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_asked_survives_the_query() {
        assert_eq!(
            super::quoted("/var/log/a b&c=ü%.log"),
            "/var/log/a%20b%26c%3D%C3%BC%25.log"
        );
    }
}
