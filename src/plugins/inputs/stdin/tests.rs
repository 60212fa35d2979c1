use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{fd::FromRawFd, unix::net::UnixStream},
    sync::Mutex,
};

use proptest::prelude::*;

use super::*;
use crate::{
    clock,
    plugins::framing::{self, Rules, reference},
};

#[derive(Default)]
struct Counted(Mutex<Vec<(&'static str, u64)>>);
impl Tally for Counted {
    fn count(&self, name: &'static str, by: u64) {
        self.0.lock().unwrap().push((name, by));
    }
}
fn context(tally: SharedTally) -> InputContext {
    InputContext {
        pipeline: "test".into(),
        host: Arc::new(Host {
            agent_id: String::new(),
            group: String::new(),
            hostname: String::new(),
            ip: [127, 0, 0, 1].into(),
            instance: String::new(),
        }),
        log: slog::Logger::root(slog::Discard, slog::o!()),
        clock: clock::system(),
        once: true,
        journal: None,
        board: Arc::default(),
        runs: None,
        tally,
    }
}
fn over(fd: impl Into<OwnedFd>, rules: Rules) -> Stdin {
    Stdin::over(fd.into(), rules, context(Arc::new(NoTally)))
}
fn rules(max_line: usize, on_long_line: OnLongLine) -> Rules {
    Rules { max_line, on_long_line }
}
fn ordinary() -> Rules {
    rules(CHUNK, OnLongLine::Cut)
}
const WANT: Want = Want {
    chunks: 4,
    bytes: 1 << 20,
};
fn texts(chunks: &[Chunk]) -> Vec<String> {
    let events = chunks.iter().flat_map(|chunk| chunk.events.iter());
    events.map(|event| String::from_utf8(event.to_vec()).unwrap()).collect()
}
/// Reads until it ends; what stands in between must not be waited for.
fn all(stdin: &mut Stdin) -> Vec<String> {
    let mut chunks = Vec::new();
    while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
    assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Ended, "it stays ended");
    texts(&chunks)
}
fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    std::io::pipe().unwrap()
}

