//! What jobs may do on this host, whoever sends them: `[jobs] allow_users, allow_commands, allow_env`.
use globset::{GlobBuilder, GlobMatcher};

use super::Executors;
use crate::model::{Invalid, JobSpec};

#[derive(Clone, Debug, Default)]
pub struct Guards {
    /// None: any.
    pub users: Option<Vec<String>>,
    /// None: any.
    pub commands: Option<Vec<Allowed>>,
    /// Names that a job's `env` may have, once `commands` is set.
    pub env: Vec<String>,
    /// Who a job without `user` runs as.
    pub own_user: String,
}
impl PartialEq for Guards {
    fn eq(&self, other: &Self) -> bool {
        (&self.users, &self.commands, &self.env) == (&other.users, &other.commands, &other.env)
    }
}

/// One command that may be run: the executor, then `cmd` and `args`, all of them.
#[derive(Clone, Debug)]
pub struct Allowed {
    executor: String,
    argv: Vec<Word>,
}
#[derive(Clone, Debug)]
struct Word {
    text: String,
    /// For `exec` only: what a shell makes of a text cannot be told from its look.
    glob: Option<GlobMatcher>,
}
impl PartialEq for Allowed {
    fn eq(&self, other: &Self) -> bool {
        self.executor == other.executor
            && self
                .argv
                .iter()
                .map(|word| &word.text)
                .eq(other.argv.iter().map(|word| &word.text))
    }
}
impl Allowed {
    pub fn new(executor: String, argv: Vec<String>, executors: &Executors) -> Result<Self, String> {
        let Some(kind) = executors.get(&executor) else {
            return Err(format!(
                "found the executor {executor:?}, accepted: {}",
                executors.names().join(", ")
            ));
        };
        if argv.is_empty() {
            return Err("found no argv, accepted: the command and its arguments, as [\"/usr/bin/df\", \"-h\"]".into());
        }
        let word = |text: String| {
            let is_glob = !kind.interprets() && text.contains(['*', '?', '[', '{']);
            let glob = match is_glob {
                false => None,
                true => {
                    let glob = GlobBuilder::new(&text).literal_separator(true).build();
                    Some(
                        glob.map_err(|error| format!("found {text:?} ({error}), accepted: a glob"))?
                            .compile_matcher(),
                    )
                }
            };
            Ok(Word { text, glob })
        };
        let argv = argv.into_iter().map(word).collect::<Result<_, String>>()?;
        Ok(Self { executor, argv })
    }
    pub fn executor(&self) -> &str {
        &self.executor
    }
    pub fn argv(&self) -> Vec<&str> {
        self.argv.iter().map(|word| word.text.as_str()).collect()
    }
    fn fits(&self, spec: &JobSpec) -> bool {
        self.executor == spec.terms.executor
            && self.argv.len() == 1 + spec.args.len()
            && self
                .argv
                .iter()
                .zip(words(spec))
                .all(|(allowed, word)| match &allowed.glob {
                    None => allowed.text == word,
                    // `*` stands for a name, not for a way out of the directory.
                    Some(glob) => glob.is_match(word) && !word.split('/').any(|part| part == ".."),
                })
    }
}

fn words(spec: &JobSpec) -> impl Iterator<Item = &str> {
    std::iter::once(&*spec.cmd).chain(spec.args.iter().map(String::as_str))
}

