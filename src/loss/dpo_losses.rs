//! Names of DPO losses in recipes: one, or several with weights.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Loss of a pair of responses; the names are TRL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DpoLoss {
    /// `-log sigmoid(beta * margin)`; with label smoothing conservative DPO.
    #[default]
    Sigmoid,
    /// `max(0, 1 - beta * margin)`.
    Hinge,
    /// `(margin per token - 1 / (2 beta))^2`.
    Ipo,
    /// Reverse KL divergence from the smoothed label to the policy's preference.
    ExoPair,
    /// Noise-contrastive alignment of both responses.
    NcaPair,
    /// `Sigmoid` without the bias that a known rate of flipped labels gives it.
    Robust,
    /// Binary classification of both responses.
    BcoPair,
    /// Squared distances of both log ratios from `1 / (2 beta)` and `-1 / (2 beta)`.
    SppoHard,
    /// `Sigmoid` of sorted margins of the policy against sorted margins of the reference.
    Aot,
    /// `Sigmoid` of sorted log ratios of chosen against sorted log ratios of rejected responses.
    AotUnpaired,
    /// Raises chosen and lowers rejected responses.
    ApoZero,
    /// Lowers both responses, rejected ones more.
    ApoDown,
    /// A blend of logistic and exponential loss.
    Discopop,
    /// Cross-entropy of the chosen responses.
    Sft,
    /// `Sigmoid` of the margin per token.
    SigmoidNorm,
}

impl DpoLoss {
    /// All losses.
    pub const ALL: [Self; 15] = [
        Self::Sigmoid,
        Self::Hinge,
        Self::Ipo,
        Self::ExoPair,
        Self::NcaPair,
        Self::Robust,
        Self::BcoPair,
        Self::SppoHard,
        Self::Aot,
        Self::AotUnpaired,
        Self::ApoZero,
        Self::ApoDown,
        Self::Discopop,
        Self::Sft,
        Self::SigmoidNorm,
    ];

    /// Names of all losses, in the order of [`DpoLoss::ALL`].
    pub const NAMES: [&str; 15] = [
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    ];

    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether label smoothing changes it.
    pub fn knows_wrong_labels(self) -> bool {
        matches!(
            self,
            Self::Sigmoid | Self::Robust | Self::ExoPair | Self::Aot | Self::AotUnpaired
        )
    }

    /// Whether the loss of a pair depends on the other pairs of the batch.
    pub fn sorts(self) -> bool {
        matches!(self, Self::Aot | Self::AotUnpaired)
    }
}

impl fmt::Display for DpoLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One loss, or a sum of losses with weights.
///
/// In recipes `sigmoid`, `[(sigmoid, 0.8), (sft, 0.2)]` or `[sigmoid, sft]`, whose weights are 1 unless they are given elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct DpoLosses(Vec<(DpoLoss, f64)>);

impl DpoLosses {
    /// Losses with their weights.
    pub fn new(losses: impl IntoIterator<Item = (DpoLoss, f64)>) -> Self {
        Self(losses.into_iter().collect())
    }

    /// The losses with their weights, in order.
    pub fn weighted(&self) -> &[(DpoLoss, f64)] {
        &self.0
    }

    /// Whether one of the losses is `loss`.
    pub fn has(&self, loss: DpoLoss) -> bool {
        self.0.iter().any(|(own, _)| *own == loss)
    }

    /// The same losses with other weights.
    pub fn with_weights(&self, weights: &[f64]) -> Self {
        let losses = self.0.iter().map(|(loss, _)| *loss);
        Self(losses.zip(weights.iter().copied()).collect())
    }
}

impl Default for DpoLosses {
    fn default() -> Self {
        DpoLoss::default().into()
    }
}

impl From<DpoLoss> for DpoLosses {
    fn from(loss: DpoLoss) -> Self {
        Self(vec![(loss, 1.0)])
    }
}

impl Serialize for DpoLosses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0[..] {
            [(loss, 1.0)] => loss.serialize(serializer),
            _ => self.0.serialize(serializer),
        }
    }
}

/// What may be written for losses; names are checked afterwards, so that errors name the unknown one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    List(Vec<WrittenLoss>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenLoss {
    Plain(String),
    Weighted(String, f64),
}

impl<'de> Deserialize<'de> for DpoLosses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Written::deserialize(deserializer).map_err(|_| {
            D::Error::custom(
                "expected a loss such as `sigmoid`, a list `[sigmoid, sft]`, or a list with weights `[(sigmoid, 0.8), (sft, 0.2)]`",
            )
        })?;
        let known = |name: &str| {
            let found = DpoLoss::NAMES.iter().position(|known| *known == name);
            found
                .map(|index| DpoLoss::ALL[index])
                .ok_or_else(|| D::Error::unknown_variant(name, &DpoLoss::NAMES))
        };
        let losses = match written {
            Written::One(name) => vec![(known(&name)?, 1.0)],
            Written::List(list) => (list.into_iter())
                .map(|written| match written {
                    WrittenLoss::Plain(name) => Ok((known(&name)?, 1.0)),
                    WrittenLoss::Weighted(name, weight) => Ok((known(&name)?, weight)),
                })
                .collect::<Result<_, D::Error>>()?,
        };
        Ok(Self(losses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trls() {
        for (loss, name) in DpoLoss::ALL.into_iter().zip(DpoLoss::NAMES) {
            assert_eq!(serde_json::to_value(loss).unwrap(), name);
            assert_eq!(loss.name(), name);
        }
    }

    #[test]
    fn losses_are_one_name_or_a_list() {
        let read = |text: &str| ron::from_str::<DpoLosses>(text);
        let one = DpoLosses::from(DpoLoss::ApoZero);
        assert_eq!(read("apo_zero").unwrap(), one);
        assert_eq!(read("\"apo_zero\"").unwrap(), one);
        let two = [(DpoLoss::Sigmoid, 0.75), (DpoLoss::Sft, 0.25)];
        assert_eq!(
            read("[(sigmoid, 0.75), (sft, 0.25)]").unwrap(),
            DpoLosses::new(two)
        );
        let plain = read("[sigmoid, sft]").unwrap();
        assert_eq!(
            plain.weighted(),
            [(DpoLoss::Sigmoid, 1.0), (DpoLoss::Sft, 1.0)]
        );
        assert_eq!(plain.with_weights(&[0.75, 0.25]), DpoLosses::new(two));
        for losses in [one, plain, DpoLosses::new(two)] {
            let text = ron::to_string(&losses).unwrap();
            assert_eq!(read(&text).unwrap(), losses, "{text}");
        }
        assert!(read("sigmod").is_err());
        assert!(read("[(sft, high)]").is_err());
        assert!(read("3").is_err());
    }
}
