use redb::backends::InMemoryBackend;

use super::*;
use crate::model::{
    JobKey,
    job::{Cause, Tree},
};

fn history(bounds: Bounds) -> History {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    History::open(Arc::new(database), bounds).unwrap()
}
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}
fn record(task: &str, second: i64, state: RunState) -> RunRecord {
    let id = RunId::new(at(second), [7; 10]);
    let mut record = RunRecord::new(id, JobKey::host("10.0.0.1", task), Cause::Planned, at(second));
    record.state = state;
    record
}
fn put(history: &History, runs: Vec<(RunRecord, Option<Kept>)>, now: i64) {
    history.write(&Change { runs, jobs: vec![] }, at(now)).unwrap();
}
fn said(text: &str) -> Kept {
    Kept {
        head: text.into(),
        tail: vec![],
        total: text.len() as u64,
    }
}

#[test]
fn a_record_comes_back_as_it_went() {
    let history = history(Bounds::default());
    let mut all = vec![];
    for (n, (state, cause)) in [
        (RunState::Queued, Cause::Planned),
        (RunState::Running, Cause::Late),
        (RunState::Succeeded, Cause::CatchUp),
        (RunState::Failed(Some(3)), Cause::Once),
        (RunState::Failed(None), Cause::Asked("cli".into())),
        (RunState::TimedOut, Cause::Planned),
        (RunState::Killed("by me".into()), Cause::Planned),
        (RunState::Skipped("overlap".into()), Cause::Planned),
        (RunState::Missed(12), Cause::Planned),
        (RunState::Lost, Cause::Planned),
    ]
    .into_iter()
    .enumerate()
    {
        let mut record = record("17", 1_700_000_000 + n as i64, state);
        record.cause = cause;
        record.started = Some(at(5));
        record.ended = Some(at(6));
        record.attempt = 2;
        record.error = "why".into();
        record.pid = Some(4711);
        record.pid_started = Some(99);
        record.tree = Some(if n % 2 == 0 { Tree::Cgroup } else { Tree::Sweep });
        (record.output_bytes, record.output_gap) = (10, 3);
        record.unkillable = vec![1, 2];
        all.push(record);
    }
    let kept = Kept {
        head: b"a\0b".to_vec(),
        tail: b"\xff".to_vec(),
        total: 10,
    };
    put(
        &history,
        all.iter().map(|record| (record.clone(), Some(kept.clone()))).collect(),
        1_700_000_100,
    );
    for record in &all {
        assert_eq!(history.run(record.run_id).unwrap().as_ref(), Some(record));
        assert_eq!(history.output(record.run_id).unwrap().as_ref(), Some(&kept));
    }
    all.reverse();
    assert_eq!(history.runs(Some("own/17"), 100).unwrap(), all);
    assert_eq!(history.runs(None, 3).unwrap(), all[..3]);
    assert_eq!(history.runs(Some("own/1"), 100).unwrap(), []);
    assert_eq!(history.runs(Some("own/177"), 100).unwrap(), []);
}
#[test]
fn the_newest_runs_of_each_job_stay() {
    let history = history(Bounds {
        runs_per_job: 3,
        ..Bounds::default()
    });
    let now = 1_700_000_000;
    for n in 0..10 {
        put(
            &history,
            vec![(record("a", now + n, RunState::Succeeded), Some(said("x")))],
            now + n,
        );
    }
    put(&history, vec![(record("b", now, RunState::Succeeded), None)], now + 10);
    let planned = |job| {
        history
            .runs(Some(job), 100)
            .unwrap()
            .iter()
            .map(|run| run.planned.as_second() - now)
            .collect::<Vec<_>>()
    };
    assert_eq!((planned("own/a"), planned("own/b")), (vec![9, 8, 7], vec![0]));
    assert_eq!(history.output(record("a", now, RunState::Queued).run_id).unwrap(), None);
    // One that runs for long is not counted out.
    put(
        &history,
        vec![(record("b", now - 1, RunState::Running), None)],
        now + 10,
    );
    for n in 1..5 {
        put(
            &history,
            vec![(record("b", now + n, RunState::Succeeded), None)],
            now + 10,
        );
    }
    assert_eq!(planned("own/b"), [4, 3, 2, -1]);
}
#[test]
fn age_and_size_bound_it_all() {
    let bounds = Bounds {
        runs_per_job: 1000,
        age: Duration::from_secs(100),
        bytes: 20_000,
    };
    let history = history(bounds);
    let now = 1_700_000_000;
    let big = said(&"x".repeat(5_000));
    for n in 0..10 {
        put(
            &history,
            vec![(record(&n.to_string(), now + n, RunState::Succeeded), Some(big.clone()))],
            now + n,
        );
        assert!(history.bytes().unwrap() <= 20_000);
    }
    let planned = || {
        history
            .runs(None, 100)
            .unwrap()
            .iter()
            .map(|run| run.planned.as_second() - now)
            .collect::<Vec<_>>()
    };
    assert_eq!(planned(), [9, 8, 7], "the oldest went first, of whatever job");
    put(
        &history,
        vec![(record("x", now + 108, RunState::Succeeded), None)],
        now + 108,
    );
    assert_eq!(planned(), [108, 9, 8]);
    // All that is gone is gone from the count too.
    put(
        &history,
        vec![(record("y", now + 500, RunState::Succeeded), None)],
        now + 500,
    );
    assert_eq!(planned(), [500]);
    assert!((1..500).contains(&history.bytes().unwrap()));
}
/// BEHAVIOUR 86, the records' part.
#[test]
fn runs_without_an_end_are_lost_once() {
    let history = history(Bounds::default());
    let now = 1_700_000_000;
    put(
        &history,
        vec![
            (record("a", now, RunState::Running), None),
            (record("b", now + 1, RunState::Queued), None),
            (record("c", now + 2, RunState::Succeeded), None),
        ],
        now,
    );
    let lost = history.take_lost(at(now + 60)).unwrap();
    let tasks = lost
        .iter()
        .map(|run| (run.job.task_id.to_string(), run.state.clone(), run.ended))
        .collect::<Vec<_>>();
    assert_eq!(
        tasks,
        [
            ("a".to_owned(), RunState::Lost, Some(at(now + 60))),
            ("b".to_owned(), RunState::Lost, Some(at(now + 60)))
        ]
    );
    assert_eq!(history.run(lost[0].run_id).unwrap().as_ref(), Some(&lost[0]));
    assert_eq!(history.take_lost(at(now + 61)).unwrap(), []);
}
#[test]
fn jobs_are_remembered_and_forgotten() {
    let history = history(Bounds::default());
    let mut memory = JobMemory::new("* * * * *".into(), Some("UTC".into()), at(10));
    memory.ran.add(at(60), None);
    memory.ordered = Some(Box::new(Override {
        paused: true,
        value_hash: "h".into(),
    }));
    memory.once = Some("1/abc".into());
    let jobs = vec![
        ("own/a".to_owned(), Some(memory.clone())),
        ("own/b".to_owned(), Some(JobMemory::new("".into(), None, at(1)))),
    ];
    history.write(&Change { runs: vec![], jobs }, at(1)).unwrap();
    assert_eq!(history.memories().unwrap()["own/a"], memory);
    let jobs = vec![("own/b".to_owned(), None), ("own/c".to_owned(), None)];
    history.write(&Change { runs: vec![], jobs }, at(1)).unwrap();
    assert_eq!(history.memories().unwrap().into_keys().collect::<Vec<_>>(), ["own/a"]);
}

