//! `/api/v1/agent`: who this agent is and how it was started.
use actix_web::{HttpResponse, web::Data};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    messages::control::{AgentView, AskAgent, ReloadView},
    web::{Problem, State},
};

#[derive(Serialize)]
struct Shown {
    agent_id: String,
    group: String,
    hostname: String,
    ip: String,
    instance: String,
    version: &'static str,
    pid: u32,
    /// RFC 3339
    started: Timestamp,
    data_dir: String,
    /// The bound address with its true port; null: off.
    http: Option<String>,
    stopping: bool,
    log_level: String,
    /// Null: none yet.
    last_reload: Option<LastReload>,
}
#[derive(Serialize)]
struct LastReload {
    at: Timestamp,
    /// Why it was refused, and nothing touched; null: it was made.
    error: Option<String>,
}
impl From<AgentView> for Shown {
    fn from(view: AgentView) -> Self {
        Self {
            agent_id: view.host.agent_id,
            group: view.host.group,
            hostname: view.host.hostname,
            ip: view.host.ip.to_string(),
            instance: view.host.instance,
            version: view.version,
            pid: view.pid,
            started: view.started,
            data_dir: view.data_dir,
            http: view.http,
            stopping: view.stopping,
            log_level: view.log_level,
            last_reload: view
                .last_reload
                .map(|ReloadView { at, error }| LastReload { at, error }),
        }
    }
}

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    let view = state.ask.put(&state.ask.agent, AskAgent).await?;
    Ok(HttpResponse::Ok().json(Shown::from(view)))
}
