//! The options that reach the settings. The names are mafio's; `cli::args` accepts each with one dash or two.
use std::path::PathBuf;

/// Where an agent is to be found: taken by every command.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// TOML file; YAML or JSON by its ending. `start` reads /etc/luffly/agent.toml if it is there
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the state lives [default: /var/lib/luffly for root, else $XDG_STATE_HOME/luffly]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// [default: agent.pid in the data dir]
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<String>,
}

/// All that can be set for a run. Values are text still: the settings check them all alike, whatever layer they come from.
#[derive(clap::Args, Clone, Debug, Default, PartialEq)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Who this agent is [default: sky01]
    #[arg(long, value_name = "NAME")]
    pub agent_id: Option<String>,
    /// The group it belongs to [default: net01]
    #[arg(long, value_name = "NAME")]
    pub agent_group: Option<String>,
    /// etcd servers, `host:port`, repeatable or with commas; without, this host is on its own
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub etcd_endpoint: Vec<String>,
    /// Where to read: an input plugin, `name` or `name:tag`
    #[arg(long, value_name = "PLUGIN", value_delimiter = ',')]
    pub input: Vec<String>,
    /// What to take away: filter plugins, in order; repeatable or with commas
    #[arg(long, value_name = "PLUGIN", value_delimiter = ',')]
    pub filter: Vec<String>,
    /// Where to write: output plugins; each gets every event; repeatable or with commas
    #[arg(long, value_name = "PLUGIN", value_delimiter = ',')]
    pub output: Vec<String>,
    /// What the input `file` reads; repeatable or with commas
    #[arg(long, value_name = "GLOB")]
    pub filepath: Vec<String>,
    /// Settings as JSON, merged over the file: '{"output":{"logr":{"path":"/tmp/x.log"}}}'
    #[arg(short = 'f', value_name = "JSON")]
    pub inline: Vec<String>,
    /// Any setting: log.level=debug; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Admin listener, or `off`; port 0: any [default: 0.0.0.0:10630]
    #[arg(long, value_name = "HOST:PORT")]
    pub http_address: Option<String>,
    /// Events that may wait between an input and its filters [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_read_channel_size: Option<String>,
    /// Events that may wait at one output [default: 4096]
    #[arg(long, value_name = "N")]
    pub max_write_channel_size: Option<String>,
    /// The most events in one request of an output that sends requests [default: 500]
    #[arg(long, value_name = "N")]
    pub max_write_bulk_size: Option<String>,
    /// critical, error, warning, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Read what is there, deliver it, leave
    #[arg(long)]
    pub once: bool,
}

impl Place {
    /// (option, key, value) of those that are settings.
    pub(super) fn values(&self) -> Vec<(&'static str, &'static str, &str)> {
        let pairs = [
            ("--data-dir", "agent.data_dir", &self.data_dir),
            ("--pid-file", "agent.pid_file", &self.pid_file),
        ];
        given(&pairs)
    }
}
impl Options {
    pub(super) fn values(&self) -> Vec<(&'static str, &'static str, &str)> {
        let pairs = [
            ("-agent-id", "agent.id", &self.agent_id),
            ("-agent-group", "agent.group", &self.agent_group),
            ("-http-address", "http.address", &self.http_address),
            ("--log-level", "log.level", &self.log_level),
            (
                "-max-read-channel-size",
                "limits.max_read_channel_size",
                &self.max_read_channel_size,
            ),
            (
                "-max-write-channel-size",
                "limits.max_write_channel_size",
                &self.max_write_channel_size,
            ),
            (
                "-max-write-bulk-size",
                "limits.max_write_bulk_size",
                &self.max_write_bulk_size,
            ),
        ];
        let mut all = self.place.values();
        all.extend(given(&pairs));
        all
    }
    /// A comma inside `{a,b}` or `[a,b]`, or behind a backslash, belongs to its glob.
    pub(super) fn globs(&self) -> Vec<String> {
        let mut globs = Vec::new();
        for text in &self.filepath {
            let (mut glob, mut depth, mut escaped) = (String::new(), 0u32, false);
            for c in text.chars() {
                match c {
                    ',' if depth == 0 && !escaped => {
                        globs.push(std::mem::take(&mut glob));
                        continue;
                    }
                    '{' | '[' if !escaped => depth += 1,
                    '}' | ']' if !escaped => depth = depth.saturating_sub(1),
                    _ => {}
                }
                escaped = c == '\\' && !escaped;
                glob.push(c);
            }
            globs.push(glob);
        }
        globs
    }
}
type Pair<'a> = (&'static str, &'static str, &'a Option<String>);
fn given<'a>(pairs: &[Pair<'a>]) -> Vec<(&'static str, &'static str, &'a str)> {
    let value = |(flag, key, value): &Pair<'a>| Some((*flag, *key, value.as_deref()?));
    pairs.iter().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn globs_keep_their_own_commas() {
        let options = super::Options {
            filepath: vec!["/a/*.log,/b/{x,y}.log".into(), r"/c/[,].log,/d\,e".into()],
            ..Default::default()
        };
        assert_eq!(options.globs(), ["/a/*.log", "/b/{x,y}.log", "/c/[,].log", r"/d\,e"]);
    }
}
