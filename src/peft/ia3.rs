//! (IA)^3: a trained factor for each feature that a linear layer gives, or reads.
//!
//! # Source
//! Liu et al. 2022, arXiv:2205.05638, section 3.3; files: PEFT 0.21, `IA3Config`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::{AdapterConfig, Keys, saved_modules};
use super::keys::tensor_key;
use super::method::{AdapterMethod, LayerAdapter, LayerMethod, Merged, Site};
use super::projection::{ColumnOrder, LayerSpec};
use super::targets::{LinearSpec, TargetModules, Targets, resolve_targets, whole};
use crate::error::{Error, Result};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// Name of the factors below a layer's path.
const FACTORS: &str = "ia3_l";

/// Learned factors on the features of linear layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ia3Config {
    /// Which linear layers, as for LoRA. The default is the paper's choice for models of llama's names: keys, values, and the second
    /// layer of the MLP.
    pub target_modules: Vec<String>,
    /// Which of them have their input scaled in place of their output: ends of paths, or regular expressions on whole paths.
    pub feedforward_modules: Vec<String>,
    /// Which layers not, said as `target_modules`.
    pub exclude_modules: Vec<String>,
    /// Embeddings, norms and the output head to train and store whole, as for LoRA.
    pub modules_to_save: Vec<String>,
    /// Where the embedding is the output head, too, train the two as one.
    pub ensure_weight_tying: bool,
}

impl Default for Ia3Config {
    fn default() -> Self {
        Self {
            target_modules: ["k_proj", "v_proj", "down_proj"].map(String::from).to_vec(),
            feedforward_modules: vec!["down_proj".into()],
            exclude_modules: Vec::new(),
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
        }
    }
}

impl Ia3Config {
    /// Whether the factors of the layer at `path` scale what it reads.
    ///
    /// PEFT compares ends letter by letter: `proj` is an end of `down_proj`.
    fn scales_input(&self, path: &str) -> bool {
        let names = |entry: &String| {
            path.ends_with(entry.as_str())
                || whole(entry).is_ok_and(|pattern| pattern.is_match(path))
        };
        self.feedforward_modules.iter().any(names)
    }
}

impl AdapterMethod for Ia3Config {
    const PEFT_TYPE: &'static str = "IA3";

    fn problems(&self, settings: &mut Settings) {
        settings.targets(&self.target_modules);
        settings.expressions("feedforward_modules", &self.feedforward_modules);
        settings.modules_to_save(&self.modules_to_save);
    }

    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        let (targets, excluded) = (&self.target_modules, &self.exclude_modules);
        let listed = Targets::listed(targets, excluded, None);
        let chosen = resolve_targets(&listed.selection(), linear)?;
        for entry in &self.feedforward_modules {
            let alone = Self {
                feedforward_modules: vec![entry.clone()],
                ..Self::default()
            };
            if !(chosen.iter()).any(|&index| alone.scales_input(&linear[index].name)) {
                return Err(Error::Usage(format!(
                    "feedforward_modules: \"{entry}\" matches none of the layers of target_modules"
                )));
            }
        }
        Ok(chosen)
    }

    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        let shape = match self.scales_input(&layer.name) {
            true => vec![1, layer.in_features],
            false => vec![layer.out_features, 1],
        };
        vec![(FACTORS, shape)]
    }

    fn kept_floats(&self, layer: &LinearSpec) -> usize {
        match self.scales_input(&layer.name) {
            true => layer.in_features,
            false => layer.out_features,
        }
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn ensure_weight_tying(&self) -> bool {
        self.ensure_weight_tying
    }

    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String> {
        let feedforward = keys.modules("feedforward_modules")?;
        Ok(Self {
            target_modules: targets.target_modules.entries().to_vec(),
            feedforward_modules: match feedforward {
                // A string on its own has to match whole paths.
                Some(TargetModules::One(pattern)) => vec![format!("^(?:{pattern})$")],
                Some(TargetModules::List(entries)) => entries,
                None => return Err("no \"feedforward_modules\"".into()),
            },
            exclude_modules: targets.excluded(),
            modules_to_save: saved_modules(keys)?,
            ensure_weight_tying: false,
        })
    }

    fn accepts(key: &str, _: &Value) -> Option<bool> {
        ["fan_in_fan_out", "feedforward_modules", "init_ia3_weights"]
            .contains(&key)
            .then_some(true)
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        let layers = config.targets.target_modules.entries().iter();
        let feedforward: Vec<String> = layers
            .filter(|path| self.scales_input(path))
            .cloned()
            .collect();
        json!({
            "fan_in_fan_out": config.fan_in_fan_out,
            "feedforward_modules": feedforward,
            "init_ia3_weights": true,
        })
    }
}

