use super::*;
use crate::model::JobState;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}
fn agenda() -> Agenda {
    with_memories(HashMap::new())
}
fn with_memories(memories: HashMap<String, JobMemory>) -> Agenda {
    Agenda::new(Limits::default(), Guards::default(), Duration::from_secs(60), memories)
}
fn entry(task: &str, value: &str, revision: i64) -> JobEntry {
    JobEntry {
        key: JobKey::host("10.0.0.1", task),
        value: value.to_owned().into(),
        create_revision: 1,
        mod_revision: revision,
        signed: Signed::Unasked,
    }
}
fn job(express: &str, more: &str) -> String {
    format!(r#"{{"cmd": "date", "express": "{express}"{more}}}"#)
}
fn put(agenda: &mut Agenda, entries: Vec<JobEntry>, now: &str) -> Applied {
    let change = JobsChanged {
        full: false,
        put: entries,
        removed: vec![],
    };
    agenda.apply(change, at(now))
}
/// Planned instants, causes, and what was missed.
fn due(agenda: &mut Agenda, now: &str) -> Vec<String> {
    let mut shown = vec![];
    for due in agenda.take_due(at(now)) {
        let task = agenda.get(due.job).unwrap().key.task_id.clone();
        if let Some((count, last)) = due.missed {
            shown.push(format!("{task} missed {count} to {last}"));
        }
        for firing in due.fire {
            shown.push(format!("{task} {} {}", firing.cause.word(), firing.planned));
            agenda.note_run(due.job, firing.planned, firing.before);
        }
    }
    shown
}
/// As it would be after a restart: what was written, and the same jobs told anew.
fn restarted(agenda: &mut Agenda, entries: Vec<JobEntry>, now: &str) -> Agenda {
    let written = agenda
        .take_changed(&[], usize::MAX)
        .into_iter()
        .filter_map(|(job, memory)| Some((job, memory?)));
    let mut next = with_memories(written.collect());
    put(&mut next, entries, now);
    next
}
fn next(agenda: &Agenda, task: &str) -> Option<String> {
    let (_, job) = agenda.by_key(&JobKey::host("10.0.0.1", task))?;
    job.next.map(|at| at.to_string())
}

#[test]
fn each_instant_is_due_once() {
    let mut agenda = agenda();
    put(
        &mut agenda,
        vec![
            entry("a", &job("* * * * *", ""), 1),
            entry("b", &job("*/2 * * * *", ""), 1),
        ],
        "2024-01-15T10:00:30Z",
    );
    assert_eq!(agenda.next_at(), Some(at("2024-01-15T10:01:00Z")));
    assert_eq!(due(&mut agenda, "2024-01-15T10:00:59.9Z"), [""; 0]);
    assert_eq!(
        due(&mut agenda, "2024-01-15T10:01:00.004Z"),
        ["a planned 2024-01-15T10:01:00Z"]
    );
    assert_eq!(due(&mut agenda, "2024-01-15T10:01:00.005Z"), [""; 0]);
    assert_eq!(
        due(&mut agenda, "2024-01-15T10:02:02Z"),
        ["a planned 2024-01-15T10:02:00Z", "b planned 2024-01-15T10:02:00Z"]
    );
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-01-15T10:03:00Z"));
}
#[test]
fn a_busy_moment_loses_nothing_of_a_fast_job() {
    let mut agenda = agenda();
    put(
        &mut agenda,
        vec![entry("a", &job("* * * * * *", ""), 1)],
        "2024-01-15T10:00:00Z",
    );
    let planned = |s: u32| format!("a planned 2024-01-15T10:00:0{s}Z");
    assert_eq!(
        due(&mut agenda, "2024-01-15T10:00:03.5Z"),
        [planned(1), planned(2), planned(3)]
    );
}
/// BEHAVIOUR 87: forward steps, suspend and absence look alike.
#[test]
fn what_passed_is_missed_late_or_caught_up() {
    for (more, now, shown) in [
        (
            "",
            "2024-01-15T10:05:04Z",
            vec!["a missed 4 to 2024-01-15T10:04:00Z", "a planned 2024-01-15T10:05:00Z"],
        ),
        (
            "",
            "2024-01-15T10:05:50Z",
            vec!["a missed 4 to 2024-01-15T10:04:00Z", "a late 2024-01-15T10:05:00Z"],
        ),
        (
            "",
            "2024-01-15T13:00:00Z",
            vec!["a missed 179 to 2024-01-15T12:59:00Z", "a planned 2024-01-15T13:00:00Z"],
        ),
    ] {
        let mut agenda = agenda();
        put(
            &mut agenda,
            vec![entry("a", &job("* * * * *", more), 1)],
            "2024-01-15T10:00:30Z",
        );
        assert_eq!(due(&mut agenda, now), shown, "{now}");
        assert_eq!(due(&mut agenda, now), [""; 0]);
    }
    for (more, shown) in [
        ("", vec!["a missed 3 to 2024-01-15T12:00:00Z"]),
        (
            r#", "catch_up": "last""#,
            vec!["a missed 2 to 2024-01-15T11:00:00Z", "a catch_up 2024-01-15T12:00:00Z"],
        ),
    ] {
        let mut agenda = agenda();
        put(
            &mut agenda,
            vec![entry("a", &job("0 * * * *", more), 1)],
            "2024-01-15T09:30:00Z",
        );
        assert_eq!(due(&mut agenda, "2024-01-15T12:30:00Z"), shown);
    }
}
#[test]
fn a_restart_goes_on_where_it_was() {
    let jobs = || {
        vec![
            entry("a", &job("* * * * *", ""), 1),
            entry("b", &job("@every 90s", ""), 1),
        ]
    };
    let mut first = agenda();
    put(&mut first, jobs(), "2024-01-15T10:00:30Z");
    assert_eq!(
        due(&mut first, "2024-01-15T10:01:00Z"),
        ["a planned 2024-01-15T10:01:00Z"]
    );
    // At once: what ran does not run again.
    let mut second = restarted(&mut first, jobs(), "2024-01-15T10:01:20Z");
    assert_eq!(due(&mut second, "2024-01-15T10:01:20Z"), [""; 0]);
    assert_eq!(
        next(&second, "b").as_deref(),
        Some("2024-01-15T10:02:00Z"),
        "the anchor is kept"
    );
    // Later: within the grace one runs late, the others are counted.
    let mut third = restarted(&mut second, jobs(), "2024-01-15T10:04:50Z");
    assert_eq!(
        due(&mut third, "2024-01-15T10:04:50Z"),
        [
            "a missed 2 to 2024-01-15T10:03:00Z",
            "a late 2024-01-15T10:04:00Z",
            "b missed 2 to 2024-01-15T10:03:30Z",
        ]
    );
}
/// BEHAVIOUR 87: a clock that is set back.
#[test]
fn what_ran_does_not_run_again_when_the_clock_is_set_back() {
    let mut agenda = agenda();
    put(
        &mut agenda,
        vec![entry("a", &job("* * * * *", ""), 1)],
        "2024-01-15T10:00:30Z",
    );
    for minute in 1..=5 {
        assert_eq!(due(&mut agenda, &format!("2024-01-15T10:0{minute}:00Z")).len(), 1);
    }
    agenda.clock_set_back(at("2024-01-15T10:02:30Z"));
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-01-15T10:06:00Z"));
    agenda.clock_set_back(at("2024-01-15T09:58:30Z"));
    assert_eq!(
        due(&mut agenda, "2024-01-15T09:59:00Z"),
        ["a planned 2024-01-15T09:59:00Z"]
    );
    assert_eq!(
        due(&mut agenda, "2024-01-15T10:00:00Z"),
        ["a planned 2024-01-15T10:00:00Z"]
    );
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-01-15T10:06:00Z"));
    // And forward again over what ran: neither run nor missed.
    assert_eq!(due(&mut agenda, "2024-01-15T10:05:59Z"), [""; 0]);
    // A day ahead by mistake, and back: the day goes on as if nothing were.
    assert_eq!(
        due(&mut agenda, "2024-01-16T10:06:00Z"),
        [
            "a missed 1440 to 2024-01-16T10:05:00Z",
            "a planned 2024-01-16T10:06:00Z"
        ]
    );
    agenda.clock_set_back(at("2024-01-15T10:06:30Z"));
    assert_eq!(
        due(&mut agenda, "2024-01-15T10:07:00Z"),
        ["a planned 2024-01-15T10:07:00Z"]
    );
}
#[test]
fn both_passes_of_an_autumn_night() {
    let mut agenda = agenda();
    let value = job("30 1 * * *", r#", "tz": "America/New_York""#);
    put(&mut agenda, vec![entry("a", &value, 1)], "2024-11-03T04:00:00Z");
    assert_eq!(
        due(&mut agenda, "2024-11-03T05:30:00Z"),
        ["a planned 2024-11-03T05:30:00Z"]
    );
    assert_eq!(
        due(&mut agenda, "2024-11-03T06:30:00Z"),
        ["a planned 2024-11-03T06:30:00Z"]
    );
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-11-04T06:30:00Z"));
}
#[test]
fn what_passed_while_paused_is_not_missed() {
    let running = || vec![entry("a", &job("* * * * *", ""), 1)];
    let paused = || vec![entry("a", &job("* * * * *", r#", "status": "pause""#), 2)];
    let mut agenda = agenda();
    put(&mut agenda, running(), "2024-01-15T10:00:30Z");
    assert_eq!(
        put(&mut agenda, paused(), "2024-01-15T10:00:40Z").answers[0].state,
        JobState::Paused
    );
    assert_eq!(
        (next(&agenda, "a"), due(&mut agenda, "2024-01-15T10:30:00Z")),
        (None, vec![])
    );
    // Resumed while no agent was there.
    let mut after = restarted(&mut agenda, running(), "2024-01-15T10:40:10Z");
    assert_eq!(due(&mut after, "2024-01-15T10:40:10Z"), [""; 0]);
    assert_eq!(
        due(&mut after, "2024-01-15T10:41:00Z"),
        ["a planned 2024-01-15T10:41:00Z"]
    );
    // By order, until the value changes.
    let (job, _) = after.by_key(&JobKey::host("10.0.0.1", "a")).unwrap();
    assert!(after.order(job, true, at("2024-01-15T10:41:10Z")));
    assert!(!after.order(job, true, at("2024-01-15T10:41:10Z")));
    let mut again = restarted(&mut after, running(), "2024-01-15T11:00:00Z");
    assert_eq!(
        (next(&again, "a"), due(&mut again, "2024-01-15T11:00:00Z")),
        (None, vec![])
    );
    let changed = vec![entry("a", r#"{"cmd": "date -u", "express": "* * * * *"}"#, 3)];
    assert_eq!(
        put(&mut again, changed, "2024-01-15T11:00:10Z").answers[0].state,
        JobState::Ok
    );
    assert_eq!(next(&again, "a").as_deref(), Some("2024-01-15T11:01:00Z"));
}
#[test]
fn another_schedule_begins_anew_and_an_invalid_value_changes_nothing() {
    let mut agenda = agenda();
    put(
        &mut agenda,
        vec![entry("a", &job("* * * * *", ""), 1)],
        "2024-01-15T10:00:30Z",
    );
    assert_eq!(due(&mut agenda, "2024-01-15T10:01:00Z").len(), 1);
    let broken = put(&mut agenda, vec![entry("a", "{", 2)], "2024-01-15T10:01:10Z");
    assert_eq!(
        (broken.answers[0].state, broken.answers[0].cronid),
        (JobState::Invalid, 1)
    );
    assert_eq!(broken.gone, [JobKey::host("10.0.0.1", "a")]);
    let good = put(
        &mut agenda,
        vec![entry("a", &job("* * * * *", ""), 3)],
        "2024-01-15T10:01:20Z",
    );
    assert_eq!((good.answers[0].state, good.answers[0].cronid), (JobState::Ok, 1));
    assert_eq!(due(&mut agenda, "2024-01-15T10:01:20Z"), [""; 0]);
    put(
        &mut agenda,
        vec![entry("a", &job("@every 1h", ""), 4)],
        "2024-01-15T10:10:00Z",
    );
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-01-15T11:10:00Z"));
    // Put again as it is: not touched.
    put(
        &mut agenda,
        vec![entry("a", &job("@every 1h", ""), 4)],
        "2024-01-15T10:20:00Z",
    );
    put(
        &mut agenda,
        vec![entry("a", &job("@every 1h", ""), 5)],
        "2024-01-15T10:30:00Z",
    );
    assert_eq!(next(&agenda, "a").as_deref(), Some("2024-01-15T11:10:00Z"));
}
#[test]
fn an_own_job_shadows_the_groups() {
    let mut agenda = agenda();
    let group = |revision| JobEntry {
        key: JobKey::group("web", "a"),
        ..entry("a", &job("0 * * * *", ""), revision)
    };
    let now = "2024-01-15T10:00:30Z";
    assert_eq!(put(&mut agenda, vec![group(1)], now).answers[0].state, JobState::Ok);
    let own = put(&mut agenda, vec![entry("a", &job("* * * * *", ""), 2)], now);
    assert_eq!(
        own.answers
            .iter()
            .chain(&own.turned)
            .map(|answer| answer.state)
            .collect::<Vec<_>>(),
        [JobState::Ok, JobState::Shadowed]
    );
    assert_eq!(agenda.next_at(), Some(at("2024-01-15T10:01:00Z")));
    assert_eq!(agenda.named(None, "a").unwrap().1.key, JobKey::host("10.0.0.1", "a"));
    assert_eq!(agenda.named(Some("web"), "a").unwrap().1.key, JobKey::group("web", "a"));
    let both = put(&mut agenda, vec![group(3), entry("b", "{}", 3)], now);
    assert_eq!(
        both.answers.iter().map(|answer| answer.state).collect::<Vec<_>>(),
        [JobState::Shadowed, JobState::Invalid]
    );
    let removed = JobsChanged {
        full: false,
        put: vec![],
        removed: vec![JobKey::host("10.0.0.1", "a")],
    };
    let applied = agenda.apply(removed, at("2024-01-15T10:30:00Z"));
    assert_eq!(applied.turned[0].state, JobState::Ok);
    assert_eq!(
        agenda.next_at(),
        Some(at("2024-01-15T11:00:00Z")),
        "and what passed in the shadow is not missed"
    );
}
#[test]
fn a_full_table_takes_away_what_it_does_not_hold() {
    let mut agenda = agenda();
    put(
        &mut agenda,
        vec![
            entry("a", &job("* * * * *", ""), 1),
            entry("b", &job("* * * * *", ""), 1),
        ],
        "2024-01-15T10:00:30Z",
    );
    agenda.take_changed(&[], usize::MAX);
    let full = JobsChanged {
        full: true,
        put: vec![entry("b", &job("* * * * *", ""), 1)],
        removed: vec![],
    };
    let applied = agenda.apply(full, at("2024-01-15T10:00:40Z"));
    assert_eq!((applied.gone, agenda.len()), (vec![JobKey::host("10.0.0.1", "a")], 1));
    assert_eq!(
        agenda.take_changed(&[], usize::MAX),
        [("own/a".to_owned(), None)],
        "b was not touched"
    );
}
#[test]
fn what_is_written_is_bounded_and_starts_come_first() {
    let mut agenda = agenda();
    let put = |ids: std::ops::Range<usize>| JobsChanged {
        full: true,
        put: ids.map(|n| entry(&n.to_string(), &job("* * * * *", ""), 1)).collect(),
        removed: vec![],
    };
    let now = at("2024-01-15T10:00:30Z");
    agenda.apply(put(0..10), now);
    let named = |taken: &[(String, Option<JobMemory>)]| {
        let name =
            |(job, memory): &(String, Option<JobMemory>)| format!("{job}{}", if memory.is_some() { "" } else { "-" });
        taken.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    let taken = agenda.take_changed(&[7, 8], 3);
    assert_eq!(named(&taken), "own/7 own/8 own/0 own/1 own/2");
    assert_eq!(named(&agenda.take_changed(&[7], 100)), "own/3 own/4 own/5 own/6 own/9");
    assert!(agenda.is_taken());

    // 8 and 9 are gone; what could not be written is said again, of those that are there, and of 9 as gone.
    agenda.apply(put(0..8), now);
    let gone = agenda.take_changed(&[], 1);
    assert_eq!(named(&gone), "own/8-");
    agenda.write_again(&taken);
    agenda.write_again(&gone);
    assert_eq!(
        named(&agenda.take_changed(&[], 100)),
        "own/8- own/9- own/0 own/1 own/2 own/7"
    );
    // What somebody was told of does not wait either.
    agenda.apply(put(0..8), now);
    agenda.write_again(&taken);
    assert!(agenda.order(7, true, now));
    assert_eq!(named(&agenda.take_changed(&[], 1)), "own/8- own/7");
    assert_eq!(named(&agenda.take_changed(&[], 100)), "own/0 own/1 own/2");
    // One that comes back is not forgotten after it was remembered.
    agenda.apply(put(0..7), now);
    agenda.apply(put(0..8), now);
    assert_eq!(named(&agenda.take_changed(&[], 100)), "own/7");
    assert!(agenda.is_taken());
}
/// BEHAVIOUR 97, the agenda's part.
#[test]
fn once_is_once() {
    let once = |more: &str| format!(r#"{{"cmd": "date", "type": "once"{more}}}"#);
    let mut agenda = agenda();
    let now = "2024-01-15T10:00:30Z";
    put(&mut agenda, vec![entry("a", &once(""), 1)], now);
    let [job] = agenda.once_jobs()[..] else { panic!("one") };
    agenda.note_once(job);
    assert_eq!(agenda.once_jobs(), [0usize; 0]);
    // Paused, resumed, written again, fields in another order; and after a restart.
    for (value, revision) in [
        (once(r#", "status": "pause""#), 2),
        (once(r#", "status": "running""#), 3),
        (once(""), 4),
        (r#"{"type": "once", "cmd": "date"}"#.to_owned(), 5),
    ] {
        put(&mut agenda, vec![entry("a", &value, revision)], now);
        assert_eq!(agenda.once_jobs(), [0usize; 0], "{value}");
    }
    let mut after = restarted(&mut agenda, vec![entry("a", &once(""), 4)], now);
    assert_eq!(after.once_jobs(), [0usize; 0]);
    // Another value, or put anew after it was gone: another job.
    put(&mut after, vec![entry("a", &once(r#", "timeout": "1m""#), 6)], now);
    assert_eq!(after.once_jobs().len(), 1);
    let anew = JobEntry {
        create_revision: 7,
        ..entry("a", &once(""), 7)
    };
    put(&mut after, vec![anew], now);
    assert_eq!(after.once_jobs().len(), 1);
}
/// BEHAVIOUR 88, the agenda's part: a tick costs what is due.
#[test]
fn a_hundred_thousand_jobs() {
    let mut agenda = agenda();
    let entries = (0..100_000).map(|n| {
        entry(
            &n.to_string(),
            &job(&format!("{} {} * * *", n % 60, n / 60 % 24), ""),
            1,
        )
    });
    let full = JobsChanged {
        full: true,
        put: entries.collect(),
        removed: vec![],
    };
    let applied = agenda.apply(full, at("2024-01-15T10:00:30Z"));
    assert_eq!(
        (applied.answers.len(), agenda.len(), agenda.due.len()),
        (100_000, 100_000, 100_000)
    );
    let due = agenda.take_due(at("2024-01-15T10:01:00Z"));
    assert_eq!(
        due.len(),
        (0..100_000).filter(|n| n % 60 == 1 && n / 60 % 24 == 10).count()
    );
    assert_eq!(agenda.due.len(), 100_000);
    // A field more costs 100,000 times its size.
    assert!(size_of::<Job>() <= 320 && size_of::<JobSpec>() <= 112);
    let all = agenda.all().filter_map(|(_, job)| job.spec()).collect::<Vec<_>>();
    assert!(all.iter().all(|spec| Arc::ptr_eq(&spec.terms, &all[0].terms)));
}
