//! Biases of the base that are trained and stored beside adapters.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// PEFT's `bias`: which biases of the base are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every one, those of norms included.
    All,
    /// Those of the layers that have an adapter: PEFT's name for it beside LoRA.
    LoraOnly,
    /// The same, its name beside VeRA.
    VeraOnly,
}

impl Bias {
    /// The value of `bias` in `adapter_config.json`; `None` for one that is not known.
    pub(super) fn read(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }

    /// Whether the parameter called `name` is a bias that is trained; `adapted` says whether the layer at a path has an adapter.
    pub fn trains(self, name: &str, adapted: impl Fn(&str) -> bool) -> bool {
        match (self, name.strip_suffix(".bias")) {
            (Self::None, _) | (_, None) => false,
            (Self::All, Some(_)) => true,
            (Self::LoraOnly | Self::VeraOnly, Some(path)) => adapted(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_chosen_as_in_peft() {
        let adapted = |path: &str| path.ends_with("c_attn");
        let (attn, norm) = ("h.0.attn.c_attn.bias", "h.0.ln_1.bias");
        assert!(Bias::All.trains(norm, adapted) && Bias::LoraOnly.trains(attn, adapted));
        assert!(!Bias::LoraOnly.trains(norm, adapted) && !Bias::None.trains(attn, adapted));
        assert!(Bias::VeraOnly.trains(attn, adapted) && !Bias::VeraOnly.trains(norm, adapted));
        assert!(!Bias::All.trains("h.0.ln_1.weight", adapted));
    }
}
