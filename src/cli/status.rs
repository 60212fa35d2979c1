//! `agent status`: is it running, and how does it do. Exit code 0 if it runs, 3 if not.
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Done, Failed, NOT_RUNNING,
    args::Ask,
    client::{self, AskError},
    print,
    show::{self, text},
};
use crate::{
    agent, clock,
    settings::{self, Whereabouts},
};

pub fn run(ask: &Ask) -> Done {
    let at = settings::locate(&ask.place, std::env::vars_os())?;
    let dir = &at.data_dir;
    let running = agent::running(dir).map_err(|e| Failed::new(format!("could not look at {}: {e}", dir.display())))?;
    let Some(holder) = running else {
        print(&if ask.json {
            show::json(&gone_json(&at))
        } else {
            gone(&at)
        });
        return Ok(NOT_RUNNING);
    };
    let answers = ["agent", "health", "pipelines"].map(|page| client::get(dir, &format!("/api/v1/{page}")));
    let [Ok(agent), Ok(health), Ok(pipelines)] = answers else {
        let why = answers.into_iter().find_map(Result::err);
        // It ended while we asked.
        if let Some(AskError::NotRunning(_)) = why {
            print(&if ask.json {
                show::json(&gone_json(&at))
            } else {
                gone(&at)
            });
            return Ok(NOT_RUNNING);
        }
        let why = why.map(|e| e.to_string()).unwrap_or_default();
        print(&match ask.json {
            true => show::json(&json!({ "running": true, "pid": holder.pid, "error": why })),
            false => format!("running    pid {}\nno answer  {why}", holder.pid),
        });
        return Ok(0);
    };
    print(&match ask.json {
        true => show::json(&json!({
            "running": true, "pid": holder.pid, "agent": agent, "health": health, "pipelines": pipelines["pipelines"],
        })),
        false => page(&agent, &health, &pipelines, clock::system().wall()),
    });
    Ok(0)
}

fn gone(at: &Whereabouts) -> String {
    let mut out = format!("not running  {}\n", at.data_dir.display());
    // Removed at every orderly end.
    if at.pid_file.exists() {
        out += "last end     without a word: killed, or the machine went down\n";
    } else if let Some(last) = agent::last_exit(&at.data_dir) {
        out += &format!("last end     {}  code {}: {}\n", last.ended, last.code, last.why);
    }
    out
}
fn gone_json(at: &Whereabouts) -> Value {
    let last = agent::last_exit(&at.data_dir);
    json!({ "running": false, "data_dir": at.data_dir, "last_exit": last, "killed": at.pid_file.exists() })
}

/// The answers of `/agent`, `/health` and `/pipelines`, for people.
fn page(agent: &Value, health: &Value, pipelines: &Value, now: Timestamp) -> String {
    let started = agent["started"]
        .as_str()
        .and_then(|text| text.parse::<Timestamp>().ok());
    let age = started.and_then(|t| Duration::try_from(now.duration_since(t)).ok());
    let started = started.map_or("-".to_owned(), |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let state = if agent["stopping"] == true {
        "stopping"
    } else {
        "running"
    };
    let mut out = format!(
        "{state}   pid {}, since {started}{}\nversion   {}\nidentity  {} in {}, {} ({})\nhttp      {}\ndata dir  {}\nlog level {}\nhealth    {}\n",
        text(agent, "pid"),
        age.map(|age| format!(" ({})", show::span(age))).unwrap_or_default(),
        text(agent, "version"),
        text(agent, "agent_id"),
        text(agent, "group"),
        text(agent, "hostname"),
        text(agent, "ip"),
        agent["http"].as_str().unwrap_or("off"),
        text(agent, "data_dir"),
        text(agent, "log_level"),
        text(health, "state"),
    );
    let reload = &agent["last_reload"];
    if let Some(error) = reload["error"].as_str() {
        // The health's reasons follow after it.
        let at = text(reload, "at").parse::<Timestamp>();
        let at = at.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let error = error.replace('\n', "\n          ");
        let line = format!("reload    failed at {at}: {error}\n");
        out.insert_str(out.rfind("health").unwrap_or(out.len()), &line);
    }
    for reason in show::list(health, "reasons") {
        out += &format!("          {}\n", reason.as_str().unwrap_or_default());
    }
    let head = [
        "PIPELINE",
        "OUTPUT",
        "IN",
        "FILTERED",
        "DELIVERED",
        "DROPPED",
        "DEAD",
        "WAITING",
        "BREAKER",
        "ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for pipeline in show::list(pipelines, "pipelines") {
        if let Some(note) = pipeline["note"].as_str() {
            notes += &format!("note      {}: {note}\n", text(pipeline, "name"));
        }
        for output in show::list(pipeline, "outputs") {
            rows.push(vec![
                text(pipeline, "name"),
                text(output, "name"),
                text(pipeline, "events_in"),
                text(pipeline, "filtered"),
                text(output, "delivered"),
                text(output, "dropped"),
                text(output, "dead"),
                text(output, "waiting"),
                text(output, "breaker"),
                [pipeline, output]
                    .map(|of| of["error"].as_str().unwrap_or_default())
                    .join(" ")
                    .trim()
                    .to_owned(),
            ]);
        }
    }
    out += &notes;
    if rows.len() > 1 {
        out.push('\n');
        out += &show::table(&rows);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_who_how_and_what() {
        let agent = json!({
            "agent_id": "sky01", "group": "net01", "hostname": "web1", "ip": "10.1.2.3", "version": "v.1.1.0", "pid": 7,
            "started": "2026-11-23T10:00:00.123Z", "data_dir": "/var/lib/luffly", "http": null, "stopping": false, "log_level": "info",
        });
        let health = json!({ "state": "degraded", "reasons": ["output kafka is away"] });
        let pipelines = json!({ "pipelines": [{
            "name": "nginx", "events_in": 1200, "filtered": 2, "error": null, "note": "events are not told, polling",
            "outputs": [{ "name": "kafka", "delivered": 1000, "dropped": 0, "dead": 0, "waiting": 198, "breaker": "open", "error": "no route" }],
        }]});
        let page = page(&agent, &health, &pipelines, "2026-11-23T12:03:01Z".parse().unwrap());
        assert_eq!(
            page,
            "running   pid 7, since 2026-11-23T10:00:00Z (2h 3m)\n\
             version   v.1.1.0\n\
             identity  sky01 in net01, web1 (10.1.2.3)\n\
             http      off\n\
             data dir  /var/lib/luffly\n\
             log level info\n\
             health    degraded\n          output kafka is away\n\
             note      nginx: events are not told, polling\n\n\
             PIPELINE  OUTPUT    IN  FILTERED  DELIVERED  DROPPED  DEAD  WAITING  BREAKER  ERROR\n\
             nginx     kafka   1200         2       1000        0     0      198  open     no route\n"
        );
    }
}
