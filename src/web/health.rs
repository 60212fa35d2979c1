//! `/health`: 200 if ok or degraded, 503 if failing, always `{state, reasons}`.
use actix_web::{HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{AskHealth, HealthState},
    web::State,
};

#[derive(Serialize)]
struct Shown {
    /// `ok`, `degraded`, `failing`
    state: &'static str,
    reasons: Vec<String>,
}

pub async fn show(state: Data<State>) -> HttpResponse {
    let (word, reasons) = match state.ask.put(&state.ask.health, AskHealth).await {
        Ok(health) => {
            let word = match health.state {
                HealthState::Ok => "ok",
                HealthState::Degraded => "degraded",
                HealthState::Failing => "failing",
            };
            (word, health.reasons)
        }
        // An agent that cannot say how it is, is not well: the same shape for who watches.
        Err(problem) => ("failing", vec![problem.detail().to_owned()]),
    };
    let mut response = match word {
        "failing" => HttpResponse::ServiceUnavailable(),
        _ => HttpResponse::Ok(),
    };
    response.json(Shown { state: word, reasons })
}
