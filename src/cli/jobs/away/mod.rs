//! `agent jobs … --node IP | --group G`: the same commands through etcd, for another host or for all of a group. What is written is what
//! a server would write; what is shown is the value beside the records of the agents that run it.
mod orders;
mod values;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use self::{
    orders::{Answered, Command, Order},
    values::{Found, Status},
};
use super::{
    super::{
        Done, FAILED, Failed,
        fleet::{self, Fleet},
        print,
        show::{self, text},
    },
    Of, row_of,
    sign::With,
};
use crate::{
    clock,
    model::JobKey,
    settings::Options,
    store::keys::{Health, Record},
};

/// Whose jobs are meant: of the host at that address, of that group, or (both) those of the group on that host.
pub struct Away {
    fleet: Fleet,
    node: Option<String>,
    group: Option<String>,
    json: bool,
}

/// None: the agent of this host is asked.
pub fn away(of: &Of) -> Result<Option<Away>, Failed> {
    if of.node.is_none() && of.group.is_none() {
        return match of.etcd_endpoint.is_empty() {
            true => Ok(None),
            false => Err(Failed::usage(
                "`--etcd-endpoint` was given, accepted: with --node or --group",
            )),
        };
    }
    if let Some(group) = of
        .group
        .as_ref()
        .filter(|group| group.is_empty() || group.contains('/'))
    {
        return Err(Failed::usage(format!(
            "--group: found {group:?}, accepted: a name without /"
        )));
    }
    let options = Options {
        place: of.ask.place.clone(),
        etcd_endpoint: of.etcd_endpoint.clone(),
        ..Options::default()
    };
    match Fleet::open(&options)? {
        Some(fleet) => Ok(Some(Away {
            fleet,
            node: of.node.map(|ip| ip.to_string()),
            group: of.group.clone(),
            json: of.ask.json,
        })),
        // A host on its own has the jobs of its group too.
        None if of.node.is_none() => Ok(None),
        None => Err(Failed::usage(
            "`--node` goes through etcd, and the settings name none, accepted: with etcd.endpoints, or --etcd-endpoint",
        )),
    }
}

impl Away {
    /// `[jobs] fleet` of the settings.
    pub fn signed_for(&self) -> Result<String, Failed> {
        let none = "the settings have no [jobs] fleet, accepted: --fleet NAME";
        self.fleet.signed_for.clone().ok_or_else(|| Failed::usage(none))
    }
    fn key(&self, task_id: &str) -> JobKey {
        match (&self.group, &self.node) {
            (Some(group), _) => JobKey::group(group.as_str(), task_id),
            (None, node) => JobKey::host(node.as_deref().unwrap_or_default(), task_id),
        }
    }
    /// A value has one place.
    fn one_place(&self, command: &str) -> Result<(), Failed> {
        match self.node.is_some() && self.group.is_some() {
            false => Ok(()),
            true => Err(Failed::usage(format!(
                "`agent jobs {command}` changes one value, and found --node and --group, accepted: one of them"
            ))),
        }
    }
    /// The agents that run it, as far as they are online.
    fn agents(&self) -> Result<Vec<(String, Health)>, Failed> {
        let store = &self.fleet.store;
        match &self.node {
            Some(ip) => {
                let health = self.fleet.wait(fleet::health(store, ip))?;
                Ok(health.map(|health| (ip.clone(), health)).into_iter().collect())
            }
            None => {
                let mut all = self.fleet.wait(fleet::online(store))?;
                all.retain(|(_, health)| Some(&health.group) == self.group.as_ref());
                Ok(all)
            }
        }
    }
    fn found(&self, task_id: &str) -> Result<Found, Failed> {
        let key = self.key(task_id);
        let found = self.fleet.wait(values::find(&self.fleet.store, &key))?;
        found.ok_or_else(|| Failed::new(format!("there is no job {key}")))
    }

