//! `agent log-level LEVEL [--for 5m]`: what the running agent says of itself, for good or for a while.
use hyper::Method;
use slog::Level;

use super::{Done, args::Ask, client, data_dir, print, show};
use crate::{model::Span, settings::level_word};

pub fn run(level: Level, revert_after: Option<Span>, ask: &Ask) -> Done {
    let level = level_word(level);
    let (mut order, mut said) = (
        format!("/api/v1/log-level?level={level}"),
        format!("log level is {level}"),
    );
    if let Some(time) = revert_after {
        order += &format!("&for={}", client::quoted(&time.to_string()));
        said += &format!(" for {time}");
    }
    let answer = client::json(&data_dir(&ask.place)?, Method::PUT, &order)?;
    print(&if ask.json { show::json(&answer) } else { said });
    Ok(0)
}
