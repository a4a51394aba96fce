//! Collects problems of a stage's settings by key, with the common checks and their messages.

mod cadence;
pub(super) mod on_policy;
pub(super) mod settings;

use std::fmt::Debug;

use crate::error::Problem;
use crate::settings::Settings;

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

/// Bytes of a name: file systems take 255 of a folder's, and a temporary one has a longer name.
const LONGEST_NAME: usize = 128;

/// The smallest temperature above 0. With logits of some thousands the square of a difference of log-probabilities is finite.
const LEAST_TEMPERATURE: f64 = 1e-6;

/// More problems than an error lists: what takes long for each is not looked for any further.
const ENOUGH: usize = 200;

impl Checks {
    /// Whether there are more problems than will be listed.
    pub(crate) fn has_enough(&self) -> bool {
        self.problems.len() >= ENOUGH
    }

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

    /// Adds problems with settings below the key `path`, or with the value of `path` itself where they name no key.
    pub fn problems_below(&mut self, path: &str, problems: Vec<Problem>) {
        for problem in problems {
            let Problem {
                place,
                message,
                help,
            } = problem.below(path);
            self.problems.push(SettingProblem {
                keys: vec![place],
                message,
                help,
            });
        }
    }

    fn settings_below(&mut self, path: &str, check: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::default();
        check(&mut settings);
        self.problems_below(path, settings.into_problems());
    }

    /// As [`Settings::must`].
    pub fn must(&mut self, key: impl Into<String>, holds: bool, expected: &str, found: impl Debug) {
        self.settings_below(&key.into(), |s| s.must("", holds, expected, found));
    }

    /// As [`Settings::positive`].
    pub fn positive(&mut self, path: &str, key: &str, value: usize) {
        self.settings_below(path, |settings| settings.positive(key, value));
    }

    /// As [`Settings::above_zero`].
    pub fn above_zero(&mut self, path: &str, key: &str, value: f64) {
        self.settings_below(path, |settings| settings.above_zero(key, value));
    }

    /// As [`Settings::not_negative`].
    pub fn not_negative(&mut self, path: &str, key: &str, value: f64) {
        self.settings_below(path, |settings| settings.not_negative(key, value));
    }

    /// As [`Settings::fraction`].
    pub fn fraction(&mut self, path: &str, key: &str, value: f64) {
        self.settings_below(path, |settings| settings.fraction(key, value));
    }

    /// As [`Settings::below_one`].
    pub fn below_one(&mut self, path: &str, key: &str, value: f64) {
        self.settings_below(path, |settings| settings.below_one(key, value));
    }

    /// A temperature above 0.
    pub fn temperature(&mut self, path: &str, key: &str, value: f64) {
        self.above_zero(path, key, value);
        self.not_tiny(path, key, value);
    }

    /// A temperature, or 0 for the most probable token.
    pub fn temperature_or_zero(&mut self, path: &str, key: &str, value: f64) {
        self.not_negative(path, key, value);
        self.not_tiny(path, key, value);
    }

    fn not_tiny(&mut self, path: &str, key: &str, value: f64) {
        self.must(
            format!("{path}.{key}"),
            !(value > 0.0 && value < LEAST_TEMPERATURE),
            "at least 1e-6: logits divided by less are not finite in 32 bits",
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
        } else if name.len() > LONGEST_NAME {
            let message = format!(
                "must be at most {LONGEST_NAME} characters, found {}",
                name.len()
            );
            self.problem(key, message);
            self.help("the name becomes a folder of the run");
        }
    }
}