#[test]
fn a_pipe_and_its_last_line() {
    let (reader, mut writer) = pipe();
    let mut stdin = over(reader, ordinary());
    let mut chunks = Vec::new();
    writer.write_all(b"one\ntwo\nthr").unwrap();
    assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Idle(Duration::ZERO));
    assert_eq!(texts(&chunks), ["one", "two"]);
    let began = std::time::Instant::now();
    assert_eq!(stdin.read(WANT, &mut chunks).unwrap(), Next::Idle(Duration::ZERO));
    assert!(began.elapsed() < Duration::from_secs(5), "a stop is heard");
    writer.write_all(b"ee\n\nlast").unwrap();
    drop(writer);
    assert_eq!(all(&mut stdin), ["three", "", "last"]);
}
#[test]
fn whatever_standard_input_is() {
    assert!(all(&mut over(File::open("/dev/null").unwrap(), ordinary())).is_empty());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"a\nb").unwrap();
    file.rewind().unwrap();
    assert_eq!(all(&mut over(file, ordinary())), ["a", "b"]);
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.write_all(b"a\nb\n").unwrap();
    drop(far);
    assert_eq!(all(&mut over(near, ordinary())), ["a", "b"]);
    let (terminal, mut keyboard) = terminal();
    keyboard.write_all(b"typed\n\x04").unwrap(); // and Ctrl-D
    assert_eq!(all(&mut over(terminal, ordinary())), ["typed"]);
    // What cannot be read says so, and again.
    let mut directory = over(File::open("/").unwrap(), ordinary());
    for _ in 0..2 {
        let error = directory.read(WANT, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("could not read standard input"), "{error}");
    }
}
fn terminal() -> (OwnedFd, File) {
    let (mut keyboard, mut terminal) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: both descriptors are written by a call that succeeded and are owned by nobody else.
    unsafe {
        assert_eq!(
            nix::libc::openpty(&mut keyboard, &mut terminal, none, none.cast(), none.cast()),
            0
        );
        (OwnedFd::from_raw_fd(terminal), File::from_raw_fd(keyboard))
    }
}
#[test]
fn large_amounts_in_order_and_with_offsets() {
    let (reader, mut writer) = pipe();
    let lines = (0..300_000)
        .map(|i| format!("line {i} {}", "x".repeat(i % 60)))
        .collect::<Vec<_>>();
    let text = lines.join("\n") + "\n";
    let sent = text.clone();
    let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
    let mut stdin = over(reader, ordinary());
    let (mut chunks, mut offset) = (Vec::new(), 0);
    let mut seen = Vec::new();
    while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {
        assert!(chunks.len() <= 4);
        for chunk in chunks.drain(..) {
            assert_eq!(chunk.offset, offset);
            assert!(chunk.mark.is_none());
            offset += chunk.events.size() as u64;
            seen.extend(
                chunk
                    .events
                    .iter()
                    .map(|event| String::from_utf8(event.to_vec()).unwrap()),
            );
        }
    }
    writing.join().unwrap();
    assert!(seen == lines);
    assert_eq!(offset, text.len() as u64);
}
#[test]
fn long_lines_stay_bounded() {
    for (policy, count, name) in [
        (OnLongLine::Cut, 3, "lines_cut"),
        (OnLongLine::Skip, 2, "lines_skipped"),
        (OnLongLine::Split, 2 + 656, "lines_split"),
    ] {
        let (reader, mut writer) = pipe();
        let writing = std::thread::spawn(move || {
            writer.write_all(b"first\n").unwrap();
            let part = vec![b'x'; 1 << 20];
            (0..64).for_each(|_| writer.write_all(&part).unwrap());
            writer.write_all(b"\nlast\n").unwrap();
        });
        let tally = Arc::new(Counted::default());
        let mut stdin = Stdin::over(reader.into(), rules(100 << 10, policy), context(tally.clone()));
        let texts = all(&mut stdin);
        writing.join().unwrap();
        assert!(stdin.buffer.capacity() <= 2 * CHUNK);
        assert_eq!(
            (texts.len(), texts[0].as_str(), texts[texts.len() - 1].as_str()),
            (count, "first", "last")
        );
        assert!(texts.iter().all(|text| text.len() <= 100 << 10));
        let counted: u64 = tally
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, by)| by)
            .sum();
        assert_eq!(
            counted,
            if policy == OnLongLine::Split {
                (64 << 20) / (100 << 10)
            } else {
                1
            }
        );
    }
}
#[test]
fn a_line_longer_than_a_chunk() {
    let (reader, mut writer) = pipe();
    let line = "y".repeat(3 * CHUNK);
    let sent = line.clone() + "\nnext\n" + &line;
    let writing = std::thread::spawn(move || writer.write_all(sent.as_bytes()).unwrap());
    let texts = all(&mut over(reader, rules(4 * CHUNK, OnLongLine::Cut)));
    writing.join().unwrap();
    assert!(texts == [line.clone(), "next".to_owned(), line]);
}
#[test]
fn holes_are_skipped_and_counted() {
    let (reader, mut writer) = pipe();
    let tally = Arc::new(Counted::default());
    let mut stdin = Stdin::over(reader.into(), ordinary(), context(tally.clone()));
    let mut chunks = Vec::new();
    for part in ["\0\0", "\0one\n\0\0two\n", "\0"] {
        writer.write_all(part.as_bytes()).unwrap();
        stdin.read(WANT, &mut chunks).unwrap();
    }
    drop(writer);
    assert!(all(&mut stdin).is_empty());
    assert_eq!(texts(&chunks), ["one", "two"]);
    assert_eq!(tally.0.lock().unwrap().iter().map(|(_, by)| by).sum::<u64>(), 6);
}
#[test]
fn its_own_descriptor_stays_open() {
    let table = Table::default();
    drop((PLUGIN.build)(&table, context(Arc::new(NoTally))).unwrap_or_else(|error| panic!("{error}")));
    let mut nothing = [];
    std::io::stdin().read_exact(&mut nothing).unwrap();
    assert!(nix::fcntl::fcntl(std::io::stdin(), FcntlArg::F_GETFD).is_ok());
    let unknown = Table(serde_json::Map::from_iter([("max_lines".to_owned(), 5.into())]));
    assert_eq!((PLUGIN.check)(&unknown).unwrap_err().key, "max_lines");
}
proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))] // each waits for what does not come
    #[test]
    fn reads_as_the_reference_does(
        text in reference::texts(),
        rules in reference::rules(),
        cuts in proptest::collection::vec((1usize..60, 1usize..40), 1..20),
    ) {
        let (reader, mut writer) = pipe();
        let mut stdin = over(reader, rules);
        let (mut chunks, mut rest) = (Vec::new(), text.as_bytes());
        for (write, bytes) in cuts {
            let (piece, more) = rest.split_at(write.min(rest.len()));
            writer.write_all(piece).unwrap();
            rest = more;
            if !piece.is_empty() {
                stdin.read(Want { chunks: 2, bytes }, &mut chunks).unwrap();
            }
        }
        writer.write_all(rest).unwrap();
        drop(writer);
        while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
        let events = chunks.iter().flat_map(|chunk| chunk.events.iter()).map(<[u8]>::to_vec).collect::<Vec<_>>();
        prop_assert_eq!(events, reference::frame(&rules, text.as_bytes()));
    }
}

