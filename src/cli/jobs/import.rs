//! `crontab -l | agent jobs import --user NAME`: a crontab's lines as jobs. What cron does and a job cannot is said, line by line, and
//! not done.
use serde_json::{Value, json};

use super::{
    super::{Done, Failed, args::Ask, print},
    Of, known, put_one,
};
use crate::schedule::Schedule;

/// One line of a crontab.
#[derive(Debug, PartialEq)]
enum Line {
    Job {
        task_id: String,
        value: Value,
    },
    /// Why it is not taken over.
    Refused(String),
}

pub fn run(user: &str, crontab: &str, yes: bool, ask: &Ask) -> Done {
    let lines = understand(user, crontab);
    if lines.is_empty() {
        return Err(Failed::new("the crontab holds no line with a command"));
    }
    let there = if yes { known(ask)? } else { Default::default() };
    let mut refused = 0;
    for (number, line) in &lines {
        match line {
            Line::Refused(why) => {
                refused += 1;
                print(&format!("line {number}: not taken over: {why}"));
            }
            Line::Job { task_id, value } if !yes => print(&format!("line {number}: job {task_id} {value}")),
            Line::Job { task_id, .. } if there.contains(task_id) => {
                print(&format!("line {number}: job {task_id} is there already"))
            }
            Line::Job { task_id, value } => {
                let of = Of {
                    ask: ask.clone(),
                    ..Of::default()
                };
                match put_one(task_id, &value.to_string(), false, &of) {
                    Ok(_) => print(&format!("line {number}: job {task_id} put")),
                    Err(error) => {
                        refused += 1;
                        print(&format!("line {number}: not taken over: {}", error.text));
                    }
                }
            }
        }
    }
    if !yes {
        print("nothing was done; --yes does it");
    }
    Ok(u8::from(refused > 0))
}

fn understand(user: &str, crontab: &str) -> Vec<(usize, Line)> {
    let (mut env, mut shell, mut tz) = (serde_json::Map::new(), "sh", None::<String>);
    let mut all = vec![];
    for (at, line) in crontab.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = at + 1;
        if let Some((name, value)) = setting(line) {
            match name {
                "SHELL" if value.ends_with("/bash") => shell = "bash",
                "SHELL" if value.ends_with("/sh") => shell = "sh",
                "SHELL" => all.push((
                    number,
                    Line::Refused(format!("SHELL={value}: an executor of the settings can do that")),
                )),
                "CRON_TZ" | "TZ" => tz = Some(value.to_owned()),
                "MAILTO" | "MAILFROM" | "HOME" | "LOGNAME" | "USER" => {} // output is kept; the others are the user's
                _ => {
                    env.insert(name.to_owned(), value.into());
                }
            }
            continue;
        }
        all.push((number, job(user, line, shell, tz.as_deref(), &env)));
    }
    all
}
/// `NAME=value`, with or without quotes.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let (name, value) = (name.trim_end(), value.trim());
    let named =
        name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && name.starts_with(|c: char| !c.is_ascii_digit());
    let bare = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    (named && !name.is_empty()).then_some((name, bare.unwrap_or(value)))
}
fn job(user: &str, line: &str, shell: &str, tz: Option<&str>, env: &serde_json::Map<String, Value>) -> Line {
    let words = if line.starts_with('@') { 1 } else { 5 };
    let mut rest = line;
    let mut fields = vec![];
    for _ in 0..words {
        let Some((word, tail)) = rest.split_once(|c: char| c.is_whitespace()) else {
            return Line::Refused(format!("found {line:?}, accepted: {words} fields and a command"));
        };
        fields.push(word);
        rest = tail.trim_start();
    }
    if fields[0] == "@reboot" {
        return Line::Refused("@reboot: a service manager does that".into());
    }
    let days = sunday(fields.last().copied().unwrap_or_default());
    if words == 5 {
        fields[4] = &days;
    }
    let express = fields.join(" ");
    if let Err(error) = Schedule::parse(&express, &jiff::tz::TimeZone::UTC) {
        return Line::Refused(error);
    }
    // An unescaped % is a line end, and what follows the first is the command's input.
    let mut cmd = String::new();
    let mut escaped = false;
    for c in rest.chars() {
        match (c, escaped) {
            ('%', true) => {
                cmd.pop();
                cmd.push('%');
            }
            ('%', false) => return Line::Refused("an unescaped % gives the command input, which a job has not".into()),
            _ => cmd.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    let mut value = json!({ "cmd": cmd, "express": express, "executor": shell, "user": user });
    if let Some(tz) = tz {
        value["tz"] = tz.into();
    }
    if !env.is_empty() {
        value["env"] = Value::Object(env.clone());
    }
    let hash = xxhash_rust::xxh3::xxh3_64(value.to_string().as_bytes());
    let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name = user.chars().filter(fits).take(64).collect::<String>();
    Line::Job {
        task_id: format!("cron-{name}-{:08x}", hash as u32),
        value,
    }
}
/// cron takes 7 for Sunday too.
fn sunday(days: &str) -> String {
    let part = |part: &str| match part {
        "7" => "0".to_owned(),
        _ => match part.strip_suffix("-7") {
            Some("0") => "*".to_owned(),
            Some(first) => format!("{first}-6,0"),
            None => part.to_owned(),
        },
    };
    days.split(',').map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crontab_line_by_line() {
        let crontab = "# mine\nMAILTO=me@example.org\nA = \"x y\"\nSHELL=/bin/bash\n\n\
            */5 1-3 * * 1-5  /opt/backup --all  >/dev/null\n@daily date +\\%F\nCRON_TZ=Asia/Tokyo\n0 0 * * 5-7 x\n\
            @reboot start\n0 0 * * * mail me%hello\n61 * * * * x\n* * *\n";
        let lines = understand("web", crontab);
        let shown = lines.iter().map(|(number, line)| match line {
            Line::Job { value, .. } => format!("{number} {value}"),
            Line::Refused(why) => format!("{number} {why}"),
        });
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                r#"6 {"cmd":"/opt/backup --all  >/dev/null","express":"*/5 1-3 * * 1-5","executor":"bash","user":"web","env":{"A":"x y"}}"#,
                r#"7 {"cmd":"date +%F","express":"@daily","executor":"bash","user":"web","env":{"A":"x y"}}"#,
                r#"9 {"cmd":"x","express":"0 0 * * 5-6,0","executor":"bash","user":"web","tz":"Asia/Tokyo","env":{"A":"x y"}}"#,
                "10 @reboot: a service manager does that",
                "11 an unescaped % gives the command input, which a job has not",
                r#"12 minute: found "61", accepted: *, or 0 to 59, as 1, 1-5, */2 or 1-5/2"#,
                r#"13 found "* * *", accepted: 5 fields and a command"#,
            ]
        );
        let ids = lines.iter().filter_map(|(_, line)| match line {
            Line::Job { task_id, .. } => Some(task_id.clone()),
            Line::Refused(_) => None,
        });
        let ids = ids.collect::<std::collections::BTreeSet<_>>();
        assert_eq!(ids.len(), 3);
        assert!(
            ids.iter()
                .all(|id| crate::model::job::is_task_id(id) && id.starts_with("cron-web-"))
        );
    }
}