    pub fn list(&self) -> Done {
        let agents = self.agents()?;
        let (node, group) = (self.node.as_deref(), self.group.as_deref());
        let jobs = self.fleet.wait(values::list(&self.fleet.store, node, group, &agents))?;
        if self.json {
            let jobs = jobs.iter().map(as_json).collect::<Vec<_>>();
            print(&show::json(&json!({ "jobs": jobs })));
            return Ok(0);
        }
        print(&table(&jobs));
        if agents.is_empty() {
            print(&self.nobody());
        }
        Ok(0)
    }
    fn nobody(&self) -> String {
        match (&self.node, &self.group) {
            (Some(ip), _) => format!("no agent is online at {ip}"),
            (None, group) => format!("no agent of group {} is online", group.as_deref().unwrap_or_default()),
        }
    }
    pub fn get(&self, task_id: &str) -> Done {
        let mut found = self.found(task_id)?;
        let agents = self.agents()?;
        self.fleet
            .wait(values::add_records(&self.fleet.store, &mut found, &agents))?;
        let next = values::next(
            &found.key,
            &found.entry.value,
            &self.fleet.limits,
            clock::system().wall(),
            false,
        );
        if self.json {
            let mut shown = as_json(&found);
            shown["next_five"] = match &next {
                Ok(next) => times(next).into(),
                Err(_) => json!([]),
            };
            print(&show::json(&shown));
            return Ok(0);
        }
        let mut page = format!("job      {}", found.key);
        if let Err(error) = &next {
            page += &format!("\nwhy      {error}, by the settings of here");
        }
        for (ip, record) in &found.records {
            let state = found.state_of(record.as_ref());
            let why = record.as_ref().and_then(|record| record.error.clone());
            page += &format!(
                "\nagent    {ip}: {state}{}",
                why.map_or(String::new(), |why| format!(": {why}"))
            );
        }
        if agents.is_empty() {
            page += &format!("\nagent    {}", self.nobody());
        } else if agents.len() > found.records.len() {
            page += &format!("\nagent    and {} more", agents.len() - found.records.len());
        }
        for at in times(&next.unwrap_or_default()) {
            page += &format!("\nnext     {at}");
        }
        page += &format!("\n{}", show::json(&found.value()));
        print(&page);
        Ok(0)
    }
    /// Answers as the agent of this host would.
    pub fn put(&self, task_id: &str, value: &str, check: bool) -> Result<Value, Failed> {
        self.one_place("put")?;
        let key = self.key(task_id);
        let bytes = Bytes::copy_from_slice(value.as_bytes());
        let next = values::next(&key, &bytes, &self.fleet.limits, clock::system().wall(), true).map_err(Failed::new)?;
        let mut answer = json!({ "key": null, "mod_revision": null, "existed": false, "state": null, "error": null,
            "next": times(&next) });
        if check {
            return Ok(answer);
        }
        let store = &self.fleet.store;
        let (existed, revision) = self.fleet.wait(values::write(store, &key, bytes))?;
        answer["key"] = key.path().into();
        answer["mod_revision"] = revision.into();
        answer["existed"] = existed.into();
        let agents = self.agents()?;
        if agents.is_empty() {
            answer["note"] = self.nobody().into();
        } else if let Some(ip) = &self.node {
            match self.fleet.wait(values::heard(store, ip, task_id, revision))? {
                Some(Record { state, error, .. }) => {
                    answer["state"] = state.into();
                    answer["error"] = error.into();
                }
                None => answer["note"] = format!("the agent at {ip} has not answered yet").into(),
            }
        } else {
            answer["note"] = format!("{} agents of the group are online", agents.len()).into();
        }
        Ok(answer)
    }
    pub fn rm(&self, task_id: &str) -> Done {
        self.one_place("rm")?;
        let key = self.key(task_id);
        match self.fleet.wait(values::remove(&self.fleet.store, &key))? {
            None => Err(Failed::new(format!("there is no job {key}"))),
            Some(revision) => self.said(
                json!({ "key": key.path(), "mod_revision": revision, "existed": true }),
                &format!("job {task_id} removed"),
            ),
        }
    }
    pub fn pause(&self, task_id: &str, paused: bool) -> Done {
        self.one_place(if paused { "pause" } else { "resume" })?;
        let key = self.key(task_id);
        let status = self.fleet.wait(values::set_paused(&self.fleet.store, &key, paused))?;
        let word = if paused { "paused" } else { "running" };
        let (changed, line) = match status {
            Status::Changed => (true, format!("job {task_id}: {word}")),
            Status::Same => (false, format!("job {task_id}: {word} already")),
        };
        let shown =
            json!({ "key": key.path(), "status": if paused { "pause" } else { "running" }, "changed": changed });
        self.said(shown, &line)
    }
    fn said(&self, answer: Value, line: &str) -> Done {
        print(&if self.json {
            show::json(&answer)
        } else {
            line.to_owned()
        });
        Ok(0)
    }

