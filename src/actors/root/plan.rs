//! What a start or a reload is going to do: which pipelines stay as they are, change, come or go, with all plugins made that are new.
//! Whatever can fail of it fails here, before anything is touched. Blocking: plugins may look at disks.
use std::sync::Arc;

use super::{Ground, Pipeline};
use crate::{
    actors::{
        collect::{
            filter_stage::NextFilter,
            meter::{FilterTally, InputTally},
        },
        kit::Weight,
    },
    checkpoint::{Journal, SharedJournal},
    model::{batch::MOST_OUTPUTS, file_status::SharedFileBoard},
    plugins::{
        self,
        filters::{self, Filter},
        inputs::{self, Input},
        outputs::{self, Output},
    },
    settings::{self, Heirs, Settings, WhenFull},
};

pub struct Plan {
    /// In the order of the settings.
    pub pipelines: Vec<Planned>,
    pub gone: Vec<Arc<Pipeline>>,
    pub limits: Limits,
}
pub enum Planned {
    Same(Arc<Pipeline>),
    Changed(Arc<Pipeline>, Box<Changes>),
    New(Box<Fresh>),
}
pub struct Fresh {
    pub settings: settings::Pipeline,
    pub input: Box<dyn Input>,
    pub journal: Option<SharedJournal>,
    pub board: SharedFileBoard,
    pub filters: Vec<(String, Box<dyn Filter>)>,
    /// With their labels.
    pub outputs: Vec<(String, Box<dyn Output>)>,
}
pub struct Changes {
    pub settings: settings::Pipeline,
    pub input: Option<Box<dyn Input>>,
    pub filters: Option<NextFilters>,
    /// In the order of the settings.
    pub outputs: Vec<NextOutput>,
    /// Places among the old ones.
    pub gone: Vec<usize>,
}
pub struct NextFilters {
    pub next: Vec<NextFilter>,
    pub labels: Vec<String>,
}
pub enum NextOutput {
    /// The one at that place among the old ones goes on: by a new plugin if there is one.
    Old(usize, Option<Box<dyn Output>>),
    New {
        number: u32,
        label: String,
        output: Box<dyn Output>,
    },
}

/// What all pipelines share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How much may wait before the filters.
    pub read: Weight,
    /// And before an output.
    pub write: Weight,
    /// The queue of an output that drops.
    pub queue: Weight,
    /// Bytes that the Collectors may hold, all together, and how many there are.
    pub held: u64,
    pub collectors: usize,
}
impl Limits {
    pub fn of(settings: &Settings) -> Self {
        let memory = settings.limits.memory;
        // Half for what the Collectors hold, half for the queues of outputs that drop: these hold what is settled already.
        let outputs = settings.pipelines.iter().flat_map(|p| &p.outputs);
        let dropping = outputs.filter(|o| may_drop(o)).count() as u64;
        let queues = (memory / 2).checked_div(dropping).unwrap_or(0);
        let weight = |events, bytes: u64| Weight {
            events,
            kib: (bytes / 1024) as u32,
        };
        Self {
            read: weight(settings.max_read_channel_size, memory),
            write: weight(settings.max_write_channel_size, memory),
            queue: weight(settings.max_write_channel_size, queues),
            held: memory - queues * dropping,
            collectors: settings.pipelines.len(),
        }
    }
}
fn may_drop(output: &settings::Output) -> bool {
    output.when_full != WhenFull::Block || output.degrade != WhenFull::Block
}

impl Plan {
    /// `bind`: an output whose target cannot be had fails the plan; at a start it is tried again, for ever.
    pub fn make(ground: &Ground, old: &[Arc<Pipeline>], new: &Settings, bind: bool) -> Result<Self, String> {
        let planner = Planner { ground, new, bind };
        let mut pipelines = vec![];
        for settings in &new.pipelines {
            let named = |error| format!("pipeline `{}`: {error}", settings.name);
            pipelines.push(match old.iter().find(|p| p.name == settings.name) {
                None => Planned::New(Box::new(planner.fresh(settings).map_err(named)?)),
                Some(old) if old.settings == *settings => Planned::Same(old.clone()),
                Some(old) => Planned::Changed(old.clone(), Box::new(planner.changes(old, settings).map_err(named)?)),
            });
        }
        let stays = |old: &&Arc<Pipeline>| new.pipelines.iter().any(|p| p.name == old.name);
        Ok(Self {
            pipelines,
            gone: old.iter().filter(|old| !stays(old)).cloned().collect(),
            limits: Limits::of(new),
        })
    }
}