impl Guards {
    pub fn check(&self, spec: &JobSpec) -> Result<(), Invalid> {
        let refuse = |field: &str, found: String, accepted: String| {
            Err(Invalid {
                field: field.into(),
                found,
                accepted,
            })
        };
        if let Some(users) = &self.users {
            let user = spec.terms.user.as_ref().unwrap_or(&self.own_user);
            if !users.contains(user) {
                let shown = if spec.terms.user.is_some() {
                    format!("{user:?}")
                } else {
                    format!("nothing, so {user:?}")
                };
                return refuse(
                    "user",
                    shown,
                    format!("a user of [jobs] allow_users ({})", users.join(", ")),
                );
            }
        }
        if let Some(commands) = &self.commands {
            if !commands.iter().any(|allowed| allowed.fits(spec)) {
                let shown = words(spec)
                    .map(|word| format!("{word:?}"))
                    .collect::<Vec<_>>()
                    .join(" ");
                let shown = shown.chars().take(200).collect::<String>();
                return refuse(
                    "cmd",
                    format!("{} {shown}", spec.terms.executor),
                    "a command of [jobs] allow_commands".into(),
                );
            }
            if let Some((name, _)) = spec.terms.env.iter().find(|(name, _)| !self.env.contains(name)) {
                let accepted = match self.env.is_empty() {
                    true => "no variable, for [jobs] allow_env names none".to_owned(),
                    false => format!("names of [jobs] allow_env ({})", self.env.join(", ")),
                };
                return refuse("env", format!("{name:?}"), accepted);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        JobKey,
        job::{Limits, parse},
    };

    fn spec(fields: &str) -> JobSpec {
        let value = format!("{{\"express\": \"* * * * *\", {fields}}}");
        parse(&JobKey::host("10.0.0.1", "17"), value.as_bytes(), &Limits::default()).unwrap()
    }
    fn guards(commands: &[(&str, &[&str])]) -> Guards {
        let executors = Executors::new([]);
        let allowed = |(executor, argv): &(&str, &[&str])| {
            Allowed::new(
                (*executor).into(),
                argv.iter().map(|word| (*word).into()).collect(),
                &executors,
            )
            .unwrap()
        };
        Guards {
            commands: Some(commands.iter().map(allowed).collect()),
            ..Guards::default()
        }
    }
    /// BEHAVIOUR 102, the guards' part.
    #[test]
    fn commands_are_taken_whole() {
        let mut guards = guards(&[
            ("bash", &["df -h *"]),
            ("exec", &["/opt/jobs/*", "-v"]),
            ("exec", &["/bin/true"]),
        ]);
        for (fields, allowed) in [
            (r#""cmd": "df -h *""#, true),
            (r#""cmd": "df -h /""#, false),
            (r#""cmd": "df -h *; rm -r /""#, false),
            (r#""cmd": "df -h *", "args": ["x"]"#, false),
            (r#""cmd": "df -h *", "executor": "sh""#, false),
            (r#""cmd": "/opt/jobs/a", "args": ["-v"], "executor": "exec""#, true),
            (r#""cmd": "/opt/jobs/a/b", "args": ["-v"], "executor": "exec""#, false),
            (r#""cmd": "/opt/jobs/..", "args": ["-v"], "executor": "exec""#, false),
            (r#""cmd": "/opt/jobs/a", "executor": "exec""#, false),
            (
                r#""cmd": "/opt/jobs/a", "args": ["-v", "-x"], "executor": "exec""#,
                false,
            ),
            (r#""cmd": "/bin/true", "executor": "exec""#, true),
            (
                r#""cmd": "/bin/true", "executor": "exec", "env": {"LD_PRELOAD": "/tmp/x.so"}"#,
                false,
            ),
            (r#""cmd": "df -h *", "env": {"BASH_ENV": "/tmp/x"}"#, false),
        ] {
            assert_eq!(guards.check(&spec(fields)).is_ok(), allowed, "{fields}");
        }
        guards.env = vec!["LANG".into()];
        assert_eq!(guards.check(&spec(r#""cmd": "df -h *", "env": {"LANG": "C"}"#)), Ok(()));
        assert_eq!(
            guards
                .check(&spec(r#""cmd": "df -h *", "env": {"BASH_ENV": "/tmp/x"}"#))
                .unwrap_err()
                .to_string(),
            "`env`: found \"BASH_ENV\", accepted: names of [jobs] allow_env (LANG)"
        );
    }
    #[test]
    fn users() {
        let guards = Guards {
            users: Some(vec!["backup".into(), "me".into()]),
            own_user: "root".into(),
            ..Guards::default()
        };
        assert_eq!(guards.check(&spec(r#""cmd": "x", "user": "backup""#)), Ok(()));
        assert_eq!(
            guards.check(&spec(r#""cmd": "x""#)).unwrap_err().to_string(),
            "`user`: found nothing, so \"root\", accepted: a user of [jobs] allow_users (backup, me)"
        );
        assert_eq!(
            Guards::default().check(&spec(r#""cmd": "x", "env": {"BASH_ENV": "x"}"#)),
            Ok(())
        );
    }
}
