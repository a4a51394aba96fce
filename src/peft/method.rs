//! What a method of adapting linear layers says of itself: its settings, what sits on a layer, and its files.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use serde_json::Value;

use super::bias::Bias;
use super::files::{AdapterConfig, Keys};
use super::projection::{ColumnOrder, LayerSpec};
use super::targets::{LinearSpec, Targets};
use super::token_rows::{TokenName, TokenRows};
use crate::error::{Problem, Result};
use crate::ops::{self, ModelBackend};
use crate::params::{ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// The settings of a method that trains a small part of its own beside the weights of a model, which stay frozen.
///
/// A method is one file with one type that implements this and, for linear layers, [`LayerMethod`] and one that implements
/// [`LayerAdapter`], and one line in the list of [`crate::peft`].
pub trait AdapterMethod: Clone + PartialEq {
    /// PEFT's `peft_type`.
    const PEFT_TYPE: &'static str;

    /// Whether PEFT's configuration has `exclude_modules`.
    const HAS_EXCLUDE_MODULES: bool = true;

    /// Whether PEFT's configuration has `modules_to_save`.
    const HAS_MODULES_TO_SAVE: bool = true;

    /// Whether it says itself which layers it is on, with or without `target_modules`.
    const OWN_TARGETS: bool = false;

    /// Whether it is for embedding and output head, too.
    const ADAPTS_TABLES: bool = false;

    /// Whether a weight of the layer can stand for the adapter.
    const MERGES: bool = true;

    /// Whether its files have a layout of their own: [`AdapterMethod::write`] gives a whole `adapter_config.json`.
    const OWN_FILES: bool = false;

    /// Whether its files say `ensure_weight_tying`. Those of others name a head that is the embedding in `modules_to_save`, too, and
    /// hold it twice.
    const STORES_WEIGHT_TYING: bool = false;

    /// Notes settings that cannot be, as far as they show without a model.
    fn problems(&self, settings: &mut Settings);

    /// The indices into `linear` of the layers that get an adapter, ascending.
    ///
    /// # Errors
    /// `Error::Usage` for what matches no layer.
    fn targets(&self, linear: &[LinearSpec]) -> Result<Vec<usize>>;

    /// Refuses settings that a layer of this kind cannot have.
    ///
    /// # Errors
    /// With the layer and the setting.
    fn check_layer(&self, layer: &LinearSpec) -> Result<(), String> {
        let _ = layer;
        Ok(())
    }

    /// The tensors of one layer's adapter: name below the layer's path, and shape in files.
    fn tensors(&self, layer: &LinearSpec) -> Vec<(&'static str, Vec<usize>)>;

    /// Tensors that files hold once for all layers: key and shape. `largest`: the largest input and output of the layers.
    fn shared_tensors(&self, largest: [usize; 2]) -> Vec<(&'static str, [usize; 2])> {
        let _ = largest;
        Vec::new()
    }

    /// Probability with which training drops inputs of an adapter.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// Inner dimension of low-rank products, which have a fused operation.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// Floats per token that one layer's adapter stores for the backward pass; LoRA's fused product stores none that count.
    fn kept_floats(&self, layer: &LinearSpec) -> usize {
        let _ = layer;
        0
    }

    /// Which biases of the base are trained beside the adapters.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// Factor on the learning rate of the base's biases and norms, where they are trained beside the adapters.
    fn vector_lr_factor(&self) -> f64 {
        1.0
    }

    /// Modules of the base that are trained whole beside the adapters, by the ends of their paths.
    fn modules_to_save(&self) -> &[String] {
        &[]
    }

    /// Whether an embedding among them that is the output head, too, stays both.
    fn ensure_weight_tying(&self) -> bool {
        false
    }

    /// Rows of embedding and output head that are trained for single tokens.
    fn token_rows(&self) -> Option<TokenRows<'_>> {
        None
    }

    /// The lists of tokens of [`AdapterMethod::token_rows`].
    fn token_lists(&mut self) -> Vec<&mut Vec<TokenName>> {
        Vec::new()
    }

    /// The settings of an adapter as [`LayerAdapter::stored`] gives it.
    fn stored(&self) -> Self {
        self.clone()
    }

    /// What an adapter began with that [`AdapterMethod::stored`] leaves out.
    fn start(&self) -> Option<String> {
        None
    }

    /// The settings whose [`AdapterMethod::stored`] these are, if adapters began so; `None` if there are none.
    fn restored(&self, start: &str) -> Option<Self> {
        let _ = start;
        None
    }

    /// From `adapter_config.json`; `targets` are the keys that all methods have.
    ///
    /// # Errors
    /// With the key and the value that cannot be used.
    fn read(keys: &Keys<'_>, targets: &Targets) -> Result<Self, String>;

    /// Whether a key of `adapter_config.json` may hold this value: `None` if it is no key of this method, `false` if the value
    /// changes what the adapter computes and is not implemented.
    fn accepts(key: &str, value: &Value) -> Option<bool>;

    /// Patterns of the settings that match none of the layers with an adapter, each as a sentence.
    fn unused(&self, paths: &[&str]) -> Vec<String> {
        let _ = paths;
        Vec::new()
    }

    /// Its layers, for a method whose files do not name them.
    fn own_targets(&self) -> Option<Targets> {
        None
    }

    /// The name in files of the tensor with a key of [`tensor_key`](super::tensor_key).
    fn file_key(key: &str) -> String {
        key.to_owned()
    }

    /// The object with the keys of `adapter_config.json` that are this method's own.
    fn write(&self, config: &AdapterConfig) -> Value;
}

/// The settings of a method that puts a part of its own on linear layers.
pub trait LayerMethod: AdapterMethod {
    /// What sits on one layer.
    type Layer<B: Backend>: LayerAdapter<B, Config = Self>;

    /// The adapter of one layer as training begins; the layer computes what it computed without.
    fn fresh<B: ModelBackend>(&self, site: &Site<'_, B>) -> Self::Layer<B>;

    /// Whether an adapter on the layer at `path` that was trained as `present` says can be trained on as this says.
    fn continues<B: Backend>(&self, present: &Self, layer: &Self::Layer<B>, path: &str) -> bool;
}

/// Tensors that the adapters of one model have in common, by name: each is made once.
#[derive(Debug)]
pub struct Shared<B: Backend> {
    /// The largest input and output of the layers that get an adapter.
    pub largest: [usize; 2],
    tensors: RefCell<BTreeMap<String, Tensor<B, 2>>>,
}

impl<B: Backend> Shared<B> {
    /// Those that files brought.
    pub fn new(largest: [usize; 2], given: Vec<(&'static str, Tensor<B, 2>)>) -> Self {
        let given = given.into_iter();
        Self {
            largest,
            tensors: RefCell::new(given.map(|(name, tensor)| (name.into(), tensor)).collect()),
        }
    }

    /// The tensor of that name, made if there is none yet. `make` asks for no other.
    pub fn get_or(&self, name: &str, make: impl FnOnce() -> Tensor<B, 2>) -> Tensor<B, 2> {
        let mut tensors = self.tensors.borrow_mut();
        tensors.entry(name.to_owned()).or_insert_with(make).clone()
    }
}

/// Where a fresh adapter is put.
pub struct Site<'a, B: Backend> {
    /// The layer.
    pub layer: &'a LinearSpec,
    /// Gives the layer's weight in f32, `[in, out]`.
    pub weight: &'a dyn Fn() -> Tensor<B, 2>,
    /// What all layers' adapters have in common.
    pub shared: &'a Shared<B>,
    /// That of the layer's output columns.
    pub order: &'a ColumnOrder,
    /// Randomness of this layer's own.
    pub seed: Seed,
    /// Where tensors are made.
    pub device: &'a B::Device,
}

/// What a method puts on one linear layer.
pub trait LayerAdapter<B: Backend> {
    /// The method's settings.
    type Config;

    /// Takes over those settings of a later stage that a trained adapter may change.
    fn continue_as(&mut self, wanted: &Self::Config) {
        let _ = wanted;
    }

    /// What the layer reads in place of `x`; `None` for `x` itself.
    fn input(&self, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        let _ = x;
        None
    }

    /// What the layer's output `y`, bias included, becomes; `x` is what stood before the layer. `dropout` gives the mask of
    /// training; `None` drops nothing.
    fn output(&self, x: &Tensor<B, 2>, y: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend;

    /// What becomes of the residual stream `stream` when `y`, the output of the last layer of a sub-layer, is added to it.
    fn add(&self, stream: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        ops::residual(stream, y)
    }

    /// The layer without the adapter that computes the same. `weight`: `[in, out]`, `bias`: `[out]`. `None` where no weight
    /// does: such an adapter cannot be merged.
    fn merge(&self, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Option<Merged<B>>
    where
        B: ModelBackend;

    /// Becomes the adapter that is stored as this, of the settings `spec`.
    fn restore(&mut self, spec: &Self::Config) {
        let _ = spec;
    }

    /// The tensors that files hold once for all layers, as they hold them.
    fn shared(&self) -> Vec<(&'static str, Tensor<B, 2>)> {
        Vec::new()
    }

    /// The adapter as files hold it; `None` if it is stored as it is.
    fn stored(&self) -> Option<Self>
    where
        Self: Sized,
    {
        None
    }

    /// Walks the trained parameters; `order` is that of the layer's output columns.
    fn walk(
        &mut self,
        layer: &LayerSpec,
        order: &ColumnOrder,
        visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>),
    );
}

/// A linear layer that an adapter was merged into.
#[derive(Debug)]
pub struct Merged<B: Backend> {
    /// `[in, out]`.
    pub weight: Tensor<B, 2>,
    /// `[out]`; `None` if the bias is as it was.
    pub bias: Option<Tensor<B, 1>>,
}

impl Settings {
    /// `target_modules` that can name something.
    pub fn targets(&mut self, target_modules: &[String]) {
        if target_modules.is_empty() {
            self.note(
                Problem::new(
                    "target_modules",
                    "names no layer, so nothing would be trained",
                )
                .with_help("e.g. `[\"all-linear\"]` or `[\"q_proj\", \"v_proj\"]`"),
            );
        }
        self.expressions("target_modules", target_modules);
    }

    /// Names of modules that are trained whole.
    pub fn modules_to_save(&mut self, entries: &[String]) {
        for (index, entry) in entries.iter().enumerate() {
            if entry.is_empty() {
                self.note(Problem::new(format!("modules_to_save.{index}"), "is empty"));
            }
        }
    }

    /// Names or regular expressions.
    pub fn expressions(&mut self, key: &str, entries: &[String]) {
        use super::targets::{is_plain, too_many, whole};
        if let Err(message) = too_many(entries.iter().map(String::as_str)) {
            return self.note(Problem::new(key, message));
        }
        for (index, entry) in entries.iter().enumerate() {
            let key = format!("{key}.{index}");
            if entry.is_empty() {
                self.note(Problem::new(key, "is empty"));
            } else if !is_plain(entry)
                && let Err(cause) = whole(entry)
            {
                let message = format!("{entry:?} is not a regular expression: {cause}");
                self.note(Problem::new(key, message));
            }
        }
    }
}

/// `x` with each entry dropped with probability `p` and the others multiplied by `1 / (1 - p)`; `x` itself without a seed.
pub(crate) fn dropped<B: Backend>(x: &Tensor<B, 2>, p: f64, seed: Option<Seed>) -> Tensor<B, 2> {
    let Some(seed) = seed.filter(|_| p > 0.0) else {
        return x.clone();
    };
    let keep = (1.0 / (1.0 - p)) as f32;
    let [tokens, inputs] = x.dims();
    let entry = |i: usize| match seed.uniform(i as u64) < p {
        true => 0.0,
        false => keep,
    };
    let mask = (0..tokens * inputs).into_par_iter().map(entry);
    let mask = TensorData::new(mask.collect::<Vec<f32>>(), [tokens, inputs]);
    x.clone() * Tensor::from_data(mask, &x.device())
}

#[cfg(test)]
mod tests {
    use burn::backend::NdArray;

    use super::*;

    #[test]
    fn a_share_is_dropped_and_the_rest_makes_up_for_it() {
        let x = Tensor::<NdArray, 2>::ones([50, 40], &Default::default());
        let of = |seed: u64| -> Vec<f32> {
            let dropped = dropped(&x, 0.2, Some(Seed::new(seed)));
            dropped.into_data().to_vec().unwrap()
        };
        let values = of(1);
        assert!(values.iter().all(|&v| v == 0.0 || v == 1.25), "{values:?}");
        // 2000 entries: 0.2 with a standard error of 0.009.
        let share = values.iter().filter(|&&v| v == 0.0).count() as f64 / 2000.0;
        assert!((share - 0.2).abs() < 0.03, "{share}");
        assert_eq!(of(1), values);
        assert_ne!(of(2), values);
        let all: Vec<f32> = dropped(&x, 0.2, None).into_data().to_vec().unwrap();
        assert!(all.iter().all(|&v| v == 1.0));
    }
}
