//! `temper score` with a classifier: scores of all labels.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::args::{ComputeArgs, ScoreArgs};
use super::model::warn;
use super::output;
use super::progress::Progress;
use super::rows::{self, BATCH_TOKENS};
use crate::backend::{Task, dispatch};
use crate::data::{EncodedText, EncoderTokenizer, Row};
use crate::error::{Error, Result, count};
use crate::model::{ClassifierSource, LabelOutput};
use crate::ops::{ModelBackend, Numerics};
use crate::reward::{ClassifierInput, Completion};

/// An output line.
#[derive(Serialize)]
struct OutputRow<'a> {
    /// The label that `--label` names, or that of the largest score.
    label: &'a str,
    /// Its score.
    score: f32,
    /// The scores of all labels.
    scores: BTreeMap<&'a str, f32>,
}

/// Writes the scores of all labels for each row.
///
/// # Errors
/// Those of the rows, of loading, and of the backend; `Error::Usage` for a label that the classifier does not have.
pub(super) fn run(
    args: &ScoreArgs,
    compute: &ComputeArgs,
    source: &ClassifierSource,
) -> Result<()> {
    let labels = source.config.labels();
    let usage = |option: &str, message| Error::Usage(format!("{option}: {message}"));
    let output = args.label_score.unwrap_or_default();
    let named = args.label.as_ref().map(|label| labels.index(Some(label)));
    let named = named.transpose().map_err(|m| usage("--label", m))?;
    labels
        .check_output(output)
        .map_err(|m| usage("--label-score", m))?;
    let data = rows::read(&args.data)?;
    let tokenizer = source.tokenizer()?;
    let reads = args.reads.unwrap_or_default();
    let texts: Vec<EncodedText> = (data.par_iter())
        .map(|row| encode(row, reads, &tokenizer))
        .collect::<Result<_>>()?;
    let cut = texts.iter().filter(|text| text.is_cut).count();
    if cut > 0 {
        warn(&[format!(
            "{} of {} had more than {} tokens, and were cut",
            count(cut, "text"),
            texts.len(),
            tokenizer.max_length()
        )]);
    }
    let numerics = Numerics {
        storage: args.model.base_precision.unwrap_or_default(),
        matmul: args.model.matmul_precision,
    };
    let task = ClassifyTask {
        source,
        numerics,
        texts: &texts,
    };
    let logits = dispatch(compute.backend, compute.device, task)?;
    if let Some(row) = logits
        .iter()
        .position(|row| !row.iter().all(|x| x.is_finite()))
    {
        return Err(data[row].error(format!("the model gives logits of {:?}", logits[row])));
    }
    let outputs: Vec<OutputRow<'_>> = logits
        .iter()
        .map(|logits| output_row(source, logits, named, output))
        .collect();
    output::write_lines(&args.output, &outputs)
}

fn output_row<'a>(
    source: &'a ClassifierSource,
    logits: &[f32],
    named: Option<usize>,
    output: LabelOutput,
) -> OutputRow<'a> {
    let labels = source.config.labels();
    let scores: Vec<f32> = (0..logits.len())
        .map(|index| labels.score(logits, index, output))
        .collect();
    let largest = (0..scores.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let chosen = named.or(largest).unwrap_or_default();
    let names = labels.names().iter().map(String::as_str);
    OutputRow {
        label: &labels.names()[chosen],
        score: scores[chosen],
        scores: names.zip(scores.iter().copied()).collect(),
    }
}

/// A row with `text`, or with `prompt` and `completion`, as the classifier reads it.
fn encode(row: &Row, reads: ClassifierInput, tokenizer: &EncoderTokenizer) -> Result<EncodedText> {
    let text = |key: &str| row.columns.get(key).and_then(Value::as_str);
    if let (Some(text), ClassifierInput::PromptAndResponse) = (text("text"), reads) {
        return tokenizer.encode(text, None);
    }
    match (text("prompt"), text("completion")) {
        (prompt, Some(response)) if prompt.is_some() || reads == ClassifierInput::Response => {
            let completion = Completion {
                prompt: prompt.unwrap_or_default().to_owned(),
                response: response.to_owned(),
                ..Completion::default()
            };
            reads.encode(tokenizer, &completion)
        }
        _ => Err(row.error(match reads {
            ClassifierInput::PromptAndResponse => {
                "expected {\"text\": \"..\"} or {\"prompt\": \"..\", \"completion\": \"..\"}"
            }
            ClassifierInput::Response => "expected {\"completion\": \"..\"}",
            ClassifierInput::Pair => "expected {\"prompt\": \"..\", \"completion\": \"..\"}",
        })),
    }
}

/// Classification on a backend.
struct ClassifyTask<'a> {
    source: &'a ClassifierSource,
    numerics: Numerics,
    texts: &'a [EncodedText],
}

impl Task for ClassifyTask<'_> {
    type Output = Vec<Vec<f32>>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Self::Output> {
        let model = self.source.load::<B>(self.numerics, &device)?;
        let mut progress = Progress::new("scores", self.texts.len());
        let mut on_progress = |done, tokens| progress.update(done, tokens);
        Ok(model.logits(self.texts, BATCH_TOKENS, &device, &mut on_progress))
    }
}
