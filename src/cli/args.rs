//! `agent [COMMAND] [OPTIONS]`, read. The options are mafio's, which writes them with one dash: `normalise` makes `--input` of
//! `-input`, then clap reads them. Whatever is wrong ends in exit code 64 with what was found and what is accepted; what a later
//! version does is refused by name.
use std::{ffi::OsString, time::Duration};

use clap::{
    Arg, ArgAction, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};

pub use super::{jobs::Jobs, nodes::Nodes};
pub use crate::settings::{Options, Place};
use crate::{
    model::Span,
    settings::{self, Purpose},
};

#[derive(clap::Subcommand, Clone, Debug, PartialEq)]
pub enum Command {
    /// Bare `agent`: foreground, stdin → valid → stdout if nothing else is said; leaves at the end of its input
    #[command(skip)]
    Run(Box<Options>),
    /// Start the daemon; returns when it is ready or has failed
    Start {
        /// Stay in the foreground, for a service manager
        #[arg(long)]
        foreground: bool,
        /// Fail if another agent holds the address of this host in etcd
        #[arg(long)]
        require_address: bool,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Ask the daemon to drain and stop, and wait until it is gone
    Stop {
        #[command(flatten)]
        how: Stopping,
        #[command(flatten)]
        place: Place,
    },
    /// Stop the daemon, if there is one, and start it
    Restart {
        #[command(flatten)]
        how: Stopping,
        /// First wait until no job is running, at most this long
        #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "1h")]
        wait: Option<Span>,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// The daemon reads its settings again and changes what is other, without losing an event
    Reload(Ask),
    /// Is it running, and how does it do; exit code 3 if not running
    Status(Ask),
    /// Print the version
    Version {
        /// Can this binary read the state in that data dir
        #[arg(long)]
        check_state: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// Check the settings, and say all that is wrong with them
    Check {
        /// Try every output, step by step
        #[arg(long)]
        online: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// The plugins and what they promise; of one: its options and a sample
    Plugins {
        /// `name` or `name:tag`
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print all of docs/plugins.md
        #[arg(long, conflicts_with_all = ["name", "json"])]
        markdown: bool,
    },
    /// Send a sample through the filters and show what becomes of each event; starts nothing, touches nothing
    Try {
        /// Events, a line each; `-` for stdin
        #[arg(long, value_name = "FILE")]
        sample: std::path::PathBuf,
        /// Whose filters, if there are several pipelines
        #[arg(long, value_name = "NAME")]
        pipeline: Option<String>,
        /// Print JSON, a line for each event and one for the counts
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Jobs: list, put, run, kill, their runs and output, when an expression is due
    #[command(subcommand)]
    Jobs(Jobs),
    /// The fleet, from etcd: who is online, since when, version, jobs; how the others ended
    Nodes(Nodes),
    /// Every file: identity, size, offsets, lag, state
    Files(Ask),
    /// Why a file is not read, or a job does not run, in one sentence
    Why {
        /// A file, or a job's task id
        what: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Collect what a bug report needs into one tar: masked settings, health, counters, last logs
    Doctor {
        /// Where to write it [default: agent-doctor.tar in the current directory]
        #[arg(long, value_name = "FILE")]
        output: Option<std::path::PathBuf>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print the least rights that agents need in etcd, as etcdctl commands
    EtcdRoles(EtcdRoles),
    /// Change the log level of the running agent
    LogLevel {
        /// critical, error, warning, info, debug or trace
        #[arg(value_parser = level)]
        level: slog::Level,
        /// Back to what it was after this long
        #[arg(long = "for", value_name = "DURATION", value_parser = positive)]
        revert_after: Option<Span>,
        #[command(flatten)]
        ask: Ask,
    },
}
/// For whom rights are printed.
#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct EtcdRoles {
    /// An agent's address, repeatable or with commas [default: this host's]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub host: Vec<std::net::IpAddr>,
    /// Of which groups these agents take jobs, repeatable or with commas [default: that of the settings, for this host]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub group: Vec<String>,
    /// The role of those who put jobs and send commands
    #[arg(long)]
    pub operator: bool,
    /// The user's name: the common name of its certificate [default: luffly-<IP>]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Users with a password, which etcdctl asks for, instead of a certificate
    #[arg(long)]
    pub password: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub options: Box<Options>,
}
/// How a stop goes.
#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Stopping {
    /// How long to wait for it; should be more than [agent] drain
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive)]
    pub timeout: Span,
    /// Past the timeout kill it; without, it is left running
    #[arg(long)]
    pub force: bool,
}
/// A question to a running agent.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Ask {
    #[command(flatten)]
    pub place: Place,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Command {
    /// The options of a command that loads all settings, and what for.
    pub fn settings(&self) -> Option<(&Options, Purpose)> {
        match self {
            Self::Run(options) => Some((options, Purpose::Run)),
            Self::Start {
                foreground, options, ..
            } => Some((
                options,
                Purpose::Start {
                    foreground: *foreground,
                },
            )),
            Self::Restart { options, .. } => Some((options, Purpose::Start { foreground: false })),
            Self::Check { options, .. } => Some((options, Purpose::Check)),
            Self::EtcdRoles(asked) => Some((&asked.options, Purpose::Check)),
            Self::Try { options, .. } => Some((options, Purpose::Try)),
            _ => None,
        }
    }
}

/// Nothing to run: print `text` (stdout if `code` is 0, else stderr) and leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    pub text: String,
    pub code: u8,
}
impl Leave {
    fn wrong(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 64,
        }
    }
}

const HELP: &str = "\
Without a command: run in the foreground; stdin → valid → stdout if neither -input nor -output is given.
Each option is accepted with one dash or two, as -input=file or --input file; the last of a single one counts.
Settings, later wins: defaults, the file, the environment (AGENT_HTTP__ADDRESS=…), -f, other options.

Exit codes: 0 nothing lost · 1 failed, forced or lost · 3 not running · 64 wrong usage · 75 undelivered events
wait on our disk · 78 bad settings";

#[derive(clap::Parser, Debug)]
#[command(
    name = "agent",
    bin_name = "agent",
    about = "One agent for every host: collects events, and says that it is alive",
    after_help = HELP,
    override_usage = "agent [OPTIONS]\n       agent <COMMAND> [OPTIONS]",
    args_override_self = true,
    disable_version_flag = true,
    max_term_width = 120
)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Box<Options>,
    /// Print the version
    #[arg(long)]
    version: bool,
}

