//! What an optimiser keeps of what a stage trains, and whether its groups have something to hold for.

use super::Planner;
use crate::model::{TrainedTensor, trained_tensors};
use crate::optim::{OptimConfig, ParamForm};
use crate::train::config::Peft;

/// Bytes of the state that an optimiser keeps of what is `trained`.
pub(super) fn state_bytes(optim: &OptimConfig, trained: &[TrainedTensor]) -> u64 {
    let bytes = trained.iter().map(|tensor| {
        let form = ParamForm::of_file(tensor.kind, &tensor.shape);
        optim.algorithm.state_bytes(&form)
    });
    bytes.sum()
}

impl Planner<'_> {
    /// Bytes of the state that an optimiser keeps of what `peft` trains.
    pub(in crate::train) fn optimizer_bytes(
        &self,
        optim: &OptimConfig,
        peft: &Peft,
        scores: bool,
    ) -> u64 {
        // What cannot be resolved is a problem of the stage's shape.
        trained_tensors(self.model.config, scores, peft)
            .map_or(0, |trained| state_bytes(optim, &trained))
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
        let Ok(trained) = trained_tensors(self.model.config, scores, peft) else {
            return;
        };
        let names = || trained.iter().map(|tensor| tensor.name.as_str());
        for (index, group) in optim.groups.iter().enumerate() {
            if group.is_unused(names()) {
                let message = format!(
                    "{:?} matches none of the {} tensors that are trained, such as {}",
                    group.pattern,
                    trained.len(),
                    names().next().unwrap_or("none")
                );
                self.problem(&format!("{key}.groups.{index}.pattern"), message);
            }
        }
    }
}
