//! File names made of what is known about a batch: `/var/log/fleet/{group}/{host}-{date}.log`. What stands before the first
//! placeholder is the root directory; no value can lead out of it, for a value never holds a `/` nor begins with a dot.
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use xxhash_rust::xxh3::xxh3_64;

use crate::model::{Batch, Origin};

const FIELDS: [(&str, Field); 6] = [
    ("{host}", Field::Host),
    ("{group}", Field::Group),
    ("{agent_id}", Field::AgentId),
    ("{pipeline}", Field::Pipeline),
    ("{date}", Field::Date),
    ("{path}", Field::Path),
];
/// A name may have 255 bytes on every file system of Linux; rotation and compression add 28.
const LONGEST_NAME: usize = 220;

#[derive(Clone, Copy)]
enum Field {
    Host,
    Group,
    AgentId,
    Pipeline,
    Date,
    Path,
}
enum Part {
    Text(String),
    Field(Field),
}

/// Finds the path of a batch. Remembers the last one, since batches come in runs of one source.
pub struct Paths {
    parts: Vec<Part>,
    pipeline: Arc<str>,
    days: Days,
    last: Option<(Option<Arc<Origin>>, i64, Arc<Path>)>,
}

/// Says what was found and what is accepted.
pub fn check(template: &str) -> Result<(), String> {
    parse(template).map(drop)
}

fn parse(template: &str) -> Result<Vec<Part>, String> {
    let accepted = "an absolute file path without `..`, with any of {host} {group} {agent_id} {pipeline} {date} {path}";
    let refused = |what: &str| format!("found {what} in `{template}`, accepted: {accepted}");
    if !template.starts_with('/') {
        return Err(refused("no `/` at the start"));
    }
    if template.split('/').any(|name| name == "..") {
        return Err(refused("`..`"));
    }
    if template.ends_with('/') || template.ends_with("/.") {
        return Err(refused("no file name"));
    }
    if template.contains('\0') {
        return Err(refused("a zero byte"));
    }
    let (mut parts, mut rest) = (Vec::new(), template);
    while let Some(brace) = rest.find(['{', '}']) {
        let (text, from) = rest.split_at(brace);
        let Some((word, field)) = FIELDS.iter().find(|(word, _)| from.starts_with(word)) else {
            let word = from.find('}').map_or(from, |end| &from[..=end]);
            return Err(refused(&format!("`{word}`")));
        };
        parts.push(Part::Text(text.to_owned()));
        parts.push(Part::Field(*field));
        rest = &from[word.len()..];
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

impl Paths {
    /// `{date}` is the day, in `zone`, when a batch was read: so a batch that is written again goes to the same file.
    pub fn new(template: &str, pipeline: Arc<str>, zone: TimeZone) -> Result<Self, String> {
        Ok(Self {
            parts: parse(template)?,
            pipeline,
            days: Days::new(zone),
            last: None,
        })
    }
    /// What every path begins with: the directory before the first placeholder. And the file, if there is no placeholder.
    pub fn root(&self) -> (PathBuf, Option<PathBuf>) {
        let Some(Part::Text(text)) = self.parts.first() else {
            return ("/".into(), None);
        };
        let directory = text.rsplit_once('/').map_or("", |(directory, _)| directory);
        let file = (self.parts.len() == 1).then(|| text.into());
        let directory = if directory.is_empty() { "/" } else { directory };
        (directory.into(), file)
    }
    pub fn of(&mut self, batch: &Batch) -> Arc<Path> {
        // Without placeholders all batches have one path; without {date} all days are one.
        let has = |field: fn(&Field) -> bool| self.parts.iter().any(|p| matches!(p, Part::Field(f) if field(f)));
        let day = if has(|f| matches!(f, Field::Date)) {
            self.days.of(batch.read_at).number
        } else {
            0
        };
        let origin = has(|f| !matches!(f, Field::Date | Field::Pipeline)).then_some(&batch.origin);
        if let Some((last, last_day, path)) = &self.last
            && *last_day == day
            && match (last, origin) {
                (Some(last), Some(origin)) => Arc::ptr_eq(last, origin),
                (last, origin) => last.is_none() && origin.is_none(),
            }
        {
            return path.clone();
        }
        let origin = origin.cloned();
        let path: Arc<Path> = self.expand(batch).into();
        self.last = Some((origin, day, path.clone()));
        path
    }
    fn expand(&mut self, batch: &Batch) -> PathBuf {
        let host = &batch.origin.host;
        let mut text = String::new();
        // Everything before the first placeholder's own name is taken as it stands.
        let mut root = None;
        for part in &self.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Field(field) => {
                    root.get_or_insert_with(|| text.rfind('/').map_or(0, |slash| slash + 1));
                    text.push_str(&match field {
                        Field::Host => safe(&host.hostname),
                        Field::Group => safe(&host.group),
                        Field::AgentId => safe(&host.agent_id),
                        Field::Pipeline => safe(&self.pipeline),
                        Field::Date => self.days.of(batch.read_at).text.clone(),
                        Field::Path => match &batch.origin.path {
                            Some(path) => safe(path.to_string_lossy().trim_start_matches('/')),
                            None => "stream".into(),
                        },
                    });
                }
            }
        }
        let (root, names) = text.split_at(root.unwrap_or(text.len()));
        let names = names.split('/').map(shortened).collect::<Vec<_>>();
        PathBuf::from(format!("{root}{}", names.join("/")))
    }
}

