//! `/api/v1/jobs`: `{jobs: […]}`; `/jobs/{task_id}`: one with its value and its next instants. PUT takes a job's value as the body and
//! writes it (`?check=true`: only says what would become of it), DELETE removes it, POST `…/run`, `/kill`, `/pause`, `/resume` order.
//! `?group=NAME` means the group's job.
use std::time::Duration;

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{Data, Path, Payload, Query},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Problem, State, log_level::read_body, runs};
use crate::{
    messages::jobs::{
        Action, AskJob, AskJobs, CheckJob, JobCommand, JobDetail, JobView, WriteJob, WriteRefused, Written,
    },
    model::{RunId, job::Scope},
};

/// How often, and after which wait, it is looked whether a written job is known.
const KNOWN_LOOKS: u32 = 50;
/// How often the store is asked to write, and the wait between.
const WRITE_TRIES: u32 = 10;
const WRITE_WAIT: Duration = Duration::from_millis(100);
const KNOWN_WAIT: Duration = Duration::from_millis(20);

#[derive(Serialize)]
struct List {
    jobs: Vec<Job>,
}
#[derive(Serialize)]
struct Job {
    task_id: String,
    /// Null: this host's own.
    group: Option<String>,
    key: String,
    cronid: u64,
    mod_revision: i64,
    /// `ok`, `paused`, `failing`, `invalid`, `shadowed`
    state: &'static str,
    /// Why it is invalid or failing; else empty.
    error: String,
    express: String,
    cmd: String,
    executor: String,
    title: String,
    next: Option<String>,
    last: Option<runs::Run>,
    /// Present runs, waiting ones too.
    runs: Vec<String>,
}
impl From<JobView> for Job {
    fn from(view: JobView) -> Self {
        Self {
            task_id: view.key.task_id.to_string(),
            key: view.key.path(),
            group: match view.key.scope {
                Scope::Host(_) => None,
                Scope::Group(group) => Some(group.to_string()),
            },
            cronid: view.cronid,
            mod_revision: view.mod_revision,
            state: view.state.word(),
            error: view.error,
            express: view.express,
            cmd: view.cmd,
            executor: view.executor,
            title: view.title,
            next: view.next.map(|at| at.to_string()),
            last: view.last.map(runs::Run::from),
            runs: view.runs.iter().map(ToString::to_string).collect(),
        }
    }
}
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    job: Job,
    /// As it stands in the store; text if it is no JSON.
    value: Value,
    next_five: Vec<String>,
}
impl From<JobDetail> for Detail {
    fn from(detail: JobDetail) -> Self {
        let text = || Value::String(String::from_utf8_lossy(&detail.value).into_owned());
        Self {
            job: detail.view.into(),
            value: serde_json::from_slice(&detail.value).unwrap_or_else(|_| text()),
            next_five: detail.next.iter().map(ToString::to_string).collect(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    group: Option<String>,
}
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    group: Option<String>,
    #[serde(default)]
    check: bool,
}
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    group: Option<String>,
    /// Kill: this run only.
    run_id: Option<String>,
}
#[derive(Serialize)]
struct Done {
    key: Option<String>,
    mod_revision: Option<i64>,
    existed: bool,
    /// How it stands; null: its runner has not heard of it yet.
    state: Option<&'static str>,
    error: Option<String>,
    /// Of what was put.
    next: Vec<String>,
}
#[derive(Serialize)]
struct Answer {
    said: String,
    run_ids: Vec<String>,
}

pub async fn list(state: Data<State>) -> Result<HttpResponse, Problem> {
    let jobs = state.ask.put(&state.ask.jobs, AskJobs).await?;
    let jobs = jobs.into_iter().map(Job::from).collect();
    Ok(HttpResponse::Ok().json(List { jobs }))
}
pub async fn show(
    state: Data<State>,
    task_id: Path<String>,
    Query(which): Query<Which>,
) -> Result<HttpResponse, Problem> {
    let ask = AskJob {
        group: which.group,
        task_id: task_id.into_inner(),
    };
    let unknown = unknown(&ask.task_id);
    let found = state.ask.put(&state.ask.job, ask).await?;
    Ok(HttpResponse::Ok().json(Detail::from(*found.ok_or(unknown)?)))
}
pub async fn put(
    state: Data<State>,
    task_id: Path<String>,
    Query(put): Query<Put>,
    body: Payload,
) -> Result<HttpResponse, Problem> {
    let value = read_body(body).await?;
    let task_id = task_id.into_inner();
    let check = CheckJob {
        group: put.group.clone(),
        task_id: task_id.clone(),
        value: value.clone(),
    };
    let checked = state.ask.put(&state.ask.check_job, check).await?;
    let next = checked.map_err(|invalid| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, invalid.to_string()))?;
    let mut done = Done {
        key: None,
        mod_revision: None,
        existed: false,
        state: None,
        error: None,
        next: next.iter().map(ToString::to_string).collect(),
    };
    if !put.check {
        let write = WriteJob {
            group: put.group,
            task_id,
            value: Some(value),
        };
        let written = write_soon(&state, write).await?.map_err(refused)?;
        done.key = Some(written.key.path());
        done.mod_revision = Some(written.mod_revision);
        done.existed = written.existed;
        (done.state, done.error) = known(&state, &written).await?.unzip();
    }
    Ok(HttpResponse::Ok().json(done))
}
pub async fn remove(
    state: Data<State>,
    task_id: Path<String>,
    Query(which): Query<Which>,
) -> Result<HttpResponse, Problem> {
    let write = WriteJob {
        group: which.group,
        task_id: task_id.into_inner(),
        value: None,
    };
    let unknown = unknown(&write.task_id);
    let written = write_soon(&state, write).await?;
    let written = written.map_err(|error| match error {
        WriteRefused::Unknown => unknown,
        other => refused(other),
    })?;
    Ok(HttpResponse::Ok().json(Done {
        key: Some(written.key.path()),
        mod_revision: Some(written.mod_revision),
        existed: true,
        state: None,
        error: None,
        next: vec![],
    }))
}
pub async fn order(
    state: Data<State>,
    path: Path<(String, String)>,
    Query(order): Query<Order>,
) -> Result<HttpResponse, Problem> {
    let (task_id, action) = path.into_inner();
    let Some((_, action)) = Action::WORDS.iter().find(|(word, _)| *word == action) else {
        let words = Action::WORDS
            .iter()
            .map(|(word, _)| *word)
            .collect::<Vec<_>>()
            .join(", ");
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("found {action:?}, accepted: {words}"),
        ));
    };
    let run_id = order
        .run_id
        .map(|id| id.parse::<RunId>())
        .transpose()
        .map_err(Problem::bad_request)?;
    let command = JobCommand {
        action: *action,
        task_id,
        group: order.group,
        id: String::new(),
        by: "http".into(),
        run_id,
    };
    let answer = state.ask.put(&state.ask.command, command).await?;
    match answer.done {
        true => Ok(HttpResponse::Ok().json(Answer {
            said: answer.said,
            run_ids: answer.run_ids.iter().map(ToString::to_string).collect(),
        })),
        false => Err(Problem::new(StatusCode::CONFLICT, answer.said)),
    }
}

