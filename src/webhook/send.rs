//! Posts one alert: a few tries with waits between, then it is given up. Never for ever: an alert of this morning helps nobody tonight.
use std::time::Duration;

use reqwest::Client;

use super::{Alert, Verdict, Webhook, request, verdict};
use crate::{
    clock::SharedClock,
    http_client::{self, Limits},
    retry::Backoff,
};

const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    all: Duration::from_secs(10),
};
pub const TRIES: u32 = 3;
/// The most that an answer's Retry-After is heeded.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Sender {
    client: Client,
    clock: SharedClock,
}
impl Sender {
    pub fn new(clock: SharedClock) -> Result<Self, String> {
        let client = http_client::client(LIMITS)?;
        Ok(Self { client, clock })
    }
    /// One try. `Again` comes with how long the other side wants to be left alone.
    pub async fn try_once(&self, webhook: &Webhook, alert: &Alert<'_>) -> (Verdict, Option<Duration>) {
        let request = request(webhook, alert, self.clock.wall());
        match http_client::post(&self.client, request.url, "application/json", request.body).await {
            Ok(answer) => (verdict(webhook.preset, &answer), answer.retry_after),
            Err(why) => (Verdict::Again(why), None),
        }
    }
}

/// 1, 2, … s, each somewhere below that, or what was asked for.
pub fn waits() -> Backoff {
    Backoff::new(Duration::from_secs(2), Duration::from_secs(30))
}
pub fn wait(backoff: &mut Backoff, asked: Option<Duration>) -> Duration {
    let own = backoff.next();
    asked.map_or(own, |asked| own.max(asked.min(LONGEST_WAIT)))
}
