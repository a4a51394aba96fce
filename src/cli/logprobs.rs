//! `temper logprobs`.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use serde::Serialize;

use super::args::{ComputeArgs, LogprobsArgs};
use super::model::UnloadedModel;
use super::output;
use super::progress::Progress;
use super::rows::{self, BATCH_TOKENS, IdsRow, TextRows};
use crate::backend::{Task, dispatch};
use crate::data::{Row, micro_batches};
use crate::error::Result;
use crate::host::read;
use crate::model::CausalLm;
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// An output line.
#[derive(Serialize)]
struct OutputRow<'a> {
    input_ids: &'a [u32],
    logprobs: &'a [f32],
    sum: f64,
}

/// Writes the log-probabilities of each row, in nats. No EOS is appended to text.
///
/// # Errors
/// Those of the rows, of loading, and of the backend.
pub(super) fn run(args: &LogprobsArgs, compute: &ComputeArgs) -> Result<()> {
    output::check(&args.output)?;
    let model = UnloadedModel::find(&args.model)?;
    let data = rows::read(&args.data)?;
    let tokenizer = rows::tokenizer_for(&data, &model)?;
    let encoded = rows::encode(&data, tokenizer.as_ref(), &model, TextRows::Plain)?;
    let logprobs = dispatch(
        compute.backend,
        compute.device,
        LogprobsTask {
            model: &model,
            data: &data,
            rows: &encoded,
        },
    )?;
    let outputs: Vec<OutputRow<'_>> = encoded
        .iter()
        .zip(&logprobs)
        .map(|(row, logprobs)| OutputRow {
            input_ids: &row.ids,
            logprobs,
            sum: logprobs.iter().map(|&x| f64::from(x)).sum(),
        })
        .collect();
    output::write_lines(&args.output, &outputs)
}

/// The measurement on a backend.
struct LogprobsTask<'a> {
    model: &'a UnloadedModel,
    data: &'a [Row],
    rows: &'a [IdsRow],
}

impl Task for LogprobsTask<'_> {
    type Output = Vec<Vec<f32>>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Self::Output> {
        let model = self.model.language_model::<B>(&device)?;
        measure(&model, self.data, self.rows, &device)
    }
}

/// Log-probability of each measured token, by row, in batches of bounded size. Reads the device.
///
/// # Errors
/// `Error::Data` for a log-probability that is not finite.
pub(super) fn measure<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    data: &[Row],
    rows: &[IdsRow],
    device: &B::Device,
) -> Result<Vec<Vec<f32>>> {
    let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let mut outputs = vec![Vec::new(); rows.len()];
    let mut progress = Progress::new("logprobs", rows.len());
    let (mut done, mut tokens) = (0, 0);
    for part in micro_batches(&lens, BATCH_TOKENS) {
        let batch: Vec<&IdsRow> = part.iter().map(|&index| &rows[index]).collect();
        for (&index, logprobs) in part.iter().zip(row_logprobs(model, &batch, device)) {
            if let Some(bad) = logprobs.iter().find(|x| !x.is_finite()) {
                return Err(
                    data[index].error(format!("the model gives a log-probability of {bad}"))
                );
            }
            outputs[index] = logprobs;
        }
        done += part.len();
        tokens += part.iter().map(|&index| lens[index] as u64).sum::<u64>();
        progress.update(done, tokens);
    }
    Ok(outputs)
}

/// Log-probabilities of the measured tokens of one packed batch, by row.
fn row_logprobs<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    rows: &[&IdsRow],
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let ids: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
    let batch = TokenBatch::<B>::from_rows(&ids, device);
    let (mut positions, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for (range, row) in batch.segments.iter().zip(rows) {
        let before = targets.len();
        for i in (1..row.ids.len()).filter(|&i| row.measured[i]) {
            positions.push((range.start + i - 1) as i32); // the state before a token predicts it
            targets.push(row.ids[i]);
        }
        counts.push(targets.len() - before);
    }
    if targets.is_empty() {
        return vec![Vec::new(); rows.len()];
    }
    let num_targets = targets.len();
    let positions =
        Tensor::<B, 1, Int>::from_data(TensorData::new(positions, [num_targets]), device);
    let hidden = model.states_at(&batch, Some(positions), None, None);
    let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
    let mut flat = read(logprobs).into_iter();
    counts
        .into_iter()
        .map(|count| flat.by_ref().take(count).collect())
        .collect()
}
