//! Who may know whom, and a few things that may stand in one place only. The table below is the house's; a new module gets its row.
mod tree;

use std::path::Path;

use tree::{Name, Tree, name};

/// A module may name its own layer and those on the right. A row for a module counts for all below it, and rows add up.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("main", &["cli", "agent", "settings", "os", "log"]),
    (
        "cli",
        &[
            "agent",
            "settings",
            "model",
            "plugins",
            "os",
            "identity",
            "log",
            "clock",
            "checkpoint",
            "deadletter",
            "signature",
            "store",
            "schedule",
        ],
    ),
    (
        "agent",
        &[
            "actors",
            "settings",
            "log",
            "identity",
            "os",
            "metrics",
            "clock",
            "model",
            "messages",
            "checkpoint",
            "deadletter",
            "plugins",
        ],
    ),
    (
        "actors",
        &[
            "messages",
            "model",
            "plugins",
            "executors",
            "history",
            "webhook",
            "schedule",
            "checkpoint",
            "deadletter",
            "retry",
            "metrics",
            "log",
            "identity",
            "clock",
            "settings",
            "os",
            "signature",
            "webhook",
            "store",
        ],
    ),
    ("actors::http_api", &["web"]),
    ("actors::root", &["web"]), // it hands the pages what they may ask
    ("web", &["messages", "model", "metrics", "log", "os", "clock"]),
    ("messages", &["model"]),
    (
        "settings",
        &[
            "model",
            "plugins",
            "executors",
            "os",
            "webhook",
            "signature",
            "cli::args",
        ],
    ),
    ("settings::etcd", &["store"]), // how it is to be reached
    ("plugins", &["model", "clock", "os", "checkpoint"]),
    ("plugins::inputs::cron", &["schedule", "executors"]),
    ("checkpoint", &["model"]),
    ("deadletter", &["model", "clock", "os"]),
    ("log", &["settings", "os", "clock"]),
    ("identity", &["model", "os", "settings"]),
    ("clock", &["os"]),
    ("metrics", &["os"]),
    ("model", &[]),
    ("model::job", &["schedule"]), // a job that cannot be due is no job
    ("schedule", &[]),
    ("signature", &["model"]),
    ("webhook", &["model", "clock", "http_client", "retry"]),
    ("http_client", &[]),
    ("executors", &["model", "clock", "os"]),
    ("history", &["model"]),
    ("os", &[]),
    ("retry", &[]),
    ("store", &["model", "clock", "os"]),
];

/// Crates that only some modules may name.
const CRATES: &[(&str, &[&str])] = &[
    ("actix", &["agent", "actors", "web", "messages"]),
    ("actix_rt", &["agent", "actors", "web", "messages"]),
    ("actix_web", &["agent", "actors", "web", "messages"]),
    ("backoff", &["retry"]),
    ("etcd_client", &["store"]),
    ("redb", &["store", "history", "actors::root"]),
    ("figment", &["settings"]),
    ("reqwest", &["http_client", "webhook"]),
];

/// Groups of actors that do not know each other.
const STRANGERS: &[(&str, &str)] = &[("actors::cron", "actors::collect")];
/// May name every actor, and may be named by every one.
const INTRODUCES: &str = "actors::root";
const KIT: &str = "actors::kit";
/// The one module that ends the process, when all is in order.
const EXITS: &str = "agent";
/// Lines of src/main.rs.
const LONGEST_MAIN: usize = 60;

/// Everything in `src` that breaks a rule: `file:line: what`, in order.
fn findings(src: &Path) -> Vec<String> {
    let tree = Tree::read(src);
    let mut found = Vec::new();
    for mention in &tree.mentions {
        let mut say = |what: String| found.push((mention.file.clone(), mention.line, what));
        let from = inside(&mention.module);
        let shown = if from.is_empty() { "lib" } else { &from };
        let mut broken = mention.names.iter().filter_map(|named| {
            let to = inside(named);
            if named[0] == "std" && named.ends_with(&name("process::exit")) {
                return (!is_within(&from, EXITS)).then(|| format!("`process::exit` belongs into `{EXITS}`"));
            }
            if let Some((krate, places)) = CRATES.iter().find(|(krate, _)| named[0] == *krate) {
                let fits = places.iter().any(|place| is_within(&from, place));
                return (!fits).then(|| format!("`{shown}` may not name the crate `{krate}`"));
            }
            if named[0] != "crate" || from.is_empty() || !tree.modules.contains_key(&named[..named.len().min(2)]) {
                return None;
            }
            let stranger = |a: &str, b: &str| is_within(&from, a) && is_within(&to, b);
            let bad = !may_name(&from, &to)
                || STRANGERS.iter().any(|(a, b)| stranger(a, b) || stranger(b, a))
                || names_another_actor(&tree, &from, named);
            bad.then(|| format!("`{shown}` may not name `{to}`"))
        });
        if let Some(what) = broken.next() {
            say(what);
        }
    }
    for (_, file, line, method, argument) in &tree.calls {
        let mut say = |what: &str| found.push((file.clone(), *line, what.to_owned()));
        match (method.as_str(), argument) {
            ("do_send", _) => say("`do_send` has no bound"),
            ("unwrap", _) => say("`unwrap` gives no reason"),
            // Two words at least: methods called `expect` that take something else are none of Option or Result.
            ("expect", Some(reason)) if !reason.trim().contains(' ') => say("`expect` gives no reason"),
            _ => {}
        }
    }
    for (module, info) in &tree.modules {
        let top = inside(&module[..module.len().min(2)]);
        if module.len() == 2 && !MAY_NAME.iter().any(|(from, _)| *from == top) {
            found.push((info.file.clone(), 1, format!("`{top}` has no row in tests/layers")));
        }
        if module[0] == "main" && info.lines > LONGEST_MAIN {
            found.push((
                info.file.clone(),
                info.lines,
                format!("longer than {LONGEST_MAIN} lines"),
            ));
        }
    }
    found.sort();
    found.dedup();
    found
        .into_iter()
        .map(|(file, line, what)| format!("{}:{line}: {what}", file.display()))
        .collect()
}

