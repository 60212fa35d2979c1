//! `POST /api/v1/reload`: reads the settings again and changes by difference what runs. The answer is the difference; 422: the settings
//! are refused, with all that is wrong; 409: it needs a restart, or is not possible now; 500: something could not be made or bound.
use std::time::Duration;

use actix_web::{HttpResponse, http::StatusCode, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{AskReload, KeyChange, ReloadRefused},
    web::{Problem, State},
};

/// Root has 10 s for what is made and 5 s for what ends; a reload before this one may be under way.
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Serialize)]
struct Shown {
    added: Vec<Value>,
    removed: Vec<Value>,
    changed: Vec<Change>,
    /// What goes on by itself, because something hangs.
    pending: Vec<String>,
}
#[derive(Serialize)]
struct Value {
    key: String,
    /// Secrets are masked.
    value: serde_json::Value,
}
#[derive(Serialize)]
struct Change {
    key: String,
    from: serde_json::Value,
    to: serde_json::Value,
}

pub async fn run(state: Data<State>) -> Result<HttpResponse, Problem> {
    let asked = state.ask.put_within(LIMIT, &state.ask.reload, AskReload).await?;
    let reloaded = asked.map_err(|refused| Problem::new(status(&refused), refused.to_string()))?;
    let added = reloaded.added.into_iter();
    let removed = reloaded.removed.into_iter();
    let changed = reloaded.changed.into_iter();
    Ok(HttpResponse::Ok().json(Shown {
        added: added
            .map(|KeyChange { key, to, .. }| Value { key, value: to })
            .collect(),
        removed: removed
            .map(|KeyChange { key, from, .. }| Value { key, value: from })
            .collect(),
        changed: changed
            .map(|KeyChange { key, from, to }| Change { key, from, to })
            .collect(),
        pending: reloaded.pending,
    }))
}
fn status(refused: &ReloadRefused) -> StatusCode {
    match refused {
        ReloadRefused::Settings { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadRefused::NeedsRestart(_) | ReloadRefused::Busy | ReloadRefused::Stopping => StatusCode::CONFLICT,
        ReloadRefused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