/// Commands and options of later versions.
const NOT_BUILT: [&str; 4] = ["tap", "top", "deadletter", "token"];
const NOT_BUILT_OPTIONS: [&str; 1] = ["influxdb-addr"];

/// `argv` begins with the program's name.
pub fn parse(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Command, Leave> {
    let line = Line::command();
    let argv = normalise(&line, argv.into_iter().map(Into::into))?;
    let parsed = line
        .try_get_matches_from(&argv)
        .and_then(|matches| Line::from_arg_matches(&matches));
    let parsed = parsed.map_err(|error| explained(error, &argv))?;
    Ok(match parsed.command {
        _ if parsed.version => Command::Version {
            check_state: false,
            ask: Ask {
                place: parsed.options.place,
                json: false,
            },
        },
        Some(command) => command,
        None => Command::Run(parsed.options),
    })
}

/// Two dashes before every long option, the command first.
fn normalise(line: &clap::Command, argv: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, Leave> {
    let commands = || {
        let below = line.get_subcommands().flat_map(clap::Command::get_subcommands); // `jobs put`
        std::iter::once(line).chain(line.get_subcommands()).chain(below)
    };
    let takes_value = |long: &str| {
        let named = |arg: &&Arg| arg.get_long() == Some(long);
        let arg = commands().flat_map(clap::Command::get_arguments).find(named);
        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append))
    };
    let mut argv = argv.peekable();
    let mut out = argv.next().into_iter().collect::<Vec<_>>();
    let mut command = false;
    while let Some(word) = argv.next() {
        // A name is ASCII: whatever else there is in the word is a value, and stays as it is.
        let bytes = word.as_encoded_bytes();
        let dashes = bytes.iter().take(3).take_while(|b| **b == b'-').count();
        if bytes == b"--" {
            out.push(word);
            out.extend(argv);
            break;
        }
        if dashes == 0 || bytes.len() == dashes {
            if !command && let Some(name) = word.to_str() {
                if NOT_BUILT.contains(&name) {
                    return Err(Leave::wrong(format!("`agent {name}` is not built yet")));
                }
                if line.find_subcommand(name).is_some() || name == "help" {
                    command = true;
                    out.insert(1.min(out.len()), word); // behind the program: `agent -config x start` is `agent start -config x`
                    continue;
                }
            }
            out.push(word);
            continue;
        }
        let end = bytes.iter().position(|b| *b == b'=');
        let name = String::from_utf8_lossy(&bytes[dashes..end.unwrap_or(bytes.len())]).into_owned();
        if NOT_BUILT_OPTIONS.contains(&&*name) {
            return Err(Leave::wrong(format!(
                "the option `{}{name}` is not built yet",
                &"--"[..dashes.min(2)]
            )));
        }
        let value_follows = end.is_none() && (name == "f" || takes_value(&name));
        match dashes {
            // -f JSON, -f{…}; -h
            1 if name.len() == 1 || bytes.starts_with(b"-f{") => out.push(word),
            1 => {
                let mut long = OsString::from("-");
                long.push(word);
                out.push(long);
            }
            _ => out.push(word),
        }
        // `restart --wait` may stand alone.
        if value_follows
            && let Some(value) = argv.next_if(|next| name != "wait" || !next.as_encoded_bytes().starts_with(b"-"))
        {
            out.push(value);
        }
    }
    Ok(out)
}

