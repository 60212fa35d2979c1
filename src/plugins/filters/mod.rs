//! Filters: pure functions over a batch, in order, in one FilterStage. To add one: its file, and one line of CATALOG.
pub mod valid;

use crate::{
    model::Events,
    plugins::{Plugin, PluginError, Table},
};

pub type Build = fn(&Table) -> Result<Box<dyn Filter>, PluginError>;
pub const CATALOG: &[Plugin<Build>] = &[valid::PLUGIN];

/// How many events a filter took away, by reason. Reasons are few and fixed.
pub type Dropped = Vec<(&'static str, u64)>;

pub trait Filter: Send {
    /// What is left of these events. May panic: then it is asked again, and nothing it remembers may have changed.
    fn apply(&mut self, events: Events, dropped: &mut Dropped) -> Events;
}
