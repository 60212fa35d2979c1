//! `on_failure`: tells people by the webhook of a chat that a run went wrong. What is posted and what the answer means is decided here,
//! purely; `send` posts. The URL of such a webhook is its secret: nothing here shows more of it than the host.
pub mod send;

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use ring::hmac;
use serde_json::{Value, json};

pub use self::send::Sender;
use crate::{
    http_client::{Answer, Url},
    model::{Host, RunRecord},
};

/// Of a chat message: WeCom takes 2,048 bytes, the others more.
const LONGEST_TEXT: usize = 2000;
/// Of the run's output, in `plain`.
const LONGEST_OUTPUT: usize = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    DingTalk,
    WeCom,
    Feishu,
    Slack,
    /// All fields as one JSON object.
    #[default]
    Plain,
}
impl Preset {
    pub const WORDS: [(&str, Self); 5] = [
        ("dingtalk", Self::DingTalk),
        ("wecom", Self::WeCom),
        ("feishu", Self::Feishu),
        ("slack", Self::Slack),
        ("plain", Self::Plain),
    ];
    pub fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, preset)| *preset == self)
            .map_or("", |(word, _)| word)
    }
    fn signs(self) -> bool {
        matches!(self, Self::DingTalk | Self::Feishu)
    }
}

/// One `[webhooks.NAME]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    url: Url,
    preset: Preset,
    secret: Option<String>,
}
impl Webhook {
    pub fn new(url: &str, preset: Preset, secret: Option<String>) -> Result<Self, String> {
        // Whatever is wrong with it, it may hold a secret: it is not shown.
        let accepted = "accepted: a URL as \"https://…\"";
        let url = url
            .parse::<Url>()
            .map_err(|error| format!("found none ({error}), {accepted}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(format!("found the scheme {:?}, {accepted}", url.scheme()));
        }
        Ok(Self { url, preset, secret })
    }
    /// None: fine. The secret of a preset that does not sign would be ignored, so it is refused.
    pub fn secret_refused(preset: Preset) -> Option<String> {
        (!preset.signs()).then(|| {
            format!(
                "found one, accepted: none with preset = \"{}\": it does not sign",
                preset.word()
            )
        })
    }
    pub fn has_secret(&self) -> bool {
        self.secret.is_some()
    }
    pub fn preset(&self) -> Preset {
        self.preset
    }
    /// Scheme and host; no more of it is shown anywhere.
    pub fn masked(&self) -> String {
        let port = self.url.port().map_or(String::new(), |port| format!(":{port}"));
        format!(
            "{}://{}{port}/…",
            self.url.scheme(),
            self.url.host_str().unwrap_or_default()
        )
    }
}
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({} {})", self.preset.word(), self.masked())
    }
}

/// What went wrong where.
#[derive(Clone, Copy)]
pub struct Alert<'a> {
    pub host: &'a Host,
    /// The job's name or description; may be empty.
    pub title: &'a str,
    pub run: &'a RunRecord,
    /// The end of what the run wrote.
    pub output: &'a [u8],
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub url: Url,
    pub body: Vec<u8>,
}

