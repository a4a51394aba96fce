//! `temper score`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::args::{ComputeArgs, ModelArgs, label};
use super::model::UnloadedModel;
use super::progress::Progress;
use super::rows::{self, BATCH_TOKENS, IdsRow, TextRows};
use super::{classify, output};
use crate::backend::{Task, dispatch};
use crate::data::Row;
use crate::error::{Error, Result};
use crate::model::{Fetch, Finder, Label, LabelOutput, ScalarModel};
use crate::ops::ModelBackend;
use crate::reward::ClassifierInput;

/// `temper score`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "A reward model (a score head on a language model):
  rows    {\"input_ids\": [1, 2, 3]} or {\"prompt\": \"..\", \"completion\": \"..\"}
  output  {\"score\": 0.7}, at the last token; EOS is appended to text

A classifier (BERT, DistilBERT, RoBERTa):
  rows    {\"text\": \"..\"} or {\"prompt\": \"..\", \"completion\": \"..\"}
  output  {\"label\": \"POSITIVE\", \"score\": 2.1, \"scores\": {\"NEGATIVE\": -1.8, \"POSITIVE\": 2.1}}; the label that --label names, or that
          of the largest score

Examples:
  temper score --model tiny --adapter runs/quickstart/rm/adapter --data rows.jsonl --output -
  temper score --model distilbert/distilbert-base-uncased-finetuned-sst-2-english --data rows.jsonl --label POSITIVE \\
      --label-score probability --output -")]
pub struct ScoreArgs {
    /// The reward model or classifier.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows, one JSON object a line
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: PathBuf,
    /// Of a classifier: the label whose score is `score`, by name or index
    #[arg(long, value_name = "LABEL", value_parser = label)]
    pub label: Option<Label>,
    /// Of a classifier: which number of a label is its score [default: logit]
    #[arg(long, value_name = "NUMBER", value_enum)]
    pub label_score: Option<LabelOutput>,
    /// Of a classifier: what it reads of rows with prompt and completion [default: prompt-and-response]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub reads: Option<ClassifierInput>,
    /// Output file, one JSON object a line; `-` is stdout
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: PathBuf,
}

/// An output line.
#[derive(Serialize)]
struct OutputRow {
    score: f32,
}

/// Writes the score at each row's last token. EOS is appended to text, as in training.
///
/// # Errors
/// Those of the rows, of loading, and of the backend.
pub(super) fn run(args: &ScoreArgs, compute: &ComputeArgs) -> Result<()> {
    output::check(&args.output)?;
    if let (Some(name), None) = (&args.model.model, &args.model.adapter)
        && let Some(source) = Finder::new(Fetch::All).classifier(name)?
    {
        return classify::run(args, compute, &source);
    }
    for (option, given) in [
        ("--label", args.label.is_some()),
        ("--label-score", args.label_score.is_some()),
        ("--reads", args.reads.is_some()),
    ] {
        if given {
            return Err(Error::Usage(format!(
                "{option} is for classifiers (BERT, DistilBERT, RoBERTa), and the model is a language model"
            )));
        }
    }
    let model = UnloadedModel::find(&args.model)?;
    let data = rows::read(&args.data)?;
    let tokenizer = rows::tokenizer_for(&data, &model)?;
    let encoded = rows::encode(&data, tokenizer.as_ref(), &model, TextRows::WithEos)?;
    let scores = dispatch(
        compute.backend,
        compute.device,
        ScoreTask {
            model: &model,
            data: &data,
            rows: &encoded,
        },
    )?;
    let outputs: Vec<OutputRow> = scores
        .into_iter()
        .map(|score| OutputRow { score })
        .collect();
    output::write_lines(&args.output, &outputs)
}

/// Scoring on a backend.
struct ScoreTask<'a> {
    model: &'a UnloadedModel,
    data: &'a [Row],
    rows: &'a [IdsRow],
}

impl Task for ScoreTask<'_> {
    type Output = Vec<f32>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Self::Output> {
        let model = self.model.reward_model::<B>(&device)?;
        let ids: Vec<&[u32]> = self.rows.iter().map(|row| row.ids.as_slice()).collect();
        let scores = last_scores(&model, &ids, &device);
        match scores.iter().position(|score| !score.is_finite()) {
            Some(row) => {
                Err(self.data[row].error(format!("the model gives a score of {}", scores[row])))
            }
            None => Ok(scores),
        }
    }
}

/// The score at each row's last token, in batches of bounded size. Reads the device.
pub(super) fn last_scores<B: ModelBackend>(
    model: &ScalarModel<B>,
    rows: &[&[u32]],
    device: &B::Device,
) -> Vec<f32> {
    let mut progress = Progress::new("scores", rows.len());
    model.row_scores(rows, BATCH_TOKENS, device, &mut |done, tokens| {
        progress.update(done, tokens);
    })
}
