//! `temper score`.

use serde::Serialize;

use super::args::{ComputeArgs, ScoreArgs};
use super::model::UnloadedModel;
use super::output;
use super::progress::Progress;
use super::rows::{self, BATCH_TOKENS, IdsRow, TextRows};
use crate::backend::{Task, dispatch};
use crate::data::Row;
use crate::error::Result;
use crate::model::ScalarModel;
use crate::ops::ModelBackend;

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
