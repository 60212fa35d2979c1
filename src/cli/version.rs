//! `agent version`: which release this is; with `--check-state` whether it can work on the state in the data directory.
use serde_json::json;

use super::{Done, Failed, args::Ask, complain, data_dir, print, show};
use crate::{VERSION, agent};

/// As for settings that cannot be started with.
const CANNOT_READ: u8 = 78;

pub fn run(check_state: bool, ask: &Ask) -> Done {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if !check_state {
        print(&match ask.json {
            true => show::json(
                &json!({ "version": VERSION, "os": os, "arch": arch, "state_version": agent::STATE_VERSION }),
            ),
            false => format!("luffly-agent {VERSION} ({os} {arch})"),
        });
        return Ok(0);
    }
    let dir = data_dir(&ask.place)?;
    let found = agent::state_version(&dir).map_err(Failed::new)?;
    let refused = found.and_then(|version| agent::can_read(&dir, version).err());
    if ask.json {
        print(&show::json(&json!({
            "version": VERSION, "data_dir": dir, "state_version": found, "reads": agent::STATE_VERSION, "readable": refused.is_none(),
        })));
        return Ok(refused.map_or(0, |_| CANNOT_READ));
    }
    match (found, refused) {
        (_, Some(refused)) => return Ok(complain(&refused, CANNOT_READ)),
        (Some(version), None) => print(&format!(
            "state in {} has version {version}: can be read",
            dir.display()
        )),
        (None, None) => print(&format!("no state in {}", dir.display())),
    }
    Ok(0)
}
