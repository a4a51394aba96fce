//! Tensors of the base that are trained beside adapters and stored with them: PEFT's `bias` and `modules_to_save`.

use super::bias::Bias;
use super::files::SCORE;
use super::keys::saved_key;
use super::{AdapterMethod, AdapterSpec};

impl AdapterSpec {
    /// As [`AdapterMethod::bias`] and [`AdapterMethod::modules_to_save`].
    pub fn beside(&self) -> Beside<'_> {
        let (bias, modules) = by_settings!(
            self,
            layer config => (config.bias(), config.modules_to_save()),
            rows _config => (Bias::None, &[][..])
        );
        Beside { bias, modules }
    }

    /// As [`AdapterMethod::ensure_weight_tying`].
    pub fn ensure_weight_tying(&self) -> bool {
        by_settings!(self, layer config => config.ensure_weight_tying(), rows _config => false)
    }

    /// As [`AdapterMethod::STORES_WEIGHT_TYING`].
    pub fn stores_weight_tying(&self) -> bool {
        fn of<M: AdapterMethod>(_: &M) -> bool {
            M::STORES_WEIGHT_TYING
        }
        by_settings!(self, layer config => of(config), rows _config => false)
    }
}

/// What is trained of the base beside adapters. Other models on the base keep the tensors that it began with.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    /// Biases.
    pub bias: Bias,
    /// Modules that are trained whole, by the end of their path.
    pub modules: &'a [String],
}

impl<'a> Beside<'a> {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.bias == Bias::None && self.entries().next().is_none()
    }

    /// The modules that are trained whole, but for the score head, which is trained in any case.
    pub fn entries(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let entries = self.modules.iter().map(String::as_str);
        entries.filter(|entry| *entry != SCORE)
    }

    /// Whether the parameter called `name` is trained; `adapted` says whether the layer at a path has an adapter.
    pub fn trains(&self, name: &str, adapted: impl Fn(&str) -> bool) -> bool {
        self.bias.trains(name, adapted) || self.entries().any(|entry| names(entry, name))
    }
}

/// Whether an entry of `modules_to_save` names a module that holds the parameter called `name`.
///
/// PEFT compares ends of paths letter by letter: `norm` is an end of `model.norm` and of `model.layers.0.input_layernorm`.
pub fn names(entry: &str, name: &str) -> bool {
    let (own, in_memory) = (modules(name), modules(in_memory(name)));
    own.chain(in_memory).any(|module| module.ends_with(entry))
}

/// The path of the module that a parameter or module is in.
fn module(path: &str) -> Option<&str> {
    path.rsplit_once('.').map(|(module, _)| module)
}

/// The paths of the modules that a parameter is in, the innermost first.
fn modules(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(module(name), |path| module(path))
}

/// The name that transformers gives a parameter in memory: GPT-NeoX's head is `embed_out` in checkpoints only.
fn in_memory(name: &str) -> &str {
    match name {
        "embed_out.weight" => "lm_head.weight",
        name => name,
    }
}

/// The stored name of a tensor that is trained beside adapters: PEFT puts the layer that an adapter is on one level deeper.
pub fn beside_key(name: &str, adapted: impl Fn(&str) -> bool) -> String {
    match name.strip_suffix(".bias") {
        Some(path) if adapted(path) => saved_key(&format!("{path}.base_layer.bias")),
        _ => saved_key(in_memory(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_chosen_by_the_ends_of_their_paths() {
        let trains = |modules: &[&str], name: &str| {
            let modules: Vec<String> = modules.iter().map(ToString::to_string).collect();
            let beside = Beside {
                bias: Bias::None,
                modules: &modules,
            };
            beside.trains(name, |_| false)
        };
        let layer_norm = "model.layers.0.input_layernorm.weight";
        assert!(trains(&["embed_tokens"], "model.embed_tokens.weight"));
        assert!(trains(&["norm"], "model.norm.weight") && trains(&["norm"], layer_norm));
        assert!(!trains(&["model.norm"], layer_norm) && !trains(&["norm.weight"], layer_norm));
        assert!(trains(&["0"], layer_norm), "a module with modules inside");
        assert!(trains(&["ln_f"], "transformer.ln_f.bias"));
        for head in ["lm_head", "embed_out"] {
            assert!(trains(&[head], "embed_out.weight"));
        }
        assert!(!trains(&["score"], "score.weight"), "trained in any case");
    }

    #[test]
    fn biases_and_modules_are_named_as_in_peft() {
        let adapted = |path: &str| path.ends_with("c_attn");
        for (name, expected) in [
            ("h.0.attn.c_attn.bias", "h.0.attn.c_attn.base_layer.bias"),
            ("h.0.ln_1.bias", "h.0.ln_1.bias"),
            ("model.embed_tokens.weight", "model.embed_tokens.weight"),
            ("embed_out.weight", "lm_head.weight"),
        ] {
            assert_eq!(
                beside_key(name, adapted),
                format!("base_model.model.{expected}")
            );
        }
    }
}
