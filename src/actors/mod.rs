//! Everything that lives. `root` builds and stops; `collect` moves events; `http_api` shows; `kit` is what they are made with.
pub mod collect;
pub mod cron;
pub mod http_api;
pub mod kit;
pub mod root;
