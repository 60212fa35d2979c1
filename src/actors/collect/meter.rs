//! Ready handles to the counters of one pipeline: adding is one atomic step, once a batch.
use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::{metrics::Metrics, plugins::inputs::Tally};

#[derive(Clone)]
pub struct PipelineMeter {
    pub events_in: IntCounter,
    pub bytes_in: IntCounter,
    pub resent: IntCounter,
    pub checkpoint_errors: IntCounter,
    filtered: IntCounterVec,
    pipeline: String,
}
impl PipelineMeter {
    pub fn new(metrics: &Metrics, pipeline: &str) -> Self {
        let of = |family: &IntCounterVec| family.with_label_values(&[pipeline]);
        Self {
            events_in: of(&metrics.events_in),
            bytes_in: of(&metrics.bytes_in),
            resent: of(&metrics.resent),
            checkpoint_errors: of(&metrics.checkpoint_errors),
            filtered: metrics.filtered.clone(),
            pipeline: pipeline.to_owned(),
        }
    }
    pub fn filtered(&self, filter: &str, reason: &str, events: u64) {
        self.filtered
            .with_label_values(&[self.pipeline.as_str(), filter, reason])
            .inc_by(events);
    }
    /// Of all filters and reasons.
    pub fn all_filtered(&self) -> u64 {
        total(&self.filtered, &[("pipeline", &self.pipeline)])
    }
}

#[derive(Clone)]
pub struct OutputMeter {
    pub delivered: IntCounter,
    pub delivered_bytes: IntCounter,
    pub retries: IntCounter,
    pub breaker: IntGauge,
    dropped: IntCounterVec,
    dead: IntCounterVec,
    pipeline: String,
    output: String,
}
impl OutputMeter {
    pub fn new(metrics: &Metrics, pipeline: &str, output: &str) -> Self {
        let of = |family: &IntCounterVec| family.with_label_values(&[pipeline, output]);
        Self {
            delivered: of(&metrics.delivered),
            delivered_bytes: of(&metrics.delivered_bytes),
            retries: of(&metrics.retries),
            breaker: metrics.breaker.with_label_values(&[pipeline, output]),
            dropped: metrics.dropped.clone(),
            dead: metrics.dead.clone(),
            pipeline: pipeline.to_owned(),
            output: output.to_owned(),
        }
    }
    pub fn dropped(&self, reason: &str, events: usize) {
        if events > 0 {
            self.dropped
                .with_label_values(&[&self.pipeline, &self.output, reason])
                .inc_by(events as u64);
        }
    }
    pub fn dead(&self, reason: &str, events: usize) {
        if events > 0 {
            self.dead
                .with_label_values(&[&self.pipeline, &self.output, reason])
                .inc_by(events as u64);
        }
    }
    pub fn all_dropped(&self) -> u64 {
        total(&self.dropped, &[("pipeline", &self.pipeline), ("output", &self.output)])
    }
    pub fn all_dead(&self) -> u64 {
        total(&self.dead, &[("pipeline", &self.pipeline), ("output", &self.output)])
    }
}

/// The sum over all children of a family that have these labels.
fn total(family: &IntCounterVec, labels: &[(&str, &str)]) -> u64 {
    use prometheus::core::Collector;
    let mut sum = 0.0;
    for metric in family.collect().iter().flat_map(|family| family.get_metric()) {
        let fits = |(name, value): &(&str, &str)| {
            metric
                .get_label()
                .iter()
                .any(|l| l.name() == *name && l.value() == *value)
        };
        if labels.iter().all(fits) {
            sum += metric.get_counter().get_value();
        }
    }
    sum as u64
}

/// What an input counts besides events.
pub struct InputTally {
    family: IntCounterVec,
    pipeline: String,
}
impl InputTally {
    pub fn new(metrics: &Metrics, pipeline: &str) -> Self {
        Self {
            family: metrics.input.clone(),
            pipeline: pipeline.to_owned(),
        }
    }
}
impl Tally for InputTally {
    fn count(&self, name: &'static str, by: u64) {
        self.family
            .with_label_values(&[self.pipeline.as_str(), name])
            .inc_by(by);
    }
}

/// What a filter counts besides the events it took away.
pub struct FilterTally {
    family: IntCounterVec,
    pipeline: String,
    filter: String,
}
impl FilterTally {
    pub fn new(metrics: &Metrics, pipeline: &str, filter: &str) -> Self {
        Self {
            family: metrics.filter_passed.clone(),
            pipeline: pipeline.to_owned(),
            filter: filter.to_owned(),
        }
    }
}
impl Tally for FilterTally {
    fn count(&self, name: &'static str, by: u64) {
        self.family
            .with_label_values(&[self.pipeline.as_str(), &self.filter, name])
            .inc_by(by);
    }
}
