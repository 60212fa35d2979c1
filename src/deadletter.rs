//! What cannot be delivered for good, kept so that it can be looked at and sent again: one JSON line an event, one file a pipeline.
//! It is written rarely, so each time it opens, looks and syncs anew: whoever empties or removes a file needs to tell nobody.
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    clock::{self, SharedClock},
    model::Batch,
};

/// Of all pipelines together: past it a put fails, so that the batch waits and nothing is lost.
pub const CAP: u64 = 1 << 30;

/// Why a batch goes here.
pub struct Letter<'a> {
    pub pipeline: &'a str,
    /// None: it fell in the filters or the input.
    pub output: Option<&'a str>,
    /// A fixed word: `panic`, `refused`, …
    pub reason: &'a str,
    /// What was said, for people.
    pub error: &'a str,
    pub batch: &'a Batch,
}

/// A line of a file.
#[derive(Serialize)]
struct Line<'a> {
    /// When it was given up.
    ts: Timestamp,
    pipeline: &'a str,
    output: Option<&'a str>,
    reason: &'a str,
    error: &'a str,
    path: Option<&'a str>,
    /// Where the event began in its source, in bytes.
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// In place of `message`, where that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    message_base64: Option<String>,
}

pub struct DeadLetter {
    directory: PathBuf,
    cap: u64,
    clock: SharedClock,
    one_at_a_time: Mutex<()>,
}

