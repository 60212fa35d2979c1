//! `agent reload`: the running agent reads its settings again and changes by difference what runs. Prints what was other.
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;

use super::{
    BAD_SETTINGS, Done, Failed,
    args::Ask,
    client::{self, AskError},
    data_dir, print,
    show::{self, text},
};

/// The agent gives itself 15 s for a reload, and one before it may be under way.
const LIMIT: Duration = Duration::from_secs(45);

pub fn run(ask: &Ask) -> Done {
    let dir = data_dir(&ask.place)?;
    let path = "/api/v1/reload";
    let body = client::ask_within(LIMIT, &dir, Method::POST, path).map_err(|error| match error {
        AskError::Refused {
            detail,
            status: Some(StatusCode::UNPROCESSABLE_ENTITY),
        } => Failed {
            text: detail,
            code: BAD_SETTINGS,
        },
        error => error.into(),
    })?;
    let reloaded: Value =
        serde_json::from_slice(&body).map_err(|e| Failed::new(format!("the agent's answer is not JSON: {e}")))?;
    print(&match ask.json {
        true => show::json(&reloaded),
        false => page(&reloaded),
    });
    Ok(0)
}

fn page(reloaded: &Value) -> String {
    let [added, removed, changed] = ["added", "removed", "changed"].map(|what| show::list(reloaded, what));
    let mut out = match added.len() + removed.len() + changed.len() {
        0 => "nothing changed\n".to_owned(),
        _ => format!(
            "reloaded: {} added, {} removed, {} changed\n",
            added.len(),
            removed.len(),
            changed.len()
        ),
    };
    for (sign, list) in [("+", added), ("-", removed)] {
        for of in list {
            out += &format!("{sign} {}  {}\n", text(of, "key"), of["value"]);
        }
    }
    for of in changed {
        out += &format!("~ {}: {} → {}\n", text(of, "key"), of["from"], of["to"]);
    }
    for pending in show::list(reloaded, "pending") {
        out += &format!("! {}\n", pending.as_str().unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn what_was_other() {
        let nothing = json!({ "added": [], "removed": [], "changed": [], "pending": [] });
        assert_eq!(super::page(&nothing), "nothing changed\n");
        let reloaded = json!({
            "added": [{ "key": "pipeline.b", "value": { "name": "b" } }],
            "removed": [{ "key": "pipeline.a.outputs[1]", "value": { "plugin": "null:v1" } }],
            "changed": [{ "key": "log.level", "from": "info", "to": "debug" }, { "key": "limits.nice", "from": null, "to": 5 }],
            "pending": ["sink/a/logr changes when what it has under way is done"],
        });
        assert_eq!(
            super::page(&reloaded),
            "reloaded: 1 added, 1 removed, 2 changed\n\
             + pipeline.b  {\"name\":\"b\"}\n\
             - pipeline.a.outputs[1]  {\"plugin\":\"null:v1\"}\n\
             ~ log.level: \"info\" → \"debug\"\n\
             ~ limits.nice: null → 5\n\
             ! sink/a/logr changes when what it has under way is done\n"
        );
    }
}
