//! Judges: models that compare or grade responses by the probabilities of their answers.
//!
//! A judge is a model of the recipe or a server that speaks OpenAI's chat completions. It reads a [`Question`] and gives the
//! log-probability of each of some labels; [`PairForm`] asks which of two responses is better, [`Pairwise`] does so of two policies' responses,
//! [`Graded`] asks for a grade.
//!
//! # Source
//! Bai et al. 2022, arXiv:2212.08073, section 4.1; Lee et al. 2023, arXiv:2309.00267, section 2.

mod config;
mod endpoint;
mod form;
mod graded;
mod labels;
mod lines;
mod local;
mod of_first;
mod pairwise;

use crate::error::Result;
use crate::rng::Seed;

pub use config::{EndpointConfig, GradedConfig, JudgeModel, Price};
pub use endpoint::Endpoint;
pub(crate) use form::default_labels;
pub use form::{PairExample, PairForm, PairSettings, Reasoning};
pub use graded::Graded;
pub(crate) use graded::{problems as graded_problems, row_columns};
pub use labels::{clamped, expected_grade, label_probabilities, preference};
pub use lines::{jsonl, texts};
pub use local::LocalJudge;
pub use of_first::OfFirst;
pub use pairwise::{JudgedPair, Pairwise, PairwiseConfig};

/// A text to be answered by a label.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// Plain text that the answer continues.
    Text(String),
    /// Messages with `role` and `content`; the answer is the assistant's next one.
    Messages(Vec<serde_json::Value>),
}

/// A judge's answer to a question with some labels.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelAnswer {
    /// Log-probability of each label, nats; negative infinity where the judge did not list it. `None` if it answered with none of the
    /// labels.
    pub logprobs: Option<Vec<f64>>,
    /// What it wrote, where it wrote something.
    pub text: String,
    /// Whether it gave a label without probabilities.
    pub without_probabilities: bool,
}

/// What a judge has read and written, answers from the cache included: what a run costs does not depend on where it was resumed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Answers that were asked for in this process.
    pub asked: u64,
    /// Answers that were there already.
    pub cached: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

impl Usage {
    /// Adds the tokens of an answer. Counts of a server may be any number: the sum ends at the highest one.
    fn count_tokens(&mut self, prompt: u64, completion: u64) {
        self.prompt_tokens = self.prompt_tokens.saturating_add(prompt);
        self.completion_tokens = self.completion_tokens.saturating_add(completion);
    }
}

/// A judge. Object-safe; no backend in its type.
pub trait Judge {
    /// Whether it reads messages alone.
    fn reads_messages_only(&self) -> bool {
        false
    }

    /// The answers to `questions`, in order.
    ///
    /// # Errors
    /// If a question does not fit the model, or a server does not answer.
    fn answer(&mut self, questions: &[Question], labels: &[String]) -> Result<Vec<LabelAnswer>>;

    /// Texts of at most `max_tokens` tokens that continue `questions`, drawn at temperature 1 by `seed`.
    ///
    /// # Errors
    /// As [`Judge::answer`].
    fn write(
        &mut self,
        questions: &[Question],
        max_tokens: usize,
        seed: Seed,
    ) -> Result<Vec<String>>;

    /// What it has read and written so far; zero for a model of the recipe.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// A line on what was asked, for the user.
    fn report(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_tokens_end_at_the_highest_number() {
        let mut usage = Usage::default();
        usage.count_tokens(12, 1);
        usage.count_tokens(u64::MAX, u64::MAX);
        usage.count_tokens(u64::MAX, 5);
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens),
            (u64::MAX, u64::MAX)
        );
    }
}
