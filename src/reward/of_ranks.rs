//! Sources outside of this program among several ranks: one of them asks, or each asks for its own rows.

use super::{Completion, RewardSource};
use crate::collective;
use crate::error::{Error, Result};

/// A source that may be slow, have side effects or not repeat itself: every completion is scored once, and all ranks have the scores.
pub(super) struct OfRanks {
    name: String,
    source: Box<dyn RewardSource>,
    /// Whether every rank has a source of its own for its rows; otherwise rank 0 scores all.
    per_rank: bool,
}

impl OfRanks {
    pub(super) fn new(name: String, source: Box<dyn RewardSource>, per_rank: bool) -> Self {
        Self {
            name,
            source,
            per_rank,
        }
    }
}

impl RewardSource for OfRanks {
    fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
        let ranks = collective::ranks();
        if ranks.is_alone() {
            return self.source.score(completions);
        }
        let own: Vec<usize> = match (self.per_rank, ranks.is_first()) {
            (true, _) => collective::own(completions.len()).collect(),
            (false, true) => (0..completions.len()).collect(),
            (false, false) => Vec::new(),
        };
        let part: Vec<Completion> = own.iter().map(|&i| completions[i].clone()).collect();
        let outcome = match part.is_empty() {
            true => Ok(Vec::new()),
            false => self.source.score(&part),
        };
        let message = outcome.as_ref().err().map(ToString::to_string);
        let messages = ranks.gather(message.unwrap_or_default().as_bytes());
        let scores = outcome?;
        if let Some(rank) = messages.iter().position(|message| !message.is_empty()) {
            return Err(Error::Reward {
                name: self.name.clone(),
                message: format!(
                    "{}: {}",
                    ranks.name(rank),
                    String::from_utf8_lossy(&messages[rank])
                ),
            });
        }
        let mut all = vec![Vec::new(); completions.len()];
        for (&i, score) in own.iter().zip(scores) {
            all[i] = vec![score];
        }
        collective::share(&mut all, own);
        Ok(all.concat())
    }

    fn warnings(&self) -> Vec<String> {
        self.source.warnings()
    }

    fn notes(&self) -> Vec<String> {
        self.source.notes()
    }

    fn take_messages(&mut self) -> Vec<String> {
        self.source.take_messages()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Threads;

    /// Scores by the prompt, and counts.
    struct Counting(usize);

    impl RewardSource for Counting {
        fn score(&mut self, completions: &[Completion]) -> Result<Vec<f32>> {
            self.0 += completions.len();
            let score = |of: &Completion| match of.prompt.parse() {
                Ok(score) => Ok(score),
                Err(_) => Err(Error::Usage(format!("no number: {}", of.prompt))),
            };
            completions.iter().map(score).collect()
        }

        fn notes(&self) -> Vec<String> {
            vec![self.0.to_string()]
        }
    }

    fn completions(prompts: &[&str]) -> Vec<Completion> {
        let completion = |prompt: &&str| Completion {
            prompt: (*prompt).to_owned(),
            ..Completion::default()
        };
        prompts.iter().map(completion).collect()
    }

    #[test]
    fn each_completion_is_scored_once_and_all_ranks_have_the_scores() {
        for (per_rank, counts) in [(false, ["5", "0"]), (true, ["3", "2"])] {
            let found = Threads::run(2, |_| {
                let mut source = OfRanks::new("c".into(), Box::new(Counting(0)), per_rank);
                let scores = source.score(&completions(&["1", "2", "3", "4", "5"]));
                (scores.unwrap(), source.notes().concat())
            });
            for (rank, (scores, count)) in found.into_iter().enumerate() {
                assert_eq!(scores, [1.0, 2.0, 3.0, 4.0, 5.0]);
                assert_eq!(count, counts[rank], "{per_rank}");
            }
        }
    }

    #[test]
    fn a_failure_of_one_rank_is_an_error_of_all() {
        let found = Threads::run(2, |_| {
            let mut source = OfRanks::new("c".into(), Box::new(Counting(0)), true);
            let error = source.score(&completions(&["1", "x"])).unwrap_err();
            error.to_string()
        });
        assert!(
            found[0].contains("rank 1 of 2 on thread 1: no number: x"),
            "{found:?}"
        );
        assert_eq!(found[1], "no number: x");
    }
}
