//! How a house is drained, and what is said of it.
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::{join_all, select_all};

use super::{Ended, House, Pipeline};
use crate::messages::{
    collect::{AwaitClosed, Hurry},
    control::{Drain, PipelineView},
};

pub(super) enum Why {
    Asked,
    Ended,
    /// The far side of this pipeline's output has left: what it still holds can go nowhere.
    Closed {
        pipeline: String,
        said: String,
    },
}
/// A message that was lost in a fall is sent again; an answer that is owed survives it.
pub(super) async fn until_answered<A, M>(addr: &Addr<A>, message: impl Fn() -> M) -> M::Result
where
    M: Message + Send + 'static,
    M::Result: Send,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    loop {
        match addr.send(message()).await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

impl House {
    /// From the input to the sink. All of it within `limit`, and then the late are named.
    pub(super) async fn stop(&self, why: Why, limit: Duration, log: &slog::Logger) -> Ended {
        self.ground.stopping.begin();
        let pipelines = self.pipelines();
        for sink in pipelines.iter().flat_map(|p| &p.sinks) {
            let _ = sink.stage.addr.try_send(Hurry);
        }
        let deadline = tokio::time::Instant::now() + limit;
        let gone = match &why {
            Why::Closed { pipeline, .. } => Some(pipeline),
            _ => None,
        };
        let drained = pipelines
            .iter()
            .filter(|p| Some(&p.name) != gone)
            .map(|p| p.drain(deadline));
        let runs = async {
            match &self.runner {
                Some(runner) => runner.drain(deadline).await,
                None => None,
            }
        };
        let (late, runs) = tokio::join!(join_all(drained), runs);
        let mut late = late.into_iter().flatten().chain(runs).collect::<Vec<_>>();
        let mut total = Totals::default();
        for view in self.views().await {
            for output in view.outputs.iter().filter(|output| output.queued > 0) {
                slog::error!(log, "events in the queue of an output that drops are lost"; "pipeline" => &view.name,
                    "output" => &output.label, "events" => output.queued);
            }
            total.add(&view);
            if view.unsettled > 0 {
                let (pipeline, unsettled) = (&view.name, view.unsettled);
                match view.rewinds {
                    true => {
                        slog::warn!(log, "events are left at their source"; "pipeline" => pipeline, "events" => unsettled)
                    }
                    false => slog::error!(log, "events are lost"; "pipeline" => pipeline, "events" => unsettled),
                }
            }
        }
        let Totals {
            delivered,
            lost,
            dead,
            dropped,
            ..
        } = total;
        let (mut code, mut text) = match &why {
            Why::Asked => (0, "stopped as asked".to_owned()),
            Why::Ended => (0, "all input has ended".to_owned()),
            Why::Closed { said, .. } => (1, said.clone()),
        };
        if let Some(jobs) = &self.jobs {
            late.extend(jobs.stop(&text, deadline, log).await);
        }
        if !late.is_empty() {
            text = format!(
                "{text}; past the deadline of {}s: {}",
                limit.as_secs_f64(),
                late.join(", ")
            );
        }
        if lost > 0 {
            (code, text) = (1, format!("{text}; {lost} events are lost"));
        } else if dead > 0 && code == 0 {
            (code, text) = (75, format!("{text}; {dead} events wait in the dead letter"));
        }
        let counts = [
            ("delivered", delivered),
            ("at_source", total.at_source),
            ("lost", lost),
            ("dropped", dropped),
            ("dead", dead),
        ];
        Ended {
            code,
            why: text,
            counts: counts.map(|(what, n)| (what.to_owned(), n)).to_vec(),
        }
    }
}
impl Pipeline {
    /// Who was not done in time.
    pub(super) async fn drain(&self, deadline: tokio::time::Instant) -> Vec<String> {
        let mut late = vec![];
        let sinks = self
            .sinks
            .iter()
            .map(|s| Box::pin(until_answered(&s.stage.addr, || AwaitClosed)));
        tokio::select! {
            done = within(deadline, &self.collector.addr, || Drain) => if !done {
                late.push(self.collector.pulse.name.clone());
            },
            _ = select_all(sinks) => {} // the far side has left: what is still held can go nowhere, and is counted
        }
        within(deadline, &self.filter.addr, || Drain).await;
        let sinks = self
            .sinks
            .iter()
            .map(|s| async move { (s, within(deadline, &s.stage.addr, || Drain).await) });
        let slow = join_all(sinks).await.into_iter().filter(|(_, done)| !done);
        late.extend(slow.map(|(s, _)| s.stage.pulse.name.clone()));
        late
    }
}
async fn within<A, M>(deadline: tokio::time::Instant, addr: &Addr<A>, message: impl Fn() -> M) -> bool
where
    M: Message<Result = ()> + Send + 'static,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    tokio::time::timeout_at(deadline, until_answered(addr, message))
        .await
        .is_ok()
}
#[derive(Default)]
struct Totals {
    delivered: u64,
    at_source: u64,
    lost: u64,
    dropped: u64,
    dead: u64,
}
impl Totals {
    fn add(&mut self, view: &PipelineView) {
        match view.rewinds {
            true => self.at_source += view.unsettled,
            false => self.lost += view.unsettled,
        }
        for output in &view.outputs {
            self.lost += output.queued;
            self.delivered += output.delivered;
            self.dropped += output.dropped;
            self.dead += output.dead;
        }
    }
}
