//! `cmd=cpuprof`: where CPU time goes. Samples 99 times a second of CPU time, over all threads. Stacks are found by the unwind
//! tables that panics use, so they are whole without frame pointers; the names come from the symbols that a release keeps.
use std::{
    io::Write,
    sync::{Once, atomic::AtomicBool},
    time::Duration,
};

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use flate2::{Compression, write::GzEncoder};
use nix::sys::signal::{Signal, raise};
use pprof::{ProfilerGuard, Report, protos::Message};

use super::Turn;
use crate::web::Problem;

static TAKEN: AtomicBool = AtomicBool::new(false);
/// Not a divisor of what timers usually run at, so that it does not march in step with them.
const PER_SECOND: i32 = 99;

#[derive(Clone, Copy)]
enum Format {
    Flamegraph,
    Pprof,
}

pub async fn profile(time: Duration, format: Option<&str>) -> Result<HttpResponse, Problem> {
    let format = match format {
        None | Some("flamegraph") => Format::Flamegraph,
        Some("pprof") => Format::Pprof,
        Some(other) => {
            return Err(Problem::bad_request(format!(
                "format: found `{other}`, accepted: flamegraph, pprof"
            )));
        }
    };
    let turn = Turn::take(&TAKEN)?;
    let failed = |error: String| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("could not take a CPU profile: {error}"),
        )
    };
    let begun = web::block(begin).await.map_err(|error| failed(error.to_string()))?;
    let profiler = begun.map_err(failed)?;
    tokio::time::sleep(time).await; // a request that is cut off drops the profiler here
    // Finding the names takes seconds in a large binary: not on the thread that answers others.
    let made = web::block(move || {
        let report = profiler.report().build().map_err(|error| error.to_string())?;
        drop((profiler, turn));
        match format {
            Format::Flamegraph => flamegraph(&report, time),
            Format::Pprof => gzipped(&report),
        }
    });
    let body = made.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    Ok(match format {
        Format::Flamegraph => HttpResponse::Ok().content_type("image/svg+xml").body(body),
        Format::Pprof => HttpResponse::Ok()
            .content_type("application/octet-stream")
            .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"cpu.pb.gz\""))
            .body(body),
    })
}

fn begin() -> Result<ProfilerGuard<'static>, String> {
    static PREPARED: Once = Once::new();
    // The unwinder reads its tables in the handler of the first signal, and allocates for it. That must not happen in a thread that
    // was interrupted inside the allocator, so the first signal is our own, here, while the timer still is a second away.
    PREPARED.call_once(|| {
        if let Ok(_first) = ProfilerGuard::new(1) {
            let _ = raise(Signal::SIGPROF); // fails for no signal that exists
        }
    });
    ProfilerGuard::new(PER_SECOND).map_err(|error| error.to_string())
}

fn flamegraph(report: &Report, time: Duration) -> Result<Vec<u8>, String> {
    let mut svg = Vec::new();
    report.flamegraph(&mut svg).map_err(|error| error.to_string())?;
    if svg.is_empty() {
        svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"600\" height=\"40\"><text x=\"10\" y=\"25\">\
             no sample in {} s: the agent used next to no CPU time</text></svg>",
            time.as_secs()
        )
        .into_bytes();
    }
    Ok(svg)
}

/// As pprof(1) and its kin read it.
fn gzipped(report: &Report) -> Result<Vec<u8>, String> {
    let profile = report.pprof().map_err(|error| error.to_string())?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&profile.encode_to_vec())
        .and_then(|()| gzip.finish())
        .map_err(|error| error.to_string())
}
