//! Stand-in of the daemon's branch: waits for a stop. An output to stdout never drains.
use std::sync::Arc;

use crate::{clock::SharedClock, log, metrics::SharedMetrics, model::Host, settings::Settings};

pub struct Start {
    pub settings: Settings,
    pub host: Arc<Host>,
    pub log: slog::Logger,
    pub level: log::LevelSwitch,
    pub recent: log::Recent,
    pub metrics: SharedMetrics,
    pub clock: SharedClock,
    pub boot_id: String,
    pub socket: Option<std::os::unix::net::UnixListener>,
    pub http: Option<std::net::TcpListener>,
    pub signals: tokio::sync::mpsc::Receiver<Signal>,
    pub token: String,
    pub background: bool,
}
pub enum Signal {
    Stop,
    Reopen,
}
pub struct Ended {
    pub code: u8,
    pub why: String,
    pub counts: Vec<(String, u64)>,
}

pub async fn run(mut start: Start, ready: impl FnOnce(Result<(), String>)) -> Ended {
    drop(start.socket.take());
    let mut outputs = start.settings.pipelines.iter().flat_map(|pipeline| &pipeline.outputs);
    let hangs = outputs.any(|output| output.plugin.name.name == "stdout");
    ready(Ok(()));
    loop {
        match start.signals.recv().await {
            Some(Signal::Reopen) => {}
            Some(Signal::Stop) if hangs => std::future::pending().await,
            Some(Signal::Stop) | None => {
                return Ended {
                    code: 0,
                    why: "told to stop".to_owned(),
                    counts: vec![("delivered".to_owned(), 0)],
                };
            }
        }
    }
}
