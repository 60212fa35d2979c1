//! A reload: reads the settings again, makes what is new, and changes by difference what runs. Until all of it is made nothing is
//! touched; from then on nothing can fail. Actors of what goes on stay: their plugin is replaced at a settled border, their edges are
//! wired anew. Waits: for what is on its way out, `RELOAD_WITHIN` in all; what takes longer goes on by itself and is named.
use std::{
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use actix::prelude::*;
use futures_util::future::join_all;
use tokio::{sync::oneshot, time::Instant};

use super::{
    House, Pipeline, WiredSink,
    plan::{Changes, Limits, NextOutput, Plan, Planned},
    stop::until_answered,
    wire::watch_end,
};
use crate::{
    actors::{
        collect::{
            collector::InputHeir,
            filter_stage::{Edge, NextFilter},
            memory,
            sink::SinkHeir,
        },
        http_api::Relisten,
    },
    messages::{
        collect::{HandOver, Hurry, Join, Relink, Retire, Rewire},
        control::{Drain, KeyChange, ReloadRefused, ReloadView, Reloaded},
    },
    settings::{self, Difference, Settings},
    web,
};

/// For all that is replaced or goes to come to its end.
const RELOAD_WITHIN: Duration = Duration::from_secs(5);
/// For the settings to be read and the plugins to be made: both may look at disks.
const MADE_WITHIN: Duration = Duration::from_secs(10);

pub(super) type Answer = Result<Reloaded, ReloadRefused>;
/// Who asked, and waits. None: a signal.
pub(super) type Asked = Option<oneshot::Sender<Answer>>;

/// All that can fail has not.
struct Prepared {
    settings: Settings,
    difference: Difference,
    plan: Plan,
    relisten: Option<Relisten>,
}

impl House {
    /// One at a time: the house's own loop calls it.
    pub(super) async fn reload(&self) -> Answer {
        let done = match self.prepare().await {
            Ok(Some(prepared)) => Ok(self.apply(prepared).await),
            Ok(None) => Ok(Reloaded::default()),
            Err(refused) => Err(refused),
        };
        let log = &self.ground.log;
        match &done {
            Ok(reloaded) if reloaded.is_empty() => slog::info!(log, "reloaded, nothing has changed"),
            Ok(Reloaded {
                added,
                removed,
                changed,
                pending,
            }) => {
                slog::info!(log, "reloaded"; "added" => keys(added), "removed" => keys(removed), "changed" => keys(changed),
                    "pending" => pending.join("; "));
            }
            Err(refused) => slog::error!(log, "not reloaded, going on as before"; "error" => refused.to_string()),
        }
        self.shown().last_reload = Some(ReloadView {
            at: self.ground.clock.wall(),
            error: done.as_ref().err().map(ToString::to_string),
        });
        done
    }

    /// None: nothing has changed.
    async fn prepare(&self) -> Result<Option<Prepared>, ReloadRefused> {
        let (ground, old) = (self.ground.clone(), self.wired());
        let work = move || {
            let mut settings = (ground.reread)().map_err(|refused| ReloadRefused::Settings {
                text: refused.to_string(),
                errors: refused.errors.iter().map(ToString::to_string).collect(),
            })?;
            if settings.agent.private_data_dir && old.settings.agent.private_data_dir {
                settings.agent.move_to(old.settings.agent.data_dir.clone());
            }
            let mut difference = settings::difference(&old.settings, &settings);
            if old.settings.http.address == settings.http.address {
                // Without another address there is no other listener.
                let changed = difference.changed.iter().map(|changed| &changed.key);
                let tls = changed.filter(|key| key.starts_with("http.tls")).cloned();
                difference.needs_restart.extend(tls);
            }
            if !difference.needs_restart.is_empty() {
                return Err(ReloadRefused::NeedsRestart(difference.needs_restart));
            }
            if difference.is_empty() && old.settings == settings {
                return Ok(None);
            }
            fail::fail_point!("reload-prepare", |_| Err(ReloadRefused::Failed(
                "failpoint reload-prepare".to_owned()
            )));
            let relisten = relisten(&old.settings.http, &settings.http).map_err(ReloadRefused::Failed)?;
            let plan = Plan::make(&ground, &old.pipelines, &settings, true).map_err(ReloadRefused::Failed)?;
            Ok(Some(Prepared {
                settings,
                difference,
                plan,
                relisten,
            }))
        };
        match tokio::time::timeout(MADE_WITHIN, actix_rt::task::spawn_blocking(work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(ReloadRefused::Failed("a plugin panicked while it was made".into())),
            Err(_) => Err(ReloadRefused::Failed(format!(
                "the settings and plugins were not ready after {MADE_WITHIN:?}"
            ))),
        }
    }

    async fn apply(&self, prepared: Prepared) -> Reloaded {
        let Prepared {
            settings,
            difference,
            plan: Plan {
                pipelines,
                gone,
                limits,
            },
            relisten,
        } = prepared;
        let until = Instant::now() + RELOAD_WITHIN;
        let before = Limits::of(&self.wired().settings);
        let lent = |limits: &Limits| memory::parts(limits.held, limits.collectors).1 as i64;
        self.common.grow(lent(&limits) - lent(&before));
        let mut pending = join_all(gone.iter().map(|pipeline| self.remove(pipeline, until)))
            .await
            .concat();
        let changing = pipelines.into_iter().map(|planned| self.change(planned, limits, until));
        let (now, late): (Vec<_>, Vec<_>) = join_all(changing).await.into_iter().unzip();
        pending.extend(late.into_iter().flatten());
        let now = now.into_iter().flatten().collect();
        self.ground.level_of(&settings.log, &self.wired().settings.log);
        self.ground.drain.set(settings.agent.drain);
        self.shown().config = settings.effective();
        self.set_wired(settings, now);
        if let Some(relisten) = relisten {
            self.listen(relisten).await;
        }
        let Difference {
            added,
            removed,
            changed,
            ..
        } = difference;
        let shown = |changes: Vec<settings::Changed>| {
            let shown = changes
                .into_iter()
                .map(|settings::Changed { key, from, to }| KeyChange { key, from, to });
            shown.collect::<Vec<_>>()
        };
        Reloaded {
            added: shown(added),
            removed: shown(removed),
            changed: shown(changed),
            pending,
        }
    }
    async fn listen(&self, relisten: Relisten) {
        let Some(api) = self.api.get() else { return };
        if relisten.listener.is_some() {
            self.shown().http = relisten.address.clone();
        }
        let slot = Arc::new(Mutex::new(Some(relisten)));
        let _ = tokio::time::timeout(RELOAD_WITHIN, until_answered(api, || HandOver(slot.clone()))).await;
    }

    /// The pipeline as it is from now on, and what is still to come to its end.
    async fn change(&self, planned: Planned, limits: Limits, until: Instant) -> (Option<Arc<Pipeline>>, Vec<String>) {
        match planned {
            Planned::Same(old) if old.limits == limits => (Some(old), vec![]),
            Planned::Same(old) => {
                let changes = Changes {
                    settings: old.settings.clone(),
                    input: None,
                    filters: None,
                    outputs: (0..old.sinks.len()).map(|at| NextOutput::Old(at, None)).collect(),
                    gone: vec![],
                };
                self.exchange(&old, changes, limits, until).await
            }
            Planned::Changed(old, changes) => self.exchange(&old, changes, limits, until).await,
            Planned::New(fresh) => {
                let name = fresh.settings.name.clone();
                match self.raise(*fresh, limits).await {
                    Ok(pipeline) => (Some(pipeline), vec![]),
                    Err(error) => (None, vec![format!("pipeline `{name}` could not be started: {error}")]),
                }
            }
        }
    }

    /// Changes what runs, in this order: edges of new outputs are held, these outputs join and begin with what is read from then on,
    /// the others take over their heirs, the Collector learns whom to ask, the edges open.
    async fn exchange(
        &self,
        old: &Arc<Pipeline>,
        changes: Changes,
        limits: Limits,
        until: Instant,
    ) -> (Option<Arc<Pipeline>>, Vec<String>) {
        let Changes {
            settings,
            input,
            filters,
            outputs,
            gone,
        } = changes;
        let wiring = self.wiring(&old.name, old.arbiter, limits);
        let (more, rewired) = (old.limits.write != limits.write, old.limits.read != limits.read);
        let (mut sinks, mut edges, mut heirs, mut joining) = (vec![], vec![], vec![], vec![]);
        for (output, said) in outputs.into_iter().zip(&settings.outputs) {
            match output {
                NextOutput::Old(at, output) => {
                    let mut sink = old.sinks[at].clone();
                    if more {
                        sink.stage.port = Some(wiring.port(&sink.stage.addr));
                    }
                    if output.is_some() || sink.settings != *said || more || old.limits.queue != limits.queue {
                        heirs.push((sink.clone(), output, wiring.rules(said)));
                    }
                    sink.settings = said.clone();
                    edges.push(sink.edge());
                    sinks.push(Some(sink));
                }
                NextOutput::New { number, label, output } => {
                    let meter =
                        crate::actors::collect::meter::OutputMeter::new(&self.ground.metrics, &old.name, &label);
                    edges.push(Edge {
                        number,
                        port: None,
                        waits: true,
                        meter,
                    });
                    joining.push((sinks.len(), number, label, output, said));
                    sinks.push(None);
                }
            }
        }
        let same_edges = gone.is_empty() && joining.is_empty() && !more;
        let waits = |sinks: &[WiredSink]| {
            sinks
                .iter()
                .map(|s| (s.number, s.settings.when_full))
                .collect::<Vec<_>>()
        };
        if !same_edges {
            until_answered(&old.filter.addr, || Rewire(edges.clone())).await;
        }
        let mut late = vec![];
        for (at, number, label, output, said) in joining {
            let joined = until_answered(&old.collector.addr, || Join(number)).await;
            match wiring.sink(number, label, output, said, Some(joined)).await {
                Ok(sink) => sinks[at] = Some(sink),
                Err(error) => late.push(format!("{}: {error}", old.name)),
            }
        }
        let sinks = sinks.into_iter().flatten().collect::<Vec<_>>();
        let mut filter = old.filter.clone();
        if rewired {
            filter.port = Some(crate::actors::kit::Port::new(
                filter.addr.clone().recipient(),
                limits.read,
            ));
        }
        let new = Arc::new(Pipeline {
            name: old.name.clone(),
            arbiter: old.arbiter,
            limits,
            board: old.board.clone(),
            journal: old.journal.clone(),
            meter: old.meter.clone(),
            collector: old.collector.clone(),
            filter,
            filters: match &filters {
                Some(filters) => filters.labels.clone(),
                None => old.filters.clone(),
            },
            sinks,
            ended: old.ended.clone(),
            end: match input.is_some() && old.end.is_over() {
                false => old.end.clone(),
                true => {
                    old.ended.store(false, SeqCst);
                    let (over, addr) = (self.over.clone(), old.collector.addr.clone());
                    Arc::new(watch_end(over, addr, old.ended.clone()))
                }
            },
            settings,
        });
        self.take_over(old, new.clone()); // from here on a stop finds them all
        let mut tasks = vec![];
        for (sink, output, rules) in heirs {
            let heir = SinkHeir {
                output,
                rules,
                mailbox: limits.write.events as usize,
            };
            tasks.push((sink.stage.pulse.name.clone(), hand_over(&sink.stage.addr, heir)));
        }
        match wiring.links(&new.settings, &new.sinks, &new.filter) {
            Ok(links) => until_answered(&old.collector.addr, || Relink(links.clone())).await,
            Err(error) => late.push(error),
        }
        if !same_edges || waits(&old.sinks) != waits(&new.sinks) {
            let edges = new.sinks.iter().map(WiredSink::edge).collect::<Vec<_>>();
            until_answered(&old.filter.addr, || Rewire(edges.clone())).await;
        }
        if let Some(filters) = filters {
            tasks.push((
                old.filter.pulse.name.clone(),
                hand_over::<_, Vec<NextFilter>>(&old.filter.addr, filters.next),
            ));
        }
        if let Some(input) = input {
            let heir = InputHeir {
                input,
                board: old.board.clone(),
            };
            tasks.push((old.collector.pulse.name.clone(), hand_over(&old.collector.addr, heir)));
        }
        let leaving = gone
            .into_iter()
            .map(|at| self.remove_sink(&old.name, &old.sinks[at], until));
        late.extend(join_all(leaving).await.into_iter().flatten());
        for (name, mut task) in tasks {
            if !self.in_time(until, &mut task).await {
                late.push(format!("{name} changes when what it has under way is done"));
            }
        }
        (Some(new), late)
    }

    /// It delivers what it holds, within the time that there is.
    async fn remove_sink(&self, pipeline: &str, sink: &WiredSink, until: Instant) -> Option<String> {
        let stage = &sink.stage;
        sink.closed.end();
        let drained = async {
            until_answered(&stage.addr, || Hurry).await;
            until_answered(&stage.addr, || Drain).await;
        };
        let done = self.in_time(until, Box::pin(drained)).await;
        until_answered(&stage.addr, || Retire).await;
        self.ground.metrics.forget_output(pipeline, &sink.label);
        self.ground.metrics.forget_actor(&stage.pulse.name);
        (!done).then(|| format!("{} was removed with events that it could not deliver", stage.pulse.name))
    }
    async fn remove(&self, pipeline: &Arc<Pipeline>, until: Instant) -> Vec<String> {
        pipeline.end.end();
        pipeline.sinks.iter().for_each(|sink| sink.closed.end());
        for sink in &pipeline.sinks {
            let _ = sink.stage.addr.try_send(Hurry);
        }
        let late = tokio::select! {
            late = pipeline.drain(until) => late,
            () = self.ground.stopping.wait() => return vec![], // the stop drains it
        };
        let unsettled = pipeline.view().await.unsettled;
        until_answered(&pipeline.collector.addr, || Retire).await;
        until_answered(&pipeline.filter.addr, || Retire).await;
        for sink in &pipeline.sinks {
            until_answered(&sink.stage.addr, || Retire).await;
        }
        self.leave_out(pipeline);
        let metrics = &self.ground.metrics;
        metrics.forget_pipeline(&pipeline.name);
        pipeline.actors().for_each(|actor| metrics.forget_actor(&actor.name));
        if unsettled > 0 {
            slog::warn!(self.ground.log, "a pipeline was removed with events that were not delivered";
                "pipeline" => &pipeline.name, "events" => unsettled, "at_source" => pipeline.view().await.rewinds);
        }
        let said = |who: String| format!("{who} was removed before it had delivered all");
        late.into_iter().map(said).collect()
    }
    /// False: it takes longer, or a stop has begun.
    async fn in_time<T>(&self, until: Instant, work: impl Future<Output = T> + Unpin) -> bool {
        tokio::select! {
            _ = work => true,
            () = tokio::time::sleep_until(until) => false,
            () = self.ground.stopping.wait() => false,
        }
    }
}

/// Until it was taken and the heir has its place, however long that takes: a task of its own, so that it is not forgotten.
fn hand_over<A, H>(addr: &Addr<A>, heir: H) -> actix_rt::task::JoinHandle<()>
where
    H: Send + 'static,
    A: Actor + Handler<HandOver<H>>,
    A::Context: actix::dev::ToEnvelope<A, HandOver<H>>,
{
    let (addr, slot) = (addr.clone(), Arc::new(Mutex::new(Some(heir))));
    actix_rt::spawn(async move { until_answered(&addr, || HandOver(slot.clone())).await })
}

/// What is listened on from now on, bound; none if that stays.
fn relisten(old: &settings::Http, new: &settings::Http) -> Result<Option<Relisten>, String> {
    if old == new {
        return Ok(None);
    }
    let mut address = None;
    let listener = match (old.address == new.address, new.address) {
        (true, _) if old.tls == new.tls => None,
        (_, None) => Some(None),
        (_, Some(wanted)) => {
            let listener = std::net::TcpListener::bind(wanted)
                .map_err(|error| format!("could not listen on http address {wanted}: {error}"))?;
            address = listener.local_addr().ok().map(|address| address.to_string());
            Some(Some(listener))
        }
    };
    let tls = new.tls.as_ref();
    let tls = tls
        .map(|tls| web::tls::server_config(&tls.cert, &tls.key))
        .transpose()?;
    Ok(Some(Relisten {
        listener,
        tls,
        address,
        insecure_remote: new.insecure_remote,
    }))
}
fn keys(changes: &[KeyChange]) -> String {
    let keys = changes.iter().map(|change| change.key.as_str());
    keys.collect::<Vec<_>>().join(" ")
}
