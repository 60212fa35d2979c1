//! What the system says to the agent. A thread of its own hears it, so that also an agent whose main loop hangs can be told to leave,
//! and so that a drain ends in time.
use std::{io, sync::Arc, sync::mpsc::sync_channel, time::Duration};

use slog::{info, warn};
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    sync::mpsc::{Receiver, Sender},
};

use super::Leaving;
use crate::{
    actors::root::{DrainLimit, Ended, Signal},
    log::Log,
};

/// Root's own deadline is `drain`, and its last step, the end of HTTP, may take 2 s more; this much past `drain` the agent leaves
/// without them.
const GRACE: Duration = Duration::from_secs(4);
/// Who gave an order that came over HTTP, for the log.
const ASKED: &str = "request";

/// From when this returns, no signal ends the process unheard. `orders`: what is asked over HTTP. A stop that is asked for sets the
/// deadline as a signal does, but a second one forces nothing: it is only somebody else who waits.
pub fn listen(
    to_root: Sender<Signal>,
    orders: Receiver<Signal>,
    log: Arc<Log>,
    drain: DrainLimit,
    leaving: Arc<Leaving>,
) -> io::Result<()> {
    let (ready, wait) = sync_channel(1);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(e) => return drop(ready.send(Err(e))),
        };
        runtime.block_on(async {
            match Streams::open() {
                Err(e) => drop(ready.send(Err(e))),
                Ok(streams) => {
                    let _ = ready.send(Ok(()));
                    hear(streams, orders, to_root, &log, drain, &leaving).await
                }
            }
        })
    })?;
    wait.recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread for signals ended")))
}

struct Streams {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
    reopen: Stream,
}
impl Streams {
    fn open() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            reopen: signal(SignalKind::user_defined1())?,
        })
    }
}

async fn hear(
    mut from: Streams,
    mut orders: Receiver<Signal>,
    to_root: Sender<Signal>,
    log: &Log,
    drain: DrainLimit,
    leaving: &Leaving,
) {
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    let mut stopping = false;
    loop {
        let (what, by) = tokio::select! {
            _ = from.terminate.recv() => (Signal::Stop, "SIGTERM"),
            _ = from.interrupt.recv() => (Signal::Stop, "SIGINT"),
            _ = from.reopen.recv() => (Signal::Reopen, "SIGUSR1"),
            Some(order) = orders.recv() => (order, ASKED),
            _ = from.hang_up.recv() => (Signal::Reload, "SIGHUP"),
            () = &mut deadline => leaving.leave(forced(format!(
                "the drain had not ended after {:?}, left without it", drain.get() + GRACE
            ))),
        };
        if what == Signal::Reopen {
            log.reopen();
            info!(log.logger, "log and outputs are opened again"; "by" => by);
            // No room: one waits there already, and it will do.
            let _ = to_root.try_send(Signal::Reopen);
            continue;
        }
        if what == Signal::Reload {
            match stopping {
                true => warn!(log.logger, "not reloaded: the agent is stopping"; "by" => by),
                false => {
                    info!(log.logger, "reloading"; "by" => by);
                    // No room: one waits there already, and will read what is there by then.
                    let _ = to_root.try_send(Signal::Reload);
                }
            }
            continue;
        }
        match (stopping, by) {
            (false, _) => {}
            (true, ASKED) => continue,
            (true, _) => leaving.leave(forced(format!("{by} came while draining: left at once"))),
        }
        stopping = true;
        info!(log.logger, "draining, then stopping"; "by" => by, "at_most" => ?drain.get());
        deadline
            .as_mut()
            .reset(tokio::time::Instant::now() + drain.get() + GRACE);
        // Not waited for here: a main loop that hangs must not keep the next signal from us.
        let to_root = to_root.clone();
        tokio::spawn(async move {
            let _ = to_root.send(Signal::Stop).await;
        });
    }
}

fn forced(why: String) -> Ended {
    Ended {
        code: 1,
        why: format!("{why}; what was in flight is read again at the next start, if its source still has it"),
        counts: Vec::new(),
    }
}
