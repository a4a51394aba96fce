//! Responses of a model to prompts, as the options of the command line ask for them.

use std::io::IsTerminal;

use clap::Args;

use super::args::positive;
use super::output;
use super::progress::Progress;
use crate::data::{Prompt, ResponseText, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, SamplingConfig, Watch, generate_watched};
use crate::model::{LanguageModel, ModelConfig};
use crate::ops::ModelBackend;
use crate::rng::Seed;
use crate::sizes::fits_f32;

/// Sampling options.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Most tokens of a response; it ends earlier at EOS [default: 64; of chat: 512]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub max_new_tokens: Option<usize>,
    /// Logits are divided by this; 0 always takes the most probable token [default: 1; of eval: 0; of chat: 0.7]
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub temperature: Option<f64>,
    /// Sample from the smallest set of tokens whose probability reaches this; 1 means all
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = top_p)]
    pub top_p: f64,
    /// Sample from the K most probable tokens; 0 means all
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub top_k: usize,
    /// Sample from tokens at least P times as probable as the most probable one; 0 means all
    #[arg(long, default_value_t = 0.0, value_name = "P", value_parser = min_p)]
    pub min_p: f64,
    /// Make tokens of the prompt and of the response so far less probable: above 1; 1 changes nothing
    #[arg(long, default_value_t = 1.0, value_name = "X", value_parser = penalty)]
    pub repetition_penalty: f64,
    /// End a response before this text (`\\n` is a line break); may be repeated
    #[arg(long, value_name = "TEXT", value_parser = stop)]
    pub stop: Vec<String>,
    /// Root of all randomness: the same seed gives the same responses
    #[arg(long, default_value_t = 1, value_name = "S")]
    pub seed: u64,
}

/// Most tokens of a response, unless a command or the user says otherwise.
pub(super) const MAX_NEW_TOKENS: usize = 64;
/// Most rows decoded at once.
const MAX_ROWS: usize = 64;
/// Most tokens in the KV cache, unless one row needs more.
const CACHE_TOKENS: usize = 16 * 1024;

/// A response and its text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextResponse {
    /// The tokens.
    pub(super) response: Response,
    /// Their text without special tokens, up to a stop string; empty without a tokenizer.
    pub(super) text: String,
}

/// What is said of responses while they are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// How many are done.
    Progress,
    /// The text of the only one, on stdout.
    Text,
}

/// Options for these prompts, with the stop tokens of the tokenizer or, without one, of the model's configuration.
pub(super) fn options(
    sampling: &SamplingArgs,
    (max_new_tokens, temperature): (usize, f64),
    prompts: &[Prompt],
    tokenizer: Option<&Tokenizer>,
    config: &ModelConfig,
) -> GenerateOptions {
    let max_new_tokens = sampling.max_new_tokens.unwrap_or(max_new_tokens);
    let longest = prompts
        .iter()
        .map(|prompt| prompt.ids.len())
        .max()
        .unwrap_or(0)
        + max_new_tokens;
    GenerateOptions {
        max_new_tokens,
        sampling: SamplingConfig {
            temperature: sampling.temperature.unwrap_or(temperature),
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
        },
        repetition_penalty: sampling.repetition_penalty,
        stop_ids: tokenizer.map_or_else(
            || config.eos_ids(),
            |tokenizer| tokenizer.stop_ids().to_vec(),
        ),
        truncate: None,
        batch_size: (CACHE_TOKENS / longest.max(1)).clamp(1, MAX_ROWS),
    }
}

/// Responses to prompts.
pub(super) struct Request<'a> {
    /// The prompts.
    pub(super) prompts: &'a [Prompt],
    /// How they are continued.
    pub(super) options: &'a GenerateOptions,
    /// Without one, responses have no text.
    pub(super) tokenizer: Option<&'a Tokenizer>,
    /// Texts before which a response ends.
    pub(super) stops: &'a [String],
    /// Root of the randomness.
    pub(super) seed: u64,
    /// What is said meanwhile.
    pub(super) show: Show,
}

