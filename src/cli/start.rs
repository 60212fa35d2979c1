//! `agent` and `agent start`: the agent itself.
use super::{BACKGROUND, Done, Failed, load, load_for_background, reread};
use crate::{
    agent::{self, Mode},
    os,
    settings::{Options, Purpose, Settings},
};

/// Foreground, ends with its input.
pub fn bare(options: &Options) -> Done {
    let settings = load(options, Purpose::Run)?;
    Ok(agent::run(settings, Mode::Bare, reread(options, Purpose::Run)))
}

/// The daemon. In the background this answers when it is ready or has failed.
pub fn start(options: &Options, foreground: bool, require_address: bool) -> Done {
    // SAFETY: so far this process has parsed its arguments, on its one thread.
    unsafe { os::leave_run() };
    if foreground {
        let purpose = Purpose::Start { foreground };
        let settings = with_address(load(options, purpose)?, require_address)?;
        return Ok(agent::run(settings, Mode::Foreground, reread(options, purpose)));
    }
    let settings = with_address(load_for_background(options)?, require_address)?;
    Ok(agent::run(settings, Mode::Background, reread(options, BACKGROUND)))
}

/// Without etcd nobody could hold it.
fn with_address(mut settings: Settings, require: bool) -> Result<Settings, Failed> {
    if require && settings.etcd.endpoints.is_empty() {
        return Err(Failed::usage(
            "`--require-address` looks into etcd, and the settings name none, accepted: with etcd.endpoints",
        ));
    }
    settings.require_address = require;
    Ok(settings)
}
