//! Responses of several policies to the same prompts: generated policy by policy, scored and measured prompt by prompt.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::partial::Partial;
use crate::collective;
use crate::data::{Prompt, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, Watch, generate_numbered};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::{Interrupt, Reporter, RolloutReport};
use crate::reward::{Completion, RewardSource};
use crate::rng::Seed;
use crate::train::Session;
use crate::train::evaluate::completions;
use crate::train::forward::group_logprobs;

/// Batches of responses that are generated in one go, and again if it is interrupted: the last bits of numbers may depend on the
/// responses that are generated beside.
const BATCHES_PER_CHUNK: usize = 8;

/// Prompts whose responses pass the reference between two looks at the interrupt.
const PROMPTS_PER_CHUNK: usize = 64;

/// A policy's responses with their texts.
pub(super) struct Responses {
    /// The tokens.
    pub(super) responses: Vec<Response>,
    /// What reward sources read.
    pub(super) completions: Vec<Completion>,
}

/// One policy's part of the comparison.
pub(super) struct Part<'a> {
    /// Index of the policy.
    pub(super) policy: usize,
    /// Responses of earlier processes, and the file for new ones.
    pub(super) partial: &'a mut Partial,
    /// Ends the generation.
    pub(super) interrupt: &'a Interrupt,
}

/// Sees responses while they are sampled, and ends them at the first of some texts.
struct StopAt<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    reporter: &'a mut dyn Reporter,
    interrupt: &'a Interrupt,
    /// Responses before these, and all.
    before: usize,
    total: usize,
    /// Whether the generation ended before its last response.
    is_cut: Cell<bool>,
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
            done: self.before + done,
            total: self.total,
            tokens,
        });
    }

    fn stops(&self) -> bool {
        let stops = self.failure.is_some() || self.interrupt.requested();
        self.is_cut.set(self.is_cut.get() || stops);
        stops
    }
}

/// Generates a response to each prompt that has none yet, some batches at a time; it ends with the token in which one of `stops` begins,
/// and its text before that. `None` if the user wants to stop: complete batches are kept.
///
/// # Errors
/// Those of decoding, and `Error::Io`.
pub(super) fn respond<B: ModelBackend>(
    model: &LanguageModel<B>,
    prompts: &[Prompt],
    (tokenizer, options, stops): (&Tokenizer, &GenerateOptions, &[String]),
    seed: Seed,
    part: Part<'_>,
    device: &B::Device,
    reporter: &mut dyn Reporter,
) -> Result<Option<Responses>> {
    let (policy, partial) = (part.policy, part.partial);
    let mut responses: Vec<Response> = Vec::with_capacity(prompts.len());
    let numbers: Vec<usize> = (0..prompts.len()).collect();
    for numbers in numbers.chunks(BATCHES_PER_CHUNK * options.batch_size.max(1)) {
        let known = |&number: &usize| partial.get(policy, number).cloned();
        if let Some(known) = numbers.iter().map(known).collect::<Option<Vec<_>>>() {
            responses.extend(known);
            continue;
        }
        let ids: Vec<&[u32]> = numbers.iter().map(|&i| &*prompts[i].ids).collect();
        let mut watch = StopAt {
            tokenizer,
            stops,
            reporter: &mut *reporter,
            interrupt: part.interrupt,
            before: responses.len(),
            total: prompts.len(),
            is_cut: Cell::new(false),
            failure: None,
        };
        let generated =
            generate_numbered(model, (&ids, numbers), options, seed, device, &mut watch);
        let is_cut = watch.is_cut.get();
        if let Some(failure) = watch.failure {
            return Err(failure);
        }
        // A signal may reach one of several ranks only.
        if collective::any(is_cut) {
            return Ok(None);
        }
        for (&number, response) in numbers.iter().zip(&generated) {
            partial.add(policy, number, response)?;
        }
        responses.extend(generated);
        if collective::any(part.interrupt.requested()) {
            return Ok(None);
        }
    }
    let mut completions = completions(prompts, &responses, tokenizer)?;
    for completion in &mut completions {
        if let Some(at) = stop_of(&completion.response, stops) {
            completion.response.truncate(at);
        }
    }
    Ok(Some(Responses {
        responses,
        completions,
    }))
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
/// `None` if the user wants to stop.
///
/// # Errors
/// Those of the sources.
pub(super) fn measure<B: ModelBackend>(
    session: &mut Session<'_, B>,
    policies: &[Responses],
    num_responses: usize,
    sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
    (reference, temperature): (&LanguageModel<B>, f64),
    micro_batch_tokens: usize,
) -> Result<Option<Vec<Measured>>> {
    let (device, interrupt) = (session.device.clone(), session.interrupt.clone());
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
        let scores = session.score(source.as_mut(), &all)?;
        for (&(policy, i), value) in places.iter().zip(scores) {
            measured[policy].scores[i].insert(name.clone(), f64::from(value));
        }
        if collective::any(interrupt.requested()) {
            return Ok(None);
        }
    }
    // Several passes, so that a signal ends them soon; the responses to one prompt stay together.
    let of_prompt = policies.len() * num_responses;
    let chunk = of_prompt * PROMPTS_PER_CHUNK;
    for (places, all) in places.chunks(chunk.max(1)).zip(all.chunks(chunk.max(1))) {
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
            &device,
        );
        for (&(policy, i), reference) in places.iter().zip(&of_reference) {
            let logprobs = policies[policy].responses[i].logprobs.iter().zip(reference);
            let kl: f64 = logprobs.map(|(own, other)| f64::from(own - other)).sum();
            measured[policy].kl += kl / count.max(1) as f64;
        }
        if collective::any(interrupt.requested()) {
            return Ok(None);
        }
    }
    Ok(Some(measured))
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
