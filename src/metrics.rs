//! One registry for all that is counted. The data path holds ready handles and adds to them; nothing in it waits for who reads.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, Desc, MetricVec, MetricVecBuilder},
    proto,
};

use crate::os;

pub type SharedMetrics = Arc<Metrics>;

/// Every family, by name; labels as declared in `new`. No per-file and no per-job labels.
pub struct Metrics {
    registry: Registry,
    pub events_in: IntCounterVec,
    pub bytes_in: IntCounterVec,
    pub filtered: IntCounterVec,
    pub filter_passed: IntCounterVec,
    pub delivered: IntCounterVec,
    pub delivered_bytes: IntCounterVec,
    pub dropped: IntCounterVec,
    pub dead: IntCounterVec,
    pub waiting: IntGaugeVec,
    pub difference: IntGaugeVec,
    pub input: IntCounterVec,
    pub resent: IntCounterVec,
    pub retries: IntCounterVec,
    pub breaker: IntGaugeVec,
    pub restarts: IntCounterVec,
    pub waited: GaugeVec,
    pub checkpoint_errors: IntCounterVec,
    pub webhook_alerts: IntCounterVec,
    pub log_dropped: IntCounter,
    pub start_time: Gauge,
}

impl Metrics {
    pub fn new() -> SharedMetrics {
        let registry = Registry::new();
        fn keep<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
            let collector = made.expect("names and labels are constants, tested");
            registry
                .register(Box::new(collector.clone()))
                .expect("each name is used once, tested");
            collector
        }
        let r = &registry;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            keep(r, IntCounterVec::new(Opts::new(format!("luffly_{name}"), help), labels))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            keep(r, IntGaugeVec::new(Opts::new(format!("luffly_{name}"), help), labels))
        };
        let gauge = |name: &str, help: &str| keep(r, Gauge::new(name, help));
        keep(r, Process::new());
        let build = Opts::new("luffly_build_info", "1, labelled with what runs").const_label("version", crate::VERSION);
        keep(r, Gauge::with_opts(build)).set(1.0);
        Arc::new(Self {
            events_in: counters("events_in_total", "Events read", &["pipeline"]),
            bytes_in: counters("bytes_in_total", "Bytes read, line ends included", &["pipeline"]),
            filtered: counters(
                "events_filtered_total",
                "Events that a filter took away",
                &["pipeline", "filter", "reason"],
            ),
            filter_passed: counters(
                "filter_passed_total",
                "Events that a filter could not work on and let pass",
                &["pipeline", "filter", "reason"],
            ),
            delivered: counters(
                "events_delivered_total",
                "Events that an output has delivered",
                &["pipeline", "output"],
            ),
            delivered_bytes: counters(
                "bytes_delivered_total",
                "Bytes that an output has delivered",
                &["pipeline", "output"],
            ),
            dropped: counters(
                "events_dropped_total",
                "Events that an output has dropped",
                &["pipeline", "output", "reason"],
            ),
            dead: counters(
                "events_dead_total",
                "Events in the dead letter",
                &["pipeline", "output", "reason"],
            ),
            waiting: gauges(
                "events_waiting",
                "Events read and not yet settled",
                &["pipeline", "output"],
            ),
            difference: gauges(
                "conservation_difference",
                "in - filtered - delivered - dropped - dead - waiting: zero at any quiet moment",
                &["pipeline", "output"],
            ),
            input: counters(
                "input_total",
                "What an input did besides reading, by what",
                &["pipeline", "what"],
            ),
            resent: counters("batches_resent_total", "Batches sent again after a fall", &["pipeline"]),
            retries: counters(
                "output_retries_total",
                "Writes that failed and were tried again",
                &["pipeline", "output"],
            ),
            breaker: gauges(
                "output_breaker",
                "0 closed, 1 half-open, 2 open",
                &["pipeline", "output"],
            ),
            restarts: counters("actor_restarts_total", "Falls of an actor", &["actor", "cause"]),
            waited: keep(
                r,
                GaugeVec::new(
                    Opts::new(
                        "luffly_port_waited_seconds_total",
                        "How long others waited for room at this stage",
                    ),
                    &["actor"],
                ),
            ),
            checkpoint_errors: counters(
                "checkpoint_errors_total",
                "Checkpoints that could not be written",
                &["pipeline"],
            ),
            webhook_alerts: counters(
                "webhook_alerts_total",
                "Failed runs that were to be told to a webhook: sent, lost, refused, dropped",
                &["webhook", "outcome"],
            ),
            log_dropped: keep(
                r,
                IntCounter::new("luffly_log_records_dropped_total", "Log records lost to a full queue"),
            ),
            start_time: gauge("process_start_time_seconds", "Start, seconds since 1970"),
            registry,
        })
    }
    /// What was counted of a pipeline that is gone: under its name another one begins anew.
    pub fn forget_pipeline(&self, pipeline: &str) {
        let labels = [("pipeline", pipeline)];
        let own = [
            &self.events_in,
            &self.bytes_in,
            &self.filtered,
            &self.filter_passed,
            &self.input,
            &self.resent,
            &self.checkpoint_errors,
        ];
        own.into_iter().for_each(|family| forget(family, &labels));
        self.forget_outputs(&labels);
    }
    /// The same, of one output.
    pub fn forget_output(&self, pipeline: &str, output: &str) {
        self.forget_outputs(&[("pipeline", pipeline), ("output", output)]);
    }
    pub fn forget_actor(&self, actor: &str) {
        forget(&self.restarts, &[("actor", actor)]);
        forget(&self.waited, &[("actor", actor)]);
    }
    fn forget_outputs(&self, labels: &[(&str, &str)]) {
        let counters = [
            &self.delivered,
            &self.delivered_bytes,
            &self.dropped,
            &self.dead,
            &self.retries,
        ];
        counters.into_iter().for_each(|family| forget(family, labels));
        for family in [&self.waiting, &self.difference, &self.breaker] {
            forget(family, labels);
        }
    }
    /// Prometheus text format 0.0.4.
    pub fn text(&self) -> String {
        let mut out = Vec::new();
        // Writing to a Vec does not fail, and the families are well-formed.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8(out).unwrap_or_default()
    }
}

