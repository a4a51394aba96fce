//! Forward passes over rows without gradients: log-probabilities and losses, by micro-batch.

use std::sync::Arc;

use crate::data::{Example, TokenRows, micro_batches};
use crate::error::Result;
use crate::host::{indices, read};
use crate::model::CausalLm;
use crate::ops::ModelBackend;
use crate::tokens::{Segments, TokenBatch};

pub use crate::model::row_logprobs;

/// Positions of the states that predict trained tokens, and these tokens: the state at `i - 1` predicts token `i`.
pub(super) fn trained_positions(
    examples: &[&Example],
    segments: &Segments,
) -> (Vec<usize>, Vec<u32>) {
    let (mut positions, mut targets) = (Vec::new(), Vec::new());
    for (example, range) in examples.iter().zip(segments.iter()) {
        for (i, _) in example
            .trained
            .iter()
            .enumerate()
            .filter(|(_, trained)| **trained)
        {
            positions.push(range.start + i - 1);
            targets.push(example.ids[i]);
        }
    }
    (positions, targets)
}

/// Negative log-likelihood in nats, summed over the trained tokens of all examples, and the number of these tokens.
///
/// # Errors
/// If examples cannot be read.
pub fn example_loss<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    examples: &TokenRows<Example>,
    micro_batch_tokens: usize,
    device: &B::Device,
) -> Result<(f64, usize)> {
    let lens = examples.lens()?;
    let (mut sum, mut count) = (0.0, 0);
    for part in micro_batches(&lens, micro_batch_tokens) {
        let part = examples.get(part)?;
        let part: Vec<&Example> = part.iter().map(AsRef::as_ref).collect();
        let rows: Vec<&[u32]> = part.iter().map(|e| e.ids.as_slice()).collect();
        let batch = TokenBatch::from_rows(&rows, device);
        let (positions, targets) = trained_positions(&part, &batch.segments);
        let at = Some(indices(&positions, device));
        let hidden = model.states_at(&batch, at, None, None);
        let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), 1.0);
        sum -= read(logprobs).iter().map(|&x| f64::from(x)).sum::<f64>();
        count += positions.len();
    }
    Ok((sum, count))
}
