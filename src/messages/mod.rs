//! Everything that actors say to each other. THE protocol table:
//!
//! | message | from → to | answer | bound |
//! |---|---|---|---|
//! | `Ship` (in a Port) | Collector → FilterStage → Sinks | by its receipt, when settled | the Port's room |
//! | `Fate` | receipt → Collector | – | batches in the window |
//! | `SyncNow` | Collector → Sinks | synced, or why not | one a second |
//! | `AwaitEnd` | Root → Collector | when the input has ended and all is settled | one |
//! | `AwaitClosed` | Root → Sink | when the far side has left for good, what it said | one, and one a stop |
//! | `Hurry` | Root → Sink | heard | one a stop |
//! | `Drain` | Root → Collector, then FilterStage, then Sinks; last HttpApi | nothing is left in it | one a stop |
//! | `Reopen` | Root → Sinks | – | one a signal |
//! | `Rewire` | Root → FilterStage | its edges are these | a few a reload |
//! | `Join` | Root → Collector | the first batch of an output that is added | one an output |
//! | `Relink` | Root → Collector | it knows these Sinks, Port and share | one a reload |
//! | `HandOver` | Root → Sink, FilterStage, Collector, HttpApi | the heir has its place | one a reload |
//! | `Retire` | Root → whoever is removed | it leaves for good | one |
//! | `ObserveCollector`, `ObserveSink` | Root → each | its state | one a question |
//! | `AskAgent`, `AskActors`, `AskPipelines`, `AskFiles`, `AskHealth`, `AskMetrics`, `AskWhy`, `AskConfig`, `AskLogs` | HttpApi → Root | plain data | requests, 2 s each |
//! | `AskReload` | HttpApi → Root | what was other, or why nothing was touched | one, and one that waits; 40 s |
//! | `AskStop`, `AskReopen`, `SetLogLevel` | HttpApi → Root | heard | requests, 2 s each |
//! | `StandingChanged` | LeaseKeeper → JobWatcher | heard | one; the latest only |
//! | `ObserveLease`, `ObserveWatcher` | Root → each | its state | one a question |
//! | `Drain`, `GiveBack` | Root → JobWatcher, then LeaseKeeper, at the end of a stop | heard; the lease is gone | one a stop |
//! | `JobsChanged` | JobWatcher → CronRunner | for each job: ok, paused, invalid, shadowed | one; the next waits for its answer |
//! | `MayFire` | LeaseKeeper → CronRunner | heard | one a change |
//! | `JobCommand` | JobWatcher, Root → CronRunner | done, or why not | requests, 2 s each |
//! | `JobStateChanged` | CronRunner → JobWatcher | heard | one a job and turn |
//! | `AskSummary` | JobWatcher → CronRunner | how the jobs do | one each 10 minutes |
//! | `Claim`, `ReleaseClaim`, `MarkOnce` | CronRunner → JobWatcher | granted, taken, no store | one a firing |
//! | `MeetWatcher` | Root → CronRunner | – | one a start |
//! | `LetGo` | Root → CronRunner | – | one a stop |
//! | `WriteJob`, `CheckSigned` | Root → JobWatcher | written, or why not | requests, 2 s each |
//! | `JobFailed` | CronRunner → Notifier | – | 64 a webhook; more are dropped and counted |
//! | `AskJobs`, `AskJob`, `AskRuns`, `AskOutput`, `CheckJob`, `AskWhyJob`, `ObserveRunner` | HttpApi, Root → CronRunner | plain data | requests, 2 s each |
//!
//! Whatever carries data travels in a Port; nothing calls `do_send`. An answer that is owed survives a fall of whoever owes it; a message
//! that was lost in one is sent again (`root::until_answered`, the Collector's go-back-N); what it carried lies in a slot of the asker.
pub mod collect;
pub mod control;
pub mod jobs;
pub mod lease;
pub mod notify;
pub mod receipt;