/// Without the crate before it: `actors::root`; empty for lib.rs.
fn inside(module: &[String]) -> String {
    match module {
        [first, rest @ ..] if first == "crate" => rest.join("::"),
        all => all.join("::"),
    }
}
fn is_within(module: &str, place: &str) -> bool {
    module
        .strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
fn may_name(from: &str, to: &str) -> bool {
    let layer = |module: &str| module.split("::").next().map(str::to_owned);
    layer(from) == layer(to)
        || MAY_NAME
            .iter()
            .filter(|(place, _)| is_within(from, place))
            .any(|(_, allowed)| allowed.iter().any(|place| is_within(to, place)))
}
/// Within actors, whatever is not the one who introduces them: no file names an actor but its own.
fn names_another_actor(tree: &Tree, from: &str, named: &Name) -> bool {
    if !is_within(from, "actors") || is_within(from, INTRODUCES) {
        return false;
    }
    let actor = (1..=named.len())
        .find(|&n| tree.modules.get(&named[..n]).is_some_and(|module| module.is_actor))
        .map(|n| inside(&named[..n]));
    actor.is_some_and(|actor| !is_within(from, &actor) && !is_within(&actor, KIT))
}

#[test]
fn the_house_is_in_order() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found = findings(&src);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// A house where every rule is broken, in every way that comes to mind; and where much that looks like it is fine.
#[test]
fn a_bad_house_is_found_out() {
    let src = tempfile::tempdir().unwrap();
    for (file, text) in [
        (
            "lib.rs",
            "pub mod actors; pub mod model; pub fn f() { backoff::f(); }\n",
        ),
        (
            "main.rs",
            &format!(
                "use luffly_agent::{{cli, web}};\nfn main() {{ luffly_agent::cli::run() }}\n{}",
                "//\n".repeat(60)
            ),
        ),
        ("cli/mod.rs", "pub mod args;\npub fn run() { std::process::exit(1) }\n"),
        ("cli/args.rs", "pub struct Args;\n"),
        (
            "agent.rs",
            "use std::process;\nfn a() { process::exit(0) }\nfn b() { process::exit(1) }\nfn c() { actix::f(); other::exit(1) }\n",
        ),
        (
            "settings/mod.rs",
            "use crate::{model::Host, cli::{args::Args, self}};\nuse figment::Figment;\nuse crate::plugins;\n",
        ),
        (
            "model/mod.rs",
            "mod host;\npub use host::Host;\npub use crate::os::boot;\nuse actix::prelude::*;\nfn f() { slog::info!(l, \"x\"; \"a\" => crate::web::f()) }\n",
        ),
        ("model/host.rs", "pub struct Host(super::super::clock::Clock);\n"),
        (
            "os.rs",
            "pub fn boot() { x.unwrap(); y.unwrap_or(1); z.expect(\"why\"); z.expect(\"a good reason\") }\n",
        ),
        ("clock.rs", "pub use crate::os as system;\npub struct Clock;\n"),
        (
            "web/mod.rs",
            "use crate::actors::http_api::X;\nuse crate::messages;\npub fn f() {}\n",
        ),
        (
            "messages/mod.rs",
            "#[rtype(result = \"crate::web::View\")]\nstruct M(actix::Addr);\n",
        ),
        (
            "plugins/mod.rs",
            "pub use crate::retry as model;\nuse actix_rt as rt;\n#[cfg(test)]\nmod tests { use crate::web::f; }\n#[cfg(test)]\nmod more;\n#[cfg(not(test))]\nfn f() { use crate::agent; }\n",
        ),
        ("plugins/more.rs", "use crate::actors::root::Root;\n"),
        ("retry.rs", "use backoff::Backoff;\n"),
        (
            "actors/mod.rs",
            "pub mod collect;\npub mod kit;\nuse crate::checkpoint;\n",
        ),
        (
            "actors/root.rs",
            "impl Actor for Root {}\nuse crate::actors::{collect::sink::Sink, http_api};\n",
        ),
        (
            "actors/http_api.rs",
            "use crate::web::f;\nimpl actix::Actor for HttpApi { fn f(&self) { a.do_send(1); m!(a.do_send(2)); } }\n",
        ),
        ("actors/kit/mod.rs", "impl Actor for Keeper {}\nuse crate::web;\n"),
        (
            "actors/collect/mod.rs",
            "pub mod sink;\npub mod reader;\npub mod meter;\npub use sink::Sink;\n",
        ),
        (
            "actors/collect/sink.rs",
            "use super::{*, meter::Meter};\nuse crate::actors::kit::Keeper;\nimpl Actor for Sink {}\nfn f(r: reader::Reader) {}\n",
        ),
        (
            "actors/collect/reader.rs",
            "use actix::prelude::*;\nimpl Actor for Reader {}\nuse super::super::cron;\nuse super::Sink as Output;\n",
        ),
        (
            "actors/collect/meter.rs",
            "fn f() -> Self { self::own() }\nfn g() { super::super::cron::watcher::X; }\n",
        ),
        ("actors/cron/mod.rs", "pub mod watcher;\n"),
        (
            "actors/cron/watcher.rs",
            "use crate::actors::collect as c;\nfn f() { c::meter::f() }\n",
        ),
        (
            "checkpoint/mod.rs",
            "mod inner { use super::super::model; pub(in crate::checkpoint) fn f() { super::super::plugins::f() } }\n",
        ),
        ("novel.rs", "\n"),
    ] {
        let path = src.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let expected = [
        "actors/collect/meter.rs:2: `actors::collect::meter` may not name `actors::cron::watcher::X`",
        "actors/collect/mod.rs:4: `actors::collect` may not name `actors::collect::sink::Sink`",
        "actors/collect/reader.rs:3: `actors::collect::reader` may not name `actors::cron`",
        "actors/collect/reader.rs:4: `actors::collect::reader` may not name `actors::collect::sink::Sink`",
        "actors/collect/sink.rs:4: `actors::collect::sink` may not name `actors::collect::reader::Reader`",
        "actors/cron/watcher.rs:1: `actors::cron::watcher` may not name `actors::collect`",
        "actors/cron/watcher.rs:2: `actors::cron::watcher` may not name `actors::collect::meter::f`",
        "actors/http_api.rs:2: `do_send` has no bound",
        "actors/kit/mod.rs:2: `actors::kit` may not name `web`",
        "checkpoint/mod.rs:1: `checkpoint::inner` may not name `plugins::f`",
        "cli/mod.rs:2: `process::exit` belongs into `agent`",
        "lib.rs:1: `lib` may not name the crate `backoff`",
        "main.rs:1: `main` may not name `web`",
        "main.rs:62: longer than 60 lines",
        "messages/mod.rs:1: `messages` may not name `web::View`",
        "model/host.rs:1: `model::host` may not name `clock::Clock`",
        "model/mod.rs:3: `model` may not name `os::boot`",
        "model/mod.rs:4: `model` may not name the crate `actix`",
        "model/mod.rs:5: `model` may not name `web::f`",
        "novel.rs:1: `novel` has no row in tests/layers",
        "os.rs:1: `expect` gives no reason",
        "os.rs:1: `unwrap` gives no reason",
        "plugins/mod.rs:1: `plugins` may not name `retry`",
        "plugins/mod.rs:2: `plugins` may not name the crate `actix_rt`",
        "plugins/mod.rs:8: `plugins` may not name `agent`",
        "settings/mod.rs:1: `settings` may not name `cli`",
        "web/mod.rs:1: `web` may not name `actors::http_api::X`",
    ];
    let found = findings(src.path());
    assert_eq!(found, expected, "\n{}\n", found.join("\n"));
}

#[test]
fn contributing_lists_every_failpoint() {
    let house = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(house.join("CONTRIBUTING.md")).unwrap();
    let mut names = 0;
    for module in Tree::read(&house.join("src")).modules.values() {
        let text = std::fs::read_to_string(house.join("src").join(&module.file)).unwrap();
        for after in text.split("fail_point!(\"").skip(1) {
            let name = after.split('"').next().unwrap();
            assert!(
                guide.contains(&format!("| `{name}` |")),
                "{name}, in {}",
                module.file.display()
            );
            names += 1;
        }
    }
    assert!(names > 0);
}
