//! `agent why FILE`: why it is not read, in one sentence.
use super::{Done, args::Ask, client, data_dir, print, show};

pub fn run(what: &str, ask: &Ask) -> Done {
    // The agent knows files by their whole path; what is there from here is meant from here.
    let here = std::path::absolute(what)
        .ok()
        .filter(|path| path.symlink_metadata().is_ok());
    let what = here
        .and_then(|path| path.into_os_string().into_string().ok())
        .unwrap_or_else(|| what.to_owned());
    let answer = client::get(
        &data_dir(&ask.place)?,
        &format!("/api/v1/why?what={}", client::quoted(&what)),
    )?;
    print(&if ask.json {
        show::json(&answer)
    } else {
        show::text(&answer, "why")
    });
    Ok(0)
}
