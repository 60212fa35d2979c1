//! Posts failed runs to the webhooks that their jobs name.
//!
//! Hears: JobFailed, Drain. Says: nothing. Bound: `MOST_WAITING` alerts a webhook, a further one is dropped and counted. Waits: for a
//! webhook, within the limits of `webhook::send`, one alert at a time; one webhook that hangs holds up no other.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;

use crate::{
    actors::kit::Later,
    messages::{control::Drain, notify::JobFailed},
    metrics::SharedMetrics,
    model::Host,
    retry::Backoff,
    webhook::{
        Alert, Sender, Verdict, Webhook,
        send::{self, TRIES},
    },
};

/// Of one webhook. When a hundred jobs fail at once, the first sixty say enough.
const MOST_WAITING: usize = 64;
/// Bytes of output that are kept of each.
const LONGEST_OUTPUT: usize = 4096;

pub struct NotifierConfig {
    /// By name.
    pub webhooks: BTreeMap<String, Webhook>,
    pub sender: Sender,
    pub host: Arc<Host>,
    pub log: slog::Logger,
    pub metrics: SharedMetrics,
    /// Waits between tries: `webhook::send::waits`.
    pub waits: fn() -> Backoff,
}

pub struct Notifier {
    config: NotifierConfig,
    lanes: BTreeMap<String, Lane>,
    /// Who asked for the drain. Once it has begun no alert waits for a next try.
    drained: Later<()>,
    draining: bool,
}
struct Lane {
    /// The front stays here until it is done: a fall forgets none.
    queue: VecDeque<JobFailed>,
    /// Of the front.
    tries: u32,
    backoff: Backoff,
    /// Of this life.
    doing: Doing,
}
enum Doing {
    Nothing,
    Posting,
    Waiting(SpawnHandle),
}

impl Notifier {
    pub fn new(config: NotifierConfig) -> Self {
        let lane = |name: &String| {
            let lane = Lane {
                queue: VecDeque::new(),
                tries: 0,
                backoff: (config.waits)(),
                doing: Doing::Nothing,
            };
            (name.clone(), lane)
        };
        Self {
            lanes: config.webhooks.keys().map(lane).collect(),
            config,
            drained: Later::default(),
            draining: false,
        }
    }
    fn count(&self, webhook: &str, outcome: &str) {
        self.config
            .metrics
            .webhook_alerts
            .with_label_values(&[webhook, outcome])
            .inc();
    }

    fn pump(&mut self, name: &str, ctx: &mut Context<Self>) {
        let Some((webhook, lane)) = self.config.webhooks.get(name).zip(self.lanes.get_mut(name)) else {
            return;
        };
        let (Some(front), Doing::Nothing) = (lane.queue.front(), &lane.doing) else {
            return;
        };
        lane.doing = Doing::Posting;
        lane.tries += 1; // before what may fall
        let (sender, webhook, host, front) = (
            self.config.sender.clone(),
            webhook.clone(),
            self.config.host.clone(),
            front.clone(),
        );
        let posted = async move {
            let alert = Alert {
                host: &host,
                title: &front.title,
                run: &front.run,
                output: &front.output,
            };
            sender.try_once(&webhook, &alert).await
        };
        let name = name.to_owned();
        let posted = posted
            .into_actor(self)
            .map(move |(verdict, asked), this: &mut Self, ctx| {
                this.posted(&name, verdict, asked, ctx);
            });
        ctx.spawn(posted);
    }
    fn posted(&mut self, name: &str, verdict: Verdict, asked: Option<Duration>, ctx: &mut Context<Self>) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.doing = Doing::Nothing;
        let (outcome, why) = match verdict {
            Verdict::Taken => ("sent", None),
            Verdict::Again(why) if lane.tries < TRIES && !self.draining => {
                let wait = send::wait(&mut lane.backoff, asked);
                slog::info!(self.config.log, "a webhook did not take an alert, trying again"; "webhook" => name,
                    "attempt" => lane.tries, "next_in" => ?wait, "why" => why);
                let again = name.to_owned();
                lane.doing = Doing::Waiting(ctx.run_later(wait, move |this, ctx| {
                    if let Some(lane) = this.lanes.get_mut(&again) {
                        lane.doing = Doing::Nothing;
                    }
                    this.pump(&again, ctx);
                }));
                return;
            }
            Verdict::Again(why) => ("lost", Some(why)),
            Verdict::Refused(why) => ("refused", Some(why)),
        };
        let done = lane.queue.pop_front();
        lane.tries = 0;
        lane.backoff.reset();
        if let (Some(why), Some(done)) = (why, done) {
            slog::warn!(self.config.log, "a webhook did not take an alert, giving it up"; "webhook" => name,
                "task_id" => %done.run.job.task_id, "run_id" => %done.run.run_id, "why" => why);
        }
        self.count(name, outcome);
        self.pump(name, ctx);
        self.look_if_drained();
    }
    fn look_if_drained(&mut self) {
        if self.draining && self.lanes.values().all(|lane| lane.queue.is_empty()) {
            self.drained.tell(());
        }
    }
    fn names(&self) -> Vec<String> {
        self.lanes.keys().cloned().collect()
    }
}

