//! Bottleneck adapters: a narrow MLP beside the sub-layers of each block.
//!
//! # Source
//! Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; parallel: He et al. 2022, arXiv:2110.04366,
//! with the library adapters 1.3 for what each of them reads in models whose norms stand before their sub-layers.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bottleneck_files;
use super::dense::Dense;
use super::files::{AdapterConfig, Keys};
use super::keys::tensor_key;
use super::method::{AdapterMethod, LayerAdapter, LayerMethod, Merged, Site};
use super::projection::{ColumnOrder, LayerSpec};
use super::targets::{LinearSpec, TargetModules, Targets, is_suffix};
use crate::error::{Error, Problem, Result};
use crate::ops::{self, Gate, Gelu, ModelBackend};
use crate::params::{ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// Names below a layer's path of the two linear layers.
const DOWN: &str = "adapter_down";
const UP: &str = "adapter_up";

/// Which sub-layers have an adapter, and what it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Placement {
    /// After attention and after the MLP, each reading what the sub-layer gives.
    #[default]
    Houlsby,
    /// After the MLP, reading the residual stream with what the MLP adds to it.
    Pfeiffer,
    /// Beside the MLP, reading the residual stream before it.
    Parallel,
}

/// What lies between the two linear layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum NonLinearity {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// `x * Phi(x)`.
    Gelu,
    /// The same by `tanh`.
    GeluTanh,
    /// `x / (1 + exp(-x))`.
    Swish,
    /// The swish of one half of what the first layer gives, times the other: that layer is twice as wide.
    SwiGlu,
}

/// Narrow MLPs beside the sub-layers of a frozen base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BottleneckConfig {
    /// Which sub-layers have one, and what it reads.
    pub placement: Placement,
    /// Width between the two linear layers; by `reduction_factor` if `None`.
    pub size: Option<usize>,
    /// The model's width divided by this, rounded down and at least 1, is the width between them.
    pub reduction_factor: f64,
    /// What lies between them.
    pub non_linearity: NonLinearity,
    /// Factor on what is added.
    pub scaling: f64,
    /// Blocks without any, from 0.
    pub leave_out: Vec<usize>,
    /// Norms, embeddings and the output head to train and store whole, by the ends of their paths: `"norm"`.
    pub modules_to_save: Vec<String>,
    /// Where the embedding is the output head, too, train the two as one.
    pub ensure_weight_tying: bool,
}

impl Default for BottleneckConfig {
    fn default() -> Self {
        Self {
            placement: Placement::default(),
            size: None,
            reduction_factor: 16.0,
            non_linearity: NonLinearity::default(),
            scaling: 1.0,
            leave_out: Vec::new(),
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
        }
    }
}

/// The layers that end a sub-layer, by the ends of their paths, and whether the sub-layer is attention.
const SITES: [(&str, bool); 8] = [
    ("self_attn.o_proj", true),
    ("mlp.down_proj", false),
    ("attn.c_proj", true),
    ("mlp.c_proj", false),
    ("attention.dense", true),
    ("mlp.dense_4h_to_h", false),
    ("self_attn.out_proj", true),
    ("fc2", false),
];

/// The path of the block that the layer at `path` ends a sub-layer of, and whether that is attention.
pub(super) fn site(path: &str) -> Option<(&str, bool)> {
    let (end, attention) = (SITES.iter()).find(|(end, _)| is_suffix(path, end))?;
    let block = path.strip_suffix(end)?.strip_suffix('.')?;
    Some((block, *attention))
}

/// The number at the end of a block's path.
fn number(block: &str) -> Option<usize> {
    block.rsplit('.').next()?.parse().ok()
}

impl BottleneckConfig {
    /// Width between the two linear layers of an adapter beside a layer of this output.
    pub fn size_of(&self, layer: &LinearSpec) -> usize {
        self.size_in(layer.out_features)
    }

    /// The same in a model of this width.
    fn size_in(&self, width: usize) -> usize {
        let reduced = width as f64 / self.reduction_factor;
        self.size.unwrap_or((reduced as usize).max(1))
    }

    /// Columns of the first layer.
    fn inner(&self, layer: &LinearSpec) -> usize {
        match self.non_linearity {
            NonLinearity::SwiGlu => 2 * self.size_of(layer),
            _ => self.size_of(layer),
        }
    }
}

