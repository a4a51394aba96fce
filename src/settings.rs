//! Collects what is wrong with the settings of a method, by key, with the common checks and their messages.

use std::fmt::Debug;

use crate::error::Problem;

/// The problems found so far; the place of each is the key.
#[derive(Debug, Default)]
pub struct Settings {
    problems: Vec<Problem>,
}

impl Settings {
    /// All problems in the order in which they were found.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes a problem.
    pub fn note(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Notes `must be {expected}, found {found}` unless `holds`.
    pub fn must(&mut self, key: &str, holds: bool, expected: &str, found: impl Debug) {
        if !holds {
            let message = format!("must be {expected}, found {found:?}");
            self.note(Problem::new(key, message));
        }
    }

    /// At least 1.
    pub fn positive(&mut self, key: &str, value: usize) {
        self.must(key, value >= 1, "at least 1", value);
    }

    /// Above 0 and finite.
    pub fn above_zero(&mut self, key: &str, value: f64) {
        let holds = value > 0.0 && value.is_finite();
        self.must(key, holds, "above 0 and finite", value);
    }

    /// At least 0 and finite.
    pub fn not_negative(&mut self, key: &str, value: f64) {
        let holds = value >= 0.0 && value.is_finite();
        self.must(key, holds, "at least 0 and finite", value);
    }

    /// In `[0, 1]`.
    pub fn fraction(&mut self, key: &str, value: f64) {
        let holds = (0.0..=1.0).contains(&value);
        self.must(key, holds, "between 0 and 1", value);
    }

    /// In `[0, 1)`.
    pub fn below_one(&mut self, key: &str, value: f64) {
        let holds = (0.0..1.0).contains(&value);
        self.must(key, holds, "at least 0 and below 1", value);
    }
}
