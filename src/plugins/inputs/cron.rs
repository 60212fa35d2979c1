//! A command's lines, on a schedule: mafio's input `cron`. A thread of its own waits, starts the command as the jobs' executors do (process
//! group and sweep, timeout, nothing left behind) and passes what it writes into a pipe; the rest is `stdin`'s work on the other end of
//! that pipe. A pipe that is full holds the command up, so memory is bounded whatever it writes.
use std::{os::fd::OwnedFd, thread::JoinHandle, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::Sender,
    sync::{mpsc, oneshot, watch},
};

use super::{stdin::Stdin, *};
use crate::{
    executors::{End, Executors, Order, Outcome, Processes, Stop},
    model::{RunId, Size, Span},
    os::Exit,
    plugins::{
        BadValue, Opt,
        framing::{self, OnLongLine, Rules},
    },
    schedule::{self, Schedule},
};

pub const PLUGIN: Plugin<Build> = Plugin {
    name: "cron",
    tag: "v1",
    stable: true,
    about: "Runs a command on a schedule; each line that it writes is an event",
    delivery: "Cannot be read again: what the command has written is lost if the agent is killed before delivery. A stop ends a present run \
               and delivers what it has written. An instant that comes during a run is skipped",
    options: &[
        Opt {
            name: "cmd",
            default: "required",
            about: "What is run, as in a job: a text for the executor.",
        },
        Opt {
            name: "express",
            default: "required",
            about: "When, as in a job: five fields, or six with seconds first, `@every 30s`, `@hourly`, …",
        },
        Opt {
            name: "tz",
            default: "the host's",
            about: "The zone in which `express` is read, as \"Asia/Shanghai\".",
        },
        Opt {
            name: "executor",
            default: "\"bash\"",
            about: "bash, sh, python3, or exec: a program without a shell, with `args`.",
        },
        Opt {
            name: "args",
            default: "[]",
            about: "Arguments of the command.",
        },
        Opt {
            name: "env",
            default: "{}",
            about: "Further variables of its environment.",
        },
        Opt {
            name: "dir",
            default: "the user's home",
            about: "Where it runs; a path that begins with /.",
        },
        Opt {
            name: "user",
            default: "the agent's",
            about: "As whom it runs; another than the agent's own only if that is root.",
        },
        Opt {
            name: "timeout",
            default: "\"1m\"",
            about: "A run that takes longer is ended, with all that it has started: SIGTERM, then SIGKILL.",
        },
        Opt {
            name: "kill_after",
            default: "\"5s\"",
            about: "Between SIGTERM and SIGKILL.",
        },
        framing::MAX_LINE,
        framing::ON_LONG_LINE,
    ],
    sample: r#"{ plugin = "cron", express = "@every 30s", cmd = "df -P" }"#,
    check: |table| checked(table).map(drop),
    build: |table, context| {
        let (plan, rules) = checked(table)?;
        let cron = Cron::new(plan, rules, context);
        Ok(Box::new(cron.map_err(|why| {
            PluginError::Failed(format!("could not set up the input cron: {why}"))
        })?))
    },
};

/// The options as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    cmd: String,
    express: String,
    tz: Option<String>,
    #[serde(default = "bash")]
    executor: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: std::collections::BTreeMap<String, String>,
    dir: Option<String>,
    user: Option<String>,
    #[serde(default = "minute")]
    timeout: Span,
    #[serde(default = "five_seconds")]
    kill_after: Span,
    #[serde(default = "framing::default_max_line")]
    max_line: Size,
    #[serde(default)]
    on_long_line: OnLongLine,
}
fn bash() -> String {
    "bash".into()
}
fn minute() -> Span {
    Span(Duration::from_secs(60))
}
fn five_seconds() -> Span {
    Span(Duration::from_secs(5))
}

