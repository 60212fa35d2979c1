//! `/api/v1/logs?n=100`: `{records: […]}`, the last log records, oldest first.
use actix_web::{
    HttpResponse,
    web::{Data, Query},
};
use serde::{Deserialize, Serialize};

use crate::{
    messages::control::AskLogs,
    web::{Problem, State},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// How many at most; the agent keeps only so many itself.
    #[serde(default = "some")]
    n: usize,
}
fn some() -> usize {
    100
}
#[derive(Serialize)]
struct Shown {
    records: Vec<String>,
}

pub async fn show(state: Data<State>, Query(asked): Query<Asked>) -> Result<HttpResponse, Problem> {
    let records = state.ask.put(&state.ask.logs, AskLogs(asked.n)).await?;
    Ok(HttpResponse::Ok().json(Shown { records }))
}