    /// To the agent of the node, or to all of the group that are online.
    pub fn order(&self, task_id: &str, action: &'static str, run_id: Option<&str>, with: &With) -> Done {
        let found = self.found(task_id)?;
        let agents = self.agents()?;
        if agents.is_empty() {
            return Err(Failed::new(format!("{}: nothing was sent", self.nobody())));
        }
        if action == "run" && self.node.is_none() && agents.len() > 1 && found.value()["exclusive"] == true {
            return Err(Failed::usage(format!(
                "job {task_id} is exclusive and the group has {} agents online, accepted: --node too, which of them is to run it",
                agents.len()
            )));
        }
        let order = Order {
            action,
            task_id,
            group: self.group.as_deref(),
            run_id,
        };
        let store = &self.fleet.store;
        let command = |(ip, _)| {
            let mut command = Command::new(ip, &order, clock::system().wall());
            command.value = with.value(&command.value, || Ok(command.key()), || self.signed_for())?;
            Ok(command)
        };
        let commands = agents.into_iter().map(command).collect::<Result<Vec<_>, Failed>>()?;
        let answers = self.fleet.wait(fleet::each(commands, |command: Command| async {
            let ip = command.ip.clone();
            Ok((ip, orders::send(store, command).await?))
        }))?;
        let failed = answers.iter().any(|(_, answered)| !answered.done());
        if self.json {
            let answers = answers
                .iter()
                .map(|(ip, answered)| answered.json(ip))
                .collect::<Vec<_>>();
            print(&show::json(&json!({ "answers": answers })));
        } else {
            answers
                .iter()
                .for_each(|(ip, answered)| print(&line(task_id, ip, answered)));
        }
        Ok(if failed { FAILED } else { 0 })
    }
}

fn line(task_id: &str, ip: &str, answered: &Answered) -> String {
    let runs = answered
        .runs
        .iter()
        .map(|run| format!("\nrun {run}"))
        .collect::<String>();
    format!("job {task_id} at {ip}: {}{runs}", answered.said)
}
fn times(all: &[Timestamp]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}
fn as_json(found: &Found) -> Value {
    let agents = found.records.iter().map(|(ip, record)| {
        let shown = json!({ "state": found.state_of(record.as_ref()),
            "error": record.as_ref().and_then(|record| record.error.as_deref()),
            "cronid": record.as_ref().map(|record| record.cronid), "rev": record.as_ref().map(|record| record.rev) });
        (ip.clone(), shown)
    });
    json!({ "task_id": &*found.key.task_id, "group": found.group(), "key": found.key.path(),
        "mod_revision": found.entry.mod_revision, "value": found.value(),
        "agents": agents.collect::<serde_json::Map<_, _>>() })
}
fn table(jobs: &[Found]) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let head = ["TASK", "GROUP", "STATE", "EXPRESS", "COMMAND", "WHY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for found in jobs {
        let value = found.value();
        let error = found
            .records
            .iter()
            .find_map(|(_, record)| record.as_ref()?.error.clone());
        rows.push(vec![
            found.key.task_id.to_string(),
            found.group().unwrap_or("-").to_owned(),
            found.states(),
            text(&value, "express"),
            row_of(&text(&value, "cmd")),
            error.unwrap_or_default(),
        ]);
    }
    show::table(&rows)
}
