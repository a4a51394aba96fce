//! Reward and value models: a backbone with one number per token.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::{CausalLm, LanguageModel};
use crate::data::micro_batches;
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, Projection};
use crate::rng::Seed;
use crate::tokens::TokenBatch;

/// A backbone with a scalar head, transformers' `*ForSequenceClassification` with one label.
#[derive(Module, Debug)]
pub struct ScalarModel<B: Backend> {
    /// The decoder.
    pub backbone: LanguageModel<B>,
    /// `[hidden]`; stored as `score.weight`, `[1, hidden]`.
    pub score: Param<Tensor<B, 1>>,
    /// Subtracted from every score, so that the mean over reference responses is zero.
    pub offset: f64,
}

impl<B: ModelBackend> ScalarModel<B> {
    /// One number for each of the chosen `positions` of the packed batch; all of them if `None`. `[positions]`.
    pub fn scores(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, burn::tensor::Int>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 1> {
        let hidden = self.backbone.hidden_states(batch, None, dropout);
        let hidden = match positions {
            Some(positions) => hidden.select(0, positions),
            None => hidden,
        };
        // A product and a sum, not a linear layer with one output: burn 0.21 has a kernel bug there on GPUs.
        (hidden * self.score.val().unsqueeze::<2>())
            .sum_dim(1)
            .squeeze_dim::<1>(1)
            .sub_scalar(self.offset)
    }
}

impl<B: ModelBackend> ScalarModel<B> {
    /// The score of each row's last token, with at most `micro_batch_tokens` tokens in one pass. Reads the device.
    /// `on_progress` is told the rows and tokens done so far.
    pub fn row_scores(
        &self,
        rows: &[&[u32]],
        micro_batch_tokens: usize,
        device: &B::Device,
        on_progress: &mut dyn FnMut(usize, u64),
    ) -> Vec<f32> {
        let mut out = vec![0.0; rows.len()];
        let lens: Vec<usize> = rows.iter().map(|row| row.len()).collect();
        let (mut done, mut tokens) = (0, 0);
        for part in micro_batches(&lens, micro_batch_tokens) {
            let packed: Vec<&[u32]> = part.iter().map(|&i| rows[i]).collect();
            let batch = TokenBatch::from_rows(&packed, device);
            let last: Vec<i32> = batch
                .segments
                .last_tokens()
                .iter()
                .map(|&i| i as i32)
                .collect();
            let last = Tensor::from_data(TensorData::new(last, [part.len()]), device);
            let scores = self
                .scores(&batch, Some(last), None)
                .into_data()
                .convert::<f32>();
            let scores: Vec<f32> = scores.into_vec().expect("converted to f32");
            for (&row, score) in part.iter().zip(scores) {
                out[row] = score;
            }
            done += part.len();
            tokens += batch.segments.num_tokens() as u64;
            on_progress(done, tokens);
        }
        out
    }
}

impl<B: Backend> Adaptable<B> for ScalarModel<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        self.backbone.for_each_projection(visit);
    }
}

impl<B: Backend> Parameters<B> for ScalarModel<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        self.backbone.for_each_parameter(visit);
        let hidden = self.score.val().dims()[0];
        let meta = ParamMeta::single(ParamKind::Score, "score.weight", hidden, false);
        visit(&meta, ParamSlot::Vector(&mut self.score));
    }
}
