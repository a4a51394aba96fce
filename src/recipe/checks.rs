//! Collects what is wrong with a recipe, and the wordings of common checks.

use std::fmt::Debug;

use crate::error::Problem;
use crate::recipe::places::Places;

/// Findings so far.
pub(super) struct Checks<'a> {
    /// Where each key stands.
    pub(super) places: &'a Places,
    findings: Vec<Finding>,
}

struct Finding {
    /// The key to point at, then the other keys whose values the finding rests on.
    keys: Vec<String>,
    message: String,
    help: Option<String>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(places: &'a Places) -> Self {
        Self {
            places,
            findings: Vec::new(),
        }
    }

    /// Notes a problem with the value of `key`.
    pub(super) fn say(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding {
            keys: vec![key.into()],
            message: message.into(),
            help: None,
        });
    }

    /// Adds advice to the last problem.
    pub(super) fn help(&mut self, help: impl Into<String>) {
        if let Some(finding) = self.findings.last_mut() {
            finding.help = Some(help.into());
        }
    }

    /// Says that the last problem also rests on the value of `key`.
    pub(super) fn rests_on(&mut self, key: impl Into<String>) {
        if let Some(finding) = self.findings.last_mut() {
            finding.keys.push(key.into());
        }
    }

    /// `key: must be {wanted}, found {found}` unless `holds`.
    pub(super) fn must(
        &mut self,
        key: impl Into<String>,
        holds: bool,
        wanted: &str,
        found: impl Debug,
    ) {
        if !holds {
            self.say(key, format!("must be {wanted}, found {found:?}"));
        }
    }

    pub(super) fn positive(&mut self, path: &str, key: &str, value: usize) {
        self.must(format!("{path}.{key}"), value >= 1, "at least 1", value);
    }

    pub(super) fn above_zero(&mut self, path: &str, key: &str, value: f64) {
        let holds = value > 0.0 && value.is_finite();
        self.must(format!("{path}.{key}"), holds, "above 0 and finite", value);
    }

    pub(super) fn not_negative(&mut self, path: &str, key: &str, value: f64) {
        let holds = value >= 0.0 && value.is_finite();
        self.must(
            format!("{path}.{key}"),
            holds,
            "at least 0 and finite",
            value,
        );
    }

    /// In `[0, 1]`.
    pub(super) fn fraction(&mut self, path: &str, key: &str, value: f64) {
        let holds = (0.0..=1.0).contains(&value);
        self.must(format!("{path}.{key}"), holds, "between 0 and 1", value);
    }

    /// In `[0, 1)`.
    pub(super) fn below_one(&mut self, path: &str, key: &str, value: f64) {
        let holds = (0.0..1.0).contains(&value);
        self.must(
            format!("{path}.{key}"),
            holds,
            "at least 0 and below 1",
            value,
        );
    }

    /// Names become folders and key paths.
    pub(super) fn name(&mut self, key: &str, name: &str) {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts_well || !name.chars().all(legal) || name.chars().all(|c| c.is_ascii_digit()) {
            self.say(
                key,
                format!(
                    "must be letters, digits, `-` and `_`, starting with a letter or digit and not digits only, found {name:?}"
                ),
            );
            self.help("the name becomes a folder of the run and a part of `--set` paths");
        }
    }

    pub(super) fn report(self, broken: &[String]) -> Vec<Problem> {
        let is_broken = |key: &String| {
            broken.iter().any(|b| {
                key == b || key.starts_with(&format!("{b}.")) || b.starts_with(&format!("{key}."))
            })
        };
        let mut problems: Vec<Problem> = Vec::new();
        for finding in self.findings {
            if finding.keys.iter().any(is_broken) {
                continue;
            }
            let problem = self.places.problem(&finding.keys[0], finding.message);
            let problem = match finding.help {
                Some(help) => problem.with_help(help),
                None => problem,
            };
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        problems
    }
}
