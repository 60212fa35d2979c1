//! `/api/v1/why?what=PATH`: why a file is not read, in one sentence.
use actix_web::{
    HttpResponse,
    web::{Data, Query},
};
use serde::{Deserialize, Serialize};

use crate::{
    messages::control::AskWhy,
    web::{Problem, State},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// A file's path.
    what: String,
}
#[derive(Serialize)]
struct Shown {
    what: String,
    why: String,
}

pub async fn show(state: Data<State>, Query(asked): Query<Asked>) -> Result<HttpResponse, Problem> {
    let why = state.ask.put(&state.ask.why, AskWhy(asked.what.clone())).await?;
    Ok(HttpResponse::Ok().json(Shown { what: asked.what, why }))
}
