//! `/api/v1/actors`: `{actors: […]}`, everything that lives in the agent; the names are paths, so the list is a tree.
use std::collections::BTreeMap;

use actix_web::{HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::{ActorView, AskActors},
    web::{Problem, State},
};

#[derive(Serialize)]
struct Shown {
    actors: Vec<Actor>,
}
#[derive(Serialize)]
struct Actor {
    name: String,
    /// `running`, `restarting`, `drained`, `failing`
    state: &'static str,
    /// How often, by cause.
    restarts: BTreeMap<String, u64>,
    last_error: Option<String>,
    /// Null if no data enters it.
    fill: Option<Fill>,
    /// How long others waited for room here.
    waited_seconds: f64,
}
/// In events.
#[derive(Serialize)]
struct Fill {
    taken: u64,
    room: u64,
}
impl From<ActorView> for Actor {
    fn from(view: ActorView) -> Self {
        Self {
            name: view.name,
            state: view.state,
            restarts: view.restarts.into_iter().collect(),
            last_error: view.last_error,
            fill: view.fill.map(|(taken, room)| Fill { taken, room }),
            waited_seconds: view.waited.as_secs_f64(),
        }
    }
}

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    let views = state.ask.put(&state.ask.actors, AskActors).await?;
    Ok(HttpResponse::Ok().json(Shown {
        actors: views.into_iter().map(Actor::from).collect(),
    }))
}
