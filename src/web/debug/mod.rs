//! `/debug?cmd=…`, in mafio's words:
//!
//! | cmd | answer |
//! |---|---|
//! | `heap` | text: what the allocator holds |
//! | `gc` | text: what it gave back to the system when asked to |
//! | `go` | text: actors and tasks |
//! | `thread` | text: threads of the system with their CPU time |
//! | `cpuprof` | CPU profile over `seconds` (1 to 60, default 10), `format=flamegraph` (SVG, default) or `pprof` (gzip) |
//! | `memprof` | heap profile for jeprof, at once or over `seconds` |
//!
//! Behind the token. `gc` and the profiles are GETs that do something: so it was, and scripts use it.
use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{Data, Query},
};
use serde::Deserialize;

use crate::web::{Problem, State};

mod cpu;
mod memory;
mod running;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    #[serde(default)]
    cmd: String,
    seconds: Option<u64>,
    format: Option<String>,
}

pub async fn run(state: Data<State>, Query(asked): Query<Asked>) -> Result<HttpResponse, Problem> {
    match asked.cmd.as_str() {
        "heap" => memory::heap(),
        "gc" => memory::give_back(),
        "go" => running::actors(&state).await,
        "thread" => running::threads(),
        "cpuprof" => cpu::profile(seconds(asked.seconds)?, asked.format.as_deref()).await,
        "memprof" => memory::profile(seconds(asked.seconds)?).await,
        other => Err(Problem::bad_request(format!(
            "cmd: found `{other}`, accepted: heap, gc, go, thread, cpuprof, memprof"
        ))),
    }
}

fn seconds(asked: Option<u64>) -> Result<Duration, Problem> {
    match asked.unwrap_or(10) {
        n @ 1..=60 => Ok(Duration::from_secs(n)),
        n => Err(Problem::bad_request(format!("seconds: found {n}, accepted: 1 to 60"))),
    }
}

fn text(body: String) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(body)
}

/// A profiler belongs to the whole process: one request at a time has it.
struct Turn(&'static AtomicBool);
impl Turn {
    fn take(profiler: &'static AtomicBool) -> Result<Self, Problem> {
        match profiler.swap(true, SeqCst) {
            false => Ok(Self(profiler)),
            true => Err(Problem::new(
                StatusCode::CONFLICT,
                "a profile of this kind is being taken, try again when it is done",
            )),
        }
    }
}
impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}
