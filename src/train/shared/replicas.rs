//! The ranks' weights are the same: every rank does every optimiser step. A rank whose memory, processor or library computes otherwise
//! would make all results useless without a sign.

use crate::collective;
use crate::error::{Error, Result};
use crate::snapshot::Snapshot;

/// Steps between two comparisons; one is made before every checkpoint too.
const EVERY: usize = 20;

/// Compares checksums of the trained weights of all ranks after `step` of a stage, if that is due: every [`EVERY`] steps, and where the
/// weights are to be `saved`.
///
/// # Errors
/// `Error::Stage` with the ranks that differ from rank 0. The last checkpoint is of before that.
pub(crate) fn compare_weights<'a>(
    stage: &str,
    step: usize,
    saved: bool,
    weights: impl FnOnce() -> Snapshot<'a>,
) -> Result<()> {
    let ranks = collective::ranks();
    if ranks.is_alone() || !(saved || step.is_multiple_of(EVERY)) {
        return Ok(());
    }
    let mut hash = crc32fast::Hasher::new();
    for tensor in weights().tensors() {
        hash.update(tensor.name.as_bytes());
        hash.update(bytemuck::cast_slice(&tensor.read()));
    }
    let sums = ranks.gather(&hash.finalize().to_le_bytes());
    let others: Vec<String> = (1..sums.len())
        .filter(|&rank| sums[rank] != sums[0])
        .map(|rank| ranks.name(rank))
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Error::Stage {
        stage: stage.to_owned(),
        message: format!(
            "after step {step} the trained weights of {} differ from those of {}: a fault of a machine, or machines of different kinds. \
             The last checkpoint is of before that; --resume continues from it",
            others.join(", "),
            ranks.name(0)
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Threads;

    #[test]
    fn a_rank_with_other_weights_is_named() {
        let found = Threads::run(3, |rank| {
            let weights = |value: f32| {
                let mut weights = Snapshot::default();
                weights.insert("a", vec![2], move || vec![1.0, value].into());
                weights
            };
            let same = compare_weights("sft", 20, false, || weights(2.0));
            // Not due, and not compared.
            let later = compare_weights("sft", 21, false, || weights(rank as f32));
            let other = compare_weights("sft", 21, true, || {
                weights(if rank == 2 { 2.0000002 } else { 2.0 })
            });
            (
                same.is_ok() && later.is_ok(),
                other.unwrap_err().to_string(),
            )
        });
        for (equal, message) in found {
            assert!(equal);
            let want = "after step 21 the trained weights of rank 2 of 3 on thread 2 differ";
            assert!(message.contains(want), "{message}");
        }
    }
}
