//! `agent` and `agent start`: the agent itself.
use super::{BACKGROUND, Done, load, load_for_background, reread};
use crate::{
    agent::{self, Mode},
    os,
    settings::{Options, Purpose},
};

/// Foreground, ends with its input.
pub fn bare(options: &Options) -> Done {
    let settings = load(options, Purpose::Run)?;
    Ok(agent::run(settings, Mode::Bare, reread(options, Purpose::Run)))
}

/// The daemon. In the background this answers when it is ready or has failed.
pub fn start(options: &Options, foreground: bool) -> Done {
    // SAFETY: so far this process has parsed its arguments, on its one thread.
    unsafe { os::leave_run() };
    if foreground {
        let purpose = Purpose::Start { foreground };
        let settings = load(options, purpose)?;
        return Ok(agent::run(settings, Mode::Foreground, reread(options, purpose)));
    }
    let settings = load_for_background(options)?;
    Ok(agent::run(settings, Mode::Background, reread(options, BACKGROUND)))
}
