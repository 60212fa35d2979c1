//! `agent` and `agent start`: the agent itself.
use super::{Done, load, load_for_background};
use crate::{
    agent::{self, Mode},
    os,
    settings::{Options, Purpose},
};

/// Foreground, ends with its input.
pub fn bare(options: &Options) -> Done {
    Ok(agent::run(load(options, Purpose::Run)?, Mode::Bare))
}

/// The daemon. In the background this answers when it is ready or has failed.
pub fn start(options: &Options, foreground: bool) -> Done {
    // SAFETY: so far this process has parsed its arguments, on its one thread.
    unsafe { os::leave_run() };
    if foreground {
        let settings = load(options, Purpose::Start { foreground })?;
        return Ok(agent::run(settings, Mode::Foreground));
    }
    Ok(agent::run(load_for_background(options)?, Mode::Background))
}