/// One name out of any text: letters, digits, `.`, `-` and `_` stay, but for a dot in front; all else (`/` too) becomes `_`.
fn safe(value: &str) -> String {
    let mut name = value
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || ".-_".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect::<String>();
    if name.starts_with('.') {
        name.replace_range(..1, "_");
    }
    if name.is_empty() {
        name.push('_');
    }
    name
}
/// What is too long for a name keeps its start, and a hash of the whole so that two stay two.
fn shortened(name: &str) -> String {
    if name.len() <= LONGEST_NAME {
        return name.to_owned();
    }
    let hash = format!("~{:016x}", xxh3_64(name.as_bytes()));
    format!("{}{hash}", &name[..name.floor_char_boundary(LONGEST_NAME - hash.len())])
}

/// Days of a time zone, the last one remembered.
pub struct Days {
    zone: TimeZone,
    last: Day,
}
#[derive(Clone)]
pub struct Day {
    /// Its first instant, in seconds since 1970: what a day is compared by.
    pub number: i64,
    /// The first instant that is not in it.
    pub ends: Timestamp,
    /// `2026-11-23`
    text: String,
}
impl Days {
    pub fn new(zone: TimeZone) -> Self {
        let last = Day {
            number: 0,
            ends: Timestamp::MIN,
            text: String::new(),
        };
        Self { zone, last }
    }
    pub fn of(&mut self, at: Timestamp) -> &Day {
        if at >= self.last.ends || at.as_second() < self.last.number {
            let local = at.to_zoned(self.zone.clone());
            // Fails only at the ends of the calendar; there each hour may count as a day.
            let start = local.start_of_day().map_or(at, |day| day.timestamp());
            let next = local.tomorrow().and_then(|next| next.start_of_day());
            let ends = next.map(|next| next.timestamp()).or_else(|_| at.checked_add(1.hour()));
            self.last = Day {
                number: start.as_second(),
                ends: ends.unwrap_or(Timestamp::MAX),
                text: local.strftime("%Y-%m-%d").to_string(),
            };
        }
        &self.last
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;
    use crate::plugins::outputs::testing::{batch, batch_from};

    fn paths(template: &str) -> Paths {
        Paths::new(template, "nginx".into(), TimeZone::UTC).unwrap()
    }

    #[test]
    fn fills_in_what_is_known() {
        let from = batch_from(0, "/var/log/nginx/access.log", &["x"]);
        let all = "/l/{group}/{host}/{agent_id}-{pipeline}/{date}/{path}";
        assert_eq!(
            *paths(all).of(&from),
            *Path::new("/l/net01/h1/sky01-nginx/2026-11-23/var_log_nginx_access.log")
        );
        assert_eq!(*paths("/tmp/x.log").of(&from), *Path::new("/tmp/x.log"));
        assert_eq!(*paths("/{path}").of(&batch(0, &["x"])), *Path::new("/stream"));
    }
    #[test]
    fn batches_of_two_sources_and_days_go_to_their_own_files() {
        let mut paths = paths("/l/{path}-{date}");
        let (a, mut b) = (batch_from(0, "/a", &["x"]), batch_from(1, "/b", &["x"]));
        assert_eq!(*paths.of(&a), *Path::new("/l/a-2026-11-23"));
        assert_eq!(*paths.of(&b), *Path::new("/l/b-2026-11-23"));
        b.read_at = "2026-11-24T00:00:00Z".parse().unwrap();
        assert_eq!(*paths.of(&b), *Path::new("/l/b-2026-11-24"));
        assert_eq!(*paths.of(&a), *Path::new("/l/a-2026-11-23"));
    }
    #[test]
    fn a_day_is_the_zones_own() {
        let mut days = Days::new(TimeZone::get("Europe/Berlin").unwrap());
        // The night when the clocks go back: 25 hours.
        let day = days.of("2026-10-24T22:00:00Z".parse().unwrap()).clone();
        assert_eq!(
            (day.text.as_str(), day.ends.to_string().as_str()),
            ("2026-10-25", "2026-10-25T23:00:00Z")
        );
        assert_eq!(days.of("2026-10-25T22:59:59Z".parse().unwrap()).number, day.number);
        assert_eq!(days.of("2026-10-25T23:00:00Z".parse().unwrap()).text, "2026-10-26");
        assert_eq!(days.of("2026-10-24T21:59:59Z".parse().unwrap()).text, "2026-10-24");
    }
    #[test]
    fn stays_inside_its_root() {
        let evil = batch_from(0, "../../etc/passwd", &["x"]);
        assert_eq!(*paths("/l/{path}").of(&evil), *Path::new("/l/_._.._etc_passwd"));
        assert_eq!(
            *paths("/l/{path}/{path}").of(&batch_from(0, "..", &["x"])),
            *Path::new("/l/_./_.")
        );
    }
    #[test]
    fn refuses_what_it_cannot_fill_in() {
        for (template, found) in [
            ("x.log", "no `/`"),
            ("/l/../x", "`..`"),
            ("/l/", "no file name"),
            ("/l/{hots}", "`{hots}`"),
            ("/l/{host", "`{host`"),
            ("/l/host}", "`}`"),
            ("/l/{}", "`{}`"),
        ] {
            let error = check(template).unwrap_err();
            assert!(
                error.starts_with(&format!("found {found}")) && error.contains("accepted: "),
                "{template}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_value_leads_out(value in "(\\.|/|[a-z]|\\PC|\u{0}|\n){0,300}", other in "[./a]{0,3}") {
            let mut from = batch_from(0, &value, &["x"]);
            from.origin = Arc::new(Origin {
                host: Arc::new(crate::model::Host { hostname: other, ..(*from.origin.host).clone() }),
                path: from.origin.path.clone(),
                tags: Vec::new(),
            });
            let path = paths("/root/a{host}/{path}/.{host}{host}/{path}{path}.log").of(&from);
            let names = path.components().collect::<Vec<_>>();
            prop_assert_eq!(names.len(), 6);
            prop_assert_eq!(&names[..2], &[Component::RootDir, Component::Normal("root".as_ref())]);
            for name in &names[1..] {
                prop_assert!(matches!(name, Component::Normal(name) if name.len() <= LONGEST_NAME), "{:?}", path);
            }
            prop_assert!(!path.to_string_lossy().contains(['\0', '\n']));
        }
        #[test]
        fn two_long_names_stay_two(value in "[a-z]{300,310}") {
            let other = format!("{value}x");
            let mut paths = paths("/{path}");
            prop_assert_ne!(paths.of(&batch_from(0, &value, &["x"])), paths.of(&batch_from(0, &other, &["x"])));
        }
    }
}
