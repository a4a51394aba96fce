//! What an optimiser keeps of what a stage trains, and whether its groups have something to hold for.

use super::{PlannedModel, Planner};
use crate::error::Result;
use crate::model::{ModelConfig, trained_biases, trained_tensors};
use crate::optim::{OptimConfig, ParamForm};
use crate::params::ParamKind;
use crate::peft::{PROMPT_EMBEDDINGS, tensor_key};
use crate::train::config::Peft;

/// The tensors that `peft` trains, by the names that groups match; `scores`: the head is a score head.
///
/// # Errors
/// `Error::Usage` if `peft` names layers that the model does not have.
fn trained_forms(
    config: &ModelConfig,
    peft: &Peft,
    scores: bool,
) -> Result<Vec<(String, ParamForm)>> {
    let mut forms = Vec::new();
    let Some(adapter) = peft.adapter() else {
        let tensors = match scores {
            true => config.classifier_tensors(),
            false => config.tensors(),
        };
        for tensor in trained_tensors(peft, &tensors)? {
            let form = ParamForm::of_file(tensor.kind, &tensor.shape);
            forms.push((tensor.name.clone(), form));
        }
        return Ok(forms);
    };
    let linear = config.linear_modules();
    if !adapter.on_layers() {
        // Their tensors are few and small: counted as one.
        let entries = adapter.num_prompt_params(&config.decoder_shape());
        let form = ParamForm::of_file(ParamKind::Adapter, &[1, entries]);
        forms.push((PROMPT_EMBEDDINGS.to_owned(), form));
    }
    let mut adapted = Vec::new();
    for index in adapter.targets(&linear)? {
        let layer = &linear[index];
        adapted.push(layer.name.clone());
        for (name, shape) in adapter.tensors(layer) {
            let form = ParamForm::of_file(ParamKind::Adapter, &shape);
            forms.push((tensor_key(&layer.name, name), form));
        }
    }
    for bias in trained_biases(&adapter, config, &adapted)? {
        let form = ParamForm::of_file(bias.kind, &bias.shape);
        forms.push((bias.name, form));
    }
    if scores {
        let form = ParamForm::of_file(ParamKind::Score, &[1, config.output_size()]);
        forms.push(("score.weight".to_owned(), form));
    }
    Ok(forms)
}

/// Bytes of the state that an optimiser keeps of what `peft` trains; `scores`: the head is a score head.
///
/// # Errors
/// As [`trained_forms`].
pub(super) fn state_bytes(
    config: &ModelConfig,
    optim: &OptimConfig,
    peft: &Peft,
    scores: bool,
) -> Result<u64> {
    let forms = trained_forms(config, peft, scores)?;
    let bytes = forms
        .iter()
        .map(|(_, form)| optim.algorithm.state_bytes(form));
    Ok(bytes.sum())
}

impl Planner<'_> {
    /// Bytes of the state that an optimiser keeps of what `peft` trains.
    pub(in crate::train) fn optimizer_bytes(
        &self,
        optim: &OptimConfig,
        peft: &Peft,
        scores: bool,
    ) -> u64 {
        let PlannedModel { config, .. } = self.model;
        // What cannot be resolved is a problem of the stage's shape.
        state_bytes(config, optim, peft, scores).unwrap_or(0)
    }

    /// Notes every group of the optimiser at `key` that matches nothing of what `peft` trains.
    pub(in crate::train) fn check_groups(
        &mut self,
        key: &str,
        optim: &OptimConfig,
        peft: &Peft,
        scores: bool,
    ) {
        if optim.groups.is_empty() {
            return;
        }
        if peft.adapter().is_some_and(|adapter| !adapter.on_layers()) {
            let message = "virtual tokens are trained at one learning rate; leave `groups` out";
            return self.problem(&format!("{key}.groups"), message);
        }
        let Ok(forms) = trained_forms(self.model.config, peft, scores) else {
            return;
        };
        let names = || forms.iter().map(|(name, _)| name.as_str());
        for (index, group) in optim.groups.iter().enumerate() {
            if group.is_unused(names()) {
                let message = format!(
                    "{:?} matches none of the {} tensors that are trained, such as {}",
                    group.pattern,
                    forms.len(),
                    names().next().unwrap_or("none")
                );
                self.problem(&format!("{key}.groups.{index}.pattern"), message);
            }
        }
    }
}