impl Actor for Notifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        for name in self.names() {
            let Some(lane) = self.lanes.get_mut(&name) else {
                continue;
            };
            // What was under way ended with the former life. An alert that it fell over again and again goes.
            if matches!(lane.doing, Doing::Posting) && lane.tries >= TRIES {
                lane.queue.pop_front();
                lane.tries = 0;
                self.count(&name, "lost");
            }
            if let Some(lane) = self.lanes.get_mut(&name) {
                lane.doing = Doing::Nothing;
            }
        }
        self.names().iter().for_each(|name| self.pump(name, ctx));
    }
}
impl Supervised for Notifier {}

impl Handler<JobFailed> for Notifier {
    type Result = ();
    fn handle(&mut self, mut failed: JobFailed, ctx: &mut Self::Context) {
        let name = failed.webhook.clone();
        let Some(lane) = self.lanes.get_mut(&name) else {
            // The settings were changed since the job was taken on.
            slog::warn!(self.config.log, "a job names a webhook that is not in the settings"; "webhook" => name,
                "task_id" => %failed.run.job.task_id);
            return;
        };
        if lane.queue.len() == MOST_WAITING {
            return self.count(&name, "dropped");
        }
        let over = failed.output.len().saturating_sub(LONGEST_OUTPUT);
        failed.output.drain(..over);
        lane.queue.push_back(failed);
        self.pump(&name, ctx);
    }
}
impl Handler<Drain> for Notifier {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.draining = true;
        for name in self.names() {
            let Some(lane) = self.lanes.get_mut(&name) else {
                continue;
            };
            if let Doing::Waiting(wait) = lane.doing {
                ctx.cancel_future(wait);
                lane.doing = Doing::Nothing;
            }
            self.pump(&name, ctx);
        }
        let asked = self.drained.ask();
        self.look_if_drained();
        asked
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Ipv4Addr, TcpListener},
        sync::Mutex,
    };

    use super::*;
    use crate::{
        clock,
        metrics::Metrics,
        model::{JobKey, RunId, RunRecord, RunState, job::Cause},
        webhook::Preset,
    };

    /// Answers each request with the next status, the last one for ever; hears which runs came. Its thread ends with the process.
    fn server(statuses: &'static [u16]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/s3cret", listener.local_addr().unwrap());
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hear = heard.clone();
        std::thread::spawn(move || {
            for n in 0.. {
                let mut socket = listener.accept().unwrap().0;
                let mut text = Vec::new();
                // The body is one JSON object, and nothing follows it.
                while !text.ends_with(b"}") {
                    let mut part = [0; 4096];
                    let read = socket.read(&mut part).unwrap();
                    assert!(read > 0);
                    text.extend_from_slice(&part[..read]);
                }
                let text = String::from_utf8(text).unwrap();
                let body: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
                hear.lock().unwrap().push(body["task_id"].as_str().unwrap().to_owned());
                let status = statuses[n.min(statuses.len() - 1)];
                let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = socket.write_all(answer.as_bytes());
            }
        });
        (url, heard)
    }
    fn notifier(webhooks: &[(&str, &str)]) -> (Addr<Notifier>, SharedMetrics) {
        let metrics = Metrics::new();
        let webhook =
            |(name, url): &(&str, &str)| ((*name).to_owned(), Webhook::new(url, Preset::Plain, None).unwrap());
        let config = NotifierConfig {
            webhooks: webhooks.iter().map(webhook).collect(),
            sender: Sender::new(clock::system()).unwrap(),
            host: Arc::new(Host {
                agent_id: "sky01".into(),
                group: "net01".into(),
                hostname: "web01".into(),
                ip: Ipv4Addr::LOCALHOST.into(),
                instance: String::new(),
            }),
            log: slog::Logger::root(slog::Discard, slog::o!()),
            metrics: metrics.clone(),
            waits: || Backoff::new(Duration::from_millis(10), Duration::from_millis(20)),
        };
        (Notifier::new(config).start(), metrics)
    }
    fn failed(webhook: &str, task_id: &str) -> JobFailed {
        let job = JobKey::host("127.0.0.1", task_id);
        let run = RunRecord::new(RunId::of_u128(1), job, Cause::Planned, jiff::Timestamp::UNIX_EPOCH);
        JobFailed {
            webhook: webhook.into(),
            title: String::new(),
            run: RunRecord {
                state: RunState::Failed(Some(1)),
                ..run
            },
            output: vec![b'x'; 3 * LONGEST_OUTPUT],
        }
    }
    fn counted(metrics: &SharedMetrics, webhook: &str) -> [u64; 4] {
        let of = |outcome: &str| metrics.webhook_alerts.with_label_values(&[webhook, outcome]).get();
        ["sent", "lost", "refused", "dropped"].map(of)
    }

    #[actix::test]
    async fn tried_again_in_order_and_one_webhook_holds_up_no_other() {
        let (busy, heard) = server(&[503, 200, 500, 500, 500, 404, 200]);
        let silent = TcpListener::bind("127.0.0.1:0").unwrap(); // takes, and never answers
        let hanging = format!("http://{}/", silent.local_addr().unwrap());
        let (addr, metrics) = notifier(&[("busy", &busy), ("hangs", &hanging)]);
        for (webhook, task_id) in [
            ("hangs", "0"),
            ("busy", "1"),
            ("busy", "2"),
            ("unknown", "3"),
            ("busy", "4"),
            ("busy", "5"),
        ] {
            addr.send(failed(webhook, task_id)).await.unwrap();
        }
        while counted(&metrics, "busy").iter().sum::<u64>() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(counted(&metrics, "busy"), [2, 1, 1, 0]);
        assert_eq!(*heard.lock().unwrap(), ["1", "1", "2", "2", "2", "4", "5"]);
        assert_eq!(counted(&metrics, "hangs"), [0; 4]);
    }
    #[actix::test]
    async fn bounded_and_drained() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let (addr, metrics) = notifier(&[("ops", &url)]);
        for task in 0..MOST_WAITING + 3 {
            addr.send(failed("ops", &task.to_string())).await.unwrap();
        }
        assert_eq!(counted(&metrics, "ops"), [0, 0, 0, 3]);
        let drained = addr.send(Drain);
        drop(silent); // whoever is connected is refused, and so is everybody after
        drained.await.unwrap();
        assert_eq!(counted(&metrics, "ops"), [0, MOST_WAITING as u64, 0, 3]);
        addr.send(Drain).await.unwrap();
    }
    #[actix::test]
    async fn a_drain_waits_for_no_next_try() {
        let (url, heard) = server(&[503]);
        let (addr, metrics) = notifier(&[("ops", &url)]);
        addr.send(failed("ops", "1")).await.unwrap();
        addr.send(Drain).await.unwrap();
        assert_eq!(counted(&metrics, "ops"), [0, 1, 0, 0]);
        assert!(heard.lock().unwrap().len() <= 2);
    }
}
