//! `POST /api/v1/stop` and `/reopen`: what SIGTERM and SIGUSR1 do. 202: it was taken on, not that it is done.
use actix_web::{HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{AskReopen, AskStop},
    web::{Problem, State},
};

#[derive(Serialize)]
struct Accepted {
    accepted: &'static str,
}

pub async fn stop(state: Data<State>) -> Result<HttpResponse, Problem> {
    state.ask.put(&state.ask.stop, AskStop).await?;
    Ok(HttpResponse::Accepted().json(Accepted { accepted: "stop" }))
}

pub async fn reopen(state: Data<State>) -> Result<HttpResponse, Problem> {
    state.ask.put(&state.ask.reopen, AskReopen).await?;
    Ok(HttpResponse::Accepted().json(Accepted { accepted: "reopen" }))
}
