//! Responses of several policies to the same prompts: generated policy by policy, scored and measured prompt by prompt.

use std::collections::BTreeMap;

use crate::data::{Prompt, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, Watch, generate_watched};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::{Reporter, RolloutReport};
use crate::reward::{Completion, RewardSource};
use crate::rng::Seed;
use crate::train::evaluate::completions;
use crate::train::forward::group_logprobs;

/// A policy's responses with their texts.
pub(super) struct Responses {
    /// The tokens.
    pub(super) responses: Vec<Response>,
    /// What reward sources read.
    pub(super) completions: Vec<Completion>,
}

/// Sees responses while they are sampled, and ends them at the first of some texts.
struct StopAt<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    reporter: &'a mut dyn Reporter,
    total: usize,
    failure: Option<Error>,
}

/// Byte in `text` where the first of `stops` is, blanks at the start aside: an empty first line ends nothing.
fn stop_of(text: &str, stops: &[String]) -> Option<usize> {
    let body = text.trim_start();
    let before = text.len() - body.len();
    let found = stops.iter().filter_map(|stop| body.find(stop.as_str()));
    found.min().map(|at| before + at)
}

impl Watch for StopAt<'_> {
    fn token(&mut self, _: usize, ids: &[u32]) -> bool {
        if self.stops.is_empty() {
            return false;
        }
        match self.tokenizer.decode(ids, true) {
            Ok(text) => stop_of(&text, self.stops).is_some(),
            Err(error) => {
                self.failure.get_or_insert(error);
                true
            }
        }
    }

    fn progress(&mut self, done: usize, tokens: u64) {
        self.reporter.rollout(&RolloutReport {
            what: "responses",
            done,
            total: self.total,
            tokens,
        });
    }
}

/// Generates a response to each prompt; it ends with the token in which one of `stops` begins, and its text before that.
///
/// # Errors
/// Those of decoding.
pub(super) fn respond<B: ModelBackend>(
    model: &LanguageModel<B>,
    prompts: &[Prompt],
    (tokenizer, options, stops): (&Tokenizer, &GenerateOptions, &[String]),
    seed: Seed,
    device: &B::Device,
    reporter: &mut dyn Reporter,
) -> Result<Responses> {
    let ids: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
    let mut watch = StopAt {
        tokenizer,
        stops,
        reporter,
        total: ids.len(),
        failure: None,
    };
    let responses = generate_watched(model, &ids, options, seed, device, &mut watch);
    if let Some(failure) = watch.failure {
        return Err(failure);
    }
    let mut completions = completions(prompts, &responses, tokenizer)?;
    for completion in &mut completions {
        if let Some(at) = stop_of(&completion.response, stops) {
            completion.response.truncate(at);
        }
    }
    Ok(Responses {
        responses,
        completions,
    })
}

/// What is measured of one policy's responses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Measured {
    /// Scores of each response, by source.
    pub(super) scores: Vec<BTreeMap<String, f64>>,
    /// Sum over a response's tokens of `logprob - ref_logprob`, mean over responses, nats.
    pub(super) kl: f64,
}

/// Scores all responses by every source, and measures their KL from the reference. The responses to a prompt pass together, those of
/// all policies, so that the prompt passes once.
///
/// # Errors
/// Those of the sources.
pub(super) fn measure<B: ModelBackend>(
    policies: &[Responses],
    num_responses: usize,
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
    (reference, temperature): (&LanguageModel<B>, f64),
    micro_batch_tokens: usize,
    device: &B::Device,
) -> Result<Vec<Measured>> {
    let count = policies.first().map_or(0, |first| first.responses.len());
    // Policy and response, prompt by prompt.
    let places: Vec<(usize, usize)> = (0..count / num_responses)
        .flat_map(|prompt| {
            let of_prompt = prompt * num_responses..(prompt + 1) * num_responses;
            (0..policies.len()).flat_map(move |policy| of_prompt.clone().map(move |i| (policy, i)))
        })
        .collect();
    let all: Vec<Completion> = (places.iter())
        .map(|&(policy, i)| policies[policy].completions[i].clone())
        .collect();
    let mut measured: Vec<Measured> = (policies.iter())
        .map(|policy| Measured {
            scores: vec![BTreeMap::new(); policy.responses.len()],
            kl: 0.0,
        })
        .collect();
    for (name, source) in sources.iter_mut() {
        for (&(policy, i), value) in places.iter().zip(source.score(&all)?) {
            measured[policy].scores[i].insert(name.clone(), f64::from(value));
        }
    }
    let rows: Vec<Vec<u32>> = (all.iter())
        .map(|of| [of.prompt_ids.as_slice(), &of.response_ids].concat())
        .collect();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let lens: Vec<usize> = all.iter().map(|of| of.prompt_ids.len()).collect();
    let of_reference = group_logprobs(
        reference,
        &rows,
        &lens,
        temperature,
        micro_batch_tokens,
        device,
    );
    for (&(policy, i), reference) in places.iter().zip(&of_reference) {
        let logprobs = policies[policy].responses[i].logprobs.iter().zip(reference);
        let kl: f64 = logprobs.map(|(own, other)| f64::from(own - other)).sum();
        measured[policy].kl += kl / count.max(1) as f64;
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_at_the_start_end_nothing() {
        let stops = ["\n".to_owned(), "END".to_owned()];
        assert_eq!(stop_of(" a line\nmore", &stops), Some(7));
        assert_eq!(stop_of("\n\n a line\nmore", &stops), Some(9));
        assert_eq!(stop_of("ab END\n", &stops), Some(3));
        assert_eq!(stop_of("\n\n", &stops), None);
        assert_eq!(stop_of("a line\n", &[]), None);
    }
}
