//! Compares what two models say of a short text.

use super::args::ComputeArgs;
use super::logprobs::measure;
use super::model::UnloadedModel;
use super::rows::IdsRow;
use super::score::last_scores;
use crate::backend::{Task, dispatch};
use crate::data::Row;
use crate::error::Result;
use crate::ops::ModelBackend;
use crate::rng::Seed;

/// Text for comparing the trained model with the written files.
const PROBE: &str = "A merged model must say what the model with its adapter says: the same words, with the same odds.";

/// The largest difference between what two models say of a short text: log-probabilities, or scores of reward models.
///
/// # Errors
/// Those of loading and of the backend.
pub(super) fn largest_difference(
    trained: &UnloadedModel,
    written: &UnloadedModel,
    compute: &ComputeArgs,
) -> Result<f64> {
    let probe = probe(trained)?;
    let answers = |model: &UnloadedModel| {
        let measure = ProbeTask {
            model,
            probe: &probe,
        };
        dispatch(compute.backend, compute.device, measure)
    };
    let (expected, found) = (answers(trained)?, answers(written)?);
    let differences = expected
        .iter()
        .zip(&found)
        .map(|(a, b)| f64::from((a - b).abs()));
    Ok(differences.fold(0.0, f64::max))
}

/// Evaluates a model on a text: its score, or the log-probability of each token.
struct ProbeTask<'a> {
    model: &'a UnloadedModel,
    probe: &'a IdsRow,
}

impl Task for ProbeTask<'_> {
    type Output = Vec<f32>;

    fn run<B: ModelBackend>(self, device: B::Device, _: &'static str) -> Result<Vec<f32>> {
        if self.model.is_reward_model()? {
            let model = self.model.reward_model::<B>(&device)?;
            return Ok(last_scores(&model, &[self.probe.ids.as_slice()], &device));
        }
        let row = Row {
            columns: serde_json::Map::new(),
            path: self.model.source.dir.clone(),
            line: 0,
        };
        let model = self.model.language_model::<B>(&device)?;
        Ok(measure(&model, &[row], std::slice::from_ref(self.probe), &device)?.concat())
    }
}

/// Token ids of a short text; random ids without a tokenizer.
fn probe(model: &UnloadedModel) -> Result<IdsRow> {
    let (vocab, most) = (model.config.vocab_size(), model.max_row_tokens);
    let mut ids = match model.tokenizer() {
        Ok(tokenizer) => tokenizer.encode_document(PROBE)?,
        Err(_) => (0..24)
            .map(|i| Seed::new(0).below(i, vocab) as u32)
            .collect(),
    };
    ids.truncate(most);
    let measured = (0..ids.len()).map(|i| i > 0).collect();
    Ok(IdsRow { ids, measured })
}
