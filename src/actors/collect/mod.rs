//! The data path: Collector ─Port─► FilterStage ─Port─► Sink a, Sink b, …
//!
//! The Collector numbers its batches without gaps (its lane) and keeps each until it is settled (its window). What waits in a stage
//! waits in the actor's fields, the front until it is done, and handlers only put it there: so a fall costs nothing but time. Should
//! a batch be lost all the same (a handler fell), the Sink refuses what comes out of turn and the Collector goes back to the first
//! batch that is not settled: go-back-N, as TCP and Kafka's idempotent producer do.
pub mod collector;
pub mod filter_stage;
pub mod memory;
pub mod meter;
pub mod rate;
pub mod sink;
