//! `/api/v1/runs?task_id=&most=`: `{runs: […]}`, newest first; `/runs/{run_id}/output?from=`: what a run wrote, from that byte on:
//! `{from, gap, ended, text}`, or `base64` where it is no UTF-8.
use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{Data, Path, Query},
};
use base64::Engine as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    messages::jobs::{AskOutput, AskRuns},
    model::{RunId, RunRecord, RunState, job::Cause},
    web::{Problem, State},
};

#[derive(Serialize)]
struct List {
    runs: Vec<Run>,
}
#[derive(Serialize)]
pub struct Run {
    run_id: String,
    task_id: String,
    job: String,
    /// `queued`, `running`, `succeeded`, `failed`, `timed_out`, `killed`, `skipped`, `missed`, `lost`
    state: &'static str,
    /// With what belongs to it: `failed(3)`.
    shown: String,
    /// Of one that failed: its exit code; null: it was not started.
    code: Option<i32>,
    /// Planned instants without a run.
    missed: Option<u64>,
    error: String,
    /// `planned`, `late`, `catch_up`, `once`, `asked`
    cause: String,
    /// Who asked.
    by: Option<String>,
    planned: String,
    started: Option<String>,
    ended: Option<String>,
    attempt: u32,
    pid: Option<i32>,
    /// `cgroup` or `sweep`: how all that it started is found.
    tree: Option<&'static str>,
    output_bytes: u64,
    output_gap: u64,
    unkillable: Vec<i32>,
}
impl From<RunRecord> for Run {
    fn from(record: RunRecord) -> Self {
        Self {
            run_id: record.run_id.to_string(),
            task_id: record.job.task_id.to_string(),
            job: record.job.path(),
            state: record.state.word(),
            shown: record.state.to_string(),
            code: match &record.state {
                RunState::Failed(code) => *code,
                _ => None,
            },
            missed: match &record.state {
                RunState::Missed(n) => Some(*n),
                _ => None,
            },
            error: record.error,
            cause: record.cause.word().to_owned(),
            by: match record.cause {
                Cause::Asked(by) => Some(by),
                _ => None,
            },
            planned: shown(record.planned),
            started: record.started.map(shown),
            ended: record.ended.map(shown),
            attempt: record.attempt,
            pid: record.pid,
            tree: record.tree.map(|tree| tree.word()),
            output_bytes: record.output_bytes,
            output_gap: record.output_gap,
            unkillable: record.unkillable,
        }
    }
}

/// To the millisecond.
fn shown(at: Timestamp) -> String {
    Timestamp::from_millisecond(at.as_millisecond())
        .unwrap_or(at)
        .to_string()
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    task_id: Option<String>,
    most: Option<usize>,
}
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From_ {
    #[serde(default)]
    from: u64,
}
#[derive(Serialize)]
struct Output {
    from: u64,
    /// Bytes before `from` that were asked for and are not kept.
    gap: u64,
    /// Nothing follows.
    ended: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// The most that one answer holds; a job has no more than a tenth.
const MOST: usize = 1000;

pub async fn list(state: Data<State>, Query(which): Query<Which>) -> Result<HttpResponse, Problem> {
    let most = which.most.unwrap_or(100);
    if !(1..=MOST).contains(&most) {
        return Err(Problem::bad_request(format!(
            "most: found {most}, accepted: 1 to {MOST}"
        )));
    }
    let ask = AskRuns {
        task_id: which.task_id,
        most,
    };
    let runs = state.ask.put(&state.ask.runs, ask).await?;
    let runs = runs.into_iter().map(Run::from).collect();
    Ok(HttpResponse::Ok().json(List { runs }))
}
pub async fn output(
    state: Data<State>,
    run_id: Path<String>,
    Query(from): Query<From_>,
) -> Result<HttpResponse, Problem> {
    let run_id = run_id.parse::<RunId>().map_err(Problem::bad_request)?;
    let ask = AskOutput {
        run_id,
        from: from.from,
    };
    let Some(view) = state.ask.put(&state.ask.output, ask).await? else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no run {run_id}")));
    };
    let (text, base64) = match String::from_utf8(view.bytes) {
        Ok(text) => (Some(text), None),
        Err(other) => (
            None,
            Some(base64::engine::general_purpose::STANDARD.encode(other.as_bytes())),
        ),
    };
    Ok(HttpResponse::Ok().json(Output {
        from: view.from,
        gap: view.gap,
        ended: view.ended,
        text,
        base64,
    }))
}
