//! Reward and value models: a backbone with a scalar head.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{CausalLm, LanguageModel};
use crate::collective;
use crate::data::own_micro_batches;
use crate::host::{indices, read};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot, Parameters};
use crate::peft::{Adaptable, LayerKind, Projection, TableAdapter, TrainedRows, VirtualTokens};
use crate::rng::Seed;
use crate::tokens::{TokenBatch, packed_len};

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
    /// Scores at the chosen `positions` of the packed batch, all if `None`: `[positions]`.
    pub fn scores(
        &self,
        batch: &TokenBatch<B>,
        positions: Option<Tensor<B, 1, burn::tensor::Int>>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 1> {
        self.scores_of(self.backbone.states_at(batch, positions, None, dropout))
    }

    /// Scores of final states of the backbone: `[positions]`.
    pub fn scores_of(&self, states: Tensor<B, 2>) -> Tensor<B, 1> {
        scalar_head(states, self.score.val()).sub_scalar(self.offset)
    }
}

/// The scalar head: `[tokens, hidden]` and `[hidden]` to `[tokens]`.
pub(crate) fn scalar_head<B: Backend>(states: Tensor<B, 2>, score: Tensor<B, 1>) -> Tensor<B, 1> {
    // A product and a sum instead of a linear layer with one output, for which burn 0.21 has a kernel bug on GPUs.
    (states * score.unsqueeze::<2>())
        .sum_dim(1)
        .squeeze_dim::<1>(1)
}

impl<B: ModelBackend> ScalarModel<B> {
    /// Multiplies every score by `gain`, in the weights of the head. Reads the device.
    pub fn scale(&mut self, gain: f64, device: &B::Device) {
        self.set_score(read(self.score.val().mul_scalar(gain)), device);
        self.offset *= gain;
    }

    /// The score of each row's last token, with at most `micro_batch_tokens` tokens in one pass. Reads the device.
    /// `on_progress` receives the rows and tokens done so far.
    pub fn row_scores(
        &self,
        rows: &[&[u32]],
        micro_batch_tokens: usize,
        device: &B::Device,
        on_progress: &mut dyn FnMut(usize, u64),
    ) -> Vec<f32> {
        let groups: Vec<Vec<&[u32]>> = rows.iter().map(|&row| vec![row]).collect();
        self.group_scores(&groups, micro_batch_tokens, device, on_progress)
            .concat()
    }

    /// As [`ScalarModel::row_scores`], for groups of rows with a common prefix, such as responses to one prompt: the prefix passes
    /// through the model once.
    pub fn group_scores(
        &self,
        groups: &[Vec<&[u32]>],
        micro_batch_tokens: usize,
        device: &B::Device,
        on_progress: &mut dyn FnMut(usize, u64),
    ) -> Vec<Vec<f32>> {
        let mut out: Vec<Vec<f32>> = vec![Vec::new(); groups.len()];
        let lens: Vec<usize> = groups.iter().map(|group| packed_len(group)).collect();
        let (mut done, mut tokens) = (0, 0);
        let own = own_micro_batches(&lens, micro_batch_tokens);
        for part in &own {
            let packed: Vec<Vec<&[u32]>> = part.iter().map(|&i| groups[i].clone()).collect();
            let (batch, spans) = TokenBatch::from_groups(&packed, device);
            let last: Vec<usize> = (spans.iter())
                .map(|span| span.token(span.len() - 1))
                .collect();
            let last = indices(&last, device);
            let mut scores = read(self.scores(&batch, Some(last), None)).into_iter();
            for &group in part {
                out[group] = scores.by_ref().take(groups[group].len()).collect();
            }
            done += spans.len();
            tokens += batch.segments.num_tokens() as u64;
            on_progress(done, tokens);
        }
        collective::share(&mut out, own.concat());
        out
    }
}

impl<B: Backend> Adaptable<B> for ScalarModel<B> {
    fn for_each_projection(&mut self, visit: &mut dyn FnMut(&mut Projection<B>)) {
        self.backbone.for_each_projection(visit);
    }

    fn for_each_table(&mut self, visit: &mut dyn FnMut(LayerKind, &mut Option<TableAdapter<B>>)) {
        // Its output is the score's.
        self.backbone.for_each_table(&mut |kind, adapter| {
            if kind != LayerKind::Head {
                visit(kind, adapter);
            }
        });
    }

    fn for_each_token_rows(
        &mut self,
        visit: &mut dyn FnMut(LayerKind, &mut Option<TrainedRows<B>>),
    ) {
        self.backbone.for_each_token_rows(&mut |kind, rows| {
            if kind != LayerKind::Head {
                visit(kind, rows);
            }
        });
    }

    fn table_rows(
        &mut self,
        kind: LayerKind,
        ids: &[u32],
        device: &B::Device,
    ) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        match kind {
            LayerKind::Head => None,
            kind => self.backbone.table_rows(kind, ids, device),
        }
    }

    fn merge_tables(&mut self)
    where
        B: ModelBackend,
    {
        self.backbone.merge_tables();
        self.backbone.parts().remove_head();
    }

    fn virtual_tokens(&mut self) -> &mut Option<VirtualTokens<B>> {
        self.backbone.virtual_tokens()
    }

    fn embeddings(&self, ids: &[u32], device: &B::Device) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        self.backbone.embeddings(ids, device)
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
