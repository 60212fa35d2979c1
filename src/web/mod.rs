//! The agent's pages (SPEC §6): routes, and what all of them share. One file a resource; each owns the JSON that it shows, so a
//! change inside the agent changes no answer by accident.
//!
//! Pages know the agent through `Ask` only. They read; what changes something is a message to Root.
use std::sync::{Arc, atomic::AtomicBool};

use actix_web::{
    FromRequest, Handler, HttpResponse, Resource, Responder, Route, guard as only,
    http::{StatusCode, header},
    middleware::{DefaultHeaders, from_fn},
    web::{self, Data, QueryConfig, ServiceConfig},
};

use crate::{clock::SharedClock, metrics::SharedMetrics};

mod actors;
mod agent;
mod ask;
mod config;
mod debug;
mod files;
pub mod guard;
mod health;
mod jobs;
mod log_level;
mod logs;
mod metrics;
mod open;
mod orders;
mod pipelines;
mod problem;
mod reload;
mod runs;
mod session;
pub mod tls;
mod why;

pub use ask::Ask;
pub use problem::Problem;

/// What pages work with: one for all listeners and all their lives, so a session outlives a fall.
pub struct State {
    pub ask: Ask,
    /// Empty: nobody has it.
    pub token: String,
    /// The token may be shown over an unencrypted connection from another host.
    pub insecure_remote: AtomicBool,
    pub sessions: session::Sessions,
    pub log: slog::Logger,
    pub metrics: SharedMetrics,
    pub clock: SharedClock,
}
pub type SharedState = Arc<State>;

/// Everything that is served, on each listener alike; `guard` tells them apart.
pub fn routes(state: SharedState) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        app.app_data(Data::from(state))
            .app_data(QueryConfig::default().error_handler(|error, req| {
                Problem::bad_request(format!("could not read the query `{}`: {error}", req.query_string())).into()
            }))
            .service(
                web::scope("")
                    .wrap(from_fn(guard::bounds))
                    .wrap(
                        DefaultHeaders::new()
                            .add((header::CACHE_CONTROL, "no-store"))
                            .add((header::X_CONTENT_TYPE_OPTIONS, "nosniff")),
                    )
                    .service(page("/ping", open::ping))
                    .service(page("/version", open::version))
                    .service(page("/health", health::show))
                    .service(page("/metrics", metrics::show))
                    .service(page("/", open::dashboard))
                    .service(
                        web::scope("/debug")
                            .wrap(from_fn(guard::members_only))
                            .service(at("", "GET", [web::get().to(debug::run)]))
                            .default_service(web::to(not_found)),
                    )
                    .service(
                        web::scope("/api/v1")
                            .wrap(from_fn(guard::members_only))
                            .service(page("/agent", agent::show))
                            .service(page("/actors", actors::show))
                            .service(page("/pipelines", pipelines::show))
                            .service(page("/files", files::show))
                            .service(page("/jobs", jobs::list))
                            .service(at(
                                "/jobs/{task_id}",
                                "GET, HEAD, PUT, DELETE",
                                [
                                    read(jobs::show),
                                    web::put().to(jobs::put),
                                    web::delete().to(jobs::remove),
                                ],
                            ))
                            .service(at("/jobs/{task_id}/{action}", "POST", [web::post().to(jobs::order)]))
                            .service(page("/runs", runs::list))
                            .service(page("/runs/{run_id}/output", runs::output))
                            .service(page("/why", why::show))
                            .service(page("/health", health::show))
                            .service(page("/config", config::show))
                            .service(page("/logs", logs::show))
                            .service(at("/stop", "POST", [web::post().to(orders::stop)]))
                            .service(at("/reload", "POST", [web::post().to(reload::run)]))
                            .service(at("/reopen", "POST", [web::post().to(orders::reopen)]))
                            .service(at(
                                "/log-level",
                                "GET, HEAD, PUT",
                                [read(log_level::show), web::put().to(log_level::set)],
                            ))
                            .service(at(
                                "/session",
                                "POST, DELETE",
                                [web::post().to(session::begin), web::delete().to(session::end)],
                            ))
                            .default_service(web::to(not_found)),
                    )
                    .default_service(web::to(not_found)),
            );
    }
}

/// A page that is only read.
fn page<F, Args>(path: &str, show: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    at(path, "GET, HEAD", [read(show)])
}
fn read<F, Args>(show: F) -> Route
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::route().guard(only::Any(only::Get()).or(only::Head())).to(show)
}
/// Routes at one path; another method is answered with 405 and those that are `allowed`.
fn at<const N: usize>(path: &str, allowed: &'static str, routes: [Route; N]) -> Resource {
    routes
        .into_iter()
        .fold(web::resource(path), Resource::route)
        .default_service(web::to(move |req: actix_web::HttpRequest| async move {
            let detail = format!("{} is not possible here, accepted: {allowed}", req.method());
            Err::<HttpResponse, _>(Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).with(header::ALLOW, allowed))
        }))
}
async fn not_found(req: actix_web::HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no page {}", req.path()),
    ))
}
