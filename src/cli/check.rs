//! `agent check`: are the settings such that `start` could begin with them. Starts and touches nothing.
use serde_json::json;

use super::{Done, Failed, print, show};
use crate::settings::{self, Options, Purpose};

pub fn run(options: &Options, online: bool, json: bool) -> Done {
    if online {
        return Err(Failed::usage("the option `--online` is not built yet"));
    }
    match settings::load(options, std::env::vars_os(), Purpose::Check) {
        Ok(_) if json => print(&show::json(&json!({ "ok": true, "errors": [] }))),
        Ok(_) => print("configuration ok"),
        Err(refused) if json => {
            let errors = refused.errors.iter().map(ToString::to_string).collect::<Vec<_>>();
            print(&show::json(&json!({ "ok": false, "errors": errors })));
            return Ok(refused.code);
        }
        Err(refused) => return Err(refused.into()),
    }
    Ok(0)
}
