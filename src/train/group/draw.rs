//! The episodes of an update: groups of responses to each of some prompts, drawn again where their rewards are equal.

use super::GroupKeys;
use crate::data::{Prompt, TokenRows};
use crate::error::Result;
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::rl::apply_missing_eos;
use crate::rl::rollout::groups_vary;
use crate::rng::Seed;
use crate::train::Session;
use crate::train::rollout::{Episodes, Generator, endless};

/// Where the episodes of an update come from.
pub(super) struct Draw<'a> {
    pub(super) prompts: &'a TokenRows<Prompt>,
    pub(super) keys: &'a GroupKeys<'a>,
    /// Randomness of the order of prompts.
    pub(super) order: Seed,
    /// Randomness of the responses.
    pub(super) sampling: Seed,
}

/// The episodes of an update.
pub(super) struct Drawn {
    /// `batch_size` responses, those to one prompt one after the other, with the penalty on long ones in their scores.
    pub(super) episodes: Episodes,
    /// Position in the endless sequence of prompts after them.
    pub(super) next_prompt: usize,
    /// Groups that were generated.
    groups: usize,
    /// Groups among them with equal rewards; `None` for groups of one response.
    equal: Option<usize>,
    /// Groups with equal rewards among `episodes`.
    equal_left: usize,
    /// Rounds of generation, and the most there may be; `None` without dynamic sampling.
    rounds: Option<(usize, usize)>,
}

impl Draw<'_> {
    /// Generates and scores the responses of an update, from prompt `first` of the endless sequence on.
    ///
    /// # Errors
    /// Those of data and reward sources.
    pub(super) fn episodes<B: ModelBackend>(
        &self,
        session: &mut Session<'_, B>,
        generator: &mut Generator<'_>,
        policy: &LanguageModel<B>,
        first: usize,
    ) -> Result<Drawn> {
        let size = self.keys.num_generations;
        let wanted = self.keys.batch_size / size;
        let max_rounds = (self.keys.dynamic_sampling).map(|dynamic| dynamic.max_rounds);
        let (mut kept, mut equal) = (Episodes::default(), Episodes::default());
        let (mut next_prompt, mut rounds) = (first, 0);
        while kept.queries.len() < self.keys.batch_size && rounds < max_rounds.unwrap_or(1) {
            let missing = wanted - kept.queries.len() / size;
            let prompts = self.groups(next_prompt, missing)?;
            // Without dynamic sampling there is one round only.
            let seed = match rounds {
                0 => self.sampling,
                again => self.sampling.fork("again").fork_index(again as u64),
            };
            let mut drawn = generator.episodes(session, policy, None, &prompts, seed)?;
            self.penalise_length(&mut drawn);
            next_prompt += missing;
            rounds += 1;
            if size == 1 {
                kept = drawn;
                break;
            }
            let varies = groups_vary(&self.final_scores(&drawn), size);
            let rows_of = |varying: bool| -> Vec<usize> {
                (0..drawn.queries.len())
                    .filter(|row| varies[row / size] == varying)
                    .collect()
            };
            let (varying, same) = (rows_of(true), rows_of(false));
            equal.append(drawn.select(&same));
            kept.append(match max_rounds {
                Some(_) => drawn.select(&varying),
                None => drawn,
            });
        }
        let num_equal = equal.queries.len() / size;
        let missing = self.keys.batch_size - kept.queries.len();
        if missing > 0 {
            let rows = equal.queries.len();
            let last: Vec<usize> = (rows - missing..rows).collect();
            kept.append(equal.select(&last));
        }
        Ok(Drawn {
            equal_left: match max_rounds {
                Some(_) => missing / size,
                None => num_equal,
            },
            episodes: kept,
            groups: next_prompt - first,
            next_prompt,
            equal: (size > 1).then_some(num_equal),
            rounds: max_rounds.map(|most| (rounds, most)),
        })
    }

    /// `count` prompts from `first` on, each once per response.
    fn groups(&self, first: usize, count: usize) -> Result<Vec<Prompt>> {
        let range = first..first + count;
        let rows = endless(self.prompts.len(), range, self.order);
        let prompts = self.prompts.get(rows)?;
        Ok((prompts.into_iter())
            .flat_map(|prompt| std::iter::repeat_n(prompt.into_owned(), self.keys.num_generations))
            .collect())
    }

    fn penalise_length(&self, episodes: &mut Episodes) {
        let Some(overlong) = self.keys.overlong else {
            return;
        };
        for (score, response) in episodes.scores.iter_mut().zip(&episodes.responses) {
            let penalty = overlong.of(response.ids.len(), self.keys.response_length);
            *score = (f64::from(*score) - penalty) as f32;
        }
    }

    /// Scores after the missing-EOS rule.
    fn final_scores(&self, episodes: &Episodes) -> Vec<f32> {
        let mut scores = episodes.scores.clone();
        let has_eos: Vec<bool> = episodes.responses.iter().map(|r| r.stopped).collect();
        apply_missing_eos(&mut scores, &has_eos, self.keys.missing_eos);
        scores
    }
}

impl Drawn {
    /// Their entries in `metrics.jsonl`.
    pub(super) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let share = |equal: usize| equal as f64 / self.groups.max(1) as f64;
        let share = (self.equal).map(|equal| ("rollout/frac_reward_zero_std", share(equal)));
        let mut metrics: Vec<(&'static str, f64)> = share.into_iter().collect();
        if let Some((rounds, _)) = self.rounds {
            metrics.extend([
                ("rollout/rounds", rounds as f64),
                ("rollout/groups_drawn", self.groups as f64),
                ("rollout/groups_without_variance", self.equal_left as f64),
            ]);
        }
        metrics
    }

    /// What a user should know: an update that nothing can be learned from.
    pub(super) fn warning(&self) -> Option<String> {
        let groups = self.groups;
        if self.equal != Some(groups) {
            return None;
        }
        let after = match self.rounds {
            Some((rounds, _)) => format!("{groups} groups in {rounds} rounds, and "),
            None => String::new(),
        };
        Some(format!(
            "{after}the responses to each prompt have equal rewards: nothing was learned. The task is too easy or too hard for the policy, \
             or the reward is too coarse"
        ))
    }
}