/// clap's error in our words; help is none.
fn explained(error: clap::Error, argv: &[OsString]) -> Leave {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let mut line = Line::command();
    line.build();
    let (mut command, mut called) = (&line, "agent".to_owned());
    for word in argv.iter().skip(1).take(2) {
        if let Some(below) = command.find_subcommand(word) {
            called = format!("{called} {}", below.get_name());
            command = below;
        }
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Leave {
                text: error.render().to_string(),
                code: 0,
            }
        }
        ErrorKind::UnknownArgument => {
            let found = context(ContextKind::InvalidArg);
            let found = found.split('=').next().unwrap_or_default();
            let longs = command.get_arguments().filter_map(Arg::get_long);
            let mut accepted = longs.map(|long| format!("--{long}")).collect::<Vec<_>>();
            if command.get_arguments().any(|arg| arg.get_short() == Some('f')) {
                accepted.push("-f".to_owned());
            }
            let place = if found.starts_with('-') { "option" } else { "word" };
            let what = format!("{place} `{found}` of `{called}`");
            Leave::wrong(settings::unknown(&what, found, accepted.iter().map(String::as_str)))
        }
        ErrorKind::InvalidSubcommand => {
            let names = line.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>();
            let found = context(ContextKind::InvalidSubcommand);
            Leave::wrong(settings::unknown(&format!("command `{found}`"), &found, names))
        }
        // The first paragraph says it; what follows is usage and tips.
        _ => {
            let text = error.render().to_string();
            let said = text
                .strip_prefix("error: ")
                .unwrap_or(&text)
                .split("\n\n")
                .next()
                .unwrap_or_default();
            let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Leave::wrong(format!("{said}; see `{called} --help`"))
        }
    }
}

