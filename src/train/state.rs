//! Checkpoints of a stage in progress: trained weights, optimiser, position.

use std::path::Path;

use burn::backend::Autodiff;
use serde::{Deserialize, Serialize};

use crate::checkpoint::TensorMap;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::params::Parameters;
use crate::report::LogMark;
use crate::snapshot::Snapshot;

/// The position of a stage after `step` steps. Randomness is a function of the step and has no state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Optimiser steps (PPO: updates) done.
    pub(super) step: usize,
    /// Tokens processed.
    pub(super) tokens: u64,
    /// Optimiser updates done, by network.
    pub(super) updates: Vec<usize>,
    /// Prompts drawn by an on-policy method that may draw more than its updates need.
    #[serde(default)]
    pub(super) prompts: usize,
    /// KL controller of PPO.
    pub(super) kl: Option<crate::rl::KlController>,
    /// The best evaluation so far, with `keep_best`.
    #[serde(default)]
    pub(super) best: Option<BestStep>,
    /// Marks of `metrics.jsonl` and `samples.jsonl`.
    pub(super) logs: [LogMark; 2],
}

/// An evaluation whose weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct BestStep {
    /// Steps done before it.
    pub(super) step: usize,
    /// The metric's value.
    pub(super) value: f64,
}

impl Position {
    /// Updates done of the network at `index`.
    ///
    /// # Errors
    /// `Error::Format` if the checkpoint `folder` lacks it.
    pub(super) fn updates_of(&self, index: usize, folder: &Path) -> Result<usize> {
        self.updates.get(index).copied().ok_or_else(|| {
            let message = format!(
                "the checkpoint counts the updates of {} networks, expected at least {}",
                self.updates.len(),
                index + 1
            );
            Error::format(folder, message)
        })
    }
}

/// The trained weights of a model.
pub(super) fn trained_weights<'a, B: ModelBackend>(
    model: &mut dyn Parameters<Autodiff<B>>,
) -> Snapshot<'a> {
    let mut weights = Snapshot::default();
    model.for_each_parameter(&mut |meta, slot| {
        if slot.is_trained() {
            let read = slot.reader();
            weights.insert(meta.key(), slot.shape(), move || read().into());
        }
    });
    weights
}

/// Restores the weights of [`trained_weights`].
///
/// # Errors
/// `Error::Format` if the checkpoint belongs to another model.
pub(super) fn restore_weights<B: ModelBackend>(
    map: &TensorMap,
    prefix: &str,
    model: &mut dyn Parameters<Autodiff<B>>,
    device: &B::Device,
    folder: &Path,
) -> Result<()> {
    let mut problem = None;
    model.for_each_parameter(&mut |meta, mut slot| {
        if !slot.is_trained() {
            return;
        }
        match map.get(&format!("{prefix}{}", meta.key())) {
            Some((shape, values)) if *shape == slot.shape() => {
                slot.assign(values.clone(), shape, device)
            }
            other => {
                problem.get_or_insert_with(|| {
                    let found = other.map_or("nothing".to_owned(), |(shape, _)| {
                        format!("shape {shape:?}")
                    });
                    format!(
                        "{}: expected shape {:?}, found {found}",
                        meta.key(),
                        slot.shape()
                    )
                });
            }
        }
    });
    match problem {
        Some(message) => Err(Error::format(
            folder,
            format!("the checkpoint is of another model: {message}"),
        )),
        None => Ok(()),
    }
}

/// The entries under `prefix`, with the prefix removed.
pub(super) fn under(map: &TensorMap, prefix: &str) -> TensorMap {
    map.iter()
        .filter_map(|(name, value)| {
            name.strip_prefix(prefix)
                .map(|name| (name.to_owned(), value.clone()))
        })
        .collect()
}
