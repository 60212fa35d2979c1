//! Sends events over a TCP connection, plain or TLS. Delivered is what the peer's kernel has acknowledged: a batch stays with the
//! Sink until then, although it was sent long before, and after a reconnect sending begins at the first event that was not
//! acknowledged whole. So an event cut off by the end of a connection is sent again from its start, never continued.
mod dial;
mod flow;
mod link;

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use serde::Deserialize;
use slog::{debug, info};

use self::{
    dial::{Dialer, Target},
    flow::{Flow, Resume, Sent},
    link::Link,
};
use super::{
    encode::{self, Encode},
    *,
};
use crate::{
    model::Span,
    plugins::{BadValue, Opt, tls::ClientTls},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "tcp",
    tag: "v1",
    stable: true,
    about: "sends events over TCP or TLS, a line each",
    delivery: "delivered once the peer's kernel has acknowledged it; what is not is sent again after a reconnect, beginning with \
               the first event that was not acknowledged whole, so at most what was in flight (1 MiB, or one batch) arrives \
               twice. What the peer's kernel has taken and its process never reads is lost: TCP cannot tell",
    options: &[
        Opt {
            name: "addresses",
            default: "required",
            about: "`host:port`, `[::1]:port`; tried in turn until one answers, and looked up again at each connect",
        },
        Opt {
            name: "connect_timeout",
            default: "\"10s\"",
            about: "how long each step may take: looking up the name, connecting, the TLS handshake",
        },
        Opt {
            name: "write_timeout",
            default: "\"30s\"",
            about: "a peer that acknowledges nothing for so long is left, and the next address tried",
        },
        Opt {
            name: "keepalive",
            default: "\"60s\"",
            about: "a connection that was silent for so long is asked whether it still lives; three questions without an answer, \
                    a third of this apart, end it",
        },
        Opt {
            name: "tls",
            default: "none",
            about: "{ ca, cert, key, server_name }: PEM files, absolute, read again at each connect; without `ca` the system's \
                    roots count; `cert` and `key` are shown to the peer (mTLS); `server_name` stands for the address's host. \
                    `{}` is TLS with all of it left out; without `tls` nothing is encrypted",
        },
        encode::OPTION,
    ],
    sample: r#"{ plugin = "tcp", addresses = ["logs1.example:6514", "logs2.example:6514"], tls = { ca = "/etc/luffly/ca.pem" } }"#,
    check: |table| config(table).map(drop),
    build: |table, context| Ok(Box::new(Tcp::new(config(table)?, context)?)),
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    addresses: Vec<String>,
    #[serde(default = "connect_timeout")]
    connect_timeout: Span,
    #[serde(default = "write_timeout")]
    write_timeout: Span,
    #[serde(default = "keepalive")]
    keepalive: Span,
    #[serde(default)]
    tls: Option<ClientTls>,
    #[serde(default)]
    encode: Encode,
}
fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}
fn write_timeout() -> Span {
    Span(Duration::from_secs(30))
}
fn keepalive() -> Span {
    Span(Duration::from_secs(60))
}
fn config(table: &Table) -> Result<Config, BadValue> {
    let config: Config = table.read()?;
    if config.addresses.is_empty() {
        return Err(BadValue::new(
            "addresses",
            "found none, accepted: at least one `host:port`",
        ));
    }
    for (i, address) in config.addresses.iter().enumerate() {
        Target::parse(address).map_err(|message| BadValue::new(format!("addresses[{i}]"), message))?;
    }
    let spans = [
        ("connect_timeout", config.connect_timeout, Duration::from_millis(1)),
        ("write_timeout", config.write_timeout, Duration::from_millis(1)),
        ("keepalive", config.keepalive, Duration::from_secs(1)),
    ];
    for (name, span, least) in spans {
        if span.0 < least || span.0 > MOST_TIME {
            let message = format!("found {span}, accepted: {} to {}", Span(least), Span(MOST_TIME));
            return Err(BadValue::new(name, message));
        }
    }
    if let Some(tls) = &config.tls {
        tls.check()
            .map_err(|bad| BadValue::new(format!("tls.{}", bad.key), bad.message))?;
    }
    Ok(config)
}

/// The kernel takes no longer times for its own timers.
const MOST_TIME: Duration = Duration::from_secs(32_000);
/// The longest that a call waits without anything to report, so that a stop is heard.
const PATIENCE: Duration = Duration::from_millis(100);
/// With all sent, a call waits no longer than this for acknowledgements: there may be more to send meanwhile.
const LINGER: Duration = Duration::from_millis(20);
/// The kernel tells nobody of an acknowledgement: it is asked, first after so long, then after twice that, up to `LINGER`.
const FIRST_LOOK: Duration = Duration::from_micros(50);