/// What is run, and when.
struct Plan {
    schedule: Schedule,
    /// All but the run's own: its id and its instant.
    order: Order,
}
fn checked(table: &Table) -> Result<(Plan, Rules), BadValue> {
    let options: Options = table.read()?;
    let refused = |key: &str, message: String| Err(BadValue::new(key, message));
    let has_nul = |text: &String| text.contains('\0');
    if options.cmd.trim().is_empty() || has_nul(&options.cmd) {
        return refused("cmd", format!("found {:?}, accepted: a command", options.cmd));
    }
    if options.args.iter().any(has_nul) {
        return refused("args", "found a NUL, accepted: texts without".into());
    }
    let bad_name = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if let Some((name, _)) = options
        .env
        .iter()
        .find(|(name, value)| bad_name(name) || has_nul(value))
    {
        return refused(
            "env",
            format!("found {name:?}, accepted: names without `=`, and no NUL"),
        );
    }
    if let Some(dir) = options.dir.as_ref().filter(|dir| !dir.starts_with('/') || has_nul(dir)) {
        return refused("dir", format!("found {dir:?}, accepted: a path that begins with /"));
    }
    let zone = match &options.tz {
        None => TimeZone::system(),
        Some(name) => match schedule::zone(name) {
            Some(zone) => zone,
            None => return refused("tz", format!("found {name:?}, accepted: {}", schedule::ZONES)),
        },
    };
    let schedule = match Schedule::parse(&options.express, &zone) {
        Ok(schedule) => schedule,
        Err(why) => {
            let message = format!(
                "found {:?}, accepted: a schedule as \"*/5 * * * *\" ({why})",
                options.express
            );
            return refused("express", message);
        }
    };
    let executors = Executors::new([]);
    let Some(executor) = executors.get(&options.executor) else {
        let message = format!(
            "found {:?}, accepted: {}",
            options.executor,
            executors.names().join(", ")
        );
        return refused("executor", message);
    };
    if options.timeout.0.is_zero() {
        return refused("timeout", "found 0s, accepted: more than zero".into());
    }
    let (program, args) = executor.argv(&options.cmd, &options.args);
    let order = Order {
        run_id: String::new(),
        task_id: String::new(),
        fire_time: String::new(),
        program,
        args,
        env: options.env.into_iter().collect(),
        dir: options.dir,
        user: options.user,
        timeout: Some(options.timeout.0),
        kill_after: options.kill_after.0,
        leave_children: false,
    };
    Ok((
        Plan { schedule, order },
        Rules::new(options.max_line, options.on_long_line)?,
    ))
}

/// Clocks are set and machines sleep: the wall clock is looked at at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Reads of the command's output on their way into the pipe, of up to 64 KiB each.
const PIECES: usize = 2;

pub struct Cron {
    lines: Stdin,
    /// Tells the thread to end; so does dropping it.
    stop: watch::Sender<Option<Stop>>,
    thread: Option<JoinHandle<()>>,
}
impl Cron {
    fn new(plan: Plan, rules: Rules, context: InputContext) -> Result<Self, String> {
        let (out, into) = std::io::pipe().map_err(|error| format!("no pipe: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .map_err(|error| format!("no runtime: {error}"))?;
        let (stop, stopped) = watch::channel(None);
        let work = Work {
            plan,
            once: context.once,
            clock: context.clock.clone(),
            log: context.log.new(slog::o!("input" => "cron")),
            tally: context.tally.clone(),
            pipeline: context.pipeline.clone(),
            stop: stopped,
            last: String::new(),
        };
        let thread = std::thread::Builder::new()
            .name("cron-input".into())
            .spawn(move || {
                runtime.block_on(work.go(into.into()));
                // A look-up of a user that hangs must not hold the thread.
                runtime.shutdown_background();
            })
            .map_err(|error| format!("no thread: {error}"))?;
        Ok(Self {
            lines: Stdin::over(out.into(), rules, context),
            stop,
            thread: Some(thread),
        })
    }
    fn end(&self) {
        self.stop.send_replace(Some(Stop::Kill("stop".into())));
    }
}
impl Input for Cron {
    fn read(&mut self, want: Want, into: &mut Vec<Chunk>) -> Result<Next, InputError> {
        let next = self.lines.read(want, into)?;
        if next == Next::Ended
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join(); // it has closed the pipe, so it is at its end
        }
        Ok(next)
    }
    fn read_at_once(&mut self, want: Want, into: &mut Vec<Chunk>) -> Option<Result<Next, InputError>> {
        self.lines.read_at_once(want, into)
    }
    /// The present run is ended; what it has written is in the pipe, and comes still.
    fn no_more(&mut self) {
        self.end();
    }
    fn rewinds(&self) -> bool {
        false
    }
}
impl Drop for Cron {
    fn drop(&mut self) {
        self.end(); // the thread sees to it, and ends by itself
    }
}

/// What the thread does.
struct Work {
    plan: Plan,
    once: bool,
    clock: SharedClock,
    log: slog::Logger,
    tally: SharedTally,
    pipeline: Arc<str>,
    stop: watch::Receiver<Option<Stop>>,
    /// What went wrong last: said when it changes.
    last: String,
}
impl Work {
    async fn go(mut self, into: OwnedFd) {
        let mut into = match Sender::from_owned_fd(into) {
            Ok(into) => into,
            Err(error) => {
                slog::error!(self.log, "could not set up its pipe"; "error" => %error);
                return;
            }
        };
        if self.once {
            let now = self.clock.wall();
            self.run(now, &mut into).await;
            return;
        }
        let anchor = self.clock.wall();
        let mut after = anchor;
        while let Some(due) = self.plan.schedule.next_from(anchor, after) {
            if !self.wait_until(due).await || !self.run(due, &mut into).await {
                return;
            }
            let now = self.clock.wall();
            let (passed, last) = self.plan.schedule.passed(anchor, due, now);
            if passed > 0 {
                self.tally.count("runs_skipped", passed);
            }
            // The clock may have been set back: an instant that was run is not run again.
            after = last.unwrap_or(due);
        }
        slog::warn!(self.log, "the schedule has no instant left");
        self.stopped().await;
    }
    /// False: stop.
    async fn wait_until(&mut self, due: Timestamp) -> bool {
        loop {
            let ahead = due.duration_since(self.clock.wall());
            let Ok(ahead) = Duration::try_from(ahead) else {
                return true;
            };
            if ahead.is_zero() {
                return true;
            }
            let nap = tokio::time::sleep(ahead.min(LONGEST_SLEEP));
            tokio::select! {
                () = nap => {}
                () = self.stopped() => return false,
            }
        }
    }
    async fn stopped(&self) {
        // An error: whoever could ask for it is gone, which is the same.
        let _ = self.stop.clone().wait_for(Option::is_some).await;
    }

