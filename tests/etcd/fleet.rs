//! What the commands see and do through etcd: jobs of another host or of a group, and the fleet. Real agents, a real etcd, and the real
//! binary in a place of its own, where no agent runs.
use std::process::Stdio;

use luffly_agent::{
    signature::{Kind, Serials, Verifier, key_file},
    store::keys::{self, Node, Runs},
};
use serde_json::Value;

use crate::kit::agent::{Output, Place, Running, until};
use crate::kit::servers::Etcd;

struct Fleet {
    etcd: Etcd,
    /// Of whoever types the commands.
    desk: Place,
}
impl Fleet {
    fn new() -> Self {
        Self {
            etcd: Etcd::start(),
            desk: Place::default(),
        }
    }
    /// An agent of the group `web` at that address.
    fn settings(&self, place: &Place, ip: &str) -> std::path::PathBuf {
        let endpoint = self.etcd.endpoint();
        let text = format!(
            "[agent]\nip = \"{ip}\"\ngroup = \"web\"\n[etcd]\nendpoints = [\"{endpoint}\"]\nlease_ttl = \"2s\"\nrenew_every = \"500ms\"\npublish_runs = true\n[http]\naddress = \"off\"\n"
        );
        place.write("agent.toml", text)
    }
    fn agent(&self, place: &Place, ip: &str) -> Running {
        let running = place.start(&self.settings(place, ip), Stdio::null());
        self.etcd
            .until("it is seen", |etcd| etcd.get(&keys::health(ip)).is_some());
        running
    }
    fn run(&self, args: &[&str]) -> Output {
        let endpoint = self.etcd.endpoint();
        self.desk.run(&[args, &["--etcd-endpoint", &endpoint]].concat())
    }
    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code(), Some(0), "{args:?}: {done:?}");
        done.out
    }
    fn refused(&self, args: &[&str], code: i32, said: &str) {
        let done = self.run(args);
        assert_eq!(done.code(), Some(code), "{args:?}: {done:?}");
        assert!(done.err.contains(said) || done.out.contains(said), "{args:?}: {done:?}");
    }
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }
}

