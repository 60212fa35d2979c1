//! Which files there are. Walks from the part of each pattern that has no wildcard, and no deeper than it says. Names are bytes: they
//! need not be UTF-8. Symlinks are followed. Nothing is opened but directories.
use std::{
    ffi::{OsStr, OsString},
    fs::{self, FileType, Metadata},
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use globset::{GlobBuilder, GlobMatcher};

use super::{
    identity::{Inode, Stamp},
    source::packing,
};
use crate::plugins::BadValue;

/// Symlinks that lead to symlinks: the kernel gives up at 40.
const MOST_LINKS: usize = 40;

pub struct Globs {
    paths: Vec<Vec<Part>>,
    exclude: Vec<Exclude>,
    unpacks: bool,
}
/// One directory level of a pattern.
enum Part {
    Name(OsString),
    Glob(GlobMatcher),
    /// `**`: any number of levels.
    Any,
}
struct Exclude {
    text: String,
    glob: GlobMatcher,
    /// Without a slash it is about the name alone.
    name_only: bool,
}

/// One name.
pub struct Found {
    pub path: PathBuf,
    pub inode: Inode,
    pub stamp: Stamp,
}
/// Where names come and go that matter.
pub enum Place<'a> {
    /// A directory in which names are looked for.
    Directory(&'a Path),
    /// Where a symlink leads, maybe to nothing yet.
    Target(&'a Path),
}
pub type Enter<'a> = &'a mut dyn FnMut(Place<'_>);

#[derive(Default)]
pub struct Scan {
    pub files: Vec<Found>,
    /// Names that match and are not read, and the rule.
    pub skipped: Vec<(PathBuf, String)>,
    /// Special files among them, which deserve a warning: what they are.
    pub special: Vec<(PathBuf, &'static str)>,
    /// What could not be looked at, and what the system said. It may hold anything: nothing in there counts as gone.
    pub blind: Vec<(PathBuf, io::Error)>,
}
impl Scan {
    pub fn is_blind_at(&self, path: &Path) -> bool {
        self.blind.iter().any(|(blind, _)| path.starts_with(blind))
    }
}

impl Globs {
    /// Relative patterns begin at the current directory.
    pub fn new(paths: &[String], exclude: &[String]) -> Result<Self, BadValue> {
        let paths = paths.iter().enumerate().map(|(i, text)| {
            let bad = |why: String| BadValue::new(format!("paths[{i}]"), format!("found {text:?}: {why}"));
            let absolute = std::path::absolute(text).map_err(|error| bad(error.to_string()))?;
            let parts = absolute
                .components()
                .skip(1) // the root
                .map(|part| Part::new(part.as_os_str()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| {
                    bad(format!(
                        "{error}, accepted: a path with *, ?, [a-z], {{a,b}} within a name, or ** for any depth"
                    ))
                })?;
            match parts.last() {
                Some(_) if !text.ends_with('/') => Ok(parts),
                _ => Err(bad(
                    "a directory, accepted: the files in it, as in \"/var/log/*.log\"".to_owned()
                )),
            }
        });
        let exclude = exclude.iter().enumerate().map(|(i, text)| {
            let bad = |why: String| BadValue::new(format!("exclude[{i}]"), format!("found {text:?}: {why}"));
            let name_only = !text.contains('/');
            let whole = if name_only {
                PathBuf::from(text)
            } else {
                std::path::absolute(text).map_err(|error| bad(error.to_string()))?
            };
            let glob = glob(&whole.to_string_lossy()).map_err(|error| bad(error.to_string()))?;
            let text = text.clone();
            Ok(Exclude { text, glob, name_only })
        });
        Ok(Self {
            paths: paths.collect::<Result<_, _>>()?,
            exclude: exclude.collect::<Result<_, _>>()?,
            unpacks: false,
        })
    }
    /// Packed files are read, as far as we can.
    pub fn unpacking(self, unpacks: bool) -> Self {
        Self { unpacks, ..self }
    }
    /// Why a name that matches is not opened.
    fn rule_against(&self, path: &Path) -> Option<String> {
        if let Some(rule) = self.excluded_by(path) {
            return Some(format!("matches exclude {rule:?}"));
        }
        match packing(path)? {
            "gz" if self.unpacks => None,
            ending if self.unpacks => Some(format!("is packed ({ending}), only gz can be read")),
            ending => Some(format!("is packed ({ending}), and read_compressed is false")),
        }
    }

    pub fn excluded_by(&self, path: &Path) -> Option<&str> {
        let name = path.file_name().map(Path::new).unwrap_or(path);
        let hits = |e: &&Exclude| e.glob.is_match(if e.name_only { name } else { path });
        self.exclude.iter().find(hits).map(|e| e.text.as_str())
    }

    /// Does a file of this name matter, or, if it is a directory, may one in it?
    pub fn concerns(&self, path: &Path, is_dir: bool) -> bool {
        let names = path
            .components()
            .skip(1)
            .map(|part| part.as_os_str())
            .collect::<Vec<_>>();
        let fits = self.paths.iter().any(|parts| fits(parts, &names, is_dir));
        fits && (is_dir || self.rule_against(path).is_none())
    }
    /// `enter` is told each place in which a name may come or go that matters, before anything is looked up in it.
    pub fn scan(&self, enter: Enter<'_>) -> Scan {
        let mut scan = Scan::default();
        for parts in &self.paths {
            self.walk(Path::new("/"), parts, &mut scan, enter);
        }
        scan
    }
    fn walk(&self, dir: &Path, parts: &[Part], scan: &mut Scan, enter: Enter<'_>) {
        let Some((part, rest)) = parts.split_first() else {
            return;
        };
        let glob = match part {
            Part::Name(name) => {
                let path = dir.join(name);
                if rest.is_empty() {
                    enter(Place::Directory(dir));
                    self.take(path, None, scan, enter);
                } else if path.is_dir() {
                    self.walk(&path, rest, scan, enter);
                } else {
                    enter(Place::Directory(dir)); // it may come
                    match fs::metadata(&path) {
                        Err(error) => blind(&path, error, scan),
                        Ok(_) => self.walk(&path, rest, scan, enter), // it came meanwhile
                    }
                }
                return;
            }
            Part::Glob(glob) => {
                enter(Place::Directory(dir));
                Some(glob)
            }
            Part::Any => {
                enter(Place::Directory(dir));
                self.walk(dir, rest, scan, enter);
                None
            }
        };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => return blind(dir, error, scan),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return blind(dir, error, scan),
            };
            let name = entry.file_name();
            if glob.is_some_and(|glob| !glob.is_match(Path::new(&name))) {
                continue;
            }
            let kind = entry.file_type().ok();
            match glob {
                Some(_) if rest.is_empty() => self.take(entry.path(), kind.map(|kind| (kind, &entry)), scan, enter),
                Some(_) => self.walk_if_dir(entry.path(), kind, rest, scan, enter),
                None => {
                    if rest.is_empty() && kind.is_some_and(|kind| !kind.is_dir()) {
                        self.take(entry.path(), kind.map(|kind| (kind, &entry)), scan, enter);
                    }
                    self.walk_if_dir(entry.path(), kind, parts, scan, enter);
                }
            }
        }
    }
    fn walk_if_dir(&self, path: PathBuf, kind: Option<FileType>, parts: &[Part], scan: &mut Scan, enter: Enter<'_>) {
        match kind {
            Some(kind) if kind.is_dir() => self.walk(&path, parts, scan, enter),
            Some(kind) if kind.is_symlink() => match fs::metadata(&path) {
                Ok(meta) if meta.is_dir() && !is_within(&path, &meta) => self.walk(&path, parts, scan, enter),
                _ => {}
            },
            _ => {}
        }
    }
    /// A name that matches. What a directory says about its entries spares a look at each.
    fn take(&self, path: PathBuf, listed: Option<(FileType, &fs::DirEntry)>, scan: &mut Scan, enter: Enter<'_>) {
        if let Some(rule) = self.rule_against(&path) {
            scan.skipped.push((path, rule));
            return;
        }
        let meta = match listed {
            Some((kind, entry)) if !kind.is_symlink() => entry.metadata(),
            _ => {
                enter_targets(&path, enter);
                fs::metadata(&path)
            }
        };
        match meta {
            Ok(meta) if meta.is_file() => scan.files.push(Found {
                inode: Inode::of(&meta),
                stamp: Stamp::of(&meta),
                path,
            }),
            Ok(meta) => {
                let kind = kind_word(&meta);
                scan.skipped
                    .push((path.clone(), format!("is a {kind}, only regular files are read")));
                scan.special.push((path, kind));
            }
            Err(error) => blind(&path, error, scan),
        }
    }
}

/// Does a path with these names fit the pattern? `begun`: it is enough if one below it might.
fn fits(parts: &[Part], names: &[&OsStr], begun: bool) -> bool {
    match (parts.split_first(), names.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((Part::Any, [])), _) => true,
        (Some(_), None) => begun,
        (Some((Part::Any, rest)), Some((_, deeper))) => fits(rest, names, begun) || fits(parts, deeper, begun),
        (Some((Part::Name(part), rest)), Some((name, deeper))) => part == name && fits(rest, deeper, begun),
        (Some((Part::Glob(glob), rest)), Some((name, deeper))) => {
            glob.is_match(Path::new(name)) && fits(rest, deeper, begun)
        }
    }
}

/// What is not there is no trouble: it may come.
fn blind(path: &Path, error: io::Error, scan: &mut Scan) {
    if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        scan.blind.push((path.to_owned(), error));
    }
}
/// Each place that a symlink leads to, one after the other.
fn enter_targets(path: &Path, enter: Enter<'_>) {
    let mut at = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(target) = fs::read_link(&at) else { return };
        at.pop();
        at.push(target);
        enter(Place::Target(&at));
    }
}
/// Does this symlink lead to a directory above itself?
fn is_within(link: &Path, target: &Metadata) -> bool {
    let is_target = |above: &Path| fs::metadata(above).is_ok_and(|meta| Inode::of(&meta) == Inode::of(target));
    link.ancestors().skip(1).any(is_target)
}
fn kind_word(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() || kind.is_block_device() => "device",
        () => "special file",
    }
}

