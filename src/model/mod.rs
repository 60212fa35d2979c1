//! Plain data that everybody may know. No outside format in here: who shows or stores something owns its form.
pub mod batch;
pub mod file_status;
pub mod host;
pub mod job;
pub mod plugin_name;
pub mod sign;
pub mod units;

pub use batch::{Batch, Chunk, Events, Lane, Mark, Origin, Outcome, Progress, SourceId};
pub use file_status::{FileBoard, FileState, FileStatus};
pub use host::Host;
pub use job::{Invalid, JobKey, JobSpec, JobState, RunId, RunRecord, RunState};
pub use plugin_name::PluginName;
pub use sign::{SharedSign, Sign};
pub use units::{Size, Span};
