//! Executors that the settings define: `[jobs.executor.NAME] command = ["/usr/bin/perl", "-e", "{cmd}"]`.
use super::Executor;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Custom {
    /// A program and its arguments; `{cmd}` stands for the job's `cmd`, whose `args` follow.
    command: Vec<String>,
}
impl Custom {
    /// A program at least, and `{cmd}` as a word of its own behind it, once.
    pub fn new(command: Vec<String>) -> Result<Self, String> {
        let holes = command.iter().skip(1).filter(|word| *word == "{cmd}").count();
        match command.first() {
            Some(program) if !program.is_empty() && program != "{cmd}" && holes == 1 => Ok(Self { command }),
            _ => Err(format!(
                "found {command:?}, accepted: a program and its arguments, one of which is \"{{cmd}}\", as [\"/usr/bin/perl\", \"-e\", \"{{cmd}}\"]"
            )),
        }
    }
}
impl Executor for Custom {
    fn argv(&self, cmd: &str, args: &[String]) -> (String, Vec<String>) {
        let filled = self
            .command
            .iter()
            .map(|word| if word == "{cmd}" { cmd } else { word }.to_owned());
        let mut all = filled.chain(args.iter().cloned());
        (all.next().unwrap_or_default(), all.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Executors, *};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }
    #[test]
    fn what_each_executor_makes_of_a_command() {
        let perl = Custom::new(words(&["/usr/bin/perl", "-e", "{cmd}", "--"])).unwrap();
        let all = Executors::new([("perl".to_owned(), perl)]);
        assert_eq!(all.names(), ["bash", "exec", "perl", "python3", "sh"]);
        for (name, program, args) in [
            ("bash", "bash", &["-c", "a b", "bash", "x y"][..]),
            ("sh", "sh", &["-c", "a b", "sh", "x y"]),
            ("python3", "python3", &["-c", "a b", "x y"]),
            ("exec", "a b", &["x y"]),
            ("perl", "/usr/bin/perl", &["-e", "a b", "--", "x y"]),
        ] {
            let executor = all.get(name).unwrap();
            assert_eq!(
                executor.argv("a b", &words(&["x y"])),
                (program.to_owned(), words(args)),
                "{name}"
            );
            assert_eq!(executor.interprets(), name != "exec");
        }
        for bad in [
            &[][..],
            &["{cmd}"],
            &["perl"],
            &["perl", "{cmd}", "{cmd}"],
            &["", "{cmd}"],
        ] {
            assert!(Custom::new(words(bad)).is_err(), "{bad:?}");
        }
    }
}
