//! Every way of rotating a log × what the agent is doing meanwhile × both versions of the input, as a table of exact counts
//! (`make rotation-matrix` prints it). Nothing is lost and nothing doubled, but for what nobody can have: lines written while the agent
//! was stopped to a file that is deleted before it is back.
#![allow(clippy::disallowed_methods, reason = "real files")]
mod kit {
    #[allow(dead_code, reason = "other tests use the rest of it")]
    pub mod files;
}

use std::{collections::HashMap, fs, os::unix::fs::symlink, time::Duration};

use kit::files::{Rig, lines, text};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// Lines of the old file that are there at first, those that are written before the rotation, and those of the new file.
const FIRST: usize = 40_000;
const MORE: usize = 1_000;
const NEW: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rotation {
    Rename,
    Copytruncate,
    DeleteCreate,
    SymlinkSwitch,
    Compress,
}
use Rotation::*;
#[derive(Clone, Copy, Debug, PartialEq)]
enum Agent {
    Running,
    Stopped,
    Lagging,
}
use Agent::*;

struct Row {
    written: usize,
    delivered: usize,
    missing: usize,
    doubled: usize,
    disordered: usize,
}
fn rotate(rotation: Rotation, agent: Agent, other_version: bool) -> Row {
    let links = rotation == SymlinkSwitch;
    let paths = if links { "{dir}/current.log" } else { "{dir}/app.log*" };
    let mut rig = Rig::new(json!({ "paths": [paths], "read_compressed": true }));
    rig.other_version = other_version;
    let (old, new) = if links { ("old", "new") } else { ("app.log", "app.log") };
    rig.append(old, lines("old", 1..=FIRST));
    if links {
        symlink(rig.path(old), rig.path("current.log")).unwrap();
    }
    match agent {
        Running => rig.run(SECOND),
        Stopped => {
            rig.run(SECOND);
            rig.stop();
        }
        Lagging => rig.read_once(1), // one chunk of several
    }
    rig.append(old, lines("old", FIRST + 1..=FIRST + MORE));
    match rotation {
        Rename | Compress => fs::rename(rig.path("app.log"), rig.path("app.log.1")).unwrap(),
        Copytruncate => {
            fs::copy(rig.path("app.log"), rig.path("app.log.1")).unwrap();
            fs::write(rig.path("app.log"), "").unwrap();
        }
        DeleteCreate => fs::remove_file(rig.path("app.log")).unwrap(),
        SymlinkSwitch => {
            symlink(rig.path(new), rig.path("next")).unwrap();
            fs::rename(rig.path("next"), rig.path("current.log")).unwrap();
        }
    }
    rig.append(new, lines("new", 1..=NEW));
    if rotation == Compress {
        rig.pack("app.log.1");
    }
    rig.run(60 * SECOND);
    assert_eq!(
        rig.restart_and_count(),
        0,
        "{rotation:?} {agent:?}: again after a clean restart"
    );

    let all = (1..=FIRST + MORE).map(|seq| text("old", seq));
    let all = all.chain((1..=NEW).map(|seq| text("new", seq))).collect::<Vec<_>>();
    let mut times = HashMap::<&str, usize>::new();
    for line in &rig.got {
        *times.entry(line).or_default() += 1;
    }
    let of_old = rig
        .got
        .iter()
        .filter(|line| line.starts_with("old "))
        .collect::<Vec<_>>();
    let of_new = rig
        .got
        .iter()
        .filter(|line| line.starts_with("new "))
        .collect::<Vec<_>>();
    let disordered = [of_old, of_new]
        .iter()
        .map(|of| of.windows(2).filter(|two| two[0] > two[1]).count())
        .sum();
    let missing = all.iter().filter(|line| !times.contains_key(line.as_str())).count();
    let doubled = times.values().map(|times| times - 1).sum();
    assert_eq!(
        times.len() + missing,
        all.len(),
        "{rotation:?} {agent:?}: lines that nobody wrote"
    );
    Row {
        written: all.len(),
        delivered: rig.got.len(),
        missing,
        doubled,
        disordered,
    }
}

#[test]
fn every_rotation_in_every_state_with_both_versions() {
    println!(
        "\n{:<14} {:<8} {:<8} {:>8} {:>9} {:>8} {:>8} {:>10}",
        "rotation", "agent", "input", "written", "delivered", "missing", "doubled", "disordered"
    );
    let mut faults = Vec::new();
    for rotation in [Rename, Copytruncate, DeleteCreate, SymlinkSwitch, Compress] {
        for agent in [Running, Stopped, Lagging] {
            for other_version in [false, true] {
                let row = rotate(rotation, agent, other_version);
                let nobody_can = if (rotation, agent) == (DeleteCreate, Stopped) {
                    MORE
                } else {
                    0
                };
                let version = if other_version { "file:v2" } else { "file:v1" };
                println!(
                    "{:<14} {:<8} {:<8} {:>8} {:>9} {:>8} {:>8} {:>10}{}",
                    format!("{rotation:?}"),
                    format!("{agent:?}"),
                    version,
                    row.written,
                    row.delivered,
                    row.missing,
                    row.doubled,
                    row.disordered,
                    if nobody_can > 0 {
                        "  deleted before anybody could read it"
                    } else {
                        ""
                    },
                );
                if (row.missing, row.doubled, row.disordered) != (nobody_can, 0, 0) {
                    faults.push(format!("{rotation:?} {agent:?} {version}"));
                }
            }
        }
    }
    assert_eq!(faults, Vec::<String>::new());
}
