//! What people are told of: CronRunner says that a run went wrong, Notifier posts it.
use actix::prelude::*;

use crate::model::RunRecord;

/// CronRunner → Notifier: the last try of a run whose job names a webhook did not succeed. Sent, not waited for (`try_send`).
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct JobFailed {
    /// `on_failure`: the name of the webhook in the settings.
    pub webhook: String,
    /// The job's name or description; may be empty.
    pub title: String,
    pub run: RunRecord,
    /// The end of what it wrote, up to 4 KiB.
    pub output: Vec<u8>,
}