impl AdapterMethod for BottleneckConfig {
    const PEFT_TYPE: &'static str = bottleneck_files::KIND;
    const MERGES: bool = false;
    const OWN_FILES: bool = true;
    const OWN_TARGETS: bool = true;
    const STORES_WEIGHT_TYING: bool = true;

    fn problems(&self, settings: &mut Settings) {
        if let Some(size) = self.size {
            settings.positive("size", size);
            if self.reduction_factor != Self::default().reduction_factor {
                let problem = Problem::new("reduction_factor", "`size` says how wide it is, too");
                settings.note(problem.with_help("leave out one of the two"));
            }
        }
        settings.above_zero("reduction_factor", self.reduction_factor);
        if !self.scaling.is_finite() || self.scaling == 0.0 {
            let message = format!("must be finite and not 0, found {}", self.scaling);
            settings.note(Problem::new("scaling", message));
        }
        settings.modules_to_save(&self.modules_to_save);
    }

    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>> {
        let everywhere = self.placement == Placement::Houlsby;
        let sites: Vec<(usize, &str)> = (linear.iter().enumerate())
            .filter_map(|(index, layer)| {
                let (block, attention) = site(&layer.name)?;
                (everywhere || !attention).then_some((index, block))
            })
            .collect();
        for left_out in &self.leave_out {
            if !(sites.iter()).any(|(_, block)| number(block) == Some(*left_out)) {
                return Err(Error::Usage(format!(
                    "leave_out: there is no block {left_out}; they are counted from 0"
                )));
            }
        }
        let kept = |block: &str| number(block).is_none_or(|n| !self.leave_out.contains(&n));
        let chosen: Vec<usize> = (sites.into_iter())
            .filter(|(_, block)| kept(block))
            .map(|(index, _)| index)
            .collect();
        let Some(first) = chosen.first() else {
            return Err(Error::Usage("leave_out: no block is left".into()));
        };
        let (size, width) = (self.size_of(&linear[*first]), linear[*first].out_features);
        match size > width {
            true => Err(Error::Usage(format!(
                "size: a bottleneck of {size} is wider than the model, which has {width}"
            ))),
            false => Ok(chosen),
        }
    }

    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)> {
        let (width, size) = (layer.out_features, self.size_of(layer));
        vec![
            ("adapter_down.weight", vec![self.inner(layer), width]),
            ("adapter_down.bias", vec![self.inner(layer)]),
            ("adapter_up.weight", vec![width, size]),
            ("adapter_up.bias", vec![width]),
        ]
    }

    fn modules_to_save(&self) -> &[String] {
        &self.modules_to_save
    }

    fn ensure_weight_tying(&self) -> bool {
        self.ensure_weight_tying
    }

    fn read(keys: &Keys<'_>, _: &Targets) -> Result<Self, String> {
        bottleneck_files::read(keys)
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        bottleneck_files::accepts(key, value)
    }

    fn own_targets(&self) -> Option<Targets> {
        let everywhere = self.placement == Placement::Houlsby;
        let ends = (SITES.iter()).filter(|(_, attention)| everywhere || !attention);
        let ends = ends.map(|(end, _)| (*end).to_owned()).collect();
        let left_out: Vec<String> = self.leave_out.iter().map(usize::to_string).collect();
        let blocks = format!(r".*\.(?:{})\..*", left_out.join("|"));
        Some(Targets {
            exclude_modules: (!left_out.is_empty()).then_some(TargetModules::One(blocks)),
            ..Targets::of(TargetModules::List(ends))
        })
    }

    fn file_key(key: &str) -> String {
        bottleneck_files::file_key(key)
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        bottleneck_files::write(self, config)
    }
}

impl LayerMethod for BottleneckConfig {
    type Layer<B: Backend> = Bottleneck<B>;

    /// The second layer is zero: nothing is added yet.
    fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Bottleneck<B> {
        let (layer, seed, device) = (site.layer, site.seed, site.device);
        let width = layer.out_features;
        Bottleneck {
            down: Dense::with_zero_bias([width, self.inner(layer)], seed.fork("down"), device),
            up: Dense::zeros([self.size_of(layer), width], device),
            reads: self.placement,
            non_linearity: self.non_linearity,
            scaling: self.scaling,
        }
    }

    fn continues<B: Backend>(&self, present: &Self, layer: &Bottleneck<B>, _: &str) -> bool {
        // Files say the size by its share of the width.
        let [size, width] = layer.up.weight.val().dims();
        let same = |config: &Self| (config.placement, config.non_linearity, config.scaling);
        self.size_in(width) == size && same(self) == same(present)
    }
}

