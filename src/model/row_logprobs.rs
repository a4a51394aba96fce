//! Log-probabilities of the tokens of rows, without gradients.

use std::sync::Arc;

use super::CausalLm;
use crate::collective;
use crate::data::own_micro_batches;
use crate::host::{indices, read};
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// Log-probabilities at `temperature` of each row's tokens from `prompt_lens[row]` (at least 1) on, row by row.
pub fn row_logprobs<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    rows: &[&[u32]],
    prompt_lens: &[usize],
    temperature: f64,
    micro_batch_tokens: usize,
    device: &B::Device,
) -> Vec<Vec<f32>> {
    let mut out = vec![Vec::new(); rows.len()];
    let lens: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let own = own_micro_batches(&lens, micro_batch_tokens);
    for part in &own {
        let packed: Vec<&[u32]> = part.iter().map(|&i| rows[i]).collect();
        let batch = TokenBatch::from_rows(&packed, device);
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (&row, range) in part.iter().zip(batch.segments.iter()) {
            let first = prompt_lens[row].max(1);
            positions.extend(range.start + first - 1..range.end - 1);
            targets.extend(&rows[row][first..]);
        }
        let at = Some(indices(&positions, device));
        let hidden = model.states_at(&batch, at, None, None);
        let (logprobs, _) = model.logprobs(hidden, &Arc::new(targets), temperature);
        let mut values = read(logprobs).into_iter();
        for &row in part {
            let count = rows[row].len() - prompt_lens[row].max(1);
            out[row] = values.by_ref().take(count).collect();
        }
    }
    collective::share(&mut out, own.concat());
    out
}