/// Removes each series that has these labels.
fn forget<B: MetricVecBuilder>(family: &MetricVec<B>, labels: &[(&str, &str)]) {
    for metric in family.collect().iter().flat_map(|family| family.get_metric()) {
        let all = metric.get_label().iter().map(|l| (l.name(), l.value()));
        let all = all.collect::<HashMap<_, _>>();
        if labels.iter().all(|(name, value)| all.get(name) == Some(value)) {
            let _ = family.remove(&all); // it is there: it was just listed, and nobody else removes
        }
    }
}

/// What the kernel says about this process, asked whenever the registry is read: always true, and nobody has to remember to.
#[derive(Clone)]
struct Process {
    cpu: Counter,
    resident: Gauge,
    fds: Gauge,
    /// A counter is set by reset and add: two readers at once would see it in between.
    one_at_a_time: Arc<Mutex<()>>,
}
impl Process {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            cpu: Counter::new("process_cpu_seconds_total", "User and system CPU time")?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory")?,
            fds: Gauge::new("process_open_fds", "Open file descriptors")?,
            one_at_a_time: Arc::default(),
        })
    }
}
impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [self.cpu.desc(), self.resident.desc(), self.fds.desc()].concat()
    }
    fn collect(&self) -> Vec<proto::MetricFamily> {
        let Ok(stats) = os::process_stats() else {
            return Vec::new(); // a gap says more than an old number
        };
        let _turn = self.one_at_a_time.lock();
        self.cpu.reset();
        self.cpu.inc_by(stats.cpu_seconds);
        self.resident.set(stats.resident_bytes as f64);
        self.fds.set(stats.open_fds as f64);
        [self.cpu.collect(), self.resident.collect(), self.fds.collect()].concat()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_process_is_asked_at_each_reading() {
        let metrics = super::Metrics::new();
        let value = |name: &str| {
            let text = metrics.text();
            let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        let before = value("process_cpu_seconds_total");
        while value("process_cpu_seconds_total") <= before {} // reading takes CPU time itself
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0);
        let text = metrics.text();
        assert!(text.contains("# TYPE process_cpu_seconds_total counter"));
        assert!(text.contains(&format!("luffly_build_info{{version=\"{}\"}} 1", crate::VERSION)));
    }
    #[test]
    fn what_is_gone_is_forgotten_and_nothing_else() {
        let metrics = super::Metrics::new();
        for (pipeline, output) in [("a", "logr"), ("a", "logr#2"), ("b", "logr")] {
            metrics.delivered.with_label_values(&[pipeline, output]).inc();
            metrics.dropped.with_label_values(&[pipeline, output, "full"]).inc();
            metrics.waiting.with_label_values(&[pipeline, output]).set(1);
        }
        let lines = || {
            let text = metrics.text();
            let ours = text
                .lines()
                .filter(|line| line.contains("pipeline="))
                .map(str::to_owned);
            ours.collect::<Vec<_>>()
        };
        metrics.forget_output("a", "logr#2");
        assert!(lines().len() == 6 && !lines().iter().any(|line| line.contains("logr#2")));
        metrics.forget_pipeline("a");
        assert!(lines().len() == 3 && lines().iter().all(|line| line.contains("pipeline=\"b\"")));
    }
    #[test]
    fn every_family_registers_and_prints() {
        let metrics = super::Metrics::new();
        metrics.events_in.with_label_values(&["default"]).inc_by(3);
        assert!(
            metrics
                .text()
                .contains("luffly_events_in_total{pipeline=\"default\"} 3")
        );
    }
}