impl Part {
    fn new(text: &OsStr) -> Result<Self, globset::Error> {
        let special = |byte: &u8| b"*?[]{}\\".contains(byte);
        Ok(match text.to_str() {
            Some("**") => Self::Any,
            Some(text) if text.bytes().any(|byte| special(&byte)) => Self::Glob(glob(text)?),
            _ => Self::Name(text.to_owned()),
        })
    }
}
fn glob(text: &str) -> Result<GlobMatcher, globset::Error> {
    let glob = GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build()?;
    Ok(glob.compile_matcher())
}

/// A path for people: what cannot be printed, or is not UTF-8, is escaped.
pub fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};

    use super::*;

    fn found(paths: &[String], exclude: &[String]) -> Vec<String> {
        let scan = Globs::new(paths, exclude).unwrap().scan(&mut |_| ());
        let mut names = scan.files.iter().map(|f| shown(&f.path)).collect::<Vec<_>>();
        names.sort();
        names
    }
    #[test]
    fn walks_as_deep_as_the_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        for name in ["a.log", "x/b.log", "x/y/c.log", "x/y/d.txt", "x/z/e.log", ".hidden.log"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        symlink(dir.path(), dir.path().join("x/loop")).unwrap();
        symlink(dir.path().join("x/z"), dir.path().join("link")).unwrap();
        let under = |pattern: &str| {
            let names = found(&[format!("{root}/{pattern}")], &[]);
            names
                .iter()
                .map(|name| name[root.len() + 1..].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(under("*.log"), [".hidden.log", "a.log"]);
        assert_eq!(under("*/*.log"), ["link/e.log", "x/b.log"]);
        assert_eq!(under("x/*/c.log"), ["x/y/c.log"]);
        assert_eq!(under("x/**"), ["x/b.log", "x/y/c.log", "x/y/d.txt", "x/z/e.log"]);
        assert_eq!(under("**/{c,e}.log"), ["link/e.log", "x/y/c.log", "x/z/e.log"]);
        assert_eq!(under("x/y/d.txt"), ["x/y/d.txt"]);
        assert_eq!(under("nothing/*/here"), [""; 0]);
        let some = found(&[format!("{root}/**/*.log")], &["b.*".into(), format!("{root}/*/y/*")]);
        assert_eq!(some.len(), 4, "{some:?}");
    }
    #[test]
    fn which_names_matter_and_where_they_may_come() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let of = |pattern: &str| Globs::new(&[format!("{}/{pattern}", root.display())], &["*.gz".into()]).unwrap();
        let entered = |pattern: &str| {
            let mut dirs = Vec::new();
            of(pattern).scan(&mut |place| {
                if let Place::Directory(dir) = place {
                    dirs.push(dir.strip_prefix(root).unwrap().display().to_string());
                }
            });
            dirs.sort();
            dirs.dedup();
            dirs
        };
        assert_eq!(entered("*.log"), [""]);
        assert_eq!(entered("a/x.log"), ["a"]);
        assert_eq!(entered("a/c/d/x.log"), ["a"], "where the next directory may come");
        assert_eq!(entered("*/*.log"), ["", "a"]);
        assert_eq!(entered("**/x.log"), ["", "a", "a/b"]);
        let concerns = |pattern: &str, name: &str, is_dir| of(pattern).concerns(&root.join(name), is_dir);
        for (pattern, name, file, dir) in [
            ("*.log", "x.log", true, true),
            ("*.log", "x.txt", false, false),
            ("*.log", "a/x.log", false, false),
            ("*/*.log", "a", false, true),
            ("*/*.log", "a/x.log", true, true),
            ("**/x.log", "a/b/c", false, true),
            ("**/x.log", "a/b/x.log", true, true),
            ("a/c/x.log", "a/c", false, true),
            ("a/c/x.log", "a/d", false, false),
            ("*", "x.gz", false, true),
        ] {
            assert_eq!(concerns(pattern, name, false), file, "{pattern} {name}");
            assert_eq!(concerns(pattern, name, true), dir, "{pattern} {name}/");
        }
    }
    #[test]
    fn names_are_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let names: [&[u8]; 4] = [
            b"not-utf8-\xff.log",
            b"new\nline.log",
            b"glob[*]?.log",
            "日本.log".as_bytes(),
        ];
        for name in names {
            fs::write(dir.path().join(OsStr::from_bytes(name)), "").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let names = found(&[format!("{root}/*.log")], &[]);
        let names = names.iter().map(|name| &name[root.len() + 1..]).collect::<Vec<_>>();
        assert_eq!(
            names,
            ["glob[*]?.log", "new\\nline.log", "not-utf8-\\xff.log", "日本.log"]
        );
        // A name with wildcards in it can be given exactly.
        assert_eq!(found(&[format!("{root}/glob\\[\\*\\]\\?.log")], &[]).len(), 1);
    }
    #[test]
    fn special_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        symlink("/dev/null", dir.path().join("null")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        let scan = Globs::new(&[format!("{}/*", dir.path().display())], &[])
            .unwrap()
            .scan(&mut |_| ());
        let mut kinds = scan.special.iter().map(|(_, kind)| *kind).collect::<Vec<_>>();
        kinds.sort_unstable();
        assert_eq!(kinds, ["device", "directory", "fifo", "socket"]);
        assert!(scan.files.is_empty() && scan.blind.is_empty());
    }
    #[test]
    fn bad_patterns_say_where() {
        for bad in ["/var/log/", "/", "/a/[", "/a/{b"] {
            let error = Globs::new(&["/ok".into(), bad.into()], &[]).err().expect(bad);
            assert_eq!(error.key, "paths[1]", "{error}");
        }
        assert_eq!(Globs::new(&[], &["[".into()]).err().unwrap().key, "exclude[0]");
    }
}