/// The same with other framings.
fn framed(options: &serde_json::Value) -> Stdin {
    let table = Table(options.as_object().unwrap().clone());
    let mut given = context(Arc::new(NoTally));
    given.clock = clock::ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
    let (reader, writer) = pipe();
    drop(writer);
    Stdin::over(
        reader.into(),
        framing_of(&table).unwrap_or_else(|error| panic!("{error}")),
        given,
    )
}
#[test]
fn a_record_is_complete_after_the_timeout() {
    let (reader, mut writer) = pipe();
    let clock = clock::ManualClock::at(jiff::Timestamp::UNIX_EPOCH);
    let mut given = context(Arc::new(NoTally));
    given.clock = clock.clone();
    let options = serde_json::json!({"multiline": {"start": r"^\[", "timeout": "3s"}});
    let framing = framing_of(&Table(options.as_object().unwrap().clone())).unwrap_or_else(|error| panic!("{error}"));
    let mut stdin = Stdin::over(reader.into(), framing, given);
    let mut chunks = Vec::new();
    writer.write_all(b"[1] a\n  b\n[2] c\n  half").unwrap();
    for _ in 0..3 {
        stdin.read(WANT, &mut chunks).unwrap();
    }
    assert_eq!(texts(&chunks), ["[1] a\n  b"]);
    clock.advance(Duration::from_secs(4));
    stdin.read(WANT, &mut chunks).unwrap();
    assert_eq!(texts(&chunks), ["[1] a\n  b", "[2] c"]);
    assert_eq!(chunks.iter().map(|chunk| chunk.offset).collect::<Vec<_>>(), [0, 10]);
    drop(writer);
    while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
    assert_eq!(texts(&chunks).last().unwrap(), "  half");
}
#[test]
fn a_long_record_stays_bounded() {
    let (reader, mut writer) = pipe();
    let writing = std::thread::spawn(move || {
        let part = [vec![b'x'; 1 << 20], b"\n ".to_vec()].concat();
        (0..64).for_each(|_| writer.write_all(&part).unwrap());
        writer.write_all(b"\nlast\n").unwrap();
    });
    let mut stdin = framed(&serde_json::json!({"multiline": {"continue": "^ "}, "max_line": "100KiB"}));
    stdin.fd = reader.into();
    let texts = all(&mut stdin);
    writing.join().unwrap();
    assert!(stdin.buffer.capacity() <= 2 * CHUNK);
    assert_eq!((texts.len(), texts[0].len(), texts[1].as_str()), (2, 100 << 10, "last"));
}
proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn reads_records_as_the_reference_does(
        (options, source) in framing::tests::cases(),
        cuts in proptest::collection::vec(1usize..60, 1..12),
    ) {
        let (reader, mut writer) = pipe();
        let mut stdin = framed(&options);
        stdin.fd = reader.into();
        let (mut chunks, mut rest) = (Vec::new(), &source[..]);
        for write in cuts {
            let (piece, more) = rest.split_at(write.min(rest.len()));
            writer.write_all(piece).unwrap();
            rest = more;
            if !piece.is_empty() {
                stdin.read_within(0, Want { chunks: 2, bytes: 100 }, &mut chunks).unwrap();
            }
        }
        writer.write_all(rest).unwrap();
        drop(writer);
        while stdin.read(WANT, &mut chunks).unwrap() != Next::Ended {}
        let events = chunks.iter().flat_map(|chunk| chunk.events.iter()).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let plan = stdin.framing.plan.clone().unwrap();
        prop_assert_eq!(events, framing::tests::reference(&plan, &source), "{}", options);
    }
}
