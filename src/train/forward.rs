//! Forward passes over rows without gradients: log-probabilities and losses, by micro-batch.

use std::sync::Arc;

use crate::collective;
use crate::data::{Example, TokenRows, own_micro_batches};
use crate::error::Result;
use crate::host::{indices, read};
use crate::model::CausalLm;
use crate::ops::ModelBackend;
use crate::tokens::{Segments, TokenBatch, packed_len, row_groups};

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
    for part in own_micro_batches(&lens, micro_batch_tokens) {
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
    let [sum, count] = collective::sum_f64([sum, count as f64]);
    Ok((sum, count as usize))
}

/// As [`row_logprobs`], for rows of which those with the same prompt stand together: their common prefix passes once.
pub(super) fn group_logprobs<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    rows: &[&[u32]],
    prompt_lens: &[usize],
    temperature: f64,
    micro_batch_tokens: usize,
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let prompt = |row: usize| &rows[row][..prompt_lens[row]];
    let groups = row_groups(rows, micro_batch_tokens, |a, b| prompt(a) == prompt(b));
    let groups: Vec<(usize, Vec<&[u32]>)> = (groups.into_iter())
        .map(|range| (range.start, rows[range].to_vec()))
        .collect();
    let mut out = vec![Vec::new(); rows.len()];
    let lens: Vec<usize> = groups.iter().map(|(_, group)| packed_len(group)).collect();
    let mut own = Vec::new();
    for part in own_micro_batches(&lens, micro_batch_tokens) {
        let packed: Vec<Vec<&[u32]>> = part.iter().map(|&i| groups[i].1.clone()).collect();
        let (batch, spans) = TokenBatch::from_groups(&packed, device);
        // Rows of the part, in the order of their spans.
        let members: Vec<usize> = (part.iter())
            .flat_map(|&i| groups[i].0..groups[i].0 + groups[i].1.len())
            .collect();
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (&row, span) in members.iter().zip(&spans) {
            let first = prompt_lens[row].max(1);
            positions.extend((first..rows[row].len()).map(|token| span.token(token - 1)));
            targets.extend(&rows[row][first..]);
        }
        let at = Some(indices(&positions, device));
        let hidden = model.states_at(&batch, at, None, None);
        let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), temperature);
        let mut values = read(logprobs).into_iter();
        own.extend(&members);
        for row in members {
            let count = rows[row].len() - prompt_lens[row].max(1);
            out[row] = values.by_ref().take(count).collect();
        }
    }
    collective::share(&mut out, own);
    out
}
