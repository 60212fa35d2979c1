//! `POST /api/v1/stop` and `/reopen`: what SIGTERM and SIGUSR1 do. 202: it was taken on, not that it is done.
use actix_web::{HttpRequest, HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{AskReopen, AskStop},
    web::{Problem, State},
};

#[derive(Serialize)]
struct Accepted {
    accepted: &'static str,
}

/// A job's run that asks for it says so.
const BY_RUN: &str = "x-agent-run";

pub async fn stop(state: Data<State>, req: HttpRequest) -> Result<HttpResponse, Problem> {
    let by_run = req.headers().get(BY_RUN).and_then(|id| id.to_str().ok()?.parse().ok());
    state.ask.put(&state.ask.stop, AskStop { by_run }).await?;
    Ok(HttpResponse::Accepted().json(Accepted { accepted: "stop" }))
}

pub async fn reopen(state: Data<State>) -> Result<HttpResponse, Problem> {
    state.ask.put(&state.ask.reopen, AskReopen).await?;
    Ok(HttpResponse::Accepted().json(Accepted { accepted: "reopen" }))
}
