//! `temper generate`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::{ComputeArgs, ModelArgs, SamplingArgs, at_most};
use super::model::UnloadedModel;
use super::output;
use super::respond::{self, MAX_NEW_TOKENS, Request, Show, TextResponse};
use super::rows;
use crate::backend::{Task, dispatch};
use crate::data::{Prompt, Row, Tokenizer};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;

/// `temper generate`.
#[derive(Debug, Clone, Args)]
#[command(
    group = ArgGroup::new("input").required(true).args(["prompt", "data"]),
    after_help = "Rows:    {\"prompt\": \"..\"}, where the prompt is text or a list of chat messages
         (or {\"input_ids\": [..]})
Output:  {\"prompt\": \"..\", \"completion\": \"..\", \"ids\": [..], \"logprobs\": [..], \"stopped\": true}; the ids end with EOS if the
         model stopped by itself

A --prompt is the user's message where the model has a chat template, and text to continue where it has none or with --raw. Prompts of
--data are taken as they are: text is continued, messages are rendered by the template.

Examples:
  temper generate --model tiny --prompt \"Once\" --temperature 0
  temper generate --run runs/smollm2 --stage sft --raw --prompt \"Summary:\" --stop \"\\n\" --num-responses 3
  temper generate --model smollm2-135m --adapter runs/smollm2/ppo/adapter --data prompts.jsonl --output out.jsonl"
)]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// One prompt
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Many prompts, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// Continue the text of --prompt as it is, without the model's chat template
    #[arg(long, conflicts_with = "data")]
    pub raw: bool,
    /// The system message before --prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "data"])]
    pub system: Option<String>,
    /// Responses to each prompt
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_most::<65_536>)]
    pub num_responses: usize,
    /// How responses are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Print responses to --prompt as JSON objects too, in place of their text
    #[arg(long)]
    pub json: bool,
    /// Output file, one JSON object a line; `-` is stdout. By default, responses to --data go to
    /// stdout, and for --prompt only the text of the completion
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: Option<PathBuf>,
}

/// An output line.
#[derive(Serialize)]
struct OutputRow<'a> {
    /// As in the row; for `input_ids`, the ids as text.
    prompt: Value,
    completion: &'a str,
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
        (None, prompt) => vec![prompt_row(
            prompt.as_deref().unwrap_or_default(),
            args,
            &model,
        )?],
    };
    let tokenizer = rows::tokenizer_for(&data, &model)?;
    let sampling = &args.sampling;
    if tokenizer.is_none() && !sampling.stop.is_empty() {
        return Err(Error::Usage(
            "--stop: the model has no tokenizer, so that its responses have no text".into(),
        ));
    }
    let max_new_tokens = sampling.max_new_tokens.unwrap_or(MAX_NEW_TOKENS);
    let prompts = rows::prompts(&data, tokenizer.as_ref(), &model, max_new_tokens)?;
    // Equal prompts that stand side by side pass through the model once.
    let prompts: Vec<Prompt> = (prompts.into_iter())
        .flat_map(|prompt| std::iter::repeat_n(prompt, args.num_responses))
        .collect();
    let defaults = (MAX_NEW_TOKENS, 1.0);
    let options = respond::options(
        sampling,
        defaults,
        &prompts,
        tokenizer.as_ref(),
        &model.config,
    );
    let as_text = args.prompt.is_some() && args.output.is_none() && !args.json;
    let request = Request {
        prompts: &prompts,
        options: &options,
        tokenizer: tokenizer.as_ref(),
        stops: &sampling.stop,
        seed: sampling.seed,
        show: match as_text && prompts.len() == 1 {
            true => Show::Text,
            false => Show::Progress,
        },
    };
    let shown = request.show == Show::Text;
    let task = GenerateTask {
        model: &model,
        request,
    };
    let responses = dispatch(compute.backend, compute.device, task)?;
    match (as_text, shown) {
        (true, true) => output::print("\n"),
        (true, false) => print_numbered(&responses),
        (false, _) => write_rows(args.output.as_deref(), &prompts, &responses),
    }
}

fn write_rows(path: Option<&Path>, prompts: &[Prompt], responses: &[TextResponse]) -> Result<()> {
    let rows = prompts.iter().zip(responses);
    let rows: Vec<OutputRow<'_>> = rows
        .map(|(prompt, TextResponse { response, text })| OutputRow {
            prompt: (prompt.row.get("prompt").cloned()).unwrap_or_else(|| json!(prompt.text)),
            completion: text,
            ids: &response.ids,
            logprobs: &response.logprobs,
            stopped: response.stopped,
        })
        .collect();
    output::write_lines(path.unwrap_or(Path::new("-")), &rows)
}

/// Several responses to one prompt, each under its number.
fn print_numbered(responses: &[TextResponse]) -> Result<()> {
    let count = responses.len();
    let numbered = responses.iter().enumerate();
    let texts: Vec<String> = numbered
        .map(|(at, response)| format!("[{} of {count}]\n{}\n", at + 1, response.text))
        .collect();
    output::print(&texts.join("\n"))
}

/// The row of `--prompt`: a user's message where the model has a chat template.
fn prompt_row(text: &str, args: &GenerateArgs, model: &UnloadedModel) -> Result<Row> {
    let tokenizer: Tokenizer = model.tokenizer()?;
    let prompt = match (tokenizer.has_chat() && !args.raw, &args.system) {
        (true, system) => {
            eprintln!("by the model's chat template; --raw continues the text as it is");
            let system = system.iter().map(|text| message("system", text));
            system.chain([message("user", text)]).collect()
        }
        (false, None) => json!(text),
        (false, Some(_)) => {
            return Err(Error::Usage(
                "--system: the model has no chat template, so that there is no place for a system message; \
                 put the text before --prompt's"
                    .into(),
            ));
        }
    };
    Ok(Row {
        columns: Map::from_iter([("prompt".to_owned(), prompt)]),
        path: PathBuf::from("--prompt"),
        line: 1,
    })
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// Generation on a backend.
struct GenerateTask<'a> {
    model: &'a UnloadedModel,
    request: Request<'a>,
}

impl Task for GenerateTask<'_> {
    type Output = Vec<TextResponse>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Self::Output> {
        let model = self.model.language_model::<B>(&device)?;
        self.request.run(&model, &device)
    }
}