#[test]
fn jobs_of_another_host() {
    let fleet = Fleet::new();
    let node = ["--node", "10.0.0.1"];
    let jobs = |args: &[&str]| fleet.ok(&[&["jobs"], args, &node].concat());
    let place = Place::default();
    let out = place.path("out");
    let job = format!(
        r#"{{"task_id":17,"cmd":"echo run >> {}; sleep 60","express":"0 0 1 1 *","executor":"sh"}}"#,
        out.display()
    );

    // Nobody is there yet: it is written all the same, and said.
    let said = jobs(&["put", &job]);
    assert!(
        said.starts_with("job 17 put\nnext 20") && said.ends_with("no agent is online at 10.0.0.1\n"),
        "{said}"
    );
    assert_eq!(said.lines().filter(|line| line.starts_with("next ")).count(), 5);
    fleet.refused(
        &["jobs", "run", "17", node[0], node[1]],
        1,
        "no agent is online at 10.0.0.1: nothing was sent",
    );
    let bad = r#"{"task_id":18,"cmd":"x","express":"61 * * * *"}"#;
    fleet.refused(&["jobs", "put", bad, node[0], node[1]], 1, "`express`: found");
    assert_eq!(fleet.etcd.keys("/cron/jobs/"), ["/cron/jobs/10.0.0.1/17"]);

    let agent = fleet.agent(&place, "10.0.0.1");
    let state = || fleet.json(&["jobs", "get", "17", node[0], node[1]])["agents"]["10.0.0.1"]["state"].clone();
    until("it has answered", || state() == "ok");
    assert!(jobs(&["list"]).contains("ok     0 0 1 1 *"), "{}", jobs(&["list"]));
    let page = jobs(&["get", "17"]);
    assert!(page.contains("agent    10.0.0.1: ok\nnext     20"), "{page}");

    let said = jobs(&["run", "17"]);
    let run = said.lines().nth(1).unwrap().strip_prefix("run ").unwrap().to_owned();
    assert!(said.starts_with("job 17 at 10.0.0.1: "), "{said}");
    until("it has run", || {
        std::fs::read_to_string(&out).is_ok_and(|text| text == "run\n")
    });
    let other = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    fleet.refused(
        &["jobs", "kill", "17", "--run", other, node[0], node[1]],
        1,
        "job 17 at 10.0.0.1: ",
    );
    let killed = fleet.json(&["jobs", "kill", "17", "--run", &run, node[0], node[1]]);
    assert_eq!(killed["answers"][0]["runs"][0], run.as_str(), "{killed}");
    until("it is over", || {
        place.run(&["jobs", "runs", "17"]).out.contains("killed")
    });
    assert_eq!(fleet.etcd.keys("/cron/commands/"), [""; 0]);
    fleet.refused(
        &["jobs", "run", "99", node[0], node[1]],
        1,
        "there is no job /cron/jobs/10.0.0.1/99",
    );

    assert_eq!(jobs(&["pause", "17"]), "job 17: paused\n");
    until("it is paused", || state() == "paused");
    assert_eq!(jobs(&["pause", "17"]), "job 17: paused already\n");
    assert_eq!(jobs(&["resume", "17"]), "job 17: running\n");
    let changed = jobs(&["put", &job.replace("0 0 1 1 *", "0 0 2 1 *")]);
    assert!(
        changed.starts_with("job 17 changed\nnext ") && !changed.contains("no agent"),
        "{changed}"
    );
    assert_eq!(jobs(&["rm", "17"]), "job 17 removed\n");
    assert_eq!(jobs(&["list"]), "no jobs\n");

    // Signed for the place where it is put, by settings of here; its status is under the signature.
    let key = fleet.desk.path("key");
    let public = key_file::create(&key).unwrap();
    let sign = ["--sign", key.to_str().unwrap()];
    fleet.refused(
        &[&["jobs", "put", &job], &sign[..], &node].concat(),
        64,
        "accepted: --fleet NAME",
    );
    jobs(&["put", &job, sign[0], sign[1], "--fleet", "shop"]);
    let signed = fleet.etcd.get("/cron/jobs/10.0.0.1/17").unwrap();
    let verifier = Verifier::new(&[public.trim()], "shop").unwrap();
    let now = luffly_agent::clock::system().wall();
    let fits = |path: &str| {
        Serials::default()
            .admit(&verifier, Kind::Job, path, signed.as_bytes(), now)
            .is_ok()
    };
    assert_eq!(
        (fits("/cron/jobs/10.0.0.1/17"), fits("/cron/jobs/10.0.0.2/17")),
        (true, false)
    );
    fleet.refused(
        &["jobs", "pause", "17", node[0], node[1]],
        1,
        "is signed, its status too",
    );
    jobs(&["rm", "17"]);
    fleet.refused(&["jobs", "rm", "17", node[0], node[1]], 1, "there is no job");

    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn jobs_of_a_group() {
    let fleet = Fleet::new();
    let (one, two) = (Place::default(), Place::default());
    let (a, b) = (fleet.agent(&one, "10.0.0.1"), fleet.agent(&two, "10.0.0.2"));
    let group = ["--group", "web"];
    let jobs = |args: &[&str]| fleet.ok(&[&["jobs"], args, &group].concat());
    let job = r#"{"task_id":"all","cmd":"true","express":"0 0 1 1 *","executor":"sh"}"#;
    assert!(jobs(&["put", job]).ends_with("2 agents of the group are online\n"));
    until("both have answered", || jobs(&["list"]).contains("2 ok"));
    let said = jobs(&["run", "all"]);
    assert!(
        said.contains("job all at 10.0.0.1: ") && said.contains("job all at 10.0.0.2: "),
        "{said}"
    );
    for place in [&one, &two] {
        until("it has run there", || {
            place.run(&["jobs", "runs", "all"]).out.contains("succeeded")
        });
    }
    let runs = || Some(keys::read::<Runs>(fleet.etcd.get(&keys::runs("10.0.0.1"))?.as_bytes()));
    until("how its jobs do is seen", || runs().is_some());
    let only = fleet.json(&["jobs", "run", "all", "--group", "web", "--node", "10.0.0.2"]);
    assert_eq!(only["answers"].as_array().unwrap().len(), 1);
    let shown = fleet.ok(&["jobs", "list", "--node", "10.0.0.2"]);
    assert!(shown.contains("all   web    ok"), "{shown}");
    let once = r#"{"task_id":"one","cmd":"true","express":"0 0 1 1 *","exclusive":true}"#;
    jobs(&["put", once]);
    fleet.refused(
        &["jobs", "run", "one", "--group", "web"],
        64,
        "is exclusive and the group has 2 agents online",
    );
    fleet.refused(
        &["jobs", "rm", "one", "--group", "web", "--node", "10.0.0.1"],
        64,
        "accepted: one of them",
    );
    fleet.refused(&["jobs", "list"], 64, "accepted: with --node or --group");
    jobs(&["pause", "all"]);
    until("both are paused", || jobs(&["list"]).contains("2 paused"));
    assert_eq!((a.stop(), b.stop()), (Some(0), Some(0)));
    assert_eq!(fleet.etcd.keys("/cron/runs/"), [""; 0]);
    assert!(jobs(&["list"]).ends_with("no agent of group web is online\n"));
}

#[test]
fn orders_are_signed_on_the_way() {
    let fleet = Fleet::new();
    let (place, node) = (Place::default(), ["--node", "10.0.0.1"]);
    let key = fleet.desk.path("key");
    let public = key_file::create(&key).unwrap();
    let settings = fleet.settings(&place, "10.0.0.1");
    let more = format!("[jobs]\nverify_key = [\"{}\"]\nfleet = \"shop\"\n", public.trim());
    std::fs::write(&settings, std::fs::read_to_string(&settings).unwrap() + &more).unwrap();
    let agent = place.start(&settings, Stdio::null());
    fleet
        .etcd
        .until("it is seen", |etcd| etcd.get(&keys::health("10.0.0.1")).is_some());

    let sign = ["--sign", key.to_str().unwrap(), "--fleet", "shop"];
    let job = r#"{"task_id":"17","cmd":"sleep 60","express":"0 0 1 1 *","executor":"sh"}"#;
    assert!(
        fleet
            .ok(&[&["jobs", "put", job], &node[..], &sign].concat())
            .starts_with("job 17 put")
    );
    for order in ["run", "kill"] {
        let order = ["jobs", order, "17"];
        fleet.refused(&[&order, &node[..]].concat(), 1, "`signature`: found none");
        fleet.refused(&[&order, &node[..], &sign[..2]].concat(), 64, "accepted: --fleet NAME");
        let long = ["--valid-for", "1h"];
        fleet.refused(&[&order, &node[..], &sign, &long].concat(), 64, "10m at most");
        fleet.refused(&[&order, &sign[..]].concat(), 64, "accepted: with --node or --group");
        let said = fleet.ok(&[&order, &node[..], &sign].concat());
        assert!(
            said.starts_with("job 17 at 10.0.0.1: ") && said.contains("\nrun "),
            "{said}"
        );
    }
    until("it is killed", || {
        place.run(&["jobs", "runs", "17"]).out.contains("killed")
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn the_fleet_and_who_is_gone() {
    let fleet = Fleet::new();
    assert_eq!(fleet.ok(&["nodes"]), "no nodes\n");
    let (one, two) = (Place::default(), Place::default());
    let (a, b) = (fleet.agent(&one, "10.0.0.1"), fleet.agent(&two, "10.0.0.11"));
    fleet.etcd.put("/cron/jobs/10.0.0.1/17", "{}");
    let shown = |ip: &str| {
        let all = fleet.json(&["nodes"]);
        let found = all["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["ip"] == ip)
            .cloned();
        found.unwrap_or_default()
    };
    let node = shown("10.0.0.1");
    assert_eq!(
        (&node["state"], &node["jobs"], &node["group"]),
        (&"online".into(), &1.into(), &"web".into()),
        "{node}"
    );
    fleet.refused(&["nodes", "rm", "10.0.0.1"], 1, "10.0.0.1: is online, so it stays");
    assert_eq!(a.stop(), Some(0));
    b.kill();
    fleet
        .etcd
        .until("its lease has ended", |etcd| etcd.keys(keys::HEALTH).is_empty());
    let (stopped, gone) = (shown("10.0.0.1"), shown("10.0.0.11"));
    assert_eq!((&stopped["state"], &gone["state"]), (&"stopped".into(), &"gone".into()));
    assert!(
        stopped["why"].as_str().is_some_and(|why| !why.is_empty()) && gone["since"].is_null(),
        "{stopped} {gone}"
    );
    // Its last stop is to be seen when it is there again.
    let a = fleet.agent(&one, "10.0.0.1");
    assert_eq!(shown("10.0.0.1")["last_stop"], stopped["last_stop"]);
    assert_eq!(a.stop(), Some(0));
    let swept = fleet.ok(&["nodes", "rm", "--older", "30d"]);
    assert_eq!(swept, "10.0.0.11: gone without a word; counted from now on\n");
    assert_eq!(
        fleet.ok(&["nodes", "rm", "--older", "30d"]),
        "no host has been gone for so long\n"
    );
    let key = keys::node("10.0.0.11");
    let node = keys::read::<Node>(fleet.etcd.get(&key).unwrap().as_bytes());
    let long_ago = Node {
        gone_since: Some("2020-01-01T00:00:00Z".into()),
        ..node
    };
    fleet
        .etcd
        .put(&key, std::str::from_utf8(&keys::json(&long_ago)).unwrap());
    assert_eq!(fleet.ok(&["nodes", "rm", "--older", "30d"]), "10.0.0.11: removed\n");
    assert_eq!(fleet.ok(&["nodes", "rm", "10.0.0.1"]), "10.0.0.1: removed\n");
    assert_eq!(fleet.ok(&["nodes"]), "no nodes\n");
}

#[test]
fn an_address_that_is_held_ends_a_start_that_requires_it() {
    let fleet = Fleet::new();
    let (one, two) = (Place::default(), Place::default());
    let a = fleet.agent(&one, "10.0.0.1");
    let settings = fleet.settings(&two, "10.0.0.1");
    let start = |place: &Place, settings: &std::path::Path| {
        place.run(&[
            "start",
            "--foreground",
            "--require-address",
            "-config",
            settings.to_str().unwrap(),
        ])
    };
    let done = start(&two, &settings);
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.err.contains("10.0.0.1 is held by sky01 (instance "), "{done:?}");
    assert!(!done.err.contains("\"msg\":\"ready\""));
    a.kill();
    // Its own key, of its life before, is no other agent's; nobody's is none; and an etcd that is away is no failure.
    let settings = fleet.settings(&one, "10.0.0.1");
    let mut args = vec!["start", "--require-address", "-config", settings.to_str().unwrap()];
    let done = one.run(&args);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert_eq!(one.run(&["stop"]).code(), Some(0));
    drop(fleet);
    let done = one.run(&args);
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert_eq!(one.run(&["stop"]).code(), Some(0));
    args.truncate(2);
    let done = two.run(&args);
    assert_eq!(done.code(), Some(64), "{done:?}");
}
