//! Collects problems of a stage's settings by key, with the common checks and their messages.

pub(super) mod settings;

use std::fmt::Debug;

/// The problems found so far.
#[derive(Debug, Default)]
pub struct Checks {
    problems: Vec<SettingProblem>,
}

/// A problem with the value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingProblem {
    /// The key path to point at, then those of other keys whose values the problem depends on.
    pub keys: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Checks {
    /// All problems in the order in which they were found.
    pub fn into_problems(self) -> Vec<SettingProblem> {
        self.problems
    }

    /// Adds a problem with the value of `key`.
    pub fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(SettingProblem {
            keys: vec![key.into()],
            message: message.into(),
            help: None,
        });
    }

    /// Adds advice to the last problem.
    pub fn help(&mut self, help: impl Into<String>) {
        if let Some(problem) = self.problems.last_mut() {
            problem.help = Some(help.into());
        }
    }

    /// Notes that the last problem also depends on the value of `key`.
    pub fn depends_on(&mut self, key: impl Into<String>) {
        if let Some(problem) = self.problems.last_mut() {
            problem.keys.push(key.into());
        }
    }

    /// Adds `key: must be {expected}, found {found}` unless `holds`.
    pub fn must(&mut self, key: impl Into<String>, holds: bool, expected: &str, found: impl Debug) {
        if !holds {
            self.problem(key, format!("must be {expected}, found {found:?}"));
        }
    }

    /// At least 1.
    pub fn positive(&mut self, path: &str, key: &str, value: usize) {
        self.must(format!("{path}.{key}"), value >= 1, "at least 1", value);
    }

    /// Above 0 and finite.
    pub fn above_zero(&mut self, path: &str, key: &str, value: f64) {
        let holds = value > 0.0 && value.is_finite();
        self.must(format!("{path}.{key}"), holds, "above 0 and finite", value);
    }

    /// At least 0 and finite.
    pub fn not_negative(&mut self, path: &str, key: &str, value: f64) {
        let holds = value >= 0.0 && value.is_finite();
        self.must(
            format!("{path}.{key}"),
            holds,
            "at least 0 and finite",
            value,
        );
    }

    /// In `[0, 1]`.
    pub fn fraction(&mut self, path: &str, key: &str, value: f64) {
        let holds = (0.0..=1.0).contains(&value);
        self.must(format!("{path}.{key}"), holds, "between 0 and 1", value);
    }

    /// In `[0, 1)`.
    pub fn below_one(&mut self, path: &str, key: &str, value: f64) {
        let holds = (0.0..1.0).contains(&value);
        self.must(
            format!("{path}.{key}"),
            holds,
            "at least 0 and below 1",
            value,
        );
    }

    /// Names become folders and key paths.
    pub fn name(&mut self, key: &str, name: &str) {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts_well || !name.chars().all(legal) || name.chars().all(|c| c.is_ascii_digit()) {
            self.problem(
                key,
                format!(
                    "must be letters, digits, `-` and `_`, starting with a letter or digit and not digits only, found {name:?}"
                ),
            );
            self.help("the name becomes a folder of the run and a part of `--set` paths");
        }
    }
}
