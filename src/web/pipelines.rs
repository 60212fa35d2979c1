//! `/api/v1/pipelines`: `{pipelines: […]}`, what came in and what became of it at each output.
use actix_web::{HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{AskPipelines, OutputView, PipelineView},
    web::{Problem, State},
};

#[derive(Serialize)]
struct Shown {
    pipelines: Vec<Pipeline>,
}
/// Counts are events, but for `bytes_in`.
#[derive(Serialize)]
struct Pipeline {
    name: String,
    input: String,
    filters: Vec<String>,
    events_in: u64,
    bytes_in: u64,
    filtered: u64,
    /// All was read.
    ended: bool,
    /// Why the input cannot be read at present.
    error: Option<String>,
    /// How the input reads at present, if an operator should know: it polls, and why. No trouble.
    note: Option<String>,
    outputs: Vec<Output>,
}
#[derive(Serialize)]
struct Output {
    name: String,
    plugin: String,
    when_full: &'static str,
    /// `closed`, `half-open`, `open`
    breaker: &'static str,
    delivered: u64,
    dropped: u64,
    dead: u64,
    waiting: u64,
    /// events_in - filtered - delivered - dropped - dead - waiting: zero at any quiet moment.
    difference: i64,
    /// Why the last write failed, while it has not succeeded since.
    error: Option<String>,
}
impl From<PipelineView> for Pipeline {
    fn from(view: PipelineView) -> Self {
        Self {
            name: view.name,
            input: view.input,
            filters: view.filters,
            events_in: view.events_in,
            bytes_in: view.bytes_in,
            filtered: view.filtered,
            ended: view.ended,
            error: view.error,
            note: view.note,
            outputs: view.outputs.into_iter().map(Output::from).collect(),
        }
    }
}
impl From<OutputView> for Output {
    fn from(view: OutputView) -> Self {
        Self {
            name: view.label,
            plugin: view.plugin,
            when_full: view.when_full,
            breaker: view.breaker,
            delivered: view.delivered,
            dropped: view.dropped,
            dead: view.dead,
            waiting: view.waiting,
            difference: view.difference,
            error: view.error,
        }
    }
}

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    let views = state.ask.put(&state.ask.pipelines, AskPipelines).await?;
    Ok(HttpResponse::Ok().json(Shown {
        pipelines: views.into_iter().map(Pipeline::from).collect(),
    }))
}
