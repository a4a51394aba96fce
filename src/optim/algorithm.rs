//! The list of update rules.

use serde::{Deserialize, Serialize};

use super::adafactor::Adafactor;
use super::adamw::AdamW;
use super::adamw8bit::AdamW8bit;
use super::lion::Lion;
use super::muon::Muon;
use super::rule::{ParamForm, ParamUpdate, UpdateRule, UpdateStep, Updated};
use super::sgd::Sgd;
use super::state::StateSpec;
use crate::ops::ModelBackend;
use crate::settings::Settings;

/// The update rule, as a recipe names it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Algorithm {
    /// Two moments in f32: 8 bytes for each parameter.
    #[default]
    AdamW,
    /// AdamW with its moments in 8 bits: 2 bytes for each parameter.
    AdamW8bit,
    /// Second moments by row and column: next to nothing.
    Adafactor(Adafactor),
    /// The sign of a moment: 4 bytes.
    Lion(Lion),
    /// Gradient descent with momentum: 4 bytes, none without momentum.
    Sgd(Sgd),
    /// An orthogonal step for hidden matrices (4 bytes), AdamW for everything else.
    Muon(Muon),
}

/// The settings of whichever rule it is.
macro_rules! by_rule {
    ($algorithm:expr, $rule:ident => $body:expr) => {
        match $algorithm {
            Algorithm::AdamW => {
                let $rule = &AdamW;
                $body
            }
            Algorithm::AdamW8bit => {
                let $rule = &AdamW8bit;
                $body
            }
            Algorithm::Adafactor($rule) => $body,
            Algorithm::Lion($rule) => $body,
            Algorithm::Sgd($rule) => $body,
            Algorithm::Muon($rule) => $body,
        }
    };
}

impl Algorithm {
    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW => "AdamW",
            Self::AdamW8bit => "AdamW8bit",
            Self::Adafactor(_) => "Adafactor",
            Self::Lion(_) => "Lion",
            Self::Sgd(_) => "Sgd",
            Self::Muon(_) => "Muon",
        }
    }

    /// Whether it uses `beta1`, `beta2` and `eps` of [`OptimConfig`](super::OptimConfig).
    pub fn has_moments(&self) -> bool {
        matches!(self, Self::AdamW | Self::AdamW8bit | Self::Muon(_))
    }

    /// Whether it is for weights of the model itself only, and not for adapters.
    pub fn is_for_whole_models(&self) -> bool {
        matches!(self, Self::Muon(_))
    }

    /// Bytes that its state of a parameter takes.
    pub fn state_bytes(&self, form: &ParamForm) -> u64 {
        let specs = self.state(form);
        specs.iter().map(|spec| spec.num_bytes() as u64).sum()
    }
}

impl UpdateRule for Algorithm {
    fn problems(&self, settings: &mut Settings) {
        by_rule!(self, rule => rule.problems(settings));
    }

    fn state(&self, form: &ParamForm) -> Vec<StateSpec> {
        by_rule!(self, rule => rule.state(form))
    }

    fn update<B: ModelBackend>(
        &self,
        params: Vec<ParamUpdate<B>>,
        step: &UpdateStep<'_>,
    ) -> Vec<Updated<B>> {
        by_rule!(self, rule => rule.update(params, step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamKind;

    #[test]
    fn the_state_of_each_rule_has_its_size() {
        let form = |kind, shape: &[usize]| ParamForm::of_file(kind, shape);
        let (matrix, table, norm) = (
            form(ParamKind::Matrix, &[100, 64]),
            form(ParamKind::Embedding, &[64, 100]),
            form(ParamKind::Vector, &[64]),
        );
        let bytes = |rule: Algorithm| [&matrix, &table, &norm].map(|form| rule.state_bytes(form));
        assert_eq!(bytes(Algorithm::AdamW), [51_200, 51_200, 512]);
        // 6400 entries are 25 blocks: a byte for each entry and 4 for each block, twice.
        assert_eq!(bytes(Algorithm::AdamW8bit), [13_000, 13_000, 512]);
        // A row and a column.
        let adafactor = Adafactor::default();
        assert_eq!(bytes(Algorithm::Adafactor(adafactor)), [656, 656, 256]);
        let with_moment = Adafactor {
            beta1: Some(0.9),
            ..Adafactor::default()
        };
        assert_eq!(
            bytes(Algorithm::Adafactor(with_moment)),
            [26_256, 26_256, 512]
        );
        assert_eq!(
            bytes(Algorithm::Lion(Lion::default())),
            [25_600, 25_600, 256]
        );
        assert_eq!(bytes(Algorithm::Sgd(Sgd::default())), [25_600, 25_600, 256]);
        let plain = Sgd {
            momentum: 0.0,
            nesterov: false,
        };
        assert_eq!(bytes(Algorithm::Sgd(plain)), [0, 0, 0]);
        assert_eq!(
            bytes(Algorithm::Muon(Muon::default())),
            [25_600, 51_200, 512]
        );
    }
}
