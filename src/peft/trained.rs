//! What `peft` of a recipe trains of a model.

use std::collections::BTreeSet;

use burn::tensor::backend::Backend;

use super::only::{self, TensorName};
use super::{Adaptable, AdapterSpec, Peft};
use crate::error::{Problem, Result};
use crate::params::{ParamKind, ParamMeta, Parameters};

impl Peft {
    /// Whether weights of the model itself are trained: a result is then a whole model.
    pub fn trains_base(&self) -> bool {
        self.adapter().is_none()
    }

    /// Refuses to train this on a model with adapters, those of `present`, that are neither trained on nor can be merged.
    ///
    /// # Errors
    /// `Error::Usage`.
    pub fn check_start(&self, present: &AdapterSpec) -> Result<()> {
        let continued = (self.adapter()).is_some_and(|wanted| {
            // Whether adapters on layers are of the same shape is seen with the weights.
            let same_method = wanted.on_layers() && wanted.peft_type() == present.peft_type();
            same_method || wanted.continues_tokens(present)
        });
        match continued {
            true => Ok(()),
            false => present.check_mergeable(),
        }
    }

    /// Settings that cannot be, as far as they show without a model; `place` is the key.
    pub fn problems(&self) -> Vec<Problem> {
        match (self, self.adapter()) {
            (Self::Only(entries), _) if entries.iter().all(String::is_empty) => {
                let problem = Problem::new("", "names no parameter, so nothing would be trained");
                vec![problem.with_help("e.g. `Only([\"layers.-1\", \"norm\", \"lm_head\"])`")]
            }
            (_, Some(adapter)) => adapter.problems(),
            (_, None) => Vec::new(),
        }
    }

    /// Virtual tokens that it puts before every row.
    pub fn num_virtual_tokens(&self) -> usize {
        (self.adapter()).map_or(0, |spec| spec.num_virtual_tokens())
    }

    /// Probability with which training drops inputs of adapters.
    pub fn dropout(&self) -> f64 {
        self.adapter().map_or(0.0, |spec| spec.dropout())
    }

    /// Names of the model's own tensors that are trained; none where adapters are.
    ///
    /// # Errors
    /// As [`only::resolve`].
    pub fn trained(&self, tensors: &[TensorName<'_>]) -> Result<BTreeSet<String>> {
        let own = tensors.iter().filter(|tensor| tensor.tied_to.is_none());
        match self {
            Self::Only(entries) => only::resolve(entries, tensors),
            _ if self.trains_base() => Ok(own.map(|tensor| tensor.name.to_owned()).collect()),
            _ => Ok(BTreeSet::new()),
        }
    }

    /// Trains what this says, and a score head in any case; freezes the rest.
    pub fn mark_trained<B: Backend, M: Parameters<B> + Adaptable<B>>(&self, model: &mut M) {
        let Self::Only(entries) = self else {
            let whole = self.trains_base();
            let part = |kind| matches!(kind, ParamKind::Adapter | ParamKind::Score);
            model.for_each_projection(&mut |projection| projection.train_only_columns(&|_| true));
            model.train_only(&|kind| whole || part(kind));
            return self.mark_beside(model);
        };
        let mut names = Vec::new();
        model.for_each_parameter(&mut |meta, _| {
            names.extend(meta.pieces.iter().map(|(name, _)| name.clone()));
        });
        let chosen = only::chosen(entries, names.iter().map(String::as_str));
        model.for_each_parameter(&mut |meta, mut slot| {
            let named = meta.pieces.iter().any(|(name, _)| chosen.contains(name));
            slot.set_trained(named || meta.kind == ParamKind::Score);
        });
        model.for_each_projection(&mut |projection| {
            projection.train_only_columns(&|name| chosen.contains(name));
        });
    }

    /// Trains the tensors of the base that are trained beside adapters; those that are reduced are in f32 from here on.
    fn mark_beside<B: Backend, M: Parameters<B> + Adaptable<B>>(&self, model: &mut M) {
        let Some(adapter) = self.adapter().filter(|spec| !spec.beside().is_empty()) else {
            return;
        };
        let mut adapted = BTreeSet::new();
        model.for_each_projection(&mut |projection| {
            projection.own_tensors();
            let layers = projection.layers().iter().zip(&projection.adapters);
            let with_adapter = layers.filter(|(_, adapter)| adapter.is_some());
            adapted.extend(with_adapter.map(|(layer, _)| layer.path.clone()));
        });
        let chosen = |name: &str| (adapter.beside()).trains(name, |path| adapted.contains(path));
        let is_chosen = |meta: &ParamMeta| meta.pieces.iter().any(|(name, _)| chosen(name));
        model.for_each_parameter(&mut |meta, mut slot| {
            if is_chosen(meta) {
                slot.keep_in_f32();
            }
        });
        model.for_each_parameter(&mut |meta, mut slot| {
            if is_chosen(meta) {
                slot.set_trained(true);
            }
        });
        model.for_each_projection(&mut |projection| projection.train_only_columns(&chosen));
    }
}
