//! Runs that are over, one after the other: for whoever passes them on.
use std::sync::Arc;

use super::{Kept, RunRecord};

pub type SharedRunFeed = Arc<dyn RunFeed>;

/// One more run is over. Numbers rise, and are given once; those that are missing were thrown away, as too old or too many.
#[derive(Clone, Debug, PartialEq)]
pub struct Over {
    pub number: u64,
    pub record: RunRecord,
    /// What it said.
    pub output: Kept,
}
/// Every call may wait for a disk, but `last`.
pub trait RunFeed: Send + Sync {
    /// Another history has other numbers.
    fn id(&self) -> u64;
    /// The highest number given; 0: none.
    fn last(&self) -> u64;
    /// The first after that number.
    fn next(&self, after: u64) -> Result<Option<Over>, String>;
}
