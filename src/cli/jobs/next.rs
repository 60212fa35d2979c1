//! `agent jobs next '<express>'`: one RFC 3339 instant a line. What is refused: exit 64, with the reason.
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::super::{Done, Failed, print, show};
use crate::{
    clock,
    schedule::{self, Schedule},
};

#[derive(clap::Args, Clone, Debug, PartialEq)]
pub struct Next {
    /// As in a job: 5 or 6 fields, @daily, @every 90s, …
    express: String,
    /// The zone of an expression that names none [default: this host's]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// After this instant, RFC 3339 [default: now]; `@every` counts from it
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// So many
    #[arg(short = 'n', value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    n: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(next: &Next) -> Done {
    let zone = match &next.tz {
        None => TimeZone::system(),
        Some(name) => schedule::zone(name)
            .ok_or_else(|| Failed::usage(format!("--tz: found {name:?}, accepted: {}", schedule::ZONES)))?,
    };
    let from: Timestamp = match &next.from {
        None => clock::system().wall(),
        Some(text) => text.parse().map_err(|_| {
            Failed::usage(format!(
                "--from: found {text:?}, accepted: an instant as 2026-01-31T08:00:00Z"
            ))
        })?,
    };
    let schedule =
        Schedule::parse(&next.express, &zone).map_err(|error| Failed::usage(format!("{:?}: {error}", next.express)))?;
    let all = lines(&schedule, from, next.n);
    if all.is_empty() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"agent: no instant within five years\n");
    }
    if next.json {
        let all = all
            .iter()
            .map(|(at, second)| json!({ "at": at, "second_pass": second }))
            .collect::<Vec<_>>();
        print(&show::json(&json!({ "next": all })));
    } else {
        for (at, second) in all {
            print(&format!("{at}{}", if second { " (second pass)" } else { "" }));
        }
    }
    Ok(0)
}
/// In the schedule's own zone; and whether the clock has shown that time before.
fn lines(schedule: &Schedule, from: Timestamp, n: u32) -> Vec<(String, bool)> {
    let mut at = from;
    let mut all = vec![];
    for _ in 0..n {
        // `@every` counts from where it began, not from the last beat.
        let Some(next) = schedule.next_from(from, at) else {
            break;
        };
        at = next;
        let zone = schedule.zone();
        let shown = match *zone == TimeZone::UTC {
            true => next.to_string(),
            false => next.display_with_offset(zone.to_offset(next)).to_string(),
        };
        all.push((shown, schedule.is_second_pass(next)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autumn_night_is_marked() {
        let zone = schedule::zone("America/New_York").unwrap();
        let schedule = Schedule::parse("30 1 * * *", &zone).unwrap();
        let lines = lines(&schedule, "2024-11-02T12:00:00Z".parse().unwrap(), 3);
        let lines = lines
            .iter()
            .map(|(at, second)| (at.as_str(), *second))
            .collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                ("2024-11-03T01:30:00-04:00", false),
                ("2024-11-03T01:30:00-05:00", true),
                ("2024-11-04T01:30:00-05:00", false),
            ]
        );
    }
}
