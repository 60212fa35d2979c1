//! How container runtimes write the output of a container to files, and what the path of such a file says.
//!
//! containerd and CRI-O: `2026-11-25T10:00:00.123456789Z stdout F text`; P instead of F: the line goes on in the next one of its stream.
//! Docker's json-file: `{"log":"text\n","stream":"stdout","time":"…"}`; without `\n` the line goes on.
use std::{borrow::Cow, path::Path};

use serde::{Deserialize, Serialize};

/// A line of such a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub time: Cow<'a, str>,
    pub stream: Stream,
    /// The line ends with this piece.
    pub last: bool,
    pub text: Cow<'a, [u8]>,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    #[default]
    Stdout,
    Stderr,
}
impl Stream {
    pub const ALL: usize = 2;
    fn read(word: &[u8]) -> Option<Self> {
        match word {
            b"stdout" => Some(Self::Stdout),
            b"stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// None: it is no line of this form.
pub fn cri(line: &[u8]) -> Option<Piece<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(words.next()?).ok()?;
    let stream = Stream::read(words.next()?)?;
    // More tags may come behind a colon.
    let last = match words.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let looks_right = time.len() >= 19 && time.as_bytes()[0].is_ascii_digit() && time.contains('T');
    looks_right.then(|| Piece {
        time: time.into(),
        stream,
        last,
        text: words.next().unwrap_or_default().into(),
    })
}

#[derive(Deserialize)]
struct DockerLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow, default)]
    time: Cow<'a, str>,
}
pub fn docker(line: &[u8]) -> Option<Piece<'_>> {
    let line: DockerLine<'_> = serde_json::from_slice(line).ok()?;
    let stream = Stream::read(line.stream.as_bytes())?;
    let last = line.log.ends_with('\n');
    let text = match line.log {
        Cow::Borrowed(text) => text.strip_suffix('\n').unwrap_or(text).as_bytes().into(),
        Cow::Owned(mut text) => {
            text.truncate(text.len() - usize::from(last));
            text.into_bytes().into()
        }
    };
    Some(Piece {
        time: line.time,
        stream,
        last,
        text,
    })
}

/// With `keep_fields`: what the runtime wrote beside the text.
pub fn write_fields(time: &str, stream: Stream, message: &[u8], out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Fields<'a> {
        time: &'a str,
        stream: &'a str,
        message: &'a str,
    }
    let fields = Fields {
        time,
        stream: stream.word(),
        message: &String::from_utf8_lossy(message),
    };
    let _ = serde_json::to_writer(out, &fields); // writing to a Vec does not fail
}

/// What the path says, as tags of the origin: `…/pods/<namespace>_<pod>_<uid>/<container>/0.log`,
/// `…/containers/<pod>_<namespace>_<container>-<id>.log`, `…/containers/<id>/<id>-json.log`.
pub fn tags(path: &Path) -> Vec<(&'static str, String)> {
    let names = path
        .iter()
        .rev()
        .take(4)
        .map(|name| name.to_string_lossy())
        .collect::<Vec<_>>();
    let name = |i: usize| names.get(i).map_or("", |name| name.as_ref());
    let tag = |key: &'static str, value: &str| (key, value.to_owned());
    let is_id = |id: &str| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if name(3) == "pods"
        && let [namespace, pod, _uid] = name(2).split('_').collect::<Vec<_>>()[..]
    {
        return vec![tag("namespace", namespace), tag("pod", pod), tag("container", name(1))];
    }
    if name(1) == "containers"
        && let Some((words, id)) = name(0).split_once(".log").and_then(|(stem, _)| stem.rsplit_once('-'))
        && let [pod, namespace, container] = words.split('_').collect::<Vec<_>>()[..]
        && is_id(id)
    {
        return vec![
            tag("namespace", namespace),
            tag("pod", pod),
            tag("container", container),
            tag("container_id", id),
        ];
    }
    if is_id(name(1)) && name(0).starts_with(name(1)) {
        return vec![tag("container_id", name(1))];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_lines() {
        let piece = cri(b"2026-11-25T10:00:00.123456789Z stderr P a  b ").unwrap();
        assert_eq!(
            (&piece.time[..4], piece.stream, piece.last),
            ("2026", Stream::Stderr, false)
        );
        assert_eq!(&*piece.text, b"a  b ");
        for (line, text) in [
            (&b"2026-11-25T10:00:00+08:00 stdout F "[..], &b""[..]),
            (b"2026-11-25T10:00:00+08:00 stdout F", b""),
            (b"2026-11-25T10:00:00+08:00 stdout F:x:y \xff", b"\xff"),
        ] {
            let piece = cri(line).unwrap();
            assert_eq!((&*piece.text, piece.last), (text, true));
        }
        for line in [
            "",
            "plain",
            "2026-11-25T10:00:00Z stdin F x",
            "2026-11-25T10:00:00Z stdout X x",
            "x stdout F y",
        ] {
            assert_eq!(cri(line.as_bytes()), None, "{line}");
        }
    }
    #[test]
    fn docker_lines() {
        let piece =
            docker(br#"{"log":"a\t\u00e9\n","stream":"stdout","attrs":{"x":"y"},"time":"2026-11-25T10:00:00Z"}"#)
                .unwrap();
        assert_eq!(
            (&*piece.text, piece.last, &*piece.time),
            ("a\té".as_bytes(), true, "2026-11-25T10:00:00Z")
        );
        let piece = docker(br#"{"log":"half","stream":"stderr","time":""}"#).unwrap();
        assert_eq!(
            (&*piece.text, piece.last, piece.stream),
            (&b"half"[..], false, Stream::Stderr)
        );
        for line in [
            "",
            "{",
            "plain",
            r#"{"log":1,"stream":"stdout"}"#,
            r#"{"log":"x","stream":"tty"}"#,
        ] {
            assert_eq!(docker(line.as_bytes()), None, "{line}");
        }
    }
    #[test]
    fn what_paths_say() {
        let id = "0123456789abcdef".repeat(4);
        let of = |path: &str| {
            tags(Path::new(path))
                .into_iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            of("/var/log/pods/shop_web-0_6f0c/nginx/0.log"),
            "namespace=shop pod=web-0 container=nginx"
        );
        assert_eq!(
            of("/x/pods/shop_web-0_6f0c/nginx/0.log.20261125-101112"),
            "namespace=shop pod=web-0 container=nginx"
        );
        assert_eq!(
            of(&format!("/var/log/containers/web-0_shop_side-car-{id}.log")),
            format!("namespace=shop pod=web-0 container=side-car container_id={id}")
        );
        assert_eq!(
            of(&format!("/var/lib/docker/containers/{id}/{id}-json.log.1")),
            format!("container_id={id}")
        );
        for other in [
            "/var/log/syslog",
            "/var/log/pods/x/y/0.log",
            "/var/log/containers/a_b_c-12.log",
            "/",
        ] {
            assert_eq!(of(other), "", "{other}");
        }
    }
}
