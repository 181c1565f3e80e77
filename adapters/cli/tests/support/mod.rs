//! A house of its own for a test on the real binary: state, runtime directory and configuration in one temporary place,
//! and no kernel left behind.

mod binary;
#[allow(dead_code, reason = "not every test runs something")]
pub(crate) mod runs;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use self::binary::eclosion;

pub(crate) struct House(TempDir);

impl House {
    /// `steps` is the module that flows name.
    pub(crate) fn new(steps: &str) -> Self {
        let house = Self(tempfile::tempdir().unwrap());
        fs::write(house.path("steps.py"), steps).unwrap();
        house
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A flow file of this name and these tables.
    pub(crate) fn flow(&self, name: &str, tasks: &str) -> String {
        let file = format!("{name}.toml");
        self.write(&file, &format!("schema = \"eclosion/flow/v1\"\nname = \"{name}\"\n{tasks}"));
        file
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        eclosion(self.0.path(), words)
    }

    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it says on stdout.
    pub(crate) fn say(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The document that it prints with `--json`.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let said = self.say(&[words, &["--json"]].concat());
        let document = serde_json::from_str(&said);
        assert!(document.is_ok(), "{words:?}: {said}");
        document.unwrap()
    }

    /// Exit code, and what it says on stderr.
    #[allow(dead_code, reason = "not every test is refused something")]
    pub(crate) fn refused(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = self.output(words);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        // A failed test leaves no kernel.
        let _ = self.command(&["down", "--now"]).output();
    }
}
