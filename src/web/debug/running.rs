//! `cmd=go`, `cmd=thread`: what runs, as tables for people.
use std::fmt::Write;

use actix_web::{HttpResponse, http::StatusCode};

use super::text;
use crate::{
    messages::control::{ActorView, AskActors},
    os,
    web::{Problem, State},
};

pub async fn actors(state: &State) -> Result<HttpResponse, Problem> {
    let actors = state.ask.put(&state.ask.actors, AskActors).await?;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    Ok(text(format!(
        "{}\n{tasks} tasks on the thread that answers\n",
        table_of(&actors)
    )))
}

fn table_of(actors: &[ActorView]) -> String {
    let mut out = format!(
        "{:<40} {:<10} {:>8} {:>19} {:>9}  last error\n",
        "actor", "state", "restarts", "fill", "waited s"
    );
    for actor in actors {
        let restarts = actor.restarts.iter().map(|(_, n)| n).sum::<u64>();
        let fill = actor
            .fill
            .map_or("-".to_owned(), |(taken, room)| format!("{taken}/{room}"));
        let error = actor.last_error.as_deref().unwrap_or("-");
        let _ = writeln!(
            out,
            "{:<40} {:<10} {restarts:>8} {fill:>19} {:>9.3}  {error}",
            actor.name,
            actor.state,
            actor.waited.as_secs_f64()
        );
    }
    out
}

pub fn threads() -> Result<HttpResponse, Problem> {
    let threads = os::threads().map_err(|error| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("could not list the threads: {error}"),
        )
    })?;
    let mut out = format!(
        "{:>8} {:<15} state {:>10} {:>10}\n",
        "tid", "name", "user s", "system s"
    );
    for thread in threads {
        let _ = writeln!(
            out,
            "{:>8} {:<15} {:<5} {:>10.2} {:>10.2}",
            thread.id, thread.name, thread.state, thread.user_seconds, thread.system_seconds
        );
    }
    Ok(text(out))
}
