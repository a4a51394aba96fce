//! The optimiser and its schedule as a recipe names them.

use serde::{Deserialize, Serialize};

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate moves over the steps of the stage.
    pub schedule: Schedule,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, after bias correction (PyTorch's placement).
    pub eps: f64,
    /// Decoupled weight decay of everything but norms and biases.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; `None` never clips.
    pub max_grad_norm: Option<f64>,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            lr: 1e-4,
            schedule: Schedule::default(),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
        }
    }
}

/// Learning-rate schedule. Ratios are fractions of the stage's optimiser steps; `floor` is a fraction of `lr`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Schedule {
    /// Warm-up, then constant.
    Constant {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
    },
    /// Warm-up, then linear to the floor.
    Linear {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
    /// Warm-up, then half a cosine to the floor.
    Cosine {
        /// Fraction of all steps spent rising linearly from zero.
        #[serde(default)]
        warmup_ratio: f64,
        /// Final learning rate as a fraction of the peak.
        #[serde(default)]
        floor: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant { warmup_ratio: 0.0 }
    }
}
