//! `agent restart`: stops the agent, if there is one, and starts it with the settings as they are now.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{BACKGROUND, Done, Failed, args::Stopping, client, complain, load_for_background, reread, show, stop};
use crate::{
    agent::{self, Mode},
    model::Span,
    os,
    settings::Options,
};

pub fn run(options: &Options, how: &Stopping, wait: Option<Span>) -> Done {
    // Settings that cannot be started with stop nothing.
    let settings = load_for_background(options)?;
    if let Some(Span(wait)) = wait {
        until_no_run(&settings.agent.data_dir, wait)?;
    }
    match stop::stop(&settings.agent.data_dir, how.timeout.0, how.force)? {
        Some(stop::End::Word(last)) if last.code != 0 => {
            complain(
                &format!("the old agent ended with code {}: {}", last.code, last.why),
                last.code,
            );
        }
        Some(stop::End::NoWord) => {
            complain("the old agent left no word how it ended", super::FAILED);
        }
        Some(stop::End::Word(_)) | None => {}
    }
    // SAFETY: what was asked of the old agent had a runtime on this one thread, and that is gone.
    unsafe { os::leave_run() };
    Ok(agent::run(settings, Mode::Background, reread(options, BACKGROUND)))
}

/// The agent goes on scheduling meanwhile. A run that asks for this itself does not count.
fn until_no_run(data_dir: &Path, wait: Duration) -> Result<(), Failed> {
    let own = std::env::var("AGENT_RUN_ID").ok();
    let until = Instant::now() + wait;
    loop {
        let answer = match client::get(data_dir, "/api/v1/jobs") {
            Err(client::AskError::NotRunning(_)) => return Ok(()),
            answer => answer?,
        };
        let runs = show::list(&answer, "jobs")
            .iter()
            .flat_map(|job| show::list(job, "runs"));
        let present = runs.filter(|run| run.as_str() != own.as_deref()).count();
        if present == 0 {
            return Ok(());
        }
        if Instant::now() >= until {
            let wait = Span(wait);
            return Err(Failed::new(format!(
                "after {wait} runs are present still ({present}): nothing was stopped"
            )));
        }
        pause(Duration::from_millis(500));
    }
}
#[expect(
    clippy::disallowed_methods,
    reason = "a command has one thread and nothing else to do"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