pub fn request(webhook: &Webhook, alert: &Alert<'_>, now: Timestamp) -> Request {
    let mut url = webhook.url.clone();
    let mut body = match webhook.preset {
        Preset::DingTalk | Preset::WeCom => json!({"msgtype": "text", "text": {"content": text(alert)}}),
        // Nobody is called by what a job wrote.
        Preset::Feishu => json!({"msg_type": "text", "content": {"text": text(alert).replace("<at", "< at")}}),
        Preset::Slack => json!({"text": text(alert).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")}),
        Preset::Plain => plain(alert),
    };
    if let Some(secret) = &webhook.secret {
        match webhook.preset {
            Preset::DingTalk => {
                let ms = now.as_millisecond();
                let sign = signature(secret, &format!("{ms}\n{secret}"));
                url.query_pairs_mut()
                    .append_pair("timestamp", &ms.to_string())
                    .append_pair("sign", &sign);
            }
            Preset::Feishu => {
                let seconds = now.as_second();
                body["timestamp"] = seconds.to_string().into();
                body["sign"] = signature(&format!("{seconds}\n{secret}"), "").into();
            }
            Preset::WeCom | Preset::Slack | Preset::Plain => {}
        }
    }
    Request {
        url,
        body: body.to_string().into_bytes(),
    }
}
fn signature(key: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    BASE64_STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}

/// For people: the first line says it all. Chats that want a keyword in it: `luffly`.
fn text(alert: &Alert<'_>) -> String {
    let Alert { host, title, run, .. } = alert;
    let mut text = format!(
        "[luffly agent] job {} {} on {} ({})\n",
        run.job.task_id, run.state, host.hostname, host.ip
    );
    if !title.is_empty() {
        text += &format!("{title}\n");
    }
    text += &format!("run {}, due {}", run.run_id, instant(run.planned));
    if let (Some(started), Some(ended)) = (run.started, run.ended) {
        let ms = ended.duration_since(started).as_millis().max(0);
        text += &format!(", ran {}.{:03}s", ms / 1000, ms % 1000);
    }
    if run.attempt > 1 {
        text += &format!(", attempt {}", run.attempt);
    }
    text.push('\n');
    if !run.error.is_empty() {
        text += &format!("{}\n", run.error);
    }
    text = clean(&text);
    cut(&mut text, LONGEST_TEXT - 200);
    let output = clean(&String::from_utf8_lossy(alert.output));
    let output = output.trim_end();
    if !output.is_empty() {
        text += "it wrote:\n";
        text += tail(output, LONGEST_TEXT - text.len());
    }
    text.trim_end().to_owned()
}
fn plain(alert: &Alert<'_>) -> Value {
    let Alert { host, title, run, .. } = alert;
    let output = String::from_utf8_lossy(alert.output);
    json!({
        "event": "job_failed",
        "task_id": &*run.job.task_id,
        "key": run.job.path(),
        "title": title,
        "run_id": run.run_id.to_string(),
        "state": run.state.word(),
        "outcome": run.state.to_string(),
        "error": run.error,
        "attempt": run.attempt,
        "planned": instant(run.planned),
        "started": run.started.map(instant),
        "ended": run.ended.map(instant),
        "output": tail(&output, LONGEST_OUTPUT),
        "host": host.hostname,
        "ip": host.ip.to_string(),
        "agent_id": host.agent_id,
        "group": host.group,
    })
}
fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
/// No colours, bells or NULs of a terminal.
fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str("…\n");
    }
}
fn tail(text: &str, most: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(most))..]
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Taken,
    /// Busy or broken: later it may go.
    Again(String),
    /// It would be refused again: a wrong token, a signature that does not fit.
    Refused(String),
}
/// DingTalk, WeCom and Feishu say 200 to everything: their own code counts.
pub fn verdict(preset: Preset, answer: &Answer) -> Verdict {
    let said = clean(&String::from_utf8_lossy(&answer.body));
    let said = said[..said.floor_char_boundary(200)].trim();
    let shown = |what: String| {
        if said.is_empty() {
            what
        } else {
            format!("{what}: {said}")
        }
    };
    match answer.status {
        200..300 => {}
        408 | 425 | 429 | 500.. => return Verdict::Again(shown(format!("it answered {}", answer.status))),
        status => return Verdict::Refused(shown(format!("it answered {status}"))),
    }
    let (field, busy): (&str, &[i64]) = match preset {
        // Busy, and too many messages a minute.
        Preset::DingTalk => ("errcode", &[-1, 130_101]),
        Preset::WeCom => ("errcode", &[-1, 45_009]),
        Preset::Feishu => ("code", &[9499, 11_232]),
        Preset::Slack | Preset::Plain => return Verdict::Taken,
    };
    let body = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    let code = body
        .get(field)
        .or_else(|| body.get("StatusCode"))
        .and_then(Value::as_i64);
    match code {
        Some(0) => Verdict::Taken,
        Some(code) if busy.contains(&code) => Verdict::Again(shown(format!("its {field} is {code}"))),
        Some(code) => Verdict::Refused(shown(format!("its {field} is {code}"))),
        None => Verdict::Refused(shown(format!("its answer has no {field}"))),
    }
}

#[cfg(test)]
mod tests;
