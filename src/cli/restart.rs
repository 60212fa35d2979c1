//! `agent restart`: stops the agent, if there is one, and starts it with the settings as they are now.
use super::{BACKGROUND, Done, Failed, args::Stopping, complain, load_for_background, reread, stop};
use crate::{
    agent::{self, Mode},
    model::Span,
    settings::Options,
};

pub fn run(options: &Options, how: &Stopping, wait: Option<Span>) -> Done {
    if wait.is_some() {
        return Err(Failed::usage(
            "the option `--wait` is not built yet: there are no jobs to wait for",
        ));
    }
    // Settings that cannot be started with stop nothing.
    let settings = load_for_background(options)?;
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
    Ok(agent::run(settings, Mode::Background, reread(options, BACKGROUND)))
}