struct Planner<'a> {
    ground: &'a Ground,
    new: &'a Settings,
    bind: bool,
}
impl Planner<'_> {
    fn log(&self, pipeline: &str) -> slog::Logger {
        self.ground.log.new(slog::o!("pipeline" => pipeline.to_owned()))
    }
    fn fresh(&self, settings: &settings::Pipeline) -> Result<Fresh, String> {
        let mut outputs = Vec::<(String, Box<dyn Output>)>::new();
        for output in &settings.outputs {
            let label = free_label(
                &output.plugin.name.name,
                outputs.iter().map(|(label, _)| label.as_str()),
            );
            let made = self.output(&settings.name, &label, output)?;
            outputs.push((label, made));
        }
        let labels = filters::labels(settings.filters.iter().map(|filter| &filter.name));
        let filters = labels.zip(&settings.filters).map(|(label, filter)| {
            let made = self.filter(&settings.name, &label, filter)?;
            Ok::<_, String>((label, made))
        });
        let filters = filters.collect::<Result<_, _>>()?;
        let board = SharedFileBoard::default();
        let journal = match self.new.agent.private_data_dir {
            true => None, // bare `agent` on stdin: nothing to come back to
            false => Some(self.journal(&settings.name)?),
        };
        Ok(Fresh {
            input: self.input(settings, &journal, &board)?,
            settings: settings.clone(),
            journal,
            board,
            filters,
            outputs,
        })
    }

    fn changes(&self, old: &Pipeline, settings: &settings::Pipeline) -> Result<Changes, String> {
        let before = &old.settings;
        let Heirs { of, gone } = settings::heirs(&before.outputs, &settings.outputs);
        let mut labels = old.sinks.iter().map(|sink| sink.label.clone()).collect::<Vec<_>>();
        let stays = |at: &usize| !gone.contains(at);
        let kept = (0..old.sinks.len()).filter(stays).map(|at| old.sinks[at].number);
        let kept = kept.collect::<Vec<_>>();
        let mut taken = old.sinks.iter().map(|sink| sink.number).collect::<Vec<_>>();
        let mut outputs = vec![];
        for (output, heir) in settings.outputs.iter().zip(of) {
            outputs.push(match heir {
                Some(at) if before.outputs[at].plugin == output.plugin => NextOutput::Old(at, None),
                Some(at) => NextOutput::Old(at, Some(self.output(&old.name, &old.sinks[at].label, output)?)),
                None => {
                    let label = free_label(&output.plugin.name.name, labels.iter().map(String::as_str));
                    labels.push(label.clone());
                    // A number of one that goes serves again only if there is no other: it still counts by it for a while.
                    let number = free_number(&taken).or_else(|| {
                        taken.retain(|number| kept.contains(number));
                        free_number(&taken)
                    });
                    let number = number.ok_or_else(|| format!("more than {MOST_OUTPUTS} outputs"))?;
                    taken.push(number);
                    let output = self.output(&old.name, &label, output)?;
                    NextOutput::New { number, label, output }
                }
            });
        }
        Ok(Changes {
            input: match before.input == settings.input {
                true => None,
                false => Some(self.input(settings, &old.journal, &old.board)?),
            },
            filters: match before.filters == settings.filters {
                true => None,
                false => Some(self.next_filters(old, settings)?),
            },
            settings: settings.clone(),
            outputs,
            gone,
        })
    }
    /// A filter that is the same stays, with its label and all that it remembers.
    fn next_filters(&self, old: &Pipeline, new: &settings::Pipeline) -> Result<NextFilters, String> {
        let mut left = old.settings.filters.iter().enumerate().collect::<Vec<_>>();
        let kept = new.filters.iter().map(|filter| {
            let place = left.iter().position(|(_, old)| *old == filter)?;
            Some(left.remove(place).0)
        });
        let kept = kept.collect::<Vec<_>>();
        let mut taken = kept
            .iter()
            .flatten()
            .map(|at| old.filters[*at].clone())
            .collect::<Vec<_>>();
        let (mut next, mut labels) = (vec![], vec![]);
        for (filter, kept) in new.filters.iter().zip(kept) {
            let (one, label) = match kept {
                Some(at) => (NextFilter::Kept(at), old.filters[at].clone()),
                None => {
                    let label = free_label(&filter.name.name, taken.iter().map(String::as_str));
                    taken.push(label.clone());
                    let made = self.filter(&old.name, &label, filter)?;
                    (NextFilter::New(label.clone(), made), label)
                }
            };
            next.push(one);
            labels.push(label);
        }
        Ok(NextFilters { next, labels })
    }

    fn output(&self, pipeline: &str, label: &str, output: &settings::Output) -> Result<Box<dyn Output>, String> {
        let plugin = plugins::find(outputs::CATALOG, "output", &output.plugin.name)?;
        let context = outputs::OutputContext {
            pipeline: pipeline.into(),
            label: label.into(),
            host: self.ground.host.clone(),
            log: self.log(pipeline).new(slog::o!("output" => label.to_owned())),
            clock: self.ground.clock.clone(),
        };
        let made = (plugin.build)(&output.plugin.table, context);
        let mut made = made.map_err(|error| format!("output `{label}`: {error}"))?;
        if self.bind {
            made.bind().map_err(|error| format!("output `{label}`: {error}"))?;
        }
        Ok(made)
    }
    fn filter(&self, pipeline: &str, label: &str, filter: &settings::Plugin) -> Result<Box<dyn Filter>, String> {
        let plugin = plugins::find(filters::CATALOG, "filter", &filter.name)?;
        let context = filters::FilterContext {
            pipeline: pipeline.into(),
            label: label.into(),
            log: self.log(pipeline).new(slog::o!("filter" => label.to_owned())),
            clock: self.ground.clock.clone(),
            tally: Arc::new(FilterTally::new(&self.ground.metrics, pipeline, label)),
        };
        (plugin.build)(&filter.table, context).map_err(|error| format!("filter `{label}`: {error}"))
    }
    fn input(
        &self,
        pipeline: &settings::Pipeline,
        journal: &Option<SharedJournal>,
        board: &SharedFileBoard,
    ) -> Result<Box<dyn Input>, String> {
        let plugin = plugins::find(inputs::CATALOG, "input", &pipeline.input.name)?;
        let context = inputs::InputContext {
            pipeline: pipeline.name.as_str().into(),
            host: self.ground.host.clone(),
            log: self.log(&pipeline.name),
            clock: self.ground.clock.clone(),
            once: self.new.once,
            journal: journal.clone(),
            board: board.clone(),
            tally: Arc::new(InputTally::new(&self.ground.metrics, &pipeline.name)),
            runs: self.ground.runs.clone(),
        };
        let made = (plugin.build)(&pipeline.input.table, context);
        made.map_err(|error| format!("input `{}`: {error}", pipeline.input.name))
    }
    fn journal(&self, pipeline: &str) -> Result<SharedJournal, String> {
        let dir = self.new.agent.data_dir.join("checkpoints").join(pipeline);
        let opened = Journal::open(&dir, &self.ground.boot_id)
            .map_err(|error| format!("could not open the checkpoints in {}: {error}", dir.display()))?;
        if let Some(damage) = opened.damage {
            slog::error!(self.log(pipeline), "checkpoints were damaged, going on from the last good ones"; "damage" => damage);
        }
        Ok(Arc::new(std::sync::Mutex::new(opened.journal)))
    }
}

/// `logr`, `logr#2`, …
fn free_label<'a>(plugin: &str, taken: impl Iterator<Item = &'a str>) -> String {
    let taken = taken.collect::<Vec<_>>();
    let label = |n: usize| match n {
        1 => plugin.to_owned(),
        n => format!("{plugin}#{n}"),
    };
    let free = (1..).map(label).find(|label| !taken.contains(&label.as_str()));
    free.expect("one more than there are")
}
fn free_number(taken: &[u32]) -> Option<u32> {
    (0..MOST_OUTPUTS as u32).find(|number| !taken.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_numbers_are_not_used_twice() {
        assert_eq!(free_label("logr", ["null"].into_iter()), "logr");
        assert_eq!(free_label("logr", ["logr", "logr#3"].into_iter()), "logr#2");
        assert_eq!(free_number(&[0, 2, 1]), Some(3));
        assert_eq!(free_number(&(0..64).collect::<Vec<_>>()), None);
    }
}