#[test]
fn runs_that_are_over_are_told_once_in_the_order_of_their_ends() {
    let history = history(Bounds {
        runs_per_job: 2,
        ..Bounds::default()
    });
    assert_eq!((history.last(), history.next(0)), (0, Ok(None)));
    let run = |second, state| record("17", second, state);
    put(
        &history,
        vec![(run(1, RunState::Running), None), (run(2, RunState::Running), None)],
        2,
    );
    assert_eq!(history.last(), 0);
    put(&history, vec![(run(2, RunState::Succeeded), Some(said("two\n")))], 3);
    put(&history, vec![(run(1, RunState::Failed(Some(3))), None)], 4);
    put(&history, vec![(run(2, RunState::Succeeded), None)], 5); // again
    let told = |after| {
        history
            .next(after)
            .unwrap()
            .map(|over| (over.number, over.record, over.output.total))
    };
    assert_eq!(told(0), Some((1, run(2, RunState::Succeeded), 4)));
    assert_eq!(told(1), Some((2, run(1, RunState::Failed(Some(3))), 0)));
    assert_eq!((told(2), history.last()), (None, 2));
    // The oldest goes, and its number with it; none is given twice.
    put(&history, vec![(run(3, RunState::Missed(1)), None)], 6);
    assert_eq!(told(1).map(|over| over.0), Some(3));
    let again = History::open(history.database.clone(), Bounds::default()).unwrap();
    assert_eq!((again.id(), again.last()), (history.id(), 3));
}
