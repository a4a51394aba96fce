//! Log-probabilities of the tokens of given rows, with the most probable tokens in their places.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::TokenLogprobs;
use crate::host::read;
use crate::model::CausalLm;
use crate::ops::ModelBackend;
use crate::tokens::TokenBatch;

/// Positions whose logits are on the host at once: of a vocabulary of 150,000 they take 77 MB.
const POSITIONS: usize = 128;

/// Log-probabilities of each row's tokens but the first, which nothing predicts, with the `num_top` most probable tokens in their
/// places. One pass of the model; reads the device.
///
/// # Panics
/// If a row is empty.
pub fn prompt_logprobs<B: ModelBackend, M: CausalLm<B>>(
    model: &M,
    rows: &[&[u32]],
    num_top: usize,
    device: &B::Device,
) -> Vec<Vec<TokenLogprobs>> {
    let batch = TokenBatch::<B>::from_rows(rows, device);
    let states = model.states_at(&batch, None, None, None);
    let [tokens, _] = states.dims();
    // The token after each position; none after a row's last one.
    let targets: Vec<Option<u32>> = rows
        .iter()
        .flat_map(|row| row[1..].iter().copied().map(Some).chain([None]))
        .collect();
    let mut flat = Vec::with_capacity(tokens);
    for (part, targets) in targets.chunks(POSITIONS).enumerate() {
        let begin = part * POSITIONS;
        let states: Tensor<B, 2> = states.clone().narrow(0, begin, targets.len());
        let logits = read(model.logits(states));
        let vocab = logits.len() / targets.len();
        flat.par_extend(
            logits
                .par_chunks(vocab)
                .zip(targets)
                .map(|(logits, target)| target.map(|id| TokenLogprobs::of(logits, id, num_top))),
        );
    }
    let mut flat = flat.into_iter();
    let row = |row: &&[u32]| flat.by_ref().take(row.len()).flatten().collect();
    rows.iter().map(row).collect()
}
