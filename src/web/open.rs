//! Pages that say nothing worth hiding: `/ping` (the process answers), `/version`, and `/`, where the dashboard will stand.
use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
};
use serde::Serialize;

use crate::{VERSION, web::Problem};

pub async fn ping() -> &'static str {
    "OK"
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}
/// Text; JSON to who asks for it by `Accept: application/json`.
pub async fn version(req: HttpRequest) -> HttpResponse {
    let accept = req.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("application/json")) {
        HttpResponse::Ok().json(Version { version: VERSION })
    } else {
        HttpResponse::Ok()
            .content_type("text/plain; charset=utf-8")
            .body(VERSION)
    }
}

pub async fn dashboard() -> Result<HttpResponse, Problem> {
    Err(Problem::new(StatusCode::NOT_FOUND, "dashboard: not built yet"))
}
