//! Generates and scores responses to held-out prompts.

use std::collections::BTreeMap;

use super::forward::row_logprobs;
use crate::data::{Prompt, Tokenizer};
use crate::error::Result;
use crate::generate::{GenerateOptions, Response, SamplingConfig, generate};
use crate::model::LanguageModel;
use crate::ops::ModelBackend;
use crate::report::Sample;
use crate::reward::{Completion, RewardSource};
use crate::rng::Seed;

/// Which prompts to generate samples for.
pub(super) struct SampleRequest<'a> {
    pub(super) prompts: &'a [Prompt],
    pub(super) max_new_tokens: usize,
    pub(super) step: usize,
}

impl SampleRequest<'_> {
    /// At most `longest` new tokens, and no more than fit into rows of `max_length` after the longest prompt: a table of positions may end
    /// there. The last token of a response is not read, so one always fits.
    pub(super) fn within(max_length: usize, prompts: &[Prompt], longest: usize) -> usize {
        let prompt = (prompts.iter().map(|prompt| prompt.ids.len())).max();
        longest
            .min(max_length.saturating_sub(prompt.unwrap_or(0)))
            .max(1)
    }
}

/// Greedy responses for `samples.jsonl`.
pub(super) fn greedy_samples<B: ModelBackend>(
    model: &LanguageModel<B>,
    tokenizer: &Tokenizer,
    request: &SampleRequest<'_>,
    device: &B::Device,
) -> Result<Vec<Sample>> {
    let options = GenerateOptions {
        max_new_tokens: request.max_new_tokens,
        sampling: SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        },
        repetition_penalty: 1.0,
        stop_ids: tokenizer.stop_ids().to_vec(),
        truncate: None,
        batch_size: request.prompts.len().max(1),
    };
    let ids: Vec<&[u32]> = request.prompts.iter().map(|p| p.ids.as_slice()).collect();
    let responses = generate(model, &ids, &options, Seed::new(0), device, &mut |_, _| {});
    let completions = completions(request.prompts, &responses, tokenizer)?;
    Ok(completions
        .iter()
        .zip(&responses)
        .map(|(completion, response)| sample(completion, response.stopped, request.step))
        .collect())
}

/// An entry of `samples.jsonl`.
pub(super) fn sample(completion: &Completion, ended: bool, step: usize) -> Sample {
    let reference = completion.row.get("completion").and_then(|v| v.as_str());
    Sample {
        step,
        prompt: completion.prompt.clone(),
        response: completion.response.clone(),
        reference: reference.map(|text| text.trim().to_owned()),
        ended: Some(ended),
        ..Sample::default()
    }
}

/// Responses in the form that reward sources take: text without the stop token.
pub(super) fn completions(
    prompts: &[Prompt],
    responses: &[Response],
    tokenizer: &Tokenizer,
) -> Result<Vec<Completion>> {
    prompts
        .iter()
        .zip(responses)
        .map(|(prompt, response)| {
            Ok(Completion {
                prompt: prompt.text.clone(),
                response: tokenizer.decode(&response.ids, true)?,
                prompt_ids: prompt.ids.clone(),
                response_ids: response.ids.clone(),
                conversation: prompt.conversation.clone(),
                row: prompt.row.clone(),
            })
        })
        .collect()
}

/// The result of an evaluation on held-out prompts.
pub(super) struct Evaluation {
    /// Mean score by source.
    pub(super) scores: BTreeMap<String, f64>,
    /// Mean score by part of the sources that are sums, as `source/part`.
    pub(super) parts: Vec<(String, f64)>,
    /// Sum over a response's tokens of `logprob - ref_logprob`, mean over responses, nats; `None` without a reference.
    pub(super) kl: Option<f64>,
    /// Mean length of a response in tokens.
    pub(super) response_length: f64,
    /// Fraction of responses that ended with EOS.
    pub(super) eos_rate: f64,
    /// The responses, with their scores.
    pub(super) samples: Vec<Sample>,
}

/// Prompts, models and reward sources of an evaluation.
pub(super) struct Evaluator<'a, B: ModelBackend> {
    pub(super) prompts: &'a [Prompt],
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) options: GenerateOptions,
    pub(super) reference: Option<&'a LanguageModel<B>>,
    pub(super) micro_batch_tokens: usize,
    pub(super) seed: Seed,
}

impl<B: ModelBackend> Evaluator<'_, B> {
    /// Generates a response to every prompt and scores it by every source.
    pub(super) fn run(
        &self,
        model: &LanguageModel<B>,
        sources: &mut BTreeMap<String, Box<dyn RewardSource>>,
        device: &B::Device,
        on_progress: &mut dyn FnMut(usize, u64),
    ) -> Result<Evaluation> {
        let ids: Vec<&[u32]> = self.prompts.iter().map(|p| p.ids.as_slice()).collect();
        let responses = generate(model, &ids, &self.options, self.seed, device, on_progress);
        let completions = completions(self.prompts, &responses, self.tokenizer)?;
        let mut samples: Vec<Sample> = completions
            .iter()
            .zip(&responses)
            .map(|(c, r)| sample(c, r.stopped, 0))
            .collect();
        let (mut scores, mut parts) = (BTreeMap::new(), Vec::new());
        for (name, source) in sources {
            let values = source.score(&completions)?;
            for (sample, &value) in samples.iter_mut().zip(&values) {
                sample.scores.insert(name.clone(), f64::from(value));
            }
            scores.insert(name.clone(), crate::rl::mean(&values));
            let of_parts = source.parts().into_iter();
            parts.extend(
                of_parts.map(|(part, values)| (format!("{name}/{part}"), crate::rl::mean(&values))),
            );
        }
        let count = responses.len().max(1) as f64;
        Ok(Evaluation {
            scores,
            parts,
            kl: self.kl(&responses, device),
            response_length: responses.iter().map(|r| r.ids.len()).sum::<usize>() as f64 / count,
            eos_rate: responses.iter().filter(|r| r.stopped).count() as f64 / count,
            samples,
        })
    }

    fn kl(&self, responses: &[Response], device: &B::Device) -> Option<f64> {
        let reference = self.reference?;
        // Greedy responses have log-probabilities at temperature 1, so the reference's are taken at 1.
        let temperature = match self.options.sampling.temperature {
            0.0 => 1.0,
            temperature => temperature,
        };
        let rows: Vec<Vec<u32>> = self
            .prompts
            .iter()
            .zip(responses)
            .map(|(p, r)| [p.ids.as_slice(), &r.ids].concat())
            .collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let lens: Vec<usize> = self.prompts.iter().map(|p| p.ids.len()).collect();
        let reference = row_logprobs(
            reference,
            &rows,
            &lens,
            temperature,
            self.micro_batch_tokens,
            device,
        );
        let total: f64 = responses
            .iter()
            .zip(&reference)
            .flat_map(|(response, reference)| response.logprobs.iter().zip(reference))
            .map(|(logprob, reference)| f64::from(logprob - reference))
            .sum();
        Some(total / responses.len().max(1) as f64)
    }
}
