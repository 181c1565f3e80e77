//! What `cargo test` says, line by line: which targets ran, what failed in them, and how to run that again.

/// A target some of whose tests failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What cargo takes to run such targets alone: `--test sessions`, `--lib`, `--doc`.
    pub(crate) target: Vec<String>,
    /// None, where the process ended before it could say which.
    pub(crate) tests: Vec<String>,
}

/// What is to be shown of a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Nothing,
    /// A target that begins.
    Target(String),
    /// How it ended.
    Ended(String),
    /// All that it said, because it failed.
    Whole(Vec<String>),
    /// Of cargo itself.
    Line(String),
}

#[derive(Default)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failures: Vec<Failure>,
    /// What the target that runs has said.
    said: Vec<String>,
    /// The names under its last `failures:`.
    names: Vec<String>,
    in_names: bool,
    running: bool,
}

impl Report {
    pub(crate) fn read(&mut self, line: &str) -> Show {
        if let Some(target) = started(line) {
            *self =
                Self { passed: self.passed, failures: std::mem::take(&mut self.failures), ..Self::default() };
            self.running = true;
            return Show::Target(target);
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            let (passed, text) = counted(result);
            self.passed += passed;
            return if result.starts_with("ok") { Show::Ended(text) } else { self.keep(line) };
        }
        if let Some((_, arguments)) = line.split_once("failed, to rerun pass `") {
            return self.failed(arguments.trim_end_matches('`'));
        }
        if !self.running {
            return Show::Line(line.to_owned());
        }
        match line.strip_prefix("    ").filter(|_| self.in_names) {
            Some(name) => self.names.push(name.to_owned()),
            // The first of two such lists is of what each printed; an empty line follows its heading.
            None => self.in_names = line == "failures:",
        }
        self.keep(line)
    }

    fn keep(&mut self, line: &str) -> Show {
        let usual = line.is_empty() || line.ends_with(" ... ok") || line.starts_with("running ");
        if !usual {
            self.said.push(line.to_owned());
        }
        Show::Nothing
    }

    fn failed(&mut self, arguments: &str) -> Show {
        let mut target = arguments.split_whitespace().map(str::to_owned).peekable();
        let mut kept = Vec::new();
        while let Some(argument) = target.next() {
            // The whole workspace is built with one set of features; one package alone would be built anew.
            if argument == "-p" {
                target.next();
            } else {
                kept.push(argument);
            }
        }
        self.failures.push(Failure { target: kept, tests: std::mem::take(&mut self.names) });
        self.running = false;
        Show::Whole(std::mem::take(&mut self.said))
    }
}

/// `Running tests/sessions.rs (target/debug/deps/sessions-0123)` and `Doc-tests eclosion_ipc`.
fn started(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{package} documentation"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.split_once(" (")?;
    let name = binary.rsplit('/').next()?.rsplit_once('-')?.0;
    Some(format!("{name} {}", source.trim_start_matches("unittests ")))
}

/// `ok. 42 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 3.21s`
fn counted(result: &str) -> (usize, String) {
    let passed = result.split([' ', ';']).zip(result.split([' ', ';']).skip(1));
    let passed = passed.filter(|(_, word)| *word == "passed").find_map(|(count, _)| count.parse().ok());
    let passed = passed.unwrap_or(0);
    let time = result.rsplit_once("finished in ").map_or(String::new(), |(_, time)| format!(" in {time}"));
    (passed, format!("{passed} passed{time}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Report, Vec<Show>) {
        let mut report = Report::default();
        let shown =
            text.lines().map(|line| report.read(line)).filter(|show| *show != Show::Nothing).collect();
        (report, shown)
    }

    #[test]
    fn a_target_that_passes_is_two_words_and_a_time() {
        let (report, shown) = read(
            "     Running unittests src/lib.rs (target/debug/deps/eclosion_bus-fdd57)\n\nrunning 2 tests\n\
             test a ... ok\ntest b ... ignored\n\n\
             test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.16s\n",
        );
        let ended = Show::Ended("1 passed in 0.16s".into());
        assert_eq!(shown, [Show::Target("eclosion_bus src/lib.rs".into()), ended]);
        assert_eq!((report.passed, report.failures.len()), (1, 0));
    }

    #[test]
    fn a_target_that_fails_is_shown_whole_and_names_its_tests() {
        let (report, shown) = read(
            "     Running tests/it.rs (target/debug/deps/it-2f190)\n\nrunning 2 tests\ntest good ... ok\n\
             test worse ... FAILED\n\nfailures:\n\n---- worse stdout ----\n    indented\n\nfailures:\n    worse\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.17s\n\n\
             error: test failed, to rerun pass `-p eclosion-ipc --test it`\n",
        );
        let failure = Failure { target: vec!["--test".into(), "it".into()], tests: vec!["worse".into()] };
        assert_eq!(report.failures, [failure]);
        let Some(Show::Whole(said)) = shown.last() else { panic!("{shown:?}") };
        assert!(said.iter().any(|line| line == "    indented"), "{said:?}");
        assert!(!said.iter().any(|line| line.ends_with("ok")), "{said:?}");
    }

    #[test]
    fn a_process_that_dies_has_failed_without_names() {
        let (report, _) = read(
            "     Running tests/dies.rs (target/debug/deps/dies-a8b42)\n\nrunning 1 test\n\
             error: test failed, to rerun pass `-p eclosion-ipc --test dies`\n\nCaused by:\n  signal: 6\n\
             \x20    Running tests/it.rs (target/debug/deps/it-2f190)\n\
             test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
        );
        assert_eq!(
            report.failures,
            [Failure { target: vec!["--test".into(), "dies".into()], tests: vec![] }]
        );
        assert_eq!(report.passed, 3);
    }

    #[test]
    fn examples_in_documentation_are_a_target() {
        let (report, shown) = read(
            "   Doc-tests eclosion\n\nfailures:\n    src/lib.rs - a (line 1)\n\n\
             error: doctest failed, to rerun pass `-p eclosion --doc`\n",
        );
        assert_eq!(shown[0], Show::Target("eclosion documentation".into()));
        assert_eq!(report.failures[0].target, ["--doc"]);
    }

    #[test]
    fn what_cargo_itself_says_is_shown() {
        let (_, shown) = read("error: could not compile `eclosion-bus` (lib)\n");
        assert_eq!(shown, [Show::Line("error: could not compile `eclosion-bus` (lib)".into())]);
    }
}
