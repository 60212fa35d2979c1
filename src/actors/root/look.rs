//! What a house looks like: views of all that was wired, its health, and why a file is (not) read.
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;

use super::{House, Pipeline, Stage, jobs::JobsHouse, runner::RunnerHouse};
use crate::{
    actors::kit::{Port, SharedPulse},
    messages::{
        collect::{CollectorView, ObserveCollector, ObserveSink, Ship, SinkView},
        control::{ActorView, Health, HealthState, OutputView, PipelineView},
    },
    model::FileStatus,
    settings::WhenFull,
};

/// How long an answer of a stage is waited for; a stage that is being raised again may need some seconds.
const ANSWER: Duration = Duration::from_secs(1);

/// One look at a pipeline. A stage that does not answer in time (it is being raised again) is left at its default.
struct Look {
    collector: Option<CollectorView>,
    sinks: Vec<Option<SinkView>>,
}
async fn ask<A, M>(addr: &Addr<A>, message: M) -> Option<M::Result>
where
    M: Message + Send + 'static,
    M::Result: Send,
    A: Actor + Handler<M>,
    A::Context: actix::dev::ToEnvelope<A, M>,
{
    tokio::time::timeout(ANSWER, addr.send(message)).await.ok()?.ok()
}
impl Pipeline {
    async fn look(&self) -> Look {
        let sinks = join_all(self.sinks.iter().map(|sink| ask(&sink.stage.addr, ObserveSink)));
        let (collector, sinks) = tokio::join!(ask(&self.collector.addr, ObserveCollector), sinks);
        Look { collector, sinks }
    }
    pub(super) async fn view(&self) -> PipelineView {
        let Look { collector, sinks } = self.look().await;
        let collector = collector.unwrap_or_default();
        let (events_in, filtered) = (self.meter.events_in.get(), self.meter.all_filtered());
        let outputs = self.sinks.iter().zip(sinks).map(|(sink, look)| {
            let queued = look.as_ref().map_or(0, |look| look.queued);
            let number = sink.number as usize;
            let waiting = collector.waiting.get(number).copied().unwrap_or(0) + queued;
            let missed = collector.missed.get(number).copied().unwrap_or(0);
            let (delivered, dropped, dead) = (
                sink.meter.delivered.get(),
                sink.meter.all_dropped(),
                sink.meter.all_dead(),
            );
            OutputView {
                label: sink.label.clone(),
                plugin: sink.settings.plugin.name.to_string(),
                when_full: match sink.settings.when_full {
                    WhenFull::Block => "block",
                    WhenFull::DropNewest => "drop_newest",
                    WhenFull::DropOldest => "drop_oldest",
                },
                breaker: look.as_ref().map_or("closed", |look| look.breaker),
                delivered,
                dropped,
                dead,
                waiting,
                queued,
                difference: events_in as i64 - (filtered + delivered + dropped + dead + waiting + missed) as i64,
                error: look.and_then(|look| look.error),
            }
        });
        PipelineView {
            name: self.name.clone(),
            input: self.settings.input.name.to_string(),
            filters: self.settings.filters.iter().map(|f| f.name.to_string()).collect(),
            events_in,
            bytes_in: self.meter.bytes_in.get(),
            filtered,
            ended: collector.ended,
            error: collector.error.clone(),
            note: collector.note.clone(),
            checkpoint_error: collector.checkpoint_error.clone(),
            unsettled: collector.unsettled,
            rewinds: collector.rewinds,
            outputs: outputs.collect(),
        }
    }
    pub(super) fn actors(&self) -> impl Iterator<Item = ActorView> + '_ {
        fn view<A: Actor>(stage: &Stage<A>) -> ActorView {
            actor_view(&stage.pulse, stage.port.as_ref())
        }
        let sinks = self.sinks.iter().map(|sink| view(&sink.stage));
        [view(&self.collector), view(&self.filter)].into_iter().chain(sinks)
    }
}
fn actor_view(pulse: &SharedPulse, port: Option<&Port<Ship>>) -> ActorView {
    ActorView {
        name: pulse.name.clone(),
        state: pulse.word(),
        restarts: pulse.causes(),
        last_error: pulse.last_error(),
        fill: port.map(Port::fill),
        waited: port.map_or(Duration::ZERO, Port::waited),
    }
}
impl House {
    pub async fn views(&self) -> Vec<PipelineView> {
        let views = join_all(self.pipelines().iter().map(|pipeline| pipeline.view())).await;
        // A reload may have taken it away meanwhile: then its series is gone for good.
        let now = self.pipelines();
        let is_there = |pipeline: &str, output: &str| {
            let pipeline = now.iter().find(|p| p.name == pipeline);
            pipeline.is_some_and(|p| p.sinks.iter().any(|sink| sink.label == output))
        };
        let metrics = &self.ground.metrics;
        for (pipeline, output) in views
            .iter()
            .flat_map(|view| view.outputs.iter().map(move |output| (&view.name, output)))
            .filter(|(pipeline, output)| is_there(pipeline, &output.label))
        {
            let labels = [pipeline.as_str(), output.label.as_str()];
            metrics.waiting.with_label_values(&labels).set(output.waiting as i64);
            metrics.difference.with_label_values(&labels).set(output.difference);
        }
        views
    }
    pub fn actors(&self) -> Vec<ActorView> {
        let control = [&self.root, &self.http].map(|pulse| actor_view(pulse, None));
        let pipelines = self.pipelines();
        let actors = control
            .into_iter()
            .chain(
                self.jobs
                    .iter()
                    .flat_map(JobsHouse::pulses)
                    .chain(self.runner.iter().flat_map(RunnerHouse::pulses))
                    .map(|pulse| actor_view(pulse, None)),
            )
            .chain(pipelines.iter().flat_map(|pipeline| pipeline.actors()))
            .collect::<Vec<_>>();
        for actor in &actors {
            self.ground
                .metrics
                .waited
                .with_label_values(&[&actor.name])
                .set(actor.waited.as_secs_f64());
        }
        actors
    }
    pub fn files(&self) -> Vec<(String, Vec<FileStatus>)> {
        self.pipelines()
            .iter()
            .map(|p| (p.name.clone(), p.board.list()))
            .collect()
    }
    pub async fn health(&self) -> Health {
        let mut failing = self
            .actors()
            .into_iter()
            .filter(|actor| actor.state == "failing")
            .map(|actor| format!("{} keeps falling: {}", actor.name, actor.last_error.unwrap_or_default()))
            .collect::<Vec<_>>();
        let mut degraded = self
            .pipelines()
            .iter()
            .filter_map(|p| Some(format!("{}: {}", p.filter.pulse.name, p.filter.pulse.trouble()?)))
            .collect::<Vec<_>>();
        if let Some(jobs) = &self.jobs {
            degraded.extend(jobs.trouble().await);
        }
        if let Some(runner) = &self.runner {
            degraded.extend(runner.trouble().await);
        }
        for pipeline in self.views().await {
            let of = |what: &str| format!("{}: {what}", pipeline.name);
            failing.extend(pipeline.checkpoint_error.as_deref().map(of));
            degraded.extend(pipeline.error.as_deref().map(of));
            for output in &pipeline.outputs {
                let of = |what: &str| format!("{}/{}: {what}", pipeline.name, output.label);
                degraded.extend(output.error.as_deref().map(of));
                // While events move, the counters are read one after the other; when nothing waits they must agree.
                if output.difference != 0
                    && output.waiting == 0
                    && self.quiet_difference(&pipeline.name, &output.label).await
                {
                    failing.push(of("events in and events out do not agree"));
                }
            }
        }
        let state = match (failing.is_empty(), degraded.is_empty()) {
            (false, _) => HealthState::Failing,
            (_, false) => HealthState::Degraded,
            _ => HealthState::Ok,
        };
        failing.append(&mut degraded);
        Health {
            state,
            reasons: failing,
        }
    }
    /// Looks twice more: does the same difference stand while nothing moves?
    async fn quiet_difference(&self, pipeline: &str, output: &str) -> bool {
        let look = async || {
            let pipeline = self.pipelines().iter().find(|p| p.name == pipeline)?.clone();
            let view = pipeline.view().await;
            let output = view.outputs.into_iter().find(|o| o.label == output)?;
            Some((view.events_in, output.delivered, output.waiting, output.difference))
        };
        let first = look().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        first == look().await && first.is_some_and(|(_, _, waiting, difference)| waiting == 0 && difference != 0)
    }
    pub fn why(&self, what: &str) -> String {
        let (mut near, pipelines) = (None, self.pipelines());
        for (pipeline, file) in pipelines
            .iter()
            .flat_map(|p| p.board.list().into_iter().map(move |f| (&p.name, f)))
        {
            if file.path == what || file.aliases.iter().any(|alias| alias == what) {
                let reason = if file.reason.is_empty() {
                    match file.size.saturating_sub(file.read) {
                        0 if file.acknowledged >= file.read => "all of it was read and delivered".to_owned(),
                        0 => format!(
                            "all of it was read, {} bytes wait for the outputs",
                            file.read - file.acknowledged
                        ),
                        left => format!("{left} bytes are still to be read"),
                    }
                } else {
                    file.reason.clone()
                };
                return format!("{what}: {}, by pipeline `{pipeline}`: {reason}", file.state.word());
            }
            if file.path.ends_with(what) {
                near = Some(file.path);
            }
        }
        let inputs = pipelines
            .iter()
            .map(|p| format!("`{}` ({})", p.name, p.settings.input.name))
            .collect::<Vec<_>>()
            .join(", ");
        match near {
            Some(near) => format!("{what} is not known by that name; did you mean {near}"),
            None => format!("{what} matches no path, or an exclude, of the pipelines {inputs}"),
        }
    }
}