impl LayerMethod for Ia3Config {
    type Layer<B: Backend> = Ia3<B>;

    /// All factors are 1.
    fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Ia3<B> {
        let layer = site.layer;
        let scales_input = self.scales_input(&layer.name);
        let features = match scales_input {
            true => layer.in_features,
            false => layer.out_features,
        };
        Ia3 {
            factors: Param::initialized(ParamId::new(), Tensor::ones([1, features], site.device)),
            scales_input,
        }
    }

    fn continues<B: Backend>(&self, _: &Self, layer: &Ia3<B>, path: &str) -> bool {
        layer.scales_input == self.scales_input(path)
    }
}

/// The factors of one layer.
#[derive(Module, Debug)]
pub struct Ia3<B: Backend> {
    /// `[1, in]` or `[1, out]`; files hold `[1, in]` or `[out, 1]`.
    pub factors: Param<Tensor<B, 2>>,
    /// Whether they multiply what the layer reads, and not what it gives.
    pub scales_input: bool,
}

impl<B: Backend> LayerAdapter<B> for Ia3<B> {
    type Config = Ia3Config;

    fn input(&self, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        (self.scales_input).then(|| x.clone() * self.factors.val())
    }

    fn output(&self, _: &Tensor<B, 2>, y: Tensor<B, 2>, _: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        match self.scales_input {
            true => y,
            false => y * self.factors.val(),
        }
    }

    fn merge(&self, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        let factors = self.factors.val().detach();
        Some(match self.scales_input {
            true => Merged {
                weight: weight * factors.transpose(),
                bias: None,
            },
            false => Merged {
                weight: weight * factors.clone(),
                bias: bias.map(|bias| bias * factors.squeeze_dim::<1>(0)),
            },
        })
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        let features = self.factors.val().dims()[1];
        let of_output = !self.scales_input;
        let key = tensor_key(&layer.path, FACTORS);
        let meta = ParamMeta::single(ParamKind::Adapter, key, features, of_output)
            .ordered(order.clone().filter(|_| of_output));
        visit(&meta, ParamSlot::Matrix(&mut self.factors));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LayerKind;

    fn layer(name: &str) -> LinearSpec {
        LinearSpec {
            kind: LayerKind::Linear,
            name: format!("model.layers.0.{name}"),
            in_features: 3,
            out_features: 5,
        }
    }

    #[test]
    fn factors_are_for_outputs_but_of_feed_forward_layers() {
        let config = Ia3Config::default();
        let linear = [
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ]
        .map(layer);
        assert_eq!(config.targets(&linear).unwrap(), [0, 1, 3]);
        assert_eq!(config.tensors(&linear[0]), [("ia3_l", vec![5, 1])]);
        assert_eq!(config.tensors(&linear[3]), [("ia3_l", vec![1, 3])]);
        let other = Ia3Config {
            feedforward_modules: vec!["up_proj".into()],
            ..config
        };
        let error = other.targets(&linear).unwrap_err().to_string();
        assert_eq!(
            error,
            "feedforward_modules: \"up_proj\" matches none of the layers of target_modules"
        );
    }
}
