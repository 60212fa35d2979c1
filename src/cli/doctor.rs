//! `agent doctor`: one tar with what a bug report needs. From a running agent its own answers, else what lies in the data directory.
//! What could not be had is named in `missing.txt`. Settings are masked; the file is private all the same.
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hyper::Method;
use serde_json::json;

use super::{Done, Failed, args::Ask, client, data_dir, print, show};
use crate::{
    VERSION, agent, clock, os,
    settings::{self, Options, Purpose},
};

/// What of the log's end is taken, in bytes.
const LOG_END: u64 = 1 << 20;
const PAGES: [(&str, &str); 8] = [
    ("agent.json", "/api/v1/agent"),
    ("health.json", "/api/v1/health"),
    ("actors.json", "/api/v1/actors"),
    ("pipelines.json", "/api/v1/pipelines"),
    ("files.json", "/api/v1/files"),
    ("config.json", "/api/v1/config"),
    ("logs.json", "/api/v1/logs?n=200"),
    ("metrics.txt", "/metrics"),
];

pub fn run(output: Option<PathBuf>, ask: &Ask) -> Done {
    let dir = data_dir(&ask.place)?;
    let path = output.unwrap_or_else(|| PathBuf::from("agent-doctor.tar"));
    let failed = |e: std::io::Error| Failed::new(format!("could not write {}: {e}", path.display()));
    let parts = collect(&dir, ask)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(os::PRIVATE_FILE)
        .open(&path)
        .map_err(failed)?;
    let mut tar = tar::Builder::new(file);
    let now = clock::system().wall().as_second().max(0) as u64;
    for (name, content) in &parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(os::PRIVATE_FILE);
        header.set_mtime(now);
        tar.append_data(&mut header, format!("agent-doctor/{name}"), content.as_slice())
            .map_err(failed)?;
    }
    tar.into_inner().and_then(|file| file.sync_all()).map_err(failed)?;
    let names = parts.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    print(&match ask.json {
        true => show::json(&json!({ "file": path, "parts": names })),
        false => format!("wrote {}: {}", path.display(), names.join(", ")),
    });
    Ok(0)
}

fn collect(dir: &Path, ask: &Ask) -> Result<Vec<(&'static str, Vec<u8>)>, Failed> {
    let running = agent::running(dir).map_err(|e| Failed::new(format!("could not look at {}: {e}", dir.display())))?;
    let (mut parts, mut missing) = (Vec::new(), String::new());
    let about = json!({
        "version": VERSION,
        "made": clock::system().wall(),
        "hostname": os::hostname(),
        "system": std::fs::read_to_string("/proc/version").unwrap_or_default().trim(),
        "data_dir": dir,
        "running": running.map(|holder| holder.pid),
        "state_version": agent::state_version(dir).ok().flatten(),
    });
    parts.push(("about.json", show::json(&about).into_bytes()));
    if running.is_some() {
        for (name, page) in PAGES {
            match client::ask(dir, Method::GET, page) {
                Ok(body) => parts.push((name, body.to_vec())),
                Err(e) => missing += &format!("{name}: {e}\n"),
            }
        }
    } else {
        // What it would start with.
        let options = Options {
            place: ask.place.clone(),
            ..Options::default()
        };
        match settings::load(&options, std::env::vars_os(), Purpose::Check) {
            Ok(settings) => parts.push(("config.json", show::json(&settings.effective()).into_bytes())),
            Err(refused) => missing += &format!("config.json: {refused}\n"),
        }
    }
    for (name, path) in [
        ("agent.log", agent::log_file(dir)),
        ("last-exit.json", dir.join("last-exit.json")),
    ] {
        match end_of(&path) {
            Ok(text) => parts.push((name, text)),
            Err(e) => missing += &format!("{name}: {}: {e}\n", path.display()),
        }
    }
    if !missing.is_empty() {
        parts.push(("missing.txt", missing.into_bytes()));
    }
    Ok(parts)
}

fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOG_END)))?;
    let mut text = Vec::new();
    file.take(LOG_END).read_to_end(&mut text)?;
    Ok(text)
}
