//! The settings from outside: what each layer says, who wins, and what is said of what is wrong, word by word.
use std::{
    ffi::OsString,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use luffly_agent::{
    cli::args::{Command, Options, Place, parse},
    settings::{self, Ip, LogFormat, Purpose, Refused, Retry, Settings, WhenFull, Whereabouts, load, locate},
};
use proptest::prelude::*;

const SIZE: &str = "accepted: a size as in \"256KiB\", \"100MiB\" or \"1GB\", or a whole number of bytes";
const SPAN: &str = "accepted: a duration with its unit as in \"200ms\", \"30s\", \"5m\", \"1h30m\" or \"7d\"";

/// A file in a directory of its own, the environment, and what is typed after `agent`.
struct Case {
    dir: tempfile::TempDir,
    file: Option<PathBuf>,
    env: Vec<(OsString, OsString)>,
    typed: Vec<String>,
    purpose: Option<Purpose>,
}
fn case() -> Case {
    Case {
        dir: tempfile::tempdir().unwrap(),
        file: None,
        env: vec![("HOME".into(), "/home/somebody".into())],
        typed: Vec::new(),
        purpose: None,
    }
}
impl Case {
    fn file(mut self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        self.file = Some(path);
        self
    }
    fn toml(self, text: &str) -> Self {
        self.file("agent.toml", text)
    }
    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
    fn typed(mut self, words: &[&str]) -> Self {
        self.typed.extend(words.iter().map(|w| (*w).to_owned()));
        self
    }
    fn start(mut self) -> Self {
        self.purpose = Some(Purpose::Start { foreground: true });
        self
    }
    fn load(&self) -> Result<Settings, Refused> {
        let mut line = vec!["agent".to_owned()];
        line.extend(self.typed.iter().cloned());
        let Ok(Command::Run(mut options)) = parse(line) else {
            panic!("not a run: {:?}", self.typed)
        };
        options.place.config.clone_from(&self.file);
        load(&options, self.env.iter().cloned(), self.purpose.unwrap_or(Purpose::Run))
    }
    #[track_caller]
    fn loaded(&self) -> Settings {
        self.load().unwrap_or_else(|refused| panic!("{refused}"))
    }
    /// The errors a line each, without the directory, and the exit code.
    #[track_caller]
    fn refused(&self) -> (u8, Vec<String>) {
        let refused = self.load().expect_err("must be refused");
        let dir = format!("{}/", self.dir.path().display());
        let errors = refused.errors.iter().map(|e| e.to_string().replace(&dir, "")).collect();
        (refused.code, errors)
    }
    #[track_caller]
    fn says(&self, code: u8, errors: &[&str]) {
        let (was, found) = self.refused();
        assert_eq!(found, errors);
        assert_eq!(was, code);
    }
}
fn names(settings: &Settings) -> Vec<String> {
    let plugins = |p: &settings::Pipeline| {
        let filters = p
            .filters
            .iter()
            .map(|f| f.name.to_string())
            .collect::<Vec<_>>()
            .join("+");
        let outputs = p
            .outputs
            .iter()
            .map(|o| o.plugin.name.to_string())
            .collect::<Vec<_>>()
            .join("+");
        format!("{}: {} > {filters} > {outputs}", p.name, p.input.name)
    };
    settings.pipelines.iter().map(plugins).collect()
}

// ---- what is in effect

#[test]
fn bare_agent() {
    let settings = case().loaded();
    assert_eq!(names(&settings), ["default: stdin:v1 > valid:v1 > stdout:v1"]);
    assert_eq!((&*settings.agent.id, &*settings.agent.group), ("sky01", "net01"));
    assert_eq!(settings.agent.ip, Ip::Auto);
    assert_eq!(settings.agent.drain, Duration::from_secs(20));
    assert_eq!(settings.http.address, Some("0.0.0.0:10630".parse().unwrap()));
    assert!(!settings.http.explicit && !settings.http.insecure_remote && settings.http.tls.is_none());
    assert_eq!(
        (settings.log.level, settings.log.format),
        (slog::Level::Info, LogFormat::Auto)
    );
    assert_eq!((settings.log.max_size, settings.log.keep), (10 << 20, 5));
    assert_eq!((settings.limits.memory, settings.limits.nice), (64 << 20, None));
    let sizes = (
        settings.max_read_channel_size,
        settings.max_write_channel_size,
        settings.max_write_bulk_size,
    );
    assert_eq!(sizes, (4096, 4096, 500));
    assert_eq!((settings.once, settings.config.clone()), (false, None));
    let output = &settings.pipelines[0].outputs[0];
    assert_eq!((output.when_full, output.degrade), (WhenFull::Block, WhenFull::Block));
    let retry = Retry {
        first: Duration::from_secs(2),
        most: Duration::from_secs(30),
    };
    assert_eq!(output.retry, retry);

    // On stdin alone it keeps no state; told where to, it does; and so it does for a file.
    assert!(settings.agent.private_data_dir && settings.agent.data_dir.as_os_str().is_empty());
    let mut agent = settings.agent;
    agent.move_to("/tmp/x".into());
    assert_eq!(
        (agent.data_dir, agent.pid_file),
        ("/tmp/x".into(), PathBuf::from("/tmp/x/agent.pid"))
    );
    let told = case().typed(&["--data-dir", "/d"]).loaded().agent;
    assert!(!told.private_data_dir);
    assert_eq!(
        (told.data_dir, told.pid_file),
        ("/d".into(), PathBuf::from("/d/agent.pid"))
    );
    let file = case()
        .typed(&["-input=file", "-filepath=/a", "-output=stdout"])
        .loaded();
    assert!(!file.agent.private_data_dir && file.agent.data_dir.ends_with("luffly"));
}

#[test]
fn later_layers_win() {
    let all = || {
        case()
            .toml("[agent]\nid = 'file'\n[log]\nlevel = 'error'\nkeep = 1\n[http]\naddress = '127.0.0.1:1'\n[limits]\nnice = 1\n")
            .env("AGENT_AGENT__ID", "env")
            .env("AGENT_LOG__LEVEL", "debug")
            .env("AGENT_HTTP__ADDRESS", "127.0.0.1:2")
            .typed(&["-f", r#"{"agent": {"id": "inline"}, "http": {"address": "127.0.0.1:3"}}"#])
    };
    let get = |settings: Settings| {
        let address = settings.http.address.unwrap();
        (
            settings.agent.id,
            settings.log.level,
            address.port(),
            settings.log.keep,
            settings.limits.nice,
        )
    };
    assert_eq!(
        get(all().loaded()),
        ("inline".into(), slog::Level::Debug, 3, 1, Some(1))
    );
    let flags = all()
        .typed(&["-agent-id=flag", "-http-address", ":4", "--set", "agent.id=set"])
        .loaded();
    assert!(flags.http.explicit);
    assert_eq!(get(flags), ("set".into(), slog::Level::Debug, 4, 1, Some(1)));
    let inline = ["-f", r#"{"log": {"keep": 2}}"#, "-f", r#"{"log": {"keep": 3}}"#];
    assert_eq!(case().typed(&inline).loaded().log.keep, 3);
    for explicit in [
        case().toml("http.address = '0.0.0.0:10630'"),
        case().env("AGENT_HTTP__ADDRESS", "0.0.0.0:10630"),
        case().typed(&["-http-address=0.0.0.0:10630"]),
        case().typed(&["-f", r#"{"http":{"address":"0.0.0.0:10630"}}"#]),
    ] {
        assert!(explicit.loaded().http.explicit);
    }
}

#[test]
fn the_environment_of_others_is_not_ours() {
    let settings = case()
        .env("AGENT_RUN_ID", "1")
        .env("AGENT_PORT_10630_TCP", "tcp://10.0.0.1:10630")
        .env("MY_AGENT_HTTP__ADDRESS", "x")
        .env("AGENT_OUTPUT__STDOUT__RETRY__FIRST", "1s")
        .env("AGENT_HTTP__INSECURE_REMOTE", "true")
        .env("AGENT_LIMITS__MAX_WRITE_BULK_SIZE", "7")
        .typed(&["-input=stdin", "-output=stdout"])
        .loaded();
    assert_eq!(settings.pipelines[0].outputs[0].retry.first, Duration::from_secs(1));
    assert!(settings.http.insecure_remote);
    assert_eq!(settings.max_write_bulk_size, 7);
}

#[test]
fn flags_and_tables_make_the_default_pipeline() {
    let inline = r#"{"output":{"logr":{"path":"/tmp/x.log"}}}"#;
    let both = case()
        .typed(&["-filepath=/a,/b", "-input=file:v1", "-output=logr,stdout", "-f", inline])
        .loaded();
    assert_eq!(names(&both), ["default: file:v1 >  > logr:v1+stdout:v1"]);
    assert_eq!(
        both.pipelines[0].input.table.0["paths"],
        serde_json::json!(["/a", "/b"])
    );
    assert_eq!(both.pipelines[0].outputs[0].plugin.table.0["path"], "/tmp/x.log");

    let tables = "[input.file]\npaths = ['/a']\nmax_rate = '1MiB'\n[output.stdout]\n[output.logr]\npath = '/b'\nwhen_full = 'drop_newest'\n";
    let settings = case().toml(tables).loaded();
    assert_eq!(names(&settings), ["default: file:v2 >  > stdout:v1+logr:v1"]); // in the order of the file
    assert_eq!(settings.pipelines[0].max_rate, Some(1 << 20));
    let logr = &settings.pipelines[0].outputs[1];
    assert_eq!(
        (logr.when_full, logr.degrade),
        (WhenFull::DropNewest, WhenFull::DropNewest)
    );
    assert_eq!(logr.plugin.table.0.keys().collect::<Vec<_>>(), ["path"]); // the stage's words are the stage's

    // A flag picks, and a table under the very tag comes before the plain one.
    assert_eq!(
        names(&case().toml(tables).typed(&["-output=logr"]).loaded()),
        ["default: file:v2 >  > logr:v1"]
    );
    let tagged = format!("{tables}[input.\"file:v1\"]\npaths = ['/tagged']\n");
    let settings = case().toml(&tagged).typed(&["-input=file:v1"]).loaded();
    assert_eq!(
        settings.pipelines[0].input.table.0["paths"],
        serde_json::json!(["/tagged"])
    );
    let settings = case()
        .toml(&tagged)
        .typed(&["-input=file:v1", "-filepath=/flag"])
        .loaded();
    assert_eq!(
        settings.pipelines[0].input.table.0["paths"],
        serde_json::json!(["/flag"])
    );

    // Beside what the file lists.
    let listed = "[[pipeline]]\nname = 'one'\ninput = 'stdin'\noutputs = ['null']\n";
    assert_eq!(names(&case().toml(listed).loaded()), ["one: stdin:v1 >  > null:v1"]);
    let settings = case()
        .toml(listed)
        .typed(&["-input=file", "-filepath=/a", "-output=stdout"])
        .loaded();
    assert_eq!(
        names(&settings),
        ["one: stdin:v1 >  > null:v1", "default: file:v2 >  > stdout:v1"]
    );
    assert!(!settings.agent.private_data_dir);

    let listed = r#"pipeline=[{ name = "set", input = "stdin", outputs = ["null"] }]"#;
    assert_eq!(
        names(&case().typed(&["--set", listed]).loaded()),
        ["set: stdin:v1 >  > null:v1"]
    );

    // Filters alone stand between stdin and stdout; a daemon needs no pipeline.
    assert_eq!(
        names(&case().typed(&["-filter=valid,valid"]).loaded()),
        ["default: stdin:v1 > valid:v1+valid:v1 > stdout:v1"]
    );
    assert_eq!(names(&case().toml("").start().loaded()), [""; 0]);
}

#[test]
fn yaml_and_json_say_the_same() {
    let toml = case()
        .toml(
            "[agent]\nid = 'a'\n[limits]\nmemory = '8MiB'\nnice = 3\n[[pipeline]]\nname = 'p'\n\
             input = { plugin = 'file', paths = ['/a'] }\nfilters = ['valid']\noutputs = [{ plugin = 'stdout' }]\n",
        )
        .loaded();
    let yaml = "agent: { id: a }\nlimits:\n  memory: 8MiB\n  nice: 3\npipeline:\n- name: p\n  input:\n    plugin: file\n    paths: [/a]\n  \
                filters: [valid]\n  outputs:\n  - plugin: stdout\n";
    let json = r#"{"agent": {"id": "a"}, "limits": {"memory": "8MiB", "nice": 3}, "pipeline": [{"name": "p",
        "input": {"plugin": "file", "paths": ["/a"]}, "filters": ["valid"], "outputs": [{"plugin": "stdout"}]}]}"#;
    for (name, text) in [("a.yaml", yaml), ("a.yml", yaml), ("a.json", json)] {
        let mut settings = case().file(name, text).loaded();
        settings.config.clone_from(&toml.config);
        assert_eq!(settings, toml, "{name}");
    }
    assert_eq!(
        names(&case().file("empty.yaml", "# nothing\n").start().loaded()),
        [""; 0]
    );
}

#[test]
fn paths_are_absolute() {
    let here = std::env::current_dir().unwrap();
    let agent = case().typed(&["--data-dir=state"]).loaded().agent;
    assert_eq!(
        (agent.data_dir, agent.pid_file),
        (here.join("state"), here.join("state/agent.pid"))
    );
}

#[test]
fn what_is_shown_is_what_was_set() {
    let text = "[http]\naddress = 'off'\ntls = { cert = '/c', key = '/k' }\n[log]\nlevel = 'warn'\nfile = '/l'\n[agent]\nip = '10.0.0.0/8'\n\
                [[pipeline]]\nname = 'p'\ninput = { plugin = 'stdin', max_rate = 1000 }\n\
                outputs = [{ plugin = 'null', degrade = 'drop_oldest', retry = { first = '1m' } }]\n";
    let settings = case().toml(text).loaded();
    let shown = settings.effective();
    assert_eq!(
        shown["http"],
        serde_json::json!({ "address": "off", "insecure_remote": false, "tls": { "cert": "/c", "key": "/k" } })
    );
    assert_eq!(shown["log"]["level"], "warning");
    assert_eq!(shown["agent"]["ip"], "10.0.0.0/8");
    assert_eq!(
        shown["pipeline"][0],
        serde_json::json!({
            "name": "p",
            "input": { "plugin": "stdin:v1", "max_rate": "1000B" },
            "filters": [],
            "outputs": [{
                "plugin": "null:v1", "when_full": "block", "degrade": "drop_oldest", "retry": { "first": "1m", "most": "1m" },
            }],
        })
    );
}

#[test]
fn secrets_are_masked() {
    let mut settings = case().loaded();
    let options = serde_json::json!({ "password": "a", "sasl": { "Token": "b", "key_password": 5 }, "list": [{ "client_secret": "c" }],
        "password_file": "/run/p", "token": null });
    let serde_json::Value::Object(options) = options else {
        unreachable!()
    };
    settings.pipelines[0].outputs[0].plugin.table.0 = options;
    let output = &settings.effective()["pipeline"][0]["outputs"][0];
    assert_eq!(output["password"], "***");
    assert_eq!(
        output["sasl"],
        serde_json::json!({ "Token": "***", "key_password": "***" })
    );
    assert_eq!(output["list"][0]["client_secret"], "***");
    assert_eq!(output["password_file"], "/run/p");
    assert!(output["token"].is_null());
}

#[test]
fn a_running_agent_is_found_whatever_else_is_wrong() {
    let wrong = case().toml("[agent]\ndata_dir = '/d'\npid_file = '/p'\ndrain = 0\n[nonsense]\n");
    let place = |data_dir: Option<&str>| Place {
        config: wrong.file.clone(),
        data_dir: data_dir.map(str::to_owned),
        pid_file: None,
    };
    let found = |place: &Place, env: &[(&str, &str)]| {
        let env = env.iter().map(|(k, v)| (OsString::from(*k), OsString::from(*v)));
        locate(place, env).map(|Whereabouts { data_dir, pid_file }| (data_dir, pid_file))
    };
    let paths = |dir: &str, file: &str| Ok((PathBuf::from(dir), PathBuf::from(file)));
    assert_eq!(found(&place(None), &[]), paths("/d", "/p"));
    assert_eq!(
        found(&place(None), &[("AGENT_AGENT__DATA_DIR", "/e")]),
        paths("/e", "/p")
    );
    assert_eq!(
        found(&place(Some("/f")), &[("AGENT_AGENT__DATA_DIR", "/e")]),
        paths("/f", "/p")
    );
    let none = Place {
        data_dir: Some("/f".into()),
        ..Place::default()
    };
    assert_eq!(found(&none, &[]), paths("/f", "/f/agent.pid"));
    let broken = case().toml("[agent");
    let place = Place {
        config: broken.file.clone(),
        ..Place::default()
    };
    assert_eq!(locate(&place, std::iter::empty()).unwrap_err().code, 78);
}

// ---- what is refused

#[test]
fn every_error_of_a_file_with_its_line() {
    let text = "\
colour = 'blue'
[agent]
id = 5
drain = '0s'
idd = 'x'
ip = '10.0.0.300'
[http]
address = 10630
adress = ':1'
insecure_remote = 'yes'
[http.tls]
cert = '/c'
[log]
level = 'loud'
format = 'xml'
max_size = 'big'
keep = 0
[limits]
memory = '1MiB'
cpu = 0.5
nice = 20
max_read_channel_size = 0
max_write_channel_size = -1
max_write_bulk_size = '500'
[influxdb]
address = '127.0.0.1:8086'
[[pipeline]]
name = 'a b'
input = { plugin = 'stdin', max_rate = 0 }
outputs = [
    { plugin = 'null', when_full = 'spill' },
    { plugin = 'null', when_full = 'wait', degrade = 'drop' },
    { plugin = 'null', retry = { first = '1m', most = '1s', last = '5s' } },
    { plug = 'null' },
    5,
]
[[pipeline]]
input = 'nill'
filters = 'valid'
outputs = [{ plugin = 'stdut' }, { plugin = 'null:v9' }, { plugin = 'NULL' }]
[[pipeline]]
name = 'ok'
input = { plugin = 'null' }
";
    case().toml(text).says(
        78,
        &[
            "agent.toml:1: colour: unknown key, accepted: agent, http, etcd, jobs, log, limits, pipeline, input, filter, output",
            "agent.toml:3: agent.id: found 5, accepted: 1 to 64 characters without blanks and slashes",
            &format!("agent.toml:4: agent.drain: found \"0s\", which means nothing here, {SPAN}"),
            "agent.toml:5: agent.idd: unknown key, accepted: id, group, ip, data_dir, pid_file, drain; did you mean `id`?",
            "agent.toml:6: agent.ip: found \"10.0.0.300\", accepted: \"auto\", an address, a network as in \"10.1.0.0/16\", \
             or an interface as in \"eth0\"",
            "agent.toml:8: http.address: found 10630, accepted: \"off\", or host:port as in \"127.0.0.1:10630\", \"[::1]:10630\" or \
             \":10630\" (port 0: any)",
            "agent.toml:9: http.adress: unknown key, accepted: address, insecure_remote, tls; did you mean `address`?",
            "agent.toml:10: http.insecure_remote: found \"yes\", accepted: true, false",
            "agent.toml:11: http.tls.key: missing, required",
            "agent.toml:14: log.level: found \"loud\", accepted: critical, error, warning, info, debug, trace",
            "agent.toml:15: log.format: found \"xml\", accepted: auto, terminal, json",
            &format!("agent.toml:16: log.max_size: found \"big\", {SIZE}"),
            "agent.toml:17: log.keep: found 0, accepted: a whole number from 1 to 1000",
            "agent.toml:19: limits.memory: found \"1MiB\", accepted: 4MiB or more (eight batches of 256KiB before the filters and \
             as many behind)",
            "agent.toml:20: limits.cpu: not built yet",
            "agent.toml:21: limits.nice: found 20, accepted: a whole number from 0 to 19",
            "agent.toml:22: limits.max_read_channel_size: found 0, accepted: a whole number from 1 to 4294967295",
            "agent.toml:23: limits.max_write_channel_size: found -1, accepted: a whole number from 1 to 4294967295",
            "agent.toml:24: limits.max_write_bulk_size: found \"500\", accepted: a whole number from 1 to 4294967295",
            "agent.toml:25: influxdb: not built yet",
            "agent.toml:28: pipeline[0].name: found \"a b\", accepted: 1 to 64 of the characters A-Z a-z 0-9 - _",
            &format!("agent.toml:29: pipeline[0].input.max_rate: found 0, which means nothing here, {SIZE}"),
            "agent.toml:31: pipeline[0].outputs[0].when_full: found \"spill\", which is not built yet, accepted: block, drop_newest, \
             drop_oldest",
            "agent.toml:32: pipeline[0].outputs[1].when_full: found \"wait\", accepted: block, drop_newest, drop_oldest",
            "agent.toml:32: pipeline[0].outputs[1].degrade: found \"drop\", accepted: block, drop_newest, drop_oldest",
            "agent.toml:33: pipeline[0].outputs[2].retry.most: found \"1s\", accepted: not less than `first`",
            "agent.toml:33: pipeline[0].outputs[2].retry.last: unknown key, accepted: first, most",
            "agent.toml:34: pipeline[0].outputs[3].plugin: missing, required",
            "agent.toml:35: pipeline[0].outputs[4]: found 5, accepted: a table as in { plugin = \"name\" }, or a plugin's name",
            "agent.toml:37: pipeline[1].name: missing, required",
            "agent.toml:38: pipeline[1].input: unknown input plugin `nill`, accepted: cron, file, jobs, stdin",
            "agent.toml:39: pipeline[1].filters: found \"valid\", accepted: a list as in [{ plugin = \"name\" }]",
            "agent.toml:40: pipeline[1].outputs[0]: unknown output plugin `stdut`, accepted: logr, null, stdout, tcp; did you mean `stdout`?",
            "agent.toml:40: pipeline[1].outputs[1]: unknown output plugin `null:v9`, accepted: null:v1",
            "agent.toml:40: pipeline[1].outputs[2]: found `NULL`, accepted is a plugin as `name` or `name:tag`, for example `file:v1`",
            "agent.toml:41: pipeline[2].outputs: missing, required: at least one, as in [{ plugin = \"stdout\" }]",
            "agent.toml:43: pipeline[2].input: unknown input plugin `null`, accepted: cron, file, jobs, stdin",
        ],
    );
}

#[test]
fn one_error_is_one_line_and_more_are_a_list() {
    let one = case().typed(&["--log-level=loud"]).load().unwrap_err().to_string();
    assert_eq!(
        one,
        "--log-level: log.level: found \"loud\", accepted: critical, error, warning, info, debug, trace"
    );
    let two = case()
        .typed(&["--log-level=loud", "--set", "log.keep=no"])
        .load()
        .unwrap_err()
        .to_string();
    assert_eq!(
        two,
        "2 errors in the settings\n  \
         --log-level: log.level: found \"loud\", accepted: critical, error, warning, info, debug, trace\n  \
         --set: log.keep: found \"no\", accepted: a whole number from 1 to 1000"
    );
}

#[test]
fn errors_name_their_layer() {
    let levels = "accepted: critical, error, warning, info, debug, trace";
    let loud = |at: &str| format!("{at}: log.level: found \"loud\", {levels}");
    case()
        .env("AGENT_LOG__LEVEL", "loud")
        .says(78, &[&loud("AGENT_LOG__LEVEL")]);
    case()
        .typed(&["-f", r#"{"log":{"level":"loud"}}"#])
        .says(64, &[&loud("-f")]);
    case().typed(&["--set=log.level=loud"]).says(64, &[&loud("--set")]);
    case()
        .file("a.json", r#"{"log":{"level":"loud"}}"#)
        .says(78, &[&loud("a.json")]);
    case()
        .file("a.yaml", "# nothing\nlog:\n\n  level: loud\n")
        .says(78, &[&loud("a.yaml:4")]);
    // Of a file and a flag: wrong usage comes first in the code, the file in the list.
    case()
        .toml("x = 1")
        .env("AGENT_X__Y", "1")
        .env("AGENT_HTTP__ADRESS", "off")
        .typed(&["-max-write-bulk-size", "0", "-http-address=10630", "--set", "agent.x=1"])
        .says(
            64,
            &[
                "AGENT_HTTP__ADRESS: http.adress: unknown key, accepted: address, insecure_remote, tls; did you mean `address`?",
                "AGENT_X__Y: x: unknown key, accepted: agent, http, etcd, jobs, log, limits, pipeline, input, filter, output",
                "--set: agent.x: unknown key, accepted: id, group, ip, data_dir, pid_file, drain",
                "-http-address: http.address: found \"10630\", accepted: \"off\", or host:port as in \"127.0.0.1:10630\", \
                 \"[::1]:10630\" or \":10630\" (port 0: any)",
                "-max-write-bulk-size: limits.max_write_bulk_size: found \"0\", accepted: a whole number from 1 to 4294967295",
            ],
        );
}

#[test]
fn what_cannot_be_read() {
    let (code, errors) = case().toml("[agent]\nid = \n\n[log\nlevel = 'info'\n").refused();
    assert_eq!(code, 78);
    assert_eq!(errors.len(), 2, "{errors:?}"); // both, and their lines
    assert!(
        errors[0].starts_with("agent.toml:2: syntax: ") && errors[1].starts_with("agent.toml:4: syntax: "),
        "{errors:?}"
    );
    for (name, text, place) in [
        ("a.yaml", "agent:\n  id: a\n  id: b\n", "a.yaml:3: syntax: "),
        ("a.yaml", "agent: [\n", "a.yaml:1: syntax: "),
        (
            "a.json",
            "{\n\"agent\": }",
            "a.json:2: syntax: expected value at line 2 column 10",
        ),
        (
            "a.toml",
            "agent.id = 'a'\nagent.id = 'b'\n",
            "a.toml:2: syntax: duplicate key",
        ),
        ("a.json", "[]", "a.json: found a list, accepted: tables of settings"),
    ] {
        let (code, errors) = case().file(name, text).refused();
        assert!(errors.len() == 1 && errors[0].starts_with(place), "{errors:?}");
        assert_eq!(code, 78);
    }
    case()
        .file("a.toml", b"# ok\nid = '\xff'")
        .says(78, &["a.toml:2: found bytes that are no UTF-8, accepted: UTF-8 text"]);
    let mut missing = case();
    missing.file = Some(missing.dir.path().join("no.toml"));
    missing.says(78, &["no.toml: could not read it: no such file or directory"]);
    case()
        .typed(&["-f", "{"])
        .says(64, &["-f: syntax: EOF while parsing an object at line 1 column 1"]);
    case().typed(&["-f", "5"]).says(
        64,
        &["-f: found 5, accepted: a JSON object as in '{\"log\":{\"level\":\"debug\"}}'"],
    );
    case()
        .typed(&["--set", "log"])
        .says(64, &["--set: found \"log\", accepted: KEY=VALUE as in log.level=debug"]);
    let deep = format!("{}=1", "a.".repeat(5000) + "a");
    assert_eq!(case().typed(&["--set", &deep]).refused().0, 64);
    case().env("AGENT___X", "1").says(
        78,
        &["AGENT___X: found no key in this name, accepted: AGENT_<TABLE>__<KEY> as in AGENT_HTTP__ADDRESS"],
    );
}

#[test]
fn shapes() {
    case()
        .toml("agent = 5")
        .says(78, &["agent.toml:1: agent: found 5, accepted: a table"]);
    case().toml("\n[pipeline]\nname = 'x'").says(
        78,
        &["agent.toml:2: pipeline: found a table, accepted: a list of tables, each under [[pipeline]]"],
    );
    case()
        .toml("[input]\nstdin = 5\n[output.null]")
        .says(78, &["agent.toml:2: input.stdin: found 5, accepted: a table"]);
    case().env("AGENT_PIPELINE__NAME", "x").says(
        78,
        &["AGENT_PIPELINE__NAME: pipeline: found a table, accepted: a list of tables, each under [[pipeline]]"],
    );
    case()
        .typed(&["-f", r#"{"agent":null}"#])
        .says(64, &["-f: agent: found null, accepted: a table"]);
}

#[test]
fn plugins_refuse_in_their_own_place() {
    // Kept by the plugins themselves; here it is the place that counts.
    let toml = "[[pipeline]]\nname = 'p'\ninput = { plugin = 'file', paths = ['/a'] }\noutputs = [\n  { plugin = 'stdout' },\n  \
                { plugin = 'null', nothing_of_that_kind = 1 },\n]\n";
    if let Err(refused) = case().toml(toml).load() {
        assert_eq!(refused.errors.len(), 1);
        assert!(
            refused.errors[0]
                .to_string()
                .contains("agent.toml:6: pipeline[0].outputs[1].nothing_of_that_kind: "),
            "{refused}"
        );
        assert!(
            refused.errors[0].message.contains("when_full, degrade, retry"),
            "{refused}"
        );
    }
    if let Err(refused) = case().typed(&["-input=file", "-output=stdout"]).load() {
        assert!(
            refused.to_string().starts_with("-input: input.file.paths: "),
            "{refused}"
        );
        assert_eq!(refused.code, 64);
    }
}

#[test]
fn half_a_pipeline() {
    let usual = "accepted: both, or neither (then stdin → valid → stdout)";
    case()
        .typed(&["-input=stdin"])
        .says(64, &[&format!("-input: found an input without an output, {usual}")]);
    case()
        .typed(&["-output=stdout"])
        .says(64, &[&format!("-output: found an output without an input, {usual}")]);
    case()
        .typed(&["-filepath=/a"])
        .says(64, &[&format!("-filepath: found an input without an output, {usual}")]);
    case().toml("\n[output.stdout]").says(
        78,
        &[&format!("agent.toml:2: found an output without an input, {usual}")],
    );
    case().toml("").typed(&["-filter=valid"]).start().says(
        64,
        &["-filter: found filters without an input and an output, accepted: both, or neither"],
    );
    case()
        .typed(&["-input=stdin,file", "-filepath=/a", "-output=null"])
        .says(
            64,
            &["-input: found 2 inputs (stdin, file), accepted: one; a [[pipeline]] for each further one"],
        );
    case().typed(&["-input=stdin", "-output=null", "-filepath=/a"]).says(
        64,
        &["-filepath: found globs for the input `file` beside the input `stdin`, accepted: with -input=file"],
    );
    case().toml("[output.lgor]\npath = '/a'\n").typed(&["-input=stdin", "-output=null"]).says(
        78,
        &["agent.toml:1: output.lgor: unknown output plugin `lgor`, accepted: logr, null, stdout, tcp; did you mean `logr`?"],
    );
    case().typed(&["-input=fiel", "-output=null"]).says(
        64,
        &["-input: input.fiel: unknown input plugin `fiel`, accepted: cron, file, jobs, stdin; did you mean `file`?"],
    );
}

#[test]
fn names_and_streams_are_there_once() {
    let pipeline = |name: &str, input: &str, output: &str| {
        format!("[[pipeline]]\nname = '{name}'\ninput = {input}\noutputs = ['{output}']\n")
    };
    let file = "{ plugin = 'file', paths = ['/a'] }";
    case()
        .toml(&(pipeline("a", file, "null") + &pipeline("a", file, "null")))
        .says(
            78,
            &["agent.toml:6: pipeline[1].name: found \"a\" twice, accepted: a name of its own for each"],
        );
    let default = case().toml(&pipeline("default", file, "null"));
    assert_eq!(names(&default.loaded()), ["default: file:v2 >  > null:v1"]);
    default.typed(&["-input=stdin", "-output=stdout"]).says(
        78,
        &["agent.toml:2: pipeline[0].name: found \"default\" twice: the flags and the tables [input.X], [output.X] make it too"],
    );
    case().toml(&(pipeline("a", "'stdin'", "stdout") + &pipeline("b", "'stdin:v1'", "stdout"))).says(
        78,
        &[
            "agent.toml:7: pipeline[1].input: found stdin twice, accepted: once in all, and pipeline `a` has it",
            "agent.toml:8: pipeline[1].outputs[0]: found stdout twice, accepted: once in all, and pipeline `a` has it",
        ],
    );
    let mut daemon = case().toml(&pipeline("a", "'stdin'", "stdout"));
    daemon.purpose = Some(Purpose::Start { foreground: false });
    daemon.says(
        64,
        &[
            "agent.toml:3: pipeline[0].input: found stdin, which a daemon has not, accepted: with --foreground",
            "agent.toml:4: pipeline[0].outputs[0]: found stdout, which a daemon has not, accepted: with --foreground",
        ],
    );
    daemon.start().loaded();
    let outputs = |n: usize| {
        format!(
            "[[pipeline]]\nname = 'p'\ninput = 'stdin'\noutputs = [{}]\n",
            "'null',".repeat(n)
        )
    };
    case().toml(&outputs(64)).loaded();
    case().toml(&outputs(65)).says(
        78,
        &["agent.toml:4: pipeline[0].outputs[64]: found 65 outputs, accepted: at most 64 a pipeline"],
    );
}

// ---- the files that come along

#[test]
fn a_key_to_verify_with_and_its_fleet() {
    let key = "fbv77IjALOhwPm2GE310B2r6ADgKshkzPt+XdWGol+8=";
    let says = |jobs: &str, line: usize, finding: &str| {
        let text = format!("[jobs]\n{jobs}\n");
        case()
            .toml(&text)
            .says(78, &[&format!("agent.toml:{line}: jobs.{finding}")]);
    };
    let accepted = "accepted: an Ed25519 public key, base64 of 32 bytes, as `agent jobs keygen` shows it";
    says(
        &format!("verify_key = '{key}'"),
        1,
        "fleet: missing, required beside verify_key: a name, so that signatures of other fleets do not count",
    );
    says(
        "fleet = 'a'\nverify_key = 'abc'",
        3,
        &format!("verify_key: found \"abc\", {accepted}"),
    );
    says(
        &format!("fleet = 'a'\nverify_key = ['{key}', 'abc']"),
        3,
        &format!("verify_key: found \"abc\", {accepted}"),
    );
    says(
        "fleet = 'a'\nverify_key = []",
        3,
        "verify_key: found no key, accepted: one or more",
    );
    says(
        "fleet = 'a'\nverify_key = 5",
        3,
        "verify_key: found 5, accepted: a key, or a list of keys",
    );
    says(
        &format!("fleet = ' '\nverify_key = '{key}'"),
        2,
        "fleet: found nothing, accepted: a name",
    );
    for keys in [format!("'{key}'"), format!("['{key}']")] {
        let loaded = case()
            .toml(&format!("[jobs]\nfleet = 'a'\nverify_key = {keys}\n"))
            .start()
            .loaded();
        assert_eq!(
            (loaded.jobs.verify_key, loaded.jobs.fleet.as_deref()),
            (vec![key.to_owned()], Some("a"))
        );
    }
}

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn agent_toml_shows_every_key_with_its_default() {
    let manual = std::fs::read_to_string(shipped("agent.toml")).unwrap();
    // The secrets that its examples have read from files.
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("etcd.password"), "secret\n").unwrap();
    std::fs::write(secrets.path().join("ding.url"), "https://example.org/hook\n").unwrap();
    let manual = manual.replace("/etc/luffly/", &format!("{}/", secrets.path().display()));
    let uncommented = |examples: bool| {
        let mut text = String::new();
        for line in manual.lines() {
            let key = line
                .strip_prefix('#')
                .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['));
            let example = line.strip_prefix("# e.g. ").filter(|_| examples);
            // An example beside a default, or a second one, stands for it.
            let line = example.or(key).unwrap_or(line);
            if let Some((key, _)) = example.unwrap_or_default().split_once(" = ") {
                let last = text.rfind("\n[").map_or(0, |at| at + 1);
                let (before, table) = text.split_at(last);
                let kept = table.lines().filter(|line| line.split(" = ").next() != Some(key));
                text = kept.fold(before.to_owned(), |text, line| text + line + "\n");
            }
            writeln!(text, "{line}").unwrap();
        }
        case().toml(&text).start().loaded()
    };
    let mut bare = case().toml("").start().loaded();
    let as_is = case().toml(&manual).start().loaded();
    let mut defaults = uncommented(false);
    assert!(
        !as_is.http.explicit && defaults.http.explicit,
        "the address was not uncommented"
    );
    bare.config = None;
    defaults.config = None;
    defaults.http.explicit = false;
    assert_eq!(defaults, bare);
    assert_eq!(Settings { config: None, ..as_is }, bare);

    let examples = uncommented(true);
    assert_eq!(
        names(&examples),
        [
            "syslog: file:v2 > valid:v1 > logr:v1",
            "default: file:v2 > valid:v1 > logr:v1"
        ]
    );
    assert_eq!(examples.limits.nice, Some(10));

    // Every key that there is, in its table.
    let shown = bare.effective();
    for (table, keys) in shown
        .as_object()
        .unwrap()
        .iter()
        .filter(|(table, _)| *table != "pipeline")
    {
        let section = manual
            .split(&format!("\n[{table}]\n"))
            .nth(1)
            .unwrap()
            .split("\n[")
            .next()
            .unwrap();
        for key in keys.as_object().unwrap().keys() {
            // A secret is shown as read from a file.
            let ways = [
                format!("\n#{key} = "),
                format!("\n# e.g. {key} = "),
                format!("\n# e.g. {key}_file = "),
            ];
            let there = ways.iter().any(|line| format!("\n{section}").contains(line));
            assert!(there, "[{table}] {key} is not in config/agent.toml");
        }
    }
}

#[test]
fn examples_are_valid() {
    let mut seen = 0;
    for entry in std::fs::read_dir(shipped("examples")).unwrap() {
        let path = entry.unwrap().path();
        let options = Options {
            place: Place {
                config: Some(path.clone()),
                ..Place::default()
            },
            ..Options::default()
        };
        // As daemons: neither stdin nor stdout.
        let settings =
            load(&options, std::iter::empty(), Purpose::Start { foreground: false }).unwrap_or_else(|e| panic!("{e}"));
        assert!(!settings.pipelines.is_empty() && settings.config == Some(path));
        seen += 1;
    }
    assert_eq!(seen, 5);
}

// ---- any input

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        any::<bool>().prop_map(|b| b.to_string()),
        "\"[ -!#-\\[\\]-~]{0,12}\"",
        prop_oneof![Just("'64MiB'"), Just("'5s'"), Just("'off'"), Just("'stdin'"), Just("[]"), Just("{}"), Just("2026-01-01")]
            .prop_map(str::to_owned),
        prop::collection::vec("\\{ plugin = '(file|null|logr|stdout|x)', (paths|path|when_full|retry) = (5|'block'|\\['/a'\\]|\\{\\}) \\}", 0..3)
            .prop_map(|items| format!("[{}]", items.join(", "))),
    ]
}
fn document() -> impl Strategy<Value = String> {
    let header = prop_oneof![
        Just(""),
        Just("[agent]"),
        Just("[http]"),
        Just("[http.tls]"),
        Just("[log]"),
        Just("[limits]"),
        Just("[[pipeline]]"),
        Just("[input.file]"),
        Just("[output.logr]"),
        Just("[output]"),
    ];
    let key =
        "(id|group|ip|data_dir|pid_file|drain|address|level|keep|memory|nice|name|input|filters|outputs|paths|path|x)";
    let table = (header, prop::collection::btree_map(key, value(), 0..4));
    prop::collection::vec(table, 0..5).prop_map(|tables| {
        let lines = |(header, keys): (&str, std::collections::BTreeMap<String, String>)| {
            keys.iter().fold(format!("{header}\n"), |text, (key, value)| {
                text + &format!("{key} = {value}\n")
            })
        };
        tables.into_iter().map(lines).collect()
    })
}
proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_document_is_answered(text in prop_oneof![document(), "\\PC{0,60}", "[\\[\\]{}=\"'.a\n -]{0,40}"], ending in "(toml|yaml|json)") {
        match case().file(&format!("a.{ending}"), &text).load() {
            Ok(settings) => {
                settings.effective();
            }
            Err(refused) => {
                prop_assert!(!refused.errors.is_empty() && refused.code == 78, "{}", refused);
                prop_assert!(refused.errors.iter().all(|e| !e.message.is_empty()));
            }
        }
    }

    /// What a flag, a variable, `-f` and a file say is the same, and so is what is shown.
    #[test]
    fn every_layer_says_the_same(id in "[a-z0-9.-]{1,12}", port in 1u16.., bulk in 1u32.., memory in (4u64 << 20)..(1 << 60), drain in 1u64..1_000_000) {
        prop_assume!(id != "." && id != "..");
        let (memory, drain) = (luffly_agent::model::Size(memory), luffly_agent::model::Span(Duration::from_millis(drain)));
        let json = serde_json::json!({
            "agent": { "id": id, "drain": drain.to_string() },
            "http": { "address": format!("127.0.0.1:{port}") },
            "limits": { "memory": memory.to_string(), "max_write_bulk_size": bulk },
        });
        let flags = case().typed(&[
            &format!("-agent-id={id}"),
            &format!("-http-address=127.0.0.1:{port}"),
            &format!("-max-write-bulk-size={bulk}"),
            &format!("--set=limits.memory={memory}"),
            &format!("--set=agent.drain={drain}"),
        ]).loaded();
        prop_assert_eq!(&flags.agent.id, &id);
        prop_assert_eq!(flags.limits.memory, memory.0);
        let env = case()
            .env("AGENT_AGENT__ID", &id)
            .env("AGENT_HTTP__ADDRESS", &format!("127.0.0.1:{port}"))
            .env("AGENT_LIMITS__MAX_WRITE_BULK_SIZE", &bulk.to_string())
            .env("AGENT_LIMITS__MEMORY", &memory.to_string())
            .env("AGENT_AGENT__DRAIN", &drain.to_string())
            .loaded();
        prop_assert_eq!(&env, &flags);
        prop_assert_eq!(&case().typed(&["-f", &json.to_string()]).loaded(), &flags);
        let file = case().file("a.json", json.to_string()).loaded();
        prop_assert_eq!(&Settings { config: None, ..file }, &flags);
        // Shown, and read again (what is null was not given).
        let mut shown = flags.effective();
        let tables = shown.as_object_mut().unwrap();
        tables.values_mut().filter_map(|t| t.as_object_mut()).for_each(|t| t.retain(|_, v| !v.is_null()));
        tables["agent"]["data_dir"] = "/d".into();
        tables["agent"]["pid_file"] = "/p".into();
        for pipeline in tables["pipeline"].as_array_mut().unwrap() {
            pipeline["input"].as_object_mut().unwrap().retain(|_, v| !v.is_null());
        }
        let mut again = case().file("a.json", shown.to_string()).loaded();
        again.config = None;
        again.agent = flags.agent.clone();
        prop_assert_eq!(&again, &flags);
    }
}
