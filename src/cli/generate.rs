//! `temper generate`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{ComputeArgs, GenerateArgs, SamplingArgs};
use super::model::UnloadedModel;
use super::output;
use super::progress::Progress;
use super::rows;
use crate::backend::{Task, dispatch};
use crate::data::{Prompt, Row, Tokenizer};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Response, SamplingConfig, generate};
use crate::model::{LanguageModel, ModelConfig};
use crate::ops::ModelBackend;
use crate::rng::Seed;

/// Most rows decoded at once.
const MAX_ROWS: usize = 64;
/// Most tokens in the KV cache, unless one row needs more.
const CACHE_TOKENS: usize = 16 * 1024;

/// An output line.
#[derive(Serialize)]
struct OutputRow<'a> {
    /// As in the row; for `input_ids`, the ids as text.
    prompt: Value,
    completion: String,
    ids: &'a [u32],
    logprobs: &'a [f32],
    stopped: bool,
}

/// Writes the model's responses.
///
/// # Errors
/// Those of the rows, of loading, and of the backend.
pub(super) fn run(args: &GenerateArgs, compute: &ComputeArgs) -> Result<()> {
    if let Some(path) = &args.output {
        output::check(path)?;
    }
    let model = UnloadedModel::find(&args.model)?;
    let data = match (&args.data, &args.prompt) {
        (Some(path), _) => rows::read(path)?,
        (None, prompt) => vec![prompt_row(prompt.as_deref().unwrap_or_default())],
    };
    let tokenizer = rows::tokenizer_for(&data, &model)?;
    let sampling = &args.sampling;
    let prompts = rows::prompts(&data, tokenizer.as_ref(), &model, sampling.max_new_tokens)?;
    let options = options(sampling, 1.0, &prompts, tokenizer.as_ref(), &model.config);
    let task = GenerateTask {
        model: &model,
        prompts: &prompts,
        options: &options,
        seed: sampling.seed,
    };
    let responses = dispatch(compute.backend, compute.device, task)?;
    let mut outputs = Vec::with_capacity(prompts.len());
    for (prompt, response) in prompts.iter().zip(&responses) {
        outputs.push(OutputRow {
            prompt: prompt
                .row
                .get("prompt")
                .cloned()
                .unwrap_or_else(|| json!(prompt.text)),
            completion: response_text(tokenizer.as_ref(), response)?,
            ids: &response.ids,
            logprobs: &response.logprobs,
            stopped: response.stopped,
        });
    }
    match (&args.output, outputs.as_slice()) {
        (Some(path), outputs) => output::write_lines(path, outputs),
        (None, [output_row]) if args.prompt.is_some() => {
            output::print(&format!("{}\n", output_row.completion))
        }
        (None, outputs) => output::write_lines(Path::new("-"), outputs),
    }
}

fn prompt_row(text: &str) -> Row {
    let columns = Map::from_iter([("prompt".to_owned(), json!(text))]);
    Row {
        columns,
        path: PathBuf::from("--prompt"),
        line: 1,
    }
}

/// Options for these prompts, with the stop tokens of the tokenizer or, without one, of the model's configuration.
pub(super) fn options(
    sampling: &SamplingArgs,
    default_temperature: f64,
    prompts: &[Prompt],
    tokenizer: Option<&Tokenizer>,
    config: &ModelConfig,
) -> GenerateOptions {
    let longest = prompts
        .iter()
        .map(|prompt| prompt.ids.len())
        .max()
        .unwrap_or(0)
        + sampling.max_new_tokens;
    GenerateOptions {
        max_new_tokens: sampling.max_new_tokens,
        sampling: SamplingConfig {
            temperature: sampling.temperature.unwrap_or(default_temperature),
            top_k: sampling.top_k,
            top_p: sampling.top_p,
        },
        stop_ids: tokenizer.map_or_else(
            || config.eos_ids(),
            |tokenizer| tokenizer.stop_ids().to_vec(),
        ),
        truncate: None,
        batch_size: (CACHE_TOKENS / longest.max(1)).clamp(1, MAX_ROWS),
    }
}

/// A response as text, without special tokens; empty without a tokenizer.
///
/// # Errors
/// If the tokenizer fails.
pub(super) fn response_text(tokenizer: Option<&Tokenizer>, response: &Response) -> Result<String> {
    tokenizer.map_or(Ok(String::new()), |tokenizer| {
        tokenizer.decode(&response.ids, true)
    })
}

/// Generates responses to prompts, with progress.
///
/// # Errors
/// `Error::Backend` for log-probabilities that are not finite.
pub(super) fn generate_responses<B: ModelBackend>(
    model: &LanguageModel<B>,
    prompts: &[Prompt],
    options: &GenerateOptions,
    seed: u64,
    device: &B::Device,
) -> Result<Vec<Response>> {
    let ids: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.ids.as_slice()).collect();
    let mut progress = Progress::new("responses", prompts.len());
    let mut show = |done, tokens| progress.update(done, tokens);
    let responses = generate(
        model,
        &ids,
        options,
        Seed::new(seed).fork("generate"),
        device,
        &mut show,
    );
    let broken = |response: &Response| response.logprobs.iter().any(|x| !x.is_finite());
    match responses.iter().position(broken) {
        Some(at) => Err(Error::Backend(format!(
            "prompt {}: the model gives log-probabilities that are not finite",
            at + 1
        ))),
        None => Ok(responses),
    }
}

/// Generation on a backend.
struct GenerateTask<'a> {
    model: &'a UnloadedModel,
    prompts: &'a [Prompt],
    options: &'a GenerateOptions,
    seed: u64,
}

impl Task for GenerateTask<'_> {
    type Output = Vec<Response>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Self::Output> {
        let model = self.model.language_model::<B>(&device)?;
        generate_responses(&model, self.prompts, self.options, self.seed, &device)
    }
}
