//! `keep_best`: the weights of the best evaluation.

use burn::backend::Autodiff;

use super::Journal;
use crate::checkpoint;
use crate::collective;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::report::format_value;
use crate::snapshot::Snapshot;
use crate::suggest::quoted;
use crate::train::Session;
use crate::train::config::Better;
use crate::train::state::{BestStep, restore_weights};

impl Journal {
    /// Whether the evaluation of this step, if there was one, is the best so far by `keep_best`: its weights are to be kept then by
    /// [`Journal::save_best`]. Before the first step there is nothing to keep.
    ///
    /// # Errors
    /// `Error::Stage` if the stage has no metric of that name.
    pub(in crate::train) fn is_best(&mut self) -> Result<bool> {
        let step = self.position.step;
        let Some(keep) = self.cadence.keep_best.clone() else {
            return Ok(false);
        };
        if step == 0 || !self.evaluates() || self.position.best.is_some_and(|b| b.step == step) {
            return Ok(false);
        }
        let found = self.current.iter().rev().find(|(name, _)| *name == keep.by);
        let Some(&(_, value)) = found else {
            let names: Vec<&str> = self.current.iter().map(|(name, _)| &**name).collect();
            return Err(Error::Stage {
                stage: self.stage.clone(),
                message: format!(
                    "cadence.keep_best: an evaluation has no metric `{}`; it has {}",
                    keep.by,
                    quoted(names)
                ),
            });
        };
        let is_better = |best: BestStep| match keep.mode {
            Better::Max => value > best.value,
            Better::Min => value < best.value,
        };
        let is_best = value.is_finite() && self.position.best.is_none_or(is_better);
        if is_best {
            self.position.best = Some(BestStep { step, value });
        }
        Ok(is_best)
    }

    /// Keeps the weights of the best evaluation so far; those that a checkpoint may be resumed with stay too.
    ///
    /// # Errors
    /// `Error::Io`.
    pub(in crate::train) fn save_best(&self, weights: &Snapshot<'_>) -> Result<()> {
        collective::on_first(|| {
            let states = checkpoint::of_states(&self.dir, "best");
            let steps = states.iter().filter_map(|best| best["step"].as_u64());
            let steps: Vec<usize> = steps.map(|step| step as usize).collect();
            checkpoint::save_best(&self.dir, self.position.step, weights, &steps)
        })?;
        Ok(())
    }

    /// Gives `model` the weights that `keep_best` has chosen; without it, leaves them as they are.
    ///
    /// # Errors
    /// `Error::Format` if they are missing or of another model; `Error::Stage` if no evaluation had a finite value.
    pub(in crate::train) fn restore_best<B: ModelBackend>(
        &mut self,
        session: &Session<'_, B>,
        model: &mut dyn Parameters<Autodiff<B>>,
    ) -> Result<()> {
        self.has_best = true;
        let Some(keep) = &self.cadence.keep_best else {
            return Ok(());
        };
        let Some(best) = self.position.best else {
            return Err(Error::Stage {
                stage: self.stage.clone(),
                message: format!(
                    "cadence.keep_best: no evaluation had a finite value of `{}`",
                    keep.by
                ),
            });
        };
        if best.step == self.position.step {
            return Ok(());
        }
        let (folder, weights) = checkpoint::load_best(&self.dir, best.step)?;
        restore_weights(&weights, "", model, &session.device, &folder)
    }

    /// Which step's weights the stage leaves, for its summary; empty without `keep_best`.
    pub(super) fn kept(&self) -> String {
        match (&self.cadence.keep_best, self.position.best) {
            (Some(keep), Some(best)) => format!(
                "; kept step {} of {}, {} {}",
                best.step,
                self.total_steps,
                keep.by,
                format_value(best.value)
            ),
            _ => String::new(),
        }
    }
}