struct Tcp {
    dialer: Arc<Dialer>,
    write_timeout: Duration,
    encode: Encode,
    log: slog::Logger,
    clock: SharedClock,
    copied: Vec<u8>,
    /// Which address the next dial begins with.
    turn: usize,
    dialing: Option<Receiver<Result<Dialed, String>>>,
    flow: Option<Flow>,
    /// Where in the front batch the next connection begins.
    resume: Option<Resume>,
    /// When the peer last acknowledged something, or had nothing to acknowledge.
    alive_at: Duration,
    next_look: Duration,
    reopen: bool,
}
struct Dialed {
    turn: usize,
    link: Link,
}

impl Tcp {
    fn new(config: Config, context: OutputContext) -> Result<Self, PluginError> {
        if let Some(tls) = &config.tls {
            tls.config().map_err(PluginError::Failed)?; // a missing file is told now
        }
        let targets = config.addresses.iter().filter_map(|a| Target::parse(a).ok()).collect();
        let dialer = Dialer::new(targets, config.connect_timeout.0, config.keepalive.0, config.tls);
        Ok(Self {
            dialer: Arc::new(dialer),
            write_timeout: config.write_timeout.0,
            encode: config.encode,
            log: context.log,
            clock: context.clock,
            copied: Vec::new(),
            turn: 0,
            dialing: None,
            flow: None,
            resume: None,
            alive_at: Duration::ZERO,
            next_look: FIRST_LOOK,
            reopen: false,
        })
    }

    /// Dials on a thread of its own, where it may take its time; waits for it up to `PATIENCE`. False: not yet.
    fn connect(&mut self, front: &Batch) -> Result<bool, String> {
        let dialing = match &self.dialing {
            Some(dialing) => dialing,
            None => {
                let (tell, told) = channel();
                self.reopen = false; // by name, as wanted
                let (dialer, turn) = (self.dialer.clone(), self.turn);
                let dial = move || {
                    let dialed = dialer.dial(turn).map(|(turn, link)| Dialed { turn, link });
                    let _ = tell.send(dialed); // whoever waited may be gone
                };
                let thread = std::thread::Builder::new().name("tcp-dial".into());
                thread
                    .spawn(dial)
                    .map_err(|e| format!("could not start a thread to connect: {}", said(&e)))?;
                self.dialing.insert(told)
            }
        };
        let dialed = match dialing.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err("the thread that connects fell".to_owned()),
            Ok(dialed) => dialed,
        };
        self.dialing = None;
        let Dialed { turn, link } = dialed?;
        info!(self.log, "connected"; "peer" => link.peer(), "tls" => link.about_tls());
        self.turn = turn;
        self.alive_at = self.clock.steady();
        self.next_look = FIRST_LOOK;
        self.flow = Some(Flow::new(link, self.resume.as_ref().filter(|r| r.is_of(front))));
        Ok(true)
    }

    fn try_write(&mut self, batches: &[Batch], copied: &mut Vec<u8>) -> (usize, Result<(), String>) {
        let Some(front) = batches.first() else {
            return (0, Ok(()));
        };
        if self.flow.is_none() {
            // What the filters left empty needs no connection.
            match batches.iter().take_while(|b| b.events.is_empty()).count() {
                0 => {}
                empty => return (empty, Ok(())),
            }
            match self.connect(front) {
                Ok(true) => {}
                Ok(false) => return (0, Ok(())),
                Err(why) => return (0, Err(why)),
            }
        }
        let Some(flow) = &mut self.flow else { return (0, Ok(())) };
        if !flow.goes_on_with(batches) {
            // A batch that was begun has gone (to the dead letter, or dropped after a fall): its half must not be continued.
            debug!(self.log, "connecting again: what was half sent has gone");
            self.flow = None;
            return (0, Ok(()));
        }
        if flow.is_idle() {
            self.alive_at = self.clock.steady();
            let lost = flow.link.look().err();
            if std::mem::take(&mut self.reopen) || lost.is_some() {
                let (peer, unused) = (flow.link.peer().to_owned(), flow.link.is_unused());
                self.flow = None;
                match lost {
                    // It was of use, so this is how its peer ends an idle connection, and no failure.
                    Some(why) if !unused => {
                        info!(self.log, "connection ended while idle, connecting again"; "peer" => peer, "reason" => why)
                    }
                    Some(why) => {
                        self.turn += 1;
                        return (0, Err(format!("{peer}: {why}")));
                    }
                    None => {}
                }
                return (0, Ok(()));
            }
        }
        self.send(batches, copied)
    }

    /// Sends all of them as far as the peer takes them, until the first is acknowledged or `PATIENCE` is used up.
    fn send(&mut self, batches: &[Batch], copied: &mut Vec<u8>) -> (usize, Result<(), String>) {
        let start = self.clock.steady();
        let mut lingered = Duration::ZERO;
        loop {
            let Some(flow) = &mut self.flow else { return (0, Ok(())) };
            let sent = match flow.send(batches, self.encode, copied) {
                Ok(sent) => sent,
                Err(error) => return self.broke(batches, copied, &said(&error)),
            };
            let now = self.clock.steady();
            match flow.acknowledged() {
                Ok(true) => (self.alive_at, self.next_look) = (now, FIRST_LOOK),
                Ok(false) => {}
                Err(error) => return self.broke(batches, copied, &said(&error)),
            }
            let whole = flow.settle(batches.len());
            if whole > 0 {
                return (whole, Ok(()));
            }
            if now.saturating_sub(self.alive_at) >= self.write_timeout {
                let why = format!("the peer took nothing for {}", Span(self.write_timeout));
                return self.broke(batches, copied, &why);
            }
            let left = PATIENCE.saturating_sub(now.saturating_sub(start));
            if left.is_zero() || lingered >= LINGER {
                return (0, Ok(()));
            }
            let wait = match sent {
                Sent::All => self.next_look.min(left),
                Sent::Part => left,
            };
            let ready = match flow.link.wait(sent == Sent::Part, wait) {
                Ok(ready) => ready,
                Err(error) => return self.broke(batches, copied, &said(&error)),
            };
            if ready.news
                && let Err(why) = flow.link.look()
            {
                return self.broke(batches, copied, &why);
            }
            if !ready.any() {
                if sent == Sent::Part {
                    // The acknowledgements that came meanwhile count in the next call.
                    lingered = LINGER;
                } else {
                    lingered += wait;
                    self.next_look = (wait * 2).min(LINGER);
                }
            }
        }
    }
    /// The connection is of no use any more: remembers how far the peer got, and goes on with the next address. No failure if the
    /// peer got all of it before it left.
    fn broke(&mut self, batches: &[Batch], copied: &mut Vec<u8>, why: &str) -> (usize, Result<(), String>) {
        let Some(mut flow) = self.flow.take() else {
            return (0, Err(why.to_owned()));
        };
        let _ = flow.acknowledged(); // if the kernel does not say, what it said last counts
        let (whole, resume) = flow.end(batches, self.encode, copied);
        self.resume = resume;
        if whole == batches.len() {
            info!(self.log, "connection ended"; "peer" => flow.link.peer(), "reason" => why);
            return (whole, Ok(()));
        }
        self.turn += 1;
        (whole, Err(format!("{}: {why}", flow.link.peer())))
    }
}