fn level(word: &str) -> Result<slog::Level, String> {
    settings::level(word)
}
fn positive(text: &str) -> Result<Span, String> {
    match text.parse()? {
        Span(Duration::ZERO) => Err(format!(
            "found {text:?}, which means nothing here, accepted: {}",
            Span::ACCEPTED
        )),
        span => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, Leave> {
        parse(std::iter::once("agent").chain(line.split(' ').filter(|w| !w.is_empty())))
    }
    fn run(line: &str) -> Options {
        match read(line) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_command_is_well_formed() {
        Line::command().debug_assert();
    }
    #[test]
    fn one_dash_or_two() {
        for line in [
            "-input=file:v1 -filter=valid -output=logr,stdout -filepath=/a -max-read-channel-size=5 -http-address=off --once",
            "--input=file:v1 --filter=valid --output=logr,stdout --filepath=/a --max-read-channel-size=5 --http-address=off -once",
            "-input file:v1 -filter valid -output logr -output stdout -filepath /a -max-read-channel-size 5 -http-address off -once",
            "--input file:v1 --filter valid --output logr --output=stdout --filepath /a --max-read-channel-size 5 --http-address off --once",
        ] {
            let options = run(line);
            assert_eq!(options.input, ["file:v1"], "{line}");
            assert_eq!(options.filter, ["valid"]);
            assert_eq!(options.output, ["logr", "stdout"]);
            assert_eq!(options.filepath, ["/a"]);
            assert_eq!(options.max_read_channel_size.as_deref(), Some("5"));
            assert_eq!(options.http_address.as_deref(), Some("off"));
            assert!(options.once);
        }
        assert_eq!(run(""), Options::default());
    }
    #[test]
    fn values_are_left_alone() {
        assert_eq!(
            run(r#"-f {"a":1} -f={"b":2} -f{"c":3}"#).inline,
            [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]
        );
        assert_eq!(run("--set=a.b=-version --set c=d").set, ["a.b=-version", "c=d"]);
        assert_eq!(run("-agent-id=one -agent-id two").agent_id.as_deref(), Some("two"));
        assert_eq!(run("-input=a,b -input c").input, ["a", "b", "c"]);
    }
    #[test]
    fn commands() {
        let place = Place {
            data_dir: Some("/d".into()),
            ..Place::default()
        };
        let ask = Ask {
            place: place.clone(),
            json: true,
        };
        let seconds = |n| Span(Duration::from_secs(n));
        for line in ["-version", "--version", "version"] {
            let plain = Command::Version {
                check_state: false,
                ask: Ask::default(),
            };
            assert_eq!(read(line), Ok(plain), "{line}");
        }
        for (line, command) in [
            (
                "stop -data-dir /d",
                Command::Stop {
                    how: Stopping {
                        timeout: seconds(30),
                        force: false,
                    },
                    place: place.clone(),
                },
            ),
            (
                "-data-dir=/d stop -timeout 1m30s -force",
                Command::Stop {
                    how: Stopping {
                        timeout: seconds(90),
                        force: true,
                    },
                    place,
                },
            ),
            ("status --data-dir=/d -json", Command::Status(ask.clone())),
            ("files -json -data-dir=/d", Command::Files(ask.clone())),
            (
                "why -data-dir=/d /var/log/a.log -json",
                Command::Why {
                    what: "/var/log/a.log".into(),
                    ask: ask.clone(),
                },
            ),
            (
                "version -check-state --data-dir /d --json",
                Command::Version {
                    check_state: true,
                    ask: ask.clone(),
                },
            ),
            (
                "doctor -output x.tar -json -data-dir /d",
                Command::Doctor {
                    output: Some("x.tar".into()),
                    ask: ask.clone(),
                },
            ),
            (
                "log-level debug -for 5m -data-dir /d -json",
                Command::LogLevel {
                    level: slog::Level::Debug,
                    revert_after: Some(seconds(300)),
                    ask,
                },
            ),
            (
                "plugins",
                Command::Plugins {
                    name: None,
                    json: false,
                    markdown: false,
                },
            ),
            (
                "plugins file:v1 -json",
                Command::Plugins {
                    name: Some("file:v1".into()),
                    json: true,
                    markdown: false,
                },
            ),
        ] {
            assert_eq!(read(line), Ok(command), "{line}");
        }
        let waits = |line: &str| match read(line) {
            Ok(Command::Restart { wait, options, .. }) => (wait, options.once),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(waits("restart"), (None, false));
        assert_eq!(waits("restart -wait -once"), (Some(seconds(3600)), true));
        assert_eq!(waits("restart -wait 10m -once"), (Some(seconds(600)), true));
        let purpose = |line: &str| read(line).unwrap().settings().map(|(_, purpose)| purpose);
        assert_eq!(purpose("-input=file"), Some(Purpose::Run));
        assert_eq!(purpose("start -config x"), Some(Purpose::Start { foreground: false }));
        assert_eq!(
            purpose("-config x start -foreground"),
            Some(Purpose::Start { foreground: true })
        );
        assert_eq!(purpose("check -online"), Some(Purpose::Check));
        assert_eq!(purpose("try -sample - -filter=grep"), Some(Purpose::Try));
        assert_eq!(purpose("stop"), None);
    }
    #[test]
    fn not_built_yet() {
        for name in NOT_BUILT {
            let refused = Leave::wrong(format!("`agent {name}` is not built yet"));
            assert_eq!(read(&format!("{name} --whatever x")), Err(refused.clone()));
            assert_eq!(read(&format!("-config x {name}")), Err(refused));
        }
        for (line, option) in [
            ("-influxdb-addr=http://127.0.0.1:8086", "-influxdb-addr"),
            ("start --influxdb-addr http://127.0.0.1:8086", "--influxdb-addr"),
            ("-influxdb-addr http://x", "-influxdb-addr"),
        ] {
            assert_eq!(
                read(line),
                Err(Leave::wrong(format!("the option `{option}` is not built yet")))
            );
        }
    }
    #[test]
    fn wrong_usage() {
        for (line, text) in [
            (
                "-inptu=file",
                "unknown option `--inptu` of `agent`, accepted: --config, --data-dir, --pid-file, --agent-id, --agent-group, \
                 --etcd-endpoint, --input, --filter, --output, --filepath, --set, --http-address, --max-read-channel-size, \
                 --max-write-channel-size, --max-write-bulk-size, --log-level, --once, --version, --help, -f; \
                 did you mean `--input`?",
            ),
            (
                "stop -input=file",
                "unknown option `--input` of `agent stop`, accepted: --timeout, --force, --config, --data-dir, --pid-file, --help",
            ),
            (
                "strat",
                "unknown command `strat`, accepted: start, stop, restart, reload, status, version, check, plugins, try, jobs, nodes, files, why, doctor, \
                 etcd-roles, log-level, help; did you mean `start`?",
            ),
            (
                "status now",
                "unknown word `now` of `agent status`, accepted: --config, --data-dir, --pid-file, --json, --help",
            ),
            (
                "-config",
                "a value is required for '--config <FILE>' but none was supplied; see `agent --help`",
            ),
            (
                "stop --timeout 30",
                "invalid value '30' for '--timeout <DURATION>': found \"30\", accepted: a duration with its unit as in \"200ms\", \
                 \"30s\", \"5m\", \"1h30m\" or \"7d\"; see `agent stop --help`",
            ),
            (
                "log-level loud",
                "invalid value 'loud' for '<LEVEL>': found \"loud\", accepted: critical, error, warning, info, debug, trace; see \
                 `agent log-level --help`",
            ),
            (
                "why",
                "the following required arguments were not provided: <WHAT>; see `agent why --help`",
            ),
            (
                "-once=maybe",
                "unexpected value 'maybe' for '--once' found; no more were expected; see `agent --help`",
            ),
        ] {
            assert_eq!(read(line), Err(Leave::wrong(text)), "{line}");
        }
    }
    #[test]
    fn help_lists_all() {
        for line in ["-help", "--help", "-h", "help"] {
            let Err(Leave { text, code: 0 }) = read(line) else {
                panic!("{line}")
            };
            for word in [
                "start",
                "log-level",
                "-f <JSON>",
                "--http-address <HOST:PORT>",
                "one dash or two",
                "64 wrong usage",
            ] {
                assert!(text.contains(word), "{line}: {word} is not in\n{text}");
            }
            assert!(!text.contains('\u{1b}'));
        }
        let Err(Leave { text, code: 0 }) = read("stop --help") else {
            panic!()
        };
        assert!(text.contains("[default: 30s]") && !text.contains("--input"), "{text}");
    }
    #[cfg(unix)]
    #[test]
    fn paths_need_not_be_text() {
        use std::os::unix::ffi::OsStringExt;
        let word = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let options = match parse([word(b"agent"), word(b"-config=/tmp/\xff")]) {
            Ok(Command::Run(options)) => options,
            other => panic!("{other:?}"),
        };
        assert_eq!(options.place.config.unwrap().into_os_string(), word(b"/tmp/\xff"));
        assert_eq!(
            parse([word(b"agent"), word(b"-agent-id"), word(b"\xff")])
                .unwrap_err()
                .code,
            64
        );
    }
    proptest::proptest! {
        #[test]
        fn any_line_is_answered(words in proptest::collection::vec("-{0,2}[a-z=,{}f\u{e9}-]{0,12}", 0..6)) {
            if let Err(leave) = parse(std::iter::once("agent".to_owned()).chain(words)) {
                assert!(matches!(leave.code, 0 | 64) && !leave.text.is_empty());
            }
        }
    }
}
