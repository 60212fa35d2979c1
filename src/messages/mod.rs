//! Everything that actors say to each other. THE protocol table:
//!
//! | message | from → to | answer | bound |
//! |---|---|---|---|
//! | `Ship` (in a Port) | Collector → FilterStage → Sink | by its receipt, when settled | the Port's room |
//! | `Fate` | receipt → Collector | - | batches in the window |
//! | `Rewire` | Root → FilterStage | done | one at a time |
//! | `HandOver` | Root → Sink | in its slot | one at a time |
//! | `SyncNow` | Collector → Sink | synced or why not | one a second |
//! | `Drain` | Root → every stage, input first | nothing is left in it | once |
//! | `Reopen` | Root → Sink | - | per signal |
//! | `Observe*` | Root → every stage | its state | one per question |
//! | `Ask*`, `SetLogLevel` | HttpApi → Root | an answer | one per request |
pub mod collect;
pub mod control;
pub mod receipt;
