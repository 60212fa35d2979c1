//! Which lines belong together: by a pattern of one's own, or by a preset that knows how a language prints its stack traces.
use std::time::Duration;

use regex::bytes::Regex;

pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Multiline {
    rule: Rule,
    /// After so long without news an open record is given out.
    pub timeout: Duration,
}
enum Rule {
    /// A line that matches begins a record.
    Start(Regex),
    /// A line that matches belongs to the record before it.
    Continue(Regex),
    /// A line that matches ends its record.
    End(Regex),
    Preset(Preset),
}
/// A small machine: what the lines so far were, and what may follow.
struct Preset {
    first: Vec<(Regex, State)>,
    next: Vec<(&'static [State], Regex, State)>,
}
/// Where a record is within its stack trace. `PLAIN`: in none (yet).
pub type State = u8;
pub const PLAIN: State = 0;
const TRACE: State = 1;
const HEAD: State = 2;
const AFTER: State = 3;
const CHAIN: State = 4;

type Lines = &'static [(&'static [State], &'static str, State)];
/// A message and the trace behind it are one record; an exception behind a trace is the next one.
const JAVA: (&[(&str, State)], Lines) = (
    &[(
        r#"^(?:Exception in thread "[^"]*" )?(?:[\w$]+\.)+[\w$]*(?:Exception|Error|Throwable|Failure)\b"#,
        HEAD,
    )],
    &[
        (&[PLAIN, HEAD, TRACE], r"^[ \t]+\S", TRACE),
        (&[PLAIN, HEAD, TRACE], r"^(?:Caused by|Suppressed): ", TRACE),
        (
            &[PLAIN, HEAD, TRACE],
            r"^\.\.\. \d+ (?:more|common frames omitted)",
            TRACE,
        ),
        (
            &[PLAIN],
            r"^(?:[\w$]+\.)+[\w$]*(?:Exception|Error|Throwable|Failure)\b",
            HEAD,
        ),
    ],
);
/// The message, the traceback, the line of the exception, and what it was raised from.
const PYTHON: (&[(&str, State)], Lines) = (
    &[(r"^Traceback \(most recent call last\):", TRACE)],
    &[
        (
            &[PLAIN, CHAIN],
            r"^\s*(?:\+ Exception Group )?Traceback \(most recent call last\):",
            TRACE,
        ),
        (&[PLAIN], r#"^\s+File "[^"]*", line \d+"#, TRACE),
        (&[TRACE], r"^[ \t]", TRACE),
        (&[TRACE], r"^\S", AFTER),
        (&[AFTER], r"^[ \t]+\S", AFTER),
        (
            &[AFTER, CHAIN],
            r"^(?:During handling of the above exception|The above exception was the direct cause)",
            CHAIN,
        ),
        (&[AFTER, CHAIN], r"^$", CHAIN),
    ],
);
/// `panic:` with all goroutines behind it.
const GO: (&[(&str, State)], Lines) = (
    &[
        (
            r"^(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:\.\d+)? )?(?:panic: |fatal error: |http: panic serving )",
            HEAD,
        ),
        (r"^goroutine \d+ .*\[[^\]]*\]:", TRACE),
    ],
    &[
        (&[PLAIN, HEAD, TRACE], r"^goroutine \d+ .*\[[^\]]*\]:", TRACE),
        (&[HEAD], r"^(?:$|\[signal |[ \t]|panic: |fatal error: )", HEAD),
        (&[HEAD], r"^runtime stack:", TRACE),
        (
            &[TRACE],
            r"^(?:$|\t|created by |exit status \d|\.\.\.additional frames|\S+\(.*\)$)",
            TRACE,
        ),
        (&[TRACE], r"^[a-z][a-z0-9]{1,5} +0x[0-9a-f]+$", TRACE),
    ],
);
pub const PRESETS: [&str; 3] = ["java", "python", "go"];

impl Multiline {
    pub fn start(pattern: Regex) -> Self {
        Self::of(Rule::Start(pattern))
    }
    pub fn goes_on(pattern: Regex) -> Self {
        Self::of(Rule::Continue(pattern))
    }
    pub fn end(pattern: Regex) -> Self {
        Self::of(Rule::End(pattern))
    }
    pub fn preset(name: &str) -> Option<Self> {
        let (first, next) = match name {
            "java" => JAVA,
            "python" => PYTHON,
            "go" => GO,
            _ => return None,
        };
        let pattern = |text: &str| Regex::new(text).ok(); // a test makes each
        let first = first.iter().map(|(text, to)| Some((pattern(text)?, *to)));
        let next = next.iter().map(|(from, text, to)| Some((*from, pattern(text)?, *to)));
        Some(Self::of(Rule::Preset(Preset {
            first: first.collect::<Option<_>>()?,
            next: next.collect::<Option<_>>()?,
        })))
    }
    fn of(rule: Rule) -> Self {
        Self {
            rule,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// The state of a record that begins with this line.
    pub fn begin(&self, line: &[u8]) -> State {
        let Rule::Preset(preset) = &self.rule else { return PLAIN };
        let found = preset.first.iter().find(|(pattern, _)| pattern.is_match(line));
        found.map_or(PLAIN, |(_, state)| *state)
    }
    /// The state of the record with this line added; none: the line begins another one.
    pub fn next(&self, state: State, line: &[u8]) -> Option<State> {
        match &self.rule {
            Rule::Start(pattern) => (!pattern.is_match(line)).then_some(PLAIN),
            Rule::Continue(pattern) => pattern.is_match(line).then_some(PLAIN),
            Rule::End(_) => Some(PLAIN),
            Rule::Preset(preset) => {
                let mut rules = preset.next.iter().filter(|(from, ..)| from.contains(&state));
                rules.find(|(_, pattern, _)| pattern.is_match(line)).map(|(.., to)| *to)
            }
        }
    }
    /// With this line the record is complete.
    pub fn ends_with(&self, line: &[u8]) -> bool {
        matches!(&self.rule, Rule::End(pattern) if pattern.is_match(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records, each as how many lines it has.
    fn counts(multiline: &Multiline, text: &str) -> Vec<usize> {
        let (mut counts, mut open) = (vec![], None);
        for line in text.lines().map(str::as_bytes) {
            match open.and_then(|state| multiline.next(state, line)) {
                Some(next) => {
                    open = Some(next);
                    *counts.last_mut().unwrap() += 1;
                }
                None => {
                    open = Some(multiline.begin(line));
                    counts.push(1);
                }
            }
            if multiline.ends_with(line) {
                open = None;
            }
        }
        counts
    }
    #[test]
    fn own_patterns() {
        let pattern = |text| Regex::new(text).unwrap();
        let text = "x\n[1] a\n  b\n[2] c\nd;\ne\n";
        assert_eq!(counts(&Multiline::start(pattern(r"^\[")), text), [1, 2, 3]);
        assert_eq!(counts(&Multiline::goes_on(pattern(r"^ ")), text), [1, 2, 1, 1, 1]);
        assert_eq!(counts(&Multiline::end(pattern(r";$")), text), [5, 1]);
    }
    #[test]
    fn java_traces() {
        let java = Multiline::preset("java").unwrap();
        let text = "2026-11-25 10:00:00 INFO  up\n\
            2026-11-25 10:00:01 ERROR request failed\n\
            com.acme.ShopException: no stock\n\
            \tat com.acme.Shop.sell(Shop.java:12)\n\
            \tat com.acme.Main$1.run(Main.java:7)\n\
            Caused by: java.lang.IllegalStateException: empty\n\
            \tat com.acme.Stock.take(Stock.java:99)\n\
            \t... 2 more\n\
            2026-11-25 10:00:02 INFO  next\n\
            Exception in thread \"main\" java.lang.NullPointerException\n\
            \tat Main.main(Main.java:3)\n\
            java.io.IOException: another\n\
            \tat A.b(A.java:1)\n\
            \tSuppressed: java.lang.Error: x\n\
            \t\tat A.c(A.java:2)\n\
            2026-11-25 10:00:03 INFO  done\n";
        assert_eq!(counts(&java, text), [1, 7, 1, 2, 4, 1]);
    }
    #[test]
    fn python_traces() {
        let python = Multiline::preset("python").unwrap();
        let text = "INFO up\n\
            ERROR job failed\n\
            Traceback (most recent call last):\n\
            \x20 File \"a.py\", line 3, in f\n\
            \x20   return d[1]\n\
            \x20          ~^^^\n\
            KeyError: 1\n\
            \n\
            During handling of the above exception, another exception occurred:\n\
            \n\
            Traceback (most recent call last):\n\
            \x20 File \"a.py\", line 9, in <module>\n\
            \x20   f()\n\
            ValueError: bad\n\
            INFO next\n\
            Traceback (most recent call last):\n\
            \x20 File \"b.py\", line 1, in <module>\n\
            ZeroDivisionError: division by zero\n\
            INFO done\n";
        assert_eq!(counts(&python, text), [1, 13, 4, 1]);
    }
    #[test]
    fn go_traces() {
        let go = Multiline::preset("go").unwrap();
        let text = "2026/11/25 10:00:00 up\n\
            panic: runtime error: index out of range [5] with length 3\n\
            \n\
            goroutine 1 [running]:\n\
            main.(*T).f(0xc000012345, {0x1, 0x2})\n\
            \t/src/main.go:12 +0x1d\n\
            main.main()\n\
            \t/src/main.go:20 +0x2a\n\
            \n\
            goroutine 18 gp=0xc0000 m=nil [select]:\n\
            net/http.(*Server).Serve(0x1)\n\
            \t/go/http.go:3 +0x1\n\
            created by main.main in goroutine 1\n\
            \t/src/main.go:9 +0x1\n\
            exit status 2\n\
            2026/11/25 10:00:01 http: panic serving 10.0.0.1:99: boom\n\
            goroutine 34 [running]:\n\
            net/http.(*conn).serve.func1()\n\
            \t/go/http.go:1 +0x1\n\
            2026/11/25 10:00:02 done\n";
        assert_eq!(counts(&go, text), [1, 14, 4, 1]);
    }
    #[test]
    fn every_preset_can_be_made() {
        assert!(PRESETS.iter().all(|name| Multiline::preset(name).is_some()));
        assert!(Multiline::preset("cobol").is_none());
    }
}