/// A store that is just being opened, or comes back, is asked again: the same value written twice is the same.
async fn write_soon(state: &State, write: WriteJob) -> Result<Result<Written, WriteRefused>, Problem> {
    let mut tries = 1;
    loop {
        let written = state.ask.put(&state.ask.write_job, write.clone()).await?;
        if tries == WRITE_TRIES || !matches!(written, Err(WriteRefused::Store(_))) {
            return Ok(written);
        }
        tries += 1;
        tokio::time::sleep(WRITE_WAIT).await;
    }
}
/// Until the runner has what was written: whoever put a job can order it at once. For a while only: the store's watch is not ours.
async fn known(state: &State, written: &Written) -> Result<Option<(&'static str, String)>, Problem> {
    for _ in 0..KNOWN_LOOKS {
        let group = match &written.key.scope {
            Scope::Host(_) => None,
            Scope::Group(group) => Some(group.to_string()),
        };
        let ask = AskJob {
            group,
            task_id: written.key.task_id.to_string(),
        };
        let found = state.ask.put(&state.ask.job, ask).await?;
        if let Some(job) = found.filter(|job| job.view.mod_revision == written.mod_revision) {
            return Ok(Some((job.view.state.word(), job.view.error)));
        }
        tokio::time::sleep(KNOWN_WAIT).await;
    }
    Ok(None)
}
fn unknown(task_id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no job `{task_id}`"))
}
fn refused(refused: WriteRefused) -> Problem {
    match refused {
        WriteRefused::Unknown => Problem::new(StatusCode::NOT_FOUND, "there is no such job"),
        WriteRefused::Store(why) => Problem::unavailable(format!("the store of jobs: {why}")),
    }
}
