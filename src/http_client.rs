//! HTTP to others: one client with limits for whoever posts something. rustls with ring, the system's certificate authorities, proxies
//! as the environment names them (HTTPS_PROXY, NO_PROXY); no redirects, for what is posted is meant for one address. No error names
//! the URL: its path or query may be the secret.
use std::{error::Error, sync::Arc, time::Duration};

use reqwest::{Client, header::RETRY_AFTER, redirect::Policy};
use rustls::{ClientConfig, RootCertStore};

pub use reqwest::Url;

/// Of an answer; what it says beyond that is not read.
const LONGEST_ANSWER: usize = 16 << 10;
/// A connection that nobody uses is closed: firewalls forget it anyway.
const IDLE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connect: Duration,
    /// From the connect to the last byte of the answer.
    pub all: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    pub body: Vec<u8>,
}

pub fn client(limits: Limits) -> Result<Client, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    // None of them: then no https answers to our taste, and says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("could not set up TLS: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("luffly-agent/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(limits.connect)
        .timeout(limits.all)
        .redirect(Policy::none())
        .pool_idle_timeout(IDLE)
        .build()
        .map_err(|error| format!("could not set up the HTTP client: {error}"))
}

/// One request, its answer or why there was none.
pub async fn post(client: &Client, url: Url, content_type: &str, body: Vec<u8>) -> Result<Answer, String> {
    let request = client.post(url).header("content-type", content_type).body(body);
    let mut answer = request.send().await.map_err(why)?;
    let after = |text: &str| text.trim().parse().ok().map(Duration::from_secs);
    let retry_after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(after);
    let mut body = Vec::new();
    while body.len() < LONGEST_ANSWER {
        let Some(chunk) = answer.chunk().await.map_err(why)? else {
            break;
        };
        body.extend_from_slice(&chunk[..chunk.len().min(LONGEST_ANSWER - body.len())]);
    }
    Ok(Answer {
        status: answer.status().as_u16(),
        retry_after,
        body,
    })
}
/// The innermost cause says it: `Connection refused`.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return match error.is_connect() {
            true => "no connection within the time limit".into(),
            false => "no answer within the time limit".into(),
        };
    }
    let mut cause: &dyn Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match error.is_connect() {
        true => format!("could not connect: {cause}"),
        false => cause.to_string(),
    }
}
