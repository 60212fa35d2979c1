//! `agent jobs …`: the jobs of this host, through the running agent; those of others through etcd (`away`); `next` and a dry `import`
//! need neither.
mod away;
mod import;
mod next;
mod sign;

use std::{
    collections::BTreeSet,
    io::{IsTerminal, Read, Write},
    path::PathBuf,
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use self::away::away;
use super::{
    Done, Failed,
    args::Ask,
    client, data_dir, print,
    show::{self, text},
};
use crate::model::JobKey;

#[derive(clap::Subcommand, Clone, Debug, PartialEq)]
pub enum Jobs {
    /// Every job: state, next and last run
    List(Of),
    /// One job: its value, its next five times
    Get {
        task_id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Write a job, checked; says its next five times
    Put {
        /// Its key; without, the task_id in the value
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        /// The job, as JSON
        value: Option<String>,
        /// The job is in this file; `-`: stdin
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only say what would become of it
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        with: sign::With,
        #[command(flatten)]
        of: Of,
    },
    /// Remove a job; a present run goes on
    Rm {
        task_id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Start it no more until `resume`; a present run goes on
    Pause {
        task_id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Start it again when it is due
    Resume {
        task_id: String,
        #[command(flatten)]
        of: Of,
    },
    /// Start it now, paused or not
    Run {
        task_id: String,
        /// Show its output, and answer with its end: 0 if it succeeded, else 1
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        with: sign::With,
        #[command(flatten)]
        of: Of,
    },
    /// End its present runs, or one of them
    Kill {
        task_id: String,
        /// This run only
        #[arg(long, value_name = "RUN")]
        run: Option<String>,
        #[command(flatten)]
        with: sign::With,
        #[command(flatten)]
        of: Of,
    },
    /// What became of its runs, or of all, newest first
    Runs {
        task_id: Option<String>,
        /// So many at most
        #[arg(short = 'n', long = "most", value_name = "N", default_value_t = 20)]
        most: usize,
        #[command(flatten)]
        ask: Ask,
    },
    /// What a run said: of this run, or of the last of that job
    Output {
        /// A run's id, or a task id
        what: String,
        /// Go on until it ends
        #[arg(short = 'f', long = "follow")]
        follow: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// When an expression is due: one instant a line. Needs no agent
    Next(next::Next),
    /// Make a pair of keys, for agents that take signed jobs only. Needs no agent
    Keygen(sign::Keygen),
    /// Sign a job or command, and print it. Needs no agent
    Sign(sign::Sign),
    /// Turn a crontab (stdin, or --file) into jobs: shows what it would do
    Import {
        /// Whose crontab it is: the jobs run as that user
        #[arg(long, value_name = "NAME")]
        user: String,
        /// Instead of stdin
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Do it
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        ask: Ask,
    },
}
/// Whose job is meant.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Of {
    /// Through etcd: of the host at this address. No agent is asked here
    #[arg(long, value_name = "IP")]
    node: Option<std::net::IpAddr>,
    /// The jobs of this group, not a host's own: through etcd, or of the agent here if the settings name none
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// With --node or --group: other etcd servers than those of the settings
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    etcd_endpoint: Vec<String>,
    #[command(flatten)]
    ask: Ask,
}

/// A file or stdin holds a job, or a crontab: not more than that.
const LARGEST: u64 = 1 << 20;

pub fn run(jobs: &Jobs) -> Done {
    match jobs {
        Jobs::List(of) => list(of),
        Jobs::Get { task_id, of } => get(task_id, of),
        Jobs::Put {
            id,
            value,
            file,
            check,
            with,
            of,
        } => put(id.as_deref(), value.as_deref(), file.as_ref(), *check, with, of),
        Jobs::Rm { task_id, of } => {
            if let Some(away) = away(of)? {
                return away.rm(task_id);
            }
            let answer = ask(of, Method::DELETE, &path(task_id, "", of, &[]), Bytes::new())?;
            said(of, &answer, &format!("job {task_id} removed"))
        }
        Jobs::Pause { task_id, of } => set_paused(task_id, true, of),
        Jobs::Resume { task_id, of } => set_paused(task_id, false, of),
        Jobs::Run {
            task_id,
            wait: false,
            with,
            of,
        } => order(task_id, "run", None, with, of),
        Jobs::Run {
            task_id,
            wait: true,
            with,
            of,
        } => {
            with.is_for_etcd(of)?;
            run_and_wait(task_id, of)
        }
        Jobs::Kill { task_id, run, with, of } => order(task_id, "kill", run.as_deref(), with, of),
        Jobs::Runs { task_id, most, ask } => runs(task_id.as_deref(), *most, ask),
        Jobs::Output { what, follow, ask } => output(what, *follow, ask),
        Jobs::Next(next) => next::run(next),
        Jobs::Keygen(asked) => sign::keygen(asked),
        Jobs::Sign(asked) => sign::sign(asked, read),
        Jobs::Import { user, file, yes, ask } => import::run(user, &read(file.as_ref())?, *yes, ask),
    }
}

// ---- asking
fn path(task_id: &str, action: &str, of: &Of, query: &[(&str, &str)]) -> String {
    let mut path = format!("/api/v1/jobs/{}{action}", client::quoted(task_id).replace('/', "%2F"));
    let group = of.group.as_deref().map(|group| ("group", group));
    for (n, (name, value)) in group.iter().chain(query).enumerate() {
        path += if n == 0 { "?" } else { "&" };
        path += &format!("{name}={}", client::quoted(value));
    }
    path
}
fn ask(of: &Of, method: Method, path: &str, body: Bytes) -> Result<Value, Failed> {
    ask_agent(&of.ask, method, path, body)
}
fn ask_agent(ask: &Ask, method: Method, path: &str, body: Bytes) -> Result<Value, Failed> {
    let answer = client::send(&data_dir(&ask.place)?, method, path, body)?;
    serde_json::from_slice(&answer)
        .map_err(|error| Failed::new(format!("the agent's answer to {path} is not JSON: {error}")))
}
fn said(of: &Of, answer: &Value, line: &str) -> Done {
    print(&if of.ask.json {
        show::json(answer)
    } else {
        line.to_owned()
    });
    Ok(0)
}
fn set_paused(task_id: &str, paused: bool, of: &Of) -> Done {
    match away(of)? {
        Some(away) => away.pause(task_id, paused),
        None => order_here(task_id, if paused { "pause" } else { "resume" }, &[], of),
    }
}
fn order(task_id: &str, action: &'static str, run: Option<&str>, with: &sign::With, of: &Of) -> Done {
    with.is_for_etcd(of)?;
    match away(of)? {
        Some(away) => away.order(task_id, action, run, with),
        None => order_here(task_id, action, run.map(|run| ("run_id", run)).as_slice(), of),
    }
}
fn order_here(task_id: &str, action: &str, query: &[(&str, &str)], of: &Of) -> Done {
    let answer = ask(
        of,
        Method::POST,
        &path(task_id, &format!("/{action}"), of, query),
        Bytes::new(),
    )?;
    let mut line = format!("job {task_id}: {}", text(&answer, "said"));
    for run in show::list(&answer, "run_ids") {
        line += &format!("\nrun {}", run.as_str().unwrap_or_default());
    }
    said(of, &answer, &line)
}
fn read(file: Option<&PathBuf>) -> Result<String, Failed> {
    let mut all = String::new();
    let read = match file.filter(|file| file.as_os_str() != "-") {
        Some(file) => std::fs::File::open(file).and_then(|file| file.take(LARGEST).read_to_string(&mut all)),
        None if std::io::stdin().is_terminal() => {
            return Err(Failed::usage(
                "nothing was given, accepted: text on stdin, or --file FILE",
            ));
        }
        None => std::io::stdin().lock().take(LARGEST).read_to_string(&mut all),
    };
    let named = file.map_or("stdin".to_owned(), |file| file.display().to_string());
    read.map_err(|error| Failed::new(format!("could not read {named}: {error}")))?;
    Ok(all)
}

// ---- pages
fn list(of: &Of) -> Done {
    if let Some(away) = away(of)? {
        return away.list();
    }
    let ask = &of.ask;
    let mut answer = client::get(&data_dir(&ask.place)?, "/api/v1/jobs")?;
    if let (Some(group), Some(jobs)) = (&of.group, answer["jobs"].as_array_mut()) {
        jobs.retain(|job| job["group"] == group.as_str());
    }
    print(&if ask.json { show::json(&answer) } else { table(&answer) });
    Ok(0)
}
fn table(answer: &Value) -> String {
    let jobs = show::list(answer, "jobs");
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let head = [
        "TASK", "GROUP", "STATE", "EXPRESS", "NEXT", "LAST", "ENDED", "COMMAND", "WHY",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for job in jobs {
        let last = &job["last"];
        rows.push(vec![
            text(job, "task_id"),
            text(job, "group"),
            if job["runs"].as_array().is_some_and(|runs| !runs.is_empty()) {
                format!("{}, runs", text(job, "state"))
            } else {
                text(job, "state")
            },
            text(job, "express"),
            text(job, "next"),
            text(last, "shown"),
            text(last, "ended"),
            row_of(&text(job, "cmd")),
            job["error"].as_str().unwrap_or_default().to_owned(),
        ]);
    }
    show::table(&rows)
}
/// What of a command stands in a row.
fn row_of(command: &str) -> String {
    let first = command.lines().next().unwrap_or_default();
    let short = first.chars().take(40).collect::<String>();
    if short == command { short } else { format!("{short}…") }
}
fn get(task_id: &str, of: &Of) -> Done {
    if let Some(away) = away(of)? {
        return away.get(task_id);
    }
    let answer = ask(of, Method::GET, &path(task_id, "", of, &[]), Bytes::new())?;
    if of.ask.json {
        return said(of, &answer, "");
    }
    let mut page = format!("job      {}\nstate    {}", text(&answer, "key"), text(&answer, "state"));
    if let Some(error) = answer["error"].as_str().filter(|error| !error.is_empty()) {
        page += &format!("\nwhy      {error}");
    }
    if !answer["last"].is_null() {
        page += &format!(
            "\nlast     {} {} {}",
            text(&answer["last"], "shown"),
            text(&answer["last"], "planned"),
            text(&answer["last"], "error")
        );
    }
    for run in show::list(&answer, "runs") {
        page += &format!("\npresent  {}", run.as_str().unwrap_or_default());
    }
    for at in show::list(&answer, "next_five") {
        page += &format!("\nnext     {}", at.as_str().unwrap_or_default());
    }
    page += &format!("\n{}", show::json(&answer["value"]));
    print(&page);
    Ok(0)
}
/// Where the job stands in the store, and the fleet that signatures are for: as the agent says, or the settings where none is asked.
fn key_of(task_id: &str, of: &Of) -> Result<String, Failed> {
    Ok(match (&of.group, of.node) {
        (Some(group), _) => JobKey::group(group.as_str(), task_id).path(),
        (None, Some(ip)) => JobKey::host(ip.to_string(), task_id).path(),
        (None, None) => {
            let agent = client::get(&data_dir(&of.ask.place)?, "/api/v1/agent")?;
            JobKey::host(text(&agent, "ip"), task_id).path()
        }
    })
}
fn fleet_of(of: &Of) -> Result<String, Failed> {
    if let Some(away) = away(of)? {
        return away.signed_for();
    }
    let config = client::get(&data_dir(&of.ask.place)?, "/api/v1/config")?;
    let fleet = config["jobs"]["fleet"].as_str().map(str::to_owned);
    fleet.ok_or_else(|| Failed::usage("this agent has no [jobs] fleet, accepted: --fleet NAME"))
}
fn put(id: Option<&str>, value: Option<&str>, file: Option<&PathBuf>, check: bool, with: &sign::With, of: &Of) -> Done {
    let value = match (value, file) {
        (Some(_), Some(_)) => return Err(Failed::usage("a value and --file were given, accepted: one of them")),
        (Some(value), None) => value.to_owned(),
        (None, file) => read(file)?,
    };
    let value = value.trim();
    let inside = || {
        let value: Value = serde_json::from_str(value).ok()?;
        match value.get("task_id")? {
            Value::String(id) => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        }
    };
    let task_id = id.map(str::to_owned).or_else(inside);
    let task_id =
        task_id.ok_or_else(|| Failed::usage("the job has no task_id, accepted: one in the value, or --id ID"))?;
    let value = with.value(value, || key_of(&task_id, of), || fleet_of(of))?;
    let answer = put_one(&task_id, &value, check, of)?;
    let done = match (check, answer["existed"].as_bool()) {
        (true, _) => format!("job {task_id} would be accepted"),
        (false, Some(true)) => format!("job {task_id} changed"),
        (false, _) => format!("job {task_id} put"),
    };
    let done = match answer["state"].as_str() {
        None | Some("ok") => done,
        Some(state) => format!(
            "{done}, and is {state} {}",
            answer["error"].as_str().unwrap_or_default()
        ),
    };
    let next = show::list(&answer, "next")
        .iter()
        .map(|at| format!("\nnext {}", at.as_str().unwrap_or_default()));
    let note = answer["note"]
        .as_str()
        .map_or(String::new(), |note| format!("\n{note}"));
    said(of, &answer, &(done + &next.collect::<String>() + &note))
}
fn put_one(task_id: &str, value: &str, check: bool, of: &Of) -> Result<Value, Failed> {
    if let Some(away) = away(of)? {
        return away.put(task_id, value, check);
    }
    let query: &[(&str, &str)] = if check { &[("check", "true")] } else { &[] };
    ask(
        of,
        Method::PUT,
        &path(task_id, "", of, query),
        Bytes::copy_from_slice(value.as_bytes()),
    )
}

fn runs(task_id: Option<&str>, most: usize, ask: &Ask) -> Done {
    let answer = client::get(&data_dir(&ask.place)?, &runs_of(task_id, most))?;
    if ask.json {
        print(&show::json(&answer));
        return Ok(0);
    }
    let runs = show::list(&answer, "runs");
    if runs.is_empty() {
        print("no runs\n");
        return Ok(0);
    }
    let head = [
        "TASK", "RUN", "PLANNED", "CAUSE", "TRY", "STATE", "STARTED", "ENDED", "OUTPUT", "TREE", "WHY",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for run in runs {
        rows.push(vec![
            text(run, "task_id"),
            text(run, "run_id"),
            text(run, "planned"),
            text(run, "cause"),
            text(run, "attempt"),
            text(run, "shown"),
            text(run, "started"),
            text(run, "ended"),
            show::bytes(run["output_bytes"].as_u64().unwrap_or(0)),
            text(run, "tree"),
            run["error"].as_str().unwrap_or_default().to_owned(),
        ]);
    }
    print(&show::table(&rows));
    Ok(0)
}
fn runs_of(task_id: Option<&str>, most: usize) -> String {
    let of = task_id.map_or(String::new(), |id| format!("&task_id={}", client::quoted(id)));
    format!("/api/v1/runs?most={most}{of}")
}

// ---- output
fn output(what: &str, follow: bool, ask: &Ask) -> Done {
    let run_id = match what.parse::<crate::model::RunId>() {
        Ok(id) => id.to_string(),
        Err(_) => {
            let answer = client::get(&data_dir(&ask.place)?, &runs_of(Some(what), 100))?;
            // Of those that were skipped or missed nothing was said.
            let ran = show::list(&answer, "runs").iter().find(|run| !run["started"].is_null());
            let ran = ran.and_then(|run| run["run_id"].as_str());
            ran.ok_or_else(|| Failed::new(format!("`{what}` has no run that was started")))?
                .to_owned()
        }
    };
    follow_output(&run_id, follow, ask)?;
    Ok(0)
}
fn follow_output(run_id: &str, follow: bool, ask: &Ask) -> Result<(), Failed> {
    let data_dir = data_dir(&ask.place)?;
    let (mut from, mut whole) = (0, Vec::new());
    let mut out = std::io::stdout();
    loop {
        let part = client::get(&data_dir, &format!("/api/v1/runs/{run_id}/output?from={from}"))?;
        let bytes = match (part["text"].as_str(), part["base64"].as_str()) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(coded)) => base64::engine::general_purpose::STANDARD
                .decode(coded)
                .map_err(|error| Failed::new(format!("the agent's answer is no base64: {error}")))?,
            (None, None) => vec![],
        };
        let gap = part["gap"].as_u64().unwrap_or(0);
        if gap > 0 {
            let _ = writeln!(std::io::stderr(), "agent: {gap} bytes were not kept");
        }
        from = part["from"].as_u64().unwrap_or(from) + bytes.len() as u64;
        if ask.json {
            whole.extend(&bytes);
        } else if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
            return Ok(()); // whoever read it has left
        }
        let ended = part["ended"].as_bool().unwrap_or(true);
        if ended || (bytes.is_empty() && !follow) {
            break;
        }
        if bytes.is_empty() {
            pause(Duration::from_millis(200));
        }
    }
    if ask.json {
        print(&show::json(
            &serde_json::json!({ "run_id": run_id, "output": String::from_utf8_lossy(&whole) }),
        ));
    }
    Ok(())
}
#[expect(
    clippy::disallowed_methods,
    reason = "a command has one thread and nothing else to do"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
fn run_and_wait(task_id: &str, of: &Of) -> Done {
    if away(of)?.is_some() {
        return Err(Failed::usage(
            "`--wait` shows what the run says, which is not in etcd, accepted: on the host itself, or without --wait",
        ));
    }
    let answer = ask(of, Method::POST, &path(task_id, "/run", of, &[]), Bytes::new())?;
    let Some(run_id) = show::list(&answer, "run_ids").first().and_then(Value::as_str) else {
        return Err(Failed::new(text(&answer, "said")));
    };
    follow_output(run_id, true, &of.ask)?;
    let answer = client::get(&data_dir(&of.ask.place)?, &runs_of(Some(task_id), 100))?;
    let run = show::list(&answer, "runs").iter().find(|run| run["run_id"] == run_id);
    let Some(run) = run else {
        return Err(Failed::new(format!("run {run_id} is not known any more")));
    };
    match run["state"].as_str() {
        Some("succeeded") => Ok(0),
        _ => {
            let error = run["error"]
                .as_str()
                .filter(|error| !error.is_empty())
                .map_or(String::new(), |error| format!(": {error}"));
            Err(Failed::new(format!("run {run_id} {}{error}", text(run, "shown"))))
        }
    }
}

/// Ids that are there already.
fn known(ask: &Ask) -> Result<BTreeSet<String>, Failed> {
    let answer = client::get(&data_dir(&ask.place)?, "/api/v1/jobs")?;
    let ids = show::list(&answer, "jobs")
        .iter()
        .filter_map(|job| job["task_id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_a_job() {
        let page = table(&json!({ "jobs": [
            { "task_id": "17", "group": null, "state": "ok", "express": "* * * * *", "next": "2024-01-15T10:01:00Z", "runs": ["A"],
              "cmd": "date", "error": "", "last": { "shown": "failed(3)", "ended": "2024-01-15T10:00:00Z" } },
            { "task_id": "x", "group": "web", "state": "invalid", "express": "", "next": null, "runs": [], "cmd": "", "error": "why",
              "last": null },
        ]}));
        assert_eq!(
            page,
            "TASK  GROUP  STATE     EXPRESS    NEXT                  LAST       ENDED                 COMMAND  WHY\n\
             17    -      ok, runs  * * * * *  2024-01-15T10:01:00Z  failed(3)  2024-01-15T10:00:00Z  date\n\
             x     web    invalid   -          -                     -          -                     -        why\n"
        );
        assert_eq!(table(&json!({ "jobs": [] })), "no jobs\n");
    }
    #[test]
    fn what_is_asked() {
        let of = Of {
            group: Some("web farm".into()),
            ..Of::default()
        };
        assert_eq!(
            path("../x", "/run", &of, &[("run_id", "A")]),
            "/api/v1/jobs/..%2Fx/run?group=web%20farm&run_id=A"
        );
        assert_eq!(path("17", "", &Of::default(), &[]), "/api/v1/jobs/17");
    }
}
