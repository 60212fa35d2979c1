use jiff::fmt::temporal::DateTimeParser;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}
#[derive(Deserialize)]
struct Case {
    id: u32,
    expr: String,
    tz: String,
    from: String,
    #[serde(default)]
    next: Vec<String>,
    #[serde(default)]
    exhausted: bool,
    #[serde(default)]
    error: Option<serde_json::Value>,
}
fn instant(text: &str) -> Timestamp {
    DateTimeParser::new().parse_timestamp(text).unwrap()
}

/// Expected answers of the original's grammar, and of plain reason where the original errs.
#[test]
fn every_vector_passes() {
    let vectors: Vectors = serde_json::from_str(include_str!("../../tests/vectors/schedule.json")).unwrap();
    let (mut answered, mut refused, mut wrong) = (0, 0, vec![]);
    for case in vectors.cases {
        let zone = zone(&case.tz).unwrap();
        let parsed = Schedule::parse(&case.expr, &zone);
        if case.error.is_some() {
            refused += 1;
            if parsed.is_ok() {
                wrong.push(format!("{}: {:?} is to be refused", case.id, case.expr));
            }
            continue;
        }
        answered += 1;
        let schedule = match parsed {
            Ok(schedule) => schedule,
            Err(error) => {
                wrong.push(format!("{}: {:?} {error}", case.id, case.expr));
                continue;
            }
        };
        let mut at = instant(&case.from);
        let mut found = vec![];
        while found.len() < case.next.len() + usize::from(case.exhausted) {
            let Some(next) = schedule.next(at) else { break };
            found.push(next);
            at = next;
        }
        let wanted = case.next.iter().map(|text| instant(text)).collect::<Vec<_>>();
        if found != wanted {
            wrong.push(format!(
                "{}: {:?} {} found {found:?}, wanted {wanted:?}",
                case.id, case.expr, case.tz
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((answered, refused), (172, 53));
}

#[test]
fn an_anchor_holds_the_beat() {
    let schedule = Schedule::parse("@every 90s", &TimeZone::UTC).unwrap();
    let anchor = instant("2024-01-15T10:20:30.7Z");
    for (after, next) in [
        ("2024-01-15T10:20:30.7Z", "2024-01-15T10:22:00Z"),
        ("2024-01-15T10:21:59.9Z", "2024-01-15T10:22:00Z"),
        ("2024-01-15T10:22:00Z", "2024-01-15T10:23:30Z"),
        ("2024-01-15T11:00:00Z", "2024-01-15T11:01:00Z"),
        ("2024-01-15T09:00:00Z", "2024-01-15T10:22:00Z"), // the clock was set back behind the anchor
    ] {
        assert_eq!(
            schedule.next_from(anchor, instant(after)),
            Some(instant(next)),
            "{after}"
        );
    }
    assert_eq!(
        schedule.passed(anchor, instant("2024-01-15T10:22:00Z"), instant("2024-01-15T10:27:00Z")),
        (3, Some(instant("2024-01-15T10:26:30Z")))
    );
    assert_eq!(
        schedule.passed(anchor, anchor, instant("2024-01-15T10:21:59Z")),
        (0, None)
    );
}
#[test]
fn the_second_pass_of_an_autumn_night_is_known() {
    let schedule = Schedule::parse("30 1 * * *", &zone("America/New_York").unwrap()).unwrap();
    for (at, second) in [
        ("2024-11-03T05:30:00Z", false),
        ("2024-11-03T06:30:00Z", true),
        ("2024-11-04T06:30:00Z", false),
    ] {
        assert_eq!(schedule.is_second_pass(instant(at)), second, "{at}");
    }
}
#[test]
fn refusals_say_what_is_accepted() {
    for (text, error) in [
        (
            "* * * *",
            "found 4 fields, accepted: 5 (minute first) or 6 (second first)",
        ),
        (
            "* 24 * * *",
            "hour: found \"24\", accepted: *, or 0 to 23, as 1, 1-5, */2 or 1-5/2",
        ),
        (
            "* * * * 7",
            "day of week: found \"7\", accepted: *, 0 to 6 or sun to sat, as 1, 1-5, */2 or 1-5/2",
        ),
        ("*/0 * * * *", "minute: found \"*/0\", accepted: a step from 1 on"),
        (
            "@every 5",
            "found \"5\" after @every, accepted: a duration as \"90s\" or \"1h30m\"",
        ),
        (
            "TZ=Nowhere * * * * *",
            "found the time zone \"Nowhere\", accepted: a name of the system's zoneinfo as \"Asia/Shanghai\"",
        ),
        ("TZ=UTC", "nothing follows the time zone"),
    ] {
        assert_eq!(Schedule::parse(text, &TimeZone::UTC), Err(error.to_owned()), "{text}");
    }
}

/// A list of numbers as the crate `cron` wants it.
fn list(mask: u64, add: u64) -> String {
    let numbers = (0..64).filter(|n| mask & 1 << n != 0).map(|n| (n + add).to_string());
    numbers.collect::<Vec<_>>().join(",")
}

proptest! {
    #[test]
    fn any_text_is_answered(text: String) {
        let _ = Schedule::parse(&text, &TimeZone::UTC);
    }
    #[test]
    fn any_line_is_answered(text in "[0-9*?/,a-zA-Z-]{1,5}( [0-9*?/,-]{1,5}){4,5}") {
        if let Ok(schedule) = Schedule::parse(&text, &TimeZone::UTC) {
            let _ = schedule.next(instant("2024-01-15T10:20:30Z"));
        }
    }
    /// Another calendar agrees: the crate `cron`, in UTC, with both day fields to fit; and twice, the smaller answer, for the OR rule.
    #[test]
    fn the_crate_cron_agrees(
        second in 1u64..1 << 60, minute in 1u64..1 << 60, hour in 1u32..1 << 24, day in 1u32..1 << 31, month in 1u16..1 << 12,
        weekday in 1u8..1 << 7, star: bool, from in 0i64..4_000_000_000,
    ) {
        let masks = Masks { second, minute, hour, day: day << 1, month: month << 1, weekday, star };
        let line = |day: &str, weekday: &str| {
            let text = format!("{} {} {} {day} {} {weekday}", list(second, 0), list(minute, 0), list(hour.into(), 0), list(month.into(), 1));
            text.parse::<cron::Schedule>().unwrap()
        };
        let from_there = chrono::DateTime::from_timestamp(from, 0).unwrap();
        let next = |schedule: cron::Schedule| schedule.after(&from_there).next().map(|at| at.timestamp());
        let (days, weekdays) = (list(day.into(), 1), list(weekday.into(), 1));
        let theirs = match star {
            true => next(line(&days, &weekdays)),
            false => [next(line(&days, "*")), next(line("*", &weekdays))].into_iter().flatten().min(),
        };
        let ours = masks.next(&TimeZone::UTC, Timestamp::from_second(from).unwrap()).map(|at| at.as_second());
        // Theirs looks on for longer.
        prop_assert!(ours == theirs || (ours.is_none() && theirs.is_none_or(|at| at - from > 4 * 365 * 86_400)), "{ours:?} {theirs:?}");
    }
    /// Whatever is answered lies after what was asked, and nothing that fits lies between: looked for second by second.
    #[test]
    fn nothing_is_passed_over(
        name in prop::sample::select(vec!["America/New_York", "Australia/Lord_Howe", "America/Havana", "Africa/Casablanca", "Pacific/Apia"]),
        minute in 0u8..60, hours in 1u32..1 << 24, from in 1_300_000_000i64..1_900_000_000,
    ) {
        let zone = zone(name).unwrap();
        let schedule = Schedule::parse(&format!("{minute} {} * * *", list(hours.into(), 0)), &zone).unwrap();
        let from = from / 60 * 60;
        let next = schedule.next(Timestamp::from_second(from).unwrap()).unwrap().as_second();
        prop_assert!(next > from);
        let fits = |at: &i64| {
            let wall = zone.to_datetime(Timestamp::from_second(*at).unwrap());
            wall.minute() as u8 == minute && hours & 1 << wall.hour() != 0
        };
        prop_assert_eq!((1..=(next - from) / 60).map(|m| from + m * 60).find(fits), Some(next));
    }
    /// What is counted by days is what is found one by one.
    #[test]
    fn counted_and_found_are_the_same(
        name in prop::sample::select(vec!["UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]),
        line in prop::sample::select(vec!["*/7 * * * *", "0 */5 * * 1-5", "30 1,2 * * *", "*/20 59 23 * * *", "0 0 13 * 5", "@every 17m"]),
        from in 1_300_000_000i64..1_900_000_000, length in 0i64..900_000,
    ) {
        let schedule = Schedule::parse(line, &zone(name).unwrap()).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        let anchor = at(from - 5);
        let (mut count, mut last, mut next) = (0, None, at(from));
        while let Some(found) = schedule.next_from(anchor, next).filter(|found| *found <= at(from + length)) {
            (count, last, next) = (count + 1, Some(found), found);
        }
        prop_assert_eq!(schedule.passed(anchor, at(from), at(from + length)), (count, last));
    }
}