/// The MLP beside one sub-layer.
#[derive(Module, Debug)]
pub struct Bottleneck<B: Backend> {
    /// To the width between; twice that with [`NonLinearity::SwiGlu`].
    pub down: Dense<B>,
    /// Back to the model's width.
    pub up: Dense<B>,
    #[module(skip)]
    reads: Placement,
    #[module(skip)]
    non_linearity: NonLinearity,
    scaling: f64,
}

impl<B: Backend> LayerAdapter<B> for Bottleneck<B> {
    type Config = BottleneckConfig;

    fn output(&self, _: &Tensor<B, 2>, y: Tensor<B, 2>, _: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        y
    }

    fn add(&self, stream: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let sum = ops::residual(stream.clone(), y.clone());
        let read = match self.reads {
            Placement::Houlsby => y,
            Placement::Pfeiffer => sum.clone(),
            Placement::Parallel => stream,
        };
        let inner = self.down.forward(read);
        let inner = match self.non_linearity {
            NonLinearity::Relu => activation::relu(inner),
            NonLinearity::Gelu => ops::gelu(inner, Gelu::Erf),
            NonLinearity::GeluTanh => ops::gelu(inner, Gelu::Tanh),
            NonLinearity::Swish => inner.clone() * activation::sigmoid(inner),
            NonLinearity::SwiGlu => ops::gated_unit(inner, Gate::Silu),
        };
        let added = self.up.forward(inner);
        let added = match self.scaling == 1.0 {
            true => added,
            false => added.mul_scalar(self.scaling as f32),
        };
        ops::residual(sum, added)
    }

    fn merge(&self, _: Tensor<B, 2>, _: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend,
    {
        None
    }

    fn walk(
        &mut self,
        layer: &LayerSpec,
        _: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    ) {
        self.down.walk(&tensor_key(&layer.path, DOWN), visit);
        self.up.walk(&tensor_key(&layer.path, UP), visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::LayerKind;

    fn linear() -> Vec<LinearSpec> {
        let layer = |name: String, in_features| LinearSpec {
            kind: LayerKind::Linear,
            name,
            in_features,
            out_features: 16,
        };
        (0..2)
            .flat_map(|i| {
                let path = |name: &str| format!("model.layers.{i}.{name}");
                [
                    layer(path("self_attn.q_proj"), 16),
                    layer(path("self_attn.o_proj"), 16),
                    layer(path("mlp.down_proj"), 24),
                ]
            })
            .collect()
    }

    #[test]
    fn sub_layers_end_with_known_layers() {
        assert_eq!(
            site("transformer.h.3.mlp.c_proj"),
            Some(("transformer.h.3", false))
        );
        assert_eq!(
            site("model.decoder.layers.0.self_attn.out_proj"),
            Some(("model.decoder.layers.0", true))
        );
        assert_eq!(site("model.layers.0.self_attn.q_proj"), None);
    }

    #[test]
    fn placements_choose_layers_and_sizes_fit() {
        let config = BottleneckConfig::default();
        assert_eq!(config.targets(&linear()).unwrap(), [1, 2, 4, 5]);
        let pfeiffer = BottleneckConfig {
            placement: Placement::Pfeiffer,
            leave_out: vec![0],
            reduction_factor: 5.0,
            ..config.clone()
        };
        assert_eq!(pfeiffer.targets(&linear()).unwrap(), [5]);
        // 16 / 5 = 3.2.
        assert_eq!(
            pfeiffer.tensors(&linear()[5])[0],
            ("adapter_down.weight", vec![3, 16])
        );
        let message = |config: BottleneckConfig| config.targets(&linear()).unwrap_err().to_string();
        let size = |size| BottleneckConfig {
            size: Some(size),
            ..BottleneckConfig::default()
        };
        assert_eq!(
            message(size(17)),
            "size: a bottleneck of 17 is wider than the model, which has 16"
        );
        let leave_out = |leave_out| BottleneckConfig {
            leave_out,
            ..BottleneckConfig::default()
        };
        assert_eq!(
            message(leave_out(vec![2])),
            "leave_out: there is no block 2; they are counted from 0"
        );
        assert_eq!(
            message(leave_out(vec![0, 1])),
            "leave_out: no block is left"
        );
    }
}
