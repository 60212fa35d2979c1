//! `/metrics`: the registry in the Prometheus text format 0.0.4.
use actix_web::{HttpResponse, web::Data};

use crate::{
    messages::control::AskMetrics,
    web::{Problem, State},
};

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    state.ask.put(&state.ask.metrics, AskMetrics).await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4")
        .body(state.metrics.text()))
}