impl Request<'_> {
    /// One response to each prompt.
    ///
    /// # Errors
    /// `Error::Backend` for log-probabilities that are not finite; those of decoding, and of writing to stdout.
    pub(super) fn run<B: ModelBackend>(
        &self,
        model: &LanguageModel<B>,
        device: &B::Device,
    ) -> Result<Vec<TextResponse>> {
        let ids: Vec<&[u32]> = (self.prompts.iter())
            .map(|prompt| prompt.ids.as_slice())
            .collect();
        let texts = self.tokenizer.map(|tokenizer| {
            let text = || ResponseText::new(tokenizer, self.stops);
            ids.iter().map(|_| text()).collect::<Vec<_>>()
        });
        let mut watcher = Watcher {
            texts: texts.unwrap_or_default(),
            show: self.show,
            watches: self.show == Show::Text || !self.stops.is_empty(),
            progress: Progress::new("responses", ids.len()),
            failure: None,
        };
        let seed = Seed::new(self.seed).fork("generate");
        let responses = generate_watched(model, &ids, self.options, seed, device, &mut watcher);
        let mut texts = watcher.finish()?;
        let broken = |response: &Response| response.logprobs.iter().any(|x| !x.is_finite());
        if let Some(at) = responses.iter().position(broken) {
            return Err(Error::Backend(format!(
                "prompt {}: the model gives log-probabilities that are not finite",
                at + 1
            )));
        }
        let answer = |(at, response): (usize, Response)| {
            let text = match texts.get_mut(at) {
                Some(text) => {
                    text.set(&response.ids)?;
                    if self.show == Show::Text {
                        output::print(text.fresh(true))?;
                    }
                    text.text().to_owned()
                }
                None => String::new(),
            };
            Ok(TextResponse { response, text })
        };
        responses.into_iter().enumerate().map(answer).collect()
    }
}

/// Reads responses as text while they are sampled, and shows how far they are.
struct Watcher<'a> {
    /// By prompt; empty without a tokenizer.
    texts: Vec<ResponseText<'a>>,
    show: Show,
    /// Whether texts are needed before the end.
    watches: bool,
    progress: Progress,
    failure: Option<Error>,
}

impl<'a> Watcher<'a> {
    fn read(&mut self, prompt: usize, ids: &[u32]) -> Result<bool> {
        let Some(text) = self.texts.get_mut(prompt).filter(|_| self.watches) else {
            return Ok(false);
        };
        let stopped = text.set(ids)?;
        if self.show == Show::Text {
            output::print(text.fresh(false))?;
        }
        Ok(stopped)
    }

    fn finish(self) -> Result<Vec<ResponseText<'a>>> {
        match self.failure {
            Some(error) => Err(error),
            None => Ok(self.texts),
        }
    }
}

impl Watch for Watcher<'_> {
    fn token(&mut self, prompt: usize, ids: &[u32]) -> bool {
        match self.read(prompt, ids) {
            Ok(stopped) => stopped,
            Err(error) => {
                self.failure.get_or_insert(error);
                true
            }
        }
    }

    fn progress(&mut self, finished: usize, tokens: u64) {
        // A bar would stand in the middle of the text.
        if self.show == Show::Progress || !std::io::stdout().is_terminal() {
            self.progress.update(finished, tokens);
        }
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t >= 0.0 && fits_f32(t) => Ok(t),
        _ => Err("expected a number of at least 0 that fits a 32-bit float".into()),
    }
}

fn top_p(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 1.0 => Ok(p),
        _ => Err("expected a number above 0 and at most 1".into()),
    }
}

fn min_p(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn penalty(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && fits_f32(x) => Ok(x),
        _ => Err("expected a number above 0 that fits a 32-bit float".into()),
    }
}

fn stop(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a text that is not empty".into()),
        text => Ok(text.replace("\\n", "\n").replace("\\t", "\t")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_sampling_stay_numbers_in_32_bits() {
        for odd in ["1e308", "1e-320", "NaN", "inf", "-1"] {
            assert!(temperature(odd).is_err(), "{odd}");
            assert!(penalty(odd).is_err(), "{odd}");
        }
        assert_eq!(temperature("0"), Ok(0.0));
        assert_eq!((temperature("0.7"), penalty("1.3")), (Ok(0.7), Ok(1.3)));
    }
}
