//! The command line: one file per subcommand. Those that concern a running agent find it by its data directory and speak HTTP with it
//! over `agent.sock` (`client`). Each answers its exit code.
pub mod args;
mod check;
mod client;
mod doctor;
mod etcd_roles;
mod files;
mod fleet;
mod jobs;
mod log_level;
mod nodes;
mod plugins;
mod plugins_page;
mod reload;
mod restart;
mod show;
mod start;
mod status;
mod stop;
mod try_;
mod version;
mod why;

use std::{ffi::OsString, io::Write, path::PathBuf};

use self::args::Command;
use crate::{
    os,
    settings::{self, Options, Place, Purpose, Settings},
};

/// Exit codes that are not the agent's own (SPEC §1).
const FAILED: u8 = 1;
const NOT_RUNNING: u8 = 3;
const USAGE: u8 = 64;
const BAD_SETTINGS: u8 = 78;

/// `argv` begins with the program's name. Answers the exit code, or never returns: then the agent itself has run.
pub fn run(argv: impl Iterator<Item = OsString>) -> u8 {
    let command = match args::parse(argv) {
        Ok(command) => command,
        Err(leave) if leave.code == 0 => {
            print(&leave.text);
            return 0;
        }
        Err(leave) => return complain(&leave.text, leave.code),
    };
    let done = match command {
        Command::Run(options) => start::bare(&options),
        Command::Start {
            foreground,
            require_address,
            options,
        } => start::start(&options, foreground, require_address),
        Command::Stop { how, place } => stop::run(&place, &how),
        Command::Restart { how, wait, options } => restart::run(&options, &how, wait),
        Command::Reload(ask) => reload::run(&ask),
        Command::Status(ask) => status::run(&ask),
        Command::Version { check_state, ask } => version::run(check_state, &ask),
        Command::Check { online, json, options } => check::run(&options, online, json),
        Command::Plugins { markdown: true, .. } => plugins_page::run(),
        Command::Plugins { name, json, .. } => plugins::run(name.as_deref(), json),
        Command::Try {
            sample,
            pipeline,
            json,
            options,
        } => try_::run(&options, &sample, pipeline.as_deref(), json),
        Command::Jobs(jobs) => jobs::run(&jobs),
        Command::Nodes(nodes) => nodes::run(&nodes),
        Command::Files(ask) => files::run(&ask),
        Command::Why { what, ask } => why::run(&what, &ask),
        Command::Doctor { output, ask } => doctor::run(output, &ask),
        Command::EtcdRoles(asked) => etcd_roles::run(&asked),
        Command::LogLevel {
            level,
            revert_after,
            ask,
        } => log_level::run(level, revert_after, &ask),
    };
    done.unwrap_or_else(|failed| complain(&failed.text, failed.code))
}

const BACKGROUND: Purpose = Purpose::Start { foreground: false };

/// What a command answers: its exit code, or what to say and with which code.
type Done = Result<u8, Failed>;
#[derive(Debug)]
struct Failed {
    text: String,
    code: u8,
}
impl Failed {
    fn new(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            code: FAILED,
        }
    }
    fn usage(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            code: USAGE,
        }
    }
}
impl From<settings::Refused> for Failed {
    fn from(refused: settings::Refused) -> Self {
        Self {
            text: refused.to_string(),
            code: refused.code,
        }
    }
}
impl From<client::AskError> for Failed {
    fn from(error: client::AskError) -> Self {
        Self {
            code: match error {
                client::AskError::NotRunning(_) => NOT_RUNNING,
                _ => FAILED,
            },
            text: error.to_string(),
        }
    }
}

fn load(options: &Options, purpose: Purpose) -> Result<Settings, Failed> {
    Ok(settings::load(options, std::env::vars_os(), purpose)?)
}
/// The same again, for a reload: the environment is the process's own.
fn reread(options: &Options, purpose: Purpose) -> settings::Reread {
    let options = options.clone();
    std::sync::Arc::new(move || settings::load(&options, std::env::vars_os(), purpose))
}
/// For a process that will go into the background.
fn load_for_background(options: &Options) -> Result<Settings, Failed> {
    let settings = load(options, BACKGROUND)?;
    // SAFETY: so far this process has parsed its arguments and read files that are closed again.
    unsafe { os::close_inherited() };
    Ok(settings)
}
fn data_dir(place: &Place) -> Result<PathBuf, Failed> {
    Ok(settings::locate(place, std::env::vars_os())?.data_dir)
}

/// To stdout, a line end added if there is none. Whoever has stopped reading is no error: println! would panic.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}
fn complain(text: &str, code: u8) -> u8 {
    let _ = writeln!(std::io::stderr(), "agent: {text}");
    code
}
