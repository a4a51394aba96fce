//! Reward sources of a program that uses this library.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Completion, RewardSource};
use crate::error::{Problem, Result};

/// Makes a source: once for each stage that names it.
type Factory = Arc<dyn Fn() -> Box<dyn RewardSource> + Send + Sync>;

/// Reward sources by the names that recipes call them by (`reward: Custom(name: "polite")`).
///
/// ```
/// use tempering::reward::{Completion, CustomRewards};
///
/// let rewards = CustomRewards::default().with("polite", || {
///     |completions: &[Completion]| {
///         let polite = |c: &Completion| f32::from(c.response.contains("please"));
///         Ok(completions.iter().map(polite).collect())
///     }
/// });
/// assert_eq!(rewards.names(), ["polite"]);
/// ```
#[derive(Clone, Default)]
pub struct CustomRewards(BTreeMap<String, Factory>);

impl CustomRewards {
    /// With one source more; `make` is called for each stage that names it. A source of the same name is replaced.
    #[must_use]
    pub fn with<S: RewardSource + 'static>(
        mut self,
        name: impl Into<String>,
        make: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        self.0
            .insert(name.into(), Arc::new(move || Box::new(make())));
        self
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// A new source of this name.
    pub(super) fn make(&self, name: &str) -> Option<Box<dyn RewardSource>> {
        self.0.get(name).map(|make| make())
    }

    /// The problem of a name that no source has.
    pub(super) fn problem(&self, name: &str, place: &str) -> Option<Problem> {
        if self.0.contains_key(name) {
            return None;
        }
        let help = match self.names().as_slice() {
            [] => "such sources are made by a Rust program around this library (docs/rust.md); for a program in any language take \
                   Command(command: [..])"
                .to_owned(),
            names => format!("the program has {}", names.join(", ")),
        };
        let message = format!("no reward source named {name:?} is in this program");
        Some(Problem::new(place, message).with_help(help))
    }
}

impl fmt::Debug for CustomRewards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CustomRewards").field(&self.names()).finish()
    }
}

/// A function is a source.
impl<F: FnMut(&[Completion]) -> Result<Vec<f32>>> RewardSource for F {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        self(completions)
    }
}