impl Output for Tcp {
    fn write(&mut self, batches: &[Batch]) -> Written {
        let mut copied = std::mem::take(&mut self.copied);
        let (batches, result) = self.try_write(batches, &mut copied);
        self.copied = copied;
        Written {
            batches,
            stopped: result.err().map(OutputError::Retry),
        }
    }
    /// Only between two events: what is in flight is waited for.
    fn reopen(&mut self) {
        self.reopen = true;
    }
    fn close(&mut self) -> io::Result<()> {
        if let Some(flow) = self.flow.take() {
            flow.link.close();
        }
        Ok(())
    }
    fn online(&mut self, say: &mut dyn FnMut(Step)) {
        self.dialer.try_all(say);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: serde_json::Value) -> String {
        let table = Table(options.as_object().unwrap().clone());
        config(&table).err().map(|e| e.to_string()).unwrap()
    }
    #[test]
    fn wrong_options_say_what_is_accepted() {
        for (options, part) in [
            (serde_json::json!({}), "missing field `addresses`"),
            (
                serde_json::json!({"addresses": []}),
                "addresses: found none, accepted: at least one",
            ),
            (
                serde_json::json!({"addresses": ["a:1", "b"]}),
                "addresses[1]: found `b`, accepted: `host:port`",
            ),
            (serde_json::json!({"addresses": ["::1:7"]}), "in brackets"),
            (serde_json::json!({"addresses": ["a:0"]}), "a port from 1 to 65535"),
            (serde_json::json!({"addresses": [":7"]}), "accepted: `host:port`"),
            (
                serde_json::json!({"addresses": ["a:1"], "write_timeout": "0s"}),
                "write_timeout: found 0s, accepted: ",
            ),
            (
                serde_json::json!({"addresses": ["a:1"], "keepalive": "10ms"}),
                "keepalive: found 10ms, accepted: 1s to",
            ),
            (
                serde_json::json!({"addresses": ["a:1"], "tls": {"insecure": true}}),
                "unknown field `insecure`",
            ),
            (
                serde_json::json!({"addresses": ["a:1"], "tls": {"ca": "x.pem"}}),
                "tls.ca: found `x.pem`, accepted: an absolute path",
            ),
            (
                serde_json::json!({"addresses": ["a:1"], "tls": {"cert": "/x"}}),
                "tls.key: missing",
            ),
            (
                serde_json::json!({"addresses": ["a:1"], "tls": {"server_name": "a b"}}),
                "tls.server_name: found `a b`",
            ),
        ] {
            let message = refused(options);
            assert!(message.contains(part), "{message}");
        }
    }
}