    /// False: stop.
    async fn run(&mut self, due: Timestamp, into: &mut Sender) -> bool {
        let mut chance = [0; 10];
        if let Err(error) = getrandom::fill(&mut chance) {
            slog::error!(self.log, "no random numbers"; "error" => %error);
        }
        let order = Order {
            run_id: RunId::new(self.clock.wall(), chance).to_string(),
            task_id: format!("input-{}", self.pipeline),
            fire_time: due.to_string(),
            ..self.plan.order.clone()
        };
        let (pieces, passed) = mpsc::channel(PIECES);
        let (started, _) = oneshot::channel();
        let processes = Processes { cgroups: true };
        let run = processes.pass(order, pieces, self.stop.clone(), started);
        let (outcome, written) = tokio::join!(run, pass(passed, into));
        self.tally.count("runs", 1);
        self.note(outcome);
        if let Err(error) = written {
            slog::error!(self.log, "could not pass on what the command wrote"; "error" => %error);
            return false;
        }
        self.stop.borrow().is_none() && self.stop.has_changed().is_ok()
    }
    fn note(&mut self, outcome: Outcome) {
        let (count, said) = match outcome.end {
            End::Exited(Exit::Code(0)) | End::Left => (None, String::new()),
            End::Exited(Exit::Code(code)) => (Some("runs_failed"), format!("it ended with code {code}")),
            End::Exited(Exit::Signal(signal)) => (Some("runs_failed"), format!("signal {signal} ended it")),
            End::TimedOut => (Some("runs_timed_out"), "it was ended at its timeout".into()),
            End::Killed(_) => (None, String::new()),
            End::NotStarted(why) => (Some("runs_failed"), why),
        };
        count.into_iter().for_each(|name| self.tally.count(name, 1));
        if !outcome.unkillable.is_empty() {
            slog::warn!(self.log, "processes of the command cannot be killed"; "pids" => ?outcome.unkillable);
        }
        if said != self.last {
            match said.is_empty() {
                true => slog::info!(self.log, "the command is well again"),
                false => slog::warn!(self.log, "the command did not do well"; "why" => &said),
            }
            self.last = said;
        }
    }
}
/// Into the pipe, as fast as the other end takes it. Runs do not share a line.
async fn pass(mut pieces: mpsc::Receiver<Vec<u8>>, into: &mut Sender) -> std::io::Result<()> {
    let mut last = b'\n';
    while let Some(piece) = pieces.recv().await {
        into.write_all(&piece).await?;
        last = piece.last().copied().unwrap_or(last);
    }
    if last != b'\n' {
        into.write_all(b"\n").await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
