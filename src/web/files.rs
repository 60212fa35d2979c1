//! `/api/v1/files`: `{files: […]}`, every file that a pipeline knows and how far it was read.
use actix_web::{HttpResponse, web::Data};
use serde::Serialize;

use crate::{
    messages::control::AskFiles,
    model::FileStatus,
    web::{Problem, State},
};

#[derive(Serialize)]
struct Shown {
    files: Vec<File>,
}
/// Sizes and offsets in bytes.
#[derive(Serialize)]
struct File {
    pipeline: String,
    path: String,
    /// `device:inode`, empty if never opened.
    identity: String,
    size: u64,
    read: u64,
    /// Settled by all outputs.
    acknowledged: u64,
    /// What is there and not yet settled.
    lag: u64,
    /// `tailing`, `idle`, `leaving`, `denied`, `skipped`
    state: &'static str,
    /// Why, in a sentence; empty for the ordinary state.
    reason: String,
    aliases: Vec<String>,
}
impl File {
    fn new(pipeline: String, status: FileStatus) -> Self {
        Self {
            pipeline,
            path: status.path,
            identity: status.identity,
            size: status.size,
            read: status.read,
            acknowledged: status.acknowledged,
            lag: status.size.saturating_sub(status.acknowledged),
            state: status.state.word(),
            reason: status.reason,
            aliases: status.aliases,
        }
    }
}

pub async fn show(state: Data<State>) -> Result<HttpResponse, Problem> {
    let by_pipeline = state.ask.put(&state.ask.files, AskFiles).await?;
    let files = by_pipeline
        .into_iter()
        .flat_map(|(pipeline, files)| files.into_iter().map(move |file| File::new(pipeline.clone(), file)))
        .collect();
    Ok(HttpResponse::Ok().json(Shown { files }))
}