impl DeadLetter {
    /// Makes the directory if it is missing, for its owner alone.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Self::with(directory, CAP, clock::system())
    }
    /// The same with another bound, in bytes, and another clock.
    pub fn with(directory: &Path, cap: u64, clock: SharedClock) -> io::Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| because("could not make", directory, &error))?;
        Ok(Self {
            directory: directory.to_owned(),
            cap,
            clock,
            one_at_a_time: Mutex::new(()),
        })
    }

    /// Appends every event of the batch and syncs. After an error nothing of it is there, and the batch is to be put again.
    pub fn put(&self, letter: Letter<'_>) -> io::Result<()> {
        if letter.batch.events.is_empty() {
            return Ok(());
        }
        let lines = self.lines(&letter)?;
        let path = self.directory.join(format!("{}.jsonl", safe(letter.pipeline)));
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.size()?;
        if size.saturating_add(lines.len() as u64) > self.cap {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the dead letter {} is full: {size} bytes and {} more, accepted: {} (replay or purge it)",
                    self.directory.display(),
                    lines.len(),
                    self.cap
                ),
            ));
        }
        append(&path, &lines).map_err(|error| because("could not write", &path, &error))
    }

    fn lines(&self, letter: &Letter<'_>) -> io::Result<Vec<u8>> {
        let Batch { events, origin, .. } = letter.batch;
        let ts = self.clock.wall();
        let path = origin.path.as_ref().map(|path| path.to_string_lossy());
        let mut lines = Vec::with_capacity(events.size() + events.len() * 200);
        for (offset, content) in events.with_offsets() {
            let text = simdutf8::basic::from_utf8(content).ok();
            let line = Line {
                ts,
                pipeline: letter.pipeline,
                output: letter.output,
                reason: letter.reason,
                error: letter.error,
                path: path.as_deref(),
                offset: letter.batch.offset + u64::from(offset),
                message: text,
                message_base64: text.is_none().then(|| BASE64.encode(content)),
            };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        Ok(lines)
    }
    /// Of all files, in bytes.
    fn size(&self) -> io::Result<u64> {
        let failed = |error: io::Error| because("could not look into", &self.directory, &error);
        let mut size = 0;
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            match entry.and_then(|entry| entry.metadata()) {
                Ok(meta) if meta.is_file() => size += meta.len(),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(size)
    }
}

fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let open = |create| {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(create).mode(0o600).open(path)
    };
    let (file, new) = match open(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (open(true)?, true),
        result => (result?, false),
    };
    let border = whole_length(&file)?;
    file.set_len(border)?;
    let written = (&file).write_all(lines).and_then(|()| file.sync_data());
    let written = written.and_then(|()| match path.parent() {
        Some(directory) if new => File::open(directory)?.sync_all(),
        _ => Ok(()),
    });
    if written.is_err() {
        // The caller puts it again. If even this fails, the next put cuts the torn line, and what was whole is there twice.
        let _ = file.set_len(border);
    }
    written
}
/// Up to and with the last line end: what a kill tore is not kept.
fn whole_length(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        if let Some(at) = memchr::memrchr(b'\n', block) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
/// A file name of any pipeline's name. Two that become one share a file, and each line says whose it is.
fn safe(pipeline: &str) -> String {
    let name = pipeline.chars().take(100);
    let name = name.map(|c| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    });
    let name = name.collect::<String>();
    if name.is_empty() || name.starts_with('.') {
        format!("_{name}")
    } else {
        name
    }
}
fn because(tried: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{tried} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::ManualClock,
        model::{Events, Host, Lane, Origin},
    };

    fn batch(contents: &[&[u8]], path: Option<&str>) -> Batch {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for content in contents {
            bytes.extend_from_slice(content);
            bytes.push(b'\n');
            ends.push(bytes.len() as u32);
        }
        let host = Arc::new(Host {
            agent_id: "sky01".into(),
            group: "net01".into(),
            hostname: "h1".into(),
            ip: [127, 0, 0, 1].into(),
            instance: String::new(),
        });
        Batch {
            lane: Lane::fresh(),
            seq: 0,
            low: 0,
            events: Events::new(Bytes::from(bytes), ends),
            origin: Arc::new(Origin {
                host,
                path: path.map(Into::into),
                tags: Vec::new(),
            }),
            offset: 100,
            read_at: Timestamp::UNIX_EPOCH,
            outcome: Default::default(),
        }
    }
    fn letter<'a>(pipeline: &'a str, batch: &'a Batch) -> Letter<'a> {
        Letter {
            pipeline,
            output: Some("kafka"),
            reason: "refused",
            error: "too large",
            batch,
        }
    }
    fn open(directory: &Path, cap: u64) -> DeadLetter {
        let clock = ManualClock::at("2026-11-23T10:15:00.25Z".parse().unwrap());
        DeadLetter::with(directory, cap, clock).unwrap()
    }
    fn read(path: PathBuf) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn says_all_that_is_needed_to_send_it_again() {
        let dir = tempfile::tempdir().unwrap();
        let dead = open(&dir.path().join("a/deadletter"), CAP);
        let mut some = batch(&[b"one", b"dropped", b"t\xffo", b""], Some("/var/log/a.log"));
        some.events = some.events.retain(|e| e != b"dropped");
        dead.put(letter("nginx", &some)).unwrap();
        let plain = batch(&[b"x"], None);
        let stream = Letter {
            output: None,
            reason: "panic",
            error: "valid panicked",
            ..letter("nginx", &plain)
        };
        dead.put(stream).unwrap();
        let line = |offset: u64, message: (&str, &str)| {
            json!({"ts": "2026-11-23T10:15:00.25Z", "pipeline": "nginx", "output": "kafka", "reason": "refused",
                "error": "too large", "path": "/var/log/a.log", "offset": offset, message.0: message.1})
        };
        let path = dir.path().join("a/deadletter/nginx.jsonl");
        assert_eq!(
            read(path.clone()),
            [
                line(100, ("message", "one")),
                line(112, ("message_base64", "dP9v")),
                line(116, ("message", "")),
                json!({"ts": "2026-11-23T10:15:00.25Z", "pipeline": "nginx", "output": null, "reason": "panic",
                    "error": "valid panicked", "path": null, "offset": 100, "message": "x"}),
            ]
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }
    #[test]
    fn full_means_wait_until_somebody_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let some = batch(&[b"x"], None);
        open(dir.path(), CAP).put(letter("a", &some)).unwrap();
        let size = fs::metadata(dir.path().join("a.jsonl")).unwrap().len();
        let dead = open(dir.path(), size * 2);
        dead.put(letter("b", &some)).unwrap();
        let error = dead.put(letter("a", &some)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let expected = format!("is full: {} bytes and {size} more, accepted: {}", size * 2, size * 2);
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(read(dir.path().join("a.jsonl")).len(), 1);
        dead.put(letter("a", &batch(&[], None))).unwrap(); // nothing always fits
        fs::remove_file(dir.path().join("b.jsonl")).unwrap();
        dead.put(letter("a", &some)).unwrap();
        assert_eq!(read(dir.path().join("a.jsonl")).len(), 2);
    }
    #[test]
    fn a_torn_last_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, path, some) = (open(dir.path(), CAP), dir.path().join("a.jsonl"), batch(&[b"x"], None));
        dead.put(letter("a", &some)).unwrap();
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(&vec![b'{'; 10_000]);
        fs::write(&path, torn).unwrap();
        dead.put(letter("a", &some)).unwrap();
        assert_eq!(read(path.clone()).len(), 2);
        fs::write(&path, "torn").unwrap();
        dead.put(letter("a", &some)).unwrap();
        assert_eq!(read(path).len(), 1);
    }
    #[test]
    fn no_name_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let dead = open(&dir.path().join("d"), CAP);
        for name in ["../../x", "..", ".hidden", "a/b", "", &"l".repeat(1000)] {
            dead.put(letter(name, &batch(&[b"x"], None))).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let files = fs::read_dir(dir.path().join("d")).unwrap();
        let mut names = files
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect::<Vec<_>>();
        names.sort();
        let long = format!("{}.jsonl", "l".repeat(100));
        assert_eq!(
            names,
            [
                "_...jsonl",
                "_.._.._x.jsonl",
                "_.hidden.jsonl",
                "_.jsonl",
                "a_b.jsonl",
                &long
            ][..]
                .to_vec()
        );
    }
    #[test]
    fn many_may_put_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dead = open(dir.path(), CAP);
        let some = batch(&[b"one", b"two"], None);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| dead.put(letter("a", &some)).unwrap()));
            }
        });
        assert_eq!(read(dir.path().join("a.jsonl")).len(), 40);
    }
    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dead = open(&dir.path().join("d"), CAP);
        fs::create_dir(dir.path().join("d/a.jsonl")).unwrap();
        let error = dead.put(letter("a", &batch(&[b"x"], None))).unwrap_err();
        assert!(error.to_string().starts_with("could not write") && error.to_string().contains("a.jsonl"));
    }
}
