//! `/api/v1/config`: the settings in effect, as one would write them, with secrets masked by who answers.
use actix_web::{HttpResponse, web::Data};

use crate::{
    messages::control::AskConfig,
    web::{Problem, State},
};

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(state.ask.put(&state.ask.config, AskConfig).await?))
}
